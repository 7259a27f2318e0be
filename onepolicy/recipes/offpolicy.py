"""Off-policy finetuning: the student imitates what the experts wrote (a baseline of MOPD, arXiv 2606.30406).

    L = − mean over the tokens that the teachers wrote of log π_θ(y_t)

The one teacher of a domain answers training prompts of it; rollouts/DOMAIN.jsonl keeps the graded answers, which are
written once. Then `sft` on them: on the teacher's own tokens (not on its text, tokenised again), domains by their
shares, each in passes of a new order. The mean is over tokens, as in sft, so long answers count for more, unless
`reduction` or `balance` says otherwise; the signal of a token is its cross-entropy, known after the step.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from functools import partial

from onepolicy.balancing import Balancer
from onepolicy.config import LossConfig, OffpolicyConfig
from onepolicy.failures import Failures
from onepolicy.progress import progress
from onepolicy.rollout import rollout
from onepolicy.runfolder import read_object, write_atomic
from onepolicy.session import Session, stream
from onepolicy.tasks.mixture import Mixture
from onepolicy.teachers import Routed
from onepolicy.types import Sample, Weights
from onepolicy.watch import differing
from onepolicy.written import Epochs, RolloutFile


def offpolicy(config: OffpolicyConfig) -> None:
    loss = LossConfig(reduction=config.reduction)
    with Session(config, loss) as session:
        written = teachers_rollouts(session, config)
        balancer = Balancer(config.balance, list(config.domains), loss)
        session.remembered["balance"] = balancer

        for step in session.steps():
            samples = [next_sample(session.mixture, written) for _ in range(config.batch_size)]
            shares = balancer.annotate(samples)
            metrics = session.learner.step(samples)
            balancer.observe({d: metrics[key] for d in config.domains if (key := f"cross_entropy/{d}") in metrics})
            session.log(step, samples, metrics | shares)
        session.finish(session.policy)


def next_sample(mixture: Mixture, written: dict[str, Epochs]) -> Sample:
    """Of the domain whose turn it is. What a checkpoint remembers of the mixture says where each domain stands."""
    domain = mixture.next_domain()
    return replace(written[domain][mixture.drawn[domain] - 1], weights=Weights(ce=1.0))  # it comes again: a copy


def teachers_rollouts(session: Session, config: OffpolicyConfig) -> dict[str, Epochs]:
    """Write what is not yet written, one teacher in memory at a time, and none when all is there."""
    folder = session.folder.path / "rollouts"
    teachers = session.frozen({name: teacher.model for name, teacher in config.teachers.items()}, config.routes)
    same_teachers(session, config)
    written, summary = {}, {}
    for domain, name in config.routes.items():
        if not config.domains[domain].share:
            continue
        source = session.mixture.domains[domain]
        tasks = [source.draw() for _ in range(config.rollouts_per_domain // config.rollout.n)]
        file = RolloutFile(folder / f"{domain}.jsonl", tasks, config.rollout.n, config.rollout.prompts)
        write(session, teachers, domain, file)
        samples, found = file.samples(config.keep), file.summary()
        if not samples:
            raise ValueError(
                f"domain {domain!r}: none of the {found['rollouts']} rollouts of teacher {name!r} is to be kept (keep: "
                f"{config.keep}; mean reward {found['reward']:.3f}), so there is nothing to train on: raise "
                "rollouts_per_domain, take a better teacher, or set keep: all, with another output"
            )
        for kind, what in (("grader_failed", "could not be graded"), ("error", "ended in an error")):
            if kind in found:
                print(f"warning: {domain!r}: {found[kind]} of {found['rollouts']} rollouts {what}", file=sys.stderr)
        written[domain] = Epochs(samples, partial(stream, f"epoch {domain}", config.seed))
        summary[domain] = {"teacher": name, **found, "kept": len(samples)}
    write_atomic(folder / "summary.json", json.dumps(summary, indent=1))
    return written


def write(session: Session, teachers: Routed, domain: str, file: RolloutFile) -> None:
    """The batches that are missing; a batch's random stream depends on the domain and its number alone."""
    if file.done == len(file.batches):
        return
    failures = Failures()
    engine = teachers.engine(domain, session.policy.renderer, session.config.rollout.batch_size)
    title, began = f"{session.config.output.name}: rollouts of {domain}", time.monotonic()
    with progress(title, len(file.batches), file.done) as show:
        for number in range(file.done, len(file.batches)):
            seed = stream(f"rollouts of {domain}", session.config.seed, number)
            tasks = file.batches[number]
            session.watch.check()
            samples = rollout(engine, session.grader, tasks, file.n, session.sampling, seed=seed, version=0)
            failures.begin()
            failures.observe(samples)
            failures.require_some()  # before they are written down: a fixed grader shall see them again
            file.append(samples)
            show(number + 1, {**file.summary(), "time": time.monotonic() - began})


def same_teachers(session: Session, config: OffpolicyConfig) -> None:
    """Raises ValueError when a teacher is not the one that wrote the rollouts which are there already."""
    path = session.folder.path / "rollouts" / "teachers.json"
    now = {name: session.identities[name] for name in config.teachers}
    was = read_object(path) or now
    for name in was:
        if parts := differing(was[name], now[name]):
            raise ValueError(
                f"teacher {name!r} is not the one that wrote {path.parent}, it differs in "
                f"{', '.join(parts)}: restore it, or start a new run with another output"
            )
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, json.dumps(now, indent=1))

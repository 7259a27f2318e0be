"""A run under way: model, engine, tasks and folder, and the chores of a loop (resume, progress, cadence, evaluation).

A recipe opens a Session, iterates `steps()`, and shows what is its own: draw, roll out, annotate, learn, log.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch

from onepolicy import updates
from onepolicy.circumstances import device_name
from onepolicy.config import LossConfig, MergeConfig, ModelConfig, RunConfig
from onepolicy.engines.base import Engine, Sampling
from onepolicy.engines.room import Room
from onepolicy.evaluation import Evaluation, evaluate
from onepolicy.failures import Failures
from onepolicy.learner import Learner
from onepolicy.models import pick_device
from onepolicy.policy import Policy, bytes_on_disk, model_card
from onepolicy.preflight import check_experts, fit_teachers
from onepolicy.progress import hush_transformers, progress
from onepolicy.rollout import play_on, rollout, submit
from onepolicy.runfolder import RunFolder, write_atomic
from onepolicy.signals import undisturbed
from onepolicy.steprows import per_domain, readable, spent
from onepolicy.tasks import check_options
from onepolicy.tasks.check import require_golds
from onepolicy.tasks.grading import Grader
from onepolicy.tasks.mixture import Mixture
from onepolicy.tasks.screen import Screen
from onepolicy.teachers import Routed, Shelf
from onepolicy.types import Sample, Task
from onepolicy.watch import FilesChanged, Watch, identities, require_same

EVAL_SEED = 20_000_000  # of the answers to held-out questions: the same for every run, step and seed
GOLDS = 16  # gold answers per domain that are graded before anything else
ORIGIN = "the origin"  # among the identities; not a name that a teacher would have
SAMPLES_EVERY = 10  # steps between answers kept to read
STOPS = (KeyboardInterrupt, FilesChanged)  # from outside: the last finished step is as good as it was


class Stateful(Protocol):
    """What goes on after a resume as if nothing had happened. The state is JSON."""

    def state(self) -> Mapping[str, Any]: ...

    def load_state(self, state: Any) -> None: ...


class Session:
    """Opens in labelled paragraphs, always in the same order; bad input is refused before the model is loaded."""

    def __init__(
        self, config: RunConfig, loss: LossConfig, branches: Sequence[str] = ("policy",), *, saves: bool = True
    ) -> None:
        """`saves`: checkpoints and a model will be written, so that there must be room for them on the disk.

        Raises ValueError on bad input, OSError (ENOSPC) when the disk has no room.
        """
        self.config, self._saves = config, saves
        with ExitStack() as stack:
            self._open(loss, branches, stack)
            if saves:
                self.folder.require_room(*bytes_on_disk(self.policies.values()))
            self._stack = stack.pop_all()  # opened: from here on __exit__ closes

    def _open(self, loss: LossConfig, branches: Sequence[str], stack: ExitStack) -> None:
        config = self.config
        # what takes seconds first: options, then the files of model and teachers
        check_options(config.domains)
        device = pick_device(config.device)
        check_experts(config)
        # then tasks and their graders, which fail on wrong gold answers
        self.folder = RunFolder(config)
        stack.callback(self.folder.close)
        self.watch = Watch()
        self.identities: dict[str, Any] = identities(config.model, config.domains, config.output, self.watch)
        self.mixture = Mixture(config.domains, config.seed)
        self.grader = stack.enter_context(Grader(config.domains))
        require_golds(self.mixture.sources, GOLDS, self.grader.grade)
        # the policies, which write and learn: one, or a branch per name
        hush_transformers()
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.policies = {name: Policy(config, loss, device) for name in branches}
        self.policy = self.policies[branches[0]]
        self.sampling = sampling_of(config)
        # what the model makes of these tasks, and can take of them
        renderer = self.policy.renderer
        renderer.check_system_prompts(self.mixture.eval_tasks.values())
        for note in renderer.notes:
            print(f"note: {note}", file=sys.stderr)
        whose = fit_teachers(config, [policy.engine for policy in self.policies.values()])
        room = Room(self.policy.engine, self.sampling, whose)
        room.require(list(config.domains))
        self.screen = self._screen(room)
        self.mixture.restrict(self.screen, looks_ahead=True)
        # what a checkpoint remembers besides the learners
        self.failures = Failures()
        self.remembered: dict[str, Stateful] = {"mixture": self.mixture, "failures": self.failures}
        self.totals = {"sequences": 0, "tokens": 0, "seconds": 0.0}
        self._written = np.zeros(2, dtype=np.int64)  # sequences and tokens of this step, also those that it rejects
        self._show: Callable[[int, Mapping[str, float]], None] = lambda step, row: None
        self._finished: Finished | None = None
        self._saved = 0

    def _screen(self, room: Room) -> Screen:
        """Judges prompts or, where the run trains on them, demonstrations."""

        def demonstration_fault(task: Task) -> str:
            chat = self.mixture.demonstrated(task)
            return "" if chat is None else room.demonstration_fault(task, chat)

        trained = demonstration_fault if self.config.demonstrated else room.prompt_fault
        return Screen(room.prompt_fault, self.config.too_long, trained)

    def __enter__(self) -> Self:
        return self

    @property
    def learner(self) -> Learner:
        """The learner of the only policy, or of the first branch."""
        return self.policy.learner

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        kept = ""
        try:
            if self._saves and kind is not None and issubclass(kind, STOPS):
                with undisturbed():
                    kept = self._keep_step()
        finally:
            self._stack.close()
        if kept:
            print(f"\n{kept}", file=sys.stderr)

    def frozen(self, models: Mapping[str, ModelConfig], routes: Mapping[str, str]) -> Routed:
        """Frozen checkpoints as scorers, routed by domain, and remembered for a resume.

        The run's own starting model computes as the student does. Raises ValueError for weights that are not finite.
        """
        teachers = {name: self.shelf.teacher(name, model, model == self.config.model) for name, model in models.items()}
        for name, teacher in teachers.items():
            self.identities[name] = teacher.fingerprint
            self.watch.include(teacher.watch)
        return Routed({domain: teachers[name] for domain, name in routes.items()})

    def origin(self) -> Routed:
        """The model that the run started from, frozen, for all its domains."""
        return self.frozen({ORIGIN: self.config.model}, dict.fromkeys(self.config.domains, ORIGIN))

    @cached_property
    def shelf(self) -> Shelf:
        """One for all frozen checkpoints of the run, so that one of them at a time is resident."""
        return Shelf(
            device=self.learner.device,
            temperature=self.sampling.temperature,
            tokens_per_batch=self.config.optim.tokens_per_batch,
            vocabulary=self.learner.head.vocabulary,
        )

    def steps(self) -> Iterator[int]:
        """Step numbers from where the run stands to the end, with the chores in between. Then call `finish`."""
        config, start = self.config, self._resume()
        device = self.learner.device
        differing = self.folder.record_start(start, config.threads, device_name(device.type, device.index))
        if differing and start:
            print(f"warning: this resume is not bit-identical: {', '.join(differing)}", file=sys.stderr)
        self._clock = time.monotonic() - self.totals["seconds"]
        self._show = self._stack.enter_context(progress(config.output.name, config.steps, start))
        self._saved = start
        self._remember(start)
        if start and self.is_evaluated(start):
            self._evaluate_all(start, again=False)  # the process before was stopped before it could, or meanwhile
        for step in range(start, config.steps):
            torch.manual_seed(stream("step", config.seed, step))  # router noise, say: the same after a resume
            self._written[:] = 0
            self.failures.begin()
            self.watch.check()
            yield step
            done = step + 1
            finished = self._remember(done)
            if self.is_evaluated(done):
                self._evaluate_all(done)
            if done % config.checkpoint.every == 0 or done == config.steps:
                self._save(finished)
        self.watch.check()

    def _evaluate_all(self, done: int, again: bool = True) -> None:
        """Every policy after so many steps; not `again` where that is there already."""
        label = f"step-{done}"
        for name, policy in self.policies.items():
            if again or not (self.home(name) / "eval" / f"{label}.json").is_file():
                self.evaluate(label, policy, self.home(name))

    def is_evaluated(self, done: int) -> bool:
        """Whether there is an evaluation after so many steps; that of the end is made by `finish`."""
        every = self.config.eval.every
        return every > 0 and done % every == 0 and done < self.config.steps

    def rollout(
        self, tasks: Sequence[Task], n: int, step: int, draw: int = 0, policy: Policy | None = None
    ) -> list[Sample]:
        """Graded samples by the current policy; the random stream is a function of seed, step and draw alone."""
        policy = policy or self.policy
        seed = stream("rollout", self.config.seed, step, draw)
        version = policy.learner.version
        samples = rollout(policy.engine, self.grader, tasks, n, self.sampling, seed=seed, version=version)
        self._written += spent(samples)
        self.failures.observe(samples)
        return samples

    def log(self, step: int, samples: Sequence[Sample], metrics: Mapping[str, float]) -> None:
        """One row of metrics.jsonl, some answers to read, the progress bar.

        Counted is all that the step wrote or, where it imitates, what it was shown. Raises ValueError, once that is
        logged, when no answer of the step in some domain has a reward.
        """
        sequences, tokens = self._written if self._written.any() else spent(samples)
        self.totals["sequences"] += int(sequences)
        self.totals["tokens"] += int(tokens)
        self.totals["seconds"] = time.monotonic() - self._clock
        row = {
            "step": step + 1,
            "time": round(self.totals["seconds"], 3),
            "sequences": self.totals["sequences"],
            "tokens": self.totals["tokens"],
            **metrics,
            **per_domain(samples),
            **self.failures.row(),
            **{f"grader_restarts/{domain}": count for domain, count in self.grader.take_restarts().items()},
            **{f"too_long/{domain}": count for domain, count in self.screen.dropped.items()},
        }
        self.screen.dropped.clear()
        self.folder.append("metrics.jsonl", row)
        self._show(step + 1, row)
        if step % SAMPLES_EVERY == 0:
            for sample in {sample.task.domain: sample for sample in samples}.values():
                self.folder.append("samples.jsonl", readable(sample, step + 1))
        self.failures.require_some()
        for policy in self.policies.values():
            updates.require_updates(policy.learner.skipped_in_row)

    def evaluate(self, label: str, policy: Policy | None = None, folder: Path | None = None) -> Evaluation:
        """avg@n on the held-out tasks of every domain, kept as eval/LABEL.json; the same random stream every time.

        By default of the policy, in the run's folder.
        """
        config = self.config.eval
        tasks = [task for tasks in self.mixture.eval_tasks.values() for task in tasks]
        sampling = replace(self.sampling, temperature=config.temperature, noise=0.0)
        folder = folder or self.folder.path
        engine = (policy or self.policy).engine
        result = evaluated(label, engine, self.grader, tasks, config.n, sampling, self.mixture.too_long)
        (folder / "eval").mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "eval" / f"{label}.json", result.to_json())
        return result

    def finish(self, result: Policy | None) -> None:
        """Save the result as model/, evaluate it, and mark the run as done.

        Raises ValueError when no answer of some domain had a reward in the whole run.
        """
        self.failures.require_any()
        means: dict[str, float] = {}
        if result is not None:
            result.learner.save(self.folder.model, model_card(self.config))
            if self.config.eval.at_end:
                means = self.evaluate("final", result).means()
        for line in self.failures.summary():
            print(f"warning: {line}", file=sys.stderr)
        self.folder.finish({"steps": self.config.steps, **self.totals, "means": means})

    def home(self, name: str) -> Path:
        """Where a policy's model and evaluations go: the run's folder, or one per branch when there are several."""
        return self.folder.path if len(self.policies) == 1 else self.folder.path / "branches" / name

    def _resume(self) -> int:
        """Restore the newest whole checkpoint, or start. Raises ValueError when a participant has changed since."""
        found = self.folder.load_checkpoint()
        if found is None:
            self.folder.rewind(0)
            return 0
        learner, facts = found
        require_same(facts["identities"], self.identities)
        if facts["step"] > self.config.steps:
            raise ValueError(
                f"{self.folder.path} is at step {facts['step']} already: set steps to at least that, or another output"
            )
        for name, policy in self.policies.items():
            policy.restore(learner[name])
        for name, thing in self.remembered.items():
            thing.load_state(facts["remembered"][name])
        self.totals = facts["totals"]
        self.folder.rewind(facts["step"])
        return int(facts["step"])

    def _remember(self, step: int) -> Finished:
        """The step is finished: all that its checkpoint holds beside the learners, as it is now."""
        facts = {
            "step": step,
            "remembered": {name: thing.state() for name, thing in self.remembered.items()},
            "identities": self.identities,
            "totals": self.totals,
        }
        versions = {name: policy.learner.version for name, policy in self.policies.items()}
        self._finished = Finished(step, json.dumps(facts), versions)
        return self._finished

    def _save(self, finished: Finished) -> None:
        """Raises ValueError, leaving earlier checkpoints as they are, when the weights are not finite."""
        for policy in self.policies.values():
            one = policy.learner
            updates.require_finite(one.model, one.optimizer, one.version)
        learners = {name: policy.state() for name, policy in self.policies.items()}
        self.folder.save_checkpoint(finished.step, learners, json.loads(finished.facts))
        self._saved = finished.step

    def _keep_step(self) -> str:
        """Save the last finished step unless it is, or an update of the next has begun. Says which step is kept."""
        finished = self._finished
        if finished is None:
            return ""
        learners = {name: policy.learner for name, policy in self.policies.items()}
        untouched = all(one.version == finished.versions[name] and not one.updating for name, one in learners.items())
        if finished.step > self._saved and untouched:
            try:
                self._save(finished)
            except (OSError, ValueError) as error:
                print(f"warning: step {finished.step} could not be saved: {error}", file=sys.stderr)
        if not self._saved:
            return f"stopped: no step was finished and nothing is kept in {self.folder.path}"
        return f"stopped: step {self._saved} of {self.config.steps} is kept in {self.folder.path}"


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished step: `facts`, the JSON of its checkpoint, and each learner's version, which its weights have."""

    step: int
    facts: str
    versions: Mapping[str, int]


def sampling_of(config: RunConfig | MergeConfig) -> Sampling:
    """How a run's rollouts are sampled."""
    rollout = config.rollout
    return Sampling(
        rollout.temperature,
        max_new_tokens=rollout.max_new_tokens,
        limits={name: d.max_new_tokens for name, d in config.domains.items() if d.max_new_tokens},
        noise=getattr(rollout, "engine_noise", 0.0),
        stop=rollout.stop,
        min_new_tokens=rollout.min_new_tokens,
    )


def evaluated(
    label: str,
    engine: Engine,
    grader: Grader,
    tasks: Sequence[Task],
    n: int,
    sampling: Sampling,
    too_long: Mapping[str, int],
) -> Evaluation:
    """avg@n with the random stream of every evaluation; what is in no score goes to stderr."""

    def grade(samples: list[Sample]) -> None:
        for sample in samples:
            submit(grader, sample)
        play_on(engine, grader, sampling, seed=EVAL_SEED)  # further turns, where there are any

    result = evaluate(engine, tasks, grade, n, sampling, EVAL_SEED, too_long)
    for remark in result.remarks():
        print(f"warning: evaluation {label}: {remark}", file=sys.stderr)
    return result


def stream(purpose: str, *numbers: int) -> int:
    """The seed of one random stream; any other purpose or number gives an unrelated one."""
    digest = hashlib.blake2b(f"{purpose} {numbers}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1  # what every generator takes: 63 bits

"""Co-evolving policy distillation (CoPD, arXiv 2604.27083): branches train in parallel and teach one another meanwhile.

    for each cycle:  rl_steps   of GRPO, every branch on its own domain
                     opd_steps  in which each branch also answers its peers' prompts, and the peer scores every token:
                                Â_t = β_k [ log π_j(y_t) − log π_k(y_t) ], in one update with its own GRPO samples
    at the end:      θ* = merge(θ_0, θ_1 … θ_K), which is also what is evaluated on the way, beside the branches

Peers are live by default: all rollouts and scores of a step come before any update. With one branch this is `rlvr`,
and with opd_steps 0 it is `rlvr` per domain and a merge, bit for bit. Neither the clip of the signal (loss.distill) nor
the gate on engine noise (loss.importance) is in the paper; `transform: none` and `mode: off` take them away.
"""

from __future__ import annotations

from collections.abc import Mapping

from onepolicy.balancing import Balancer
from onepolicy.config import CopdConfig
from onepolicy.diagnostics import gap_row
from onepolicy.engines.base import Scorer
from onepolicy.policy import Policy, merged
from onepolicy.recipes.rlvr import annotate_reinforcement, draw_groups
from onepolicy.rollout import drop_errors
from onepolicy.session import Session, stream
from onepolicy.tasks.mixture import Mixture
from onepolicy.teachers import wanted
from onepolicy.types import Sample, Want, Weights
from onepolicy.update_plan import join_means

CROSS = 50  # numbers the draws of cross prompts, after those of dynamic sampling


def copd(config: CopdConfig) -> None:
    branches = list(config.domains)
    with Session(config, config.loss, branches) as session:
        native = {name: prompts(session, f"native {name}", name, config.seed) for name in branches}
        cross = {
            (name, peer): prompts(session, f"{name} < {peer}", peer, stream(f"{name} < {peer}", config.seed))
            for name in branches
            for peer in config.teachers_of(name)
        }
        balancers = {name: Balancer(config.balance, branches, config.loss) for name in branches}
        session.remembered |= {f"balance {name}": balancer for name, balancer in balancers.items()}
        origin = {"origin": session.origin()} if config.diagnose_every else {}

        for step in session.steps():
            if config.exchange.peers == "snapshot" and starts_opd(config, step):
                for policy in session.policies.values():
                    policy.take_snapshot()
            samples: dict[str, list[Sample]] = {}
            row: dict[str, float] = {"opd": float(config.in_opd(step))}
            for name, policy in session.policies.items():
                samples[name] = draw_groups(session, config, step, native[name], policy)
                annotate_reinforcement(samples[name], config)
                for number, peer in enumerate(config.teachers_of(name) if config.in_opd(step) else []):
                    samples[name] += taught(session, config, step, name, peer, cross[name, peer], number)
                if config.exchange.mean == "joint":
                    join_means(samples[name], config.loss)
                row |= labelled(balancers[name].annotate(samples[name]), name)
            if config.diagnose_every and step % config.diagnose_every == 0:
                row |= gaps(session.policies, samples, origin)
            for name, policy in session.policies.items():
                row |= labelled(policy.learner.step(samples[name]), name)
            session.log(step, [s for mine in samples.values() for s in mine if s.teacher is None], row)
            if session.is_evaluated(step + 1) and len(branches) > 1 and config.merge.method != "none":
                session.evaluate(f"step-{step + 1}", merged(list(session.policies.values()), config.merge))
        finish(session, config)


def prompts(session: Session, label: str, domain: str, seed: int) -> Mixture:
    """A stream of a domain's prompts that nobody else draws from, remembered by checkpoints."""
    mixture = Mixture({domain: session.config.domains[domain]}, seed)
    mixture.restrict(session.screen)
    session.remembered[label] = mixture
    return mixture


def starts_opd(config: CopdConfig, step: int) -> bool:
    return config.opd_steps > 0 and step % (config.rl_steps + config.opd_steps) == config.rl_steps


def taught(
    session: Session, config: CopdConfig, step: int, name: str, peer: str, questions: Mixture, number: int
) -> list[Sample]:
    """The branch's own answers to a peer's prompts, scored by the peer."""
    exchange = config.exchange
    tasks = questions.draw(exchange.prompts)
    samples = session.rollout(tasks, exchange.n, step, CROSS + number, session.policies[name])
    scorer = session.policies[peer].as_peer(exchange.peers)
    for sample, scores in zip(samples, scorer.score(samples, wanted(config.loss.distill)), strict=True):
        sample.teacher, sample.weights = scores, Weights(distill=exchange.beta_of(name))
    drop_errors(samples)
    return samples


def gaps(
    policies: Mapping[str, Policy], samples: Mapping[str, list[Sample]], others: Mapping[str, Scorer]
) -> dict[str, float]:
    """Overlap and symmetric KL of every branch with its peers and with `others`, on its own domain's rollouts."""
    row: dict[str, float] = {}
    for name, policy in policies.items():
        own = [sample for sample in samples[name] if sample.teacher is None]
        ours = policy.learner.score(own, Want("full"))
        peers = {peer: policies[peer].learner for peer in policies if peer != name}
        for other, scorer in {**peers, **others}.items():
            row |= gap_row(f"{name}<{other}", ours, scorer.score(own, Want("full")), policy.learner.temperature)
    return row


def labelled(metrics: Mapping[str, float], branch: str) -> dict[str, float]:
    """One branch's metrics in a row for all: `name/branch`, and `name/branch<peer>` for what it learnt from a peer."""
    row = {}
    for key, value in metrics.items():
        name, _, domain = key.partition("/")
        row[f"{name}/{branch}" + (f"<{domain}" if domain not in ("", branch) else "")] = value
    return row


def finish(session: Session, config: CopdConfig) -> None:
    """Keep and evaluate every branch, then their merge, which is the run's result (if there is to be one)."""
    for name, policy in session.policies.items():
        home = session.home(name)
        home.mkdir(parents=True, exist_ok=True)
        policy.learner.save(home / "model")
        if config.eval.at_end:
            session.evaluate("final", policy, home)
    session.finish(None if config.merge.method == "none" else merged(list(session.policies.values()), config.merge))

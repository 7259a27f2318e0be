"""Reinforcement learning from verifiable rewards: one expert (GRPO family).

    Â_i = (r_i − mean r) / std r over the G rollouts of a prompt      L = − E[ min(ρ Â, clip(ρ) Â) ]

Options: Dr.GRPO, RLOO, MaxRL advantages; PPO, CISPO, REINFORCE, GSPO losses; dynamic sampling (DAPO, arXiv
2503.14476); truncated responses masked; reverse KL to the starting model, through the same component as distillation.
"""

from __future__ import annotations

from collections import Counter

from onepolicy.config import ReinforcedConfig, RlvrConfig
from onepolicy.drift import Drift
from onepolicy.objectives.advantages import overlong_penalty
from onepolicy.policy import Policy
from onepolicy.rewards import has_contrast
from onepolicy.rollout import annotate_advantages, groups_of, learn
from onepolicy.session import Session
from onepolicy.tasks.mixture import Mixture
from onepolicy.teachers import wanted
from onepolicy.types import Sample, Weights


def rlvr(config: RlvrConfig) -> None:
    with Session(config, config.loss) as session:
        reference = None
        if config.reference_kl > 0:
            reference = session.frozen({"reference": config.model}, dict.fromkeys(config.domains, "reference"))
        want = wanted(config.loss.distill)
        drift = Drift(session, config)

        for step in session.steps():
            samples = draw_groups(session, config, step)
            annotate_reinforcement(samples, config)
            if reference is not None:
                for sample, scores in zip(samples, reference.score(samples, want), strict=True):
                    sample.teacher, sample.weights.distill = scores, config.reference_kl * sample.weights.pg
            gaps = drift.measure(step, samples)
            metrics = learn(session.learner, samples, config.inner_updates)
            session.log(step, samples, metrics | gaps)
        session.finish(session.policy)


def annotate_reinforcement(samples: list[Sample], config: ReinforcedConfig) -> None:
    """Advantages by group, and weight 1, or 0 for a truncated response if those are masked and for an ungraded one."""
    for sample in samples:
        masked = config.overlong == "mask" and sample.finish == "length"
        sample.weights = Weights(pg=0.0 if masked else 1.0)
        if config.overlong_cache is not None:
            limit = config.domains[sample.task.domain].max_new_tokens or config.rollout.max_new_tokens
            limit = min(limit, config.rollout.max_new_tokens)
            sample.penalty = overlong_penalty(sample.length, limit, config.overlong_cache)
    annotate_advantages(samples, config.advantage, config.turn_weight)


def draw_groups(
    session: Session,
    config: ReinforcedConfig,
    step: int,
    mixture: Mixture | None = None,
    policy: Policy | None = None,
) -> list[Sample]:
    """`rollout.prompts` groups. Dynamic sampling: groups whose rewards are all equal carry no signal; replace them.

    Equal is up to rounding and among the graded samples: a failed grading gives a group no contrast. Up to `max_draws`
    batches are drawn; what is then still missing is filled with groups of equal rewards. Each domain keeps the number
    of groups that the first batch gives it: one with more contrast does not crowd out the others.
    """
    useful: list[list[Sample]] = []
    equal: list[list[Sample]] = []
    mixture = mixture or session.mixture
    tasks = mixture.draw(config.rollout.prompts)
    missing = Counter(task.domain for task in tasks)
    for draw in range(config.max_draws):
        if draw:  # careful: not by `mixture.draw`: a replacement is nobody's turn, and the next batch is as it would be
            tasks = [mixture.domains[name].draw() for name in missing.elements()]
        for group in groups_of(session.rollout(tasks, config.rollout.n, step, draw, policy)):
            differs = has_contrast(group)
            (useful if differs else equal).append(group)
            missing[group[0].task.domain] -= differs
        if not missing.total():
            break
    groups = list(useful)
    for group in equal:
        if missing[group[0].task.domain]:
            missing[group[0].task.domain] -= 1
            groups.append(group)
    for number, group in enumerate(groups):
        for sample in group:
            sample.group = number
    return [sample for group in groups for sample in group]

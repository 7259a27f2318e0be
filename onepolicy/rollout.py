"""Tasks → graded samples. What overlaps with what lives here and nowhere else.

A finished sample goes to the grading process at once, while the others are still being written; what comes back is in
the order of the tasks. A rollout that failed is data, not a crash: finish "error", the engine's reason, reward 0.0 for
display. What an engine or a grader has failed on (`not sample.is_graded`) says nothing of the policy and is learnt from
by no outcome term.

Where tasks have an environment, a sample is an episode: all that are under way write a turn in one batch, and each goes
to its environment as soon as that has ended. The next turn waits for the slowest answer, so that what shares a batch,
and with it the rounding of every number, is the same in every run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onepolicy.engines.base import Engine, Sampling
from onepolicy.learner import Learner
from onepolicy.objectives.advantages import AdvantageKind, group_advantages
from onepolicy.objectives.weighting import turns
from onepolicy.rewards import graded_rewards
from onepolicy.tasks.grading import Grader
from onepolicy.types import Array, Sample, Task, Want, Weights

STALE = ("rollout_kl", "clipped", "distill_clipped")  # grow from one inner update to the next: the last is logged


def rollout(
    engine: Engine, grader: Grader, tasks: Sequence[Task], n: int, sampling: Sampling, *, seed: int, version: int
) -> list[Sample]:
    """n graded samples of every task, ordered by task, then rollout."""
    samples = []
    for sample in engine.generate(tasks, n, sampling, seed=seed, version=version):
        submit(grader, sample)
        samples.append(sample)
    play_on(engine, grader, sampling, seed=seed)
    samples.sort(key=lambda sample: (sample.group, sample.index))
    if len(samples) != len(tasks) * n:
        raise ValueError(f"the engine owed {len(tasks)} × {n} samples and gave {len(samples)}")
    return samples


def play_on(engine: Engine, grader: Grader, sampling: Sampling, *, seed: int) -> None:
    """Wait for the rewards of what was submitted. Episodes that go on get further turns until they have theirs too."""
    while waiting := [sample for sample in grader.collect() if sample.reward is None]:
        waiting.sort(key=lambda sample: (sample.group, sample.index))
        for sample in engine.resume(waiting, sampling, seed=seed):
            submit(grader, sample)


def submit(grader: Grader, sample: Sample) -> None:
    """To the grader, unless the engine has failed: then there is nothing to grade."""
    if sample.finish == "error":
        sample.reward = 0.0
    else:
        grader.submit([sample])


def groups_of(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Samples by prompt, in order of first appearance."""
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    return list(groups.values())


def annotate_advantages(samples: Sequence[Sample], kind: AdvantageKind, turn_weight: float = 0.0) -> None:
    """Give every sample its outcome advantage: one number per group's reward, the same for all its tokens.

    With a `turn_weight`, plus that times the advantages by turn, where the environment rewards turns. The baseline of a
    group is of its graded samples alone. The others get advantage 0 and `weights.pg` 0, so that they are not in the
    mean of the loss either: set weights before.
    """
    for group in groups_of(samples):
        graded = [sample for sample in group if _is_graded(sample)]
        penalties = np.array([sample.penalty for sample in graded])
        advantages_G = group_advantages(graded_rewards(group) + penalties, kind)
        turns_GR: Sequence[Array | float] = [0.0] * len(graded)
        if turn_weight and any(sample.turn_rewards for sample in graded):
            turns_GR = [turn_weight * turns_R for turns_R in turn_advantages(graded, kind)]
        for sample in group:
            sample.advantages_R = np.zeros(sample.length, dtype=np.float32)
            if not sample.is_graded:
                sample.weights.pg = 0.0
        for sample, advantage, turns_R in zip(graded, advantages_G, turns_GR, strict=True):
            sample.advantages_R = (np.full(sample.length, advantage) + turns_R).astype(np.float32)


def drop_errors(samples: Sequence[Sample]) -> None:
    """Set all weights to 0 where the engine has failed. Set weights before."""
    for sample in samples:
        if sample.finish == "error":
            sample.weights = Weights()


def turn_advantages(group: Sequence[Sample], kind: AdvantageKind) -> list[Array]:
    """[R] per sample: Σ over the token's turn and all later ones of the advantage of that turn's reward.

    The rewards of all turns of all rollouts are one group (process supervision of GRPO, arXiv 2402.03300 §4.1.3). A
    turn that the environment has not rewarded, since the episode broke off, has reward 0.
    """
    rewards = [np.append(sample.turn_rewards, np.zeros(sample.turns))[: sample.turns] for sample in group]
    advantages = group_advantages(np.concatenate(rewards), kind)
    parts = np.split(advantages, np.cumsum([sample.turns for sample in group])[:-1])
    return [part[::-1].cumsum()[::-1][turns(sample.mask_T)] for part, sample in zip(parts, group, strict=True)]


def learn(learner: Learner, samples: Sequence[Sample], inner_updates: int) -> dict[str, float]:
    """One update from all samples, or several from a part each; whole groups stay together. Returns mean metrics.

    Every part has its share of every domain (as far as there are enough groups of it), whatever order they came in.
    With several, the learner's log-probs before the first are kept as `old_logprobs_R`: the ratio of the policy loss
    is against them, and the importance weights between them and the engine.
    """
    groups = groups_of(samples)
    if inner_updates > len(groups):
        raise ValueError(f"inner_updates is {inner_updates}, but there are only {len(groups)} prompts to share out")
    if inner_updates > 1:
        for sample, scores in zip(samples, learner.score(samples, Want("sampled")), strict=True):
            sample.old_logprobs_R = scores.logprobs_R
        groups.sort(key=lambda group: group[0].task.domain)
    rows = [learner.step([s for group in groups[k::inner_updates] for s in group]) for k in range(inner_updates)]
    return rows[0] if inner_updates == 1 else _together(rows)


def _together(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The metrics of several updates as those of one: means, but the largest of maxima and the last of a count.

    What staleness shows in is there twice: `clipped` is the mean, `clipped_last` that of the last update.
    """

    def joined(key: str, values: list[float]) -> float:
        name = key.partition("/")[0]
        return values[-1] if name == "skipped" else max(values) if name.endswith("_max") else float(np.mean(values))

    keys = sorted({key for row in rows for key in row})
    together = {key: joined(key, [row[key] for row in rows if key in row]) for key in keys}
    for key, value in rows[-1].items():
        name, slash, domain = key.partition("/")
        if name in STALE:
            together[f"{name}_last{slash}{domain}"] = value
    return together


def _is_graded(sample: Sample) -> bool:
    assert sample.reward is not None, f"sample of task {sample.task.id} has not been graded"
    return sample.is_graded

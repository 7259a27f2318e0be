"""Tasks → graded samples. What overlaps with what lives here and nowhere else.

A finished sample goes to the grading process at once, while the others are still being written; what comes back is in
the order of the tasks. A rollout that failed is data, not a crash: finish "error", reward 0, the engine's reason.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onepolicy.engines.base import Engine, Sampling
from onepolicy.learner import Learner
from onepolicy.objectives.advantages import AdvantageKind, group_advantages
from onepolicy.tasks.grading import Grader
from onepolicy.types import Sample, Task, Want

STALE = ("rollout_kl", "clipped")  # what grows from one inner update to the next: also logged for the last


def rollout(
    engine: Engine, grader: Grader, tasks: Sequence[Task], n: int, sampling: Sampling, *, seed: int, version: int
) -> list[Sample]:
    """n graded samples of every task, ordered by task, then rollout."""
    samples = []
    for sample in engine.generate(tasks, n, sampling, seed=seed, version=version):
        if sample.finish == "error":
            sample.reward = 0.0
        else:
            grader.submit([sample])
        samples.append(sample)
    grader.collect()
    samples.sort(key=lambda sample: (sample.group, sample.index))
    if len(samples) != len(tasks) * n:
        raise ValueError(f"the engine owed {len(tasks)} × {n} samples and gave {len(samples)}")
    return samples


def groups_of(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Samples by prompt, in order of first appearance."""
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    return list(groups.values())


def annotate_advantages(samples: Sequence[Sample], kind: AdvantageKind) -> None:
    """Give every sample its outcome advantage: one number per group's reward, the same for all its tokens."""
    for group in groups_of(samples):
        rewards_G = np.array([_graded(sample) for sample in group])
        for sample, advantage in zip(group, group_advantages(rewards_G, kind), strict=True):
            sample.advantages_R = np.full(sample.length, advantage, dtype=np.float32)


def learn(learner: Learner, samples: Sequence[Sample], inner_updates: int) -> dict[str, float]:
    """One update from all samples, or several from a part each; whole groups stay together. Returns mean metrics.

    With several, the learner's log-probs before the first are kept as `old_logprobs_R`: the ratio of the policy loss
    is against them, and the importance weights between them and the engine.
    """
    groups = groups_of(samples)
    if inner_updates > len(groups):
        raise ValueError(f"inner_updates is {inner_updates}, but there are only {len(groups)} prompts to share out")
    if inner_updates > 1:
        for sample, scores in zip(samples, learner.score(samples, Want("sampled")), strict=True):
            sample.old_logprobs_R = scores.logprobs_R
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


def _graded(sample: Sample) -> float:
    assert sample.reward is not None, f"sample of task {sample.task.id} has not been graded"
    return sample.reward

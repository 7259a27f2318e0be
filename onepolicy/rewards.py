"""When rewards are equal, and which samples have one at all. All of the package asks here.

Rewards are computed in floating point: 0.1 + 0.2 is not 0.3, float32(0.7) is not 0.7, a weighted sum of graders depends
on the order of its terms. Rewards that differ by rounding alone are equal: a group of them has no contrast, and its
standard deviation is no scale: dividing by it would turn the rounding into advantages of ±1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from onepolicy.types import Sample

TOLERANCE = 1e-6  # of the largest reward's size, or of 1 where all are smaller; float32 rounds sums of a few at 1e-7


def all_equal(rewards: ArrayLike) -> bool:
    """Whether rewards are equal up to rounding: max − min ≤ 1e-6 · max(1, max |r|). None or one reward: True.

    Relative for large rewards, absolute below 1, since 0.1 + 0.2 - 0.3 is 6e-17 and no fraction of anything.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if values.size < 2:
        return True
    return bool(np.ptp(values) <= TOLERANCE * max(1.0, float(np.abs(values).max())))


def is_correct(reward: float) -> bool:
    """Whether a reward is the full one, 1.0, up to rounding: 0.9999999 is, 0.99 is not."""
    return reward >= 1.0 or all_equal([reward, 1.0])


def graded_rewards(samples: Sequence[Sample]) -> list[float]:
    """The rewards of the samples that have one. Left out: what a grader failed on, and errors of the engine."""
    return [sample.reward for sample in samples if sample.is_graded and sample.reward is not None]


def has_contrast(group: Sequence[Sample]) -> bool:
    """Whether the rollouts of one prompt tell better from worse: at least two are graded, and their rewards differ."""
    return not all_equal(graded_rewards(group))

"""Advantages from the rewards of one group: G rollouts of the same prompt. No torch; float64.

An advantage is positive where a rollout beats its group. A group of one has no baseline and a group of equal rewards
(up to rounding, see rewards.py) no contrast: both are 0, exactly.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from onepolicy.rewards import TOLERANCE, all_equal
from onepolicy.types import Array

AdvantageKind = Literal["grpo", "dr_grpo", "rloo", "maxrl"]


def group_advantages(rewards_G: ArrayLike, kind: AdvantageKind) -> Array:
    """Advantages of one group, [G] float64.

    grpo     (r - mean) / std, Bessel's std as in verl and NeMo-RL      GRPO, arXiv 2402.03300
    dr_grpo  r - mean                                                   Dr.GRPO, arXiv 2503.20783
    rloo     r - mean of the *other* rollouts = (r - mean)·G/(G - 1)    RLOO, arXiv 2402.14740
    maxrl    (r - mean) / mean                                          MaxRL; rewards must not be negative
    """
    rewards = np.asarray(rewards_G, dtype=np.float64)
    if rewards.ndim != 1 or not np.isfinite(rewards).all():
        raise ValueError(f"rewards of a group must be one axis of finite numbers, got {rewards.tolist()}")
    # Equality is tested on the rewards: the std of three times 0.1 is not exactly 0, and would blow up its rounding.
    if all_equal(rewards):
        return np.zeros_like(rewards)
    centred = rewards - rewards.mean()
    match kind:
        case "grpo":
            return centred / rewards.std(ddof=1)
        case "dr_grpo":
            return centred
        case "rloo":
            return centred * (len(rewards) / (len(rewards) - 1))
        case "maxrl":
            if rewards.min() < -TOLERANCE:
                raise ValueError(f"maxrl divides by the mean and needs rewards >= 0, got {rewards.min()}: use grpo")
            return centred / rewards.mean()
        case _:
            raise ValueError(f"unknown advantage {kind!r}: use grpo, dr_grpo, rloo or maxrl")


def overlong_penalty(length: int, max_length: int, cache: int) -> float:
    """The soft punishment of long responses, in [-1, 0], to be added to the reward (DAPO, arXiv 2503.14476, Eq. 13).

    0 up to max_length - cache, then linear to -1 at max_length: with 100 and 20, a response of 90 tokens gets -0.5.
    """
    over = length - (max_length - cache)
    return -min(1.0, max(0.0, over / cache))


def whiten(values: ArrayLike, mask: ArrayLike) -> Array:
    """(value - mean) / Bessel's std over the places where `mask` is true; 0 elsewhere, whatever stands there.

    One value alone has no spread and stays raw. Whiten outcome advantages only, never a sum with a teacher's signal:
    the subtracted mean would cancel what the teacher says.
    """
    values, mask = np.asarray(values, dtype=np.float64), np.asarray(mask, dtype=bool)
    chosen = values[mask]
    if len(chosen) > 1:
        equal = all_equal(chosen)
        chosen = np.zeros_like(chosen) if equal else (chosen - chosen.mean()) / chosen.std(ddof=1)
    whitened = np.zeros_like(values)
    whitened[mask] = chosen
    return whitened

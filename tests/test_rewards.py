"""Equal up to rounding: one rule, and everybody who compares rewards follows it."""

from __future__ import annotations

import numpy as np
import pytest

from onepolicy.forecast import _contrast
from onepolicy.objectives.advantages import group_advantages, whiten
from onepolicy.rewards import all_equal, graded_rewards, has_contrast, is_correct
from onepolicy.rollout import annotate_advantages, drop_errors
from onepolicy.types import Sample, Task, Weights
from tests.runs import run_of

WEIGHTED = [0.7 + 0.2 + 0.1, 0.1 + 0.2 + 0.7, sum([0.1] * 10)]  # 1.0 in three ways
EQUAL = [
    [0.1 + 0.2, 0.3],
    [float(np.float32(0.7)), 0.7],
    [0.1 + 0.2 - 0.3, 0.0],
    WEIGHTED,
    [100 * float(np.float32(0.7)), 70.0],
    [0.5],
    [],
]
DIFFERENT = [[0.0, 1.0], [0.3, 0.30001], [0.999, 1.0], [100.0, 100.001], [-0.5, 0.5], [0, 1e-5]]


@pytest.mark.parametrize("rewards", EQUAL)
def test_rewards_that_differ_by_rounding_are_equal_and_give_no_advantage(rewards: list[float]) -> None:
    assert all_equal(rewards)
    for kind in ("grpo", "dr_grpo", "rloo", "maxrl"):
        assert group_advantages(rewards, kind).tolist() == [0.0] * len(rewards)  # type: ignore[arg-type]
    if len(rewards) > 1:
        assert whiten(rewards, [True] * len(rewards)).tolist() == [0.0] * len(rewards)


@pytest.mark.parametrize("rewards", DIFFERENT)
def test_rewards_that_differ_by_more_do_not_count_as_equal(rewards: list[float]) -> None:
    assert not all_equal(rewards)
    assert abs(group_advantages(rewards, "grpo")).max() == pytest.approx(0.5**0.5)


def test_correct_is_the_full_reward_up_to_rounding() -> None:
    assert [is_correct(reward) for reward in (*WEIGHTED, float(np.float32(1.0)), 1 - 1e-9)] == [True] * 5
    assert [is_correct(reward) for reward in (0.0, 0.99, 0.9999)] == [False] * 3
    assert 0.7 + 0.2 + 0.1 < 1.0 and is_correct(0.7 + 0.2 + 0.1)


def group(*rewards: float | None, length: int = 2) -> list[Sample]:
    """None: the grader has failed on it."""
    samples = []
    for index, reward in enumerate(rewards):
        task = Task("t", "early", ({"role": "user", "content": "?"},))
        ids_T, mask_T = np.arange(1 + length, dtype=np.int32), np.arange(1 + length) > 0
        sample = Sample(task, ids_T, mask_T, np.zeros(length, dtype=np.float32), index=index, weights=Weights(pg=1.0))
        sample.reward, sample.grader_failed = reward or 0.0, reward is None
        samples.append(sample)
    return samples


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo", "maxrl"])
def test_a_failed_sample_changes_nothing_for_the_rest_of_its_group(kind: str) -> None:
    whole, without = group(1.0, None, 0.25, 0.5, None), group(1.0, 0.25, 0.5)
    annotate_advantages(whole, kind)  # type: ignore[arg-type]
    annotate_advantages(without, kind)  # type: ignore[arg-type]
    graded = [sample for sample in whole if sample.is_graded]
    for one, other in zip(graded, without, strict=True):
        np.testing.assert_array_equal(one.advantages_R, other.advantages_R)
        assert one.weights == Weights(pg=1.0)
    for sample in (whole[1], whole[4]):
        assert sample.advantages_R is not None and sample.advantages_R.tolist() == [0.0, 0.0]
        assert sample.weights == Weights()


def test_turn_advantages_leave_a_failed_episode_out() -> None:
    whole, without = group(1.0, None, 0.0), group(1.0, 0.0)
    for samples in (whole, without):
        for sample in samples:
            sample.turn_rewards = (0.0,) if sample.grader_failed else (sample.reward or 0.0,)
        annotate_advantages(samples, "grpo", turn_weight=0.5)
    np.testing.assert_array_equal(whole[0].advantages_R, without[0].advantages_R)
    np.testing.assert_array_equal(whole[2].advantages_R, without[1].advantages_R)


def test_distillation_does_not_depend_on_the_grader_and_an_error_is_in_no_term() -> None:
    samples = group(1.0, None, 0.0)
    samples[2].finish = "error"
    for sample in samples:
        sample.weights = Weights(pg=0.3, distill=1.0)
    annotate_advantages(samples, "grpo")
    drop_errors(samples)
    assert [sample.weights for sample in samples] == [
        Weights(pg=0.3, distill=1.0),
        Weights(pg=0.0, distill=1.0),
        Weights(),
    ]
    assert graded_rewards(samples) == [1.0]


@pytest.mark.parametrize(
    ("rewards", "useful"),
    [
        ((0.0, 1.0), True),
        ((0.0, 0.0), False),
        ((1.0, None), False),  # 0.0 stands there, and is no reward
        ((1.0, None, 0.5), True),
        ((1.0, None, 1.0), False),
        ((None, None), False),
        ((0.1 + 0.2, 0.3), False),
    ],
)
def test_a_group_is_useful_by_its_graded_rewards_alone(
    tmp_path: object, rewards: tuple[float, ...], useful: bool
) -> None:
    assert has_contrast(group(*rewards)) == useful
    config = run_of("rlvr", tmp_path)
    annotated = group(*rewards)
    annotate_advantages(annotated, "grpo")
    assert _contrast(config, annotated) == float(useful)  # type: ignore[arg-type]

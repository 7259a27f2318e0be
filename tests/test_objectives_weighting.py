"""A token's place in its sample and its batch: worked examples, and that nothing but the sample decides."""

import math

import numpy as np
import pytest
import torch

from onepolicy.config import DistillConfig
from onepolicy.objectives import distill, weighting
from onepolicy.objectives.distill import Spread
from onepolicy.types import Sample, TokenScores, Weights
from tests.tiny_models import multi_turn, sample, task


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def taught(teacher_R, student_R, **changes) -> Sample:
    """A sample of one prompt token, with these log-probs, in float64."""
    length = len(teacher_R)
    mask_T = np.arange(length + 1) > 0
    one = Sample(
        task(), np.arange(length + 1, dtype=np.int32), mask_T, np.array(student_R, dtype=np.float64), **changes
    )
    one.teacher, one.weights = TokenScores("t", np.array(teacher_R, dtype=np.float64)), Weights(distill=1.0)
    return one


def test_early_tokens_weigh_more_by_the_drift_that_is_still_to_come():
    # |A| = 1, 2, 0, 5; what came before, of 8: 0, 1, 3, 3
    close(weighting.position_weights(np.array([1.0, -2.0, 0.0, 5.0]), 0.5), [1.5, 1.4375, 1.3125, 1.3125])
    close(weighting.position_weights(np.array([3.0]), 0.25), [1.25])
    close(weighting.position_weights(np.zeros(2), 0.5), [1.5, 1.5])
    assert weighting.position_weights(np.zeros(0), 0.5).shape == (0,)


def test_a_turn_that_drifted_further_than_the_first_weighs_less():
    # d = 1, 4, .5, 0; d_1/d_k = 1, .25, 2, inf
    log_ratio_R = np.array([1.0, -1.0, 4.0, -0.5, 0.5, 0.0])
    turns_R = np.array([0, 0, 1, 2, 2, 3])
    close(weighting.turn_weights(log_ratio_R, turns_R, 1.5), [1, 1, 0.25, 1.5, 1.5, 1.5])
    close(weighting.turn_weights(np.array([0.0, 0.0, 2.0]), np.array([0, 1, 2]), 1.5), [1, 1, 0])


def test_tokens_without_a_teacher_have_no_part_in_a_turns_drift():
    log_ratio_R = np.array([np.nan, -np.inf, 2.0, np.nan, 4.0])
    close(weighting.turn_weights(log_ratio_R, np.array([0, 0, 1, 1, 2]), 1.5)[2:], [1, 1, 0.5])
    close(weighting.turn_weights(np.full(2, np.nan), np.array([0, 1]), 1.5), [1, 1])
    assert weighting.turn_weights(np.zeros(0), np.zeros(0, dtype=np.int64), 1.5).shape == (0,)


def test_turns_are_the_runs_of_tokens_that_the_policy_wrote():
    assert weighting.turns(multi_turn().mask_T).tolist() == [0, 1, 1]
    assert weighting.turns(sample(3, 4).mask_T).tolist() == [0, 0, 0, 0]
    assert weighting.turns(sample(3, 0).mask_T).tolist() == []


def test_the_weights_of_a_sample_are_those_of_the_bounded_signal_against_the_policy_that_wrote():
    config = DistillConfig(weighting={"position": 0.5})
    one = taught([-1.0, -9.0, np.nan, -1.0], [-2.0, -1.0, -1.0, -3.0])  # A = 1, -5 (clipped), none, 2
    close(weighting.token_weights(config, one), 1 + 0.5 * (1 - np.array([0, 1, 6, 6]) / 8))
    one.old_logprobs_R = np.array([-1.0, -6.0, -1.0, -2.0])  # A = 0, -3, none, 1
    close(weighting.token_weights(config, one), 1 + 0.5 * (1 - np.array([0, 0, 3, 3]) / 4))
    assert weighting.token_weights(DistillConfig(), one) == 1.0
    both = DistillConfig(weighting={"position": 0.5, "turn_cap": 1.5})  # one turn: its weight is 1
    close(weighting.token_weights(both, one), weighting.token_weights(config, one))


def test_the_spread_is_that_of_the_bounded_signals_of_all_scored_tokens_of_taught_samples():
    config = DistillConfig(transform="normalise")
    samples = [taught([-1.0, -9.0, np.nan], [-2.0, -1.0, -1.0]), taught([-1.0], [-3.0]), taught([-1.0], [-9.0])]
    samples[2].weights = Weights(pg=1.0)
    spread = weighting.spread(config, [*samples, sample(3, 2)])
    close([spread.mean, spread.std], [-2 / 3, math.sqrt((1 + 25 + 4) / 3 - 4 / 9)])  # of 1, -5, 2
    assert weighting.spread(config, []) == Spread(0.0, 1.0)
    assert weighting.spread(DistillConfig(), samples) is None


def test_the_normalised_signal_is_centred_and_scaled_and_needs_its_batch():
    config = DistillConfig(transform="normalise", max_signal=2.0)
    teacher, student = torch.tensor([-1.0, -9.0, math.nan, -1.0]).double(), torch.tensor([-2.0, -1, -1, -1]).double()
    signal_N = distill.signal(config, teacher, student.requires_grad_(), Spread(-0.5, 0.5))
    close(signal_N, [1.5 / 0.500001, -1.5 / 0.500001, 0, 0.5 / 0.500001])
    assert not signal_N.requires_grad
    with pytest.raises(ValueError, match=r"give its spread"):
        distill.signal(config, teacher, student)
    everywhere = distill.signal(config, torch.full((3,), -1.0), torch.full((3,), -2.0), Spread(1.0, 0.0))
    assert everywhere.tolist() == [0, 0, 0]  # a batch that is all alike has no signal


def test_a_token_is_trusted_with_probability_t_over_p_and_always_where_the_teacher_likes_it_more():
    ratio = np.array([2.0, 1.0, 0.5, 0.1])
    teacher_R, student_R = np.log(np.repeat(ratio, 4000) * 0.3), np.full(16000, math.log(0.3))
    shares = weighting.trusted(taught(teacher_R + 1e-12, student_R)).reshape(4, -1).mean(1)
    np.testing.assert_allclose(shares, [1, 1, 0.5, 0.1], atol=0.025)
    assert shares[:2].tolist() == [1, 1]
    assert not weighting.trusted(taught([np.nan, -np.inf], [-1.0, -1.0])).any()


def test_what_is_trusted_depends_on_the_sample_alone():
    scores = [-2.0] * 50, [-1.5] * 50
    first = weighting.trusted(taught(*scores))
    assert 0 < first.sum() < 50
    assert weighting.trusted(taught(*scores)).tolist() == first.tolist()
    for other in ({"group": 1}, {"index": 1}, {"version": 1}):
        assert weighting.trusted(taught(*scores, **other)).tolist() != first.tolist()

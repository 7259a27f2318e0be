"""The denominators: computed once over the global batch, so that the split cannot matter. And the domain weights."""

import math

import numpy as np
import pytest
import torch

from onepolicy.config import PolicyConfig
from onepolicy.objectives import balance, policy
from onepolicy.objectives.reduce import coefficients, segment_mean, weighted_sum

LENGTHS = [4, 1, 0, 7, 3]
WEIGHTS = [1.0, 0.5, 2.0, 0.0, 1.5]  # the third sample is empty, the fourth does not carry the component


def ones(lengths):
    return [np.ones(n, dtype=bool) for n in lengths]


@pytest.mark.parametrize(
    ("reduction", "denominators"),
    [
        ("sequence", [4 * 3, 1 * 3, 3 * 3]),
        ("token", [8, 8, 8]),
        ("constant", [10 * 3] * 3),  # L_max 10
        ("sequence_sum", [3, 3, 3]),
    ],
)
def test_samples_count_only_with_a_weight_and_a_valid_token(reduction, denominators):
    per_sample = coefficients(ones(LENGTHS), WEIGHTS, reduction, length=10)
    assert [len(c) for c in per_sample] == LENGTHS
    for i, denominator in zip((0, 1, 4), denominators, strict=True):
        assert per_sample[i].tolist() == [WEIGHTS[i] / denominator] * LENGTHS[i]
    assert per_sample[3].tolist() == [0.0] * 7
    assert all(c.dtype == np.float64 for c in per_sample)


def test_a_dropped_token_leaves_the_denominator():
    valid = [np.array([True, False, True]), np.array([True]), np.array([False, False])]
    sequence = coefficients(valid, [1.0, 1.0, 1.0], "sequence")
    assert [c.tolist() for c in sequence] == [[0.25, 0, 0.25], [0.5], [0, 0]]
    token = coefficients(valid, [1.0, 1.0, 1.0], "token")
    assert [c.tolist() for c in token] == [[1 / 3, 0, 1 / 3], [1 / 3], [0, 0]]


@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_nothing_that_counts_means_all_zero(reduction):
    assert coefficients([], [], reduction) == []
    per_sample = coefficients(ones([2, 0]), [0.0, 1.0], reduction)
    assert [c.tolist() for c in per_sample] == [[0, 0], []]


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="one weight per sample"):
        coefficients(ones([1, 2]), [1.0], "token")
    with pytest.raises(ValueError, match="finite"):
        coefficients(ones([1]), [math.nan], "token")
    with pytest.raises(ValueError, match="unknown reduction 'mean'"):
        coefficients(ones([1]), [1.0], "mean")
    with pytest.raises(ValueError, match=r"give loss\.length"):
        coefficients(ones([1]), [1.0], "constant")
    with pytest.raises(ValueError, match="coefficients for"):
        weighted_sum(torch.ones(2), torch.ones(2, 1))


@pytest.mark.parametrize("reduction", ["sequence", "token"])
@pytest.mark.parametrize("kind", ["ppo", "cispo", "reinforce", "gspo"])
def test_the_split_into_micro_batches_changes_neither_loss_nor_gradient(reduction, kind):
    generator = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)
    parameter, features, old_N, advantages_N = torch.randn(4, total, generator=generator, dtype=torch.float64)
    segments_N = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    coefficients_N = torch.from_numpy(np.concatenate(coefficients(ones(LENGTHS), WEIGHTS, reduction)))
    results = []
    for split in ([[0, 1, 2, 3, 4]], [[0], [1], [2], [3], [4]], [[4, 2], [3, 0, 1]]):
        weight = parameter.clone().requires_grad_()
        loss = torch.zeros((), dtype=torch.float64)
        for micro_batch in split:
            n = torch.isin(segments_N, torch.tensor(micro_batch))
            logprobs_N = (0.2 * weight * features)[n]
            args = logprobs_N, 0.1 * old_N[n], advantages_N[n], segments_N[n]
            loss_N, _ = policy.policy_loss(PolicyConfig(kind=kind), *args)
            part = weighted_sum(coefficients_N[n], loss_N)
            part.backward()
            loss = loss + part.detach()
        results.append((loss, weight.grad))
    for loss, gradient in results[1:]:
        torch.testing.assert_close(loss, results[0][0], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-12, atol=1e-14)
    assert results[0][1].abs().max() > 0


def test_a_token_with_coefficient_zero_cannot_poison_the_sum():
    losses_N = torch.tensor([1.0, math.nan, math.inf], requires_grad=True)
    loss = weighted_sum(torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64), losses_N)
    loss.backward()
    assert loss == 0.5 and losses_N.grad.tolist() == [0.5, 0, 0]


def test_the_sum_of_no_tokens_is_zero_and_differentiable():
    losses_N = torch.zeros(0, requires_grad=True)
    loss = weighted_sum(torch.zeros(0), losses_N)
    loss.backward()
    assert loss == 0 and losses_N.grad.shape == (0,)


def test_segment_means_go_back_to_their_tokens():
    values_N, segments_N = torch.tensor([1.0, 2.0, 10.0, 3.0]), torch.tensor([9, 9, 2, 9])
    assert segment_mean(values_N, segments_N).tolist() == [2, 2, 10, 2]
    assert segment_mean(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_share_weights_follow_the_targets_and_leave_absent_domains_alone():
    weights = balance.share_weights({"a": 75, "b": 25, "c": 0}, {"a": 1, "b": 3, "c": 2})
    assert weights == pytest.approx({"a": 0.25 / 0.75, "b": 0.75 / 0.25, "c": 1.0})
    assert balance.share_weights({"a": 0, "b": 0}) == {"a": 1.0, "b": 1.0}
    with pytest.raises(ValueError, match="one target each"):
        balance.share_weights({"a": 1}, {"b": 1})


def test_gap_weights_are_clamped_and_keep_the_budget():
    tokens = {"a": 50, "b": 30, "c": 20, "d": 0}
    share = balance.share_weights(tokens)
    gaps = {"a": 0.0, "b": 1.0, "c": 2.0, "d": 5.0}
    for alpha, factors in ((1.0, (0.05, 1.0, 2.0)), (10.0, (0.05, 1.0, 20.0)), (-1.0, (20.0, 1.0, 0.5))):
        raw = [f * share[d] for f, d in zip(factors, "abc", strict=True)]
        total = sum(w * tokens[d] / 100 for w, d in zip(raw, "abc", strict=True))
        weights = balance.gap_weights(share, tokens, gaps, alpha)
        assert [weights[d] for d in "abc"] == pytest.approx([w / total for w in raw])
        assert weights["d"] == 1.0
    assert balance.gap_weights(share, tokens, dict.fromkeys("abcd", 0.0)) == share
    with pytest.raises(ValueError, match="not the same"):
        balance.gap_weights(share, tokens, {"a": 1.0})


def test_dn_weights_shrink_the_domain_with_the_larger_signal():
    signals = {"a": [1.0, -1.0], "b": [2.0, -2.0], "flat": [0.0, 0.0], "none": [], "huge": [40.0, -40.0]}
    overall = np.std([1, -1, 2, -2, 0, 0, 40, -40])
    weights = balance.dn_weights(signals)
    assert weights == {"a": 4.0, "b": 4.0, "flat": 1.0, "none": 1.0, "huge": pytest.approx(overall / 40)}
    assert balance.dn_weights({"a": [1.0, -1.0], "b": [3.0, -3.0]}) == pytest.approx(
        {"a": math.sqrt(5), "b": math.sqrt(5) / 3}
    )
    assert balance.dn_weights({"a": [1.0, 1.0], "b": []}) == {"a": 1.0, "b": 1.0}

"""Policy-gradient losses, importance weights and group advantages beyond the golden vectors: gradients and extremes."""

import math

import numpy as np
import pytest
import torch

from onepolicy.config import ImportanceConfig, PolicyConfig
from onepolicy.objectives import importance, policy
from onepolicy.objectives.advantages import group_advantages
from onepolicy.objectives.reduce import coefficients, weighted_sum

KINDS = ["ppo", "cispo", "reinforce", "gspo"]


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def gradient_of(loss_of, logprobs_N):
    leaf = logprobs_N.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(leaf).sum(), leaf)
    return gradient


@pytest.mark.parametrize("kind", KINDS)
def test_on_policy_every_loss_has_the_gradient_of_reinforce(kind):
    logprobs_N, advantages_N, segments_N = t(-0.5, -1, -2, -0.1), t(1, -2, 0.5, 0), torch.tensor([0, 0, 1, 1])
    config = PolicyConfig(kind=kind)
    gradient = gradient_of(lambda x: policy.policy_loss(config, x, logprobs_N, advantages_N, segments_N)[0], logprobs_N)
    torch.testing.assert_close(gradient, -advantages_N)


@pytest.mark.parametrize("kind", ["ppo", "reinforce"])
def test_gradients_agree_with_finite_differences_away_from_the_kinks(kind):
    old_N, advantages_N, segments_N = t(-1, -1, -1, -1), t(1, -1, 2, -3), torch.tensor([0, 0, 1, 1])
    logprobs_N = old_N + t(0.1, -0.15, 0.9, 2.0)
    config = PolicyConfig(kind=kind)
    torch.autograd.gradcheck(
        lambda x: policy.policy_loss(config, x, old_N, advantages_N, segments_N)[0], logprobs_N.requires_grad_()
    )


def test_the_clipped_indicator_is_where_the_gradient_is_gone():
    ratio_N = t(0.5, 0.5, 1, 1.1, 1.5, 1.5, 5, 5)
    advantages_N = t(1, -1, 1, -1, 1, -1, -1, 0)
    logprobs_N, old_N, segments_N = ratio_N.log(), torch.zeros(8).double(), torch.arange(8)
    config = PolicyConfig(kind="ppo", clip_low=0.2, clip_high=0.28, dual_clip=3.0)
    _, clipped_N = policy.policy_loss(config, logprobs_N, old_N, advantages_N, segments_N)
    assert clipped_N.tolist() == [False, True, False, False, True, False, True, False]
    gradient = gradient_of(lambda x: policy.ppo_clip(x, old_N, advantages_N, 0.2, 0.28, 3.0), logprobs_N)
    assert ((gradient == 0) & (advantages_N != 0)).tolist() == clipped_N.tolist()


def test_cispo_clips_the_weight_and_keeps_every_gradient():
    ratio_N, advantages_N = t(0.5, 1, 5), t(1, -1, 2)
    config = PolicyConfig(kind="cispo", clip_low=0.2, clip_high=0.28)
    _, clipped_N = policy.policy_loss(config, ratio_N.log(), torch.zeros(3).double(), advantages_N, torch.arange(3))
    assert clipped_N.tolist() == [True, False, True]
    gradient = gradient_of(lambda x: policy.cispo(x, torch.zeros(3).double(), advantages_N, 0.2, 0.28), ratio_N.log())
    torch.testing.assert_close(gradient, -t(0.8, 1, 1.28) * advantages_N)


def test_reinforce_is_never_clipped():
    _, clipped_N = policy.policy_loss(PolicyConfig(kind="reinforce"), t(-9), t(-1), t(1), torch.tensor([0]))
    assert clipped_N.tolist() == [False]


def gspo_example():
    """Three samples of 3, 1 and 2 tokens; the second one's ratio is clipped."""
    old_N = t(-1, -2, -0.5, -1, -3, -0.2)
    logprobs_N = old_N + t(0.1, -0.2, 0.15, 0.9, -0.1, 0.05)
    segments_N = torch.tensor([4, 4, 4, 7, 5, 5])  # any numbers will do
    advantages_N = t(1, 1, 1, 2, -0.7, -0.7)
    return logprobs_N, old_N, advantages_N, segments_N


def test_gspo_has_the_value_and_gradient_of_the_sequence_level_objective():
    logprobs_N, old_N, advantages_N, segments_N = gspo_example()
    per_sample = coefficients([np.ones(n, bool) for n in (3, 1, 2)], [1.0] * 3, "sequence")
    coefficients_N = torch.from_numpy(np.concatenate(per_sample))

    def as_tokens(x):
        return weighted_sum(coefficients_N, policy.gspo(x, old_N, advantages_N, segments_N, 0.2, 0.28))

    def as_sequences(x):
        ratios = [(x - old_N)[segments_N == i].mean().exp() for i in (4, 7, 5)]
        pairs = zip(ratios, (1.0, 2.0, -0.7), strict=True)
        return -sum(torch.minimum(s * a, s.clamp(0.8, 1.28) * a) for s, a in pairs) / 3

    torch.testing.assert_close(as_tokens(logprobs_N), as_sequences(logprobs_N))
    torch.testing.assert_close(gradient_of(as_tokens, logprobs_N), gradient_of(as_sequences, logprobs_N))


def test_gspo_clips_whole_samples():
    config = PolicyConfig(kind="gspo", clip_low=0.2, clip_high=0.28)
    _, clipped_N = policy.policy_loss(config, *gspo_example())
    assert clipped_N.tolist() == [False, False, False, True, False, False]


@pytest.mark.parametrize("kind", KINDS)
def test_an_enormous_ratio_leaves_value_and_gradient_finite(kind):
    old_N, advantages_N = torch.tensor([-500.0, -500.0, -math.inf, -1.0]), torch.tensor([1.0, -1.0, -1.0, 1.0])
    logprobs_N = torch.full((4,), -0.1, requires_grad=True)
    loss_N, _ = policy.policy_loss(PolicyConfig(kind=kind), logprobs_N, old_N, advantages_N, torch.arange(4))
    loss_N.sum().backward()
    assert loss_N.isfinite().all() and logprobs_N.grad.isfinite().all()
    assert logprobs_N.grad[3] != 0 or kind in ("ppo", "gspo")


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_is_zero_tokens_and_differentiable(kind):
    empty = torch.zeros(0, requires_grad=True)
    loss_N, clipped_N = policy.policy_loss(
        PolicyConfig(kind=kind), empty, torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    )
    loss_N.sum().backward()
    assert loss_N.shape == clipped_N.shape == empty.grad.shape == (0,)


def test_importance_weights_are_detached_and_finite_for_any_log_ratio():
    log_ratio_N = torch.tensor([0.0, math.inf, -math.inf, math.nan, 200.0, -200.0], requires_grad=True)
    expected = {
        "gate": ([1, 0, 0, 0, 0, 0], [False, True, True, True, True, True]),
        "truncate": ([1, 2, 0, 0, 2, 0], [False, True, False, True, True, False]),
        "off": ([1, 1, 1, 1, 1, 1], [False] * 6),
    }
    apart_N = torch.arange(len(log_ratio_N))
    for mode, (weights, gated) in expected.items():
        weights_N, gated_N = importance.importance_weights(ImportanceConfig(mode=mode), log_ratio_N, apart_N)
        assert weights_N.tolist() == weights and gated_N.tolist() == gated
        assert not weights_N.requires_grad


def test_the_gate_is_idle_and_bitwise_the_identity_for_equal_engines():
    logprobs_N = torch.tensor([-0.3, -7.0, -0.01])
    one_N = torch.zeros(3, dtype=torch.int64)
    weights_N, gated_N = importance.importance_weights(ImportanceConfig(), logprobs_N - logprobs_N, one_N)
    assert weights_N.tolist() == [1, 1, 1] and not gated_N.any()


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo", "maxrl"])
def test_a_group_of_one_and_a_group_without_contrast_have_no_advantage(kind):
    for rewards_G in ([0.7], [0.1] * 3, [0.0] * 4, []):
        assert group_advantages(rewards_G, kind).tolist() == [0.0] * len(rewards_G)


def test_advantages_are_float64_and_sum_to_zero():
    rewards_G = np.array([0.1, 0.9, 0.4, 0.4, 1.0], dtype=np.float32)
    for kind in ("grpo", "dr_grpo", "rloo", "maxrl"):
        advantages_G = group_advantages(rewards_G, kind)
        assert advantages_G.dtype == np.float64 and abs(advantages_G.sum()) < 1e-12
    others = [np.delete(rewards_G.astype(np.float64), i).mean() for i in range(5)]
    np.testing.assert_allclose(group_advantages(rewards_G, "rloo"), rewards_G - np.array(others))


def test_nonsense_rewards_and_kinds_are_refused():
    with pytest.raises(ValueError, match="finite"):
        group_advantages([1.0, math.nan], "grpo")
    with pytest.raises(ValueError, match="maxrl divides by the mean"):
        group_advantages([1.0, -1.0], "maxrl")
    with pytest.raises(ValueError, match="use grpo"):
        group_advantages([1.0, 0.0], "gae")


LOG_RATIO = torch.tensor([0.1, -0.3, 0.4, 0.5, -1.0], dtype=torch.float64)
TWO_SAMPLES = torch.tensor([0, 0, 0, 1, 1])


@pytest.mark.parametrize(
    ("level", "logs"),
    [
        ("token", [0.1, -0.3, 0.4, 0.5, -1.0]),
        ("sequence", [0.2, 0.2, 0.2, -0.5, -0.5]),
        ("geometric", [0.2 / 3, 0.2 / 3, 0.2 / 3, -0.25, -0.25]),
    ],
)
def test_weights_are_of_the_token_or_of_its_whole_sample(level, logs):
    ratios = torch.tensor(logs, dtype=torch.float64).exp()
    config = ImportanceConfig(mode="gate", level=level, low=0.7, high=1.4)
    weights_N, gated_N = importance.importance_weights(config, LOG_RATIO, TWO_SAMPLES)
    inside = (ratios >= 0.7) & (ratios <= 1.4)
    torch.testing.assert_close(weights_N, torch.where(inside, ratios, 0.0))
    assert gated_N.tolist() == (~inside).tolist()
    config = ImportanceConfig(mode="truncate", level=level, low=0.7, high=1.4)
    weights_N, gated_N = importance.importance_weights(config, LOG_RATIO, TWO_SAMPLES)
    torch.testing.assert_close(weights_N, ratios.clamp(0.7, 1.4))
    assert gated_N.tolist() == (~inside).tolist()


def test_a_state_is_weighted_by_the_tokens_before_it():
    config = ImportanceConfig(states="past", low=0.0, high=9.0)
    found = importance.state_weights(config, LOG_RATIO, TWO_SAMPLES)
    assert found is not None
    weights_N, _ = found
    torch.testing.assert_close(weights_N, torch.tensor([0, 0.1, -0.2, 0, 0.5], dtype=torch.float64).exp())
    assert importance.state_weights(ImportanceConfig(), LOG_RATIO, TWO_SAMPLES) is None
    with pytest.raises(ValueError, match="states: past"):
        ImportanceConfig(mode="off", states="past")


def test_truncation_is_from_above_unless_a_lower_bound_is_given():
    assert ImportanceConfig(mode="truncate").low == 0.0
    assert ImportanceConfig(mode="truncate", low=0.9).low == 0.9
    assert ImportanceConfig(mode="gate").low == 0.5

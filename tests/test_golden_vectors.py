"""The golden vectors for pure math: inputs and outputs known independently of this code, on CPU in float64.

The ids (A1, B2, ...) are those of the project's list; where one is named after a peer, the same numbers stand in that
peer's own tests. Averages are token means.
"""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from onepolicy.config import DistillConfig, ImportanceConfig, LossConfig, PolicyConfig
from onepolicy.merging import average, slerp_tensor, task_arithmetic, ties
from onepolicy.objectives import balance, distill, divergences, importance, policy
from onepolicy.objectives.advantages import group_advantages, overlong_penalty, whiten
from onepolicy.objectives.reduce import coefficients, weighted_sum
from onepolicy.types import scatter


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def one_sample(tokens):
    """Segments of that many tokens, all of one sample."""
    return torch.zeros(tokens, dtype=torch.int64)


def close(actual, expected, atol=1e-12, rtol=0.0):
    assert_allclose(np.asarray(actual), np.asarray(expected), atol=atol, rtol=rtol)


# Policy gradient

ADV = t(1, -1, 2)
PREV = t(-1, -1, -1)
CUR = t(-1.69315, -1, -0.59453)  # ratios .5, 1, 1.5 to five digits
GEN = t(-0.5, -1.5, -0.8)


def test_a1_ppo_clip():
    loss_N = policy.ppo_clip(CUR, PREV, ADV, 0.2, 0.2)
    close(loss_N, [-0.5, 1.0, -2.4], atol=5e-6)
    close(loss_N.mean(), -0.6333, atol=5e-5)


def test_a2_ppo_clip_times_the_importance_weight():
    loss_N = importance.truncate(PREV - GEN, 100.0) * policy.ppo_clip(CUR, PREV, ADV, 0.2, 0.2)
    # The list has -.30325 and -1.96488, products of weights rounded to four digits; these are the exact ones.
    close(loss_N, [-0.5 * math.exp(-0.5), math.exp(0.5), -2.4 * math.exp(-0.2)], atol=5e-6)
    close(loss_N.mean(), -0.2065, atol=5e-5)


def test_a3_the_importance_weight_truncated_at_08():
    loss_N = importance.truncate(PREV - GEN, 0.8) * policy.ppo_clip(CUR, PREV, ADV, 0.2, 0.2)
    close(loss_N, [-0.3033, 0.8, -1.92], atol=5e-5)
    close(loss_N.mean(), -0.4744, atol=5e-5)


def test_a8_a_ratio_of_one_leaves_minus_the_advantage():
    loss_N = policy.ppo_clip(CUR, CUR, ADV, 0.2, 0.2)
    close(loss_N, [-1, 1, -2])
    close(loss_N.mean(), -0.6667, atol=5e-5)


def test_a9_cispo():
    loss_N = policy.cispo(CUR, PREV, ADV, 0.2, 0.2)
    close(loss_N, [1.35452, -1, 1.42687], atol=5e-6)
    close(loss_N.mean(), 0.59380, atol=5e-6)


def test_a10_reinforce():
    loss_N = policy.reinforce(t(-0.5, -1, -1.5), ADV)
    close(loss_N, [0.5, -1, 3])
    close(loss_N.mean(), 0.8333, atol=5e-5)


def test_a11_dual_clip_bounds_a_negative_advantage_at_a_large_ratio():
    loss_N = policy.ppo_clip(t(0.5, 1, 10).log(), t(0, 0, 0), t(1, -1, -4), 0.2, 0.2, dual_clip=3.0)
    close(loss_N, [-0.5, 1, 12])
    close(loss_N.mean(), 4.1667, atol=5e-5)


def test_a13_dual_clip_of_one_and_a_half():
    loss_N = policy.ppo_clip(t(2, 2, 0.5).log(), t(0, 0, 0), t(2, -2, 2), 0.2, 0.2, dual_clip=1.5)
    close(loss_N, [-2.4, 3, -1])


def test_p1_clip_higher():
    close(policy.ppo_clip(t(0.5, -0.5), t(0, 0), t(1, -1), 0.2, 0.28), [-1.28, 0.8])


# Importance weights


def test_b1_the_gate_zeroes_and_the_token_stays_in_the_denominator():
    prev, gen = t(-1, -1, -1), t(-0.5, -3.5, -0.8)
    gate = ImportanceConfig(mode="gate", low=0.5, high=5)
    weights_N, gated_N = importance.importance_weights(gate, prev - gen, one_sample(3))
    close(weights_N, [0.60653, 0, 0.81873], atol=5e-6)
    close((prev - gen).exp()[1], 12.182, atol=5e-4)
    assert gated_N.double().mean() == pytest.approx(1 / 3)
    loss_N = weights_N * policy.ppo_clip(prev, prev, t(1, -1, 2), 0.2, 0.2)
    (coefficients_R,) = coefficients([np.ones(3, bool)], [1.0], "sequence")
    close(weighted_sum(torch.from_numpy(coefficients_R), loss_N), -0.7479974, atol=5e-8)


def test_b2_the_gate_closes_on_both_sides():
    config = ImportanceConfig(mode="gate", low=0.5, high=5)
    weights_N, gated_N = importance.importance_weights(config, t(0.4, 0.8, 6).log(), one_sample(3))
    close(weights_N, [0, 0.8, 0])
    assert gated_N.double().mean() == pytest.approx(2 / 3)


def test_gspo_is_weighted_by_the_ratio_of_the_whole_sequence():
    """One sequence: ratio exp(mean(cur - prev)), weight exp(Σ(prev - gen)) = exp(-0.2); truncated at 0.8."""
    segments = one_sample(3)
    loss_N = policy.gspo(CUR, PREV, ADV, segments, 0.2, 0.2)
    config = LossConfig.model_validate({"policy": {"kind": "gspo"}, "importance": {"mode": "truncate", "high": 10}})
    assert config.importance.level == "sequence"
    weights_N, gated_N = importance.importance_weights(config.importance, PREV - GEN, segments)
    close(weights_N, [math.exp(-0.2)] * 3)
    assert not gated_N.any()
    close((weights_N * loss_N).mean(), -0.4959, atol=5e-5)
    close((importance.truncate((PREV - GEN).sum().expand(3), 0.8) * loss_N).mean(), -0.4846, atol=5e-5)


@pytest.mark.parametrize("mode", ["gate", "truncate", "off"])
def test_b4_an_infinite_rollout_logprob_leaves_the_loss_finite(mode):
    cur, gen = t(-1, -1).requires_grad_(), t(-math.inf, -1)
    weights_N, gated_N = importance.importance_weights(ImportanceConfig(mode=mode), cur - gen, one_sample(2))
    loss = (weights_N * policy.reinforce(cur, t(1, 1))).sum()
    loss.backward()
    assert loss.isfinite() and cur.grad.isfinite().all()
    assert gated_N.tolist() == [mode != "off", False]


# KL estimators


def test_c1_the_three_estimators():
    p, teacher = t(-1, -1, -1), t(0, -15, -30)
    close(divergences.k1(p, teacher), [-1, 14, 29])
    close(divergences.k2(p, teacher), [0.5, 98, 420.5])
    close(divergences.k3(p, teacher), [0.7183, 13, 28], atol=5e-5)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
@pytest.mark.parametrize("silent", [math.nan, -math.inf, math.inf])
def test_c7_a_token_without_a_teacher_is_exactly_zero_in_value_and_gradient(estimator, silent):
    student = t(-1, -2).requires_grad_()
    loss_N = distill.sampled_loss(DistillConfig(estimator=estimator), student, t(silent, -1))
    (coefficients_R,) = coefficients([np.array([False, True])], [1.0], "sequence")
    weighted_sum(torch.from_numpy(coefficients_R), loss_N).backward()
    assert loss_N[0] == 0 and student.grad[0] == 0
    assert loss_N[1] > 0 and student.grad[1] != 0


# Advantages


def test_d1_the_distillation_signal():
    close(distill.sampled_signal(t(0, -1), t(-1, -1)), [1, 0])
    signal_R = distill.sampled_signal(t(0, -1), t(-1, -1)).numpy()
    close(scatter(signal_R, np.array([True, True, False, False])), [1, 0, 0, 0])


def test_d3_group_mean_and_bessel_std():
    close(group_advantages([2, 2], "grpo"), [0, 0])
    close(group_advantages([1, 3], "grpo"), [-0.7071, 0.7071], atol=5e-5)


def test_d4_group_mean_without_std():
    close(group_advantages([6, 3], "dr_grpo"), [1.5, -1.5])
    close(group_advantages([9, 12], "dr_grpo"), [-1.5, 1.5])


def test_d5_leave_one_out():
    close(group_advantages([6, 3], "rloo"), [3, -3])
    close(group_advantages([9, 12], "rloo"), [-3, 3])
    close(group_advantages([1], "rloo"), [0])


def test_d6_mean_normalised():
    close(group_advantages([1, 0, 0, 0], "maxrl"), [3, -1, -1, -1])
    close(group_advantages([0, 0, 0, 0], "maxrl"), [0, 0, 0, 0])
    close(group_advantages([1, 1, 1, 1], "maxrl"), [0, 0, 0, 0])


def test_d12_whitening_with_no_one_and_two_valid_values():
    assert whiten([1, 3], [False, False]).tolist() == [0, 0]
    assert whiten([1, 3], [False, True]).tolist() == [0, 3]
    close(whiten([1, 3], [True, True]), [-0.70711, 0.70711], atol=5e-6)


# Distillation


def test_e1_divergences_of_two_mirrored_distributions():
    s, teacher = t(0.1, 0.9).log(), t(0.9, 0.1).log()
    close(divergences.reverse_kl(s, teacher), 1.757780, atol=5e-7)
    close(divergences.forward_kl(s, teacher), 1.757780, atol=5e-7)
    close(divergences.jsd(s, teacher, 0.5), 0.368064, atol=5e-7)


def test_e2_divergences_that_catch_a_swapped_direction():
    s, teacher = t(0.6, 0.3, 0.1).log(), t(0.5, 0.4, 0.1).log()
    close(divergences.reverse_kl(s, teacher), 0.0230883, atol=5e-8)
    close(divergences.forward_kl(s, teacher), 0.0239121, atol=5e-8)
    close(divergences.jsd(s, teacher, 0.5), 0.00585954, atol=5e-9)


def test_e5_gather_then_normalise_equals_normalise_then_gather_then_renormalise():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 9, generator=generator, dtype=torch.float64)
    ids_NK = teacher.topk(3).indices
    values, gradients = [], []
    for normalise in (lambda x: x, lambda x: x.log_softmax(-1)):
        logits = student.clone().requires_grad_()
        value_N = divergences.topk_reverse_kl_renormalised(
            normalise(logits).gather(-1, ids_NK), normalise(teacher).gather(-1, ids_NK)
        )
        value_N.sum().backward()
        values.append(value_N.detach())
        gradients.append(logits.grad)
    close(values[0], values[1])
    close(gradients[0], gradients[1])


def test_e7_cross_entropy_over_the_valid_tokens():
    logprobs_N = t(-0.1, -0.5, -0.2).requires_grad_()
    (coefficients_R,) = coefficients([np.array([True, False, True])], [1.0], "token")
    loss = weighted_sum(torch.from_numpy(coefficients_R), policy.reinforce(logprobs_N, t(1, 1, 1)))
    close(loss.detach(), 0.15)


def test_e7_an_all_empty_batch_has_loss_and_gradient_zero_and_is_still_differentiable():
    logprobs_N = t(-0.1, -0.5).requires_grad_()
    (coefficients_R,) = coefficients([np.zeros(2, bool)], [1.0], "sequence")
    loss = weighted_sum(torch.from_numpy(coefficients_R), policy.reinforce(logprobs_N, t(1, 1)))
    loss.backward()
    assert loss == 0 and logprobs_N.grad.tolist() == [0, 0]


def test_e9_a_teacher_equal_to_the_student_has_no_signal():
    logprobs_N = t(-0.1, -3, -7)
    for transform in ("none", "clip", "log_compress", "power"):
        assert distill.signal(DistillConfig(transform=transform), logprobs_N, logprobs_N).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("max_signal", "expected"), [(5.0, -0.189469), (1.0, -0.055431)])
def test_m1_the_industrial_mopd_loss(max_signal, expected):
    teacher, student, roll = t(-1, -0.5, -3, -0.2), t(-0.7, -0.9, -0.3, -0.2), t(-0.8, -0.8, -0.35, -1.2)
    close(distill.sampled_signal(teacher, student), [-0.3, 0.4, -2.7, 0])
    close((student - roll).exp(), [1.105171, 0.904837, 1.051271, 2.718282], atol=5e-7)
    signal_N = distill.signal(DistillConfig(max_signal=max_signal), teacher, student)
    weights_N, gated_N = importance.importance_weights(ImportanceConfig(low=0.5, high=2), student - roll, one_sample(4))
    assert gated_N.tolist() == [False, False, False, True]
    loss_N, _ = policy.policy_loss(PolicyConfig(kind="reinforce"), student, student, signal_N, torch.zeros(4).long())
    (coefficients_R,) = coefficients([np.ones(4, bool)], [1.0], "sequence")
    close(weighted_sum(torch.from_numpy(coefficients_R), weights_N * loss_N), expected, atol=5e-7)


@pytest.mark.parametrize(("reduction", "expected"), [("sequence", 2.0), ("token", 1.4)])
def test_r1_sequence_mean_and_token_mean(reduction, expected):
    per_sample = coefficients([np.ones(4, bool), np.ones(1, bool)], [1.0, 1.0], reduction)
    close(np.concatenate(per_sample) @ np.array([1, 1, 1, 1, 3]), expected)


# Balancing

TOKENS = {"a": 8000, "b": 1500, "c": 500}
SHARE = {"a": 0.416667, "b": 2.222222, "c": 6.666667}
GAPS = {"a": 0.02, "b": 0.06, "c": 0.10}


def close_by_name(actual, expected, atol=5e-7):
    assert actual.keys() == expected.keys()
    close(list(actual.values()), list(expected.values()), atol=atol)


def test_w1_share_weights_give_every_domain_its_target():
    weights = balance.share_weights(TOKENS)
    close_by_name(weights, SHARE)
    shares = balance.shares(TOKENS)
    close([weights[d] * shares[d] for d in TOKENS], [1 / 3] * 3)


def test_w2_gap_weights_favour_the_domain_with_further_to_go():
    weights = balance.gap_weights(balance.share_weights(TOKENS), TOKENS, GAPS)
    close_by_name(weights, {"a": 0.138889, "b": 2.222222, "c": 11.111111})
    close(sum(weights[d] * share for d, share in balance.shares(TOKENS).items()), 1)


def test_w3_prompt_share_is_not_token_share():
    assert balance.shares({"long": 1, "short": 1}) == {"long": 0.5, "short": 0.5}
    close_by_name(balance.shares({"long": 80, "short": 4}), {"long": 80 / 84, "short": 4 / 84}, atol=0)


def test_w4_alpha_zero_is_share_alone_and_unit_weights_are_bitwise_the_identity():
    share = balance.share_weights(TOKENS)
    assert balance.gap_weights(share, TOKENS, GAPS, alpha=0) == share
    valid = [np.ones(n, bool) for n in (3, 7, 11)]
    unit = balance.share_weights({"only": 21})
    assert unit == {"only": 1.0}
    plain = coefficients(valid, [1.0] * 3, "token")
    weighted = coefficients(valid, [1.0 * unit["only"]] * 3, "token")
    assert all(np.array_equal(a, b) for a, b in zip(plain, weighted, strict=True))


# Routing and alignment


def test_f9_a_signal_goes_back_to_the_places_the_policy_wrote():
    mask_T = np.array([False, False, True, True, False, True])
    assert scatter(np.array([0.5, -0.5, 1]), mask_T).tolist() == [0, 0, 0.5, -0.5, 0, 1]
    with pytest.raises(ValueError, match="2 values for a mask with 3"):
        scatter(np.array([0.5, -0.5]), mask_T)


# Merging


def test_g1_average_and_task_arithmetic():
    base = {"w": t(0.5, -2), "v": t(7)}
    teachers = [{name: x + step for name, x in base.items()} for step in (1, 3)]
    cases = [
        (average(teachers), 2),
        (task_arithmetic(base, teachers, [0.5, 0.5]), 2),
        (task_arithmetic(base, teachers, [1, 0.25]), 1.75),
    ]
    for merged, step in cases:
        assert merged.keys() == base.keys()
        for name, x in base.items():
            close(merged[name], x + step)


def test_g2_slerp():
    first, second = t(1, 0), t(0, 2)
    close(slerp_tensor(first, second, 0.5), [0.707107, 1.414214], atol=5e-7)
    assert slerp_tensor(first, second, 0).tolist() == [1, 0]
    close(slerp_tensor(first, second, 1), [0, 2])
    close(slerp_tensor(t(1, 1), t(3, 3), 0.25), [1.5, 1.5])


def test_g3_ties_takes_the_mean_of_the_agreeing_signs():
    base = {"w": t(0, 0, 0, 0, 0)}
    teachers = [{"w": t(1, -2, 3, -0.1, 0.2)}, {"w": t(-1.5, -1, 1, 0.3, -0.05)}]
    close(ties(base, teachers, [0.5, 0.5], density=1)["w"], [-1.5, -1.5, 2, 0.3, 0.2])


def test_the_soft_overlong_punishment_of_dapo():
    """L_max 100, cache 20."""
    assert [overlong_penalty(length, 100, 20) for length in (1, 80, 90, 100, 101)] == [0.0, 0.0, -0.5, -1.0, -1.0]

"""What each estimator's value and gradient are: worked examples, exact expectations over the vocabulary, extremes."""

import math

import pytest
import torch

from onepolicy.config import DistillConfig
from onepolicy.objectives import distill, divergences, policy

# The worked example: student p, teacher t, the teacher's top-2 = tokens 0 and 3.
P = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
T = torch.tensor([0.4, 0.1, 0.2, 0.3], dtype=torch.float64)
TOP = torch.tensor([0, 3])

ROWS = {
    "reverse_kl": (0.308415, [-0.042636, 0.237059, -0.089415, -0.105009]),
    "forward_kl": (0.395946, [0.1, 0.2, -0.05, -0.25]),
    "uncorrected": (0.021984, [0.325580, -0.171595, -0.085798, -0.068187]),
    "corrected": (0.171984, [0.100580, -0.006595, -0.003298, -0.090687]),
    "renormalised": (0.281133, [0.166521, 0, 0, -0.166521]),
    "tail": (0.204443, [0.009350, 0.060307, 0.030153, -0.099810]),
}


def value_and_gradient(loss, p=P):
    """The loss of the student's log-probs [V], and its gradient with respect to the student's logits."""
    logits = p.log().requires_grad_()
    value = loss(logits.log_softmax(-1))
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


def same(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), atol=atol, rtol=0)


def expected_gradient(loss_V, p=P):
    """E_{v~p} of the gradient of a sampled-token loss: exact, a sum over the vocabulary; p is held fixed."""
    return value_and_gradient(lambda logprobs: (p * loss_V(logprobs)).sum(), p)[1]


def reverse_gradient(p=P, teacher=T):
    return value_and_gradient(lambda logprobs: divergences.reverse_kl(logprobs, teacher.log()), p)[1]


def forward_gradient(p=P, teacher=T):
    return value_and_gradient(lambda logprobs: divergences.forward_kl(logprobs, teacher.log()), p)[1]


def topk(kind, p=P, teacher=T, ids=TOP, divergence="reverse_kl"):
    config = DistillConfig(estimator="topk", k=len(ids), topk=kind, divergence=divergence)
    return value_and_gradient(lambda logprobs: distill.topk_divergence(config, logprobs[ids], teacher.log()[ids]), p)


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl"])
def test_the_worked_example_over_the_full_vocabulary(name):
    config = DistillConfig(estimator="full", divergence=name)
    value, gradient = value_and_gradient(lambda logprobs: distill.divergence(config, logprobs, T.log()))
    same(value, ROWS[name][0], atol=5e-7)
    same(gradient, ROWS[name][1], atol=1e-6)


@pytest.mark.parametrize("name", ["uncorrected", "corrected", "renormalised", "tail"])
def test_the_worked_example_over_the_teachers_top_two(name):
    value, gradient = topk(name)
    same(value, ROWS[name][0], atol=5e-7)
    same(gradient, ROWS[name][1], atol=1e-6)


def test_the_worked_example_of_the_top_two_forward_kl():
    value, _ = topk("corrected", divergence="forward_kl")
    same(value, 0.4 * math.log(0.4 / 0.5) + 0.3 * math.log(0.3 / 0.05) - 0.7 + 0.55)


def test_k1_as_a_loss_has_zero_expected_gradient_and_is_refused():
    same(expected_gradient(lambda logprobs: divergences.k1(logprobs, T.log())), torch.zeros(4))
    with pytest.raises(ValueError, match="zero expected gradient"):
        distill.sampled_loss(DistillConfig.model_construct(estimator="k1"), P.log(), T.log())
    with pytest.raises(ValueError, match="no loss on the sampled token"):
        distill.sampled_loss(DistillConfig(estimator="sampled"), P.log(), T.log())


def test_k2_has_the_gradient_of_the_reverse_kl():
    config = DistillConfig(estimator="k2")
    same(expected_gradient(lambda logprobs: distill.sampled_loss(config, logprobs, T.log())), reverse_gradient())


def test_k3_has_the_gradient_of_the_forward_kl():
    config = DistillConfig(estimator="k3")
    same(expected_gradient(lambda logprobs: distill.sampled_loss(config, logprobs, T.log())), forward_gradient())


def test_k1_and_k3_are_unbiased_values_of_the_reverse_kl_and_k2_is_not():
    kl = divergences.reverse_kl(P.log(), T.log())
    same((P * divergences.k1(P.log(), T.log())).sum(), kl)
    same((P * divergences.k3(P.log(), T.log())).sum(), kl)
    assert abs((P * divergences.k2(P.log(), T.log())).sum() - kl) > 0.02


def test_the_sampled_policy_gradient_is_unbiased_for_the_reverse_kl():
    config = DistillConfig(transform="none")

    def loss_V(logprobs):
        return policy.reinforce(logprobs, distill.signal(config, T.log(), logprobs))

    same(expected_gradient(loss_V), reverse_gradient())


@pytest.mark.parametrize("form", ["reverse", "forward", "jsd"])
def test_each_form_of_the_signal_is_unbiased_for_the_gradient_of_its_divergence(form):
    config = DistillConfig(transform="none", signal=form)

    def loss_V(logprobs):
        return policy.reinforce(logprobs, distill.signal(config, T.log(), logprobs))

    def jsd(logprobs):
        return divergences.jsd(logprobs, T.log(), 0.5)

    expected = {"reverse": reverse_gradient, "forward": forward_gradient, "jsd": lambda: value_and_gradient(jsd)[1]}
    same(expected_gradient(loss_V), expected[form]())


def test_a_divergence_collapsed_to_one_advantage_for_the_sampled_token_carries_no_gradient():
    kl = divergences.topk_reverse_kl(P.log()[TOP], T.log()[TOP])
    same(expected_gradient(lambda logprobs: policy.reinforce(logprobs, -kl)), torch.zeros(4))


def test_at_the_optimum_uncorrected_top_k_still_pushes_and_the_others_rest():
    p, ids = torch.tensor([0.5, 0.4, 0.1], dtype=torch.float64), torch.tensor([0, 1])
    same(topk("uncorrected", p, p, ids)[1], [0.05, 0.04, -0.09])
    for kind in ("corrected", "renormalised", "tail"):
        value, gradient = topk(kind, p, p, ids)
        same(value, 0.0)
        same(gradient, torch.zeros(3))
    value, gradient = topk("corrected", p, p, ids, divergence="forward_kl")
    same(value, 0.0)
    same(gradient, torch.zeros(3))


def test_renormalised_top_one_is_identically_zero():
    student, teacher = P.log()[:1].requires_grad_(), T.log()[:1]
    value = divergences.topk_reverse_kl_renormalised(student, teacher)
    value.backward()
    assert value == 0 and student.grad.item() == 0


def test_top_k_over_the_whole_vocabulary_is_the_full_divergence():
    everything = torch.arange(4)
    for kind in ("corrected", "uncorrected", "renormalised", "tail"):
        value, gradient = topk(kind, ids=everything)
        same(value, ROWS["reverse_kl"][0], atol=5e-7)
        same(gradient, reverse_gradient(), atol=1e-9)
    value, gradient = topk("corrected", ids=everything, divergence="forward_kl")
    same(value, divergences.forward_kl(P.log(), T.log()))
    same(gradient, forward_gradient())


def test_with_a_reward_the_optimum_is_the_teacher_tilted_by_the_exponential_of_the_advantage():
    advantages, weight = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64), 0.7
    tilted = T * (advantages / weight).exp()
    _, gradient = value_and_gradient(
        lambda logprobs: -(logprobs.exp() * advantages).sum() + weight * divergences.reverse_kl(logprobs, T.log()),
        tilted / tilted.sum(),
    )
    same(gradient, torch.zeros(4))


def test_jsd_has_the_teacher_at_beta_and_tends_to_forward_and_reverse_kl():
    student, teacher = P.log(), T.log()
    mixture = (0.25 * T + 0.75 * P).log()
    by_hand = 0.25 * (T * (teacher - mixture)).sum() + 0.75 * (P * (student - mixture)).sum()
    same(divergences.jsd(student, teacher, 0.25), by_hand)
    same(divergences.jsd(student, teacher, 1e-6) / 1e-6, divergences.forward_kl(student, teacher), atol=1e-5)
    same(divergences.jsd(student, teacher, 1 - 1e-6) / 1e-6, divergences.reverse_kl(student, teacher), atol=1e-5)
    config = DistillConfig(estimator="full", divergence="jsd", jsd_beta=0.25)
    same(distill.divergence(config, student, teacher), by_hand)


def test_the_argmax_loss_is_cross_entropy_with_the_teachers_first_choice():
    config = DistillConfig(estimator="argmax")
    value, gradient = value_and_gradient(lambda logprobs: distill.topk_divergence(config, logprobs[:1], T.log()[:1]))
    same(value, math.log(2))  # the teacher's first choice is token 0, which the student gives ½
    same(gradient, [-0.5, 0.3, 0.15, 0.05])
    silent = torch.full((2, 1), math.nan)
    same(distill.topk_divergence(config, P.log()[:2, None], silent), [0, 0])


def test_what_is_not_trusted_gets_the_forward_kl_over_the_teachers_top_k():
    config = DistillConfig(estimator="trust_region", k=2)
    value, gradient = value_and_gradient(lambda logprobs: distill.topk_divergence(config, logprobs[TOP], T.log()[TOP]))
    expected = topk("corrected", divergence="forward_kl")
    same(value, expected[0])
    same(gradient, expected[1])


OBJECTIVES = [
    divergences.k2,
    divergences.k3,
    divergences.reverse_kl,
    divergences.forward_kl,
    lambda s, t: divergences.jsd(s, t, 0.3),
    divergences.topk_reverse_kl,
    divergences.topk_reverse_kl_uncorrected,
    divergences.topk_reverse_kl_renormalised,
    divergences.topk_forward_kl,
]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_agree_with_finite_differences(objective):
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    teacher = teacher.log_softmax(-1)
    torch.autograd.gradcheck(lambda x: objective(x.log_softmax(-1), teacher), student.requires_grad_())


def test_the_gradient_of_the_tail_bucket_agrees_with_finite_differences():
    generator = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    teacher = teacher.log_softmax(-1)[:, :2]
    torch.autograd.gradcheck(
        lambda x: divergences.topk_reverse_kl_tail(x.log_softmax(-1)[:, :2], teacher), student.requires_grad_()
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_identical_distributions_have_no_divergence_and_no_value_is_negative(objective):
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 50, 6, generator=generator, dtype=torch.float64).log_softmax(-1)
    same(objective(student, student), torch.zeros_like(objective(student, student)), atol=1e-14)
    if objective is not divergences.topk_reverse_kl_uncorrected:
        assert (objective(student, teacher) >= 0).all()


FULL = [divergences.reverse_kl, divergences.forward_kl, lambda s, t: divergences.jsd(s, t, 0.5)]


@pytest.mark.parametrize("objective", FULL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_impossible_for_both_and_tiny_student_probabilities_stay_finite(objective, dtype):
    logits = torch.tensor([0.0, 1.0, -2000.0, -math.inf], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([0.3, 0.7, 0.0, 0.0], dtype=dtype).log()
    value = objective(logits.log_softmax(-1), teacher)
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()
    student = torch.tensor([0.0, 1.0], dtype=dtype).log_softmax(-1)
    same(value.detach(), objective(student, teacher[:2]), atol=1e-6)


@pytest.mark.parametrize("objective", [FULL[1], FULL[2], divergences.topk_forward_kl])
def test_a_token_impossible_for_the_teacher_alone_is_finite_where_the_mathematics_is(objective):
    logits = P.log().requires_grad_()
    teacher = torch.tensor([0.5, 0.5, 0, 0], dtype=torch.float64).log()
    value = objective(logits.log_softmax(-1), teacher)
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()


def test_reverse_kl_is_infinite_where_the_mathematics_is():
    assert divergences.reverse_kl(P.log(), torch.tensor([0.5, 0.5, 0, 0], dtype=torch.float64).log()) == math.inf


@pytest.mark.parametrize("kind", ["corrected", "uncorrected", "renormalised", "tail"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_top_k_stays_finite_when_the_student_has_all_or_nothing_of_the_set(kind, dtype):
    config = DistillConfig(estimator="topk", topk=kind)
    logits = torch.tensor([[500.0, 0.0, 0.0], [-500.0, -600.0, 0.0], [0.0, -500.0, -500.0]], dtype=dtype)
    logits.requires_grad_()
    teacher = torch.tensor([0.9, 0.1], dtype=dtype).log().expand(3, 2)
    value_N = distill.topk_divergence(config, logits.log_softmax(-1)[:, :2], teacher)
    value_N.sum().backward()
    assert value_N.isfinite().all() and logits.grad.isfinite().all()


def test_k3_does_not_overflow_on_a_token_the_student_calls_impossible():
    student = torch.tensor([-200.0, -1.0], requires_grad=True)
    value_N = divergences.k3(student, torch.tensor([-0.1, -0.5]))
    value_N.sum().backward()
    assert value_N.isfinite().all() and student.grad[0] == 0 and student.grad[1] != 0


@pytest.mark.parametrize("silent", [math.nan, -math.inf])
def test_a_row_without_a_teacher_is_exactly_zero_and_leaves_the_others_as_they_are(silent):
    for kind in ("corrected", "uncorrected", "renormalised", "tail"):
        config = DistillConfig(estimator="topk", topk=kind)
        logits = P.log().repeat(2, 1).requires_grad_()
        teacher = T.log()[TOP].repeat(2, 1)
        teacher[0, 1] = silent
        value_N = distill.topk_divergence(config, logits.log_softmax(-1)[:, TOP], teacher)
        value_N.sum().backward()
        same(value_N.detach(), [0, topk(kind)[0]])
        same(logits.grad[0], torch.zeros(4))
        same(logits.grad[1], topk(kind)[1])


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd"])
def test_a_row_with_a_nan_teacher_is_exactly_zero_over_the_full_vocabulary(divergence):
    config = DistillConfig(estimator="full", divergence=divergence)
    logits = P.log().repeat(2, 1).requires_grad_()
    teacher = torch.stack([torch.full_like(T, math.nan), T.log()])
    value_N = distill.divergence(config, logits.log_softmax(-1), teacher)
    value_N.sum().backward()
    assert value_N[0] == 0 and value_N[1] > 0
    assert logits.grad[0].tolist() == [0, 0, 0, 0] and logits.grad[1].isfinite().all()


def test_the_signal_is_detached_and_each_transform_is_its_formula():
    teacher = torch.tensor([-0.5, -60.0, -0.1], dtype=torch.float64)
    student = torch.tensor([-1.0, -1.0, -9.0], dtype=torch.float64, requires_grad=True)
    expected = {
        "none": [0.5, -59.0, 8.9],
        "clip": [0.5, -5.0, 5.0],
        "log_compress": [math.log(1.5), -math.log(60), math.log(9.9)],
        "power": [math.exp(-2.5) - math.exp(-5), math.exp(-300) - math.exp(-5), math.exp(-0.5) - math.exp(-45)],
    }
    for transform, values in expected.items():
        signal_N = distill.signal(DistillConfig(transform=transform), teacher, student)
        assert not signal_N.requires_grad
        same(signal_N, values)


def test_each_form_of_the_signal_is_its_formula_and_the_transform_comes_after():
    teacher = torch.tensor([math.log(0.6), -60.0, -0.1], dtype=torch.float64)
    student = torch.tensor(
        [math.log(0.2), -1.0, -40.0], dtype=torch.float64, requires_grad=True
    )  # u = 3, e^-59, e^39.9
    expected = {
        ("forward", "none"): [3, math.exp(-59), math.exp(20)],
        ("forward", "clip"): [3, math.exp(-59), 5],
        ("forward", "log_compress"): [math.log(4), math.exp(-59), math.log1p(math.exp(20))],
        ("jsd", "none"): [math.log(2) / 2, -math.log(2) / 2, (39.9 - math.log(2)) / 2],
        ("jsd", "clip"): [math.log(2) / 2, -math.log(2) / 2, 5],
    }
    for (form, transform), values in expected.items():
        signal_N = distill.signal(DistillConfig(signal=form, transform=transform), teacher, student)
        assert not signal_N.requires_grad
        torch.testing.assert_close(signal_N, torch.tensor(values, dtype=torch.float64), rtol=1e-12, atol=1e-12)
        silent = distill.signal(DistillConfig(signal=form, transform=transform), teacher * math.nan, student)
        assert silent.tolist() == [0, 0, 0]


@pytest.mark.parametrize("transform", ["none", "clip", "log_compress", "power"])
def test_a_token_without_a_teacher_has_no_signal(transform):
    teacher, student = torch.tensor([math.nan, -math.inf, -1.0]), torch.tensor([-1.0, -1.0, -2.0])
    signal_N = distill.signal(DistillConfig(transform=transform), teacher, student)
    assert signal_N[:2].tolist() == [0, 0] and signal_N[2] > 0


def test_half_precision_is_computed_in_float32_and_float64_is_kept():
    for given, expected in [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)]:
        student, teacher = P.log().to(given), T.log().to(given)
        for objective in OBJECTIVES:
            assert objective(student, teacher).dtype == expected
        assert distill.signal(DistillConfig(), teacher, student).dtype == expected
        assert policy.ppo_clip(student, student, student.detach(), 0.2, 0.2).dtype == expected


def test_an_empty_batch_is_zero_tokens_and_differentiable():
    logits = torch.zeros(0, 4, requires_grad=True)
    value_N = distill.divergence(DistillConfig(estimator="full"), logits.log_softmax(-1), torch.zeros(0, 4))
    value_N.sum().backward()
    assert value_N.shape == (0,) and logits.grad.shape == (0, 4)

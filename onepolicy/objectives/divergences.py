"""Divergences between student and teacher, from log-probs: p is the student's, t the teacher's.

Direction: reverse KL is KL(student‖teacher), which seeks a mode of the teacher; forward KL is KL(teacher‖student),
which covers it. All are to be minimised. 0·log 0 = 0 throughout: values and gradients are finite wherever they are so
mathematically. Where the math says +inf (reverse KL with a teacher probability of 0 under a student probability that
is not), so does the code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0  # e^20 is beyond anything a step should follow; e^89 overflows float32


def at_least_float32(x: Tensor) -> Tensor:
    """bfloat16 and float16 go up to float32; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# Sampled estimators (Schulman, "Approximating KL Divergence"): [N] log-probs of the sampled token -> [N].


def k1(student_N: Tensor, teacher_N: Tensor) -> Tensor:
    """log p - log t: unbiased value of the reverse KL.

    Its expected *gradient* is 0, the teacher drops out: a value to log, never a loss.
    """
    return at_least_float32(student_N) - at_least_float32(teacher_N)


def k2(student_N: Tensor, teacher_N: Tensor) -> Tensor:
    """½(log p - log t)²: biased value, but its expected gradient is that of the reverse KL."""
    return 0.5 * k1(student_N, teacher_N).square()


def k3(student_N: Tensor, teacher_N: Tensor) -> Tensor:
    """e^δ - δ - 1 with δ = log t - log p: unbiased, non-negative value of the reverse KL.

    Its expected gradient is that of the *forward* KL. δ is capped at 20, where the gradient becomes 0.
    """
    delta = -k1(student_N, teacher_N)
    delta = delta.clamp(max=MAX_LOG_RATIO)
    return torch.expm1(delta) - delta


# Over a whole vocabulary: [..., V] log-probs -> [...].


def _expectation(logprobs: Tensor, values: Tensor) -> Tensor:
    """Σ_v e^logprobs · values, where a probability of 0 silences its value, infinite or NaN as it may be."""
    probs = logprobs.exp()
    return (probs * values.masked_fill(probs == 0, 0.0)).sum(-1)


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(student‖teacher) = Σ_v p (log p - log t) (MOPD Eq. 1)."""
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    return _expectation(student, student - teacher)


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher‖student) = Σ_v t (log t - log p)."""
    return reverse_kl(teacher, student)


def jsd(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Generalised Jensen-Shannon divergence (GKD, arXiv 2306.13649, Eq. 1; the convention of TRL).

        β·KL(teacher‖m) + (1 - β)·KL(student‖m),  m = β·teacher + (1 - β)·student

    β = ½ is the symmetric JSD, in nats. For small β it is β·forward KL, for β near 1 it is (1 - β)·reverse KL.
    """
    # A floor instead of -inf: the mixture is finite there, but logaddexp(-inf, -inf) has no gradient.
    floor = torch.finfo(at_least_float32(student).dtype).min / 4
    student, teacher = at_least_float32(student).clamp(min=floor), at_least_float32(teacher).clamp(min=floor)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * reverse_kl(teacher, mixture) + (1 - beta) * reverse_kl(student, mixture)


# Over the teacher's k most likely tokens T: [..., K] log-probs under the *full* softmax -> [...].


def topk_reverse_kl(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """Σ_{v∈T} p log(p/t) - p + t (MOPD Eq. 5).

    The correction -p + t makes every term non-negative and p = t the optimum: at p = t the gradient is 0.
    """
    student_NK, teacher_NK = at_least_float32(student_NK), at_least_float32(teacher_NK)
    return reverse_kl(student_NK, teacher_NK) + (teacher_NK.exp() - student_NK.exp()).sum(-1)


def topk_reverse_kl_uncorrected(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """Σ_{v∈T} p log(p/t): wrong optimum, mass drains out of T even at p = t. Here to be compared with, not used."""
    return reverse_kl(student_NK, teacher_NK)


def topk_reverse_kl_renormalised(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """Reverse KL of both distributions conditioned on T. Blind to the mass outside T; identically 0 for k = 1."""
    student_NK, teacher_NK = at_least_float32(student_NK), at_least_float32(teacher_NK)
    return reverse_kl(student_NK.log_softmax(-1), teacher_NK.log_softmax(-1))


def topk_reverse_kl_tail(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """Reverse KL over k + 1 events: the tokens of T, and "any other token" with the mass 1 - Σ_T. A lower bound."""
    return reverse_kl(_with_tail(at_least_float32(student_NK)), _with_tail(at_least_float32(teacher_NK)))


def _with_tail(logprobs_NK: Tensor) -> Tensor:
    # 1 - Σ cannot resolve a mass below eps, and rounding may make it negative: eps stands for "no mass left".
    mass = logprobs_NK.exp().sum(-1, keepdim=True)
    tail = (1 - mass).clamp(min=torch.finfo(logprobs_NK.dtype).eps)
    return torch.cat([logprobs_NK, tail.log()], dim=-1)


def topk_forward_kl(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """Σ_{v∈T} t log(t/p) - t + p: forward KL over T with the same correction, so that its optimum is p = t as well."""
    return topk_reverse_kl(teacher_NK, student_NK)


def argmax_cross_entropy(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """-log p(argmax t): cross-entropy with the teacher's greedy choice, the first of its top-k.

    TGPO, arXiv 2605.13230. No divergence: its optimum is not p = t but all mass on one token. Let its weight fall to 0.
    """
    assert student_NK.shape == teacher_NK.shape, "log-probs at the same ids"
    return -at_least_float32(student_NK)[..., 0]

"""What "move the student towards the teacher" means, per token: from DistillConfig to the one function that is meant.

p is the student's probability, t the teacher's. There are two kinds. A *signal* is an advantage of the sampled token:
detached, positive where the teacher likes the token better than the student does, used as A in -A·log π. A *loss* is
differentiated and minimised.

A token that the teacher has not scored (NaN; or -inf on the sampled token or in the top-k) has value and gradient 0
here. It must also leave the denominator, by `valid` in `reduce.coefficients`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from onepolicy.config import DistillConfig
from onepolicy.objectives import divergences
from onepolicy.objectives.divergences import MAX_LOG_RATIO, at_least_float32

Objective = Callable[[Tensor, Tensor], Tensor]
EPSILON = 1e-6  # of `standardise`


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and population standard deviation of the signal over a whole batch (`weighting.spread`)."""

    mean: float
    std: float


def signal(config: DistillConfig, teacher_N: Tensor, student_N: Tensor, spread: Spread | None = None) -> Tensor:
    """The configured advantage of the sampled token, detached, from both models' log-probs of it.

    `spread` belongs to transform normalise: what a batch's signals are is not known from a part of it.
    """
    signal_N = token_signal(config, teacher_N, student_N)
    if config.transform != "normalise":
        return signal_N
    if spread is None:
        raise ValueError("transform normalise is relative to a batch: give its spread (weighting.spread)")
    return standardise(signal_N, spread).masked_fill(~teacher_N.isfinite(), 0.0)


def token_signal(config: DistillConfig, teacher_N: Tensor, student_N: Tensor) -> Tensor:
    """`signal` as far as a token determines it by itself: all of it, but for the normalisation over a batch."""
    match config.transform:
        case "none":
            signal_N = form_signal(config, teacher_N, student_N)
        case "clip" | "normalise":
            signal_N = clip(form_signal(config, teacher_N, student_N), config.max_signal)
        case "log_compress":
            signal_N = log_compress(form_signal(config, teacher_N, student_N))
        case "power":
            signal_N = power_signal(teacher_N, student_N, config.power)
    return signal_N.masked_fill(~teacher_N.isfinite(), 0.0)


def form_signal(config: DistillConfig, teacher_N: Tensor, student_N: Tensor) -> Tensor:
    """sg[-f(u) + u f'(u)], u = t/p, for the configured f-divergence Σ_v p f(u) (OPD+, arXiv 2606.01039).

    As an advantage it is unbiased for the gradient of minus that divergence. Constants have zero expected gradient and
    are dropped.
    """
    match config.signal:
        case "reverse":
            return sampled_signal(teacher_N, student_N)
        case "forward":
            return forward_signal(teacher_N, student_N)
        case "jsd":
            return jsd_signal(teacher_N, student_N)


def sampled_signal(teacher_N: Tensor, student_N: Tensor) -> Tensor:
    """sg[log t - log p] (MOPD Eq. 4). As an advantage it is unbiased for the gradient of -reverse KL."""
    return (at_least_float32(teacher_N) - at_least_float32(student_N)).detach()


def forward_signal(teacher_N: Tensor, student_N: Tensor) -> Tensor:
    """sg[t/p], for -forward KL: f = u log u (arXiv 2606.01039). Never negative, and 1 where the two agree.

    Capped at e^20. Unbounded where the student hardly ever goes: clip it.
    """
    return sampled_signal(teacher_N, student_N).clamp(max=MAX_LOG_RATIO).exp()


def jsd_signal(teacher_N: Tensor, student_N: Tensor) -> Tensor:
    """sg[½ log((1 + t/p)/2)], for -JSD with β = ½ (arXiv 2606.01039). At least -½ log 2: a veto is bounded."""
    return 0.5 * (softplus(sampled_signal(teacher_N, student_N)) - math.log(2))


def standardise(signal_N: Tensor, spread: Spread) -> Tensor:
    """(r - mean)/(std + ε) with the mean and std of the whole batch (GNDPO, arXiv 2606.09091).

    Careful: the sign is relative. A token that the teacher likes less than the student does, but more than it likes
    the batch's average token, is pushed up. And where teacher and student all but agree, noise is scaled up to 1.
    """
    return (signal_N - spread.mean) / (spread.std + EPSILON)


def clip(signal_N: Tensor, max_signal: float) -> Tensor:
    """The signal within ±max_signal (MOPD: 5): one token on which the teacher is certain cannot rule the batch."""
    return signal_N.clamp(-max_signal, max_signal)


def log_compress(signal_N: Tensor) -> Tensor:
    """sign(r)·log(1 + |r|): bounded growth that keeps the order of large signals (arXiv 2607.13399)."""
    return signal_N.sign() * signal_N.abs().log1p()


def power_signal(teacher_N: Tensor, student_N: Tensor, power: float) -> Tensor:
    """sg[t^alpha - p^alpha], in [-1, 1] (PowerOPD, arXiv 2606.17199)."""
    return ((power * at_least_float32(teacher_N)).exp() - (power * at_least_float32(student_N)).exp()).detach()


def sampled_loss(config: DistillConfig, student_N: Tensor, teacher_N: Tensor) -> Tensor:
    """Estimators k2 and k3 on the sampled token, to be differentiated: reverse and, honestly, *forward* KL."""
    match config.estimator:
        case "k2":
            objective: Objective = divergences.k2
        case "k3":
            objective = divergences.k3
        case _:
            raise ValueError(
                f"estimator {config.estimator!r} is no loss on the sampled token: use k2 or k3 (k1 has zero expected "
                "gradient), or `signal` for an advantage"
            )
    return _where_scored(objective, student_N, teacher_N, teacher_N.isfinite())


def divergence(config: DistillConfig, student_logprobs_NV: Tensor, teacher_logprobs_NV: Tensor) -> Tensor:
    """The configured divergence over the whole vocabulary, [N] (MOPD Eq. 1 by default)."""
    match config.divergence:
        case "reverse_kl":
            objective: Objective = divergences.reverse_kl
        case "forward_kl":
            objective = divergences.forward_kl
        case "jsd":

            def objective(student: Tensor, teacher: Tensor) -> Tensor:
                return divergences.jsd(student, teacher, config.jsd_beta)

    scored_N = ~teacher_logprobs_NV.isnan().any(-1)  # -inf is a legitimate probability here
    return _where_scored(objective, student_logprobs_NV, teacher_logprobs_NV, scored_N)


TOPK_REVERSE_KL: dict[str, Objective] = {
    "corrected": divergences.topk_reverse_kl,
    "uncorrected": divergences.topk_reverse_kl_uncorrected,
    "renormalised": divergences.topk_reverse_kl_renormalised,
    "tail": divergences.topk_reverse_kl_tail,
}


def topk_divergence(config: DistillConfig, student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """The configured divergence over the teacher's top-k, [N] (MOPD Eq. 5 by default).

    Both inputs are log-probs under the full softmax, at the ids of the *teacher's* k most likely tokens, in order.
    Of trust_region this is the part for the tokens that it does not trust.
    """
    if config.estimator == "argmax":
        objective: Objective = divergences.argmax_cross_entropy
    elif config.estimator == "trust_region" or config.divergence == "forward_kl":
        objective = divergences.topk_forward_kl
    else:
        objective = TOPK_REVERSE_KL[config.topk]
    return _where_scored(objective, student_NK, teacher_NK, teacher_NK.isfinite().all(-1))


def _where_scored(objective: Objective, student: Tensor, teacher: Tensor, scored_N: Tensor) -> Tensor:
    """The objective, with value and gradient 0 where the teacher is silent.

    Filled on the way in as well as on the way out: the gradient of a NaN is NaN, even when it is multiplied by 0.
    """
    silent = ~scored_N if student.ndim == scored_N.ndim else ~scored_N.unsqueeze(-1)
    value_N = objective(student.masked_fill(silent, 0.0), teacher.masked_fill(silent, 0.0))
    return torch.where(scored_N, value_N, 0.0)

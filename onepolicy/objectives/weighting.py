"""What distillation makes of a token's place in its sample and of the batch it is in, from samples, before the step.

All of this is about the policy that wrote the tokens: p is `old_logprobs_R` where a sample has them, else the engine's.
So nothing here depends on the split into micro-batches, or on what an earlier inner update changed. No gradient passes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from onepolicy.config import DistillConfig
from onepolicy.objectives import distill
from onepolicy.objectives.distill import Spread
from onepolicy.types import Array, Sample


def token_weights(config: DistillConfig, sample: Sample) -> Array | float:
    """The configured weights of a taught sample's tokens, factors of their loss; 1.0 where none is configured."""
    weights: Array | float = 1.0
    options = config.weighting
    if sample.teacher is None:
        return weights
    if options.position > 0:
        signal_R = distill.token_signal(config, *_logprobs(sample)).double().numpy()
        weights = weights * position_weights(signal_R, options.position)
    if options.max_disagreement is not None:
        weights = weights * ~masked(sample, options.max_disagreement)
    if options.turn_cap is not None:
        teacher_R, student_R = _logprobs(sample)
        weights = weights * turn_weights(
            (teacher_R - student_R).double().numpy(), turns(sample.mask_T), options.turn_cap
        )
    return weights


def position_weights(signal_R: Array, gamma: float) -> Array:
    """1 + γ(1 - Σ_{u<t}|A_u| / Σ_u|A_u|), float64 (IW-OPD, arXiv 2606.22600).

    From 1 + γ on the first token down to 1 where all of the sequence's drift from the teacher is past. A sequence that
    has none weighs 1 + γ throughout. Tokens that the teacher has not scored have signal 0.
    """
    size_R = np.abs(signal_R.astype(np.float64))
    before_R = np.concatenate([[0.0], size_R.cumsum()])[:-1]
    return 1 + gamma * (1 - before_R / max(size_R.sum(), np.finfo(np.float64).tiny))


def masked(sample: Sample, max_disagreement: float) -> Array:
    """bool [R]: tokens that the teachers differ about by more, which are not distilled (Open-MOPD)."""
    if sample.disagreement_R is None:
        raise ValueError(f"max_disagreement needs what all teachers say about task {sample.task.id!r}: annotate it")
    return sample.disagreement_R > max_disagreement


def turn_weights(log_ratio_R: Array, turns_R: Array, cap: float) -> Array:
    """min(d_1/d_k, cap) at each token of turn k, d_k = mean over the turn of |r| (SOD, arXiv 2605.07725).

    A turn that drifted from the teacher further than the first counts for less. Tokens that the teacher has not scored
    (r is not finite) have no part in d_k; d_1 is that of the first turn with any that are. Two turns without drift
    weigh the same.
    """
    scored_R = np.isfinite(log_ratio_R)
    counts_K = np.bincount(turns_R, weights=scored_R)
    sums_K = np.bincount(turns_R, weights=np.where(scored_R, np.abs(log_ratio_R), 0.0))
    drift_K = np.divide(sums_K, counts_K, out=np.zeros(len(sums_K)), where=counts_K > 0)
    if not counts_K.any():
        return np.ones(len(turns_R))
    first = drift_K[np.flatnonzero(counts_K)[0]]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_K = np.where(drift_K == first, 1.0, first / drift_K)
    return np.minimum(ratio_K, cap)[turns_R]


def turns(mask_T: Array) -> Array:
    """int [R]: which run of the policy's tokens each belongs to, from 0; runs are parted by what it did not write."""
    starts_T = mask_T & ~np.concatenate([[False], mask_T[:-1]])
    return starts_T.cumsum()[mask_T] - 1


def spread(config: DistillConfig, samples: Sequence[Sample]) -> Spread | None:
    """Mean and std of the bounded signal over all scored tokens of all taught samples, for transform normalise.

    One for the batch of an update, whatever the domains in it and however they are weighed.
    """
    if config.transform != "normalise":
        return None
    parts = [torch.zeros(0, dtype=torch.float64)]
    for sample in samples:
        if sample.teacher is not None and sample.weights.distill:
            teacher_R, student_R = _logprobs(sample)
            signal_R = distill.token_signal(config, teacher_R, student_R).double()
            parts.append(signal_R[teacher_R.isfinite() & signal_R.isfinite()])
    signal_N = torch.cat(parts)
    if not len(signal_N):
        return Spread(0.0, 1.0)
    std, mean = torch.std_mean(signal_N, correction=0)
    return Spread(mean.item(), std.item())


def trusted(sample: Sample) -> Array:
    """bool [R]: true with probability min(t/p, 1), as in speculative decoding (TrOPD, arXiv 2606.01249).

    Where it is true, the sampled advantage log t - log p is kept; elsewhere the loss is forward KL over the teacher's
    top-k. Of the paper's parts this is the trust region and its outliers; guidance by teacher prefixes is not in it.
    Not the plain Σ t log(t/p) over the top-k, but corrected by -t + p (`divergences.topk_forward_kl`), because the
    plain sum has a gradient even at p = t, which moves the tail's mass into the top-k.
    """
    teacher_R, student_R = _logprobs(sample)
    return (teacher_R - student_R).clamp(max=0.0).exp().numpy() > uniforms(sample)


def uniforms(sample: Sample) -> Array:
    """[R] in [0, 1), by Philox from the sample's number, version and tokens: the same at every look at the sample."""
    content = zlib.crc32(sample.token_ids_T.tobytes())
    seed = np.random.SeedSequence((sample.version, sample.group, sample.index, content))
    return np.random.Generator(np.random.Philox(seed)).random(sample.length)


def _logprobs(sample: Sample) -> tuple[Tensor, Tensor]:
    """(teacher's, the writing policy's), [R]."""
    assert sample.teacher is not None, "only a taught sample has a teacher's log-probs"
    student_R = sample.logprobs_R if sample.old_logprobs_R is None else sample.old_logprobs_R
    return torch.from_numpy(sample.teacher.logprobs_R), torch.from_numpy(student_R)

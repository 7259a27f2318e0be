"""Reduction: THE ONLY MODULE THAT DIVIDES A LOSS.

Every token gets a coefficient, computed once over the whole global batch; a micro-batch's loss is the sum of
coefficient · loss over its tokens, and the losses (and gradients) of the micro-batches add up. How the batch is split
over micro-batches, inner steps of accumulation or ranks therefore cannot matter.

Dropping and gating are different things. A dropped token (no usable teacher log-prob, say) is not valid: coefficient
0, and it leaves the denominator. A gated token is valid with weight 0: it stays in the denominator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from onepolicy.types import Array

Reduction = Literal["sequence", "token", "constant", "sequence_sum"]


def coefficients(
    valid: Sequence[Array], weights_B: Sequence[float], reduction: Reduction, length: int | None = None
) -> list[Array]:
    """One float64 coefficient per token and sample, for one loss component over the global batch.

    `valid` holds a bool [R] per sample, `weights_B` the samples' weights of this component. The samples that count are
    those with a weight other than 0 and at least one valid token; with B' of them, and |y_i| valid tokens in sample i,

        sequence      w_i / (|y_i| · B')    mean over a sample's tokens, then over samples (MOPD Eq. 1)
        token         w_i / Σ_j |y_j|       mean over all tokens (DAPO, arXiv 2503.14476)
        constant      w_i / (L_max · B')    sum over tokens by a constant `length` L_max (Dr.GRPO, arXiv 2503.20783)
        sequence_sum  w_i / B'              sum over a sample's tokens, then mean over samples (TRL's luspo)

    A batch in which nothing counts has coefficients 0 throughout.
    """
    weights = np.asarray(weights_B, dtype=np.float64)
    if weights.shape != (len(valid),):
        raise ValueError(f"{len(valid)} samples but weights of shape {weights.shape}: give one weight per sample")
    if not np.isfinite(weights).all():
        raise ValueError(f"weights must be finite, got {weights.tolist()}")
    lengths = np.array([np.count_nonzero(valid_R) for valid_R in valid], dtype=np.float64)
    counts = (weights != 0) & (lengths > 0)
    if reduction == "sequence":
        denominators = lengths * counts.sum()
    elif reduction == "token":
        denominators = np.full_like(lengths, lengths[counts].sum())
    elif reduction == "constant":
        if length is None:
            raise ValueError("reduction 'constant' divides by a length: give loss.length, for example 1024")
        denominators = np.full_like(lengths, length * counts.sum())
    elif reduction == "sequence_sum":
        denominators = np.full_like(lengths, counts.sum())
    else:
        raise ValueError(f"unknown reduction {reduction!r}: use sequence, token, constant or sequence_sum")
    per_token_B = np.divide(weights, denominators, out=np.zeros_like(weights), where=counts)
    return [np.where(valid_R, c, 0.0) for valid_R, c in zip(valid, per_token_B, strict=True)]


def weighted_sum(coefficients_N: Tensor, losses_N: Tensor) -> Tensor:
    """Σ coefficient · loss: the whole of a micro-batch's reduction. Differentiable (and 0) for an empty batch.

    A token with coefficient 0 is left out rather than multiplied, since 0 · NaN is NaN.
    """
    if coefficients_N.shape != losses_N.shape:
        raise ValueError(f"{tuple(coefficients_N.shape)} coefficients for {tuple(losses_N.shape)} losses")
    terms_N = coefficients_N.to(losses_N) * losses_N
    return terms_N.masked_fill(coefficients_N == 0, 0.0).sum()


def segment_mean(values_N: Tensor, segments_N: Tensor) -> Tensor:
    """[N] → [N]: every token gets the mean over the tokens of its own sample. `segments_N` numbers the samples.

    A sample's tokens must all be present: a micro-batch may split the batch between samples, not inside one.
    """
    _, index_N, counts = torch.unique(segments_N, return_inverse=True, return_counts=True)
    sums = values_N.new_zeros(len(counts)).index_add(0, index_N, values_N)
    return (sums / counts)[index_N]


def segment_sum(values_N: Tensor, segments_N: Tensor) -> Tensor:
    """[N] → [N]: every token gets the sum over the tokens of its own sample, all of which must be present."""
    _, index_N = torch.unique(segments_N, return_inverse=True)
    sums = values_N.new_zeros(int(index_N.max()) + 1 if len(index_N) else 0).index_add(0, index_N, values_N)
    return sums[index_N]

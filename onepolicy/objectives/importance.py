"""Importance weights between the engine that generated a token (μ) and the learner (π): detached factors of a loss.

Input is log π/μ on the sampled token, [N]. A ratio that is no number (both -inf) says nothing about its token and
weighs 0. A weight of 0 is a weight: the token stays in the denominator (see `reduce`).

    level      ratio of token t of sample i
    token      π/μ of the token itself
    sequence   Π over all tokens of the sample: exact for a reward of the whole sequence, and of large variance
    geometric  (Π)^(1/|y_i|)
"""

from __future__ import annotations

import torch
from torch import Tensor

from onepolicy.config import ImportanceConfig
from onepolicy.objectives.divergences import at_least_float32
from onepolicy.objectives.reduce import segment_mean, segment_sum


def importance_weights(config: ImportanceConfig, log_ratio_N: Tensor, segments_N: Tensor) -> tuple[Tensor, Tensor]:
    """(weights_N, gated_N): the configured weights, and where they differ from the ratio itself.

    `segments_N` (int64) numbers the sample that a token belongs to; all levels but `token` need whole samples.
    """
    return _weights(config, _level(config, log_ratio_N, segments_N))


def state_weights(config: ImportanceConfig, log_ratio_N: Tensor, segments_N: Tensor) -> tuple[Tensor, Tensor] | None:
    """(weights_N, gated_N) of a token's state: the product of the ratios of the tokens *before* it in its sample.

    For losses that sum over the vocabulary at a state: the drawn token does not enter them, the way to the state does.
    None where states are taken as they come (`states: ignore`), or where the mode is off.
    """
    if config.states == "ignore" or config.mode == "off":
        return None
    log_ratio_N = at_least_float32(log_ratio_N.detach())
    so_far_N = log_ratio_N.cumsum(0)
    first_N = torch.ones_like(segments_N, dtype=torch.bool)
    first_N[1:] = segments_N[1:] != segments_N[:-1]
    # Σ over the earlier tokens of the same sample: the running sum before this token, less what samples before it had
    before_N = so_far_N - log_ratio_N
    starts = before_N[first_N]
    return _weights(config, before_N - starts[first_N.cumsum(0) - 1])


def gate(log_ratio_N: Tensor, low: float, high: float) -> Tensor:
    """π/μ where low <= π/μ <= high, else 0: zeroed, not clipped (MiMo-V2-Flash, arXiv 2601.02780, §4.4)."""
    ratio_N = _ratio(log_ratio_N)
    return ratio_N.masked_fill(~_inside(ratio_N, low, high), 0.0)


def truncate(log_ratio_N: Tensor, high: float, low: float = 0.0) -> Tensor:
    """π/μ, at most `high` and at least `low`: truncated importance sampling (IMPALA, arXiv 1802.01561)."""
    ratio_N = _ratio(log_ratio_N)
    return ratio_N.clamp(min=low, max=high).masked_fill(ratio_N.isnan(), 0.0)


def _level(config: ImportanceConfig, log_ratio_N: Tensor, segments_N: Tensor) -> Tensor:
    match config.level:
        case "token":
            return log_ratio_N
        case "sequence":
            return segment_sum(at_least_float32(log_ratio_N.detach()), segments_N)
        case "geometric":
            return segment_mean(at_least_float32(log_ratio_N.detach()), segments_N)


def _weights(config: ImportanceConfig, log_ratio_N: Tensor) -> tuple[Tensor, Tensor]:
    ratio_N = _ratio(log_ratio_N)
    outside_N = ~_inside(ratio_N, config.low, config.high)
    match config.mode:
        case "gate":
            return gate(log_ratio_N, config.low, config.high), outside_N
        case "truncate":
            return truncate(log_ratio_N, config.high, config.low), outside_N
        case "off":
            return torch.ones_like(ratio_N), torch.zeros_like(outside_N)


def _ratio(log_ratio_N: Tensor) -> Tensor:
    return at_least_float32(log_ratio_N.detach()).exp()


def _inside(ratio_N: Tensor, low: float, high: float) -> Tensor:
    return (ratio_N >= low) & (ratio_N <= high) & ratio_N.isfinite()  # NaN compares false: outside

"""Importance weights between the engine that wrote a token (μ) and the learner (π): detached factors of a loss.

Input is log π/μ on the sampled token, [N]. A ratio that is no number (both -inf) says nothing about its token and
weighs 0. A weight of 0 is a weight: the token stays in the denominator (see `reduce`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from onepolicy.config import ImportanceConfig
from onepolicy.objectives.divergences import at_least_float32


def importance_weights(config: ImportanceConfig, log_ratio_N: Tensor) -> tuple[Tensor, Tensor]:
    """(weights_N, gated_N): the configured weights, and where they differ from the ratio itself."""
    ratio_N = _ratio(log_ratio_N)
    match config.mode:
        case "gate":
            return gate(log_ratio_N, config.low, config.high), ~_inside(ratio_N, config.low, config.high)
        case "truncate":
            return truncate(log_ratio_N, config.high), ~_inside(ratio_N, 0.0, config.high)
        case "off":
            return torch.ones_like(ratio_N), torch.zeros_like(ratio_N, dtype=torch.bool)


def gate(log_ratio_N: Tensor, low: float, high: float) -> Tensor:
    """π/μ where low <= π/μ <= high, else 0: zeroed, not clipped (MiMo-V2-Flash, arXiv 2601.02780, §4.4)."""
    ratio_N = _ratio(log_ratio_N)
    return ratio_N.masked_fill(~_inside(ratio_N, low, high), 0.0)


def truncate(log_ratio_N: Tensor, high: float) -> Tensor:
    """min(π/μ, high): truncated importance sampling (IMPALA, arXiv 1802.01561)."""
    return _ratio(log_ratio_N).nan_to_num(nan=0.0).clamp(max=high)


def _ratio(log_ratio_N: Tensor) -> Tensor:
    return at_least_float32(log_ratio_N.detach()).exp()


def _inside(ratio_N: Tensor, low: float, high: float) -> Tensor:
    return (ratio_N >= low) & (ratio_N <= high) & ratio_N.isfinite()  # NaN compares false: outside

"""Policy-gradient losses: [N] log-probs and advantages -> [N], to be minimised.

r = π/π_old on the sampled token. The clip range is [1 - clip_low, 1 + clip_high]. Advantages carry no gradient. With
one update per batch pass `old_logprobs_N = logprobs_N.detach()`: the ratio is 1 and every loss here has the gradient of
REINFORCE.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onepolicy.config import PolicyConfig
from onepolicy.objectives.divergences import MAX_LOG_RATIO, at_least_float32
from onepolicy.objectives.reduce import segment_mean


def policy_loss(
    config: PolicyConfig, logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, segments_N: Tensor
) -> tuple[Tensor, Tensor]:
    """(loss_N, clipped_N) of the configured kind. `segments_N` (int64) numbers the sample that a token belongs to."""
    low, high = config.clip_low, config.clip_high
    pair = logprobs_N, old_logprobs_N
    with torch.no_grad():
        ratio_N = sequence_ratio(*pair, segments_N) if config.kind == "gspo" else token_ratio(*pair)
    match config.kind:
        case "ppo":
            loss_N = ppo_clip(*pair, advantages_N, low, high, config.dual_clip)
            return loss_N, clipped(ratio_N, advantages_N, low, high, config.dual_clip)
        case "cispo":
            return cispo(*pair, advantages_N, low, high), (ratio_N < 1 - low) | (ratio_N > 1 + high)
        case "gspo":
            loss_N = gspo(*pair, advantages_N, segments_N, low, high)
            return loss_N, clipped(ratio_N, advantages_N, low, high)
        case "reinforce":
            return reinforce(logprobs_N, advantages_N), torch.zeros_like(ratio_N, dtype=torch.bool)


def token_ratio(logprobs_N: Tensor, old_logprobs_N: Tensor) -> Tensor:
    """r = π/π_old. Capped at e^20, far outside any clip range: past it exp overflows, and 0·inf is a NaN gradient."""
    return (at_least_float32(logprobs_N) - at_least_float32(old_logprobs_N)).clamp(max=MAX_LOG_RATIO).exp()


def sequence_ratio(logprobs_N: Tensor, old_logprobs_N: Tensor, segments_N: Tensor) -> Tensor:
    """s_i = (π(y_i)/π_old(y_i))^(1/|y_i|), the geometric mean of a sample's token ratios, at each of its tokens.

    GSPO Eq. 7, arXiv 2507.18071. The gradient that it gives a token is s_i·∇log π(y_t): see `gspo`.
    """
    logprobs_N, old_logprobs_N = at_least_float32(logprobs_N), at_least_float32(old_logprobs_N)
    log_mean_N = segment_mean(logprobs_N.detach() - old_logprobs_N, segments_N)
    # logprobs - sg[logprobs] is 0: it carries the gradient of the token's own log-prob, and no value.
    return (log_mean_N + (logprobs_N - logprobs_N.detach())).clamp(max=MAX_LOG_RATIO).exp()


def clipped(
    ratio_N: Tensor, advantages_N: Tensor, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Tensor:
    """bool [N]: where the clip has taken the gradient away, for the log."""
    up_N = (advantages_N > 0) & (ratio_N > 1 + clip_high)
    down_N = (advantages_N < 0) & ((ratio_N < 1 - clip_low) | (ratio_N > (dual_clip or math.inf)))
    return up_N | down_N


def _pessimistic(ratio_N: Tensor, advantages_N: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """-min(rA, clip(r)A)."""
    return torch.maximum(-advantages_N * ratio_N, -advantages_N * ratio_N.clamp(1 - clip_low, 1 + clip_high))


def ppo_clip(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Tensor:
    """-min(rA, clip(r)A) (PPO, arXiv 1707.06347, Eq. 7; two bounds: DAPO, arXiv 2503.14476).

    `dual_clip` c > 1 also bounds the loss of a negative advantage by -cA (arXiv 1912.09729, Eq. 5).
    """
    loss_N = _pessimistic(token_ratio(logprobs_N, old_logprobs_N), advantages_N, clip_low, clip_high)
    if dual_clip is None:
        return loss_N
    return torch.where(advantages_N < 0, torch.minimum(loss_N, -dual_clip * advantages_N), loss_N)


def cispo(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """-sg[clip(r)]·A·log π: clips the weight, so that every token keeps a gradient (MiniMax-M1, arXiv 2506.13585)."""
    weight_N = token_ratio(logprobs_N, old_logprobs_N).detach().clamp(1 - clip_low, 1 + clip_high)
    return -weight_N * advantages_N * at_least_float32(logprobs_N)


def reinforce(logprobs_N: Tensor, advantages_N: Tensor) -> Tensor:
    """-A·log π. With A = the distillation signal this is MOPD Eq. 3; with A = 1, cross-entropy."""
    return -advantages_N * at_least_float32(logprobs_N)


def gspo(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    segments_N: Tensor,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """-min(s_i A, clip(s_i) A) at each token of sample i (GSPO, arXiv 2507.18071, in the GSPO-token form of §4.3).

    Under the `sequence` reduction, value and gradient are those of the sequence-level objective, Eq. 5, when A is the
    same for all tokens of a sample; unlike it, this form admits one per token. s_i leaves 1 far less than r does:
    the paper clips at 3e-4 below and 4e-4 above. A sample's tokens must all be in the call.
    """
    return _pessimistic(sequence_ratio(logprobs_N, old_logprobs_N, segments_N), advantages_N, clip_low, clip_high)

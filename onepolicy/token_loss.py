"""The loss of one chunk of tokens, a pure function of log-probs and annotations.

loss = Σ_component Σ_token coefficient · w · ℓ

pg       ℓ of the policy loss, w: importance weight of the token
distill  sampled, k2, k3, trust_region: as pg. topk, full, argmax: ℓ does not depend on the drawn token, so neither
         does w; with `importance.states: past` it is the weight of the tokens before it (the state correction)
ce       −log π, w = 1: demonstrations were not sampled from the policy
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onepolicy.config import LossConfig
from onepolicy.engines.forward import TokenStats
from onepolicy.objectives import distill, divergences, importance, policy, reduce

COUNTED_ON = {  # metric → the component whose tokens it is a mean over; all tokens else
    "clipped": "pg",
    "distill_clipped": "distill",
    "reverse_kl": "distill",
    "signal": "distill",
    "trusted": "distill",
    "cross_entropy": "ce",
    "gated": "policy",
    "importance": "policy",
    "engine_gap": "policy",
    "rollout_kl": "policy",
}
WITHOUT_THE_DRAWN_TOKEN = ("topk", "full", "argmax")  # estimators


@dataclass(frozen=True, slots=True)
class Tokens:
    """Annotations of a micro-batch's tokens, on the N axis. `where`: the tokens that count for a component."""

    used: list[str]
    coefficient: dict[str, Tensor]
    where: dict[str, Tensor]
    engine_N: Tensor
    old_N: Tensor | None
    advantages_N: Tensor
    teacher_N: Tensor
    trusted_N: Tensor | None
    segments_N: Tensor
    domain_N: Tensor


def needs_whole_samples(loss: LossConfig) -> bool:
    """Whether a sample's tokens must all be in one chunk: a ratio or a weight is of the whole sequence."""
    own = loss.importance
    by_sequence = own.mode != "off" and (own.level != "token" or own.states == "past")
    return loss.policy.kind == "gspo" or by_sequence


def token_loss(
    config: LossConfig, stats: TokenStats, tokens: Tokens, chunk: slice, spread: distill.Spread | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a chunk, a scalar, and the values per token that metrics are made of, [C] each."""
    logprobs_C, current_C = stats.logprobs_C, stats.logprobs_C.detach()
    engine_C, segments_C = tokens.engine_N[chunk], tokens.segments_N[chunk]
    old_C = current_C if tokens.old_N is None else tokens.old_N[chunk]
    coefficient = {component: tokens.coefficient[component][chunk] for component in tokens.used}
    weights_C, gated_C = importance.importance_weights(config.importance, old_C - engine_C, segments_C)
    applied_C, gated = torch.ones_like(weights_C), torch.zeros_like(gated_C)  # what metrics say of the weights
    seen: dict[str, Tensor] = {"entropy": stats.entropy_C}
    terms: list[Tensor] = []
    if "pg" in tokens.used:
        loss_C, seen["clipped"] = policy.policy_loss(
            config.policy, logprobs_C, old_C, tokens.advantages_N[chunk], segments_C
        )
        terms.append(reduce.weighted_sum(coefficient["pg"], weights_C * loss_C))
        applied_C, gated = weights_C, gated_C
    if "distill" in tokens.used:
        own, teacher_C = config.distill, tokens.teacher_N[chunk]
        signal_C = distill.signal(own, teacher_C, current_C if own.refresh else old_C, spread)
        if own.estimator in ("sampled", "trust_region"):
            loss_C, seen["distill_clipped"] = policy.policy_loss(config.policy, logprobs_C, old_C, signal_C, segments_C)
        elif stats.divergence_C is None:
            loss_C = distill.sampled_loss(own, logprobs_C, teacher_C)
        else:
            loss_C = stats.divergence_C
        if tokens.trusted_N is not None and stats.divergence_C is not None:
            seen["trusted"] = tokens.trusted_N[chunk]
            loss_C = torch.where(seen["trusted"], loss_C, stats.divergence_C)
        if own.estimator in WITHOUT_THE_DRAWN_TOKEN:
            states = importance.state_weights(config.importance, old_C - engine_C, segments_C)
            if states is not None:
                loss_C = states[0] * loss_C
                if "pg" not in tokens.used:
                    applied_C, gated = states
        else:
            loss_C = weights_C * loss_C
            applied_C, gated = weights_C, gated_C
        terms.append(reduce.weighted_sum(coefficient["distill"], loss_C))
        seen |= {"reverse_kl": divergences.k1(current_C, teacher_C), "signal": signal_C.abs()}
    if "ce" in tokens.used:
        terms.append(-reduce.weighted_sum(coefficient["ce"], logprobs_C))
        seen["cross_entropy"] = -current_C
    if "pg" in tokens.used or "distill" in tokens.used:
        seen |= {"gated": gated, "importance": applied_C, "engine_gap": (current_C - engine_C).abs()}
        seen["rollout_kl"] = divergences.k3(engine_C, current_C)  # of the policy that generated to this one
    return torch.stack(terms).sum(), seen

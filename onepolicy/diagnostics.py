"""How far apart two policies are, on states that the student visits by itself (CoPD §3; MOPD's initial KL)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onepolicy.engines.forward import chunk_length
from onepolicy.objectives import divergences
from onepolicy.types import Array, TokenScores


@dataclass(frozen=True, slots=True)
class PolicyGap:
    """Means over the student's own states. KL in nats per token; overlap in [0, 1]."""

    reverse_kl: float
    symmetric_kl: float
    overlap: float
    tokens: int


@torch.no_grad()
def policy_gap(
    student: Sequence[TokenScores], teacher: Sequence[TokenScores], k: int, temperature: float = 1.0
) -> PolicyGap:
    """Exact reverse KL, ½[KL(p‖q)+KL(q‖p)] and |Top_k(p) ∩ Top_k(q)|/k, from scores of the same samples (Want "full").

    Tokens that either of the two has not scored (a log-prob that is not finite) are left out.
    Raises ValueError when there is no token to compare on.
    """
    totals = np.zeros(3)
    tokens = 0
    for ours, theirs in zip(student, teacher, strict=True):
        scored = np.flatnonzero(np.isfinite(ours.logprobs_R) & np.isfinite(theirs.logprobs_R))
        length = chunk_length(ours.head.vocabulary, ours.head.device)
        for chunk in (scored[start : start + length] for start in range(0, len(scored), length)):
            p, q = (_logprobs(scores, chunk, temperature) for scores in (ours, theirs))
            common = min(p.shape[-1], q.shape[-1])  # one of the two may pad its vocabulary
            p, q = (torch.log_softmax(x[:, :common], dim=-1) for x in (p, q))
            reverse, forward = divergences.reverse_kl(p, q), divergences.forward_kl(p, q)
            tops = [x.topk(min(k, common)).indices for x in (p, q)]
            shared = (tops[0][:, :, None] == tops[1][:, None, :]).any(-1).float().mean(-1)
            totals += [x.double().sum().item() for x in (reverse, (reverse + forward) / 2, shared)]
            tokens += len(p)
    if not tokens:
        raise ValueError("there is no token that both policies have scored, so nothing to compare them on")
    reverse_kl, symmetric_kl, overlap = (totals / tokens).tolist()
    return PolicyGap(reverse_kl, symmetric_kl, overlap, tokens)


def _logprobs(scores: TokenScores, chunk: Array, temperature: float) -> Tensor:
    assert scores.hidden_RH is not None, "policy_gap compares whole distributions: score with Want('full')"
    hidden = torch.from_numpy(scores.hidden_RH[chunk]).to(scores.head.device)
    logprobs: Tensor = scores.head.logprobs(hidden, temperature)
    return logprobs

"""How far apart policies are, on states that the student visits by itself (CoPD §3; MOPD's initial KL).

The rows that recipes log come from here, so that a name means the same in all of them. `a<b` is a compared with b on
a's own rollouts: a is a domain (of the run's one policy) or a branch, b a branch, "origin" or "teacher".

    overlap/a<b         mean of |Top_k(a) ∩ Top_k(b)|/k             symmetric_kl/a<b    ½[KL(a‖b) + KL(b‖a)], nats
    disagreement/d      mean of max − min over all teachers of the log-prob of a sampled token of domain d, nats
    disagreement_share/d    share of the tokens on which it is above 1 nat
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onepolicy.engines.forward import chunk_length
from onepolicy.objectives import divergences
from onepolicy.types import Array, Sample, TokenScores

OVERLAP_K = 10
LARGE_DISAGREEMENT = 1.0  # nats


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
        scored = np.flatnonzero(_both_scored(ours, theirs))
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


def overlap_size(vocabulary: int) -> int:
    """The k of top-k overlap: 10, as in CoPD §3; for a tiny vocabulary a tenth of it, and 3 at least."""
    return min(OVERLAP_K, max(3, vocabulary // 10), vocabulary)


def gap_row(
    pair: str, student: Sequence[TokenScores], teacher: Sequence[TokenScores], temperature: float
) -> dict[str, float]:
    """Overlap and symmetric KL of one pair, to log. Empty where there is no token to compare on."""
    if not any(_both_scored(ours, theirs).any() for ours, theirs in zip(student, teacher, strict=True)):
        return {}
    gap = policy_gap(student, teacher, overlap_size(student[0].head.vocabulary), temperature)
    return {f"overlap/{pair}": gap.overlap, f"symmetric_kl/{pair}": gap.symmetric_kl}


def disagreement_row(samples: Sequence[Sample]) -> dict[str, float]:
    """How far the teachers differ on each domain's tokens, to log. Empty where nobody asked all of them."""
    row: dict[str, float] = {}
    for domain in sorted({sample.task.domain for sample in samples}):
        known = [s.disagreement_R for s in samples if s.task.domain == domain and s.disagreement_R is not None]
        values_N = np.concatenate([*known, np.empty(0, dtype=np.float32)])
        values_N = values_N[np.isfinite(values_N)]
        if len(values_N):
            row[f"disagreement/{domain}"] = float(values_N.mean())
            row[f"disagreement_share/{domain}"] = float((values_N > LARGE_DISAGREEMENT).mean())
    return row


def _both_scored(ours: TokenScores, theirs: TokenScores) -> Array:
    return np.isfinite(ours.logprobs_R) & np.isfinite(theirs.logprobs_R)


def _logprobs(scores: TokenScores, chunk: Array, temperature: float) -> Tensor:
    assert scores.hidden_RH is not None, "policy_gap compares whole distributions: score with Want('full')"
    hidden = torch.from_numpy(scores.hidden_RH[chunk]).to(scores.head.device)
    logprobs: Tensor = scores.head.logprobs(hidden, temperature)
    return logprobs

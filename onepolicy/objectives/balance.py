"""Weights per domain that undo an imbalance of the batch (Open-MOPD, arXiv 2608.19098). No torch.

Everything is keyed by domain name. s_d is the share of domain d in the update: Σ |coefficient| over its tokens (see
`update_plan.domain_shares`), which under the `token` reduction is its share of the tokens. Share and gap weights obey
Σ_d w_d·s_d = 1: they move the budget between domains and leave its sum as it is. A domain without a share keeps weight
1 and has no part in the others'.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

Weights = dict[str, float]


def shares(counts: Mapping[str, float]) -> Weights:
    """Each domain's part of the total; 0 throughout for an empty batch."""
    total = sum(counts.values())
    return {domain: count / total if total else 0.0 for domain, count in counts.items()}


def share_weights(sizes: Mapping[str, float], targets: Mapping[str, float] | None = None) -> Weights:
    """w_d = g_d/s_d: domain d gets the fraction g_d of the update, whatever its length. Targets are equal by default.

    Targets need not sum to 1; those of the domains present are rescaled so that Σ w·s = 1.
    """
    targets = dict.fromkeys(sizes, 1.0) if targets is None else targets
    if sizes.keys() != targets.keys():
        raise ValueError(f"sizes of domains {sorted(sizes)} but targets of {sorted(targets)}: give one target each")
    wanted = shares({domain: targets[domain] for domain, size in sizes.items() if size})
    present = shares(sizes)
    return {domain: wanted[domain] / present[domain] if domain in wanted else 1.0 for domain in sizes}


def gap_weights(
    weights: Mapping[str, float], sizes: Mapping[str, float], gaps: Mapping[str, float], alpha: float = 1.0
) -> Weights:
    """w_d·clamp((m_d/m_ref)^alpha, .05, 20), rescaled so that Σ w·s = 1: more for the domain that has further to go.

    `weights` are share weights, `gaps` the m_d = E|signal| (averaged over steps), m_ref their plain mean. alpha = 0 is
    share alone, bit for bit.
    """
    if not weights.keys() == sizes.keys() == gaps.keys():
        raise ValueError(f"weights, sizes, gaps name {sorted(weights)}, {sorted(sizes)}, {sorted(gaps)}: not the same")
    present = [domain for domain, size in sizes.items() if size]
    gap_D = np.array([gaps[domain] for domain in present], dtype=np.float64)
    if alpha == 0 or not gap_D.any():  # nothing to weigh by
        return dict(weights)
    with np.errstate(divide="ignore"):  # a gap of 0 under a negative alpha: inf, which the clamp turns into 20
        factor_D = ((gap_D / gap_D.mean()) ** alpha).clip(0.05, 20.0)
    raised = {domain: weights[domain] * factor for domain, factor in zip(present, factor_D, strict=True)}
    share_of = shares(sizes)
    total = sum(raised[domain] * share_of[domain] for domain in present)
    return {domain: float(raised[domain] / total) if domain in raised else weights[domain] for domain in sizes}


def dn_weights(signals: Mapping[str, ArrayLike]) -> Weights:
    """clamp(std_all/std_d, .25, 4), population std of the signal over response tokens (arXiv 2609.35347).

    The opposite direction to `gap_weights`: less for the domain whose signal is large. Not rescaled. A domain whose
    signal has no spread (one token, or all equal) has no scale to divide by: its weight is 1.
    """
    values = {domain: np.asarray(signal, dtype=np.float64) for domain, signal in signals.items()}
    overall = np.concatenate([*values.values(), np.empty(0)])
    if not len(overall) or overall.std() == 0:
        return dict.fromkeys(values, 1.0)

    def weight(signal_N: np.ndarray) -> float:
        if np.ptp(signal_N) == 0:
            return 1.0
        return float((overall.std() / signal_N.std()).clip(0.25, 4.0))

    return {domain: weight(signal_N) if len(signal_N) else 1.0 for domain, signal_N in values.items()}

"""Which domain gets how much of the update, and a record of it: annotates samples, before the step.

s_d token share; m_d = E|signal| over the domain's tokens, a running mean; budget share = s_d·m_d·w_d / Σ. The signal is
the teacher's log-ratio to the engine where there is a teacher, else the advantage; that of a demonstration is known
after the step, and given to `observe` then. The rules are in objectives/balance.py; kind "none" changes nothing and
records all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from onepolicy.config import BalanceConfig
from onepolicy.objectives.balance import dn_weights, gap_weights, share_weights, shares
from onepolicy.types import Array, Sample


class Balancer:
    """Holds the running means, which a checkpoint has to remember (`state`, `load_state`)."""

    def __init__(self, config: BalanceConfig, domains: Sequence[str]) -> None:
        if config.targets is not None and config.targets.keys() != set(domains):
            raise ValueError(
                f"balance.targets names {sorted(config.targets)}, the domains are {sorted(domains)}: give one each"
            )
        self.config, self.domains = config, list(domains)
        self.gaps: dict[str, float] = {}

    def annotate(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Scale the samples' weights, domain by domain; the row of weights and shares to log."""
        signals = signals_of(samples, self.domains)
        tokens = {domain: float(len(signal_N)) for domain, signal_N in signals.items()}
        for sample in samples:
            tokens[sample.task.domain] += sample.length if sample.weights.ce else 0
        self.observe(signals)
        weights = self.weights(tokens, signals)
        for sample in samples:
            weight = weights[sample.task.domain]
            if weight != 1.0:
                sample.weights.pg *= weight
                sample.weights.distill *= weight
                sample.weights.ce *= weight
        budget = shares({d: weights[d] * tokens[d] * self.gaps.get(d, 0.0) for d in self.domains})
        row = {f"balance/{d}": weights[d] for d in self.domains} | {f"budget/{d}": budget[d] for d in self.domains}
        return row | {f"gap/{domain}": gap for domain, gap in self.gaps.items()}

    def observe(self, signals: Mapping[str, ArrayLike]) -> None:
        """Move the running means on by one step's signals."""
        for domain, signal_N in signals.items():
            if np.size(signal_N):
                gap = float(np.abs(signal_N).mean())
                before = self.gaps.get(domain, gap)
                self.gaps[domain] = self.config.decay * before + (1 - self.config.decay) * gap

    def weights(self, tokens: Mapping[str, float], signals: Mapping[str, Array]) -> dict[str, float]:
        """Of a step with so many tokens of each domain, or such shares of them."""
        match self.config.kind:
            case "none":
                return dict.fromkeys(self.domains, 1.0)
            case "share":
                return share_weights(tokens, self.config.targets)
            case "gap":
                gaps = {domain: self.gaps.get(domain, 0.0) for domain in self.domains}
                return gap_weights(share_weights(tokens, self.config.targets), tokens, gaps, self.config.alpha)
            case "dn":
                return dn_weights(signals)

    def state(self) -> dict[str, float]:
        return dict(self.gaps)

    def load_state(self, state: Mapping[str, float]) -> None:
        self.gaps = dict(state)


def signals_of(samples: Sequence[Sample], domains: Sequence[str]) -> dict[str, Array]:
    """Every domain's signals, token by token."""
    return {domain: _signals([s for s in samples if s.task.domain == domain]) for domain in domains}


def _signals(samples: Sequence[Sample]) -> Array:
    """Every token's signal, end to end; one that the teacher did not score, or of a failed grading, has none."""
    parts = [np.empty(0, dtype=np.float32)]
    for sample in samples:
        if sample.teacher is not None:
            signal_R = sample.teacher.logprobs_R - sample.logprobs_R
            parts.append(signal_R[np.isfinite(signal_R)])
        elif sample.advantages_R is not None and not sample.grader_failed:
            parts.append(sample.advantages_R)
    return np.concatenate(parts)

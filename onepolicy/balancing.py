"""The balancer: scales samples by domain before a step, so that each domain gets its target fraction of the update.

s_d is a domain's share of the update, m_d a running mean of its |signal|: both from update_plan.domain_shares, which
reads the coefficients that the loss is made of. The budget share is s_d·m_d·w_d / Σ. The signal is the teacher's
log-ratio to the engine where there is a teacher, else the advantage. The signal of a demonstration is known after the
step, and given to `observe` then. The rules are in objectives/balance.py; kind "none" changes nothing and records all
the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onepolicy.config import BalanceConfig, LossConfig
from onepolicy.objectives.balance import dn_weights, gap_weights, share_weights, shares
from onepolicy.types import Array, Sample
from onepolicy.update_plan import DomainShare, domain_shares


class Balancer:
    """Holds the running means, which a checkpoint has to remember (`state`, `load_state`)."""

    def __init__(self, config: BalanceConfig, domains: Sequence[str], loss: LossConfig) -> None:
        if config.targets is not None and config.targets.keys() != set(domains):
            raise ValueError(
                f"balance.targets names {sorted(config.targets)}, the domains are {sorted(domains)}: give one each"
            )
        self.config, self.domains, self.loss = config, list(domains), loss
        self.gaps: dict[str, float] = {}

    def annotate(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Scale the samples' weights, domain by domain; the row of weights and shares to log."""
        found = domain_shares(samples, self.domains, self.loss)
        self.observe({domain: share.gap for domain, share in found.items() if share.gap is not None})
        weights = self.weights({domain: share.size for domain, share in found.items()}, samples)
        for sample in samples:
            weight = weights[sample.task.domain]
            if weight != 1.0:
                sample.weights.pg *= weight
                sample.weights.distill *= weight
                sample.weights.ce *= weight
        budget = shares({d: weights[d] * self._signal(d, found[d]) for d in self.domains})
        row = {f"balance/{d}": weights[d] for d in self.domains} | {f"budget/{d}": budget[d] for d in self.domains}
        return row | {f"gap/{domain}": gap for domain, gap in self.gaps.items()}

    def observe(self, gaps: Mapping[str, float]) -> None:
        """Move the running means on by one step's mean |signal| of each domain."""
        for domain, gap in gaps.items():
            before = self.gaps.get(domain, gap)
            self.gaps[domain] = self.config.decay * before + (1 - self.config.decay) * gap

    def weights(self, sizes: Mapping[str, float], samples: Sequence[Sample]) -> dict[str, float]:
        """Of an update in which the domains have these sizes, or such shares."""
        match self.config.kind:
            case "none":
                return dict.fromkeys(self.domains, 1.0)
            case "share":
                return share_weights(sizes, self.config.targets)
            case "gap":
                gaps = {domain: self.gaps.get(domain, 0.0) for domain in self.domains}
                return gap_weights(share_weights(sizes, self.config.targets), sizes, gaps, self.config.alpha)
            case "dn":
                return dn_weights(signals_of(samples, self.domains))

    def state(self) -> dict[str, float]:
        return dict(self.gaps)

    def load_state(self, state: Mapping[str, float]) -> None:
        self.gaps = dict(state)

    def _signal(self, domain: str, share: DomainShare) -> float:
        """Σ |coefficient|·|signal| of this step; by the running mean where the signal is not known yet."""
        unknown = share.size - share.signalled
        return share.signal + unknown * self.gaps.get(domain, 0.0)


def signals_of(samples: Sequence[Sample], domains: Sequence[str]) -> dict[str, Array]:
    """Every domain's signals, token by token, before any transform; a token without a teacher's score has none."""
    parts: dict[str, list[Array]] = {domain: [np.empty(0, dtype=np.float32)] for domain in domains}
    for sample in samples:
        if sample.teacher is not None:
            signal_R = sample.teacher.logprobs_R - sample.logprobs_R
            parts[sample.task.domain].append(signal_R[np.isfinite(signal_R)])
        elif sample.advantages_R is not None and not sample.grader_failed:
            parts[sample.task.domain].append(sample.advantages_R)
    return {domain: np.concatenate(arrays) for domain, arrays in parts.items()}

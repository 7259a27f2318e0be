"""The plan of one update: which token counts how much in which loss component, over the whole batch.

The learner multiplies each token's loss by its coefficient and adds up, and balancing reads a domain's share of the
update from the same numbers. So a share of 0.5 is half of what the optimizer sees, under every reduction:

    answers of 4 and of 40 tokens, one each    token: 4/44 and 40/44     sequence: 0.5 and 0.5
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onepolicy.config import LossConfig
from onepolicy.objectives import reduce, weighting
from onepolicy.types import Array, Sample

COMPONENTS = ("pg", "distill", "ce")


def coefficients(samples: Sequence[Sample], loss: LossConfig) -> dict[str, list[Array]]:
    """Per component, a float64 coefficient for each of a sample's R tokens; a token without a teacher's score gets 0.

    The factors of `loss.distill.weighting` are part of them: c·ℓ(A) = ℓ(c·A) for c >= 0, clipped or not.
    """
    everywhere = [np.ones(sample.length, dtype=bool) for sample in samples]
    taught = [np.isfinite(teacher_logprobs(sample)) for sample in samples]
    found: dict[str, list[Array]] = {}
    for component in COMPONENTS:
        weights = [getattr(sample.weights, component) for sample in samples]
        valid = taught if component == "distill" else everywhere
        found[component] = reduce.coefficients(valid, weights, loss.reduction, loss.length)
    for number, sample in enumerate(samples):
        if sample.weights.distill:
            factors = weighting.token_weights(loss.distill, sample)
            found["distill"][number] = found["distill"][number] * factors
    return found


def join_means(samples: Sequence[Sample], loss: LossConfig) -> None:
    """Scale weights so that all components share one mean, over all samples of the update that count in any.

    Without it each component has a mean of its own: with 512 samples for policy gradient and 64 for distillation, both
    have the same part in the update. With it their parts are 512 : 64 (under the token reduction, as their tokens).
    """
    by_component = coefficients(samples, loss)
    counted: dict[str, list[int]] = {}
    for component in COMPONENTS:
        counted[component] = [i for i, c_R in enumerate(by_component[component]) if np.any(c_R)]
    everyone = sorted({i for members in counted.values() for i in members})
    total = _size_of_mean([samples[i] for i in everyone], loss)
    for component, members in counted.items():
        fraction = _size_of_mean([samples[i] for i in members], loss) / total if members else 1.0
        for i in members:
            setattr(samples[i].weights, component, getattr(samples[i].weights, component) * fraction)


def _size_of_mean(samples: Sequence[Sample], loss: LossConfig) -> int:
    """The number that a mean over these samples divides by: tokens, or samples."""
    return sum(sample.length for sample in samples) if loss.reduction == "token" else len(samples)


def teacher_logprobs(sample: Sample) -> Array:
    """[R]: of the sampled tokens; 0 where nobody teaches."""
    return sample.teacher.logprobs_R if sample.teacher is not None else np.zeros(sample.length, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class DomainShare:
    """One domain's part of an update. `size` is Σ |coefficient| over its tokens and over all components.

    `signal` is Σ |coefficient|·|signal| where the signal is known before the step: the teacher's log-ratio to the
    engine for distillation, the advantage for policy gradient; `signalled` is the part of `size` that it is over.
    """

    size: float = 0.0
    signal: float = 0.0
    signalled: float = 0.0

    @property
    def gap(self) -> float | None:
        """Mean |signal|, weighted as the update weighs its tokens; None where no signal is known."""
        return self.signal / self.signalled if self.signalled else None


def domain_shares(samples: Sequence[Sample], domains: Sequence[str], loss: LossConfig) -> dict[str, DomainShare]:
    """Every domain's part of the update that these samples would make."""
    found = {domain: DomainShare() for domain in domains}
    for sample, parts in zip(samples, _per_sample(samples, loss), strict=True):
        was = found[sample.task.domain]
        size, signal, signalled = parts
        found[sample.task.domain] = DomainShare(was.size + size, was.signal + signal, was.signalled + signalled)
    return found


def _per_sample(samples: Sequence[Sample], loss: LossConfig) -> Iterator[tuple[float, float, float]]:
    """(size, signal, signalled) of each sample."""
    by_component = coefficients(samples, loss)
    for number, sample in enumerate(samples):
        size = signal = signalled = 0.0
        for component in COMPONENTS:
            coefficient_R = np.abs(by_component[component][number])
            size += float(coefficient_R.sum())
            signal_R = _signal(sample, component)
            if signal_R is not None:
                counted_R = np.isfinite(signal_R) & (coefficient_R > 0)
                signal += float((coefficient_R[counted_R] * np.abs(signal_R[counted_R])).sum())
                signalled += float(coefficient_R[counted_R].sum())
        yield size, signal, signalled


def _signal(sample: Sample, component: str) -> Array | None:
    """[R] before any transform; None where it is not known before the step."""
    if component == "distill" and sample.teacher is not None:
        signal_R: Array = sample.teacher.logprobs_R - sample.logprobs_R
        return signal_R
    return sample.advantages_R if component == "pg" else None

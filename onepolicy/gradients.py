"""Do two domains pull the weights the same way? The cosine between the gradients that their rollouts give.

    cosine(a, b) = g_a·g_b / (|g_a||g_b|)       g_d: the gradient of the run's own loss on rollouts of domain d alone

1: what helps one helps the other. 0: they do not meet. Negative: each undoes the other's work, which is where CoPD's
inter-capability divergence comes from.

Careful: the gradient of a few rollouts is mostly noise, and noise pulls every cosine to 0. So each domain has two
batches, from random streams of their own. cosine(d, d) is between these two: how much of a domain's own gradient noise
leaves to be seen. cosine(a, b) is the mean over the four pairs of batches, and `corrected` divides it by
√(cosine(a, a)·cosine(b, b)), Spearman's correction for attenuation, where both are at least CLEAR.

Exact, in float64 sums over all parameters. Costs one forward and backward pass over all rollouts, and 8 bytes of CPU
memory per parameter and domain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onepolicy.learner import Learner
from onepolicy.types import Sample

CLEAR = 0.1  # a domain that shares less with itself is all noise: take more prompts

Matrix = dict[str, dict[str, float | None]]


@dataclass(frozen=True, slots=True)
class GradientReport:
    """By pair of domains; None where there is no gradient at all, or no clear one to correct by. `norms`: a batch's."""

    samples: dict[str, int]
    norms: dict[str, float]
    cosine: Matrix
    corrected: Matrix


def compare_gradients(learner: Learner, batches: Mapping[str, tuple[list[Sample], list[Sample]]]) -> GradientReport:
    """Two batches per domain, annotated for the learner's loss. No weight moves."""
    gradients = {domain: [gradient(learner, samples) for samples in pair] for domain, pair in batches.items()}
    norms = {domain: [math.sqrt(dot(g, g)) for g in pair] for domain, pair in gradients.items()}

    def cosine(a: str, b: str) -> float | None:
        pairs = [(0, 1)] if a == b else [(0, 0), (0, 1), (1, 0), (1, 1)]
        found = [
            dot(gradients[a][i], gradients[b][j]) / (norms[a][i] * norms[b][j])
            for i, j in pairs
            if 0 < norms[a][i] < math.inf and 0 < norms[b][j] < math.inf
        ]
        return sum(found) / len(found) if found else None

    cosines: Matrix = {a: {} for a in batches}
    for a in batches:
        for b in batches:
            cosines[a][b] = cosines[b][a] if a in cosines[b] else cosine(a, b)

    def corrected(a: str, b: str) -> float | None:
        value, own = cosines[a][b], [cosines[a][a], cosines[b][b]]
        clear = [one for one in own if one is not None and one >= CLEAR]
        return None if value is None or len(clear) < 2 else value / math.sqrt(clear[0] * clear[1])

    return GradientReport(
        {domain: sum(map(len, pair)) for domain, pair in batches.items()},
        {domain: sum(pair) / 2 for domain, pair in norms.items()},
        cosines,
        {a: {b: corrected(a, b) for b in batches if b != a} for a in batches},
    )


def gradient(learner: Learner, samples: Sequence[Sample]) -> list[Tensor]:
    """Of the learner's loss on these samples, on the CPU: one tensor per parameter."""
    learner.backward(samples)
    kept = [torch.zeros(0) if p.grad is None else p.grad.detach().float().cpu() for p in learner.parameters]
    learner.optimizer.zero_grad(set_to_none=True)
    return kept


def dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """A parameter without a gradient counts as 0."""
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a.numel() and b.numel()]
    return sum(torch.dot(a.flatten().double(), b.flatten().double()).item() for a, b in pairs)

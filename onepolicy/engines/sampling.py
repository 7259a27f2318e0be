"""Draws tokens: every response has random numbers of its own, and a token follows from one of them and the logits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from onepolicy.engines.base import Sampling


def uniforms(seed: int, group: int, index: int) -> Iterator[float]:
    """Endless random numbers in [0, 1) that belong to one answer, however it is batched."""
    own = generator(seed, group, index)
    while True:
        yield from own.random(64).tolist()


def generator(seed: int, group: int, index: int, part: int = 0) -> np.random.Generator:
    """Philox, keyed by an answer's three numbers. Parts of its stream are 2^192 numbers apart: they never meet."""
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, (group << 32) + index], counter=[0, 0, 0, part]))


def draw(
    logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling, barred_BV: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One token per row and its log-probability, by inverting the distribution function at `uniforms_B`.

    Barred tokens are not drawn. The log-probability in a row that has some is that of the whole softmax, barred tokens
    included, as a learner computes it.
    """
    drawn_BV = logits_BV if barred_BV is None else logits_BV.masked_fill(barred_BV, -torch.inf)
    if sampling.temperature == 0:
        logprobs_BV = drawn_BV.log_softmax(-1)
        tokens_B1 = logprobs_BV.argmax(-1, keepdim=True)
    else:
        logprobs_BV = truncate(drawn_BV / sampling.temperature, sampling.top_k, sampling.top_p).log_softmax(-1)
        # float64, because 150,000 float32 terms round at 1e-7, which is more than many a token's probability.
        wide = torch.float32 if logits_BV.device.type == "mps" else torch.float64
        cumulative_BV = logprobs_BV.exp().cumsum(-1, dtype=wide)
        target_B1 = uniforms_B.to(wide).to(logits_BV.device)[:, None] * cumulative_BV[:, -1:]
        tokens_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True).clamp(max=logits_BV.shape[1] - 1)
        # In float32, or summed in parallel, rounding may name a token of probability 0: take the most likely instead.
        likely_B1 = logprobs_BV.argmax(-1, keepdim=True)
        tokens_B1 = torch.where(logprobs_BV.gather(-1, tokens_B1) == -torch.inf, likely_B1, tokens_B1)
    if barred_BV is not None:
        whole_BV = (logits_BV / (sampling.temperature or 1.0)).log_softmax(-1)
        logprobs_BV = torch.where(barred_BV.any(-1, keepdim=True), whole_BV, logprobs_BV)
    return tokens_B1[:, 0], logprobs_BV.gather(-1, tokens_B1)[:, 0]


def truncate(logits_BV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set to -inf all but the `top_k` largest (0: all), then all but the fewest that hold `top_p` of what is left."""
    if 0 < top_k < logits_BV.shape[1]:
        values, ids = logits_BV.topk(top_k)
        logits_BV = torch.full_like(logits_BV, -torch.inf).scatter(-1, ids, values)
    if top_p < 1:
        values, ids = logits_BV.sort(descending=True)
        probs = values.softmax(-1)
        outside = probs.cumsum(-1) - probs >= top_p  # the mass before it suffices; never true for the first
        logits_BV = logits_BV.masked_fill(outside.scatter(-1, ids, outside), -torch.inf)
    return logits_BV

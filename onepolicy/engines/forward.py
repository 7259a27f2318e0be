"""From samples to numbers per token, without ever holding [batch, time, vocabulary].

The backbone runs on length-sorted micro-batches and keeps only the hidden states that predict a token the policy
wrote: [N, H], no padding. The output head then runs over chunks of N; under autograd each chunk is recomputed in the
backward pass, so the largest tensor is [chunk, V]. Learner and frozen teachers share this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel

from onepolicy.types import Sample, TokenScores, Want

CHUNK_BYTES = 2**28  # of float32 logits and what is derived from them, see chunk_length
LIVE_COPIES = 8  # tensors of [chunk, V] alive at once in the worst case, a divergence under autograd


class Head:
    """Hidden states → logits in float32, with whatever the architecture does after its last projection.

    `project` is the projection: the model's live module, or a frozen teacher's mapped weights. Soft-capping (Gemma)
    and scaling (Cohere, Granite) are applied as the model's config says; `check_head` proves it. `vocabulary` cuts
    rows that pad the vocabulary.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        project: Callable[[Tensor], Tensor],
        device: torch.device,
        vocabulary: int | None = None,
    ) -> None:
        text = config.get_text_config()
        self.project, self.device = project, device
        self.softcap = getattr(text, "final_logit_softcapping", None)
        self.scale = getattr(text, "logit_scale", None) or 1.0 / (getattr(text, "logits_scaling", None) or 1.0)
        self.vocabulary = min(vocabulary or text.vocab_size, text.vocab_size)

    def logits(self, hidden_CH: Tensor) -> Tensor:
        logits_CV = self.project(hidden_CH).float()[:, : self.vocabulary]
        if self.scale != 1.0:
            logits_CV = logits_CV * self.scale
        return self.softcap * torch.tanh(logits_CV / self.softcap) if self.softcap else logits_CV


def live_head(model: PreTrainedModel) -> Head:
    """The head of a model that may be training: it sees the weights as they are at each call."""
    return Head(model.config, model.get_output_embeddings(), model.device)


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Refuse an architecture whose logits are not head(backbone(x)): a probe of a few tokens must agree.

    Raises ValueError naming the class. Cheap: one forward pass of six tokens.
    """
    device = next(model.parameters()).device
    ids = torch.arange(6, device=device)[None] % model.config.get_text_config().vocab_size
    training, _ = model.training, model.eval()
    expected = model(input_ids=ids).logits[0].float()
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    actual = live_head(model).logits(hidden)
    model.train(training)
    gap = (expected - actual).abs().max().item()
    if not gap <= 1e-3 * max(1.0, expected.abs().max().item()):
        raise ValueError(
            f"{type(model).__name__} post-processes its logits in a way that onepolicy does not know (its own and ours "
            f"differ by {gap:.3g}): add the step to engines/forward.py Head"
        )


def plan_batches(lengths: Sequence[int], tokens_per_batch: int, keys: Sequence[str] | None = None) -> list[list[int]]:
    """Indices in micro-batches of similar length: rows × longest row ≤ tokens_per_batch (one row always fits).

    Rows with different `keys` never share a micro-batch; those of one key are neighbours.
    """
    keys = keys or [""] * len(lengths)
    batches: list[list[int]] = []
    longest, key = 0, None
    for i in sorted(range(len(lengths)), key=lambda i: (keys[i], -lengths[i], i)):
        if not batches or keys[i] != key or longest * (len(batches[-1]) + 1) > tokens_per_batch:
            batches.append([])
            longest, key = lengths[i], keys[i]
        batches[-1].append(i)
    return batches


def predicting_states(model: PreTrainedModel, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """One micro-batch through the backbone: (hidden_NH that predict the tokens the policy wrote, those tokens_N)."""
    device = next(model.parameters()).device
    lengths = [len(s.token_ids_T) for s in samples]
    ids_BT = np.zeros((len(samples), max(lengths)), dtype=np.int64)
    mask_BT = np.zeros_like(ids_BT, dtype=bool)
    for row, sample in enumerate(samples):
        ids_BT[row, : lengths[row]] = sample.token_ids_T
        mask_BT[row, : lengths[row]] = sample.mask_T
    ids = torch.from_numpy(ids_BT).to(device)
    attention = None  # rows of equal length need none, and sdpa is faster without
    if min(lengths) != max(lengths):
        attention = torch.arange(max(lengths), device=device)[None] < torch.tensor(lengths, device=device)[:, None]
    hidden_BTH = model.base_model(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state
    rows, columns = (torch.from_numpy(axis).to(device) for axis in np.nonzero(mask_BT))
    return hidden_BTH[rows, columns - 1], ids[rows, columns]


@dataclass(slots=True)
class TokenStats:
    """Per token: the policy's log-probability, its entropy (nats, no gradient), and a divergence if one was asked."""

    logprobs_N: Tensor
    entropy_N: Tensor
    divergence_N: Tensor | None


Divergence = Callable[[Tensor, slice], Tensor]  # (student log-probs [C, V], the chunk) → [C]


def chunk_length(vocabulary: int) -> int:
    return max(1, CHUNK_BYTES // (4 * LIVE_COPIES * vocabulary))


def token_stats(
    head: Head, hidden_NH: Tensor, tokens_N: Tensor, temperature: float, divergence: Divergence | None = None
) -> TokenStats:
    """Run the head over chunks of N tokens. Differentiable; each chunk is recomputed in the backward pass."""

    def one_chunk(hidden_CH: Tensor, tokens_C: Tensor, chunk: slice) -> tuple[Tensor, ...]:
        logprobs_CV = torch.log_softmax(head.logits(hidden_CH) / temperature, dim=-1)
        with torch.no_grad():
            entropy_C = -(logprobs_CV.exp() * logprobs_CV.clamp(min=-1e4)).sum(-1)
        sampled_C = logprobs_CV.gather(-1, tokens_C[:, None]).squeeze(-1)
        return (sampled_C, entropy_C) if divergence is None else (sampled_C, entropy_C, divergence(logprobs_CV, chunk))

    N, C = len(tokens_N), chunk_length(head.vocabulary)
    chunks = [slice(start, min(start + C, N)) for start in range(0, N, C)] or [slice(0, 0)]
    if len(chunks) == 1:  # nothing to save: skip the recomputation
        parts = [one_chunk(hidden_NH, tokens_N, chunks[0])]
    else:
        parts = [
            checkpoint(one_chunk, hidden_NH[c], tokens_N[c], c, use_reentrant=False, preserve_rng_state=False)
            for c in chunks
        ]
    joined = [torch.cat(column) for column in zip(*parts, strict=True)]
    return TokenStats(joined[0], joined[1], joined[2] if divergence else None)


@torch.no_grad()
def score_samples(
    model: PreTrainedModel,
    head: Head,
    samples: Sequence[Sample],
    want: Want,
    *,
    source: str,
    temperature: float,
    tokens_per_batch: int,
) -> list[TokenScores]:
    """Score samples in length-sorted batches; results in the order given. Empty responses get empty scores."""
    results: dict[int, TokenScores] = {}
    training, _ = model.training, model.eval()
    for batch in plan_batches([len(s.token_ids_T) for s in samples], tokens_per_batch):
        rows = [samples[i] for i in batch]
        hidden_NH, tokens_N = predicting_states(model, rows)
        bounds = np.cumsum([0] + [row.length for row in rows])
        columns = list(_scored_columns(head, hidden_NH, tokens_N, want, temperature))
        for i, start, stop in zip(batch, bounds, bounds[1:], strict=False):
            part = [None if column is None else column[start:stop] for column in columns]
            results[i] = TokenScores(source, part[0], *part[1:], head=head if want.kind == "full" else None)  # type: ignore[arg-type]
    model.train(training)
    return [results[i] for i in range(len(samples))]


def _scored_columns(
    head: Head, hidden_NH: Tensor, tokens_N: Tensor, want: Want, temperature: float
) -> Iterator[np.ndarray | None]:
    """logprobs_N, topk_ids_NK, topk_logprobs_NK, hidden_NH as numpy; None where not wanted."""
    top: list[tuple[Tensor, Tensor]] = []

    def keep_top(logprobs_CV: Tensor, _: slice) -> Tensor:
        values, ids = logprobs_CV.topk(min(want.k, logprobs_CV.shape[-1]))
        top.append((values.cpu(), ids.cpu()))
        return logprobs_CV[:, 0]

    stats = token_stats(head, hidden_NH, tokens_N, temperature, keep_top if want.kind == "topk" else None)
    yield stats.logprobs_N.float().cpu().numpy()
    yield torch.cat([ids for _, ids in top]).to(torch.int32).numpy() if top else None
    yield torch.cat([values for values, _ in top]).float().numpy() if top else None
    yield hidden_NH.float().cpu().numpy() if want.kind == "full" else None

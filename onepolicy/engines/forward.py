"""From samples to numbers per token, without ever holding [batch, time, vocabulary].

The backbone runs on length-sorted micro-batches and keeps only the hidden states that predict a token the policy
wrote: [N, H], no padding. The output head then runs over chunks of N, so that the largest tensor is [chunk, V]: the
learner takes each chunk's loss backward before it goes to the next (see Learner). Frozen teachers share this file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

from onepolicy.engines.positions import PositionRule
from onepolicy.objectives.divergences import at_least_float32
from onepolicy.types import Sample, TokenScores, Want

CHUNK_BYTES = {"cpu": 3 * 2**27, "cuda": 2**32}  # of float32 logits and what is derived from them, see chunk_length
LIVE_COPIES = 8  # tensors of [chunk, V] alive at once in the worst case, a divergence under autograd
ALIKE = 0.8  # rows at least this share of the longest are padded to it; measured: half the time of a mixed-length step
WORTHWHILE = 1 / 16  # of tokens_per_batch: micro-batches smaller than this are not closed for the sake of padding
PLAIN_LAYERS = {"DynamicLayer", "DynamicSlidingWindowLayer"}  # of a cache that can be padded and repeated
SHARING = 1.25  # share prompts where reading them row by row would take this many times the tokens
LOUD = 50.0  # size of the probe's logits in check_head: large enough for a soft cap to show
# check_head: largest difference, as a fraction of the largest logit. In bfloat16 each step rounds at 1/256.
HEAD_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 4e-3}


class Head:
    """Hidden states → logits, float32 or better, with whatever the architecture does after its last projection.

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
        # Gemma's name for its cap, and RecurrentGemma's
        self.softcap = getattr(text, "final_logit_softcapping", None) or getattr(text, "logits_soft_cap", None)
        self.scale = getattr(text, "logit_scale", None) or 1.0 / (getattr(text, "logits_scaling", None) or 1.0)
        self.vocabulary = min(vocabulary or text.vocab_size, text.vocab_size)
        self.hidden_size: int = text.hidden_size

    def logits(self, hidden_CH: Tensor) -> Tensor:
        logits_CV = at_least_float32(self.project(hidden_CH)[:, : self.vocabulary])
        if self.scale != 1.0:
            logits_CV = logits_CV * self.scale
        return self.softcap * torch.tanh(logits_CV / self.softcap) if self.softcap else logits_CV

    def logprobs(self, hidden_CH: Tensor, temperature: float) -> Tensor:
        logits_CV = self.logits(hidden_CH)
        return torch.log_softmax(logits_CV if temperature == 1.0 else logits_CV / temperature, dim=-1)


def live_head(model: PreTrainedModel, vocabulary: int | None = None) -> Head:
    """The head of a model that may be training: it sees the weights as they are at each call."""
    projection = model.get_output_embeddings()

    def project(hidden_CH: Tensor) -> Tensor:
        logits_CV: Tensor = projection(hidden_CH.to(projection.weight.dtype))
        return logits_CV

    return Head(model.config, project, model.device, vocabulary)


def frozen_head(model: PreTrainedModel, vocabulary: int | None = None) -> Head:
    """The head with the weights of this moment, whatever the model learns afterwards."""
    live = model.get_output_embeddings()
    weight = live.weight.detach().clone()
    bias = None if getattr(live, "bias", None) is None else live.bias.detach().clone()

    def project(hidden_CH: Tensor) -> Tensor:
        return linear(hidden_CH.to(weight.dtype), weight, bias)

    return Head(model.config, project, model.device, vocabulary)


def backbone(model: PreTrainedModel) -> torch.nn.Module | None:
    """The part below the output projection; None where the architecture has none of its own."""
    if model.base_model is not model:
        return model.base_model
    # Llama 4 keeps it as `model`, and its class names another place
    body = getattr(model, "model", None)
    return body if isinstance(body, PreTrainedModel) else None


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Refuse an architecture whose logits are not Head(backbone(x)). Cheap: two passes over six tokens.

    The probe's hidden states are made so large that a soft cap bites; near 0 it would look like the identity.
    Raises ValueError naming the class, or saying that the weights are broken.
    """
    name, projection = type(model).__name__, model.get_output_embeddings()
    body = backbone(model)
    if projection is None or body is None:
        raise ValueError(f"{name} is no backbone with an output projection: onepolicy cannot take its head apart")
    device = next(model.parameters()).device
    ids = torch.arange(6, device=device)[None] % model.config.get_text_config().vocab_size
    model.eval()
    hidden_TH = body(input_ids=ids, use_cache=False).last_hidden_state[0].to(projection.weight.dtype)
    quiet = projection(hidden_TH).abs().max().item()
    if not np.isfinite(quiet):
        raise ValueError(f"{name} from {model.name_or_path!r} gives logits that are not finite: broken weights")
    hook = projection.register_forward_pre_hook(lambda _, args: (args[0] * (LOUD / max(quiet, 1e-6)),))
    try:
        theirs_TV = model(input_ids=ids, use_cache=False).logits[0].float()
        ours_TV = live_head(model).logits(hidden_TH)
    finally:
        hook.remove()
    gap = (theirs_TV - ours_TV).abs().max().item()
    if not gap <= HEAD_TOLERANCE[model.dtype] * theirs_TV.abs().max().item():
        raise ValueError(
            f"{name} post-processes its logits in a way that onepolicy does not know (its own and ours differ by "
            f"{gap:.3g} at logits of {LOUD:.0f}): add the step to engines/forward.py Head"
        )


def plan_batches(lengths: Sequence[int], tokens_per_batch: int, keys: Sequence[int] | None = None) -> list[list[int]]:
    """Indices in micro-batches of similar length: rows × longest row ≤ tokens_per_batch (one row always fits).

    A shorter row opens a new micro-batch where padding it would waste much and the old one is large enough to be
    worth its overhead. Rows with different `keys` never share a micro-batch; those of one key are neighbours.
    """
    keys = keys or [0] * len(lengths)
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (keys[i], -lengths[i], i)):
        first = batches[-1][0] if batches else i  # the longest of its micro-batch
        tokens = lengths[first] * (len(batches[-1]) + 1) if batches else 0
        wasteful = lengths[i] < ALIKE * lengths[first] and tokens > WORTHWHILE * tokens_per_batch
        if not batches or keys[i] != keys[first] or tokens > tokens_per_batch or wasteful:
            batches.append([])
        batches[-1].append(i)
    return batches


def numbered(things: Sequence[Any]) -> list[int]:
    """Equal things get equal numbers, in order of first appearance."""
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(thing, len(numbers)) for thing in things]


def predicting_states(model: PreTrainedModel, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """One micro-batch through the backbone: (hidden_NH that predict the tokens the policy wrote, those tokens_N).

    Rollouts of one prompt read it once (`_shared_states`) where that saves enough, else each row on its own. The last
    token of a row predicts nothing and is not read. All rows must have one position key (see `position_keys`).
    """
    assert len(set(position_keys(model, samples))) == 1, "rows whose positions differ must not share a forward pass"
    prompts: dict[bytes, int] = {}
    group_B = [prompts.setdefault(s.token_ids_T[: s.prompt_length].tobytes(), len(prompts)) for s in samples]
    longest = max(s.prompt_length for s in samples)
    alone = len(samples) * (max(len(s.token_ids_T) for s in samples) - 1)
    shared = len(prompts) * longest + len(samples) * (max(len(s.token_ids_T) - s.prompt_length for s in samples) - 1)
    if alone >= SHARING * shared and can_share(model) and _prompts_keep_their_positions(model, samples):
        hidden_BTH, starts_B = _shared_states(model, samples, group_B), [s.prompt_length for s in samples]
    else:
        ids = _ids(model, [s.token_ids_T[:-1] for s in samples])
        hidden_BTH = _run(model, input_ids=ids, use_cache=False)
        starts_B = [1] * len(samples)
    where = [np.flatnonzero(s.mask_T) for s in samples]
    before_N = [
        columns - start + row * hidden_BTH.shape[1]
        for row, (columns, start) in enumerate(zip(where, starts_B, strict=True))
    ]
    tokens_N = np.concatenate([s.token_ids_T[columns] for s, columns in zip(samples, where, strict=True)]).astype(
        np.int64
    )
    index_N = torch.from_numpy(np.concatenate(before_N)).to(model.device)
    return hidden_BTH.flatten(0, 1).index_select(0, index_N), torch.from_numpy(tokens_N).to(model.device)


def position_keys(model: PreTrainedModel, samples: Sequence[Sample]) -> list[tuple[int, ...]]:
    """Rows with unlike keys must not share a forward pass: see positions.py. All are equal but for LongRoPE and NTK."""
    rule = PositionRule(model.config)
    return [rule.key(len(sample.token_ids_T) - 1) for sample in samples]


def _prompts_keep_their_positions(model: PreTrainedModel, samples: Sequence[Sample]) -> bool:
    """Whether each prompt, read without its response, has the positions that it has within the whole row."""
    rule = PositionRule(model.config)
    return all(rule.key(s.prompt_length) == rule.key(len(s.token_ids_T) - 1) for s in samples)


def can_share(model: PreTrainedModel) -> bool:
    """Whether a cache filled by prompts can be handed to their rollouts: attention layers only, nothing recomputed."""
    plain = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers} <= PLAIN_LAYERS
    name = "is_activation_checkpointing"  # before transformers 5.20 or so it had its old name
    return plain and not (getattr(model, name) if hasattr(model, name) else model.is_gradient_checkpointing)


def _shared_states(model: PreTrainedModel, samples: Sequence[Sample], group_B: Sequence[int]) -> Tensor:
    """[B, R, H]: what predicts each token after the prompt. Each distinct prompt passes once, under autograd too.

    Prompts are padded on the left, so that they end where the answers begin.
    """
    prompts = [samples[group_B.index(g)] for g in range(max(group_B) + 1)]
    width = max(s.prompt_length for s in prompts)
    pads_G1 = torch.tensor([[width - s.prompt_length] for s in prompts], device=model.device)
    ids_GT = _ids(model, [np.pad(s.token_ids_T[: s.prompt_length], (width - s.prompt_length, 0)) for s in prompts])
    ids_BR = _ids(model, [s.token_ids_T[s.prompt_length : -1] for s in samples])
    columns = torch.arange(width + ids_BR.shape[1], device=model.device)
    seen_GC = columns >= pads_G1 if bool(pads_G1.any()) else None
    positions_GC = (columns - pads_G1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    read = _run(
        model,
        input_ids=ids_GT,
        attention_mask=None if seen_GC is None else seen_GC[:, :width].long(),
        position_ids=positions_GC[:, :width],
        past_key_values=cache,
        use_cache=True,
    )[:, -1:]
    index_B = torch.tensor(group_B, device=model.device)
    if not ids_BR.shape[1]:
        return read.index_select(0, index_B)
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.index_select(0, index_B), layer.values.index_select(0, index_B)
    rest = _run(
        model,
        input_ids=ids_BR,
        attention_mask=None if seen_GC is None else seen_GC[index_B].long(),
        position_ids=positions_GC[index_B, width:],
        past_key_values=cache,
        use_cache=True,
    )
    return torch.cat([read.index_select(0, index_B), rest], dim=1)


def _run(model: PreTrainedModel, **inputs: Any) -> Tensor:
    """[B, T, H]: the backbone's last hidden states, after its last norm."""
    body = backbone(model)
    assert body is not None, "check_head has refused a model without a backbone"
    states: Tensor = body(**inputs).last_hidden_state
    return states


def _ids(model: PreTrainedModel, rows: Sequence[np.ndarray]) -> Tensor:
    """[B, T], padded on the right: attention is causal, so no token sees that and no attention mask is needed."""
    ids_BT = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for line, row in zip(ids_BT, rows, strict=True):
        line[: len(row)] = row
    rows_of_model = model.get_input_embeddings().num_embeddings
    if ids_BT.max(initial=0) >= rows_of_model:
        raise ValueError(
            f"token id {ids_BT.max()} is to be read by {type(model).__name__} from {model.name_or_path!r}, whose "
            f"embeddings have {rows_of_model} rows: its vocabulary is not the policy's"
        )
    return torch.from_numpy(ids_BT).to(model.device)


def chunk_length(vocabulary: int, device: torch.device) -> int:
    return max(1, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"]) // (4 * LIVE_COPIES * vocabulary))


def token_chunks(head: Head, lengths: Sequence[int], whole_samples: bool = False) -> list[slice]:
    """Cuts the N axis of samples of these lengths into chunks that fit the head; `whole_samples` cuts none in two."""
    N, C = sum(lengths), chunk_length(head.vocabulary, head.device)
    if not whole_samples:
        return [slice(start, min(start + C, N)) for start in range(0, N, C)]
    bounds = [0]
    for end in accumulate(lengths):
        if end - bounds[-1] <= C and len(bounds) > 1 and end - bounds[-2] <= C:
            bounds[-1] = end
        else:
            bounds.append(end)
    return [slice(start, stop) for start, stop in pairwise(bounds)]


@torch.no_grad()
def routed_logprobs(
    heads: Sequence[Head], lengths: Sequence[int], hidden_NH: Tensor, chunk: slice, temperature: float
) -> Tensor:
    """[C, V] of one chunk of the N axis, each sample's tokens by its own head; neighbours of one head go together."""
    parts, start = list[Tensor](), chunk.start
    for head, group in groupby(zip(heads, accumulate(lengths), strict=True), key=lambda pair: pair[0]):
        stop = min(max(end for _, end in group), chunk.stop)
        if stop > start:
            parts.append(head.logprobs(hidden_NH[start:stop], temperature))
            start = stop
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(slots=True)
class TokenStats:
    """Per token: the policy's log-probability, its entropy (nats, no gradient), and a divergence if one was asked."""

    logprobs_C: Tensor
    entropy_C: Tensor
    divergence_C: Tensor | None


def token_stats(
    head: Head, hidden_CH: Tensor, tokens_C: Tensor, temperature: float, divergence_C: Callable[[Tensor], Tensor] | None
) -> TokenStats:
    """The head over one chunk of tokens; differentiable."""
    logprobs_CV = head.logprobs(hidden_CH, temperature)
    with torch.no_grad():
        entropy_C = -(logprobs_CV.exp() * logprobs_CV.clamp(min=-1e4)).sum(-1)
    sampled_C = logprobs_CV.gather(-1, tokens_C[:, None]).squeeze(-1)
    return TokenStats(sampled_C, entropy_C, divergence_C(logprobs_CV) if divergence_C else None)


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
    """Score samples in length-sorted batches; results in the order given. Empty responses get empty scores.

    Raises ValueError for a token outside the model's embeddings.
    """
    results: dict[int, TokenScores] = {}
    written = [i for i, sample in enumerate(samples) if sample.length]
    empty = [[i] for i, sample in enumerate(samples) if not sample.length]
    keys = numbered(position_keys(model, [samples[i] for i in written]))
    planned = plan_batches([len(samples[i].token_ids_T) for i in written], tokens_per_batch, keys)
    model.eval()
    for batch in [[written[j] for j in batch] for batch in planned] + empty:
        rows = [samples[i] for i in batch]
        bounds = np.cumsum([0] + [row.length for row in rows])
        if bounds[-1]:
            hidden_NH, tokens_N = predicting_states(model, rows)
        else:
            hidden_NH = torch.zeros(0, head.hidden_size, dtype=model.dtype, device=head.device)
            tokens_N = torch.zeros(0, dtype=torch.long, device=head.device)
        columns = _scored_columns(head, hidden_NH, tokens_N, want, temperature)
        for i, (start, stop) in zip(batch, pairwise(bounds), strict=True):
            part = {name: column[start:stop] for name, column in columns.items()}
            results[i] = TokenScores(source, **part, head=head if want.kind == "full" else None)
    return [results[i] for i in range(len(samples))]


def _scored_columns(
    head: Head, hidden_NH: Tensor, tokens_N: Tensor, want: Want, temperature: float
) -> dict[str, np.ndarray]:
    """The arrays of TokenScores by name, for the whole micro-batch, as numpy."""
    C = chunk_length(head.vocabulary, head.device)
    found: dict[str, list[Tensor]] = {"logprobs_R": []}
    for hidden_CH, tokens_C in zip(hidden_NH.split(C), tokens_N.split(C), strict=True):
        logprobs_CV = head.logprobs(hidden_CH, temperature)
        found["logprobs_R"].append(logprobs_CV.gather(-1, tokens_C[:, None]).squeeze(-1))
        if want.kind == "topk":
            top = logprobs_CV.topk(min(want.k, head.vocabulary))
            found.setdefault("topk_logprobs_RK", []).append(top.values)
            found.setdefault("topk_ids_RK", []).append(top.indices.int())
    if want.kind == "full":
        found["hidden_RH"] = [hidden_NH.float()]
    return {name: torch.cat(parts).cpu().numpy() for name, parts in found.items()}

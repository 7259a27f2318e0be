"""Rollouts in this process, with the learner's own weights: a short loop over the cache of any transformers model.

A prompt is read once per group and its cache repeated; a row that has ended leaves the batch; rows that wait take the
free places. All rows of a batch are right-aligned in the cache, the shorter ones padded on the left:

    cache columns   0 1 2 3 4 5 6
    row a           . . . p p t t      pad 3        p prompt, t written by the policy
    row b           p p p p t t t      pad 0

It leaves out what a serving engine is for: paged memory, prefix sharing between prompts, several devices, images.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from onepolicy.engines.base import Sampling
from onepolicy.engines.positions import PositionRule, context_length
from onepolicy.engines.precision import compute_in
from onepolicy.engines.sampling import draw, generator, uniforms
from onepolicy.engines.text import Renderer, unread
from onepolicy.engines.vocabulary import vocabulary_size
from onepolicy.types import Finish, Sample, Task

PLAIN_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer")  # names: transformers 5.17 lacks the last
SHARE = 0.125  # finished rows or free places, as a share of the batch, that are worth a copy of the cache


@dataclass(slots=True)
class Row:
    """One answer being written. `limit` bounds its tokens; `uniforms` and `noise` are its own random numbers."""

    task: Task
    group: int
    index: int
    prompt: list[int]
    limit: int
    uniforms: Iterator[float]
    noise: np.random.Generator | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Finish | None = None
    reason: str = ""
    cut: int | None = None  # where a stop string ends the text


class LocalEngine:
    """An Engine over any AutoModelForCausalLM, which shares the model's weights and puts it in evaluation mode.

    `batch_size` rows are written at a time; prompts are read in pieces of at most `prefill_tokens`, which bounds the
    memory of that pass. Neither changes the result, beyond rounding in the model. `dtype` is the precision that the
    learner of these weights computes in.

    Log-probabilities are float32, of exactly the distribution sampled from: after temperature, top-k and top-p (in
    this order), renormalised. Greedy tokens carry their log-probability under the full softmax at temperature 1.
    Padding rows of the vocabulary are never sampled (vocabulary.py). A response may not outgrow the context, nor the
    length at which all positions of its row would change (positions.py): it then ends with finish "length".
    The stop token counts as written by the policy. A task that cannot be asked (no room in the model's context, a
    chat that cannot be rendered) and logits that are not finite become samples with finish "error" and a reason.
    """

    def __init__(
        self,
        model: Any,
        renderer: Renderer,
        batch_size: int = 256,
        prefill_tokens: int = 32768,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
        self.model, self.renderer = model, renderer
        self.batch_size, self.prefill_tokens, self.dtype = batch_size, prefill_tokens, dtype
        self.vocabulary = vocabulary_size(renderer.tokenizer)
        self.positions = PositionRule(model.config)
        self.context = context_length(model.config)
        # Recurrent and other layers cannot be padded or joined here: their batches are of one prompt length.
        layers = DynamicCache(config=model.config).layers
        self.joins = all(type(layer).__name__ in PLAIN_LAYERS for layer in layers)

    def generate(
        self, tasks: Sequence[Task], n: int, sampling: Sampling, *, seed: int, version: int = 0
    ) -> Iterator[Sample]:
        """See Engine.generate. Samples come as they end; put them in order by (group, index)."""
        rows = [row for group, task in enumerate(tasks) for row in self._rows(task, group, n, sampling, seed)]
        for row in self._write(rows, sampling):
            yield self._sample(row, version)

    def resume(self, samples: Sequence[Sample], sampling: Sampling, *, seed: int) -> Iterator[Sample]:
        """See Engine.resume. Every row reads its whole history again: no cache is kept between turns."""
        rows = [self._next_turn(number, sample, sampling, seed) for number, sample in enumerate(samples)]
        for row in self._write(rows, sampling):
            sample = samples[row.group]
            if row.tokens:
                append_turn(sample, self._sample(row, sample.version))
            sample.finish, sample.reason = row.finish or "error", row.reason
            yield sample

    def room(self, prompt_length: int) -> int:
        """Tokens that can follow a prompt of so many tokens; 0 or less when none can."""
        longest = self.positions.longest_like(prompt_length)
        return min(self.context, longest or self.context) - prompt_length

    def _next_turn(self, number: int, sample: Sample, sampling: Sampling, seed: int) -> Row:
        """A row that goes on with the sample's own random numbers. Its group is its number: no two read the same."""
        prompt, reason = sample.token_ids_T.tolist(), ""
        try:
            answer = self.renderer.answer_ids(sample.task, unread(sample.history))
            if prompt[-1] not in self.renderer.stop_ids:  # a stop string has ended the turn
                prompt.append(self.renderer.end_id)
            prompt += answer
        except ValueError as error:
            reason = str(error)
        limit = min(sampling.limit(sample.task.domain) - sample.length, self.room(len(prompt)))
        finish: Finish | None = "error" if reason else "length" if limit < 1 else None
        own = islice(uniforms(seed, sample.group, sample.index), sample.length, None)
        noise = generator(seed, sample.group, sample.index, part=1 + sample.turns) if sampling.noise else None
        return Row(sample.task, number, sample.index, prompt, limit, own, noise, finish=finish, reason=reason)

    def _rows(self, task: Task, group: int, n: int, sampling: Sampling, seed: int) -> list[Row]:
        prompt, reason = [], ""
        try:
            prompt = self.renderer.prompt_ids(task)
            if not prompt:
                reason = "the prompt is empty, so the first token has nothing to be predicted from"
        except ValueError as error:  # one bad task is data, not a crash
            reason = str(error)
        limit = min(sampling.limit(task.domain), self.room(len(prompt)))
        if limit < 1 and not reason:
            reason = f"a prompt of {len(prompt)} tokens leaves no room in the model's context of {self.context}"
        finish: Finish | None = "error" if reason else None

        def own_noise(index: int) -> np.random.Generator | None:
            return generator(seed, group, index, part=1) if sampling.noise else None

        return [
            Row(task, group, i, prompt, limit, uniforms(seed, group, i), own_noise(i), finish=finish, reason=reason)
            for i in range(n)
        ]

    def _write(self, rows: list[Row], sampling: Sampling) -> Iterator[Row]:
        """Write all rows; yield each when it has ended. Rows of unlike position keys never share a batch."""
        yield from (row for row in rows if row.finish)
        self.model.eval()
        # Long ones first, so that the end of the job is not one long row; it also makes neighbours' prompts alike.
        order = (lambda row: (-row.limit, -len(row.prompt))) if self.joins else (lambda row: -len(row.prompt))
        alike: dict[tuple[int, ...], list[Row]] = {}
        for row in rows:
            if not row.finish:
                alike.setdefault(self.positions.key(len(row.prompt)), []).append(row)
        for part in alike.values():
            waiting, batch = deque(sorted(part, key=order)), Batch(self.model)
            while waiting or batch.rows:
                with compute_in(self.dtype, self.model.device):
                    ended = self._until_one_ends(waiting, batch, sampling)
                yield from ended

    def _until_one_ends(self, waiting: deque[Row], batch: Batch, sampling: Sampling) -> list[Row]:
        """Take steps until at least one row has ended. Nothing is yielded inside, so no mode leaks to the caller."""
        ended: list[Row] = []
        while not ended and (waiting or batch.rows):
            room = self.batch_size - batch.alive
            worth_it = self.joins and room >= min(len(waiting), SHARE * self.batch_size)
            if waiting and (worth_it or not batch.rows):
                new = Batch(self.model)
                logits_BV = new.read(self._take(waiting, room))
                ended = self._append(new, logits_BV, sampling)
                batch.join(new)
            else:
                logits_BV = batch.step()
                ended = self._append(batch, logits_BV, sampling)
                batch.drop_finished(SHARE)
        return ended

    def _take(self, waiting: deque[Row], room: int) -> list[Row]:
        """The next rows to read: at most `room`, and prompts of at most `prefill_tokens`, padding included."""
        rows, groups, width = [waiting.popleft()], set[int](), 0
        while waiting and len(rows) < room:
            row = waiting[0]
            groups |= {rows[-1].group, row.group}
            width = max(width, len(rows[-1].prompt), len(row.prompt))
            alike = self.joins or len(row.prompt) == len(rows[0].prompt)
            if not alike or width * len(groups) > self.prefill_tokens:
                break
            rows.append(waiting.popleft())
        return rows

    def _append(self, batch: Batch, logits_BV: Tensor, sampling: Sampling) -> list[Row]:
        """Draw the next token of every row; return the rows that ended with it."""
        ended: list[Row] = []
        logits_BV = logits_BV[:, : self.vocabulary]
        if sampling.noise:
            logits_BV = logits_BV + sampling.noise * self._normals(batch.rows, logits_BV.shape[1])
        uniforms_B = torch.tensor([next(row.uniforms) for row in batch.rows], dtype=torch.float64)
        tokens_B, logprobs_B = draw(logits_BV, uniforms_B, sampling, self._barred(batch.rows, logits_BV, sampling))
        stops = self.renderer.stop_strings(sampling.stop, sampling.min_new_tokens)
        for row, token, logprob in zip(batch.rows, tokens_B.tolist(), logprobs_B.tolist(), strict=True):
            if row.finish:
                continue
            if math.isfinite(logprob):
                row.tokens.append(token)
                row.logprobs.append(logprob)
                row.cut = stops.find(row.tokens)
                if token in self.renderer.stop_ids or row.cut is not None:
                    row.finish = "stop"
                elif len(row.tokens) == row.limit:
                    row.finish = "length"
            else:
                row.finish, row.reason = "error", "the model's logits are not finite: its weights have diverged"
            if row.finish:
                ended.append(row)
        return ended

    def _barred(self, rows: Sequence[Row], logits_BV: Tensor, sampling: Sampling) -> Tensor | None:
        """[B, V], true at stop tokens of rows that are too short to end; None when all may end."""
        short = [len(row.tokens) < sampling.min_new_tokens for row in rows]
        if not any(short):
            return None
        stops = [token for token in self.renderer.stop_ids if 0 <= token < logits_BV.shape[1]]
        barred_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
        barred_BV[:, stops] = torch.tensor(short, device=logits_BV.device)[:, None]
        return barred_BV

    def _normals(self, rows: Sequence[Row], vocabulary: int) -> Tensor:
        """[B, V] of standard normal numbers, each row's its own."""
        parts = [row.noise.standard_normal(vocabulary, dtype=np.float32) for row in rows if row.noise is not None]
        return torch.from_numpy(np.stack(parts)).to(self.model.device)

    def _sample(self, row: Row, version: int) -> Sample:
        token_ids_T = np.array(row.prompt + row.tokens, dtype=np.int32)
        said = self.renderer.read(row.prompt, row.tokens, row.cut, tools=bool(row.task.tools))
        return Sample(
            task=row.task,
            token_ids_T=token_ids_T,
            mask_T=np.arange(len(token_ids_T)) >= len(row.prompt),
            logprobs_R=np.array(row.logprobs, dtype=np.float32),
            response=said.text,
            thought=said.thought,
            answer=said.answer,
            group=row.group,
            index=row.index,
            finish=row.finish or "error",
            version=version,
            reason=row.reason,
        )


class Batch:
    """Rows written together and their cache of `length` columns, of which the first `pads[i]` are padding in row i."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.cache: Any = None
        self.rows: list[Row] = []
        self.pads: list[int] = []
        self.length = 0

    @property
    def alive(self) -> int:
        return sum(row.finish is None for row in self.rows)

    def read(self, rows: list[Row]) -> Tensor:
        """Fill an empty batch, reading each distinct prompt once. The logits [B, V] of each row's first token."""
        prompts = {row.group: row.prompt for row in rows}
        width = max(map(len, prompts.values()))
        self.pads = [width - len(prompt) for prompt in prompts.values()]
        logits_GV = self._forward([[0] * pad + prompt for pad, prompt in zip(self.pads, prompts.values(), strict=True)])
        place = {group: i for i, group in enumerate(prompts)}
        self.rows = rows
        return logits_GV[self._select([place[row.group] for row in rows])]

    def step(self) -> Tensor:
        """Read the last token of each row. The logits [B, V] of the next."""
        return self._forward([[(row.tokens or row.prompt)[-1]] for row in self.rows])

    def drop_finished(self, share: float) -> None:
        """Let finished rows go, if they are at least `share` of the batch, and columns that are now padding only."""
        keep = [i for i, row in enumerate(self.rows) if row.finish is None]
        if len(self.rows) - len(keep) < max(1, share * len(self.rows)):
            return
        self.rows = [self.rows[i] for i in keep]
        if not keep:
            self.cache, self.pads, self.length = None, [], 0
            return
        self._select(keep)
        if min(self.pads):
            self._align(self.length - min(self.pads))

    def join(self, new: Batch) -> None:
        """Take over the rows of `new` that are still being written."""
        self.drop_finished(0)
        new.drop_finished(0)
        if self.rows and new.rows:
            length = max(self.length, new.length)
            self._align(length)
            new._align(length)
            for layer, other in zip(self.cache.layers, new.cache.layers, strict=True):
                if layer.keys is not None:
                    layer.keys = torch.cat([layer.keys, other.keys])
                    layer.values = torch.cat([layer.values, other.values])
            self.rows, self.pads = self.rows + new.rows, self.pads + new.pads
        elif new.rows:
            self.cache, self.rows, self.pads, self.length = new.cache, new.rows, new.pads, new.length

    def _select(self, keep: list[int]) -> Tensor:
        """Make row i of the cache what row keep[i] was; repeats are fine."""
        index = torch.tensor(keep, device=self.model.device)
        if keep != list(range(len(self.pads))):
            self.cache.reorder_cache(index)  # unlike batch_select_indices, every kind of cache layer has it
            self.pads = [self.pads[i] for i in keep]
        return index

    def _align(self, length: int) -> None:
        """Pad the cache on its left, or cut padding off there, until it has `length` columns."""
        for layer in self.cache.layers:
            if layer.keys is None:  # shares another layer's cache
                continue
            columns = length
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.cumulative_length = length
                columns = min(length, layer.sliding_window - 1)  # it keeps no more than these
            add = (0, 0, columns - layer.keys.shape[-2], 0)
            layer.keys, layer.values = pad(layer.keys, add), pad(layer.values, add)
        self.pads = [p + length - self.length for p in self.pads]
        self.length = length

    @torch.no_grad()  # not inference_mode: what a model keeps from this pass must still be usable in training
    def _forward(self, ids_BL: list[list[int]]) -> Tensor:
        device = self.model.device
        ids = torch.tensor(ids_BL, device=device)
        if self.cache is None:
            self.cache = DynamicCache(config=self.model.config)
        self.length += ids.shape[1]
        columns = torch.arange(self.length, device=device)
        pads_B1 = torch.tensor(self.pads, device=device)[:, None]
        output = self.model(
            input_ids=ids,
            attention_mask=(columns >= pads_B1).long() if any(self.pads) else None,  # without one, attention is faster
            position_ids=(columns[-ids.shape[1] :] - pads_B1).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
            **({"logits_to_keep": 1} if self.model._supports_logits_to_keep() else {}),
        )
        if (
            getattr(output, "past_key_values", None) is not self.cache
        ):  # Mamba's models take another kind, and drop ours
            raise ValueError(f"{type(self.model).__name__} did not use the cache it was given: it cannot write here")
        return output.logits[:, -1].float()


def append_turn(sample: Sample, turn: Sample) -> None:
    """Let `sample` become all of `turn`, whose prompt is that sample and its environment's answer."""
    turn.mask_T[: len(sample.mask_T)] = sample.mask_T
    sample.token_ids_T, sample.mask_T = turn.token_ids_T, turn.mask_T
    sample.logprobs_R = np.concatenate([sample.logprobs_R, turn.logprobs_R])
    sample.response, sample.thought, sample.answer = turn.response, turn.thought, turn.answer

"""A model that learns: one algorithm-blind step over annotated samples, and itself a Scorer.

The coefficients (which token counts how much, and the denominators) are computed once over the whole batch in
update_plan.py, so that the split into micro-batches cannot change the gradient; token_loss.py has the loss of a chunk.

Within a micro-batch the backbone runs once. The head goes over chunks of its tokens, and each chunk's loss goes
backward at once, into the head's weights and the chunk's hidden states; these gradients then go through the backbone
together. So [N, V] never exists, and nothing is computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from onepolicy import update_plan, updates
from onepolicy.config import LossConfig, OptimConfig
from onepolicy.engines.forward import (
    frozen_head,
    live_head,
    numbered,
    plan_batches,
    position_keys,
    predicting_states,
    routed_logprobs,
    score_samples,
    token_chunks,
    token_stats,
)
from onepolicy.engines.mode import recomputing, settle
from onepolicy.engines.precision import compute_in
from onepolicy.engines.vocabulary import vocabulary_size
from onepolicy.meter import Meter
from onepolicy.models import save_model
from onepolicy.objectives import distill, weighting
from onepolicy.token_loss import COUNTED_ON, Tokens, needs_whole_samples, token_loss
from onepolicy.types import Array, Sample, TokenScores, Want
from onepolicy.update_plan import COMPONENTS, teacher_logprobs

Divergence = Callable[[slice, Tensor], Tensor]  # (chunk of N, student log-probs [C, V]) → [C]


class Learner:
    """Owns the weights, the optimizer and the step count. `temperature` is that of the rollouts it learns from.

    `version` counts steps, those included that were skipped or had nothing to learn from; the learning rate follows
    it, and reaches its end after `total_steps`. It computes in evaluation mode and in `dtype`, as its engine does: the
    learner must be the policy that generated. Softmaxes are over the tokenizer's tokens, without padding rows.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        optim: OptimConfig,
        loss: LossConfig,
        *,
        temperature: float = 1.0,
        total_steps: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model, self.tokenizer, self.optim, self.loss = model, tokenizer, optim, loss
        self.temperature, self.total_steps, self.dtype = temperature, total_steps, dtype
        self.vocabulary = vocabulary_size(tokenizer)
        self.head = live_head(model, self.vocabulary)
        self.version = 0
        self.skipped = self.skipped_in_row = 0
        self.updating = False  # the optimizer is at it: an interrupt here leaves weights of no step
        settle(model, optim.gradient_checkpointing)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        decayed = {"params": [p for p in self.parameters if p.ndim > 1], "weight_decay": optim.weight_decay}
        plain = {"params": [p for p in self.parameters if p.ndim <= 1], "weight_decay": 0.0}  # norms and biases
        self.optimizer = torch.optim.AdamW(
            [decayed, plain], lr=optim.learning_rate, betas=(optim.beta1, optim.beta2), fused=True
        )

    @property
    def device(self) -> torch.device:
        return self.parameters[0].device

    def step(self, samples: Sequence[Sample]) -> dict[str, float]:
        """One optimizer update from all the samples. Returns what happened, per domain where that makes sense.

        A non-finite gradient skips the update and is counted (`skipped`). Raises ValueError as `backward` does.
        """
        meter = self.backward(samples)
        meter.scalars |= self._update()
        return meter.summary()

    def backward(self, samples: Sequence[Sample]) -> Meter:
        """The gradient of all the samples' loss, in place of what the parameters' `grad` held; nothing moves yet.

        Samples that carry no weight, or that the policy left empty, cost nothing. Raises ValueError for a sample whose
        weights ask for what it does not carry.
        """
        coefficients = update_plan.coefficients(samples, self.loss)
        active = [i for i, s in enumerate(samples) if any(coefficients[c][i].any() for c in COMPONENTS)]
        learnt = [samples[i] for i in active]
        _check_annotations(learnt)
        kinds = numbered(list(zip(_kinds(learnt), position_keys(self.model, learnt), strict=True)))
        batches = plan_batches([len(s.token_ids_T) for s in learnt], self.optim.tokens_per_batch, kinds)
        spread = weighting.spread(self.loss.distill, learnt)
        meter = Meter(sorted({s.task.domain for s in samples}))
        self._count_unscored(samples, meter)
        self.model.eval()
        self.optimizer.zero_grad(set_to_none=True)
        head_of = numbered([s.teacher.head if s.teacher else None for s in samples])
        for batch in batches:
            rows = sorted((active[j] for j in batch), key=head_of.__getitem__)  # each teacher's head is opened once
            flat = {c: self._flat([coefficients[c][i] for i in rows]) for c in COMPONENTS}
            with recomputing(self.model), self.computing():
                loss = self._backward([samples[i] for i in rows], flat, spread, meter)
            meter.add_scalar("loss", loss)
        return meter

    def score(self, samples: Sequence[Sample], want: Want) -> list[TokenScores]:
        """A live learner is a scorer like any other (Scorer protocol). What it says holds after its next step too."""
        with self.computing():
            return score_samples(
                self.model,
                frozen_head(self.model, self.vocabulary) if want.kind == "full" else self.head,
                samples,
                want,
                source="learner",
                temperature=self.temperature,
                tokens_per_batch=self.optim.tokens_per_batch,
            )

    def save(self, folder: Path, card: str = "") -> None:
        """An ordinary Hugging Face folder: safetensors, tokenizer, generation config, model card.

        Raises ValueError when they are not finite.
        """
        updates.require_finite(self.model, self.optimizer, self.version)
        save_model(self.model, self.tokenizer, folder, card)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on bit-identically. Live tensors: write them out before the next step."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "version": self.version,
            "skipped": self.skipped,
            "skipped_in_row": self.skipped_in_row,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.version, self.skipped = state["version"], state["skipped"]
        self.skipped_in_row = state.get("skipped_in_row", 0)  # a checkpoint of an older version has none

    # -- one micro-batch -------------------------------------------------------------------------------------------

    def _backward(
        self, samples: Sequence[Sample], coefficient: dict[str, Tensor], spread: distill.Spread | None, meter: Meter
    ) -> float:
        """Add the gradient of one micro-batch, all of whose samples are of one kind (see _kinds). Returns its loss."""
        tokens = self._tokens(samples, coefficient, meter)
        divergence = self._divergence(samples) if "distill" in tokens.used else None
        hidden_NH, tokens_N = predicting_states(self.model, samples)
        whole = needs_whole_samples(self.loss)
        total, seen, gradients = 0.0, list[dict[str, Tensor]](), list[Tensor]()
        for chunk in token_chunks(self.head, [s.length for s in samples], whole):
            hidden_CH = hidden_NH[chunk].detach().requires_grad_()
            divergence_C = partial(divergence, chunk) if divergence else None
            stats = token_stats(self.head, hidden_CH, tokens_N[chunk], self.temperature, divergence_C)
            loss, values = token_loss(self.loss, stats, tokens, chunk, spread)
            loss.backward()
            assert hidden_CH.grad is not None, "a micro-batch of samples that count must have a gradient"
            total += loss.item()
            seen.append(values)
            gradients.append(hidden_CH.grad)
        hidden_NH.backward(torch.cat(gradients))
        for name, parts in zip(seen[0], zip(*(values.values() for values in seen), strict=True), strict=True):
            where_N = tokens.where.get(COUNTED_ON.get(name, ""))
            meter.add(name, torch.cat(parts), tokens.domain_N, where_N)
        return total

    def _tokens(self, samples: Sequence[Sample], coefficient: dict[str, Tensor], meter: Meter) -> Tokens:
        lengths = [s.length for s in samples]
        where = {component: coefficient_N != 0 for component, coefficient_N in coefficient.items()}
        domains = [meter.domains.index(s.task.domain) for s in samples]
        used = [component for component, where_N in where.items() if where_N.any()]
        parted = "distill" in used and self.loss.distill.estimator == "trust_region"
        return Tokens(
            used=used,
            coefficient=coefficient,
            where=where | {"policy": where["pg"] | where["distill"]},
            engine_N=self._flat([s.logprobs_R for s in samples]),
            old_N=self._flat([s.old_logprobs_R for s in samples]) if _all_have_old(samples) else None,
            advantages_N=self._flat([_or_zeros(s.advantages_R, s) for s in samples]),
            teacher_N=self._flat([teacher_logprobs(s) for s in samples]),
            trusted_N=self._flat([weighting.trusted(s) for s in samples], np.bool_) if parted else None,
            segments_N=torch.from_numpy(np.repeat(np.arange(len(samples)), lengths)).to(self.device),
            domain_N=torch.from_numpy(np.repeat(domains, lengths)).to(self.device),
        )

    def _divergence(self, samples: Sequence[Sample]) -> Divergence | None:
        """(a chunk, the student's log-probs there) → its divergence to the teacher, if one is configured."""
        config = self.loss.distill
        scores = [s.teacher for s in samples]
        if config.wants[0] == "topk":
            ids_NK = self._flat([_needed(x, "topk_ids_RK") for x in scores], np.int64)
            teacher_NK = self._flat([_needed(x, "topk_logprobs_RK") for x in scores])
            return lambda chunk, logprobs_CV: distill.topk_divergence(
                config, logprobs_CV.gather(-1, ids_NK[chunk]), teacher_NK[chunk]
            )
        if config.estimator == "full":
            hidden_NH = self._flat([_needed(x, "hidden_RH") for x in scores])
            heads, lengths = [x.head for x in scores if x], [s.length for s in samples]

            def full(chunk: slice, logprobs_CV: Tensor) -> Tensor:
                teacher_CV = routed_logprobs(heads, lengths, hidden_NH, chunk, self.temperature)
                return distill.divergence(config, logprobs_CV, teacher_CV)

            return full
        return None

    # -- around it -------------------------------------------------------------------------------------------------

    def _count_unscored(self, samples: Sequence[Sample], meter: Meter) -> None:
        """The share of tokens that a teacher was to score and did not, and of those masked for disagreement."""
        taught = [s for s in samples if s.weights.distill and s.length]
        if taught:
            unscored_N = torch.from_numpy(~np.isfinite(np.concatenate([teacher_logprobs(s) for s in taught])))
            domains = [meter.domains.index(s.task.domain) for s in taught]
            domain_N = torch.from_numpy(np.repeat(domains, [s.length for s in taught]))
            meter.add("unscored", unscored_N, domain_N)
            limit = self.loss.distill.weighting.max_disagreement
            if limit is not None:
                masked_N = np.concatenate([weighting.masked(s, limit) for s in taught])
                meter.add("masked", torch.from_numpy(masked_N), domain_N)

    def _update(self) -> dict[str, float]:
        rate = self.optim.learning_rate * updates.learning_rate_factor(self.optim, self.version, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.optim.clip_norm).item()
        if math.isfinite(norm):
            self.updating = True
            self.optimizer.step()  # leaves parameters alone that have no gradient, as after an empty batch
            self.skipped_in_row = 0
        else:
            self.skipped += 1
            self.skipped_in_row += 1
        self.version += 1
        self.updating = False
        return {"grad_norm": norm, "learning_rate": rate, "skipped": float(self.skipped)}

    def _flat(self, arrays: Sequence[Any], dtype: type = np.float32) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays).astype(dtype, copy=False)).to(self.device)

    def computing(self) -> AbstractContextManager[None]:
        """The precision of all that this policy computes."""
        return compute_in(self.dtype, self.device)


def _check_annotations(samples: Sequence[Sample]) -> None:
    for sample in samples:
        if sample.weights.distill and sample.teacher is None:
            raise ValueError(f"the sample of task {sample.task.id!r} has a distill weight and no teacher's scores")
        if sample.weights.pg and sample.advantages_R is None:
            raise ValueError(f"the sample of task {sample.task.id!r} has a pg weight and no advantages")


def _kinds(samples: Sequence[Sample]) -> list[int]:
    """Numbers of samples that may share a micro-batch: untaught, taught by heads or top-k lists of one shape."""
    kinds: list[Any] = []
    for sample in samples:
        scores = sample.teacher if sample.weights.distill else None
        head = scores.head if scores else None
        width = None if scores is None or scores.topk_ids_RK is None else scores.topk_ids_RK.shape[1]
        kinds.append((scores is not None, (head.vocabulary, head.hidden_size) if head else None, width))
    return numbered(kinds)


def _or_zeros(values: Array | None, sample: Sample) -> Array:
    return values if values is not None else np.zeros(sample.length, dtype=np.float32)


def _all_have_old(samples: Sequence[Sample]) -> bool:
    have = [s.old_logprobs_R is not None for s in samples]
    assert all(have) or not any(have), "either all samples of a step carry old_logprobs_R or none"
    return all(have) and bool(have)


def _needed(scores: TokenScores | None, field: str) -> Array:
    value = getattr(scores, field, None)
    if value is None:
        raise ValueError(f"the loss needs {field}, which the scorer was not asked for: ask for it with Want")
    return value

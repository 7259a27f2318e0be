"""A model that learns: one algorithm-blind step over annotated samples, and itself a Scorer.

    loss = Σ_component Σ_token coefficient · w_importance · ℓ      component ∈ {pg, distill, ce}

The coefficients (which token counts how much, and the denominators) are computed once over the global batch in
objectives/reduce.py, so that the split into micro-batches cannot change the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from onepolicy.config import LossConfig, OptimConfig
from onepolicy.engines.forward import Divergence, live_head, plan_batches, predicting_states, score_samples, token_stats
from onepolicy.meter import Meter
from onepolicy.models import save_model
from onepolicy.objectives import distill, importance, policy, reduce
from onepolicy.types import Array, Sample, TokenScores, Want

COMPONENTS = ("pg", "distill", "ce")


class Learner:
    """Owns the weights, the optimizer and the step count. `temperature` is that of the rollouts it learns from."""

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
        self.temperature, self.dtype = temperature, dtype
        self.head = live_head(model)
        self.version = 0
        self.skipped = 0
        if optim.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        parameters = [p for p in model.parameters() if p.requires_grad]
        decayed = {"params": [p for p in parameters if p.ndim > 1], "weight_decay": optim.weight_decay}
        plain = {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}  # norms and biases
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(
            [decayed, plain], lr=optim.learning_rate, betas=(optim.beta1, optim.beta2), fused=True
        )
        self.schedule = LambdaLR(self.optimizer, lambda step: learning_rate_factor(optim, step, total_steps))

    @property
    def device(self) -> torch.device:
        return self.parameters[0].device

    def step(self, samples: Sequence[Sample]) -> dict[str, float]:
        """One optimizer update from all the samples. Returns what happened, per domain where that makes sense.

        A non-finite loss or gradient skips the update and is counted (`skipped`). Samples that carry no weight, or
        that the policy left empty, cost nothing.
        """
        coefficients = self._coefficients(samples)
        active = [i for i, s in enumerate(samples) if any(coefficients[c][i].any() for c in COMPONENTS)]
        meter = Meter()
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        for batch in plan_batches(
            [len(samples[i].token_ids_T) for i in active],
            self.optim.tokens_per_batch,
            [_head_key(samples[i]) for i in active],
        ):
            rows = [active[j] for j in batch]
            flat = {c: self._flat([coefficients[c][i] for i in rows]) for c in COMPONENTS}
            loss = self._loss([samples[i] for i in rows], flat, meter)
            loss.backward()
            meter.add_scalar("loss", loss.item())
        meter.scalars |= self._update() if active else {"grad_norm": 0.0}
        meter.scalars["skipped"] = self.skipped
        return meter.summary()

    def score(self, samples: Sequence[Sample], want: Want) -> list[TokenScores]:
        """A live learner is a scorer like any other (Scorer protocol)."""
        with self._autocast():
            return score_samples(
                self.model,
                self.head,
                samples,
                want,
                source="learner",
                temperature=self.temperature,
                tokens_per_batch=self.optim.tokens_per_batch,
            )

    def save(self, folder: Path, card: str = "") -> None:
        """An ordinary Hugging Face folder: safetensors, tokenizer, generation config, model card."""
        save_model(self.model, self.tokenizer, folder, card)

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs to go on bit-identically."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "version": self.version,
            "skipped": self.skipped,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.version, self.skipped = state["version"], state["skipped"]

    # -- one micro-batch -------------------------------------------------------------------------------------------

    def _loss(self, samples: Sequence[Sample], coefficient: dict[str, Tensor], meter: Meter) -> Tensor:
        """Σ_component Σ_token over one micro-batch; a scalar that is differentiable even when nothing is left."""
        distilled = bool(coefficient["distill"].any())
        divergence = self._divergence(samples) if distilled else None
        with self._autocast():
            hidden_NH, tokens_N = predicting_states(self.model, samples)
            stats = token_stats(self.head, hidden_NH, tokens_N, self.temperature, divergence)
        logprobs_N = stats.logprobs_N
        current_N = logprobs_N.detach()
        engine_N = self._flat([s.logprobs_R for s in samples])
        old_N = self._flat([s.old_logprobs_R for s in samples]) if _all_have_old(samples) else current_N
        weights_N, gated_N = importance.importance_weights(self.loss.importance, old_N - engine_N)
        segments_N = torch.repeat_interleave(
            torch.arange(len(samples), device=self.device), torch.tensor([s.length for s in samples], device=self.device)
        )
        domains = [s.task.domain for s in samples for _ in range(s.length)]
        meter.add("entropy", stats.entropy_N, domains)
        total = logprobs_N.sum() * 0.0

        if coefficient["pg"].any():
            advantages_N = self._flat([_or_zeros(s.advantages_R, s) for s in samples])
            loss_N, clipped_N = policy.policy_loss(self.loss.policy, logprobs_N, old_N, advantages_N, segments_N)
            total = total + reduce.weighted_sum(coefficient["pg"], weights_N * loss_N)
            meter.add("clipped", clipped_N, domains)
        if distilled:
            config = self.loss.distill
            teacher_N = self._flat([_teacher_logprobs(s) for s in samples])
            signal_N = distill.signal(config, teacher_N, current_N if config.refresh else old_N)
            if stats.divergence_N is not None:
                loss_N = stats.divergence_N
            elif config.estimator == "sampled":
                loss_N, _ = policy.policy_loss(self.loss.policy, logprobs_N, old_N, signal_N, segments_N)
            else:
                loss_N = distill.sampled_loss(config, logprobs_N, teacher_N)
            total = total + reduce.weighted_sum(coefficient["distill"], weights_N * loss_N)
            taught = coefficient["distill"] > 0
            meter.add("reverse_kl", current_N - teacher_N, domains, taught)
            meter.add("signal", signal_N.abs(), domains, taught)
            meter.add("unscored", ~teacher_N.isfinite(), domains)
        if coefficient["ce"].any():
            total = total - reduce.weighted_sum(coefficient["ce"], logprobs_N)
            meter.add("cross_entropy", -current_N, domains)
        else:
            meter.add("gated", gated_N, domains)
            meter.add("engine_gap", (current_N - engine_N).abs(), domains)
        return total

    def _divergence(self, samples: Sequence[Sample]) -> Divergence | None:
        """The per-token divergence to the teacher that `token_stats` evaluates chunk by chunk, if one is configured."""
        config = self.loss.distill
        scores = [s.teacher for s in samples]
        if config.estimator == "topk":
            ids_NK = self._flat([_needed(x, "topk_ids_RK") for x in scores]).long()
            teacher_NK = self._flat([_needed(x, "topk_logprobs_RK") for x in scores])
            return lambda logprobs_CV, chunk: distill.topk_divergence(
                config, logprobs_CV.gather(-1, ids_NK[chunk]), teacher_NK[chunk]
            )
        if config.estimator == "full":
            hidden_NH = self._flat([_needed(x, "hidden_RH") for x in scores])
            head = scores[0].head  # type: ignore[union-attr]  # one head a micro-batch, see _head_key

            def full(logprobs_CV: Tensor, chunk: slice) -> Tensor:
                with torch.no_grad():
                    teacher_CV = torch.log_softmax(head.logits(hidden_NH[chunk]) / self.temperature, dim=-1)
                if teacher_CV.shape[-1] < logprobs_CV.shape[-1]:  # the student's vocabulary is padded further
                    logprobs_CV = torch.log_softmax(logprobs_CV[:, : teacher_CV.shape[-1]], dim=-1)
                return distill.divergence(config, logprobs_CV, teacher_CV)

            return full
        return None

    # -- around it -------------------------------------------------------------------------------------------------

    def _coefficients(self, samples: Sequence[Sample]) -> dict[str, list[Array]]:
        """Per component, the coefficient of every token; a token without a finite teacher log-prob is dropped."""
        everywhere = [np.ones(s.length, dtype=bool) for s in samples]
        taught = [np.isfinite(_teacher_logprobs(s)) for s in samples]
        return {
            component: reduce.coefficients(
                taught if component == "distill" else everywhere,
                [getattr(s.weights, component) for s in samples],
                self.loss.reduction,
            )
            for component in COMPONENTS
        }

    def _update(self) -> dict[str, float]:
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.optim.clip_norm).item()
        used = self.schedule.get_last_lr()[0]
        if math.isfinite(norm):
            self.optimizer.step()
        else:
            self.skipped += 1
        self.schedule.step()
        self.version += 1
        return {"grad_norm": norm, "learning_rate": used}

    def _flat(self, arrays: Sequence[Any]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays).astype(np.float32, copy=False)).to(self.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def learning_rate_factor(optim: OptimConfig, step: int, total_steps: int) -> float:
    """Linear warm-up to 1, then constant, or down to 0 at `total_steps` linearly or along a cosine."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    progress = min(1.0, (step - optim.warmup_steps) / max(1, total_steps - optim.warmup_steps))
    return {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[
        optim.schedule
    ]


def _teacher_logprobs(sample: Sample) -> Array:
    return sample.teacher.logprobs_R if sample.teacher is not None else np.zeros(sample.length, dtype=np.float32)


def _or_zeros(values: Array | None, sample: Sample) -> Array:
    return values if values is not None else np.zeros(sample.length, dtype=np.float32)


def _all_have_old(samples: Sequence[Sample]) -> bool:
    have = [s.old_logprobs_R is not None for s in samples]
    assert all(have) or not any(have), "either all samples of a step carry old_logprobs_R or none"
    return all(have) and bool(have)


def _head_key(sample: Sample) -> str:
    """Samples whose teachers score over the full vocabulary share a micro-batch only with those of the same teacher."""
    full = sample.teacher is not None and sample.teacher.head is not None
    return sample.teacher.source if full and sample.teacher else ""


def _needed(scores: TokenScores | None, field: str) -> Array:
    value = getattr(scores, field, None)
    if value is None:
        raise ValueError(f"the loss needs {field}, which the scorer was not asked for: ask for it with Want")
    return value

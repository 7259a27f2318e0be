"""An audit of the update: gradients against a plain reference in float64 that shares no code with the learner.

The reference runs the model's own forward, one row at a time, holds [T, V], and writes each formula out as in its
paper. Every entry of the gradient agrees to 1e-6 of the largest. Samples carry float32, so the log-probs here are
multiples of 1/4096: their differences and sums are exact in both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from onepolicy.config import LossConfig, OptimConfig
from onepolicy.learner import Learner
from onepolicy.types import Sample, TokenScores, Weights
from tests.tiny_models import build, sample

LENGTHS = [(3, 5), (6, 1), (2, 9), (4, 3), (5, 7)]
POLICIES: list[dict[str, Any]] = [
    {"kind": "ppo", "clip_low": 0.1, "clip_high": 0.2},
    {"kind": "ppo", "clip_low": 0.1, "clip_high": 0.2, "dual_clip": 1.3},
    {"kind": "cispo", "clip_low": 0.1, "clip_high": 0.2},
    {"kind": "reinforce"},
    {"kind": "gspo", "clip_low": 0.05, "clip_high": 0.05},
]
IMPORTANCE: list[dict[str, Any]] = [
    {"mode": "off", "level": "token"},
    {"mode": "gate", "level": "token", "low": 0.8, "high": 1.25},
    {"mode": "truncate", "level": "token", "low": 0.9, "high": 1.1},
    {"mode": "gate", "level": "sequence", "low": 0.5, "high": 2.0},
    {"mode": "truncate", "level": "sequence", "high": 1.2},
    {"mode": "truncate", "level": "geometric", "low": 0.95, "high": 1.05},
]
REDUCTIONS: list[dict[str, Any]] = [
    {"reduction": "sequence"},
    {"reduction": "token"},
    {"reduction": "constant", "length": 12},
    {"reduction": "sequence_sum"},
]
DISTILL: list[dict[str, Any]] = [
    {"estimator": "sampled", "max_signal": 0.4},
    {"estimator": "k2"},
    {"estimator": "full"},
    {"estimator": "full", "divergence": "forward_kl"},
    {"estimator": "topk", "k": 4},
]


def double(seed: int) -> tuple[Any, Any]:
    model, tokenizer = build(seed=seed)
    return model.double(), tokenizer


def rows(model: Any, one: Sample) -> tuple[Tensor, Tensor]:
    """([R, V] log-probs at the written tokens, the tokens), from the model's own forward of the whole row."""
    ids = torch.from_numpy(one.token_ids_T).long()
    logprobs_TV = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
    written = torch.from_numpy(one.mask_T[1:])
    return logprobs_TV[written], ids[1:][written]


def picked(logprobs_RV: Tensor, tokens_R: Tensor) -> Tensor:
    return logprobs_RV[torch.arange(len(tokens_R)), tokens_R]


def exact(values: Any) -> Any:
    return np.round(values * 4096) / 4096


def make_samples(student: Any) -> list[Sample]:
    """Rollouts of an engine and of an older policy that both differ from the student, with advantages of both signs."""
    rng = np.random.default_rng(0)
    samples = [sample(prompt, response, seed=i) for i, (prompt, response) in enumerate(LENGTHS)]
    for number, one in enumerate(samples):
        now_R = picked(*rows(student, one)).detach().numpy()
        one.old_logprobs_R = exact(now_R + rng.normal(0, 0.15, one.length))
        one.logprobs_R = exact(one.old_logprobs_R + rng.normal(0, 0.15, one.length))
        one.advantages_R = np.full(one.length, (-1.0) ** number * (0.5 + number))
    return samples


def importance_of(config: dict[str, Any], one: Sample) -> Tensor:
    log_R = torch.from_numpy(one.old_logprobs_R - one.logprobs_R)
    if config["mode"] == "off":
        return torch.ones(one.length, dtype=torch.float64)
    if config["level"] == "sequence":
        log_R = log_R.sum().expand(one.length)
    elif config["level"] == "geometric":
        log_R = (log_R.sum() / one.length).expand(one.length)
    ratio_R = log_R.exp()
    low, high = config.get("low", 0.0), config["high"]
    if config["mode"] == "truncate":
        return ratio_R.clamp(low, high)
    return torch.where((ratio_R >= low) & (ratio_R <= high), ratio_R, torch.zeros_like(ratio_R))


def policy_loss(config: dict[str, Any], logprobs_R: Tensor, old_R: Tensor, advantages_R: Tensor) -> Tensor:
    kind = config["kind"]
    if kind == "reinforce":
        return -advantages_R * logprobs_R
    low, high = 1 - config["clip_low"], 1 + config["clip_high"]
    ratio_R = (logprobs_R - old_R).exp()
    if kind == "cispo":
        return -ratio_R.detach().clamp(low, high) * advantages_R * logprobs_R
    if kind == "gspo":  # the sequence's ratio, with the gradient of the token's own log-prob at each token
        mean = (logprobs_R - old_R).detach().sum() / len(old_R)
        ratio_R = (mean + logprobs_R - logprobs_R.detach()).exp()
    loss_R = -torch.minimum(ratio_R * advantages_R, ratio_R.clamp(low, high) * advantages_R)
    if config.get("dual_clip"):
        capped_R = torch.minimum(loss_R, -config["dual_clip"] * advantages_R)
        loss_R = torch.where(advantages_R < 0, capped_R, loss_R)
    return loss_R


def reduced(config: dict[str, Any], losses: list[Tensor]) -> Tensor:
    count, tokens = len(losses), sum(len(loss_R) for loss_R in losses)
    total = torch.zeros((), dtype=torch.float64)
    for loss_R in losses:
        divisor = {
            "sequence": len(loss_R) * count,
            "token": tokens,
            "constant": config.get("length", 0) * count,
            "sequence_sum": count,
        }[config["reduction"]]
        total = total + loss_R.sum() / divisor
    return total


def agree(loss: LossConfig, samples: list[Sample], expected: Tensor, plain: Any) -> None:
    """The learner's gradient, in several micro-batches, beside that of the plain loss."""
    expected.backward()
    wanted = torch.cat([p.grad.flatten() for p in plain.parameters()])
    model, tokenizer = double(0)
    learner = Learner(model, tokenizer, OptimConfig(tokens_per_batch=20), loss)
    metrics = learner.backward(samples).summary()
    found = torch.cat([p.grad.flatten() for p in learner.parameters if p.grad is not None])
    assert wanted.abs().max() > 1e-4, "the configuration must have a gradient"
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    assert metrics["loss"] == pytest.approx(expected.item(), rel=1e-6, abs=1e-9)


def grid() -> list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Each policy loss with each weight under one reduction, and each reduction with one of them."""
    found = []
    for i, policy in enumerate(POLICIES):
        for j, importance in enumerate(IMPORTANCE):
            found.append((policy, importance, REDUCTIONS[(i + j) % len(REDUCTIONS)]))
    found += [(POLICIES[0], IMPORTANCE[1], reduction) for reduction in REDUCTIONS]
    return found


@pytest.mark.parametrize(("policy", "importance", "reduction"), grid())
def test_policy_gradients(policy: dict[str, Any], importance: dict[str, Any], reduction: dict[str, Any]) -> None:
    plain, _ = double(0)
    samples = make_samples(plain)
    losses = []
    for one in samples:
        one.weights = Weights(pg=1.0)
        old_R, advantages_R = torch.from_numpy(one.old_logprobs_R), torch.from_numpy(one.advantages_R)
        loss_R = policy_loss(policy, picked(*rows(plain, one)), old_R, advantages_R)
        losses.append(importance_of(importance, one) * loss_R)
    loss = LossConfig.model_validate({**reduction, "policy": policy, "importance": importance})
    agree(loss, samples, reduced(reduction, losses), plain)


@pytest.mark.parametrize("states", ["ignore", "past"])
@pytest.mark.parametrize("reduction", REDUCTIONS, ids=lambda r: r["reduction"])
@pytest.mark.parametrize("distill", DISTILL, ids=str)
def test_distillation(distill: dict[str, Any], reduction: dict[str, Any], states: str) -> None:
    plain, _ = double(0)
    teacher, tokenizer = double(1)
    samples = make_samples(plain)
    scorer = Learner(double(1)[0], tokenizer, OptimConfig(), LossConfig())
    importance = {"mode": "gate", "level": "token", "low": 0.8, "high": 1.25, "states": states}
    loss = LossConfig.model_validate({**reduction, "distill": distill, "importance": importance})
    losses = []
    for one, scores in zip(samples, scorer.score(samples, _want(loss)), strict=True):
        one.weights, one.advantages_R = Weights(distill=1.0), None
        student_RV, tokens_R = rows(plain, one)
        teacher_RV = rows(teacher, one)[0].detach()
        # scores travel in float32; the reference takes the same numbers
        teacher_R = torch.from_numpy(scores.logprobs_R).double()
        losses.append(_distilled(distill, one, student_RV, teacher_RV, tokens_R, teacher_R, scores, importance))
        one.teacher = scores
    tolerant = reduced(reduction, losses)
    agree(loss, samples, tolerant, plain)


def _want(loss: LossConfig) -> Any:
    from onepolicy.types import Want

    return Want(*loss.distill.wants)


def _distilled(
    distill: dict[str, Any],
    one: Sample,
    student_RV: Tensor,
    teacher_RV: Tensor,
    tokens_R: Tensor,
    teacher_R: Tensor,
    scores: TokenScores,
    importance: dict[str, Any],
) -> Tensor:
    student_R = picked(student_RV, tokens_R)
    old_R = torch.from_numpy(one.old_logprobs_R)
    drawn_R = importance_of(importance, one)
    estimator = distill["estimator"]
    if estimator == "sampled":  # PPO's clip at its defaults, 0.2 and 0.28
        signal_R = (teacher_R - old_R).clamp(-distill["max_signal"], distill["max_signal"])
        default = {"kind": "ppo", "clip_low": 0.2, "clip_high": 0.28}
        return drawn_R * policy_loss(default, student_R, old_R, signal_R)
    if estimator == "k2":
        return drawn_R * 0.5 * (student_R - teacher_R) ** 2
    if estimator == "topk":
        ids_RK = torch.from_numpy(scores.topk_ids_RK).long()
        log_t, log_p = torch.from_numpy(scores.topk_logprobs_RK).double(), student_RV.gather(-1, ids_RK)
        loss_R = (log_p.exp() * (log_p - log_t) - log_p.exp() + log_t.exp()).sum(-1)
    elif distill.get("divergence") == "forward_kl":
        loss_R = (teacher_RV.exp() * (teacher_RV - student_RV)).sum(-1)
    else:
        loss_R = (student_RV.exp() * (student_RV - teacher_RV)).sum(-1)
    if importance["states"] == "past":
        log_R = torch.from_numpy(one.old_logprobs_R - one.logprobs_R)
        past_R = torch.stack([log_R[:t].sum() for t in range(len(log_R))]).exp()
        inside = (past_R >= importance["low"]) & (past_R <= importance["high"])
        loss_R = torch.where(inside, past_R, torch.zeros_like(past_R)) * loss_R
    return loss_R

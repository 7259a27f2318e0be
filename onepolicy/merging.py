"""Merging models of one origin into one: pure functions over state dicts (name → tensor).

Computed in float32 at least, returned in the input's dtype, always as new tensors. Tensors that are no floats (buffers)
must be equal in all models and are copied. Models that do not fit together are refused, never merged in part, and so
are NaN and inf, in a model or in the result. Nothing here reads a file: call it per shard, every rule works tensor by
tensor.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

State = Mapping[str, Tensor]
Rule = Callable[[str, list[Tensor]], Tensor]


def average(models: Sequence[State], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Σ w_i θ_i / Σ w_i; equal weights by default (model soups, arXiv 2203.05482)."""
    weights = [1.0] * len(models) if weights is None else weights
    _one_each(models, weights, "weight")
    total = math.fsum(weights)
    if total <= 0:
        raise ValueError(f"weights {list(weights)} sum to {total}: an average needs a positive sum")
    return _merge(models, lambda _, tensors: _weighted_sum([w / total for w in weights], tensors))


def task_arithmetic(base: State, teachers: Sequence[State], lambdas: Sequence[float]) -> dict[str, Tensor]:
    """θ_0 + Σ λ_d (φ_d - θ_0) (arXiv 2212.04089)."""
    _one_each(teachers, lambdas, "lambda")
    return _merge([base, *teachers], lambda _, tensors: tensors[0] + _weighted_sum(lambdas, _deltas(tensors)))


def ties(base: State, teachers: Sequence[State], weights: Sequence[float], density: float) -> dict[str, Tensor]:
    """Trim, elect sign, merge (TIES, arXiv 2306.01708): θ_0 + the mean of those deltas that agree with the majority.

    Each delta keeps its `density` largest entries, per tensor (the paper trims per model: shards make that costly).
    The sign of an entry is that of its weighted sum; deltas of another sign, and trimmed ones, are left out of the
    mean and of its denominator.
    """
    _one_each(teachers, weights, "weight")
    _check_density(density)

    def rule(_: str, tensors: list[Tensor]) -> Tensor:
        deltas = [_trim(delta, density) for delta in _deltas(tensors)]
        sign = _weighted_sum(weights, deltas).sign()
        votes = [((delta.sign() == sign) & (delta != 0)).to(delta.dtype) for delta in deltas]
        agreed = _weighted_sum(weights, [vote * delta for vote, delta in zip(votes, deltas, strict=True)])
        norm = _weighted_sum(weights, votes)
        return tensors[0] + torch.where(norm > 0, agreed / norm, 0.0)

    return _merge([base, *teachers], rule)


def dare(
    base: State, teachers: Sequence[State], lambdas: Sequence[float], density: float, seed: int
) -> dict[str, Tensor]:
    """Task arithmetic on deltas that keep each entry with probability `density`, divided by it (arXiv 2311.03099).

    The mask depends on (seed, tensor name, teacher's position) alone, so neither the order of tensors nor their
    distribution over files nor the device changes the result.
    """
    _one_each(teachers, lambdas, "lambda")
    _check_density(density)

    def rule(name: str, tensors: list[Tensor]) -> Tensor:
        deltas = [_drop(delta, density, f"{seed}/{i}/{name}") for i, delta in enumerate(_deltas(tensors))]
        return tensors[0] + _weighted_sum(lambdas, deltas)

    return _merge([base, *teachers], rule)


def slerp(first: State, second: State, t: float) -> dict[str, Tensor]:
    """From `first` (t = 0) to `second` (t = 1) along the arc between them, tensor by tensor: see `slerp_tensor`."""
    return _merge([first, second], lambda _, tensors: slerp_tensor(tensors[0], tensors[1], t))


def slerp_tensor(first: Tensor, second: Tensor, t: float) -> Tensor:
    """sin((1-t)θ)/sin θ · a + sin(tθ)/sin θ · b, θ the angle between the flattened tensors (Shoemake 1985).

    Lengths are not normalised. (Nearly) colinear tensors, and zeros, have no arc: they are interpolated linearly.
    """
    norms = first.norm() * second.norm()
    cosine = float((first * second).sum() / norms) if norms > 0 else 1.0
    if abs(cosine) > 0.9995:
        return (1 - t) * first + t * second
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * first + math.sin(t * angle) * second) / math.sin(angle)


def lora_delta(lora_a_RI: Tensor, lora_b_OR: Tensor, scaling: float) -> Tensor:
    """ΔW = scaling·B·A, [out, in], the scaling applied once: peft's alpha/r, or alpha/√r for rank-stabilised LoRA.

    LoRA experts are merged as base + ΔW. Merging the factors instead is wrong: the mean of products is not the
    product of means.
    """
    if lora_a_RI.ndim != 2 or lora_b_OR.ndim != 2 or lora_a_RI.shape[0] != lora_b_OR.shape[1]:
        raise ValueError(
            f"lora_A {tuple(lora_a_RI.shape)} and lora_B {tuple(lora_b_OR.shape)} do not share a rank: expected "
            "[rank, in] and [out, rank] of one adapter"
        )
    return scaling * (_upcast(lora_b_OR) @ _upcast(lora_a_RI))


Where = Callable[[int, str], str]  # (position of a model, name of a tensor) → what a message calls the place


def check_mergeable(models: Sequence[State]) -> None:
    """Raise ValueError unless all models have the same tensors, in shape and dtype, as the first; name what differs.

    What is no float must have the same values, too, and what is one must be finite.
    """
    check_layouts(models, _position)
    check_constants(models, _position)
    for i, model in enumerate(models):
        for name, tensor in model.items():
            if not is_finite(tensor):
                raise ValueError(
                    f"tensor {name!r} in {_position(i, name)} is not finite (it holds NaN or inf): its weights are "
                    "broken, take another checkpoint"
                )


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or inf, without a temporary tensor: the extremes are NaN as soon as one value is."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def check_layouts(models: Sequence[State], where: Where) -> None:
    """Names, shapes and dtypes alone, so that the tensors may be without values (device meta)."""
    for i, model in enumerate(models[1:], start=1):
        missing, extra = models[0].keys() - model.keys(), model.keys() - models[0].keys()
        if missing or extra:
            name, there, other = (min(missing), 0, i) if missing else (min(extra), i, 0)
            raise ValueError(
                f"tensor {name!r} is in {where(there, name)} but not in {where(other, name)} ({len(missing)} missing, "
                f"{len(extra)} extra in all): merge checkpoints of one architecture, with the same names; where two "
                "versions of transformers have written them, load and save both with one"
            )
        for name, reference in models[0].items():
            tensor, places = model[name], (where(0, name), where(i, name))
            if tensor.shape != reference.shape:
                raise ValueError(
                    f"tensor {name!r} has shape {tuple(reference.shape)} in {places[0]} and {tuple(tensor.shape)} in "
                    f"{places[1]}: merge checkpoints of one architecture and vocabulary"
                )
            if tensor.dtype != reference.dtype:
                raise ValueError(
                    f"tensor {name!r} is {reference.dtype} in {places[0]} and {tensor.dtype} in {places[1]}: "
                    "save both in one dtype first"
                )


def check_constants(models: Sequence[State], where: Where) -> None:
    """Tensors that are no floats (buffers) have the same values in all models."""
    for i, model in enumerate(models[1:], start=1):
        for name, reference in models[0].items():
            if not reference.is_floating_point() and not torch.equal(model[name], reference):
                raise ValueError(
                    f"tensor {name!r} ({reference.dtype}) differs between {where(0, name)} and {where(i, name)}, and "
                    "what is no float cannot be averaged: make it equal, or leave it out"
                )


def _position(i: int, name: str) -> str:
    return f"model {i}"


def _merge(models: Sequence[State], rule: Rule) -> dict[str, Tensor]:
    if not models:
        raise ValueError("no models to merge: give at least one")
    check_mergeable(models)
    merged = {}
    for name, tensor in models[0].items():
        if tensor.is_floating_point():
            merged[name] = rule(name, [_upcast(model[name]) for model in models]).to(tensor.dtype)
            if not is_finite(merged[name]):
                raise ValueError(
                    f"tensor {name!r} of the merge is beyond the range of {tensor.dtype}: use smaller factors, or save "
                    "the models in bfloat16 or float32 first"
                )
        else:
            merged[name] = tensor.clone()
    return merged


def _upcast(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _deltas(tensors: list[Tensor]) -> list[Tensor]:
    """Task vectors of the models after the first, which is the base."""
    return [tensor - tensors[0] for tensor in tensors[1:]]


def _weighted_sum(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(tensors[0])
    for weight, tensor in zip(weights, tensors, strict=True):
        total = total + weight * tensor
    return total


def _trim(delta: Tensor, density: float) -> Tensor:
    """The `density` largest entries by magnitude (at least one); 0 elsewhere."""
    keep = max(1, round(density * delta.numel()))
    if keep >= delta.numel():
        return delta
    kept = torch.zeros_like(delta).flatten()
    index = delta.flatten().abs().topk(keep).indices
    return kept.index_copy(0, index, delta.flatten()[index]).view_as(delta)


def _drop(delta: Tensor, density: float, key: str) -> Tensor:
    digest = hashlib.sha256(key.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    keep = torch.rand(delta.shape, generator=generator, dtype=torch.float64) < density
    return delta * keep.to(delta.device) / density


def _one_each(models: Sequence[State], weights: Sequence[float], noun: str) -> None:
    if not models:
        raise ValueError("no models to merge: give at least one")
    if len(models) != len(weights):
        raise ValueError(f"{len(weights)} {noun}s for {len(models)} models: give one {noun} each")


def _check_density(density: float) -> None:
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}: the share of entries to keep must be in (0, 1]")

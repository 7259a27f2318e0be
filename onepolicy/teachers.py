"""Who scores what: hard routing by domain, and frozen checkpoints of which one at a time is resident.

`Routed` sends each sample to the one scorer of its domain and restores the order (MOPD's rule; no mixture, no router).
`Shelf` holds any number of frozen checkpoints at the cost of one: their weights stay in memory-mapped files, and
activating a teacher points one model's parameters at its map (CPU) or copies them to the GPU. Memory and time of a
step are therefore flat in the number of teachers (benchmarks/teachers.py).

A checkpoint is mapped from where it lies if its file holds the tensors that the module wants: the same names, shapes
and dtype (`dtype: auto` is the file's). Else it is converted once, into the user's cache (weightcache.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel

from onepolicy.checkpoints import checkpoint_folder, load_config, stored_tensors, weight_files, weights_dtype
from onepolicy.config import DistillConfig, ModelConfig
from onepolicy.engines.base import Scorer
from onepolicy.engines.forward import Head, check_head, score_samples
from onepolicy.engines.local import LocalEngine
from onepolicy.engines.positions import context_length
from onepolicy.engines.precision import choose_attention, compute_in
from onepolicy.engines.probe import check_scoring
from onepolicy.engines.text import Renderer
from onepolicy.merging import is_finite
from onepolicy.models import load_tokenizer, read_model
from onepolicy.types import Sample, TokenScores, Want
from onepolicy.watch import Watch, contents, model_files, model_hashes
from onepolicy.weightcache import (
    Converted,
    check_finite,
    keep_converted,
    open_converted,
    weights_hash,
)

Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]  # what tensors a model or a file holds


class Routed:
    """domain → scorer. Itself a Scorer. Two domains of one scorer make one call, and an absent domain makes none."""

    def __init__(self, scorers: Mapping[str, Scorer]) -> None:
        if not scorers:
            raise ValueError("no domain has a scorer: give at least one teacher")
        self.scorers = dict(scorers)

    def score(self, samples: Sequence[Sample], want: Want) -> list[TokenScores]:
        """Scores in the order of `samples`. Raises ValueError for a domain without a scorer, before any scoring."""
        rows: dict[int, list[int]] = {}
        for i, sample in enumerate(samples):
            if sample.task.domain not in self.scorers:
                known = ", ".join(sorted(self.scorers))
                raise ValueError(f"no teacher for domain {sample.task.domain!r}; there are teachers for {known}")
            rows.setdefault(id(self.scorers[sample.task.domain]), []).append(i)
        results: dict[int, TokenScores] = {}
        for indices in rows.values():
            scorer = self.scorers[samples[indices[0]].task.domain]
            scores = scorer.score([samples[i] for i in indices], want)
            results.update(zip(indices, scores, strict=True))
        return [results[i] for i in range(len(samples))]

    @property
    def distinct(self) -> list[Scorer]:
        """Every scorer once, however many domains it has."""
        return list({id(scorer): scorer for scorer in self.scorers.values()}.values())

    def engine(self, domain: str, renderer: Renderer, batch_size: int) -> LocalEngine:
        """A domain's teacher as one that writes, until another of its shelf is asked for anything."""
        teacher = self.scorers[domain]
        if not isinstance(teacher, FrozenTeacher):
            raise ValueError(f"the teacher of {domain!r} only scores: a checkpoint is needed for it to write")
        return LocalEngine(teacher.shelf.activate(teacher), renderer, batch_size=batch_size, dtype=teacher.compute)


class Shelf:
    """Frozen checkpoints, one resident at a time. `spool`: a folder for converted weights in the cache's place."""

    def __init__(
        self,
        *,
        device: torch.device,
        temperature: float,
        tokens_per_batch: int,
        vocabulary: int,
        spool: Path | None = None,
    ) -> None:
        self.device, self.temperature, self.tokens_per_batch = device, temperature, tokens_per_batch
        self.vocabulary, self.spool = vocabulary, spool
        self._teachers: dict[str, FrozenTeacher] = {}
        self._skeletons: dict[str, Skeleton] = {}
        self._resident: FrozenTeacher | None = None
        self._open_head: tuple[FrozenTeacher, Tensor, Tensor | None] | None = None

    def teacher(self, name: str, config: ModelConfig, as_student: bool = False) -> FrozenTeacher:
        """The scorer for a checkpoint; two names for one checkpoint get the same object.

        `as_student`: it computes like a student of that configuration, with float32 weights and, for bfloat16, under
        autocast. So the model that a run starts from scores what the student would before its first step.
        """
        folder = checkpoint_folder(config, f"teacher {name!r}").resolve()
        key = f"{folder} {config.dtype} {config.attention} {as_student}"
        if key not in self._teachers:
            self._teachers[key] = FrozenTeacher(self, name, config, as_student)
        return self._teachers[key]

    def activate(self, teacher: FrozenTeacher) -> PreTrainedModel:
        """Make a teacher the resident one and return its model, ready to run."""
        teacher.watch.check()  # before its map is touched: a page of a truncated file ends the process
        if self._resident is not teacher:
            self._evict()
            self._prepare(teacher)
            _point(self._skeletons[teacher.architecture].model, teacher.map(), self.device)
            self._resident = teacher
        return self._skeletons[teacher.architecture].model

    def head_weights(self, teacher: FrozenTeacher) -> tuple[Tensor, Tensor | None]:
        """A teacher's output projection: that of the resident, or of one other at a time without the rest of it."""
        teacher.watch.check()
        if self._resident is teacher:
            projection = self._skeletons[teacher.architecture].model.get_output_embeddings()
            return projection.weight, getattr(projection, "bias", None)
        if self._open_head is None or self._open_head[0] is not teacher:
            self._open_head = None
            self._prepare(teacher)
            weight, bias = self._skeletons[teacher.architecture].head_names
            tensors = _map(teacher.files, {weight, bias})
            self._open_head = teacher, tensors[weight].to(self.device), tensors[bias].to(self.device) if bias else None
        return self._open_head[1], self._open_head[2]

    def _evict(self) -> None:
        """Let go of all weights, and with them of the files they are mapped from."""
        if self._resident is not None:
            _empty(self._skeletons[self._resident.architecture].model)
        self._resident = self._open_head = None

    def _prepare(self, teacher: FrozenTeacher) -> None:
        """Once per teacher: find the files to map it from, and the module that its weights fit into."""
        if teacher.files:
            return
        check_finite(teacher.stored_files, teacher.title)
        known = self._skeletons.get(teacher.architecture)
        if known is not None:  # then the layout alone says whether a file can be mapped
            if known.as_stored and _layout(_map(teacher.stored_files)) == known.layout:
                teacher.files = teacher.stored_files
                return
            converted = open_converted(teacher.conversion, self.spool)
            if converted is not None and _layout(_map([converted.path])) == known.layout:
                teacher.use(converted)
                return
        # Let transformers read the checkpoint: it knows renamed and fused weights, and what is tied.
        self._evict()
        model = read_model(teacher.folder, getattr(torch, teacher.dtype), teacher.config.attention, teacher.title)
        tensors = _tensors(model)
        _check_range(tensors, teacher)
        if teacher.autocast and teacher.config.attention is None:
            choose_attention(model, torch.bfloat16)  # as its student does
        check_head(model)
        with teacher.computing():
            check_scoring(model, teacher.head.vocabulary, context_length(model.config))
        stored = _map(teacher.stored_files)
        if _holds(stored, tensors):
            teacher.files = teacher.stored_files
        else:
            teacher.use(keep_converted(teacher.conversion, tensors, self.spool))
        if known is not None and known.layout != _layout(tensors):  # one config, yet (say) a head that is not tied
            teacher.architecture += f" {teacher.folder}"
        if teacher.architecture not in self._skeletons:
            as_stored = _layout(stored) == _layout(tensors) and teacher.files == teacher.stored_files
            skeleton = Skeleton(model.requires_grad_(False).eval(), _layout(tensors), _head_names(model), as_stored)
            _empty(model)
            self._skeletons[teacher.architecture] = skeleton
            model.to(self.device)  # what is computed and not stored, such as rotary frequencies


@dataclass(frozen=True, slots=True)
class Skeleton:
    """One architecture's module without weights of its own, what fits into it, its head's weight and bias, and whether
    checkpoints store the tensors as the module wants them."""

    model: PreTrainedModel
    layout: Layout
    head_names: tuple[str, str | None]
    as_stored: bool


class FrozenTeacher:
    """One checkpoint on the shelf, as a Scorer. Its weights are loaded when it is first asked.

    `head` works also when another teacher is resident by then: it maps this one's projection alone.
    Raises ValueError for a checkpoint that is not complete or cannot be used.
    """

    def __init__(self, shelf: Shelf, name: str, config: ModelConfig, as_student: bool = False) -> None:
        self.shelf, self.name, self.config, self.title = shelf, name, config, f"teacher {name!r}"
        self.folder = checkpoint_folder(config, self.title)
        model_config = load_config(self.folder, self.title)
        self.stored_files = weight_files(self.folder, self.title)
        self.watch = Watch()
        self.watch.add(self.title, [*self.stored_files, *model_files(self.folder)])
        stored = stored_tensors(self.stored_files, self.title)
        self.dtype = "float32" if as_student else weights_dtype(stored) if config.dtype == "auto" else config.dtype
        self.autocast = as_student and config.dtype == "bfloat16"
        self.compute = torch.bfloat16 if self.autocast else torch.float32  # of weights in float32; others say it
        self.architecture = _architecture_key(model_config, f"{self.dtype} {self.autocast}", config.attention)
        self.files: list[Path] = []
        self.head = Head(model_config, self._project, shelf.device, shelf.vocabulary)
        self._converted: Converted | None = None

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Hashes of weights, tokenizer and chat template, and the dtype: the identity that a resume must find again.

        Raises ValueError, naming tensor and file, for weights that are not finite: the files are read for this anyway.
        """
        check_finite(self.stored_files, self.title)
        self.watch.know(contents(self.folder, self.stored_files))
        return fingerprint(self.config) | {"dtype": f"{self.config.dtype} autocast" if self.autocast else self.dtype}

    @cached_property
    def conversion(self) -> str:
        """The key of a conversion of these weights: everything that it depends on."""
        return json.dumps([weights_hash(self.stored_files), self.architecture, transformers.__version__])

    def use(self, converted: Converted) -> None:
        """Map the weights from the cache, where they stay as long as this teacher is there."""
        self._converted, self.files = converted, [converted.path]
        self.watch.add(f"{self.title}, converted weights", self.files)

    def score(self, samples: Sequence[Sample], want: Want) -> list[TokenScores]:
        """Raises FilesChanged when a file of it has changed since it was opened, also while it scored."""
        with self.computing():
            scores = score_samples(
                self.shelf.activate(self),
                self.head,
                samples,
                want,
                source=self.name,
                temperature=self.shelf.temperature,
                tokens_per_batch=self.shelf.tokens_per_batch,
            )
        self.watch.check()
        return scores

    def map(self) -> dict[str, Tensor]:
        """name → tensor, on memory-mapped files: pages are read when touched and dropped with the last reference."""
        return _map(self.files)

    def _project(self, hidden_CH: Tensor) -> Tensor:
        weight, bias = self.shelf.head_weights(self)
        with self.computing():  # in its own precision, whoever asks
            return linear(hidden_CH.to(weight.dtype), weight, bias)

    def computing(self) -> AbstractContextManager[None]:
        """The precision of all that this teacher computes."""
        return compute_in(self.compute, self.shelf.device)


def open_teachers(models: Mapping[str, ModelConfig], routes: Mapping[str, str], shelf: Shelf) -> Routed:
    """The frozen teachers `models`, routed by domain → name. Nothing is loaded yet."""
    return Routed({domain: shelf.teacher(name, models[name]) for domain, name in routes.items()})


def annotate_disagreement(samples: Sequence[Sample], teachers: Routed) -> None:
    """Let *all* teachers score every sample: the largest minus the smallest log-prob of each token, nats (Open-MOPD).

    NaN on a token that none of them has scored. Costs one scoring of all samples per distinct teacher.
    """
    opinions = [scorer.score(samples, Want("sampled")) for scorer in teachers.distinct]
    for i, sample in enumerate(samples):
        logprobs_JR = np.stack([scores[i].logprobs_R for scores in opinions])  # J: teachers
        scored_JR = np.isfinite(logprobs_JR)
        spread_R = np.where(scored_JR, logprobs_JR, -np.inf).max(0) - np.where(scored_JR, logprobs_JR, np.inf).min(0)
        sample.disagreement_R = np.where(scored_JR.any(0), spread_R, np.nan).astype(np.float32)


def wanted(config: DistillConfig) -> Want:
    """What the configured distillation needs from a teacher."""
    return Want(*config.wants)


def fingerprint(config: ModelConfig) -> dict[str, str]:
    """sha256 of weights, tokenizer map, chat template and the files beside the weights; the dtype of the weights."""
    folder = checkpoint_folder(config)
    files = weight_files(folder)
    tokenizer = load_tokenizer(config)
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    return {
        "weights": weights_hash(files),
        "tokenizer": hashlib.sha256(vocabulary).hexdigest(),
        "template": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest(),
        "dtype": weights_dtype(stored_tensors(files)) if config.dtype == "auto" else config.dtype,
        **model_hashes(folder),
    }


def _architecture_key(model_config: Any, dtype: str, attention: str | None) -> str:
    """Checkpoints of one key are the same function of their weights."""
    fields = model_config.to_dict()
    for name in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
        fields.pop(name, None)
    return json.dumps([fields, dtype, attention], sort_keys=True, default=str)


def _check_range(tensors: Mapping[str, Tensor], teacher: FrozenTeacher) -> None:
    """Raises ValueError where finite weights do not stay finite in another dtype."""
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise ValueError(
                f"{teacher.title}: tensor {name!r} of {teacher.folder} is beyond the range of {teacher.dtype}: use "
                "dtype: auto (the file's own), bfloat16 or float32"
            )


def _map(files: Sequence[Path], only: Collection[str | None] | None = None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if only is None or name in only]  # noqa: SIM118 (no iterator)
            tensors.update({name: file.get_tensor(name) for name in names})
    return tensors


def _tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters and persistent buffers, tied ones once."""
    kept = model.state_dict().keys()
    tensors = {name: p.data for name, p in model.named_parameters()}
    return tensors | {name: b for name, b in model.named_buffers() if name in kept}


def _layout(tensors: Mapping[str, Tensor]) -> Layout:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def _holds(stored: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> bool:
    """Whether these tensors are stored as they are, values included: transformers may have converted them.

    The file may hold more, for example a tied head written out.
    """
    return all(
        name in stored and stored[name].dtype == tensor.dtype and torch.equal(stored[name], tensor)
        for name, tensor in tensors.items()
    )


def _head_names(model: PreTrainedModel) -> tuple[str, str | None]:
    """Names of the output projection's weight (a tied one goes by the embedding's name) and bias."""
    projection = model.get_output_embeddings()
    names = {id(p): name for name, p in model.named_parameters()}
    bias = getattr(projection, "bias", None)
    return names[id(projection.weight)], names[id(bias)] if bias is not None else None


def _point(model: PreTrainedModel, tensors: Mapping[str, Tensor], device: torch.device) -> None:
    for name, target in (*model.named_parameters(), *model.named_buffers()):
        if name in tensors:
            target.data = tensors[name].to(device)


def _empty(model: PreTrainedModel) -> None:
    for parameter in model.parameters():
        parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)

"""Checkpoints to merge, and whether they fit together: found out from their headers, before weights are merged.

Two configurations are compared in what they mean: as transformers reads them, whichever version wrote them and whether
it wrote defaults out. Vocabularies padded to unlike sizes can be made equal, and a tied head that one model has written
out is not part of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PretrainedConfig

from onepolicy import merging
from onepolicy.checkpoints import (
    BESIDE,
    Stored,
    check_tensors,
    checkpoint_folder,
    empty_model,
    load_config,
    load_generation_config,
    stored_tensors,
    weight_files,
)
from onepolicy.config import MergeConfig, ModelConfig
from onepolicy.models import differing_tokens, load_tokenizer
from onepolicy.runfolder import sha256
from onepolicy.watch import Watch
from onepolicy.weightcache import check_finite, file_facts

MANIFEST = "merge.json"
# Keys of a configuration that do not change what weights mean: how it was written, how the model runs or is trained.
# The size of the vocabulary and ties are looked at in the tensors.
NO_MEANING = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "auto_map", "use_cache"}
NO_MEANING |= {"bos_token_id", "eos_token_id", "pad_token_id", "vocab_size", "tie_word_embeddings"}
NO_MEANING |= {"attn_implementation", "_attn_implementation", "experts_implementation", "cache_implementation"}
NO_MEANING |= {"output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "pretraining_tp"}
NO_MEANING |= {"initializer_range", "router_aux_loss_coef", "router_jitter_noise", "gradient_checkpointing"}
# The same as layer_types says, layer by layer.
LAYERS = {"use_sliding_window", "max_window_layers", "sliding_window_pattern", "_sliding_window_pattern"}
LAYERS |= {"no_rope_layer_interval"}
LENGTH = "max_position_embeddings"
BY_LENGTH = ("dynamic", "longrope")  # rope types that compute with it


class Checkpoint:
    """One input: its folder, what it means, and where its tensors are. No weights."""

    def __init__(self, name: str, config: ModelConfig) -> None:
        """Raises ValueError on a folder that is not complete, or with tensors of a dtype that cannot be merged."""
        self.name, self.config = name, config
        self.who = name if name == "base" else f"model {name!r}"
        self.folder = checkpoint_folder(config, self.who)
        self.model_config = load_config(self.folder, self.who)
        if name == "base":  # whose is carried
            load_generation_config(self.folder, self.who)
        self.tokenizer = load_tokenizer(config, self.who)
        self.files = weight_files(self.folder, self.who)
        self.watch = Watch()
        self.watch.add(self.who, [*self.files, *self.beside()])
        self.tensors: dict[str, Stored] = stored_tensors(self.files, self.who)
        model = empty_model(self.model_config, config.attention, self.folder, self.who)
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        names = {id(module): name for name, module in model.named_modules()}
        self.tied = head is not None and head.weight is embedding.weight
        self.embedding = self._stored_name(f"{names[id(embedding)]}.weight")
        self.head = self._stored_name(f"{names[id(head)]}.weight") if head is not None else None
        self.head_bias = self._stored_name(f"{names[id(head)]}.bias") if head is not None else None
        self.shown_as: dict[str, str] = {}  # a tensor that is not stored → the one that it is equal to

    @property
    def layout(self) -> dict[str, Tensor]:
        """As a state dict without values."""
        return {name: torch.empty(s.shape, dtype=s.dtype, device="meta") for name, s in self.tensors.items()}

    @property
    def rows(self) -> int:
        """Of the embedding: the tokenizer's tokens and the padding."""
        if self.embedding is None:
            raise ValueError(f"{self.who}: {self.folder} holds no token embedding under a name that is known")
        return self.tensors[self.embedding].shape[0]

    @property
    def vocabulary_tensors(self) -> list[str]:
        """The tensors with one row for each token."""
        return [name for name in (self.embedding, self.head, self.head_bias) if name in self.tensors]

    @cached_property
    def hashes(self) -> dict[str, str]:
        """File → sha256."""
        beside = {path.name: sha256(path) for path in self.beside()}
        return {path.name: file_facts(path).sha256 for path in self.files} | beside

    def beside(self) -> list[Path]:
        """The files that say how the weights are used."""
        found = {path for pattern in BESIDE for path in self.folder.glob(pattern) if path.is_file()}
        return sorted(path for path in found if path.name != MANIFEST and not path.name.endswith(".index.json"))

    def read(self, name: str) -> Tensor:
        """One tensor, mapped: its pages are let go of with it. Raises FilesChanged if its files have changed."""
        self.watch.check()
        name = self.shown_as.get(name, name)
        with safe_open(self.tensors[name].file, "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def head_equals_embedding(self) -> bool:
        """Also where the head is not stored."""
        if self.head is None or self.embedding is None:
            return self.tied
        return torch.equal(self.read(self.head), self.read(self.embedding))

    def _stored_name(self, name: str) -> str | None:
        """The name of a module's tensor in the file, which may have another prefix."""
        if name in self.tensors:
            return name
        end = "." + ".".join(name.split(".")[-2:])
        found = [stored for stored in self.tensors if f".{stored}".endswith(end)]
        return found[0] if len(found) == 1 else None


class Inputs:
    """The models to merge, found to fit together before a tensor is merged; a ValueError names what does not."""

    def __init__(self, config: MergeConfig) -> None:
        self.base = Checkpoint("base", config.base)
        self.models = [Checkpoint(name, model) for name, model in config.models.items()]
        self.all = [self.base, *self.models]
        for model in self.models:
            check_same_meaning(self.base, model)
            check_same_tokenizer(self.base, model)
        settle_heads(self.base, self.models)
        self.rows = common_rows(self.all, config)
        layouts = [self._resized_layout(checkpoint) for checkpoint in self.all]
        merging.check_layouts(layouts, self.where)
        self.layout = layouts[0]  # of the result, without values
        base = self.base  # by now all hold the same tensors
        model = empty_model(base.model_config, base.config.attention, base.folder, base.who)
        check_tensors(base.tensors, model, base.folder, base.who)

    @property
    def hashes(self) -> dict[str, dict[str, str]]:
        """Input → file → sha256, each file read once."""
        return {checkpoint.name: checkpoint.hashes for checkpoint in self.all}

    def check_finite(self) -> None:
        """Raises ValueError naming tensor and file. Reads all weights, unless their hashes are in the cache."""
        self.check_unchanged()
        for checkpoint in self.all:
            check_finite(checkpoint.files, checkpoint.who)

    def read(self, name: str) -> list[Tensor]:
        """One tensor of the base and of every model, all of one shape."""
        tensors = [checkpoint.read(name) for checkpoint in self.all]
        return with_rows(tensors, self.rows) if name in self.base.vocabulary_tensors else tensors

    def check_unchanged(self) -> None:
        """Raises FilesChanged when a file of any model is not what it was when it was opened."""
        for checkpoint in self.all:
            checkpoint.watch.check()

    def where(self, i: int, tensor: str) -> str:
        checkpoint = self.all[i]
        return str(checkpoint.tensors[tensor].file if tensor in checkpoint.tensors else checkpoint.folder)

    def _resized_layout(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        layout = checkpoint.layout
        for name in checkpoint.vocabulary_tensors:
            layout[name] = layout[name].new_empty((self.rows, *layout[name].shape[1:]))
        return layout


def check_same_meaning(base: Checkpoint, model: Checkpoint) -> None:
    """Raises ValueError, naming key, values and files, where two configurations mean different functions."""
    ours, theirs = meaning(base.model_config), meaning(model.model_config)
    files = base.folder / "config.json", model.folder / "config.json"
    for key in sorted({*ours, *theirs}):
        one, other = ours.get(key), theirs.get(key)
        if one == other:
            continue
        text = f"{key} is {one!r} in {files[0]} and {other!r} in {files[1]}"
        if key.rpartition(".")[2] != LENGTH or _computes_with_length(ours, theirs):
            raise ValueError(f"{text}: weights mean something else there; merge models of one origin")
        print(f"warning: {text}: the base's is kept", file=sys.stderr)


def meaning(config: PretrainedConfig) -> dict[str, Any]:
    """What a configuration says of the function that weights are, by dotted key; None is left out.

    Spelling is gone: transformers has read it, so that old and new names of a setting are one, and defaults are there.
    """
    found: dict[str, Any] = {}
    values = config.to_dict()
    declared = {field.name for field in fields(config)} if is_dataclass(config) else set(values)
    for key, value in values.items():
        part = vars(config).get(key)  # not getattr: it refuses what differs from layer to layer
        if isinstance(part, PretrainedConfig):
            found |= {f"{key}.{inner}": inner_value for inner, inner_value in meaning(part).items()}
        elif key in NO_MEANING or "dropout" in key or key.endswith("pdrop") or value is None:
            continue
        elif key in declared or key in ("model_type", "per_layer_config"):  # of others its class knows nothing
            found |= dict(_dotted(key, value))
    if layers := values.get("layer_types"):
        unused = LAYERS if any("full" not in kind for kind in layers) else LAYERS | {"sliding_window"}
        found = {key: value for key, value in found.items() if key not in unused}
    return found


def check_same_tokenizer(base: Checkpoint, model: Checkpoint) -> None:
    """Another chat template is only warned of: the merged model gets the base's."""
    ours, theirs = base.tokenizer.get_vocab(), model.tokenizer.get_vocab()
    if differing := differing_tokens(base.tokenizer, model.tokenizer):
        token = differing[0]
        raise ValueError(
            f"model {model.name!r} has another tokenizer than the base: {len(differing)} tokens differ, for example "
            f"{token!r} is {ours.get(token, 'absent')} in {base.folder} and {theirs.get(token, 'absent')} in "
            f"{model.folder}: their rows of the embedding are of different tokens; merge models of one tokenizer"
        )
    if base.tokenizer.chat_template != model.tokenizer.chat_template:
        print(f"warning: {model.folder} has another chat template than {base.folder}, whose is kept", file=sys.stderr)


def settle_heads(base: Checkpoint, models: Sequence[Checkpoint]) -> None:
    """Make all heads tied, or all of them tensors, as the base has it. Raises ValueError where that changes a model."""
    for model in (base, *models):
        stored = model.head in model.tensors
        if base.tied and stored:
            if not model.head_equals_embedding():
                raise ValueError(
                    f"tensor {model.head!r} in {model.tensors[str(model.head)].file} is not equal to the embedding "
                    f"{model.embedding!r}, and tie_word_embeddings is true in {base.folder / 'config.json'} (in "
                    f"{model.folder / 'config.json'} it is {str(model.tied).lower()}): a head of its own cannot be "
                    "merged into a tied one; merge models of one origin"
                )
            del model.tensors[str(model.head)]
        elif not base.tied and model.tied and not stored:
            if not base.head_equals_embedding():
                raise ValueError(
                    f"tie_word_embeddings is true in {model.folder / 'config.json'} and false in "
                    f"{base.folder / 'config.json'}, whose head {base.head!r} is not equal to its embedding: weights "
                    "mean something else there; merge models of one origin"
                )
            assert base.head is not None and model.embedding is not None, "a head of its own, and an embedding"
            model.tensors[base.head] = model.tensors[model.embedding]
            model.shown_as[base.head], model.head = model.embedding, base.head


def common_rows(checkpoints: Sequence[Checkpoint], config: MergeConfig) -> int:
    """Rows of the merged embedding. Raises ValueError where paddings differ and `vocabulary` is not set."""
    tokens = len(checkpoints[0].tokenizer)
    smallest = min(checkpoints, key=lambda checkpoint: checkpoint.rows)
    largest = max(checkpoints, key=lambda checkpoint: checkpoint.rows)
    if smallest.rows == largest.rows:
        return smallest.rows
    sizes = ", ".join(f"{checkpoint.name} {checkpoint.rows}" for checkpoint in checkpoints)
    if smallest.rows < tokens:
        raise ValueError(
            f"{smallest.who}: tensor {smallest.embedding!r} in {smallest.folder} has {smallest.rows} rows, and the "
            f"tokenizer {tokens} tokens (rows: {sizes}): not all of them have an embedding; take a whole checkpoint"
        )
    if config.vocabulary is None:
        raise ValueError(
            f"tensor {smallest.embedding!r} has {smallest.rows} rows in {smallest.folder} and {largest.rows} in "
            f"{largest.folder}: vocabularies of {tokens} tokens are padded to unlike sizes ({sizes}); set vocabulary: "
            f"pad (to {largest.rows}) or vocabulary: trim (to {smallest.rows})"
        )
    return largest.rows if config.vocabulary == "pad" else smallest.rows


def with_rows(tensors: Sequence[Tensor], rows: int) -> list[Tensor]:
    """The base's tensor and the models', cut or padded to so many rows.

    A missing row is the base's, so that its delta is 0. One that the base has not, either, is the mean of those that
    there are: a row of zeros would have the logit 0, more than most tokens.
    """
    base = tensors[0][:rows]
    if len(base) < rows:
        total = base.new_zeros((rows - len(base), *base.shape[1:]), dtype=torch.float32)
        count = total.new_zeros((len(total), *[1] * (base.ndim - 1)))
        for tensor in tensors[1:]:
            further = tensor[len(base) : rows]
            total[: len(further)] += further.float()
            count[: len(further)] += 1
        base = torch.cat([base, (total / count).to(base.dtype)])
    return [base, *(torch.cat([tensor[:rows], base[len(tensor) :]]) for tensor in tensors[1:])]


def merged_config(base: Checkpoint, rows: int) -> str:
    """The base's config.json, of `rows` tokens."""
    text = (base.folder / "config.json").read_text(encoding="utf-8")
    if rows == base.rows:
        return text
    values: dict[str, Any] = json.loads(text)
    place = values if "vocab_size" in values or "text_config" not in values else values["text_config"]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        found = place.get(name)
        if any(token >= rows for token in (found if isinstance(found, list) else [found]) if token is not None):
            raise ValueError(f"{name} is {found} in {base.folder / 'config.json'}, beyond a vocabulary of {rows}")
    place["vocab_size"] = rows
    return json.dumps(values, indent=2) + "\n"


def _dotted(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Rope settings are nested; `type` is the old name of rope_type, which is there as well."""
    if not isinstance(value, dict):
        yield key, value
        return
    for inner, inner_value in value.items():
        if inner_value is not None and not (inner == "type" and "rope_type" in value):
            yield from _dotted(f"{key}.{inner}", inner_value)


def _computes_with_length(*meanings: dict[str, Any]) -> bool:
    return any(
        value in BY_LENGTH for found in meanings for key, value in found.items() if key.endswith("rope_type")
    ) or not any(key.endswith("rope_type") for key in meanings[0])

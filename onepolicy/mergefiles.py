"""Merging checkpoints from file to file, tensor by tensor: the rules are in merging.py.

At any time there is one tensor of every model in memory, and the merged one (in float32 for the computation), however
large the models are: the layout of the output is known from the inputs' headers, so a tensor is on disk before the next
is read. The result is an ordinary Hugging Face folder with the base's configuration and tokenizer, and merge.json: the
method, its parameters, the sha256 of every file read and written. It is written beside its name, then renamed.

Left out: quantised weights, and LoRA adapters that have not been merged into their model (see merging.lora_delta).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from onepolicy import merging
from onepolicy.config import MergeConfig, ModelConfig
from onepolicy.files import require_space, whole
from onepolicy.models import differing_tokens, load_tokenizer
from onepolicy.runfolder import sha256
from onepolicy.teachers import checkpoint_folder, weight_files

DTYPES = {  # https://huggingface.co/docs/safetensors, "Format"
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MANIFEST = "merge.json"
BESIDE = ("*.json", "*.model", "*.txt", "*.jinja")  # what lies beside the weights and is taken over from the base
# In a config.json, of no account for what the weights mean.
MAY_DIFFER = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"}
MAY_DIFFER |= {"bos_token_id", "eos_token_id", "pad_token_id"}


@dataclass(frozen=True, slots=True)
class Stored:
    """Where one tensor lies in a safetensors file."""

    file: Path
    code: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.code]

    def read(self) -> Tensor:
        """A copy in memory: a map would keep all pages that were ever touched."""
        buffer = bytearray(self.stop - self.start)
        with self.file.open("rb") as file:
            file.seek(self.start)
            if file.readinto(buffer) != len(buffer):
                raise ValueError(f"{self.file} is shorter than its header says: it is torn, copy it again")
        flat = torch.frombuffer(buffer, dtype=self.dtype) if buffer else torch.empty(0, dtype=self.dtype)
        return flat.reshape(self.shape)


class Checkpoint:
    """One input: its folder, and where its tensors are. No weights."""

    def __init__(self, name: str, config: ModelConfig) -> None:
        """Raises ValueError on a folder without safetensors, or with tensors of a dtype that cannot be merged."""
        self.tokenizer = load_tokenizer(config)  # first: it knows how to say that there is no model
        self.name, self.config, self.folder = name, config, checkpoint_folder(config)
        self.files = weight_files(self.folder)
        self.tensors = {name: stored for file in self.files for name, stored in _header(file)}

    @property
    def layout(self) -> dict[str, Tensor]:
        """As a state dict without values."""
        return {name: torch.empty(s.shape, dtype=s.dtype, device="meta") for name, s in self.tensors.items()}

    def beside(self) -> list[Path]:
        """The files that say how the weights are used."""
        found = {path for pattern in BESIDE for path in self.folder.glob(pattern)}
        return sorted(path for path in found if path.name != MANIFEST and not path.name.endswith(".index.json"))

    @cached_property
    def hashes(self) -> dict[str, str]:
        return {path.name: sha256(path) for path in [*self.files, *self.beside()]}


class Inputs:
    """The models to merge, found to fit together before a tensor is read; a ValueError names what does not."""

    def __init__(self, config: MergeConfig) -> None:
        self.base = Checkpoint("base", config.base)
        self.models = [Checkpoint(name, model) for name, model in config.models.items()]
        self.all = [self.base, *self.models]
        merging.check_layouts([checkpoint.layout for checkpoint in self.all], self._where)
        for model in self.models:
            _same_architecture(self.base, model)
            _same_tokenizer(self.base, model)

    @property
    def hashes(self) -> dict[str, dict[str, str]]:
        """Input → file → sha256, each file read once."""
        return {checkpoint.name: checkpoint.hashes for checkpoint in self.all}

    def merge(self, config: MergeConfig, target: Path) -> None:
        """Write the merged model; what was under that name is replaced when it is whole.

        Raises OSError (ENOSPC) when it does not fit on the disk, before anything is written.
        """
        size = sum(stored.stop - stored.start for stored in self.base.tensors.values())
        require_space(target, size, f"the merged model {target}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole(target) as scratch:
            scratch.mkdir()
            for path in self.base.beside():
                shutil.copy2(path, scratch)
            self._write_weights(config, scratch)
            (scratch / "README.md").write_text(_card(config), encoding="utf-8")
            (scratch / MANIFEST).write_text(json.dumps(self._manifest(config, scratch), indent=1))

    def _write_weights(self, config: MergeConfig, folder: Path) -> None:
        shards = _shards(self.base.tensors, config.shard_bytes)
        names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        names = names if len(shards) > 1 else ["model.safetensors"]
        for name, shard in zip(names, shards, strict=True):
            with (folder / name).open("wb") as file:
                file.write(_header_bytes({tensor: self.base.tensors[tensor] for tensor in shard}))
                for tensor in shard:
                    _write(file, self._merged(config, tensor))
        if len(shards) > 1:
            size = sum(stored.stop - stored.start for stored in self.base.tensors.values())
            weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))

    def _merged(self, config: MergeConfig, name: str) -> Tensor:
        states = [{name: checkpoint.tensors[name].read()} for checkpoint in self.all]
        merging.check_constants(states, self._where)
        return merged_state(config, states[0], states[1:])[name]

    def _where(self, i: int, tensor: str) -> str:
        checkpoint = self.all[i]
        return str(checkpoint.tensors[tensor].file if tensor in checkpoint.tensors else checkpoint.folder)

    def _manifest(self, config: MergeConfig, folder: Path) -> dict[str, Any]:
        inputs = {c.name: {"path": c.config.path, "files": c.hashes} for c in self.all}
        return {
            "method": config.method,
            "parameters": parameters(config),
            "base": inputs.pop("base"),
            "models": {name: inputs[name] for name in config.models},
            "files": {path.name: sha256(path) for path in sorted(folder.iterdir())},
        }


def merged_state(config: MergeConfig, base: merging.State, models: Sequence[merging.State]) -> dict[str, Tensor]:
    """The configured rule on state dicts: of one tensor, or of whole models."""
    lambdas, weights, density = config.each(config.lambdas), config.each(config.weights), config.density
    match config.method:
        case "average":
            return merging.average(models, weights)
        case "task_arithmetic":
            return merging.task_arithmetic(base, models, lambdas)
        case "ties":
            assert density is not None, "checked in MergeConfig"
            return merging.ties(base, models, weights, density)
        case "dare":
            assert density is not None, "checked in MergeConfig"
            return merging.dare(base, models, lambdas, density, config.seed)
        case "slerp":
            assert config.t is not None, "checked in MergeConfig"
            return merging.slerp(models[0], models[1], config.t)


def parameters(config: MergeConfig) -> dict[str, Any]:
    """What the method was given, spelt out per model."""
    found: dict[str, Any] = {}
    for setting in ("lambdas", "weights"):
        if (value := getattr(config, setting)) is not None:
            found[setting] = dict(zip(config.models, config.each(value), strict=True))
    found |= {name: getattr(config, name) for name in ("density", "t") if getattr(config, name) is not None}
    return found | ({"seed": config.seed} if config.method == "dare" else {})


def _same_architecture(base: Checkpoint, model: Checkpoint) -> None:
    ours, theirs = (json.loads((c.folder / "config.json").read_text()) for c in (base, model))
    for key in sorted({*ours, *theirs} - MAY_DIFFER):
        if ours.get(key) != theirs.get(key):
            raise ValueError(
                f"{key} is {ours.get(key)!r} in {base.folder / 'config.json'} and {theirs.get(key)!r} in "
                f"{model.folder / 'config.json'}: weights mean something else there; merge models of one origin"
            )


def _same_tokenizer(base: Checkpoint, model: Checkpoint) -> None:
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


def _header(path: Path) -> Iterator[tuple[str, Stored]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries: dict[str, Any] = json.loads(file.read(length))
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise ValueError(
                f"tensor {name!r} in {path} is {entry['dtype']}: quantised weights cannot be merged; save the model in "
                "bfloat16 or float32 first"
            )
        start, stop = entry["data_offsets"]
        yield name, Stored(path, entry["dtype"], tuple(entry["shape"]), 8 + length + start, 8 + length + stop)


def _header_bytes(tensors: Mapping[str, Stored]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, stored in tensors.items():
        size = stored.stop - stored.start
        entries[name] = {"dtype": stored.code, "shape": stored.shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data starts aligned
    return len(text).to_bytes(8, "little") + text


def _shards(tensors: Mapping[str, Stored], limit: int) -> list[list[str]]:
    """Names in the order of the base's files; within a file wide dtypes come first, so that every tensor is aligned."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, stored in tensors.items():
        size += stored.stop - stored.start
        if shards[-1] and size > limit:
            shards.append([])
            size = stored.stop - stored.start
        shards[-1].append(name)
    return [sorted(shard, key=lambda name: -tensors[name].dtype.itemsize) for shard in shards]


def _write(file: IO[bytes], tensor: Tensor) -> None:
    file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _card(config: MergeConfig) -> str:
    models = "".join(f"- {name}: `{model.path}`\n" for name, model in config.models.items())
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [onepolicy, merge]\n---\n"
        f"# {config.output.name}\n\nMerged with onepolicy by `{config.method}` from `{config.base.path}` and\n\n"
        f"{models}\nParameters and the hashes of all files are in `{MANIFEST}`.\n"
    )

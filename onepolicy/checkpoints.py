"""Checkpoint folders: where a model lies, and whether its files are whole and of a kind that can be used.

Everything here takes seconds whatever the model's size: it reads configurations and headers, never weights. Faults are
ValueErrors that begin with whose model it is (`who`: "model", "teacher 'math'", "base").
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from onepolicy.config import ModelConfig
from onepolicy.tensornames import check_names

MODEL = "model"  # who, of a run's own
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
# The files beside the weights: how they are used, and on what terms.
BESIDE = ("*.json", "*.model", "*.tiktoken", "*.txt", "*.jinja", "*.py", "LICENSE*", "NOTICE*")
COPIES = ("consolidated*", "original/*", "metal/*")  # of the weights, in the formats of other programs
OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx")
# Architectures that cannot be used, by model_type, with the reason.
UNUSABLE = {
    "xlnet": "it is not causal, so a token's log-prob depends on the tokens behind it",
    "youtu": "transformers zeroes the embedding of its padding token at each load: a saved student would not come back",
}
TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")  # one of these holds the tokens
MAX_LAYERS = 10_000  # the empty module of so many is built in a minute
MAX_REASON = 160  # characters of another library's message in one of ours
# The generation parameters that must be numbers, and those that are a token id or a list of them.
NUMBERS = {"temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty"}
NUMBERS |= {"length_penalty", "num_beams", "num_return_sequences", "max_length", "max_new_tokens", "min_length"}
TOKEN_IDS = ("eos_token_id", "pad_token_id", "bos_token_id")


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor in a safetensors file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]


def checkpoint_folder(config: ModelConfig, who: str = MODEL, weights: bool = True) -> Path:
    """The checkpoint's local folder; of a hub id its cached snapshot, downloaded if need be (or all but `weights`).

    Raises ValueError where there is no checkpoint, and for an adapter.
    """
    if config.path is None:
        raise ValueError(f"{who}: a checkpoint is needed here: give its `path`, not `scratch`")
    folder = Path(config.path).expanduser()
    if not folder.is_dir():
        folder = _snapshot(config, who, weights)
    if (folder / "adapter_config.json").is_file():
        raise ValueError(_adapter_message(folder, who))
    if not (folder / "config.json").is_file():
        inner = f"; {folder / 'model'} is one" if (folder / "model" / "config.json").is_file() else ""
        raise ValueError(
            f"{who}: no model at {folder}: a checkpoint folder holds a config.json (or give a hub id, org/name){inner}"
        )
    return folder


def is_local(config: ModelConfig) -> bool:
    """Whether the path is a folder of this machine, so that all of it is there without a download."""
    return config.path is not None and Path(config.path).expanduser().is_dir()


def load_config(folder: Path, who: str = MODEL) -> PretrainedConfig:
    """The model's configuration. Raises ValueError where it cannot be read or is of a model that cannot be used."""
    path = folder / "config.json"
    fields = _read_object(path, who)
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"{who}: model_type {model_type!r} in {path} is unknown to transformers {transformers.__version__}: "
            "models with code of their own are not supported, and newer ones need a newer transformers"
        )
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f"{who}: model_type {model_type!r} in {path} is no causal language model")
    if model_type in UNUSABLE:
        name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
        raise ValueError(f"{who}: {name} cannot be used: {UNUSABLE[model_type]} (model_type in {path})")
    for part in (fields, fields.get("text_config") or {}):
        if not isinstance(part, dict):
            raise ValueError(f"{who}: text_config in {path} holds {type(part).__name__}, not an object of settings")
        layers = part.get("num_hidden_layers")
        if isinstance(layers, int) and layers > MAX_LAYERS:
            raise ValueError(f"{who}: num_hidden_layers is {layers:,} in {path}, beyond any model's: correct it there")
        quantised = part.get("quantization_config") or part.get("compression_config")
        if quantised:
            known = quantised if isinstance(quantised, dict) else {}
            method = known.get("quant_method", known.get("format", "of unknown method"))
            raise ValueError(
                f"{who}: {folder} is quantised ({method}, quantization_config in config.json), which is not supported: "
                "use the checkpoint in bfloat16 that it was made from, or dequantise it with "
                "model.dequantize().save_pretrained(new_folder)"
            )
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:
        raise ValueError(f"{who}: {path} is not valid: {one_line(error)}") from error


def empty_model(config: PretrainedConfig, attention: str | None, folder: Path, who: str = MODEL) -> PreTrainedModel:
    """The model without weights (device meta). Raises ValueError where its configuration makes none."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    except Exception as error:
        raise ValueError(
            f"{who}: {folder / 'config.json'} makes no model: {type(error).__name__}: {one_line(error)}"
        ) from error


def load_generation_config(folder: Path, who: str = MODEL) -> GenerationConfig:
    """The parameters of `generate`: generation_config.json, or what an old config.json says of them.

    Raises ValueError, naming file and value, for what transformers would refuse at the first or the last step.
    """
    path = folder / "generation_config.json"
    path = path if path.is_file() else folder / "config.json"
    fields = _read_object(path, who)
    for name in sorted(NUMBERS):
        value = fields.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{who}: {name} is {value!r} in {path}, which is no number: correct it there")
    for name in TOKEN_IDS:
        value = fields.get(name)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(one, bool) or not isinstance(one, int) for one in listed):
            raise ValueError(f"{who}: {name} is {value!r} in {path}, which is no token id or list of them: correct it")
    if fields.get("do_sample") not in (None, True, False):
        raise ValueError(f"{who}: do_sample is {fields['do_sample']!r} in {path}: give true or false")
    try:
        if path.name == "config.json":
            return GenerationConfig.from_pretrained(folder, config_file_name="config.json", _from_model_config=True)
        return GenerationConfig.from_pretrained(folder)
    except (ValueError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise ValueError(f"{who}: {path} is not valid: {one_line(error)}") from error


def weight_files(folder: Path, who: str = MODEL) -> list[Path]:
    """The safetensors files that transformers would read; a folder may hold others (Mistral's consolidated copy).

    Raises ValueError for other formats, and for files that are missing, torn, or only pointers to themselves.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        if not (folder / "model.safetensors").is_file():
            raise ValueError(_no_safetensors_message(folder, who))
        files = [folder / "model.safetensors"]
        _names_in(files[0], who)
        return files
    if (folder / "model.safetensors").is_file():
        raise ValueError(
            f"{who}: {folder} holds both model.safetensors and {index.name}, two sets of weights: move one of them away"
        )
    places = _read_object(index, who).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{who}: {index} has no weight_map: copy the checkpoint again")
    for tensor, name in places.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(
                f"{who}: {index} has tensor {tensor!r} in {name!r:.200}, which is no file of this folder: copy the "
                "checkpoint again"
            )
    names = sorted(set(places.values()))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(
            f"{who}: {missing[0]} is missing in {folder} ({len(missing)} of {len(names)} files that {index.name} "
            "names): the checkpoint is incomplete, copy or download it again"
        )
    for name in names:
        held = _names_in(folder / name, who)
        if absent := sorted(tensor for tensor, file in places.items() if file == name and tensor not in held):
            raise ValueError(
                f"{who}: tensor {absent[0]!r} is not in {folder / name}, where {index.name} has it: the files are of "
                "different checkpoints, copy them again"
            )
    return [folder / name for name in names]


def stored_tensors(files: Sequence[Path], who: str = MODEL) -> dict[str, Stored]:
    """name → where it lies, dtype and shape, from the headers. Raises ValueError for quantised weights."""
    found: dict[str, Stored] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no iterator)
                part = file.get_slice(name)
                code = part.get_dtype()
                if code not in DTYPES:
                    raise ValueError(
                        f"{who}: tensor {name!r} in {path} is {code}: quantised weights are not supported; save the "
                        "model in bfloat16 or float32 first"
                    )
                found[name] = Stored(path, DTYPES[code], tuple(part.get_shape()))
    return found


def weights_dtype(stored: dict[str, Stored]) -> str:
    """The dtype that most of a checkpoint's weights have: float32, bfloat16 or float16 (float64 counts as float32)."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in stored.values():
        if tensor.dtype.is_floating_point:
            sizes[tensor.dtype] += prod(tensor.shape)
    most = sizes.most_common(1)[0][0] if sizes else torch.float32
    return str(torch.float32 if most == torch.float64 else most).removeprefix("torch.")


def check_checkpoint(config: ModelConfig, who: str) -> Path:
    """All of the above that can be said without a download of weights; returns the folder."""
    folder = checkpoint_folder(config, who, weights=False)
    model = empty_model(load_config(folder, who), config.attention, folder, who)
    load_generation_config(folder, who)
    if is_local(config):
        check_tensors(stored_tensors(weight_files(folder, who), who), model, folder, who)
    return folder


def check_tensors(stored: dict[str, Stored], model: PreTrainedModel, folder: Path, who: str) -> None:
    """Raises ValueError for tensors that are missing, unexpected or of another shape than `model`, which is empty."""
    expected = model.state_dict()
    weights = {
        name: tensor.shape for name, tensor in stored.items() if tensor.dtype.is_floating_point or name in expected
    }
    check_names(weights, model, folder, who)
    for name in weights:
        dtype = stored[name].dtype
        if name in expected and expected[name].dtype.is_floating_point and not dtype.is_floating_point:
            raise ValueError(
                f"{who}: tensor {name!r} in {stored[name].file} is {str(dtype).removeprefix('torch.')}, and weights "
                "are floating-point numbers: save the model in bfloat16 or float32 first"
            )


def _snapshot(config: ModelConfig, who: str, weights: bool) -> Path:
    """The cached snapshot of a hub id."""
    path = Path(str(config.path)).expanduser()
    if path.exists():
        raise ValueError(f"{who}: no model at {path}: it is a file; give the folder that holds config.json and weights")
    if str(config.path).count("/") != 1 or str(config.path).startswith((".", "/", "~")):
        raise ValueError(
            f"{who}: no model at {path}: there is no such folder (from {Path.cwd()}); a checkpoint folder holds a "
            "config.json (or give a hub id, org/name)"
        )
    patterns = [*BESIDE, *(["*.safetensors"] if weights else [])]
    try:
        return Path(
            snapshot_download(
                str(config.path), revision=config.revision, allow_patterns=patterns, ignore_patterns=list(COPIES)
            )
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ValueError(
            f"{who}: no model at {config.path!r}: there is no such folder (from {Path.cwd()}), and as a hub id it "
            f"could not be fetched ({type(error).__name__}: {one_line(error)}): give the path of a folder, or an id "
            "that the hub has and this machine can reach"
        ) from error


def _names_in(path: Path, who: str) -> set[str]:
    """The tensors of one file. Opening it checks that the file is as long as its header says."""
    try:
        with safe_open(path, "pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        with path.open("rb") as handle:
            pointer = handle.read(64).startswith(b"version https://git-lfs")
        if pointer:
            raise ValueError(
                f"{who}: {path} is a Git LFS pointer, not the weights: fetch them (git lfs pull)"
            ) from error
        raise ValueError(f"{who}: {path} is torn ({one_line(error)}): copy or download it again") from error


def _read_object(path: Path, who: str) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{who}: {path} is not valid JSON: {one_line(error)}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{who}: {path} holds {type(fields).__name__}, not an object of settings")
    return fields


def _no_safetensors_message(folder: Path, who: str) -> str:
    others = sorted(path.name for pattern in OTHER_FORMATS for path in folder.glob(pattern))
    found = f"only {', '.join(others[:3])}" if others else "no weights at all"
    if any(name.endswith(".gguf") for name in others):
        return (
            f"{who}: no model.safetensors in {folder} ({found}): GGUF files are quantised for inference; use the "
            "checkpoint that they were made from"
        )
    return (
        f"{who}: no model.safetensors in {folder} ({found}): weights are mapped from safetensors; convert them: "
        'python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
        f"a, b = '{folder}', '{folder}-safetensors'; M.from_pretrained(a, dtype='auto').save_pretrained(b); "
        'T.from_pretrained(a).save_pretrained(b)"'
    )


def _adapter_message(folder: Path, who: str) -> str:
    base = _read_object(folder / "adapter_config.json", who).get("base_model_name_or_path")
    return (
        f"{who}: {folder} is a PEFT adapter (adapter_config.json; its base is {base!r}), not a model: merge it into "
        "its base first, and give the merged folder: "
        'python -c "from peft import AutoPeftModelForCausalLM as M; from transformers import AutoTokenizer as T; '
        f"a, b = '{folder}', '{folder}-merged'; "
        "M.from_pretrained(a, dtype='auto').merge_and_unload(safe_merge=True).save_pretrained(b); "
        f'T.from_pretrained({base!r}).save_pretrained(b)"'
    )


def one_line(error: Exception) -> str:
    """What an error says, without line breaks and not at length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}…"

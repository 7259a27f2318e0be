"""Merging checkpoints from file to file: the rules are in merging.py, what fits together in mergeinputs.py.

In memory there are the tensors of one output file (`shard_bytes`) and one tensor of every model (in float32 for the
computation), however large the models are. The result is an ordinary Hugging Face folder with the base's
configuration, generation config and tokenizer, and merge.json: the method, its parameters, the sha256 of every file
read and written. It is written beside its name, then renamed.

Left out: quantised weights, and LoRA adapters that have not been merged into their model (see merging.lora_delta).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from onepolicy import merging
from onepolicy.config import MergeConfig
from onepolicy.files import require_space, whole
from onepolicy.mergeinputs import MANIFEST, Inputs, merged_config
from onepolicy.runfolder import sha256


def merge_files(inputs: Inputs, config: MergeConfig, target: Path) -> None:
    """Write the merged model; what was under that name is replaced when it is whole.

    Raises ValueError for weights that are not finite and OSError (ENOSPC) for a disk without room, both before
    anything is written.
    """
    config_json = merged_config(inputs.base, inputs.rows)
    inputs.check_finite()
    size = sum(tensor.numel() * tensor.element_size() for tensor in inputs.layout.values())
    require_space(target, size, f"the merged model {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole(target) as scratch:
        scratch.mkdir()
        for path in inputs.base.beside():
            shutil.copy2(path, scratch)
        (scratch / "config.json").write_text(config_json, encoding="utf-8")
        _write_weights(inputs, config, scratch)
        (scratch / "README.md").write_text(_card(config), encoding="utf-8")
        (scratch / MANIFEST).write_text(json.dumps(_manifest(inputs, config, scratch), indent=1))
        inputs.check_unchanged()


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


def _write_weights(inputs: Inputs, config: MergeConfig, folder: Path) -> None:
    layout = inputs.layout
    size = sum(tensor.numel() * tensor.element_size() for tensor in layout.values())
    plan = split_torch_state_dict_into_shards(
        layout, filename_pattern="model{suffix}.safetensors", max_shard_size=config.shard_bytes
    )
    for file, names in plan.filename_to_tensors.items():
        merged = {name: _merged(inputs, config, name) for name in names}
        save_file(merged, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": {"total_size": size}, "weight_map": plan.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _merged(inputs: Inputs, config: MergeConfig, name: str) -> Tensor:
    states = [{name: tensor} for tensor in inputs.read(name)]
    merging.check_constants(states, inputs.where)
    return merged_state(config, states[0], states[1:])[name].contiguous()


def _manifest(inputs: Inputs, config: MergeConfig, folder: Path) -> dict[str, Any]:
    read = {one.name: {"path": one.config.path, "files": one.hashes} for one in inputs.all}
    return {
        "method": config.method,
        "parameters": parameters(config),
        "base": read.pop("base"),
        "models": {name: read[name] for name in config.models},
        "files": {path.name: sha256(path) for path in sorted(folder.iterdir())},
    }


def _card(config: MergeConfig) -> str:
    models = "".join(f"- {name}: `{model.path}`\n" for name, model in config.models.items())
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [onepolicy, merge]\n---\n"
        f"# {config.output.name}\n\nMerged with onepolicy by `{config.method}` from `{config.base.path}` and\n\n"
        f"{models}\nParameters and the hashes of all files are in `{MANIFEST}`.\n"
    )

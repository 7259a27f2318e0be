"""Loading and saving ordinary Hugging Face checkpoints, with the checks that spare a failure hours later."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from onepolicy.config import ModelConfig
from onepolicy.engines.forward import check_head
from onepolicy.tiny import from_scratch


def pick_device(name: str) -> torch.device:
    """`auto` takes the first GPU, else the CPU. Raises ValueError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} asked for, but torch sees no GPU: use device: auto or cpu")
    return device


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    _exists(config)
    return AutoTokenizer.from_pretrained(config.path, revision=config.revision)


def load_model(
    config: ModelConfig, seed: int = 0, device: torch.device | str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights in float32 (bfloat16 is a matter of compute, see Learner) and the tokenizer. Checks the output head."""
    if config.scratch is not None:
        model, tokenizer = from_scratch(config.scratch, seed)
    else:
        tokenizer = load_tokenizer(config)
        stored = AutoConfig.from_pretrained(config.path, revision=config.revision).dtype
        model = AutoModelForCausalLM.from_pretrained(
            config.path, revision=config.revision, dtype=torch.float32, attn_implementation=config.attention
        )
        model.config.dtype = stored or torch.float32  # saved again as it came
    model = model.to(device)
    check_head(model)
    return model, tokenizer


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, card: str = "") -> None:
    """Write beside the target, then rename: a folder under the final name is always whole."""
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    dtype = getattr(model.config, "dtype", None) or torch.float32
    state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()}
    model.save_pretrained(scratch, state_dict=state)
    tokenizer.save_pretrained(scratch)
    (scratch / "README.md").write_text(card or "---\nlibrary_name: transformers\n---\nTrained with onepolicy.\n")
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def _exists(config: ModelConfig) -> None:
    path = Path(str(config.path))
    is_hub_id = not path.exists() and str(path).count("/") == 1
    if not is_hub_id and not (path / "config.json").is_file():
        raise ValueError(f"no model at {path}: a checkpoint folder holds a config.json (or give a hub id, org/name)")

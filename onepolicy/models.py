"""Loading and saving ordinary Hugging Face checkpoints, with the checks that spare a failure hours later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from onepolicy.config import ModelConfig
from onepolicy.engines.forward import check_head
from onepolicy.engines.precision import DTYPES, choose_attention
from onepolicy.engines.vocabulary import check_vocabulary
from onepolicy.files import whole
from onepolicy.tiny import from_scratch


def pick_device(name: str) -> torch.device:
    """`auto` takes the first GPU, else the CPU. Raises ValueError for a device that is not there, or not supported."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:  # not a device of torch's at all
        raise ValueError(f"device {name!r} is no device: use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        build = "" if torch.version.cuda or torch.version.hip else f" (torch {torch.__version__} is built without CUDA)"
        raise ValueError(f"device {name!r} asked for, but torch sees no GPU{build}: use device: auto or cpu")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"device {name!r} asked for, but torch sees {count} GPU(s): use cuda:0 to cuda:{count - 1}")
    return device


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(_place(config), revision=config.revision)


# Architectures that cannot be used, by model_type, with the reason.
UNUSABLE = {
    "xlnet": "it is not causal, so a token's log-prob depends on the tokens behind it",
    "youtu": "transformers zeroes the embedding of its padding token at each load: a saved student would not come back",
}


def load_model(
    config: ModelConfig, seed: int = 0, device: torch.device | str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights in float32 (bfloat16 is a matter of compute, see Learner) and the tokenizer. Checks the output head."""
    if config.scratch is not None:
        model, tokenizer = from_scratch(config.scratch, seed)
    else:
        tokenizer = load_tokenizer(config)
        stored = AutoConfig.from_pretrained(_place(config), revision=config.revision).dtype
        model = AutoModelForCausalLM.from_pretrained(
            _place(config), revision=config.revision, dtype=torch.float32, attn_implementation=config.attention
        )
        model.config.dtype = stored or torch.float32  # saved again as it came
        _mend(model)
    if (reason := UNUSABLE.get(model.config.model_type)) is not None:
        raise ValueError(f"{type(model).__name__} cannot be used: {reason}")
    check_vocabulary(model, tokenizer)
    model = model.to(device)
    if config.attention is None:
        choose_attention(model, DTYPES[config.dtype])
    check_head(model)
    return model, tokenizer


def differing_tokens(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> list[str]:
    """The tokens that only one of two tokenizers has, or that they number differently."""
    one, other = ours.get_vocab(), theirs.get_vocab()
    return sorted(token for token in {*one, *other} if one.get(token) != other.get(token))


def _mend(model: PreTrainedModel) -> None:
    """Hub models ship a temperature without do_sample, which transformers 5.17 refuses to save, at the end of a run."""
    try:
        model.generation_config.validate(strict=True)
    except ValueError:
        model.generation_config.do_sample = True  # what a temperature means


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, card: str = "") -> None:
    """Write beside the target, then rename: a folder under the final name is always whole."""
    card = card or "---\nlibrary_name: transformers\n---\nTrained with onepolicy.\n"
    dtype = model.config.dtype or torch.float32
    with whole(folder) as scratch:
        try:
            model.save_pretrained(scratch, state_dict=_cast(model.state_dict(), dtype))
        finally:
            model.config.dtype = dtype  # save_pretrained puts there what the weights are in memory
        model.config.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        (scratch / "README.md").write_text(card, encoding="utf-8")


def _cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors that share memory still do afterwards: that is how transformers knows that they are tied."""
    copies: dict[tuple[int, torch.Size], Tensor] = {}
    for tensor in state.values():
        place = tensor.data_ptr(), tensor.shape
        if place not in copies:
            copies[place] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return {name: copies[tensor.data_ptr(), tensor.shape] for name, tensor in state.items()}


def _place(config: ModelConfig) -> str:
    """Where the checkpoint is: a folder, or a hub id. Raises ValueError when it is certainly neither."""
    if config.path is None:
        raise ValueError("a checkpoint is needed here: give its `path`, not `scratch`")
    path = Path(config.path)
    is_hub_id = not path.exists() and config.path.count("/") == 1
    if not is_hub_id and not (path / "config.json").is_file():
        raise ValueError(f"no model at {path}: a checkpoint folder holds a config.json (or give a hub id, org/name)")
    return config.path

"""Loading and saving ordinary Hugging Face checkpoints, with the checks that spare a failure hours later."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from onepolicy.checkpoints import (
    BESIDE,
    MODEL,
    TOKENIZERS,
    UNUSABLE,
    checkpoint_folder,
    load_config,
    load_generation_config,
    one_line,
    stored_tensors,
    weight_files,
    weights_dtype,
)
from onepolicy.config import ModelConfig
from onepolicy.engines.forward import check_head
from onepolicy.engines.precision import DTYPES, choose_attention
from onepolicy.engines.vocabulary import check_end_tokens, check_vocabulary
from onepolicy.files import whole
from onepolicy.merging import is_finite
from onepolicy.tensornames import refuse_missing, refuse_shape, refuse_unexpected
from onepolicy.tiny import character_tokenizer, from_scratch
from onepolicy.weightcache import first_nonfinite

NOT_TAKEN_OVER = ("adapter_config.json", "merge.json", "trainer_state.json")  # they speak of the origin's own making


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


def load_tokenizer(config: ModelConfig, who: str = MODEL) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer; no weights are touched. Raises ValueError, in one line, where it cannot be read."""
    folder = checkpoint_folder(config, who, weights=False)
    if not any(path for pattern in TOKENIZERS for path in folder.glob(pattern)):  # then transformers makes an empty one
        raise ValueError(f"{who}: no tokenizer in {folder} (tokenizer.json, say): copy it there from the origin")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        no_words = len(tokenizer.get_vocab()) <= len(tokenizer.get_added_vocab())
    except Exception as error:
        raise ValueError(f"{who}: the tokenizer in {folder} cannot be read: {one_line(error)}") from error
    if no_words:
        raise ValueError(f"{who}: the tokenizer in {folder} has no vocabulary: copy it there from the origin")
    return tokenizer


def text_settings(config: ModelConfig, who: str = MODEL) -> tuple[PreTrainedTokenizerBase, GenerationConfig]:
    """Tokenizer and generation config as `load_model` will give them, without the weights."""
    if config.scratch is not None:
        tokenizer = character_tokenizer(config.scratch.alphabet, config.scratch.roles)
        return tokenizer, GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    folder = checkpoint_folder(config, who, weights=False)
    tokenizer, generation_config = load_tokenizer(config, who), load_generation_config(folder, who)
    check_end_tokens(generation_config, tokenizer, folder, who)
    return tokenizer, generation_config


def load_model(
    config: ModelConfig, seed: int = 0, device: torch.device | str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights in float32 (bfloat16 is a matter of compute, see Learner) and the tokenizer.

    Raises ValueError for a checkpoint that cannot be read, is not finite, or could not be saved again, and for an
    output head of unknown kind.
    """
    if config.scratch is not None:
        model, tokenizer = from_scratch(config.scratch, seed)
    else:
        folder = checkpoint_folder(config).resolve()
        load_config(folder)
        files = weight_files(folder)
        tokenizer, generation_config = text_settings(config)
        model = read_model(folder, torch.float32, config.attention)
        model.config.dtype = getattr(torch, weights_dtype(stored_tensors(files)))  # saved again as it came
        model.generation_config = generation_config
        _check_finite(model, files)
        _check_savable(model, tokenizer, folder)
    if (reason := UNUSABLE.get(model.config.model_type)) is not None:
        raise ValueError(f"{type(model).__name__} cannot be used: {reason}")
    check_vocabulary(model, tokenizer)
    model = model.to(device)
    if config.attention is None:
        choose_attention(model, DTYPES.get(config.dtype, torch.float32))
    check_head(model)
    return model, tokenizer


def read_model(folder: Path, dtype: torch.dtype, attention: str | None, who: str = MODEL) -> PreTrainedModel:
    """transformers' reading of a checkpoint.

    Raises ValueError for tensors that are missing, unexpected or of other shapes, which transformers tolerates.
    """
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    except RuntimeError as error:
        raise ValueError(f"{who}: the weights in {folder} do not fit its config.json: {one_line(error)}") from error
    for name, stored, expected in sorted(found["mismatched_keys"])[:1]:
        refuse_shape(name, stored, expected, folder, who)
    refuse_missing(found["missing_keys"], folder, who)
    refuse_unexpected(_weights_among(found["unexpected_keys"], folder, who), type(model).__name__, folder, who)
    head = model.get_output_embeddings()
    tied = getattr(model.config, "tie_word_embeddings", False) and head is not None
    if tied and head.weight is not model.get_input_embeddings().weight:
        print(
            f"warning: {who}: tie_word_embeddings is true in {folder / 'config.json'}, and the output head in its "
            "files is not equal to the embeddings: the head is used as it is, not tied",
            file=sys.stderr,
        )
    return model


def _weights_among(names: Collection[str], folder: Path, who: str) -> list[str]:
    """Tensors that the module does not have, without integers: counters and indices are told of and left out."""
    stored = stored_tensors(weight_files(folder, who), who) if names else {}
    integers = [name for name in names if name in stored and not stored[name].dtype.is_floating_point]
    if integers:
        print(
            f"warning: {who}: tensor {min(integers)!r} of {folder} ({len(integers)} in all) holds integers that the "
            "architecture does not have: it is not used, and not saved again",
            file=sys.stderr,
        )
    return sorted(set(names) - set(integers))


def differing_tokens(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> list[str]:
    """The tokens that only one of two tokenizers has, or that they number differently."""
    one, other = ours.get_vocab(), theirs.get_vocab()
    return sorted(token for token in {*one, *other} if one.get(token) != other.get(token))


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, card: str = "") -> None:
    """Write beside the target, then rename: a folder under the final name is always whole.

    Generation config, tokenizer and chat templates are saved as they were loaded; what else lay beside the weights
    (the tokenizer in the format of another library, say) is copied. The card replaces the README.
    """
    card = card or "---\nlibrary_name: transformers\n---\nTrained with onepolicy.\n"
    dtype, generation_config = model.config.dtype or torch.float32, model.generation_config
    with whole(folder) as scratch:
        try:
            # transformers refuses, at the last step, what many published models have: a temperature without do_sample.
            # To say do_sample would make a model sample that decoded greedily, so it is written as it was loaded.
            model.generation_config = GenerationConfig()
            model.save_pretrained(scratch, state_dict=_cast(model.state_dict(), dtype))
        finally:
            model.config.dtype = dtype  # save_pretrained puts there what the weights are in memory
            model.generation_config = generation_config
        generation_config.to_json_file(scratch / "generation_config.json")
        model.config.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        _take_over(Path(model.name_or_path), scratch)
        (scratch / "README.md").write_text(card, encoding="utf-8")


def _take_over(origin: Path, folder: Path) -> None:
    """Copy those files beside the origin's weights that saving has not written."""
    if not str(origin) or origin == Path():
        return  # from scratch
    if not origin.is_dir():
        print(f"warning: {origin} is gone: files beside its weights are not copied to {folder.parent}", file=sys.stderr)
    for path in sorted(path for pattern in BESIDE for path in origin.glob(pattern)):
        left_out = path.name in NOT_TAKEN_OVER or path.name.endswith(".index.json")
        if path.is_file() and not left_out and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


def _check_finite(model: PreTrainedModel, files: list[Path]) -> None:
    """Raises ValueError naming tensor and file."""
    state = model.state_dict()
    broken = [name for name, tensor in state.items() if not is_finite(tensor)]
    if broken:
        where = ((name, path) for path in files if (name := first_nonfinite(path)))
        name, path = next(where, (broken[0], files[0].parent))
        raise ValueError(
            f"{MODEL}: tensor {name!r} in {path} is not finite (it holds NaN or inf), the weights are broken: take "
            "another checkpoint"
        )


def _check_savable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raises ValueError for what would otherwise be refused at the end of a run."""
    with tempfile.TemporaryDirectory() as scratch:
        for what, thing in (("config.json", model.config), ("tokenizer", tokenizer)):
            try:
                thing.save_pretrained(scratch)
            except Exception as error:
                raise ValueError(
                    f"{MODEL}: the {what} of {folder} can be loaded but not saved ({one_line(error)}): correct it there"
                ) from error


def _cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors that share memory still do afterwards: that is how transformers knows that they are tied."""
    copies: dict[tuple[int, torch.Size], Tensor] = {}
    for tensor in state.values():
        place = tensor.data_ptr(), tensor.shape
        if place not in copies:
            copies[place] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return {name: copies[tensor.data_ptr(), tensor.shape] for name, tensor in state.items()}

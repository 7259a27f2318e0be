"""The tensors that a checkpoint must hold: all of its architecture's, in its shapes, and no others.

transformers fills a missing tensor with random numbers and drops an unexpected one. Here both are errors.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NoReturn

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping

# Buffers that older versions of transformers saved, and that newer ones compute: rotary frequencies, causal masks and
# numbers of positions. For example model.layers.0.self_attn.rotary_emb.inv_freq and transformer.h.0.attn.masked_bias.
COMPUTED = re.compile(
    r"(^|\.)(rotary_emb\.(original_)?inv_freq|(attn|attention)\.(masked_)?bias|masked_bias|position_ids)$"
)

Shapes = Mapping[str, tuple[int, ...]]


def check_names(stored: Shapes, model: PreTrainedModel, folder: Path, who: str) -> None:
    """Compares the headers of a checkpoint's files with its architecture: no weights are read, `model` has none.

    Where transformers renames or joins tensors while it loads (experts of a mixture) this says nothing: then names can
    only be compared once the weights are read, see `models.read_model`. Raises ValueError that names the first tensor.
    """
    if get_model_conversion_mapping(model, add_legacy=False):
        return
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if len(expected.keys() & stored.keys()) < len(expected) / 2:  # renamed as a whole: for example without "model."
        return
    tied = {name for pair in (model.all_tied_weights_keys or {}).items() for name in pair}
    gone = expected.keys() - stored.keys()
    if gone & tied and tied & stored.keys():  # a tensor that has two names is stored under one of them
        gone -= tied
    refuse_missing(gone, folder, who)
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    extra = {name for name in stored.keys() - expected.keys() if not any(p.search(name) for p in ignored)}
    refuse_unexpected(extra, type(model).__name__, folder, who)
    for name in sorted(expected.keys() & stored.keys()):
        if stored[name] != expected[name]:
            refuse_shape(name, stored[name], expected[name], folder, who)


def refuse_missing(names: Collection[str], folder: Path, who: str) -> None:
    """Raises ValueError where there are any."""
    if names:
        raise ValueError(
            f"{who}: tensor {min(names)!r} is in no file of {folder} ({len(names)} missing in all), and its "
            "config.json asks for it: the checkpoint is incomplete, or its configuration is another model's"
        )


def refuse_unexpected(names: Collection[str], architecture: str, folder: Path, who: str) -> None:
    """Raises ValueError where there are any but those that newer versions of transformers compute."""
    if extra := [name for name in names if not COMPUTED.search(name)]:
        raise ValueError(
            f"{who}: {architecture} has no tensor {min(extra)!r}, which is in {folder} ({len(extra)} in all), so it "
            "would not be used: config.json is another model's (fewer layers, for example), or these must be removed"
        )


def refuse_shape(name: str, stored: Collection[int], expected: Collection[int], folder: Path, who: str) -> NoReturn:
    """Raises ValueError with both shapes."""
    raise ValueError(
        f"{who}: tensor {name!r} in {folder} has the shape {list(stored)}, and its config.json asks for "
        f"{list(expected)}: the weights are another model's, or the configuration is"
    )

"""The mode that a policy computes in: evaluation, when it generates, when it scores, and when it learns.

Training mode brings randomness under many names: dropout, router jitter (Mixtral), input noise (PhiMoE), layer drop
(XGLM), stochastic depth. A learner in that mode is another policy than the one that generated. So modules stay in
evaluation mode, with gradients. Gradient checkpointing is the one thing that transformers ties to training mode:
inside `recomputing` the checkpointed layers alone are in it, without their submodules and with dropout at 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def settle(model: PreTrainedModel, checkpointing: bool = False) -> None:
    """Put a model that will learn in evaluation mode. Raises ValueError when it cannot checkpoint its layers."""
    model.eval()
    _disable_dropout(model)
    if not checkpointing:
        return
    # the old name, the only one before transformers 5.20 or so, warns in those that have the new one
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    if not _checkpointed_layers(model):
        raise ValueError(
            f"{type(model).__name__} has no layers that transformers can checkpoint outside of training mode: set "
            "optim.gradient_checkpointing to false"
        )


@contextmanager
def recomputing(model: PreTrainedModel) -> Iterator[None]:
    """Checkpointed layers drop their activations inside, and compute them again in the backward pass.

    Nothing happens without gradient checkpointing. Hold it over both passes.
    """
    layers = _checkpointed_layers(model)
    rates = _config_rates(layers)
    for layer in layers:
        layer.training = True  # careful: of the layer alone; `layer.train()` would reach its router and its dropout
    for config, name, _ in rates:
        setattr(config, name, 0.0)
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
        for config, name, rate in rates:  # the configuration is saved as it was loaded
            setattr(config, name, rate)


def _config_rates(layers: Sequence[Any]) -> list[tuple[Any, str, float]]:
    """Dropout rates that layers read from their configuration at each call (Falcon, Persimmon)."""
    configs = {id(layer.config): layer.config for layer in layers if hasattr(layer, "config")}
    return [
        (config, name, value)
        for config in configs.values()
        for name, value in vars(config).items()
        if _is_rate(name) and isinstance(value, float) and value
    ]


def _checkpointed_layers(model: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    modules = (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
    return [module for module in modules if module.gradient_checkpointing]


def _disable_dropout(model: PreTrainedModel) -> None:
    """Modules keep their rate as `p`, or as a plain number that they hand to the attention function."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and (_is_rate(name) or isinstance(module, torch.nn.Dropout)):
                setattr(module, name, 0.0)


def _is_rate(name: str) -> bool:
    return "dropout" in name or name.endswith("pdrop")  # GPT-2, DBRX: resid_pdrop

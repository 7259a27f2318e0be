"""What surrounds an optimizer's update: the learning rate, and the states in which going on makes no sense."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onepolicy.config import OptimConfig
from onepolicy.merging import is_finite

MAX_SKIPPED = 10  # updates in a row


def learning_rate_factor(optim: OptimConfig, step: int, total_steps: int) -> float:
    """Linear warm-up to 1, then constant, or down to 0 at `total_steps` linearly or along a cosine."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    progress = min(1.0, (step - optim.warmup_steps) / max(1, total_steps - optim.warmup_steps))
    return {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[
        optim.schedule
    ]


def require_finite(model: torch.nn.Module, optimizer: torch.optim.Optimizer, version: int) -> None:
    """Raises ValueError that names a tensor of the model or the optimizer in which there is NaN or inf."""
    named = dict(model.state_dict())
    for number, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                named[f"{key} of parameter {number} (optimizer)"] = value
    for name, tensor in named.items():
        if not is_finite(tensor):
            raise ValueError(
                f"after {version} updates {name!r} is not finite (it holds NaN or inf), so that these weights are not "
                "saved; earlier checkpoints stay. Lower optim.learning_rate or set optim.warmup_steps, with another "
                "output"
            )


def require_updates(skipped_in_row: int) -> None:
    """Raises ValueError when the last MAX_SKIPPED updates were all skipped."""
    if skipped_in_row >= MAX_SKIPPED:
        raise ValueError(
            f"the last {skipped_in_row} updates were skipped, for their gradients were not finite (NaN or inf), so "
            "that nothing is learnt any more: lower optim.learning_rate or set optim.warmup_steps, with another output"
        )

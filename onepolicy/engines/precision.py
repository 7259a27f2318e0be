"""The one precision of a policy: rollouts, scores and updates all run inside `compute_in`.

With bfloat16 the weights stay float32 and matrix products run in bfloat16 (autocast). An engine in another precision
than its learner would be another policy: `engine_gap` in metrics.jsonl measures that gap, in nats a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # by their names in the configuration


@contextmanager
def compute_in(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Compute in `dtype` (float32 or bfloat16) inside. Careful: never leave it open across a `yield` of a generator."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        yield


def choose_attention(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Take plain attention for bfloat16 on a CPU; called where the configuration names none.

    PyTorch's fused attention for CPUs rounds one query with a cache otherwise than all queries at once, by 0.002 nats
    a token in a model of four layers. Plain attention rounds both alike: the gap was 0.
    """
    if dtype == torch.bfloat16 and model.device.type == "cpu":
        model.set_attn_implementation("eager")

"""Position encodings that look at the longest row of a batch, and the rows that may share a forward pass.

LongRoPE (Phi-3.5, Phi-4-mini) has two sets of frequencies. transformers takes the long set for a whole batch as soon
as one row is longer than `original_max_position_embeddings`, so a short row would get other log-probs beside a long one
than alone. Dynamic NTK stretches its frequencies with the longest row in the same way.

    rule = PositionRule(config)       # original_max_position_embeddings: 4096
    rule.key(4000), rule.key(4096)    # equal: these two rows may share a forward pass
    rule.key(4097)                    # another: this row needs a pass of its own
    rule.longest_like(4000)           # 4096: tokens that the row may grow to before all of its positions change

For any other encoding all keys are equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PretrainedConfig


class PositionRule:
    """When two rows of one architecture see the same position frequencies. Lengths are in tokens."""

    def __init__(self, config: PretrainedConfig) -> None:
        text = config.get_text_config(decoder=True)
        self.switches: list[int] = []  # LongRoPE: above these lengths the long set is used
        self.stretched_above: list[int] = []  # dynamic NTK: above these, each length has frequencies of its own
        for rope in _rope_parameters(text):
            kind = str(rope.get("rope_type", "default"))
            original = rope.get("original_max_position_embeddings")
            if "dynamic" in kind:
                self.stretched_above.append(int(text.max_position_embeddings))
            elif original and (kind == "longrope" or text.model_type == "phimoe"):
                self.switches.append(int(original))

    def key(self, length: int) -> tuple[int, ...]:
        """Rows with equal keys get the log-probs together that they get alone."""
        switched = [int(length > switch) for switch in self.switches]
        stretched = [max(length, limit) for limit in self.stretched_above]
        return (*switched, *stretched)

    def longest_like(self, length: int) -> int | None:
        """The longest row with the key of `length`; None where there is no bound."""
        ahead = [switch for switch in self.switches if switch >= length]
        ahead += [max(length, limit) for limit in self.stretched_above]
        return min(ahead, default=None)


def context_length(config: PretrainedConfig) -> int:
    """The tokens of the longest row that a model reads; very many where its configuration says none."""
    declared = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or 0
    return declared if declared > 0 else 2**31  # XLNet's is -1


def _rope_parameters(config: Any) -> Iterator[Mapping[str, Any]]:
    """One mapping, or one for each kind of layer (Gemma 3: sliding and full attention)."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in parameters:
        yield parameters
    else:
        yield from (inner for inner in parameters.values() if isinstance(inner, Mapping))

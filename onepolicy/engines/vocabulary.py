"""Token ids that a tokenizer knows, and the rows of a model's embeddings.

Models pad their vocabulary: Qwen3 has 151,936 rows for 151,669 tokens. A padding row has no text, so it is neither
sampled nor counted in any softmax: engines and heads cut their logits at `vocabulary_size`. A gap inside, an id below
that size without a token, keeps its probability: `count_gaps` says how many there are.
"""

from __future__ import annotations

from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest token id + 1. Added tokens count."""
    return int(max(tokenizer.get_vocab().values())) + 1


def count_gaps(tokenizer: PreTrainedTokenizerBase) -> int:
    """Ids below `vocabulary_size` that no token has."""
    return vocabulary_size(tokenizer) - len(set(tokenizer.get_vocab().values()))


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ValueError when the tokenizer has ids that the embeddings or the output projection have no row for."""
    size = vocabulary_size(tokenizer)
    rows = {"embeddings": model.get_input_embeddings().num_embeddings}
    if (projection := model.get_output_embeddings()) is not None:
        rows["output projection"] = projection.weight.shape[0]
    for name, count in rows.items():
        if count < size:
            raise ValueError(
                f"the tokenizer of {model.name_or_path!r} has token ids up to {size - 1} ({size} tokens), its {name} "
                f"only {count} rows: tokens were added and the model was not resized. Call "
                f"model.resize_token_embeddings({size}), train the new rows, and save it again"
            )


def check_end_tokens(
    generation_config: GenerationConfig, tokenizer: PreTrainedTokenizerBase, folder: Path, who: str
) -> None:
    """Raises ValueError for an end token that no token of the vocabulary is: such a response would never end.

    A padding token of -1 means none, as Llama's configuration has it.
    """
    size = vocabulary_size(tokenizer)
    for name in ("eos_token_id", "pad_token_id"):
        value = getattr(generation_config, name)
        for token in value if isinstance(value, list) else [] if value is None else [value]:
            if not 0 <= token < size and (name, token) != ("pad_token_id", -1):
                raise ValueError(
                    f"{who}: {name} is {token} in generation_config.json or config.json of {folder}, and the "
                    f"tokenizer's ids go from 0 to {size - 1}: name a token of this vocabulary"
                )

"""Models and tokenizers built from nothing: what the demo trains and the tests run on.

One token per character, four role markers, a chat template: the smallest thing that is still an ordinary Hugging Face
model, saved and loaded by the ordinary calls.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from onepolicy.config import ScratchConfig

PAD, END, SYSTEM, USER, ASSISTANT, UNKNOWN = "<pad>", "<end>", "<system>", "<user>", "<assistant>", "<unk>"
SPECIALS = (PAD, END, SYSTEM, USER, ASSISTANT, UNKNOWN)

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}"
    "{% if message.role == 'assistant' %}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def character_tokenizer(alphabet: str, roles: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """One token per character of `alphabet` and per further role; any other character becomes <unk>."""
    markers = [f"<{role}>" for role in roles]
    vocabulary = {token: i for i, token in enumerate((*SPECIALS, *dict.fromkeys(alphabet), *markers))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT, *markers],
        chat_template=CHAT_TEMPLATE,
    )


def from_scratch(config: ScratchConfig, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A freshly initialised model and its tokenizer. The vocabulary size follows the tokenizer."""
    tokenizer = character_tokenizer(config.alphabet, config.roles)
    architecture = dict(config.architecture)
    model_type = architecture.pop("model_type", None)
    if model_type is None:
        raise ValueError("scratch.architecture needs a model_type, for example qwen3")
    model_config = AutoConfig.for_model(
        model_type,
        **{"vocab_size": len(tokenizer), **architecture},
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(model_config)
    return model.float(), tokenizer

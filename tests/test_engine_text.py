"""Renderer: what the policy is shown, what it must write, and where its answer ends."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import GenerationConfig

from onepolicy.engines.text import Renderer
from onepolicy.tiny import character_tokenizer
from onepolicy.types import Task

ALPHABET = "abcdefgh 0123456789?"


def ask(*contents: str, domain: str = "d") -> Task:
    return Task("ask", domain, tuple({"role": "user", "content": content} for content in contents))


def test_the_prompt_is_the_chat_with_an_opened_assistant_turn():
    tokenizer = character_tokenizer(ALPHABET)
    expected = tokenizer.convert_tokens_to_ids(["<user>", "1", "?", "<assistant>"])
    assert Renderer(tokenizer).prompt_ids(ask("1?")) == expected


def test_a_base_models_prompt_is_the_plain_text():
    tokenizer = character_tokenizer(ALPHABET)
    tokenizer.chat_template = None
    assert Renderer(tokenizer).prompt_ids(ask("a", "b")) == tokenizer.encode("a\nb")


def test_a_demonstration_is_the_prompt_and_what_the_policy_must_write():
    tokenizer = character_tokenizer(ALPHABET)
    renderer = Renderer(tokenizer)
    token_ids_T, mask_T = renderer.demonstration(ask("1?"), "42")
    assert tokenizer.convert_ids_to_tokens(token_ids_T) == ["<user>", "1", "?", "<assistant>", "4", "2", "<end>"]
    assert mask_T.tolist() == [False] * 4 + [True] * 3
    assert token_ids_T.dtype == np.int32 and mask_T.dtype == bool
    assert renderer.decode(token_ids_T[mask_T].tolist()) == "42"


def test_stop_tokens_are_the_models_and_the_tokenizers():
    tokenizer = character_tokenizer(ALPHABET)
    end = tokenizer.eos_token_id
    assert Renderer(tokenizer).stop_ids == {end}
    assert Renderer(tokenizer, GenerationConfig(eos_token_id=7)).stop_ids == {end, 7}
    assert Renderer(tokenizer, GenerationConfig(eos_token_id=[7, 8])).stop_ids == {end, 7, 8}
    tokenizer.eos_token = tokenizer.chat_template = None
    assert Renderer(tokenizer, GenerationConfig(eos_token_id=7)).stop_ids == {7}


def test_without_any_stop_token_the_fix_is_named():
    tokenizer = character_tokenizer(ALPHABET)
    tokenizer.eos_token = tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no answer could ever stop"):
        Renderer(tokenizer, GenerationConfig())


def test_a_demonstration_ends_as_the_chat_template_ends_a_turn():
    """Gemma's way: the tokenizer's end token is one thing, the end of a turn another."""
    tokenizer = character_tokenizer(ALPHABET)
    turn_end = tokenizer.convert_tokens_to_ids("h")
    tokenizer.chat_template = tokenizer.chat_template.replace("<end>", "h")
    renderer = Renderer(tokenizer, GenerationConfig(eos_token_id=[tokenizer.eos_token_id, turn_end]))
    assert renderer.demonstration(ask("1?"), "a")[0][-1] == turn_end
    assert Renderer(tokenizer).demonstration(ask("1?"), "a")[0][-1] == tokenizer.eos_token_id


def test_decoding_drops_the_stop_token_and_special_tokens_only():
    tokenizer = character_tokenizer(ALPHABET)
    renderer = Renderer(tokenizer, GenerationConfig(eos_token_id=tokenizer.convert_tokens_to_ids("h")))
    tokens = ["h", "a", " ", "<assistant>", "?", "h"]  # an ordinary character as a stop token, written twice
    assert renderer.decode(tokenizer.convert_tokens_to_ids(tokens)) == "ha ?"
    assert renderer.decode([]) == ""


def test_messages_that_cannot_be_rendered_name_their_task():
    tokenizer = character_tokenizer(ALPHABET)
    tokenizer.chat_template = (
        "{% if messages[0].content == '1?' %}{{ raise_exception('no such question, please') }}{% endif %}x"
    )
    with pytest.raises(ValueError, match=r"'ask'.*message 0 \(user\): no such question"):
        Renderer(tokenizer).prompt_ids(ask("1?"))
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="'ask'"):
        Renderer(tokenizer).prompt_ids(Task("ask", "d", ({"role": "user"},)))

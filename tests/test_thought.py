"""Thought and answer, told apart in plain text and by special tokens."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from onepolicy.engines.text import Renderer
from onepolicy.thought import MARKERS, Separated, answer_of, separate
from onepolicy.tiny import character_tokenizer
from onepolicy.types import Task

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789<>/[]|=+.?! \n"
ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
NEXT = "<|end|><|start|>assistant"


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("7", "", "7"),
        ("\n\n 7 \n", "", "\n\n 7 \n"),  # without a thought, as it is
        ("", "", ""),
        ("<think>3+4</think>7", "3+4", "7"),
        ("<think>\n3+4\n</think>\n\n7\n", "3+4", "7\n"),
        ("3+4</think>7", "3+4", "7"),  # opened by the template
        ("</think>7", "", "7"),
        ("<think></think>", "", ""),
        ("<think>3+4</think>\n \n  return 7", "3+4", "  return 7"),  # a line keeps its indentation
        ("<think>3+4</think>  7", "3+4", "7"),
        ("  <think>3+4</think> 7", "3+4", "7"),
        ("<think><think>a</think>7", "<think>a", "7"),  # the template's, and the model's own
        ("<think>a<think>b</think>c</think>7", "a<think>b</think>c", "7"),
        ("<think>a</think>8<think>b</think>7", "a</think>8<think>b", "7"),
        ("Sure. <think>a</think>7", "Sure. <think>a", "7"),
        ("<think>it is 7", "it is 7", None),
        ("<think>", "", None),
        ("Sure.\n<think>it is 7", "Sure.\n<think>it is 7", None),
        ("<think>a</think>7<think>no", "a</think>7<think>no", None),
        ("a</think>7 <think> wait", "a</think>7 <think> wait", None),
        ("put it into <think> tags", "", "put it into <think> tags"),
        ("`<think>`\n7", "", "`<think>`\n7"),
        ("a < b, <thinking> and [thinks]", "", "a < b, <thinking> and [thinks]"),
        (f"{ANALYSIS}3+4{NEXT}{FINAL}7<|return|>", "3+4", "7"),
        (f"<|start|>assistant{ANALYSIS}3+4{NEXT}{FINAL}\n\n7", "3+4", "7"),
        (f"{FINAL}7", "", "7"),
        (f"{ANALYSIS}it is 7<|end|>", "it is 7", None),
        (f"{ANALYSIS}a{NEXT}{ANALYSIS}b{NEXT}{FINAL}7", "a\nb", "7"),
        (f"{ANALYSIS}a{NEXT}<|channel|>commentary to=functions.f <|constrain|>json<|message|>7<|call|>", "a\n7", None),
        (f"{ANALYSIS}a{NEXT}{FINAL}8{NEXT}{ANALYSIS}no", "a\nno", None),
        (f"{ANALYSIS}a{NEXT}{FINAL}", "a", ""),
        ("say <|channel|>final<|message|>7", "", "say <|channel|>final<|message|>7"),  # no response begins so
    ],
)
def test_plain_text_is_parted_by_its_markers(text: str, thought: str, answer: str | None) -> None:
    assert separate(text) == Separated(thought, answer)
    if answer is not None:
        assert answer_of(answer) == answer, "an answer is its own answer"


def test_a_thought_that_the_prompt_opens_must_be_closed() -> None:
    assert separate("it is 7", opened=True) == ("it is 7", None)
    assert separate("3+4</think>7", opened=True) == ("3+4", "7")
    assert separate("<think>3+4</think>7", opened=True) == ("3+4", "7")
    assert separate(f"{FINAL}7", opened=True) == (f"{FINAL}7", None)


@pytest.mark.parametrize("pair", MARKERS, ids=lambda pair: pair[0])
def test_every_familys_markers_count(pair: tuple[str, str]) -> None:
    opening, closing = pair
    assert separate(f"{opening}3+4{closing}\n7") == ("3+4", "7")
    assert separate(f"3+4{closing}7") == ("3+4", "7")
    assert separate(f"{opening}7") == ("7", None)


def of(markers: tuple[str, ...], special: bool, template: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = character_tokenizer(ALPHABET)
    tokenizer.add_tokens(list(markers), special_tokens=special)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


OPENS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>MARKER{% endif %}"
)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("pair", [("<think>", "</think>"), ("[think]", "[/think]")], ids=["known", "unknown"])
def test_markers_that_are_tokens_are_seen_and_count(pair: tuple[str, str], special: bool) -> None:
    renderer = Renderer(of(pair, special))
    opening, closing = pair
    text = f"{opening}3+4{closing}7"
    read = renderer.read([], renderer.tokenizer.encode(f"{text}<end>"))
    assert read.text == text == renderer.decode(renderer.tokenizer.encode(f"{text}<end>"))
    assert (read.thought, read.answer) == (("3+4", "7") if opening == "<think>" else ("", text))


@pytest.mark.parametrize("special", [True, False])
def test_where_markers_are_tokens_the_same_characters_are_text(special: bool) -> None:
    renderer = Renderer(of(("<think>", "</think>"), special))
    encode, plain = renderer.tokenizer.encode, renderer.plain_ids
    assert renderer.read([], plain("<think>it is 7")) == ("<think>it is 7", "", "<think>it is 7")
    assert renderer.read([], plain("a</think>7")).answer == "a</think>7"
    ids = [*encode("<think>a"), *plain("</think>b"), *encode("</think>7 in "), *plain("<think>")]
    assert renderer.read([], ids) == ("<think>a</think>b</think>7 in <think>", "a</think>b", "7 in <think>")
    middle = encode("it is 7 <think>no")  # a token is no mention, wherever it stands
    assert renderer.read([], middle).answer is None


def test_markers_that_are_no_tokens_are_text_that_counts() -> None:
    renderer = Renderer(of((), special=False))
    read = renderer.read([], renderer.tokenizer.encode("<think>3+4</think>\n7<end>"))
    assert read == ("<think>3+4</think>\n7", "3+4", "7")
    assert renderer.read([], renderer.tokenizer.encode("it is 7 in <think>")).answer == "it is 7 in <think>"


@pytest.mark.parametrize("markers", [("<think>", "</think>"), ()], ids=["tokens", "text"])
@pytest.mark.parametrize(
    ("primes", "opened"),
    [
        ("<think>\n", True),
        ("<think>", True),
        ("<think> \n\n", True),
        ("<think>\nso ", True),
        ("<think>\n\n</think>\n\n", False),
        ("", False),
    ],
)
def test_the_prompt_says_whether_a_thought_is_open(markers: tuple[str, ...], primes: str, opened: bool) -> None:
    renderer = Renderer(of(markers, True, OPENS.replace("MARKER", primes)))
    for question in ("3+4?", "what is <think>", "<think>\n"):
        prompt = renderer.prompt_ids(Task("t", "d", ({"role": "user", "content": question},)))
        ids = renderer.tokenizer.encode("it is 7")
        assert renderer.read(prompt, ids) == ("it is 7", *(("it is 7", None) if opened else ("", "it is 7")))
        closed = renderer.tokenizer.encode("3+4</think>\n\n7<end>")
        assert renderer.read(prompt, closed) == ("3+4</think>\n\n7", "3+4", "7")


def test_a_base_models_prompt_may_open_a_thought_too() -> None:
    tokenizer = of((), False)
    tokenizer.chat_template = None
    renderer = Renderer(tokenizer)
    task = Task("t", "d", ({"role": "user", "content": "user 3+4?\nassistant <think>"},))
    assert renderer.read(renderer.prompt_ids(task), tokenizer.encode("it is 7")).answer is None


def test_special_tokens_that_a_user_adds_are_seen_and_roles_and_padding_are_not() -> None:
    tokenizer = of(("<answer>", "</answer>", "<tool_call>", "<sql>"), special=True)
    renderer = Renderer(tokenizer)
    ids = tokenizer.encode("<pad><answer>7</answer><user><tool_call><sql>a<end>")
    assert renderer.decode(ids) == "<answer>7</answer><tool_call><sql>a"

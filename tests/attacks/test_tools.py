"""Environments with tools against turns that mean no good: none of them scores, hangs, breaks the process or speaks
with another's voice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from onepolicy.config import DomainConfig
from onepolicy.engines.text import Renderer
from onepolicy.tasks.calculator import CalculatorOptions, CalculatorSource
from onepolicy.tasks.episodes import as_reply
from onepolicy.tasks.grading import Grader
from onepolicy.tiny import character_tokenizer
from onepolicy.types import Grade, Observation, Task
from tests.attacks import turns

TASKS = ("expression", "lookup", "bill")
CALLS = {"json": turns.in_json(), "compact": turns.compact()}
BROKEN = ("timed out", "crashed", "out of memory")


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    options = [(task, calls) for task in TASKS for calls in CALLS]
    domains = {f"{task} {calls}": {"kind": "calculator", "task": task, "calls": calls} for task, calls in options}
    with Grader({name: DomainConfig.model_validate({"tasks": tasks}) for name, tasks in domains.items()}) as grader:
        yield grader


def source(task: str, calls: str) -> CalculatorSource:
    return CalculatorSource(f"{task} {calls}", CalculatorOptions(task=task, calls=calls), 3)


def survived(grades: list[Grade]) -> bool:
    return not any(word in grade.reason for grade in grades for word in BROKEN)


def test_there_are_enough_of_them() -> None:
    assert all(len(set(hostile)) >= 200 for hostile in CALLS.values())


@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize("task", TASKS)
def test_no_hostile_turn_scores_or_breaks_anything(task: str, calls: str, grader: Grader) -> None:
    sums = source(task, calls)
    tasks = [sums.draw(index) for index in range(len(CALLS[calls]))]
    grades = grader.grade([(one, (text, text)) for one, text in zip(tasks, CALLS[calls], strict=True)])
    assert [text[:80] for text, grade in zip(CALLS[calls], grades, strict=True) if grade.reward] == []
    assert survived(grades)


@pytest.mark.parametrize("calls", CALLS)
def test_a_right_episode_still_scores_after_every_hostile_call(calls: str, grader: Grader) -> None:
    """What is no answer leaves nothing behind: the episode goes on as if it had not been said."""
    sums = source("bill", calls)
    hostile = [text for text in CALLS[calls] if text.startswith(("<tool_call>", "calc:", "look:"))]
    tasks = [sums.draw(index) for index in range(len(hostile))]
    grades = grader.grade([(one, (text, *sums.gold(one))) for one, text in zip(tasks, hostile, strict=True)])
    assert [text[:80] for text, grade in zip(hostile, grades, strict=True) if grade.reward != 1] == []


def near(answer: str) -> list[str]:
    """Almost right: another number, or the same in characters that are no digits."""
    fullwidth = answer.translate({ord(digit): chr(ord(digit) + 0xFEE0) for digit in "0123456789"})
    arabic = answer.translate({ord(digit): chr(0x660 + int(digit)) for digit in "0123456789"})
    return [
        str(int(answer) + 1), str(-int(answer) or 1), answer + "0", answer + "1", "1" + answer, fullwidth, arabic,
        f"{answer} or {int(answer) + 1}", f"{answer} {answer}1", f"{answer}.5", f"{answer}/{int(answer) + 1}",
        f"{answer}e1", f"{answer},000",
    ]  # fmt: skip


@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize("task", TASKS)
def test_what_is_almost_right_is_wrong(task: str, calls: str, grader: Grader) -> None:
    sums = source(task, calls)
    items = [(one, text) for one in map(sums.draw, range(20)) for text in near(one.reference)]
    grades = grader.grade(items)
    assert [(one.reference, text) for (one, text), grade in zip(items, grades, strict=True) if grade.reward] == []


@pytest.mark.parametrize("calls", CALLS)
def test_the_right_number_scores_only_as_the_answer(calls: str, grader: Grader) -> None:
    """Not in a call, not after the answer, not when the turns have run out."""
    sums = source("bill", calls)
    for task in map(sums.draw, range(10)):
        answer = task.reference
        look, calc = sums.options.call("look", key=answer), sums.options.call("calc", expression=answer)
        bad = [(look,), (calc,), ("0", answer), ("", answer), (calc,) * 8 + (answer,), (calc, look, "no", answer)]
        assert [grade.reward for grade in grader.grade([(task, one) for one in bad])] == [0] * len(bad)


def test_turns_without_end_end(grader: Grader) -> None:
    sums = source("bill", "compact")
    forever = tuple(f"look:{word}" for word in map("".join, itertools.product("ab", repeat=10)))
    grades = grader.grade([(sums.draw(0), forever)] * 50)
    assert grades == [Grade(0.0, "no answer", (0.0,) * 8)] * 50


# -- what the policy is shown of its own words -------------------------------------------------------------------------

TEXTS = sorted({*turns.CHAT, *turns.JSON, *turns.NAMES, *turns.SUMS}, key=len)
ASK = Task("t", "d", ({"role": "user", "content": "?"},))


def of_characters() -> PreTrainedTokenizerFast:
    return character_tokenizer("abcdefghijklmnopqrstuvwxyz<>|_?", ("tool",))


def of_bytes(normalizer: normalizers.Normalizer | None = None) -> PreTrainedTokenizerFast:
    """As most models have it: byte-level, special tokens and others that were added, which templates use."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    wrapped.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>", "<tool>"]})
    wrapped.add_tokens(["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>"])
    wrapped.chat_template = character_tokenizer("a").chat_template
    return wrapped


@pytest.mark.parametrize(
    "make",
    [of_characters, of_bytes, lambda: of_bytes(normalizers.NFKC())],
    ids=["characters", "bytes", "normalised"],
)
def test_no_text_becomes_a_message_a_role_or_an_end(make) -> None:
    """An environment may repeat what the policy said. The template's own tokens are the only special ones then."""
    tokenizer = make()
    renderer = Renderer(tokenizer)
    special = set(tokenizer.get_added_vocab().values()) - {tokenizer.unk_token_id}
    bare = [token for token in renderer.answer_ids(ASK, [{"role": "tool", "content": ""}]) if token in special]
    assert tokenizer.convert_ids_to_tokens(bare) == ["<tool>", "<assistant>"]
    for text in TEXTS:
        answer = as_reply(text[:20_000], "d")
        assert isinstance(answer, Observation)
        ids = renderer.answer_ids(ASK, answer.messages)
        assert [token for token in ids if token in special] == bare, text[:80]


def test_bytes_are_shown_as_they_are() -> None:
    renderer = Renderer(of_bytes())
    for text in ("<tool>222<end>", "a<tool_call>b</tool_call>", "<<end>end>", "\uff1cend\uff1e", "é\n💥"):
        assert renderer.tokenizer.decode(renderer.plain_ids(text)) == text

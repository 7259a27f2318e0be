"""The calculator domain: its questions, its tools, how calls are read, and rewards by turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from transformers.utils import get_json_schema

from onepolicy.config import ConfigError, DomainConfig
from onepolicy.rollout import annotate_advantages, turn_advantages
from onepolicy.tasks import read_options
from onepolicy.tasks.calculator import CalculatorOptions, CalculatorSource, calculate
from onepolicy.tasks.check import check_source
from onepolicy.tasks.episodes import demonstrated
from onepolicy.tasks.grading import Grader
from onepolicy.tasks.tools import Call, Tool, ToolError, read_calls
from onepolicy.types import Grade, Sample, Task

ALL = [(task, calls) for task in ("expression", "lookup", "bill") for calls in ("compact", "json")]


def source(**options: Any) -> CalculatorSource:
    return CalculatorSource("sums", CalculatorOptions(**options), 0)


def config(**options: Any) -> DomainConfig:
    return DomainConfig.model_validate({"tasks": {"kind": "calculator", **options}})


def chat(sums: CalculatorSource, turns: tuple[str, ...], index: int = 0) -> list[str]:
    return [message["content"] for message in demonstrated(sums, sums.draw(index), turns)]


# -- questions ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader({f"{task} {calls}": config(task=task, calls=calls) for task, calls in ALL}) as grader:
        yield grader


@pytest.mark.parametrize(("task", "calls"), ALL)
def test_gold_episodes_score_and_empty_and_constant_ones_do_not(task: str, calls: str, grader: Grader) -> None:
    sums = CalculatorSource(f"{task} {calls}", CalculatorOptions(task=task, calls=calls), 0)
    report = check_source(sums, 100, grader.grade)
    assert report.ok and report.without_gold == 0 and not report.warnings
    assert report.empty_reward == 0 and report.constant_reward < 0.1


def test_written_out_examples() -> None:
    assert chat(source(task="expression", calls="compact"), ("calc:9+73", "82")) == ["calc:9+73", "82", "82"]
    bill = source(task="bill", calls="compact")
    task = bill.draw(0)
    assert task.messages == ({"role": "user", "content": "3*xz"},) and task.tools == ()
    assert bill.gold(task) == ("look:xz", "calc:3*74", "222") and task.metadata["table"]["xz"] == 74
    asked = source(task="bill").draw(1)
    assert asked.messages[0]["content"] == "What do 5 zvki and 4 ale cost? Look the prices up."
    assert [tool["function"]["name"] for tool in asked.tools] == ["calc", "look"]
    assert asked.tools[1]["function"]["parameters"] == {
        "type": "object",
        "properties": {"key": {"type": "string", "description": "the name of the entry"}},
        "required": ["key"],
    }


def test_schemas_are_those_that_transformers_makes_of_a_function() -> None:
    def look(key: str) -> str:
        """Look an entry up in the table.

        Args:
            key: the name of the entry
        """
        return key

    made = get_json_schema(look)
    assert made["function"].pop("return", None) in (None, {"type": "string"})
    assert source().draw(0).tools[1] == made


def test_a_task_is_a_function_of_options_seed_and_index() -> None:
    one, other = source(), source()
    assert [one.draw(i) for i in range(20)] == [other.draw(i) for i in reversed(range(20))][::-1]
    assert one.draw(0) != CalculatorSource("sums", CalculatorOptions(), 1).draw(0)


def test_demonstrations_are_gold_unless_corrupted_in_one_character_of_one_turn() -> None:
    clean, flawed = source(calls="compact"), source(calls="compact", corrupt=0.5)
    assert all(clean.demonstration(t) == clean.gold(t) for t in map(clean.draw, range(50)))
    wrong = 0
    for task in map(flawed.draw, range(400)):
        pairs = [(a, b) for a, b in zip(flawed.demonstration(task), flawed.gold(task), strict=True) if a != b]
        assert len(pairs) <= 1
        for shown, gold in pairs:
            assert sum(a != b for a, b in zip(shown, gold, strict=True)) == 1
            assert shown.partition(":")[0] == gold.partition(":")[0] or ":" not in gold
        wrong += len(pairs)
    assert 160 < wrong < 240


def test_tools_may_be_told_in_the_prompt_where_a_template_knows_none() -> None:
    sums = source(show="prompt")
    task = sums.draw(0)
    assert [message["role"] for message in task.messages] == ["system", "user"] and task.tools == ()
    assert '"name": "look"' in task.messages[0]["content"]
    roles = [message["role"] for message in demonstrated(sums, task, sums.gold(task))]
    assert roles == ["assistant", "user", "assistant", "user", "assistant"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_turns": 3}, "the longest questions of this kind take 4 turns"),
        ({"task": "expression", "terms": 1}, "an expression has from 2 terms"),
        ({"task": "bill", "terms": 13}, "a bill has at most 12"),
        ({"calls": "compact", "show": "prompt"}, "drop show"),
        ({"task": "bills"}, "Input should be 'expression', 'lookup' or 'bill'"),
        ({"turns": 3}, "unknown key"),
    ],
)
def test_nonsense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_options("sums", config(**options).tasks)


# -- tools -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("3*17+2*4", "59"), ("2-5", "-3"), ("-(2+3)*4", "-20"), ("7/2", "3.5"), ("1/3", "0.3333333333"), ("6/3", "2"),
        (" 1 + 1 ", "2"), ("0.1+0.2", "0.3"), ("+5", "5"), ("2**3", ToolError), ("7//2", ToolError), ("", ToolError),
        ("1/0", ToolError), ("(" * 100, ToolError), ("9" * 201, ToolError), ("*".join(["9" * 60] * 3), ToolError),
        ("007", ToolError), ("1e5", ToolError), ("__import__('os')", ToolError), ("1 2", ToolError),
        ("3*³", ToolError), ("٣+1", ToolError), (".", ToolError), ("1(2)", ToolError),
        ("-" * 199 + "1", "-1"),
    ],
)  # fmt: skip
def test_the_calculator_knows_four_operations_and_nothing_else(expression: str, value: Any) -> None:
    if value is ToolError:
        with pytest.raises(ToolError):
            calculate(expression)
    else:
        assert calculate(expression) == value


TOOLS = {
    "look": Tool("", {"key": ""}, lambda key: key),
    "put": Tool("", {"path": "", "text": ""}, lambda path, text: path + text),
    "list": Tool("", {}, lambda: "all"),
}
LOOK = '{"name": "look", "arguments": {"key": "mug"}}'


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (f"<tool_call>\n{LOOK}\n</tool_call>", [Call("look", {"key": "mug"})]),
        (f"<tool_call>{LOOK}", [Call("look", {"key": "mug"})]),
        (f"I look.<tool_call>{LOOK}</tool_call><tool_call>{LOOK}</tool_call>", [Call("look", {"key": "mug"})] * 2),
        (LOOK, [Call("look", {"key": "mug"})]),
        (f"<|python_tag|>{LOOK}", [Call("look", {"key": "mug"})]),
        ('{"name": "look", "parameters": {"key": 7}}', [Call("look", {"key": "7"})]),
        ('{"name": "list"}', [Call("list", {})]),
        (f"<think><tool_call>{LOOK}</tool_call></think>59", []),
        ("59", []),
        ("", []),
        ('{"answer": 3}', []),
        ("look:mug", []),
    ],
)
def test_calls_in_json_are_read(text: str, calls: list[Call]) -> None:
    assert read_calls(text, "json", TOOLS) == calls


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("<tool_call>look(mug)</tool_call>", "not JSON"),
        ("<tool_call></tool_call>", "not JSON"),
        ("<tool_call>[1]</tool_call>", 'a call is {"name"'),
        ('<tool_call>{"name": 3}</tool_call>', 'a call is {"name"'),
        ('<tool_call>{"name": "open", "arguments": {}}</tool_call>', "no tool 'open': there are look, put, list"),
        ('<tool_call>{"name": "look", "arguments": "mug"}</tool_call>', "arguments must be an object"),
        ('<tool_call>{"name": "look", "arguments": {}}</tool_call>', "look takes key, not ''"),
        (
            '<tool_call>{"name": "look", "arguments": {"key": "a", "b": "c"}}</tool_call>',
            "look takes key, not 'key, b'",
        ),
        ('<tool_call>{"name": "look", "arguments": {"key": null}}</tool_call>', "key must be a string"),
        ('<tool_call>{"name": "look", "arguments": {"key": {"a": 1}}}</tool_call>', "key must be a string"),
        ("<tool_call>" * 17, "more than 16 calls"),
        ("<tool_call>" + "[" * 50_000, "not JSON"),
        ('<tool_call>"' + "a" * 200_000, "a call of 200001 characters"),
    ],
)
def test_calls_that_cannot_be_had_say_why(text: str, fault: str) -> None:
    calls = read_calls(text, "json", TOOLS)
    assert calls and fault in calls[0].fault


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("look:mug", [Call("look", {"key": "mug"})]),
        (" look:a:b ", [Call("look", {"key": "a:b"})]),
        ("59", []),
        ("open:mug", []),
        ("look", []),
        (LOOK, []),
    ],
)
def test_compact_calls_are_read(text: str, calls: list[Call]) -> None:
    assert read_calls(text, "compact", TOOLS) == calls


def test_faults_are_told_and_the_episode_goes_on() -> None:
    sums = source(task="lookup")
    task = sums.draw(0)
    look, answer = sums.gold(task)
    said = chat(sums, ('<tool_call>{"name": "open"}</tool_call>', sums.options.call("look", key="zzzzz"), look, answer))
    assert said[1] == "error: no tool 'open': there are calc, look"
    assert said[3] == "error: no entry 'zzzzz'"
    assert said[5] == answer
    short = source(task="lookup", calls="compact")
    assert chat(short, ("look:zzzzz", "calc:1/0", "1"))[1:4:2] == ["error", "error"]


# -- rewards by turn ---------------------------------------------------------------------------------------------------


def test_a_turn_whose_calls_all_go_well_is_worth_1(grader: Grader) -> None:
    sums = source(task="bill", calls="compact")
    task = Task(**{**{f: getattr(sums.draw(0), f) for f in Task.__slots__}, "domain": "bill compact"})
    right, wrong, cut = ("look:xz", "calc:3*74", "222"), ("look:x", "calc:3*74", "221"), ("look:xz", "look:xz")
    assert grader.grade([(task, right), (task, wrong), (task, cut)]) == [
        Grade(1.0, "", (1.0, 1.0, 1.0)),
        Grade(0.0, "", (0.0, 1.0, 0.0)),
        Grade(0.0, "no answer", (1.0, 1.0)),
    ]


def episode(reward: float, turn_rewards: tuple[float, ...], *lengths: int) -> Sample:
    """Turns of these lengths, one token of the environment's between them."""
    mask = [False, *[part for length in lengths for part in [*([True] * length), False]][:-1]]
    task = Task("t", "d", ())
    written = np.zeros(sum(mask), dtype=np.float32)
    sample = Sample(task, np.arange(len(mask), dtype=np.int32), np.array(mask), written, reward=reward)
    sample.turn_rewards = turn_rewards
    return sample


def test_advantages_by_turn_are_those_of_the_turn_and_all_later_ones() -> None:
    """Rewards 1, 0 | 1, 1, 0 (the last turn has broken off): mean 3/5, so 2/5, -3/5 | 2/5, 2/5, -3/5 and their sums."""
    group = [episode(1.0, (1.0, 0.0), 2, 1), episode(0.0, (1.0, 1.0), 1, 2, 1)]
    first, second = turn_advantages(group, "dr_grpo")
    np.testing.assert_allclose(first, [-1 / 5, -1 / 5, -3 / 5])
    np.testing.assert_allclose(second, [1 / 5, -1 / 5, -1 / 5, -3 / 5])
    annotate_advantages(group, "dr_grpo", turn_weight=0.5)
    np.testing.assert_allclose(group[0].advantages_R, [0.5 - 0.1, 0.5 - 0.1, 0.5 - 0.3], rtol=1e-6)
    np.testing.assert_allclose(group[1].advantages_R, [-0.5 + 0.1, -0.5 - 0.1, -0.5 - 0.1, -0.5 - 0.3], rtol=1e-6)
    annotate_advantages(group, "dr_grpo")
    np.testing.assert_allclose(group[0].advantages_R, [0.5] * 3)


def test_groups_without_rewards_by_turn_have_none() -> None:
    group = [episode(1.0, (), 2, 1), episode(0.0, (), 1)]
    annotate_advantages(group, "dr_grpo", turn_weight=0.5)
    assert group[0].advantages_R.tolist() == [0.5] * 3 and group[1].advantages_R.tolist() == [-0.5]

"""Tools that a policy calls in its text: how a call is written, what the chat template is told, and what is answered.

    json     <tool_call>{"name": "look", "arguments": {"key": "mug"}}</tool_call>, as many as wanted, or one such object
             alone (`parameters` means the same): what chat templates with tools teach
    compact  look:mug, one a turn and one argument: for models of a few million parameters

A turn without a call is the policy's answer and ends the episode.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, PositiveInt, model_validator

from onepolicy.tasks.base import SourceOptions
from onepolicy.tasks.nesting import read_json
from onepolicy.thought import NEVER_ENDS, answer_of
from onepolicy.types import Grade, Message

MAX_CALLS = 16  # in one turn
MAX_CALL = 100_000  # characters of one call
OPEN, CLOSE = "<tool_call>", "</tool_call>"

HOW_TO_CALL = (
    "You may call tools. They are, as JSON schemas:\n{schemas}\nTo call one, write "
    '<tool_call>{{"name": ..., "arguments": {{...}}}}</tool_call> and end your turn: the next message has its result. '
    "A turn without a call is your answer."
)


class ToolError(ValueError):
    """What the policy is told instead of a result: its call was wrong."""


class Tool(NamedTuple):
    """`run` gets the arguments by name, strings all of them, and may raise ToolError."""

    description: str
    arguments: Mapping[str, str]  # name → description
    run: Callable[..., str]


class Call(NamedTuple):
    """What a turn asks for; `fault` says why it cannot be had."""

    name: str
    arguments: Mapping[str, str]
    fault: str = ""


class ToolOptions(SourceOptions):
    """How the policy calls, how often it may speak, and how it learns of its tools.

    `show`: by the chat template, answers in messages of the role tool; or, for templates that know none, in a system
    message, answers in the user's role. `corrupt` is the probability that a demonstration has one character wrong.
    """

    calls: Literal["json", "compact"] = "json"
    show: Literal["template", "prompt"] = "template"
    max_turns: PositiveInt = 8
    corrupt: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _compact_is_not_shown(self) -> Self:
        if self.calls == "compact" and self.show != "template":
            raise ValueError("compact calls are for models that learn them from demonstrations: drop show")
        return self

    def task_parts(self, question: str, tools: Mapping[str, Tool]) -> tuple[tuple[Message, ...], tuple[Any, ...]]:
        """The messages of a task, and the schemas for its chat template."""
        messages: tuple[Message, ...] = ({"role": "user", "content": question},)
        if self.calls == "compact":
            return messages, ()
        schemas = tuple(schema(name, tool) for name, tool in tools.items())
        if self.show == "template":
            return messages, schemas
        told = HOW_TO_CALL.format(schemas="\n".join(map(json.dumps, schemas)))
        return ({"role": "system", "content": told}, *messages), ()

    def call(self, name: str, **arguments: str) -> str:
        """The turn that makes this call."""
        if self.calls == "compact":
            return f"{name}:{''.join(arguments.values())}"
        return f"{OPEN}\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n{CLOSE}"


class ToolEpisode:
    """Answers the calls of each turn; a turn without one is graded. Turn rewards: 1 for calls that all went well."""

    def __init__(self, options: ToolOptions, tools: Mapping[str, Tool], grade: Callable[[str | None], Grade]) -> None:
        """`grade` is given the answer, or None when there was none."""
        self.options, self.tools, self.grade = options, tools, grade
        self.rewards: list[float] = []

    def step(self, text: str) -> list[Message] | Grade:
        said = answer_of(text)
        if said is None:
            return Grade(0.0, NEVER_ENDS, (*self.rewards, 0.0))
        text = said
        calls = read_calls(text, self.options.calls, self.tools)
        if not calls:
            return self._graded(text)
        answers = list[Message]()
        went_well = True
        role = "tool" if self.options.show == "template" else "user"
        for call in calls:
            try:
                content = self._run(call)
            except ToolError as error:
                content, went_well = "error" if self.options.calls == "compact" else f"error: {error}", False
            answers.append({"role": role, "name": call.name, "content": content})
        self.rewards.append(float(went_well))
        return answers

    def stop(self) -> Grade:
        return self._graded(None)

    def _graded(self, answer: str | None) -> Grade:
        grade = self.grade(answer)
        last = () if answer is None else (grade.reward,)
        return Grade(grade.reward, grade.reason, (*self.rewards, *last))

    def _run(self, call: Call) -> str:
        if call.fault:
            raise ToolError(call.fault)
        return self.tools[call.name].run(**call.arguments)


def schema(name: str, tool: Tool) -> dict[str, Any]:
    """What transformers' chat templates take as a tool."""
    properties = {argument: {"type": "string", "description": text} for argument, text in tool.arguments.items()}
    parameters = {"type": "object", "properties": properties, "required": list(tool.arguments)}
    return {"type": "function", "function": {"name": name, "description": tool.description, "parameters": parameters}}


def read_calls(text: str, form: Literal["json", "compact"], tools: Mapping[str, Tool]) -> list[Call]:
    """The calls of a turn, in order, those that cannot be had included; none when the turn is an answer.

    Calls that a model only thinks about are none. Linear in the text, whatever it is; JSON in it is nested as deeply as
    `nesting.py` allows.
    """
    text = (answer_of(text) or "").strip()
    if form == "compact":
        name, colon, argument = text.partition(":")
        return [_checked(name, [argument], tools)] if colon and name in tools else []
    if pieces := json_calls(text):
        if len(pieces) > MAX_CALLS:
            return [Call("", {}, f"more than {MAX_CALLS} calls in a turn")]
        return [_from_json(piece, tools) for piece in pieces]
    text = text.removeprefix("<|python_tag|>")  # Llama's
    if text.startswith("{") and text.endswith("}") and '"name"' in text[:MAX_CALL]:
        call = _from_json(text, tools)
        return [call] if call.name else []  # a JSON answer is no call
    return []


def json_calls(text: str) -> list[str]:
    """What stands between the marks of calls, of which the last may lack its end: one more than MAX_CALLS at most."""
    return [piece.partition(CLOSE)[0] for piece in (answer_of(text) or "").split(OPEN, MAX_CALLS + 1)[1:]]


def _from_json(text: str, tools: Mapping[str, Tool]) -> Call:
    if len(text) > MAX_CALL:
        return Call("", {}, f"a call of {len(text)} characters; the most is {MAX_CALL}")
    try:
        call = read_json(text)
    except ValueError as error:
        return Call("", {}, f"not JSON: {error}")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return Call("", {}, 'a call is {"name": ..., "arguments": {...}}')
    arguments = call.get("arguments", call.get("parameters", {}))
    if not isinstance(arguments, dict):
        return Call("", {}, f"arguments must be an object, not {json.dumps(arguments)[:100]}")
    return _checked(call["name"], arguments, tools)


def _checked(name: str, arguments: Mapping[str, Any] | Sequence[str], tools: Mapping[str, Tool]) -> Call:
    """Arguments by name, or by position; numbers and truth values are taken as the text that JSON has for them."""
    if name not in tools:
        return Call(name[:100], {}, f"no tool {name[:100]!r}: there are {', '.join(tools)}")
    wanted = tools[name].arguments
    given = arguments if isinstance(arguments, Mapping) else dict(zip(wanted, arguments, strict=False))
    if given.keys() != wanted.keys():
        return Call(name, {}, f"{name} takes {', '.join(wanted) or 'no arguments'}, not {', '.join(given)[:100]!r}")
    texts = {}
    for key, value in given.items():
        if not isinstance(value, (str, int, float)):
            return Call(name, {}, f"{key} must be a string")
        texts[key] = value if isinstance(value, str) else json.dumps(value)
    return Call(name, texts)

"""The columns of a row: found by a dotted name, and read as a prompt, a demonstration or an answer.

Each function raises ValueError that says which value is wrong and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from onepolicy.config import did_you_mean, listed
from onepolicy.tasks.base import user_message
from onepolicy.types import Message

MAX_TEXT = 10_000_000  # characters of a prompt or a demonstration: more than any context holds
Scalar = str | bool | int | float | Decimal
VALUE_KEYS = ("ground_truth", "text", "answer", "answers", "value", "aliases", "label")  # where structs keep the answer


def lookup(row: Mapping[str, Any], column: str) -> Any:
    """row["a.b"] or, where there is no column of that name, row["a"]["b"]."""
    if column in row:
        value = row[column]
        return value.tolist() if hasattr(value, "tolist") else value  # numpy, from pandas
    outer = column
    while "." in outer:
        outer = outer.rpartition(".")[0]
        if outer in row:
            inner, rest = row[outer], column[len(outer) + 1 :]
            if not isinstance(inner, Mapping):
                raise ValueError(f"column {outer!r}: {shown(inner)} is no struct, and has no {rest!r}")
            try:
                return lookup(inner, rest)
            except ValueError:
                raise ValueError(
                    f"no column {column!r}: {did_you_mean(column, names(row))}; its columns are {described(row)}"
                ) from None
    raise ValueError(f"no column {column!r}: {did_you_mean(column, names(row))}; its columns are {described(row)}")


def names(row: Mapping[str, Any]) -> list[str]:
    """Of the columns and, dotted, of what is in structs."""
    inner = [f"{column}.{key}" for column, value in row.items() if isinstance(value, Mapping) for key in value]
    return [*map(str, row), *inner]


def described(row: Mapping[str, Any]) -> str:
    """The columns in a few words, those that are structs with their keys."""
    return listed(f"{c} ({listed(v)})" if isinstance(v, Mapping) else c for c, v in row.items())


def shown(value: Any) -> str:
    """A faulty value in a message."""
    return "null" if value is None else f"{value!r:.80}"


# --- Prompts ---------------------------------------------------------------------------------------------------------


def as_prompt(value: Any) -> tuple[Message, ...]:
    """A text or a chat as the messages of a prompt."""
    if isinstance(value, str):
        _check_text(value, "a prompt")
        return user_message(value)
    if not isinstance(value, list):
        hint = f"; one message is given as a list: [{shown(value)}]" if _is_struct(value, "role", "content") else ""
        raise ValueError(f"{shown(value)} is no prompt: a prompt is a text or a list of messages{hint}")
    chat = as_chat(value)
    if not any(map(_says_something, chat)):
        raise ValueError(f"{shown(value)} is a prompt without any content")
    if chat[-1]["role"] == "assistant":
        raise ValueError(
            "the prompt ends with a message of the assistant, so there is nothing to respond to: to imitate that "
            "message, name this column as `demonstration` too"
        )
    return chat


def as_chat(value: Sequence[Any]) -> tuple[Message, ...]:
    """A list of messages, without the nulls that Arrow puts into structs: {"tool_calls": null, ...}."""
    if not value:
        raise ValueError("[] is an empty list of messages")
    chat = tuple(_message(message, number) for number, message in enumerate(value))
    texts = [text for message in chat for text in _texts(message["content"])]
    _require_size(sum(map(len, texts)), "the chat")
    return chat


def _texts(content: str | Sequence[Mapping[str, Any]]) -> list[str]:
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]


def _message(value: Any, number: int) -> Message:
    place = f"message {number}"
    if not isinstance(value, Mapping):
        raise ValueError(f"{place} is {shown(value)}, and not a dict with role and content")
    message: dict[str, Any] = without_nulls(value)
    if not isinstance(message.get("role"), str) or not message["role"]:
        raise ValueError(f"{place} has no role: {shown(value)}; a message is {{role: user, content: ...}}")
    if message.get("tool_calls"):
        message.setdefault("content", "")  # as the API of OpenAI writes it
    if "content" not in message:
        raise ValueError(f"{place} has no content: {shown(value)}")
    content = message["content"]
    if isinstance(content, str):
        _check_encodable(content, place)
    elif not isinstance(content, list) or not content or not all(map(_is_part, content)):
        raise ValueError(
            f"{place} has the content {shown(content)}: content is a text or a list of parts with a type each"
        )
    return message


def without_nulls(value: Any) -> Any:
    """Structs without the keys whose value is null, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if hasattr(value, "tolist"):  # numpy, from pandas
        value = value.tolist()
    return [without_nulls(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _is_part(part: Any) -> bool:
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        return False
    return part["type"] != "text" or isinstance(part.get("text"), str)


def _says_something(message: Message) -> bool:
    content = message["content"]
    return bool(content.strip()) if isinstance(content, str) else bool(content)


def _is_struct(value: Any, *keys: str) -> bool:
    return isinstance(value, Mapping) and all(key in value for key in keys)


def require_size(text: str, what: str) -> None:
    """Raises ValueError for a text that is longer than any context, which would take minutes to tokenize."""
    _require_size(len(text), what)


def _require_size(characters: int, what: str) -> None:
    if characters > MAX_TEXT:
        raise ValueError(f"{what} has {characters:,} characters, and the most is {MAX_TEXT:,}")


def _check_text(value: str, what: str) -> None:
    if not value.strip():
        raise ValueError(f"{shown(value)} is {what} without any content")
    require_size(value, what)
    _check_encodable(value, what)


def _check_encodable(value: str, what: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"{what} holds half a surrogate pair, {half!r}, which no tokenizer reads") from None


# --- Demonstrations --------------------------------------------------------------------------------------------------


def as_demonstration(value: Any) -> str | tuple[Message, ...]:
    """What supervised finetuning imitates: a text, or messages from the assistant's first turn to its last."""
    if not isinstance(value, list):
        if not is_scalar(value):
            raise ValueError(f"{shown(value)} is no demonstration: a demonstration is a text or a list of messages")
        _check_text(str(value), "a demonstration")
        return str(value)
    chat = as_chat(value)
    if chat[0]["role"] != "assistant" or chat[-1]["role"] != "assistant":
        raise ValueError(
            f"the demonstration goes from the role {chat[0]['role']!r} to {chat[-1]['role']!r}: it begins and ends "
            "with a message of the assistant"
        )
    for number, message in enumerate(chat):
        if not isinstance(message["content"], str):
            raise ValueError(f"message {number} of the demonstration is no text: {shown(message['content'])}")
        if message.get("tool_calls"):
            raise ValueError(
                f"message {number} of the demonstration has tool_calls, which would not be imitated: write the call "
                "into its content, as the policy has to write it"
            )
        if message["role"] == "assistant" and not message["content"].strip():
            raise ValueError(f"message {number} of the demonstration is an empty turn of the assistant")
    return chat


def split_chat(value: Any) -> tuple[list[Any], list[Any]]:
    """A whole chat as prompt and demonstration: what follows the last message of neither the assistant nor a tool."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"{shown(value)} is no chat: prompt and demonstration in one column are a list of messages")
    roles = [message.get("role") if isinstance(message, Mapping) else None for message in value]
    asked = [number for number, role in enumerate(roles) if role not in ("assistant", "tool")]
    begin = asked[-1] + 1 if asked else 0
    if begin == len(value):
        raise ValueError(f"the chat ends with the role {roles[-1]!r}, so there is no demonstration in it")
    return value[:begin], value[begin:]


# --- Answers ---------------------------------------------------------------------------------------------------------


def is_scalar(value: Any) -> bool:
    """Whether it is a text or a number."""
    return isinstance(value, (str, bool, int, float, Decimal))


def aliases(reference: Any, column: str = "answer") -> list[Scalar]:
    """The right answers that a reference names: one text or number, or a list of which any is right.

    A chat (TRL's completion) names the text of its last message. Structs are refused, with the dotted name to use.
    """
    if isinstance(reference, Mapping):
        key = next((key for key in VALUE_KEYS if key in reference), next(iter(reference), "value"))
        raise ValueError(
            f"{shown(reference)} is a struct, and no text, number or list of these: name the part that is the answer, "
            f"for example `answer: {column}.{key}`"
        )
    if isinstance(reference, (list, tuple)) and reference and all(_is_struct(m, "role", "content") for m in reference):
        reference = reference[-1]["content"]
    found = list(reference) if isinstance(reference, (list, tuple)) else [reference]
    if not found:
        raise ValueError("[] names no right answer: an answer is a text, a number, or a list of these")
    for alias in found:
        if not is_scalar(alias):
            within = f" in {shown(reference)}" if alias is not reference else ""
            raise ValueError(f"{shown(alias)}{within} is no answer: an answer is a text, a number, or a list of these")
        if isinstance(alias, str) and not alias.strip():
            raise ValueError(f"{shown(alias)} is an empty answer, which an empty response would match")
        if isinstance(alias, (float, Decimal)) and not math.isfinite(alias):
            raise ValueError(f"{alias} is no answer: it equals nothing")
    return found

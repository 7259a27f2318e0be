"""Whether a chat template shows all that a chat says.

jinja prints nothing where a key is missing, and a template may pass over a role that it does not know, or write a list
of parts as Python does. The policy would then be asked something else than the row says. Here each of these is an error
that names the message, for example

    message 2 (tool): it has no 'name', which the chat template shows
    message 1 (narrator): the chat template does not show it
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onepolicy.engines.template import CONTENTS, RENDERING, Template

Chat = Sequence[Mapping[str, Any]]
OF_TOOLS = ("name", "tool_call_id")  # keys of a tool's message that some templates show


def render_whole(template: Template, chat: Chat, **options: Any) -> str:
    """A chat as text, in which each message is shown. Raises ValueError that names the message which is not."""
    messages = list(chat)
    try:
        text = template.text(messages, **options)
    except RENDERING as error:
        number = _culprit(template, messages, error)
        raise ValueError(f"{_title(number, messages)}: {error}") from error
    for number, message in enumerate(messages):
        if fault := _hidden(template, messages, number, text, options) or _hole(
            template, messages, number, text, options
        ):
            raise ValueError(f"{_title(number, messages)}: {fault}")
        if isinstance(message.get("content"), list) and message["content"]:
            _check_parts(message["content"], text, _title(number, messages))
    return text


def _culprit(template: Template, messages: Chat, error: Exception) -> int:
    """The message with which the template begins to fail like this."""
    for number in range(len(messages) - 1):
        try:
            template.text(messages[: number + 1])
        except RENDERING as other:
            if str(other) == str(error):
                return number
    return len(messages) - 1


def _hidden(template: Template, messages: Chat, number: int, text: str, options: Mapping[str, Any]) -> str:
    """Says that other contents would give the same text; empty where they would not."""
    message = messages[number]
    if "tool_calls" in message:  # some templates show the calls alone
        return ""
    for said, other in _replaced(message):
        if said.strip() in text:
            continue
        # a template may shorten a content, or obey it, such as /no_think
        if _with(template, messages, number, other, options) == text:
            return "the chat template does not show it: use another role or template, or put its text elsewhere"
    return ""


def _hole(template: Template, messages: Chat, number: int, text: str, options: Mapping[str, Any]) -> str:
    """Says which key of a tool's message the template prints, and the message does not have; empty for none.

    A template that asks for the key first has other text around an empty value, or skips 0.
    """
    message = messages[number]
    for key in OF_TOOLS if message.get("role") == "tool" else ():
        if key in message or _with(template, messages, number, {**message, key: ""}, options) != text:
            continue
        if _with(template, messages, number, {**message, key: 0}, options) not in (None, text):
            return f"it has no {key!r}, which the chat template shows: give it one"
    return ""


def _with(
    template: Template, messages: Chat, number: int, other: Mapping[str, Any], options: Mapping[str, Any]
) -> str | None:
    """The chat with another message in the place of one; None where it cannot be rendered."""
    try:
        return template.text([*messages[:number], other, *messages[number + 1 :]], **options)
    except RENDERING:
        return None


def _replaced(message: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each text of a message, and the message with another in its place."""
    content = message.get("content")
    if isinstance(content, str):
        yield content, {**message, "content": CONTENTS[0]}
    parts: list[Any] = content if isinstance(content, list) else []
    for place, part in enumerate(parts):
        if isinstance(part, Mapping) and isinstance(part.get("text"), str):
            other = [*parts[:place], {**part, "text": CONTENTS[0]}, *parts[place + 1 :]]
            yield part["text"], {**message, "content": other}


def _check_parts(parts: Sequence[Any], text: str, title: str) -> None:
    """Raises ValueError for parts that are no text, and for a template that writes the list instead of its texts."""
    kinds = [part.get("type") if isinstance(part, Mapping) else type(part).__name__ for part in parts]
    if other := [kind for kind in kinds if kind != "text"]:
        raise ValueError(f"{title}: its content has a part of type {other[0]!r}, and only text can be read")
    if str(parts) in text or json.dumps(parts, ensure_ascii=False) in text:
        raise ValueError(f"{title}: its content is a list of parts, and the chat template expects a text: give a text")


def _title(number: int, messages: Sequence[Mapping[str, Any]]) -> str:
    return f"message {number} ({messages[number].get('role', 'no role')})"

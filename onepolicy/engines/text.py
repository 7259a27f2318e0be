"""Text in, token ids out, and back: the one place that knows the chat template and which tokens end an answer.

Engines, demonstrations and teachers must agree on these to the token, so all of them go through a Renderer.
It renders text only; images have their own renderer. Its parts: what a template does (`template`), text that must stay
text (`plain`), and responses, parted into thought and answer (`responses`).

In an episode of several turns the policy's tokens stay as they were sampled. What its environment answers is rendered
by the chat template behind a stand-in for the policy's turn, and appended from where that turn has ended:

    template   <user>6*7?<assistant>STAND-IN<end><tool>ANSWER<assistant>
    appended                                     <tool>   42 <assistant>     42 is tokenised as plain characters
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jinja2 import TemplateError

from onepolicy.engines.chat import render_whole
from onepolicy.engines.plain import MARK, PlainText, own_markers, unused_mark
from onepolicy.engines.responses import Response, ResponseReader, StopStrings
from onepolicy.engines.template import RENDERING, Template, primed_thought
from onepolicy.engines.vocabulary import count_gaps, vocabulary_size
from onepolicy.thought import HARMONY, MARKERS, speaks_harmony
from onepolicy.types import Array, Message, Task

STAND_IN, ANSWER = "onepolicyturn", "onepolicyanswer"  # such text as no template alters or splits
THOUGHT_MARKERS = frozenset(marker for pair in MARKERS for marker in pair)


class Renderer:
    """Renders tasks with `tokenizer` (a Hugging Face tokenizer) and, if given, the model's `generation_config`.

    `chat_template_kwargs` are the template's arguments, for example {"enable_thinking": False}.
    `stop_ids`: the tokens that end an answer: those of generation_config.eos_token_id, the tokenizer's, and the one
    that the chat template writes behind an answer.
    `end_id`: the one of them that demonstrations end with: the template's.
    `notes`: what a run should say about them, once.
    Raises ValueError when nothing names a stop token, and for an argument that the template does not know.
    """

    def __init__(
        self, tokenizer: Any, generation_config: Any = None, chat_template_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.plain = PlainText(tokenizer)
        self.template = Template(tokenizer, self.plain, chat_template_kwargs or {})
        from_model = getattr(generation_config, "eos_token_id", None)
        from_model = [] if from_model is None else from_model if isinstance(from_model, Sequence) else [from_model]
        from_tokenizer = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        declared = list(dict.fromkeys(map(int, (*from_tokenizer, *from_model))))
        self._turn = self.template.turn(declared)
        self.stop_ids = frozenset(declared if self._turn.end is None else [*declared, self._turn.end])
        if not self.stop_ids:
            raise ValueError(
                "neither the tokenizer nor the generation config names an end token, so no answer could ever stop: "
                "set tokenizer.eos_token or generation_config.eos_token_id"
            )
        self.end_id = declared[0] if self._turn.end is None else self._turn.end
        self.notes = [] if self.end_id in declared else [self._note(declared)]
        if gaps := count_gaps(tokenizer):
            size = vocabulary_size(tokenizer)
            self.notes.append(f"{gaps} of the ids below {size} have no token; they keep their probability")
        primed = self.plain.encode(primed_thought(self.template.priming()), behind=True)
        self.reader = ResponseReader(tokenizer, self.template.structure(), primed)
        self._shows_tools: bool | None = None  # not yet known

    def prompt_ids(self, task: Task) -> list[int]:
        """The ids that the policy continues: the chat with an opened assistant turn, as transformers renders it.

        What looks like a control token in a message or a tool stays text. A tokenizer without a chat template (a base
        model's) gets the contents, one per line, behind what it puts before every text, and nothing behind them.
        Raises ValueError, naming the task, when its messages cannot be rendered, or when the template ends the prompt
        with a stop token.
        """
        try:
            ids = self._render(task.messages, add_generation_prompt=True, **self._tools(task))
        except RENDERING as error:
            raise ValueError(f"task {task.id!r}: its messages cannot be rendered: {error}") from error
        if ids and ids[-1] in self.stop_ids & self.plain.control_ids:
            raise ValueError(
                f"task {task.id!r}: the chat template ends the prompt with {self._name(ids[-1])}, an end token, and "
                "opens no turn for the policy: give it a generation prompt (add_generation_prompt)"
            )
        return ids

    def answer_ids(self, task: Task, messages: Sequence[Message]) -> list[int]:
        """The ids between a turn of the policy, its stop token included, and its next: `messages` in the template.

        Nothing in a message's content can become a special token, whatever it looks like. Content is inserted as it
        is, even by templates that would trim or escape it. Raises ValueError, naming the task, when they cannot be
        rendered.
        """
        try:
            first, *others = self._around(task, messages)
        except RENDERING as error:
            raise ValueError(f"task {task.id!r}: its environment's answer cannot be rendered: {error}") from error
        ids = self._piece_ids(first)
        for message, after in zip(messages, others, strict=True):
            ids += [*self.plain.ids(message["content"], behind=True), *self._piece_ids(after)]
        return ids

    def plain_ids(self, text: str) -> list[int]:
        """The ids of text in which nothing is a special token: what looks like one is cut before it is tokenised."""
        return self.plain.ids(text)

    def demonstration(self, task: Task, answer: str | Sequence[Message]) -> tuple[Array, Array]:
        """(token_ids_T int32, mask_T bool): prompt, answer, end token, exactly as the policy would have to write it.

        The mask is true on the answer and the end token: with a chat instead of a text, on each of its assistant
        turns. Of what looks like a control token, the markers of a thought at the beginning are tokens, and those of
        calls in JSON; all else stays text. A thought that the prompt opens is closed before an answer that has none,
        and where the template has the policy name a channel (Harmony), it is named.
        """
        chat = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else list(answer)
        ids, mask = self.prompt_ids(task), list[bool]()
        mask += [False] * len(ids)
        while chat:
            written = self._written_ids(ids, chat.pop(0)["content"])
            others = next((i for i, message in enumerate(chat) if message["role"] == "assistant"), len(chat))
            shown = self.answer_ids(task, chat[:others]) if others else []
            ids += [*written, *shown]
            mask += [True] * len(written) + [False] * len(shown)
            del chat[:others]
        return np.array(ids, dtype=np.int32), np.array(mask)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a response as a reader sees it: markers of thoughts and calls, but no stop token and no roles."""
        return self.reader.text(self._without_stop(ids))

    def read(
        self, prompt_ids: Sequence[int], ids: Sequence[int], cut: int | None = None, tools: bool = False
    ) -> Response:
        """Text, thought and answer of the response `ids` to a prompt.

        `cut`: where a stop string ends its text. `tools`: the policy may call some, see ResponseReader.read.
        """
        return self.reader.read(prompt_ids, self._without_stop(ids), cut, tools)

    def stop_strings(self, strings: Sequence[str], minimum: int) -> StopStrings:
        """Finds out when a response has said one of the strings, at the earliest with its token number `minimum`."""
        return StopStrings(self.reader, strings, minimum)

    def check_system_prompts(self, domains: Iterable[Sequence[Task]]) -> None:
        """Raises ValueError when the system message of a domain's first task changes nothing, or is not taken.

        Some are not shown but obeyed, such as /no_think.
        """
        for tasks in domains:
            if tasks:
                self._check_system_prompt(tasks[0])

    def _check_system_prompt(self, task: Task) -> None:
        system = [message["content"] for message in task.messages if message["role"] == "system"]
        if not system or self.tokenizer.chat_template is None:
            return
        others = [message for message in task.messages if message["role"] != "system"]
        try:
            options = {"add_generation_prompt": True, **self._tools(task)}
            text, bare = (self.template.text(messages, **options) for messages in (task.messages, others))
        except RENDERING as error:
            raise ValueError(
                f"domain {task.domain!r}: the chat template does not take a system message ({error}): drop "
                "system_prompt, and put its text into the questions"
            ) from error
        if text == bare:
            raise ValueError(
                f"domain {task.domain!r}: the chat template does not show the system message {system[0]!r:.80}: drop "
                "system_prompt, and put its text into the questions"
            )

    def _without_stop(self, ids: Sequence[int]) -> Sequence[int]:
        # a stop token need not be registered as a special one
        return ids[:-1] if len(ids) and int(ids[-1]) in self.stop_ids else ids

    def _written_ids(self, prompt_ids: Sequence[int], content: str) -> list[int]:
        """A turn that the policy would write behind the prompt, end token included."""
        opened = self.reader.opened(prompt_ids)
        closes = opened is not None and opened[1] in content
        before = f"{opened[1]}\n\n" if opened is not None and not closes else ""
        lead = set(self.plain.controls.findall(self._turn.lead)) - THOUGHT_MARKERS
        if lead and not (lead & set(HARMONY) and speaks_harmony(content)):
            before += self._turn.lead
        own = own_markers(content, opened is not None)
        return [
            *self.plain.encode(before, behind=True),
            *self.plain.ids(content, keep=own),
            *self.plain.encode(self._turn.close, behind=True),
            self.end_id,
        ]

    def _render(self, messages: Sequence[Message], **options: Any) -> list[int]:
        if self.tokenizer.chat_template is None:
            return [*self._prefix, *self.plain.ids("\n".join(map(_text, messages)))]
        mark = unused_mark(messages, options)
        chat = [self.plain.marked_message(message, mark) for message in messages]
        shown = {key: self.plain.marked(value, mark) for key, value in options.items()}
        return self.plain.unmarked_ids(render_whole(self.template, chat, **shown), mark)

    @cached_property
    def _prefix(self) -> list[int]:
        """What the tokenizer puts before every text, a bos token for example. What it puts behind is for no prompt."""
        bare, whole = self.plain.encode("a"), list(self.tokenizer.encode("a"))
        places = range(len(whole) - len(bare) + 1)
        return whole[: next((i for i in places if whole[i : i + len(bare)] == bare), 0)]

    def _tools(self, task: Task) -> dict[str, Any]:
        """What the chat template gets of a task's tools. Raises ValueError when it does not show them."""
        if not task.tools:
            return {}
        options = {"tools": [dict(tool) for tool in task.tools]}
        if self._shows_tools is None:
            shown, bare = (
                self.tokenizer.chat_template and self.template.text(task.messages, **extra) for extra in (options, {})
            )
            self._shows_tools = shown != bare
        if not self._shows_tools:
            raise ValueError("the chat template does not show tools, so the policy cannot know them: use one that does")
        return options

    def _around(self, task: Task, messages: Sequence[Message]) -> list[str]:
        """What the template writes behind a turn that these messages answer: before, between and after the contents."""
        if self.tokenizer.chat_template is None:
            return ["\n"] * (len(messages) + 1)
        places = [f"{ANSWER}{i}." for i in range(len(messages))]
        named = [self.plain.marked_message(message, MARK) for message in messages]
        answers = [{**message, "content": place} for message, place in zip(named, places, strict=True)]
        options = {"add_generation_prompt": True, **self._tools(task)}
        prompt, text = list(map(dict, task.messages)), ""
        with contextlib.suppress(TemplateError):
            chat = [*prompt, {"role": "assistant", "content": STAND_IN}, *answers]
            text = self.template.text(chat, **options)
        if calls := places[0] not in text:  # some look for the calls that tools answer
            text = self.template.text([*prompt, *_with_calls(answers)], **options)
        before, *rest = re.split("|".join(map(re.escape, places)), text)
        _, found, behind = before.rpartition(STAND_IN)
        ends = [match.end() for match in self._end.finditer(before, before.find(STAND_IN))]
        if len(rest) != len(messages) or not found or STAND_IN in rest[-1] or (calls and not ends):
            raise ValueError(
                f"the chat template does not show messages of role {messages[0]['role']!r} behind the policy's turn"
            )
        pieces = [before[ends[-1] :] if ends else behind, *rest]
        names = [message.get("name", "tool") for message in named]  # which answers may have from the calls
        return [*(piece.replace(STAND_IN, name) for piece, name in zip(pieces, names, strict=False)), rest[-1]]

    def _piece_ids(self, piece: str) -> list[int]:
        return self.plain.unmarked_ids(piece, MARK, behind=True)

    @cached_property
    def _end(self) -> re.Pattern[str]:
        """Finds the stop tokens in a text."""
        return re.compile("|".join(map(re.escape, self.tokenizer.convert_ids_to_tokens(sorted(self.stop_ids)))))

    def _name(self, token: int) -> str:
        return f"{self.tokenizer.decode([token])!r} ({token})"

    def _note(self, declared: Sequence[int]) -> str:
        named = ", ".join(map(self._name, declared)) or "none"
        return (
            f"the chat template ends an answer with {self._name(self.end_id)}; the tokenizer and the generation config "
            f"name {named}: any of these ends a response, and demonstrations end with the template's"
        )


def _text(message: Message) -> str:
    """A message's content for a tokenizer without a chat template."""
    content = message.get("content")
    if not isinstance(content, str):
        raise ValueError(f"the content {content!r:.80} is no text, and the tokenizer has no chat template: give a text")
    return content


def unread(history: Sequence[Message]) -> Sequence[Message]:
    """What was said since the policy's last turn."""
    turns = [place for place, message in enumerate(history) if message["role"] == "assistant"]
    return history[turns[-1] + 1 if turns else 0 :]


def _with_calls(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A turn of the policy that calls a tool for every message of one, and the messages as answers to it."""
    calls, answers = list[dict[str, Any]](), list[dict[str, Any]]()
    for number, message in enumerate(messages):
        answers.append(dict(message))
        if message["role"] == "tool":
            name = f"call{number:05}"  # of nine characters, as some templates demand
            calls.append({"id": name, "type": "function", "function": {"name": STAND_IN, "arguments": {}}})
            answers[-1].setdefault("tool_call_id", name)
    return [{"role": "assistant", "content": "", "tool_calls": calls}, *answers]

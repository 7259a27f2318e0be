"""Text in, token ids out, and back: the one place that knows the chat template and which tokens end an answer.

Engines, demonstrations and teachers must agree on these to the token, so all of them go through a Renderer.
It renders text only; images have their own renderer.

In an episode of several turns the policy's tokens stay as they were sampled. What its environment answers is rendered
by the chat template behind a stand-in for the policy's turn, and appended from where that turn has ended:

    template   <user>6*7?<assistant>STAND-IN<end><tool>ANSWER<assistant>
    appended                                     <tool>   42 <assistant>     42 is tokenised as plain characters
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from jinja2 import TemplateError

from onepolicy.types import Array, Message, Task

STAND_IN, ANSWER = "onepolicyturn", "onepolicyanswer"  # such text as no template alters or splits


class Renderer:
    """Renders tasks with `tokenizer` (a Hugging Face tokenizer) and, if given, the model's `generation_config`.

    `stop_ids`: the tokens that end an answer, from generation_config.eos_token_id and the tokenizer.
    `end_id`: the one of them that demonstrations end with: what the chat template writes after an answer.
    Raises ValueError when neither source names a stop token.
    """

    def __init__(self, tokenizer: Any, generation_config: Any = None) -> None:
        self.tokenizer = tokenizer
        from_model = getattr(generation_config, "eos_token_id", None)
        from_model = [] if from_model is None else from_model if isinstance(from_model, Sequence) else [from_model]
        from_tokenizer = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.stop_ids: frozenset[int] = frozenset(map(int, (*from_model, *from_tokenizer)))
        if not self.stop_ids:
            raise ValueError(
                "neither the tokenizer nor the generation config names an end token, so no answer could ever stop: "
                "set tokenizer.eos_token or generation_config.eos_token_id"
            )
        self.end_id = self._find_end_id((*from_tokenizer, *from_model)[0])
        self._shows_tools: bool | None = None  # not yet known

    def prompt_ids(self, task: Task) -> list[int]:
        """The ids that the policy continues: the chat with an opened assistant turn.

        A tokenizer without a chat template (a base model's) gets the contents, one per line, as plain text.
        Raises ValueError, naming the task, when its messages cannot be rendered.
        """
        try:
            return self._render(task.messages, add_generation_prompt=True, **self._tools(task))
        except (TemplateError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"task {task.id!r}: its messages cannot be rendered: {error}") from error

    def answer_ids(self, task: Task, messages: Sequence[Message]) -> list[int]:
        """The ids between a turn of the policy, its stop token included, and its next: `messages` in the template.

        Nothing in a message's content can become a special token, whatever it looks like. Content is inserted as it
        is, even by templates that would trim or escape it. Raises ValueError, naming the task, when they cannot be
        rendered.
        """
        try:
            first, *others = self._around(task, messages)
        except (TemplateError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"task {task.id!r}: its environment's answer cannot be rendered: {error}") from error
        ids = self._encode(first)
        for message, after in zip(messages, others, strict=True):
            ids += [*self.plain_ids(message["content"]), *self._encode(after)]
        return ids

    def plain_ids(self, text: str) -> list[int]:
        """The ids of text in which nothing is a special token: what looks like one is cut before it is tokenised."""
        cuts = [0, *sorted({match.start() + 1 for match in self._specials.finditer(text)}), len(text)]
        ids = [token for start, stop in pairwise(cuts) for token in self._encode(text[start:stop])]
        if self._special_ids.isdisjoint(ids):
            return ids
        # A normalising tokenizer may still make one, of look-alikes: then no two characters stay together.
        return [token for character in text for token in self._encode(character) if token not in self._special_ids]

    def demonstration(self, task: Task, answer: str | Sequence[Message]) -> tuple[Array, Array]:
        """(token_ids_T int32, mask_T bool): prompt, answer, end token, exactly as the policy would have to write it.

        The mask is true on the answer and the end token: with a chat instead of a text, on each of its assistant
        turns.
        """
        chat = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else list(answer)
        ids, mask = self.prompt_ids(task), list[bool]()
        mask += [False] * len(ids)
        while chat:
            written = [*self._encode(chat.pop(0)["content"]), self.end_id]
            others = next((i for i, message in enumerate(chat) if message["role"] == "assistant"), len(chat))
            shown = self.answer_ids(task, chat[:others]) if others else []
            ids += [*written, *shown]
            mask += [True] * len(written) + [False] * len(shown)
            del chat[:others]
        return np.array(ids, dtype=np.int32), np.array(mask)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, without its stop token and without special tokens."""
        if len(ids) and int(ids[-1]) in self.stop_ids:  # a stop token need not be registered as a special one
            ids = ids[:-1]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool, **options: Any) -> list[int]:
        if self.tokenizer.chat_template is None:
            return list(self.tokenizer.encode("\n".join(message["content"] for message in messages)))
        chat = [dict(message) for message in messages]
        encoding = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=True, **options
        )
        return list(encoding["input_ids"])

    def _tools(self, task: Task) -> dict[str, Any]:
        """What the chat template gets of a task's tools. Raises ValueError when it does not show them."""
        if not task.tools:
            return {}
        options = {"tools": [dict(tool) for tool in task.tools]}
        if self._shows_tools is None:
            chat = [dict(message) for message in task.messages]
            shown, bare = (
                self.tokenizer.chat_template and self.tokenizer.apply_chat_template(chat, tokenize=False, **extra)
                for extra in (options, {})
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
        answers = [{**message, "content": place} for message, place in zip(messages, places, strict=True)]
        options = {"add_generation_prompt": True, "tokenize": False, **self._tools(task)}
        prompt, text = list(map(dict, task.messages)), ""
        with contextlib.suppress(TemplateError):
            chat = [*prompt, {"role": "assistant", "content": STAND_IN}, *answers]
            text = self.tokenizer.apply_chat_template(chat, **options)
        if calls := places[0] not in text:  # some look for the calls that tools answer
            text = self.tokenizer.apply_chat_template([*prompt, *_with_calls(answers)], **options)
        before, *rest = re.split("|".join(map(re.escape, places)), text)
        _, found, behind = before.rpartition(STAND_IN)
        ends = [match.end() for match in self._end.finditer(before, before.find(STAND_IN))]
        if len(rest) != len(messages) or not found or STAND_IN in rest[-1] or (calls and not ends):
            raise ValueError(
                f"the chat template does not show messages of role {messages[0]['role']!r} behind the policy's turn"
            )
        pieces = [before[ends[-1] :] if ends else behind, *rest]
        names = [message.get("name", "tool") for message in messages]  # which answers may have from the calls
        return [*(piece.replace(STAND_IN, name) for piece, name in zip(pieces, names, strict=False)), rest[-1]]

    @cached_property
    def _end(self) -> re.Pattern[str]:
        """Finds the stop tokens in a text."""
        return re.compile("|".join(map(re.escape, self.tokenizer.convert_ids_to_tokens(sorted(self.stop_ids)))))

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        """Added tokens, special or not, save the one for unknown characters: those that text must not turn into."""
        ids = {number for token, number in self.tokenizer.get_added_vocab().items() if len(token) > 1}
        return frozenset(ids - {self.tokenizer.unk_token_id})

    @cached_property
    def _specials(self) -> re.Pattern[str]:
        """Finds wherever one of them begins in a text, also inside another."""
        tokens = sorted(map(re.escape, self.tokenizer.convert_ids_to_tokens(sorted(self._special_ids))))
        return re.compile(f"(?={'|'.join(tokens)})" if tokens else r"(?!)")

    def _find_end_id(self, default: int) -> int:
        """Gemma's chats end a turn with another token than tokenizer.eos_token, so look at what the template does."""
        try:
            turn = ({"role": "user", "content": "?"}, {"role": "assistant", "content": "!"})
            written = self._render(turn, add_generation_prompt=False)
        except (TemplateError, KeyError, TypeError, ValueError):
            return default
        return next((token for token in reversed(written) if token in self.stop_ids), default)


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

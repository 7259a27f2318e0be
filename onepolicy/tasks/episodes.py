"""Episodes under way, in the process that grades: kept between their turns, and played again when they were lost.

An episode is known by its task and by all that was said in it, so any process can carry it on: the one that holds it
at once, another (after a crash that some other answer has caused) by taking the same turns again.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from onepolicy.tasks.base import Environment, Episode, GraderBug, as_grade
from onepolicy.thought import answer_of
from onepolicy.types import Grade, Message, Observation, Task

MAX_KEPT = 10_000  # transcripts; the one that has waited longest makes room, and would be played again
MAX_CONTENT = 100_000  # characters of one message; environments should stay far below


class Episodes:
    """`on_step` is called after each turn: what takes several has the time limit for each of them."""

    def __init__(self, on_step: Callable[[], None]) -> None:
        self._on_step = on_step
        self._kept: OrderedDict[bytes, list[Episode]] = OrderedDict()  # several where rollouts have said the same
        self._lock = threading.Lock()  # several episodes may take a turn at once

    def reply(
        self, source: Environment, task: Task, history: tuple[Message, ...], turns: Sequence[str], over: bool
    ) -> Observation | Grade:
        """Take the turns that follow `history`. The Grade when that ends the episode, or when the policy is `over`.

        A policy that has taken `source.max_turns` is over too. Raises what the environment raises, and GraderBug.
        """
        episode = self._take(_key(task, history)) or self._replayed(source, task, history)
        taken, answer = len(turns_of(history)), Observation(())
        for text in turns[: source.max_turns - taken]:
            reply = as_reply(episode.step(text), task.domain)
            self._on_step()
            if isinstance(reply, Grade):
                return reply
            history, answer, taken = (*history, said(text), *reply.messages), reply, taken + 1
        if over or taken >= source.max_turns:
            return as_grade(episode.stop(), f"the environment of domain {task.domain!r}")
        self._keep(_key(task, history), episode)
        return answer

    def _take(self, key: bytes) -> Episode | None:
        with self._lock:
            waiting = self._kept.get(key, [])
            episode = waiting.pop() if waiting else None
            if not waiting:
                self._kept.pop(key, None)
        return episode

    def _keep(self, key: bytes, episode: Episode) -> None:
        with self._lock:
            self._kept.setdefault(key, []).append(episode)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)

    def _replayed(self, source: Environment, task: Task, history: Sequence[Message]) -> Episode:
        episode = source.start(task)
        again: list[Message] = []
        for text in turns_of(history):
            answer = as_reply(episode.step(text), task.domain)
            self._on_step()
            again += [said(text), *(answer.messages if isinstance(answer, Observation) else ())]
        if again != list(history):
            raise ValueError("the grading process was restarted, and the environment does not answer as it did before")
        return episode


def demonstrated(source: Environment, task: Task, turns: Sequence[str]) -> tuple[Message, ...]:
    """The chat that follows the prompt when these turns are taken, up to the policy's last word.

    In this process and without limits: for a source's own turns only. Raises what the environment raises, and
    ValueError for a turn whose thought never ends.
    """
    episode, chat = source.start(task), [said(turns[0])]
    for text, following in pairwise(turns):
        told = answer_of(text)
        if told is None:
            raise ValueError(f"task {task.id!r}: the thought of the demonstration {text!r:.80} never ends")
        answer = as_reply(episode.step(told), task.domain)
        if isinstance(answer, Grade):
            break
        chat += [*answer.messages, said(following)]
    return tuple(chat)


def said(text: str, answer: str | None = None) -> Message:
    """A turn of the policy, and what the environment heard of it where that is not all."""
    turn = {"role": "assistant", "content": text}
    return turn if answer is None or answer == text else {**turn, "answer": answer}


def heard(history: Sequence[Message]) -> tuple[Message, ...]:
    """A chat as its environment knows it: of the policy's turns the answers alone."""
    return tuple(said(m.get("answer", m["content"])) if m["role"] == "assistant" else m for m in history)


def turns_of(history: Sequence[Message]) -> list[str]:
    """The policy's part of a chat."""
    return [message["content"] for message in history if message["role"] == "assistant"]


def as_reply(value: Any, domain: str) -> Observation | Grade:
    """What `Episode.step` returned, checked and bounded. Raises GraderBug when it is neither messages nor a Grade."""
    if isinstance(value, Grade):
        return as_grade(value, f"the environment of domain {domain!r}")
    messages = [{"role": "tool", "content": value}] if isinstance(value, str) else value
    if not isinstance(messages, (list, tuple)) or not messages or not all(map(_is_message, messages)):
        raise GraderBug(
            f"the environment of domain {domain!r} answered {value!r:.200}: an answer is a Grade, a string, or a list "
            "of messages with string values, role and content among them, none of the assistant's role"
        )
    return Observation(tuple({key: valid(text) for key, text in message.items()} for message in messages))


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        return False
    return message["role"] != "assistant" and all(isinstance(part, str) for part in (*message, *message.values()))


def valid(text: str, limit: int = MAX_CONTENT) -> str:
    """Of bounded length, and without lone surrogates, which no tokenizer takes and no file."""
    return text[:limit].encode("utf-8", "replace").decode()


def _key(task: Task, history: Sequence[Message]) -> bytes:
    """Two rollouts with one key are the same episode twice, so that either may go on as the other."""
    text = json.dumps([task.domain, task.id, list(task.messages), list(history)], default=repr, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()

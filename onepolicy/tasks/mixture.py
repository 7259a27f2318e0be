"""Domains side by side: what each holds out for evaluation, and which one the next prompt comes from.

The held-out set of a domain is a function of its options and `eval_size` alone (see `base.EVAL_SEED`): stages and
seeds share it, and training never draws a prompt of it. State is a few cursors, so resume is exact.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from onepolicy.config import DomainConfig
from onepolicy.tasks import build_eval_source, build_source
from onepolicy.tasks.base import Environment, Source
from onepolicy.tasks.columns import as_chat
from onepolicy.tasks.episodes import demonstrated, said
from onepolicy.tasks.screen import Screen
from onepolicy.types import Answer, Message, Task

WINDOW = 1000  # draws over which rejections are counted
MAX_REJECTED = 0.9  # of a window: beyond, the question space is too small to be worth drawing from


def prompt_key(task: Task) -> bytes:
    """A digest of the prompt alone: equal prompts have equal keys, whatever their id or answer."""
    text = json.dumps(list(task.messages), sort_keys=True, default=_plain)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def drawn(source: Source, index: int) -> Task:
    """A source's task. Raises ValueError, naming it, when its chat is none: a message without a role, for example."""
    task = source.draw(index)
    try:
        as_chat(task.messages)
    except ValueError as error:
        raise ValueError(f"domain {task.domain!r}: task {task.id!r}: {error}") from None
    return task


def with_system_prompt(task: Task, text: str) -> Task:
    """The task with `text` before its chat, as a system message; one that the chat has already follows in the same."""
    if not text:
        return task
    first, *others = task.messages
    if first["role"] == "system":
        own = first["content"]
        both = f"{text}\n\n{own}" if isinstance(own, str) else [{"type": "text", "text": text}, *own]
        return replace(task, messages=({**first, "content": both}, *others))
    return replace(task, messages=({"role": "system", "content": text}, *task.messages))


def _plain(value: Any) -> Any:
    """Media inside messages as something JSON knows; arrays and images by their bytes."""
    if isinstance(value, Mapping):
        return dict(value)
    raw = value if isinstance(value, bytes) else value.tobytes() if hasattr(value, "tobytes") else repr(value).encode()
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


class Domain:
    """One domain: its held-out tasks, and an endless draw of training tasks whose prompts are never among them."""

    def __init__(self, name: str, config: DomainConfig, seed: int) -> None:
        """Draws the held-out tasks. Raises ConfigError on bad options, ValueError on too few distinct prompts."""
        self.name, self.system_prompt = name, config.system_prompt or ""
        self.source: Source = build_source(name, config.tasks, seed)
        held_out = first_distinct(build_eval_source(name, config.tasks), config.eval_size, name)
        self.eval_tasks = [with_system_prompt(task, self.system_prompt) for task in held_out]
        self.cursor = 0  # the next index to draw
        self.too_long = 0  # held-out prompts that cannot be asked
        self._held_out = {prompt_key(task) for task in self.eval_tasks}
        self._screen: Screen | None = None
        self._seen = self._rejected = self._unfit = 0  # within the current window

    def restrict(self, screen: Screen, looks_ahead: bool) -> None:
        """From now on only tasks that the model can take. What leaves the held-out set is not trained on either.

        Raises ValueError that names the others where `too_long` is error.
        """
        self._screen = screen
        kept = screen.held_out(self.name, self.eval_tasks)
        self.too_long = len(self.eval_tasks) - len(kept)
        self.eval_tasks = kept
        if looks_ahead:
            screen.look_ahead(self.name, self.source, self._task_at, self._is_held_out)

    def draw(self) -> Task:
        """The next training task. Raises ValueError when nearly nothing drawn can be trained on."""
        while True:
            task = self._task_at(self.cursor)
            self.cursor += 1
            held_out = self._is_held_out(task)
            fits = held_out or self._screen is None or self._screen.passes(task)
            self._count(held_out, fits)
            if fits and not held_out:
                return task

    def _task_at(self, index: int) -> Task:
        return with_system_prompt(drawn(self.source, index), self.system_prompt)

    def _is_held_out(self, task: Task) -> bool:
        return prompt_key(task) in self._held_out

    def _count(self, held_out: bool, fits: bool) -> None:
        self._seen += 1
        self._rejected += held_out
        self._unfit += not fits
        if self._rejected > MAX_REJECTED * WINDOW:
            raise ValueError(
                f"domain {self.name!r}: {self._rejected} of the last {self._seen} training draws were among its "
                f"{len(self._held_out)} held-out prompts, so hardly any question is left to train on: lower "
                f"domains.{self.name}.eval_size or widen the questions in domains.{self.name}.tasks"
            )
        if self._rejected + self._unfit > MAX_REJECTED * WINDOW:
            raise ValueError(
                f"domain {self.name!r}: {self._unfit} of the last {self._seen} training draws do not fit the model "
                f"(too_long: drop), so hardly any question is left to train on: lower "
                f"domains.{self.name}.max_new_tokens, or shorten the questions in domains.{self.name}.tasks"
            )
        if self._seen == WINDOW:
            self._seen = self._rejected = self._unfit = 0


def first_distinct(source: Source, count: int, name: str) -> list[Task]:
    """The first `count` tasks with distinct prompts. Raises ValueError when a window of draws brings too few new ones.

    `name` is the domain's, for the message.
    """
    found: dict[bytes, Task] = {}
    before = index = 0
    while len(found) < count:
        task = drawn(source, index)
        found.setdefault(prompt_key(task), task)
        index += 1
        if index % WINDOW == 0:
            if len(found) - before < (1 - MAX_REJECTED) * WINDOW and len(found) < count:
                raise ValueError(
                    f"domain {name!r} shows only {len(found)} distinct prompts in {index} draws, but eval_size is "
                    f"{count}: lower domains.{name}.eval_size or widen the questions in domains.{name}.tasks"
                )
            before = len(found)
    return list(found.values())


class Mixture:
    """Several domains in fixed proportions: no drawing of lots, each next prompt goes to whom it is owed most."""

    def __init__(self, domains: Mapping[str, DomainConfig], seed: int) -> None:
        """Builds every domain. Raises ConfigError on bad options, ValueError on too small a question space.

        A domain of share 0 has held-out tasks like any other, and is never drawn from.
        """
        total = sum(config.share for config in domains.values())
        self.shares = {name: config.share / total for name, config in domains.items() if config.share}
        self.domains = {name: Domain(name, config, seed) for name, config in domains.items()}
        self.drawn = dict.fromkeys(domains, 0)
        self._last: tuple[Task, tuple[Message, ...] | None] | None = None  # demonstrated

    def restrict(self, screen: Screen, looks_ahead: bool = False) -> None:
        """Leave out, or refuse, the tasks that the model cannot take; `looks_ahead` at those to train on too.

        Held-out tasks are never replaced: they stay out of training, and no other set of them arises.
        """
        for name, domain in self.domains.items():
            domain.restrict(screen, looks_ahead and name in self.shares)

    @property
    def too_long(self) -> dict[str, int]:
        """How many held-out prompts of each domain were left out, where any were."""
        return {name: domain.too_long for name, domain in self.domains.items() if domain.too_long}

    @property
    def sources(self) -> dict[str, Source]:
        return {name: domain.source for name, domain in self.domains.items()}

    @property
    def eval_tasks(self) -> dict[str, list[Task]]:
        """The held-out tasks of each domain."""
        return {name: domain.eval_tasks for name, domain in self.domains.items()}

    def draw(self, n: int) -> list[Task]:
        """The next n training tasks: each from the domain that lags furthest behind its share."""
        return [self.domains[self.next_domain()].draw() for _ in range(n)]

    def next_domain(self) -> str:
        """Whose turn it is, counted in `drawn`; for who has prompts of his own to take from."""
        total = sum(self.drawn.values()) + 1
        name = max(self.shares, key=lambda name: round(self.shares[name] * total - self.drawn[name], 9))
        self.drawn[name] += 1
        return name

    def gold(self, task: Task) -> Answer | None:
        """An answer that scores 1.0, from the source of the task's domain; None when it knows none."""
        return self.domains[task.domain].source.gold(task)

    def demonstration(self, task: Task) -> Answer | Sequence[Message] | None:
        """The answer or the messages to imitate, from the source of the task's domain; None when there are none."""
        return self.domains[task.domain].source.demonstration(task)

    def demonstrated(self, task: Task) -> tuple[Message, ...] | None:
        """The chat to imitate behind the prompt: an answer or, of an episode, turns and what is answered to them."""
        if self._last is None or self._last[0] is not task:  # an episode is played once, though two may ask for it
            self._last = task, self._demonstrated(task)
        return self._last[1]

    def _demonstrated(self, task: Task) -> tuple[Message, ...] | None:
        answer = self.demonstration(task)
        if answer is None:
            return None
        source = self.domains[task.domain].source
        turns: tuple[str | Message, ...] = (answer,) if isinstance(answer, str) else tuple(answer)
        if isinstance(source, Environment):
            return demonstrated(source, task, [turn for turn in turns if isinstance(turn, str)])
        return tuple(said(turn) if isinstance(turn, str) else turn for turn in turns)

    def state(self) -> dict[str, dict[str, int]]:
        """Where every domain stands, as plain numbers."""
        return {name: {"cursor": domain.cursor, "drawn": self.drawn[name]} for name, domain in self.domains.items()}

    def load_state(self, state: Mapping[str, Mapping[str, int]]) -> None:
        """Continue exactly where `state` was taken. Raises ValueError when it belongs to other domains."""
        if set(state) != set(self.domains):
            raise ValueError(
                f"the saved draw state is of domains {sorted(state)}, this run has {sorted(self.domains)}: "
                "resume with the same domains, or start a new run"
            )
        for name, domain in self.domains.items():
            domain.cursor, self.drawn[name] = state[name]["cursor"], state[name]["drawn"]

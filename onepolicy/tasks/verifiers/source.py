"""Environments of the `verifiers` package (0.4 or later, an extra), which are installed and named by their id.

    tasks: {kind: verifiers, id: my-taskset, config: {split: train}, eval_config: {split: test}}

The environment runs as it always does, in the process that grades: it believes that it speaks with a model server, and
behind that stands the policy (`world.py`). Its one agent is a plain chat loop with the environment's tools; a coding
agent's harness, which would bring tools of its own, is not taken over. There are no gold answers.
"""

from __future__ import annotations

import importlib.metadata
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from onepolicy.tasks.base import SourceOptions, seeded
from onepolicy.types import Task

if TYPE_CHECKING:
    from onepolicy.tasks.verifiers.world import Talk, World

THREADS = 16  # episodes that take a turn at once
BLOCK = 10_000  # tasks of an endless taskset that are shuffled together


class VerifiersOptions(SourceOptions):
    """`id` names the installed taskset, `config` is its own configuration (`eval_config`: of the held-out tasks).

    `env` names an environment to put around it, where the taskset's own is not meant. Rewards from `low` to `high` are
    mapped to [0, 1]. `time_limit_s` is for each turn; the first one starts the environment's tools.
    """

    id: str
    config: dict[str, Any] = Field(default_factory=dict)
    eval_config: dict[str, Any] | None = None
    env: str = ""
    max_turns: PositiveInt = 16
    low: float = 0.0
    high: float = 1.0
    time_limit_s: PositiveFloat = 60.0

    def held_out(self) -> Self:
        return self if self.eval_config is None else self.model_copy(update={"config": self.eval_config})

    @model_validator(mode="after")
    def _can_be_had(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        try:
            version = importlib.metadata.version("verifiers")
        except importlib.metadata.PackageNotFoundError:
            raise ValueError("this kind of tasks needs verifiers: pip install 'onepolicy[verifiers]'") from None
        if int(version.split(".")[0]) == 0 and int(version.split(".")[1]) < 4:
            raise ValueError(f"verifiers {version} is too old, its environments have another form: take 0.4 or later")
        return self


class VerifiersSource:
    """An Environment. Tasks come in an order shuffled by the seed, anew for every pass over them."""

    def __init__(self, domain: str, options: VerifiersOptions, seed: int) -> None:
        self.domain, self.options, self.seed = domain, options, seed
        self.max_turns, self.time_limit_s = options.max_turns, options.time_limit_s
        self.threads = THREADS

    def prepare(self) -> None:
        """Import verifiers, read the tasks, start what serves them."""
        self.world.open()

    @cached_property
    def world(self) -> World:
        from onepolicy.tasks.verifiers.world import World

        return World(self.options)

    @cached_property
    def _tasks(self) -> list[Any]:
        tasks = list(islice(self.world.taskset, BLOCK))
        if not tasks:
            raise ValueError(f"domain {self.domain!r}: the taskset {self.options.id!r} has no tasks")
        return tasks

    @cached_property
    def _tools(self) -> tuple[dict[str, Any], ...]:
        """The tools that the environment offers, known once it has made its first request: the same for all tasks."""
        return self.world.tools_of(self._tasks[0])

    def draw(self, index: int) -> Task:
        """Raises ValueError when the environment cannot be had, or asks nothing."""
        epoch, at = divmod(index, len(self._tasks))
        order = list(range(len(self._tasks)))
        seeded("verifiers", self.seed, epoch).shuffle(order)
        number = order[at]
        return Task(
            f"{self.domain}/{self.seed}/{index}",
            self.domain,
            self.world.opening(self._tasks[number]),
            metadata={"number": number},
            tools=self._tools,
        )

    def start(self, task: Task) -> Talk:
        """Raises ValueError when the environment opens with something else than the task's messages."""
        return self.world.begin(self._tasks[task.metadata["number"]], task.messages)

    def gold(self, task: Task) -> None:
        return None

    def demonstration(self, task: Task) -> None:
        return None

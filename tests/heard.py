"""Sources that repeat what they were told. No torch: grading processes import this file, in a tenth of a second."""

from __future__ import annotations

from typing import Any

from onepolicy.tasks.base import user_message
from onepolicy.types import Grade, Task
from tests.tales import Tales


class Heard:
    """Rewards 7, and says what it was told."""

    def __init__(self, domain: str, seed: int) -> None:
        self.domain, self.seed = domain, seed

    def draw(self, index: int) -> Task:
        return Task(f"{self.domain}/{index}", self.domain, user_message(f"a{index}"), "7")

    def grade(self, task: Task, response: str) -> tuple[float, str]:
        return float(response == "7"), f"heard {response!r}"

    def gold(self, task: Task) -> str:
        return "<think>3+4</think>\n\n7"

    def demonstration(self, task: Task) -> str:
        return "<think>3+4</think>7"


class Thought(Heard):
    """Asks for the thought too."""

    def grade(self, task: Task, response: str, thought: str) -> tuple[float, str]:  # type: ignore[override]
        return float(response == "7"), f"heard {response!r}, thought {thought!r}"


class Ended(Tales):
    """Rewards the policy for saying nothing, which a thought that never ends must not earn."""

    def start(self, task: Task) -> Any:
        tale = super().start(task)
        tale.stop = lambda: Grade(1.0, f"told {tale.told}", tale.rewards)
        return tale

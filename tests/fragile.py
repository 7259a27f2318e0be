"""Graders that fail: they raise, hang or end their process, on some answers or on all. Else the reward is Early's."""

from __future__ import annotations

import os
import time
from pathlib import Path

from onepolicy.types import Grade, Task
from tests.early import HALVES, Early


class Fragile(Early):
    """`on` are first letters of the answers that it fails on ("": only the empty one), `how` what happens then.

    With a `while_there`, it fails on everything but gold answers as long as that file is there.
    """

    def __init__(
        self, domain: str, seed: int, on: str = "", how: str = "raise", while_there: str = "", golds: bool = True
    ) -> None:
        super().__init__(domain, seed, "early")
        self.on, self.how, self.while_there, self.golds = on, how, while_there, golds

    def grade(self, task: Task, response: str) -> Grade:
        broken = bool(self.while_there) and Path(self.while_there).exists() and response != task.reference
        if broken or (response and response[0] in self.on):
            match self.how:
                case "hang":
                    time.sleep(60)
                case "exit":
                    os._exit(3)
            raise KeyError(f"no rule for {response[:1]!r}")
        return super().grade(task, response)

    def gold(self, task: Task) -> str:
        return super().gold(task) if self.golds else None  # type: ignore[return-value]  # as a source without golds


class Broken(Fragile):
    """Fails on everything, and knows no gold answer."""

    def grade(self, task: Task, response: str) -> Grade:
        raise ZeroDivisionError("division by zero")

    def gold(self, task: Task) -> str:
        return None  # type: ignore[return-value]  # as a source without golds


def letters(response: str, reference: object) -> float:
    """Early's reward, as a grader of records."""
    return sum(letter in HALVES["early"] for letter in response) / max(1, len(response))

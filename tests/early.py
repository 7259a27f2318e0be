"""A task whose reward varies from the first random answer on: the share of letters from one half of the alphabet."""

from __future__ import annotations

from onepolicy.tasks.base import seeded, user_message
from onepolicy.types import Grade, Task

HALVES = {"early": "abcdefghijklm", "late": "nopqrstuvwxyz", "middle": "ghijklmnopqrs"}


class Early:
    """`half` is the half of the alphabet that earns reward."""

    def __init__(self, domain: str, seed: int, half: str) -> None:
        self.domain, self.seed, self.half = domain, seed, half

    def draw(self, index: int) -> Task:
        word = "".join(seeded("early", self.seed, index).choices("abcdefghijklmnopqrstuvwxyz", k=4))
        return Task(f"{self.domain}/{self.seed}/{index}", self.domain, user_message(word), HALVES[self.half][:3])

    def grade(self, task: Task, response: str) -> Grade:
        right = sum(letter in HALVES[self.half] for letter in response)
        return Grade(right / max(1, len(response)))

    def gold(self, task: Task) -> str:
        return str(task.reference)

    def demonstration(self, task: Task) -> str:
        return self.gold(task)


def never(response: str, reference: object) -> float:
    """A grader that nothing satisfies."""
    return 0.0

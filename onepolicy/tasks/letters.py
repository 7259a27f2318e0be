"""Small text tasks made of letters and digits, for the demo and the tests: a tiny model learns them in seconds.

task     prompt           answer      the length options count
reverse  rev:abcde        edcba       letters
sort     sort:dbca        abcd        letters
descend  desc:dbca        dcba        letters; the opposite convention of sort
stutter  stut:dbca        aaabbbcccddd  letters, sorted, each three times; long answers
shift    shift2:abz       cdb         letters; each moves 1 to 3 places on, z is followed by a
expand   exp:a3b2         aaabb       letter-digit pairs; the long answers of the set
count    count:a:banana   3           letters; every count is equally likely
add      add:12+345       357         digits of each summand
"""

from __future__ import annotations

import string
from collections.abc import Callable
from random import Random
from typing import Annotated, NamedTuple, Self

from pydantic import Field, PositiveInt, model_validator

from onepolicy.config import did_you_mean
from onepolicy.tasks.base import SourceOptions, seeded, user_message, with_one_wrong
from onepolicy.thought import NEVER_ENDS, answer_of
from onepolicy.types import Grade, Task

LETTERS = string.ascii_lowercase
ALPHABET = LETTERS + string.digits + ":+"  # covers every prompt and every answer


def _word(rng: Random, length: int) -> str:
    return "".join(rng.choices(LETTERS, k=length))


OF_WORDS: dict[str, Callable[[str], str]] = {  # what is asked of a word
    "reverse": lambda word: word[::-1],
    "sort": lambda word: "".join(sorted(word)),
    "descend": lambda word: "".join(sorted(word, reverse=True)),
    "stutter": lambda word: "".join(3 * letter for letter in sorted(word)),
}


def _of_word(name: str, task: str) -> Callable[[Random, int], tuple[str, str]]:
    def make(rng: Random, length: int) -> tuple[str, str]:
        word = _word(rng, length)
        return f"{name}:{word}", OF_WORDS[task](word)

    return make


def _shift(rng: Random, length: int) -> tuple[str, str]:
    word, places = _word(rng, length), rng.randint(1, 3)
    return f"shift{places}:{word}", "".join(LETTERS[(LETTERS.index(c) + places) % 26] for c in word)


def _expand(rng: Random, length: int) -> tuple[str, str]:
    pairs = [(rng.choice(LETTERS), rng.randint(2, 5)) for _ in range(length)]
    return "exp:" + "".join(f"{c}{n}" for c, n in pairs), "".join(c * n for c, n in pairs)


def _count(rng: Random, length: int) -> tuple[str, str]:
    letter, count = rng.choice(LETTERS), rng.randint(0, length)
    word = [letter] * count + rng.choices(LETTERS.replace(letter, ""), k=length - count)
    rng.shuffle(word)
    return f"count:{letter}:{''.join(word)}", str(count)


def _add(rng: Random, length: int) -> tuple[str, str]:
    a, b = (rng.randrange(10 ** (length - 1) if length > 1 else 0, 10**length) for _ in range(2))
    return f"add:{a}+{b}", str(a + b)


class _Kind(NamedTuple):
    make: Callable[[Random, int], tuple[str, str]]  # generator, length → prompt, answer
    min_length: int
    max_length: int


KINDS = {
    "reverse": _Kind(_of_word("rev", "reverse"), 3, 6),
    "sort": _Kind(_of_word("sort", "sort"), 3, 6),
    "descend": _Kind(_of_word("desc", "descend"), 3, 6),
    "stutter": _Kind(_of_word("stut", "stutter"), 3, 5),
    "shift": _Kind(_shift, 3, 6),
    "expand": _Kind(_expand, 2, 5),
    "count": _Kind(_count, 4, 8),
    "add": _Kind(_add, 1, 3),
}


class LettersOptions(SourceOptions):
    """Which task, how long its questions are (None: the task's own lengths), and how good its demonstrations.

    `corrupt` is the probability that a demonstration has one wrong character: supervised finetuning on such
    demonstrations leaves room for reinforcement learning. `partial` rewards the share of right positions.
    `marker` stands in the prompt before the first colon, instead of the task's own name: with markers of one character
    several tasks share a surface, and a policy has to keep conflicting conventions apart by it. With probability
    `mixed` a demonstration answers, instead, one of the tasks `mixed_with`: the origin then confuses these conventions,
    and an expert that meets one marker only need not learn to tell them apart.
    """

    task: str = "reverse"
    min_length: PositiveInt | None = None
    max_length: PositiveInt | None = None
    corrupt: Annotated[float, Field(ge=0, le=1)] = 0.0
    partial: bool = False
    marker: Annotated[str, Field(min_length=1, max_length=8)] | None = None
    mixed_with: tuple[str, ...] = ()
    mixed: Annotated[float, Field(ge=0, le=1)] = 0.0

    @property
    def lengths(self) -> tuple[int, int]:
        """Shortest and longest question. One given bound moves the other's default along."""
        kind = KINDS[self.task]
        low = self.min_length or min(kind.min_length, self.max_length or kind.min_length)
        return low, self.max_length or max(kind.max_length, low)

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.task not in KINDS:
            raise ValueError(f"task {self.task!r} is no letters task: {did_you_mean(self.task, list(KINDS))}")
        low, high = self.lengths
        if bool(self.mixed_with) != (self.mixed > 0):
            raise ValueError(f"mixed {self.mixed} with mixed_with {self.mixed_with}: give both, or neither")
        if odd := {self.task, *self.mixed_with} - set(OF_WORDS) if self.mixed_with else None:
            raise ValueError(
                f"mixed_with is for tasks that are asked of a word ({', '.join(OF_WORDS)}), not {min(odd)!r}"
            )
        if low > high:
            raise ValueError(f"min_length {low} is above max_length {high}")
        return self


class LettersSource:
    """Draws, answers and grades one letters task."""

    def __init__(self, domain: str, options: LettersOptions, seed: int) -> None:
        self.domain, self.options, self.seed = domain, options, seed

    def draw(self, index: int) -> Task:
        options = self.options
        rng = seeded("letters", options.task, self.seed, index)
        prompt, answer = KINDS[options.task].make(rng, rng.randint(*options.lengths))
        if options.marker:
            prompt = f"{options.marker}:{prompt.partition(':')[2]}"
        shown = answer
        if options.mixed_with and rng.random() < options.mixed:
            shown = OF_WORDS[rng.choice(options.mixed_with)](prompt.partition(":")[2])
        shown = with_one_wrong(shown, rng) if rng.random() < options.corrupt else shown
        return Task(
            f"{self.domain}/{self.seed}/{index}", self.domain, user_message(prompt), answer, {"demonstration": shown}
        )

    def grade(self, task: Task, response: str) -> Grade:
        said, answer = answer_of(response), task.reference
        if said is None:
            return Grade(0.0, NEVER_ENDS)
        response = said.strip()
        if not self.options.partial:
            return Grade(float(response == answer))
        right = sum(a == b for a, b in zip(response, answer, strict=False))
        return Grade(right / max(len(response), len(answer)), f"{right} positions right")

    def gold(self, task: Task) -> str:
        return str(task.reference)

    def demonstration(self, task: Task) -> str:
        return str(task.metadata["demonstration"])

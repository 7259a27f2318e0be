"""Tiny programs for models that are built from nothing: two examples in the prompt, an expression in x as the answer.

skill     prompt            answer         level 1, 2, 3
numbers   2>7 5>16          x*3+1          x+b, x-b, b-x, x*a; at 2 also x*a+b, x*a-b, x*x, x*x+b; a, b up to 5, 5, 9
text      abcd>dcb bad>da   x[::-1][:-1]   one slice, up to two, up to three; alone, doubled (*2), or before x (+x)

An answer counts by what it computes for inputs that the prompt does not show. The examples are such that nothing else
of the same skill and level fits them and differs there.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from random import Random
from typing import NamedTuple

LETTERS = "abcdefgh"
ALPHABET = string.digits + LETTERS + "x+-*[:]> "  # covers every prompt and every answer
NUMBERS = (*range(10), 12, 25, -4)  # all that an answer is tried on
WORDS = tuple(LETTERS[:length] for length in range(1, 9))  # what slices do depends on the length alone
SLICES = ("[::-1]", "[1:]", "[:-1]", "[::2]", "[1::2]")


class Problem(NamedTuple):
    """The examples, an expression that fits them, and its outputs for the inputs that answers are tried on."""

    prompt: str
    answer: str
    inputs: tuple[int, ...] | tuple[str, ...]
    outputs: tuple[int | str, ...]


class _Skill(NamedTuple):
    expressions: Callable[[int], Iterator[str]]  # of a level
    inputs: tuple[int, ...] | tuple[str, ...]
    shown: range  # the indices of inputs that examples are made of


def make(skill: str, level: int, rng: Random) -> Problem:
    """A problem of one skill."""
    inputs, table = SKILLS[skill].inputs, _table(skill, level)
    while True:
        answer = rng.choice(list(table))
        first, second = rng.sample(SKILLS[skill].shown, 2)
        outputs = table[answer]
        fits = sum((values[first], values[second]) == (outputs[first], outputs[second]) for values in table.values())
        if fits == 1 and outputs[first] != "" and outputs[second] != "":
            prompt = " ".join(_example(inputs[at], outputs[at], rng) for at in (first, second))
            return Problem(prompt, answer, inputs, outputs)


def _example(x: int | str, y: int | str, rng: Random) -> str:
    """Words with other letters, all different: the same places of x make y."""
    letters = dict(zip(LETTERS, rng.sample(LETTERS, len(LETTERS)), strict=True))
    return ">".join("".join(letters.get(c, c) for c in str(text)) for text in (x, y))


@cache
def _table(skill: str, level: int) -> dict[str, tuple[int | str, ...]]:
    """Expressions and what they compute, the first and shortest of those that compute the same."""
    table: dict[tuple[int | str, ...], str] = {}
    for expression in SKILLS[skill].expressions(level):
        function = eval(f"lambda x: {expression}")  # of our own making
        table.setdefault(tuple(map(function, SKILLS[skill].inputs)), expression)
    return {expression: outputs for outputs, expression in table.items()}


def _numbers(level: int) -> Iterator[str]:
    largest = (5, 5, 9)[level - 1]
    ones, factors = range(1, largest + 1), range(2, largest + 1)
    yield from (form.format(b=b) for b in ones for form in ("x+{b}", "x-{b}", "{b}-x"))
    yield from (f"x*{a}" for a in factors)
    if level > 1:
        yield "x*x"
        yield from (f"x*x+{b}" for b in ones)
        yield from (f"x*{a}{sign}{b}" for a in factors for sign in "+-" for b in ones)


def _text(level: int) -> Iterator[str]:
    for count in range(1, level + 1):
        for suffix, slices in product(("", "*2", "+x"), product(SLICES, repeat=count)):
            yield f"x{''.join(slices)}{suffix}"


SKILLS: dict[str, _Skill] = {
    "numbers": _Skill(_numbers, NUMBERS, range(10)),
    "text": _Skill(_text, WORDS, range(2, 6)),
}

"""Instructions for models that are built from nothing: one word of letters, with constraints on it.

constraint   says          follows            also
number       5 letters     abcde              in every prompt
start        start x       xabc
end          end z         abcz
use          use kq        abkq               both of them
avoid        no e          abcd
count        2 m           ambm               exactly that often
sorted       sorted        aacd               no letter before an earlier one of the alphabet
upper        upper         ABCD               without it: lower case
brackets     brackets      [abcd]             without it: none

The worked-out answers take the first letters of the alphabet that are allowed, so that there is a rule to learn; any
answer that follows the constraints is right.
"""

from __future__ import annotations

import string
from random import Random
from typing import Any, NamedTuple

from onepolicy.tasks.instruction_checks import check

LETTERS = string.ascii_lowercase
ALPHABET = string.ascii_letters + string.digits + " ;[]"  # covers every prompt and every answer
MIN_LENGTH, MAX_LENGTH = 3, 8

Constraint = tuple[str, dict[str, Any]]  # a check's name and arguments


class Drawn(NamedTuple):
    """A prompt, what it asks for, and an answer that follows it."""

    prompt: str
    constraints: tuple[Constraint, ...]
    answer: str


@check("letters:word")
def _(text: str, upper: bool, brackets: bool) -> bool:
    """One word of Latin letters of one case, in brackets or not: what a small answer always is."""
    text = text.strip()
    word = text[1:-1] if brackets and text[:1] == "[" and text[-1:] == "]" else "" if brackets else text
    return word.isascii() and word.isalpha() and (word.isupper() if upper else word.islower())


@check("letters:number")
def _(text: str, number: int) -> bool:
    return sum(map(str.isalpha, text)) == number


@check("letters:start")
def _(text: str, letter: str) -> bool:
    return text.strip("[] \n").lower().startswith(letter)


@check("letters:end")
def _(text: str, letter: str) -> bool:
    return text.strip("[] \n").lower().endswith(letter)


@check("letters:count")
def _(text: str, letter: str, number: int) -> bool:
    return text.lower().count(letter) == number


@check("letters:use")
def _(text: str, letters: str) -> bool:
    return set(letters) <= set(text.lower())


@check("letters:avoid")
def _(text: str, letter: str) -> bool:
    return letter not in text.lower()


@check("letters:sorted")
def _(text: str) -> bool:
    word = text.strip("[] \n").lower()
    return list(word) == sorted(word)


KINDS = ("start", "end", "use", "avoid", "count", "sorted", "upper", "brackets")
# Where a letter is to stand in a sorted word is for the sorting to say.
CONFLICTS = {"sorted": {"start", "end"}, "start": {"sorted"}, "end": {"sorted"}}


def draw(rng: Random, count: int) -> Drawn:
    """A prompt with `count` constraints (1 to 4; the first is the number of letters) and its answer."""
    kinds: list[str] = []
    for kind in rng.sample(KINDS, len(KINDS)):
        if len(kinds) < count - 1 and not CONFLICTS.get(kind, set()) & set(kinds):
            kinds.append(kind)
    a, b, c, d, e, f = rng.sample(LETTERS, 6)  # no two constraints speak of one letter
    start, end, used = a * ("start" in kinds), b * ("end" in kinds), (c + d) * ("use" in kinds)
    counted, avoided = f * rng.randint(2, 3) * ("count" in kinds), e * ("avoid" in kinds)
    needed = len(start + used + counted + end)
    number = max(rng.randint(MIN_LENGTH, MAX_LENGTH), needed)
    fill = [letter for letter in LETTERS if letter not in counted + avoided][: number - needed]
    middle = used + counted + "".join(fill)
    word = start + ("".join(sorted(middle)) if "sorted" in kinds else middle) + end
    word = word.upper() if "upper" in kinds else word
    said: dict[str, tuple[str, dict[str, Any]]] = {
        "start": (f"start {start}", {"letter": start}),
        "end": (f"end {end}", {"letter": end}),
        "use": (f"use {used}", {"letters": used}),
        "avoid": (f"no {avoided}", {"letter": avoided}),
        "count": (f"{len(counted)} {counted[:1]}", {"letter": counted[:1], "number": len(counted)}),
        "sorted": ("sorted", {}),
    }
    shape: dict[str, Any] = {"upper": "upper" in kinds, "brackets": "brackets" in kinds}
    constraints = [("letters:word", shape), ("letters:number", {"number": number})]
    constraints += [(f"letters:{kind}", said[kind][1]) for kind in kinds if kind in said]
    prompt = ";".join([f"{number} letters", *(said[kind][0] if kind in said else kind for kind in kinds)])
    return Drawn(prompt, tuple(constraints), f"[{word}]" if "brackets" in kinds else word)

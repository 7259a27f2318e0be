"""Graders of records: the built-in ones, functions bound by the names of their parameters, several with weights.

    grader: number
    grader: "mine:grade"                                  # def grade(response, reference): ...
    grader: [{name: number, weight: 0.8}, {name: "mine:form", weight: 0.2, gold: false}]
    grader: {name: "verl:mine:compute_score", reward_range: [-1, 1]}

`exact`   equal after trimming and folding white space and case; a number also by its value: 7 is 7.0
`number`  the last number of the response is the last one of the reference; 3/4, 10^3 and 1e3 are none of the plain
          numbers in them

Of a list of right answers any one is right. A function gets, by the names of its parameters:

    response    the policy's answer (also: completion, solution_str)
    reference   the answer column, as the row has it (also: ground_truth, answer, solution, if no column is called so)
    prompt      as the row has it, a text or a list of messages; `task`: the whole Task; `metadata`: the task's
    thought     what the policy thought before it answered, "" where it did not
    any other   the column of that name; **kwargs gets all of these

and returns a number, (number, reason) or a Grade. TRL's and verl's functions: `adapters.py`.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

from onepolicy.config import did_you_mean, listed
from onepolicy.tasks.base import load_object
from onepolicy.tasks.columns import Scalar, aliases
from onepolicy.thought import NEVER_ENDS, answer_of
from onepolicy.types import Task

# A number that is no part of a word or of another number, and what makes it another one: /4, ^2, e3, :30, million
NUMBER = re.compile(
    r"(?<![A-Za-z\d_^\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff])(?<!\d\.)(?<!\^\{)"
    r"((?:(?<![\w)])-)?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+))(?![\u200b-\u200f\u2060-\u2064\ufeff]*\d)"
    r"((?:/|\^\{?|[eE]|:)[+-]?[0-9]+|\s?(?:hundred|thousand|[mb]illion|dozen)\b)?"
)
MINUS = re.compile(r"[\u2212\u2013\ufe63\uff0d]|\b(?:minus|negative)\s+(?=\d)", re.IGNORECASE)
PLAIN = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")

OWN_NAMES = ("response", "reference", "task", "prompt", "thought", "metadata")
RESPONSE_ALIASES = ("completion", "solution_str")
REFERENCE_ALIASES = ("ground_truth", "answer", "solution")  # a column of the same name comes first


class NoReward(ValueError):
    """No grader had a reward for a response: the sample is treated as one whose grader failed."""


def exact(response: str, reference: Any) -> float | tuple[float, str]:
    """1.0 when the response equals the reference, or one of several, after trimming and folding white space and case.

    A reference that is a number is matched by its value: 7 and 7.0 by "7" and by "7.0". A boolean is the word.
    Thinking is no part of the response.
    """
    answer = answer_of(response)
    if answer is None:
        return 0.0, NEVER_ENDS
    folded = _folded(answer)
    return float(any(_equals(folded, alias) for alias in aliases(reference)))


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _equals(folded: str, alias: Scalar) -> bool:
    if folded == _folded(str(alias)):
        return True
    by_value = not isinstance(alias, (str, bool)) and PLAIN.fullmatch(folded) is not None
    return by_value and Decimal(folded) == Decimal(str(alias))


def number(response: str, reference: Any) -> tuple[float, str]:
    """1.0 when the last number of the response equals the last one of the reference, or of one of several.

    1,000 is a thousand. Thinking is no part of the response.
    """
    expected = [_number_of(alias) for alias in aliases(reference)]
    answer = answer_of(response)
    if answer is None:
        return 0.0, NEVER_ENDS
    found = _last_number(answer)
    if found is None:
        return 0.0, "no number in the response"
    return float(found in expected), ""


def _number_of(alias: Scalar) -> tuple[Decimal, str]:
    """Raises ValueError when there is none."""
    is_text = isinstance(alias, (str, bool))
    found = _last_number(str(alias) if is_text else format(Decimal(str(alias)), "f"))
    if found is None:
        raise ValueError(f"the reference {alias!r} holds no number")
    return found


def _last_number(text: str) -> tuple[Decimal, str] | None:
    numbers = NUMBER.findall(MINUS.sub("-", text))
    return (Decimal(numbers[-1][0].replace(",", "")), numbers[-1][1].strip()) if numbers else None


def require_number(reference: Any, column: str) -> None:
    """Raises ValueError for a reference that `number` could never match."""
    for alias in aliases(reference, column):
        _number_of(alias)


GRADERS: dict[str, Callable[..., Any]] = {"exact": exact, "number": number}
REFERENCE_CHECKS: dict[str, Callable[[Any, str], Any]] = {"exact": aliases, "number": require_number}


@dataclass(frozen=True)
class Graded:
    """What a grader may ask for, about one response."""

    response: str
    thought: str
    task: Task
    prompt: Any  # as the row has it
    columns: Mapping[str, Any]

    def own(self, name: str) -> Any:
        """The value of one of OWN_NAMES."""
        if name in ("response", "thought", "task", "prompt"):
            return getattr(self, name)
        return self.task.reference if name == "reference" else self.task.metadata


@dataclass(frozen=True)
class Signature:
    """The parameters of a function that grades."""

    name: str  # of the function, for messages
    required: tuple[str, ...]
    optional: tuple[str, ...]
    takes_all: bool  # has **kwargs

    @classmethod
    def of(cls, function: Any, name: str) -> Signature:
        """Raises ValueError when the function cannot be called by name."""
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError) as error:
            raise ValueError(f"grader {name} is no function whose parameters can be read: {error}") from None
        nameless = [str(p) for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)]
        if nameless:
            raise ValueError(
                f"grader {name} takes {', '.join(nameless)} by position: parameters are bound by name, write "
                "def grade(response, reference)"
            )
        named = [p for p in parameters if p.kind != p.VAR_KEYWORD]
        return cls(
            name,
            tuple(p.name for p in named if p.default is p.empty),
            tuple(p.name for p in named if p.default is not p.empty),
            any(p.kind == p.VAR_KEYWORD for p in parameters),
        )

    def takes(self, name: str) -> bool:
        return self.takes_all or name in self.required or name in self.optional

    def require(self, known: Collection[str], columns: Collection[str] | None, meant: str) -> None:
        """Raises ValueError for a required parameter that is neither known nor, if those are known, a column."""
        unknown = [name for name in self.required if name not in known and name not in (columns or ())]
        if unknown and columns is not None:
            raise ValueError(
                f"grader {self.name} has a parameter {unknown[0]!r}, which is not known: {meant}, and the columns of "
                f"the rows: {listed(columns)}"
            )


class FunctionGrader:
    """A function of the user's, found by its import path and called by the names of its parameters."""

    prefix: ClassVar[str] = ""
    known: ClassVar[tuple[str, ...]]  # names that need no column

    def __init__(self, path: str) -> None:
        self.name, self.function = f"{self.prefix}{path}", load_object(path)
        self.signature = Signature.of(self.function, self.name)

    @property
    def needs_columns(self) -> tuple[str, ...]:
        """The required parameters that only a column can give."""
        return tuple(name for name in self.signature.required if name not in self.known)

    def call(self, values: Mapping[str, Any]) -> Any:
        """The function's result for those of the values that it takes."""
        return awaited(self.function(**{name: value for name, value in values.items() if self.signature.takes(name)}))


class OwnGrader(FunctionGrader):
    """A function of (response, reference, ...)."""

    known = (*OWN_NAMES, *RESPONSE_ALIASES, *REFERENCE_ALIASES)

    def check(self, columns: Collection[str] | None) -> None:
        """Raises ValueError when the parameters cannot be bound, `columns` being those of the rows, if known."""
        signature = self.signature
        if "completions" in signature.required:
            raise ValueError(f"grader {self.name} has TRL's signature (completions): write trl:{self.name}")
        if not signature.takes_all and not any(map(signature.takes, ("response", *RESPONSE_ALIASES))):
            raise ValueError(
                f"grader {self.name} must take the response: no parameter is called response, "
                f"{' or '.join(RESPONSE_ALIASES)}"
            )
        meant = (
            f"known are {', '.join(OWN_NAMES)}; {', '.join(RESPONSE_ALIASES)} for the response; "
            f"{', '.join(REFERENCE_ALIASES)} for the reference"
        )
        signature.require(self.known, columns, meant)
        named = {*signature.required, *signature.optional}
        twice = [name for name in RESPONSE_ALIASES if name in named and name in (columns or ())]
        if twice and "response" not in named:
            raise ValueError(
                f"grader {self.name} has a parameter {twice[0]!r}, which may mean the response or the column "
                f"{twice[0]!r}: call it response"
            )

    def __call__(self, graded: Graded) -> Any:
        values: dict[str, Any] = {}
        signature = self.signature
        for name in RESPONSE_ALIASES:
            if name in (*signature.required, *signature.optional):
                values[name] = graded.response
        for name in REFERENCE_ALIASES:
            if name in (*signature.required, *signature.optional):
                values[name] = graded.task.reference
        return self.call({**values, **graded.columns, **{name: graded.own(name) for name in OWN_NAMES}})


class BuiltInGrader:
    """`exact` or `number`."""

    def __init__(self, name: str) -> None:
        if name not in GRADERS:
            known = did_you_mean(name, list(GRADERS))
            raise ValueError(f"no grader {name!r}: {known}; your own is named module:function")
        self.name, self.function = name, GRADERS[name]

    def check(self, columns: Collection[str] | None) -> None:
        """Nothing to bind."""

    def check_reference(self, reference: Any, column: str) -> None:
        """Raises ValueError for a reference that no response could ever match."""
        REFERENCE_CHECKS[self.name](reference, column)

    def __call__(self, graded: Graded) -> Any:
        return self.function(graded.response, graded.task.reference)


def awaited(value: Any) -> Any:
    """The result of a function, also of an asynchronous one."""
    if not inspect.isawaitable(value):
        return value

    async def wait() -> Any:
        return await value

    return asyncio.run(wait())


def weighted_mean(rewards: Sequence[float], weights: Sequence[float]) -> float:
    """Σ w·r / Σ w; 1.0 exactly when all rewards are."""
    return sum(w * r for w, r in zip(weights, rewards, strict=True)) / sum(weights)

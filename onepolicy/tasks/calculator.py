"""Questions that take a calculator, or a table to look things up in, or both: the smallest domain with tools.

    tasks: {kind: calculator, task: bill, calls: compact, corrupt: 0.3}

    expression  37*48-9      calc:37*48-9 → 1767                                        1767
    lookup      mug?         look:mug → 17                                                   17
    bill        3*mug+2*pen  look:mug → 17   look:pen → 4   calc:3*17+2*4 → 59          59

The table is another for every question and rides on the task: a policy cannot know it without looking. Names are
random words, so the space of questions is large. With `calls: json` the same questions are put in a sentence.
"""

from __future__ import annotations

import ast
import operator
import re
import string
from collections.abc import Callable, Mapping
from fractions import Fraction
from random import Random
from typing import Any, Literal, Self

from pydantic import PositiveInt, model_validator

from onepolicy.tasks.base import seeded, with_one_wrong
from onepolicy.tasks.nesting import MAX_DEPTH, too_deep
from onepolicy.tasks.records import number
from onepolicy.tasks.tools import Tool, ToolEpisode, ToolError, ToolOptions
from onepolicy.types import Grade, Task

MAX_EXPRESSION = 200  # characters
MAX_BITS = 500  # of a number on the way
PRICES = range(2, 100)
SIGNS = "+-*"
Step = tuple[str, str]  # a tool and its one argument, or "" and the answer
ARGUMENT = {"calc": "expression", "look": "key"}
OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class CalculatorOptions(ToolOptions):
    """`terms` is how many an expression or a bill has at most, `digits` how long an expression's numbers are at most,
    `entries` how many a table has beside those that are asked for.
    """

    task: Literal["expression", "lookup", "bill"] = "bill"
    terms: PositiveInt = 2
    digits: PositiveInt = 2
    entries: PositiveInt = 4

    @model_validator(mode="after")
    def _fits_the_calculator(self) -> Self:
        if self.task == "expression" and (self.terms < 2 or self.terms * (self.digits + 1) > MAX_EXPRESSION // 2):
            raise ValueError(
                f"an expression has from 2 terms to {MAX_EXPRESSION // 2} characters, not {self.terms} terms of "
                f"{self.digits} digits"
            )
        if self.task == "bill" and self.terms > 12:
            raise ValueError(f"terms {self.terms}: a bill has at most 12, or the calculator refuses it")
        needed = {"expression": 2, "lookup": 2, "bill": self.terms + 2}[self.task]
        if self.max_turns < needed:
            raise ValueError(f"max_turns {self.max_turns}: the longest questions of this kind take {needed} turns")
        return self


class CalculatorSource:
    """An Environment."""

    def __init__(self, domain: str, options: CalculatorOptions, seed: int) -> None:
        self.domain, self.options, self.seed = domain, options, seed
        self.max_turns = options.max_turns

    def draw(self, index: int) -> Task:
        options = self.options
        rng = seeded("calculator", options.task, self.seed, index)
        table = {_word(rng): rng.choice(PRICES) for _ in range(options.entries)}
        draw = {"expression": self._expression, "lookup": self._lookup, "bill": self._bill}[options.task]
        question, calls, answer = draw(rng, table)
        steps = [*calls, ("", answer)]
        shown = list(steps)
        if rng.random() < options.corrupt:
            place = rng.randrange(len(steps))
            tool, text = steps[place]
            shown[place] = tool, with_one_wrong(text, rng)
        messages, tools = options.task_parts(question, tools_for({}))
        return Task(
            f"{self.domain}/{self.seed}/{index}",
            self.domain,
            messages,
            answer,
            {
                "table": table,
                "gold": tuple(map(self._turn, steps)),
                "demonstration": tuple(map(self._turn, shown)),
            },
            tools,
        )

    def start(self, task: Task) -> ToolEpisode:
        tools = tools_for(task.metadata["table"])
        return ToolEpisode(self.options, tools, lambda text: self._graded(text, task.reference))

    def gold(self, task: Task) -> tuple[str, ...]:
        return tuple(task.metadata["gold"])

    def demonstration(self, task: Task) -> tuple[str, ...]:
        return tuple(task.metadata["demonstration"])

    def _graded(self, text: str | None, answer: str) -> Grade:
        if text is None:
            return Grade(0.0, "no answer")
        if self.options.calls == "compact":
            return Grade(float(text.strip() == answer))
        return Grade(*number(text, answer))

    def _turn(self, step: Step) -> str:
        tool, text = step
        return self.options.call(tool, **{ARGUMENT[tool]: text}) if tool else text

    # -- one method per task: the question, the calls that lead to its answer, and that ------------------------------

    def _expression(self, rng: Random, table: dict[str, int]) -> tuple[str, list[Step], str]:
        count = rng.randint(2, self.options.terms)
        numbers = [str(rng.randrange(1, 10 ** rng.randint(1, self.options.digits))) for _ in range(count)]
        expression = numbers[0] + "".join(rng.choice(SIGNS) + number for number in numbers[1:])
        question = self._put(expression, f"What is {expression}? Use the calculator.")
        return question, [("calc", expression)], calculate(expression)

    def _lookup(self, rng: Random, table: dict[str, int]) -> tuple[str, list[Step], str]:
        name = _new_entry(rng, table)
        question = self._put(f"{name}?", f"What is the price of {name}? Look it up in the table.")
        return question, [("look", name)], str(table[name])

    def _bill(self, rng: Random, table: dict[str, int]) -> tuple[str, list[Step], str]:
        items = [(rng.randint(2, 9), _new_entry(rng, table)) for _ in range(rng.randint(1, self.options.terms))]
        expression = "+".join(f"{count}*{table[name]}" for count, name in items)
        question = self._put(
            "+".join(f"{count}*{name}" for count, name in items),
            f"What do {' and '.join(f'{count} {name}' for count, name in items)} cost? Look the prices up.",
        )
        calls = [*(("look", name) for _, name in items), ("calc", expression)]
        return question, calls, calculate(expression)

    def _put(self, compact: str, sentence: str) -> str:
        return compact if self.options.calls == "compact" else sentence


def tools_for(table: Mapping[str, int]) -> dict[str, Tool]:
    def look(key: str) -> str:
        if key not in table:
            raise ToolError(f"no entry {key[:50]!r}")
        return str(table[key])

    return {
        "calc": Tool("Evaluate an arithmetic expression.", {"expression": "for example 3*17+2*4"}, calculate),
        "look": Tool("Look an entry up in the table.", {"key": "the name of the entry"}, look),
    }


def calculate(expression: str) -> str:
    """Sums, differences, products and quotients, exactly; up to ten digits of what is no integer.

    Raises ToolError for anything else, also for what is too long or too large.
    """
    if len(expression) > MAX_EXPRESSION or not re.fullmatch(r"[0-9.+\-*/() ]*", expression):
        raise ToolError(f"an expression has up to {MAX_EXPRESSION} of the characters 0-9 . + - * / ( ) and blanks")
    if too_deep(expression):
        raise ToolError(f"an expression has up to {MAX_DEPTH} brackets within one another")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ToolError(f"this is no sum, difference, product or quotient of numbers: {expression[:50]!r}") from None
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    return str(value) if value.denominator == 1 else f"{float(value):.10g}"


def _value(node: Any) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number):
            value = Fraction(str(number))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            value = _value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            value = OPERATORS[type(op)](_value(left), _value(right))
        case _:
            raise ValueError("not one of the four operations")
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise ValueError("too large")
    return value


def _word(rng: Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 4)))


def _new_entry(rng: Random, table: dict[str, int]) -> str:
    while (name := _word(rng)) in table:
        pass
    table[name] = rng.choice(PRICES)
    return name

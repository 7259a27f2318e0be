r"""Any of reasoning-gym's procedural tasks, alone or several mixed by weight; graded by reasoning-gym itself.

    tasks: {kind: reasoning_gym, name: gcd, config: {max_value: 50}, question_regex: 'numbers: (.*?)\. Give'}
    tasks: {kind: reasoning_gym, composite: [{name: gcd, weight: 2}, {name: spell_backward}]}

No gold answer (None) for boxnet, graph_color, propositional_logic, rubiks_cube and rush_hour, nor where that of
intermediate_integration is the question's own integral, left as it is.
Some of reasoning-gym's graders evaluate the answer as Python: what is no plain list or formula is not shown to them.
Careful: graders are as strict as reasoning-gym made them. Unless `binary`, an answer that merely contains the right one
earns a part, and countdown pays .01 for anything; puzzle24 takes any four numbers that make 24.
Careful: some question spaces are tiny and some answers nearly always the same; `onepolicy tasks check` tells. codeio
runs snippets of its own to make a question, some of which are not deterministic.
"""

from __future__ import annotations

import dataclasses
import re
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, field_validator, model_validator

from onepolicy.config import Strict, did_you_mean
from onepolicy.rewards import is_correct
from onepolicy.tasks.base import SourceOptions, seeded, user_message, with_one_wrong
from onepolicy.tasks.nesting import MAX_DEPTH, too_deep
from onepolicy.thought import NEVER_ENDS, answer_of
from onepolicy.types import Grade, Task

# Items come from datasets of this size, each with a seed of its own: some tasks make all their items beforehand, and
# reasoning-gym seeds item i with seed + i, so that neighbouring seeds of one endless dataset would share nearly all.
BLOCK = 1000
OURS = ("seed", "size")  # keys of every reasoning-gym config that onepolicy sets

# Tasks whose graders `eval` the answer, or hand it to sympy's parse_expr, which does; and what an answer to them is
# made of: no calls, no attributes, no names (the graders' own variables hold the right answer), no endless powers.
LISTS = {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}
SUMS = {"countdown", "puzzle24"}
FORMULAS = {"intermediate_integration", "polynomial_multiplication", "simple_integration"}
MAX_EVALUATED = 500  # characters
_FUNCTIONS = "sin|cos|tan|cot|sec|csc|asin|acos|atan|sinh|cosh|tanh|asinh|acosh|atanh|exp|log|ln|sqrt|pi|Abs"
_PLAIN = dict.fromkeys(LISTS, re.compile(r"[0-9A-Z_\s,\[\]'\"-]*"))
_PLAIN |= dict.fromkeys(SUMS, re.compile(r"(?!.*(?:\*\s*\*|/\s*/))[0-9\s+\-*/().]*", re.DOTALL))
_POWERS = r"(?!.*\*\*[\s(]*-?[0-9]{3})(?!.*\*\*[\s().0-9-]*\*\*)(?!.*!)"  # no 9**999, no 9**9**9
_TERM = rf"(?:(?:{_FUNCTIONS})(?![A-Za-z])|(?<![A-Za-z.])[A-Za-z](?![A-Za-z_])|[0-9\s+\-*/()]|\.(?=[0-9]))"
_PLAIN |= dict.fromkeys(FORMULAS, re.compile(rf"{_POWERS}{_TERM}*", re.DOTALL))


class Part(Strict):
    """One reasoning-gym task. `question_regex` has one group: what is kept of the question."""

    name: str
    config: dict[str, Any] = Field(default_factory=dict)
    weight: PositiveFloat = 1.0
    question_regex: str | None = None

    @field_validator("question_regex")
    @classmethod
    def _has_one_group(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
            if groups != 1:
                raise ValueError(f"{pattern!r} has {groups} groups, and needs one: the part of the question to keep")
        return pattern

    @model_validator(mode="after")
    def _reasoning_gym_takes_it(self) -> Self:
        _checked(self.name, self.config, seed=0)
        return self


class ReasoningGymOptions(SourceOptions):
    """One task by `name`, or several as `composite`.

    `extract` says where in the response the answer stands: all of it, inside the last <answer> tag, or its last line.
    `prompt` is a template around {question}. `binary` takes away partial credit. `corrupt` is the probability that a
    demonstration has one character wrong.
    """

    name: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    question_regex: str | None = None
    composite: list[Part] = Field([], description="parts with their own name, weight, config and question_regex")
    extract: Literal["whole", "answer_tag", "last_line"] = "whole"
    prompt: str = "{question}"
    binary: bool = False
    corrupt: Annotated[float, Field(ge=0, le=1)] = 0.0

    @property
    def parts(self) -> list[Part]:
        if self.name is None:
            return self.composite
        return [Part(name=self.name, config=self.config, question_regex=self.question_regex)]

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if (self.name is None) == (not self.composite):
            raise ValueError("give either `name` (one task) or `composite` (a list of tasks), and not both")
        if self.composite and (self.config or self.question_regex):
            raise ValueError("config and question_regex belong into each part of `composite`")
        if "{question}" not in self.prompt:
            raise ValueError(f"prompt {self.prompt!r} nowhere says {{question}}")
        _ = self.parts  # a single task is checked as a part
        return self


class ReasoningGymSource:
    """Draws from one or several reasoning-gym datasets, each made with a seed derived from ours."""

    def __init__(self, domain: str, options: ReasoningGymOptions, seed: int) -> None:
        self.domain, self.options, self.seed = domain, options, seed
        self.parts = options.parts

        self._blocks: dict[int, tuple[int, Any]] = {}  # part → the block used last, and its dataset

    @cached_property
    def _graders(self) -> list[Any]:
        return [_create(part.name, part.config, seed=0) for part in self.parts]

    def _entry(self, choice: int, index: int) -> dict[str, Any]:
        block, at = divmod(index, BLOCK)
        if self._blocks.get(choice, (None,))[0] != block:
            part, seed = self.parts[choice], seeded("reasoning_gym", self.seed, choice, block).getrandbits(30)
            self._blocks[choice] = block, _create(part.name, part.config, seed)
        entry: dict[str, Any] = self._blocks[choice][1][at]
        return entry

    def draw(self, index: int) -> Task:
        """Raises ValueError when question_regex does not match a question."""
        weights = [part.weight for part in self.parts]
        choice = seeded("part", self.seed, index).choices(range(len(self.parts)), weights)[0]
        part, entry = self.parts[choice], self._entry(choice, index)
        question = entry["question"]
        if part.question_regex is not None:
            match = re.search(part.question_regex, question, re.DOTALL)
            if match is None:
                raise ValueError(
                    f"domain {self.domain!r}: question_regex {part.question_regex!r} does not match "
                    f"{part.name}'s question {question!r}"
                )
            question = match.group(1)
        prompt = self.options.prompt.replace("{question}", question)
        metadata = {"part": choice, "name": part.name, "entry": entry}
        return Task(f"{self.domain}/{self.seed}/{index}", self.domain, user_message(prompt), entry["answer"], metadata)

    def grade(self, task: Task, response: str) -> Grade:
        said = answer_of(response)
        if said is None:
            return Grade(0.0, NEVER_ENDS)
        answer = _extract(said, self.options.extract)
        if answer is None:
            return Grade(0.0, f"no answer found by extract: {self.options.extract}")
        if too_deep(answer) or too_deep(answer.replace('"', "")):  # as JSON, and as Python, which has other strings
            return Grade(0.0, f"nested more than {MAX_DEPTH} deep")
        if not _may_be_evaluated(task.metadata["name"], answer):
            return Grade(0.0, "no plain list or formula, and the grader would evaluate it")
        score = float(self._graders[task.metadata["part"]].score_answer(answer, task.metadata["entry"]))
        partial = self.options.binary and not is_correct(score)
        return Grade(0.0, f"partial credit {score:g}") if partial else Grade(score)

    def gold(self, task: Task) -> str | None:
        if task.reference is None or not _may_be_evaluated(task.metadata["name"], str(task.reference)):
            return None
        return f"<answer>{task.reference}</answer>" if self.options.extract == "answer_tag" else str(task.reference)

    def demonstration(self, task: Task) -> str | None:
        gold, rng = self.gold(task), seeded("demonstration", task.id)
        return with_one_wrong(gold, rng) if gold and rng.random() < self.options.corrupt else gold


def _may_be_evaluated(name: str, answer: str) -> bool:
    plain = _PLAIN.get(name)
    return plain is None or (len(answer) <= MAX_EVALUATED and plain.fullmatch(answer) is not None)


def _extract(response: str, where: str) -> str | None:
    if where == "answer_tag":
        start, end = response.rfind("<answer>"), response.rfind("</answer>")
        return response[start + len("<answer>") : end].strip() if 0 <= start < end else None
    lines = response.strip().splitlines()
    if where == "last_line":
        return lines[-1].strip() if lines else None
    return response.strip()


def _create(name: str, config: dict[str, Any], seed: int) -> Any:
    """A reasoning-gym dataset of BLOCK items. Raises ValueError as `_checked` does."""
    from reasoning_gym.factory import DATASETS

    return DATASETS[name][0](config=_checked(name, config, seed))


def _checked(name: str, config: dict[str, Any], seed: int) -> Any:
    """A reasoning-gym config. Raises ValueError on a name, a key or a value that reasoning-gym does not take."""
    from reasoning_gym.factory import DATASETS

    names = [known for known in DATASETS if known != "composite"]
    if name not in names:
        raise ValueError(f"reasoning-gym has no task {name!r}: {did_you_mean(name, names)}")
    config_class = DATASETS[name][1]
    keys = [field.name for field in dataclasses.fields(config_class) if field.name not in OURS]
    for key in config:
        if key not in keys:
            raise ValueError(f"reasoning-gym's {name} has no key {key!r}: {did_you_mean(key, keys)}")
    try:
        made = config_class(seed=seed, size=BLOCK, **config)
        if hasattr(made, "validate"):
            made.validate()
    except (AssertionError, ValueError, TypeError) as error:
        raise ValueError(f"reasoning-gym's {name} refuses {config}: {error or type(error).__name__}") from None
    return made

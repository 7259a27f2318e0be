"""Questions from rows: files, a folder, the hub or Python objects; graded by functions.

    tasks: {kind: records, path: train.jsonl, eval_path: test.jsonl, prompt: question, grader: number}
    tasks: {kind: records, path: data/train-*.parquet, answer: reward_model.ground_truth, grader: "verl:mine:score"}
    tasks: {kind: records, hub: openai/gsm8k, subset: main, split: train, prompt: question, grader: "mine:grade"}

Formats: `row_files.py`. Columns, also dotted ones: `columns.py`. Graders, and what their parameters may be called:
`graders.py`, `adapters.py`. All rows are checked before anything is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PositiveFloat, field_validator, model_validator

from onepolicy.config import Strict
from onepolicy.config.objects import import_path
from onepolicy.tasks.adapters import TrlGrader, VerlGrader
from onepolicy.tasks.base import UNIT, RewardRange, as_grade
from onepolicy.tasks.columns import aliases, as_demonstration, as_prompt, is_scalar, lookup, split_chat
from onepolicy.tasks.graders import BuiltInGrader, Graded, NoReward, OwnGrader, exact, number, weighted_mean
from onepolicy.tasks.rows import RowReader, RowsOptions
from onepolicy.thought import NEVER_ENDS, separate
from onepolicy.types import Grade, Message, Task

__all__ = ["GraderOptions", "RecordsOptions", "RecordsSource", "exact", "number"]

Grader = BuiltInGrader | OwnGrader | TrlGrader | VerlGrader
GOLD = "gold"  # in a task's metadata: graders that do not judge gold answers are left out


class GraderOptions(Strict):
    """One grader of several: a built-in one's name, module:function, trl:module:function or verl:module:function.

    `gold: false` for one that judges the form alone, such as tags around the answer: gold answers are not shown to it.
    `reward_range` is the one of the domain unless it is given here.
    """

    name: Annotated[str, BeforeValidator(lambda value: import_path(value) if callable(value) else value)]
    weight: PositiveFloat = 1.0
    gold: bool = True
    reward_range: RewardRange | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) or callable(data) else data

    def build(self) -> Grader:
        """Raises ValueError when there is no such grader."""
        prefix, _, rest = self.name.partition(":")
        if prefix == "trl":
            return TrlGrader(rest)
        if prefix == "verl":
            return VerlGrader(rest)
        return OwnGrader(self.name) if rest else BuiltInGrader(self.name)


class RecordsOptions(RowsOptions):
    """Where the rows are, which columns mean what, and who grades. A dotted column is a part of a struct.

    `prompt` holds a text or a list of chat messages; `answer` is the grader's reference; `demonstration` is what
    supervised finetuning imitates (by default an answer that is text or a number), a text or messages. Where it names
    the column of the prompt, that holds a whole chat, and what follows its last user message is imitated.
    `grader` is one or a list; of several the reward is the weighted mean. `reward_range` is what graders return: from
    it to [0, 1], once, so training, metrics and evaluation see rewards in [0, 1] alone.
    """

    prompt: str = "prompt"
    answer: str = "answer"
    demonstration: str | None = None
    grader: tuple[GraderOptions, ...] = Field((GraderOptions(name="exact"),), min_length=1)
    reward_range: RewardRange = UNIT

    def import_paths(self) -> list[str]:
        """Those of the user's own graders."""
        names = [one.name.removeprefix("trl:").removeprefix("verl:") for one in self.grader]
        return [name for name in names if ":" in name]

    @field_validator("grader", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return value if isinstance(value, (list, tuple)) else [value]

    @field_validator("grader")
    @classmethod
    def _are_graders(cls, graders: tuple[GraderOptions, ...]) -> tuple[GraderOptions, ...]:
        for grader in graders:
            grader.build()
        return graders

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if not self.has_rows:
            raise ValueError("give either `path` (files or folders), `hub` (an id) or, from Python, `rows`")
        for options in self.grader:
            grader = options.build()
            grader.check(None)
            if not isinstance(grader, BuiltInGrader) and grader.needs_columns:
                grader.check(self.first_columns())
        return self


class RecordsSource:
    """Rows as tasks, read at the first draw."""

    def __init__(self, domain: str, options: RecordsOptions, seed: int) -> None:
        self.domain, self.options, self.seed = domain, options, seed
        self.graders: list[tuple[GraderOptions, Grader]] = [(one, one.build()) for one in options.grader]

    @cached_property
    def reader(self) -> RowReader:
        reader = RowReader(self.domain, self.options, self.seed, check=self._read)
        for _, grader in self.graders:
            grader.check(list(reader.rows[0]))
        return reader

    def draw(self, index: int) -> Task:
        """Raises ValueError when the rows cannot be read, or when one of them, any one, is faulty."""
        number, row = self.reader.at(index)
        messages, reference, demonstration = self._read(row)
        return Task(
            f"{self.domain}/{self.seed}/{index}",
            self.domain,
            messages,
            reference,
            {"row": number, "demonstration": demonstration, "columns": row},
        )

    def _read(self, row: Mapping[str, Any]) -> tuple[tuple[Message, ...], Any, str | tuple[Message, ...] | None]:
        """Prompt, reference and demonstration of a row. Raises ValueError that names column and value."""
        options = self.options
        prompt = self._column(row, "prompt", options.prompt)
        reference = self._column(row, "answer", options.answer)
        shown: Any = None
        if options.demonstration is not None:
            shown = self._column(row, "demonstration", options.demonstration)
            if options.demonstration == options.prompt:
                prompt, shown = _of_column(options.prompt, split_chat, prompt)
            shown = _of_column(options.demonstration, as_demonstration, shown)
        messages = _of_column(options.prompt, as_prompt, prompt)
        for _, grader in self.graders:
            if isinstance(grader, BuiltInGrader):
                _of_column(options.answer, partial(grader.check_reference, column=options.answer), reference)
            elif missing := [name for name in grader.needs_columns if name not in row]:
                raise ValueError(f"no column {missing[0]!r}, which is a parameter of grader {grader.name}")
        return messages, reference, self._answer(reference) if options.demonstration is None else shown

    def _column(self, row: Mapping[str, Any], key: str, column: str) -> Any:
        try:
            return lookup(row, column)
        except ValueError as error:
            raise ValueError(f"{error} (domains.{self.domain}.tasks.{key})") from None

    def _answer(self, reference: Any) -> str | None:
        """The reference as a response: of a list the first, where a built-in grader takes it for a list of aliases."""
        if any(isinstance(grader, BuiltInGrader) for _, grader in self.graders):
            return str(aliases(reference, self.options.answer)[0])
        return str(reference) if is_scalar(reference) else None

    def grade(self, task: Task, response: str, thought: str = "") -> Grade:
        """The weighted mean of all graders' rewards. Raises NoReward when none of them has one.

        A response that still has its thought is parted here; one whose thought never ends gets reward 0.
        """
        options, parts = self.options, separate(response)
        if parts.answer is None:
            return Grade(0.0, NEVER_ENDS)
        graded = Graded(
            parts.answer, thought or parts.thought, task, self._prompt(task), task.metadata.get("columns", {})
        )
        found: list[tuple[GraderOptions, Grade]] = []
        for one, grader in self.graders:
            if task.metadata.get(GOLD) and not one.gold:
                continue
            value = grader(graded)
            if value is not None or not isinstance(grader, TrlGrader):  # TRL: it does not apply to this row
                found.append((one, as_grade(value, f"grader {one.name}", one.reward_range or options.reward_range)))
        if not found:
            raise NoReward(f"{', '.join(one.name for one, _ in self.graders)} returned None: no reward for this row")
        if len(self.graders) == 1:
            return found[0][1]
        reward = weighted_mean([grade.reward for _, grade in found], [one.weight for one, _ in found])
        return Grade(reward, "; ".join(_reason(one.name, grade) for one, grade in found))

    def _prompt(self, task: Task) -> str | list[Message]:
        """As the row has it: a text, or messages (of these without nulls, and with a system prompt of the run)."""
        if columns := task.metadata.get("columns"):
            prompt = lookup(columns, self.options.prompt)
            if isinstance(prompt, str):
                return prompt
        return [dict(message) for message in task.messages]

    def gold(self, task: Task) -> str | None:
        """The answer column when it is text or a number; of several right answers the first.

        None for other references (tests, rubrics), which are no answers, and when no grader judges gold answers.
        """
        return self._answer(task.reference) if any(one.gold for one, _ in self.graders) else None

    def for_gold(self, task: Task) -> Task:
        """The task as its gold answer is graded: by the graders that are marked `gold`."""
        return replace(task, metadata={**task.metadata, GOLD: True})

    def demonstration(self, task: Task) -> str | tuple[Message, ...] | None:
        """The text or the messages to imitate."""
        shown: str | tuple[Message, ...] | None = task.metadata["demonstration"]
        return shown

    def notes(self) -> list[str]:
        """Says that there are no gold answers to check, where there are none."""
        task = self.draw(0)
        if self.gold(task) is not None:
            return []
        graders = ", ".join(one.name for one, _ in self.graders)
        return [
            f"domain {self.domain!r}: its column {self.options.answer!r} ({type(task.reference).__name__}) holds no "
            f"answers that grader {graders} could be checked with"
        ]


def _of_column(column: str, read: Callable[[Any], Any], value: Any) -> Any:
    try:
        return read(value)
    except ValueError as error:
        raise ValueError(f"column {column!r}: {error}") from None


def _reason(name: str, grade: Grade) -> str:
    return f"{name} {grade.reward:g}" + (f" ({grade.reason})" if grade.reason else "")

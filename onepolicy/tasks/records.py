"""Questions from a file: JSONL, Parquet, a `datasets` folder (save_to_disk) or a hub dataset; graded by a function.

    tasks: {kind: records, path: train.jsonl, eval_path: test.jsonl, prompt: question, grader: number}
    tasks: {kind: records, hub: openai/gsm8k, subset: main, split: train, prompt: question, grader: "mine:grade"}

The grader is `exact` (equal after trimming and folding white space and case), `number` (the last number of the
response equals the last one of the reference), or "module:function" of (response, reference) or (response, reference,
task), which returns a reward in [0, 1], (reward, reason) or a Grade.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self

from pydantic import field_validator, model_validator

from onepolicy.config import did_you_mean
from onepolicy.tasks.base import SourceOptions, as_grade, load_object, seeded, user_message
from onepolicy.types import Grade, Task

NUMBER = re.compile(r"(?:(?<!\w)-)?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)")
Rows = Sequence[Any]  # of mappings from column to value


def exact(response: str, reference: Any) -> float:
    """1.0 when both are equal after trimming and folding white space and case."""
    return float(" ".join(response.split()).casefold() == " ".join(str(reference).split()).casefold())


def number(response: str, reference: Any) -> tuple[float, str]:
    """1.0 when the last number of the response equals the last one of the reference; 1,000 is a thousand."""
    found, expected = _last_number(response), _last_number(str(reference))
    if expected is None:
        raise ValueError(f"the reference {reference!r} holds no number")
    if found is None:
        return 0.0, "no number in the response"
    return float(found == expected), ""


def _last_number(text: str) -> Decimal | None:
    numbers = NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


GRADERS: dict[str, Callable[..., Any]] = {"exact": exact, "number": number}


class RecordsOptions(SourceOptions):
    """Where the rows are, which columns mean what, and who grades.

    `prompt` holds a string or a list of chat messages; `answer` is the grader's reference; `demonstration` is what
    supervised finetuning imitates (by default an answer that is text or a number).
    """

    path: Path | None = None
    hub: str | None = None
    subset: str | None = None
    split: str | None = None
    prompt: str = "prompt"
    answer: str = "answer"
    demonstration: str | None = None
    grader: str = "exact"
    eval_path: Path | None = None
    eval_split: str | None = None

    def held_out(self) -> Self:
        return self.model_copy(update={"path": self.eval_path or self.path, "split": self.eval_split or self.split})

    @field_validator("path", "eval_path")
    @classmethod
    def _exists(cls, path: Path | None) -> Path | None:
        if path is not None and not path.exists():
            raise ValueError(f"no such file or folder: {path} (looked in {Path.cwd()})")
        return path

    @field_validator("grader")
    @classmethod
    def _is_a_grader(cls, grader: str) -> str:
        _grader(grader)
        return grader

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either `path` (a file, or a folder of save_to_disk) or `hub` (an id), and not both")
        if self.hub is not None and self.split is None:
            raise ValueError(f"hub dataset {self.hub!r} needs a `split`, for example train")
        if self.hub is not None and self.eval_path is not None:
            raise ValueError("eval_path belongs to `path`; with `hub` use eval_split")
        if self.path is not None and self.subset is not None:
            raise ValueError(f"subset {self.subset!r} belongs to `hub`, not to a path: remove it")
        return self


class RecordsSource:
    """Rows in an order shuffled by the seed, anew for every pass over them. Rows are read at the first draw."""

    def __init__(self, domain: str, options: RecordsOptions, seed: int) -> None:
        self.domain, self.options, self.seed = domain, options, seed
        self._grade, self._wants_task = _grader(options.grader)

    @cached_property
    def rows(self) -> Rows:
        options = self.options
        rows = load_rows(options.path, options.hub, options.subset, options.split)
        place = f"domain {self.domain!r}: {options.path or options.hub}"
        if len(rows) == 0:
            raise ValueError(f"{place} holds no rows")
        columns = {"prompt": options.prompt, "answer": options.answer, "demonstration": options.demonstration}
        for key, column in columns.items():
            if column is not None and column not in rows[0]:
                raise ValueError(
                    f"{place} has no column {column!r} (set domains.{self.domain}.tasks.{key}): "
                    f"{did_you_mean(column, list(rows[0]))}; its columns are {', '.join(rows[0])}"
                )
        return rows

    @lru_cache(maxsize=2)  # noqa: B019 - a source lives as long as its run
    def _order(self, epoch: int) -> list[int]:
        order = list(range(len(self.rows)))
        seeded("records", self.seed, epoch).shuffle(order)
        return order

    def draw(self, index: int) -> Task:
        """Raises ValueError when the file cannot be read, is empty, or lacks a column."""
        options = self.options
        epoch, at = divmod(index, len(self.rows))
        row_number = self._order(epoch)[at]
        row = self.rows[row_number]
        try:
            prompt, answer = row[options.prompt], row[options.answer]
            shown = answer if options.demonstration is None else row[options.demonstration]
        except KeyError as error:
            raise ValueError(
                f"domain {self.domain!r}: row {row_number} has no {error}; it has {', '.join(row)}"
            ) from None
        return Task(
            f"{self.domain}/{self.seed}/{index}",
            self.domain,
            user_message(prompt) if isinstance(prompt, str) else tuple(prompt),
            answer,
            {"row": row_number, "demonstration": shown},
        )

    def grade(self, task: Task, response: str) -> Grade:
        extra = (task,) if self._wants_task else ()
        return as_grade(self._grade(response, task.reference, *extra), f"grader {self.options.grader}")

    def gold(self, task: Task) -> str | None:
        """The answer column when it is text or a number; other references (tests, rubrics) are no answers."""
        return _as_text(task.reference)

    def demonstration(self, task: Task) -> str | None:
        return _as_text(task.metadata["demonstration"])


def _as_text(value: Any) -> str | None:
    return str(value) if isinstance(value, (str, int, float)) else None


def _grader(name: str) -> tuple[Callable[..., Any], bool]:
    """The grading function, and whether it takes the task as third argument. Raises ValueError when there is none."""
    if name in GRADERS:
        return GRADERS[name], False
    if ":" not in name:
        raise ValueError(f"no grader {name!r}: {did_you_mean(name, list(GRADERS))}; your own is named module:function")
    function = load_object(name)
    for arguments in (3, 2):
        try:
            inspect.signature(function).bind(*[None] * arguments)
        except TypeError:
            continue
        return function, arguments == 3
    raise ValueError(f"grader {name} must take (response, reference) or (response, reference, task)")


def load_rows(path: Path | None, hub: str | None, subset: str | None, split: str | None) -> Rows:
    """Read JSONL, Parquet, a save_to_disk folder or a hub dataset. Raises ValueError that names place and fault."""
    rows: Rows
    if path is None:
        rows = _library("datasets").load_dataset(hub, subset, split=split)
        return rows
    if path.is_dir():
        return _load_folder(path, split)
    if split is not None:
        raise ValueError(f"{path} has no splits: remove split {split!r}")
    if path.suffix == ".parquet":
        rows = _library("pyarrow.parquet").read_table(path).to_pylist()
        return rows
    if path.suffix not in (".jsonl", ".json"):
        raise ValueError(f"{path}: unknown ending {path.suffix!r}; records are read from .jsonl, .parquet or a folder")
    return _load_jsonl(path)


def _load_jsonl(path: Path) -> Rows:
    rows = []
    with path.open(encoding="utf-8") as file:
        for line_number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {line_number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {line_number} is no JSON object: {line.strip():.80}")
            rows.append(row)
    return rows


def _load_folder(path: Path, split: str | None) -> Rows:
    datasets = _library("datasets")
    try:
        data = datasets.load_from_disk(str(path))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is no folder written by save_to_disk: {error}") from None
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise ValueError(f"{path} has the splits {', '.join(data)}: set `split` to one of them, not {split!r}")
        data = data[split]
    elif split is not None:
        raise ValueError(f"{path} has no splits: remove split {split!r}")
    rows: Rows = data
    return rows


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f"this kind of records needs {name}: pip install 'onepolicy[datasets]'") from None

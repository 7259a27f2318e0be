"""Rows of files, of a folder, of the hub or given from Python: where they are, the check of all, the order of draws.

For every source that reads records; what the columns mean is the source's own matter, the formats are `row_files.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, model_validator

from onepolicy.config import did_you_mean
from onepolicy.config.objects import GivenRows
from onepolicy.files import files_in
from onepolicy.tasks.base import SourceOptions, seeded
from onepolicy.tasks.row_files import Rows, Table, columns_of, expand, read_hub, read_path

MAX_FAULTS_SHOWN = 3
LEVELS = 3  # of difficulty, in every skill
Level = Annotated[int, Field(ge=1, le=LEVELS)]
Paths = Annotated[tuple[Path, ...], BeforeValidator(expand)]
Given = Annotated[GivenRows, BeforeValidator(GivenRows.of)]


class RowsOptions(SourceOptions):
    """Where rows are, and others for evaluation.

    `path` is a file, a folder, a glob, or a list of these; `hub` a dataset's id; `rows` an object, from Python.
    """

    path: Paths | None = None
    hub: str | None = None
    rows: Given | None = None
    subset: str | None = None
    split: str | None = None
    eval_path: Paths | None = None
    eval_rows: Given | None = None
    eval_split: str | None = None

    @property
    def has_rows(self) -> bool:
        """Whether rows are named at all."""
        return self.path is not None or self.hub is not None or self.rows is not None

    def held_out(self) -> Self:
        return self.model_copy(
            update={
                "path": self.eval_path or self.path,
                "rows": self.eval_rows or self.rows,
                "split": self.eval_split or self.split,
            }
        )

    def tables(self) -> Iterator[Table]:
        """Read the rows, place by place. Raises ValueError that names place and fault."""
        for path in self.path or ():
            split = self.split if path.is_dir() or not any(map(Path.is_dir, self.path or ())) else None
            yield read_path(path, self.subset, split)
        if self.hub is not None:
            yield read_hub(self.hub, self.subset, self.split)
        if self.rows is not None:
            yield Table("the rows given", self.rows.rows)

    def source_files(self) -> list[Path]:
        """All files that `path` and `eval_path` name, those in folders too; what is no regular file is left out."""
        named = dict.fromkeys([*(self.path or ()), *(self.eval_path or ())])
        found: list[Path] = []
        for path in named:
            found += files_in(path) if path.is_dir() else [path] if path.is_file() else []
        return found

    def first_columns(self) -> list[str] | None:
        """The columns of the first row; None where reading them would cost much, or there is no row."""
        if self.rows is not None:
            return self.rows.columns
        return columns_of(self.path[0]) if self.path else None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(place is not None for place in (self.path, self.hub, self.rows)) > 1:
            raise ValueError("give either `path` (files or folders), `hub` (an id) or `rows` (an object)")
        if self.hub is not None and self.split is None:
            raise ValueError(f"hub dataset {self.hub!r} needs a `split`, for example train")
        if self.eval_path is not None and self.path is None:
            raise ValueError("eval_path belongs to `path`; with `hub` use eval_split, with `rows` eval_rows")
        if self.eval_rows is not None and self.rows is None:
            raise ValueError("eval_rows belongs to `rows`; with `path` use eval_path")
        if self.subset is not None and not (self.hub or any(map(Path.is_dir, self.path or ()))):
            raise ValueError(f"subset {self.subset!r} belongs to `hub` or a folder: remove it")
        return self


class SkillsOptions(RowsOptions):
    """Rows when `path` or `hub` names some; else problems made here: which skills (None: all) and how hard.

    `corrupt` is the probability that a demonstration has one wrong letter or digit.
    """

    known_skills: ClassVar[Collection[str]]

    skills: tuple[str, ...] | None = None
    level: Level = 1
    corrupt: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _skills_are_known(self) -> Self:
        known = list(self.known_skills)
        for skill in self.skills or ():
            if skill not in known:
                raise ValueError(f"skill {skill!r} is not known: {did_you_mean(skill, known)}")
        if self.skills == ():
            raise ValueError(f"skills is empty: leave it out for all of them, or name some of {', '.join(known)}")
        if self.has_rows and {"skills", "level"} & self.model_fields_set:
            raise ValueError("skills and level are of problems made here: remove them, or `path` and `hub`")
        return self


class RowReader:
    """Rows in an order shuffled by the seed, anew for every pass over them.

    They are read at the first use, and then checked, every one.
    """

    def __init__(
        self,
        domain: str,
        options: RowsOptions,
        seed: int,
        keep: Callable[[Mapping[str, Any]], bool] | None = None,
        check: Callable[[Mapping[str, Any]], Any] | None = None,
    ) -> None:
        """`keep` says which rows count at all (None: every one); `check` raises ValueError on one that is faulty."""
        self.domain, self.options, self.seed, self._keep, self._check = domain, options, seed, keep, check

    @property
    def place(self) -> str:
        """The domain and where its rows are, for messages."""
        names = [table.name for table in self.tables]
        more = f" and {len(names) - MAX_FAULTS_SHOWN} more" if len(names) > MAX_FAULTS_SHOWN else ""
        return f"domain {self.domain!r}: {', '.join(names[:MAX_FAULTS_SHOWN])}{more}"

    @cached_property
    def tables(self) -> list[Table]:
        """The rows, place by place. Raises ValueError when they cannot be read."""
        try:
            return list(self.options.tables())
        except ValueError as error:
            raise ValueError(f"domain {self.domain!r}: {error}") from None

    @cached_property
    def rows(self) -> Rows:
        """All rows, of every table. Raises ValueError when they cannot be read or there are none."""
        parts = [table.rows for table in self.tables]
        rows = parts[0] if len(parts) == 1 else [row for part in parts for row in part]
        if len(rows) == 0:
            raise ValueError(f"{self.place} holds no rows")
        return rows

    def where(self, number: int) -> str:
        """The file, the line and the number in that file of a row, for messages."""
        for table in self.tables:
            if number < len(table.rows):
                line = table.lines[number] if table.lines else 0
                return f"{table.name}, " + (f"line {line}, " if line else "") + f"row {number}"
            number -= len(table.rows)
        raise IndexError(number)

    def at(self, index: int) -> tuple[int, Mapping[str, Any]]:
        """The row that is drawn at any index >= 0, with its number (counted on through all files).

        Raises ValueError when a row, any one, is faulty.
        """
        epoch, place = divmod(index, len(self._numbers))
        number = self._numbers[self._order(epoch)[place]]
        return number, self.rows[number]

    @cached_property
    def _numbers(self) -> Sequence[int]:
        """Of the rows that count."""
        numbers: list[int] = []
        faults: list[tuple[int, str]] = []
        for number, row in enumerate(self.rows):
            if self._keep is not None and not self._keep(row):
                continue
            numbers.append(number)
            try:
                if self._check is not None:
                    self._check(row)
            except ValueError as error:
                faults.append((number, str(error)))
        if faults:
            raise ValueError(self._refusal(faults, len(numbers)))
        if not numbers:
            raise ValueError(f"{self.place} holds no rows that count")
        return numbers

    def _refusal(self, faults: Sequence[tuple[int, str]], rows: int) -> str:
        shown = [f"{self.where(number)}: {fault}" for number, fault in faults[:MAX_FAULTS_SHOWN]]
        if len({fault for _, fault in faults}) == 1 and len(faults) == rows:  # one reason for all
            del shown[1:]
        count = f"{len(faults)} of {rows} rows cannot be used: " if len(faults) > 1 else ""
        more = f"; and {len(faults) - len(shown)} more" if len(faults) > len(shown) else ""
        return f"domain {self.domain!r}: {count}{'; '.join(shown)}{more}"

    @lru_cache(maxsize=2)  # noqa: B019 - a reader lives as long as its run
    def _order(self, epoch: int) -> list[int]:
        order = list(range(len(self._numbers)))
        seeded("records", self.seed, epoch).shuffle(order)
        return order

"""Rows of a file: JSONL, Parquet, a `datasets` folder (save_to_disk) or a hub dataset, and the order they come in.

For every source that reads records; what the columns mean is the source's own matter.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from onepolicy.config import did_you_mean
from onepolicy.tasks.base import SourceOptions, seeded

Rows = Sequence[Mapping[str, Any]]
LEVELS = 3  # of difficulty, in every skill
Level = Annotated[int, Field(ge=1, le=LEVELS)]


class RowsOptions(SourceOptions):
    """Where rows are: `path` (a file, or a folder of save_to_disk) or `hub` (an id); and others for evaluation."""

    path: Path | None = None
    hub: str | None = None
    subset: str | None = None
    split: str | None = None
    eval_path: Path | None = None
    eval_split: str | None = None

    @property
    def has_rows(self) -> bool:
        """Whether a file or a dataset is named at all."""
        return self.path is not None or self.hub is not None

    def held_out(self) -> Self:
        return self.model_copy(update={"path": self.eval_path or self.path, "split": self.eval_split or self.split})

    @field_validator("path", "eval_path")
    @classmethod
    def _exists(cls, path: Path | None) -> Path | None:
        if path is not None and not path.exists():
            raise ValueError(f"no such file or folder: {path} (looked in {Path.cwd()})")
        return path

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.path is not None and self.hub is not None:
            raise ValueError("give either `path` (a file, or a folder of save_to_disk) or `hub` (an id), and not both")
        if self.hub is not None and self.split is None:
            raise ValueError(f"hub dataset {self.hub!r} needs a `split`, for example train")
        if self.eval_path is not None and self.path is None:
            raise ValueError("eval_path belongs to `path`; with `hub` use eval_split")
        if self.path is not None and self.subset is not None:
            raise ValueError(f"subset {self.subset!r} belongs to `hub`, not to a path: remove it")
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
    """Rows in an order shuffled by the seed, anew for every pass over them. They are read at the first use."""

    def __init__(
        self, domain: str, options: RowsOptions, seed: int, keep: Callable[[Mapping[str, Any]], bool] | None = None
    ) -> None:
        """`keep` says which rows count at all (None: every one)."""
        self.domain, self.options, self.seed, self._keep = domain, options, seed, keep
        self.place = f"domain {domain!r}: {options.path or options.hub}"

    @cached_property
    def rows(self) -> Rows:
        """Raises ValueError when they cannot be read or there are none."""
        options = self.options
        rows = load_rows(options.path, options.hub, options.subset, options.split)
        if self._keep is not None:
            rows = [row for row in rows if self._keep(row)]
        if len(rows) == 0:
            raise ValueError(f"{self.place} holds no rows")
        return rows

    def at(self, index: int) -> tuple[int, Mapping[str, Any]]:
        """The row that is drawn at any index >= 0, with its number in the file."""
        epoch, place = divmod(index, len(self.rows))
        number = self._order(epoch)[place]
        return number, self.rows[number]

    @lru_cache(maxsize=2)  # noqa: B019 - a reader lives as long as its run
    def _order(self, epoch: int) -> list[int]:
        order = list(range(len(self.rows)))
        seeded("records", self.seed, epoch).shuffle(order)
        return order


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

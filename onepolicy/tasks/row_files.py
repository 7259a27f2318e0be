"""Reads rows from files, folders and the hub.

.jsonl .json      an object per line, or one array of objects       .csv .tsv   a header, then text
.parquet          also in a glob: data/train-*.parquet              .gz         behind any of the text formats
a folder          of save_to_disk, or laid out as on the hub (README.md with configs, data/train-*.parquet)
"""

from __future__ import annotations

import csv
import glob
import gzip
import importlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

Rows = Sequence[Mapping[str, Any]]
Line = tuple[int, Any]  # the number of a line, from 1, and the row that begins there

MAX_CELL = 1 << 30  # characters of a CSV cell; the csv module's own limit is 131,072
TEXT_FORMATS = (".jsonl", ".json", ".csv", ".tsv")


class Table(NamedTuple):
    """The rows of one place, and the line in which each begins, where there are lines."""

    name: str
    rows: Rows
    lines: Sequence[int] = ()


def expand(value: Any) -> tuple[Path, ...]:
    """The files and folders that a path, a glob or a list of these names. Raises ValueError when one names none."""
    given = value if isinstance(value, (list, tuple)) else [value]
    found: list[Path] = []
    for item in given:
        if not isinstance(item, (str, Path)):
            raise ValueError(f"{item!r} is no path: give a file, a folder, a glob, or a list of these")
        path = Path(item)
        if path.exists():
            found.append(path)
            continue
        matches = sorted(glob.glob(str(path), recursive=True))
        if not matches:
            what = "no file matches" if glob.has_magic(str(path)) else "no such file or folder:"
            raise ValueError(f"{what} {path} (looked in {Path.cwd()})")
        found += map(Path, matches)
    if not found:
        raise ValueError("an empty list of paths: name a file")
    return tuple(found)


def read_path(path: Path, subset: str | None, split: str | None) -> Table:
    """The rows of a file or folder. Raises ValueError that names place and fault."""
    if path.is_dir():
        return Table(str(path), _read_folder(path, subset, split))
    if split is not None:
        raise ValueError(f"{path} has no splits: remove split {split!r}")
    if path.suffix == ".parquet":
        try:
            return Table(str(path), library("pyarrow.parquet").read_table(path).to_pylist())
        except library("pyarrow").ArrowInvalid as error:
            raise ValueError(f"{path} is no Parquet file: {error}") from None
    numbered = list(_read_text(path))
    return Table(str(path), [row for _, row in numbered], [line for line, _ in numbered])


def columns_of(path: Path) -> list[str] | None:
    """The columns that a file's first row has, without reading the rest; None when that is not known so cheaply."""
    if path.is_dir():
        return None
    if path.suffix == ".parquet":
        return list(library("pyarrow.parquet").read_schema(path).names)
    return next((list(row) for _, row in _read_text(path)), None)


def read_hub(name: str, subset: str | None, split: str | None) -> Table:
    """A dataset of the hub, or whatever else `datasets.load_dataset` takes."""
    return Table(name, library("datasets").load_dataset(name, subset, split=split))


def library(name: str) -> Any:
    """An optional dependency. Raises ValueError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f"this kind of records needs {name}: pip install 'onepolicy[datasets]'") from None


def _read_text(path: Path) -> Iterator[Line]:
    zipped = path.suffix == ".gz"
    ending = path.with_suffix("").suffix if zipped else path.suffix
    if ending not in TEXT_FORMATS:
        raise ValueError(
            f"{path}: unknown ending {path.suffix!r}; rows are read from .parquet, {', '.join(TEXT_FORMATS)} (also "
            "with .gz behind) or a folder"
        )
    with gzip.open(path) if zipped else path.open("rb") as raw:
        # Excel writes a byte order mark; csv wants line ends as they are
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        try:
            yield from _read_csv(path, text, ending) if ending in (".csv", ".tsv") else _read_json(path, text)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8: {error}") from None
        except (gzip.BadGzipFile, EOFError) as error:
            raise ValueError(f"{path} is no whole gzip file: {error}") from None


def _read_json(path: Path, text: IO[str]) -> Iterator[Line]:
    begun = False
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        if not begun and line.lstrip().startswith("["):
            yield from _read_array(path, line + text.read(), number)
            return
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
        begun = True
        yield number, _object(row, f"{path}, line {number}")


def _read_array(path: Path, text: str, first_line: int) -> Iterator[Line]:
    """The objects of one array. Which line each begins in is not known: its number as a row has to do."""
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {first_line + error.lineno - 1} is not JSON: {error.msg}") from None
    for number, row in enumerate(rows):
        yield 0, _object(row, f"{path}, row {number}")


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{place} is no JSON object: {json.dumps(row):.80}")
    return row


def _read_csv(path: Path, text: IO[str], ending: str) -> Iterator[Line]:
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(text, delimiter="\t" if ending == ".tsv" else ",", strict=True)
    header: list[str] | None = None
    try:
        while True:
            begins = reader.line_num + 1  # a quoted cell may hold line ends
            cells = next(reader, None)
            if cells is None:
                return
            if not cells:
                continue
            if header is None:
                header = cells
                if len(set(header)) < len(header) or "" in header:
                    raise ValueError(f"{path}: the header {header} has a column twice, or one without a name")
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"{path}, line {begins} has {len(cells)} cells and the header {len(header)}: put quotes around a "
                    "cell with a separator or line end in it"
                )
            yield begins, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num} is no CSV: {error}") from None


def _read_folder(path: Path, subset: str | None, split: str | None) -> Rows:
    datasets = library("datasets")
    saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    if saved and subset is not None:
        raise ValueError(f"{path} was written by save_to_disk and has no subsets: remove subset {subset!r}")
    try:
        if saved:
            data = datasets.load_from_disk(str(path))
        else:
            data = datasets.load_dataset(str(path.absolute()), subset, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"{path} can be read neither as a folder of save_to_disk nor as one laid out as on the hub: {error}"
        ) from None
    if isinstance(data, datasets.DatasetDict):
        if split is None and len(data) == 1:
            split = next(iter(data))
        if split not in data:
            raise ValueError(f"{path} has the splits {', '.join(data)}: set `split` to one of them, not {split!r}")
        data = data[split]
    elif split is not None and saved:
        raise ValueError(f"{path} has no splits: remove split {split!r}")
    rows: Rows = data
    return rows

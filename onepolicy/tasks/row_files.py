"""Reads rows from files, folders and the hub.

.jsonl .json      an object per line, or one array of objects       .csv .tsv   a header, then text
.parquet          also in a glob: data/train-*.parquet              .gz         behind any of the text formats
a folder          of save_to_disk, or laid out as on the hub (README.md with configs, data/train-*.parquet)

Rows are held in memory, so what unpacks to very much more than it takes on the disk is refused before it fills that:
`unpacked_limit`. So are rows nested deeper than `nesting.MAX_DEPTH`, and more columns than MAX_COLUMNS.
"""

from __future__ import annotations

import csv
import glob
import gzip
import importlib
import io
import json
import os
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from onepolicy.config import listed
from onepolicy.tasks.nesting import MAX_DEPTH, too_deep

Rows = Sequence[Mapping[str, Any]]
Line = tuple[int, Any]  # the number of a line, from 1, and the row that begins there

MAX_CELL = 1 << 30  # characters of a CSV cell; the csv module's own limit is 131,072
MAX_COLUMNS = 10_000
MAX_RATIO, FREE = 100, 1 << 30  # a packed file may hold a GiB, or a hundred times its own size
BYTES_OF_ROW, BYTES_OF_CELL = 64, 16  # in memory, at least
BATCH_ROWS, BATCH_BYTES = 1024, 1 << 31  # of a Parquet file, read at once
KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
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
    for path in found:
        _require_kind(path)
    return tuple(found)


def _require_kind(path: Path) -> None:
    """Raises ValueError for what is neither a file nor a folder, and would be read for ever or not at all."""
    kind = KINDS.get(stat.S_IFMT(path.stat().st_mode))
    if kind is not None:
        raise ValueError(f"{path} is {kind}, and rows are read more than once: write them into a file")


def unpacked_limit(path: Path) -> int:
    """Bytes that a packed file may unpack to."""
    return max(FREE, MAX_RATIO * path.stat().st_size)


def _too_large(path: Path, size: float) -> ValueError:
    return ValueError(
        f"{path} has {path.stat().st_size:,} bytes and unpacks to more than {size / 2**30:.1f} GiB, which have to fit "
        "into memory: split it into several files, if that is no mistake"
    )


def read_path(path: Path, subset: str | None, split: str | None) -> Table:
    """The rows of a file or folder. Raises ValueError that names place and fault."""
    if path.is_dir():
        return Table(str(path), _read_folder(path, subset, split))
    if split is not None:
        raise ValueError(f"{path} has no splits: remove split {split!r}")
    if path.suffix == ".parquet":
        return Table(str(path), _read_parquet(path))
    numbered = list(_read_text(path))
    return Table(str(path), [row for _, row in numbered], [line for line, _ in numbered])


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    """Batch by batch: what a file says of itself does not bound what a repeated value unpacks to."""
    arrow, limit = library("pyarrow"), unpacked_limit(path)
    rows: list[dict[str, Any]] = []
    unpacked = 0
    try:
        with library("pyarrow.parquet").ParquetFile(path) as file:
            facts, columns = file.metadata, len(file.schema_arrow.names)
            _require_columns(columns, str(path))
            groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
            told = sum(group.total_byte_size for group in groups)
            at_least = max(told, facts.num_rows * (BYTES_OF_ROW + BYTES_OF_CELL * columns))
            if at_least > limit:
                raise _too_large(path, at_least)
            largest_cell = max((group.total_byte_size for group in groups), default=0)
            batch = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, largest_cell)))
            for part in file.iter_batches(batch_size=batch):
                plain = [c.dictionary_decode() if hasattr(c, "dictionary_decode") else c for c in part.columns]
                unpacked += sum(column.nbytes for column in plain)
                if unpacked > limit:
                    raise _too_large(path, unpacked)
                rows += part.to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from None
    return rows


def columns_of(path: Path) -> list[str] | None:
    """The columns that a file's first row has, without reading the rest; None when that is not known so cheaply."""
    if path.is_dir():
        return None
    if path.suffix == ".parquet":
        try:
            return list(library("pyarrow.parquet").read_schema(path).names)
        except (library("pyarrow").ArrowException, OSError) as error:
            raise ValueError(f"{path} is no Parquet file: {error}") from None
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
    with _Bounded(path) if zipped else path.open("rb") as raw:
        # Excel writes a byte order mark; csv wants line ends as they are
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        try:
            yield from _read_csv(path, text, ending) if ending in (".csv", ".tsv") else _read_json(path, text)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8: {error}") from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is no whole gzip file: {error}") from None


def _read_json(path: Path, text: IO[str]) -> Iterator[Line]:
    begun = False
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        if not begun and line.lstrip().startswith("["):
            yield from _read_array(path, line + text.read(), number)
            return
        _require_flat(line, f"{path}, line {number}")
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
        begun = True
        yield number, _object(row, f"{path}, line {number}")


def _read_array(path: Path, text: str, first_line: int) -> Iterator[Line]:
    """The objects of one array. Which line each begins in is not known: its number as a row has to do."""
    _require_flat(text, f"{path}, the array in line {first_line}")
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {first_line + error.lineno - 1} is not JSON: {error.msg}") from None
    for number, row in enumerate(rows):
        yield 0, _object(row, f"{path}, row {number}")


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{place} is no JSON object: {json.dumps(row):.80}")
    _require_columns(len(row), place)
    return row


def _require_flat(text: str, place: str) -> None:
    """Raises ValueError for JSON that is nested too deeply to be read and sent on by every Python."""
    if text.count("[") + text.count("{") > MAX_DEPTH and too_deep(text):
        raise ValueError(f"{place} is nested more than {MAX_DEPTH} deep")


def _require_columns(columns: int, place: str) -> None:
    if columns > MAX_COLUMNS:
        raise ValueError(f"{place} has {columns:,} columns, and the most is {MAX_COLUMNS:,}: is it transposed?")


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
                _require_columns(len(header), f"{path}, line {begins}")
                if len(set(header)) < len(header) or "" in header:
                    raise ValueError(
                        f"{path}: the header [{listed(map(repr, header))}] has a column twice, or one without a name"
                    )
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"{path}, line {begins} has {len(cells)} cells and the header {len(header)}: put quotes around a "
                    "cell with a separator or line end in it"
                )
            yield begins, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num} is no CSV: {error}") from None


class _Bounded(io.BufferedReader):
    """A gzip file that refuses, with ValueError, to unpack to more than `unpacked_limit`."""

    def __init__(self, path: Path) -> None:
        super().__init__(_Counted(path))


class _Counted(io.RawIOBase):
    def __init__(self, path: Path) -> None:
        self._path, self._limit, self._read = path, unpacked_limit(path), 0
        self._file = gzip.GzipFile(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._read += count
        if self._read > self._limit:
            raise _too_large(self._path, self._read)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _require_files(path: Path) -> None:
    """Raises ValueError for a folder without any file, or with rows that are none (a named pipe)."""
    found = False
    for folder, _, names in os.walk(path):
        for name in names:
            place = Path(folder, name)
            if place.suffix in (*TEXT_FORMATS, ".parquet", ".gz") and place.exists():
                _require_kind(place)
            found = True
    if not found:
        raise ValueError(
            f"{path} can be read neither as a folder of save_to_disk nor as one laid out as on the hub: it has no file"
        )


def _read_folder(path: Path, subset: str | None, split: str | None) -> Rows:
    _require_files(path)
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

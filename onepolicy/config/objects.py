"""Python objects inside a configuration: functions by their import path, rows by their number and fingerprint.

A configuration is kept as YAML in the run folder and compared on resume, so an object needs a spelling there:

    grader: my_graders.f1            ->  my_graders:f1
    rows: a datasets.Dataset, a list ->  {count: 7473, fingerprint: 5f0e...}
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr

OBJECT_ROWS = ("rows", "eval_rows")  # the keys under which rows are handed over


class GivenRows(BaseModel):
    """Rows that Python handed over: a `datasets.Dataset` or a list of dicts.

    The rows stay in this process: the grading process, YAML and the comparison on resume know the fingerprint of their
    content alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int
    fingerprint: str
    _rows: Sequence[Mapping[str, Any]] | None = PrivateAttr(None)

    @classmethod
    def of(cls, value: Any) -> Self:
        """Wrap rows; their spelling (from a run folder) stands for rows that are missing. Raises ValueError."""
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping) and set(value) == {"count", "fingerprint"}:
            return cls(**value)
        sized = hasattr(value, "__len__") and hasattr(value, "__getitem__")
        if not sized or isinstance(value, (str, bytes, Mapping)):
            raise ValueError(
                f"rows are a datasets.Dataset or a list of dicts, given from Python, and not {type(value).__name__}: "
                "of a DatasetDict pick a split; in a file use `path` or `hub`"
            )
        try:
            rows_are_dicts = len(value) == 0 or isinstance(value[0], Mapping)
        except (KeyError, TypeError):  # a DataFrame, say
            rows_are_dicts = False
        if not rows_are_dicts:
            raise ValueError(
                f"rows of {type(value).__name__} are no dicts: give a datasets.Dataset (Dataset.from_pandas) or a "
                "list of dicts"
            )
        given = cls(count=len(value), fingerprint=_fingerprint(value))
        given._rows = value
        return given

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """Raises ValueError where only their spelling is known."""
        if self._rows is None:
            raise ValueError(
                f"the {self.count} rows (fingerprint {self.fingerprint}) were given as a Python object: call "
                "onepolicy.run from Python with the same rows, or save them and use `path`"
            )
        return self._rows

    @property
    def columns(self) -> list[str] | None:
        """Of the first row; None where there is none, or only the spelling is known."""
        return list(self._rows[0]) if self._rows else None

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        return {**state, "__pydantic_private__": {"_rows": None}}


def spelled(options: Mapping[str, Any]) -> dict[str, Any]:
    """A task source's options with every object in its spelling. Raises ValueError for one that has none."""
    return {key: GivenRows.of(value) if key in OBJECT_ROWS else _spelled(value) for key, value in options.items()}


def import_path(function: Any) -> str:
    """module:name of a function or class. Raises ValueError where another process could not import it by that."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module == "__main__":
        raise ValueError(
            f"{name} is defined in the script that runs, which the grading process cannot import: "
            "move it to a module beside the script"
        )
    if not module or not name.isidentifier() or getattr(importlib.import_module(module), name, None) is not function:
        raise ValueError(
            f"{function!r:.100} cannot be imported by the grading process: give a function defined with `def` at the "
            "top level of a module, no lambda, method or partial"
        )
    return f"{module}:{name}"


def _spelled(value: Any) -> Any:
    if callable(value):
        return import_path(value)
    if isinstance(value, Mapping):
        return {key: _spelled(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_spelled(inner) for inner in value]
    return value


def _fingerprint(rows: Sequence[Mapping[str, Any]]) -> str:
    """A digest of the content: equal rows have equal fingerprints, in every process."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=_plain).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "tobytes"):  # an image
        return hashlib.blake2b(value.tobytes(), digest_size=16).hexdigest()
    return repr(value)

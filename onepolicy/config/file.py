"""A run's YAML file, with dotted overrides from the command line. No torch here.

load_run("run.yaml", ["optim.learning_rate=1e-5", "teachers.math=/models/math"])
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from onepolicy.config.registry import AnyRun, parse_run
from onepolicy.config.strict import ConfigError

MAX_BYTES = 2**20  # of a file; a configuration has a few thousand, and its data lies elsewhere
MAX_VALUES = 20_000  # keys and values of a file, those behind aliases each time that they stand for something
MAX_DEPTH = 40
SHORT_FORMS = {"model": "path", "base": "path", "models": "path", "teachers": "model"}  # of these, or each of: a string


class Loader(yaml.SafeLoader):
    """YAML 1.1 but for two things: 1e-5 is a number (there it has to be 1.0e-5), and no key may be given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    problem="a key is a text or a number, not a list or a mapping", problem_mark=key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(problem=f"{key.value!r} twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth = getattr(self, "_depth", 0) + 1
        if self._depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        """The document. Raises YAMLError for one that is too large once its aliases are put in (`&a` and `*a`)."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _measure(node, {})
        return node


def _measure(node: yaml.Node, sizes: dict[int, int]) -> int:
    """The values that a node stands for, itself included. `sizes`: of nodes that are known, by id; 0 while measured."""
    if (known := sizes.get(id(node))) is not None:
        if known == 0:
            raise yaml.constructor.ConstructorError(
                problem="an alias (*) is within its own anchor (&)", problem_mark=node.start_mark
            )
        return known
    sizes[id(node)] = 0
    size = 1
    inner = node.value if isinstance(node, yaml.CollectionNode) else []
    for part in inner:
        for one in part if isinstance(part, tuple) else (part,):
            size += _measure(one, sizes)
            if size > MAX_VALUES:
                raise yaml.constructor.ConstructorError(
                    problem=f"more than {MAX_VALUES:,} keys and values, aliases put in", problem_mark=node.start_mark
                )
    sizes[id(node)] = size
    return size


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), "+-0123456789"
)


def set_dotted(data: dict[str, Any], override: str) -> None:
    """Apply one `a.b.c=value` to nested dicts; the value is read as YAML. Raises ConfigError on a bad form.

    A short form on the way is spelt out: `teachers.math.domains=[math]` keeps the path that `teachers.math` holds.
    """
    path, equals, value = override.partition("=")
    *parents, last = path.split(".")
    if not equals or not all([*parents, last]) or len(parents) > MAX_DEPTH:
        raise ConfigError(f"override {override!r:.200} is not of the form key.sub=value")
    above = ""
    for key in parents:
        inner = data.get(key)
        if inner is None:
            inner = {}
        elif isinstance(inner, str) and (short := SHORT_FORMS.get(key) or SHORT_FORMS.get(above)):
            inner = {short: inner}
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {key!r} holds {inner!r}, which has no keys")
        data[key] = inner
        data, above = inner, key
    data[last] = read_yaml(value, f"override {override!r}")


def read_yaml(text: str, place: str) -> Any:
    """Raises ConfigError, on one line, that names the place when the text is not YAML."""
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        why = f"{error.context}: {error.problem}" if error.context else error.problem
    except yaml.YAMLError as error:
        at, why = "", " ".join(str(error).split())
    except ValueError as error:  # a date such as 2026-02-30
        at, why = "", str(error)
    raise ConfigError(f"{place} cannot be read as YAML{at}: {why}")


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> AnyRun:
    """Read a YAML file, apply dotted overrides and validate. Relative paths stay relative to the working folder.

    A run folder stands for its own configuration, with itself as the output, wherever it has been moved to.
    """
    return parse_run(read_config(Path(path), overrides))


def read_config(path: Path, overrides: Sequence[str] = (), below: Sequence[Path] = ()) -> dict[str, Any]:
    """A file's mapping with the overrides applied, not yet validated.

    `extends: other.yaml` starts from that file, found beside this one: each key at the top level here replaces its.
    `below`: the files that extend this one.
    """
    file = path / "config.yaml" if path.is_dir() else path
    data = read_yaml(_read_text(file), str(file))
    if not isinstance(data, dict):
        raise ConfigError(f"{file} holds no mapping at its top level")
    if path.is_dir():
        data["output"] = str(path)
    if "extends" in data:
        base = file.parent / str(data.pop("extends"))
        below = [*below, file.resolve()]
        if base.resolve() in below:
            raise ConfigError(f"{file} extends {base}, which extends it: name another file")
        data = {**read_config(base, below=below), **data}
    for override in overrides:
        set_dotted(data, override)
    return data


def _read_text(file: Path) -> str:
    """Raises ConfigError for what is no file of text, or too long a one to be a configuration."""
    if not file.is_file():
        what = f"{file} is no ordinary file" if file.exists() else f"no such file: {file}"
        raise ConfigError(f"{what}: give a run's YAML file, or a run folder")
    with file.open("rb") as handle:
        data = handle.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{file} is longer than {MAX_BYTES:,} bytes: give a run's YAML file, or a run folder")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not text in UTF-8: {error}") from None

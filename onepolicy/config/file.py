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

SHORT_FORMS = {"model": "path", "base": "path", "models": "path", "teachers": "model"}  # of these, or each of: a string


class Loader(yaml.SafeLoader):
    """YAML 1.1 but for two things: 1e-5 is a number (there it has to be 1.0e-5), and no key may be given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = []
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(problem=f"{key.value!r} twice", problem_mark=key.start_mark)
            seen.append(key.value)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), "+-0123456789"
)


def set_dotted(data: dict[str, Any], override: str) -> None:
    """Apply one `a.b.c=value` to nested dicts; the value is read as YAML. Raises ConfigError on a bad form.

    A short form on the way is spelt out: `teachers.math.domains=[math]` keeps the path that `teachers.math` holds.
    """
    path, equals, value = override.partition("=")
    *parents, last = path.split(".")
    if not equals or not all([*parents, last]):
        raise ConfigError(f"override {override!r} is not of the form key.sub=value")
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
    except RecursionError:
        at, why = "", "it is nested too deeply"
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
    if not file.is_file():
        raise ConfigError(f"no such file: {file}")
    try:
        data = read_yaml(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not text in UTF-8: {error}") from None
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

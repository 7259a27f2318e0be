"""Names that a user gives: of domains, teachers, models to merge, and arms of a study. One pattern for all of them.

They become files, folders, task ids and keys of metrics, for example `reward/math` and `overlap/math<code`. So `math`
and `code-v1.5` are names, and `a/b`, `a<b` and `.math` are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator

MAX_NAME = 64
PATTERN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", re.ASCII)
RULE = f"a name has letters a to z, digits, '_', '-' and '.', no '.' first, and at most {MAX_NAME} characters"
# `overlap/math<origin` and `overlap/math<teacher` compare a domain with these, which are no domains.
COMPARED = frozenset({"origin", "teacher"})
BESIDE = (".yaml", ".log")  # files that stand beside a run's folder and begin with its name


def check_name(name: str) -> str:
    """Raises ValueError for a text that is no name."""
    if len(name) > MAX_NAME or not PATTERN.fullmatch(name):
        raise ValueError(f"{name!r:.100} is no name: files and metrics are named after it; {RULE}")
    return name


def check_distinct(names: Iterable[str]) -> None:
    """Raises ValueError for two names that would be one file on some file systems."""
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(name.lower(), name)
        if other != name:
            raise ValueError(
                f"{other!r} and {name!r} differ only in upper and lower case, and some file systems would put them "
                "into one file: rename one of them"
            )
    for name in known.values():
        for end in BESIDE:
            if name.lower().endswith(end) and name.lower().removesuffix(end) in known:
                raise ValueError(f"{name!r} is a file of {known[name.lower().removesuffix(end)]!r}: rename one of them")


def check_domain_names(names: Iterable[str]) -> None:
    """The same for domains, whose metrics would mix with others if they had these names."""
    names = list(names)
    check_distinct(names)
    for name in names:
        if name.lower() in COMPARED:
            raise ValueError(f"a domain cannot be named {name!r}: metrics compare domains with the {name.lower()}")


Name = Annotated[str, AfterValidator(check_name)]

"""What all config classes share: immutable, no unknown keys, and faults worded so that the fix is clear."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

MAX_LISTED = 100  # names in a message


class ConfigError(ValueError):
    """The configuration is wrong; the message lists every fault with its place and the fix."""


MAX_LINES = 20  # faults of one file that are told


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """A suggestion for a misspelt name: the closest known one, else all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known are {listed(sorted(known))}"


def listed(names: Iterable[Any]) -> str:
    """Names in a message, of very many or very long ones the first: a file may have thousands of columns."""
    shown = [f"{name!s:.80}" for name in names]
    more = f" and {len(shown) - MAX_LISTED} more" if len(shown) > MAX_LISTED else ""
    return ", ".join(shown[:MAX_LISTED]) + more


def check_finite(value: Any, place: str = "") -> Any:
    """A nest of settings, if no number in it is inf or NaN. Raises ValueError that names the key."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place or 'a number'} is {value}: give a finite number")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_finite(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            check_finite(inner, f"{place}.{number}" if place else str(number))
    return value


Settings = Annotated[dict[str, Any], AfterValidator(check_finite)]  # settings that another library reads


class Strict(BaseModel):
    """Base of every config class: immutable; an unknown key and a number that is inf or NaN are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _suggest_known_keys(cls, data: Any, handler: ValidatorFunctionWrapHandler) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            # Here the class is known, and with it the keys to suggest; the same faults go on, in better words.
            faults = [
                InitErrorDetails(
                    type=PydanticCustomError(fault["type"], cls._worded(fault)), loc=fault["loc"], input=fault["input"]
                )
                for fault in error.errors()
            ]
            raise ValidationError.from_exception_data(cls.__name__, faults) from None

    @classmethod
    def _worded(cls, fault: ErrorDetails) -> str:
        if fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1:
            return f"unknown key: {did_you_mean(str(fault['loc'][0]), list(cls.model_fields))}"
        return fault["msg"]


def fault_line(fault: ErrorDetails, *above: str) -> str:
    """One fault as `place.in.the.file: what is wrong (got what)`."""
    place = ".".join([*above, *map(_part, fault["loc"])]) or "the run"
    given = "" if fault["type"] in ("value_error", "missing", "extra_forbidden") else f" (got {fault['input']!r:.200})"
    return f"{place}: {fault['msg'].removeprefix('Value error, ')}{given}"


def _part(key: str | int) -> str:
    """A part of a place, on one line however long and odd a key is."""
    return f"{key:.80}" if isinstance(key, str) and key.isprintable() else f"{key!r:.80}"


def fault_lines(faults: Sequence[ErrorDetails], *above: str) -> list[str]:
    """The faults of one configuration, a line each; of very many the first."""
    lines = [fault_line(fault, *above) for fault in faults[:MAX_LINES]]
    return lines if len(faults) <= MAX_LINES else [*lines, f"… and {len(faults) - MAX_LINES:,} more"]

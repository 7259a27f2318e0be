"""What the arguments of constraints may be, and how a file's values become them.

Files hold 3 as 3.0 (Arrow), as "3" or as a numpy integer, a keyword that is a year as a number, one keyword where a
list is meant, and None or NaN for what is not given. Anything else is a fault of the record.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, create_model

Text = Annotated[str, StringConstraints(pattern=r"\S")]  # letters may be signs: ! and #
Texts = Annotated[tuple[Text, ...], Field(min_length=1), BeforeValidator(lambda one: [one] if _is_single(one) else one)]
Count = Annotated[int, Field(ge=0)]
Ordinal = Annotated[int, Field(ge=1)]  # the first is 1

RELATIONS = ("less than", "at least")
ORDERED = (("nth_paragraph", "num_paragraphs"), ("min_words", "max_words"), ("n_start", "n_end"))  # first <= second


def _is_single(value: Any) -> bool:
    return isinstance(value, str | int | float)


def plain(value: Any) -> Any:
    """Python's own value for one of numpy or pyarrow; whole floats are integers, also in a list."""
    for method in ("tolist", "as_py"):
        if hasattr(value, method):
            value = getattr(value, method)()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def checked(name: str, function: Callable[..., bool], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a check, without those that are not given. Raises ValueError when it does not take these."""
    values = {key: plain(value) for key, value in arguments.items()}
    given = {key: value for key, value in values.items() if value is not None and value == value}  # NaN is not itself
    try:
        inspect.signature(function).bind("", **given)
        found = _model(function).model_validate(given).model_dump(exclude_unset=True)
    except TypeError as error:
        raise ValueError(f"constraint {name}: {error}, in {given}") from None
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise ValueError(f"constraint {name}: {place} is {fault['input']!r:.80}: {fault['msg']}") from None
    for key in ("relation", "let_relation", "capital_relation"):
        if found.get(key) not in (None, *RELATIONS):
            raise ValueError(f"constraint {name}: {key} is {found[key]!r}, not 'less than' or 'at least'")
    for low, high in ORDERED:
        if low in found and high in found and found[low] > found[high]:
            raise ValueError(
                f"constraint {name}: {low} {found[low]} is above {high} {found[high]}: nobody can follow it"
            )
    return found


@cache
def _model(function: Callable[..., bool]) -> type[BaseModel]:
    """A check's parameters but the text, as fields."""
    hints = get_type_hints(function, include_extras=True)
    names = list(inspect.signature(function).parameters)[1:]
    fields: dict[str, Any] = {name: (hints[name], ...) for name in names}
    return create_model("Arguments", __config__=ConfigDict(coerce_numbers_to_str=True), **fields)

"""A task source of the user's own: a class named by import path.

    tasks: {kind: custom, source: "my_tasks:Riddles", options: {level: 3}}

The class is called as `Riddles(domain=..., seed=..., level=3)` and has the four methods of `base.TaskSource`, or is a
`base.Environment`.
"""

from __future__ import annotations

import inspect
from typing import Any, Self, cast

from pydantic import Field, model_validator

from onepolicy.tasks.base import Source, SourceOptions, load_object

METHODS = ("draw", "grade", "gold", "demonstration")  # an environment has `start` instead of `grade`


class CustomOptions(SourceOptions):
    """The class, and the keywords it is called with beside `domain` and `seed`."""

    source: str
    options: dict[str, Any] = Field(default_factory=dict)

    def import_paths(self) -> list[str]:
        return [self.source]

    @model_validator(mode="after")
    def _class_takes_the_options(self) -> Self:
        source = load_object(self.source)
        instead = {"grade": "start"} if hasattr(source, "start") else {}
        methods = [instead.get(method, method) for method in METHODS]
        missing = [method for method in methods if not callable(getattr(source, method, None))]
        if missing:
            raise ValueError(f"{self.source} is no task source, it lacks {', '.join(missing)}")
        try:
            inspect.signature(source).bind(domain="", seed=0, **self.options)
        except TypeError as error:
            raise ValueError(f"{self.source} cannot be called with domain, seed and these options: {error}") from None
        return self


def custom_source(domain: str, options: CustomOptions, seed: int) -> Source:
    """Call the user's class."""
    try:
        source = load_object(options.source)(domain=domain, seed=seed, **options.options)
    except SystemExit as error:
        raise ValueError(f"domain {domain!r}: {options.source} ends the program (SystemExit: {error})") from None
    if hasattr(source, "start") and not hasattr(source, "max_turns"):
        raise ValueError(f"{options.source} starts episodes, and needs max_turns, how many turns the policy may take")
    return cast(Source, source)

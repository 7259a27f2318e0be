"""Where questions come from: the registry of task sources, and the check of their options.

Cheap to import: what a source needs (reasoning-gym, pyarrow, datasets) is imported when the source is first used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from onepolicy.config import ConfigError, DomainConfig, TasksConfig, did_you_mean
from onepolicy.tasks.base import EVAL_SEED, Source, SourceOptions
from onepolicy.tasks.calculator import CalculatorOptions, CalculatorSource
from onepolicy.tasks.code import CodeOptions, CodeSource
from onepolicy.tasks.custom import CustomOptions, custom_source
from onepolicy.tasks.instruction import InstructionOptions, InstructionSource
from onepolicy.tasks.letters import LettersOptions, LettersSource
from onepolicy.tasks.math import MathOptions, MathSource
from onepolicy.tasks.reasoning_gym import ReasoningGymOptions, ReasoningGymSource
from onepolicy.tasks.records import RecordsOptions, RecordsSource
from onepolicy.tasks.repo import RepoOptions, RepoSource
from onepolicy.tasks.verifiers.source import VerifiersOptions, VerifiersSource

__all__ = ["EVAL_SEED", "KINDS", "Source", "build_eval_source", "build_source", "check_options", "read_options"]


class Kind(NamedTuple):
    """One way to get tasks: its options, and what builds a source of (domain, options, seed)."""

    options: type[SourceOptions]
    source: Callable[[str, Any, int], Source]


KINDS: dict[str, Kind] = {
    "letters": Kind(LettersOptions, LettersSource),
    "reasoning_gym": Kind(ReasoningGymOptions, ReasoningGymSource),
    "instruction": Kind(InstructionOptions, InstructionSource),
    "math": Kind(MathOptions, MathSource),
    "records": Kind(RecordsOptions, RecordsSource),
    "calculator": Kind(CalculatorOptions, CalculatorSource),
    "code": Kind(CodeOptions, CodeSource),
    "repo": Kind(RepoOptions, RepoSource),
    "verifiers": Kind(VerifiersOptions, VerifiersSource),
    "custom": Kind(CustomOptions, custom_source),
}


def read_options(name: str, config: TasksConfig) -> SourceOptions:
    """The checked options of domain `name`. Raises ConfigError that names each faulty `domains.<name>.tasks.<key>`."""
    place = f"domains.{name}.tasks"
    if config.kind not in KINDS:
        raise ConfigError(f"{place}.kind: {config.kind!r} is no task source: {did_you_mean(config.kind, list(KINDS))}")
    options = KINDS[config.kind].options
    known = list(options.model_fields)
    unknown = [f"{place}.{key}: unknown key: {did_you_mean(key, known)}" for key in config.options if key not in known]
    if unknown:
        raise ConfigError("\n".join(unknown))
    try:
        return options.model_validate(config.options)
    except ValidationError as error:
        raise ConfigError("\n".join(_line(place, fault) for fault in error.errors())) from None


def build_source(name: str, config: TasksConfig, seed: int) -> Source:
    """The source that training draws from in domain `name`. Raises ConfigError as `read_options` does."""
    options = read_options(name, config)
    return KINDS[config.kind].source(name, options, seed)


def build_eval_source(name: str, config: TasksConfig) -> Source:
    """The source that evaluation draws from: the same for every run's seed."""
    options = read_options(name, config).held_out()
    return KINDS[config.kind].source(name, options, EVAL_SEED)


def check_options(domains: Mapping[str, DomainConfig]) -> None:
    """Check the options of all domains and build nothing. Raises ConfigError with every fault."""
    faults = []
    for name, domain in domains.items():
        try:
            read_options(name, domain.tasks)
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))


def _line(place: str, fault: Any) -> str:
    where = ".".join([place, *map(str, fault["loc"])])
    given = "" if fault["type"] in ("value_error", "missing") else f" (got {fault['input']!r})"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}{given}"

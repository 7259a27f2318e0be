"""What a run can be: every recipe's name and its config class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from onepolicy.config.methods import CascadeConfig, MergeConfig, OffpolicyConfig
from onepolicy.config.recipes import CopdConfig, MixRlConfig, MopdConfig, RlvrConfig, SftConfig
from onepolicy.config.strict import ConfigError, did_you_mean, fault_lines

AnyRun = SftConfig | RlvrConfig | MixRlConfig | CascadeConfig | OffpolicyConfig | MergeConfig | MopdConfig | CopdConfig
RECIPES: dict[str, type[AnyRun]] = {
    "sft": SftConfig,
    "rlvr": RlvrConfig,
    "mix_rl": MixRlConfig,
    "cascade_rl": CascadeConfig,
    "offpolicy": OffpolicyConfig,
    "merge": MergeConfig,
    "mopd": MopdConfig,
    "copd": CopdConfig,
}


def parse_run(data: Mapping[str, Any]) -> AnyRun:
    """Validate a run. Raises ConfigError that lists every fault, one a line, each with its place."""
    recipe = data.get("recipe")
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise ConfigError(f"recipe: {recipe!r} is not a recipe: {did_you_mean(str(recipe), list(RECIPES))}")
    try:
        return RECIPES[recipe].model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(fault_lines(error.errors()))) from None

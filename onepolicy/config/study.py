"""A study: origin, experts and arms on the same domains, seeds and budget, in one YAML file. No torch here.

    seeds: [0, 1, 2]
    domains: {sort: {tasks: …}, expand: {tasks: …}}
    common: {rollout: {max_new_tokens: 24}, eval: {n: 8, every: 10}}   # under every run whose recipe has the key
    origin: {recipe: sft, model: {scratch: …}, steps: 350}             # or a checkpoint: a path, or {path: …}
    experts: {train: {steps: 120, rollout: {prompts: 16}}}             # rlvr, one per domain; or given: {sort: path}
    budget: {rule: sequences, amount: 14400}
    arms:
      mopd: {recipe: mopd, optim: {learning_rate: 5.0e-4}}
      copd: {recipe: copd}
      second: {recipe: mopd, model: $arms.mopd}                        # also $origin, $experts.sort, $arms.copd.sort

An arm is a run's configuration without what the study gives: seed, output, domains, where it starts ($origin), who
teaches it (the experts). With `seeds: [0, 1]` it runs with these of the study's only. `plan.py` makes the runs.
Careful: `common` beats a recipe's own defaults, so that common.rollout.n would be mopd's too. For differences to
another arm, run again with reference_arm=copd: nothing is retrained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from onepolicy.config.common import Domains, ModelConfig
from onepolicy.config.file import read_config
from onepolicy.config.names import Name, check_distinct
from onepolicy.config.registry import RECIPES
from onepolicy.config.strict import ConfigError, Strict, did_you_mean, fault_lines

Fragment = dict[str, Any]  # of a run's configuration
Device = Annotated[str, StringConstraints(pattern=r"^(cpu|cuda|cuda:\d+)$")]


class BudgetConfig(Strict):
    """What every arm may spend: the most steps that fit are its `steps`.

    rule     sequences  that the arm writes (cross rollouts of copd too) or, imitating, is shown
             updates    steps of an optimizer, of every branch
             tokens     written, as estimated from `lengths`, the mean response length of each domain; the report shows
                        what was really written
    experts  apart: an arm's budget is its own; included: the experts that it reads are paid from it
    An arm may have a multiple of the amount: `budget: 3` in the arm. What trains nothing (merge) spends nothing.
    """

    rule: Literal["sequences", "updates", "tokens"]
    amount: PositiveInt
    experts: Literal["apart", "included"] = "apart"
    lengths: dict[str, PositiveFloat] | None = None

    @model_validator(mode="after")
    def _lengths_are_for_tokens(self) -> Self:
        if (self.rule == "tokens") != (self.lengths is not None):
            raise ValueError(f"rule {self.rule}: `lengths` (domain: mean response length) belong to tokens, and there")
        return self


class ExpertsConfig(Strict):
    """One expert per domain: trained from the origin (`train`, and `each` domain's own changes), or given."""

    train: Fragment = Field(default_factory=dict)
    each: dict[str, Fragment] = Field(default_factory=dict)
    given: dict[str, ModelConfig] = Field(default_factory=dict)


class StudyConfig(Strict):
    """See the top of this file.

    parallel  processes at a time, of one thread each: as many as there are devices, 2 where none are given
    devices   cpu, cuda:N, …: each process takes one that is free, in the place of its run's `device`; if `parallel`
              is larger than their number, they are shared evenly
    """

    title: str = "Many experts in, one policy out"
    output: Path
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]
    domains: Domains = Field(min_length=1)
    origin: str | Fragment
    experts: ExpertsConfig = ExpertsConfig()
    arms: dict[Name, Fragment] = Field(min_length=1)
    common: Fragment = Field(default_factory=dict)
    budget: BudgetConfig | None = None
    reference_arm: str = "mopd"
    parallel: PositiveInt | None = None
    devices: list[Device] = Field(default_factory=list)

    @property
    def processes(self) -> int:
        return self.parallel or len(self.devices) or 2

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        check_distinct(self.arms)
        faults = []
        if len(set(self.seeds)) < len(self.seeds):
            faults.append(f"seeds {self.seeds} names a seed twice: name each once")
        if self.reference_arm not in self.arms:
            meant = did_you_mean(self.reference_arm, list(self.arms))
            faults.append(f"reference_arm {self.reference_arm!r} is no arm: {meant}")
        places: dict[str, Sequence[str]] = {"experts.each": list(self.experts.each)}
        places["experts.given"] = list(self.experts.given)
        places["budget.lengths"] = list(self.budget.lengths or {}) if self.budget else []
        for place, names in places.items():
            for name in names:
                if name not in self.domains:
                    faults.append(f"{place} names {name!r}: {did_you_mean(name, list(self.domains))}")
        if places["budget.lengths"] and (missing := self.domains.keys() - set(places["budget.lengths"])):
            faults.append(f"budget.lengths has none for {', '.join(sorted(missing))}: give every domain one")
        for name in self.arms:
            arm, _, branch = name.rpartition(".")
            if arm in self.arms and branch in self.domains:
                faults.append(f"arms.{name}: $arms.{name} also means branch {branch!r} of arm {arm!r}: rename it")
            seeds = self.arms[name].get("seeds", self.seeds)
            if not isinstance(seeds, list) or not seeds or not all(seed in self.seeds for seed in seeds):
                faults.append(f"arms.{name}.seeds {seeds!r}: a list of seeds of the study, which has {self.seeds}")
        known = {field for recipe in RECIPES.values() for field in recipe.model_fields}
        faults += [f"common.{key}: {did_you_mean(key, sorted(known))}" for key in self.common if key not in known]
        if faults:
            raise ValueError("; ".join(faults))
        return self


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study's YAML file, apply dotted overrides and validate; its runs are validated by `plan`."""
    try:
        return StudyConfig.model_validate(read_config(Path(path), overrides))
    except ValidationError as error:
        raise ConfigError("\n".join(fault_lines(error.errors()))) from None

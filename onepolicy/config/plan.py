"""The runs of a study: each an ordinary configuration in a folder of its own, validated before any of them starts.

    <output>/seed-0/origin   /seed-0/experts/<domain>   /seed-0/arms/<name>   and, once for all seeds, what is given:
    <output>/given/origin    /given/<domain>            copies (a merge of one model), so that they are evaluated too

Every run evaluates every domain: where it does not train on one, that has share 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onepolicy.config.budget import steps_within, total_cost
from onepolicy.config.common import TaughtConfig
from onepolicy.config.methods import CascadeConfig, MergeConfig, OffpolicyConfig
from onepolicy.config.registry import RECIPES, AnyRun, parse_run
from onepolicy.config.strict import ConfigError, did_you_mean
from onepolicy.config.study import Fragment, StudyConfig

FROM_STUDY = ("seed", "output")  # what a fragment may not say


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """`name` is its place under the study's output; `after` names the runs whose results it reads."""

    name: str
    config: AnyRun
    after: tuple[str, ...] = ()


def plan(study: StudyConfig) -> list[PlannedRun]:
    """All runs, each after those that it reads. Raises ConfigError that lists the faults of all of them."""
    faults: list[str] = []
    runs: dict[str, PlannedRun] = {}
    for seed in study.seeds:
        _Expansion(study, seed, runs, faults).expand()
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))  # what is wrong is wrong for every seed
    return list(runs.values())


def run_names(study: StudyConfig, seed: int) -> dict[str, str]:
    """What `$origin`, `$experts.<domain>` and `$arms.<name>` are called."""
    given = study.experts.given
    names = {"origin": f"seed-{seed}/origin" if _is_trained(study) else "given/origin"}
    names |= {f"experts.{d}": f"given/{d}" if d in given else f"seed-{seed}/experts/{d}" for d in study.domains}
    return names | {f"arms.{n}": f"seed-{seed}/arms/{n}" for n in study.arms if seed in seeds_of(study, n)}


def seeds_of(study: StudyConfig, arm: str) -> list[int]:
    """The study's seeds, or those of its seeds that the arm names."""
    seeds: list[int] = study.arms[arm].get("seeds", study.seeds)
    return seeds


def upstream(runs: Mapping[str, PlannedRun], name: str) -> list[str]:
    """All that a run reads, directly or not, in the order of the plan."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = set(runs[waiting.pop()].after) - found
        found |= new
        waiting += new
    return [other for other in runs if other in found]


def _is_trained(study: StudyConfig) -> bool:
    return not isinstance(study.origin, str) and "recipe" in study.origin


class _Expansion:
    """One seed's part of the plan. Faults are collected, so that a study's author sees them all at once."""

    def __init__(self, study: StudyConfig, seed: int, runs: dict[str, PlannedRun], faults: list[str]) -> None:
        self.study, self.seed, self.runs, self.faults = study, seed, runs, faults
        self.names = run_names(study, seed)
        self.domains = {name: domain.model_dump(mode="json") for name, domain in study.domains.items()}
        self.known: dict[str, Any] = {}  # what a reference stands for

    def expand(self) -> None:
        study = self.study
        if _is_trained(study):
            assert isinstance(study.origin, dict), "checked by _is_trained"
            self._add("origin", study.origin)
        else:
            self._copy("origin", study.origin)
        for domain in study.domains:
            if domain in study.experts.given:
                self._copy(f"experts.{domain}", study.experts.given[domain].model_dump(mode="json", exclude_unset=True))
                continue
            own = layered({"recipe": "rlvr", "model": "$origin"}, study.experts.train)
            own = layered({"domains": self._only(domain)}, own, study.experts.each.get(domain, {}))
            self._add(f"experts.{domain}", own)
        for name, arm in study.arms.items():
            if self.seed in seeds_of(study, name):
                self._arm(f"arms.{name}", arm)

    def _arm(self, place: str, arm: Fragment) -> None:
        """What the study gives: a start, teachers, the order of a cascade, steps."""
        arm = {key: value for key, value in arm.items() if key != "seeds"}
        factor, kind = arm.pop("budget", 1), RECIPES.get(str(arm.get("recipe")))
        experts = {domain: f"$experts.{domain}" for domain in self.domains}
        given: Fragment = {} if kind is MergeConfig else {"model": "$origin"}
        if kind is MergeConfig:
            given = {"base": "$origin", **({} if "models" in arm else {"models": experts})}
        elif kind is not None and issubclass(kind, TaughtConfig) and "teachers" not in arm:
            given["teachers"] = {domain: {"model": model} for domain, model in experts.items()}
        elif kind is CascadeConfig:
            given["order"] = list(self.domains)
        if self.study.budget is None or kind is MergeConfig:
            self._add(place, layered(given, arm))
        elif not isinstance(factor, int | float) or isinstance(factor, bool) or factor <= 0:
            self.faults.append(f"{place}.budget: a multiple of the study's amount, not {factor!r}")
        elif "steps" in arm:
            self.faults.append(f"{place}.steps: the study's budget sets them: remove it, or say `budget: 2` for twice")
        else:
            self._add(place, layered(given, arm), float(factor))

    def _only(self, domain: str) -> dict[str, Any]:
        return {name: {"share": 0.0} for name in self.domains if name != domain}

    def _copy(self, key: str, model: Any) -> None:
        """A given checkpoint: read where it lies, and copied once to be evaluated."""
        model = {"path": model} if isinstance(model, str) else model
        self.known[key] = model
        stored = {name: value for name, value in model.items() if name != "dtype"}  # a teacher's is not a copy's
        data = {"recipe": "merge", "base": stored, "models": {"given": stored}, "method": "average"}
        if self.names[key] not in self.runs:
            self._add(key, data, keep=model)

    def _add(self, key: str, own: Fragment, factor: float | None = None, keep: Any = None) -> None:
        """Complete, validate and plan one run; its faults go to the others."""
        name, recipe = self.names[key], own.get("recipe")
        self.faults += [f"{key}.{word}: the study gives it: remove it" for word in FROM_STUDY if word in own]
        fields = RECIPES[recipe].model_fields if isinstance(recipe, str) and recipe in RECIPES else {}
        common = {word: value for word, value in self.study.common.items() if word in fields}
        data = layered({"domains": self.domains}, common, own)
        # copies are shared by the seeds, and have the seed 0
        data |= {"output": str(self.study.output / name), "seed": 0 if keep else self.seed}
        after: dict[str, None] = {}
        try:
            data = self._resolved(data, after)
            config = parse_run(data if factor is None else {**data, "steps": 1})
            if factor is not None:
                config = parse_run({**data, **self._within_budget(config, data, tuple(after), factor)})
        except ConfigError as error:
            self.faults += [f"{key}.{line}" for line in str(error).splitlines()]
            self.known.setdefault(key, "unknown")  # its own fault is told; who reads it needs none
            return
        self.runs[name] = PlannedRun(name, config, tuple(after))
        self.known[key] = keep or str(self.study.output / name / "model")

    def _resolved(self, value: Any, after: dict[str, None]) -> Any:
        """References replaced by what they stand for; the runs that they name are put into `after`."""
        if isinstance(value, dict):
            return {key: self._resolved(inner, after) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._resolved(inner, after) for inner in value]
        if not isinstance(value, str) or not value.startswith("$"):
            return value
        key, branch = value[1:], ""
        if key not in self.known and key.startswith("arms."):
            key, _, branch = key.rpartition(".")
        if key not in self.known:
            names = ["$" + name for name in self.known]
            later = " (an arm reads those above it)" if value[1:] in self.names else ""
            raise ConfigError(f"{value}: names no run of this study{later}: {did_you_mean(value, names)}")
        if self.names[key] in self.runs:
            after[self.names[key]] = None
        place = self.known[key]
        if branch and isinstance(place, str):
            return place.removesuffix("model") + f"branches/{branch}/model"
        return dict(place) if isinstance(place, dict) else place

    def _within_budget(self, config: AnyRun, data: Fragment, after: tuple[str, ...], factor: float) -> Fragment:
        """The steps that the budget buys and, for imitation, one teacher's answer for each sequence shown."""
        budget = self.study.budget
        assert budget is not None, "an arm has a factor only if there is a budget"
        amount = paid = budget.amount * factor
        if budget.experts == "included":
            read = {*after, *(name for run in after for name in upstream(self.runs, run))} - {self.names["origin"]}
            amount -= sum(total_cost(self.runs[name].config, budget) for name in read)
        steps = steps_within(config, budget, amount)
        if steps == 0:
            left = f", of which {amount:g} are left after the experts" if amount < paid else ""
            raise ConfigError(f"budget: {paid:g} {budget.rule}{left} do not buy one step: raise budget.amount")
        if not isinstance(config, OffpolicyConfig) or "rollouts_per_domain" in data:
            return {"steps": steps}
        drawn = sum(1 for domain in config.domains.values() if domain.share)
        groups = max(1, round(steps * config.batch_size / drawn / config.rollout.n))
        return {"steps": steps, "rollouts_per_domain": groups * config.rollout.n}


def layered(*fragments: Mapping[str, Any]) -> dict[str, Any]:
    """Fragments on top of one another, mapping by mapping; the later one counts."""
    result: dict[str, Any] = {}
    for fragment in fragments:
        for key, value in fragment.items():
            below = result.get(key)
            result[key] = layered(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return result

"""What a study left on disk: `study.json`, which names its run folders, and what of them is there already.

{"title", "domains": [...], "reference": "mopd", "budget": "...", "seeds": {"0": {"origin": "seed-0/origin",
 "experts": {domain: folder}, "arms": {name: folder}}}, "reads": {arm: ["experts.sort", ...]},
 "allowed": {"rule": "tokens", "experts": "apart", "arms": {name: amount}}}   the last empty without a budget
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onepolicy.evaluation import Evaluation
from onepolicy.normalised import paired_means
from onepolicy.report.folders import RunFolder, eval_step, evaluation_of
from onepolicy.types import Array
from onepolicy.written import seconds_in


@dataclass(frozen=True, slots=True)
class SeedRuns:
    """What has finished with one seed: the origin and all experts, and some of the arms."""

    origin: RunFolder
    experts: dict[str, RunFolder]
    arms: dict[str, RunFolder]


@dataclass(frozen=True, slots=True)
class StudyFolder:
    """`arms` in the file's order, those that have finished with at least one seed. `missing` says which have not."""

    path: Path
    facts: dict[str, Any]
    seeds: dict[int, SeedRuns]
    missing: list[str]

    @classmethod
    def read(cls, path: Path) -> StudyFolder:
        """Raises ValueError when there is nothing to compare yet."""
        facts = json.loads((path / "study.json").read_text(encoding="utf-8"))
        seeds: dict[int, SeedRuns] = {}
        missing: list[str] = []
        for seed, places in facts["seeds"].items():
            origin, experts, arms = places["origin"], places["experts"], places["arms"]
            absent = [place for place in (origin, *experts.values(), *arms.values()) if not _is_done(path / place)]
            missing += absent
            if not {origin, *experts.values()} & set(absent):
                seeds[int(seed)] = SeedRuns(
                    RunFolder.read(path / origin),
                    {domain: RunFolder.read(path / place) for domain, place in experts.items()},
                    {name: RunFolder.read(path / place) for name, place in arms.items() if place not in absent},
                )
        study = cls(path, facts, seeds, list(dict.fromkeys(missing)))
        if not study.arms:
            raise ValueError(
                f"{path} has nothing to compare yet: with no seed have origin, all experts and one arm finished"
            )
        return study

    @property
    def domains(self) -> list[str]:
        return list(self.facts["domains"])

    @property
    def reference(self) -> str:
        return str(self.facts["reference"])

    @property
    def arms(self) -> list[str]:
        order = dict.fromkeys(arm for places in self.facts["seeds"].values() for arm in places["arms"])
        return [name for name in order if self.seeds_of(name)]

    def seeds_of(self, *arms: str) -> list[int]:
        """The seeds with which all of these arms have finished."""
        return [seed for seed, runs in self.seeds.items() if all(arm in runs.arms for arm in arms)]

    def runs(self, arm: str) -> list[RunFolder]:
        return [self.seeds[seed].arms[arm] for seed in self.seeds_of(arm)]


def parts(study: StudyFolder, arm: str) -> dict[str, list[Evaluation]]:
    """What an arm was evaluated as besides its result: copd's branches, a cascade's stages, the lambdas of a sweep.

    Name → an evaluation per seed of the arm; only what all of these have.
    """
    by_seed: list[dict[str, Evaluation]] = []
    for run in study.runs(arm):
        named = {label: e for label, e in run.evaluations.items() if label != "final" and eval_step(label) is None}
        for branch in sorted((run.path / "branches").glob("*/eval/final.json")):
            name = f"branch {branch.parent.parent.name}"
            named[name] = Evaluation.from_json(branch.read_text(encoding="utf-8"))
        by_seed.append(named)
    return {name: [one[name] for one in by_seed] for name in by_seed[0] if all(name in one for one in by_seed)}


def _is_done(run: Path) -> bool:
    return (run / "done.json").is_file() and (run / "eval" / "final.json").is_file()


def means_SQ(evaluations: list[Evaluation], domain: str) -> Array:
    """Mean reward per question, a row per seed; without those that a run has no reward for.

    Raises ValueError unless all answered the same questions.
    """
    asked = [[question.id for question in evaluation.domains[domain].questions] for evaluation in evaluations]
    if any(ids != asked[0] for ids in asked):
        raise ValueError(f"domain {domain!r}: not all runs answered the same questions: evaluate all on the same tasks")
    return paired_means(evaluations, domain)


def final(runs: list[RunFolder]) -> list[Evaluation]:
    return [evaluation_of(run) for run in runs]


def done(run: RunFolder) -> dict[str, Any]:
    """What the run spent and scored. An off-policy run's sequences are those its teachers wrote, in its seconds too."""
    facts: dict[str, Any] = json.loads((run.path / "done.json").read_text(encoding="utf-8"))
    summary = run.path / "rollouts" / "summary.json"
    if summary.is_file():
        written = json.loads(summary.read_text(encoding="utf-8")).values()
        facts["sequences"] = sum(domain["rollouts"] for domain in written)
        facts["tokens"] = sum(domain["tokens"] for domain in written)
        facts["seconds"] += seconds_in(summary.parent)
    return facts


@dataclass(frozen=True, slots=True)
class Point:
    """An evaluation on the way: what had been spent by then, mean over seeds, and the evaluations, one per seed.

    `start`: it is of the model that the arm starts from, and nothing of its own.
    """

    spent: dict[str, float]
    evaluations: list[Evaluation]
    start: bool = False


def start_of(study: StudyFolder, arm: str, seed: int) -> Evaluation | None:
    """What the model that an arm starts from was evaluated as; None for a model that is not of this study.

    A run's configuration names its output and that model as they lay when it was run; a study may have moved since.
    """
    runs = study.seeds[seed]
    config = runs.arms[arm].config
    model = config.get("base") or config["model"]
    for given in (runs.origin, *runs.experts.values()):  # a copy's base is the given model
        if given.config.get("base") == model:
            return evaluation_of(given)
    there, place = Path(config["output"]).parents[2], Path(model.get("path") or "")  # of <study>/seed-0/arms/NAME
    if not place.is_relative_to(there):
        return None
    file = study.path / place.relative_to(there).parent / "eval" / "final.json"
    return Evaluation.from_json(file.read_text(encoding="utf-8")) if file.is_file() else None


def points(study: StudyFolder, arm: str, seeds: list[int] | None = None) -> list[Point]:
    """From where it starts, with nothing spent, over the periodic evaluations of all seeds, to the end.

    Without the start, where that is no model of this study.
    """
    seeds = study.seeds_of(arm) if seeds is None else seeds
    runs = [study.seeds[seed].arms[arm] for seed in seeds]
    keys = ("sequences", "tokens", "seconds")
    starts = [one for seed in seeds if (one := start_of(study, arm, seed)) is not None]
    found = [Point(dict.fromkeys(keys, 0.0), starts, start=True)] if len(starts) == len(seeds) else []
    rows = [{row["step"]: row for row in run.metrics} for run in runs]
    for label in runs[0].evaluations:
        step = eval_step(label)
        if step is None or not all(label in run.evaluations and step in r for run, r in zip(runs, rows, strict=True)):
            continue
        if any((run.path / "rollouts").is_dir() for run in runs):
            continue  # its sequences were all written before its first step
        at = [row[step] for row in rows]
        spent = {key: float(np.mean([row["time" if key == "seconds" else key] for row in at])) for key in keys}
        found.append(Point(spent, [run.evaluations[label] for run in runs]))
    spent = {key: float(np.mean([done(run)[key] for run in runs])) for key in keys}
    return [*found, Point(spent, final(runs))]

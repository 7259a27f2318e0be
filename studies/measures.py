"""What the rows of docs/results.md are computed with: models of a study, their scores and differences, curves.

Nothing here resamples: seeds and questions are drawn in onepolicy/report/intervals.py. A model is a `Pick`, a function
from one seed's runs to an evaluation, or None where it has not been made; so a model may be an arm, one branch of it,
or several models that are each asked about their own domain. Run by studies/rows.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from safetensors.numpy import load_file

from onepolicy.evaluation import Estimate, Evaluation, percentile_interval
from onepolicy.report.folders import RunFolder, eval_step, evaluation_of
from onepolicy.report.intervals import Difference, Draws, Scores, minus, over_seeds, scores_of
from onepolicy.report.study import SeedRuns, StudyFolder
from onepolicy.types import Array

Pick = Callable[[SeedRuns], Evaluation | None]
ENDS = 0.1  # "first" and "last" of a curve are means over this share of its points

# -- models ------------------------------------------------------------------------------------------------------------


def origin(runs: SeedRuns) -> Evaluation | None:
    return evaluation_of(runs.origin)


def arm(name: str, label: str = "final") -> Pick:
    """An arm's evaluation, or another one that it has made: `step-10`, `lambda-0.3`, a cascade's `1-ascend`."""
    return lambda runs: runs.arms[name].evaluations.get(label) if name in runs.arms else None


def branch(name: str, domain: str) -> Pick:
    """What the branch of a domain was evaluated as, before the merge."""

    def pick(runs: SeedRuns) -> Evaluation | None:
        file = runs.arms[name].path / "branches" / domain / "eval" / "final.json" if name in runs.arms else None
        return Evaluation.from_json(file.read_text(encoding="utf-8")) if file and file.is_file() else None

    return pick


def expert(domain: str) -> Pick:
    return lambda runs: evaluation_of(runs.experts[domain])


def own_domains(picks: Mapping[str, Pick]) -> Pick:
    """Several models as if they were one: each answers the questions of its own domain."""

    def pick(runs: SeedRuns) -> Evaluation | None:
        found = {domain: evaluation for domain, one in picks.items() if (evaluation := one(runs))}
        if len(found) < len(picks):
            return None
        scores = {domain: evaluation.domains[domain] for domain, evaluation in found.items()}
        return replace(next(iter(found.values())), domains=scores, samples=())

    return pick


def experts(study: StudyFolder) -> Pick:
    return own_domains({domain: expert(domain) for domain in study.domains})


def known(study: StudyFolder, *arms: str) -> list[str]:
    """Those that the study has, finished or not."""
    named = {arm for places in study.facts["seeds"].values() for arm in places["arms"]}
    return [arm for arm in arms if arm in named]


# -- scores ------------------------------------------------------------------------------------------------------------


def seeds_with(study: StudyFolder, *picks: Pick) -> list[int]:
    """The seeds for which all of these models have been evaluated."""
    return [seed for seed, runs in study.seeds.items() if all(pick(runs) is not None for pick in picks)]


def evaluations(study: StudyFolder, pick: Pick, seeds: Sequence[int]) -> list[Evaluation]:
    return [found for seed in seeds if (found := pick(study.seeds[seed]))]


def scores(study: StudyFolder, pick: Pick, seeds: list[int] | None = None) -> Scores | None:
    """None where no seed has the model."""
    seeds = seeds_with(study, pick) if seeds is None else seeds
    return scores_of(study, evaluations(study, pick, seeds), seeds) if seeds else None


def paired(study: StudyFolder, ours: Pick, theirs: Pick) -> Difference | None:
    """Ours minus theirs on the seeds that both have."""
    seeds = seeds_with(study, ours, theirs)
    both = [scores(study, pick, seeds) for pick in (ours, theirs)]
    return minus(both[0], both[1]) if both[0] and both[1] else None


def above_zero(study: StudyFolder, ours: Pick, theirs: Pick) -> tuple[int, int]:
    """With how many seeds ours has the higher mean score, and of how many."""
    seeds = seeds_with(study, ours, theirs)
    pairs = zip(evaluations(study, ours, seeds), evaluations(study, theirs, seeds), strict=True)
    gains = [np.mean([a.means()[d] - b.means()[d] for d in study.domains]) for a, b in pairs]
    return sum(bool(gain > 0) for gain in gains), len(seeds)


def chances(values_MB: Mapping[str, Array]) -> dict[str, float]:
    """In which share of the draws each model's value is the highest."""
    draws_MB = np.stack(list(values_MB.values()))
    best_B = np.nanargmax(np.where(np.isnan(draws_MB), -np.inf, draws_MB), axis=0)
    return {name: float((best_B == number).mean()) for number, name in enumerate(values_MB)}


# -- curves and numbers of one run -------------------------------------------------------------------------------------


def over(study: StudyFolder, number: Callable[[SeedRuns], float | None]) -> tuple[Estimate | None, int]:
    """The mean over the seeds that have the number, with its interval over seeds; and how many they are."""
    found = [number(runs) for runs in study.seeds.values()]
    values_S = np.array([value for value in found if value is not None and np.isfinite(value)])
    return (over_seeds(values_S) if len(values_S) else None), len(values_S)


def of_arm(name: str, number: Callable[[RunFolder], float | None]) -> Callable[[SeedRuns], float | None]:
    return lambda runs: number(runs.arms[name]) if name in runs.arms else None


def preflight(domain: str, key: str) -> Callable[[RunFolder], float | None]:
    """What was measured of a domain's teacher before the first step (teachers.json)."""

    def number(run: RunFolder) -> float | None:
        file = run.path / "teachers.json"
        reports = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
        return next((report[key] for report in reports if report["domain"] == domain), None)

    return number


def mean(key: str) -> Callable[[RunFolder], float | None]:
    """The mean of a metric over the steps that logged it."""

    def number(run: RunFolder) -> float | None:
        values = run.curve(key)[1]
        return float(values.mean()) if len(values) else None

    return number


def first(key: str) -> Callable[[RunFolder], float | None]:
    return lambda run: ends(run.curve(key)[1])[0]


def last(key: str) -> Callable[[RunFolder], float | None]:
    return lambda run: ends(run.curve(key)[1])[1]


def ends(values: Array, share: float = ENDS) -> tuple[float | None, float | None]:
    """Means over the first and over the last tenth of the values, of one value at least."""
    if not len(values):
        return None, None
    count = max(1, round(share * len(values)))
    return float(values[:count].mean()), float(values[len(values) - count :].mean())


def slope(x: Array, y: Array) -> float | None:
    """Of the least-squares line; None for fewer than two points."""
    return float(np.polyfit(x, y, 1)[0]) if len(x) > 1 else None


def largest_drop(values: Array) -> float:
    """How far the curve has ever been below its own best until then."""
    return float(np.max(np.maximum.accumulate(values) - values))


def as_of(x: Array, y: Array, at: float) -> float | None:
    """The latest value at or before `at`; None before the first."""
    before = np.flatnonzero(x <= at)
    return float(y[before[-1]]) if len(before) else None


def phase_ends(opd: Array, values: Array) -> tuple[Array, Array]:
    """The values at the ends of RL phases and of OPD phases.

    Careful: a step measures before its update, so a phase's end is measured in the first step of the next one.
    """
    changes = np.diff((opd > 0).astype(int))
    return values[1:][changes > 0], values[1:][changes < 0]


def curve(run: RunFolder, domain: str) -> Array:
    """A domain's score at every evaluation on the way of a run, the end last."""
    on_the_way = [e for label, e in run.evaluations.items() if label == "final" or eval_step(label) is not None]
    return np.array([evaluation.domains[domain].mean for evaluation in on_the_way])


# -- correlations ------------------------------------------------------------------------------------------------------


def pearson(x_SP: Array, y_SP: Array, weights_BS: Array) -> Array:
    """Pearson's r over all points in every draw; a draw takes seeds, each with its points. nan without spread."""
    w_BSP = np.repeat(weights_BS[:, :, None], x_SP.shape[1], axis=2)
    w_BSP = w_BSP / w_BSP.sum(axis=(1, 2), keepdims=True)

    def centred(v_SP: Array) -> Array:
        return np.asarray(v_SP - (w_BSP * v_SP).sum(axis=(1, 2), keepdims=True))

    x_BSP, y_BSP = centred(x_SP), centred(y_SP)
    xx_B, yy_B, xy_B = ((w_BSP * a * b).sum(axis=(1, 2)) for a, b in ((x_BSP,) * 2, (y_BSP,) * 2, (x_BSP, y_BSP)))
    with np.errstate(invalid="ignore", divide="ignore"):
        r_B: Array = xy_B / np.sqrt(xx_B * yy_B)
    return r_B


def partial(xy: Array, xz: Array, yz: Array) -> Array:
    """The correlation of x and y that is left when both are freed from what z explains linearly."""
    with np.errstate(invalid="ignore", divide="ignore"):
        left: Array = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    return left


def correlation(*columns_SP: Array) -> Estimate:
    """r of the first two; with a third, their partial correlation given the third. Seeds are drawn, with all points.

    nan where it is undefined: a column without spread, or one that the third explains wholly.
    """

    def value(weights_BS: Array) -> Array:
        r = [pearson(a, b, weights_BS) for a, b in combinations(columns_SP, 2)]
        return r[0] if len(r) == 1 else partial(*r)

    seeds = len(columns_SP[0])
    drawn_B = value(Draws(seeds).seeds_BS)
    ends = percentile_interval(drawn_B) if np.isfinite(drawn_B).any() else (np.nan, np.nan)
    return Estimate(float(value(np.full((1, seeds), 1 / seeds))[0]), *ends)


# -- weights -----------------------------------------------------------------------------------------------------------


def task_vectors(runs: SeedRuns) -> tuple[float, float] | None:
    """‖mean of the experts' task vectors‖ ÷ their mean ‖·‖, and their mean cosine. None where weights are missing.

    A task vector is expert minus origin. Averaging K of them keeps 1/√K of the length when they are orthogonal.
    """
    files = [run.path / "model" / "model.safetensors" for run in (runs.origin, *runs.experts.values())]
    if not all(file.is_file() for file in files):
        return None
    flat = [np.concatenate([w.astype(np.float64).ravel() for _, w in sorted(load_file(f).items())]) for f in files]
    vectors = [values - flat[0] for values in flat[1:]]
    lengths = [float(np.linalg.norm(vector)) for vector in vectors]
    cosines = [vectors[i] @ vectors[j] / (lengths[i] * lengths[j]) for i, j in combinations(range(len(vectors)), 2)]
    return float(np.linalg.norm(np.mean(vectors, axis=0)) / np.mean(lengths)), float(np.mean(cosines))

"""Normalised scores of a study's arms over seeds, with intervals that cover seeds and evaluation questions.

One bootstrap draw takes seeds with replacement and, in each domain, questions with replacement. Seeds and questions
are crossed (every seed and every model answers the same held-out questions), so one draw of each serves origin,
teachers and arms alike, and what two arms differ by is a paired difference. Scores are averaged over seeds before they
are normalised: s̃_d = (s̄_d - s̄_d^SFT) / (s̄_d^teacher - s̄_d^SFT). With one seed the interval covers questions alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from onepolicy.evaluation import RESAMPLES, Estimate, Evaluation, percentile_interval
from onepolicy.normalised import NoGainError, Normalised, recovered, summed_up
from onepolicy.report.study import StudyFolder, final, means_SQ, points
from onepolicy.types import Array

REACHED = 0.95  # of the teachers


class Draws:
    """How often each draw takes each seed [B, S] and each question [B, Q], as shares of 1."""

    def __init__(self, seeds: int, resamples: int = RESAMPLES) -> None:
        self.resamples = resamples
        self.seeds_BS = _shares(seeds, resamples, (0, seeds))
        self._questions: dict[str, Array] = {}

    def of(self, values_SQ: Array, domain: str) -> Array:
        """The mean over seeds and questions in every draw."""
        count = values_SQ.shape[1]
        if domain not in self._questions:  # the same whichever models and seeds are compared
            self._questions[domain] = _shares(count, self.resamples, (1, *domain.encode()))
        mean_B: Array = ((self.seeds_BS @ values_SQ) * self._questions[domain]).sum(axis=1)
        return mean_B


@cache  # the same few draws serve every score of a study
def _shares(count: int, resamples: int, seed: tuple[int, ...]) -> Array:
    rng = np.random.default_rng(seed)
    shares: Array = rng.multinomial(count, np.full(count, 1 / count), size=resamples) / count
    shares.flags.writeable = False
    return shares


def over_seeds(values_S: Array) -> Estimate:
    """The mean of one number per seed. The interval covers seeds alone, and says nothing with one seed."""
    return Estimate(float(values_S.mean()), *percentile_interval(Draws(len(values_S)).seeds_BS @ values_S))


@dataclass(frozen=True, slots=True)
class Scores:
    """Of one model, as means over its seeds: raw per domain, and normalised where the teachers gained something.

    norm_B and range_B are the draws of Norm and range, None where a domain has no normalised score.
    """

    seeds: list[int]
    raw: dict[str, float]
    raw_B: dict[str, Array]
    kept: dict[str, float]
    kept_B: dict[str, Array]
    normalised: Normalised

    @property
    def norm_B(self) -> Array | None:
        if self.normalised.norm is None:
            return None
        with np.errstate(invalid="ignore"):
            return np.stack(list(self.kept_B.values())).mean(axis=0)

    @property
    def range_B(self) -> Array | None:
        if self.normalised.range is None:
            return None
        with np.errstate(invalid="ignore"):
            return np.ptp(np.stack(list(self.kept_B.values())), axis=0)

    @property
    def mean_B(self) -> Array:
        return np.stack(list(self.raw_B.values())).mean(axis=0)

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.raw.values())))

    @property
    def mean_estimate(self) -> Estimate:
        return Estimate(self.mean, *percentile_interval(self.mean_B))

    def raw_estimate(self, domain: str) -> Estimate:
        return Estimate(self.raw[domain], *percentile_interval(self.raw_B[domain]))


def scores_of(
    study: StudyFolder,
    evaluations: list[Evaluation],
    seeds: list[int],
    teachers: Mapping[str, list[Evaluation]] | None = None,
) -> Scores:
    """Of a model's evaluations, one per seed. `teachers`: by domain, who is to count instead of the study's expert."""
    draws = Draws(len(seeds))
    raw, raw_B, kept, kept_B, excluded = {}, {}, {}, {}, {}
    for domain in study.domains:
        origins = final([study.seeds[seed].origin for seed in seeds])
        experts = (teachers or {}).get(domain) or final([study.seeds[seed].experts[domain] for seed in seeds])
        # stacked over the three roles, so that a seed's questions are checked to be the same in all
        values_RQ = means_SQ([*evaluations, *origins, *experts], domain)
        values_3SQ = values_RQ.reshape(3, len(seeds), -1)
        scores_3B = np.stack([draws.of(values_SQ, domain) for values_SQ in values_3SQ])
        raw[domain], raw_B[domain] = float(values_3SQ[0].mean()), scores_3B[0]
        try:
            kept[domain], kept_B[domain] = recovered(values_3SQ.mean(axis=(1, 2)), scores_3B)
        except NoGainError as error:
            excluded[domain] = str(error)
    return Scores(seeds, raw, raw_B, kept, kept_B, summed_up(kept, kept_B, excluded))


def arm_scores(study: StudyFolder, arm: str, seeds: list[int] | None = None) -> Scores:
    seeds = study.seeds_of(arm) if seeds is None else seeds
    return scores_of(study, final([study.seeds[seed].arms[arm] for seed in seeds]), seeds)


@dataclass(frozen=True, slots=True)
class Difference:
    """A model minus another, on the same seeds. None where there is no normalised score; `raw` are mean rewards."""

    seeds: int
    norm: Estimate | None
    range: Estimate | None
    mean: Estimate
    domains: dict[str, Estimate]
    raw: dict[str, Estimate]


def difference(study: StudyFolder, arm: str) -> Difference | None:
    """An arm minus the reference arm; None when no seed has both."""
    seeds = study.seeds_of(arm, study.reference)
    return minus(arm_scores(study, arm, seeds), arm_scores(study, study.reference, seeds)) if seeds else None


def minus(ours: Scores, theirs: Scores) -> Difference:
    """Paired: every draw takes the same seeds and questions for both."""
    assert ours.seeds == theirs.seeds, f"a paired difference needs the same seeds, not {ours.seeds} and {theirs.seeds}"
    both = [domain for domain in ours.kept if domain in theirs.kept]
    return Difference(
        len(ours.seeds),
        _minus(_value(ours.normalised.norm), _value(theirs.normalised.norm), ours.norm_B, theirs.norm_B),
        _minus(_value(ours.normalised.range), _value(theirs.normalised.range), ours.range_B, theirs.range_B),
        Estimate(ours.mean - theirs.mean, *percentile_interval(ours.mean_B - theirs.mean_B)),
        {
            domain: found
            for domain in both
            if (found := _minus(ours.kept[domain], theirs.kept[domain], ours.kept_B[domain], theirs.kept_B[domain]))
        },
        {
            domain: Estimate(ours.raw[domain] - theirs.raw[domain], *percentile_interval(raw_B - theirs.raw_B[domain]))
            for domain, raw_B in ours.raw_B.items()
        },
    )


def _value(estimate: Estimate | None) -> float:
    return np.nan if estimate is None else estimate.value


def _minus(ours: float, theirs: float, ours_B: Array | None, theirs_B: Array | None) -> Estimate | None:
    if ours_B is None or theirs_B is None:
        return None
    with np.errstate(invalid="ignore"):  # opposite infinities make a nan, which the interval leaves out
        return Estimate(ours - theirs, *percentile_interval(ours_B - theirs_B))


@dataclass(frozen=True, slots=True)
class Reached:
    """What had been spent at the first evaluation with such a Norm, and its draws; ∞ where none has it.

    `evaluations` are the arm's own, without that of its start.
    """

    spent: dict[str, Estimate]
    spent_B: dict[str, Array]
    evaluations: int


def reached(study: StudyFolder, arm: str, seeds: list[int] | None = None, level: float = REACHED) -> Reached | None:
    """Norm ≥ `level`. None where the arm has no Norm."""
    seeds = study.seeds_of(arm) if seeds is None else seeds
    found = points(study, arm, seeds)
    every = [scores_of(study, point.evaluations, seeds) for point in found]
    if every[-1].normalised.norm is None:
        return None
    norms_B = [scores.norm_B for scores in every]
    values_P = np.array([_value(scores.normalised.norm) for scores in every])
    values_BP = np.stack([draw_B for draw_B in norms_B if draw_B is not None], axis=1)
    spent, spent_B = {}, {}
    for key in found[0].spent:
        costs_P = np.array([*(point.spent[key] for point in found), np.inf])
        first_B = _first(values_BP >= level)
        spent_B[key] = costs_P[first_B]
        low, high = percentile_interval(spent_B[key])
        spent[key] = Estimate(float(costs_P[_first(values_P[None] >= level)[0]]), low, high)
    return Reached(spent, spent_B, sum(not point.start for point in found))


def _first(reached_BP: Array) -> Array:
    """The first True of each row; one past the end where there is none."""
    return np.where(reached_BP.any(axis=1), reached_BP.argmax(axis=1), reached_BP.shape[1])

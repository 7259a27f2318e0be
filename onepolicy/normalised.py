"""The normalised score of MOPD: the fraction of an expert's gain that a student has, with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onepolicy.evaluation import RESAMPLES, Estimate, Evaluation, percentile_interval, resampled
from onepolicy.types import Array


class NoGainError(ValueError):
    """The teacher is not better than its origin, so there is nothing for a student to recover."""


def normalised_score(student: float, origin: float, teacher: float) -> float:
    """Share of the teacher's gain that the student has: (s - s_SFT) / (s_teacher - s_SFT), MOPD's metric.

    0 is the origin, 1 the teacher. Raises NoGainError when the teacher does not beat its origin.
    """
    gain = teacher - origin
    if not gain > 0:
        raise NoGainError(f"the teacher scores {teacher:.4g} and its origin {origin:.4g}: no gain to recover")
    return (student - origin) / gain


def norm_and_range(scores: Iterable[float]) -> tuple[float, float]:
    """Norm, the plain mean of the normalised scores over domains, and their range, max - min."""
    values = list(scores)
    return math.fsum(values) / len(values), max(values) - min(values)


@dataclass(frozen=True, slots=True)
class Normalised:
    """Normalised scores by domain. `excluded` says why a domain has none; then Norm and range are None."""

    domains: dict[str, Estimate]
    excluded: dict[str, str]
    norm: Estimate | None
    range: Estimate | None


def normalise(
    student: Evaluation,
    origin: Evaluation,
    teachers: Mapping[str, Evaluation],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Normalised:
    """Normalised score of each domain in `teachers`, Norm and range, with paired bootstrap intervals.

    One draw of questions serves student, origin and teacher alike, since they answered the same ones. A domain is
    excluded when its teacher gained nothing, or when the 95% interval of its gain reaches 0. A draw in which the
    teacher gains nothing counts as ±inf, so it widens the interval. Careful: the range is never negative, so its
    interval leans upwards and may lie above the value itself.
    """
    values: dict[str, float] = {}
    draws: dict[str, Array] = {}
    excluded: dict[str, str] = {}
    for number, (domain, teacher) in enumerate(teachers.items()):
        scores_3Q = _paired_scores(domain, student, origin, teacher)
        indices_BQ = resampled(scores_3Q.shape[1], resamples, np.random.default_rng((seed, number)))
        try:
            values[domain], draws[domain] = recovered(scores_3Q.mean(axis=1), scores_3Q[:, indices_BQ].mean(axis=2))
        except NoGainError as error:
            excluded[domain] = str(error)
    return summed_up(values, draws, excluded)


def summed_up(values: Mapping[str, float], draws: Mapping[str, Array], excluded: Mapping[str, str]) -> Normalised:
    """Norm and range of normalised scores and of their bootstrap draws, which are paired across domains."""
    domains = {domain: Estimate(value, *percentile_interval(draws[domain])) for domain, value in values.items()}
    if excluded or not values:
        return Normalised(domains, dict(excluded), None, None)
    norm, spread = norm_and_range(values.values())
    draws_DB = np.stack(list(draws.values()))
    with np.errstate(invalid="ignore"):  # opposite infinities make a nan, which the interval leaves out
        norm_B, range_B = draws_DB.mean(axis=0), np.ptp(draws_DB, axis=0)
    return Normalised(
        domains,
        dict(excluded),
        Estimate(norm, *percentile_interval(norm_B)),
        Estimate(spread, *percentile_interval(range_B)),
    )


def _paired_scores(domain: str, student: Evaluation, origin: Evaluation, teacher: Evaluation) -> Array:
    """Mean reward per question, axes [student/origin/teacher, Q], after checking that they answered the same ones.

    A question that one of them has no reward for is left out for all.
    """
    roles = {"student": student, "origin": origin, "teacher": teacher}
    for role, evaluation in roles.items():
        if domain not in evaluation.domains:
            raise ValueError(f"the {role} has no evaluation of {domain!r}, only of {sorted(evaluation.domains)}")
        if evaluation.temperature != student.temperature:
            raise ValueError(
                f"the {role} was evaluated at temperature {evaluation.temperature} and the student at "
                f"{student.temperature}: evaluate both at one temperature"
            )
        ids, expected = ([q.id for q in e.domains[domain].questions] for e in (evaluation, student))
        if ids != expected:
            raise ValueError(
                f"domain {domain!r}: the {role} answered other questions ({len(ids)}) than the student "
                f"({len(expected)}): evaluate both on the same tasks"
            )
    return paired_means(list(roles.values()), domain)


def paired_means(evaluations: Sequence[Evaluation], domain: str) -> Array:
    """[evaluations, Q] mean rewards of a domain's questions, of those that have one in every evaluation.

    The evaluations must have asked the same questions. Raises ValueError when no question is left.
    """
    missing = {question for evaluation in evaluations for question in evaluation.domains[domain].unscored}
    means = []
    for evaluation in evaluations:
        questions = [question for question in evaluation.domains[domain].questions if question.id not in missing]
        means.append([np.mean(question.graded) for question in questions])
    if not means[0]:
        raise ValueError(f"domain {domain!r}: no question has a graded answer in each of the evaluations to compare")
    return np.array(means, dtype=np.float64)


def recovered(scores_3: Array, scores_3B: Array) -> tuple[float, Array]:
    """The normalised score and its draws, from those of student, origin and teacher, in this order.

    Raises NoGainError when the teacher's gain is 0 or within its noise.
    """
    student, origin, teacher = (float(score) for score in scores_3)
    value = normalised_score(student, origin, teacher)
    student_B, origin_B, teacher_B = scores_3B
    gain_B, change_B = teacher_B - origin_B, student_B - origin_B
    low, high = percentile_interval(gain_B)
    if low <= 0:
        raise NoGainError(
            f"the teacher scores {teacher:.4g} and its origin {origin:.4g}, but the 95% interval of that gain, "
            f"[{low:.4g}, {high:.4g}], reaches 0"
        )
    gained_B = gain_B > 0
    return value, np.where(gained_B, change_B / np.where(gained_B, gain_B, 1.0), np.copysign(np.inf, change_B))

"""How good a policy is, with how much doubt: avg@n, pass@k, the normalised score of MOPD, bootstrap intervals.

Intervals resample the *questions*: they say what another draw of evaluation questions would change. They do not cover
training seeds; for that, train again. Rollouts of one question are kept together, so their noise is counted too.
numpy only, no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onepolicy.types import Array, Message, Sample, Task

if TYPE_CHECKING:
    from onepolicy.engines.base import Engine, Sampling

RESAMPLES = 2000
LEVEL = 0.95


class NoGainError(ValueError):
    """The teacher is not better than its origin, so there is nothing for a student to recover."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95% percentile bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Question:
    """One evaluation question: what was asked, how its n rollouts fared, and the first rollout's text."""

    id: str
    prompt: str
    reference: str
    rewards_G: tuple[float, ...]
    lengths_G: tuple[int, ...]
    finishes_G: tuple[str, ...]
    response: str
    reason: str


@dataclass(frozen=True, slots=True)
class DomainScore:
    """The questions of one domain, each answered n times."""

    domain: str
    questions: tuple[Question, ...]

    @property
    def rewards_QG(self) -> Array:
        return np.array([question.rewards_G for question in self.questions], dtype=np.float64)

    @property
    def mean(self) -> float:
        """avg@n: the mean reward over questions and rollouts."""
        return float(self.rewards_QG.mean())

    def pass_at(self, k: int) -> float:
        """Mean over questions of pass@k; a rollout passes when its reward is 1."""
        rewards_QG = self.rewards_QG
        n = rewards_QG.shape[1]
        return float(np.mean([pass_at_k(n, int((rewards_G >= 1).sum()), k) for rewards_G in rewards_QG]))

    def interval(self, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
        """avg@n with its interval. A domain whose every answer fares the same gets an interval of width 0."""
        means_Q = self.rewards_QG.mean(axis=1)
        indices_BQ = resampled(len(means_Q), resamples, np.random.default_rng(seed))
        return Estimate(self.mean, *percentile_interval(means_Q[indices_BQ].mean(axis=1)))

    @property
    def mean_length(self) -> float:
        """Tokens that the policy wrote, per rollout."""
        return float(np.mean([question.lengths_G for question in self.questions]))

    @property
    def truncated(self) -> float:
        """Share of rollouts that hit the token limit."""
        return self._finished_with("length")

    @property
    def failed(self) -> float:
        """Share of rollouts that ended in an error."""
        return self._finished_with("error")

    def _finished_with(self, finish: str) -> float:
        return float(np.mean([[f == finish for f in question.finishes_G] for question in self.questions]))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Every domain's score under one setting. `samples` stay in memory; JSON keeps one answer per question."""

    domains: dict[str, DomainScore]
    n: int
    temperature: float
    seed: int
    samples: tuple[Sample, ...] = field(default=(), compare=False, repr=False)

    def means(self) -> dict[str, float]:
        return {domain: score.mean for domain, score in self.domains.items()}

    def to_json(self) -> str:
        domains = {d: [asdict(question) for question in score.questions] for d, score in self.domains.items()}
        data = {"n": self.n, "temperature": self.temperature, "seed": self.seed, "domains": domains}
        return json.dumps(data, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        try:
            data = json.loads(text)
            domains = {d: DomainScore(d, tuple(map(_question, rows))) for d, rows in data["domains"].items()}
            return cls(domains, n=data["n"], temperature=data["temperature"], seed=data["seed"])
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"this is no evaluation as onepolicy writes it: {error!r}") from None


def _question(row: Mapping[str, Any]) -> Question:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    return Question(**fields)


def evaluate(
    engine: Engine,
    tasks: Sequence[Task],
    grade: Callable[[list[Sample]], None],
    n: int,
    sampling: Sampling,
    seed: int,
) -> Evaluation:
    """Answer every task n times, let `grade` fill in the rewards, and sum up per domain, in the order of `tasks`."""
    if not tasks or n < 1:
        raise ValueError(f"nothing to evaluate: {len(tasks)} tasks, n = {n}")
    samples = sorted(engine.generate(tasks, n, sampling, seed=seed), key=lambda sample: (sample.group, sample.index))
    expected = [(group, index) for group in range(len(tasks)) for index in range(n)]
    got = [(sample.group, sample.index) for sample in samples]
    assert got == expected, f"the engine owed {len(tasks)} groups of {n} samples and gave {len(got)}: {got[:8]}…"
    grade(samples)
    questions: dict[str, list[Question]] = {}
    for group, task in enumerate(tasks):
        rollouts = samples[group * n : (group + 1) * n]
        questions.setdefault(task.domain, []).append(_summarise(task, rollouts))
    scores = {domain: DomainScore(domain, tuple(rows)) for domain, rows in questions.items()}
    return Evaluation(scores, n=n, temperature=sampling.temperature, seed=seed, samples=tuple(samples))


def _summarise(task: Task, rollouts: Sequence[Sample]) -> Question:
    rewards_G = [math.nan if sample.reward is None else float(sample.reward) for sample in rollouts]
    if not all(math.isfinite(reward) for reward in rewards_G):
        raise ValueError(f"task {task.id!r} ({task.domain}) has rewards {rewards_G}: `grade` must fill in every one")
    reference = task.reference
    if not isinstance(reference, str):
        reference = "" if reference is None else json.dumps(reference, default=str, ensure_ascii=False)
    return Question(
        id=task.id,
        prompt=prompt_text(task),
        reference=reference,
        rewards_G=tuple(rewards_G),
        lengths_G=tuple(sample.length for sample in rollouts),
        finishes_G=tuple(sample.finish for sample in rollouts),
        response=transcript(rollouts[0]),
        reason=rollouts[0].reason,
    )


def prompt_text(task: Task) -> str:
    """The chat as a reader sees it: one user message as it is, else each with its role; media as [image]."""
    return _chat_text(task.messages)


def transcript(sample: Sample) -> str:
    """What was said after the prompt, as a reader sees it: the response as it is, or all turns, each with its role."""
    return _chat_text([*sample.history, {"role": "assistant", "content": sample.response}])


def _chat_text(messages: Sequence[Message]) -> str:
    texts = [_content_text(message["content"]) for message in messages]
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"{m['role']}: {text}" for m, text in zip(messages, texts, strict=True))


def _content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", f"[{part.get('type', 'media')}]") for part in content)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased chance that one of k rollouts passes, from n of which `correct` did: 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021, arXiv 2107.03374, Eq. 1. Raises ValueError unless 1 <= k <= n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} cannot be estimated from {n} rollouts per question: use 1 <= k <= {n}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def resampled(questions: int, resamples: int, rng: np.random.Generator) -> Array:
    """Indices [B, Q]: B draws of Q questions with replacement."""
    return rng.integers(questions, size=(resamples, questions))


def percentile_interval(values_B: Array, level: float = LEVEL) -> tuple[float, float]:
    """The outer order statistics of the percentile bootstrap; infinities are kept, they widen it."""
    tail = (1 - level) / 2
    low = np.nanquantile(values_B, tail, method="lower")
    high = np.nanquantile(values_B, 1 - tail, method="higher")
    return float(low), float(high)


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
    """Mean reward per question, axes [student/origin/teacher, Q], after checking that they answered the same ones."""
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
    return np.stack([evaluation.domains[domain].rewards_QG.mean(axis=1) for evaluation in roles.values()])


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

"""How good a policy is, with how much doubt: avg@n, pass@k, bootstrap intervals (normalised scores: normalised.py).

Intervals resample the *questions*: they say what another draw of evaluation questions would change. They do not cover
training seeds; for that, train again. Rollouts of one question are kept together, so their noise is counted too.
numpy only, no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onepolicy.rewards import is_correct
from onepolicy.types import Array, Message, Sample, Task

if TYPE_CHECKING:
    from onepolicy.engines.base import Engine, Sampling

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95% percentile bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Question:
    """One evaluation question: what was asked, how its n rollouts fared, and the first rollout's text.

    `failed_G` marks rollouts without a reward (the grader or the engine failed; the 0.0 in `rewards_G` means nothing);
    empty when there is none, as in nearly every question.
    """

    id: str
    prompt: str
    reference: str
    rewards_G: tuple[float, ...]
    lengths_G: tuple[int, ...]
    finishes_G: tuple[str, ...]
    response: str
    reason: str
    failed_G: tuple[bool, ...] = ()

    @property
    def graded(self) -> tuple[float, ...]:
        """The rewards of the rollouts that have one."""
        failed_G = self.failed_G or (False,) * len(self.rewards_G)
        return tuple(reward for reward, failed in zip(self.rewards_G, failed_G, strict=True) if not failed)


@dataclass(frozen=True, slots=True)
class DomainScore:
    """The questions of one domain, each answered n times. At least one answer has a reward, see `evaluate`.

    Scores are over the answers that have a reward; a question without any is in none of them.
    """

    domain: str
    questions: tuple[Question, ...]

    @property
    def rewards_QG(self) -> Array:
        """As they were graded, the 0.0 of failed gradings and errors among them."""
        return np.array([question.rewards_G for question in self.questions], dtype=np.float64)

    @property
    def means_Q(self) -> Array:
        """The mean reward of each question that has one, in order."""
        return np.array([np.mean(question.graded) for question in self.questions if question.graded])

    @property
    def mean(self) -> float:
        """avg@n: the mean over questions of the mean reward of their rollouts."""
        return float(self.means_Q.mean())

    def pass_at(self, k: int) -> float | None:
        """Mean over questions of pass@k; a rollout passes when its reward is 1. None: no question has k rewards.

        Raises ValueError unless 1 <= k <= n.
        """
        pass_at_k(len(self.questions[0].rewards_G), 0, k)  # refuses a k that no question could have
        enough = [question.graded for question in self.questions if len(question.graded) >= k]
        rates = [pass_at_k(len(rewards), sum(map(is_correct, rewards)), k) for rewards in enough]
        return float(np.mean(rates)) if rates else None

    @property
    def grader_failed(self) -> int:
        """How many answers the grader failed on."""
        return sum(
            failed and finish != "error"
            for question in self.questions
            for failed, finish in zip(question.failed_G, question.finishes_G, strict=False)  # failed_G may be empty
        )

    @property
    def unscored(self) -> list[str]:
        """The ids of the questions none of whose answers has a reward."""
        return [question.id for question in self.questions if not question.graded]

    def interval(self, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
        """avg@n with its interval. A domain whose every answer fares the same gets an interval of width 0."""
        means_Q = self.means_Q
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
    """Every domain's score under one setting. `samples` stay in memory; JSON keeps one answer per question.

    `too_long` counts the held-out prompts of a domain that could not be asked and are in no score.
    """

    domains: dict[str, DomainScore]
    n: int
    temperature: float
    seed: int
    too_long: dict[str, int] = field(default_factory=dict)
    samples: tuple[Sample, ...] = field(default=(), compare=False, repr=False)

    def means(self) -> dict[str, float]:
        return {domain: score.mean for domain, score in self.domains.items()}

    def remarks(self) -> list[str]:
        """What is missing in the scores, a line for each fact; empty when every question was asked and graded."""
        lines = []
        for domain, score in self.domains.items():
            answers = len(score.questions) * self.n
            if score.grader_failed:
                lines.append(f"{domain}: the grader failed on {score.grader_failed} of {answers} answers, left out")
            if score.failed:
                lines.append(
                    f"{domain}: {round(score.failed * answers)} of {answers} answers ended in an error, left out"
                )
            if missing := score.unscored:
                lines.append(f"{domain}: {len(missing)} questions have no score: {_some(missing)}")
        for domain, count in self.too_long.items():
            lines.append(f"{domain}: {count} held-out prompts could not be asked and are in no score")
        return lines

    def to_json(self) -> str:
        domains = {d: [asdict(question) for question in score.questions] for d, score in self.domains.items()}
        data = {"n": self.n, "temperature": self.temperature, "seed": self.seed, "domains": domains}
        data |= {"too_long": self.too_long} if self.too_long else {}
        return json.dumps(data, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        try:
            data = json.loads(text)
            domains = {d: DomainScore(d, tuple(map(_question, rows))) for d, rows in data["domains"].items()}
            too_long = data.get("too_long", {})
            return cls(domains, n=data["n"], temperature=data["temperature"], seed=data["seed"], too_long=too_long)
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
    too_long: Mapping[str, int] | None = None,
) -> Evaluation:
    """Answer every task n times, let `grade` fill in the rewards, and sum up per domain, in the order of `tasks`.

    `too_long` counts held-out prompts that are not among them. Raises ValueError, with the reason, when no answer of a
    domain has a reward: it has no score then.
    """
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
    for domain, score in scores.items():
        if not any(question.graded for question in score.questions):
            raise ValueError(
                f"domain {domain!r}: none of {len(score.questions) * n} answers to held-out questions has a reward, so "
                f"it has no score: {score.questions[0].reason}"
            )
    return Evaluation(scores, n, sampling.temperature, seed, dict(too_long or {}), tuple(samples))


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
        failed_G=() if all(sample.is_graded for sample in rollouts) else tuple(not s.is_graded for s in rollouts),
    )


def _some(names: Sequence[str], shown: int = 3) -> str:
    return ", ".join(names[:shown]) + (" …" if len(names) > shown else "")


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

"""Verify the verifier before any training: gold answers must score 1.0, empty and constant ones must not.

A grader that fails (raises, times out, is killed) has not scored 0, it has not judged. One that fails on all that is
tried is refused, also where no gold answer is known.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from onepolicy.config import DomainConfig
from onepolicy.rewards import is_correct
from onepolicy.tasks import build_eval_source, build_source
from onepolicy.tasks.base import Source
from onepolicy.tasks.grading import COSTLY, Grader
from onepolicy.tasks.mixture import prompt_key
from onepolicy.types import Answer, Grade, Task

GradeAll = Callable[[Sequence[tuple[Task, Answer]]], list[Grade]]  # such as Grader.grade
MAX_FAILURES_SHOWN = 3
WARN_MAJORITY, WARN_EMPTY, WARN_DISTINCT = 0.5, 0.05, 0.5


@dataclass(frozen=True)
class SourceReport:
    """What `drawn` tasks of one domain showed. Rewards are means over the drawn tasks."""

    domain: str
    drawn: int
    distinct: int  # prompts
    without_gold: int
    gold_right: int  # gold answers that scored 1.0
    failures: tuple[str, ...]  # the first gold answers that did not, or why nothing at all could be graded
    unjudged: bool  # the grader failed on every gold, empty and constant answer
    empty_reward: float
    constant: Answer  # the most frequent gold answer ("0" when there is none)
    constant_share: float  # of the gold answers that it is
    constant_reward: float
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what the source itself has to say: in which sandbox its answers run

    @property
    def ok(self) -> bool:
        """Every gold answer scored 1.0 and, without any, at least one answer could be graded."""
        return not self.unjudged and self.gold_right + self.without_gold == self.drawn


def check_source(source: Source, n: int, grade: GradeAll) -> SourceReport:
    """Draw n tasks and grade their golds, the empty answer and the most frequent gold."""
    tasks = [source.draw(index) for index in range(n)]
    golds = [(task, gold) for task in tasks if (gold := source.gold(task)) is not None]
    for_gold = getattr(source, "for_gold", lambda task: task)
    task, answer = golds[0] if golds else (tasks[0], "")
    (probe,) = grade([(for_gold(task), answer)])
    if probe.failed and probe.reason.startswith(
        COSTLY
    ):  # or each answer would wait for its limit, or for a new process
        return _costly(task, answer, probe, bool(golds))
    verdicts = grade([(for_gold(task), gold) for task, gold in golds])
    wrong = [
        (task, gold, verdict)
        for (task, gold), verdict in zip(golds, verdicts, strict=True)
        if verdict.failed or not is_correct(verdict.reward)
    ]
    constant, count = Counter(gold for _, gold in golds).most_common(1)[0] if golds else ("0", 0)
    empties, constants = grade([(task, "") for task in tasks]), grade([(task, constant) for task in tasks])
    unjudged = all(verdict.failed for verdict in (*verdicts, *empties, *constants))
    failures = [_failure(*case) for case in wrong[:MAX_FAILURES_SHOWN]]
    if unjudged:
        tried = f"{len(golds)} gold answers, the empty answer and {constant!r:.50}"
        failures = [f"the grader failed on all that was tried ({tried}): {empties[0].reason}"]
    report = SourceReport(
        domain=tasks[0].domain,
        drawn=n,
        distinct=len({prompt_key(task) for task in tasks}),
        without_gold=n - len(golds),
        gold_right=len(golds) - len(wrong),
        failures=tuple(failures),
        unjudged=unjudged,
        empty_reward=_mean(empties),
        constant=constant,
        constant_share=count / len(golds) if golds else 0.0,
        constant_reward=_mean(constants),
        notes=tuple(source.notes()) if hasattr(source, "notes") else (),
    )
    lost = [*_ungraded("the empty answer", empties), *_ungraded(f"{constant!r:.50}", constants)]
    report = replace(report, warnings=tuple(_warnings(report)))
    return report if unjudged else replace(report, warnings=(*report.warnings, *lost))


def _costly(task: Task, answer: Answer, verdict: Grade, has_gold: bool) -> SourceReport:
    """Of a source whose grader hangs or ends its process on the first gold answer or, without any, on the empty one."""
    tried = f"the gold answer {answer!r:.50}" if has_gold else "the empty answer"
    return SourceReport(
        domain=task.domain,
        drawn=1,
        distinct=1,
        without_gold=int(not has_gold),
        gold_right=0,
        failures=(f"the grader failed on all that was tried ({tried}): {verdict.reason}",),
        unjudged=True,
        empty_reward=0.0,
        constant=answer if has_gold else "0",
        constant_share=0.0,
        constant_reward=0.0,
    )


def check_domains(domains: Mapping[str, DomainConfig], n: int) -> dict[str, SourceReport]:
    """Check every domain, n tasks each. Raises ConfigError on bad options, GraderBug on a reward outside [0, 1]."""
    sources = {name: build_source(name, config.tasks, seed=0) for name, config in domains.items()}
    for name, config in domains.items():
        build_eval_source(name, config.tasks).draw(0)  # reads rows of its own, if it has some, and checks them
    with Grader(domains) as grader:
        return {name: check_source(source, n, grader.grade) for name, source in sources.items()}


def require_golds(sources: Mapping[str, Source], n: int, grade: GradeAll) -> None:
    """Raises ValueError for a domain whose own answers do not score 1.0, or whose grader fails on everything.

    What sources have to say goes to stderr.
    """
    notes: set[str] = set()
    for name, source in sources.items():
        found = check_source(source, n, grade)
        for note in found.notes:
            if note not in notes:
                print(note, file=sys.stderr)
        notes.update(found.notes)
        if found.unjudged:
            raise ValueError(
                f"domain {name!r}: {found.failures[0]}. A failed grading is no reward, so there is nothing to learn "
                "from: fix the grader; an answer that it cannot read should get 0 (see `onepolicy tasks check`)"
            )
        if not found.ok:
            raise ValueError(
                f"domain {name!r}: gold answers do not score 1.0, so its rewards mean nothing: "
                f"{'; '.join(found.failures)} (see `onepolicy tasks check`)"
            )


def _failure(task: Task, gold: Answer, verdict: Grade) -> str:
    if verdict.failed:
        return f"{task.id}: the grader failed on gold answer {gold!r:.100} ({verdict.reason})"
    reason = f" ({verdict.reason})" if verdict.reason else ""
    return f"{task.id}: gold answer {gold!r:.100} scores {verdict.reward:g}{reason}"


def _mean(grades: Sequence[Grade]) -> float:
    """Of those that could be graded; 0.0 when none could."""
    rewards = [grade.reward for grade in grades if not grade.failed]
    return sum(rewards) / max(1, len(rewards))


def _ungraded(answer: str, grades: Sequence[Grade]) -> list[str]:
    """A warning when the grader failed on an answer to some of the tasks."""
    failed = [grade for grade in grades if grade.failed]
    if not failed:
        return []
    return [f"the grader failed on {answer} in {len(failed)} of {len(grades)} tasks: {failed[0].reason}"]


def _warnings(report: SourceReport) -> list[str]:
    warnings = []
    if report.without_gold:
        warnings.append(f"{report.without_gold} of {report.drawn} tasks have no gold answer: their grader is unchecked")
    if report.constant_share > WARN_MAJORITY:
        warnings.append(
            f"{report.constant_share:.0%} of the gold answers are {report.constant!r:.50}: "
            "a policy that always says so looks good"
        )
    elif report.constant_reward > WARN_MAJORITY:
        warnings.append(f"always answering {report.constant!r:.50} earns {report.constant_reward:.2f} on average")
    if report.empty_reward > WARN_EMPTY:
        warnings.append(f"the empty answer earns {report.empty_reward:.2f} on average")
    if report.distinct < WARN_DISTINCT * report.drawn:
        warnings.append(
            f"only {report.distinct} distinct prompts in {report.drawn} draws: the question space is small, "
            "and what is not held out will be memorised"
        )
    return warnings

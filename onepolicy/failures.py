"""Answers of a run that have no reward: failed gradings and errors of the engine, by domain. Told at once, and counted.

They say nothing of the policy, so nothing is learnt from them; a few are a nuisance. When no answer of a domain has a
reward any more, nothing is left to measure or to reinforce there, and the run is stopped with the reason.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from onepolicy.types import Sample

MIN_ANSWERS = 8  # without a reward, one after the other: fewer may be a single hard prompt of a small share
FAILED, ERROR = "grader_failed", "error"  # as in metrics.jsonl
TOLD = {
    FAILED: "the grader failed on an answer ({reason}): such answers are left out of advantages and mean rewards",
    ERROR: "an answer ended in an error ({reason}): such answers are left out of the update and of mean rewards",
}


class Failures:
    """Counts per domain. `observe` every rollout of a step, then `row` and `require_some`; `begin` the next step."""

    def __init__(self) -> None:
        self._step: dict[str, Counter[str]] = {}
        self._total: dict[str, Counter[str]] = {}
        self._reasons: dict[tuple[str, str], str] = {}  # the first one of each domain and kind, in this process
        self._since: Counter[str] = Counter()  # answers since the last one with a reward, over whole steps

    def begin(self) -> None:
        self._step.clear()

    def observe(self, samples: Sequence[Sample]) -> None:
        """Count; the first failure of each domain and kind goes to stderr, with its reason."""
        for sample in samples:
            domain = sample.task.domain
            kind = ERROR if sample.finish == "error" else FAILED if sample.grader_failed else "graded"
            for counts in (self._step, self._total):
                counts.setdefault(domain, Counter())[kind] += 1
            if kind in TOLD and (domain, kind) not in self._reasons:
                self._reasons[domain, kind] = sample.reason
                told = TOLD[kind].format(reason=sample.reason)
                print(f"warning: domain {domain!r}: {told}, and counted as {kind}", file=sys.stderr)

    def row(self) -> dict[str, float]:
        """`grader_failed/DOMAIN` and `error/DOMAIN`: fractions of the step's answers; none where there are none."""
        return {
            f"{kind}/{domain}": counts[kind] / counts.total()
            for domain, counts in self._step.items()
            for kind in (FAILED, ERROR)
            if counts[kind]
        }

    def require_some(self) -> None:
        """Raises ValueError when all of a step's answers in a domain, and at least MIN_ANSWERS, have no reward."""
        for domain, counts in self._step.items():
            self._since[domain] = 0 if counts["graded"] else self._since[domain] + counts.total()
            if self._since[domain] >= MIN_ANSWERS:
                raise ValueError(
                    f"domain {domain!r}: none of the last {self._since[domain]} answers has a reward: "
                    f"{self._told(domain, counts)}. Fix that, and the same command resumes from the last checkpoint"
                )

    def require_any(self) -> None:
        """Raises ValueError when no answer of the whole run in some domain has a reward, however few there were."""
        for domain, counts in self._total.items():
            if counts.total() and not counts["graded"]:
                raise ValueError(
                    f"domain {domain!r}: none of the {counts.total()} answers of this run has a reward: "
                    f"{self._told(domain, counts)}. No result is saved: fix that, and start it with another output"
                )

    def summary(self) -> list[str]:
        """A line for every domain in which something failed, over the whole run."""
        return [
            f"domain {domain!r}: of {counts.total()} answers {self._told(domain, counts)}"
            for domain, counts in self._total.items()
            if counts[FAILED] or counts[ERROR]
        ]

    def _told(self, domain: str, counts: Mapping[str, int]) -> str:
        parts = []
        for kind, what in ((FAILED, "could not be graded"), (ERROR, "ended in an error")):
            if counts[kind]:
                reason = self._reasons.get((domain, kind))
                parts.append(f"{counts[kind]} {what}" + (f" ({reason})" if reason else ""))
        return " and ".join(parts)

    def state(self) -> dict[str, Any]:
        return {"total": {domain: dict(counts) for domain, counts in self._total.items()}, "since": dict(self._since)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._total = {domain: Counter(counts) for domain, counts in state["total"].items()}
        self._since = Counter(state["since"])

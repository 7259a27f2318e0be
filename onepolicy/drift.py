"""How far the policy has come from where it started and, if it has teachers, how near it is to them: a row per N steps.

Measured on the rollouts of a step before its update, over the whole vocabulary (Want "full"), so the values are exact
for these rollouts. diagnostics.py names what is in the row. Costs, at such a step, one scoring of all samples each by
the policy, its origin and its teachers (and by all of two or more teachers), and no second model in memory: the origin
is on the session's shelf.
"""

from __future__ import annotations

from collections.abc import Sequence

from onepolicy.config import DiagnosedConfig
from onepolicy.diagnostics import disagreement_row, gap_row
from onepolicy.session import Session
from onepolicy.teachers import Routed, annotate_disagreement
from onepolicy.types import Sample, Want


class Drift:
    """Of a session's one policy. With `diagnose_every` 0 nothing is loaded and every row is empty."""

    def __init__(self, session: Session, config: DiagnosedConfig, teachers: Routed | None = None) -> None:
        self.session, self.every, self.teachers = session, config.diagnose_every, teachers
        self.others: dict[str, Routed] = {}
        if self.every:
            self.others["origin"] = session.origin()
            if teachers is not None:
                self.others["teacher"] = teachers

    def measure(self, step: int, samples: Sequence[Sample]) -> dict[str, float]:
        """The row of this step, empty when none is due; disagreement whenever the samples carry it."""
        row: dict[str, float] = {}
        if self.every and step % self.every == 0:
            learner = self.session.learner
            ours = learner.score(samples, Want("full"))
            for name, scorer in self.others.items():
                theirs = scorer.score(samples, Want("full"))
                for domain in sorted({sample.task.domain for sample in samples}):
                    rows = [i for i, sample in enumerate(samples) if sample.task.domain == domain]
                    pair = [ours[i] for i in rows], [theirs[i] for i in rows]
                    row |= gap_row(f"{domain}<{name}", *pair, learner.temperature)
            unasked = any(sample.disagreement_R is None for sample in samples)
            if self.teachers is not None and len(self.teachers.distinct) > 1 and unasked:
                annotate_disagreement(samples, self.teachers)
        return row | disagreement_row(samples)

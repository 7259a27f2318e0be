"""The first step of a run, rehearsed: what `onepolicy check` says of teachers, domains and gradients before training.

The starting model answers `check.samples` held-out prompts of each domain, as often as the run would; what the recipe
would make of these answers is what is judged. Leaves nothing behind but what `rehearse` returns.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onepolicy.config import MopdConfig
from onepolicy.forecast import DomainForecast, Rehearsed, forecast
from onepolicy.gradients import GradientReport, compare_gradients
from onepolicy.preflight import TeacherReport, check_teachers, probe
from onepolicy.recipes.mopd import annotate_distillation
from onepolicy.recipes.rlvr import annotate_reinforcement
from onepolicy.session import Session
from onepolicy.teachers import Routed
from onepolicy.types import Sample

DRAW = 100  # numbers the rollouts for gradients from here on, a random stream for each domain


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """No teachers in reinforcement learning; gradients on request."""

    teachers: list[TeacherReport]
    domains: list[DomainForecast]
    gradients: GradientReport | None

    @property
    def fine(self) -> bool:
        return not any([*(one.warnings for one in self.teachers), *(one.warnings for one in self.domains)])

    def to_dict(self) -> dict[str, Any]:
        """For check.json."""
        return {"fine": self.fine, **asdict(self)}


def rehearse(config: Rehearsed, gradients: bool) -> Rehearsal:
    """Raises ValueError as a run would, and when gradients are asked for that nothing can be compared with."""
    drawn = sum(1 for domain in config.domains.values() if domain.share)
    if gradients and (drawn < 2 or config.rollout.prompts < 2):
        raise ValueError(
            f"gradients of {drawn} domain, from {config.rollout.prompts} prompts: to compare, give two domains a share "
            "and set rollout.prompts to at least 2"
        )
    with tempfile.TemporaryDirectory() as scratch:
        aside = config.model_copy(update={"output": Path(scratch) / "check"})
        with Session(aside, aside.loss, saves=False) as session:
            samples = probe(session, aside.check.samples, aside.rollout.n)
            teachers, reports = None, list[TeacherReport]()
            if isinstance(aside, MopdConfig):
                models = {name: teacher.model for name, teacher in aside.teachers.items()}
                teachers = session.frozen(models, aside.routes)
                reports = check_teachers(session, teachers, aside, samples)
            annotate(samples, aside, teachers)
            domains = forecast(aside, session.mixture.shares, samples)
            compared = compare_gradients(session.learner, batches(session, aside, teachers)) if gradients else None
    return Rehearsal(reports, domains, compared)


def annotate(samples: list[Sample], config: Rehearsed, teachers: Routed | None) -> None:
    """As the recipe does in its first step. A reference KL is left out: there it is 0, and so is its gradient."""
    if isinstance(config, MopdConfig):
        assert teachers is not None, "mopd has teachers"
        annotate_distillation(samples, teachers, config, 0)
    else:
        annotate_reinforcement(samples, config)


def batches(
    session: Session, config: Rehearsed, teachers: Routed | None
) -> dict[str, tuple[list[Sample], list[Sample]]]:
    """`rollout.prompts` training prompts of each domain, answered and annotated, in two halves."""
    result = {}
    for number, domain in enumerate(session.mixture.shares):
        tasks = [session.mixture.domains[domain].draw() for _ in range(config.rollout.prompts)]
        samples = session.rollout(tasks, config.rollout.n, 0, DRAW + number)
        annotate(samples, config, teachers)
        half = config.rollout.prompts // 2
        result[domain] = [s for s in samples if s.group < half], [s for s in samples if half <= s.group < 2 * half]
    return result

"""Multi-teacher on-policy distillation (MOPD, arXiv 2606.30406; the industrial variant, arXiv 2601.02780 §4.4).

The student answers prompts of all domains by itself; the one expert of each prompt's domain scores every token:

    A_t = sg[ log π_d(y_t) − log π_θ(y_t) ], clipped to ±5     L = − E[ 1/|y| Σ_t w_t (A_t + α Â_outcome) log π_θ(y_t) ]

w_t zeroes tokens whose ratio between learner and engine leaves a band. Instead of the sampled form: the teacher's
top-k, or the whole vocabulary (`loss.distill.estimator`). Hard routing by domain; teachers are frozen.
"""

from __future__ import annotations

from onepolicy.annealing import Plateau
from onepolicy.balancing import Balancer
from onepolicy.config import MopdConfig
from onepolicy.drift import Drift
from onepolicy.preflight import check_teachers, probe
from onepolicy.rollout import annotate_advantages, drop_errors, learn
from onepolicy.session import Session
from onepolicy.teachers import Routed, annotate_disagreement, wanted
from onepolicy.types import Sample, Weights


def mopd(config: MopdConfig) -> None:
    with Session(config, config.loss) as session:
        models = {name: teacher.model for name, teacher in config.teachers.items()}
        teachers = session.frozen(models, config.routes)
        check_teachers(session, teachers, config, probe(session, config.check.samples))
        drift = Drift(session, config, teachers)
        balancer = Balancer(config.balance, list(config.domains), config.loss)
        session.remembered["balance"] = balancer
        plateau = Plateau(config.plateau)
        if config.plateau is not None:
            session.remembered["plateau"] = plateau

        for step in session.steps():
            tasks = session.mixture.draw(config.rollout.prompts)
            samples = session.rollout(tasks, config.rollout.n, step)
            clock = plateau.clock(step)
            annotate_distillation(samples, teachers, config, clock)
            shares = balancer.annotate(samples)
            gaps = drift.measure(step, samples)
            metrics = learn(session.learner, samples, config.inner_updates)
            mixing = {
                "distill_weight": config.distill_weight.at(clock),
                "outcome_weight": config.outcome_weight.at(clock),
            }
            mixing |= plateau.observe(step, metrics)
            session.log(step, samples, metrics | shares | gaps | mixing)
        session.finish(session.policy)


def annotate_distillation(samples: list[Sample], teachers: Routed, config: MopdConfig, clock: int) -> None:
    """What the domain's teacher says about each sample, its outcome advantage, and how much either counts."""
    for sample, scores in zip(samples, teachers.score(samples, wanted(config.loss.distill)), strict=True):
        sample.teacher = scores
        sample.weights = Weights(pg=config.outcome_weight.at(clock), distill=config.distill_weight.at(clock))
    if config.loss.distill.weighting.max_disagreement is not None:
        annotate_disagreement(samples, teachers)
    annotate_advantages(samples, config.advantage, config.turn_weight)
    drop_errors(samples)

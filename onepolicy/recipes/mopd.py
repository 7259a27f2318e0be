"""Multi-teacher on-policy distillation (MOPD, arXiv 2606.30406; the industrial variant, arXiv 2601.02780 §4.4).

The student answers prompts of all domains by itself; the one expert of each prompt's domain scores every token:

    A_t = sg[ log π_d(y_t) − log π_θ(y_t) ], clipped to ±5     L = − E[ 1/|y| Σ_t w_t (A_t + α Â_outcome) log π_θ(y_t) ]

w_t zeroes tokens whose ratio between learner and engine leaves a band. Instead of the sampled form: the teacher's
top-k, or the whole vocabulary (`loss.distill.estimator`). Hard routing by domain; teachers are frozen.
"""

from __future__ import annotations

from onepolicy.balancing import Balancer
from onepolicy.config import MopdConfig
from onepolicy.drift import Drift
from onepolicy.preflight import check_teachers
from onepolicy.rollout import annotate_advantages, learn
from onepolicy.session import Session
from onepolicy.teachers import annotate_disagreement, wanted
from onepolicy.types import Weights


def mopd(config: MopdConfig) -> None:
    with Session(config, config.loss) as session:
        models = {name: teacher.model for name, teacher in config.teachers.items()}
        teachers = session.frozen(models, config.routes)
        check_teachers(session, teachers, config.check)
        want = wanted(config.loss.distill)
        drift = Drift(session, config, teachers)
        balancer = Balancer(config.balance, list(config.domains))
        session.remembered["balance"] = balancer

        for step in session.steps():
            tasks = session.mixture.draw(config.rollout.prompts)
            samples = session.rollout(tasks, config.rollout.n, step)
            for sample, scores in zip(samples, teachers.score(samples, want), strict=True):
                sample.teacher = scores
                sample.weights = Weights(pg=config.outcome_weight.at(step), distill=config.distill_weight.at(step))
            if config.loss.distill.weighting.max_disagreement is not None:
                annotate_disagreement(samples, teachers)
            annotate_advantages(samples, config.advantage, config.turn_weight)
            shares = balancer.annotate(samples)
            gaps = drift.measure(step, samples)
            metrics = learn(session.learner, samples, config.inner_updates)
            session.log(step, samples, metrics | shares | gaps)
        session.finish(session.policy)

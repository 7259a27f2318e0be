"""Mix-RL: one policy, reinforcement learning on all domains at once (the baseline of MOPD and of CoPD).

Every batch holds prompts of all domains, by their shares; a sample keeps the reward and the group of its own domain.
With one domain it is `rlvr`, bit for bit.
"""

from __future__ import annotations

from onepolicy.balancing import Balancer
from onepolicy.config import MixRlConfig
from onepolicy.drift import Drift
from onepolicy.recipes.rlvr import annotate_reinforcement, draw_groups
from onepolicy.rollout import learn
from onepolicy.session import Session


def mix_rl(config: MixRlConfig) -> None:
    with Session(config, config.loss) as session:
        balancer = Balancer(config.balance, list(config.domains), config.loss)
        session.remembered["balance"] = balancer
        drift = Drift(session, config)

        for step in session.steps():
            samples = draw_groups(session, config, step)
            annotate_reinforcement(samples, config)
            shares = balancer.annotate(samples)
            gaps = drift.measure(step, samples)
            metrics = learn(session.learner, samples, config.inner_updates)
            session.log(step, samples, metrics | shares | gaps)
        session.finish(session.policy)

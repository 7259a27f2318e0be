"""Supervised finetuning on demonstrations of all domains: stage 1, the origin of every expert and of the student.

    L = − mean over the demonstrated tokens of log π_θ(y_t)

Demonstrations come from the task sources (`TaskSource.demonstration`). Of an episode all turns are imitated, and
nothing that its environment answers. Left out: packing, which does not pay at length-sorted micro-batches.
"""

from __future__ import annotations

import numpy as np

from onepolicy.config import LossConfig, SftConfig
from onepolicy.session import Session
from onepolicy.types import Sample, Task, Weights


def sft(config: SftConfig) -> None:
    with Session(config, LossConfig(reduction="token")) as session:

        def demonstrate(task: Task) -> Sample:
            chat = session.mixture.demonstrated(task)
            if chat is None:
                raise ValueError(f"domain {task.domain!r} has no demonstrations to imitate: give it a source with some")
            token_ids_T, mask_T = session.policy.renderer.demonstration(task, chat)
            written = np.zeros(int(mask_T.sum()), dtype=np.float32)
            history, response = chat[:-1], chat[-1]["content"]
            return Sample(task, token_ids_T, mask_T, written, response, history=history, weights=Weights(ce=1.0))

        for step in session.steps():
            samples = [demonstrate(*session.mixture.draw(1)) for _ in range(config.batch_size)]
            metrics = session.learner.step(samples)
            session.log(step, samples, metrics)
        session.finish(session.policy)

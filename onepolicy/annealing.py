"""When the weights of distillation and outcome start to move: at the first step, or once the KL has stopped falling.

With outcome rewards mixed in, the student cannot leave what its teachers prefer by more than about a nat while the
distillation weight is 1. So the weight is taken from 1 to 0, but not before the teachers have nothing left to say: SAF
(arXiv 2607.29209) waits until the distillation's KL stops falling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from onepolicy.config import PlateauConfig


class Plateau:
    """The clock of the weights' schedules; a checkpoint has to remember it (`state`, `load_state`).

    Without a config it is the run's own. Else it stands at 0 up to and with the step at which the KL was flat: when its
    running mean had not improved on its lowest by more than a part `tolerance` for `patience` steps.
    """

    def __init__(self, config: PlateauConfig | None) -> None:
        self.config = config
        self.mean: float | None = None  # of the reverse KL, nats a token
        self.lowest: float | None = None
        self.waited = 0  # steps since then
        self.start: int | None = None

    def clock(self, step: int) -> int:
        """How many steps the schedules have run for at this step."""
        if self.config is None:
            return step
        return 0 if self.start is None else step - self.start

    def observe(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Take in what the step measured; the running mean to log. A step that distilled nothing changes nothing."""
        kl = metrics.get("reverse_kl", math.nan)
        if self.config is None or self.start is not None or not math.isfinite(kl):
            return {}
        self.mean = kl if self.mean is None else self.config.decay * self.mean + (1 - self.config.decay) * kl
        # careful: of samples, and so below 0 at times
        if self.lowest is None or self.mean < self.lowest - self.config.tolerance * abs(self.lowest):
            self.lowest, self.waited = self.mean, 0
        else:
            self.waited += 1
        if self.waited >= self.config.patience:
            self.start = step
        return {"reverse_kl_mean": self.mean}

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean, "lowest": self.lowest, "waited": self.waited, "start": self.start}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.mean, self.lowest = state["mean"], state["lowest"]
        self.waited, self.start = state["waited"], state["start"]

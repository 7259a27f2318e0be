"""Weights that write and learn: one model behind an engine and a learner, with the tokenizer they share."""

from __future__ import annotations

import torch

from onepolicy.config import LossConfig, RunConfig
from onepolicy.engines.local import LocalEngine
from onepolicy.engines.text import Renderer
from onepolicy.learner import Learner
from onepolicy.models import load_model
from onepolicy.teachers import DTYPES


class Policy:
    """Opened from a run's starting model. Engine and learner hold the same weights, so nothing is ever synchronised."""

    def __init__(self, config: RunConfig, loss: LossConfig, device: torch.device) -> None:
        model, tokenizer = load_model(config.model, config.seed, device)
        self.renderer = Renderer(tokenizer, model.generation_config)
        self.engine = LocalEngine(model, self.renderer, batch_size=config.rollout.batch_size)
        self.learner = Learner(
            model,
            tokenizer,
            config.optim,
            loss,
            temperature=config.rollout.temperature,
            total_steps=config.steps * getattr(config, "inner_updates", 1),
            dtype=DTYPES[config.model.dtype],
        )

"""The held-out tasks of a run's domains, put to checkpoints on disk: what a run's own evaluation is, without a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import torch

from onepolicy.config import EvalConfig, MergeConfig, ModelConfig, RunConfig
from onepolicy.engines.local import LocalEngine
from onepolicy.engines.precision import DTYPES
from onepolicy.engines.probe import check_generation
from onepolicy.engines.room import Room
from onepolicy.engines.text import Renderer
from onepolicy.evaluation import Evaluation
from onepolicy.models import load_model, pick_device
from onepolicy.progress import hush_transformers
from onepolicy.session import GOLDS, evaluated, sampling_of
from onepolicy.tasks.check import require_golds
from onepolicy.tasks.grading import Grader
from onepolicy.tasks.mixture import Mixture
from onepolicy.tasks.screen import Screen


class Exam:
    """Questions and graders, for any number of candidates, one in memory at a time. Use as a context manager."""

    def __init__(self, config: RunConfig | MergeConfig) -> None:
        self.config, self.device = config, pick_device(config.device)
        mixture = Mixture(config.domains, config.seed)
        self.tasks = mixture.eval_tasks
        self.sampling = sampling_of(config)
        hush_transformers()
        torch.set_num_threads(config.threads)
        self.grader = Grader(config.domains)
        require_golds(mixture.sources, GOLDS, self.grader.grade)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.grader.close()

    def evaluate(self, candidate: ModelConfig, setting: EvalConfig) -> Evaluation:
        """avg@n, with the random stream of every evaluation. Remarks on what is not in the score go to stderr.

        Raises ValueError that names the prompts that do not fit the candidate's context, unless too_long is drop.
        """
        model, tokenizer = load_model(candidate, device=self.device)
        own, of_run = candidate.chat_template_kwargs, self.config.model.chat_template_kwargs
        renderer = Renderer(tokenizer, model.generation_config, of_run if own is None else own)
        renderer.check_system_prompts(self.tasks.values())
        batch_size, dtype = self.config.rollout.batch_size, DTYPES[candidate.dtype]
        engine = LocalEngine(model, renderer, batch_size=batch_size, dtype=dtype)
        check_generation(engine)
        sampling = replace(self.sampling, temperature=setting.temperature, noise=0.0)
        room = Room(engine, sampling)
        room.require(list(self.tasks))
        screen = Screen(room.prompt_fault, self.config.too_long)
        kept = {domain: screen.held_out(domain, tasks) for domain, tasks in self.tasks.items()}
        left_out = {domain: len(tasks) - len(kept[domain]) for domain, tasks in self.tasks.items()}
        too_long = {domain: count for domain, count in left_out.items() if count}
        asked = [task for tasks in kept.values() for task in tasks]
        return evaluated(str(candidate.path), engine, self.grader, asked, setting.n, sampling, too_long)

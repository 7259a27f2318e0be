"""Weights that write and learn: one model behind an engine and a learner, with the tokenizer they share."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch

from onepolicy import merging
from onepolicy.config import BranchMergeConfig, LossConfig, RunConfig
from onepolicy.engines.base import Scorer
from onepolicy.engines.forward import live_head, score_samples
from onepolicy.engines.local import LocalEngine
from onepolicy.engines.precision import DTYPES
from onepolicy.engines.probe import check_policy
from onepolicy.engines.text import Renderer
from onepolicy.learner import Learner
from onepolicy.models import load_model
from onepolicy.runfolder import tensor_bytes
from onepolicy.types import Sample, TokenScores, Want


class Policy:
    """Opened from a run's starting model. Engine and learner hold the same weights, so nothing is ever synchronised."""

    def __init__(self, config: RunConfig, loss: LossConfig, device: torch.device) -> None:
        self.config = config
        model, tokenizer = load_model(config.model, config.seed, device)
        self.renderer = Renderer(tokenizer, model.generation_config, config.model.chat_template_kwargs)
        dtype = DTYPES[config.model.dtype]
        self.engine = LocalEngine(model, self.renderer, batch_size=config.rollout.batch_size, dtype=dtype)
        self.learner = Learner(
            model,
            tokenizer,
            config.optim,
            loss,
            temperature=config.learning_temperature,
            total_steps=config.steps * getattr(config, "inner_updates", 1),
            dtype=dtype,
        )
        check_policy(self.engine)
        self.snapshot: Snapshot | None = None

    def take_snapshot(self) -> None:
        """Keep the weights as they are now, for `as_peer("snapshot")`."""
        self.snapshot = Snapshot(self.learner)

    def as_peer(self, kind: Literal["live", "snapshot"]) -> Scorer:
        """This policy as a teacher of others: as it is, or as it was when the snapshot was taken."""
        if kind == "live":
            return self.learner
        assert self.snapshot is not None, "a peer by snapshot needs take_snapshot first"
        return self.snapshot

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs to go on bit-identically, the snapshot included."""
        return {"learner": self.learner.state(), "snapshot": self.snapshot and self.snapshot.model.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.learner.restore(state["learner"])
        if state["snapshot"] is not None:
            self.take_snapshot()
            assert self.snapshot is not None
            self.snapshot.model.load_state_dict(state["snapshot"])


class Snapshot:
    """A learner's weights at one moment, as a Scorer."""

    def __init__(self, learner: Learner) -> None:
        self.model = copy.deepcopy(learner.model).eval().requires_grad_(False)
        self.learner = learner

    def score(self, samples: Sequence[Sample], want: Want) -> list[TokenScores]:
        with self.learner.computing():  # as the live learner scores
            return score_samples(
                self.model,
                live_head(self.model, self.learner.vocabulary),
                samples,
                want,
                source="snapshot",
                temperature=self.learner.temperature,
                tokens_per_batch=self.learner.optim.tokens_per_batch,
            )


def merged(branches: Sequence[Policy], config: BranchMergeConfig) -> Policy:
    """A new policy from the branches' weights, all of one origin: their average, or θ_0 + Σ scale·(θ_k − θ_0)."""
    first = branches[0]
    result = Policy(first.config, first.learner.loss, first.learner.device)  # opened anew: it holds the origin
    states = [branch.learner.model.state_dict() for branch in branches]
    if config.method == "average":
        state = merging.average(states)
    else:
        origin = result.learner.model.state_dict()
        state = merging.task_arithmetic(origin, states, [config.scale] * len(states))
    result.learner.model.load_state_dict(state)
    return result


def bytes_on_disk(policies: Iterable[Policy]) -> tuple[int, int]:
    """Estimated from the weights: the bytes of one checkpoint of all policies, and of their saved models."""
    checkpoint = models = 0
    for policy in policies:
        moments = 2 * sum(p.numel() * p.element_size() for p in policy.learner.parameters)  # AdamW's, from step 1 on
        checkpoint += tensor_bytes(policy.state()) + moments
        model = policy.learner.model
        dtype = model.config.dtype or torch.float32
        models += tensor_bytes(model.state_dict()) * dtype.itemsize // torch.float32.itemsize
    return checkpoint, models


def model_card(config: RunConfig) -> str:
    """The README.md of a saved model: what it is and where it came from."""
    recipe = type(config).model_fields["recipe"].default
    origin = config.model.path or "a model built from scratch"
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [onepolicy, {recipe}]\n---\n"
        f"# {config.output.name}\n\nTrained with onepolicy by the recipe `{recipe}` "
        f"from {origin}, for {config.steps} steps on the domains {', '.join(config.domains)} "
        f"(seed {config.seed}).\n\nThe full configuration is in `config.yaml` of the run folder that holds this.\n"
    )

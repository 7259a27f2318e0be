"""The methods that MOPD is measured against: cascaded RL, finetuning on teachers' rollouts, merging of weights."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from onepolicy.config.common import FolderConfig, ModelConfig, RolloutConfig, TaughtConfig
from onepolicy.config.loss import BalanceConfig
from onepolicy.config.names import Name, check_distinct
from onepolicy.config.recipes import ReferencedConfig, RlvrConfig
from onepolicy.config.strict import did_you_mean


class CascadeConfig(ReferencedConfig):
    """Baseline: one domain after the other, each stage `steps` of rlvr from the model of the one before."""

    recipe: Literal["cascade_rl"] = "cascade_rl"
    order: list[str] = Field(min_length=1, description="the domains to train on, first to last")

    @model_validator(mode="after")
    def _every_drawn_domain_is_a_stage(self) -> Self:
        for name in self.order:
            if name not in self.domains:
                raise ValueError(f"order names {name!r}, which is no domain: {did_you_mean(name, list(self.domains))}")
            if self.order.count(name) > 1:
                raise ValueError(f"order names {name!r} twice: its second stage would see the prompts of its first")
            if not self.domains[name].share:
                raise ValueError(f"order names {name!r}, which has share 0: give it a share, or take it out of order")
        left_out = [name for name, domain in self.domains.items() if domain.share and name not in self.order]
        if left_out:
            raise ValueError(
                f"{', '.join(left_out)} is in no stage: add it to `order`, or set its share to 0 to only evaluate it"
            )
        return self

    def stages(self) -> list[RlvrConfig]:
        """An ordinary run per stage, in a folder of its own; every domain is evaluated at its end.

        All have the seed of the cascade, so that the first is the run that `rlvr` would be.
        """
        common = self.model_dump(exclude={"recipe", "order"})
        stages: list[RlvrConfig] = []
        for number, name in enumerate(self.order, start=1):
            idle = {other: domain.model_copy(update={"share": 0.0}) for other, domain in self.domains.items()}
            own = {
                "output": self.output / "stages" / f"{number}-{name}",
                "domains": idle | {name: self.domains[name]},
                "model": self.model.model_copy(update={"path": str(stages[-1].output / "model"), "scratch": None})
                if stages
                else self.model,
            }
            stages.append(RlvrConfig.model_validate(common | own))
        return stages


class TeacherRolloutConfig(RolloutConfig):
    """One answer per prompt; `prompts` are answered, graded and written down at a time."""

    n: PositiveInt = 1


class OffpolicyConfig(TaughtConfig):
    """Baseline: supervised finetuning on what the teachers wrote, each in its domains.

    `reduction` is the mean of the loss: over all tokens, or over each answer's first. `balance` moves the budget
    between domains; a token's signal is its cross-entropy, known after the step, so that `dn` is not to be had.
    """

    recipe: Literal["offpolicy"] = "offpolicy"
    reduction: Literal["token", "sequence"] = "token"
    balance: BalanceConfig = BalanceConfig()
    rollout: TeacherRolloutConfig = TeacherRolloutConfig()
    rollouts_per_domain: PositiveInt = 1024
    keep: Literal["all", "correct"] = Field("all", description="train on every rollout, or on those of reward 1")
    batch_size: PositiveInt = 64

    @model_validator(mode="after")
    def _dn_needs_signals(self) -> Self:
        if self.balance.kind == "dn":
            raise ValueError("balance.kind dn needs every token's signal before the update: use share or gap here")
        return self

    @model_validator(mode="after")
    def _prompts_are_whole(self) -> Self:
        if self.rollouts_per_domain % self.rollout.n:
            raise ValueError(
                f"rollouts_per_domain is {self.rollouts_per_domain} and rollout.n {self.rollout.n}: every prompt gets "
                "n rollouts, so make the one a multiple of the other"
            )
        return self


Method = Literal["average", "task_arithmetic", "ties", "dare", "slerp"]
SETTINGS = ("lambdas", "weights", "density", "t")
NEEDED: dict[Method, tuple[str, ...]] = {
    "average": (),
    "task_arithmetic": ("lambdas",),
    "ties": ("density",),
    "dare": ("lambdas", "density"),
    "slerp": ("t",),
}
OPTIONAL: dict[Method, tuple[str, ...]] = {"average": ("weights",), "ties": ("weights",)}


class MergeConfig(FolderConfig):
    """Baseline: the weights of several models of one origin made one, tensor by tensor. Nothing is trained.

    lambdas  how much of each task vector is added (task_arithmetic, dare): one number, or one per model
    weights  of the models in the mean (average, ties); equal by default
    density  share of a task vector's entries that are kept (ties: the paper keeps 0.2; dare)
    t        from the first model (0) to the second (1) (slerp)
    sweep    instead of lambdas: numbers to try, each evaluated on `domains`; the best is kept
    vocabulary  for embeddings padded to unlike sizes beyond one tokenizer: pad to the largest, or trim to the smallest
    """

    recipe: Literal["merge"] = "merge"
    base: ModelConfig = Field(description="the models' origin; tokenizer, configuration and chat template are its")
    models: dict[Name, ModelConfig] = Field(min_length=1)
    method: Method
    lambdas: float | dict[str, float] | None = None
    weights: dict[str, NonNegativeFloat] | None = None
    density: Annotated[float, Field(gt=0, le=1)] | None = None
    t: Annotated[float, Field(ge=0, le=1)] | None = None
    sweep: list[NonNegativeFloat] | None = Field(None, min_length=1)
    vocabulary: Literal["pad", "trim"] | None = None
    shard_bytes: PositiveInt = Field(5_000_000_000, description="of one output file, unless one tensor is larger")

    @property
    def model(self) -> ModelConfig:
        """What a merge starts from."""
        return self.base

    @property
    def steps(self) -> int:
        """None are taken."""
        return 0

    def each(self, value: float | dict[str, float] | None) -> list[float]:
        """A setting as one number per model, in order; 1 each when it is not given."""
        value = 1.0 if value is None else value
        return [value[name] if isinstance(value, dict) else value for name in self.models]

    @model_validator(mode="after")
    def _settings_belong_to_the_method(self) -> Self:
        needed, may = NEEDED[self.method], OPTIONAL.get(self.method, ())
        for name in SETTINGS:
            given = getattr(self, name) is not None
            if given and name not in (*needed, *may):
                users = [method for method in NEEDED if name in (*NEEDED[method], *OPTIONAL.get(method, ()))]
                raise ValueError(f"{name} belongs to {' and '.join(users)}, not to {self.method}: remove it")
            if not given and name in needed and not (name == "lambdas" and self.sweep):
                either = " (or a sweep over it)" if name == "lambdas" else ""
                raise ValueError(f"method {self.method} needs {name}{either}: give it")
        if self.method == "slerp" and len(self.models) != 2:
            raise ValueError(f"slerp goes from one model to another, and {len(self.models)} are given: give two")
        return self

    @model_validator(mode="after")
    def _models_are_checkpoints_and_have_their_numbers(self) -> Self:
        check_distinct(self.models)
        for place, model in {"base": self.base, **{f"models.{n}": m for n, m in self.models.items()}}.items():
            if model.path is None:
                raise ValueError(f"{place}: what is merged is a checkpoint: give its `path`, not `scratch`")
        if self.base.dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f"base.dtype is {self.base.dtype}: a merge is written in the dtype of its files, and base.dtype is the "
                "one of its evaluation: use float32 or bfloat16"
            )
        for setting in ("lambdas", "weights"):
            value = getattr(self, setting)
            if isinstance(value, dict) and value.keys() != self.models.keys():
                raise ValueError(f"{setting} names {sorted(value)}, the models are {sorted(self.models)}: one each")
        if self.weights is not None and not any(self.weights.values()):
            raise ValueError("weights are all 0, so nothing would be left: give one of them a weight above 0")
        return self

    @model_validator(mode="after")
    def _a_sweep_can_be_judged(self) -> Self:
        if self.sweep is None:
            return self
        if "lambdas" not in NEEDED[self.method]:
            raise ValueError(f"a sweep tries values of lambdas, which {self.method} does not have: remove it")
        if self.lambdas is not None:
            raise ValueError("lambdas and a sweep over it are both given: remove one")
        if not self.domains:
            raise ValueError(
                "a sweep keeps the model that scores best, and there is nothing to score on: add `domains`"
            )
        if not self.eval.at_end:
            raise ValueError("a sweep evaluates every model that it tries: remove eval.at_end")
        if len(set(self.sweep)) < len(self.sweep):
            raise ValueError(f"the sweep {self.sweep} tries a value twice: name each once")
        return self

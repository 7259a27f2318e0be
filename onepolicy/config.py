"""What a run is, as pydantic models, checked before anything runs. `configfile.py` reads them from YAML.

Defaults are the vetted setting. Unknown keys are errors with a suggestion; nonsense is refused here, and the message
names the fix. No torch here, so that a wrong file is answered at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from onepolicy.lossconfig import DistillConfig as DistillConfig  # seen from outside, all of it is `onepolicy.config`
from onepolicy.lossconfig import ImportanceConfig as ImportanceConfig
from onepolicy.lossconfig import LossConfig as LossConfig
from onepolicy.lossconfig import PolicyConfig as PolicyConfig
from onepolicy.strict import ConfigError as ConfigError
from onepolicy.strict import Strict as Strict
from onepolicy.strict import did_you_mean as did_you_mean
from onepolicy.strict import fault_line as fault_line


class ScratchConfig(Strict):
    """A model built from a config instead of loaded: `architecture` goes to transformers' AutoConfig as it is."""

    architecture: dict[str, Any]
    alphabet: str = Field(min_length=2, description="characters of the tokenizer, one token each")


class ModelConfig(Strict):
    """A checkpoint (folder or hub id), or `scratch`. Compute is float32 or bfloat16 (GPU), over float32 weights."""

    path: str | None = None
    revision: str | None = None
    scratch: ScratchConfig | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: str | None = Field(None, description="transformers' attn_implementation; None lets it choose")

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, data: Any) -> Any:
        return {"path": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.scratch is None):
            raise ValueError("give either `path` (a folder or hub id) or `scratch` (an architecture), and not both")
        return self


class TasksConfig(BaseModel):
    """A task source by `kind`; its other keys are that source's own options, checked in `onepolicy.tasks`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class DomainConfig(Strict):
    """One domain: where its tasks come from and how much of every batch it gets."""

    tasks: TasksConfig
    share: PositiveFloat = 1.0
    max_new_tokens: PositiveInt | None = None
    eval_size: PositiveInt = 64


class TeacherConfig(Strict):
    """A named expert and the domains it teaches; by default the domain of its own name."""

    model: ModelConfig
    domains: list[str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, data: Any) -> Any:
        return {"model": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _is_a_checkpoint(self) -> Self:
        if self.model.path is None:
            raise ValueError("a teacher is a checkpoint: give its `path`, not `scratch`")
        return self


class RolloutConfig(Strict):
    """How many prompts a step draws and how the policy answers them."""

    prompts: PositiveInt = 64
    n: PositiveInt = 8
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: NonNegativeInt = 0
    max_new_tokens: PositiveInt = 256
    batch_size: PositiveInt = 256

    @model_validator(mode="after")
    def _sample_what_is_trained(self) -> Self:
        if self.top_p < 1 or self.top_k > 0:
            raise ValueError(
                f"rollouts with top_p={self.top_p}, top_k={self.top_k} come from another distribution than the one "
                "that is trained, and every importance ratio would be wrong: use top_p 1 and top_k 0"
            )
        return self


class OptimConfig(Strict):
    """AdamW and the shape of an update. `tokens_per_batch` bounds a micro-batch; it never changes the result."""

    learning_rate: PositiveFloat = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: NonNegativeInt = 0
    weight_decay: NonNegativeFloat = 0.0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    clip_norm: PositiveFloat = 1.0
    tokens_per_batch: PositiveInt = 16384
    gradient_checkpointing: bool = False


class EvalConfig(Strict):
    """avg@n at `temperature` (0 is greedy) on each domain's held-out tasks, every `every` steps and at the end."""

    n: PositiveInt = 4
    every: NonNegativeInt = 0
    temperature: NonNegativeFloat = 1.0
    at_end: bool = True


class CheckpointConfig(Strict):
    every: PositiveInt = 50
    keep: PositiveInt = 2


class ScheduleConfig(Strict):
    """A weight that goes linearly from `start` to `end` over `steps`; a plain number stays as it is."""

    start: NonNegativeFloat
    end: NonNegativeFloat
    steps: PositiveInt

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, data: Any) -> Any:
        return {"start": data, "end": data, "steps": 1} if isinstance(data, (int, float)) else data

    def at(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(1.0, step / self.steps)

    @property
    def largest(self) -> float:
        return max(self.start, self.end)


class RunConfig(Strict):
    """What every recipe has in common."""

    output: Path
    seed: NonNegativeInt = 0
    model: ModelConfig
    domains: dict[str, DomainConfig] = Field(min_length=1)
    steps: PositiveInt
    rollout: RolloutConfig = RolloutConfig()
    optim: OptimConfig = OptimConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: PositiveInt = Field(1, description="CPU threads of this process; two busy processes want one each")


class SftConfig(RunConfig):
    """Stage 1: supervised finetuning on demonstrations of all domains."""

    recipe: Literal["sft"] = "sft"
    batch_size: PositiveInt = 64


class RlvrConfig(RunConfig):
    """Stage 2: one expert, by reinforcement learning from verifiable rewards."""

    recipe: Literal["rlvr"] = "rlvr"
    loss: LossConfig = LossConfig()
    advantage: Literal["grpo", "dr_grpo", "rloo", "maxrl"] = "grpo"
    max_draws: PositiveInt = Field(1, description="dynamic sampling: draw up to this many batches to fill one")
    overlong: Literal["keep", "mask"] = Field("keep", description="train on truncated responses, or mask them")
    reference_kl: NonNegativeFloat = Field(0.0, description="weight of the reverse KL to the starting model")
    inner_updates: PositiveInt = 1

    @model_validator(mode="after")
    def _groups_have_a_baseline(self) -> Self:
        if self.rollout.n == 1:
            raise ValueError("rollout.n is 1: a group of one has no baseline and its advantage is 0; use n >= 2")
        return self

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if self.reference_kl > 0 and self.model.path is None:
            raise ValueError("reference_kl > 0 needs a starting model with a `path`: one from scratch is no reference")
        _updates_fit(self.inner_updates, self.rollout)
        return self


def _updates_fit(inner_updates: int, rollout: RolloutConfig) -> None:
    if inner_updates > rollout.prompts:
        raise ValueError(
            f"inner_updates is {inner_updates}, but rollout.prompts only {rollout.prompts}: each update needs at least "
            "one prompt; lower inner_updates or raise rollout.prompts"
        )


class MopdRolloutConfig(RolloutConfig):
    """One trajectory per prompt, as in the paper."""

    prompts: PositiveInt = 256
    n: PositiveInt = 1


class CheckConfig(Strict):
    """The pre-flight of the teachers: how many student rollouts per domain, and when to warn."""

    samples: PositiveInt = 16
    warn_reverse_kl: PositiveFloat = 0.15
    warn_overlap: Annotated[float, Field(gt=0, lt=1)] = 0.6
    overlap_k: PositiveInt = 10
    max_invalid_share: Annotated[float, Field(ge=0, le=1)] = 0.01


class MopdConfig(RunConfig):
    """Stage 3: multi-teacher on-policy distillation."""

    recipe: Literal["mopd"] = "mopd"
    rollout: MopdRolloutConfig = MopdRolloutConfig()
    teachers: dict[str, TeacherConfig] = Field(min_length=1)
    loss: LossConfig = LossConfig()
    distill_weight: ScheduleConfig = ScheduleConfig(start=1, end=1, steps=1)
    outcome_weight: ScheduleConfig = ScheduleConfig(start=0, end=0, steps=1)
    advantage: Literal["grpo", "dr_grpo", "rloo", "maxrl"] = "grpo"
    inner_updates: PositiveInt = 1
    check: CheckConfig = CheckConfig()

    @property
    def routes(self) -> dict[str, str]:
        """domain → name of its one teacher."""
        return {domain: name for name, teacher in self.teachers.items() for domain in teacher.domains or [name]}

    @model_validator(mode="after")
    def _every_domain_has_one_teacher(self) -> Self:
        routes: dict[str, str] = {}
        for name, teacher in self.teachers.items():
            if teacher.domains is not None and not teacher.domains:
                raise ValueError(f"teacher {name!r} has no domains: name at least one, or remove the teacher")
            for domain in teacher.domains or [name]:
                if domain not in self.domains:
                    raise ValueError(
                        f"teacher {name!r} teaches {domain!r}, which is no domain of this run: "
                        f"{did_you_mean(domain, list(self.domains))} (or set teachers.{name}.domains)"
                    )
                if domain in routes:
                    raise ValueError(f"domain {domain!r} has two teachers, {routes[domain]!r} and {name!r}: keep one")
                routes[domain] = name
        missing = [domain for domain in self.domains if domain not in routes]
        if missing:
            raise ValueError(f"no teacher for {', '.join(missing)}: add the domain to a teacher's `domains`")
        return self

    @model_validator(mode="after")
    def _weights_mean_something(self) -> Self:
        if self.rollout.n == 1 and self.outcome_weight.largest > 0:
            raise ValueError(
                "outcome_weight > 0 with rollout.n 1: a group of one has no baseline, so the outcome term is 0; "
                "use rollout.n >= 2, or outcome_weight 0"
            )
        if self.distill_weight.largest == 0 and self.outcome_weight.largest == 0:
            raise ValueError("distill_weight and outcome_weight are both 0, so nothing trains: raise one of them")
        _updates_fit(self.inner_updates, self.rollout)
        return self


AnyRun = SftConfig | RlvrConfig | MopdConfig
RECIPES: dict[str, type[AnyRun]] = {"sft": SftConfig, "rlvr": RlvrConfig, "mopd": MopdConfig}


def parse_run(data: Mapping[str, Any]) -> AnyRun:
    """Validate a run. Raises ConfigError that lists every fault, one a line, each with its place."""
    recipe = data.get("recipe")
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise ConfigError(f"recipe: {recipe!r} is not a recipe: {did_you_mean(str(recipe), list(RECIPES))}")
    try:
        return RECIPES[recipe].model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(fault_line(fault) for fault in error.errors())) from None

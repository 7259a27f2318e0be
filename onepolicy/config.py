"""What a run is, as pydantic models: read from YAML, overridden by `key.sub=value`, checked before anything runs.

Defaults are the vetted setting. Unknown keys are errors with a suggestion; nonsense is refused here, and the message
names the fix. No torch here, so that a wrong file is answered at once.

    load_run("run.yaml", ["optim.learning_rate=1e-5", "teachers.math=/models/math"])
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError


class ConfigError(ValueError):
    """The configuration is wrong; the message lists every fault with its place and the fix."""


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """A suggestion for a misspelt name: the closest known one, else all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"


class Strict(BaseModel):
    """Base of every config class: immutable, and an unknown key is an error with a suggestion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="wrap")
    @classmethod
    def _suggest_known_keys(cls, data: Any, handler: ValidatorFunctionWrapHandler) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            # Here the class is known, and with it the keys to suggest; the same faults go on, in better words.
            faults = [
                InitErrorDetails(
                    type=PydanticCustomError(fault["type"], cls._worded(fault)), loc=fault["loc"], input=fault["input"]
                )
                for fault in error.errors()
            ]
            raise ValidationError.from_exception_data(cls.__name__, faults) from None

    @classmethod
    def _worded(cls, fault: ErrorDetails) -> str:
        if fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1:
            return f"unknown key: {did_you_mean(str(fault['loc'][0]), list(cls.model_fields))}"
        return fault["msg"]


class ScratchConfig(Strict):
    """A model built from a config instead of loaded: `architecture` goes to transformers' AutoConfig as it is."""

    architecture: dict[str, Any]
    alphabet: str = Field(min_length=2, description="characters of the tokenizer, one token each")


class ModelConfig(Strict):
    """A checkpoint (folder or hub id), or `scratch`. `float32` or, on a GPU, `bfloat16` compute over float32 weights."""

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


class PolicyConfig(Strict):
    """The policy-gradient loss. `dual_clip` bounds negative advantages at large ratios (None: off)."""

    kind: Literal["ppo", "cispo", "reinforce", "gspo"] = "ppo"
    clip_low: Annotated[float, Field(ge=0, le=1)] = 0.2
    clip_high: NonNegativeFloat = 0.28
    dual_clip: Annotated[float, Field(gt=1)] | None = None

    @model_validator(mode="after")
    def _dual_clip_belongs_to_ppo(self) -> Self:
        if self.dual_clip is not None and self.kind != "ppo":
            raise ValueError(f"dual_clip={self.dual_clip} belongs to kind ppo, not {self.kind}: remove it")
        return self


class ImportanceConfig(Strict):
    """Weights between the engine that wrote a token and the learner (MiMo-V2-Flash §4.4).

    `gate` zeroes a token whose ratio leaves [low, high]; `truncate` caps the ratio at `high`.
    """

    mode: Literal["off", "gate", "truncate"] = "gate"
    low: NonNegativeFloat = 0.5
    high: PositiveFloat = 2.0

    @model_validator(mode="after")
    def _brackets_one(self) -> Self:
        if self.mode != "off" and not self.low <= 1 <= self.high:
            raise ValueError(f"low={self.low} and high={self.high} must bracket 1, the ratio of equal engines")
        return self


class DistillConfig(Strict):
    """What "move the student towards the teacher" means, per token (MOPD Eq. 1-5).

    estimator  sampled  the teacher's and student's log-probs of the sampled token; as an advantage (Eq. 3-4)
               k2, k3   Schulman's estimators on the sampled token, differentiated; k3's gradient is *forward* KL's
               topk     over the teacher's k most likely tokens (Eq. 5)
               full     over the whole vocabulary (Eq. 1)
    transform  of the sampled signal: clip to ±max_signal, log_compress, power (PowerOPD), none
    """

    estimator: Literal["sampled", "k1", "k2", "k3", "topk", "full"] = "sampled"
    apply: Literal["advantage", "loss"] | None = None
    divergence: Literal["reverse_kl", "forward_kl", "jsd"] = "reverse_kl"
    k: PositiveInt = 64
    topk: Literal["corrected", "uncorrected", "renormalised", "tail"] = "corrected"
    jsd_beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    transform: Literal["clip", "log_compress", "power", "none"] = "clip"
    max_signal: PositiveFloat = 5.0
    power: PositiveFloat = 5.0
    refresh: bool = Field(True, description="at each of several inner updates, use the student's current log-probs")

    @model_validator(mode="after")
    def _refuse_what_cannot_work(self) -> Self:
        estimator = self.estimator
        if estimator == "k1" or (estimator == "sampled" and self.apply == "loss"):
            raise ValueError(
                "k1 (the sampled log-ratio) as a direct loss has zero expected gradient and never sees the teacher: "
                "use estimator: sampled with apply: advantage, or estimator: k2"
            )
        if estimator in ("topk", "full") and self.apply == "advantage":
            raise ValueError(
                f"a {estimator} divergence collapsed to a scalar advantage on the sampled token carries no useful "
                "gradient: use apply: loss, or estimator: sampled"
            )
        if estimator in ("k2", "k3") and self.apply == "advantage":
            raise ValueError(f"{estimator} is differentiated, it is no advantage: use apply: loss, or sampled")
        if estimator == "topk" and self.topk == "renormalised" and self.k == 1:
            raise ValueError("renormalised top-k with k = 1 is identically 0: use k > 1 or topk: corrected")
        if self.divergence != "reverse_kl" and estimator in ("sampled", "k2", "k3"):
            raise ValueError(f"divergence {self.divergence} needs estimator: topk or full, not {estimator}")
        if self.divergence == "jsd" and estimator == "topk":
            raise ValueError("jsd needs the whole vocabulary: use estimator: full")
        if self.divergence == "forward_kl" and estimator == "topk" and self.topk != "corrected":
            raise ValueError(f"forward_kl over the teacher's top-k has one form: drop topk: {self.topk}")
        return self


class LossConfig(Strict):
    """How one step turns annotations into a number. `sequence`: mean over tokens, then over sequences."""

    reduction: Literal["sequence", "token"] = "sequence"
    policy: PolicyConfig = PolicyConfig()
    distill: DistillConfig = DistillConfig()
    importance: ImportanceConfig = ImportanceConfig()


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
    loss: LossConfig = LossConfig(distill=DistillConfig(estimator="k2"))
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
        if self.rollout.n == 1 and max(self.outcome_weight.start, self.outcome_weight.end) > 0:
            raise ValueError(
                "outcome_weight > 0 with rollout.n 1: a group of one has no baseline, so the outcome term is 0; "
                "use rollout.n >= 2, or outcome_weight 0"
            )
        return self


AnyRun = Annotated[SftConfig | RlvrConfig | MopdConfig, Field(discriminator="recipe")]
RECIPES: dict[str, type[RunConfig]] = {"sft": SftConfig, "rlvr": RlvrConfig, "mopd": MopdConfig}


def set_dotted(data: dict[str, Any], override: str) -> None:
    """Apply one `a.b.c=value` to nested dicts; the value is read as YAML. Raises ConfigError on a bad form."""
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"override {override!r} is not of the form key.sub=value")
    *parents, last = path.split(".")
    for key in parents:
        inner = data.setdefault(key, {})
        if isinstance(inner, str) and key in ("model", "tasks"):
            inner = data[key] = {"path": inner}
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {key!r} holds {inner!r}, which has no keys")
        data = inner
    data[last] = yaml.safe_load(value)


def parse_run(data: Mapping[str, Any]) -> SftConfig | RlvrConfig | MopdConfig:
    """Validate a run. Raises ConfigError that lists every fault with its place."""
    recipe = data.get("recipe")
    if recipe not in RECIPES:
        hint = did_you_mean(str(recipe), list(RECIPES))
        raise ConfigError(f"recipe: {recipe!r} is not a recipe: {hint}")
    try:
        return TypeAdapter(AnyRun).validate_python(dict(data))
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> SftConfig | RlvrConfig | MopdConfig:
    """Read a YAML file, apply dotted overrides and validate. Relative paths stay relative to the working folder."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no such file: {path}")
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no mapping at its top level")
    for override in overrides:
        set_dotted(data, override)
    return parse_run(data)


def _explain(error: ValidationError) -> str:
    lines = []
    for fault in error.errors():
        place = ".".join(str(part) for part in fault["loc"] if part not in RECIPES) or "the run"
        message = fault["msg"].removeprefix("Value error, ")
        given = "" if fault["type"] in ("value_error", "missing") else f" (got {fault['input']!r})"
        lines.append(f"{place}: {message}{given}")
    return "\n".join(lines)

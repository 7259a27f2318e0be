"""What runs have in common: models, domains, rollouts, the optimizer, evaluation, checkpoints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from onepolicy.config.names import Name, check_distinct, check_domain_names
from onepolicy.config.objects import spelled
from onepolicy.config.strict import Settings, Strict, check_finite, did_you_mean


class ScratchConfig(Strict):
    """A model built from a config instead of loaded: `architecture` goes to transformers' AutoConfig as it is.

    `roles` are those that chats have beside system, user and assistant, for example tool; a token each.
    """

    architecture: Settings
    alphabet: str = Field(min_length=2, description="characters of the tokenizer, one token each")
    roles: tuple[Annotated[str, Field(pattern="^[a-z]+$")], ...] = ()


class ModelConfig(Strict):
    """A checkpoint (folder or hub id), or `scratch`.

    `dtype` of a student is the precision of its compute, float32 or bfloat16 (autocast), over float32 weights. That of
    a teacher is the precision of its weights; `auto`, its default, takes them as the file has them. So a teacher is
    mapped from where it lies unless another dtype is asked for.

    `chat_template_kwargs` are arguments of the chat template, for example {enable_thinking: false}. A teacher that has
    none gets the student's; where it has some, both must render a chat alike.
    """

    path: str | None = None
    revision: str | None = None
    scratch: ScratchConfig | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    attention: str | None = Field(None, description="transformers' attn_implementation; None lets it choose")
    chat_template_kwargs: Settings | None = None

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
    """A task source by `kind`; its other keys are that source's own options, checked in `onepolicy.tasks`.

    From Python a function, a class or rows may be given as objects: see `objects.py`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str

    @model_validator(mode="before")
    @classmethod
    def _spell_objects(cls, data: Any) -> Any:
        return spelled(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _numbers_are_finite(self) -> Self:
        check_finite(self.options)
        return self

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class DomainConfig(Strict):
    """One domain: where its tasks come from and how much of every batch it gets (0: it is evaluated, never drawn).

    `max_new_tokens` bounds an answer, or all turns of an episode together. `system_prompt` stands before every chat of
    the domain, in the place of the run's ("" for none); a system message that the chat has already follows in it.
    """

    tasks: TasksConfig
    share: NonNegativeFloat = 1.0
    max_new_tokens: PositiveInt | None = None
    system_prompt: str | None = None
    eval_size: PositiveInt = 64


def _usable(domains: dict[str, DomainConfig]) -> dict[str, DomainConfig]:
    check_domain_names(domains)
    if domains and not any(domain.share for domain in domains.values()):
        raise ValueError("every domain has share 0, so there is nothing to draw: give one of them a share above 0")
    return domains


def _prompted(domain: Any, system_prompt: str) -> Any:
    """A domain, as a file or as Python has it, with a system prompt unless it has one of its own."""
    if isinstance(domain, DomainConfig) and domain.system_prompt is None:
        return domain.model_copy(update={"system_prompt": system_prompt})
    if isinstance(domain, dict) and domain.get("system_prompt") is None:
        return {**domain, "system_prompt": system_prompt}
    return domain


Domains = Annotated[dict[Name, DomainConfig], AfterValidator(_usable)]


class TeacherConfig(Strict):
    """A named expert and the domains it teaches; by default the domain of its own name. Its `model.dtype` is auto."""

    model: ModelConfig
    domains: list[str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, data: Any) -> Any:
        data = {"model": data} if isinstance(data, str) else data
        if not isinstance(data, dict):
            return data
        model = data.get("model")
        model = {"path": model} if isinstance(model, str) else model
        return {**data, "model": {"dtype": "auto", **model}} if isinstance(model, dict) else data

    @model_validator(mode="after")
    def _is_a_checkpoint(self) -> Self:
        if self.model.path is None:
            raise ValueError("a teacher is a checkpoint: give its `path`, not `scratch`")
        return self


class RolloutConfig(Strict):
    """How many prompts a step draws and how the policy answers them, in training and in evaluation.

    `stop`: strings that end a response as an end token does, as soon as its text has one, also in a thought (as vLLM
    does it); graders see the text before it. `min_new_tokens`: no response, or turn of an episode, ends earlier.
    """

    prompts: PositiveInt = 64
    n: PositiveInt = 8
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: NonNegativeInt = 0
    max_new_tokens: PositiveInt = 256
    min_new_tokens: NonNegativeInt = 0
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    batch_size: PositiveInt = 256

    @model_validator(mode="after")
    def _can_end(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens {self.min_new_tokens} is above max_new_tokens {self.max_new_tokens}")
        return self

    @model_validator(mode="after")
    def _sample_what_is_trained(self) -> Self:
        if self.top_p < 1 or self.top_k > 0:
            raise ValueError(
                f"rollouts with top_p={self.top_p}, top_k={self.top_k} come from another distribution than the one "
                "that is trained, and every importance ratio would be wrong: use top_p 1 and top_k 0"
            )
        return self


class TrainingRolloutConfig(RolloutConfig):
    """Rollouts that are learnt from by their log-probs.

    `engine_noise` is the standard deviation of Gaussian noise on the logits that training rollouts are sampled from,
    fresh for every token; evaluation has none. It is a way to study what an engine does that computes other numbers
    than the learner (another kernel, a quantised model), and what `loss.importance` does about it: 0 but for that.
    """

    engine_noise: NonNegativeFloat = 0.0


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
    """A weight that goes linearly from `start` to `end` over `steps`; a plain number stays as it is.

    By step it is TGPO's rule (arXiv 2605.13230: 2e-3 to 0 over 200 steps) and, for a distillation weight from 1 to 0,
    that of SAF (arXiv 2607.29209) when `plateau` says when the first of the steps is.
    """

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


class PlateauConfig(Strict):
    """Schedules begin once the logged reverse KL has stopped falling (SAF, arXiv 2607.29209), not at the first step.

    It has when its running mean (with `decay`) has not come below its lowest by more than a part `tolerance` of it, for
    `patience` steps. The three values are this project's choice.
    """

    patience: PositiveInt = 10
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.01
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9


def _a_device(name: str) -> str:
    """Its form alone: whether there is such a GPU, torch knows (models.pick_device)."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", name):
        hint = "; onepolicy needs Linux and has no mps" if name == "mps" else ""
        raise ValueError(f"{name!r} is no device: give auto, cpu, cuda or cuda:N, for example cuda:0{hint}")
    return name


class FolderConfig(Strict):
    """What every run has in common, also one that trains nothing: where it goes, and how its result is evaluated.

    `system_prompt` is for all domains without one of their own, in training and in evaluation.
    """

    output: Path
    seed: NonNegativeInt = 0
    domains: Domains = Field(default_factory=dict)
    system_prompt: str | None = None
    rollout: RolloutConfig = RolloutConfig()
    eval: EvalConfig = EvalConfig()
    too_long: Literal["drop", "error"] = Field(
        "error", description="prompts with max_new_tokens beyond the model's context, or that cannot be rendered"
    )
    device: Annotated[str, AfterValidator(_a_device)] = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: PositiveInt = Field(1, description="CPU threads of this process; two busy processes want one each")

    @model_validator(mode="before")
    @classmethod
    def _prompt_every_domain(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("system_prompt"), str):
            return data
        domains = data.get("domains")
        if not isinstance(domains, dict):
            return data
        prompted = {name: _prompted(domain, data["system_prompt"]) for name, domain in domains.items()}
        return {**data, "domains": prompted}

    @model_validator(mode="after")
    def _every_domain_can_end(self) -> Self:
        for name, domain in self.domains.items():
            if domain.max_new_tokens is not None and domain.max_new_tokens < self.rollout.min_new_tokens:
                raise ValueError(
                    f"domains.{name}.max_new_tokens {domain.max_new_tokens} is below rollout.min_new_tokens "
                    f"{self.rollout.min_new_tokens}: no response could end by itself"
                )
        return self


class RunConfig(FolderConfig):
    """What every recipe that trains has in common."""

    demonstrated: ClassVar[bool] = False  # trains on the sources' demonstrations, not on responses to their prompts

    model: ModelConfig
    domains: Domains = Field(min_length=1)
    steps: PositiveInt
    optim: OptimConfig = OptimConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def learning_temperature(self) -> float:
        """Of the softmax that learns. Texts (sft, offpolicy) are imitated at 1, whatever they were sampled at."""
        return 1.0

    @model_validator(mode="after")
    def _the_student_computes_in_a_dtype_that_trains(self) -> Self:
        if self.model.dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f"model.dtype is {self.model.dtype}, which is for teachers: a student computes in float32 or bfloat16 "
                "over float32 weights, whatever its file holds; use one of these"
            )
        return self


class TaughtConfig(RunConfig):
    """A run with teachers: every domain that is drawn from has exactly one.

    The teacher `self` is the model that the run starts from, frozen: for domains to be kept as they are. It computes
    like the student (`model.dtype`), so that its scores are the student's own at step 0.
    """

    teachers: dict[Name, TeacherConfig] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _self_is_the_start(cls, data: Any) -> Any:
        teachers = data.get("teachers") if isinstance(data, dict) else None
        if not isinstance(teachers, dict):
            return data
        spelt = {
            name: {"model": teacher} if isinstance(teacher, str) else teacher for name, teacher in teachers.items()
        }
        own = [name for name, t in spelt.items() if isinstance(t, dict) and t.get("model") == "self"]
        start = data.get("model")
        start = {"path": start} if isinstance(start, str) else start
        if isinstance(start, dict):
            start = {"dtype": ModelConfig.model_fields["dtype"].default, **start}
        return {**data, "teachers": spelt | {name: {**spelt[name], "model": start} for name in own}}

    @property
    def routes(self) -> dict[str, str]:
        """domain → name of its one teacher."""
        return {domain: name for name, teacher in self.teachers.items() for domain in teacher.domains or [name]}

    @model_validator(mode="after")
    def _every_domain_has_one_teacher(self) -> Self:
        check_distinct(self.teachers)
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
        missing = [domain for domain, config in self.domains.items() if config.share and domain not in routes]
        if missing:
            raise ValueError(f"no teacher for {', '.join(missing)}: add the domain to a teacher's `domains`")
        return self

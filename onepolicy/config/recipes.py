"""One config class per recipe that trains. Nonsense is refused here, and the message names the fix."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from onepolicy.config.common import (
    PlateauConfig,
    RolloutConfig,
    RunConfig,
    ScheduleConfig,
    TaughtConfig,
    TrainingRolloutConfig,
)
from onepolicy.config.loss import BalanceConfig, LossConfig
from onepolicy.config.strict import Strict, did_you_mean


class SftConfig(RunConfig):
    """Stage 1: supervised finetuning on demonstrations of all domains."""

    demonstrated: ClassVar[bool] = True

    recipe: Literal["sft"] = "sft"
    batch_size: PositiveInt = 64


class ProbeConfig(Strict):
    """What `onepolicy check` lets the starting model answer, and when it warns about a domain.

    samples       held-out prompts of each domain, answered `rollout.n` times
    warn_starved  a domain's predicted part of the update, over its part of the prompts: below this it starves
    warn_contrast share of a domain's groups whose rewards differ: below this there is next to nothing to reinforce
    Both levels are this project's choice; Open-MOPD's starved domain (arXiv 2608.19098) had 1% of the tokens for 20% of
    the prompts.
    """

    samples: PositiveInt = 16
    warn_starved: Annotated[float, Field(gt=0, lt=1)] = 0.5
    warn_contrast: Annotated[float, Field(gt=0, lt=1)] = 0.1


class DiagnosedConfig(RunConfig):
    """A run that `onepolicy check` can rehearse, and that can measure on the way how far its policy is from others.

    The origin is the model that the run starts from; in a cascade, that its stage starts from.
    """

    check: ProbeConfig = ProbeConfig()
    diagnose_every: NonNegativeInt = Field(
        0, description="steps between measurements of overlap and symmetric KL to the origin, teachers, peers; 0: none"
    )

    @property
    def learning_temperature(self) -> float:
        """That of the policy's own rollouts: what was sampled is what is trained."""
        return self.rollout.temperature

    @model_validator(mode="after")
    def _has_an_origin(self) -> Self:
        if self.diagnose_every and self.model.path is None:
            raise ValueError("diagnose_every > 0 needs a starting model with a `path`: one from scratch is no origin")
        return self


def _with_length(data: Any, rollout: RolloutConfig) -> Any:
    """Reduction `constant` divides by the longest possible response unless the file gives another length."""
    loss = data.get("loss") if isinstance(data, dict) else None
    if not isinstance(loss, dict) or loss.get("reduction") != "constant" or loss.get("length") is not None:
        return data
    given = data.get("rollout", {})
    longest = given.get("max_new_tokens") if isinstance(given, dict) else given.max_new_tokens
    return {**data, "loss": {**loss, "length": longest or rollout.max_new_tokens}}


def _no_length_bias(advantage: str, loss: LossConfig) -> None:
    if advantage == "dr_grpo" and loss.reduction == "sequence":
        raise ValueError(
            "advantage: dr_grpo is to take the bias of GRPO by length away, and loss.reduction: sequence divides each "
            "response by its length again: use loss.reduction: constant (as its paper does), or token"
        )


class ReinforcedConfig(DiagnosedConfig):
    """What recipes share that do reinforcement learning from verifiable rewards."""

    rollout: TrainingRolloutConfig = TrainingRolloutConfig()
    loss: LossConfig = LossConfig()
    advantage: Literal["grpo", "dr_grpo", "rloo", "maxrl"] = "grpo"
    turn_weight: NonNegativeFloat = Field(0.0, description="of the rewards that environments give to single turns")
    max_draws: PositiveInt = Field(1, description="dynamic sampling: draw up to this many batches to fill one")
    overlong: Literal["keep", "mask", "soft"] = Field(
        "keep",
        description="truncated responses: train on them; leave them out of the loss and of its denominator (mask); or "
        "punish the last `overlong_cache` tokens before the limit, softly (DAPO)",
    )
    overlong_cache: PositiveInt | None = None
    inner_updates: PositiveInt = 1

    @model_validator(mode="before")
    @classmethod
    def _constant_has_a_length(cls, data: Any) -> Any:
        return _with_length(data, TrainingRolloutConfig())

    @model_validator(mode="after")
    def _groups_have_a_baseline(self) -> Self:
        _no_length_bias(self.advantage, self.loss)
        self._soft_has_a_cache()
        if self.rollout.n == 1:
            raise ValueError("rollout.n is 1: a group of one has no baseline and its advantage is 0; use n >= 2")
        _updates_fit(self.inner_updates, self.rollout)
        if self.loss.distill.weighting.max_disagreement is not None:
            raise ValueError("max_disagreement is about a student's several teachers, which only mopd has: remove it")
        return self

    def _soft_has_a_cache(self) -> None:
        if (self.overlong_cache is not None) != (self.overlong == "soft"):
            raise ValueError(
                f"overlong is {self.overlong} and overlong_cache {self.overlong_cache}: overlong: soft needs a cache, "
                "the tokens before the limit that are punished (DAPO: 4096 of 20480), and nothing else has one"
            )
        limits = [self.rollout.max_new_tokens, *(d.max_new_tokens for d in self.domains.values() if d.max_new_tokens)]
        if self.overlong_cache is not None and self.overlong_cache >= min(limits):
            raise ValueError(
                f"overlong_cache is {self.overlong_cache}, and responses have at most {min(limits)} tokens: lower it"
            )
        if self.overlong == "soft" and self.advantage == "maxrl":
            raise ValueError("advantage: maxrl needs rewards >= 0, and overlong: soft makes them negative: use grpo")


class ReferencedConfig(ReinforcedConfig):
    """Reinforcement learning that may be held back by the model it starts from."""

    reference_kl: NonNegativeFloat = Field(0.0, description="weight of the reverse KL to the starting model")

    @model_validator(mode="after")
    def _has_a_reference(self) -> Self:
        if self.reference_kl > 0 and self.model.path is None:
            raise ValueError("reference_kl > 0 needs a starting model with a `path`: one from scratch is no reference")
        return self


class RlvrConfig(ReferencedConfig):
    """Stage 2: one expert, by reinforcement learning from verifiable rewards."""

    recipe: Literal["rlvr"] = "rlvr"


class MixRlConfig(ReinforcedConfig):
    """Baseline: one policy, all domains in every batch, each sample with its own domain's reward and group."""

    recipe: Literal["mix_rl"] = "mix_rl"
    balance: BalanceConfig = BalanceConfig()


def _updates_fit(inner_updates: int, rollout: RolloutConfig) -> None:
    if inner_updates > rollout.prompts:
        raise ValueError(
            f"inner_updates is {inner_updates}, but rollout.prompts only {rollout.prompts}: each update needs at least "
            "one prompt; lower inner_updates or raise rollout.prompts"
        )


class MopdRolloutConfig(TrainingRolloutConfig):
    """One trajectory per prompt, as in the paper."""

    prompts: PositiveInt = 256
    n: PositiveInt = 1


class CheckConfig(ProbeConfig):
    """The pre-flight of the teachers besides, on the same rollouts; also made when a run starts, with one each.

    warn_reverse_kl    nats a token. MOPD: teachers of the student's origin start near .04, foreign ones near .19
    warn_overlap       of top-k tokens. CoPD: gain grows with overlap (r = .89) and its peers stay above .90. In the
                       demo .6 lies between experts of the student's origin and those of another (LOG.md)
    overlap_k          by default 10, less for a vocabulary below 100 (diagnostics.overlap_size)
    warn_disagreement  mean of max − min over the teachers' log-probs, nats a token; this project's choice
    max_invalid_share  of tokens without a finite log-prob; above, the teacher is refused
    """

    warn_reverse_kl: PositiveFloat = 0.15
    warn_overlap: Annotated[float, Field(gt=0, lt=1)] = 0.6
    overlap_k: PositiveInt | None = None
    warn_disagreement: PositiveFloat = 1.0
    max_invalid_share: Annotated[float, Field(ge=0, le=1)] = 0.01


class MopdConfig(TaughtConfig, DiagnosedConfig):
    """Stage 3: multi-teacher on-policy distillation.

    With a `plateau` both weights stay at their `start` until the KL to the teachers is flat, and move from there on.
    """

    recipe: Literal["mopd"] = "mopd"
    rollout: MopdRolloutConfig = MopdRolloutConfig()
    loss: LossConfig = LossConfig()
    distill_weight: ScheduleConfig = ScheduleConfig(start=1, end=1, steps=1)
    outcome_weight: ScheduleConfig = ScheduleConfig(start=0, end=0, steps=1)
    plateau: PlateauConfig | None = None
    advantage: Literal["grpo", "dr_grpo", "rloo", "maxrl"] = "grpo"
    turn_weight: NonNegativeFloat = Field(0.0, description="of turns' rewards, as part of the outcome term")
    inner_updates: PositiveInt = 1
    balance: BalanceConfig = BalanceConfig()
    check: CheckConfig = CheckConfig()

    @model_validator(mode="before")
    @classmethod
    def _constant_has_a_length(cls, data: Any) -> Any:
        return _with_length(data, MopdRolloutConfig())

    @model_validator(mode="after")
    def _weights_mean_something(self) -> Self:
        if self.outcome_weight.largest > 0:
            _no_length_bias(self.advantage, self.loss)
        if self.rollout.n == 1 and self.outcome_weight.largest > 0:
            raise ValueError(
                "outcome_weight > 0 with rollout.n 1: a group of one has no baseline, so the outcome term is 0; "
                "use rollout.n >= 2, or outcome_weight 0"
            )
        if self.distill_weight.largest == 0 and self.outcome_weight.largest == 0:
            raise ValueError("distill_weight and outcome_weight are both 0, so nothing trains: raise one of them")
        if self.plateau is not None:
            _something_to_wait_for(self.distill_weight, self.outcome_weight)
        _updates_fit(self.inner_updates, self.rollout)
        if self.loss.distill.weighting.max_disagreement is not None and len(self.teachers) == 1:
            raise ValueError("max_disagreement is given, but there is one teacher, who cannot disagree: remove it")
        return self


def _something_to_wait_for(distill: ScheduleConfig, outcome: ScheduleConfig) -> None:
    if distill.start == distill.end and outcome.start == outcome.end:
        raise ValueError(
            f"plateau is given, but distill_weight ({distill.start:g}) and outcome_weight ({outcome.start:g}) never "
            "change: give one of them as {start: 1, end: 0, steps: 100}, or remove plateau"
        )
    if distill.start == 0:
        raise ValueError(
            "plateau waits for the KL of what is distilled, but distill_weight starts at 0, so it would wait for ever: "
            "raise distill_weight.start, or remove plateau"
        )


class ExchangeConfig(Strict):
    """Who teaches whom in CoPD's distillation phases, and how much.

    hub      None: every branch learns from every other (pairwise). A name: every other branch exchanges with this one
             only (the paper's choice for three branches)
    without  directions that are off, each as [student, teacher]
    prompts  cross prompts per peer and step, answered `n` times each
    mean     separate  native and cross samples have a mean each: beta weighs them 1 : beta, whatever their numbers
             joint     one mean over both: 512 native and 64 cross samples weigh 512 : 64·beta
    beta     one number, or one per branch. All cross samples of a branch share their mean, so each of a hub's two
             spokes has half of beta
    """

    hub: str | None = None
    without: tuple[tuple[str, str], ...] = ()
    peers: Literal["live", "snapshot"] = "live"
    prompts: PositiveInt = 64
    n: PositiveInt = 1
    mean: Literal["separate", "joint"] = "separate"
    beta: NonNegativeFloat | dict[str, NonNegativeFloat] = 1.0

    def beta_of(self, branch: str) -> float:
        return self.beta[branch] if isinstance(self.beta, dict) else self.beta


class BranchMergeConfig(Strict):
    """How CoPD's branches become one policy: their average, task arithmetic with `scale`, or not at all."""

    method: Literal["average", "task_arithmetic", "none"] = "average"
    scale: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _scale_belongs_to_task_arithmetic(self) -> Self:
        if self.scale != 1.0 and self.method != "task_arithmetic":  # by value: a run's folder gives every default
            raise ValueError(f"scale={self.scale} belongs to method task_arithmetic, not to {self.method}: remove it")
        return self


class CopdConfig(ReinforcedConfig):
    """Co-evolving policy distillation: one branch per domain; each cycle is `rl_steps`, then `opd_steps`."""

    recipe: Literal["copd"] = "copd"
    rl_steps: NonNegativeInt = 3
    opd_steps: NonNegativeInt = 2
    exchange: ExchangeConfig = ExchangeConfig()
    balance: BalanceConfig = BalanceConfig()
    merge: BranchMergeConfig = BranchMergeConfig()

    def in_opd(self, step: int) -> bool:
        return step % (self.rl_steps + self.opd_steps) >= self.rl_steps

    def teachers_of(self, branch: str) -> list[str]:
        """The branches that `branch` learns from in a distillation phase."""
        hub, off = self.exchange.hub, self.exchange.without
        peers = [name for name in self.domains if name != branch]
        return [name for name in peers if (hub is None or hub in (branch, name)) and (branch, name) not in off]

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        exchange = self.exchange
        named = [exchange.hub] if exchange.hub else []
        named += [name for pair in exchange.without for name in pair]
        named += list(exchange.beta) if isinstance(exchange.beta, dict) else []
        for name in named:
            if name not in self.domains:
                raise ValueError(
                    f"exchange names {name!r}, which is no branch: {did_you_mean(name, list(self.domains))}"
                )
        if isinstance(exchange.beta, dict) and (missing := self.domains.keys() - exchange.beta.keys()):
            raise ValueError(f"exchange.beta has no value for {', '.join(sorted(missing))}: give one per branch")
        if idle := [name for name, domain in self.domains.items() if not domain.share]:
            raise ValueError(
                f"{', '.join(idle)} has share 0, but every domain of copd is a branch that trains: give it a share, "
                "or leave it out"
            )
        if self.rl_steps + self.opd_steps == 0:
            raise ValueError("rl_steps and opd_steps are both 0, so a cycle has no step: raise one of them")
        if self.inner_updates > 1:
            raise ValueError("copd takes one update per step from native and cross samples: set inner_updates to 1")
        return self

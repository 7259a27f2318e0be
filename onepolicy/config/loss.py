"""What the loss of a step is made of, and which combinations are refused because they cannot work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from onepolicy.config.strict import Strict


class PolicyConfig(Strict):
    """The policy-gradient loss. `dual_clip` bounds negative advantages at large ratios (None: off).

    gspo clips by default to [1 - 3e-4, 1 + 4e-4], as its paper does: a sequence's mean ratio stays far closer to 1.
    """

    kind: Literal["ppo", "cispo", "reinforce", "gspo"] = "ppo"
    clip_low: Annotated[float, Field(ge=0, le=1)] = 0.2
    clip_high: NonNegativeFloat = 0.28
    dual_clip: Annotated[float, Field(gt=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _clip_by_kind(cls, data: Any) -> Any:
        narrow = isinstance(data, Mapping) and data.get("kind") == "gspo"
        return {"clip_low": 3e-4, "clip_high": 4e-4, **data} if narrow else data

    @model_validator(mode="after")
    def _dual_clip_belongs_to_ppo(self) -> Self:
        if self.dual_clip is not None and self.kind != "ppo":
            raise ValueError(f"dual_clip={self.dual_clip} belongs to kind ppo, not {self.kind}: remove it")
        return self


class ImportanceConfig(Strict):
    """Weights between the engine that generated a token and the learner (MiMo-V2-Flash §4.4).

    mode    gate      zeroes a token whose ratio leaves [low, high]
            truncate  moves a ratio outside to the nearer bound; its `low` is 0 by default
    level   token | sequence (the product over a sample, GSPO's default) | geometric (its |y|-th root)
    states  of losses that do not depend on the drawn token (topk, full, argmax): ignore the way to a state, or weigh a
            state by the ratios of the tokens before it (past)
    """

    mode: Literal["off", "gate", "truncate"] = "gate"
    level: Literal["token", "sequence", "geometric"] = "token"
    low: NonNegativeFloat = 0.5
    high: PositiveFloat = 2.0
    states: Literal["ignore", "past"] = "ignore"

    @model_validator(mode="before")
    @classmethod
    def _truncate_from_above(cls, data: Any) -> Any:
        truncates = isinstance(data, Mapping) and data.get("mode") == "truncate"
        return {"low": 0.0, **data} if truncates else data

    @model_validator(mode="after")
    def _brackets_one(self) -> Self:
        if self.mode != "off" and not self.low <= 1 <= self.high:
            raise ValueError(f"low={self.low} and high={self.high} must bracket 1, the ratio of equal engines")
        if self.mode == "off" and self.states == "past":
            raise ValueError("states: past weighs states by importance, which mode: off switches off: remove one")
        return self


class WeightingConfig(Strict):
    """Which of a sample's tokens count for more in distillation, whatever the estimator; off by default.

    position  γ of IW-OPD (arXiv 2606.22600; .5 there): more for the tokens before the student has drifted; 0: off
    turn_cap  cap of SOD's weights (arXiv 2605.07725; 1.5 there): less for a turn that drifted further than the first
    max_disagreement  of all teachers about a token, in nats (max − min of their log-probs; Open-MOPD, arXiv
              2608.19098): a token above it gets no distillation, and still counts in the mean. mopd only; every
              teacher then scores every sample
    """

    position: NonNegativeFloat = 0.0
    turn_cap: Annotated[float, Field(ge=1)] | None = None
    max_disagreement: PositiveFloat | None = None


class DistillConfig(Strict):
    """What "move the student towards the teacher" means, per token (MOPD Eq. 1-5).

    estimator  sampled  the teacher's and student's log-probs of the sampled token; as an advantage (Eq. 3-4)
               k2, k3   Schulman's estimators on the sampled token, differentiated; k3's gradient is *forward* KL's
               topk     over the teacher's k most likely tokens (Eq. 5)
               full     over the whole vocabulary (Eq. 1)
               argmax   cross-entropy with the teacher's most likely token (TGPO, arXiv 2605.13230: with an outcome
                        weight of 1 and a distillation weight that falls from 2e-3 to 0 in 200 steps)
               trust_region  sampled, but forward KL over the teacher's top-k where it finds the token unlikely (TrOPD)
    signal     the divergence whose gradient the sampled advantage estimates (OPD+, arXiv 2606.01039)
    transform  of the sampled signal: clip to ±max_signal, log_compress, power (PowerOPD), none;
               normalise: clip, then centre and scale over the batch of an update (GNDPO)
    refresh    at each of several inner updates, take the sampled signal from the student's current log-probs, not from
               those before the first (Open-MOPD, arXiv 2608.19098); no other estimator looks back
    """

    estimator: Literal["sampled", "k1", "k2", "k3", "topk", "full", "argmax", "trust_region"] = "sampled"
    apply: Literal["advantage", "loss"] | None = None
    divergence: Literal["reverse_kl", "forward_kl", "jsd"] = "reverse_kl"
    signal: Literal["reverse", "forward", "jsd"] = "reverse"
    k: PositiveInt = 64
    topk: Literal["corrected", "uncorrected", "renormalised", "tail"] = "corrected"
    jsd_beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    transform: Literal["clip", "log_compress", "power", "normalise", "none"] = "clip"
    max_signal: PositiveFloat = 5.0
    power: PositiveFloat = 5.0
    refresh: bool = False
    weighting: WeightingConfig = WeightingConfig()

    @property
    def wants(self) -> tuple[Literal["sampled", "topk", "full"], int]:
        """What a teacher is asked for, and how many of its most likely tokens."""
        match self.estimator:
            case "topk" | "trust_region":
                return "topk", self.k
            case "argmax":
                return "topk", 1
            case "full":
                return "full", 0
            case _:
                return "sampled", 0

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
        if estimator in ("k2", "k3", "argmax") and self.apply == "advantage":
            raise ValueError(f"{estimator} is differentiated, it is no advantage: use apply: loss, or sampled")
        if estimator == "topk" and self.topk == "renormalised" and self.k == 1:
            raise ValueError("renormalised top-k with k = 1 is identically 0: use k > 1 or topk: corrected")
        if self.divergence != "reverse_kl" and estimator not in ("topk", "full"):
            raise ValueError(
                f"divergence {self.divergence} needs estimator: topk or full, not {estimator}; the sampled advantage "
                "has signal: forward or jsd"
            )
        if self.divergence == "jsd" and estimator == "topk":
            raise ValueError("jsd needs the whole vocabulary: use estimator: full")
        if self.divergence == "forward_kl" and estimator == "topk" and self.topk != "corrected":
            raise ValueError(f"forward_kl over the teacher's top-k has one form: drop topk: {self.topk}")
        return self

    @model_validator(mode="after")
    def _refuse_options_of_another_estimator(self) -> Self:
        estimator = self.estimator
        if estimator == "trust_region" and self.apply is not None:
            raise ValueError(
                "trust_region is an advantage where it trusts the teacher and a loss elsewhere: drop apply"
            )
        if estimator == "trust_region" and self.topk != "corrected":
            raise ValueError(
                f"trust_region takes forward KL over the top-k, which has one form: drop topk: {self.topk}"
            )
        if self.signal != "reverse" and estimator != "sampled":
            raise ValueError(
                f"signal {self.signal} is a form of the sampled advantage: use estimator: sampled, not {estimator} "
                "(over top-k or the vocabulary, `divergence` says the same)"
            )
        if self.signal != "reverse" and self.transform == "power":
            raise ValueError(
                f"power is a signal of its own, t^α - p^α: drop signal: {self.signal}, or use another transform"
            )
        if self.transform == "normalise" and estimator != "sampled":
            raise ValueError(
                f"normalise is of the sampled advantage over a batch: use estimator: sampled, not {estimator}"
            )
        return self

    @model_validator(mode="after")
    def _refuse_options_without_effect(self) -> Self:
        estimator = self.estimator
        is_advantage = estimator in ("sampled", "trust_region")
        if self.refresh and not is_advantage:
            raise ValueError(
                f"refresh is of the sampled signal, and {estimator} looks at the student's current log-probs anyway: "
                "remove it, or use estimator: sampled"
            )
        if self.max_signal != 5 and self.transform not in ("clip", "normalise"):
            raise ValueError(
                f"max_signal={self.max_signal:g} has no effect on transform {self.transform}: remove it, or use clip"
            )
        if self.power != 5 and self.transform != "power":
            raise ValueError(
                f"power={self.power:g} has no effect on transform {self.transform}: remove it, or use power"
            )
        shapes = {"transform": self.transform != "clip", "max_signal": self.max_signal != 5}
        if any(shapes.values()) and not (is_advantage or self.weighting.position):
            raise ValueError(
                f"{' and '.join(name for name in shapes if shapes[name])} shape the sampled signal, which {estimator} "
                "does not use but in weighting.position: remove that, or use estimator: sampled"
            )
        return self


class LossConfig(Strict):
    """How one step turns annotations into a number.

    reduction  sequence      mean over a response's tokens, then over responses (MOPD)
               token         mean over all tokens (DAPO)
               constant      sum over tokens / (responses · length): no response's length matters (Dr.GRPO)
               sequence_sum  sum over a response's tokens, then mean over responses (TRL's luspo)
    length     L_max of `constant`, for example 1024; by default rollout.max_new_tokens
    """

    reduction: Literal["sequence", "token", "constant", "sequence_sum"] = "sequence"
    length: PositiveInt | None = None
    policy: PolicyConfig = PolicyConfig()
    distill: DistillConfig = DistillConfig()
    importance: ImportanceConfig = ImportanceConfig()

    @model_validator(mode="before")
    @classmethod
    def _gspo_weighs_sequences(cls, data: Any) -> Any:
        """GSPO's ratio is of the sequence, and so by default is its importance weight."""
        if not isinstance(data, Mapping) or _kind_of(data.get("policy")) != "gspo":
            return data
        importance = data.get("importance", {})
        if not isinstance(importance, Mapping) or "level" in importance:
            return data
        return {**data, "importance": {**importance, "level": "sequence"}}

    @model_validator(mode="after")
    def _length_belongs_to_constant(self) -> Self:
        if self.length is not None and self.reduction != "constant":
            raise ValueError(f"length={self.length} belongs to reduction constant, not to {self.reduction}: remove it")
        return self


def _kind_of(policy: Any) -> Any:
    return policy.get("kind") if isinstance(policy, Mapping) else getattr(policy, "kind", None)


class BalanceConfig(Strict):
    """Weights per domain that undo an imbalance of the batch (Open-MOPD, arXiv 2608.19098).

    share  every domain gets its target part of the token budget      gap  share, then more where |signal| is larger
    dn     less where the signal spreads more (arXiv 2609.35347)      none
    `targets` (share, gap) are equal by default; `alpha` (gap) is the power of a domain's mean |signal| over the mean;
    `decay` is that of the running mean, recorded under every kind.
    """

    kind: Literal["none", "share", "gap", "dn"] = "none"
    targets: dict[str, PositiveFloat] | None = None
    alpha: float = 1.0
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9

    @model_validator(mode="after")
    def _refuse_options_of_another_kind(self) -> Self:
        # Careful: by value, not by what was given, for the file in a run's folder gives every default.
        if self.targets is not None and self.kind not in ("share", "gap"):
            raise ValueError(f"targets belong to kinds share and gap, not to {self.kind}: remove them")
        if self.alpha != 1.0 and self.kind != "gap":
            raise ValueError(f"alpha={self.alpha} belongs to kind gap, not to {self.kind}: remove it")
        return self

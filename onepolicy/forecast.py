"""Which domain will starve, told before training from the starting model's answers to a few prompts of each domain.

With p_d a domain's part of the prompts, L_d the mean length of its answers and q_d the part of its groups whose rewards
differ (where rewards are all that is learnt from, the others have no gradient; else q_d = 1), its part of the update is

    u_d = w_d·b_d·q_d / Σ      b_d = p_d·L_d / Σ under `loss.reduction: token`, p_d under `sequence`;  w_d: `balance`

Answers that `overlong: mask` leaves out are 0 in b_d; groups of nothing else are not in q_d. Lengths and rewards change
as the policy learns: this is how the run begins. The size of the signal is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onepolicy.balancing import Balancer
from onepolicy.config import BalanceConfig, CascadeConfig, CopdConfig, MixRlConfig, MopdConfig, ReinforcedConfig
from onepolicy.objectives.balance import shares
from onepolicy.rewards import graded_rewards, has_contrast
from onepolicy.rollout import groups_of
from onepolicy.types import Sample
from onepolicy.update_plan import domain_shares

Rehearsed = MopdConfig | ReinforcedConfig
BALANCED = (MopdConfig, MixRlConfig)
Verdict = Literal["fine", "starves", "no signal"]


@dataclass(frozen=True, slots=True)
class DomainForecast:
    """Shares and contrast in [0, 1], lengths in tokens. `contrast` is None where no reward is learnt from.

    `changes` are what the warnings advise, as far as it can be said in the configuration.
    """

    domain: str
    prompt_share: float
    length: float
    token_share: float
    update_share: float
    reward: float
    contrast: float | None
    verdict: Verdict
    warnings: tuple[str, ...]
    changes: tuple[str, ...]


def forecast(config: Rehearsed, shares_of: Mapping[str, float], samples: Sequence[Sample]) -> list[DomainForecast]:
    """One per domain in `shares_of`, its parts of the prompts; samples are annotated as for the run's first step."""
    if isinstance(config, CascadeConfig | CopdConfig):  # a stage or a branch per domain: none can take from another
        return [one for domain in shares_of for one in _together(config, {domain: 1.0}, samples)]
    return _together(config, shares_of, samples)


def _together(config: Rehearsed, prompts: Mapping[str, float], samples: Sequence[Sample]) -> list[DomainForecast]:
    """Of domains that share one update."""
    mine = {domain: [s for s in samples if s.task.domain == domain] for domain in prompts}
    lengths = {domain: float(np.mean([s.length for s in mine[domain]])) for domain in prompts}
    tokens = shares({domain: prompts[domain] * lengths[domain] for domain in prompts})
    balance = config.balance if isinstance(config, BALANCED) else BalanceConfig()
    balancer = Balancer(balance, list(prompts), config.loss)
    probed = domain_shares([s for s in samples if s.task.domain in prompts], list(prompts), config.loss)
    balancer.observe({domain: one.gap for domain, one in probed.items() if one.gap is not None})
    counted = {domain: prompts[domain] * _size(config, mine[domain]) for domain in prompts}
    weights = balancer.weights(counted, [s for s in samples if s.task.domain in prompts])
    base = shares({domain: weights[domain] * counted[domain] for domain in prompts})
    contrast = {domain: _contrast(config, mine[domain]) for domain in prompts}
    # what a teacher says counts whether rewards differ or not
    taught = isinstance(config, MopdConfig) and config.distill_weight.largest > 0
    carrying = {domain: c for domain, c in contrast.items() if c is not None and not taught}
    update = shares({domain: base[domain] * carrying.get(domain, 1.0) for domain in prompts})
    result = []
    for domain, share in prompts.items():
        found = contrast[domain]
        reward = float(np.mean(graded_rewards(mine[domain])))
        verdict: Verdict = "fine"
        warnings, changes = [], []
        kept = float(np.mean([_counts(config, sample) for sample in mine[domain] if sample.is_graded]))
        if found is not None and found < config.check.warn_contrast:
            verdict = "no signal" if domain in carrying else "fine"
            warnings.append(_no_contrast(domain, found, reward) if kept else f"domain {domain!r}: {_masked(kept)}")
            changes += _more_contrast(config, domain, reward) if kept else _fewer_masked(config, domain)
        if verdict == "fine" and update[domain] < config.check.warn_starved * share:
            verdict = "starves"
            part = f"domain {domain!r} would get {update[domain]:.1%} of the update for {share:.1%} of the prompts: "
            if kept < config.check.warn_starved:
                warnings.append(part + _masked(kept))
                changes += _fewer_masked(config, domain)
            elif base[domain] < config.check.warn_starved * share:
                warnings.append(part + _why_little(config, domain, weights[domain], lengths))
                changes += _other_weights(config)
            else:
                warnings.append(part + "rewards differ in fewer of its groups than of the other domains'")
                more = config.domains[domain].share * share / update[domain]
                changes.append(f"domains.{domain}.share={more:.3g}")
        result.append(
            DomainForecast(
                domain=domain,
                prompt_share=share,
                length=lengths[domain],
                token_share=tokens[domain],
                update_share=update[domain],
                reward=reward,
                contrast=found,
                verdict=verdict,
                warnings=tuple(warnings),
                changes=tuple(changes),
            )
        )
    return result


def _contrast(config: Rehearsed, samples: Sequence[Sample]) -> float | None:
    """The part of the groups whose rewards differ, where rewards are learnt from; 0 if all answers are masked."""
    if isinstance(config, MopdConfig) and not config.outcome_weight.largest:
        return None
    groups = [group for group in groups_of(samples) if any(_counts(config, sample) for sample in group)]
    return sum(has_contrast(group) for group in groups) / max(1, len(groups))


def _counts(config: Rehearsed, sample: Sample) -> bool:
    """Whether the update sees it. mopd masks none: a weight of 0 there is a schedule's, which may rise."""
    return isinstance(config, MopdConfig) or sample.weights.pg != 0


def _size(config: Rehearsed, samples: Sequence[Sample]) -> float:
    """What an answer counts in the mean that the loss is: 1 or its tokens, and nothing if it is masked."""
    by_tokens = config.loss.reduction == "token"
    return float(np.mean([(sample.length if by_tokens else 1) * _counts(config, sample) for sample in samples]))


def _masked(kept: float) -> str:
    return (
        f"{1 - kept:.0%} of its answers are cut off at max_new_tokens, and overlong: mask leaves those out of the "
        "update; let them get longer, or keep them"
    )


def _fewer_masked(config: Rehearsed, domain: str) -> list[str]:
    limit = config.domains[domain].max_new_tokens or config.rollout.max_new_tokens
    return [f"domains.{domain}.max_new_tokens={2 * limit}", "overlong=keep"]


def _no_contrast(domain: str, contrast: float, reward: float) -> str:
    why = "hardly ever earns any there: start from a model that sometimes does (sft), take easier tasks"
    if reward > 0.5:
        why = "has little left to learn there: take harder tasks"
    return (
        f"domain {domain!r}: in {contrast:.0%} of the groups rewards differ, and the others have no gradient; with a "
        f"mean reward of {reward:.2f} the policy {why}, or ask each question more often"
    )


def _more_contrast(config: Rehearsed, domain: str, reward: float) -> list[str]:
    changes = [f"rollout.n={2 * config.rollout.n}"]
    if isinstance(config, ReinforcedConfig) and config.max_draws == 1:
        changes.append("max_draws=4")
    return changes + ([f"domains.{domain}.share=0"] if reward > 0.5 else [])


def _why_little(config: Rehearsed, domain: str, weight: float, lengths: Mapping[str, float]) -> str:
    if isinstance(config, BALANCED) and config.balance.kind != "none":
        return f"balance.kind: {config.balance.kind} weighs it by {weight:.2g}"
    longest = max(lengths, key=lambda name: lengths[name])
    return (
        f"its answers have {lengths[domain]:.0f} tokens, those of {longest!r} {lengths[longest]:.0f}, and under "
        "loss.reduction: token every token counts the same"
    )


def _other_weights(config: Rehearsed) -> list[str]:
    """Alternatives, each of which is enough."""
    if not isinstance(config, BALANCED):
        return ["loss.reduction=sequence"]
    if config.balance.kind == "none":
        return ["loss.reduction=sequence", "balance.kind=share"]
    # a kind is replaced whole: options of the present one go with it
    return ["balance.targets=null"] if config.balance.kind == "share" else ["balance={kind: share}"]

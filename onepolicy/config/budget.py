"""What a run spends, told from its configuration alone, and how many steps fit a budget.

Draws that dynamic sampling throws away cannot be foreseen and are not in here; the counts of a run have them.
The report of a study names the arms that have spent over 5% more or less than they were to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onepolicy.config.methods import CascadeConfig, MergeConfig, OffpolicyConfig
from onepolicy.config.recipes import CopdConfig, SftConfig
from onepolicy.config.registry import AnyRun
from onepolicy.config.study import BudgetConfig


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one step: optimizer updates, and sequences by domain."""

    updates: int
    sequences: Mapping[str, float]

    def by(self, budget: BudgetConfig) -> float:
        """The one number that the budget's rule counts."""
        match budget.rule:
            case "updates":
                return self.updates
            case "sequences":
                return sum(self.sequences.values())
            case "tokens":
                lengths = budget.lengths or {}
                return sum(count * lengths[domain] for domain, count in self.sequences.items())


def step_cost(config: AnyRun, step: int) -> Cost:
    """What step `step` of a run spends; for a cascade, a step of all its stages together."""
    shares = {name: domain.share for name, domain in config.domains.items() if domain.share}
    total = sum(shares.values())
    each = config.rollout.prompts * config.rollout.n
    match config:
        case MergeConfig():
            return Cost(0, {})
        case SftConfig() | OffpolicyConfig():
            return Cost(1, {name: config.batch_size * share / total for name, share in shares.items()})
        case CascadeConfig():
            return Cost(config.inner_updates * len(config.order), dict.fromkeys(config.order, each))
        case CopdConfig():
            sequences = dict.fromkeys(config.domains, float(each))
            cross = config.exchange.prompts * config.exchange.n
            for branch in config.domains if config.in_opd(step) else ():
                for peer in config.teachers_of(branch):
                    sequences[peer] += cross
            return Cost(len(config.domains), sequences)
        case _:
            return Cost(config.inner_updates, {name: each * share / total for name, share in shares.items()})


def total_cost(config: AnyRun, budget: BudgetConfig) -> float:
    """Of all steps of a run, as the budget counts."""
    return sum(step_cost(config, step).by(budget) for step in range(config.steps))


def steps_within(config: AnyRun, budget: BudgetConfig, amount: float) -> int:
    """The most steps that cost no more than `amount`; 0 when not even one does."""
    steps, spent = 0, step_cost(config, 0).by(budget)
    while spent <= amount * (1 + 1e-9):
        steps += 1
        spent += step_cost(config, steps).by(budget)
    return steps

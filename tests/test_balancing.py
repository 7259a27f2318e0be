"""The balancer on written-out samples: what it logs and what it scales."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onepolicy.balancing import Balancer
from onepolicy.config import BalanceConfig, LossConfig
from onepolicy.types import Sample, Task, TokenScores, Weights
from onepolicy.update_plan import coefficients, join_means

TOKEN, SEQUENCE = LossConfig(reduction="token"), LossConfig(reduction="sequence")


def sample(domain: str, tokens: int, signal: float) -> Sample:
    mask_T = np.array([False] + [True] * tokens)
    written_R = np.full(tokens, -1.0, dtype=np.float32)
    return Sample(
        Task("t", domain, ()),
        np.zeros(tokens + 1, dtype=np.int32),
        mask_T,
        written_R,
        teacher=TokenScores("teacher", written_R + np.float32(signal)),
        weights=Weights(distill=1.0),
    )


def test_share_gives_a_short_domain_the_budget_of_a_long_one() -> None:
    samples = [sample("long", 8, 0.5), sample("short", 2, 0.5)]

    row = Balancer(BalanceConfig(kind="share"), ["long", "short"], TOKEN).annotate(samples)

    assert [s.weights.distill for s in samples] == pytest.approx([0.625, 2.5])
    assert row["budget/long"] == pytest.approx(0.5)


def test_gap_weighs_by_a_running_mean_that_survives_a_resume() -> None:
    first = Balancer(BalanceConfig(kind="gap", decay=0.5), ["a", "b"], TOKEN)
    first.annotate([sample("a", 4, 0.2), sample("b", 4, 0.6)])
    assert first.state() == pytest.approx({"a": 0.2, "b": 0.6})

    second = Balancer(BalanceConfig(kind="gap", decay=0.5), ["a", "b"], TOKEN)
    second.load_state(first.state())
    samples = [sample("a", 4, 0.6), sample("b", 4, 0.6)]
    row = second.annotate(samples)

    assert second.state() == pytest.approx({"a": 0.4, "b": 0.6})
    assert [row["balance/a"], row["balance/b"]] == pytest.approx([0.8, 1.2])


def test_none_changes_nothing_and_records_the_budget() -> None:
    samples = [sample("a", 6, 1.0), sample("b", 2, 1.0)]

    row = Balancer(BalanceConfig(), ["a", "b"], TOKEN).annotate(samples)

    assert [s.weights.distill for s in samples] == [1.0, 1.0]
    assert row["budget/a"] == pytest.approx(0.75)


def test_demonstrations_count_with_all_their_tokens_and_tell_their_signal_later() -> None:
    balancer = Balancer(BalanceConfig(kind="gap", decay=0.0), ["long", "short"], TOKEN)
    balancer.observe({"long": 0.5, "short": 1.5})
    samples = [sample("long", 6, 0.0), sample("short", 2, 0.0)]
    for demonstration in samples:
        demonstration.teacher, demonstration.weights = None, Weights(ce=1.0)

    row = balancer.annotate(samples)

    # share: (2/3, 2); gap: × (.5, 1.5) = (1/3, 3); rescaled by Σ w·s = 1/4 + 3/4 = 1
    assert [s.weights.ce for s in samples] == pytest.approx([1 / 3, 3.0])
    assert [row["gap/long"], row["gap/short"]] == [0.5, 1.5]
    assert row["budget/long"] == pytest.approx(0.1)  # 6 · 1/3 · .5 = 1 of 1 + 2 · 3 · 1.5 = 9


def test_tokens_without_a_finite_score_are_not_counted() -> None:
    broken = sample("a", 4, 1.0)
    assert broken.teacher is not None
    broken.teacher.logprobs_R[0] = -np.inf

    row = Balancer(BalanceConfig(), ["a", "b"], TOKEN).annotate([broken, sample("b", 3, 1.0)])

    assert row["budget/a"] == pytest.approx(0.5)


def test_targets_must_name_every_domain() -> None:
    with pytest.raises(ValueError, match="give one each"):
        Balancer(BalanceConfig(kind="share", targets={"a": 1.0}), ["a", "b"], TOKEN)


def update_of(samples: list[Sample], loss: LossConfig) -> dict[str, float]:
    """Σ |coefficient| of each domain, as the learner would apply it."""
    found: dict[str, float] = {}
    for component, parts in coefficients(samples, loss).items():
        assert component in ("pg", "distill", "ce")
        for one, coefficient_R in zip(samples, parts, strict=True):
            found[one.task.domain] = found.get(one.task.domain, 0.0) + float(np.abs(coefficient_R).sum())
    return found


def test_under_the_sequence_reduction_answers_of_4_and_40_tokens_count_the_same_already() -> None:
    samples = [sample("short", 4, 1.0), sample("long", 40, 1.0)]
    assert update_of(samples, SEQUENCE) == pytest.approx({"short": 0.5, "long": 0.5})

    row = Balancer(BalanceConfig(), ["short", "long"], SEQUENCE).annotate(samples)
    assert [row["budget/short"], row["budget/long"]] == pytest.approx([0.5, 0.5])

    row = Balancer(BalanceConfig(kind="share"), ["short", "long"], SEQUENCE).annotate(samples)
    assert update_of(samples, SEQUENCE) == pytest.approx({"short": 0.5, "long": 0.5})
    assert [row["balance/short"], row["balance/long"]] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("loss", [TOKEN, SEQUENCE], ids=["token", "sequence"])
@pytest.mark.parametrize("kind", ["share", "gap"])
def test_targets_are_met_and_the_sum_of_the_update_stays(kind: str, loss: LossConfig) -> None:
    targets = {"a": 1.0, "b": 2.0, "c": 1.0}
    samples = [sample("a", 4, 1.0), sample("b", 40, 1.0), sample("b", 7, 1.0), sample("c", 12, 1.0)]
    before = sum(update_of(samples, loss).values())
    config = BalanceConfig(kind=kind, targets=targets)  # type: ignore[arg-type]  # parametrised
    Balancer(config, ["a", "b", "c"], loss).annotate(samples)
    after = update_of(samples, loss)
    assert sum(after.values()) == pytest.approx(before)
    # all signals are equal, so gap adds nothing to share
    assert after == pytest.approx({domain: before * target / 4 for domain, target in targets.items()})


def test_copds_native_and_cross_samples_are_balanced_as_the_update_weighs_them() -> None:
    native = [replace(sample("mine", 5, 0.0), teacher=None, weights=Weights(pg=1.0)) for _ in range(512)]
    for one in native:
        one.advantages_R = np.ones(5, dtype=np.float32)
    cross = [sample("peer", 5, 1.0) for _ in range(64)]
    assert update_of([*native, *cross], SEQUENCE) == pytest.approx({"mine": 1.0, "peer": 1.0})

    row = Balancer(BalanceConfig(kind="share"), ["mine", "peer"], SEQUENCE).annotate([*native, *cross])

    assert update_of([*native, *cross], SEQUENCE) == pytest.approx({"mine": 1.0, "peer": 1.0})
    assert [row["budget/mine"], row["budget/peer"]] == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    ("loss", "native", "cross"),
    [(SEQUENCE, 512 / 576, 64 / 576), (TOKEN, 5 * 512 / (5 * 512 + 8 * 64), 8 * 64 / (5 * 512 + 8 * 64))],
    ids=["sequence", "token"],
)
def test_a_joint_mean_is_over_native_and_cross_samples_together(loss: LossConfig, native: float, cross: float) -> None:
    own = [replace(sample("mine", 5, 0.0), teacher=None, weights=Weights(pg=1.0)) for _ in range(512)]
    for one in own:
        one.advantages_R = np.ones(5, dtype=np.float32)
    others = [sample("peer", 8, 1.0) for _ in range(64)]
    assert update_of([*own, *others], loss) == pytest.approx({"mine": 1.0, "peer": 1.0})
    join_means([*own, *others], loss)
    assert update_of([*own, *others], loss) == pytest.approx({"mine": native, "peer": cross})


def test_the_budget_adds_up_all_components_of_a_sample() -> None:
    both, taught = sample("both", 4, 0.5), sample("taught", 4, 0.5)
    both.weights, both.advantages_R = Weights(pg=1.0, distill=1.0), np.full(4, 1.5, dtype=np.float32)
    row = Balancer(BalanceConfig(), ["both", "taught"], SEQUENCE).annotate([both, taught])
    # pg: 1 · 1.5; distillation: ½ · .5 each
    assert row["budget/both"] == pytest.approx(1.75 / 2)


def test_dn_gives_a_domain_without_spread_weight_1() -> None:
    flat, wide = [sample("flat", 4, 2.0)], [sample("wide", 4, 3.0), sample("wide", 4, -3.0)]
    row = Balancer(BalanceConfig(kind="dn"), ["flat", "wide"], TOKEN).annotate([*flat, *wide])
    assert row["balance/flat"] == 1.0
    assert row["balance/wide"] == pytest.approx(np.std([2.0] * 4 + [3.0] * 4 + [-3.0] * 4) / 3)
    one = Balancer(BalanceConfig(kind="dn"), ["one", "wide"], TOKEN).annotate([sample("one", 1, 2.0), *wide])
    assert one["balance/one"] == 1.0

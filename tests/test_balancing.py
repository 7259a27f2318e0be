"""The balancer on written-out samples: what it logs and what it scales."""

from __future__ import annotations

import numpy as np
import pytest

from onepolicy.balancing import Balancer
from onepolicy.config import BalanceConfig
from onepolicy.types import Sample, Task, TokenScores, Weights


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

    row = Balancer(BalanceConfig(kind="share"), ["long", "short"]).annotate(samples)

    assert [s.weights.distill for s in samples] == pytest.approx([0.625, 2.5])
    assert row["budget/long"] == pytest.approx(0.5)


def test_gap_weighs_by_a_running_mean_that_survives_a_resume() -> None:
    first = Balancer(BalanceConfig(kind="gap", decay=0.5), ["a", "b"])
    first.annotate([sample("a", 4, 0.2), sample("b", 4, 0.6)])
    assert first.state() == pytest.approx({"a": 0.2, "b": 0.6})

    second = Balancer(BalanceConfig(kind="gap", decay=0.5), ["a", "b"])
    second.load_state(first.state())
    samples = [sample("a", 4, 0.6), sample("b", 4, 0.6)]
    row = second.annotate(samples)

    assert second.state() == pytest.approx({"a": 0.4, "b": 0.6})
    assert [row["balance/a"], row["balance/b"]] == pytest.approx([0.8, 1.2])


def test_none_changes_nothing_and_records_the_budget() -> None:
    samples = [sample("a", 6, 1.0), sample("b", 2, 1.0)]

    row = Balancer(BalanceConfig(), ["a", "b"]).annotate(samples)

    assert [s.weights.distill for s in samples] == [1.0, 1.0]
    assert row["budget/a"] == pytest.approx(0.75)


def test_demonstrations_count_with_all_their_tokens_and_tell_their_signal_later() -> None:
    balancer = Balancer(BalanceConfig(kind="gap", decay=0.0), ["long", "short"])
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

    row = Balancer(BalanceConfig(), ["a", "b"]).annotate([broken, sample("b", 3, 1.0)])

    assert row["budget/a"] == pytest.approx(0.5)


def test_targets_must_name_every_domain() -> None:
    with pytest.raises(ValueError, match="give one each"):
        Balancer(BalanceConfig(kind="share", targets={"a": 1.0}), ["a", "b"])

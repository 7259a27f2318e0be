"""Rollouts come back graded and in order; advantages go to the right samples; several updates are what they claim."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from onepolicy.config import DistillConfig, DomainConfig, LossConfig, OptimConfig, ScratchConfig
from onepolicy.engines.base import Sampling
from onepolicy.learner import Learner
from onepolicy.rollout import annotate_advantages, groups_of, learn, rollout
from onepolicy.tasks.grading import Grader
from onepolicy.tiny import from_scratch
from onepolicy.types import Sample, Task, TokenScores, Want, Weights
from tests.runs import DOMAINS, SCRATCH, same


def sample(
    group: int, length: int, reward: float | None = None, *, index: int = 0, response: str = "", seed: int = 0
) -> Sample:
    """Two tokens of prompt and `length` that a uniform policy wrote."""
    ids_T = np.random.default_rng([seed, group, index]).integers(6, 40, 2 + length).astype(np.int32)
    task = Task(f"t{group}", "early", ({"role": "user", "content": "?"},))
    logprobs_R = np.full(length, -np.log(44), dtype=np.float32)
    mask_T = np.arange(2 + length) >= 2
    return Sample(task, ids_T, mask_T, logprobs_R, response=response, group=group, index=index, reward=reward)


class Shuffled:
    """An engine whose samples end in another order than they were asked for; the last of each group fails."""

    def generate(
        self, tasks: Sequence[Task], n: int, sampling: Sampling, *, seed: int, version: int = 0
    ) -> Iterator[Sample]:
        found = [
            sample(group, 3, index=index, response="abn"[: index + 1])
            for group in range(len(tasks))
            for index in range(n)
        ]
        for position in np.random.default_rng(seed).permutation(len(found)):
            if found[position].index == n - 1:
                found[position].finish, found[position].reason = "error", "diverged"
            yield found[position]


class Forgetful(Shuffled):
    def generate(self, *arguments: object, **options: object) -> Iterator[Sample]:
        samples = super().generate(*arguments, **options)  # type: ignore[arg-type]  # passed on as they come
        next(samples)
        yield from samples


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader({"early": DomainConfig.model_validate(DOMAINS["early"])}) as grader:
        yield grader


TASKS = [sample(group, 1).task for group in range(3)]


def test_samples_come_back_graded_and_in_order_whatever_order_they_ended_in(grader: Grader) -> None:
    samples = rollout(Shuffled(), grader, TASKS, 3, Sampling(), seed=1, version=0)
    assert [(s.group, s.index) for s in samples] == [(group, index) for group in range(3) for index in range(3)]
    assert [s.reward for s in samples] == [1.0, 1.0, 0.0] * 3


def test_a_failed_rollout_is_data_with_reward_0_and_the_reason_of_the_engine(grader: Grader) -> None:
    samples = rollout(Shuffled(), grader, TASKS, 2, Sampling(), seed=1, version=0)
    assert [(s.finish, s.reward, s.reason) for s in samples[:2]] == [("stop", 1.0, ""), ("error", 0.0, "diverged")]


def test_a_lost_sample_is_noticed(grader: Grader) -> None:
    with pytest.raises(ValueError, match="the engine owed 3 × 2 samples and gave 5"):
        rollout(Forgetful(), grader, TASKS, 2, Sampling(), seed=1, version=0)


@pytest.mark.parametrize(
    ("kind", "unit"), [("grpo", 2**-0.5), ("dr_grpo", 0.5), ("rloo", 1.0), ("maxrl", 1.0)], ids=lambda v: str(v)[:7]
)
def test_advantages_go_to_the_samples_of_their_group_in_any_order(kind: str, unit: float) -> None:
    # group 7: rewards 1 and 0; group 2: rewards .5 and .5, no contrast; group 4: alone, no baseline
    samples = [sample(7, 2, 1.0), sample(2, 1, 0.5), sample(4, 2, 1.0), sample(7, 3, 0.0), sample(2, 0, 0.5)]
    annotate_advantages(samples, kind)  # type: ignore[arg-type]  # the names are those of AdvantageKind
    expected: list[list[float]] = [[unit, unit], [0], [0, 0], [-unit, -unit, -unit], []]
    for one, advantages_R in zip(samples, expected, strict=True):
        assert one.advantages_R is not None and one.advantages_R.dtype == np.float32
        np.testing.assert_allclose(one.advantages_R, advantages_R, rtol=1e-6)


def test_a_penalty_is_part_of_the_reward_that_advantages_are_made_of() -> None:
    right, late = sample(0, 2, 1.0), sample(0, 2, 1.0, index=1)
    late.penalty = -0.5
    annotate_advantages([right, late], "dr_grpo")
    np.testing.assert_allclose([right.advantages_R[0], late.advantages_R[0]], [0.25, -0.25])  # type: ignore[index]
    assert late.reward == 1.0, "the reward itself is what the grader said"


def test_an_ungraded_sample_gets_no_advantage() -> None:
    with pytest.raises(AssertionError, match="sample of task t0 has not been graded"):
        annotate_advantages([sample(0, 1)], "grpo")


def test_groups_keep_the_order_of_their_first_appearance() -> None:
    samples = [sample(group, 1, index=index) for group, index in ((5, 0), (1, 0), (5, 1), (3, 0), (1, 1))]
    assert [[(s.group, s.index) for s in group] for group in groups_of(samples)] == [
        [(5, 0), (5, 1)],
        [(1, 0), (1, 1)],
        [(3, 0)],
    ]


# -- learning ----------------------------------------------------------------------------------------------------------


def learner(**distill: object) -> Learner:
    model, tokenizer = from_scratch(ScratchConfig.model_validate(SCRATCH), 0)
    loss = LossConfig(distill=DistillConfig.model_validate(distill))
    return Learner(model, tokenizer, OptimConfig(learning_rate=1e-2), loss)


def batch(weights: Weights) -> list[Sample]:
    """Four groups of two, each with an advantage and a teacher."""
    samples = [sample(group, 2 + group, float(index), index=index) for group in range(4) for index in range(2)]
    annotate_advantages(samples, "grpo")
    for one in samples:
        one.weights = Weights(weights.pg, weights.distill)
        one.teacher = TokenScores("t", np.linspace(-6, -1, one.length, dtype=np.float32))
    return samples


BOTH = Weights(pg=1.0, distill=0.5)


def test_one_update_is_one_step() -> None:
    one, other = learner(), learner()
    samples = batch(BOTH)
    metrics = learn(one, samples, 1)
    assert metrics == other.step(batch(BOTH))
    assert same(one.state(), other.state())
    assert all(s.old_logprobs_R is None for s in samples)


def test_several_updates_are_as_many_steps_on_whole_groups_against_the_old_log_probs() -> None:
    one, other = learner(), learner()
    metrics = learn(one, batch(BOTH), 3)

    samples = batch(BOTH)
    for each, scores in zip(samples, other.score(samples, Want("sampled")), strict=True):
        each.old_logprobs_R = scores.logprobs_R
    rows = [other.step([s for s in samples if s.group in groups]) for groups in ((0, 3), (1,), (2,))]
    assert one.version == other.version == 3
    assert same(one.state(), other.state())
    assert metrics["loss"] == pytest.approx(np.mean([row["loss"] for row in rows]))
    assert metrics["signal_max/early"] == max(row["signal_max/early"] for row in rows)


def test_every_update_has_a_part_of_every_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where domains take turns, so that dealing the groups out in order would give each update one of them."""
    one, samples, updates = learner(), batch(BOTH), []
    for each in samples:
        each.task = replace(each.task, domain=("early", "late")[each.group % 2])
    step = one.step
    monkeypatch.setattr(one, "step", lambda part: (updates.append({s.task.domain for s in part}), step(part))[1])
    learn(one, samples, 2)
    assert updates == [{"early", "late"}] * 2


def test_a_skipped_update_is_counted_once() -> None:
    one = learner()
    samples = batch(BOTH)
    with torch.no_grad():
        one.parameters[0].fill_(float("nan"))
    assert learn(one, samples, 2)["skipped"] == 2


def test_more_updates_than_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="inner_updates is 5, but there are only 4 prompts"):
        learn(learner(), batch(BOTH), 5)


@pytest.mark.parametrize(("inner_updates", "equal"), [(1, True), (2, False)])
def test_refresh_matters_from_the_second_update_on(inner_updates: int, equal: bool) -> None:
    states = []
    for refresh in (True, False):
        one = learner(estimator="sampled", transform="none", refresh=refresh)
        learn(one, batch(Weights(distill=1.0)), inner_updates)
        states.append(one.state())
    assert same(*states) == equal

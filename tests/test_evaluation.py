"""Scores, pass@k, intervals and MOPD's normalised score, against values computed by hand or by enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from onepolicy.engines.base import Sampling
from onepolicy.evaluation import (
    DomainScore,
    Evaluation,
    Question,
    evaluate,
    pass_at_k,
    percentile_interval,
    prompt_text,
)
from onepolicy.normalised import NoGainError, norm_and_range, normalise, normalised_score, paired_means
from onepolicy.types import Sample, Task


def domain_score(domain: str, rewards_QG: Sequence[Sequence[float]]) -> DomainScore:
    return DomainScore(
        domain,
        tuple(
            Question(
                id=f"{domain}-{number}",
                prompt="?",
                reference="!",
                rewards_G=tuple(rewards_G),
                lengths_G=(3,) * len(rewards_G),
                finishes_G=("stop",) * len(rewards_G),
                response="!",
                reason="",
            )
            for number, rewards_G in enumerate(rewards_QG)
        ),
    )


def evaluation(temperature: float = 1.0, **rewards: Sequence[Sequence[float]]) -> Evaluation:
    n = len(next(iter(rewards.values()))[0])
    return Evaluation({d: domain_score(d, rows) for d, rows in rewards.items()}, n=n, temperature=temperature, seed=0)


def solved(count: int, of: int) -> list[list[float]]:
    """The first `count` of `of` questions answered right, one rollout each."""
    return [[1.0 if number < count else 0.0] for number in range(of)]


class EchoEngine:
    """Writes the rollout's number, last task first; the token count grows with it."""

    def __init__(self, drop: int = 0) -> None:
        self.drop = drop

    def generate(
        self, tasks: Sequence[Task], n: int, sampling: Sampling, *, seed: int, version: int = 0
    ) -> Iterator[Sample]:
        everything = [(group, index) for group in reversed(range(len(tasks))) for index in reversed(range(n))]
        for group, index in everything[self.drop :]:
            length = min(index + 1, sampling.max_new_tokens)
            yield Sample(
                task=tasks[group],
                token_ids_T=np.arange(length + 1, dtype=np.int32),
                mask_T=np.arange(length + 1) > 0,
                logprobs_R=np.zeros(length, dtype=np.float32),
                response=f"{tasks[group].id}:{index}",
                group=group,
                index=index,
                finish="length" if index + 1 > sampling.max_new_tokens else "stop",
                version=version,
            )


def task(id: str, domain: str, reference: object = "r") -> Task:
    return Task(id=id, domain=domain, messages=({"role": "user", "content": f"ask {id}"},), reference=reference)


TASKS = [task("a", "rev", "cba"), task("b", "add", 7), task("c", "rev", None)]


def reward_by_index(samples: list[Sample]) -> None:
    for sample in samples:
        sample.reward, sample.reason = float(sample.index % 2), f"index {sample.index}"


def test_evaluate_puts_samples_back_in_order_and_sums_up_per_domain() -> None:
    result = evaluate(EchoEngine(), TASKS, reward_by_index, 4, Sampling(temperature=0.7, max_new_tokens=3), seed=5)
    assert list(result.domains) == ["rev", "add"]
    rev, add = result.domains["rev"], result.domains["add"]
    np.testing.assert_array_equal(rev.rewards_QG, [[0, 1, 0, 1], [0, 1, 0, 1]])
    assert (rev.mean, rev.mean_length, rev.truncated, rev.failed) == (0.5, (1 + 2 + 3 + 3) / 4, 0.25, 0.0)
    assert rev.pass_at(2) == pytest.approx(1 - 1 / 6)
    assert [(q.id, q.prompt, q.reference, q.response, q.reason) for q in rev.questions] == [
        ("a", "ask a", "cba", "a:0", "index 0"),
        ("c", "ask c", "", "c:0", "index 0"),
    ]
    assert add.questions[0].reference == "7"
    assert [sample.response for sample in result.samples[:5]] == ["a:0", "a:1", "a:2", "a:3", "b:0"]
    assert result.means() == {"rev": 0.5, "add": 0.5}
    assert (result.n, result.temperature, result.seed) == (4, 0.7, 5)


def test_an_evaluation_survives_json_without_its_samples() -> None:
    result = evaluate(EchoEngine(), TASKS, reward_by_index, 3, Sampling(), seed=1)
    again = Evaluation.from_json(result.to_json())
    assert again == result
    assert again.samples == ()
    assert again.to_json() == result.to_json()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"domains": {"a": [{"id": "x"}]}}'])
def test_json_that_is_no_evaluation_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no evaluation as onepolicy writes it"):
        Evaluation.from_json(text)


def test_a_missing_sample_and_a_missing_reward_are_noticed() -> None:
    with pytest.raises(AssertionError, match="owed 3 groups of 2 samples and gave 5"):
        evaluate(EchoEngine(drop=1), TASKS, reward_by_index, 2, Sampling(), seed=0)
    with pytest.raises(ValueError, match=r"'a' \(rev\) has rewards \[nan, nan\]"):
        evaluate(EchoEngine(), TASKS, lambda samples: None, 2, Sampling(), seed=0)
    with pytest.raises(ValueError, match="nothing to evaluate: 0 tasks"):
        evaluate(EchoEngine(), [], reward_by_index, 2, Sampling(), seed=0)


def some_fail(samples: list[Sample]) -> None:
    """Of task a the grader fails on the first answer, of task c on both."""
    reward_by_index(samples)
    for sample in samples:
        failed = (sample.task.id, sample.index) in {("a", 0), ("c", 0), ("c", 1)}
        sample.grader_failed, sample.reason = failed, "grader raised KeyError" if failed else ""


def test_failed_gradings_are_counted_and_in_no_score() -> None:
    result = evaluate(EchoEngine(), TASKS, some_fail, 2, Sampling(), seed=0, too_long={"add": 3})
    rev, add = result.domains["rev"], result.domains["add"]
    assert [question.failed_G for question in rev.questions] == [(True, False), (True, True)]
    assert [question.graded for question in rev.questions] == [(1.0,), ()]
    assert (rev.mean, rev.grader_failed, rev.failed, rev.unscored) == (1.0, 3, 0.0, ["c"])
    assert rev.means_Q.tolist() == [1.0] and (rev.interval().low, rev.interval().high) == (1.0, 1.0)
    assert (rev.pass_at(1), rev.pass_at(2)) == (1.0, None)  # no question has two rewards
    assert (add.mean, add.grader_failed, add.questions[0].failed_G) == (0.5, 0, ())
    assert result.remarks() == [
        "rev: the grader failed on 3 of 4 answers, left out",
        "rev: 1 questions have no score: c",
        "add: 3 held-out prompts could not be asked and are in no score",
    ]
    assert Evaluation.from_json(result.to_json()) == result


def test_an_error_of_the_engine_is_no_zero_either() -> None:
    def errors(samples: list[Sample]) -> None:
        reward_by_index(samples)
        for sample in samples:
            if sample.task.id == "a" and sample.index == 0:
                sample.finish, sample.reason = "error", "logits are not finite"

    rev = evaluate(EchoEngine(), TASKS, errors, 2, Sampling(), seed=0).domains["rev"]
    assert (rev.mean, rev.failed, rev.grader_failed) == (0.75, 0.25, 0)  # of a 1.0; of c (0.0 + 1.0) / 2


def test_a_domain_without_any_reward_has_no_score_and_says_why() -> None:
    def all_fail(samples: list[Sample]) -> None:
        reward_by_index(samples)
        for sample in samples:
            sample.grader_failed, sample.reason = sample.task.domain == "rev", "grader timed out after 5 s"

    with pytest.raises(ValueError, match="'rev': none of 4 answers to held-out questions has a reward, so it has"):
        evaluate(EchoEngine(), TASKS, all_fail, 2, Sampling(), seed=0)


def test_a_question_without_a_score_is_left_out_of_all_that_is_paired() -> None:
    origin, teacher, student = (evaluation(rev=solved(count, 40)) for count in (10, 31, 25))
    questions = list(student.domains["rev"].questions)
    questions[39] = replace(questions[39], failed_G=(True,))  # one that nobody answers right
    holed = replace(student, domains={"rev": DomainScore("rev", tuple(questions))})
    assert paired_means([holed, origin], "rev").shape == (2, 39)
    result, whole = (normalise(one, origin, {"rev": teacher}).domains["rev"] for one in (holed, student))
    assert result.value == pytest.approx(15 / 21) == whole.value


def test_a_chat_of_several_turns_and_media_becomes_readable_text() -> None:
    content = [{"type": "image", "image": b"..."}, {"type": "text", "text": "what is it?"}]
    chat = ({"role": "system", "content": "be brief"}, {"role": "user", "content": content})
    assert prompt_text(Task("i", "image", chat)) == "system: be brief\n\nuser: [image]\nwhat is it?"


@pytest.mark.parametrize(("n", "correct", "k", "value"), [(4, 2, 2, 5 / 6), (5, 1, 3, 0.6), (4, 0, 4, 0), (4, 3, 2, 1)])
def test_pass_at_k_by_hand(n: int, correct: int, k: int, value: float) -> None:
    assert pass_at_k(n, correct, k) == pytest.approx(value)


def test_pass_at_k_is_the_mean_over_all_subsets() -> None:
    for n, correct, k in itertools.product([6], range(7), range(1, 7)):
        rollouts = [1] * correct + [0] * (n - correct)
        expected = np.mean([any(subset) for subset in itertools.combinations(rollouts, k)])
        assert pass_at_k(n, correct, k) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"pass@5 cannot be estimated from 4 rollouts"):
        pass_at_k(4, 1, 5)


def test_partial_credit_does_not_pass() -> None:
    score = domain_score("rev", [[0.9, 0.9], [1.0, 0.0]])
    assert score.mean == pytest.approx(0.7)
    assert score.pass_at(2) == 0.5


def test_the_interval_of_two_opposite_questions_is_everything() -> None:
    estimate = domain_score("rev", [[0.0, 0.0], [1.0, 1.0]]).interval()
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.0, 1.0)


def test_the_interval_depends_on_the_seed_alone_and_resembles_the_normal_one() -> None:
    score = domain_score("rev", solved(50, 100))
    assert score.interval(seed=3) == score.interval(seed=3)
    estimate = score.interval()
    assert (estimate.low, estimate.high) == pytest.approx((0.5 - 1.96 * 0.05, 0.5 + 1.96 * 0.05), abs=0.015)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        p_Q = rng.uniform(size=(40, 1))
        estimate = domain_score("rev", (rng.uniform(size=(40, 4)) < p_Q).astype(float).tolist()).interval(500)
        covered += estimate.low <= 0.5 <= estimate.high
    assert 0.90 <= covered / 200 <= 0.99


def test_normalised_score_by_hand_and_on_published_scores() -> None:
    assert normalised_score(student=0.7, origin=0.5, teacher=0.9) == pytest.approx(0.5)
    assert normalised_score(student=0.4, origin=0.5, teacher=0.9) == pytest.approx(-0.25)
    # MiMo-V2-Flash: student after MOPD, before it, teacher
    assert normalised_score(94.1, 89.3, 93.9) == pytest.approx(4.8 / 4.6)  # AIME25
    assert normalised_score(66.7, 55.4, 68.9) == pytest.approx(0.837, abs=5e-4)  # IFBench


@pytest.mark.parametrize(
    ("cells", "norm", "spread"),
    [
        ((0.893, 0.908, 0.844), 0.882, 0.064),  # Mix-RL
        ((0.567, 0.979, 0.779), 0.775, 0.412),  # Cascade RL
        ((0.814, 1.009, 0.649), 0.824, 0.359),  # Off-Policy Finetune; the paper's range is of unrounded cells
        ((0.404, 0.333, 0.247), 0.328, 0.157),  # Param-Merge average
        ((0.725, 1.003, 0.844), 0.857, 0.278),  # Param-Merge task arithmetic
        ((0.910, 0.954, 0.948), 0.937, 0.044),  # MOPD
    ],
)
def test_norm_and_range_reproduce_the_table_of_mopd(cells: tuple[float, ...], norm: float, spread: float) -> None:
    assert norm_and_range(cells) == pytest.approx((norm, spread), abs=1.01e-3)


@pytest.mark.parametrize("teacher", [0.5, 0.4])
def test_a_teacher_that_does_not_beat_its_origin_is_refused_with_both_values(teacher: float) -> None:
    with pytest.raises(NoGainError, match=rf"teacher scores {teacher} and its origin 0\.5"):
        normalised_score(0.6, 0.5, teacher)


def test_normalise_by_hand() -> None:
    origin = evaluation(rev=solved(10, 100), add=solved(20, 100))
    teachers = {"rev": evaluation(rev=solved(90, 100)), "add": evaluation(add=solved(60, 100))}
    student = evaluation(rev=solved(70, 100), add=solved(60, 100))
    result = normalise(student, origin, teachers)
    assert result.domains["rev"].value == pytest.approx(60 / 80)
    assert result.norm is not None and result.range is not None
    assert (result.norm.value, result.range.value) == pytest.approx((0.875, 0.25))
    rev = result.domains["rev"]
    # of the 80 questions that the expert gained, a binomial(80, .75) share is kept: standard error .048
    assert (rev.low, rev.high) == pytest.approx((0.75 - 1.96 * 0.048, 0.75 + 1.96 * 0.048), abs=0.02)
    assert result.norm.low < 0.875 < result.norm.high


def test_resampling_is_paired_so_a_copy_of_the_teacher_scores_exactly_one() -> None:
    origin, teacher = evaluation(rev=solved(10, 40)), evaluation(rev=solved(30, 40))
    for student, value in ((teacher, 1.0), (origin, 0.0)):
        kept = normalise(student, origin, {"rev": teacher}).domains["rev"]
        assert (kept.value, kept.low, kept.high) == (value, value, value)


def test_a_gain_of_nothing_or_within_noise_excludes_the_domain_and_leaves_no_norm() -> None:
    origin = evaluation(rev=solved(10, 40), add=solved(10, 40), mul=solved(10, 40))
    noisy = [[1.0 if 5 <= number < 17 else 0.0] for number in range(40)]  # gains 7, loses 5
    teachers = {
        "rev": evaluation(rev=solved(40, 40)),
        "add": evaluation(add=solved(10, 40)),
        "mul": evaluation(mul=noisy),
    }
    result = normalise(origin, origin, teachers)
    assert list(result.domains) == ["rev"]
    assert result.excluded["add"] == "the teacher scores 0.25 and its origin 0.25: no gain to recover"
    assert "scores 0.3 and its origin 0.25, but the 95% interval of that gain" in result.excluded["mul"]
    assert (result.norm, result.range) == (None, None)


def test_draws_without_a_gain_widen_the_interval() -> None:
    assert percentile_interval(np.array([math.inf] * 5 + [0.5] * 95)) == (0.5, math.inf)
    assert percentile_interval(np.array([0.5] * 100 + [math.nan])) == (0.5, 0.5)


def test_only_like_is_compared_with_like() -> None:
    origin, teacher = evaluation(rev=solved(1, 8)), evaluation(rev=solved(8, 8))
    with pytest.raises(ValueError, match=r"other questions \(7\) than the student \(8\)"):
        normalise(origin, origin, {"rev": evaluation(rev=solved(7, 7))})
    with pytest.raises(ValueError, match=r"temperature 0\.0 and the student at 1\.0"):
        normalise(origin, origin, {"rev": evaluation(temperature=0.0, rev=solved(8, 8))})
    with pytest.raises(ValueError, match="the student has no evaluation of 'add'"):
        normalise(origin, origin, {"add": teacher})

"""Graders and engines that fail: no reward is no low reward, in a run, its evaluation and its report."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onepolicy import run
from onepolicy.config import AnyRun
from onepolicy.evaluation import Evaluation
from onepolicy.failures import Failures
from onepolicy.objectives.advantages import group_advantages
from onepolicy.recipes import rlvr as recipe
from onepolicy.report.build import write_report
from onepolicy.rollout import groups_of
from onepolicy.runfolder import read_rows
from onepolicy.session import Session
from onepolicy.tasks.grading import Grader
from onepolicy.types import Sample
from tests.runs import DOMAINS, checkpoint, run_of, same, weights
from tests.test_rewards import group


def fragile(source: str = "Fragile", **options: Any) -> dict[str, Any]:
    tasks = {"kind": "custom", "source": f"tests.fragile:{source}", "options": options}
    return {"early": {"tasks": tasks, "eval_size": 4}}


def captured(monkeypatch: pytest.MonkeyPatch) -> list[list[Sample]]:
    """The batches that an rlvr run learns from."""
    batches: list[list[Sample]] = []
    learn = recipe.learn

    def keeping(learner: Any, samples: list[Sample], inner_updates: int) -> dict[str, float]:
        batches.append(samples)
        return learn(learner, samples, inner_updates)

    monkeypatch.setattr(recipe, "learn", keeping)
    return batches


@pytest.mark.parametrize(
    ("how", "reason"), [("raise", "grader raised KeyError"), ("exit", "grader crashed: exit code 3")]
)
def test_a_run_goes_on_without_the_answers_that_its_grader_fails_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str, reason: str
) -> None:
    batches = captured(monkeypatch)
    config = run_of("rlvr", tmp_path, domains=fragile(on="bcdefg", how=how), steps=2, eval={"n": 4})
    run(config)
    rows = read_rows(config.output / "metrics.jsonl")
    assert len(rows) == len(batches) == 2
    for row, samples in zip(rows, batches, strict=True):
        failed = [sample for sample in samples if sample.grader_failed]
        assert 0 < len(failed) < len(samples) == 16
        assert row["grader_failed/early"] == len(failed) / 16
        graded = [sample.reward for sample in samples if not sample.grader_failed]
        assert row["reward/early"] == row["reward"] == pytest.approx(np.mean(graded))
        for rollouts in groups_of(samples):
            mine = [sample for sample in rollouts if not sample.grader_failed]
            expected = group_advantages([sample.reward for sample in mine], "grpo")
            for sample, advantage in zip(mine, expected, strict=True):
                assert sample.advantages_R == pytest.approx(np.full(sample.length, advantage), rel=1e-6)
        for sample in failed:
            assert sample.reason.startswith(reason) and sample.weights.pg == 0 and not sample.advantages_R.any()
    result = Evaluation.from_json((config.output / "eval" / "final.json").read_text())
    score = result.domains["early"]
    left = [r for q in score.questions for r, f in zip(q.rewards_G, q.failed_G or (False,) * 4, strict=True) if not f]
    assert 0 < score.grader_failed == 16 - len(left)
    assert result.remarks()[0] == f"early: the grader failed on {score.grader_failed} of 16 answers, left out"
    errors = capsys.readouterr().err
    assert errors.count(f"warning: domain 'early': the grader failed on an answer ({reason}") == 1
    total = sum(sample.grader_failed for samples in batches for sample in samples)
    assert f"warning: domain 'early': of 32 answers {total} could not be graded ({reason}" in errors
    assert f"warning: evaluation final: early: the grader failed on {score.grader_failed} of 16" in errors
    report = write_report(config.output).markdown.read_text()
    assert "early: in 2 of 2 steps some answers could not be graded, at most" in report
    assert f"the grader failed on {score.grader_failed} of 16 answers" in report


def test_a_grader_that_takes_too_long_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onepolicy.session.Grader", partial(Grader, time_limit_s=0.5, wall_limit_s=0.5))
    batches = captured(monkeypatch)
    domains = fragile(on="bc", how="hang")
    config = run_of("rlvr", tmp_path, domains=domains, steps=1, eval={"n": 1, "at_end": False})
    run(config)
    hung = [sample for sample in batches[0] if sample.response[:1] in ("b", "c")]
    assert hung and all(sample.reason == "grader timed out: not done after 0.5 s of wall time" for sample in hung)
    assert [sample for sample in batches[0] if sample.grader_failed] == hung


def test_a_grader_that_always_fails_is_refused_before_the_run_also_without_gold_answers(tmp_path: Path) -> None:
    config = run_of("rlvr", tmp_path, domains=fragile("Broken"))
    with pytest.raises(
        ValueError,
        match=r"domain 'early': the grader failed on all that was tried \(0 gold answers, the empty answer and '0'\): "
        r"grader raised ZeroDivisionError: division by zero\. A failed grading is no reward",
    ):
        run(config)
    assert not (config.output / "metrics.jsonl").is_file()


def test_a_gold_answer_that_cannot_be_graded_is_told_apart_from_one_that_scores_0(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"early/0/0: the grader failed on gold answer 'abc' \(grader raised KeyError"):
        run(run_of("rlvr", tmp_path, domains=fragile(on="a")))


@pytest.mark.parametrize("recipe", ["rlvr", "mopd"])
def test_when_all_gradings_of_a_domain_fail_the_run_stops_and_goes_on_when_that_is_fixed(
    tmp_path: Path, recipe: str
) -> None:
    flag = tmp_path / "flag"
    domains = fragile(while_there=str(flag)) | {"late": DOMAINS["late"]}
    quiet: dict[str, Any] = {"domains": domains, "checkpoint": {"every": 1}, "eval": {"n": 1, "at_end": False}}
    undisturbed, config = (
        run_of(recipe, tmp_path, output=str(tmp_path / name), **quiet) for name in ("undisturbed", "run")
    )
    run(undisturbed)
    if recipe == "rlvr":
        run(config.model_copy(update={"steps": 1}))
        flag.touch()
        with pytest.raises(ValueError, match=r"'early': none of the last 8 answers has a reward: 8 could not be"):
            run(config)
        rows = read_rows(config.output / "metrics.jsonl")
        assert [row.get("grader_failed/early") for row in rows] == [None, 1.0]
        assert "reward/early" not in rows[1] and "reward/late" in rows[1]
    else:
        flag.touch()
        with pytest.raises(ValueError, match=r"'early': none of 2 answers of the starting model has a reward: grade"):
            run(config)
    flag.unlink()
    run(config)
    assert same(weights(config.output), weights(undisturbed.output))


def test_a_few_failures_in_a_row_of_a_small_domain_do_not_stop_a_run_but_eight_do() -> None:
    failures = Failures()
    for step in range(4):
        failures.begin()
        failures.observe(group(None, None))
        assert failures.row() == {"grader_failed/early": 1.0}
        if step < 3:
            failures.require_some()
    with pytest.raises(ValueError, match="none of the last 8 answers"):
        failures.require_some()
    other = Failures()
    other.load_state(json.loads(json.dumps(failures.state())))
    assert other.state() == failures.state()
    failures.begin()
    failures.observe(group(None, 0.5, 0.0, 1.0))
    failures.require_some()
    assert failures.row() == {"grader_failed/early": 0.25}
    assert failures.summary() == ["domain 'early': of 12 answers 9 could not be graded"]


def test_a_policy_that_has_diverged_stops_the_run_with_that_reason_and_has_no_score(tmp_path: Path) -> None:
    config = run_of("rlvr", tmp_path)
    with Session(config, config.loss) as session:
        with torch.no_grad():
            session.learner.parameters[0].fill_(float("nan"))
        with pytest.raises(ValueError, match=r"so it has no score: the model's logits are not finite"):
            session.evaluate("now")
        step = next(session.steps())
        samples = recipe.draw_groups(session, config, step)
        recipe.annotate_reinforcement(samples, config)
        assert {sample.finish for sample in samples} == {"error"} and not any(s.weights.pg for s in samples)
        with pytest.raises(ValueError, match=r"8 ended in an error \(the model's logits are not finite"):
            session.log(step, samples, {})
        (row,) = read_rows(config.output / "metrics.jsonl")
        assert row["error/early"] == row["error/late"] == 1.0 and "reward" not in row


def offpolicy(folder: Path, **options: Any) -> AnyRun:
    return run_of(
        "offpolicy",
        folder,
        domains=fragile(**options),
        teachers={"early": checkpoint(folder / "teacher", 1)},
        rollout={"prompts": 64, "max_new_tokens": 2},
        rollouts_per_domain=256,
        keep="correct",
        eval={"n": 1, "at_end": False},
    )


def test_what_a_teacher_wrote_is_not_kept_as_correct_when_its_grading_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = offpolicy(tmp_path, on="efghijklm")
    run(config)
    rows = [json.loads(line) for line in (config.output / "rollouts" / "early.jsonl").read_text().splitlines()]
    failed = [row for row in rows if row.get("grader_failed")]
    graded = [row for row in rows if not row.get("grader_failed")]
    assert failed and {row["response"][0] for row in failed} <= set("efghijklm")
    summary = json.loads((config.output / "rollouts" / "summary.json").read_text())["early"]
    assert summary["grader_failed"] == len(failed)
    assert summary["reward"] == pytest.approx(np.mean([row["reward"] for row in graded]))
    assert summary["kept"] == sum(row["reward"] == 1.0 for row in graded) > 0
    assert f"'early': {len(failed)} of 256 rollouts could not be graded" in capsys.readouterr().err

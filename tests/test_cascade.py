"""Cascaded RL: one stage is rlvr, stages chain, every domain is evaluated, and nothing that is done is done again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from onepolicy import run
from onepolicy.config import CascadeConfig, ConfigError, DomainConfig
from onepolicy.evaluation import Evaluation
from onepolicy.report.build import write_report
from onepolicy.runfolder import is_finished, read_rows
from onepolicy.tasks.mixture import Mixture
from tests.runs import DOMAINS, kill_when, lines, run_of, same, weights
from tests.test_run import changed

BOTH = ["early", "late"]
IDLE = DOMAINS | {"late": DOMAINS["late"] | {"share": 0}}


def cascade(folder: Path, output: str = "cascade", **changes: Any) -> CascadeConfig:
    config = run_of("cascade_rl", folder, **{"output": str(folder / output), "steps": 2, "order": BOTH} | changes)
    assert isinstance(config, CascadeConfig)
    return config


def rows(output: Path) -> list[dict[str, Any]]:
    return read_rows(output / "metrics.jsonl")


# -- share 0 -----------------------------------------------------------------------------------------------------------


def mixture(**shares: float) -> Mixture:
    tasks = {"kind": "letters", "task": "add"}
    return Mixture({n: DomainConfig(tasks=tasks, share=share, eval_size=2) for n, share in shares.items()}, seed=0)


@pytest.mark.parametrize("shares", [{"a": 0, "b": 1}, {"b": 1, "a": 0}, {"a": 0, "b": 3, "c": 0, "d": 5}])
def test_a_domain_of_share_0_is_held_out_and_never_drawn(shares: dict[str, float]) -> None:
    """What is owed sums to one prompt at every draw, so the one owed most is never owed nothing."""
    mixed = mixture(**shares)
    assert {task.domain for task in mixed.draw(100)} == {name for name, share in shares.items() if share}
    assert mixed.drawn["a"] == 0 and len(mixed.eval_tasks["a"]) == 2
    again = mixture(**shares)
    again.load_state(mixed.state())
    assert again.draw(9) == mixed.draw(9)


def test_shares_that_are_all_0_are_refused(tmp_path: Path) -> None:
    none = {name: domain | {"share": 0} for name, domain in DOMAINS.items()}
    with pytest.raises(ConfigError, match=r"domains: every domain has share 0, so there is nothing to draw"):
        run_of("rlvr", tmp_path, domains=none)
    with pytest.raises(ConfigError, match="late has share 0, but every domain of copd is a branch that trains"):
        run_of("copd", tmp_path, domains=IDLE)


def test_a_domain_of_share_0_changes_no_weight_and_is_evaluated(tmp_path: Path) -> None:
    alone = run_of("rlvr", tmp_path, output=str(tmp_path / "alone"), domains={"early": DOMAINS["early"]}, steps=2)
    watched = run_of("rlvr", tmp_path, output=str(tmp_path / "watched"), domains=IDLE, steps=2)
    run(alone)
    run(watched)
    assert same(weights(alone.output), weights(watched.output))
    assert json.loads((watched.output / "done.json").read_text())["means"].keys() == {"early", "late"}


def test_gold_answers_of_a_domain_of_share_0_are_checked_too(tmp_path: Path) -> None:
    records = [{"prompt": f"{i}?", "answer": str(i)} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    wrong = {"kind": "records", "path": str(tmp_path / "rows.jsonl"), "grader": "tests.early:never"}
    domains = DOMAINS | {"wrong": {"tasks": wrong, "share": 0, "eval_size": 2}}
    with pytest.raises(ValueError, match="domain 'wrong': gold answers do not score"):
        run(run_of("rlvr", tmp_path, domains=domains))


def test_mopd_needs_no_teacher_for_a_domain_that_is_only_evaluated(tmp_path: Path) -> None:
    both = run_of("mopd", tmp_path, steps=1).model_dump(mode="json")["teachers"]
    config = run_of("mopd", tmp_path, domains=IDLE, teachers={"early": both["early"]}, steps=1)
    run(config)
    assert json.loads((config.output / "done.json").read_text())["means"].keys() == {"early", "late"}
    with pytest.raises(ConfigError, match="no teacher for late"):
        run_of("mopd", tmp_path, teachers={"early": both["early"]})


# -- the stages --------------------------------------------------------------------------------------------------------


def test_a_cascade_of_one_stage_is_rlvr(tmp_path: Path) -> None:
    one = cascade(tmp_path, order=["early"], domains={"early": DOMAINS["early"]}, steps=4)
    plain = run_of("rlvr", tmp_path, domains={"early": DOMAINS["early"]}, steps=4)
    run(one)
    run(plain)
    assert same(weights(one.output), weights(plain.output))
    assert (one.output / "eval" / "final.json").read_text() == (plain.output / "eval" / "final.json").read_text()
    for ours, theirs in zip(rows(one.output), rows(plain.output), strict=True):
        assert {**ours, "time": 0} == {**theirs, "time": 0, "stage": 1}


def test_stages_go_on_from_one_another_and_leave_what_one_run_leaves(tmp_path: Path) -> None:
    config = cascade(tmp_path, order=["late", "early"], eval={"n": 1, "every": 1})
    run(config)
    first = run_of("rlvr", tmp_path, output=str(tmp_path / "a"), domains={"late": DOMAINS["late"]}, steps=2)
    run(first)
    second = changed(first, output=str(tmp_path / "b"), model=str(tmp_path / "a" / "model"))
    second = changed(second, domains={"early": DOMAINS["early"]})
    run(second)
    stages = config.output / "stages"
    assert sorted(path.name for path in stages.iterdir()) == ["1-late", "2-early"]
    assert same(weights(stages / "1-late"), weights(tmp_path / "a"))
    assert same(weights(config.output), weights(tmp_path / "b"))
    assert AutoModelForCausalLM.from_pretrained(config.output / "model").config.hidden_size == 16
    assert "by the recipe `cascade_rl`" in (config.output / "model" / "README.md").read_text()
    assert "`rlvr`" in (stages / "2-early" / "model" / "README.md").read_text()

    table = rows(config.output)
    assert [(row["step"], row["stage"]) for row in table] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    assert [row["sequences"] for row in table] == [16, 32, 48, 64]
    assert [row["tokens"] for row in table] == sorted({row["tokens"] for row in table})
    assert [row["time"] for row in table] == sorted(row["time"] for row in table)
    parts = [rows(stages / name)[-1] for name in ("1-late", "2-early")]
    assert table[-1]["tokens"] == sum(row["tokens"] for row in parts)
    assert [["reward/late" in row, "reward/early" in row] for row in table] == [[True, False]] * 2 + [[False, True]] * 2
    assert {row["step"] for row in read_rows(config.output / "samples.jsonl")} == {1, 3}
    done = json.loads((config.output / "done.json").read_text())
    assert (done["steps"], done["sequences"], done["tokens"]) == (2, 64, table[-1]["tokens"])

    write_report(config.output)
    assert is_finished(config)


def test_every_domain_is_evaluated_at_the_end_of_each_stage(tmp_path: Path) -> None:
    config = cascade(tmp_path, eval={"n": 1, "every": 1}, domains=DOMAINS | {"other": IDLE["late"]})
    run(config)
    files = {path.stem: Evaluation.from_json(path.read_text()) for path in (config.output / "eval").iterdir()}
    assert set(files) == {"1-early", "2-late", "final", "step-1", "step-3"}
    assert all(set(evaluation.domains) == {"early", "late", "other"} for evaluation in files.values())
    assert files["final"] == files["2-late"] != files["1-early"]


# -- interrupted, moved, changed ---------------------------------------------------------------------------------------


def test_a_cascade_killed_in_its_second_stage_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    killed, whole = (cascade(tmp_path, name, steps=10) for name in ("killed", "whole"))
    stages = killed.output / "stages"
    kill_when(lambda: lines(stages / "2-late" / "metrics.jsonl") >= 3, killed, tmp_path / "run.yaml")
    before = (stages / "1-early" / "done.json").stat().st_mtime_ns
    assert [row["stage"] for row in rows(killed.output)] == [1] * 10
    moved = tmp_path / "elsewhere"
    killed.output.rename(moved)
    run(changed(killed, output=str(moved)))
    assert (moved / "stages" / "1-early" / "done.json").stat().st_mtime_ns == before
    run(whole)
    assert same(weights(moved), weights(whole.output))
    pairs = zip(rows(moved), rows(whole.output), strict=True)
    assert all({**one, "time": 0} == {**other, "time": 0} for one, other in pairs)
    for name in ("1-early", "2-late", "final"):
        assert (moved / "eval" / f"{name}.json").read_text() == (whole.output / "eval" / f"{name}.json").read_text()


def test_a_cascade_under_way_may_not_be_changed(tmp_path: Path) -> None:
    config = cascade(tmp_path, steps=1)
    run(config)
    (config.output / "done.json").unlink()
    with pytest.raises(ValueError, match=r"another configuration \(order: \['early', 'late'\] there"):
        run(changed(config, order=["late", "early"]))
    for steps in (3, 2):
        with pytest.raises(ValueError, match=r"1-early has ended after 1 steps, and later stages go on from there"):
            run(changed(config, steps=steps))
    shutil.rmtree(config.output / "model")
    run(config)
    assert is_finished(config) and (config.output / "model" / "config.json").is_file()


def test_a_cascade_that_cannot_start_may_be_corrected(tmp_path: Path) -> None:
    config = cascade(tmp_path, steps=1)
    with pytest.raises(ValueError, match="no model at"):
        run(changed(config, model=str(tmp_path / "nowhere")))
    run(config)
    assert is_finished(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": ["early", "lat"]}, "order names 'lat', which is no domain: did you mean 'late'?"),
        ({"order": ["early", "late", "early"]}, "order names 'early' twice"),
        ({"order": ["early"]}, "late is in no stage: add it to `order`, or set its share to 0"),
        ({"domains": IDLE}, "order names 'late', which has share 0"),
        ({"domains": DOMAINS | {"a/b": DOMAINS["late"]}}, "'a/b' is no name: files and metrics are named after it"),
    ],
)
def test_orders_that_make_no_sense_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cascade(tmp_path, **changes)
    assert message in str(caught.value)

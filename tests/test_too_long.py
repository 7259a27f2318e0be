"""Prompts and demonstrations that do not fit the context: named before the run, refused or left out, never zeros."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from onepolicy import run
from onepolicy.commands import evaluate_checkpoint
from onepolicy.config import AnyRun, DomainConfig
from onepolicy.evaluation import Evaluation
from onepolicy.report.build import write_report
from onepolicy.runfolder import read_rows
from onepolicy.tasks.base import seeded
from onepolicy.tasks.mixture import Domain, Mixture
from onepolicy.tasks.screen import Screen
from onepolicy.types import Task
from tests.runs import kill_when, lines, run_of, same, weights

CONTEXT, NEW = 64, 4
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def word(number: int, length: int) -> str:
    return "".join(seeded("word", number).choices(LETTERS, k=length))


def rows(tmp_path: Path, *lengths: int, name: str = "rows.jsonl", **columns: Any) -> str:
    """A file with a prompt of each of these lengths; one character is one token."""
    lines = [json.dumps({"prompt": word(i, n), "answer": "abc", **columns}) for i, n in enumerate(lengths)]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    return str(tmp_path / name)


def domain(tmp_path: Path, train: tuple[int, ...], held_out: tuple[int, ...] = (5, 6, 7), **options: Any) -> Any:
    tasks = {
        "kind": "records",
        "path": rows(tmp_path, *train, name="train.jsonl"),
        "eval_path": rows(tmp_path, *(n + 1 for n in held_out), name="eval.jsonl"),
        "grader": "tests.fragile:letters",
    }
    return {"early": {"tasks": tasks, "eval_size": len(held_out), **options}}


SHORT = tuple(range(8, 20))


def test_a_row_that_is_too_long_is_refused_before_the_run_with_row_tokens_and_context(tmp_path: Path) -> None:
    config = run_of("rlvr", tmp_path, domains=domain(tmp_path, (*SHORT, 60, 50, 80)))
    with pytest.raises(ValueError) as caught:
        run(config)
    message = str(caught.value)
    assert message.startswith("domain 'early': 2 of its 15 rows cannot be used: early/0/")
    assert re.search(
        r"early/0/\d+ \(row 12\): \d+ prompt tokens \+ max_new_tokens 4 exceed the model's context of 64", message
    )
    assert re.search(r"early/0/\d+ \(row 14\): ", message) and message.endswith("leave them out with too_long: drop")
    assert not (config.output / "metrics.jsonl").is_file()


def test_left_out_rows_are_named_and_counted_and_never_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    domains = domain(tmp_path, (*SHORT[:4], 90), held_out=(5, 70, 6, 7))
    config = run_of("rlvr", tmp_path, domains=domains, too_long="drop", steps=3, eval={"n": 2})
    run(config)
    errors = capsys.readouterr().err
    assert errors.count("warning: domain 'early': 1 of its 4 held-out prompts cannot be used and are left out") == 1
    assert errors.count("domain 'early': 1 of its 5 rows cannot be used and are left out (too_long: drop)") == 1
    found = read_rows(config.output / "metrics.jsonl")
    # of 12 draws that could be used, in passes over 5 rows: the long one has come by twice, or a third time
    assert sum(row.get("too_long/early", 0) for row in found) in (2, 3)
    assert all("error/early" not in row for row in found)
    result = Evaluation.from_json((config.output / "eval" / "final.json").read_text())
    assert result.too_long == {"early": 1} and len(result.domains["early"].questions) == 3
    assert set(sum((q.finishes_G for q in result.domains["early"].questions), ())) <= {"stop", "length"}
    report = write_report(config.output).markdown.read_text()
    assert "early: 1 held-out prompts could not be asked and are in no score" in report
    assert "prompts were drawn that do not fit the model, and left out" in report


def test_held_out_prompts_too_long_are_refused_or_left_out_by_onepolicy_eval_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    domains = domain(tmp_path, SHORT, held_out=(5, 70, 6))
    with pytest.raises(ValueError, match=r"1 of its 3 held-out prompts cannot be used: early/2147483647/\d \("):
        run(run_of("rlvr", tmp_path, domains=domains))
    config = run_of("rlvr", tmp_path, domains=domains, too_long="drop")
    result = evaluate_checkpoint(config, config.model.path, 2, 1.0, None)
    assert result.too_long == {"early": 1} and len(result.domains["early"].questions) == 2
    assert f"evaluation {config.model.path}: early: 1 held-out prompts could not be asked" in capsys.readouterr().err
    with pytest.raises(ValueError, match="1 of its 3 held-out prompts cannot be used"):
        evaluate_checkpoint(config.model_copy(update={"too_long": "error"}), config.model.path, 2, 1.0, None)


@pytest.mark.parametrize(("own", "key"), [(None, "rollout.max_new_tokens"), (64, "domains.early.max_new_tokens")])
def test_responses_as_long_as_the_context_are_refused_with_both_numbers(
    tmp_path: Path, own: int | None, key: str
) -> None:
    rollout = {"prompts": 4, "n": 4, "max_new_tokens": 64 if own is None else 100}
    config = run_of("rlvr", tmp_path, domains=domain(tmp_path, SHORT, max_new_tokens=own), rollout=rollout)
    with pytest.raises(ValueError, match=rf"^{re.escape(key)} is 64, and the model's context is 64 tokens"):
        run(config)


def test_a_domain_of_long_responses_leaves_less_room_for_its_prompts(tmp_path: Path) -> None:
    config = run_of("rlvr", tmp_path, domains=domain(tmp_path, SHORT, max_new_tokens=4))
    long = run_of("rlvr", tmp_path, domains=domain(tmp_path, SHORT, max_new_tokens=50), rollout={"max_new_tokens": 50})
    with pytest.raises(ValueError, match=r"\+ max_new_tokens 50 exceed the model's context of 64"):
        run(long)
    run(config)


def sft(tmp_path: Path, **changes: Any) -> AnyRun:
    file = tmp_path / "shown.jsonl"
    shown = [{"prompt": word(i, 10), "answer": "abc", "shown": word(i, 60 if i == 3 else 12)} for i in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in shown))
    tasks = {
        "kind": "records",
        "path": str(file),
        "demonstration": "shown",
        "eval_path": rows(tmp_path, 5, 6, shown="a"),
    }
    return run_of("sft", tmp_path, domains={"early": {"tasks": tasks, "eval_size": 2}}, **changes)


def test_demonstrations_follow_the_same_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"1 of its 8 rows cannot be used: early/0/\d \(row 3\): \d+ tokens of"):
        run(sft(tmp_path))
    config = sft(tmp_path, too_long="drop")
    run(config)
    assert "1 of its 8 rows cannot be used and are left out (too_long: drop)" in capsys.readouterr().err
    dropped = [row.get("too_long/early", 0) for row in read_rows(config.output / "metrics.jsonl")]
    assert sum(dropped) in (4, 5) and max(dropped) <= 2  # 32 demonstrations, from passes of 7 usable rows of 8


def test_a_killed_run_that_leaves_rows_out_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    domains = domain(tmp_path, (*SHORT, 60, 70, 80, 90))
    quiet: dict[str, Any] = {"domains": domains, "too_long": "drop", "steps": 8, "max_draws": 2}
    whole, killed = (run_of("rlvr", tmp_path, output=str(tmp_path / name), **quiet) for name in ("whole", "killed"))
    run(whole)
    kill_when(lambda: lines(killed.output / "metrics.jsonl") >= 5, killed, tmp_path / "run.yaml")
    run(killed)
    assert same(weights(whole.output), weights(killed.output))
    ours, theirs = (read_rows(config.output / "metrics.jsonl") for config in (whole, killed))
    assert [{**row, "time": 0} for row in ours] == [{**row, "time": 0} for row in theirs]
    assert sum(row.get("too_long/early", 0) for row in ours) > 0


def test_a_run_stopped_by_a_long_prompt_may_go_on_without_it(tmp_path: Path) -> None:
    """The key may change on resume: up to there nothing has been left out."""
    domains = domain(tmp_path, SHORT)
    first = run_of("rlvr", tmp_path, domains=domains, steps=2)
    run(first)
    run(first.model_copy(update={"steps": 3, "too_long": "drop"}))


def test_a_prompt_that_cannot_be_rendered_is_named_before_the_run(tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": word(i, 5)}] for i in range(6)]
    chats[2] = [{"role": "narrator", "content": "a"}]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps({"prompt": chat, "answer": "abc"}) + "\n" for chat in chats))
    tasks = {"kind": "records", "path": str(file), "eval_path": rows(tmp_path, 7), "grader": "tests.fragile:letters"}
    config = run_of("rlvr", tmp_path, domains={"early": {"tasks": tasks, "eval_size": 1}})
    template = tmp_path / "origin" / "chat_template.jinja"  # many templates refuse roles that they do not know
    refusal = "{% if messages[0].role == 'narrator' %}{{ raise_exception('no such role') }}{% endif %}"
    template.write_text(refusal + template.read_text())
    with pytest.raises(
        ValueError, match=r"1 of its 6 rows cannot be used: early/0/\d \(row 2\): its messages cannot be"
    ):
        run(config)


# -- the rule in the mixture -------------------------------------------------------------------------------------------

WORDS = {"kind": "letters", "task": "reverse", "min_length": 2, "max_length": 9}


def longer_than(limit: int) -> Any:
    def fault(task: Task) -> str:
        length = len(str(task.reference))
        return f"{length} letters" if length > limit else ""

    return fault


def test_draws_skip_what_does_not_fit_and_keep_the_order_of_the_rest() -> None:
    config = DomainConfig(tasks=WORDS, eval_size=8)  # type: ignore[arg-type]
    plain, screened = Domain("w", config, 0), Domain("w", config, 0)
    screen = Screen(longer_than(6), "drop")
    screened.restrict(screen, looks_ahead=True)
    expected = [task for task in (plain.draw() for _ in range(200)) if len(str(task.reference)) <= 6]
    assert [screened.draw() for _ in expected] == expected
    assert screen.dropped["w"] <= 200 - len(expected) and screened.too_long == 8 - len(screened.eval_tasks) > 0
    held_out = {task.messages[0]["content"] for task in plain.eval_tasks}
    assert not held_out & {task.messages[0]["content"] for task in expected}


def test_a_procedural_source_is_refused_at_its_first_draws_or_when_one_comes_later() -> None:
    mixture = Mixture({"w": DomainConfig(tasks=WORDS, eval_size=1)}, 0)  # type: ignore[arg-type]
    late = mixture.domains["w"].source.draw(40).id

    def only_late(task: Task) -> str:
        return "too late" if task.id == late else ""

    mixture.restrict(Screen(only_late, "error"), looks_ahead=True)
    with pytest.raises(ValueError, match=rf"a task drawn to train on cannot be used: {late}: too late"):
        mixture.draw(60)
    with pytest.raises(ValueError, match=r"'w': \d+ of its 32 first draws cannot be used: w/0/\d+: 9 letters"):
        mixture.restrict(Screen(lambda task: "", "error", longer_than(8)), looks_ahead=True)
    with pytest.raises(ValueError, match=r"none of its 1 held-out prompts is left"):
        mixture.restrict(Screen(lambda task: "never", "drop"))


def test_a_domain_in_which_nearly_nothing_fits_is_refused_with_numbers() -> None:
    mixture = Mixture({"w": DomainConfig(tasks=WORDS, eval_size=1)}, 0)  # type: ignore[arg-type]
    mixture.restrict(Screen(lambda task: "", "drop", lambda task: "never"))
    with pytest.raises(ValueError, match=r"901 of the last 901 training draws do not fit the model \(too_long: drop\)"):
        mixture.draw(1)

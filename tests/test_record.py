"""What surrounds a run: files that change meanwhile, its identity on a resume, its record, a user's files, its end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from onepolicy import run
from onepolicy.circumstances import device_name, versions
from onepolicy.config import AnyRun, MergeConfig, parse_run
from onepolicy.failures import Failures
from onepolicy.files import whole
from onepolicy.mergefiles import merge_files
from onepolicy.mergeinputs import Inputs
from onepolicy.recipes import mopd as recipe
from onepolicy.runfolder import RunFolder, check_folder, is_finished, read_rows
from onepolicy.session import Session
from onepolicy.updates import MAX_SKIPPED
from onepolicy.watch import FilesChanged, Watch
from tests.runs import DOMAINS, checkpoint, forked, lines, run_of, same, settings, weights
from tests.test_rewards import group
from tests.test_run import changed, loaded_step, with_checkpoints

QUIET: dict[str, Any] = {"eval": {"n": 1, "at_end": False}, "checkpoint": {"every": 1}}


def after_row(monkeypatch: pytest.MonkeyPatch, row: int, act: Callable[[], object]) -> None:
    """Do something once, between two steps of a run in this process."""
    log, done = Session.log, []

    def logging(self: Session, step: int, *arguments: Any) -> None:
        log(self, step, *arguments)
        if step + 1 == row and not done:
            done.append(True)
            act()

    monkeypatch.setattr(Session, "log", logging)


# -- files that change while a run is under way ------------------------------------------------------------------------


def test_a_watch_says_which_file_has_changed_and_how(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("12345")
    hashed, strict = Watch(), Watch()
    for watch in (hashed, strict):
        watch.add("domain 'math'", [file])
        watch.check()
    hashed.know({file: "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"})
    (tmp_path / "same").write_text("12345")
    os.replace(tmp_path / "same", file)
    hashed.check()  # another file with the same contents
    hashed.check()
    with pytest.raises(FilesChanged, match=r"^domain 'math': \S+rows\.jsonl was replaced by another file while"):
        strict.check()
    file.write_text("12346")
    with pytest.raises(FilesChanged, match="was written to"):
        hashed.check()
    file.write_text("1234")
    with pytest.raises(FilesChanged, match="had 5 bytes and has 4 bytes"):
        hashed.check()
    file.unlink()
    with pytest.raises(FilesChanged, match=r"is gone \(No such file or directory\)"):
        hashed.check()


def truncated(file: Path) -> None:
    os.truncate(file, 100)


def renamed_over(file: Path) -> None:
    other = checkpoint(file.parent.parent / "another", 9)
    os.replace(Path(other) / file.name, file)


def emptied_config(file: Path) -> None:
    (file.parent / "config.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (truncated, r"model\.safetensors had [\d,]+ bytes and has 100 bytes"),
        (renamed_over, r"model\.safetensors was replaced by another file"),
        (Path.unlink, r"model\.safetensors is gone \(No such file or directory\)"),
        (emptied_config, r"config\.json had \d+ bytes and has 2 bytes"),
    ],
    ids=["truncated", "renamed-over", "deleted", "config"],
)
def test_a_teacher_that_changes_stops_the_run_which_goes_on_when_it_is_restored(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], object],
    what: str,
) -> None:
    config = run_of("mopd", tmp_path, **QUIET | {"checkpoint": {"every": 100}})
    teacher = Path(settings("mopd", tmp_path)["teachers"]["late"])
    shutil.copytree(teacher, tmp_path / "kept")
    after_row(monkeypatch, 2, lambda: spoil(teacher / "model.safetensors"))
    with pytest.raises(FilesChanged, match=rf"^teacher 'late': \S+{what} while this run was under way"):
        run(config)
    assert "stopped: step 2 of 4 is kept in" in capsys.readouterr().err
    shutil.rmtree(teacher)
    shutil.copytree(tmp_path / "kept", teacher)
    run(config)
    undisturbed = run_of("mopd", tmp_path, output=str(tmp_path / "undisturbed"), **QUIET)
    run(undisturbed)
    assert same(weights(config.output), weights(undisturbed.output))
    assert [row["step"] for row in read_rows(config.output / "metrics.jsonl")] == [1, 2, 3, 4]


def test_files_that_are_written_again_with_the_same_contents_have_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_of("mopd", tmp_path, domains=records(tmp_path) | {"late": DOMAINS["late"]}, **QUIET)

    def rewrite() -> None:
        for file in [*tmp_path.glob("teacher-*/*"), *tmp_path.glob("origin/*"), tmp_path / "rows.jsonl"]:
            other = file.with_name("other")
            shutil.copyfile(file, other)
            os.replace(other, file)

    after_row(monkeypatch, 2, rewrite)
    run(config)
    assert is_finished(config)


def test_a_teacher_that_changes_while_it_scores_is_not_learnt_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_of("mopd", tmp_path, **QUIET)
    teacher = Path(settings("mopd", tmp_path)["teachers"]["late"])
    annotate, calls = recipe.annotate_distillation, []

    def late(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            renamed_over(teacher / "model.safetensors")
        annotate(*arguments)

    monkeypatch.setattr(recipe, "annotate_distillation", late)
    with pytest.raises(FilesChanged, match="teacher 'late'"):
        run(config)
    assert lines(config.output / "metrics.jsonl") == 2


# -- identity on a resume ----------------------------------------------------------------------------------------------


def records(folder: Path, name: str = "rows.jsonl") -> dict[str, Any]:
    rows = [{"prompt": f"say {letter}{other}", "answer": letter} for letter in "abcdefghij" for other in "abc"]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"early": {"tasks": {"kind": "records", "path": str(folder / name)}, "eval_size": 4}}


def stopped_at_2(tmp_path: Path, kind: str = "sft", **changes: Any) -> AnyRun:
    run(run_of(kind, tmp_path, **QUIET, **changes | {"steps": 2}))
    return run_of(kind, tmp_path, **QUIET, **changes | {"steps": 4})


def test_a_resume_refuses_changed_data(tmp_path: Path) -> None:
    config = stopped_at_2(tmp_path, domains=records(tmp_path))
    file = tmp_path / "rows.jsonl"
    text = file.read_text()
    file.write_text(text.replace('"say ab"', '"say ax"'))
    with pytest.raises(ValueError, match=r"'the data of early' is not what it was .* differs in \S+rows\.jsonl:"):
        run(config)
    file.write_text(text)
    run(config)


def test_a_resume_refuses_another_grader_behind_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "def score(response, reference):\n    return float(response[:1] == reference)\n"
    (tmp_path / "a_grader_of_mine.py").write_text(source)
    domains = records(tmp_path)
    domains["early"]["tasks"]["grader"] = "a_grader_of_mine:score"
    config = stopped_at_2(tmp_path, domains=domains)
    (tmp_path / "a_grader_of_mine.py").write_text(source + "# better\n")
    with pytest.raises(ValueError, match="it differs in module a_grader_of_mine: restore"):
        run(config)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_a_resume_refuses_other_settings_beside_the_same_weights(tmp_path: Path, name: str) -> None:
    config = stopped_at_2(tmp_path, "mopd")
    for folder, who in ((tmp_path / "teacher-late", "late"), (tmp_path / "origin", "the model")):
        file = folder / name
        text = file.read_text()
        file.write_text(text + "\n")
        with pytest.raises(ValueError, match=rf"'{who}' is not what it was .* differs in {name}: restore"):
            run(config)
        file.write_text(text)


def test_run_json_has_every_resume_and_what_differs_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = stopped_at_2(tmp_path)
    file = config.output / "run.json"
    record = json.loads(file.read_text())
    assert (record["threads"], record["device"]) == (1, device_name("cpu")) and "resumes" not in record
    record["versions"]["torch"] = "2.0.0"
    file.write_text(json.dumps(record))
    run(changed(config, threads=2, steps=3))
    torch.set_num_threads(1)
    (resume,) = json.loads(file.read_text())["resumes"]
    assert (resume["step"], resume["threads"], resume["versions"]) == (2, 2, versions())
    err = capsys.readouterr().err
    assert f"not bit-identical: torch {torch.__version__} instead of 2.0.0, threads 2 instead of 1\n" in err
    run(changed(config, threads=2, steps=4))
    torch.set_num_threads(1)
    assert [resume["step"] for resume in json.loads(file.read_text())["resumes"]] == [2, 3]
    assert "bit-identical" not in capsys.readouterr().err


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_steps_may_change_only_where_the_learning_rate_does_not_depend_on_them(tmp_path: Path, schedule: str) -> None:
    config = run_of("sft", tmp_path, optim={"schedule": schedule, "learning_rate": 1e-3})
    with_checkpoints(config, 1).close()
    if schedule == "constant":
        check_folder(changed(config, steps=8))
    else:
        with pytest.raises(ValueError, match=f"steps: 4 there, 8 here, and optim.schedule {schedule} depends on them"):
            check_folder(changed(config, steps=8))
        check_folder(config)


# -- the record --------------------------------------------------------------------------------------------------------


def cut(file: Path, rows: int) -> None:
    file.write_text("".join(line + "\n" for line in file.read_text().splitlines()[:rows]))


def test_a_record_that_is_too_short_falls_back_to_the_checkpoint_that_it_supports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_checkpoints(run_of("sft", tmp_path), 2, 4)
    facts = json.loads((folder.path / "checkpoints" / "step-000004" / "facts.json").read_text())
    assert facts == {"step": 4, "rows": {"metrics.jsonl": 4, "samples.jsonl": 4}}
    cut(folder.path / "metrics.jsonl", 3)
    assert loaded_step(folder) == 2
    assert "step-000004 counts rows that are gone (1 of 4 in metrics.jsonl)" in capsys.readouterr().err
    cut(folder.path / "metrics.jsonl", 1)
    assert loaded_step(folder) == 4
    err = capsys.readouterr().err
    assert "no checkpoint before has all of its rows" in err and "are lost: 3 of 4 in metrics.jsonl" in err
    (folder.path / "samples.jsonl").unlink()
    assert loaded_step(folder) == 4
    assert "are lost: 3 of 4 in metrics.jsonl and 4 of 4 in samples.jsonl" in capsys.readouterr().err
    folder.close()


def test_a_run_with_a_torn_record_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    torn, undisturbed = (run_of("sft", tmp_path, output=str(tmp_path / name)) for name in ("torn", "undisturbed"))
    for config in (torn, undisturbed):
        run(config)
    (torn.output / "done.json").write_text('{"steps": 4, "mea')
    metrics = torn.output / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-30] + b"\0" * 30)
    run(torn)
    rows = [read_rows(config.output / "metrics.jsonl") for config in (torn, undisturbed)]
    for row in rows[0] + rows[1]:
        del row["time"]
    assert rows[0] == rows[1] and same(weights(torn.output), weights(undisturbed.output))
    assert is_finished(torn)


def test_when_all_checkpoints_are_gone_the_run_says_how_much_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_checkpoints(run_of("sft", tmp_path), 2, 3)
    shutil.rmtree(folder.path / "checkpoints")
    assert loaded_step(folder) is None
    assert "the 3 steps in metrics.jsonl are lost, starting from step 0" in capsys.readouterr().err
    folder.close()


def test_what_lies_beside_the_checkpoints_is_named_and_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_of("sft", tmp_path, steps=2, **QUIET)
    run(config)
    place = config.output / "checkpoints"
    (place / "step-abc").mkdir()
    (place / "step-000099").mkdir()
    (place / "notes.json").write_text("{")
    (place / "step-000002" / "mine.txt").write_text("kept")
    (place / ".mine.tmp").write_text("kept")
    run(changed(config, steps=4))
    err = capsys.readouterr().err
    assert f"{place / 'step-abc'} is no checkpoint" in err and f"{place / 'notes.json'} is no checkpoint" in err
    assert f"{place / 'step-000099'} is torn" in err
    assert f"{place / 'step-000002'} is not removed, for it holds mine.txt" in err
    assert (place / "step-000002" / "mine.txt").read_text() == (place / ".mine.tmp").read_text() == "kept"
    names = {"step-abc", "notes.json", ".mine.tmp", "step-000002", "step-000003", "step-000004"}
    assert {path.name for path in place.iterdir()} == names
    assert same(torch.load(place / "step-000004" / "learner.pt", weights_only=True)["policy"]["learner"]["version"], 4)


@pytest.mark.parametrize("name", ["run.json", "done.json"])
def test_a_torn_json_of_a_run_is_named_and_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    config = run_of("sft", tmp_path, steps=2, **QUIET)
    run(config)
    (config.output / name).write_text("{")
    run(changed(config, steps=3))
    assert f"{config.output / name} is damaged (" in capsys.readouterr().err
    assert json.loads((config.output / name).read_text())


# -- a user's files ----------------------------------------------------------------------------------------------------


def test_only_what_a_kill_left_of_ours_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(run_of("sft", tmp_path))
    ours = ["checkpoints/.step-000002.tmp", ".metrics.jsonl.tmp", "eval/.final.json.tmp", "branches/early/.model.tmp"]
    users = [".notes.tmp", "checkpoints/.draft.tmp", "mine/.model.tmp", "eval/.thesis.tmp", "model/.config.json.tmp"]
    for name in (*ours, *users):
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_text("text")
    folder.rewind(0)
    assert [name for name in ours if (folder.path / name).exists()] == []
    assert [name for name in users if not (folder.path / name).exists()] == []
    folder.close()


def test_a_folder_that_holds_files_of_others_is_moved_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("one", "two"):
        with whole(tmp_path / "model") as scratch:
            scratch.mkdir()
            (scratch / "weights").write_text(text)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "model" / "thesis").mkdir()
    (tmp_path / "model" / "thesis" / "one.tex").write_text("years of work")
    with whole(tmp_path / "model") as scratch:
        scratch.mkdir()
        (scratch / "weights").write_text("three")
    (kept,) = tmp_path.glob("model.old-*")
    assert (kept / "thesis" / "one.tex").read_text() == "years of work" and (kept / "weights").read_text() == "two"
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["weights"]
    assert f"it is kept as {kept}" in capsys.readouterr().err


def test_a_model_of_the_users_in_a_run_folder_is_moved_aside(tmp_path: Path) -> None:
    config = run_of("sft", tmp_path, steps=1, **QUIET)
    RunFolder(config).close()
    checkpoint(config.output / "model", 5)
    (config.output / "model" / "README.md").write_text("my model")
    before = weights(config.output)
    run(config)
    (kept,) = config.output.glob("model.old-*")
    shutil.move(kept, tmp_path / "kept" / "model")
    assert same(weights(tmp_path / "kept"), before) and not same(weights(config.output), before)
    run(changed(config, steps=2))
    assert not list(config.output.glob("model.old-*"))


def test_a_config_yaml_of_the_users_is_not_overwritten(tmp_path: Path) -> None:
    config = run_of("sft", tmp_path)
    config.output.mkdir()
    text = "# with comments\n" + yaml.safe_dump(settings("sft", tmp_path))
    (config.output / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"holds a config\.yaml that no run has written"):
        RunFolder(config)
    assert (config.output / "config.yaml").read_text() == text


# -- what is no result -------------------------------------------------------------------------------------------------


def test_weights_that_are_not_finite_are_saved_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_of("sft", tmp_path, **QUIET)

    def poison() -> None:
        with torch.no_grad():
            sessions[0].learner.parameters[0][0, 0] = float("nan")

    sessions: list[Session] = []
    opened = Session.__enter__
    monkeypatch.setattr(Session, "__enter__", lambda self: sessions.append(self) or opened(self))
    after_row(monkeypatch, 2, poison)
    with pytest.raises(ValueError, match=r"after 2 updates 'model\.embed_tokens\.weight' is not finite"):
        run(config)
    assert [path.name for path in (config.output / "checkpoints").iterdir()] == ["step-000001"]
    assert not (config.output / "model").exists()


def test_updates_that_are_all_skipped_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *given: clip(*given) * float("inf"))
    config = run_of("sft", tmp_path, steps=30, **QUIET | {"checkpoint": {"every": 4}})
    with pytest.raises(ValueError, match=f"the last {MAX_SKIPPED} updates were skipped"):
        run(config)
    assert [row["skipped"] for row in read_rows(config.output / "metrics.jsonl")] == list(range(1, MAX_SKIPPED + 1))
    monkeypatch.undo()
    run(changed(config, steps=12))
    assert is_finished(changed(config, steps=12))


def test_a_run_in_which_nothing_had_a_reward_has_no_result() -> None:
    failures = Failures()
    failures.begin()
    failures.observe(group(None, None))
    failures.require_some()  # too few to stop before the end
    with pytest.raises(ValueError, match="domain 'early': none of the 2 answers of this run has a reward: 2 could not"):
        failures.require_any()
    failures.observe(group(0.0))
    failures.require_any()


# -- SIGTERM -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sft", "rlvr"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["term", "int"])
def test_a_signal_keeps_the_finished_step_and_says_which(
    tmp_path: Path, kind: str, number: signal.Signals, code: int
) -> None:
    config = run_of(kind, tmp_path, steps=12, **QUIET | {"checkpoint": {"every": 1000}})
    endless = changed(config, steps=100_000)
    file, err = tmp_path / "run.yaml", tmp_path / "stderr"
    file.write_text(yaml.safe_dump(endless.model_dump(mode="json")))
    process = forked("run", str(file), stderr=str(err))
    while lines(config.output / "metrics.jsonl") < 3:
        assert process.is_alive()
        time.sleep(0.001)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == code
    (kept,) = (config.output / "checkpoints").iterdir()
    step = int(kept.name.removeprefix("step-"))
    assert 2 <= step <= lines(config.output / "metrics.jsonl")
    assert err.read_text() == (
        f"\nstopped: step {step} of 100000 is kept in {config.output}\n"
        "\ninterrupted: the same command goes on from the last checkpoint\n"
    )
    steps = step + 3
    run(changed(config, steps=steps))
    whole_run = parse_run(config.model_dump(mode="json") | {"output": str(tmp_path / "whole"), "steps": steps})
    run(whole_run)
    assert same(weights(config.output), weights(whole_run.output))


def test_an_evaluation_that_was_cut_off_is_made_on_the_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    often: dict[str, Any] = {"checkpoint": {"every": 100}, "eval": {"n": 1, "every": 2, "at_end": False}}
    config, undisturbed = (run_of("sft", tmp_path, output=str(tmp_path / name), **often) for name in ("cut", "whole"))
    evaluate = Session.evaluate

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.setattr(Session, "evaluate", evaluate)
    assert [path.name for path in (config.output / "checkpoints").iterdir()] == ["step-000002"]
    for one in (config, undisturbed):
        run(one)
    texts = [(one.output / "eval" / "step-2.json").read_text() for one in (config, undisturbed)]
    assert texts[0] == texts[1] and same(weights(config.output), weights(undisturbed.output))


def test_a_step_whose_update_has_begun_is_not_kept_as_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_of("sft", tmp_path, **QUIET | {"checkpoint": {"every": 2}})

    def interrupt() -> None:
        raise KeyboardInterrupt

    after_row(monkeypatch, 4, interrupt)  # the weights are those of step 4, and what else it changes may not be
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert f"stopped: step 2 of 4 is kept in {config.output}" in capsys.readouterr().err
    assert [path.name for path in (config.output / "checkpoints").iterdir()] == ["step-000002"]


# -- merging -----------------------------------------------------------------------------------------------------------


def test_a_model_that_changes_while_it_is_merged_is_not_in_the_result(tmp_path: Path) -> None:
    models = {name: checkpoint(tmp_path / name, number) for number, name in enumerate(("base", "one", "other"))}
    config = parse_run(
        {
            "recipe": "merge",
            "output": str(tmp_path / "merged"),
            "base": models.pop("base"),
            "models": models,
            "method": "average",
        }
    )
    assert isinstance(config, MergeConfig)
    inputs = Inputs(config)
    file = tmp_path / "one" / "model.safetensors"
    kept = file.read_bytes()
    truncated(file)
    with pytest.raises(FilesChanged, match=r"model 'one': \S+ had [\d,]+ bytes and has 100 bytes"):
        merge_files(inputs, config, config.output / "model")
    assert not (config.output / "model").exists()
    file.write_bytes(kept)
    run(config)

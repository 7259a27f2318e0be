"""The run folder: whose it is, what survives a crash, and that a killed run ends where an undisturbed one does."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from onepolicy import circumstances, files, run
from onepolicy.config import AnyRun, LossConfig, ScratchConfig, parse_run
from onepolicy.files import NoSpace
from onepolicy.models import save_model
from onepolicy.policy import bytes_on_disk
from onepolicy.runfolder import RunFolder, check_folder, is_finished, read_rows, tensor_bytes
from onepolicy.session import Session
from onepolicy.tiny import from_scratch
from tests.disks import fill, mounted
from tests.runs import DOMAINS, SCRATCH, checkpoint, forked, kill_when, lines, run_of, same, settings, weights

ROOT = Path(__file__).parent.parent


def changed(config: AnyRun, **changes: Any) -> AnyRun:
    return parse_run(config.model_dump(mode="json") | changes)


def with_checkpoints(config: AnyRun, *steps: int) -> RunFolder:
    """A folder that looks as if the run had come as far as the last of these steps."""
    folder = RunFolder(config)
    for step in range(1, max(steps) + 1):
        folder.append("metrics.jsonl", {"step": step})
        folder.append("samples.jsonl", {"step": step})
        if step in steps:
            folder.save_checkpoint(step, {"at": torch.tensor(step)}, {"step": step})
    return folder


def loaded_step(folder: RunFolder) -> int | None:
    found = folder.load_checkpoint()
    if found is None:
        return None
    learner, facts = found
    assert learner["at"].item() == facts["step"]
    return int(facts["step"])


# -- whose folder it is ------------------------------------------------------------------------------------------------


def test_another_configuration_is_refused_with_both_values(tmp_path: Path) -> None:
    config = run_of("sft", tmp_path)
    with_checkpoints(config, 1).close()
    other = changed(config, seed=3, optim={"learning_rate": 0.5}, domains=DOMAINS | {"late": DOMAINS["early"]})
    with pytest.raises(ValueError, match="holds a run with another configuration") as caught:
        RunFolder(other)
    message = str(caught.value)
    assert "seed: 0 there, 3 here" in message
    assert "optim.learning_rate: 0.001 there, 0.5 here" in message
    assert "domains.late.tasks.options.half: 'late' there, 'early' here" in message
    assert "steps" not in message and "domains.early" not in message


def test_another_recipe_is_refused_without_a_list_of_all_that_follows(tmp_path: Path) -> None:
    with_checkpoints(run_of("sft", tmp_path), 1).close()
    with pytest.raises(ValueError, match=r"another configuration \(recipe: 'sft' there, 'rlvr' here\)"):
        RunFolder(run_of("rlvr", tmp_path, output=str(tmp_path / "sft")))


def test_what_does_not_change_the_result_may_change_on_resume(tmp_path: Path) -> None:
    config = run_of("sft", tmp_path)
    with_checkpoints(config, 1).close()
    RunFolder(changed(config, steps=9, threads=2, eval={"every": 1}, checkpoint={"every": 7})).close()


def test_a_folder_in_which_no_step_was_taken_may_be_corrected(tmp_path: Path) -> None:
    config = run_of("sft", tmp_path)
    RunFolder(config).close()
    RunFolder(changed(config, seed=3)).close()
    assert yaml.safe_load((config.output / "config.yaml").read_text())["seed"] == 3
    assert json.loads((config.output / "run.json").read_text())["seed"] == 3


def test_a_setting_that_an_older_version_did_not_know_counts_as_its_default(tmp_path: Path) -> None:
    config = run_of("sft", tmp_path)
    with_checkpoints(config, 1).close()
    stored = yaml.safe_load((config.output / "config.yaml").read_text())
    del stored["optim"]["clip_norm"]
    (config.output / "config.yaml").write_text(yaml.safe_dump(stored))
    check_folder(config)
    stored["optim"]["momentum"] = 1
    (config.output / "config.yaml").write_text(yaml.safe_dump(stored))
    with pytest.raises(ValueError, match=r"cannot read: optim\.momentum: unknown key"):
        check_folder(config)


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    config = run_of("sft", tmp_path)
    config.output.mkdir()
    (config.output / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        RunFolder(config)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        RunFolder(changed(config, output=str(tmp_path / "file")))


def test_a_run_killed_as_it_opened_its_folder_may_start_again(tmp_path: Path) -> None:
    config = run_of("sft", tmp_path)
    config.output.mkdir()
    (config.output / ".lock").touch()
    (config.output / ".config.yaml.tmp").write_text("recipe: s")
    folder = RunFolder(config)
    folder.rewind(0)
    assert {path.name for path in config.output.iterdir()} == {".lock", "config.yaml", "run.json"}
    folder.close()


def test_a_folder_in_use_by_another_process_is_refused(tmp_path: Path) -> None:
    config = run_of("sft", tmp_path)
    folder = RunFolder(config)
    script = (
        "import sys; from onepolicy.config import parse_run; from onepolicy.runfolder import RunFolder; import json\n"
        "try: RunFolder(parse_run(json.loads(sys.argv[1])))\n"
        "except ValueError as error: print(error)"
    )
    command = [sys.executable, "-c", script, config.model_dump_json()]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "is in use by another process" in answer
    folder.close()
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == ""


def test_a_run_that_cannot_start_lets_go_of_its_folder(tmp_path: Path) -> None:
    config = run_of("rlvr", tmp_path, model=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no model at"):
        run(config)
    RunFolder(config).close()


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    folder = with_checkpoints(run_of("sft", tmp_path), 1, 2, 3)
    folder.save_checkpoint(1_000_000, {"at": torch.tensor(1_000_000)}, {"step": 1_000_000})
    names = sorted(path.name for path in (folder.path / "checkpoints").iterdir())
    assert names == ["step-000003", "step-1000000"]
    assert loaded_step(folder) == 1_000_000
    folder.close()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink], ids=["truncated", "flipped", "missing"])
@pytest.mark.parametrize("name", ["learner.pt", "facts.json", "MANIFEST.json"])
def test_a_torn_checkpoint_is_passed_over_for_the_one_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Any
) -> None:
    folder = with_checkpoints(run_of("sft", tmp_path), 2, 4)
    assert loaded_step(folder) == 4
    damage(folder.path / "checkpoints" / "step-000004" / name)
    assert loaded_step(folder) == 2
    assert "step-000004 is torn" in capsys.readouterr().err
    damage(folder.path / "checkpoints" / "step-000002" / name)
    assert loaded_step(folder) is None
    folder.close()


def test_what_is_newer_than_the_checkpoint_is_forgotten(tmp_path: Path) -> None:
    folder = with_checkpoints(run_of("sft", tmp_path, checkpoint={"every": 2, "keep": 1}), 2)
    folder.save_checkpoint(4, {"at": torch.tensor(4)}, {"step": 4})
    shutil.copytree(folder.path / "checkpoints" / "step-000004", folder.path / "checkpoints" / "step-000002")
    for step in (3, 4, 5):
        folder.append("metrics.jsonl", {"step": step})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 0.')
    (folder.path / "checkpoints" / ".step-000006.tmp").mkdir()
    (folder.path / ".model.tmp").mkdir()
    assert [row["step"] for row in read_rows(folder.path / "metrics.jsonl")] == [1, 2, 3, 4, 5]

    folder.rewind(2)
    assert read_rows(folder.path / "metrics.jsonl") == [{"step": 1}, {"step": 2}]
    assert read_rows(folder.path / "samples.jsonl") == [{"step": 1}, {"step": 2}]
    assert [path.name for path in (folder.path / "checkpoints").iterdir()] == ["step-000002"]
    assert not list(folder.path.glob(".*.tmp"))
    folder.close()


# -- the end, and beyond -----------------------------------------------------------------------------------------------


def test_a_finished_run_returns_at_once_without_torch_or_a_model(tmp_path: Path) -> None:
    config = run_of("mopd", tmp_path, steps=1)
    run(config)
    assert is_finished(config)
    for folder in ("origin", "teacher-early", "mopd/model"):
        shutil.rmtree(tmp_path / folder)
    script = "import sys, onepolicy; onepolicy.run(onepolicy.load_run(sys.argv[1])); print('torch' in sys.modules)"
    command = [sys.executable, "-c", script, str(config.output)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_finished_run_goes_on_when_steps_are_raised(tmp_path: Path) -> None:
    config = run_of("sft", tmp_path, steps=2)
    run(config)
    run(changed(config, steps=5))
    run(run_of("sft", tmp_path, steps=5, output=str(tmp_path / "at once")))
    assert same(weights(config.output), weights(tmp_path / "at once"))
    assert json.loads((config.output / "done.json").read_text())["steps"] == 5
    assert [row["step"] for row in read_rows(config.output / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_steps_below_what_was_done_are_refused(tmp_path: Path) -> None:
    config = run_of("sft", tmp_path)
    run(config)
    (config.output / "done.json").unlink()
    with pytest.raises(ValueError, match="is at step 4 already: set steps to at least that"):
        run(changed(config, steps=3))


def test_the_folder_says_what_was_asked_and_with_which_versions(tmp_path: Path) -> None:
    config = run_of("sft", tmp_path, steps=1)
    run(config)
    assert parse_run(yaml.safe_load((config.output / "config.yaml").read_text())) == config
    circumstances = json.loads((config.output / "run.json").read_text())
    assert circumstances["versions"]["torch"] == str(torch.__version__)
    assert circumstances["torch_build"]["cuda"] == torch.version.cuda
    assert circumstances["seed"] == 0
    row = read_rows(config.output / "samples.jsonl")[0]
    assert (row["step"], row["domain"], row["response"], row["reference"]) == (1, "early", "abc", "abc")


def test_the_version_of_torch_is_that_of_the_build_and_not_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyPI's metadata says 2.13.0 for the build 2.13.0+cu130."""
    monkeypatch.setattr(circumstances, "version", lambda name: "0.0")
    RunFolder(run_of("sft", tmp_path)).close()
    versions = json.loads((tmp_path / "sft" / "run.json").read_text())["versions"]
    assert versions["torch"] == str(torch.__version__) and versions["numpy"] == "0.0"


# -- full disks --------------------------------------------------------------------------------------------------------


def plenty(path: object) -> Any:
    """As a disk looks that another process fills a moment later."""
    return shutil._ntuple_diskusage(total=2**40, used=0, free=2**40)


def assert_step_2_is_the_newest_and_whole(folder: RunFolder) -> None:
    assert [path.name for path in (folder.path / "checkpoints").iterdir()] == ["step-000002"]
    assert not list(folder.path.glob("**/.*.tmp"))
    assert loaded_step(folder) == 2


@pytest.mark.parametrize("foreseen", [True, False], ids=["foreseen", "while-writing"])
def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, foreseen: bool
) -> None:
    with mounted(tmp_path / "disk", "size=4m") as disk:
        folder = with_checkpoints(run_of("sft", tmp_path, output=str(disk / "run")), 2)
        ballast = fill(disk, leave=500_000)
        if not foreseen:
            monkeypatch.setattr(files.shutil, "disk_usage", plenty)
        state = {"at": torch.full((250_000,), 4.0)}
        with pytest.raises(OSError) as caught:
            folder.save_checkpoint(4, state, {"step": 4})
        assert caught.value.errno == errno.ENOSPC and isinstance(caught.value, NoSpace) == foreseen
        if foreseen:
            assert re.search(
                r"the checkpoint of step 4 needs 1,00\d,\d{3} bytes, .* has 4\d\d,\d{3} bytes", str(caught.value)
            )
        assert_step_2_is_the_newest_and_whole(folder)
        ballast.unlink()
        folder.save_checkpoint(4, {"at": torch.tensor(4)}, {"step": 4})
        assert loaded_step(folder) == 4
        folder.close()


def test_a_model_that_does_not_fit_leaves_the_one_before_it(tmp_path: Path) -> None:
    """safetensors raises an exception of its own, which keeps the number of the error in its message only."""
    model, tokenizer = from_scratch(ScratchConfig(**SCRATCH), 0)
    with mounted(tmp_path / "disk", "size=1m") as disk:
        save_model(model, tokenizer, disk / "model")
        before = {path.name: path.read_bytes() for path in (disk / "model").iterdir()}
        fill(disk, leave=8192)
        with pytest.raises(OSError) as caught:
            save_model(from_scratch(ScratchConfig(**SCRATCH), 1)[0], tokenizer, disk / "model")
        assert caught.value.errno == errno.ENOSPC
        assert {path.name: path.read_bytes() for path in (disk / "model").iterdir()} == before
        assert {path.name for path in disk.iterdir()} == {"model", "ballast"}


def test_the_estimate_of_a_checkpoint_is_what_it_takes(tmp_path: Path) -> None:
    config = run_of("sft", tmp_path, steps=2)
    run(config)
    with Session(changed(config, output=str(tmp_path / "other")), LossConfig(reduction="token")) as session:
        estimate, model = bytes_on_disk(session.policies.values())
    written = (config.output / "checkpoints" / "step-000002" / "learner.pt").stat().st_size
    assert written <= estimate <= written + 100 * 1024  # of a model with some twenty tensors: their archive entries
    assert model >= (config.output / "model" / "model.safetensors").stat().st_size - 2048
    shared = torch.zeros(1000)
    assert tensor_bytes({"a": shared, "b": [shared[:10], {"c": shared.view(10, 100)}]}) < 4000 + 10 * 1024


def test_a_run_on_a_disk_that_is_too_small_is_refused_before_the_first_step(tmp_path: Path) -> None:
    config = run_of("sft", tmp_path, output=str(tmp_path / "disk" / "run"))
    with mounted(tmp_path / "disk", "size=96k") as disk:
        with pytest.raises(NoSpace, match=r"2 checkpoints at one time, .* bytes each, and a model of .*needs"):
            run(config)
        assert {path.name for path in (disk / "run").iterdir()} == {".lock", "config.yaml", "run.json"}
        run(changed(config, output=str(tmp_path / "elsewhere")))


def test_a_run_that_may_write_no_file_of_that_size_ends_in_one_line_and_can_be_resumed(tmp_path: Path) -> None:
    """A limit on the size of files (ulimit -f) fails in torch's writer as a full disk does, and needs no root."""
    config = run_of("sft", tmp_path, steps=2)
    run(config)
    size = (config.output / "checkpoints" / "step-000002" / "learner.pt").stat().st_size
    file, err = tmp_path / "run.yaml", tmp_path / "stderr"
    file.write_text(yaml.safe_dump(changed(config, steps=4).model_dump(mode="json")))
    process = forked("run", str(file), stderr=str(err), largest_file=size // 2)
    process.join()
    assert process.exitcode == 2
    assert err.read_text() == (
        f"error: the file is larger than this process may write: {config.output / 'checkpoints' / 'step-000004'}: "
        "raise the limit (ulimit -f) and run the same command again; a run goes on from its last checkpoint\n"
    )
    folder = RunFolder(changed(config, steps=4))
    found = folder.load_checkpoint()
    folder.close()
    assert found is not None and found[1]["step"] == 2
    assert not list(config.output.glob("**/.*.tmp"))
    run(changed(config, steps=4))
    run(run_of("sft", tmp_path, steps=4, output=str(tmp_path / "at once")))
    assert_same_end(config.output, tmp_path / "at once", 4)


# -- kill -9 -----------------------------------------------------------------------------------------------------------


def kill_after_row(config: AnyRun, row: int, file: Path) -> None:
    """Start the run in a process of its own and kill it as soon as it has logged `row`."""
    kill_when(lambda: lines(config.output / "metrics.jsonl") >= row, config, file)


def assert_same_end(one: Path, other: Path, steps: int) -> None:
    assert same(weights(one), weights(other))
    final = Path("checkpoints") / f"step-{steps:06d}" / "learner.pt"
    assert same(*(torch.load(folder / final, weights_only=True) for folder in (one, other)))
    rows = [read_rows(folder / "metrics.jsonl") for folder in (one, other)]
    for row in (*rows[0], *rows[1]):
        del row["time"]
    assert rows[0] == rows[1]
    assert (one / "eval" / "final.json").read_text() == (other / "eval" / "final.json").read_text()


# With all that has a state of its own: momentum, a schedule, several draws and updates, a reference, the gate.
DEMANDING: dict[str, dict[str, Any]] = {
    "sft": {"optim": {"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 3}},
    "rlvr": {"max_draws": 2, "inner_updates": 2, "reference_kl": 0.1, "loss": {"importance": {"mode": "truncate"}}},
    "mopd": {
        "distill_weight": {"start": 1, "end": 0.5, "steps": 10},
        "outcome_weight": {"start": 1, "end": 0, "steps": 10},
        "plateau": {"patience": 3, "decay": 0.5},
        "rollout": {"prompts": 8, "n": 2, "max_new_tokens": 4},
        "inner_updates": 2,
        "loss": {"distill": {"estimator": "full"}},
    },
    "mix_rl": {"balance": {"kind": "gap"}, "max_draws": 2},
}
STEPS = 20


def demanding(recipe: str, folder: Path, output: str) -> AnyRun:
    return run_of(recipe, folder, output=str(folder / output), steps=STEPS, **DEMANDING[recipe])


@pytest.mark.parametrize("recipe", DEMANDING)
def test_a_run_killed_in_midstream_ends_where_an_undisturbed_one_does(tmp_path: Path, recipe: str) -> None:
    killed, whole = demanding(recipe, tmp_path, "killed"), demanding(recipe, tmp_path, "whole")
    kill_after_row(killed, 5, tmp_path / "run.yaml")
    assert any((killed.output / "checkpoints").iterdir())
    run(killed)
    run(whole)
    assert_same_end(killed.output, whole.output, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", DEMANDING)
def test_a_run_killed_again_and_again_ends_where_an_undisturbed_one_does(tmp_path: Path, recipe: str) -> None:
    killed, whole = demanding(recipe, tmp_path, "killed"), demanding(recipe, tmp_path, "whole")
    for row in (1, 2, 3, 4, 7, 10, 13):
        kill_after_row(killed, row, tmp_path / "run.yaml")
    process = forked("run", str(tmp_path / "run.yaml"))
    process.join()
    assert process.exitcode == 0
    run(whole)
    assert_same_end(killed.output, whole.output, STEPS)


def test_a_run_whose_last_checkpoint_is_torn_still_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    torn, whole = (run_of("rlvr", tmp_path, output=str(tmp_path / name)) for name in ("torn", "whole"))
    run(torn)
    run(whole)
    (torn.output / "done.json").unlink()
    shutil.rmtree(torn.model_dump()["output"] / "model")
    truncate(torn.output / "checkpoints" / "step-000004" / "learner.pt")
    run(torn)
    assert_same_end(torn.output, whole.output, 4)


def test_a_resume_refuses_another_teacher_under_the_same_name(tmp_path: Path) -> None:
    config = run_of("mopd", tmp_path, steps=2)
    run(config)
    teacher = Path(settings("mopd", tmp_path)["teachers"]["late"])
    shutil.rmtree(teacher)
    checkpoint(teacher, 7)
    with pytest.raises(ValueError, match="'late' is not what it was when this run was started, it differs in weights"):
        run(changed(config, steps=4))


def test_randomness_inside_the_model_is_the_same_after_a_resume(tmp_path: Path) -> None:
    """Router noise of a mixture of experts, which torch's global generator supplies, needs no place in a checkpoint."""
    noisy = SCRATCH["architecture"] | {
        "model_type": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "router_jitter_noise": 0.5,
    }
    once, twice = (
        run_of(
            "sft",
            tmp_path,
            output=str(tmp_path / name),
            model={"scratch": SCRATCH | {"architecture": noisy}},
            steps=steps,
        )
        for name, steps in (("once", 4), ("twice", 2))
    )
    run(once)
    run(twice)
    torch.rand(3)
    run(changed(twice, steps=4))
    assert same(weights(once.output), weights(twice.output))

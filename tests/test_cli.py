"""The command line: quick to answer, plain about mistakes, quiet when nobody watches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

import onepolicy
from onepolicy import cli, commands
from tests.runs import DOMAINS, checkpoint, forked, settings, weights

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "numpy", "reasoning_gym", "matplotlib", "datasets")
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Runs the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["onepolicy", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capfd.readouterr()

    return call


def write(folder: Path, recipe: str, **changes: Any) -> Path:
    file = folder / f"{recipe}.yaml"
    file.write_text(yaml.safe_dump(settings(recipe, folder, **changes)))
    return file


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


# -- quick -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["run", "--help"], 0), (["run", "nothing.yaml"], 2), (["run", "{file}", "rollout.n=x"], 2)],
    ids=["help", "run-help", "no-file", "bad-value"],
)
def test_help_and_mistakes_are_answered_at_once_and_without_torch(
    tmp_path: Path, arguments: list[str], code: int
) -> None:
    """Half a second on a free core; the limit here is for a busy one."""
    file = write(tmp_path, "sft")
    script = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules]))\n"
        "from onepolicy.cli import main; main()"
    )
    process = [sys.executable, "-c", script, *(argument.format(file=file) for argument in arguments)]
    began = time.monotonic()
    answer = subprocess.run(process, cwd=ROOT, capture_output=True, text=True, check=False)
    assert time.monotonic() - began < 3
    assert answer.returncode == code
    assert answer.stdout.splitlines()[-1] == "[]"
    assert "Traceback" not in answer.stderr


# -- plain about mistakes ----------------------------------------------------------------------------------------------


def test_bad_input_ends_with_code_2_and_every_fault_on_a_line(tmp_path: Path, command: Cli) -> None:
    code, out, err = command("run", write(tmp_path, "sft"), "steps=0", "optim.lr=1")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "error: steps: Input should be greater than 0 (got 0)",
        "optim.lr: unknown key: known are beta1, beta2, clip_norm, gradient_checkpointing, learning_rate, schedule, "
        "tokens_per_batch, warmup_steps, weight_decay",
    ]


@pytest.mark.parametrize("words", [["run"], ["check"], ["eval"], ["tasks", "check"]], ids=" ".join)
def test_every_command_refuses_options_that_a_task_source_does_not_have(
    tmp_path: Path, command: Cli, words: list[str]
) -> None:
    file = write(tmp_path, "sft", domains={"add": {"tasks": {"kind": "letters", "max_lenght": 2}}})
    code, _, err = command(*words, file)
    assert code == 2
    assert err == "error: domains.add.tasks.max_lenght: unknown key: did you mean 'max_length'?\n"


def test_an_unknown_command_or_option_ends_with_code_2(command: Cli) -> None:
    assert command("ru")[0] == command("run", "--fast")[0] == command("run")[0] == 2


def test_a_folder_of_another_run_is_refused_before_anything_is_loaded(tmp_path: Path, command: Cli) -> None:
    assert command("run", write(tmp_path, "sft", steps=1))[0] == 0
    for name in ("run", "check"):
        code, _, err = command(name, tmp_path / "sft.yaml", "seed=5")
        assert code == 2 and "another configuration (seed: 0 there, 5 here)" in err


def test_a_model_or_a_teacher_that_is_not_there_is_refused_by_name(tmp_path: Path, command: Cli) -> None:
    file = write(tmp_path, "mopd")
    for override in ("model=nowhere", "teachers.late=nowhere"):
        code, _, err = command("run", file, override)
        assert code == 2
        assert err.startswith("error: ") and "nowhere" in err and err.count("\n") == 1


@pytest.mark.parametrize("device", ["cuda:9", "cuda"])
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_built(
    tmp_path: Path, command: Cli, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # as on a machine without one, wherever this runs
    file = write(tmp_path, "rlvr", device=device)
    before = files(tmp_path)
    for words in (["run"], ["check"], ["eval", "--model", str(tmp_path / "origin")]):
        code, out, err = command(*words, file)
        assert (code, out) == (2, "") and err.startswith(f"error: device {device!r} asked for, but torch sees no GPU")
        assert err.count("\n") == 1 and files(tmp_path) == before


def test_a_study_on_a_gpu_that_is_not_there_is_refused(tmp_path: Path, command: Cli) -> None:
    study = tmp_path / "study.yaml"
    study.write_text((ROOT / "studies" / "smoke.yaml").read_text())
    code, out, err = command("compare", study, f"output={tmp_path / 'study'}", "devices=[cuda:99]")
    assert (code, out) == (2, "") and err.startswith("error: device 'cuda:99' asked for, but torch sees")
    assert not (tmp_path / "study").exists()


# -- what the commands do ----------------------------------------------------------------------------------------------


def test_run_trains_prints_a_table_and_stays_quiet_on_stderr(tmp_path: Path, command: Cli) -> None:
    output = tmp_path / "mopd"
    code, out, err = command("run", write(tmp_path, "mopd", steps=2))
    assert (code, err) == (0, "")
    shown = out.replace("\n", "")  # a long path is wrapped
    assert f"report  {output / 'report.html'}" in shown and f"model   {output / 'model'}" in shown
    assert "early" in out and "late" in out
    assert (output / "report.html").is_file() and (output / "report.md").is_file()


def test_run_on_a_folder_goes_on_where_it_was(tmp_path: Path, command: Cli) -> None:
    assert command("run", write(tmp_path, "rlvr", steps=2))[0] == 0
    moved = tmp_path / "moved"
    (tmp_path / "rlvr").rename(moved)
    assert command("run", moved, "steps=4")[0] == 0
    assert json.loads((moved / "done.json").read_text())["steps"] == 4
    assert not (tmp_path / "rlvr").exists()
    assert command("run", tmp_path / "rlvr.yaml", "steps=4")[0] == 0
    assert all((weights(moved)[name] == tensor).all() for name, tensor in weights(tmp_path / "rlvr").items())


def test_check_reports_tasks_teachers_and_domains_and_keeps_what_it_found(tmp_path: Path, command: Cli) -> None:
    file = write(tmp_path, "mopd")
    before, kept = files(tmp_path), tmp_path / "mopd" / "check.json"
    code, out, err = command("check", file)
    assert (code, err) == (0, "")
    assert "50/50" in out and "reverse KL" in out and "absorbed" in out and "change" not in out
    assert files(tmp_path) == before | {kept}
    found = json.loads(kept.read_text())
    assert found["fine"] is True and found["gradients"] is None
    assert [one["verdict"] for one in found["teachers"]] == ["absorbed", "absorbed"]
    assert [one["verdict"] for one in found["domains"]] == ["fine", "fine"]

    code, out, err = command("check", file, "check.warn_overlap=0.99")
    assert code == 0 and "warning: teacher 'early' shares" in err and "early: change  model=WARM/model" in out
    found = json.loads(kept.read_text())
    assert found["fine"] is False and [one["verdict"] for one in found["teachers"]] == ["doubtful", "doubtful"]
    assert command("run", file, "steps=1")[0] == 0, "what check leaves is in no run's way"


def test_check_warns_of_a_domain_that_will_starve_and_says_what_to_change(tmp_path: Path, command: Cli) -> None:
    domains = {name: dict(domain) for name, domain in DOMAINS.items()}
    domains["early"]["max_new_tokens"] = 1
    file = write(tmp_path, "mopd", domains=domains, rollout={"prompts": 8, "max_new_tokens": 16})
    code, out, err = command("check", file, "loss.reduction=token")
    assert code == 0 and "warning: domain 'early' would get" in err and "starves" in out
    assert "early: change  loss.reduction=sequence  or  balance.kind=share" in out
    for cure in ("loss.reduction=sequence", "balance.kind=share"):
        code, out, err = command("check", file, "loss.reduction=token", cure)
        assert (code, err) == (0, "") and "starves" not in out


def test_check_compares_gradients_on_request(tmp_path: Path, command: Cli) -> None:
    code, out, err = command("check", write(tmp_path, "mix_rl"), "--gradients")
    assert (code, err) == (0, "") and "cosine of gradients" in out
    found = json.loads((tmp_path / "mix_rl" / "check.json").read_text())["gradients"]
    assert set(found["cosine"]) == set(found["cosine"]["early"]) == {"early", "late"}
    for recipe, own in (("copd", {}), ("cascade_rl", {"order": ["late", "early"]})):
        assert command("check", write(tmp_path, recipe, **own), "--gradients")[0] == 0
    code, _, err = command("check", write(tmp_path, "sft"), "--gradients")
    assert code == 2 and "recipe sft does neither: leave it out" in err


def test_check_of_a_run_without_teachers_loads_its_model(tmp_path: Path, command: Cli) -> None:
    file = write(tmp_path, "rlvr")
    assert command("check", file)[0] == 0
    assert command("check", file, "model=nowhere")[0] == 2


def test_wrong_gold_answers_are_found_by_check_and_stop_a_run(tmp_path: Path, command: Cli) -> None:
    rows = [{"prompt": f"{i}?", "answer": f"[{i}[/x]", "demonstration": "no"} for i in range(40)]  # rich's markup
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {"kind": "records", "path": str(tmp_path / "rows.jsonl"), "grader": "tests.early:never"}
    file = write(tmp_path, "sft", domains={"x": {"tasks": tasks, "eval_size": 4}})
    for words in (["tasks", "check"], ["check"]):
        code, out, _ = command(*words, file)
        assert code == 1 and "0/" in out and "[/x]" in out
    code, _, err = command("run", file)
    assert code == 2 and "gold answers do not score 1.0" in err


def test_tasks_check_counts_the_gold_answers(tmp_path: Path, command: Cli) -> None:
    code, out, _ = command("tasks", "check", write(tmp_path, "sft"), "--n", "7")
    assert code == 0 and out.count("7/7") == 2


def test_tasks_list_names_the_kinds_and_their_options(command: Cli) -> None:
    code, out, _ = command("tasks", "list")
    assert code == 0
    assert {line.split()[0] for line in out.splitlines()} >= {"letters", "reasoning_gym", "records", "custom"}
    assert "max_length" in out


def test_eval_scores_a_checkpoint_greedily_or_not_and_keeps_it(tmp_path: Path, command: Cli) -> None:
    file, kept = write(tmp_path, "rlvr"), tmp_path / "new" / "eval.json"
    origin = settings("rlvr", tmp_path)["model"]
    before = files(tmp_path)
    code, out, err = command("eval", file, "--model", origin, "--greedy", "--output", kept)
    assert (code, err) == (0, "") and "early" in out
    greedy = json.loads(kept.read_text())
    assert (greedy["temperature"], greedy["n"]) == (0.0, 1)
    assert files(tmp_path) == before | {kept}
    command("eval", file, "--model", origin, "--output", kept)
    assert (json.loads(kept.read_text())["temperature"], json.loads(kept.read_text())["n"]) == (1.0, 8)
    code, _, err = command("eval", file)
    assert code == 2 and "no model at" in err  # the run has no result yet


def test_report_rebuilds_the_pages_of_a_run(tmp_path: Path, command: Cli) -> None:
    assert command("run", write(tmp_path, "sft", steps=1))[0] == 0
    (tmp_path / "sft" / "report.html").unlink()
    assert command("report", tmp_path / "sft")[0] == 0
    assert (tmp_path / "sft" / "report.html").is_file()
    code, _, err = command("report", tmp_path / "nothing")
    assert code == 2 and "nothing" in err


# -- interruptions -----------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_with_a_hint_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    file, err = write(tmp_path, "sft", steps=100_000), tmp_path / "stderr"
    process = forked("run", str(file), stderr=str(err))
    while not (tmp_path / "sft" / "metrics.jsonl").is_file():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    kept, hint = err.read_text().strip().split("\n\n")
    assert kept.startswith("stopped: ") and kept.endswith(f"kept in {tmp_path / 'sft'}")
    assert hint == "interrupted: the same command goes on from the last checkpoint"


def test_ctrl_c_while_checking_ends_with_a_line(command: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> bool:
        raise KeyboardInterrupt

    file = write(tmp_path, "sft")
    for name, words in (
        ("check_run", ["check"]),
        ("check_domains", ["tasks", "check"]),
        ("evaluate_checkpoint", ["eval"]),
    ):
        monkeypatch.setattr(commands, name, interrupted)
        assert command(*words, file) == (130, "", "\ninterrupted\n")


def test_a_reader_that_has_had_enough_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "onepolicy", "tasks", "list"]
    answer = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (answer.returncode, answer.stderr) == (1, "")


# -- from Python -------------------------------------------------------------------------------------------------------


def test_the_package_is_imported_without_torch() -> None:
    script = f"import sys, onepolicy, onepolicy.tasks; print([m for m in {HEAVY[:2]} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", script], cwd=ROOT, text=True, check=True, capture_output=True)
    assert answer.stdout == "[]\n"


def test_a_dozen_lines_of_python_distil(tmp_path: Path) -> None:
    origin, early, late = (checkpoint(tmp_path / name, seed) for seed, name in enumerate(("origin", "early", "late")))

    config = onepolicy.parse_run(
        {
            "recipe": "mopd",
            "output": tmp_path / "student",
            "model": origin,
            "domains": DOMAINS,
            "teachers": {"early": early, "late": late},
            "steps": 1,
            "rollout": {"prompts": 4, "max_new_tokens": 4},
            "eval": {"n": 1},
        }
    )
    onepolicy.run(config)

    assert isinstance(config, onepolicy.MopdConfig)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "student" / "model").config.hidden_size == 16

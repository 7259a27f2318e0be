"""Errors from outside end in one line that says what to do, and with exit code 2; our own bugs keep their traceback.

No torch: what needs a model, a GPU or a checkpoint is in test_cli.py and test_run.py.
"""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from onepolicy import cli
from onepolicy.config import RECIPES, ConfigError, load_run
from onepolicy.faults import memory_hint, user_fault
from onepolicy.files import NoSpace
from onepolicy.runfolder import is_finished
from onepolicy.sandbox import SandboxError
from onepolicy.tasks.grading import GradingError
from tests.disks import mounted

Refusal = Callable[..., str]


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refusal:
    """Runs the command line in this process, which must end with code 2: its stderr without `error: `."""

    def call(*arguments: Any) -> str:
        monkeypatch.setattr(sys, "argv", ["onepolicy", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert (ended.value.code, out) == (2, "")
        assert err.startswith("error: ") and err.endswith("\n")
        return err.removeprefix("error: ").removesuffix("\n")

    return call


def run_file(folder: Path, **changes: Any) -> Path:
    tasks = {"kind": "letters"}
    run = {
        "recipe": "sft",
        "output": str(folder / "run"),
        "model": "origin",
        "steps": 4,
        "domains": {"a": {"tasks": tasks}},
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(run | changes))
    return file


# -- configurations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["gpu", "tpu", "cuda:x", "cuda:-1", "cuda:", "CUDA", "", "cpu:1", "mps", "meta"])
def test_a_device_that_is_none_is_refused_before_tasks_are_built(tmp_path: Path, refusal: Refusal, device: str) -> None:
    file = run_file(tmp_path, device=device, domains={"a": {"tasks": {"kind": "records", "path": "not looked at"}}})
    for command in ("run", "check", "eval"):
        said = refusal(command, file)
        assert said.startswith(f"device: {device!r} is no device: give auto, cpu, cuda or cuda:N, for example cuda:0")
        assert ("needs Linux" in said) == (device == "mps")
        assert "\n" not in said


BROKEN = {
    "steps: [1, 2": "line 2, column 1: while parsing a flow sequence: expected ',' or ']', but got '<stream end>'",
    "a: b: c": "line 1, column 5: mapping values are not allowed here",
    "steps: 1\nsteps: 2": "line 2, column 1: 'steps' twice",
    "steps: !!python/object:os.system {}": "line 1, column 8: could not determine a constructor for the tag",
    "when: 2026-02-30": ": day",
    "? [a]\n: b": "line 1, column 3: a key is a text or a number, not a list or a mapping",
    "a: \x00": ": unacceptable character #x0000",
    "[" * 5000: "nested deeper than 40 levels",
    "*origin": "line 1, column 1: found undefined alias 'origin'",
}


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:20])
def test_broken_yaml_is_told_with_its_line(tmp_path: Path, refusal: Refusal, text: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text + "\n")
    said = refusal("run", file)
    assert said.startswith(f"{file} cannot be read as YAML") and BROKEN[text] in said and "\n" not in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "holds no mapping at its top level"),
        ("- recipe: sft", "holds no mapping at its top level"),
        ("recipe: mopdd", "recipe: 'mopdd' is not a recipe: did you mean 'mopd'?"),
        ("recipe: [sft]", "is not a recipe"),
        ("1: 2", "recipe: None is not a recipe"),
    ],
)
def test_what_is_no_run_is_told_on_one_line(tmp_path: Path, refusal: Refusal, text: str, expected: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    said = refusal("run", tmp_path / "run.yaml")
    assert expected in said and "\n" not in said


@pytest.mark.parametrize("recipe", RECIPES)
def test_values_of_any_wrong_type_are_faults_and_not_tracebacks(tmp_path: Path, recipe: str) -> None:
    keys = (
        "output",
        "model",
        "domains",
        "domains.a",
        "domains.a.tasks",
        "teachers",
        "optim",
        "loss",
        "steps",
        "models",
    )
    file = run_file(tmp_path)
    for key in keys:
        for value in ("null", "[]", "3", "{1: 2}", "[[a]]", "{a: {b: [c]}}", "1e400", "''"):
            with pytest.raises(ConfigError, match="threads: Input should be greater than 0"):
                load_run(file, [f"recipe={recipe}", "threads=0", f"{key}={value}"])


def test_files_that_extend_one_another_are_refused(tmp_path: Path, refusal: Refusal) -> None:
    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {other}.yaml\n")
    said = refusal("run", tmp_path / "a.yaml")
    assert said == f"{tmp_path / 'c.yaml'} extends {tmp_path / 'a.yaml'}, which extends it: name another file"


def test_a_file_that_may_not_be_read_is_refused(
    tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = run_file(tmp_path)
    file.chmod(0)
    if os.getuid() == 0:  # root may read it all the same

        def open_file(path: Path, *_: Any, **__: Any) -> Any:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

        monkeypatch.setattr(Path, "open", open_file)
    assert refusal("run", file) == (
        f"no permission for {file}: choose a place that you may write to, or change its permissions"
    )


def test_a_file_is_read_as_utf8_in_every_locale(tmp_path: Path) -> None:
    file = run_file(tmp_path)
    file.write_text(file.read_text() + "título: ß\n", encoding="utf-8")
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
    }
    script = "from onepolicy.cli import main; main()"
    command = [sys.executable, "-c", script, "run", str(file)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, encoding="utf-8")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith(r"error: t\xedtulo: unknown key")


# -- graders and sources of the user's own -----------------------------------------------------------------------------

MODULES = {
    "syntax": ("def grade(response, reference):\n    return 1.0 +\n", "SyntaxError in {file}, line 2: invalid syntax"),
    "indent": (
        "def grade(response, reference):\nreturn 1\n",
        "IndentationError in {file}, line 2: expected an indented",
    ),
    "raises": ("import math\n\nLIMIT = math.sqrt(-1)\n", "ValueError in {file}, line 3: "),
    "name": ("LIMIT = limit\n", "NameError in {file}, line 1: name 'limit' is not defined"),
    "missing": ("import no_such_package\n", "(No module named 'no_such_package')"),
}


@pytest.mark.parametrize("kind", MODULES)
def test_a_module_that_cannot_be_imported_is_told_with_file_and_line(
    tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    text, expected = MODULES[kind]
    module = tmp_path / f"grader_{kind}.py"
    module.write_text(text)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    records = {"kind": "records", "path": str(tmp_path / "rows.jsonl"), "grader": f"grader_{kind}:grade"}
    for tasks in (records, {"kind": "custom", "source": f"grader_{kind}:Source"}):
        said = refusal("run", run_file(tmp_path, domains={"a": {"tasks": tasks}}))
        assert said.startswith("domains.a.tasks") and f"cannot import 'grader_{kind}'" in said and "\n" not in said
        assert expected.format(file=module) in said


# -- places ------------------------------------------------------------------------------------------------------------


def test_an_output_that_cannot_be_written_is_refused_at_once(tmp_path: Path, refusal: Refusal) -> None:
    file, taken = run_file(tmp_path), tmp_path / "taken"
    taken.touch()
    inside = taken / "run"
    assert refusal("run", file, f"output={taken}") == f"{taken} is a file: set another output"
    in_the_way = f"{taken} is a file, and a folder is expected there: set another output"
    for command in (
        ["run", file, f"output={inside}"],
        ["check", file, f"output={inside}"],
        ["demo", "--output", inside],
    ):
        assert refusal(*command) == in_the_way
    assert refusal("eval", file, "--output", inside) == in_the_way
    assert "is a folder: name a JSON file in it" in refusal("eval", file, "--output", tmp_path)


def test_an_output_on_a_disk_that_may_only_be_read_is_refused_at_once(tmp_path: Path, refusal: Refusal) -> None:
    file = run_file(tmp_path)
    with mounted(tmp_path / "disk", "ro") as disk:
        said = f"{disk} is on a read-only file system: choose another place for it"
        for command in ("run", "check"):
            assert refusal(command, file, f"output={disk / 'runs' / 'x'}") == said
        assert refusal("eval", file, "--output", disk / "x.json") == said
        assert refusal("report", disk) == said


def test_a_run_folder_with_a_damaged_end_mark_says_so_and_is_not_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run_file(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(file.read_text())
    for text in ("", "{}", "[]", '{"steps": null}'):
        (tmp_path / "run" / "done.json").write_text(text)
        assert not is_finished(load_run(file))
        assert re.search(r"^warning: \S+done\.json is damaged \(.+\) and not used$", capsys.readouterr().err, re.M)


# -- exceptions --------------------------------------------------------------------------------------------------------


class SafetensorError(Exception):
    __module__ = "safetensors._safetensors_rust"


class OutOfMemoryError(RuntimeError):
    """As torch's."""


FAULTS: list[tuple[Exception, str]] = [
    (ValueError("steps: too few"), "steps: too few"),
    (
        OSError(errno.ENOSPC, "No space left on device", "/data/run/metrics.jsonl"),
        "no space left on the disk: /data/run/m",
    ),
    (OSError(errno.EDQUOT, "Disk quota exceeded", "/data/x"), "the disk quota is used up: /data/x: free some space"),
    (NoSpace(errno.ENOSPC, "the model needs 5 bytes"), "the model needs 5 bytes"),
    (SafetensorError("I/O error: No space left on device (os error 28)"), "no space left on the disk: I/O error"),
    (SafetensorError("Error while deserializing header"), "a safetensors file is damaged or incomplete"),
    (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "writing a checkpoint failed"),
    (PermissionError(errno.EACCES, "Permission denied", "/root/x"), "no permission for /root/x: choose a place"),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/a/b"), "/a/b: a file is in the place of a folder"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a"), "no such file or folder: /a"),
    (OSError(errno.EMFILE, "Too many open files", "/a"), "too many open files (/a): raise the limit with ulimit -n"),
    (OSError("We couldn't connect\nto the hub\n\nto load x"), "We couldn't connect to the hub to load x"),
    (ModuleNotFoundError("No module named 'torch'", name="torch"), "the package 'torch' is not installed"),
    (SandboxError("no sandbox works here: bubblewrap: not installed"), "no sandbox works here: bubblewrap"),
    (GradingError("the grading process did not start:\nboom"), "the grading process did not start: boom"),
]


@pytest.mark.parametrize(("error", "line"), FAULTS, ids=repr)
def test_a_fault_from_outside_is_one_line(error: Exception, line: str) -> None:
    fault = user_fault(error)
    assert fault is not None and fault.startswith(line) and "\n" not in fault


def test_bugs_are_no_faults() -> None:
    bugs = [KeyError("a"), TypeError("b"), AssertionError(), RuntimeError("shape mismatch"), IndexError("c")]
    bugs += [
        ModuleNotFoundError("No module named 'onepolicy.x'", name="onepolicy.x"),
        OutOfMemoryError("CUDA out of memory"),
    ]
    assert [user_fault(bug) for bug in bugs] == [None] * len(bugs)


OUT_OF_MEMORY = [
    OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_memory_that_ran_out_keeps_its_traceback_and_says_what_to_change(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def app() -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("error: out of memory: lower rollout.batch_size")
    assert memory_hint(RuntimeError("x")) is None


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def app() -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(KeyError, match="a bug"):
        cli.main()


def test_characters_that_a_terminal_does_not_have_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(cli, "app", lambda: print("título → 数"))
    cli.main()
    out.flush()
    assert out.buffer.getvalue() == b"t\xed" + rb"tulo \u2192 \u6570" + b"\n"

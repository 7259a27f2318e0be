"""Cases of the drill: one command of onepolicy on spoilt input, in a forked process, and the judgement of its end.

A forked process has torch imported already: a case takes 0.1 s in the place of 4 s.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from onepolicy.jobs import FORKS
from tests.runs import settings

ROOT = Path(__file__).parent.parent
MODULES = ("kills", "changes", "spoilt_checkpoints", "spoilt_configs", "spoilt_rows")  # where the tables are
LIMIT_S = 90.0  # for one command; ten are more than one takes alone
MEMORY_BYTES = 16 << 30  # of address space: a bomb must not take the machine with it
OPENED = {".lock", "config.yaml", "run.json", "check.json"}  # in the folder of a run that has only been opened
QUIET = ("warning: ", "note: ", "stopped: ")  # beginnings of lines that may stand above an error, or above nothing
Outcome = Literal["refused", "stopped", "finished"]


@dataclass(frozen=True, slots=True)
class Place:
    """Folders of one case: `models` is shared and never written to, `folder` is its own."""

    models: Path
    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "run"

    def settings(self, recipe: str, **changes: Any) -> dict[str, Any]:
        """A run of one step, unless told otherwise, on the shared models."""
        run = settings(recipe, self.models, output=str(self.output), steps=1)
        own = {"max_new_tokens": 4}
        if recipe == "sft":
            run |= {"batch_size": 4, "rollout": own}
        elif recipe in ("rlvr", "mix_rl", "copd", "cascade_rl"):
            run["rollout"] = own | {"prompts": 2, "n": 2}
        else:
            run["rollout"] = own | {"prompts": 4}
        if recipe == "cascade_rl":
            run["order"] = ["early", "late"]
        if recipe == "copd":
            run |= {"rl_steps": 1, "opd_steps": 1, "exchange": {"prompts": 2}}
        if recipe == "offpolicy":
            run |= {"batch_size": 4, "rollouts_per_domain": 8}
        if recipe in ("offpolicy", "mopd"):
            run["teachers"] = {name: str(self.models / f"teacher-{name}") for name in ("early", "late")}
        if recipe == "merge":
            for key in ("model", "steps", "optim", "checkpoint"):
                del run[key]
            models = {name: str(self.models / f"teacher-{name}") for name in ("early", "late")}
            run |= {"base": str(self.models / "origin"), "models": models, "method": "average"}
        return run | changes

    def copy(self, model: str, name: str = "spoilt") -> Path:
        """A checkpoint of one's own, to spoil."""
        return Path(shutil.copytree(self.models / model, self.folder / name))

    def run(self, settings: Mapping[str, Any]) -> list[str]:
        """The arguments that run these settings."""
        file = self.folder / "run.yaml"
        file.write_text(yaml.safe_dump(dict(settings), sort_keys=False))
        return ["run", str(file)]


@dataclass(frozen=True, slots=True)
class Case:
    """`prepare` spoils something and returns the arguments of `onepolicy`.

    refused   exit code 2, one line `error: ...` that has all of `names` in it ("a|b": one of two); no step taken and
              nothing half-written
    stopped   the same, but steps may have been taken
    finished  exit code 0 and a result; stderr has all of `names` in it; `check` returns a fault, or ""
    """

    name: str
    prepare: Callable[[Place], list[str]]
    names: tuple[str, ...] = ()
    outcome: Outcome = "refused"
    attempt: Callable[[Place], str] | None = None  # for cases of several commands: does all, and returns a fault
    check: Callable[[Place], str] | None = None
    limit_s: float = LIMIT_S
    lines: int = 1  # that the error may have
    short: bool = False  # one of the tenth that the tests run


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command has ended. `code` is None when it had to be killed, negative when a signal ended it."""

    code: int | None
    stderr: str
    seconds: float
    left: list[str] = field(default_factory=list)  # paths in the run's folder that were not there before


def tables() -> dict[str, list[Case]]:
    """All cases, by kind. Careful: a forked process looks its own up here, by kind and name."""
    found: dict[str, list[Case]] = {}
    for module in MODULES:
        found |= getattr(importlib.import_module(f"benchmarks.{module}"), "CASES", {})
    return found


def attempt(kind: str, case: Case, place: Place) -> str:
    """Run one case. Returns a fault, or "" when it holds."""
    place.folder.mkdir(parents=True, exist_ok=True)
    if case.attempt is not None:
        return case.attempt(place)
    return judge(case, place, command(place, case.limit_s, kind, case.name))


def command(place: Place, limit_s: float, *what: str) -> Ended:
    """A command line in a forked process: `what` is a case (kind, name), or the arguments themselves."""
    log = place.folder / "stderr"
    began = time.monotonic()
    process = FORKS.Process(target=_child, args=(str(place.models), str(place.folder), str(log), what))
    process.start()
    process.join(limit_s)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    before = json.loads(there.read_text()) if (there := place.folder / ".there").is_file() else []
    left = sorted(set(paths_in(place.output)).difference(before))
    if not log.is_file():
        said = (place.folder / "prepared").read_text(errors="replace").strip().splitlines()
        raise RuntimeError(f"the case {' '.join(what)!r} could not be prepared: {said[-1] if said else code}")
    text = log.read_text(errors="replace")
    return Ended(code, text, time.monotonic() - began, left)


def paths_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.is_dir() else []


def judge(case: Case, place: Place, ended: Ended) -> str:
    """The first thing that is wrong with an end, "" when it is as the case wants it."""
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    last = lines[-1][:300] if lines else "(nothing on stderr)"
    if ended.code is None:
        return f"still running after {case.limit_s:.0f} s; last line: {last}"
    if "Traceback" in ended.stderr:
        return f"exit code {ended.code} with a traceback: {last}"
    faults = [line for line in lines if line.startswith("error: ")]
    others = [line for line in lines if not line.startswith((*QUIET, "error: "))]
    if len(others) > case.lines - 1:
        return f"exit code {ended.code}; a line that is neither error nor warning: {others[0][:300]}"
    if case.outcome == "finished":
        return _finished(case, place, ended, last)
    if ended.code != 2:
        return f"exit code {ended.code} instead of 2: {last}"
    if len(faults) != 1 or (case.lines == 1 and not lines[-1].startswith("error: ")):
        return f"{len(faults)} error lines instead of one: {' | '.join(line[:150] for line in lines)}"
    if missing := [name for name in case.names if not any(one in faults[0] for one in name.split("|"))]:
        return f"the error does not name {missing[0]!r}: {faults[0][:400]}"
    if torn := [path for path in ended.left if Path(path).name.endswith(".tmp") or path in ("model", "done.json")]:
        return f"left behind: {', '.join(torn)}"
    if case.outcome == "refused" and (begun := set(ended.left) - OPENED):
        return f"refused only after work had begun: {', '.join(sorted(begun)[:5])}; {faults[0][:300]}"
    return ""


def _finished(case: Case, place: Place, ended: Ended, last: str) -> str:
    if ended.code != 0:
        return f"exit code {ended.code} instead of 0: {last}"
    if missing := [name for name in case.names if name not in ended.stderr]:
        return f"no warning has {missing[0]!r} in it: {last}"
    if not {"done.json", "model/model.safetensors"} <= set(ended.left):
        return "ended with exit code 0 and without a result"
    return case.check(place) if case.check else finite(place)


def finite(place: Place) -> str:
    """Whether the weights of the result are finite."""
    from safetensors.torch import load_file

    for name, tensor in load_file(place.output / "model" / "model.safetensors").items():
        if not bool(tensor.isfinite().all()):
            return f"ended with exit code 0, and {name!r} of the result is not finite"
    return ""


def rows(place: Place) -> list[dict[str, Any]]:
    """The metrics of a run."""
    return [json.loads(line) for line in (place.output / "metrics.jsonl").read_text().splitlines()]


def _child(models: str, folder: str, log: str, what: tuple[str, ...]) -> None:
    place = Place(Path(models), Path(folder))
    os.chdir(folder)
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    for stream, path in ((0, os.devnull), (1, os.devnull), (2, place.folder / "prepared")):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), stream)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments = list(what)
    if what[0] in (all_cases := tables()):
        kind, name = what
        (case,) = (case for case in all_cases[kind] if case.name == name)
        arguments = case.prepare(place)
        (place.folder / ".there").write_text(json.dumps(paths_in(place.output)))
    from onepolicy.cli import main

    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)  # from here on the command speaks
    sys.argv = ["onepolicy", *arguments]
    main()

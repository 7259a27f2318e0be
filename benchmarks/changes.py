"""Runs that find something changed: between two halves of a run, or while it is under way. No file of a user's is lost.

A run takes two steps, something is changed, and the same command is to take it to the fourth step: either with the
result of an undisturbed run, or refused with a line that names what has changed.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file

from benchmarks.cases import FORKS, LIMIT_S, Case, Ended, Place, _child, command, judge, paths_in
from benchmarks.kills import difference
from benchmarks.spoilt_checkpoints import cut, edit
from benchmarks.spoilt_rows import GOOD, body, lines

WEIGHTS = "model.safetensors"
THESIS = "years of work"  # of a user's; it must be found again
POLL_S = 0.0005
_undisturbed: dict[str, Path] = {}
_lock = threading.Lock()


class Change(NamedTuple):
    """`expected` is part of the error, or of what a run that goes on says; empty: nothing needs to be said."""

    spoil: Callable[[Place], Any]
    expected: tuple[str, ...] = ()
    goes_on: bool = True
    recipe: str = "mopd"
    overrides: tuple[str, ...] = ()
    short: bool = False


def settings(recipe: str, place: Place) -> dict[str, Any]:
    """Models, rows and graders are copies that a case may change."""
    common: dict[str, Any] = {"checkpoint": {"every": 1}, "eval": {"n": 1}}
    if recipe == "mopd":
        return place.settings("mopd", **common, teachers={n: str(place.folder / n) for n in ("early", "late")})
    tasks = {"kind": "records", "path": "rows.jsonl", "grader": "my_graders:grade"}
    model = str(place.folder / "origin")
    return place.settings("rlvr", **common, model=model, domains={"rows": {"tasks": tasks, "eval_size": 4}})


def furnish(place: Place) -> None:
    place.folder.mkdir(parents=True, exist_ok=True)
    for model in ("origin", "teacher-early", "teacher-late"):
        place.copy(model, model.removeprefix("teacher-"))
    (place.folder / "rows.jsonl").write_text(lines(GOOD))
    (place.folder / "my_graders.py").write_text(body("return float(response == reference)"))


def two_steps(recipe: str, place: Place, *more: str) -> list[str]:
    """Arguments for the first half; the second has other `steps`."""
    return [*place.run(settings(recipe, place)), *more, "steps=2"]


def undisturbed(recipe: str, place: Place) -> Path:
    with _lock:
        if recipe not in _undisturbed:
            own = Place(place.models, place.folder.parent / f"straight-{recipe}")
            furnish(own)
            ended = command(own, LIMIT_S, *two_steps(recipe, own)[:-1], "steps=4")
            if ended.code != 0:
                raise RuntimeError(f"the undisturbed run of {recipe} ended with {ended.code}: {ended.stderr[-300:]}")
            _undisturbed[recipe] = own.output
    return _undisturbed[recipe]


def resumed(name: str, change: Change, place: Place) -> str:
    """Both halves, with the change between them. Returns a fault, or ""."""
    reference = undisturbed(change.recipe, place) if not change.overrides else None
    furnish(place)
    first = two_steps(change.recipe, place, *change.overrides)
    if (ended := command(place, LIMIT_S, *first)).code != 0:
        raise RuntimeError(f"the first half of {name!r} ended with {ended.code}: {ended.stderr[-300:]}")
    change.spoil(place)
    (place.folder / ".there").write_text(json.dumps(paths_in(place.output)))
    (place.folder / "stderr").unlink()
    ended = command(place, LIMIT_S, *first[:-1], "steps=4")
    case = Case(name, lambda place: [], change.expected, "finished" if change.goes_on else "stopped")
    there = replace(ended, left=[*ended.left, *(path for path in RESULT if (place.output / path).is_file())])
    if fault := judge(case, place, there if change.goes_on else ended):
        return fault
    if name.startswith("a user's"):
        if not any(THESIS.encode() in path.read_bytes() for path in place.folder.rglob("*") if path.is_file()):
            return "a user's file was deleted"
        return ""
    if reference is None or not change.goes_on:
        return ""
    return difference(reference, place.output, but="checkpoints/")  # these may hold what is stray, and count rows


RESULT = ("done.json", f"model/{WEIGHTS}")

# -- between two halves ------------------------------------------------------------------------------------------------


def newest(place: Place) -> Path:
    return max((place.output / "checkpoints").glob("step-0*"))


def torn(file: str) -> Callable[[Place], Any]:
    return lambda place: cut(file, 0.5)(newest(place))


def no_checkpoints(place: Place) -> None:
    shutil.rmtree(place.output / "checkpoints")


def all_torn(place: Place) -> None:
    for folder in (place.output / "checkpoints").glob("step-0*"):
        cut("learner.pt", 0.5)(folder)


def other_weights(folder: Path) -> None:
    """Replaced as a program replaces a file: written beside it, then renamed over it."""
    found = load_file(folder / WEIGHTS)
    found["model.norm.weight"] = found["model.norm.weight"] + 0.5
    save_file(found, folder / ".new", {"format": "pt"})
    os.replace(folder / ".new", folder / WEIGHTS)


def in_model(spoil: Callable[[Path], Any], model: str) -> Callable[[Place], Any]:
    return lambda place: spoil(place.folder / model)


def thesis(file: str) -> Callable[[Place], Any]:
    def write(place: Place) -> None:
        path = place.output / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(THESIS)

    return write


def nothing(place: Place) -> None:
    """The change is in the overrides of the second half."""


def other_rows(place: Place) -> None:
    (place.folder / "rows.jsonl").write_text(lines([row | {"answer": "xyz"} for row in GOOD]))


def other_grader(place: Place) -> None:
    (place.folder / "my_graders.py").write_text(body("return 1.0 if response == reference else 0.5"))


def without_rows(count: int) -> Callable[[Place], Any]:
    """The record as a power cut leaves it: short of its last rows."""

    def change(place: Place) -> None:
        path = place.output / "metrics.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-count]))

    return change


CHANGES: dict[str, Change] = {
    "nothing": Change(nothing),
    "the newest checkpoint torn": Change(torn("learner.pt"), ("step-000002 is torn",), short=True),
    "its facts torn": Change(torn("facts.json"), ("step-000002",)),
    "its manifest torn": Change(torn("MANIFEST.json"), ("step-000002",)),
    "all checkpoints torn": Change(all_torn, ("step-000001",)),
    "no checkpoints": Change(no_checkpoints, ("warning: ", "checkpoint")),
    "a stray folder among the checkpoints": Change(
        lambda place: (place.output / "checkpoints" / "step-backup").mkdir(), ("step-backup",)
    ),
    "a stray file among the checkpoints": Change(
        lambda place: (place.output / "checkpoints" / "step-9").write_text(""), ("step-9",)
    ),
    "a record without its last row": Change(without_rows(1), ("metrics.jsonl",)),
    "no record": Change(lambda place: (place.output / "metrics.jsonl").unlink(), ("metrics.jsonl",)),
    "the end mark torn": Change(lambda place: (place.output / "done.json").write_text("{"), ("done.json",)),
    "a teacher's weights": Change(in_model(other_weights, "early"), ("'early'",), False),
    "a teacher's config.json": Change(in_model(edit("config.json", rms_norm_eps=0.1), "early"), ("'early'",), False),
    "a teacher gone": Change(in_model(shutil.rmtree, "early"), ("'early'",), False),
    "the initial model's weights": Change(in_model(other_weights, "origin"), ("model",), False, "rlvr"),
    "the initial model's config.json": Change(
        in_model(edit("config.json", rms_norm_eps=0.1), "origin"), ("model",), False, "rlvr"
    ),
    "rows": Change(other_rows, ("rows.jsonl",), False, "rlvr"),
    "a grader": Change(other_grader, ("my_graders",), False, "rlvr"),
    "steps of a linear schedule": Change(nothing, ("steps",), False, overrides=("optim.schedule=linear",)),
    "a user's file in the folder": Change(thesis("notes.txt")),
    "a user's hidden file": Change(thesis(".notes.tmp")),
    "a user's file in a folder of its own": Change(thesis("plots/.draft.tmp")),
    "a user's file among the checkpoints": Change(thesis("checkpoints/notes.txt")),
    "a user's file in the model": Change(thesis("model/notes.txt")),
    "a user's folder in the model": Change(thesis("model/thesis/chapter.tex")),
}

# -- while it is under way ---------------------------------------------------------------------------------------------


def rows_of(place: Place) -> int:
    path = place.output / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def under_way(name: str, spoil: Callable[[Path], Any], place: Place) -> str:
    """Change a teacher after two steps of many: the run must stop, name it, and go on once it is there again."""
    furnish(place)
    arguments = [*place.run(settings("mopd", place)), "steps=60", "checkpoint.every=5", "eval.at_end=false"]
    log = place.folder / "stderr"
    process = FORKS.Process(target=_child, args=(str(place.models), str(place.folder), str(log), tuple(arguments)))
    process.start()
    began = time.monotonic()
    while process.exitcode is None and rows_of(place) < 2 and time.monotonic() < began + LIMIT_S:
        time.sleep(POLL_S)
    spoil(place.folder / "early")
    process.join(LIMIT_S)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    ended = Ended(code, log.read_text(errors="replace"), time.monotonic() - began, paths_in(place.output))
    return judge(Case(name, lambda place: [], ("'early'",), "stopped"), place, ended)


UNDER_WAY: dict[str, Callable[[Path], Any]] = {
    "renamed over": other_weights,
    "truncated": lambda folder: os.truncate(folder / WEIGHTS, 200),
    "removed": lambda folder: (folder / WEIGHTS).unlink(),
}

CASES: dict[str, list[Case]] = {
    "changes": [
        *(
            Case(name, lambda place: [], attempt=partial(resumed, name, change), short=change.short)
            for name, change in CHANGES.items()
        ),
        *(
            Case(f"a teacher {name} under way", lambda place: [], attempt=partial(under_way, name, spoil))
            for name, spoil in UNDER_WAY.items()
        ),
    ]
}

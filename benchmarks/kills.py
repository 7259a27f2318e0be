"""Kills of runs at any moment, by every recipe; the resumed run must be bit-identical to an undisturbed one.

A moment is a change of the run's folder: a file that appears, grows or goes. The undisturbed run says how many changes
there are, and the moments are spread over them, from the first to the last.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cases import FORKS, Case, Place, _child
from tests.runs import same

RECIPES = ("sft", "rlvr", "mopd", "copd", "mix_rl", "cascade_rl", "offpolicy", "merge")
MOMENTS = 7  # kills for each recipe
CHAINS = {"mopd": (0.3, 0.6), "copd": (0.2, 0.7), "offpolicy": (0.4, 0.5), "cascade_rl": (0.5, 0.5)}  # killed twice
STEPS = {"merge": {}, "cascade_rl": {"steps": 2}}  # of the others: 4
CHANGING = ("time", "seconds", "started")  # keys that no two runs have alike
POLL_S = 0.0005
LIMIT_S = 300.0

_undisturbed: dict[str, tuple[Path, int]] = {}  # of each recipe: folder, and changes of it
_lock = threading.Lock()


def settings(recipe: str, place: Place) -> dict[str, Any]:
    common = {"checkpoint": {"every": 2}, "eval": {"n": 1, "every": 2}} | STEPS.get(recipe, {"steps": 4})
    if recipe == "merge":
        common = {"method": "task_arithmetic", "sweep": [0.5, 1.0], "eval": {"n": 1}}
    return place.settings(recipe, **common)


def prepare(recipe: str, place: Place) -> list[str]:
    return place.run(settings(recipe, place))


def state_of(folder: Path) -> frozenset[tuple[str, int]]:
    """The files of a folder and their sizes."""
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            try:
                found.append((path, os.stat(path).st_size))
            except FileNotFoundError:
                continue
    return frozenset(found)


def watched(place: Place, recipe: str, kill_at: int | None) -> tuple[int, int | None]:
    """Run, or resume, and kill at the given change. Returns how many changes there were, and the exit code."""
    arguments = prepare(recipe, place)
    log = place.folder / "stderr"
    process = FORKS.Process(target=_child, args=(str(place.models), str(place.folder), str(log), tuple(arguments)))
    before, changes, end = state_of(place.output), 0, time.monotonic() + LIMIT_S
    process.start()
    while process.exitcode is None:
        now = state_of(place.output)
        if now != before:
            before, changes = now, changes + 1
            if changes == kill_at:
                process.kill()
                break
        if time.monotonic() > end:
            process.kill()
            process.join()
            raise TimeoutError(f"{recipe} was still running after {LIMIT_S:.0f} s")
        time.sleep(POLL_S)
    process.join()
    return changes, process.exitcode


def undisturbed(recipe: str, place: Place) -> tuple[Path, int]:
    """The folder of a run that nobody has killed, and the number of its changes."""
    with _lock:
        if recipe not in _undisturbed:
            own = Place(place.models, place.folder.parent / f"undisturbed-{recipe}")
            own.folder.mkdir()
            changes, code = watched(own, recipe, None)
            if code != 0:
                raise RuntimeError(f"the undisturbed run of {recipe} ended with {code}: {told(own)}")
            _undisturbed[recipe] = own.output, changes
    return _undisturbed[recipe]


def killed(recipe: str, fractions: tuple[float, ...], place: Place) -> str:
    """Kill a run at these fractions of its changes, one after the other, and let it end. Returns a fault, or ""."""
    reference, changes = undisturbed(recipe, place)
    for fraction in fractions:
        moment = max(1, round(fraction * changes))
        _, code = watched(place, recipe, moment)
        if code not in (-signal.SIGKILL, 0):
            return f"ended with {code} before it could be killed: {told(place)}"
        if code == 0:  # it has fewer changes this time: start again, and a little earlier
            return killed_earlier(recipe, fractions, place)
    _, code = watched(place, recipe, None)
    if code != 0:
        return f"the resumed run ended with {code}: {told(place)}"
    return difference(reference, place.output)


def killed_earlier(recipe: str, fractions: tuple[float, ...], place: Place) -> str:
    again = Place(place.models, place.folder / "again")
    again.folder.mkdir()
    if fractions[0] < 0.1:
        return "ended each time before it could be killed"
    return killed(recipe, tuple(fraction * 0.8 for fraction in fractions), again)


def told(place: Place) -> str:
    lines = (place.folder / "stderr").read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "(nothing on stderr)"


# -- comparing ---------------------------------------------------------------------------------------------------------


def difference(one: Path, other: Path, but: str = "") -> str:
    """The first difference between the folders of two runs, "" when there is none; `but` is a folder left out."""
    names = [
        sorted(name for name in contents(folder) if not but or not name.startswith(but)) for folder in (one, other)
    ]
    if names[0] != names[1]:
        unlike = sorted(set(names[0]) ^ set(names[1]))
        return f"files are not those of the undisturbed run: {', '.join(unlike[:5])}"
    for name in names[0]:
        if not same(read(one / name, one), read(other / name, other)):
            return f"{name} is not that of the undisturbed run"
    return ""


def contents(folder: Path) -> list[str]:
    """Files that say what a run has computed: all but pages, logs and what tells of the machine."""
    left_out = (".lock", "run.json", ".html", "report.md", "config.yaml", ".svg", "MANIFEST.json", ".seconds")
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(left_out))
    return [str(path.relative_to(folder)) for path in paths]


def read(path: Path, root: Path) -> Any:
    if path.suffix == ".pt":
        import torch

        return torch.load(path, weights_only=True)
    text = path.read_bytes().replace(str(root.parent).encode(), b"")  # paths in cards and hashes of folders
    if path.suffix == ".jsonl":
        return [timeless(json.loads(line)) for line in text.splitlines()]
    return timeless(json.loads(text)) if path.suffix == ".json" else text


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key not in CHANGING}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def moments() -> list[tuple[str, str, tuple[float, ...]]]:
    """(name, recipe, fractions)"""
    found = []
    for recipe in RECIPES:
        for number in range(MOMENTS):
            found.append((f"{recipe} at {number + 1}/{MOMENTS + 1}", recipe, ((number + 1) / (MOMENTS + 1),)))
    for recipe, fractions in CHAINS.items():
        found.append((f"{recipe}, twice", recipe, fractions))
    return found


def no_arguments(place: Place) -> list[str]:
    raise AssertionError("a kill runs its commands itself")


Kill = Callable[[Place], str]
KILLS: dict[str, Kill] = {name: partial(killed, recipe, tuple(fractions)) for name, recipe, fractions in moments()}
SHORT = ("sft at 5/8",)
CASES: dict[str, list[Case]] = {
    "kills": [Case(name, no_arguments, attempt=kill, short=name in SHORT) for name, kill in KILLS.items()]
}

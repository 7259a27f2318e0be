"""The drill: what goes wrong around a run, tried out. Everything ends with the right result or with one line.

    python -m benchmarks.drill [--only KIND ...] [--case TEXT] [--jobs 2] [--short]      (or: make drill)

Kinds and their tables: kills (kills.py), changes (changes.py), teachers and students (spoilt_checkpoints.py), configs
(spoilt_configs.py), rows and graders (spoilt_rows.py). A case holds when it is refused before long work, with exit code
2, one line on stderr that names the culprit and nothing half-written; or, where the input is legal, when it ends with
the right result; or, for a kill, when the resumed run is bit-identical to an undisturbed one. Prints a line for each
case that does not hold, then held / tried for each kind. Ends with status 1 when something does not hold.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.cases import MODULES, Case, Place, attempt, tables
from onepolicy.jobs import FORKS
from tests.runs import checkpoint

KINDS = ("kills", "changes", "teachers", "students", "configs", "rows", "graders")


def make_models(folder: Path) -> None:
    """The shared checkpoints: one origin and two teachers of its make."""
    for number, name in enumerate(("origin", "teacher-early", "teacher-late")):
        checkpoint(folder / name, number)


def chosen(only: Sequence[str], text: str, short: bool) -> dict[str, list[Case]]:
    """Cases by kind."""
    found = {}
    for kind, cases in tables().items():
        if kind in only:
            found[kind] = [case for case in cases if text in case.name and (case.short or not short)]
    return found


def drill(cases: dict[str, list[Case]], folder: Path, jobs: int) -> Iterable[tuple[str, Case, str]]:
    """(kind, case, fault) for each case, in the order of the tables."""
    FORKS.set_forkserver_preload(["onepolicy.commands", *(f"benchmarks.{module}" for module in MODULES)])
    models = folder / "models"
    make_models(models)
    with ThreadPoolExecutor(jobs) as pool:
        running = []
        for kind, some in cases.items():
            for number, case in enumerate(some):
                place = Place(models, folder / f"{kind}-{number}")
                running.append((kind, case, pool.submit(attempt, kind, case, place)))
        for kind, case, future in running:
            yield kind, case, future.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--case", default="", metavar="TEXT", help="cases with this text in their name")
    parser.add_argument("--jobs", type=int, default=2, help="processes at one time")
    parser.add_argument("--short", action="store_true", help="the tenth that the tests run")
    options = parser.parse_args()
    began = time.monotonic()
    cases = chosen(options.only, options.case, options.short)
    held = dict.fromkeys(cases, 0)
    with tempfile.TemporaryDirectory(prefix="drill-") as folder:
        os.environ["ONEPOLICY_CACHE"] = str(Path(folder) / "cache")  # never the user's; forked processes have it too
        os.environ["OMP_NUM_THREADS"] = "1"
        for kind, case, fault in drill(cases, Path(folder), options.jobs):
            held[kind] += not fault
            if fault:
                print(f"{kind}: {case.name}: {fault}", flush=True)
    for kind, some in cases.items():
        print(f"{kind:10} {held[kind]:3} / {len(some)}")
    print(f"{sum(held.values())} of {sum(map(len, cases.values()))} held, in {time.monotonic() - began:.0f} s")
    sys.exit(held != {kind: len(some) for kind, some in cases.items()})


if __name__ == "__main__":
    main()

"""How many small programs a second the sandbox runs, by itself and through the grading process.

    python benchmarks/sandbox.py [--slots 2] [--programs 400] [--repeats 5] [--isolator bubblewrap]

Four jobs: a program that prints a number; two assertions about a function, in two processes; answers of the `code`
source's own problems through `Grader`; and answers to a problem with 20 pairs of input and output. Beside the clock on
the wall stands the CPU time of all processes involved, which other work on the machine disturbs less: a core runs 1000
divided by it in a second.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from onepolicy.config import DomainConfig
from onepolicy.sandbox import Sandbox, UnitTests, strongest
from onepolicy.tasks import build_source
from onepolicy.tasks.grading import Grader

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
TESTS = UnitTests(("assert f(2) == 4", "assert f(3) == 9"), names=("f",))


def descendants() -> Iterator[int]:
    frontier = [os.getpid()]
    while frontier:
        pid = frontier.pop()
        yield pid
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            frontier += map(int, task.read_text().split())


def cpu_s() -> float:
    """CPU time of this process and all its descendants, those that have ended included."""
    ticks = 0
    for pid in descendants():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))  # user and system time, then those of children waited for
    return ticks * TICK_S


def measure(name: str, job: Callable[[], int], repeats: int) -> None:
    job()  # warms up
    rates, costs = [], []
    for _ in range(repeats):
        start, spent = time.monotonic(), cpu_s()
        count = job()
        rates.append(count / (time.monotonic() - start))
        costs.append(1000 * (cpu_s() - spent) / count)
    print(f"{name:44}{median(rates):8.0f} /s{median(costs):8.1f} ms of CPU time", flush=True)


def pairs() -> dict[str, object]:
    cases = [{"input": f"{i}\n", "output": f"{i * i}\n", "testtype": "stdin"} for i in range(20)]
    return {"question_content": "Print the square.", "public_test_cases": json.dumps(cases), "starter_code": ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--programs", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--isolator", choices=["bubblewrap", "namespaces", "limits"])
    args = parser.parse_args()

    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"Python {platform.python_version()}, {cores} cores, load {load:.1f} before, median of {args.repeats}")
    with Sandbox(args.slots, isolator=args.isolator) as sandbox, ThreadPoolExecutor(args.slots) as threads:
        print(f"{args.slots} slots: {sandbox.level}")

        def run() -> int:
            found = list(threads.map(lambda i: sandbox.run(f"print({i})").stdout, range(args.programs)))
            assert found == [f"{i}\n" for i in range(args.programs)]
            return len(found)

        def test() -> int:
            found = list(threads.map(lambda i: sandbox.test("f = lambda x: x * x", TESTS), range(args.programs)))
            assert all(verdict.ok for verdict in found)
            return len(found)

        measure("programs", run, args.repeats)
        measure("programs with unit tests", test, args.repeats)

    if args.isolator:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        path.write_text(json.dumps(pairs()))
        tasks = {"tiny": {"kind": "code"}, "pairs": {"kind": "code", "path": str(path)}}
        domains = {name: DomainConfig(tasks=options) for name, options in tasks.items()}
        sources = {name: build_source(name, config.tasks, 0) for name, config in domains.items()}
        with Grader(domains) as grader:

            def graded(name: str, answers: list[str], each: int) -> int:
                grades = grader.grade([(sources[name].draw(i), answer) for i, answer in enumerate(answers)])
                assert all(grade.reward == 1.0 for grade in grades)
                return each * len(grades)

            tiny = [str(sources["tiny"].gold(sources["tiny"].draw(i))) for i in range(args.programs)]
            print(f"a slot per core: {strongest()}")
            measure("answers through Grader", lambda: graded("tiny", tiny, 1), args.repeats)
            answers = ["print(int(input()) ** 2)"] * (args.programs // 20)
            measure("programs of 20 pairs each, through Grader", lambda: graded("pairs", answers, 20), args.repeats)


if __name__ == "__main__":
    main()

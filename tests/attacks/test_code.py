"""Programs that mean no good (`programs.py`), graded as any answer is: none scores, hangs, crashes or escapes.

Fast because they run as programs do: many at once, each with its limit.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from onepolicy import sandbox
from onepolicy.config import DomainConfig, TasksConfig
from onepolicy.tasks import build_source
from onepolicy.tasks.grading import Grader
from tests.attacks.programs import FORGED, HOSTILE, PRINTED
from tests.test_sandbox import nothing_new, settled, until

SQUARE = {
    "task_id": "attacks/0",
    "prompt": 'def f(x):\n    """The square of x."""\n',
    "entry_point": "f",
    "canonical_solution": "    return x * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(7) == 49\n    expected = 81\n"
    "    assert candidate(9) == expected\n    assert all(map(lambda x: candidate(x) == x * x, range(20, 30)))",
}
PRINT = {
    "question_content": "Read a number, print its square.",
    "public_test_cases": json.dumps([{"input": "7\n", "output": "49\n", "testtype": "stdin"}]),
    "private_test_cases": json.dumps([{"input": "-12", "output": "144", "testtype": "stdin"}]),
    "starter_code": "",
}
SOLUTIONS = {"units": "    return x * x\n", "output": "print(int(input()) ** 2)"}


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacks")
    found = {}
    for name, row in (("units", SQUARE), ("output", PRINT)):
        path = folder / f"{name}.jsonl"
        path.write_text(json.dumps(row))
        path.chmod(0o644)
        found[name] = {"kind": "code", "path": str(path), "memory_mib": 128}
    return found


def grades(options, cases, time_limit_s):
    """Of (problem, answer), in this process, as many at once as there are slots."""
    sources = {
        name: build_source(name, TasksConfig(**tasks, time_limit_s=time_limit_s), 0) for name, tasks in options.items()
    }
    with ThreadPoolExecutor(sandbox.shared().slots) as threads:
        return list(threads.map(lambda case: sources[case[0]].grade(sources[case[0]].draw(0), case[1]), cases))


def test_there_are_at_least_two_hundred_and_no_two_are_the_same():
    assert len(set(HOSTILE)) + len(set(FORGED)) + len(set(PRINTED)) == len(HOSTILE) + len(FORGED) + len(PRINTED) >= 200


def test_none_scores_hangs_crashes_or_escapes(options):
    good = list(SOLUTIONS.items()) * sandbox.shared().slots
    assert {found.reward for found in grades(options, good, 20.0)} == {1.0}
    cases = [("units", answer) for answer in FORGED] + [("output", answer) for answer in PRINTED]
    cases += [(("units", "output")[number % 2], answer) for number, answer in enumerate(HOSTILE)]
    before = settled()
    found = grades(options, cases, 0.05)
    scored = [answer for (_, answer), grade in zip(cases, found, strict=True) if grade.reward != 0.0]
    broken = [answer for (_, answer), grade in zip(cases, found, strict=True) if "survive" in grade.reason]
    assert not scored and not broken and all(grade.reason for grade in found)
    assert {found.reward for found in grades(options, good, 20.0)} == {1.0}
    until(lambda: nothing_new(before))


def test_the_grading_process_outlives_them_and_grades_their_neighbours(options):
    domains = {name: DomainConfig(tasks=tasks) for name, tasks in options.items()}
    sources = {name: build_source(name, config.tasks, 0) for name, config in domains.items()}
    domains["output"] = DomainConfig(tasks={**options["output"], "time_limit_s": 1.0})
    answers = [("units", HOSTILE[0]), ("output", "while True: pass"), ("units", FORGED[42]), ("output", HOSTILE[-1])]
    answers += [("units", "def f(x): raise ValueError('\\ud800')")]
    mixed = [case for bad in answers for case in (bad, *SOLUTIONS.items())]
    with Grader(domains) as grader:
        grades = grader.grade([(sources[name].draw(0), answer) for name, answer in mixed])
    assert [found.reward for found in grades] == [0.0, 1.0, 1.0] * 5
    assert grades[-3].reason == "assert candidate(2) == 4 (ValueError: ?)", "else no file would take it"
    assert not any("grader" in found.reason for found in grades)

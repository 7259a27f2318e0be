"""The grading process, attacked one property at a time: the bad answer gets 0 and a reason, its neighbours theirs."""

import gc
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from onepolicy.config import DomainConfig, TasksConfig
from onepolicy.tasks import base, build_source
from onepolicy.tasks.base import GraderBug
from onepolicy.tasks.check import check_domains, check_source
from onepolicy.tasks.grading import MAX_REASON, MAX_RESPONSE, Grader, GradingError
from onepolicy.types import Grade, Sample, Task

GOOD = Grade(1.0, "well done")


class Hostile:
    """A task source whose grader does as the answer says."""

    def __init__(self, domain: str, seed: int, fail: bool = False, on_empty: str = "", falls: str = "") -> None:
        self.domain, self.on_empty = domain, on_empty
        if fail:
            raise OSError("no such data")
        if falls and Path(falls).read_text():  # as many letters as there are starts that end at once
            Path(falls).write_text(Path(falls).read_text()[1:])
            os.kill(os.getpid(), signal.SIGKILL)

    def draw(self, index: int) -> Task:
        return Task(f"{self.domain}/{index}", self.domain, ({"role": "user", "content": str(index)},), index)

    def grade(self, task: Task, response: str):
        verb, _, rest = (response or self.on_empty).partition(" ")
        match verb:
            case "good":
                print("graders may print")
                return GOOD
            case "hang":
                while True:
                    pass
            case "sleep":
                time.sleep(float(rest))
                return GOOD
            case "burn":
                end = time.thread_time() + float(rest)
                while time.thread_time() < end:
                    pass
                return GOOD
            case "shot":  # once: the second process finds the file
                if not Path(rest).exists():
                    Path(rest).touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return GOOD
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raise":
                raise eval(rest)
            case "megabytes":
                os.write(1, b"x" * 10**7)
                print("y" * 10**7)
                return GOOD
            case "memory":
                return float(len([bytearray(1 << 24) for _ in range(1000)]))
            case "exit":
                os._exit(3)
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "recurse":
                return self.grade(task, response)
            case "regex":
                return float(bool(re.match(r"(a+)+$", "a" * 64 + "b")))
            case "eval":
                return float(eval(rest))
            case "return":
                return eval(rest)
        return 0.5, f"{len(response)} characters, ends with {response[-3:]!r}"

    def gold(self, task: Task) -> str | None:
        return None if task.reference == 0 else "good" if task.reference % 2 else "meagre"

    def demonstration(self, task: Task) -> str | None:
        return None


def domains(**options):
    source = f"{__name__}:Hostile"
    return {"h": DomainConfig(tasks={"kind": "custom", "source": source, "options": options})}


def ask(grader, *responses):
    return grader.grade([(Hostile("h", 0).draw(i), response) for i, response in enumerate(responses)])


def sample(index, response):
    task = Hostile("h", 0).draw(index)
    return Sample(task, np.arange(2), np.array([False, True]), np.zeros(1), response)


@pytest.fixture(scope="module")
def grader():
    with Grader(domains(), time_limit_s=0.3, memory_limit_gib=0.1, wall_limit_s=3) as grader:
        yield grader


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("hang", "grader timed out after 0.3 s of CPU time"),
        ("sleep 60", "grader timed out: not done after 3 s of wall time"),
        ("regex", "grader timed out after 0.3 s of CPU time"),
        ("eval 99**88**77", "grader timed out after 0.3 s of CPU time"),
        ("memory", "grader ran out of memory"),
        ("eval len('a' * 10**10)", "grader ran out of memory"),
        ("exit", "grader crashed: exit code 3"),
        ("eval exit()", "grader raised SystemExit: None"),
        ("raise KeyboardInterrupt", "grader raised KeyboardInterrupt"),
        ("raise ValueError('é' * 10**6)", "grader raised ValueError: éé"),
        ("killed", "grader crashed: signal SIGKILL"),
        ("segfault", "grader crashed: signal SIGSEGV"),
        ("recurse", "grader raised RecursionError: maximum recursion depth exceeded"),
        ("eval 1/0", "grader raised ZeroDivisionError: division by zero"),
        ("eval int('x' * 9999)", "grader raised ValueError: invalid literal"),
        ("eval [][0]", "grader raised IndexError: list index out of range"),
    ],
)
def test_an_answer_that_breaks_its_grader_gets_nothing_and_its_neighbours_their_due(grader, answer, reason):
    start = time.monotonic()
    before, broken, after = ask(grader, "good", answer, "good")
    assert (before, after) == (GOOD, GOOD)
    assert broken.reward == 0.0 and broken.reason.startswith(reason) and len(broken.reason) <= MAX_REASON
    assert broken.failed and not before.failed  # not judged, which is no low reward
    assert time.monotonic() - start < 12


def test_breaking_answers_in_a_row_are_each_told_apart(grader):
    grades = ask(grader, "exit", "memory", "good", "exit")
    assert [grade.reward for grade in grades] == [0, 0, 1, 0]
    assert [grade.reason.split()[1] for grade in grades] == ["crashed:", "ran", "done", "crashed:"]


def test_a_grader_may_say_itself_that_it_could_not_judge(grader):
    (grade,) = ask(grader, "return Grade(0.0, 'the judge is down', failed=True)")
    assert grade == Grade(0.0, "the judge is down", failed=True)
    broken = sample(0, "exit")
    grader.submit([broken, fine := sample(1, "good")])
    grader.collect()
    assert (broken.reward, broken.grader_failed, broken.is_graded) == (0.0, True, False)
    assert (fine.reward, fine.grader_failed, fine.is_graded) == (1.0, False, True)


def test_a_full_reward_may_be_a_sum_that_rounds_above_1(grader):
    first, last = ask(grader, "return sum([0.1] * 3) + 0.7 + 2e-16", "return -1e-17")
    assert (first.reward, last.reward) == (1.0, 0.0) and not first.failed


def test_slow_but_timely_answers_do_not_add_up_to_a_timeout(grader):
    assert ask(grader, *["burn 0.2"] * 3) == [GOOD] * 3


def test_time_is_that_of_the_processor_so_that_waiting_for_others_costs_no_reward(grader):
    assert ask(grader, "sleep 0.5", "megabytes", "good") == [GOOD] * 3


def test_an_answer_whose_process_is_shot_from_outside_is_graded_again(grader, tmp_path, capfd):
    grader.take_restarts()
    assert ask(grader, "good", f"shot {tmp_path / 'once'}", "good") == [GOOD] * 3
    assert grader.take_restarts() == {"h": 1} and grader.take_restarts() == {}
    grades = ask(grader, f"shot {tmp_path / 'a'}", "killed", "good", f"shot {tmp_path / 'b'}")
    assert [(grade.reward, grade.failed) for grade in grades] == [(1, False), (0, True), (1, False), (1, False)]
    assert grader.take_restarts() == {"h": 3}
    assert ask(grader, "exit", "good")[1] == GOOD and grader.take_restarts() == {}  # its own doing


def test_the_first_such_answer_of_a_domain_is_told(tmp_path, capfd):
    with Grader(domains()) as grader:
        assert ask(grader, *(f"shot {tmp_path / name}" for name in "ab")) == [GOOD] * 2
    assert capfd.readouterr().err == (
        "warning: domain 'h': grader crashed: signal SIGKILL; the answer is graded again in a fresh process, and "
        "counted as grader_restarts (was something killed, or is memory short?)\n"
    )


def test_a_process_that_is_killed_while_it_starts_is_started_again(tmp_path):
    (falls := tmp_path / "falls").write_text("x")
    with Grader(domains(falls=str(falls))) as grader:
        assert ask(grader, "good") == [GOOD]
    assert falls.read_text() == ""


def test_any_text_arrives_as_it_is(grader):
    texts = ["", "\0", "a\0b", "\ud800", "\n\r\u2028", "😀" * 10, '{"reward": 1.0}\n']
    assert [g.reason for g in ask(grader, *texts)] == [f"{len(t)} characters, ends with {t[-3:]!r}" for t in texts]


def test_an_endless_answer_is_graded_by_its_end(grader):
    grades = ask(grader, "x" * 10_000_000 + "end", "good", "y" * MAX_RESPONSE)
    assert grades[0].reason == "1000000 characters, ends with 'end'"
    assert grades[1] == GOOD and grades[2].reason == "1000000 characters, ends with 'yyy'"


@pytest.mark.parametrize("value", ["1.5", "-0.1", "float('nan')", "float('inf')", "None", "'1'"])
def test_a_reward_outside_zero_to_one_is_an_error_that_names_the_grader(grader, value):
    with pytest.raises(GraderBug, match=rf"the grader of domain 'h' returned {re.escape(repr(eval(value)))}: "):
        ask(grader, "good", f"return {value}", "good")
    assert ask(grader, "good") == [GOOD]


def test_submitted_samples_are_graded_in_place_and_in_order_while_we_do_something_else(grader):
    samples = [sample(i, "good" if i % 3 else "x" * i) for i in range(700)]
    start = time.monotonic()
    grader.submit(samples[:1])
    grader.submit(samples[1:])
    assert time.monotonic() - start < 0.1
    assert grader.collect() == samples
    assert [s.reward for s in samples] == [1.0 if i % 3 else 0.5 for i in range(700)]
    assert samples[3].reason == "3 characters, ends with 'xxx'"
    assert grader.collect() == [] and grader.grade([]) == []


def test_trivial_answers_are_graded_by_the_thousands_per_second(grader):
    items = [(Hostile("h", 0).draw(i % 100), "x") for i in range(10_000)]
    start = time.monotonic()
    assert len(grader.grade(items)) == 10_000
    assert time.monotonic() - start < 3  # some 40k/s on an idle core


def test_an_unknown_domain_is_refused_before_anything_is_graded(grader):
    with pytest.raises(ValueError, match="no grader for domain 'math': known are h"):
        grader.submit([Sample(Task("", "math", ()), np.arange(1), np.zeros(1, bool), np.zeros(0))])


def test_sources_that_cannot_be_built_are_reported_with_their_error():
    with Grader(domains(fail=True)) as grader, pytest.raises(GradingError, match="OSError: no such data"):
        ask(grader, "good")


def processes():
    """The ids of our children, zombies included."""
    return " ".join(task.read_text() for task in Path("/proc/self/task").glob("*/children")).split()


def test_closing_even_in_the_middle_leaves_no_process_behind():
    before = processes()
    with Grader(domains(), time_limit_s=60) as grader:
        assert ask(grader, "good") == [GOOD]
        assert len(processes()) == len(before) + 1
        grader.submit([sample(0, "hang")])
        time.sleep(0.1)
    assert processes() == before
    with pytest.raises(GradingError, match="closed"):
        ask(grader, "good")
    forgotten = Grader(domains())
    ask(forgotten, "good")
    del forgotten
    gc.collect()
    assert processes() == before


def test_the_self_check_finds_golds_that_do_not_score_one_and_answers_that_score_for_nothing():
    letters = {"kind": "letters", "task": "count", "min_length": 1, "max_length": 1}
    reports = check_domains({**domains(), "ok": DomainConfig(tasks=letters)}, n=40)
    bad, good = reports["h"], reports["ok"]
    assert not bad.ok and (bad.drawn, bad.without_gold, bad.gold_right, bad.distinct) == (40, 1, 20, 40)
    assert bad.failures[0] == "h/2: gold answer 'meagre' scores 0.5 (6 characters, ends with 'gre')"
    assert (bad.constant, bad.constant_reward, bad.empty_reward) == ("good", 1.0, 0.5)
    assert any("the empty answer earns 0.50" in warning for warning in bad.warnings)
    assert not bad.unjudged and not good.unjudged
    assert good.ok and good.gold_right == 40 and good.empty_reward == 0.0
    assert 0.5 <= good.constant_share == good.constant_reward < 0.8
    assert "of the gold answers are" in good.warnings[0]


def test_the_self_check_tells_a_failed_grader_from_a_low_reward():
    report = check_domains(domains(on_empty="eval 1/0"), n=6)["h"]
    assert (report.empty_reward, report.unjudged) == (0.0, False)
    assert report.warnings[-1] == (
        "the grader failed on the empty answer in 6 of 6 tasks: grader raised ZeroDivisionError: division by zero"
    )


@pytest.mark.parametrize(
    ("has_gold", "verb", "reason"),
    [
        (True, "hang", "grader timed out after 0.3 s of CPU time"),
        (False, "hang", "grader timed out after 0.3 s of CPU time"),
        (False, "exit", "grader crashed: exit code 3"),
    ],
)
def test_the_self_check_of_a_grader_that_hangs_or_exits_ends_after_one_answer(grader, has_gold, verb, reason):
    class Hanging(Hostile):
        def gold(self, task: Task) -> str | None:
            return verb if has_gold else None

    asked = []

    def grade(items):
        asked.extend(items)
        return grader.grade([(task, answer or verb) for task, answer in items])

    report = check_source(Hanging("h", 0), 40, grade)
    tried = "the gold answer 'hang'" if has_gold else "the empty answer"
    failure = f"the grader failed on all that was tried ({tried}): {reason}"
    assert report.unjudged and not report.ok and report.failures == (failure,)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exit(0)", "SystemExit in {file}, line 1: 0"),
        ("def f(): raise SystemExit('bye')\nf()", "SystemExit in {file}, line 1: bye"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt in {file}, line 1: "),
        (
            "\nwhile True:\n    try: pass\n    except OSError: pass",
            "TimeoutError in {file}, line [234]: not imported after 0.3",
        ),
        ("import time\ntime.sleep(1000)", "TimeoutError in {file}, line 2: not imported after 0.3 s"),
        ("print('z' * 10**6)\n1 / 0", "ZeroDivisionError in {file}, line 2: division by zero"),
    ],
)
def test_a_module_that_ends_hangs_or_fails_at_import_is_named(tmp_path, monkeypatch, capsys, text, message):
    name = f"module_{abs(hash(text))}"
    (file := tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(base, "IMPORT_LIMIT_S", 0.3)
    with pytest.raises(
        ValueError, match=re.escape(f"cannot import {name!r}: ") + message.format(file=re.escape(str(file)))
    ):
        base.load_object(f"{name}:grade")
    assert capsys.readouterr().out == ""  # stdout may be data
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_class_that_exits_is_named():
    with pytest.raises(ValueError, match=r"domain 'h': .*:Leaving ends the program \(SystemExit: 3\)"):
        build_source("h", TasksConfig(kind="custom", source=f"{__name__}:Leaving"), 0)


class Leaving(Hostile):
    def __init__(self, domain: str, seed: int) -> None:
        raise SystemExit(3)

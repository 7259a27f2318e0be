"""Tiny repositories: what is broken, what the tools do, and that only a mended repository scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from onepolicy.config import ConfigError, DomainConfig
from onepolicy.tasks import read_options
from onepolicy.tasks.check import check_source
from onepolicy.tasks.episodes import demonstrated
from onepolicy.tasks.grading import Grader
from onepolicy.tasks.repo import Files, RepoOptions, RepoSource, assertions, closed, holds, judged, world
from onepolicy.tasks.repo_parts import MODULES
from onepolicy.tasks.tools import ToolError
from onepolicy.types import Task


def config(**options: Any) -> DomainConfig:
    return DomainConfig.model_validate({"tasks": {"kind": "repo", **options}})


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader({"repo": config()}, time_limit_s=60.0) as grader:
        yield grader


REPO = RepoSource("repo", RepoOptions(), 0)
CALL = REPO.options.call


def fixed(task: Task) -> str:
    """The whole text of the faulty file, mended."""
    files, _, _, (path, wrong, right) = task.metadata["repository"]
    return str(files[path].replace(wrong, right))


# -- repositories ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_every_fault_is_one_place_and_some_call_notices_it(name: str) -> None:
    names = closed([name])
    sound = {f"{one}.py": MODULES[one].text for one in names}
    for function in MODULES[name].functions:
        checks = assertions(sound, MODULES[name].functions, 60, Random(0))
        assert all(holds(one, world(sound)) for one in checks)
        for right, wrong in function.faults:
            assert MODULES[name].text.count(right) == 1
            broken = {**sound, f"{name}.py": MODULES[name].text.replace(right, wrong)}
            failing = [one for one in checks if not holds(one, world(broken))]
            assert any(one.function == function.name for one in failing), (function.name, wrong)


def test_tasks_differ_and_say_what_fails() -> None:
    tasks = [REPO.draw(index) for index in range(100)]
    assert len({task.messages[0]["content"] for task in tasks}) > 95
    assert len(Counter(task.reference for task in tasks)) > 20
    for task in tasks[:40]:
        repository = task.metadata["repository"]
        question = task.messages[0]["content"]
        failing = [one for one in repository.shown if not holds(one, world(repository.files))]
        assert str(failing[0]) in question and "assert" in question
        assert all(name in question for name in repository.files)
        assert all(any(str(one) in text for text in repository.files.values()) for one in repository.shown)
        assert not any(
            str(one) in "".join(repository.files.values()) for one in repository.hidden if one not in repository.shown
        )
        assert all(
            holds(one, world({**repository.files, repository.fault.path: fixed(task)}))
            for one in (*repository.shown, *repository.hidden)
        )
    assert [REPO.draw(index) for index in range(5)] == tasks[:5]


def test_gold_episodes_score_and_others_do_not(grader: Grader) -> None:
    report = check_source(REPO, 12, grader.grade)
    assert report.ok and report.without_gold == 0
    assert report.empty_reward == 0 and report.constant_reward < 0.2


def test_a_written_out_episode() -> None:
    task = next(task for task in map(REPO.draw, range(99)) if "return min(low" in task.reference)
    chat = [message["content"] for message in demonstrated(REPO, task, REPO.gold(task))]
    assert chat[0] == '<tool_call>\n{"name": "test", "arguments": {}}\n</tool_call>'
    assert "tests passed\nfirst failure: assert " in chat[1]
    assert chat[3] == MODULES["rates"].text.replace("max(low, min(value, high))", "min(low, max(value, high))")
    assert chat[4] == CALL(
        "replace", path="rates.py", old="return min(low, max(value, high))", new="return max(low, min(value, high))"
    )
    assert chat[5] == "written"
    total = len(task.metadata["repository"].shown)
    assert chat[7] == f"{total} of {total} tests passed"
    assert chat[8] == "done"


def test_a_corrupted_demonstration_mends_wrongly() -> None:
    flawed = RepoSource("repo", RepoOptions(corrupt=0.5), 0)
    wrong = [task for task in map(flawed.draw, range(60)) if flawed.demonstration(task) != flawed.gold(task)]
    assert 20 < len(wrong) < 40
    for task in wrong:
        pairs = [(a, b) for a, b in zip(flawed.demonstration(task), flawed.gold(task), strict=True) if a != b]
        assert len(pairs) == 1 and "replace" in pairs[0][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calls": "compact"}, "drop calls"),
        ({"max_turns": 4}, "takes 5 turns"),
        ({"modules": 99}, "less than or equal"),
    ],
)
def test_nonsense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_options("repo", config(**options).tasks)


# -- tools -------------------------------------------------------------------------------------------------------------


def test_files_are_listed_shown_replaced_and_written() -> None:
    files = Files(REPO.draw(0).metadata["repository"])
    before = dict(files.texts)
    assert files.ls().split("\n") == sorted(before)
    path = next(path for path in before if not path.startswith("tests/"))
    assert files.cat(path) == files.cat(f"./{path}") == before[path]
    assert files.write("notes/new.md", "a b a") == files.replace("notes/new.md", "b", "c") == "written"
    assert files.cat("notes/new.md") == "a c a"
    files.write("notes/new.md", "")
    assert files.texts == {**before, "notes/new.md": ""}
    for old in ("a", "b", ""):
        files.write("x", "a a")
        with pytest.raises(ToolError, match=r"must occur once in x, it occurs [02] times"):
            files.replace("x", old, "z")
    with pytest.raises(ToolError, match=r"no file 'nothing.py': there are "):
        files.cat("nothing.py")


def test_there_is_room_for_so_many_files_of_such_a_size() -> None:
    files = Files(REPO.draw(0).metadata["repository"])
    with pytest.raises(ToolError, match="a file of 20001 characters"):
        files.write("big", "a" * 20_001)
    with pytest.raises(ToolError, match="there are 40 files already"):
        for number in range(41):
            files.write(f"{number}", "")
    assert len(files.texts) == 40


def test_a_module_may_import_another_and_be_rewritten_whole() -> None:
    task = next(task for task in map(REPO.draw, range(99)) if "shop.py" in task.metadata["repository"].files)
    repository = task.metadata["repository"]
    sound = {**repository.files, repository.fault.path: fixed(task)}
    checks = (*repository.shown, *repository.hidden)
    assert judged(sound, checks) == (True, f"{len(checks)} of {len(checks)} tests passed")
    ok, report = judged(repository.files, checks)
    assert not ok and "first failure: assert" in report
    assert judged({**sound, "rates.py": "from shop import total"}, checks)[0] is False


def test_after_the_end_nothing_is_heard(grader: Grader) -> None:
    task = REPO.draw(0)
    grades = grader.grade(
        [(task, ("done", *REPO.gold(task))), (task, REPO.gold(task)[:-1]), (task, (CALL("ls"),) * 50)]
    )
    assert [grade.reward for grade in grades] == [0.0, 1.0, 0.0]
    assert grades[2].reason == "nothing was changed" and len(grades[2].turn_rewards) == 12

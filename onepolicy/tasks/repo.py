"""Find and mend the fault of a tiny repository: a small cousin of SWE-bench, in a file system held in memory.

    tasks: {kind: repo, modules: 3, max_turns: 12}

The policy is shown an assertion that fails and the names of the files. It has `ls`, `cat`, `replace`, `write` and
`test`; a turn without a call ends the episode, and then the files are judged: by the assertions that `test` runs and by
as many that nobody has seen. Files of tests can be read and not written. What the policy has written runs in the
sandbox only, and the judge of it is another process there, which holds the expected values (`onepolicy/sandbox`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from random import Random
from typing import Annotated, Any, NamedTuple, Self

from pydantic import Field, PositiveInt, model_validator

from onepolicy import sandbox
from onepolicy.sandbox import WALL, Limits, SandboxError, UnitTests, Walls
from onepolicy.tasks.base import seeded, with_one_wrong
from onepolicy.tasks.repo_parts import MODULES, Function
from onepolicy.tasks.tools import MAX_CALLS, Tool, ToolEpisode, ToolError, ToolOptions
from onepolicy.types import Grade, Task

MAX_FILES, MAX_TEXT = 40, 20_000  # characters of a file
MAX_SHOWN = 4_000  # characters of a tool's answer
LIMITS = Limits(wall_s=2.0 * WALL, cpu_s=2)  # of one run of the tests
TESTS = "tests"
QUESTION = (
    "A test of this repository fails:\n{assertion}\nFind the fault and mend it. The tests are right, and cannot be "
    "changed. The files are {files}. When all tests pass, say done."
)


class RepoOptions(ToolOptions):
    """How many modules a repository has at most, and how many assertions there are on each function: shown, and not.

    `sandbox: strong` refuses to start where the walls of the sandbox are weak.
    """

    modules: Annotated[int, Field(ge=1, le=len(MODULES))] = 3
    shown: PositiveInt = 2
    hidden: PositiveInt = 4
    max_turns: PositiveInt = 12
    sandbox: Walls = "any"

    @model_validator(mode="after")
    def _calls_are_in_json(self) -> Self:
        if self.calls != "json":
            raise ValueError("its tools take several arguments: drop calls, which is json")
        if self.max_turns < 5:
            raise ValueError(f"max_turns {self.max_turns}: to look, mend and test takes 5 turns at least")
        return self


class Assertion(NamedTuple):
    """What a call of a function must return, as text of Python."""

    function: str
    call: str
    value: str

    def __str__(self) -> str:
        return f"assert {self.call} == {self.value}"


class Fault(NamedTuple):
    """A line of a file, as it is and as it should be."""

    path: str
    wrong: str
    right: str


class Repository(NamedTuple):
    """Texts by path, the assertions in its tests, those that nobody sees, and what is wrong."""

    files: Mapping[str, str]
    shown: tuple[Assertion, ...]
    hidden: tuple[Assertion, ...]
    fault: Fault


class RepoSource:
    """An Environment. The repository rides on the task."""

    time_limit_s = MAX_CALLS * LIMITS.wall_s  # of a turn

    def __init__(self, domain: str, options: RepoOptions, seed: int) -> None:
        self.domain, self.options, self.seed = domain, options, seed
        self.max_turns = options.max_turns

    def prepare(self) -> None:
        """Warm the sandbox up. Raises SandboxError where there is none, or a weak one and strong was asked for."""
        sandbox.require(self.domain, self.options.sandbox)
        sandbox.shared().run("")

    @property
    def threads(self) -> int:
        """How many episodes take a turn at once."""
        return sandbox.shared().slots

    def notes(self) -> list[str]:
        """What a check of this source should tell."""
        return [f"sandbox: {sandbox.strongest()}"]

    def draw(self, index: int) -> Task:
        rng = seeded("repo", self.seed, index)
        while (repository := self._made(rng)) is None:  # a fault that too few assertions notice
            pass
        path, wrong, right = repository.fault
        mended = with_one_wrong(right, rng) if rng.random() < self.options.corrupt else right
        failing = next(one for one in repository.shown if not holds(one, world(repository.files)))
        question = QUESTION.format(assertion=failing, files=", ".join(sorted(repository.files)))
        messages, tools = self.options.task_parts(question, tools_for(Files(repository)))
        return Task(
            f"{self.domain}/{self.seed}/{index}",
            self.domain,
            messages,
            f"{path}: {wrong} should be {right}",
            {"repository": repository, "mended": mended},
            tools,
        )

    def start(self, task: Task) -> ToolEpisode:
        repository = task.metadata["repository"]
        files = Files(repository)

        def grade(answer: str | None) -> Grade:
            if files.texts == repository.files:
                return Grade(0.0, "nothing was changed")
            ok, report = judged(files.texts, (*repository.shown, *repository.hidden))
            return Grade(float(ok), report)

        return ToolEpisode(self.options, tools_for(files), grade)

    def gold(self, task: Task) -> tuple[str, ...]:
        return self._turns(task, task.metadata["repository"].fault.right)

    def demonstration(self, task: Task) -> tuple[str, ...]:
        return self._turns(task, task.metadata["mended"])

    def _turns(self, task: Task, line: str) -> tuple[str, ...]:
        path, wrong, _ = task.metadata["repository"].fault
        call = self.options.call
        mend = call("replace", path=path, old=wrong, new=line)
        return (call("test"), call("cat", path=path), mend, call("test"), "done")

    def _made(self, rng: Random) -> Repository | None:
        options = self.options
        names = closed(rng.sample(sorted(MODULES), rng.randint(1, options.modules)))
        sound = {f"{name}.py": MODULES[name].text for name in names}
        functions = [function for name in names for function in MODULES[name].functions]
        shown, hidden = (assertions(sound, functions, count, rng) for count in (options.shown, options.hidden))
        broken = rng.choice(names)
        path, (right, wrong) = f"{broken}.py", rng.choice(rng.choice(MODULES[broken].functions).faults)
        files = {**sound, path: sound[path].replace(right, wrong)}
        space = world(files)
        noticed = {str(one) for one in (*shown, *hidden) if not holds(one, space)}
        if noticed.isdisjoint(map(str, shown)) or noticed <= set(map(str, shown)):
            return None  # nothing to be seen, or nothing that to know by heart what is seen would leave broken
        for name in names:
            mine = {function.name for function in MODULES[name].functions}
            files[f"{TESTS}/test_{name}.py"] = tests_of(name, [one for one in shown if one.function in mine])
        return Repository(files, shown, hidden, Fault(path, *line_of(files[path], sound[path])))


class Files:
    """A repository's file system, as an episode changes it. Nothing of it is on a disk."""

    def __init__(self, repository: Repository) -> None:
        self.texts = dict(repository.files)
        self._shown = repository.shown

    def test(self) -> str:
        return judged(self.texts, self._shown)[1][:MAX_SHOWN]

    def ls(self) -> str:
        return "\n".join(sorted(self.texts))

    def cat(self, path: str) -> str:
        return self.texts[self._there(path)][:MAX_SHOWN]

    def replace(self, path: str, old: str, new: str) -> str:
        text = self.texts[self._there(path)]
        if not old or text.count(old) != 1:
            raise ToolError(f"the old text must occur once in {path}, it occurs {text.count(old) if old else 0} times")
        return self.write(path, text.replace(old, new))

    def write(self, path: str, text: str) -> str:
        path = self._path(path)
        if path.startswith(f"{TESTS}/"):
            raise ToolError("the tests cannot be changed")
        if len(text) > MAX_TEXT:
            raise ToolError(f"a file of {len(text)} characters; the most is {MAX_TEXT}")
        if path not in self.texts and len(self.texts) >= MAX_FILES:
            raise ToolError(f"there are {MAX_FILES} files already")
        self.texts[path] = text
        return "written"

    def _there(self, path: str) -> str:
        path = self._path(path)
        if path not in self.texts:
            raise ToolError(f"no file {path[:100]!r}: there are {', '.join(sorted(self.texts))[:MAX_SHOWN]}")
        return path

    def _path(self, path: str) -> str:
        parts = PurePosixPath(path).parts
        if not parts or len(path) > 200 or path.startswith("/") or ".." in parts or not path.isprintable():
            raise ToolError(f"{path[:100]!r} is no path below this folder")
        return str(PurePosixPath(path))


def tools_for(files: Files) -> dict[str, Tool]:
    where = {"path": "the file's path"}
    return {
        "ls": Tool("List all files.", {}, files.ls),
        "cat": Tool("Show a file.", where, files.cat),
        "replace": Tool(
            "Replace a text that occurs once in a file.",
            {**where, "old": "the text", "new": "its replacement"},
            files.replace,
        ),
        "write": Tool("Write a file, all of it.", {**where, "text": "its content"}, files.write),
        "test": Tool("Run the tests.", {}, files.test),
    }


def judged(files: Mapping[str, str], checks: Sequence[Assertion]) -> tuple[bool, str]:
    """Whether all assertions hold of what the modules define, and a report.

    The only place that runs what the policy wrote: in the sandbox. Raises SandboxError when that does not work, or
    does not survive it: the episode is then not judged.
    """
    tests = UnitTests(tuple(map(str, checks)), names=tuple(sorted({one.function for one in checks})))
    verdict = sandbox.shared().test(program(files, checks), tests, keep_going=True, limits=LIMITS)
    if verdict.broken:
        raise SandboxError(verdict.reason)
    if verdict.ok:
        return True, f"{verdict.passed} of {verdict.total} tests passed"
    return False, f"{verdict.passed} of {verdict.total} tests passed\nfirst failure: {verdict.reason}"


def program(files: Mapping[str, str], checks: Sequence[Assertion]) -> str:
    """One program that has the repository's modules, and the tested functions by name."""
    modules = {
        path.removesuffix(".py"): text for path, text in files.items() if path.endswith(".py") and "/" not in path
    }
    wanted = {one.function for one in checks}
    imports = [
        f"from {name} import {function.name}"
        for name in modules
        if name in MODULES
        for function in MODULES[name].functions
        if function.name in wanted
    ]
    return f"MODULES = {modules!r}\n{LOADER}\n" + "\n".join(imports)


LOADER = """
import importlib.abc, importlib.util, sys

class Memory(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name in MODULES else None
    def exec_module(self, module):
        exec(compile(MODULES[module.__name__], module.__name__ + ".py", "exec"), module.__dict__)

sys.meta_path.insert(0, Memory())
"""


# -- repositories: our own code, which runs in this process ------------------------------------------------------------


def closed(names: Sequence[str]) -> list[str]:
    """With all modules that they need, needed ones first."""
    found: list[str] = []
    for name in names:
        found += [one for one in [*closed(MODULES[name].needs), name] if one not in found]
    return found


def world(files: Mapping[str, str]) -> dict[str, Any]:
    """What our modules define, all together: names are unique among them."""
    space: dict[str, Any] = {}
    for path, text in files.items():
        if "/" not in path:
            exec("\n".join(line for line in text.splitlines() if not line.startswith("from ")), space)
    return space


def assertions(
    files: Mapping[str, str], functions: Sequence[Function], count: int, rng: Random
) -> tuple[Assertion, ...]:
    """`count` of each function, true of these files."""
    space, found = world(files), list[Assertion]()
    for function in functions:
        for _ in range(count):
            call = f"{function.name}({', '.join(map(repr, function.arguments(rng)))})"
            found.append(Assertion(function.name, call, repr(eval(call, space))))
    return tuple(found)


def holds(one: Assertion, space: dict[str, Any]) -> bool:
    """Of our own files, whose world `space` is."""
    try:
        return repr(eval(one.call, space)) == one.value
    except Exception:  # a fault may raise anything
        return False


def tests_of(name: str, checks: Sequence[Assertion]) -> str:
    """The assertions on a module, as a file of tests."""
    lines: dict[str, str] = {}
    for one in checks:
        lines[one.function] = lines.get(one.function, f"def test_{one.function}():\n") + f"    {one}\n"
    return f"from {name} import {', '.join(lines)}\n\n\n" + "\n\n".join(lines.values())


def line_of(wrong: str, right: str) -> tuple[str, str]:
    """The line in which two texts differ, without its indentation."""
    (pair,) = [(a, b) for a, b in zip(wrong.splitlines(), right.splitlines(), strict=True) if a != b]
    return pair[0].strip(), pair[1].strip()

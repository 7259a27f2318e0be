"""The pool: programs and tests go in, from any number of threads; outcomes and verdicts come out."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import queue
import signal
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Literal, Self

from onepolicy.sandbox import level as levels
from onepolicy.sandbox.level import Isolator, Level, SandboxError, Walls
from onepolicy.sandbox.slot import Files, Slot

MAX_STDERR = 4000  # bytes, of the end
MAX_VERDICT = 1 << 24
MAX_REASON = 500  # characters, and no more than four bytes each
TRIES = 2  # of a program that is shot, or its slot: twice in a row, and it is its own fault
WALL = 10  # seconds of wall time for each of CPU time
SECONDS_PER_MIB = 0.3  # to encode, send and decode a value of a program and its tests, on a slow core
TRIAL = "import os, xml.dom.minidom\nopen(os.__file__).close()\nprint('works', end='')"


@dataclass(frozen=True)
class Limits:
    """Of one program. Memory, CPU time and file size are those of each of its processes.

    `cpu_s` is the limit of time, in whole seconds, as the kernel counts: a program whose machine is busy with others
    has the same. `wall_s`, for programs that sleep or wait, is far beyond.
    `processes` counts threads too; where programs may not fork at all (see `level.py`), memory bounds the threads.
    `scratch_mib` bounds /tmp, `output_mib` standard output, `message_mib` a message between a program and its tests.
    """

    wall_s: float = 4.0 * WALL
    cpu_s: int = 4
    memory_mib: int = 512
    processes: int = 8
    file_mib: int = 8
    scratch_mib: int = 32
    output_mib: float = 1.0
    message_mib: int = 16

    def for_test_of(self, size: int) -> Limits:
        """These, widened for a test whose input or expected output has `size` bytes, so that a right program can pass.

        Output and messages may have twice as much; memory grows by what Python takes for its lists and texts, time by
        what it takes to bring them over.
        """
        mib = math.ceil(2 * size / 2**20)
        if mib <= 1:
            return self
        return replace(
            self,
            wall_s=self.wall_s + mib * SECONDS_PER_MIB * WALL,
            cpu_s=self.cpu_s + math.ceil(mib * SECONDS_PER_MIB),
            memory_mib=self.memory_mib + 5 * mib,
            file_mib=max(self.file_mib, mib + 2),
            output_mib=max(self.output_mib, mib + 1),
            message_mib=max(self.message_mib, mib + 1),
        )


@dataclass(frozen=True)
class UnitTests:
    """Python code with assertions about a program.

    `setup` runs before it. `names` are the program's functions and classes that either of them uses, above what
    `setup` may define under such a name. `data`, plain JSON, is there as `data`.
    """

    code: tuple[str, ...]
    setup: str = ""
    names: tuple[str, ...] = ()
    data: Any = None


Status = Literal["ok", "failed", "killed", "late", "output", "broken"]


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    ok: exit code 0. failed: another one. killed: by a signal, its own limits' included. late: at the wall-clock limit.
    output: more of it than the limit. broken: it took its slot down, which is another one now.
    """

    status: Status
    reason: str  # in words; empty when ok
    stdout: str = ""
    stderr: str = ""
    cpu_s: float = 0.0
    wall_s: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """How a program did in its tests: of the `total` assertions in their text, `passed` held each time; at least one.

    `ok`, with all passed, when the tests ran to their end and nothing failed; else `reason` says what failed first.
    `broken`: the sandbox did not survive it, so that nothing was judged.
    """

    ok: bool
    passed: int
    total: int
    reason: str = ""
    broken: bool = False
    cpu_s: float = 0.0


class Sandbox:
    """Runs untrusted programs, as many at once as there are slots. Any thread may call. A context manager."""

    def __init__(
        self, slots: int | None = None, limits: Limits | None = None, isolator: Isolator | None = None
    ) -> None:
        """By default a slot per core, and the strongest level that works here; `isolator` asks for one of one kind.

        Starts no slot yet; the first one in a process finds out the level. Raises SandboxError when none works.
        """
        self.slots = slots or len(os.sched_getaffinity(0))
        self.limits = limits or Limits()
        self.level = strongest(isolator)
        self._free: queue.LifoQueue[Slot] = queue.LifoQueue()  # the last one used is warm, others may never start
        slots_ = [Slot(self.level, number) for number in range(self.slots)]
        for slot in slots_:
            self._free.put(slot)
        self.close = weakref.finalize(self, _close, slots_)

    def start(self) -> None:
        """Start all free slots; else each starts when it is first needed. Raises SandboxError when one cannot."""
        slots = []
        with contextlib.suppress(queue.Empty):
            while True:
                slots.append(self._free.get_nowait())
        try:
            for slot in slots:
                slot.ensure()
        finally:
            for slot in slots:
                self._free.put(slot)

    def run(
        self, source: str, stdin: str = "", files: Mapping[str, str] | None = None, limits: Limits | None = None
    ) -> Outcome:
        """Run a Python program from start to exit, in a folder of its own that holds `files`.

        Raises ValueError on a file that is not below that folder, SandboxError when no slot can be started.
        """
        payload = _json({"source": source, "files": _below(files or {})})
        contents = {"program": payload, "stdin": _bytes(stdin), "stdout": b"", "stderr": b""}
        return self._run(limits or self.limits, contents)[0]

    def test(self, source: str, tests: UnitTests, limits: Limits | None = None, *, keep_going: bool = False) -> Verdict:
        """Run tests on a program that is loaded in another process (`inside/judge.py`).

        All tests together have the limits of one program. Without `keep_going`, the first failure is the last.
        Raises SandboxError when no slot can be started.
        """
        payload = _json({"source": source, "files": {}})
        judge = _json({**asdict(tests), "keep_going": keep_going})
        contents = {"program": payload, "stdin": b"", "stdout": b"", "stderr": b"", "tests": judge, "verdict": b""}
        limits = limits or self.limits
        return _verdict(*self._run(limits, contents), limits)

    def _run(self, limits: Limits, contents: Mapping[str, bytes]) -> tuple[Outcome, str]:
        """The outcome, and what the tests' process wrote. A program that was shot, or its slot, gets another try."""
        reason = ""
        for number in range(TRIES):
            if number:
                _count_restart()
            with Files(**contents) as files:
                answer = self._ask(limits, files)
                report = files.read("verdict", MAX_VERDICT) if "verdict" in contents else ""
                reason = _shot(answer, report, limits)
                if not reason:
                    return _outcome(answer, limits, files), report
            if not self.close.alive:
                break
        return Outcome("broken", reason), ""

    def _ask(self, limits: Limits, files: Files) -> dict[str, Any]:
        if not self.close.alive:
            raise SandboxError("this sandbox was closed")
        slot = self._free.get()
        try:
            return slot.run(asdict(limits), files)
        finally:
            self._free.put(slot)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_here = threading.local()


def restarts_of_this_thread() -> int:
    """How often a program that this thread waited for was run again, because its slot was gone."""
    return int(getattr(_here, "restarts", 0))


def _count_restart() -> None:
    _here.restarts = restarts_of_this_thread() + 1


@functools.cache
def shared() -> Sandbox:
    """The sandbox of this process, for all who have no wishes of their own."""
    return Sandbox()


@functools.cache
def strongest(isolator: Isolator | None = None) -> Level:
    """The strongest level that works here, or that of one kind; found by running a program, once in a process.

    Raises SandboxError that says why none does.
    """
    refused: list[str] = []
    for level in levels.candidates():
        if isolator not in (None, level.isolator):
            continue
        slot, limits = Slot(level, 0), Limits()
        try:
            found = slot.start()
            with Files(program=_json({"source": TRIAL, "files": {}}), stdin=b"", stdout=b"", stderr=b"") as files:
                answer = slot.run(asdict(limits), files)
                outcome = (
                    _outcome(answer, limits, files) if answer else Outcome("broken", "it does not survive a program")
                )
            if outcome.stdout == "works":
                return replace(found, refused=tuple(refused))
            refused.append(f"{level.isolator}: {outcome.reason}")
        except SandboxError as error:
            refused.append(str(error))
        finally:
            slot.close()
    raise SandboxError(f"no sandbox works here: {'; '.join(refused)}")


def require(domain: str, walls: Walls) -> None:
    """Raises SandboxError where a domain asks for strong walls and this machine has none."""
    if walls == "strong" and not (level := strongest()).strong:
        raise SandboxError(
            f"domain {domain!r} asks for sandbox: strong, and this machine has: {level}. Install bubblewrap, allow "
            "user namespaces (sysctl kernel.unprivileged_userns_clone=1), or set sandbox: any"
        )


def _close(slots: Sequence[Slot]) -> None:
    for slot in slots:
        slot.close()


def _outcome(answer: Mapping[str, Any], limits: Limits, files: Files) -> Outcome:
    spent = {"cpu_s": answer["cpu_s"], "wall_s": answer["wall_s"]}
    bytes_out = int(limits.output_mib * 2**20)
    stdout, stderr = files.read("stdout", bytes_out), files.tail("stderr", MAX_STDERR)
    status, reason = _ending(answer, limits, stderr)
    if status == "ok" and files.size("stdout") > bytes_out:
        status, reason = "output", f"more output than {limits.output_mib:g} MiB"
    return Outcome(status, reason, stdout, stderr, **spent)


def _ending(answer: Mapping[str, Any], limits: Limits, stderr: str) -> tuple[Status, str]:
    if answer["late"]:
        return "late", f"not done after {limits.wall_s:g} s"
    code = os.waitstatus_to_exitcode(answer["status"])
    if code == 0:
        return "ok", ""
    if code > 0:
        lines = stderr.strip().splitlines()
        return "failed", f"exit code {code}" + (f": {lines[-1]:.200}" if lines else "")
    return "killed", _killed(-code, answer["cpu_s"], limits)


def _shot(answer: Mapping[str, Any], report: str, limits: Limits) -> str:
    """In words, that the slot is gone or a process of the program was killed, and by none of its limits; else "".

    No program can do that to itself: it is the first process of its namespace, or may signal nobody.
    """
    if not answer:
        return "the sandbox did not survive it"
    deaths = [] if answer["late"] else [(-os.waitstatus_to_exitcode(answer["status"]), answer["cpu_s"])]
    with contextlib.suppress(ValueError):  # no report, or one that was cut short
        fact = json.loads(report.rstrip("\n").rpartition("\n")[2])
        deaths += [(fact["killed_by"], fact["cpu_s"])] if "killed_by" in fact else []
    for by, cpu_s in deaths:
        if by == signal.SIGKILL and cpu_s <= limits.cpu_s / 2:
            return "killed from outside: was memory short?"
    return ""


def _killed(by: int, cpu_s: float, limits: Limits) -> str:
    if by == signal.SIGKILL and cpu_s > limits.cpu_s / 2:  # kernels count in different ways
        return f"used up {limits.cpu_s} s of CPU time"
    return f"killed by a signal: {signal.strsignal(by) or by}"


def _verdict(outcome: Outcome, report: str, limits: Limits) -> Verdict:
    """From what the tests' process wrote; of that, and of how it ended, the program has no hold."""
    asserts, failures, done, killed = 0, list[str](), False, ""
    passed, failed = set[int](), set[int]()  # an assertion in a loop counts once: the program may decide how often
    for line in report.split("\n"):
        try:
            fact = json.loads(line)
        except ValueError:  # cut short by a limit
            break
        asserts = fact.get("asserts", asserts)
        passed |= {fact["passed"]} if "passed" in fact else set()
        failed |= {fact["at"]} if "at" in fact else set()
        failures += [fact["failed"]] if "failed" in fact else []
        done = done or "done" in fact
        killed = _killed(fact["killed_by"], fact["cpu_s"], limits) if "killed_by" in fact else killed
    if outcome.status != "ok" or not done:
        failures.append(outcome.reason or "the tests ended early")
    elif not failures and asserts and not passed:
        failures.append("no assertion was reached")
    total = max(asserts, 1)
    if failures:
        right = min(len(passed - failed), total - 1)
        reason = f"{killed}: {failures[0]}" if killed else failures[0]
        reason = reason[:MAX_REASON].encode("utf-8", "replace").decode()
        return Verdict(False, right, total, reason, outcome.status == "broken", outcome.cpu_s)
    return Verdict(True, total, total, cpu_s=outcome.cpu_s)


def _below(files: Mapping[str, str]) -> dict[str, str]:
    for path in files:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts:
            raise ValueError(f"{path!r} is no path below the program's folder")
    return dict(files)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")

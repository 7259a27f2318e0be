"""The grading process as its parent sees it: started, talked to, started anew when an answer broke it or it was killed.

Who is at fault. The clock of CPU time (`worker.py`) names the answer that has used it up, and so does the limit of wall
time; and no process exits but by its own doing. One that a signal has ended may have been shot from outside (kill -9,
out of memory): its answer is graded again, alone, in a fresh process. If that one is gone too, it was the answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Mapping
from typing import IO, Any, NamedTuple, cast

from onepolicy.config import TasksConfig
from onepolicy.tasks.base import GraderBug
from onepolicy.types import Grade, Message, Observation, Task

TIMED_OUT, CRASHED = "grader timed out", "grader crashed"  # how the reason of such a failure begins
COSTLY = (TIMED_OUT, CRASHED)
START_LIMIT_S = 120.0  # imports and building the sources
PAUSES_S = (0.2, 1.0, 3.0)  # before each further try to start: memory may be short for a moment


class Item(NamedTuple):
    """What the policy says to a task: one text or, where an Environment takes them, turns after those of `history`.

    These are answers, without their thoughts; `thought` is that of the last turn, for graders that ask for it.
    `over`: no turn can follow, so that the reply must be a grade.
    """

    task: Task
    turns: tuple[str, ...]
    history: tuple[Message, ...] = ()
    over: bool = True
    thought: str = ""


Reply = Grade | Observation


class GradingError(RuntimeError):
    """The grading process itself does not work (as opposed to a grader that fails on one answer)."""


class Killed(GradingError):
    """The grading process could not be started, or was killed while it started: the next try may succeed."""


class Limits(NamedTuple):
    """Of one answer: CPU time of the grader's thread, wall time, memory beyond the sources' own."""

    cpu_s: float
    wall_s: float
    memory_gib: float


class Failure(NamedTuple):
    """Why an answer got no grade. `sure`: it was the answer's own doing."""

    reason: str
    sure: bool


class Worker:
    """The process and the conversation with it. One thread talks; any thread may `close` or `take_restarts`."""

    def __init__(self, tasks: dict[str, TasksConfig], limits: Limits) -> None:
        self.limits = limits
        setup = {
            "tasks": tasks,
            "cpu_s": limits.cpu_s,
            "wall_s": limits.wall_s,
            "memory_bytes": int(limits.memory_gib * 2**30),
        }
        self._setup = pickle.dumps(setup)
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: Lines
        self._has_worked = False
        self._closed = threading.Event()
        self._lock = threading.Lock()  # between starting and killing
        self._restarts: Counter[str] = Counter()
        self._told: set[str] = set()

    def grade(self, batch: list[Item]) -> list[Reply]:
        """Grade a batch. The process is started anew after each answer that broke it."""
        grades: list[Reply] = []
        again = False  # the next item is graded alone, because the process is gone that was at it
        while len(grades) < len(batch):
            self.start()
            rest = batch[len(grades) :]
            failure = self._converse(rest[:1] if again else rest, grades)
            if failure is None:
                again = False
                continue
            self.kill()
            if failure.sure or again:
                grades.append(Grade(0.0, failure.reason, failed=True))
                again = False
            else:
                again = True
                self._count_restarts(batch[len(grades)].task.domain, 1, failure.reason)
        return grades

    def take_restarts(self) -> dict[str, int]:
        """By domain, the gradings that were done again since the last call, because a process was gone."""
        with self._lock:
            taken, self._restarts = dict(self._restarts), Counter()
        return taken

    def _count_restarts(self, domain: str, number: int, reason: str) -> None:
        with self._lock:
            self._restarts[domain] += number
        if domain not in self._told:
            self._told.add(domain)
            print(
                f"warning: domain {domain!r}: {reason}; the answer is graded again in a fresh process, and counted as "
                "grader_restarts (was something killed, or is memory short?)",
                file=sys.stderr,
            )

    def start(self) -> None:
        """Start the process unless one is running, with several tries. Raises GradingError when it cannot."""
        if self._process is not None and self._process.poll() is None:
            return
        for pause in PAUSES_S:
            try:
                self._start()
                return
            except GradingError as error:
                if self._closed.is_set() or not (self._has_worked or isinstance(error, Killed)):
                    raise  # it will not be better the next time
            self._closed.wait(pause)
        self._start()

    def _start(self) -> None:
        self.kill()
        with tempfile.TemporaryFile() as log:
            try:
                self._popen(log)
                self._lines.link.sendall(self._setup)
                answer = self._lines.next(START_LIMIT_S)
            except (OSError, EOFError) as error:
                code = self.kill()
                log.seek(0)
                lines = log.read()[-2000:].decode(errors="replace").strip()
                kind = Killed if code is None or code < 0 else GradingError
                raise kind(f"the grading process did not start ({error}, {_died(code)}):\n{lines}") from None
        if "failed" in answer:
            self.kill()
            raise GradingError(f"the grading process cannot build its task sources: {answer['failed']}")
        self._has_worked = True

    def _popen(self, log: IO[bytes]) -> None:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        with self._lock, theirs:
            if self._closed.is_set():
                ours.close()
                raise GradingError("this grader was closed")
            # A session of its own: Ctrl-C reaches the parent alone, and killing the group takes children along.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "onepolicy.tasks.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )
            self._lines = Lines(ours)

    def _converse(self, batch: list[Item], grades: list[Reply]) -> Failure | None:
        """Append a grade per answer; stop at the first that breaks the process and return why."""
        expected, limits = len(grades) + len(batch), self.limits
        try:
            self._lines.link.settimeout(START_LIMIT_S)
            self._lines.link.sendall(pickle.dumps(batch, pickle.HIGHEST_PROTOCOL))
            while len(grades) < expected:
                verdict = self._lines.next(limits.wall_s)
                if "busy" in verdict:  # one turn of several is taken
                    continue
                if "bug" in verdict:
                    self.kill()
                    raise GraderBug(verdict["bug"])
                if restarts := verdict.get("restarts"):
                    domain = batch[len(grades) - expected].task.domain
                    self._count_restarts(domain, restarts, "a server of the sandbox was killed")
                grades.append(_reply(verdict))
                if verdict.get("fatal"):
                    self.kill()
                    return None
        except TimeoutError:
            return Failure(f"{TIMED_OUT}: not done after {limits.wall_s:g} s of wall time", sure=True)
        except (OSError, EOFError):
            with contextlib.suppress(subprocess.TimeoutExpired):  # its own exit status, if it is about to have one
                cast("subprocess.Popen[bytes]", self._process).wait(timeout=1)
            code = self.kill()
            if code == -signal.SIGPROF:
                return Failure(f"{TIMED_OUT} after {limits.cpu_s:g} s of CPU time", sure=True)
            return Failure(f"{CRASHED}: {_died(code)}", sure=code is not None and code >= 0)
        return None

    def kill(self) -> int | None:
        """End the process and whatever it started; its exit status, None when there was none. The talker calls it."""
        process, self._process = self._process, None
        if process is None:
            return None
        _kill_group(process)
        self._lines.link.close()
        return process.wait()

    def close(self) -> None:
        """Never start again; a conversation under way ends as if the process had crashed. Any thread may call it."""
        with self._lock:
            self._closed.set()
            if (process := self._process) is not None:
                _kill_group(process)


def _reply(verdict: Mapping[str, Any]) -> Reply:
    if "messages" in verdict:
        return Observation(tuple(verdict["messages"]))
    turn_rewards, failed = tuple(verdict.get("turn_rewards", ())), bool(verdict.get("failed"))
    return Grade(verdict["reward"], verdict["reason"], turn_rewards, failed)


class Lines:
    """JSON lines from a socket, each with a time limit."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self._lines: deque[bytes] = deque()
        self._rest = b""

    def next(self, timeout_s: float) -> dict[str, Any]:
        """The next message. Raises TimeoutError when nothing came in time, EOFError at the end or on garbage."""
        self.link.settimeout(timeout_s)
        while not self._lines:
            chunk = self.link.recv(1 << 16)
            if not chunk:
                raise EOFError("it closed the connection")
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            self._lines.extend(lines)
        try:
            message: dict[str, Any] = json.loads(self._lines.popleft())
        except ValueError:
            raise EOFError("it wrote garbage") from None
        return message


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _died(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"

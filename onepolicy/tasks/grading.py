"""Grading in one separate process, with a hard limit of time and memory per answer, while generation goes on.

    with Grader(config.domains) as grader:
        grader.submit(samples)      # returns at once; call it as samples finish
        ...
        grader.collect()            # waits, and sets reward and reason of all that was submitted

A sample whose domain is an Environment has taken a turn of an episode: while that goes on, it gets no reward but the
environment's answer, in its `history`; write its next turn and submit it again. Episodes live in the process too.
A bad answer is data: one that makes its grader raise, hang, crash or devour memory is not judged, Grade(0.0, reason,
failed=True), and the rest of the batch is graded as if nothing had happened. Nothing is learnt from a failed grading,
and no score counts it. A reward outside [0, 1] is the grader's fault and an error.
Graders get the answer, without the thought. A thought that never ends is no answer: reward 0, and no grader is asked.
What this is not: a sandbox. Graders here may read files and open connections; for code written by a model there is
`onepolicy.sandbox`, which the graders of such domains use.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import IO, Any, NamedTuple, Self, cast

from onepolicy.config import DomainConfig, TasksConfig, did_you_mean
from onepolicy.tasks.base import GraderBug
from onepolicy.tasks.episodes import heard, said
from onepolicy.thought import NEVER_ENDS, Separated, separate
from onepolicy.types import Answer, Grade, Message, Observation, Sample, Task

MAX_RESPONSE = 1_000_000  # characters; of a longer answer the grader sees the end, where the result stands
BATCH_ITEMS, BATCH_CHARACTERS = 512, 4_000_000  # of one message to the worker
START_LIMIT_S = 120.0  # imports and building the sources


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
UNANSWERED = Grade(0.0, NEVER_ENDS)


class GradingError(RuntimeError):
    """The grading process itself does not work (as opposed to a grader that fails on one answer)."""


class Grader:
    """Grades what is submitted, in order, in the background. Use as a context manager, or call `close`."""

    def __init__(
        self, domains: Mapping[str, DomainConfig], time_limit_s: float = 5.0, memory_limit_gib: float = 4.0
    ) -> None:
        """Starts the process, and does not wait for it. Limits: seconds per answer; memory beyond the sources' own."""
        if time_limit_s <= 0 or memory_limit_gib <= 0:
            raise ValueError(f"limits must be positive, got {time_limit_s} s and {memory_limit_gib} GiB")
        self._names = list(domains)
        self._pending: list[tuple[list[Sample], list[Item | None], Future[list[Reply]]]] = []
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        tasks = {name: config.tasks for name, config in domains.items()}
        worker = _Worker(tasks, time_limit_s, memory_limit_gib)
        thread = threading.Thread(target=_serve, args=(self._jobs, worker), name="grading", daemon=True)
        thread.start()
        self.close = weakref.finalize(self, _stop, self._jobs, worker, thread)  # also at garbage collection and exit

    def submit(self, samples: Sequence[Sample]) -> None:
        """Queue samples for grading and return at once. Raises ValueError on a domain that is not this grader's."""
        samples = list(samples)
        items = [_item(sample) for sample in samples]
        self._pending.append((samples, items, self._enqueue([item for item in items if item is not None])))

    def collect(self) -> list[Sample]:
        """Wait for all that was submitted, set `reward` and `reason`, and return the samples in submission order.

        The reward of an episode that goes on stays None; its response goes into `history`, and the answer behind it.
        Raises GraderBug (a ValueError) when a grader returned no valid reward, GradingError when the process fails.
        """
        pending, self._pending = self._pending, []
        graded = []
        for samples, items, future in pending:
            replies = iter(future.result())
            for sample, item in zip(samples, items, strict=True):
                reply = UNANSWERED if item is None else next(replies)
                if isinstance(reply, Grade):
                    unheard = item is not None and not item.turns and sample.response
                    sample.reward = reply.reward
                    sample.reason = "; ".join(filter(None, (NEVER_ENDS if unheard else "", reply.reason)))
                    sample.turn_rewards, sample.grader_failed = reply.turn_rewards, reply.failed
                else:
                    answer = separated(sample).answer
                    sample.history = (*sample.history, said(sample.response, answer), *reply.messages)
                    sample.response, sample.thought, sample.answer = "", None, None
                graded.append(sample)
        return graded

    def grade(self, items: Sequence[tuple[Task, Answer]]) -> list[Grade]:
        """Grade now and wait: one Grade per (task, response or turns), in order. Raises as `collect` does."""
        whole = [_whole(task, (turns,) if isinstance(turns, str) else turns) for task, turns in items]
        grades = iter(self._enqueue([item for item in whole if item is not None]).result())
        return [UNANSWERED if item is None else cast(Grade, next(grades)) for item in whole]  # since they are over

    def _enqueue(self, items: list[Item]) -> Future[list[Reply]]:
        for item in items:
            name = item.task.domain
            if name not in self._names:
                raise ValueError(f"no grader for domain {name!r}: {did_you_mean(name, self._names)}")
        if not self.close.alive:
            raise GradingError("this grader was closed")
        future: Future[list[Reply]] = Future()
        short = [
            item._replace(
                turns=tuple(text[-MAX_RESPONSE:] for text in item.turns), thought=item.thought[-MAX_RESPONSE:]
            )
            for item in items
        ]
        self._jobs.put((short, future))
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_Job = tuple[list[Item], "Future[list[Reply]]"]


def separated(sample: Sample) -> Separated:
    """Thought and answer of a sample's last turn: the engine's, who knows the tokens, else as its text has them."""
    if sample.thought is None:
        return separate(sample.response)
    return Separated(sample.thought, sample.answer)


def _item(sample: Sample) -> Item | None:
    """What a sample says, None when it is nothing: its thought never ends.

    A sample that has come to its end by a limit has no next turn, and perhaps none that is new. Where it has taken
    turns before, it gets the grade of the state that these have led to.
    """
    over = sample.finish != "stop"
    thought, answer = separated(sample)
    history = heard(sample.history)
    if over and history and (not sample.response or answer is None):
        return Item(sample.task, (), history, over, thought)
    return None if answer is None else Item(sample.task, (answer,), history, over, thought)


def _whole(task: Task, turns: Sequence[str]) -> Item | None:
    """All that is said to a task, None when a thought never ends."""
    parts = [separate(text) for text in turns]
    answers = tuple(part.answer for part in parts if part.answer is not None)
    if len(answers) < len(parts):
        return None
    return Item(task, answers, thought=parts[-1].thought if parts else "")


def _serve(jobs: queue.SimpleQueue[_Job | None], worker: _Worker) -> None:
    """The background thread: all waiting jobs at once, until None."""
    with contextlib.suppress(GradingError, OSError):  # reported with the first job, which tries again
        worker.start()
    while waiting := _next_jobs(jobs):
        items = [item for items, _ in waiting for item in items]
        try:
            grades = iter([grade for batch in _batches(items) for grade in worker.grade(batch)])
        except Exception as error:  # whoever collects raises it; the thread must go on
            for _, future in waiting:
                future.set_exception(error)
        else:
            for items, future in waiting:
                future.set_result([next(grades) for _ in items])
    worker.kill()


def _next_jobs(jobs: queue.SimpleQueue[_Job | None]) -> list[_Job]:
    """All jobs that wait, at least one: one message to the worker costs as much as grading dozens of easy answers.

    Empty at the end (None). A None behind other jobs is put back, for the next call.
    """
    waiting: list[_Job] = []
    job = jobs.get()
    while job is not None:
        waiting.append(job)
        try:
            job = jobs.get_nowait()
        except queue.Empty:
            return waiting
    if waiting:
        jobs.put(None)
    return waiting


def _stop(jobs: queue.SimpleQueue[_Job | None], worker: _Worker, thread: threading.Thread) -> None:
    worker.close()
    jobs.put(None)
    if thread is not threading.current_thread():
        thread.join()


def _batches(items: list[Item]) -> list[list[Item]]:
    batches: list[list[Item]] = []
    characters = 0
    for item in items:
        length = (
            len(item.thought) + sum(map(len, item.turns)) + sum(len(message["content"]) for message in item.history)
        )
        characters += length
        if not batches or len(batches[-1]) == BATCH_ITEMS or characters > BATCH_CHARACTERS:
            batches.append([])
            characters = length
        batches[-1].append(item)
    return batches


class _Worker:
    """The process and the conversation with it. One thread talks; any thread may `close`."""

    def __init__(self, tasks: dict[str, TasksConfig], time_limit_s: float, memory_limit_gib: float) -> None:
        self.time_limit_s, self.memory_limit_gib = time_limit_s, memory_limit_gib
        setup = {"tasks": tasks, "time_limit_s": time_limit_s, "memory_bytes": int(memory_limit_gib * 2**30)}
        self._setup = pickle.dumps(setup)
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: _Lines
        self._closed = False
        self._lock = threading.Lock()  # between starting and killing

    def grade(self, batch: list[Item]) -> list[Reply]:
        """Grade a batch, restarting the process after each answer that broke it."""
        grades: list[Reply] = []
        while len(grades) < len(batch):
            self.start()
            failure = self._converse(batch[len(grades) :], grades)
            if failure is not None:
                self.kill()
                grades.append(Grade(0.0, failure, failed=True))
        return grades

    def start(self) -> None:
        """Start the process unless one is running. Raises GradingError when it cannot."""
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()
        with tempfile.TemporaryFile() as log:
            self._popen(log)
            try:
                self._lines.link.sendall(self._setup)
                answer = self._lines.next(START_LIMIT_S)
            except (OSError, EOFError) as error:
                code = self.kill()
                log.seek(0)
                lines = log.read()[-2000:].decode(errors="replace").strip()
                raise GradingError(f"the grading process did not start ({error}, {_died(code)}):\n{lines}") from None
        if "failed" in answer:
            self.kill()
            raise GradingError(f"the grading process cannot build its task sources: {answer['failed']}")

    def _popen(self, log: IO[bytes]) -> None:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        with self._lock, theirs:
            if self._closed:
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
            self._lines = _Lines(ours)

    def _converse(self, batch: list[Item], grades: list[Reply]) -> str | None:
        """Append a grade per answer; stop at the first that breaks the process and return why."""
        expected = len(grades) + len(batch)
        try:
            self._lines.link.settimeout(START_LIMIT_S)
            self._lines.link.sendall(pickle.dumps(batch, pickle.HIGHEST_PROTOCOL))
            while len(grades) < expected:
                verdict = self._lines.next(self.time_limit_s)
                if "busy" in verdict:  # one turn of several is taken
                    continue
                if "bug" in verdict:
                    self.kill()
                    raise GraderBug(verdict["bug"])
                grades.append(_reply(verdict))
                if verdict.get("fatal"):
                    self.kill()
                    return None
        except TimeoutError:
            return f"grader timed out after {self.time_limit_s:g} s"
        except (OSError, EOFError):
            with contextlib.suppress(subprocess.TimeoutExpired):  # its own exit status, if it is about to have one
                cast("subprocess.Popen[bytes]", self._process).wait(timeout=1)
            return f"grader crashed: {_died(self.kill())}"
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
            self._closed = True
            if (process := self._process) is not None:
                _kill_group(process)


def _reply(verdict: Mapping[str, Any]) -> Reply:
    if "messages" in verdict:
        return Observation(tuple(verdict["messages"]))
    turn_rewards, failed = tuple(verdict.get("turn_rewards", ())), bool(verdict.get("failed"))
    return Grade(verdict["reward"], verdict["reason"], turn_rewards, failed)


class _Lines:
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

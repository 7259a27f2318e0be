"""The process that grades, started by `grading_process.py` as `-m onepolicy.tasks.worker FD`; not for use by hand.

Over the socket FD come pickles from the trusted parent: first the setup, then batches of `grading_process.Item`. Back
go JSON lines, one as soon as each answer is graded, so that a hang names its culprit; "busy" before it, after each turn
of an episode, and again and again while a source is at work that bounds its own time (of such a source, several answers
are graded at once). JSON, because a grader that evaluates answers is at their mercy: whatever an answer may write here,
it cannot run code in the parent.
"""

from __future__ import annotations

import ctypes
import inspect
import json
import os
import pickle
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from onepolicy.sandbox import restarts_of_this_thread
from onepolicy.tasks import build_source
from onepolicy.tasks.base import Environment, GraderBug, Source, as_grade
from onepolicy.tasks.episodes import Episodes, valid
from onepolicy.tasks.grading import MAX_REASON
from onepolicy.tasks.grading_process import Item
from onepolicy.types import Grade, Observation

MAX_ERROR = 2000  # characters of why sources cannot be built
SAYING = threading.Lock()  # a line is said whole, whoever says it
THREAD_CPUTIME, TO_PROCESS = 3, 0  # CLOCK_THREAD_CPUTIME_ID, SIGEV_SIGNAL


def main(fd: int) -> None:
    """Serve until the parent closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    link = socket.socket(fileno=fd)
    stream = link.makefile("rb")
    setup = pickle.load(stream)
    try:
        sources: dict[str, Any] = {name: build_source(name, config, seed=0) for name, config in setup["tasks"].items()}
        for source in sources.values():
            getattr(source, "prepare", lambda: None)()
    except Exception as error:  # the parent raises it, with its own traceback
        _say(link, {"failed": f"{type(error).__name__}: {error}"[:MAX_ERROR]})
        return
    _silence()
    _limit_memory(setup["memory_bytes"])
    _say(link, {"ready": True})

    cpu = CpuClock()

    def start_clocks() -> None:
        # A backstop for when the parent, which keeps the real limit, was itself killed: the default action of
        # the signal ends this process even inside C code.
        signal.setitimer(signal.ITIMER_REAL, 2 * setup["wall_s"] + 10)
        if threading.current_thread() is threading.main_thread():
            cpu.start(setup["cpu_s"])

    def on_step() -> None:
        _say(link, {"busy": True})
        start_clocks()

    episodes = Episodes(on_step)
    threads = {name: ThreadPoolExecutor(source.threads) for name, source in sources.items() if _is_parallel(source)}
    while True:
        try:
            batch: list[Item] = pickle.load(stream)
        except EOFError:
            return
        begun = {
            number: threads[item.task.domain].submit(_verdict, sources[item.task.domain], item, episodes)
            for number, item in enumerate(batch)
            if item.task.domain in threads
        }
        for number, item in enumerate(batch):
            source = sources[item.task.domain]
            start_clocks()
            if number in begun:
                verdict = _awaited(begun[number], source.time_limit_s, setup["wall_s"] / 4, on_step)
            else:
                verdict = _verdict(source, item, episodes)
            signal.setitimer(signal.ITIMER_REAL, 0)
            cpu.stop()
            _say(link, verdict)
            if verdict.get("fatal"):
                return


class _SignalEvent(ctypes.Structure):
    """C's struct sigevent, of 64 bytes."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("_", ctypes.c_int * 12),
    )


class CpuClock:
    """A limit of the CPU time of the thread that makes it: at its end SIGPROF kills the process, even inside C code.

    Where the kernel has no timers of one thread, that of the whole process is limited. timer_create(2), setitimer(2).
    """

    def __init__(self) -> None:
        self._libc, self._timer = ctypes.CDLL(None), ctypes.c_void_p()
        event = _SignalEvent(None, signal.SIGPROF, TO_PROCESS)
        self._of_thread = not self._libc.timer_create(THREAD_CPUTIME, ctypes.byref(event), ctypes.byref(self._timer))

    def start(self, seconds: float) -> None:
        """From now on; 0 stops it."""
        if not self._of_thread:
            signal.setitimer(signal.ITIMER_PROF, seconds)
            return
        whole, fraction = divmod(seconds, 1)
        times = (ctypes.c_long * 4)(0, 0, int(whole), int(fraction * 1e9))  # interval, then the first end
        self._libc.timer_settime(self._timer, 0, times, None)

    def stop(self) -> None:
        self.start(0)


def _is_parallel(source: Any) -> bool:
    return getattr(source, "threads", 1) > 1


def _awaited(
    verdict: Future[dict[str, Any]], limit_s: float, beat_s: float, on_step: Callable[[], None]
) -> dict[str, Any]:
    """Wait, and keep the parent waiting, as long as the source says that an answer may take; then its limit strikes.

    Those of a domain begin in order, so the one that is waited for has begun, or begins when an earlier one ends.
    """
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        try:
            return verdict.result(timeout=beat_s)
        except TimeoutError:
            on_step()
    return verdict.result()


def _verdict(source: Source, item: Item, episodes: Episodes) -> dict[str, Any]:
    """The reply to one item. `bug`: an invalid reward. `failed`: no reward. `fatal`: this process must not go on.

    `restarts`: how often a program of it was run again, because its slot of the sandbox was gone.
    """
    before = restarts_of_this_thread()
    verdict = _judged(source, item, episodes)
    restarts = restarts_of_this_thread() - before
    return {**verdict, "restarts": restarts} if restarts else verdict


def _judged(source: Source, item: Item, episodes: Episodes) -> dict[str, Any]:
    try:
        answer = _answer(source, item, episodes)
    except GraderBug as error:
        return {"reward": 0.0, "bug": valid(str(error), MAX_ERROR)}
    except MemoryError:
        return {"reward": 0.0, "reason": "grader ran out of memory", "failed": True, "fatal": True}
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # untrusted input: a bad answer is data, not a crash
        return {"reward": 0.0, "reason": valid(_raised(error), MAX_REASON), "failed": True}
    if isinstance(answer, Observation):
        return {"messages": answer.messages}
    return {
        "reward": answer.reward,
        "reason": valid(answer.reason, MAX_REASON),
        "turn_rewards": answer.turn_rewards,
        "failed": answer.failed,
    }


def _raised(error: BaseException) -> str:
    """What a grader raised, in words, if its exception can be put into any."""
    try:
        return f"grader raised {type(error).__name__}: {error}".removesuffix(": ")
    except Exception:  # its own __str__ may do anything
        return f"grader raised {type(error).__name__}"


def _answer(source: Source, item: Item, episodes: Episodes) -> Observation | Grade:
    if isinstance(source, Environment):
        return episodes.reply(source, item.task, item.history, item.turns, item.over)
    (response,) = item.turns
    wanted = {"thought": item.thought} if "thought" in inspect.signature(source.grade).parameters else {}
    return as_grade(source.grade(item.task, response, **wanted), f"the grader of domain {item.task.domain!r}")


def _say(link: socket.socket, message: dict[str, Any]) -> None:
    with SAYING:
        link.sendall(json.dumps(message).encode() + b"\n")


def _silence() -> None:
    """Graders may print; nobody reads it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def _limit_memory(extra: int) -> None:
    """Let the address space grow by `extra` bytes over what the sources take now."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = now + extra if hard == resource.RLIM_INFINITY else min(now + extra, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    main(int(sys.argv[1]))

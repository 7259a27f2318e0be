"""The process that grades, started by `grading.py` as `python -m onepolicy.tasks.worker FD`; not for use by hand.

Over the socket FD come pickles from the trusted parent: first the setup, then batches of (task, response). Back go
JSON lines, one as soon as each answer is graded, so that a hang names its culprit. JSON, because a grader that
evaluates answers is at their mercy: whatever an answer may write here, it cannot run code in the parent.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import socket
import sys
from typing import Any

from onepolicy.tasks import build_source
from onepolicy.tasks.base import GraderBug, TaskSource, as_grade
from onepolicy.types import Task

MAX_REASON = 500  # characters


def main(fd: int) -> None:
    """Serve until the parent closes its end."""
    link = socket.socket(fileno=fd)
    stream = link.makefile("rb")
    setup = pickle.load(stream)
    try:
        sources = {name: build_source(name, config, seed=0) for name, config in setup["tasks"].items()}
        for source in sources.values():
            getattr(source, "prepare", lambda: None)()
    except Exception as error:  # the parent raises it, with its own traceback
        _say(link, {"failed": f"{type(error).__name__}: {error}"})
        return
    _silence()
    _limit_memory(setup["memory_bytes"])
    _say(link, {"ready": True})
    while True:
        try:
            batch = pickle.load(stream)
        except EOFError:
            return
        for task, response in batch:
            # A backstop for when the parent, which keeps the real limit, was itself killed: the default action of
            # the signal ends this process even inside C code.
            signal.setitimer(signal.ITIMER_REAL, 2 * setup["time_limit_s"] + 10)
            verdict = _verdict(sources[task.domain], task, response)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _say(link, verdict)
            if verdict.get("fatal"):
                return


def _verdict(source: TaskSource, task: Task, response: str) -> dict[str, Any]:
    """The grade of one answer; `bug` when the grader is at fault, `fatal` when this process must not go on."""
    try:
        grade = as_grade(source.grade(task, response), f"the grader of domain {task.domain!r}")
    except GraderBug as error:
        return {"reward": 0.0, "bug": str(error)}
    except MemoryError:
        return {"reward": 0.0, "reason": "grader ran out of memory", "fatal": True}
    except Exception as error:  # untrusted input: a bad answer is data, not a crash
        reason = f"grader raised {type(error).__name__}: {str(error)[:MAX_REASON]}".removesuffix(": ")
        return {"reward": 0.0, "reason": reason}
    return {"reward": grade.reward, "reason": grade.reason[:MAX_REASON]}


def _say(link: socket.socket, message: dict[str, Any]) -> None:
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

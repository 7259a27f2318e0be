"""The server of one slot: it forks a process per program, waits for its end, and never touches what a program reads.

Messages over the link, a SOCK_SEQPACKET: first the setup; then requests, each with open files (see FILES). Back goes
what the kernel says of the program's end. Sources, tests and output travel in the files, past the server, whose
memory every program inherits.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import select
import signal
import socket
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from onepolicy.sandbox.inside import judge, program
from onepolicy.sandbox.inside.confine import Walls
from onepolicy.sandbox.inside.wire import Line

FILES = ("program", "stdin", "stdout", "stderr", "tests", "verdict")  # the last two for tests alone
MAX_REQUEST = 1 << 16
GRACE_S = 1.0  # for a program to end, once it is silent


def serve(link: socket.socket, setup: Mapping[str, Any]) -> None:
    """Answer requests until the link is closed."""
    try:
        walls = Walls(setup)
    except OSError as error:
        link.send(json.dumps({"refused": str(error)}).encode())
        return
    try:
        program.warm_up()
        gc.collect()
        gc.freeze()  # forked processes share the pages
        link.send(json.dumps({"nested": walls.nested, "filter": walls.filter}).encode())
        _serve(link, walls)
    finally:
        walls.leave()


def _serve(link: socket.socket, walls: Walls) -> None:
    while True:
        data, files, _, _ = socket.recv_fds(link, MAX_REQUEST, len(FILES))
        if not data:
            return
        limits = json.loads(data)
        start = time.monotonic()
        child = walls.fork()
        if not child:
            link.close()
            _child(walls, limits, dict(zip(FILES, files, strict=False)))
        for file in files:
            os.close(file)
        answer = _watch(link, child, start + limits["wall_s"], walls)
        link.send(json.dumps({**answer, "wall_s": time.monotonic() - start}).encode())


def _watch(link: socket.socket, child: int, deadline: float, walls: Walls) -> dict[str, Any]:
    """Wait until the program ends or has to. Ends this process when nobody waits for the answer."""
    end = os.pidfd_open(child)
    poll = select.poll()
    poll.register(end, select.POLLIN)
    poll.register(link, select.POLLIN)
    ready = {file for file, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)}
    os.close(end)
    if walls.nested:
        os.kill(child, signal.SIGKILL)  # not reaped yet, so the number is still its own
    else:
        os.killpg(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    spent = usage.ru_utime + usage.ru_stime
    if not walls.nested:
        spent += _reap()
        walls.clean()
    if link.fileno() in ready:
        walls.leave()
        os._exit(0)
    return {"status": status, "late": not ready, "cpu_s": spent}


def _reap() -> float:
    """What the program forked is ours since it ended, and dead. Returns the seconds of CPU time that it took."""
    spent = 0.0
    while True:
        try:
            _, _, usage = os.wait4(-1, 0)
        except ChildProcessError:
            return spent
        spent += usage.ru_utime + usage.ru_stime


def _child(walls: Walls, limits: Mapping[str, Any], files: Mapping[str, int]) -> NoReturn:
    """Never returns. What goes wrong here, before the program's own code, is exit code 125 and a line on stderr."""
    try:
        os.dup2(files["stderr"], 2)
        random.seed(0)  # what draws lots is graded the same every time
        if "tests" not in files:
            _become_program(walls, limits, files)
        ours, theirs = socket.socketpair()
        tested = walls.fork_within()
        if not tested:
            ours.close()
            _become_program(walls, limits, files, theirs)
        theirs.close()
        for name in FILES[:4]:
            os.close(files[name])
        _become_judge(walls, limits, files, ours, tested)
    except BaseException as error:  # must not get back into the server's loop
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    os._exit(125)


def _become_program(
    walls: Walls, limits: Mapping[str, Any], files: Mapping[str, int], link: socket.socket | None = None
) -> NoReturn:
    for file in (files[name] for name in FILES[4:] if name in files):
        os.close(file)
    for number, name in enumerate(FILES[1:4]):
        os.dup2(files[name], number)
    walls.close_in(limits)
    payload = _read(files["program"])
    for path, text in payload["files"].items():
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "w", errors="surrogatepass") as stream:
            stream.write(text)
    for name in FILES[:4]:
        os.close(files[name])
    walls.seal()
    if link is None:
        program.run(payload["source"])
    program.serve(payload["source"], Line(link, limits["message_mib"] << 20))


def _become_judge(
    walls: Walls, limits: Mapping[str, Any], files: Mapping[str, int], link: socket.socket, tested: int
) -> None:
    walls.close_in(limits)
    tests = _read(files["tests"])
    walls.seal()
    line = Line(link, limits["message_mib"] << 20)
    judge.judge(tests, line, files["verdict"])
    with contextlib.suppress(OSError):  # not where programs have no calls for it
        _end(tested, line, files["verdict"])
    os._exit(0)


def _end(tested: int, line: Line, verdict: int) -> None:
    """Kill the tested program and wait for it, so that its CPU time counts as ours; say so if it was killed before."""
    over, deadline = 0, time.monotonic() + GRACE_S
    while line.ended and not over and time.monotonic() < deadline:  # it is ending, unless it has closed the line itself
        over, status, usage = os.wait4(tested, os.WNOHANG)
        time.sleep(0.001)
    if not over:
        os.kill(tested, signal.SIGKILL)
        os.wait4(tested, 0)
    elif os.WIFSIGNALED(status):
        fact = {"killed_by": os.WTERMSIG(status), "cpu_s": usage.ru_utime + usage.ru_stime}
        os.write(verdict, json.dumps(fact).encode() + b"\n")


def _read(file: int) -> Any:
    with open(file, "rb", closefd=False) as stream:
        return json.loads(stream.read())

"""One slot of the sandbox: a server behind its walls (`inside/server.py`), and the conversation with it."""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import IO, Any, Self

from onepolicy.sandbox import level as levels
from onepolicy.sandbox.inside import MODULES
from onepolicy.sandbox.level import Level, SandboxError

GRACE_S = 10.0  # beyond a program's own limit, before its slot is given up
START_LIMIT_S = 60.0
PAUSES_S = (0.2, 1.0, 3.0)  # before each further try to start: memory may be short for a moment
MAX_MESSAGE = 1 << 16
INSIDE = "onepolicy.sandbox.inside"
# The server's whole program: the modules arrive as text, because their files may be out of sight in there.
BOOT = """
import json, socket, sys, types
link = socket.socket(fileno=int(sys.argv[1]))
setup = json.loads(link.recv(1 << 20))
for name, text in setup.pop("modules").items():
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
module.serve(link, setup)
"""


class Files:
    """What a program reads and writes, as files in memory without a name; the order is that of `server.FILES`."""

    def __init__(self, **contents: bytes) -> None:
        self._numbers: dict[str, int] = {}
        for name, content in contents.items():
            number = self._numbers[name] = os.memfd_create(name, os.MFD_CLOEXEC)
            with open(number, "wb", closefd=False) as file:
                file.write(content)
            os.lseek(number, 0, os.SEEK_SET)

    @property
    def numbers(self) -> list[int]:
        return list(self._numbers.values())

    def size(self, name: str) -> int:
        return os.fstat(self._numbers[name]).st_size

    def read(self, name: str, limit: int) -> str:
        """The first `limit` bytes."""
        return os.pread(self._numbers[name], limit, 0).decode("utf-8", "replace")

    def tail(self, name: str, limit: int) -> str:
        """The last `limit` bytes."""
        return os.pread(self._numbers[name], limit, max(0, self.size(name) - limit)).decode("utf-8", "replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for number in self.numbers:
            os.close(number)


class Slot:
    """A server, restarted when it is gone. One thread at a time may `run`; any thread may `close`."""

    def __init__(self, level: Level, number: int) -> None:
        self.level, self.number = level, number
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket
        self._scratch: str | None = None  # a folder of the machine, for a level without others
        self._closed = False

    def start(self) -> Level:
        """Start the server unless it runs; the level with what it could add. Raises SandboxError when it cannot."""
        if self._process is not None and self._process.poll() is None:
            return self.level
        self.stop()
        if self._closed:
            raise SandboxError("this sandbox was closed")
        with tempfile.TemporaryFile() as log:
            try:
                self._popen(log)
                message = self._link.recv(MAX_MESSAGE)
            except OSError as error:
                message = json.dumps({"refused": str(error)}).encode()
            if not message:
                self.stop()
                log.seek(0)
                lines = log.read().decode(errors="replace").strip().splitlines()
                message = json.dumps({"refused": lines[-1] if lines else "the server ended at once"}).encode()
        if self._closed:  # meanwhile, by another thread
            self.stop()
            raise SandboxError("this sandbox was closed")
        answer = json.loads(message)
        if "refused" in answer:
            self.stop()
            user = " with a user of its own" if self.level.own_user else ""
            raise SandboxError(f"{self.level.isolator}{user}: {answer['refused']}")
        self.level = replace(self.level, nested=answer["nested"], filter=answer["filter"])
        return self.level

    def ensure(self) -> None:
        """Start the server unless it runs, at a level that is known to work: several tries. Raises SandboxError."""
        for pause in PAUSES_S:
            try:
                self.start()
                return
            except SandboxError:
                if self._closed:
                    raise
            time.sleep(pause)
        self.start()

    def run(self, limits: Mapping[str, Any], files: Files) -> dict[str, Any]:
        """The server's answer; {} when it did not survive the program. Raises SandboxError when it does not start."""
        request = json.dumps(limits).encode()
        for _ in range(2):  # it may have died while idle, which is not this program's fault
            self.ensure()
            try:
                self._link.settimeout(limits["wall_s"] + GRACE_S)
                socket.send_fds(self._link, [request], files.numbers)
                break
            except OSError:
                self.stop()
        try:
            answer = self._link.recv(MAX_MESSAGE)
        except OSError:
            answer = b""
        if not answer:
            self.stop()
            return {}
        return dict(json.loads(answer))

    def stop(self) -> None:
        """End the server and all that is behind its walls. It ends by itself when the link is closed, or is killed."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)  # a thread may wait on it, and closing alone would not wake it
        self._link.close()
        try:
            process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def close(self) -> None:
        """Stop, and never start again."""
        self._closed = True
        self.stop()

    def _popen(self, log: IO[bytes]) -> None:
        before = levels.command(self.level)
        if self.level.isolator == "limits":
            self._scratch = tempfile.mkdtemp(prefix=f"onepolicy-sandbox-{os.getpid()}-")
        setup = levels.setup(self.level, self.number, self._scratch)
        if self._scratch and self.level.own_user:
            os.chown(self._scratch, setup["user"], setup["user"])
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # the library path is for interpreters that were built elsewhere; the rest of the environment stays outside
        library = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        with theirs:
            number = theirs.fileno()
            self._process = subprocess.Popen(
                [*before, levels.interpreter(), "-SsPB", "-X", "utf8", "-c", BOOT, str(number)],
                pass_fds=[number],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd="/",
                start_new_session=True,
                env={"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", **library},
            )
        folder = importlib.resources.files(INSIDE)
        texts = {f"{INSIDE}.{name}": folder.joinpath(f"{name}.py").read_text("utf-8") for name in MODULES}
        modules = dict.fromkeys(("onepolicy", "onepolicy.sandbox", INSIDE), "") | texts
        self._link.settimeout(START_LIMIT_S)
        self._link.sendall(json.dumps({**setup, "link": number, "modules": modules}).encode())

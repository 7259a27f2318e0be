"""Which walls this machine can put around a program: the strongest that works, found by trying, and told in words.

    bubblewrap   the `bwrap` program parts a slot from the machine: its own root (system and interpreter read-only,
                 nothing else), network, processes, IPC
    namespaces   the same by our own hand, where bubblewrap is not installed and the kernel lets us
    limits       none of that

Within any of them every program gets, where the kernel lets us, namespaces of its own once more; and everywhere the
limits and a system-call filter. As root, a slot is in addition a user of its own, without privileges; without walls,
nothing runs as root at all.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from onepolicy.sandbox.filter import build

Isolator = Literal["bubblewrap", "namespaces", "limits"]
Walls = Literal["strong", "any"]  # that a domain asks for
ISOLATORS: tuple[Isolator, ...] = ("bubblewrap", "namespaces", "limits")
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/nix/store")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
FIRST_USER, USERS = 20_000, 40_000  # ids that a slot may take; of the range that containers map
NOBODY = 65_534


class SandboxError(RuntimeError):
    """The sandbox itself does not work (as opposed to a program that fails in it)."""


@dataclass(frozen=True)
class Level:
    """What is in force. `refused` says why not more."""

    isolator: Isolator
    own_user: bool
    nested: bool = False
    filter: str = ""
    refused: tuple[str, ...] = ()

    @property
    def strong(self) -> bool:
        """Whether a program sees neither the machine's files nor its processes nor its network."""
        return self.isolator != "limits" and (self.nested or self.filter == "compute")

    def __str__(self) -> str:
        parts: list[str] = [self.isolator]
        parts += ["an unprivileged user per slot"] if self.own_user else []
        parts += ["namespaces per program"] if self.nested else []
        parts += {"full": ["system-call filter"], "compute": ["compute-only system-call filter"]}.get(self.filter, [])
        text = ", ".join(parts)
        if not self.strong:
            user = "any user" if self.own_user else "this user"
            text += f". WEAK: programs can read what {user} may read on this machine"
            text += "" if self.filter else ", open connections and signal processes"
        return text + "".join(f"; no {reason}" for reason in self.refused)


def candidates() -> list[Level]:
    """What to try, the strongest first. Raises SandboxError where nothing is known to work."""
    if sys.platform != "linux":
        raise SandboxError(f"programs are run in a sandbox of Linux's, and this is {sys.platform}: use a container")
    root = os.getuid() == 0
    users = (True, False) if root else (False,)
    return [
        Level(isolator, own_user)
        for isolator in ISOLATORS
        for own_user in users
        if own_user or not root or isolator != "limits"  # never as root, where no walls are
    ]


def interpreter() -> str:
    """This Python without its virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def layout() -> dict[str, Any]:
    """The root of a slot: folders and files bound read-only, links, devices."""
    base = os.path.realpath(sys.base_prefix)
    binds, links = [], {}
    for path in SYSTEM:
        if os.path.islink(path):
            links[path] = os.readlink(path)
        elif os.path.exists(path):
            binds.append(path)
    for path in _python(base):
        if not any(path == bound or path.startswith(bound + "/") for bound in binds):
            binds.append(path)
    return {"binds": binds, "links": links, "devices": [path for path in DEVICES if os.path.exists(path)]}


def _python(base: str) -> list[str]:
    """The folders and files of this Python: its prefix or, where that is a home folder, Python's parts of it."""
    home = os.path.realpath(os.path.expanduser("~"))
    if not (home == base or home.startswith(base.rstrip("/") + "/")):
        return [base, os.path.dirname(interpreter())]
    parts = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sysconfig.get_config_var("LIBDIR")}
    folders = {os.path.realpath(part) for part in parts if part and os.path.isdir(part)}
    return [*sorted(folder for folder in folders if not home.startswith(folder)), interpreter()]


def command(level: Level) -> list[str]:
    """What stands before the server's own command line. Raises SandboxError when bubblewrap is not installed."""
    if level.isolator != "bubblewrap":
        return []
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxError("bubblewrap: not installed (Debian: apt-get install bubblewrap)")
    root = layout()
    line = [bwrap, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    line += ["--hostname", "sandbox", "--proc", "/proc", "--dir", "/dev/shm", "--perms", "1777", "--tmpfs", "/tmp"]
    above = {str(parent) for path in root["binds"] for parent in PurePosixPath(path).parents} - {"/", "/usr"}
    line += [word for path in sorted(above) for word in ("--perms", "0755", "--dir", path)]  # else: for root alone
    line += [word for path in root["binds"] for word in ("--ro-bind", path, path)]
    line += [word for path, target in root["links"].items() for word in ("--symlink", target, path)]
    line += [word for path in root["devices"] for word in ("--dev-bind", path, path)]
    if not level.own_user:  # else it stays root until the folders are bound, and the server steps down
        line += ["--unshare-user", "--uid", "1000", "--gid", "1000"]
    line += ["--cap-drop", "ALL"] + (["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if level.own_user else [])
    return [*line, "--remount-ro", "/", "--"]


def setup(level: Level, slot: int, scratch: str | None) -> dict[str, Any]:
    """What the server of a slot must know. `scratch` is a folder of the machine, where it has to do with one."""
    machine = platform.machine()
    return {
        "machine": machine,
        "user": _own_user(slot) if level.own_user else None,
        "nest": level.isolator != "limits",
        "layout": layout() if level.isolator == "namespaces" else None,
        "binds": layout()["binds"] if level.isolator != "limits" else [],
        "scratch": scratch,
        "filters": {name: code.hex() for name, code in build(machine).items()},
        "counted": level.own_user or _counts_by_namespace(),
    }


def _own_user(slot: int) -> int:
    """An id of its own or, in a container that has few, nobody's."""
    own = FIRST_USER + (os.getpid() * 32 + slot) % USERS
    return own if _is_mapped(own) else NOBODY


def _is_mapped(number: int) -> bool:
    """Whether a process may become this user and group here."""
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/self/{name}") as file:
            ranges = [[int(word) for word in line.split()] for line in file]
        if not any(first <= number < first + count for first, _, count in ranges):
            return False
    return True


def _counts_by_namespace() -> bool:
    """Since Linux 5.14 the limit of processes counts those of a user in a namespace, before that all of a user's."""
    major, minor = platform.release().split(".")[:2]
    return (int(major), int("".join(filter(str.isdigit, minor)) or 0)) >= (5, 14)

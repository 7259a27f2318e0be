"""The walls, from inside: namespaces for the server and for each program, limits, privileges, the system-call filter.

Everything is a call into libc, because Python 3.11 has none of it. Numbers are those of Linux's headers.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import stat
import sys
from collections.abc import Mapping
from typing import Any

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 1 << 14, 1 << 18
MNT_DETACH, AT_FDCWD, AT_RECURSIVE = 2, -100, 0x8000
PDEATHSIG, SET_DUMPABLE, SET_SECCOMP, DROP_BOUND, SUBREAPER, NO_NEW_PRIVS = 1, 4, 22, 24, 36, 38
CAPABILITIES_V3 = 0x20080522
PIVOT_ROOT, MOUNT_SETATTR = {"x86_64": 155, "aarch64": 41}, 442
OPEN_TREE, MOVE_MOUNT = 428, 429
OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH = 1, 4
SCRATCH = ("/tmp", "/dev/shm")  # where a program may write, if anywhere

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: Any) -> int:
    result: int = getattr(_libc, name)(*arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


def _prctl(option: int, value: int) -> None:
    _call("prctl", option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    _call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())


class Walls:
    """What surrounds every program that this process forks. Set up once, by the server.

    nested: every program gets namespaces of its own, in which the server does not exist.
    """

    def __init__(self, setup: Mapping[str, Any]) -> None:
        """Raises OSError when a level that was asked for cannot be had; `nested` is best effort where it is not."""
        self.nested = False
        self._filters = {name: bytes.fromhex(code) for name, code in setup["filters"].items()}
        self._counted = setup["counted"]
        own = setup["user"]
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # if memory runs out, then here
        layout, self._binds = setup["layout"], setup["binds"]
        if layout and os.getuid() == 0:
            _call("unshare", NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWNET)
            _build_root(layout, setup["machine"])
            layout = None
        if own is not None:
            _become(own)
            _prctl(SET_DUMPABLE, 1)  # so that the files of /proc/self are ours again, for _enter
        if setup["nest"]:
            try:
                self._enter(setup, layout)
            except OSError:
                if setup["layout"]:
                    raise
        self._scratch, self._litter = setup["scratch"] or SCRATCH[0], setup["scratch"]
        for capability in range(64):  # what we have serves the programs' namespaces; no program gets any by `execve`
            with contextlib.suppress(OSError):  # not held, or not known to this kernel
                _prctl(DROP_BOUND, capability)
        _prctl(SET_DUMPABLE, 0)  # nobody without privileges over us reads our memory
        _prctl(SUBREAPER, 1)

    @property
    def filter(self) -> str:
        """The filter that programs get: "compute" where nothing else separates or counts them; "" for none."""
        if not self._filters:
            return ""
        return "full" if self.nested and self._counted else "compute"

    def _enter(self, setup: Mapping[str, Any], layout: Mapping[str, Any] | None) -> None:
        """Become the first process of namespaces that are ours to nest others in. Raises OSError where forbidden.

        With a layout, for who is not root, those that part us from the machine are made in the same step.
        """
        user, group = os.getuid(), os.getgid()
        _call("unshare", NEWUSER | NEWNS | NEWPID | (NEWCGROUP | NEWUTS | NEWIPC | NEWNET if layout else 0))
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        if layout:
            _build_root(layout, setup["machine"])
        child = os.fork()
        if child:
            os.close(setup["link"])  # or nobody would notice when the server has gone
            os.waitpid(child, 0)
            os._exit(0)
        self._home = os.open("/proc/self/ns/pid_for_children", os.O_RDONLY)
        _mount("none", "/", "", MS_REC | MS_PRIVATE)
        for device in os.listdir("/dev"):  # can be written to even so; but their times, which are the machine's, cannot
            with contextlib.suppress(OSError):  # a folder, or a kernel before 5.12
                _make_read_only(f"/dev/{device}")
        _mount("tmpfs", "/proc", "tmpfs", MS_RDONLY, "size=4k")  # no program needs it, and hostile ones like it
        self.nested = True

    def fork(self) -> int:
        """Fork; in namespaces, the child is the first process of a new one, which dies as a whole with it."""
        if not self.nested:
            child = os.fork()
            if not child:
                os.setpgid(0, 0)
            return child
        _call("unshare", NEWPID)
        child = os.fork()
        if child:
            _call("setns", self._home, NEWPID)
        else:
            os.setsid()
        return child

    def fork_within(self) -> int:
        """Fork once more, in a child: the grandchild sees neither the child nor the server."""
        if self.nested:
            _call("unshare", NEWPID)
        return os.fork()

    def close_in(self, limits: Mapping[str, Any]) -> None:
        """A private scratch folder and the limits. What comes with a program is unpacked then, before `seal`."""
        _prctl(PDEATHSIG, 9)
        if self.nested:
            _call("unshare", NEWNS)
            for folder in SCRATCH:
                options = f"size={limits['scratch_mib']}m,nr_inodes=4096,mode=700"
                within = [path for path in self._binds if path.startswith(f"{folder}/")]  # an interpreter, say
                trees = [_clone(path) for path in within]
                _mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, options)
                for path, tree in zip(within, trees, strict=True):
                    _attach(tree, path)
            os.close(self._home)
        os.chdir(self._scratch)
        self._limit(limits)

    def clean(self) -> None:
        """Empty the scratch folder that programs share where they have none of their own."""
        for name in os.listdir(self._scratch):
            path = os.path.join(self._scratch, name)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)

    def leave(self) -> None:
        """What the server does last: who has started it may be gone."""
        if self._litter:
            shutil.rmtree(self._litter, ignore_errors=True)

    def seal(self) -> None:
        """The last step, after which there is no way back: no privileges, and only the calls of the filter."""
        _prctl(NO_NEW_PRIVS, 1)
        _call("capset", (ctypes.c_uint32 * 2)(CAPABILITIES_V3, 0), (ctypes.c_uint32 * 6)())
        if self.filter:
            _install(self._filters[self.filter])

    def _limit(self, limits: Mapping[str, Any]) -> None:
        mib = 1 << 20
        bounds = {
            "AS": limits["memory_mib"] * mib,
            "CPU": limits["cpu_s"],
            "FSIZE": limits["file_mib"] * mib,
            "STACK": 64 * mib,  # deep recursion through C code is common in honest programs
            "NOFILE": 64,
            "CORE": 0,
            "MEMLOCK": 0,
            "MSGQUEUE": 0,
        }
        if self.nested and self._counted:
            bounds["NPROC"] = limits["processes"] + 3  # beside them: two servers, and the process of the tests
        for name, value in bounds.items():
            kind = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(kind)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value))


def _become(user: int) -> None:
    """Another user, and no group but its own. Raises OSError where that is forbidden.

    Python's own files stay in reach, also below a folder that is private to root: by an open folder, the prefix. With
    it, where no walls are, what lies beside that folder and all may read, but not the private folder itself.
    """
    prefix = os.path.realpath(sys.base_prefix)
    folder = os.open(prefix, os.O_PATH)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    if os.access(os.__file__, os.R_OK):
        os.close(folder)
        return
    reached = f"/proc/self/fd/{folder}"
    sys.path[:] = [path.replace(prefix, reached, 1) for path in sys.path]
    for module in list(sys.modules.values()):
        if file := getattr(module, "__file__", None):
            module.__file__ = file.replace(prefix, reached, 1)
        if places := getattr(module, "__path__", None):
            module.__path__ = [place.replace(prefix, reached, 1) for place in places]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _install(code: bytes) -> None:
    program = _Program(len(code) // 8, code)
    _call("prctl", SET_SECCOMP, ctypes.c_ulong(2), ctypes.byref(program), ctypes.c_ulong(0), ctypes.c_ulong(0))


def _make_read_only(path: str) -> None:
    """A mount, with all that is mounted below."""
    attributes = (ctypes.c_uint64 * 4)(MS_RDONLY | MS_NOSUID, 0, 0, 0)
    _call("syscall", MOUNT_SETATTR, AT_FDCWD, path.encode(), AT_RECURSIVE, attributes, ctypes.c_size_t(32))


def _clone(path: str) -> int:
    """What is mounted at a place, as an open mount that can be attached elsewhere."""
    return _call("syscall", OPEN_TREE, AT_FDCWD, path.encode(), OPEN_TREE_CLONE | AT_RECURSIVE | os.O_CLOEXEC)


def _attach(tree: int, path: str) -> None:
    """Mount `_clone`'s mount at a path, which is made."""
    _make_place(path, os.fstat(tree).st_mode)
    _call("syscall", MOVE_MOUNT, tree, b"", AT_FDCWD, path.encode(), MOVE_MOUNT_F_EMPTY_PATH)
    os.close(tree)


def _make_place(path: str, mode: int) -> None:
    """An empty folder or file, as what is to be mounted there is one or the other."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if stat.S_ISDIR(mode):
        os.makedirs(path, exist_ok=True)
    else:
        open(path, "w").close()


def _build_root(layout: Mapping[str, Any], machine: str) -> None:
    """A root of tmpfs with some folders of the old one, read-only, and nothing else; then it is all there is."""
    root = "/tmp"  # exists everywhere; what we put over it is ours alone
    os.umask(0o022)  # a slot's user must get through
    # opened before anything hides them: the interpreter may lie in the temporary folder
    sources = {path: os.open(path, os.O_PATH) for path in (*layout["binds"], *layout["devices"], "/proc")}
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path, source in sources.items():
        _make_place(root + path, os.fstat(source).st_mode)
        _mount(f"/proc/self/fd/{source}", root + path, "", MS_BIND | MS_REC)
        os.close(source)
        if path in layout["binds"]:
            _make_read_only(root + path)
    for path, target in layout["links"].items():
        os.symlink(target, root + path)
    for folder in SCRATCH:
        os.makedirs(root + folder, exist_ok=True)
    os.chdir(root)
    _call("syscall", ctypes.c_long(PIVOT_ROOT[machine]), b".", b".")
    _call("umount2", b".", MNT_DETACH)
    os.chdir("/")
    _mount("none", "/", "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)

"""Errors that the user can act on, as one line for the command line; bugs of ours keep their traceback.

error: no space left on the disk: runs/student/metrics.jsonl: free some space and run the same command again
"""

from __future__ import annotations

import errno
import re

from onepolicy.files import FULL, NoSpace, chain, full_disk

AGAIN = "and run the same command again; a run goes on from its last checkpoint"
MAKE_ROOM = {
    errno.ENOSPC: f"free some space {AGAIN}",
    errno.EDQUOT: f"free some space {AGAIN}",
    errno.EFBIG: f"raise the limit (ulimit -f) {AGAIN}",
}
FIXES = {
    errno.ENOENT: "no such file or folder: {}",
    errno.EACCES: "no permission for {}: choose a place that you may write to, or change its permissions",
    errno.EPERM: "no permission for {}: choose a place that you may write to, or change its permissions",
    errno.EROFS: "{} is on a read-only file system: choose another place for it",
    errno.ENOTDIR: "{}: a file is in the place of a folder: choose another place, or move the file away",
    errno.EEXIST: "{} is there already: choose another place, or move it away",
    errno.EISDIR: "{} is a folder, and a file is expected there",
    errno.ENOTEMPTY: "{} is not empty: choose another place, or move its contents away",
    errno.ENAMETOOLONG: "{}: the name is too long for this file system: choose a shorter one",
    errno.EMFILE: "too many open files ({}): raise the limit with ulimit -n",
    errno.ENOMEM: "not enough memory ({}): close other programs, or use a smaller model",
}
# torch's writer in C++, when a disk is full: it keeps no errno.
TORCH_WRITER = re.compile(r"PytorchStreamWriter failed|inline_container\.cc|basic_ios::clear")
OUT_OF_MEMORY = re.compile(r"DefaultCPUAllocator: can't allocate memory|CUDA error: out of memory")


def user_fault(error: BaseException) -> str | None:
    """What went wrong and what to do, for errors whose cause is outside the program; None for all others.

    On one line, except that several faults of a configuration have a line each.
    """
    if isinstance(error, NoSpace):
        return one_line(error.strerror)
    if (number := full_disk(error)) is not None:
        return f"{FULL[number]}: {_where(error)}: {MAKE_ROOM[number]}"
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("onepolicy"):
        return f"the package {error.name!r} is not installed here: make setup, or pip install -e ."
    if isinstance(error, OSError):
        if error.errno in FIXES and error.filename is not None:
            return FIXES[error.errno].format(error.filename)
        return one_line(error)
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, RuntimeError):
        from onepolicy.sandbox import SandboxError  # late, for --help does without numpy and ctypes
        from onepolicy.tasks.grading import GradingError

        if isinstance(error, (GradingError, SandboxError)):
            return one_line(error)
        if any(TORCH_WRITER.search(str(one)) for one in chain(error)):
            return f"writing a checkpoint failed ({one_line(error)}): is the disk full? {MAKE_ROOM[errno.ENOSPC]}"
    if type(error).__module__.startswith("safetensors"):
        return f"a safetensors file is damaged or incomplete ({one_line(error)}): copy the checkpoint again"
    return None


def memory_hint(error: BaseException) -> str | None:
    """What to do when a GPU or this machine has run out of memory: for below the traceback, which says where."""
    out = type(error).__name__ == "OutOfMemoryError"  # torch's, looked up by name: torch may not be imported
    if not out and not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
        return None
    return (
        "out of memory: lower rollout.batch_size (generation) or optim.tokens_per_batch (learning; neither changes the "
        "result of a step), or set optim.gradient_checkpointing: true"
    )


def _where(error: BaseException) -> str:
    """The file that could not be written, if the exception or one behind it names it; else its message."""
    named = [one.filename for one in chain(error) if isinstance(one, OSError) and one.filename is not None]
    return str(named[0]) if named else one_line(error)


def one_line(error: object) -> str:
    """A message of a library without its line breaks."""
    return " ".join(str(error).split())

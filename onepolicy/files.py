"""Writing files whole or not at all, and checking for free disk space before long work. No torch here.

with whole(path) as scratch:        # path never holds half a file or half a folder
    scratch.write_text(text)
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# errno → what happened. EFBIG is a limit of the process (ulimit -f), for example of a batch system.
FULL = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than this process may write",
}
# Libraries in Rust and C++ keep the number in their message only:
#   safetensors  SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
#   pyarrow      OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device")
ERRNO_IN_TEXT = re.compile(r"\b(?:os error|errno) (\d+)\b", re.IGNORECASE)

WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


class NoSpace(OSError):
    """Too little free space, found before anything was written. The message says how much is needed."""


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A path beside `target` to write a file or a folder to; at the end it is renamed to `target`.

    If anything fails meanwhile, what was written is removed and `target` stays as it was. A kill leaves `.NAME.tmp`.
    A folder `target` that holds files of other names than the new one is not replaced but moved aside.
    Raises OSError, with the errno of a full disk where a library hides it: torch.save raises RuntimeError, safetensors
    an exception of its own.
    """
    scratch = target.with_name(f".{target.name}.tmp")
    remove(scratch)
    try:
        yield scratch
        _sync_all(scratch)
        if target.is_dir():  # only an empty folder can be renamed over
            if not target.is_symlink() and not _names_in(target) <= _names_in(scratch):
                move_aside(target)
            remove(target)
        scratch.rename(target)
        sync(target.parent)
    except BaseException as error:
        remove(scratch)
        number = full_disk(error)
        if number is not None and not isinstance(error, OSError):
            raise OSError(number, FULL[number], str(target)) from error
        _name(error, target)
        raise


def append_whole(path: Path, text: str, sync: bool = False) -> None:
    """Append to a file: all of `text`, or nothing when that fails (a disk that is full after half of it).

    `sync`: return only when it is on the disk, so that a power cut cannot tear it.
    """
    data = text.encode()
    with path.open("ab", buffering=0) as file:
        start = file.tell()
        try:
            written = 0
            while written < len(data):
                written += file.write(data[written:])
            if sync:
                os.fsync(file.fileno())
        except BaseException as error:
            file.truncate(start)
            _name(error, path)
            raise


def move_aside(path: Path) -> None:
    """Keep a folder that holds what we have not written, as NAME.old-TIME beside it; told on stderr."""
    kept = path.with_name(f"{path.name}.old-{time.strftime('%Y%m%d-%H%M%S')}")
    number = 1
    while os.path.lexists(kept):
        number += 1
        kept = path.with_name(f"{path.name}.old-{time.strftime('%Y%m%d-%H%M%S')}-{number}")
    path.rename(kept)
    print(f"warning: {path} holds files that no run has written: it is kept as {kept}", file=sys.stderr)


def remove(path: Path) -> None:
    """A file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def full_disk(error: BaseException) -> int | None:
    """ENOSPC, EDQUOT or EFBIG when one of them is behind an exception of any class; None otherwise.

    Looks along the chain of causes and contexts, at `errno` and, for exceptions that have none, into the message.
    A ValueError's message may quote the user's data and is not read.
    """
    for one in chain(error):
        number = one.errno if isinstance(one, OSError) else None
        if number is None and not isinstance(one, ValueError) and (found := ERRNO_IN_TEXT.search(str(one))):
            number = int(found[1])
        if number in FULL:
            return number
    return None


def chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and those behind it: what it was raised from, what was being handled when it was raised."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is not None and one not in seen:
            seen.append(one)
            yield one
            waiting += [one.__cause__, one.__context__]


def require_space(place: Path, needed: int, what: str, reusable: int = 0) -> None:
    """Check that `needed` bytes fit on the disk of `place`, of which `reusable` are there already, to be replaced.

    Raises NoSpace that names needed and free bytes. A file system that reports no size (some network and
    FUSE mounts) is not judged; a quota of the user is not seen here, and shows when writing fails.
    """
    usage = shutil.disk_usage(existing(place))
    if usage.total > 0 and needed > usage.free + reusable:
        raise NoSpace(
            errno.ENOSPC,
            f"{what} needs {needed:,} bytes, and the disk of {place} has {usage.free + reusable:,} bytes for it: free "
            "some space there, or set another output",
        )


def require_writable(path: Path) -> None:
    """Check that files can be created in the folder `path`, which need not exist yet.

    Raises ValueError when a file is in the way, PermissionError or OSError (EROFS) where nothing may be written.
    """
    parent = existing(path)
    if not parent.is_dir():
        raise ValueError(f"{parent} is a file, and a folder is expected there: set another output")
    if not os.access(parent, os.W_OK | os.X_OK):
        read_only = bool(os.statvfs(parent).f_flag & os.ST_RDONLY)
        number = errno.EROFS if read_only else errno.EACCES
        raise OSError(number, os.strerror(number), str(parent))


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.absolute()
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def folder_bytes(folder: Path) -> int:
    """The size of all files in a folder; 0 when there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def files_in(folder: Path) -> list[Path]:
    """All regular files in a folder and below, hidden ones and those in hidden folders left out."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
    return [path for path in found if path.is_file()]


def _name(error: BaseException, path: Path) -> None:
    """Writing to an open file raises an error that does not say which."""
    if isinstance(error, OSError) and error.filename is None and not isinstance(error, NoSpace):
        error.filename = str(path)


def _names_in(folder: Path) -> set[Path]:
    """All files in a folder and below. The parts that weights are split into count as one."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.with_name("weights") if WEIGHTS.fullmatch(path.name) else path for path in files}


def _sync_all(path: Path) -> None:
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            sync(file)


def sync(path: Path) -> None:
    """Return when a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""The user's cache of checkpoint files: their hashes, and weights converted for teachers. Shared by all runs.

    $ONEPOLICY_CACHE, else $XDG_CACHE_HOME/onepolicy, else ~/.cache/onepolicy
        files/KEY.json               sha256 of a safetensors file, and its first tensor that holds NaN or inf
        converted/KEY.safetensors    a teacher's weights in another dtype or layout than its file's

A hash is valid while the file has the same path, size, times and inode. A conversion is written once, beside its name,
and renamed; a process that needs one that another is writing waits for it. Before a new one is written, those that
were used least recently are removed until all fit into ONEPOLICY_CACHE_GB (200 by default); one that a process uses
stays. The whole folder may be removed at any time when no run is under way: it is made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from onepolicy.merging import is_finite
from onepolicy.runfolder import sha256

DEFAULT_LIMIT_GB = 200.0
KEPT_HASHES = 1000
RACY_NS = 2_000_000_000  # a file changed this recently may change again without another time: its hash is not kept
KEPT_FROM = 2**24  # bytes of a file: a smaller one is hashed faster than its hash is looked up
MARGIN = 2**20  # bytes that stay free on the disk


@dataclass(frozen=True, slots=True)
class FileFacts:
    """The sha256 of a safetensors file, and the name of the first tensor in it with a NaN or inf (None: all finite)."""

    sha256: str
    broken: str | None


class Converted:
    """A converted file in the cache, which no process removes while this object lives."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        weakref.finalize(self, os.close, descriptor)  # and with it goes the lock


def cache_folder() -> Path:
    """Where the cache is; nothing is created."""
    if own := os.environ.get("ONEPOLICY_CACHE"):
        return Path(own).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "onepolicy"


def file_facts(path: Path) -> FileFacts:
    """Hash and finiteness of a safetensors file. Read once; afterwards taken from the cache until the file changes."""
    return _remembered(path.resolve(), "", lambda path: FileFacts(sha256(path), first_nonfinite(path)))


def content_hash(path: Path) -> str:
    """sha256 of any file; that of a large one is kept as `file_facts` keeps them."""
    if path.stat().st_size < KEPT_FROM:
        return sha256(path)
    return _remembered(path.resolve(), "contents ", lambda path: FileFacts(sha256(path), None)).sha256


def _remembered(path: Path, kind: str, read: Callable[[Path], FileFacts]) -> FileFacts:
    """What the cache knows of a file, or what `read` finds, which is then kept."""
    stamp = _stamp(path)
    entry = cache_folder() / "files" / f"{_key(f'{kind}{path}')}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # not there, or torn: it is made again
        known = json.loads(entry.read_text(encoding="utf-8"))
        if known["stamp"] == stamp:
            return FileFacts(known["sha256"], known["broken"])
    facts = read(path)
    if _stamp(path) == stamp and time.time_ns() - path.stat().st_mtime_ns > RACY_NS:
        try:
            _keep_entry(entry, {"path": str(path), "stamp": stamp, "sha256": facts.sha256, "broken": facts.broken})
        except OSError as error:
            print(
                f"warning: the hash of {path} is not kept for the next run, {entry.parent} cannot be written "
                f"({error.strerror}): set ONEPOLICY_CACHE to a folder that can",
                file=sys.stderr,
            )
    return facts


def weights_hash(files: Sequence[Path]) -> str:
    """One sha256 of several safetensors files, in their order."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(bytes.fromhex(file_facts(path).sha256))
    return digest.hexdigest()


def check_finite(files: Sequence[Path], who: str) -> None:
    """Raises ValueError naming the first tensor with NaN or inf, and its file. `who`: "teacher 'math'"."""
    for path in files:
        if name := file_facts(path).broken:
            raise ValueError(
                f"{who}: tensor {name!r} in {path} is not finite (it holds NaN or inf), the weights are broken: take "
                "another checkpoint of it, or write the file again"
            )


def first_nonfinite(path: Path) -> str | None:
    """The first tensor of a safetensors file that holds NaN or inf, one tensor in memory at a time."""
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 (no iterator)
            if not is_finite(file.get_tensor(name)):
                return str(name)
    return None


def open_converted(key: str, folder: Path | None = None) -> Converted | None:
    """The conversion of that name, if it is there; its time of use is now."""
    path = (folder or cache_folder() / "converted") / f"{_key(key)}.safetensors"
    try:
        found = Converted(path, descriptor := os.open(path, os.O_RDONLY))
    except FileNotFoundError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if not os.fstat(descriptor).st_nlink:  # removed before it was locked
        return None
    with contextlib.suppress(PermissionError):  # another user's cache: then only its owner's uses count
        os.utime(path, ns=(time.time_ns(), os.fstat(descriptor).st_mtime_ns))
    return found


def keep_converted(key: str, tensors: Mapping[str, Tensor], folder: Path | None = None) -> Converted:
    """Write a conversion unless it is there. Raises OSError, leaving nothing behind, when the disk has no room."""
    folder = folder or cache_folder() / "converted"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{_key(key)}.safetensors"
    scratch = target.with_suffix(".tmp")
    with _lock_of(scratch).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until another process has written it, if one is at it
        found = open_converted(key, folder)
        if found is not None:
            return found
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        _make_room(folder, size)
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch)
            written = Converted(target, descriptor := os.open(scratch, os.O_RDONLY))
            os.fsync(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            scratch.rename(target)
        except (OSError, SafetensorError) as error:
            raise OSError(f"converted weights ({_gb(size)}) could not be written to {folder}: {error}") from error
        finally:
            scratch.unlink(missing_ok=True)  # renamed by now, or not whole
        return written


def _make_room(folder: Path, size: int) -> None:
    """Remove conversions until `size` more bytes are within the limit, the least recently used first."""
    for leftover in folder.glob("*.tmp"):  # of a process that was killed: nobody holds its lock
        _remove_unlocked(leftover, _lock_of(leftover))
    kept = []
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(FileNotFoundError):  # another process makes room, too
            stat = path.stat()
            kept.append((stat.st_atime_ns, stat.st_size, path))
    total = sum(length for _, length, _ in kept)
    for _, length, path in sorted(kept):
        if total + size > _limit() and _remove_unlocked(path, path):
            total -= length
    free = shutil.disk_usage(folder).free
    if free < size + MARGIN:
        raise OSError(
            f"no room for converted weights: {folder} has {_gb(free)} free and {_gb(size)} are needed; make room, set "
            "ONEPOLICY_CACHE to a folder on another disk, or use teachers in the dtype of their files (dtype: auto)"
        )


def _limit() -> float:
    """Bytes that all conversions together may have."""
    value = os.environ.get("ONEPOLICY_CACHE_GB", DEFAULT_LIMIT_GB)
    try:
        return float(value) * 1e9
    except ValueError:
        raise ValueError(f"ONEPOLICY_CACHE_GB is {value!r}: give a number, for example 200") from None


def _remove_unlocked(path: Path, lock: Path) -> bool:
    """Remove a file unless a process uses it."""
    try:
        with lock.open("r+b") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except (BlockingIOError, PermissionError, FileNotFoundError):
        return False
    return True


def _keep_entry(entry: Path, values: Mapping[str, Any]) -> None:
    """Write one hash, whole or not at all, and forget the oldest of very many."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    scratch = entry.with_name(f".{entry.name}.{os.getpid()}.tmp")
    scratch.write_text(json.dumps(values))
    scratch.replace(entry)
    entries = list(entry.parent.glob("*.json"))
    if len(entries) > KEPT_HASHES:
        with contextlib.suppress(FileNotFoundError):  # another process forgets, too
            for old in sorted(entries, key=lambda path: path.stat().st_mtime_ns)[: len(entries) - KEPT_HASHES]:
                old.unlink()


def _lock_of(path: Path) -> Path:
    """The file to lock while a conversion is written, beside the conversions and not among them."""
    folder = cache_folder() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{_key(str(path.resolve()))}.lock"


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"

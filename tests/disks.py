"""Small disks and read-only ones: real file systems in memory where this user may mount them (root)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs on `folder`, for example with options "size=1m" or "ro". Skips, with a reason that the suite's summary
    shows (conftest.py), where mounting is not allowed."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "onepolicy-test", str(folder)]
    why = "mounting needs root"
    if os.getuid() == 0:
        why = subprocess.run(command, capture_output=True, text=True, check=False).stderr.strip()
    if why:
        pytest.skip(f"NOT TESTED on a file system of its own ({options}): {why}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """A file that takes all the space of a disk but `leave` bytes."""
    ballast = folder / "ballast"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    ballast.write_bytes(b"0" * (free - leave))
    return ballast

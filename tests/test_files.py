"""Files that are whole or not there at all, on disks that are full, read-only or too small. No torch."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from onepolicy import files
from onepolicy.config import parse_run
from onepolicy.files import NoSpace, append_whole, folder_bytes, full_disk, require_space, require_writable, whole
from onepolicy.runfolder import RunFolder, read_rows, write_atomic
from tests.disks import fill, mounted


def run_of(output: Path, **changes: Any) -> Any:
    tasks = {"kind": "letters"}
    common = {"recipe": "sft", "output": str(output), "model": "origin", "steps": 4, "domains": {"a": {"tasks": tasks}}}
    return parse_run(common | changes)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# -- whole or not at all -----------------------------------------------------------------------------------------------


def test_a_file_and_a_folder_are_replaced_when_they_are_whole(tmp_path: Path) -> None:
    for _ in range(2):
        with whole(tmp_path / "file") as scratch:
            scratch.write_text("new")
            assert names(tmp_path) >= {".file.tmp"}
        with whole(tmp_path / "folder") as scratch:
            (scratch / "sub").mkdir(parents=True)
            (scratch / "sub" / "one").write_text("1")
    assert names(tmp_path) == {"file", "folder"}
    assert (tmp_path / "file").read_text() == "new" and (tmp_path / "folder" / "sub" / "one").read_text() == "1"


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")], ids=repr)
def test_what_fails_leaves_what_was_there_and_nothing_half_written(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    with pytest.raises(type(error)) as caught, whole(tmp_path / "folder") as scratch:
        scratch.mkdir()
        (scratch / "new").write_text("half")
        raise error
    assert caught.value is error
    assert names(tmp_path) == {"folder"} and names(tmp_path / "folder") == {"old"}


def test_what_a_kill_has_left_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / ".folder.tmp").mkdir()
    (tmp_path / ".folder.tmp" / "half").touch()
    (tmp_path / ".file.tmp").write_text("half")
    write_atomic(tmp_path / "file", "whole")
    with whole(tmp_path / "folder") as scratch:
        scratch.mkdir()
    assert names(tmp_path) == {"file", "folder"} and names(tmp_path / "folder") == set()


class SafetensorError(Exception):
    """As the library's own, whose message alone has the number."""


def raised_while(inner: Exception, outer: Exception) -> Exception:
    try:
        try:
            raise inner
        except Exception:
            raise outer  # noqa: B904 - the context is the point
    except Exception as error:
        return error


FULL_DISKS = {
    errno.ENOSPC: [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError("Error writing bytes to file. Detail: [errno 28] No space left on device"),  # pyarrow
        raised_while(OSError(errno.ENOSPC, "x"), RuntimeError("[enforce fail at inline_container.cc:672] unexpected")),
        raised_while(raised_while(OSError(errno.ENOSPC, "x"), KeyError("y")), TypeError("z")),
    ],
    errno.EDQUOT: [OSError(errno.EDQUOT, "x"), SafetensorError("I/O error: Disk quota exceeded (os error 122)")],
    errno.EFBIG: [OSError(errno.EFBIG, "x"), SafetensorError("I/O error: File too large (os error 27)")],
    None: [
        OSError(errno.EACCES, "x"),
        ValueError("the response was 'No space left on device (os error 28)'"),  # the user's data
        RuntimeError("unexpected pos 640 vs 598"),
        SafetensorError("Error while deserializing header: InvalidHeaderDeserialization"),
    ],
}


@pytest.mark.parametrize(
    ("number", "error"), [(number, error) for number, errors in FULL_DISKS.items() for error in errors], ids=repr
)
def test_a_full_disk_is_recognised_in_any_class_of_exception(number: int | None, error: Exception) -> None:
    assert full_disk(error) == number


def test_an_exception_that_hides_a_full_disk_is_an_oserror_that_names_the_file(tmp_path: Path) -> None:
    hidden = SafetensorError("I/O error: No space left on device (os error 28)")
    with pytest.raises(OSError, match="no space left on the disk") as caught, whole(tmp_path / "model") as scratch:
        scratch.mkdir()
        raise hidden
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "model")
    assert caught.value.__cause__ is hidden and names(tmp_path) == set()


# -- disks -------------------------------------------------------------------------------------------------------------


def test_nothing_half_written_stays_on_a_full_disk(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m") as disk:
        write_atomic(disk / "report.html", "old")
        append_whole(disk / "rows.jsonl", '{"step": 1}\n')
        ballast = fill(disk, leave=16 * 1024)
        before = {path.name: path.read_bytes() for path in disk.iterdir()}
        for attempt in (
            lambda: write_atomic(disk / "report.html", "new" * 100_000),
            lambda: append_whole(disk / "rows.jsonl", "x" * 300_000),
        ):
            with pytest.raises(OSError) as caught:
                attempt()
            assert caught.value.errno == errno.ENOSPC and str(caught.value.filename) in map(str, disk.iterdir())
            assert {path.name: path.read_bytes() for path in disk.iterdir()} == before
        ballast.unlink()
        append_whole(disk / "rows.jsonl", '{"step": 2}\n')
        assert read_rows(disk / "rows.jsonl") == [{"step": 1}, {"step": 2}]


def test_space_is_looked_at_before_anything_is_written(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m") as disk:
        require_space(disk / "not" / "there" / "yet", 2**20, "the checkpoint")
        with pytest.raises(NoSpace, match=r"the checkpoint needs 1,048,577 bytes, and the disk of .* has 1,048,576"):
            require_space(disk / "not" / "there" / "yet", 2**20 + 1, "the checkpoint")
        require_space(disk, 2**20 + 1, "the checkpoint", reusable=1)
        assert names(disk) == set()


def test_a_file_system_that_reports_no_size_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(total=0, used=0, free=0)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    require_space(tmp_path, 10**12, "the checkpoint")


def test_a_run_whose_checkpoints_cannot_fit_is_refused_with_the_numbers(tmp_path: Path) -> None:
    """3 checkpoints at one time (keep 2 and the next one) and the model; fewer when the run writes fewer."""
    with mounted(tmp_path / "disk", "size=1m") as disk:
        run = run_of(disk / "run", steps=10, checkpoint={"every": 1, "keep": 2})
        folder = RunFolder(run)
        folder.require_room(300_000, 100_000)
        with pytest.raises(NoSpace, match=r"3 checkpoints at one time, 330,000 bytes each.* needs 1,090,000 b"):
            folder.require_room(330_000, 100_000)
        # what a resumed run has there already will be replaced, or was counted before
        (folder.path / "checkpoints" / "step-000001").mkdir(parents=True)
        (folder.path / "checkpoints" / "step-000001" / "learner.pt").write_bytes(b"0" * 300_000)
        folder.require_room(300_000, 100_000)
        folder.close()
        once = RunFolder(run_of(disk / "once", steps=10, checkpoint={"every": 10, "keep": 2}))
        once.require_room(600_000, 100_000)
        once.close()


def test_a_resumed_run_clears_away_what_was_half_written_before_it_writes(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m") as disk:
        run = run_of(disk / "run")
        RunFolder(run).close()
        (disk / "run" / "checkpoints" / ".step-000002.tmp").mkdir(parents=True)
        half = disk / "run" / "checkpoints" / ".step-000002.tmp" / "learner.pt"
        half.write_bytes(b"0" * (os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
        RunFolder(run).close()
        assert names(disk / "run" / "checkpoints") == set()


def test_a_disk_that_may_only_be_read_is_refused(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "ro") as disk, pytest.raises(OSError, match="Read-only file system") as caught:
        require_writable(disk / "runs" / "student")
    assert caught.value.errno == errno.EROFS


def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs").mkdir(mode=0o500)
    if os.getuid() == 0:  # root may write anywhere: what an ordinary user would be told
        monkeypatch.setattr(files.os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError) as caught:
        require_writable(tmp_path / "theirs" / "runs" / "student")
    assert caught.value.filename == str(tmp_path / "theirs")


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(ValueError, match=r"runs is a file, and a folder is expected there"):
        require_writable(tmp_path / "runs" / "student")
    with pytest.raises(ValueError, match=r"runs is a file"):
        RunFolder(run_of(tmp_path / "runs" / "student"))


def test_the_size_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "one").write_bytes(b"0" * 1000)
    (tmp_path / "sub" / "two").write_bytes(b"0" * 234)
    assert folder_bytes(tmp_path) == 1234 and folder_bytes(tmp_path / "nothing") == 0

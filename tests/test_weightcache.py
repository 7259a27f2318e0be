"""The cache of checkpoint files: what it says is true of the file as it is now, and it never holds half a file."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from onepolicy.weightcache import cache_folder, check_finite, file_facts, keep_converted, open_converted

OLD = time.time_ns() - 3600 * 10**9
SOME = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONEPOLICY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def stored(path: Path, tensors: dict[str, torch.Tensor], changed: int = OLD) -> Path:
    save_file(tensors, path)
    os.utime(path, ns=(changed, changed))
    return path


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("ONEPOLICY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "onepolicy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "onepolicy"


def test_a_hash_is_kept_until_the_file_changes(cache: Path, tmp_path: Path) -> None:
    path = stored(tmp_path / "m.safetensors", SOME)
    true = hashlib.sha256(path.read_bytes()).hexdigest()
    assert file_facts(path).sha256 == true
    (entry,) = (cache / "files").iterdir()
    entry.write_text(json.dumps(json.loads(entry.read_text()) | {"sha256": "from the cache"}))
    assert file_facts(path).sha256 == "from the cache"
    os.utime(path, ns=(OLD, OLD + 1))
    assert file_facts(path).sha256 == true
    entry.write_text("torn")
    assert file_facts(path).sha256 == true
    stored(tmp_path / "n.safetensors", {"a": SOME["a"] + 1, "b": SOME["b"]}).replace(path)  # the same size and time
    assert file_facts(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest() != true


def test_the_hash_of_a_file_that_was_just_written_is_not_kept(cache: Path, tmp_path: Path) -> None:
    file_facts(stored(tmp_path / "m.safetensors", SOME, time.time_ns()))
    assert not (cache / "files").exists()


def test_a_cache_that_cannot_be_written_is_said_and_does_no_harm(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.write_text("a file in its place")
    path = stored(tmp_path / "m.safetensors", SOME)
    assert file_facts(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"warning: the hash of {path} is not kept for the next run" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_tensor_that_is_not_finite_is_named_the_second_time_from_the_cache(
    dtype: torch.dtype, value: float, tmp_path: Path
) -> None:
    sick = torch.ones(5, 7, dtype=dtype)
    sick[3, 2] = value
    good = stored(tmp_path / "good.safetensors", {"w": torch.ones(3, dtype=dtype), "n": torch.arange(3)})
    bad = stored(tmp_path / "bad.safetensors", {"empty": torch.empty(0), "fine": torch.ones(3), "sick": sick})
    check_finite([good], "base")
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"^model 'late': tensor 'sick' in .*bad\.safetensors is not finite \(it ho"
        ):
            check_finite([good, bad], "model 'late'")


# -- conversions -------------------------------------------------------------------------------------------------------


def test_a_conversion_is_written_once_and_found_again(cache: Path) -> None:
    assert open_converted("key") is None
    kept = keep_converted("key", SOME)
    found = load_file(kept.path)
    assert found.keys() == SOME.keys() and all(torch.equal(found[name], SOME[name]) for name in SOME)
    inode = kept.path.stat().st_ino
    assert keep_converted("key", {"other": torch.zeros(1)}).path.stat().st_ino == inode
    again = open_converted("key")
    assert again is not None and again.path == kept.path
    assert open_converted("another key") is None
    assert [path.name for path in (cache / "converted").iterdir()] == [kept.path.name]


def test_the_least_recently_used_make_room_and_what_is_in_use_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    size = {"w": torch.zeros(250)}  # 1000 bytes and a header
    monkeypatch.setenv("ONEPOLICY_CACHE_GB", "4e-6")
    for number, key in enumerate(("oldest", "used again", "in use")):
        path = keep_converted(key, size).path
        os.utime(path, ns=(OLD + number, OLD))
    open_converted("used again")
    in_use = open_converted("in use")
    assert in_use is not None
    os.utime(in_use.path, ns=(OLD - 1, OLD))
    keep_converted("new", size)
    there = {key for key in ("oldest", "used again", "in use", "new") if open_converted(key) is not None}
    assert there == {"used again", "in use", "new"}
    monkeypatch.setenv("ONEPOLICY_CACHE_GB", "much")
    with pytest.raises(ValueError, match="ONEPOLICY_CACHE_GB is 'much': give a number"):
        keep_converted("newer", size)


CHILD = """
import sys, torch
from onepolicy.weightcache import keep_converted
tensors = {f"w{i}": torch.full((1000, 500), float(i)) for i in range(10)}
print(keep_converted("shared", tensors).path.stat().st_ino)
"""
LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n" + CHILD


def test_two_processes_that_need_one_conversion_write_it_once(cache: Path) -> None:
    children = [subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    inodes = {child.communicate()[0] for child in children}
    assert [child.returncode for child in children] == [0, 0] and len(inodes) == 1
    (path,) = (cache / "converted").iterdir()
    assert all(tensor.eq(int(name[1:])).all() for name, tensor in load_file(path).items())


def test_a_disk_without_room_leaves_nothing_behind(cache: Path) -> None:
    child = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    last = child.stderr.strip().splitlines()[-1]
    assert last.startswith("OSError: converted weights (0.02 GB) could not be written to") and "File too large" in last
    assert list((cache / "converted").iterdir()) == []


def test_what_a_killed_process_has_left_is_removed(cache: Path) -> None:
    keep_converted("one", SOME)
    script = (
        "import os, torch\nimport onepolicy.weightcache as cache\n"
        "def die(tensors, path):\n    open(path, 'w').write('half')\n    os._exit(9)\n"
        "cache.save_file = die\ncache.keep_converted('torn', {'w': torch.zeros(2)})\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 9
    assert len(list((cache / "converted").glob("*.tmp"))) == 1
    keep_converted("two", SOME)
    assert list((cache / "converted").glob("*.tmp")) == []
    assert open_converted("torn") is None

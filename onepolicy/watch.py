"""The files that a run reads: what they hold is its identity, and none of them may change while it is under way.

A teacher's weights are mapped anew whenever it becomes resident: a file renamed over the old one would go on with
another teacher, and one that was truncated ends the process with SIGBUS. So size, time and inode of each file are
remembered before it is read, and compared whenever it is used. A changed time or inode over the same contents is none.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onepolicy.checkpoints import checkpoint_folder, weight_files
from onepolicy.config import DomainConfig, ModelConfig
from onepolicy.tasks import read_options
from onepolicy.weightcache import content_hash, file_facts, weights_hash

# Beside the weights, what decides how a model computes, reads and writes: part of its identity, as whole files.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
STUDENT = "the model"  # among the identities; not a name that a teacher would have
Identity = dict[str, str]  # part → hash


class FilesChanged(ValueError):
    """A file is not what it was when this process first used it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A file as it was: whose it is, and its contents' hash where that is known."""

    who: str
    size: int
    mtime_ns: int
    inode: int
    sha256: str = ""


class Watch:
    """Remembers files, by stat alone, and says which one has changed."""

    def __init__(self) -> None:
        self._seen: dict[Path, Seen] = {}

    def add(self, who: str, paths: Iterable[Path]) -> None:
        """Remember files as they are now, before they are read. `who`: "teacher 'math'"."""
        for path in paths:
            path = path.absolute()
            if path not in self._seen:
                stat = path.stat()
                self._seen[path] = Seen(who, stat.st_size, stat.st_mtime_ns, stat.st_ino)

    def know(self, hashes: Mapping[Path, str]) -> None:
        """The contents of files that were added: one that is written again, the same, has not changed."""
        for path, sha256 in hashes.items():
            self._seen[path.absolute()] = replace(self._seen[path.absolute()], sha256=sha256)

    def include(self, other: Watch) -> None:
        """Remember the files of another watch, as it has seen them; of those known already, as they were seen here."""
        self._seen = {**other._seen, **self._seen}

    def check(self) -> None:
        """Raises FilesChanged that names the first file that has changed, and how."""
        for path, seen in self._seen.items():
            try:
                stat = path.stat()
            except OSError as error:
                raise _changed(seen, path, f"is gone ({error.strerror})") from None
            if stat.st_size != seen.size:
                raise _changed(seen, path, f"had {seen.size:,} bytes and has {stat.st_size:,} bytes")
            if (stat.st_mtime_ns, stat.st_ino) == (seen.mtime_ns, seen.inode):
                continue
            if not seen.sha256 or content_hash(path) != seen.sha256:
                what = "was written to" if stat.st_ino == seen.inode else "was replaced by another file"
                raise _changed(seen, path, what)
            self._seen[path] = replace(seen, mtime_ns=stat.st_mtime_ns, inode=stat.st_ino)


def _changed(seen: Seen, path: Path, what: str) -> FilesChanged:
    return FilesChanged(
        f"{seen.who}: {path} {what} while this run was under way: restore it and run the same command again (a run "
        "goes on from its last checkpoint), or start a new run with another output"
    )


def model_files(folder: Path) -> list[Path]:
    """Those of MODEL_FILES that a checkpoint has."""
    return [folder / name for name in MODEL_FILES if (folder / name).is_file()]


def model_hashes(folder: Path) -> Identity:
    """name → sha256 of each of MODEL_FILES, "" of one that is not there."""
    there = {path.name for path in model_files(folder)}
    return {name: content_hash(folder / name) if name in there else "" for name in MODEL_FILES}


def contents(folder: Path, files: Iterable[Path]) -> dict[Path, str]:
    """The hash of each of a checkpoint's files, which `files` (its weights) and MODEL_FILES name."""
    beside = {path: content_hash(path) for path in model_files(folder)}
    return {path: file_facts(path).sha256 for path in files} | beside


def identities(
    model: ModelConfig, domains: Mapping[str, DomainConfig], output: Path, watch: Watch
) -> dict[str, Identity]:
    """Of the model that a run starts from, and of each domain's files and modules. `watch` remembers all of them.

    What lies in the run's own folder, `output`, is none of them.
    """
    found: dict[str, Identity] = {}
    if model.path is not None:
        folder = checkpoint_folder(model)
        files = weight_files(folder)
        watch.add("model", [*files, *model_files(folder)])
        found[STUDENT] = {"weights": weights_hash(files), **model_hashes(folder)}
        watch.know(contents(folder, files))
    for name, domain in domains.items():
        options = read_options(name, domain.tasks)
        files = [path for path in options.source_files() if not path.absolute().is_relative_to(output.absolute())]
        named = {str(path): path for path in files} | modules_files(options.import_paths())
        if named:
            watch.add(f"domain {name!r}", named.values())
            hashes = {part: content_hash(path) for part, path in named.items()}
            watch.know({path: hashes[part] for part, path in named.items()})
            found[f"the data of {name}"] = {**hashes, "the list of its files": ", ".join(sorted(hashes))}
    return found


def modules_files(paths: Iterable[str]) -> dict[str, Path]:
    """The source of each "mine:score" that has one, under "module mine"; by name, for a project may move.

    Careful: of the named modules alone, not of what they import.
    """
    files = {}
    for path in paths:
        name = path.partition(":")[0]
        source = getattr(sys.modules.get(name), "__file__", None)
        if source is not None and Path(source).is_file():
            files[f"module {name}"] = Path(source)
    return files


def require_same(was: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ValueError that names who differs from what a checkpoint remembers, and in which parts."""
    for name, old in was.items():
        parts = differing(old, now.get(name, {}))
        if parts:
            raise ValueError(
                f"{name!r} is not what it was when this run was started, it differs in {', '.join(parts)}: "
                "restore it, or start a new run with another output"
            )


def differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The parts that are not what they were. A part that was not remembered (by an older version) is none."""
    return [part for part in was if now.get(part) != was[part]]

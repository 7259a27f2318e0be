"""The run folder: everything a run is and was, so that it can be read, killed at any moment, and resumed exactly.

    config.yaml        what was asked            metrics.jsonl   one row a step
    run.json           versions, seed, place     samples.jsonl   answers to read
    eval/LABEL.json    evaluations               model/          the result: an ordinary Hugging Face folder
    checkpoints/step-N/                          done.json       written last
    check.json         what `onepolicy check` found

A recipe of stages keeps the run folders of these in stages/; one that prepares something keeps it beside, see BEGUN.
A checkpoint is written beside its name, hashed, then renamed; one that does not match its hashes is passed over for the
one before it. Rows of metrics and samples that are newer than the checkpoint resumed from are dropped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import yaml

from onepolicy.circumstances import circumstances, with_start
from onepolicy.config import ConfigError, MergeConfig, RunConfig
from onepolicy.config.file import load_run
from onepolicy.files import append_whole, folder_bytes, move_aside, require_space, require_writable, sync, whole
from onepolicy.leftovers import remove_leftovers

MAY_CHANGE = ("output", "device", "threads", "checkpoint", "eval", "steps", "too_long")  # on resuming a run
MANIFEST = "MANIFEST.json"
CHECKPOINT = ("learner.pt", "facts.json", MANIFEST)  # the files of one
RECORDS = ("metrics.jsonl", "samples.jsonl")  # rows of steps, which a checkpoint counts
BEGUN = ("metrics.jsonl", "checkpoints", "rollouts", "sweep.json", "model")  # where there is one, work has been done
CHECKED = "check.json"  # what `onepolicy check` found, before or after
ARCHIVE_ENTRY = 1024  # bytes of a checkpoint's archive for each entry beside its numbers: a generous estimate
STEP = re.compile(r"step-\d{6,}")
FIRST = (".lock", ".config.yaml.tmp", CHECKED)  # all that a run holds that was killed as it opened its folder
Run = RunConfig | MergeConfig  # of a folder: what trains, and what does not


class RunFolder:
    """One run on disk. Opening it claims it for this process; a second process is refused.

    Raises ValueError as `check_folder` does.
    """

    def __init__(self, config: Run) -> None:
        self.path, self.config = Path(config.output), config
        self.model = self.path / "model"
        check_folder(config)
        require_writable(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = self._claim()
        remove_leftovers(self.path)  # first: they may be what fills the disk
        if self.model.is_dir() and not _is_ours(self.model):
            move_aside(self.model)
        write_atomic(self.path / "config.yaml", _dumped(config))
        if not _has_begun(self.path):
            write_atomic(self.path / "run.json", json.dumps(circumstances(config.seed), indent=1))

    def record_start(self, step: int, threads: int, device: str) -> list[str]:
        """Tell run.json that a process takes steps from `step` on; returns what differs from the process before it."""
        file = self.path / "run.json"
        record, differing = with_start(read_object(file) or circumstances(self.config.seed), step, threads, device)
        write_atomic(file, json.dumps(record, indent=1))
        return differing

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        append_whole(self.path / name, json.dumps(row) + "\n")

    def require_room(self, checkpoint_bytes: int, model_bytes: int) -> None:
        """Check that all checkpoints that are kept at one time, and the result, fit on the disk.

        Raises NoSpace with needed and free bytes. Careful: a run in another process may fill the disk later.
        """
        assert isinstance(self.config, RunConfig), "a run that does not train has no checkpoints"
        written = -(-self.config.steps // self.config.checkpoint.every)
        at_once = min(written, self.config.checkpoint.keep + 1)  # the next one is written before the oldest goes
        there = folder_bytes(self.path / "checkpoints") + folder_bytes(self.model)
        needed = at_once * checkpoint_bytes + model_bytes
        checkpoints = f"{at_once} checkpoint{'s' * (at_once > 1)} at one time, {checkpoint_bytes:,} bytes each"
        what = f"the run in {self.path} ({checkpoints}, and a model of {model_bytes:,} bytes)"
        require_space(self.path, needed, what, reusable=there)

    def rewind(self, step: int) -> None:
        """Forget what is newer than `step`: rows, checkpoints (not used, else we were there), half-written files."""
        for name in RECORDS:
            path = self.path / name
            if path.is_file():
                text = path.read_text(encoding="utf-8", errors="replace")
                kept = "".join(line + "\n" for line in text.splitlines() if _step_of(line) <= step)
                if kept != text:
                    write_atomic(path, kept)
        for folder in self._checkpoints():
            if _step_in(folder) > step:
                _remove_checkpoint(folder)
        remove_leftovers(self.path)

    def save_checkpoint(self, step: int, learner: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """`learner`: what torch saves. `facts`: JSON. Keeps the newest `checkpoint.keep`.

        The rows of all steps until then are on the disk before it, and their numbers in it.
        Raises OSError (ENOSPC) when the disk is full, before anything is written where that can be foreseen. Earlier
        checkpoints stay as they are, so that the run can be resumed once there is space.
        """
        import torch

        records = [self.path / name for name in RECORDS if (self.path / name).is_file()]
        for path in records:
            sync(path)
        rows = {path.name: path.read_bytes().count(b"\n") for path in records}
        folder, text = self.path / "checkpoints" / f"step-{step:06d}", json.dumps({**facts, "rows": rows})
        require_space(folder, tensor_bytes(learner) + len(text), f"the checkpoint of step {step}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with whole(folder) as scratch:
            scratch.mkdir()
            with (scratch / "learner.pt").open("wb") as file:  # given a path, torch.save hides why writing failed
                torch.save(learner, file)
            (scratch / "facts.json").write_text(text)
            hashes = {path.name: sha256(path) for path in sorted(scratch.iterdir())}
            (scratch / MANIFEST).write_text(json.dumps(hashes))
        keep = self.config.checkpoint.keep if isinstance(self.config, RunConfig) else 1
        for old in [folder for folder in self._checkpoints() if (folder / MANIFEST).is_file()][keep:]:
            _remove_checkpoint(old)

    def load_checkpoint(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """(learner, facts) of the newest whole checkpoint that has all its rows, or else of the newest whole one.

        What is passed over, and how many rows or steps are lost, is told on stderr.
        """
        for path in self._strays():
            _warn(f"{path} is no checkpoint and not used: move it away")
        newest: tuple[Path, dict[str, Any], str] | None = None
        for folder in self._checkpoints():
            if not _is_whole(folder):
                _warn(f"checkpoint {folder} is torn and not used: going on from before it")
                continue
            facts = json.loads((folder / "facts.json").read_text())
            lost = self._lost_rows(facts)
            if not lost:
                return _learner(folder), facts
            newest = newest or (folder, facts, lost)
            _warn(
                f"checkpoint {folder} counts rows that are gone ({lost}): going on from before it, if that is possible"
            )
        if newest is not None:
            folder, facts, lost = newest
            _warn(f"no checkpoint before has all of its rows: going on from {folder}, and these are lost: {lost}")
            return _learner(folder), facts
        if steps := len(read_rows(self.path / "metrics.jsonl")):
            _warn(f"no checkpoint in {self.path}: the {steps} steps in metrics.jsonl are lost, starting from step 0")
        return None

    def _lost_rows(self, facts: Mapping[str, Any]) -> str:
        """The rows that a checkpoint counts and that are not there, ready to read."""
        lost = []
        for name, counted in facts.get("rows", {}).items():
            there = sum(row["step"] <= facts["step"] for row in read_rows(self.path / name))
            if there < counted:
                lost.append(f"{counted - there} of {counted} in {name}")
        return " and ".join(lost)

    def finish(self, facts: Mapping[str, Any]) -> None:
        write_atomic(self.path / "done.json", json.dumps(facts, indent=1))
        self.close()

    def close(self) -> None:
        self._lock.close()

    def _checkpoints(self) -> list[Path]:
        """Newest first."""
        found = [path for path in self._in_checkpoints() if STEP.fullmatch(path.name) and path.is_dir()]
        return sorted(found, key=_step_in, reverse=True)

    def _strays(self) -> list[Path]:
        """What lies beside the checkpoints and is none; hidden files are not told."""
        known = {*self._checkpoints()}
        return [path for path in self._in_checkpoints() if path not in known and not path.name.startswith(".")]

    def _in_checkpoints(self) -> list[Path]:
        folder = self.path / "checkpoints"
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def _claim(self) -> IO[str]:
        lock = (self.path / ".lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise ValueError(f"{self.path} is in use by another process: wait for it, or set another output") from None
        return lock


def check_folder(config: Run) -> None:
    """Raises ValueError when the folder holds another run (naming the keys that differ) or something else.

    A run that has not taken a step is none yet: a faulty configuration can be corrected in place.
    """
    path = Path(config.output)
    if (path / "config.yaml").is_file():
        try:
            there = load_run(path)
        except ConfigError as error:
            raise ConfigError(f"{path} holds a run that this version cannot read: {error}") from None
        written = _has_begun(path) or any((path / name).is_file() for name in ("run.json", "done.json"))
        if not written and (path / "config.yaml").read_text(encoding="utf-8") != _dumped(there):
            raise ValueError(
                f"{path} holds a config.yaml that no run has written: it would be overwritten; set another output"
            )
        changed = _differences(there.model_dump(mode="json"), config.model_dump(mode="json"))
        schedule = config.optim.schedule if isinstance(config, RunConfig) else "constant"
        if not changed and schedule != "constant" and there.steps != config.steps:  # its learning rates were others
            changed = [
                f"steps: {there.steps} there, {config.steps} here, and optim.schedule {schedule} depends on them"
            ]
        if changed and _has_begun(path):
            raise ValueError(
                f"{path} holds a run with another configuration ({'; '.join(changed)}): "
                "set another output, or restore these values to resume"
            )
    elif path.is_dir() and any(child.name not in FIRST for child in path.iterdir()):
        raise ValueError(f"{path} is not empty and holds no run: set another output")
    elif path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file: set another output")


def check_folders(configs: Sequence[Run]) -> None:
    """`check_folder` for runs that start later; all faults at once."""
    faults = []
    for config in configs:
        try:
            check_folder(config)
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError("\n".join(faults))


def is_finished(config: Run) -> bool:
    """Whether this very run is done: `steps` may have been raised since, and then it is not."""
    check_folder(config)
    file = Path(config.output) / "done.json"
    done = read_object(file)
    if done is None:
        return False
    if not isinstance(done.get("steps"), int):
        _warn(f"{file} is damaged (it has no steps) and not used")
        return False
    return bool(done["steps"] >= config.steps)


def in_use(path: Path) -> bool:
    """Whether a process is writing this run, now."""
    if not (path / ".lock").is_file():
        return False
    with (path / ".lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def follow_model(path: Path, model: str) -> None:
    """Tell the run in `path`, if there is one, that the model it starts from has moved along with it."""
    file = path / "config.yaml"
    if file.is_file():
        config = yaml.safe_load(file.read_text())
        write_atomic(file, yaml.safe_dump(config | {"model": config["model"] | {"path": model}}, sort_keys=False))


def _has_begun(path: Path) -> bool:
    return any((path / name).exists() for name in BEGUN) or any(map(_has_begun, path.glob("stages/*")))


def _step_in(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _remove_checkpoint(folder: Path) -> None:
    """What we have written of it. The folder stays, and is told, when it holds something else."""
    for name in CHECKPOINT:
        (folder / name).unlink(missing_ok=True)
    if others := sorted(path.name for path in folder.iterdir()):
        _warn(f"{folder} is not removed, for it holds {others[0]}, which is no part of a checkpoint")
    else:
        folder.rmdir()


def _learner(folder: Path) -> dict[str, Any]:
    import torch

    return dict(torch.load(folder / "learner.pt", map_location="cpu", weights_only=True))


def _is_ours(model: Path) -> bool:
    """Whether a model's folder was written by a run; its model card says so."""
    card = model / "README.md"
    return not any(model.iterdir()) or (card.is_file() and "onepolicy" in card.read_text(errors="replace"))


def _dumped(config: Run) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def write_atomic(path: Path, text: str) -> None:
    """The file holds all of `text` (UTF-8), or what it held before."""
    with whole(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; a torn last line is left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if _step_of(line) < float("inf")]


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file of a run; None where there is none, and, with a warning, where it is torn."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        raise ValueError(f"it holds {type(found).__name__}, not an object")
    except (ValueError, RecursionError) as error:
        _warn(f"{path} is damaged ({error}) and not used")
        return None


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # torn: newer than everything


def _is_whole(folder: Path) -> bool:
    try:
        hashes = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    whole = isinstance(hashes, dict) and {*hashes, MANIFEST} == {*CHECKPOINT}
    return whole and all((folder / name).is_file() and sha256(folder / name) == hashes[name] for name in hashes)


def sha256(path: Path) -> str:
    """Of a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    was, now = dict(_dotted(old)), dict(_dotted(new))
    if was["recipe"] != now["recipe"]:  # then most keys differ, and none of them matters
        was, now = ({"recipe": keys["recipe"]} for keys in (was, now))
    changed = (key for key in sorted({*was, *now}) if was.get(key) != now.get(key))
    return [f"{key}: {was.get(key)!r} there, {now.get(key)!r} here" for key in changed]


def _dotted(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if not prefix and key in MAY_CHANGE:
            continue
        if isinstance(value, Mapping) and value:
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def tensor_bytes(state: Any) -> int:
    """What torch.save writes for nested dicts and lists of tensors: each storage once, and the archive around them."""
    import torch

    storages: dict[int, int] = {}
    entries, waiting = 0, [state]
    while waiting:
        value = waiting.pop()
        entries += 1
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
    return sum(storages.values()) + ARCHIVE_ENTRY * entries

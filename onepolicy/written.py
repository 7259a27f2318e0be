"""Rollouts on disk: written down a whole batch at a time, read back with the very tokens that were written. No torch.

One JSON object a line. `token_ids` is prompt and response; `spans` are the tokens that the policy wrote, [start, stop):

    {"task": "add/0/7", "question": "add:1+2", "response": "3", "reward": 1.0, "reason": "", "finish": "stop",
     "token_ids": [5, 9, 6, 11, 1], "spans": [[3, 5]]}

A rollout that its grader failed on has `"grader_failed": true`; its reward means nothing. The lines are in the order of
the prompts, then of the rollouts, so that their number says what is still to be written.
Beside them, NAME.seconds has a line per batch: how long it took. Apart, since the rollouts are the same in every run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onepolicy.evaluation import prompt_text, transcript
from onepolicy.files import append_whole
from onepolicy.rewards import is_correct
from onepolicy.runfolder import write_atomic
from onepolicy.types import Array, Sample, Task, Weights

Row = dict[str, Any]
SECONDS = ".seconds"


class RolloutFile:
    """`n` rollouts of each task, `batch` tasks at a time. A batch that a kill has torn is forgotten on opening."""

    def __init__(self, path: Path, tasks: Sequence[Task], n: int, batch: int) -> None:
        """Raises ValueError when the file answers other tasks."""
        self.path, self.tasks, self.n, self.batch = path, tasks, n, batch
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.is_file() else ""
        lines = text.split("\n")[:-1]  # what follows the last line break is torn
        whole = len(lines) if len(lines) == len(tasks) * n else len(lines) - len(lines) % (batch * n)
        kept = "".join(line + "\n" for line in lines[:whole])
        if kept != text:
            write_atomic(path, kept)
        self._clock = time.monotonic()
        self.rows: list[Row] = [json.loads(line) for line in lines[:whole]]
        for row, task in zip(self.rows, self._asked(), strict=False):  # it may not be full yet
            if (row["task"], row["question"]) != (task.id, prompt_text(task)):
                raise ValueError(
                    f"{path} answers {row['question']!r} where {prompt_text(task)!r} is asked now: the tasks have "
                    "changed since it was written; restore them, or set another output"
                )

    @property
    def batches(self) -> list[list[Task]]:
        return [list(self.tasks[i : i + self.batch]) for i in range(0, len(self.tasks), self.batch)]

    @property
    def done(self) -> int:
        """How many batches are there."""
        return -(-len(self.rows) // (self.batch * self.n))

    def append(self, samples: Sequence[Sample]) -> None:
        """One batch, all of it or nothing, also when the disk is full."""
        rows = [to_row(sample) for sample in samples]
        append_whole(self.path, "".join(json.dumps(row) + "\n" for row in rows), sync=True)
        self.rows += rows
        now = time.monotonic()
        append_whole(self.path.with_suffix(SECONDS), f"{now - self._clock:.3f}\n")
        self._clock = now

    def samples(self, keep: Literal["all", "correct"]) -> list[Sample]:
        """To train on: not empty, no error of the engine and, for `correct`, graded with the full reward."""
        chosen = []
        for row, task in zip(self.rows, self._asked(), strict=True):
            usable = row["spans"] and row["finish"] != "error"
            correct = is_correct(row["reward"]) and not row.get("grader_failed")
            if usable and (keep == "all" or correct):
                chosen.append(to_sample(row, task))
        return chosen

    def summary(self) -> dict[str, float]:
        """How much was written, and how good it is: the mean reward of what could be graded.

        Counts of failed gradings and errors where there are any.
        """
        lengths = [stop - start for row in self.rows for start, stop in row["spans"]]
        errors = sum(row["finish"] == "error" for row in self.rows)
        failed = sum(bool(row.get("grader_failed")) for row in self.rows)
        rewards = [row["reward"] for row in self.rows if row["finish"] != "error" and not row.get("grader_failed")]
        found = {"rollouts": len(self.rows), "tokens": sum(lengths), "reward": sum(rewards) / max(1, len(rewards))}
        return found | ({"grader_failed": failed} if failed else {}) | ({"error": errors} if errors else {})

    def _asked(self) -> list[Task]:
        return [task for task in self.tasks for _ in range(self.n)]


def seconds_in(folder: Path) -> float:
    """How long the rollouts of a folder took to write, loading their models included."""
    return sum(float(line) for file in folder.glob(f"*{SECONDS}") for line in file.read_text().split())


def to_row(sample: Sample) -> Row:
    edges = np.flatnonzero(np.diff(sample.mask_T.astype(np.int8), prepend=0, append=0))
    row = {
        "task": sample.task.id,
        "question": prompt_text(sample.task),
        "response": transcript(sample),
        "reward": sample.reward,
        "reason": sample.reason,
        "finish": sample.finish,
        "token_ids": sample.token_ids_T.tolist(),
        "spans": edges.reshape(-1, 2).tolist(),
    }
    return row | ({"grader_failed": True} if sample.grader_failed else {})


def to_sample(row: Row, task: Task) -> Sample:
    """To imitate: its reward stays in the file, for a reward in a run's metrics is of what the policy itself wrote."""
    mask_T = np.zeros(len(row["token_ids"]), dtype=bool)
    for start, stop in row["spans"]:
        mask_T[start:stop] = True
    return Sample(
        task,
        np.array(row["token_ids"], dtype=np.int32),
        mask_T,
        np.zeros(int(mask_T.sum()), dtype=np.float32),
        response=row["response"],
        finish=row["finish"],
        weights=Weights(ce=1.0),
    )


class Epochs:
    """Endless passes over some samples, each in an order of its own, given by `seed_of(epoch)` alone."""

    def __init__(self, samples: Sequence[Sample], seed_of: Callable[[int], int]) -> None:
        self.samples, self.seed_of = list(samples), seed_of
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, k: int) -> Sample:
        """The k-th sample since the start of the first pass."""
        epoch, place = divmod(k, len(self.samples))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return self.samples[self._order[place]]

    def _shuffled(self, epoch: int) -> Array:
        return np.random.default_rng(self.seed_of(epoch)).permutation(len(self.samples))

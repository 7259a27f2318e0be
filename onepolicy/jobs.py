"""Runs in processes of their own, some at a time, each after those whose results it reads.

A job is `onepolicy run` on a file beside the run's folder, with its output in a log beside that. What is finished is
not run again; a failed job takes only those with it that read its result. One thread per process: two threads in one
process collapse when the other core is busy. Processes are forked from one that has imported everything and run
nothing: that saves each of them the four seconds that importing torch and transformers takes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from onepolicy.config import AnyRun
from onepolicy.config.file import load_run
from onepolicy.runfolder import in_use, is_finished, read_rows, write_atomic

POLL = 0.2  # seconds
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["onepolicy.commands", "matplotlib.backends.backend_svg"])


@dataclass(frozen=True, slots=True)
class Job:
    """`after` names other jobs."""

    name: str
    config: AnyRun
    after: tuple[str, ...] = ()

    @property
    def output(self) -> Path:
        return self.config.output

    @property
    def log(self) -> Path:
        return self.output.with_name(f"{self.output.name}.log")

    def on(self, device: str) -> Job:
        """The same job on that device."""
        return replace(self, config=self.config.model_copy(update={"device": device}))


def run_jobs(jobs: Sequence[Job], parallel: int, console: Console, devices: Sequence[str] = ()) -> dict[str, str]:
    """Run what is not finished, `parallel` at a time. Returns the failed jobs, each with the reason.

    Each process has one of `devices` to itself, or an even share of it if there are fewer of them than processes; with
    none, a job's own configuration says where it runs. A job whose folder another process is writing (one of an
    interrupted study may still be at it) waits for that.
    """
    finished = {job.name for job in jobs if is_finished(job.config)}
    waiting = [job for job in jobs if job.name not in finished]
    free = list(islice(cycle(devices or [None]), parallel))  # a place for each process: its device
    running: dict[str, tuple[Job, ForkServerProcess, str | None]] = {}
    failed: dict[str, str] = {}
    with _Bars(jobs, console) as bars:
        try:
            while waiting or running:
                for job in list(waiting):
                    if lost := [name for name in job.after if name in failed]:
                        failed[job.name] = f"not run: {lost[0]} failed"
                        waiting.remove(job)
                    elif free and finished.issuperset(job.after) and not in_use(job.output):
                        if is_finished(job.config):  # by that other process
                            finished.add(job.name)
                        else:
                            device = free.pop(0)
                            running[job.name] = job, start(job if device is None else job.on(device)), device
                        waiting.remove(job)
                if waiting or running:
                    time.sleep(POLL)
                for name, (job, process, device) in list(running.items()):
                    bars.update(job)
                    if (code := process.exitcode) is not None:
                        del running[name]
                        free.append(device)
                        if code == 0:
                            finished.add(name)
                            bars.finished(job)
                        elif in_use(job.output):  # that other process was about to start when ours did
                            waiting.append(job)
                        else:
                            failed[name] = f"{last_line(job.log)} (exit code {code}, see {job.log})"
                            bars.failed(job, failed[name])
        finally:
            for _, process, _ in running.values():
                process.terminate()
            for _, process, _ in running.values():
                process.join()
    return failed


def check_finished(jobs: Sequence[Job]) -> None:
    """Raises ValueError for finished jobs whose `after` is to run (again): they have read another result.

    Also for a finished job that was evaluated in another way than it would be now: its score stays as it is.
    """
    by_name = {job.name: job for job in jobs}
    faults = []
    for job in jobs:
        if not is_finished(job.config):
            continue
        for name in (name for name in job.after if not is_finished(by_name[name].config)):
            faults.append(
                f"{job.name} is finished, but {name}, which it has read, {_standing(by_name[name])}: it would be "
                f"compared with what it was not made from; restore the setting or the folder of {name}, remove "
                f"{job.output} to run it again, or set another output"
            )
        was, now = load_run(job.output).eval, job.config.eval
        if (was.n, was.temperature) != (now.n, now.temperature):
            faults.append(
                f"{job.name} is finished, and was evaluated with n {was.n} and temperature {was.temperature:g}, not "
                f"{now.n} and {now.temperature:g}: restore eval, remove {job.output} to run it again, or set another "
                "output"
            )
    if faults:
        raise ValueError("\n".join(faults))


def _standing(job: Job) -> str:
    done = job.output / "done.json"
    if not done.is_file():
        return "is not there any more"
    return f"ended after {json.loads(done.read_text())['steps']} steps and is now to take {job.config.steps}"


def start(job: Job) -> ForkServerProcess:
    """`onepolicy run` in a process of its own."""
    job.output.parent.mkdir(parents=True, exist_ok=True)
    file = job.output.with_name(f"{job.output.name}.yaml")
    write_atomic(file, yaml.safe_dump(job.config.model_dump(mode="json"), sort_keys=False))
    os.environ["OMP_NUM_THREADS"] = "1"  # read when the first of them starts the process that they are forked from
    process = FORKS.Process(target=_run, args=(str(file), str(job.log)))
    process.start()
    return process


def _run(file: str, log: str) -> None:
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream, place in ((0, os.open(os.devnull, os.O_RDONLY)), (1, target), (2, target)):
        os.dup2(place, stream)
    sys.argv = ["onepolicy", "run", file]
    runpy.run_module("onepolicy", run_name="__main__")


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")


class _Bars:
    """A bar per running job on a terminal, and a line per finished one anywhere."""

    def __init__(self, jobs: Sequence[Job], console: Console) -> None:
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        facts = TextColumn("{task.fields[facts]}")
        self.console = console
        self.bar = Progress(*columns, facts, console=console, disable=not console.is_terminal)
        self.tasks: dict[str, TaskID] = {}
        self.width = max((len(job.name) for job in jobs), default=0)

    def __enter__(self) -> _Bars:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def update(self, job: Job) -> None:
        if self.bar.disable:
            return
        if job.name not in self.tasks:
            self.tasks[job.name] = self.bar.add_task(job.name, total=job.config.steps or None, facts="")
        for row in read_rows(job.output / "metrics.jsonl")[-1:]:
            self.bar.update(self.tasks[job.name], completed=row["step"], facts=facts(row))

    def finished(self, job: Job) -> None:
        done = json.loads((job.output / "done.json").read_text())
        scores = ", ".join(f"{domain} {mean:.2f}" for domain, mean in done["means"].items())
        self._close(job, f"  {job.name:{self.width}} {done['seconds']:5.0f} s   score: {scores or 'not evaluated'}")

    def failed(self, job: Job, why: str) -> None:
        self._close(job, f"  {job.name:{self.width}} failed: {why}")

    def _close(self, job: Job, line: str) -> None:
        if job.name in self.tasks:
            self.bar.remove_task(self.tasks.pop(job.name))
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def facts(row: dict[str, Any]) -> str:
    shown = {"reward": "reward", "reverse_kl": "KL", "cross_entropy": "CE"}
    return "  ".join(f"{label} {row[key]:.3f}" for key, label in shown.items() if key in row)

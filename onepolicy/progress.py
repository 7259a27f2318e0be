"""A progress bar on a terminal; silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

SHOWN = {"reward": "reward", "reverse_kl": "KL", "cross_entropy": "CE"}


def hush_transformers() -> None:
    """No bars of transformers for every file it reads or writes: nobody is there, or ours is on the terminal."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


@contextmanager
def progress(title: str, steps: int, start: int) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Yields `show(step, row of metrics)`: throughput, reward, KL and time left, on stderr."""
    if not sys.stderr.isatty():
        yield lambda step, row: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    title_column, facts_column = TextColumn("[bold]{task.description}"), TextColumn("{task.fields[facts]}")
    columns = (title_column, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), facts_column)
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=steps, completed=start, facts="")
        first: list[float] = []

        def show(step: int, row: Mapping[str, float]) -> None:
            first[:] = first or [row["tokens"], row["time"]]
            seconds = row["time"] - first[1]
            rate = f"{(row['tokens'] - first[0]) / seconds:,.0f} tok/s" if seconds > 0 else ""
            facts = [f"{label} {row[name]:.3f}" for name, label in SHOWN.items() if name in row]
            bar.update(task, completed=step, facts="  ".join([*facts, rate]))

        yield show

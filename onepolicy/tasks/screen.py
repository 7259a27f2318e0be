"""Tasks that do not fit the model's context, or cannot be rendered: named before the run, and refused or left out.

The model's side says which (`Fault`), `too_long` what happens then. `error` is the default, as in verl (where filtering
is off and truncation an error): no row goes missing unless somebody asked for that. `drop`: such tasks are neither
asked nor trained on nor scored, and counted.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from onepolicy.progress import progress
from onepolicy.tasks.base import Source
from onepolicy.types import Task

Fault = Callable[[Task], str]  # why a task cannot be used; empty when it can
Found = tuple[Task, str]  # a task and its fault
SHOWN = 3  # tasks that a message names
DRAWS = 32  # of a procedural source that are looked at before the run
MAX_ROWS = 20_000  # that are tokenised before the run; of more rows, the longest by characters (a minute, at most)


class Screen:
    """`asked` judges what is to be answered, `trained` what is to be trained on: the same, but for demonstrations.

    `dropped` counts training draws by domain; who logs it clears it.
    """

    def __init__(self, asked: Fault, too_long: Literal["drop", "error"], trained: Fault | None = None) -> None:
        self.asked, self.trained, self.too_long = asked, trained or asked, too_long
        self.dropped: Counter[str] = Counter()
        self._told: set[tuple[str, str]] = set()  # the same domain may be drawn from in several places

    def passes(self, task: Task) -> bool:
        """Whether a training task can be used. Raises ValueError when it cannot and `too_long` is error."""
        fault = self.trained(task)
        if not fault:
            return True
        self.dropped[task.domain] += 1
        self._judge(task.domain, "drawn to train on", [(task, fault)], 0)
        return False

    def held_out(self, domain: str, tasks: Sequence[Task]) -> list[Task]:
        """Those that can be asked. Raises ValueError when that is not all (`error`), or none."""
        found = [(task, fault) for task in tasks if (fault := self.asked(task))]
        self._judge(domain, "held-out prompts", found, len(tasks))
        if len(found) == len(tasks):
            raise ValueError(f"domain {domain!r}: none of its {len(tasks)} held-out prompts is left: {_named(found)}")
        faulty = {id(task) for task, _ in found}
        return [task for task in tasks if id(task) not in faulty]

    def look_ahead(
        self, domain: str, source: Source, task_at: Callable[[int], Task], is_held_out: Callable[[Task], bool]
    ) -> None:
        """Name the rows that cannot be trained on before anything long starts: all of them, of a source with rows.

        Of a procedural source the first draws. What is not looked at here is judged when it is drawn. `task_at` draws
        from the source as training does.
        """
        reader = getattr(source, "reader", None)
        rows = DRAWS if reader is None else len(reader.rows)  # the draws of a first pass are every row, once each
        indices: Iterable[int] = range(rows)
        if rows > MAX_ROWS:
            lengths = Counter({index: _characters(task_at(index)) for index in range(rows)})
            indices = sorted(index for index, _ in lengths.most_common(MAX_ROWS))
        count, found, began = min(rows, MAX_ROWS), list[Found](), time.monotonic()
        with progress(f"{domain}: prompts", count, 0) as show:
            for number, index in enumerate(indices, start=1):
                task = task_at(index)
                if not is_held_out(task) and (fault := self.trained(task)):
                    found.append((task, fault))
                show(number, {"tokens": 0, "time": time.monotonic() - began})
        self._judge(domain, "rows" if reader is not None else "first draws", found, rows)
        if found and len(found) == rows:
            raise ValueError(f"domain {domain!r}: none of its {rows} rows can be used: {_named(found)}")

    def _judge(self, domain: str, what: str, found: Sequence[Found], total: int) -> None:
        """Raise or, once before the run, warn."""
        if not found:
            return
        count = f"{len(found)} of its {total} {what}" if total else f"a task {what}"
        if self.too_long == "error":
            raise ValueError(
                f"domain {domain!r}: {count} cannot be used: {_named(found)}; shorten or remove them, lower "
                f"domains.{domain}.max_new_tokens, or leave them out with too_long: drop"
            )
        if total and (domain, what) not in self._told:
            self._told.add((domain, what))
            told = f"{count} cannot be used and are left out (too_long: drop): {_named(found)}"
            print(f"warning: domain {domain!r}: {told}", file=sys.stderr)


def _named(found: Sequence[Found]) -> str:
    named = []
    for task, fault in found[:SHOWN]:
        row = f" (row {task.metadata['row']})" if "row" in task.metadata else ""
        named.append(f"{task.id}{row}: {fault}")
    return "; ".join(named) + ("; …" if len(found) > SHOWN else "")


def _characters(task: Task) -> int:
    return sum(len(str(message.get("content", ""))) for message in task.messages)

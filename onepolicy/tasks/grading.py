"""Grading in one separate process, with a hard limit of CPU time and memory per answer, while generation goes on.

    with Grader(config.domains) as grader:
        grader.submit(samples)      # returns at once; call it as samples finish
        ...
        grader.collect()            # waits, and sets reward and reason of all that was submitted

A sample whose domain is an Environment has taken a turn of an episode: while that goes on, it gets no reward but the
environment's answer, in its `history`; write its next turn and submit it again. Episodes live in the process too.
A bad answer is data: one that makes its grader raise, hang, crash or devour memory is not judged, Grade(0.0, reason,
failed=True), and the rest of the batch is graded as if nothing had happened. Nothing is learnt from a failed grading,
and no score counts it. A process that was killed from outside is another matter: its answer is graded again
(`grading_process.py`). A reward outside [0, 1] is the grader's fault and an error.
Graders get the answer, without the thought. A thought that never ends is no answer: reward 0, and no grader is asked.
What this is not: a sandbox. Graders here may read files and open connections; for code written by a model there is
`onepolicy.sandbox`, which the graders of such domains use.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Self, cast

from onepolicy.config import DomainConfig, did_you_mean
from onepolicy.tasks.episodes import heard, said, valid
from onepolicy.tasks.grading_process import COSTLY, GradingError, Item, Limits, Reply, Worker
from onepolicy.thought import NEVER_ENDS, Separated, separate
from onepolicy.types import Answer, Grade, Sample, Task

__all__ = ["COSTLY", "Grader", "GradingError"]

MAX_RESPONSE = 1_000_000  # characters; of a longer answer the grader sees the end, where the result stands
MAX_REASON = 500  # characters, and no more than four bytes each
BATCH_ITEMS, BATCH_CHARACTERS = 512, 4_000_000  # of one message to the worker
WALL = 10  # seconds of wall time for each of CPU time

UNANSWERED = Grade(0.0, NEVER_ENDS)


class Grader:
    """Grades what is submitted, in order, in the background. Use as a context manager, or call `close`."""

    def __init__(
        self,
        domains: Mapping[str, DomainConfig],
        time_limit_s: float = 5.0,
        memory_limit_gib: float = 4.0,
        wall_limit_s: float | None = None,
    ) -> None:
        """Starts the process, and does not wait for it. Limits are of each answer.

        `time_limit_s`: CPU time of the thread that grades, so that other load on the machine costs no answer its
        reward. `wall_limit_s`: wall time, for graders that sleep or wait (None: ten times `time_limit_s`).
        `memory_limit_gib`: beyond the sources' own. A source with `threads` bounds the time of its answers itself.
        """
        wall_s = WALL * time_limit_s if wall_limit_s is None else wall_limit_s
        if time_limit_s <= 0 or memory_limit_gib <= 0 or wall_s <= 0:
            raise ValueError(
                f"limits must be positive, got {time_limit_s} s of CPU time, {wall_s} s and {memory_limit_gib} GiB"
            )
        self._names = list(domains)
        self._pending: list[tuple[list[Sample], list[Item | None], Future[list[Reply]]]] = []
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        tasks = {name: config.tasks for name, config in domains.items()}
        worker = Worker(tasks, Limits(time_limit_s, wall_s, memory_limit_gib))
        self.take_restarts = worker.take_restarts  # by domain: gradings done again, because a process was gone
        thread = threading.Thread(target=_serve, args=(self._jobs, worker), name="grading", daemon=True)
        thread.start()
        self.close = weakref.finalize(self, _stop, self._jobs, worker, thread)  # also at garbage collection and exit

    def submit(self, samples: Sequence[Sample]) -> None:
        """Queue samples for grading and return at once. Raises ValueError on a domain that is not this grader's."""
        samples = list(samples)
        items = [_item(sample) for sample in samples]
        self._pending.append((samples, items, self._enqueue([item for item in items if item is not None])))

    def collect(self) -> list[Sample]:
        """Wait for all that was submitted, set `reward` and `reason`, and return the samples in submission order.

        The reward of an episode that goes on stays None; its response goes into `history`, and the answer behind it.
        Raises GraderBug (a ValueError) when a grader returned no valid reward, GradingError when the process fails.
        """
        pending, self._pending = self._pending, []
        graded = []
        for samples, items, future in pending:
            replies = iter(future.result())
            for sample, item in zip(samples, items, strict=True):
                reply = UNANSWERED if item is None else next(replies)
                if isinstance(reply, Grade):
                    unheard = item is not None and not item.turns and sample.response
                    sample.reward = reply.reward
                    reason = "; ".join(filter(None, (NEVER_ENDS if unheard else "", reply.reason)))
                    sample.reason = valid(reason, MAX_REASON)
                    sample.turn_rewards, sample.grader_failed = reply.turn_rewards, reply.failed
                else:
                    answer = separated(sample).answer
                    sample.history = (*sample.history, said(sample.response, answer), *reply.messages)
                    sample.response, sample.thought, sample.answer = "", None, None
                graded.append(sample)
        return graded

    def grade(self, items: Sequence[tuple[Task, Answer]]) -> list[Grade]:
        """Grade now and wait: one Grade per (task, response or turns), in order. Raises as `collect` does."""
        whole = [_whole(task, (turns,) if isinstance(turns, str) else turns) for task, turns in items]
        grades = iter(self._enqueue([item for item in whole if item is not None]).result())
        return [UNANSWERED if item is None else cast(Grade, next(grades)) for item in whole]  # since they are over

    def _enqueue(self, items: list[Item]) -> Future[list[Reply]]:
        for item in items:
            name = item.task.domain
            if name not in self._names:
                raise ValueError(f"no grader for domain {name!r}: {did_you_mean(name, self._names)}")
        if not self.close.alive:
            raise GradingError("this grader was closed")
        future: Future[list[Reply]] = Future()
        short = [
            item._replace(
                turns=tuple(text[-MAX_RESPONSE:] for text in item.turns), thought=item.thought[-MAX_RESPONSE:]
            )
            for item in items
        ]
        self._jobs.put((short, future))
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_Job = tuple[list[Item], "Future[list[Reply]]"]


def separated(sample: Sample) -> Separated:
    """Thought and answer of a sample's last turn: the engine's, who knows the tokens, else as its text has them."""
    if sample.thought is None:
        return separate(sample.response)
    return Separated(sample.thought, sample.answer)


def _item(sample: Sample) -> Item | None:
    """What a sample says, None when it is nothing: its thought never ends.

    A sample that has come to its end by a limit has no next turn, and perhaps none that is new. Where it has taken
    turns before, it gets the grade of the state that these have led to.
    """
    over = sample.finish != "stop"
    thought, answer = separated(sample)
    history = heard(sample.history)
    if over and history and (not sample.response or answer is None):
        return Item(sample.task, (), history, over, thought)
    return None if answer is None else Item(sample.task, (answer,), history, over, thought)


def _whole(task: Task, turns: Sequence[str]) -> Item | None:
    """All that is said to a task, None when a thought never ends."""
    parts = [separate(text) for text in turns]
    answers = tuple(part.answer for part in parts if part.answer is not None)
    if len(answers) < len(parts):
        return None
    return Item(task, answers, thought=parts[-1].thought if parts else "")


def _serve(jobs: queue.SimpleQueue[_Job | None], worker: Worker) -> None:
    """The background thread: all waiting jobs at once, until None."""
    with contextlib.suppress(GradingError, OSError):  # reported with the first job, which tries again
        worker.start()
    while waiting := _next_jobs(jobs):
        items = [item for items, _ in waiting for item in items]
        try:
            grades = iter([grade for batch in _batches(items) for grade in worker.grade(batch)])
        except Exception as error:  # whoever collects raises it; the thread must go on
            for _, future in waiting:
                future.set_exception(error)
        else:
            for items, future in waiting:
                future.set_result([next(grades) for _ in items])
    worker.kill()


def _next_jobs(jobs: queue.SimpleQueue[_Job | None]) -> list[_Job]:
    """All jobs that wait, at least one: one message to the worker costs as much as grading dozens of easy answers.

    Empty at the end (None). A None behind other jobs is put back, for the next call.
    """
    waiting: list[_Job] = []
    job = jobs.get()
    while job is not None:
        waiting.append(job)
        try:
            job = jobs.get_nowait()
        except queue.Empty:
            return waiting
    if waiting:
        jobs.put(None)
    return waiting


def _stop(jobs: queue.SimpleQueue[_Job | None], worker: Worker, thread: threading.Thread) -> None:
    worker.close()
    jobs.put(None)
    if thread is not threading.current_thread():
        thread.join()


def _batches(items: list[Item]) -> list[list[Item]]:
    batches: list[list[Item]] = []
    characters = 0
    for item in items:
        length = (
            len(item.thought) + sum(map(len, item.turns)) + sum(len(message["content"]) for message in item.history)
        )
        characters += length
        if not batches or len(batches[-1]) == BATCH_ITEMS or characters > BATCH_CHARACTERS:
            batches.append([])
            characters = length
        batches[-1].append(item)
    return batches

"""What a task source is: it draws questions, knows good answers to them, and grades any answer.

To add one: a file in this folder with an options class and a source class, and one line in `tasks/__init__.py`.
A source whose tasks take several turns is an Environment: instead of grading an answer, it starts an Episode.
Here also: the few helpers that sources share. Nothing here knows how grading is bounded; that is `grading.py`.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import numbers
import os
import random
import signal
import string
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, Self, runtime_checkable

from pydantic import AfterValidator

from onepolicy.config import Strict, did_you_mean
from onepolicy.rewards import TOLERANCE
from onepolicy.types import Answer, Grade, Message, Task

IMPORT_LIMIT_S = 30.0  # of the user's modules
EVAL_SEED = (
    2**31 - 1
)  # of every held-out set, whatever the run's seed: stages and seeds share one and none trains on it


class TaskSource(Protocol):
    """The questions of one domain. Everything is a function of the options, the seed and the index alone.

    A source may also have `prepare()`: what takes long the first time (imports), done by the grading process before the
    first answer's clock starts. One whose grading mostly waits for other processes may have `threads`, how many answers
    are graded at once; it bounds the time of each itself, by `time_limit_s`. And `notes()`, lines that a check shows;
    and `for_gold(task)`, the task as its gold answer is to be graded.
    """

    def draw(self, index: int) -> Task:
        """The task at any index >= 0, always the same one. Distinct indices may give equal prompts."""
        ...

    def grade(self, task: Task, response: str) -> Grade:
        """Reward in [0, 1] for any text whatever. May raise or hang: the grading process bounds both.

        But a failure is no low reward: the answer is then left out of the update. Return 0 for an answer that cannot be
        read; raise, or return Grade(0.0, reason, failed=True), where it could not be judged.

        It sees the task only (the grading process draws nothing), so all it needs rides on the task. Of a policy's
        response it gets the answer, without the thought; with a parameter `thought` it gets that too.
        """
        ...

    def gold(self, task: Task) -> str | None:
        """An answer that must score 1.0, or None when the source knows none."""
        ...

    def demonstration(self, task: Task) -> str | Sequence[Message] | None:
        """What supervised finetuning imitates (may be imperfect), or None: a text, or messages from the first turn of
        the assistant to its last.
        """
        ...


class Episode(Protocol):
    """One task under way. Deterministic in what it is told, so that it can be played again after a crash.

    May raise or hang in either method: the grading process, where episodes live, bounds both.
    """

    def step(self, text: str) -> str | Sequence[Message] | Grade:
        """Take a turn of the policy, any text whatever, without its thought. A Grade ends the episode.

        Else the answer: messages for the chat template (not of the assistant's role), or a string, which is one
        message of the role `tool`.
        """
        ...

    def stop(self) -> Grade:
        """The grade when the policy may not go on: it has used up its turns or its tokens."""
        ...


@runtime_checkable
class Environment(Protocol):
    """A source of tasks that take turns: like TaskSource, but for `start` in the place of `grade`.

    Answers to imitate and gold answers are tuples, a text for every turn. `max_turns` is how many a policy may take.
    """

    max_turns: int

    def draw(self, index: int) -> Task: ...

    def start(self, task: Task) -> Episode:
        """A fresh episode; like `grade`, from what rides on the task alone."""
        ...

    def gold(self, task: Task) -> Answer | None: ...

    def demonstration(self, task: Task) -> Answer | None: ...


Source = TaskSource | Environment


class SourceOptions(Strict):
    """Base of every source's options: what may stand beside `kind` in the configuration."""

    def held_out(self) -> Self:
        """The options of the source that evaluation draws from. The same, unless evaluation has data of its own."""
        return self

    def source_files(self) -> list[Path]:
        """The files that its questions come from."""
        return []

    def import_paths(self) -> list[str]:
        """Where its graders or its class come from: module:name."""
        return []


class GraderBug(ValueError):
    """A grader returned what is no reward. Unlike a bad answer, this is an error of the run."""


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if not (math.isfinite(bounds[0]) and math.isfinite(bounds[1]) and bounds[0] < bounds[1]):
        raise ValueError(f"reward_range [{bounds[0]:g}, {bounds[1]:g}] is no range: give [lowest, highest]")
    return bounds


RewardRange = Annotated[tuple[float, float], AfterValidator(_ascending)]  # lowest and highest reward
UNIT = (0.0, 1.0)


def as_grade(value: Any, grader: str, reward_range: tuple[float, float] = UNIT) -> Grade:
    """A grader's return value as a Grade: a number, (number, reason) or a Grade, its reward mapped to [0, 1].

    Advantages that are normalised within a group are the same as without the mapping. Raises GraderBug on anything
    else, and on a reward outside `reward_range`.
    """
    turn_rewards: tuple[Any, ...] = ()
    if isinstance(value, Grade) and value.failed:  # then its reward means nothing
        return Grade(0.0, str(value.reason), failed=True)
    if isinstance(value, Grade):
        reward, reason, turn_rewards = value.reward, value.reason, value.turn_rewards
    elif isinstance(value, tuple) and len(value) == 2:
        reward, reason = value
    else:
        reward, reason = value, ""
    try:
        return Grade(
            _reward(reward, reward_range), str(reason), tuple(_reward(one, reward_range) for one in turn_rewards)
        )
    except ValueError:
        low, high = reward_range
        other = "" if reward_range != UNIT else "; another range is declared as reward_range"
        raise GraderBug(
            f"{grader} returned {value!r:.200}: a reward is a number in [{low:g}, {high:g}], or (number, reason){other}"
        ) from None


def _raised_at(error: BaseException) -> str:
    """An exception of the user's code on one line, with file and line."""
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}"
        return f"{type(error).__name__} in {place}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if frame.filename != __file__ and not frame.filename.startswith("<frozen")]
    last = (theirs or frames)[-1]
    return f"{type(error).__name__} in {last.filename}, line {last.lineno}: {' '.join(str(error).split())}"


def _reward(value: Any, reward_range: tuple[float, float]) -> float:
    """Mapped to [0, 1]. Raises ValueError on what is no number in the range, beyond what sums of floats round to."""
    low, high = reward_range
    rounding = TOLERANCE * (high - low)
    if hasattr(value, "item"):  # a numpy scalar
        value = value.item()
    if not isinstance(value, numbers.Real):
        raise ValueError
    number = float(value)
    if not low - rounding <= number <= high + rounding:  # nan fails the comparison
        raise ValueError
    return (min(max(number, low), high) - low) / (high - low)


def seeded(*parts: str | int) -> random.Random:
    """A generator that depends on the parts alone: the same in every process and on every machine."""
    return random.Random("/".join(map(str, parts)))


def with_one_wrong(answer: str, rng: random.Random) -> str:
    """`answer` with one letter or digit replaced by another of its sort: a flawed demonstration of the same length."""
    places = [at for at, character in enumerate(answer) if character.isascii() and character.isalnum()]
    if not places:
        return answer
    at = rng.choice(places)
    kinds = (string.digits, string.ascii_lowercase, string.ascii_uppercase)
    others = next(kind for kind in kinds if answer[at] in kind).replace(answer[at], "")
    return answer[:at] + rng.choice(others) + answer[at + 1 :]


def user_message(text: str) -> tuple[dict[str, str], ...]:
    """A chat of one question."""
    return ({"role": "user", "content": text},)


@contextlib.contextmanager
def _interruptions(module_name: str) -> Iterator[threading.Event]:
    """An import that ends in IMPORT_LIMIT_S, by TimeoutError; the event is set by Ctrl-C.

    Only the main thread can be interrupted: elsewhere there is no limit. What a module prints goes to stderr, since
    stdout may be somebody's data.
    """
    interrupted = threading.Event()

    def on_alarm(*_: object) -> None:
        raise TimeoutError(f"not imported after {IMPORT_LIMIT_S:g} s: what takes long belongs into a function")

    def on_interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    with contextlib.redirect_stdout(sys.stderr):
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield interrupted
            return
        before = signal.signal(signal.SIGALRM, on_alarm), signal.signal(signal.SIGINT, on_interrupt)
        signal.setitimer(signal.ITIMER_REAL, IMPORT_LIMIT_S, 1.0)  # again and again: a module may catch the first
        try:
            yield interrupted
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before[0])
            signal.signal(signal.SIGINT, before[1])


def load_object(path: str) -> Any:
    """Import "module:name"; the working folder counts as importable. Raises ValueError that says what is missing."""
    module_name, colon, name = path.partition(":")
    if not colon or not module_name or not name:
        raise ValueError(f"{path!r} is not of the form module:name")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        with _interruptions(module_name) as interrupted:
            module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"cannot import {module_name!r} ({error}); looked in the working folder too") from None
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # whatever the user's module does when it is imported
        if isinstance(error, KeyboardInterrupt) and interrupted.is_set():
            raise  # Ctrl-C, and not the module's own doing
        raise ValueError(f"cannot import {module_name!r}: {_raised_at(error)}") from None
    if not hasattr(module, name):
        public = [known for known in vars(module) if not known.startswith("_")]
        raise ValueError(f"module {module_name!r} has no {name!r}: {did_you_mean(name, public)}")
    return getattr(module, name)

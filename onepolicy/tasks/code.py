"""Programs, judged by what they compute: tiny ones made here, or the rows of a public set.

    tasks: {kind: code, skills: [numbers, text], level: 2, corrupt: 0.5}
    tasks: {kind: code, path: train.jsonl, eval_path: test.jsonl}
    tasks: {kind: code, hub: openai/openai_humaneval, split: test}

Skills and levels: `code_problems.py`. The shapes of sets and what their rows are judged by: `code_rows.py`. The answer
is the last block fenced as Python, else the last fenced block, else the whole text; one that is cut off, with its fence
not closed, is no answer, and takes back those before it. Programs run in the sandbox
(`onepolicy/sandbox`), many at once; `onepolicy tasks check` says how strong its walls are on this machine, and
`sandbox: strong` refuses to start where a program would see that machine.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from itertools import zip_longest
from typing import Any, Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from onepolicy import sandbox
from onepolicy.sandbox import WALL, Limits, SandboxError, UnitTests, Verdict, Walls
from onepolicy.tasks.base import GraderBug, seeded, user_message, with_one_wrong
from onepolicy.tasks.code_problems import SKILLS, make
from onepolicy.tasks.code_rows import (
    MAX_CASES,
    MAX_TESTS,
    SHAPES,
    Exam,
    Pair,
    Row,
    UnreadableTests,
    exam_of,
    fenced,
    reference_of,
    require_sizes,
)
from onepolicy.tasks.columns import require_size, shown
from onepolicy.tasks.rows import RowReader, SkillsOptions
from onepolicy.thought import NEVER_ENDS, answer_of
from onepolicy.types import Grade, Task

QUESTIONS = ("prompt", "text", "question_content")  # the columns that hold one, in any shape
TOTAL_S, TEST_S = 30.0, 0.1  # seconds for all tests of an answer, and for each where there are many
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


class CodeOptions(SkillsOptions):
    """`partial` rewards the share of passed tests instead of all or nothing.

    Limits: seconds of CPU time for one program, rounded up to whole ones; for all the tests of an answer (what is left
    then has failed; None: 30, or 0.1 for each where a row has more than 300); memory of a process. Wall time may be ten
    times as much, for programs that sleep. Output, memory and time follow the row: where a
    test has megabytes to read or to print, they are wider (`Limits.for_test_of`). A row with a test whose input or
    expected output is above `max_test_mib` is refused.
    """

    known_skills = SKILLS

    partial: bool = False
    time_limit_s: PositiveFloat = 6.0
    total_limit_s: PositiveFloat | None = None
    memory_mib: PositiveInt = 512
    max_test_mib: PositiveInt = 64
    sandbox: Walls = "any"

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.partial and not self.has_rows:
            raise ValueError("partial is for rows with several tests: problems made here are right or wrong")
        return self


class CodeSource:
    """Draws problems, and grades programs. One sandbox serves all sources of a process."""

    def __init__(self, domain: str, options: CodeOptions, seed: int) -> None:
        self.domain, self.options, self.seed = domain, options, seed
        self.reader = RowReader(domain, options, seed, check=self._check) if options.has_rows else None
        seconds = options.time_limit_s
        self.limits = Limits(wall_s=WALL * seconds, cpu_s=math.ceil(seconds), memory_mib=options.memory_mib)
        self.max_size = options.max_test_mib << 20
        # what one answer may take: grading does not cut it short
        self.time_limit_s = WALL * (self._total_s(MAX_TESTS) + seconds + MAX_CASES / 2**20)

    def _check(self, row: Row) -> None:
        reference, _, _ = read_row(row)
        require_sizes(reference, self.max_size)

    def prepare(self) -> None:
        """Find out the sandbox's level and start its slots. Raises SandboxError where there is none, or a weak one."""
        sandbox.require(self.domain, self.options.sandbox)
        sandbox.shared().start()

    @property
    def threads(self) -> int:
        """How many answers to grade at once."""
        return sandbox.shared().slots

    def notes(self) -> list[str]:
        """What a check of this source should tell."""
        return [f"sandbox: {sandbox.strongest()}"]

    def draw(self, index: int) -> Task:
        """Raises ValueError when the rows cannot be read, or are not of a known shape."""
        rng = seeded("code", self.seed, index)
        gold: str | None
        metadata: dict[str, Any]
        reference: dict[str, Any]
        if self.reader is None:
            skill = rng.choice(self.options.skills or tuple(SKILLS))
            question, gold, inputs, outputs = make(skill, self.options.level, rng)
            reference, metadata = {"inputs": inputs, "outputs": outputs}, {"skill": skill}
        else:
            row_number, row = self.reader.at(index)
            reference, question, gold = read_row(row)
            metadata = {"row": row_number}
        shown = with_one_wrong(gold, rng) if gold is not None and rng.random() < self.options.corrupt else gold
        return Task(
            f"{self.domain}/{self.seed}/{index}",
            self.domain,
            user_message(question),
            reference,
            {**metadata, "gold": gold, "demonstration": shown},
        )

    def grade(self, task: Task, response: str) -> Grade:
        """Raises GraderBug when no sandbox starts or the tests cannot be read: that is not the answer's fault.

        A sandbox that broke under the answer is a failed grading; a program over its limits has failed its tests.
        """
        try:
            return self._grade(task, response)
        except (SandboxError, UnreadableTests) as error:
            raise GraderBug(f"programs of domain {self.domain!r} cannot be judged: {error}") from error

    def _grade(self, task: Task, response: str) -> Grade:
        exam = _tiny(**task.reference) if self.reader is None else exam_of(task.reference, self.max_size)
        answer = answer_of(response)
        code = None if answer is None else extract(answer)
        if code is None:
            return Grade(0.0, NEVER_ENDS if answer is None else "the last block of code does not end: no answer")
        program = f"{exam.before}{code}{exam.after}"
        limits = [self.limits.for_test_of(size) for size in exam.sizes or (0,) * len(exam.checks)]
        total_s = self._total_s(len(exam.checks))
        total_s += sum(one.cpu_s - self.limits.cpu_s for one in limits)
        deadline = time.monotonic() + WALL * total_s
        passed, total, spent, reason = 0, 0, 0.0, ""
        for check, limit in zip(exam.checks, limits, strict=True):
            wall_s, cpu_s = deadline - time.monotonic(), total_s - spent
            if wall_s <= 0 or cpu_s <= 0:
                late = f"{total_s:g} s of CPU time" if cpu_s <= 0 else f"{WALL * total_s:g} s"
                verdict = Verdict(False, 0, 1, f"not done after {late}")
            else:
                narrow = replace(limit, wall_s=min(wall_s, limit.wall_s), cpu_s=min(math.ceil(cpu_s), limit.cpu_s))
                verdict = self._verdict(program, check, narrow)
            spent += verdict.cpu_s
            if verdict.broken:
                return Grade(0.0, verdict.reason, failed=True)
            passed, total = passed + verdict.passed, total + verdict.total
            reason = reason or verdict.reason
            if not verdict.ok and not self.options.partial:
                return Grade(0.0, reason)
        return Grade(passed / max(total, 1) if self.options.partial else 1.0, reason)

    def _total_s(self, tests: int) -> float:
        return self.options.total_limit_s or max(TOTAL_S, TEST_S * tests)

    def gold(self, task: Task) -> str | None:
        return self._as_answer(task.metadata["gold"])

    def demonstration(self, task: Task) -> str | None:
        return self._as_answer(task.metadata["demonstration"])

    def _as_answer(self, program: str | None) -> str | None:
        return program if program is None or self.reader is None else fenced(program)

    def _verdict(self, program: str, check: Pair | UnitTests, limits: Limits) -> Verdict:
        if isinstance(check, UnitTests):
            return sandbox.shared().test(program, check, keep_going=self.options.partial, limits=limits)
        outcome = sandbox.shared().run(program, check.stdin, limits=limits)
        reason = outcome.reason
        if outcome.status == "ok" and not same_output(outcome.stdout, check.stdout):
            reason = f"printed {outcome.stdout[:80]!r:.80} and not {check.stdout[:80]!r:.80}"
        return Verdict(not reason, int(not reason), 1, reason, outcome.status == "broken", outcome.cpu_s)


def read_row(row: Row) -> tuple[dict[str, Any], str, str | None]:
    """Reference, question and, where there is one, a program that passes. Raises ValueError."""
    reference = reference_of(row)
    shape = SHAPES[reference["shape"]]
    questions = [row[column] for column in QUESTIONS if row.get(column) is not None]
    if not questions or not all(isinstance(text, str) and text.strip() for text in questions):
        raise ValueError(f"its question is {shown(questions[0] if questions else None)}, and no text")
    require_size(questions[0], "its question")
    try:
        return reference, shape.question(row), shape.gold(row)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"it cannot be read as a row of {reference['shape']}: {error}") from None


def _tiny(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> Exam:
    """An expression's values, printed: cheaper than a call for each."""
    return Exam((Pair("", repr(list(outputs))),), "f = lambda x: ", f"\nprint([f(x) for x in {inputs!r}])")


def extract(response: str) -> str | None:
    """The program in an answer: the last block fenced as Python, else the last fenced block, else the whole text.

    None when that block does not end: it is cut off, and what stands before it was taken back.
    """
    blocks: dict[bool, str] = {}  # the last of each sort; True: marked as Python
    lines: list[str] | None = None  # of the block that is open
    python = False
    for line in response.split("\n"):
        fence = line.strip().startswith("```")
        if fence and lines is None:
            lines, python = [], line.strip().strip("`").strip().lower() in ("python", "py", "python3")
        elif fence and lines is not None:
            blocks[python] = "\n".join(lines)
            lines = None
        elif lines is not None:
            lines.append(line)
    if lines is not None and (python or True not in blocks):
        return None
    return blocks.get(True, blocks.get(False, response))


def same_output(printed: str, expected: str) -> bool:
    """Whether all lines are equal but for the white space around them, or as sequences of decimal numbers."""
    pairs = zip_longest(_lines(printed), _lines(expected))
    return all(a is not None and b is not None and (a == b or _same_numbers(a, b)) for a, b in pairs)


def _lines(text: str) -> Iterator[str]:
    """One by one: as a list, those of megabytes would take many times as much."""
    text = text.strip()
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end].strip()
        start = end + 1
    yield text[start:].strip()


def _same_numbers(line: str, other: str) -> bool:
    ours, theirs = line.split(), other.split()
    if len(ours) != len(theirs) or not all(NUMBER.fullmatch(word) for word in (*ours, *theirs)):
        return False
    return all(Decimal(a) == Decimal(b) for a, b in zip(ours, theirs, strict=True))

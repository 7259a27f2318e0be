r"""Mathematics with answers that can be verified: small problems made here, or the rows of a public set.

    tasks: {kind: math, skills: [add, fraction, equation], level: 2, corrupt: 0.5}
    tasks: {kind: math, path: train.jsonl, eval_path: test.jsonl, prompt: '{question} Put the answer into \boxed{}.'}
    tasks: {kind: math, hub: openai/gsm8k, subset: main, split: train, eval_split: test}

Skills and levels: `math_problems.py`. What counts as right: `math_answers.py`. The shape of a set is told by columns:

    question, answer                   GSM8K: the answer stands behind "####", what is before it is the solution
    problem, solution[, answer]        MATH: the answer is what the solution's last \boxed{} holds, unless given
    problem, answer[, anything else]   BigMath, Polaris: the answer alone
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Self

from pydantic import model_validator

from onepolicy.config import listed
from onepolicy.tasks.base import seeded, user_message, with_one_wrong
from onepolicy.tasks.columns import require_size
from onepolicy.tasks.math_answers import judge
from onepolicy.tasks.math_looks import squeezed
from onepolicy.tasks.math_problems import SKILLS
from onepolicy.tasks.math_reading import NoAnswer, last_boxed, readings
from onepolicy.tasks.rows import Level, RowReader, SkillsOptions
from onepolicy.types import Grade, Task

SHAPES = "question, answer (GSM8K); problem, solution (MATH); problem, answer (BigMath, Polaris)"


class MathOptions(SkillsOptions):
    """`prompt` is a template around {question}."""

    known_skills = SKILLS

    level: Level = 2
    prompt: str = "{question}"

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if "{question}" not in self.prompt:
            raise ValueError(f"prompt {self.prompt!r} nowhere says {{question}}")
        return self


class MathSource:
    """Draws problems, and grades their answers by `math_answers.judge`."""

    def __init__(self, domain: str, options: MathOptions, seed: int) -> None:
        self.domain, self.options, self.seed = domain, options, seed
        self.reader = RowReader(domain, options, seed, check=read_row) if options.has_rows else None

    def prepare(self) -> None:
        """Import math-verify and let its parser learn what answers look like: seconds, which no answer is to pay."""
        for answer in (r"\frac{1}{2}+x^{2^3}", r"\{\sqrt{2}, -3\}", r"(1, \infty]", "y=2x+1", r"\sin(x)\ge 3"):
            judge(answer, f"2{answer}")

    def draw(self, index: int) -> Task:
        """Raises ValueError when the rows cannot be read, or are not of a known shape."""
        rng = seeded("math", self.seed, index)
        metadata: dict[str, Any]
        if self.reader is None:
            skill = rng.choice(self.options.skills or tuple(SKILLS))
            question, reference = SKILLS[skill](rng, self.options.level)
            shown, metadata = reference, {"skill": skill}
        else:
            row_number, row = self.reader.at(index)
            question, reference, shown = read_row(row)
            metadata = {"row": row_number} | {key: row[key] for key in ("level", "type", "difficulty") if key in row}
        if rng.random() < self.options.corrupt:
            shown = with_one_wrong(shown, rng)
        return Task(
            f"{self.domain}/{self.seed}/{index}",
            self.domain,
            user_message(self.options.prompt.replace("{question}", question)),
            reference,
            metadata | {"demonstration": shown, "question": question},
        )

    def grade(self, task: Task, response: str) -> Grade:
        try:
            found = readings(response)
        except NoAnswer as error:
            return Grade(0.0, str(error))
        reference, reason = task.reference, ""
        for answer in found:
            right, why = judge(reference, answer)
            if right and _repeats(answer, task.metadata["question"], reference):
                return Grade(0.0, "a piece of the question, repeated")
            if right:
                return Grade(1.0)
            reason = reason or why
        return Grade(0.0, reason)

    def gold(self, task: Task) -> str:
        return str(task.reference) if self.reader is None else rf"\boxed{{{task.reference}}}"

    def demonstration(self, task: Task) -> str:
        return str(task.metadata["demonstration"])


def _repeats(answer: str, question: str, reference: str) -> bool:
    r"""Whether something to be worked out (no plain number: these occur there) was copied from the question.

    Expressions also when they are copied in another order: \sqrt{3}+\sqrt{12} where \sqrt{12}+\sqrt{3} was asked.
    """
    copied, wanted, asked = squeezed(answer), squeezed(reference), squeezed(question)
    if copied == wanted or not re.search(r"[-+*^=]|\\frac|\\sqrt|[a-z(]/|/[a-z(]", copied.lstrip("-")):
        return False
    letters = sorted(copied)
    if "=" in copied or letters == sorted(wanted):
        return copied in asked
    pieces = (asked[at : at + len(copied)] for at in range(len(asked) - len(copied) + 1))
    return any(sorted(piece) == letters and judge(reference, piece)[0] for piece in pieces)


def read_row(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Question, reference and demonstration of a row. Raises ValueError when its columns are of no known shape."""
    question = row.get("problem", row.get("question"))
    answer, solution = row.get("answer"), row.get("solution")
    if not isinstance(question, str) or not question.strip() or (answer is None and solution is None):
        raise ValueError(
            f"its columns {listed(row)} are none of: {SHAPES}; kind `records` takes any columns, with graders of "
            "your own"
        )
    require_size(question, "its question")
    if answer is not None and (isinstance(answer, bool) or not isinstance(answer, (str, int, float))):
        raise ValueError(f"its answer {answer!r:.80} is no text or number; of a list of right answers, kind `records`")
    if answer is not None and not squeezed(str(answer)):
        raise ValueError("its answer is empty")
    if isinstance(answer, str) and "####" in answer:
        calculated = re.sub(r"<<[^>]*>>", "", answer)  # the calculator's annotations, which nobody is to imitate
        solution, _, answer = (part.strip() for part in calculated.rpartition("####"))
        return question, answer, f"{solution}\n#### {answer}"
    if answer is None:
        answer = last_boxed(str(solution))
        if answer is None:
            raise ValueError(f"its solution has no \\boxed{{}}: {str(solution)[-80:]!r}")
    reference = str(answer).strip()
    return question, reference, str(solution) if solution is not None else rf"\boxed{{{reference}}}"

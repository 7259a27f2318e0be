"""Instructions whose following can be checked: prompts made here, or the records of IFEval and IFBench as they are.

    tasks: {kind: instruction}                                     # plain English, one to four constraints
    tasks: {kind: instruction, scale: small, corrupt: 0.5}         # "5 letters;no e;start x", for the smallest models
    tasks: {kind: instruction, path: input_data.jsonl, mode: loose}

Records have the columns key, prompt, instruction_id_list, kwargs. The constraints are in `instruction_checks.py`
(IFEval), `instruction_ifbench.py` and `instruction_small.py`; the prompts are made in `instruction_prompts.py` and
`instruction_small.py`. An answer is right when it follows all of its constraints, or earns the share that it follows.
Stricter than IFEval: the prompt itself, which often follows its own constraints, is no part of an answer to it (where
it is to be repeated, the other constraints are on what comes after it); and an answer has a letter or a digit in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import Random
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from onepolicy.config import listed
from onepolicy.tasks import instruction_ifbench, instruction_prompts, instruction_small
from onepolicy.tasks.base import seeded, user_message, with_one_wrong
from onepolicy.tasks.columns import require_size
from onepolicy.tasks.instruction_arguments import plain
from onepolicy.tasks.instruction_checks import MAX_RESPONSE, followed, validated
from onepolicy.tasks.instruction_small import Constraint
from onepolicy.tasks.instruction_text import language, visible, words
from onepolicy.tasks.rows import RowReader, RowsOptions
from onepolicy.thought import NEVER_ENDS, answer_of
from onepolicy.types import Grade, Task

SCALES = {"plain": instruction_prompts.draw, "small": instruction_small.draw}
REPEAT = "combination:repeat_prompt"
COLUMNS = ("prompt", "instruction_id_list", "kwargs")
_ = instruction_ifbench  # its import registers its checks

Count = Annotated[int, Field(ge=1, le=4)]


class InstructionOptions(RowsOptions):
    """Records when `path` or `hub` names some; else prompts made here, of a scale and with some number of constraints.

    `mode` is IFEval's: loose also accepts what follows without its first line, last line or asterisks. `partial`
    rewards the share of constraints followed. `corrupt` is the probability that a demonstration of the small scale has
    one wrong letter, which breaks a constraint.
    `unchecked` says what to do with records that have a constraint without a check, or with arguments that it does not
    take: refuse them, or skip them, which a note tells.
    """

    scale: Literal["plain", "small"] = "plain"
    min_constraints: Count = 1
    max_constraints: Count = 4
    mode: Literal["strict", "loose"] = "strict"
    partial: bool = False
    corrupt: Annotated[float, Field(ge=0, le=1)] = 0.0
    unchecked: Literal["refuse", "skip"] = "refuse"

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.min_constraints > self.max_constraints:
            raise ValueError(f"min_constraints {self.min_constraints} is above max_constraints {self.max_constraints}")
        made_here = {"scale", "min_constraints", "max_constraints", "corrupt"} & self.model_fields_set
        if self.corrupt and self.scale != "small":
            raise ValueError(f"corrupt {self.corrupt} is for scale: small; longer answers survive a wrong letter")
        if self.has_rows and made_here:
            raise ValueError(f"{', '.join(sorted(made_here))} is of prompts made here: remove it, or `path` and `hub`")
        return self


class InstructionSource:
    """Draws prompts, and grades their answers constraint by constraint."""

    def __init__(self, domain: str, options: InstructionOptions, seed: int) -> None:
        self.domain, self.options, self.seed = domain, options, seed
        self._left_out: list[str] = []  # why a record was, one each
        keep = self._can_be_checked if options.unchecked == "skip" else None
        self.reader = RowReader(domain, options, seed, keep, read_row) if options.has_rows else None

    def prepare(self) -> None:
        """Load the language detector's profiles (half a second)."""
        language("Any text will do.")

    def notes(self) -> list[str]:
        """What a check of this source should tell."""
        if self.reader is None or not self._left_out:
            return []
        count = f"{len(self._left_out)} of {len(self.reader.rows)} records left out"
        return [f"{self.reader.place}: {count}, the first: {self._left_out[0]}"]

    def _can_be_checked(self, row: Mapping[str, Any]) -> bool:
        try:
            read_row(row)
        except FaultyConstraint as error:
            self._left_out.append(str(error))
            return False
        except ValueError:  # the reader tells of these, with their place
            pass
        return True

    def draw(self, index: int) -> Task:
        """Raises ValueError when the records cannot be read, lack a column or name a constraint without a check."""
        options = self.options
        rng = seeded("instruction", options.scale, self.seed, index)
        metadata: dict[str, Any] = {}
        if self.reader is None:
            count = rng.randint(options.min_constraints, options.max_constraints)
            prompt, constraints, answer = SCALES[options.scale](rng, count)
            shown = _flawed(answer, constraints, rng) if rng.random() < options.corrupt else answer
            metadata = {"answer": answer, "demonstration": shown}
        else:
            row_number, row = self.reader.at(index)
            prompt, constraints = read_row(row)
            metadata = {"row": row_number}
        task_id = f"{self.domain}/{self.seed}/{index}"
        return Task(task_id, self.domain, user_message(prompt), constraints, metadata)

    def grade(self, task: Task, response: str) -> Grade:
        answer = answer_of(response)
        if answer is None:
            return Grade(0.0, NEVER_ENDS)
        response = answer
        if len(response) > MAX_RESPONSE:
            return Grade(0.0, f"{len(response)} characters are more than the {MAX_RESPONSE} that are looked at")
        own, loose = _own_words(response, task), self.options.mode == "loose"
        missed = [
            name
            for name, arguments in task.reference
            if not own or not followed(name, arguments, response if name == REPEAT else own, loose)
        ]
        if not missed:
            return Grade(1.0)
        share = 1 - len(missed) / len(task.reference)
        return Grade(share if self.options.partial else 0.0, f"not followed: {', '.join(missed)}")

    def gold(self, task: Task) -> str | None:
        """The worked-out answer of a prompt made here; records have none."""
        return task.metadata.get("answer")

    def demonstration(self, task: Task) -> str | None:
        return task.metadata.get("demonstration")


class FaultyConstraint(ValueError):
    """A record has a constraint without a check, or one with arguments that it does not take."""


def read_row(row: Mapping[str, Any]) -> tuple[str, tuple[Constraint, ...]]:
    """Prompt and constraints of a record. Raises ValueError on a missing column; FaultyConstraint, which is one too."""
    missing = [column for column in COLUMNS if column not in row]
    if missing:
        raise ValueError(f"its columns {listed(row)} lack {', '.join(missing)}, which IFEval's and IFBench's have")
    if not isinstance(row["prompt"], str):
        raise ValueError(f"its prompt is no text: {row['prompt']!r:.80}")
    require_size(row["prompt"], "its prompt")
    try:
        return row["prompt"], _constraints(plain(row["instruction_id_list"]), plain(row["kwargs"]))
    except ValueError as error:
        raise FaultyConstraint(f"{error} (unchecked: skip leaves such records out)") from None


def _constraints(names: Any, arguments: Any) -> tuple[Constraint, ...]:
    """From the columns as they are: of arguments, None stands for none at all."""
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"its instruction_id_list is no list of names: {names!r:.80}")
    sets = [None] * len(names) if arguments is None else arguments
    if not isinstance(sets, list | tuple) or not all(one is None or isinstance(one, Mapping) for one in sets):
        raise ValueError(f"its kwargs are no list of objects: {arguments!r:.80}")
    if len(names) != len(sets):
        raise ValueError(f"{len(names)} constraints and {len(sets)} sets of arguments, not as many")
    return tuple((name, validated(name, one or {})) for name, one in zip(names, sets, strict=True))


def _own_words(response: str, task: Task) -> str:
    """A response without copies of its prompt, as far as no constraint asks for them; "" when nothing else is left."""
    constraints, prompt = dict(task.reference), task.messages[-1]["content"]
    if any(name.startswith("repeat:") for name in constraints):
        return response
    response = visible(response)
    for copied in (prompt, constraints.get(REPEAT, {}).get("prompt_to_repeat", "")):
        if copied.strip():
            response = re.sub(r"\s+".join(map(re.escape, copied.split())), "", response, flags=re.IGNORECASE)
    said, asked = (" ".join(words(text.lower())) for text in (response, prompt))
    return "" if not said or (said in asked and 2 * len(said) > len(asked)) else response


def _flawed(answer: str, constraints: tuple[Constraint, ...], rng: Random) -> str:
    """An answer with one wrong character that breaks a constraint; its first half when none of eight tries does."""
    for _ in range(8):
        shown = with_one_wrong(answer, rng)
        if not all(followed(name, arguments, shown, loose=False) for name, arguments in constraints):
            return shown
    return answer[: len(answer) // 2]

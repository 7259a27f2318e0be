"""Reward functions as TRL and verl call them, as graders of records.

    grader: "trl:my_rewards:accuracy"        TRL's reward_funcs: keyword lists in, a list of rewards out
    grader: "verl:my_rewards:compute_score"  verl's custom_reward_function

`trl` calls with prompts, completions and every column of the row, as lists of one; also log_extra and log_metric, which
go nowhere. Completions are messages ([{role: assistant, content: ...}], the thought as reasoning_content) where the
row's prompt is a list of messages, else text. There is no trainer here: `completion_ids`, `trainer_state` and
`environments` are not passed, and a function that requires one is refused. A reward of None means that the function
does not apply to this row, as in TRL: other graders' rewards count alone, and where there is none the sample counts as
one whose grader failed.

`verl` calls with data_source (the column, else the domain's name), solution_str, ground_truth (the reference; of verl's
own rows `answer: reward_model.ground_truth`) and extra_info, as far as the function takes them, and reads a number, a
dict with `score`, or a sequence that begins with the score. Sources: `GRPOTrainer._calculate_rewards` (TRL 1.16),
`NaiveRewardManager` (verl).
"""

from __future__ import annotations

import numbers
from collections.abc import Collection, Mapping
from typing import Any

from onepolicy.tasks.base import GraderBug
from onepolicy.tasks.graders import REFERENCE_ALIASES, FunctionGrader, Graded

TRL_NAMES = ("prompts", "completions", "log_extra", "log_metric")
TRL_ABSENT = ("completion_ids", "trainer_state", "environments")
TRL_OWN_COLUMNS = ("prompt", "completion", "completion_ids")  # which TRL does not pass on
VERL_NAMES = ("data_source", "solution_str", "ground_truth", "extra_info")


class TrlGrader(FunctionGrader):
    """A TRL reward function. A call returns a number, or None where the function does not apply."""

    prefix, known = "trl:", (*TRL_NAMES, *REFERENCE_ALIASES)

    def check(self, columns: Collection[str] | None) -> None:
        """Raises ValueError when the parameters cannot be bound."""
        for absent in TRL_ABSENT:
            if absent in self.signature.required and absent not in (columns or ()):
                raise ValueError(
                    f"grader {self.name} requires {absent}, which is not there where responses are graded: give the "
                    "parameter a default, or use a function that reads the text"
                )
        self.signature.require(self.known, columns, f"known are {', '.join(self.known)}")

    def __call__(self, graded: Graded) -> Any:
        completion: Any = graded.response
        if not isinstance(graded.prompt, str):
            completion = [{"role": "assistant", "content": graded.response}]
            if graded.thought:
                completion[0]["reasoning_content"] = graded.thought
        signature = self.signature
        named = {*signature.required, *signature.optional}
        given: dict[str, Any] = {name: [graded.task.reference] for name in REFERENCE_ALIASES if name in named}
        given |= {name: [value] for name, value in graded.columns.items() if name not in TRL_OWN_COLUMNS}
        given |= {"prompts": [graded.prompt], "completions": [completion]}
        given |= {"log_extra": _log_nothing, "log_metric": _log_nothing}
        result = self.call(given)
        try:
            rewards = list(result)
        except TypeError:
            rewards = []
        if len(rewards) != 1:
            raise GraderBug(
                f"grader {self.name} returned {result!r:.200} for one completion: a reward function of TRL returns a "
                "list with one reward for each completion"
            )
        return rewards[0]


def _log_nothing(name: str, value: Any) -> None:
    """Stands for the trainer's log_extra and log_metric."""


class VerlGrader(FunctionGrader):
    """verl's `compute_score`."""

    prefix, known = "verl:", VERL_NAMES

    def check(self, columns: Collection[str] | None) -> None:
        """Raises ValueError when the parameters cannot be bound."""
        if not self.signature.takes("solution_str"):
            raise ValueError(f"grader {self.name} must take solution_str, as verl's compute_score does")
        self.signature.require(self.known, columns, f"known are {', '.join(self.known)}")

    def __call__(self, graded: Graded) -> Any:
        columns = graded.columns
        given = {name: columns[name] for name in self.signature.required if name in columns}
        given |= {
            "data_source": columns.get("data_source", graded.task.domain),
            "solution_str": graded.response,
            "ground_truth": graded.task.reference,
            "extra_info": columns.get("extra_info") or {},
        }
        result = self.call(given)
        if isinstance(result, Mapping):
            if "score" not in result:
                raise GraderBug(f"grader {self.name} returned {result!r:.200}: a dict needs the key score")
            return result["score"], ", ".join(f"{key} {value}" for key, value in result.items() if key != "score")
        if isinstance(result, (list, tuple)) and result and isinstance(result[0], numbers.Real):
            return result[0]
        return result

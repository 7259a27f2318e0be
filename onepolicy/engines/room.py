"""How much a model's context holds: which prompts can be asked with it, and which demonstrations can be shown.

The rule is verl's: prompt tokens + `max_new_tokens` (the domain's, if it has its own) must fit the context. A prompt
that leaves three tokens of room could be asked, but its truncated response would say nothing of the policy. The answers
of an environment within an episode are not known before: an episode that fills the context ends with finish "length".
"""

from __future__ import annotations

from collections.abc import Sequence

from onepolicy.engines.base import Sampling
from onepolicy.engines.local import LocalEngine
from onepolicy.types import Message, Task

MODEL_TITLE = "the model"  # in messages: the student


class Room:
    """Of an engine's model, for responses as long as `sampling` says.

    `whose`: the model whose context it is; a run with teachers has the shortest of all, since each row is read by them.
    """

    def __init__(self, engine: LocalEngine, sampling: Sampling, whose: str = MODEL_TITLE) -> None:
        self.engine, self.sampling = engine, sampling
        self.renderer, self.context = engine.renderer, engine.context
        self.title = f"{whose}'s context"

    def require(self, domains: Sequence[str]) -> None:
        """Raises ValueError where the responses alone would fill the context."""
        for name in domains:
            limit = self.sampling.limit(name)
            if limit >= self.context:
                own = name in (self.sampling.limits or {}) and limit < self.sampling.max_new_tokens
                key = f"domains.{name}.max_new_tokens" if own else "rollout.max_new_tokens"
                raise ValueError(
                    f"{key} is {limit}, and {self.title} is {self.context} tokens, which must hold the prompt "
                    f"too: set {key} below {self.context}"
                )

    def prompt_fault(self, task: Task) -> str:
        """Why a prompt cannot be asked; empty when it can."""
        try:
            tokens = len(self.renderer.prompt_ids(task))
        except ValueError as error:
            return str(error).removeprefix(f"task {task.id!r}: ")
        if not tokens:
            return "the prompt is empty, so the first token has nothing to be predicted from"
        limit = self.sampling.limit(task.domain)
        room = self.engine.room(tokens)
        if limit <= room:
            return ""
        if tokens + room == self.context:
            return f"{tokens} prompt tokens + max_new_tokens {limit} exceed {self.title} of {self.context}"
        return (
            f"{tokens} prompt tokens + max_new_tokens {limit} exceed {tokens + room} tokens, beyond which this "
            "architecture changes the positions of a whole row (LongRoPE)"
        )

    def demonstration_fault(self, task: Task, chat: Sequence[Message]) -> str:
        """Why a demonstration cannot be shown; empty when it can."""
        try:
            tokens = len(self.renderer.demonstration(task, chat)[0])
        except ValueError as error:
            return str(error).removeprefix(f"task {task.id!r}: ")
        if tokens > self.context:
            return f"{tokens} tokens of prompt and demonstration exceed {self.title} of {self.context}"
        return ""

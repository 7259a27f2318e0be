"""Text in, token ids out, and back: the one place that knows the chat template and which tokens end an answer.

Engines, demonstrations and teachers must agree on these to the token, so all of them go through a Renderer.
It renders text only; images and tools have their own renderers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import TemplateError

from onepolicy.types import Array, Task


class Renderer:
    """Renders tasks with `tokenizer` (a Hugging Face tokenizer) and, if given, the model's `generation_config`.

    `stop_ids`: the tokens that end an answer, from generation_config.eos_token_id and the tokenizer.
    `end_id`: the one of them that demonstrations end with: what the chat template writes after an answer.
    Raises ValueError when neither source names a stop token.
    """

    def __init__(self, tokenizer: Any, generation_config: Any = None) -> None:
        self.tokenizer = tokenizer
        from_model = getattr(generation_config, "eos_token_id", None)
        from_model = [] if from_model is None else from_model if isinstance(from_model, Sequence) else [from_model]
        from_tokenizer = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.stop_ids: frozenset[int] = frozenset(map(int, (*from_model, *from_tokenizer)))
        if not self.stop_ids:
            raise ValueError(
                "neither the tokenizer nor the generation config names an end token, so no answer could ever stop: "
                "set tokenizer.eos_token or generation_config.eos_token_id"
            )
        self.end_id = self._find_end_id((*from_tokenizer, *from_model)[0])

    def prompt_ids(self, task: Task) -> list[int]:
        """The ids that the policy continues: the chat with an opened assistant turn.

        A tokenizer without a chat template (a base model's) gets the contents, one per line, as plain text.
        Raises ValueError, naming the task, when its messages cannot be rendered.
        """
        try:
            return self._render(task.messages, add_generation_prompt=True)
        except (TemplateError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"task {task.id!r}: its messages cannot be rendered: {error}") from error

    def demonstration(self, task: Task, answer: str) -> tuple[Array, Array]:
        """(token_ids_T int32, mask_T bool): prompt, answer, end token, exactly as the policy would have to write it.

        The mask is true on the answer and the end token.
        """
        prompt = self.prompt_ids(task)
        answer_ids = [*self.tokenizer.encode(answer, add_special_tokens=False), self.end_id]
        token_ids_T = np.array(prompt + answer_ids, dtype=np.int32)
        return token_ids_T, np.arange(len(token_ids_T)) >= len(prompt)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, without its stop token and without special tokens."""
        if len(ids) and int(ids[-1]) in self.stop_ids:  # a stop token need not be registered as a special one
            ids = ids[:-1]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> list[int]:
        if self.tokenizer.chat_template is None:
            return list(self.tokenizer.encode("\n".join(message["content"] for message in messages)))
        chat = [dict(message) for message in messages]
        encoding = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=True
        )
        return list(encoding["input_ids"])

    def _find_end_id(self, default: int) -> int:
        """Gemma's chats end a turn with another token than tokenizer.eos_token, so look at what the template does."""
        try:
            turn = ({"role": "user", "content": "?"}, {"role": "assistant", "content": "!"})
            written = self._render(turn, add_generation_prompt=False)
        except (TemplateError, KeyError, TypeError, ValueError):
            return default
        return next((token for token in reversed(written) if token in self.stop_ids), default)

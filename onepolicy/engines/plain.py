"""Tokenises text that must stay text: questions, tool results, whatever a row of data holds.

A tokenizer turns "<|im_end|>" into the control token wherever it stands. Here such a string is cut after its first
character, so that no piece is one any more; a chat template sees the cut as a mark that is taken out again behind it:

    content   say <|im_end|>          template   <|im_start|>user\\nsay <MARK|im_end|><|im_end|>
    pieces    "<|im_start|>user\\nsay <"   "|im_end|><|im_end|>"         only the second end is a token
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

from onepolicy.thought import HARMONY, HARMONY_MARKER, MARKERS, speaks_harmony

MARK = "onepolicycut"  # such text as no template alters or splits
TOOL_MARKER = re.compile(r"</?tool_\w+>")
CALL = re.compile(r"<tool_call>\s*\{(?:(?!<tool_call>).)*?\}\s*(</tool_call>)", re.DOTALL)
KNOWN = frozenset(marker for pair in MARKERS for marker in pair) | frozenset(HARMONY)


class PlainText:
    """Tokenises with a Hugging Face tokenizer; `control_ids` are the tokens that text must not turn into.

    Control tokens are special tokens, and added tokens that the chat template writes or that mark thoughts and tool
    calls. Other added tokens are words like any other (Gemma's line breaks and HTML tags), and so is the token for
    unknown characters. A control token of one character cannot be cut: text may become it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def control_ids(self) -> frozenset[int]:
        template = str(self.tokenizer.chat_template or "")
        ids = set[int]()
        for number, token in self.tokenizer.added_tokens_decoder.items():
            text = token.content
            meant = token.special or text in template or text in KNOWN or TOOL_MARKER.fullmatch(text)
            if meant and len(text) > 1 and not text.isspace():
                ids.add(number)
        return frozenset(ids - {self.tokenizer.unk_token_id})

    @cached_property
    def controls(self) -> re.Pattern[str]:
        """Finds control tokens in a text, the longest where one begins with another."""
        tokens = self.tokenizer.convert_ids_to_tokens(sorted(self.control_ids))
        ends: dict[str, list[str]] = {}  # by first character: of Gemma's 6,000 most texts then meet no more than one
        for token in sorted(tokens, key=len, reverse=True):
            ends.setdefault(token[0], []).append(re.escape(token[1:]))
        return re.compile(
            "|".join(f"{re.escape(first)}(?:{'|'.join(rest)})" for first, rest in ends.items()) or r"(?!)"
        )

    def encode(self, text: str, behind: bool = False) -> list[int]:
        """The ids of text in which control tokens are meant. `behind`: other text stands before it.

        Some tokenizers put a space before the first word of a text, which has no place behind other text.
        """
        if behind and self._spaces:
            newline = self._encode("\n")
            ids = self._encode("\n" + text)
            if ids[: len(newline)] == newline:
                return ids[len(newline) :]
        return self._encode(text)

    def ids(self, text: str, behind: bool = False, keep: Collection[int] = ()) -> list[int]:
        """The ids of text in which nothing is a control token, but what begins at one of the places `keep`."""
        ids = list[int]()
        for start, stop in pairwise([0, *self.cuts(text, keep), len(text)]):
            ids += self.encode(text[start:stop], behind or start > 0)
        # What cannot be cut: one character that a normalising tokenizer takes for a token.
        return ids if keep else [token for token in ids if token not in self.control_ids]

    def cuts(self, text: str, keep: Collection[int] = ()) -> list[int]:
        """Places within a text, at which it must be cut so that no piece holds a control token but those to keep."""
        starts = (match.start() for match in self._starts.finditer(text))
        found = {start + 1 for start in starts if start not in keep}
        while more := set(self._look_alikes(text, sorted(found), keep)) - found:
            found |= more
        return sorted(found)

    def marked(self, value: Any, mark: str) -> Any:
        """A nest of texts, lists and mappings with `mark` at every cut; the same where there are none."""
        if isinstance(value, str):
            return _insert(value, self.cuts(value), mark)
        if isinstance(value, Mapping):
            return {key: self.marked(part, mark) for key, part in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, bytes):
            return [self.marked(part, mark) for part in value]
        return value

    def marked_message(self, message: Mapping[str, Any], mark: str) -> dict[str, Any]:
        """A message of a chat, marked. The role is not text, and what the policy has said keeps its own markers."""
        marked = {key: part if key == "role" else self.marked(part, mark) for key, part in message.items()}
        content = message.get("content")
        if message.get("role") == "assistant" and isinstance(content, str):
            marked["content"] = _insert(content, self.cuts(content, own_markers(content)), mark)
        return marked

    def unmarked_ids(self, text: str, mark: str, behind: bool = False) -> list[int]:
        """The ids of a rendered chat, or of a piece of it, whose contents are marked."""
        first, *others = text.split(mark)
        ids = self.encode(first, behind)
        for piece in others:
            ids += self.encode(piece, behind=True)
        return ids

    def _look_alikes(self, text: str, cuts: Sequence[int], keep: Collection[int]) -> Iterator[int]:
        """Cuts for what only a normalising tokenizer takes for a control token, such as letters of full width."""
        for start, stop in pairwise([0, *cuts, len(text)]):
            piece = text[start:stop]
            if self.control_ids.isdisjoint(self._encode(piece)):
                continue
            if not self.tokenizer.is_fast:
                yield from range(start + 1, stop)
                continue
            encoding = self.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
            for token, (begin, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
                if token in self.control_ids and start + begin not in keep and end - begin > 1:
                    yield start + begin + 1

    def _encode(self, text: str) -> list[int]:
        """Raises ValueError for a text that the tokenizer cannot read."""
        try:
            return list(self.tokenizer.encode(text, add_special_tokens=False))
        except Exception as error:  # tokenizers raises Exception itself, for example without a token for unknown words
            name = self.tokenizer.name_or_path
            raise ValueError(f"the tokenizer of {name} cannot read {text!r:.80}: {error}") from error

    @cached_property
    def _starts(self) -> re.Pattern[str]:
        """Finds wherever a control token begins in a text, also inside another."""
        return re.compile(f"(?={self.controls.pattern})" if self.control_ids else r"(?!)")

    @cached_property
    def _spaces(self) -> bool:
        newline = self._encode("\n")
        return self._encode("\na") != [*newline, *self._encode("a")]


def own_markers(text: str, opened: bool = False) -> frozenset[int]:
    """Where the markers begin that the policy itself would write: of a thought at the beginning, and of calls in JSON.

    `opened`: the prompt has opened the thought already. Any other marker in such a text is a mention, and stays text.
    """
    places = set[int]()
    begin = len(text) - len(text.lstrip())
    if speaks_harmony(text):
        places |= {match.start() for match in HARMONY_MARKER.finditer(text) if match.group() not in HARMONY[5:]}
    for opening, closing in MARKERS:
        led = text.startswith(opening, begin)
        closed = text.rfind(closing)
        if closed >= 0 and (led or opened):
            places |= {closed} | ({begin} if led else set())
    for call in CALL.finditer(text):
        places |= {call.start(), call.start(1)}
    return frozenset(places)


def unused_mark(*values: Any) -> str:
    """A mark that none of the values holds."""
    said, mark = repr(values), MARK
    while mark in said:
        mark += "x"
    return mark


def _insert(text: str, places: Sequence[int], mark: str) -> str:
    return mark.join(text[start:stop] for start, stop in pairwise([0, *places, len(text)])) if places else text

"""Reads responses: token ids in, and out come the text that people see, the thought, and the answer.

The rules are those of `onepolicy.thought`. Where a family's markers are tokens, only these tokens count, and the same
characters spelled out are text; where they are plain text, the text counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from onepolicy.thought import (
    HARMONY,
    MARKERS,
    Separated,
    harmony_messages,
    parted,
    separate,
    separate_harmony,
    without_opening,
)

NAMED = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id")
TAIL = 64  # tokens at the end of a prompt, among which the marker stands that opens a thought


class Response(NamedTuple):
    """What the policy said. `thought` is "" without one; `answer` is None when a thought never ends.

    `text` is the whole of it, without what came behind a stop string.
    """

    text: str
    thought: str
    answer: str | None


class ResponseReader:
    """Reads responses with a tokenizer.

    `structure`: the special tokens that the chat template writes around contents (roles, ends of turns). Together with
    the tokens that every tokenizer names (end, padding, ...) they are not shown. All other special tokens are: markers
    of thoughts and calls, and those that a user has added.
    `primed`: the end of a prompt that opens a thought and says its first words, where the chat template does that.
    """

    def __init__(self, tokenizer: Any, structure: frozenset[int], primed: Sequence[int] = ()) -> None:
        self.tokenizer, self.primed = tokenizer, list(primed)
        added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
        tokens = [(added[one], added[other]) for one, other in MARKERS if one in added and other in added]
        self.openings, self.closings = {one for one, _ in tokens}, {other for _, other in tokens}
        self.text_markers = [pair for pair in MARKERS if not (pair[0] in added and pair[1] in added)]
        self.harmony = {added[m]: m for m in HARMONY if m in added}
        if not {"<|start|>", "<|channel|>", "<|message|>"} <= set(self.harmony.values()):
            self.harmony = {}
        meant = {added[marker] for pair in MARKERS for marker in pair if marker in added} | set(self.harmony)
        named = {getattr(tokenizer, name, None) for name in NAMED}
        special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.hidden = frozenset(special & (named | (structure - meant)))

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids as a reader sees it."""
        shown = [int(token) for token in ids if int(token) not in self.hidden]
        return str(self.tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def read(
        self, prompt_ids: Sequence[int], ids: Sequence[int], cut: int | None = None, tools: bool = False
    ) -> Response:
        """A response without its stop token, of which the text ends at character `cut`.

        `tools`: the policy may call some. A call in a channel of Harmony's is then the answer, written as
        <tool_call>{"name": ..., "arguments": ...}</tool_call>, which environments read.
        """
        if self.harmony:
            return self._read_harmony(prompt_ids, ids, cut, tools)
        text = self.text(ids)[:cut]
        opened = self.opened(prompt_ids)
        if opened in self.text_markers or not (opened or self._marked(ids)):
            return Response(text, *separate(text, opened is not None, self.text_markers))
        closing = next((i for i in reversed(range(len(ids))) if int(ids[i]) in self.closings), None)
        if closing is None:
            return Response(text, without_opening(text, _OPENINGS), None)
        start, stop = len(self.text(ids[:closing])), len(self.text(ids[: closing + 1]))
        if stop > len(text):  # a stop string ends in the token that closes the thought
            return Response(text, without_opening(text, _OPENINGS), None)
        reopened = any(int(token) in self.openings for token in ids[closing + 1 :])
        return Response(text, *parted(text, start, stop, reopened))

    def opened(self, prompt_ids: Sequence[int]) -> tuple[str, str] | None:
        """The markers of the thought within which a prompt ends, None when it ends in none.

        Only white space may stand behind the marker, so that a question about "<think>" opens nothing, or the words
        with which the chat template lets thoughts begin.
        """
        prompt_ids = list(prompt_ids)
        if self.primed and prompt_ids[-len(self.primed) :] == self.primed:
            words = self.tokenizer.decode(self.primed, skip_special_tokens=False)
            return next(pair for pair in MARKERS if words.startswith(pair[0]))
        tail = [int(token) for token in prompt_ids[-TAIL:]]
        while tail and not self.text(tail[-1:]).strip() and tail[-1] not in self.hidden:
            tail.pop()
        if not tail:
            return None
        if tail[-1] in self.openings:
            marker = self.tokenizer.convert_ids_to_tokens(tail[-1])
            return next(pair for pair in MARKERS if pair[0] == marker)
        text = str(self.tokenizer.decode(tail, skip_special_tokens=False))  # a role behind the marker counts too
        return next((pair for pair in self.text_markers if text.endswith(pair[0])), None)

    def _marked(self, ids: Sequence[int]) -> bool:
        return any(int(token) in self.openings or int(token) in self.closings for token in ids)

    def _read_harmony(self, prompt_ids: Sequence[int], ids: Sequence[int], cut: int | None, tools: bool) -> Response:
        """The prompt's last message has been begun there: by a role alone, or by a channel too."""
        prompt = [int(token) for token in prompt_ids]
        starts = [i for i, token in enumerate(prompt) if self.harmony.get(token) == "<|start|>"]
        begun = self._pieces(prompt[starts[-1] :])[1:] if starts else []
        (_, first), *others = self._pieces(ids)
        text = first + "".join(marker + piece for marker, piece in others)
        left = len(text) if cut is None else cut
        text = text[:left]
        kept = [(("", first[:left]))]
        left -= len(first)
        for marker, piece in others:
            if left < len(marker):
                break
            kept.append((marker, piece[: left - len(marker)]))
            left -= len(marker) + len(piece)
        if begun:
            marker, piece = begun.pop()
            kept[0] = (marker, piece + kept[0][1])
        pieces = [*begun, *kept]
        separated = separate_harmony(pieces)
        if tools and separated.answer is None and (call := _call(pieces)):
            separated = Separated(separate_harmony(pieces[:-1]).thought, call)
        return Response(text, *separated)

    def _pieces(self, ids: Sequence[int]) -> list[tuple[str, str]]:
        """(marker, text behind it), by the tokens that mark; before the first, the marker is ""."""
        pieces: list[tuple[str, list[int]]] = [("", [])]
        for token in map(int, ids):
            if token in self.harmony:
                pieces.append((self.harmony[token], []))
            else:
                pieces[-1][1].append(token)
        return [(marker, self.text(run)) for marker, run in pieces]


def _call(pieces: Sequence[tuple[str, str]]) -> str:
    """The call with which a response in Harmony's format ends, as environments read calls; "" when there is none."""
    if pieces[-1][0] != "<|message|>":
        return ""
    header, arguments = harmony_messages(pieces)[-1]
    recipient = next((word for word in header if word.startswith("to=")), "")
    name = recipient.removeprefix("to=").removeprefix("functions.")
    return f'<tool_call>{{"name": {json.dumps(name)}, "arguments": {arguments.strip()}}}</tool_call>' if name else ""


class StopStrings:
    """Finds out when a response has said one of some strings. Nothing counts before `minimum` tokens are written."""

    def __init__(self, reader: ResponseReader, strings: Sequence[str], minimum: int = 0) -> None:
        self.reader, self.strings, self.minimum = reader, strings, minimum
        # A token is a byte at least, so no string reaches further back than this, but for tokens that are not shown.
        self.reach = max((len(string.encode()) for string in strings), default=0) + 8

    def find(self, ids: Sequence[int]) -> int | None:
        """Where the text of a response must end, as a place in it; None while it has said none of the strings."""
        if not self.strings or len(ids) < self.minimum:
            return None
        recent = self.reader.text(ids[-self.reach :])
        if not any(string in recent for string in self.strings):
            return None
        text, before = self.reader.text(ids), len(self.reader.text(ids[: max(self.minimum - 1, 0)]))
        places = [text.find(string, max(0, before - len(string) + 1)) for string in self.strings]
        found = [place for place in places if place >= 0]
        return min(found) if found else None


_OPENINGS = re.compile("|".join(re.escape(opening) for opening, _ in MARKERS))

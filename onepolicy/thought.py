"""Separates a response into thought and answer. Plain text and no torch; the Renderer does the same by token ids.

    <think>3+4 is 7</think>\\n\\n7                  thought "3+4 is 7", answer "7"
    3+4 is 7</think>7                              the same: the chat template has opened the thought
    <think>3+4 is 7                                answer None: the thought never ends
    <|channel|>analysis<|message|>3+4 is 7<|end|><|start|>assistant<|channel|>final<|message|>7      Harmony (gpt-oss)

The rules, in one place:

- The answer is everything behind the last closing marker. Nested and repeated thoughts need no count.
- An opening marker behind that is a thought that never ends: no answer, whatever stands before it.
- In a response that closes no thought, an opening marker counts at the start of a line only. In the middle of a line
  it is a mention ("put it into <think> tags"), and the response stays as it is, byte for byte.
- Blank lines between thought and answer belong to neither. Indentation of the answer's first line is kept.
- Of Harmony's channels, `final` is the answer and the others are the thought. Messages that call a tool are no answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

NEVER_ENDS = "the thought never ends: no answer"  # the reason of such a response's reward, 0

# Opening and closing markers of the families that have some.
MARKERS = (
    ("<think>", "</think>"),  # DeepSeek, Qwen, SmolLM3, GLM, Nemotron, OLMo, MiniMax, Phi-4-reasoning, ...
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("<longcat_think>", "</longcat_think>"),  # LongCat
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ("<|channel>", "<channel|>"),  # Gemma 4
    ("◁think▷", "◁/think▷"),  # Kimi-VL
)
HARMONY = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")
HARMONY_MARKER = re.compile("|".join(map(re.escape, HARMONY)))
HARMONY_START = re.compile(r"\s*(?:<\|start\|>\s*assistant\s*)?<\|channel\|>")


class Separated(NamedTuple):
    """`thought` is "" where there is none; `answer` is None when a thought never ends."""

    thought: str
    answer: str | None


def answer_of(response: str) -> str | None:
    """The answer in a response's text, None when its thought never ends. An answer is its own answer."""
    return separate(response).answer


def separate(text: str, opened: bool = False, markers: Sequence[tuple[str, str]] = MARKERS) -> Separated:
    """Thought and answer of a response's text. `opened`: the prompt ends within a thought.

    For example "<think>3+4</think>7" → ("3+4", "7"), and "3+4" with `opened` → ("3+4", None).
    """
    if not opened and HARMONY_START.match(text):
        return separate_harmony(harmony_pieces(text))
    if not markers:
        return Separated(text.strip(), None) if opened else Separated("", text)
    openings, closings = (_any(side) for side in zip(*markers, strict=True))
    closed = list(closings.finditer(text))
    if closed:
        reopened = openings.search(text, closed[-1].end()) is not None
        return parted(text, closed[-1].start(), closed[-1].end(), reopened, openings)
    if opened or re.search(rf"^[^\S\n]*(?:{openings.pattern})", text, re.MULTILINE):
        return Separated(without_opening(text, openings), None)
    return Separated("", text)


def parted(text: str, start: int, stop: int, reopened: bool, openings: re.Pattern[str] | None = None) -> Separated:
    """Thought and answer of a text whose last closing marker stands at [start, stop)."""
    openings = openings or _any([opening for opening, _ in MARKERS])
    if reopened:
        return Separated(without_opening(text, openings), None)
    return Separated(without_opening(text[:start], openings), without_blank_lines(text[stop:]))


def without_opening(text: str, openings: re.Pattern[str]) -> str:
    """A thought without the marker that opens it, and without white space around it."""
    text = text.strip()
    opening = openings.match(text)
    return text[opening.end() :].strip() if opening else text


def without_blank_lines(text: str) -> str:
    """A text without the blank lines that it begins with. Its first line keeps its indentation, if it is a line."""
    blank = re.match(r"(?:[^\S\n]*\n)*", text)
    rest = text[blank.end() if blank else 0 :]
    return rest if rest != text else text.lstrip()


def harmony_pieces(text: str) -> list[tuple[str, str]]:
    """(marker, what follows it) for each of Harmony's markers in a text; the text before the first has marker ""."""
    marks = list(HARMONY_MARKER.finditer(text))
    ends = [*(mark.start() for mark in marks), len(text)]
    pieces = [(mark.group(), text[mark.end() : end]) for mark, end in zip(marks, ends[1:], strict=True)]
    return [("", text[: ends[0]]), *pieces]


def speaks_harmony(text: str) -> bool:
    """Whether a text is a whole response in Harmony's format, with an answer."""
    return HARMONY_START.match(text) is not None and answer_of(text) is not None


def separate_harmony(pieces: Iterable[tuple[str, str]]) -> Separated:
    """Thought and answer of a response in Harmony's format.

    The answer is what the channel `final` says behind the last thought; None when it says nothing there.
    """
    thoughts, answers = list[str](), list[str]()
    for header, text in harmony_messages(pieces):
        if "final" in header:
            answers.append(text)
        else:
            thoughts.append(text.strip())
            answers.clear()
    return Separated("\n".join(thoughts), without_blank_lines("".join(answers)) if answers else None)


def harmony_messages(pieces: Iterable[tuple[str, str]]) -> list[tuple[list[str], str]]:
    """(words of the header, content) of each message: ["assistant", "commentary", "to=functions.look", "json"]."""
    messages, header = list[tuple[list[str], str]](), ""
    for marker, text in pieces:
        if marker == "<|start|>":
            header = text
        elif marker in ("<|channel|>", "<|constrain|>"):
            header += f" {text}"
        elif marker == "<|message|>":
            messages.append((header.split(), text))
    return messages


def _any(markers: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, markers)))

r"""Where the final answer stands in a response, and what number a text writes. No mathematics yet: `math_answers.py`.

The answer is what the last \boxed{} holds, else what follows the last "answer is" (or "####"), else the last line; a
response that gives two different final answers gives none, and so does one whose last \boxed{}, "answer is", "####" or
<answer> is empty or cut off: an earlier candidate is what it has gone back on. Looks: `math_looks.py`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

from onepolicy.tasks.math_looks import group, normal, squeezed
from onepolicy.thought import NEVER_ENDS, answer_of

TAIL, MAX_LINE = 20_000, 1000  # characters: of a response in which its answer is looked for; of a line that holds it


class NoAnswer(ValueError):
    """The response holds no answer that could be graded; the message says why."""


def readings(response: str) -> list[str]:
    """The one final answer, in one or two readings (a whole line, and the number in its words). Raises NoAnswer."""
    said = answer_of(response)
    if said is None:
        raise NoAnswer(NEVER_ENDS)
    text = DISPLAYED.sub(r"\1 \2 \3", said[-TAIL:])
    boxes, whole = _boxes(text)
    if not whole or MARKER.search(text) or _tag_is_cut_off(text):
        raise NoAnswer("the last answer is cut off")
    if boxes:
        if not squeezed(boxes[-1]):
            raise NoAnswer("the last box is empty")
        _refuse_two(boxes, "two different answers are boxed")
        return [boxes[-1]]
    if claims := _claims(text):
        _refuse_two([said for claim in claims if number(said := _sole(claim))], "two different final answers")
        return _line(claims[-1])
    lines = text.strip().splitlines()
    if not lines:
        raise NoAnswer("empty")
    return _line(lines[-1])


def last_boxed(text: str) -> str | None:
    r"""What the last \boxed{} of a solution holds; None when there is none. Raises ValueError when it does not end."""
    boxes, whole = _boxes(text)
    if not whole and not BARE.search(text):
        raise ValueError(rf"its last \boxed{{}} does not end: {text[-80:]!r}")
    boxes = boxes or re.findall(r"\\boxed\s+([^\s${}]+)", text)  # some solutions of MATH have \boxed 5
    return boxes[-1] if boxes else None


# Formulas between lines, as one line; what announces an answer, at the very end, where the answer should follow.
DISPLAYED = re.compile(r"(\\\[|\$\$)[ \t]*\n[ \t]*([^\n]+)\n[ \t]*(\\\]|\$\$)")
CLAIM = r"(?:\banswer[*_]*(?:\s+is\b|\s*[:=])|####)[\s:*]*"
MARKER = re.compile(rf"{CLAIM}\$?\Z|\\(?:b|bo|box|boxe|boxed|f|fb|fbo|fbox)\s*\Z", re.IGNORECASE)
BARE = re.compile(r"\\(?:boxed|fbox)\s*(?=[-+.]?[0-9]|\\[A-Za-z])")  # \boxed 5: read from solutions alone
LINK, MAX_LINK = re.compile(r"[\s$,;()\\]*(?:and|or)?[\s$,;()\\]*"), 30
MAX_BOXES = 4  # in one another


def _boxes(text: str) -> tuple[list[str], bool]:
    r"""What stands in each outermost \boxed{}, and whether the last one ends.

    Several with only "and", "or" or a comma between them are one list.
    """
    found: list[tuple[int, int, str]] = []  # start, end, content
    opened: list[tuple[int, bool]] = []  # where a brace opened, and whether it is a box's
    for brace in re.finditer(r"(\\(?:boxed|fbox)\s*)?(?<!\\)([{}])", text):
        if brace[2] == "{":
            opened.append((brace.start(), brace[1] is not None))
        elif opened:
            start, is_box = opened.pop()
            if is_box and not any(box for _, box in opened):
                content = _within(text[start + 1 : brace.end()])
                found.append((start, brace.end(), content))
    answers: list[str] = []
    before = None
    for start, end, content in found:
        if (
            before is not None
            and start - before < MAX_LINK
            and LINK.fullmatch(text[before:start])
            and squeezed(content)
        ):
            listed = map(squeezed, (answers[-1], *answers[-1].split(",")))
            answers[-1] += "" if squeezed(content) in listed else f",{content}"
        else:
            answers.append(content)
        before = end
    whole = not any(box for _, box in opened) and not (found and BARE.search(text, found[-1][1]))
    return answers, whole


def _within(box: str) -> str:
    r"""What a box holds. Only another one, or Markdown's bold, is taken off: \boxed{\boxed{42}}, \boxed{**42**}."""
    for _ in range(MAX_BOXES):
        inner = re.fullmatch(r"boxed\s*\{\s*\\(boxed\s*(\{.*\}))\s*\}", box, re.DOTALL)
        if inner is None or group(inner[2], 0) != len(inner[2]):
            break
        box = inner[1]
    content = box.partition("{")[2][:-1]
    bold = re.fullmatch(r"\s*\*\*([^*]+)\*\*\s*", content)
    return bold[1] if bold else content


def _tag_is_cut_off(text: str) -> bool:
    """Whether the last <answer> does not end, and is empty or has taken back another one."""
    before, tag, after = text.rpartition("<answer>")
    return bool(tag) and "</answer>" not in after and (not after.strip() or "</answer>" in before)


def _claims(text: str) -> list[str]:
    """What follows "answer is", "answer:" or "####", up to the end of the sentence, if it says something outright."""
    found = re.findall(rf"{CLAIM}([^\n]*?)(?=\n|\banswer\b|####|\Z)", text, re.IGNORECASE)
    sentences = [re.split(r"\.\s", said)[0].strip() for said in found]
    return [sentence for sentence in sentences if sentence and not HEDGES.search(sentence)]


def _line(line: str) -> list[str]:
    """A line as it is, and, unless that is a number, the one number or formula that stands in its words."""
    whole = re.sub(r"[*_`\"']+\.?$", "", line.strip()).strip(" \t*_`\"'")
    sole = _sole(line)
    return [whole] if number(whole) or sole == line else list(dict.fromkeys([whole, sole]))


UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Mn")  # controls, zero-width characters, lone surrogates, accents
HEDGES = re.compile(
    r"\b(?:not|never|n?either|nor|or|maybe|perhaps|possibly|alternatively|between|wrong|unless|guess)\b|n't"
    r"|\b(?:than|at most|at least|about|around|roughly|nearly|almost|approximately|minus|negative)\s+\$?[0-9]"
    r"|[0-9]\s?(?:k|hundred|thousand|[a-z]*illion|dozen|and a half)\b",
    re.IGNORECASE,
)


FORMULA = r"(?<!\\)\$([^$]+)(?<!\\)\$|\\\((.+?)\\\)"


def _sole(line: str) -> str:
    """The one thing in a line of words that can be an answer, or the one in bold; else the line itself."""
    if len(line) > MAX_LINE or HEDGES.search(line) or any(unicodedata.category(c) in UNSEEN for c in line):
        return line
    formulas = set(re.findall(FORMULA, line))
    if formulas:
        if re.search(r"\$|\\\(", re.sub(FORMULA, "", line)):
            return line  # the last one is cut off
        return "".join(formulas.pop()) if len(formulas) == 1 else line
    left, _, result = re.sub(r"</?[A-Za-z]+>", " ", line).rpartition("=")
    before = number(left)
    if (before and not before.unit and not before.percent) or re.search(r"[<>~≈≤≥≠]\s*-?[0-9]", result):
        return line  # 46 = 47; more than 47
    if len(bold := re.findall(r"\*\*([^*]+)\*\*", line)) == 1 and number(bold[0].rstrip(":")):
        return str(bold[0])
    unit = "|".join(sorted(UNITS, key=len, reverse=True))
    numbers = set(re.findall(rf"(?<![\w.])-?(?:{_DECIMAL})(?:/[0-9]+)?%?(?:\s?(?:{unit})s?\b)?", result))
    return numbers.pop() if len(numbers) == 1 and not re.search(r"[\\^_({\[]", result) else line


def _refuse_two(answers: list[str], reason: str) -> None:
    if len(set(map(squeezed, answers))) > 1:
        raise NoAnswer(reason)


_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(
    rf"""(?P<sign>[+-]?) [ ]? [€£¥]? [ ]?
    (?: (?P<mixed>[0-9]+) [ ]? (?=\\frac) | (?P<spaced>[0-9]+) [ ] (?=[0-9]+[ ]?/) )?
    (?: \\frac[ ]?\{{ [ ]?(?P<top>-?[0-9]+)[ ]? \}}[ ]?\{{ [ ]?(?P<bottom>-?[0-9]+)[ ]? \}}
      | (?P<above>[0-9]+) [ ]?/[ ]? (?P<below>[0-9]+)
      | (?P<decimal>{_DECIMAL})
        (?: [ ]?(?:\\times|\\cdot|\*)[ ]?10[ ]?\^[ ]?
            (?: (?P<digit>[0-9]) | \{{[ ]?(?P<power10>-?[0-9]{{1,2}})[ ]?\}} ) )?
    ) [ ]?
    (?P<percent>\\?%)? [ ]?
    (?: (?P<degree>\^[ ]?(?:\\circ|\{{[ ]?\\circ[ ]?\}})[ ]?(?:\\(?:text|mathrm)[ ]?\{{)?[ ]?(?P<scale>[CF]?)\}}?)
      | (?: \\(?:text|mathrm|mbox)[ ]?\{{(?P<text>[^{{}}]*)\}} | (?P<word>[A-Za-z][A-Za-z/ ]*) )
        (?P<square>[ ]?\^[ ]?\{{?[0-9]\}}?)?
    )?""",
    re.VERBOSE,
)
# Words that may follow a number and leave it what it is; others do only in \text{}, and those of NO_UNIT never.
_NAMES = {"cm": "centimeter centimetre", "km": "kilometer kilometre", "mm": "millimeter millimetre", "m": "meter metre"}
_NAMES |= {
    "mi": "mile",
    "ft": "foot feet",
    "in": "inch inche",
    "yd": "yard",
    "kg": "kilogram",
    "g": "gram",
    "oz": "ounce",
}
_NAMES |= {
    "lb": "pound",
    "l": "liter litre",
    "ml": "",
    "gal": "gallon",
    "s": "second sec",
    "min": "minute",
    "h": "hour hr",
}
_NAMES |= {"day": "", "week": "", "month": "", "year": "", "dollar": "", "cent": "", "euro": "", "deg": "degree"}
_NAMES |= {"unit": "", "rad": "radian", "percent": "pct percentage"}
UNITS = {name: unit for unit, names in _NAMES.items() for name in (unit, *names.split())}
NO_UNIT = re.compile(
    r"hundred|thousand|illion|dozen|score|half|squared|cubed|mod|plus|minus|times|over|factorial|maybe|negative"
    r"|^[eikxyz]$|\b(?:or|and|not)\b|[^a-z./ -]"
)
# What may stand before the = of a number: a name, or arithmetic without one.
_LEFT = re.compile(r"[A-Za-z]\w*(?:\([A-Za-z]\))?|(?:[^A-Za-z\\,;<>]|\\(?:frac|cdot|times|div)(?![A-Za-z]))+")


class Number(NamedTuple):
    """A number as it is written: `finished` unless it is a fraction that can be reduced; `of` is x in x = 5."""

    value: Fraction
    decimals: bool
    percent: bool
    unit: str
    finished: bool
    of: str


def number(text: str) -> Number | None:
    """The number that a text writes, perhaps as `x = 5` or with a unit; None when it writes none."""
    if len(text) > MAX_LINE:
        return None
    dollars = r"\$" in text
    *left, text = normal(text).split("=")
    found = _NUMBER.fullmatch(text.strip())
    if found is None or (unit := _unit(found)) is None:
        return None
    top, bottom = found["top"] or found["above"], found["bottom"] or found["below"]
    if top is None:
        power = int(found["digit"] or found["power10"] or 0)
        value, finished = Fraction(found["decimal"].replace(",", "")) * Fraction(10) ** power, True
    elif int(bottom) == 0:
        return None
    else:
        value, finished = Fraction(int(top), int(bottom)), math.gcd(int(top), int(bottom)) == 1 < abs(int(bottom))
    if whole := found["mixed"] or found["spaced"]:
        value, finished = value + int(whole), finished and 0 < value < 1
    value = -value if found["sign"] == "-" else value
    for part in left:
        other = number(part)
        if not _LEFT.fullmatch(part.strip()) or (other is not None and other.value != value):
            return None  # x + y = 5; x = 4 or x = 5; 4 = 5
    percent, name = unit == "percent", left[-1].strip() if left else ""
    unit, of = "" if percent else unit or ("dollar" if dollars else ""), name if name.isidentifier() else ""
    return Number(value, "." in (found["decimal"] or ""), percent, unit, finished, of)


def _unit(found: re.Match[str]) -> str | None:
    """The unit of a number, "" without one, None when what follows the number is no unit."""
    name = (found["text"] or found["word"] or "").strip()
    if found["percent"]:
        return None if name or found["degree"] else "percent"
    if found["degree"]:
        return f"deg{found['scale']}"
    return unit_of(name, found["square"] or "", any_name=found["text"] is not None)


def unit_of(name: str, power: str = "", any_name: bool = False) -> str | None:
    """One spelling for a unit's many: "square meters" and m^2, "miles per hour" and mph; "" when there is none.

    None for what is no unit; unless `any_name`, that is all but those of UNITS.
    """
    name = re.sub(r"^per\s?cent(?:age)?$", "percent", name.lower()).replace(" per ", "/").replace("mph", "mi/h")
    for word, sign in (("square ", "^2"), ("sq ", "^2"), ("cubic ", "^3")):
        if name.startswith(word):
            name, power = name.removeprefix(word), sign
    parts = [UNITS.get(part) or UNITS.get(part.removesuffix("s")) for part in name.split("/")]
    if name and None in parts and (not any_name or NO_UNIT.search(name)):
        return None
    known = [part or spelled.removesuffix("s") for part, spelled in zip(parts, name.split("/"), strict=True)]
    return "/".join(known) + re.sub(r"[ {}]", "", power) if name else ""


class Numbers(NamedTuple):
    """Plain numbers in a row: the two brackets around them ("" when there are none), and the numbers."""

    brackets: str
    items: tuple[Number, ...]


def numbers(text: str) -> Numbers | None:
    r"""The set, interval or tuple of plain numbers that a text writes, such as \{1,2\} or (0,3]; None for all else."""
    text = re.sub(r"\\text\s*\{ ?(and|or) ?\}", r" \1 ", normal(text)).replace(r"\{", "{").replace(r"\}", "}")
    found = re.fullmatch(r"([\[({]?)([^][(){}]*(?:\\frac ?\{[^{}]*\} ?\{[^{}]*\}[^][(){}]*)*)([\])}]?)", text)
    if found is None or bool(found[1]) != bool(found[3]):
        return None
    items = [number(item) for item in re.split(r",|;|\band\b|\bor\b", found[2])]
    brackets = found[1] + found[3]
    if None in items or ("{" in brackets) != ("}" in brackets):
        return None
    return Numbers(brackets, tuple(item for item in items if item is not None))

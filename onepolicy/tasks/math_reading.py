r"""Where the final answer stands in a response, and what number a text writes. No mathematics yet: `math_answers.py`.

The answer is what the last \boxed{} holds, else what follows the last "answer is" (or "####"), else the last line; a
response that gives two different final answers gives none.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import NamedTuple

TAIL, MAX_LINE = 20_000, 1000  # characters: of a response in which its answer is looked for; of a line that holds it


class NoAnswer(ValueError):
    """The response holds no answer that could be graded; the message says why."""


def readings(response: str) -> list[str]:
    """The one final answer, in one or two readings (a whole line, and the number in its words). Raises NoAnswer."""
    text = response[-TAIL:].rpartition("</think>")[2]
    if boxes := _boxes(text):
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
    r"""What the last \boxed{} of a solution holds; None when there is none."""
    boxes = _boxes(text)
    return boxes[-1] if boxes else None


def _boxes(text: str) -> list[str]:
    r"""What stands in each outermost \boxed{}; several with only "and", "or" or a comma between them are one list."""
    found: list[tuple[int, int, str]] = []  # start, end, content
    opened: list[tuple[int, bool]] = []  # where a brace opened, and whether it is a box's
    for brace in re.finditer(r"(\\(?:boxed|fbox)\s*)?(?<!\\)([{}])", text):
        if brace[2] == "{":
            opened.append((brace.start(), brace[1] is not None))
        elif opened:
            start, is_box = opened.pop()
            if is_box and not any(box for _, box in opened):
                content = text[start : brace.start()].partition("{")[2]
                found.append((start, brace.end(), content))
    answers: list[str] = []
    before = None
    for start, end, content in found:
        if before is not None and re.fullmatch(r"[\s$,;()\\]*(?:and|or)?[\s$,;()\\]*", text[before:start]):
            answers[-1] += "" if squeezed(content) in map(squeezed, answers[-1].split(",")) else f",{content}"
        else:
            answers.append(content)
        before = end
    return answers


def _claims(text: str) -> list[str]:
    """What follows "answer is", "answer:" or "####", up to the end of the sentence."""
    claim = r"(?:\banswer(?:\s+is\b|\s*[:=])|####)[\s:*]*([^\n]*?)(?=\n|\banswer\b|####|\Z)"
    found = re.findall(claim, text, re.IGNORECASE)
    return [sentence for said in found if (sentence := re.split(r"\.\s", said)[0].strip())]


def _line(line: str) -> list[str]:
    """A line as it is, and the one number or formula that stands in its words."""
    return list(dict.fromkeys([line.strip(" \t*_`\"'"), _sole(line)]))


HEDGES = re.compile(r"\b(?:not|never|n?either|nor|or|maybe|perhaps|possibly|between|wrong|unless|guess)\b|n't", re.I)


def _sole(line: str) -> str:
    """The one thing in a line of words that can be an answer; the line itself when there is not exactly one."""
    if len(line) > MAX_LINE or HEDGES.search(line):
        return line
    formulas = set(re.findall(r"\$([^$]+)\$|\\\((.+?)\\\)", line))
    if formulas:
        return "".join(formulas.pop()) if len(formulas) == 1 else line
    result = line.rpartition("=")[2]
    numbers = set(re.findall(rf"(?<![\w.])-?(?:{_DECIMAL})(?:/[0-9]+)?%?", result))
    return numbers.pop() if len(numbers) == 1 and not re.search(r"[\\^_({\[]", result) else line


def _refuse_two(answers: list[str], reason: str) -> None:
    if len(set(map(squeezed, answers))) > 1:
        raise NoAnswer(reason)


SIGNS = {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt "}
SIGNS |= {"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "°": r"^\circ ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset "}
SIGNS |= {"²": "^2", "³": "^3", "½": r"\frac{1}{2}", "±": r"\pm ", "\u222a": r"\cup ", "\u00a0": " "}
COSMETICS = re.compile(r"\\(?:left|right|displaystyle|[bB]igg?[lr]?)(?![A-Za-z])|\\[!,;:()\[\]]|\\(?= )|~|\$")


def normal(text: str) -> str:
    """LaTeX without what changes only its looks."""
    text = "".join(SIGNS.get(character, character) for character in text)
    text = COSMETICS.sub(" ", text.replace(r"\$", "").replace("{,}", ","))
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}", text)
    return " ".join(text.split()).rstrip(" .,;")


def squeezed(text: str) -> str:
    """Equal for texts that differ in spaces and looks alone."""
    return re.sub(r"\s|\\text\s*\{\s*\}", "", normal(text))


_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(
    rf"""(?P<sign>[+-]?) [ ]? [€£¥]? [ ]?
    (?: (?P<mixed>[0-9]+) [ ]? (?=\\frac) | (?P<spaced>[0-9]+) [ ] (?=[0-9]+[ ]?/) )?
    (?: \\frac[ ]?\{{ [ ]?(?P<top>-?[0-9]+)[ ]? \}}[ ]?\{{ [ ]?(?P<bottom>[0-9]+)[ ]? \}}
      | (?P<above>[0-9]+) [ ]?/[ ]? (?P<below>[0-9]+)
      | (?P<decimal>{_DECIMAL})
        (?: [ ]?(?:\\times|\\cdot|\*)[ ]?10[ ]?\^[ ]?
            (?: (?P<digit>[0-9]) | \{{[ ]?(?P<power10>-?[0-9]{{1,2}})[ ]?\}} ) )?
    ) [ ]?
    (?P<percent>\\?%)? [ ]?
    (?: (?P<degree>\^[ ]?(?:\\circ|\{{[ ]?\\circ[ ]?\}})[ ]?[CF]?)
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
_NAMES |= {"unit": "", "km/h": "", "mph": "", "m/s": "", "percent": "pct percentage"}
UNITS = {name: unit for unit, names in _NAMES.items() for name in (unit, *names.split())}
NO_UNIT = re.compile(r"hundred|thousand|million|billion|dozen|half|squared|cubed|mod|\bor\b|\band\b|\bnot\b|[^a-z./ -]")


class Number(NamedTuple):
    """A number as it is written: `finished` unless it is a fraction that can be reduced."""

    value: Fraction
    decimals: bool
    percent: bool
    unit: str
    finished: bool


def number(text: str) -> Number | None:
    """The number that a text writes, perhaps as `x = 5` or with a unit; None when it writes none."""
    if len(text) > MAX_LINE:
        return None
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
        value, finished = Fraction(int(top), int(bottom)), math.gcd(int(top), int(bottom)) == 1 < int(bottom)
    if whole := found["mixed"] or found["spaced"]:
        value, finished = value + int(whole), finished and 0 < value < 1
    value = -value if found["sign"] == "-" else value
    if any(other is not None and other.value != value for other in map(number, left)):
        return None  # 4 = 5
    percent = unit == "percent"
    return Number(value, "." in (found["decimal"] or ""), percent, "" if percent else unit, finished)


def _unit(found: re.Match[str]) -> str | None:
    """The unit of a number, "" without one, None when what follows the number is no unit."""
    name = "deg" if found["degree"] else (found["text"] or found["word"] or "").strip().lower()
    if found["percent"]:
        return None if name else "percent"
    if not name:
        return ""
    unit = UNITS.get(name) or UNITS.get(name.removesuffix("s"))
    if unit is None and (found["text"] is None or NO_UNIT.search(name)):
        return None
    return (unit or name.removesuffix("s")) + re.sub(r"[ {}]", "", found["square"] or "")

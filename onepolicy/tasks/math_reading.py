r"""Where the final answer stands in a response, and what number a text writes. No mathematics yet: `math_answers.py`.

The answer is what the last \boxed{} holds, else what follows the last "answer is" (or "####"), else the last line; a
response that gives two different final answers gives none.
"""

from __future__ import annotations

import math
import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

TAIL, MAX_LINE = 20_000, 1000  # characters: of a response in which its answer is looked for; of a line that holds it


class NoAnswer(ValueError):
    """The response holds no answer that could be graded; the message says why."""


def readings(response: str) -> list[str]:
    """The one final answer, in one or two readings (a whole line, and the number in its words). Raises NoAnswer."""
    text = response[-TAIL:].rpartition("</think>")[2]
    if "<think>" in text:
        raise NoAnswer("thinking that does not end")
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


LINK, MAX_LINK = re.compile(r"[\s$,;()\\]*(?:and|or)?[\s$,;()\\]*"), 30


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
        if before is not None and start - before < MAX_LINK and LINK.fullmatch(text[before:start]):
            listed = map(squeezed, (answers[-1], *answers[-1].split(",")))
            answers[-1] += "" if squeezed(content) in listed else f",{content}"
        else:
            answers.append(content)
        before = end
    return answers


def _claims(text: str) -> list[str]:
    """What follows "answer is", "answer:" or "####", up to the end of the sentence, if it says something outright."""
    claim = r"(?:\banswer(?:\s+is\b|\s*[:=])|####)[\s:*]*([^\n]*?)(?=\n|\banswer\b|####|\Z)"
    found = re.findall(claim, text, re.IGNORECASE)
    sentences = [re.split(r"\.\s", said)[0].strip() for said in found]
    return [sentence for sentence in sentences if sentence and not HEDGES.search(sentence)]


def _line(line: str) -> list[str]:
    """A line as it is, and, unless that is a number, the one number or formula that stands in its words."""
    whole = line.strip(" \t*_`\"'")
    return [whole] if number(whole) else list(dict.fromkeys([whole, _sole(line)]))


UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Mn")  # controls, zero-width characters, lone surrogates, accents
HEDGES = re.compile(r"\b(?:not|never|n?either|nor|or|maybe|perhaps|possibly|between|wrong|unless|guess)\b|n't", re.I)


def _sole(line: str) -> str:
    """The one thing in a line of words that can be an answer; the line itself when there is not exactly one."""
    if len(line) > MAX_LINE or HEDGES.search(line) or any(unicodedata.category(c) in UNSEEN for c in line):
        return line
    formulas = set(re.findall(r"\$([^$]+)\$|\\\((.+?)\\\)", line))
    if formulas:
        return "".join(formulas.pop()) if len(formulas) == 1 else line
    result = line.rpartition("=")[2]
    unit = "|".join(sorted(UNITS, key=len, reverse=True))
    numbers = set(re.findall(rf"(?<![\w.])-?(?:{_DECIMAL})(?:/[0-9]+)?%?(?:\s?(?:{unit})s?\b)?", result))
    return numbers.pop() if len(numbers) == 1 and not re.search(r"[\\^_({\[]", result) else line


def _refuse_two(answers: list[str], reason: str) -> None:
    if len(set(map(squeezed, answers))) > 1:
        raise NoAnswer(reason)


SIGNS = {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt "}
SIGNS |= {"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "°": r"^\circ ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset "}
SIGNS |= {"²": "^2", "³": "^3", "½": r"\frac{1}{2}", "±": r"\pm ", "\u222a": r"\cup ", "\u00a0": " "}
COSMETICS = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?)(?=\s*[][(){}|.\\])|\\displaystyle(?![A-Za-z])|\\[!,;:()\[\]]|\\(?= )|~|\$"
)


def normal(text: str) -> str:
    """LaTeX without what changes only its looks."""
    text = "".join(SIGNS.get(character, character) for character in text)
    text = COSMETICS.sub(" ", text.replace(r"\$", "").replace("{,}", ","))
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\(?:text|mathrm|mathbf)\s*\{([0-9.,/ -]+)\}", r"\1", text)
    return " ".join(text.split()).rstrip(" .,;")


def squeezed(text: str) -> str:
    """Equal for texts that differ in looks, and in spaces that do not part two numbers."""
    return re.sub(r"(?<![0-9])\s|\s(?![0-9])|\\text\s*\{\s*\}", "", normal(text))


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
    for part in left:
        other = number(part)
        if not _LEFT.fullmatch(part.strip()) or (other is not None and other.value != value):
            return None  # x + y = 5; x = 4 or x = 5; 4 = 5
    percent, name = unit == "percent", left[-1].strip() if left else ""
    unit, of = "" if percent else unit, name if name.isidentifier() else ""
    return Number(value, "." in (found["decimal"] or ""), percent, unit, finished, of)


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

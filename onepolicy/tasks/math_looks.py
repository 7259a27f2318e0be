r"""What changes only the looks of mathematics, taken away: bold, colour, sizes, brackets that grow, Unicode's signs.

No mathematics here; what is compared then is `math_answers.py`'s matter.
"""

from __future__ import annotations

import re

SIGNS = {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt "}
SIGNS |= {"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "°": r"^\circ ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset "}
SIGNS |= {"²": "^2", "³": "^3", "½": r"\frac{1}{2}", "±": r"\pm ", "\u222a": r"\cup ", "\u00a0": " "}

_STYLES = (
    "boldsymbol|bm|pmb|mathbf|textbf|mathit|textit|mathsf|textsf|mathtt|texttt|mathnormal|textnormal|emph|underline"
)
_SIZES = "tiny|scriptsize|small|normalsize|large|Large|LARGE|huge|Huge|bf|it|sf|tt|bfseries|boldmath|displaystyle"
_COLOUR = re.compile(r"\\color\s*\{[^{}]*\}|\\textcolor\s*\{[^{}]*\}(?=\s*\{)")
_STYLED = re.compile(rf"\\(?:{_STYLES})\s*(?=\{{)")
_STYLED_NUMBER = re.compile(rf"(?<![\^_}}\]A-Za-z])(?<![\^_]\s)\\(?:{_STYLES})\s*\{{\s*(-?[0-9][0-9.,/]*)\s*\}}")
_BRACE = re.compile(r"(?<!\\)[{}]")
COSMETICS = re.compile(
    r"(?<!\\)\\(?:(?:left|right|[bB]igg?[lr]?)(?=\s*[][(){}|.\\])"
    rf"|(?:{_SIZES})(?![A-Za-z])|(?:{_STYLES})(?![A-Za-z]|\s*\{{)|[,;:()\[\]]|(?= ))|~|\$"
)
_FUNCTION = re.compile(r"(?<![A-Za-z\\])(sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp)(?=\s?\()")


def normal(text: str) -> str:
    """LaTeX without what changes only its looks."""
    text = "".join(SIGNS.get(character, character) for character in text)
    text = text.replace(r"\$", "").replace("{,}", ",").replace(r"\!", "").replace(r"\varnothing", r"\emptyset")
    text = re.sub(r"(?<=[0-9])\\[,; ](?=[0-9]{3}(?![0-9]))", ",", text)  # 10\,000
    text = COSMETICS.sub(" ", _unstyled(text))
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\frac\s*([0-9]|\{[0-9]+\})\s*([0-9]|\{[0-9]+\})", _fraction, text)
    text = re.sub(r"\\(?:text|mathrm|mbox|hbox)\s*\{([0-9.,/ -]+)\}", r"\1", text)
    text = re.sub(r"\\mathrm\s*\{([ei])\}", r"\1", re.sub(r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi ", text))
    text = _FUNCTION.sub(r"\\\1 ", text)
    text = re.sub(r"^\s*\{([^{},\\]*)\}\s*$", r"\1", text)
    return " ".join(text.split()).rstrip(" .,;")


def squeezed(text: str) -> str:
    """Equal for texts that differ in looks, and in spaces that do not part two numbers."""
    return re.sub(r"(?<![0-9])\s|\s(?![0-9])|\\text\s*\{\s*\}", "", normal(text))


def group(text: str, start: int) -> int | None:
    """Where the group that a brace opens at `start` ends, behind its closing brace; None when it does not."""
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.end()
    return None


def _unstyled(text: str) -> str:
    r"""Without colour and bold: \boldsymbol{12} is 12; in the middle of a formula the braces stay, as in x^{12}."""
    if "\\" not in text:
        return text
    text = _COLOUR.sub("", text)
    whole = _STYLED.match(text := text.strip())
    while whole and group(text, whole.end()) == len(text):
        text = text[whole.end() + 1 : -1].strip()
        whole = _STYLED.match(text)
    return _STYLED.sub("", _STYLED_NUMBER.sub(r"\1", text))


def _fraction(found: re.Match[str]) -> str:
    top, bottom = (part.strip("{}") for part in found.groups())
    return rf"\frac{{{top}}}{{{bottom}}}"

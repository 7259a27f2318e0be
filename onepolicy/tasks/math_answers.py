r"""Whether an answer is the reference: equality is math-verify's, refusals are ours.

Plain numbers, and sets, intervals and tuples of plain numbers, are compared as such: math-verify would say the same, a
thousand times slower (some 15 answers a second). Everything else goes to math-verify, if these let it pass:

- A number is answered by a finished number: no sum, no fraction that can be reduced, no false equation. Otherwise the
  question, repeated, answers itself (to math-verify 3+4 equals 7).
- An answer uses the commands of ordinary answers, or those of the reference: no sums, integrals or binomials.
- It is written in ASCII and a few mathematical signs, or in characters of the reference: no look-alikes.
- Its length, and the size of the numbers in it, are bounded: no 10^{10^{10}}.
- Units and bases (101_2) may be missing, which math-verify always allows, but not be others, which it does not see.
- An equation that is false answers nothing (4 = 3\sqrt{3}; x = 2x+1 for 2x+1), though math-verify reads its end.

Why not math-verify's own time limits: they use the alarm that guards the grading process (`worker.py`), and cannot
interrupt one long multiplication. The limit of the grading process can, and holds here too.
As with math-verify, no inequality answers for an interval, though an interval does for an inequality.
Known to pass: another way to write an expression that is to be simplified, unless it stands in the question, in any
order. All differences to math-verify, each with its reason: DIFFERENCES in `tests/test_tasks_math.py`.
"""

from __future__ import annotations

import logging
import math
import re
from functools import lru_cache
from typing import Any, NamedTuple

from onepolicy.tasks.math_looks import normal, squeezed
from onepolicy.tasks.math_reading import Number, Numbers, number, numbers, unit_of

MAX_LENGTH, MAX_DEPTH = 200, 12  # of an answer: characters (more when the reference has more), nested brackets
MAX_BITS, MAX_DEGREE = 20_000, 60  # of the numbers in an answer; of its polynomials
MAX_NODES = 80  # of a parsed answer


def judge(reference: str, answer: str) -> tuple[bool, str]:
    """Whether `answer` is `reference`, and if not, perhaps, in a few words why. Some answers take seconds."""
    if not answer.strip():
        return False, "empty"
    if len(answer) > max(MAX_LENGTH, 4 * len(reference)):
        return False, f"{len(answer)} characters are too many for an answer"
    return _judge(reference, answer)


@lru_cache(maxsize=10_000)  # the rollouts of one prompt agree often
def _judge(reference: str, answer: str) -> tuple[bool, str]:
    if squeezed(answer) == squeezed(reference):
        return True, ""
    expected, given = number(reference), number(answer)
    if expected is not None:
        return _same_number(expected, given) if given else (False, "not a number, or one that is left to be worked out")
    if _is_words(reference):
        return _letters(answer) == _letters(reference), ""
    if based := BASED.fullmatch(squeezed(reference)):
        other = BASED.fullmatch(squeezed(answer))
        return other is not None and other[1] == based[1] and other[2] in (None, based[2]), ""
    if (listed := numbers(reference)) and (given_list := numbers(answer)):
        return _same_list(listed, given_list), ""
    (bare, unit), (bare_answer, given_unit) = _without_unit(normal(reference)), _without_unit(normal(answer))
    if other_unit(unit, given_unit):
        return False, f"another unit: {given_unit!r}, not {unit!r}"
    reason = _refusal(bare, bare_answer)
    return (False, reason) if reason else _verify(bare, bare_answer)


def _without_unit(text: str) -> tuple[str, str]:
    r"""A formula and its unit: 2\sqrt{3}\text{ cm}."""
    found = re.fullmatch(r"(.*[^\s,;]) ?\\(?:text|mathrm|mbox) ?\{([^{}]*)\}( ?\^ ?\{?[0-9]\}?)?", text)
    unit = unit_of(found[2].strip(), found[3] or "", any_name=True) if found else None
    return (found[1], unit) if found and unit else (text, "")


def _same_number(expected: Number, given: Number) -> tuple[bool, str]:
    """As math-verify: exact, or to six decimals when one is a decimal; 50% is 50 and 0.5. Below .01 also relative."""
    if not given.finished and expected.finished:
        return False, "a fraction that can be reduced"
    if other_unit(expected.unit, given.unit):
        return False, f"another unit: {given.unit!r}, not {expected.unit!r}"
    if (expected.percent and given.unit) or (given.percent and expected.unit):
        return False, "a percentage, and something with a unit"
    if expected.of and given.of and expected.of != given.of:
        return False, f"of {given.of}, not of {expected.of}"
    pairs = [(expected.value, given.value)]
    if expected.percent != given.percent:
        pairs.append((expected.value / (100 if expected.percent else 1), given.value / (100 if given.percent else 1)))
    rounded = expected.decimals or given.decimals
    right = any(a == b or (rounded and round(a, 6) == round(b, 6) and abs(a - b) <= abs(a) / 10_000) for a, b in pairs)
    return right, ""


def other_unit(expected: str, given: str) -> bool:
    """Whether both are named and differ; a plain degree may be one of any scale."""
    if expected == given or "" in (expected, given):
        return False
    return "deg" not in (expected, given) or expected[:3] != given[:3]


def _same_list(expected: Numbers, given: Numbers) -> bool:
    """As math-verify: without brackets, or in braces, the order is free; (1,2) may be a pair or an interval."""
    a, b = list(expected.items), list(given.items)
    ordered = {expected.brackets, given.brackets} - {"", "{}"}
    if ordered and "{}" in (expected.brackets, given.brackets):
        return False  # stricter: a set is no interval or tuple
    if len(ordered) == 2 or (ordered and ordered != {"()"} and "" in (expected.brackets, given.brackets)):
        return False
    if not ordered:
        a, b = (sorted(set(items), key=lambda item: item.value) for items in (a, b))
    return len(a) == len(b) and all(_same_number(*pair)[0] for pair in zip(a, b, strict=True))


BASED = re.compile(r"([0-9A-F]+)(?:_\{?([0-9]+)\}?)?")  # digits, base
TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf)\s*\{([^{}]*)\}")


def _is_words(reference: str) -> bool:
    r"""Text rather than mathematics: a word of four letters, something in \text{}, one option such as (B)."""
    plain = TEXT.sub(r"\1", reference)
    if re.search(r"[\\^_=<>+*/0-9]|^\s*-", plain):
        return False
    return plain != reference or bool(re.search(r"[A-Za-z]{4}|^\(?[A-Z]\)?$|^(?i:yes|no|odd)$", plain))


def _letters(text: str) -> str:
    return re.sub(r"[\s.,;:'\"()!]|(?<=[A-Za-z])-", "", TEXT.sub(r"\1", normal(text))).lower()


COMMAND = re.compile(r"\\(?:[A-Za-z]+|.)")
COMMANDS = set(
    COMMAND.findall(
        r"\frac\sqrt\pi\cdot\times\div\pm\mp\infty\cup\cap\setminus\in\le\leq\ge\geq\ne\neq\lt\gt\emptyset\varnothing\{\}"
        r"\mathbb\text\mathrm\mbox\circ\%\sin\cos\tan\cot\sec\csc\arcsin\arccos\arctan\log\ln\exp\alpha\beta\theta\lambda"
        r"\phi\begin\end\\\langle\rangle\overline\mid\vert\lor\land"
    )
)
WORDS = {"and", "or", "sqrt", "pi", "infinity", "text", "mathrm", "matrix", "pmatrix", "bmatrix", "vmatrix"}


def _refusal(reference: str, answer: str) -> str:
    """Why math-verify is not asked about this answer; "" when it is."""
    if strange := sorted({c for c in answer if not " " <= c <= "~"} - set(reference)):
        return f"characters that are not mathematics: {''.join(strange)[:20]!a}"
    if other := sorted(set(COMMAND.findall(answer)) - COMMANDS - set(COMMAND.findall(reference))):
        return f"commands that belong to no answer: {' '.join(other)[:60]}"
    words = set(re.findall(r"(?<!\\)\b[A-Za-z]{3,}", answer)) - WORDS
    if any(word not in reference for word in words | set(re.findall(r"[!:&#@_?'\"]", answer))):
        return "words or signs that belong to no answer"
    depth = deepest = 0
    for bracket in re.findall(r"[{}()\[\]]", answer.replace(r"\{", "(").replace(r"\}", ")")):
        depth += 1 if bracket in "{([" else -1
        deepest = max(deepest, depth)
    if depth or deepest > MAX_DEPTH:
        return "brackets that do not match, or too many"
    if any(a.startswith(r"\{") and b.startswith(("(", "[")) for a, b in ((reference, answer), (answer, reference))):
        return "a set is no interval or tuple"
    left, equals, right = answer.rpartition("=")
    name = left.strip()
    if equals and "=" not in reference and (number(name) or (name.isalpha() and name in COMMAND.sub("", right))):
        return "a false equation"  # 4 = 3\sqrt{3}; x = 2x + 1
    return ""


def _verify(reference: str, answer: str) -> tuple[bool, str]:
    from math_verify import verify

    gold, parsed = parsed_latex(reference), parsed_latex(answer)
    if gold is None or parsed is None:
        return False, "cannot be read as mathematics"
    allowed, given = _size(gold), _size(parsed)
    if given.nodes > max(MAX_NODES, 4 * allowed.nodes):
        return False, "too long"
    if max(allowed.bits, given.bits) > MAX_BITS or given.degree > max(MAX_DEGREE, 2 * allowed.degree):
        return False, "too large a number or a power"
    if verify(gold, parsed, timeout_seconds=None):
        percent = any(sign in text for text in (reference, answer) for sign in ("%", "percent"))
        apart = not percent and _apart(gold, parsed)
        return not apart, "another number, too small to tell when rounded" if apart else ""
    exact = _exact(gold), _exact(parsed)
    return exact != (gold, parsed) and bool(verify(*exact, timeout_seconds=None)), ""


def _exact(expr: Any) -> Any:
    """With fractions for decimals, and one imaginary unit: math-verify finds 12.0-1.0i to be no 12-i, nor 1.5i 3i/2."""
    from sympy import Basic, Float, Rational, Symbol

    if not isinstance(expr, Basic):
        return expr
    replaced: dict[Any, Any] = {one: Rational(str(one)) for one in expr.atoms(Float) if one.is_finite}
    replaced |= {one: Symbol("i", real=False) for one in expr.atoms(Symbol) if one.name == "i"}
    return expr.xreplace(replaced)


def _apart(gold: Any, parsed: Any) -> bool:
    """Whether two numbers differ that math-verify rounds to the same: 2^{-77} and 2^{-76}, also in sets and pairs."""
    from sympy import Expr, FiniteSet, I, Interval, Tuple

    if isinstance(gold, FiniteSet | Interval | Tuple) and type(gold) is type(parsed):
        ours, theirs = (
            sorted(one.args, key=_place) if isinstance(one, FiniteSet) else one.args for one in (gold, parsed)
        )
        return len(ours) == len(theirs) and any(_apart(*pair) for pair in zip(ours, theirs, strict=True))
    if not isinstance(gold, Expr) or not isinstance(parsed, Expr):
        return False
    units = {unit: I for one in (gold, parsed) for unit in one.free_symbols if str(unit) == "i"}
    a, b = (one.xreplace(units).evalf(20) for one in (gold, parsed))
    if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
        return False
    return bool(abs(a - b) > max(abs(a), abs(b)) / 10_000)


def _place(expr: Any) -> tuple[float, str]:
    """To sort numbers by value, and what is none by its text."""
    value = expr.evalf(20)
    return (float(value), "") if value.is_real and value.is_finite else (math.inf, str(expr))


@lru_cache(maxsize=1000)
def parsed_latex(text: str) -> Any:
    """What math-verify makes of LaTeX, a sympy object; None when it cannot read it."""
    from math_verify import LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off
    found = parse(
        rf"\boxed{{{text}}}",
        [LatexExtractionConfig(boxed_match_priority=0)],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    return found[0] if found else None


class _Size(NamedTuple):
    bits: float  # an upper bound of log2 of the largest number
    degree: float  # of what is a power of more than a symbol
    nodes: int


def _size(expr: Any) -> _Size:
    """How much there is to work out in an unevaluated sympy expression, found without working it out."""
    from sympy import Float, Pow, Rational, factorial

    parts = [_size(part) for part in getattr(expr, "args", ())]
    nodes = 1 + sum(part.nodes for part in parts)
    if isinstance(expr, Rational):
        return _Size(max(abs(expr.p).bit_length(), expr.q.bit_length()), 0, nodes)
    if isinstance(expr, Float):
        return _Size(64, 0, nodes)
    bits, degree = 1 + sum(part.bits for part in parts), max((part.degree for part in parts), default=0)
    if isinstance(expr, (Pow, factorial)):
        times = 2.0 ** parts[-1].bits if parts[-1].bits < 60 else math.inf
        if isinstance(expr, Pow) and expr.base.free_symbols and not expr.exp.free_symbols:
            base = parts[0]
            return _Size(base.bits, times * max(base.nodes, base.degree) if base.nodes > 1 else 0, nodes)
        if parts[-1].degree or expr.free_symbols:
            degree = 10 * max(degree, 1)  # x^(x^x)
        bits = times * parts[0].bits
    return _Size(bits, degree, nodes)

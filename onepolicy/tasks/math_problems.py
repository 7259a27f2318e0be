"""Small mathematical problems for models that are built from nothing: prompts of at most 20 characters, short answers.

skill     prompt           answer   level 1, 2, 3
add       12+35=           47       operands of that many digits
sub       12-35=           -23      the same; differences are never negative at level 1
mul       7*12=            84       1 × 1, 1 × 2, 2 × 2 digits
fraction  1/2+1/3=         5/6      denominators up to 4, 8, 12; answers in lowest terms
equation  3x+2=11          3        solutions up to 9, 20, 99
roots     x^2-5x+6=0       2,3      roots up to 5, 9, 15 in absolute value; the grader takes them in any order
interval  |x-3|<2          (1,5)    open or closed; centres up to 9, 20, 99
"""

from __future__ import annotations

import string
from collections.abc import Callable
from fractions import Fraction
from random import Random

ALPHABET = string.digits + "+-*/=x^|<(),[]"  # covers every prompt and every answer


def _operand(rng: Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def _add(rng: Random, level: int) -> tuple[str, str]:
    a, b = _operand(rng, level), _operand(rng, level)
    return f"{a}+{b}=", str(a + b)


def _sub(rng: Random, level: int) -> tuple[str, str]:
    a, b = _operand(rng, level), _operand(rng, level)
    if level == 1:
        a, b = max(a, b), min(a, b)
    return f"{a}-{b}=", str(a - b)


def _mul(rng: Random, level: int) -> tuple[str, str]:
    a, b = _operand(rng, 1 + (level == 3)), _operand(rng, 1 + (level > 1))
    return f"{a}*{b}=", str(a * b)


def _fraction(rng: Random, level: int) -> tuple[str, str]:
    a, b = (Fraction(rng.randrange(1, bottom), bottom) for bottom in rng.choices(range(2, 4 * level + 1), k=2))
    sign = rng.choice("+-")
    return f"{a}{sign}{b}=", str(a + b if sign == "+" else a - b)


def _equation(rng: Random, level: int) -> tuple[str, str]:
    x, a = rng.randint(0, (9, 20, 99)[level - 1]), rng.randint(2, 9)
    b = rng.choice([-1, 1]) * rng.randint(1, 9)
    return f"{a}x{b:+}={a * x + b}", str(x)


def _roots(rng: Random, level: int) -> tuple[str, str]:
    largest = (5, 9, 15)[level - 1]
    low, high = sorted(rng.sample([x for x in range(-largest, largest + 1) if x], 2))
    middle = {0: "", 1: "-x", -1: "+x"}.get(low + high, f"{-(low + high):+}x")
    return f"x^2{middle}{low * high:+}=0", f"{low},{high}"


def _interval(rng: Random, level: int) -> tuple[str, str]:
    centre, radius = rng.randint(1, (9, 20, 99)[level - 1]), rng.randint(1, 9)
    ends, relation = rng.choice([("()", "<"), ("[]", "<=")])
    return f"|x-{centre}|{relation}{radius}", f"{ends[0]}{centre - radius},{centre + radius}{ends[1]}"


SKILLS: dict[str, Callable[[Random, int], tuple[str, str]]] = {  # generator, level → prompt, answer
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "fraction": _fraction,
    "equation": _equation,
    "roots": _roots,
    "interval": _interval,
}

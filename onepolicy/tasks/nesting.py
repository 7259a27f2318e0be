"""How deeply what a model wrote may be nested: looked at before anything parses it.

Parsers recurse, and each gives up at a limit of its own, which differs between versions and builds of Python: what one
refuses, another takes. So the depth is bounded here, and so are the digits of a number.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_DEPTH = 64  # of brackets in one another; answers have some ten
MAX_DIGITS = 4000  # of an integer; Python's own bound is 4300, which the environment may lift

_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\](){}]', re.DOTALL)


def too_deep(text: str) -> bool:
    """Whether brackets of any kind, outside of double quotes, are nested more than MAX_DEPTH deep."""
    depth = 0
    for token in _TOKEN.finditer(text):
        if token[0] in "[({":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif token[0] in "])}":
            depth = max(0, depth - 1)
    return False


def read_json(text: str) -> Any:
    """JSON that a model wrote. Raises ValueError when it is none, is nested too deeply or has endless numbers.

    NaN and Infinity, which Python would take, are no JSON (RFC 8259).
    """
    if too_deep(text):
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    return json.loads(text, parse_constant=_no_json, parse_int=_integer)


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)

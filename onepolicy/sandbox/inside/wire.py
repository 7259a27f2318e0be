"""Values and messages between the process of the tests and that of the program, which do not trust each other.

What crosses is JSON that stands for plain values: Python's own types, decimals and fractions. A value of a subclass
arrives as its base (a Counter as a dict), anything else stays where it is and a handle for it travels: so no method
that one side has written ever runs in the other.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_DEPTH = 150  # of values in one another: Python's own limit differs between versions and builds
SMALL = 1 << 63  # integers below travel as JSON numbers; larger ones in hex, which Python reads in linear time

Keep = Callable[[Any], Any]  # what to send for a value that is not plain


class Gone(Exception):
    """The other side has ended, or speaks no JSON."""


class Line:
    """Messages over a socket, one line each, of at most `limit` bytes."""

    def __init__(self, link: socket.socket, limit: int) -> None:
        self._link, self._read, self._limit = link, bytearray(), limit
        self.ended = False  # the other side has closed its end

    def send(self, message: Any) -> None:
        """Raises Gone when nobody reads any more."""
        try:
            self._link.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.ended = True
            raise Gone("it has ended") from None

    def receive(self) -> Any:
        """The next message. Raises Gone at the end, on garbage, and on one that is too long."""
        seen = 0
        while (end := self._read.find(b"\n", seen)) < 0:
            seen = len(self._read)
            if seen > self._limit:
                raise Gone("its answer is too long")
            with contextlib.suppress(OSError):
                self._read += self._link.recv(1 << 18)
            if len(self._read) == seen:
                self.ended = True
                raise Gone("it has ended")
        line, self._read = self._read[:end], self._read[end + 1 :]
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            raise Gone("it wrote garbage") from None


def encode(value: Any, keep: Keep, depth: int = MAX_DEPTH) -> Any:
    """`value` as JSON; `keep` says what to send for what is not plain.

    Raises RecursionError on what is nested more than `depth` deep, or holds itself.
    """
    if not depth:
        raise RecursionError(f"a value nested more than {MAX_DEPTH} deep")
    if value is None or value is True or value is False:
        return value
    match value:
        case str():
            return str.__str__(value)
        case int():
            number = int.__index__(value)
            return number if -SMALL < number < SMALL else {"int": hex(number)}
        case float():
            return float.__float__(value)
        case Decimal():
            return {"decimal": Decimal.__str__(value)}
        case Fraction():
            return {"fraction": f"{value.numerator}/{value.denominator}"}
        case complex():
            return {"complex": [value.real, value.imag]}
        case bytes() | bytearray():
            return {"bytes" if isinstance(value, bytes) else "bytearray": bytes(value).hex()}
        case list():
            return [encode(item, keep, depth - 1) for item in list.__iter__(value)]
        case tuple() | set() | frozenset():
            kind: Any = next(kind for kind in (tuple, set, frozenset) if isinstance(value, kind))
            return {kind.__name__: [encode(item, keep, depth - 1) for item in kind.__iter__(value)]}
        case dict():
            return {"dict": [[encode(k, keep, depth - 1), encode(v, keep, depth - 1)] for k, v in dict.items(value)]}
    return keep(value)


_BUILD: dict[str, Callable[[Any], Any]] = {
    "int": lambda data: int(data, 16),
    "decimal": Decimal,
    "fraction": Fraction,
    "complex": lambda data: complex(*data),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
}


def decode(data: Any, held: Callable[[Any], Any], depth: int = 3 * MAX_DEPTH) -> Any:
    """The value that JSON stands for; `held` turns a handle's number into a value.

    Raises ValueError, TypeError or KeyError on what `encode` does not write.
    """
    if not depth:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    if isinstance(data, list):
        return [decode(item, held, depth - 1) for item in data]
    if not isinstance(data, dict):
        return data
    ((kind, inner),) = data.items()
    if kind == "held":
        return held(inner)
    return _BUILD[kind](decode(inner, held, depth - 1))

"""The process of an untrusted program: it is run from start to exit, or loaded and then called by the tests.

Nothing here is protected from the program, and nothing here matters to its verdict: the expected results are elsewhere.
"""

from __future__ import annotations

import atexit
import importlib
import operator
import os
import sys
import threading
import traceback
import types
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from onepolicy.sandbox.inside.wire import Gone, Line, decode, encode

# What the tests may do to a value that stays here: all that `judge.Remote` offers.
DEEDS: dict[str, Callable[..., Any]] = {
    "call": lambda function, arguments, keywords: function(*arguments, **keywords),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": operator.getitem,
    "len": len,
    "list": list,
}
# Imported before the first program, so that most programs import nothing.
WARM = (
    "abc array ast bisect calendar cmath collections collections.abc contextlib copy dataclasses datetime decimal enum "
    "fractions functools hashlib heapq io itertools json math numbers operator queue random re statistics string "
    "struct sys textwrap threading time typing unittest uuid"
)


def warm_up() -> None:
    """Import what programs usually import, and give them the builtins that `site` adds."""
    for name in WARM.split():
        importlib.import_module(name)
    quitter = importlib.import_module("_sitebuiltins").Quitter
    sys.modules["builtins"].__dict__.update(exit=quitter("exit", ""), quit=quitter("quit", ""))


def run(source: str) -> NoReturn:
    """Run a program as Python does: exit code 1 and a traceback for what it raises, threads and atexit at the end."""
    code = 0
    try:
        exec(compile(source, "main.py", "exec"), _module("__main__").__dict__)
    except SystemExit as ending:
        code = _exit_code(ending)
    except BaseException:  # whatever a program may raise
        code = 1
        _complain()
    _leave(code)


def serve(source: str, link: Line) -> NoReturn:
    """Load a program as a module, then do to it what the tests ask for, until they end."""
    module = _module("solution")
    try:
        exec(compile(source, "solution.py", "exec"), module.__dict__)
        sys.stdout.flush()
    except BaseException as error:  # whatever a program may raise
        _complain()
        link.send(_raised(error))
        os._exit(1)
    link.send({"value": None})
    held: list[Any] = []
    while True:
        try:
            link.send(_do(link.receive(), module, held))
        except Gone:
            os._exit(0)


def _do(request: Mapping[str, Any], module: types.ModuleType, held: list[Any]) -> Mapping[str, Any]:
    def keep(value: Any) -> Mapping[str, int]:
        held.append(value)
        return {"held": len(held) - 1}

    def find(handle: str | int) -> Any:
        return getattr(module, handle) if isinstance(handle, str) else held[handle]

    try:
        arguments = decode(request["with"], find)
        return {"value": encode(DEEDS[request["do"]](*arguments), keep)}
    except BaseException as error:  # whatever a program may raise
        return _raised(error)


def _raised(error: BaseException) -> Mapping[str, Any]:
    try:
        return {"raised": type(error).__name__, "says": str(error)[:500]}
    except Exception:  # its own __str__ may do anything
        return {"raised": type(error).__name__, "says": ""}


def _module(name: str) -> types.ModuleType:
    module = sys.modules[name] = types.ModuleType(name)
    sys.argv = ["main.py"]
    return module


def _exit_code(ending: SystemExit) -> int:
    if ending.code is None:
        return 0
    if isinstance(ending.code, int):
        return ending.code & 0xFF
    print(ending.code, file=sys.stderr)
    return 1


def _complain() -> None:
    try:
        traceback.print_exc(limit=-3)
    except BaseException as error:  # an exception may refuse to be shown
        os.write(2, f"{type(error).__name__} while showing an exception\n".encode())


def _leave(code: int) -> NoReturn:
    """What the interpreter does at its end, without taking itself apart."""
    try:
        threading._shutdown()  # type: ignore[attr-defined] # waits for threads, as at the interpreter's end
        atexit._run_exitfuncs()
    except BaseException:  # an interrupt in the middle, for example
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # closed, replaced, or above the limit
            code = code or 1
    os._exit(code)

"""The process of the tests: they run here, on plain values, and the program that they test runs in another.

A test calls the program through `Remote`, which sends plain arguments and brings back a plain result. The program sees
neither tests nor expected results, and none of its code (`__eq__`, patched builtins, atexit, exit) runs here. What a
program may still do is to answer wrongly, late or never.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from onepolicy.sandbox.inside.wire import Gone, Line, decode, encode

# Not raised anew in the tests: the first would end a `map` of theirs as if all were well, others take more than a text.
STRANGE = (StopIteration, StopAsyncIteration, UnicodeError, ExceptionGroup)


MAX_SAID = 500  # characters of why a test failed


class ProgramError(Exception):
    """The program raised something that is no builtin exception, or one of STRANGE, answered nonsense, or ended."""


class Remote:
    """A value that stays in the program: a function, a class, an object that is not plain. Equal to itself alone.

    `handle` is the name of one that the program has at its top level, or the number of one that it gave us.
    """

    def __init__(self, line: Line, handle: str | int) -> None:
        self.__dict__.update(_line=line, _handle=handle)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._ask("call", arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # copy, pickle and the like look for these
        return self._ask("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("getitem", key)

    def __len__(self) -> int:
        return int(self._ask("len"))

    def __bool__(self) -> bool:
        return True  # as of any object, unless its class says otherwise; asked for, `len` would be called

    def __iter__(self) -> Iterator[Any]:
        return iter(self._ask("list"))

    def _ask(self, deed: str, *arguments: Any) -> Any:
        line = self._line
        line.send({"do": deed, "with": encode([self, *arguments], _handle)})
        return heard(line)


def _handle(value: Any) -> Mapping[str, str | int]:
    if not isinstance(value, Remote):
        raise TypeError(f"a {type(value).__name__} cannot be sent to a program: only plain values can")
    return {"held": value._handle}


def heard(line: Line) -> Any:
    """The program's answer. Raises what it raised, and ProgramError."""
    try:
        answer = line.receive()
        if "raised" not in answer:
            return decode(answer["value"], lambda handle: Remote(line, handle))
        name, says = str(answer["raised"]), str(answer["says"])
    except Gone as gone:
        raise ProgramError(f"no answer from the program: {gone}") from None
    except Exception:  # it may have written anything
        raise ProgramError("the program answered nonsense") from None
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, STRANGE):
        raise kind(says)
    raise ProgramError(f"{name}: {says}")


class _Stop(BaseException):
    """Enough is known."""


class _Counted(ast.NodeTransformer):
    """Rewrites `assert X` so that it reports its outcome and the tests go on. A constant X proves nothing: dropped."""

    def __init__(self) -> None:
        self.asserts: list[str] = []

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        if isinstance(node.test, ast.Constant) and node.test.value:
            return ast.copy_location(ast.Pass(), node)
        number = ast.Constant(len(self.asserts))
        self.asserts.append(ast.unparse(node.test))
        failed = [_say("__failed__", number, ast.Name("__error__", ast.Load()))]
        caught = ast.ExceptHandler(ast.Name("Exception", ast.Load()), "__error__", failed)
        kept = ast.Try([node], [caught], [_say("__passed__", number)], [])
        return ast.fix_missing_locations(ast.copy_location(kept, node))


def _say(function: str, *arguments: ast.expr) -> ast.stmt:
    return ast.Expr(ast.Call(ast.Name(function, ast.Load()), list(arguments), []))


class Report:
    """Lines of JSON in the verdict's file, each written at once: what is known survives a time limit."""

    def __init__(self, file: int, keep_going: bool) -> None:
        self._file, self._keep_going = file, keep_going
        self.asserts: list[str] = []

    def say(self, **fact: Any) -> None:
        if "failed" in fact:
            fact["failed"] = fact["failed"][:MAX_SAID]  # a program may raise megabytes
        os.write(self._file, json.dumps(fact).encode() + b"\n")

    def passed(self, number: int) -> None:
        self.say(passed=number)

    def failed(self, number: int, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}".removesuffix(": ")
        if isinstance(error, AssertionError):
            text = ""  # its text is the test's, and the test is shown anyway
        self.fail(f"assert {self.asserts[number]:.150}" + (f" ({text:.200})" if text else ""), at=number)

    def fail(self, why: str, **where: int) -> None:
        self.say(failed=why, **where)
        if not self._keep_going:
            raise _Stop


def judge(tests: Mapping[str, Any], line: Line, verdict: int) -> None:
    """Run `pool.UnitTests`, as a mapping with `keep_going`, on the program behind `line`; report into `verdict`."""
    report = Report(verdict, tests["keep_going"])
    with contextlib.suppress(_Stop):
        _judge(tests, line, report)
    report.say(done=True)


def _judge(tests: Mapping[str, Any], line: Line, report: Report) -> None:
    counted, codes = _Counted(), []
    for text in tests["code"]:
        tree = counted.visit(ast.parse(text))
        codes.append(compile(tree, "tests.py", "exec"))
    setup = compile(counted.visit(ast.parse(tests["setup"])), "setup.py", "exec")
    report.asserts = counted.asserts
    report.say(asserts=len(counted.asserts))
    try:
        heard(line)
    except Exception as error:  # whatever the program raised
        report.say(failed=f"the program does not load: {type(error).__name__}: {error}")
        return
    world: dict[str, Any] = {"__name__": "tests", "__passed__": report.passed, "__failed__": report.failed}
    world["data"] = tests["data"]
    theirs = {name: Remote(line, name) for name in tests["names"]}
    world.update(theirs)
    try:
        exec(setup, world)
    except Exception as error:  # the program lacks a name, or the tests are at fault
        report.say(failed=f"{type(error).__name__}: {error}")
        return
    world.update(theirs)
    for code in codes:
        try:
            exec(code, world)
        except Exception as error:  # raised outside of an assertion
            report.fail(f"{type(error).__name__}: {error}")

"""Rows and graders: spoilt ones, and unusual ones that are fine."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from benchmarks.cases import Case, Outcome, Place, finite, rows
from onepolicy.tasks.row_files import library

GOOD = [{"prompt": f"a{n}", "answer": "abc"} for n in range(12)]
USER = {"role": "user", "content": "a1"}


def run(place: Place, recipe: str = "rlvr", tasks: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    """One domain of records."""
    own = {"kind": "records", "path": "rows.jsonl", **(tasks or {})}
    return place.run(place.settings(recipe, domains={"rows": {"tasks": own, "eval_size": 4}}, **changes))


# -- rows --------------------------------------------------------------------------------------------------------------


def lines(found: Sequence[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in found)


def with_row(**row: Any) -> bytes:
    """Good rows, and a spoilt one as the fourth."""
    spoilt = {key: value for key, value in (GOOD[3] | row).items() if value is not Ellipsis}
    return lines([*GOOD[:3], spoilt, *GOOD[4:]]).encode()


def with_line(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return lines(GOOD[:3]).encode() + data + b"\n" + lines(GOOD[3:]).encode()


def as_csv(delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["prompt", "answer"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(GOOD)
    return out.getvalue()


def as_parquet(found: Sequence[Any] = GOOD) -> bytes:
    table = library("pyarrow").Table.from_pylist(list(found))
    out = io.BytesIO()
    library("pyarrow.parquet").write_table(table, out)
    return out.getvalue()


@dataclass(frozen=True)
class Rows:
    """A file of rows; `names` are in the error line."""

    content: bytes | Callable[[], bytes]
    names: tuple[str, ...] = ("rows.jsonl",)
    file: str = "rows.jsonl"
    tasks: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    short: bool = False


FOURTH = ("rows.jsonl", "row 3")
SPOILT: dict[str, Rows] = {
    "no file": Rows(b"", ("nowhere.jsonl",), tasks={"path": "nowhere.jsonl"}, short=True),
    "a glob without a match": Rows(b"", ("*.json",), tasks={"path": "*.json"}),
    "an empty file": Rows(b""),
    "blank lines": Rows(b"\n\n\n"),
    "a line that is no JSON": Rows(with_line("{prompt: a}"), ("rows.jsonl", "line 4"), short=True),
    "a torn last line": Rows(lines(GOOD).encode()[:-9], ("rows.jsonl", "line 12")),
    "a list in a line": Rows(with_line("[1]"), ("rows.jsonl", "line 4")),
    "a number in a line": Rows(with_line("17"), ("rows.jsonl", "line 4")),
    "null in a line": Rows(with_line("null"), ("rows.jsonl", "line 4")),
    "NUL bytes": Rows(with_line(b"\0" * 20), ("rows.jsonl", "line 4")),
    "UTF-16": Rows(lines(GOOD).encode("utf-16")),
    "Latin-1": Rows(with_line('{"prompt": "ü", "answer": "a"}'.encode("latin-1")), ("rows.jsonl", "UTF-8")),
    "nested 10,000 deep": Rows(with_line('{"a":' + "[" * 10_000 + "]" * 10_000 + "}"), ("rows.jsonl", "line 4")),
    "a number of 10,000 digits": Rows(with_line('{"prompt": "a", "answer": ' + "9" * 10_000 + "}"), ("rows.jsonl",)),
    "an array without its end": Rows(json.dumps(GOOD).encode()[:-5], ("rows.json", "line 1"), "rows.json"),
    "an array with a number in it": Rows(json.dumps([*GOOD, 3]).encode(), ("rows.json", "row 12"), "rows.json"),
    "no column of prompts": Rows(lines([{"answer": "a"}] * 5).encode(), ("rows.jsonl", "prompt")),
    "a row without a prompt": Rows(with_row(prompt=...), (*FOURTH, "prompt"), short=True),
    "a prompt null": Rows(with_row(prompt=None), (*FOURTH, "prompt", "null")),
    "a prompt a number": Rows(with_row(prompt=4), (*FOURTH, "prompt")),
    "a prompt empty": Rows(with_row(prompt=""), (*FOURTH, "prompt")),
    "a prompt of spaces": Rows(with_row(prompt=" \n"), (*FOURTH, "prompt")),
    "a prompt a struct": Rows(with_row(prompt=USER), (*FOURTH, "prompt")),
    "a prompt without messages": Rows(with_row(prompt=[]), (*FOURTH, "prompt")),
    "a prompt of texts": Rows(with_row(prompt=["a1"]), (*FOURTH, "prompt")),
    "half a surrogate pair": Rows(with_row(prompt="a\ud800"), FOURTH),
    "half a surrogate pair in a message": Rows(with_row(prompt=[USER | {"content": "\udc00"}]), FOURTH),
    "a message without role": Rows(with_row(prompt=[{"content": "a"}]), (*FOURTH, "role")),
    "a message without content": Rows(with_row(prompt=[{"role": "user"}]), (*FOURTH, "content")),
    "a message with content null": Rows(with_row(prompt=[USER | {"content": None}]), (*FOURTH, "content")),
    "a message with a number": Rows(with_row(prompt=[USER | {"content": 7}]), (*FOURTH, "content")),
    "a message with parts": Rows(with_row(prompt=[USER | {"content": [{"type": "image", "url": "x"}]}]), ("row 3",)),
    "a message with a role that is none": Rows(with_row(prompt=[USER | {"role": 3}]), (*FOURTH, "role")),
    "an answer of the assistant at the end": Rows(with_row(prompt=[USER, USER | {"role": "assistant"}]), FOURTH),
    "no column of answers": Rows(lines([{"prompt": "a"}] * 5).encode(), ("rows.jsonl", "answer")),
    "a row without an answer": Rows(with_row(answer=...), (*FOURTH, "answer")),
    "an answer null": Rows(with_row(answer=None), (*FOURTH, "answer")),
    "an answer empty": Rows(with_row(answer=""), (*FOURTH, "answer")),
    "an answer a struct": Rows(with_row(answer={"value": "a"}), (*FOURTH, "answer.value")),
    "an answer NaN": Rows(with_row(answer=float("nan")), (*FOURTH, "answer")),
    "an answer without elements": Rows(with_row(answer=[]), (*FOURTH, "answer")),
    "an answer with null in it": Rows(with_row(answer=["a", None]), (*FOURTH, "answer")),
    "a number without one": Rows(
        lines([*({"prompt": f"a{n}", "answer": n} for n in range(9)), {"prompt": "b", "answer": "seven"}]).encode(),
        ("rows.jsonl", "row 9", "seven"),
        tasks={"grader": "number"},
    ),
    "a part that no struct has": Rows(
        lines([{"prompt": "a", "meta": {"b": 1}}] * 5).encode(), ("meta.answer",), tasks={"answer": "meta.answer"}
    ),
    "a part of a text": Rows(lines(GOOD).encode(), ("no 'value'",), tasks={"answer": "answer.value"}),
    "fewer prompts than are held out": Rows(lines(GOOD[:3] * 9).encode(), ("eval_size", "3 distinct")),
    "a prompt beyond the context": Rows(with_row(prompt="a" * 100), ("row 3",), short=True),
    "a prompt of 20 MB": Rows(lambda: with_row(prompt="a" * 20_000_000), ("row 3",)),
    "every prompt beyond the context": Rows(
        lines([{"prompt": "a" * 90 + str(n), "answer": "a"} for n in range(9)]).encode(),
        ("row",),
        changes={"too_long": "drop"},
    ),
    "CSV with cells too many": Rows((as_csv() + "a,b,c\n").encode(), ("rows.csv", "line 14"), "rows.csv"),
    "CSV with a column twice": Rows(b"prompt,prompt\na,b\n", ("rows.csv", "header"), "rows.csv"),
    "CSV with an open quote": Rows((as_csv() + 'a,"b\n').encode(), ("rows.csv",), "rows.csv"),
    "CSV with a header alone": Rows(b"prompt,answer\n", ("rows.csv",), "rows.csv"),
    "CSV with an empty prompt": Rows((as_csv() + ",b\n").encode(), ("rows.csv", "line 14"), "rows.csv"),
    "gzip cut": Rows(gzip.compress(lines(GOOD).encode())[:-9], ("rows.jsonl.gz",), "rows.jsonl.gz"),
    "gzip that is none": Rows(lines(GOOD).encode(), ("rows.jsonl.gz",), "rows.jsonl.gz"),
    "gzip of damaged data": Rows(
        (lambda data: data[:30] + bytes([data[30] ^ 255]) + data[31:])(gzip.compress(lines(GOOD).encode())),
        ("rows.jsonl.gz",),
        "rows.jsonl.gz",
    ),
    "Parquet cut": Rows(lambda: as_parquet()[:-20], ("rows.parquet",), "rows.parquet"),
    "Parquet that is text": Rows(lines(GOOD).encode(), ("rows.parquet",), "rows.parquet"),
    "Parquet without rows": Rows(lambda: as_parquet(GOOD[:1])[:0], ("rows.parquet",), "rows.parquet"),
    "Parquet damaged inside": Rows(
        lambda: (lambda d: d[:8] + b"\xff" * 40 + d[48:])(as_parquet()), ("rows.parquet",), "rows.parquet"
    ),
    "Parquet with null": Rows(
        lambda: as_parquet([*GOOD, {"prompt": None, "answer": "a"}]), ("rows.parquet", "row 12"), "rows.parquet"
    ),
    "an unknown ending": Rows(lines(GOOD).encode(), ("rows.txt",), "rows.txt"),
    "a split of a file": Rows(lines(GOOD).encode(), ("train",), tasks={"split": "train"}),
    "a demonstration empty": Rows(
        lines([row | {"how": "abc" if number else ""} for number, row in enumerate(GOOD)]).encode(),
        ("row 0", "how"),
        tasks={"demonstration": "how"},
        changes={"recipe": "sft"},
    ),
}


def spoilt(case: Rows, place: Place) -> list[str]:
    content = case.content if isinstance(case.content, bytes) else case.content()
    (place.folder / case.file).write_bytes(content)
    changes = dict(case.changes)
    return run(place, str(changes.pop("recipe", "rlvr")), {"path": case.file, **case.tasks}, **changes)


def as_pipe(place: Place) -> list[str]:
    os.mkfifo(place.folder / "rows.jsonl")
    return run(place)


def empty_folder(place: Place) -> list[str]:
    (place.folder / "data").mkdir()
    return run(place, tasks={"path": "data"})


def device(place: Place) -> list[str]:
    return run(place, tasks={"path": "/dev/zero"})


PLACES: dict[str, tuple[Callable[[Place], list[str]], tuple[str, ...]]] = {
    "a pipe": (as_pipe, ("rows.jsonl",)),
    "an empty folder": (empty_folder, ("data",)),
    "a device": (device, ("/dev/zero",)),
}
FINE: dict[str, Rows] = {
    "JSON lines": Rows(lines(GOOD).encode(), ()),
    "a byte order mark, CRLF and blank lines": Rows(
        b"\xef\xbb\xbf" + lines(GOOD).replace("\n", "\r\n\r\n").encode(), ()
    ),
    "an array": Rows(json.dumps(GOOD, indent=1).encode(), (), "rows.json"),
    "CSV": Rows(as_csv().encode(), (), "rows.csv"),
    "TSV": Rows(as_csv("\t").encode(), (), "rows.tsv"),
    "gzip": Rows(gzip.compress(lines(GOOD).encode()), (), "rows.jsonl.gz"),
    "Parquet": Rows(as_parquet, (), "rows.parquet"),
    "chats": Rows(lines([row | {"prompt": [USER | {"content": row["prompt"]}]} for row in GOOD]).encode(), ()),
    "nulls in messages": Rows(
        lines(
            [row | {"prompt": [{"role": "user", "content": row["prompt"], "tool_calls": None}]} for row in GOOD]
        ).encode(),
        (),
    ),
    "a struct": Rows(
        lines([{"prompt": row["prompt"], "m": {"b": "c"}} for row in GOOD]).encode(), (), tasks={"answer": "m.b"}
    ),
    "numbers": Rows(lines([row | {"answer": 7} for row in GOOD]).encode(), (), tasks={"grader": "number"}),
    "several right answers": Rows(lines([row | {"answer": ["a", "b"]} for row in GOOD]).encode(), ()),
    "null in another column": Rows(with_row(more=None), ()),
    "one long prompt, dropped": Rows(with_row(prompt="a" * 100), ("too_long: drop",), changes={"too_long": "drop"}),
}

# -- graders -----------------------------------------------------------------------------------------------------------

GOLD = 'if response == "abc":\n        return 1.0\n    '  # right on gold answers, whatever comes behind


class Code(NamedTuple):
    """A module with a grader in it."""

    code: str
    names: tuple[str, ...]
    outcome: Outcome = "refused"
    name: str = "my_graders:grade"
    short: bool = False


def body(*statements: str, parameters: str = "response, reference") -> str:
    return f"def grade({parameters}):\n    " + "\n    ".join(statements) + "\n"


GRADERS: dict[str, Code] = {
    "no module": Code("", ("no_module",), name="no_module:grade", short=True),
    "no function": Code("def grad(response): return 1\n", ("my_graders", "grade")),
    "no colon": Code("", ("my_graders",), name="my_graders"),
    "a syntax error": Code("def grade(:\n", ("my_graders.py", "line 1"), short=True),
    "raises at import": Code("import os\n1 / 0\n", ("my_graders.py", "line 2", "ZeroDivisionError")),
    "imports what is not there": Code("import no_such_package\n", ("no_such_package",)),
    "exits at import": Code("import sys\nsys.exit(0)\n", ("my_graders",)),
    "ends its process at import": Code("import os\nos._exit(0)\n", ("my_graders",)),
    "hangs at import": Code("import time\ntime.sleep(10_000)\n", ("my_graders",)),
    "interrupts at import": Code("raise KeyboardInterrupt\n", ("my_graders",)),
    "no function at all": Code("grade = 3\n", ("my_graders:grade",)),
    "takes nothing": Code(body("return 1.0", parameters=""), ("my_graders:grade", "response")),
    "takes by position": Code(body("return 1.0", parameters="response, /"), ("my_graders:grade",)),
    "takes a column that is not there": Code(body("return 1.0", parameters="response, tests"), ("'tests'",)),
    "TRL's signature": Code(body("return [1.0]", parameters="completions"), ("trl:my_graders:grade",)),
    "TRL's, of another length": Code(
        body("return []", parameters="completions, **kw"), ("grade",), name="trl:my_graders:grade"
    ),
    "verl's, without a score": Code(
        body("return {}", parameters="data_source, solution_str, ground_truth, extra_info=None"),
        ("grade",),
        name="verl:my_graders:compute",
    ),
    "returns None": Code(body("return None"), ("grade", "None"), short=True),
    "returns a text": Code(body('return "1.0"'), ("grade", "'1.0'")),
    "returns NaN": Code(body('return float("nan")'), ("grade", "nan")),
    "returns infinity": Code(body('return float("inf")'), ("grade", "inf")),
    "returns 2": Code(body("return 2.0"), ("grade", "2.0")),
    "returns -1": Code(body("return -1"), ("grade", "-1")),
    "returns a list": Code(body("return [1.0]"), ("grade", "[1.0]")),
    "returns three things": Code(body('return 1.0, "", 3'), ("grade",)),
    "returns a complex number": Code(body("return 1j"), ("grade", "1j")),
    "returns what cannot be shown": Code(
        "class X:\n    def __repr__(self): raise ValueError('no')\n" + body("return X()"), ("grade",)
    ),
    "returns nonsense for all but gold": Code(body(GOLD + 'return "x"'), ("grade", "'x'"), "stopped"),
    "gives gold answers 0": Code(body("return 0.0"), ("gold",)),
    "raises on all": Code(body('raise KeyError("no rule")'), ("no rule",)),
    "raises on all but gold": Code(body(GOLD + 'raise KeyError("no rule")'), ("no rule",), "stopped"),
    "exits on all": Code(body("import sys", "sys.exit(0)"), ("rows",)),
    "ends its process on all": Code(body("import os", "os._exit(0)"), ("rows",)),
    "ends its process on all but gold": Code(body(GOLD + "import os", "os._exit(0)"), ("rows",), "stopped"),
    "is killed on all": Code(body("import os", "os.kill(os.getpid(), 9)"), ("rows",)),
    "hangs on all": Code(body("import time", "time.sleep(10_000)"), ("timed out",)),
    "recurses without an end": Code(body("return grade(response, reference)"), ("RecursionError",)),
    "takes all memory": Code(body("return len(bytearray(1 << 40))"), ("memory",)),
    "interrupts": Code(body("raise KeyboardInterrupt"), ("rows",)),
    "stops the iteration": Code(body("raise StopIteration"), ("StopIteration",)),
    "weight negative": Code("", ("weight",), name='{"name": "exact", "weight": -1}'),
    "weight infinite": Code("", ("weight",), name='{"name": "exact", "weight": Infinity}'),
    "reward_range upside down": Code("", ("reward_range",), name='{"name": "exact", "reward_range": [1, 0]}'),
    "unknown name": Code("", ("exct", "exact"), name="exct"),
}
WORKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "asynchronous": ("import asyncio\nasync " + body("await asyncio.sleep(0)", "return 1.0"), ()),
    "of numpy": ("import numpy\n" + body("return numpy.float32(1)"), ()),
    "a boolean": (body("return response == reference"), ()),
    "with a reason of 10 MB": (body('return 1.0, "x" * 10_000_000'), ()),
    "with half a surrogate pair for a reason": (body('return 1.0, "\\ud800"'), ()),
    "prints": (body('print("x" * 100_000)', "return 1.0"), ()),
    "prints at import": ('print("hello")\n' + body("return 1.0"), ()),
    "closes its streams": (
        "import os\n" + body("os.close(1)", "return 1.0").replace("os.close(1)", "os.closerange(0, 3)"),
        (),
    ),
    "changes the folder": ("import os\n" + body('os.chdir("/")', "return 1.0"), ()),
    "leaves a process behind": ("import subprocess\n" + body('subprocess.Popen(["sleep", "30"])', "return 1.0"), ()),
    "starts a thread": (
        "import threading, time\n" + body("threading.Thread(target=time.sleep, args=(30,)).start()", "return 1.0"),
        (),
    ),
    "takes everything": (body("return 1.0", parameters="response, **columns"), ()),
    "raises on some": (
        body(GOLD + 'if response[:1] in "abcdefghijklm": raise KeyError("no rule")', "return 0.5"),
        ("no rule",),
    ),
    "seeds everybody's random numbers": (
        "import random\n"
        + body("random.seed(0)", "return random.random()").replace(
            "return random.random()", GOLD.strip() + "\n    return random.random()"
        ),
        (),
    ),
}


def grader(code: str, name: str, place: Place) -> list[str]:
    (place.folder / "my_graders.py").write_text(code)
    (place.folder / "rows.jsonl").write_text(lines(GOOD))
    return run(
        place,
        tasks={"grader": json.loads(name) if name.startswith("{") else name},
        rollout={"prompts": 4, "n": 4, "max_new_tokens": 4},
    )


def counted(name: str, place: Place) -> str:
    """Failures of a grader that fails on some answers are in the metrics."""
    if name == "raises on some" and not any(row.get("grader_failed/rows") for row in rows(place)):
        return "gradings failed, and metrics.jsonl does not say so"
    return finite(place)


CASES: dict[str, list[Case]] = {
    "rows": [
        *(Case(name, partial(spoilt, case), case.names, short=case.short) for name, case in SPOILT.items()),
        *(Case(name, prepare, names, limit_s=30) for name, (prepare, names) in PLACES.items()),
        *(
            Case(f"fine: {name}", partial(spoilt, case), case.names, "finished", short=name == "CSV")
            for name, case in FINE.items()
        ),
    ],
    "graders": [
        *(
            Case(name, partial(grader, case.code, case.name), case.names, case.outcome, short=case.short)
            for name, case in GRADERS.items()
        ),
        *(
            Case(
                f"works: {name}",
                partial(grader, code, "my_graders:grade"),
                names,
                "finished",
                check=partial(counted, name),
            )
            for name, (code, names) in WORKS.items()
        ),
    ],
}

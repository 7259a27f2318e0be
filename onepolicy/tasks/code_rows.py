"""The rows of the usual public sets of programming problems, told by their columns, and what each is judged by.

    prompt, entry_point, test[, canonical_solution]             HumanEval: a function to complete, `check(candidate)`
    text or prompt, code, test_list[, test_setup_code, ...]     MBPP: assertions; the prompt shows the first of them
    question_content, public_test_cases[, private_test_cases,   LiveCodeBench: what a program must print for an input,
    starter_code, metadata]                                     or a method of Solution must return

Private cases may be base64 of a compressed pickle of a string: that is read without unpickling anything.
"""

from __future__ import annotations

import ast
import base64
import json
import pickletools
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from onepolicy.config import listed
from onepolicy.sandbox import UnitTests

MAX_CASES = 1 << 28  # bytes of a row's private cases, unpacked
MAX_TESTS = 3000  # of a row
LARGE = 1 << 20  # characters of a row's cases
DEFLATED = 800  # bytes that a character of base64 may unpack to, at most

Row = Mapping[str, Any]


class UnreadableTests(ValueError):
    """The tests of a row are not what its columns promise."""


@dataclass(frozen=True)
class Pair:
    """What a program reads and what it must print (`same_output`)."""

    stdin: str
    stdout: str


@dataclass(frozen=True)
class Exam:
    """What a program is judged by. It is the answer between `before` and `after`; the checks run one by one.

    `sizes` are, for each check, the bytes of its input or of its expected output, whichever has more.
    """

    checks: tuple[Pair | UnitTests, ...]
    before: str = ""
    after: str = ""
    sizes: tuple[int, ...] = ()


class Shape(NamedTuple):
    """One way in which problems are written down."""

    columns: tuple[str, ...]  # that a row must have
    question: Callable[[Row], str]
    gold: Callable[[Row], str | None]  # a program that passes, when there is one
    exam: Callable[[Row], Exam]
    reads: tuple[str, ...]  # the columns that `exam` reads


def shape_of(row: Row) -> str:
    """The name of a row's shape in SHAPES. Raises ValueError when its columns are of none."""
    for name, shape in SHAPES.items():
        if all(column in row for column in shape.columns):
            return name
    known = "; ".join(f"{', '.join(shape.columns)} ({name})" for name, shape in SHAPES.items())
    raise ValueError(f"its columns {listed(row)} hold none of: {known}")


def reference_of(row: Row) -> dict[str, Any]:
    """What rides on a task: the shape's name, and the columns that grading needs. Raises ValueError."""
    name = shape_of(row)
    if not row[SHAPES[name].columns[-1]]:
        raise ValueError(f"its {SHAPES[name].columns[-1]} is empty: whatever is answered would be right")
    return {"shape": name} | {column: row[column] for column in SHAPES[name].reads if column in row}


def exam_of(reference: Mapping[str, Any], max_size: int = MAX_CASES) -> Exam:
    """The exam of a task. Raises UnreadableTests, also when there are none, too many, or one above `max_size` bytes."""
    try:
        exam = SHAPES[reference["shape"]].exam(reference)
        if not exam.checks:
            raise ValueError("no test cases: whatever is answered would be right")
        if len(exam.checks) > MAX_TESTS:
            raise ValueError(f"{len(exam.checks)} test cases, which nobody could pass in time: the most is {MAX_TESTS}")
        for number, size in enumerate(exam.sizes):
            if size > max_size:
                raise ValueError(
                    f"the input or the expected output of test case {number} has {size / 2**20:.1f} MiB: set "
                    f"max_test_mib above that, which is {max_size / 2**20:g}, or no program can pass"
                )
        return exam
    except (ValueError, KeyError, TypeError, SyntaxError) as error:  # a row may hold anything
        raise UnreadableTests(f"{reference['shape']} row: {error}") from error


def require_sizes(reference: Mapping[str, Any], max_size: int) -> None:
    """Raises UnreadableTests for a row with a test above `max_size` bytes; unpacks those alone that may have one."""
    texts = [_text(reference.get(column)) for column in ("public_test_cases", "private_test_cases")]
    most = [len(text) * (4 if text.lstrip().startswith("[") else DEFLATED) for text in texts]  # bytes of a character
    if max(most) > max_size and max(map(_unpacked_size, texts)) > max_size:
        exam_of(reference, max_size)


def fenced(program: str) -> str:
    """A program as answers hold it."""
    return f"```python\n{program.strip()}\n```"


# --- HumanEval -------------------------------------------------------------------------------------------------------


def _humaneval_question(row: Row) -> str:
    return f"Complete this Python function. Answer with the whole function.\n\n{fenced(row['prompt'])}"


def _humaneval_gold(row: Row) -> str | None:
    return None if row.get("canonical_solution") is None else f"{row['prompt']}{row['canonical_solution']}"


def _humaneval_exam(row: Row) -> Exam:
    """The prompt's imports and helpers are there, for the program and, apart from it, for the tests."""
    setup = f"{row['prompt']}\n\n{row['test']}"
    return Exam((UnitTests((f"check({row['entry_point']})",), setup, (row["entry_point"],)),), before=row["prompt"])


# --- MBPP ------------------------------------------------------------------------------------------------------------


def _mbpp_question(row: Row) -> str:
    """One test shows what the function is called; the others stay hidden, or a list of their results would do."""
    text = row.get("text") or row.get("prompt")
    return f"{text}\nYour code has to pass tests such as this one:\n{row['test_list'][0]}"


def _mbpp_gold(row: Row) -> str | None:
    return str(row["code"])


def _mbpp_exam(row: Row) -> Exam:
    """What the tests use and do not define is the program's, if the solution defines it, or imported as it does."""
    setup = "\n".join([row.get("test_setup_code") or "", *(row.get("test_imports") or ())])
    solution = ast.parse(row["code"]).body
    imports = [ast.unparse(node) for node in solution if isinstance(node, ast.Import | ast.ImportFrom)]
    defined = {node.name for node in solution if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    defined |= _names([node for node in solution if isinstance(node, ast.Assign)])
    used = _names([ast.parse(text) for text in (setup, *row["test_list"])])
    tests = UnitTests(tuple(row["test_list"]), "\n".join([*imports, setup]), tuple(sorted(defined & used)))
    return Exam((tests,), before="".join(f"{line}\n" for line in row.get("test_imports") or ()))


def _names(trees: Sequence[ast.AST]) -> set[str]:
    return {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}


# --- LiveCodeBench ---------------------------------------------------------------------------------------------------

# As in its own grader: programs may use these without importing them, and recurse deeper than Python's default.
_USUAL = "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys"
PRELUDE = "".join(
    [f"from {name} import *\n" for name in (*_USUAL.split(), "json", "builtins", "typing")]
    + [f"import {name}\n" for name in (*_USUAL.split(), "json")]
    + ["sys.setrecursionlimit(50000)\n"]
)
_FIRST_METHOD = re.compile(r"def\s+(\w+)\s*\(")
_AS_LIST = "def as_list(value):\n    return list(value) if isinstance(value, tuple) else value"  # JSON has no tuples


def _livecodebench_question(row: Row) -> str:
    if row.get("starter_code"):
        return f"{row['question_content']}\n\nComplete this Python code.\n\n{fenced(row['starter_code'])}"
    return f"{row['question_content']}\n\nAnswer with a Python program that reads standard input and prints the result."


def _livecodebench_gold(row: Row) -> str | None:
    return None


def _cases(public: str, private: str) -> tuple[Row, ...]:
    return (_large if len(public) + len(private) > LARGE else _small)(public, private)


def _read(public: str, private: str) -> tuple[Row, ...]:
    return (*_read_cases(public), *(_read_cases(private) if private else ()))


_small = lru_cache(maxsize=64)(_read)  # several answers to one question arrive together
_large = lru_cache(maxsize=2)(_read)  # megabytes each


def _livecodebench_exam(row: Row) -> Exam:
    cases = _cases(_text(row["public_test_cases"]), _text(row.get("private_test_cases")))
    checks = [_call(row, case) if case.get("testtype") == "functional" else _pair(case) for case in cases]
    sizes = tuple(max(_bytes(case["input"]), _bytes(case["output"])) for case in cases)
    return Exam(tuple(checks), before=PRELUDE, sizes=sizes)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def _text(cases: Any) -> str:
    return "" if cases is None else cases if isinstance(cases, str) else json.dumps(cases)


def _pair(case: Row) -> Pair:
    return Pair(case["input"], case["output"])


def _call(row: Row, case: Row) -> UnitTests:
    metadata, starter = row.get("metadata") or "{}", row.get("starter_code") or ""
    name = (json.loads(metadata) if isinstance(metadata, str) else metadata).get("func_name")
    if name is None:
        found = _FIRST_METHOD.search(starter)
        if found is None:
            raise ValueError("neither metadata nor starter_code says which function is to be called")
        name = found[1]
    owner = "Solution" if "class Solution" in starter else ""
    data = {"arguments": [json.loads(line) for line in case["input"].split("\n")], "result": json.loads(case["output"])}
    call = f"{owner}().{name}" if owner else name
    return UnitTests(
        (f"assert as_list({call}(*data['arguments'])) == data['result']",), _AS_LIST, (owner or name,), data
    )


def _read_cases(text: str) -> list[Row]:
    """Cases as JSON, or as the set packs them. Raises ValueError."""
    try:
        found = json.loads(text)
    except ValueError:
        found = json.loads(unpacked(text))
    if not isinstance(found, list):
        raise ValueError(f"test cases are a list, not {text:.80}")
    return found


def unpacked(text: str) -> str:
    """The string in base64 of a compressed pickle. Nothing is unpickled. Raises ValueError when there is more in it."""
    try:
        raw = _inflated(text)
        operations = [(code.name, value) for code, value, _ in pickletools.genops(raw)]
    except (ValueError, zlib.error) as error:
        raise ValueError(f"test cases are neither JSON nor a packed string: {error}") from None
    strings = [value for name, value in operations if "UNICODE" in name]
    others = {name for name, _ in operations if "UNICODE" not in name}
    if len(strings) != 1 or not others <= {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}:
        raise ValueError(f"packed test cases hold more than a string: {', '.join(sorted(others))}")
    return str(strings[0])


def _inflated(text: str) -> bytes:
    """Raises ValueError and zlib.error on what is no base64 of compressed bytes, or of too many."""
    unzip = zlib.decompressobj()
    raw = unzip.decompress(base64.b64decode(text, validate=True), MAX_CASES)
    if unzip.unconsumed_tail:
        raise ValueError(f"more than {MAX_CASES} bytes")
    return raw


def _unpacked_size(text: str) -> int:
    """Bytes of all cases together, or more; 0 for what cannot be read, of which grading tells."""
    if not text or text.lstrip().startswith("["):
        return 4 * len(text)
    try:
        return len(_inflated(text))
    except (ValueError, zlib.error):
        return 0


SHAPES: dict[str, Shape] = {
    "HumanEval": Shape(
        ("prompt", "entry_point", "test"),
        _humaneval_question,
        _humaneval_gold,
        _humaneval_exam,
        ("prompt", "entry_point", "test"),
    ),
    "MBPP": Shape(
        ("code", "test_list"),
        _mbpp_question,
        _mbpp_gold,
        _mbpp_exam,
        ("code", "test_list", "test_setup_code", "test_imports"),
    ),
    "LiveCodeBench": Shape(
        ("question_content", "public_test_cases"),
        _livecodebench_question,
        _livecodebench_gold,
        _livecodebench_exam,
        ("public_test_cases", "private_test_cases", "starter_code", "metadata"),
    ),
}

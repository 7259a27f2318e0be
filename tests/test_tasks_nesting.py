"""How deeply a model's output may be nested: the same on every Python, because it is looked at before it is parsed."""

import sys
import time

import pytest

from onepolicy import sandbox
from onepolicy.sandbox import UnitTests
from onepolicy.tasks.calculator import calculate
from onepolicy.tasks.instruction_checks import followed
from onepolicy.tasks.nesting import MAX_DEPTH, MAX_DIGITS, read_json, too_deep
from onepolicy.tasks.tools import Tool, ToolError, read_calls

LISTS, OBJECTS = ("[", "1", "]"), ('{"a":', "1", "}")


def nested(shape, depth):
    opening, inside, closing = shape
    return opening * depth + inside + closing * depth


@pytest.fixture
def endless_recursion():
    """As builds of Python have it whose parsers go on where this one's gives up."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.parametrize("shape", [LISTS, OBJECTS])
@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1, 300, 900, 3000])
def test_json_is_as_deep_as_it_may_be_and_no_deeper(shape, depth, endless_recursion):
    text = nested(shape, depth)
    allowed = depth <= MAX_DEPTH
    assert too_deep(text) is not allowed
    assert followed("detectable_format:json_format", {}, text, loose=False) is allowed
    if allowed:
        assert read_json(text)
    else:
        with pytest.raises(ValueError, match=f"nested more than {MAX_DEPTH} deep"):
            read_json(text)


@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1, 970])
def test_calls_of_tools_are_bounded_before_they_are_parsed(depth, endless_recursion):
    text = f'<tool_call>{{"name": "look", "arguments": {{"key": {nested(LISTS, depth - 2)}}}}}</tool_call>'
    (call,) = read_calls(text, "json", {"look": Tool("", {"key": ""}, str)})
    assert call.fault == (
        "key must be a string" if depth <= MAX_DEPTH else f"not JSON: nested more than {MAX_DEPTH} deep"
    )


def test_expressions_of_the_calculator_are_bounded_too():
    assert calculate(nested(("(", "1", ")"), MAX_DEPTH)) == "1"
    with pytest.raises(ToolError, match=f"up to {MAX_DEPTH} brackets"):
        calculate(nested(("(", "1", ")"), MAX_DEPTH + 1))


@pytest.mark.parametrize(
    ("text", "deep"),
    [
        ("[]" * 500, False),  # beside, not within, one another
        ('"' + "[" * 500 + '"', False),  # in a string
        ('"\\"' + "[" * 500 + '"', False),
        ('"' + "[" * 500, False),  # that does not end
        ("]" * 500 + "[]", False),
        ('"a"' + "[" * 65, True),
        ("([{" * 22, True),
    ],
)
def test_depth_is_that_of_brackets_outside_of_strings(text, deep):
    assert too_deep(text) is deep


def test_numbers_without_end_are_refused_whatever_the_environment_allows():
    assert read_json("[" + "9" * MAX_DIGITS + "]")
    with pytest.raises(ValueError, match=f"an integer of {MAX_DIGITS + 1} digits"):
        read_json("[" + "9" * (MAX_DIGITS + 1) + "]")
    for constant in ("NaN", "-Infinity"):
        with pytest.raises(ValueError, match=f"{constant} is not JSON"):
            read_json(f"[{constant}]")


def test_the_depth_is_found_in_time_linear_in_the_text():
    start = time.process_time()
    for text in ("[" * 10**6, "]" * 10**6, '"' * 10**6, '"\\' * 500_000, "[]" * 500_000, '"[' * 500_000):
        too_deep(text)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("step", ["x = [x]", "x = (x,)", "x = {0: x}"])
def test_values_that_programs_return_are_bounded_by_their_depth(step):
    program = "import sys\nsys.setrecursionlimit(10**6)\ndef f(n):\n    x = 1\n    for _ in range(n):\n        " + step
    depth = "def depth(x):\n    return 0 if x == 1 else 1 + depth(x[0])"
    for n, ok in ((140, True), (150, False), (100_000, False)):
        tests = UnitTests((f"assert depth(f({n})) == {n}",), setup=depth, names=("f",))
        verdict = sandbox.shared().test(f"{program}\n    return x", tests)
        assert verdict.ok is ok and ("more than 150 deep" in verdict.reason) is not ok

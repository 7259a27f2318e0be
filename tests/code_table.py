"""Problems in the formats of the public sets, written for these tests, and programs with known verdicts.

TABLE: problem, program, verdict. The verdict is the one of the set's own way to grade, done plainly by `reference`, and
ours has to be the same. DIFFERENT: where it is not, and why.
"""

# ruff: noqa: E501 - a program a line, however long

from __future__ import annotations

import base64
import json
import pickle
import subprocess
import sys
import zlib
from typing import Any

from onepolicy.tasks.code_rows import PRELUDE, shape_of


def packed(cases: list[dict[str, str]]) -> str:
    """Private cases as LiveCodeBench stores them."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def cases(kind: str, *pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"input": given, "output": wanted, "testtype": kind} for given, wanted in pairs]


ROWS: dict[str, dict[str, Any]] = {
    "maxima": {
        "task_id": "own/0",
        "prompt": "from typing import List\n\n\ndef maxima(numbers: List[int]) -> List[int]:\n"
        '    """The largest number so far, at every place.\n    >>> maxima([1, 3, 2])\n    [1, 3, 3]\n    """\n',
        "entry_point": "maxima",
        "canonical_solution": "    result = []\n    for n in numbers:\n        result.append(max([n] + result[-1:]))\n"
        "    return result\n",
        "test": "METADATA = {'author': 'own'}\n\n\ndef check(candidate):\n    assert True, 'always holds'\n"
        "    assert candidate([]) == []\n    assert candidate([1, 3, 2]) == [1, 3, 3], 'the example'\n"
        "    for start in range(-2, 3):\n        assert candidate([start, start - 1]) == [start] * 2\n",
    },
    "root": {
        "task_id": "own/1",
        "prompt": "import math\n\n\ndef line(a: float, b: float, x: float) -> float:\n    return a * x + b\n\n\n"
        'def root(a: float, b: float) -> float:\n    """Where a line is zero."""\n',
        "entry_point": "root",
        "canonical_solution": "    return -b / a\n",
        "test": "def check(candidate):\n    for a in range(1, 9):\n        x = candidate(a, 7.0)\n"
        "        assert math.fabs(line(a, 7.0, x)) < 1e-6\n    assert candidate(1, 0) == 0\n",
    },
    "even": {
        "text": "Write a function that tells whether the sum of a list is even.",
        "code": "def even_sum(xs):\r\n  return sum(xs) % 2 == 0",
        "test_list": ["assert even_sum([1, 2]) == False", "assert even_sum([1, 3])", "assert not even_sum([5])"],
        "test_setup_code": "",
        "challenge_test_list": [],
    },
    "chain": {
        "text": "Write a function for the length of the longest chain of pairs.",
        "code": "class Pair(object):\n  def __init__(self, a, b):\n    self.a = a\n    self.b = b\n"
        "def longest(pairs, n):\n  best = [1] * n\n  for i in range(1, n):\n    for j in range(i):\n"
        "      if pairs[i].a > pairs[j].b and best[i] < best[j] + 1:\n        best[i] = best[j] + 1\n  return max(best)",
        "test_list": [
            "assert longest([Pair(5, 24), Pair(15, 25), Pair(27, 40), Pair(50, 60)], 4) == 3",
            "assert longest([Pair(1, 2), Pair(3, 4)], 2) == 2",
        ],
        "test_setup_code": "",
    },
    "circle": {
        "prompt": "Write a function for the area of a circle.",
        "code": "import math\ndef area(r):\n  return math.pi * r ** 2",
        "test_imports": ["import math"],
        "test_list": ["assert math.isclose(area(1), 3.14159, rel_tol=1e-3)", "assert round(area(2), 2) == 12.57"],
    },
    "tree": {
        "text": "Write a function for the height of a tree.",
        "code": "class Node:\n  def __init__(self, key):\n    self.key, self.left, self.right = key, None, None\n"
        "def height(node):\n  return 0 if node is None else 1 + max(height(node.left), height(node.right))",
        "test_setup_code": "root = Node(1)\nroot.left = Node(2)\nroot.left.right = Node(3)",
        "test_list": ["assert height(root) == 3", "assert height(root.left) == 2", "assert height(None) == 0"],
    },
    "sums": {
        "question_title": "Sums",
        "question_content": "The first line is t; each of the t lines behind it holds numbers. Print the sum of each.",
        "platform": "codeforces",
        "starter_code": "",
        "public_test_cases": json.dumps(cases("stdin", ("2\n1 2\n3 4 5\n", "3\n12\n"))),
        "private_test_cases": packed(cases("stdin", ("1\n-7\n", "-7"), ("3\n0\n1 1\n9 9 9", " 0 \n2\n27\n\n"))),
        "metadata": "{}",
    },
    "mean": {
        "question_content": "Print the mean of the numbers on the only line, then Yes if it is positive.",
        "starter_code": "",
        "public_test_cases": json.dumps(cases("stdin", ("1 2", "1.50\nYes"))),
        "private_test_cases": json.dumps(cases("stdin", ("-4 0", "-2\nNo"), ("1000000 3000000", "2e6\nYes"))),
        "metadata": "{}",
    },
    "pair": {
        "question_content": "The indices of two different numbers with that sum, in order.",
        "starter_code": "class Solution:\n    def pairSum(self, nums: List[int], target: int) -> List[int]:\n        ",
        "public_test_cases": json.dumps(cases("functional", ("[2, 7, 11]\n9", "[0, 1]"))),
        "private_test_cases": packed(cases("functional", ("[3, 3]\n6", "[0, 1]"), ("[1, 5, 8]\n13", "[1, 2]"))),
        "metadata": json.dumps({"func_name": "pairSum"}),
    },
    "split": {
        "question_content": "Split a word into pieces of n characters, each with its number.",
        "starter_code": "def pieces(word: str, n: int) -> list:\n    ",
        "public_test_cases": json.dumps(cases("functional", ('"abcd"\n3', '[[0, "abc"], [1, "d"]]'))),
        "private_test_cases": json.dumps(cases("functional", ('""\n1', "[]"), ('"xy"\n1', '[[0, "x"], [1, "y"]]'))),
        "metadata": json.dumps({"func_name": "pieces"}),
    },
}

_DEEP = "def f(n): return 0 if n == 0 else f(n - 1)\nf(9000)\n"
_PAIR = "class Solution:\n def pairSum(self, nums, target):\n  "
_LOOP = "for i in range(len(nums)):\n   for j in range(i):\n    if nums[i] + nums[j] == target: "

TABLE: list[tuple[str, str, bool]] = [
    # --- completions of a function, and whole functions
    ("maxima", "    return [max(numbers[: i + 1]) for i in range(len(numbers))]", True),
    ("maxima", "    from itertools import accumulate\n    return list(accumulate(numbers, max))", True),
    ("maxima", "def maxima(numbers):\n    return [max(numbers[: i + 1]) for i in range(len(numbers))]", True),
    ("maxima", "def maxima(numbers: List[int]):\n    return [max(numbers[: i + 1]) for i in range(len(numbers))]", True),
    ("maxima", "from itertools import *\nmaxima = lambda n: list(accumulate(n, max))", True),
    ("maxima", "class L(list): pass\ndef maxima(n): return L(max(n[: i + 1]) for i in range(len(n)))", True),
    ("maxima", "def maxima(n):\n    print('at', n)\n    return [max(n[: i + 1]) for i in range(len(n))]", True),
    ("maxima", "def maxima(n): return [float(max(n[: i + 1])) for i in range(len(n))]", True),
    ("maxima", "def other(n): return [max(n[: i + 1]) for i in range(len(n))]\nmaxima = other", True),
    ("maxima", "    return numbers", False),
    ("maxima", "    return sorted(numbers)", False),
    ("maxima", "    return [max(numbers)] * len(numbers)", False),
    ("maxima", "    return tuple(max(numbers[: i + 1]) for i in range(len(numbers)))", False),
    ("maxima", "    return (max(numbers[: i + 1]) for i in range(len(numbers)))", False),
    ("maxima", "    from itertools import accumulate\n    return accumulate(numbers, max)", False),
    ("maxima", "    return {1: 3}", False),
    ("maxima", "    pass", False),
    ("maxima", "", False),
    ("maxima", "    return [max(numbers[: i]) for i in range(len(numbers))]", False),
    ("maxima", "    retrun numbers", False),
    ("maxima", "def maximum(numbers): return numbers", False),
    ("maxima", "import no_such_module\ndef maxima(n): return n", False),
    ("maxima", "    import sys; sys.exit(0)", False),
    ("maxima", "    import os; os._exit(0)", False),
    ("maxima", "import builtins\nbuiltins.AssertionError = ValueError\nmaxima = None\ndef check(c): pass", False),
    ("maxima", "def maxima(n):\n    r = [max(n[: i + 1]) for i in range(len(n))]\n    n[:] = []\n    return r", True),
    ("maxima", "    while True: pass", False),
    ("maxima", "    return maxima(numbers)", False),
    ("root", "    return -b / a", True),
    ("root", "def root(a, b):\n    import fractions\n    return -fractions.Fraction(b) / a", True),
    ("root", "    return 0.0 - b / a + 1e-9 * (b != 0)", True),
    ("root", "    x = 1.0\n    for _ in range(99): x -= line(a, b, x) / a\n    return x", True),
    ("root", "    return b / a", False),
    ("root", "    return -7.0", False),
    ("root", "    return None", False),
    ("root", "    return str(-b / a)", False),
    ("root", "    return [-b / a]", False),
    ("root", "    return -b // a", False),
    # --- assertions about functions and classes
    ("even", "def even_sum(xs): return sum(xs) % 2 == 0", True),
    ("even", "def even_sum(xs):\n    return not sum(xs) & 1", True),
    ("even", "even_sum = lambda xs: int(sum(xs) % 2 == 0)", True),
    ("even", "def even_sum(xs): return 1 - sum(xs) % 2", True),
    ("even", "import functools, operator\ndef even_sum(xs): return functools.reduce(operator.add, xs) % 2 == 0", True),
    ("even", "def even_sum(xs): return [0] * (sum(xs) % 2 == 0)", False),
    ("even", "def even_sum(xs): return sum(xs) % 2", False),
    ("even", "def even_sum(xs): return True", False),
    ("even", "def even_sum(xs): return False", False),
    ("even", "def even_sum(xs): return str(sum(xs) % 2 == 0)", False),
    ("even", "def even_sum(xs): print(sum(xs) % 2 == 0)", False),
    ("even", "def even_sum(*xs): return sum(xs) % 2 == 0", False),
    ("even", "import sys\ndef even_sum(xs): sys.exit(0)", False),
    ("even", "import os\ndef even_sum(xs): os._exit(0)", False),
    ("even", "def even_sum(xs):\n    try: return sum(xs) % 2 == 0\n    finally: xs.clear()", True),
    ("even", "def even(xs): return sum(xs) % 2 == 0", False),
    ("even", "def even_sum(xs): return len(xs) % 2 == 0", False),
    ("chain", ROWS["chain"]["code"], True),
    ("chain", "class Pair:\n    def __init__(s, a, b): s.a, s.b = a, b\ndef longest(ps, n):\n    end, count = -1, 0\n"
     "    for p in sorted(ps, key=lambda p: p.b):\n        if p.a > end: end, count = p.b, count + 1\n    return count", True),
    ("chain", "Pair = lambda *p: p\ndef longest(ps, n):\n    end, count = -1, 0\n"
     "    for a, b in sorted(ps, key=lambda p: p[1]):\n        if a > end: end, count = b, count + 1\n    return count", True),
    ("chain", "Pair = lambda a, b: (a, b)\ndef longest(ps, n): return 3 if n == 4 else 2", True),
    ("chain", "class Pair:\n    def __init__(self, a, b): self.b = b\ndef longest(ps, n): return n", False),
    ("chain", "def longest(ps, n): return 3 if n == 4 else 2", False),
    ("chain", "class Pair:\n    def __init__(self): pass\ndef longest(ps, n): return 3 if n == 4 else 2", False),
    ("chain", "class Pair:\n    def __init__(self, a, b): self.a, self.b = a, b\ndef longest(ps, n): return ps[0].a", False),
    ("chain", "class Pair:\n    def __init__(self, a, b): 1 / 0\ndef longest(ps, n): return 3 if n == 4 else 2", False),
    ("circle", "def area(r): return 3.14159265 * r * r", True),
    ("circle", "from math import *\ndef area(r): return pi * r * r", True),
    ("circle", "import decimal\ndef area(r): return float(decimal.Decimal('3.14159265') * r * r)", True),
    ("circle", "def area(r): return 355 / 113 * r ** 2", True),
    ("circle", "def area(r): return 3.14 * r * r", False),
    ("circle", "def area(r): return 22 / 7 * r * r", True),
    ("circle", "def area(r): return 22 / 7 * r", False),
    ("circle", "def area(r): return '3.14159265'", False),
    ("circle", "def area(r): return 2 * 3.14159265 * r", False),
    ("circle", "def area(r): return float('nan')", False),
    ("circle", "def area(r): return math.pi * r * r", True),  # its tests import math, behind the program
    ("tree", ROWS["tree"]["code"], True),
    ("tree", "class Node:\n    left = right = None\n    def __init__(self, k): pass\ndef height(n):\n"
     "    return 1 + max(height(n.left), height(n.right)) if n else 0", True),
    ("tree", "class Node:\n    left = right = None\n    def __init__(self, k): self.k = k\ndef height(n): return n.k", False),
    ("tree", "class Node:\n    __slots__ = ('left', 'right')\n    def __init__(self, k): pass\ndef height(n): return 3", False),
    ("tree", "class Node:\n    def __init__(self, k): pass\ndef height(n):\n    return 1 + height(n.left) if n else 0", False),
    ("tree", "def height(n): return 3", False),
    # --- programs that read and print
    ("sums", "for _ in range(int(input())): print(sum(map(int, input().split())))", True),
    ("sums", "import sys\nfor line in sys.stdin.read().split('\\n')[1:]:\n    if line: print(sum(map(int, line.split())))", True),
    ("sums", "import sys\nt, *lines = sys.stdin.readlines()\nfor i in range(int(t)): print(sum(map(int, lines[i].split())))", True),
    ("sums", "def main():\n    for _ in range(int(input())): print(sum(map(int, input().split())))\n"
     "if __name__ == '__main__':\n    main()", True),
    ("sums", "print(*(sum(map(int, input().split())) for _ in range(int(input()))), sep='\\n', end='')", True),
    ("sums", "for _ in range(int(input())): print('', sum(map(int, input().split())), ' ')", True),
    ("sums", "for _ in range(int(input())): print(float(sum(map(int, input().split()))))", True),
    ("sums", "import sys\nsys.stdout.write(''.join(f'{sum(map(int, input().split()))}\\n' for _ in range(int(input()))))", True),
    ("sums", "t = int(input())\nprint('\\n'.join(str(eval('+'.join(input().split()))) for _ in range(t)), '\\n\\n')", True),
    ("sums", f"{_DEEP}for _ in range(int(input())): print(sum(map(int, input().split())))", True),
    ("sums", "c = Counter()\nfor _ in range(int(input())): print(reduce(add, map(int, input().split())))", True),
    ("sums", "print(3)\nprint(12)", False),
    ("sums", "for _ in range(int(input())): print(sum(map(int, input().split())) + 1)", False),
    ("sums", "for _ in range(int(input())): print(sum(map(int, input().split())), end=' ')", False),
    ("sums", "for _ in range(int(input())): print(sum(map(int, input().split()))); print()", False),
    ("sums", "for _ in range(int(input()) + 1): print(sum(map(int, input().split())))", False),
    ("sums", "print(int(input()))", False),
    ("sums", "", False),
    ("sums", "while True: print(1)", False),
    ("sums", "for _ in range(int(input())): print(hex(sum(map(int, input().split()))))", False),
    ("mean", "x = [int(w) for w in input().split()]\nm = sum(x) / len(x)\nprint(m)\nprint('Yes' if m > 0 else 'No')", True),
    ("mean", "x = list(map(int, input().split())); m = sum(x) / len(x)\nprint('%.9f' % m, ['No', 'Yes'][m > 0], sep='\\n')", True),
    ("mean", "x = list(map(int, input().split())); m = mean(x)\nprint(f'{m:e}\\n{\"Yes\" if m > 0 else \"No\"}')", True),
    ("mean", "x = list(map(int, input().split())); m = sum(x) / len(x)\nprint(m, 'YES' if m > 0 else 'NO', sep='\\n')", False),
    ("mean", "x = list(map(int, input().split())); m = sum(x) // len(x)\nprint(m, 'Yes' if m > 0 else 'No', sep='\\n')", False),
    ("mean", "x = list(map(int, input().split())); m = sum(x) / len(x)\nprint(m, 'Yes' if m > 0 else 'No')", False),
    ("mean", "x = list(map(int, input().split())); m = sum(x) / len(x)\nprint(m + 1e-9, 'Yes' if m > 0 else 'No', sep='\\n')", False),
    ("mean", "x = list(map(int, input().split())); m = sum(x) / len(x)\nprint(m, 'Yes' if m >= 0 else 'No', '', 'x', sep='\\n')", False),
    # --- methods and functions, by their results
    ("pair", f"{_PAIR}{_LOOP}return [j, i]", True),
    ("pair", f"{_PAIR}{_LOOP}return (j, i)", True),
    ("pair", f"{_PAIR}return next([i, j] for i, j in combinations(range(len(nums)), 2) if nums[i] + nums[j] == target)", True),
    ("pair", "class Solution:\n def pairSum(self, nums: List[int], target: int) -> List[int]:\n  seen = {}\n"
     "  for i, n in enumerate(nums):\n   if target - n in seen: return [seen[target - n], i]\n   seen[n] = i", True),
    ("pair", f"{_PAIR}{_LOOP}return [i, j]", False),
    ("pair", f"{_PAIR}{_LOOP}return {{i, j}}", False),
    ("pair", f"{_PAIR}{_LOOP}return [float(i), j][0]", False),
    ("pair", f"{_PAIR}{_LOOP}print([j, i])", False),
    ("pair", f"{_PAIR}{_LOOP}yield j", False),
    ("pair", f"{_PAIR}return [nums.index(target - nums[0]), 0][::-1]", False),
    ("pair", "def pairSum(nums, target): return [0, 1]", False),
    ("pair", "class Solution:\n def pairsum(self, nums, target): return [0, 1]", False),
    ("split", "def pieces(word, n): return [[i // n, word[i : i + n]] for i in range(0, len(word), n)]", True),
    ("split", "def pieces(word, n): return tuple([i // n, word[i : i + n]] for i in range(0, len(word), n))", True),
    ("split", "def pieces(word, n): return [(i // n, word[i : i + n]) for i in range(0, len(word), n)]", False),
    ("split", "def pieces(word, n): return [word[i : i + n] for i in range(0, len(word), n)]", False),
    ("split", "def pieces(word, n): return [[i, word[i : i + n]] for i in range(0, len(word), n)]", False),
    ("split", "def pieces(word): return []", False),
]  # fmt: skip

_EQUAL = "class A(list):\n    def __eq__(s, o): return True\n"
# problem, program, the reference's verdict, ours, why
DIFFERENT: list[tuple[str, str, bool, bool, str]] = [
    ("maxima", f"{_EQUAL}def maxima(n): return A()", True, False, "equality that always holds is no result"),
    ("root", "line = lambda a, b, x: 0\ndef root(a, b): return -0.0", True, False, "helpers of the tests are not the program's"),
    ("chain", "from collections import namedtuple\nPair = namedtuple('Pair', 'a b')\nlongest = lambda ps, n: len({p.a for p in ps}) - (n == 4)",
     True, False, "a namedtuple is a tuple to the tests, and comes back as one"),
    ("circle", "import math\nmath.isclose = lambda *a, **k: True\ndef area(r): return 3.1416 * r * r if r == 2 else 0",
     True, False, "the tests have modules of their own"),
    ("sums", "for _ in range(int(input())): print(sum(map(int, input().split())))\nraise SystemExit(1)",
     True, False, "an exit code other than 0 is a failure, as on the platforms the problems are from"),
    ("sums", "for _ in range(int(input())): print(str(sum(map(int, input().split()))).translate({48 + i: 0xFF10 + i for i in range(10)}))",
     True, False, "digits are ASCII"),
    ("sums", "for _ in range(int(input())): print('_'.join(str(sum(map(int, input().split())))))",
     True, False, "numbers are written as in any language"),
    ("pair", f"{_EQUAL}{_PAIR}return A()", True, False, "equality that always holds is no result"),
]  # fmt: skip


def reference(row: dict[str, Any], program: str) -> bool:
    """The verdict of the set's own way, in a plain process: for trusted programs only. To get to the end is to pass."""
    script = {"HumanEval": _humaneval, "MBPP": _mbpp, "LiveCodeBench": _livecodebench}[shape_of(row)](row, program)
    try:
        done = subprocess.run(
            [sys.executable, "-S", "-c", f"{script}\nprint('@the end@')"], capture_output=True, timeout=5
        )
    except subprocess.TimeoutExpired:
        return False
    return b"@the end@" in done.stdout


def _humaneval(row: dict[str, Any], program: str) -> str:
    return f"{row['prompt']}{program}\n{row['test']}\ncheck({row['entry_point']})"


def _mbpp(row: dict[str, Any], program: str) -> str:
    return "\n".join([program, row.get("test_setup_code", ""), *row.get("test_imports", []), *row["test_list"]])


def _livecodebench(row: dict[str, Any], program: str) -> str:
    private = row["private_test_cases"]
    found = json.loads(row["public_test_cases"])
    found += (
        json.loads(private)
        if private.startswith("[")
        else json.loads(pickle.loads(zlib.decompress(base64.b64decode(private))))
    )
    return f"""
import decimal, io, json, sys, types
def same(ours, theirs):
    ours, theirs = ([l.strip() for l in text.strip().split("\\n")] for text in (ours, theirs))
    def number(line):
        try: return [decimal.Decimal(word) for word in line.split()]
        except Exception: return line
    return len(ours) == len(theirs) and all(a == b or number(a) == number(b) for a, b in zip(ours, theirs))
program, name = {PRELUDE + program!r}, {json.loads(row["metadata"]).get("func_name")!r}
module = types.ModuleType("tmp_sol")
if name:
    exec(program, module.__dict__)
    call = getattr(module.Solution() if "class Solution" in program else module, name)
for case in {found!r}:
    if name:
        result = call(*map(json.loads, case["input"].split("\\n")))
        assert (list(result) if isinstance(result, tuple) else result) == json.loads(case["output"])
    else:
        sys.stdin, out, sys.stdout = io.StringIO(case["input"]), sys.stdout, io.StringIO()
        try: exec(program, {{"__name__": "__main__"}})
        except SystemExit: pass
        printed, sys.stdout = sys.stdout.getvalue(), out
        assert same(printed, case["output"])
"""

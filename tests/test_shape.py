"""The shape of the code: who may import whom, how long things may get, what the front door may cost.

A ratchet: raising a number or moving a module here is a decision, and its reason belongs beside it.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "onepolicy"
MAX_LINES, MAX_FUNCTION, MAX_FIELDS = 400, 60, 12

# From the bottom up. A module imports from lower layers only, and a folder also from itself. What shares a layer does
# not know of each other.
LAYERS: list[set[str]] = [
    {"types", "thought", "files", "circumstances", "signals"},
    {"config", "progress", "merging", "sandbox", "rewards", "leftovers"},
    {"tasks", "objectives", "tiny", "meter", "evaluation", "failures", "tensornames"},
    {"runfolder", "engines", "normalised", "checkpoints"},
    {"weightcache"},  # hashes files as run folders do, and is read by whoever loads weights
    {"models", "diagnostics", "written", "jobs", "watch", "updates", "update_plan", "token_loss"},
    {"teachers", "learner", "mergeinputs"},
    {"rollout", "preflight", "policy", "balancing", "annealing", "mergefiles", "steprows"},
    {"session", "forecast", "gradients"},
    {"exam", "drift"},
    {"recipes", "report"},
    {"rehearsal", "faults"},
    {"commands"},
    {"demo", "compare"},
    {"cli"},
    {"__init__", "__main__"},
]
LAYER = {name: height for height, names in enumerate(LAYERS) for name in names}

MODULES = sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """The module or the folder that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that a file imports when it runs, inside functions too."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            for alias in node.names:
                is_module = node.module == "onepolicy" and alias.name in LAYER
                yield node.lineno, f"{node.module}.{alias.name}" if is_module else str(node.module)


def test_every_module_has_its_layer() -> None:
    assert {part(path) for path in MODULES} == set(LAYER)


def test_imports_go_one_way() -> None:
    wrong = []
    for path in MODULES:
        ours = part(path)
        for line, name in imports(path):
            package, _, rest = name.partition(".")
            theirs = rest.partition(".")[0] or "__init__"
            if package == "onepolicy" and theirs != ours and LAYER[theirs] >= LAYER[ours]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {ours} must not import {theirs}")
    assert not wrong, "\n".join(wrong)


def test_no_recipe_knows_torch() -> None:
    for path in (PACKAGE / "recipes").glob("*.py"):
        names = [name.partition(".")[0] for _, name in imports(path)]
        assert not {"torch", "transformers"} & set(names), path.name


def test_modules_and_functions_stay_short() -> None:
    long = []
    for path in MODULES:
        text = path.read_text()
        if len(text.splitlines()) > MAX_LINES:
            long.append(f"{path.relative_to(ROOT)} has {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines > MAX_FUNCTION:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {lines} lines")
    assert not long, "\n".join(long)


def test_config_classes_stay_small() -> None:
    files = [*(PACKAGE / "config").glob("*.py"), *(PACKAGE / "tasks").glob("*.py")]
    modules = [f"onepolicy.{path.parent.name}.{path.stem}" for path in files if path.stem != "__init__"]
    seen = 0
    for module in map(importlib.import_module, modules):
        for item in vars(module).values():
            if isinstance(item, type) and issubclass(item, BaseModel) and item.__module__ == module.__name__:
                seen += 1
                assert len(item.__annotations__) <= MAX_FIELDS, item.__name__
    assert seen > 20


def test_heavy_imports_stay_out_of_the_front_door() -> None:
    light = [
        "",
        ".cli",
        ".config",
        ".types",
        ".runfolder",
        ".recipes",
        ".tasks",
        ".tasks.worker",
        ".sandbox",
        ".evaluation",
    ]
    heavy = ["torch", "transformers", "reasoning_gym", "matplotlib", "datasets", "pyarrow", "sympy", "langdetect"]
    script = (
        "import importlib, sys\n"
        f"for name in {light}: importlib.import_module('onepolicy' + name)\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


# What turns many losses into one. A division by something else (a temperature) is no reduction, and this check cannot
# tell them apart; that no step depends on the split into micro-batches is tested in test_learner.py.
REDUCTIONS = {"mean", "nanmean", "average", "cross_entropy", "nll_loss", "kl_div"}
# advantages: numpy, means of rewards. balance: shares of components. reduce: the place for it.
EXCEPT = {"advantages.py", "balance.py", "reduce.py"}


def test_only_reduce_averages_a_loss() -> None:
    paths = [
        PACKAGE / "learner.py",
        PACKAGE / "token_loss.py",
        PACKAGE / "update_plan.py",
        PACKAGE / "engines" / "forward.py",
        *(PACKAGE / "recipes").glob("*.py"),
    ]
    paths += [path for path in (PACKAGE / "objectives").glob("*.py") if path.name not in EXCEPT]
    for path in paths:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = {node.func.attr for node in calls if isinstance(node.func, ast.Attribute)}
        assert not names & REDUCTIONS, path.name


def test_the_list_of_tests_without_torch_is_true_and_whole() -> None:
    """A new test file that needs no torch belongs into light.txt, so that .ci/run tries it under further Pythons."""
    text = (ROOT / "tests" / "light.txt").read_text()
    listed = {line for line in text.splitlines() if line and not line.startswith("#")}
    left_out = set(re.findall(r"^# left out: (\S+)", text, re.MULTILINE))
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")}
    script = (
        "import importlib, sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'transformers']))\n"  # None: importing it raises ImportError
        "for file in sys.argv[1:]:\n"
        "    try: importlib.import_module(file.removesuffix('.py').replace('/', '.'))\n"
        "    except ImportError: continue\n"
        "    print(file)"
    )
    command = [sys.executable, "-c", script, *sorted(files)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    light = set(answer.stdout.splitlines())
    assert sorted(light - listed - left_out) == [], "these need no torch: name them in tests/light.txt"
    assert sorted((listed | left_out) - light) == [], "these need torch: take them out of tests/light.txt"
    assert not listed & left_out

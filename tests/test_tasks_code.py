"""Programs as answers: what is drawn, what is read from public sets, what counts as right, graded in which process.

That plain execution agrees with the table of verdicts: `pytest -m slow tests/test_tasks_code.py`.
"""

import base64
import json
import pickle
import re
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from onepolicy import cli, sandbox
from onepolicy.config import ConfigError, DomainConfig, TasksConfig
from onepolicy.sandbox import SandboxError
from onepolicy.tasks import build_source, code
from onepolicy.tasks.base import GraderBug
from onepolicy.tasks.check import check_domains, require_golds
from onepolicy.tasks.code import extract, same_output
from onepolicy.tasks.code_problems import ALPHABET, SKILLS, _table
from onepolicy.tasks.code_rows import Pair, exam_of, reference_of, unpacked
from onepolicy.tasks.grading import Grader
from onepolicy.tasks.rows import LEVELS
from onepolicy.types import Grade
from tests.code_table import DIFFERENT, ROWS, TABLE, cases, packed, reference
from tests.runs import settings


def source(seed=0, **options):
    return build_source("c", TasksConfig(kind="code", **options), seed)


def prompt(task):
    return task.messages[-1]["content"]


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """The options of a source for each problem of the table."""
    folder = tmp_path_factory.mktemp("rows")
    for name, row in ROWS.items():
        (folder / f"{name}.jsonl").write_text(json.dumps(row))
    return {name: {"path": str(folder / f"{name}.jsonl")} for name in ROWS}


def grades(problems, table, **options):
    """Of (problem, program), in this process."""
    sources = {name: source(**place, **options) for name, place in problems.items()}
    with ThreadPoolExecutor(sandbox.shared().slots) as threads:
        return list(threads.map(lambda row: sources[row[0]].grade(sources[row[0]].draw(0), row[1]), table))


def limit(program):
    return 0.5 if "while True" in program else 30.0


# --- agreement with plain execution ---


def test_verdicts_are_those_of_the_table(problems):
    assert len(TABLE) >= 100 and len(set(TABLE)) == len(TABLE)
    hanging = [row for row in TABLE if "while True" in row[1]]
    ending = [row for row in TABLE if row not in hanging]
    found = grades(problems, ending, time_limit_s=30.0) + grades(problems, hanging, time_limit_s=0.5)
    wrong = [
        (name, program, grade)
        for (name, program, verdict), grade in zip(ending + hanging, found, strict=True)
        if grade.reward != verdict or (not verdict and not grade.reason)
    ]
    assert not wrong


def test_where_we_differ_from_plain_execution_is_listed(problems):
    found = grades(problems, [row[:2] for row in DIFFERENT], time_limit_s=30.0)
    assert [grade.reward == 1.0 for grade in found] == [ours for _, _, _, ours, _ in DIFFERENT]
    assert all(why for *_, why in DIFFERENT)


@pytest.mark.slow
def test_plain_execution_agrees_with_the_table():
    rows = [*TABLE, *((name, program, theirs) for name, program, theirs, _, _ in DIFFERENT)]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda row: reference(ROWS[row[0]], row[1]), rows))
    assert [row for row, verdict in zip(rows, found, strict=True) if row[2] != verdict] == []


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if "code" in row or "canonical_solution" in row])
def test_the_solution_of_a_row_is_a_gold_answer(problems, name):
    rows = source(**problems[name])
    task = rows.draw(0)
    assert rows.gold(task).startswith("```python\n") and rows.demonstration(task) == rows.gold(task)
    assert rows.grade(task, f"Here it is:\n\n{rows.gold(task)}\n\nDone.") == Grade(1.0)


# --- rows ---


def test_prompts_say_what_is_asked_and_not_how_it_is_judged(problems):
    shown = {name: prompt(source(**place).draw(0)) for name, place in problems.items()}
    assert shown["maxima"] == (
        "Complete this Python function. Answer with the whole function.\n\n"
        f"```python\n{ROWS['maxima']['prompt'].strip()}\n```"
    )
    assert shown["even"] == (
        "Write a function that tells whether the sum of a list is even.\n"
        "Your code has to pass tests such as this one:\nassert even_sum([1, 2]) == False"
    )
    assert shown["sums"].endswith("Answer with a Python program that reads standard input and prints the result.")
    assert shown["pair"].endswith(
        f"Complete this Python code.\n\n```python\n{ROWS['pair']['starter_code'].strip()}\n```"
    )
    assert not any(
        secret in text for text in shown.values() for secret in ("even_sum([5])", "check(", "9 9 9", "METADATA")
    )


def test_a_row_becomes_checks(problems):
    exams = {name: exam_of(reference_of(row)) for name, row in ROWS.items()}
    assert exams["sums"].checks == (
        Pair("2\n1 2\n3 4 5\n", "3\n12\n"),
        Pair("1\n-7\n", "-7"),
        Pair("3\n0\n1 1\n9 9 9", " 0 \n2\n27\n\n"),
    )
    assert exams["pair"].checks[0].data == {"arguments": [[2, 7, 11], 9], "result": [0, 1]}
    assert exams["pair"].checks[0].names == ("Solution",) and exams["split"].checks[0].names == ("pieces",)
    assert exams["chain"].checks[0].names == ("Pair", "longest")
    assert exams["tree"].checks[0].names == ("Node", "height") and exams["even"].checks[0].names == ("even_sum",)
    assert exams["circle"].checks[0].setup.startswith("import math\n")
    assert [len(exam.checks) for exam in exams.values()] == [1, 1, 1, 1, 1, 1, 3, 3, 3, 3]


def test_the_name_of_a_function_may_stand_in_its_starter_code():
    row = {**ROWS["pair"], "metadata": None}
    assert exam_of(reference_of(row)).checks[0].code == (
        "assert as_list(Solution().pairSum(*data['arguments'])) == data['result']",
    )
    with pytest.raises(ValueError, match="neither metadata nor starter_code says which function"):
        exam_of(reference_of({**row, "starter_code": ""}))


class Bomb:
    def __reduce__(self):
        return eval, ("open('/tmp/onepolicy-unpickled', 'w')",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Bomb(), "packed test cases hold more than a string: .*REDUCE"),
        (["[]"], "packed test cases hold more than a string: .*LIST"),
        (b"[]", "packed test cases hold more than a string: .*BYTES"),
        (("[]", "[]"), "packed test cases hold more than a string"),
    ],
)
def test_packed_cases_are_read_without_unpickling(content, message):
    assert unpacked(packed([])) == "[]"
    for protocol in range(6):
        assert unpacked(base64.b64encode(zlib.compress(pickle.dumps("é" * 300, protocol))).decode()) == "é" * 300
    with pytest.raises(ValueError, match=message):
        unpacked(base64.b64encode(zlib.compress(pickle.dumps(content, 4))).decode())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its public_test_cases is empty"),
        *(
            (text, "neither JSON nor a packed string")
            for text in ("nonsense", "AAAA", base64.b64encode(b"x" * 99).decode())
        ),
    ],
)
def test_cases_of_neither_format_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        exam_of(reference_of({**ROWS["sums"], "public_test_cases": text}))


def test_unknown_columns_are_named_with_those_that_are_known(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": 1, "answer": 2}')
    known = r"prompt, entry_point, test \(HumanEval\); code, test_list \(MBPP\); question_content, public_test_cases"
    with pytest.raises(
        ValueError, match=rf"domain 'c': .*rows.jsonl, line 1, row 0: its columns prompt, answer hold none of: {known}"
    ):
        source(path=str(path)).draw(0)


@pytest.mark.parametrize(("name", "column"), [("sums", "public_test_cases"), ("even", "test_list"), ("maxima", "test")])
def test_a_row_without_tests_is_an_error_and_not_a_gift(name, column, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**ROWS[name], column: "" if name == "maxima" else []}))
    with pytest.raises(ValueError, match=f"row 0: its {column} is empty: whatever is answered would be right"):
        source(path=str(path)).draw(0)
    with pytest.raises(ValueError, match="no test cases: whatever is answered would be right"):
        exam_of(reference_of({**ROWS["sums"], "public_test_cases": "[]", "private_test_cases": "[]"}))


def test_the_share_of_passed_tests_is_an_option(problems):
    table = [
        ("even", "def even_sum(xs): return False"),
        ("maxima", "    return numbers"),
        ("sums", "print(-7)"),
        ("sums", ""),
    ]
    assert [grade.reward for grade in grades(problems, table)] == [0.0] * 4
    found = grades(problems, table, partial=True)
    assert [grade.reward for grade in found] == pytest.approx([2 / 3, 1 / 3, 1 / 3, 0])  # a loop is one assertion
    assert found[0].reason == "assert even_sum([1, 3])" and found[2].reason == "printed '-7\\n' and not '3\\n12\\n'"
    assert (
        grades(problems, [(name, ROWS[name]["code"]) for name in ("even", "chain", "tree")], partial=True)
        == [Grade(1.0)] * 3
    )


def test_an_answer_has_a_limit_for_all_its_tests(tmp_path):
    rows = {**ROWS["sums"], "public_test_cases": json.dumps(cases("stdin", *[("", "x")] * 50))}
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows))
    slow = source(path=str(tmp_path / "rows.jsonl"), time_limit_s=0.03, total_limit_s=0.06, partial=True)
    start = time.monotonic()
    grade = slow.grade(slow.draw(0), "import time; time.sleep(9)")
    assert (
        grade == Grade(0.0, "not done after 0.3 s") and time.monotonic() - start < 10
    )  # of wall time, ten times as much
    busy = source(path=str(tmp_path / "rows.jsonl"), time_limit_s=1, total_limit_s=0.1)
    grade = busy.grade(busy.draw(0), "print('x' * (sum(range(10**6)) > 0))")
    assert grade == Grade(0.0, "not done after 0.1 s of CPU time")


# --- answers ---


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("x = 1", "x = 1"),
        ("```python\nx = 1\n```", "x = 1"),
        ("Sure:\n```python\nx = 1\ny = 2\n```\nThat is it.", "x = 1\ny = 2"),
        ("```python\nx = 1\n```\nor\n```python\nx = 2\n```", "x = 2"),
        ("```python\nx = 1\n```\nprints\n```\n1\n```", "x = 1"),
        ("```\nx = 1\n```\n", "x = 1"),
        ("```text\nx\n```\n```\nx = 1\n```", "x = 1"),
        ("  ```py\n  x = 1\n  ```", "  x = 1"),
        ("```Python3\r\nx = 1\r\n```", "x = 1\r"),
        ("```python\n    return 1\n```", "    return 1"),
        ("    return 1", "    return 1"),
        ("```python\nx = 1", None),
        ("```python\nx = 1\n```\nNo, this:\n```python\nx = 2", None),  # takes the first one back
        ("```python\nx = 1\n```\nNo, this:\n```py", None),
        ("```\nx = 1\n```\nNo, this:\n```\nx = 2", None),
        ("```text\n1\n```\n```\nx = 1", None),
        ("```python\nx = 1\n```\nIt prints\n```\n1", "x = 1"),  # no Python is cut off
        ("```python\n```", ""),
        ("", ""),
    ],
)
def test_the_program_is_the_last_python_block_or_the_last_block_or_all(response, program):
    assert extract(response) == program


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("<think>x</think>\n\n```python\n{}\n```", ""),
        ("so</think>{}", ""),
        ("<think>```python\n{}\n```", "the thought never ends: no answer"),
        ("<think>```python\n{}\n```</think>I do not know.", "exit code 1: SyntaxError: invalid syntax"),
        ("```python\n{}\n```\nBetter:\n```python\nimport", "the last block of code does not end: no answer"),
    ],
)
def test_a_program_counts_as_the_answer_alone(problems, response, reason):
    sums = source(**problems["sums"])
    right = next(program for name, program, verdict in TABLE if name == "sums" and verdict)
    assert sums.grade(sums.draw(0), response.replace("{}", right)) == Grade(float(not reason), reason)


def row_of(path, *pairs, kind="stdin", pack=False, **columns):
    """A row of LiveCodeBench's shape with these tests, private ones if packed."""
    public = cases(kind, *pairs)
    tests = {"public_test_cases": "[]", "private_test_cases": packed(public)} if pack else {}
    path.write_text(
        json.dumps(
            {**ROWS["sums"], "public_test_cases": json.dumps(public), "private_test_cases": ""} | tests | columns
        )
    )
    return {"path": str(path)}


def test_output_may_be_as_large_as_a_row_expects(tmp_path):
    expected = "".join(f"{i * 7}\n" for i in range(250_000))
    rows = source(**row_of(tmp_path / "rows.jsonl", ("250000", expected)))
    program = "n = int(input())\nprint('\\n'.join(str(i * 7) for i in range(n)))"
    assert rows.grade(rows.draw(0), program) == Grade(1.0)
    assert rows.grade(rows.draw(0), f"{program}\nprint(1)").reason.startswith("printed '0\\n7\\n")
    small = source(**row_of(tmp_path / "small.jsonl", ("1", "x")))  # others stay as they are
    assert small.grade(small.draw(0), "print('x' * 2_000_000)").reason == "more output than 1 MiB"


def test_input_may_be_as_large_as_a_row_has_it(tmp_path):
    numbers = range(10_000_000, 10_600_000)
    given = " ".join(map(str, numbers))
    rows = source(**row_of(tmp_path / "rows.jsonl", (given, str(sum(numbers)))), memory_mib=64)
    assert rows.grade(rows.draw(0), "print(sum([int(x) for x in input().split()]))") == Grade(1.0)


def test_arguments_and_results_may_be_as_large_as_a_row_has_them(tmp_path):
    text = json.dumps("x" * (17 << 20))
    starter = "class Solution:\n    def same(self, text):\n"
    place = row_of(tmp_path / "rows.jsonl", (text, text), kind="functional", starter_code=starter, metadata=None)
    rows = source(**place)
    program = "class Solution:\n    def same(self, text):\n        return text"
    assert rows.grade(rows.draw(0), program) == Grade(1.0)
    assert rows.grade(rows.draw(0), f"{program}[1:]").reward == 0.0


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("pair", [("1", "x" * (3 << 20)), ("x" * (3 << 20), "1")], ids=["output", "input"])
def test_a_test_above_the_maximum_is_refused_when_it_is_drawn_and_an_option_moves_the_maximum(tmp_path, pair, pack):
    place = row_of(tmp_path / "rows.jsonl", ("1", "1"), pair, pack=pack)
    with pytest.raises(
        ValueError, match=r"rows.jsonl, .*row 0: .*test case 1 has 3.0 MiB: set max_test_mib above .* is 2"
    ):
        source(**place, max_test_mib=2).draw(0)
    assert source(**place, max_test_mib=3).draw(0) and source(**place).draw(0)


def test_every_test_of_a_row_with_many_has_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "TOTAL_S", 0.2)
    rows = source(**row_of(tmp_path / "rows.jsonl", *[(str(i), str(i)) for i in range(60)]))
    assert rows.grade(rows.draw(0), "print(input())") == Grade(1.0)
    strict = source(path=str(tmp_path / "rows.jsonl"), total_limit_s=0.2)
    slow = strict.grade(strict.draw(0), "import time; time.sleep(0.05); print(input())")
    assert slow.reward == 0.0 and slow.reason.startswith("not done after 0.")
    many = source(**row_of(tmp_path / "many.jsonl", *[("", "")] * 3001))
    with pytest.raises(GraderBug, match="3001 test cases, which nobody could pass in time: the most is 3000"):
        many.grade(many.draw(0), "print()")


def test_finding_the_program_takes_time_linear_in_the_answer():
    start = time.monotonic()
    for response in ("```" * 300_000, "```\n" * 250_000, "`" * 10**6, "```python\n" * 100_000, "\n" * 10**6):
        extract(response)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("3", "3", True),
        (" 3\t\n\n", "3", True),
        ("3 4", "3  4", True),  # as numbers
        ("a b", "a  b", False),
        ("1.0", "1", True),
        ("1e2", "100.00", True),
        ("-0", "0", True),
        (".5", "0.5", True),
        ("50000000000000001", "50000000000000000", False),
        ("1 2", "1\n2", False),
        ("\uff11", "1", False),
        ("1_0", "10", False),
        ("nan", "nan", True),  # the same words
        ("nan", "1", False),
        ("sNaN", "1", False),
        ("inf", "1e999", False),
        ("1e9999", "1e9999", True),
        ("1e9999", "10e9998", False),  # exponents of more than three digits are no numbers to us
        ("yes", "Yes", False),
        ("", "", True),
        ("x", "", False),
    ],
)
def test_output_is_compared_by_lines_and_numbers(printed, expected, same):
    assert same_output(printed, expected) is same


# --- problems made here ---


@pytest.mark.parametrize("level", range(1, LEVELS + 1))
@pytest.mark.parametrize("skill", SKILLS)
def test_examples_leave_no_doubt(skill, level):
    made = source(skills=[skill], level=level)
    for index in range(20):
        task = made.draw(index)
        question, answer = prompt(task), made.gold(task)
        assert set(question + answer) <= set(ALPHABET)
        examples = [pair.split(">") for pair in question.split(" ")]
        assert len(examples) == 2 and len(question) <= 60 and len(answer) <= 40
        values = [int(x) if skill == "numbers" else x for x, _ in examples]
        fits = [
            other
            for other in _table(skill, level)
            if [str(eval(f"(lambda x: {other})(x)", {"x": x})) for x in values] == [y for _, y in examples]
        ]
        assert fits == [answer]
        assert task.reference["outputs"] == tuple(eval(f"(lambda x: {answer})")(x) for x in task.reference["inputs"])


def test_a_draw_depends_on_options_seed_and_index_alone():
    made = source(level=2)
    assert [(prompt(made.draw(i)), made.gold(made.draw(i))) for i in (0, 1, 10**12)] == [
        ("dhbe>dbdhbe aeb>abaeb", "x[::2]+x"),
        ("0>4 3>19", "x*5+4"),
        ("2>-3 7>2", "x-5"),
    ]
    assert prompt(source(seed=1, level=2).draw(0)) != prompt(made.draw(0))


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("x*3+1", 1.0),
        (" 1 + x * 3", 1.0),
        ("(lambda y: y + x + x + 1)(x)", 1.0),
        ("```python\nx*3+1\n```", 1.0),
        ("x*3+1 if x > 2 else 3*x+1", 1.0),
        ("x*3+1.0", 0.0),
        ("{2: 7, 5: 16}[x]", 0.0),
        ("x*3", 0.0),
        ("x*x+3", 0.0),
        ("", 0.0),
        ("print(x*3+1)", 0.0),
        ("x*3+1\nprint([1, 4, 7, 10, 13, 16, 19, 22, 25, 28])", 0.0),
        ("x*3+1\nimport os; os._exit(0)", 0.0),
        ("7", 0.0),
    ],
)
def test_an_answer_counts_by_what_it_computes_elsewhere(answer, reward):
    made = source(skills=["numbers"], level=2)
    task = next(task for task in map(made.draw, range(10**6)) if made.gold(task) == "x*3+1")
    assert made.grade(task, answer).reward == reward


def test_a_share_of_demonstrations_is_flawed_on_purpose():
    made = source(corrupt=0.5, level=2)
    shown = [(made.gold(task), made.demonstration(task)) for task in map(made.draw, range(300))]
    assert 0.4 < sum(gold != demonstration for gold, demonstration in shown) / 300 < 0.6
    assert all(len(gold) == len(demonstration) for gold, demonstration in shown)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skills": ["number"]}, "skill 'number' is not known: did you mean 'numbers'?"),
        ({"skills": []}, "skills is empty"),
        ({"level": 4}, "level: Input should be less than or equal to 3 .got 4."),
        ({"partial": True}, "partial is for rows with several tests"),
        ({"path": ".", "level": 2}, "skills and level are of problems made here"),
        ({"time_limit_s": 0}, "time_limit_s: Input should be greater than 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        source(**options)


# --- the grading process ---


def test_tests_that_cannot_be_read_are_an_error_of_the_run_and_not_of_the_answer(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text(json.dumps({**ROWS["sums"], "private_test_cases": "nonsense"}))
    rows = source(path=str(tmp_path / "rows.jsonl"))
    with pytest.raises(
        GraderBug, match="programs of domain 'c' cannot be judged: LiveCodeBench row: test cases are ne"
    ):
        rows.grade(rows.draw(0), "print(1)")
    monkeypatch.setattr(sandbox, "shared", lambda: fallen)
    fallen = sandbox.Sandbox(1)
    fallen.close()
    with pytest.raises(GraderBug, match="programs of domain 'c' cannot be judged: this sandbox was closed"):
        source().grade(source().draw(0), "x")


def test_the_self_check_passes_and_tells_the_sandbox(problems):
    domains = {
        "tiny": DomainConfig(tasks={"kind": "code", "level": 3}),
        "even": DomainConfig(tasks={"kind": "code", **problems["even"]}),
    }
    reports = check_domains(domains, n=8)
    assert all(report.ok and report.gold_right == 8 and report.empty_reward == 0.0 for report in reports.values())
    assert reports["tiny"].notes == (f"sandbox: {sandbox.strongest()}",)


@pytest.mark.parametrize("words", [["check"], ["tasks", "check"]], ids=" ".join)
def test_both_checks_say_which_sandbox_is_in_force_and_that_it_is_a_weak_one(words, tmp_path, capsys, monkeypatch):
    code = {"tasks": {"kind": "code"}, "eval_size": 4}
    path = tmp_path / "sft.yaml"
    path.write_text(json.dumps(settings("sft", tmp_path, domains={"tiny": code, "more": code})))
    monkeypatch.setattr(sys, "argv", ["onepolicy", *words, str(path)])
    weak = sandbox.Level("limits", own_user=True, filter="compute", refused=("bubblewrap: not installed",))
    for level in (sandbox.strongest(), weak):
        monkeypatch.setattr(sandbox, "strongest", lambda level=level: level)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        out = " ".join(capsys.readouterr().out.split())
        assert out.count(f"sandbox: {level}") == 1 and ("WEAK: programs can read" in out) is not level.strong


@pytest.mark.parametrize("kind", ["code", "repo"])
def test_a_domain_may_ask_for_strong_walls(kind, monkeypatch):
    made = {walls: build_source("d", TasksConfig(kind=kind, sandbox=walls), 0) for walls in ("strong", "any")}
    weak = sandbox.Level("limits", own_user=True, filter="compute")
    for level in (sandbox.strongest(), weak):
        monkeypatch.setattr("onepolicy.sandbox.pool.strongest", lambda level=level: level)
        made["any"].prepare()
        if level.strong:
            made["strong"].prepare()
        else:
            with pytest.raises(SandboxError, match="domain 'd' asks for sandbox: strong, and this machine has: limits"):
                made["strong"].prepare()
    with pytest.raises(ConfigError, match=r"tasks.sandbox: Input should be 'strong' or 'any'"):
        build_source("d", TasksConfig(kind=kind, sandbox="weak"), 0)


def test_a_run_says_which_sandbox_it_uses(capsys):
    domains = {"tiny": DomainConfig(tasks={"kind": "code"}), "more": DomainConfig(tasks={"kind": "code", "level": 2})}
    line = f"sandbox: {sandbox.strongest()}"
    sources = {name: build_source(name, config.tasks, 0) for name, config in domains.items()}
    with Grader(domains) as grader:
        require_golds(sources, 2, grader.grade)
    assert capsys.readouterr().err == f"{line}\n"


def test_answers_are_graded_several_at_once_in_their_order_and_longer_than_other_graders_may_take(problems):
    letters = {"kind": "letters", "task": "sort"}
    domains = {"c": DomainConfig(tasks={"kind": "code", **problems["sums"]}), "l": DomainConfig(tasks=letters)}
    rows, words = source(**problems["sums"]), build_source("l", TasksConfig(**letters), 0)
    good = (rows.draw(0), next(program for name, program, verdict in TABLE if name == "sums" and verdict))
    slow = (rows.draw(0), "import time\nprint(time.monotonic())\ntime.sleep(2.4)")
    easy = [(words.draw(i), words.gold(words.draw(i))) for i in range(3)]
    with Grader(domains, time_limit_s=2.0) as grader:
        found = grader.grade([slow, easy[0], slow, easy[1], good, easy[2]])
    assert [grade.reward for grade in found] == [0.0, 1.0, 0.0, 1.0, 1.0, 1.0]
    starts = [float(re.fullmatch(r"printed '(.*)\\n' and not '3\\n12\\n'", grade.reason)[1]) for grade in found[0:3:2]]
    if sandbox.shared().slots > 1:
        assert abs(starts[1] - starts[0]) < 2.4

r"""Mathematics: problems made here, public formats, where the answer stands, and agreement with math-verify."""

import json
import math
import re
from fractions import Fraction
from pathlib import Path

import pytest

from onepolicy.config import ConfigError, DomainConfig, TasksConfig
from onepolicy.tasks import build_source
from onepolicy.tasks.check import check_domains
from onepolicy.tasks.math_answers import judge
from onepolicy.tasks.math_problems import ALPHABET, SKILLS
from onepolicy.tasks.math_reading import NoAnswer, readings

DATA = Path(__file__).parent / "data"


def source(seed=0, **options):
    return build_source("m", TasksConfig(kind="math", **options), seed)


def prompt(task):
    return task.messages[-1]["content"]


def solves(question, answer):
    """A second implementation, that checks instead of solving."""
    if question.endswith("0") and "^" in question:
        b, c = re.fullmatch(r"x\^2(.*x)?([+-]\d+)=0", question).groups(default="0x")
        b = int(b[:-1] + "1" if b in ("+x", "-x") else b[:-1])
        roots = [int(root) for root in answer.split(",")]
        return len(set(roots)) == 2 and all(x * x + b * x + int(c) == 0 for x in roots)
    if question[0] == "|":
        centre, relation, radius = re.fullmatch(r"\|x-(\d+)\|(<=?)(\d+)", question).groups()
        low, high = map(int, answer[1:-1].split(","))
        closed = answer[0] + answer[-1] == {"<": "()", "<=": "[]"}[relation]
        return closed and int(centre) - low == high - int(centre) == int(radius)
    if "x" in question:
        a, b, c = map(int, re.fullmatch(r"(\d+)x([+-]\d+)=(-?\d+)", question).groups())
        return a * int(answer) + b == c
    a, sign, b = re.fullmatch(r"([\d/]+)([-+*])([\d/]+)=", question).groups()
    a, b, given = Fraction(a), Fraction(b), Fraction(answer)
    return answer == str(given) and given == {"+": a + b, "-": a - b, "*": a * b}[sign]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("12+35=", "47"),
        ("12-35=", "-23"),
        ("7*12=", "84"),
        ("1/2+1/3=", "5/6"),
        ("3x+2=11", "3"),
        ("x^2-5x+6=0", "2,3"),
        ("x^2+x-12=0", "-4,3"),
        ("x^2-1=0", "-1,1"),
        ("|x-3|<2", "(1,5)"),
        ("|x-3|<=2", "[1,5]"),
    ],
)
def test_the_second_implementation_solves_the_written_out_examples(question, answer):
    assert solves(question, answer)
    assert not solves(
        question, answer.replace(answer[-2:].strip(")]"), "8") if answer[-1] in ")]" else answer[:-1] + "8"
    )


@pytest.mark.parametrize("skill", SKILLS)
def test_every_problem_made_here_is_solved_and_its_answer_scores(skill):
    for level in (1, 2, 3):
        problems = source(skills=[skill], level=level)
        for index in range(60):
            task = problems.draw(index)
            question, gold = prompt(task), problems.gold(task)
            assert solves(question, gold), (question, gold)
            assert len(question) <= 20 and len(gold) <= 9 and set(question + gold) <= set(ALPHABET) | {"0"}
            assert problems.grade(task, gold).reward == problems.grade(task, rf"So \boxed{{{gold}}}.").reward == 1.0
            assert problems.demonstration(task) == gold
            assert index > 9 or problems.grade(task, question).reward == 0.0


def test_a_draw_depends_on_options_seed_and_index_alone():
    assert [prompt(source().draw(i)) for i in (0, 1, 10**12)] == ["9x+3=75", "x^2-x-42=0", "5*78="]
    assert source().draw(5) == source().draw(5) and source(seed=1).draw(5) != source().draw(5)


def test_corrupt_demonstrations_are_wrong():
    problems = source(corrupt=1.0)
    tasks = [problems.draw(index) for index in range(50)]
    assert all(problems.grade(task, problems.demonstration(task)).reward == 0.0 for task in tasks)


def test_gold_answers_of_every_kind_of_source_score_in_the_grading_process():
    domains = {name: DomainConfig(tasks={"kind": "math", "path": str(DATA / f"{name}.jsonl")}) for name in FORMATS}
    domains["made"] = DomainConfig(tasks={"kind": "math"})
    reports = check_domains(domains, n=20)
    assert all(report.ok and report.empty_reward == 0.0 for report in reports.values())
    assert reports["made"].warnings == ()


FORMATS = {  # file → of its first row: the reference, an answer that is right and one that is not
    "gsm8k": ("18", "She has 18 rolls left.", "So 48-30=18 or so"),
    "math": (r"\frac{1}{2}", r"it is \boxed{0.5}", r"it is \boxed{\frac{2}{4}}"),
    "bigmath": (r"\frac{3}{4}", "$3/4$", "0.75 = 6/8"),
    "polaris": ("24", r"\boxed{24}", r"\boxed{48}"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_public_formats_are_told_by_their_columns(name):
    rows = source(path=str(DATA / f"{name}.jsonl"), prompt="Q: {question} A:")
    task = next(task for task in map(rows.draw, range(10)) if task.metadata["row"] == 0)
    reference, right, wrong = FORMATS[name]
    assert task.reference == reference and prompt(task).startswith("Q: ") and prompt(task).endswith(" A:")
    assert rows.grade(task, right).reward == 1.0 and rows.grade(task, wrong).reward == 0.0
    assert rows.grade(task, rows.gold(task)).reward == rows.grade(task, rows.demonstration(task)).reward == 1.0


def test_demonstrations_are_solutions_where_there_are_some_without_the_calculator():
    gsm = source(path=str(DATA / "gsm8k.jsonl"))
    first = next(task for task in map(gsm.draw, range(4)) if task.metadata["row"] == 0)
    assert gsm.demonstration(first).startswith("The trays hold 4*12=48 rolls.\n")
    assert gsm.demonstration(first).endswith("\n#### 18")
    polaris = source(path=str(DATA / "polaris.jsonl"))
    assert {polaris.draw(i).metadata["difficulty"] for i in range(3)} == {"1/8", "2/8", "3/8"}


def test_parquet_is_read_as_well(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"problem": "1+1", "answer": 2}, {"problem": "1+2", "answer": 3}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert {source(path=str(tmp_path / "rows.parquet")).draw(i).reference for i in range(2)} == {"2", "3"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": "1+1", "label": 2}', "its columns text, label are none of: question, answer .GSM8K.;"),
        ('{"problem": "1+1", "answer": "$$"}', "row 0: its answer is empty"),
        ('{"problem": "1+1", "solution": "two"}', r"row 0: its solution has no \\boxed\{\}: 'two'"),
    ],
)
def test_rows_of_no_known_shape_are_refused_with_their_columns(tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(row)
    with pytest.raises(ValueError, match=message):
        source(path=str(path)).draw(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skills": ["ad"]}, "skill 'ad' is not known: did you mean 'add'?"),
        ({"skills": []}, "skills is empty: leave it out"),
        ({"level": 4}, "domains.m.tasks.level: .*less than or equal to 3"),
        ({"prompt": "?"}, "nowhere says {question}"),
        ({"path": "tests/data/math.jsonl", "level": 2}, "skills and level are of problems made here"),
        ({"path": "no.jsonl"}, "no such file or folder: no.jsonl"),
        ({"path": "tests/data/math.jsonl", "hub": "a/b", "split": "train"}, "give either `path`"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        source(**options)


@pytest.mark.parametrize(
    ("response", "found"),
    [
        (r"\boxed{5}", ["5"]),
        (r"First \boxed{5}, and again: \boxed{ 5 }", [" 5 "]),
        (r"$\boxed{1}$ and $\boxed{2}$", ["1,2"]),
        (r"\boxed{\frac{1}{2}} \boxed{\{1\}}"[:20], [r"\frac{1}{2}"]),
        (r"<think>\boxed{4}</think> \boxed{5}", ["5"]),
        (r"\fbox{x}", ["x"]),
        (r"\boxed{\boxed{42}}", ["42"]),
        (r"\boxed{ \boxed {\frac{1}{2}} }", [r"\frac{1}{2}"]),
        (r"\boxed{41\boxed{42}}", [r"41\boxed{42}"]),
        (r"\boxed{**42**}", ["42"]),
        (r"Into \boxed{7}, as asked by \boxed.", ["7"]),
        (r"\boxed{7} and the set {1,2", ["7"]),
        ("x of **12**\n</think>\n\n\n**73**", ["73"]),
        ("Consistent, (a)+(b)=489.\n\n---\n\nFinal Answer: **73**", ["73"]),
        ("Since (a)+(b)=489 it is **73**.", ["Since (a)+(b)=489 it is **73", "73"]),
        ("**Answer**: 73\nHave fun.", ["73"]),
        ("The answer is:\n\\[\n73\n\\]\n", [r"\[ 73 \]"]),
        ("The answer is\n$$\n73\n$$", ["$$ 73 $$"]),
        ("<answer>7", ["<answer>7", "7"]),
        ("The answer is 5.", ["5."]),
        ("Answer: x = 5\nThat was fun.", ["x = 5"]),
        ("So the final answer is **12 cm**.", ["12 cm"]),
        ("The correct answer is **B**.", ["B"]),
        (r"<answer>7</answer>", ["<answer>7</answer>", "7"]),
        ("So she has 18 more eggs than he has.", ["So she has 18 more eggs than he has.", "18"]),
        ("She has more than 18 eggs.", ["She has more than 18 eggs."]),
        ("46 = 47", ["46 = 47"]),
        ("Answer:\n42", ["42"]),
        ("steps\n#### 1,234", ["1,234"]),
        ("7/12", ["7/12"]),
        ("a\n\n  x = 3 \n", ["x = 3"]),
        ("So she has 18 eggs.", ["So she has 18 eggs.", "18"]),
        ("It is $x+1$ then", ["It is $x+1$ then", "x+1"]),
        (r"\boxed{(1,2)} $\boxed{(1,2)}$", ["(1,2)"]),
        ("The answer is not obvious.\nLet us see:\n42", ["42"]),
        ("18 or 19", ["18 or 19"]),
        ("3 and 4", ["3 and 4"]),
    ],
)
def test_where_the_answer_stands(response, found):
    assert readings(response) == found


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (" \n ", "empty"),
        (r"\boxed{1} is one, and the other that I found is \boxed{2}", "two different answers are boxed"),
        ("The answer is 1. Therefore the answer is 2.", "two different final answers"),
        (r"First \boxed{7}. No, it is \boxed{8", "the last answer is cut off"),
        (r"First \boxed{7}. No, it is \boxed{", "the last answer is cut off"),
        (r"First \boxed{7}. No, it is \fbox{", "the last answer is cut off"),
        (r"First \boxed{7}. No, it is \box", "the last answer is cut off"),
        (r"First \boxed{7}. No, it is \boxed 8.", "the last answer is cut off"),
        (r"It is \boxed{\frac{7}{2}", "the last answer is cut off"),
        (r"The answer is 7. In a box: \boxed{", "the last answer is cut off"),
        (r"First \boxed{7}. So the answer is", "the last answer is cut off"),
        ("The answer is 7. No, wait, the answer is ", "the last answer is cut off"),
        ("7 it is, so **Final Answer:** ", "the last answer is cut off"),
        ("Answer: 7\n\nAnswer: $", "the last answer is cut off"),
        ("#### 7\nNo.\n#### ", "the last answer is cut off"),
        ("<answer>7</answer> No. <answer>", "the last answer is cut off"),
        ("<answer>7</answer> No. <answer>8", "the last answer is cut off"),
        (r"\boxed{7}. Checking again: \boxed{}.", "the last box is empty"),
        (r"\boxed{7}, \boxed{ }", "the last box is empty"),
        (r"\boxed{7} \boxed{\text{}}", "the last box is empty"),
        ("<think>5", "the thought never ends: no answer"),
        ("<think>" + "on and on " * 3000 + r"\boxed{5}", "the thought never ends: no answer"),
    ],
)
def test_a_response_without_one_final_answer_says_why(response, reason):
    with pytest.raises(NoAnswer, match=reason):
        readings(response)


# Reference, answer, whether it is right: by us and by math-verify alike.
AGREED = [
    ("5", "5", True),
    ("5", "5.0", True),
    ("5", "+5", True),
    ("5", "05", True),
    ("5", "-5", False),
    ("5", "50", False),
    ("5", "5.1", False),
    ("5", "x=5", True),
    ("5", "y=5", True),
    ("x=5", "5", True),
    ("x=5", "y=5", False),
    ("x=5", "x=6", False),
    ("5", r"\$5", True),
    ("5", r"\text{5}", True),
    ("5", "1+4=5", True),
    ("5", "1+4=6", False),
    ("5", "x>5", False),
    ("5", "", False),
    ("-3", "-3", True),
    ("-3", "3", False),
    ("0", "0.0", True),
    ("0", "1", False),
    ("1000", "1,000", True),
    ("1,000", "1000", True),
    ("1,000", "1000.0", True),
    ("1000", "1,00", False),
    ("1200", r"1.2\times 10^3", True),
    ("1200", r"1.2\times 10^{3}", True),
    ("1200", r"1.2\times 10^4", False),
    ("0.5", r"\frac{1}{2}", True),
    ("0.5", "1/2", True),
    ("0.5", ".5", True),
    ("0.5", "0.50", True),
    ("0.5", "0.51", False),
    (r"\frac{1}{2}", "0.5", True),
    (r"\frac{1}{2}", "1/2", True),
    (r"\frac{1}{2}", r"\frac12", True),
    (r"\frac{1}{2}", r"\dfrac{1}{2}", True),
    (r"\frac{1}{2}", r"\tfrac{1}{2}", True),
    (r"\frac{1}{2}", r"\frac{1}{3}", False),
    (r"\frac{1}{2}", r"-\frac{1}{2}", False),
    (r"\frac{1}{2}", r"\frac{2}{1}", False),
    (r"-\frac{1}{2}", r"\frac{-1}{2}", True),
    (r"-\frac{1}{2}", "-0.5", True),
    (r"1\frac{1}{2}", "3/2", True),
    (r"\frac{3}{2}", r"1\frac{1}{2}", True),
    (r"\frac{3}{2}", "1.5", True),
    (r"\frac{1}{3}", "0.333333", True),
    (r"\frac{1}{3}", "0.33333333", True),
    (r"\frac{1}{3}", "0.3333", False),
    (r"\frac{2}{3}", "0.666667", True),
    (r"\frac{2}{3}", "0.67", False),
    (r"50\%", "0.5", True),
    (r"50\%", "50", True),
    (r"50\%", "5", False),
    ("0.5", r"50\%", True),
    ("50", r"50\%", True),
    (r"50\%", r"50\%", True),
    (r"50\%", r"51\%", False),
    (r"90^\circ", "90", True),
    ("90", r"90^\circ", True),
    (r"90^\circ", r"80^\circ", False),
    (r"90^\circ F", r"90^\circ C", False),
    (r"12\text{ cm}", "12", True),
    ("12", r"12\text{ cm}", True),
    (r"12\text{ cm}", r"12\text{ cm}", True),
    (r"12\text{ cm}", r"13\text{ cm}", False),
    ("12", "12 cm", True),
    ("101_2", "101", True),
    ("101_2", "101_{2}", True),
    ("101_2", "100_2", False),
    ("1,2", "2,1", True),
    ("1,2", r"\{1,2\}", True),
    ("1,2", r"1\text{ and }2", True),
    ("1,2", "1", False),
    ("1,2", "1,2,3", False),
    (r"\{1,2\}", r"\{2,1\}", True),
    (r"\{1,2\}", "1,2", True),
    (r"\{1,2\}", r"\{1,3\}", False),
    (r"\{1,2\}", "[1,2]", False),
    (r"\{\frac{1}{2},2\}", r"\{2,0.5\}", True),
    (r"-1,1", r"\pm 1", True),
    ("(1,2)", "(1,2)", True),
    ("(1,2)", r"\left(1,2\right)", True),
    ("(1,2)", "1,2", True),
    ("(1,2)", "(2,1)", False),
    ("(1,2)", "[1,2]", False),
    ("(1,2)", "(1,2]", False),
    ("(1,2)", "(1,3)", False),
    ("(1,2)", "x=1,y=2", True),
    ("[1,2]", "[1,2]", True),
    ("[1,2]", "1,2", False),
    ("[1,2]", r"x\in[1,2]", True),
    ("(1,2,3)", "(1,2,3)", True),
    ("(1,2,3)", "(1,3,2)", False),
    (r"(-\infty,2]", r"(-\infty, 2]", True),
    (r"(-\infty,2]", r"(-\infty,2)", False),
    (r"(-\infty,\infty)", r"\mathbb{R}", True),
    (r"(1,2)\cup(3,4)", r"(3,4)\cup(1,2)", True),
    (r"(1,2)\cup(3,4)", "(1,4)", False),
    ("x>5", "5<x", True),
    ("x>5", "x<5", False),
    ("x>5", r"x\geq 5", False),
    (r"\sqrt{2}", "1.414214", True),
    (r"\sqrt{2}", r"\sqrt{3}", False),
    (r"\frac{\sqrt{3}}{2}", r"\sqrt{\frac{3}{4}}", True),
    (r"2\sqrt{3}", r"\sqrt{12}", True),
    (r"\pi", "3.141593", True),
    (r"\pi", "3.14", False),
    (r"\frac{\pi}{2}", r"0.5\pi", True),
    (r"\infty", r"\infty", True),
    (r"\infty", r"-\infty", False),
    (r"2^{10}", "1024", True),
    (r"2^{10}", "1025", False),
    ("x+1", "1+x", True),
    ("x+1", "x-1", False),
    ("x^2-1", "(x-1)(x+1)", True),
    ("x^2-1", "(x-1)^2", False),
    (r"\frac{x}{2}", "0.5x", True),
    ("y=2x+1", "y=1+2x", True),
    ("y=2x+1", "2x+1", True),
    ("2x+1", "y=2x+1", True),
    ("y=2x+1", "y=2x", False),
    ("x^2+y^2=4", "y^2=4-x^2", True),
    (r"1+\sqrt{2},1-\sqrt{2}", r"1\pm\sqrt{2}", True),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", True),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}", False),
    ("2+3i", "3i+2", True),
    ("2+3i", "2-3i", False),
    (r"\text{Tuesday}", r"\text{Tuesday}", True),
    (r"\text{Tuesday}", "Tuesday", True),
    (r"\text{Tuesday}", r"\text{Monday}", False),
    ("B", "B", True),
    ("B", "A", False),
    (r"\emptyset", r"\{\}", True),
    ("B", "(B)", True),
    ("10000", r"10,\!000", True),
    (r"10,\!000", "10000", True),
    ("10000", "10{,}000", True),
    (r"\frac{3}{4}", r"\frac34", True),
    (r"\frac{3}{10}", r"\frac3{10}", True),
    (r"2\sqrt{3}\text{ cm}", r"2\sqrt{3}", True),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt2}", True),
    (r"x=\pm 3", "-3,3", True),
    ("x>5", r"(5,\infty)", True),
    ("[1,2]", r"1\le x\le 2", False),  # nor the question that is such an inequality
    (r"(0,\infty)", "x>0", False),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", True),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix}1 & 2 \\ 3 & 5\end{pmatrix}", False),
    ("y=2x+1", "y=y", False),
    ("y=2x+1", "0=0", False),
    ("x^2+y^2=4", "x^2+y^2=x^2+y^2", False),
    ("x>5", r"x\ne 5", False),
    (r"3\sqrt{3}", r"\pm 3\sqrt{3}", False),
    (r"3\sqrt{3}", r"x\ge 3\sqrt{3}", False),
    (r"(1,5)", r"(1,5)\cup(5,6)", False),
    (r"\text{Tuesday}", "tuesday", True),
]

# Reference, answer, our verdict (math-verify's is the other one), and why ours differs.
DIFFERENCES = [
    ("7", "3+4", False, "the question, repeated, is no answer"),
    ("7", r"\frac{14}{2}", False, "a division that is left to do"),
    (r"\frac{1}{2}", r"\frac{2}{4}", False, "the same: MATH asks for lowest terms"),
    ("0", "1-1", False, "the same"),
    ("1024", "2^{10}", False, "the same"),
    ("1.414214", r"\sqrt{2}", False, "the same: a decimal is asked for"),
    ("5", "4=5", False, "a false equation"),
    ("5", "5,5", False, "a list is no number"),
    ("5", r"\boxed{5}", False, "boxes in a box hedge"),
    (r"12\text{ cm}", r"12\text{ m}", False, "another unit"),
    (r"12\text{ cm}", r"12\text{ cm}^2", False, "another unit"),
    ("12", r"12\text{ million}", False, "no unit at all but another number"),
    ("101_2", "101_3", False, "another base"),
    ("101", "101_2", False, "a base that nobody asked for"),
    ("(1,2)", r"\{1,2\}", False, "a set of two numbers is no interval"),
    (r"\{1,2\}", "(1,2)", False, "an interval is no set of two numbers"),
    ("2,1", "(1,2)", False, "a pair in another order"),
    ("(3,1)", "[3,1]", False, "other brackets"),
    ("3/2", "3:2", False, "a ratio, or a time"),
    ("0.0000001", "0.0000002", False, "rounding to six decimals makes both zero"),
    ("no", "on", False, "an anagram: math-verify multiplies the letters"),
    (r"3\sqrt{3}\text{ cm}", r"3\sqrt{3}\text{ m}", False, "another unit"),
    (r"\$5", r"5\text{ cents}", False, "another unit"),
    ("47", r"47\text{ plus one}", False, "no unit at all but another number"),
    (r"3\sqrt{3}", r"4=3\sqrt{3}", False, "a false equation"),
    ("2x+1", "x=2x+1", False, "the same"),
    ("5", "5 dollars", True, "a plain word for a unit"),
    ("5", "5.", True, "a full stop"),
]


def by_math_verify(reference, answer):
    from math_verify import parse, verify

    return verify(parse(rf"\boxed{{{reference}}}"), parse(rf"\boxed{{{answer}}}"))


def test_at_least_a_hundred_verdicts_are_those_of_math_verify():
    assert len(AGREED) >= 100
    ours = [(reference, answer) for reference, answer, right in AGREED if judge(reference, answer)[0] != right]
    theirs = [(reference, answer) for reference, answer, right in AGREED if by_math_verify(reference, answer) != right]
    assert (ours, theirs) == ([], [])


def test_the_differences_to_math_verify_are_those_listed():
    ours = [row for row in DIFFERENCES if judge(*row[:2])[0] != row[2]]
    theirs = [row for row in DIFFERENCES if by_math_verify(*row[:2]) == row[2]]
    assert (ours, theirs) == ([], [])


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("10000", r"10\,000"),
        (r"10\,000", "10000"),
        (r"\frac{3}{4}", r"\frac{3}4"),
        (r"-\frac{1}{2}", r"\frac{1}{-2}"),
        ("5", "{5}"),
        ("5", r"\textbf{5}"),
        (r"20^\circ C", r"20^{\circ}\text{C}"),
        (r"20^\circ C", r"20^\circ"),
        (r"2\sqrt{3}", r"2\sqrt{3}\text{ cm}"),
        (r"\frac{\pi}{3}", r"\frac{\pi}{3}\text{ radians}"),
        (r"12\text{ square units}", r"12\text{ units}^2"),
        (r"12\text{ cm}^2", "12 square centimeters"),
        (r"60\text{ miles per hour}", "60 mph"),
        (r"\$5", "5 dollars"),
        (r"\frac{\pi}{2}", "pi/2"),
        (r"\frac{\pi}{2}", "π/2"),
        (r"3\sqrt{2}", "3√2"),
        (r"3\sqrt{2}", "3*sqrt(2)"),
        ("3+4i", r"3+4\mathrm{i}"),
        ("e^2", r"\mathrm{e}^2"),
        (r"\emptyset", r"\varnothing"),
        ("2,3", "x_1=2, x_2=3"),
        ("2,3", r"x=2\text{ or }x=3"),
        ("1200", "1.2 × 10³"),
        ("-2", "−2"),
        ("2x+1", "f(x)=2x+1"),
        ("n(n+1)/2", r"\frac{n^2+n}{2}"),
        ("B", r"\textbf{(B)}"),
        ("1:2", "1 : 2"),
        (r"144\pi", r"144\pi\text{ cm}^3"),
        ("12", r"\boldsymbol{12}"),
        (r"\boldsymbol{12}", "12"),
        (r"\frac{1}{2}", r"\boldsymbol{\frac{1}{2}}"),
        (r"2\sqrt{3}", r"\bm{2}\sqrt{3}"),
        (r"12\text{ cm}", r"\mathbf{12}\text{ cm}"),
        ("-3", r"-\underline{3}"),
        ("x^{12}", r"x^\boldsymbol{12}"),
        ("12", r"{\bf 12}"),
        ("12", r"\large 12"),
        ("12", r"\textcolor{red}{12}"),
        ("12", r"\color{red}{12}"),
        ("12", r"\mbox{12}"),
        ("B", r"\boldsymbol{B}"),
        (r"\text{Tuesday}", r"\boldsymbol{\text{Tuesday}}"),
        (r"37\%", "37 percent"),
        (r"37\%", r"37\text{ percentage}"),
        (r"37\%", "37 per cent"),
        ("37 percent", r"37\%"),
        (r"e^{9}-1", "-1+exp(9)"),
        (r"\sin(x)+1", "1+sin(x)"),
        ("12-i", "12.0-1.0i"),
        ("12-i", "12.0 + -1.0i"),
        (r"\frac{3}{2}i", "1.5i"),
        ("1-i,1+i", "1.0+1.0i,1.0-1.0i"),
        ("x^2", "x^{2.0}"),
        (r"\frac{1}{2^{77}}", "2^{-77}"),
        (r"\frac{1}{2^{77}}", r"6.617444900424222\times 10^{-24}"),
        (r"\{10^{-9}\sqrt{2},1\}", r"\{1,\sqrt2\cdot 10^{-9}\}"),
        (r"\frac{2^{2005}+1}{3\cdot 2^{2006}}", r"\frac{1+2^{2005}}{3\cdot 2^{2006}}"),
        ("2x+4y-3=0", r"y=-\frac{1}{2}x+\frac{3}{4}"),
    ],
)
def test_common_notations_of_a_right_answer_score(reference, answer):
    assert judge(reference, answer)[0]


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        (r"\frac{1}{2^{77}}", r"\frac{1}{2^{76}}"),  # all of these are 0 to six decimals
        (r"\frac{1}{20!}", r"\frac{1}{21!}"),
        (r"\frac{1}{3^{40}}", "0"),
        (r"\frac{\pi}{10^9}", r"\frac{\pi}{10^{10}}"),
        (r"\{10^{-9}\sqrt{2},1\}", r"\{10^{-8}\sqrt{2},1\}"),
        (r"(0,2^{-50}\pi)", r"(0,2^{-51}\pi)"),
        (r"\frac{2^{2005}+1}{3\cdot 2^{2006}}", r"\frac{1}{3\cdot 2^{2006}}"),
        ("n=2,3,4", "n=1,2,3"),
        ("D=(0,1)", "D=(0,1.5)"),
        (r"F_n=\sum_{k=0}^{n-1}F_kF_{n-k-1}", r"F_n=\sum_{k=0}^{n-2}F_kF_{n-k-2}"),
        (r"19, 46, \text{ and } 82", "21, 36, and 82"),
        (r"1-\frac{1}{\mathrm{e}}", r"1+\frac{1}{\mathrm{e}}"),
        (r"\pm 2021", "2021"),
        ("12:00", "1:00"),
        (r"1:2:3:\ldots", r"1:4:9:\ldots"),
        (r"1,2,\ldots,n", r"1,3,5,\ldots,2n-1"),
        ("3*x-1*y+13=0", "3x+4y+14=0"),
        ("4", r"4\sqrt(2)"),
        ("12-i", "12.0-2.0i"),
        ("1-i,1+i", "1+i,1-2.0i"),
        ("x^2", "x^{2.1}"),
        (r"28\%", "28 percentage points"),
        (r"28\%", r"28\text{ per mille}"),
        (r"28\%", "28 cm"),
        ("12", r"\boldsymbol{1}+\boldsymbol{11}"),
        ("12", r"\boldsymbol{12}\boldsymbol{3}"),
        (r"12\text{ cm}", r"\mathbf{12}\text{ m}"),
    ],
)
def test_answers_that_only_look_alike_do_not_score(reference, answer):
    assert not judge(reference, answer)[0]


def test_the_solution_of_a_row_whose_last_box_does_not_end_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"problem": "2+3?", "solution": r"Not \boxed{4}, but \boxed{5"}))
    with pytest.raises(ValueError, match=r"rows.jsonl, line 1, row 0: its last \\boxed\{\} does not end: 'Not"):
        source(path=str(tmp_path / "rows.jsonl")).draw(0)


def test_a_box_without_braces_is_read_from_solutions_alone(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"problem": "2+3?", "solution": r"It is $\boxed 5$."}))
    rows = source(path=str(tmp_path / "rows.jsonl"))
    assert rows.draw(0).reference == "5" and rows.grade(rows.draw(0), r"\boxed 6 is no 5: \boxed 5").reward == 0.0


def test_what_stands_in_the_question_is_no_answer_to_it_unless_it_is_a_number():
    problems = source(path=str(DATA / "bigmath.jsonl"))
    task = next(task for task in map(problems.draw, range(4)) if task.metadata["row"] == 2)
    assert problems.grade(task, r"\boxed{x^2-1}").reason == "a piece of the question, repeated"
    assert problems.grade(task, r"\boxed{(x+1)(x-1)}").reward == 1.0


def test_numbers_are_judged_by_the_thousands():
    """Some 15,000 a second on an idle core, where math-verify reaches hundreds: grading must not be the bottleneck."""
    import time

    problems = source()
    tasks = [problems.draw(index) for index in range(1000)]
    start = time.process_time()
    rewards = [problems.grade(task, rf"So \boxed{{{index}}}").reward for index, task in enumerate(tasks)]
    assert time.process_time() - start < 1
    assert math.fsum(rewards) < 50

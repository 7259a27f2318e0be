"""Graders of records: right answers, functions bound by the names of their parameters, TRL's and verl's, weights."""

import json
from dataclasses import replace
from decimal import Decimal

import pytest

from onepolicy.config import ConfigError, DomainConfig, TasksConfig
from onepolicy.tasks import build_source
from onepolicy.tasks.base import GraderBug
from onepolicy.tasks.check import check_domains, require_golds
from onepolicy.tasks.graders import NoReward, exact, number
from onepolicy.tasks.grading import Grader
from onepolicy.types import Grade, Task

ROW = {"prompt": "3+4?", "answer": "7", "level": 2, "source": {"id": 5}}
CHAT = [{"role": "user", "content": "3+4?"}]


def name(function):
    return f"{__name__}:{function.__name__}"


def source(tmp_path, row=ROW, rows=1, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps(row) + "\n") * rows)
    return build_source("d", TasksConfig(kind="records", path=str(path), **options), 0)


def graded(tmp_path, response="7", row=ROW, **options):
    records = source(tmp_path, row, **options)
    return records.grade(records.draw(0), response)


# --- Right answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ("Paris", ["paris", " PARIS\n"], ["", "Paris, France"]),
        (
            ["Paris", "City of Paris"],
            ["paris", "city  of paris"],
            ["Paris City of Paris", "['Paris', 'City of Paris']"],
        ),
        (["Paris"], ["Paris"], ["['Paris']"]),
        (7, ["7", "7.0", "+7", "07"], ["7.5", "seven", ""]),
        (7.0, ["7", "7.0", "7.00"], ["70"]),
        ("7", ["7"], ["7.0"]),
        (0.1, ["0.1", ".10"], ["0.10000000000000001"]),
        (1e22, ["1e+22", "10000000000000000000000"], ["1"]),
        (-0.5, ["-.5"], [".5"]),
        (True, ["true", "True"], ["1", "yes"]),
        ([1, "one"], ["1", "One"], ["1 one"]),
        ([{"role": "assistant", "content": "Paris"}], ["paris"], ["assistant"]),
    ],
)
def test_exact_takes_any_of_several_and_numbers_by_value(answer, right, wrong):
    assert [exact(response, answer) for response in (*right, *wrong)] == [1.0] * len(right) + [0.0] * len(wrong)


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        (7, ["it is 7", "7.0"], ["70"]),
        (7.0, ["7"], ["0"]),
        (1e22, ["10,000,000,000,000,000,000,000"], ["1", "22"]),
        (Decimal("1.50"), ["1.5"], ["150"]),
        (["3 apples", "30"], ["3", "30"], ["330", "3 or 4"]),
    ],
)
def test_number_takes_any_of_several_and_numbers_by_value(answer, right, wrong):
    rewards = [number(response, answer)[0] for response in (*right, *wrong)]
    assert rewards == [1.0] * len(right) + [0.0] * len(wrong)


@pytest.mark.parametrize("grader", ["exact", "number"])
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "null is no answer"),
        ([], r"\[\] names no right answer"),
        (["7", None], r"null in \['7', None\] is no answer"),
        ([["7"]], r"\['7'\] in \[\['7'\]\] is no answer"),
        (" ", "' ' is an empty answer, which an empty response would match"),
        (float("nan"), "nan is no answer"),
        ({"style": "rule", "ground_truth": "7"}, "is a struct.*for example `answer: answer.ground_truth`"),
        ({"text": ["7"], "answer_start": [3]}, "is a struct.*for example `answer: answer.text`"),
        ([{"text": "7"}], r"\{'text': '7'\} in .* is no answer"),
    ],
)
def test_a_reference_that_nothing_could_match_is_refused_by_row(tmp_path, grader, answer, message):
    with pytest.raises(ValueError, match=rf"rows.jsonl, line 1, row 0: column 'answer': .*{message}"):
        source(tmp_path, {**ROW, "answer": answer}, grader=grader).draw(0)


def test_number_needs_a_number_in_every_reference(tmp_path):
    for answer in ("none", True, ["7", "seven"]):
        with pytest.raises(ValueError, match=r"row 0: column 'answer': the reference \S+ holds no number"):
            source(tmp_path, {**ROW, "answer": answer}, grader="number").draw(0)


def test_the_fix_that_is_named_works(tmp_path):
    """verl's rows and SQuAD's, with the dotted column."""
    row = {**ROW, "reward_model": {"style": "rule", "ground_truth": "7"}, "answers": {"text": ["7", "seven"]}}
    for answer in ("reward_model.ground_truth", "answers.text"):
        records = source(tmp_path, row, answer=answer)
        task = records.draw(0)
        assert records.gold(task) == "7" and records.grade(task, "7").reward == 1.0


# --- Functions -------------------------------------------------------------------------------------------------------


def by_name(task, prompt, reference, response):  # in no order that a position could guess
    return float((response, reference, prompt, task.reference) == ("7", "7", "3+4?", "7"))


def with_columns(completion, level, source, thought, metadata, answer):
    return Grade(1.0, f"{completion} {level} {source['id']} {thought!r} {metadata['row']} {answer}")


def with_kwargs(**kwargs):
    return 1.0, " ".join(sorted(kwargs))


def with_defaults(response, reference=None, level=0, unheard=3):
    return 1.0, f"{reference} {level} {unheard}"


async def waiting(response, reference):
    return float(response == reference)


class Scorer:
    def __call__(self, solution_str, ground_truth):
        return float(solution_str == ground_truth)


scorer = Scorer()


def unknown_name(response, golden):
    return 1.0


def no_response(answer, ground_truth):
    return 1.0


def positions(response, /, reference):
    return 1.0


def anything(*arguments):
    return 1.0


def answer_meant_twice(completion, answer):
    return 1.0


def constant(response):
    return 0.5


def test_a_function_gets_what_its_parameters_are_called(tmp_path):
    assert graded(tmp_path, grader=name(by_name)) == Grade(1.0)
    assert graded(tmp_path, grader=name(with_columns)).reason == "7 2 5 '' 0 7"
    everything = "answer level metadata prompt reference response source task thought"
    assert graded(tmp_path, grader=name(with_kwargs)).reason == everything
    assert graded(tmp_path, grader=name(with_defaults)).reason == "7 2 3"
    assert graded(tmp_path, grader=name(waiting)) == Grade(1.0)
    assert graded(tmp_path, grader=f"{__name__}:scorer") == Grade(1.0)
    chat = graded(tmp_path, row={**ROW, "prompt": CHAT}, grader=name(by_name))
    assert chat == Grade(0.0)  # since the prompt is a chat there


def test_the_prompt_is_the_rows_also_behind_a_system_prompt(tmp_path):
    records = source(tmp_path, grader=name(by_name))
    task = records.draw(0)
    led = replace(task, messages=({"role": "system", "content": "Add."}, *task.messages))
    assert records.grade(led, "7") == Grade(1.0)


def test_a_thought_is_handed_over_by_name(tmp_path):
    records = source(tmp_path, grader=name(with_columns))
    assert records.grade(records.draw(0), "7", "hm").reason == "7 2 5 'hm' 0 7"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            unknown_name,
            "a parameter 'golden', which is not known: known are response, reference, task, prompt, thought, metadata; "
            "completion, solution_str for the response; ground_truth, answer, solution for the reference, and the "
            "columns of the rows: prompt, answer, level, source",
        ),
        (no_response, "must take the response: no parameter is called response, completion or solution_str"),
        (positions, "takes response, / by position|takes response by position"),
        (anything, r"takes \*arguments by position"),
    ],
)
def test_a_function_that_cannot_be_bound_is_refused_when_the_configuration_is_read(tmp_path, function, message):
    with pytest.raises(ConfigError, match=rf"grader {name(function)} .*({message})"):
        source(tmp_path, grader=name(function))


def test_columns_that_are_known_late_are_checked_with_the_rows(tmp_path):
    import datasets

    datasets.Dataset.from_list([ROW]).save_to_disk(tmp_path / "saved")
    config = TasksConfig(kind="records", path=str(tmp_path / "saved"), grader=name(unknown_name))
    with pytest.raises(ValueError, match="a parameter 'golden', which is not known"):
        build_source("d", config, 0).draw(0)
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps({"prompt": "?", "answer": "7"}) + "\n")
    with pytest.raises(ValueError, match="line 2, row 1: no column 'level', which is a parameter of grader"):
        build_source("d", TasksConfig(kind="records", path=str(path), grader=name(with_columns)), 0).draw(0)


def test_a_name_that_means_two_things_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'completion', which may mean the response or the column 'completion'"):
        source(tmp_path, {**ROW, "completion": "7"}, grader=name(answer_meant_twice)).draw(0)


# --- TRL and verl ----------------------------------------------------------------------------------------------------


def trl_text(prompts, completions, **kwargs):
    assert prompts == ["3+4?"] and kwargs["level"] == [2] and "prompt" not in kwargs
    return [float(c == a) for c, a in zip(completions, kwargs["answer"], strict=True)]


def trl_chat(completions, answer, log_extra=None, trainer_state=None):
    log_extra("answer", answer)
    contents = [completion[0]["content"] for completion in completions]
    assert trainer_state is None and completions[0][0]["role"] == "assistant"
    return [float(c == a) for c, a in zip(contents, answer, strict=True)]


def trl_thought(completions, **kwargs):
    return [float(completions[0][0].get("reasoning_content") == "hm")]


async def trl_waiting(completions, ground_truth):
    return [float(completions == ground_truth)]


def trl_if_hard(completions, level, **kwargs):
    return [1.0 if one > 2 else None for one in level]


def trl_number(completions, **kwargs):
    return 1.0


def trl_ids(completion_ids, **kwargs):
    return [1.0]


def verl_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    right = (data_source, solution_str, ground_truth, extra_info) == ("openai/gsm8k", "7", "7", {"index": 3})
    return {"score": 1.0 if right else -1.0, "acc": right}


def verl_short(solution_str, ground_truth, method="strict"):
    return (float(solution_str == ground_truth), 12)


def test_a_reward_function_of_trl_gets_lists(tmp_path):
    for function, prompt in ((trl_text, "3+4?"), (trl_chat, CHAT), (trl_waiting, "3+4?")):
        row = {**ROW, "prompt": prompt}
        assert graded(tmp_path, row=row, grader=f"trl:{name(function)}") == Grade(1.0), function
        assert graded(tmp_path, "8", row=row, grader=f"trl:{name(function)}") == Grade(0.0), function
    records = source(tmp_path, {**ROW, "prompt": CHAT}, grader=f"trl:{name(trl_thought)}")
    assert [records.grade(records.draw(0), "7", thought).reward for thought in ("hm", "")] == [1.0, 0.0]


def test_where_a_function_of_trl_does_not_apply_there_is_no_reward(tmp_path):
    grader = f"trl:{name(trl_if_hard)}"
    assert graded(tmp_path, row={**ROW, "level": 3}, grader=grader) == Grade(1.0)
    with pytest.raises(NoReward, match="returned None: no reward for this row"):
        graded(tmp_path, grader=grader)
    both = graded(tmp_path, grader=[{"name": grader, "weight": 3}, "exact"])
    assert both == Grade(1.0, "exact 1")
    with Grader(domains(tmp_path, grader=grader)) as process:
        (grade,) = process.grade([(source(tmp_path, grader=grader).draw(0), "7")])
    assert grade.reward == 0 and grade.reason.startswith("grader raised NoReward: trl:")


def test_what_is_no_reward_function_of_trl_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="requires completion_ids, which is not there where responses are graded"):
        source(tmp_path, grader=f"trl:{name(trl_ids)}")
    with pytest.raises(ConfigError, match=f"has TRL's signature .completions.: write trl:{name(trl_text)}"):
        source(tmp_path, grader=name(trl_text))
    with pytest.raises(ConfigError, match="a parameter 'response', which is not known: known are prompts, completions"):
        source(tmp_path, grader=f"trl:{name(constant)}")
    with pytest.raises(GraderBug, match=r"returned 1.0 for one completion: a reward function of TRL returns a list"):
        graded(tmp_path, grader=f"trl:{name(trl_number)}")


def test_compute_score_of_verl(tmp_path):
    row = {
        "data_source": "openai/gsm8k",
        "prompt": CHAT,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "7"},
        "extra_info": {"index": 3},
    }
    options = {"row": row, "answer": "reward_model.ground_truth"}
    score = {"grader": f"verl:{name(verl_score)}", "reward_range": [-1, 1]}
    assert graded(tmp_path, **options, **score) == Grade(1.0, "acc True")
    assert graded(tmp_path, "8", **options, **score) == Grade(0.0, "acc False")
    assert graded(tmp_path, **options, grader=f"verl:{name(verl_short)}") == Grade(1.0)
    with pytest.raises(ConfigError, match="must take solution_str"):
        source(tmp_path, grader=f"verl:{name(by_name)}")


# --- Several, and ranges ---------------------------------------------------------------------------------------------


def boxed(response):
    return float("[" in response), "" if "[" in response else "no box"


def minus_one_to_three(response, reference):
    return {"7": 3, "6": 1, "5": -1}.get(response, 4)


def test_several_graders_give_their_weighted_mean(tmp_path):
    graders = [{"name": "number", "weight": 3}, {"name": name(boxed), "weight": 1, "gold": False}]
    for response, reward, reason in (
        ("[7]", 1.0, f"number 1; {name(boxed)} 1"),
        ("7", 0.75, f"number 1; {name(boxed)} 0 (no box)"),
        ("[8]", 0.25, f"number 0; {name(boxed)} 1"),
    ):
        assert graded(tmp_path, response, grader=graders) == Grade(reward, reason)
    with pytest.raises(ConfigError, match=r"grader.0.weight: .*greater than 0"):
        source(tmp_path, grader=[{"name": "number", "weight": 0}])
    with pytest.raises(ConfigError, match=r"grader.0.wieght: unknown key: did you mean 'weight'"):
        source(tmp_path, grader=[{"name": "number", "wieght": 1}])


def test_rewards_of_any_range_are_mapped_to_zero_and_one(tmp_path):
    grader = name(minus_one_to_three)
    rewards = [graded(tmp_path, r, grader=grader, reward_range=[-1, 3]).reward for r in ("7", "6", "5")]
    assert rewards == [1.0, 0.5, 0.0]
    of_one = [{"name": grader, "reward_range": [-1, 3]}, "number"]
    assert graded(tmp_path, "6", grader=of_one).reward == 0.25
    with pytest.raises(GraderBug, match=r"minus_one_to_three returned 4: a reward is a number in \[-1, 3\]"):
        graded(tmp_path, "9", grader=grader, reward_range=[-1, 3])
    with pytest.raises(GraderBug, match=r"returned 3: a reward is a number in \[0, 1\].*declared as reward_range"):
        graded(tmp_path, "7", grader=grader)
    for wrong in ([1, 0], [0, 0]):
        with pytest.raises(ConfigError, match=r"reward_range.* is no range: give \[lowest, highest\]"):
            source(tmp_path, grader=grader, reward_range=wrong)
    with pytest.raises(ValueError, match=r"reward_range\.1 is inf: give a finite number"):
        source(tmp_path, grader=grader, reward_range=[0, float("inf")])


def domains(tmp_path, row=ROW, **options):
    source(tmp_path, row)
    return {"d": DomainConfig(tasks={"kind": "records", "path": str(tmp_path / "rows.jsonl"), **options}, eval_size=1)}


def test_gold_answers_are_checked_by_the_graders_that_judge_them(tmp_path):
    form = {"name": name(boxed), "weight": 0.2}
    assert check_domains(domains(tmp_path, grader=["number", {**form, "gold": False}]), 2)["d"].ok
    assert not check_domains(domains(tmp_path, grader=["number", form]), 2)["d"].ok
    # and one that does not score is not made up for by the form
    wrong = [{"name": name(constant)}, {**form, "gold": False}]
    (failure, *_) = check_domains(domains(tmp_path, grader=wrong), 2)["d"].failures
    assert failure.startswith("d/0/0: gold answer '7' scores 0.5")


def test_references_that_are_no_answers_are_never_passed_over_in_silence(tmp_path, capsys):
    for row, options in (
        ({**ROW, "answer": ["7", "8"]}, {"grader": name(by_name)}),
        (ROW, {"grader": {"name": name(by_name), "gold": False}}),
    ):
        config = domains(tmp_path, row, **options)
        with Grader(config) as grader:
            require_golds({"d": build_source("d", config["d"].tasks, 0)}, 2, grader.grade)
        assert "domain 'd': its column 'answer'" in capsys.readouterr().err
    report = check_domains(domains(tmp_path, {**ROW, "answer": ["7", "8"]}, grader="exact"), 2)["d"]
    assert report.ok and report.without_gold == 0 and report.constant == "7" and not report.notes


def test_a_task_made_by_hand_has_no_row(tmp_path):
    assert source(tmp_path, grader=name(with_kwargs)).grade(Task("x", "d", tuple(CHAT), "7"), "7").reward == 1.0

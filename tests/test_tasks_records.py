"""Records: rows of a file become tasks, in a new order every epoch, and graders are found by name."""

import json

import pytest

from onepolicy.config import ConfigError, DomainConfig, TasksConfig
from onepolicy.tasks import build_eval_source, build_source
from onepolicy.tasks.grading import Grader
from onepolicy.tasks.mixture import Domain
from onepolicy.tasks.records import exact, number
from onepolicy.types import Grade, Task

ROWS = [{"prompt": f"{i}+1?", "answer": i + 1, "shown": f"it is {i + 1}"} for i in range(10)]


def within_one(response, reference):
    return 1.0 if abs(int(response) - reference) <= 1 else (0.0, "too far")


def with_task(response, reference, task):
    return Grade(0.5, f"{task.id} {response} {reference}")


def no_grader(text, reference):
    return 1.0


def write_jsonl(folder, rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return str(path)


def source(seed=0, **options):
    return build_source("r", TasksConfig(kind="records", **options), seed)


def prompts(records, indices):
    return [records.draw(index).messages[0]["content"] for index in indices]


def jsonl(folder):
    return {"path": write_jsonl(folder, ROWS)}


def parquet(folder):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "rows.parquet")
    return {"path": str(folder / "rows.parquet")}


def saved(folder):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return {"path": str(folder / "saved")}


def saved_splits(folder):
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(folder / "splits")
    return {"path": str(folder / "splits"), "split": "train"}


@pytest.mark.parametrize("write", [jsonl, parquet, saved, saved_splits])
def test_every_format_gives_the_same_tasks(tmp_path, write):
    records = source(**write(tmp_path), demonstration="shown")
    by_prompt = {records.draw(i).messages[0]["content"]: records.draw(i) for i in range(10)}
    task = by_prompt["4+1?"]
    assert task.messages == ({"role": "user", "content": "4+1?"},) and task.reference == 5
    assert records.gold(task) == "5" and records.demonstration(task) == "it is 5"
    assert records.grade(task, " 5\n").reward == 1.0 and records.grade(task, "6").reward == 0.0


def test_every_epoch_has_every_row_once_in_an_order_of_its_own(tmp_path):
    records = source(**jsonl(tmp_path))
    first, second = prompts(records, range(10)), prompts(records, range(10, 20))
    assert sorted(first) == sorted(second) == sorted(row["prompt"] for row in ROWS)
    assert first != second and first != prompts(source(seed=1, **jsonl(tmp_path)), range(10))
    assert prompts(records, [13, 3, 10**9]) == prompts(source(**jsonl(tmp_path)), [13, 3, 10**9])
    assert records.draw(3).id != records.draw(13).id


def test_training_rows_and_held_out_rows_split_one_file(tmp_path):
    domain = Domain("r", DomainConfig(tasks={"kind": "records", **jsonl(tmp_path)}, eval_size=4), seed=0)
    held_out = {task.reference for task in domain.eval_tasks}
    trained = [domain.draw().reference for _ in range(12)]
    assert len(held_out) == 4 and sorted(trained[:6]) == sorted(trained[6:]) == sorted(set(range(1, 11)) - held_out)


def test_a_file_for_evaluation_is_used_and_its_prompts_are_kept_out_of_training(tmp_path):
    tasks = {"kind": "records", **jsonl(tmp_path), "eval_path": write_jsonl(tmp_path, ROWS[:2], "eval.jsonl")}
    domain = Domain("r", DomainConfig(tasks=tasks, eval_size=2), seed=0)
    assert {task.reference for task in domain.eval_tasks} == {1, 2}
    assert {domain.draw().reference for _ in range(8)} == set(range(3, 11))
    with pytest.raises(ValueError, match="only 2 distinct prompts in 1000 draws, but eval_size is 3: lower"):
        Domain("r", DomainConfig(tasks=tasks, eval_size=3), seed=0)


def test_a_prompt_may_be_a_whole_chat(tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2*3?"}]
    task = source(path=write_jsonl(tmp_path, [{"prompt": chat, "answer": "6"}])).draw(0)
    assert task.messages == tuple(chat)


def test_exact_folds_white_space_and_case():
    assert exact(" The  Cat\n", "the cat") == 1.0 and exact("thecat", "the cat") == 0.0 and exact("5", 5) == 1.0


@pytest.mark.parametrize(
    ("response", "reference", "reward"),
    [
        ("so it is 18.", "9 * 2 = 18\n#### 18", 1.0),
        ("$1,234.50", 1234.5, 1.0),
        ("1,000,000", "1000000", 1.0),
        ("18 or 19", "18", 0.0),
        ("-3", "-3", 1.0),
        ("x = -3", "3", 0.0),
        ("5-3", "3", 1.0),
        (".5", "0.50", 1.0),
        ("3, 4", "4", 1.0),
        ("−3", "-3", 1.0),
        ("−3", "3", 0.0),
        ("minus 3", "3", 0.0),
        ("5–3", "3", 1.0),
        ("3/4", "3/4", 1.0),
        ("4", "3/4", 0.0),
        ("7/3", "3", 0.0),
        ("7/3", "7", 0.0),
        ("10^3", "3", 0.0),
        ("10^{3}", "3", 0.0),
        ("1e3", "3", 0.0),
        ("x3", "3", 0.0),
        ("12:03", "3", 0.0),
        ("2.1.3", "3", 0.0),
        ("3 million", "3", 0.0),
        ("3 million", "3 million", 1.0),
        ("答案是3", "3", 1.0),
        ("<think>3</think>", "3", 0.0),
        ("<think>4</think>3", "3", 1.0),
        ("3kg", "3", 1.0),
        (r"$\boxed{3}$", "3", 1.0),
    ],
)
def test_number_compares_the_last_numbers(response, reference, reward):
    assert number(response, reference)[0] == reward


def test_number_without_a_number_gets_nothing_and_a_reason():
    assert number("none", "3") == (0.0, "no number in the response")
    with pytest.raises(ValueError, match="the reference 'none' holds no number"):
        number("3", "none")


def test_graders_of_ones_own_are_called_with_or_without_the_task(tmp_path):
    task = Task("r/0/0", "r", (), 5)
    assert source(**jsonl(tmp_path), grader=f"{__name__}:within_one").grade(task, "6") == Grade(1.0)
    assert source(**jsonl(tmp_path), grader=f"{__name__}:within_one").grade(task, "9") == Grade(0.0, "too far")
    assert source(**jsonl(tmp_path), grader=f"{__name__}:with_task").grade(task, "6") == Grade(0.5, "r/0/0 6 5")


def test_records_are_graded_in_the_grading_process(tmp_path):
    tasks = {"kind": "records", **jsonl(tmp_path), "grader": f"{__name__}:within_one"}
    task = build_source("r", TasksConfig(**tasks), 0).draw(0)
    with Grader({"r": DomainConfig(tasks=tasks)}) as grader:
        grades = grader.grade([(task, str(task.reference)), (task, "x")])
    assert grades[0] == Grade(1.0) and grades[1].reason.startswith("grader raised ValueError: invalid literal")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "no/such.jsonl"}, "domains.r.tasks.path: no such file or folder: no/such.jsonl"),
        ({}, "give either `path`"),
        ({"hub": "some/data"}, "hub dataset 'some/data' needs a `split`"),
        ({"path": ".", "grader": "exakt"}, "domains.r.tasks.grader: no grader 'exakt': did you mean 'exact'?"),
        ({"path": ".", "grader": f"{__name__}:no_grader"}, "no_grader must take the response: no parameter"),
        ({"path": ".", "grader": f"{__name__}:within_on"}, "has no 'within_on': did you mean 'within_one'?"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(options, message):
    with pytest.raises(ConfigError, match=message):
        source(**options)


def test_a_dataset_repository_is_read_by_split(tmp_path, monkeypatch):
    """`hub` takes whatever datasets.load_dataset takes: here a repository's folder as it is laid out on the hub."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    repository = tmp_path / "repository"
    repository.mkdir()
    write_jsonl(repository, ROWS[:8], "train.jsonl")
    write_jsonl(repository, ROWS[8:], "test.jsonl")
    config = TasksConfig(kind="records", hub=str(repository), split="train", eval_split="test")

    train = build_source("r", config, 0)

    assert sorted(prompts(train, range(8))) == [f"{i}+1?" for i in range(8)]
    assert sorted(prompts(build_eval_source("r", config), range(2))) == ["8+1?", "9+1?"]

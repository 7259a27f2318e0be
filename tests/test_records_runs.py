"""Whole runs on the shapes of data that people have: verl's rows, TRL's chats, objects given from Python."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from onepolicy import parse_run, run
from onepolicy.config import ConfigError
from onepolicy.config.objects import GivenRows
from onepolicy.engines.text import Renderer
from onepolicy.tasks.mixture import Mixture
from onepolicy.tiny import character_tokenizer
from tests.row_graders import LISTS, QUESTIONS, compute_score, same
from tests.runs import SCRATCH, settings, weights


def verl_rows(folder):
    import pyarrow
    import pyarrow.parquet

    rows = [
        {
            "data_source": "sums",
            "prompt": [{"role": "user", "content": question}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": answer},
            "extra_info": {"split": "train", "index": index},
        }
        for index, (question, answer) in enumerate(QUESTIONS)
    ]
    for number, part in enumerate((rows[:8], rows[8:])):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), folder / f"train-{number}.parquet")
    return str(folder / "train-*.parquet")


def metrics(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def samples(output):
    return [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]


def test_reinforcement_on_rows_of_verl(tmp_path):
    tasks = {
        "kind": "records",
        "path": verl_rows(tmp_path),
        "answer": "reward_model.ground_truth",
        "grader": f"verl:{compute_score.__module__}:compute_score",
        "reward_range": [-1, 1],
    }
    config = parse_run(settings("rlvr", tmp_path, domains={"sums": {"tasks": tasks, "eval_size": 4}}, steps=2))
    run(config)
    rewards = [row["reward/sums"] for row in metrics(config.output)]
    assert len(rewards) == 2 and all(0 <= reward <= 1 for reward in rewards)
    for sample in samples(config.output):
        digit = any(map(str.isdigit, sample["response"]))
        assert sample["reward"] == (1.0 if sample["response"] == sample["reference"] else 0.5 * digit)
    final = json.loads((config.output / "eval" / "final.json").read_text())["domains"]["sums"]
    assert {reward for question in final for reward in question["rewards_G"]} <= {0.0, 0.5, 1.0}


def chats(folder, rows):
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


TOOLS = [
    {"role": "user", "content": "sum"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "1+2"},
    {"role": "assistant", "content": "call"},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "3"},
]


def test_finetuning_on_whole_chats(tmp_path):
    """TRL's {"messages": [...]}: what follows the last message of the user is imitated, and nothing else."""
    tasks = {"kind": "records", "path": chats(tmp_path, [{"messages": TOOLS}]), "prompt": "messages"}
    tasks |= {"answer": "messages", "demonstration": "messages"}
    domains = {"chat": {"tasks": tasks, "eval_size": 1, "share": 1}}
    mixture = Mixture(parse_run(settings("sft", tmp_path, domains=domains)).domains, 0)
    task = mixture.domains["chat"].source.draw(0)
    assert task.messages == tuple(TOOLS[:3]) and mixture.demonstrated(task) == tuple(TOOLS[3:])
    assert mixture.gold(task) == "3"
    renderer = Renderer(character_tokenizer(SCRATCH["alphabet"] + " ", ("tool",)))
    ids_T, mask_T = renderer.demonstration(task, mixture.demonstrated(task))
    end = renderer.end_id
    own = [int(token) for token, is_own in zip(ids_T, mask_T, strict=True) if is_own]
    assert own == [*renderer.plain_ids("call"), end, *renderer.plain_ids("3"), end]


def test_finetuning_on_prompts_and_completions_of_trl(tmp_path):
    rows = [
        {"prompt": [{"role": "user", "content": q}], "completion": [{"role": "assistant", "content": a}]}
        for q, a in QUESTIONS
    ]
    tasks = {"kind": "records", "path": chats(tmp_path, rows), "answer": "completion", "demonstration": "completion"}
    config = parse_run(settings("sft", tmp_path, domains={"sums": {"tasks": tasks, "eval_size": 4}}, steps=2))
    run(config)
    shown = samples(config.output)[0]
    assert (shown["prompt"], shown["response"]) in QUESTIONS and len(metrics(config.output)) == 2


@pytest.mark.parametrize(
    ("demonstration", "message"),
    [
        ("", "'' is a demonstration without any content"),
        (None, "null is no demonstration"),
        ([{"role": "user", "content": "x"}], "goes from the role 'user' to 'user'"),
        ([TOOLS[3], TOOLS[4]], "goes from the role 'assistant' to 'tool'"),
        ([{"role": "assistant", "content": " "}], "message 0 of the demonstration is an empty turn"),
        ([{**TOOLS[3], "tool_calls": [{"id": "1"}]}], "message 0 of the demonstration has tool_calls"),
    ],
)
def test_a_demonstration_that_cannot_be_imitated_is_refused_by_row(tmp_path, demonstration, message):
    rows = [{"prompt": "1+2", "answer": "3", "shown": shown} for shown in ("3", demonstration)]
    tasks = {"kind": "records", "path": chats(tmp_path, rows), "demonstration": "shown"}
    config = parse_run(settings("sft", tmp_path, domains={"sums": {"tasks": tasks, "eval_size": 1}}))
    with pytest.raises(ValueError, match=rf"chats.jsonl, line 2, row 1: column 'shown': .*{message}"):
        run(config)


def test_a_chat_that_ends_with_a_question_has_no_demonstration(tmp_path):
    rows = [{"messages": TOOLS[:3]}]
    tasks = {"kind": "records", "path": chats(tmp_path, rows), "prompt": "messages", "answer": "messages"}
    config = parse_run(settings("sft", tmp_path, domains={"c": {"tasks": {**tasks, "demonstration": "messages"}}}))
    with pytest.raises(ValueError, match="row 0: column 'messages': the chat ends with the role 'user'"):
        run(config)


def objects(folder, rows, **changes):
    tasks = {"kind": "records", "rows": rows, "prompt": "question", "grader": same}
    return settings("rlvr", folder, domains={"sums": {"tasks": tasks, "eval_size": 4}}, **{"steps": 2, **changes})


def test_a_function_and_a_dataset_given_from_python_train_and_resume(tmp_path):
    import datasets

    data = datasets.Dataset.from_list(LISTS)
    whole = parse_run(objects(tmp_path, data, steps=4, output=str(tmp_path / "whole")))
    run(whole)
    first = parse_run(objects(tmp_path, data))
    run(first)
    kept = yaml.safe_load((first.output / "config.yaml").read_text())["domains"]["sums"]["tasks"]
    assert kept["grader"] == f"{same.__module__}:same" and kept["rows"]["count"] == 16
    assert all(sample["reason"] == f"wants {sample['reference']}" for sample in samples(first.output))
    # the same rows in another object, and two steps more: the run goes on, to the same weights
    run(parse_run(objects(tmp_path, LISTS, steps=4)))
    assert [row["step"] for row in metrics(first.output)] == [1, 2, 3, 4]
    ours, theirs = weights(first.output), weights(whole.output)
    assert all(ours[tensor].equal(theirs[tensor]) for tensor in theirs)
    with pytest.raises(ValueError, match=r"another configuration \(domains.sums.tasks.rows.fingerprint"):
        run(parse_run(objects(tmp_path, [*LISTS[1:], LISTS[1]])))
    with pytest.raises(ValueError, match=r"the 16 rows \(fingerprint \w+\) were given as a Python object"):
        Mixture(parse_run(yaml.safe_load((first.output / "config.yaml").read_text())).domains, 0)


def test_rows_for_evaluation_may_be_given_too(tmp_path):
    config = settings("rlvr", tmp_path)
    tasks = {"kind": "records", "rows": LISTS[4:], "eval_rows": LISTS[:2], "prompt": "question"}
    config["domains"] = {"sums": {"tasks": tasks, "eval_size": 2}}
    mixture = Mixture(parse_run(config).domains, 0)
    assert {task.messages[0]["content"] for task in mixture.eval_tasks["sums"]} == {"1+1", "1+2"}
    assert "1+1" not in {task.messages[0]["content"] for task in mixture.draw(12)}


def test_the_fingerprint_of_rows_is_that_of_their_content_in_every_process():
    script = (
        "import datasets; from onepolicy.config.objects import GivenRows; from tests.row_graders import LISTS;"
        "print(GivenRows.of(datasets.Dataset.from_list(LISTS)).fingerprint)"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert GivenRows.of(LISTS).fingerprint == other
    assert GivenRows.of(LISTS[1:]).fingerprint != other


def nested():
    def inner(response, reference):
        return 1.0

    return inner


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grader": lambda response, reference: 1.0}, "cannot be imported by the grading process.*no lambda"),
        ({"grader": nested()}, "cannot be imported by the grading process"),
        ({"grader": [{"name": lambda response: 1.0}]}, "cannot be imported by the grading process"),
        ({"rows": "train.jsonl"}, "and not str.*in a file use `path` or `hub`"),
        ({"rows": {"train": LISTS}}, "and not dict: of a DatasetDict pick a split"),
        ({"rows": [1, 2]}, "rows of list are no dicts"),
    ],
)
def test_objects_that_cannot_be_used_are_refused_when_the_configuration_is_read(tmp_path, change, message):
    config = objects(tmp_path, LISTS)
    config["domains"]["sums"]["tasks"] |= change
    with pytest.raises(ConfigError, match=message):
        parse_run(config)


def test_a_table_of_pandas_is_no_list_of_rows(tmp_path):
    import pandas

    with pytest.raises(ConfigError, match=r"rows of DataFrame are no dicts: give a datasets.Dataset"):
        parse_run(objects(tmp_path, pandas.DataFrame(LISTS)))
    rows = pandas.concat(map(pandas.read_parquet, sorted(Path(verl_rows(tmp_path)).parent.glob("*.parquet"))))
    tasks = {"kind": "records", "rows": rows.to_dict("records"), "answer": "reward_model.ground_truth"}
    config = settings("rlvr", tmp_path, domains={"sums": {"tasks": tasks, "eval_size": 4}})
    task = Mixture(parse_run(config).domains, 0).draw(1)[0]
    assert (task.messages[0]["content"], task.reference) in QUESTIONS

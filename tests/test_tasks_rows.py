"""Rows: every format gives the same ones, and a faulty one is named by file, line, row, column and value."""

import gzip
import json
import os
import re
import socket

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from onepolicy.config import DomainConfig, TasksConfig
from onepolicy.tasks import build_eval_source, build_source
from onepolicy.tasks.check import check_domains
from onepolicy.tasks.columns import MAX_TEXT
from onepolicy.tasks.mixture import Mixture
from onepolicy.tasks.records import RecordsOptions, RecordsSource
from onepolicy.tasks.row_files import read_path, unpacked_limit

ROWS = [{"prompt": f"{i}+1?", "answer": str(i + 1)} for i in range(6)]
USER = {"role": "user", "content": "2+2?"}


def source(**options):
    return build_source("r", TasksConfig(kind="records", **options), 0)


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(path, rows):
    """In the format of the ending."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        import pandas

        pandas.DataFrame(rows).to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    elif path.name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress(lines(rows).encode()))
    else:
        path.write_text(json.dumps(rows, indent=1) if path.suffix == ".json" else lines(rows))
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """`datasets` keeps what it reads from a folder: not in the home of who runs the tests."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def questions(records, count=6):
    tasks = [records.draw(index) for index in range(count)]
    return sorted((task.messages[0]["content"], task.reference) for task in tasks)


EXPECTED = [(row["prompt"], row["answer"]) for row in ROWS]


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv", "r.tsv", "r.parquet", "r.jsonl.gz"])
def test_every_format_of_a_file_gives_the_same_rows(tmp_path, name):
    assert questions(source(path=str(write(tmp_path / name, ROWS)))) == EXPECTED


def test_one_object_a_line_may_be_called_json_and_an_array_jsonl(tmp_path):
    (tmp_path / "lines.json").write_text(lines(ROWS))
    (tmp_path / "array.jsonl").write_text(json.dumps(ROWS))
    for name in ("lines.json", "array.jsonl"):
        assert questions(source(path=str(tmp_path / name))) == EXPECTED


def test_csv_as_excel_writes_it(tmp_path):
    """A byte order mark, CRLF, and a quoted cell with a separator, quotes and a line end; all of it text."""
    file = tmp_path / "r.csv"
    file.write_bytes('\ufeffprompt,answer\r\n"a, ""b""\nc",007\r\nd,1.0\r\n'.encode())
    assert questions(source(path=str(file)), 2) == [('a, "b"\nc', "007"), ("d", "1.0")]
    file.write_text('prompt,answer\n"a\nb",1\nc\n')
    with pytest.raises(ValueError, match=r"r.csv, line 4 has 1 cells and the header 2"):
        source(path=str(file)).draw(0)
    file.write_text("prompt,prompt\na,b\n")
    with pytest.raises(ValueError, match=r"the header \['prompt', 'prompt'\] has a column twice"):
        source(path=str(file)).draw(0)


def test_several_files_and_globs_are_read_one_after_the_other(tmp_path):
    first, second = write(tmp_path / "a.jsonl", ROWS[:2]), write(tmp_path / "b.parquet", ROWS[2:])
    assert questions(source(path=[str(first), str(second)])) == EXPECTED
    for number in range(3):
        write(tmp_path / "data" / f"train-{number}.parquet", ROWS[2 * number : 2 * number + 2])
    write(tmp_path / "data" / "test-0.parquet", [{"prompt": "held out", "answer": "1"}])
    config = TasksConfig(kind="records", path=str(tmp_path / "data/train-*.parquet"), eval_path=str(tmp_path / "*/te*"))
    assert questions(build_source("r", config, 0)) == EXPECTED
    assert questions(build_eval_source("r", config), 1) == [("held out", "1")]


def test_a_row_is_numbered_within_its_file(tmp_path):
    write(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "b.jsonl").write_text("\n" + lines([ROWS[0], {"prompt": None, "answer": "1"}]))
    with pytest.raises(ValueError, match=r"domain 'r': \S*/b.jsonl, line 3, row 1: column 'prompt': null is no prompt"):
        source(path=str(tmp_path / "*.jsonl")).draw(0)


def test_a_path_that_names_nothing_is_refused(tmp_path):
    for path, message in (
        (str(tmp_path / "none-*.jsonl"), r"tasks.path: no file matches \S*none-\*.jsonl \(looked in"),
        ([], "tasks.path: an empty list of paths"),
        (3, "tasks.path: 3 is no path"),
        ([str(write(tmp_path / "a.jsonl", ROWS)), "gone.jsonl"], "no such file or folder: gone.jsonl"),
    ):
        with pytest.raises(ValueError, match=message):
            source(path=path)


def test_a_folder_may_be_laid_out_as_on_the_hub(tmp_path, cache):
    folder = tmp_path / "set"
    write(folder / "train.jsonl", ROWS)
    assert questions(source(path=str(folder))) == EXPECTED
    card = tmp_path / "configs"
    for name in ("train-00000-of-00002", "train-00001-of-00002"):
        write(tmp_path / "parts" / f"{name}.parquet", ROWS[:3] if "0-of" in name else ROWS[3:])
    card.mkdir()
    (tmp_path / "parts").rename(card / "data")
    write(card / "hard" / "test.parquet", ROWS[:2])
    (card / "README.md").write_text(
        "---\nconfigs:\n- config_name: easy\n  data_files: [{split: train, path: data/train-*}]\n"
        "- config_name: hard\n  data_files: [{split: test, path: hard/test.parquet}]\n---\n"
    )
    assert questions(source(path=str(card), subset="easy", split="train")) == EXPECTED
    assert questions(source(path=str(card), subset="hard"), 2) == EXPECTED[:2]
    with pytest.raises(ValueError, match=r"domain 'r': \S*configs can be read neither .*hrad"):
        source(path=str(card), subset="hrad").draw(0)


def test_a_split_is_asked_for_where_there_are_several_and_refused_where_there_are_none(tmp_path):
    import datasets

    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "splits")
    rows.save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="has the splits train, test: set `split` to one of them, not None"):
        source(path=str(tmp_path / "splits")).draw(0)
    with pytest.raises(ValueError, match="not 'trian'"):
        source(path=str(tmp_path / "splits"), split="trian").draw(0)
    for path in (tmp_path / "saved", write(tmp_path / "r.jsonl", ROWS)):
        with pytest.raises(ValueError, match="has no splits: remove split 'train'"):
            source(path=str(path), split="train").draw(0)
    with pytest.raises(ValueError, match="subset 'x' belongs to `hub` or a folder"):
        source(path=str(tmp_path / "r.jsonl"), subset="x")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.jsonl", b"\n", "r.jsonl holds no rows"),
        ("r.csv", b"a,b\n", "r.csv holds no rows"),
        ("r.jsonl", b'{"prompt": 1}\n{oops\n', "r.jsonl, line 2 is not JSON"),
        ("r.jsonl", b'{"prompt": 1}\n[1]\n', r"r.jsonl, line 2 is no JSON object: \[1\]"),
        ("r.json", b'[{"prompt": "a"},\n3]', "r.json, row 1 is no JSON object: 3"),
        ("r.json", b'[{"prompt": "a"},\n', "r.json, line 2 is not JSON"),
        ("r.jsonl", b'{"prompt": "\xff"}\n', "r.jsonl is not UTF-8"),
        ("r.jsonl.gz", b"no gzip", "r.jsonl.gz is no whole gzip file"),
        ("r.parquet", b"no parquet", "r.parquet is no Parquet file"),
        ("r.txt", b"a\n", "unknown ending '.txt'; rows are read from .parquet, .jsonl"),
    ],
)
def test_unreadable_files_are_named_with_the_fault(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"domain 'r': .*" + message):
        source(path=str(tmp_path / name)).draw(0)


def test_a_folder_with_nothing_to_read_is_named(tmp_path):
    with pytest.raises(ValueError, match="can be read neither as a folder of save_to_disk nor as one laid out as"):
        source(path=str(tmp_path)).draw(0)


FAULTY_PROMPTS = [
    (None, "null is no prompt"),
    (7, "7 is no prompt"),
    (True, "True is no prompt"),
    ({"text": "x"}, "{'text': 'x'} is no prompt"),
    (USER, r"is no prompt: .*one message is given as a list: \[\{'role'"),
    ([], r"\[\] is an empty list of messages"),
    ("", "'' is a prompt without any content"),
    (" \n", r"' \\n' is a prompt without any content"),
    (["2+2?"], "message 0 is '2\\+2\\?', and not a dict"),
    ([{"from": "human", "value": "2+2?"}], "message 0 has no role: {'from': 'human'"),
    ([USER, {"role": "user"}], "message 1 has no content"),
    ([{"role": "user", "content": None}], "message 0 has no content"),
    ([{"role": "user", "content": 4}], "message 0 has the content 4"),
    ([{"role": "user", "content": [{"text": "x"}]}], "a text or a list of parts with a type each"),
    ([{"role": "user", "content": " "}], "is a prompt without any content"),
    ([USER, {"role": "assistant", "content": "4"}], "the prompt ends with a message of the assistant"),
    ("half \ud83d", "half a surrogate pair"),
]


@pytest.mark.parametrize(("prompt", "message"), FAULTY_PROMPTS, ids=[str(p)[:20] for p, _ in FAULTY_PROMPTS])
def test_a_faulty_prompt_is_refused_whichever_row_is_drawn(tmp_path, prompt, message):
    path = write(tmp_path / "r.jsonl", [*ROWS[:5], {"prompt": prompt, "answer": "4"}])
    expected = rf"domain 'r': \S*/r.jsonl, line 6, row 5: column 'prompt': .*{message}"
    for index in range(6):
        with pytest.raises(ValueError, match=expected):
            RecordsSource("r", RecordsOptions(path=path), 0).draw(index)


def test_several_faults_are_counted_and_the_first_ones_named(tmp_path):
    rows = [{**row, "prompt": None} if i % 2 else row for i, row in enumerate([*ROWS, *ROWS])]
    with pytest.raises(ValueError, match=r"6 of 12 rows cannot be used: .*row 1: .*row 3: .*row 5: .*; and 3 more"):
        source(path=str(write(tmp_path / "r.jsonl", rows))).draw(0)


def test_a_column_that_is_missing_is_named_with_those_that_there_are(tmp_path):
    path = str(write(tmp_path / "r.jsonl", [{**row, "info": {"id": 3}} for row in ROWS]))
    with pytest.raises(
        ValueError,
        match=r"row 0: no column 'promt': did you mean 'prompt'\?; its columns are prompt, answer, info \(id\) "
        r"\(domains.r.tasks.prompt\); and 5 more",
    ):
        source(path=path, prompt="promt").draw(0)
    with pytest.raises(ValueError, match=r"row 0: no column 'info.di': did you mean 'info.id'\?; its columns"):
        source(path=path, answer="info.di").draw(0)
    broken = write(tmp_path / "b.jsonl", [ROWS[0], {"prompt": "?"}])
    with pytest.raises(ValueError, match=r"b.jsonl, line 2, row 1: no column 'answer'"):
        source(path=str(broken)).draw(0)


def test_a_dotted_column_is_a_part_of_a_struct_unless_a_column_is_called_so(tmp_path):
    rows = [{"q.a": "1?", "data": {"prompt": "2?", "b.c": {"d": "7"}}, "reward_model": {"ground_truth": "5"}}]
    path = str(write(tmp_path / "r.jsonl", rows))
    for prompt, answer, expected in (
        ("q.a", "reward_model.ground_truth", ("1?", "5")),
        ("data.prompt", "data.b.c.d", ("2?", "7")),
    ):
        assert questions(source(path=path, prompt=prompt, answer=answer), 1) == [expected]
    write(tmp_path / "r.jsonl", [*rows, {**rows[0], "reward_model": None}])
    with pytest.raises(ValueError, match="row 1: column 'reward_model': null is no struct, and has no 'ground_truth'"):
        source(path=path, prompt="q.a", answer="reward_model.ground_truth").draw(0)


def test_rows_for_evaluation_are_checked_with_the_others(tmp_path):
    train, test = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "b.jsonl", [{"prompt": "?", "answer": None}])
    config = DomainConfig(tasks={"kind": "records", "path": str(train), "eval_path": str(test)}, eval_size=1)
    for opened in (lambda: Mixture({"r": config}, seed=0), lambda: check_domains({"r": config}, 2)):
        with pytest.raises(ValueError, match=r"b.jsonl, line 1, row 0: column 'answer': null is no answer"):
            opened()


def test_media_pass_as_parts_and_nulls_that_arrow_puts_into_messages_do_not(tmp_path):
    parts = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "what is it?"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"arguments": {"x": 1}}}]}
    chats = [
        [{"role": "user", "content": parts}],
        [USER, call, {"role": "tool", "content": "4", "name": "sum"}],
    ]
    without = [*chats[:1], [USER, {**call, "content": ""}, chats[1][2]]]
    path = write(tmp_path / "r.jsonl", [{"prompt": chat, "answer": "4"} for chat in chats])
    drawn = {len(task.messages): task.messages for task in map(source(path=str(path)).draw, range(2))}
    assert drawn == {1: tuple(without[0]), 3: tuple(without[1])}
    # of Parquet every message has all the keys that any of them has
    write(tmp_path / "r.parquet", [{"prompt": chats[1], "answer": "4"}])
    assert source(path=str(tmp_path / "r.parquet")).draw(0).messages == tuple(without[1])


@pytest.mark.parametrize(
    ("kind", "good", "bad", "message"),
    [
        ("math", {"problem": "1+1", "answer": "2"}, {"problem": None, "answer": "2"}, "its columns problem, answer"),
        ("math", {"question": "1+1", "answer": "#### 2"}, {"question": "1+1", "answer": ""}, "its answer is empty"),
        (
            "code",
            {"prompt": "Add.", "code": "f = 1", "test_list": ["assert f"]},
            {"prompt": "Add.", "code": "f = 1", "test_list": []},
            "its test_list is empty",
        ),
        (
            "math",
            {"problem": "1+1", "answer": 2},
            {"problem": "1+1", "answer": ["2"]},
            r"its answer \['2'\] is no text",
        ),
        (
            "code",
            {"prompt": "def f(): ", "entry_point": "f", "test": "check"},
            {"prompt": None, "entry_point": "f", "test": "check"},
            "its question is null, and no text",
        ),
        (
            "instruction",
            {"prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
            {"prompt": 7, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
            "its prompt is no text: 7",
        ),
    ],
)
def test_every_source_of_rows_checks_all_of_them(tmp_path, kind, good, bad, message):
    write(tmp_path / "a.jsonl", [good] * 3)
    write(tmp_path / "b.jsonl", [good, bad])
    records = build_source("r", TasksConfig(kind=kind, path=str(tmp_path / "*.jsonl")), 0)
    with pytest.raises(ValueError, match=rf"domain 'r': \S*/b.jsonl, line 2, row 1: .*{message}"):
        records.draw(0)


def test_a_row_keeps_its_number_where_others_are_skipped(tmp_path):
    known = {"prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    unknown = {**known, "instruction_id_list": ["no:such"]}
    path = write(tmp_path / "r.jsonl", [unknown, known, unknown, known])
    tasks = TasksConfig(kind="instruction", path=str(path), unchecked="skip")
    drawn = [build_source("r", tasks, 0).draw(index) for index in range(2)]
    assert sorted(task.metadata["row"] for task in drawn) == [1, 3]


# --- what is no file of rows, or too much of one ---


def draw(path):
    return source(path=str(path)).draw(0)


def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "train.jsonl")
    server = socket.socket(socket.AF_UNIX)
    (tmp_path / "short").symlink_to(tmp_path)
    server.bind(os.path.relpath(tmp_path / "socket.jsonl"))
    for place, kind in (("pipe.jsonl", "a named pipe"), ("socket.jsonl", "a socket"), ("p*.jsonl", "a named pipe")):
        with pytest.raises(
            ValueError, match=rf"tasks.path: \S*\.jsonl is {kind}, and rows are read more than once: write"
        ):
            source(path=str(tmp_path / place))
    with pytest.raises(ValueError, match=r"tasks.path: /dev/zero is a device, and rows"):
        source(path="/dev/zero")
    with pytest.raises(ValueError, match=r"folder/train.jsonl is a named pipe"):
        draw(tmp_path / "folder")
    (tmp_path / "empty" / "within").mkdir(parents=True)
    with pytest.raises(ValueError, match="nor as one laid out as on the hub: it has no file"):
        draw(tmp_path / "empty")
    server.close()


def test_a_prompt_longer_than_any_context_is_refused_with_its_row(tmp_path):
    long = "x" * (MAX_TEXT + 1)
    chat = [{"role": "user", "content": long[: MAX_TEXT // 2 + 1]}] * 2
    for number, (prompt, what) in enumerate(((long, "a prompt"), (chat, "the chat"))):
        file = tmp_path / f"{number}.jsonl"
        file.write_text(lines([ROWS[0], {"prompt": prompt, "answer": "1"}]))
        with pytest.raises(ValueError) as caught:
            draw(file)
        where = f"domain 'r': {file}, line 2, row 1: column 'prompt': "
        assert re.fullmatch(
            re.escape(f"{where}{what} has ") + "10,000,00[12] characters, and the most is 10,000,000", str(caught.value)
        )


def test_a_small_file_that_unpacks_to_gigabytes_is_refused_in_seconds(tmp_path, monkeypatch):
    text = pyarrow.array(["x" * 2**20])
    bombs = {
        "repeated.parquet": pyarrow.table(
            {"prompt": pyarrow.DictionaryArray.from_arrays(np.zeros(200, np.int32), text)}
        ),
        "nulls.parquet": pyarrow.table({"prompt": pyarrow.nulls(1_000_000)}),
        "one.parquet": pyarrow.table({"prompt": pyarrow.array(["x" * 2**26])}),
    }
    for name, table in bombs.items():
        parquet.write_table(table, tmp_path / name, compression="zstd")
    with gzip.open(tmp_path / "line.jsonl.gz", "wb", 1) as file:
        for _ in range(20):
            file.write(b" " * 2**20)
    assert unpacked_limit(tmp_path / "line.jsonl.gz") == 2**30
    monkeypatch.setattr("onepolicy.tasks.row_files.FREE", 2**24)  # gigabytes would take their time
    monkeypatch.setattr("onepolicy.tasks.row_files.MAX_RATIO", 2)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(
            ValueError, match=rf"domain 'r': {path} has [\d,]+ bytes and unpacks to more than [\d.]+ GiB, which"
        ):
            draw(path)


def test_ordinary_packed_files_are_read_whole_whatever_their_batches(tmp_path, monkeypatch):
    rows = [{"prompt": f"{i}?", "answer": str(i)} for i in range(3000)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet", row_group_size=700)
    for largest in (2**31, 2**12):
        monkeypatch.setattr("onepolicy.tasks.row_files.BATCH_BYTES", largest)
        assert read_path(tmp_path / "r.parquet", None, None).rows == rows


def test_rows_nested_ten_thousand_deep_are_named(tmp_path):
    deep = '{"prompt": "a", "answer": ' + "[" * 10_000 + "]" * 10_000 + "}"
    (tmp_path / "r.jsonl").write_text(lines([ROWS[0]]) + deep)
    with pytest.raises(ValueError, match=r"r.jsonl, line 2 is nested more than 64 deep"):
        draw(tmp_path / "r.jsonl")
    (tmp_path / "r.json").write_text(f"[{deep}]")
    with pytest.raises(ValueError, match=r"r.json, the array in line 1 is nested more than 64 deep"):
        draw(tmp_path / "r.json")
    brackets = {"prompt": "[" * 10_000, "answer": "1"}  # in a text they are text
    (tmp_path / "text.jsonl").write_text(lines([brackets]))
    assert draw(tmp_path / "text.jsonl").messages[0]["content"] == "[" * 10_000


def test_a_hundred_thousand_columns_are_refused_and_many_are_listed_in_part(tmp_path):
    many = {"answer": "1"} | {f"column {i}": "x" for i in range(100_000)}
    (tmp_path / "r.jsonl").write_text(json.dumps(many))
    (tmp_path / "r.csv").write_text(",".join(many) + "\n" + ",".join(many.values()) + "\n")
    parquet.write_table(pyarrow.Table.from_pylist([dict(list(many.items())[:10_002])]), tmp_path / "r.parquet")
    for ending, count in (("jsonl", "100,001"), ("csv", "100,001"), ("parquet", "10,002")):
        with pytest.raises(
            ValueError, match=rf"r.{ending}.* has {count} columns, and the most is 10,000: is it transp"
        ):
            draw(tmp_path / f"r.{ending}")
    (tmp_path / "some.jsonl").write_text(json.dumps(dict(list(many.items())[:5000])))
    with pytest.raises(ValueError, match=r"no column 'prompt'.* and 4900 more") as caught:
        draw(tmp_path / "some.jsonl")
    assert len(str(caught.value)) < 5000


def test_a_huge_cell_of_a_csv_file_is_read_unless_it_is_the_prompt(tmp_path):
    huge = "x" * (MAX_TEXT + 1)
    (tmp_path / "r.csv").write_text(f'prompt,answer,more\nq,1,"{huge}"\n')
    assert len(draw(tmp_path / "r.csv").metadata["columns"]["more"]) == MAX_TEXT + 1
    (tmp_path / "r.csv").write_text(f'prompt,answer\n"{huge}",1\n')
    with pytest.raises(ValueError, match=r"r.csv, line 2, row 0: column 'prompt': a prompt has 10,000,001 characters"):
        draw(tmp_path / "r.csv")

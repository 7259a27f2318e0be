"""The drill's short form holds, and its judgement sees what would be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.cases import Case, Ended, Place, judge, tables
from benchmarks.drill import KINDS, chosen, drill
from benchmarks.kills import difference

LINE = "error: teacher 'math': tensor 'a' is missing in x.safetensors\n"


def place(folder: Path) -> Place:
    return Place(folder / "models", folder)


def case(**changes: object) -> Case:
    return Case("a case", lambda place: [], ("teacher 'math'", "'a'"), **changes)  # type: ignore[arg-type]


def test_every_case_of_the_short_drill_holds(tmp_path: Path) -> None:
    found = [f"{kind}: {one.name}: {fault}" for kind, one, fault in drill(chosen(KINDS, "", True), tmp_path, 2)]
    assert len(found) >= 30
    assert not [line for line in found if not line.endswith(": ")]


def test_the_drill_is_as_large_as_it_says() -> None:
    sizes = {kind: len(cases) for kind, cases in tables().items()}
    least = {"kills": 60, "changes": 20, "teachers": 40, "students": 40, "configs": 100, "rows": 35, "graders": 35}
    assert sizes.keys() == least.keys() and all(sizes[kind] >= least[kind] for kind in least)
    for kind, cases in tables().items():
        names = [one.name for one in cases]
        assert len(set(names)) == len(names), f"{kind} has two cases of one name"


@pytest.mark.parametrize(
    ("ended", "fault"),
    [
        (Ended(2, LINE, 1), ""),
        (Ended(2, "note: one\nwarning: two\n" + LINE, 1, [".lock", "config.yaml", "run.json"]), ""),
        (Ended(None, "", 90), "still running"),
        (Ended(1, "Traceback (most recent call last):\nKeyError: 'a'\n", 1), "traceback"),
        (Ended(2, "[transformers] LOAD REPORT\n" + LINE, 1), "neither error nor warning: [transformers]"),
        (Ended(1, LINE, 1), "exit code 1 instead of 2"),
        (Ended(-9, LINE, 1), "exit code -9"),
        (Ended(0, "", 1), "exit code 0 instead of 2"),
        (Ended(2, LINE + LINE, 1), "2 error lines"),
        (Ended(2, "error: teacher 'math': no\n", 1), "does not name \"'a'\""),
        (Ended(2, LINE, 1, ["checkpoints", "checkpoints/.step-2.1.tmp"]), "left behind: checkpoints/.step-2.1.tmp"),
        (Ended(2, LINE, 1, ["model"]), "left behind: model"),
        (Ended(2, LINE, 1, ["config.yaml", "metrics.jsonl"]), "only after work had begun: metrics.jsonl"),
    ],
)
def test_a_refusal_is_one_line_that_names_the_culprit(ended: Ended, fault: str, tmp_path: Path) -> None:
    found = judge(case(), place(tmp_path), ended)
    assert fault in found if fault else found == ""


def test_a_run_that_is_stopped_may_have_taken_steps(tmp_path: Path) -> None:
    ended = Ended(2, LINE, 1, ["config.yaml", "metrics.jsonl", "checkpoints"])
    assert judge(case(outcome="stopped"), place(tmp_path), ended) == ""


def test_a_result_must_be_there_and_finite(tmp_path: Path) -> None:
    fine, here = case(outcome="finished"), place(tmp_path)
    said, left = "warning: teacher 'math', 'a'\n", ["done.json", "model/model.safetensors"]
    (here.output / "model").mkdir(parents=True)
    save_file({"a": torch.ones(2)}, here.output / "model" / "model.safetensors")
    assert judge(fine, here, Ended(0, said, 1, left)) == ""
    assert "without a result" in judge(fine, here, Ended(0, said, 1, ["done.json"]))
    assert "no warning has" in judge(fine, here, Ended(0, "", 1, left))
    assert "exit code 2 instead of 0" in judge(fine, here, Ended(2, LINE, 1, left))
    save_file({"a": torch.tensor([1.0, float("nan")])}, here.output / "model" / "model.safetensors")
    assert "'a' of the result is not finite" in judge(fine, here, Ended(0, said, 1, left))


def test_two_runs_are_compared_bit_for_bit_but_for_their_times(tmp_path: Path) -> None:
    folders = [tmp_path / name / "run" for name in ("one", "other")]
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 0.5, "time": number}) + "\n")
        (folder / "run.json").write_text(str(number))
        save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    assert difference(*folders) == ""
    save_file({"a": torch.tensor([1.0, 1.0000001])}, folders[1] / "model.safetensors")
    assert difference(*folders) == "model.safetensors is not that of the undisturbed run"
    (folders[1] / "samples.jsonl").write_text("")
    assert "samples.jsonl" in difference(*folders)

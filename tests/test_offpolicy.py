"""Off-policy finetuning: the teachers' own tokens, the right ones, written once, and trained on in a fixed order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onepolicy import run
from onepolicy.config import ConfigError, LossConfig, ModelConfig, OffpolicyConfig
from onepolicy.engines.base import Sampling
from onepolicy.engines.local import LocalEngine
from onepolicy.engines.text import Renderer
from onepolicy.learner import Learner
from onepolicy.models import load_model
from onepolicy.recipes import offpolicy
from onepolicy.report.folders import RunFolder
from onepolicy.report.study import done
from onepolicy.runfolder import is_finished, read_rows
from onepolicy.session import Session, stream
from onepolicy.types import Sample, Task
from onepolicy.written import Epochs, RolloutFile, seconds_in, to_row, to_sample
from tests.runs import DOMAINS, checkpoint, kill_when, lines, run_of, same, weights
from tests.test_run import assert_same_end, changed
from tests.tiny_models import multi_turn


def config_of(folder: Path, output: str = "offpolicy", **changes: Any) -> OffpolicyConfig:
    own = {
        "output": str(folder / output),
        "teachers": {name: checkpoint(folder / f"teacher-{name}", i) for i, name in enumerate(DOMAINS, 1)},
        "rollouts_per_domain": 12,
        "rollout": {"prompts": 5, "max_new_tokens": 4},
        "batch_size": 8,
    }
    config = run_of("offpolicy", folder, **own | changes)
    assert isinstance(config, OffpolicyConfig)
    return config


def written(output: Path, domain: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "rollouts" / f"{domain}.jsonl").read_text().splitlines()]


# -- what is written ---------------------------------------------------------------------------------------------------


def test_each_teacher_writes_graded_answers_to_training_prompts_of_its_domain(tmp_path: Path) -> None:
    config = config_of(tmp_path, steps=1)
    run(config)
    model, tokenizer = load_model(ModelConfig(path=str(tmp_path / "teacher-late")))
    engine = LocalEngine(model, Renderer(tokenizer, model.generation_config))
    with Session(config.model_copy(update={"output": tmp_path / "other"}), LossConfig()) as session:
        tasks = [session.mixture.domains["late"].draw() for _ in range(12)]
    expected = []
    for batch in range(3):
        asked, seed = tasks[batch * 5 : batch * 5 + 5], stream("rollouts of late", 0, batch)
        samples = list(engine.generate(asked, 1, Sampling(max_new_tokens=4), seed=seed))
        expected += sorted(samples, key=lambda sample: sample.group)
    rows = written(config.output, "late")
    assert [row["token_ids"] for row in rows] == [sample.token_ids_T.tolist() for sample in expected]
    assert [row["task"] for row in rows] == [task.id for task in tasks]
    held_out = json.loads((config.output / "eval" / "final.json").read_text())["domains"]["late"]
    assert not {row["question"] for row in rows} & {question["prompt"] for question in held_out}
    for row in rows:
        letters = row["response"]
        assert row["reward"] == sum(c in "nopqrstuvwxyz" for c in letters) / max(1, len(letters))
    summary = json.loads((config.output / "rollouts" / "summary.json").read_text())
    tokens = sum(stop - start for row in rows for start, stop in row["spans"])
    assert summary["late"] == {
        "teacher": "late",
        "rollouts": 12,
        "tokens": tokens,
        "reward": pytest.approx(np.mean([row["reward"] for row in rows])),
        "kept": 12,
    }


def test_a_row_keeps_every_token_and_which_of_them_the_policy_wrote() -> None:
    sample = multi_turn()
    back = to_sample(json.loads(json.dumps(to_row(sample))), sample.task)
    assert to_row(sample)["spans"] == [[3, 4], [7, 9]]
    assert back.token_ids_T.tolist() == sample.token_ids_T.tolist() and back.token_ids_T.dtype == np.int32
    assert back.mask_T.tolist() == sample.mask_T.tolist()
    assert (back.weights.ce, back.weights.pg, back.reward) == (1.0, 0.0, None)


def answers(*rewards: float, first: int = 0) -> list[Sample]:
    mask_T = np.array([False, True])
    samples = []
    for i, reward in enumerate(rewards, start=first):
        sample = Sample(question(i), np.array([i, 7], dtype=np.int32), mask_T, np.zeros(1, dtype=np.float32))
        sample.reward = reward
        samples.append(sample)
    return samples


def question(i: int) -> Task:
    return Task(f"d/{i}", "d", ({"role": "user", "content": str(i)},))


TASKS = [question(i) for i in range(5)]


def test_writing_takes_time_which_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5, 16.0, 100.0, 101.0])
    monkeypatch.setattr("onepolicy.written.time", SimpleNamespace(monotonic=lambda: next(clock)))
    rollouts = tmp_path / "rollouts"
    file = RolloutFile(rollouts / "d.jsonl", TASKS, n=1, batch=2)
    file.append(answers(1, 0))
    file.append(answers(0, 1, first=2))
    RolloutFile(file.path, TASKS, n=1, batch=2).append(answers(1, first=4))  # after a kill
    assert (rollouts / "d.seconds").read_text() == "2.500\n3.500\n1.000\n" and seconds_in(rollouts) == 7
    (rollouts / "summary.json").write_text(json.dumps({"d": {"rollouts": 5, "tokens": 9}}))
    (tmp_path / "done.json").write_text(json.dumps({"sequences": 80, "tokens": 80, "seconds": 4.0}))
    spent = done(RunFolder(tmp_path, {}, {}, [], {}, []))
    assert spent == {"sequences": 5, "tokens": 9, "seconds": 11.0}


@pytest.mark.parametrize("torn", ["", '{"task": "d/4", "que', json.dumps(to_row(answers(0, first=2)[0])) + "\n"])
def test_a_torn_batch_is_forgotten_and_whole_ones_are_kept(tmp_path: Path, torn: str) -> None:
    file = RolloutFile(tmp_path / "d.jsonl", TASKS, n=1, batch=2)
    assert [[task.id for task in batch] for batch in file.batches] == [["d/0", "d/1"], ["d/2", "d/3"], ["d/4"]]
    file.append(answers(1, 0))
    with file.path.open("a") as raw:
        raw.write(torn)
    again = RolloutFile(file.path, TASKS, n=1, batch=2)
    assert again.done == 1 and [row["task"] for row in again.rows] == ["d/0", "d/1"]
    again.append(answers(0, 1, first=2))
    again.append(answers(1, first=4))
    full = RolloutFile(file.path, TASKS, n=1, batch=2)
    assert full.done == len(full.batches) == 3 and lines(file.path) == 5
    assert [sample.task.id for sample in full.samples("correct")] == ["d/0", "d/3", "d/4"]
    assert full.summary() == {"rollouts": 5, "tokens": 5, "reward": 0.6}


def test_rollouts_of_other_tasks_are_refused(tmp_path: Path) -> None:
    RolloutFile(tmp_path / "d.jsonl", TASKS, n=1, batch=2).append(answers(1, 0))
    with pytest.raises(ValueError, match=r"answers '0' where '1' is asked now: the tasks have changed"):
        RolloutFile(tmp_path / "d.jsonl", TASKS[1:], n=1, batch=2)


# -- what is trained ---------------------------------------------------------------------------------------------------


def trained_on(config: OffpolicyConfig, monkeypatch: pytest.MonkeyPatch) -> list[list[Sample]]:
    """The samples of every step."""
    steps: list[list[Sample]] = []
    step = Learner.step

    def spy(self: Learner, samples: list[Sample]) -> dict[str, float]:
        steps.append(list(samples))
        return step(self, samples)

    monkeypatch.setattr(Learner, "step", spy)
    run(config)
    return steps


def test_the_very_tokens_of_the_teacher_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model writes special tokens, which its text does not show: from the text, they would be lost."""
    config = config_of(tmp_path)
    steps = trained_on(config, monkeypatch)
    rows = {row["task"]: row for domain in DOMAINS for row in written(config.output, domain)}
    seen = [sample for samples in steps for sample in samples]
    assert all(sample.token_ids_T.tolist() == rows[sample.task.id]["token_ids"] for sample in seen)
    assert any(len(row["response"]) < 4 and row["finish"] == "length" for row in rows.values())
    for sample in seen:
        start, stop = rows[sample.task.id]["spans"][0]
        assert np.flatnonzero(sample.mask_T).tolist() == list(range(start, stop)) and stop == len(sample.mask_T)
        assert (sample.weights.ce, sample.weights.pg, sample.weights.distill) == (1.0, 0.0, 0.0)
    assert "cross_entropy/late" in read_rows(config.output / "metrics.jsonl")[0]
    assert not any("reward" in row for row in read_rows(config.output / "metrics.jsonl"))


def test_shares_are_kept_and_every_pass_shows_every_rollout_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = {"early": DOMAINS["early"] | {"share": 3}, "late": DOMAINS["late"]}
    idle = {"idle": DOMAINS["late"] | {"share": 0}}
    steps = trained_on(config_of(tmp_path, domains=shares | idle), monkeypatch)
    assert [[s.task.domain for s in samples].count("early") for samples in steps] == [6, 6, 6, 6]
    early = [sample.task.id for samples in steps for sample in samples if sample.task.domain == "early"]
    assert len(set(early[:12])) == 12 and set(early[:12]) == set(early[12:]) and early[:12] != early[12:]
    assert not (tmp_path / "offpolicy" / "rollouts" / "idle.jsonl").exists()
    assert "idle" in json.loads((tmp_path / "offpolicy" / "done.json").read_text())["means"]


def test_the_order_of_a_pass_depends_on_its_seed_alone() -> None:
    samples = answers(*[0] * 6)
    one, other = Epochs(samples, lambda epoch: epoch), Epochs(samples, lambda epoch: epoch)
    ahead = [one[k] for k in range(18)]
    assert [other[k] for k in (17, 0, 6)] == [ahead[17], ahead[0], ahead[6]]
    assert [ahead[i : i + 6] == ahead[:6] for i in (6, 12)] == [False, False]


def test_only_the_correct_ones_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = {"prompts": 8, "n": 2, "max_new_tokens": 1}  # one letter is of the one half or of the other
    config = config_of(tmp_path, keep="correct", rollout=short, rollouts_per_domain=16)
    steps = trained_on(config, monkeypatch)
    right = {d: [row for row in written(config.output, d) if row["reward"] == 1] for d in DOMAINS}
    kept = json.loads((config.output / "rollouts" / "summary.json").read_text())
    assert {domain: found["kept"] for domain, found in kept.items()} == {d: len(rows) for d, rows in right.items()}
    assert all(0 < len(rows) < 16 for rows in right.values())
    tokens = {d: {tuple(row["token_ids"]) for row in rows} for d, rows in right.items()}
    assert all(tuple(s.token_ids_T.tolist()) in tokens[s.task.domain] for samples in steps for s in samples)


def test_a_domain_without_a_correct_rollout_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"'early': none of the 2 rollouts of teacher 'early' is to be kept \(keep: co"
    ):
        run(config_of(tmp_path, keep="correct", rollouts_per_domain=2, rollout={"max_new_tokens": 30}))


# -- teachers ----------------------------------------------------------------------------------------------------------


def test_one_teacher_at_a_time_is_in_memory_and_none_for_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, steps=1)
    asked: list[str] = []
    engine = offpolicy.Routed.engine

    def spy(self: Any, domain: str, *rest: Any) -> LocalEngine:
        asked.append(domain)
        opened = engine(self, domain, *rest)
        teacher = self.scorers[domain]
        assert teacher.shelf._resident is teacher and len(teacher.shelf._skeletons) == 1
        return opened

    monkeypatch.setattr(offpolicy.Routed, "engine", spy)
    run(config)
    run(changed(config, steps=2))
    assert asked == ["early", "late"]


def test_another_teacher_than_the_one_that_began_to_write_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, keep="correct", rollouts_per_domain=2, rollout={"max_new_tokens": 30})
    with pytest.raises(ValueError, match="is to be kept"):
        run(config)
    shutil.rmtree(tmp_path / "teacher-late")
    checkpoint(tmp_path / "teacher-late", 9)
    with pytest.raises(
        ValueError, match=r"'late' is not the one that wrote .*rollouts, it differs in weights: restore"
    ):
        run(config)
    with pytest.raises(ValueError, match=r"another configuration \(keep: 'correct' there, 'all' here\)"):
        run(changed(config, keep="all"))


def test_a_teacher_with_other_tokens_is_refused(tmp_path: Path) -> None:
    from onepolicy.config import ScratchConfig
    from onepolicy.models import save_model
    from onepolicy.tiny import from_scratch
    from tests.runs import SCRATCH

    config = config_of(tmp_path)
    shutil.rmtree(tmp_path / "teacher-late")
    other = SCRATCH | {"alphabet": SCRATCH["alphabet"][::-1]}
    save_model(*from_scratch(ScratchConfig(**other), 0), tmp_path / "teacher-late")
    with pytest.raises(ValueError, match="teacher 'late' has another tokenizer"):
        run(config)


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rollouts_per_domain is 12 and rollout.n 5"):
        config_of(tmp_path, rollout={"n": 5})
    with pytest.raises(ConfigError, match="no teacher for late"):
        config_of(tmp_path, teachers={"early": checkpoint(tmp_path / "teacher-early", 1)})


# -- kill -9 -----------------------------------------------------------------------------------------------------------


def test_a_run_killed_as_it_writes_and_again_as_it_trains_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    killed, whole = (
        config_of(tmp_path, name, steps=12, rollouts_per_domain=60, rollout={"prompts": 4, "max_new_tokens": 4})
        for name in ("killed", "whole")
    )
    file, rollouts = tmp_path / "run.yaml", killed.output / "rollouts"
    kill_when(lambda: lines(rollouts / "late.jsonl") >= 8, killed, file)
    before = (rollouts / "early.jsonl").stat().st_mtime_ns
    assert lines(rollouts / "early.jsonl") == 60
    kill_when(lambda: lines(killed.output / "metrics.jsonl") >= 5, killed, file)
    run(killed)
    assert (rollouts / "early.jsonl").stat().st_mtime_ns == before and is_finished(killed)
    run(whole)
    for name in ("early.jsonl", "late.jsonl", "summary.json", "teachers.json"):
        assert (rollouts / name).read_text() == (whole.output / "rollouts" / name).read_text()
    assert_same_end(killed.output, whole.output, 12)
    assert not same(weights(killed.output), {})


def test_the_defaults_are_these() -> None:
    config = OffpolicyConfig.model_validate(
        {"output": "x", "model": "m", "domains": {"early": DOMAINS["early"]}, "teachers": {"early": "t"}, "steps": 1}
    )
    assert (config.rollouts_per_domain, config.keep, config.batch_size) == (1024, "all", 64)
    assert (config.rollout.prompts, config.rollout.n, config.rollout.temperature) == (64, 1, 1.0)

"""A study of two seeds, two domains and four arms from the file to the report; what its plan and its statistics say."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from onepolicy import compare as comparing
from onepolicy import jobs
from onepolicy.compare import facts
from onepolicy.config import ConfigError, StudyConfig, load_study
from onepolicy.config.budget import step_cost, total_cost
from onepolicy.config.file import read_config
from onepolicy.config.plan import plan, upstream
from onepolicy.evaluation import DomainScore, Evaluation, Question
from onepolicy.jobs import Job, check_finished, run_jobs
from onepolicy.report import study_page, write_report
from onepolicy.report.intervals import Draws, arm_scores, difference, reached
from onepolicy.report.study import StudyFolder, means_SQ, points
from onepolicy.report.study_page import drawn, phases
from onepolicy.report.study_tables import token_table, unkept_budgets
from tests.runs import run_of, same, weights

SMOKE = Path(__file__).parent.parent / "studies" / "smoke.yaml"


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the jobs that were started."""
    started: list[str] = []
    really = jobs.start

    def start(job: Job) -> ForkServerProcess:
        started.append(job.name)
        return really(job)

    monkeypatch.setattr(jobs, "start", start)
    monkeypatch.setattr(jobs, "POLL", 0.02)
    return started


def study_of(folder: Path, **changes: Any) -> StudyConfig:
    return StudyConfig.model_validate({**read_config(SMOKE), "output": str(folder), **changes})


def faults_of(folder: Path, **changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as found:
        plan(study_of(folder, **changes))
    return str(found.value).splitlines()


def evaluation_in(run: Path) -> dict[str, list[float]]:
    """By hand: the rewards of every question, per domain."""
    data = json.loads((run / "eval" / "final.json").read_text())
    return {d: [r for question in rows for r in question["rewards_G"]] for d, rows in data["domains"].items()}


# what the plan says


def test_runs_of_a_plan_are_ordinary_configurations(tmp_path):
    study = study_of(tmp_path)
    runs = {run.name: run for run in plan(study)}
    assert len(runs) == 14
    expert, mopd = runs["seed-1/experts/sort"], runs["seed-1/arms/mopd"]
    assert expert.after == ("seed-1/origin",) and expert.config.seed == 1
    assert {name: domain.share for name, domain in expert.config.domains.items()} == {"sort": 1, "count": 0}
    assert expert.config.model.path == str(tmp_path / "seed-1/origin/model")
    assert expert.config.rollout.max_new_tokens == 8  # common
    assert upstream(runs, mopd.name) == ["seed-1/origin", "seed-1/experts/sort", "seed-1/experts/count"]
    assert mopd.config.teachers["sort"].model.path == str(tmp_path / "seed-1/experts/sort/model")
    assert runs["seed-1/arms/copd"].after == ("seed-1/origin",)
    told = facts(study, list(runs.values()))
    assert told["reads"]["mix_rl"] == []
    arms = {"mopd": 128, "mix_rl": 128, "copd": 128}  # a merge spends nothing
    assert told["allowed"] == {"rule": "sequences", "experts": "apart", "arms": arms}


def test_a_budget_sets_steps_by_each_rule(tmp_path):
    arms = study_of(tmp_path).arms | {
        "cascade": {"recipe": "cascade_rl", "rollout": {"prompts": 8, "n": 4}},
        "offpolicy": {"recipe": "offpolicy", "batch_size": 32},
        "twice": {"recipe": "mopd", "rollout": {"prompts": 64}, "budget": 2},
    }
    lengths = {"sort": 3, "count": 5}  # 4 tokens a sequence where shares are equal
    wanted = {
        "sequences": {"mopd": 2, "mix_rl": 2, "copd": 2, "cascade": 2, "offpolicy": 4, "twice": 4},
        "updates": {"mopd": 8, "mix_rl": 8, "copd": 4, "cascade": 4, "offpolicy": 8, "twice": 16},
        "tokens": {"mopd": 2, "mix_rl": 2, "copd": 2, "cascade": 2, "offpolicy": 4, "twice": 4},
    }
    amounts = {"sequences": 128, "updates": 8, "tokens": 512}
    for rule, steps in wanted.items():
        budget = {"rule": rule, "amount": amounts[rule]} | ({"lengths": lengths} if rule == "tokens" else {})
        study = study_of(tmp_path, arms=arms, budget=budget, seeds=[0])
        runs = {run.name.rpartition("/")[2]: run.config for run in plan(study) if "/arms/" in run.name}
        assert {name: runs[name].steps for name in steps} == steps, rule
        assert runs["offpolicy"].rollouts_per_domain == 32 * steps["offpolicy"] // 2
        assert total_cost(runs["mopd"], study.budget) == amounts[rule]
    assert step_cost(runs["copd"], 1).sequences == {"sort": 40, "count": 40}


def test_experts_can_be_paid_from_the_budget(tmp_path):
    budget = {"rule": "sequences", "amount": 256, "experts": "included"}  # the experts cost 2 · 64
    runs = {run.name: run.config for run in plan(study_of(tmp_path, budget=budget))}
    assert (runs["seed-0/arms/mopd"].steps, runs["seed-0/arms/mix_rl"].steps) == (2, 4)
    assert faults_of(tmp_path, budget={**budget, "amount": 130}) == [
        "arms.mopd.budget: 130 sequences, of which 2 are left after the experts do not buy one step: "
        "raise budget.amount"
    ]


def test_references_chain_arms_and_name_branches(tmp_path):
    arms = study_of(tmp_path).arms | {
        "second": {
            "recipe": "mopd",
            "model": "$arms.mopd",
            "rollout": {"prompts": 64},
            "teachers": {"sort": "$arms.copd.sort", "count": "$origin"},
        }
    }
    runs = {run.name: run for run in plan(study_of(tmp_path, arms=arms, seeds=[3]))}
    second = runs["seed-3/arms/second"]
    assert second.after == ("seed-3/arms/mopd", "seed-3/arms/copd", "seed-3/origin")
    assert second.config.teachers["sort"].model.path == str(tmp_path / "seed-3/arms/copd/branches/sort/model")


def test_what_is_given_is_copied_once_and_read_where_it_lies(tmp_path):
    changes = {"origin": "models/sft", "experts": {"given": {"sort": "models/sort"}, "train": {"steps": 1}}}
    runs = {run.name: run for run in plan(study_of(tmp_path, **changes))}
    assert [name for name in runs if not name.startswith("seed")] == ["given/origin", "given/sort"]
    assert runs["given/sort"].config.base.path == "models/sort"
    assert runs["seed-1/experts/count"].config.model.path == "models/sft"
    assert runs["seed-1/arms/mopd"].config.teachers["sort"].model.path == "models/sort"
    assert runs["seed-1/arms/merge"].config.base.path == "models/sft"


def test_all_faults_of_a_study_are_told_at_once(tmp_path):
    arms = study_of(tmp_path).arms | {
        "typo": {"recipe": "mix_rl", "rolout": {"n": 4}},
        "steps": {"recipe": "mix_rl", "steps": 3},
        "seed": {"recipe": "mix_rl", "seed": 3, "rollout": {"prompts": 8}},
        "early": {"recipe": "mopd", "model": "$arms.last"},
        "what": {"recipe": "mopt"},
        "half": {"recipe": "mopd", "budget": "half"},
        "last": {"recipe": "mopd", "model": "$expert.sort"},
    }
    faults = faults_of(tmp_path, arms=arms)
    assert len(faults) == 7
    for part in (
        "arms.typo.rolout: unknown key: did you mean 'rollout'?",
        "arms.steps.steps: the study's budget sets them",
        "arms.seed.seed: the study gives it",
        "arms.early.$arms.last: names no run of this study (an arm reads those above it)",
        "arms.what.recipe: 'mopt' is not a recipe: did you mean 'mopd'?",
        "arms.half.budget: a multiple of the study's amount, not 'half'",
        "arms.last.$expert.sort: names no run of this study: did you mean '$experts.sort'?",
    ):
        assert any(fault.startswith(part) for fault in faults), (part, faults)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seeds": [1, 1]}, "names a seed twice"),
        ({"reference_arm": "mopt"}, "did you mean 'mopd'?"),
        ({"experts": {"each": {"srot": {}}}}, "experts.each names 'srot': did you mean 'sort'?"),
        ({"common": {"optin": {}}}, "common.optin: did you mean 'optim'?"),
        ({"budget": {"rule": "tokens", "amount": 5}}, "`lengths`"),
        ({"budget": {"rule": "tokens", "amount": 5, "lengths": {"sort": 3}}}, "has none for count"),
        ({"budget": {"rule": "time", "amount": 5}}, "budget.rule"),
        ({"paralel": 2}, "did you mean 'parallel'?"),
        ({"devices": ["cpu", "gpu:1"]}, "devices.1"),
        ({"arms": {"a/b": {}, "mopd": {}}}, "'a/b' is no name"),
    ],
)
def test_a_wrong_study_is_refused(tmp_path, changes, told):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({**read_config(SMOKE), **changes}))
    with pytest.raises(ConfigError, match=re.escape(told)):
        load_study(file)


def test_the_command_line_tells_faults_without_torch(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({**read_config(SMOKE), "arms": {"mopd": {"recipe": "mopd", "loss": {"k": 1}}}}))
    script = (
        "import sys; from onepolicy.cli import main; sys.argv = ['onepolicy', 'compare', sys.argv[1]]\n"
        "try: main()\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "False\n"
    assert done.stderr.startswith("error: arms.mopd.loss.k: unknown key")


# jobs


class Fake:
    """A process that ends after some looks at it, well or not."""

    def __init__(self, job: Job, code: int, log: list[str], looks: int = 3) -> None:
        self.job, self.code, self.log, self.looks, self.last = job, code, log, 0, looks
        log.append(job.name)
        job.output.mkdir(parents=True, exist_ok=True)

    @property
    def exitcode(self) -> int | None:
        self.looks += 1
        if self.looks < self.last:
            return None
        done = {"steps": self.job.config.steps, "seconds": 1, "means": {}}
        if self.code == 0:
            (self.job.output / "done.json").write_text(json.dumps(done))
            (self.job.output / "config.yaml").write_text(yaml.safe_dump(self.job.config.model_dump(mode="json")))
        else:
            self.job.log.write_text("long ago\nerror: this is why\n\n")
        self.log.append(f"{self.job.name} ended")
        return self.code

    def terminate(self) -> None:
        self.log.append(f"{self.job.name} terminated")

    def join(self) -> None:
        pass


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    log: list[str] = []
    monkeypatch.setattr(jobs, "start", lambda job: Fake(job, 3 if "bad" in job.name else 0, log))
    monkeypatch.setattr(jobs, "POLL", 0.001)
    return log


def job(folder: Path, name: str, *after: str) -> Job:
    config = run_of("rlvr", folder, output=str(folder / name), model="nowhere")
    return Job(name, config, after)


def test_jobs_wait_for_what_they_read_and_a_failed_one_takes_only_its_readers(tmp_path, fakes, capsys):
    several = [job(tmp_path, "a"), job(tmp_path, "bad"), job(tmp_path, "c", "a"), job(tmp_path, "d", "bad", "a")]
    failed = run_jobs(several, 2, Console())
    assert fakes == ["a", "bad", "a ended", "bad ended", "c", "c ended"]
    assert failed["bad"] == f"error: this is why (exit code 3, see {tmp_path / 'bad.log'})"
    assert failed["d"] == "not run: bad failed"
    assert len(capsys.readouterr().out.splitlines()) == 3  # a line per run that ended
    fakes.clear()
    assert run_jobs(several[:1], 2, Console()) == {} and fakes == []


def test_every_process_has_a_device_that_is_free(tmp_path, monkeypatch):
    log: list[str] = []
    devices: dict[str, str] = {}

    def start(job: Job) -> Fake:
        devices[job.name] = job.config.device
        return Fake(job, 1 if job.name == "bad" else 0, log, looks=9 if job.name == "long" else 3)

    monkeypatch.setattr(jobs, "start", start)
    monkeypatch.setattr(jobs, "POLL", 0.001)
    several = [job(tmp_path, name) for name in ("long", "bad", "b", "c")]
    run_jobs(several, 2, Console(), ["cuda:0", "cpu"])
    assert log == ["long", "bad", "bad ended", "b", "b ended", "c", "long ended", "c ended"]
    assert devices == {"long": "cuda:0", "bad": "cpu", "b": "cpu", "c": "cpu"}
    devices.clear()
    run_jobs([job(tmp_path, f"again-{k}") for k in range(3)], 3, Console(), ["cuda:0", "cuda:1"])
    assert list(devices.values()) == ["cuda:0", "cuda:1", "cuda:0"]  # shared evenly
    devices.clear()
    run_jobs([job(tmp_path, "own")], 1, Console())
    assert devices == {"own": "cpu"}  # what its configuration says


def test_there_are_as_many_processes_as_devices(tmp_path):
    assert study_of(tmp_path).processes == 2
    assert study_of(tmp_path, devices=["cuda:0", "cuda:1", "cuda:1"]).processes == 3
    assert study_of(tmp_path, devices=["cuda:0"], parallel=2).processes == 2


def test_a_device_that_is_not_there_is_refused_before_anything_runs(tmp_path, fakes):
    study = study_of(tmp_path / "study", devices=["cpu", "cuda:99"])
    with pytest.raises(ValueError, match="device 'cuda:99' asked for, but torch sees"):
        comparing.compare(study, plan(study))
    assert fakes == [] and not (tmp_path / "study").exists()


def test_a_finished_arm_is_not_compared_with_an_expert_that_trains_on(tmp_path, fakes):
    study = study_of(tmp_path / "study", seeds=[0])
    several = [Job(run.name, run.config, run.after) for run in plan(study)]
    assert run_jobs(several, 2, Console()) == {}
    check_finished(several)
    fakes.clear()
    before = sorted(study.output.iterdir())
    longer = study_of(tmp_path / "study", seeds=[0], experts={"train": {"steps": 3, "rollout": {"prompts": 8, "n": 4}}})
    with pytest.raises(ValueError) as found:
        comparing.compare(longer, plan(longer))
    lines = str(found.value).splitlines()
    assert len(lines) == 4 and fakes == [] and sorted(study.output.iterdir()) == before  # mopd, merge × two experts
    assert lines[0] == (
        "seed-0/arms/mopd is finished, but seed-0/experts/sort, which it has read, ended after 2 steps and is now to "
        "take 3: it would be compared with what it was not made from; restore the setting or the folder of "
        f"seed-0/experts/sort, remove {study.output / 'seed-0/arms/mopd'} to run it again, or set another output"
    )
    expert = study.output / "seed-0/experts/sort"
    (expert / "run.json").write_text("{}")  # as a run leaves it, which the fakes are not
    (expert / "done.json").unlink()
    with pytest.raises(ValueError, match="seed-0/experts/sort, which it has read, is not there any more"):
        comparing.compare(study, plan(study))
    other = study_of(tmp_path / "study", seeds=[0], common={**read_config(SMOKE)["common"], "eval": {"n": 3}})
    with pytest.raises(ValueError, match=r"seed-0/arms/mix_rl .*evaluated with n 2 and temperature 1, not 3 and 1"):
        comparing.compare(other, plan(other))


def test_a_job_waits_until_nobody_else_writes_its_folder(tmp_path, fakes):
    (tmp_path / "a").mkdir()
    lock = (tmp_path / "a" / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    threading.Timer(0.3, lock.close).start()
    began = time.monotonic()
    assert run_jobs([job(tmp_path, "a")], 1, Console()) == {} and fakes[0] == "a"
    assert time.monotonic() - began > 0.25


def test_a_job_that_finds_its_folder_taken_waits_for_that(tmp_path, monkeypatch):
    log: list[str] = []
    taken = job(tmp_path, "taken")

    def start(job: Job) -> Fake:
        if not log:  # refused: another process came first, which will end later
            job.output.mkdir()
            lock = (job.output / ".lock").open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
            threading.Timer(0.2, lock.close).start()
        return Fake(job, 0 if log else 2, log)

    monkeypatch.setattr(jobs, "start", start)
    monkeypatch.setattr(jobs, "POLL", 0.001)
    assert run_jobs([taken], 1, Console()) == {}
    assert log == ["taken", "taken ended", "taken", "taken ended"]


def test_what_runs_is_ended_when_the_study_is(tmp_path, fakes, monkeypatch):
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_jobs([job(tmp_path, "a"), job(tmp_path, "b")], 2, Console())
    assert fakes == ["a", "b", "a terminated", "b terminated"]


# statistics


SEEDS, QUESTIONS = (0, 1, 2), 40


def evaluation(solved: dict[str, int]) -> Evaluation:
    """Of each domain the first `solved` of 40 questions are answered right."""
    domains = {}
    for domain, count in solved.items():
        asked = [
            Question(f"{domain}-{k}", "?", "!", (float(k < count),), (4,), ("stop",), "!", "") for k in range(QUESTIONS)
        ]
        domains[domain] = DomainScore(domain, tuple(asked))
    return Evaluation(domains, n=1, temperature=1.0, seed=0)


def run_folder(path: Path, solved: dict[str, int], steps: dict[int, dict[str, int]] | None = None, **row: Any) -> None:
    """A finished run of 64 sequences a step, with evaluations after `steps`."""
    (path / "eval").mkdir(parents=True)
    domains = {d: {"share": 1} for d in solved}
    places = {"output": str(path), "model": {"path": str(path.parents[1] / "origin" / "model")}}
    (path / "config.yaml").write_text(yaml.safe_dump({"recipe": "mopd", "domains": domains, "steps": 8, **places}))
    rows = [{"step": k, "sequences": 64 * k, "tokens": 256 * k, "time": 2.0 * k, **row} for k in range(1, 9)]
    for line in rows:
        line |= {f"token_share/{d}": 0.5 for d in solved}
        line |= {f"{key}/a<b": 0.9 + 0.01 * (line["step"] % 4) for key in ("overlap", "symmetric_kl")} if row else {}
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    for step, found in (steps or {}).items():
        (path / "eval" / f"step-{step}.json").write_text(evaluation(found).to_json())
    (path / "eval" / "final.json").write_text(evaluation(solved).to_json())
    (path / "done.json").write_text(json.dumps({"steps": 8, "sequences": 512, "tokens": 2048, "seconds": 16.0}))


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Origin 8 of 40, experts 32 of 40 in both domains; mopd and mix_rl differ by seed, poor is poor."""
    root = tmp_path_factory.mktemp("study")
    arms = {
        "mopd": [{"a": 32, "b": 29 + seed} for seed in SEEDS],
        "mix_rl": [{"a": 20 + 2 * seed, "b": 32} for seed in SEEDS],
        "poor": [{"a": 8, "b": 10}] * 3,
    }
    seeds = {}
    for seed in SEEDS:
        run_folder(root / f"seed-{seed}/origin", {"a": 8, "b": 8})
        for domain in "ab":
            run_folder(root / f"seed-{seed}/experts/{domain}", {"a": 8, "b": 8} | {domain: 32})
        for arm, solved in arms.items():
            halfway = {4: {"a": 31, "b": 31} if arm == "mopd" else {"a": 10, "b": 10}}
            extra = {"opd": 1.0} if arm == "poor" else {}
            run_folder(root / f"seed-{seed}/arms/{arm}", solved[seed], halfway, **extra)
        seeds[seed] = {
            "origin": f"seed-{seed}/origin",
            "experts": {domain: f"seed-{seed}/experts/{domain}" for domain in "ab"},
            "arms": {arm: f"seed-{seed}/arms/{arm}" for arm in [*arms, "absent"]},
        }
    reads = {"mopd": ["experts.a", "experts.b"], "mix_rl": [], "poor": ["experts.a"], "absent": []}
    head = {"title": "Synthetic", "domains": ["a", "b"], "reference": "mopd", "budget": "512 sequences"}
    (root / "study.json").write_text(json.dumps({**head, "seeds": seeds, "reads": reads}))
    return root


def test_normalised_scores_average_seeds_first(synthetic):
    study = StudyFolder.read(synthetic)
    assert study.arms == ["mopd", "mix_rl", "poor"]
    found = arm_scores(study, "mix_rl").normalised
    assert found.domains["a"].value == pytest.approx((22 - 8) / 24) and found.domains["b"].value == pytest.approx(1)
    assert found.norm.value == pytest.approx((14 / 24 + 1) / 2) and found.range.value == pytest.approx(10 / 24)
    assert found.norm.low < found.norm.value < found.norm.high


def test_differences_are_paired_and_speed_is_the_first_evaluation_that_reaches(synthetic):
    study = StudyFolder.read(synthetic)
    own = difference(study, "mopd")
    assert (own.norm.low, own.norm.value, own.norm.high) == (0, 0, 0)  # against itself: no doubt at all
    assert difference(study, "poor").norm.high < 0
    fast = reached(study, "mopd").spent["sequences"]
    assert fast.value == 256 and fast.low == 256  # 23/24 of the gain at step 4
    assert reached(study, "poor").spent["sequences"].value == np.inf


def test_a_curve_begins_at_the_model_that_the_arm_starts_from(tmp_path):
    root = tmp_path / "study"
    home = root / "seed-0"
    run_folder(home / "origin", {"a": 8})
    run_folder(home / "experts/a", {"a": 32})
    models = {
        "mopd": home / "origin/model",
        "second": home / "arms/mopd/model",
        "grown": home / "arms/mopd/branches/a/model",
        "foreign": tmp_path / "elsewhere/model",
        "given": tmp_path / "copied",
    }
    for arm, model in models.items():
        run_folder(home / "arms" / arm, {"a": 31}, {4: {"a": 20}})
        config = yaml.safe_load((home / "arms" / arm / "config.yaml").read_text()) | {"model": {"path": str(model)}}
        (home / "arms" / arm / "config.yaml").write_text(yaml.safe_dump(config))
    branch = home / "arms/mopd/branches/a/eval"
    branch.mkdir(parents=True)
    (branch / "final.json").write_text(evaluation({"a": 12}).to_json())
    run_folder(root / "given/b", {"a": 16})
    copied = {"recipe": "merge", "output": str(root / "given/b"), "base": {"path": str(tmp_path / "copied")}}
    (root / "given/b/config.yaml").write_text(yaml.safe_dump(copied))
    places = {"origin": "seed-0/origin", "experts": {"a": "seed-0/experts/a", "b": "given/b"}}
    places["arms"] = {arm: f"seed-0/arms/{arm}" for arm in models}
    head = {"title": "T", "domains": ["a"], "reference": "mopd", "budget": ""}
    (root / "study.json").write_text(json.dumps({**head, "seeds": {0: places}, "reads": {arm: [] for arm in models}}))
    moved = StudyFolder.read(root.rename(tmp_path / "moved"))
    curves = {arm: [40 * p.evaluations[0].domains["a"].mean for p in points(moved, arm)] for arm in models}
    assert curves == {
        "mopd": [8, 20, 31],
        "second": [31, 20, 31],
        "grown": [12, 20, 31],
        "foreign": [20, 31],
        "given": [16, 20, 31],
    }
    assert {arm: reached(moved, arm).evaluations for arm in models} == dict.fromkeys(models, 2)
    assert reached(moved, "second").spent["sequences"].value == 0  # it starts from what has arrived
    assert reached(moved, "foreign").spent["sequences"].value == 512


def test_draws_cover_seeds_and_questions_together():
    rng = np.random.default_rng(0)
    noise_SQ = rng.normal(size=(5, 50))
    seeds_only = np.tile(rng.normal(size=(5, 1)), (1, 50))
    questions_only = np.tile(rng.normal(size=(1, 50)), (5, 1))
    draws = Draws(5)
    assert draws.of(np.ones((5, 50)), "a") == pytest.approx(np.ones(2000))
    assert draws.of(seeds_only, "a").std() == pytest.approx(seeds_only[:, 0].std() / 5**0.5, rel=0.1)
    assert draws.of(questions_only, "a").std() == pytest.approx(questions_only[0].std() / 50**0.5, rel=0.1)
    assert np.array_equal(draws.of(noise_SQ, "a"), Draws(5).of(noise_SQ, "a"))  # paired from model to model
    assert not np.array_equal(draws.of(noise_SQ, "a"), draws.of(noise_SQ, "b"))


def test_runs_that_answered_other_questions_are_not_compared():
    ours, theirs = evaluation({"a": 3}), evaluation({"a": 3})
    renamed = [replace(question, id="x" + question.id) for question in theirs.domains["a"].questions]
    theirs.domains["a"] = DomainScore("a", tuple(renamed))
    with pytest.raises(ValueError, match="the same questions"):
        means_SQ([ours, theirs], "a")


def test_the_report_of_a_study_shows_who_wins_and_at_what_cost(synthetic):
    report = write_report(synthetic)
    assert [row[0] for row in report.table.rows] == ["mopd", "mix_rl", "poor"]
    text = report.markdown.read_text()
    assert "seed-0/arms/absent" in text
    costs = {row[0]: row for row in _table(text, "Cost and speed")}
    assert costs["mopd"][5] == "1,024" and costs["mix\\_rl"][5] == "0" and costs["mopd"][8] == "1,536"
    figures = {file.stem for file in (synthetic / "figures").glob("*.svg")}
    assert figures >= {"norm", "domains", "differences", "interference", "speed", "overlap-poor", "token-share"}
    page = report.html.read_text()
    assert page.count("<svg") == len(figures) and "<script" not in page


def test_a_figure_of_curves_draws_the_reference_and_the_arms_of_most_seeds(synthetic, monkeypatch):
    study, arms = StudyFolder.read(synthetic), ["mix_rl", "poor", "mopd"]  # the best first
    assert drawn(study, arms) == ["mopd", "mix_rl", "poor"]
    del study.seeds[0].arms["mix_rl"]
    monkeypatch.setattr(study_page, "DRAWN", 1)
    assert drawn(study, arms) == ["mopd", "poor"]
    text = write_report(synthetic).markdown.read_text()
    assert (
        "other than mopd, 1 are drawn: those with the most seeds, then the highest Norm; not drawn: poor."
        in text.replace("\\", "")
    )
    svg = (synthetic / "figures" / "speed.svg").read_text()
    assert ">mix_rl<" in svg and ">poor<" not in svg and 'id="FillBetweenPolyCollection' in svg


def test_an_arm_whose_upstream_arm_is_missing_keeps_its_place_and_has_no_cost_of_experts(synthetic, tmp_path):
    root = shutil.copytree(synthetic, tmp_path / "study")
    told = json.loads((root / "study.json").read_text())
    told["reads"]["poor"] = ["experts.a", "arms.absent"]
    (root / "study.json").write_text(json.dumps(told))
    report = write_report(root)
    costs = {row[0]: row for row in _table(report.markdown.read_text(), "Cost and speed")}
    assert costs["poor"][2:] == ["512", "2,048", "16.0 s", "-", "-", "-", "-", "-"]
    assert costs["mopd"][5:] == ["1,024", "4,096", "32.0 s", "1,536", "6,144"]
    speed = report.markdown.read_text().split("**Cost to reach 95% of the teachers**")[1]
    assert re.search(r"\| mopd \|.*\| 1,024 \| 4,096 \| 32.0 s \| 2 \|", speed)
    assert re.search(r"\| poor \|.*\| - \| - \| - \| 2 \|", speed)


def test_shares_of_the_tokens_are_means_over_all_steps_also_those_without_the_domain(synthetic, tmp_path):
    root = shutil.copytree(synthetic, tmp_path / "study")
    for seed in SEEDS:  # mix_rl as a cascade: three steps of a, one of b; mopd logs its budget
        one = [{"step": k, "token_share/a" if k < 4 else "token_share/b": 1.0} for k in range(1, 5)]
        two = [{"step": k, "token_share/a": 0.2, "token_share/b": 0.8, "budget/a": 0.1 * k} for k in (1, 3)]
        for arm, lines in (("mix_rl", one), ("mopd", two)):
            (root / f"seed-{seed}/arms/{arm}/metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    table = token_table(StudyFolder.read(root), ["mix_rl", "mopd", "poor"])
    assert table.rows == [
        ["mix_rl", "50.0 / 75.0 / 75.0", "50.0 / 25.0 / 25.0"],
        ["mopd", "50.0 / 20.0 / 20.0", "50.0 / 80.0 / 0.0"],
        ["poor", "50.0 / 50.0 / -", "50.0 / 50.0 / -"],
    ]


def test_the_report_names_arms_that_did_not_keep_to_their_budget(synthetic, tmp_path):
    root = shutil.copytree(synthetic, tmp_path / "study")
    told = json.loads((root / "study.json").read_text())

    def warnings(rule: str, experts: str, **arms: float) -> list[str]:
        told["allowed"] = {"rule": rule, "experts": experts, "arms": arms}
        (root / "study.json").write_text(json.dumps(told))
        study = StudyFolder.read(root)
        return unkept_budgets(study, study.arms)

    assert warnings("updates", "apart", mopd=1) == []
    assert warnings("sequences", "included", mopd=1536, mix_rl=512) == []  # 512 of its own, 2 · 512 of two experts
    found = warnings("tokens", "apart", mopd=2148, mix_rl=1900, poor=2400)
    assert found == [
        "mix_rl spent 2,048 tokens, 8% more than its budget of 1,900.",
        "poor spent 2,048 tokens, 15% less than its budget of 2,400.",
    ]
    text = write_report(root).markdown.read_text().replace("\\", "")
    assert "## Budgets that were not kept\n\n" + "\n\n".join(found) in text


def test_distillation_phases_are_stretches_of_steps():
    steps = np.arange(1.0, 8)
    assert phases(steps, np.array([0, 0, 1, 1, 0, 1, 1])) == [(2.5, 4.5), (5.5, 7.5)]
    assert phases(steps, np.zeros(7)) == []


# end to end


def test_a_study_runs_reports_goes_on_and_survives_a_failing_arm(tmp_path, forked, capsys):
    common = {**read_config(SMOKE)["common"], "device": "auto"}
    study = study_of(tmp_path / "study", common=common, devices=["cpu", "cpu"])
    runs = plan(study)
    assert comparing.compare(study, runs)
    assert sorted(forked) == sorted(run.name for run in runs) and len(forked) == 14
    raw = (study.output / "report.md").read_text()

    # the table says what the evaluations say
    for arm in study.arms:
        cells = next(line for line in _table(raw, "Every model") if line[0] == arm.replace("_", "\\_"))
        for domain, cell in zip(study.domains, cells[1:3], strict=True):
            rewards = [evaluation_in(study.output / f"seed-{s}/arms/{arm}")[domain] for s in study.seeds]
            assert cell.split(" ")[0] == f"{100 * np.mean(rewards):.1f}"
    assert all(read_config(run.config.output / "config.yaml")["device"] == "cpu" for run in runs)
    # every run answered the same questions, those of share 0 too
    asked = [json.loads((run.config.output / "eval" / "final.json").read_text())["domains"] for run in runs]
    ids = [{domain: [question["id"] for question in rows] for domain, rows in one.items()} for one in asked]
    assert all(one == ids[0] for one in ids) and list(ids[0]) == list(study.domains)
    # the budget is what they spent: copd's cross rollouts are counted
    for arm, spent in {"mopd": 128, "mix_rl": 128, "copd": 128, "merge": 0}.items():
        done = json.loads((study.output / f"seed-0/arms/{arm}/done.json").read_text())
        assert done["sequences"] == spent, arm
    costs = {row[0].replace("\\", ""): row for row in _table(raw, "Cost and speed")}
    assert costs["mopd"][5] == "128" and costs["mix_rl"][5] == "0"  # the experts' sequences: read, or not
    assert {"copd: branch sort", "copd: branch count"} <= {row[0] for row in _table(raw, "Every model")}
    points_of_copd = points(StudyFolder.read(study.output), "copd")  # its merge is evaluated on the way
    assert [point.spent["sequences"] for point in points_of_copd] == [0, 48, 128]
    for figure in ("interference", "speed", "overlap-copd", "token-share"):
        assert (study.output / "figures" / f"{figure}.svg").read_text().startswith("<?xml")

    # again, one arm without its mark and a bad one: only these run, and nothing is lost
    forked.clear()
    before = weights(study.output / "seed-0/arms/mix_rl")
    (study.output / "seed-0/arms/mix_rl/done.json").unlink()
    small = {"rollout": {"prompts": 8, "n": 4}}
    broken = {
        "bad": {"recipe": "mopd", "teachers": {"sort": "$experts.sort", "count": "nowhere"}, **small},
        "after": {"recipe": "mix_rl", "model": "$arms.bad", **small},
    }
    worse = study_of(tmp_path / "study", arms=study.arms | broken, seeds=[0])
    assert not comparing.compare(worse, plan(worse))
    assert forked == ["seed-0/arms/mix_rl", "seed-0/arms/bad"]
    assert same(before, weights(study.output / "seed-0/arms/mix_rl"))
    printed = capsys.readouterr().out
    assert "failed  seed-0/arms/bad: error: " in printed and "nowhere" in printed
    assert "failed  seed-0/arms/after: not run: seed-0/arms/bad failed" in printed
    report = (study.output / "report.md").read_text()
    assert "Missing runs" in report and "seed-0/arms/after" in report and "mix\\_rl" in report


def _table(markdown: str, section: str) -> list[list[str]]:
    """The rows of a section's first table."""
    text = markdown.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    block = re.split(r"\n\n", text[text.index("| ") :], maxsplit=1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()[2:]]

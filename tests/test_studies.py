"""The files of studies/: every one of them plans, and those that docs/results.md is written from run, cut to the bone.

Run are clash, apart and coevolve with all their arms, real, and of the sweeps a few arms of tune_apart; one seed each.
From the file come the arms, their recipes, options, order and what each reads, through `plan` with its budgets. Cut,
here, are the sizes alone: two steps of everything (origin, experts, arms, each stage of a cascade), a model of one
layer, a handful of prompts, one answer to each of a few questions. copd takes three steps, with cycles of one step of
RL and one of OPD, so that a phase of each kind ends; and what is to have drifted for longer than another does. Tasks
become ones that two steps teach (tests/early.py), since an expert that gains nothing leaves no normalised score to
compute. `studies/rows.py` then writes its page and its figures.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from onepolicy import recipes, session
from onepolicy.compare import facts
from onepolicy.config import AnyRun, CopdConfig, MergeConfig, StudyConfig, load_study, parse_run
from onepolicy.config.budget import step_cost, total_cost
from onepolicy.config.file import read_config
from onepolicy.config.plan import layered, plan, upstream
from onepolicy.report.folders import RunFolder
from onepolicy.tasks import check_options
from onepolicy.tasks.grading import Grader
from tests.early import HALVES

sys.path.insert(0, str(Path(__file__).parent.parent / "studies"))  # scripts, no package
import claims
import rows

STUDIES = Path(__file__).parent.parent / "studies"
FILES = sorted(file.stem for file in STUDIES.glob("*.yaml") if file.stem != "verdicts")
STEPS = {"drift_25": 1, "drift_200": 3}  # where it is not two
SWEPT = ("mopd-1e-4", "mopd-3e-4", "expert-1e-4", "expert-3e-4", "mopd-1e-3")  # of tune_apart


# what the files say


@pytest.mark.parametrize("name", FILES)
def test_every_study_plans_and_every_arm_spends_its_budget(name):
    study = load_study(STUDIES / f"{name}.yaml")
    runs = {run.name: run for run in plan(study)}
    assert {run.partition("/")[0] for run in runs} == {f"seed-{seed}" for seed in study.seeds}
    for run in runs.values():
        check_options(run.config.domains)
        if study.budget is None or "/arms/" not in run.name or isinstance(run.config, MergeConfig):
            continue
        amount = study.budget.amount * study.arms[run.name.rpartition("/")[2]].get("budget", 1)
        spent = total_cost(run.config, study.budget)
        if study.budget.experts == "included":
            read = [other for other in upstream(runs, run.name) if not other.endswith("/origin")]
            spent += sum(total_cost(runs[other].config, study.budget) for other in read)
        one_more = step_cost(run.config, run.config.steps).by(study.budget)
        assert spent <= amount * (1 + 1e-9) < spent + one_more, run.name


@pytest.mark.parametrize("name", rows.SWEEPS)
def test_a_sweep_tries_for_every_arm_the_same_rates_on_seeds_of_its_own(name):
    sweep, study = load_study(STUDIES / f"{name}.yaml"), load_study(STUDIES / f"{name.removeprefix('tune_')}.yaml")
    assert not set(sweep.seeds) & set(study.seeds)
    for arm, fragment in sweep.arms.items():
        assert fragment["optim"]["learning_rate"] == float(arm.partition("-")[2]), arm
    tried = defaultdict(set)
    for arm in sweep.arms:
        tried[arm.partition("-")[0]].add(arm.partition("-")[2])
    assert all(rates - {"3e-5"} == {"1e-4", "3e-4", "1e-3"} for rates in tried.values())  # smaller: where that was best


# what comes of them


def of_one_seed(name: str, root: Path) -> StudyConfig:
    data = read_config(STUDIES / f"{name}.yaml")
    seed = data["seeds"][0]
    arms = {arm: {key: value for key, value in own.items() if key != "seeds"} for arm, own in data["arms"].items()}
    if name in rows.SWEEPS:
        arms = {arm: arms[arm] for arm in SWEPT}
    return StudyConfig.model_validate({**data, "output": str(root / name), "seeds": [seed], "arms": arms})


def cut(config: AnyRun, fast: bool) -> AnyRun:
    """The same run in small. `fast`: with a learning rate at which two steps show."""
    data = config.model_dump(mode="json")
    for half, domain in zip(HALVES, [*data["domains"].values()], strict=False):
        tasks = {"kind": "custom", "source": "tests.early:Early", "options": {"half": half}}
        domain |= {"tasks": tasks, "eval_size": 16, "max_new_tokens": None}
    rollout = data["rollout"]
    small: dict[str, Any] = {
        "rollout": {"prompts": min(16, rollout["prompts"]), "n": min(8, rollout["n"]), "max_new_tokens": 6},
        "eval": {"n": 1, "every": min(1, data["eval"]["every"])},
    }
    if not isinstance(config, MergeConfig):
        small |= {
            "steps": STEPS.get(config.output.name, 2),
            "optim": {"learning_rate": 0.3 if fast else 1e-4, "schedule": "constant"},
        }
        small["optim"]["warmup_steps"] = 0
    if isinstance(config, CopdConfig):
        small |= {"steps": 3, "rl_steps": min(1, config.rl_steps), "opd_steps": min(1, config.opd_steps)}
        small["exchange"] = {"prompts": 8}
    sizes = {"batch_size": 16, "rollouts_per_domain": 8, "diagnose_every": min(1, data.get("diagnose_every", 0))}
    small |= {key: value for key, value in sizes.items() if key in data}
    if "check" in data:
        small["check"] = {"samples": 2}
    if config.model.scratch:
        wide = config.model.scratch.architecture
        few = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
        few |= {key: wide[key] // 4 for key in ("hidden_size", "intermediate_size")}
        small["model"] = {"scratch": {"architecture": few}}
    return parse_run(layered(data, small))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The studies' folder, as `onepolicy compare` would leave it but for the reports."""
    root = tmp_path_factory.mktemp("studies")
    for name in (*rows.STUDIES, rows.REAL, "tune_apart"):
        run_all(of_one_seed(name, root))
    return root


def run_all(study: StudyConfig) -> None:
    """All in this process, and graded by one other: each run starting its own would take as long as all the rest."""
    planned = plan(study)
    configs = [cut(run.config, fast=not run.name.endswith("/origin")) for run in planned]
    with Grader(configs[0].domains) as grader, pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "Grader", lambda domains: nullcontext(grader))
        for config in configs:
            recipes.run(config)
    (study.output / "study.json").write_text(json.dumps(facts(study, planned)))


def arm(runs: Path, study: str, name: str) -> RunFolder:
    return RunFolder.read(runs / study / "seed-0" / "arms" / name)


def test_no_arm_fails_and_each_still_does_what_it_is_about(runs):
    for name in rows.STUDIES:
        for arm_name, fragment in load_study(STUDIES / f"{name}.yaml").arms.items():
            run = arm(runs, name, arm_name)
            usual = {"merge": 0, "copd": 3, "cascade_rl": 2 * len(run.domains)}.get(fragment["recipe"], 2)
            steps = STEPS.get(arm_name, usual)
            assert len(run.metrics) == steps and "final" in run.evaluations, (name, arm_name)
            # the engine that wrote is not the policy that learns: by noise, or from the second update of a batch on
            stale = run.config["rollout"].get("engine_noise", 0) > 0 or run.config.get("inner_updates", 1) > 1
            if "engine_gap" in (row := run.metrics[-1] if run.metrics else {}):
                assert (row["engine_gap"] > 0.1) == stale, arm_name
    phases = {"copd": [0, 1, 0], "independent": [0, 0, 0], "static_native": [0, 1, 0], "ratio_0_1": [1, 1, 1]}
    for arm_name, opd in phases.items():
        run = arm(runs, "coevolve", arm_name)
        assert run.curve("opd")[1].tolist() == opd and len(run.curve("overlap/ascend<descend")[1]) in (0, 3), arm_name
        assert {file.parent.name for file in run.path.glob("branches/*/model")} == set(run.domains)
    stages = {f"{number}-{domain}" for number, domain in enumerate(arm(runs, "clash", "cascade").domains, start=1)}
    assert stages <= arm(runs, "clash", "cascade").evaluations.keys()
    assert {f"lambda-{value}" for value in claims.LAMBDAS} <= arm(runs, "clash", "task_arithmetic").evaluations.keys()
    assert arm(runs, "clash", "second_ascend").config["model"]["path"].endswith("arms/mopd/model")
    for arm_name, key in {"mopd_masked": "masked", "gap": "budget/stutter", "updates_8": "rollout_kl_last"}.items():
        assert key in arm(runs, "clash", arm_name).metrics[-1], arm_name


def test_every_row_yields_its_tables_and_the_page_its_figures(runs, tmp_path, monkeypatch, capsys):
    for name, near in {"SEQUENCES": (16, 32), "LEVELS": (0.1,), "EARLY": (1,), "RISEN": 1}.items():
        monkeypatch.setattr(claims, name, near)  # what two steps come to
    monkeypatch.setattr(sys, "argv", ["rows.py", str(runs), "--figures", str(tmp_path)])
    rows.main()
    text = capsys.readouterr().out
    assert {file.stem for file in tmp_path.glob("*.svg")} == set(rows.FIGURE_OF.values())
    blank = []
    for number, row in rows.ROWS.items():
        section = text.split(f"\n## {number} · ", 1)[1].split("\n## ", 1)[0]
        measured = section.split("\n### ")[1:]
        assert len(measured) == len(row.studies) and all("| --- |" in part for part in measured), number
        lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
        blank += [(number, line[0]) for line in lines if rows.NONE in line]
    # one update of a batch has no last one, and nothing is masked but by mopd_masked
    assert [(number, name.replace("\\", "")) for number, name in blank] == [
        ("21", "mopd_sampled"),
        ("23", "mopd_sampled"),
    ]
    for section in ("Four real domains", "Origin and experts", "Sequences spent", "Learning rates"):
        assert "| --- |" in text.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0], section

"""`onepolicy compare study.yaml`: run a study's arms on the same origin, experts, seeds and budget; say who wins.

Every run is an ordinary run folder under the study's output, with a log beside it. Kill it at any time: finished runs
are never run again, the others go on from their last checkpoint. A failed arm is reported and does not lose the others.
"""

from __future__ import annotations

import json

from onepolicy.checkpoints import check_checkpoint
from onepolicy.commands import console, show_report
from onepolicy.config import StudyConfig
from onepolicy.config.plan import PlannedRun, run_names, seeds_of, upstream
from onepolicy.jobs import Job, check_finished, run_jobs
from onepolicy.models import pick_device
from onepolicy.runfolder import read_object, write_atomic


def compare(study: StudyConfig, runs: list[PlannedRun]) -> bool:
    """Run what is not finished, then report. True when every run is there.

    Raises ValueError, before anything runs, for a device or a given checkpoint that is not there or cannot be used, and
    as `check_finished` does.
    """
    jobs = [Job(run.name, run.config, run.after) for run in runs]
    check_finished(jobs)
    for device in study.devices:
        pick_device(device)
    for run in runs:
        if run.name.startswith("given/"):
            check_checkpoint(run.config.model, run.name)
    file = study.output / "study.json"
    if file.is_file() and not {"seeds", "reads"} <= set(read_object(file) or {"seeds": 0, "reads": 0}):
        raise ValueError(f"{file} was written by no study and would be overwritten: set another output")
    study.output.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(facts(study, runs), indent=1))
    where = f" on {', '.join(study.devices)}" if study.devices else ""
    console.print(f"{len(runs)} runs, {study.processes} at a time{where}, in {study.output}", highlight=False)
    failed = run_jobs(jobs, study.processes, console, study.devices)
    try:
        show_report(study.output)
    except ValueError as error:
        if not failed:
            raise
        console.print(f"no report: {error}", soft_wrap=True)
    for name, why in failed.items():
        console.print(f"failed  {name}: {why}", highlight=False, soft_wrap=True)
    return not failed


def facts(study: StudyConfig, runs: list[PlannedRun]) -> dict[str, object]:
    """What the report has to know: see report/study.py."""
    by_name = {run.name: run for run in runs}
    seeds, reads = {}, {}
    for seed in study.seeds:
        names = run_names(study, seed)
        keys = {name: key for key, name in names.items()}
        seeds[seed] = {
            "origin": names["origin"],
            "experts": {domain: names[f"experts.{domain}"] for domain in study.domains},
            "arms": {arm: names[f"arms.{arm}"] for arm in study.arms if seed in seeds_of(study, arm)},
        }
        for arm in seeds[seed]["arms"]:
            read = (keys[name] for name in upstream(by_name, names[f"arms.{arm}"]))
            reads[arm] = [key for key in read if key != "origin"]
    budget, allowed = "each arm's own steps", dict[str, object]()
    if study.budget is not None:
        experts = "experts paid from it" if study.budget.experts == "included" else "experts apart"
        budget = f"{study.budget.amount:,} {study.budget.rule}, {experts}"
        amounts = {
            name: study.budget.amount * arm.get("budget", 1)
            for name, arm in study.arms.items()
            if arm.get("recipe") != "merge"
        }
        allowed = {"rule": study.budget.rule, "experts": study.budget.experts, "arms": amounts}
        more = {name: arm["budget"] for name, arm in study.arms.items() if arm.get("budget", 1) != 1}
        budget += "".join(f"; {name}: {factor:g} times that" for name, factor in more.items())
    head = {"title": study.title, "domains": list(study.domains), "reference": study.reference_arm, "budget": budget}
    return {**head, "allowed": allowed, "seeds": seeds, "reads": reads}

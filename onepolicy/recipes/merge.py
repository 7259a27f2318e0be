"""Merging: the experts' weights made one, without any training (a baseline of MOPD, arXiv 2606.30406).

    average  Σ w_i φ_i / Σ w_i      task_arithmetic  θ_0 + Σ λ_d (φ_d − θ_0)      ties, dare, slerp: see merging.py

A sweep merges with each λ, evaluates it, and keeps the λ whose mean over domains of the raw mean reward is the highest
(the first of equals): raw, because a normalised score would need origin and experts evaluated as well. Careful: the
questions that choose λ are those of the final score, which is optimistic by that choice.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from onepolicy.config import MergeConfig
from onepolicy.evaluation import Evaluation
from onepolicy.exam import Exam
from onepolicy.mergefiles import merge_files
from onepolicy.mergeinputs import Inputs
from onepolicy.progress import progress
from onepolicy.runfolder import RunFolder, read_object, write_atomic

SCORE = "mean over domains of the raw mean reward"


def merge(config: MergeConfig) -> None:
    began = time.monotonic()
    with closing(RunFolder(config)) as folder, ExitStack() as stack:
        folder.rewind(0)  # what a killed attempt has left half-written
        inputs = Inputs(config)
        exam = stack.enter_context(Exam(config)) if config.domains and config.eval.at_end else None

        means: dict[str, float] = {}
        if config.sweep:
            assert exam is not None, "checked in MergeConfig"
            config = with_lambda(config, best_of_sweep(config, inputs, exam, folder.path))
        merge_files(inputs, config, folder.model)
        if exam is not None:
            means = evaluated(config, exam, folder.model, folder.path / "eval" / "final.json").means()
        folder.finish(
            {"steps": 0, "sequences": 0, "tokens": 0, "seconds": round(time.monotonic() - began, 3), "means": means}
        )


def with_lambda(config: MergeConfig, value: float) -> MergeConfig:
    """The merge that a sweep does for one of its values."""
    return config.model_copy(update={"lambdas": value, "sweep": None})


def best_of_sweep(config: MergeConfig, inputs: Inputs, exam: Exam, path: Path) -> float:
    """Try what has not been tried; sweep.json holds what has been, unless inputs or setting were others."""
    head = {"score": SCORE, "eval": config.eval.model_dump(), "inputs": inputs.hashes}
    file, scratch = path / "sweep.json", path / ".sweep.tmp"
    was = read_object(file) or {}
    results: list[dict[str, Any]] = was["results"] if head.items() <= was.items() else []
    with progress(f"{path.name}: sweep", len(config.sweep or ()), len(results)) as show:
        for value in (config.sweep or ())[len(results) :]:
            merge_files(inputs, with_lambda(config, value), scratch)
            result = evaluated(config, exam, scratch, path / "eval" / f"lambda-{value:g}.json")
            means = result.means()
            results.append({"lambda": value, "means": means, "mean": sum(means.values()) / len(means)})
            best = max(results, key=lambda row: row["mean"])["lambda"]
            write_atomic(file, json.dumps({**head, "results": results, "best": best}, indent=1))
            show(len(results), {"reward": results[-1]["mean"], "tokens": 0, "time": 0})
    shutil.rmtree(scratch, ignore_errors=True)
    return float(max(results, key=lambda row: row["mean"])["lambda"])


def evaluated(config: MergeConfig, exam: Exam, model: Path, file: Path) -> Evaluation:
    """The model's evaluation, also kept."""
    result = exam.evaluate(config.base.model_copy(update={"path": str(model), "revision": None}), config.eval)
    file.parent.mkdir(exist_ok=True)
    write_atomic(file, result.to_json())
    return result

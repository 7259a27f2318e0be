"""Cascaded reinforcement learning: one domain after the other, each stage from the model of the one before.

The baseline of MOPD (arXiv 2606.30406) that shows what is forgotten: every domain is evaluated at each stage end. A
stage is an ordinary `rlvr` run in stages/K-DOMAIN, and is resumed as one; a finished stage is never run again. The
folder around them looks like one run: rows and counts go on from stage to stage. One stage is `rlvr`, bit for bit.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from onepolicy.config import CascadeConfig, RlvrConfig
from onepolicy.files import whole
from onepolicy.policy import model_card
from onepolicy.recipes.rlvr import rlvr
from onepolicy.runfolder import RunFolder, check_folder, follow_model, read_object, read_rows, write_atomic

COUNTED = ("step", "time", "sequences", "tokens")  # in a row of metrics: so far


def cascade_rl(config: CascadeConfig) -> None:
    with closing(RunFolder(config)) as folder:
        stages = config.stages()
        for number, stage in enumerate(stages, start=1):
            if number > 1:
                follow_model(stage.output, str(stage.model.path))
            if not finished(stage):
                rlvr(stage)
            gather(folder.path, stages[:number])
        copy_model(stages[-1].output / "model", folder.model, model_card(config))
        folder.finish(totals(folder.path, config))


def finished(stage: RlvrConfig) -> bool:
    """Raises ValueError when the stage has ended at another number of steps: later stages go on from its result."""
    check_folder(stage)
    done = read_object(stage.output / "done.json") or {}
    steps = done.get("steps")
    if steps not in (None, stage.steps):
        raise ValueError(
            f"{stage.output} has ended after {steps} steps, and later stages go on from there: set steps to {steps}, "
            "or another output"
        )
    return steps is not None


def gather(path: Path, stages: Sequence[RlvrConfig]) -> None:
    """The finished stages as one run: their rows one after the other, an evaluation of every domain per stage end."""
    for name in ("metrics.jsonl", "samples.jsonl"):
        rows: list[dict[str, Any]] = []
        for number, stage in enumerate(stages, start=1):
            last = rows[-1] if rows else {}
            offsets = {key: last.get(key, 0) for key in COUNTED} | {"step": (number - 1) * stage.steps}
            for row in read_rows(stage.output / name):
                counted = {key: round(row[key] + offsets[key], 3) for key in COUNTED if key in row}
                rows.append({**row, **counted, "stage": number})
        write_atomic(path / name, "".join(json.dumps(row) + "\n" for row in rows))
    (path / "eval").mkdir(exist_ok=True)
    for number, stage in enumerate(stages):
        for file in sorted((stage.output / "eval").glob("*.json")):
            at_end = file.stem == "final"
            step = 0 if at_end else int(file.stem.removeprefix("step-"))
            label = stage.output.name if at_end else f"step-{number * stage.steps + step}"
            write_atomic(path / "eval" / f"{label}.json", file.read_text())


def totals(path: Path, config: CascadeConfig) -> dict[str, Any]:
    """What done.json says. `steps` are those of a stage, as in the configuration. Also eval/final.json."""
    last = config.stages()[-1].output
    done = json.loads((last / "done.json").read_text())
    if (last / "eval" / "final.json").is_file():
        write_atomic(path / "eval" / "final.json", (last / "eval" / "final.json").read_text())
    row = read_rows(path / "metrics.jsonl")[-1]
    return done | {"sequences": row["sequences"], "tokens": row["tokens"], "seconds": row["time"]}


def copy_model(source: Path, target: Path, card: str) -> None:
    """A whole model under the final name, or none. The weights are linked, not copied, where the disk can."""
    with whole(target) as scratch:
        shutil.copytree(source, scratch, copy_function=_link)
        write_atomic(scratch / "README.md", card)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

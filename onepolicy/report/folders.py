"""What a report reads: one run folder, or a pipeline folder that names several.

A run folder holds `config.yaml` and at least one of `metrics.jsonl` (one object per step: step, time, sequences,
tokens, loss, …, and per-domain values as "<metric>/<domain>") and `eval/<label>.json`; it may hold `samples.jsonl`
and `run.json` ({"versions": {...}, ...}). A pipeline folder holds `pipeline.json`:
{"title", "domains": [...], "origin": "sft", "experts": {"<domain>": "<folder>"}, "student": "student"}.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from onepolicy.evaluation import Evaluation
from onepolicy.types import Array

KEPT_SAMPLES = 3  # per domain, the latest of different prompts


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run as it lies on disk. `evaluations` are in the order they were made, the final one last."""

    path: Path
    config: dict[str, Any]
    info: dict[str, Any]
    metrics: list[dict[str, Any]]
    evaluations: dict[str, Evaluation]
    samples: list[dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """Raises ValueError that names what the folder lacks."""
        config_file, eval_files = path / "config.yaml", list((path / "eval").glob("*.json"))
        if not config_file.is_file():
            raise ValueError(f"{path} is no run folder: config.yaml is missing")
        if not (path / "metrics.jsonl").is_file() and not eval_files:
            raise ValueError(f"{path} has nothing to report yet: neither metrics.jsonl nor eval/*.json is there")
        config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"{config_file} holds no mapping at its top level")
        return cls(
            path=path,
            config=config,
            info=_read_object(path / "run.json") if (path / "run.json").is_file() else {},
            metrics=_metrics(path / "metrics.jsonl"),
            evaluations={file.stem: _evaluation(file) for file in sorted(eval_files, key=_step_order)},
            samples=_latest_samples(path / "samples.jsonl"),
        )

    @property
    def domains(self) -> list[str]:
        return list(self.config.get("domains") or {})

    @property
    def last(self) -> tuple[str, Evaluation] | None:
        """Label and content of the latest evaluation."""
        return list(self.evaluations.items())[-1] if self.evaluations else None

    def curve(self, key: str, x: str = "step") -> tuple[Array, Array]:
        """Where `key` has a finite value: x and the values."""
        points = [(row.get(x), row.get(key)) for row in self.metrics]
        kept = [(a, b) for a, b in points if _is_number(a) and _is_number(b)]
        return np.array([a for a, _ in kept], dtype=float), np.array([b for _, b in kept], dtype=float)

    def domain_share(self, domain: str) -> float:
        """Which part of every batch's prompts the configuration gives to this domain."""
        domains = self.config.get("domains") or {}
        shares = {name: float((entry or {}).get("share", 1.0)) for name, entry in domains.items()}
        return shares[domain] / sum(shares.values()) if domain in shares else 0.0


@dataclass(frozen=True, slots=True)
class PipelineFolder:
    """Origin, one expert per domain, and the student that integrates them."""

    path: Path
    title: str
    domains: list[str]
    origin: RunFolder
    experts: dict[str, RunFolder]
    student: RunFolder

    @classmethod
    def read(cls, path: Path) -> PipelineFolder:
        """Raises ValueError that names what is missing: a key, a folder, an expert or an evaluation."""
        file = path / "pipeline.json"
        data = _read_object(file)
        if missing := [key for key in ("domains", "origin", "experts", "student") if not data.get(key)]:
            raise ValueError(f"{file} lacks {', '.join(missing)}")
        domains = list(data["domains"])
        if missing := [domain for domain in domains if domain not in data["experts"]]:
            raise ValueError(f"{file} names no expert for {', '.join(missing)}")
        pipeline = cls(
            path=path,
            title=data.get("title") or path.resolve().name,
            domains=domains,
            origin=RunFolder.read(path / data["origin"]),
            experts={domain: RunFolder.read(path / data["experts"][domain]) for domain in domains},
            student=RunFolder.read(path / data["student"]),
        )
        for domain in domains:
            for run in (pipeline.origin, pipeline.experts[domain], pipeline.student):
                if run.last is None or domain not in run.last[1].domains:
                    raise ValueError(f"{run.path} has no evaluation of domain {domain!r} (eval/final.json)")
        return pipeline

    @property
    def runs(self) -> dict[str, RunFolder]:
        """Role → run, for tables over everything that was trained."""
        experts = {f"expert {domain}": run for domain, run in self.experts.items()}
        return {"origin": self.origin, **experts, "student": self.student}


def evaluation_of(run: RunFolder) -> Evaluation:
    """The latest evaluation, where the reader has checked that there is one."""
    assert run.last is not None, f"{run.path} has no evaluation"
    return run.last[1]


def eval_step(label: str) -> int | None:
    """The step in a label such as `step-50`."""
    match = re.fullmatch(r"step-(\d+)", label)
    return int(match[1]) if match else None


def _step_order(file: Path) -> tuple[bool, float, str]:
    step = eval_step(file.stem)
    return file.stem == "final", -1 if step is None else step, file.stem


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _read_object(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{file} holds no JSON object")
    return data


def _evaluation(file: Path) -> Evaluation:
    try:
        return Evaluation.from_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file. A broken last line is what a kill leaves behind, and is left out."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    lines = text.removesuffix("\n").split("\n") if text else []  # not splitlines: model text may hold U+2028
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{file}, line {number} is not JSON: {error}") from None


def _metrics(file: Path) -> list[dict[str, Any]]:
    """One row per step, in order; where a resumed run wrote a step again, the later values count."""
    by_step: dict[int, dict[str, Any]] = {}
    for row in _json_lines(file):
        by_step.setdefault(row["step"], {}).update(row)
    return [by_step[step] for step in sorted(by_step)]


def _latest_samples(file: Path) -> list[dict[str, Any]]:
    latest: dict[str, dict[str, dict[str, Any]]] = {}
    for sample in _json_lines(file):
        of_domain = latest.setdefault(sample["domain"], {})
        of_domain.pop(sample["prompt"], None)
        of_domain[sample["prompt"]] = sample
        if len(of_domain) > KEPT_SAMPLES:
            del of_domain[next(iter(of_domain))]
    return [sample for of_domain in latest.values() for sample in of_domain.values()]

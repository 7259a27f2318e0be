"""The tables of a report, as plain strings: the page and the command line print the same rows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from onepolicy.evaluation import Estimate, Evaluation
from onepolicy.normalised import Normalised, normalise
from onepolicy.report.folders import PipelineFolder, RunFolder, evaluation_of

NONE = "-"
NO_GAIN = "n/a (expert gained nothing)"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under named columns; the first column holds names, the others numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def percent_interval(estimate: Estimate) -> str:
    return f"{percent(estimate.value)} [{percent(estimate.low)}, {percent(estimate.high)}]"


def score_interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]".replace("inf", "∞")


def duration(seconds: float) -> str:
    """Two units at most: 4.2 s, 3 min 20 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def setting(evaluation: Evaluation) -> str:
    """How the numbers came about, for the note below a table."""
    temperature = "greedy" if evaluation.temperature == 0 else f"temperature {evaluation.temperature:g}"
    return (
        f"avg@{evaluation.n}: mean reward of {evaluation.n} answers per question ({temperature}), in percent. "
        "In brackets: 95% bootstrap interval over questions."
    )


def evaluation_table(label: str, evaluation: Evaluation) -> Table:
    """One row per domain: avg@n with its interval, pass@n, lengths, truncation."""
    n = evaluation.n
    passes = [n] if n > 1 else []
    rows = [
        [domain, str(len(score.questions)), percent_interval(score.interval())]
        + [NONE if (rate := score.pass_at(k)) is None else percent(rate) for k in passes]
        + [f"{score.mean_length:.1f}", percent(score.truncated)]
        for domain, score in evaluation.domains.items()
    ]
    columns = ["domain", "questions", f"avg@{n} (%)", *(f"pass@{k} (%)" for k in passes), "length (tokens)"]
    note = " ".join([setting(evaluation), *(f"{remark}." for remark in evaluation.remarks())])
    return Table(f"Evaluation ({label})", [*columns, "truncated (%)"], rows, note)


def sweep_table(file: Path) -> Table:
    """One row per λ that a merge has tried; the best is marked."""
    data = json.loads(file.read_text())
    results, best = data["results"], data["best"]
    domains = list(results[0]["means"])
    rows = [
        [f"{row['lambda']:g}" + (" (kept)" if row["lambda"] == best else "")]
        + [percent(row["means"][domain]) for domain in domains]
        + [percent(row["mean"])]
        for row in results
    ]
    return Table("Sweep", ["lambda", *(f"{domain} (%)" for domain in domains), "mean (%)"], rows, data["score"])


def score_table(pipeline: PipelineFolder) -> Table:
    """Per domain: origin, expert, student, and the share of the expert's gain that the student has (MOPD's s̃)."""
    origin, student = evaluation_of(pipeline.origin), evaluation_of(pipeline.student)
    experts = {domain: evaluation_of(run) for domain, run in pipeline.experts.items()}
    normalised = normalise(student, origin, experts)
    rows = []
    for domain, expert in experts.items():
        scores = [evaluation.domains[domain] for evaluation in (origin, expert, student)]
        cells = [percent_interval(score.interval()) for score in scores]
        kept = normalised.domains.get(domain)
        rows.append([domain, str(len(scores[0].questions)), *cells, score_interval(kept) if kept else NO_GAIN])
    columns = ["domain", "questions", "origin (%)", "expert (%)", "student (%)", "normalised"]
    note = setting(student) + _reasons(normalised)
    for role, run in pipeline.runs.items():
        note += "".join(f" {role}, {remark}." for remark in evaluation_of(run).remarks())
    return Table("Scores", columns, rows + _totals(normalised), note)


def _totals(normalised: Normalised) -> list[list[str]]:
    if normalised.norm is None or normalised.range is None:
        return [["Norm (mean)", "", "", "", "", "n/a"], ["range (max - min)", "", "", "", "", "n/a"]]
    norm, spread = score_interval(normalised.norm), score_interval(normalised.range)
    return [["Norm (mean)", "", "", "", "", norm], ["range (max - min)", "", "", "", "", spread]]


def _reasons(normalised: Normalised) -> str:
    reasons = "; ".join(f"{domain}: {reason}" for domain, reason in normalised.excluded.items())
    return f" No normalised score for {reasons}. Norm and range need every domain." if reasons else ""


def cross_table(pipeline: PipelineFolder) -> Table | None:
    """Every model on every domain, avg@n; None where the experts were evaluated on their own domain only."""
    rows = []
    for role, run in pipeline.runs.items():
        scores = evaluation_of(run).domains
        rows.append([role, *(percent(scores[d].mean) if d in scores else NONE for d in pipeline.domains)])
    if len(pipeline.domains) < 2 or all(row.count(NONE) == len(row) - 2 for row in rows[1:-1]):
        return None
    note = "Rows are models, columns domains. An expert far below the origin off its own domain has forgotten it."
    return Table("Every model on every domain (avg@n, %)", ["model", *pipeline.domains], rows, note)


def cost_table(runs: dict[str, RunFolder]) -> Table:
    """What each run consumed, from its last metrics row; below, what of it could not be used."""
    rows, notes = [], []
    for role, run in runs.items():
        last = run.metrics[-1] if run.metrics else {}
        counts = [f"{int(last[key]):,}" if key in last else NONE for key in ("step", "sequences", "tokens")]
        time = duration(float(last["time"])) if "time" in last else NONE
        rows.append([role, str(run.config.get("recipe", NONE)), *counts, time])
        notes += [f"{role}: {line}." for line in _unusable(run)]
    return Table("Cost", ["run", "recipe", "last step", "sequences", "tokens", "time"], rows, " ".join(notes))


def _unusable(run: RunFolder) -> list[str]:
    """Failed gradings, errors of the engine and prompts that did not fit, by domain, where there were any."""
    lines = []
    for domain in run.domains:
        for kind, what in (("grader_failed", "could not be graded"), ("error", "ended in an error")):
            _, fractions = run.curve(f"{kind}/{domain}")
            if len(fractions):
                steps, most = len(fractions), percent(fractions.max())
                lines.append(f"{domain}: in {steps} of {len(run.metrics)} steps some answers {what}, at most {most}%")
        _, counts = run.curve(f"too_long/{domain}")
        if len(counts):
            lines.append(f"{domain}: {int(counts.sum())} prompts were drawn that do not fit the model, and left out")
    return lines

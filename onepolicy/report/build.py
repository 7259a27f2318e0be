"""What a report says: of one run, and of a pipeline from origin over experts to student; of a study: study_page.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onepolicy.evaluation import Evaluation, Question
from onepolicy.report import plots, tables
from onepolicy.report.folders import PipelineFolder, RunFolder, eval_step, evaluation_of
from onepolicy.report.gaps import gap_figure
from onepolicy.report.page import Answer, Comparison, Page, Section, write
from onepolicy.report.plots import Figure, Line, Panel
from onepolicy.report.study_page import study_report
from onepolicy.report.tables import Table
from onepolicy.rewards import is_correct

BEHAVIOUR = {
    "reward": "reward (0 to 1)",
    "reverse_kl": "reverse KL (nats per token)",
    "entropy": "entropy (nats per token)",
    "length": "response length (tokens)",
}
BUDGET = {
    "truncated": "truncated (share of responses)",
    "grader_failed": "not graded (share of responses)",
    "token_share": "share of trained tokens",
    "budget": "share of the update's budget",
    "signal": "mean |signal| (nats per token)",
}
STALENESS = {
    "rollout_kl": "KL, writer to learner (nats)",
    "clipped": "clipped, rewards (share)",
    "distill_clipped": "clipped, teachers (share)",
    "gated": "gated (share of tokens)",
}
UPDATE = {"loss": "loss", "grad_norm": "gradient norm"}
STALE = "How far the policy that learns had moved from the one that wrote, and what the update left out for it."

PROSE = "How to read this"
HOW_TO_READ = (
    "The origin is the model before any reinforcement learning. Each expert was trained from it on one domain, and the "
    "student learned from all experts at once. The normalised score says how much of an expert's gain the student "
    "has: 0 is no better than the origin, 1 is as good as the expert, above 1 is better. Norm is its mean over the "
    "domains; a small range means that no domain was sacrificed for another."
    "\n\n"
    "A bracket that is wide, or that holds both 0 and 1, says that the questions are too few to tell. The range is "
    "never negative, so its bracket leans upwards. All brackets cover the choice of questions, not the luck of one "
    "training run: for that, repeat the run with other seeds."
)


class Report(NamedTuple):
    """Where the report lies, and its main table for the command line (None: the run has no evaluation yet)."""

    markdown: Path
    html: Path
    table: Table | None


def write_report(folder: str | Path) -> Report:
    """Report on a run folder, a pipeline folder or a study's folder. Raises ValueError that names what is missing."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    if (folder / "pipeline.json").is_file():
        return pipeline_report(folder)
    if (folder / "study.json").is_file():
        return Report(*study_report(folder))
    if not (folder / "config.yaml").is_file():
        raise ValueError(
            f"{folder} is no run (it has no config.yaml), no pipeline (no pipeline.json) and no study (no study.json)"
        )
    return run_report(folder)


def run_report(folder: str | Path) -> Report:
    """One run: its setting, its last evaluation, its curves, a few answers."""
    run = RunFolder.read(Path(folder))
    table = tables.evaluation_table(*run.last) if run.last else None
    sections = [
        Section("Scores", tables=[table] if table else [], figures=_drawn(_scores_by_step(run))),
        Section("Training curves", figures=run_curves(run, "")),
        Section("Cost", tables=[tables.cost_table({run.path.resolve().name: run})]),
        Section("Sample answers", "The latest answers that were kept, not chosen.", comparisons=_samples(run)),
    ]
    title = f"{run.config.get('recipe', 'run')}: {run.path.resolve().name}"
    return Report(*write(Page(title, _facts(run), _filled(sections)), run.path), table)


def pipeline_report(folder: str | Path) -> Report:
    """Origin, experts and student: the score table, curves, and answers to the same questions side by side."""
    pipeline = PipelineFolder.read(Path(folder))
    table, cross = tables.score_table(pipeline), tables.cross_table(pipeline)
    chosen = (
        "First answers to the same evaluation question. Chosen, not representative: per domain one question that the "
        "student gained over its origin and one that it fails, where there are such; the table has the rates."
    )
    sections = [
        Section("Scores", tables=[table, *([cross] if cross else [])], figures=[_score_figure(pipeline)]),
        Section(PROSE, HOW_TO_READ),
        Section("Experts and student", figures=_drawn(_learning_curves(pipeline), _expert_curves(pipeline))),
        Section("The student's training", figures=run_curves(pipeline.student, "student-")),
        Section("Cost", tables=[tables.cost_table(pipeline.runs)]),
        Section("Side by side", chosen, comparisons=_side_by_side(pipeline)),
    ]
    return Report(*write(Page(pipeline.title, _facts(pipeline.student), _filled(sections)), pipeline.path), table)


def _filled(sections: Sequence[Section]) -> list[Section]:
    return [s for s in sections if s.tables or s.figures or s.comparisons or s.title == PROSE]


def _drawn(*figures: Figure | None) -> list[Figure]:
    return [figure for figure in figures if figure is not None]


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    """The header: what was run, on what, with which versions."""
    config, versions = run.config, run.info.get("versions", {})
    model = config.get("model")
    if isinstance(model, dict):
        architecture = (model.get("scratch") or {}).get("architecture", {})
        model = model.get("path") or f"from scratch ({architecture.get('model_type', 'unnamed architecture')})"
    facts = [
        ("recipe", config.get("recipe")),
        ("model", model),
        ("domains", ", ".join(run.domains)),
        ("seed", config.get("seed")),
        ("steps", config.get("steps")),
        *((k, v) for k, v in run.info.items() if isinstance(v, str | int | float) and k not in config),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    return [(key, str(value)) for key, value in facts if value not in (None, "")]


def run_curves(run: RunFolder, prefix: str) -> list[Figure]:
    """Behaviour, budget and staleness per domain, then the update as a whole, against the step."""

    def per_domain(labels: dict[str, str]) -> list[Panel]:
        return [Panel(y, [Line(d, *run.curve(f"{key}/{d}")) for d in run.domains]) for key, y in labels.items()]

    update = [Panel(ylabel, [Line("all domains", *run.curve(key))]) for key, ylabel in UPDATE.items()]
    return _drawn(
        plots.curves(f"{prefix}behaviour", "What the policy does, per domain.", per_domain(BEHAVIOUR), "step"),
        plots.curves(f"{prefix}budget", "Who gets the tokens, per domain.", per_domain(BUDGET), "step"),
        plots.curves(f"{prefix}staleness", STALE, per_domain(STALENESS), "step"),
        plots.curves(f"{prefix}update", "The update as a whole.", update, "step"),
        gap_figure(f"{prefix}gaps", "How far the policy is from others.", run),
    )


def _scores_by_step(run: RunFolder) -> Figure | None:
    """avg@n of every evaluation that was made on the way; `final` counts as the last step of the run."""
    last_step = run.metrics[-1]["step"] if run.metrics else None
    points: dict[int, Evaluation] = {}
    for label, evaluation in run.evaluations.items():
        step = last_step if label == "final" else eval_step(label)
        if step is not None:
            points[step] = evaluation
    lines = []
    for domain in run.domains:
        known = [(s, 100 * e.domains[domain].mean) for s, e in sorted(points.items()) if domain in e.domains]
        lines.append(Line(domain, np.array([s for s, _ in known]), np.array([value for _, value in known])))
    return plots.curves("evaluations", "Evaluations on the way.", [Panel("score, avg@n (%)", lines)], "step")


def _score_figure(pipeline: PipelineFolder) -> Figure:
    experts = {d: evaluation_of(run).domains[d].interval() for d, run in pipeline.experts.items()}
    origin, student = (evaluation_of(run).domains for run in (pipeline.origin, pipeline.student))
    models = {
        "origin": {domain: origin[domain].interval() for domain in pipeline.domains},
        "expert": experts,
        "student": {domain: student[domain].interval() for domain in pipeline.domains},
    }
    return plots.scores("scores", "Scores per domain with 95% intervals over questions.", models)


def _learning_curves(pipeline: PipelineFolder) -> Figure | None:
    """Expert against student, per domain, over what each spent on that domain."""
    panels = []
    for domain, expert in pipeline.experts.items():
        lines = []
        for style, who, run in ((1, "expert", expert), (2, "student", pipeline.student)):  # as in the score figure
            x, y = run.curve(f"reward/{domain}", "sequences")
            lines.append(Line(who, x * run.domain_share(domain), y, style))
        panels.append(Panel(BEHAVIOUR["reward"], lines, title=domain))
    caption = "Training reward against sequences of that domain (the run's total times the domain's share of prompts)."
    return plots.curves("learning", caption, panels, "sequences of the domain")


def _expert_curves(pipeline: PipelineFolder) -> Figure | None:
    keys = ("entropy", "length")
    panels = [
        Panel(BEHAVIOUR[key], [Line(d, *run.curve(f"{key}/{d}")) for d, run in pipeline.experts.items()])
        for key in keys
    ]
    return plots.curves("experts", "Each expert on its own domain.", panels, "step")


def _samples(run: RunFolder) -> list[Comparison]:
    """From samples.jsonl; without one, the first questions of the last evaluation."""
    if run.samples:
        return [
            Comparison(
                domain=sample["domain"],
                prompt=_text(sample["prompt"]),
                reference=_text(sample.get("reference")),
                answers=(Answer(f"step {sample.get('step', '?')}", _text(sample["response"]), *_verdict(sample)),),
            )
            for sample in run.samples
        ]
    scores = run.last[1].domains.items() if run.last else ()
    return [
        Comparison(domain, question.prompt, question.reference, (_answer("answer", question),))
        for domain, score in scores
        for question in score.questions[:2]
    ]


def _verdict(sample: dict[str, Any]) -> tuple[float | None, str]:
    notes = [sample.get("reason"), "" if sample.get("finish") in (None, "stop") else f"finish: {sample['finish']}"]
    return sample.get("reward"), ", ".join(note for note in notes if note)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _answer(who: str, question: Question) -> Answer:
    finish = "" if question.finishes_G[0] == "stop" else f"finish: {question.finishes_G[0]}"
    note = ", ".join(filter(None, (question.reason, finish)))
    return Answer(who, question.response, None if _first_failed(question) else question.rewards_G[0], note)


def _first_failed(question: Question) -> bool:
    """Whether the answer that is shown has no reward."""
    return bool(question.failed_G) and question.failed_G[0]


def _side_by_side(pipeline: PipelineFolder) -> list[Comparison]:
    """Per domain: a question that the student gained over its origin, and one that it fails; else the first."""
    comparisons = []
    for domain, expert in pipeline.experts.items():
        evaluations = [evaluation_of(run) for run in (pipeline.origin, expert, pipeline.student)]
        asked = list(zip(*(evaluation.domains[domain].questions for evaluation in evaluations), strict=True))
        graded = [q for q in asked if not any(map(_first_failed, q))]
        gained = [q for q in graded if q[2].rewards_G[0] > q[0].rewards_G[0]]
        failed = [q for q in graded if not is_correct(q[2].rewards_G[0])]
        kept = [*gained[:1], *[q for q in failed if q not in gained[:1]][:1]] or asked[:1]
        for questions in kept:
            answers = tuple(map(_answer, ("origin", "expert", "student"), questions))
            comparisons.append(Comparison(domain, questions[0].prompt, questions[0].reference, answers))
    return comparisons

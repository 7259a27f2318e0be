"""What the command line does once its arguments are read; prints tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from onepolicy import recipes
from onepolicy.checkpoints import MODEL, check_checkpoint, checkpoint_folder, weight_files
from onepolicy.config import AnyRun, EvalConfig, MergeConfig, OffpolicyConfig
from onepolicy.evaluation import Evaluation
from onepolicy.exam import Exam
from onepolicy.forecast import Rehearsed
from onepolicy.gradients import GradientReport
from onepolicy.mergeinputs import Inputs
from onepolicy.models import load_model, pick_device
from onepolicy.preflight import check_experts
from onepolicy.progress import hush_transformers
from onepolicy.rehearsal import Rehearsal, rehearse
from onepolicy.report.build import write_report
from onepolicy.report.tables import Table, evaluation_table, sweep_table
from onepolicy.runfolder import CHECKED, write_atomic
from onepolicy.tasks.check import check_domains as check_tasks
from onepolicy.weightcache import check_finite

WIDTH = 124  # of what is not a terminal: a score table with its intervals fits
# what is printed may hold answers, questions and paths: nothing in it is markup
console = Console(width=None if sys.stdout.isatty() else WIDTH, markup=False, emoji=False)


def run_and_report(config: AnyRun) -> None:
    recipes.run(config)
    if isinstance(config, MergeConfig) and config.sweep:
        print_table(sweep_table(config.output / "sweep.json"))
    if not isinstance(config, MergeConfig) or (config.output / "eval").is_dir():
        show_report(config.output)
    console.print(f"model   {config.output / 'model'}")


def show_report(folder: Path) -> None:
    written = write_report(folder)
    if written.table is not None:
        print_table(written.table)
    console.print(f"report  {written.html}")


def check_domains(config: AnyRun, n: int) -> bool:
    """True when every gold answer scores 1.0."""
    table = RichTable("domain", "tasks", "distinct", "gold right", "empty earns", "constant earns", "")
    reports = check_tasks(config.domains, n)
    for domain, found in reports.items():
        gold = f"{found.gold_right}/{found.drawn - found.without_gold}"
        remarks = [Text(failure, "red") for failure in found.failures] + [Text(warning) for warning in found.warnings]
        table.add_row(
            domain,
            str(found.drawn),
            str(found.distinct),
            gold,
            f"{found.empty_reward:.2f}",
            f"{found.constant_reward:.2f}",
            Text("\n").join(remarks) if remarks else Text("fine", "green"),
        )
    console.print(table)
    for note in dict.fromkeys(note for found in reports.values() for note in found.notes):
        console.print(note)
    return all(found.ok for found in reports.values())


def check_run(config: AnyRun, gradients: bool) -> bool:
    """Files of all models, tasks, weights, then what can be told of teachers and domains; True when nothing is wrong.

    Works in a temporary folder. What it finds about teachers, domains and gradients is kept as check.json.
    """
    if gradients and not isinstance(config, Rehearsed):
        raise ValueError(
            "--gradients compares what reinforcement or distillation on one domain and on another would change, and "
            f"recipe {config.recipe} does neither: leave it out"
        )
    pick_device(config.device)
    hush_transformers()
    if isinstance(config, MergeConfig):
        inputs = Inputs(config)
    else:
        check_experts(config)
    if not check_domains(config, 50):
        return False
    if isinstance(config, MergeConfig):
        inputs.check_finite()
        return True
    if not isinstance(config, Rehearsed):
        load_model(config.model, config.seed)
        for name, teacher in config.teachers.items() if isinstance(config, OffpolicyConfig) else ():
            check_finite(weight_files(checkpoint_folder(teacher.model)), f"teacher {name!r}")
        return True
    rehearsal = rehearse(config, gradients)
    show_rehearsal(rehearsal)
    config.output.mkdir(parents=True, exist_ok=True)
    write_atomic(config.output / CHECKED, json.dumps(rehearsal.to_dict(), indent=1))
    return True


def show_rehearsal(rehearsal: Rehearsal) -> None:
    """Tables on stdout, the domains' warnings on stderr (those of teachers are there already), what to change."""
    if rehearsal.teachers:
        overlap = f"top-{rehearsal.teachers[0].overlap_k} overlap"
        table = RichTable("domain", "teacher", "reverse KL (nats/token)", overlap, "disagreement (nats)", "verdict")
        for one in rehearsal.teachers:
            differ = "-" if one.disagreement is None else f"{one.disagreement:.2f}"
            kl = f"{one.reverse_kl:.4f}"
            table.add_row(one.domain, one.teacher, kl, f"{one.overlap:.3f}", differ, _coloured(one.verdict))
        console.print(table)
    table = RichTable("domain", "prompts", "tokens/answer", "tokens", "update", "reward", "contrast", "verdict")
    for domain in rehearsal.domains:
        shares = [f"{share:.1%}" for share in (domain.prompt_share, domain.token_share, domain.update_share)]
        contrast = "-" if domain.contrast is None else f"{domain.contrast:.0%}"
        row = [shares[0], f"{domain.length:.1f}", *shares[1:], f"{domain.reward:.2f}", contrast]
        table.add_row(domain.domain, *row, _coloured(domain.verdict))
    console.print(table)
    if rehearsal.gradients is not None:
        print_gradients(rehearsal.gradients)
    for domain in rehearsal.domains:
        for warning in domain.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    advised = [(one.domain, one.changes) for one in rehearsal.teachers]
    for name, changes in advised + [(one.domain, one.changes) for one in rehearsal.domains]:
        if changes:
            console.print(f"{name}: change  {'  or  '.join(changes)}", highlight=False)


def print_gradients(found: GradientReport) -> None:
    def cell(a: str, b: str) -> str:
        value, corrected = found.cosine[a][b], found.corrected[a].get(b)
        shown = "-" if value is None else f"{value:+.2f}"
        return shown if corrected is None else f"{shown} ({corrected:+.2f})"

    table = RichTable("cosine of gradients", *found.cosine)
    for a in found.cosine:
        table.add_row(a, *(cell(a, b) for b in found.cosine))
    console.print(table)
    console.print(
        "(a domain with itself: its two batches, so how much noise leaves to be seen; in brackets: corrected)"
    )


def _coloured(verdict: str) -> Text:
    return Text(verdict, "green" if verdict in ("fine", "absorbed") else "yellow")


def evaluate_checkpoint(
    config: AnyRun, model: str | None, n: int, temperature: float, output: Path | None
) -> Evaluation:
    """avg@n of `model` (default: the run's result) on the run's held-out tasks."""
    checkpoint = config.model.model_copy(update={"path": model or str(config.output / "model"), "scratch": None})
    check_checkpoint(checkpoint, MODEL)
    with Exam(config) as exam:
        result = exam.evaluate(checkpoint, EvalConfig(n=n, temperature=temperature))
    print_table(evaluation_table(str(checkpoint.path), result))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(output, result.to_json())
    return result


def print_table(table: Table) -> None:
    drawn = RichTable(*table.columns, title=table.title)
    for row in table.rows:
        drawn.add_row(*row)
    console.print(drawn)

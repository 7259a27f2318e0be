"""What the command line does once its arguments are read; prints tables."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from onepolicy import recipes
from onepolicy.config import AnyRun, EvalConfig, MergeConfig, MopdConfig, OffpolicyConfig
from onepolicy.evaluation import Evaluation
from onepolicy.exam import Exam
from onepolicy.mergefiles import Inputs
from onepolicy.models import load_model
from onepolicy.preflight import check_identity, check_teachers
from onepolicy.progress import hush_transformers
from onepolicy.report.build import write_report
from onepolicy.report.tables import Table, evaluation_table, sweep_table
from onepolicy.runfolder import write_atomic
from onepolicy.session import Session
from onepolicy.tasks.check import check_domains as check_tasks

WIDTH = 124  # of what is not a terminal: a score table with its intervals fits
console = Console(width=None if sys.stdout.isatty() else WIDTH)


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
        remarks = [f"[red]{failure}[/red]" for failure in found.failures] + list(found.warnings)
        table.add_row(
            domain,
            str(found.drawn),
            str(found.distinct),
            gold,
            f"{found.empty_reward:.2f}",
            f"{found.constant_reward:.2f}",
            "\n".join(remarks) or "[green]fine",
        )
    console.print(table)
    for note in dict.fromkeys(note for found in reports.values() for note in found.notes):
        console.print(note)
    return all(found.ok for found in reports.values())


def check_run(config: AnyRun) -> bool:
    """Tasks, then the model, then the teachers; True when nothing is wrong. Works in a temporary folder."""
    if not check_domains(config, 50):
        return False
    hush_transformers()
    if isinstance(config, MergeConfig):
        Inputs(config)
        return True
    with tempfile.TemporaryDirectory() as scratch:
        aside = config.model_copy(update={"output": Path(scratch) / "check"})
        if not isinstance(aside, MopdConfig):
            model, tokenizer = load_model(config.model, config.seed)
            for name, teacher in aside.teachers.items() if isinstance(aside, OffpolicyConfig) else ():
                check_identity(name, teacher.model, model, tokenizer)
            return True
        with Session(aside, aside.loss) as session:
            teachers = session.frozen({name: t.model for name, t in aside.teachers.items()}, aside.routes)
            reports = check_teachers(session, teachers, aside.check)
    overlap = f"top-{aside.check.overlap_k} overlap"
    table = RichTable("domain", "teacher", "reverse KL (nats/token)", overlap, "verdict")
    for report in reports:
        verdict = "[yellow]see warning" if report.warnings else "[green]fine"
        table.add_row(report.domain, report.teacher, f"{report.reverse_kl:.4f}", f"{report.overlap:.3f}", verdict)
    console.print(table)
    return True


def evaluate_checkpoint(
    config: AnyRun, model: str | None, n: int, temperature: float, output: Path | None
) -> Evaluation:
    """avg@n of `model` (default: the run's result) on the run's held-out tasks."""
    checkpoint = config.model.model_copy(update={"path": model or str(config.output / "model"), "scratch": None})
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

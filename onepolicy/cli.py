"""onepolicy: many RL experts in, one policy out.

Answers --help and configuration errors without importing torch. Everything heavy is in commands.py.
"""

from __future__ import annotations

import faulthandler
import io
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from onepolicy.config import AnyRun, load_run, load_study
from onepolicy.config.plan import plan
from onepolicy.faults import memory_hint, user_fault
from onepolicy.files import require_writable
from onepolicy.runfolder import check_folder, check_folders
from onepolicy.signals import Terminated, terminable

# Tracebacks are for us: plain, so that they can be searched and pasted.
app = typer.Typer(
    help="Many RL experts in, one policy out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
RESUMES = "interrupted: the same command goes on from the last checkpoint"
tasks_app = typer.Typer(help="Task sources: what can be asked and graded.", no_args_is_help=True)
app.add_typer(tasks_app, name="tasks")

# readable=False: a file that may not be read is refused as all others are, in one line
Config = Annotated[Path, typer.Argument(help="a run's YAML file, or an existing run folder", readable=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="dotted overrides, such as optim.learning_rate=1e-5")]


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="where the run folders go")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """From nothing to one policy on this machine's CPU: origin, three experts, student, table and report."""
    require_writable(output)
    with _interruptible(RESUMES):
        from onepolicy.demo import demo as run_demo

        complete = run_demo(output, seed)
    if not complete:
        raise typer.Exit(1)


@app.command()
def run(config: Config, overrides: Overrides = None) -> None:
    """Run what a file describes, or resume it where it was stopped."""
    loaded = _load(config, overrides)
    check_folder(loaded)
    require_writable(loaded.output)
    with _interruptible(RESUMES):
        from onepolicy.commands import run_and_report

        run_and_report(loaded)


@app.command()
def check(
    config: Config,
    overrides: Overrides = None,
    gradients: Annotated[bool, typer.Option("--gradients", help="also the cosine between domains' gradients")] = False,
) -> None:
    """Check a run before it starts: the file, the tasks' gold answers; which teacher will be absorbed, who will starve.

    Writes check.json into the run's folder (mopd and the recipes that reinforce), and nothing else.
    """
    loaded = _load(config, overrides)
    check_folder(loaded)
    require_writable(loaded.output)
    with _interruptible():
        from onepolicy.commands import check_run

        fine = check_run(loaded, gradients)
    if not fine:
        raise typer.Exit(1)


@app.command(name="eval")
def evaluate(
    config: Config,
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="a checkpoint; by default the run's own result")] = None,
    n: Annotated[int | None, typer.Option(min=1, help="answers per question; by default 8, or 1 if greedy")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="temperature 0 instead of 1")] = False,
    output: Annotated[Path | None, typer.Option(help="keep the evaluation as this JSON file")] = None,
) -> None:
    """avg@n of a checkpoint on the held-out tasks of a run's domains, with intervals."""
    loaded = _load(config, overrides)
    if output is not None:
        require_writable(output.parent)
        if output.is_dir():
            raise ValueError(f"--output {output} is a folder: name a JSON file in it")
    with _interruptible():
        from onepolicy.commands import evaluate_checkpoint

        evaluate_checkpoint(loaded, model, n or (1 if greedy else 8), 0.0 if greedy else 1.0, output)


@app.command()
def compare(
    study: Annotated[Path, typer.Argument(help="a study's YAML file", readable=False)],
    overrides: Overrides = None,
) -> None:
    """Run the arms of a study on one origin, one budget and the same seeds; table and report. Resumes."""
    loaded = load_study(study, overrides or [])
    runs = plan(loaded)
    from onepolicy.tasks import check_options

    for run in runs:
        check_options(run.config.domains)
    check_folders([run.config for run in runs])
    require_writable(loaded.output)
    with _interruptible(RESUMES):
        from onepolicy.compare import compare as run_study

        complete = run_study(loaded, runs)
    if not complete:
        raise typer.Exit(1)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="the folder of a run, of the demo or of a study")]) -> None:
    """Write report.md and a self-contained report.html."""
    if folder.is_dir():
        require_writable(folder)
    with _interruptible():
        from onepolicy.commands import show_report

        show_report(folder)


@tasks_app.command("list")
def list_tasks() -> None:
    """The kinds of task source and their options."""
    from onepolicy.tasks import KINDS

    for name, kind in KINDS.items():
        typer.echo(f"{name:15} {', '.join(kind.options.model_fields)}")


@tasks_app.command("check")
def check_tasks(
    config: Config,
    overrides: Overrides = None,
    n: Annotated[int, typer.Option(min=1, help="tasks to draw per domain")] = 100,
) -> None:
    """Grade every domain's own gold answers: each must score 1.0. Warns of tiny or lopsided question spaces."""
    loaded = _load(config, overrides)
    with _interruptible():
        from onepolicy.commands import check_domains

        fine = check_domains(loaded, n)
    if not fine:
        raise typer.Exit(1)


def _load(config: Path, overrides: list[str] | None) -> AnyRun:
    """Everything that can be said about a configuration without torch."""
    loaded = load_run(config, overrides or [])
    from onepolicy.tasks import check_options

    check_options(loaded.domains)
    return loaded


@contextmanager
def _interruptible(hint: str = "interrupted") -> Iterator[None]:
    """Ctrl-C and SIGTERM end with a line instead of a traceback, and exit code 130 or 143.

    What is under way sees an exception, so that a run can keep its last finished step (session.py).
    """
    try:
        with terminable():
            yield
    except KeyboardInterrupt as error:
        print(f"\n{hint}", file=sys.stderr)
        raise typer.Exit(143 if isinstance(error, Terminated) else 130) from None


def main() -> None:
    """The boundary: an error that the user can act on ends with its message alone and exit code 2 (see faults.py).

    Anything else is our bug and keeps its traceback; so does memory that ran out, with what to change below it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may not have all characters of a prompt
    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)  # a file that is cut off while it is mapped ends the process with SIGBUS
    try:
        app()
    except Exception as error:
        if (fault := user_fault(error)) is not None:
            print(f"error: {fault}", file=sys.stderr)
            sys.exit(2)
        if (hint := memory_hint(error)) is not None:
            traceback.print_exc()
            print(f"error: {hint}", file=sys.stderr)
            sys.exit(1)
        raise

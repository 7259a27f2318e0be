"""Which architectures of transformers come out right: the table of docs/compatibility.md.

    OMP_NUM_THREADS=1 python -m benchmarks.compatibility [--only NAME ...] [--output docs/compatibility.md]

Rows are in architectures.py; how each number is measured, in paths.py. Prints a line for each row when it is done. Ends
with status 1 when something is wrong.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import transformers
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from benchmarks.architectures import ARCHITECTURES
from benchmarks.paths import FLOOR_BFLOAT16, PATHS, TOLERANCE, Cell, measure, verdict

TITLES = {"shared": "shared prompts", "bfloat16": "teacher, bfloat16"}  # of columns; the others are the path's name
HEAD = """# Compatibility

Which architectures of transformers come out right. Made by `make compatibility` ({minutes} minutes on one core),
{date}: CPython {python}, torch {torch} (CPU), transformers {transformers}. {rows} rows of {kinds} model types: {right}
right, {refused} refused by name, {wrong} wrong.

Each row is a random checkpoint of one to four small layers, with its architecture's own layer pattern, whose logits are
far from uniform (`benchmarks/architectures.py`). Dropout, layer drop, router jitter and input noise are switched on in
its configuration wherever it has them. The checkpoint goes through onepolicy as in a run (`benchmarks/paths.py`).

Every number is the largest difference from transformers' own forward: `AutoModelForCausalLM.from_pretrained(folder)`
in evaluation mode, called as `model(input_ids=row)` on one row alone. Each row gets a fresh copy of the model, since
some rotary embeddings remember the longest row that they have seen. The last token of a row predicts nothing, and is
not read.

- **generate**: log-probs of the engine, in nats. Prompts of 5 to 43 tokens, three responses each, five rows at a time,
  so that rows leave the batch and others join it.
- **score**: log-probs of the learner as a scorer, in nats. Rows of 5 to 60 tokens, together.
- **shared prompts**: the same for rollouts whose prompt is read once (counted); – where the cache does not allow it.
- **teacher**: sampled, top-k and whole-vocabulary scores of two checkpoints that take turns on one shelf, in nats.
- **teacher, bfloat16**: the same in bfloat16, against transformers in bfloat16.
- **learn**: the gradient of policy gradient and cross-entropy, with all rows together and with one by one: the norm of
  the difference, as a fraction of the norm.
- **checkpointing**: the same with gradient checkpointing, which transformers ties to training mode. It may be refused.
- **merge**: log-probs of the merged checkpoint, against a model that holds base + 0.6·(a − base) + 0.6·(b − base).
- **save**: log-probs of the folder that is saved after a step, against the model in memory; the configuration and the
  generation config must say the same before and after.

**Right** is at most {tolerance}. Rounding in float32 gives 1e-6 to 5e-5 here. transformers' own decoding of zamba2
and nemotron_h departs from its own forward by up to 5e-4: one of the two bounds time steps from below, the other does
not. A wrong mask or position, or a forgotten dropout, gives 3e-2 or more. In bfloat16, right is at most twice the
difference that rounding to bfloat16 makes in transformers itself, or {floor}: the order of a sum differs between a row
alone and a row in a batch, and a router may choose another expert by it. It is 0 where the architecture does not use
PyTorch's fused attention, whose rounding depends on the length of the batch.

**Refused** is what a run refuses when it opens the model, before anything is generated, with a message that names the
architecture.
"""


def document(results: dict[str, dict[str, Cell]], seconds: float) -> str:
    """The page: how to read it, the table, and the reasons of what is refused or wrong."""
    verdicts = {name: verdict(cells) for name, cells in results.items()}
    counts = {word: list(verdicts.values()).count(word) for word in ("right", "refused", "wrong")}
    kinds = len({name.split()[0] for name in results})
    lines = [
        HEAD.format(
            date=datetime.date.today(),
            python=platform.python_version(),
            torch=torch.__version__.partition("+")[0],
            transformers=transformers.__version__,
            minutes=round(seconds / 60),
            rows=len(results),
            kinds=kinds,
            tolerance=TOLERANCE,
            floor=FLOOR_BFLOAT16,
            **counts,
        )
    ]
    lines += [
        f"| architecture | {' | '.join(TITLES.get(path, path) for path in PATHS)} | |",
        "|---" * (len(PATHS) + 2) + "|",
    ]
    for name, cells in results.items():
        shown = " | ".join(str(cells.get(path, Cell())) for path in PATHS)
        lines.append(f"| {name} | {shown} | {verdicts[name]} |")
    for word, title in (("refused", "Refused, and why"), ("wrong", "Wrong, and why")):
        reasons = [
            f"- **{name}**{'' if path == 'load' else f' ({TITLES.get(path, path)})'}: {shortened(cell.reason)}"
            for name, cells in results.items()
            for path, cell in cells.items()
            if verdicts[name] == word and cell.reason
        ]
        if reasons:
            lines += ["", f"## {title}", "", *reasons]
    return "\n".join(lines) + "\n"


def shortened(text: str, length: int = 200) -> str:
    line = " ".join(text.split()).replace("|", "/")
    return line if len(line) <= length else line[: length - 1] + "…"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows, or model types; no page is written then")
    parser.add_argument("--output", type=Path, default=Path("docs/compatibility.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    set_verbosity_error()
    warnings.simplefilter("ignore")  # of transformers, about each architecture's history
    only = options.only or [*ARCHITECTURES]
    names = [name for name in ARCHITECTURES if name in only or name.split()[0] in only]
    if unknown := set(only) - {*names, *(name.split()[0] for name in names)}:
        parser.error(
            f"no row or model type of the name {', '.join(sorted(unknown))}; there are {', '.join(ARCHITECTURES)}"
        )
    results: dict[str, dict[str, Cell]] = {}
    for name in names:
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            results[name] = cells = measure(name, Path(folder))
        shown = " ".join(f"{path} {cell}" for path, cell in cells.items() if path != "load")
        print(f"{verdict(cells):7} {name:34} {time.process_time() - began:4.1f} s  {shown}", flush=True)
        for path, cell in cells.items():
            if cell.reason:
                print(f"        {path}: {shortened(cell.reason, 300)}", flush=True)
    if not options.only:
        options.output.write_text(document(results, time.process_time()))
    sys.exit(any(verdict(cells) == "wrong" for cells in results.values()))


if __name__ == "__main__":
    main()

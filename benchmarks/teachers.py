"""What N teachers cost: time and peak memory of one MOPD step with 1, 2, 4, 8 teachers, the same rows in total.

    OMP_NUM_THREADS=1 python benchmarks/teachers.py [--teachers 1 2 4 8] [--rows 128] [--hidden 256] [--layers 6]
        [--estimator sampled] [--repeats 5] [--steps 4]

A step rolls out `rows` answers of the local engine (one per prompt, domains in turn), scores them by their domain's
teacher, and updates. Each N runs in a fresh process, so that its peak (VmHWM) is its own; the repeats of all N take
turns, so that a busy machine hits them alike. Times are medians over the steps, the first left out, then over repeats.
Teachers are float32 checkpoints of the student's architecture. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from transformers.utils.logging import disable_progress_bar

from onepolicy.config import DistillConfig, LossConfig, ModelConfig, OptimConfig, ScratchConfig
from onepolicy.engines.base import Sampling
from onepolicy.engines.local import LocalEngine
from onepolicy.engines.text import Renderer
from onepolicy.learner import Learner
from onepolicy.models import save_model
from onepolicy.teachers import Shelf, open_teachers, wanted
from onepolicy.tiny import from_scratch
from onepolicy.types import Task, Weights

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789:+"


def scratch(hidden: int, layers: int) -> ScratchConfig:
    shape = {"model_type": "qwen3", "hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": hidden // 4, "tie_word_embeddings": True}
    return ScratchConfig(architecture=shape | heads, alphabet=ALPHABET)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the parts of a step (medians), and the peak in MB."""
    (count,) = options.teachers
    model, tokenizer = from_scratch(scratch(options.hidden, options.layers), 0)
    loss = LossConfig(distill=DistillConfig(estimator=options.estimator))
    learner = Learner(model, tokenizer, OptimConfig(), loss)
    engine = LocalEngine(model, Renderer(tokenizer, model.generation_config))
    names = [f"teacher-{i}" for i in range(count)]
    shelf = Shelf(
        device=learner.device,
        temperature=1.0,
        tokens_per_batch=learner.optim.tokens_per_batch,
        vocabulary=learner.head.vocabulary,
        spool=folder / "spool",
    )
    teachers = open_teachers(
        {name: ModelConfig(path=str(folder / name)) for name in names}, {name: name for name in names}, shelf
    )
    chats = [({"role": "user", "content": ALPHABET[i % 20 : i % 20 + 8]},) for i in range(options.rows)]
    tasks = [Task(str(i), names[i % count], chat) for i, chat in enumerate(chats)]
    marks = []
    for step in range(options.steps + 1):
        marks.append([time.perf_counter()])
        samples = list(engine.generate(tasks, 1, Sampling(max_new_tokens=options.tokens), seed=step))
        marks[-1].append(time.perf_counter())
        for sample, scores in zip(samples, teachers.score(samples, wanted(loss.distill)), strict=True):
            sample.teacher, sample.weights = scores, Weights(distill=1.0)
        marks[-1].append(time.perf_counter())
        learner.step(samples)
        marks[-1].append(time.perf_counter())
    status = Path("/proc/self/status").read_text().splitlines()
    peak = int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024
    spans = [[after - before for before, after in pairwise(mark)] for mark in marks[1:]]
    rollout, score, update = (median(part) for part in zip(*spans, strict=True))
    whole = median(mark[-1] - mark[0] for mark in marks[1:])
    return {"rollout": rollout, "score": score, "update": update, "step": whole, "peak": peak}


def in_fresh_process(count: int, folder: Path) -> dict[str, float]:
    command = [sys.executable, *sys.argv, "--measure", str(folder), "--teachers", str(count)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, float] = json.loads(result.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", type=int, nargs="+", default=[1, 2, 4, 8], help="the first is the reference")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=32, help="longest answer")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--estimator", default="sampled", choices=("sampled", "topk", "full"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps in each repeat")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    if options.measure:
        print(json.dumps(measure(options.measure, options)))
        return

    with tempfile.TemporaryDirectory() as folder:
        for i in range(max(options.teachers)):
            model, tokenizer = from_scratch(scratch(options.hidden, options.layers), i + 1)
            save_model(model, tokenizer, Path(folder) / f"teacher-{i}")
        size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        found: dict[int, list[dict[str, float]]] = {count: [] for count in options.teachers}
        for _ in range(options.repeats):
            for count in options.teachers:
                found[count].append(in_fresh_process(count, Path(folder)))
    middle = {count: {key: median(run[key] for run in runs) for key in runs[0]} for count, runs in found.items()}
    first = middle[options.teachers[0]]
    print(f"{size:.1f}M parameters a model, {options.rows} rows a step, {options.estimator}\n")
    print("teachers  rollout s  score s  update s  step s  ratio  peak MB  ratio")
    for count, row in middle.items():
        print(
            f"{count:8} {row['rollout']:10.3f} {row['score']:8.3f} {row['update']:9.3f} {row['step']:7.3f}"
            f"{row['step'] / first['step']:7.2f} {row['peak']:8.0f} {row['peak'] / first['peak']:6.2f}"
        )


if __name__ == "__main__":
    main()

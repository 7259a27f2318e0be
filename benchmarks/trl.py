"""Seconds a step: our recipes against TRL's trainers, on the same model, rows and lengths, interleaved in one process.

    .venv-trl/bin/python benchmarks/trl.py [--only rlvr] [--lengths tail] [--repeats 12]

TRL in an environment of its own: `pip install -c constraints.txt -e '.[trl]'`. What is compared:

    rlvr  16 prompts × 8: GRPO, one update            mopd  128 prompts × 1: reverse KL to one teacher, one update
    equal 5 tokens an answer                          tail  4 to 256 tokens, log-normal around a median of 25

Qwen3 of 0.8M parameters, float32, one thread, prompts of 12 tokens, equal for both sides, as are tasks, grader, AdamW
and clipping. A step is everything from drawing prompts to the optimizer: writing, grading, scoring, update; ours logs
too, TRL does not. Lengths are forced, the same for both: ours by a limit per row, TRL's by a hook that draws the end
token; both must report the same number of tokens. TRL runs without vLLM and without gradient checkpointing, in one
micro-batch (smaller ones were slower). It has no sampled form of distillation: both of ours stand against its full.
Our grading process may use another core; pinned to one core, the ratios were the same.

Who wins, and why. In the tail ours does, clearly: finished rows leave the batch and its cache, and rows of similar
length train together, while TRL carries 128 rows to the 256th token and trains on the padded rectangle, 5.2 times the
tokens. (With transformers' continuous batching, at its defaults, TRL wrote about 3 times slower still.) At equal
lengths both spend their time in the same matrix products: a group's prompt, read once instead of once an answer, is
what is left to win (rlvr); with one answer a prompt it is a tie (mopd, where ours also grades and TRL does not).
"""

# ruff: noqa: E402 (the path must be mended before anything imports trl)

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

# This file is called trl.py as well, and its folder comes first on the path: `import trl` would find it.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")  # read when torch and huggingface_hub are imported

import numpy as np
import torch
import transformers
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback

from onepolicy.config import MopdConfig, RlvrConfig, ScratchConfig
from onepolicy.engines.local import LocalEngine, Row
from onepolicy.models import save_model
from onepolicy.recipes.rlvr import draw_groups
from onepolicy.rollout import annotate_advantages, learn
from onepolicy.session import Session
from onepolicy.tasks.letters import ALPHABET
from onepolicy.tasks.mixture import Mixture
from onepolicy.teachers import wanted
from onepolicy.tiny import from_scratch
from onepolicy.types import Sample, Task, Weights

ROWS, GROUP, LONGEST = 128, 8, 256
DOMAIN = "reverse"
TASKS = {"kind": "letters", "task": "reverse", "min_length": 6, "max_length": 6, "partial": True}
ARCHITECTURE = {
    "model_type": "qwen3", "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
}  # fmt: skip
LEARNING_RATE = 1e-5


@dataclass
class Side:
    """One contestant: seconds of each timed step and of its phases, and the tokens that a step trains on."""

    name: str
    seconds: list[float] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=dict)
    tokens: int = 0
    step: Callable[[], None] = lambda: None

    def lap(self, phase: str, start: float) -> float:
        """Book the time since `start` on a phase; the time now."""
        now = time.perf_counter()
        self.phases.setdefault(phase, []).append(now - start)
        return now


def run_config(kind: str, folder: Path, output: str, estimator: str) -> RlvrConfig | MopdConfig:
    common = {
        "output": folder / output,
        "model": str(folder / "student"),
        "domains": {DOMAIN: {"tasks": TASKS}},
        "steps": 10**6,
        "optim": {"learning_rate": LEARNING_RATE},
        "checkpoint": {"every": 10**6},
        "device": "cpu",
    }
    if kind == "rlvr":
        return RlvrConfig.model_validate({**common, "rollout": {"prompts": ROWS // GROUP, "n": GROUP}})
    teachers = {"teacher": {"model": str(folder / "teacher"), "domains": [DOMAIN]}}
    more = {"rollout": {"prompts": ROWS}, "teachers": teachers, "loss": {"distill": {"estimator": estimator}}}
    return MopdConfig.model_validate({**common, **more})


# -- ours --------------------------------------------------------------------------------------------------------------


class ForcedEngine(LocalEngine):
    """Answers of given lengths: row i of group g ends after lengths[g · n + i] tokens, and nothing else ends it."""

    def __init__(self, engine: LocalEngine, lengths: Sequence[int]) -> None:
        super().__init__(engine.model, engine.renderer, engine.batch_size)
        self.renderer.stop_ids = frozenset()
        self.lengths = lengths

    def _rows(self, task: Task, group: int, n: int, *rest: Any) -> list[Row]:
        rows = super()._rows(task, group, n, *rest)
        for row in rows:
            row.limit = self.lengths[group * n + row.index]
        return rows


def ours(name: str, config: RlvrConfig | MopdConfig, lengths: Sequence[int], stack: ExitStack) -> Side:
    """One pass of the loop in recipes/rlvr.py or recipes/mopd.py a step, with a stopwatch between its lines."""
    session = stack.enter_context(Session(config, config.loss))
    session.policy.engine = ForcedEngine(session.policy.engine, lengths)
    side, steps, want = Side(name), session.steps(), wanted(config.loss.distill)
    if isinstance(config, MopdConfig):
        teachers = session.frozen({name: t.model for name, t in config.teachers.items()}, config.routes)

    def write(step: int) -> list[Sample]:
        if isinstance(config, RlvrConfig):
            return draw_groups(session, config, step)
        return session.rollout(session.mixture.draw(config.rollout.prompts), config.rollout.n, step)

    def step() -> None:
        number, now = next(steps), time.perf_counter()
        samples = write(number)
        now = side.lap("write", now)
        if isinstance(config, MopdConfig):
            for sample, scores in zip(samples, teachers.score(samples, want), strict=True):
                sample.teacher, sample.weights = scores, Weights(distill=1.0)
            now = side.lap("score", now)
        else:
            for sample in samples:
                sample.weights = Weights(pg=1.0)
        annotate_advantages(samples, config.advantage)
        metrics = learn(session.learner, samples, config.inner_updates)
        side.lap("update", now)
        session.log(number, samples, metrics)
        side.tokens = sum(sample.length for sample in samples)
        assert metrics["skipped"] == 0 and metrics["grad_norm"] > 0, f"nothing was learnt: {metrics}"

    side.step = step
    return side


# -- TRL ---------------------------------------------------------------------------------------------------------------


class ForcedEnd:
    """A forward hook: row i draws the end token as its lengths[i]-th and never before. Silent outside generation."""

    def __init__(self, lengths: Sequence[int], prompt: int, end: int) -> None:
        self.prompt, self.end = prompt, end
        self.end_logits_TB = torch.where(torch.arange(max(lengths))[:, None] + 1 == torch.tensor(lengths), 1e9, -1e9)

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if not torch.is_grad_enabled() and kwargs.get("past_key_values") is not None:
            written = kwargs["past_key_values"].get_seq_length() - self.prompt
            output.logits[:, -1, self.end] = self.end_logits_TB[written]


class Interleave(TrainerCallback):
    """Times every whole turn of Trainer's loop, and lets the others take a step between two of them."""

    def __init__(self, theirs: Side, others: Sequence[Side], warmup: int) -> None:
        self.theirs, self.others, self.warmup = theirs, others, warmup
        self.start = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.theirs.seconds.append(time.perf_counter() - self.start)
        turn = state.global_step % len(self.others)  # so that none always comes right after TRL
        for side in (*self.others[turn:], *self.others[:turn]):
            start = time.perf_counter()
            side.step()
            side.seconds.append(time.perf_counter() - start)
        if state.global_step <= self.warmup:
            for side in (self.theirs, *self.others):
                side.seconds.clear()
                side.phases.clear()
        self.start = time.perf_counter()


def timed(trainer_class: type, side: Side) -> type:
    """The trainer with a stopwatch around writing and grading, and the tokens counted."""

    class Timed(trainer_class):  # type: ignore[misc,valid-type]
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            start = time.perf_counter()
            output = super()._generate_and_score_completions(inputs)
            side.lap("write", start)
            side.tokens = int(output["completion_mask"].sum())
            return output

    return Timed


def race_trl(kind: str, folder: Path, lengths: Sequence[int], others: Sequence[Side], warmup: int, steps: int) -> Side:
    """Train with TRL on the tasks that ours draws, in the same order, with the others' steps in between."""
    config = run_config(kind, folder, "unused", "full")
    model = AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "student", padding_side="left")
    mixture = Mixture(config.domains, config.seed)
    tasks = mixture.draw(config.rollout.prompts * (warmup + steps))
    rows = [{"prompt": [dict(message) for message in task.messages], "row": i} for i, task in enumerate(tasks)]

    def reward(completions: Any, row: list[int], **_: Any) -> list[float]:
        grade = mixture.domains[DOMAIN].source.grade
        return [grade(tasks[i], turns[0]["content"]).reward for i, turns in zip(row, completions, strict=True)]

    prompt = len(tokenizer.apply_chat_template(rows[0]["prompt"], add_generation_prompt=True)["input_ids"])
    model.register_forward_hook(ForcedEnd(lengths, prompt, tokenizer.eos_token_id), with_kwargs=True)
    side = Side("TRL")
    common: dict[str, Any] = {
        "output_dir": str(folder / "trl"),
        "max_steps": warmup + steps,
        "per_device_train_batch_size": ROWS,
        "max_completion_length": LONGEST,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "max_grad_norm": config.optim.clip_norm,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "shuffle_dataset": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    parts = {"model": model, "processing_class": tokenizer, "train_dataset": Dataset.from_list(rows)}
    if kind == "rlvr":
        args = trl.GRPOConfig(**common, num_generations=GROUP, loss_type="grpo", beta=0.0, epsilon_high=0.28)
        trainer = timed(trl.GRPOTrainer, side)(**parts, args=args, reward_funcs=reward)
    else:
        teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher", dtype=torch.float32)
        args = trl.DistillationConfig(**common, beta=1.0)  # 1 is the reverse KL; always over the whole vocabulary
        trainer = timed(trl.DistillationTrainer, side)(**parts, args=args, teacher_model=teacher)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Interleave(side, others, warmup))
    trainer.train()
    updates = [total - write for total, write in zip(side.seconds, side.phases["write"], strict=True)]
    side.phases["score+update" if kind == "mopd" else "update"] = updates  # TRL's teacher works inside the loss
    return side


# -- the comparison ----------------------------------------------------------------------------------------------------


def long_tail(rows: int) -> list[int]:
    """Log-normal around 25, between 4 and 256, one quantile a row, shuffled: the same lengths in every step."""
    quantiles = [np.exp(NormalDist(np.log(25), 1.0).inv_cdf((i + 0.5) / rows)) for i in range(rows)]
    lengths = np.clip(np.round(quantiles), 4, LONGEST).astype(int)
    return np.random.default_rng(0).permutation(lengths).tolist()


def compare(kind: str, label: str, lengths: list[int], folder: Path, repeats: int) -> None:
    estimators = ("sampled", "full") if kind == "mopd" else ("",)
    with ExitStack() as stack:
        sides = [
            ours(
                f"ours {estimator}", run_config(kind, folder, f"{kind}-{label}-{estimator}", estimator), lengths, stack
            )
            for estimator in estimators
        ]
        theirs = race_trl(kind, folder, lengths, sides, warmup=2 if label == "equal" else 1, steps=repeats)
    for side in (theirs, *sides):
        ratios = [a / b for a, b in zip(theirs.seconds, side.seconds, strict=True)]
        phases = "  ".join(f"{name} {median(seconds):.3f}" for name, seconds in side.phases.items())
        spread = f"{median(ratios):5.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"
        row = f"{kind:5} {label:6} {side.name:13}{side.tokens:7d}{median(side.seconds):8.3f}  {spread:18}  {phases}"
        print(row, flush=True)
    assert len({side.tokens for side in (theirs, *sides)}) == 1, "the sides did not train on the same number of tokens"


def keep_memory() -> None:
    """Let malloc keep what it has. Else large tensors cost page faults, TRL's more than ours, until some history of
    allocations has raised its threshold: the ratios would depend on what ran before. Without glibc, so they do.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["rlvr", "mopd"], help="one of the two recipes")
    parser.add_argument("--lengths", choices=["equal", "tail"], help="one of the two kinds of lengths")
    parser.add_argument("--repeats", type=int, default=12, help="timed steps at equal lengths; a quarter in the tail")
    args = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    jobs = {"equal": ([5] * ROWS, args.repeats), "tail": (long_tail(ROWS), max(3, args.repeats // 4))}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed, who in enumerate(("student", "teacher")):
            model, tokenizer = from_scratch(ScratchConfig(architecture=ARCHITECTURE, alphabet=ALPHABET), seed)
            save_model(model, tokenizer, folder / who)
        versions = f"torch {torch.__version__}, transformers {transformers.__version__}, TRL {trl.__version__}"
        print(f"{versions}, 1 thread, {model.num_parameters() / 1e6:.2f}M parameters, {ROWS} rows a step")
        print(
            "recipe lengths side     tokens   s/step  TRL ÷ this          s/phase      (medians; ratios step by step)"
        )
        for kind in ("rlvr", "mopd"):
            for label, (lengths, repeats) in jobs.items():
                if args.only in (None, kind) and args.lengths in (None, label):
                    compare(kind, label, lengths, folder, repeats)


if __name__ == "__main__":
    main()

"""Seconds a step: our recipes against TRL's trainers, on the same model, rows and lengths, interleaved in one process.

    OMP_NUM_THREADS=1 .venv-trl/bin/python benchmarks/trl.py [--repeats 9] [--only rlvr] [--profile]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

# This file is called trl.py as well, and its folder comes first on the path: `import trl` would find it.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

import numpy as np
import torch
import transformers
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from onepolicy.config import MopdConfig, RlvrConfig, RunConfig, ScratchConfig
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

ROWS, GROUP = 128, 8
ARCHITECTURE = {
    "model_type": "qwen3", "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
}  # fmt: skip
LEARNING_RATE = 1e-5


@dataclass
class Side:
    """One contestant: seconds of each timed step, seconds of its phases, tokens it trained on."""

    name: str
    step: Callable[[], None] | None = None
    seconds: list[float] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=dict)
    tokens: int = 0

    def add_phase(self, name: str, start: float) -> float:
        now = time.perf_counter()
        self.phases.setdefault(name, []).append(now - start)
        return now


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


def ours(name: str, config: RunConfig, lengths: Sequence[int], stack: ExitStack) -> Side:
    """The body of the recipe, as in recipes/rlvr.py and recipes/mopd.py, one step a call."""
    session = stack.enter_context(Session(config, config.loss))
    session.engine = ForcedEngine(session.engine, lengths)
    side, steps = Side(name), session.steps()
    if isinstance(config, MopdConfig):
        teachers = session.frozen({"teacher": config.teachers["teacher"].model}, config.routes)
        want = wanted(config.loss.distill)

    def write(step: int) -> list[Sample]:
        if isinstance(config, RlvrConfig):
            return draw_groups(session, config, step)
        return session.rollout(session.mixture.draw(config.rollout.prompts), config.rollout.n, step)

    def step() -> None:
        number, now = next(steps), time.perf_counter()
        samples = write(number)
        now = side.add_phase("write", now)
        annotate_advantages(samples, config.advantage)
        if isinstance(config, MopdConfig):
            for sample, scores in zip(samples, teachers.score(samples, want), strict=True):
                sample.teacher = scores
                sample.weights = Weights(distill=1.0)
            now = side.add_phase("score", now)
        else:
            for sample in samples:
                sample.weights = Weights(pg=1.0)
        metrics = learn(session.learner, samples, 1)
        now = side.add_phase("update", now)
        session.log(number, samples, metrics)
        side.tokens = sum(sample.length for sample in samples)
        assert metrics["skipped"] == 0 and metrics["grad_norm"] > 0, metrics

    side.step = step
    return side


def run_config(kind: str, folder: Path, output: str, **more: Any) -> RunConfig:
    groups = {"prompts": ROWS // GROUP, "n": GROUP} if kind == "rlvr" else {"prompts": ROWS, "n": 1}
    config = {
        "output": folder / output,
        "model": str(folder / "student"),
        "domains": DOMAINS,
        "steps": 10**6,
        "rollout": {**groups, "max_new_tokens": 256},
        "optim": {"learning_rate": LEARNING_RATE},
        "checkpoint": {"every": 10**6},
        "device": "cpu",
        **more,
    }
    return (RlvrConfig if kind == "rlvr" else MopdConfig).model_validate(config)


DOMAINS = {"reverse": {"tasks": {"kind": "letters", "task": "reverse", "min_length": 6, "max_length": 6, "partial": True}}}


# -- TRL ---------------------------------------------------------------------------------------------------------------


class ForcedEnd:
    """A forward hook: row i draws the end token as its lengths[i]-th and never before. Silent outside generation."""

    def __init__(self, lengths: Sequence[int], prompt: int, end: int) -> None:
        self.prompt, self.end = prompt, end
        self.ends_TB = torch.where(torch.arange(max(lengths))[:, None] + 1 == torch.tensor(lengths), 1e9, -1e9)

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if not torch.is_grad_enabled() and kwargs.get("past_key_values") is not None:
            written = kwargs["past_key_values"].get_seq_length() - self.prompt
            output.logits[:, -1, self.end] = self.ends_TB[written]


class Interleave(TrainerCallback):
    """Times each whole pass of Trainer's loop, and lets the others take a step between two of them."""

    def __init__(self, theirs: Side, others: Sequence[Side], warmup: int) -> None:
        self.theirs, self.others, self.warmup = theirs, others, warmup
        self.start = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        spent = [time.perf_counter() - self.start]
        for side in self.others:
            start = time.perf_counter()
            assert side.step is not None
            side.step()
            spent.append(time.perf_counter() - start)
        for side, seconds in zip([self.theirs, *self.others], spent, strict=True):
            if state.global_step > self.warmup:
                side.seconds.append(seconds)
            else:
                side.phases.clear()
        self.start = time.perf_counter()


def timed(trainer_class: type, side: Side) -> type:
    """The trainer with two stopwatches: what is not writing is the update (TRL scores the teacher inside the loss)."""

    class Timed(trainer_class):  # type: ignore[misc,valid-type]
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            start = time.perf_counter()
            output = super()._generate_and_score_completions(inputs)
            side.add_phase("write", start)
            side.tokens = int(output["completion_mask"].sum())
            return output

    return Timed


def theirs(
    kind: str, folder: Path, lengths: Sequence[int], others: Sequence[Side], warmup: int, repeats: int, micro: int
) -> tuple[Side, Any]:
    """A trainer ready for `.train()`, on the tasks that ours draws, in the same order."""
    config = run_config(kind, folder, "unused", **TEACHER(folder) if kind == "mopd" else {})
    model = AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "student", padding_side="left")
    mixture = Mixture(config.domains, config.seed)
    steps = warmup + repeats
    tasks = mixture.draw(config.rollout.prompts * steps)
    rows = [{"prompt": [dict(m) for m in task.messages], "row": i} for i, task in enumerate(tasks)]
    source = mixture.domains["reverse"].source

    def reward(completions: Any, row: list[int], **_: Any) -> list[float]:
        return [source.grade(tasks[i], text[0]["content"]).reward for i, text in zip(row, completions, strict=True)]

    prompt = len(tokenizer.apply_chat_template(rows[0]["prompt"], add_generation_prompt=True)["input_ids"])
    model.register_forward_hook(ForcedEnd(lengths, prompt, tokenizer.eos_token_id), with_kwargs=True)
    side = Side("TRL")
    common = {
        "output_dir": str(folder / "trl"),
        "max_steps": steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": ROWS // micro,
        "max_completion_length": 256,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "shuffle_dataset": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    callbacks = [Interleave(side, others, warmup)]
    both = {"model": model, "processing_class": tokenizer, "train_dataset": Dataset.from_list(rows), "callbacks": callbacks}
    if kind == "rlvr":
        args = trl.GRPOConfig(**common, num_generations=GROUP, loss_type="grpo", beta=0.0, epsilon_high=0.28)
        trainer = timed(trl.GRPOTrainer, side)(reward_funcs=reward, args=args, **both)
    else:
        teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher", dtype=torch.float32)
        args = trl.DistillationConfig(**common, beta=1.0)  # 1: reverse KL, over the whole vocabulary
        trainer = timed(trl.DistillationTrainer, side)(teacher_model=teacher, args=args, **both)
    return side, trainer


def TEACHER(folder: Path) -> dict[str, Any]:
    return {"teachers": {"teacher": {"model": str(folder / "teacher"), "domains": ["reverse"]}}}


# -- the comparison ----------------------------------------------------------------------------------------------------


def long_tail(rows: int, seed: int) -> list[int]:
    """Log-normal around a median of 25, between 4 and 256, shuffled: the same multiset in every step."""
    z = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(rows) + 0.5) / rows).numpy()
    lengths = np.clip(np.exp(np.log(25) + z), 4, 256).round().astype(int)
    lengths[lengths.argmax()] = 256
    return np.random.default_rng(seed).permutation(lengths).tolist()


def compare(kind: str, label: str, lengths: list[int], folder: Path, args: argparse.Namespace) -> None:
    with ExitStack() as stack:
        if kind == "rlvr":
            sides = [ours("ours", run_config(kind, folder, f"{kind}-{label}"), lengths, stack)]
        else:
            sides = [
                ours(
                    f"ours, {estimator}",
                    run_config(
                        kind, folder, f"{kind}-{label}-{estimator}", **TEACHER(folder),
                        loss={"distill": {"estimator": estimator}},
                    ),
                    lengths,
                    stack,
                )
                for estimator in ("sampled", "full")
            ]  # fmt: skip
        repeats = args.repeats if label == "equal" else max(3, args.repeats // 3)
        their, trainer = theirs(kind, folder, lengths, sides, 2, repeats, args.micro)
        trainer.train()
    for side in (their, *sides):
        phases = {name: median(values) for name, values in side.phases.items()}
        if side is their:
            phases["update"] = median(side.seconds) - phases["write"]
        shown = "  ".join(f"{name} {seconds:.3f}" for name, seconds in phases.items())
        ratios = [a / b for a, b in zip(their.seconds, side.seconds, strict=True)]
        print(
            f"{kind:5} {label:6} {side.name:14} {side.tokens:6d} {median(side.seconds):8.3f}"
            f" {median(ratios):6.2f} [{min(ratios):.2f}-{max(ratios):.2f}]   {shown}",
            flush=True,
        )
    assert len({side.tokens for side in (their, *sides)}) == 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", choices=["rlvr", "mopd"])
    parser.add_argument("--label", choices=["equal", "tail"])
    parser.add_argument("--micro", type=int, default=ROWS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed, who in enumerate(("student", "teacher")):
            model, tokenizer = from_scratch(ScratchConfig(architecture=ARCHITECTURE, alphabet=ALPHABET), seed)
            save_model(model, tokenizer, folder / who)
        print(f"torch {torch.__version__}, transformers {transformers.__version__}, TRL {trl.__version__}, 1 thread; "
              f"{model.num_parameters() / 1e6:.2f}M parameters")
        for kind in ("rlvr", "mopd"):
            for label, lengths in (("equal", [5] * ROWS), ("tail", long_tail(ROWS, args.seed))):
                if args.only in (None, kind) and args.label in (None, label):
                    compare(kind, label, lengths, folder, args)


if __name__ == "__main__":
    main()

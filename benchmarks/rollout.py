"""Tokens per second of LocalEngine against `model.generate`, on the same job, in the same run.

    OMP_NUM_THREADS=1 python benchmarks/rollout.py [--hidden 128] [--batch-size 64] [--repeats 5]

Two jobs on a model from nothing: (a) groups of 8 whose answers have all the same length, (b) one answer per prompt,
lengths with a long tail between 4 and 256 (log-uniform). Lengths are forced, the same for both: ours by a limit per
domain, generate by a per-row stopping criterion; a hook keeps the end token from being drawn.
Generate samples from the same distribution, but is not asked for log-probabilities, which ours always returns.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
import transformers
from transformers import StoppingCriteria, StoppingCriteriaList

from onepolicy.config import ScratchConfig
from onepolicy.engines.base import Sampling
from onepolicy.engines.local import LocalEngine
from onepolicy.engines.text import Renderer
from onepolicy.tiny import from_scratch
from onepolicy.types import Task


@dataclass
class Job:
    """`lengths[i]` tokens are written in each of the n answers to tasks[i], whose domain is its own."""

    name: str
    tasks: list[Task]
    lengths: list[int]
    n: int


class StopAt(StoppingCriteria):
    """Ends row i at `lengths_B[i]` tokens, prompt included."""

    def __init__(self, lengths_B: torch.Tensor) -> None:
        self.lengths_B = lengths_B

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return input_ids.shape[1] >= self.lengths_B


def make_jobs(alphabet: str, seed: int) -> list[Job]:
    random = np.random.default_rng(seed)

    def tasks(count: int, shortest: int, longest: int) -> list[Task]:
        sizes = random.integers(shortest, longest + 1, count)
        texts = ["".join(random.choice(list(alphabet), size)) for size in sizes]
        return [Task(str(i), str(i), ({"role": "user", "content": text},)) for i, text in enumerate(texts)]

    long_tail = np.exp(random.uniform(np.log(4), np.log(257), 256)).astype(int).tolist()
    return [
        Job("(a) equal lengths, 32 prompts x 8", tasks(32, 30, 30), [48] * 32, 8),
        Job("(b) 4..256, 256 prompts x 1", tasks(256, 16, 48), long_tail, 1),
    ]


def with_engine(engine: LocalEngine, job: Job) -> int:
    limits = {task.domain: length for task, length in zip(job.tasks, job.lengths, strict=True)}
    sampling = Sampling(max_new_tokens=max(job.lengths), limits=limits)
    return sum(sample.length for sample in engine.generate(job.tasks, job.n, sampling, seed=0))


def with_generate(engine: LocalEngine, job: Job) -> int:
    """Left-padded batches of batch_size rows in the order of the job."""
    model, renderer, written = engine.model.eval(), engine.renderer, 0
    size = engine.batch_size // job.n
    for start in range(0, len(job.tasks), size):
        prompts = [renderer.prompt_ids(task) for task in job.tasks[start : start + size]]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        lengths_B = torch.tensor(job.lengths[start : start + size]).repeat_interleave(job.n)
        model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            num_return_sequences=job.n,
            max_new_tokens=int(lengths_B.max()),
            stopping_criteria=StoppingCriteriaList([StopAt(lengths_B + width)]),
        )
        written += int(lengths_B.sum())
    return written


def speed(write: Callable[[LocalEngine, Job], int], engine: LocalEngine, job: Job) -> float:
    start = time.perf_counter()
    return write(engine, job) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=128, help="hidden size; 4 layers")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)

    hidden = args.hidden
    architecture = {
        "model_type": "qwen3", "hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": hidden // 4,
    }  # fmt: skip
    alphabet = "abcdefghijklmnopqrstuvwxyz0123456789 +-*/=?."
    model, tokenizer = from_scratch(ScratchConfig(architecture=architecture, alphabet=alphabet), args.seed)
    end = tokenizer.eos_token_id
    model.lm_head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, torch.tensor([end]), -1e9))
    engine = LocalEngine(model, Renderer(tokenizer, model.generation_config), args.batch_size)

    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {os.cpu_count()} cores, 1 thread")
    print(f"{model.num_parameters() / 1e6:.2f}M parameters, batch {args.batch_size}, seed {args.seed}, tokens/s:")
    print(f"{'job':36}{'generate':>10}{'ours':>10}{'ratio':>8}   median of {args.repeats}, interleaved")
    for job in make_jobs(alphabet, args.seed):
        ours, theirs = [], []
        for repeat in range(args.repeats + 1):
            pair = speed(with_generate, engine, job), speed(with_engine, engine, job)
            if repeat:  # the first round warms up
                theirs.append(pair[0])
                ours.append(pair[1])
        ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
        print(f"{job.name:36}{median(theirs):10.0f}{median(ours):10.0f}{ratio:8.2f}", flush=True)


if __name__ == "__main__":
    main()

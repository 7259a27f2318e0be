"""Tokens per CPU second of LocalEngine against `model.generate`, on the same job, in the same run.

    OMP_NUM_THREADS=1 python benchmarks/rollout.py [--hidden 128] [--batch-size 64] [--repeats 5]

Two jobs on a model from nothing, whose probability to end is set by a hook on its head, so that nobody knows the
lengths in advance: (a) groups of 8, answers of exactly 48 tokens; (b) one answer per prompt, each token the last with
probability 1/60, cut at 256: as spread out as lengths that are log-uniform between 4 and 256.
CPU time of one thread, because other processes disturb it less than they do the clock on the wall.
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

from onepolicy.config import ScratchConfig
from onepolicy.engines.base import Sampling
from onepolicy.engines.local import LocalEngine
from onepolicy.engines.text import Renderer
from onepolicy.tiny import from_scratch
from onepolicy.types import Task

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789 +-*/=?."


@dataclass
class Job:
    """`n` answers to each task, of at most `limit` tokens; each token is the last with probability `end`."""

    name: str
    tasks: list[Task]
    n: int
    limit: int
    end: float


def make_jobs(seed: int) -> list[Job]:
    random = np.random.default_rng(seed)

    def tasks(count: int, shortest: int, longest: int) -> list[Task]:
        sizes = random.integers(shortest, longest + 1, count)
        texts = ["".join(random.choice(list(ALPHABET), size)) for size in sizes]
        return [Task(str(i), "bench", ({"role": "user", "content": text},)) for i, text in enumerate(texts)]

    return [
        Job("(a) 48 tokens, 32 prompts x 8", tasks(32, 30, 30), n=8, limit=48, end=0.0),
        Job("(b) long tail, 256 prompts x 1", tasks(256, 16, 48), n=1, limit=256, end=1 / 60),
    ]


class EndWith:
    """A hook on the head: the end token has `probability`, whatever the model thinks."""

    def __init__(self, end_id: int) -> None:
        self.end_id, self.probability = end_id, 0.0

    def __call__(self, module: object, inputs: object, logits: torch.Tensor) -> torch.Tensor:
        logits[..., self.end_id] = -torch.inf
        odds = torch.tensor(self.probability / (1 - self.probability))
        logits[..., self.end_id] = logits.logsumexp(-1) + odds.log()
        return logits


def with_engine(engine: LocalEngine, job: Job, seed: int) -> int:
    sampling = Sampling(max_new_tokens=job.limit)
    return sum(sample.length for sample in engine.generate(job.tasks, job.n, sampling, seed=seed))


def with_generate(engine: LocalEngine, job: Job, seed: int) -> int:
    """Left-padded batches of batch_size rows in the order of the job."""
    model, renderer, written = engine.model.eval(), engine.renderer, 0
    size = engine.batch_size // job.n
    torch.manual_seed(seed)
    for start in range(0, len(job.tasks), size):
        prompts = [renderer.prompt_ids(task) for task in job.tasks[start : start + size]]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        options = {"do_sample": True, "top_k": 0, "max_new_tokens": job.limit, "num_return_sequences": job.n}
        ended = (model.generate(ids, attention_mask=mask, **options)[:, width:] == renderer.end_id).int()
        written += int((ended.cumsum(-1) - ended == 0).sum())  # up to and with the first end token
    return written


def speed(write: Callable[[LocalEngine, Job, int], int], engine: LocalEngine, job: Job, seed: int) -> float:
    start = time.process_time()
    return write(engine, job, seed) / (time.process_time() - start)


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
    model, tokenizer = from_scratch(ScratchConfig(architecture=architecture, alphabet=ALPHABET), args.seed)
    end_with = EndWith(tokenizer.eos_token_id)
    model.lm_head.register_forward_hook(end_with)
    engine = LocalEngine(model, Renderer(tokenizer, model.generation_config), args.batch_size)

    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {os.cpu_count()} cores, 1 thread")
    print(f"{model.num_parameters() / 1e6:.2f}M parameters, batch {args.batch_size}, seed {args.seed}")
    print(f"{'job':36}{'generate':>10}{'ours':>10}{'ratio':>8}   tokens per CPU second, median of {args.repeats}")
    for job in make_jobs(args.seed):
        end_with.probability = job.end
        ours, theirs = [], []
        for repeat in range(args.repeats + 1):
            pair = speed(with_generate, engine, job, repeat), speed(with_engine, engine, job, repeat)
            if repeat:  # the first round warms up
                theirs.append(pair[0])
                ours.append(pair[1])
        ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
        print(f"{job.name:36}{median(theirs):10.0f}{median(ours):10.0f}{ratio:8.2f}", flush=True)


if __name__ == "__main__":
    main()

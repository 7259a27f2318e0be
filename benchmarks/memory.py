"""Peak memory and time of one full-vocabulary distillation step: ours in chunks, against the plain [T, V] form.

    OMP_NUM_THREADS=1 python benchmarks/memory.py [--tokens 4096] [--vocabulary 151936] [--hidden 256] [--plain 256 512]

Student and teacher are Qwen3 models of two layers. A step is backbone, both heads, reverse KL over the vocabulary,
backward, and AdamW with its two moments. Each form runs in a fresh process; its peak is VmHWM, reset after the weights
are loaded, minus the resident memory at that point, so the gradients (and the moments) are in it and the weights not.
The plain form would not fit this machine at 4,096 tokens: it is measured at the two sizes of `--plain`, and its peak at
`--tokens` is a straight line through them. Times are of a second step, and compared at the larger of the two sizes.
Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from onepolicy.config import DistillConfig, ImportanceConfig, LossConfig, OptimConfig, ScratchConfig
from onepolicy.engines.forward import chunk_length, live_head, predicting_states, score_samples
from onepolicy.learner import Learner
from onepolicy.objectives import divergences
from onepolicy.tiny import from_scratch
from onepolicy.types import Sample, Task, Want, Weights

ROW = 256  # tokens of one response
PROMPT = 8


def memory(field: str) -> float:
    """Megabytes, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def models(vocabulary: int, hidden: int):
    shape = {"model_type": "qwen3", "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": hidden // 4, "tie_word_embeddings": True}
    config = ScratchConfig(architecture={**shape, **heads, "vocab_size": vocabulary}, alphabet="ab")
    return (from_scratch(config, seed) for seed in (0, 1))


def make_samples(tokens: int, vocabulary: int) -> list[Sample]:
    random = np.random.default_rng(0)
    mask_T = np.arange(PROMPT + ROW) >= PROMPT
    task = Task("t", "t", ({"role": "user", "content": "?"},))
    written = np.zeros(ROW, dtype=np.float32)
    ids = [random.integers(0, vocabulary, PROMPT + ROW).astype(np.int32) for _ in range(tokens // ROW)]
    return [Sample(task, ids_T, mask_T, written, weights=Weights(distill=1.0)) for ids_T in ids]


def plain_step(learner: Learner, samples: list[Sample]) -> None:
    """What one writes first: all logits of both models, log_softmax, Σ p (log p - log t)."""
    learner.optimizer.zero_grad(set_to_none=True)
    teacher = samples[0].teacher
    assert teacher is not None
    hidden_NH, _ = predicting_states(learner.model, samples)
    logprobs_NV = torch.log_softmax(learner.head.logits(hidden_NH), dim=-1)
    with torch.no_grad():
        theirs_NH = torch.from_numpy(np.concatenate([s.teacher.hidden_RH for s in samples if s.teacher]))
        teacher_NV = torch.log_softmax(teacher.head.logits(theirs_NH), dim=-1)
    divergences.reverse_kl(logprobs_NV, teacher_NV).mean().backward()
    torch.nn.utils.clip_grad_norm_(learner.parameters, 1.0)
    learner.optimizer.step()


def measure(form: str, tokens: int, vocabulary: int, hidden: int) -> dict[str, float]:
    (model, tokenizer), (teacher, _) = models(vocabulary, hidden)
    samples = make_samples(tokens, vocabulary)
    scores = score_samples(
        teacher, live_head(teacher), samples, Want("full"), source="t", temperature=1.0, tokens_per_batch=1024
    )
    for sample, score in zip(samples, scores, strict=True):
        sample.teacher = score
    loss = LossConfig(distill=DistillConfig(estimator="full"), importance=ImportanceConfig(mode="off"))
    learner = Learner(model, tokenizer, OptimConfig(), loss)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew: the loading is not what is measured
    before = memory("VmRSS")
    for _ in range(2):
        start = time.perf_counter()
        learner.step(samples) if form == "chunked" else plain_step(learner, samples)
    return {"mb": memory("VmHWM") - before, "seconds": time.perf_counter() - start}


def in_fresh_process(form: str, tokens: int, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", form, "--tokens", str(tokens)]
    command += ["--vocabulary", str(options.vocabulary), "--hidden", str(options.hidden)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    measured: dict[str, float] = json.loads(result.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help=f"a multiple of {ROW}")
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--plain", type=int, nargs=2, default=(256, 512), help="sizes at which the plain form is run")
    parser.add_argument("--measure", choices=("chunked", "plain"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        print(json.dumps(measure(options.measure, options.tokens, options.vocabulary, options.hidden)))
        return

    weights = options.vocabulary * options.hidden * 4 / 2**20
    chunk = chunk_length(options.vocabulary, torch.device("cpu"))
    print(f"vocabulary {options.vocabulary}, hidden {options.hidden}, chunks of {chunk} tokens")
    print(f"a head's weights are {weights:.0f} MB; gradient and two moments of the student's are in the peaks\n")
    print(f"{'form':10} {'tokens':>7} {'peak MB':>9} {'ms/token':>9}")

    def row(form: str, tokens: int) -> dict[str, float]:
        found = in_fresh_process(form, tokens, options)
        print(f"{form:10} {tokens:7} {found['mb']:9.0f} {1000 * found['seconds'] / tokens:9.2f}", flush=True)
        return found

    ours = row("chunked", options.tokens)
    ours_large = row("chunked", options.plain[1])
    small, large = (row("plain", tokens) for tokens in options.plain)
    steps = (options.tokens - options.plain[1]) / (options.plain[1] - options.plain[0])
    mb = large["mb"] + steps * (large["mb"] - small["mb"])
    print(f"{'plain':10} {options.tokens:7} {mb:9.0f}   (extrapolated)\n")
    print(f"peak at {options.tokens} tokens: {ours['mb'] / mb:.3f} × the plain form's")
    print(f"time at {options.plain[1]} tokens: {ours_large['seconds'] / large['seconds']:.2f} × the plain form's")


if __name__ == "__main__":
    main()

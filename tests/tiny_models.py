"""Tiny models of every kind that the tests run on, and samples to go with them. Random weights, so few surprises."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from onepolicy.config import ScratchConfig
from onepolicy.tiny import from_scratch
from onepolicy.types import Sample, Task

torch.set_num_threads(1)  # tiny models gain nothing from more, and lose much where cores are shared

ALPHABET = "abcdefghijklmnopqrst0123456789 ?"
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
KINDS: dict[str, dict[str, Any]] = {
    "qwen3": SMALL | {"model_type": "qwen3", "tie_word_embeddings": True},
    "llama": SMALL | {"model_type": "llama", "tie_word_embeddings": False},
    "gemma2": SMALL
    | {"model_type": "gemma2", "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0, "sliding_window": 8},
    "gemma3_text": SMALL | {"model_type": "gemma3_text", "sliding_window": 8},
    "qwen3_moe": SMALL
    | {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "mixtral": SMALL
    | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "phi3": SMALL  # LongRoPE: rows of more than 16 tokens have other frequencies than shorter ones
    | {
        "model_type": "phi3",
        "original_max_position_embeddings": 16,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.5, 3.0, 6.0, 12.0],
            "original_max_position_embeddings": 16,
        },
    },
    "cohere": SMALL | {"model_type": "cohere", "logit_scale": 0.25},
    "granite": SMALL | {"model_type": "granite", "logits_scaling": 4.0},
}


def build(kind: str = "qwen3", seed: int = 0, **changes: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer. Its logits are of some size: a fresh model's are all but equal, and hide mistakes."""
    config = ScratchConfig(architecture=KINDS[kind] | changes, alphabet=ALPHABET)
    model, tokenizer = from_scratch(config, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
    return model.eval(), tokenizer


def store(folder: Path, kind: str = "qwen3", seed: int = 0, **changes: Any) -> Path:
    """The same model as an ordinary checkpoint."""
    model, tokenizer = build(kind, seed, **changes)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def task(domain: str = "math", number: int = 0) -> Task:
    return Task(f"{domain}-{number}", domain, ({"role": "user", "content": "1?"},))


def sample(prompt: int, response: int, *, domain: str = "math", seed: int = 0, vocabulary: int = 38) -> Sample:
    """`prompt` random tokens, then `response` that the policy wrote; its log-probs are those of a uniform policy."""
    ids_T = np.random.default_rng(seed).integers(0, vocabulary, prompt + response).astype(np.int32)
    mask_T = np.arange(prompt + response) >= prompt
    logprobs_R = np.full(response, -np.log(vocabulary), dtype=np.float32)
    return Sample(task(domain, seed), ids_T, mask_T, logprobs_R, group=seed)


def batch(lengths: Sequence[tuple[int, int]], domains: Sequence[str] = ("math", "code")) -> list[Sample]:
    """One sample per (prompt, response), domains in turn."""
    return [
        sample(prompt, response, domain=domains[i % len(domains)], seed=i)
        for i, (prompt, response) in enumerate(lengths)
    ]


MIXED = [(3, 5), (6, 1), (2, 9), (4, 0), (5, 3), (8, 2), (1, 7), (3, 4)]  # lengths, one response empty


def multi_turn() -> Sample:
    """Two turns of the policy around something it did not write."""
    ids_T = np.array([5, 9, 6, 11, 7, 8, 6, 8, 1], dtype=np.int32)
    mask_T = np.array([0, 0, 0, 1, 0, 0, 0, 1, 1], dtype=bool)
    return Sample(task(), ids_T, mask_T, np.zeros(3, dtype=np.float32))


def plain_logprobs(model: PreTrainedModel, sample: Sample, temperature: float = 1.0) -> np.ndarray:
    """What the chunked head must equal: log_softmax of the model's own logits, one row, all of [T, V]."""
    with torch.no_grad():
        logits_TV = model(input_ids=torch.from_numpy(sample.token_ids_T).long()[None]).logits[0].float()
    logprobs_TV = (logits_TV[:-1] / temperature).log_softmax(-1)
    next_T = torch.from_numpy(sample.token_ids_T[1:]).long()
    return logprobs_TV.gather(-1, next_T[:, None])[:, 0].numpy()[sample.mask_T[1:]]

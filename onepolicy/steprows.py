"""A step as rows: what its samples were, by domain, and one of them to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onepolicy.evaluation import prompt_text, transcript
from onepolicy.rewards import graded_rewards
from onepolicy.types import Sample

MAX_REFERENCE = 1000  # characters of a reference that are kept with it: the tests of a program may be megabytes


def spent(samples: Sequence[Sample]) -> tuple[int, int]:
    """Sequences, and tokens that were written in them."""
    return len(samples), sum(sample.length for sample in samples)


def per_domain(samples: Sequence[Sample]) -> dict[str, float]:
    """Reward, length, truncated share and token share of each domain, and the mean reward; rewards of graded samples.

    Of episodes also how many turns they took, and how many tokens of their environment are in them, untrained.
    """
    row: dict[str, float] = {}
    total = sum(sample.length for sample in samples)
    for domain in sorted({sample.task.domain for sample in samples}):
        mine = [sample for sample in samples if sample.task.domain == domain]
        if rewards := graded_rewards(mine):
            row[f"reward/{domain}"] = float(np.mean(rewards))
        lengths = [sample.length for sample in mine]
        row[f"length/{domain}"] = float(np.mean(lengths))
        row[f"truncated/{domain}"] = float(np.mean([sample.finish == "length" for sample in mine]))
        row[f"token_share/{domain}"] = sum(lengths) / max(1, total)
        if any(sample.turns > 1 for sample in mine):
            row[f"turns/{domain}"] = float(np.mean([sample.turns for sample in mine]))
            row[f"observed/{domain}"] = float(np.mean([sample.observed for sample in mine]))
    everything = graded_rewards(samples)
    return row | ({"reward": float(np.mean(everything))} if everything else {})


def readable(sample: Sample, step: int) -> dict[str, Any]:
    return {
        "step": step,
        "domain": sample.task.domain,
        "prompt": prompt_text(sample.task),
        "response": transcript(sample),
        "reward": sample.reward if sample.is_graded else None,
        "reason": sample.reason,
        "finish": sample.finish,
        "reference": "" if sample.task.reference is None else str(sample.task.reference)[:MAX_REFERENCE],
    }

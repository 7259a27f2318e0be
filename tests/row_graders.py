"""Graders of rows. No torch: grading processes import this file."""

from __future__ import annotations

QUESTIONS = [(f"{a}+{b}", str(a + b)) for a in range(1, 5) for b in range(1, 5)]
LISTS = [{"question": [{"role": "user", "content": q}], "answer": a, "level": len(a)} for q, a in QUESTIONS]


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """verl's, from -1 to 1; some reward for a digit, so that groups differ."""
    assert data_source == "sums" and QUESTIONS[extra_info["index"]][1] == ground_truth
    if solution_str == ground_truth:
        return {"score": 1.0, "acc": True}
    return {"score": 0.0 if any(map(str.isdigit, solution_str)) else -1.0, "acc": False}


def same(response, reference, level):
    assert level == len(reference)
    return float(response == reference), f"wants {reference}"

"""From nothing to one policy in minutes on a laptop's CPU: what `onepolicy demo` runs.

    1  origin   supervised finetuning of a 0.8M-parameter model on flawed demonstrations of all domains
    2  experts  reinforcement learning, one domain each, every expert from the origin, two at a time
    3  student  multi-teacher on-policy distillation from the origin, all domains at once

Every stage is an ordinary run folder (`onepolicy run` on its config.yaml does the same); a demo that was killed goes on
where it was.
"""

from __future__ import annotations

import json
import string
import time
from pathlib import Path
from typing import Any

from onepolicy.commands import console, show_report
from onepolicy.config import parse_run
from onepolicy.jobs import Job, run_jobs
from onepolicy.runfolder import write_atomic

PARALLEL = 2  # processes, of one thread each

ARCHITECTURE = {
    "model_type": "qwen3",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "tie_word_embeddings": True,
    "max_position_embeddings": 256,
}
ALPHABET = string.ascii_letters + string.digits + ":+-= '"

# Answers of about 4, 6 and 14 tokens. 60% of the demonstrations have one wrong character, so that reinforcement
# learning has something to win.
DOMAINS: dict[str, dict[str, Any]] = {
    "backward": {
        "tasks": {
            "kind": "reasoning_gym",
            "name": "spell_backward",
            "config": {"min_word_len": 3, "max_word_len": 5},
            "question_regex": r": (\w+)$",
            "binary": True,
            "corrupt": 0.6,
        }
    },
    "sort": {"tasks": {"kind": "letters", "task": "sort", "min_length": 4, "max_length": 6, "corrupt": 0.6}},
    "expand": {"tasks": {"kind": "letters", "task": "expand", "min_length": 3, "max_length": 4, "corrupt": 0.6}},
}


def stages(folder: Path, seed: int) -> dict[str, list[dict[str, Any]]]:
    """The runs of each stage, as configurations; the runs of one stage do not depend on each other."""
    common = {"seed": seed, "eval": {"n": 8}, "checkpoint": {"every": 50}, "device": "cpu"}
    rollout = {"max_new_tokens": 24}
    origin = {
        "recipe": "sft",
        "output": str(folder / "origin"),
        "model": {"scratch": {"architecture": ARCHITECTURE, "alphabet": ALPHABET}},
        "domains": DOMAINS,
        "steps": 350,
        "batch_size": 128,
        "optim": {"learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 20},
        "rollout": rollout,
        **common,
    }
    start = str(folder / "origin" / "model")
    experts = [
        {
            "recipe": "rlvr",
            "output": str(folder / f"expert-{domain}"),
            "model": start,
            "domains": {domain: DOMAINS[domain]},
            "steps": 120,
            "optim": {"learning_rate": 1e-4},
            "rollout": rollout | {"prompts": 16, "n": 8},
            **common,
        }
        for domain in DOMAINS
    ]
    student = {
        "recipe": "mopd",
        "output": str(folder / "student"),
        "model": start,
        "domains": DOMAINS,
        "teachers": {domain: str(folder / f"expert-{domain}" / "model") for domain in DOMAINS},
        "steps": 130,
        "optim": {"learning_rate": 5e-4, "schedule": "cosine"},
        "rollout": rollout | {"prompts": 144},
        "loss": {"distill": {"estimator": "full"}},
        **common,
    }
    return {"origin": [origin], "experts": experts, "student": [student]}


WHY = {
    "origin": "1 origin: one small model imitates demonstrations of {domains}, 60% of which have one character wrong.\n"
    "  It learns how, and to err. Experts and student all start from it: that keeps them close enough to teach.",
    "experts": "2 experts: reinforcement learning, one expert a domain. Nobody shows them anything; right answers are\n"
    "  rewarded. Each gets good at its domain, and at nothing else.",
    "student": "3 student: multi-teacher on-policy distillation. The student answers prompts of all domains itself;\n"
    "  the expert of each prompt's domain says for every token how likely it would have been.",
}


def demo(folder: Path, seed: int) -> bool:
    """Run (or resume) all stages, then print the table and the report's path. False when a run failed, with why."""
    began = time.monotonic()
    for stage, runs in stages(folder, seed).items():
        console.print(WHY[stage].format(domains=", ".join(DOMAINS)), highlight=False)
        jobs = [Job(Path(run["output"]).name, parse_run(run)) for run in runs]
        if failed := run_jobs(jobs, PARALLEL, console):
            for name, why in failed.items():
                console.print(f"failed  {name}: {why}", highlight=False, soft_wrap=True)
            return False
    pipeline = {
        "title": "Three experts in, one policy out",
        "domains": list(DOMAINS),
        "origin": "origin",
        "experts": {domain: f"expert-{domain}" for domain in DOMAINS},
        "student": "student",
    }
    write_atomic(folder / "pipeline.json", json.dumps(pipeline, indent=1))
    show_report(folder)
    console.print(f"student {folder / 'student' / 'model'}  (AutoModelForCausalLM.from_pretrained loads it)")
    console.print(f"done in {time.monotonic() - began:.0f} s", highlight=False)
    return True

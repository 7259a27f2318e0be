"""Small runs for the tests of recipes, run folders and the command line: two domains, a model of one layer."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from onepolicy.cli import main
from onepolicy.config import AnyRun, ScratchConfig, parse_run
from onepolicy.jobs import FORKS
from onepolicy.models import save_model
from onepolicy.runfolder import is_finished
from onepolicy.tiny import from_scratch

ARCHITECTURE: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "tie_word_embeddings": True,
    "max_position_embeddings": 64,
}
SCRATCH: dict[str, Any] = {"architecture": ARCHITECTURE, "alphabet": "abcdefghijklmnopqrstuvwxyz0123456789:+"}
DOMAINS: dict[str, Any] = {
    half: {"tasks": {"kind": "custom", "source": "tests.early:Early", "options": {"half": half}}, "eval_size": 4}
    for half in ("early", "late")
}


def checkpoint(folder: Path, seed: int) -> str:
    """A freshly initialised model as a Hugging Face folder."""
    if not folder.is_dir():
        save_model(*from_scratch(ScratchConfig(**SCRATCH), seed), folder)
    return str(folder)


def settings(recipe: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """A run of four steps in `folder`/`recipe`, as a file would say it. Models go into `folder` too."""
    common: dict[str, Any] = {
        "recipe": recipe,
        "output": str(folder / recipe),
        "domains": DOMAINS,
        "steps": 4,
        "optim": {"learning_rate": 1e-3},
        "checkpoint": {"every": 2},
        "eval": {"n": 1},
        "device": "cpu",
    }
    if recipe == "sft":
        own: dict[str, Any] = {"model": {"scratch": SCRATCH}, "batch_size": 8, "rollout": {"max_new_tokens": 4}}
    else:
        own = {"model": checkpoint(folder / "origin", 0), "rollout": {"prompts": 4, "n": 4, "max_new_tokens": 4}}
    if recipe == "mopd":
        own["teachers"] = {name: checkpoint(folder / f"teacher-{name}", i) for i, name in enumerate(DOMAINS, 1)}
        own["rollout"] = {"prompts": 8, "max_new_tokens": 4}
        own["check"] = {"samples": 2, "warn_reverse_kl": 100, "warn_overlap": 0.01}
    return common | own | changes


def run_of(recipe: str, folder: Path, **changes: Any) -> AnyRun:
    return parse_run(settings(recipe, folder, **changes))


def weights(output: Path) -> dict[str, torch.Tensor]:
    """The tensors of a run's result."""
    from safetensors.torch import load_file

    return load_file(output / "model" / "model.safetensors")


def same(one: Any, other: Any) -> bool:
    """Whether two nests of tensors and plain values are equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        return bool(torch.equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def forked(*arguments: str, stderr: str = os.devnull, largest_file: int = resource.RLIM_INFINITY) -> Any:
    """The command line in a process of its own, already started; it may write no file of more than so many bytes."""
    process = FORKS.Process(target=_command_line, args=(stderr, largest_file, arguments))
    process.start()
    return process


def kill_when(reached: Callable[[], bool], config: AnyRun, file: Path) -> None:
    """Start the run in a process of its own and kill it as soon as it has come that far."""
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    process = forked("run", str(file))
    while not reached():
        assert process.is_alive(), "the run ended before it could be killed"
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not is_finished(config)


def lines(file: Path) -> int:
    """Whole lines that a file has, now."""
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def _command_line(stderr: str, largest_file: int, arguments: tuple[str, ...]) -> None:
    for stream, path in ((1, os.devnull), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with Ctrl-C ignored
    sys.argv = ["onepolicy", *arguments]
    main()

"""One architecture of every kind, by the functions that make docs/compatibility.md: right, or refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks.architectures import ARCHITECTURES, NOISE, configuration
from benchmarks.compatibility import document
from benchmarks.paths import PATHS, Bench, Cell, distance, measure, verdict

# What can go wrong differs by kind. Teachers, merging and saving have tests of their own, and cost more.
RIGHT = {
    "llama rope longrope": "frequencies by the longest row of a batch",
    "llama rope dynamic": "frequencies by the longest row so far",
    "gemma2": "soft caps, sliding and full attention in turn",
    "qwen2 padded vocabulary": "more embeddings than tokens",
    "mixtral": "router jitter in training mode",
    "opt": "learned positions, layer drop",
    "falcon alibi": "ALiBi, dropout read from the configuration",
    "deepseek_v3": "latent attention, grouped experts",
    "gpt_oss": "attention sinks",
    "lfm2": "convolutions and attention in turn: no padding on the left",
}
QUICK = ("generate", "score", "shared", "learn", "checkpointing")


@pytest.mark.parametrize("name", RIGHT)
def test_every_path_gives_a_row_the_log_probs_that_transformers_gives_it_alone(name: str, tmp_path: Path) -> None:
    cells = measure(name, tmp_path, QUICK)
    assert {path: cell.reason for path, cell in cells.items() if cell.reason} == {}
    for path in QUICK:
        cell = cells[path]
        assert cell.difference is None if (path, name) == ("shared", "lfm2") else cell.difference <= 1e-4, (path, cell)


def test_a_teacher_a_merge_and_a_saved_student_are_measured_too(tmp_path: Path) -> None:
    cells = measure("qwen3_moe", tmp_path, ("teacher", "bfloat16", "merge", "save"))
    assert verdict(cells) == "right", {path: cell.reason for path, cell in cells.items()}
    assert max(cells[path].difference for path in ("teacher", "merge", "save")) < 1e-4
    assert 0 < cells["bfloat16"].difference < 0.5


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mamba", "MambaForCausalLM .*cache"),
        ("modernbert-decoder", "ModernBertDecoderForCausalLM post-processes its logits"),
        ("xlnet", "XLNetLMHeadModel cannot be used: it is not causal"),
    ],
)
def test_what_cannot_be_right_is_refused_by_name_when_a_run_opens_it(name: str, reason: str, tmp_path: Path) -> None:
    cells = measure(name, tmp_path)
    assert verdict(cells) == "refused"
    assert list(cells) == ["load"]
    assert re.search(reason, cells["load"].reason)


# -- the measuring itself ----------------------------------------------------------------------------------------------


def test_the_gradient_of_training_mode_would_be_found_wrong(tmp_path: Path) -> None:
    """Router jitter moves it by a half, so a learner in training mode could not hide."""
    bench = Bench("mixtral", tmp_path)
    expected = bench.own.gradient(bench.samples)
    assert distance(bench.own.gradient(bench.samples), expected) == 0
    bench.own.model.train()
    assert distance(bench.own.gradient(bench.samples), expected) > 0.1


def test_frequencies_by_the_longest_row_would_be_found_wrong(tmp_path: Path) -> None:
    """Two rows in one plain batch of transformers, of which the longer is beyond the original length."""
    bench = Bench("llama rope longrope", tmp_path)
    short = min(bench.samples, key=lambda sample: len(sample.token_ids_T))
    ids = torch.zeros(2, 40, dtype=torch.long)
    ids[0, : len(short.token_ids_T)] = torch.from_numpy(short.token_ids_T)
    logprobs_TV = bench.own.model(input_ids=ids).logits[0].log_softmax(-1)
    generated = logprobs_TV[:-1][: len(short.token_ids_T) - 1][short.mask_T[1:]]
    assert (generated - bench.own.distributions(short)).abs().max() > 0.1


def test_rows_are_of_sixty_model_types_and_have_all_the_randomness_that_they_can() -> None:
    assert len({name.split()[0] for name in ARCHITECTURES}) >= 60
    for name in ARCHITECTURES:
        config = configuration(name).get_text_config()
        still = [key for key, rate in NOISE.items() if getattr(config, key, rate) != rate]
        assert still == (["attention_dropout"] if name == "diffllama" else []), name  # which refuses to have it


def test_the_page_shows_what_is_right_wrong_and_refused() -> None:
    right = {"load": Cell(), **{path: Cell(2e-6) for path in PATHS}}
    results = {
        "llama": right | {"shared": Cell()},
        "opt": right | {"learn": Cell(0.6)},
        "mpt": right | {"merge": Cell(reason="KeyError: 'x'")},
        "mamba": {"load": Cell(reason="MambaForCausalLM cannot", refused=True)},
    }
    assert [verdict(cells) for cells in results.values()] == ["right", "wrong", "wrong", "refused"]
    page = document(results, seconds=300.0).splitlines()
    assert "| llama | 2e-6 | 2e-6 | – | 2e-6 | 2e-6 | 2e-6 | 2e-6 | 2e-6 | 2e-6 | right |" in page
    assert "| opt | 2e-6 | 2e-6 | 2e-6 | 2e-6 | 2e-6 | **6e-1** | 2e-6 | 2e-6 | 2e-6 | wrong |" in page
    assert "| mpt | 2e-6 | 2e-6 | 2e-6 | 2e-6 | 2e-6 | 2e-6 | 2e-6 | error | 2e-6 | wrong |" in page
    assert "| mamba | – | – | – | – | – | – | – | – | – | refused |" in page
    assert page[page.index("## Refused, and why") + 2] == "- **mamba**: MambaForCausalLM cannot"
    assert page[page.index("## Wrong, and why") + 2] == "- **mpt** (merge): KeyError: 'x'"
    assert "4 rows of 4 model types: 1" in " ".join(page)

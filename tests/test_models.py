"""Checkpoints in and out: loaded in float32, saved as they came, and never half-written."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig

from onepolicy.config import ModelConfig, ScratchConfig
from onepolicy.models import load_model, load_tokenizer, pick_device, save_model
from tests.tiny_models import ALPHABET, KINDS, build, store


def test_a_checkpoint_is_computed_in_float32_and_saved_in_the_precision_it_came_in(tmp_path):
    model, tokenizer = build()
    model.to(torch.bfloat16).save_pretrained(tmp_path / "in")
    tokenizer.save_pretrained(tmp_path / "in")
    loaded, tokenizer = load_model(ModelConfig(path=str(tmp_path / "in")))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for name in ("out", "again"):  # saving must not forget it
        save_model(loaded, tokenizer, tmp_path / name)
        assert {t.dtype for t in load_file(tmp_path / name / "model.safetensors").values()} == {torch.bfloat16}
        assert json.loads((tmp_path / name / "config.json").read_text())["dtype"] == "bfloat16"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype="auto")
    assert again.dtype == torch.bfloat16
    before = load_file(tmp_path / "in" / "model.safetensors")
    after = load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_loads_and_saves_without_a_change(kind, tmp_path):
    folder = store(tmp_path / "in", kind)
    model, tokenizer = load_model(ModelConfig(path=str(folder)))
    save_model(model, tokenizer, tmp_path / "out")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_saving_over_a_folder_replaces_it(tmp_path):
    model, tokenizer = build()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stale.safetensors").write_text("old")
    save_model(model, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out" / "stale.safetensors").exists()
    assert "onepolicy" in (tmp_path / "out" / "README.md").read_text()


def test_a_published_generation_config_with_a_fault_can_be_saved_back(tmp_path):
    """Hub models ship temperature without do_sample; finding out at the end of a run would be late."""
    folder = store(tmp_path / "in")
    faulty = GenerationConfig.from_pretrained(folder).to_dict() | {"temperature": 0.6, "top_p": 0.9, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(faulty))
    model, tokenizer = load_model(ModelConfig(path=str(folder)))
    save_model(model, tokenizer, tmp_path / "out")
    assert GenerationConfig.from_pretrained(tmp_path / "out").temperature == 0.6


def test_a_model_from_scratch_follows_its_seed_and_leaves_the_global_one_alone():
    config = ModelConfig(scratch=ScratchConfig(architecture=KINDS["qwen3"], alphabet=ALPHABET))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two, other = (load_model(config, seed)[0].get_input_embeddings().weight for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_a_place_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no model at .*: a checkpoint folder holds a config\.json"):
        load_model(ModelConfig(path=str(tmp_path)))
    scratch = ModelConfig(scratch=ScratchConfig(architecture=KINDS["qwen3"], alphabet=ALPHABET))
    with pytest.raises(ValueError, match="a checkpoint is needed here"):
        load_tokenizer(scratch)


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="torch sees no GPU"):
        pick_device("cuda:1")

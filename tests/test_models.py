"""Checkpoints in and out: loaded in float32, saved as they came, and never half-written."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from onepolicy import run
from onepolicy.config import ModelConfig, ScratchConfig
from onepolicy.models import load_model, load_tokenizer, pick_device, save_model
from tests.runs import checkpoint, run_of
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


GREEDY = {"do_sample": False, "max_new_tokens": 8}
PUBLISHED: dict[str, dict[str, Any]] = {
    "temperature without do_sample": {"temperature": 0.6, "top_p": 0.9, **GREEDY},
    "sampling left unsaid": {"temperature": 0.6, "top_k": 20, "typical_p": 0.9, "max_new_tokens": 8},
    "beams": {"num_beams": 3, "early_stopping": True, **GREEDY},
    "beam settings without beams": {"early_stopping": True, "length_penalty": 0.5, **GREEDY},
    "several ends": {"eos_token_id": [1, 3], **GREEDY},
    "no padding": {"pad_token_id": -1, **GREEDY},
    "penalty": {"repetition_penalty": 1.5, **GREEDY},
    "outputs": {"output_scores": True, **GREEDY},
    "several sequences": {"do_sample": True, "temperature": 0.7, "num_return_sequences": 2, "max_new_tokens": 8},
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("place", ["generation_config.json", "config.json"])
def test_a_generation_config_is_saved_as_it_was_loaded(name, place, tmp_path):
    """Many published ones are what transformers warns of or refuses to save; decoding must stay what it was."""
    folder = store(tmp_path / "in")
    if place == "config.json":  # as models of transformers 4 had it
        (folder / "generation_config.json").unlink()
    written = json.loads((folder / place).read_text()) | PUBLISHED[name]
    (folder / place).write_text(json.dumps(written))
    save_model(*load_model(ModelConfig(path=str(folder))), tmp_path / "out")
    save_model(*load_model(ModelConfig(path=str(tmp_path / "out"))), tmp_path / "again")
    ids = torch.tensor([[8, 9, 10]])
    origin = AutoModelForCausalLM.from_pretrained(folder)
    for saved in ("out", "again"):
        student = AutoModelForCausalLM.from_pretrained(tmp_path / saved)
        fields = [model.generation_config.to_dict() for model in (origin, student)]
        assert {key: fields[1][key] for key in PUBLISHED[name]} == PUBLISHED[name]
        assert fields[0].get("do_sample") == fields[1].get("do_sample")
        tokens = []
        for model in (origin, student):
            torch.manual_seed(0)
            found = model.generate(ids, attention_mask=torch.ones_like(ids))
            tokens.append(found if isinstance(found, torch.Tensor) else found.sequences)
        assert torch.equal(tokens[0], tokens[1])


def test_a_student_of_a_greedy_model_is_greedy_after_a_run(tmp_path):
    config = run_of("sft", tmp_path, model=checkpoint(tmp_path / "origin", 0), steps=1)
    file = tmp_path / "origin" / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"temperature": 0.6, "eos_token_id": [1, 3]}))
    (tmp_path / "origin" / "LICENSE").write_text("terms")
    run(config)
    found = GenerationConfig.from_pretrained(config.output / "model")
    assert (found.do_sample, found.temperature, found.eos_token_id) == (None, 0.6, [1, 3])
    assert (config.output / "model" / "LICENSE").read_text() == "terms"


def test_tokenizer_templates_and_files_beside_are_saved_as_they_were_loaded(tmp_path):
    model, tokenizer = build()
    model.save_pretrained(tmp_path / "in")
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ messages[0].content }}"}
    tokenizer.save_pretrained(tmp_path / "in")
    beside = {"tokenizer.model": "pieces", "my_settings.json": "{}", "notes.txt": "n", "NOTICE": "terms"}
    left_out = {"README.md": "of the origin", "merge.json": "{}", "trainer_state.json": "{}", "optimizer.pt": "x"}
    for name, text in (beside | left_out).items():
        (tmp_path / "in" / name).write_text(text)
    save_model(*load_model(ModelConfig(path=str(tmp_path / "in"))), tmp_path / "out", "our card")
    ours, theirs = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("out", "in"))
    assert ours.chat_template == theirs.chat_template and set(ours.chat_template) == {"default", "tool_use"}
    assert ours.get_vocab() == theirs.get_vocab() and ours.special_tokens_map == theirs.special_tokens_map
    assert {name: (tmp_path / "out" / name).read_text() for name in beside} == beside
    assert (tmp_path / "out" / "README.md").read_text() == "our card"
    assert not any((tmp_path / "out" / name).exists() for name in left_out if name != "README.md")


def test_files_beside_weights_that_are_gone_are_told_of(tmp_path, capsys):
    model, tokenizer = load_model(ModelConfig(path=str(store(tmp_path / "in"))))
    shutil.rmtree(tmp_path / "in")
    save_model(model, tokenizer, tmp_path / "out")
    assert "in is gone: files beside its weights are not copied" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_starting_model_that_is_not_finite_is_refused_naming_tensor_and_file(value, tmp_path):
    model, tokenizer = build("qwen3_moe")
    with torch.no_grad():
        model.base_model.layers[1].mlp.experts.down_proj[2, 0, 0] = value
    model.save_pretrained(tmp_path / "sick", max_shard_size="30KB")
    tokenizer.save_pretrained(tmp_path / "sick")
    where = (
        r"model\.layers\.1\.mlp\.experts\.2\.down_proj\.weight' in .*sick/model-0000\d-of-0000\d\.safetensors is not f"
    )
    with pytest.raises(ValueError, match=where):
        load_model(ModelConfig(path=str(tmp_path / "sick")))


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

"""A checkpoint folder is checked before anything long starts; a message names the owner, the path and the fault."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from onepolicy import run
from onepolicy.checkpoints import (
    check_checkpoint,
    checkpoint_folder,
    load_generation_config,
    stored_tensors,
    weight_files,
    weights_dtype,
)
from onepolicy.config import ModelConfig
from onepolicy.models import load_model, load_tokenizer
from tests.runs import DOMAINS, run_of
from tests.tiny_models import KINDS, build, store

WHO = "teacher 'math'"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("checkpoint") / "good")


def edit(file: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        written = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(written | changes))

    return change


def write(file: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_text(text) and None


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-q4.gguf")


def torn(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-10])


def a_shard_short(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model-00001-of-00002.safetensors")
    places = {name: f"model-0000{1 + (name == 'model.norm.weight')}-of-00002.safetensors" for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def another_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    save_file({"other": torch.zeros(2)}, folder / "model-00001-of-00001.safetensors")
    places = {"model.norm.weight": "model-00001-of-00001.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def eight_bit(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, folder / "model.safetensors")


def adapter(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    save_file({"lora_A": torch.zeros(2)}, folder / "adapter_model.safetensors")


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickle": (
        as_pickle,
        r"no model\.safetensors in PATH \(only pytorch_model\.bin\).*convert them: python -c .*save_p",
    ),
    "gguf": (as_gguf, r"no model\.safetensors in PATH \(only model-q4\.gguf\): GGUF files are quantised"),
    "torn": (torn, r"PATH/model\.safetensors is torn \(.*not fully covered\): copy or download it again"),
    "pointer": (write("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
    "shard": (a_shard_short, r"model-00002-of-00002\.safetensors is missing in PATH \(1 of 2 files"),
    "index": (another_index, r"tensor 'model\.norm\.weight' is not in PATH/model-00001-of-00001\.safetensors, where"),
    "no config": (
        lambda folder: (folder / "config.json").unlink(),
        r"no model at PATH: a checkpoint folder holds a con",
    ),
    "broken config": (write("config.json", "{"), r"PATH/config\.json is not valid JSON: Expecting"),
    "no object": (write("config.json", "[]"), r"PATH/config\.json holds list, not an object"),
    "unknown": (
        edit("config.json", model_type="qwen9"),
        r"model_type 'qwen9' in PATH/config\.json is unknown to transf",
    ),
    "no decoder": (edit("config.json", model_type="t5"), r"model_type 't5' in PATH/config\.json is no causal language"),
    "gptq": (
        edit("config.json", quantization_config={"quant_method": "gptq"}),
        r"PATH is quantised \(gptq, .*bfloat16",
    ),
    "fp8": (eight_bit, r"tensor 'model\.norm\.weight' in PATH/model\.safetensors is F8_E4M3: quantised weights"),
    "a word": (edit("config.json", hidden_size="big"), r"PATH/config\.json is not valid: .*hidden_size.*'big'"),
    "activation": (edit("config.json", hidden_act="sill"), r"PATH/config\.json makes no model: KeyError: 'sill'"),
    "generation": (write("generation_config.json", "{"), r"PATH/generation_config\.json is not valid JSON"),
    "eos": (edit("generation_config.json", eos_token_id="1"), r"eos_token_id is '1' in PATH/generation_config\.json"),
    "length": (edit("generation_config.json", max_new_tokens="20"), r"max_new_tokens is '20' in PATH/generation_conf"),
    "several": (
        edit("generation_config.json", num_return_sequences=2),
        r"PATH/generation_config\.json is not valid: Gr",
    ),
    "do_sample": (edit("generation_config.json", do_sample="no"), r"do_sample is 'no' in PATH/generation_config\.json"),
    "adapter": (
        adapter,
        r"PATH is a PEFT adapter \(adapter_config\.json; its base is 'org/base'\).*merge_and_unload\(saf",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_folder_that_cannot_be_used_is_named_with_its_owner(name: str, good: Path, tmp_path: Path) -> None:
    change, message = FAULTS[name]
    folder = tmp_path / "expert"
    shutil.copytree(good, folder)
    check_checkpoint(ModelConfig(path=str(folder)), WHO)
    change(folder)
    with pytest.raises(ValueError) as caught:
        check_checkpoint(ModelConfig(path=str(folder)), WHO)
    assert re.search(message.replace("PATH", re.escape(str(folder))), str(caught.value)), caught.value
    assert str(caught.value).startswith(f"{WHO}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["/nowhere/math", "a/b/c", "./math", "gpt2", "~/no-such-folder"])
def test_a_path_that_is_not_there_is_named(path: str) -> None:
    with pytest.raises(ValueError, match=r"teacher 'math': no model at .*: there is no such folder \(from /"):
        checkpoint_folder(ModelConfig(path=path), WHO)


def test_a_path_that_may_be_a_hub_id_is_told_as_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for path in ("models/math", "models/ma th"):
        with pytest.raises(
            ValueError, match=rf"'math': no model at '{path}': there is no such .* and as a hub id it c"
        ):
            checkpoint_folder(ModelConfig(path=path), WHO)
    with pytest.raises(ValueError, match="it is a file; give the folder"):
        (tmp_path / "model.safetensors").write_text("")
        checkpoint_folder(ModelConfig(path=str(tmp_path / "model.safetensors")), WHO)


def test_a_run_folder_is_no_checkpoint_but_holds_one(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "run" / "model")
    with pytest.raises(ValueError, match=r"no model at .*/run: a checkpoint .* org/name\); .*/run/model is one"):
        checkpoint_folder(ModelConfig(path=str(tmp_path / "run")), WHO)


def test_a_folder_below_the_home_folder_is_found(monkeypatch: pytest.MonkeyPatch, good: Path) -> None:
    monkeypatch.setenv("HOME", str(good.parent))
    assert checkpoint_folder(ModelConfig(path="~/good")) == good
    model, _ = load_model(ModelConfig(path="~/good"))
    assert torch.equal(model.base_model.norm.weight, load_file(good / "model.safetensors")["model.norm.weight"])


def test_a_folder_without_a_tokenizer_or_with_a_broken_one_says_so(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"teacher 'math': the tokenizer in .*m cannot be read: Expecting property"):
        load_tokenizer(ModelConfig(path=str(tmp_path / "m")), WHO)
    (tmp_path / "m" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"teacher 'math': no tokenizer in .*m \(tokenizer\.json, say\)"):
        load_tokenizer(ModelConfig(path=str(tmp_path / "m")), WHO)


def test_the_dtype_is_that_of_most_weights_whatever_the_configuration_says(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        name = str(dtype).removeprefix("torch.")
        model, _ = build()
        folder = tmp_path / name
        model.to(dtype).save_pretrained(folder)
        edit("config.json", dtype="bfloat16")(folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
        save_file(tensors | {"steps": torch.arange(10**4)}, folder / "model.safetensors", metadata={"format": "pt"})
        expected = "float32" if dtype == torch.float64 else name
        assert weights_dtype(stored_tensors(weight_files(folder))) == expected


def test_weights_that_a_configuration_asks_for_and_no_file_has_are_not_made_up(good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "short"
    shutil.copytree(good, folder)
    tensors = load_file(folder / "model.safetensors")
    gone = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"tensor 'model\.layers\.1\.mlp\.up_proj\.weight' is in no file of .*short \(1 mi"
    ):
        load_model(ModelConfig(path=str(folder)))
    save_file(
        tensors | {"model.layers.1.mlp.up_proj.weight": gone[:7].clone()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(
        ValueError, match=r"tensor 'model\.layers\.1\.mlp\.up_proj\.weight' in .*short has the shape \[7, 32\]"
    ):
        load_model(ModelConfig(path=str(folder)))


def test_generation_parameters_of_an_old_configuration_are_read(good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(good, folder)
    (folder / "generation_config.json").unlink()
    edit("config.json", temperature=0.7, do_sample=True, eos_token_id=[1, 3])(folder)
    found = load_generation_config(folder)
    assert (found.temperature, found.do_sample, found.eos_token_id) == (0.7, True, [1, 3])


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_passes(kind: str, tmp_path: Path) -> None:
    assert check_checkpoint(ModelConfig(path=str(store(tmp_path / kind, kind))), WHO) == tmp_path / kind


def test_a_run_looks_at_all_its_checkpoints_before_its_tasks(tmp_path: Path) -> None:
    """Rows that cannot be graded are only found once the checkpoints are in order; nothing is written before."""
    (tmp_path / "rows.jsonl").write_text('{"p": "1", "a": "one"}\n{"p": "2", "a": "two"}\n' * 20)
    wrong = {"kind": "records", "path": str(tmp_path / "rows.jsonl"), "prompt": "p", "answer": "a", "grader": "number"}
    domains = {name: {**domain, "tasks": wrong, "eval_size": 1} for name, domain in DOMAINS.items()}
    config = run_of("mopd", tmp_path, domains=domains)
    weights = tmp_path / "teacher-late" / "model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(
        ValueError, match=r"teacher 'late': no model\.safetensors in .*teacher-late \(only model\.bin\)"
    ):
        run(config)
    assert not config.output.exists()
    weights.with_suffix(".bin").rename(weights)
    with pytest.raises(ValueError, match=r"domain 'early': 40 of 40 rows cannot be used"):
        run(config)

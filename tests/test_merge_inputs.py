"""Checkpoints to merge as they lie about: written by two versions, heads written out, vocabularies padded unlike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from onepolicy import run
from onepolicy.config import MergeConfig
from onepolicy.mergefiles import merge_files
from onepolicy.mergeinputs import Inputs, meaning
from tests.tiny_models import KINDS, build, store

# config.json as transformers 4 wrote it, and other settings under which weights would mean something else.
COMMON = {"architectures": ["X"], "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": False}
COMMON |= {"hidden_size": 32, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2}
COMMON |= {"vocab_size": 64, "attention_dropout": 0.1, "initializer_range": 0.01}
YARN = {"factor": 40, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 4096}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
OLD: dict[str, dict[str, Any]] = {
    "qwen2": {"rope_theta": 1000000.0, "sliding_window": 131072, "use_sliding_window": False, "max_window_layers": 28},
    "qwen3": {"rope_theta": 1000000, "rope_scaling": None, "rms_norm_eps": 1e-6, "hidden_act": "silu"},
    "llama": {"rope_theta": 500000.0, "rope_scaling": LLAMA3 | {"rope_type": "llama3"}, "pretraining_tp": 1},
    "mistral": {"rope_theta": 10000.0, "sliding_window": 4096},
    "gemma2": {"rope_theta": 10000.0, "cache_implementation": "hybrid", "hidden_act": "gelu_pytorch_tanh"},
    "gemma3_text": {"rope_local_base_freq": 10000.0, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
    "phi3": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5, "original_max_position_embeddings": 4096},
    "deepseek_v3": {"rope_theta": 10000, "rope_scaling": YARN | {"type": "yarn"}},
    "gemma4_text": {"head_dim": 256, "vocab_size_per_layer_input": 64},
    "granite": {"rope_theta": 10000.0, "logits_scaling": 8.0},
    "gpt_oss": {"rope_theta": 150000, "rope_scaling": YARN | {"rope_type": "yarn", "truncate": False}},
}
CHANGES: list[tuple[str, dict[str, Any], str]] = [
    ("qwen3", {"rope_theta": 10000.0}, "rope_parameters.rope_theta"),
    ("qwen3", {"rms_norm_eps": 1e-5}, "rms_norm_eps"),
    ("qwen3", {"hidden_act": "gelu"}, "hidden_act"),
    ("qwen3", {"num_key_value_heads": 4}, "num_key_value_heads"),
    ("qwen3", {"head_dim": 16}, "head_dim"),
    ("qwen3", {"attention_bias": True}, "attention_bias"),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 4}, "layer_types"),
    ("llama", {"rope_scaling": LLAMA3 | {"rope_type": "llama3", "factor": 32.0}}, "rope_parameters.factor"),
    ("llama", {"rope_scaling": None}, "rope_parameters."),
    ("mistral", {"sliding_window": 512}, "sliding_window"),
    ("gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping"),
    ("gemma3_text", {"rope_local_base_freq": 500.0}, "rope_parameters.sliding_attention.rope_theta"),
    ("phi3", {"partial_rotary_factor": 1.0}, "rope_parameters.partial_rotary_factor"),
    ("deepseek_v3", {"rope_scaling": YARN | {"type": "yarn", "mscale": 0.5}}, "rope_parameters.mscale"),
    ("granite", {"logits_scaling": 4.0}, "logits_scaling"),
    ("gpt_oss", {"sliding_window": 64}, "sliding_window"),
    ("gemma4_text", {"per_layer_config": {"5": {"head_dim": 128}}}, "per_layer_config.5.head_dim"),
]


def read(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    return meaning(AutoConfig.from_pretrained(folder))


@pytest.mark.parametrize("kind", OLD)
def test_a_configuration_written_by_another_version_means_the_same(kind: str, tmp_path: Path) -> None:
    old = read(tmp_path / "old", COMMON | OLD[kind] | {"model_type": kind})
    AutoConfig.from_pretrained(tmp_path / "old").save_pretrained(tmp_path / "new")
    written = json.loads((tmp_path / "new" / "config.json").read_text())
    assert written["rope_parameters"] and "torch_dtype" not in written, "else this test proves nothing"
    again = {"dtype": "float32", "use_cache": True, "attention_dropout": 0.0, "bos_token_id": 5, "_name_or_path": "x"}
    assert read(tmp_path / "other", written | again) == old
    assert old["hidden_size"] == 32 and old["model_type"] == kind


@pytest.mark.parametrize(("kind", "change", "key"), CHANGES)
def test_settings_that_change_what_weights_mean_are_told_apart(
    kind: str, change: dict[str, Any], key: str, tmp_path: Path
) -> None:
    values = COMMON | OLD[kind] | {"model_type": kind}
    one, other = read(tmp_path / "one", values), read(tmp_path / "other", values | change)
    differing = [name for name in {*one, *other} if one.get(name) != other.get(name)]
    assert any(name.startswith(key) for name in differing)


def config_of(folder: Path, base: str = "base", method: str = "task_arithmetic", **changes: Any) -> MergeConfig:
    models = {name: str(folder / name) for name in ("a", "b")}
    given: dict[str, Any] = {"lambdas": 0.5} if method == "task_arithmetic" else {}
    given |= {"output": str(folder / "out"), "base": str(folder / base), "models": models, "method": method}
    return MergeConfig.model_validate(given | {"device": "cpu"} | changes)


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit(folder: Path, file: str = "config.json", **changes: Any) -> None:
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))


def three(folder: Path, kind: str = "qwen3", **changes: Any) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        store(folder / name, kind, seed, **changes)


def arithmetic(folder: Path, name: str, rows: int | None = None) -> torch.Tensor:
    base, a, b = (state(folder / model)[name][:rows] for model in ("base", "a", "b"))
    return base + 0.5 * (a - base) + 0.5 * (b - base)


def merged(folder: Path) -> dict[str, torch.Tensor]:
    return state(folder / "out" / "model")


# -- heads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [("a",), ("base",), ("base", "a", "b")])
def test_a_tied_head_that_is_written_out_is_not_part_of_the_merge(where: tuple[str, ...], tmp_path: Path) -> None:
    three(tmp_path)
    for name in where:
        tensors = state(tmp_path / name)
        rewrite(tmp_path / name, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
        if name == "a":
            edit(tmp_path / name, tie_word_embeddings=False)  # as some tools write it, along with the head
    run(config_of(tmp_path))
    found = merged(tmp_path)
    assert "lm_head.weight" not in found
    torch.testing.assert_close(found["model.embed_tokens.weight"], arithmetic(tmp_path, "model.embed_tokens.weight"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_of_its_own_does_not_go_into_a_tied_one(tied: bool, tmp_path: Path) -> None:
    three(tmp_path)
    tensors = state(tmp_path / "b")
    rewrite(tmp_path / "b", tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1})
    edit(tmp_path / "b", tie_word_embeddings=tied)
    with pytest.raises(ValueError) as caught:
        run(config_of(tmp_path))
    assert f"tensor 'lm_head.weight' in {tmp_path / 'b' / 'model.safetensors'} is not equal to the" in str(caught.value)
    assert f"tie_word_embeddings is true in {tmp_path / 'base' / 'config.json'}" in str(caught.value)


def test_a_tied_model_goes_into_untied_ones_only_if_their_base_is_as_good_as_tied(tmp_path: Path) -> None:
    three(tmp_path, tie_word_embeddings=False)
    shutil.rmtree(tmp_path / "b")
    store(tmp_path / "b", seed=2)
    with pytest.raises(
        ValueError, match=r"tie_word_embeddings is true in .*b/config.json and false in .*base/config.js"
    ):
        run(config_of(tmp_path))
    tensors = state(tmp_path / "base")
    rewrite(tmp_path / "base", tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    run(config_of(tmp_path))
    base, a, b = (state(tmp_path / name) for name in ("base", "a", "b"))
    heads = base["lm_head.weight"], a["lm_head.weight"], b["model.embed_tokens.weight"]
    expected = heads[0] + 0.5 * (heads[1] - heads[0]) + 0.5 * (heads[2] - heads[0])
    torch.testing.assert_close(merged(tmp_path)["lm_head.weight"], expected)


# -- vocabularies ------------------------------------------------------------------------------------------------------

SIZES = {"base": 40, "a": 38, "b": 48}  # rows; the tokenizer has 38 tokens


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def padded(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    for seed, (name, rows) in enumerate(SIZES.items()):
        store(tmp_path / name, seed=seed, vocab_size=rows, tie_word_embeddings=request.param)
    return tmp_path


def tensors_of(folder: Path) -> list[str]:
    return [name for name in state(folder / "base") if name in ("model.embed_tokens.weight", "lm_head.weight")]


def test_vocabularies_padded_unlike_are_refused_with_what_to_set(padded: Path) -> None:
    message = (
        rf"tensor 'model\.embed_tokens\.weight' has 38 rows in {padded}/a and 48 in {padded}/b: .*\(base 40, a 38, b "
        r"48\); set vocabulary: pad \(to 48\) or vocabulary: trim \(to 38\)"
    )
    with pytest.raises(ValueError, match=message):
        run(config_of(padded))
    assert not (padded / "out" / "model").exists()


def test_trimmed_vocabularies_hold_every_token_as_if_never_padded(padded: Path) -> None:
    run(config_of(padded, vocabulary="trim"))
    for name in tensors_of(padded):
        torch.testing.assert_close(merged(padded)[name], arithmetic(padded, name, 38))
    model = AutoModelForCausalLM.from_pretrained(padded / "out" / "model")
    assert model.config.vocab_size == 38 == model.get_input_embeddings().num_embeddings


def test_padded_vocabularies_get_the_largest_size_and_a_missing_row_has_no_delta(padded: Path) -> None:
    run(config_of(padded, vocabulary="pad"))
    for name in tensors_of(padded):
        found = merged(padded)[name]
        base, _, b = (state(padded / model)[name] for model in SIZES)
        assert found.shape == (48, 32)
        torch.testing.assert_close(found[:38], arithmetic(padded, name, 38))
        torch.testing.assert_close(found[38:40], base[38:] + 0.5 * (b[38:40] - base[38:]))  # a has no such row
        torch.testing.assert_close(found[40:], b[40:])  # nor has the base: the mean of those that there are
    model = AutoModelForCausalLM.from_pretrained(padded / "out" / "model")
    assert model.config.vocab_size == 48 == model.get_output_embeddings().weight.shape[0]


def test_a_mean_takes_the_base_for_a_row_that_a_model_does_not_have(padded: Path) -> None:
    run(config_of(padded, method="average", vocabulary="pad"))
    for name in tensors_of(padded):
        base, a, b = (state(padded / model)[name] for model in SIZES)
        torch.testing.assert_close(merged(padded)[name][:38], (a + b[:38]) / 2)
        torch.testing.assert_close(merged(padded)[name][38:40], (base[38:] + b[38:40]) / 2)


def test_a_vocabulary_that_is_too_small_or_a_token_id_beyond_the_result_is_refused(padded: Path) -> None:
    edit(padded / "base", pad_token_id=39)
    with pytest.raises(ValueError, match=r"pad_token_id is 39 in .*base/config\.json, beyond a vocabulary of 38"):
        run(config_of(padded, vocabulary="trim"))
    shutil.rmtree(padded / "a")
    store(padded / "a", vocab_size=37, tie_word_embeddings="lm_head.weight" not in state(padded / "base"))
    for choice in ("pad", "trim", None):
        with pytest.raises(ValueError, match=r"model 'a': tensor .* in .*/a has 37 rows, and the tokenizer 38 tokens"):
            run(config_of(padded, vocabulary=choice))


# -- whole merges ------------------------------------------------------------------------------------------------------


def test_a_base_of_the_hub_merges_with_experts_that_were_saved_today(tmp_path: Path) -> None:
    three(tmp_path)
    written = json.loads((tmp_path / "base" / "config.json").read_text())
    theta = written.pop("rope_parameters")["rope_theta"]
    for key in ("dtype", "layer_types"):
        written.pop(key)
    old = written | {"rope_theta": int(theta), "rope_scaling": None, "torch_dtype": "float32", "use_cache": False}
    (tmp_path / "base" / "config.json").write_text(json.dumps(old))
    run(config_of(tmp_path))
    name = "model.layers.1.mlp.down_proj.weight"
    torch.testing.assert_close(merged(tmp_path)[name], arithmetic(tmp_path, name))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert model.config.rope_parameters["rope_theta"] == theta


def test_two_models_that_mean_something_else_are_refused_by_key_value_and_file(tmp_path: Path) -> None:
    three(tmp_path)
    rope = json.loads((tmp_path / "b" / "config.json").read_text())["rope_parameters"]
    edit(tmp_path / "b", rope_parameters=rope | {"rope_theta": 1e6})
    with pytest.raises(ValueError) as caught:
        run(config_of(tmp_path))
    places = [tmp_path / name / "config.json" for name in ("base", "b")]
    assert str(caught.value).startswith(
        f"rope_parameters.rope_theta is {rope['rope_theta']!r} in {places[0]} and 1000000.0 in {places[1]}: weights m"
    )


def test_a_longer_context_alone_is_told_of_and_the_bases_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three(tmp_path)
    edit(tmp_path / "a", max_position_embeddings=512)
    run(config_of(tmp_path))
    assert "warning: max_position_embeddings is 256 in" in capsys.readouterr().err
    assert AutoConfig.from_pretrained(tmp_path / "out" / "model").max_position_embeddings == 256
    stretched = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    for name in ("base", "a", "b"):
        edit(tmp_path / name, rope_parameters=stretched)
    with pytest.raises(
        ValueError, match=r"max_position_embeddings is 256 in .* and 512 in .*: weights mean something el"
    ):
        run(config_of(tmp_path, output=str(tmp_path / "other")))


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_merges(kind: str, tmp_path: Path) -> None:
    three(tmp_path, kind)
    run(config_of(tmp_path))
    found = merged(tmp_path)
    for name in found:
        torch.testing.assert_close(found[name], arithmetic(tmp_path, name))
    assert found.keys() == state(tmp_path / "base").keys()


def test_experts_under_other_names_are_refused_by_name(tmp_path: Path) -> None:
    """Fused and unfused experts, prefixes of older versions: the same architecture, other tensors."""
    three(tmp_path, "qwen3_moe")
    tensors = state(tmp_path / "b")
    rewrite(tmp_path / "b", {name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    with pytest.raises(
        ValueError, match=r"tensor 'model\..*' is in .*base/model.safetensors but not in .*b \(.*load and s"
    ):
        run(config_of(tmp_path))
    parts = [tensors.pop(name) for name in sorted(tensors) if "experts" in name and "down_proj" in name]
    rewrite(tmp_path / "b", tensors | {"model.layers.0.mlp.experts.down_proj": torch.stack(parts)})
    with pytest.raises(ValueError, match=r"experts.*is in .* but not in .*load and save both with one"):
        run(config_of(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
@pytest.mark.parametrize("who", ["base", "b"])
def test_broken_weights_are_refused_naming_tensor_and_file_before_anything_is_written(
    who: str, value: float, tmp_path: Path
) -> None:
    three(tmp_path)
    tensors = state(tmp_path / who)
    tensors["model.layers.1.mlp.down_proj.weight"][0, 3] = value
    rewrite(tmp_path / who, tensors)
    with pytest.raises(ValueError) as caught:
        run(config_of(tmp_path))
    where = tmp_path / who / "model.safetensors"
    assert f"tensor 'model.layers.1.mlp.down_proj.weight' in {where} is not finite" in str(caught.value)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".lock", "config.yaml", "run.json"}


def test_a_merge_beyond_the_range_of_its_dtype_is_refused(tmp_path: Path) -> None:
    three(tmp_path)
    for name in ("base", "a", "b"):
        tensors = {key: tensor.half() for key, tensor in state(tmp_path / name).items()}
        tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], 3e4 if name != "base" else 0.0)
        rewrite(tmp_path / name, tensors)
    with pytest.raises(
        ValueError, match=r"tensor 'model\.norm\.weight' of the merge is beyond the range of torch\.float16"
    ):
        run(config_of(tmp_path, lambdas=2.0))


def test_the_bases_generation_config_is_carried_as_it_is(tmp_path: Path) -> None:
    three(tmp_path)
    edit(tmp_path / "base", "generation_config.json", temperature=0.6, top_p=0.9, eos_token_id=[1, 3], pad_token_id=-1)
    (tmp_path / "base" / "LICENSE").write_text("terms")
    run(config_of(tmp_path))
    found = tmp_path / "out" / "model"
    assert (found / "generation_config.json").read_text() == (tmp_path / "base/generation_config.json").read_text()
    assert GenerationConfig.from_pretrained(found).do_sample is None
    assert (found / "LICENSE").read_text() == "terms"
    edit(tmp_path / "base", "generation_config.json", eos_token_id="1")
    with pytest.raises(ValueError, match=r"base: eos_token_id is '1' in .*base/generation_config\.json"):
        run(config_of(tmp_path, output=str(tmp_path / "other")))


def test_a_disk_without_room_leaves_no_half_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three(tmp_path)
    config = config_of(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"the merged model .*/merged needs [\d,]+ bytes, and the disk of .* has 1,000"):
        merge_files(Inputs(config), config, tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "a", "b"}


def test_a_model_in_another_dtype_is_refused(tmp_path: Path) -> None:
    three(tmp_path)
    model, _ = build(seed=2)
    model.bfloat16().save_pretrained(tmp_path / "b")
    with pytest.raises(
        ValueError, match=r"is torch\.float32 in .*base/model.safetensors and torch\.bfloat16 in .*b/model"
    ):
        run(config_of(tmp_path))

"""Merging files: the same numbers as in memory, folders that load, hashes that are true, and mistakes named by file."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from onepolicy import merging, run
from onepolicy.config import ConfigError, EvalConfig, MergeConfig, ModelConfig, ScratchConfig
from onepolicy.exam import Exam
from onepolicy.mergefiles import Inputs, parameters
from onepolicy.models import save_model
from onepolicy.runfolder import is_finished
from onepolicy.tiny import from_scratch
from tests.runs import DOMAINS, SCRATCH, checkpoint, kill_when, lines, same, weights
from tests.test_cli import Cli, command  # noqa: F401 (a fixture)
from tests.test_run import changed

MODELS = ("early", "late")


def config_of(folder: Path, method: str, output: str = "merge", **changes: Any) -> MergeConfig:
    base = {
        "output": str(folder / output),
        "base": checkpoint(folder / "origin", 0),
        "models": {name: checkpoint(folder / name, i) for i, name in enumerate(MODELS, 1)},
        "method": method,
        "device": "cpu",
    }
    return MergeConfig.model_validate(base | changes)


def state(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def manifest(config: MergeConfig) -> dict[str, Any]:
    return dict(json.loads((config.output / "model" / "merge.json").read_text()))


# -- the numbers -------------------------------------------------------------------------------------------------------

TWO = [0.3, 0.5]
BY_NAME = dict(zip(MODELS, TWO, strict=True))


@pytest.mark.parametrize(
    ("method", "settings", "in_memory"),
    [
        ("average", {}, lambda base, two: merging.average(two)),
        ("average", {"weights": BY_NAME}, lambda base, two: merging.average(two, TWO)),
        ("task_arithmetic", {"lambdas": 0.4}, lambda base, two: merging.task_arithmetic(base, two, [0.4, 0.4])),
        ("task_arithmetic", {"lambdas": BY_NAME}, lambda base, two: merging.task_arithmetic(base, two, TWO)),
        ("ties", {"density": 0.2}, lambda base, two: merging.ties(base, two, [1, 1], 0.2)),
        ("ties", {"density": 0.2, "weights": BY_NAME}, lambda base, two: merging.ties(base, two, TWO, 0.2)),
        (
            "dare",
            {"density": 0.5, "lambdas": BY_NAME, "seed": 4},
            lambda base, two: merging.dare(base, two, TWO, 0.5, 4),
        ),
        ("slerp", {"t": 0.3}, lambda base, two: merging.slerp(*two, 0.3)),
    ],
    ids=["average", "weighted", "arithmetic", "arithmetic-each", "ties", "ties-weighted", "dare", "slerp"],
)
@pytest.mark.parametrize("shard_bytes", [10**9, 3000], ids=["one-file", "shards"])
def test_files_are_merged_as_state_dicts_are(
    tmp_path: Path, method: str, settings: dict[str, Any], in_memory: Any, shard_bytes: int
) -> None:
    config = config_of(tmp_path, method, shard_bytes=shard_bytes, **settings)
    run(config)
    base, *two = (state(tmp_path / name) for name in ("origin", *MODELS))
    expected = in_memory(base, two)
    assert same(state(config.output / "model"), expected)
    assert not same(expected, base) and not same(expected, two[0])
    model = AutoModelForCausalLM.from_pretrained(config.output / "model")
    assert torch.equal(model.get_input_embeddings().weight, expected["model.embed_tokens.weight"])
    assert is_finished(config)


def test_shards_are_as_large_as_asked_and_their_index_is_right(tmp_path: Path) -> None:
    config = config_of(tmp_path, "average", shard_bytes=3000)
    run(config)
    model = config.output / "model"
    files = sorted(model.glob("*.safetensors"))
    assert len(files) > 2 and files[1].name == f"model-00002-of-{len(files):05}.safetensors"
    index = json.loads((model / "model.safetensors.index.json").read_text())
    sizes = {file: sum(t.numel() * t.element_size() for t in load_file(file).values()) for file in files}
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert all(size <= 3000 or len(load_file(file)) == 1 for file, size in sizes.items())
    for name, file in index["weight_map"].items():
        with safe_open(model / file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"} and name in opened.keys()  # noqa: SIM118 (no iterator)


def test_inputs_may_be_sharded_each_in_its_own_way_and_in_half_precision(tmp_path: Path) -> None:
    for seed, (name, size) in enumerate((("origin", "3KB"), ("early", "2KB"), ("late", "1GB"))):
        model, tokenizer = from_scratch(ScratchConfig(**SCRATCH), seed)
        model.to(torch.bfloat16).save_pretrained(tmp_path / name, max_shard_size=size)
        tokenizer.save_pretrained(tmp_path / name)
    assert len(list((tmp_path / "origin").glob("*.safetensors"))) > 2
    config = config_of(tmp_path, "task_arithmetic", lambdas=0.5)
    run(config)
    base, *two = (state(tmp_path / name) for name in ("origin", *MODELS))
    assert same(state(config.output / "model"), merging.task_arithmetic(base, two, [0.5, 0.5]))
    assert AutoModelForCausalLM.from_pretrained(config.output / "model").dtype == torch.bfloat16
    assert len(manifest(config)["base"]["files"]) > 5


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_integer_buffers_are_copied_and_every_tensor_is_aligned(tmp_path: Path) -> None:
    extra = {
        "flag": torch.tensor([True, False, True]),
        "count": torch.tensor(7),
    }
    config = config_of(tmp_path, "average")
    for name in ("origin", *MODELS):
        rewrite(tmp_path / name, state(tmp_path / name) | extra)
    run(config)
    merged = state(config.output / "model")
    assert all(torch.equal(merged[name], tensor) for name, tensor in extra.items())
    assert all(merged[name].dtype == tensor.dtype for name, tensor in extra.items())
    assert merged["count"].shape == ()
    assert all(tensor.data_ptr() % tensor.element_size() == 0 for tensor in merged.values())


# -- what else is in the folder ----------------------------------------------------------------------------------------


def test_the_manifest_names_parameters_and_true_hashes_of_all_files(tmp_path: Path) -> None:
    config = config_of(tmp_path, "dare", density=0.5, lambdas=BY_NAME, seed=3, shard_bytes=3000)
    run(config)
    found, model = manifest(config), config.output / "model"
    assert (found["method"], found["parameters"]) == ("dare", {"lambdas": BY_NAME, "density": 0.5, "seed": 3})
    assert found["files"] == {path.name: sha(path) for path in model.iterdir() if path.name != "merge.json"}
    for name, place in {"origin": found["base"], **{n: found["models"][n] for n in MODELS}}.items():
        assert place["path"] == str(tmp_path / name)
        assert {"model.safetensors", "config.json", "tokenizer.json"} <= place["files"].keys()
        assert place["files"] == {file: sha(tmp_path / name / file) for file in place["files"]}
    again = config_of(tmp_path, "dare", "again", density=0.5, lambdas=BY_NAME, seed=3, shard_bytes=3000)
    run(again)
    assert (again.output / "model" / "merge.json").read_text() != ""
    assert {**manifest(again)["files"], "README.md": ""} == {**found["files"], "README.md": ""}


def test_tokenizer_template_and_generation_config_are_those_of_the_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path, "average")
    faulty = json.loads((tmp_path / "origin" / "generation_config.json").read_text()) | {"temperature": 0.6}
    (tmp_path / "origin" / "generation_config.json").write_text(json.dumps(faulty))
    (tmp_path / "late" / "chat_template.jinja").write_text("another")
    run(config)
    assert "late has another chat template than" in capsys.readouterr().err
    assert GenerationConfig.from_pretrained(config.output / "model").temperature == 0.6
    ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (config.output / "model", tmp_path / "origin"))
    assert ours.get_vocab() == theirs.get_vocab() and ours.chat_template == theirs.chat_template
    assert "`average`" in (config.output / "model" / "README.md").read_text()


def test_a_merge_that_was_interrupted_leaves_nothing_under_the_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, "average", shard_bytes=3000)
    merge, calls = merging.average, []

    def stops(*arguments: Any) -> dict[str, torch.Tensor]:
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return merge(*arguments)

    monkeypatch.setattr(merging, "average", stops)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert not (config.output / "model").exists() and not list(config.output.glob(".model*"))
    killed = config.output / ".model.tmp"  # a kill leaves it
    killed.mkdir()
    (killed / "model-00001-of-00009.safetensors").write_bytes(b"torn")
    run(config)
    assert is_finished(config)
    names = {path.name for path in config.output.iterdir()}
    assert names == {".lock", "config.yaml", "run.json", "model", "done.json"}


def test_one_tensor_of_every_model_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    merge = merging.average

    def watched(models: list[dict[str, torch.Tensor]], weights: list[float]) -> dict[str, torch.Tensor]:
        seen.append((len(models), len(models[0])))
        return merge(models, weights)

    monkeypatch.setattr(merging, "average", watched)
    run(config_of(tmp_path, "average"))
    assert set(seen) == {(2, 1)} and len(seen) == len(state(tmp_path / "origin"))


# -- what does not fit -------------------------------------------------------------------------------------------------


def test_models_that_do_not_fit_are_refused_by_file_and_nothing_is_written(tmp_path: Path) -> None:
    config = config_of(tmp_path, "average", shard_bytes=3000)
    file, origin = tmp_path / "late" / "model.safetensors", tmp_path / "origin" / "model.safetensors"
    good = state(tmp_path / "late")
    name = "model.norm.weight"
    for tensors, message in (
        (good | {name: torch.ones(17)}, f"{name!r} has shape (16,) in {origin} and (17,) in {file}"),
        (good | {name: good[name].half()}, f"{name!r} is torch.float32 in {origin} and torch.float16 in {file}"),
        (
            good | {"extra": good[name].clone()},
            f"'extra' is in {file} but not in {tmp_path / 'origin'} (0 missing, 1 extra",
        ),
        ({n: t for n, t in good.items() if n != name}, f"{name!r} is in {origin} but not in {tmp_path / 'late'} (1 mi"),
        (good | {name: good[name].to(torch.float8_e4m3fn)}, f"{name!r} in {file} is F8_E4M3: quantised weights"),
    ):
        rewrite(file.parent, tensors)
        with pytest.raises(ValueError) as caught:
            run(config)
        assert message in str(caught.value)
    for folder, value in (("origin", 1), ("early", 1), ("late", 2)):
        rewrite(tmp_path / folder, state(tmp_path / folder) | {name: good[name], "n": torch.tensor([value])})
    with pytest.raises(ValueError, match=r"'n' .* differs between .*origin/model.safetensors and .*late/model.safeten"):
        run(config)
    assert not (config.output / "model").exists()


def test_models_of_other_tokens_or_another_architecture_are_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, "average")
    file = tmp_path / "late" / "config.json"
    written = json.loads(file.read_text())
    file.write_text(json.dumps(written | {"rms_norm_eps": 0.5, "eos_token_id": 9, "use_cache": False}))
    with pytest.raises(
        ValueError, match=r"rms_norm_eps is 1e-06 in .*origin/config.json and 0.5 in .*late/config.json"
    ):
        run(config)
    shutil.rmtree(tmp_path / "late")
    other = SCRATCH | {"alphabet": SCRATCH["alphabet"][::-1]}
    save_model(*from_scratch(ScratchConfig(**other), 0), tmp_path / "late")
    with pytest.raises(ValueError, match=r"model 'late' has another tokenizer than the base: \d+ tokens differ, for"):
        run(config)
    with pytest.raises(ValueError, match=r"no model at .*nowhere"):
        run(changed(config, base=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "task_arithmetic"}, "method task_arithmetic needs lambdas (or a sweep over it): give it"),
        ({"method": "ties"}, "method ties needs density: give it"),
        ({"method": "average", "t": 0.5}, "t belongs to slerp, not to average: remove it"),
        ({"method": "ties", "density": 0.2, "lambdas": 1}, "lambdas belongs to task_arithmetic and dare, not to ties"),
        (
            {"method": "task_arithmetic", "lambdas": {"early": 1}},
            "lambdas names ['early'], the models are ['early', 'l",
        ),
        (
            {"method": "slerp", "t": 0.5, "models": {"one": "x"}},
            "slerp goes from one model to another, and 1 are given",
        ),
        ({"method": "average", "weights": {"early": 0, "late": 0}}, "weights are all 0"),
        ({"method": "average", "base": {"scratch": SCRATCH}}, "base: what is merged is a checkpoint"),
        ({"method": "average", "sweep": [0.5]}, "a sweep tries values of lambdas, which average does not have"),
        ({"method": "task_arithmetic", "sweep": [0.5]}, "there is nothing to score on: add `domains`"),
        ({"method": "task_arithmetic", "sweep": [0.5, 0.5], "domains": DOMAINS}, "tries a value twice"),
        ({"method": "task_arithmetic", "sweep": [0.5], "lambdas": 1, "domains": DOMAINS}, "are both given: remove one"),
        ({"method": "averag"}, "Input should be 'average', 'task_arithmetic', 'ties', 'dare' or 'slerp'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    from onepolicy.config import parse_run

    good = config_of(tmp_path, "average").model_dump(mode="json") | {"recipe": "merge"}
    with pytest.raises(ConfigError) as caught:
        parse_run(good | changes)
    assert message in str(caught.value)


# -- evaluation and sweep ----------------------------------------------------------------------------------------------

JUDGED: dict[str, Any] = {"domains": DOMAINS, "eval": {"n": 2}, "rollout": {"max_new_tokens": 4}}


def eager(folder: Path) -> dict[str, str]:
    """Models whose task vectors are right at λ = 1: a smaller λ says too little, a larger one nothing at all.

    All rows of the (tied) embedding share a large part u, so that every final state is u and the logits are as written
    here: 4λ for each expert's letter, 10λ - 8 for the end of the answer, about 0 for the rest.
    """
    rows: dict[str, dict[str, float]] = {"origin": {}, "early": {"b": 1.0}, "late": {"c": 1.0}}
    for name, letters in rows.items():
        model, tokenizer = from_scratch(ScratchConfig(**SCRATCH), 0)
        with torch.no_grad():
            table = model.get_input_embeddings().weight
            unit = torch.full((16,), 0.25)
            table += unit
            table[tokenizer.eos_token_id] += (-2.0 if name == "origin" else -0.75) * unit
            for letter, factor in letters.items():
                table[tokenizer.convert_tokens_to_ids(letter)] += factor * unit
        save_model(model, tokenizer, folder / name)
    return {name: str(folder / name) for name in rows}


def test_the_result_is_evaluated_as_a_run_of_its_own_would(tmp_path: Path) -> None:
    config = config_of(tmp_path, "average", **JUDGED)
    run(config)
    with Exam(config) as exam:
        expected = exam.evaluate(ModelConfig(path=str(config.output / "model")), EvalConfig(n=2))
    assert (config.output / "eval" / "final.json").read_text() == expected.to_json()
    done = json.loads((config.output / "done.json").read_text())
    assert done["means"] == expected.means() and done["steps"] == 0
    without = config_of(tmp_path, "average", "without", **JUDGED | {"eval": {"at_end": False}})
    run(without)
    assert not (without.output / "eval").exists()


def test_a_sweep_keeps_the_value_that_scores_best_and_a_table_of_all(tmp_path: Path) -> None:
    paths = eager(tmp_path)
    given = {"base": paths["origin"], "models": {name: paths[name] for name in MODELS}}
    given |= {"domains": dict.fromkeys(("one", "two"), DOMAINS["early"])}
    config = config_of(tmp_path, "task_arithmetic", sweep=[0, 0.5, 1, 3], **JUDGED | given)
    run(config)
    table = json.loads((config.output / "sweep.json").read_text())
    means = {row["lambda"]: row["mean"] for row in table["results"]}
    assert list(means) == [0, 0.5, 1, 3]
    assert table["best"] == 1 and means[1] > 0.8 > means[0.5] > means[3] == 0
    single = config_of(tmp_path, "task_arithmetic", "single", lambdas=table["best"], **JUDGED | given)
    run(single)
    assert same(weights(config.output), weights(single.output))
    assert manifest(config)["parameters"] == {"lambdas": dict.fromkeys(MODELS, table["best"])}
    evals = config.output / "eval"
    assert {path.stem for path in evals.iterdir()} == {"lambda-0", "lambda-0.5", "lambda-1", "lambda-3", "final"}
    assert (evals / "final.json").read_text() == (evals / f"lambda-{table['best']:g}.json").read_text()
    row = next(row for row in table["results"] if row["lambda"] == table["best"])
    assert row["means"] == json.loads((config.output / "done.json").read_text())["means"]
    assert row["mean"] == pytest.approx(sum(row["means"].values()) / 2)
    assert "raw" in table["score"]
    assert not list(config.output.glob(".*.tmp"))


def test_a_sweep_goes_on_where_it_was_killed_and_starts_again_for_other_models(tmp_path: Path) -> None:
    sweep = [round(0.1 * i, 1) for i in range(1, 9)]
    killed, whole = (config_of(tmp_path, "dare", n, density=0.5, sweep=sweep, **JUDGED) for n in ("killed", "whole"))
    kill_when(lambda: (killed.output / "eval" / "lambda-0.2.json").is_file(), killed, tmp_path / "run.yaml")
    assert not (killed.output / "model").exists()
    first = killed.output / "eval" / "lambda-0.1.json"
    before = first.stat().st_mtime_ns
    run(killed)
    assert first.stat().st_mtime_ns == before
    run(whole)
    assert same(weights(killed.output), weights(whole.output))
    assert (killed.output / "sweep.json").read_text() == (whole.output / "sweep.json").read_text()

    (killed.output / "done.json").unlink()
    shutil.rmtree(tmp_path / "late")
    checkpoint(tmp_path / "late", 7)
    run(killed)
    assert first.stat().st_mtime_ns > before
    with pytest.raises(ValueError, match=r"another configuration \(density: 0.5 there, 0.4 here\)"):
        run(changed(killed, density=0.4))


def test_the_command_line_merges_checks_and_prints_the_sweep(tmp_path: Path, command: Cli) -> None:  # noqa: F811
    config = config_of(tmp_path, "task_arithmetic", sweep=[0.3, 0.6], **JUDGED)
    file = tmp_path / "merge.yaml"
    file.write_text(config.model_dump_json())
    code, out, err = command("check", file)
    assert (code, err) == (0, "") and not config.output.exists()
    code, out, err = command("run", file)
    assert (code, err) == (0, "")
    assert "0.3" in out and "0.6" in out and out.count("(kept)") == 1 and "report.html" in out
    assert command("run", config.output)[0] == command("eval", config.output, "--n", 1)[0] == 0
    plain = config_of(tmp_path, "average", "plain")
    file.write_text(plain.model_dump_json())
    code, out, err = command("run", file, "models.early.dtype=bfloat16")
    assert (code, err) == (0, "") and "report" not in out and "model " in out
    code, _, err = command("check", file, "output=elsewhere", "models.late=nowhere")
    assert code == 2 and "nowhere" in err


def test_parameters_are_spelt_out_per_model(tmp_path: Path) -> None:
    config = config_of(tmp_path, "ties", density=0.2, weights=BY_NAME)
    assert parameters(config) == {"weights": BY_NAME, "density": 0.2}
    assert parameters(config_of(tmp_path, "slerp", t=0)) == {"t": 0}
    assert Inputs(config).hashes.keys() == {"base", "early", "late"}
    assert lines(tmp_path / "nothing") == 0

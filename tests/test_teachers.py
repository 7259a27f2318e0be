"""Routing keeps samples and scores together; a shelf of teachers scores as each would alone, at the memory of one."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from onepolicy.config import DistillConfig, LossConfig, ModelConfig, OptimConfig, TeacherConfig
from onepolicy.engines.forward import live_head, score_samples
from onepolicy.learner import Learner
from onepolicy.models import load_model
from onepolicy.teachers import Routed, Shelf, fingerprint, open_teachers, wanted, weight_files
from onepolicy.types import Sample, TokenScores, Want
from onepolicy.weightcache import cache_folder
from tests.tiny_models import KINDS, MIXED, batch, build, sample, store

SAMPLED = Want("sampled")


class Constant:
    """A scorer that says the same number of every token, and remembers what it was asked."""

    def __init__(self, value: float) -> None:
        self.value, self.asked = value, []

    def score(self, samples: Sequence[Sample], want: Want) -> list[TokenScores]:
        self.asked.append([one.group for one in samples])
        return [TokenScores("c", np.full(one.length, self.value, np.float32)) for one in samples]


def shelf(tmp_path: Path, vocabulary: int = 38, tokens_per_batch: int = 64) -> Shelf:
    return Shelf(
        device=torch.device("cpu"),
        temperature=1.0,
        tokens_per_batch=tokens_per_batch,
        vocabulary=vocabulary,
        spool=tmp_path / "spool",
    )


def config(folder: Path, dtype: str = "float32") -> ModelConfig:
    return ModelConfig(path=str(folder), dtype=dtype)


def plainly(folder: Path, samples: Sequence[Sample], want: Want = SAMPLED, dtype: torch.dtype = torch.float32):
    """A whole model of its own, loaded by transformers, scored in the same micro-batches."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return score_samples(model, live_head(model), samples, want, source="p", temperature=1.0, tokens_per_batch=64)


def assert_same(scores: Sequence[TokenScores], others: Sequence[TokenScores]) -> None:
    for one, other in zip(scores, others, strict=True):
        np.testing.assert_array_equal(one.logprobs_R, other.logprobs_R)


# -- routing -----------------------------------------------------------------------------------------------------------


def test_each_sample_gets_its_own_domains_teacher_in_the_original_order():
    one, two = Constant(1.0), Constant(2.0)
    samples = batch([(2, 3)] * 4, ["math", "code"])
    scores = Routed({"math": one, "code": two}).score(samples, SAMPLED)
    assert [s.logprobs_R.tolist() for s in scores] == [[1.0] * 3, [2.0] * 3] * 2
    assert (one.asked, two.asked) == ([[0, 2]], [[1, 3]])


def test_two_domains_of_one_scorer_make_one_call_and_an_absent_domain_makes_none():
    one, two = Constant(1.0), Constant(2.0)
    samples = batch([(2, 3)] * 4, ["math", "logic"])
    Routed({"math": one, "code": two, "logic": one}).score(samples, SAMPLED)
    assert (one.asked, two.asked) == ([[0, 1, 2, 3]], [])
    assert Routed({"math": one}).score([], SAMPLED) == []


def test_an_unknown_domain_raises_before_anything_is_scored():
    one = Constant(1.0)
    with pytest.raises(ValueError, match="no teacher for domain 'poetry'; there are teachers for math"):
        Routed({"math": one}).score(batch([(2, 3)] * 2, ["math", "poetry"]), SAMPLED)
    assert one.asked == []
    with pytest.raises(ValueError, match="at least one teacher"):
        Routed({})


def test_a_scorer_that_loses_a_sample_is_caught():
    class Lossy(Constant):
        def score(self, samples: Sequence[Sample], want: Want) -> list[TokenScores]:
            return super().score(samples, want)[1:]

    with pytest.raises(ValueError, match="argument 2 is shorter"):
        Routed({"math": Lossy(0.0)}).score(batch([(2, 3)] * 2, ["math"]), SAMPLED)


def test_shuffled_domains_come_back_in_order_and_score_as_each_teacher_alone(tmp_path):
    folders = {name: store(tmp_path / name, seed=i) for i, name in enumerate(("math", "code", "chat"))}
    samples = batch(MIXED * 3, ["code", "chat", "math", "math", "code"])
    np.random.default_rng(0).shuffle(samples)
    routed = open_teachers({n: config(f) for n, f in folders.items()}, {n: n for n in folders}, shelf(tmp_path))
    for want in (SAMPLED, Want("topk", 4), Want("full")):
        scores = routed.score(samples, want)
        assert [s.source for s in scores] == [one.task.domain for one in samples]
        for name, folder in folders.items():
            rows = [i for i, one in enumerate(samples) if one.task.domain == name]
            expected = plainly(folder, [samples[i] for i in rows], want)
            assert_same([scores[i] for i in rows], expected)


def test_two_routes_to_one_checkpoint_are_one_teacher_bit_for_bit(tmp_path):
    folder = store(tmp_path / "one")
    (tmp_path / "link").symlink_to(folder)
    shared = shelf(tmp_path)
    routed = open_teachers(
        {"a": config(folder), "b": config(tmp_path / "link")}, {"math": "a", "code": "b", "chat": "a"}, shared
    )
    assert len({id(scorer) for scorer in routed.scorers.values()}) == 1
    samples = batch(MIXED, ["math", "code", "chat"])
    assert_same(routed.score(samples, SAMPLED), plainly(folder, samples))
    assert shared.teacher("c", config(folder, "bfloat16")) is not routed.scorers["math"]


# -- one resident at a time --------------------------------------------------------------------------------------------


def mapped_files() -> set[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5].strip() for line in lines if "/" in line}


def test_one_teacher_is_resident_mapped_from_its_file_and_released_for_the_next(tmp_path):
    folders = [store(tmp_path / name, seed=i) for i, name in enumerate("abc")]
    shared = shelf(tmp_path)
    teachers = [shared.teacher(folder.name, config(folder)) for folder in folders]
    samples = batch(MIXED)
    for number in (0, 1, 2, 0):
        model = shared.activate(teachers[number])
        gc.collect()
        mine = [str(f / "model.safetensors") in mapped_files() for f in folders]
        assert mine == [i == number for i in range(3)]
        stored = load_file(folders[number] / "model.safetensors")
        assert all(torch.equal(stored[name], parameter) for name, parameter in model.named_parameters())
        del stored  # itself a map
        assert_same(teachers[number].score(samples, SAMPLED), plainly(folders[number], samples))
    assert len({id(shared.activate(teacher)) for teacher in teachers}) == 1
    assert not shared.spool.exists()


def test_teachers_of_different_architectures_take_turns(tmp_path):
    folders = [store(tmp_path / kind, kind) for kind in ("qwen3", "llama", "gemma2")]
    shared, samples = shelf(tmp_path), batch(MIXED)
    for _ in range(2):
        for folder in folders:
            assert_same(shared.teacher(folder.name, config(folder)).score(samples, SAMPLED), plainly(folder, samples))
    idle = [skeleton.model for skeleton in shared._skeletons.values()]
    assert sum(parameter.numel() > 0 for model in idle for parameter in model.parameters()) == len(
        list(idle[2].parameters())
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_of_an_evicted_teacher_still_gives_its_whole_distribution(kind, tmp_path):
    folders = [store(tmp_path / str(seed), kind, seed) for seed in range(2)]
    shared, one = shelf(tmp_path), sample(3, 6)
    scores = [shared.teacher(f.name, config(f)).score([one], Want("full"))[0] for f in folders]
    for folder, score in zip(folders, scores, strict=True):
        model = AutoModelForCausalLM.from_pretrained(folder)
        expected = model(input_ids=torch.from_numpy(one.token_ids_T).long()[None]).logits[0, 2:8].log_softmax(-1)
        logprobs_RV = score.head.logprobs(torch.from_numpy(score.hidden_RH), 1.0)
        torch.testing.assert_close(logprobs_RV, expected, atol=1e-5, rtol=0)
    assert shared._resident.name == "1"


# -- weights that lie otherwise ----------------------------------------------------------------------------------------


def spooled(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "spool").glob("*"))


def both_ways(tmp_path: Path, folder: Path, dtype: str = "float32", computed: torch.dtype = torch.float32) -> Shelf:
    shared, samples = shelf(tmp_path), batch(MIXED)
    teacher = shared.teacher("t", config(folder, dtype))
    assert_same(teacher.score(samples, SAMPLED), plainly(folder, samples, dtype=computed))
    return shared


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_by_default_a_teacher_is_taken_in_the_dtype_of_its_file(dtype, tmp_path):
    """Without a copy: it is mapped from where it lies, and the user's cache stays without conversions."""
    model, tokenizer = build()
    model.to(dtype).save_pretrained(tmp_path / "t")
    tokenizer.save_pretrained(tmp_path / "t")
    shared = Shelf(device=torch.device("cpu"), temperature=1.0, tokens_per_batch=64, vocabulary=38)
    conversions = cache_folder() / "converted"
    before = set(conversions.glob("*"))
    teacher = shared.teacher("t", TeacherConfig.model_validate(str(tmp_path / "t")).model)
    samples = batch(MIXED)
    assert_same(teacher.score(samples, SAMPLED), plainly(tmp_path / "t", samples, dtype=dtype))
    assert set(conversions.glob("*")) == before
    assert {p.dtype for p in shared.activate(teacher).parameters()} == {dtype}
    assert teacher.fingerprint["dtype"] == str(dtype).removeprefix("torch.")
    other = shared.teacher("t", config(tmp_path / "t", "float32" if dtype != torch.float32 else "bfloat16"))
    other.score(samples, SAMPLED)
    assert len(set(conversions.glob("*")) - before) == 1


def test_weights_beyond_the_range_of_the_dtype_asked_for_are_refused(tmp_path):
    model, tokenizer = build()
    with torch.no_grad():
        model.base_model.layers[0].mlp.up_proj.weight[1, 2] = 1e6
    model.save_pretrained(tmp_path / "t")
    tokenizer.save_pretrained(tmp_path / "t")
    shelf(tmp_path).teacher("t", config(tmp_path / "t", "bfloat16")).score(batch(MIXED), SAMPLED)
    with pytest.raises(
        ValueError, match=r"teacher 't': tensor 'model.layers.0.mlp.up_proj.weight' of .* of float16: use d"
    ):
        shelf(tmp_path).teacher("t", config(tmp_path / "t", "float16")).score(batch(MIXED), SAMPLED)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored_in", [torch.float32, torch.bfloat16])
def test_the_model_that_a_run_starts_from_scores_as_its_student_would(dtype, stored_in, tmp_path):
    model, tokenizer = build()
    model.to(stored_in).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    start = config(tmp_path / "m", dtype)
    student = Learner(*load_model(start), OptimConfig(tokens_per_batch=64), LossConfig(), dtype=getattr(torch, dtype))
    teacher = shelf(tmp_path).teacher("self", start, as_student=True)
    samples = batch(MIXED)
    for want in (SAMPLED, Want("full")):
        ours, theirs = student.score(samples, want), teacher.score(samples, want)
        assert_same(theirs, ours)
    logprobs = [
        one.head.logprobs(torch.from_numpy(one.hidden_RH), 1.0) for one in (theirs[0], teacher.score(samples, want)[0])
    ]
    with torch.autocast("cpu", torch.bfloat16):  # whoever asks: the head computes as its own teacher does
        logprobs.append(theirs[0].head.logprobs(torch.from_numpy(theirs[0].hidden_RH), 1.0))
    assert torch.equal(logprobs[0], logprobs[1]) and torch.equal(logprobs[0], logprobs[2])
    assert teacher.fingerprint["dtype"] == ("float32" if dtype == "float32" else "bfloat16 autocast")


def test_a_tied_head_that_a_file_has_written_out_is_mapped_as_it_lies(tmp_path):
    folder = store(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    both_ways(tmp_path, folder)
    assert spooled(tmp_path) == []


def test_a_bfloat16_checkpoint_asked_in_float32_is_spooled_once(tmp_path):
    model, tokenizer = build()
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    tokenizer.save_pretrained(tmp_path / "half")
    both_ways(tmp_path, tmp_path / "half")
    first = [path.stat().st_mtime_ns for path in spooled(tmp_path)]
    both_ways(tmp_path, tmp_path / "half")
    assert [path.stat().st_mtime_ns for path in spooled(tmp_path)] == first
    assert len(first) == 1
    for dtype in ("bfloat16", "auto"):
        both_ways(tmp_path / "as it lies", tmp_path / "half", dtype, torch.bfloat16)
    assert spooled(tmp_path / "as it lies") == []


def test_experts_that_are_apart_on_disk_and_fused_in_memory_are_spooled(tmp_path):
    folders = [store(tmp_path / str(seed), "qwen3_moe", seed) for seed in range(2)]
    stored = load_file(folders[0] / "model.safetensors")
    assert any("experts.3." in name for name in stored), "else this test proves nothing"
    shared, samples = shelf(tmp_path), batch(MIXED)
    for _ in range(2):
        for folder in folders:
            assert_same(shared.teacher(folder.name, config(folder)).score(samples, SAMPLED), plainly(folder, samples))
    first = spooled(tmp_path)
    assert len(first) == 2
    inodes = [path.stat().st_ino for path in first]
    again = shelf(tmp_path)  # another run: from the cache, and the second teacher without a reading by transformers
    for folder in folders:
        assert_same(again.teacher(folder.name, config(folder)).score(samples, SAMPLED), plainly(folder, samples))
    assert [path.stat().st_ino for path in spooled(tmp_path)] == inodes


def test_a_sharded_checkpoint_is_mapped_file_by_file(tmp_path):
    model, tokenizer = build("llama")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path / "shards")
    assert len(weight_files(tmp_path / "shards")) > 2
    both_ways(tmp_path, tmp_path / "shards")
    assert spooled(tmp_path) == []


def test_other_safetensors_beside_the_checkpoint_are_left_alone(tmp_path):
    folder, other = store(tmp_path / "m"), store(tmp_path / "n", seed=1)
    (folder / "consolidated.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    both_ways(tmp_path, folder)
    with pytest.raises(ValueError, match=r"no model\.safetensors in .*save_pretrained"):
        weight_files(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_tied_and_untied_heads_are_mapped(kind, tied, tmp_path):
    folder = store(tmp_path / "m", kind, tie_word_embeddings=tied)
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) is not tied
    shared = both_ways(tmp_path, folder)
    model = shared.activate(shared.teacher("t", config(folder)))
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied
    assert spooled(tmp_path) == []


def test_a_head_stored_apart_under_a_config_that_ties_it_is_not_confused_with_a_tied_one(tmp_path):
    """transformers decides what such a checkpoint means; the shelf must follow it, whoever comes first."""
    tied, apart = store(tmp_path / "tied"), store(tmp_path / "apart", tie_word_embeddings=False)
    fields = json.loads((apart / "config.json").read_text()) | {"tie_word_embeddings": True}
    (apart / "config.json").write_text(json.dumps(fields))
    for order in ([tied, apart], [apart, tied]):
        shared, samples = shelf(tmp_path / order[0].name), batch(MIXED)
        for folder in (*order, *order):
            assert_same(shared.teacher(folder.name, config(folder)).score(samples, SAMPLED), plainly(folder, samples))


def test_a_teacher_scores_over_the_students_tokens_and_reads_no_others(tmp_path):
    one = sample(3, 6)
    narrow, wide = store(tmp_path / "narrow"), store(tmp_path / "wide", vocab_size=48)
    scored = shelf(tmp_path).teacher("t", config(wide)).score([one], SAMPLED)[0]
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(wide)
    logits_TV = model(input_ids=torch.from_numpy(one.token_ids_T).long()[None]).logits[0, 2:8, :38]
    expected = logits_TV.log_softmax(-1)[torch.arange(6), one.token_ids_T[3:]].detach().numpy()
    np.testing.assert_allclose(scored.logprobs_R, expected, atol=1e-5)

    one.token_ids_T[6] = 40  # a row that the narrow one does not have
    with pytest.raises(ValueError, match=r"token id 40 .* 38 rows"):
        shelf(tmp_path, vocabulary=48).teacher("t", config(narrow)).score([one], Want("topk", 100))


# -- identity ----------------------------------------------------------------------------------------------------------


def test_a_fingerprint_tells_weights_tokenizer_template_and_dtype_apart(tmp_path):
    base = fingerprint(config(store(tmp_path / "a")))
    assert fingerprint(config(store(tmp_path / "same"))) == base

    def differing(other: dict[str, str]) -> list[str]:
        return [key for key in base if base[key] != other[key]]

    assert differing(fingerprint(config(store(tmp_path / "b", seed=1)))) == ["weights"]
    assert differing(fingerprint(config(tmp_path / "a", "bfloat16"))) == ["dtype"]
    model, tokenizer = build()
    model.save_pretrained(tmp_path / "c")
    tokenizer.chat_template += " "
    tokenizer.save_pretrained(tmp_path / "c")
    assert differing(fingerprint(config(tmp_path / "c"))) == ["template", "chat_template.jinja"]
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(tmp_path / "c")
    assert differing(fingerprint(config(tmp_path / "c"))) == [
        "tokenizer",
        "template",
        "tokenizer.json",
        "chat_template.jinja",
    ]


def test_a_teacher_from_scratch_is_refused(tmp_path):
    scratch = ModelConfig(scratch={"architecture": {"model_type": "qwen3"}, "alphabet": "ab"})
    with pytest.raises(ValueError, match="not `scratch`"):
        shelf(tmp_path).teacher("t", scratch)


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_broken_weights_are_refused_naming_tensor_and_file(kind, tmp_path):
    folder = store(tmp_path / "broken", kind)
    tensors = load_file(folder / "model.safetensors")
    name = max(name for name in tensors if "down_proj" in name)
    tensors[name][0, 1] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    message = rf"teacher 't': tensor '{re.escape(name)}' in .*broken/model\.safetensors is not finite"
    with pytest.raises(ValueError, match=message):
        shelf(tmp_path).teacher("t", config(folder)).score([sample(3, 2)], SAMPLED)
    with pytest.raises(ValueError, match=message):
        _ = shelf(tmp_path).teacher("t", config(folder)).fingerprint


def test_what_a_teacher_is_asked_for_follows_the_estimator():
    assert wanted(DistillConfig(estimator="sampled")) == Want("sampled")
    assert wanted(DistillConfig(estimator="k3")) == Want("sampled")
    assert wanted(DistillConfig(estimator="topk", k=7)) == Want("topk", 7)
    assert wanted(DistillConfig(estimator="full")) == Want("full")
    assert wanted(DistillConfig(estimator="trust_region")) == Want("topk", 64)
    assert wanted(DistillConfig(estimator="argmax", k=7)) == Want("topk", 1)

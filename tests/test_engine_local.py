"""LocalEngine: the tokens and log-probs of a plain full forward pass, whatever leaves or joins the batch meanwhile."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from onepolicy.engines.base import Sampling
from onepolicy.engines.local import LocalEngine
from onepolicy.engines.sampling import draw, truncate
from onepolicy.engines.text import Renderer
from onepolicy.types import Sample, Task
from tests.tiny_models import build, plain_logprobs

HYBRID = {
    "model_type": "qwen3_next", "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "num_hidden_layers": 4, "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
}  # fmt: skip


def ask(*texts: str, domain: str = "d") -> list[Task]:
    return [Task(text, domain, ({"role": "user", "content": text},)) for text in texts]


UNEVEN = ask("a", "12345678901234567890", "b?", "abcdefg", "1 2 3 4 5", "0", "abcdefghijk", "??")


def make(kind: str = "qwen3", batch_size: int = 64, **changes) -> LocalEngine:
    model, tokenizer = build(kind, **changes)
    return LocalEngine(model, Renderer(tokenizer, model.generation_config), batch_size)


def write(engine: LocalEngine, tasks: list[Task], n: int = 1, seed: int = 0, **sampling) -> list[Sample]:
    samples = engine.generate(tasks, n, Sampling(**sampling), seed=seed)
    return sorted(samples, key=lambda sample: (sample.group, sample.index))


def tokens(samples: Iterable[Sample]) -> list[list[int]]:
    return [sample.token_ids_T.tolist() for sample in samples]


def next_probs(model: PreTrainedModel, prompt: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([prompt])).logits[0, -1].softmax(-1).numpy()


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gemma2", "gemma3_text", "qwen3_moe"])
def test_logprobs_equal_a_plain_forward_pass_while_rows_leave_and_join(kind):
    """Prompts of 3 to 22 tokens and answers of up to 40, past the sliding window of 8; 24 rows through 5 places."""
    engine = make(kind, batch_size=5)
    samples = write(engine, UNEVEN, n=3, max_new_tokens=40)
    assert engine.joins
    assert len({sample.length for sample in samples}) > 8, "the test needs rows that end at different times"
    for sample in samples:
        np.testing.assert_allclose(sample.logprobs_R, plain_logprobs(engine.model, sample, 1.0), atol=1e-4)


def test_recurrent_layers_are_batched_by_prompt_length_and_stay_exact():
    engine = make("qwen3", batch_size=5, **HYBRID)
    samples = write(engine, UNEVEN, n=2, max_new_tokens=20)
    assert not engine.joins
    for sample in samples:
        np.testing.assert_allclose(sample.logprobs_R, plain_logprobs(engine.model, sample, 1.0), atol=1e-4)


def test_noise_is_of_the_distribution_sampled_from_and_belongs_to_the_answer():
    """Its log-probs are not the model's; the batch size changes nothing; at 0 the samples are those without it."""
    wide, narrow, plain = make(batch_size=64), make(batch_size=5), make()
    noisy = write(wide, UNEVEN, n=3, max_new_tokens=10, noise=0.5)
    assert tokens(noisy) == tokens(write(narrow, UNEVEN, n=3, max_new_tokens=10, noise=0.5))
    assert tokens(noisy) != tokens(write(plain, UNEVEN, n=3, max_new_tokens=10))
    gaps = np.concatenate([s.logprobs_R - plain_logprobs(wide.model, s, 1.0) for s in noisy])
    assert 0.2 < gaps.std() < 1.0


def test_noisy_logprobs_are_exact():
    """Every token's log-prob, from the model's own logits and the answer's own stream of noise."""
    engine = make()
    (one,) = write(engine, ask("a"), max_new_tokens=8, noise=0.7, temperature=1.3, seed=3)
    with torch.no_grad():
        logits_TV = engine.model(torch.from_numpy(one.token_ids_T).long()[None]).logits[0].float()
    stream = np.random.Generator(np.random.Philox(key=[3, 0], counter=[0, 0, 0, 1]))
    for place in range(one.length):
        before = one.prompt_length + place - 1
        noise_V = torch.from_numpy(stream.standard_normal(logits_TV.shape[1], dtype=np.float32))
        logprobs_V = ((logits_TV[before] + 0.7 * noise_V) / 1.3).log_softmax(-1)
        assert one.logprobs_R[place] == pytest.approx(logprobs_V[one.token_ids_T[before + 1]].item(), abs=1e-4)


def test_a_model_with_another_kind_of_cache_is_refused():
    with pytest.raises(ValueError, match="MambaForCausalLM did not use the cache"):
        write(make("qwen3", model_type="mamba"), UNEVEN, max_new_tokens=2)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text"])
def test_the_batch_size_changes_nothing(kind):
    wide = write(make(kind, 64), UNEVEN, n=4, max_new_tokens=40)
    narrow = write(make(kind, 4), UNEVEN, n=4, max_new_tokens=40)
    assert tokens(wide) == tokens(narrow)
    for one, other in zip(wide, narrow, strict=True):
        np.testing.assert_allclose(one.logprobs_R, other.logprobs_R, atol=1e-5)


def test_reading_prompts_in_pieces_changes_nothing():
    engine = make()
    whole = write(engine, UNEVEN, n=2, max_new_tokens=10)
    engine.prefill_tokens = 12
    assert tokens(write(engine, UNEVEN, n=2, max_new_tokens=10)) == tokens(whole)


def test_an_answer_depends_on_the_seed_its_group_and_its_index_alone():
    engine = make()
    twice = ask("1?", "1?")
    first = tokens(write(engine, twice, n=3, seed=1, max_new_tokens=20))
    assert first == tokens(write(engine, twice, n=3, seed=1, max_new_tokens=20))
    assert first != tokens(write(engine, twice, n=3, seed=2, max_new_tokens=20))
    assert len({tuple(ids) for ids in first}) == 6, "rollouts of one prompt must differ"
    assert tokens(write(engine, twice[:1], n=2, seed=1, max_new_tokens=20)) == first[:2]


def test_global_random_state_is_neither_read_nor_moved():
    engine = make()
    before = torch.random.get_rng_state()
    first = tokens(write(engine, UNEVEN, max_new_tokens=8))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert tokens(write(engine, UNEVEN, max_new_tokens=8)) == first


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.6}])
def test_first_tokens_are_drawn_from_the_distribution_they_claim(sampling):
    """Pearson's chi-square over 4,000 draws; its bound is passed by chance once in 100,000 times."""
    engine = make(batch_size=4000)
    samples = write(engine, ask("ab"), n=4000, max_new_tokens=1, **sampling)
    logits_V = torch.tensor(next_probs(engine.model, samples[0].token_ids_T[:-1].tolist())).log()
    options = Sampling(**sampling)
    kept_1V = truncate(logits_V[None] / options.temperature, options.top_k, options.top_p)
    probs_V = kept_1V.softmax(-1)[0].double().numpy()
    counts_V = np.bincount([sample.token_ids_T[-1] for sample in samples], minlength=len(probs_V))
    assert counts_V[probs_V == 0].sum() == 0
    common = probs_V * 4000 >= 5
    degrees = common.sum()
    chi_square = (((counts_V - 4000 * probs_V) ** 2)[common] / (4000 * probs_V[common])).sum()
    assert chi_square < degrees + 4.3 * np.sqrt(2 * degrees) + 12
    for sample in samples[:50]:
        assert sample.logprobs_R[0] == pytest.approx(np.log(probs_V[sample.token_ids_T[-1]]), abs=1e-4)


def test_truncation_keeps_exactly_the_tokens_it_should():
    logits_1V = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).log()
    assert truncate(logits_1V, 2, 1.0).softmax(-1)[0].tolist() == pytest.approx([0, 4 / 7, 3 / 7, 0])
    assert truncate(logits_1V, 0, 0.5).softmax(-1)[0].tolist() == pytest.approx([0, 4 / 7, 3 / 7, 0])
    assert truncate(logits_1V, 0, 0.39).softmax(-1)[0].tolist() == [0, 1, 0, 0]
    assert truncate(logits_1V, 3, 0.7).softmax(-1)[0].tolist() == pytest.approx([0, 4 / 7, 3 / 7, 0])  # k, then p
    assert truncate(torch.zeros(1, 4), 1, 1.0).isfinite().sum() == 1, "ties, too, are cut at k"
    assert torch.equal(truncate(logits_1V, 0, 1.0), logits_1V)


def test_draws_stay_on_possible_tokens_at_a_large_vocabulary():
    """The corners of [0, 1) over 151,936 tokens of which only every third is possible, all about equally likely.

    The last corner is 1 itself: what rounding makes of the largest number below it on devices without float64.
    """
    size = 151_936
    logits_1V = torch.full((1, size), -torch.inf)
    logits_1V[:, 1:-1:3] = 0.01 * torch.randn(len(range(1, size - 1, 3)), generator=torch.Generator().manual_seed(0))
    corners_B = torch.tensor([0.0, 2**-53, 0.5, 1 - 2**-24, 1 - 2**-53, 1.0], dtype=torch.float64)
    tokens_B, logprobs_B = draw(logits_1V.expand(6, -1), corners_B, Sampling())
    last = range(1, size - 1, 3)[-1]
    assert (tokens_B % 3 == 1).all()
    assert tokens_B[0] == 1 and tokens_B[1] == 1 and tokens_B[3] > last - 30 and tokens_B[4] == last
    assert abs(tokens_B[2] - size / 2) < size * 0.001
    assert logprobs_B.isfinite().all()


def test_the_middle_of_a_tokens_interval_names_that_token_at_a_large_vocabulary():
    """Of 151,936 equal tokens; a float32 distribution function is too coarse for it."""
    size = 151_936
    wanted_B = torch.tensor([0, 1, 4_999, 75_968, 111_111, 151_000, 151_934, 151_935])
    tokens_B, logprobs_B = draw(torch.zeros(8, size), (wanted_B.double() + 0.5) / size, Sampling())
    assert tokens_B.tolist() == wanted_B.tolist()
    assert logprobs_B.tolist() == pytest.approx([-np.log(size)] * 8, abs=1e-5)


def test_greedy_equals_generate_and_top_k_of_one():
    engine = make(batch_size=3)
    samples = write(engine, UNEVEN, temperature=0.0, max_new_tokens=16)
    for sample, top in zip(samples, write(engine, UNEVEN, top_k=1, max_new_tokens=16), strict=True):
        assert sample.token_ids_T.tolist() == top.token_ids_T.tolist()
        assert not top.logprobs_R.any(), "the only token left has probability 1"
        prompt = torch.tensor(sample.token_ids_T[None, : sample.prompt_length].astype(int))
        theirs = engine.model.generate(prompt, do_sample=False, max_new_tokens=16)
        assert sample.token_ids_T.tolist() == theirs[0].tolist()
        np.testing.assert_allclose(sample.logprobs_R, plain_logprobs(engine.model, sample, 1.0), atol=1e-4)


def test_logprobs_are_those_at_the_sampling_temperature():
    engine = make()
    for sample in write(engine, UNEVEN, temperature=0.7, max_new_tokens=8):
        np.testing.assert_allclose(sample.logprobs_R, plain_logprobs(engine.model, sample, 0.7), atol=1e-4)


def test_an_answer_ends_with_the_first_stop_token_or_at_its_limit():
    engine = make()
    tokenizer = engine.renderer.tokenizer
    engine.renderer = Renderer(tokenizer, GenerationConfig(eos_token_id=tokenizer.convert_tokens_to_ids(["a", "b"])))
    stops = engine.renderer.stop_ids
    samples = write(engine, UNEVEN, n=8, max_new_tokens=12)
    assert {sample.finish for sample in samples} == {"stop", "length"}
    for sample in samples:
        written = sample.token_ids_T[sample.mask_T].tolist()
        assert not stops & set(written[:-1])
        assert (written[-1] in stops) == (sample.finish == "stop")
        assert sample.finish == "stop" or len(written) == 12
        assert len(sample.logprobs_R) == len(written), "the stop token counts"
        assert sample.response == engine.renderer.decode(written)


def test_a_stop_string_ends_an_answer_and_is_no_part_of_it():
    """Strings of one token and of several; what the policy wrote stays, with its log-probs."""
    engine = make(batch_size=7)
    free = write(engine, UNEVEN, n=12, max_new_tokens=40)
    texts = [sample.response for sample in free]
    pairs = sorted({text[at : at + 3] for text in texts for at in range(len(text) - 3)})
    stop = (pairs[0], pairs[len(pairs) // 2], "g")
    samples = write(engine, UNEVEN, n=12, max_new_tokens=40, stop=stop)
    assert tokens(samples) == tokens(write(engine, UNEVEN, n=12, max_new_tokens=40, stop=stop))
    ended = set()
    for sample, text in zip(samples, texts, strict=True):
        places = {string: text.find(string) for string in stop if string in text}
        first = min(places, key=lambda string: places[string] + len(string), default=None)
        written = sample.token_ids_T[sample.mask_T].tolist()
        if first is None:
            assert sample.response == text
            continue
        ended.add(first)
        assert sample.finish == "stop"
        assert sample.response == sample.answer == text[: places[first]]
        assert engine.renderer.decode(written) == text[: places[first]] + first
        np.testing.assert_allclose(sample.logprobs_R, plain_logprobs(engine.model, sample, 1.0), atol=1e-4)
    assert len(ended) == 3, "the test needs all of them"


def test_no_answer_ends_before_its_least_length_and_log_probs_are_the_whole_distributions():
    """Those that a learner computes, so that engine and learner agree; the stop token's probability stays in them."""
    engine = make(batch_size=7)
    tokenizer = engine.renderer.tokenizer
    engine.renderer = Renderer(tokenizer, GenerationConfig(eos_token_id=tokenizer.convert_tokens_to_ids(["a", "b"])))
    for temperature in (1.0, 0.6, 0.0):
        options = {"temperature": temperature, "max_new_tokens": 12, "stop": ("c",)}
        lengths = {sample.length for sample in write(engine, UNEVEN, n=8, **options)}
        assert min(lengths) < 5
        samples = write(engine, UNEVEN, n=8, min_new_tokens=5, **options)
        assert 5 <= min(sample.length for sample in samples) < 12
        for sample in samples:
            written = sample.token_ids_T[sample.mask_T].tolist()
            assert not engine.renderer.stop_ids & set(written[:4])
            assert "c" not in sample.response[4:] and sample.finish in ("stop", "length")
            expected = plain_logprobs(engine.model, sample, temperature or 1.0)
            np.testing.assert_allclose(sample.logprobs_R, expected, atol=1e-4)


def test_barred_tokens_are_never_drawn_and_the_others_in_proportion():
    logits_1V = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    barred_BV = torch.tensor([[True, False, False, False]]).expand(1000, -1)
    uniforms_B = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    tokens_B, logprobs_B = draw(logits_1V.expand(1000, -1), uniforms_B, Sampling(), barred_BV)
    expected = logits_1V[0, 1:].softmax(-1)
    counts = torch.bincount(tokens_B, minlength=4) / 1000
    assert counts[0] == 0 and torch.allclose(counts[1:], expected, atol=2e-3)
    assert torch.allclose(logprobs_B, logits_1V.log_softmax(-1)[0, tokens_B])


def test_limits_hold_per_domain_and_longer_ones_do_not_lift_the_general_one():
    tasks = ask("1?", domain="short") + ask("1?", domain="long") + ask("1?", domain="other")
    engine = make()
    engine.renderer.stop_ids = frozenset({-1})
    samples = write(engine, tasks, n=2, max_new_tokens=9, limits={"short": 3, "long": 50})
    assert [sample.length for sample in samples] == [3, 3, 9, 9, 9, 9]
    assert {sample.finish for sample in samples} == {"length"}


def test_samples_carry_their_place_task_and_version():
    engine = make(batch_size=3)
    samples = list(engine.generate(UNEVEN, 2, Sampling(max_new_tokens=6), seed=0, version=7))
    assert sorted((s.group, s.index) for s in samples) == [(group, i) for group in range(8) for i in range(2)]
    for sample in samples:
        assert sample.task is UNEVEN[sample.group] and sample.version == 7
        prompt = engine.renderer.prompt_ids(sample.task)
        assert sample.token_ids_T[: sample.prompt_length].tolist() == prompt
        assert (sample.token_ids_T.dtype, sample.mask_T.dtype, sample.logprobs_R.dtype) == (np.int32, bool, np.float32)


def test_samples_come_as_they_end():
    engine = make()
    engine.renderer.stop_ids = frozenset({-1})
    tasks = ask("1?", domain="long") + ask("1?", domain="short")
    arriving = engine.generate(tasks, 1, Sampling(max_new_tokens=30, limits={"short": 2}), seed=0)
    assert [sample.task.domain for sample in arriving] == ["short", "long"]


def test_a_task_that_cannot_be_asked_becomes_an_error_and_the_others_are_written():
    engine = make(max_position_embeddings=12)
    broken = Task("broken", "d", ({"role": "user", "content": None},))
    engine.renderer.tokenizer.chat_template = engine.renderer.tokenizer.chat_template.replace(
        "{{ message.content }}", "{{ message.content + '' }}"
    )
    samples = write(engine, [*ask("1?", "a" * 30), broken], n=2, max_new_tokens=40)
    assert [sample.finish == "error" for sample in samples] == [False, False, True, True, True, True]
    assert all(sample.length and len(sample.token_ids_T) <= 12 for sample in samples[:2])
    for sample in samples[2:]:
        assert sample.length == 0 and sample.response == "" and len(sample.logprobs_R) == 0
    assert "32 tokens leaves no room in the model's context of 12" in samples[2].reason
    assert "'broken'" in samples[4].reason


def test_an_empty_prompt_is_an_error():
    engine = make()
    engine.renderer.tokenizer.chat_template = None
    (sample,) = write(engine, ask(""))
    assert sample.finish == "error" and "empty" in sample.reason


def test_a_diverged_model_gives_errors_and_no_tokens():
    engine = make()
    with torch.no_grad():
        engine.model.model.norm.weight.fill_(torch.nan)
    for sample in write(engine, UNEVEN, n=2):
        assert sample.finish == "error" and sample.length == 0 and "diverged" in sample.reason


def test_a_model_generates_in_evaluation_mode_whatever_mode_it_was_in():
    engine = make("mixtral", router_jitter_noise=0.3)
    calm = write(engine, UNEVEN, n=2, max_new_tokens=8)
    engine.model.train()
    for one, other in zip(calm, write(engine, UNEVEN, n=2, max_new_tokens=8), strict=True):
        np.testing.assert_array_equal(one.token_ids_T, other.token_ids_T)
        np.testing.assert_array_equal(one.logprobs_R, other.logprobs_R)


def test_the_same_weights_train_between_and_after_rollouts():
    engine = make("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    samples = engine.generate(UNEVEN, 1, Sampling(max_new_tokens=8), seed=0)
    ids = torch.tensor(next(samples).token_ids_T[None].astype(int))
    for _ in (next(samples), list(samples)):
        assert torch.is_grad_enabled()
        engine.model.zero_grad()
        engine.model(ids, labels=ids).loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in engine.model.parameters())


def test_no_tasks_give_no_samples_and_no_batch_is_refused():
    assert write(make(), []) == []
    with pytest.raises(ValueError, match="batch_size is 0"):
        make(batch_size=0)


def test_half_precision_models_write_in_their_own_precision_with_float32_logprobs():
    engine = make(batch_size=8)
    engine.model.bfloat16()
    samples = write(engine, UNEVEN, n=2, max_new_tokens=10)
    for sample in samples:
        assert sample.logprobs_R.dtype == np.float32
        np.testing.assert_allclose(sample.logprobs_R, plain_logprobs(engine.model, sample, 1.0), atol=0.2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_k": -1},
        {"max_new_tokens": 0},
        {"stop": "a"},
        {"stop": ("a", "")},
        {"min_new_tokens": -1},
    ],
)
def test_nonsense_sampling_is_refused(wrong):
    with pytest.raises(ValueError, match="cannot sample with"):
        Sampling(**wrong)

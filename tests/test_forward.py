"""Log-probs in chunks: equal to the plain [T, V] form, whatever the architecture, the padding and the chunk."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onepolicy.engines import forward
from onepolicy.engines.base import Sampling
from onepolicy.engines.forward import (
    check_head,
    live_head,
    plan_batches,
    predicting_states,
    score_samples,
    token_chunks,
    token_stats,
)
from onepolicy.engines.local import LocalEngine
from onepolicy.engines.text import Renderer
from onepolicy.types import Sample, Want
from tests.tiny_models import KINDS, MIXED, batch, build, multi_turn, plain_logprobs, sample, task

SAMPLED = Want("sampled")


def score(model, samples: list[Sample], want: Want = SAMPLED, temperature: float = 1.0, tokens: int = 64):
    return score_samples(
        model, live_head(model), samples, want, source="m", temperature=temperature, tokens_per_batch=tokens
    )


def chunks_of(monkeypatch: pytest.MonkeyPatch, tokens: int, vocabulary: int) -> None:
    monkeypatch.setitem(forward.CHUNK_BYTES, "cpu", 4 * forward.LIVE_COPIES * vocabulary * tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_a_plain_log_softmax_of_the_models_own_logits(kind, monkeypatch):
    model, tokenizer = build(kind)
    chunks_of(monkeypatch, 4, len(tokenizer))
    samples = [*batch(MIXED), multi_turn()]
    for scored, one in zip(score(model, samples, temperature=0.7), samples, strict=True):
        if one.length:
            np.testing.assert_allclose(scored.logprobs_R, plain_logprobs(model, one, 0.7), atol=1e-5)
        assert scored.logprobs_R.shape == (one.length,)
        assert scored.logprobs_R.dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_padded_micro_batches_equal_single_rows(kind):
    model, _ = build(kind)
    samples = batch(MIXED)
    together, alone = score(model, samples, tokens=10**6), [score(model, [one])[0] for one in samples]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.logprobs_R, other.logprobs_R, atol=1e-5)


def test_the_tiny_models_tell_mistakes_apart():
    """Capped, scaled and plain logits must differ by more than the tolerances above, else these tests prove nothing."""
    for kind in ("gemma2", "cohere", "granite"):
        model, _ = build(kind)
        hidden = model.base_model(input_ids=torch.arange(6)[None]).last_hidden_state[0]
        head = live_head(model)
        assert (head.logits(hidden) - head.project(hidden)).abs().max() > 0.1


def test_only_the_tokens_the_policy_wrote_are_scored_across_turns():
    model, _ = build()
    one = multi_turn()
    states, tokens_N = predicting_states(model, [one])
    assert states.shape == (3, 32)
    assert tokens_N.tolist() == [11, 8, 1]
    logits_TV = model(input_ids=torch.from_numpy(one.token_ids_T).long()[None]).logits[0]
    expected = logits_TV.log_softmax(-1)[[2, 6, 7], [11, 8, 1]].detach().numpy()
    np.testing.assert_allclose(score(model, [one])[0].logprobs_R, expected, atol=1e-6)


@pytest.mark.parametrize("want", [Want("sampled"), Want("topk", 5), Want("full")])
def test_an_empty_response_gets_scores_of_length_zero(want):
    model, _ = build()
    empties = [sample(4, 0), sample(0, 0)]
    for scored in [*score(model, empties, want), score(model, [sample(3, 2), *empties], want)[1]]:
        assert scored.logprobs_R.shape == (0,)
        if want.kind == "topk":
            assert scored.topk_ids_RK.shape == scored.topk_logprobs_RK.shape == (0, 5)
        if want.kind == "full":
            assert scored.hidden_RH.shape == (0, 32)
    assert score(model, [], want) == []


def test_topk_names_the_most_likely_tokens_under_the_full_softmax():
    model, _ = build()
    one = sample(3, 4)
    scored = score(model, [one], Want("topk", 3))[0]
    logits_TV = model(input_ids=torch.from_numpy(one.token_ids_T).long()[None]).logits[0].detach()
    values, ids = logits_TV.log_softmax(-1)[2:6].topk(3)
    np.testing.assert_array_equal(scored.topk_ids_RK, ids.numpy())
    np.testing.assert_allclose(scored.topk_logprobs_RK, values.numpy(), atol=1e-5)
    whole = score(model, [one], Want("topk", 1000))[0]
    np.testing.assert_allclose(np.exp(whole.topk_logprobs_RK).sum(-1), 1.0, atol=1e-5)


def test_hidden_states_and_head_rebuild_the_whole_distribution():
    model, _ = build("gemma2")
    one = sample(3, 4)
    scored = score(model, [one], Want("full"), temperature=0.5)[0]
    logprobs_RV = scored.head.logprobs(torch.from_numpy(scored.hidden_RH), 0.5)
    expected = (model(input_ids=torch.from_numpy(one.token_ids_T).long()[None]).logits[0, 2:6] / 0.5).log_softmax(-1)
    torch.testing.assert_close(logprobs_RV, expected, atol=1e-5, rtol=0)


def test_a_chunks_entropy_and_log_probs_are_those_of_its_distribution():
    model, _ = build("gemma2")
    hidden_NH, tokens_N = predicting_states(model, [sample(3, 6)])
    stats = token_stats(live_head(model), hidden_NH, tokens_N, 0.8, lambda logprobs_CV: logprobs_CV[:, 2])
    logprobs_NV = (live_head(model).logits(hidden_NH) / 0.8).log_softmax(-1)
    torch.testing.assert_close(stats.logprobs_C, logprobs_NV[torch.arange(6), tokens_N])
    torch.testing.assert_close(stats.entropy_C, -(logprobs_NV.exp() * logprobs_NV).sum(-1))
    assert stats.divergence_C is not None
    assert torch.equal(stats.divergence_C, logprobs_NV[:, 2])


def test_chunks_cover_all_tokens_and_may_keep_samples_whole(monkeypatch):
    model, tokenizer = build()
    chunks_of(monkeypatch, 5, len(tokenizer))
    head, lengths = live_head(model), [2, 2, 4, 9, 1, 1, 3]

    def cut(whole: bool) -> list[tuple[int, int]]:
        return [(chunk.start, chunk.stop) for chunk in token_chunks(head, lengths, whole)]

    assert cut(False) == [(0, 5), (5, 10), (10, 15), (15, 20), (20, 22)]
    assert cut(True) == [(0, 4), (4, 8), (8, 17), (17, 22)]
    assert token_chunks(head, []) == token_chunks(head, [], True) == []


@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "cohere"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_generate_then_score_by_the_same_weights_agree(kind, temperature):
    model, tokenizer = build(kind)
    engine = LocalEngine(model, Renderer(tokenizer, model.generation_config), batch_size=8)
    sampling = Sampling(temperature=temperature, max_new_tokens=24)
    samples = list(engine.generate([task(number=i) for i in range(4)], 4, sampling, seed=1))
    assert sum(one.length for one in samples) > 20
    for scored, one in zip(score(model, samples, temperature=temperature), samples, strict=True):
        np.testing.assert_allclose(scored.logprobs_R, one.logprobs_R, atol=1e-4)


def test_a_token_outside_the_embeddings_is_refused_and_never_read_as_another():
    model, _ = build()
    one = sample(3, 6)
    one.token_ids_T[5] = 1000
    for want in (SAMPLED, Want("topk", 4), Want("full")):
        with pytest.raises(ValueError, match=r"token id 1000 .* Qwen3ForCausalLM .* 38 rows"):
            score(model, [one], want)


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_of_every_known_architecture_passes_its_check(kind):
    model, _ = build(kind)
    model.train()
    check_head(model)
    check_head(model.to(torch.bfloat16))


@pytest.mark.parametrize("after", [lambda x: 20 * torch.tanh(x / 20), lambda x: 0.5 * x, lambda x: x + 1])
def test_a_model_that_post_processes_its_logits_in_an_unknown_way_is_refused(after):
    model, _ = build()

    class Unknown(type(model)):  # type: ignore[misc]
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = after(output.logits)
            return output

    with torch.no_grad():  # as quiet as a fresh model: a soft cap must show all the same
        model.get_output_embeddings().weight.mul_(1e-3)
    model.__class__ = Unknown
    with pytest.raises(ValueError, match="Unknown post-processes its logits"):
        check_head(model)


def test_unfinite_weights_are_called_broken():
    model, _ = build()
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        check_head(model)


def test_micro_batches_are_sorted_by_length_bounded_and_split_by_key():
    assert plan_batches([5, 4, 4, 5, 9], 12) == [[4], [0, 3], [1, 2]]  # 9 alone; 2 × 5 fit, 3 × 5 would not
    assert plan_batches([5, 1, 4, 2, 9], 100) == [[4], [0, 2], [3, 1]]  # 5 beside 9 and 2 beside 5 would waste much
    assert plan_batches([5, 1, 4, 2, 9], 1000) == [[4, 0, 2, 3, 1]]  # too small to be split for that
    assert plan_batches([3, 3, 3, 3], 100, [1, 0, 1, 0]) == [[1, 3], [0, 2]]
    assert plan_batches([], 10) == []


def rollouts_of(prompts: list[int], n: int = 4) -> list[Sample]:
    """n rollouts of unlike lengths for each prompt, shuffled; the longer ones hold an observation in the middle."""
    rng = np.random.default_rng(0)
    samples = []
    for length in prompts:
        prompt = rng.integers(0, 38, length)
        for written in rng.integers(1, 16, n):
            ids_T = np.concatenate([prompt, rng.integers(0, 38, written)]).astype(np.int32)
            mask_T = np.arange(len(ids_T)) >= length
            if written > 6:
                mask_T[length + 2 : length + 4] = False
            samples.append(Sample(task(), ids_T, mask_T, np.zeros(int(mask_T.sum()), dtype=np.float32)))
    return [samples[i] for i in rng.permutation(len(samples))]


@pytest.mark.parametrize("prompts", [[12, 12, 12], [12, 9, 14]], ids=["equal", "mixed"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "phi3"])  # whose rows are in test_rows_alone.py
def test_rollouts_that_share_their_prompt_get_the_states_and_gradients_of_rows_on_their_own(kind, prompts, monkeypatch):
    model, _ = build(kind)
    model.train()
    samples = rollouts_of(prompts)
    found = []
    for threshold in (float("inf"), 0.0):  # never, always
        monkeypatch.setattr(forward, "SHARING", threshold)
        model.zero_grad()
        hidden_NH, tokens_N = forward.predicting_states(model, samples)
        (hidden_NH * torch.arange(hidden_NH.numel()).view_as(hidden_NH).sin()).sum().backward()
        found.append((hidden_NH.detach(), tokens_N, [p.grad.clone() for p in model.parameters() if p.grad is not None]))

    (alone, tokens, gradients), (shared, tokens_again, gradients_again) = found
    assert torch.equal(tokens, tokens_again)
    torch.testing.assert_close(shared, alone, atol=2e-5, rtol=2e-4)
    for one, other in zip(gradients, gradients_again, strict=True):
        assert (one - other).norm() <= 1e-3 * one.norm() + 1e-5


def test_a_group_is_read_with_its_prompt_once(monkeypatch):
    model, _ = build()
    read = []
    model.base_model.register_forward_pre_hook(
        lambda _, __, inputs: read.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    prompt = np.arange(20, dtype=np.int32)
    mask_T = np.arange(23) >= 20
    samples = [
        Sample(task(), np.append(prompt, np.int32([i, 1, 2])), mask_T, np.zeros(3, dtype=np.float32)) for i in range(8)
    ]

    forward.predicting_states(model, samples)

    assert read == [20, 8 * 2]  # row by row it would be 8 · 22

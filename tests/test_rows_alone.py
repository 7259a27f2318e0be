"""Every row gets the log-probs that it has alone: LongRoPE, randomness in training mode, one precision, padded rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from onepolicy.config import LossConfig, OptimConfig, ScratchConfig
from onepolicy.engines.base import Sampling
from onepolicy.engines.forward import live_head, score_samples
from onepolicy.engines.local import LocalEngine
from onepolicy.engines.positions import PositionRule
from onepolicy.engines.precision import choose_attention
from onepolicy.engines.probe import check_policy, check_scoring
from onepolicy.engines.room import Room
from onepolicy.engines.text import Renderer
from onepolicy.engines.vocabulary import check_vocabulary, count_gaps, vocabulary_size
from onepolicy.learner import Learner
from onepolicy.tiny import from_scratch
from onepolicy.types import Sample, Task, Want, Weights
from tests.tiny_models import KINDS, build, plain_logprobs, sample, task

SHORT_AND_LONG = [(3, 4), (5, 30), (12, 4), (20, 3), (14, 2), (30, 12), (4, 8)]  # LongRoPE's frequencies change at 16
SAMPLED = Want("sampled")
# names under which architectures hide randomness in training mode
RANDOM: dict[str, dict[str, Any]] = {
    "mixtral": {"router_jitter_noise": 0.5, "attention_dropout": 0.3},
    "phimoe": {
        "model_type": "phimoe",
        "router_jitter_noise": 0.5,
        "input_jitter_noise": 0.5,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    },
    "xglm": {"model_type": "xglm", "d_model": 32, "ffn_dim": 48, "attention_heads": 4, "num_layers": 3}
    | {"layerdrop": 0.5, "dropout": 0.3, "activation_dropout": 0.3, "attention_dropout": 0.3},
    "opt": {"model_type": "opt", "hidden_size": 32, "ffn_dim": 48, "word_embed_proj_dim": 32}
    | {"layerdrop": 0.5, "dropout": 0.3, "attention_dropout": 0.3},
}


def ask(*texts: str) -> list[Task]:
    return [Task(text, "d", ({"role": "user", "content": text},)) for text in texts]


def learner_of(model: PreTrainedModel, tokenizer: Any, tokens: int = 16384, **optim: Any) -> Learner:
    loss = LossConfig(reduction="token")
    return Learner(model, tokenizer, OptimConfig(tokens_per_batch=tokens, **optim), loss)


def imitated() -> list[Sample]:
    samples = [sample(prompt, written, seed=i) for i, (prompt, written) in enumerate(SHORT_AND_LONG)]
    for one in samples:
        one.weights = Weights(ce=1.0)
    return samples


def gradient(learner: Learner, samples: list[Sample]) -> torch.Tensor:
    learner.backward(samples)
    return torch.cat([p.grad.flatten() for p in learner.parameters if p.grad is not None])


def plain_gradient(model: PreTrainedModel, samples: list[Sample]) -> torch.Tensor:
    """Mean cross-entropy over the written tokens, each row through the architecture's own forward pass alone."""
    model.zero_grad()
    count = sum(one.length for one in samples)
    for one in samples:
        # the last token is not read: it predicts nothing
        ids = torch.from_numpy(one.token_ids_T).long()
        logprobs = model(input_ids=ids[None, :-1], use_cache=False).logits[0].log_softmax(-1)
        written = torch.from_numpy(one.mask_T[1:])
        (-logprobs.gather(-1, ids[1:, None])[written].sum() / count).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


# -- positions -----------------------------------------------------------------------------------------------------


def test_rows_of_long_rope_that_may_share_a_pass_have_equal_keys() -> None:
    model, _ = build("phi3")
    rule = PositionRule(model.config)
    assert rule.key(1) == rule.key(16) != rule.key(17) == rule.key(200)
    assert (rule.longest_like(5), rule.longest_like(16), rule.longest_like(17)) == (16, 16, None)
    stretched = PositionRule(build("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0})[0].config)
    assert stretched.key(3) == stretched.key(256) != stretched.key(257) != stretched.key(258)
    assert stretched.longest_like(9) == 256
    assert PositionRule(build()[0].config).key(3) == ()


@pytest.mark.parametrize("tokens", [16384, 64, 1])
def test_short_rows_are_scored_as_alone_beside_long_ones(tokens: int) -> None:
    model, _ = build("phi3")
    samples = imitated()
    scores = score_samples(
        model, live_head(model), samples, SAMPLED, source="m", temperature=1.0, tokens_per_batch=tokens
    )
    for one, score in zip(samples, scores, strict=True):
        np.testing.assert_allclose(score.logprobs_R, plain_logprobs(model, one), atol=2e-5)


def test_a_prompt_is_read_apart_from_rollouts_that_outgrow_its_positions() -> None:
    model, _ = build("phi3")
    prompt = np.arange(6, 20, dtype=np.int32)  # 14 tokens: two rollouts stay below 16, two do not
    rng = np.random.default_rng(0)
    samples = []
    for written in (1, 2, 6, 9):
        ids_T = np.concatenate([prompt, rng.integers(6, 38, written, dtype=np.int32)])
        samples.append(Sample(task(), ids_T, np.arange(len(ids_T)) >= 14, np.zeros(written, dtype=np.float32)))
    scores = score_samples(model, live_head(model), samples, SAMPLED, source="m", temperature=1.0, tokens_per_batch=999)
    for one, score in zip(samples, scores, strict=True):
        np.testing.assert_allclose(score.logprobs_R, plain_logprobs(model, one), atol=2e-5)


@pytest.mark.parametrize("tokens", [16384, 80, 1])
def test_the_gradient_of_long_rope_does_not_depend_on_the_micro_batch(tokens: int) -> None:
    model, tokenizer = build("phi3")
    expected = plain_gradient(model, imitated())
    found = gradient(learner_of(model, tokenizer, tokens), imitated())
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_long_rope_generates_with_the_positions_of_the_finished_row() -> None:
    model, tokenizer = build("phi3")
    engine = LocalEngine(model, Renderer(tokenizer, model.generation_config), batch_size=6)
    tasks = ask("a", "abcdefghijklmnopqrst", "bc", "0123456789abcdefgh", "abcdefghijk", "12345678901234567890123")
    samples = list(engine.generate(tasks, 3, Sampling(max_new_tokens=20), seed=0))
    assert len(samples) == 18
    for one in samples:
        np.testing.assert_allclose(one.logprobs_R, plain_logprobs(model, one), atol=2e-5)
        if one.prompt_length <= 16:  # it cannot go on: from the 17th token all of its positions would be others
            assert len(one.token_ids_T) <= 16
            assert one.finish == ("length" if len(one.token_ids_T) == 16 else "stop") or one.token_ids_T[-1] == 1
    assert max(one.length for one in samples) == 20
    check_policy(engine)


# -- randomness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", RANDOM)
def test_the_update_is_of_the_policy_that_generated_whatever_its_randomness_is_called(
    kind: str, checkpointing: bool
) -> None:
    base = "mixtral" if kind == "mixtral" else "qwen3"
    model, tokenizer = build(base, **RANDOM[kind])
    samples = [sample(3, 4, seed=1), sample(6, 5, seed=2)]
    for one in samples:
        one.weights = Weights(ce=1.0)
    expected = plain_gradient(model.eval(), samples)
    learner = learner_of(model.train(), tokenizer, gradient_checkpointing=checkpointing)
    for _ in range(2):
        found = gradient(learner, samples)
        assert (found - expected).norm() < 1e-4 * expected.norm()
    check_policy(LocalEngine(model, Renderer(tokenizer, model.generation_config)))


def test_dropout_that_a_checkpointed_layer_reads_from_the_configuration_is_off_and_saved_as_it_was() -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "model_type": "falcon"}
    rates = {"hidden_dropout": 0.3, "attention_dropout": 0.3}
    model, tokenizer = from_scratch(ScratchConfig(architecture=small | rates, alphabet="abcdefghijklmnopqrst0123"), 0)
    samples = [sample(3, 4, seed=1, vocabulary=30), sample(6, 5, seed=2, vocabulary=30)]
    for one in samples:
        one.weights = Weights(ce=1.0)
    expected = plain_gradient(model.eval(), samples)
    learner = learner_of(model, tokenizer, gradient_checkpointing=True)
    assert (gradient(learner, samples) - expected).norm() < 1e-4 * expected.norm()
    assert (model.config.hidden_dropout, model.config.attention_dropout) == (0.3, 0.3)


def test_checkpointing_recomputes_its_layers_and_leaves_them_in_evaluation_mode() -> None:
    model, tokenizer = build()
    learner = learner_of(model, tokenizer, gradient_checkpointing=True)
    passes = []
    model.base_model.layers[0].self_attn.register_forward_pre_hook(lambda *_: passes.append(1))
    learner.backward(imitated()[:1])
    assert len(passes) == 2, "once in the forward pass, once more in the backward pass"
    assert not any(module.training for module in model.modules())


# -- the probe -----------------------------------------------------------------------------------------------------


def swapped(model: PreTrainedModel, forward: Any) -> PreTrainedModel:
    """The same model, of a class whose backbone does something more."""

    class Strange(type(model.base_model)):  # type: ignore[misc]
        def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
            output = super().forward(input_ids=input_ids, **options)
            output.last_hidden_state = forward(output.last_hidden_state)
            return output

    model.base_model.__class__ = Strange
    return model


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: x + 0.1 * x.mean(0, keepdim=True),  # a row sees the others
        lambda x: x * (1 + 0.01 * x.shape[1]),  # and how long the longest is
        lambda x: x + 0.05 * torch.randn_like(x),  # random, in evaluation mode too
    ],
)
def test_an_architecture_whose_rows_depend_on_one_another_is_refused_by_name(forward: Any) -> None:
    model, tokenizer = build()
    engine = LocalEngine(swapped(model, forward), Renderer(tokenizer, model.generation_config))
    with pytest.raises(ValueError, match=r"Qwen3ForCausalLM .* cannot be used: in the path '(score|generate|learn)'"):
        check_policy(engine)
    with pytest.raises(ValueError, match="Qwen3ForCausalLM"):
        check_scoring(model, engine.vocabulary, engine.context)


@pytest.mark.parametrize("kind", KINDS)
def test_known_architectures_pass_the_probe(kind: str) -> None:
    model, tokenizer = build(kind)
    engine = LocalEngine(model, Renderer(tokenizer, model.generation_config))
    check_policy(engine)
    check_scoring(model.to(torch.bfloat16), engine.vocabulary, engine.context)


# -- precision -----------------------------------------------------------------------------------------------------


def test_engine_and_learner_compute_alike_in_bfloat16() -> None:
    model, tokenizer = build()
    choose_attention(model, torch.bfloat16)
    engine = LocalEngine(model, Renderer(tokenizer, model.generation_config), dtype=torch.bfloat16)
    learner = Learner(model, tokenizer, OptimConfig(), LossConfig(), dtype=torch.bfloat16)
    tasks = ask("a", "12345678901234567890", "b?", "abcdefg")
    samples = list(engine.generate(tasks, 3, Sampling(max_new_tokens=20), seed=0))
    written = np.concatenate([one.logprobs_R for one in samples])
    learnt = np.concatenate([score.logprobs_R for score in learner.score(samples, SAMPLED)])
    alone = np.concatenate([plain_logprobs(model, one) for one in samples])
    assert np.abs(written - learnt).mean() < 1e-4
    assert np.abs(written - alone).mean() > 1e-3, "the test needs a bfloat16 that differs from float32"


# -- vocabulary ----------------------------------------------------------------------------------------------------


def test_padding_rows_of_the_vocabulary_are_neither_sampled_nor_part_of_a_softmax() -> None:
    model, tokenizer = build(vocab_size=64)
    size = len(tokenizer)
    with torch.no_grad():  # what the padding rows would get, if anybody asked
        model.get_input_embeddings().weight[size:] *= 30
    engine = LocalEngine(model, Renderer(tokenizer, model.generation_config))
    samples = list(engine.generate(ask("a", "b?", "abcdefg"), 8, Sampling(max_new_tokens=12), seed=0))
    assert max(one.token_ids_T.max() for one in samples) < size
    learner = learner_of(model, tokenizer)
    assert learner.head.vocabulary == size
    for one, score in zip(samples, learner.score(samples, SAMPLED), strict=True):
        np.testing.assert_allclose(score.logprobs_R, one.logprobs_R, atol=1e-4)
        ids = torch.from_numpy(one.token_ids_T).long()
        logits_TV = model(input_ids=ids[None]).logits[0, :-1, :size].detach()
        expected = logits_TV.log_softmax(-1).gather(-1, ids[1:, None])[torch.from_numpy(one.mask_T[1:]), 0]
        np.testing.assert_allclose(one.logprobs_R, expected.numpy(), atol=1e-4)


def test_a_tokenizer_larger_than_the_embeddings_is_refused_with_both_sizes() -> None:
    model, tokenizer = build()
    check_vocabulary(model, tokenizer)
    assert (vocabulary_size(tokenizer), count_gaps(tokenizer)) == (38, 0)
    tokenizer.add_tokens(["<|ask|>", "<|tell|>"])
    with pytest.raises(ValueError, match=r"ids up to 39 \(40 tokens\), its embeddings only 38 rows"):
        check_vocabulary(model, tokenizer)


def test_responses_that_would_outgrow_the_positions_of_their_prompt_are_told_before_the_run() -> None:
    model, tokenizer = build("phi3")
    room = Room(LocalEngine(model, Renderer(tokenizer, model.generation_config)), Sampling(max_new_tokens=12))
    short, crossing, long = ask("a", "abcdefg", "abcdefghijklmnopqrst")  # 3, 9 and 22 prompt tokens
    assert room.prompt_fault(short) == room.prompt_fault(long) == ""
    assert room.prompt_fault(crossing) == (
        "9 prompt tokens + max_new_tokens 12 exceed 16 tokens, beyond which this architecture changes the positions of "
        "a whole row (LongRoPE)"
    )

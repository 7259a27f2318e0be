"""One step: independent of the split, exact where it can be, harmless where it must be, and exactly resumable."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from onepolicy.config import DistillConfig, ImportanceConfig, LossConfig, OptimConfig, PolicyConfig
from onepolicy.diagnostics import policy_gap
from onepolicy.engines import forward
from onepolicy.engines.base import Sampling
from onepolicy.engines.local import LocalEngine
from onepolicy.engines.text import Renderer
from onepolicy.learner import Learner
from onepolicy.teachers import wanted
from onepolicy.types import Sample, TokenScores, Want, Weights
from onepolicy.updates import learning_rate_factor
from tests.tiny_models import KINDS, MIXED, batch, build, multi_turn, plain_logprobs, sample, task

FREE = OptimConfig(learning_rate=1e-2, clip_norm=1e9)
OPEN = ImportanceConfig(low=0.0, high=1e9)


def learner(
    seed: int = 0, *, kind: str = "qwen3", optim: OptimConfig = FREE, loss: LossConfig | None = None, **options
) -> Learner:
    model, tokenizer = build(kind, seed)
    return Learner(model, tokenizer, optim, loss or LossConfig(importance=OPEN), **options)


def double(one: Learner) -> Learner:
    """In float64, so that equal means equal to ten digits. (torch has no float64 kernel for grouped experts.)"""
    if one.model.config.model_type not in ("qwen3_moe", "mixtral"):
        one.model.double()
    return one


def distilling(estimator: str, reduction: str = "sequence", importance: str = "gate", **changes) -> LossConfig:
    gate = ImportanceConfig(mode=importance, low=0.0, high=1e9)
    return LossConfig(reduction=reduction, importance=gate, distill=DistillConfig(estimator=estimator, **changes))


def taught(samples: list[Sample], teacher: Learner, loss: LossConfig) -> list[Sample]:
    for one, scores in zip(samples, teacher.score(samples, wanted(loss.distill)), strict=True):
        one.teacher, one.weights = scores, Weights(distill=1.0)
    return samples


def gradient(one: Learner) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in one.parameters])


def weights(one: Learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in one.parameters]).clone()


def annotated(samples: list[Sample], component: str, loss: LossConfig, kind: str = "qwen3") -> list[Sample]:
    """Every kind of annotation, with unequal weights, by a teacher of another seed."""
    taught(samples, double(learner(1, kind=kind)), loss)
    old = double(learner(2, kind=kind)).score(samples, Want("sampled"))
    for i, (one, scores) in enumerate(zip(samples, old, strict=True)):
        one.advantages_R = np.linspace(-1, 2, one.length).astype(np.float32)
        one.old_logprobs_R = scores.logprobs_R
        share = 0.5 + i % 3
        one.weights = Weights(
            pg=share if component in ("pg", "all") else 0.0,
            distill=share if component not in ("pg", "ce") else 0.0,
            ce=share if component in ("ce", "all") else 0.0,
        )
    return samples


ESTIMATORS = [
    ("sampled", {}),
    ("k2", {}),
    ("k3", {}),
    ("topk", {"k": 5}),
    ("topk", {"k": 5, "topk": "tail"}),
    ("full", {}),
    ("full", {"divergence": "jsd"}),
    ("sampled", {"signal": "jsd", "refresh": True}),  # of stored log-probs it would be in single precision
    ("sampled", {"weighting": {"position": 0.5, "turn_cap": 1.5}}),
    ("trust_region", {"k": 5}),
]
# What these follow is not 0 where the student equals its teacher.
RELATIVE = [("sampled", {"transform": "normalise"}), ("sampled", {"signal": "forward"}), ("argmax", {})]


@pytest.mark.parametrize("reduction", ["sequence", "token"])
@pytest.mark.parametrize("case", ["pg", "gspo", "ce", "all", *ESTIMATORS, *RELATIVE], ids=str)
def test_loss_and_gradient_do_not_depend_on_the_split_into_micro_batches(case, reduction):
    component = case if isinstance(case, str) and case != "gspo" else "pg" if case == "gspo" else "distill"
    estimator, changes = ("sampled", {}) if isinstance(case, str) else case
    policy = PolicyConfig(kind="gspo" if case == "gspo" else "ppo", clip_low=1.0, clip_high=1e9)
    loss = LossConfig(
        reduction=reduction, importance=OPEN, policy=policy, distill=DistillConfig(estimator=estimator, **changes)
    )
    samples = annotated([*batch(MIXED), multi_turn()], component, loss)
    losses, gradients = [], []
    for tokens in (1, 20, 10**6):
        one = double(learner(optim=FREE.model_copy(update={"tokens_per_batch": tokens}), loss=loss))
        losses.append(one.step(samples)["loss"])
        gradients.append(gradient(one))
    assert gradients[0].abs().max() > 1e-4
    for other_loss, other in zip(losses[1:], gradients[1:], strict=True):
        assert other_loss == pytest.approx(losses[0], abs=1e-6)
        torch.testing.assert_close(other, gradients[0], rtol=0, atol=1e-8 * gradients[0].abs().max().item())


@pytest.mark.parametrize(
    ("case", "kind"),
    [*((case, "qwen3") for case in ["pg", "gspo", *ESTIMATORS, *RELATIVE]), *((("full", {}), kind) for kind in KINDS)],
    ids=str,
)
def test_loss_and_gradient_do_not_depend_on_the_chunks_of_the_head(case, kind, monkeypatch):
    estimator, changes = ("sampled", {}) if isinstance(case, str) else case
    policy = PolicyConfig(kind="gspo" if case == "gspo" else "ppo", clip_low=1.0, clip_high=1e9)
    loss = LossConfig(importance=OPEN, policy=policy, distill=DistillConfig(estimator=estimator, **changes))
    samples = annotated(batch(MIXED), "pg" if isinstance(case, str) else "distill", loss, kind)
    found = []
    for tokens in (10**6, 3):
        monkeypatch.setitem(forward.CHUNK_BYTES, "cpu", 4 * forward.LIVE_COPIES * 38 * tokens)
        one = double(learner(loss=loss, kind=kind))
        found.append((one.step(samples), gradient(one)))
    (whole, expected), (cut, actual) = found
    tolerance = 1e-8 if expected.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())
    assert whole == pytest.approx(cut, rel=1e-5)


def test_the_gradient_of_a_whole_step_is_that_of_the_plain_form():
    """Full reverse KL written out over [T, V], row by row, with autograd through the model's own logits."""
    loss = distilling("full", importance="off")
    teacher, one = double(learner(1, kind="gemma2")), double(learner(kind="gemma2", loss=loss))
    samples = taught(batch(MIXED), teacher, loss)
    metrics = one.step(samples)
    plain = double(learner(kind="gemma2")).model
    rows = []
    for each in (each for each in samples if each.length):
        ids = torch.from_numpy(each.token_ids_T).long()[None]
        logits = (model(input_ids=ids).logits[0, :-1][each.mask_T[1:]] for model in (plain, teacher.model))
        student_RV, teacher_RV = (logits_RV.log_softmax(-1) for logits_RV in logits)
        rows.append((student_RV.exp() * (student_RV - teacher_RV.detach())).sum(-1).mean())
    expected = torch.stack(rows).mean()
    expected.backward()
    assert metrics["loss"] == pytest.approx(expected.item(), rel=1e-5)
    gradient_of_plain = torch.cat([p.grad.flatten() for p in plain.parameters()])
    torch.testing.assert_close(gradient(one), gradient_of_plain, rtol=0, atol=1e-6)


def test_the_updated_weights_do_not_depend_on_the_split_in_float32():
    loss = distilling("full")
    after = []
    for tokens in (1, 10**6):
        one = learner(optim=OptimConfig(learning_rate=1e-3, tokens_per_batch=tokens), loss=loss)
        one.step(taught(batch(MIXED), learner(1), loss))
        after.append(weights(one))
    torch.testing.assert_close(*after, rtol=0, atol=2e-5)


def test_cross_entropy_is_the_mean_over_demonstrated_tokens():
    one = learner(loss=LossConfig(reduction="token"))
    samples = batch(MIXED)
    for each in samples:
        each.weights = Weights(ce=1.0)
    before = copy.deepcopy(one.model)
    metrics = one.step(samples)
    expected = -np.concatenate([plain_logprobs(before, each) for each in samples if each.length]).mean()
    assert metrics["loss"] == pytest.approx(expected, abs=1e-5)
    assert metrics["cross_entropy"] == pytest.approx(expected, abs=1e-5)
    code = [each for each in samples if each.length and each.task.domain == "code"]
    code = -np.concatenate([plain_logprobs(before, each) for each in code])
    assert metrics["cross_entropy/code"] == pytest.approx(code.mean(), abs=1e-5)
    assert "gated" not in metrics


def test_vector_m1_comes_out_of_a_whole_step():
    """T, S, rollout of vectors.md M1. The student's log-probs are what they are, so T and rollout move with them."""
    for max_signal, expected in ((5.0, -0.189469), (1.0, -0.055431)):
        loss = LossConfig(
            distill=DistillConfig(max_signal=max_signal), importance=ImportanceConfig(low=0.5, high=2.0),
            policy=PolicyConfig(kind="reinforce"),
        )  # fmt: skip
        one = double(learner(loss=loss))
        each = sample(3, 4)
        now_R = one.score([each], Want("sampled"))[0].logprobs_R
        student_R = np.array([-0.7, -0.9, -0.3, -0.2])
        each.logprobs_R = now_R + np.array([-0.8, -0.8, -0.35, -1.2]) - student_R
        each.teacher = TokenScores("t", (now_R + np.array([-1, -0.5, -3, -0.2]) - student_R).astype(np.float64))
        each.weights = Weights(distill=1.0)
        metrics = one.step([each])
        # L of the vector is -mean(w·A·S) at S's values; the gradient is that of -mean(w·A·log π)
        signal = np.clip([-0.3, 0.4, -2.7, 0.0], -max_signal, max_signal)
        factors = np.array([1.105171, 0.904837, 1.051271, 0.0]) * signal
        assert -(factors * student_R).mean() == pytest.approx(expected, abs=1e-5)
        assert metrics["loss"] == pytest.approx(-(factors * now_R).mean(), abs=1e-4)
        assert metrics["gated"] == 0.25
        assert metrics["signal"] == pytest.approx(np.abs(signal).mean(), abs=1e-5)
        assert metrics["reverse_kl"] == pytest.approx(np.mean([0.3, -0.4, 2.7, 0.0]), abs=1e-5)


def noisy(one: Learner, samples: list[Sample], scale: float = 0.4) -> list[Sample]:
    """The same samples, from an engine whose log-probs differ from the learner's."""
    rng = np.random.default_rng(5)
    for each, scores in zip(samples, one.score(samples, Want("sampled")), strict=True):
        each.logprobs_R = scores.logprobs_R + rng.normal(0, scale, each.length).astype(np.float32)
    return samples


@pytest.mark.parametrize("estimator", ["full", "topk", "argmax"])
def test_a_loss_without_the_drawn_token_is_not_weighted_by_its_ratio(estimator):
    loss = distilling(estimator)
    one = learner(loss=loss)
    one.backward(taught(batch(MIXED), learner(1), loss))
    calm = gradient(one).clone()
    metrics = one.backward(noisy(one, taught(batch(MIXED), learner(1), loss))).summary()
    assert torch.equal(gradient(one), calm)
    assert metrics["gated"] == 0 and metrics["importance_std"] == 0 and metrics["engine_gap"] > 0.1
    weighted = LossConfig(distill=loss.distill, importance=ImportanceConfig(states="past", low=0.0, high=1e9))
    other = learner(loss=weighted)
    other.backward(noisy(other, taught(batch(MIXED), learner(1), weighted)))
    assert not torch.allclose(gradient(other), calm)


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_importance_weights_of_whole_samples_do_not_depend_on_the_micro_batch(level, monkeypatch):
    loss = LossConfig(importance=ImportanceConfig(level=level, low=0.0, high=1e9))
    found = []
    for tokens, chunk in ((10_000, 10_000), (12, 1)):
        monkeypatch.setattr(forward, "chunk_length", lambda *_, chunk=chunk: chunk)
        one = double(learner(loss=loss, optim=OptimConfig(tokens_per_batch=tokens)))
        samples = noisy(one, batch(MIXED))
        for number, each in enumerate(samples):
            each.weights, each.advantages_R = Weights(pg=1.0), np.full(each.length, 1.0 - number, dtype=np.float32)
        metrics = one.backward(samples).summary()
        found.append((gradient(one).clone(), metrics["importance_std"], metrics["effective_sample_size"]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-9, atol=1e-12)
    assert found[0][1:] == pytest.approx(found[1][1:], rel=1e-5)
    # by hand: weights w of all tokens, from the log-ratios learner - engine
    ratios = []
    for each, scores in zip(samples, one.score(samples, Want("sampled")), strict=True):
        log_R = scores.logprobs_R.astype(np.float64) - each.logprobs_R
        ratios.append({"token": log_R, "sequence": log_R.sum(), "geometric": log_R.mean() if len(log_R) else 0}[level])
    w = np.concatenate([np.exp(np.broadcast_to(r, each.length)) for r, each in zip(ratios, samples, strict=True)])
    assert found[0][1] == pytest.approx(w.std(), rel=1e-4)
    assert found[0][2] == pytest.approx(w.sum() ** 2 / (len(w) * (w**2).sum()), rel=1e-4)


@pytest.mark.parametrize("case", ESTIMATORS, ids=str)
def test_a_teacher_that_equals_the_student_gives_no_signal_and_no_gradient(case):
    estimator, changes = case
    loss = distilling(estimator, **changes)
    one = learner(loss=loss)
    samples = taught(batch(MIXED), learner(0), loss)
    metrics = one.step(samples)
    assert metrics["signal"] < 1e-6
    assert metrics["grad_norm"] < 1e-5
    if estimator == "sampled":
        before = weights(learner(0))
        assert torch.equal(weights(one), before) or metrics["signal"] > 0


def closeness(student: Learner, teacher: Learner, samples: list[Sample]) -> float:
    full = Want("full")
    return policy_gap(student.score(samples, full), teacher.score(samples, full), 5).reverse_kl


@pytest.mark.parametrize("case", [*ESTIMATORS, *RELATIVE[:2]], ids=str)  # argmax has another optimum
def test_distillation_moves_the_student_towards_the_teacher(case):
    estimator, changes = case
    loss = distilling(estimator, **changes)
    student, teacher = learner(0, optim=OptimConfig(learning_rate=3e-3), loss=loss), learner(0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in teacher.parameters:
            parameter.add_(0.5 * parameter.std() * torch.randn_like(parameter))
    engine = LocalEngine(student.model, Renderer(student.tokenizer, student.model.generation_config))

    def rollout(seed: int) -> list[Sample]:
        tasks = [task(number=i) for i in range(16)]
        samples = engine.generate(tasks, 4, Sampling(max_new_tokens=8), seed=seed)
        return sorted(samples, key=lambda one: (one.group, one.index))

    held_out = rollout(99)
    before = closeness(student, teacher, held_out)
    for seed in range(12):
        metrics = student.step(taught(rollout(seed), teacher, loss))
        assert metrics.get("gated", 0) == 0
    assert closeness(student, teacher, held_out) < 0.75 * before


def behind(samples: list[Sample], nats: float) -> list[Sample]:
    """The policy that wrote gave every token `nats` less than the teacher does."""
    for each in samples:
        each.logprobs_R = each.teacher.logprobs_R - np.float32(nats)
    return samples


def test_a_trust_region_is_the_sampled_form_where_all_is_trusted_and_the_forward_kl_where_nothing_is():
    region = distilling("trust_region", k=5, importance="off")
    for nats, share, plain in [
        (0.1, 1.0, distilling("sampled", importance="off")),
        (-90.0, 0.0, distilling("topk", k=5, divergence="forward_kl", importance="off")),
    ]:
        one, other = learner(loss=region), learner(loss=plain)
        metrics = one.step(behind(taught(batch(MIXED), learner(1), region), nats))
        expected = other.step(behind(taught(batch(MIXED), learner(1), plain), nats))
        assert metrics["trusted"] == share
        assert metrics["loss"] == expected["loss"]
        assert torch.equal(gradient(one), gradient(other))


def test_the_normalised_signal_of_a_step_is_relative_to_all_of_its_batch():
    loss = distilling("sampled", "token", importance="off", transform="normalise", max_signal=2.0)
    one = double(learner(loss=loss, optim=OptimConfig(tokens_per_batch=12)))
    samples = taught(batch(MIXED), learner(1), loss)
    teacher_N = np.concatenate([each.teacher.logprobs_R for each in samples]).astype(np.float64)
    engine_N = np.concatenate([each.logprobs_R for each in samples])
    now_N = np.concatenate([scores.logprobs_R for scores in one.score(samples, Want("sampled"))])
    written_N = np.clip(teacher_N - engine_N, -2, 2)
    signal_N = (np.clip(teacher_N - now_N, -2, 2) - written_N.mean()) / (written_N.std() + 1e-6)
    metrics = one.step(samples)
    assert metrics["signal"] == pytest.approx(np.abs(signal_N).mean(), abs=1e-5)
    assert metrics["loss"] == pytest.approx(-signal_N.mean(), abs=1e-5)  # the ratio is 1 in value


def test_weights_of_place_are_factors_of_the_loss_and_leave_its_denominator():
    plain = distilling("sampled", importance="off")
    loss = distilling("sampled", importance="off", weighting={"position": 0.5})
    rows = []
    for config in (plain, loss):
        one = double(learner(loss=config, optim=OptimConfig(tokens_per_batch=1)))
        samples = taught([sample(3, 2)], learner(1), config)
        now_R = one.score(samples, Want("sampled"))[0].logprobs_R
        rows.append((one.step(samples)["loss"], np.clip(samples[0].teacher.logprobs_R - now_R, -5, 5), samples[0]))
    written_R = np.abs(np.clip(rows[1][2].teacher.logprobs_R - rows[1][2].logprobs_R, -5, 5))
    factors_R = np.array([1.5, 1 + 0.5 * written_R[1] / written_R.sum()])
    assert rows[0][0] == pytest.approx(-rows[0][1].mean(), abs=1e-5)
    assert rows[1][0] == pytest.approx(-(factors_R * rows[1][1]).mean(), abs=1e-5)


def test_a_vocabulary_that_the_teacher_or_the_student_pads_is_distilled_over_what_both_have():
    loss = distilling("full")
    samples = batch(MIXED)
    narrow, wide = learner(0), learner(0, loss=loss)
    wide.model.resize_token_embeddings(48, mean_resizing=False)
    wide = Learner(wide.model, wide.tokenizer, FREE, loss)
    with torch.no_grad():  # the same rows, and padding that says something
        rows = wide.model.get_input_embeddings().weight
        rows[38:] = 0.3 * rows[:10]
    metrics = wide.step(taught(samples, narrow, loss))
    assert metrics["loss"] == pytest.approx(0.0, abs=1e-6)

    narrow = learner(0, loss=loss)
    scores = wide.score(samples, Want("full"))
    head = forward.Head(wide.model.config, wide.model.get_output_embeddings(), wide.device, 38)
    for each, score in zip(samples, scores, strict=True):
        each.teacher = TokenScores("w", score.logprobs_R, hidden_RH=score.hidden_RH, head=head)
    assert math.isfinite(narrow.step(samples)["loss"])


def test_tokens_without_a_teachers_log_prob_leave_the_loss_and_its_denominator():
    loss = distilling("sampled")
    whole, holed = [taught([sample(3, 6, seed=i) for i in range(2)], learner(1), loss) for _ in range(2)]
    for each in holed:
        each.teacher.logprobs_R[4:] = np.nan
    holed[0].teacher.logprobs_R[0] = -np.inf
    one = double(learner(loss=loss))
    metrics = one.step(holed)
    assert metrics["unscored"] == pytest.approx(5 / 12)
    assert gradient(one).isfinite().all()
    assert metrics["skipped"] == 0
    # by hand: the mean over what is left of each, then over the two
    now = [double(learner(0)).score([each], Want("sampled"))[0].logprobs_R for each in whole]
    terms = [-(np.clip(w.teacher.logprobs_R - n, -5, 5) * 1.0) for w, n in zip(whole, now, strict=True)]
    ratios = [np.exp(n - w.logprobs_R) for w, n in zip(whole, now, strict=True)]
    kept = [[1, 2, 3], [0, 1, 2, 3]]
    expected = np.mean([np.mean((r * t)[k]) for r, t, k in zip(ratios, terms, kept, strict=True)])
    assert metrics["loss"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("case", ESTIMATORS, ids=str)
def test_a_teacher_that_is_silent_throughout_changes_nothing(case):
    estimator, changes = case
    loss = distilling(estimator, **changes)
    one = learner(loss=loss)
    samples = taught(batch(MIXED), learner(1), loss)
    for each in samples:
        each.teacher.logprobs_R[:] = np.nan
    before = weights(one)
    metrics = one.step(samples)
    assert metrics["unscored"] == 1.0
    assert metrics["unscored/math"] == 1.0
    assert torch.equal(weights(one), before)


def test_a_gradient_that_is_not_finite_skips_the_update_and_is_counted():
    one = learner()
    samples = batch(MIXED)
    for each in samples:
        each.advantages_R, each.weights = np.ones(each.length, np.float32), Weights(pg=1.0)
    samples[0].advantages_R[1] = np.inf
    before = weights(one)
    metrics = one.step(samples)
    assert (metrics["skipped"], one.skipped, one.version) == (1, 1, 1)
    assert not math.isfinite(metrics["grad_norm"])
    assert torch.equal(weights(one), before)
    samples[0].advantages_R[1] = 1.0
    metrics = one.step(samples)
    assert metrics["skipped"] == 1
    assert not torch.equal(weights(one), before)
    assert weights(one).isfinite().all()


@pytest.mark.parametrize("samples", [[], [sample(3, 0)], [sample(3, 4)]], ids=["none", "empty", "without weight"])
def test_a_batch_with_nothing_to_learn_from_does_nothing(samples):
    one = learner(optim=OptimConfig(weight_decay=0.5))
    before = weights(one)
    for each in samples:
        each.weights = Weights(pg=1.0, distill=1.0, ce=1.0) if not each.length else Weights()
    metrics = one.step(samples)
    assert metrics["grad_norm"] == 0
    assert torch.equal(weights(one), before)


def test_a_weight_without_its_annotation_is_refused():
    one, each = learner(), sample(3, 4)
    each.weights = Weights(distill=1.0)
    with pytest.raises(ValueError, match="distill weight and no teacher"):
        one.step([each])
    each.weights = Weights(pg=1.0)
    with pytest.raises(ValueError, match="pg weight and no advantages"):
        one.step([each])
    one = learner(loss=distilling("topk"))
    taught([each], one, distilling("sampled"))
    with pytest.raises(ValueError, match="topk_ids_RK"):
        one.step([each])


@pytest.mark.parametrize("estimator", ["topk", "full"])
def test_native_and_taught_samples_go_into_one_step(estimator):
    """CoPD's shape: the gradient of the mixture is the sum of the two parts' gradients."""
    loss = distilling(estimator, "token")
    natives, cross = batch(MIXED[:4]), taught(batch(MIXED[:4]), double(learner(1)), loss)
    for each in natives:
        each.advantages_R, each.weights = np.ones(each.length, np.float32), Weights(pg=1.0)
    parts = []
    for samples in (natives + cross, natives, cross):
        one = double(learner(loss=loss))
        one.step(samples)
        parts.append(gradient(one))
    torch.testing.assert_close(parts[0], parts[1] + parts[2], rtol=0, atol=1e-9)


def test_full_distillation_keeps_each_teachers_head_to_its_own_samples():
    loss = distilling("full", "token")
    a, b = (double(learner(seed)) for seed in (1, 2))
    samples = [batch(MIXED), batch(MIXED)]
    pairs = zip(taught(samples[0], a, loss), taught(samples[1], b, loss), strict=True)
    both = [sample for pair in pairs for sample in pair]
    mixed, halves = double(learner(loss=loss)), []
    mixed.step(both)
    for part in samples:
        one = double(learner(loss=loss))
        one.step(part)
        halves.append(gradient(one))
    torch.testing.assert_close(gradient(mixed), (halves[0] + halves[1]) / 2, rtol=0, atol=1e-9)


def test_bfloat16_compute_is_close_to_float32():
    loss = distilling("full")
    samples = taught(batch(MIXED), learner(1), loss)
    exact, rough = learner(loss=loss), learner(loss=loss, dtype=torch.bfloat16)
    scores = zip(exact.score(samples, Want("sampled")), rough.score(samples, Want("sampled")), strict=True)
    gaps = np.concatenate([np.abs(a.logprobs_R - b.logprobs_R) for a, b in scores])
    assert 0 < gaps.mean() < 0.1
    assert rough.step(samples)["loss"] == pytest.approx(exact.step(samples)["loss"], rel=0.05)
    assert torch.cosine_similarity(gradient(exact), gradient(rough), dim=0) > 0.98
    assert {p.dtype for p in rough.parameters} == {torch.float32}


def test_gradient_checkpointing_gives_the_same_gradients_and_survives_scoring_and_generating():
    loss = distilling("full")
    plain = double(learner(loss=loss))
    thrifty = double(learner(loss=loss, optim=FREE.model_copy(update={"gradient_checkpointing": True})))
    samples = taught(batch(MIXED), double(learner(1)), loss)
    calls = []
    layer = thrifty.model.base_model.layers[0]
    layer.self_attn.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    thrifty.score(samples, Want("sampled"))
    calls.clear()
    for one in (plain, thrifty):
        one.step(samples)
    assert len(calls) == 2  # once forward, once more in the backward pass
    torch.testing.assert_close(gradient(plain), gradient(thrifty), rtol=0, atol=1e-10)


def test_dropout_is_off_so_that_the_learner_is_the_policy_that_wrote():
    model, tokenizer = build(attention_dropout=0.5)
    one = Learner(model, tokenizer, FREE, LossConfig(reduction="token"))
    samples = batch(MIXED)
    for each, scores in zip(samples, one.score(samples, Want("sampled")), strict=True):
        each.logprobs_R, each.advantages_R = scores.logprobs_R, np.ones(each.length, np.float32)
        each.weights = Weights(pg=1.0)
    assert one.step(samples)["engine_gap"] < 1e-5
    assert model.config.attention_dropout == 0.5


def test_the_learning_rate_follows_warm_up_and_schedule():
    def factors(schedule: str, warmup: int, total: int = 10) -> list[float]:
        optim = OptimConfig(schedule=schedule, warmup_steps=warmup)
        return [learning_rate_factor(optim, step, total) for step in range(total + 2)]

    assert factors("constant", 4)[:6] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert factors("linear", 0) == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0, 0])
    assert factors("linear", 2)[:4] == pytest.approx([0.5, 1, 1, 0.875])
    assert factors("cosine", 0)[::5] == pytest.approx([1, 0.5, 0])
    assert factors("cosine", 2)[6] == pytest.approx(0.5)

    one = learner(optim=OptimConfig(learning_rate=0.1, schedule="linear", warmup_steps=2), total_steps=4)
    each = sample(3, 4)
    each.weights = Weights(ce=1.0)
    assert [one.step([each])["learning_rate"] for _ in range(5)] == pytest.approx([0.05, 0.1, 0.1, 0.05, 0.0])


def test_weight_decay_pulls_matrices_only():
    one = learner(optim=OptimConfig(learning_rate=0.1, weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in one.model.named_parameters()}
    each = sample(3, 4)
    each.weights, each.advantages_R = Weights(pg=1.0), np.zeros(4, np.float32)  # a gradient of exactly 0
    one.step([each])
    for name, parameter in one.model.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5) if parameter.ndim > 1 else before[name]
        torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "qwen3_moe"])
def test_a_saved_learner_is_an_ordinary_checkpoint_with_identical_logits(kind, tmp_path):
    one = learner(kind=kind)
    one.model.generation_config.temperature = None
    one.save(tmp_path / "model", "# card")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.arange(10)[None]
    assert torch.equal(again(input_ids=ids).logits, one.model(input_ids=ids).logits)
    assert again.generation_config.eos_token_id == one.model.generation_config.eos_token_id == 1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.get_vocab() == one.tokenizer.get_vocab()
    assert tokenizer.chat_template == one.tokenizer.chat_template
    assert (tmp_path / "model" / "README.md").read_text() == "# card"


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_a_restored_learner_continues_bit_identically(kind, tmp_path):
    loss = distilling("full")
    optim = OptimConfig(learning_rate=1e-2, schedule="cosine", warmup_steps=2, tokens_per_batch=20, weight_decay=0.1)
    teacher = learner(1, kind=kind)

    def steps(one: Learner, numbers: range) -> None:
        for number in numbers:
            one.step(taught([sample(3, 4 + i, seed=10 * number + i) for i in range(5)], teacher, loss))

    straight, first, second = (learner(seed, kind=kind, optim=optim, loss=loss, total_steps=9) for seed in (0, 0, 7))
    steps(straight, range(7))
    steps(first, range(3))
    torch.save(first.state(), tmp_path / "state.pt")
    steps(first, range(3, 4))  # what happens after the save must not reach into it
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    steps(second, range(3, 7))
    assert torch.equal(weights(second), weights(straight))
    assert second.version == straight.version == 7
    for a, b in itertools.zip_longest(second.optimizer.state.values(), straight.optimizer.state.values()):
        assert torch.equal(a["exp_avg_sq"], b["exp_avg_sq"])


def test_metrics_are_means_over_tokens_overall_and_per_domain():
    loss = distilling("sampled")
    one = learner(loss=loss, optim=OptimConfig(tokens_per_batch=12))
    samples = taught(batch(MIXED), learner(1), loss)
    now = one.score(samples, Want("sampled"))
    metrics = one.step(samples)
    kl = [scores.logprobs_R - each.teacher.logprobs_R for scores, each in zip(now, samples, strict=True)]
    signal = [np.clip(np.abs(values), 0, 5) for values in kl]
    math_only = [i for i, each in enumerate(samples) if each.task.domain == "math"]
    assert metrics["reverse_kl"] == pytest.approx(np.concatenate(kl).mean(), abs=1e-4)
    assert metrics["reverse_kl/math"] == pytest.approx(np.concatenate([kl[i] for i in math_only]).mean(), abs=1e-4)
    tail = np.concatenate([signal[i] for i in math_only])
    assert metrics["signal_p99/math"] == pytest.approx(np.quantile(tail, 0.99), abs=1e-4)
    assert metrics["signal_max/math"] == pytest.approx(tail.max(), abs=1e-4)
    assert metrics["unscored"] == 0
    assert 0 < metrics["entropy"] < math.log(38)

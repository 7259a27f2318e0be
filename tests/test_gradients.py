"""The cosine between two domains' gradients: against plain autograd, and on domains that are made to conflict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from onepolicy.config import LossConfig, MixRlConfig, MopdConfig, OptimConfig
from onepolicy.gradients import compare_gradients
from onepolicy.learner import Learner
from onepolicy.rehearsal import rehearse
from onepolicy.types import Sample, Want, Weights
from tests.runs import DOMAINS, checkpoint, run_of, same
from tests.tiny_models import build, sample


def learner(seed: int = 0) -> Learner:
    model, tokenizer = build(seed=seed)
    return Learner(model, tokenizer, OptimConfig(), LossConfig())


def reinforced(domain: str, advantages: list[float], first: int) -> list[Sample]:
    """Answers of 3, 4, ... tokens; their log-probs are the policy's own, so that no ratio and no gate is in the way."""
    found = []
    for i, advantage in enumerate(advantages):
        one = sample(2, 3 + i, domain=domain, seed=first + i)
        one.advantages_R = np.full(one.length, advantage, dtype=np.float32)
        one.weights = Weights(pg=1.0)
        found.append(one)
    return found


def own_logprobs(policy: Learner, samples: list[Sample]) -> list[Sample]:
    for one, scores in zip(samples, policy.score(samples, Want("sampled")), strict=True):
        one.logprobs_R = scores.logprobs_R
    return samples


def plain_gradient(policy: Learner, samples: list[Sample]) -> torch.Tensor:
    """Of -mean over samples of the mean over tokens of A·log π, from the model's own logits in one pass per sample."""
    losses = []
    for one in samples:
        logits_TV = policy.model(input_ids=torch.from_numpy(one.token_ids_T).long()[None]).logits[0]
        logprobs_TV = logits_TV[:-1].log_softmax(-1)
        chosen_R = logprobs_TV.gather(-1, torch.from_numpy(one.token_ids_T[1:]).long()[:, None])[one.mask_T[1:], 0]
        losses.append(-(torch.from_numpy(one.advantages_R) * chosen_R).mean())
    gradients = torch.autograd.grad(torch.stack(losses).mean(), policy.parameters)
    return torch.cat([gradient.flatten() for gradient in gradients]).double()


def test_the_cosines_are_those_of_plain_autograd() -> None:
    policy = learner()
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    batches = {
        domain: tuple(own_logprobs(policy, reinforced(domain, [1.0, -0.5], first + 10 * half)) for half in range(2))
        for domain, first in (("a", 100), ("b", 200))
    }
    found = compare_gradients(policy, batches)  # type: ignore[arg-type]  # a generator has no known length

    g = {domain: [plain_gradient(policy, half) for half in pair] for domain, pair in batches.items()}

    def cosine(x: torch.Tensor, y: torch.Tensor) -> float:
        return (x @ y / (x.norm() * y.norm())).item()

    expected = np.mean([cosine(x, y) for x in g["a"] for y in g["b"]])
    assert found.cosine["a"]["b"] == found.cosine["b"]["a"] == pytest.approx(expected, abs=1e-4)
    assert found.cosine["a"]["a"] == pytest.approx(cosine(*g["a"]), abs=1e-4)
    assert found.norms["b"] == pytest.approx((g["b"][0].norm() + g["b"][1].norm()).item() / 2, rel=1e-4)
    assert found.samples == {"a": 4, "b": 4}
    assert same(dict(policy.model.state_dict()), before)
    assert all(parameter.grad is None for parameter in policy.parameters)


def test_opposite_advantages_are_opposite_gradients_and_noise_is_corrected_for() -> None:
    policy = learner()
    batch = own_logprobs(policy, reinforced("a", [1.0, -0.5], 100))
    other = own_logprobs(policy, reinforced("a", [0.7, 0.2], 300))
    turned = [
        own_logprobs(policy, reinforced("b", [-1.0, 0.5], 100)),
        own_logprobs(policy, reinforced("b", [-0.7, -0.2], 300)),
    ]
    found = compare_gradients(policy, {"a": (batch, other), "b": (turned[0], turned[1])})
    own = found.cosine["a"]["a"]
    assert own is not None and found.cosine["b"]["b"] == pytest.approx(own, abs=1e-5)
    assert found.cosine["a"]["b"] == pytest.approx(-(1 + own) / 2, abs=1e-5)
    if own >= 0.1:
        assert found.corrected["a"]["b"] == pytest.approx(-(1 + own) / 2 / own, abs=1e-4)


def test_a_domain_without_a_gradient_has_no_cosine() -> None:
    policy = learner()
    still = reinforced("a", [0.0, 0.0], 100), reinforced("a", [0.0], 110)
    moving = reinforced("b", [1.0], 200), reinforced("b", [1.0], 210)
    found = compare_gradients(policy, {"a": still, "b": moving})
    assert found.cosine["a"] == {"a": None, "b": None} and found.corrected["a"]["b"] is None
    assert found.norms["a"] == 0 and found.cosine["b"]["b"] is not None


# -- real runs ---------------------------------------------------------------------------------------------------------


def test_domains_that_reward_the_same_letters_pull_together_and_others_less(tmp_path: Path) -> None:
    """Two names for one domain: 1 after correction, up to noise. Another half of the alphabet is further off."""
    domains = {**DOMAINS, "twin": DOMAINS["early"]}
    config = run_of("mix_rl", tmp_path, domains=domains, rollout={"prompts": 128, "n": 8, "max_new_tokens": 4})
    assert isinstance(config, MixRlConfig)
    found = rehearse(config, gradients=True).gradients
    assert found is not None
    twin, late = found.corrected["early"]["twin"], found.corrected["early"]["late"]
    assert twin is not None and late is not None
    assert twin == pytest.approx(1, abs=0.1) and late < 0.8


def test_one_teacher_of_two_domains_pulls_both_the_same_way(tmp_path: Path) -> None:
    """The questions of both domains are alike here, so all that could differ is what is taught."""

    def between(teachers: dict[str, object]) -> tuple[float, float]:
        loss = {"distill": {"estimator": "full"}}
        rollout = {"prompts": 128, "max_new_tokens": 4}
        config = run_of("mopd", tmp_path, teachers=teachers, rollout=rollout, loss=loss)
        assert isinstance(config, MopdConfig)
        found = rehearse(config, gradients=True).gradients
        assert found is not None
        own, other = found.cosine["early"]["early"], found.cosine["early"]["late"]
        assert own is not None and other is not None
        return own, other

    one, other = checkpoint(tmp_path / "one", 1), checkpoint(tmp_path / "other", 2)
    own, alike = between({"one": {"model": one, "domains": ["early", "late"]}})
    assert alike == pytest.approx(own, abs=0.1) and own > 0.5
    own, apart = between({"early": one, "late": other})
    assert apart < own - 0.3


def test_there_must_be_two_domains_to_compare(tmp_path: Path) -> None:
    config = run_of("rlvr", tmp_path, domains={"early": DOMAINS["early"]})
    assert isinstance(config, MixRlConfig) or config.recipe == "rlvr"
    with pytest.raises(ValueError, match="gradients of 1 domain"):
        rehearse(config, gradients=True)  # type: ignore[arg-type]  # it is a RlvrConfig

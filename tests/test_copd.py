"""Mix-RL and CoPD: the degenerate cases that must match another recipe bit for bit, and what is their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from onepolicy import merging, recipes
from onepolicy.config import ConfigError, CopdConfig, parse_run
from onepolicy.evaluation import Evaluation
from onepolicy.runfolder import read_rows
from onepolicy.session import Session
from onepolicy.types import Want
from tests.runs import DOMAINS, checkpoint, run_of, same, settings, weights

EARLY = {"early": DOMAINS["early"]}


def copd_config(folder: Path, **changes: Any) -> CopdConfig:
    config = parse_run(settings("copd", folder, **{"exchange": {"prompts": 4, "n": 2}, **changes}))
    assert isinstance(config, CopdConfig)
    return config


def test_mix_rl_with_one_domain_is_rlvr(tmp_path: Path) -> None:
    for recipe in ("rlvr", "mix_rl"):
        recipes.run(run_of(recipe, tmp_path, domains=EARLY))

    assert same(weights(tmp_path / "rlvr"), weights(tmp_path / "mix_rl"))


def test_copd_with_one_branch_is_rlvr(tmp_path: Path) -> None:
    recipes.run(run_of("rlvr", tmp_path, domains=EARLY))
    recipes.run(copd_config(tmp_path, domains=EARLY))

    assert same(weights(tmp_path / "rlvr"), weights(tmp_path / "copd"))


def test_copd_without_distillation_steps_is_rlvr_in_parallel_and_a_merge(tmp_path: Path) -> None:
    for name in DOMAINS:
        recipes.run(run_of("rlvr", tmp_path, domains={name: DOMAINS[name]}, output=str(tmp_path / name)))
    recipes.run(copd_config(tmp_path, opd_steps=0))

    alone = [weights(tmp_path / name) for name in DOMAINS]
    for name, expert in zip(DOMAINS, alone, strict=True):
        assert same(expert, load_file(tmp_path / "copd" / "branches" / name / "model" / "model.safetensors"))
    assert same(merging.average(alone), weights(tmp_path / "copd"))


def test_unit_balancing_weights_are_none_at_all(tmp_path: Path) -> None:
    for recipe in ("rlvr", "mix_rl"):  # rlvr knows no balancing, and takes several domains too
        recipes.run(run_of(recipe, tmp_path))

    assert same(weights(tmp_path / "rlvr"), weights(tmp_path / "mix_rl"))


@pytest.mark.parametrize("kind", ["share", "gap", "dn"])
def test_balancing_a_single_domain_is_none_at_all(tmp_path: Path, kind: str) -> None:
    """The rule is worked out, and every weight of it is 1."""
    for name in ("none", kind):
        balance = {"kind": name}
        recipes.run(run_of("mix_rl", tmp_path, domains=EARLY, output=str(tmp_path / name), balance=balance))

    assert same(weights(tmp_path / "none"), weights(tmp_path / kind))


def test_each_branch_balances_what_it_learns_from_others(tmp_path: Path) -> None:
    shared = {"rl_steps": 0, "steps": 1, "exchange": {"prompts": 8, "n": 2}, "diagnose_every": 0}
    balances: dict[str, Any] = {
        "none": {"kind": "none"},
        "equal": {"kind": "share"},
        "peers": {"kind": "share", "targets": {"early": 1, "late": 3}},
    }
    for name, balance in balances.items():
        recipes.run(copd_config(tmp_path, output=str(tmp_path / name), balance=balance, **shared))

    rows = {name: read_rows(tmp_path / name / "metrics.jsonl")[0] for name in balances}
    for domain in ("early", "early<late"):
        assert rows["none"][f"balance/{domain}"] == 1.0
        assert 0 < rows["none"][f"budget/{domain}"] < 1
        # native and cross samples have a mean each, so their shares of the update are equal already
        assert rows["equal"][f"balance/{domain}"] == pytest.approx(1.0)
    assert [rows["peers"][f"balance/{d}"] for d in ("early", "early<late")] == pytest.approx([0.5, 1.5])
    assert not same(weights(tmp_path / "none"), weights(tmp_path / "peers"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_snapshot_scores_as_the_live_branch_does(tmp_path: Path, dtype: str) -> None:
    model = {"path": checkpoint(tmp_path / "origin", 0), "dtype": dtype}
    config = copd_config(tmp_path, model=model)
    with Session(config, config.loss) as session:
        samples = session.rollout(session.mixture.draw(2), 2, 0)
        session.policy.take_snapshot()
        live, snapshot = (session.policy.as_peer(kind).score(samples, Want("sampled")) for kind in ("live", "snapshot"))
    for one, other in zip(live, snapshot, strict=True):
        assert one.logprobs_R.tolist() == other.logprobs_R.tolist()


def test_without_an_evaluation_at_the_end_no_branch_has_one_either(tmp_path: Path) -> None:
    recipes.run(copd_config(tmp_path, steps=1, eval={"at_end": False}))

    assert not list((tmp_path / "copd").rglob("final.json"))


def test_cross_samples_pull_the_branches_together(tmp_path: Path) -> None:
    settings = {"rl_steps": 0, "opd_steps": 1, "steps": 6, "optim": {"learning_rate": 3e-3}, "diagnose_every": 5}
    recipes.run(copd_config(tmp_path, output=str(tmp_path / "taught"), **settings))
    alone = {**settings, "exchange": {"beta": 0.0, "prompts": 4, "n": 2}}
    recipes.run(copd_config(tmp_path, output=str(tmp_path / "alone"), **alone))

    last = {name: read_rows(tmp_path / name / "metrics.jsonl")[-1] for name in ("taught", "alone")}
    for pair in ("early<late", "late<early"):
        assert last["taught"][f"symmetric_kl/{pair}"] < last["alone"][f"symmetric_kl/{pair}"]


def test_no_branch_sees_a_peer_that_has_moved_on_already(tmp_path: Path) -> None:
    """The order of the branches changes nothing, so all score before any of them steps."""
    for name, domains in {"one": DOMAINS, "other": dict(reversed(DOMAINS.items()))}.items():
        recipes.run(copd_config(tmp_path, output=str(tmp_path / name), domains=domains, rl_steps=0, steps=2))

    for branch in DOMAINS:
        place = f"branches/{branch}/model/model.safetensors"
        assert same(load_file(tmp_path / "one" / place), load_file(tmp_path / "other" / place))


@pytest.mark.parametrize("estimator", ["sampled", "topk", "full"])
@pytest.mark.parametrize("peers", ["live", "snapshot"])
def test_copd_resumes_bit_for_bit(tmp_path: Path, peers: str, estimator: str) -> None:
    choice = {
        "exchange": {"peers": peers, "prompts": 4, "n": 1},
        "loss": {"distill": {"estimator": estimator, "k": 4}},
        "rl_steps": 1,
        "opd_steps": 2,
        "checkpoint": {"every": 1},
    }
    recipes.run(copd_config(tmp_path, output=str(tmp_path / "whole"), steps=5, **choice))
    for steps in (2, 5):  # stopped in the middle of a distillation phase
        recipes.run(copd_config(tmp_path, output=str(tmp_path / "parts"), steps=steps, **choice))

    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_every_branch_is_kept_and_evaluated_on_all_domains(tmp_path: Path) -> None:
    recipes.run(copd_config(tmp_path, merge={"method": "none"}))

    output = tmp_path / "copd"
    for name in DOMAINS:
        text = (output / "branches" / name / "eval" / "final.json").read_text()
        assert set(Evaluation.from_json(text).means()) == set(DOMAINS)
    assert not (output / "model").exists()


def test_task_arithmetic_of_scale_one_adds_the_branches_deltas(tmp_path: Path) -> None:
    recipes.run(copd_config(tmp_path, merge={"method": "task_arithmetic", "scale": 1.0}))

    origin = load_file(tmp_path / "origin" / "model.safetensors")
    branches = [load_file(tmp_path / "copd" / "branches" / name / "model" / "model.safetensors") for name in DOMAINS]
    result = weights(tmp_path / "copd")
    for name, tensor in origin.items():
        torch.testing.assert_close(result[name], tensor + sum(branch[name] - tensor for branch in branches))


def test_hub_and_spoke_and_switched_off_directions() -> None:
    three = {name: DOMAINS["early"] for name in ("text", "image", "video")}
    common = {"recipe": "copd", "output": "x", "model": "m", "steps": 1, "domains": three}
    hub = parse_run({**common, "exchange": {"hub": "text", "without": [["text", "video"]]}})
    assert isinstance(hub, CopdConfig)

    assert {name: hub.teachers_of(name) for name in three} == {"text": ["image"], "image": ["text"], "video": ["text"]}
    with pytest.raises(ConfigError, match="'txt', which is no branch: did you mean 'text'"):
        parse_run({**common, "exchange": {"hub": "txt"}})
    with pytest.raises(ConfigError, match="no value for image, video"):
        parse_run({**common, "exchange": {"beta": {"text": 1.0}}})


def test_a_joint_mean_weighs_cross_samples_by_their_number(tmp_path: Path) -> None:
    shared = {"rl_steps": 0, "steps": 1, "exchange": {"prompts": 1, "n": 2}, "diagnose_every": 0}
    for mean in ("separate", "joint"):
        exchange = {**shared["exchange"], "mean": mean}  # type: ignore[dict-item]  # a mapping
        recipes.run(copd_config(tmp_path, output=str(tmp_path / mean), **{**shared, "exchange": exchange}))
    assert not same(weights(tmp_path / "separate"), weights(tmp_path / "joint"))

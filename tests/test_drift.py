"""What a run measures about its policy on the way: values against definitions, and that measuring changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onepolicy import recipes
from onepolicy.config import ConfigError, DistillConfig, ModelConfig, MopdConfig, RlvrConfig, ScratchConfig
from onepolicy.diagnostics import disagreement_row, overlap_size
from onepolicy.models import load_model, save_model
from onepolicy.objectives import weighting
from onepolicy.report.build import write_report
from onepolicy.runfolder import read_rows
from onepolicy.session import Session
from onepolicy.teachers import annotate_disagreement
from onepolicy.tiny import from_scratch
from onepolicy.types import Sample, TokenScores
from tests.runs import DOMAINS, SCRATCH, checkpoint, run_of, same, settings, weights
from tests.tiny_models import plain_logprobs, sample


def rows(folder: Path, recipe: str, name: str = "", **changes: Any) -> list[dict[str, Any]]:
    config = run_of(recipe, folder, output=str(folder / (name or recipe)), **changes)
    recipes.run(config)
    return read_rows(config.output / "metrics.jsonl")


def same_teacher(folder: Path, seed: int) -> dict[str, Any]:
    return {"both": {"model": checkpoint(folder / f"teacher {seed}", seed), "domains": ["early", "late"]}}


# -- gaps to the origin and the teachers -------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["rlvr", "mix_rl", "mopd", "copd"])
def test_the_origin_is_where_the_run_starts_and_is_left(tmp_path: Path, recipe: str) -> None:
    found = rows(tmp_path, recipe, diagnose_every=3, optim={"learning_rate": 3e-2})
    for domain in ("early", "late"):
        assert found[0][f"overlap/{domain}<origin"] == 1
        assert found[0][f"symmetric_kl/{domain}<origin"] == pytest.approx(0, abs=1e-6)
        assert found[3][f"symmetric_kl/{domain}<origin"] > 1e-3
    assert not any(key.startswith(("overlap", "symmetric_kl")) for row in found[1:3] for key in row)


def test_measuring_does_not_disturb_the_training(tmp_path: Path) -> None:
    for every in (0, 1):
        rows(tmp_path, "mopd", str(every), diagnose_every=every)
    assert same(weights(tmp_path / "0"), weights(tmp_path / "1"))


def test_a_measured_run_resumes_bit_for_bit_and_refuses_another_origin(tmp_path: Path) -> None:
    whole = rows(tmp_path, "mopd", "whole", diagnose_every=1)
    rows(tmp_path, "mopd", "parts", diagnose_every=1, steps=2)
    parts = rows(tmp_path, "mopd", "parts", diagnose_every=1)
    times = {"time": 0}
    assert [row | times for row in parts] == [row | times for row in whole]
    save_model(*from_scratch(ScratchConfig(**SCRATCH), 9), tmp_path / "origin")
    with pytest.raises(ValueError, match="'the model' is not what it was when this run was started"):
        rows(tmp_path, "mopd", "parts", diagnose_every=1, steps=5)


def test_the_gap_to_the_teacher_is_that_of_the_two_models_on_the_rollouts(tmp_path: Path) -> None:
    """Over whole distributions of both, from their own logits, on the tokens that the run wrote at its first step."""
    config = run_of("mopd", tmp_path, diagnose_every=1, steps=1, teachers=same_teacher(tmp_path, 5))
    assert isinstance(config, MopdConfig)
    with Session(config, config.loss) as session:
        tasks = session.mixture.draw(config.rollout.prompts)
        samples = [s for s in session.rollout(tasks, 1, 0) if s.task.domain == "early"]
    recipes.run(config.model_copy(update={"output": tmp_path / "run"}))
    (row,) = read_rows(tmp_path / "run" / "metrics.jsonl")

    p, q = (_distributions(Path(path), samples) for path in (config.model.path, tmp_path / "teacher 5"))
    overlap = [len({*np.argsort(-a)[:4]} & {*np.argsort(-b)[:4]}) / 4 for a, b in zip(p, q, strict=True)]
    kl = (np.exp(p) * (p - q)).sum(-1) + (np.exp(q) * (q - p)).sum(-1)
    assert row["overlap/early<teacher"] == pytest.approx(np.mean(overlap))
    assert row["symmetric_kl/early<teacher"] == pytest.approx(kl.mean() / 2, rel=1e-4)
    assert "disagreement/early" not in row, "one teacher has nobody to disagree with"


def _distributions(folder: Path, samples: list[Sample]) -> np.ndarray:
    model, _ = load_model(ModelConfig(path=str(folder)), 0)
    parts = []
    for one in samples:
        with torch.no_grad():
            logits_TV = model(torch.from_numpy(one.token_ids_T).long()[None]).logits[0].double()
        parts.append(logits_TV.log_softmax(-1).numpy()[:-1][one.mask_T[1:]])
    return np.concatenate(parts)


def test_the_origin_shares_the_shelf_with_the_teachers(tmp_path: Path) -> None:
    config = run_of("mopd", tmp_path)
    assert isinstance(config, MopdConfig)
    with Session(config, config.loss) as session:
        teachers = session.frozen({name: t.model for name, t in config.teachers.items()}, config.routes)
        (origin,), (one, _) = session.origin().distinct, teachers.distinct
        assert origin.shelf is one.shelf  # type: ignore[attr-defined]  # both are FrozenTeachers


def test_a_model_from_scratch_is_no_origin(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="diagnose_every > 0 needs a starting model with a `path`"):
        run_of("rlvr", tmp_path, diagnose_every=1, model={"scratch": {"architecture": {}, "alphabet": "ab"}})


def test_k_is_smaller_for_a_tiny_vocabulary_only() -> None:
    assert [overlap_size(v) for v in (2, 16, 44, 90, 100, 150_000)] == [2, 3, 4, 9, 10, 10]


def test_the_report_of_a_run_draws_what_was_measured(tmp_path: Path) -> None:
    rows(tmp_path, "mopd", diagnose_every=1)
    text = write_report(tmp_path / "mopd").html.read_text()
    for label in ("early&lt;origin", "late&lt;teacher", "top-k overlap (share)", "disagreement (nats per token)"):
        assert label in text


# -- disagreement ------------------------------------------------------------------------------------------------------


def test_disagreement_is_the_spread_of_all_teachers_log_probs(tmp_path: Path) -> None:
    config = run_of("mopd", tmp_path)
    assert isinstance(config, MopdConfig)
    with Session(config, config.loss) as session:
        teachers = session.frozen({name: t.model for name, t in config.teachers.items()}, config.routes)
        samples = session.rollout(session.mixture.draw(4), 1, 0)
        annotate_disagreement(samples, teachers)
    models = [load_model(teacher.model, 0)[0] for teacher in config.teachers.values()]
    for one in samples:
        a, b = (plain_logprobs(model, one) for model in models)
        np.testing.assert_allclose(one.disagreement_R, np.abs(a - b), atol=1e-5)


def test_disagreement_is_averaged_by_domain_and_counted_above_one_nat() -> None:
    one, two, three = sample(2, 4), sample(2, 1, domain="code"), sample(2, 2, domain="chat")
    one.disagreement_R = np.array([0.5, 1.0, 1.5, np.nan], dtype=np.float32)
    two.disagreement_R = np.array([2.0], dtype=np.float32)
    assert disagreement_row([one, two, three]) == {
        "disagreement/math": 1.0,
        "disagreement_share/math": pytest.approx(1 / 3),
        "disagreement/code": 2.0,
        "disagreement_share/code": 1.0,
    }


def test_a_token_above_the_limit_is_not_distilled() -> None:
    config = DistillConfig.model_validate({"weighting": {"max_disagreement": 1.0, "position": 0.5}})
    one = sample(2, 3)
    one.teacher = TokenScores("t", one.logprobs_R)
    with pytest.raises(ValueError, match="max_disagreement needs what all teachers say about task 'math-0'"):
        weighting.token_weights(config, one)
    one.disagreement_R = np.array([0.2, 1.0, 1.1], dtype=np.float32)
    assert np.asarray(weighting.token_weights(config, one)).tolist() == [1.5, 1.5, 0.0]


def test_masking_has_its_limits_in_no_masking_and_in_no_distillation(tmp_path: Path) -> None:
    """Above all disagreement nothing changes, bit for bit; below all of it nothing is learnt."""
    for name, limit in {"off": None, "wide": 1e6, "tight": 1e-6}.items():
        loss = {"distill": {"weighting": {"max_disagreement": limit}}}
        found = rows(tmp_path, "mopd", name, loss=loss)
        assert [row.get("masked") for row in found] == [{"off": None, "wide": 0.0, "tight": 1.0}[name]] * 4
        assert ("disagreement/early" in found[0]) == (limit is not None)
    assert same(weights(tmp_path / "off"), weights(tmp_path / "wide"))
    origin = load_model(run_of("mopd", tmp_path).model, 0)[0].state_dict()
    assert all(torch.equal(tensor, origin[name]) for name, tensor in weights(tmp_path / "tight").items())


def test_masking_where_nobody_can_disagree_is_refused(tmp_path: Path) -> None:
    loss = {"distill": {"weighting": {"max_disagreement": 1.0}}}
    with pytest.raises(ConfigError, match="one teacher, who cannot disagree"):
        run_of("mopd", tmp_path, loss=loss, teachers=same_teacher(tmp_path, 5))
    for recipe in ("rlvr", "mix_rl", "copd"):
        with pytest.raises(ConfigError, match="max_disagreement is about a student's several teachers"):
            run_of(recipe, tmp_path, loss=loss)


# -- staleness ---------------------------------------------------------------------------------------------------------


def test_staleness_is_that_of_the_last_inner_update(tmp_path: Path) -> None:
    fast: dict[str, Any] = {"domains": {"early": DOMAINS["early"]}, "optim": {"learning_rate": 3e-2}}
    one = rows(tmp_path, "rlvr", "one", **fast)
    four = rows(tmp_path, "rlvr", "four", **fast, inner_updates=4)
    assert all(row["rollout_kl"] == pytest.approx(0, abs=1e-6) and "rollout_kl_last" not in row for row in one)
    for row in four:
        assert row["rollout_kl_last"] > row["rollout_kl"] > 1e-4
        assert "rollout_kl_last/early" in row
    assert sum(row["clipped_last"] for row in four) > sum(row["clipped"] for row in four) > 0
    taught = rows(tmp_path, "mopd", "taught", optim={"learning_rate": 3e-2}, inner_updates=4)
    assert sum(row["distill_clipped_last"] for row in taught) > sum(row["distill_clipped"] for row in taught) > 0
    assert "distill_clipped" not in four[0] and "clipped" not in taught[0]


# -- an engine that is not the learner ---------------------------------------------------------------------------------


def with_noise(recipe: str, folder: Path, sigma: float) -> dict[str, Any]:
    return {**settings(recipe, folder)["rollout"], "engine_noise": sigma}


def test_engine_noise_leaves_evaluation_alone(tmp_path: Path) -> None:
    answers = []
    for name, sigma in (("quiet", 0.0), ("noisy", 1.5)):
        config = run_of("rlvr", tmp_path, output=str(tmp_path / name), rollout=with_noise("rlvr", tmp_path, sigma))
        assert isinstance(config, RlvrConfig)
        with Session(config, config.loss) as session:
            evaluated = session.evaluate("before").samples
            rollouts = session.rollout(session.mixture.draw(4), 1, 0)
        answers.append([[s.token_ids_T.tolist() for s in samples] for samples in (evaluated, rollouts)])
    assert answers[0][0] == answers[1][0] and answers[0][1] != answers[1][1]


def test_engine_noise_is_for_runs_that_learn_from_rollouts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="engine_noise"):
        run_of("sft", tmp_path, rollout={"engine_noise": 0.5})


@pytest.mark.parametrize("recipe", ["rlvr", "mopd"])
def test_engine_noise_makes_the_gate_work(tmp_path: Path, recipe: str) -> None:
    quiet = rows(tmp_path, recipe, "quiet", steps=1)
    noisy = rows(tmp_path, recipe, "noisy", steps=1, rollout=with_noise(recipe, tmp_path, 1.5))
    assert quiet[0]["gated"] == 0 and quiet[0]["rollout_kl"] < 1e-6
    assert noisy[0]["gated"] > 0.2 and noisy[0]["engine_gap"] > 0.5 and noisy[0]["rollout_kl"] > 0.1

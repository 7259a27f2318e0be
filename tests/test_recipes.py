"""Every recipe on a tiny model: that it runs, learns what it should, and draws no randomness from the wrong place."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onepolicy import run
from onepolicy.config import MixRlConfig, RlvrConfig
from onepolicy.recipes.rlvr import draw_groups
from onepolicy.runfolder import read_rows
from onepolicy.session import Session, stream
from tests.runs import DOMAINS, checkpoint, run_of, same, weights


def trained(recipe: str, folder: Path, name: str = "", **changes: Any) -> Path:
    """The output of a run."""
    config = run_of(recipe, folder, output=str(folder / (name or recipe)), **changes)
    run(config)
    return config.output


def metrics(output: Path) -> list[dict[str, Any]]:
    return read_rows(output / "metrics.jsonl")


# -- they run ----------------------------------------------------------------------------------------------------------

STEP = ["step", "time", "sequences", "tokens", "loss", "grad_norm", "learning_rate", "skipped", "entropy"]
SHAPE = ["length/early", "length/late", "truncated/early", "token_share/early", "entropy/early"]
ROLLED_OUT = [*STEP, *SHAPE, "reward", "reward/early", "reward/late", "gated", "engine_gap", "engine_gap/late"]
TAUGHT = ["reverse_kl", "reverse_kl/early", "signal", "signal_max/early", "signal_p99/late", "unscored"]


@pytest.mark.parametrize(
    ("recipe", "changes", "keys"),
    [
        ("sft", {}, [*STEP, *SHAPE, "cross_entropy", "cross_entropy/late"]),
        ("rlvr", {}, [*ROLLED_OUT, "clipped", "clipped/early"]),
        ("rlvr", {"reference_kl": 0.1, "inner_updates": 2, "max_draws": 2}, [*ROLLED_OUT, "clipped", "reverse_kl"]),
        ("rlvr", {"reference_kl": 0.1, "loss": {"distill": {"estimator": "full"}}}, [*ROLLED_OUT, "reverse_kl"]),
        ("rlvr", {"loss": {"policy": {"kind": "gspo"}}, "advantage": "rloo"}, ROLLED_OUT),
        ("mopd", {}, [*ROLLED_OUT, *TAUGHT]),
        ("mopd", {"loss": {"distill": {"estimator": "k2"}}}, [*ROLLED_OUT, *TAUGHT]),
        ("mopd", {"loss": {"distill": {"estimator": "topk", "k": 4}}, "inner_updates": 2}, [*ROLLED_OUT, *TAUGHT]),
        ("mopd", {"loss": {"distill": {"estimator": "full", "divergence": "jsd"}}}, [*ROLLED_OUT, *TAUGHT]),
    ],
    ids=["sft", "rlvr", "rlvr-reference", "rlvr-full", "rlvr-gspo", "mopd", "mopd-k2", "mopd-topk", "mopd-full"],
)
def test_two_steps_write_finite_metrics_and_a_model(
    tmp_path: Path, recipe: str, changes: dict[str, Any], keys: list[str]
) -> None:
    output = trained(recipe, tmp_path, steps=2, **changes)
    rows = metrics(output)
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert set(keys) <= row.keys()
        assert all(math.isfinite(value) for value in row.values())
    assert set(json.loads((output / "done.json").read_text())["means"]) == {"early", "late"}
    assert (output / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("recipe", ["rlvr", "mopd"])
def test_an_engine_that_shares_the_weights_leaves_the_gate_idle(tmp_path: Path, recipe: str) -> None:
    for row in metrics(trained(recipe, tmp_path)):
        assert row["gated"] == 0 and row["engine_gap"] <= 1e-5


# -- they learn --------------------------------------------------------------------------------------------------------


def test_sft_learns_what_it_is_shown(tmp_path: Path) -> None:
    rows = metrics(trained("sft", tmp_path, steps=30, optim={"learning_rate": 2e-2}))
    assert rows[0]["cross_entropy"] > 3.5 and rows[-1]["cross_entropy"] < 0.7


FAST: dict[str, Any] = {"steps": 12, "optim": {"learning_rate": 2e-2}, "domains": {"early": DOMAINS["early"]}}


def test_rlvr_raises_the_reward_and_a_reference_holds_it_back(tmp_path: Path) -> None:
    free, held = (metrics(trained("rlvr", tmp_path, str(kl), reference_kl=kl, **FAST)) for kl in (1e-6, 10.0))
    assert free[-1]["reward"] > free[0]["reward"] + 0.2
    assert abs(held[-1]["reverse_kl"]) < 0.2 * free[-1]["reverse_kl"]


def test_mopd_closes_the_gap_to_the_teachers(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "steps": 20,
        "optim": {"learning_rate": 3e-3},
        "loss": {"distill": {"estimator": "full"}},
    }
    rows = metrics(trained("mopd", tmp_path, **changes))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]


# -- dynamic sampling and masks ----------------------------------------------------------------------------------------

ONE_LETTER = {"prompts": 6, "n": 2, "max_new_tokens": 1}  # then half of the groups have equal rewards


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    config = run_of("rlvr", tmp_path, rollout=ONE_LETTER, max_draws=3)
    assert isinstance(config, RlvrConfig)
    with Session(config, config.loss) as session:
        yield session


def test_dynamic_sampling_puts_useful_groups_first_and_mixes_none(session: Session) -> None:
    config = session.config
    assert isinstance(config, RlvrConfig)
    few = config.model_copy(update={"max_draws": 1})
    useful_of = {}
    for name, setting in (("one draw", few), ("three draws", config)):
        samples = draw_groups(session, setting, step=0)
        groups = [samples[i : i + 2] for i in range(0, 12, 2)]
        assert len(samples) == 12
        assert [s.group for s in samples] == [number for number in range(6) for _ in range(2)]
        assert all(a.task is b.task and (a.index, b.index) == (0, 1) for a, b in groups)
        assert len({a.task.id for a, _ in groups}) == 6
        useful = [a.reward != b.reward for a, b in groups]
        assert useful == sorted(useful, reverse=True)
        useful_of[name] = sum(useful)
    assert 0 < useful_of["one draw"] < useful_of["three draws"]


def test_a_domain_with_more_contrast_does_not_take_the_others_prompts(tmp_path: Path) -> None:
    """Shares 2 : 1, and `sort` is never solved: it keeps its third of the groups all the same."""
    sort = {"tasks": {"kind": "letters", "task": "sort"}, "eval_size": 4}
    domains = {"early": DOMAINS["early"] | {"share": 2}, "sort": sort}
    config = run_of("mix_rl", tmp_path, domains=domains, rollout=ONE_LETTER | {"prompts": 7}, max_draws=6)
    assert isinstance(config, MixRlConfig)
    with Session(config, config.loss) as session:
        batches = [draw_groups(session, config, step)[::2] for step in range(3)]
        drawn_of = [[s.task.domain for s in batch].count("sort") for batch in batches]
        state, cursors = session.mixture.state(), {name: d.cursor for name, d in session.mixture.domains.items()}
    assert drawn_of == [2, 3, 2] and [len(batch) for batch in batches] == [7, 7, 7]
    assert {name: one["drawn"] for name, one in state.items()} == {"early": 14, "sort": 7}
    assert cursors["early"] > 20, "about half of the groups of `early` are replaced"
    assert cursors["sort"] >= 6 * 7, "and those of `sort` each time"
    first = [int(s.task.id.rpartition("/")[2]) for s in batches[0] if s.task.domain == "sort"]
    assert first == [0, 1], "with no better ones, those drawn first are kept"


def test_no_prompt_is_drawn_twice_and_none_more_than_needed(session: Session) -> None:
    config = session.config
    assert isinstance(config, RlvrConfig)
    samples = draw_groups(session, config.model_copy(update={"max_draws": 1}), step=0)
    assert sum(session.mixture.drawn.values()) == 6
    again = draw_groups(session, config.model_copy(update={"max_draws": 1}), step=1)
    assert sum(session.mixture.drawn.values()) == 12
    assert not {s.task.id for s in samples} & {s.task.id for s in again}


def test_masked_truncated_samples_leave_the_loss_altogether(tmp_path: Path) -> None:
    """With one token each, all are truncated: nothing is left to learn from."""
    truncated: dict[str, Any] = {"rollout": ONE_LETTER, "domains": {"early": DOMAINS["early"]}, "steps": 1}
    origin = weights_of(checkpoint(tmp_path / "origin", 0))
    masked = trained("rlvr", tmp_path, "masked", overlong="mask", **truncated)
    kept = trained("rlvr", tmp_path, "kept", overlong="keep", **truncated)
    rewards = [metrics(output)[0]["reward"] for output in (masked, kept)]
    assert rewards[0] == rewards[1] > 0
    assert same(weights(masked), origin)
    assert not same(weights(kept), origin)


def weights_of(model: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(Path(model) / "model.safetensors")


# -- degenerate cases match bit for bit --------------------------------------------------------------------------------

PAIRS = {"prompts": 4, "n": 4, "max_new_tokens": 4}


def test_mopd_with_the_outcome_alone_is_rlvr(tmp_path: Path) -> None:
    mopd = trained("mopd", tmp_path, rollout=PAIRS, distill_weight=0, outcome_weight=1)
    assert same(weights(mopd), weights(trained("rlvr", tmp_path, rollout=PAIRS)))


def test_weights_follow_their_schedules(tmp_path: Path) -> None:
    schedules: dict[str, Any] = {
        "distill_weight": {"start": 0, "end": 1, "steps": 2},
        "outcome_weight": {"start": 1, "end": 0, "steps": 2},
    }
    rows = metrics(trained("mopd", tmp_path, rollout=PAIRS, **schedules))
    assert ["reverse_kl" in row for row in rows] == [False, True, True, True]
    assert ["clipped" in row for row in rows] == [True, True, False, False]


def test_two_names_for_one_teacher_are_one_teacher(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "teacher", 5)
    copy = checkpoint(tmp_path / "copy", 5)
    for estimator in ("sampled", "full"):
        loss = {"distill": {"estimator": estimator}}
        one, two, three = (
            trained("mopd", tmp_path, f"{estimator}-{name}", teachers=teachers, loss=loss)
            for name, teachers in {
                "one": {"only": {"model": path, "domains": ["early", "late"]}},
                "two": {"early": path, "late": path},
                "copy": {"early": path, "late": copy},
            }.items()
        )
        assert same(weights(one), weights(two))
        for name, tensor in weights(one).items():  # two checkpoints are scored in two batches: equal up to rounding
            assert (tensor - weights(three)[name]).abs().max() < 1e-3


def test_one_more_expert_is_added_to_a_finished_student_that_teaches_itself_the_rest(tmp_path: Path) -> None:
    student = checkpoint(tmp_path / "student", 7)
    teachers = {"early": checkpoint(tmp_path / "newcomer", 8), "late": "self"}
    rows = metrics(trained("mopd", tmp_path, model=student, teachers=teachers))
    assert rows[0]["signal/late"] < 1e-5 and rows[0]["signal/early"] > 0.05  # mean |log-ratio|
    assert 1e-5 < rows[-1]["signal/late"] < rows[-1]["signal/early"]  # the newcomer moves it, and it is held


def test_two_runs_of_one_configuration_are_the_same_and_another_seed_is_not(tmp_path: Path) -> None:
    one, again, other = (
        weights(trained("rlvr", tmp_path, name, seed=seed)) for name, seed in (("one", 0), ("again", 0), ("other", 1))
    )
    assert same(one, again)
    assert not same(one, other)


@pytest.mark.parametrize("recipe", ["sft", "rlvr", "mopd"])
def test_evaluating_and_saving_do_not_disturb_the_training(tmp_path: Path, recipe: str) -> None:
    plain = trained(recipe, tmp_path, "plain", eval={"every": 0, "at_end": False}, checkpoint={"every": 100})
    busy = trained(recipe, tmp_path, "busy", eval={"every": 1, "n": 2}, checkpoint={"every": 1})
    assert same(weights(plain), weights(busy))
    assert sorted(path.stem for path in (busy / "eval").iterdir()) == ["final", "step-1", "step-2", "step-3"]


def test_the_preflight_does_not_disturb_the_training(tmp_path: Path) -> None:
    one, other = (
        trained(
            "mopd", tmp_path, str(samples), check={"samples": samples, "warn_reverse_kl": 100, "warn_overlap": 0.01}
        )
        for samples in (1, 4)
    )
    assert same(weights(one), weights(other))
    assert [report["domain"] for report in json.loads((one / "teachers.json").read_text())] == ["early", "late"]


# -- random streams ----------------------------------------------------------------------------------------------------


def test_every_purpose_seed_step_and_draw_has_a_stream_of_its_own() -> None:
    seeds = {
        stream(purpose, seed, step, draw)
        for purpose in ("rollout", "step")
        for seed in range(10)
        for step in (*range(50), 10**6, 10**8)
        for draw in range(10)
    }
    assert len(seeds) == 2 * 10 * 52 * 10
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert stream("rollout", 0, 0, 0) == 1_628_701_517_323_831_709


def test_rollouts_depend_on_the_step_and_the_draw_alone(session: Session) -> None:
    tasks = session.mixture.draw(4)

    def tokens(step: int, draw: int) -> list[list[int]]:
        return [s.token_ids_T.tolist() for s in session.rollout(tasks, 4, step, draw)]

    first = tokens(0, 0)
    assert tokens(1, 0) != first and tokens(0, 1) != first and tokens(0, 0) == first

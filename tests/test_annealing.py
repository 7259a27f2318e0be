"""The plateau on written-out KLs, and in a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from onepolicy import run
from onepolicy.annealing import Plateau
from onepolicy.config import PlateauConfig
from onepolicy.runfolder import read_rows
from tests.runs import run_of

FALLS = [1.0, 0.6, 0.4, 0.396, 0.397, 0.2, 0.199, 0.2, 0.2, 0.1]  # by more than 1% in steps 1, 2 and 5


def clocks(plateau: Plateau, kls: list[float], first: int = 0) -> list[int]:
    """What the clock shows at each step."""
    seen = []
    for step, kl in enumerate(kls, first):
        seen.append(plateau.clock(step))
        plateau.observe(step, {"reverse_kl": kl})
    return seen


def test_the_clock_starts_once_the_kl_has_stood_still_for_patience_steps() -> None:
    at_once = PlateauConfig(patience=3, tolerance=0.01, decay=0)

    assert clocks(Plateau(at_once), FALLS) == [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]  # flat in 6, 7 and 8
    assert clocks(Plateau(at_once.model_copy(update={"patience": 2})), FALLS) == [0, 0, 0, 0, 0, 1, 2, 3, 4, 5]
    # .396 and .199 do improve on .4 and .2 when the tolerance is small
    assert clocks(Plateau(at_once.model_copy(update={"tolerance": 0.001})), FALLS) == [0] * 10


def test_what_is_watched_is_a_running_mean() -> None:
    plateau = Plateau(PlateauConfig(patience=2, tolerance=0.0, decay=0.5))

    rows = [plateau.observe(step, {"reverse_kl": kl}) for step, kl in enumerate([0.75, 0.25, 0.5, 0.5, 0.25, 0.25])]

    assert [row.get("reverse_kl_mean") for row in rows] == [0.75, 0.5, 0.5, 0.5, None, None]
    assert plateau.clock(5) == 2  # flat in 2 and 3


def test_a_mean_below_0_must_fall_to_improve() -> None:
    plateau = Plateau(PlateauConfig(patience=2, tolerance=0.1, decay=0))
    assert clocks(plateau, [0.1, -0.1, -0.105, -0.12, -0.12, -0.1, 0.0]) == [0, 0, 0, 0, 0, 0, 1]


def test_steps_that_distil_nothing_are_not_waited_for() -> None:
    plateau = Plateau(PlateauConfig(patience=2))
    plateau.observe(0, {"reverse_kl": 0.5})

    assert [plateau.observe(step, row) for step, row in ((1, {}), (2, {"reverse_kl": math.nan}))] == [{}, {}]
    assert plateau.state() == {"mean": 0.5, "lowest": 0.5, "waited": 0, "start": None}


def test_without_a_config_the_clock_is_the_runs() -> None:
    plateau = Plateau(None)
    assert clocks(plateau, [0.5] * 50) == list(range(50))


@pytest.mark.parametrize("stop", range(len(FALLS)))
def test_it_goes_on_from_its_state_as_if_it_had_never_stopped(stop: int) -> None:
    config = PlateauConfig(patience=2, decay=0.5)
    whole, first, second = Plateau(config), Plateau(config), Plateau(config)

    before = clocks(first, FALLS[:stop])
    second.load_state(json.loads(json.dumps(first.state())))
    after = clocks(second, FALLS[stop:], stop)

    assert before + after == clocks(whole, FALLS)
    assert second.state() == whole.state()


def test_a_run_takes_its_weights_from_there(tmp_path: Path) -> None:
    """A tolerance that nothing meets, so that it is known when: after a first step and two that do not improve."""
    schedules: dict[str, Any] = {
        "distill_weight": {"start": 1, "end": 0, "steps": 2},
        "outcome_weight": {"start": 0, "end": 1, "steps": 4},
        "plateau": {"patience": 2, "tolerance": 0.999},
    }
    config = run_of("mopd", tmp_path, steps=7, rollout={"prompts": 4, "n": 2, "max_new_tokens": 4}, **schedules)
    run(config)
    rows = read_rows(config.output / "metrics.jsonl")

    assert [row["distill_weight"] for row in rows] == [1, 1, 1, 0.5, 0, 0, 0]
    assert [row["outcome_weight"] for row in rows] == [0, 0, 0, 0.25, 0.5, 0.75, 1]
    assert ["reverse_kl_mean" in row for row in rows] == [True, True, True, False, False, False, False]
    assert ["reverse_kl" in row for row in rows] == [True] * 4 + [False] * 3
    assert ["clipped" in row for row in rows] == [False] * 3 + [True] * 4

"""Who will starve: worked examples, and that a real run begins as was foretold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onepolicy import recipes
from onepolicy.config import MopdConfig, ReinforcedConfig, parse_run
from onepolicy.config.file import set_dotted
from onepolicy.forecast import DomainForecast, Rehearsed, forecast
from onepolicy.recipes.rlvr import annotate_reinforcement
from onepolicy.rehearsal import rehearse
from onepolicy.rollout import annotate_advantages
from onepolicy.runfolder import read_rows
from onepolicy.types import Sample, TokenScores, Weights
from tests import tiny_models
from tests.runs import DOMAINS, run_of

HALF = {"short": 0.5, "long": 0.5}
TASKS = {"tasks": {"kind": "letters"}}


def config(recipe: str, **changes: Any) -> Rehearsed:
    common: dict[str, Any] = {"recipe": recipe, "output": "x", "model": "m", "steps": 1}
    common["domains"] = {"short": TASKS, "long": TASKS}
    if recipe == "mopd":
        common["teachers"] = {"short": "a", "long": "b"}
    parsed = parse_run({**common, **changes})
    assert isinstance(parsed, MopdConfig | ReinforcedConfig)
    return parsed


def answers(
    domain: str,
    length: int,
    rewards: Sequence[Sequence[float]],
    signal: float | None = None,
    cut: Sequence[int] = (),
) -> list[Sample]:
    """A group per row of rewards, of answers of one length; `signal` is the teacher's log-ratio.

    `cut` numbers the answers that were truncated.
    """
    found = []
    for group, of_group in enumerate(rewards):
        for index, reward in enumerate(of_group):
            one = tiny_models.sample(2, length, domain=domain, seed=100 * len(domain) + group)
            one.index, one.reward = index, reward
            one.finish = "length" if len(found) in cut else "stop"
            one.weights = Weights(pg=1.0)
            if signal is not None:
                one.weights = Weights(distill=1.0)
                one.teacher = TokenScores("t", one.logprobs_R + np.float32(signal))
            found.append(one)
    annotate_advantages(found, "grpo")
    return found


def told(found: list[DomainForecast], field: str) -> list[Any]:
    return [getattr(one, field) for one in found]


# -- lengths -----------------------------------------------------------------------------------------------------------

UNEVEN = [*answers("short", 2, [[0], [1]], 0.5), *answers("long", 38, [[0], [1]], 0.5)]


@pytest.mark.parametrize(
    ("reduction", "kind", "shares", "verdicts", "changes"),
    [
        ("sequence", "none", [0.5, 0.5], ["fine", "fine"], ()),
        ("token", "none", [0.05, 0.95], ["starves", "fine"], ("loss.reduction=sequence", "balance.kind=share")),
        ("token", "share", [0.5, 0.5], ["fine", "fine"], ()),
        ("sequence", "share", [0.5, 0.5], ["fine", "fine"], ()),  # shares are equal already: the weights are 1
    ],
)
def test_a_short_domain_starves_by_tokens_unless_it_is_balanced(
    reduction: str, kind: str, shares: list[float], verdicts: list[str], changes: tuple[str, ...]
) -> None:
    found = forecast(config("mopd", loss={"reduction": reduction}, balance={"kind": kind}), HALF, UNEVEN)
    assert told(found, "length") == [2, 38]
    assert told(found, "prompt_share") == [0.5, 0.5]
    assert told(found, "token_share") == pytest.approx([0.05, 0.95])
    assert told(found, "update_share") == pytest.approx(shares)
    assert told(found, "verdict") == verdicts
    assert [c for one in found for c in one.changes] == list(changes)
    assert [bool(one.warnings) for one in found] == [verdict != "fine" for verdict in verdicts]


def test_the_warning_names_lengths_and_shares() -> None:
    (warning,) = forecast(config("mopd", loss={"reduction": "token"}), HALF, UNEVEN)[0].warnings
    assert warning == (
        "domain 'short' would get 5.0% of the update for 50.0% of the prompts: its answers have 2 tokens, those of "
        "'long' 38, and under loss.reduction: token every token counts the same"
    )


@pytest.mark.parametrize(
    ("reduction", "balance", "kind"),
    [
        ("sequence", {"kind": "gap", "alpha": -9}, "share"),
        ("token", {"kind": "gap", "alpha": -9}, "share"),
    ],
)
def test_what_is_advised_against_a_balance_is_a_valid_configuration(
    reduction: str, balance: dict[str, Any], kind: str
) -> None:
    samples = [*answers("short", 2, [[0]], 0.1), *answers("long", 38, [[0]], -0.3)]
    data = {"loss": {"reduction": reduction}, "balance": balance}
    (change,) = [c for one in forecast(config("mopd", **data), HALF, samples) for c in one.changes]
    assert change == f"balance={{kind: {kind}}}"
    set_dotted(data, change)
    assert told(forecast(config("mopd", **data), HALF, samples), "verdict") == ["fine", "fine"]


def test_the_balance_that_is_configured_is_the_one_foretold() -> None:
    """gap: share weights 10 and 10/19, times m_d/mean m = .5 and 1.5, rescaled: a quarter and three quarters."""
    samples = [*answers("short", 2, [[0]], 0.1), *answers("long", 38, [[0]], -0.3)]
    found = forecast(config("mopd", loss={"reduction": "token"}, balance={"kind": "gap"}), HALF, samples)
    assert told(found, "update_share") == pytest.approx([0.25, 0.75], rel=1e-5)


# -- rewards -----------------------------------------------------------------------------------------------------------


def test_a_domain_whose_rewards_never_differ_has_no_signal() -> None:
    samples = [*answers("short", 3, [[0, 0], [0, 0]]), *answers("long", 3, [[0, 1], [1, 1]])]
    short, long = forecast(config("mix_rl"), HALF, samples)
    assert (short.contrast, short.update_share, short.verdict) == (0, 0, "no signal")
    assert short.changes == ("rollout.n=16", "max_draws=4")
    assert "with a mean reward of 0.00 the policy hardly ever earns any there" in short.warnings[0]
    assert (long.contrast, long.update_share, long.verdict) == (0.5, 1, "fine")

    (solved,) = forecast(config("mix_rl", max_draws=2), {"short": 1.0}, answers("short", 3, [[1, 1]]))
    assert solved.changes == ("rollout.n=16", "domains.short.share=0")
    assert "has little left to learn there" in solved.warnings[0]


def test_a_domain_with_few_useful_groups_starves_and_is_offered_more_prompts() -> None:
    few = [[0.0, 1.0], *[[0.0, 0.0]] * 4]
    samples = [*answers("short", 3, few), *answers("long", 3, [[0, 1]] * 5)]
    short, long = forecast(config("mix_rl"), HALF, samples)
    assert (short.contrast, short.verdict, long.verdict) == (0.2, "starves", "fine")
    assert short.update_share == pytest.approx(0.2 / 1.2)
    assert short.changes == ("domains.short.share=3",)


def test_a_teachers_signal_needs_no_rewards_that_differ() -> None:
    samples = [*answers("short", 3, [[0, 0]], 0.5), *answers("long", 3, [[0, 1]], 0.5)]
    alone = forecast(config("mopd"), HALF, samples)
    assert told(alone, "contrast") == [None, None] and told(alone, "warnings") == [(), ()]
    both = forecast(config("mopd", outcome_weight=0.5, rollout={"n": 2}), HALF, samples)
    assert told(both, "update_share") == [0.5, 0.5] and told(both, "verdict") == ["fine", "fine"]
    assert both[0].changes == ("rollout.n=4",) and "in 0% of the groups rewards differ" in both[0].warnings[0]


def test_distillation_at_weight_0_is_reinforcement_learning_alone() -> None:
    samples = [*answers("short", 3, [[0, 0]], 0.5), *answers("long", 3, [[0, 1]], 0.5)]
    run: dict[str, Any] = {"outcome_weight": 1, "rollout": {"n": 2}}
    short, long = forecast(config("mopd", distill_weight=0, **run), HALF, samples)
    assert (short.contrast, short.update_share, short.verdict) == (0, 0, "no signal")
    assert (long.contrast, long.update_share, long.verdict) == (1, 1, "fine")
    later = {"start": 0, "end": 1, "steps": 9}
    assert told(forecast(config("mopd", distill_weight=later, **run), HALF, samples), "verdict") == ["fine", "fine"]


# -- masked answers ----------------------------------------------------------------------------------------------------


def test_a_domain_whose_answers_are_all_masked_gets_no_update() -> None:
    samples = [*answers("short", 3, [[0, 1]]), *answers("long", 9, [[0, 1], [0, 1]], cut=range(4))]
    for reduction in ("token", "sequence"):
        run = config("mix_rl", overlong="mask", loss={"reduction": reduction}, rollout={"max_new_tokens": 9})
        assert isinstance(run, ReinforcedConfig)
        annotate_reinforcement(samples, run)
        short, long = forecast(run, HALF, samples)
        assert (short.update_share, short.verdict, short.warnings) == (1, "fine", ())
        assert (long.update_share, long.contrast, long.verdict) == (0, 0, "no signal")
        assert long.changes == ("domains.long.max_new_tokens=18", "overlong=keep")
        assert long.warnings == (
            "domain 'long': 100% of its answers are cut off at max_new_tokens, and overlong: mask leaves those out of "
            "the update; let them get longer, or keep them",
        )


@pytest.mark.parametrize(("reduction", "share"), [("sequence", 0.2), ("token", 3 / 7)])
def test_masked_answers_count_in_neither_reduction(reduction: str, share: float) -> None:
    """A quarter of the long answers is left: 1/4 against 1 by answers, 9/4 against 3 by tokens."""
    samples = [*answers("short", 3, [[0, 1]]), *answers("long", 9, [[0, 1], [0, 1]], cut=range(1, 4))]
    run = config("mix_rl", overlong="mask", loss={"reduction": reduction})
    assert isinstance(run, ReinforcedConfig)
    annotate_reinforcement(samples, run)
    short, long = forecast(run, HALF, samples)
    assert long.contrast == 1, "of the groups that are not masked as a whole"
    assert [short.update_share, long.update_share] == pytest.approx([1 - share, share])
    assert long.verdict == ("starves" if share < 0.25 else "fine")
    if share < 0.25:
        assert "would get 20.0% of the update for 50.0% of the prompts: 75% of its answers are cut" in long.warnings[0]
        assert long.changes == ("domains.long.max_new_tokens=512", "overlong=keep")


@pytest.mark.parametrize(("recipe", "changes"), [("copd", {}), ("cascade_rl", {"order": ["short", "long"]})])
def test_branches_and_stages_do_not_starve_one_another(recipe: str, changes: dict[str, Any]) -> None:
    samples = [*answers("short", 2, [[0, 1]]), *answers("long", 38, [[0, 1]])]
    found = forecast(config(recipe, loss={"reduction": "token"}, **changes), HALF, samples)
    assert told(found, "update_share") == [1, 1] and told(found, "verdict") == ["fine", "fine"]


# -- real runs ---------------------------------------------------------------------------------------------------------


def test_a_run_begins_as_foretold(tmp_path: Path) -> None:
    """Answers of one token against answers of many, from the same model: the forecast is of other prompts."""
    domains = {name: {**DOMAINS[name], "eval_size": 64} for name in DOMAINS}
    domains["early"]["max_new_tokens"] = 1
    run = run_of(
        "mopd",
        tmp_path,
        domains=domains,
        steps=1,
        rollout={"prompts": 128, "max_new_tokens": 16},
        loss={"reduction": "token"},
        check={"samples": 64, "warn_reverse_kl": 100, "warn_overlap": 0.01},
    )
    assert isinstance(run, MopdConfig)
    early, late = rehearse(run, gradients=False).domains
    recipes.run(run)
    (row,) = read_rows(run.output / "metrics.jsonl")
    assert early.verdict == "starves" and late.verdict == "fine"
    assert early.length == 1 and late.length == pytest.approx(row["length/late"], rel=0.15)
    assert early.token_share == pytest.approx(row["token_share/early"], rel=0.15)


def test_a_task_that_is_never_solved_is_found_before_training(tmp_path: Path) -> None:
    domains = {"early": DOMAINS["early"], "sort": {"tasks": {"kind": "letters", "task": "sort"}, "eval_size": 8}}
    run = run_of("mix_rl", tmp_path, domains=domains)
    assert isinstance(run, ReinforcedConfig)
    early, sort = rehearse(run, gradients=False).domains
    assert (early.verdict, sort.verdict) == ("fine", "no signal")
    assert early.update_share == 1 and sort.contrast == 0

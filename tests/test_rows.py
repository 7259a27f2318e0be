"""The measures behind docs/results.md, on values worked out by hand, and the page of a study that has just begun."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from onepolicy.report.folders import RunFolder
from onepolicy.report.intervals import over_seeds
from onepolicy.report.study import SeedRuns, StudyFolder
from tests.test_compare import run_folder

sys.path.insert(0, str(Path(__file__).parent.parent / "studies"))  # scripts, no package
import measures
import rows


def run(path: Path) -> RunFolder:
    return RunFolder(path, {}, {}, [], {}, [])


def test_ends_are_means_over_a_tenth_of_the_points():
    assert measures.ends(np.arange(20.0)) == (0.5, 18.5)
    assert measures.ends(np.array([3.0, 5.0])) == (3, 5)
    assert measures.ends(np.array([])) == (None, None)


def test_a_drop_is_measured_from_the_best_until_then():
    assert measures.largest_drop(np.array([0.1, 0.6, 0.4, 0.9, 0.8])) == pytest.approx(0.2)
    assert measures.largest_drop(np.array([0.1, 0.2])) == 0


def test_the_slope_is_that_of_the_least_squares_line():
    assert measures.slope(np.array([0.0, 1, 2]), np.array([1.0, 1, 4])) == pytest.approx(1.5)
    assert measures.slope(np.array([1.0]), np.array([1.0])) is None


def test_a_curve_is_read_as_of_the_latest_point():
    x, y = np.array([0.0, 10, 20]), np.array([1.0, 2, 3])
    assert [measures.as_of(x, y, at) for at in (-1, 0, 19.9, 20, 99)] == [None, 1, 2, 3, 3]


def test_a_phase_ends_where_the_next_one_is_first_measured():
    """What a step logs is measured before its update: the end of RL shows in the first step of OPD."""
    opd = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    rl, taught = measures.phase_ends(opd, np.arange(8.0))
    assert rl.tolist() == [2, 6] and taught.tolist() == [4]


def test_pearson_weighs_seeds():
    x, y = np.array([[1.0, 2, 3], [0, 0, 0]]), np.array([[2.0, 4, 7], [0, 0, 0]])
    alone, both = measures.pearson(x, y, np.array([[1.0, 0], [0.5, 0.5]]))
    assert alone == pytest.approx(5 / np.sqrt(2 * 38 / 3))  # centred: Σxy 5, Σx² 2, Σy² 38/3
    assert both == pytest.approx(np.corrcoef(x.ravel(), y.ravel())[0, 1])


def test_a_correlation_covers_seeds_and_can_be_freed_from_a_third_quantity():
    x = np.array([[1.0, 2, 3, 5], [2, 3, 1, 4]])
    found = measures.correlation(x, 2 * x + 1)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))
    z = np.array([[1.0, 0, 2, 1], [0, 2, 1, 3]])
    noise = np.array([[0.1, -0.2, 0.3, 0.0], [0.2, 0.1, -0.3, 0.1]])
    y = 5 * z + noise
    rest = [v.ravel() - np.polyval(np.polyfit(z.ravel(), v.ravel(), 1), z.ravel()) for v in (x, y)]
    assert measures.correlation(x, y, z).value == pytest.approx(np.corrcoef(*rest)[0, 1])
    assert np.isnan(measures.correlation(x, np.ones_like(x)).value)  # and no warning, which would be an error


def test_the_interval_of_a_number_covers_seeds():
    found = over_seeds(np.array([1.0, 2.0, 6.0]))
    assert (found.low, found.value, found.high) == (1, 3, 6)  # with three seeds: the smallest, the largest
    alone = over_seeds(np.array([4.0]))
    assert (alone.low, alone.value, alone.high) == (4, 4, 4)


def test_chances_count_the_draws_in_which_a_model_is_best():
    draws = {"a": np.array([0.9, 0.1, np.nan, 0.5]), "b": np.array([0.8, 0.2, 0.0, 0.4])}
    assert measures.chances(draws) == {"a": 0.5, "b": 0.5}


def test_orthogonal_task_vectors_shrink_when_averaged(tmp_path):
    weights = {"origin": [1.0, 1, 1], "a": [4.0, 1, 1], "b": [1.0, 1, 4]}
    for name, values in weights.items():
        (tmp_path / name / "model").mkdir(parents=True)
        save_file({"w": np.array(values, dtype=np.float32)}, tmp_path / name / "model" / "model.safetensors")
    seed = SeedRuns(run(tmp_path / "origin"), {name: run(tmp_path / name) for name in "ab"}, {})
    assert measures.task_vectors(seed) == pytest.approx((1 / np.sqrt(2), 0))
    (tmp_path / "b/model/model.safetensors").unlink()
    assert measures.task_vectors(seed) is None


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clash: origin 8 of 40 right, experts 32 on their own domain; two seeds, and little else."""
    root = tmp_path_factory.mktemp("runs")
    arms = {"mopd": {"a": 32, "b": 26}, "average": {"a": 14, "b": 20}}
    seeds = {}
    for seed in (0, 1):
        home = root / "clash" / f"seed-{seed}"
        run_folder(home / "origin", {"a": 8, "b": 8})
        for domain in "ab":
            run_folder(home / "experts" / domain, {"a": 0, "b": 0} | {domain: 32})
        for arm, solved in arms.items() if seed == 0 else ():
            run_folder(home / "arms" / arm, solved, {4: {"a": 8, "b": 20}})
        seeds[seed] = {
            "origin": f"seed-{seed}/origin",
            "experts": {domain: f"seed-{seed}/experts/{domain}" for domain in "ab"},
            "arms": {arm: f"seed-{seed}/arms/{arm}" for arm in [*arms, "mix_rl"]},
        }
    reads = {"mopd": ["experts.a", "experts.b"], "average": ["experts.a", "experts.b"], "mix_rl": []}
    head = {"title": "Clash", "domains": ["a", "b"], "reference": "mopd", "budget": "512 sequences"}
    (root / "clash" / "study.json").write_text(json.dumps({**head, "seeds": seeds, "reads": reads}))
    return root


def test_a_model_may_be_several_that_answer_for_their_own_domains(runs):
    study = StudyFolder.read(runs / "clash")
    found = measures.scores(study, measures.experts(study))
    assert found.raw == {"a": 0.8, "b": 0.8} and found.normalised.norm.value == 1
    assert measures.scores(study, measures.own_domains({"a": measures.origin, "b": measures.arm("mix_rl")})) is None
    assert measures.above_zero(study, measures.arm("mopd"), measures.arm("average")) == (1, 1)
    assert measures.paired(study, measures.arm("mopd"), measures.arm("average")).raw["a"].value == pytest.approx(0.45)


def test_the_page_says_what_is_measured_judged_and_missing(runs):
    found, missing = rows.read_studies(runs)
    verdicts = {"1": {"verdict": "reproduced", "why": "Because."}, "which method when": "Always MOPD."}
    verdicts["four real domains"] = "Kept."
    text = "\n".join(rows.page(found, missing, verdicts, []))
    assert "- clash: mix_rl (seed 0, 1); mopd (seed 1); average (seed 1)" in text.replace("\\", "")
    assert "coevolve: all of it" in text and "Always MOPD." in text
    assert "| mopd | 1 | 0.875 [" in text  # (1 + .75) / 2
    assert "| mix\\_rl | 0 | – | – |" in text
    assert "**reproduced**: Because." in text and text.count("*not judged yet*") == len(rows.ROWS) - 1


def test_the_heat_maps_say_what_training_does_elsewhere_and_stand_under_row_1(runs):
    found, missing = rows.read_studies(runs)
    figure = rows.interference_figure(found)
    shown = re.findall(r">([^<>]+)</text>", figure.svg)
    assert {"clash", "expert a", "expert b", "mopd", "average"} <= set(shown)
    # experts 32 of 40 on their own domain and 0 elsewhere, mopd 32 and 26, average 14 and 20; the origin 8
    cells = [text.replace("\N{MINUS SIGN}", "-") for text in shown if re.fullmatch(r"[+-]\d+\.\d", text)]
    assert cells == ["+60.0", "-20.0", "-20.0", "+60.0", "+60.0", "+45.0", "+15.0", "+30.0"]
    text = "\n".join(rows.page(found, missing, {}, [figure]))
    assert text.index("## 1 ·") < text.index("(results-interference.svg)") < text.index("## 2 ·")
    assert rows.interference_figure({}) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("17: {verdict: reproduced, why: x}", "no row '17'"),
        ("1: {verdict: true, why: x}", "row 1: give `verdict`"),
        ("2: {verdict: contradicted}", "row 2: give `verdict`"),
    ],
)
def test_a_verdict_that_means_nothing_is_refused(tmp_path, text, told):
    (tmp_path / "verdicts.yaml").write_text(text)
    with pytest.raises(ValueError, match=told):
        rows.read_verdicts(tmp_path / "verdicts.yaml")

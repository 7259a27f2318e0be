"""What each claim about co-evolution is measured by (CoPD, arXiv 2604.27083): rows 12 to 18, arms of coevolve.yaml."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from measures import (
    Pick,
    arm,
    branch,
    correlation,
    expert,
    experts,
    known,
    of_arm,
    origin,
    own_domains,
    phase_ends,
    preflight,
    seeds_with,
    slope,
)
from tables import NONE, against, differences, matrix, normalised, number, numbers, raw

from onepolicy.report.folders import RunFolder
from onepolicy.report.study import SeedRuns, StudyFolder
from onepolicy.report.tables import Table
from onepolicy.types import Array

STATIC = ["static_ascend", "static_descend", "static_native"]
RATIOS = {
    "1:0": "independent",
    "4:1": "ratio_4_1",
    "3:2": "copd",
    "1:1": "ratio_1_1",
    "1:4": "ratio_1_4",
    "0:1": "ratio_0_1",
}
DRIFTS = (0, 25, 50, 100, 200)


def row_12(study: StudyFolder) -> list[Table]:
    rows = {}
    for kind in ("overlap", "symmetric_kl"):
        for domain in study.domains:
            rows[f"expert {domain}: {kind} with the origin"] = _trend(
                partial(_expert, domain), f"{kind}/{domain}<origin"
            )
        alone = partial(_arm, "independent")
        for pair in [f"{domain}<origin" for domain in study.domains] + _pairs(study):
            rows[f"independent: {kind} {pair}"] = _trend(alone, f"{kind}/{pair}")
    note = "First and last diagnosed step (the first is before any update), and the slope of the least-squares line. "
    note += "a<b: on a's own rollouts. Symmetric KL in nats per token."
    return [numbers(study, "drift of what learns alone", "measure", rows, note)]


def _expert(domain: str, runs: SeedRuns) -> RunFolder | None:
    return runs.experts[domain]


def _arm(name: str, runs: SeedRuns) -> RunFolder | None:
    return runs.arms.get(name)


def _pairs(study: StudyFolder) -> list[str]:
    return [f"{a}<{b}" for a in study.domains for b in study.domains if a != b]


def _trend(which: Callable[[SeedRuns], RunFolder | None], key: str) -> dict[str, Callable[[SeedRuns], float | None]]:
    def of(number_of: Callable[[Array, Array], float | None]) -> Callable[[SeedRuns], float | None]:
        def number(runs: SeedRuns) -> float | None:
            run = which(runs)
            x, y = run.curve(key) if run is not None else (np.array([]), np.array([]))
            return number_of(x, y) if len(y) else None

        return number

    columns = {"first": of(lambda _, y: y[0]), "last": of(lambda _, y: y[-1])}
    columns["change"] = of(lambda _, y: y[-1] - y[0])
    return columns | {"slope per 100 steps": of(lambda x, y: 100 * s if (s := slope(x, y)) is not None else None)}


def row_13(study: StudyFolder) -> list[Table]:
    domain, starts = study.domains[1], _starts(study.domains[0])
    seeds = seeds_with(study, *starts.values(), *(arm(f"gain_{drift}") for drift in DRIFTS))
    rows = {f"{drift} steps": _gain(drift, start, domain) for drift, start in starts.items()}
    points = numbers(
        study, f"25 steps of OPD from the {domain} expert, by the student's own steps before", "drift", rows
    )
    lines = []
    if seeds:
        columns = {
            k: [[_gain(n, s, domain)[k](study.seeds[seed]) for n, s in starts.items()] for seed in seeds] for k in GAIN
        }
        overlap, kl, _, gain, room, part = (np.array(columns[key], dtype=float) for key in GAIN)
        tests = {
            "overlap and gain": (overlap, gain),
            "overlap and gain ÷ headroom": (overlap, part),
            "overlap and gain, given the headroom (partial)": (overlap, gain, room),
            "headroom and gain": (room, gain),
            "symmetric KL and gain": (kl, gain),
        }
        lines = [[name, str(len(seeds)), number(correlation(*given))] for name, given in tests.items()]
    note = f"Over {len(DRIFTS)} points of every seed; a draw of the interval takes seeds with all their points."
    return [points, Table("Pearson's r", ["of", "seeds", "r"], lines or [["overlap and gain", "0", NONE]], note)]


GAIN = (
    "initial overlap",
    "initial symmetric KL",
    "score before (%)",
    "gain (points)",
    "headroom (points)",
    "gain ÷ headroom",
)


def _starts(domain: str) -> dict[int, Pick]:
    """What each gain_* starts from; 100 steps is the expert itself."""
    drifted = {drift: arm(f"drift_{drift}") for drift in DRIFTS}
    return drifted | {0: origin, 100: expert(domain)}


def _gain(drift: int, start: Pick, domain: str) -> dict[str, Callable[[SeedRuns], float | None]]:
    name = f"gain_{drift}"

    def score(pick: Pick, runs: SeedRuns) -> float:
        found = pick(runs)
        return 100 * found.domains[domain].mean if found else np.nan

    def before(runs: SeedRuns) -> float:
        return score(start, runs)

    def gain(runs: SeedRuns) -> float:
        return score(arm(name), runs) - before(runs)

    def room(runs: SeedRuns) -> float:
        return score(expert(domain), runs) - before(runs)

    numbers = (before, gain, room, lambda runs: gain(runs) / (room(runs) or np.nan))
    kinds = (of_arm(name, preflight(domain, kind)) for kind in ("overlap", "symmetric_kl"))
    return dict(zip(GAIN, (*kinds, *numbers), strict=True))


def row_14(study: StudyFolder) -> list[Table]:
    rows = {}
    for kind in ("overlap", "symmetric_kl"):
        teeth = {
            "end of RL phases": partial(_tooth, study, kind, lambda rl, opd: rl.mean()),
            "end of OPD phases": partial(_tooth, study, kind, lambda rl, opd: opd.mean()),
            "OPD − RL": partial(_tooth, study, kind, lambda rl, opd: opd.mean() - rl.mean()),
            "OPD phases that raise it (share)": partial(_tooth, study, kind, lambda rl, opd: (opd > rl).mean()),
        }
        rows[f"copd: {kind}"] = teeth | {
            "lowest": partial(_between, study, kind, "copd", np.min),
            "highest": partial(_between, study, kind, "copd", np.max),
            "last tenth": partial(_between, study, kind, "copd", _end),
        }
        for name in ("independent", "static_native"):
            ends: dict[str, Callable[[Array], float]] = {"lowest": np.min, "highest": np.max, "last tenth": _end}
            rows[f"{name}: {kind}"] = {k: partial(_between, study, kind, name, f) for k, f in ends.items()}
        same = partial(_same_sequences, study, kind)
        rows[f"copd − independent: {kind}, at the same sequences"] = {"last tenth": same}
    note = "Mean over the two directions. copd is measured at every step, before its update. independent and "
    note += "static_native at every tenth step. Symmetric KL in nats per token."
    return [numbers(study, "the saw-tooth", "measure", rows, note)]


def gap_curve(study: StudyFolder, kind: str, run: RunFolder, x: str = "sequences") -> tuple[Array, Array]:
    """Sequences (or steps), and the mean over both directions, where all are logged."""
    keys = [f"{kind}/{pair}" for pair in _pairs(study)]
    rows = [row for row in run.metrics if all(key in row for key in keys)]
    means = [np.mean([row[key] for key in keys]) for row in rows]
    return np.array([row[x] for row in rows], dtype=float), np.array(means, dtype=float)


def _between(study: StudyFolder, kind: str, name: str, what: Callable[[Array], float], runs: SeedRuns) -> float | None:
    values = gap_curve(study, kind, runs.arms[name])[1] if name in runs.arms else np.array([])
    return float(what(values)) if len(values) else None


def _end(values: Array) -> float:
    return float(values[-max(1, len(values) // 10) :].mean())


def _tooth(study: StudyFolder, kind: str, what: Callable[[Array, Array], float], runs: SeedRuns) -> float | None:
    if "copd" not in runs.arms:
        return None
    run = runs.arms["copd"]
    opd, values = run.curve("opd")[1], gap_curve(study, kind, run)[1]
    if len(opd) != len(values):
        return None  # not measured at every step
    rl, taught = phase_ends(opd, values)  # rl[i] is where the OPD phase starts that ends with taught[i]
    return float(what(rl[: len(taught)], taught)) if len(taught) else None


def _same_sequences(study: StudyFolder, kind: str, runs: SeedRuns) -> float | None:
    """copd minus independent where independent was last measured, interpolating copd; over its last tenth."""
    if not {"copd", "independent"} <= runs.arms.keys():
        return None
    (x, y), (at, alone) = (gap_curve(study, kind, runs.arms[name]) for name in ("copd", "independent"))
    return _end(np.interp(at, x, y) - alone) if len(x) and len(at) else None


def row_15(study: StudyFolder) -> list[Table]:
    ratios: dict[str, Pick] = {f"{ratio} ({name})": arm(name) for ratio, name in RATIOS.items()}
    static = {name: arm(name) for name in STATIC}
    return [
        raw(study, "S_RL:S_OPD, merged", ratios | static),
        matrix(study, "Δ mean (points) of a ratio minus static OPD", ratios, static),
        matrix(study, "is the optimum inside? Δ mean (points) of a ratio minus another", ratios, {"3:2": arm("copd")}),
    ]


def row_16(study: StudyFolder) -> list[Table]:
    merged, branches = {"copd, merged": arm("copd")}, {"copd's branches, each on its own": _branches(study, "copd")}
    alone: dict[str, Pick] = {
        "experts at the matched budget": _branches(study, "independent"),
        "experts, 100 steps": experts(study),
    }
    others: dict[str, Pick] = {
        **{f"copd, branch {domain}": branch("copd", domain) for domain in study.domains},
        "independent, merged": arm("independent"),
        "independent, merged, at copd's rate": arm("independent_3e-4"),
        **{name: arm(name) for name in [*STATIC, "mix_rl", "mopd", "mopd_full"]},
    }
    note = "All arms have the same sequences in total, the experts that they read included; the experts of 100 steps, "
    note += "fewer. The matched experts are independent's branches. Experts and 'each on its own' are two models, each "
    note += "asked about its own domain."
    every = merged | branches | alone | others
    full = {"copd_full, merged": arm("copd_full"), "mopd_full": arm("mopd_full")}
    return [
        raw(study, "scores", {"origin": origin} | every, note),
        normalised(study, "what is recovered of the experts of 100 steps", merged | others),
        differences(study, "copd, merged, minus", every, [("copd, merged", name) for name in alone | others]),
        differences(study, "both with the whole vocabulary", full, [("copd_full, merged", "mopd_full")]),
        differences(study, "copd's branches minus", every, [(next(iter(branches)), name) for name in alone]),
    ]


def _branches(study: StudyFolder, name: str) -> Pick:
    return own_domains({domain: branch(name, domain) for domain in study.domains})


def row_18(study: StudyFolder) -> list[Table]:
    one, two = study.domains
    models: dict[str, Pick] = {
        "copd": arm("copd"),
        f"without OPD from {two}": arm(f"without_from_{two}"),
        f"without OPD from {one}": arm(f"without_from_{one}"),
        "without either (independent, merged)": arm("independent"),
        f"branch {one} alone": branch("copd", one),
        f"branch {two} alone": branch("copd", two),
    }
    others = {
        name: arm(name) for name in known(study, "snapshot", "beta_quarter", "beta_half", "beta_two", "copd_full")
    }
    return [
        raw(study, "scores", models),
        against(study, models, "copd", "paired differences to copd"),
        raw(study, "choices that the paper leaves open", {"copd": arm("copd")} | others),
        against(study, {"copd": arm("copd")} | others, "copd", "paired differences to copd"),
    ]

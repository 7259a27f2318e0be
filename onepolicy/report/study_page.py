"""What the report of a study says: who wins, by how much, at what cost, and when."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onepolicy.report import plots, study_plots
from onepolicy.report import study_tables as tables
from onepolicy.report.gaps import gap_figure
from onepolicy.report.intervals import Scores, arm_scores, difference, reached, scores_of
from onepolicy.report.page import Page, Section, write
from onepolicy.report.plots import Figure, Line, Panel
from onepolicy.report.study import StudyFolder, final, parts, points
from onepolicy.report.tables import Table
from onepolicy.types import Array

DRAWN = 9  # arms beside the reference in one pair of axes: with more, nobody can tell the lines apart
PANELS = 12  # in one figure: what a page holds

HOW_TO_READ = (
    "All arms start from the same origin (unless the study starts one from another), with the same seed, see the same "
    "tasks, and answer the same held-out questions. The normalised score says how much of an expert's gain an arm "
    "has: 0 is no better than the origin, 1 as good as the expert. Norm is the mean over the domains, the range is max "
    "- min."
    "\n\n"
    "Brackets are 95% bootstrap intervals over seeds and questions together: every draw takes seeds with replacement "
    "and questions with replacement, the same for origin, experts and all arms, so that differences are paired. With "
    "few seeds such an interval is too narrow rather than too wide; with one it covers the questions alone. The range "
    "is never negative, so its bracket leans upwards. Many arms are compared here: of twenty comparisons of arms that "
    "do not differ at all, one will have an interval that excludes 0."
)


def study_report(path: Path) -> tuple[Path, Path, Table]:
    """Write report.md and report.html; also the main table."""
    study = StudyFolder.read(path)
    scores = {arm: arm_scores(study, arm) for arm in study.arms}
    arms = tables.order(scores)
    others = [arm for arm in arms if arm != study.reference]
    main, models = tables.normalised_table(study, scores), _models(study, scores, arms)
    sections = [
        Section("Scores", tables=[main], figures=_drawn(_norms(scores, arms), _domains(scores, arms))),
        Section("How to read this", HOW_TO_READ),
        _section(
            "Differences",
            tables.difference_table(study, {arm: difference(study, arm) for arm in others}),
            _differences(study, others),
        ),
        _section("Every model", tables.raw_table(study, models), interference("interference", {"": (study, models)})),
        _section("Seeds", tables.seeds_table(study, arms)),
        Section(
            "Cost and speed",
            tables=_there(
                tables.cost_table(study, arms),
                tables.reached_table(study, {arm: reached(study, arm) for arm in arms}),
            ),
            figures=_drawn(_speed(study, arms)),
        ),
        Section("How far apart", figures=_drawn(*(_gaps(study, arm) for arm in arms))),
        _section("Who gets the tokens", tables.token_table(study, arms), *_token_shares(study, arms)),
    ]
    if unkept := tables.unkept_budgets(study, arms):
        sections.insert(0, Section("Budgets that were not kept", "\n\n".join(unkept)))
    if study.missing:
        absent = "Not finished, and left out: " + ", ".join(study.missing) + "."
        sections.insert(0, Section("Missing runs", absent))
    filled = [section for section in sections if section.text or section.tables or section.figures]
    page = Page(str(study.facts["title"]), _facts(study), filled)
    return *write(page, path), main


def _facts(study: StudyFolder) -> list[tuple[str, str]]:
    run = next(iter(study.seeds.values())).origin
    versions = run.info.get("versions", {})
    return [
        ("arms", ", ".join(study.arms)),
        ("domains", ", ".join(study.domains)),
        ("seeds", ", ".join(map(str, study.seeds))),
        ("budget of an arm", str(study.facts["budget"])),
        ("reference arm", study.reference),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]


def _there(*tables: Table | None) -> list[Table]:
    return [table for table in tables if table is not None]


def _drawn(*figures: Figure | None) -> list[Figure]:
    return [figure for figure in figures if figure is not None]


def _section(title: str, table: Table | None, *figures: Figure | None) -> Section:
    return Section(title, tables=_there(table), figures=_drawn(*figures))


def _models(study: StudyFolder, scores: dict[str, Scores], arms: list[str]) -> dict[str, Scores]:
    """Origin and experts before the arms; after an arm, its parts."""
    seeds = list(study.seeds)
    models = {"origin": scores_of(study, final([runs.origin for runs in study.seeds.values()]), seeds)}
    for domain in study.domains:
        runs = [study.seeds[seed].experts[domain] for seed in seeds]
        models[f"expert {domain}"] = scores_of(study, final(runs), seeds)
    for arm in arms:
        models[arm] = scores[arm]
        for name, evaluations in parts(study, arm).items():
            models[f"{arm}: {name}"] = scores_of(study, evaluations, study.seeds_of(arm))
    return models


def _norms(scores: dict[str, Scores], arms: list[str]) -> Figure | None:
    norms = {arm: {"Norm": norm} for arm in arms if (norm := scores[arm].normalised.norm)}
    caption = "Norm with 95% intervals over seeds and questions; 0 is the origin, 1 the experts."
    return study_plots.intervals("norm", caption, norms, "Norm (mean normalised score)", (0, 1))


def _domains(scores: dict[str, Scores], arms: list[str]) -> Figure | None:
    domains = {arm: scores[arm].normalised.domains for arm in arms if scores[arm].normalised.domains}
    caption = "Normalised score of each domain with 95% intervals; 0 is the origin, 1 the domain's expert."
    return study_plots.intervals("domains", caption, domains, "normalised score", (0, 1))


def _differences(study: StudyFolder, others: list[str]) -> Figure | None:
    groups = {}
    for arm in others:
        found = difference(study, arm)
        if found is not None and found.norm is not None:
            groups[arm] = {"Norm": found.norm}
    caption = f"Norm minus that of {study.reference}, paired over seeds and questions, 95% intervals."
    return study_plots.intervals("differences", caption, groups, f"Norm minus {study.reference}'s", (0,))


def drawn(study: StudyFolder, arms: list[str]) -> list[str]:
    """The reference arm, and the others with the most seeds, of these the first: `arms` are the best first."""
    others = sorted((arm for arm in arms if arm != study.reference), key=lambda arm: -len(study.seeds_of(arm)))
    return [arm for arm in arms if arm == study.reference] + others[:DRAWN]


def _speed(study: StudyFolder, arms: list[str]) -> Figure | None:
    """Mean score over cumulative sequences: after the experts exist, and with what they cost."""
    chosen = drawn(study, arms)
    apart, included = [], []
    for style, arm in enumerate(chosen):
        found, seeds = points(study, arm), study.seeds_of(arm)
        if found[-1].spent["sequences"] == 0:  # a merge: its end alone
            found = found[-1:]
        x = np.array([point.spent["sequences"] for point in found])
        means = [scores_of(study, point.evaluations, seeds).mean_estimate for point in found]
        y, low, high = 100 * np.array([[mean.value, mean.low, mean.high] for mean in means]).T
        experts = tables.experts_cost(study, arm)
        apart.append(Line(arm, x, y, style, window=1, band=(low, high)))
        if experts is not None:
            included.append(Line(arm, x + experts["sequences"], y, style, window=1, band=(low, high)))
    ylabel = "mean score, avg@n (%)"
    panels = [Panel(ylabel, apart, "after the experts exist"), Panel(ylabel, included, "experts' sequences counted in")]
    caption = (
        "Held-out score against sequences written, mean over seeds; bands: 95% over seeds and questions. A marker "
    )
    caption += "alone is an arm without training."
    if left := [arm for arm in arms if arm not in chosen]:
        caption += f" Of the arms other than {study.reference}, {DRAWN} are drawn: those with the most seeds, then the "
        caption += f"highest Norm; not drawn: {', '.join(left)}."
    return plots.curves("speed", caption, panels, "cumulative sequences")


def interference(name: str, studies: Mapping[str, tuple[StudyFolder, Mapping[str, Scores]]]) -> Figure:
    """What training on one domain, or distilling all, does to every domain: title → a study and its models."""
    maps = []
    for title, (study, models) in studies.items():
        rows: dict[str, list[float]] = {}
        for model, scores in models.items():
            origin = scores_of(study, final([study.seeds[seed].origin for seed in scores.seeds]), scores.seeds)
            rows[model] = [100 * (scores.raw[domain] - origin.raw[domain]) for domain in study.domains]
        rows.pop("origin", None)
        maps.append(study_plots.HeatMap(title, list(rows), study.domains, np.array(list(rows.values()))))
    caption = "Score minus the origin's, per domain, in points, mean over seeds: off an expert's own domain, what its "
    caption += "training does to the others; for an arm, what integration does."
    if any(": " in row for shown in maps for row in shown.rows):
        caption += " Below an arm: its branches or stages."
    return study_plots.heat_maps(name, caption, maps)


def _gaps(study: StudyFolder, arm: str) -> Figure | None:
    """Of the first seed; CoPD's distillation phases are shaded."""
    run, seed = study.runs(arm)[0], study.seeds_of(arm)[0]
    shaded = phases(*run.curve("opd"))
    caption = f"{arm}, seed {seed}: how far its policies are apart." + " Shaded: distillation phases." * bool(shaded)
    return gap_figure(f"overlap-{arm}", caption, run, shaded)


def phases(steps: Array, opd: Array) -> list[tuple[float, float]]:
    """Stretches of steps in which branches teach one another."""
    edges = np.flatnonzero(np.diff((opd > 0).astype(int), prepend=0, append=0)).reshape(-1, 2)
    return [(float(steps[first]) - 0.5, float(steps[last - 1]) + 0.5) for first, last in edges]


def _token_shares(study: StudyFolder, arms: list[str]) -> list[Figure]:
    """The first seed's token share of each domain, an arm a panel; and the budget share, where it is logged."""
    figures = []
    for key, label in (("token_share", "share of tokens"), ("budget", "share of the update's budget")):
        panels = []
        for arm in arms:
            run = study.runs(arm)[0]
            lines = [Line(d, *run.curve(f"{key}/{d}"), style=n) for n, d in enumerate(study.domains)]
            if sum(len(line.x) > 1 for line in lines) > 1:
                panels.append(Panel(label, lines, arm))
        caption = f"The {label} of each domain in each arm, first seed."
        for number, start in enumerate(range(0, len(panels), PANELS), start=1):
            name = key.replace("_", "-") + f"-{number}" * (number > 1)
            figures += _drawn(plots.curves(name, caption, panels[start : start + PANELS], "step"))
    return figures

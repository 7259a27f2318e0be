"""The shapes of table that the rows of docs/results.md share. A missing run is a dash, and never an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import measures
import numpy as np
from measures import Pick

from onepolicy.evaluation import Estimate
from onepolicy.report.folders import RunFolder
from onepolicy.report.study import SeedRuns, StudyFolder
from onepolicy.report.tables import Table, percent, percent_interval, score_interval

NONE = "–"


def share(estimate: Estimate | None) -> str:
    """A normalised score, a share or another number around 1."""
    return NONE if estimate is None or np.isnan(estimate.value) else score_interval(estimate)


def points(estimate: Estimate | None) -> str:
    """Of a mean reward: in percent."""
    return NONE if estimate is None else percent_interval(estimate)


def number(estimate: Estimate | None) -> str:
    """Three digits, whatever the size."""
    if estimate is None or np.isnan(estimate.value):
        return NONE
    three = (estimate.value, estimate.low, estimate.high)
    value, low, high = (f"{x:,.0f}" if 1000 <= abs(x) < np.inf else f"{x:.3g}" for x in three)
    return (value if low == high else f"{value} [{low}, {high}]").replace("inf", "∞")


def normalised(study: StudyFolder, title: str, models: Mapping[str, Pick], note: str = "") -> Table:
    """Norm, range and every domain's normalised score, in the order given."""
    rows = []
    for name, pick in models.items():
        found = measures.scores(study, pick)
        if found is None:
            rows.append([name, "0", *[NONE] * (3 + len(study.domains))])
            continue
        domains = [share(found.normalised.domains.get(domain)) for domain in study.domains]
        total = [share(found.normalised.norm), share(found.normalised.range)]
        rows.append([name, str(len(found.seeds)), *total, *domains, percent(found.mean)])
    columns = ["model", "seeds", "Norm", "range", *study.domains, "mean score (%)"]
    return Table(title, columns, rows, note)


def raw(study: StudyFolder, title: str, models: Mapping[str, Pick], note: str = "") -> Table:
    """Mean reward of every domain, in percent."""
    rows = []
    for name, pick in models.items():
        found = measures.scores(study, pick)
        if found is None:
            rows.append([name, "0", *[NONE] * (1 + len(study.domains))])
            continue
        cells = [points(found.raw_estimate(domain)) for domain in study.domains]
        rows.append([name, str(len(found.seeds)), *cells, points(found.mean_estimate)])
    return Table(title, ["model", "seeds", *(f"{d} (%)" for d in study.domains), "mean (%)"], rows, note)


def differences(study: StudyFolder, title: str, models: Mapping[str, Pick], pairs: Sequence[tuple[str, str]]) -> Table:
    """Of the mean score, of every domain's, and of Norm where it exists; paired."""
    rows = []
    for ours, theirs in pairs:
        name = f"{ours} − {theirs}"
        found = measures.paired(study, models[ours], models[theirs])
        if found is None:
            rows.append([name, "0", *[NONE] * (3 + len(study.domains))])
            continue
        above, of = measures.above_zero(study, models[ours], models[theirs])
        domains = [points(found.raw[domain]) for domain in study.domains]
        rows.append([name, str(of), share(found.norm), points(found.mean), *domains, f"{above} of {of}"])
    columns = ["difference", "seeds", "Δ Norm", "Δ mean (points)", *(f"Δ {d} (points)" for d in study.domains)]
    return Table(title, [*columns, "seeds with Δ mean > 0"], rows)


def against(study: StudyFolder, models: Mapping[str, Pick], reference: str, title: str) -> Table:
    return differences(study, title, models, [(name, reference) for name in models if name != reference])


def matrix(study: StudyFolder, title: str, models: Mapping[str, Pick], references: Mapping[str, Pick]) -> Table:
    """Δ mean of every model to every reference, paired; the seeds that both have in front."""
    rows = []
    for name, pick in models.items():
        found = [measures.paired(study, pick, other) for other in references.values()]
        rows.append([name, *(f"{gap.seeds}: {points(gap.mean)}" if gap else NONE for gap in found)])
    return Table(title, ["model", *(f"seeds: minus {name}" for name in references)], rows)


Number = Callable[[RunFolder], float | None]


def diagnosed(
    study: StudyFolder, title: str, arms: Sequence[str], columns: Mapping[str, Number], note: str = ""
) -> Table:
    """One row per arm: numbers of its runs, mean over seeds, interval over seeds."""
    named = {arm: {label: measures.of_arm(arm, number) for label, number in columns.items()} for arm in arms}
    return numbers(study, title, "arm", named, note)


def numbers(
    study: StudyFolder,
    title: str,
    first: str,
    rows: Mapping[str, Mapping[str, Callable[[SeedRuns], float | None]]],
    note: str = "",
) -> Table:
    """One row per name, one column per number of a seed."""
    labels = list(dict.fromkeys(label for cells in rows.values() for label in cells))
    lines = []
    for name, cells in rows.items():
        found = {label: measures.over(study, cell) for label, cell in cells.items()}
        seeds = max((count for _, count in found.values()), default=0)
        shown = [number(found[label][0]) if label in found else "" for label in labels]
        lines.append([name, str(seeds), *shown])
    return Table(title, [first, "seeds", *labels], lines, note)

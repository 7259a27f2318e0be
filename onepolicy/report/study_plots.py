"""The figures of a study that a single run has no need of: intervals of many arms, and what training does elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onepolicy.evaluation import Estimate
from onepolicy.report import plots
from onepolicy.report.plots import MARKERS, SERIES, Figure
from onepolicy.types import Array

DARK = 0.6  # of the colour range: beyond, the number is white


def intervals(
    name: str, caption: str, groups: Mapping[str, Mapping[str, Estimate]], xlabel: str, marks: Sequence[float]
) -> Figure | None:
    """Group (arm) → series (domain) → estimate: a row per arm, from the top, with a marker per series.

    `marks` are values of the axis with a line. Infinite ends of an interval are drawn to the edge.
    """
    every = [estimate for by_series in groups.values() for estimate in by_series.values()]
    if not every:
        return None
    series = list(dict.fromkeys(key for by_series in groups.values() for key in by_series))
    with plots.style():
        canvas = plots.new_canvas(
            height=0.7 + max(0.32, 0.13 * len(series)) * len(groups) + plots.legend_height(series)
        )
        axes = canvas.subplots()
        ends = [value for e in every for value in (e.value, e.low, e.high) if np.isfinite(value)] + list(marks)
        low, high = min(ends), max(ends)
        pad = 0.04 * (high - low)
        for mark in marks:
            axes.axvline(mark, color=plots.INK, linewidth=0.8, linestyle=(0, (4, 3)))
        for number, key in enumerate(series):
            kept = [(row, by[key]) for row, by in enumerate(groups.values()) if key in by]
            y = [row + 0.7 * ((number + 0.5) / len(series) - 0.5) for row, _ in kept]
            x = np.array([estimate.value for _, estimate in kept])
            lows = np.maximum(np.array([estimate.low for _, estimate in kept]), low - pad)
            highs = np.minimum(np.array([estimate.high for _, estimate in kept]), high + pad)
            axes.errorbar(
                x,
                y,
                xerr=np.maximum(0, [x - lows, highs - x]),
                fmt=MARKERS[number % len(MARKERS)],
                color=SERIES[number % len(SERIES)],
                capsize=2.5,
                markersize=5,
                linewidth=1.3,
                label=key,
            )
        axes.set_yticks(range(len(groups)), list(groups))
        axes.set(xlabel=xlabel, xlim=(low - 2 * pad, high + 2 * pad), ylim=(len(groups) - 0.4, -0.6))
        axes.grid(visible=False, axis="y")
        if len(series) > 1:
            plots.legend(canvas, *axes.get_legend_handles_labels())
        return Figure(name, caption, plots.to_svg(canvas, name))


@dataclass(frozen=True, slots=True)
class HeatMap:
    """One pair of axes: `values_RC` are changes in points, a row per trained model, a column per evaluated domain."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values_RC: Array


def heat_maps(name: str, caption: str, maps: Sequence[HeatMap]) -> Figure:
    """Changes around 0: orange is loss, purple gain (both read by colour-blind eyes); a number in each. One scale."""
    from matplotlib import colormaps

    extent = max(1.0, *(float(np.nanmax(np.abs(shown.values_RC))) for shown in maps))
    with plots.style():
        canvas = plots.new_canvas(height=1.2 + 0.27 * max(len(shown.rows) for shown in maps))
        grid = canvas.subplots(1, len(maps), squeeze=False)[0]
        for axes, shown in zip(grid, maps, strict=True):
            mesh = axes.pcolormesh(shown.values_RC, cmap=colormaps["PuOr"], vmin=-extent, vmax=extent, linewidth=0.5)
            for (row, column), value in np.ndenumerate(shown.values_RC):
                shade = "#ffffff" if abs(value) > DARK * extent else "#000000"
                text = "-" if np.isnan(value) else f"{value:+.1f}"
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=shade)
            axes.set_xticks(np.arange(len(shown.columns)) + 0.5, shown.columns)
            axes.set_yticks(np.arange(len(shown.rows)) + 0.5, shown.rows)
            axes.set(xlabel="evaluated domain", title=shown.title)
            axes.invert_yaxis()
            axes.grid(visible=False)
        grid[0].set(ylabel="trained model")
        canvas.colorbar(mesh, ax=list(grid), label="change over the origin (points)", aspect=30)
        return Figure(name, caption, plots.to_svg(canvas, name))

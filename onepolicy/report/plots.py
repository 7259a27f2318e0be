"""Curves and score plots as SVG text. matplotlib is imported when a figure is drawn; no pyplot, so no global state.

Colours are Okabe and Ito's palette for colour-blind readers; lines differ in dash and markers in shape as well, so
that a black-and-white print can be read. `inline` swaps the colours for CSS variables, so that a page has a dark mode.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from onepolicy.evaluation import Estimate
from onepolicy.types import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)), (0, (8, 2)), (0, (3, 3)))
MARKERS = ("o", "s", "D", "^", "v", "P")
INK, GRID = "#24292f", "#d9dee4"
SHADE = "#9aa5b1"
WIDTH = 9.6  # inches
LEGEND_ROW, LEGEND_HANDLE, LETTER = 0.19, 0.55, 0.085  # inches, at the font size of `style`: generous


@dataclass(frozen=True, slots=True)
class Line:
    """A labelled curve. `style` is its place in the palette; by default, labels take places as they come.

    `window` is the number of points that are averaged; by default 5% of them. `band` is shaded: its low and high ends.
    """

    label: str
    x: Array
    y: Array
    style: int | None = None
    window: int | None = None
    band: tuple[Array, Array] | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes; `ylabel` carries the unit. `shaded` are stretches of x."""

    ylabel: str
    lines: Sequence[Line]
    title: str = ""
    shaded: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawn figure: a file name, what it shows, and the SVG for a white page."""

    name: str
    caption: str
    svg: str

    def inline(self) -> str:
        """The SVG for inside an HTML page: no XML preamble, no fixed size, its own ids, colours from the page's CSS."""
        head, body = self.svg[self.svg.index("<svg") :].split(">", 1)
        head = re.sub(r' (xmlns(:\w+)?|version|width|height|style)="[^"]*"', "", head)
        svg = f'{head} role="img" aria-label="{escape(self.caption)}">{body}'.replace("xlink:href", "href")
        svg = re.sub(r'\bid="', f'id="{self.name}-', svg)
        svg = svg.replace('href="#', f'href="#{self.name}-').replace("url(#", f"url(#{self.name}-")
        for number, colour in enumerate(SERIES):
            svg = svg.replace(colour, f"var(--series-{number})")
        return svg.replace(INK, "var(--ink)").replace(GRID, "var(--grid)")


def curves(name: str, caption: str, panels: Sequence[Panel], xlabel: str) -> Figure | None:
    """Small multiples with one legend, and one scale where all show one quantity; None where nothing is to draw."""
    panels = [panel for panel in panels if any(len(line.x) > 1 for line in panel.lines)]
    if not panels:
        return None
    labels = list(dict.fromkeys(line.label for panel in panels for line in panel.lines))
    columns = 3 if len(panels) == 3 or len(panels) > 4 else min(2, len(panels))
    rows = -(-len(panels) // columns)
    one_quantity = len({panel.ylabel for panel in panels}) == 1
    with style():
        canvas = new_canvas(height=0.3 + 2.4 * rows + legend_height(labels))
        grid = canvas.subplots(rows, columns, squeeze=False, sharey=one_quantity)
        for axes, panel in zip(grid.flat, panels, strict=False):
            for line in panel.lines:
                _draw(axes, line, labels.index(line.label))
            for start, end in panel.shaded:
                axes.axvspan(start, end, color=SHADE, alpha=0.25, linewidth=0)
            repeated = one_quantity and not axes.get_subplotspec().is_first_col()
            axes.set(xlabel=xlabel, ylabel="" if repeated else panel.ylabel, title=panel.title)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        handles = {h.get_label(): h for axes in canvas.axes for h in axes.get_lines()}
        if len(labels) > 1:
            legend(canvas, [handles[label] for label in labels], labels)
        smoothed = any(_window(line) > 1 for panel in panels for line in panel.lines)
        note = " Bold: trailing mean over 5% of the points; faint: every point." if smoothed else ""
        return Figure(name, caption + note, to_svg(canvas, name))


def _window(line: Line) -> int:
    return line.window or max(1, len(line.y) // 20)


def _draw(axes: Any, line: Line, place: int) -> None:
    """One curve, smoothed if it has many points."""
    number = place if line.style is None else line.style
    # after a round through the colours, each has another dash and marker than before
    again = number + number // len(SERIES)
    colour, dash, mark = SERIES[number % len(SERIES)], DASHES[again % len(DASHES)], MARKERS[again % len(MARKERS)]
    if line.band is not None:
        axes.fill_between(line.x, *line.band, color=colour, alpha=0.18, linewidth=0)
    if _window(line) > 1:
        axes.plot(line.x, line.y, color=colour, linewidth=0.7, alpha=0.3, label="_raw")
    smooth, marker = trailing_mean(line.y, _window(line)), mark if len(line.y) == 1 else ""
    axes.plot(line.x, smooth, color=colour, linestyle=dash, linewidth=1.7, marker=marker, label=line.label)


def trailing_mean(values: Array, window: int) -> Array:
    """The mean of the last `window` values at each point, of fewer at the start."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def scores(name: str, caption: str, models: dict[str, dict[str, Estimate]]) -> Figure:
    """avg@n with intervals: domains along the axis, one marker per model."""
    domains = list(dict.fromkeys(domain for by_domain in models.values() for domain in by_domain))
    with style():
        canvas = new_canvas(height=3.0 + legend_height(list(models)))
        axes = canvas.subplots()
        for number, (model, by_domain) in enumerate(models.items()):
            offset = 0.16 * (number - (len(models) - 1) / 2)
            x = [domains.index(domain) + offset for domain in by_domain]
            values = np.array([[100 * e.value, 100 * e.low, 100 * e.high] for e in by_domain.values()]).T
            spread = np.maximum(0, [values[0] - values[1], values[2] - values[0]])
            marker, colour = MARKERS[number % len(MARKERS)], SERIES[number % len(SERIES)]
            axes.errorbar(x, values[0], yerr=spread, fmt=marker, color=colour, capsize=3, label=model, linewidth=1.4)
        axes.set_xticks(range(len(domains)), domains)
        axes.set(ylabel="score, avg@n (%)", ylim=(-3, 103), xlim=(-0.6, len(domains) - 0.4))
        axes.grid(visible=False, axis="x")
        legend(canvas, *axes.get_legend_handles_labels())
        return Figure(name, caption, to_svg(canvas, name))


def style() -> Any:
    import matplotlib

    return matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.grid": True,
            "grid.color": GRID,
            "grid.linewidth": 0.6,
            "legend.frameon": False,
            "axes.formatter.useoffset": False,
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "text.parse_math": False,
        }
    )


def new_canvas(height: float) -> Canvas:
    from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(WIDTH, height), layout="constrained")


def legend(canvas: Canvas, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Above the axes, in as many columns as the width holds."""
    canvas.legend(handles, labels, loc="outside upper left", ncols=_legend_columns(labels))


def legend_height(labels: Sequence[str]) -> float:
    """Inches to add to a figure, so that its axes keep their size however many labels there are."""
    return LEGEND_ROW * -(-len(labels) // _legend_columns(labels))


def _legend_columns(labels: Sequence[str]) -> int:
    longest = LEGEND_HANDLE + LETTER * max((len(label) for label in labels), default=0)
    return max(1, min(6, int(WIDTH / longest)))


def to_svg(canvas: Canvas, name: str) -> str:
    """SVG that is the same for the same data: no date, ids from a fixed salt."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        metadata: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas.savefig(out, format="svg", metadata=metadata)
    return out.getvalue().replace("<svg ", '<svg style="background: #ffffff" ', 1)

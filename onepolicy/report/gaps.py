"""How far policies are from one another over the steps of a run: what diagnostics.py logs, drawn."""

from __future__ import annotations

from collections.abc import Sequence

from onepolicy.report import plots
from onepolicy.report.folders import RunFolder
from onepolicy.report.plots import Figure, Line, Panel

KINDS = {
    "overlap": "top-k overlap (share)",
    "symmetric_kl": "symmetric KL (nats per token)",
    "disagreement": "disagreement (nats per token)",
}


def gap_figure(name: str, caption: str, run: RunFolder, shaded: Sequence[tuple[float, float]] = ()) -> Figure | None:
    """A panel per kind, a line per pair or domain, unsmoothed; None where nothing was measured."""
    panels = []
    for kind, ylabel in KINDS.items():
        found = sorted({key for row in run.metrics for key in row if key.startswith(f"{kind}/")})
        lines = [Line(key.removeprefix(f"{kind}/"), *run.curve(key), window=1) for key in found]
        panels.append(Panel(ylabel, lines, shaded=shaded))
    return plots.curves(name, caption + " a<b: a compared with b, on a's own rollouts.", panels, "step")

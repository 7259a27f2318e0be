"""Running means of what a step saw, overall and per domain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from onepolicy.types import Array

TAILED = ("signal",)  # reported with p99 and maximum too: an unbounded log-ratio hides behind a mean


class Meter:
    """Collects per-token values; `summary` has `name` for all tokens and `name/domain` for each domain's."""

    def __init__(self) -> None:
        self.scalars: dict[str, float] = {}
        self.values: dict[str, list[Array]] = {}

    def add_scalar(self, name: str, value: float) -> None:
        self.scalars[name] = self.scalars.get(name, 0.0) + value

    def add(self, name: str, values_N: Tensor, domains: Sequence[str], where_N: Tensor | None = None) -> None:
        """Add one value per token; `where_N` leaves tokens out."""
        values = values_N.detach().float().cpu().numpy()
        labels = np.asarray(domains)
        if where_N is not None:
            keep = where_N.cpu().numpy()
            values, labels = values[keep], labels[keep]
        for domain in np.unique(labels):
            self.values.setdefault(f"{name}/{domain}", []).append(values[labels == domain])

    def summary(self) -> dict[str, float]:
        result = dict(self.scalars)
        totals: dict[str, list[Array]] = {}
        for key, parts in self.values.items():
            values = np.concatenate(parts)
            name, _, domain = key.partition("/")
            totals.setdefault(name, []).append(values)
            result[key] = float(values.mean())
            if name in TAILED:
                result[f"{name}_p99/{domain}"] = float(np.quantile(values, 0.99))
                result[f"{name}_max/{domain}"] = float(values.max())
        for name, arrays in totals.items():
            result[name] = float(np.concatenate(arrays).mean())
        return result

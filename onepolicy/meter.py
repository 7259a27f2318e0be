"""Running means of what a step saw, overall and per domain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

TAILED = ("signal",)  # reported with p99 and maximum too: an unbounded log-ratio hides behind a mean
WEIGHTS = ("importance",)  # reported as std and effective sample size, a fraction: (Σw)² / (n·Σw²)


class Meter:
    """Collects per-token values; `summary` has `name` for all tokens and `name/domain` for each domain's.

    A token's domain is an index into `domains`. Values that are not finite are left out.
    """

    def __init__(self, domains: Sequence[str]) -> None:
        self.domains = domains
        self.scalars: dict[str, float] = {}
        self.sums: dict[str, Tensor] = {}  # [2, D]: Σ value and number of values per domain
        self.tails: dict[str, list[tuple[Tensor, Tensor]]] = {}  # values and their domains

    def add_scalar(self, name: str, value: float) -> None:
        self.scalars[name] = self.scalars.get(name, 0.0) + value

    def add(self, name: str, values_N: Tensor, domain_N: Tensor, where_N: Tensor | None = None) -> None:
        """Add one value per token; `where_N` leaves tokens out."""
        if name in WEIGHTS:  # around 1, so that the spread of weights near 1 is not lost to rounding
            values_N = values_N.detach().float() - 1
            self.add(f"{name}_square", values_N.square(), domain_N, where_N)
        values_N = values_N.detach().float()
        kept_N = values_N.isfinite() if where_N is None else values_N.isfinite() & where_N
        pair_2N = torch.stack([values_N.masked_fill(~kept_N, 0.0), kept_N.float()])
        zeros_2D = torch.zeros(2, len(self.domains), device=pair_2N.device)
        sums_2D = zeros_2D.index_add(1, domain_N, pair_2N)
        self.sums[name] = self.sums[name] + sums_2D if name in self.sums else sums_2D
        if name in TAILED:
            self.tails.setdefault(name, []).append((values_N[kept_N], domain_N[kept_N]))

    def summary(self) -> dict[str, float]:
        result = dict(self.scalars)
        for name, sums_2D in self.sums.items():
            totals_D, counts_D = sums_2D.tolist()
            if not sum(counts_D):
                continue
            result[name] = sum(totals_D) / sum(counts_D)
            for domain, total, count in zip(self.domains, totals_D, counts_D, strict=True):
                if count:
                    result[f"{name}/{domain}"] = total / count
        for name in WEIGHTS:
            result |= self._spread_of(name, result)
        for name, parts in self.tails.items():
            values_N, domain_N = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
            for d, domain in enumerate(self.domains):
                mine = values_N[domain_N == d].numpy()
                if len(mine):
                    result[f"{name}_p99/{domain}"] = float(np.quantile(mine, 0.99))
                    result[f"{name}_max/{domain}"] = float(mine.max())
        return result

    def _spread_of(self, name: str, means: dict[str, float]) -> dict[str, float]:
        """`importance_std` and `effective_sample_size`, in place of the moments that they come from."""
        found: dict[str, float] = {}
        for key in [key for key in means if key.partition("/")[0] == name]:
            place = key.removeprefix(name)
            mean, square = means.pop(key), means.pop(f"{name}_square{place}")
            variance = max(0.0, square - mean * mean)
            found[f"{name}_std{place}"] = math.sqrt(variance)
            second = (1 + mean) ** 2 + variance
            found[f"effective_sample_size{place}"] = (1 + mean) ** 2 / second if second else 0.0
        return found

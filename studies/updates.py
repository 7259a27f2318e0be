"""What each claim about the update itself is measured by: rows 19 to 24 (Open-MOPD, arXiv 2608.19098), as in claims.py.

Who gets how much of it, where teachers disagree, and several updates from one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
from measures import arm, ends, experts, first, known, last, mean, of_arm, own_domains
from tables import NONE, against, diagnosed, differences, normalised, numbers, raw

from onepolicy.report.folders import RunFolder
from onepolicy.report.study import SeedRuns, StudyFolder
from onepolicy.report.tables import Table


def row_19(study: StudyFolder) -> list[Table]:
    arms = ["mopd_sampled", "token_mean"]
    only = own_domains({domain: arm(f"only_{domain}") for domain in study.domains})
    models = {name: arm(name) for name in arms} | {"three single-teacher students": only}
    shares = {f"{domain}: token share": mean(f"token_share/{domain}") for domain in study.domains}
    lengths = {f"{domain}: length": mean(f"length/{domain}") for domain in study.domains}
    prompts = study.runs("mopd_sampled")[0] if "mopd_sampled" in study.arms else None
    asked = [f"{d} {prompts.domain_share(d):.3f}" for d in study.domains] if prompts else [NONE]
    pairs = [("token_mean", "mopd_sampled"), ("mopd_sampled", "three single-teacher students")]
    pairs += [("token_mean", "three single-teacher students")]
    return [
        diagnosed(study, "who gets the tokens", arms, shares | lengths, f"Shares of the prompts: {', '.join(asked)}."),
        normalised(study, "the mean over tokens against the mean over sequences (mopd_sampled)", models),
        differences(study, "paired differences", models, pairs),
    ]


def row_21(study: StudyFolder) -> list[Table]:
    models = {name: arm(name) for name in known(study, "mopd_masked", "mopd_sampled")}  # apart masks nothing
    columns = {f"{d}: max − min (nats)": mean(f"disagreement/{d}") for d in study.domains}
    columns |= {f"{d}: share > 1 nat": mean(f"disagreement_share/{d}") for d in study.domains}
    pairs = [("mopd_masked", "mopd_sampled")] if "mopd_masked" in models else []
    columns |= {"masked share": mean("masked")} if pairs else {}
    note = "Over the log-probs that all teachers give to the student's sampled tokens; means over the diagnosed steps."
    return [
        diagnosed(study, "disagreement", list(models), columns, note),
        *([differences(study, "tokens above 2 nats masked", models, pairs)] if pairs else []),
    ]


def row_22(study: StudyFolder) -> list[Table]:
    arms = ["token_mean", "share", "gap", "gap_inverse", "dn"]
    models = {name: arm(name) for name in arms}
    rows: dict[str, dict[str, Callable[[SeedRuns], float | None]]] = {}
    for name in arms:
        for domain in study.domains:
            cells = {}
            for label, key in (("m", "signal"), ("w", "balance"), ("w·s·m", "budget")):
                cells[f"{label}, early"] = of_arm(name, first(f"{key}/{domain}"))
                cells[f"{label}, late"] = of_arm(name, last(f"{key}/{domain}"))
            for place, label in enumerate(("w·s, early", "w·s, late")):
                cells[label] = of_arm(name, partial(_weighted_share, domain, place))
            rows[f"{name}, {domain}"] = cells
    note = "Early and late: means over the first and the last tenth of the steps. m: mean |log-ratio| of the tokens, "
    note += "nats; s: share of tokens; w: weight; w·s·m: share of the update's budget, with the running mean of m."
    return [
        normalised(study, "balancing, all with the mean over tokens", models),
        against(study, models, "token_mean", "paired differences to token_mean"),
        numbers(study, "what is balanced", "arm, domain", rows, note),
    ]


def _weighted_share(domain: str, place: int, run: RunFolder) -> float | None:
    rows = [row for row in run.metrics if f"token_share/{domain}" in row and f"balance/{domain}" in row]
    return ends(np.array([row[f"balance/{domain}"] * row[f"token_share/{domain}"] for row in rows]))[place]


def row_23(study: StudyFolder) -> list[Table]:
    arms = ["mopd_sampled", "updates_2", "updates_4", "updates_8", "updates_4_stale", "updates_8_stale"]
    models = {name: arm(name) for name in arms}
    pairs = [("updates_4", "updates_4_stale"), ("updates_8", "updates_8_stale")]
    pairs += [(name, "mopd_sampled") for name in arms[1:4]]
    columns = {
        "rollout KL, mean of the updates": mean("rollout_kl"),
        "rollout KL, last update": mean("rollout_kl_last"),
        "clipped share, last update": mean("distill_clipped_last"),
    }
    note = "Nats per token, k3, from the engine that wrote to the policy that learns; means over all steps. At K = 1 "
    note += "(mopd_sampled) the only update is the first."
    return [
        diagnosed(study, "staleness", arms, columns, note),
        normalised(study, "several updates from one batch", models),
        differences(study, "paired differences", models, pairs),
    ]


def row_24(study: StudyFolder) -> list[Table]:
    rungs = ["ladder_naive", "ladder_share", "ladder_gap", "ladder_refresh"]
    arms = ["average", "mix_rl", "task_arithmetic", *rungs, "token_mean", "share", "gap", "mopd_sampled"]
    models = {name: arm(name) for name in arms}
    models |= {"three single-teacher students": own_domains({d: arm(f"only_{d}") for d in study.domains})}
    models |= {"experts": experts(study)}
    pairs = [(b, a) for a, b in pairwise(rungs)]
    pairs += [("share", "token_mean"), ("gap", "share"), ("ladder_refresh", "ladder_naive")]
    note = "ladder_*: four updates a batch, stale until ladder_refresh. token_mean, share, gap: one update a batch."
    return [raw(study, "total by rung", models, note), differences(study, "paired differences", models, pairs)]

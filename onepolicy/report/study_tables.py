"""The tables of a study: who wins and by how much, at what cost, and who got the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onepolicy.evaluation import Estimate
from onepolicy.report.folders import RunFolder
from onepolicy.report.intervals import REACHED, Difference, Reached, Scores, arm_scores
from onepolicy.report.study import StudyFolder, done
from onepolicy.report.tables import NO_GAIN, NONE, Table, duration, percent, percent_interval, score_interval

COSTS = ("sequences", "tokens", "seconds")
TOLERANCE = 0.05  # of a budget


def order(scores: Mapping[str, Scores]) -> list[str]:
    """Arms from the best to the worst: by Norm, else by mean score."""

    def key(arm: str) -> float:
        norm = scores[arm].normalised.norm
        return scores[arm].mean if norm is None else norm.value

    return sorted(scores, key=key, reverse=True)


def normalised_table(study: StudyFolder, scores: Mapping[str, Scores]) -> Table:
    rows = []
    for arm in order(scores):
        found = scores[arm].normalised
        domains = [found.domains.get(domain) for domain in study.domains]
        cells = [score_interval(e) if e else NO_GAIN for e in domains]
        rows.append([arm, str(len(study.seeds_of(arm))), _cell(found.norm), _cell(found.range), *cells])
    reasons = {d: why for arm in scores for d, why in scores[arm].normalised.excluded.items()}
    note = "Share of its expert's gain over the origin that an arm has, after averaging over seeds; Norm: mean over "
    note += "domains. In brackets: 95% bootstrap interval over seeds and questions."
    if reasons:
        note += " No normalised score for " + "; ".join(f"{d}: {why}" for d, why in reasons.items())
        note += ". Norm and range need every domain."
    return Table("Normalised scores", ["arm", "seeds", "Norm", "range", *study.domains], rows, note)


def raw_table(study: StudyFolder, models: Mapping[str, Scores]) -> Table:
    rows = [
        [name, *(percent_interval(scores.raw_estimate(d)) for d in study.domains), percent(scores.mean)]
        for name, scores in models.items()
    ]
    columns = ["model", *(f"{domain} (%)" for domain in study.domains), "mean (%)"]
    note = " ".join(["avg@n on held-out questions, mean over seeds.", *_remarks(study)])
    return Table("Scores", columns, rows, note)


def _remarks(study: StudyFolder) -> list[str]:
    """What is in no score, run by run; a question that one run has no score for is left out where runs are paired."""
    remarks = []
    for seed, runs in study.seeds.items():
        for run in (runs.origin, *runs.experts.values(), *runs.arms.values()):
            found = run.last[1].remarks() if run.last else []
            remarks += [f"seed {seed}, {run.path.name}, {remark}." for remark in found]
    return remarks


def difference_table(study: StudyFolder, differences: Mapping[str, Difference | None]) -> Table | None:
    rows = []
    for arm, found in differences.items():
        if found is None:
            rows.append([arm, "0", *[NONE] * (3 + len(study.domains))])
            continue
        cells = [_cell(found.domains.get(domain)) for domain in study.domains]
        mean = percent_interval(found.mean)
        rows.append([arm, str(found.seeds), _cell(found.norm), _cell(found.range), *cells, mean])
    if not rows:
        return None
    columns = ["arm", "seeds", "Δ Norm", "Δ range", *(f"Δ {d}" for d in study.domains), "Δ mean score (points)"]
    note = f"Each arm minus {study.reference}, paired: the same seeds and the same questions in every bootstrap draw. "
    return Table(
        f"Differences to {study.reference}", columns, rows, note + "An interval without 0 is a difference at 95%."
    )


def seeds_table(study: StudyFolder, arms: Sequence[str]) -> Table | None:
    """Norm (or the mean score) of every seed by itself."""
    if len(study.seeds) < 2:
        return None
    rows = []
    for arm in arms:
        cells = []
        for seed in study.seeds:
            alone = arm_scores(study, arm, [seed]) if seed in study.seeds_of(arm) else None
            norm = alone.normalised.norm if alone else None
            cells += [f"{norm.value:.3f}" if norm else NONE, percent(alone.mean) if alone else NONE]
        rows.append([arm, *cells])
    columns = [f"{what}, seed {seed}" for seed in study.seeds for what in ("Norm", "mean (%)")]
    return Table("Seed by seed", ["arm", *columns], rows, "Norm against that seed's own origin and experts.")


def cost_table(study: StudyFolder, arms: Sequence[str]) -> Table:
    """What each arm spent, what the experts that it reads had spent before, and both together."""
    rows = []
    for arm in arms:
        own, experts = spent(study.runs(arm)), experts_cost(study, arm)
        rows.append(
            [
                arm,
                f"{max((run.metrics[-1]['step'] for run in study.runs(arm) if run.metrics), default=0):,}",
                *_amounts(own),
                *_amounts(experts),
                *_amounts(experts and {key: own[key] + experts[key] for key in COSTS})[:2],
            ]
        )
    columns = ["arm", "steps", "sequences", "tokens", "time", "experts' sequences", "experts' tokens", "experts' time"]
    note = f"Mean over seeds; budget: {study.facts['budget']}. Sequences and tokens are what was written (cross "
    note += "rollouts and rejected draws too), time is that of the training loop with its evaluations (of writing "
    note += "what is imitated too, where that was timed), beside "
    note += "other processes. The origin is shared by all and not counted. A given expert costs nothing here. "
    note += f"{NONE}: what it reads is not all there."
    return Table("Cost", [*columns, "all sequences", "all tokens"], rows, note)


def spent(runs: Sequence[RunFolder]) -> dict[str, float]:
    """The mean over seeds."""
    facts = [done(run) for run in runs]
    return {key: float(np.mean([fact[key] for fact in facts])) for key in COSTS}


def experts_cost(study: StudyFolder, arm: str) -> dict[str, float] | None:
    """Of all that the arm reads, directly or not, except the origin; the mean over seeds. None if not all is there."""
    read: list[str] = study.facts["reads"][arm]
    total = dict.fromkeys(COSTS, 0.0)
    for seed in study.seeds_of(arm):
        runs = study.seeds[seed]
        named = {f"experts.{domain}": run for domain, run in runs.experts.items()}
        named |= {f"arms.{name}": run for name, run in runs.arms.items()}
        if not named.keys() >= set(read):
            return None
        for name in read:
            facts = done(named[name])
            total = {key: total[key] + facts[key] for key in COSTS}
    return {key: value / len(study.seeds_of(arm)) for key, value in total.items()}


def unkept_budgets(study: StudyFolder, arms: Sequence[str]) -> list[str]:
    """A line for each arm that spent 5% more or less than it was to. Updates are steps, and steps are as planned."""
    allowed = study.facts.get("allowed") or {"rule": None}  # studies of before have none
    rule, lines = allowed["rule"], []
    for arm in arms if rule in COSTS else ():
        experts = experts_cost(study, arm) if allowed["experts"] == "included" else dict.fromkeys(COSTS, 0.0)
        if arm not in allowed["arms"] or experts is None:
            continue
        amount, total = allowed["arms"][arm], spent(study.runs(arm))[rule] + experts[rule]
        off = total / amount - 1
        if abs(off) > TOLERANCE:
            more = "more" if off > 0 else "less"
            lines.append(f"{arm} spent {total:,.0f} {rule}, {abs(off):.0%} {more} than its budget of {amount:,.0f}.")
    return lines


def reached_table(study: StudyFolder, reached: Mapping[str, Reached | None]) -> Table | None:
    rows = []
    for arm, found in reached.items():
        if found is not None:
            cells = [_spent(found.spent[key], key) for key in COSTS]
            rows.append([arm, *cells, *_amounts(experts_cost(study, arm)), str(found.evaluations)])
    if not rows:
        return None
    experts = ["experts' sequences", "experts' tokens", "experts' time"]
    columns = ["arm", "sequences", "tokens", "time", *experts, "evaluations"]
    note = (
        f"What an arm had spent at its first evaluation with Norm ≥ {REACHED:g}, after the experts existed; mean over "
    )
    note += "seeds, 95% bootstrap interval over seeds and questions; ∞: not within the run. Only as fine as the "
    note += "evaluations are (eval.every), and the first of many noisy ones comes early; an arm of one evaluation has "
    note += "only its end."
    return Table("Cost to reach 95% of the teachers", columns, rows, note)


def _amounts(costs: Mapping[str, float] | None) -> list[str]:
    """Sequences, tokens, time."""
    if costs is None:
        return [NONE] * len(COSTS)
    return [duration(costs[key]) if key == "seconds" else f"{costs[key]:,.0f}" for key in COSTS]


def _spent(estimate: Estimate, key: str) -> str:
    def show(value: float) -> str:
        if np.isinf(value):
            return "∞"
        return duration(value) if key == "seconds" else f"{value:,.0f}"

    return f"{show(estimate.value)} [{show(estimate.low)}, {show(estimate.high)}]"


def token_table(study: StudyFolder, arms: Sequence[str]) -> Table | None:
    """Shares of prompts, of tokens and of the update's budget per domain, over all steps."""
    rows = []
    for arm in arms:
        runs = study.runs(arm)
        cells = []
        for domain in study.domains:
            shares = [float(np.mean([run.domain_share(domain) for run in runs]))]
            for key in ("token_share", "budget"):
                steps = [step_shares(row, key) for run in runs for row in run.metrics]
                logged = [share.get(domain, 0.0) for share in steps if share]
                shares.append(float(np.mean(logged)) if logged else np.nan)
            cells.append(" / ".join(NONE if np.isnan(share) else percent(share) for share in shares))
        if any(run.metrics for run in runs):
            rows.append([arm, *cells])
    if not rows:
        return None
    note = "Prompts / tokens / update, in percent: the share of prompts by configuration, of the tokens that were "
    note += "trained on, and of the update's budget (tokens times the mean size of their signal), means over all steps "
    note += "(0 in a step that the domain took no part in)."
    return Table("Token budget per domain", ["arm", *study.domains], rows, note)


def step_shares(row: Mapping[str, Any], key: str) -> dict[str, float]:
    """The domains' shares that a step has logged. A step of one domain alone (a cascade's) is all that domain's."""
    found = {name.partition("/")[2]: row[name] for name in row if name.startswith(f"{key}/")}
    drawn = [name.partition("/")[2] for name in row if name.startswith("token_share/")]
    return found or (dict.fromkeys(drawn, 1.0) if len(drawn) == 1 else {})


def _cell(estimate: Estimate | None) -> str:
    return NONE if estimate is None else score_interval(estimate)

"""What each claim about integrating experts is measured by: a function per row, from the studies to tables.

The claims are those of the papers (MOPD arXiv 2606.30406, CoPD 2604.27083, Open-MOPD 2608.19098). Arms are those of
studies/clash.yaml, some of them in apart.yaml too; the comments there say what each is for. Rows 12 to 18 stand in
coevolution.py, from 19 on in updates.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from measures import (
    arm,
    as_of,
    chances,
    curve,
    expert,
    experts,
    first,
    known,
    largest_drop,
    last,
    mean,
    origin,
    own_domains,
    paired,
    preflight,
    scores,
    seeds_with,
    task_vectors,
)
from tables import NONE, against, diagnosed, differences, normalised, number, numbers, points, raw, share

from onepolicy.evaluation import Estimate, percentile_interval
from onepolicy.report.folders import RunFolder
from onepolicy.report.intervals import Reached, reached, scores_of
from onepolicy.report.study import StudyFolder
from onepolicy.report.study import points as evaluated
from onepolicy.report.study_tables import experts_cost, order
from onepolicy.report.tables import Table, percent
from onepolicy.types import Array

EQUAL = ["mopd", "mopd_sampled", "mix_rl", "cascade", "offpolicy", "average", "task_arithmetic"]  # in sequences
LONGER = ["mopd_2x", "mix_rl_3x", "mix_rl_6x", "cascade_3x"]
CLAIMED_ORDER = ["mopd", "mix_rl", "task_arithmetic", "offpolicy", "cascade", "average"]
LAMBDAS = ("0.3", "0.5", "0.7", "1", "1.3")
LEVELS = (0.8, 0.9, 0.95)  # Norm
SEQUENCES = (2_700, 5_400, 9_000, 18_000, 36_000, 54_000, 108_000)
EARLY = (10, 20, 40, 80)  # steps of row 10
RISEN = 20  # of these


def row_1(study: StudyFolder) -> list[Table]:
    models = {method: arm(method) for method in known(study, *EQUAL, *LONGER)}
    neighbours = list(pairwise(known(study, *CLAIMED_ORDER)))
    found = {method: score for method, pick in models.items() if (score := scores(study, pick))}
    ranked = {method: models[method] for method in [*order(found), *(m for m in models if m not in found)]}
    full = {method: score for method, score in found.items() if study.seeds_of(method) == study.seeds_of("mopd")}
    draws = {method: norm_B for method, score in full.items() if (norm_B := score.norm_B) is not None}
    note = f"Highest Norm in this share of the draws: {_among(draws)}."
    return [
        normalised(study, "every method, by Norm", ranked, note),
        against(study, models, "mopd", "paired differences to mopd"),
        differences(study, "the claimed order, neighbour by neighbour", models, neighbours),
    ]


def _among(draws: Mapping[str, Array]) -> str:
    """How often each method is the highest, among those at equal sequences and among all of them."""

    def listed(methods: Sequence[str]) -> str:
        shares = chances({name: draws[name] for name in methods if name in draws})
        return ", ".join(f"{name} {value:.2f}" for name, value in sorted(shares.items(), key=lambda item: -item[1]))

    if not draws:
        return NONE
    return f"at equal sequences {listed(EQUAL)}; with the longer ones {listed([*EQUAL, *LONGER])}"


def row_2(study: StudyFolder) -> list[Table]:
    rows, draws = [], {}
    for method in known(study, *EQUAL, *LONGER):
        found, gap = scores(study, arm(method)), paired(study, arm(method), arm("mopd"))
        if found is None or found.range_B is None:
            rows.append([method, NONE, NONE, NONE])
            continue
        rows.append([method, str(len(found.seeds)), share(found.normalised.range), share(gap.range if gap else None)])
        if study.seeds_of(method) == study.seeds_of("mopd"):
            draws[method] = -found.range_B
    note = f"Smallest range in this share of the draws: {_among(draws)}. "
    note += "A range is never negative: its interval leans upwards."
    return [Table("max − min of s̃ over domains", ["arm", "seeds", "range", "minus mopd's"], rows, note)]


def row_3(study: StudyFolder) -> list[Table]:
    return [table for cascade in known(study, "cascade", "cascade_3x") for table in _stages(study, cascade)]


def _stages(study: StudyFolder, cascade: str) -> list[Table]:
    stages = {f"{k}-{domain}": arm(cascade, f"{k}-{domain}") for k, domain in enumerate(study.domains, start=1)}
    models = {"origin": origin} | stages
    rows = []
    for stage, domain in zip(stages, study.domains[:-1], strict=False):
        found = paired(study, stages[list(stages)[-1]], stages[stage])
        rows.append([domain, stage, str(found.seeds if found else 0), points(found.raw[domain] if found else None)])
    columns = ["domain", "trained in stage", "seeds", "last stage's end − own stage's end (points)"]
    return [
        raw(study, f"{cascade}: every domain at every stage's end", models),
        Table(f"{cascade}: what later stages do to earlier domains", columns, rows),
    ]


def row_4(study: StudyFolder) -> list[Table]:
    """Sequences until the teachers are reached, and Norm at equal sequences."""
    arms = [name for name in ("mopd", "mopd_2x", "mix_rl", "mix_rl_3x", "mix_rl_6x") if name in study.arms]
    fast, at_equal = [], []
    for method in arms:
        seeds = study.seeds_of(method)
        experts = experts_cost(study, method)
        paid = f"{experts['sequences']:,.0f}" if experts else NONE
        fast.append([method, str(len(seeds)), *(number(_cost(study, method, seeds, level)) for level in LEVELS), paid])
        x, norm, *_ = norm_curve(study, method, seeds)
        norms = [as_of(x, norm, n) if n <= 1.01 * x[-1] else None for n in SEQUENCES]
        at_equal.append([method, str(len(seeds)), *(NONE if value is None else f"{value:.3f}" for value in norms)])
    for slow, quick in (("mix_rl", "mopd"), ("mix_rl_3x", "mopd"), ("mix_rl_6x", "mopd_2x")):
        seeds = study.seeds_of(slow, quick) if {slow, quick} <= set(arms) else []
        if seeds:
            both = [[reached(study, name, seeds, level) for name in (slow, quick)] for level in LEVELS]
            fast.append([f"{slow} ÷ {quick}", str(len(seeds)), *(number(_ratio(*pair)) for pair in both), ""])
    note = "At the first evaluation that has this Norm (as fine as the evaluations are, and the first of many noisy "
    note += "ones comes early); ∞: not within the run; a ratio of two such is left out, and is 0 "
    note += "where only mopd did not get there. mopd's experts come on top."
    levels = [f"to Norm ≥ {level:g}" for level in LEVELS]
    models = {name: arm(name) for name in ["mopd", "mix_rl", "mix_rl_3x", *known(study, "mopd_2x", "mix_rl_6x")]}
    pairs = [("mopd", "mix_rl"), ("mopd", "mix_rl_3x")]
    pairs += [("mopd_2x", "mix_rl_6x"), ("mopd", "mix_rl_6x")] if "mopd_2x" in models else []
    later = "Of the latest evaluation by then."
    return [
        Table("sequences until the teachers are reached", ["arm", "seeds", *levels, "experts' sequences"], fast, note),
        Table("Norm after so many sequences", ["arm", "seeds", *(f"{n:,}" for n in SEQUENCES)], at_equal, later),
        differences(study, "at the end: with equal sequences (mix_rl) and three times as many", models, pairs),
    ]


def _cost(study: StudyFolder, method: str, seeds: list[int], level: float) -> Estimate | None:
    found = reached(study, method, seeds, level)
    return found.spent["sequences"] if found else None


def longest(study: StudyFolder, short: str, long: str) -> str | None:
    """The longer of two like runs, once it has finished with as many seeds; None where neither has."""
    done = [name for name in (long, short) if name in study.arms]
    return max(done, key=lambda name: len(study.seeds_of(name)), default=None)


def _ratio(ours: Reached | None, theirs: Reached | None) -> Estimate | None:
    """Of the sequences spent; None where neither has got there."""
    if ours is None or theirs is None:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.divide(ours.spent["sequences"].value, theirs.spent["sequences"].value)
        ratio_B = ours.spent_B["sequences"] / theirs.spent_B["sequences"]
    return None if np.isnan(value) else Estimate(float(value), *percentile_interval(ratio_B))


def norm_curve(study: StudyFolder, method: str, seeds: list[int]) -> Array:
    """[4, P]: sequences, Norm, and the ends of its interval, at every evaluation; nan where there is no Norm."""
    columns = []
    for point in evaluated(study, method, seeds):
        norm = scores_of(study, point.evaluations, seeds).normalised.norm or Estimate(*[np.nan] * 3)
        columns.append([point.spent["sequences"], norm.value, norm.low, norm.high])
    return np.array(columns).T


def row_5(study: StudyFolder) -> list[Table]:
    models = {"average": arm("average")}
    models |= {f"task arithmetic, λ = {value}": arm("task_arithmetic", f"lambda-{value}") for value in LAMBDAS}
    note = f"The average of {len(study.domains)} experts is task arithmetic with λ = 1/{len(study.domains)}."
    weights = {
        "‖mean τ‖ ÷ mean ‖τ‖": lambda runs: found[0] if (found := task_vectors(runs)) else None,
        "mean cosine of two τ": lambda runs: found[1] if (found := task_vectors(runs)) else None,
    }
    about = "τ: expert minus origin, all weights as one vector. K orthogonal ones average to 1/√K of their length."
    return [
        normalised(study, "λ of the merge", models, note),
        numbers(study, "task vectors", "weights", {"experts": weights}, about),
    ]


def row_6(study: StudyFolder) -> list[Table]:
    arms = ["mopd", "mopd_sampled", *known(study, "mopd_topk")]  # apart has no top-k
    models = {method: arm(method) for method in arms}
    pairs = [(method, "mopd_sampled") for method in arms if method != "mopd_sampled"]
    columns = {
        "reverse KL, first": first("reverse_kl"),
        "reverse KL, last": last("reverse_kl"),
        "entropy, first": first("entropy"),
        "entropy, last": last("entropy"),
        **{f"length of {domain}, last": last(f"length/{domain}") for domain in study.domains},
    }
    note = "Nats per token, means over the first and the last tenth of the steps; on the student's samples."
    return [
        normalised(study, "the estimator", models),
        differences(study, "paired differences", models, pairs),
        diagnosed(study, "on the way", arms, columns, note),
    ]


def row_7(study: StudyFolder) -> list[Table]:
    domain = study.domains[0]
    arms = ["mopd_sampled", "mopd_topk", "foreign_sampled", "foreign_topk"]
    teachers = {"own expert": expert(domain), "foreign teacher": arm("foreign")}
    columns = {
        "initial reverse KL (nats)": preflight(domain, "reverse_kl"),
        "initial overlap": preflight(domain, "overlap"),
        "reverse KL, last": last(f"reverse_kl/{domain}"),
    }
    shaky: dict[str, Callable[[RunFolder], float | None]] = {
        "std of the curve's second half (points)": lambda run: 100 * float(np.std(second_half(curve(run, domain)))),
        "largest drop below its best (points)": lambda run: 100 * largest_drop(curve(run, domain)),
    }
    models = {name: arm(name) for name in arms}
    pairs = [("foreign_sampled", "mopd_sampled"), ("foreign_topk", "mopd_topk"), ("foreign_topk", "foreign_sampled")]
    return [
        raw(study, f"teachers of {domain}, and the students", {"origin": origin} | teachers | models),
        _by_teacher(study, domain, arms),
        diagnosed(study, f"how far {domain}'s teacher is", arms, columns),
        differences(study, "paired differences", models, [*pairs, ("mopd_topk", "mopd_sampled")]),
        diagnosed(study, f"stability of {domain}, over the evaluations on the way", arms, shaky),
    ]


def second_half(values: Array) -> Array:
    return values[len(values) // 2 :]


def _by_teacher(study: StudyFolder, domain: str, arms: list[str]) -> Table:
    """s̃ of one domain, against the study's expert and against the foreign teacher."""
    rows = []
    for name in arms:
        seeds = seeds_with(study, arm(name), arm("foreign"))
        cells = [NONE, NONE]
        if seeds:
            runs = [study.seeds[seed].arms for seed in seeds]
            student, foreign = ([run[which].evaluations["final"] for run in runs] for which in (name, "foreign"))
            by = [scores_of(study, student, seeds), scores_of(study, student, seeds, {domain: foreign})]
            cells = [share(found.normalised.domains.get(domain)) for found in by]
        rows.append([name, str(len(seeds)), *cells])
    return Table(f"s̃ of {domain}", ["arm", "seeds", "against the own expert", "against the foreign teacher"], rows)


def row_8(study: StudyFolder) -> list[Table]:
    models = {
        "experts, round 1": experts(study),
        "student, round 1": arm("mopd"),
        "experts, round 2": own_domains({domain: arm(f"second_{domain}") for domain in study.domains}),
        "student, round 2": arm("second_round"),
        "round 1, twice as long": arm("mopd_2x"),
    }
    pairs = [("experts, round 2", "experts, round 1"), ("student, round 2", "student, round 1")]
    pairs += [("experts, round 2", "student, round 1"), ("student, round 2", "experts, round 2")]
    pairs += [("student, round 2", "round 1, twice as long")]
    note = "s̃ against the origin and the experts of round 1 throughout. Experts answer for their own domains."
    return [
        normalised(study, "two rounds", models, note),
        raw(study, "scores", {"origin": origin} | models),
        differences(study, "paired differences", models, pairs),
    ]


def row_9(study: StudyFolder) -> list[Table]:
    arms = ["mopd_topk", "mopd_topk_uncorrected", "mopd_sampled"]
    models = {name: arm(name) for name in arms}
    pairs = [("mopd_topk", "mopd_topk_uncorrected"), ("mopd_topk_uncorrected", "mopd_sampled")]
    columns = {"reverse KL, last": last("reverse_kl"), "entropy, last": last("entropy")}
    return [
        normalised(study, "top-4, with and without the correction −p + t", models),
        differences(study, "paired differences", models, pairs),
        diagnosed(study, "at the end", arms, columns, "Means over the last tenth of the steps, nats per token."),
    ]


def row_10(study: StudyFolder) -> list[Table]:
    steps = (*(f"step-{step}" for step in EARLY), "final")
    start = scores(study, origin)
    rows = []
    for name in ("mopd", "mopd_outcome", "rl_same_rollouts"):
        seeds = study.seeds_of(name) if name in study.arms else []
        found = [scores(study, arm(name, label)) for label in steps]
        rows.append([name, str(len(seeds)), *(points(one.mean_estimate if one else None) for one in found)])
    models = {name: arm(name) for name in ("mopd", "mopd_outcome", "rl_same_rollouts")}
    early = {f"{name} at step {RISEN}": arm(name, f"step-{RISEN}") for name in models} | {"origin": origin}
    note = (
        f"Mean over domains. The origin: {percent(start.mean) if start else NONE}. 128 sequences a step for all three."
    )
    pairs = [("mopd_outcome", "mopd"), ("mopd", "rl_same_rollouts"), ("mopd_outcome", "rl_same_rollouts")]
    return [
        Table("mean score (%) after so many steps", ["arm", "seeds", *steps], rows, note),
        differences(study, "paired differences at the end", models, pairs),
        differences(study, f"gain over the origin by step {RISEN}", early, [(name, "origin") for name in early][:-1]),
    ]


def row_11(study: StudyFolder) -> list[Table]:
    arms = ["mopd_sampled", "gate_off", "noise_gated", "noise_off"]
    models = {name: arm(name) for name in arms}
    pairs = [("mopd_sampled", "gate_off"), ("noise_gated", "noise_off"), ("noise_gated", "mopd_sampled")]
    columns = {"gated share": mean("gated"), "engine gap (nats)": mean("engine_gap"), "rollout KL": mean("rollout_kl")}
    return [
        normalised(study, "gate and engine noise", models),
        differences(study, "paired differences", models, [*pairs, ("noise_off", "gate_off")]),
        diagnosed(study, "on the way", arms, columns, "Means over all steps. Noise: Gaussian on the engine's logits."),
    ]

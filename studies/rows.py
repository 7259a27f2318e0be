"""docs/results.md: every claim of the papers beside what our studies measured, with intervals and numbers of seeds.

    onepolicy compare studies/clash.yaml        and apart.yaml, coevolve.yaml, tune_*.yaml, real.yaml; then
    python studies/rows.py runs > docs/results.md

Reads the studies' folders under the one given (default: runs), and draws the figures into `--figures` (default: docs).
What is concluded stands in studies/verdicts.yaml, by hand. A run that is missing is a dash, and named at the top.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import claims
import coevolution
import measures
import numpy as np
import updates
import yaml
from tables import NONE, normalised, raw

from onepolicy.report import plots
from onepolicy.report.folders import RunFolder
from onepolicy.report.intervals import Scores, arm_scores
from onepolicy.report.page import inline, table_markdown
from onepolicy.report.plots import Figure, Line, Panel
from onepolicy.report.study import StudyFolder
from onepolicy.report.study_page import HOW_TO_READ, interference, phases
from onepolicy.report.study_tables import experts_cost, order, spent
from onepolicy.report.tables import Table, percent

STUDIES = ("clash", "apart", "coevolve")
REAL = "real"  # no claim of the papers is measured in it
SWEEPS = tuple(f"tune_{name}" for name in STUDIES)
VERDICTS = ("reproduced", "contradicted", "out of reach")
WHEN, KEPT = "which method when", "four real domains"  # texts of verdicts.yaml that are no row's
NOT_YET = "not judged yet"
ZOOM = 40  # steps of the saw-tooth that are shown large


CLASH, BOTH, COEVOLVE = ("clash",), ("clash", "apart"), ("coevolve",)


@dataclass(frozen=True, slots=True)
class Row:
    """A claim, the studies that it is measured in, and how."""

    claim: str
    studies: tuple[str, ...]
    tables: Callable[[StudyFolder], list[Table]]


ROWS = {
    "1": Row("Highest Norm: MOPD > Mix-RL > task arithmetic > off-policy > cascade ≫ average", BOTH, claims.row_1),
    "2": Row("MOPD has the smallest range over domains", BOTH, claims.row_2),
    "3": Row("Cascade: earlier domains decay in later stages", BOTH, claims.row_3),
    "4": Row("MOPD reaches the teachers with 5–7× fewer sequences than Mix-RL", BOTH, claims.row_4),
    "5": Row("Averaging shrinks task vectors; task arithmetic with larger λ recovers, unevenly", BOTH, claims.row_5),
    "6": Row("Sampled ≈ top-k with same-origin teachers; KL falls, entropy flat", BOTH, claims.row_6),
    "7": Row("A stronger foreign teacher: higher initial KL, worse student; top-k less stable", CLASH, claims.row_7),
    "8": Row("Second round: teachers and student improve", CLASH, claims.row_8),
    "9": Row("Uncorrected top-k has the wrong optimum", CLASH, claims.row_9),
    "10": Row("MOPD ± outcome reward rises fast; RL alone is flat over the same steps", CLASH, claims.row_10),
    "11": Row("The importance gate matters only when engines differ", CLASH, claims.row_11),
    "12": Row("Independent RLVR: overlap with the origin falls, symmetric KL rises", COEVOLVE, coevolution.row_12),
    "13": Row("OPD gain grows with initial overlap", COEVOLVE, coevolution.row_13),
    "14": Row("CoPD: saw-tooth overlap that stays high", COEVOLVE, coevolution.row_14),
    "15": Row("All S_RL:S_OPD ratios beat static OPD; interior optimum", COEVOLVE, coevolution.row_15),
    "16": Row("CoPD > experts on both domains; static OPD recovers part", COEVOLVE, coevolution.row_16),
    "18": Row("Removing either OPD direction hurts; the merge adds", COEVOLVE, coevolution.row_18),
    "19-20": Row("Prompt share ≠ token share; token-mean starves the short domain", CLASH, updates.row_19),
    "21": Row("Teacher disagreement is small; masking it does not help", BOTH, updates.row_21),
    "22": Row("The budget drifts after token balancing; the inverse gap sign diverges", CLASH, updates.row_22),
    "23": Row("Staleness grows with K; refresh helps only at K > 1", CLASH, updates.row_23),
    "24": Row("Ladder share → gap → refresh", CLASH, updates.row_24),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="?", default=Path("runs"), help="the folder that the studies are in")
    parser.add_argument("--figures", type=Path, default=Path("docs"), help="where the figures are written")
    options = parser.parse_args()
    verdicts = read_verdicts(Path(__file__).with_name("verdicts.yaml"))
    found, missing = read_studies(options.runs)
    figures = [figure for figure in (interference_figure(found), norm_figure(found), saw_tooth_figure(found)) if figure]
    for figure in figures:
        (options.figures / f"{figure.name}.svg").write_text(figure.svg, encoding="utf-8")
    sys.stdout.write("\n\n".join(page(found, missing, verdicts, figures)) + "\n")


def read_studies(runs: Path) -> tuple[dict[str, StudyFolder], list[str]]:
    """The studies and sweeps that have something to compare, by folder name; and what is not there."""
    found, missing = {}, []
    for name in (*STUDIES, REAL, *SWEEPS):
        try:
            found[name] = StudyFolder.read(runs / name)
        except FileNotFoundError:
            missing.append(f"{name}: all of it (onepolicy compare studies/{name}.yaml)")
        except ValueError:
            missing.append(f"{name}: all of it: no seed has its origin, its experts and an arm yet")
        else:
            missing += [f"{name}: {'; '.join(lines)}"] if (lines := absent(found[name])) else []
    return found, missing


def absent(study: StudyFolder) -> list[str]:
    """The seeds that are left out, and the arms that others lack."""
    out = [seed for seed in study.facts["seeds"] if int(seed) not in study.seeds]
    lines = [f"seed {', '.join(out)}: not all of origin and experts yet"] if out else []
    by_arm: dict[str, list[str]] = {}
    for place in study.missing:
        seed, _, run = place.removeprefix("seed-").partition("/arms/")
        if run and seed not in out:
            by_arm.setdefault(run, []).append(seed)
    return lines + [f"{arm} (seed {', '.join(seeds)})" for arm, seeds in by_arm.items()]


def read_verdicts(file: Path) -> dict[str, Any]:
    """Raises ValueError for a row or a verdict that does not exist, or one without its reason."""
    data = {str(key): value for key, value in (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).items()}
    for row, entry in data.items():
        if row in (WHEN, KEPT):
            continue
        if row not in ROWS:
            raise ValueError(f"{file.name}: there is no row {row!r}: use one of {', '.join(ROWS)}")
        if not isinstance(entry, dict) or entry.get("verdict") not in VERDICTS or not entry.get("why"):
            raise ValueError(
                f"{file.name}, row {row}: give `verdict` ({' | '.join(VERDICTS)}) and `why`, not {entry!r}"
            )
    return data


def page(
    found: dict[str, StudyFolder],
    missing: list[str],
    verdicts: dict[str, Any],
    figures: list[Figure],
) -> list[str]:
    """The blocks of the page."""
    blocks = ["# Results", KNOWN_GAPS, INTRODUCTION]
    if missing:
        blocks += ["**Not finished, and left out:**", "\n".join(f"- {inline(line)}" for line in missing)]
    if verdicts.get(WHEN):
        blocks += ["## Which method when", str(verdicts[WHEN]).strip()]
    blocks += ["## Verdicts", verdict_table(verdicts), "## How to read the numbers", *HOW_TO_READ.split("\n\n"), SEEDS]
    for number, row in ROWS.items():
        entry = verdicts.get(number)
        blocks += [
            f"## {number} · {inline(row.claim)}",
            f"**{entry['verdict']}**: {entry['why']}" if entry else f"*{NOT_YET}*",
        ]
        for name in row.studies:
            tables = row.tables(found[name]) if name in found else []
            blocks += [f"### {name}", *(block for table in tables for block in markdown(table))]
            blocks += [] if tables else [NONE]
        blocks += [f"![{inline(f.caption)}]({f.name}.svg)" for f in figures if f.name == FIGURE_OF.get(number)]
    blocks += ["## Four real domains", REAL_DOMAINS, str(verdicts.get(KEPT, f"*{NOT_YET}*")).strip()]
    blocks += [block for table in real(found[REAL]) for block in markdown(table)] if REAL in found else [NONE]
    compared = {name: study for name, study in found.items() if name not in SWEEPS}
    blocks += ["## Origin and experts", *(b for n, s in compared.items() for b in markdown(models(n, s)))]
    blocks += ["## Sequences spent", *(b for n, s in compared.items() for b in markdown(cost(n, s)))]
    sweeps = [block for name in SWEEPS if name in found for block in rates(name, found[name], found)]
    blocks += ["## Learning rates", RATES, *sweeps]
    return [*blocks, "## Seeds and commands", seeds_and_commands(found)]


KNOWN_GAPS = """\
**Known to be missing until the study is run again:**

- The off-policy arm trains on all of its teachers' answers, wrong ones included. In a first look at another world (two
  letter tasks, two seeds, 12,000 sequences an arm) `keep: correct` ended above MOPD and above its teachers: normalised
  scores of 1.15 [1.00, 1.59] and 1.42 [1.09, 2.07], MOPD 1.03 [0.93, 1.26] and 0.91 [0.62, 1.18].
- The MOPD of the headline is the full-vocabulary form, not the sampled one of the papers.
- MOPD with outcome rewards was not tuned.
- The labels "reproduced", "contradicted" and "out of reach" were not given by one rule.
- All scores are taken at temperature 1, as in the papers. They mix ability with sharpness: decoded greedily, the SFT
  checkpoint of `apart` is as good as its experts (100, 100, 98 percent against 98, 81, 97)."""
INTRODUCTION = (
    "Claims of the papers (MOPD arXiv 2606.30406, CoPD 2604.27083, Open-MOPD 2608.19098) beside what small runs of "
    "ours measured. Models of 0.15M parameters on letter tasks, on a CPU: orderings and shapes can be reproduced here, "
    "absolute values cannot. `clash`: three domains that interfere; `apart`: three that do not; `coevolve`: two "
    "branches of one surface with opposite conventions; `real`: four domains of real kinds, in a "
    "section of its own. Row 17 (text, image and video branches) needs a vision model "
    "and is not among them. This page is written by `python studies/rows.py runs > docs/results.md`; the verdicts are "
    "by hand, in `studies/verdicts.yaml`."
)
REAL_DOMAINS = (
    "Small mathematics (`kind: math`), tiny programs judged in the sandbox (`code`), instructions (`instruction`), and "
    "episodes in which a calculator answers (`calculator`, two turns): `studies/real.yaml`, a model of 2.4M parameters "
    "that is built from nothing. s̃ of a domain is the share of its expert's gain that the model keeps."
)
RATES = (
    "Every arm of these tables got the same three rates, and a smaller one where the smallest was best. Arms that are "
    "in none of them use the rate of the arm that they vary. λ of task arithmetic was chosen on the final questions, "
    "which flatters it."
)
SEEDS = (
    "An interval of a number of a run (overlap, KL, shares: everything that is not a score) covers seeds alone: with "
    "three seeds it is, in effect, the smallest and the largest. s̃: normalised score. –: not there (yet), or undefined."
)
FIGURE_OF = {"1": "results-interference", "4": "results-norm", "14": "results-overlap"}


def markdown(table: Table) -> list[str]:
    return [block for block in (f"**{inline(table.title)}**", table_markdown(table), inline(table.note)) if block]


def real(study: StudyFolder) -> list[Table]:
    arms = {arm: measures.arm(arm) for arm in study.arms}
    own = {"experts, each on its own domain": measures.experts(study)}
    return [
        normalised(study, "what is kept of the experts' gains", arms),
        raw(study, "mean reward", {"origin": measures.origin} | own | arms),
    ]


def verdict_table(verdicts: dict[str, Any]) -> str:
    rows = []
    for number, row in ROWS.items():
        entry = verdicts.get(number, {"verdict": NOT_YET, "why": ""})
        rows.append(f"| {number} | {inline(row.claim)} | {entry['verdict']} | {entry['why']} |")
    return "\n".join(["| row | claim | verdict | why |", "| --- | --- | --- | --- |", *rows])


def models(name: str, study: StudyFolder) -> Table:
    named = {"origin": measures.origin} | {f"expert {domain}": measures.expert(domain) for domain in study.domains}
    return raw(study, name, named)


def cost(name: str, study: StudyFolder) -> Table:
    rows = []
    for arm in study.arms:
        own, seeds = spent(study.runs(arm))["sequences"], study.seeds_of(arm)
        experts = experts_cost(study, arm)
        paid = experts and experts["sequences"]
        costs = (own, paid, None if paid is None else own + paid)
        rows.append([arm, str(len(seeds)), *(NONE if cost is None else f"{cost:,.0f}" for cost in costs)])
    columns = ["arm", "seeds", "its own", "of what it reads", "together"]
    return Table(name, columns, rows, f"Mean over seeds. Budget: {study.facts['budget']}.")


def rates(name: str, study: StudyFolder, found: dict[str, StudyFolder]) -> list[str]:
    """Arm × rate → mean score; the best in bold, what the study uses with a dagger."""
    scores: dict[str, dict[str, float]] = {}
    for run in study.arms:
        arm, _, rate = run.partition("-")
        score = measures.scores(study, measures.arm(run))
        assert score is not None, "an arm that is there has been evaluated"
        trained = _trained(study.runs(run)[0])
        own = len(trained) == 1 and arm == "expert"
        scores.setdefault(arm, {})[rate] = score.raw[trained[0]] if own else score.mean
    columns = sorted({rate for by_rate in scores.values() for rate in by_rate}, key=float)
    lines = ["| arm | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for arm, by_rate in scores.items():
        used = _rate_used(arm, found.get(name.removeprefix("tune_")))
        cells = []
        for rate in columns:
            cell = percent(by_rate[rate]) if rate in by_rate else ""
            cell = f"**{cell}**" if by_rate.get(rate) == max(by_rate.values()) else cell
            cells.append(f"{cell} †" if cell and used == float(rate) else cell)
        lines.append(f"| {inline(arm)} | " + " | ".join(cells) + " |")
    seeds = ", ".join(map(str, study.seeds))
    note = f"Mean score over domains in percent (expert: of its own domain), seed {seeds}, which no study uses. Bold: "
    return [f"**{inline(name)}**", "\n".join(lines), note + "the best; †: what the study uses."]


def _trained(run: RunFolder) -> list[str]:
    return [domain for domain in run.domains if run.domain_share(domain)]


def _rate_used(arm: str, study: StudyFolder | None) -> float | None:
    if study is None:
        return None
    seed = next(iter(study.seeds.values()))
    run = next(iter(seed.experts.values())) if arm == "expert" else study.runs(arm)[0] if arm in study.arms else None
    return float(run.config["optim"]["learning_rate"]) if run else None


def seeds_and_commands(found: dict[str, StudyFolder]) -> str:
    lines = [f"- {inline(name)}: seeds {', '.join(map(str, study.seeds))}" for name, study in found.items()]
    versions = next(iter(found.values())).seeds if found else {}
    info = next(iter(versions.values())).origin.info.get("versions", {}) if versions else {}
    lines += ["- versions: " + ", ".join(f"{name} {version}" for name, version in info.items())] if info else []
    commands = [f"onepolicy compare studies/{name}.yaml" for name in (*SWEEPS, *STUDIES, REAL)]
    return "\n".join([*lines, "", "```", *commands, "python studies/rows.py runs > docs/results.md", "```"])


def interference_figure(found: dict[str, StudyFolder]) -> Figure | None:
    """The experts, and every method as row 1 orders them."""
    studies: dict[str, tuple[StudyFolder, dict[str, Scores]]] = {}
    for name, study in ((name, found[name]) for name in BOTH if name in found):
        trained = {f"expert {domain}": measures.scores(study, measures.expert(domain)) for domain in study.domains}
        methods = {arm: arm_scores(study, arm) for arm in (*claims.EQUAL, *claims.LONGER) if arm in study.arms}
        models = {model: scores for model, scores in trained.items() if scores}
        studies[name] = (study, models | {arm: methods[arm] for arm in order(methods)})
    return interference("results-interference", studies) if studies else None


def norm_figure(found: dict[str, StudyFolder]) -> Figure | None:
    panels = []
    for name, study in ((name, found[name]) for name in BOTH if name in found):
        lines = []
        for style, pair in enumerate((("mopd", "mopd_2x"), ("mix_rl_3x", "mix_rl_6x"))):
            if arm := claims.longest(study, *pair):
                x, y, low, high = claims.norm_curve(study, arm, study.seeds_of(arm))
                lines.append(Line(pair[0].removesuffix("_3x"), x, y, style, window=1, band=(low, high)))
        panels.append(Panel("Norm", lines, name))
    caption = (
        "Norm against the sequences that the arm has written, mean over seeds; bands: 95% over seeds and questions. "
    )
    caption += "The experts' own sequences come on top for mopd."
    return plots.curves("results-norm", caption, panels, "cumulative sequences")


def saw_tooth_figure(found: dict[str, StudyFolder]) -> Figure | None:
    study = found.get("coevolve")
    if study is None or "copd" not in study.arms:
        return None
    run, seed = study.runs("copd")[0], study.seeds_of("copd")[0]
    steps, opd = run.curve("opd")
    panels = []
    for title, until in ((f"the first {ZOOM} steps", ZOOM), ("all steps", np.inf)):
        lines = []
        for style, arm in enumerate(("copd", "independent")):
            if arm in study.arms and seed in study.seeds_of(arm):
                x, y = coevolution.gap_curve(study, "overlap", study.seeds[seed].arms[arm], "step")
                done = x - 1  # a step measures before its update
                lines.append(Line(arm, done[done <= until], y[done <= until], style, window=1))
        inside = [(start - 0.5, min(end - 0.5, until)) for start, end in phases(steps, opd) if start - 0.5 < until]
        shaded = inside if until == ZOOM else []
        panels.append(Panel("overlap of the branches", lines, title, shaded))
    caption = (
        f"Top-k overlap of two branches, mean over both directions, seed {seed}. Shaded: steps of mutual distillation."
    )
    return plots.curves("results-overlap", caption, panels, "steps done")


if __name__ == "__main__":
    main()

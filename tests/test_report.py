"""Reports from a synthetic pipeline of which every number is known: three domains, two of them learnable."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from onepolicy.evaluation import DomainScore, Estimate, Evaluation, Question
from onepolicy.report import Report, pipeline_report, run_report, write_report
from onepolicy.report.build import BUDGET, STALENESS, run_curves
from onepolicy.report.folders import PipelineFolder, RunFolder
from onepolicy.report.page import (
    LONGEST,
    Answer,
    Comparison,
    Page,
    Section,
    clean,
    fenced,
    inline,
    to_html,
    to_markdown,
)
from onepolicy.report.plots import SERIES, Line, Panel, curves, scores, trailing_mean
from onepolicy.report.tables import Table, cost_table, duration, score_interval, score_table

DOMAINS = ("reverse", "sort", "count")
ATTACK = "<script>alert('x')</script>\n```\n# not a heading | a | b |\n````\n![i](x.png)"
QUESTIONS = 80


def make_evaluation(solved: dict[str, int], who: str) -> Evaluation:
    """Per domain, the first `solved` of 80 questions are always answered right, the others never; avg@2."""
    domains = {}
    for domain, count in solved.items():
        questions = [
            Question(
                id=f"{domain}-{number}",
                prompt=f"{domain.title()} the letters of: q{number} w e r t y",
                reference="y t r e w q",
                rewards_G=(float(number < count),) * 2,
                lengths_G=(10, 14),
                finishes_G=("stop", "length" if number < 8 else "stop"),
                response="y t r e w q" if number < count else ATTACK if who == "student" else f"{who} does not know",
                reason="" if number < count else "wrong answer",
            )
            for number in range(QUESTIONS)
        ]
        domains[domain] = DomainScore(domain, tuple(questions))
    return Evaluation(domains, n=2, temperature=1.0, seed=0)


def metrics_rows(domains: tuple[str, ...], steps: int, distilled: bool) -> list[dict[str, float]]:
    rng = np.random.default_rng(list("".join(domains).encode()))
    rows = []
    for step in range(1, steps + 1):
        progress = 1 - np.exp(-3 * step / steps)
        row = {"step": step, "time": 2.5 * step, "sequences": 64 * step, "tokens": 900 * step}
        row |= {"loss": 0.4 * (1 - progress) + 0.02 * rng.normal(), "grad_norm": 1 + 0.1 * rng.normal()}
        for number, domain in enumerate(domains):
            row[f"reward/{domain}"] = float(np.clip(0.2 + 0.6 * progress + 0.05 * rng.normal(), 0, 1))
            row[f"entropy/{domain}"] = 0.9 - 0.5 * progress + 0.02 * rng.normal()
            row[f"length/{domain}"] = 12 + 6 * number + rng.normal()
            row[f"truncated/{domain}"] = max(0.0, 0.1 * (1 - progress) + 0.01 * rng.normal())
            row[f"token_share/{domain}"] = (12 + 6 * number) / sum(12 + 6 * k for k in range(len(domains)))
            if distilled:
                row[f"reverse_kl/{domain}"] = 0.15 * (1 - progress) * (1 + 0.1 * rng.normal())
        rows.append(row)
    return rows


def make_run(folder: Path, recipe: str, domains: tuple[str, ...], solved: dict[str, int], steps: int = 60) -> Path:
    (folder / "eval").mkdir(parents=True)
    shares = "".join(f"  {domain}: {{tasks: {{kind: letters}}, share: 1}}\n" for domain in domains)
    config = f"recipe: {recipe}\nseed: 7\nsteps: {steps}\nmodel: {{path: ../sft/checkpoint}}\ndomains:\n{shares}"
    (folder / "config.yaml").write_text(config)
    rows = metrics_rows(domains, steps, distilled=recipe == "mopd")
    if recipe == "sft":
        rows = [{key: value for key, value in row.items() if "/" not in key} for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "eval" / "final.json").write_text(make_evaluation(solved, folder.name).to_json())
    (folder / "run.json").write_text(
        json.dumps({"place": "cpu", "seed": 7, "versions": {"python": "3.11.9", "torch": "2.11"}})
    )
    return folder


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return make_pipeline(tmp_path / "demo")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of one pipeline, for the tests that only read it."""
    return pipeline_report(make_pipeline(tmp_path_factory.mktemp("module") / "demo"))


def make_pipeline(folder: Path) -> Path:
    origin = dict.fromkeys(DOMAINS, 20)
    expert = {"reverse": 70, "sort": 60, "count": 76}
    make_run(folder / "sft", "sft", DOMAINS, origin)
    for domain in DOMAINS:
        make_run(folder / f"expert-{domain}", "rlvr", (domain,), origin | {domain: expert[domain]})
    student = make_run(folder / "student", "mopd", DOMAINS, {"reverse": 65, "sort": 58, "count": 76})
    halfway = make_evaluation(dict.fromkeys(DOMAINS, 40), "student")
    for step in (9, 30):
        (student / "eval" / f"step-{step}.json").write_text(halfway.to_json())
    samples = [
        {"step": step, "domain": d, "prompt": f"prompt {step}", "response": ATTACK, "reward": 0.5, "finish": "length"}
        for step in range(10, 60, 10)
        for d in DOMAINS
    ]
    (student / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    names = {"experts": {domain: f"expert-{domain}" for domain in DOMAINS}, "origin": "sft", "student": "student"}
    (folder / "pipeline.json").write_text(json.dumps({"title": "Demo & <co>", "domains": DOMAINS, **names}))
    return folder


class Structure(HTMLParser):
    """Which tags a page has, what they fetch, which ids they carry; and whether they nest properly."""

    VOID = frozenset({"meta", "path", "use", "rect", "line", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href") and value]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_score_table_holds_the_known_numbers(report: Report) -> None:
    table = report.table
    assert table is not None
    assert table.columns == ["domain", "questions", "origin (%)", "expert (%)", "student (%)", "normalised"]
    cells = {row[0]: [cell.split(" ")[0] for cell in row[1:]] for row in table.rows}
    assert cells == {
        "reverse": ["80", "25.0", "87.5", "81.2", "0.900"],  # 45 of 50 gained questions
        "sort": ["80", "25.0", "75.0", "72.5", "0.950"],  # 38 of 40
        "count": ["80", "25.0", "95.0", "95.0", "1.000"],
        "Norm (mean)": ["", "", "", "", "0.950"],
        "range (max - min)": ["", "", "", "", "0.100"],
    }
    low, high = (float(end) for end in re.findall(r"[\d.]+", table.rows[0][5])[1:])
    assert low < 0.9 < high
    assert table.rows[2][5] == "1.000 [1.000, 1.000]"
    assert table.note.startswith("avg@2: mean reward of 2 answers per question (temperature 1), in percent.")


def test_the_pipeline_page_is_self_contained_well_formed_and_safe(report: Report) -> None:
    page = report.html.read_text()
    structure = Structure(page)
    assert structure.open == []
    assert not {"script", "link", "img", "iframe", "image"} & set(structure.tags)
    assert all(link.startswith("#") and link[1:] in structure.ids for link in structure.links)
    assert len(set(structure.ids)) == len(structure.ids)
    assert "://" not in page and "@import" not in page
    assert structure.tags.count("svg") == 6  # scores, learning, experts; the student's behaviour, budget, update
    assert "<h1>Demo &amp; &lt;co&gt;</h1>" in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page
    assert "0.950 [" in page and "87.5 [" in page
    # colours come from the style sheet alone, so that dark mode reaches the figures
    assert not re.search("#0072b2|#24292f|background", page[page.index("</style>") :])


def test_the_side_by_side_shows_a_gain_and_a_failure_of_each_domain(report: Report) -> None:
    text = report.markdown.read_text()
    section = text[text.index("## Side by side") :]
    reverse = section[section.index("### reverse") : section.index("### sort")]
    assert reverse.index("origin (reward 0.00 · wrong answer)") < reverse.index("expert (reward 1.00)")
    assert "student (reward 1.00)" in reverse
    assert "### reverse\n\nQuestion:\n\n```text\nReverse the letters of: q20 w e r t y\n```" in reverse  # gained
    assert "q65 w e r t y" in section  # the student's first failure
    assert section.count("### ") == 6


def test_markdown_keeps_model_text_inside_its_fence(report: Report) -> None:
    text = report.markdown.read_text()
    assert f"`````text\n{ATTACK}\n`````" in text
    outside = re.sub(r"(?ms)^(`{3,})text\n.*?^\1$", "", text)
    assert "<script>" not in outside and "# not a heading" not in outside
    images = re.findall(r"\]\((figures/[\w-]+\.svg)\)", outside)
    assert len(images) == 6 and all((report.markdown.parent / image).is_file() for image in images)
    assert "| reverse | 80 | 25.0 [16.2, 35.0] |" in outside


def test_the_other_tables_show_forgetting_and_cost(report: Report) -> None:
    text = report.markdown.read_text()
    assert "| expert sort | 25.0 | 75.0 | 25.0 |" in text
    assert "| student | mopd | 60 | 3,840 | 54,000 | 2 min 30 s |" in text


def test_an_expert_without_gain_is_named_and_leaves_no_norm(pipeline: Path) -> None:
    expert = pipeline / "expert-sort" / "eval" / "final.json"
    expert.write_text(make_evaluation(dict.fromkeys(DOMAINS, 20), "expert").to_json())
    table = score_table(PipelineFolder.read(pipeline))
    normalised = [row[5].split(" [")[0] for row in table.rows]
    assert normalised == ["0.900", "n/a (expert gained nothing)", "1.000", "n/a", "n/a"]
    assert "sort: the teacher scores 0.25 and its origin 0.25" in table.note


def test_a_run_report_shows_the_final_evaluation_curves_and_latest_samples(pipeline: Path) -> None:
    report = run_report(pipeline / "student")
    assert report.table is not None and report.table.title == "Evaluation (final)"
    domain, questions, score, *rest = report.table.rows[0]
    assert (domain, questions, score.split(" ")[0], rest) == ("reverse", "80", "81.2", ["81.2", "12.0", "5.0"])
    page = report.html.read_text()
    assert page.count("<svg") == 4  # evaluations on the way, behaviour, budget, update
    assert "reverse KL (nats per token)" in page and "response length (tokens)" in page
    assert (
        "python 3.11.9, torch 2.11" in page
        and page.count("<dt>seed</dt><dd>7</dd>") == 1
        and "<dt>place</dt><dd>cpu</dd>" in page
    )
    assert "prompt 50" in page and "prompt 30" in page and "prompt 20" not in page
    assert "reward 0.50 · finish: length" in page


def test_a_run_without_domain_metrics_reports_what_it_has(pipeline: Path) -> None:
    page = run_report(pipeline / "sft").html.read_text()
    assert page.count("<svg") == 1  # loss and gradient norm
    assert "reverse KL" not in page
    assert "sft does not know" not in page and "y t r e w q" in page  # the first two questions of the evaluation


def test_a_killed_and_resumed_run_counts_each_step_once(pipeline: Path) -> None:
    file = pipeline / "student" / "metrics.jsonl"
    again = {"step": 60, "time": 9, "sequences": 4000, "tokens": 7}
    file.write_text(file.read_text() + json.dumps(again) + '\n{"step": 61, "ti')
    run = RunFolder.read(pipeline / "student")
    assert cost_table({"student": run}).rows == [["student", "mopd", "60", "4,000", "7", "9.0 s"]]
    assert [row["step"] for row in run.metrics] == list(range(1, 61))
    file.write_text('{"step": 1, "ti\n' + json.dumps(again) + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1 is not JSON"):
        run_report(pipeline / "student")


def test_write_report_tells_runs_from_pipelines_and_names_what_is_missing(pipeline: Path, tmp_path: Path) -> None:
    assert write_report(str(pipeline / "sft")).html == pipeline / "sft" / "report.html"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no config\.yaml\), no pipeline \(no pipeline\.json\) and no study"):
        write_report(tmp_path / "empty")
    with pytest.raises(ValueError, match="is no folder"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "empty" / "config.yaml").write_text("recipe: sft\n")
    with pytest.raises(ValueError, match=r"neither metrics\.jsonl nor eval/\*\.json"):
        write_report(tmp_path / "empty")
    (pipeline / "expert-sort" / "eval" / "final.json").unlink()
    with pytest.raises(ValueError, match=r"expert-sort has no evaluation of domain 'sort'"):
        write_report(pipeline)
    (pipeline / "pipeline.json").write_text(json.dumps({"domains": DOMAINS, "origin": "sft", "experts": {"sort": "x"}}))
    with pytest.raises(ValueError, match=r"pipeline\.json lacks student"):
        write_report(pipeline)


def test_the_same_folder_gives_the_same_bytes(report: Report) -> None:
    files = [report.markdown, report.html, *report.html.parent.glob("figures/*")]
    before = [file.read_bytes() for file in files]
    write_report(report.html.parent)
    assert [file.read_bytes() for file in files] == before and len(files) == 8


def test_text_is_cleaned_fenced_and_escaped() -> None:
    assert clean("a\x1b[31m\r\nb\u202ec\ud800") == "a\ufffd[31m\nb\ufffdc\ufffd"
    assert clean("x" * (LONGEST + 1)) == "x" * (LONGEST // 2) + "\n… 1 characters left out …\n" + "x" * (LONGEST // 2)
    assert fenced("a ```` b") == "`````text\na ```` b\n`````"
    assert inline("a|b <i> [x](y) *z* & `c`\nd") == r"a\|b &lt;i> [x\](y) \*z\* &amp; \`c\` d"


def test_every_text_of_a_page_is_escaped() -> None:
    count = iter(range(100))

    def mark() -> str:
        return f"<mark{next(count)}>"

    comparison = Comparison(mark(), mark(), mark(), (Answer(mark(), "\n" + mark(), 0.5, mark()),))
    figure = curves("f", mark(), [Panel(mark(), [Line(mark(), *np.ones((2, 3)))] * 2, title=mark())], mark())
    assert figure is not None
    section = Section(mark(), mark(), [Table(mark(), [mark()], [[mark()]], mark())], [figure], [comparison])
    page = Page(mark(), [(mark(), mark())], [section])
    html, markdown = to_html(page), to_markdown(page, "figures")
    assert "<mark" not in html
    shown = {int(number) for number in re.findall(r"&lt;mark(\d+)&gt;", html)}
    assert shown == set(range(next(count))) - {8}  # a single curve needs no legend
    assert "<pre>\n\n&lt;mark4&gt;</pre>" in html  # a leading newline is kept
    assert "<mark" not in re.sub(r"(?ms)^(`{3,})text\n.*?^\1$", "", markdown)


def test_curves_skip_empty_panels_and_smooth_long_lines() -> None:
    np.testing.assert_allclose(trailing_mean(np.array([1.0, 3, 5, 7]), 2), [1, 2, 4, 6])
    empty = Panel("y", [Line("a", np.array([]), np.array([]))])
    assert curves("none", "", [empty], "step") is None
    x = np.arange(100.0)
    figure = curves("one", "Caption.", [empty, Panel("kept", [Line("a", x, x), Line("b", x, -x)])], "step")
    assert figure is not None
    assert figure.caption == "Caption. Bold: trailing mean over 5% of the points; faint: every point."
    assert figure.svg.count('<g id="axes_') == 1 and ">kept<" in figure.svg


def test_the_score_figure_names_models_and_domains() -> None:
    figure = scores("s", "", {"origin": {"rev": Estimate(0.2, 0.1, 0.3)}, "student": {"rev": Estimate(0.8, 0.7, 1.0)}})
    assert all(f">{name}<" in figure.svg for name in ("origin", "student", "rev"))


def test_numbers_are_written_for_readers() -> None:
    assert score_interval(Estimate(0.5, -0.25, float("inf"))) == "0.500 [-0.250, ∞]"
    assert [duration(s) for s in (4.2, 200, 59.99, 7500)] == ["4.2 s", "3 min 20 s", "60.0 s", "2 h 5 min"]


def test_importing_the_report_loads_neither_torch_nor_matplotlib() -> None:
    code = "import sys, onepolicy.report; print({'torch', 'matplotlib', 'jinja2'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_a_legend_of_forty_labels_takes_no_room_from_the_axes() -> None:
    def axes_height(count: int) -> float:
        names = [f"without_from_descend_{k}" for k in range(count)]
        svg = curves("f", "", [Panel("y", [Line(n, np.arange(3.0), np.arange(3.0)) for n in names])], "step").svg
        corners = re.search(r'id="axes_1">\s*<g id="patch_\d+">\s*<path d="([^"]+)"', svg)[1]
        height = float(re.search(r'viewBox="0 0 \S+ (\S+)"', svg)[1])
        places = [(float(x), float(y)) for x, y in re.findall(r'x="(\S+)" y="(\S+)" [^>]*>without', svg)]
        places = places or [(float(x), float(y)) for x, y in re.findall(r'translate\((\S+) (\S+)\)">without', svg)]
        assert len(places) == count and all(0 < x < 691 - 120 and 0 < y < height for x, y in places)
        ys = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", corners)]
        return max(ys) - min(ys)

    assert axes_height(40) == pytest.approx(axes_height(2), rel=0.1)


def test_thirty_six_lines_differ_in_colour_or_dash() -> None:
    lines = [Line(str(k), np.arange(3.0), np.arange(3.0)) for k in range(36)]
    svg = curves("f", "", [Panel("y", lines)], "step").svg
    drawn = svg[svg.index('id="axes_1"') : svg.index('id="legend_1"')]
    styles = [
        style
        for style in re.findall(r'style="(fill: none; [^"]+)"', drawn)
        if any(colour in style for colour in SERIES)
    ]
    assert len(styles) == len(set(styles)) == 36


def test_a_run_draws_its_budget_and_staleness_where_they_were_logged() -> None:
    """A key that no domain has is no panel; copd logs them per domain alone."""
    keys = ("token_share", "budget", "signal", "rollout_kl", "gated")
    metrics = [{"step": k} | {f"{key}/{d}": 0.1 * k for key in keys for d in ("a", "b")} for k in (1, 2, 3)]
    run = RunFolder(Path("run"), {"domains": {"a": {}, "b": {}}}, {}, metrics, {}, [])
    figures = {figure.name: figure.svg for figure in run_curves(run, "student-")}
    assert list(figures) == ["student-budget", "student-staleness"]
    titles = {
        name: [label for label in (*BUDGET.values(), *STALENESS.values()) if label in svg]
        for name, svg in figures.items()
    }
    assert titles["student-budget"] == [BUDGET[key] for key in ("token_share", "budget", "signal")]
    assert titles["student-staleness"] == [STALENESS[key] for key in ("rollout_kl", "gated")]

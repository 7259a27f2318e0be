"""A report as data, and its two renderings: one self-contained HTML page, and Markdown with SVG files beside it.

What a model wrote is untrusted: in HTML it is escaped, in Markdown fenced, and control characters are replaced in both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from onepolicy.report.plots import Figure
from onepolicy.report.tables import Table
from onepolicy.runfolder import write_atomic

if TYPE_CHECKING:
    from jinja2 import Template

LONGEST = 1200  # characters of a text that are shown


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model answered, and how that was graded."""

    who: str
    text: str
    reward: float | None
    note: str = ""

    @property
    def verdict(self) -> str:
        reward = "not graded" if self.reward is None else f"reward {self.reward:.2f}"
        return f"{reward} · {self.note}" if self.note else reward


@dataclass(frozen=True, slots=True)
class Comparison:
    """One question and the answers to it, side by side."""

    domain: str
    prompt: str
    reference: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    text: str = ""
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Page:
    title: str
    facts: list[tuple[str, str]]
    sections: list[Section]


def clean(text: str) -> str:
    """Text that can be shown: no control or direction-changing characters, no lone surrogates, the middle cut out."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", "\ufffd", text)
    if len(text) > LONGEST:
        half = LONGEST // 2
        text = f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"
    return text


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("onepolicy.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["clean"] = clean
    return environment.get_template("page.html")


def to_html(page: Page) -> str:
    """The whole report in one file: styles and figures inside, no script, nothing fetched."""
    return _template().render(page=page)


def to_markdown(page: Page, figures: str) -> str:
    """The same report as Markdown; its images lie in the folder `figures`, relative to the file."""
    parts = [f"# {inline(page.title)}", "\n".join(f"- **{inline(k)}**: {inline(v)}" for k, v in page.facts)]
    for section in page.sections:
        parts += [f"## {inline(section.title)}", *map(inline, section.text.split("\n\n"))]
        for table in section.tables:
            parts += [f"**{inline(table.title)}**"] if table.title != section.title else []
            parts += [table_markdown(table), inline(table.note)]
        for figure in section.figures:
            parts += [f"![{inline(figure.caption)}]({figures}/{figure.name}.svg)", f"*{inline(figure.caption)}*"]
        for comparison in section.comparisons:
            parts += _comparison_markdown(comparison)
    return "\n\n".join(part for part in parts if part) + "\n"


def _comparison_markdown(comparison: Comparison) -> list[str]:
    parts = [f"### {inline(comparison.domain)}", "Question:", fenced(comparison.prompt)]
    if comparison.reference:
        parts += ["Reference:", fenced(comparison.reference)]
    for answer in comparison.answers:
        parts += [f"{inline(answer.who)} ({inline(answer.verdict)}):", fenced(answer.text)]
    return parts


def table_markdown(table: Table) -> str:
    """A pipe table: names to the left, numbers to the right."""
    rule = ["---", *("---:" for _ in table.columns[1:])]
    rows = [[inline(cell) for cell in row] for row in (table.columns, *table.rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))


def inline(text: str) -> str:
    """Text inside a Markdown line, with every character that Markdown or HTML could read as markup escaped."""
    text = clean(text).replace("\n", " ").replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[\\`*_|~]|\](?=[(\[:])", r"\\\g<0>", text)  # a bracket alone is no link


def fenced(text: str) -> str:
    """Text as a code block, in a fence longer than any that the text holds."""
    text = clean(text)
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`+", text))])
    return f"{fence}text\n{text}\n{fence}"


def write(page: Page, folder: Path) -> tuple[Path, Path]:
    """Write `report.md`, `report.html` and `figures/*.svg` into the folder, each by an atomic rename."""
    figures = [figure for section in page.sections for figure in section.figures]
    (folder / "figures").mkdir(exist_ok=True)
    for figure in figures:
        _replace(folder / "figures" / f"{figure.name}.svg", figure.svg)
    return _replace(folder / "report.md", to_markdown(page, "figures")), _replace(folder / "report.html", to_html(page))


def _replace(path: Path, text: str) -> Path:
    write_atomic(path, text)
    return path

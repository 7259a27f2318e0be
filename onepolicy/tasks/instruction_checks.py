"""IFEval's verifiable constraints (arXiv 2311.07911), each a function of the response and the constraint's arguments.

Names and arguments are IFEval's, so that its public records load as they are; `instruction_ifbench.py` and
`instruction_small.py` add theirs to the same registry. A check sees visible characters only (`instruction_text.py`).
Where the reference implementation rewards what does not follow the instruction, ours does not; each such place says so
with "Stricter:". All differences, each with its reason: DIFFERENCES in `tests/test_tasks_instruction.py`.
One constraint is ours: keywords:in_order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from onepolicy.config import did_you_mean
from onepolicy.tasks.instruction_arguments import Count, Ordinal, Text, Texts, checked
from onepolicy.tasks.instruction_text import (
    PUNCTUATION,
    language,
    sentences,
    spaced_words,
    unmasked,
    visible,
    without_blank_ends,
    words,
)
from onepolicy.tasks.nesting import read_json

Check = Callable[..., bool]  # of a text, and keywords
CHECKS: dict[str, Check] = {}

MAX_RESPONSE = 30_000  # characters, about 6,000 words: some of the checks below take quadratic time


def check(name: str) -> Callable[[Check], Check]:
    """Register a constraint's check under its name."""

    def register(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return register


def validated(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A constraint's arguments as its check takes them (`instruction_arguments.py`).

    Raises ValueError when there is no such constraint, or when it does not take these arguments.
    """
    if name not in CHECKS:
        raise ValueError(f"there is no check for the constraint {name!r}: {did_you_mean(name, list(CHECKS))}")
    return checked(name, CHECKS[name], arguments)


def followed(name: str, arguments: Mapping[str, Any], response: str, loose: bool) -> bool:
    """Whether a response follows one constraint. One that is empty, or has control characters in it, follows none.

    Blank lines before and after it are no part of it: models leave some behind a thought.
    Loosely (IFEval, section 2.2): also if it does without its first line, its last line, both, or its asterisks.
    """
    text = without_blank_ends(visible(response.replace("\r\n", "\n")))
    if CONTROL.search(text):
        return False
    return any(form.strip() and CHECKS[name](form, **arguments) for form in (_forms(text) if loose else (text,)))


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _forms(text: str) -> list[str]:
    lines = text.split("\n")
    shorter = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return list(dict.fromkeys([text, *shorter, *(form.replace("*", "") for form in (text, *shorter))]))


def related(count: int, relation: str, threshold: int) -> bool:
    """IFEval's two relations."""
    return count < threshold if relation == "less than" else count >= threshold


def occurrences(keyword: str, text: str, relation: str) -> int:
    """How often a keyword stands in a text, in any case, inside longer words too; look-alikes count where unwanted.

    The reference takes the keyword for a regular expression; here "c++" is what it says.
    """
    if relation == "less than":
        keyword, text = unmasked(keyword), unmasked(text)
    return text.lower().count(keyword.strip().lower())


@check("keywords:existence")
def _(text: str, keywords: Texts) -> bool:
    return all(occurrences(keyword, text, "at least") for keyword in keywords)


@check("keywords:frequency")
def _(text: str, keyword: Text, frequency: Count, relation: Text) -> bool:
    return related(occurrences(keyword, text, relation), relation, frequency)


@check("keywords:forbidden_words")
def _(text: str, forbidden_words: Texts) -> bool:
    text = unmasked(text)
    return not any(re.search(rf"(?<!\w){re.escape(unmasked(word))}(?!\w)", text, re.I) for word in forbidden_words)


@check("keywords:letter_frequency")
def _(text: str, letter: Text, let_frequency: Count, let_relation: Text) -> bool:
    return related(occurrences(letter, text, let_relation), let_relation, let_frequency)


@check("keywords:in_order")
def _(text: str, keywords: Texts) -> bool:
    places = [text.lower().find(keyword.lower()) for keyword in keywords]
    return -1 not in places and places == sorted(places)


@check("language:response_language")
def _(text: str, language: Text) -> bool:
    return _is_in(text, language)


def _is_in(text: str, code: str) -> bool:
    """Stricter: a text that shows no language (digits, signs) is in none; the reference lets it pass."""
    return language(text) == code.partition("-")[0]


@check("length_constraints:number_sentences")
def _(text: str, num_sentences: Count, relation: Text) -> bool:
    return related(len(sentences(text)), relation, num_sentences)


@check("length_constraints:number_words")
def _(text: str, num_words: Count, relation: Text) -> bool:
    return related(len(words(text)), relation, num_words)


@check("length_constraints:number_paragraphs")
def _(text: str, num_paragraphs: Count) -> bool:
    """Between dividers ***; an empty one is allowed at either end alone."""
    return _parts(text, "***") == num_paragraphs


def _parts(text: str, divider: str) -> int:
    """How many parts a divider makes; 0 when one between two dividers is empty."""
    parts = [bool(part.strip()) for part in text.split(divider)]
    return sum(parts) if all(parts[1:-1]) else 0


@check("length_constraints:nth_paragraph_first_word")
def _(text: str, num_paragraphs: Count, nth_paragraph: Ordinal, first_word: Text) -> bool:
    """Paragraphs, parted by two line breaks, of which blank ones do not count; the first word without its quotes."""
    paragraphs = [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]
    if len(paragraphs) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    word = paragraphs[nth_paragraph - 1].split()[0].lower()
    cut = re.split(r"[.,?!'\"]", word.lstrip("'").lstrip('"'))[0]  # of it's, it: as the reference has it
    return first_word.strip().lower() in (cut, word.strip(PUNCTUATION))


@check("detectable_content:number_placeholders")
def _(text: str, num_placeholders: Count) -> bool:
    # up to the first closing bracket, within a line
    return sum("[" in part for line in text.split("\n") for part in line.split("]")[:-1]) >= num_placeholders


@check("detectable_content:postscript")
def _(text: str, postscript_marker: Text) -> bool:
    marker = postscript_marker.strip().lower()
    pattern = {"p.p.s": r"p\.\s?p\.\s?s", "p.s.": r"p\.\s?s\."}.get(marker, re.escape(marker))
    return re.search(pattern, text.lower()) is not None


@check("detectable_format:number_bullet_lists")
def _(text: str, num_bullets: Count) -> bool:
    """Lines that start with one asterisk and something else, or with a dash."""
    lines = [line.lstrip() for line in text.split("\n")]
    return sum(line[:1] == "-" or (line[:1] == "*" and line[1:2] not in ("", "*")) for line in lines) == num_bullets


CONSTRAINED_RESPONSES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


@check("detectable_format:constrained_response")
def _(text: str) -> bool:
    """Stricter: exactly one of the options, so that naming them all is no way out."""
    return sum(option in text for option in CONSTRAINED_RESPONSES) == 1


@check("detectable_format:number_highlighted_sections")
def _(text: str, num_highlights: Count) -> bool:
    """*Such* or **such**, within a line; as in the reference the two are counted by two passes."""
    single = [found for found in re.findall(r"\*[^\n*]*\*", text) if found.strip("*").strip()]
    double = [found for found in re.findall(r"\*\*[^\n*]*\*\*", text) if found[2:-2].strip()]
    return len(single) + len(double) >= num_highlights


@check("detectable_format:multiple_sections")
def _(text: str, section_spliter: Text, num_sections: Count) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


@check("detectable_format:json_format")
def _(text: str) -> bool:
    """Stricter: an object or a list (a quoted sentence is JSON too), and no NaN. Bounded: `nesting.py`."""
    text = re.sub(r"^```(?:json|Json|JSON)?|```$", "", text.strip()).strip()
    try:
        return isinstance(read_json(text), dict | list)
    except ValueError:
        return False


@check("detectable_format:title")
def _(text: str) -> bool:
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end and line[start:end].strip("<>").strip():
            return True
    return False


@check("combination:two_responses")
def _(text: str) -> bool:
    answers = [part.strip() for part in text.split("******") if part.strip()]
    return _parts(text, "******") == 2 and answers[0] != answers[1]


@check("combination:repeat_prompt")
def _(text: str, prompt_to_repeat: Text) -> bool:
    """Stricter: "then give your answer", so something must follow."""
    text, prompt = text.strip().lower(), prompt_to_repeat.strip().lower()
    return text.startswith(prompt) and re.search(r"\w", text[len(prompt) :]) is not None


@check("startend:end_checker")
def _(text: str, end_phrase: Text) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@check("startend:quotation")
def _(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


@check("change_case:capital_word_frequency")
def _(text: str, capital_frequency: Count, capital_relation: Text) -> bool:
    return related(sum(word.isupper() for word in spaced_words(text)), capital_relation, capital_frequency)


@check("change_case:english_capital")
def _(text: str) -> bool:
    return text.isupper() and _is_in(text, "en")


@check("change_case:english_lowercase")
def _(text: str) -> bool:
    return text.islower() and _is_in(text, "en")


@check("punctuation:no_comma")
def _(text: str) -> bool:
    """Stricter: also none of other scripts, and no quotation mark that looks like one."""
    return not re.search("[,\u201a\u060c\u3001]", unmasked(text))

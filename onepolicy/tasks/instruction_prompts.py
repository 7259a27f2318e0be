"""Prompts in plain English with one to four constraints of IFEval or IFBench, each with an answer that follows them.

The answer is made first and the numbers are read off it ("at least 40 words" of an answer that has 43), so that the
constraints of a prompt cannot contradict each other. What cannot go together at all is said in GROUPS, ONLY_WITH and
CONFLICTS. The answers are plain: they show that a prompt can be followed, not how to follow it well.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from onepolicy.tasks.instruction_checks import CONSTRAINED_RESPONSES
from onepolicy.tasks.instruction_ifbench import NAMES
from onepolicy.tasks.instruction_phrases import (
    ABOUT_A_WORD,
    EMPHATIC,
    ENDINGS,
    HIGHLIGHTED,
    KEYWORDS,
    LANGUAGES,
    PLACEHOLDERS,
    REQUESTS,
    SENTENCES,
    TOPICS,
)
from onepolicy.tasks.instruction_small import Drawn
from onepolicy.tasks.instruction_text import sentences, spaced_words, words

Says = Callable[[str], tuple[dict[str, Any], str]]  # the finished text → a constraint's arguments, and how it is said


class _Draft:
    """An answer in the making. `head` and `tail` are whole lines; `layout` turns the sentences into the body."""

    def __init__(self, rng: Random) -> None:
        self.rng, self.topic = rng, rng.choice(TOPICS)
        self.sentences = [s.format(self.topic) for s in rng.sample(SENTENCES, rng.randint(3, 6))]
        self.request = rng.choice(REQUESTS).format(self.topic)
        self.head: list[str] = []
        self.tail: list[str] = []
        self.layout: Callable[[list[str]], str] = " ".join
        self.finish: list[Callable[[str], str]] = []
        self._keywords = rng.sample(KEYWORDS, len(KEYWORDS))

    def keywords(self, count: int) -> list[str]:
        """Words that nothing else in the answer uses."""
        return [self._keywords.pop() for _ in range(count)]

    def mention(self, word: str) -> None:
        self.sentences.append(self.rng.choice(ABOUT_A_WORD).format(word))

    def text(self) -> str:
        text = "\n".join([*self.head, self.layout(self.sentences), *self.tail])
        for change in self.finish:
            text = change(text)
        return text

    def bound(self, count: int) -> tuple[str, int]:
        """A relation and a threshold that `count` satisfies, not by much."""
        if count > 1 and self.rng.random() < 0.5:
            return "at least", max(1, count - self.rng.randint(0, count // 5))
        return "less than", count + 1 + self.rng.randint(0, count // 3)

    def groups(self, count: int, parts: list[str]) -> list[str]:
        """Sentences as `count` groups of about equally many."""
        return [" ".join(parts[len(parts) * i // count : len(parts) * (i + 1) // count]) for i in range(count)]


def _and(items: list[str]) -> str:
    return " and ".join(f'"{item}"' for item in items)  # without commas: some prompts are repeated without any


def _existence(draft: _Draft) -> Says:
    chosen = draft.keywords(draft.rng.randint(1, 3))
    for word in chosen:
        draft.mention(word)
    return lambda text: ({"keywords": chosen}, f"Include the keywords {_and(chosen)}.")


def _in_order(draft: _Draft) -> Says:
    chosen = draft.keywords(draft.rng.randint(2, 3))
    for word in chosen:
        draft.mention(word)
    return lambda text: ({"keywords": chosen}, f"Mention {_and(chosen)} in this order.")


def _frequency(draft: _Draft) -> Says:
    (word,) = draft.keywords(1)
    for _ in range(draft.rng.randint(2, 4)):
        draft.mention(word)

    def say(text: str) -> tuple[dict[str, Any], str]:
        relation, frequency = draft.bound(text.lower().count(word))
        arguments = {"keyword": word, "frequency": frequency, "relation": relation}
        return arguments, f'The word "{word}" should appear {relation} {frequency} times.'

    return say


def _forbidden(draft: _Draft) -> Says:
    chosen = draft.keywords(draft.rng.randint(2, 3))
    return lambda text: ({"forbidden_words": chosen}, f"Do not use the words {_and(chosen)}.")


def _letters(draft: _Draft) -> Says:
    letter = draft.rng.choice("aeinorst")

    def say(text: str) -> tuple[dict[str, Any], str]:
        relation, frequency = draft.bound(text.lower().count(letter))
        arguments = {"letter": letter, "let_frequency": frequency, "let_relation": relation}
        return arguments, f"The letter {letter} should appear {relation} {frequency} times."

    return say


def _number_of(what: str, count: Callable[[str], list[str]]) -> Callable[[_Draft], Says]:
    def put(draft: _Draft) -> Says:
        def say(text: str) -> tuple[dict[str, Any], str]:
            relation, threshold = draft.bound(len(count(text)))
            return {f"num_{what}": threshold, "relation": relation}, f"Answer with {relation} {threshold} {what}."

        return say

    return put


def _word_range(draft: _Draft) -> Says:
    def say(text: str) -> tuple[dict[str, Any], str]:
        count = len(words(text))
        low, high = count - draft.rng.randint(0, 5), count + draft.rng.randint(0, 5)
        return {"min_words": low, "max_words": high}, f"The response must contain between {low} and {high} words."

    return say


def _paragraphs(draft: _Draft) -> Says:
    count = draft.rng.randint(2, 3)
    draft.layout = lambda parts: "\n***\n".join(draft.groups(count, parts))
    said = f"There should be exactly {count} paragraphs separated by the markdown divider: ***"
    return lambda text: ({"num_paragraphs": count}, said)


def _nth_paragraph(draft: _Draft) -> Says:
    count = draft.rng.randint(2, 3)
    nth = draft.rng.randint(2, count)  # the first may stand behind a title
    draft.layout = lambda parts: "\n\n".join(draft.groups(count, parts))

    def say(text: str) -> tuple[dict[str, Any], str]:
        word = text.split("\n\n")[nth - 1].split()[0].lower()
        said = f"Write {count} paragraphs with an empty line between them; paragraph {nth} must start with {word}."
        return {"num_paragraphs": count, "nth_paragraph": nth, "first_word": word}, said

    return say


def _bullets(draft: _Draft) -> Says:
    draft.layout = lambda parts: "\n".join(f"* {part}" for part in parts)

    def say(text: str) -> tuple[dict[str, Any], str]:
        count = len(draft.sentences)
        return {"num_bullets": count}, f"Use exactly {count} bullet points in markdown such as: * This is a point."

    return say


def _sections(draft: _Draft) -> Says:
    count, marker = draft.rng.randint(2, 3), draft.rng.choice(["Section", "PART", "Chapter"])

    def layout(parts: list[str]) -> str:
        return "\n".join(f"{marker} {i}\n{group}" for i, group in enumerate(draft.groups(count, parts), 1))

    draft.layout = layout
    said = f"Write {count} sections and mark the beginning of each with {marker} X."
    return lambda text: ({"section_spliter": marker, "num_sections": count}, said)


def _json(draft: _Draft) -> Says:
    draft.layout = lambda parts: json.dumps({"text": " ".join(parts)})
    return lambda text: ({}, "Wrap the entire output in JSON format.")


def _two_responses(draft: _Draft) -> Says:
    draft.layout = lambda parts: "\n******\n".join(draft.groups(2, parts))
    return lambda text: ({}, "Give two different responses separated by six asterisks: ******")


def _placeholders(draft: _Draft) -> Says:
    chosen = draft.rng.sample(PLACEHOLDERS, draft.rng.randint(1, 3))
    draft.sentences += [f"Remember to ask for the [{place}] first." for place in chosen]
    said = f"Use at least {len(chosen)} placeholders in square brackets such as [address]."
    return lambda text: ({"num_placeholders": len(chosen)}, said)


def _highlights(draft: _Draft) -> Says:
    count = draft.rng.randint(1, 3)
    draft.sentences += [f"Keep the *{thing}* in mind." for thing in draft.rng.sample(HIGHLIGHTED, count)]
    said = f"Highlight at least {count} parts of the answer in markdown such as *highlighted part*."
    return lambda text: ({"num_highlights": count}, said)


def _names(draft: _Draft) -> Says:
    chosen = draft.rng.sample(NAMES, draft.rng.randint(2, 3))
    draft.sentences += [f"My friend {name} agrees." for name in chosen]
    said = f"Mention at least {len(chosen)} different persons of this list: {' / '.join(NAMES)}."
    return lambda text: ({"N": len(chosen)}, said)


def _title(draft: _Draft) -> Says:
    draft.head.append(f"<<Thoughts on {draft.topic}>>")
    return lambda text: ({}, "Give the answer a title wrapped in double angular brackets such as <<title>>.")


def _postscript(draft: _Draft) -> Says:
    marker = draft.rng.choice(["P.S.", "P.P.S"])
    draft.tail.insert(0, f"{marker} There is more to say about {draft.topic}.")
    return lambda text: ({"postscript_marker": marker}, f"At the end add a postscript that starts with {marker}")


def _ending(draft: _Draft) -> Says:
    phrase = draft.rng.choice(ENDINGS)
    draft.tail.append(phrase)
    return lambda text: ({"end_phrase": phrase}, f'Finish with this exact phrase and nothing after it: "{phrase}"')


def _changed(change: Callable[[str], str], said: str) -> Callable[[_Draft], Says]:
    def put(draft: _Draft) -> Says:
        draft.finish.append(change)
        return lambda text: ({}, said)

    return put


def _capital_words(draft: _Draft) -> Says:
    emphatic = draft.rng.sample(EMPHATIC, draft.rng.randint(1, 3))
    draft.sentences += [f"This is {word} worth a thought." for word in emphatic]

    def say(text: str) -> tuple[dict[str, Any], str]:
        relation, count = draft.bound(sum(word.isupper() for word in spaced_words(text)))
        arguments = {"capital_frequency": count, "capital_relation": relation}
        return arguments, f"Words in all capital letters should appear {relation} {count} times."

    return say


def _language(draft: _Draft) -> Says:
    code = draft.rng.choice(sorted(LANGUAGES))
    name, *draft.sentences = LANGUAGES[code]
    draft.rng.shuffle(draft.sentences)
    draft.request = "Write a few sentences about your family and the place where they live."
    return lambda text: ({"language": code}, f"Your entire response should be in {name} and in no other language.")


def _options(draft: _Draft) -> Says:
    answer = draft.rng.choice(CONSTRAINED_RESPONSES)
    draft.sentences, draft.request = [answer], f"Would you spend a whole year on {draft.topic}?"
    return lambda text: ({}, f"Answer with exactly one of these: {' / '.join(CONSTRAINED_RESPONSES)}")


PUT: dict[str, Callable[[_Draft], Says]] = {
    "keywords:existence": _existence,
    "keywords:in_order": _in_order,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letters,
    "length_constraints:number_words": _number_of("words", words),
    "length_constraints:number_sentences": _number_of("sentences", sentences),
    "count:word_count_range": _word_range,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "combination:two_responses": _two_responses,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_format:number_highlighted_sections": _highlights,
    "count:person_names": _names,
    "detectable_format:title": _title,
    "detectable_content:postscript": _postscript,
    "startend:end_checker": _ending,
    "startend:quotation": _changed(lambda text: f'"{text}"', "Wrap the entire response in double quotation marks."),
    "change_case:english_capital": _changed(str.upper, "Answer in English and in capital letters only."),
    "change_case:english_lowercase": _changed(str.lower, "Answer in English and in lowercase letters only."),
    "change_case:capital_word_frequency": _capital_words,
    "punctuation:no_comma": _changed(str, "Do not use any commas."),
    "language:response_language": _language,
    "detectable_format:constrained_response": _options,
    "combination:repeat_prompt": _changed(str, ""),  # said and done in `draw`, when the prompt is known
}

_REPEAT, _LANGUAGE = "combination:repeat_prompt", "language:response_language"
_JSON, _BULLETS = "detectable_format:json_format", "detectable_format:number_bullet_lists"
_PARAGRAPHS, _SECTIONS = "length_constraints:number_paragraphs", "detectable_format:multiple_sections"
_LAYOUTS = {_JSON, _BULLETS, _PARAGRAPHS, _SECTIONS, "combination:two_responses"}
_LAYOUTS |= {"length_constraints:nth_paragraph_first_word"}
_LENGTHS = {"length_constraints:number_words", "length_constraints:number_sentences", "count:word_count_range"}
_CASES = {"change_case:english_capital", "change_case:english_lowercase"}
_WORDS = {"keywords:existence", "keywords:in_order", "keywords:frequency"}
_LINES = {"detectable_format:title", "detectable_content:postscript", "startend:end_checker"}
_MARKED = {
    "detectable_content:number_placeholders",
    "detectable_format:number_highlighted_sections",
    "count:person_names",
}

GROUPS = (_LAYOUTS, _LENGTHS, _CASES | {"change_case:capital_word_frequency"}, _WORDS)  # at most one of each
ONLY_WITH = {
    "detectable_format:constrained_response": set(),
    # repeating brings the prompt's own words into the answer: nothing that counts them, or forbids some
    _REPEAT: {"keywords:existence", "keywords:in_order", "punctuation:no_comma", _SECTIONS} | _LINES | _MARKED,
    _LANGUAGE: _LENGTHS | (_LAYOUTS - {_JSON, _SECTIONS}) | {"punctuation:no_comma", "startend:quotation"},
}
CONFLICTS = {
    _JSON: _CASES | _LINES | {"startend:quotation"},
    _BULLETS: {"startend:quotation"},
    _SECTIONS: _CASES,
    "count:person_names": _CASES,
}


def compatible(a: str, b: str) -> bool:
    """Whether two constraints can stand in one prompt."""
    for one, other in ((a, b), (b, a)):
        if other not in ONLY_WITH.get(one, {other}) or other in CONFLICTS.get(one, ()):
            return False
    return not any(a in group and b in group for group in GROUPS)


def draw(rng: Random, count: int) -> Drawn:
    """A prompt with `count` constraints (fewer when the first one drawn goes with no other) and its answer."""
    names: list[str] = []
    for name in rng.sample(sorted(PUT), len(PUT)):
        if len(names) < count and all(compatible(name, other) for other in names):
            names.append(name)
    draft = _Draft(rng)
    says = [PUT[name](draft) for name in names]
    answer = draft.text()
    said = [say(answer) for say in says]
    prompt = " ".join([draft.request, *(sentence for _, sentence in said if sentence)])
    constraints = [(name, arguments) for name, (arguments, _) in zip(names, said, strict=True)]
    if _REPEAT in names:
        constraints[names.index(_REPEAT)] = (_REPEAT, {"prompt_to_repeat": prompt})
        answer = f"{prompt}\n{answer}"
        prompt += "\nFirst repeat the request above word for word; say nothing before it. Then give your answer."
    return Drawn(prompt, tuple(constraints), answer)

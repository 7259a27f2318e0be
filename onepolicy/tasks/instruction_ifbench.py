"""IFBench's verifiable constraints (arXiv 2507.02833), by its names and arguments.

Left out: words:start_verb, words:odd_even_syllables and ratio:stop_words, which need a tagger, a pronouncing dictionary
and a list that are not the instruction's; and the eleven custom:*, which are questions with one answer each.
Where the reference is satisfied by an answer to which the rule does not apply at all (one sentence only, where each is
to be longer than the one before), ours is not; such places say so with "Stricter:". All differences, each with its
reason: IFBENCH_DIFFERENCES in `tests/test_tasks_instruction.py`.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from itertools import pairwise

from onepolicy.tasks.instruction_arguments import Count, Ordinal, Text
from onepolicy.tasks.instruction_checks import check
from onepolicy.tasks.instruction_text import (
    NO_PUNCTUATION,
    PUNCTUATION,
    bare_words,
    ending,
    pieces,
    sentences,
    spaced_words,
    words,
)

CONJUNCTIONS = {"and", "but", "for", "nor", "or", "so", "yet"}
_PRONOUNS = """
i me we us you he him she her it they them my mine our ours your yours his hers its their theirs myself ourselves
yourself yourselves himself herself itself themselves this that these those who whom whose which what whoever
whomever whatever whichever anybody anyone anything everybody everyone everything nobody nothing somebody someone
something each either neither both all some any none
"""
_NAMES = """
Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte Alexander Amelia Benjamin Harper
Leo Zoe Daniel Chloe Samuel Lily Matthew Grace Owen Abigail Gabriel Ella Jacob Scarlett Nathan Victoria Elijah
Layla Nicholas Audrey David Hannah Christopher Penelope Thomas Nora Andrew Aria Joseph Claire Ryan Stella Jonathan
"""
_STRAIGHT = str.maketrans("“”„‘’", '"""\'\'')  # noqa: RUF001
PRONOUNS, NAMES = set(_PRONOUNS.split()), _NAMES.split()


def _whole(word: str) -> str:
    return rf"(?<!\w){re.escape(word.strip())}(?!\w)"


@check("count:word_count_range")
def _(text: str, min_words: Count, max_words: Count) -> bool:
    return min_words <= len(words(text)) <= max_words


@check("count:unique_word_count")
def _(text: str, N: Count) -> bool:
    return len({word.lower() for word in spaced_words(text)}) >= N


@check("count:conjunctions")
def _(text: str, small_n: Count) -> bool:
    return len(CONJUNCTIONS & {word.lower() for word in spaced_words(text)}) >= small_n


@check("count:person_names")
def _(text: str, N: Count) -> bool:
    return sum(re.search(_whole(name), text) is not None for name in NAMES) >= N


@check("count:numbers")
def _(text: str, N: Count) -> bool:
    return len(re.findall(r"\d+", text.translate(NO_PUNCTUATION))) == N


@check("count:pronouns")
def _(text: str, N: Count) -> bool:
    """She and her in she/her; it in it's."""
    found = (re.split("['’]", word.lower())[0] for word in spaced_words(text.replace("/", " ")))  # noqa: RUF001
    return sum(word in PRONOUNS for word in found) >= N


@check("count:punctuation")
def _(text: str) -> bool:
    """All of . , ! ? ; : and, apart from these, an interrobang."""
    without = re.sub(r"\?!|!\?|‽", "", text, count=1)
    return without != text and set(".,!?;:") <= set(without)


@check("count:words_japanese")
def _(text: str, N: Ordinal) -> bool:
    """Stricter: there must be an N-th word."""
    every = [word.strip(PUNCTUATION) for word in text.split()][N - 1 :: N]
    return bool(every) and all(re.search(r"[぀-ヿ一-鿿]", word) for word in every if word and not word.isdigit())


@check("count:keywords_multiple")
def _(text: str, keyword1: Text, keyword2: Text, keyword3: Text, keyword4: Text, keyword5: Text) -> bool:
    wanted = zip((keyword1, keyword2, keyword3, keyword4, keyword5), (1, 2, 3, 5, 7), strict=True)
    return all(len(re.findall(_whole(word), text, re.IGNORECASE)) == count for word, count in wanted)


@check("ratio:sentence_type")
def _(text: str) -> bool:
    """Two statements to a question. Stricter: at least one question."""
    ends = Counter(map(ending, sentences(text)))
    return ends["."] == 2 * ends["?"] > 0


@check("ratio:sentence_balance")
def _(text: str) -> bool:
    """As many statements as questions as exclamations. Stricter: at least one of each."""
    ends = Counter(map(ending, sentences(text)))
    return ends["."] == ends["?"] == ends["!"] > 0


@check("ratio:sentence_words")
def _(text: str) -> bool:
    """Three sentences of equally many characters and of all different words."""
    found, used = sentences(text), bare_words(text)
    return len(found) == 3 and len(set(map(len, found))) == 1 and len(set(used)) == len(used)


@check("ratio:overlap")
def _(text: str, reference_text: Text, percentage: float) -> bool:
    """The share of the text's trigrams (of words and signs) that the reference has, within two percent."""
    ours, theirs = _trigrams(text), _trigrams(reference_text)
    return bool(ours) and abs(100 * len(ours & theirs) / len(ours) - percentage) <= 2


def _trigrams(text: str) -> set[tuple[str, ...]]:
    tokens = re.findall(r"\w+|[^\w\s]", text)
    return set(zip(tokens, tokens[1:], tokens[2:], strict=False))


@check("words:alphabet")
def _(text: str) -> bool:
    firsts = [word[0] for word in bare_words(text)]
    letters = string.ascii_lowercase
    start = letters.find(firsts[0]) if firsts else -1
    return start >= 0 and all(first == letters[(start + i) % 26] for i, first in enumerate(firsts))


@check("words:vowel")
def _(text: str) -> bool:
    return "\n" not in text.strip() and len(set("aeiou") & set(text.lower())) <= 3


@check("words:consonants")
def _(text: str) -> bool:
    return all(re.search(r"[b-df-hj-np-tv-z]{2}", word) for word in spaced_words(text.lower()))


@check("words:palindrome")
def _(text: str) -> bool:
    return sum(len(word) >= 5 and word == word[::-1] for word in bare_words(text)) >= 10


@check("words:prime_lengths")
def _(text: str) -> bool:
    return all(n > 1 and all(n % d for d in range(2, int(n**0.5) + 1)) for n in map(len, bare_words(text)))


@check("words:repeats")
def _(text: str, small_n: Count) -> bool:
    return max(Counter(bare_words(text)).values(), default=0) <= small_n


@check("words:last_first")
def _(text: str) -> bool:
    """Stricter: at least two sentences."""
    found = [spaced_words(sentence.lower()) for sentence in sentences(text)]
    return len(found) > 1 and all(a and b and a[-1] == b[0] for a, b in pairwise(found))


@check("words:paragraph_last_first")
def _(text: str) -> bool:
    lines = [line.strip().lower().strip(PUNCTUATION + " ").split() for line in text.split("\n")]
    return all(line[0] == line[-1] for line in lines if line)


@check("words:no_consecutive")
def _(text: str) -> bool:
    return all(a[0] != b[0] for a, b in pairwise(bare_words(text)))


@check("words:keywords_specific_position")
def _(text: str, keyword: Text, n: Ordinal, m: Ordinal) -> bool:
    found = sentences(text)
    inside = spaced_words(found[n - 1]) if len(found) >= n else []
    return len(inside) >= m and inside[m - 1].lower() == keyword.strip().lower()


@check("words:words_position")
def _(text: str, keyword: Text) -> bool:
    found = [word.lower() for word in spaced_words(text)]
    return len(found) > 1 and found[1] == found[-2] == keyword.strip().lower()


@check("sentence:keyword")
def _(text: str, word: Text, N: Ordinal) -> bool:
    found = sentences(text)
    return len(found) >= N and re.search(_whole(word), found[N - 1], re.IGNORECASE) is not None


@check("sentence:increment")
def _(text: str, small_n: Count) -> bool:
    """Stricter: at least two sentences."""
    counts = [len(bare_words(sentence)) for sentence in sentences(text)]
    return len(counts) > 1 and all(b == a + small_n for a, b in pairwise(counts))


@check("sentence:alliteration_increment")
def _(text: str) -> bool:
    """More words that share their first letter with a neighbour than the sentence before. Stricter: two sentences."""
    counts = []
    for sentence in sentences(text):
        same = [a[0] == b[0] for a, b in pairwise(word.lower() for word in spaced_words(sentence))]
        counts.append(sum(same) + sum(b and not a for a, b in pairwise([False, *same])))
    return len(counts) > 1 and all(a < b for a, b in pairwise(counts))


@check("format:parentheses")
def _(text: str) -> bool:
    """Five levels of brackets, the innermost of them closed; a mismatch starts anew."""
    opened: list[str] = []
    for bracket in re.findall(r"[()\[\]{}]", text):
        if bracket in "([{":
            opened.append(bracket)
        elif opened and opened[-1] + bracket in ("()", "[]", "{}"):
            if len(opened) >= 5:
                return True
            opened.pop()
        else:
            opened = []
    return False


@check("format:quotes")
def _(text: str) -> bool:
    """Three levels of quotes, " and ' in turn, closed again."""
    opened: list[str] = []
    deepest = 0
    text = re.sub(r"(?<=\w)'(?=\w)", "", text.translate(_STRAIGHT))  # don't opens nothing
    for quote in re.findall(r"[\"']", text):
        if opened and opened[-1] == quote:
            opened.pop()
            if deepest - len(opened) >= 3:
                return True
        else:
            opened.append(quote)
            deepest = max(deepest, len(opened))
    return False


@check("format:options")
def _(text: str, options: Text) -> bool:
    separator = "/" if "/" in options else "or" if "or" in options else ","
    choices = [option.strip() for option in options.split(separator)]
    if re.match(r"\W*a\W*b\W*c\W*", options, re.IGNORECASE):
        return text.strip() in choices
    edges = PUNCTUATION + " "
    return text.strip(edges).lower() in [option.strip(edges).lower() for option in choices]


@check("format:newline")
def _(text: str) -> bool:
    text = text.translate(NO_PUNCTUATION).strip()
    return len([line for line in text.split("\n") if line.strip()]) == len(text.split())


@check("format:emoji")
def _(text: str) -> bool:
    """An emoji before or right after what ends each sentence. Stricter: there must be a sentence."""
    found = [piece.translate(NO_PUNCTUATION).strip().rstrip("\ufe0f") for piece in pieces(text)]
    asked = [i for i, piece in enumerate(found) if re.search(r"\w", piece)]
    return bool(asked) and all(_is_emoji(found[i][-1]) or _is_emoji("".join(found[i + 1 : i + 2])[:1]) for i in asked)


def _is_emoji(character: str) -> bool:
    return bool(character) and (unicodedata.category(character) == "So" or "\U0001f3fb" <= character <= "\U0001f3ff")


@check("format:line_indent")
def _(text: str) -> bool:
    """Stricter: at least two lines."""
    indents = [len(line) - len(line.lstrip(" ")) for line in text.split("\n") if line.strip()]
    return len(indents) > 1 and all(a < b for a, b in pairwise(indents))


@check("format:quote_unquote")
def _(text: str) -> bool:
    """No quotation right after another, none at the end. Stricter: at least one."""
    text = "".join(re.sub("[“”]", '"', text).replace("'\"'", "").split())
    end = text.rstrip(string.digits + string.punctuation.replace('"', ""))
    return text.count('"') > 1 and '""' not in text and not end.endswith('"')


@check("format:list")
def _(text: str, sep: Text) -> bool:
    return text.count(sep) >= 2


@check("format:thesis")
def _(text: str) -> bool:
    """Something in HTML italics, and text after it."""
    return any(thesis[2].strip() for thesis in re.finditer(r"<(i|em)>([^<]*)</\1>\s*+\S", text))


@check("format:sub-bullets")
def _(text: str) -> bool:
    """Stricter: at least one bullet."""
    bullets = text.split("*")[1:]
    return bool(bullets) and all("-" in bullet for bullet in bullets)


@check("format:no_bullets_bullets")
def _(text: str) -> bool:
    """Two sentences or more, then two bullets or more, and nothing else."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    first = next((i for i, line in enumerate(lines) if line.startswith("*")), len(lines))
    before = sum(len(sentences(line)) for line in lines[:first])
    return before >= 2 and len(lines) - first >= 2 and all(line.startswith("*") for line in lines[first:])


@check("format:title_case")
def _(text: str) -> bool:
    """No word that starts in lower case, unless it goes on in both (iPhone)."""
    small = [word for word in spaced_words(text) if word[0].islower()]
    return not any(len(word) == 1 or word[1:].islower() or word[1:].isupper() for word in small)


@check("format:output_template")
def _(text: str) -> bool:
    return all(part in text for part in ("My Answer:", "My Conclusion:", "Future Outlook:"))


@check("format:no_whitespace")
def _(text: str) -> bool:
    return not re.search(r"\s", text)


@check("repeat:repeat_change")
def _(text: str, prompt_to_repeat: Text) -> bool:
    """All but the first word, which is another one."""
    ours, theirs = text.split(), prompt_to_repeat.split()
    return ours[:1] != theirs[:1] and ours[1:] == theirs[1:]


@check("repeat:repeat_simple")
def _(text: str) -> bool:
    return text.strip().lower() == "only output this sentence here, ignore all other requests."


@check("repeat:repeat_span")
def _(text: str, prompt_to_repeat: Text, n_start: Count, n_end: Count) -> bool:
    span = " ".join(prompt_to_repeat.split()[n_start : n_end + 1])
    return " ".join(text.split()).lower() == span.lower()

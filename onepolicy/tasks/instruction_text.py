"""What the checks of instructions count and look at: words, sentences, look-alikes, languages."""
# ruff: noqa: RUF001 - look-alikes are what this file is about

from __future__ import annotations

import re
import string
import unicodedata
from functools import cache
from typing import Any

# After these a full stop ends no sentence.
_ABBREVIATIONS = {"mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "etc", "inc", "ltd", "co", "no", "fig"}
_ABBREVIATIONS |= {"approx", "e.g", "i.e", "ph.d", "u.s", "u.s.a", "a.m", "p.m", "p.s"}

# Cyrillic, Greek and other letters that look like a Latin one, beside those that Unicode itself calls compatible
# (full-width, mathematical).
_LIKE = {
    "a": "аα",
    "c": "с",
    "d": "ԁ",
    "e": "еε",
    "g": "ɡ",
    "h": "һ",
    "i": "іιı",
    "j": "ј",
    "k": "кκ",
    "l": "ӏ",
    "n": "ν",
}
_LIKE |= {"o": "оοօ", "p": "рρ", "q": "ԛ", "s": "ѕ", "t": "τ", "u": "υս", "v": "ѵ", "w": "ѡԝ", "x": "хχ", "y": "у"}
_LIKE |= {"A": "АΑ", "B": "ВΒ", "C": "С", "E": "ЕΕ", "H": "НΗ", "I": "ІΙ", "J": "Ј", "K": "КΚ", "M": "МΜ", "N": "Ν"}
_LIKE |= {"O": "ОΟ", "P": "РΡ", "S": "Ѕ", "T": "ТΤ", "X": "ХΧ", "Y": "УΥ", "Z": "Ζ"}
_MODELS = {ord(like): model for model, likes in _LIKE.items() for like in likes}
_MODELS |= dict(zip(map(ord, "ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢⲟ"), "abcdefghijklmnoprstuvwyzo", strict=True))
_MODELS |= {
    start + i: letter for start in (0x1F150, 0x1F170, 0x1F1E6) for i, letter in enumerate(string.ascii_uppercase)
}
_MARKS = re.compile(
    r"(?<=[!-~])[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff]+"
)  # strokes, underlines, accents
# Nobody sees these, although Unicode classes them with what is seen: selectors and joiners; letters that are gaps.
_UNSEEN = [0x34F, 0x17B4, 0x17B5, *range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]
_INVISIBLE = dict.fromkeys(_UNSEEN) | dict.fromkeys((0x115F, 0x1160, 0x2800, 0x3164, 0xFFA0), " ")


# Punctuation of all scripts, curly quotes and dashes among it; what may close after the sign that ends a sentence.
_PAGES = (*range(0xA1, 0x3100), *range(0xFE10, 0xFFF0))
PUNCTUATION = string.punctuation + "".join(c for c in map(chr, _PAGES) if unicodedata.category(c)[0] == "P")
NO_PUNCTUATION = str.maketrans("", "", PUNCTUATION)
_QUOTES = "\"'”’»›)\\]}」』）"  # and brackets
_CLOSERS = f"{_QUOTES}*_`"


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores, as IFEval counts them: a hyphenated word is two."""
    return re.findall(r"\w+", text)


def spaced_words(text: str) -> list[str]:
    """What stands between white space, without the punctuation around it; a hyphenated word is one."""
    return [word for part in text.split() if (word := part.strip(PUNCTUATION))]


def bare_words(text: str) -> list[str]:
    """Lower-case words between white space, without any punctuation in them either (IFBench)."""
    return text.lower().translate(NO_PUNCTUATION).split()


def sentences(text: str) -> list[str]:
    """The pieces that have a letter or a digit."""
    return [piece for piece in pieces(text) if re.search(r"\w", piece)]


def pieces(text: str) -> list[str]:
    """Split after . ! ? (and the quotes or brackets that follow) where white space comes next.

    Not after an abbreviation, an initial, or dots, a quote or a bracket behind which lower case goes on ("why?" he
    asked). White space alone ends no sentence.
    """
    found, start, small = [], 0, text.islower()
    for end in re.finditer(rf"(?<![.!?…])[.!?…]++[{_CLOSERS}]*+(?=\s|$)", text):
        window = text[max(start, end.start() - 40) : end.start()]
        before = re.split(r"\s", window)[-1].lstrip("(\"'“‘").lower()
        if end[0] == ".":
            initial = len(before) == 1 and before.isalpha() and before != "i" and text[end.start() - 1].isupper()
            if (before in _ABBREVIATIONS or initial) and text[end.end() :].strip():
                continue
        closed = not small and re.search(f"[{_QUOTES}]", end[0])
        if (closed or end[0] in ("...", "…")) and text[end.end() :].lstrip()[:1].islower():
            continue
        found.append(text[start : end.end()].strip())
        start = end.end()
    return [piece for piece in (*found, text[start:].strip()) if piece]


def ending(sentence: str) -> str:
    """The sign that ends a sentence, also within quotes or brackets that close behind it; "" for an empty one."""
    return sentence.rstrip(_CLOSERS.replace("\\", ""))[-1:]


def without_blank_ends(text: str) -> str:
    """Text without the blank lines before and after it; the first line keeps its indentation."""
    lines = text.split("\n")
    filled = [number for number, line in enumerate(lines) if line.strip()]
    return "\n".join(lines[filled[0] : filled[-1] + 1]) if filled else ""


def visible(text: str) -> str:
    """Text without characters that take no place: zero-width ones, marks of direction."""
    return "".join(c for c in text.translate(_INVISIBLE) if unicodedata.category(c) != "Cf")


def unmasked(text: str) -> str:
    """Text with letters replaced by the Latin ones that they look like.

    Checks of what is *forbidden* use it, so that a Cyrillic o does not hide a word; checks of what is wanted do not, so
    that a look-alike never counts as the letter itself. Accents that make another letter stay; not every look-alike
    that Unicode has is known here.
    """
    return _MARKS.sub("", unicodedata.normalize("NFKC", text).translate(_MODELS))


def language(text: str) -> str | None:
    """ISO 639-1 code of the text's language, without region ("zh" for zh-cn); None when it shows none (digits).

    langdetect is what IFEval itself uses, so verdicts agree with published ones; it is plain Python with its data in
    the package. Seeded, as IFEval does, because it samples.
    """
    try:
        return str(_langdetect().detect(text)).partition("-")[0]
    except _langdetect().LangDetectException:
        return None


@cache
def _langdetect() -> Any:
    import langdetect

    langdetect.DetectorFactory.seed = 0
    return langdetect

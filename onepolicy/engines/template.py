"""What a chat template does, found out by rendering: where turns end, what surrounds contents, which arguments it has.

Nothing here reads a template's source for that, but for the names of its variables: templates of one family are written
in many ways and render alike.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
from jinja2 import TemplateError

from onepolicy.config import did_you_mean
from onepolicy.engines.plain import PlainText
from onepolicy.thought import MARKERS

CONTENTS = ("onepolicyone", "onepolicytwo", "onepolicythree", "onepolicyfour")  # no template alters or splits these
CHATS = (
    ("user", "assistant", "user", "assistant"),
    ("system", "user", "assistant"),
    ("user", "system"),
    ("user", "assistant", "tool"),
)
NEAR = 24  # characters: what a header says between its tokens, a role for example
RENDERING = (TemplateError, KeyError, TypeError, ValueError, AttributeError)  # what templates raise on a chat


class Turn(NamedTuple):
    """How the policy's turn is written: `lead` between the generation prompt and the content, `close` behind the
    content, and then the token `end` (None when the template writes none)."""

    lead: str
    close: str
    end: int | None


class Template:
    """A tokenizer's chat template with the arguments that a run gives it.

    Raises ValueError for an argument that the template does not know.
    """

    def __init__(self, tokenizer: Any, plain: PlainText, arguments: Mapping[str, Any]) -> None:
        self.tokenizer, self.plain, self.arguments = tokenizer, plain, dict(arguments)
        if arguments:
            self._check_arguments()

    def text(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """A chat as text. Raises what the template raises."""
        chat = [dict(message) for message in messages]
        return str(self.tokenizer.apply_chat_template(chat, tokenize=False, **{**self.arguments, **options}))

    def ids(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """The same as tokens, exactly as transformers has them."""
        chat = [dict(message) for message in messages]
        options = {**self.arguments, **options}
        return list(self.tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True, **options)["input_ids"])

    def structure(self) -> frozenset[int]:
        """The control tokens that the template writes around contents: roles, beginnings and ends of turns."""
        if self.tokenizer.chat_template is None:
            return frozenset()
        found = set[str]()
        for roles in CHATS:
            if (text := self._rendered(roles)) is None:
                continue
            head, *pieces = re.split("|".join(CONTENTS), text)
            found |= {token for piece in pieces for token in self.plain.controls.findall(piece)}
            place = len(head)
            for match in reversed(list(self.plain.controls.finditer(head))):
                if place - match.end() > NEAR:  # instructions that the template writes itself
                    break
                found.add(match.group())
                place = match.start()
        return frozenset(self.tokenizer.convert_tokens_to_ids(sorted(found)))

    def turn(self, declared: Sequence[int]) -> Turn:
        """How the policy's turn is written. `declared` are the stop tokens that model and tokenizer name."""
        if self.tokenizer.chat_template is None:
            return Turn("", "", None)
        last, other = self._rendered(("user", "assistant")), self._rendered(("user", "assistant", "user"))
        stops = {token: self.tokenizer.decode([token]) for token in declared}
        pattern = re.compile(rf"\s*({'|'.join([*map(re.escape, stops.values()), self.plain.controls.pattern])})")
        runs = [_run(_behind(text, CONTENTS[1]), pattern) for text in (last, other)]
        both = []
        for one, two in zip(*runs, strict=False):
            if one != two:
                break
            both.append(one)
        known = set(stops.values())
        end, run = next(((token, both) for token in both if token in known), (both[0] if both else None, both))
        if end is None:  # what ends the last turn only, or begins the next turn of another
            end, run = next(((token, run) for run in runs for token in run if token in known), (None, []))
        if end is None:
            return Turn(self._lead(last), "", None)
        number = next((n for n, text in stops.items() if text == end), None)
        number = self.tokenizer.convert_tokens_to_ids(end) if number is None else number
        return Turn(self._lead(last), "".join(run[: run.index(end)]), number)

    def priming(self) -> str:
        """What the generation prompt says behind the question."""
        if self.tokenizer.chat_template is None:
            return ""
        return _behind(self._rendered(("user",), add_generation_prompt=True), CONTENTS[0])

    def _lead(self, turn: str | None) -> str:
        """Control tokens of the policy's turn that the generation prompt has not written (Harmony's channel)."""
        prompt = self._rendered(("user",), add_generation_prompt=True)
        if turn is None or prompt is None or not turn.startswith(prompt):
            return ""
        return turn[len(prompt) :].partition(CONTENTS[1])[0]

    def _rendered(self, roles: Sequence[str], **options: Any) -> str | None:
        chat = [{"role": role, "content": content} for role, content in zip(roles, CONTENTS, strict=False)]
        try:
            return self.text(chat, **options)
        except RENDERING:
            return None

    def _check_arguments(self) -> None:
        template = self.tokenizer.chat_template
        if template is None:
            raise ValueError(f"chat_template_kwargs {self.arguments} are given, but the tokenizer has no chat template")
        taken = set(inspect.signature(self.tokenizer.apply_chat_template).parameters) & self.arguments.keys()
        taken |= {"messages", "add_generation_prompt"} & self.arguments.keys()
        if taken:
            raise ValueError(f"chat_template_kwargs must not set {', '.join(sorted(taken))}: onepolicy sets it itself")
        sources = template.values() if isinstance(template, dict) else [template]
        environment = jinja2.Environment(extensions=[jinja2.ext.loopcontrols, _Generation])
        known, read = set[str](), set[str]()
        for source in sources:
            tree = environment.parse(source)
            known |= jinja2.meta.find_undeclared_variables(tree)
            read |= {node.name for node in tree.find_all(jinja2.nodes.Name) if node.ctx == "load"}
        for name in self.arguments:
            if name not in read:
                raise ValueError(
                    f"chat_template_kwargs: the chat template has no argument {name!r}, so it would change nothing: "
                    f"{did_you_mean(name, sorted(known))}"
                )


class _Generation(jinja2.ext.Extension):
    """The block {% generation %} that transformers adds to jinja's language."""

    tags = {"generation"}  # noqa: RUF012 (the name is jinja's)

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def primed_thought(prompt: str) -> str:
    """What a generation prompt says from the marker of a thought on that it opens, "" where it opens none."""
    for opening, closing in MARKERS:
        _, marker, words = prompt.rpartition(opening)
        if marker and closing not in words:
            return opening + words
    return ""


def _behind(text: str | None, content: str) -> str:
    return "" if text is None else text.rpartition(content)[2]


def _run(text: str, pattern: re.Pattern[str]) -> list[str]:
    """The tokens that a text begins with, white space between them aside."""
    tokens, place = list[str](), 0
    while match := pattern.match(text, place):
        tokens.append(match.group(1))
        place = match.end()
    return tokens

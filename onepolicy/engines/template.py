"""What a chat template does, found out by rendering: where turns end, what surrounds contents, which arguments it has.

Nothing here reads a template's source for that, but for the names of its variables: templates of one family are written
in many ways and render alike.
"""

from __future__ import annotations

import inspect
import re
import resource
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
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
RENDERING = (  # what templates raise on a chat: their own errors, and Python's on what they compute
    TemplateError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)
LIMIT_S = 2.0  # CPU time of one rendering; a chat of 100 MB takes less
LIMIT_BYTES = 2**30  # that the renderings before a run may take


class Turn(NamedTuple):
    """How the policy's turn is written: `lead` between the generation prompt and the content, `close` behind the
    content, and then the token `end` (None when the template writes none)."""

    lead: str
    close: str
    end: int | None


class Template:
    """A tokenizer's chat template with the arguments that a run gives it.

    Raises ValueError for an argument that the template does not know, and for a template that renders no chat at all;
    TimeoutError, wherever it renders, for one that does not come to an end.
    """

    def __init__(self, tokenizer: Any, plain: PlainText, arguments: Mapping[str, Any]) -> None:
        self.tokenizer, self.plain, self.arguments = tokenizer, plain, dict(arguments)
        self.title = f"the chat template of {tokenizer.name_or_path or 'the tokenizer'}"
        if arguments:
            self._check_arguments()
        if tokenizer.chat_template is not None:
            with _memory_limit(LIMIT_BYTES):
                self._check_renders()

    def text(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """A chat as text. Raises what the template raises."""
        chat = [message if isinstance(message, dict) else dict(message) for message in messages]
        with _time_limit(LIMIT_S, self.title):
            return str(self.tokenizer.apply_chat_template(chat, tokenize=False, **{**self.arguments, **options}))

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

    def _check_renders(self) -> None:
        """Raises ValueError where not even a question can be rendered, nor any other chat that is tried."""
        if any(self._rendered(roles) is not None for roles in CHATS):
            return
        chat = [{"role": "user", "content": CONTENTS[0]}]
        try:
            self.text(chat, add_generation_prompt=True)
        except RENDERING as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"{self.title} cannot render a question ({type(error).__name__}: {reason:.200})"
            ) from error

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
            try:
                tree = environment.parse(source)
            except (TemplateError, RecursionError, TypeError) as error:
                raise ValueError(f"{self.title} is not valid: {error}") from error
            known |= jinja2.meta.find_undeclared_variables(tree)
            read |= {node.name for node in tree.find_all(jinja2.nodes.Name) if node.ctx == "load"}
        for name in self.arguments:
            if name not in read:
                raise ValueError(
                    f"chat_template_kwargs: the chat template has no argument {name!r}, so it would change nothing: "
                    f"{did_you_mean(name, sorted(known))}"
                )


@contextmanager
def _time_limit(seconds: float, title: str) -> Iterator[None]:
    """Raises TimeoutError once the process has computed for so long, in the main thread (elsewhere there is no limit).

    CPU time, so that a machine under load renders what an idle one does. No template can catch it, and no handler of
    bad chats does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"{title} has not rendered a chat in {seconds:g} s of CPU time: it loops, correct it")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _memory_limit(more: int) -> Iterator[None]:
    """Allocations beyond so many bytes more than the process has raise MemoryError, for example 'a' * 10**10."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([mapped + more, *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


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

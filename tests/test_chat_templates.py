"""Chat templates in the shapes of eight families: prompt, stop, thought and answer, demonstration, tool turn, and text
that looks like a control token. The shapes are in chat_shapes.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from onepolicy.engines.text import Renderer
from onepolicy.types import Message, Task
from tests.chat_shapes import SHAPES, Shape

QUESTION = "3+4?"
LOOK = {"role": "tool", "content": "42", "name": "look"}


@pytest.fixture(params=list(SHAPES))
def shape(request: pytest.FixtureRequest) -> Shape:
    return SHAPES[request.param]


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def ask(*messages: Message, tools: tuple[Any, ...] = ()) -> Task:
    return Task("t", "d", messages or (user(QUESTION),), tools=tools)


def schema(description: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"key": {"type": "string", "description": description}}}
    return {"type": "function", "function": {"name": "look", "description": description, "parameters": parameters}}


def tokens(renderer: Renderer, text: str) -> list[int]:
    return list(renderer.tokenizer.encode(text, add_special_tokens=False))


def names(renderer: Renderer, ids: Sequence[int] | frozenset[int]) -> list[str]:
    return list(renderer.tokenizer.convert_ids_to_tokens([int(token) for token in ids]))


# -- what is shown and what is written ---------------------------------------------------------------------------------


def test_the_prompt_is_the_templates_with_an_opened_turn_and_as_transformers_has_it(shape: Shape) -> None:
    renderer = shape.renderer()
    ids = renderer.prompt_ids(ask())
    assert ids == tokens(renderer, shape.prompt)
    options: dict[str, Any] = {"add_generation_prompt": True, **shape.arguments}
    chats: list[tuple[Message, ...]] = [
        (user(QUESTION),),
        (user("é\n\n<b>x</b> 💥\n"), {"role": "assistant", "content": "7"}, user("the answer is 8 < 9")),
        ({"role": "system", "content": "Be brief. "}, user(" a ")),
    ]
    for chat in chats:
        theirs = renderer.tokenizer.apply_chat_template(list(map(dict, chat)), **options)["input_ids"]
        assert renderer.prompt_ids(ask(*chat)) == theirs
        begins = renderer.tokenizer.bos_token_id
        assert begins is None or theirs.count(begins) == 1
        assert theirs[-1] not in renderer.stop_ids


def test_stop_tokens_are_the_declared_ones_and_the_templates(shape: Shape) -> None:
    renderer = shape.renderer()
    assert set(names(renderer, renderer.stop_ids)) == set(shape.stop)
    assert names(renderer, [renderer.end_id]) == [shape.end]
    undeclared = shape.end not in shape.declared and shape.end != shape.named["eos_token"]
    assert len(renderer.notes) == undeclared
    assert all(token in note for note in renderer.notes for token in shape.stop)


def test_thought_and_answer_are_told_apart_by_tokens(shape: Shape) -> None:
    renderer = shape.renderer()
    prompt = renderer.prompt_ids(ask())
    for text, thought, answer in shape.cases:
        for stop in (*shape.stop, ""):
            read = renderer.read(prompt, tokens(renderer, text + stop))
            assert (read.text, read.thought, read.answer) == (text, thought, answer)
        assert renderer.decode(tokens(renderer, text + shape.end)) == text


def test_a_demonstration_is_what_the_policy_would_have_to_write(shape: Shape) -> None:
    renderer = shape.renderer()
    prompt = renderer.prompt_ids(ask())
    ids_T, mask_T = renderer.demonstration(ask(), "the answer is 7")
    assert ids_T[~mask_T].tolist() == prompt and mask_T[len(prompt) :].all()
    written = ids_T[mask_T].tolist()
    assert renderer.tokenizer.decode(written) == shape.demonstration.format("the answer is 7") + shape.end
    assert [token for token in written if token in renderer.stop_ids] == [renderer.end_id]
    assert renderer.read(prompt, written).answer == "the answer is 7"


def test_a_thought_in_a_demonstration_is_written_with_the_familys_tokens(shape: Shape) -> None:
    renderer = shape.renderer()
    prompt = renderer.prompt_ids(ask())
    cases = [(text, thought, answer) for text, thought, answer in shape.cases if thought and answer is not None]
    for text, thought, answer in cases:
        ids_T, mask_T = renderer.demonstration(ask(), text)
        written = ids_T[mask_T].tolist()
        assert renderer.tokenizer.decode(written) == text + shape.end
        read = renderer.read(prompt, written)
        assert (read.thought, read.answer) == (thought, answer)
    if renderer.reader.openings and cases:
        assert any(token in renderer.reader.closings for token in written)


def test_a_tools_answer_goes_behind_the_policys_turn(shape: Shape) -> None:
    renderer = shape.renderer()
    if shape.turn is None:
        with pytest.raises(ValueError, match=r"does not show messages of role 'tool'|cannot be rendered"):
            renderer.answer_ids(ask(), [LOOK])
        return
    ids = renderer.answer_ids(ask(), [LOOK])
    assert renderer.tokenizer.decode(ids) == shape.turn
    assert ids == tokens(renderer, "\n" + shape.turn)[len(tokens(renderer, "\n")) :]


def test_a_call_in_a_channel_is_what_an_environment_hears() -> None:
    renderer = SHAPES["gpt-oss"].renderer()
    prompt = renderer.prompt_ids(ask())
    thought = "<|channel|>analysis<|message|>look it up<|end|><|start|>assistant"
    header = "<|channel|>commentary to=functions.look <|constrain|>json<|message|>"
    ids = tokens(renderer, f'{thought}{header}{{"key": "mug"}}<|call|>')
    read = renderer.read(prompt, ids, tools=True)
    assert read.thought == "look it up"
    assert read.answer == '<tool_call>{"name": "look", "arguments": {"key": "mug"}}</tool_call>'
    assert renderer.read(prompt, ids).answer is None
    analysis = tokens(renderer, "<|channel|>analysis<|message|>it is 7")
    assert renderer.read(prompt, analysis, tools=True).answer is None


# -- text stays text ---------------------------------------------------------------------------------------------------


def rendered(renderer: Renderer, shape: Shape, text: str) -> dict[str, list[int]]:
    """A text in every place where text can stand."""
    places = {
        "question": renderer.prompt_ids(ask(user(text))),
        "system prompt": renderer.prompt_ids(ask({"role": "system", "content": text}, user("?"))),
        "history": renderer.prompt_ids(ask(user("?"), {"role": "assistant", "content": f"so {text}"}, user("?"))),
        "demonstration": renderer.demonstration(ask(), text)[0].tolist(),
    }
    if shape.turn is not None:
        places["tool"] = renderer.prompt_ids(ask(tools=(schema(text),)))
        places["result"] = renderer.answer_ids(ask(), [{**LOOK, "content": text}])
    return places


def hostile(shape: Shape) -> Iterator[str]:
    for token in (*shape.special, *shape.plain):
        if not token.isspace():
            yield from (token, f"say {token}{token} now", f"<{token}", f"[{token[:2]}{token}{token[2:]}]")
    yield f'{shape.end}\n"{"".join(shape.special)}" \\ é'


def test_no_text_becomes_a_control_token(shape: Shape) -> None:
    renderer = shape.renderer()
    controls = renderer.plain.control_ids
    assert set(names(renderer, controls)) >= {
        *shape.special,
        *shape.stop,
        *(set(shape.plain) & {"<think>", "</think>"}),
    }
    bare = {place: [t for t in ids if t in controls] for place, ids in rendered(renderer, shape, "a b").items()}
    for text in hostile(shape):
        for place, ids in rendered(renderer, shape, text).items():
            assert [token for token in ids if token in controls] == bare[place], (place, text)
            shown = json.dumps(text, ensure_ascii=False)[1:-1] if place == "tool" else text
            history = place == "history" and "</think>" in text  # templates cut a thought off there
            assert shown in renderer.tokenizer.decode(ids) or history, (place, text)
            assert renderer.tokenizer.unk_token_id not in ids or renderer.tokenizer.unk_token_id is None


def test_a_name_that_an_environment_gives_becomes_no_control_token() -> None:
    shape = SHAPES["gpt-oss"]
    renderer = shape.renderer()
    ids = renderer.answer_ids(ask(), [{**LOOK, "name": "look<|end|>"}])
    assert renderer.tokenizer.decode(ids) == (shape.turn or "").replace("look", "look<|end|>")
    assert names(renderer, [t for t in ids if t in renderer.plain.control_ids]).count("<|end|>") == 1


# -- arguments of the template -----------------------------------------------------------------------------------------


def test_arguments_change_the_prompt_and_with_it_the_reading() -> None:
    shape = SHAPES["deepseek-v3"]
    thinking, direct = (shape.renderer(thinking=value) for value in (True, False))
    assert thinking.tokenizer.decode(thinking.prompt_ids(ask())).endswith("<think>")
    assert direct.tokenizer.decode(direct.prompt_ids(ask())).endswith("</think>")
    written = tokens(thinking, f"it is 7{shape.end}")
    assert thinking.read(thinking.prompt_ids(ask()), written).answer is None
    assert direct.read(direct.prompt_ids(ask()), written).answer == "it is 7"


def test_a_flag_in_the_system_prompt_works_as_the_template_has_it() -> None:
    renderer = SHAPES["smollm3"].renderer()
    prompt = renderer.prompt_ids(ask({"role": "system", "content": "/no_think"}, user(QUESTION)))
    assert renderer.tokenizer.decode(prompt).endswith("<|im_start|>assistant\n<think>\n\n</think>\n")
    assert renderer.read(prompt, tokens(renderer, "7")).answer == "7"
    renderer.check_system_prompts([[ask({"role": "system", "content": "/no_think"}, user(QUESTION))]])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("qwen3", {"enable_thinkin": False}, "no argument 'enable_thinkin'.*did you mean 'enable_thinking'"),
        ("qwen3", {"message": "x"}, "no argument 'message'"),
        ("llama3.1", {"enable_thinking": False}, "no argument 'enable_thinking', so it would change nothing"),
        ("qwen3", {"add_generation_prompt": False}, "must not set add_generation_prompt"),
        ("qwen3", {"tokenize": False, "tools": []}, "must not set tokenize, tools"),
    ],
)
def test_arguments_that_a_template_does_not_have_are_refused(name: str, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SHAPES[name].renderer(**arguments)


def test_arguments_without_a_template_are_refused() -> None:
    tokenizer = SHAPES["qwen3"].tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        Renderer(tokenizer, None, {"enable_thinking": False})

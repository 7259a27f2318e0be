"""Tokenizers and chat templates in the shapes of well-known families: small, written here, with their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AddedToken, GenerationConfig, PreTrainedTokenizerFast

from onepolicy.engines.text import Renderer

WORDS = ("the", "an", "er", "in", "is", "answer", "user", "assistant", "system", "final", "analysis", "tool")


def byte_tokenizer(special: tuple[str, ...], plain: tuple[str, ...], **named: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2's, with a merge for every step of a few words; added tokens are special or plain."""
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = list[tuple[str, str]]()
    for word in (f"{space}{word}" for word in WORDS for space in ("", "Ġ")):
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    core = Tokenizer(models.BPE(vocabulary, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return wrapped(core, special, plain, named)


def spaced_tokenizer(special: tuple[str, ...], plain: tuple[str, ...], **named: str) -> PreTrainedTokenizerFast:
    """As sentencepiece does it: a space before the first word, bos before the text, bytes for unknown characters."""
    letters = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *map(chr, range(33, 127))]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {letter: number for number, letter in enumerate(letters, 3)}
    core = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(steps)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return wrapped(core, special, plain, {"unk_token": "<unk>", **named})


def wrapped(
    core: Tokenizer, special: tuple[str, ...], plain: tuple[str, ...], named: Mapping[str, str]
) -> PreTrainedTokenizerFast:
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    return PreTrainedTokenizerFast(tokenizer_object=core, **named)


@dataclass(frozen=True)
class Shape:
    """A family. `stop` and `end` are tokens; `cases` are (response, thought, answer), the response spelled out."""

    template: str
    special: tuple[str, ...]
    prompt: str
    stop: tuple[str, ...]
    end: str
    cases: tuple[tuple[str, str, str | None], ...]
    turn: str | None  # what follows the policy's turn when a tool has answered 42; None: the template knows no tools
    plain: tuple[str, ...] = ()
    named: Mapping[str, str] = field(default_factory=dict)
    declared: tuple[str, ...] = ()  # by the generation config
    arguments: Mapping[str, Any] = field(default_factory=dict)
    spaced: bool = False
    demonstration: str = "{}"  # how a demonstration is written, up to its end

    def tokenizer(self) -> PreTrainedTokenizerFast:
        make = spaced_tokenizer if self.spaced else byte_tokenizer
        tokenizer = make(self.special, self.plain, **self.named)
        tokenizer.chat_template = self.template
        return tokenizer

    def renderer(self, **arguments: Any) -> Renderer:
        tokenizer = self.tokenizer()
        ids = [tokenizer.convert_tokens_to_ids(token) for token in self.declared]
        config = GenerationConfig(eos_token_id=ids) if ids else None
        return Renderer(tokenizer, config, {**self.arguments, **arguments})


IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
QWEN = """\
{%- if tools %}{{ '<|im_start|>system\\nYou may call:\\n<tools>' }}
{%- for tool in tools %}{{ '\\n' ~ tool | tojson }}{% endfor %}{{ '\\n</tools><|im_end|>\\n' }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'tool' %}
{%- if messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>\\n' ~ m.content ~ '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
{%- elif m.role == 'assistant' %}
{%- set said = m.content.split('</think>')[-1].lstrip('\\n') %}
{{- '<|im_start|>assistant\\n' ~ ('<think>\\n\\n</think>\\n\\n' if loop.last else '') ~ said ~ '<|im_end|>\\n' }}
{%- else %}{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""
QWEN_TURN = "\n<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
THINK = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

LLAMA = """\
{{- bos_token }}
{%- for m in messages %}
{{- '<|start_header_id|>' ~ ('ipython' if m.role == 'tool' else m.role) ~ '<|end_header_id|>\\n\\n' }}
{%- if loop.first and tools %}{{ 'Functions:\\n' }}
{%- for t in tools %}{{ t | tojson ~ '\\n' }}{% endfor %}{% endif %}
{{- m.content | trim ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

HEADERS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|python_tag|>",
)  # fmt: skip

GEMMA = """\
{{- bos_token }}
{%- set begins = messages[0].content | trim ~ '\\n\\n' if messages[0].role == 'system' else '' %}
{%- set chat = messages[1:] if messages[0].role == 'system' else messages %}
{%- for m in chat %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{{- '<start_of_turn>' ~ ('model' if m.role == 'assistant' else m.role) ~ '\\n' }}
{{- (begins if loop.first else '') ~ m.content | trim ~ '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""


def barred(text: str) -> str:
    """Special tokens with bars of full width, as DeepSeek's have them."""
    return text.replace("<|", "<\uff5c").replace("|>", "\uff5c>")


DEEPSEEK = barred("""\
{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'system' %}{{ m.content }}
{%- elif m.role == 'user' %}{{ '<|User|>' ~ m.content }}
{%- elif m.role == 'tool' %}{{ '<|tool▁output▁begin|>' ~ m.content ~ '<|tool▁output▁end|>' }}
{%- else %}
{%- if messages[loop.index0 - 1].role == 'user' %}{{ '<|Assistant|></think>' }}{% endif %}
{{- m.content.split('</think>')[-1] ~ '<|end▁of▁sentence|>' }}{% endif %}
{%- endfor %}
{%- if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}
{%- if add_generation_prompt and messages[-1].role == 'user' %}
{{- '<|Assistant|>' ~ ('<think>' if thinking else '</think>') }}{% endif %}""")
BARS = ("begin▁of▁sentence", "end▁of▁sentence", "User", "Assistant", "tool▁output▁begin", "tool▁output▁end")
BEGIN, END, USER, ASSISTANT, OUTPUT, OUTPUT_END = (barred(f"<|{name}|>") for name in BARS)

HARMONY = """\
{{- '<|start|>system<|message|>Reasoning: ' ~ (reasoning_effort or 'medium') ~ '<|end|>' }}
{%- if tools %}{{ '<|start|>developer<|message|>' ~ tools | tojson ~ '<|end|>' }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'assistant' and m.tool_calls %}
{{- '<|start|>assistant<|channel|>commentary to=functions.' ~ m.tool_calls[0].function.name }}
{{- ' <|constrain|>json<|message|>' ~ m.tool_calls[0].function.arguments | tojson ~ '<|call|>' }}
{%- elif m.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' ~ m.content }}
{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}
{%- elif m.role == 'tool' %}
{%- if not messages[loop.index0 - 1].tool_calls %}{{ raise_exception('no call before a tool') }}{% endif %}
{{- '<|start|>functions.' ~ messages[loop.index0 - 1].tool_calls[0].function.name }}
{{- ' to=assistant<|channel|>commentary<|message|>' ~ m.content ~ '<|end|>' }}
{%- else %}{{ '<|start|>' ~ ('developer' if m.role == 'system' else m.role) ~ '<|message|>' ~ m.content ~ '<|end|>' }}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""
CHANNELS = (
    "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>", "<|endoftext|>",
)  # fmt: skip
THOUGHT, FINAL = "<|channel|>analysis<|message|>3+4 is 7<|end|><|start|>assistant", "<|channel|>final<|message|>"

MISTRAL = """\
{{- bos_token }}
{%- if tools %}{{ '[AVAILABLE_TOOLS]' ~ tools | tojson ~ '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'system' %}{{ '[SYSTEM_PROMPT]' ~ m.content ~ '[/SYSTEM_PROMPT]' }}
{%- elif m.role == 'user' %}{{ '[INST]' ~ m.content ~ '[/INST]' }}
{%- elif m.role == 'tool' %}
{%- if m.tool_call_id | length != 9 %}{{ raise_exception('an id of a call has nine characters') }}{% endif %}
{{- '[TOOL_RESULTS]' ~ m.tool_call_id ~ '[TOOL_CONTENT]' ~ m.content ~ '[/TOOL_RESULTS]' }}
{%- else %}{{ m.content }}{% for call in m.tool_calls or [] %}{{ '[TOOL_CALLS]' ~ call.function.name }}{% endfor %}
{{- eos_token }}{% endif %}
{%- endfor %}"""
BRACKETS = (
    "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_CALLS]", "[TOOL_CONTENT]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[THINK]", "[/THINK]",
)  # fmt: skip

SMOL = """\
{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}
{%- set told = messages[0].content if messages[0].role == 'system' else '' %}
{%- if '/no_think' in told %}{% set enable_thinking = false %}{% endif %}
{{- '<|im_start|>system\\nReasoning: ' ~ ('/think' if enable_thinking else '/no_think') ~ '\\n' }}
{{- told.replace('/no_think', '') ~ (tools | tojson if tools else '') ~ '<|im_end|>\\n' }}
{%- for m in messages if m.role != 'system' %}
{%- if m.role == 'tool' %}{{ '<|im_start|>user\\n<tool_response>' ~ m.content ~ '</tool_response><|im_end|>\\n' }}
{%- elif m.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' ~ ('' if enable_thinking else '<think>\\n\\n</think>\\n') }}
{%- generation %}{{ m.content ~ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- else %}{{ '<|im_start|>user\\n' ~ m.content ~ '<|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' ~ ('' if enable_thinking else '<think>\\n\\n</think>\\n') }}{% endif %}"""
SMOL_TURN = "\n<|im_start|>user\n<tool_response>42</tool_response><|im_end|>\n<|im_start|>assistant\n"

THINKING = (
    ("<think>\n3+4 is 7\n</think>\n\n7", "3+4 is 7", "7"),
    ("<think>it is 7", "it is 7", None),
    ("<think>a</think>8<think>b", "a</think>8<think>b", None),
    ("<think>a<think>b</think>c</think>7", "a<think>b</think>c", "7"),
    ("<think>a</think>8\n<think>b</think> 7", "a</think>8\n<think>b", "7"),
    ("<think></think>\n\n  7", "", "  7"),
    (" 7\n", "", " 7\n"),
    ("", "", ""),
)
SHAPES = {
    "qwen3": Shape(
        QWEN,
        IM,
        "<|im_start|>user\n3+4?<|im_end|>\n<|im_start|>assistant\n",
        ("<|im_end|>", "<|endoftext|>"),
        "<|im_end|>",
        THINKING,
        QWEN_TURN,
        plain=THINK,
        named={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        declared=("<|im_end|>", "<|endoftext|>"),
    ),
    "qwen3, thinking off": Shape(
        QWEN,
        IM,
        "<|im_start|>user\n3+4?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ("<|im_end|>", "<|endoftext|>"),
        "<|im_end|>",
        (("it is 7", "", "it is 7"), ("7\n\n8", "", "7\n\n8"), ("<think>it is 7", "it is 7", None)),
        f"{QWEN_TURN}<think>\n\n</think>\n\n",
        plain=THINK,
        named={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        declared=("<|im_end|>", "<|endoftext|>"),
        arguments={"enable_thinking": False},
    ),
    "qwen3, base": Shape(  # neither tokenizer nor generation config names the end of a turn
        QWEN,
        IM,
        "<|im_start|>user\n3+4?<|im_end|>\n<|im_start|>assistant\n",
        ("<|im_end|>", "<|endoftext|>"),
        "<|im_end|>",
        THINKING,
        QWEN_TURN,
        plain=THINK,
        named={"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        declared=("<|endoftext|>",),
    ),
    "llama3.1": Shape(
        LLAMA,
        HEADERS,
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n3+4?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        (("7", "", "7"), ("<|python_tag|>look()", "", "<|python_tag|>look()"), ("<think>so</think>\n7", "so", "7")),
        "<|start_header_id|>ipython<|end_header_id|>\n\n42<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        named={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        declared=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    ),
    "gemma3": Shape(
        GEMMA,
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        "<bos><start_of_turn>user\n3+4?<end_of_turn>\n<start_of_turn>model\n",
        ("<eos>", "<end_of_turn>"),
        "<end_of_turn>",
        (("7\n", "", "7\n"), ("put it into <think> tags", "", "put it into <think> tags")),
        None,
        plain=("\n\n", "<b>", "</b>"),
        named={"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        declared=("<eos>", "<end_of_turn>"),
    ),
    "deepseek-v3": Shape(
        DEEPSEEK,
        (BEGIN, END, USER, ASSISTANT, OUTPUT, OUTPUT_END),
        f"{BEGIN}{USER}3+4?{ASSISTANT}</think>",
        (END,),
        END,
        (("it is 7", "", "it is 7"),),
        f"{OUTPUT}42{OUTPUT_END}",
        plain=("<think>", "</think>"),
        named={"bos_token": BEGIN, "eos_token": END},
    ),
    "deepseek-v3, thinking": Shape(
        DEEPSEEK,
        (BEGIN, END, USER, ASSISTANT, OUTPUT, OUTPUT_END),
        f"{BEGIN}{USER}3+4?{ASSISTANT}<think>",
        (END,),
        END,
        (
            ("3+4 is 7</think>7", "3+4 is 7", "7"),
            ("it is 7", "it is 7", None),
            ("<think>\nso\n</think>\n\n7", "so", "7"),
            ("</think>7", "", "7"),
        ),
        f"{OUTPUT}42{OUTPUT_END}",
        plain=("<think>", "</think>"),
        named={"bos_token": BEGIN, "eos_token": END},
        arguments={"thinking": True},
        demonstration="</think>\n\n{}",
    ),
    "gpt-oss": Shape(
        HARMONY,
        CHANNELS,
        "<|start|>system<|message|>Reasoning: low<|end|><|start|>user<|message|>3+4?<|end|><|start|>assistant",
        ("<|return|>", "<|call|>", "<|endoftext|>"),
        "<|return|>",
        (
            (f"{THOUGHT}{FINAL}7", "3+4 is 7", "7"),
            (f"{FINAL}7", "", "7"),
            ("<|channel|>analysis<|message|>it is 7", "it is 7", None),
            (f"{THOUGHT}{FINAL}8<|end|><|start|>assistant<|channel|>analysis<|message|>no", "3+4 is 7\nno", None),
            (f"<|channel|>commentary<|message|>I look.<|end|><|start|>assistant{FINAL}7", "I look.", "7"),
            (
                f"{THOUGHT}<|channel|>commentary to=functions.look <|constrain|>json<|message|>{{}}",
                "3+4 is 7\n{}",
                None,
            ),
            ("it is 7", "", None),
        ),
        "<|start|>functions.look to=assistant<|channel|>commentary<|message|>42<|end|><|start|>assistant",
        named={"eos_token": "<|return|>", "pad_token": "<|endoftext|>"},
        declared=("<|return|>", "<|endoftext|>", "<|call|>"),
        arguments={"reasoning_effort": "low"},
        demonstration=f"{FINAL}{{}}",
    ),
    "mistral": Shape(
        MISTRAL,
        BRACKETS,
        "<s>[INST]3+4?[/INST]",
        ("</s>",),
        "</s>",
        (
            ("[THINK]3+4 is 7[/THINK]7", "3+4 is 7", "7"),
            ("[THINK]it is 7", "it is 7", None),
            ("[TOOL_CALLS]look", "", "[TOOL_CALLS]look"),
            ("7 and é", "", "7 and é"),
        ),
        "[TOOL_RESULTS]call00000[TOOL_CONTENT]42[/TOOL_RESULTS]",
        named={"bos_token": "<s>", "eos_token": "</s>"},
        spaced=True,
    ),
    "smollm3": Shape(
        SMOL,
        IM,
        "<|im_start|>system\nReasoning: /think\n<|im_end|>\n<|im_start|>user\n3+4?<|im_end|>\n<|im_start|>assistant\n",
        ("<|im_end|>",),
        "<|im_end|>",
        THINKING,
        SMOL_TURN,
        plain=THINK,
        named={"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
    ),
}

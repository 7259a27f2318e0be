"""Spoilt checkpoints and chat templates, as a teacher's and as the student's, and unusual ones that are fine."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from benchmarks.cases import Case, Place, finite
from onepolicy.config import ScratchConfig
from onepolicy.models import save_model
from onepolicy.tiny import CHAT_TEMPLATE, from_scratch
from tests.runs import ARCHITECTURE, SCRATCH

Spoil = Callable[[Path], Any]
WEIGHTS = "model.safetensors"
NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
MARK = "executed"  # what code that comes with a checkpoint would leave behind


# -- how ---------------------------------------------------------------------------------------------------------------


def write(file: str, content: str | bytes) -> Spoil:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / file).write_bytes(data)


def edit(file: str, **changes: Any) -> Spoil:
    """A JSON file with other values; None removes a key."""

    def change(folder: Path) -> None:
        path = folder / file
        fields = (json.loads(path.read_text()) if path.is_file() else {}) | changes
        path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))

    return change


def cut(file: str, to: float) -> Spoil:
    """The first part of a file."""

    def change(folder: Path) -> None:
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: int(len(data) * to)])

    return change


def without(*files: str) -> Spoil:
    def change(folder: Path) -> None:
        for name in files:
            (folder / name).unlink()

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Spoil:
    """A weights file whose tensors have been changed in place."""

    def spoil(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS, {"format": "pt"})

    return spoil


def put(name: str, value: float) -> Spoil:
    """One number of a tensor."""
    return tensors(lambda found: found[name].view(-1).__setitem__(1, value))


def template(text: str | bytes) -> Spoil:
    return write("chat_template.jinja", text)


def index(places: dict[str, Any] | None, sharded: bool = True) -> Spoil:
    """One shard and an index; `places` replaces entries of it (None: no weight_map at all)."""

    def change(folder: Path) -> None:
        names = list(load_file(folder / WEIGHTS))
        shard = "model-00001-of-00001.safetensors"
        (folder / WEIGHTS).rename(folder / shard)
        weight_map = {name: shard for name in names} | (places or {})
        text = {"metadata": {}} if places is None else {"metadata": {}, "weight_map": weight_map}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(text))

    return change


def outside(folder: Path) -> None:
    """An index whose shard lies beside the folder, and is there."""
    shutil.copy(folder / WEIGHTS, folder.parent / "elsewhere.safetensors")
    index({NORM: "../elsewhere.safetensors"})(folder)


def outside_absolutely(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder.parent / "elsewhere.safetensors")
    index({NORM: str(folder.parent / "elsewhere.safetensors")})(folder)


def two_shards(folder: Path) -> None:
    found = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    parts = {f"model-0000{n}-of-00002.safetensors": dict(list(found.items())[n - 1 :: 2]) for n in (1, 2)}
    for name, part in parts.items():
        save_file(part, folder / name, {"format": "pt"})
    weight_map = {tensor: name for name, part in parts.items() for tensor in part}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def adapter(folder: Path) -> None:
    emptied(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    save_file({"lora_A": torch.zeros(2)}, folder / "adapter_model.safetensors")


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def as_folder(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def as_pipe(file: str) -> Spoil:
    def change(folder: Path) -> None:
        (folder / file).unlink()
        os.mkfifo(folder / file)

    return change


def dangling(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / "nowhere")


def as_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("a model")


def other(alphabet: str = SCRATCH["alphabet"], **architecture: Any) -> Spoil:
    """Another model in its place, whole in itself."""

    def change(folder: Path) -> None:
        shutil.rmtree(folder)
        config = ScratchConfig(architecture=ARCHITECTURE | architecture, alphabet=alphabet)
        save_model(*from_scratch(config, 1), folder)

    return change


def with_code(folder: Path) -> None:
    """Code of its own that would leave a file behind."""
    (folder / "modeling_evil.py").write_text(f"open({str(folder.parent / MARK)!r}, 'w').close()\n")
    edit("config.json", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.C"})(
        folder
    )
    edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_evil.T", None]})(folder)


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


def header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def grown(folder: Path) -> None:
    """Embeddings with rows beyond the tokenizer, as padding adds them."""
    found = load_file(folder / WEIGHTS)
    found[EMBEDDING] = torch.cat([found[EMBEDDING], torch.zeros(5, found[EMBEDDING].shape[1])])
    save_file(found, folder / WEIGHTS, {"format": "pt"})
    edit("config.json", vocab_size=len(found[EMBEDDING]))(folder)


def in_dtype(dtype: torch.dtype) -> Spoil:
    def change(found: dict[str, torch.Tensor]) -> None:
        for name in found:
            found[name] = found[name].to(dtype)

    return tensors(change)


def added_token(folder: Path) -> None:
    """A token of the tokenizer's that has no row in the embeddings."""
    data = json.loads((folder / "tokenizer.json").read_text())
    data["added_tokens"].append(data["added_tokens"][0] | {"id": 200, "content": "<extra>"})
    (folder / "tokenizer.json").write_text(json.dumps(data))


# -- what --------------------------------------------------------------------------------------------------------------


class Fault(NamedTuple):
    """`names` is in the error line, beside whose checkpoint it is."""

    spoil: Spoil
    names: tuple[str, ...]
    short: bool = False


FAULTS: dict[str, Fault] = {
    # files of weights
    "weights cut in half": Fault(cut(WEIGHTS, 0.5), (WEIGHTS,), True),
    "weights cut by a few bytes": Fault(cut(WEIGHTS, 0.999), (WEIGHTS,)),
    "weights of 0 bytes": Fault(cut(WEIGHTS, 0), (WEIGHTS,)),
    "weights of 4 bytes": Fault(write(WEIGHTS, b"abcd"), (WEIGHTS,)),
    "header of 2**63 bytes": Fault(write(WEIGHTS, b"\xff" * 7 + b"\x7f{}"), (WEIGHTS,)),
    "header that is no JSON": Fault(write(WEIGHTS, header(b"{nothing}")), (WEIGHTS,)),
    "header with offsets beyond the end": Fault(
        write(WEIGHTS, header(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}')), (WEIGHTS,)
    ),
    "LFS pointer": Fault(
        write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"), ("LFS", WEIGHTS), True
    ),
    "weights that are a folder": Fault(as_folder, (WEIGHTS,)),
    "weights that are a broken link": Fault(dangling, (WEIGHTS,)),
    "weights that are a pipe": Fault(as_pipe(WEIGHTS), (WEIGHTS,)),
    "pytorch_model.bin": Fault(pickled, ("pytorch_model.bin",), True),
    "GGUF": Fault(lambda folder: (folder / WEIGHTS).rename(folder / "model.gguf"), ("gguf",)),
    "PEFT folder": Fault(adapter, ("adapter",)),
    "empty folder": Fault(emptied, ("config.json",)),
    "no folder": Fault(shutil.rmtree, ("spoilt",)),
    "a file in the folder's place": Fault(as_file, ("spoilt",)),
    # indices
    "index of a missing shard": Fault(index({NORM: "model-00002-of-00002.safetensors"}), ("model-00002-of",)),
    "index that points outside": Fault(outside, ("../elsewhere.safetensors",)),
    "index that points outside absolutely": Fault(outside_absolutely, ("elsewhere.safetensors",)),
    "index without weight_map": Fault(index(None), ("weight_map",)),
    "index with numbers for files": Fault(index({NORM: 3}), ("index.json",)),
    "index that is no JSON": Fault(write(f"{WEIGHTS}.index.json", "{"), ("index.json",)),
    "index with a tensor that no file has": Fault(
        index({"model.layers.9.x": "model-00001-of-00001.safetensors"}), ("model.layers.9.x",)
    ),
    # tensors
    "NaN": Fault(put(NORM, float("nan")), (NORM,), True),
    "infinity": Fault(put(EMBEDDING, float("inf")), (EMBEDDING,)),
    "missing tensor": Fault(tensors(lambda found: found.pop(DOWN)), (DOWN,)),
    "missing layers": Fault(
        edit("config.json", num_hidden_layers=2, layer_types=["full_attention"] * 2), ("layers.1",)
    ),
    "unexpected tensor": Fault(
        tensors(lambda found: found.__setitem__("model.layers.7.mlp.up_proj.weight", torch.ones(2, 2))),
        ("model.layers.7.mlp.up_proj.weight",),
    ),
    "fewer layers than are stored": Fault(
        lambda folder: (
            other(num_hidden_layers=2)(folder),
            edit("config.json", num_hidden_layers=1, layer_types=["full_attention"])(folder),
        ),
        ("layers.1",),
    ),
    "missing embedding": Fault(
        tensors(lambda found: found.pop(EMBEDDING)), ("is in no file of",)
    ),  # the head is tied to it
    "no tensors at all": Fault(tensors(lambda found: found.clear()), ("tensor",)),
    "wrong shape": Fault(tensors(lambda found: found.__setitem__(NORM, torch.ones(8))), (NORM,)),
    "transposed": Fault(tensors(lambda found: found.__setitem__(DOWN, found[DOWN].t().contiguous())), (DOWN,)),
    "float8": Fault(tensors(lambda found: found.__setitem__(NORM, found[NORM].to(torch.float8_e4m3fn))), (NORM,)),
    "int8": Fault(tensors(lambda found: found.__setitem__(DOWN, found[DOWN].to(torch.int8))), (DOWN,)),
    "complex": Fault(tensors(lambda found: found.__setitem__(DOWN, found[DOWN].to(torch.complex64))), (DOWN,)),
    # configurations
    "no config.json": Fault(without("config.json"), ("config.json",)),
    "config.json broken": Fault(write("config.json", '{"model_type": "qwen3",'), ("config.json",), True),
    "config.json a list": Fault(write("config.json", "[]"), ("config.json",)),
    "config.json not UTF-8": Fault(write("config.json", b'{"model_type": "qwen3\xff"}'), ("config.json",)),
    "config.json nested 10,000 deep": Fault(write("config.json", nested(10_000)), ("config.json",)),
    "config.json a pipe": Fault(as_pipe("config.json"), ("config.json",)),
    "model_type unknown": Fault(edit("config.json", model_type="qwen9"), ("qwen9",)),
    "model_type a list": Fault(edit("config.json", model_type=["qwen3"]), ("model_type",)),
    "model_type no decoder": Fault(edit("config.json", model_type="t5"), ("t5",)),
    "quantised": Fault(edit("config.json", quantization_config={"quant_method": "gptq"}), ("gptq",)),
    "hidden_size a word": Fault(edit("config.json", hidden_size="big"), ("hidden_size",)),
    "hidden_size another": Fault(edit("config.json", hidden_size=32), ("config.json",)),
    "hidden_size negative": Fault(edit("config.json", hidden_size=-16), ("config.json",)),
    "heads that do not divide": Fault(edit("config.json", num_key_value_heads=3), ("config.json",)),
    "layers 10 million": Fault(edit("config.json", num_hidden_layers=10_000_000, layer_types=None), ("config.json",)),
    "vocabulary too small": Fault(other(vocab_size=30), ("30",)),
    "context too short": Fault(edit("config.json", max_position_embeddings=6), ("6",)),
    "generation_config.json broken": Fault(write("generation_config.json", "{"), ("generation_config.json",)),
    "end token outside the vocabulary": Fault(edit("generation_config.json", eos_token_id=99_999), ("99999",)),
    "end token negative": Fault(edit("generation_config.json", eos_token_id=-3), ("-3",)),
    "end token a word": Fault(edit("generation_config.json", eos_token_id="1"), ("eos_token_id",)),
    "temperature a word": Fault(edit("generation_config.json", temperature="hot"), ("temperature",)),
    # tokenizers and templates
    "no tokenizer": Fault(without("tokenizer.json"), ("tokenizer",)),
    "tokenizer cut": Fault(cut("tokenizer.json", 0.5), ("tokenizer",)),
    "tokenizer an LFS pointer": Fault(
        write("tokenizer.json", "version https://git-lfs.github.com/spec/v1\n"), ("tok",)
    ),
    "tokenizer_config.json broken": Fault(write("tokenizer_config.json", "{"), ("tokenizer",)),
    "tokenizer with a token beyond the embeddings": Fault(added_token, ("tok",)),
    "template that cannot be parsed": Fault(
        template("{% for message in messages %}{{ message.content }"), ("unexpected '}'",)
    ),
    "template that raises": Fault(template("{{ raise_exception('no such chat') }}"), ("no such chat",)),
    "template that divides by zero": Fault(template("{{ 1 // 0 }}"), ("template",)),
    "template without an end": Fault(template("{% for i in range(10**10) %}{% endfor %}"), ("template",)),
    "template that calls itself": Fault(template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), ("template",)),
    "template of gigabytes": Fault(template("{{ 'ab' * 10**10 }}"), ("template",)),
    "template not UTF-8": Fault(template(b"\xff\xfe{{ messages }}"), ("utf-8",)),
    "template that calls a number": Fault(template("{{ messages.upper() }}"), ("has no attribute 'upper'",)),
}
TEACHERS: dict[str, Fault] = {
    "other tokenizer": Fault(other("ba" + SCRATCH["alphabet"][2:]), ("tokenizer", "'a'"), True),
    "more tokens": Fault(other(SCRATCH["alphabet"] + "!"), ("tokenizer", "'!'")),
    "fewer tokens": Fault(other(SCRATCH["alphabet"][:-1]), ("tokenizer",)),
    "other template": Fault(template(CHAT_TEMPLATE.replace("}>{{", "}>:{{")), ("renders a chat",), True),
    "no template": Fault(without("chat_template.jinja"), ("renders a chat",)),
    "other end tokens": Fault(edit("generation_config.json", eos_token_id=[1, 3]), ("[1, 3]",)),
}
STUDENTS: dict[str, Fault] = {
    "template that renders nothing": Fault(template("{{ '' }}"), ("the prompt is empty|does not show it",)),
    "template that leaves the user out": Fault(
        template("{% if add_generation_prompt %}<assistant>{% endif %}"), ("template",)
    ),
    "template that asks for a variable": Fault(template("{{ undefined_thing.name }}"), ("undefined_thing",)),
    "template that wants an object": Fault(
        template("{{ messages[0].content.text.upper() }}"), ("has no attribute 'text'",)
    ),
}


def teacher(spoil: Spoil, place: Place) -> list[str]:
    folder = place.copy("teacher-early")
    spoil(folder)
    teachers = {"early": str(folder), "late": str(place.models / "teacher-late")}
    return place.run(place.settings("mopd", teachers=teachers))


def student(spoil: Spoil, place: Place, recipe: str = "rlvr", **changes: Any) -> list[str]:
    folder = place.copy("origin")
    spoil(folder)
    return place.run(place.settings(recipe, model=str(folder), **changes))


def result(place: Place) -> dict[str, torch.Tensor]:
    return load_file(place.output / "model" / WEIGHTS)


def runs_no_code(place: Place) -> str:
    return "code from the checkpoint was executed" if (place.folder / MARK).exists() else finite(place)


def in_bfloat16(place: Place) -> str:
    """The student goes back in the dtype that it came in."""
    dtypes = {str(tensor.dtype) for tensor in result(place).values()}
    return finite(place) if dtypes == {"torch.bfloat16"} else f"the result is in {', '.join(dtypes)}"


FINE: dict[str, tuple[Spoil, Callable[[Place], str]]] = {
    "as it is": (lambda folder: None, finite),
    "two shards": (two_shards, finite),
    "bfloat16": (in_dtype(torch.bfloat16), finite),
    "float16": (in_dtype(torch.float16), finite),
    "float64": (in_dtype(torch.float64), finite),
    "padded vocabulary": (grown, finite),
    "a copy in another format beside it": (
        lambda folder: shutil.copy(folder / WEIGHTS, folder / "consolidated.safetensors"),
        finite,
    ),
    "template written otherwise": (template("{# the same #}" + CHAT_TEMPLATE), finite),
    "code that comes with it": (with_code, runs_no_code),
    "no generation_config.json": (without("generation_config.json"), finite),
}

CASES: dict[str, list[Case]] = {
    "teachers": [
        *(
            Case(name, partial(teacher, fault.spoil), ("teacher 'early'|/spoilt", *fault.names), short=fault.short)
            for name, fault in (FAULTS | TEACHERS).items()
        ),
        *(
            Case(f"fine: {name}", partial(teacher, spoil), outcome="finished", check=check, short=name == "two shards")
            for name, (spoil, check) in FINE.items()
        ),
    ],
    "students": [
        *(
            Case(name, partial(student, fault.spoil), fault.names, short=fault.short and number % 2 == 0)
            for number, (name, fault) in enumerate((FAULTS | STUDENTS).items())
        ),
        Case(
            "template that refuses a system message",
            partial(
                student,
                template(
                    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT_TEMPLATE
                ),
                system_prompt="be brief",
            ),
            ("no system",),
        ),
        Case(
            "template that forgets the system message",
            partial(
                student,
                template(CHAT_TEMPLATE.replace("messages %}", "messages if message.role == 'user' %}")),
                system_prompt="be",
            ),
            ("system",),
        ),
        *(
            Case(
                f"fine: {name}",
                partial(student, spoil),
                outcome="finished",
                check=in_bfloat16 if name == "bfloat16" else check,
            )
            for name, (spoil, check) in (FINE | {"no template": (without("chat_template.jinja"), finite)}).items()
        ),
    ],
}

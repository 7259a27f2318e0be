"""Bad configurations, names, checkpoints, tokenizers, templates and chats: each ends in one line that says where."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from onepolicy import run
from onepolicy.checkpoints import check_checkpoint
from onepolicy.cli import main
from onepolicy.config import ConfigError, MergeConfig, ModelConfig, StudyConfig, load_run, parse_run
from onepolicy.config.names import MAX_NAME
from onepolicy.engines.text import Renderer
from onepolicy.mergeinputs import Inputs
from onepolicy.models import load_model, load_tokenizer, read_model, text_settings
from onepolicy.types import Task
from tests.runs import DOMAINS, run_of, settings
from tests.tiny_models import build, store

WHO = "teacher 'math'"


# --- Configuration files ---------------------------------------------------------------------------------------------

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS: dict[str, tuple[str | bytes, str]] = {
    "aliases": (BOMB, r"FILE cannot be read as YAML, line 5, column 4: more than 20,000 keys and values, aliases put"),
    "itself": ("a: &a [*a]\n", r"FILE cannot be read as YAML, line 1, column 4: an alias \(\*\) is within its own"),
    "keys": (
        "".join(f"k{i}: {i}\n" for i in range(100_000)),
        r"FILE cannot be read as YAML, line 1, column 1: more than 20,000 keys|FILE is longer than 1,048,576 bytes",
    ),
    "long": (b"#" * 2_000_000, r"FILE is longer than 1,048,576 bytes"),
    "nested": ("a: " + "[" * 10_000, r"FILE cannot be read as YAML, line 1, column 43: nested deeper than 40 levels"),
    "blocks": ("".join(" " * i + "a:\n" for i in range(500)), r"FILE .* line 40, column 40: nested deeper than 40"),
    "tabs": (
        "recipe:\tmopd\n\tsteps: 1\n",
        r"FILE cannot be read as YAML, line 1, column 8: .*'\\t' that cannot start",
    ),
    "binary": (b"\x00\x01", r"FILE cannot be read as YAML: unacceptable character #x0000"),
    "utf-16": ("recipe: mopd".encode("utf-16"), r"FILE is not text in UTF-8: .* byte 0xff in position 0"),
    "digits": ("steps: " + "9" * 5000, r"FILE cannot be read as YAML: Exceeds the limit"),
    "list as key": ("? [a, b]\n: 1\n", r"FILE cannot be read as YAML, line 1, column 3: a key is a text or a number"),
    "python": ("a: !!python/object/apply:os.getpid []\n", r"FILE cannot be read as YAML, line 1, column 4: could not"),
    "empty": ("", r"FILE holds no mapping at its top level"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_that_is_no_configuration_is_named_in_a_line(name: str, tmp_path: Path) -> None:
    text, message = TEXTS[name]
    file = tmp_path / "run.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_run(file)
    assert re.match(message.replace("FILE", re.escape(str(file))), str(caught.value)), caught.value
    assert "\n" not in str(caught.value) and time.process_time() - began < 5


def test_what_is_no_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path / "pipe", "is no ordinary file"), (Path("/dev/zero"), "is no ordinary file")):
        with pytest.raises(ConfigError, match=f"^{re.escape(str(path))} {what}: give a run's YAML file"):
            load_run(path)
    with pytest.raises(ConfigError, match=r"^no such file: .*/config\.yaml: give a run's YAML file, or a run folder"):
        load_run(tmp_path)
    monkeypatch.setattr(sys, "argv", ["onepolicy", "run", str(tmp_path / "pipe")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path / 'pipe'} is no ordinary file: give a run's YAML file, or a run folder\n"
    )


def test_of_very_many_faults_the_first_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run_of("rlvr", tmp_path, **{f"key{i}": 0 for i in range(100)})
    lines = str(caught.value).splitlines()
    assert len(lines) == 21 and lines[-1] == "… and 80 more" and lines[0].startswith("key0: unknown key")


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize(
    ("place", "changes"),
    [
        ("optim.learning_rate", lambda x: {"optim": {"learning_rate": x}}),
        ("rollout.temperature", lambda x: {"rollout": {"temperature": x}}),
        ("eval.temperature", lambda x: {"eval": {"temperature": x}}),
        ("turn_weight", lambda x: {"turn_weight": x}),
        ("domains.early.share", lambda x: {"domains": {"early": {**DOMAINS["early"], "share": x}}}),
        ("model.chat_template_kwargs", lambda x: {"model": {"path": "m", "chat_template_kwargs": {"a": [x]}}}),
        ("domains.early.tasks", lambda x: {"domains": {"early": {"tasks": {"kind": "custom", "options": {"a": x}}}}}),
    ],
)
def test_no_number_is_infinite_or_nan(
    place: str, changes: Callable[[float], Any], value: float, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(place)}: .*finite number"):
        run_of("rlvr", tmp_path, **changes(value))


# --- Names -----------------------------------------------------------------------------------------------------------

BAD_NAMES = [
    "",
    "a/b",
    "a<b",
    "a,b",
    "a b",
    " a",
    "a\n",
    ".a",
    "..",
    "ä",
    "a:b",
    "a=b",
    "a*",
    "x" * (MAX_NAME + 1),
    "a\0",
]
GOOD_NAMES = ["a", "A-1", "code_v1.5", "-", "x" * MAX_NAME, "reward", "mean"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_is_refused_in_every_recipe_and_study(name: str, tmp_path: Path) -> None:
    domain = DOMAINS["early"]
    for recipe in ("sft", "rlvr", "mix_rl", "copd"):
        with pytest.raises(ConfigError, match=r"^domains\..*: .* is no name: files and metrics are named after it"):
            run_of(recipe, tmp_path, domains={name: domain})
    for recipe, changes in (("mopd", {}), ("offpolicy", {})):
        with pytest.raises(ConfigError, match=r"^teachers\..* is no name"):
            run_of(recipe, tmp_path, teachers={name: {"model": "m", "domains": ["early", "late"]}}, **changes)
    merge = {"recipe": "merge", "output": "o", "base": "m", "method": "average"}
    with pytest.raises(ConfigError, match=r"^models\..* is no name"):
        parse_run({**merge, "models": {name: "m"}})
    study: dict[str, Any] = {"output": "o", "seeds": [0], "origin": "m", "reference_arm": "a"}
    with pytest.raises(ValueError, match="is no name"):
        StudyConfig.model_validate({**study, "domains": DOMAINS, "arms": {"a": {}, name: {"recipe": "copd"}}})
    with pytest.raises(ValueError, match="is no name"):
        StudyConfig.model_validate({**study, "domains": {name: domain}, "arms": {"a": {"recipe": "copd"}}})


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_good_name_is_taken(name: str, tmp_path: Path) -> None:
    assert list(run_of("rlvr", tmp_path, domains={name: DOMAINS["early"]}).domains) == [name]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("Math", "math"), "'Math' and 'math' differ only in upper and lower case"),
        (("math", "math.log"), r"'math\.log' is a file of 'math'"),
        (("origin", "math"), "a domain cannot be named 'origin': metrics compare domains with the origin"),
        (("math", "Teacher"), "a domain cannot be named 'Teacher'"),
    ],
)
def test_names_that_would_share_a_file_or_a_metric_are_refused(
    names: tuple[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_of("copd", tmp_path, domains=dict.fromkeys(names, DOMAINS["early"]))
    if "domain" not in message:
        teachers = {name: {"model": "m", "domains": [domain]} for name, domain in zip(names, DOMAINS, strict=True)}
        with pytest.raises(ConfigError, match=message):
            run_of("mopd", tmp_path, teachers=teachers)
        with pytest.raises(ConfigError, match=message):
            parse_run(
                {
                    "recipe": "merge",
                    "output": "o",
                    "base": "m",
                    "method": "average",
                    "models": dict.fromkeys(names, "m"),
                }
            )


def test_no_two_metrics_have_one_key() -> None:
    """A key is `metric`, `metric/domain` or `metric/domain<other`, and no name has the characters that part them."""
    metrics = ["reward", "reward_p99", "token_share", "overlap"]
    names = [*GOOD_NAMES, "reward.a", "a.reward", "p99", "_p99", "share"]
    keys = [*metrics, *(f"{metric}/{name}" for metric in metrics for name in names)]
    keys += [f"{metric}/{a}<{b}" for metric in metrics for a in names for b in [*names, "origin", "teacher"]]
    assert len(set(keys)) == len(keys)


# --- Checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("loading") / "good")


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "expert"))


WEIGHTS, UP = "model.safetensors", "model.layers.1.mlp.up_proj.weight"


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS, metadata={"format": "pt"})

    return apply


def indexed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "a.safetensors")
        places: dict[str, Any] = dict.fromkeys(load_file(folder / "a.safetensors"), "a.safetensors")
        change(places)
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": places}))

    return apply


def edit(file: str, **changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))

    return apply


def written(file: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(data) and None


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:3000])


def both(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "kept")
    indexed(dict)(folder)
    (folder / "kept").rename(folder / WEIGHTS)


def half_the_layers(found: dict[str, torch.Tensor]) -> None:
    for name in [name for name in found if ".layers.1." in name]:
        del found[name]


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (tensors(lambda found: found.pop(UP)), rf"tensor '{UP}' is in no file of PATH \(1 missing in all\)"),
    "half": (tensors(half_the_layers), r"tensor 'model\.layers\.1\..*' is in no file of PATH \(11 missing in all\)"),
    "more": (
        tensors(lambda found: found.update({"model.layers.2.extra": torch.ones(2)})),
        r"Qwen3ForCausalLM has no tensor 'model\.layers\.2\.extra', which is in PATH \(1 in all\)",
    ),
    "fewer layers": (edit("config.json", num_hidden_layers=1, layer_types=None), r"has no tensor 'model\.layers\.1\."),
    "shape": (
        tensors(lambda found: found.update({UP: found[UP][:7].clone()})),
        rf"tensor '{UP}' in PATH has the shape \[7, 32\], and its config\.json asks for \[48, 32\]",
    ),
    "integers": (tensors(lambda found: found.update({UP: found[UP].int()})), rf"tensor '{UP}' in .* is int32, and wei"),
    "up": (
        indexed(lambda places: places.update({UP: "../a.safetensors"})),
        r"tensor '.*' in '\.\./a\.safet.*no file of",
    ),
    "absolute": (indexed(lambda places: places.update({UP: "/etc/passwd"})), r"tensor '.*' in '/etc/passwd', which is"),
    "number": (indexed(lambda places: places.update({UP: 3})), r"tensor '.*' in 3, which is no file of this folder"),
    "no such file": (
        indexed(lambda places: places.update({UP: "b"})),
        r"b is missing in PATH \(1 of 2 files that mode",
    ),
    "not held": (
        indexed(lambda places: places.update(gone="a.safetensors")),
        r"tensor 'gone' is not in PATH/a\.safete",
    ),
    "both": (both, r"PATH holds both model\.safetensors and model\.safetensors\.index\.json, two sets of weights"),
    "truncated": (cut, r"PATH/model\.safetensors is torn \("),
    "empty": (written(WEIGHTS, b""), r"PATH/model\.safetensors is torn \("),
    "garbage": (written(WEIGHTS, b"\xff" * 64), r"PATH/model\.safetensors is torn \("),
    "header": (written(WEIGHTS, (8).to_bytes(8, "little") + b"{not js}"), r"PATH/model\.safetensors is torn \("),
    "pointer": (
        written(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        r"is a Git LFS pointer",
    ),
    "nested": (written("config.json", b"[" * 10_000), r"PATH/config\.json is not valid JSON: maximum recursion depth"),
    "zero": (written("config.json", b""), r"PATH/config\.json is not valid JSON"),
    "layers": (
        edit("config.json", num_hidden_layers=10**9),
        r"num_hidden_layers is 1,000,000,000 in PATH/config\.json",
    ),
    "text_config": (edit("config.json", text_config=[1]), r"text_config in PATH/config\.json holds list"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_checkpoint_that_is_not_whole_is_refused_before_its_weights_are_read(name: str, folder: Path) -> None:
    check_checkpoint(ModelConfig(path=str(folder)), WHO)
    change, message = FAULTS[name]
    change(folder)
    with pytest.raises(ValueError) as caught:
        check_checkpoint(ModelConfig(path=str(folder)), WHO)
    assert re.search(message.replace("PATH", re.escape(str(folder))), str(caught.value)), caught.value
    assert str(caught.value).startswith(f"{WHO}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing", "more"])
@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_what_headers_cannot_tell_is_found_when_the_weights_are_read(name: str, kind: str, tmp_path: Path) -> None:
    folder = store(tmp_path / "m", kind)
    key = next(key for key in load_file(folder / WEIGHTS) if ".layers.1." in key and ".mlp." in key)
    changes = {"missing": lambda found: found.pop(key), "more": lambda found: found.update(extra=torch.ones(2))}
    tensors(changes[name])(folder)
    with pytest.raises(
        ValueError, match=r"^teacher 'math': (tensor '.*' (is in no file of|in .* has the shape)|.* no tensor 'extra')"
    ):
        read_model(folder, torch.float32, None, WHO)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "h.0.attn.masked_bias",
        "h.0.attn.bias",
    ],
)
def test_buffers_that_older_checkpoints_carry_are_no_fault(name: str, folder: Path) -> None:
    before = load_model(ModelConfig(path=str(folder)))[0].state_dict()
    tensors(lambda found: found.update({name: torch.ones(4)}))(folder)
    assert check_checkpoint(ModelConfig(path=str(folder)), WHO) == folder
    after = load_model(ModelConfig(path=str(folder)))[0].state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_integers_beside_the_weights_are_told_of_and_left_out(folder: Path, capsys: Any) -> None:
    tensors(lambda found: found.update({"model.counter": torch.tensor([7])}))(folder)
    check_checkpoint(ModelConfig(path=str(folder)), WHO)
    assert "model.counter" not in load_model(ModelConfig(path=str(folder)))[0].state_dict()
    assert "warning: model: tensor 'model.counter' of" in capsys.readouterr().err


def test_a_tied_head_may_be_written_out_and_another_is_told_of(folder: Path, capsys: Any) -> None:
    tensors(lambda found: found.update({"lm_head.weight": found["model.embed_tokens.weight"].clone()}))(folder)
    check_checkpoint(ModelConfig(path=str(folder)), WHO)
    model, _ = load_model(ModelConfig(path=str(folder)))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    tensors(lambda found: found["lm_head.weight"].add_(1))(folder)
    assert "tie_word_embeddings" not in capsys.readouterr().err
    model, _ = load_model(ModelConfig(path=str(folder)))
    assert torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight + 1)
    assert "warning: model: tie_word_embeddings is true in" in capsys.readouterr().err


def test_models_to_merge_are_whole(good: Path, folder: Path) -> None:
    """All of them lack the same tensor, so that comparing one with another finds nothing."""
    tensors(lambda found: found.pop(UP))(folder)
    config = MergeConfig.model_validate(
        {"output": "o", "base": str(folder), "models": {"a": str(folder), "b": str(folder)}, "method": "average"}
    )
    with pytest.raises(ValueError, match=rf"^base: tensor '{UP}' is in no file of"):
        Inputs(config)
    with pytest.raises(ValueError, match=rf"^tensor '{UP}' is in .*good.* but not in .*expert"):
        Inputs(config.model_copy(update={"base": ModelConfig(path=str(good)), "models": {"b": config.models["b"]}}))


@pytest.mark.parametrize(("key", "token"), [("eos_token_id", 5000), ("eos_token_id", -1), ("pad_token_id", 38)])
def test_an_end_or_padding_token_outside_the_vocabulary_is_refused(key: str, token: int, folder: Path) -> None:
    edit("generation_config.json", **{key: token})(folder)
    with pytest.raises(ValueError, match=rf"^teacher 'math': {key} is {token} in .* ids go from 0 to 37"):
        text_settings(ModelConfig(path=str(folder)), WHO)
    edit("generation_config.json", eos_token_id=1, pad_token_id=-1)(folder)  # no padding token, in Llama's way
    text_settings(ModelConfig(path=str(folder)), WHO)


def test_rows_fit_the_shortest_context_of_all_teachers(tmp_path: Path) -> None:
    config = run_of("mopd", tmp_path)
    edit("config.json", max_position_embeddings=4)(tmp_path / "teacher-late")
    with pytest.raises(ValueError, match=r"rollout\.max_new_tokens is 4, and teacher 'late''s context is 4 tokens"):
        run(config)
    edit("config.json", max_position_embeddings=8)(tmp_path / "teacher-late")
    with pytest.raises(ValueError, match=r"prompt tokens \+ max_new_tokens 4 exceed teacher 'late''s context of 8"):
        run(config)
    assert not (config.output / "metrics.jsonl").exists()


# --- Tokenizers and templates ----------------------------------------------------------------------------------------

TOKENIZERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (written("tokenizer.json", b""), "cannot be read: Expecting value"),
    "binary": (written("tokenizer.json", b"\x00\xff"), "cannot be read: 'utf-8' codec can't decode"),
    "list": (written("tokenizer.json", b"[]"), "cannot be read: "),
    "pointer": (
        written("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\n"),
        "cannot be read: Expecting",
    ),
    "nested": (written("tokenizer.json", b"[" * 10_000), "cannot be read: maximum recursion depth"),
    "unknown": (edit("tokenizer.json", model={"type": "Foo"}), "cannot be read: data did not match any variant"),
    "no words": (
        edit("tokenizer.json", model={"type": "WordLevel", "vocab": {}, "unk_token": "x"}),
        r"has no vocabulary: copy it there from the origin",
    ),
    "settings": (written("tokenizer_config.json", b"{"), "cannot be read: Expecting property name"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_broken_tokenizer_is_named(name: str, folder: Path) -> None:
    change, message = TOKENIZERS[name]
    change(folder)
    with pytest.raises(ValueError) as caught:
        load_tokenizer(ModelConfig(path=str(folder)), WHO)
    start = re.escape(f"{WHO}: the tokenizer in {folder} ")
    assert re.match(start + message, str(caught.value)) and "\n" not in str(caught.value), caught.value


TEMPLATES = {
    "range": ("{% for i in range(10**12) %}x{% endfor %}", "OverflowError: Range too big"),
    "macro": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError: maximum recursion depth"),
    "syntax": ("{% for %}", "TemplateSyntaxError: Expected an expression"),
    "raises": ("{{ raise_exception('not today') }}", "TemplateError: not today"),
    "division": ("{{ 1 // 0 }}", "ZeroDivisionError: "),
    "memory": ("{{ 'a' * 10**11 }}", "MemoryError: "),
    "attack": ("{{ ''.__class__.__mro__ }}", "SecurityError: access to attribute '__class__'"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_renders_nothing_is_refused_with_its_reason(name: str, folder: Path) -> None:
    template, reason = TEMPLATES[name]
    _, tokenizer = build()
    tokenizer.chat_template, tokenizer.name_or_path = template, "models/math"
    with pytest.raises(ValueError, match=rf"^the chat template of models/math cannot render a question \({reason}"):
        Renderer(tokenizer)


def test_an_endless_template_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onepolicy.engines.template.LIMIT_S", 0.1)
    _, tokenizer = build()
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    tokenizer.chat_template, tokenizer.name_or_path = loop, "models/math"
    with pytest.raises(
        TimeoutError, match=r"^the chat template of models/math has not rendered a chat in 0\.1 s of CPU"
    ):
        Renderer(tokenizer)
    tokenizer.chat_template = "{% if messages[0].content == 'go' %}" + loop + "{% endif %}{{ messages[0].content }}"
    renderer = Renderer(tokenizer)
    with pytest.raises(TimeoutError):  # no fault of one task, which would be left out
        renderer.prompt_ids(Task("1", "math", ({"role": "user", "content": "go"},)))


@pytest.mark.parametrize("name", ["macro", "raises"])
def test_a_run_ends_before_its_tasks_when_a_teachers_template_is_broken(name: str, tmp_path: Path) -> None:
    config = run_of("mopd", tmp_path)
    teacher = tmp_path / "teacher-late"
    for file in teacher.glob("chat_template*"):
        file.unlink()
    edit("tokenizer_config.json", chat_template=TEMPLATES[name][0])(teacher)
    with pytest.raises(ValueError, match=rf"^the chat template of {re.escape(str(teacher))} cannot render a question"):
        run(config)
    assert not config.output.exists()


# --- Chats -----------------------------------------------------------------------------------------------------------

STRICT = (  # as Gemma and Mistral have it
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message.role == 'user') == (loop.index0 % 2) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ message.role + ': ' + message.content }}{% endfor %}"
)
LOOSE = (  # of roles that it does not know it says nothing
    "{% for message in messages %}{% if message.role in ('system', 'user', 'assistant') %}"
    "{{ message.role }}: {{ message.content }}"
    "{% elif message.role == 'tool' %}{{ message.name }}: {{ message.content }}{% endif %}{% endfor %}"
)
USER, SAID = {"role": "user", "content": "abc"}, {"role": "assistant", "content": "def"}
CHATS: dict[str, tuple[str, list[dict[str, Any]], str]] = {
    "no role": (LOOSE, [USER, {"content": "x"}], r"message 1 has no role"),
    "no content": (LOOSE, [USER, SAID, {"role": "user"}], r"message 2 has no content"),
    "null": (LOOSE, [{"role": "user", "content": None}], r"message 0 has no content"),
    "parts": (LOOSE, [{"role": "user", "content": [{"type": "text", "text": "x"}]}], r"message 0 \(user\): .*list of"),
    "parts, added": (
        STRICT,
        [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
        r"message 0 \(user\): can ",
    ),
    "image": (LOOSE, [{"role": "user", "content": [{"type": "image"}]}], r"message 0 \(user\): .*part of type 'image'"),
    "system": (STRICT, [{"role": "system", "content": "x"}, USER], r"message 0 \(system\): System role not supported"),
    "assistant": (STRICT, [SAID, USER], r"message 0 \(assistant\): roles must alternate"),
    "twice": (STRICT, [USER, SAID, USER, USER], r"message 3 \(user\): roles must alternate"),
    "tool": (LOOSE, [USER, SAID, {"role": "tool", "content": "x"}], r"message 2 \(tool\): it has no 'name', which"),
    "role": (LOOSE, [USER, {"role": "narrator", "content": "zz"}], r"message 1 \(narrator\): .* does not show it"),
}


@pytest.mark.parametrize("name", CHATS)
def test_a_broken_chat_is_found_before_the_run_with_domain_row_message_and_reason(name: str, tmp_path: Path) -> None:
    template, chat, reason = CHATS[name]
    config = chat_run(tmp_path, template, chat)
    with pytest.raises(ValueError) as caught:
        run(config)
    assert re.search(rf"^domain 'early': .*row 3.*{reason}", str(caught.value)), caught.value
    assert not (config.output / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    "chat",
    [
        [USER],
        [{"role": "system", "content": " x "}, USER, SAID, USER],
        [USER, SAID, {"role": "tool", "name": "t", "content": "x"}],
        [USER, {**SAID, "content": "", "tool_calls": [{"function": {"name": "t"}}]}, {**USER, "content": "c"}],
    ],
)
def test_a_chat_that_a_template_shows_passes(chat: list[dict[str, Any]]) -> None:
    _, tokenizer = build()
    tokenizer.chat_template = LOOSE
    expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert Renderer(tokenizer).prompt_ids(Task("1", "math", tuple(chat))) == expected


@pytest.mark.parametrize(
    "shown",
    [
        "{% if message.name %}{{ message.name }}{% endif %}",
        "{% if message.name is defined %}{{ message.name }}: {% endif %}",
        "{% if 'name' in message %}{{ message['name'] }}: {% endif %}",
        "{{ message.name or '' }}",
        "{{ message.name | default('tool') }}",
        "{{ message.tool_call_id if message.tool_call_id else 'tool' }}",
    ],
)
def test_a_template_that_asks_for_a_tools_name_needs_none(shown: str) -> None:
    _, tokenizer = build()
    tokenizer.chat_template = "{% for message in messages %}" + shown + "{{ message.content }}{% endfor %}"
    tool = {"role": "tool", "content": "x"}
    expected = tokenizer.apply_chat_template([USER, SAID, tool], add_generation_prompt=True, return_dict=True)
    assert Renderer(tokenizer).prompt_ids(Task("1", "math", (USER, SAID, tool))) == expected["input_ids"]


def chat_run(folder: Path, template: str, chat: list[dict[str, Any]]) -> Any:
    """A run on ten rows, of which the one numbered 3 has the chat."""
    rows = [{"prompt": [{**USER, "content": f"a{i}"}] if i != 3 else chat, "answer": "abc"} for i in range(10)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tasks = {"kind": "records", "path": str(folder / "rows.jsonl"), "grader": "tests.fragile:letters"}
    data = settings("rlvr", folder, domains={"early": {"tasks": tasks, "eval_size": 2}})
    origin = Path(data["model"])
    for file in origin.glob("chat_template*"):
        file.unlink()
    edit("tokenizer_config.json", chat_template=template)(origin)
    return parse_run(data)

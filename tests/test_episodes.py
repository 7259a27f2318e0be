"""Episodes of several turns: what is written, what is shown, what is trained on, and what survives a crash."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onepolicy.config import DistillConfig, DomainConfig, LossConfig, OptimConfig, ScratchConfig
from onepolicy.engines.base import Sampling
from onepolicy.engines.forward import can_share
from onepolicy.engines.local import LocalEngine
from onepolicy.engines.text import Renderer
from onepolicy.learner import Learner
from onepolicy.objectives.weighting import turns
from onepolicy.recipes import run
from onepolicy.rollout import rollout
from onepolicy.runfolder import read_rows
from onepolicy.steprows import per_domain
from onepolicy.tasks.base import GraderBug
from onepolicy.tasks.episodes import Episodes
from onepolicy.tasks.grading import Grader
from onepolicy.tasks.mixture import Mixture
from onepolicy.tiny import character_tokenizer, from_scratch
from onepolicy.types import Sample, Task, Want, Weights
from onepolicy.written import to_row, to_sample
from tests.runs import DOMAINS, checkpoint, run_of, same, weights
from tests.tales import Tales
from tests.test_engine_local import HYBRID
from tests.tiny_models import KINDS, plain_logprobs

ALPHABET = "abcdefghij0123456789<>tolndeasir"


def domain(**options: Any) -> DomainConfig:
    return DomainConfig.model_validate(
        {"tasks": {"kind": "custom", "source": "tests.tales:Tales", "options": options}, "eval_size": 4}
    )


def make(kind: str = "qwen3", batch_size: int = 64, **changes: Any) -> LocalEngine:
    config = ScratchConfig(architecture=KINDS[kind] | changes, alphabet=ALPHABET, roles=("tool",))
    model, tokenizer = from_scratch(config, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
    return LocalEngine(model.eval(), Renderer(tokenizer, model.generation_config), batch_size)


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader({"tale": domain(), "endless": domain(end="#")}, time_limit_s=1.0, wall_limit_s=1.0) as grader:
        yield grader


def questions(count: int = 6, name: str = "tale") -> list[Task]:
    return [Tales(name, 0, end="e" if name == "tale" else "#").draw(index) for index in range(count)]


def play(engine: LocalEngine, grader: Grader, tasks: Sequence[Task], n: int = 3, **sampling: Any) -> list[Sample]:
    options = {"max_new_tokens": 60} | sampling
    return rollout(engine, grader, tasks, n, Sampling(**options), seed=5, version=7)


def stopping(engine: LocalEngine, *letters: str) -> LocalEngine:
    """Turns of a random model end seldom: let some letters end them."""
    tokenizer = engine.renderer.tokenizer
    engine.renderer.stop_ids |= set(tokenizer.convert_tokens_to_ids(list(letters)))
    return engine


# -- writing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text", "hybrid"])
def test_the_log_probs_of_every_turn_equal_a_plain_forward_pass(kind: str, grader: Grader) -> None:
    engine = make("qwen3", 5, **HYBRID) if kind == "hybrid" else make(kind, 5)
    samples = play(stopping(engine, *"abc0123"), grader, questions())
    assert {sample.turns for sample in samples} >= {1, 2, 4}
    for sample in samples:
        assert sample.version == 7
        np.testing.assert_allclose(sample.logprobs_R, plain_logprobs(engine.model, sample, 1.0), atol=1e-4)


def test_the_tokens_are_the_chat_with_the_policys_own_left_as_sampled(grader: Grader) -> None:
    engine = make()
    for sample in play(stopping(engine, *"abc0123"), grader, questions()):
        renderer = engine.renderer
        turns_R = turns(sample.mask_T)
        written = [sample.token_ids_T[sample.mask_T][turns_R == turn].tolist() for turn in range(sample.turns)]
        said = [m["content"] for m in sample.history if m["role"] == "assistant"] + [sample.response]
        assert [renderer.decode(ids) for ids in written] == said[: len(written)]
        expected = renderer.prompt_ids(sample.task)
        shown = [m["content"] for m in sample.history if m["role"] == "tool"]
        for turn, ids in enumerate(written):
            expected += ids
            if turn + 1 < len(written):
                expected += renderer.tokenizer.encode(f"<tool>{shown[turn]}<assistant>", add_special_tokens=False)
        assert sample.token_ids_T.tolist() == expected
        assert not sample.mask_T[: sample.prompt_length].any() and sample.mask_T[-1]


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_an_episode_is_the_same_however_it_is_batched(noise: float, grader: Grader) -> None:
    wide, narrow = (
        play(stopping(make(batch_size=size), *"abc0123"), grader, questions(), noise=noise) for size in (64, 4)
    )
    alone = play(stopping(make(), *"abc0123"), grader, questions(1), n=2, noise=noise)
    assert [s.token_ids_T.tolist() for s in wide] == [s.token_ids_T.tolist() for s in narrow]
    assert [s.token_ids_T.tolist() for s in wide[:2]] == [s.token_ids_T.tolist() for s in alone]
    assert [s.reward for s in wide] == [s.reward for s in narrow]
    assert len({tuple(s.token_ids_T) for s in wide}) == len(wide)


def test_turns_do_not_repeat_one_anothers_random_numbers(grader: Grader) -> None:
    """A model that has learnt nothing draws the same token from the same number: turns must not look alike."""
    engine = stopping(make(), *"abc0123")
    with torch.no_grad():
        for parameter in engine.model.parameters():
            parameter.zero_()
    tokens = [play(engine, grader, questions(1, "endless"), 8, max_new_tokens=40)[i] for i in range(8)]
    assert any(len(s.token_ids_T[s.mask_T]) > 5 for s in tokens)
    for sample in tokens:
        written, turns_R = sample.token_ids_T[sample.mask_T], turns(sample.mask_T)
        first, second = (written[turns_R == turn].tolist() for turn in (0, 1))
        assert first != second


def test_the_limit_is_of_all_turns_together_and_the_context_of_everything(grader: Grader) -> None:
    short = play(stopping(make(), "a"), grader, questions(4, "endless"), max_new_tokens=9)
    assert all(sample.length <= 9 for sample in short)
    assert {sample.finish for sample in short} == {"length"}
    assert max(sample.turns for sample in short) > 1
    cramped = play(
        stopping(make(max_position_embeddings=24), *"abc0123"), grader, questions(4, "endless"), max_new_tokens=99
    )
    assert all(len(sample.token_ids_T) <= 24 and sample.mask_T[-1] for sample in cramped)
    ended = [sample for sample in cramped if not sample.response and sample.history]
    assert ended and all(s.finish == "length" and s.reason.startswith("told") for s in ended)


def test_an_answer_that_cannot_be_rendered_is_data_not_a_crash(grader: Grader) -> None:
    engine = stopping(make(), *"abc0123")
    template = engine.renderer.tokenizer.chat_template
    engine.renderer.tokenizer.chat_template = template.replace(
        "<{{ message.role }}>",
        "{{ raise_exception('no tools') if message.role == 'tool' else '<' ~ message.role ~ '>' }}",
    )
    samples = play(engine, grader, questions(3, "endless"))
    failed = [sample for sample in samples if sample.finish == "error"]
    assert failed and all(s.reward == 0 and "cannot be rendered: no tools" in s.reason for s in failed)


# -- showing -----------------------------------------------------------------------------------------------------------

ASK = Task("t", "d", ({"role": "user", "content": "a"},))
QWEN3 = """{%- for m in messages %}
{%- if m.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{%- endif %}
{%- elif m.role == 'assistant' and loop.last %}
{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + m.content + '<|im_end|>\\n' }}
{%- else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"""


def qwen() -> Renderer:
    tokenizer = character_tokenizer("abcdefghijklmnopqrstuvwxyz_<>|/\n")
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    tokenizer.add_tokens(["<tool_response>", "</tool_response>", "<|im_start|>", "<think>"])
    tokenizer.chat_template = QWEN3
    return Renderer(tokenizer)


def tool(content: str, **more: str) -> dict[str, str]:
    return {"role": "tool", "content": content, **more}


def test_an_answer_is_what_the_template_writes_behind_the_policys_stop_token() -> None:
    """Though the template writes the turn in another way as soon as it is not the last."""
    renderer = qwen()
    tokenizer = renderer.tokenizer
    answers = "<tool_response>\nab\n</tool_response>\n<tool_response>\nc\n</tool_response>"
    shown = f"\n<|im_start|>user\n{answers}<|im_end|>\n<|im_start|>assistant\n"
    assert renderer.answer_ids(ASK, [tool("ab"), tool("c")]) == tokenizer.encode(shown, add_special_tokens=False)


def test_a_base_models_answer_is_plain_text() -> None:
    renderer = qwen()
    renderer.tokenizer.chat_template = None
    assert renderer.answer_ids(ASK, [tool("a"), tool("b")]) == renderer.tokenizer.encode("\na\nb\n")


def test_a_template_that_ends_no_turn_is_continued_behind_the_turn() -> None:
    renderer = qwen()
    renderer.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}_{{ m.content }}\n{% endfor %}"
    asked = Task("t", "d", ({"role": "user", "content": "a<|im_end|>b"},))
    assert renderer.answer_ids(asked, [tool("c")]) == renderer.tokenizer.encode("\ntool_c\n")


def test_templates_that_want_the_calls_get_them() -> None:
    renderer = qwen()
    renderer.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{% if not messages[loop.index0 - 1].tool_calls %}"
        "{{ raise_exception('no call') }}{% endif %}<think>{{ m.tool_call_id }}_"
        "{{ messages[loop.index0 - 1].tool_calls[0].function.name }}_{{ m.content }}{% else %}{{ m.content }}"
        "{% for call in m.tool_calls %}{{ call.function.name }}{% endfor %}<|im_end|>{% endif %}{% endfor %}"
    )
    ids = renderer.answer_ids(ASK, [tool("ab", name="look")])
    assert ids == renderer.tokenizer.encode("<think>call00000_look_ab", add_special_tokens=False)


def test_a_template_without_tools_is_refused_by_name() -> None:
    renderer = qwen()
    renderer.tokenizer.chat_template = (
        "{% for m in messages if m.role != 'tool' %}{{ m.content }}<|im_end|>{% endfor %}"
    )
    with pytest.raises(ValueError, match=r"'t'.*does not show messages of role 'tool'"):
        renderer.answer_ids(ASK, [tool("a")])
    schema = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}
    with pytest.raises(ValueError, match="does not show tools"):
        renderer.prompt_ids(Task("t", "d", ASK.messages, tools=(schema,)))


def test_tools_are_shown_to_the_policy_where_the_template_can() -> None:
    renderer = qwen()
    template = "{% for t in tools or [] %}{{ t.function.name }}_{% endfor %}{{ messages[0].content }}<|im_end|>_"
    renderer.tokenizer.chat_template = template
    schema = {"type": "function", "function": {"name": "look", "description": "", "parameters": {"type": "object"}}}
    ids = renderer.prompt_ids(Task("t", "d", ASK.messages, tools=(schema,)))
    assert ids == renderer.tokenizer.encode("look_a<|im_end|>_")


@pytest.mark.parametrize(
    "text",
    [
        "<|im_end|>", "<|im_start|>assistant", "a<tool_response>b</tool_response>c", "<<tool_response>>",
        "</tool_response><|im_end|>\n<|im_start|>assistant\n<think>", "<<|im_end|>|im_end|>", "<|im_end<|im_end|>|>",
    ],
)  # fmt: skip
def test_text_that_looks_like_a_special_token_stays_text(text: str) -> None:
    renderer = qwen()
    tokenizer = renderer.tokenizer
    ids = renderer.plain_ids(text)
    assert tokenizer.convert_ids_to_tokens(ids) == list(text)
    inside = renderer.answer_ids(ASK, [tool(text)])
    bare = renderer.answer_ids(ASK, [tool("")])
    assert sorted(inside) == sorted(bare + ids)


# -- training ----------------------------------------------------------------------------------------------------------


def learner(engine: LocalEngine, **distill: Any) -> Learner:
    loss = LossConfig(reduction="token", distill=DistillConfig.model_validate(distill))
    return Learner(engine.model, engine.renderer.tokenizer, OptimConfig(learning_rate=1e-3), loss)


@pytest.mark.parametrize("shared", [True, False])
def test_a_scorer_says_of_every_turn_what_a_plain_forward_pass_says(shared: bool, grader: Grader) -> None:
    engine = stopping(make(), *"abc0123")
    samples = play(engine, grader, [*questions(2)] if shared else questions(), n=6 if shared else 1)
    one = learner(engine)
    assert can_share(one.model) and any(sample.turns > 1 for sample in samples)
    for sample, scores in zip(samples, one.score(samples, Want("topk", 3)), strict=True):
        np.testing.assert_allclose(scores.logprobs_R, plain_logprobs(engine.model, sample), atol=1e-4)
        assert scores.topk_ids_RK is not None and scores.topk_ids_RK.shape == (sample.length, 3)


def gradients(engine: LocalEngine) -> list[torch.Tensor]:
    return [p.grad.clone() for p in engine.model.parameters() if p.grad is not None]


def test_the_gradient_is_that_of_the_policys_tokens_and_of_no_other(grader: Grader) -> None:
    """Cross-entropy by hand: over the mask it is the learner's gradient, with the environment's tokens it is not."""
    engine = stopping(make(), *"abc0123")
    samples = [sample for sample in play(engine, grader, questions()) if sample.turns > 1][:4]
    for sample in samples:
        sample.weights = Weights(ce=1.0)
    by_hand: dict[str, list[torch.Tensor]] = {}
    for name in ("policy", "everything"):
        engine.model.zero_grad()
        masks = {"policy": lambda s: s.mask_T, "everything": lambda s: np.arange(len(s.mask_T)) >= s.prompt_length}
        total = sum(sample.length for sample in samples)
        for sample in samples:
            ids = torch.from_numpy(sample.token_ids_T).long()
            logprobs_TV = engine.model(input_ids=ids[None]).logits[0].float().log_softmax(-1)
            where = np.flatnonzero(masks[name](sample))
            (-logprobs_TV[where - 1, ids[where]].sum() / total).backward()
        by_hand[name] = gradients(engine)
    one = learner(engine)
    one.optim = OptimConfig(learning_rate=1e-3, clip_norm=1e9)
    one.step(samples)
    for ours, theirs in zip(gradients(engine), by_hand["policy"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    assert any(
        not torch.allclose(ours, other, rtol=1e-2, atol=1e-4)
        for ours, other in zip(gradients(engine), by_hand["everything"], strict=True)
    )


def test_a_demonstration_trains_on_every_turn_and_on_no_answer(grader: Grader) -> None:
    mixture = Mixture({"tale": domain()}, 0)
    task = mixture.domains["tale"].source.draw(1)
    chat = mixture.demonstrated(task)
    word = task.reference
    assert chat == (
        {"role": "assistant", "content": "b"},
        {"role": "tool", "content": f"1{word}"},
        {"role": "assistant", "content": "cc"},
        {"role": "tool", "content": f"3{word}"},
        {"role": "assistant", "content": "e"},
    )
    renderer = make().renderer
    ids_T, mask_T = renderer.demonstration(task, chat)
    text = f"<user>{word}<assistant>b<end><tool>1{word}<assistant>cc<end><tool>3{word}<assistant>e<end>"
    assert ids_T.tolist() == renderer.tokenizer.encode(text, add_special_tokens=False)
    assert renderer.tokenizer.convert_ids_to_tokens(ids_T[mask_T]) == ["b", "<end>", "c", "c", "<end>", "e", "<end>"]
    assert turns(mask_T).tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_what_was_not_trained_on_is_counted(grader: Grader) -> None:
    samples = play(stopping(make(), *"abc0123"), grader, questions())
    row = per_domain(samples)
    assert row["turns/tale"] == np.mean([sample.turns for sample in samples])
    hidden = [np.sum(~sample.mask_T) - sample.prompt_length for sample in samples]
    assert row["observed/tale"] == np.mean(hidden) > 0
    assert not {"turns/tale", "observed/tale"} & per_domain([s for s in samples if s.turns == 1]).keys()


def test_an_episode_is_written_down_and_read_back_with_its_mask(grader: Grader) -> None:
    for sample in play(stopping(make(), *"abc0123"), grader, questions()):
        row = to_row(sample)
        again = to_sample(row, sample.task)
        assert np.array_equal(again.token_ids_T, sample.token_ids_T) and np.array_equal(again.mask_T, sample.mask_T)
        assert len(row["spans"]) == sample.turns
        assert ("tool: " in row["response"]) == bool(sample.history)


# -- the process that holds the episodes -------------------------------------------------------------------------------


def turn(text: str, before: Sample | None = None, name: str = "tale", finish: Any = "stop") -> Sample:
    if before is None:
        ids_T = np.arange(2, dtype=np.int32)
        return Sample(questions(1, name)[0], ids_T, ids_T > 0, np.zeros(1), text, finish=finish)
    before.response, before.finish = text, finish
    return before


def told(grader: Grader, *samples: Sample) -> list[float | None]:
    grader.submit(samples)
    return [sample.reward for sample in grader.collect()]


def test_a_turn_is_answered_until_a_grade_ends_the_episode(grader: Grader) -> None:
    sample = turn("bb")
    assert told(grader, sample) == [None]
    word = sample.task.reference
    assert sample.history == ({"role": "assistant", "content": "bb"}, {"role": "tool", "content": f"2{word}"})
    assert sample.response == ""
    assert told(grader, turn("aa", sample)) == [None]
    assert told(grader, turn("e", sample)) == [3 / 5]
    assert sample.reason == "told bbaae" and sample.response == "e" and sample.turn_rewards == (0, 1, 1)


def test_turns_run_out(grader: Grader) -> None:
    sample = turn("a", name="endless")
    assert [told(grader, turn(text, sample, "endless"))[0] for text in "abcd"] == [None, None, None, 1 / 4]


def test_a_turn_cut_off_by_the_limit_is_the_last(grader: Grader) -> None:
    assert told(grader, turn("aab", finish="length")) == [2 / 3]
    sample = turn("ab")
    assert told(grader, sample) == [None]
    assert told(grader, turn("", sample, finish="length")) == [1 / 2]


def test_whole_answers_are_graded_at_once_and_what_follows_the_end_is_not_heard(grader: Grader) -> None:
    task = questions(1)[0]
    grades = grader.grade([(task, ("a", "e")), (task, "b"), (task, ("be", "aaaa", "e")), (task, ("b",) * 99)])
    assert [grade.reward for grade in grades] == [1, 0, 1 / 2, 0]
    assert grades[3].reason == "told bbbb", "four turns"


@pytest.mark.parametrize(
    ("fate", "reason"), [("crash", "crashed: exit code 3"), ("hang", "timed out: not done after 1 s of wall time")]
)
def test_an_episode_that_breaks_the_process_takes_no_other_along(fate: str, reason: str, grader: Grader) -> None:
    others = [turn(text) for text in ("b", "ab", "aab")]
    assert told(grader, *others) == [None] * 3
    assert told(grader, turn(fate)) == [0.0]
    rewards = told(grader, *(turn("e", other) for other in others))
    assert rewards == [1 / 2, 2 / 3, 3 / 4]
    bad = turn(fate)
    told(grader, bad)
    assert reason in bad.reason


def test_equal_rollouts_of_one_task_part_ways(grader: Grader) -> None:
    twins = [turn("b"), turn("b")]
    assert told(grader, *twins) == [None] * 2
    assert told(grader, turn("a", twins[0]), turn("bb", twins[1])) == [None] * 2
    assert told(grader, turn("e", twins[0]), turn("e", twins[1])) == [2 / 3, 1 / 4]


def test_equal_rollouts_are_kept_apart_and_none_is_played_again() -> None:
    class Counted(Tales):
        started = 0

        def start(self, task: Task) -> Any:
            self.started += 1
            return super().start(task)

    source, episodes, task = Counted("tale", 0), Episodes(lambda: None), questions(1)[0]
    first = [episodes.reply(source, task, (), ["b"], False) for _ in range(3)]
    history = ({"role": "assistant", "content": "b"}, *first[0].messages)
    grades = [episodes.reply(source, task, history, [text], False) for text in ("e", "ae", "ee")]
    assert [grade.reward for grade in grades] == [1 / 2, 2 / 3, 2 / 3] and source.started == 3
    episodes.reply(source, task, history, ["e"], False)
    assert source.started == 4, "a lost one is played again"


def test_an_environment_that_answers_otherwise_when_played_again_costs_the_episode_its_reward(grader: Grader) -> None:
    sample, lucky = turn("clock"), turn("clock")
    assert told(grader, sample, lucky) == [None] * 2
    assert told(grader, turn("e", lucky)) == [1 / 6]
    told(grader, turn("crash"))
    assert told(grader, turn("e", sample)) == [0.0]
    assert "does not answer as it did before" in sample.reason


def test_an_environment_that_speaks_for_the_policy_is_an_error_of_the_run() -> None:
    with Grader({"tale": domain()}) as grader, pytest.raises(GraderBug, match="none of the assistant's role"):
        told(grader, turn("nonsense"))


def test_an_environment_says_how_many_turns_there_are(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "endless_tales.py").write_text(
        "class Tales:\n    def __init__(self, domain, seed): pass\n"
        "    draw = start = gold = demonstration = lambda self, task: None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = DomainConfig.model_validate({"tasks": {"kind": "custom", "source": "endless_tales:Tales"}})
    with pytest.raises(ValueError, match="needs max_turns"):
        Mixture({"tale": config}, 0)


# -- runs --------------------------------------------------------------------------------------------------------------

MIXED = {"early": DOMAINS["early"], "tale": domain().model_dump()}
COMMON: dict[str, Any] = {"domains": MIXED, "steps": 2, "rollout": {"prompts": 8, "n": 4, "max_new_tokens": 24}}
OWN: dict[str, dict[str, Any]] = {
    "sft": {},
    "rlvr": {"inner_updates": 2, "turn_weight": 0.5},
    "mix_rl": {},
    "cascade_rl": {"order": list(MIXED)},
    "copd": {"rl_steps": 1, "opd_steps": 1, "exchange": {"prompts": 4}},
    "offpolicy": {"keep": "all", "rollouts_per_domain": 16, "batch_size": 8},
    "mopd": {"loss": {"distill": {"estimator": "full", "weighting": {"turn_cap": 1.5, "position": 0.5}}}},
}


@pytest.mark.parametrize("recipe", list(OWN))
def test_every_recipe_runs_on_episodes_beside_other_tasks(recipe: str, tmp_path: Path) -> None:
    """The model is one that ends its turns now and then, so that there are some of several turns."""
    changes = COMMON | OWN[recipe]
    if recipe in ("mopd", "offpolicy"):
        changes["teachers"] = {name: checkpoint(tmp_path / f"teacher-{name}", i) for i, name in enumerate(MIXED, 1)}
    for attempt in ("once", "again"):
        run(run_of(recipe, tmp_path, output=str(tmp_path / attempt), **changes))
    assert same(weights(tmp_path / "once"), weights(tmp_path / "again"))
    rows = read_rows(tmp_path / "once" / "metrics.jsonl")
    if recipe != "cascade_rl":
        assert any(row.get("turns/tale", 0) > 1 and row["observed/tale"] > 0 for row in rows)
    final = json.loads((tmp_path / "once" / "eval" / "final.json").read_text())
    assert {name: len(rows) for name, rows in final["domains"].items()} == {"early": 4, "tale": 4}

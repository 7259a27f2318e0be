"""What graders, environments, evaluations and whole runs make of thoughts, stop strings and system prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from onepolicy.config import ConfigError, DomainConfig, LossConfig, MergeConfig, SftConfig, parse_run
from onepolicy.engines.base import Sampling
from onepolicy.engines.local import LocalEngine
from onepolicy.engines.text import Renderer
from onepolicy.evaluation import Evaluation
from onepolicy.models import save_model
from onepolicy.recipes import run
from onepolicy.rollout import rollout
from onepolicy.runfolder import read_rows
from onepolicy.session import Session
from onepolicy.tasks.check import check_domains
from onepolicy.tasks.grading import Grader
from onepolicy.tasks.mixture import Mixture
from onepolicy.thought import NEVER_ENDS
from onepolicy.tiny import character_tokenizer
from onepolicy.types import Grade, Sample, Task
from tests.heard import Heard
from tests.runs import run_of
from tests.tales import Tales
from tests.tiny_models import KINDS

ALPHABET = "abcdefghij0123456789<>tolndeasirhk/+ \n"


def custom(name: str, **options: Any) -> DomainConfig:
    tasks = {"kind": "custom", "source": name, "options": options}
    return DomainConfig.model_validate({"tasks": tasks, "eval_size": 4})


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    domains = {
        "heard": custom("tests.heard:Heard"),
        "thought": custom("tests.heard:Thought"),
        "tale": custom("tests.tales:Tales"),
        "ended": custom("tests.heard:Ended"),
    }
    with Grader(domains) as grader:
        yield grader


def sample(task: Task, response: str, **more: Any) -> Sample:
    return Sample(task, np.arange(2), np.array([False, True]), np.zeros(1), response, **more)


# -- the grading process -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "reward", "reason"),
    [
        ("7", 1, "heard '7'"),
        ("<think>3+4</think>\n\n7", 1, "heard '7'"),
        ("3+4</think>7", 1, "heard '7'"),
        ("<think>7</think>8", 0, "heard '8'"),
        ("<think>7", 0, NEVER_ENDS),
        ("<think>so</think>7<think>7", 0, NEVER_ENDS),
        ("<think>7</think>", 0, "heard ''"),
        ("\n7", 0, "heard '\\n7'"),
        ("<|channel|>analysis<|message|>3+4<|end|><|start|>assistant<|channel|>final<|message|>7", 1, "heard '7'"),
        ("<|channel|>analysis<|message|>7", 0, NEVER_ENDS),
    ],
)
def test_graders_get_the_answer_alone(response: str, reward: float, reason: str, grader: Grader) -> None:
    task = Heard("heard", 0).draw(0)
    assert grader.grade([(task, "7"), (task, response)])[1] == Grade(reward, reason)
    mine, other = sample(task, response), sample(task, "7")
    grader.submit([mine, other])
    assert grader.collect() == [mine, other] and other.reward == 1
    assert (mine.reward, mine.reason, mine.response) == (reward, reason, response)


def test_what_the_engine_has_parted_by_tokens_is_not_parted_by_text(grader: Grader) -> None:
    task = Heard("heard", 0).draw(0)
    spelled = sample(task, "<think>7", thought="", answer="<think>7")
    unseen = sample(task, "7", thought="7", answer=None)
    grader.submit([spelled, unseen])
    grader.collect()
    assert spelled.reason == "heard '<think>7'"
    assert (unseen.reward, unseen.reason) == (0, NEVER_ENDS)


def test_a_grader_that_asks_for_the_thought_gets_it(grader: Grader) -> None:
    task = Heard("thought", 0).draw(0)
    one, other = grader.grade([(task, "<think>3+4</think>7"), (task, "7")])
    assert one.reason == "heard '7', thought '3+4'" and other.reason == "heard '7', thought ''"


def test_gold_answers_may_have_thoughts() -> None:
    report = check_domains({"heard": custom("tests.heard:Heard")}, n=4)["heard"]
    assert report.gold_right == report.drawn == 4


# -- episodes ----------------------------------------------------------------------------------------------------------


def told(grader: Grader, one: Sample, response: str, **more: Any) -> float | None:
    one.response, one.finish = response, more.get("finish", "stop")
    grader.submit([one])
    grader.collect()
    return one.reward


def test_an_environment_hears_the_answer_and_the_chat_keeps_the_thought(grader: Grader) -> None:
    task = Tales("tale", 0).draw(0)
    one = sample(task, "")
    assert told(grader, one, "<think>e</think>bb") is None
    assert [m["content"] for m in one.history] == ["<think>e</think>bb", f"2{task.reference}"]
    assert told(grader, one, "<think>aaa</think>\nae") == 1 / 2
    assert one.reason == "told bbae" and one.response == "<think>aaa</think>\nae"
    whole = grader.grade([(task, ("<think>e</think>bb", "aa", "<think>so</think>e"))])[0]
    assert (whole.reward, whole.reason) == (3 / 5, "told bbaae")
    assert grader.grade([(task, ("bb", "<think>e"))]) == [Grade(0.0, NEVER_ENDS)]


def test_an_episode_is_played_again_with_what_was_heard(grader: Grader) -> None:
    task = Tales("tale", 0).draw(0)
    one, bad = sample(task, ""), sample(task, "")
    assert told(grader, one, "<think>e</think>b") is None
    assert told(grader, bad, "crash") == 0
    assert told(grader, one, "<think>b</think>e") == 1 / 2 and one.reason == "told be"


def test_a_turn_whose_thought_never_ends_says_nothing(grader: Grader) -> None:
    task = Tales("ended", 0).draw(0)
    for finish in ("stop", "length"):
        one = sample(task, "")
        assert told(grader, one, "<think>e", finish=finish) == 0 and one.reason == NEVER_ENDS
    under_way = sample(task, "")
    assert told(grader, under_way, "b") is None
    assert told(grader, under_way, "<think>e") == 0 and under_way.reason == NEVER_ENDS
    cut_off = sample(task, "")  # the limit, not the policy, has ended it: the grade of the state it is in
    assert told(grader, cut_off, "b") is None
    assert told(grader, cut_off, "<think>e", finish="length") == 1
    assert cut_off.reason == f"{NEVER_ENDS}; told b"


# -- engines -----------------------------------------------------------------------------------------------------------


def of_thoughts(template: str | None = None, special: bool = True) -> PreTrainedTokenizerFast:
    tokenizer = character_tokenizer(ALPHABET, ("tool",))
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=special)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


OPENS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{{ '' if quick else '<think>' }}{% endif %}"
)


def built(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Any:
    options = {key: value for key, value in KINDS["qwen3"].items() if key != "model_type"}
    config = AutoConfig.for_model("qwen3", **options | {"vocab_size": len(tokenizer)}, eos_token_id=1, pad_token_id=0)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
    return model


def test_rollouts_are_graded_by_what_stands_behind_the_thoughts_tokens(grader: Grader) -> None:
    """A random model writes the markers here and there; what the grader heard is worked out again from the tokens."""
    tokenizer = of_thoughts()
    engine = LocalEngine(built(tokenizer), Renderer(tokenizer))
    tasks = [Heard("thought", 0).draw(index) for index in range(16)]
    samples = rollout(engine, grader, tasks, 16, Sampling(max_new_tokens=40, temperature=1.5), seed=1, version=0)
    opening, closing = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    seen = set()
    for one in samples:
        written = [t for t in one.token_ids_T[one.mask_T].tolist() if t != tokenizer.eos_token_id]
        last = max((place for place, token in enumerate(written) if token == closing), default=-1)
        ended = opening not in written[last + 1 :]
        seen.add((ended, last >= 0))
        assert one.response.count("<think>") == written.count(opening)
        if not ended:
            assert (one.reward, one.reason, one.answer) == (0, NEVER_ENDS, None)
            continue
        behind = tokenizer.decode([t for t in written[last + 1 :] if t > 5 and t != tokenizer.unk_token_id])
        behind = behind.replace("<tool>", "")
        said = behind if last < 0 or not behind[:1].isspace() else one.answer or ""
        assert one.answer == said
        assert f"heard {said!r}, thought {one.thought!r}" == one.reason
    assert len(seen) >= 3, "the test needs responses of each kind"


def test_a_turn_that_a_stop_string_has_ended_is_closed_before_the_environment_speaks(grader: Grader) -> None:
    tokenizer = of_thoughts()
    renderer = Renderer(tokenizer)
    engine = LocalEngine(built(tokenizer), renderer)
    tasks = [Tales("tale", 0).draw(index) for index in range(12)]
    sampling = Sampling(max_new_tokens=60, stop=("d", "k", "00"))
    samples = rollout(engine, grader, tasks, 8, sampling, seed=3, version=0)
    several = [one for one in samples if one.turns > 1]
    assert several
    end, tool = tokenizer.convert_tokens_to_ids(["<end>", "<tool>"])
    for one in several:
        ids, mask = one.token_ids_T.tolist(), one.mask_T.tolist()
        for place in [i for i in range(1, len(ids)) if not mask[i] and mask[i - 1]]:
            closed = ids[place - 1] == end or (ids[place] == end and ids[place + 1] == tool)
            assert closed, tokenizer.decode(ids)
        heard = [m["content"] for m in one.history if m["role"] == "assistant"]
        assert all(not any(string in text for string in sampling.stop) for text in heard)


# -- runs --------------------------------------------------------------------------------------------------------------


def stored(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> str:
    if not folder.is_dir():
        save_model(built(tokenizer, seed), tokenizer, folder)
    return str(folder)


def test_a_run_counts_thoughts_that_never_end_as_no_answer_and_shows_them_whole(tmp_path: Path) -> None:
    origin = stored(tmp_path / "origin", of_thoughts(OPENS))
    domains = {"heard": custom("tests.heard:Heard").model_dump()}
    rollouts = {"prompts": 8, "n": 8, "max_new_tokens": 24}
    config = run_of("rlvr", tmp_path, model=origin, domains=domains, steps=1, rollout=rollouts)
    run(config)
    rows = read_rows(config.output / "samples.jsonl")
    final = Evaluation.from_json((config.output / "eval" / "final.json").read_text())
    questions = final.domains["heard"].questions
    assert questions
    for response, reason in [(r["response"], r["reason"]) for r in rows] + [(q.response, q.reason) for q in questions]:
        closed = "</think>" in response and "<think>" not in response.rpartition("</think>")[2]
        assert (reason != NEVER_ENDS) == closed
    quick = {"path": origin, "chat_template_kwargs": {"quick": True}}
    config = run_of(
        "rlvr", tmp_path, model=quick, domains=domains, steps=1, rollout=rollouts, output=str(tmp_path / "quick")
    )
    run(config)
    reasons = [row["reason"] for row in read_rows(config.output / "samples.jsonl")]
    final = Evaluation.from_json((config.output / "eval" / "final.json").read_text())
    reasons += [question.reason for question in final.domains["heard"].questions]
    assert any(reason.startswith("heard") for reason in reasons)


def test_stop_strings_and_least_lengths_hold_in_training_and_evaluation(tmp_path: Path) -> None:
    origin = stored(tmp_path / "origin", of_thoughts())
    domains = {"heard": custom("tests.heard:Heard").model_dump()}
    rollouts = {"prompts": 8, "n": 8, "max_new_tokens": 24, "stop": ["0", "a", "e", "dd"], "min_new_tokens": 3}
    config = run_of("rlvr", tmp_path, model=origin, domains=domains, steps=2, rollout=rollouts)
    run(config)
    rows = read_rows(config.output / "metrics.jsonl")
    assert all(row["engine_gap"] < 1e-4 for row in rows), "engine and learner compute the same log-probs"
    assert all(3 <= row["length/heard"] < 20 for row in rows)
    final = Evaluation.from_json((config.output / "eval" / "final.json").read_text())
    questions = final.domains["heard"].questions
    assert min(length for question in questions for length in question.lengths_G) >= 3
    assert any(finish == "stop" for question in questions for finish in question.finishes_G)
    texts = [question.response for question in questions]
    texts += [row["response"] for row in read_rows(config.output / "samples.jsonl")]
    letters = [text.replace("<think>", "").replace("</think>", "") for text in texts]
    assert not any(string in text[2:] for text in letters for string in ("0", "a", "e", "dd"))


def test_sft_imitates_thoughts_and_system_prompts(tmp_path: Path) -> None:
    origin = stored(tmp_path / "origin", of_thoughts())
    domains = {"heard": custom("tests.heard:Heard").model_dump(), "own": custom("tests.heard:Heard").model_dump()}
    domains["own"]["system_prompt"] = "be kind"
    config = run_of("sft", tmp_path, model=origin, domains=domains, steps=1, system_prompt="it is <end>")
    assert isinstance(config, SftConfig)
    run(config)
    with Session(config.model_copy(update={"output": tmp_path / "again"}), LossConfig()) as session:
        tokenizer = session.learner.tokenizer
        for name, told in (("heard", "it is <end>"), ("own", "be kind")):
            task = session.mixture.domains[name].draw()
            ids, mask = session.policy.renderer.demonstration(task, "<think>3+4</think>7")
            asked = task.messages[-1]["content"]
            assert tokenizer.decode(ids) == f"<system>{told}<user>{asked}<assistant><think>3+4</think>7<end>"
            assert ids[mask].tolist() == tokenizer.encode("<think>3+4</think>7<end>")
            assert ids.tolist().count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}", "no system"),
        (
            "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}",
            "does not show the system message 'be kind'",
        ),
    ],
)
def test_a_template_without_a_system_role_is_refused_at_the_start(template: str, message: str, tmp_path: Path) -> None:
    plain = character_tokenizer("a").chat_template
    origin = stored(tmp_path / "origin", of_thoughts(template + plain))
    domains = {"heard": custom("tests.heard:Heard").model_dump()}
    config = run_of("rlvr", tmp_path, model=origin, domains=domains, steps=1, system_prompt="be kind")
    with pytest.raises(ValueError, match=rf"'heard'.*{message}"):
        run(config)
    assert not (config.output / "metrics.jsonl").exists()


def test_the_run_says_once_which_tokens_end_a_response(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = of_thoughts(character_tokenizer("a").chat_template.replace("<end>", "<think>"))
    tokenizer.chat_template = tokenizer.chat_template.replace("<think>", "<tool>")
    origin = stored(tmp_path / "origin", tokenizer)
    run(run_of("rlvr", tmp_path, model=origin, steps=1))
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1 and "'<tool>'" in notes[0] and "'<end>' (1)" in notes[0]


# -- configuration -----------------------------------------------------------------------------------------------------

LETTERS = {"tasks": {"kind": "letters", "task": "add"}, "eval_size": 4}
BASE: dict[str, Any] = {"recipe": "rlvr", "output": "x", "model": "m", "steps": 1}


def test_a_domains_system_prompt_wins_over_the_runs() -> None:
    domains = {"a": LETTERS, "b": LETTERS | {"system_prompt": "mine"}, "c": LETTERS | {"system_prompt": ""}}
    config = parse_run(BASE | {"domains": domains, "system_prompt": "all"})
    assert [domain.system_prompt for domain in config.domains.values()] == ["all", "mine", ""]
    assert parse_run(json.loads(config.model_dump_json())) == config
    mixture = Mixture(config.domains, 0)
    for task in (*mixture.draw(9), *(task for tasks in mixture.eval_tasks.values() for task in tasks)):
        told = [message["content"] for message in task.messages if message["role"] == "system"]
        assert told == {"a": ["all"], "b": ["mine"], "c": []}[task.domain]


def test_a_system_message_that_a_chat_has_follows_in_the_same() -> None:
    tasks = {"kind": "calculator", "show": "prompt", "calls": "json"}
    config = DomainConfig.model_validate({"tasks": tasks, "eval_size": 4, "system_prompt": "Be brief."})
    for task in Mixture({"sums": config}, 0).draw(3):
        assert [message["role"] for message in task.messages] == ["system", "user"]
        assert task.messages[0]["content"].startswith("Be brief.\n\nYou may call tools.")


def test_a_merge_takes_them_too() -> None:
    data = {"recipe": "merge", "output": "x", "base": "m", "models": {"a": "b"}, "method": "average"}
    config = parse_run(data | {"domains": {"a": LETTERS}, "system_prompt": "all"})
    assert isinstance(config, MergeConfig) and config.domains["a"].system_prompt == "all"


@pytest.mark.parametrize(
    ("rollouts", "message"),
    [
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens 9 is above max_new_tokens 8"),
        ({"stop": [""]}, "rollout.stop"),
        ({"stop": "abc"}, "rollout.stop"),
    ],
)
def test_nonsense_rollouts_are_refused(rollouts: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_run(BASE | {"domains": {"a": LETTERS}, "rollout": rollouts})


def test_a_domain_must_have_room_for_the_least_length() -> None:
    with pytest.raises(ConfigError, match=r"domains.a.max_new_tokens 4 is below rollout.min_new_tokens 5"):
        parse_run(BASE | {"domains": {"a": LETTERS | {"max_new_tokens": 4}}, "rollout": {"min_new_tokens": 5}})

"""Before anything long starts: a teacher that cannot teach this student is refused, a distant one is warned about."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onepolicy.config import LossConfig, ModelConfig, MopdConfig, ScratchConfig, parse_run
from onepolicy.diagnostics import policy_gap
from onepolicy.engines.base import Scorer
from onepolicy.engines.forward import live_head, score_samples
from onepolicy.models import load_model
from onepolicy.preflight import check_identity, check_teachers, probe
from onepolicy.session import Session
from onepolicy.tasks.letters import ALPHABET
from onepolicy.teachers import Routed
from onepolicy.tiny import from_scratch
from onepolicy.types import Sample, TokenScores, Want
from tests.runs import run_of
from tests.tiny_models import KINDS, batch, build, plain_logprobs


def model_of(alphabet: str = ALPHABET, seed: int = 0, **changes: Any) -> tuple[Any, Any]:
    return from_scratch(ScratchConfig(architecture=KINDS["qwen3"] | changes, alphabet=alphabet), seed)


def stored(folder: Path, model: Any, tokenizer: Any) -> ModelConfig:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelConfig(path=str(folder))


def checked(tmp_path: Path, change: Callable[[Any, Any], None] = lambda model, tokenizer: None, **options: Any) -> None:
    """The student is plain; the teacher is the same but for `options`, and `change` applied to (model, tokenizer)."""
    model, tokenizer = model_of(**options)
    change(model, tokenizer)
    teacher = stored(tmp_path / "teacher", model, tokenizer)
    student, its_tokenizer = model_of()
    check_identity("expert", teacher, its_tokenizer, student.generation_config)


def test_a_teacher_of_the_same_make_passes(tmp_path):
    checked(tmp_path, seed=1)


def test_a_permuted_tokenizer_is_refused(tmp_path):
    swapped = "b" + "a" + ALPHABET[2:]
    with pytest.raises(ValueError, match=r"'expert' has another tokenizer: 2 tokens .*'a' is 6 in .* and 7 in"):
        checked(tmp_path, alphabet=swapped)


def test_a_tokenizer_with_other_tokens_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"1 tokens differ, for example '!' is absent in the student and 44 in the"):
        checked(tmp_path, alphabet=ALPHABET + "!")


def test_another_end_token_is_refused(tmp_path):
    def another_end(model: Any, tokenizer: Any) -> None:
        model.generation_config.eos_token_id = [1, 3]

    with pytest.raises(ValueError, match=r"ends an answer with tokens \[1, 3\], the student with \[1\]: set"):
        checked(tmp_path, another_end)


def test_another_chat_template_is_refused(tmp_path):
    def another_template(model: Any, tokenizer: Any) -> None:
        tokenizer.chat_template = tokenizer.chat_template.replace("<{{ message.role }}>", "<{{ message.role }}>:")

    with pytest.raises(ValueError, match=r"renders a chat as '<user>:1 a.*, the student as '<user>1 a"):
        checked(tmp_path, another_template)

    def none_at_all(model: Any, tokenizer: Any) -> None:
        tokenizer.chat_template = None

    with pytest.raises(ValueError, match=r"renders a chat as 'no chat template', the student as"):
        checked(tmp_path / "base", none_at_all)


def test_a_template_that_is_written_otherwise_and_renders_the_same_passes(tmp_path):
    def reworded(model: Any, tokenizer: Any) -> None:
        tokenizer.chat_template = "{# the same #}" + tokenizer.chat_template

    checked(tmp_path, reworded)


BASE = "<user>"  # what a base model ends with, where its chat template ends a turn with <end>


def test_a_base_student_whose_end_token_is_another_passes_beside_an_instructed_teacher(tmp_path):
    """Both render a chat alike, and the template's token ends a response of either."""
    student, teacher = model_of(), model_of(seed=1)
    student[1].eos_token = BASE
    student[0].generation_config.eos_token_id = student[1].eos_token_id
    for number, named in enumerate(([1], [1, student[1].eos_token_id])):
        teacher[0].generation_config.eos_token_id = named
        expert = stored(tmp_path / str(number), *teacher)
        check_identity("expert", expert, student[1], student[0].generation_config)
    with pytest.raises(ValueError, match=r"ends an answer with tokens \[1, 3\], the student with \[1\]"):
        ours, its_tokenizer = model_of()
        check_identity("expert", stored(tmp_path / "base", *student), its_tokenizer, ours.generation_config)


SWITCH = "{% if add_generation_prompt %}<assistant>{{ 'b' if brief else '' }}{% endif %}"


def test_chats_are_compared_with_the_arguments_of_both(tmp_path):
    model, tokenizer = model_of()
    tokenizer.chat_template = tokenizer.chat_template.partition("{% if add_generation_prompt %}")[0] + SWITCH
    folder = stored(tmp_path / "teacher", model, tokenizer).path

    def check(ours: dict[str, Any] | None, theirs: dict[str, Any] | None) -> None:
        teacher = ModelConfig(path=folder, chat_template_kwargs=theirs)
        check_identity("expert", teacher, tokenizer, model.generation_config, ours)

    for same in (None, {"brief": True}):
        check(same, same)
        check(same, None)  # a teacher that says nothing is taken to be asked as the student is
    check(None, {"brief": False})
    for ours, theirs in (({"brief": True}, {"brief": False}), (None, {"brief": True}), ({"brief": True}, {})):
        with pytest.raises(ValueError, match=r"renders a chat as .*chat_template_kwargs"):
            check(ours, theirs)
    with pytest.raises(ValueError, match="no argument 'brieff'"):
        check({"brieff": True}, None)


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused_and_a_padded_one_passes(tmp_path):
    with pytest.raises(ValueError, match="has a vocabulary of 40, less than the student's tokenizer of 44"):
        checked(tmp_path / "small", vocab_size=40)
    checked(tmp_path / "padded", vocab_size=64)


# -- on the student's own rollouts -------------------------------------------------------------------------------------


def mopd(tmp_path: Path, teacher: ModelConfig, student: ModelConfig, **check: Any) -> MopdConfig:
    data = {
        "recipe": "mopd",
        "output": str(tmp_path / "run"),
        "model": student.model_dump(exclude_none=True),
        "domains": {"sort": {"tasks": {"kind": "letters", "task": "sort"}, "eval_size": 8}},
        "teachers": {"expert": {"model": teacher.model_dump(exclude_none=True), "domains": ["sort"]}},
        "steps": 1,
        "rollout": {"max_new_tokens": 8},
        "check": {"samples": 8, "overlap_k": 5, **check},
        "device": "cpu",
    }
    config = parse_run(data)
    assert isinstance(config, MopdConfig)
    return config


def reports(config: MopdConfig):
    with Session(config, config.loss) as session:
        models = {name: teacher.model for name, teacher in config.teachers.items()}
        teachers = session.frozen(models, config.routes)
        return check_teachers(session, teachers, config, probe(session, config.check.samples))


def test_the_students_own_weights_as_a_teacher_are_at_distance_zero(tmp_path, capsys):
    same = stored(tmp_path / "m", *model_of())
    (report,) = reports(mopd(tmp_path, same, same))
    assert (report.domain, report.teacher, report.warnings) == ("sort", "expert", ())
    assert (report.verdict, report.changes, report.disagreement) == ("absorbed", (), None)
    assert report.reverse_kl == pytest.approx(0, abs=1e-6)
    assert report.symmetric_kl == pytest.approx(0, abs=1e-6)
    assert (report.overlap, report.invalid_share) == (1.0, 0.0)
    assert report.tokens >= 8
    assert "warning" not in capsys.readouterr().err
    kept = json.loads((tmp_path / "run" / "teachers.json").read_text())
    assert kept[0]["overlap"] == 1.0


def test_a_teacher_far_away_is_warned_about_with_its_numbers(tmp_path, capsys):
    far, tokenizer = model_of(seed=1)
    with torch.no_grad():
        far.get_output_embeddings().weight.mul_(20)
    config = mopd(tmp_path, stored(tmp_path / "t", far, tokenizer), stored(tmp_path / "s", *model_of()))
    (report,) = reports(config)
    assert report.reverse_kl > 0.15
    assert report.overlap < 0.6
    said = capsys.readouterr().err
    assert f"teacher 'expert' is {report.reverse_kl:.3f} nats a token away from the student in 'sort'" in said
    assert "of its top 5 tokens" in said
    assert report.verdict == "doubtful" and report.changes[0].startswith("model=WARM/model")


def test_top_k_from_a_teacher_of_another_origin_is_advised_against(tmp_path):
    loss = {"distill": {"estimator": "topk"}}
    config = mopd(tmp_path, stored(tmp_path / "t", *model_of(seed=1)), stored(tmp_path / "s", *model_of()))
    (report,) = reports(config.model_copy(update={"loss": LossConfig.model_validate(loss)}))
    assert report.verdict == "doubtful" and report.changes[1:] == ("loss.distill.estimator=sampled",)


def test_a_teacher_that_is_far_away_but_likes_the_same_tokens_takes_longer(tmp_path):
    """The student with its logits scaled: another distribution over the same ranks."""
    sharp, tokenizer = model_of()
    with torch.no_grad():
        sharp.base_model.norm.weight.mul_(60)
    (report,) = reports(mopd(tmp_path, stored(tmp_path / "t", sharp, tokenizer), stored(tmp_path / "s", *model_of())))
    assert report.overlap == 1 and report.reverse_kl > 0.15
    assert report.verdict == "slowly" and len(report.warnings) == 1
    assert "it will take more steps, or a student that is warmed up on its rollouts" in report.warnings[0]
    warm = "model=WARM/model (WARM: the output of a run of recipe offpolicy with teacher 'expert')"
    assert report.changes == ("steps=2", warm), "twice the one of this run"


def test_teachers_that_differ_about_a_domain_are_reported_and_warned_about(tmp_path, capsys):
    config = run_of("mopd", tmp_path, check={"samples": 8, "warn_overlap": 0.01, "warn_disagreement": 1e-3})
    assert isinstance(config, MopdConfig)
    early, late = reports(config)
    assert early.verdict == late.verdict == "absorbed"
    assert "the teachers differ by 0.0" in early.warnings[0]
    with Session(config, config.loss) as session:
        samples = probe(session, 8)
    models = [load_model(teacher.model, 0)[0] for teacher in config.teachers.values()]
    spread = [np.abs(plain_logprobs(models[0], s) - plain_logprobs(models[1], s)) for s in samples]
    expected = np.concatenate([x for x, s in zip(spread, samples, strict=True) if s.task.domain == "early"])
    assert early.disagreement == pytest.approx(expected.mean(), abs=1e-5)
    assert early.disagreement_share == 0


@pytest.mark.parametrize("padded", ["teacher", "student"])
def test_a_padded_vocabulary_is_compared_over_what_both_have(padded, tmp_path):
    narrow, tokenizer = model_of()
    wide, _ = model_of(vocab_size=64)
    with torch.no_grad():
        for target, source in zip(wide.parameters(), narrow.parameters(), strict=True):
            target[: len(source)] = source
    one, other = stored(tmp_path / "n", narrow, tokenizer), stored(tmp_path / "w", wide, tokenizer)
    teacher, student = (other, one) if padded == "teacher" else (one, other)
    (report,) = reports(mopd(tmp_path, teacher, student, max_invalid_share=1.0))
    assert report.reverse_kl == pytest.approx(0, abs=1e-6)
    assert report.overlap == 1.0


def test_broken_weights_are_refused_before_training_naming_tensor_and_file(tmp_path):
    """Also where only some tokens reach them, so that no probe would notice."""
    student = stored(tmp_path / "s", *model_of())
    for folder, value in (("nan", float("nan")), ("inf", float("-inf"))):
        broken, tokenizer = model_of(tie_word_embeddings=False)
        with torch.no_grad():
            broken.get_input_embeddings().weight[20, 3] = value
        config = mopd(tmp_path / folder, stored(tmp_path / folder / "t", broken, tokenizer), student)
        with pytest.raises(
            ValueError, match=rf"teacher 'expert': tensor 'model.embed_tokens.weight' in .*{folder}/t/mod"
        ):
            reports(config)


def test_scores_that_are_not_finite_on_the_students_tokens_are_refused(tmp_path):
    """Finite weights may overflow on some tokens."""

    class Overflowing:
        def __init__(self, teacher: Scorer) -> None:
            self.teacher = teacher

        def score(self, samples: Sequence[Sample], want: Want) -> list[TokenScores]:
            scores = self.teacher.score(samples, want)
            for one in scores:
                one.logprobs_R[::2] = np.nan
            return scores

    config = mopd(tmp_path, *(stored(tmp_path / name, *model_of()) for name in "ts"))
    with Session(config, config.loss) as session:
        teacher = session.frozen({"expert": config.teachers["expert"].model}, config.routes).scorers["sort"]
        samples = probe(session, 8)
        with pytest.raises(
            ValueError, match=r"'expert' gives no finite log-prob for .*% of the student's tokens in 's"
        ):
            check_teachers(session, Routed({"sort": Overflowing(teacher)}), config, samples)


# -- the gap itself ----------------------------------------------------------------------------------------------------


def test_the_gap_equals_its_definition_and_leaves_unscored_tokens_out():
    samples = batch([(3, 5), (2, 0), (4, 3)])
    p, q = (
        score_samples(m, live_head(m), samples, Want("full"), source="", temperature=2.0, tokens_per_batch=99)
        for m in (build(seed=0)[0], build(seed=1)[0])
    )
    q[0].logprobs_R[1] = np.nan
    found = policy_gap(p, q, 4, temperature=2.0)

    def distributions(scores: list[TokenScores]) -> np.ndarray:
        hidden = np.concatenate([scores[0].hidden_RH[[0, 2, 3, 4]], scores[2].hidden_RH])
        return (scores[0].head.logits(torch.from_numpy(hidden)) / 2).log_softmax(-1).detach().numpy().astype(float)

    a, b = distributions(p), distributions(q)
    reverse, forward = (np.exp(a) * (a - b)).sum(-1).mean(), (np.exp(b) * (b - a)).sum(-1).mean()
    overlap = np.mean([len({*np.argsort(-x)[:4]} & {*np.argsort(-y)[:4]}) / 4 for x, y in zip(a, b, strict=True)])
    assert found.tokens == 7
    assert found.reverse_kl == pytest.approx(reverse, rel=1e-4)
    assert found.symmetric_kl == pytest.approx((reverse + forward) / 2, rel=1e-4)
    assert found.overlap == pytest.approx(overlap)
    with pytest.raises(ValueError, match="no token"):
        policy_gap([p[1]], [q[1]], 4)

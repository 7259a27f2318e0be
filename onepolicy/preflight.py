"""What is checked about teachers before anything long starts.

`check_experts` comes first of all, before a gold answer is graded and a weight is read: are the folders of model and
teachers there and complete, of an architecture that can be used, and of one tokenizer? `check_identity` compares
files: tokenizer map, vocabulary, end tokens, chat template; a difference is an error that names both values.
`check_teachers` looks at the student's answers to a few prompts of each domain (`probe`) and says
whether its teacher will be absorbed, by how far it is away (levels and their sources: config.CheckConfig):

    absorbed    reverse KL and overlap are on the good side of their levels
    slowly      far away, but about the same tokens: a teacher of the student's origin that has come far from it
    doubtful    other tokens, near or far: most likely a teacher of another origin

What that rests on: MOPD's foreign teacher (≈.19 nats) gave .60 of its gain, same-origin ones (≈.04) gave .91 to .95. In
the demo, experts of the student's origin lie at .05 to .20 nats and overlaps of .63 to .75, and give .91 to 1.03 of
their gain; those of another seed's origin at .06 to .22 nats and overlaps of .44 to .55: overlap tells the two apart
there, KL does not. The foreign ones' scores were reached all the same, with thrice the KL left over (LOG.md).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from transformers import GenerationConfig, PreTrainedTokenizerBase

from onepolicy.checkpoints import MODEL, check_checkpoint, checkpoint_folder, is_local, load_config, weight_files
from onepolicy.config import CheckConfig, ModelConfig, MopdConfig, RunConfig, TaughtConfig
from onepolicy.diagnostics import PolicyGap, disagreement_row, overlap_size, policy_gap
from onepolicy.engines.local import LocalEngine
from onepolicy.engines.positions import context_length
from onepolicy.engines.room import MODEL_TITLE
from onepolicy.engines.template import RENDERING, Template
from onepolicy.engines.text import Renderer
from onepolicy.models import differing_tokens, text_settings
from onepolicy.runfolder import write_atomic
from onepolicy.teachers import Routed, annotate_disagreement
from onepolicy.types import Sample, TokenScores, Want

if TYPE_CHECKING:
    from onepolicy.session import Session

Verdict = Literal["absorbed", "slowly", "doubtful"]
PROBE = [{"role": "user", "content": "1 a"}, {"role": "assistant", "content": "b 2"}, {"role": "user", "content": "c"}]


@dataclass(frozen=True, slots=True)
class TeacherReport:
    """One domain's teacher on the student's own rollouts: KL in nats a token, overlap and shares in [0, 1].

    `disagreement` is among all teachers, on this domain's tokens (None: there is only one). `changes` are what the
    warnings advise, as far as it can be said in the configuration.
    """

    domain: str
    teacher: str
    reverse_kl: float
    symmetric_kl: float
    overlap: float
    overlap_k: int
    invalid_share: float
    disagreement: float | None
    disagreement_share: float | None
    tokens: int
    verdict: Verdict
    warnings: tuple[str, ...]
    changes: tuple[str, ...]


def check_experts(config: RunConfig) -> None:
    """Everything about a run's checkpoints that can be known in seconds: no weights are read.

    First all folders, so that a misspelt path is found before anything is downloaded, then tokenizers, then what only
    the hub has. Raises ValueError naming the model or teacher.
    """
    teachers = (
        {name: teacher.model for name, teacher in config.teachers.items()} if isinstance(config, TaughtConfig) else {}
    )
    models = {MODEL: config.model} if config.model.path is not None else {}
    models |= {f"teacher {name!r}": model for name, model in teachers.items()}
    for local in (True, False):
        for who, model in models.items():
            if is_local(model) is local:
                check_checkpoint(model, who)
    tokenizer, generation_config = text_settings(config.model)
    Renderer(
        tokenizer, generation_config, config.model.chat_template_kwargs
    )  # raises for a template that cannot render
    for name, model in teachers.items():
        check_identity(name, model, tokenizer, generation_config, config.model.chat_template_kwargs)
    for who, model in models.items():
        if not is_local(model):
            weight_files(checkpoint_folder(model, who), who)


def fit_teachers(config: RunConfig, engines: Sequence[LocalEngine]) -> str:
    """Let no row outgrow the context of a teacher, who could not score it whole. Returns whose context is the limit."""
    whose = MODEL_TITLE
    for name, teacher in config.teachers.items() if isinstance(config, TaughtConfig) else ():
        who = f"teacher {name!r}"
        context = context_length(load_config(checkpoint_folder(teacher.model, who, weights=False), who))
        if context < engines[0].context:
            whose = who
            for engine in engines:
                engine.context = context
    return whose


def check_identity(
    name: str,
    teacher: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    generation_config: GenerationConfig,
    kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Raises ValueError when the teacher does not read and write the student's tokens.

    `tokenizer`, `generation_config` and `kwargs` (of its chat template) are the student's. The student may end a
    response with tokens that the teacher does not use (a base model's own), not the other way.
    """
    theirs, their_generation_config = text_settings(teacher, f"teacher {name!r}")
    _same_tokens(name, tokenizer, theirs)
    model_config = load_config(checkpoint_folder(teacher, f"teacher {name!r}", weights=False), f"teacher {name!r}")
    rows = model_config.get_text_config().vocab_size
    if rows < len(tokenizer):
        raise ValueError(
            f"teacher {name!r} has a vocabulary of {rows}, less than the student's tokenizer of {len(tokenizer)} "
            "tokens: it cannot score all that the student writes; use a teacher of the student's family"
        )
    our_kwargs = kwargs or {}
    their_kwargs = our_kwargs if teacher.chat_template_kwargs is None else teacher.chat_template_kwargs
    our_renderer = Renderer(tokenizer, generation_config, our_kwargs)
    their_renderer = Renderer(theirs, their_generation_config, their_kwargs)
    ours_end, theirs_end = our_renderer.stop_ids, their_renderer.stop_ids
    if not theirs_end <= ours_end:
        raise ValueError(
            f"teacher {name!r} ends an answer with tokens {sorted(theirs_end)}, the student with {sorted(ours_end)}: "
            "set eos_token_id in generation_config.json of one of them to the other's"
        )
    if (tokenizer.chat_template, our_kwargs) == (theirs.chat_template, their_kwargs):
        return
    ours_shown, theirs_shown = _rendered(our_renderer.template), _rendered(their_renderer.template)
    if ours_shown != theirs_shown:
        raise ValueError(
            f"teacher {name!r} renders a chat as {theirs_shown!r}, the student as {ours_shown!r}: give both the chat "
            "template that the student was trained with, and the same chat_template_kwargs"
        )


def probe(session: Session, prompts: int, n: int = 1) -> list[Sample]:
    """The policy's answers to some held-out prompts of every domain that is drawn from, n to each.

    Raises ValueError, with the reason, when no answer in a domain has a reward: the engine or the grader fails there.
    """
    domains = list(session.mixture.shares)
    tasks = [task for domain in domains for task in session.mixture.eval_tasks[domain][:prompts]]
    samples = session.rollout(tasks, n, 0, draw=99)
    for domain in domains:
        mine = [sample for sample in samples if sample.task.domain == domain]
        if not any(sample.is_graded for sample in mine):
            raise ValueError(
                f"domain {domain!r}: none of {len(mine)} answers of the starting model has a reward: {mine[0].reason}"
            )
    return [sample for sample in samples if sample.length]


def check_teachers(
    session: Session, teachers: Routed, config: MopdConfig, samples: Sequence[Sample]
) -> list[TeacherReport]:
    """Report every domain's teacher, keep it as teachers.json, warn on stderr. Raises ValueError on invalid scores."""
    learner = session.learner
    ours = learner.score(samples, Want("full"))
    theirs = teachers.score(samples, Want("full"))
    differ = {}
    if len(teachers.distinct) > 1:
        annotate_disagreement(samples, teachers)
        differ = disagreement_row(samples)
    reports = []
    for domain in session.mixture.shares:
        rows = [i for i, sample in enumerate(samples) if sample.task.domain == domain]
        invalid = _invalid_share(domain, [theirs[i] for i in rows], config.check)
        k = config.check.overlap_k or overlap_size(learner.head.vocabulary)
        gap = policy_gap([ours[i] for i in rows], [theirs[i] for i in rows], k, learner.temperature)
        spread = differ.get(f"disagreement/{domain}"), differ.get(f"disagreement_share/{domain}")
        reports.append(_report(domain, theirs[rows[0]].source, gap, k, invalid, spread, config))
    write_atomic(session.folder.path / "teachers.json", json.dumps([asdict(r) for r in reports], indent=1))
    for report in reports:
        for warning in report.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    return reports


def _invalid_share(domain: str, theirs: Sequence[TokenScores], config: CheckConfig) -> float:
    invalid = 1.0 - float(np.mean(np.isfinite(np.concatenate([scores.logprobs_R for scores in theirs]))))
    if invalid > config.max_invalid_share:
        raise ValueError(
            f"teacher {theirs[0].source!r} gives no finite log-prob for {invalid:.1%} of the student's tokens in "
            f"{domain!r} (allowed: {config.max_invalid_share:.1%}): its weights are broken, or its vocabulary is "
            "another"
        )
    return invalid


def _report(
    domain: str,
    name: str,
    gap: PolicyGap,
    k: int,
    invalid: float,
    disagreement: tuple[float | None, float | None],
    config: MopdConfig,
) -> TeacherReport:
    levels = config.check
    far, strange = gap.reverse_kl > levels.warn_reverse_kl, gap.overlap < levels.warn_overlap
    warm = f"model=WARM/model (WARM: the output of a run of recipe offpolicy with teacher {name!r})"
    warnings, changes = [], list[str]()
    if far:
        warnings.append(
            f"teacher {name!r} is {gap.reverse_kl:.3f} nats a token away from the student in {domain!r} "
            f"(warn above {levels.warn_reverse_kl}). In MOPD's runs teachers of the student's origin start near .04, "
            "foreign ones near .19 and are absorbed badly. If it has only come far from the student's origin, it will "
            "take more steps, or a student that is warmed up on its rollouts; else take one of the student's origin"
        )
        changes = [f"steps={2 * config.steps}", warm]
    if strange:
        warnings.append(
            f"teacher {name!r} shares {gap.overlap:.0%} of its top {k} tokens with the student in {domain!r} (warn "
            f"below {levels.warn_overlap:.0%}): most likely its origin is another. Train it from the student's, or "
            "warm the student up on its rollouts"
        )
        changes = [warm]
        if config.loss.distill.estimator == "topk":
            warnings.append(
                f"top-k distillation from a teacher as far away as {name!r} collapsed in MOPD's runs (normalised score "
                "-1.19, sampled: .600)"
            )
            changes.append("loss.distill.estimator=sampled")
    if disagreement[0] is not None and disagreement[0] > levels.warn_disagreement:
        warnings.append(
            f"the teachers differ by {disagreement[0]:.2f} nats a token about the student's answers in {domain!r} "
            f"(warn above {levels.warn_disagreement}): if its prompts look like another domain's, what is learnt from "
            "one teacher is unlearnt from the other; let the prompt say which domain it is. Masking such tokens lost "
            ".5 to .8 points in Open-MOPD"
        )
    verdict: Verdict = "doubtful" if strange else "slowly" if far else "absorbed"
    return TeacherReport(
        domain=domain,
        teacher=name,
        reverse_kl=gap.reverse_kl,
        symmetric_kl=gap.symmetric_kl,
        overlap=gap.overlap,
        overlap_k=k,
        invalid_share=invalid,
        disagreement=disagreement[0],
        disagreement_share=disagreement[1],
        tokens=gap.tokens,
        verdict=verdict,
        warnings=tuple(warnings),
        changes=tuple(changes),
    )


def _same_tokens(name: str, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    if differing := differing_tokens(student, teacher):
        token, ours, theirs = differing[0], student.get_vocab(), teacher.get_vocab()
        raise ValueError(
            f"teacher {name!r} has another tokenizer: {len(differing)} tokens differ, for example {token!r} is "
            f"{ours.get(token, 'absent')} in the student and {theirs.get(token, 'absent')} in the teacher; "
            "distillation across tokenizers is not supported, use a teacher of the student's family"
        )


def _rendered(template: Template) -> str:
    if template.tokenizer.chat_template is None:
        return "no chat template"
    try:
        return template.text(PROBE, add_generation_prompt=True)
    except RENDERING as error:
        return f"an error: {error}"

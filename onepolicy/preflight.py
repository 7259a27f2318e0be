"""What is checked about teachers before anything long starts.

`check_identity` compares files: tokenizer map, vocabulary, end tokens, chat template; a difference is an error that
names both values. `check_teachers` lets the student answer a few prompts of each domain and reports how far its
teacher is away, with a warning above a set level (MOPD: ≈.04 nats a token for teachers of the student's origin, ≈.19
for foreign ones).
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from onepolicy.config import CheckConfig, ModelConfig
from onepolicy.diagnostics import policy_gap
from onepolicy.engines.text import Renderer
from onepolicy.models import differing_tokens, load_tokenizer
from onepolicy.runfolder import write_atomic
from onepolicy.types import TokenScores, Want

if TYPE_CHECKING:
    from onepolicy.session import Session
    from onepolicy.teachers import Routed

PROBE = [{"role": "user", "content": "1 a"}, {"role": "assistant", "content": "b 2"}, {"role": "user", "content": "c"}]


@dataclass(frozen=True, slots=True)
class TeacherReport:
    """One domain's teacher on the student's own rollouts: KL in nats a token, overlap and shares in [0, 1]."""

    domain: str
    teacher: str
    reverse_kl: float
    symmetric_kl: float
    overlap: float
    invalid_share: float
    tokens: int
    warnings: tuple[str, ...]


def check_identity(
    name: str, teacher: ModelConfig, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raises ValueError when the teacher does not read and write the student's tokens."""
    theirs = load_tokenizer(teacher)
    _same_tokens(name, tokenizer, theirs)
    model_config = AutoConfig.from_pretrained(teacher.path, revision=teacher.revision)
    rows = model_config.get_text_config().vocab_size
    if rows < len(tokenizer):
        raise ValueError(
            f"teacher {name!r} has a vocabulary of {rows}, less than the student's tokenizer of {len(tokenizer)} "
            "tokens: it cannot score all that the student writes; use a teacher of the student's family"
        )
    ours_end = Renderer(tokenizer, student.generation_config).stop_ids
    theirs_end = Renderer(theirs, _generation_config(teacher)).stop_ids
    if ours_end != theirs_end:
        raise ValueError(
            f"teacher {name!r} ends an answer with tokens {sorted(theirs_end)}, the student with {sorted(ours_end)}: "
            "set eos_token_id in generation_config.json of one of them to the other's"
        )
    if tokenizer.chat_template != theirs.chat_template and _rendered(tokenizer) != _rendered(theirs):
        raise ValueError(
            f"teacher {name!r} renders a chat as {_rendered(theirs)!r}, the student as {_rendered(tokenizer)!r}: "
            "give both the chat template that the student was trained with"
        )


def check_teachers(session: Session, teachers: Routed, config: CheckConfig) -> list[TeacherReport]:
    """Report every domain's teacher, keep it as teachers.json, warn on stderr. Raises ValueError on invalid scores."""
    domains = [domain for domain in session.mixture.domains if domain in teachers.scorers]  # the others only evaluate
    tasks = [task for domain in domains for task in session.mixture.eval_tasks[domain][: config.samples]]
    samples = [s for s in session.rollout(tasks, 1, 0, draw=99) if s.length]
    learner = session.learner
    ours = learner.score(samples, Want("full"))
    theirs = teachers.score(samples, Want("full"))
    reports = []
    for domain in domains:
        rows = [i for i, sample in enumerate(samples) if sample.task.domain == domain]
        if not rows:
            raise ValueError(f"the student wrote nothing at all in domain {domain!r}: check its chat template")
        reports.append(_report(domain, [ours[i] for i in rows], [theirs[i] for i in rows], config, learner.temperature))
    write_atomic(session.folder.path / "teachers.json", json.dumps([asdict(r) for r in reports], indent=1))
    for report in reports:
        for warning in report.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    return reports


def _report(
    domain: str, ours: list[TokenScores], theirs: list[TokenScores], config: CheckConfig, temperature: float
) -> TeacherReport:
    name = theirs[0].source
    invalid = 1.0 - float(np.mean(np.isfinite(np.concatenate([scores.logprobs_R for scores in theirs]))))
    if invalid > config.max_invalid_share:
        raise ValueError(
            f"teacher {name!r} gives no finite log-prob for {invalid:.1%} of the student's tokens in {domain!r} "
            f"(allowed: {config.max_invalid_share:.1%}): its weights are broken, or its vocabulary is another"
        )
    gap = policy_gap(ours, theirs, config.overlap_k, temperature)
    warnings = []
    if gap.reverse_kl > config.warn_reverse_kl:
        warnings.append(
            f"teacher {name!r} is {gap.reverse_kl:.3f} nats a token away from the student in {domain!r} "
            f"(warn above {config.warn_reverse_kl}). In MOPD's runs teachers of the student's origin start near .04, "
            "foreign ones near .19 and are absorbed badly. If it is one of those, warm the student up on its rollouts; "
            "if it has only come far from your origin, raise check.warn_reverse_kl"
        )
    if gap.overlap < config.warn_overlap:
        warnings.append(
            f"teacher {name!r} shares {gap.overlap:.0%} of its top {config.overlap_k} tokens with the student in "
            f"{domain!r} (warn below {config.warn_overlap:.0%}): little of what it knows can be reached by sampling"
        )
    return TeacherReport(
        domain, name, gap.reverse_kl, gap.symmetric_kl, gap.overlap, invalid, gap.tokens, tuple(warnings)
    )


def _same_tokens(name: str, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    if differing := differing_tokens(student, teacher):
        token, ours, theirs = differing[0], student.get_vocab(), teacher.get_vocab()
        raise ValueError(
            f"teacher {name!r} has another tokenizer: {len(differing)} tokens differ, for example {token!r} is "
            f"{ours.get(token, 'absent')} in the student and {theirs.get(token, 'absent')} in the teacher; "
            "distillation across tokenizers is not supported, use a teacher of the student's family"
        )


def _rendered(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.chat_template is None:
        return "no chat template"
    return str(tokenizer.apply_chat_template(PROBE, tokenize=False, add_generation_prompt=True))


def _generation_config(config: ModelConfig) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(str(config.path), revision=config.revision or "main")
    except OSError:
        return None  # a checkpoint without one: its tokenizer's end token decides

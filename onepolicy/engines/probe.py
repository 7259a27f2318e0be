"""Proof at load, on a few short rows, that every path of a run gives a row the log-probs that it has alone.

    score     rows of unlike length in one micro-batch, and rollouts that read their prompt once
    generate  prompts of unlike length in one batch, a row that joins later, tokens read one at a time
    learn     the forward pass of an update, twice: with gradients, and with checkpointing where that is on

The reference is the architecture's own forward pass of each row alone, in evaluation mode. An architecture that fails
is refused by name: its position encoding looks at other rows, it drops tokens of a full batch, or it is random.
Probes are rows of up to 19 tokens, so an encoding that changes at 4,096 is not seen here: positions.py knows these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from onepolicy.engines.forward import Head, live_head, predicting_states, score_samples
from onepolicy.engines.local import Batch, LocalEngine, Row
from onepolicy.engines.mode import recomputing
from onepolicy.engines.positions import PositionRule
from onepolicy.types import Array, Sample, Task, Want

UNLIKE = ((3, 4), (11, 2), (7, 7))  # prompt and response tokens of rows that share a batch
ROLLOUTS = ((12, 2), (12, 3))  # of one prompt: reading it once saves enough for it to be done
LONGEST = 512  # tokens of a probe beyond the length at which positions change; a larger one is not probed
# Largest difference, as a fraction of the standard deviation of the logits. A wrong position or mask moves log-probs by
# a tenth of it; rounding in float32 by a millionth, in bfloat16 by some hundredths.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.1}
# raised by architectures that take no attention mask, no positions, or another kind of cache
UNFIT = (ValueError, TypeError, AttributeError, IndexError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Alone:
    """One row, and its log-probs by transformers' own forward pass of that row alone."""

    sample: Sample
    logprobs_TV: Tensor  # [T - 1, V], of the tokens after the first

    @property
    def logprobs_R(self) -> Array:
        next_T = torch.from_numpy(self.sample.token_ids_T[1:]).long().to(self.logprobs_TV.device)
        found: Array = self.logprobs_TV.gather(-1, next_T[:, None])[:, 0].cpu().numpy()
        return found[self.sample.mask_T[1:]]


def check_scoring(model: PreTrainedModel, vocabulary: int, context: int) -> None:
    """Raises ValueError, naming the architecture, when scores of a row depend on the rows beside it."""
    head, rows = live_head(model, vocabulary), _rows_alone(model, vocabulary, context)
    _require(model, rows, {"score": _scored(model, head, rows)})


def check_policy(engine: LocalEngine) -> None:
    """Raises ValueError, naming the architecture, when it generates, scores or learns with other log-probs than alone.

    The model is as the learner has left it: `mode.settle` comes first.
    """
    model: PreTrainedModel = engine.model
    head, rows = live_head(model, engine.vocabulary), _rows_alone(model, engine.vocabulary, engine.context)
    _require(model, rows, {"score": _scored(model, head, rows), "generate": _generated(engine, rows)})
    first, second = _learnt(model, head, rows), _learnt(model, head, rows)
    _require(model, rows, {"learn": first})
    _require(model, rows, {"learn": second})


def check_generation(engine: LocalEngine) -> None:
    """Raises ValueError, naming the architecture, when it generates with other log-probs than a row has alone."""
    rows = _rows_alone(engine.model, engine.vocabulary, engine.context)
    _require(engine.model, rows, {"generate": _generated(engine, rows)})


def _rows_alone(model: PreTrainedModel, vocabulary: int, context: int) -> list[Alone]:
    """Rows of random tokens, special ones left out: some architectures skip padding wherever they meet it."""
    special = {getattr(model.config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")}
    flat = {token for ids in special for token in (ids if isinstance(ids, list) else [ids])}
    known = np.array([token for token in range(min(vocabulary, 1000)) if token not in flat], dtype=np.int32)
    rng = np.random.default_rng(0)
    lengths = [*UNLIKE, *ROLLOUTS]
    for switch in PositionRule(model.config).switches:
        if switch + 4 <= min(LONGEST, context):
            lengths += [(switch + 2, 2), (max(1, switch - 2), 2)]
    prompts = {prompt: rng.choice(known, prompt) for prompt, _ in lengths}
    model.eval()
    if min(map(sum, lengths)) > context:
        raise ValueError(
            f"{type(model).__name__} from {model.name_or_path!r} has a context of {context} tokens "
            "(max_position_embeddings in config.json), which no prompt and response fit into: correct it there"
        )
    return [
        _alone(model, vocabulary, np.concatenate([prompts[prompt], rng.choice(known, response)]), prompt)
        for prompt, response in lengths
        if prompt + response <= context
    ]


@torch.no_grad()
def _alone(model: PreTrainedModel, vocabulary: int, ids_T: Array, prompt: int) -> Alone:
    task = Task("probe", "probe", ())
    sample = Sample(task, ids_T, np.arange(len(ids_T)) >= prompt, np.zeros(len(ids_T) - prompt, dtype=np.float32))
    # the last token predicts nothing; without it the row has the positions that it has while it is generated
    ids = torch.from_numpy(ids_T[:-1]).long()[None].to(model.device)
    logits_TV = model(input_ids=ids, use_cache=False).logits[0, :, :vocabulary].float()
    return Alone(sample, logits_TV.log_softmax(-1))


def _scored(model: PreTrainedModel, head: Head, rows: Sequence[Alone]) -> list[Array]:
    samples = [row.sample for row in rows]
    scores = score_samples(
        model, head, samples, Want("sampled"), source="probe", temperature=1.0, tokens_per_batch=LONGEST * len(rows)
    )
    return [score.logprobs_R for score in scores]


def _learnt(model: PreTrainedModel, head: Head, rows: Sequence[Alone]) -> list[Array]:
    """Log-probs from the forward pass of an update: one row a pass, with gradients."""
    found = []
    for row in rows:
        with torch.enable_grad(), recomputing(model):
            hidden_NH, tokens_N = predicting_states(model, [row.sample])
            logprobs_NV = head.logprobs(hidden_NH, 1.0)
        found.append(logprobs_NV.gather(-1, tokens_N[:, None])[:, 0].detach().cpu().numpy())
    return found


def _generated(engine: LocalEngine, rows: Sequence[Alone]) -> list[Array]:
    """Log-probs of the rows' own tokens, read as generation would: all prompts together, then a token at a time."""
    found: list[Array] = [np.empty(0)] * len(rows)
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(rows):
        length = row.sample.prompt_length
        key = engine.positions.key(length) if engine.joins else (length,)
        groups.setdefault(key, []).append(number)
    for numbers in groups.values():
        try:
            written = _written(engine, [rows[i].sample for i in numbers])
        except UNFIT as error:
            model = engine.model
            raise ValueError(
                f"{type(model).__name__} from {model.name_or_path!r} cannot generate here: {error}"
            ) from error
        for number, logprobs_R in zip(numbers, written, strict=True):
            found[number] = logprobs_R
    return found


def _written(engine: LocalEngine, samples: Sequence[Sample]) -> list[Array]:
    """One batch; where rows may join one, the last of several does so after the first token of the others."""
    waiting = [_row(number, sample) for number, sample in enumerate(samples)]
    late = waiting.pop() if engine.joins and len(waiting) > 1 else None
    batch = Batch(engine.model)
    logprobs: list[list[float]] = [[] for _ in samples]
    _take(batch, batch.read(waiting), engine.vocabulary, samples, logprobs)
    if late is not None:
        new = Batch(engine.model)
        _take(new, new.read([late]), engine.vocabulary, samples, logprobs)
        batch.join(new)
    batch.drop_finished(0)
    while batch.rows:
        _take(batch, batch.step(), engine.vocabulary, samples, logprobs)
        batch.drop_finished(0)
    return [np.array(values, dtype=np.float32) for values in logprobs]


def _row(number: int, sample: Sample) -> Row:
    prompt = sample.token_ids_T[: sample.prompt_length].tolist()
    return Row(sample.task, number, 0, prompt, sample.length, iter(()), None)


def _take(
    batch: Batch, logits_BV: Tensor, vocabulary: int, samples: Sequence[Sample], logprobs: list[list[float]]
) -> None:
    """Let every row of the batch have its sample's next token, and note the log-prob of it."""
    logprobs_BV = logits_BV[:, :vocabulary].log_softmax(-1)
    for place, row in enumerate(batch.rows):
        if row.finish:
            continue
        token = int(samples[row.group].token_ids_T[len(row.prompt) + len(row.tokens)])
        logprobs[row.group].append(float(logprobs_BV[place, token]))
        row.tokens.append(token)
        if len(row.tokens) == row.limit:
            row.finish = "length"


def _require(model: PreTrainedModel, rows: Sequence[Alone], found: Mapping[str, Sequence[Array]]) -> None:
    scale = torch.cat([row.logprobs_TV for row in rows]).std().item()
    allowed = TOLERANCE[model.dtype] * max(scale, 1e-3)
    for path, logprobs in found.items():
        for row, logprobs_R in zip(rows, logprobs, strict=True):
            gap = float(np.abs(logprobs_R - row.logprobs_R).max())
            if not gap <= allowed:
                raise ValueError(
                    f"{type(model).__name__} from {model.name_or_path!r} cannot be used: in the path {path!r} a row of "
                    f"{len(row.sample.token_ids_T)} tokens gets log-probs that differ by {gap:.2g} nats from those "
                    f"that the row has alone (allowed: {allowed:.1g}). Its layers look at the other rows of a batch, "
                    "or are random: use another architecture or, if `attention` is set, another attention"
                )

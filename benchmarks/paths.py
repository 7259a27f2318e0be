"""Every path of onepolicy against transformers' own forward, on one architecture.

The reference is `AutoModelForCausalLM.from_pretrained(folder)` in evaluation mode, called as `model(input_ids=row)` on
one row at a time. Each row gets a fresh copy of the model: some rotary embeddings remember the longest row that they
have seen.
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.architectures import ALPHABET, store
from onepolicy import run
from onepolicy.config import ModelConfig, parse_run
from onepolicy.engines.base import Sampling
from onepolicy.engines.forward import can_share
from onepolicy.policy import Policy
from onepolicy.teachers import Shelf
from onepolicy.tiny import character_tokenizer
from onepolicy.types import Sample, Task, TokenScores, Want, Weights

VOCABULARY = len(character_tokenizer(ALPHABET))
TOLERANCE = 1e-3  # nats, or relative in the norm of a gradient
FLOOR_BFLOAT16 = 0.05  # nats, where the architecture's own rounding is smaller
TOGETHER, ALONE = 4096, 1  # tokens_per_batch: all rows in few micro-batches, or each row in its own
UNLIKE = ((40, (20, 4, 11)), (12, (33, 7, 1)), (3, (9, 26, 2)))  # tokens of prompts, and of the responses to each
ALIKE = ((40, (3, 5, 8, 2, 6, 4)), (34, (4, 9, 1, 7)))
PATHS = ("generate", "score", "shared", "teacher", "bfloat16", "learn", "checkpointing", "merge", "save")


class Reference:
    """transformers' own forward of a checkpoint, one row at a time."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def distributions(self, sample: Sample) -> Tensor:
        """[R, V]: log-probabilities of every token where the policy wrote one."""
        return self.tokens(copy.deepcopy(self.model), sample)[0].detach()

    def logprobs(self, sample: Sample) -> np.ndarray:
        with torch.no_grad():
            return self.tokens(copy.deepcopy(self.model), sample)[1].numpy()

    @staticmethod
    def tokens(model: PreTrainedModel, sample: Sample) -> tuple[Tensor, Tensor]:
        """[R, V] and [R] of the generated tokens; differentiable. The last token predicts nothing and is not read."""
        ids_T = torch.from_numpy(sample.token_ids_T).long()
        logits_TV = model(input_ids=ids_T[None, :-1]).logits[0, :, :VOCABULARY].float()
        generated = torch.from_numpy(sample.mask_T[1:])
        logprobs_RV = logits_TV.log_softmax(-1)[generated]
        return logprobs_RV, logprobs_RV.gather(-1, ids_T[1:][generated][:, None])[:, 0]

    def gradient(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Of -Σ A·log p / N over the samples with an advantage, plus -Σ log p / N over the others."""
        counts = {kind: sum(s.length for s in samples if bool(s.weights.pg) == kind) for kind in (True, False)}
        total: dict[str, Tensor] = {}
        for sample in samples:
            model = copy.deepcopy(self.model)
            logprobs_R = self.tokens(model, sample)[1]
            if sample.advantages_R is not None:
                logprobs_R = logprobs_R * torch.from_numpy(sample.advantages_R)
            (-logprobs_R.sum() / counts[bool(sample.weights.pg)]).backward()
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    total[name] = total.get(name, 0) + parameter.grad
        return total


@dataclass(frozen=True, slots=True)
class Cell:
    """One path of one architecture: the largest difference, and why there is none or why it counts as wrong."""

    difference: float | None = None
    tolerance: float = TOLERANCE
    reason: str = ""
    refused: bool = False

    @property
    def right(self) -> bool:
        return not self.reason and (self.difference is None or self.difference <= self.tolerance)

    def __str__(self) -> str:
        if self.refused:
            return "refused"
        if self.difference is None:
            return "error" if self.reason else "–"
        digit, exponent = f"{self.difference:.0e}".split("e")
        text = f"{digit}e{int(exponent)}" if self.difference else "0"
        return text if self.right else f"**{text}**"


class Bench:
    """One architecture's checkpoints in a scratch folder, and what is measured on them."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.base = store(folder / "base", name)
        self.other = store(folder / "other", name, 7, near=self.base)
        self.own = Reference(self.base)
        self.gradient: dict[str, Tensor] | None = None
        self.policies: dict[tuple[int, bool], Policy] = {}
        self.samples = random_samples(UNLIKE)
        self.rollouts = random_samples(ALIKE)
        for sample in self.samples + self.rollouts:
            sample.logprobs_R = self.own.logprobs(sample)

    def policy(self, tokens_per_batch: int = TOGETHER, checkpointing: bool = False) -> Policy:
        """Opened as a run opens it: loaded, checked, with an engine and a learner. Paths share it, as in a run."""
        key = tokens_per_batch, checkpointing
        if key in self.policies:
            return self.policies[key]
        config = parse_run(
            {
                "recipe": "rlvr",
                "output": str(self.folder / "run"),
                "model": str(self.base),
                "steps": 1,
                "domains": {"d": {"tasks": {"kind": "letters"}}},
                "rollout": {"batch_size": 5},
                "optim": {
                    "tokens_per_batch": tokens_per_batch,
                    "learning_rate": 1e-2,
                    "gradient_checkpointing": checkpointing,
                },
                "loss": {"reduction": "token"},
            }
        )
        self.policies[key] = Policy(config, config.loss, torch.device("cpu"))
        return self.policies[key]

    def load(self) -> Cell:
        self.policy()
        return Cell()

    # -- the paths -------------------------------------------------------------------------------------------------

    def generate(self) -> Cell:
        """Four prompts of unlike length, three rollouts each, five rows at a time: rows leave and others join."""
        sampling = Sampling(max_new_tokens=30, limits={"middle": 20, "short": 6})
        rows = list(self.policy().engine.generate(prompts(), 3, sampling, seed=0))
        if failed := [row.reason for row in rows if row.finish == "error"]:
            return Cell(reason=failed[0])
        return Cell(largest([self.own.logprobs(row) for row in rows], [row.logprobs_R for row in rows]))

    def score(self) -> Cell:
        """Rows of unlike length together."""
        return self.against_own(self.samples, self.policy().learner.score(self.samples, Want("sampled")))

    def shared(self) -> Cell:
        """Six rollouts of one prompt and four of another, together; that prompts were read once is counted."""
        learner = self.policy().learner
        if not can_share(learner.model):
            return Cell()
        read: list[int] = []
        hook = learner.model.base_model.register_forward_pre_hook(
            lambda _, __, options: read.append(options["input_ids"].numel()), with_kwargs=True
        )
        scores = learner.score(self.rollouts, Want("sampled"))
        hook.remove()
        if sum(read) > 0.75 * sum(len(sample.token_ids_T) for sample in self.rollouts):
            return Cell(reason="prompts were not shared")
        return self.against_own(self.rollouts, scores)

    def teacher(self) -> Cell:
        """Two checkpoints that take turns on one shelf; the first's head is used while the second is resident."""
        return Cell(self.shelved({"a": self.base, "b": self.other}, "float32"))

    def bfloat16(self) -> Cell:
        """The same in bfloat16, against transformers in bfloat16. Tolerated is twice bfloat16's own rounding."""
        folders = {name: converted(path, torch.bfloat16) for name, path in (("a", self.base), ("b", self.other))}
        rounding = 0.0
        for folder in folders.values():
            rounded, exact = Reference(folder, torch.bfloat16), Reference(folder)
            for sample in self.samples:
                gap = rounded.distributions(sample) - exact.distributions(sample)
                rounding = max(rounding, size(gap.abs().max()))
        return Cell(self.shelved(folders, "bfloat16"), max(FLOOR_BFLOAT16, 2 * rounding))

    def learn(self) -> Cell:
        """The gradient of policy gradient and cross-entropy, in either split into micro-batches."""
        return Cell(max(self.misdirection(self.policy(tokens)) for tokens in (TOGETHER, ALONE)))

    def checkpointing(self) -> Cell:
        """The gradient with gradient checkpointing, which transformers ties to training mode."""
        return Cell(self.misdirection(self.policy(TOGETHER, checkpointing=True)))

    def merge(self) -> Cell:
        """base + λ(a − base) + λ(b − base) on what transformers loads, against the recipe on files."""
        models = {"a": self.other, "b": store(self.folder / "third", self.name, 8, near=self.base)}
        settings = {"base": str(self.base), "models": {name: str(path) for name, path in models.items()}}
        config = parse_run(
            {"recipe": "merge", "output": str(self.folder / "merged"), "method": "task_arithmetic", "lambdas": 0.6}
            | settings
        )
        run(config)
        merged = Reference(loaded_whole(config.output / "model"))
        base, a, b = (Reference(path).model.state_dict() for path in (self.base, *models.values()))
        state = {
            name: tensor + 0.6 * (a[name] - tensor) + 0.6 * (b[name] - tensor) if tensor.is_floating_point() else tensor
            for name, tensor in base.items()
        }
        expected = Reference(self.base)
        expected.model.load_state_dict(state)
        return Cell(apart(merged, expected, self.samples))

    def save(self) -> Cell:
        """After a large step: the saved folder's forward against the live model's own, and what its configs say."""
        model = self.policy().learner.model
        before = meaning(model.config), meaning(model.generation_config)
        self.policy().learner.step(self.samples)
        self.policy().learner.save(self.folder / "saved")
        live, saved = Reference(self.base), Reference(loaded_whole(self.folder / "saved"))
        live.model = model
        if apart(live, self.own, self.samples) < 1e-2:
            return Cell(reason="a step at a large learning rate has moved nothing")
        started = meaning(self.own.model.config), meaning(self.own.model.generation_config)
        after = meaning(saved.model.config), meaning(saved.model.generation_config)
        for older in (before, started):
            for one, other in zip(older, after, strict=True):
                if differing := sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key)):
                    key = differing[0]
                    return Cell(reason=f"{key} was {one.get(key)!r} and is saved as {other.get(key)!r}")
        return Cell(apart(live, saved, self.samples))

    # -- parts of them ---------------------------------------------------------------------------------------------

    def against_own(self, samples: Sequence[Sample], scores: Sequence[TokenScores]) -> Cell:
        return Cell(largest([s.logprobs_R for s in samples], [score.logprobs_R for score in scores]))

    def misdirection(self, policy: Policy) -> float:
        """How far the learner's gradient is from transformers', as a fraction of its norm."""
        samples = self.samples + self.rollouts
        policy.learner.backward(samples)
        if self.gradient is None:
            self.gradient = self.own.gradient(samples)
        return distance(gradients(policy.learner.model), self.gradient)

    def shelved(self, folders: dict[str, Path], dtype: str) -> float:
        """The largest difference of all that teachers can be asked for."""
        shelf = Shelf(
            device=torch.device("cpu"),
            temperature=1.0,
            tokens_per_batch=TOGETHER,
            vocabulary=VOCABULARY,
            spool=self.folder / "spool",
        )
        teachers = {
            name: shelf.teacher(name, ModelConfig(path=str(path), dtype=dtype)) for name, path in folders.items()
        }
        references = {name: Reference(path, getattr(torch, dtype)) for name, path in folders.items()}
        own = {name: [one.distributions(sample) for sample in self.samples] for name, one in references.items()}
        worst = 0.0
        for want in (Want("sampled"), Want("topk", 4), Want("full")):
            found = {name: teacher.score(self.samples, want) for name, teacher in teachers.items()}
            for name, scores in found.items():
                for sample, score, own_RV in zip(self.samples, scores, own[name], strict=True):
                    worst = max(worst, opinion(sample, score, own_RV))
        return worst


def prompts() -> list[Task]:
    """Of 5, 11, 23 and 43 tokens with the chat template's. How long an answer may get, the domain says."""
    text = "0123456789abcdefghijklmnopqrst ?" * 2
    lengths = {"middle": 3, "long": 9, "short": 21, "longest": 41}
    return [
        Task(domain, domain, ({"role": "user", "content": text[i : i + length]},))
        for i, (domain, length) in enumerate(lengths.items())
    ]


def random_samples(lengths: Sequence[tuple[int, Sequence[int]]]) -> list[Sample]:
    """Samples of random tokens, by the lengths of a prompt and of its responses; every second one has advantages."""
    random = np.random.default_rng(0)
    samples: list[Sample] = []
    for group, (prompt, responses) in enumerate(lengths):
        start = random.integers(0, 38, prompt)
        for index, response in enumerate(responses):
            ids_T = np.concatenate([start, random.integers(0, 38, response)]).astype(np.int32)
            task = Task(f"{group}", "d", ({"role": "user", "content": "?"},))
            sample = Sample(
                task, ids_T, np.arange(len(ids_T)) >= prompt, np.zeros(response, np.float32), group=group, index=index
            )
            sample.weights = Weights(pg=1.0) if index % 2 else Weights(ce=1.0)
            sample.advantages_R = random.normal(size=response).astype(np.float32) if index % 2 else None
            samples.append(sample)
    return samples


def largest(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """The largest difference of all samples' log-probs."""
    return max(size(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


def size(gap: Any) -> float:
    """A difference as a number that can be compared: a NaN is infinitely far."""
    return math.inf if math.isnan(gap) else float(gap)


def opinion(sample: Sample, score: TokenScores, own_RV: Tensor) -> float:
    """How far a teacher's scores, of whichever kind, are from the distributions of transformers."""
    written = torch.from_numpy(sample.token_ids_T[sample.mask_T]).long()
    gaps = [torch.from_numpy(score.logprobs_R) - own_RV.gather(-1, written[:, None])[:, 0]]
    if score.topk_ids_RK is not None:
        ids_RK = torch.from_numpy(score.topk_ids_RK).long()
        gaps += [torch.from_numpy(score.topk_logprobs_RK) - own_RV.gather(-1, ids_RK)]
        gaps += [own_RV.topk(ids_RK.shape[1]).values - own_RV.gather(-1, ids_RK)]
    if score.hidden_RH is not None:
        logprobs_RV = score.head.logprobs(torch.from_numpy(score.hidden_RH), 1.0)
        gaps += [logprobs_RV - own_RV[:, : logprobs_RV.shape[1]]]
    return max(size(gap.abs().max()) for gap in gaps)


def apart(one: Reference, other: Reference, samples: Sequence[Sample]) -> float:
    return largest([one.logprobs(s) for s in samples], [other.logprobs(s) for s in samples])


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The norm of the difference of two gradients relative to the second's norm; an absent one is zero."""
    absent, squares, norm = torch.zeros(1), 0.0, 0.0
    for name in one | other:
        squares += (one.get(name, absent) - other.get(name, absent)).pow(2).sum().item()
        norm += other.get(name, absent).pow(2).sum().item()
    return size((squares / norm) ** 0.5)


def converted(folder: Path, dtype: torch.dtype) -> Path:
    """The checkpoint with its weights in another dtype."""
    target = folder.with_name(f"{folder.name}-{str(dtype).removeprefix('torch.')}")
    AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (folder / name).is_file():
            shutil.copy(folder / name, target)
    return target


def loaded_whole(folder: Path) -> Path:
    """The folder, if transformers finds in it exactly the weights that it looks for. Raises ValueError if not."""
    _, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    for problem, names in found.items():
        if names:
            raise AssertionError(f"{problem}: {sorted(map(str, names))[0]}")
    return folder


def meaning(config: Any) -> dict[str, Any]:
    """A configuration without what says only who wrote it."""
    fields = config.to_dict()
    for name in ("_name_or_path", "transformers_version", "architectures"):
        fields.pop(name, None)
    return fields


# -- all of them -------------------------------------------------------------------------------------------------------


def measure(name: str, folder: Path, paths: Sequence[str] = PATHS) -> dict[str, Cell]:
    """Path → Cell of one architecture. The first is `load`; when it refuses, there are no others."""
    torch.manual_seed(0)
    bench = Bench(name, folder)
    cells = {"load": attempt(bench.load, bench)}
    if cells["load"].right:
        cells |= {path: attempt(getattr(bench, path), bench) for path in paths}
    return cells


def attempt(path: Callable[[], Cell], bench: Bench) -> Cell:
    """A ValueError that names the architecture is a refusal; whatever else is raised is an error."""
    try:
        return path()
    except Exception as error:  # the boundary of one cell: the other rows are measured all the same
        reason = str(error).replace(f"{bench.folder}/", "")
        names = type(bench.own.model).__name__, repr(bench.own.model.config.model_type)
        if isinstance(error, ValueError) and any(name in reason for name in names):
            return Cell(reason=reason, refused=True)
        return Cell(reason=f"{type(error).__name__}: {reason}")


def verdict(cells: dict[str, Cell]) -> str:
    """A run may refuse gradient checkpointing and the architecture still be right without it."""
    if all(cell.right or (path == "checkpointing" and cell.refused) for path, cell in cells.items()):
        return "right"
    return "refused" if cells["load"].refused else "wrong"

"""The nouns that everything hangs on: Task, Sample, TokenScores. No torch here.

Axis legend, used in names all over the package (`logprobs_R`, `rewards_G`):

    B  samples of a batch              G  rollouts of one prompt
    T  tokens of one sequence          R  the tokens of it that the policy wrote (mask true), in order
    N  the R axes of a batch, laid end to end, without padding
    K  top-k entries                   V  vocabulary               H  hidden size

A worked example, two turns. The policy's tokens train; the prompt and the tool's answer do not.

    text      <user> 6*7? <assistant> calc(6*7) <tool> 42 <assistant> 42 <eos>
    token_ids_T  [ 5,  9,      6,       11,       7,   8,      6,      8,   1 ]
    mask_T       [ F,  F,      F,        T,       F,   F,      F,      T,   T ]
    logprobs_R                        [-0.2,                         -0.1, -0.3]

Methods *annotate* samples (advantages, teacher scores, a weight per loss component); the learner's one step
consumes the annotations and knows no algorithm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Message = Mapping[str, Any]  # of a chat in transformers' format
Answer = str | tuple[str, ...]  # what is said to a task: one text or, to an environment, one for each turn
Finish = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Task:
    """One question of one domain. `messages` is a chat in transformers' format (dicts with role and content).

    `tools` are JSON schemas of what the policy may call, as transformers' chat templates take them.
    """

    id: str
    domain: str
    messages: tuple[Message, ...]
    reference: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Grade:
    """A grader's verdict: a reward in [0, 1] and, in a few words, why.

    An environment may also say what each turn was worth, in [0, 1]. `failed`: the grader could not judge the answer (it
    raised, timed out, was killed, ran out of memory). Then `reward` is 0.0 and means nothing.
    """

    reward: float
    reason: str = ""
    turn_rewards: tuple[float, ...] = ()
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Observation:
    """What an environment answers to a turn of the policy: messages of any role but the policy's own."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Want:
    """What a scorer is asked for, per token that the policy wrote.

    `sampled`: its log-probability. `topk`: also the scorer's k most likely tokens and their log-probabilities under
    the full softmax (not renormalised). `full`: also the hidden state, from which `head` rebuilds the whole
    distribution chunk by chunk, so that [N, V] never exists.
    """

    kind: Literal["sampled", "topk", "full"] = "sampled"
    k: int = 0


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What one scorer says about one sample's R tokens. Log-probabilities are float32, in nats."""

    source: str
    logprobs_R: Array
    topk_ids_RK: Array | None = None
    topk_logprobs_RK: Array | None = None
    hidden_RH: Array | None = None
    head: Any = None  # an `engines.forward.Head`, shared by all samples of one scorer


@dataclass(slots=True)
class Weights:
    """How much of each loss component a sample carries: policy gradient, distillation, cross-entropy."""

    pg: float = 0.0
    distill: float = 0.0
    ce: float = 0.0


@dataclass(slots=True)
class Sample:
    """One trajectory and, later, what the method in charge says about it.

    `group` numbers the prompt within its batch and `index` the rollout within its group, so that samples that
    arrive as they finish can be put back in order. `logprobs_R` are those of the engine that wrote the tokens,
    under exactly the distribution it sampled from. `version` is the learner's step that wrote it.

    `response` is all that was said, as a reader sees it; `thought` ("" without one) and `answer` are its parts, and a
    thought that never ends has answer None. While `thought` is None, nobody has parted them: the text tells then.

    Of an episode of several turns, `response` is the last one and `history` the chat between prompt and response. A
    turn in it that has a thought says its answer too, under the key `answer`.

    `grader_failed`: the grader could not judge it, and `reason` says why. Its `reward` is then 0.0 and means nothing.
    """

    task: Task
    token_ids_T: Array  # int32
    mask_T: Array  # bool
    logprobs_R: Array  # float32
    response: str = ""
    thought: str | None = None
    answer: str | None = None
    group: int = 0
    index: int = 0
    finish: Finish = "stop"
    version: int = 0
    reward: float | None = None
    reason: str = ""
    grader_failed: bool = False
    history: tuple[Message, ...] = ()
    turn_rewards: tuple[float, ...] = ()
    penalty: float = 0.0  # added to the reward where advantages are made of it, for example for length; at most 0
    advantages_R: Array | None = None  # policy-gradient signal
    teacher: TokenScores | None = None
    old_logprobs_R: Array | None = None  # the learner's, before the first of several inner updates
    disagreement_R: Array | None = None  # max − min over all teachers of the log-probs, nats
    weights: Weights = field(default_factory=Weights)

    def __post_init__(self) -> None:
        if self.token_ids_T.shape != self.mask_T.shape or self.token_ids_T.ndim != 1:
            raise ValueError(
                f"token_ids_T {self.token_ids_T.shape} and mask_T {self.mask_T.shape} must be one axis of equal length"
            )
        if len(self.mask_T) and self.mask_T[0]:
            raise ValueError("the first token has no context to be predicted from: mask_T[0] must be False")
        if len(self.logprobs_R) != self.length:
            raise ValueError(f"{len(self.logprobs_R)} log-probs for {self.length} tokens that the policy wrote")

    @property
    def length(self) -> int:
        """R: how many tokens the policy wrote."""
        return int(self.mask_T.sum())

    @property
    def is_graded(self) -> bool:
        """Whether the reward says something of the policy: neither grader nor engine has failed."""
        return self.reward is not None and not self.grader_failed and self.finish != "error"

    @property
    def turns(self) -> int:
        """Runs of tokens that the policy wrote, parted by what it did not write."""
        return int((self.mask_T[1:] & ~self.mask_T[:-1]).sum())

    @property
    def prompt_length(self) -> int:
        """Tokens before the first one that the policy wrote."""
        return int(self.mask_T.argmax()) if self.length else len(self.mask_T)

    @property
    def observed(self) -> int:
        """Tokens after the first one that the policy wrote which it did not write: its environment's."""
        return len(self.mask_T) - self.prompt_length - self.length


def scatter(values_R: Array, mask_T: Array) -> Array:
    """Put values on the R axis back on the T axis, 0 where the policy did not write.

    Raises ValueError when the two do not belong together.
    """
    if len(values_R) != int(mask_T.sum()):
        raise ValueError(f"{len(values_R)} values for a mask with {int(mask_T.sum())} true positions")
    values_T = np.zeros(len(mask_T), dtype=values_R.dtype)
    values_T[mask_T] = values_R
    return values_T

"""The two protocols behind which every model sits: an Engine writes samples, a Scorer says how likely they are.

"Teacher" is a role, not a type: a frozen checkpoint, a served model and a live learner all satisfy Scorer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from onepolicy.types import Sample, Task, TokenScores, Want


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. `top_k` 0 and `top_p` 1 mean no truncation; `temperature` 0 means greedy.

    `max_new_tokens` bounds every response; `limits` lowers it for the named domains. `noise` is the standard deviation
    of Gaussian noise on the logits, fresh for every token. Raises ValueError on nonsense.

    `stop`: a turn also ends, as if the policy had ended it, as soon as its text has one of these strings, in a thought
    too (as vLLM does it). The tokens stay as sampled; the text that graders see ends before the string.
    `min_new_tokens`: until a turn has so many, no stop token is sampled and no stop string counts. Log-probs stay those
    of the whole distribution, stop tokens included, since the learner computes these: a forced token's probability
    when it was sampled was larger, by 1 / (1 - probability of stopping), and no importance weight corrects that.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    limits: dict[str, int] | None = None
    noise: float = 0.0
    stop: tuple[str, ...] = ()
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.stop, str) or not all(self.stop) or self.min_new_tokens < 0:
            raise ValueError(
                f"cannot sample with {self}: stop is a tuple of strings, none of them empty, and min_new_tokens is at "
                "least 0"
            )
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or self.max_new_tokens < 1:
            raise ValueError(
                f"cannot sample with {self}: temperature must be at least 0, top_p in (0, 1], top_k at least 0 and "
                "max_new_tokens at least 1"
            )

    def limit(self, domain: str) -> int:
        return min(self.max_new_tokens, (self.limits or {}).get(domain, self.max_new_tokens))


class Engine(Protocol):
    def generate(
        self, tasks: Sequence[Task], n: int, sampling: Sampling, *, seed: int, version: int = 0
    ) -> Iterator[Sample]:
        """Write `n` responses to each task; yield each sample as soon as it ends.

        `sample.group` is the task's position in `tasks`, `sample.index` runs over its n rollouts. The result depends
        on (weights, tasks, n, sampling, seed) alone, not on how the engine batches.
        """
        ...

    def resume(self, samples: Sequence[Sample], sampling: Sampling, *, seed: int) -> Iterator[Sample]:
        """Write another turn of each sample, whose `history` ends with an answer that its tokens do not have yet.

        Appends in place the environment's answer (mask false) and the new turn, and yields the sample as soon as that
        ends. Where no token fits any more (the limit is of all turns together), the tokens stay as they are and
        `finish` becomes "length". `seed` is that of `generate`.
        """
        ...


class Scorer(Protocol):
    def score(self, samples: Sequence[Sample], want: Want) -> list[TokenScores]:
        """Score what the policy wrote in each sample, in the order given. An empty response gets empty scores."""
        ...

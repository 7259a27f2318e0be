"""A taskset of verifiers for tests: one turn, no tools. The reward is from -1 to 1."""

from __future__ import annotations

from collections.abc import Iterator

import verifiers.v1 as vf

__all__ = ["SumsTaskset"]


class SumsData(vf.TaskData):
    answer: str


class SumsConfig(vf.TasksetConfig):
    count: int = 20


class SumsTask(vf.Task[SumsData]):
    @vf.reward(weight=2.0)
    async def right(self, trace: vf.Trace) -> float:
        if "boom" in trace.last_reply:
            raise ValueError("the scorer has failed")
        return float(trace.last_reply == self.data.answer)

    @vf.reward(weight=-1.0)
    async def always(self, trace: vf.Trace) -> float:
        return 1.0


class SumsTaskset(vf.Taskset[SumsTask, SumsConfig]):
    def load(self) -> Iterator[SumsTask]:
        for a in range(self.config.count):
            data = SumsData(prompt=f"{a}+{a + 1}=", system_prompt="Add.", answer=str(2 * a + 1))
            yield SumsTask(data, self.config.task)

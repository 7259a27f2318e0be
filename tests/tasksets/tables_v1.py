"""A taskset of verifiers for tests: a tool to look entries up with."""

from __future__ import annotations

from collections.abc import Iterator

import verifiers.v1 as vf

__all__ = ["TablesTaskset"]
TABLE = {"mug": "17", "pen": "4"}


class TablesData(vf.TaskData):
    answer: str


class Table(vf.Toolset[vf.SharedToolsetConfig]):
    TOOL_PREFIX = None

    @vf.tool
    async def look(self, key: str) -> str:
        """Look an entry up."""
        return TABLE.get(key, "no such entry")


class TablesTask(vf.Task[TablesData]):
    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        return float(trace.last_reply == self.data.answer)


class TablesTaskset(vf.Taskset[TablesTask, vf.TasksetConfig]):
    def load(self) -> Iterator[TablesTask]:
        for key, answer in TABLE.items():
            yield TablesTask(TablesData(prompt=f"{key}?", answer=answer), self.config.task)

    @classmethod
    def toolsets(cls, config: vf.TasksetConfig) -> list[vf.Toolset]:
        return [Table(vf.SharedToolsetConfig())]


if __name__ == "__main__":
    Table.run()

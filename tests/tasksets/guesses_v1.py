"""A taskset of verifiers for tests, with an environment of its own that speaks as the user between the turns."""

from __future__ import annotations

from collections.abc import Iterator

import verifiers.v1 as vf

__all__ = ["GuessesEnv", "GuessesTaskset"]


class GuessesData(vf.TaskData):
    secret: int


class GuessesTask(vf.Task[GuessesData]):
    pass


class GuessesTaskset(vf.Taskset[GuessesTask, vf.TasksetConfig]):
    def load(self) -> Iterator[GuessesTask]:
        for secret in range(10):
            yield GuessesTask(GuessesData(prompt=f"A number of {secret % 3} mod 3?", secret=secret), self.config.task)


class GuessesConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()


class GuessesEnv(vf.Env[GuessesConfig]):
    async def run(self, task: GuessesTask, agents: vf.Agents) -> None:
        async with agents.player.interaction(task) as talk:
            segment = await talk.turn()
            for _ in range(4):
                said, secret = segment.last_reply, task.data.secret
                if segment.terminated or said == str(secret):
                    break
                higher = said.isdigit() and int(said) < secret
                segment = await talk.turn("higher" if higher else "lower")
        talk.trace.record_reward("found", float(segment.last_reply == str(task.data.secret)))

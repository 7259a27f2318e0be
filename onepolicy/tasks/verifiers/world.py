"""One `verifiers` environment, held open in a thread of its own, and the model server behind which the policy stands.

An episode is one run of the environment. Its requests to the model wait here until the policy's next turn is known:

    environment ── request: messages, tools ──►  endpoint  ──► Talk.step returns what is new in the messages
                ◄── completion ───────────────   (waits)   ◄── Talk.step(text)
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import time
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

import verifiers.v1 as vf
from aiohttp import web
from verifiers.v1.configs.agent import agent_config_fields

from onepolicy.tasks.base import GraderBug
from onepolicy.tasks.nesting import read_json
from onepolicy.tasks.tools import OPEN, json_calls
from onepolicy.tasks.verifiers.chat import NAME, ChatHarness
from onepolicy.tasks.verifiers.source import VerifiersOptions
from onepolicy.thought import answer_of
from onepolicy.types import Grade, Message

SESSION = "X-Session-ID"  # verifiers' header: the id of the trace that a request belongs to
PATIENCE = 3  # empty answers that an environment gets after the policy's last turn


class World:
    """The environment and its tasks."""

    def __init__(self, options: VerifiersOptions) -> None:
        """Raises ValueError for an environment with several agents; what verifiers raises for one that it has not."""
        self.options = options
        seats = list(agent_config_fields(vf.env_config_type(options.id, options.env)()))
        if len(seats) != 1:
            raise ValueError(
                f"the environment {options.env or options.id!r} has the agents {', '.join(seats)}: only those with one "
                "can be taken over"
            )
        seat = {"harness": {"id": NAME}, "runtime": {"type": "subprocess"}, "max_turns": options.max_turns}
        config = {"id": options.env, "taskset": {**options.config, "id": options.id}, seats[0]: seat}
        self.env = vf.load_environment(vf.resolve_env_config(config))
        self.taskset = self.env.taskset
        self.talks: dict[str, Talk] = {}
        self._harness = ChatHarness(vf.HarnessConfig(id=NAME))
        self._loop: asyncio.AbstractEventLoop | None = None

    def opening(self, task: vf.Task) -> tuple[Message, ...]:
        """What the policy is shown first."""
        return _texts(self._harness.opening(task.data))

    def tools_of(self, task: vf.Task) -> tuple[dict[str, Any], ...]:
        """The tools that come with a task's first request. Starts the environment for that, and ends it."""
        talk = Talk(self, task)
        try:
            request = talk.listen()
            if isinstance(request, Grade):
                raise ValueError(f"the environment {self.options.id!r} made no request: {request.reason}")
            return tuple(request.get("tools", ()))
        finally:
            talk.abort()
            self.close()

    def begin(self, task: vf.Task, messages: Sequence[Message]) -> Talk:
        """An episode, as far as its first request. Raises ValueError when that is not of these messages."""
        talk = Talk(self, task)
        request = talk.listen()
        if isinstance(request, Grade):
            raise ValueError(f"the environment did not begin: {request.reason}")
        if list(_texts(request["messages"])) != list(messages):
            talk.abort()
            raise ValueError(f"the environment opens with {request['messages']!r:.300}, not with what its task says")
        return talk

    def open(self) -> asyncio.AbstractEventLoop:
        """Start thread, endpoint and tool servers, unless they run."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="verifiers", daemon=True)
            self._thread.start()
            self._stack = AsyncExitStack()
            asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        return self._loop

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run it in the world's thread; a future."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.open())

    def close(self) -> None:
        """End tool servers and thread. What comes next starts them again."""
        loop, self._loop = self._loop, None
        if loop is not None:
            asyncio.run_coroutine_threadsafe(self._close(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            loop.close()

    async def _close(self) -> None:
        await self._stack.aclose()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _open(self) -> None:
        app = web.Application(client_max_size=2**30)
        app.router.add_post("/v1/chat/completions", self._complete)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)  # aborted episodes still ask
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self.context = vf.ModelContext("policy", vf.EvalClientConfig(base_url=url, api_key_var="ONEPOLICY_NO_KEY"))
        await self._stack.enter_async_context(self.env.serving())

    async def _complete(self, request: web.Request) -> web.Response:
        """A model server's answer, once there is one."""
        message, finish = await self.talks[request.headers[SESSION]].asked(await request.json())
        choice = {"index": 0, "message": message, "finish_reason": finish}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        return web.json_response(
            {
                "id": "turn",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": "policy",
                "choices": [choice],
                "usage": usage,
            }
        )


class Talk:
    """An Episode: one run of the environment, with the policy for a model."""

    def __init__(self, world: World, task: vf.Task) -> None:
        self.world, self.trace = world, ""
        self.seen = 0  # messages, those of the last request
        self._events: queue.SimpleQueue[dict[str, Any] | Grade | GraderBug] = queue.SimpleQueue()
        self._answers: asyncio.Queue[tuple[dict[str, Any], str]] = asyncio.Queue()
        world.open()
        self._run = world.submit(self._play(task))

    def step(self, text: str) -> list[Message] | Grade:
        self._say(_message(text), "stop")
        request = self.listen()
        if isinstance(request, Grade):
            return request
        new = request["messages"][self.seen + 1 :]
        if not new:
            self.abort()
            raise ValueError("the environment has rewritten what was said: such episodes cannot be trained on")
        self.seen = len(request["messages"])
        return list(_texts(new))

    def stop(self) -> Grade:
        for _ in range(PATIENCE):
            self._say({"role": "assistant", "content": ""}, "length")
            request = self.listen()
            if isinstance(request, Grade):
                return request
        self.abort()
        return Grade(0.0, "the environment did not end with the policy's last turn")

    def listen(self) -> dict[str, Any] | Grade:
        """Wait for the environment's next request, or for its end."""
        event = self._events.get()
        if isinstance(event, GraderBug):
            raise event
        if isinstance(event, dict) and not self.seen:
            self.seen = len(event["messages"])
        return event

    def abort(self) -> None:
        self._run.cancel()

    async def asked(self, request: dict[str, Any]) -> tuple[dict[str, Any], str]:
        self._events.put(request)
        return await self._answers.get()

    def _say(self, message: dict[str, Any], finish: str) -> None:
        finish = "tool_calls" if message.get("tool_calls") else finish

        async def put() -> None:
            self._answers.put_nowait((message, finish))

        self.world.submit(put())

    async def _play(self, task: vf.Task) -> None:
        def on_trace(trace: vf.Trace) -> None:
            self.trace = trace.id
            self.world.talks[trace.id] = self

        try:
            episode = await self.world.env.run_episode(task, self.world.context, on_trace=on_trace)
            self._events.put(graded(episode, self.world.options))
        except GraderBug as error:
            self._events.put(error)
        except Exception as error:  # what verifiers does not take for an episode's own failure
            self._events.put(GraderBug(f"the environment {self.world.options.id!r} raised {error!r}"))
        finally:
            self.world.talks.pop(self.trace, None)


def graded(episode: vf.Episode, options: VerifiersOptions) -> Grade:
    """The run's reward on our scale; a run that has failed is not judged. Raises GraderBug outside of low..high."""
    errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
    if not episode.ok or not episode.traces:
        reason = f"{errors[-1].type}: {errors[-1].message}" if errors else "the environment has failed"
        return Grade(0.0, reason, failed=True)
    trace = episode.traces[-1]
    parts = [f"{name} {reward.value:g}" for name, reward in trace.rewards.items() if reward is not None]
    if not options.low <= trace.reward <= options.high:
        raise GraderBug(
            f"the environment {options.id!r} gave reward {trace.reward:g} ({', '.join(parts)}), which is not between "
            f"{options.low:g} and {options.high:g}: set low and high to what it gives at least and at most"
        )
    return Grade((trace.reward - options.low) / (options.high - options.low), ", ".join(parts))


def _message(text: str) -> dict[str, Any]:
    """A turn as a model server would send it. A call that is no JSON is left to the environment's complaint."""
    calls = []
    for number, piece in enumerate(json_calls(text)):
        name, arguments = "", piece
        try:
            call = read_json(piece)
            name, arguments = str(call["name"]), json.dumps(call.get("arguments", call.get("parameters", {})))
        except (ValueError, TypeError, KeyError, AttributeError):
            name = "malformed"
        calls.append({"id": f"call{number:05}", "type": "function", "function": {"name": name, "arguments": arguments}})
    if not calls:
        return {"role": "assistant", "content": text}
    answer = answer_of(text) or ""
    thought = text[: -len(answer)] if text.endswith(answer) else ""
    said = thought + answer.partition(OPEN)[0]
    return {"role": "assistant", "content": said.strip(), "tool_calls": calls}


def _texts(messages: Sequence[dict[str, Any]]) -> tuple[Message, ...]:
    """Messages with their text alone: who says it, what, and which tool."""
    found = []
    for message in messages:
        content = message.get("content") or ""
        if not isinstance(content, str):
            content = "\n".join(part["text"] for part in content if part.get("type") == "text")
        name = {"name": message["name"]} if message.get("name") else {}
        found.append({"role": message["role"], "content": content, **name})
    return tuple(found)

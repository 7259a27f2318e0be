"""The agent of a `verifiers` environment: a chat loop in this process, with the environment's tools and no others.

Registered as one of verifiers' harnesses, which are found by name. Its own plain loop (`null`) is a program that is
started anew for each episode; this one does the same without a process.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import httpx
import verifiers.v1 as vf
from verifiers.v1.dialects.chat import message_to_wire
from verifiers.v1.harnesses.utils.mcp import call_mcp, connect_mcp

from onepolicy.tasks.nesting import read_json

NAME = "onepolicy_chat"

__all__ = ["ChatHarness"]


class ChatHarness(vf.Harness[vf.HarnessConfig]):  # type: ignore[misc]  # verifiers has no types that mypy follows
    """Asks, answers the calls, and asks again until a turn has none."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_MCP = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: Mapping[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        messages = self.opening(data)
        servers = {name: {"url": url, "timeout": self.config.tool_timeout} for name, url in mcp_urls.items()}
        async with AsyncExitStack() as stack:
            tools, places, connections = await connect_mcp({"mcpServers": servers}, stack)
            client = await stack.enter_async_context(httpx.AsyncClient(timeout=None, trust_env=False))
            while True:
                answer = await client.post(
                    f"{endpoint}/chat/completions",
                    headers={"Authorization": f"Bearer {secret}"},
                    json={"model": ctx.model, "messages": messages, **({"tools": tools} if tools else {})},
                )
                answer.raise_for_status()
                message = answer.json()["choices"][0]["message"]
                messages.append(message)
                calls = message.get("tool_calls")
                if not calls:
                    return vf.ProgramResult(0, "", "")
                for call in calls:
                    name, text = call["function"]["name"], call["function"]["arguments"]
                    content = await called(name, text, places, connections)
                    messages.append({"role": "tool", "tool_call_id": call["id"], "name": name, "content": content})

    def opening(self, data: vf.TaskData) -> list[dict[str, Any]]:
        """The messages of the first request."""
        system, prompt = self.resolve_prompt(data)
        messages = [{"role": "system", "content": system}] if system else []
        if isinstance(prompt, str):
            return [*messages, {"role": "user", "content": prompt}]
        return [*messages, *map(message_to_wire, prompt or [])]


async def called(name: str, text: str, places: Mapping[str, Any], connections: Mapping[str, Any]) -> Any:
    """What a tool answers; in words, if it was not called rightly."""
    if name not in places:
        return f"error: no tool {name[:100]!r}: there are {', '.join(places)}"
    try:
        arguments = read_json(text)
    except ValueError as error:
        return f"error: not JSON: {error}"
    if not isinstance(arguments, dict):
        return "error: arguments must be an object"
    return await call_mcp(connections, places, name, arguments)


sys.modules[f"verifiers.v1.harnesses.{NAME}"] = sys.modules[__name__]

"""An assistant for tests: it calls tools as a model does and reads the answers as a model does."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from mcp.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp.server import MCPServer
from mcp.types import TextContent

from config import Rules

Era = Literal["legacy", "auto"]
"""The handshake of 2025-11-25 and before, or the stateless protocol of 2026-07-28."""
ERAS: tuple[Era, ...] = ("legacy", "auto")


ALLOWED = Rules(fallback="allow")
"""An operator who lets an assistant act whose client cannot ask a person."""


class Assistant:
    """A connected client."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.progress: list[tuple[float, float | None, str | None]] = []

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool that is to succeed and return its answer; text and structure must say the same."""
        failed, text, structured = await self._call(tool, arguments)
        assert not failed, text
        assert json.loads(text) == structured
        return structured

    async def fail(self, tool: str, **arguments: Any) -> str:
        """Call a tool that is to fail and return the error's text."""
        failed, text, structured = await self._call(tool, arguments)
        assert failed, structured
        return text

    async def tools(self) -> list[str]:
        """List the names of the tools."""
        return [tool.name for tool in (await self.client.list_tools()).tools]

    async def _call(self, tool: str, arguments: dict[str, Any]) -> tuple[bool, str, dict[str, Any]]:
        result = await self.client.call_tool(tool, arguments, progress_callback=self._note_progress)
        (block,) = result.content
        assert isinstance(block, TextContent)
        return bool(result.is_error), block.text, result.structured_content or {}

    async def _note_progress(self, progress: float, total: float | None, message: str | None) -> None:
        self.progress.append((progress, total, message))


@asynccontextmanager
async def assistant(server: MCPServer[Any] | StdioServerParameters, era: Era = "auto") -> AsyncIterator[Assistant]:
    """Connect an assistant to a server in memory, or to one that is started as a child."""
    async with Client(server, mode=era) as client:
        yield Assistant(client)

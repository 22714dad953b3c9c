"""Tell clients of both protocol eras that the list of tools has changed."""

import asyncio
from typing import TYPE_CHECKING, Any, Final

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.subscriptions import InMemorySubscriptionBus, ToolsListChanged
from mcp.types.version import MODERN_PROTOCOL_VERSIONS

from replicas import Replicas

if TYPE_CHECKING:
    from mcp.server.connection import Connection


class ToolListChanges:
    """Who has to be told.

    A client of 2026-07-28 opens a stream for it, which the SDK serves from `bus`. One of the older handshake is sent a
    notification, for which the SDK (2.3.0) keeps no list of its connections and advertises nothing. Where there are
    several replicas of the server, a change in one is told to the clients of all.
    """

    def __init__(self, replicas: Replicas | None = None) -> None:
        self.bus: Final = InMemorySubscriptionBus()
        self._replicas = replicas
        self._older: set[Connection] = set()
        self._telling: set[asyncio.Task[None]] = set()
        if replicas:
            replicas.on_news(self._tell_soon)

    async def middleware(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Note the connections of older clients, and tell them what they can expect."""
        result = await call_next(ctx)
        if ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            if ctx.method == "initialize" and isinstance(result, dict):
                result["capabilities"]["tools"]["listChanged"] = True
            elif ctx.method == "notifications/initialized":
                connection = ctx.session._connection  # noqa: SLF001 - the session lasts for one request only
                self._older.add(connection)
                connection.exit_stack.callback(self._older.discard, connection)
        return result

    async def tell(self) -> None:
        """Tell every client; one that is gone is passed over."""
        if self._replicas:
            await self._replicas.tell()
        await self._tell_ours()

    def _tell_soon(self) -> None:
        task = asyncio.get_running_loop().create_task(self._tell_ours(), name="tool list changes")
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell_ours(self) -> None:
        await self.bus.publish(ToolsListChanged())
        for connection in list(self._older):
            await connection.send_tool_list_changed()

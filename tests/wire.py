"""The wire between our client and a broker, and what a test does to it: cut, refuse, let everything vanish."""

import asyncio
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self

HOST = "127.0.0.1"
CHUNK_BYTES = 65536
POLL_S = 0.005


class Listening(Protocol):
    """Where the wire ends."""

    @property
    def host(self) -> str:
        """The address."""

    @property
    def port(self) -> int:
        """The port."""


async def until(condition: Callable[[], object], timeout_s: float = 10, what: str = "the condition") -> float:
    """Wait until something holds and return how many seconds that took."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > timeout_s:
            raise TimeoutError(f"{what} does not hold after {timeout_s} s")
        await asyncio.sleep(POLL_S)
    return time.monotonic() - started


class Wire:
    """A TCP relay to a broker in the test's own event loop; an async context manager."""

    host = HOST

    def __init__(self, broker: Listening) -> None:
        self.port = 0
        self.connections = 0
        """How many connections came so far, refused ones aside."""
        self._broker = broker
        self._server: asyncio.Server
        self._open: set[StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._to_broker = True
        self._to_client = True

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.refuse()
        self.cut()
        await asyncio.gather(*self._tasks)
        await self._server.wait_closed()

    async def accept(self) -> None:
        """Listen, on the port of the last time if there was one."""
        self._server = await asyncio.start_server(self._relay, HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Refuse connections from now on; those that stand go on."""
        self._server.close()

    def cut(self) -> None:
        """Break every connection."""
        for writer in self._open:
            writer.transport.abort()

    def swallow(self, *, to_broker: bool = True, to_client: bool = True) -> None:
        """Let what is sent vanish, one way or both, while every connection stays open."""
        self._to_broker, self._to_client = not to_broker, not to_client

    def stall(self) -> None:
        """Take nothing more from the client, until its side of the wire is full."""
        for writer in self._open:
            writer.transport.pause_reading()  # type: ignore[attr-defined] # it is a socket's

    def mend(self) -> None:
        """Carry everything again, on new connections: the old ones have lost bytes."""
        self.swallow(to_broker=False, to_client=False)
        self.cut()

    async def _relay(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        self._open.add(writer)
        with suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(self._broker.host, self._broker.port)
            self._open.add(far_writer)
            await asyncio.gather(
                self._carry(reader, far_writer, lambda: self._to_broker),
                self._carry(far_reader, writer, lambda: self._to_client),
            )
            self._open.discard(far_writer)
        writer.close()
        self._open.discard(writer)

    async def _carry(self, source: StreamReader, target: StreamWriter, carries: Callable[[], bool]) -> None:
        with suppress(OSError):
            while data := await source.read(CHUNK_BYTES):
                if carries():
                    target.write(data)
                    await target.drain()
        target.close()

"""TCP fronts that make of a mosquitto what a package may not offer: a WebSocket listener, a broker without MQTT 5."""

import asyncio
import base64
import hashlib
import socket
import ssl
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
CHUNK_BYTES = 65536
WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
CONNACK_UNACCEPTABLE_PROTOCOL_VERSION = bytes([0x20, 2, 0, 1])  # MQTT 3.1.1, table 3.1


class Opcode(IntEnum):
    """What a frame is (RFC 6455, section 5.2)."""

    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


@dataclass(frozen=True, slots=True)
class Pipe:
    """One way to talk: what comes in and what goes out."""

    reader: StreamReader
    writer: StreamWriter


Connect = Callable[[], Awaitable[Pipe]]
Relay = Callable[[Pipe, Connect], Awaitable[None]]


class Front:
    """A listener on a thread of its own that hands each client, and a way to reach the broker, to a relay.

    A context manager; leaving it closes the listener and every connection.
    """

    def __init__(self, port: int, broker_port: int, relay: Relay, tls: ssl.SSLContext | None = None) -> None:
        self._listener = socket.create_server((HOST, port))
        self._broker_port = broker_port
        self._relay = relay
        self._tls = tls
        self._clients: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=f"front-{port}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, sock=self._listener, ssl=self._tls)
        await self._stop.wait()
        server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        writers = [writer]

        async def connect() -> Pipe:
            pipe = Pipe(*await asyncio.open_connection(HOST, self._broker_port))
            writers.append(pipe.writer)
            return pipe

        try:
            # A connection that breaks, on either side, is the end of it and no error.
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._relay(Pipe(reader, writer), connect)
            for each in writers:
                each.close()
        except asyncio.CancelledError:
            for each in writers:
                each.transport.abort()
        finally:
            self._clients.discard(task)


async def refuse_mqtt_5(client: Pipe, connect: Connect) -> None:
    """Answer an MQTT 5 CONNECT as a broker of the 3.1.1 age does, pass everything else through."""
    first = await client.reader.readexactly(2)
    while first[-1] & 0x80:
        first += await client.reader.readexactly(1)
    # The variable header opens with the name "MQTT" (2 + 4 bytes), then comes the protocol level.
    first += await client.reader.readexactly(7)
    if first[-1] > 4:
        client.writer.write(CONNACK_UNACCEPTABLE_PROTOCOL_VERSION)
        await client.writer.drain()
        return
    broker = await connect()
    broker.writer.write(first)
    await _both(_copy(client, broker), _copy(broker, client))


async def speak_websocket(client: Pipe, connect: Connect) -> None:
    """Unwrap MQTT from the WebSocket frames of a client (RFC 6455), and wrap what the broker sends."""
    request = await client.reader.readuntil(b"\r\n\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in request.split(b"\r\n")[1:] if b": " in line)
    if b"mqtt" not in headers.get(b"sec-websocket-protocol", b""):
        client.writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await client.writer.drain()
        return
    key = next(line for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")).split()[1]
    accept = base64.b64encode(hashlib.sha1(key + WEBSOCKET_GUID, usedforsecurity=False).digest())
    broker = await connect()
    client.writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )
    await _both(_unwrap(client, broker), _wrap(broker, client))


async def _both(*copies: Awaitable[None]) -> None:
    """Run the two directions until one of them ends."""
    tasks = [asyncio.ensure_future(copy) for copy in copies]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _copy(source: Pipe, target: Pipe) -> None:
    while data := await source.reader.read(CHUNK_BYTES):
        target.writer.write(data)
        await target.writer.drain()


async def _wrap(broker: Pipe, client: Pipe) -> None:
    while data := await broker.reader.read(CHUNK_BYTES):
        client.writer.write(_frame(Opcode.BINARY, data))
        await client.writer.drain()


async def _unwrap(client: Pipe, broker: Pipe) -> None:
    while True:
        opcode, size = await client.reader.readexactly(2)
        length = size & 0x7F
        if length >= 126:
            length = int.from_bytes(await client.reader.readexactly(2 if length == 126 else 8))
        mask = await client.reader.readexactly(4)
        masked = await client.reader.readexactly(length)
        key = (mask * (length // 4 + 1))[:length]
        data = (int.from_bytes(masked) ^ int.from_bytes(key)).to_bytes(length)
        match opcode & 0x0F:
            case Opcode.CLOSE:
                return
            case Opcode.PING:
                client.writer.write(_frame(Opcode.PONG, data))
            case _:
                broker.writer.write(data)
                await broker.writer.drain()


def _frame(opcode: int, data: bytes) -> bytes:
    """One unmasked, final frame."""
    if len(data) < 126:
        size = bytes([len(data)])
    elif len(data) < 65536:
        size = b"\x7e" + len(data).to_bytes(2)
    else:
        size = b"\x7f" + len(data).to_bytes(8)
    return bytes([0x80 | opcode]) + size + data

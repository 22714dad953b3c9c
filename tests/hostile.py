"""Brokers that break the rules: MQTT over raw sockets, obedient but for what a test's script replaces."""

import asyncio
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self

from tests.raw_client import Kind, encode_text, encode_variable, packet

HOST = "127.0.0.1"


class Sent(NamedTuple):
    """A packet of the client, its fixed header taken apart."""

    kind: Kind
    flags: int
    body: bytes

    @property
    def packet_id(self) -> bytes:
        """The packet identifier of all but CONNECT, PUBLISH, PINGREQ and DISCONNECT."""
        return self.body[:2]


class Peer:
    """One client, as its broker sees it."""

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.sent: list[Sent] = []
        """Every packet of the client so far."""
        self.subscribed: dict[bytes, int] = {}
        """Identifier of each subscription, by filter."""
        self._reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        """Send bytes, whatever they are."""
        self._writer.write(data)

    async def drain(self) -> None:
        """Wait while the client does not read what was sent."""
        await self._writer.drain()

    def close(self) -> None:
        """Close the connection once everything is sent."""
        self._writer.close()

    async def packet(self) -> Sent:
        """Read the next packet of the client."""
        (first,) = await self._reader.readexactly(1)
        size, shift = 0, 0
        while True:
            (byte,) = await self._reader.readexactly(1)
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        self.sent.append(Sent(Kind(first >> 4), first & 15, await self._reader.readexactly(size)))
        return self.sent[-1]

    async def forever(self) -> None:
        """Read and ignore whatever comes."""
        while True:
            await self.packet()

    async def obey(self, replaced: "Answers | None" = None) -> None:
        """Answer as a broker should, but for the kinds of packet that have another answer."""
        answers = {**OBEDIENT, **(replaced or {})}
        while True:
            sent = await self.packet()
            if sent.kind in answers:
                await answers[sent.kind](self, sent)


Answer = Callable[[Peer, Sent], Awaitable[None]]
Answers = Mapping[Kind, Answer]
Script = Callable[[Peer], Awaitable[None]]


class Hostile:
    """A broker of MQTT 5 that follows a script with each client; an async context manager.

    Args:
        scripts: One for each connection in turn; the last one is for all that come later.
    """

    host = HOST

    def __init__(self, *scripts: Script) -> None:
        self.port = 0
        self.peers: list[Peer] = []
        """Every connection so far."""
        self.failures: list[Exception] = []
        """What went wrong in the scripts."""
        self._scripts = scripts
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        assert not self.failures, self.failures

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        peer = Peer(reader, writer)
        self.peers.append(peer)
        script = self._scripts[min(len(self.peers), len(self._scripts)) - 1]
        try:
            with suppress(OSError, IncompleteReadError):  # the client has gone
                await script(peer)
        except Exception as error:  # noqa: BLE001 - told at the end of the test
            self.failures.append(error)
        finally:
            writer.close()


def connack(code: int = 0, properties: bytes = b"", *, session_present: bool = False) -> bytes:
    """Build a CONNACK."""
    return packet(Kind.CONNACK, bytes([session_present, code]) + encode_variable(len(properties)) + properties)


def publish(
    topic: str | bytes, payload: bytes = b"", *, qos: int = 0, packet_id: int = 1, properties: bytes = b""
) -> bytes:
    """Build a PUBLISH, well-formed or not."""
    name = encode_text(topic) if isinstance(topic, str) else len(topic).to_bytes(2) + topic
    body = name + (packet_id.to_bytes(2) if qos else b"") + encode_variable(len(properties)) + properties + payload
    return packet(Kind.PUBLISH, body, flags=qos << 1)


def subscription_identifier(identifier: int) -> bytes:
    """Build the property (MQTT 5.0, 3.3.2.3.8)."""
    return b"\x0b" + encode_variable(identifier)


def disconnect(reason: int) -> bytes:
    """Build a DISCONNECT of the broker."""
    return packet(Kind.DISCONNECT, bytes([reason, 0]))


def topic_filter(sent: Sent) -> bytes:
    """Return the only filter of a SUBSCRIBE."""
    after = sent.body[3 + sent.body[2] :]
    return after[2 : 2 + int.from_bytes(after[:2])]


async def _accept(peer: Peer, _sent: Sent) -> None:
    peer.send(connack())


async def _grant(peer: Peer, sent: Sent) -> None:
    # Our client sends one property, a subscription identifier below 128.
    peer.subscribed[topic_filter(sent)] = sent.body[4]
    peer.send(packet(Kind.SUBACK, sent.packet_id + b"\0" + bytes([sent.body[-1] & 3])))


async def _release(peer: Peer, sent: Sent) -> None:
    peer.send(packet(Kind.UNSUBACK, sent.packet_id + b"\0\0"))


async def _take(peer: Peer, sent: Sent) -> None:
    start = 2 + int.from_bytes(sent.body[:2])
    if qos := sent.flags >> 1 & 3:
        peer.send(packet(Kind.PUBACK if qos == 1 else Kind.PUBREC, sent.body[start : start + 2]))


async def _complete(peer: Peer, sent: Sent) -> None:
    peer.send(packet(Kind.PUBCOMP, sent.packet_id))


async def _let_go(peer: Peer, sent: Sent) -> None:
    peer.send(packet(Kind.PUBREL, sent.packet_id, flags=2))


async def _pong(peer: Peer, _sent: Sent) -> None:
    peer.send(packet(Kind.PINGRESP, b""))


async def never(_peer: Peer, _sent: Sent) -> None:
    """Leave a packet without an answer."""


async def obedient(peer: Peer) -> None:
    """Be a broker as it should be."""
    await peer.obey()


OBEDIENT: dict[Kind, Answer] = {
    Kind.CONNECT: _accept,
    Kind.SUBSCRIBE: _grant,
    Kind.UNSUBSCRIBE: _release,
    Kind.PUBLISH: _take,
    Kind.PUBREL: _complete,
    Kind.PUBREC: _let_go,
    Kind.PINGREQ: _pong,
}
"""How a broker answers; it has no messages of its own, and routes none."""

"""One network connection: bytes in and out, keep-alive, and how it ends."""

import asyncio
import logging
from typing import Protocol, cast

from simulator.limits import MIB, Limits
from simulator.packets import (
    V5,
    V311,
    Decoder,
    Packet,
    PacketError,
    Properties,
    Reason,
    encode_connack,
    encode_disconnect,
)

logger = logging.getLogger(__name__)

READ_BYTES = 32 * 1024  # what is handled in one go, so that a flood leaves time for everything else on the loop
FLUSH_BYTES = 64 * 1024
HIGH_WATER_BYTES = MIB // 4
CLOSE_TIMEOUT_S = 0.5  # how long a peer may take to read the rest


class Owner(Protocol):
    """Who minds the connections."""

    def opened(self, connection: "Connection") -> None:
        """Take a new connection."""

    def received(self, connection: "Connection", packet: Packet) -> None:
        """Act on a packet; a `PacketError` ends the connection with its reason."""

    def drained(self, connection: "Connection") -> None:
        """Go on sending: the peer, which read too slowly, has caught up."""

    def lost(self, connection: "Connection") -> None:
        """Expect nothing more from the connection. Comes once, and `closed` after it."""

    def closed(self, connection: "Connection") -> None:
        """Forget the connection: its socket is closed."""


class Connection(asyncio.BufferedProtocol):
    """Speaks MQTT packets with one peer, and knows little of what they mean."""

    def __init__(self, owner: Owner, limits: Limits) -> None:
        self.writable = True  # whether what is sent leaves at once; what can wait must wait while not
        self.accepted = False  # whether the client has been let in
        self.max_packet_bytes: int | None = None  # what the client accepts
        self.topic_aliases: dict[int, str] = {}
        self._owner = owner
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder(limits.max_packet_bytes)
        self._read_buffer = bytearray(READ_BYTES)
        self._outgoing: list[bytes] = []
        self._outgoing_bytes = 0
        self._over = False
        self._last_heard = self._loop.time()
        self._timer: asyncio.TimerHandle
        self._transport: asyncio.Transport

    @property
    def level(self) -> int | None:
        """The protocol level, once the client has told it."""
        return self._decoder.level

    def keep_alive(self, interval_s: int) -> None:
        """End the connection when the client is silent for one and a half of its interval; 0 is no limit."""
        self._timer.cancel()
        if interval_s:
            self._check_silence(1.5 * interval_s)

    def send(self, packet: bytes) -> None:
        """Send a packet, together with what else is sent in this round of the loop."""
        self._outgoing.append(packet)
        self._outgoing_bytes += len(packet)
        if self._outgoing_bytes >= FLUSH_BYTES:
            self._flush()
        elif len(self._outgoing) == 1:
            self._loop.call_soon(self._flush)

    def close(self, reason: Reason | None = None, text: str = "") -> None:
        """End the connection, and say why when there is a reason and the protocol has a packet for it."""
        if self._over:
            return
        if reason is not None:
            self._say(reason, text)
        self._flush()
        self._transport.close()
        self._end()
        self._timer = self._loop.call_later(CLOSE_TIMEOUT_S, self._transport.abort)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write; asyncio has set TCP_NODELAY already."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._timer = self._loop.call_later(self._limits.connect_timeout_s, self.close)
        self._owner.opened(self)

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Lend the buffer that bytes are read into; asyncio's TLS slices it, and must not get a copy."""
        return memoryview(self._read_buffer)

    def buffer_updated(self, nbytes: int) -> None:
        """Hand on every packet that is complete by now."""
        self._last_heard = self._loop.time()
        try:
            for packet in self._decoder.feed(self._read_buffer[:nbytes]):
                self._owner.received(self, packet)
                if self._over:
                    return
        except PacketError as error:
            logger.info("closing a connection: %s", error)
            self.close(error.reason, str(error))

    def pause_writing(self) -> None:
        """Note that the peer reads more slowly than we write."""
        self.writable = False

    def resume_writing(self) -> None:
        """Note that the peer has caught up."""
        self.writable = True
        self._owner.drained(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Note that the socket is closed, from whichever side."""
        self._end()
        self._timer.cancel()
        self._owner.closed(self)

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._timer.cancel()
            self._owner.lost(self)

    def _say(self, reason: Reason, text: str) -> None:
        for said in (text, ""):
            packet = self._last_word(reason, said)
            if self.max_packet_bytes is None or len(packet) <= self.max_packet_bytes:
                self.send(packet)
                break

    def _last_word(self, reason: Reason, text: str) -> bytes:
        if not self.accepted:
            return encode_connack(self.level or V311, reason, Properties(reason_string=text or None))
        return encode_disconnect(reason, text) if self.level == V5 else b""

    def _check_silence(self, allowed_s: float) -> None:
        silent_s = self._loop.time() - self._last_heard
        if silent_s >= allowed_s:
            self.close(Reason.KEEP_ALIVE_TIMEOUT, f"nothing heard for {allowed_s:g} s")
        else:
            self._timer = self._loop.call_later(allowed_s - silent_s, self._check_silence, allowed_s)

    def _flush(self) -> None:
        outgoing = b"".join(self._outgoing)
        self._outgoing.clear()
        self._outgoing_bytes = 0
        if not outgoing or self._transport.is_closing():
            return
        self._transport.write(outgoing)
        # While the peer does not read, messages wait in the session; acknowledgements cannot.
        if self._transport.get_write_buffer_size() > self._limits.max_packet_bytes + 4 * HIGH_WATER_BYTES:
            logger.warning("cutting off a client that reads nothing")
            self._transport.abort()

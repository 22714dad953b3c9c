"""What the broker remembers of one client: its subscriptions, and the messages on their way to it."""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from simulator.connections import Connection
from simulator.limits import Limits
from simulator.messages import Message
from simulator.packets import (
    V5,
    Acknowledgement,
    Kind,
    Publish,
    Reason,
    encode_acknowledgement,
    encode_publish,
)
from simulator.users import ANYONE

if TYPE_CHECKING:
    from simulator.routing import Subscription

logger = logging.getLogger(__name__)

PACKET_IDS = 65_535


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message as one session is to receive it."""

    message: Message
    qos: int
    retain: bool
    subscription_ids: tuple[int, ...] = ()


class Session:
    """One client, connected or expected back.

    Messages wait here while the client is away, reads too slowly, or has too many to acknowledge. Those of QoS 0 are
    not kept for a client that is away, and not held up by acknowledgements (MQTT 5, section 3.3.4).
    """

    def __init__(self, client_id: str, limits: Limits) -> None:
        self.client_id = client_id
        self.level = V5
        self.user = ANYONE
        self.username = ""
        self.will: Publish | None = None
        self.expiry_s = 0
        self.timers: list[asyncio.TimerHandle] = []  # what is to happen unless the client comes back
        self.subscriptions: dict[str, Subscription] = {}
        self.received: set[int] = set()  # identifiers of QoS 2 messages that the client has not released yet
        self.connection: Connection | None = None
        self._limits = limits
        self._window = limits.max_inflight
        self._waiting: deque[Delivery] = deque()
        self._waiting_unacknowledged: deque[Delivery] = deque()  # QoS 0
        self._waiting_bytes = 0
        self._dropped = 0
        self._inflight: dict[int, Delivery | None] = {}  # None when only its PUBCOMP is missing
        self._again: deque[int] = deque()  # what of that is to be sent once more after a reconnection
        self._last_packet_id = 0
        self._loop = asyncio.get_running_loop()

    def attach(self, connection: Connection, receive_maximum: int) -> None:
        """Go on with a new connection, where the last one ended."""
        self.connection = connection
        self._window = min(receive_maximum, self._limits.max_inflight)
        self._again = deque(self._inflight)
        self.drain()

    def cancel_timers(self) -> None:
        """Take back what was to happen while the client is away."""
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()

    def detach(self) -> None:
        """Keep everything for the next connection."""
        self.connection = None
        self._waiting_bytes -= sum(delivery.message.size for delivery in self._waiting_unacknowledged)
        self._waiting_unacknowledged.clear()

    def deliver(self, delivery: Delivery) -> None:
        """Send a message, now or when its turn comes; beyond the bounds drop it and log the loss."""
        queue = self._waiting if delivery.qos else self._waiting_unacknowledged
        connection = None if queue else self._ready(delivery.qos)
        if connection is not None:
            self._send(connection, delivery)
        elif self.connection is None and not delivery.qos:
            return
        elif self._has_room(delivery.message):
            queue.append(delivery)
            self._waiting_bytes += delivery.message.size
        else:
            if not self._dropped:
                logger.warning("the queue of client %r is full, dropping messages", self.client_id)
            self._dropped += 1

    def drain(self) -> None:
        """Send what waits, as far as connection and client take it."""
        while self._again and (connection := self._ready(qos=1)):
            self._send_again(connection, self._again.popleft())
        for queue in (self._waiting_unacknowledged, self._waiting):
            while queue and (connection := self._ready(queue[0].qos)):
                delivery = queue.popleft()
                self._waiting_bytes -= delivery.message.size
                self._send(connection, delivery)
        if self._dropped and not self._waiting and not self._waiting_unacknowledged:
            logger.warning("client %r has lost %d messages to its full queue", self.client_id, self._dropped)
            self._dropped = 0

    def acknowledge(self, connection: Connection, packet: Acknowledgement) -> None:
        """Take a PUBACK, PUBREC or PUBCOMP of the client, and answer the second."""
        if packet.kind == Kind.PUBREC and packet.reason < Reason.UNSPECIFIED_ERROR:
            known = packet.packet_id in self._inflight
            if known:
                self._inflight[packet.packet_id] = None
            reason = Reason.SUCCESS if known else Reason.PACKET_IDENTIFIER_NOT_FOUND
            self._release(connection, packet.packet_id, reason)
        elif packet.packet_id in self._inflight:
            del self._inflight[packet.packet_id]
            if packet.packet_id in self._again:
                self._again.remove(packet.packet_id)
            self.drain()

    def _ready(self, qos: int) -> Connection | None:
        """Give the connection, if it takes a message of that QoS now."""
        if self.connection is None or not self.connection.writable:
            return None
        if qos and len(self._inflight) - len(self._again) >= self._window:
            return None
        return self.connection

    def _has_room(self, message: Message) -> bool:
        return (
            len(self._waiting) + len(self._waiting_unacknowledged) < self._limits.max_queued
            and self._waiting_bytes + message.size <= self._limits.max_queued_bytes
        )

    def _send(self, connection: Connection, delivery: Delivery) -> None:
        if delivery.message.expired(self._loop.time()):
            return
        packet_id = self._next_packet_id() if delivery.qos else 0
        packet = self._encode(delivery, packet_id, duplicate=False)
        if self._fits(connection, packet):
            if packet_id:
                self._inflight[packet_id] = delivery
            connection.send(packet)

    def _send_again(self, connection: Connection, packet_id: int) -> None:
        delivery = self._inflight[packet_id]
        if delivery is None:
            self._release(connection, packet_id, Reason.SUCCESS)
            return
        packet = self._encode(delivery, packet_id, duplicate=True)
        if self._fits(connection, packet):
            connection.send(packet)
        else:
            del self._inflight[packet_id]

    def _fits(self, connection: Connection, packet: bytes) -> bool:
        """Tell whether the client accepts a message of that size; if not, it counts as sent (section 3.1.2.11.4)."""
        fits = connection.max_packet_bytes is None or len(packet) <= connection.max_packet_bytes
        if not fits:
            logger.warning("a message of %d bytes is more than client %r accepts", len(packet), self.client_id)
        return fits

    def _encode(self, delivery: Delivery, packet_id: int, *, duplicate: bool) -> bytes:
        message = delivery.message
        properties = message.properties
        if delivery.subscription_ids:
            properties = replace(properties, subscription_ids=delivery.subscription_ids)
        if message.expires_at is not None:
            left_s = max(0, round(message.expires_at - self._loop.time()))
            properties = replace(properties, message_expiry_s=left_s)
        return encode_publish(
            Publish(message.topic, message.payload, delivery.qos, delivery.retain, duplicate, packet_id, properties),
            self.level,
        )

    def _release(self, connection: Connection, packet_id: int, reason: Reason) -> None:
        connection.send(encode_acknowledgement(Acknowledgement(Kind.PUBREL, packet_id, reason), self.level))

    def _next_packet_id(self) -> int:
        while True:
            self._last_packet_id = self._last_packet_id % PACKET_IDS + 1
            if self._last_packet_id not in self._inflight:
                return self._last_packet_id

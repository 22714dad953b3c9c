"""An MQTT client that hides nothing: one packet out, one packet in, well-formed or not, on a plain socket.

It shares no code with the simulator and none with paho, so that it can judge both a mosquitto and our own broker.
"""

import itertools
import socket
import ssl
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import TracebackType
from typing import Any, Protocol, Self

TIMEOUT_S = 10


class Kind(IntEnum):
    """What a packet is (MQTT 5, section 2.1.2)."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15


# Name, identifier and type of each property (MQTT 5, table 2-4).
PROPERTIES = {
    "payload_format": (0x01, "byte"),
    "message_expiry": (0x02, "four"),
    "content_type": (0x03, "text"),
    "response_topic": (0x08, "text"),
    "correlation_data": (0x09, "binary"),
    "subscription_ids": (0x0B, "variable"),
    "session_expiry": (0x11, "four"),
    "assigned_client_id": (0x12, "text"),
    "server_keep_alive": (0x13, "two"),
    "authentication_method": (0x15, "text"),
    "authentication_data": (0x16, "binary"),
    "request_problem_information": (0x17, "byte"),
    "will_delay": (0x18, "four"),
    "request_response_information": (0x19, "byte"),
    "reason_string": (0x1F, "text"),
    "receive_maximum": (0x21, "two"),
    "topic_alias_maximum": (0x22, "two"),
    "topic_alias": (0x23, "two"),
    "user_properties": (0x26, "pair"),
    "maximum_packet_size": (0x27, "four"),
}
NAMES = {number: (name, kind) for name, (number, kind) in PROPERTIES.items()}
REPEATED = {"subscription_ids", "user_properties"}

Values = Mapping[str, Any]


class Listening(Protocol):
    """Where a client connects to."""

    @property
    def host(self) -> str:
        """The address."""

    @property
    def port(self) -> int:
        """The port."""


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker is to publish when the client is lost."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Values = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Packet:
    """What a broker sent; the fields that its kind does not have are empty."""

    kind: Kind
    packet_id: int = 0
    reasons: tuple[int, ...] = ()
    session_present: bool = False
    topic: str = ""
    payload: bytes = b""
    qos: int = 0
    retain: bool = False
    duplicate: bool = False
    properties: Values = field(default_factory=dict)

    @property
    def reason(self) -> int:
        """The only reason code."""
        (reason,) = self.reasons
        return reason


class ClosedError(Exception):
    """The broker has closed the connection."""


class RawClient:
    """A socket to a broker.

    What arrives while something else is awaited stays in line, so that each packet can be expected by its kind.
    When it is `narrow` the network holds little of what it does not read, so that the broker soon has to.
    """

    def __init__(
        self, broker: Listening, level: int = 5, *, tls: ssl.SSLContext | None = None, narrow: bool = False
    ) -> None:
        self.level = level
        self._socket = socket.socket()
        self._socket.settimeout(TIMEOUT_S)
        if narrow:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.connect((broker.host, broker.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self._socket = tls.wrap_socket(self._socket, server_hostname=broker.host)
        self._arrived: deque[Packet] = deque()
        self._packet_ids = itertools.count(1)
        self.connack = Packet(Kind.CONNACK)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.drop()

    def drop(self) -> None:
        """Close the socket without a word, as a client that crashes."""
        self._socket.close()

    def connect(
        self,
        client_id: str = "",
        *,
        clean: bool = True,
        **options: Any,
    ) -> Packet:
        """Send a CONNECT with the options of `connect_packet` and give the CONNACK."""
        self.send(connect_packet(self.level, client_id, clean=clean, **options))
        self.connack = self.expect(Kind.CONNACK)
        return self.connack

    def disconnect(self, reason: int = 0, **properties: Any) -> None:
        """Take leave, and wait until the broker has closed the connection."""
        body = bytes([reason]) + encode_properties(properties) if self.level == 5 else b""
        self.send(packet(Kind.DISCONNECT, body))
        self.expect_end()

    def publish(
        self, topic: str, payload: bytes = b"", qos: int = 1, *, retain: bool = False, **properties: Any
    ) -> int:
        """Publish, go through with the acknowledgements and give the first reason code; 0 for QoS 0."""
        packet_id = next(self._packet_ids)
        self.send(publish_packet(self.level, topic, payload, qos, packet_id, retain=retain, properties=properties))
        if qos == 0:
            self.ping()
            return 0
        answer = self.expect(Kind.PUBACK if qos == 1 else Kind.PUBREC)
        assert answer.packet_id == packet_id
        if qos == 2 and answer.reason < 0x80:
            self.acknowledge(Kind.PUBREL, packet_id)
            assert self.expect(Kind.PUBCOMP).packet_id == packet_id
        return answer.reason

    def subscribe(
        self,
        topic_filter: str,
        qos: int = 0,
        *,
        no_local: bool = False,
        retain_as_published: bool = False,
        retain_handling: int = 0,
        **properties: Any,
    ) -> int:
        """Subscribe and give the reason code."""
        packet_id = next(self._packet_ids)
        options = qos | no_local << 2 | retain_as_published << 3 | retain_handling << 4
        self.send(subscribe_packet(self.level, packet_id, [(topic_filter, options)], properties))
        answer = self.expect(Kind.SUBACK)
        assert answer.packet_id == packet_id
        return answer.reason

    def unsubscribe(self, *topic_filters: str) -> tuple[int, ...]:
        """Unsubscribe and give the reason codes, of which MQTT 3.1.1 has none."""
        packet_id = next(self._packet_ids)
        body = packet_id.to_bytes(2) + (b"\0" if self.level == 5 else b"")
        self.send(packet(Kind.UNSUBSCRIBE, body + b"".join(encode_text(each) for each in topic_filters), flags=2))
        answer = self.expect(Kind.UNSUBACK)
        assert answer.packet_id == packet_id
        return answer.reasons

    def receive(self) -> Packet:
        """Give the next message and acknowledge it to the end."""
        message = self.expect(Kind.PUBLISH)
        if message.qos == 1:
            self.acknowledge(Kind.PUBACK, message.packet_id)
        if message.qos == 2:
            self.acknowledge(Kind.PUBREC, message.packet_id)
            assert self.expect(Kind.PUBREL).packet_id == message.packet_id
            self.acknowledge(Kind.PUBCOMP, message.packet_id)
        return message

    def acknowledge(self, kind: Kind, packet_id: int) -> None:
        """Send a PUBACK, PUBREC, PUBREL or PUBCOMP."""
        self.send(packet(kind, packet_id.to_bytes(2), flags=2 if kind == Kind.PUBREL else 0))

    def ping(self) -> None:
        """Wait for a round trip: what the broker had to say before is here afterwards."""
        self.send(packet(Kind.PINGREQ, b""))
        self.expect(Kind.PINGRESP)

    def messages(self) -> list[Packet]:
        """Give the messages that have come, after a round trip and without acknowledging them."""
        self.ping()
        messages = [each for each in self._arrived if each.kind == Kind.PUBLISH]
        self._arrived = deque(each for each in self._arrived if each.kind != Kind.PUBLISH)
        return messages

    def expect(self, kind: Kind) -> Packet:
        """Wait for the next packet of a kind; whatever else comes stays in line."""
        for arrived in self._arrived:
            if arrived.kind == kind:
                self._arrived.remove(arrived)
                return arrived
        while (arrived := self._read()).kind != kind:
            self._arrived.append(arrived)
        return arrived

    def expect_end(self) -> list[Packet]:
        """Wait until the broker closes the connection and give what it sent before."""
        try:
            while True:
                self._arrived.append(self._read())
        except ClosedError:
            return list(self._arrived)

    def send(self, data: bytes) -> None:
        """Send bytes, whatever they are."""
        self._socket.sendall(data)

    def _read(self) -> Packet:
        first = self._take(1)[0]
        size, shift = 0, 0
        while True:
            byte = self._take(1)[0]
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return decode(first, self._take(size), self.level)

    def _take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                chunk = self._socket.recv(size - len(data))
            except (ConnectionResetError, BrokenPipeError):
                chunk = b""
            if not chunk:
                raise ClosedError
            data += chunk
        return data


def packet(kind: Kind, body: bytes, flags: int = 0) -> bytes:
    """Put a fixed header before a body."""
    return bytes([kind << 4 | flags]) + encode_variable(len(body)) + body


def connect_packet(
    level: int,
    client_id: str = "",
    *,
    clean: bool = True,
    keep_alive: int = 60,
    username: str | None = None,
    password: str | None = None,
    will: Will | None = None,
    **properties: Any,
) -> bytes:
    """Build a CONNECT."""
    flags = clean << 1 | (username is not None) << 7 | (password is not None) << 6
    body = encode_text(client_id)
    if will is not None:
        flags |= 4 | will.qos << 3 | will.retain << 5
        body += encode_properties(will.properties) if level == 5 else b""
        body += encode_text(will.topic) + encode_binary(will.payload)
    for text in (username, password):
        body += b"" if text is None else encode_text(text)
    head = encode_text("MQTT") + bytes([level, flags]) + keep_alive.to_bytes(2)
    return packet(Kind.CONNECT, head + (encode_properties(properties) if level == 5 else b"") + body)


def publish_packet(
    level: int,
    topic: str,
    payload: bytes,
    qos: int = 0,
    packet_id: int = 0,
    *,
    retain: bool = False,
    duplicate: bool = False,
    properties: Values | None = None,
) -> bytes:
    """Build a PUBLISH."""
    body = encode_text(topic) + (packet_id.to_bytes(2) if qos else b"")
    body += encode_properties(properties or {}) if level == 5 else b""
    return packet(Kind.PUBLISH, body + payload, flags=retain | qos << 1 | duplicate << 3)


def subscribe_packet(
    level: int, packet_id: int, filters: Iterable[tuple[str, int]], properties: Values | None = None
) -> bytes:
    """Build a SUBSCRIBE from filters and the byte of their options."""
    body = packet_id.to_bytes(2) + (encode_properties(properties or {}) if level == 5 else b"")
    return packet(Kind.SUBSCRIBE, body + b"".join(encode_text(each) + bytes([options]) for each, options in filters), 2)


def encode_variable(value: int) -> bytes:
    """Encode a variable byte integer."""
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + encode_variable(high) if high else bytes([low])


def encode_binary(data: bytes) -> bytes:
    """Put two bytes of length before data."""
    return len(data).to_bytes(2) + data


def encode_text(text: str) -> bytes:
    """Put two bytes of length before a text."""
    return encode_binary(text.encode())


def encode_properties(properties: Values) -> bytes:
    """Encode properties by their names in `PROPERTIES`; those that may repeat are sequences."""
    body = b""
    for name, value in properties.items():
        number, kind = PROPERTIES[name]
        for each in value if name in REPEATED else [value]:
            body += bytes([number]) + _encode_value(kind, each)
    return encode_variable(len(body)) + body


def _encode_value(kind: str, value: Any) -> bytes:
    match kind:
        case "byte" | "two" | "four":
            return int(value).to_bytes({"byte": 1, "two": 2, "four": 4}[kind])
        case "variable":
            return encode_variable(value)
        case "text":
            return encode_text(value)
        case "binary":
            return encode_binary(value)
        case _:
            return b"".join(encode_text(each) for each in value)


def decode(first: int, body: bytes, level: int) -> Packet:
    """Take a packet of a broker apart."""
    kind, flags = Kind(first >> 4), first & 15
    fields = _Fields(body)
    match kind:
        case Kind.CONNACK:
            present, reason = fields.number(1), fields.number(1)
            return Packet(kind, reasons=(reason,), session_present=bool(present), properties=fields.properties(level))
        case Kind.PUBLISH:
            topic, qos = fields.text(), flags >> 1 & 3
            return Packet(
                kind,
                topic=topic,
                qos=qos,
                retain=bool(flags & 1),
                duplicate=bool(flags & 8),
                packet_id=fields.number(2) if qos else 0,
                properties=fields.properties(level),
                payload=fields.rest(),
            )
        case Kind.SUBACK | Kind.UNSUBACK:
            packet_id, properties = fields.number(2), fields.properties(level)
            return Packet(kind, packet_id, tuple(fields.rest()), properties=properties)
        case Kind.PINGRESP:
            return Packet(kind)
        case Kind.DISCONNECT:
            reason = fields.number(1) if body else 0
            return Packet(kind, reasons=(reason,), properties=fields.properties(level))
        case _:  # PUBACK, PUBREC, PUBREL, PUBCOMP
            packet_id, reason = fields.number(2), fields.number(1) if len(body) > 2 else 0
            return Packet(kind, packet_id, (reason,), properties=fields.properties(level))


class _Fields:
    """The fields of a packet, taken one after another."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def take(self, size: int) -> bytes:
        taken, self._data = self._data[:size], self._data[size:]
        assert len(taken) == size, "a field runs over the end of its packet"
        return taken

    def rest(self) -> bytes:
        return self.take(len(self._data))

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def variable(self) -> int:
        byte = self.number(1)
        return byte & 0x7F | (self.variable() << 7 if byte & 0x80 else 0)

    def text(self) -> str:
        return self.take(self.number(2)).decode()

    def properties(self, level: int) -> dict[str, Any]:
        if level != 5 or not self._data:
            return {}
        inner = _Fields(self.take(self.variable()))
        found: dict[str, Any] = {}
        while inner._data:
            name, kind = NAMES[inner.number(1)]
            value = inner.value(kind)
            found[name] = [*found.get(name, []), value] if name in REPEATED else value
        return found

    def value(self, kind: str) -> Any:
        match kind:
            case "byte" | "two" | "four":
                return self.number({"byte": 1, "two": 2, "four": 4}[kind])
            case "variable":
                return self.variable()
            case "text":
                return self.text()
            case "binary":
                return self.take(self.number(2))
            case _:
                return (self.text(), self.text())

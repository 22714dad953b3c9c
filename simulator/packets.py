"""The wire format of MQTT 3.1.1 and 5: bytes to what a client says, and what the broker says to bytes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeVar

T = TypeVar("T")

V311: Final = 4
V5: Final = 5


class Kind(IntEnum):
    """Control packet types (MQTT 5, section 2.1.2)."""

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


class Reason(IntEnum):
    """The reason codes this broker gives or minds (MQTT 5, section 2.4)."""

    SUCCESS = 0x00
    NO_MATCHING_SUBSCRIBERS = 0x10
    NO_SUBSCRIPTION_EXISTED = 0x11
    UNSPECIFIED_ERROR = 0x80
    MALFORMED_PACKET = 0x81
    PROTOCOL_ERROR = 0x82
    UNSUPPORTED_PROTOCOL_VERSION = 0x84
    CLIENT_IDENTIFIER_NOT_VALID = 0x85
    BAD_USER_NAME_OR_PASSWORD = 0x86
    NOT_AUTHORIZED = 0x87
    SERVER_SHUTTING_DOWN = 0x8B
    BAD_AUTHENTICATION_METHOD = 0x8C
    KEEP_ALIVE_TIMEOUT = 0x8D
    SESSION_TAKEN_OVER = 0x8E
    TOPIC_FILTER_INVALID = 0x8F
    PACKET_IDENTIFIER_NOT_FOUND = 0x92
    RECEIVE_MAXIMUM_EXCEEDED = 0x93
    TOPIC_ALIAS_INVALID = 0x94
    PACKET_TOO_LARGE = 0x95
    QUOTA_EXCEEDED = 0x97
    MAXIMUM_CONNECT_TIME = 0xA0


# What MQTT 3.1.1 can say in a CONNACK (its table 3.1); for any other reason it closes without a word.
_RETURN_CODES = {
    Reason.SUCCESS: 0,
    Reason.UNSUPPORTED_PROTOCOL_VERSION: 1,
    Reason.CLIENT_IDENTIFIER_NOT_VALID: 2,
    Reason.QUOTA_EXCEEDED: 3,
    Reason.BAD_USER_NAME_OR_PASSWORD: 5,
    Reason.NOT_AUTHORIZED: 5,
}


class PacketError(Exception):
    """A client broke the protocol or a bound; its connection ends with `reason`."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Properties:
    """The properties of a packet (MQTT 5, section 2.2.2.2), as far as this broker sends or accepts them."""

    payload_format: int | None = None
    message_expiry_s: int | None = None
    content_type: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None
    subscription_ids: tuple[int, ...] = ()
    session_expiry_s: int | None = None
    assigned_client_id: str | None = None
    authentication_method: str | None = None
    authentication_data: bytes | None = None
    request_problem_information: int | None = None
    will_delay_s: int | None = None
    request_response_information: int | None = None
    reason_string: str | None = None
    receive_maximum: int | None = None
    topic_alias_maximum: int | None = None
    topic_alias: int | None = None
    user_properties: tuple[tuple[str, str], ...] = ()
    maximum_packet_size: int | None = None


NO_PROPERTIES: Final = Properties()


@dataclass(frozen=True, slots=True)
class Publish:
    """A message on its way, in either direction; without a topic, a topic alias stands for it."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    duplicate: bool = False
    packet_id: int = 0
    properties: Properties = NO_PROPERTIES


@dataclass(frozen=True, slots=True)
class Connect:
    """A client introduces itself."""

    level: int
    client_id: str
    clean_start: bool
    keep_alive_s: int
    will: Publish | None
    username: str | None
    password: bytes | None
    properties: Properties


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """A PUBACK, PUBREC, PUBREL or PUBCOMP, in either direction."""

    kind: Kind
    packet_id: int
    reason: int = Reason.SUCCESS


@dataclass(frozen=True, slots=True)
class FilterOptions:
    """One line of a SUBSCRIBE."""

    topic_filter: str
    qos: int
    no_local: bool
    retain_as_published: bool
    retain_handling: int


@dataclass(frozen=True, slots=True)
class Subscribe:
    """A client asks for topics."""

    packet_id: int
    filters: tuple[FilterOptions, ...]
    properties: Properties


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """A client wants topics no more."""

    packet_id: int
    topic_filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ping:
    """A client is still there."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """A client goes."""

    reason: int
    properties: Properties


Packet = Publish | Connect | Acknowledgement | Subscribe | Unsubscribe | Ping | Disconnect


class Decoder:
    """Cuts the byte stream of one client into packets.

    Raises `PacketError` at the first packet that is malformed, larger than `max_packet_bytes`, or that a client
    must not send; nothing can be read after that.
    """

    def __init__(self, max_packet_bytes: int) -> None:
        self.level: int | None = None  # as the CONNECT packet says
        self._max_packet_bytes = max_packet_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> Iterator[Packet]:
        """Take what arrived and give each packet that is complete by now."""
        self._buffer += data
        if self.level is None and self._buffer and self._buffer[0] != Kind.CONNECT << 4:
            raise PacketError(Reason.PROTOCOL_ERROR, "the first packet is no CONNECT")
        start = 0
        try:
            while (frame := self._frame(start)) is not None:
                first, body, start = frame
                yield self._decode(first, _Reader(body))
        finally:
            del self._buffer[:start]

    def _frame(self, start: int) -> tuple[int, bytes, int] | None:
        """Find the first byte, the body and the end of the packet at `start`; nothing while it is incomplete."""
        length = _variable_at(self._buffer, start + 1)
        if length is None:
            return None
        size, body = length
        end = body + size
        if end - start > self._max_packet_bytes:
            raise PacketError(Reason.PACKET_TOO_LARGE, f"a packet of more than {self._max_packet_bytes} bytes")
        if end > len(self._buffer):
            return None
        return self._buffer[start], bytes(self._buffer[body:end]), end

    def _decode(self, first: int, reader: "_Reader") -> Packet:
        kind, flags = first >> 4, first & 0x0F
        decode = _DECODERS.get(kind)
        if decode is None or (decode is _connect and self.level is not None):
            raise PacketError(Reason.PROTOCOL_ERROR, f"a client that is connected sends no packet of type {kind}")
        if self.level is None:
            self.level = _level(reader)
        if kind != Kind.PUBLISH and flags != _FLAGS.get(kind, 0):
            raise PacketError(Reason.MALFORMED_PACKET, "reserved flags are set")
        packet = decode(reader, first, self.level)
        if not reader.done():
            raise PacketError(Reason.MALFORMED_PACKET, "more bytes than the packet has fields")
        return packet


class _Reader:
    """Takes the fields out of a packet's body, one after another."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def done(self) -> bool:
        return self._at == len(self._data)

    def take(self, size: int) -> bytes:
        start = self._at
        self._at += size
        if self._at > len(self._data):
            raise PacketError(Reason.MALFORMED_PACKET, "a field runs over the end of its packet")
        return self._data[start : self._at]

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def byte(self) -> int:
        return self.take(1)[0]

    def two(self) -> int:
        return int.from_bytes(self.take(2))

    def four(self) -> int:
        return int.from_bytes(self.take(4))

    def variable(self) -> int:
        found = _variable_at(self._data, self._at)
        if found is None:
            raise PacketError(Reason.MALFORMED_PACKET, "a number runs over the end of its packet")
        value, self._at = found
        return value

    def binary(self) -> bytes:
        return self.take(self.two())

    def text(self) -> str:
        try:
            text = self.binary().decode()
        except UnicodeDecodeError:
            raise PacketError(Reason.MALFORMED_PACKET, "a text is not UTF-8") from None
        if "\0" in text:
            raise PacketError(Reason.MALFORMED_PACKET, "a text contains U+0000")
        return text

    def pair(self) -> tuple[str, str]:
        return self.text(), self.text()

    def packet_id(self) -> int:
        packet_id = self.two()
        if packet_id == 0:
            raise PacketError(Reason.PROTOCOL_ERROR, "a packet identifier is 0")
        return packet_id

    def properties(self, allowed: frozenset[str]) -> Properties:
        size = self.variable()
        if size == 0:
            return NO_PROPERTIES
        reader = _Reader(self.take(size))
        found: dict[str, Any] = {}
        while not reader.done():
            name, field_type = _PROPERTIES.get(reader.byte(), ("", _BYTE))
            if name not in allowed:
                raise PacketError(Reason.MALFORMED_PACKET, "a property that does not belong into its packet")
            value = field_type.read(reader)
            if name in _RANGES and value not in _RANGES[name]:
                raise PacketError(Reason.PROTOCOL_ERROR, f"{name} is {value}")
            if name in _REPEATABLE:
                found.setdefault(name, []).append(value)
            elif name in found:
                raise PacketError(Reason.PROTOCOL_ERROR, f"{name} is there twice")
            else:
                found[name] = value
        for name in _REPEATABLE & found.keys():
            found[name] = tuple(found[name])
        return Properties(**found)


_MORE = 0x80  # the bit of a variable byte integer that says another byte follows (MQTT 5, section 1.5.5)


@dataclass(frozen=True, slots=True)
class _FieldType:
    """How a property's value is read and written."""

    read: Callable[[_Reader], Any]
    write: Callable[[Any], bytes]


def _variable_at(data: bytes | bytearray, start: int) -> tuple[int, int] | None:
    """Read the variable byte integer at `start` and tell where it ends; nothing while it is incomplete."""
    value = 0
    for position, shift in enumerate(range(0, 28, 7), start):
        if position >= len(data):
            return None
        value |= (data[position] & 0x7F) << shift
        if not data[position] & _MORE:
            if shift and not data[position]:
                break
            return value, position + 1
    raise PacketError(Reason.MALFORMED_PACKET, "a variable byte integer that is longer than it must be")


def _variable(value: int) -> bytes:
    encoded = bytearray()
    while value >= _MORE:
        encoded.append(value & 0x7F | _MORE)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _binary(data: bytes) -> bytes:
    return len(data).to_bytes(2) + data


def _text(text: str) -> bytes:
    return _binary(text.encode())


_BYTE = _FieldType(_Reader.byte, lambda value: bytes([value]))
_TWO = _FieldType(_Reader.two, lambda value: value.to_bytes(2))
_FOUR = _FieldType(_Reader.four, lambda value: value.to_bytes(4))
_VARIABLE = _FieldType(_Reader.variable, _variable)
_BINARY = _FieldType(_Reader.binary, _binary)
_TEXT = _FieldType(_Reader.text, _text)
_PAIR = _FieldType(_Reader.pair, lambda pair: _text(pair[0]) + _text(pair[1]))

_PROPERTIES = {
    0x01: ("payload_format", _BYTE),
    0x02: ("message_expiry_s", _FOUR),
    0x03: ("content_type", _TEXT),
    0x08: ("response_topic", _TEXT),
    0x09: ("correlation_data", _BINARY),
    0x0B: ("subscription_ids", _VARIABLE),
    0x11: ("session_expiry_s", _FOUR),
    0x12: ("assigned_client_id", _TEXT),
    0x15: ("authentication_method", _TEXT),
    0x16: ("authentication_data", _BINARY),
    0x17: ("request_problem_information", _BYTE),
    0x18: ("will_delay_s", _FOUR),
    0x19: ("request_response_information", _BYTE),
    0x1F: ("reason_string", _TEXT),
    0x21: ("receive_maximum", _TWO),
    0x22: ("topic_alias_maximum", _TWO),
    0x23: ("topic_alias", _TWO),
    0x26: ("user_properties", _PAIR),
    0x27: ("maximum_packet_size", _FOUR),
}
_REPEATABLE = frozenset({"subscription_ids", "user_properties"})
_RANGES = {
    "payload_format": range(2),
    "subscription_ids": range(1, 1 << 28),
    "request_problem_information": range(2),
    "request_response_information": range(2),
    "receive_maximum": range(1, 1 << 16),
    "maximum_packet_size": range(1, 1 << 32),
}

_MESSAGE = frozenset(
    {"payload_format", "message_expiry_s", "content_type", "response_topic", "correlation_data", "user_properties"}
)
_IN_WILL = _MESSAGE | {"will_delay_s"}
_IN_PUBLISH = _MESSAGE | {"subscription_ids", "topic_alias"}
_IN_CONNECT = frozenset(
    {
        "session_expiry_s",
        "authentication_method",
        "authentication_data",
        "request_problem_information",
        "request_response_information",
        "receive_maximum",
        "topic_alias_maximum",
        "user_properties",
        "maximum_packet_size",
    }
)
_IN_ACKNOWLEDGEMENT = frozenset({"reason_string", "user_properties"})
_IN_SUBSCRIBE = frozenset({"subscription_ids", "user_properties"})
_IN_UNSUBSCRIBE = frozenset({"user_properties"})
_IN_DISCONNECT = frozenset({"session_expiry_s", "reason_string", "user_properties"})

# Bits of the CONNECT flags (MQTT 5, section 3.1.2.3), of a PUBLISH's first byte (3.3.1) and of
# the options of a subscription (3.8.3.1).
_CLEAN_START, _WILL, _WILL_RETAIN, _PASSWORD, _USERNAME = 0x02, 0x04, 0x20, 0x40, 0x80
_RETAIN, _DUPLICATE = 0x01, 0x08
_NO_LOCAL, _RETAIN_AS_PUBLISHED = 0x04, 0x08
_LAST_QOS = 2
_LAST_RETAIN_HANDLING = 2


def _level(reader: _Reader) -> int:
    name, level = reader.text(), reader.byte()
    if name != "MQTT" or level not in (V311, V5):
        raise PacketError(Reason.UNSUPPORTED_PROTOCOL_VERSION, f"protocol {name!r}, level {level}")
    return level


def _qos(value: int) -> int:
    if value > _LAST_QOS:
        raise PacketError(Reason.MALFORMED_PACKET, f"QoS {value}")
    return value


def _properties(reader: _Reader, level: int, allowed: frozenset[str]) -> Properties:
    return reader.properties(allowed) if level == V5 else NO_PROPERTIES


def _connect(reader: _Reader, _first: int, level: int) -> Connect:
    flags = reader.byte()
    if flags & 0x01 or (not flags & _WILL and flags & 0x38):
        raise PacketError(Reason.MALFORMED_PACKET, "CONNECT flags that exclude each other, or the reserved one")
    if level == V311 and flags & _PASSWORD and not flags & _USERNAME:
        raise PacketError(Reason.MALFORMED_PACKET, "a password without a user name")
    keep_alive_s = reader.two()
    properties = _properties(reader, level, _IN_CONNECT)
    return Connect(
        level=level,
        client_id=reader.text(),
        clean_start=bool(flags & _CLEAN_START),
        keep_alive_s=keep_alive_s,
        will=_will(reader, flags, level) if flags & _WILL else None,
        username=reader.text() if flags & _USERNAME else None,
        password=reader.binary() if flags & _PASSWORD else None,
        properties=properties,
    )


def _will(reader: _Reader, flags: int, level: int) -> Publish:
    properties = _properties(reader, level, _IN_WILL)
    topic, payload = reader.text(), reader.binary()
    return Publish(topic, payload, _qos(flags >> 3 & 3), bool(flags & _WILL_RETAIN), properties=properties)


def _publish(reader: _Reader, first: int, level: int) -> Publish:
    qos = _qos(first >> 1 & 3)
    duplicate = bool(first & _DUPLICATE)
    if duplicate and qos == 0:
        raise PacketError(Reason.MALFORMED_PACKET, "a duplicate with QoS 0")
    topic = reader.text()
    packet_id = reader.packet_id() if qos else 0
    properties = _properties(reader, level, _IN_PUBLISH)
    if not topic and properties.topic_alias is None:
        raise PacketError(Reason.PROTOCOL_ERROR, "neither a topic nor a topic alias")
    return Publish(topic, reader.rest(), qos, bool(first & _RETAIN), duplicate, packet_id, properties)


def _acknowledgement(reader: _Reader, first: int, level: int) -> Acknowledgement:
    packet_id = reader.packet_id()
    reason = reader.byte() if level == V5 and not reader.done() else Reason.SUCCESS
    if not reader.done():
        _properties(reader, level, _IN_ACKNOWLEDGEMENT)
    return Acknowledgement(Kind(first >> 4), packet_id, reason)


def _subscribe(reader: _Reader, _first: int, level: int) -> Subscribe:
    packet_id = reader.packet_id()
    properties = _properties(reader, level, _IN_SUBSCRIBE)
    if len(properties.subscription_ids) > 1:
        raise PacketError(Reason.PROTOCOL_ERROR, "two subscription identifiers")
    return Subscribe(packet_id, _at_least_one(reader, lambda: _filter_options(reader, level)), properties)


def _at_least_one(reader: _Reader, read: Callable[[], T]) -> tuple[T, ...]:
    if reader.done():
        raise PacketError(Reason.PROTOCOL_ERROR, "no topic filter")
    found = [read()]
    while not reader.done():
        found.append(read())
    return tuple(found)


def _filter_options(reader: _Reader, level: int) -> FilterOptions:
    topic_filter, options = reader.text(), reader.byte()
    qos, retain_handling = options & 3, options >> 4 & 3
    if options & (0xC0 if level == V5 else 0xFC):
        raise PacketError(Reason.MALFORMED_PACKET, "reserved bits in the options of a subscription")
    if qos > _LAST_QOS or retain_handling > _LAST_RETAIN_HANDLING:
        raise PacketError(Reason.PROTOCOL_ERROR, f"QoS {qos} and retain handling {retain_handling}")
    no_local, retain_as_published = bool(options & _NO_LOCAL), bool(options & _RETAIN_AS_PUBLISHED)
    return FilterOptions(topic_filter, qos, no_local, retain_as_published, retain_handling)


def _unsubscribe(reader: _Reader, _first: int, level: int) -> Unsubscribe:
    packet_id = reader.packet_id()
    _properties(reader, level, _IN_UNSUBSCRIBE)
    return Unsubscribe(packet_id, _at_least_one(reader, reader.text))


def _ping(_reader: _Reader, _first: int, _level: int) -> Ping:
    return Ping()


def _disconnect(reader: _Reader, _first: int, level: int) -> Disconnect:
    reason = reader.byte() if level == V5 and not reader.done() else Reason.SUCCESS
    properties = NO_PROPERTIES if reader.done() else _properties(reader, level, _IN_DISCONNECT)
    return Disconnect(reason, properties)


_DECODERS: dict[int, Callable[[_Reader, int, int], Packet]] = {
    Kind.CONNECT: _connect,
    Kind.PUBLISH: _publish,
    Kind.PUBACK: _acknowledgement,
    Kind.PUBREC: _acknowledgement,
    Kind.PUBREL: _acknowledgement,
    Kind.PUBCOMP: _acknowledgement,
    Kind.SUBSCRIBE: _subscribe,
    Kind.UNSUBSCRIBE: _unsubscribe,
    Kind.PINGREQ: _ping,
    Kind.DISCONNECT: _disconnect,
}
# The lower half of the first byte of all but PUBLISH (MQTT 5, section 2.1.3).
_FLAGS: dict[int, int] = {Kind.PUBREL: 2, Kind.SUBSCRIBE: 2, Kind.UNSUBSCRIBE: 2}

PINGRESP: Final = bytes([Kind.PINGRESP << 4, 0])


def encode_publish(packet: Publish, level: int) -> bytes:
    """Encode a PUBLISH; MQTT 3.1.1 loses the properties."""
    first = Kind.PUBLISH << 4 | packet.duplicate << 3 | packet.qos << 1 | packet.retain
    body = _text(packet.topic)
    if packet.qos:
        body += packet.packet_id.to_bytes(2)
    if level == V5:
        body += _encode_properties(packet.properties)
    return bytes([first]) + _variable(len(body) + len(packet.payload)) + body + packet.payload


def encode_acknowledgement(packet: Acknowledgement, level: int) -> bytes:
    """Encode a PUBACK, PUBREC, PUBREL or PUBCOMP; MQTT 3.1.1 loses the reason."""
    reason = b"" if level == V311 or packet.reason == Reason.SUCCESS else bytes([packet.reason])
    return _packet(packet.kind, packet.packet_id.to_bytes(2) + reason)


def encode_connack(level: int, reason: Reason, properties: Properties, *, session_present: bool = False) -> bytes:
    """Encode a CONNACK, or nothing where MQTT 3.1.1 has no word for the reason."""
    if level == V5:
        return _packet(Kind.CONNACK, bytes([session_present, reason]) + _encode_properties(properties))
    if reason not in _RETURN_CODES:
        return b""
    return _packet(Kind.CONNACK, bytes([session_present, _RETURN_CODES[reason]]))


def encode_suback(level: int, packet_id: int, reasons: list[int]) -> bytes:
    """Encode a SUBACK; for MQTT 3.1.1 every refusal is 0x80."""
    if level == V5:
        return _packet(Kind.SUBACK, packet_id.to_bytes(2) + b"\0" + bytes(reasons))
    return _packet(Kind.SUBACK, packet_id.to_bytes(2) + bytes(min(reason, 0x80) for reason in reasons))


def encode_unsuback(level: int, packet_id: int, reasons: list[Reason]) -> bytes:
    """Encode an UNSUBACK; MQTT 3.1.1 loses the reasons."""
    return _packet(Kind.UNSUBACK, packet_id.to_bytes(2) + (b"\0" + bytes(reasons) if level == V5 else b""))


def encode_disconnect(reason: Reason, text: str) -> bytes:
    """Encode a DISCONNECT, which a server of MQTT 3.1.1 cannot send."""
    return _packet(Kind.DISCONNECT, bytes([reason]) + _encode_properties(Properties(reason_string=text or None)))


def _packet(kind: Kind, body: bytes) -> bytes:
    return bytes([kind << 4 | _FLAGS.get(kind, 0)]) + _variable(len(body)) + body


def _encode_properties(properties: Properties) -> bytes:
    if properties is NO_PROPERTIES:
        return b"\0"
    encoded = bytearray()
    for number, (name, field_type) in _PROPERTIES.items():
        value = getattr(properties, name)
        for each in value if name in _REPEATABLE else () if value is None else (value,):
            encoded.append(number)
            encoded += field_type.write(each)
    return _variable(len(encoded)) + encoded

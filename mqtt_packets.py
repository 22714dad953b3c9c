"""The packets we decode ourselves, and paho 2.2 does not do well enough.

PUBLISH comes a hundred times more often than any other, and paho needs 20 µs for the properties of one with a
subscription identifier, more than for the rest of it. Refused messages have reason codes that paho stumbles over.
"""

from collections.abc import Callable
from typing import Any, Final

from dispatch import Received


class MalformedPacketError(ValueError):
    """The packet breaks MQTT's rules; a receiver closes the connection (MQTT 5.0, 4.13)."""


def decode_publish(flags: int, packet: bytes, received_at: float, *, mqtt_5: bool) -> tuple[int, Received]:
    """Take a PUBLISH packet apart.

    Args:
        flags: The first byte of its fixed header.
        packet: Everything after the fixed header.
        received_at: Epoch seconds.
        mqtt_5: Whether it has properties.

    Returns:
        The packet identifier (0 for QoS 0) and the message. A topic that is not UTF-8 is shown with replacement
        characters: the message is told, not lost.

    Raises:
        MalformedPacketError: It is cut short, has QoS 3, no topic or an unknown property.
    """
    end = 2 + (packet[0] << 8 | packet[1]) if len(packet) > 1 else 0
    topic = packet[2:end].decode(errors="replace")
    if not topic:
        raise MalformedPacketError("no topic")  # we grant no topic aliases
    qos = flags >> 1 & 3
    identifier = 0
    if qos:
        identifier = int.from_bytes(packet[end : end + 2], "big")
        end += 2
        if not identifier or qos == 3:  # noqa: PLR2004 - the two bits of 3.3.1.2
            raise MalformedPacketError("no packet identifier or QoS 3")
    properties: dict[str, object] = {}
    identifiers: tuple[int, ...] = ()
    if mqtt_5:
        if packet[end : end + 1] == b"\0":
            end += 1
        else:
            length, start = _variable_byte_integer(packet, end)
            end = start + length
            properties, identifiers = _decode_properties(packet[start:end], _PROPERTIES)
    if end > len(packet):
        raise MalformedPacketError("cut short")
    return identifier, Received(topic, packet[end:], qos, bool(flags & 1), received_at, properties, identifiers)


def decode_refusal(packet: bytes) -> tuple[int, int, str]:
    """Take a PUBACK, PUBREC or PUBCOMP of MQTT 5 with a reason code apart.

    Args:
        packet: Everything after the fixed header; at least three bytes.

    Returns:
        The packet identifier, the reason code and what the broker says to it.

    Raises:
        MalformedPacketError: It is cut short or has an unknown property.
    """
    words: object = ""
    if packet[3:]:
        length, start = _variable_byte_integer(packet, 3)
        if start + length > len(packet):
            raise MalformedPacketError("cut short")
        properties, _ = _decode_properties(packet[start : start + length], _PROPERTIES_OF_A_REFUSAL)
        words = properties.get(_REASON_STRING, "")
    return int.from_bytes(packet[:2], "big"), packet[2], str(words)


def _variable_byte_integer(data: bytes, at: int) -> tuple[int, int]:
    """Return the integer at `at` (1.5.5) and where it ends; so do the readers below with their kinds."""
    value = 0
    for position, byte in enumerate(data[at : at + 4]):
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:  # noqa: PLR2004 - the continuation bit
            return value, at + position + 1
    raise MalformedPacketError("a length without an end")


def _byte(data: bytes, at: int) -> tuple[int, int]:
    return data[at] if at < len(data) else 0, at + 1


def _four_bytes(data: bytes, at: int) -> tuple[int, int]:
    return int.from_bytes(data[at : at + 4], "big"), at + 4


def _binary(data: bytes, at: int) -> tuple[bytes, int]:
    end = at + 2 + int.from_bytes(data[at : at + 2], "big")
    return data[at + 2 : end], end


def _text(data: bytes, at: int) -> tuple[str, int]:
    value, end = _binary(data, at)
    return value.decode(errors="replace"), end


def _pair(data: bytes, at: int) -> tuple[tuple[str, str], int]:
    name, at = _text(data, at)
    value, at = _text(data, at)
    return (name, value), at


_SUBSCRIPTION_IDENTIFIER: Final = "subscription_identifier"
_USER_PROPERTIES: Final = "user_properties"

_Properties = dict[int, tuple[str, Callable[[bytes, int], tuple[object, int]]]]
"""Name and reader of each property, by identifier."""

_PROPERTIES: Final[_Properties] = {
    1: ("payload_format_indicator", _byte),
    2: ("expiry_s", _four_bytes),
    3: ("content_type", _text),
    8: ("response_topic", _text),
    9: ("correlation_data", _binary),
    11: (_SUBSCRIPTION_IDENTIFIER, _variable_byte_integer),
    38: (_USER_PROPERTIES, _pair),
}
"""The properties of PUBLISH (3.3.2.3); topic aliases are not among them, as we grant none."""


_REASON_STRING: Final = "reason_string"
_PROPERTIES_OF_A_REFUSAL: Final[_Properties] = {31: (_REASON_STRING, _text), 38: (_USER_PROPERTIES, _pair)}
"""The properties of an acknowledgement (3.4.2.2)."""


def _decode_properties(data: bytes, known: _Properties) -> tuple[dict[str, object], tuple[int, ...]]:
    """Take the properties apart; subscription identifiers come apart from the rest."""
    values: dict[str, list[object]] = {}
    at = 0
    while at < len(data):
        if data[at] not in known:
            raise MalformedPacketError(f"property {data[at]}")
        name, read = known[data[at]]
        value, at = read(data, at + 1)
        values.setdefault(name, []).append(value)
    if at > len(data):
        raise MalformedPacketError("a property is cut short")
    identifiers: tuple[Any, ...] = tuple(values.pop(_SUBSCRIPTION_IDENTIFIER, ()))
    return {name: found if name == _USER_PROPERTIES else found[0] for name, found in values.items()}, identifiers

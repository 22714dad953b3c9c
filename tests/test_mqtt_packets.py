"""PUBLISH taken apart: against an encoder of our own and paho's, cut at every byte, and fed with noise."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from dispatch import Received
from mqtt_packets import MalformedPacketError, decode_publish

NOW = 1_700_000_000.25
PUBLISH = 0x30


def number(value: int) -> bytes:
    """Encode a variable byte integer (1.5.5)."""
    digits = bytearray()
    while True:
        value, digit = divmod(value, 128)
        digits.append(digit | 0x80 if value else digit)
        if not value:
            return bytes(digits)


def binary(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return len(data).to_bytes(2, "big") + data


ENCODERS: dict[str, Callable[[Any], bytes]] = {
    "payload_format_indicator": lambda value: bytes([1, value]),
    "expiry_s": lambda value: b"\x02" + value.to_bytes(4, "big"),
    "content_type": lambda value: b"\x03" + binary(value),
    "response_topic": lambda value: b"\x08" + binary(value),
    "correlation_data": lambda value: b"\x09" + binary(value),
    "user_properties": lambda pairs: b"".join(b"\x26" + binary(name) + binary(value) for name, value in pairs),
}


def encode_properties(properties: dict[str, Any], identifiers: tuple[int, ...]) -> bytes:
    encoded = b"".join(ENCODERS[name](value) for name, value in properties.items())
    return encoded + b"".join(b"\x0b" + number(identifier) for identifier in identifiers)


def encode(received: Received, packet_identifier: int, *, mqtt_5: bool) -> bytes:
    """Encode everything after the fixed header (3.3.2)."""
    header = binary(received.topic)
    if received.qos:
        header += packet_identifier.to_bytes(2, "big")
    if mqtt_5:
        properties = encode_properties(dict(received.properties), received.subscription_identifiers)
        header += number(len(properties)) + properties
    return header + received.payload


def decode(packet: bytes, flags: int = 0, *, mqtt_5: bool = True) -> tuple[int, Received]:
    return decode_publish(PUBLISH | flags, packet, NOW, mqtt_5=mqtt_5)


EVERY_PROPERTY: dict[str, Any] = {
    "payload_format_indicator": 1,
    "expiry_s": 4_294_967_295,
    "content_type": "application/json; charset=utf-8",
    "response_topic": "réponse/1",
    "correlation_data": b"\x00\xff\x26",
    "user_properties": [("unit", "°C"), ("unit", "K"), ("", "")],
}

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SEVERAL: dict[str, st.SearchStrategy[Any]] = {
    "payload_format_indicator": st.integers(0, 255),
    "expiry_s": st.integers(0, 2**32 - 1),
    "content_type": TEXTS,
    "response_topic": TEXTS,
    "correlation_data": st.binary(max_size=20),
    "user_properties": st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3),
}
MESSAGES = st.builds(
    Received,
    topic=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200),
    payload=st.binary(max_size=50),
    qos=st.integers(0, 2),
    retained=st.booleans(),
    received_at=st.just(NOW),
    properties=st.fixed_dictionaries({}, optional=SEVERAL),
    subscription_identifiers=st.lists(st.integers(1, 268_435_455), max_size=3).map(tuple),
)


# Round trips


@given(MESSAGES, st.integers(1, 65_535), st.booleans())
@settings(deadline=None)
def test_what_was_encoded_is_decoded(message: Received, packet_identifier: int, duplicate: bool) -> None:
    flags = duplicate << 3 | message.qos << 1 | message.retained

    decoded = decode(encode(message, packet_identifier, mqtt_5=True), flags)

    assert decoded == (packet_identifier if message.qos else 0, message)


@given(MESSAGES, st.integers(1, 65_535))
@settings(deadline=None)
def test_the_old_protocol_has_the_same_without_properties(message: Received, packet_identifier: int) -> None:
    plain = message._replace(properties={}, subscription_identifiers=())

    decoded = decode(encode(plain, packet_identifier, mqtt_5=False), plain.qos << 1 | plain.retained, mqtt_5=False)

    assert decoded == (packet_identifier if plain.qos else 0, plain)


def test_every_property_that_paho_writes_is_read() -> None:
    written = Properties(PacketTypes.PUBLISH)
    written.PayloadFormatIndicator = EVERY_PROPERTY["payload_format_indicator"]
    written.MessageExpiryInterval = EVERY_PROPERTY["expiry_s"]
    written.ContentType = EVERY_PROPERTY["content_type"]
    written.ResponseTopic = EVERY_PROPERTY["response_topic"]
    written.CorrelationData = EVERY_PROPERTY["correlation_data"]
    written.UserProperty = EVERY_PROPERTY["user_properties"]
    written.SubscriptionIdentifier = 268_435_455

    _, received = decode(binary("a/b") + written.pack() + b"payload")

    assert received == Received("a/b", b"payload", 0, False, NOW, EVERY_PROPERTY, (268_435_455,))


@pytest.mark.parametrize("size", [0, 127, 128, 16_383, 16_384, 65_535])
def test_properties_of_every_length_of_length_are_read(size: int) -> None:
    message = Received("a", b"x", 0, False, NOW, {"content_type": "c" * size}, ())

    assert decode(encode(message, 0, mqtt_5=True)) == (0, message)


@pytest.mark.parametrize("identifier", [1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 268_435_455])
def test_a_subscription_identifier_of_every_length_is_read(identifier: int) -> None:
    _, received = decode(binary("a") + number(1 + len(number(identifier))) + b"\x0b" + number(identifier))

    assert received.subscription_identifiers == (identifier,)


@pytest.mark.parametrize("mqtt_5", [False, True])
def test_an_empty_payload_and_the_longest_topic_are_read(mqtt_5: bool) -> None:
    message = Received("t" * 65_535, b"", 2, True, NOW, {}, ())

    assert decode(encode(message, 65_535, mqtt_5=mqtt_5), 0b101, mqtt_5=mqtt_5) == (65_535, message)


def test_user_properties_keep_their_order_and_repeats() -> None:
    pairs = [("b", "2"), ("a", "1"), ("b", "2")]

    _, received = decode(encode(Received("a", b"", 0, False, NOW, {"user_properties": pairs}, ()), 0, mqtt_5=True))

    assert received.properties == {"user_properties": pairs}


def test_a_property_that_may_come_once_and_comes_twice_counts_the_first_time() -> None:
    """A receiver may close the connection over it (2.2.2); we would go deaf for no gain."""
    properties = b"\x03" + binary("first") + b"\x03" + binary("second")

    _, received = decode(binary("a") + number(len(properties)) + properties)

    assert received.properties == {"content_type": "first"}


@pytest.mark.parametrize(
    ("topic", "shown"),
    [
        (b"caf\xe9", "caf\ufffd"),  # Latin-1
        (b"a/\xed\xa0\x80", "a/\ufffd\ufffd\ufffd"),  # an encoded surrogate (1.5.4)
        (b"\xc0\x80", "\ufffd\ufffd"),  # an overlong NUL
        (b"\xef\xbb\xbfa", "\ufeffa"),  # a byte order mark stays
        (b"a\x00b", "a\x00b"),
        (b"+/#", "+/#"),  # wildcards have no meaning here
    ],
)
def test_a_topic_that_breaks_the_rules_is_told_not_lost(topic: bytes, shown: str) -> None:
    _, received = decode(binary(topic) + b"\0payload")

    assert (received.topic, received.payload) == (shown, b"payload")
    assert received.topic.encode()


# Malformed packets

COMPLETE = Received("plant/öl", b"payload", 1, True, NOW, EVERY_PROPERTY, (1, 300))


@pytest.mark.parametrize("mqtt_5", [False, True])
def test_a_packet_cut_in_its_header_is_malformed_wherever_it_is_cut(mqtt_5: bool) -> None:
    message = COMPLETE if mqtt_5 else COMPLETE._replace(properties={}, subscription_identifiers=())
    packet = encode(message, 7, mqtt_5=mqtt_5)
    header = len(packet) - len(message.payload)

    for size in range(header):
        with pytest.raises(MalformedPacketError):
            decode(packet[:size], 0b011, mqtt_5=mqtt_5)
    for size in range(header, len(packet) + 1):
        assert decode(packet[:size], 0b011, mqtt_5=mqtt_5) == (7, message._replace(payload=packet[header:size]))


@pytest.mark.parametrize(
    ("packet", "flags"),
    [
        (b"", 0),
        (b"\x00", 0),
        (b"\x00\x00", 0),  # no topic: an alias we never granted
        (b"\x00\x00\x03\x23\x00\x01payload", 0),  # and with the alias
        (b"\x00\x01a\x03\x23\x00\x01", 0),  # an alias beside a topic
        (b"\x00\x02a", 0),  # the topic is longer than the packet
        (b"\x00\x01a\x00\x00\x00", 0b010),  # packet identifier 0
        (b"\x00\x01a\x00\x01\x00", 0b110),  # QoS 3
        (b"\x00\x01a\x00", 0b010),  # half a packet identifier
        (b"\x00\x01a", 0),  # no property length
        (b"\x00\x01a\x80", 0),  # a length that does not end
        (b"\x00\x01a\x80\x80\x80\x80\x01", 0),  # in four bytes
        (b"\x00\x01a\x05\x01\x01", 0),  # properties longer than the packet
        (b"\x00\x01a\x01\x01", 0),  # a property without its value
        (b"\x00\x01a\x04\x02\x00\x00\x00", 0),  # three bytes of four
        (b"\x00\x01a\x02\x03\x00payload", 0),  # half a length
        (b"\x00\x01a\x04\x03\x00\x02apayload", 0),  # a text that ends behind the properties
        (b"\x00\x01a\x05\x26\x00\x01n\x00payload", 0),  # a name without a value
        (b"\x00\x01a\x02\x0b\x80payload", 0),  # an identifier that does not end
        (b"\x00\x01a\x02\x11\x00", 0),  # a property of another packet
        (b"\x00\x01a\x02\x00\x00", 0),  # no property at all
        (b"\x00\x01a\x02\xff\x00", 0),
    ],
)
def test_a_malformed_packet_is_told_as_that(packet: bytes, flags: int) -> None:
    with pytest.raises(MalformedPacketError):
        decode(packet, flags)


def test_malformed_for_one_protocol_can_be_a_message_of_the_other() -> None:
    assert decode(b"\x00\x01a", mqtt_5=False) == (0, Received("a", b"", 0, False, NOW, {}, ()))
    with pytest.raises(MalformedPacketError):
        decode(b"\x00\x01a")


@given(st.binary(max_size=60), st.integers(0, 15), st.booleans())
@example(b"\x00\x01a\xff\xff\xff\x7f", 0, True)
@example(b"\x00\x01a", 8, False)
@settings(deadline=None, max_examples=500)
def test_noise_is_a_message_or_malformed_and_nothing_else(packet: bytes, flags: int, mqtt_5: bool) -> None:
    try:
        packet_identifier, received = decode(packet, flags, mqtt_5=mqtt_5)
    except MalformedPacketError:
        return

    assert received.topic
    assert received.topic.encode()
    assert packet.endswith(received.payload)
    assert received.qos == flags >> 1 & 3  # above is DUP
    assert (packet_identifier > 0) == (received.qos > 0)


@given(MESSAGES, st.data())
@settings(deadline=None, max_examples=300)
def test_one_wrong_byte_is_a_message_or_malformed_and_nothing_else(message: Received, data: st.DataObject) -> None:
    packet = bytearray(encode(message, 7, mqtt_5=True))
    packet[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))

    try:
        _, received = decode(bytes(packet), message.qos << 1)
    except MalformedPacketError:
        return

    assert packet.endswith(received.payload)
    assert all(isinstance(identifier, int) for identifier in received.subscription_identifiers)
    assert set(received.properties) <= set(EVERY_PROPERTY)

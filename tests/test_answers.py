"""Showing messages: nothing is changed without a word, nothing invisible is left so, and every bound holds."""

import base64
import json
import sys
import unicodedata
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inbox import Gap, Message
from tools.answers import (
    LEAST_ROOM,
    MAX_JSON_DEPTH,
    NotFaithfulError,
    ShownGap,
    ShownMessage,
    decode_json,
    decode_text,
    fit_all,
    fit_in_order,
    instant,
    show_gaps,
    show_message,
    size_of,
    visible,
    visible_all,
)
from topics import TopicFilter

PLENTY = 1 << 20


def message(
    payload: bytes | str = b"", topic: str = "a", properties: dict[str, object] | None = None, seq: int = 1
) -> Message:
    data = payload if isinstance(payload, bytes) else payload.encode()
    return Message(seq, topic, data, 1, False, 1_700_000_000.5, properties or {})


def show(payload: bytes | str) -> tuple[Any, str]:
    shown = show_message(message(payload), PLENTY)
    assert not shown.cut
    return shown.payload, shown.encoding


# Whole messages


def test_a_plain_message_has_its_fields_and_no_flags() -> None:
    received = Message(7, "plant/a", b"on", 2, True, 1_700_000_000.5, {})

    assert show_message(received, PLENTY).model_dump() == {
        "seq": 7,
        "topic": "plant/a",
        "payload": "on",
        "encoding": "text",
        "bytes": 2,
        "qos": 2,
        "retained": True,
        "received_at": "2023-11-14T22:13:20.500Z",
    }


@pytest.mark.parametrize(
    ("payload", "value", "encoding"),
    [
        (b"", "", "text"),
        ("on", "on", "text"),
        ("größer\t≥\r\n", "größer\t≥\r\n", "text"),
        (" ", " ", "text"),
        ("True", "True", "text"),
        ("21.5", 21.5, "json"),
        ("-0", 0, "json"),
        (" 21 ", 21, "json"),
        ("true", True, "json"),
        ("null", None, "json"),
        ('"on"', "on", "json"),
        ("{}", {}, "json"),
        ('{"a": [1, {"b": null}]}', {"a": [1, {"b": None}]}, "json"),
        (b"\xff\xfe", "//4=", "base64"),
        (b"{\xff}", "e/99", "base64"),
        (b"caf\xe9", "Y2Fm6Q==", "base64"),
        (b"\xed\xa0\x80", "7aCA", "base64"),  # an encoded surrogate is not UTF-8
        (b"\xc0\x80", "wIA=", "base64"),  # nor is an overlong NUL
        (b"\xf0\x9f\x98", "8J+Y", "base64"),  # nor half a character
    ],
)
def test_a_payload_is_text_json_or_base64(payload: bytes | str, value: Any, encoding: str) -> None:
    shown = show(payload)

    assert shown == (value, encoding)
    assert type(shown[0]) is type(value)


# Faithful JSON

DEEPEST = "[" * MAX_JSON_DEPTH + "]" * MAX_JSON_DEPTH


@pytest.mark.parametrize(
    "text",
    [
        "9007199254740993",  # one beyond the integers a double holds
        "1" + "0" * 400,
        "9" * 4300,  # as long as Python reads
        "-" + "9" * 4300,
        "0.1",
        "1e5",
        "1E+5",
        "1.50",
        "-0.0",
        "5e-324",  # the smallest double
        "1.7976931348623157e308",  # the largest
        "0.30000000000000004",
        '{"a": 1, "A": 2, "": 3}',
        '[{"a": 1}, {"a": 1}]',
        '{"a": {"a": 1}}',
        DEEPEST,
        '"' + "x" * 10_000 + '"',
        "\t[ ]\r\n",
    ],
)
def test_json_that_stays_what_it_is_is_parsed(text: str) -> None:
    assert decode_json(text) == json.loads(text)
    assert show(text)[1] == "json"


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "-Infinity",
        '{"a": [NaN]}',
        "1e400",  # beyond a double
        "-1e400",
        "1e-400",  # would be 0
        "1.7976931348623159e308",
        "0.1234567890123456789",
        "[0.1000000000000000055511151231257827021181583404541015625000001]",
        "9007199254740993.0",
        "1e99999999999999999999",  # beyond what Decimal holds
        "1e-99999999999999999999",
        "9" * 4301,
        '{"a": 1, "a": 1}',
        '{"a": 1, "\\u0061": 2}',
        '[{"b": {"a": 1, "a": 2}}]',
        f"[{DEEPEST}]",
        "[" * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 5000 + "1" + "}" * 5000,
        # no JSON
        "",
        " ",
        "{",
        "[1,]",
        "{'a': 1}",
        "01",
        "+1",
        ".5",
        "1.",
        "0x1F",
        "tru",
        "nul",
        "1 2",
        '"a\nb"',
        "\ufeff1",
        "// 1",
        "\u0661",  # a digit, but not one of JSON's
    ],
)
def test_json_that_would_change_is_no_json(text: str) -> None:
    with pytest.raises(NotFaithfulError):
        decode_json(text)

    assert show(text) == (visible(text), "text")


@pytest.mark.parametrize("kind", ['"{}"', '{{"{}": 1}}'], ids=["value", "key"])
def test_keys_and_values_are_shown_without_anything_hidden(kind: str) -> None:
    payload = kind.format("a\u200bb\\ud800")

    shown, encoding = show(payload)

    assert (json.dumps(shown), encoding) == (kind.format(r"a\\u200bb\\ud800"), "json")


def test_two_keys_that_would_look_the_same_are_not_made_one() -> None:
    payload = '{"a\u200b": 1, "a\\\\u200b": 2}'

    with pytest.raises(NotFaithfulError):
        visible_all(json.loads(payload))
    assert show(payload) == (visible(payload), "text")


def test_a_number_of_thousands_of_digits_survives_the_way_out() -> None:
    number = "9" * 4300

    shown = show_message(message(number), PLENTY)

    assert json.dumps(shown.model_dump(mode="json")["payload"]) == number


# Hidden characters

DEFAULT_IGNORABLE = [
    (0xAD, 0xAD),
    (0x34F, 0x34F),
    (0x61C, 0x61C),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x206F),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
]
"""Unicode's Default_Ignorable_Code_Point: what is not to be seen."""


def test_every_character_that_unicode_says_is_not_seen_is_shown_as_an_escape() -> None:
    for first, last in DEFAULT_IGNORABLE:
        for code in range(first, last + 1):
            escape = f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
            assert visible(f"a{chr(code)}b") == f"a{escape}b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202egnp.exe", r"a\u202egnp.exe"),  # right-to-left override
        ("\u2066x\u2069", r"\u2066x\u2069"),  # isolates
        ("\x00\x08\x1b[31m\x7f", r"\u0000\u0008\u001b[31m\u007f"),
        ("\x85\u2028\u2029", r"\u0085\u2028\u2029"),  # line ends that few expect
        ("\ue000\U000f0000", r"\ue000\U000f0000"),  # private use
        ("\uffff\U0010ffff", r"\uffff\U0010ffff"),  # noncharacters
        ("\ud83d", r"\ud83d"),
        ("\u2800", r"\u2800"),  # a blank that is a symbol
        ("❤\ufe0f", r"❤\ufe0f"),
        ("\U000e0041\U000e0062", r"\U000e0041\U000e0062"),  # tags: ASCII nobody sees
    ],
)
def test_what_hides_or_deceives_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "a\tb\r\nc",
        "größer ≥ 5 °C",
        "日本語",
        "שלום",
        "سلام",
        "e\u0301",
        "😀",
        "a\xa0b",
        r"\u202e",
        "\ufffd",
    ],
)
def test_what_can_be_seen_stays_as_it_is(text: str) -> None:
    assert visible(text) is text or visible(text) == text


def test_no_character_at_all_comes_through_hidden() -> None:
    text = "".join(map(chr, range(sys.maxunicode + 1)))

    left = {unicodedata.category(character) for character in visible(text) if character not in "\t\n\r"}

    assert not left & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@given(st.text(st.characters(), max_size=50))
@settings(deadline=None)
def test_showing_twice_is_showing_once(text: str) -> None:
    shown = visible(text)

    assert visible(shown) == shown
    assert shown.encode().decode() == shown


@pytest.mark.parametrize(
    ("changed", "received"),
    [
        (False, message("plain")),
        (False, message(r"\u200b")),  # an escape that was sent as one
        (False, message(r'"\\u200b"')),
        (False, message(b"\xff", properties={"correlation_data": b"\xfe"})),
        (True, message("a\u200bb")),
        (True, message('{"a": ["\u200b"]}')),
        (True, message('{"\\u200b": 1}')),
        (True, message('"\\ud800"')),
        (True, message("x", topic="a\u200b")),
        (True, message("x", properties={"content_type": "a\u200b"})),
        (True, message("x", properties={"correlation_data": "\u200b".encode()})),
        (True, message("x", properties={"user_properties": [("\u200b", "x")]})),
        (True, message("x", properties={"user_properties": [("x", "\u200b")]})),
        (True, message("\u200b" + "x" * 2000)),  # and cut
        (False, message("x" * 2000 + "\u200b")),  # cut before
    ],
    ids=repr,
)
def test_it_is_said_when_something_is_shown_as_an_escape(changed: bool, received: Message) -> None:
    shown = show_message(received, 1000)

    assert shown.escaped is changed
    assert "\u200b" not in shown.model_dump_json()


def test_properties_are_shown_by_name() -> None:
    properties: dict[str, object] = {
        "payload_format_indicator": 1,
        "expiry_s": 60,
        "content_type": "text/plain\u202e",
        "response_topic": "a/b",
        "correlation_data": b"\xff\x00",
        "user_properties": [("unit", "°C"), ("unit", "K\u200b")],
    }

    assert show_message(message("x", properties=properties), PLENTY).properties == {
        "payload_format_indicator": 1,
        "expiry_s": 60,
        "content_type": r"text/plain\u202e",
        "response_topic": "a/b",
        "correlation_data": "/wA=",
        "user_properties": [["unit", "°C"], ["unit", r"K\u200b"]],
    }


# Cutting


def check_truth(shown: ShownMessage, received: Message) -> None:
    """Check that what is shown is what was received, as far as it does not say otherwise."""
    assert (shown.seq, shown.qos, shown.retained) == (received.seq, received.qos, received.retained)
    assert shown.bytes == len(received.payload)
    assert visible(received.topic).startswith(shown.topic)
    assert shown.topic_truncated == (len(shown.topic) < len(visible(received.topic)))
    assert shown.properties_omitted == (shown.properties is None and bool(received.properties))
    text = decode_text(received.payload)
    if shown.encoding == "json":
        assert not shown.payload_truncated
        assert text is not None
        assert shown.payload == visible_all(json.loads(text))
    elif shown.encoding == "base64":
        start = base64.b64decode(shown.payload, validate=True)
        assert received.payload.startswith(start)
        assert shown.payload_truncated == (len(start) < len(received.payload))
    else:
        whole = visible(received.payload.decode(errors="ignore"))
        assert whole.startswith(shown.payload)
        assert shown.payload_truncated == (text is None or len(shown.payload) < len(whole))


HOSTILE_TEXT = (
    st.text(st.sampled_from(["x", "é", "€", "😀", '"', "\\", "\x00", "\u202e", "\U000e0041", "{", " "])) | st.text()
)
LONG_TEXT = st.tuples(HOSTILE_TEXT, st.integers(1, 400)).map(lambda pair: pair[0] * pair[1])
PAYLOADS = (
    LONG_TEXT.map(str.encode)
    | st.binary(max_size=60)
    | st.tuples(st.binary(max_size=20), st.integers(1, 400)).map(lambda pair: pair[0] * pair[1])
    | st.lists(st.integers() | st.booleans() | HOSTILE_TEXT, max_size=50).map(json.dumps).map(str.encode)
)
HOSTILE_MESSAGES = st.builds(
    Message,
    seq=st.integers(1, 10**9),
    topic=LONG_TEXT.map(lambda text: text or "a"),
    payload=PAYLOADS,
    qos=st.integers(0, 2),
    retained=st.booleans(),
    received_at=st.just(1_700_000_000.5),
    audience=st.just(()),
    properties=st.fixed_dictionaries(
        {},
        optional={
            "content_type": LONG_TEXT,
            "correlation_data": st.binary(),
            "user_properties": st.lists(st.tuples(HOSTILE_TEXT, LONG_TEXT), min_size=1, max_size=3),
            "expiry_s": st.integers(0, 2**32 - 1),
        },
    ),
)


@given(HOSTILE_MESSAGES, st.integers(LEAST_ROOM, 1200) | st.sampled_from([LEAST_ROOM, 4096, 16_384]))
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_every_message_fits_into_every_room_and_says_what_is_missing(received: Message, room: int) -> None:
    shown = show_message(received, room)

    assert size_of(shown) <= room
    check_truth(shown, received)


@pytest.mark.parametrize("size", [0, 1, 10**9])
def test_the_least_room_is_enough_for_the_worst_message(size: int) -> None:
    received = message(
        b"\xff" + bytes(PLENTY),
        topic="\u202e" * 20_000,
        properties={"user_properties": [("\u202e" * 1000, "\u202e" * 1000)] * 60},
        seq=10**15 + size,
    )

    shown = show_message(received, LEAST_ROOM)

    assert size_of(shown) <= LEAST_ROOM
    assert (shown.payload_truncated, shown.topic_truncated, shown.properties_omitted) == (True, True, True)
    assert shown.bytes == PLENTY + 1


@pytest.mark.parametrize("character", ["x", '"', "é", "€", "😀", "\u202e", "\U000e0041"])
def test_a_cut_text_uses_its_room_and_ends_between_characters(character: str) -> None:
    text = character * 5000
    widest = len(json.dumps(visible(character))) - 2
    lengths = set()
    for room in range(1000, 1030):
        shown = show_message(message(text), room)
        count, rest = divmod(len(shown.payload), len(visible(character)))
        lengths.add(count)

        assert shown.payload == visible(character) * count
        assert (rest, shown.payload_truncated) == (0, True)
        assert room - 64 - widest < size_of(shown) <= room
    assert len(lengths) == 1 + 29 // widest or len(lengths) == 2 + 29 // widest


def test_a_payload_that_just_fits_is_whole_and_one_byte_more_is_cut() -> None:
    whole = show_message(message("x" * 500), PLENTY)

    assert show_message(message("x" * 500), size_of(whole)) == whole
    cut = show_message(message("x" * 501), size_of(whole))
    assert (cut.payload_truncated, cut.bytes) == (True, 501)


def test_json_that_is_longer_as_json_is_shown_as_text_before_it_is_cut() -> None:
    text = "[" + "1," * 300 + "1]"

    shown = show_message(message(text), len(text) + 250)

    assert (shown.payload, shown.encoding, shown.payload_truncated) == (text, "text", False)


def test_a_beginning_of_json_is_not_taken_for_json() -> None:
    shown = show_message(message("1234567890" * 1000), 400)

    assert (shown.encoding, shown.payload_truncated) == ("text", True)
    assert isinstance(shown.payload, str)


def test_the_payload_is_cut_before_properties_and_topic() -> None:
    properties: dict[str, object] = {"content_type": "c" * 400}

    shown = show_message(message("x" * 5000, topic="t" * 300, properties=properties), 1400)

    assert (shown.payload_truncated, shown.topic_truncated, shown.properties_omitted) == (True, False, False)
    assert len(shown.payload) > 300


def test_a_long_topic_does_not_leave_a_short_payload_without_room() -> None:
    name = "n" * 150

    shown = show_message(message(json.dumps({"name": name}), topic="t" * 60_000), 1000)

    assert (shown.payload, shown.payload_truncated, shown.topic_truncated) == ({"name": name}, False, True)
    assert len(shown.topic) > 500


def test_long_properties_do_not_leave_a_short_payload_without_room() -> None:
    shown = show_message(message("on", properties={"content_type": "c" * 60_000}), 1000)

    assert shown.model_dump() == {
        **show_message(message("on"), 1000).model_dump(),
        "properties_omitted": True,
    }


def test_properties_that_fit_are_shown_however_long() -> None:
    received = message("on", topic="t" * 5000, properties={"content_type": "c" * 9000})

    assert not show_message(received, 16_384).cut


def test_a_cut_character_at_the_end_makes_no_text_binary() -> None:
    for size in range(200, 210):
        shown = show_message(message("€" * 5000), size + 200)

        assert shown.encoding == "text"


def test_binary_is_cut_in_whole_bytes() -> None:
    payload = bytes(range(128, 256)) * 100

    for room in range(400, 420):
        shown = show_message(message(payload), room)

        assert payload.startswith(base64.b64decode(shown.payload, validate=True))
        assert (shown.encoding, shown.payload_truncated) == ("base64", True)
        assert room - 40 < size_of(shown) <= room


SECRET = "AKIA" + "Q7Z2" * 4
"""Of the form of a credential; hidden on the way out only while it is whole."""


@pytest.mark.parametrize("place", ["payload", "topic"])
def test_no_cut_leaves_half_a_secret(place: Literal["payload", "topic"]) -> None:
    for before in range(40, 140):
        text = "x" * before + " " + SECRET + " " + "x" * 9000
        received = message(text) if place == "payload" else message(b"", topic=text)

        shown = show_message(received, 300)

        assert SECRET[:8] not in size_of(shown) * " " + shown.model_dump_json()


def test_no_cut_leaves_half_a_secret_when_others_before_it_shrink() -> None:
    """What is hidden gets shorter, and what was read only to be sure must not move into view."""
    long_secret = "-----BEGIN PRIVATE" + " KEY-----\n" + "Q7Z2" * 1024 + "\n-----END PRIVATE" + " KEY-----"
    for before in range(20, 80):
        text = long_secret + " " + "x" * before + " " + SECRET + " " + "x" * 9000

        shown = show_message(message(text), 300)

        assert "AKIA" not in shown.payload


# Several messages

SEVERAL = st.lists(HOSTILE_MESSAGES, max_size=6).map(
    lambda messages: [one._replace(seq=seq) for seq, one in enumerate(messages, start=1)]
)


def list_size(shown: list[ShownMessage]) -> int:
    return len(json.dumps([one.model_dump() for one in shown]))


@given(SEVERAL, st.integers(1024, 3000) | st.just(16_384))
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_messages_in_order_fit_and_only_the_first_is_ever_cut(received: list[Message], room: int) -> None:
    shown = fit_in_order(received, room)

    assert list_size(shown) <= room
    assert [one.seq for one in shown] == list(range(1, len(shown) + 1))
    assert not any(one.cut for one in shown[1:])
    assert bool(shown) == bool(received)
    for one, original in zip(shown, received, strict=False):
        check_truth(one, original)
    if len(shown) < len(received):  # the next one would really not have fitted
        left = room - list_size(shown)
        assert (
            len(received[len(shown)].payload) > left or size_of(show_message(received[len(shown)], PLENTY)) + 2 > left
        )


@given(SEVERAL, st.integers(1024, 3000) | st.just(16_384))
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_all_messages_together_fit_in_their_order(received: list[Message], room: int) -> None:
    shown = fit_all(received, room)

    assert list_size(shown) <= room
    assert [one.seq for one in shown] == sorted(one.seq for one in shown)
    assert bool(shown) == bool(received)
    for one in shown:
        check_truth(one, received[one.seq - 1])


def test_messages_in_order_end_where_the_next_would_be_cut() -> None:
    messages = [message("x" * 300, seq=seq) for seq in range(1, 10)]
    each = size_of(show_message(messages[0], PLENTY)) + 2

    assert [one.seq for one in fit_in_order(messages, 3 * each)] == [1, 2, 3]
    assert [one.seq for one in fit_in_order(messages, 3 * each - 1)] == [1, 2]


@pytest.mark.parametrize(
    "large",
    [
        message("x" * 2000, seq=2),
        message("x", topic="t" * 2000, seq=2),
        message("x", properties={"content_type": "c" * 2000}, seq=2),
    ],
    ids=["payload", "topic", "properties"],
)
def test_what_would_have_to_be_cut_waits_for_the_next_page(large: Message) -> None:
    page = fit_in_order([message("x" * 500), large], 1500)
    next_page = fit_in_order([large], 1500)

    assert [(one.seq, one.cut) for one in page] == [(1, False)]
    assert [(one.seq, one.cut) for one in next_page] == [(2, True)]


def test_a_first_message_that_is_too_large_is_cut_so_that_reading_goes_on() -> None:
    (shown,) = fit_in_order([message(bytes(5_000_000)), message("x", seq=2)], 1024)

    assert (shown.payload_truncated, shown.bytes) == (True, 5_000_000)


def test_short_messages_stay_whole_and_long_ones_share_the_rest() -> None:
    received = [message("x" * size, seq=seq) for seq, size in enumerate((9000, 10, 9000, 20, 9000), start=1)]

    shown = fit_all(received, 4000)

    assert [(one.seq, one.cut) for one in shown] == [(1, True), (2, False), (3, True), (4, False), (5, True)]
    cut = [size_of(one) for one in shown if one.cut]
    assert max(cut) - min(cut) < 64
    assert list_size(shown) > 3900


def test_the_longest_are_left_out_where_there_are_too_many() -> None:
    received = [message("x" * seq, seq=seq) for seq in range(1, 101)]

    shown = fit_all(received, 2000)

    assert [one.seq for one in shown] == list(range(1, len(shown) + 1))
    assert 10 < len(shown) < 20
    assert not any(one.cut for one in shown)


# The rest of an answer


@pytest.mark.parametrize(
    ("epoch_s", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000.5, "2023-11-14T22:13:20.500Z"),
        (1_700_000_000.0004, "2023-11-14T22:13:20.000Z"),
        (951_782_400, "2000-02-29T00:00:00.000Z"),
    ],
)
def test_an_instant_is_rfc_3339_in_utc(epoch_s: float, text: str) -> None:
    assert instant(epoch_s) == text


def test_gaps_are_shown_with_what_is_known_of_them() -> None:
    outage = Gap(0.0, "the broker said \u202e no", end=1.5, session_resumed=True)
    lasting = Gap(2.0, "refused", topic_filter=TopicFilter("a/\u202e"))
    loss = Gap(3.0, "too fast", end=3.0, lost=7)

    assert [gap.model_dump() for gap in show_gaps([outage, lasting, loss], 1024)] == [
        {
            "start": "1970-01-01T00:00:00.000Z",
            "end": "1970-01-01T00:00:01.500Z",
            "cause": r"the broker said \u202e no",
            "session_resumed": True,
        },
        {"start": "1970-01-01T00:00:02.000Z", "end": None, "cause": "refused", "topic_filter": r"a/\u202e"},
        {"start": "1970-01-01T00:00:03.000Z", "end": "1970-01-01T00:00:03.000Z", "cause": "too fast", "lost": 7},
    ]


@given(HOSTILE_MESSAGES)
@settings(deadline=None)
def test_the_size_is_never_less_than_what_leaves(received: Message) -> None:
    shown = show_message(received, 1000)

    assert len(
        json.dumps(shown.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":")).encode()
    ) <= size_of(shown)
    assert size_of(ShownGap(start="", end=None, cause="é")) == len('{"start": "", "end": null, "cause": "\\u00e9"}')


@pytest.mark.parametrize(("losses", "lost"), [([1, 2, 3, 4], 6), ([1, None, 3, 4], None), ([None] * 4, None)])
def test_earlier_gaps_are_a_loss_only_if_each_of_them_is(losses: list[int | None], lost: int | None) -> None:
    gaps = [Gap(0.0, "gone", end=1.0, lost=number) for number in losses]

    assert [gap.lost for gap in show_gaps(gaps, 0)] == [lost, losses[-1]]


def test_earlier_gaps_last_while_one_of_them_does() -> None:
    gaps = [Gap(0.0, "gone", end=None if number == 1 else 1.0) for number in range(4)]

    assert [gap.end is None for gap in show_gaps(gaps, 0)] == [True, False]


def test_the_longest_filter_takes_no_more_room_than_a_gap_has() -> None:
    gaps = [Gap(0.0, "refused", topic_filter=TopicFilter("\u202e" * 20_000))] * 50

    shown = show_gaps(gaps, 4096)

    assert sum(size_of(gap) for gap in shown) < 4096 + 256
    assert str(shown[-1].topic_filter).endswith(r"\u202e…")


def test_earlier_gaps_are_told_as_one_where_there_is_no_room() -> None:
    gaps = [Gap(start=float(number), cause="gone", end=number + 0.5, index=number) for number in range(5)]

    assert [(gap.start, gap.end, gap.cause) for gap in show_gaps(gaps, 512)] == [
        ("1970-01-01T00:00:00.000Z", "1970-01-01T00:00:02.500Z", "3 earlier gaps"),
        ("1970-01-01T00:00:03.000Z", "1970-01-01T00:00:03.500Z", "gone"),
        ("1970-01-01T00:00:04.000Z", "1970-01-01T00:00:04.500Z", "gone"),
    ]

"""Conditions on a message: each operator on each kind of payload, and nothing a device sends makes one raise."""

import json
import sys
import time
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from errors import InputError
from inbox import Message
from tools.conditions import MAX_PAYLOAD, Condition, Matcher, Operator


def message(payload: bytes | str, topic: str = "a") -> Message:
    data = payload if isinstance(payload, bytes) else payload.encode(errors="surrogatepass")
    return Message(1, topic, data, 0, False, time.time(), {})


def meets(payload: bytes | str, op: Operator, value: Any = None, path: str = "") -> bool:
    return Matcher(Condition(path=path, op=op, value=value)).meets(message(payload))


MOTOR = json.dumps({"motor": {"temps": [20.5, 21, "n/a"], "on": True, "name": None, "tags": ["a", 1]}, "": 1, "a b": 2})


# Paths


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("motor.temps[0]", 20.5),
        ("motor.temps[1]", 21),
        ("motor.temps[01]", 21),
        ("motor.temps[2]", "n/a"),
        ("motor.on", True),
        ("motor.name", None),
        ("motor.tags", ["a", 1]),
        ("a b", 2),
    ],
)
def test_a_path_leads_into_json(path: str, value: object) -> None:
    assert meets(MOTOR, "exists", path=path)
    assert meets(MOTOR, "==", value, path)
    assert not meets(MOTOR, "!=", value, path)


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        (MOTOR, "motor.temps[3]"),  # one beyond the end
        (MOTOR, "motor.temps[999999999]"),
        (MOTOR, "motor.speed"),
        (MOTOR, "Motor.on"),
        (MOTOR, "motor[0]"),  # an object has no positions
        (MOTOR, "motor.temps.0"),  # an array has no keys
        (MOTOR, "motor.on.really"),  # a boolean has neither
        (MOTOR, "motor.temps[2][0]"),  # nor has a text
        (MOTOR, "motor.name.first"),
        (MOTOR, "[0]"),
        ("[1]", "a"),
        ("plain text", "a"),
        ('{"a": 1', "a"),  # broken JSON
        (b"\xff\xfe", "a"),
        (b"", "a"),
    ],
)
def test_what_a_path_does_not_find_meets_no_condition(payload: str | bytes, path: str) -> None:
    for op in get_args(Operator):
        assert not meets(payload, op, 0, path)


def test_a_path_can_begin_with_a_position() -> None:
    assert meets('[[1, {"a": 5}]]', "==", 5, "[0][1].a")


@pytest.mark.parametrize(
    "path",
    [
        ".",
        ".a",
        "a.",
        "a..b",
        "a.[0]",
        "[",
        "[]",
        "]",
        "a[",
        "a[0",
        "a]0[",
        "a[0]b",
        "a[-1]",
        "a[+1]",
        "a[1.0]",
        "a[x]",
        "a[*]",
        "a['b']",
        "a[ 0 ]",
        "a[٣]",  # a digit, but not one of JSON's
        "a[1234567890]",
    ],
)
def test_a_malformed_path_is_refused_with_the_right_form(path: str) -> None:
    with pytest.raises(InputError, match=r"write it like motor\.temps\[0\]") as caught:
        Matcher(Condition(path=path, op="exists"))

    assert str(caught.value).isprintable()


# Operators


@pytest.mark.parametrize(
    ("payload", "op", "value", "met"),
    [
        # numbers
        ("21", "==", 21, True),
        ("21.0", "==", 21, True),
        ("21", "==", 21.0, True),
        ("21", "!=", 21, False),
        ("21", "!=", 22, True),
        ("21", "<", 21, False),
        ("21", "<=", 21, True),
        ("21", ">=", 21, True),
        ("21", ">", 21, False),
        ("20.9", "<", 21, True),
        ("-1e3", "<", -999.5, True),
        (" 21\n", ">", 20, True),  # JSON allows the white space around it
        ("9007199254740993", "==", 9007199254740992, False),  # one beyond a double
        ("9007199254740993", ">", 9007199254740992, True),
        ("1e400", ">", 10, True),
        # what only looks like a number
        ("21 °C", ">", 20, False),
        ("21,5", ">", 20, False),
        ("0x15", ">", 20, False),
        ('"21"', ">", 20, False),
        ("true", ">=", 1, False),
        ("null", "<", 1, False),
        ("[21]", ">", 20, False),
        ("NaN", ">", 0, False),
        ("NaN", "<", 0, False),
        ("", "<", 1, False),
        # booleans are no numbers
        ("true", "==", True, True),
        ("true", "==", 1, False),
        ("1", "==", True, False),
        ("0", "==", False, False),
        ("0", "!=", False, True),
        ("false", "==", None, False),
        ("null", "==", None, True),
        ("", "==", None, False),
        # texts
        ("on", "==", "on", True),
        ("on", "==", "ON", False),
        ('"on"', "==", "on", True),  # a JSON text
        ("on\n", "==", "on", False),
        ("", "==", "", True),
        ("21", "==", "21", True),  # without a path, a text is compared with the payload as it came
        ("21.0", "==", "21", False),
        ("true", "==", "true", True),
        ("true", "!=", "true", False),
        ('"21"', "==", 21, False),
        ("NaN", "==", "NaN", True),
        ('{"a": 1}', "==", '{"a": 1}', True),
        ('{"a":1}', "==", '{"a": 1}', False),
        ("grün", "==", "grün", True),
        (b"\xff", "==", "\ufffd", True),  # what is no UTF-8 is compared as it would be shown
        # whole values
        ('{"b": [1, 2], "a": 1}', "==", {"a": 1, "b": [1, 2]}, True),
        ('{"b": [1, 2]}', "==", {"b": [2, 1]}, False),
        ("[1]", "==", [1, 1], False),
        ("[true]", "==", [1], False),  # not a number at any depth
        ('{"on": 1}', "==", {"on": True}, False),
        ('{"on": 1}', "!=", {"on": True}, True),
        ("[]", "==", {}, False),
        ("[[]]", "==", [[]], True),
        # contains
        ("door open", "contains", "open", True),
        ("door open", "contains", "Open", False),
        ("door open", "contains", "", True),
        ('{"state": "open"}', "contains", "open", True),  # without a path, in the payload as it came
        ('["opened"]', "contains", "open", True),
        ("[1, 2]", "contains", 2, True),
        ("[1, 2]", "contains", 3, False),
        ("[1]", "contains", True, False),
        ("[[1]]", "contains", [1], True),
        ("12", "contains", 2, False),
        ("null", "contains", None, False),
        ("true", "contains", True, False),
        # exists
        ("21", "exists", None, True),
        ("null", "exists", None, True),
        ("", "exists", None, True),
        (b"\xff", "exists", None, True),
        ("21", "exists", False, True),  # the value does not matter
    ],
)
def test_an_operator_on_the_whole_payload(payload: str | bytes, op: Operator, value: Any, met: bool) -> None:
    assert meets(payload, op, value) is met


@pytest.mark.parametrize(
    ("path", "op", "value", "met"),
    [
        ("motor.temps[0]", ">", 20, True),
        ("motor.temps[2]", ">", 20, False),
        ("motor.temps[1]", "==", "21", False),  # with a path, a text is a text
        ("motor.temps[2]", "contains", "/", True),
        ("motor.temps", "contains", 21, True),
        ("motor.temps", "contains", "21", False),
        ("motor.tags", "contains", True, False),
        ("motor", "contains", "on", True),  # a key
        ("motor", "contains", "n", False),
        ("motor.on", "contains", "t", False),
        ("motor.name", "exists", None, True),
        ("motor.on", ">", 0, False),
    ],
)
def test_an_operator_on_what_a_path_finds(path: str, op: Operator, value: Any, met: bool) -> None:
    assert meets(MOTOR, op, value, path) is met


@pytest.mark.parametrize("op", ["<", "<=", ">", ">="])
@pytest.mark.parametrize("value", [None, True, "20", [20], {"a": 20}])
def test_an_ordering_needs_a_number_and_says_what_it_got(op: Operator, value: Any) -> None:
    with pytest.raises(InputError, match="give a number as value") as caught:
        Matcher(Condition(op=op, value=value))

    assert str(caught.value).endswith(f"not {value!r}.")


def test_a_long_value_is_not_repeated_whole() -> None:
    with pytest.raises(InputError) as caught:
        Matcher(Condition(op="<", value="9" * 10_000))

    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "fields", [{"op": "="}, {"op": "exists", "pth": "a"}, {"op": "exists", "path": "a" * 1001}, {}]
)
def test_a_condition_that_is_none_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Condition(**fields)


# Changed


def run(matcher: Matcher, *payloads: bytes | str, topic: str = "a") -> list[bool]:
    return [matcher.meets(message(payload, topic)) for payload in payloads]


@pytest.mark.parametrize(
    ("payloads", "changed"),
    [
        (["1"], [False]),  # the first is compared with nothing
        (["1", "1", "2", "2", "1"], [False, False, True, False, True]),
        (["1", "1.0"], [False, False]),
        (["1", "true"], [False, True]),
        (["[1]", "[true]"], [False, True]),
        (["0", "false", "null", ""], [False, True, True, True]),
        (['{"a": 1, "b": 2}', '{"b":2,"a":1}'], [False, False]),
        (["on", '"on"'], [False, False]),  # the same text, once as JSON
        (["NaN", "NaN", "[NaN]", "[NaN]"], [False, False, True, False]),
        ([b"\x01\xfe", b"\x01\xfe", b"\x02\xfe"], [False, False, True]),
        (["x" * MAX_PAYLOAD, "y" * (MAX_PAYLOAD + 1), "x" * MAX_PAYLOAD], [False, False, False]),
    ],
)
def test_changed_is_another_value_than_before(payloads: list[bytes | str], changed: list[bool]) -> None:
    assert run(Matcher(Condition(op="changed")), *payloads) == changed


def test_changed_looks_at_what_the_path_finds_and_past_messages_without_it() -> None:
    matcher = Matcher(Condition(path="v", op="changed"))

    assert run(
        matcher, '{"v": 1, "t": 1}', '{"v": 1, "t": 2}', '{"t": 3}', "broken", '{"v": 1}', '{"v": 2}', '{"v": null}'
    ) == [False, False, False, False, False, True, True]


def test_changed_is_told_for_each_topic_by_itself() -> None:
    matcher = Matcher(Condition(op="changed"))

    assert run(matcher, "1", topic="a") == [False]
    assert run(matcher, "2", "2", topic="b") == [False, False]
    assert run(matcher, "1", "2", topic="a") == [False, True]


def test_changed_remembers_a_bounded_number_of_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is lowered to what can be counted by eye."""
    monkeypatch.setattr("tools.conditions._MAX_TOPICS", 2)
    matcher = Matcher(Condition(op="changed"))
    for topic in "abc":
        run(matcher, "1", topic=topic)

    assert [run(matcher, "2", topic=topic) for topic in "abc"] == [[True], [True], [False]]


# Whatever comes


def test_a_payload_is_looked_into_up_to_one_mebibyte() -> None:
    largest = b'"' + b"x" * (MAX_PAYLOAD - 2) + b'"'

    assert meets(largest, "exists")
    assert meets(largest, "contains", "xx")
    assert not meets(largest + b" ", "exists")
    assert not meets(largest + b" ", "!=", 0)


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
@pytest.mark.parametrize("op", ["==", "!=", "contains", "exists", "changed"])
def test_deep_nesting_never_raises(opening: str, op: Operator) -> None:
    closing = opening.replace("[", "]").replace('{"a":', "}")[::-1]
    limit = sys.getrecursionlimit()
    for depth in (*range(limit - 120, limit + 20), 100_000):
        payload = (opening * depth + "1" + closing * depth).encode()
        matcher = Matcher(Condition(op=op, value=[[1]]))

        matcher.meets(message(payload))
        matcher.meets(message(payload))


def test_equality_is_found_at_any_depth_that_json_has() -> None:
    deep = 900
    value: Any = 1
    for _ in range(deep):
        value = [value]

    assert meets("[" * deep + "1" + "]" * deep, "==", value)
    assert not meets("[" * deep + "2" + "]" * deep, "==", value)
    assert not meets("[" * deep + "true" + "]" * deep, "==", value)


@pytest.mark.parametrize("payload", ["9" * 5000, "-" + "9" * 5000, "[" + "9" * 5000 + "]", "1e99999999999999999999"])
def test_enormous_numbers_never_raise(payload: str) -> None:
    for op in get_args(Operator):
        meets(payload, op, 1)
        meets(payload, op, 1.5)
        meets(payload, op, 1, "[0]")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=8,
)


@given(
    payloads=st.lists(st.binary(max_size=20) | JSON.map(json.dumps).map(str.encode), max_size=3),
    op=st.sampled_from(["==", "!=", "contains", "exists", "changed"]),
    value=JSON,
    path=st.sampled_from(["", "a", "[0]", "a[0].b"]),
)
@settings(deadline=None, max_examples=300)
def test_no_payload_and_no_value_makes_a_condition_raise(
    payloads: list[bytes], op: Operator, value: Any, path: str
) -> None:
    matcher = Matcher(Condition(path=path, op=op, value=value))

    for payload in payloads:
        assert matcher.meets(message(payload)) in (True, False)


def same(one: Any, other: Any) -> bool:
    """Compare JSON values another way: as they are written."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


FINITE = st.recursive(
    st.none() | st.booleans() | st.sampled_from([0, 1, 0.5, "", "1"]),
    lambda children: st.lists(children, max_size=2) | st.dictionaries(st.sampled_from("ab"), children, max_size=2),
    max_leaves=5,
)


@given(FINITE, FINITE)
@settings(deadline=None, max_examples=300)
def test_two_values_are_equal_when_json_says_so(one: Any, other: Any) -> None:
    payload = json.dumps({"v": one})

    assert meets(payload, "==", one, "v")
    assert meets(payload, "==", other, "v") is same(one, other)
    assert meets(payload, "!=", other, "v") is not same(one, other)

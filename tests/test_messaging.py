"""The messaging tools as an assistant meets them, on a broker without a network."""

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

import sanitizer
from config import Bounds, Config
from mqtt_link import PublishProperties
from server import build_server
from tests.assistant import ALLOWED, ERAS, Assistant, Era, assistant
from tests.fake_broker import FakeBroker

pytestmark = pytest.mark.anyio


@pytest.fixture
def fake() -> FakeBroker:
    return FakeBroker(max_bytes=64 << 20)


@pytest.fixture(params=ERAS)
def era(request: pytest.FixtureRequest) -> Era:
    chosen: Era = request.param
    return chosen


@pytest.fixture
async def me(fake: FakeBroker, era: Era) -> AsyncIterator[Assistant]:
    async with assistant(build_server(Config(access_mode="admin", rules=ALLOWED), fake), era) as connected:
        yield connected


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


class TestPublish:
    async def test_an_acknowledged_message_is_told_with_all_that_the_broker_said(
        self, me: Assistant, fake: FakeBroker
    ) -> None:
        answer = await me.call("mqtt_publish", topic="a/b", payload="on", qos=2, retain=True)

        assert answer.pop("elapsed_ms") >= 0
        assert answer == {
            "topic": "a/b",
            "bytes": 2,
            "qos": 2,
            "retain": True,
            "acknowledged": True,
            "reason": "Success (0x00)",
        }
        assert fake.published == [("a/b", b"on", 2, True, PublishProperties())]

    @pytest.mark.parametrize(
        ("payload", "encoding", "sent"),
        [
            ("plain", "text", b"plain"),
            ("", "text", b""),
            ("null", "text", b"null"),
            ("123", "text", b"123"),
            ('{"a": 1}', "text", b'{"a": 1}'),
            ("[1,2]", "text", b"[1,2]"),
            ('"quoted"', "text", b'"quoted"'),
            (' {"b":  [1.50]} ', "json", b' {"b":  [1.50]} '),
            ("grüße ☃", "text", "grüße ☃".encode()),
            ("00ff", "hex", b"\x00\xff"),
            ("00 FF", "hex", b"\x00\xff"),
            ("", "hex", b""),
            ("AP8=", "base64", b"\x00\xff"),
        ],
    )
    async def test_a_payload_arrives_byte_for_byte(
        self, me: Assistant, fake: FakeBroker, payload: str, encoding: str, sent: bytes
    ) -> None:
        await me.call("mqtt_publish", topic="t", payload=payload, encoding=encoding)

        assert fake.published[-1][1] == sent

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ({"topic": "a/+", "payload": ""}, "wildcard"),
            ({"topic": "a/#", "payload": ""}, "wildcard"),
            ({"topic": "", "payload": ""}, "topic is empty"),
            ({"topic": "a\0b", "payload": ""}, "U+0000"),
            ({"topic": "x" * 65_536, "payload": ""}, "65536 bytes"),
            ({"topic": "t", "payload": "xyz", "encoding": "hex"}, "not valid hex"),
            ({"topic": "t", "payload": "0", "encoding": "hex"}, "not valid hex"),
            ({"topic": "t", "payload": "AP8", "encoding": "base64"}, "not valid base64"),
            ({"topic": "t", "payload": "A!8=", "encoding": "base64"}, "not valid base64"),
            ({"topic": "t", "payload": "{", "encoding": "json"}, "not valid json"),
            ({"topic": "t", "payload": "", "qos": 7}, "qos"),
            ({"topic": "t", "payload": "", "expiry_s": -1}, "expiry_s"),
            ({"topic": "t", "payload": {"a": 1}}, "payload: input should be a valid string (pass JSON as text)"),
            ({"topic": "t"}, "payload is required"),
            ({"topic": "t", "payload": "", "retian": True}, "there is no argument 'retian', did you mean retain"),
            ({"topic": "t", "payload": "", "response_topic": "a/#"}, "wildcard"),
            ({"topic": "t", "payload": "", "content_type": "a\0"}, "content_type"),
            ({"topic": "t", "payload": "", "user_properties": {"k": "v" * 65_536}}, "user_properties"),
        ],
    )
    async def test_bad_input_is_refused_in_words_and_nothing_is_sent(
        self, me: Assistant, fake: FakeBroker, arguments: dict[str, Any], says: str
    ) -> None:
        assert says in await me.fail("mqtt_publish", **arguments)

        assert fake.published == []

    async def test_a_refusal_by_the_broker_is_an_error(self, me: Assistant, fake: FakeBroker) -> None:
        fake.refused.add("secret/x")

        assert "Not authorized" in await me.fail("mqtt_publish", topic="secret/x", payload="1")

    async def test_offline_is_an_error_at_once_and_nothing_is_queued(self, me: Assistant, fake: FakeBroker) -> None:
        fake.go_offline()

        assert "Nothing was sent" in await me.fail("mqtt_publish", topic="t", payload="1")

        fake.come_back()
        assert fake.published == []

    async def test_properties_reach_the_broker(self, me: Assistant, fake: FakeBroker) -> None:
        await me.call(
            "mqtt_publish",
            topic="t",
            payload="",
            content_type="text/csv",
            expiry_s=60,
            response_topic="r",
            user_properties={"k": "v"},
        )

        assert fake.published[-1][4] == PublishProperties("text/csv", 60, "r", b"", (("k", "v"),))

    async def test_a_payload_over_the_limit_is_not_sent(self, fake: FakeBroker) -> None:
        config = Config(bounds=Bounds(max_payload_bytes=10))
        async with assistant(build_server(config, fake)) as me:
            await me.call("mqtt_publish", topic="t", payload="x" * 10)

            assert "MAX_PAYLOAD_BYTES" in await me.fail("mqtt_publish", topic="t", payload="x" * 11)


class TestSubscribe:
    @pytest.mark.parametrize(
        ("tool", "arguments"),
        [
            ("mqtt_subscribe", {"topic_filter": "a", "qos": True}),
            ("mqtt_publish", {"topic": "a", "payload": "1", "expiry_s": True}),
            ("mqtt_read", {"topic_filter": "a", "timeout_s": True}),
            ("mqtt_read", {"topic_filter": "a", "max_bytes": False}),
            ("mqtt_wait", {"topic_filter": "a", "count": True}),
        ],
    )
    async def test_true_is_no_number(self, me: Assistant, tool: str, arguments: dict[str, Any]) -> None:
        assert "a number, not" in await me.fail(tool, **arguments)

    async def test_messages_are_read_again_and_again(self, me: Assistant, fake: FakeBroker) -> None:
        subscription = await me.call("mqtt_subscribe", topic_filter="s/+")
        fake.send("s/1", b"21.5")
        fake.send("other", b"x")
        fake.send("s/2", b"hello", qos=1)

        first = await me.call("mqtt_messages", subscription_id=subscription["subscription_id"])
        again = await me.call("mqtt_messages", after=subscription["cursor"])

        assert [(m["topic"], m["payload"], m["encoding"]) for m in first["messages"]] == [
            ("s/1", 21.5, "json"),
            ("s/2", "hello", "text"),
        ]
        assert again["messages"] == first["messages"]
        assert first["remaining"] == first["dropped"] == 0
        assert first["connected_throughout"] is True

    async def test_a_cursor_goes_on_where_the_reading_ended(self, me: Assistant, fake: FakeBroker) -> None:
        await me.call("mqtt_subscribe", topic_filter="s")
        for number in range(5):
            fake.send("s", str(number).encode())

        first = await me.call("mqtt_messages", limit=2)
        second = await me.call("mqtt_messages", limit=2, after=first["next_cursor"])
        third = await me.call("mqtt_messages", limit=2, after=second["next_cursor"])
        end = await me.call("mqtt_messages", after=third["next_cursor"])

        assert [m["payload"] for page in (first, second, third) for m in page["messages"]] == [0, 1, 2, 3, 4]
        assert [page["remaining"] for page in (first, second, third, end)] == [3, 1, 0, 0]
        assert [page["truncated"] for page in (first, second, third, end)] == [True, True, False, False]

    async def test_two_subscriptions_to_one_filter_are_one_at_the_broker_and_end_apart(
        self, me: Assistant, fake: FakeBroker
    ) -> None:
        one = await me.call("mqtt_subscribe", topic_filter="s/#")
        two = await me.call("mqtt_subscribe", topic_filter="s/#")
        fake.send("s/1", b"x")

        assert one["subscription_id"] != two["subscription_id"]
        assert fake.feeds == {"s/#"}
        assert len((await me.call("mqtt_messages"))["messages"]) == 1
        assert await me.call("mqtt_unsubscribe", subscription_id=one["subscription_id"]) == {
            "topic_filter": "s/#",
            "received": 1,
            "dropped": 0,
        }
        assert fake.feeds == {"s/#"}
        await me.call("mqtt_unsubscribe", subscription_id=two["subscription_id"])
        assert fake.feeds == set()

    async def test_retained_messages_come_first_and_are_marked(self, me: Assistant, fake: FakeBroker) -> None:
        fake.send("s/state", b"on", retain=True)
        await me.call("mqtt_subscribe", topic_filter="s/#")
        fake.send("s/state", b"off", retain=True)

        messages = (await me.call("mqtt_messages"))["messages"]

        assert [(m["payload"], m["retained"]) for m in messages] == [("on", True), ("off", False)]

    async def test_a_one_off_read_leaves_a_running_subscription_alone(self, me: Assistant, fake: FakeBroker) -> None:
        fake.send("s/state", b"on", retain=True)
        await me.call("mqtt_subscribe", topic_filter="s/state")
        await me.call("mqtt_read", topic_filter="s/state")
        fake.send("s/state", b"off")

        messages = (await me.call("mqtt_messages"))["messages"]

        assert [m["payload"] for m in messages] == ["on", "off"]

    async def test_a_refusal_is_an_error_and_leaves_nothing_behind(self, me: Assistant, fake: FakeBroker) -> None:
        fake.refused.add("secret/#")

        assert "Not authorized" in await me.fail("mqtt_subscribe", topic_filter="secret/#")

        assert (await me.call("server_status"))["subscriptions"] == []

    @pytest.mark.parametrize("bad", ["", "a/#/b", "a+/b", "a/b#", "$share/g", "$share//x", "a\0"])
    async def test_a_malformed_filter_is_refused(self, me: Assistant, bad: str) -> None:
        for tool in ("mqtt_subscribe", "mqtt_read", "mqtt_wait", "mqtt_topics"):
            assert "filter" in await me.fail(tool, topic_filter=bad) or "shared" in await me.fail(
                tool, topic_filter=bad
            )

    async def test_an_unknown_subscription_is_named_with_those_that_exist(self, me: Assistant) -> None:
        opened = await me.call("mqtt_subscribe", topic_filter="x")

        text = await me.fail("mqtt_messages", subscription_id="nope")

        assert "'nope'" in text
        assert opened["subscription_id"] in text
        assert "'nope'" in await me.fail("mqtt_unsubscribe", subscription_id="nope")

    async def test_reading_without_any_subscription_says_what_to_do(self, me: Assistant) -> None:
        assert "mqtt_subscribe first" in await me.fail("mqtt_messages")

    async def test_a_filter_that_nobody_listens_to_is_not_called_silent(self, me: Assistant, fake: FakeBroker) -> None:
        await me.call("mqtt_subscribe", topic_filter="a/#")

        covered = await me.call("mqtt_messages", topic_filter="a/+")
        elsewhere = await me.call("mqtt_messages", topic_filter="b")
        wider = await me.call("mqtt_messages", topic_filter="#")

        assert (covered["connected_throughout"], covered["gaps"]) == (True, [])
        for reading in (elsewhere, wider):
            assert reading["connected_throughout"] is False
            assert "no open subscription covers" in reading["gaps"][0]["cause"]

    async def test_an_outage_is_told_and_silence_is_told_apart(self, me: Assistant, fake: FakeBroker) -> None:
        subscription = await me.call("mqtt_subscribe", topic_filter="s")
        silence = await me.call("mqtt_messages", after=subscription["cursor"])
        fake.go_offline("the broker closed it")
        during = await me.call("mqtt_messages", after=subscription["cursor"])
        fake.come_back()
        after = await me.call("mqtt_messages", after=during["next_cursor"])
        later = await me.call("mqtt_messages", after=after["next_cursor"])

        assert (silence["connected_throughout"], silence["gaps"]) == (True, [])
        assert during["connected_throughout"] is False
        assert during["gaps"][0]["end"] is None
        assert during["gaps"][0]["cause"] == "the broker closed it"
        assert after["connected_throughout"] is False
        assert after["gaps"][0]["end"] is not None
        assert (later["connected_throughout"], later["gaps"]) == (True, [])

    async def test_what_falls_out_of_the_buffer_is_counted_for_its_subscription(self, era: Era) -> None:
        fake = FakeBroker(max_messages=3)
        async with assistant(build_server(Config(), fake), era) as me:
            busy = await me.call("mqtt_subscribe", topic_filter="busy")
            await me.call("mqtt_subscribe", topic_filter="quiet")
            for number in range(5):
                fake.send("busy", str(number).encode())
            fake.send("quiet", b"!")

            reading = await me.call("mqtt_messages", subscription_id=busy["subscription_id"])
            other = await me.call("mqtt_messages", topic_filter="quiet")

            assert (reading["dropped"], [m["payload"] for m in reading["messages"]]) == (3, [3, 4])
            assert (other["dropped"], len(other["messages"])) == (0, 1)

    async def test_modes_show_the_last_the_changes_or_figures(self, me: Assistant, fake: FakeBroker) -> None:
        await me.call("mqtt_subscribe", topic_filter="#")
        for topic, payload in (("a", b"1"), ("a", b"1"), ("b", b"x"), ("a", b"4"), ("b", b"x")):
            fake.send(topic, payload)

        latest = await me.call("mqtt_messages", mode="latest")
        changes = await me.call("mqtt_messages", mode="changes")
        stats = await me.call("mqtt_messages", mode="stats")

        assert [(m["topic"], m["payload"]) for m in latest["messages"]] == [("a", 4), ("b", "x")]
        assert [(m["topic"], m["payload"]) for m in changes["messages"]] == [("a", 1), ("b", "x"), ("a", 4)]
        assert [(s["topic"], s["messages"], s.get("min"), s.get("mean"), s.get("max")) for s in stats["stats"]] == [
            ("a", 3, 1, 2, 4),
            ("b", 2, None, None, None),
        ]


class TestBadData:
    async def test_no_payload_stops_the_hearing(self, me: Assistant, fake: FakeBroker) -> None:
        await me.call("mqtt_subscribe", topic_filter="#")
        hostile = {
            "surrogate": b'{"k\\ud800": "\\udfff"}',
            "binary": b"\xff\xfe\x00",
            "empty": b"",
            "broken": b'{"a": ',
            "deep": b"[" * 5000 + b"]" * 5000,
            "nan": b"NaN",
            "twice": b'{"a": 1, "a": 2}',
            "bidi\u202e": "abc\u202edef\u200b".encode(),
            "big": b"x" * 5_000_000,
        }
        for topic, payload in hostile.items():
            fake.send(topic, payload)
        fake.send("after", b"still here")

        shown: dict[str, Any] = {}
        cursor = ""
        while True:
            page = await me.call("mqtt_messages", after=cursor)
            shown |= {m["topic"]: m for m in page["messages"]}
            cursor = page["next_cursor"]
            if not page["remaining"]:
                break

        assert shown["surrogate"]["payload"] == {"k\\ud800": "\\udfff"}
        assert (shown["binary"]["payload"], shown["binary"]["encoding"]) == (
            base64.b64encode(b"\xff\xfe\x00").decode(),
            "base64",
        )
        assert (shown["empty"]["payload"], shown["empty"]["bytes"]) == ("", 0)
        assert (shown["broken"]["payload"], shown["broken"]["encoding"]) == ('{"a": ', "text")
        assert shown["deep"]["encoding"] == "text"
        assert (shown["nan"]["payload"], shown["nan"]["encoding"]) == ("NaN", "text")
        assert (shown["twice"]["payload"], shown["twice"]["encoding"]) == ('{"a": 1, "a": 2}', "text")
        assert shown["bidi\\u202e"]["payload"] == "abc\\u202edef\\u200b"
        assert (shown["big"]["payload_truncated"], shown["big"]["bytes"]) == (True, 5_000_000)
        assert shown["after"]["payload"] == "still here"

    @pytest.mark.parametrize("max_bytes", [1024, 16_384, 1 << 20])
    async def test_an_answer_never_exceeds_its_bound(self, me: Assistant, fake: FakeBroker, max_bytes: int) -> None:
        await me.call("mqtt_subscribe", topic_filter="#")
        for number in range(60):
            fake.send(f"t/{number}", ("\u202e" * 100 + '"' * 100).encode() * number, retain=True)
        fake.send("x" * 60_000, b"long topic")
        for number in range(50):
            fake.go_offline(f"outage {number}")
            fake.come_back()

        for tool, arguments in (
            ("mqtt_messages", {}),
            ("mqtt_messages", {"mode": "stats"}),
            ("mqtt_read", {"topic_filter": "#", "timeout_s": 0.1, "limit": 1000}),
        ):
            answer = await me.call(tool, max_bytes=max_bytes, **arguments)

            assert len(json.dumps(answer)) <= max_bytes


class TestTopics:
    async def test_a_look_at_what_is_held_says_that_there_is_no_connection(
        self, me: Assistant, fake: FakeBroker
    ) -> None:
        fake.go_offline()

        assert (await me.call("mqtt_topics", listen_s=0))["connected_throughout"] is False

    async def test_a_secret_that_is_a_number_is_hidden_in_json_too(
        self, me: Assistant, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sanitizer, "_process", sanitizer._KnownValues(["31415926535"]))  # noqa: SLF001
        fake.send("pin", b'{"pin": 31415926535, "count": 3141592653}', retain=True)

        read = await me.call("mqtt_read", topic_filter="pin")

        assert read["messages"][0]["payload"] == {"pin": "[REDACTED]", "count": 3141592653}

    async def test_a_secret_in_a_binary_payload_is_not_shown_in_part(
        self, me: Assistant, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        secret = f"known-{os.urandom(12).hex()}"
        monkeypatch.setattr(sanitizer, "_process", sanitizer._KnownValues([secret]))  # noqa: SLF001
        fake.send("raw", b"\xff" * 8 + secret.encode() * 9000, retain=True)

        seen = await me.call("mqtt_topics", listen_s=0.05)
        read = await me.call("mqtt_read", topic_filter="raw", max_bytes=4096)

        shown = base64.b64decode(read["messages"][0]["payload"].partition("[")[0] + "==", validate=False)
        for part in (secret[:8], secret[-8:]):
            assert part.encode().hex() not in json.dumps(seen)
            assert part.encode() not in shown

    async def test_topics_are_listed_with_a_sample_and_found_by_text(self, me: Assistant, fake: FakeBroker) -> None:
        fake.send("plant/a", b"1.5", retain=True)
        fake.send("plant/b", b'{"x": 1}', retain=True)
        fake.send("Other", b"\xff", retain=True)

        everything = await me.call("mqtt_topics", listen_s=0.01)
        some = await me.call("mqtt_topics", listen_s=0.01, contains="PLANT")

        assert [
            (t["topic"], t["messages"], t["retained"], t["payload_type"], t["sample"]) for t in everything["topics"]
        ] == [
            ("Other", 1, True, "binary", "ff"),
            ("plant/a", 1, True, "number", "1.5"),
            ("plant/b", 1, True, "json", '{"x": 1}'),
        ]
        assert everything["total"] == 3
        assert [t["topic"] for t in some["topics"]] == ["plant/a", "plant/b"]
        assert some["total"] == 2

    async def test_pages_show_each_topic_once(self, me: Assistant, fake: FakeBroker) -> None:
        for number in range(7):
            fake.send(f"t/{number}", b"x", retain=True)

        page = await me.call("mqtt_topics", listen_s=0.01, limit=3)
        names = [t["topic"] for t in page["topics"]]
        while page["next_cursor"]:
            assert page["truncated"] is True
            page = await me.call("mqtt_topics", limit=3, after=page["next_cursor"])
            names += [t["topic"] for t in page["topics"]]

        assert names == [f"t/{number}" for number in range(7)]
        assert page["truncated"] is False

    async def test_a_page_that_is_gone_says_so(self, me: Assistant) -> None:
        assert "look again" in await me.fail("mqtt_topics", after="nonsense")

    async def test_offline_is_an_error_and_not_an_empty_plant(self, me: Assistant, fake: FakeBroker) -> None:
        fake.go_offline()

        assert "Not connected" in await me.fail("mqtt_topics")
        assert "Not connected" in await me.fail("mqtt_read", topic_filter="x")


class TestRead:
    async def test_one_topic_returns_as_soon_as_it_has_a_value(self, me: Assistant, fake: FakeBroker) -> None:
        fake.send("state", b"on", retain=True)

        answer = await me.call("mqtt_read", topic_filter="state", timeout_s=60)

        assert answer["listened_s"] < 5
        assert [(m["topic"], m["payload"], m["retained"]) for m in answer["messages"]] == [("state", "on", True)]
        assert answer["connected_throughout"] is True
        assert answer["truncated"] is False

    async def test_nothing_heard_is_an_empty_answer_that_was_listened_to(self, me: Assistant) -> None:
        answer = await me.call("mqtt_read", topic_filter="silent", timeout_s=0.1)

        assert (answer["messages"], answer["connected_throughout"]) == ([], True)
        assert answer["listened_s"] >= 0.1

    async def test_more_topics_than_the_limit_are_counted(self, me: Assistant, fake: FakeBroker) -> None:
        for number in range(5):
            fake.send(f"t/{number}", b"x", retain=True)

        answer = await me.call("mqtt_read", topic_filter="t/+", timeout_s=0.1, limit=2)

        assert len(answer["messages"]) == 2
        assert (answer["truncated"], answer["omitted"]) == (True, 3)


class TestWait:
    async def test_a_condition_on_json_is_waited_for(self, me: Assistant, fake: FakeBroker) -> None:
        waiting = asyncio.create_task(
            me.call("mqtt_wait", topic_filter="m/#", condition={"path": "t[0]", "op": ">", "value": 30})
        )
        await until(lambda: fake.feeds)
        fake.send("m/1", b'{"t": [29]}')
        fake.send("m/1", b'{"t": [31]}')

        answer = await waiting

        assert (answer["matched"], answer["seen"]) == (True, 2)
        assert [m["payload"] for m in answer["messages"]] == [{"t": [31]}]
        assert fake.feeds == set()

    async def test_time_over_is_an_answer_not_an_error(self, me: Assistant) -> None:
        answer = await me.call("mqtt_wait", topic_filter="silent", timeout_s=0.1)

        assert (answer["matched"], answer["messages"], answer["seen"]) == (False, [], 0)
        assert answer["connected_throughout"] is True

    async def test_an_outage_while_waiting_is_told(self, me: Assistant, fake: FakeBroker) -> None:
        waiting = asyncio.create_task(me.call("mqtt_wait", topic_filter="x", timeout_s=0.2))
        await until(lambda: fake.feeds)
        fake.go_offline()
        fake.come_back()

        assert (await waiting)["connected_throughout"] is False

    async def test_a_retained_value_counts_for_a_condition_only(self, me: Assistant, fake: FakeBroker) -> None:
        fake.send("state", b"on", retain=True)

        without = await me.call("mqtt_wait", topic_filter="state", timeout_s=0.1)
        with_one = await me.call("mqtt_wait", topic_filter="state", condition={"op": "==", "value": "on"})

        assert (without["matched"], without["seen"]) == (False, 1)
        assert with_one["matched"] is True

    async def test_progress_is_reported(self, me: Assistant) -> None:
        await me.call("mqtt_wait", topic_filter="x", timeout_s=0.1)

        assert me.progress[-1] == (0.1, 0.1, "0 of 1 matched, 0 messages seen")

    async def test_a_cancelled_wait_frees_what_it_held(self, me: Assistant, fake: FakeBroker) -> None:
        waiting = asyncio.create_task(me.call("mqtt_wait", topic_filter="x"))
        await until(lambda: fake.feeds)

        waiting.cancel()

        await until(lambda: not fake.feeds)

    async def test_a_malformed_path_or_operator_is_refused(self, me: Assistant) -> None:
        assert "path" in await me.fail("mqtt_wait", topic_filter="x", condition={"path": "a..b", "op": "exists"})
        assert "condition.op" in await me.fail("mqtt_wait", topic_filter="x", condition={"op": "~"})
        assert "give the value" in await me.fail("mqtt_wait", topic_filter="x", condition={"op": "=="})
        assert "number" in await me.fail("mqtt_wait", topic_filter="x", condition={"op": "<", "value": "a"})
        assert "timeout_s" in await me.fail("mqtt_wait", topic_filter="x", timeout_s=-1)


class TestRequest:
    async def test_the_response_is_matched_by_correlation_data(self, me: Assistant, fake: FakeBroker) -> None:
        def device(topic: str, payload: bytes, properties: PublishProperties) -> None:
            if topic == "device/do":
                fake.send(properties.response_topic, b"not yours", properties={"correlation_data": b"other"})
                fake.send(
                    properties.response_topic, b"done", properties={"correlation_data": properties.correlation_data}
                )

        fake.respond = device

        answer = await me.call("mqtt_request", topic="device/do", payload="now")

        assert answer["response"]["payload"] == "done"
        assert fake.feeds == set()

    async def test_no_response_is_an_error_that_says_the_request_went_out(
        self, me: Assistant, fake: FakeBroker
    ) -> None:
        text = await me.fail("mqtt_request", topic="device/do", payload="now", timeout_s=0.1)

        assert "was published" in text
        assert "no response came" in text

    async def test_an_outage_meanwhile_is_told(self, me: Assistant, fake: FakeBroker) -> None:
        asking = asyncio.create_task(me.fail("mqtt_request", topic="device/do", payload="now", timeout_s=0.3))
        await until(lambda: fake.published)
        fake.go_offline()
        fake.come_back()

        assert "connection was lost meanwhile" in await asking

    async def test_a_response_counts_without_the_acknowledgement_of_the_request(
        self, me: Assistant, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def never_acknowledged(*_: object, properties: PublishProperties, **__: object) -> None:
            fake.send(properties.response_topic, b"done", properties={"correlation_data": properties.correlation_data})
            await asyncio.Event().wait()

        monkeypatch.setattr(fake, "publish", never_acknowledged)

        answer = await me.call("mqtt_request", topic="device/do", payload="now")

        assert answer["response"]["payload"] == "done"

    async def test_without_any_answer_it_is_not_known_whether_the_request_was_taken(
        self, me: Assistant, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def never_acknowledged(*_: object, **__: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(fake, "publish", never_acknowledged)

        text = await me.fail("mqtt_request", topic="device/do", payload="now", timeout_s=0.1)

        assert "may have been taken or not" in text

    async def test_the_request_is_never_taken_for_its_response(self, me: Assistant, fake: FakeBroker) -> None:
        text = await me.fail("mqtt_request", topic="device/do", payload="now", response_topic="device/do")

        assert "its own response" in text
        assert fake.published == []

    async def test_mqtt_3_1_1_needs_the_response_topic(self, me: Assistant, fake: FakeBroker) -> None:
        fake.state.protocol = "3.1.1"

        assert "response_topic" in await me.fail("mqtt_request", topic="device/do", payload="now")

    async def test_a_retained_value_on_the_response_topic_is_no_response(self, me: Assistant, fake: FakeBroker) -> None:
        fake.send("device/answer", b"old", retain=True)

        def device(topic: str, _payload: bytes, _properties: PublishProperties) -> None:
            if topic == "device/do":
                fake.send("device/answer", b"new")

        fake.respond = device

        answer = await me.call("mqtt_request", topic="device/do", payload="now", response_topic="device/answer")

        assert answer["response"]["payload"] == "new"


async def test_a_broker_of_qos_0_alone_can_be_asked_and_cleared(me: Assistant, fake: FakeBroker) -> None:
    fake.state.maximum_qos = 0
    fake.send("old", b"x", retain=True)

    await me.fail("mqtt_request", topic="device/do", payload="now", timeout_s=0.1)
    await me.call("mqtt_clear_retained", topic_filter="old", dry_run=False)

    assert [(topic, qos) for topic, _, qos, *_ in fake.published] == [("device/do", 0), ("old", 0)]


class TestClearRetained:
    async def test_an_outage_while_looking_is_no_empty_list(self, me: Assistant, fake: FakeBroker) -> None:
        clearing = asyncio.create_task(me.fail("mqtt_clear_retained", topic_filter="old/#"))
        await until(lambda: fake.feeds)
        fake.go_offline()
        fake.come_back()

        assert "did not last" in await clearing

    async def test_a_dry_run_lists_and_touches_nothing(self, me: Assistant, fake: FakeBroker) -> None:
        fake.send("old/1", b"x", retain=True)
        fake.send("old/2", b"x", retain=True)
        fake.send("new/1", b"x", retain=True)

        answer = await me.call("mqtt_clear_retained", topic_filter="old/#")

        assert answer == {"topics": ["old/1", "old/2"], "cleared": 0, "dry_run": True, "truncated": False}
        assert set(fake.retained) == {"old/1", "old/2", "new/1"}

    async def test_it_clears_at_most_the_limit_and_says_there_is_more(self, me: Assistant, fake: FakeBroker) -> None:
        for number in range(4):
            fake.send(f"old/{number}", b"x", retain=True)

        answer = await me.call("mqtt_clear_retained", topic_filter="old/#", dry_run=False, limit=3)

        assert (answer["cleared"], answer["truncated"]) == (3, True)
        assert len(fake.retained) == 1

    async def test_what_the_broker_refuses_is_named(self, me: Assistant, fake: FakeBroker) -> None:
        fake.send("old/1", b"x", retain=True)
        fake.send("old/2", b"x", retain=True)
        fake.refused.add("old/1")

        answer = await me.call("mqtt_clear_retained", topic_filter="old/#", dry_run=False)

        assert (answer["cleared"], answer["topics"]) == (1, ["old/2"])
        (failed,) = answer["failed"]
        assert failed["topic"] == "old/1"
        assert "Not authorized" in failed["reason"]

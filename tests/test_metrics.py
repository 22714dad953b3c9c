"""What is counted through the tools, the Copilot, the record and brokers; how it is exposed; the dashboard over it."""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mcp.client import Client
from mcp.types import ElicitResult, InputRequiredResult
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from audit import Audit
from config import AuditConfig, Bounds, BrokerConfig, Config, CopilotConfig, Rules
from copilot_client import CopilotClient, Turn
from errors import ServiceError
from inbox import Inbox, Message
from limits import Limits
from measures import BUCKETS_S, Durations, Measures, Number, Sources
from metrics import CONTENT_TYPE, PREFIX, exposition
from mqtt_client import MqttClient
from policy import TOOLS
from server import VERSION, Bridge
from tests.assistant import ALLOWED, ERAS, Assistant, Era
from tests.brokers import Embedded
from tests.documentation import ROOT
from tests.doubles import copilot as doubles
from tests.doubles.copilot import CHAT, LOT, USAGE, CopilotDouble, completion, failure, refusal
from tests.fake_broker import FakeBroker
from topics import TopicFilter

pytestmark = pytest.mark.anyio

ADMIN = Config(access_mode="admin", rules=ALLOWED)
DASHBOARD = ROOT / "deploy" / "grafana" / "coreflux-mcp.json"
ADDED_BY_PROMETHEUS = {"instance", "job"}

Samples = dict[str, dict[tuple[str, ...], float]]
"""The values of each sample's name, by the values of its labels."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coreflux._QUIET_S", 0.03)
    monkeypatch.setattr("identity._WAIT_S", 0.03)


@pytest.fixture
def fake() -> FakeBroker:
    broker = FakeBroker()
    broker.send("plant/a", b"21.5", retain=True)
    return broker


@asynccontextmanager
async def bridged(
    broker: FakeBroker, config: Config = ADMIN, era: Era = "auto", **more: Any
) -> AsyncIterator[tuple[Assistant, Bridge]]:
    bridge = Bridge(config, broker, **more)
    async with Client(bridge.server(config.access_mode), mode=era) as client:
        yield Assistant(client), bridge


def counting(broker: Any = None, copilot: CopilotClient | None = None, audit: Audit | None = None) -> Measures:
    """Measures without a server."""
    return Measures(
        Sources(
            "1.2.3",
            broker or FakeBroker(),
            copilot or CopilotClient(CopilotConfig()),
            audit or Audit(AuditConfig()),
            Limits(Rules()),
        )
    )


def exposed(measures: Measures) -> Samples:
    """Read the exposition as Prometheus does."""
    text, _ = exposition(measures)
    order = {label: number for number, label in enumerate(("tool", "outcome", "route", "status", "le"))}
    samples: Samples = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            values = samples.setdefault(sample.name, {})
            labels = tuple(sample.labels[name] for name in sorted(sample.labels, key=lambda name: order.get(name, 9)))
            assert labels not in values
            values[labels] = sample.value
    return samples


def ours(measures: Measures, name: str) -> dict[str, float]:
    """Return what there is of one of our measures besides zeros."""
    return {" ".join(labels): value for labels, value in exposed(measures)[PREFIX + name].items() if value}


def value(measures: Measures, name: str) -> float:
    (found,) = exposed(measures)[PREFIX + name].values()
    return found


def stop_the_clock(monkeypatch: pytest.MonkeyPatch, bridge: Bridge) -> None:
    """Have the limits forget nothing."""
    now = time.monotonic()
    monkeypatch.setattr(bridge.gate.limits, "_now", lambda: now)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


class TestToolCalls:
    """How they end."""

    PUBLISH: dict[str, Any] = {"topic": "plant/a", "payload": "1"}  # noqa: RUF012

    @pytest.mark.parametrize("era", ERAS)
    @pytest.mark.parametrize(
        ("rules", "tool", "arguments", "counted"),
        [
            (ALLOWED, "mqtt_publish", PUBLISH, "ok"),
            (ALLOWED, "mqtt_publish", {"topic": "forbidden", "payload": "1"}, "error"),
            (Rules(publish_deny=(TopicFilter("plant/#"),)), "mqtt_publish", PUBLISH, "refused"),
            (Rules(burst=1, calls_per_s=1), "mqtt_publish", PUBLISH, "limited"),
            (ALLOWED, "mqtt_publish", {"topic": "broken", "payload": "1"}, "failed"),
            (Rules(), "lot_remove", {"kind": "action", "name": "Beat"}, "refused"),
        ],
    )
    async def test_each_end_has_its_name(
        self,
        fake: FakeBroker,
        monkeypatch: pytest.MonkeyPatch,
        era: Era,
        rules: Rules,
        tool: str,
        arguments: dict[str, Any],
        counted: str,
    ) -> None:
        def break_down(topic: str, *_: object) -> None:
            assert topic != "broken"

        fake.refused.add("forbidden")
        fake.respond = break_down
        async with bridged(fake, replace(ADMIN, rules=rules), era) as (me, bridge):
            if counted == "limited":
                stop_the_clock(monkeypatch, bridge)
                await me.call("lot_check", code=LOT)
            result = await me.client.call_tool(tool, arguments)

        assert result.is_error is (counted != "ok")
        calls = ours(bridge.measures, "tool_calls_total")
        calls.pop("lot_check ok", None)
        assert calls == {f"{tool} {counted}": 1}
        assert value(bridge.measures, "policy_refusals_total") == (counted == "refused")

    @pytest.mark.parametrize("era", ERAS)
    async def test_a_call_that_is_given_up_was_cancelled(self, fake: FakeBroker, era: Era) -> None:
        async with bridged(fake, era=era) as (me, bridge):
            waiting = asyncio.create_task(me.call("mqtt_wait", topic_filter="never", timeout_s=60))
            await until(lambda: bridge.gate.limits.facts()["under_way"])
            waiting.cancel()
            await until(lambda: ours(bridge.measures, "tool_calls_total"))
            with suppress(asyncio.CancelledError):
                await waiting

        assert ours(bridge.measures, "tool_calls_total") == {"mqtt_wait cancelled": 1}
        assert bridge.gate.limits.facts()["under_way"] == 0

    async def test_a_question_that_goes_out_is_neither_done_nor_refused(self, fake: FakeBroker) -> None:
        async def nobody(context: Any, params: Any) -> ElicitResult:
            raise AssertionError("the client asks by itself")

        bridge = Bridge(replace(ADMIN, rules=Rules()), fake)
        async with Client(bridge.server("admin"), elicitation_callback=nobody) as client:
            act = {"topic_filter": "plant/a", "dry_run": False}
            question = await client.session.call_tool("mqtt_clear_retained", act, allow_input_required=True)

        assert isinstance(question, InputRequiredResult)
        assert ours(bridge.measures, "tool_calls_total") == {"mqtt_clear_retained asked": 1}
        assert value(bridge.measures, "policy_refusals_total") == 0

    async def test_a_refusal_that_cannot_be_recorded_any_more_is_one(
        self, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rules = Rules(publish_deny=(TopicFilter("#"),))

        async def given_up(*_: object, **_facts: object) -> None:
            raise asyncio.CancelledError

        async with bridged(fake, replace(ADMIN, rules=rules)) as (me, bridge):
            monkeypatch.setattr(bridge.audit, "record", given_up)
            calling = asyncio.create_task(me.client.call_tool("mqtt_publish", self.PUBLISH))
            await until(lambda: ours(bridge.measures, "tool_calls_total"))
            calling.cancel()
            with suppress(asyncio.CancelledError):
                await calling

        assert ours(bridge.measures, "tool_calls_total") == {"mqtt_publish refused": 1}

    async def test_what_is_too_much_is_counted_by_its_limit(
        self, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("limits.MESSAGES_PER_MINUTE", 2)
        rules = replace(ALLOWED, calls_per_s=1, burst=6)
        async with bridged(fake, replace(ADMIN, rules=rules)) as (me, bridge):
            stop_the_clock(monkeypatch, bridge)
            for _ in range(9):
                await me.client.call_tool("mqtt_publish", self.PUBLISH)

        assert ours(bridge.measures, "rate_limit_exceeded_total") == {"calls": 3, "messages": 4}
        assert ours(bridge.measures, "tool_calls_total") == {"mqtt_publish ok": 2, "mqtt_publish limited": 7}
        assert bridge.gate.limits.facts()["refused"] == 7

    @pytest.mark.parametrize("era", ERAS)
    @pytest.mark.parametrize("name", ['x"\n', "a\\", "run_\n# HELP", "mqtt_publish\n", "", "é" * 1000])
    async def test_a_name_that_is_no_tool_is_no_label(self, fake: FakeBroker, era: Era, name: str) -> None:
        async with bridged(fake, era=era) as (me, bridge):
            with suppress(Exception):
                await me.client.call_tool(name, {})
            bridge.measures.tool_call(name, "ok", 0.1)
            bridge.measures.auth_failure(name)
            bridge.measures.rate_limited(name)

        assert ours(bridge.measures, "tool_calls_total") == {"run_<name> ok": 1}
        assert ours(bridge.measures, "auth_failures_total") == {"other": 1}
        assert ours(bridge.measures, "rate_limit_exceeded_total") == {"other": 1}

    def test_every_tool_and_outcome_is_there_from_the_start(self) -> None:
        calls = exposed(counting())[f"{PREFIX}tool_calls_total"]

        assert {tool for tool, _ in calls} == set(TOOLS)
        assert len(calls) == 7 * len(TOOLS)
        assert set(calls.values()) == {0}

    def test_a_duration_is_in_the_bucket_that_it_does_not_exceed(self) -> None:
        durations = Durations()
        for seconds in (0, 0.001, 0.0011, 60, 61):
            durations.add(seconds)

        assert durations.up_to == [2, *[3] * 13, 4, 5]
        assert (durations.count, durations.sum_s) == (5, 121.0021)

    async def test_the_histogram_agrees_with_the_counter(self, fake: FakeBroker) -> None:
        async with bridged(fake) as (me, bridge):
            for _ in range(3):
                await me.call("lot_check", code=LOT)
            await me.call("mqtt_read", topic_filter="never", timeout_s=0.15)
        samples = exposed(bridge.measures)
        name = f"{PREFIX}tool_call_duration_seconds"

        assert samples[f"{name}_count"] == {("lot_check", "ok"): 3, ("mqtt_read", "ok"): 1}
        assert 0.15 <= samples[f"{name}_sum"]["mqtt_read", "ok"] < 5
        read = {le: count for (tool, _, le), count in samples[f"{name}_bucket"].items() if tool == "mqtt_read"}
        assert list(read) == [*map(str, BUCKETS_S), "+Inf"]
        assert (read["0.1"], read["+Inf"]) == (0, 1)


class TestCopilot:
    """Questions and what they cost."""

    @pytest.fixture
    async def double(self) -> AsyncIterator[CopilotDouble]:
        async with CopilotDouble() as double:
            yield double

    @pytest.fixture
    async def copilot(self, double: CopilotDouble, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CopilotClient]:
        monkeypatch.setattr("copilot_client.FIRST_WAIT_S", 0.01)
        monkeypatch.setattr("copilot_client._JITTER_S", (0, 0.01))
        config = CopilotConfig(url=double.url + CHAT, key=SecretStr(double.key), timeout_s=5)
        async with CopilotClient(config) as client:
            yield client

    TOKENS = {"prompt": 812.0, "completion": 64.0}  # noqa: RUF012

    @pytest.mark.parametrize("streamed", [False, True])
    @pytest.mark.parametrize(
        ("answers", "outcome", "tokens"),
        [
            ([completion()], "ok", TOKENS),
            ([failure(503), failure(500), completion()], "ok", TOKENS),
            ([completion(usage=None)], "ok", {}),
            ([completion(usage=[1])], "ok", {}),
            ([completion(usage={"prompt_tokens": 3})], "ok", {"prompt": 3}),
            ([completion(usage={"prompt_tokens": "3", "completion_tokens": -1})], "ok", {}),
            ([completion(usage={"prompt_tokens": 10**400, "completion_tokens": 1e308})], "ok", {}),
            ([completion(finish_reason="content_filter")], "refused", TOKENS),
            ([refusal()], "refused", TOKENS),
            ([completion("")], "error", TOKENS),  # what has cost something was of no use
            ([doubles.not_json("<html>")], "error", {}),
            ([failure(401)], "error", {}),
            ([failure(503)] * 3, "error", {}),
            ([doubles.closed_midway()], "silent", {}),
        ],
    )
    async def test_a_question_is_counted_once_with_its_tokens(
        self,
        double: CopilotDouble,
        copilot: CopilotClient,
        streamed: bool,
        answers: list[doubles.Answer],
        outcome: str,
        tokens: dict[str, float],
    ) -> None:
        async def progress(_characters: int) -> None:
            pass

        double.answer(*answers)
        with suppress(ServiceError):
            await copilot.ask([Turn("user", "?")], progress if streamed else None)

        measures = counting(copilot=copilot)
        assert ours(measures, "copilot_calls_total") == {outcome: 1}
        assert ours(measures, "copilot_tokens_total") == tokens

    async def test_a_question_that_is_given_up_was_cancelled(
        self, double: CopilotDouble, copilot: CopilotClient
    ) -> None:
        double.answer(doubles.preceded_by(doubles.HANG))
        asking = asyncio.create_task(copilot.ask([Turn("user", "?")]))
        await double.arrived()
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking

        assert ours(counting(copilot=copilot), "copilot_calls_total") == {"cancelled": 1}

    async def test_a_question_that_cannot_be_put_is_none(self) -> None:
        copilot = CopilotClient(CopilotConfig())
        with pytest.raises(ServiceError):
            await copilot.ask([Turn("user", "?")])

        assert ours(counting(copilot=copilot), "copilot_calls_total") == {}


class TestAudit:
    """The record."""

    async def test_only_lines_that_were_written_are_counted(self, tmp_path: Path) -> None:
        file = tmp_path / "audit.jsonl"
        async with Audit(AuditConfig(file=file)) as audit:
            measures = counting(audit=audit)
            for number in range(3):
                await audit.record("act", number=number)
            assert (value(measures, "audit_lines_total"), value(measures, "audit_failing")) == (3, 0)
            file.rename(tmp_path / "elsewhere")
            file.mkdir()
            await audit.record("act", number=3)
            await audit.record("act", number=4)
            assert (value(measures, "audit_lines_total"), value(measures, "audit_failing")) == (3, 1)
            file.rmdir()
            (tmp_path / "elsewhere").rename(file)
            await audit.record("act", number=5)

            lines = file.read_bytes().splitlines()
            assert json.loads(lines[3])["lost_lines"] == 2  # a line of its own
            assert (value(measures, "audit_lines_total"), value(measures, "audit_failing")) == (len(lines), 0)

    async def test_a_file_that_is_not_open_fails_and_none_does_not(self, tmp_path: Path) -> None:
        for file, failing in ((tmp_path / "audit.jsonl", 1), (None, 0)):
            assert value(counting(audit=Audit(AuditConfig(file=file))), "audit_failing") == failing


class TestBroker:
    """The connection and the inbox."""

    async def test_failed_attempts_losses_and_reconnects(self) -> None:
        broker = Embedded()
        with broker:
            config = BrokerConfig(host=broker.host, port=broker.port)
            async with MqttClient(config, Inbox(10, 10_000)) as client:
                measures = counting(client)
                await until(lambda: value(measures, "connected"))
                assert (value(measures, "connection_errors_total"), value(measures, "reconnects_total")) == (0, 0)
                broker.stop()
                await until(lambda: not value(measures, "connected"))
                assert value(measures, "connection_errors_total") >= 1  # the loss
                assert value(measures, "reconnects_total") == 0
                await until(lambda: value(measures, "connection_errors_total") >= 2)  # nobody is there
                broker.start()
                await until(lambda: value(measures, "connected"))
                assert value(measures, "reconnects_total") == 1
                errors = value(measures, "connection_errors_total")
            assert value(measures, "connection_errors_total") == errors  # leaving is no loss

    async def test_a_broker_that_is_not_there_is_an_error_each_time(self) -> None:
        async with MqttClient(BrokerConfig(port=9), Inbox(10, 10_000)) as client:
            await until(lambda: client.state.attempts >= 3)
            measures = counting(client)

        assert value(measures, "connection_errors_total") >= 2
        assert value(measures, "reconnects_total") == 0

    def test_what_was_received_is_held_or_dropped(self) -> None:
        fake = FakeBroker(max_messages=3, max_bytes=1000)
        subscription = fake.inbox.open(TopicFilter("#"), 0)
        for number in range(5):
            fake.inbox.store(Message(number, "a", b"x", 0, False, 0.0, {}, (subscription,)))
        fake.inbox.store(Message(9, "a", b"x" * 2000, 0, False, 0.0, {}, (subscription,)))
        fake.inbox.lose(7, "too fast")
        figures = {name.removeprefix(PREFIX): next(iter(of.values())) for name, of in exposed(counting(fake)).items()}

        expected = {
            "messages_received_total": 13,  # 5 + 1 too large + 7 lost
            "messages_dropped_total": 10,
            "inbox_messages": 3,
            "inbox_bytes": 6,
            "inbox_max_messages": 3,
            "inbox_max_bytes": 1000,
            "subscriptions": 1,
        }
        assert {name: figures[name] for name in expected} == expected


class TestHTTP:
    """What comes from the server over HTTP."""

    def test_requests_are_counted_by_route_and_class_of_status(self) -> None:
        measures = counting()
        for route, status in (("/mcp", 200), ("/mcp", 202), ("/mcp", 401), ("/healthz", 200), ("/mcp", 0)):
            measures.http_request(route, status)

        assert ours(measures, "http_requests_total") == {
            "/mcp 2xx": 2,
            "/mcp 4xx": 1,
            "/healthz 2xx": 1,
            "/mcp none": 1,
        }

    def test_routes_cannot_become_many(self) -> None:
        measures = counting()
        for number in range(1000):
            measures.http_request(f'/"\n{number}', 404)
        measures.http_request('/"\n0', 404)

        requests = ours(measures, "http_requests_total")
        assert len(requests) <= 21
        assert requests["other 4xx"] >= 980
        assert requests['/"\n0 4xx'] == 2

    def test_what_is_open_is_asked_when_it_is_told(self) -> None:
        measures, connections = counting(), SimpleNamespace(sessions=0, streams=0)
        assert (value(measures, "http_sessions"), value(measures, "http_streams")) == (0, 0)
        measures.http = connections
        connections.sessions, connections.streams = 2, 5

        assert (value(measures, "http_sessions"), value(measures, "http_streams")) == (2, 5)

    def test_tokens_and_limits(self) -> None:
        measures = counting()
        for reason in ("missing", "wrong", "wrong"):
            measures.auth_failure(reason)
        for limit in ("address", "client", "requests", "client"):
            measures.rate_limited(limit)

        assert ours(measures, "auth_failures_total") == {"missing": 1, "wrong": 2}
        assert ours(measures, "rate_limit_exceeded_total") == {"address": 1, "client": 2, "requests": 1}


@asynccontextmanager
async def busy(
    fake: FakeBroker, tmp_path: Path, bounds: Bounds | None = None
) -> AsyncIterator[tuple[Assistant, Bridge]]:
    """A server of which every measure has something to tell."""
    config = replace(
        ADMIN,
        rules=replace(ALLOWED, publish_deny=(TopicFilter("closed/#"),)),
        state_dir=tmp_path,
        bounds=bounds or Bounds(),
        audit=AuditConfig(file=tmp_path / "audit.jsonl"),
    )
    async with CopilotDouble() as double, Audit(config.audit) as audit:
        known = CopilotConfig(url=double.url + CHAT, key=SecretStr(double.key))
        config = replace(config, copilot=known)
        async with CopilotClient(known) as copilot, bridged(fake, config, copilot=copilot, audit=audit) as (me, bridge):
            await me.call("mqtt_subscribe", topic_filter="#")
            for _ in range(3):
                await me.call("mqtt_publish", topic="plant/b", payload="1")
            await me.fail("mqtt_publish", topic="closed/x", payload="1")
            fake.go_offline()
            await me.fail("mqtt_publish", topic="plant/b", payload="1")
            fake.come_back()
            fake.state.connections, fake.state.errors = 3, 4
            await me.call("copilot_ask", question="How?")
            await me.call("lot_check", code=LOT)
            fake.inbox.lose(7, "too fast")
            bridge.measures.http = SimpleNamespace(sessions=2, streams=3)
            bridge.measures.http_request("/mcp", 200)
            bridge.measures.auth_failure("wrong")
            bridge.measures.rate_limited("address")
            yield me, bridge


class TestStatus:
    """The same numbers, for the assistant."""

    async def test_the_status_has_the_numbers_of_the_exposition_and_no_others(
        self, fake: FakeBroker, tmp_path: Path
    ) -> None:
        async with busy(fake, tmp_path) as (me, bridge):
            samples = exposed(bridge.measures)
            figures = (await me.call("server_status"))["metrics"]

        expected: dict[str, Number | dict[str, Number]] = {}
        for name, values in samples.items():
            if name.startswith(PREFIX) and not name.endswith(("_bucket", "_count")):
                labelled = {" ".join(labels): number for labels, number in values.items() if number}
                expected[name.removeprefix(PREFIX)] = values.get((), labelled)
        assert figures == {name: of for name, of in expected.items() if of != {}}
        assert figures["tool_calls_total"]["mqtt_publish ok"] == 3
        assert figures["messages_dropped_total"] == 7
        assert figures["audit_lines_total"] == 5  # four acts and a refusal
        assert figures["copilot_tokens_total"] == {"prompt": 812, "completion": 64}
        assert figures["build_info"] == {VERSION: 1}

    async def test_the_status_counts_itself_afterwards(self, fake: FakeBroker) -> None:
        async with bridged(fake) as (me, _):
            assert "tool_calls_total" not in (await me.call("server_status"))["metrics"]
            assert (await me.call("server_status"))["metrics"]["tool_calls_total"] == {"server_status ok": 1}

    @pytest.mark.parametrize(("room", "apart"), [(16 << 10, 10), (2 << 10, 3), (1 << 10, None)])
    async def test_the_status_stays_within_its_room_and_the_rest_is_summed(
        self, fake: FakeBroker, tmp_path: Path, room: int, apart: int | None
    ) -> None:
        async with bridged(fake, replace(ADMIN, bounds=Bounds(result_max_bytes=room))) as (me, bridge):
            for number, tool in enumerate(TOOLS, 1):
                for _ in range(number):
                    bridge.measures.tool_call(tool, "ok", 0.01)
                    bridge.measures.tool_call(tool, "error", 0.01)
            status = await me.call("server_status")

        everything = len(TOOLS) * (len(TOOLS) + 1)
        if apart is None:
            assert "metrics" not in status
            return
        calls = status["metrics"]["tool_calls_total"]
        assert len(json.dumps(status)) <= room
        assert sum(calls.values()) == everything
        assert {key.split()[0] for key in calls} == {*list(TOOLS)[-apart:], "other"}
        seconds = status["metrics"]["tool_call_duration_seconds_sum"]
        assert seconds.keys() == calls.keys()
        assert sum(seconds.values()) == pytest.approx(everything * 0.01, abs=1e-4)


class TestExposition:
    """For Prometheus."""

    def test_it_is_the_text_format(self) -> None:
        text, kind = exposition(counting())

        assert kind == CONTENT_TYPE
        assert text.endswith(b"\n")
        assert f'{PREFIX}build_info{{version="1.2.3"}} 1.0'.encode() in text.splitlines()

    def test_every_measure_says_what_it_is(self) -> None:
        families = {
            family.name: family for family in text_string_to_metric_families(exposition(counting())[0].decode())
        }

        for family in counting().families():
            found = families[PREFIX + family.name.removesuffix("_total" if family.kind == "counter" else "")]
            assert (found.type, found.documentation) == (family.kind, family.help)
            assert (family.kind == "counter") is family.name.endswith("_total")

    @pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
    def test_the_figures_of_the_process_are_there(self) -> None:
        samples = exposed(counting())

        assert samples["process_resident_memory_bytes"][()] > 1e7
        assert samples["process_open_fds"][()] > 2
        assert "python_info" in samples

    def test_two_servers_in_a_process_do_not_share_numbers(self) -> None:
        one, other = counting(), counting()
        one.tool_call("mqtt_read", "ok", 1)

        assert ours(one, "tool_calls_total") == {"mqtt_read ok": 1}
        assert ours(other, "tool_calls_total") == {}

    def test_a_start_over_stdio_does_not_load_the_library(self) -> None:
        code = "import sys, server; assert 'measures' in sys.modules; print('prometheus_client' in sys.modules)"

        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

        assert done.stdout == "False\n"


FUNCTIONS = {"rate", "increase", "histogram_quantile"}
AGGREGATIONS = {"sum", "max", "min", "avg"}
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"[^"\\]*"|'[^'\\]*')|(?P<macro>\$\w+)|(?P<number>\d+(?:\.\d+)?[smhdwy]?)"""
    r"""|(?P<name>[A-Za-z_:][\w:]*)|(?P<sign>=~|!~|!=|==|<=|>=|[-+*/%<>=(){}\[\],]))"""
)


@dataclass(frozen=True)
class Used:
    """A metric in a query, with the labels that the query takes from it."""

    name: str
    labels: frozenset[str]


class Query:
    """The part of PromQL that the dashboard needs; anything else fails."""

    def __init__(self, text: str) -> None:
        self.used: list[Used] = []
        self._tokens: list[tuple[str, str]] = []
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            assert match, f"unknown: {text[at:]}"
            at = match.end()
            self._tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
        self._expression(frozenset())
        assert not self._tokens, f"left over: {self._tokens}"

    def _next(self) -> str:
        return self._tokens[0][1] if self._tokens else ""

    def _take(self, *expected: str) -> str:
        kind, text = self._tokens.pop(0)
        assert not expected or text in expected or kind in expected, f"{text} in place of {expected}"
        return text

    def _expression(self, labels: frozenset[str]) -> None:
        self._operand(labels)
        while self._next() in ("+", "-", "*", "/", ">", "<", "==", ">=", "<=", "!="):
            self._take()
            self._operand(labels)

    def _operand(self, labels: frozenset[str]) -> None:
        kind, text = self._tokens.pop(0)
        if kind == "number":
            return
        if text == "(":
            self._expression(labels)
            self._take(")")
            return
        assert kind == "name", text
        if text in AGGREGATIONS:
            kept = frozenset(self._labels()) if self._next() == "by" else frozenset[str]()
            self._arguments(kept)
        elif self._next() == "(":
            assert text in FUNCTIONS, f"no function: {text}"
            self._arguments(labels)
        else:
            self._selector(text, labels)

    def _labels(self) -> Iterator[str]:
        self._take("by")
        self._take("(")
        while True:
            yield self._take("name")
            if self._take(",", ")") == ")":
                return

    def _arguments(self, labels: frozenset[str]) -> None:
        self._take("(")
        self._expression(labels)
        while self._next() == ",":
            self._take()
            self._expression(labels)
        self._take(")")

    def _selector(self, name: str, labels: frozenset[str]) -> None:
        matched = set(labels)
        if self._next() == "{":
            self._take()
            while self._next() != "}":
                matched.add(self._take("name"))
                self._take("=", "!=", "=~", "!~")
                self._take("text")
                if self._next() == ",":
                    self._take()
            self._take("}")
        if self._next() == "[":
            self._take()
            self._take("number", "macro")
            self._take("]")
        self.used.append(Used(name, frozenset(matched)))


def missing(query: str, there: dict[str, set[str]]) -> list[str]:
    """Name what a query asks for and is not there."""
    return [
        f"{used.name} {label}".strip()
        for used in Query(query).used
        for label in (["", *sorted(used.labels)] if used.name in there else [""])
        if used.name not in there or (label and label not in there[used.name] | ADDED_BY_PROMETHEUS)
    ]


class TestDashboard:
    """The one in deploy/grafana."""

    @pytest.fixture
    def dashboard(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
        return found

    @pytest.fixture
    async def there(self, fake: FakeBroker, tmp_path: Path) -> dict[str, set[str]]:
        """The labels of each name that Prometheus gets from a running server."""
        async with busy(fake, tmp_path) as (_, bridge):
            text, _kind = exposition(bridge.measures)
        labels: dict[str, set[str]] = {}
        for family in text_string_to_metric_families(text.decode()):
            for sample in family.samples:
                labels.setdefault(sample.name, set()).update(sample.labels)
        return labels

    @pytest.mark.skipif(sys.platform != "linux", reason="the figures of the process need /proc")
    async def test_every_query_finds_what_it_asks_for(
        self, dashboard: dict[str, Any], there: dict[str, set[str]]
    ) -> None:
        queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]

        assert [problem for query in queries for problem in missing(query, there)] == []
        used = {used.name for query in queries for used in Query(query).used}
        named = {re.sub(r"_(bucket|count|sum)$", "", name) for name in there if name.startswith(PREFIX)}
        assert named <= {re.sub(r"_bucket$", "", name) for name in used}  # and nothing of ours goes unseen

    async def test_every_legend_and_variable_names_a_label_that_is_there(
        self, dashboard: dict[str, Any], there: dict[str, set[str]]
    ) -> None:
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                for used in Query(target["expr"]).used:
                    known = there.get(used.name, set()) | ADDED_BY_PROMETHEUS
                    assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= known
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                query = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
                assert query
                assert variable["query"]["query"] == variable["definition"]
                (used,) = Query(query[1]).used
                assert {*used.labels, query[2]} <= there[used.name] | ADDED_BY_PROMETHEUS

    def test_it_can_be_imported_anywhere(self, dashboard: dict[str, Any]) -> None:
        panels = dashboard["panels"]
        variables = {each["name"]: each for each in dashboard["templating"]["list"]}

        assert "id" not in dashboard  # that is for the Grafana it gets into
        assert dashboard["uid"]
        assert dashboard["title"]
        assert dashboard["schemaVersion"] >= 39
        assert variables.keys() == {"datasource", "instance", "tool"}
        assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
        assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels) >= 12
        for panel in panels:
            assert panel["description"]
            queried = [panel, *panel["targets"]]
            assert {each["datasource"]["uid"] for each in queried} == {"${datasource}"}
            assert all('instance=~"$instance"' in target["expr"] for target in panel["targets"])
            assert [target["refId"] for target in panel["targets"]] == list("ABCDE")[: len(panel["targets"])]

    def test_no_panel_lies_on_another(self, dashboard: dict[str, Any]) -> None:
        taken: set[tuple[int, int]] = set()
        for panel in dashboard["panels"]:
            at = panel["gridPos"]
            cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
            assert not cells & taken
            assert at["x"] + at["w"] <= 24
            taken |= cells

    @pytest.mark.parametrize(
        ("query", "problems"),
        [
            ("up", ["up"]),
            ("a", []),
            ('rate(a{x="1",instance="y"}[5m])', []),
            ('a{z="1"}', ["a z"]),
            ("sum by (x, le) (rate(a[$__rate_interval]))", ["a le"]),
            ("sum by (x) (a) / sum(b)", ["b"]),
            ("histogram_quantile(0.9, sum by (le) (rate(a[1m])))", ["a le"]),
            ("a > 0", []),
        ],
    )
    def test_what_is_missing_is_found(self, query: str, problems: list[str]) -> None:
        assert missing(query, {"a": {"x"}}) == problems

    @pytest.mark.parametrize("query", ["", "rate(a", "foo(a)", "a b", "a{x}", "sum by (a", "a[", "a ~ b", "by (x)"])
    def test_what_is_no_query_is_found(self, query: str) -> None:
        with pytest.raises((AssertionError, IndexError)):
            Query(query)


def test_usage_of_the_double_is_what_the_tests_count() -> None:
    assert (USAGE["prompt_tokens"], USAGE["completion_tokens"]) == (812, 64)

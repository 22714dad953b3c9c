"""Several replicas of the server: alone they are told what they hold, together they act as one."""

import asyncio
import json
import os
import secrets
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp.server.subscriptions import ToolsListChanged
from mcp.types import ElicitResult

from config import BrokerConfig
from errors import BridgeError
from inbox import Inbox
from mqtt_client import MqttClient
from policy import REPLICAS
from replicas import Replicas
from tests.assistant import ERAS, Era
from tests.brokers import Embedded, Watcher, publish
from tests.child import settings
from tests.fake_broker import FakeBroker
from tests.http_child import MODERN_META, HTTPChild, until
from tools.changes import ToolListChanges

pytestmark = pytest.mark.anyio

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
KEY = f"key-{secrets.token_hex(12)}"
YES = ElicitResult(action="accept", content={"allow": True})


@pytest.fixture(params=ERAS)
def era(request: pytest.FixtureRequest) -> Era:
    chosen: Era = request.param
    return chosen


@asynccontextmanager
async def replica(broker: Embedded, key: bytes = b"k" * 16) -> AsyncIterator[Replicas]:
    config = BrokerConfig(host=broker.host, port=broker.port)
    async with MqttClient(config, Inbox(100, 10_000)) as mqtt:
        replicas = Replicas(mqtt, key)
        async with replicas.listening():
            await until(lambda: mqtt._dispatch.feeds != {} and mqtt.state.connected)  # noqa: SLF001
            await mqtt.probe()
            yield replicas


class TestTogether:
    async def test_of_several_claims_of_one_name_one_is_first(self, embedded: Embedded) -> None:
        async with replica(embedded) as one, replica(embedded) as two, replica(embedded) as three:
            for name in map(str, range(20)):
                won = await asyncio.gather(*(each.claim(name) for each in (one, two, three, one)))
                assert sorted(won) == [False, False, False, True]
            assert not await three.claim("7")

    async def test_each_knows_whether_it_is_alone(self, embedded: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("replicas.BEAT_S", 0.05)
        async with replica(embedded) as one, replica(embedded, b"other key" * 2):
            assert not one.several
            async with replica(embedded) as two:
                await until(lambda: one.several and two.several)
            await until(lambda: not one.several)

    async def test_news_of_one_reaches_the_others_and_not_itself(self, embedded: Embedded) -> None:
        heard: list[str] = []
        async with replica(embedded) as one, replica(embedded) as two, replica(embedded, b"other key" * 2) as stranger:
            one.on_news(lambda: heard.append("one"))
            two.on_news(lambda: heard.append("two"))
            stranger.on_news(lambda: heard.append("stranger"))
            await one.tell()
            await until(lambda: bool(heard))
            assert await two.claim("afterwards")

        assert heard == ["two"]

    async def test_a_change_of_the_tools_in_one_is_told_to_the_clients_of_all(self, embedded: Embedded) -> None:
        told: list[tuple[str, object]] = []
        async with replica(embedded) as one, replica(embedded) as two:
            here, there = ToolListChanges(one), ToolListChanges(two)
            here.bus.subscribe(lambda event: told.append(("here", event)))
            there.bus.subscribe(lambda event: told.append(("there", event)))
            await here.tell()
            await until(lambda: len(told) == 2)

        assert {where for where, _ in told} == {"here", "there"}
        assert {type(event) for _, event in told} == {ToolsListChanged}

    @pytest.mark.parametrize(
        "forged",
        [
            b"",
            b"no mac",
            b'0000 {"news": "tools", "from": "x"}',
            b'{"claim": "a", "by": "me", "from": "x"}',
            b"\xff \xff",
        ],
    )
    async def test_what_nobody_of_them_wrote_is_not_believed(self, forged: bytes) -> None:
        fake = FakeBroker()
        replicas = Replicas(fake, b"k" * 16)
        heard: list[str] = []
        replicas.on_news(lambda: heard.append("news"))
        async with replicas.listening():
            await until(lambda: bool(fake.feeds))
            (topic,) = fake.feeds
            fake.send(topic, forged)

            assert topic.startswith(REPLICAS)
            assert heard == []
            assert await replicas.claim("a")

    async def test_a_claim_that_does_not_come_back_is_an_error_and_no_yes(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("replicas.CLAIM_TIMEOUT_S", 0.05)
        replicas = Replicas(FakeBroker(), b"k" * 16)

        with pytest.raises(BridgeError, match="could not be made known to the other replicas"):
            await replicas.claim("a")

    async def test_a_login_that_may_not_hear_the_others_is_told(self) -> None:
        fake = FakeBroker()
        replicas = Replicas(fake, b"k" * 16)
        fake.refused = {replicas._topic.text}  # noqa: SLF001
        async with replicas.listening():
            await until(lambda: replicas.trouble is not None)


@asynccontextmanager
async def in_front(directory: Path, *ports: int) -> AsyncIterator[str]:
    """Run nginx as people do: one address, and each request to the next replica."""
    if NGINX is None:
        missing = "nginx is not installed (Debian: apt-get install nginx-light)"
        if os.environ.get("REQUIRE_MOSQUITTO") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    backends = "".join(f"server 127.0.0.1:{each} max_fails=1 fail_timeout=2s;" for each in ports)
    paths = "".join(
        f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(
        f"daemon off; pid {directory}/pid; error_log {directory}/error.log; events {{}}"
        f"http {{ access_log off; {paths} upstream replicas {{ {backends} }}"
        f"server {{ listen 127.0.0.1:{port}; location / {{"
        "proxy_pass http://replicas; proxy_http_version 1.1; proxy_set_header Connection '';"
        "proxy_set_header Host $http_host; proxy_buffering off; proxy_connect_timeout 2s; } } }"
    )
    nginx = await asyncio.create_subprocess_exec(NGINX, "-p", str(directory), "-c", str(directory / "nginx.conf"))
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.01)
                else:
                    writer.close()
                    break
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        nginx.terminate()
        await nginx.wait()


@asynccontextmanager
async def two(broker: Embedded, tmp_path: Path, **more: str) -> AsyncIterator[tuple[HTTPChild, HTTPChild, str]]:
    """Run two replicas behind one address."""
    names = ("one", "two")
    async with AsyncExitStack() as stack:
        children = [
            await stack.enter_async_context(
                HTTPChild(settings(broker, AUDIT_KEY=KEY, AUDIT_FILE=str(tmp_path / f"{name}.jsonl"), **more))
            )
            for name in names
        ]
        for child in children:
            await child.said("connected to")
        url = await stack.enter_async_context(in_front(tmp_path, *(child.port for child in children)))
        yield children[0], children[1], url


def lines(tmp_path: Path, event: str) -> list[tuple[str, dict[str, Any]]]:
    """List what the replicas recorded of an event, and which of them did."""
    return [
        (name, line)
        for name in ("one", "two")
        for line in map(json.loads, (tmp_path / f"{name}.jsonl").read_text().splitlines())
        if line["event"] == event
    ]


async def test_a_session_that_its_client_has_ended_is_over(embedded: Embedded) -> None:
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    opening = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}).encode()
    ping = json.dumps({"jsonrpc": "2.0", "id": 2, "method": "ping"}).encode()
    async with HTTPChild(settings(embedded, AUDIT_KEY=KEY)) as child:
        session = (await child.ask(body=opening)).headers["mcp-session-id"]
        assert (await child.ask(body=ping, mcp_session_id=session)).status == 200
        assert (await child.ask("DELETE", mcp_session_id=session)).status == 200
        assert (await child.ask(body=ping, mcp_session_id=session)).status == 404
        assert (await child.ask(body=ping, mcp_session_id=f"{session}0")).status == 404


async def test_an_older_client_of_the_only_one_is_asked(embedded: Embedded) -> None:
    publish(embedded, "old/alone", b"1", retain=True)
    async with HTTPChild(settings(embedded, AUDIT_KEY=KEY, ACCESS_MODE="admin")) as child:
        async with child.assistant("legacy", person=YES) as me:
            await child.said("connected to")
            cleared = await me.call("mqtt_clear_retained", topic_filter="old/alone", dry_run=False)

    assert cleared["cleared"] == 1


class TestBehindAProxy:
    async def test_any_request_may_reach_any_replica(self, embedded: Embedded, tmp_path: Path, era: Era) -> None:
        async with two(embedded, tmp_path) as (one, _, url), one.assistant(era, url=url) as me:
            for number in range(8):
                await me.call("mqtt_publish", topic=f"many/{number}", payload="x")
                assert "mqtt_publish" in await me.tools()
            acts = lines(tmp_path, "act")

        assert len(acts) == 8
        assert {name for name, _ in acts} == {"one", "two"}

    async def test_a_killed_replica_takes_nothing_with_it_but_what_it_held(
        self, embedded: Embedded, tmp_path: Path, era: Era
    ) -> None:
        async with two(embedded, tmp_path) as (one, other, url), other.assistant(era, url=url) as me:
            handle = (await me.call("mqtt_subscribe", topic_filter="a/#"))["subscription_id"]
            one.process.kill()
            await one.ended()
            for number in range(6):
                answer = await me.call("mqtt_publish", topic=f"a/{number}", payload="x")
                assert answer["acknowledged"]
            failed, text, answer = await me._call("mqtt_messages", {"subscription_id": handle})  # noqa: SLF001
            if failed:
                assert "This replica of the server does not hold the subscription" in text
            else:
                assert len(answer["messages"]) == 6

    async def test_what_a_replica_does_not_hold_it_says_so(self, embedded: Embedded, tmp_path: Path) -> None:
        async with two(embedded, tmp_path) as (one, other, _), one.assistant() as here, other.assistant() as there:
            opened = await here.call("mqtt_subscribe", topic_filter="a/#")
            await there.call("mqtt_subscribe", topic_filter="a/#")
            handle = opened["subscription_id"]

            assert "This replica of the server does not hold" in await there.fail(
                "mqtt_messages", subscription_id=handle
            )
            assert "another replica" in await there.fail("mqtt_messages", after=opened["cursor"])
            assert "does not hold" in await there.fail("mqtt_unsubscribe", subscription_id=handle)
            assert (await here.call("mqtt_unsubscribe", subscription_id=handle))["topic_filter"] == "a/#"

    async def test_a_question_of_one_is_answered_to_the_other_and_acted_on_once(
        self, embedded: Embedded, tmp_path: Path
    ) -> None:
        publish(embedded, "old/value", b"1", retain=True)
        async with two(embedded, tmp_path, ACCESS_MODE="admin") as (one, other, _):
            asked = await self._clear(one)
            state = asked["result"]["requestState"]
            answers = {
                "requestState": state,
                "inputResponses": {"confirm": {"action": "accept", "content": {"allow": True}}},
            }
            ended = await asyncio.gather(self._clear(other, **answers), self._clear(one, **answers))
            done = [each for each in ended if not each["result"].get("isError")]
            refused = [each for each in ended if each["result"].get("isError")]

            assert len(done) == len(refused) == 1
            assert "used before" in refused[0]["result"]["content"][0]["text"]
            assert "used before" in (await self._clear(other, **answers))["result"]["content"][0]["text"]
        assert [line["outcome"] for _, line in lines(tmp_path, "act")] == ["done"]

    async def _clear(self, child: HTTPChild, **more: Any) -> dict[str, Any]:
        meta = {**MODERN_META, "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}}}
        arguments = {"topic_filter": "old/value", "dry_run": False}
        params = {"name": "mqtt_clear_retained", "arguments": arguments, "_meta": meta, **more}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
        answer = await child.ask(
            body=body, mcp_protocol_version="2026-07-28", mcp_method="tools/call", mcp_name="mqtt_clear_retained"
        )
        told: dict[str, Any] = json.loads(answer.body)
        return told

    async def test_a_person_is_asked_through_the_proxy(self, embedded: Embedded, tmp_path: Path) -> None:
        publish(embedded, "old/value", b"1", retain=True)
        async with two(embedded, tmp_path, ACCESS_MODE="admin") as (one, _, url):
            async with one.assistant(url=url, person=YES) as me:
                cleared = await me.call("mqtt_clear_retained", topic_filter="old/value", dry_run=False)

        assert cleared["cleared"] == 1

    async def test_an_older_client_that_cannot_be_asked_through_them_is_told_the_other_way(
        self, embedded: Embedded, tmp_path: Path
    ) -> None:
        publish(embedded, "old/value", b"1", retain=True)
        async with two(embedded, tmp_path, ACCESS_MODE="admin") as (one, _, url):
            async with one.assistant("legacy", url=url, person=YES) as me:
                text = await me.fail("mqtt_clear_retained", topic_filter="old/value", dry_run=False)

        assert "CONFIRM_FALLBACK=approve-file" in text

    async def test_a_shared_subscription_spreads_the_load(self, embedded: Embedded, tmp_path: Path) -> None:
        async with two(embedded, tmp_path) as (one, other, _), one.assistant() as here, other.assistant() as there:
            handles = [
                (me, (await me.call("mqtt_subscribe", topic_filter="$share/team/load/#"))["subscription_id"])
                for me in (here, there)
            ]
            with Watcher(embedded, "load/#") as watcher:
                for number in range(40):
                    await here.call("mqtt_publish", topic="load/x", payload=str(number))
                await until(lambda: len(watcher.seen) == 40)
            parts = [
                [each["payload"] for each in (await me.call("mqtt_messages", subscription_id=handle))["messages"]]
                for me, handle in handles
            ]

        assert all(parts)
        assert sorted(parts[0] + parts[1]) == list(range(40))

"""The server as a whole: its tools, their schemas, their size, its status."""

import asyncio
import json
from typing import Any

import pytest

import server
from config import Config
from server import build_server
from tests.assistant import assistant
from tests.documentation import COPILOT, MODES, list_tools
from tests.fake_broker import FakeBroker

pytestmark = pytest.mark.anyio

READ = ["server_status", "mqtt_topics", "mqtt_read", "mqtt_subscribe", "mqtt_messages", "mqtt_unsubscribe", "mqtt_wait"]
LOT = ["lot_list", "lot_show", "lot_check", "lot_diagnose"]
WRITE = [*READ, "mqtt_publish", "mqtt_request", *LOT, "lot_deploy", "lot_run_action"]
ADMIN = [*WRITE, "mqtt_clear_retained", "lot_remove", "coreflux_command"]


@pytest.mark.parametrize(("access", "names"), [("read", [*READ, *LOT]), ("write", WRITE), ("admin", ADMIN)])
async def test_a_tool_above_the_access_mode_is_not_there(access: Any, names: list[str]) -> None:
    async with assistant(build_server(Config(access_mode=access), FakeBroker())) as me:
        assert sorted(await me.tools()) == sorted(names)
        if "mqtt_publish" not in names:
            with pytest.raises(Exception, match="mqtt_publish"):
                await me.call("mqtt_publish", topic="a", payload="b")


async def test_the_default_tools_stay_within_their_share_of_the_context() -> None:
    """16 KB for the default set with the Copilot, and for all 20 tools (design, section 6)."""
    for mode in MODES:
        tools = await list_tools(Config(access_mode=mode, copilot=COPILOT))
        assert len(json.dumps({"tools": tools}, separators=(",", ":"))) <= 1 << 14


async def test_every_tool_has_title_description_and_explicit_hints() -> None:
    for tool in await list_tools():
        assert tool["title"]
        assert 40 <= len(tool["description"]) <= 300
        assert set(tool["annotations"]) == {"readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"}
        assert tool["inputSchema"]["additionalProperties"] is False
        assert tool["outputSchema"]["properties"]


async def test_status_tells_everything_it_promises() -> None:
    fake = FakeBroker()
    fake.send("$SYS/broker/version", b"mosquitto version 2.0.11", retain=True)
    async with assistant(build_server(Config(warnings=("Beware.",)), fake)) as me:
        await me.call("mqtt_subscribe", topic_filter="a/#", qos=2)

        status = await me.call("server_status", check=True)

    assert status["server"]["name"] == "coreflux-mcp"
    assert status["server"]["version"] == server.VERSION
    assert status["server"]["transport"] == "stdio"
    assert status["connection"]["connected"] is True
    assert status["connection"]["broker"] == "mqtt://fake:1883"
    assert status["connection"]["round_trip_ms"] == 0.1
    assert status["broker"] == {"kind": "mosquitto", "version": "mosquitto version 2.0.11"}
    assert status["subscriptions"] == [
        {"subscription_id": "s1", "topic_filter": "a/#", "granted_qos": 2, "received": 0, "dropped": 0}
    ]
    assert status["buffer"] == {"messages": 0, "bytes": 0, "max_messages": 1000, "max_bytes": 1 << 20, "dropped": 0}
    assert status["policy"] == {
        "access": "write",
        "publish_allow": [],
        "publish_deny": [],
        "subscribe_allow": [],
        "subscribe_deny": [],
        "confirm": "destructive",
        "confirm_fallback": "refuse",
        "audit": "off",
        "limits": {"calls_per_s": 2000, "burst": 10000, "concurrent": 100, "under_way": 1, "refused": 0},
    }
    assert status["copilot"] == {
        "configured": False,
        "reachable": None,
        "missing": ["DO_AGENT_API_KEY", "COPILOT_URL"],
    }
    assert status["advice"] == ["Beware."]


async def test_status_of_a_lost_connection_says_why() -> None:
    fake = FakeBroker()
    fake.go_offline("the broker is shutting down")
    async with assistant(build_server(Config(), fake)) as me:
        status = await me.call("server_status", check=True)

    assert status["connection"]["connected"] is False
    assert "the broker is shutting down" in status["connection"]["last_error"]
    assert status["connection"]["gaps"][0]["end"] is None
    assert status["advice"] == [status["connection"]["last_error"]]


async def test_thirty_two_calls_that_wait_do_not_slow_a_cheap_one() -> None:
    fake = FakeBroker()
    async with assistant(build_server(Config(), fake)) as me:
        waiting = [asyncio.create_task(me.call("mqtt_wait", topic_filter=f"x/{n}")) for n in range(32)]
        async with asyncio.timeout(10):
            while len((await me.call("server_status"))["subscriptions"]) + len(fake.feeds) < 32:
                pass
        for number in range(32):
            fake.send(f"x/{number}", b"go")
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*waiting)

    assert all(answer["matched"] for answer in answers)

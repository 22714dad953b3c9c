"""The LoT tools as an assistant uses them, on the development broker's Coreflux personality."""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mcp.client import Client

from backups import Backups
from config import BrokerConfig, Config, Rules
from server import build_server
from simulator.coreflux import ACCOUNTS, Options
from simulator.coreflux import Coreflux as Personality
from simulator.faults import Fault, Wrong
from tests.assistant import ALLOWED, Assistant
from tests.brokers import Embedded, Mosquitto
from tests.child import COMMAND, Child, settings
from tests.test_coreflux import BEAT, CLOSED, FASTER, OPEN, PUMP, connected
from tests.wire import until
from topics import TopicFilter

pytestmark = pytest.mark.anyio

SPREAD = """DEFINE ACTION Spread
INPUT hi AS DOUBLE
INPUT lo AS DOUBLE
DO
    SET "gap" WITH ({hi} - {lo})
RETURN
    OUTPUT gap"""

LONG = "\n".join(f'    PUBLISH TOPIC "long/{number}" WITH "1"' for number in range(20))

FIVE_MISTAKES = """DEFINE ACTION Watch
ON EVERY 5 DO
    SET "x" 5
    PUBLISH TOPIC "a" MESSAGE "b"
    IF {x} > 3
        PUBLISH TOPIC "a" WITH TOPIC POSITION 0
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coreflux._QUIET_S", 0.15)
    monkeypatch.setattr("tools.lot._TRACE_S", 0.3)


@pytest.fixture
def personality() -> Personality:
    return Personality(Options())


@pytest.fixture
def broker(personality: Personality) -> Any:
    with Embedded(personality=personality) as started:
        yield started


@pytest.fixture
async def me(broker: Embedded, tmp_path: Path) -> AsyncIterator[Assistant]:
    async with connected(broker) as client:
        config = Config(access_mode="admin", rules=ALLOWED, broker=BrokerConfig(), state_dir=tmp_path)
        async with Client(build_server(config, client)) as mcp:
            yield Assistant(mcp)


async def fail(me: Assistant, tool: str, **arguments: Any) -> tuple[str, dict[str, Any]]:
    """Call a tool that fails, and return its words and its fields."""
    result = await me.client.call_tool(tool, arguments)
    assert result.is_error, result
    return result.content[0].text, result.structured_content or {}  # type: ignore[union-attr]


async def test_five_mistakes_are_five_problems_at_their_lines(me: Assistant) -> None:
    answer = await me.call("lot_check", code=FIVE_MISTAKES)

    assert {each["line"] for each in answer["problems"] if each["severity"] == "error"} == {2, 3, 4, 5, 6}
    assert answer["verdict"].startswith("5 errors")


async def test_a_clean_text_is_not_called_valid(me: Assistant) -> None:
    answer = await me.call("lot_check", code=SPREAD)

    assert answer["definitions"] == [{"kind": "action", "name": "Spread", "line": 1}]
    assert answer["problems"] == []
    assert answer["verdict"].startswith("no problem found locally")
    assert "valid" not in answer["verdict"]


async def test_a_plan_touches_nothing(me: Assistant, personality: Personality, tmp_path: Path) -> None:
    answer = await me.call("lot_deploy", code=f"{BEAT}\n\n{PUMP}", dry_run=True)

    assert [(step["kind"], step["name"], step["change"]) for step in answer["plan"]] == [
        ("model", "Pump", "create"),
        ("action", "Beat", "create"),
    ]
    assert (answer["applied"], answer["backup_id"]) == ([], None)
    assert personality.entities() == {}
    assert not (tmp_path / "backups").exists()


async def test_what_was_deployed_is_listed_shown_run_and_removed(me: Assistant, personality: Personality) -> None:
    deployed = await me.call("lot_deploy", code=SPREAD)
    listed = await me.call("lot_list", kind="action")
    shown = await me.call("lot_show", kind="action", name="Spread")
    ran = await me.call("lot_run_action", name="Spread", arguments={"hi": 5, "lo": 3})
    removed = await me.call("lot_remove", kind="action", name="Spread")

    assert deployed["applied"] == ["action Spread"]
    assert [each["name"] for each in listed["entities"]] == ["Spread"]
    assert listed["complete"]
    assert shown["code"] == SPREAD
    assert ran["success"]
    assert ran["data"]["status"] == "success"
    assert removed["removed"]
    assert personality.entities() == {}


async def test_text_with_errors_is_not_sent(me: Assistant, personality: Personality) -> None:
    words, answer = await fail(me, "lot_deploy", code=FIVE_MISTAKES)

    assert "nothing was sent" in words
    assert len([each for each in answer["problems"] if each["severity"] == "error"]) == 5
    assert personality.entities() == {}


@pytest.mark.parametrize("code", ["", "hello", f"{BEAT}\n\n{BEAT}"])
async def test_text_that_cannot_be_deployed_is_refused(me: Assistant, code: str) -> None:
    result = await me.client.call_tool("lot_deploy", {"code": code})

    assert result.is_error


async def test_a_failed_deployment_is_an_error_that_says_what_was_put_back(
    me: Assistant, personality: Personality
) -> None:
    await me.call("lot_deploy", code=f"{BEAT}\n\n{CLOSED}")
    before = personality.entities()
    personality.inject(Fault(Wrong.FAILING, "AddRule"))
    words, answer = await fail(me, "lot_deploy", code=f"{FASTER}\n\n{OPEN}")

    assert "put back" in words
    assert (answer["rolled_back"], answer["applied"]) == (True, [])
    assert {"severity": "error", "line": 2, "column": 9, "rule": "broker"}.items() <= answer["problems"][-1].items()
    assert personality.entities() == before


async def test_what_cannot_be_put_back_is_said(me: Assistant, personality: Personality) -> None:
    await me.call("lot_deploy", code=CLOSED)
    personality.inject(Fault(Wrong.FAILING, "AddRule", times=2))
    words, answer = await fail(me, "lot_deploy", code=OPEN)

    assert "NOT everything could be put back" in words
    assert not answer["rolled_back"]
    assert any("did not end" in each for each in (await me.call("server_status"))["advice"])


async def test_a_login_that_may_not_see_what_runs_deploys_nothing(broker: Embedded, personality: Personality) -> None:
    async with (
        connected(broker, "keeper") as client,
        Client(build_server(Config(access_mode="admin", rules=ALLOWED), client)) as mcp,
    ):
        words = await Assistant(mcp).fail("lot_deploy", code=BEAT)

    assert "AllowedSystemConfiguration" in words
    assert "nothing was sent" in words
    assert personality.entities() == {}


async def test_an_entity_that_is_not_there_is_an_error(me: Assistant) -> None:
    assert "no action" in await me.fail("lot_show", kind="action", name="Nobody")
    assert "no action" in await me.fail("lot_remove", kind="action", name="Nobody")
    assert "Nobody" in await me.fail("lot_run_action", name="Nobody")


async def test_a_diagnosis_has_the_last_error_and_the_next_runs(me: Assistant, personality: Personality) -> None:
    personality.inject(Fault(Wrong.ERROR_TOPIC, "AddAction", text="division by zero"))
    await me.call("coreflux_command", command=f"-addAction {BEAT}")
    answer = await me.call("lot_diagnose", kind="action", name="Beat")

    assert answer["error"] == "division by zero"
    assert "Beat" in json.dumps(answer["report"])


async def test_what_an_action_does_on_closed_topics_is_not_told(broker: Embedded, tmp_path: Path) -> None:
    rules = Rules(fallback="allow", subscribe_deny=(TopicFilter("secret/#"),))
    config = Config(access_mode="admin", rules=rules, broker=BrokerConfig(), state_dir=tmp_path)
    async with connected(broker) as client, Client(build_server(config, client)) as mcp:
        me = Assistant(mcp)
        await me.call("lot_deploy", code=BEAT.replace('"beat"', '"secret/beat"'))
        diagnosing = asyncio.create_task(me.call("lot_diagnose", kind="action", name="Beat"))
        while not (await me.call("coreflux_command", command="-actionTrace status"))["data"]:
            await asyncio.sleep(0)
        ran = await me.call("lot_run_action", name="Beat", arguments={"topic": "secret/x", "payload": "4711"})
        diagnosis = await diagnosing

    (published,) = ran["data"]["published"]
    assert published == {"topic": "secret/beat", "left_out": "SUBSCRIBE_ALLOW or SUBSCRIBE_DENY closes this topic"}
    assert len(diagnosis["trace"]) == 1
    assert "secret/beat" in json.dumps(diagnosis["trace"])
    assert "4711" not in json.dumps(diagnosis["trace"])


async def test_a_removal_that_the_broker_refuses_is_over(me: Assistant, personality: Personality) -> None:
    await me.call("lot_deploy", code=BEAT)
    personality.inject(Fault(Wrong.FAILING, "RemoveAction"))
    await me.fail("lot_remove", kind="action", name="Beat")

    assert not any("did not end" in each for each in (await me.call("server_status"))["advice"])


@pytest.mark.parametrize("name", ["Größe", "a.b", "9x"])
async def test_a_name_that_no_broker_takes_is_found_before_anything_is_sent(
    me: Assistant, personality: Personality, name: str
) -> None:
    words = await me.fail("lot_deploy", code=f"{BEAT}\n\n{BEAT.replace('Beat', name)}")

    assert "put back" not in words
    assert personality.entities() == {}


async def test_a_large_plan_is_cut_to_what_an_answer_may_have(me: Assistant) -> None:
    code = "\n\n".join(BEAT.replace("Beat", f"Beat{number}") + "\n" + LONG for number in range(60))
    answer = await me.call("lot_deploy", code=code, dry_run=True)

    assert len(json.dumps(answer)) <= 16 * 1024
    assert answer["omitted"] > 0
    assert len(answer["plan"]) == 60


async def test_a_command_that_the_broker_refuses_is_an_error(me: Assistant) -> None:
    assert "Unknown command" in await me.fail("coreflux_command", command="-nonsense")


async def test_the_command_topic_is_not_published_to_by_hand(me: Assistant) -> None:
    for tool in ("mqtt_publish", "mqtt_request"):
        assert "lot_ tools" in await me.fail(tool, topic="$SYS/Coreflux/Command", payload="-removeAllActions")


async def test_a_broker_of_another_make_is_told(mosquitto: Mosquitto, tmp_path: Path) -> None:
    async with connected(mosquitto, "") as client:
        config = Config(access_mode="admin", rules=ALLOWED, state_dir=tmp_path)
        async with Client(build_server(config, client)) as mcp:
            me = Assistant(mcp)
            for tool, arguments in (
                ("coreflux_command", {"command": "-listRoutes"}),
                ("lot_run_action", {"name": "Beat"}),
                ("lot_deploy", {"code": BEAT}),
                ("lot_list", {}),
            ):
                assert "no Coreflux" in await me.fail(tool, **arguments)
    assert not (tmp_path / "backups").exists()


async def test_the_next_start_says_what_a_killed_server_left(tmp_path: Path) -> None:
    backup = Backups(tmp_path / "coreflux-mcp" / "backups").create("mqtt://127.0.0.1:9", "deploy", [])
    async with Child(settings(XDG_STATE_HOME=str(tmp_path), HOME=str(tmp_path))) as child:
        advice = (await child.call("server_status"))["advice"]

        assert f"backups show {backup.id}" in child.stderr
        assert any(backup.id in each for each in advice)


def run(broker: Embedded, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command for people."""
    environment = settings() | {
        "MQTT_BROKER": f"{broker.host}:{broker.port}",
        "MQTT_USER": "root",
        "MQTT_PASSWORD": ACCOUNTS["root"].password,
        "XDG_STATE_HOME": str(home),
        "HOME": str(home),
    }
    return subprocess.run(
        [*COMMAND, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.skipif(os.name != "posix", reason="the folder is named by XDG_STATE_HOME")
async def test_what_a_server_left_that_was_killed_in_a_deployment_can_be_restored(
    broker: Embedded, personality: Personality, tmp_path: Path
) -> None:
    login = {"MQTT_USER": "root", "MQTT_PASSWORD": ACCOUNTS["root"].password}
    environment = settings(broker, XDG_STATE_HOME=str(tmp_path), HOME=str(tmp_path), **login)
    async with Child(environment) as child:
        await child.call("lot_deploy", code=BEAT)
        personality.inject(Fault(Wrong.NEVER_APPEARS, "AddAction"))
        child.start_call("lot_deploy", code=FASTER)
        await until(lambda: personality.entities() == {("Action", "Beat"): FASTER})
        child.signal(signal.SIGKILL)
    async with Child(environment) as again:
        (advice,) = [each for each in (await again.call("server_status"))["advice"] if "did not end" in each]
    restored = run(broker, tmp_path, *advice.rpartition("server.py ")[2].split())

    assert restored.returncode == 0, restored
    assert personality.entities() == {("Action", "Beat"): BEAT}


@pytest.mark.skipif(os.name != "posix", reason="the folder is named by XDG_STATE_HOME")
async def test_a_person_can_list_show_and_restore_backups(
    broker: Embedded, personality: Personality, tmp_path: Path
) -> None:
    async with connected(broker) as client:
        config = Config(access_mode="admin", rules=ALLOWED, state_dir=tmp_path / "coreflux-mcp")
        async with Client(build_server(config, client)) as mcp:
            me = Assistant(mcp)
            await me.call("lot_deploy", code=BEAT)
            backup_id = (await me.call("lot_deploy", code=FASTER))["backup_id"]
    listed = run(broker, tmp_path, "backups", "list")
    shown = run(broker, tmp_path, "backups", "show", backup_id)
    restored = run(broker, tmp_path, "backups", "restore", backup_id)

    assert backup_id in listed.stdout
    assert "ON EVERY 5 SECONDS" in shown.stdout
    assert restored.returncode == 0, restored
    assert personality.entities() == {("Action", "Beat"): BEAT}
    assert run(broker, tmp_path, "backups", "restore").returncode == 1

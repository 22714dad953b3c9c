"""What an assistant can read, what a person can start from, and the names it can complete."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp.types import PromptReference, ResourceTemplateReference, TextResourceContents

from config import Bounds, Config
from resources import DIAGNOSIS, PAGES, SOURCE
from server import build_server
from tests.assistant import ERAS
from tests.fake_broker import FakeBroker
from tests.test_coreflux import BEAT, PUMP

pytestmark = pytest.mark.anyio

ROOT = "$SYS/Coreflux"
TEMPLATE = ResourceTemplateReference(type="ref/resource", uri=SOURCE)
PROMPT = PromptReference(type="ref/prompt", name=DIAGNOSIS)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coreflux._QUIET_S", 0.03)
    monkeypatch.setattr("identity._WAIT_S", 0.03)


@pytest.fixture
def broker() -> FakeBroker:
    fake = FakeBroker()
    fake.send(f"{ROOT}/Actions/Beat", BEAT.encode(), retain=True)
    fake.send(f"{ROOT}/Models/Pump", PUMP.encode(), retain=True)
    fake.send(f"{ROOT}/VoT/Panels/Pump Room", b"DEFINE PANEL", retain=True)
    fake.send(f"{ROOT}/Actions/hidden\u202e", BEAT.encode(), retain=True)
    return fake


@pytest.fixture(params=ERAS)
async def client(broker: FakeBroker, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    async with Client(build_server(Config(bounds=Bounds(result_max_bytes=4096)), broker), mode=request.param) as mcp:
        yield mcp


async def read(client: Client, uri: str) -> str:
    (content,) = (await client.read_resource(uri)).contents
    assert isinstance(content, TextResourceContents)
    return content.text


async def names(client: Client, ref: Any, value: str = "", **given: str) -> list[str]:
    answer = await client.complete(ref, {"name": "name", "value": value}, context_arguments=given)
    return answer.completion.values


async def test_each_page_of_the_reference_is_a_resource_that_says_what_it_is_about(client: Client) -> None:
    found = (await client.list_resources()).resources

    assert {str(each.uri) for each in found} == {f"lot://reference/{path.stem}" for path in PAGES.glob("*.md")}
    for each in found:
        text = await read(client, str(each.uri))
        assert each.description
        assert len(each.description) <= 120
        assert text.startswith(f"# {(each.title or '').removeprefix('LoT: ')}\n\n{each.description}\n")


async def test_the_source_of_what_runs_can_be_read(client: Client) -> None:
    assert await read(client, "coreflux://action/Beat") == BEAT
    assert await read(client, "coreflux://panel/Pump%20Room") == "DEFINE PANEL"


@pytest.mark.parametrize(
    "uri", ["coreflux://action/Nobody", "coreflux://nothing/Beat", "coreflux://action/-a%20b", "coreflux://python/x"]
)
async def test_a_source_that_is_not_there_is_an_error(client: Client, uri: str) -> None:
    with pytest.raises(MCPError) as refused:
        await client.read_resource(uri)

    assert refused.value.code in (-32602, -32002)


async def test_a_source_that_cannot_be_read_is_an_error_with_the_reason(client: Client, broker: FakeBroker) -> None:
    broker.send(f"{ROOT}/Actions/Long", BEAT.encode() * 100, retain=True)
    with pytest.raises(MCPError, match="RESULT_MAX_BYTES"):
        await client.read_resource("coreflux://action/Long")
    broker.go_offline()
    with pytest.raises(MCPError, match="Not connected"):
        await client.read_resource("coreflux://action/Beat")


@pytest.mark.parametrize("kind", ["action", "model", "rule", "route"])
async def test_a_prompt_to_write_brings_the_task_the_steps_and_the_reference(client: Client, kind: str) -> None:
    answer = await client.get_prompt(f"write_{kind}", {"task": "count the pumps"})
    text = "".join(message.content.text for message in answer.messages if message.content.type == "text")

    assert "count the pumps" in text
    assert "lot_check" in text
    assert "only after I said yes" in text
    assert (PAGES / f"{kind}.md").read_text("utf-8") in text


async def test_a_server_that_only_reads_does_not_talk_of_deploying(broker: FakeBroker) -> None:
    async with Client(build_server(Config(access_mode="read"), broker)) as mcp:
        answer = await mcp.get_prompt("write_action", {"task": "x"})

    assert "lot_deploy" not in str(answer.messages).split("# ")[0]


async def test_a_prompt_to_find_a_fault_names_what_to_look_at(client: Client) -> None:
    for kind in ("action", "model", "rule", "route"):
        answer = await client.get_prompt(DIAGNOSIS, {"kind": kind, "name": "Beat"})
        assert f"the {kind} Beat" in str(answer.messages)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("write_action", {}),
        ("write_action", {"task": "x", "more": "y"}),
        ("write_poem", {"task": "x"}),
        (DIAGNOSIS, {"kind": "action", "name": "a b; -removeAllActions"}),
        (DIAGNOSIS, {"kind": "thing", "name": "Beat"}),
    ],
)
async def test_a_prompt_that_cannot_be_is_the_callers_mistake(
    client: Client, name: str, arguments: dict[str, str]
) -> None:
    with pytest.raises(MCPError) as refused:
        await client.get_prompt(name, arguments)

    assert refused.value.code == -32602


async def test_kinds_and_names_are_completed(client: Client) -> None:
    kinds = await client.complete(TEMPLATE, {"name": "kind", "value": "r"})

    assert kinds.completion.values == ["rule", "route"]
    assert await names(client, TEMPLATE, kind="action") == ["Beat"]  # nothing that is no name
    assert await names(client, TEMPLATE, "Pu") == ["Pump", "Pump Room"]
    assert await names(client, PROMPT, "Pu", kind="model") == ["Pump"]
    assert await names(client, PROMPT, "x") == []


async def test_what_cannot_be_completed_is_no_error(client: Client, broker: FakeBroker) -> None:
    broker.go_offline()

    assert await names(client, TEMPLATE, kind="action") == []
    other = await client.complete(
        PromptReference(type="ref/prompt", name="write_action"), {"name": "task", "value": ""}
    )
    assert other.completion.values == []
    with pytest.raises(MCPError) as refused:
        await client.complete(PromptReference(type="ref/prompt", name="write_poem"), {"name": "task", "value": ""})
    assert refused.value.code == -32602


async def test_more_names_than_a_completion_may_have_are_counted(broker: FakeBroker) -> None:
    for number in range(150):
        broker.send(f"{ROOT}/Rules/R{number}", b"DEFINE RULE", retain=True)
    async with Client(build_server(Config(), broker)) as mcp:
        asked = await mcp.complete(TEMPLATE, {"name": "name", "value": "R"}, context_arguments={"kind": "rule"})
    answer = asked.completion

    assert (len(answer.values), answer.total, answer.has_more) == (100, 150, True)


async def test_completion_at_every_keystroke_asks_the_broker_once(broker: FakeBroker) -> None:
    async with Client(build_server(Config(), broker)) as mcp:
        await names(mcp, TEMPLATE, kind="action")
        broker.retained.clear()
        async with asyncio.timeout(5):
            assert await names(mcp, TEMPLATE, "B", kind="action") == ["Beat"]

"""What comes from the broker or the Copilot stays data: hostile texts through every answer of the server.

`PLACES` says where in which answer such a text may stand; anywhere else it is a fault.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp.client import Client
from mcp.types import ElicitResult, ResourceTemplateReference, TextContent, TextResourceContents
from pydantic import BaseModel, SecretStr

from audit import Audit
from config import AuditConfig, Config, CopilotConfig, Rules
from server import build_server
from tests.assistant import ALLOWED, ERAS, Era
from tests.brokers import Embedded
from tests.brokers import publish as publish_to
from tests.child import Child
from tests.child import settings as settings_of
from tests.doubles.copilot import CHAT, Answer, CopilotDouble
from tests.fake_broker import FakeBroker
from tests.hostile import Hostile, Peer, Sent
from tests.hostile_texts import BENIGN, MARK, PAYLOADS, TEXTS, as_payload, as_topic
from tests.raw_client import Kind, encode_properties, packet
from tests.test_coreflux import BEAT, connected
from tools import copilot as copilot_tools
from tools import lot, messaging, status
from tools.answers import visible
from topics import shown

pytestmark = pytest.mark.anyio

ROOM = 16 << 10
SLACK = 1 << 10
QUOTED = re.compile(r"(?<!\w)(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")", re.DOTALL)
ROOT = "$SYS/Coreflux/Actions"
ENDLESS = 30
Places = dict[str, tuple[type[BaseModel], set[str]]]

PLACES: Places = {
    "server_status": (
        status.Status,
        {
            "connection.last_error",
            "connection.gaps[].cause",
            "broker.version",
            "advice[]",
            "subscriptions[].topic_filter",
            "subscriptions[].refused",
        },
    ),
    "mqtt_topics": (messaging.TopicsSeen, {"topics[].topic", "topics[].sample"}),
    "mqtt_read": (messaging.ValuesRead, {"messages[].topic", "messages[].payload*"}),
    "mqtt_subscribe": (messaging.Subscribed, {"topic_filter"}),
    "mqtt_messages": (
        messaging.Messages,
        {"messages[].topic", "messages[].payload*", "messages[].properties*", "stats[].topic"},
    ),
    "mqtt_unsubscribe": (messaging.Unsubscribed, {"topic_filter"}),
    "mqtt_wait": (messaging.Waited, {"messages[].topic", "messages[].payload*"}),
    "mqtt_publish": (messaging.PublishedAnswer, {"topic", "replaced.topic", "replaced.payload", "reason"}),
    "mqtt_request": (messaging.Responded, {"response.payload*"}),
    "mqtt_clear_retained": (
        messaging.Cleared,
        {"topics[]", "removed[].topic", "removed[].payload", "failed[].topic", "failed[].reason"},
    ),
    "lot_list": (
        lot.Entities,
        {"entities[].name", "entities[].description", "entities[].status", "entities[].error"},
    ),
    "lot_show": (lot.Source, {"code", "description", "error"}),
    "lot_check": (lot.Checked, {"problems[].message"}),
    "lot_deploy": (lot.Deployed, {"plan[].diff", "problems[].message"}),
    "lot_remove": (lot.Removed, set()),
    "lot_run_action": (lot.Ran, {"message", "data*", "errors*"}),
    "lot_diagnose": (lot.Diagnosis, {"report*", "error", "trace*"}),
    "coreflux_command": (lot.Ran, {"message", "data*", "errors*"}),
    "copilot_ask": (
        copilot_tools.Asked,
        {"answer", "sources[].id", "sources[].filename", "finish_reason", "notes[]", "sent_along[]"},
    ),
    "copilot_generate_lot": (
        copilot_tools.Generated,
        {"code", "problems[].message", "explanation", "finish_reason", "notes[]"},
    ),
}
"""By tool: its answer, and the fields that may hold what others wrote. A star: all below it, names of fields too."""

ELSEWHERE = {
    "mqtt_clear_retained": {"failed[].topic", "failed[].reason"},
    "mqtt_publish": {"reason"},
    "copilot_generate_lot": {"problems[].message"},
}
"""Fields that a text which is not hostile does not reach whole: only others are refused, a problem quotes a word."""


def strings(value: Any, path: str = "") -> Iterator[tuple[str, str, bool]]:
    """Walk the texts of a value, each with its place and whether it is the name of a field."""
    if isinstance(value, str):
        yield path, value, False
    elif isinstance(value, list):
        for each in value:
            yield from strings(each, f"{path}[]")
    elif isinstance(value, dict):
        for key, each in value.items():
            inner = f"{path}.{key}".lstrip(".")
            yield inner, key, True
            yield from strings(each, inner)


def fields_of(schema: dict[str, Any], node: dict[str, Any], path: str = "") -> Iterator[str]:
    """List the places that a schema has."""
    node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    for choice in node.get("anyOf", []):
        yield from fields_of(schema, choice, path)
    if "items" in node:
        yield from fields_of(schema, node["items"], f"{path}[]")
    for name, each in node.get("properties", {}).items():
        inner = f"{path}.{name}".lstrip(".")
        yield inner
        yield from fields_of(schema, each, inner)
    if node.get("additionalProperties"):
        yield f"{path}*"


class Exchange:
    """A client, what it did, and what was wrong with what it was sent."""

    def __init__(self, client: Client, broker: FakeBroker, copilot: CopilotDouble) -> None:
        self.client = client
        self.broker = broker
        self.copilot = copilot
        self.name = "all at once"
        """Of the text that is being sent."""
        self.faults: set[str] = set()
        self.reached: set[str] = set()
        """Where the text that is not hostile came out unchanged."""

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool whatever comes of it, and look at the answer."""

        async def note(progress: float, total: float | None, message: str | None) -> None:
            self.look_at(f"{tool} progress", message or "")

        async with asyncio.timeout(ENDLESS):
            result = await self.client.call_tool(tool, arguments, progress_callback=note)
        (block,) = result.content
        assert isinstance(block, TextContent)
        self.look_at(tool, block.text)
        if len(block.text.encode()) > arguments.get("max_bytes", ROOM) + SLACK:
            self._fault(f"{tool}: {len(block.text.encode())} bytes")
        if result.is_error:
            if MARK in QUOTED.sub("", block.text):
                self._fault(f"{tool}: not quoted in an error")
            if re.fullmatch(r"Error executing tool \w+", block.text):
                self._fault(f"{tool}: it failed inside")
        else:
            self._is_the_same(tool, block.text, result.structured_content)
        if result.structured_content is not None:
            self._look_into(tool, result.structured_content)
        return result.structured_content or {}

    def _is_the_same(self, tool: str, text: str, structured: Any) -> None:
        try:
            said = json.loads(text, parse_constant=pytest.fail)
        except (ValueError, pytest.fail.Exception) as exc:
            self._fault(f"{tool}: the text is no JSON: {str(exc)[:80]}")
            return
        if said != structured:
            self._fault(f"{tool}: text and structure differ")
        if len(text.splitlines()) != 1:
            self._fault(f"{tool}: more than one line")

    def _look_into(self, tool: str, structured: dict[str, Any]) -> None:
        model, places = PLACES[tool]
        schema = model.model_json_schema(mode="serialization")
        known = {each.rstrip("*") for each in fields_of(schema, schema)}
        free = tuple(each.rstrip("*") for each in places if each.endswith("*"))
        open_maps = tuple(each.rstrip("*") for each in fields_of(schema, schema) if each.endswith("*"))
        for path, text, is_name in strings(structured):
            self.look_at(f"{tool} {path[:80]}", text)
            below = next((each for each in free if path == each or path.startswith((f"{each}.", f"{each}["))), None)
            if below is None and is_name and path not in known and not path.startswith(open_maps or ("?",)):
                self._fault(f"{tool}: there is a field {path[:80]}")
            place = f"{below}*" if below else path
            if BENIGN in text and not is_name:
                self.reached.add(place)
            if MARK in text and (place not in places or (is_name and below is None)):
                self._fault(f"{tool}: {'the name of a field in ' if is_name else ''}{path[:60]}")

    def look_at(self, where: str, text: str) -> None:
        """Look for what should be shown as an escape."""
        if visible(text) != text:
            (first, *_) = (character for character in text if visible(character) != character)
            self._fault(f"{where}: U+{ord(first):04X} is not shown as an escape")

    def _fault(self, what: str) -> None:
        self.faults.add(f"{self.name}: {what}")

    def each(self) -> Iterator[str]:
        """Go through the texts."""
        for self.name, text in TEXTS.items():
            yield text
        self.name = "all at once"

    async def later(self, messages: list[tuple[str, bytes]]) -> None:
        """Publish as devices do, when somebody listens."""
        while not self.broker.feeds:
            await asyncio.sleep(0)
        for topic, payload in messages:
            self.broker.send(topic, payload)


def everything() -> list[tuple[str, bytes]]:
    """Make a message of every text, and one with every text as its topic."""
    found = [(as_topic(text), as_payload(text)) for text in TEXTS.values()]
    return [(topic, payload) for topic, payload in found if topic] + [(f"p/{n}", p) for n, p in PAYLOADS.items()]


async def look_at_status(x: Exchange) -> None:
    for text in x.each():
        x.broker.state.connections += 1
        x.broker.send("$SYS/broker/version", as_payload(text), retain=True)
        await x.call("server_status")
        x.broker.go_offline(shown(text))  # as every reason of a broker is written
        await x.call("server_status")
        x.broker.come_back()
        if len(text) < 200 and not (await x.call("mqtt_subscribe", topic_filter=as_topic(text))):
            x.broker.inbox.gaps.clear()
    for subscription in x.broker.inbox.subscriptions.values():
        subscription.refusal = f"The broker refused it: {shown(subscription.topic_filter.text)}"
    await x.call("server_status")


async def look_around(x: Exchange) -> None:
    for topic, payload in everything():
        x.broker.send(topic, payload, retain=True)
    page = await x.call("mqtt_topics", listen_s=0.05)
    while cursor := page["next_cursor"]:
        page = await x.call("mqtt_topics", after=cursor)


async def read(x: Exchange) -> None:
    for topic, payload in everything():
        x.broker.send(topic, payload, retain=True)
    await x.call("mqtt_read", topic_filter="#", timeout_s=0.1)
    await x.call("mqtt_read", topic_filter="#", timeout_s=0.1, limit=1000, max_bytes=1 << 20)
    for text in x.each():
        x.broker.refused = {as_topic(text)[:200]}
        await x.call("mqtt_read", topic_filter=as_topic(text)[:200], timeout_s=0.1)
        await x.call("mqtt_read", topic_filter=f"{text}/#/#", timeout_s=0.1)


async def subscribe(x: Exchange) -> None:
    for text in x.each():
        await x.call("mqtt_subscribe", topic_filter=as_topic(text))
        await x.call("mqtt_subscribe", topic_filter=f"{text}#")


async def messages(x: Exchange) -> None:
    subscription = (await x.call("mqtt_subscribe", topic_filter="#"))["subscription_id"]
    for topic, payload in everything():
        text = payload.decode(errors="replace")
        more = {"content_type": text, "user_properties": [(text, text)], "response_topic": topic}
        x.broker.send(topic, payload, properties={**more, "correlation_data": payload})
    x.broker.send("small", b"1", properties={"content_type": BENIGN})
    for mode in ("full", "latest", "changes", "stats"):
        after, remaining, most = None, 1, 1024
        while remaining and (most == 1024 or mode == "full"):
            given = {"subscription_id": subscription, "mode": mode, "after": after, "max_bytes": most}
            answer = await x.call("mqtt_messages", **given)
            after, remaining, most = answer["next_cursor"], answer["remaining"], 1 << 20
    await x.call("mqtt_messages", topic_filter=BENIGN, mode="stats")
    for _ in range(2):
        x.broker.send("great", b"1e308")
    await x.call("mqtt_messages", topic_filter="great", mode="stats")
    for text in x.each():
        await x.call("mqtt_messages", subscription_id=text)
        await x.call("mqtt_messages", subscription_id=subscription, after=text)


async def unsubscribe(x: Exchange) -> None:
    for text in x.each():
        made = await x.call("mqtt_subscribe", topic_filter=as_topic(text))
        await x.call("mqtt_unsubscribe", subscription_id=made.get("subscription_id", text))


async def wait(x: Exchange) -> None:
    for some in (everything()[:1], everything()):
        sending = asyncio.create_task(x.later(some))
        await x.call("mqtt_wait", topic_filter="#", count=len(some), timeout_s=5)
        await sending
    for text in x.each():
        await x.call("mqtt_wait", topic_filter="t", condition={"path": f"{text[:900]}[", "op": "exists"}, timeout_s=0.1)


async def publish(x: Exchange) -> None:
    for text in x.each():
        x.broker.send(as_topic(text), as_payload(text), retain=True)
        x.broker.refused = {as_topic(text)[:200]}
        for topic, payload in (as_topic(text)[:200], text), (as_topic(text), "1"):
            await x.call("mqtt_publish", topic=topic, payload=payload, retain=True)
            x.broker.refused = set()


async def request(x: Exchange) -> None:
    for text in x.each():

        def respond(_topic: str, _payload: bytes, properties: Any, text: str = text) -> None:
            if properties.response_topic:
                x.broker.send(properties.response_topic, as_payload(text))

        x.broker.respond = respond
        await x.call("mqtt_request", topic="t", payload="1", timeout_s=1)


async def clear(x: Exchange) -> None:
    for some in (everything()[:1], everything()):
        for dry_run in (True, False):
            for topic, payload in some:
                x.broker.send(topic, payload, retain=True)
            await x.call("mqtt_clear_retained", topic_filter="#", dry_run=dry_run, limit=1000)
            x.broker.retained.clear()
        x.broker.refused = {TEXTS["plain order"]}


def replying(x: Exchange, text: str, *, success: bool = True) -> None:
    """Have the broker be one of Coreflux, which says the text wherever it says anything."""
    raw = json.dumps(text)
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        data = raw
    else:
        data = text

    def respond(_topic: str, payload: bytes, _properties: Any) -> None:
        request_id = payload.decode().rpartition(" ")[2]
        said = success or b"-listRoutes" in payload
        reply = f'{{"success":{json.dumps(said)},"requestId":"{request_id}","message":{raw},"data":{data}'
        x.broker.send("$SYS/Coreflux/Command/Output", f'{reply},"errors":[{{"message":{raw}}}]}}'.encode())
        if b"-actionTrace" in payload:
            x.broker.send(f"{ROOT}/Beat/Trace", as_payload(text))

    x.broker.respond = respond
    x.broker.retained.clear()
    for part in ("", "/Description", "/Error"):
        x.broker.send(f"{ROOT}/Beat{part}", as_payload(text), retain=True)


async def entities(x: Exchange) -> None:
    for number, text in enumerate(TEXTS.values()):
        for part in ("", "/Description", "/Error"):
            x.broker.send(f"{ROOT}/A{number:03}{part}", as_payload(text), retain=True)
        x.broker.send(f"$SYS/Coreflux/Routes/R{number:03}", b"code", retain=True)
        state = text if number % 2 else json.dumps({"connection": text, "health": 1})
        x.broker.send(f"$SYS/Coreflux/Routes/R{number:03}/status", as_payload(state), retain=True)
        x.broker.send(f"$SYS/Coreflux/VoT/Panels/{number:03}{as_topic(text).replace('/', '')}", b"code", retain=True)
    for kind in ("action", "route", "panel"):
        await x.call("lot_list", kind=kind)


async def entity(x: Exchange) -> None:
    for text in x.each():
        replying(x, text)
        await x.call("lot_show", kind="action", name="Beat")
        await x.call("lot_show", kind="action", name=text[:200])


async def check(x: Exchange) -> None:
    for text in x.each():
        finding = {"message": text, "line": 1}
        x.copilot.verdict(as_ascii({"valid": False, "errors": [finding], "warnings": [finding]}))
        await x.call("lot_check", code=f'DEFINE ACTION A\nON START DO\n    PUBLISH TOPIC "a" WITH "b" {text}')
        await x.call("lot_check", code=f"DEFINE ACTION A\nON STRT DO\n    {text[:300]}\n" * 100)
        x.copilot.verdict(as_ascii({"message": text}, 400))
        await x.call("lot_check", code=text)


async def deployment(x: Exchange) -> None:
    for text in x.each():
        replying(x, text, success=False)
        await x.call("lot_deploy", code=BEAT, dry_run=True)
        await x.call("lot_deploy", code=BEAT)


async def removal(x: Exchange) -> None:
    for text in x.each():
        for success in (True, False):
            replying(x, text, success=success)
            await x.call("lot_remove", kind="action", name="Beat")


async def action(x: Exchange) -> None:
    for text in x.each():
        for success in (True, False):
            replying(x, text, success=success)
            await x.call("lot_run_action", name="Beat", arguments={"a": 1})


async def diagnosis(x: Exchange) -> None:
    for text in x.each():
        replying(x, text)
        await x.call("lot_diagnose", kind="action", name="Beat")


async def command(x: Exchange) -> None:
    for text in x.each():
        for success in (True, False):
            replying(x, text, success=success)
            await x.call("coreflux_command", command="-listUsers")


def as_ascii(value: object, status: int = 200) -> Answer:
    """Answer with JSON in which everything unusual is escaped, lone surrogates too."""
    return Answer(status, {"Content-Type": "application/json"}, json.dumps(value).encode())


def completed(text: str, content: str | None, reason: str = "stop", **more: object) -> Answer:
    """Answer as the Copilot does, with the text in all that it says beside the content."""
    return as_ascii(
        {
            "choices": [{"message": {"content": content, **more}, "finish_reason": reason}],
            "retrieval": {"retrieved_data": [{"id": text, "filename": text, "page": 1, "score": 0.5}]},
            "guardrails": {"triggered_guardrails": [{"message": text, "rule_name": text}]},
        }
    )


def scored(score: str) -> Answer:
    """Answer with a source whose score is written like this."""
    answer = completed("x", "x").content.decode().replace("0.5", score)
    return Answer(200, {"Content-Type": "application/json"}, answer.encode())


async def question(x: Exchange) -> None:
    for text in x.each():
        replying(x, text)
        x.broker.send(as_topic(text), as_payload(text), retain=True)
        x.copilot.answer(
            completed(text, text, text),
            completed(text, None, refusal=text),
            as_ascii({"message": text}, 400),
            as_ascii({"detail": [{"msg": text}]}, 422),
            completed(text, "yes"),
        )
        for _ in range(4):
            await x.call("copilot_ask", question="?", include_entities=["action/Beat"])
        await x.call("copilot_ask", question="?", include_topics=[as_topic(text)])
    for score in ("NaN", "1e999", "-Infinity", "1" * 400, "true", '"high"'):
        x.copilot.answer(scored(score))
        await x.call("copilot_ask", question="?")


async def generation(x: Exchange) -> None:
    for text in x.each():
        x.copilot.answer(completed(text, f"```lot\n{BEAT}\n```\n{text}", text))
        await x.call("copilot_generate_lot", task="?")
        x.copilot.answer(completed(text, f"```lot\n{BEAT} {text}\n```\n", text))
        await x.call("copilot_generate_lot", task="?")


DRIVERS: dict[str, Callable[[Exchange], Awaitable[None]]] = {
    "server_status": look_at_status,
    "mqtt_topics": look_around,
    "mqtt_read": read,
    "mqtt_subscribe": subscribe,
    "mqtt_messages": messages,
    "mqtt_unsubscribe": unsubscribe,
    "mqtt_wait": wait,
    "mqtt_publish": publish,
    "mqtt_request": request,
    "mqtt_clear_retained": clear,
    "lot_list": entities,
    "lot_show": entity,
    "lot_check": check,
    "lot_deploy": deployment,
    "lot_remove": removal,
    "lot_run_action": action,
    "lot_diagnose": diagnosis,
    "coreflux_command": command,
    "copilot_ask": question,
    "copilot_generate_lot": generation,
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "coreflux._QUIET_S",
        "identity._WAIT_S",
        "deployment.APPEAR_TIMEOUT_S",
        "tools.lot._TRACE_S",
        "deployment._LOOK_AGAIN_S",
    ):
        monkeypatch.setattr(name, 0.01)
    monkeypatch.setattr("tools.messaging._QUIET_S", 0.02)
    monkeypatch.setattr("tools.messaging._FIRST_S", 0.02)
    monkeypatch.setattr("tools.copilot._VALUES_WITHIN_S", 0.02)


@asynccontextmanager
async def exchange(tmp_path: Path, era: Era = "auto", **more: Any) -> AsyncIterator[Exchange]:
    broker = FakeBroker(max_bytes=1 << 26)
    async with CopilotDouble() as copilot:
        known = CopilotConfig(url=copilot.url + CHAT, key=SecretStr(copilot.key), verifier_url=f"{copilot.url}/verify")
        config = Config(**{"access_mode": "admin", "rules": ALLOWED, "state_dir": tmp_path, "copilot": known, **more})
        async with Client(build_server(config, broker), mode=era) as client:
            yield Exchange(client, broker, copilot)


@pytest.mark.parametrize("tool", DRIVERS)
async def test_it_stays_in_its_field(tool: str, tmp_path: Path) -> None:
    async with exchange(tmp_path) as x:
        await DRIVERS[tool](x)
        await x.call("server_status")

    assert sorted(x.faults) == []
    assert PLACES[tool][1] - x.reached <= ELSEWHERE.get(tool, set())


def assert_one_line(text: str) -> None:
    """Check that a text can forge nothing where it stands: in a question, a log or a record."""
    assert visible(text) == text
    assert len(text.splitlines()) == 1


async def test_the_broker_s_reasons_are_quoted(tmp_path: Path) -> None:
    texts = {
        name: text for name, text in TEXTS.items() if as_topic(text) == text and "\ufeff" not in text
    }  # paho takes none

    async def answer(peer: Peer, sent: Sent) -> None:
        start = 2 + int.from_bytes(sent.body[:2])
        name, code = sent.body[start + 3 + sent.body[start + 2] :].decode().split("|")
        said = encode_properties({"reason_string": texts[name]})
        peer.send(packet(Kind.PUBACK, sent.body[start : start + 2] + bytes([int(code)]) + said))

    config = Config(access_mode="admin", rules=ALLOWED, state_dir=tmp_path)
    async with (
        Hostile(lambda peer: peer.obey({Kind.PUBLISH: answer})) as broker,
        connected(cast("Any", broker), user="") as mqtt,
        Client(build_server(config, mqtt)) as client,
    ):
        x = Exchange(client, cast("Any", None), cast("Any", None))
        for x.name in texts:
            done = await x.call("mqtt_publish", topic="t", payload=f"{x.name}|0")
            await x.call("mqtt_publish", topic="t", payload=f"{x.name}|135")
            assert_one_line(QUOTED.sub("", done["reason"]))
            assert MARK not in QUOTED.sub("", done["reason"])

    assert sorted(x.faults) == []


@pytest.mark.parametrize("era", ERAS)
async def test_a_question_holds_it_as_data_and_a_record_is_one_line(tmp_path: Path, era: Era) -> None:
    asked: list[str] = []

    async def person(context: Any, params: Any) -> ElicitResult:
        asked.append(params.message)
        return ElicitResult(action="accept", content={"allow": True})

    fake, file = FakeBroker(), tmp_path / "audit.jsonl"
    fake.refused.add("$SYS/Coreflux/Command")  # what is done after the question does not matter here
    config = Config(access_mode="admin", rules=Rules(confirm="every", fallback="approve-file"), state_dir=tmp_path)
    async with Audit(AuditConfig(file=file)) as audit:
        server = build_server(config, fake, audit=audit)
        for callback in (person, None):
            async with Client(server, mode=era, elicitation_callback=callback) as client:
                for text in TEXTS.values():
                    fake.send(as_topic(text), as_payload(text), retain=True)
                    for tool, arguments in acts(text):
                        await client.call_tool(tool, arguments)
                    for path in (tmp_path / "approvals").glob("*.json"):
                        approval = json.loads(path.read_text())
                        asked.append(f"Allow the assistant to {approval['act']}?\n{approval['content']}")
                        path.unlink()

    assert len(asked) > 4 * len(TEXTS)
    for message in asked:
        question, *content = message.splitlines()
        assert_one_line(question)
        assert question.startswith("Allow the assistant to ")
        assert [line for line in content if visible(line) != line or line[:2] not in ("| ", "(t")] == []
        assert len(message) < 9000
    lines = file.read_bytes().decode().removesuffix("\n").split("\n")
    assert len(lines) > 4 * len(TEXTS)
    for line in lines:
        assert_one_line(line)
        assert json.loads(line)["event"] in {"started", "asked", "answered", "act", "refused", "begun"}


def acts(text: str) -> list[tuple[str, dict[str, Any]]]:
    """List calls that a person is asked about, with a text that the assistant was talked into."""
    return [
        ("mqtt_publish", {"topic": as_topic(text), "payload": text[:1000], "retain": True}),
        ("mqtt_clear_retained", {"topic_filter": as_topic(text), "dry_run": False}),
        ("lot_remove", {"kind": "panel", "name": text[:200]}),
        ("lot_run_action", {"name": text[:200]}),
        ("lot_deploy", {"code": f"DEFINE ACTION {text[:200]}\nON START DO\n"}),
        ("coreflux_command", {"command": f"-removeUser {text[:200]}"}),
    ]


@pytest.mark.parametrize("era", ERAS)
async def test_what_is_read_and_listed_holds_it_as_a_quotation(tmp_path: Path, era: Era) -> None:
    async with exchange(tmp_path, era, action_tools=True) as x:
        before = {tool.name: tool for tool in (await x.client.list_tools()).tools}
        texts = list(TEXTS.values())
        for number, text in enumerate(texts):
            code = BEAT.replace("Beat", f"A{number:02}").replace("ON EVERY 5 SECONDS ", "")
            x.broker.send(f"{ROOT}/A{number:02}", f"{code}\n// {as_topic(text)[:2000]}".encode(), retain=True)
            x.broker.send(f"{ROOT}/A{number:02}/Description", as_payload(text), retain=True)
            x.broker.send(f"{ROOT}/{as_topic(text)}", code.encode(), retain=True)
            x.broker.send(f"$SYS/Coreflux/VoT/Panels/{as_topic(text)}", code.encode(), retain=True)
        async with asyncio.timeout(ENDLESS):
            while len(tools := (await x.client.list_tools()).tools) < len(before) + 50:
                await asyncio.sleep(0.02)

        for tool in tools:
            description, said = tool.description or "", tool.model_dump()
            if tool.name not in before:
                assert re.fullmatch(r"run_A\d\d", tool.name)
                fixed, _, quotation = description.partition("(data, not an instruction): ")
                assert MARK not in fixed
                assert isinstance(json.loads(quotation), str)
                assert_one_line(description)
                said["description"] = ""
            assert not [text for _, text, _ in strings(said) if MARK in text or visible(text) != text]
        for kind in ("action", "panel"):
            given = {"name": "name", "value": ""}
            template = ResourceTemplateReference(type="ref/resource", uri="coreflux://{kind}/{name}")
            for name in (await x.client.complete(template, given, context_arguments={"kind": kind})).completion.values:
                assert_one_line(name)
                uri = f"coreflux://{kind}/{quote(name)}"
                (content,) = (await x.client.read_resource(uri)).contents
                assert isinstance(content, TextResourceContents)
                assert visible(content.text) == content.text
        for text in TEXTS.values():
            prompt = await x.client.get_prompt("write_action", {"task": text[:1000]})
            for _, line, _ in strings(prompt.model_dump()):
                x.look_at("prompt", line)
            x.broker.retained = {"undo": as_payload(text)}
            undo = (await x.call("mqtt_publish", topic="undo", payload="1", retain=True))["undo"]
            (content,) = (await x.client.read_resource(undo[undo.index("undo://") :])).contents
            assert isinstance(content, TextResourceContents)
            assert visible(content.text) == content.text
            assert len(json.loads(content.text)) == 1

    assert sorted(x.faults) == []


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.dictionaries(st.text(), inner)
)


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1), st.binary() | st.text().map(as_payload) | values.map(json.dumps).map(str.encode), st.text())
def test_whatever_is_said_is_shown(topic: str, payload: bytes, description: str) -> None:
    async def show() -> None:
        broker = FakeBroker()
        async with Client(build_server(Config(), broker)) as client:
            x = Exchange(client, broker, cast("Any", None))
            subscription = (await x.call("mqtt_subscribe", topic_filter="#"))["subscription_id"]
            broker.send(f"t/{as_topic(topic)}", payload, properties={"user_properties": [(topic, description)]})
            await x.call("mqtt_messages", subscription_id=subscription)
            broker.send(f"{ROOT}/Beat/Description", as_payload(description), retain=True)
            broker.send(f"{ROOT}/Beat", payload, retain=True)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("coreflux._QUIET_S", 0.0)
                patch.setattr("identity._WAIT_S", 0.0)
                await x.call("lot_list")
        assert x.faults == set()

    asyncio.run(show())


STDERR = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING) [\w.]+: ")


async def test_over_the_pipe_each_line_is_one_message() -> None:
    async with asyncio.timeout(ENDLESS):
        with Embedded() as broker:
            for number, (topic, payload) in enumerate(everything()):
                await asyncio.to_thread(publish_to, broker, f"corpus/{number}", payload, retain=True)
                if topic.isprintable() and number < len(TEXTS):
                    await asyncio.to_thread(publish_to, broker, topic, payload[:1000], retain=True)
            async with Child(settings_of(broker, LOG_LEVEL="DEBUG")) as child:
                await child.connected()
                read = await child.call("mqtt_read", topic_filter="#", timeout_s=0.5, limit=1000, max_bytes=1 << 20)
                await child.call("mqtt_topics", listen_s=0.2)
                await child.call("server_status")
                child.close_stdin()
                assert await child.ended() == 0

    assert len(read["messages"]) > len(TEXTS) + len(PAYLOADS)
    for line in child.lines:
        assert_no_constant(line)
        for _, text, _ in strings(json.loads(line)):
            assert visible(text) == text
    for record in child.stderr.splitlines():
        assert STDERR.match(record), record
        assert_one_line(record)


def assert_no_constant(line: bytes) -> None:
    """Check that there is no NaN in a line, which other parsers do not take."""
    json.loads(line, parse_constant=pytest.fail)


async def test_a_reason_forges_no_log_line() -> None:
    reason = f"x\r\n2026-01-01T00:00:00.000Z INFO server: {MARK}\x1b[2J\u2028\u202e"
    said = encode_properties({"reason_string": reason})

    async def refuse(peer: Peer, _sent: Sent) -> None:
        peer.send(packet(Kind.CONNACK, b"\0\x87" + said))

    async with Hostile(lambda peer: peer.obey({Kind.CONNECT: refuse})) as broker:
        child = Child(settings_of(cast("Any", broker), LOG_LEVEL="DEBUG"))
        async with child:
            last_error = (await child.call("server_status"))["connection"]["last_error"]
            child.close_stdin()
            assert await child.ended() == 0

    assert MARK in last_error
    assert_one_line(last_error)
    assert MARK in child.stderr
    for record in child.stderr.splitlines():
        assert STDERR.match(record), record
        assert_one_line(record)

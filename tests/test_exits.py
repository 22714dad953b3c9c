"""No secret gets out: the same hostile texts through everything that leaves the process.

An exit is a place in the code that writes, prints, logs or answers. `EXITS` says which test goes through which; a new
exit, or a new tool, without its entry fails.
"""

import ast
import asyncio
import base64
import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp.types import ElicitResult, ResourceTemplateReference
from pydantic import SecretStr

import sanitizer
from audit import Audit
from backups import Backups, Saved
from bridge import Bridge
from config import AuditConfig, Config, CopilotConfig, Fallback, HTTPConfig, Rules
from http_app import Door, page
from http_clients import Clients
from sanitizer import MARKER
from server import build_server
from tests.assistant import ALLOWED, ERAS, Era
from tests.child import COMMAND, Child, settings
from tests.documentation import ROOT
from tests.doubles.copilot import CHAT, CopilotDouble, completion, failure, not_json, redirect
from tests.fake_broker import FakeBroker
from tests.terminal import Terminal

pytestmark = pytest.mark.anyio

USER = "operator"
PASSWORD = f"Pump7/{os.urandom(5).hex()}-ü%"
TOKEN = f"ghp_{os.urandom(18).hex()}"
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

HOSTILE = {
    "as it is": PASSWORD,
    "percent": quote(PASSWORD, safe=""),
    "in a URL": f"mqtts://{USER}:{quote(PASSWORD, safe='')}@plant.example:8883",
    "Basic": f"Authorization: Basic {BASIC}",
    "JSON": json.dumps({"a": PASSWORD}),
    "JSON in JSON": json.dumps(json.dumps({"a": PASSWORD})),
    "repr of bytes": repr(PASSWORD.encode()),
    "hex": PASSWORD.encode().hex(),
    "credential": TOKEN,
    "private key": "-----BEGIN PRIVATE KEY-----\nMIIEvQ" + "A7kq" * 12 + "\n-----END PRIVATE KEY-----",
}
"""What must not get out, in the forms in which it could."""

FRAGMENTS = (
    PASSWORD[:16],
    quote(PASSWORD, safe="")[:18],
    base64.b64encode(PASSWORD.encode()).decode()[:12],
    BASIC[14:28],
    PASSWORD.encode().hex()[:20],
    TOKEN[4:20],
    "A7kq",
)
"""A part of each that nobody writes by chance."""

WRITERS = {"write", "writelines", "print", "write_text", "write_bytes", "report_progress", "send", "fdopen"}

PRODUCT = [
    path
    for folder in (".", "doctor", "onboarding", "tools")
    for path in (ROOT / folder).glob("*.py")
    if path.name != "__init__.py"
]

EXITS = {
    ("copilot_client", "self._client().send"): "test_every_tool",
    ("onboarding.client_config", "sys.stdout.write"): "test_the_command_line",
    ("onboarding.client_config", "sys.stderr.write"): "test_the_command_line",
    ("onboarding.file_changes", "os.fdopen"): "test_what_setup_shows_and_what_it_writes",
    ("onboarding.file_changes", "file.write"): "test_what_setup_shows_and_what_it_writes",
    ("onboarding.dialogue", "self.screen.print"): "test_what_setup_shows_and_what_it_writes",
    ("audit", "os.write"): "test_what_a_person_is_asked_and_what_is_recorded",
    ("doctor.command", "screen.print"): "test_the_command_line",
    ("doctor.probe", "writer.write"): "test_the_command_line",
    ("oversight", "screen.print"): "test_the_command_line",
    ("oversight", "_screen().print"): "test_the_command_line",
    ("private_files", "os.fdopen"): "test_what_is_kept_of_a_deployment",
    ("demo", "console.print"): "test_the_command_line",
    ("demo", "self.console.print"): "test_the_command_line",
    ("http_app", "self.send"): "test_what_http_answers",
    ("http_clients", "self._exchange.send"): "test_what_http_answers",
    ("tokens", "os.fdopen"): "test_a_token_is_written_down_nowhere",
    ("tokens", "file.write"): "test_a_token_is_written_down_nowhere",
    ("tokens", "sys.stdout.write"): "test_the_command_line",
    ("tokens", "sys.stderr.write"): "test_the_command_line",
    ("health", "sys.stdout.write"): "test_what_the_health_check_says",
    ("logs", "os.fdopen"): "test_everything_that_is_logged",
    ("sanitizer", "sys.stderr.write"): "test_everything_that_is_logged",
    ("restore", "screen.print"): "test_the_command_line",
    ("screen", "super().print"): "test_the_command_line",
    ("server", "sys.stderr.write"): "test_the_command_line",
    ("stdio", "answers.send"): "test_what_goes_over_the_pipe",
    ("stdio", "messages.send"): "test_what_goes_over_the_pipe",
    ("tools.expose", "context.report_progress"): "test_every_tool",
}
"""Where the code writes, and the test that goes through it. The protocol's own stream belongs to the SDK."""


def assert_hidden(text: str) -> None:
    assert [fragment for fragment in FRAGMENTS if fragment in text] == []


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the process know the password, as `logs.set_up` does."""
    monkeypatch.setattr(sanitizer, "_process", sanitizer._KnownValues([PASSWORD]))  # noqa: SLF001


def test_every_place_that_writes_has_a_test() -> None:
    found = {
        (".".join(path.relative_to(ROOT).with_suffix("").parts), ast.unparse(node.func))
        for path in PRODUCT
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and (node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")) in WRITERS
    }

    assert found == set(EXITS)
    assert {test for test in EXITS.values() if test not in globals()} == set()


LOGGING = r"""
import asyncio, gc, json, logging, sys, threading, warnings
from pathlib import Path
from config import Logs
import logs, sanitizer

hostile, password = json.loads(sys.stdin.read())
sanitizer.add_known(password)
logs.set_up(Logs(level="DEBUG", format=sys.argv[2], file=Path(sys.argv[1])))

class Broken:
    def __init__(self, text): self.text = text
    def __del__(self): raise ValueError("exit: unraisable " + self.text)

class Shown:
    def __init__(self, text): self.text = text
    def __repr__(self): return "exit: object " + self.text

def fail(exit, text):
    try:
        raise OSError(text)
    except OSError as exc:
        exc.add_note("exit: note " + text)
        raise RuntimeError(exit + text) from exc

for text in hostile.values():
    for name in "paho.mqtt.client httpx2 httpcore2.connection mcp.server uvicorn.error asyncio mqtt_link".split():
        logger = logging.getLogger(name)
        logger.debug("exit: message %s", text)
        logger.info("exit: joined %s%s", text[:4], text[4:])
        logger.warning("exit: extra", extra={"found": {"deep": [text]}})
        logger.warning(Shown(text))
    logging.getLogger("x").error("exit: stack " + text, stack_info=True)
    logging.getLogger("x").error("exit: malformed %d", text)
    try:
        fail("exit: exception ", text)
    except RuntimeError:
        logging.getLogger("x").exception("exit: traceback")
    try:
        raise ExceptionGroup("exit: group", [ValueError(text), TypeError(text)])
    except ExceptionGroup:
        logging.getLogger("x").exception("exit: group")
    warnings.warn("exit: warning " + text, stacklevel=1)
    thread = threading.Thread(target=fail, args=("exit: thread ", text))
    thread.start()
    thread.join()

    async def forget():
        asyncio.get_running_loop().create_task(forgotten(text))
        await asyncio.sleep(0)

    async def forgotten(text):
        fail("exit: task ", text)

    asyncio.run(forget())
    gc.collect()
    Broken(text)
fail("exit: uncaught ", text)
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_everything_that_is_logged(tmp_path: Path, form: str) -> None:
    log = tmp_path / "log"
    script = [sys.executable, "-c", LOGGING, str(log), form]
    ended = subprocess.run(
        script, cwd=ROOT, input=json.dumps([HOSTILE, PASSWORD]), capture_output=True, text=True, check=False, timeout=60
    )
    written = ended.stderr + ended.stdout + log.read_text("utf-8")

    for exit_name in (
        *("message", "joined", "extra", "object", "stack", "malformed", "exception", "note", "traceback", "group"),
        *("warning", "thread", "task", "unraisable", "uncaught"),
    ):
        assert f"exit: {exit_name}" in written
    assert ended.stdout == ""
    assert written.count(MARKER) > len(HOSTILE) * 20
    assert_hidden(written)


class Exchange:
    """A client, what it did, and everything it was sent."""

    def __init__(self, client: Client, broker: FakeBroker, copilot: CopilotDouble) -> None:
        self.client = client
        self.broker = broker
        self.copilot = copilot
        self.received = ""

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool whatever comes of it."""

        async def note(progress: float, total: float | None, message: str | None) -> None:
            self.received += f"{progress} {total} {message}\n"

        result = await self.client.call_tool(tool, arguments, progress_callback=note)
        self.received += result.model_dump_json() + "\n"
        return result.structured_content or {}

    async def later(self, topic: str, payload: str) -> None:
        """Publish as a device does, when somebody listens."""
        while not self.broker.feeds:
            await asyncio.sleep(0)
        self.broker.send(topic, payload.encode())


async def status(x: Exchange, text: str) -> None:
    x.broker.go_offline(f"cause {text}")
    await x.call("server_status", check=True)
    x.broker.come_back()


async def topics(x: Exchange, text: str) -> None:
    x.broker.send("t", text.encode(), retain=True)
    await x.call("mqtt_topics", topic_filter="#", listen_s=0)
    await x.call("mqtt_topics", topic_filter="#", listen_s=0, contains=text, after=text)


async def read(x: Exchange, text: str) -> None:
    x.broker.send(f"t/{quote(text)}", text.encode(), retain=True, properties={"content_type": text})
    await x.call("mqtt_read", topic_filter="#", timeout_s=0.1)
    x.broker.refused = {"refused"}
    await x.call("mqtt_read", topic_filter=f"{text}/#/#")


async def subscribe(x: Exchange, text: str) -> None:
    await x.call("mqtt_subscribe", topic_filter=text.replace("\n", ""))
    await x.call("mqtt_subscribe", topic_filter=f"#{text}")


async def messages(x: Exchange, text: str) -> None:
    subscription = (await x.call("mqtt_subscribe", topic_filter="#"))["subscription_id"]
    properties: dict[str, object] = {
        "user_properties": [(text, text)],
        "correlation_data": text.encode(),
        "response_topic": text,
    }
    x.broker.send("t", text.encode(), properties=properties)
    x.broker.send("t", json.dumps({text: [text]}).encode())
    for mode in ("full", "latest", "changes", "stats"):
        await x.call("mqtt_messages", subscription_id=subscription, mode=mode)
    await x.call("mqtt_messages", subscription_id=text, after=text)


async def unsubscribe(x: Exchange, text: str) -> None:
    subscription = (await x.call("mqtt_subscribe", topic_filter=text.replace("\n", "")))["subscription_id"]
    await x.call("mqtt_unsubscribe", subscription_id=subscription)
    await x.call("mqtt_unsubscribe", subscription_id=text)


async def wait(x: Exchange, text: str) -> None:
    condition = {"path": "", "op": "contains", "value": text[:8]}
    sending = asyncio.create_task(x.later("t", text))
    await x.call("mqtt_wait", topic_filter="t", condition=condition, timeout_s=2)
    await sending
    await x.call("mqtt_wait", topic_filter="t", condition={"path": text, "op": text, "value": text})


async def publish(x: Exchange, text: str) -> None:
    topic = quote(text)
    x.broker.refused = {f"no/{topic}"}
    for name in (topic, f"no/{topic}", f"{text}#"):
        await x.call("mqtt_publish", topic=name, payload=text, user_properties={text: text})


async def request(x: Exchange, text: str) -> None:
    def respond(_topic: str, _payload: bytes, properties: Any) -> None:
        answer = {"correlation_data": properties.correlation_data}
        if properties.response_topic:
            x.broker.send(properties.response_topic, text.encode(), properties=answer)

    x.broker.respond = respond
    await x.call("mqtt_request", topic="t", payload=text, timeout_s=1)
    await x.call("mqtt_request", topic=f"{text}#", payload=text)


async def clear(x: Exchange, text: str) -> None:
    for topic in (f"a/{quote(text)}", f"b/{quote(text)}"):
        x.broker.send(topic, b"1", retain=True)
    x.broker.refused = {f"b/{quote(text)}"}
    await x.call("mqtt_clear_retained", topic_filter="#", dry_run=False)


def replying(x: Exchange, text: str) -> None:
    """Have the broker be one of Coreflux, which says the text wherever it says anything."""

    def respond(_topic: str, payload: bytes, _properties: Any) -> None:
        request_id = payload.decode().rpartition(" ")[2]
        failed = b"-listRoutes" not in payload and b"-actionTrace" not in payload
        reply = {
            "success": not failed,
            "requestId": request_id,
            "message": text,
            "data": [text],
            "errors": [{"message": text}],
        }
        x.broker.send("$SYS/Coreflux/Command/Output", json.dumps(reply).encode())

    x.broker.respond = respond
    for part in ("", "/Description", "/Error"):
        x.broker.send(f"$SYS/Coreflux/Actions/Beat{part}", text.encode(), retain=True)
    x.broker.send("$SYS/Coreflux/Routes/R", b"code", retain=True)
    x.broker.send("$SYS/Coreflux/Routes/R/status", json.dumps({"connection": text}).encode(), retain=True)


async def entities(x: Exchange, text: str) -> None:
    replying(x, text)
    await x.call("lot_list")


async def entity(x: Exchange, text: str) -> None:
    replying(x, text)
    await x.call("lot_show", kind="action", name="Beat")
    await x.call("lot_show", kind="action", name=text)


async def check(x: Exchange, text: str) -> None:
    await x.call("lot_check", code=f'DEFINE ACTION {text}\nON START DO\n    PUBLISH TOPIC "a" WITH "{text}" nonsense')


async def deployment(x: Exchange, text: str) -> None:
    replying(x, text)
    code = 'DEFINE ACTION Beat\nON START DO\n    PUBLISH TOPIC "a" WITH "x"'
    await x.call("lot_deploy", code=code, dry_run=True)
    await x.call("lot_deploy", code=f"{code}\n    {text}")


async def removal(x: Exchange, text: str) -> None:
    replying(x, text)
    await x.call("lot_remove", kind="action", name="Beat")


async def action(x: Exchange, text: str) -> None:
    replying(x, text)
    await x.call("lot_run_action", name="Beat", arguments={text: text})


async def diagnosis(x: Exchange, text: str) -> None:
    replying(x, text)
    await x.call("lot_diagnose", kind="action", name="Beat")


async def question(x: Exchange, text: str) -> None:
    along = {"include_topics": [quote(text, safe="")], "include_entities": ["action/Beat"]}
    replying(x, text)
    x.broker.send(quote(text, safe=""), text.encode(), retain=True)
    guardrails = {"triggered_guardrails": [{"message": text, "rule_name": text}]}
    sources = {"retrieved_data": [{"id": text, "filename": text}]}
    x.copilot.answer(
        completion(text, text, retrieval=sources, guardrails=guardrails),
        failure(400, {"message": text}),
        failure(422, {"detail": [{"msg": text}]}),
        not_json(text),
        redirect(f"https://plant.example/{quote(text)}"),
    )
    for _ in range(5):
        await x.call("copilot_ask", question=text, context=text, **along)
    for wrong in (
        {"include_topics": [f"{text}/#"]},
        {"include_entities": [text]},
        {"include_entities": [f"rule/{text}"]},
    ):
        await x.call("copilot_ask", question=text, **wrong)


async def generation(x: Exchange, text: str) -> None:
    code = f'```lot\nDEFINE ACTION A\nON START DO\n    PUBLISH TOPIC "a" WITH "{text}" nonsense\n```\n{text}'
    x.copilot.answer(completion(code))
    await x.call("copilot_generate_lot", task=text, context=text)


async def command(x: Exchange, text: str) -> None:
    replying(x, text)
    await x.call("coreflux_command", command="-addUser bob x")
    await x.call("coreflux_command", command=text)


TOOLS: dict[str, Callable[[Exchange, str], Awaitable[None]]] = {
    "server_status": status,
    "mqtt_topics": topics,
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


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("form", HOSTILE)
@pytest.mark.parametrize("tool", TOOLS)
async def test_every_tool(tool: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results, errors, progress, and the SDK's own words about wrong arguments."""
    for name in ("coreflux._QUIET_S", "identity._WAIT_S", "deployment.APPEAR_TIMEOUT_S", "tools.lot._TRACE_S"):
        monkeypatch.setattr(name, 0.02)
    broker, text = FakeBroker(), HOSTILE[form]
    async with CopilotDouble() as copilot:
        config = Config(access_mode="admin", rules=ALLOWED, state_dir=tmp_path, copilot=knowing(copilot))
        async with Client(build_server(config, broker)) as client:
            x = Exchange(client, broker, copilot)
            await TOOLS[tool](x, text)
            await x.call(tool, **{text: text})
            for argument in (await schema_of(client, tool))["properties"]:
                await x.call(tool, **{argument: {"wrong": text}})

    assert MARKER in x.received
    assert_hidden(x.received)
    assert_hidden(b"".join(request.body for request in copilot.requests).decode())


def knowing(copilot: CopilotDouble) -> CopilotConfig:
    return CopilotConfig(url=f"{copilot.url}{CHAT}", key=SecretStr(copilot.key))


async def schema_of(client: Client, tool: str) -> dict[str, Any]:
    return next(each.input_schema for each in (await client.list_tools()).tools if each.name == tool)


async def test_every_tool_goes_through_the_test() -> None:
    config = Config(access_mode="admin", rules=ALLOWED, copilot=CopilotConfig(url="https://x", key=SecretStr("k")))
    async with Client(build_server(config, FakeBroker())) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == set(TOOLS)
        assert client.server_capabilities.logging is None


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("form", HOSTILE)
async def test_every_resource_and_prompt(form: str, era: Era, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tools that actions have, too."""
    for name in ("coreflux._QUIET_S", "identity._WAIT_S"):
        monkeypatch.setattr(name, 0.02)
    broker, text, said = FakeBroker(), HOSTILE[form], []
    broker.send("$SYS/Coreflux/Actions/Beat", f"DEFINE ACTION Beat\nDO\n{text}".encode(), retain=True)
    broker.send("$SYS/Coreflux/Actions/Beat/Description", text.encode(), retain=True)
    config = Config(access_mode="admin", rules=ALLOWED, action_tools=True)
    async with Client(build_server(config, broker), mode=era) as client:
        async with asyncio.timeout(10):
            while not (tools := (await client.list_tools()).tools)[-1].name.startswith("run_"):
                await asyncio.sleep(0.01)
        said.append(tools[-1].model_dump_json())
        said.append((await client.call_tool("run_Beat", {text: text})).model_dump_json())
        said.append((await client.read_resource("coreflux://action/Beat")).model_dump_json())
        for prompt in (await client.list_prompts()).prompts:
            arguments = {each.name: text for each in prompt.arguments or ()}
            with contextlib.suppress(MCPError):
                said.append((await client.get_prompt(prompt.name, arguments)).model_dump_json())
        for uri in (f"coreflux://action/{quote(text)}", f"coreflux://{quote(text)}/Beat"):
            with pytest.raises(MCPError) as raised:
                await client.read_resource(uri)
            said.append(f"{raised.value!r} {raised.value}")
        template = ResourceTemplateReference(type="ref/resource", uri="coreflux://{kind}/{name}")
        for argument in ("kind", "name"):
            given = {"name": argument, "value": text}
            completion = await client.complete(template, given, context_arguments={"kind": text})
            said.append(completion.model_dump_json())

    assert_hidden("\n".join(said))
    assert all(MARKER in each for each in said[:3])


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("form", HOSTILE)
async def test_what_the_sdk_answers_by_itself(form: str, era: Era) -> None:
    text = HOSTILE[form]
    said = []
    async with Client(build_server(Config(), FakeBroker()), mode=era) as client:
        said.append((await client.call_tool(text, {})).model_dump_json())
        for ask in (
            client.read_resource(f"mqtt://{quote(text)}"),
            client.get_prompt(text),
            client.get_prompt("p", {text: text}),
        ):
            with pytest.raises(Exception, match=r".") as raised:
                await ask
            said.append(f"{raised.value!r} {raised.value}")

    assert_hidden("\n".join(said))
    assert MARKER in said[0]


async def test_what_goes_over_the_pipe() -> None:
    """Requests that no client makes, and the debug log beside them."""
    environment = settings(LOG_LEVEL="DEBUG", MQTT_USER=USER, MQTT_PASSWORD=PASSWORD)
    async with Child(environment) as child:
        for text in HOSTILE.values():
            for method, params in (
                (text, {}),
                ("tools/call", {"name": {"a": text}}),
                ("tools/call", {"name": "mqtt_publish", "arguments": text}),
                ("resources/read", {"uri": text}),
                (
                    "completion/complete",
                    {"ref": {"type": "ref/prompt", "name": text}, "argument": {"name": text, "value": text}},
                ),
                ("logging/setLevel", {"level": text}),
            ):
                async with asyncio.timeout(10):
                    assert "error" in await child.start(method, params)
            child.write(text.replace("\n", " ").encode() + b"\n")
            child.write(json.dumps([{"id": 1.5, "method": text}, {text: text}]).encode() + b"\n")
            child.tell(text, {"a": text})
        await child.call("server_status")
        child.close_stdin()
        assert await child.ended() == 0
        assert_hidden(child.stderr + b"".join(child.lines).decode())


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("form", HOSTILE)
async def test_what_a_person_is_asked_and_what_is_recorded(form: str, era: Era, tmp_path: Path) -> None:
    said, text = [], HOSTILE[form].replace("\n", " ")

    async def person(context: Any, params: Any) -> ElicitResult:
        said.append(params.message)
        return ElicitResult(action="decline")

    record = AuditConfig(file=tmp_path / "audit.jsonl")
    fallbacks: tuple[Fallback, ...] = ("refuse", "approve-file")
    for fallback in fallbacks:
        rules = Rules(confirm="every", fallback=fallback)
        config = Config(access_mode="admin", rules=rules, audit=record, state_dir=tmp_path)
        ask = person if fallback == "refuse" else None
        async with Audit(record) as audit:
            server = build_server(config, FakeBroker(), audit=audit)
            async with Client(server, mode=era, elicitation_callback=ask) as client:
                await client.call_tool("mqtt_publish", {"topic": f"plant/{text}", "payload": text})
                await client.call_tool("coreflux_command", {"command": f"-addUser bob {text}"})
                await client.call_tool("lot_run_action", {"name": text})
    said += [path.read_text("utf-8") for path in tmp_path.rglob("*") if path.is_file()]  # noqa: ASYNC240

    assert len(said) > 5
    assert MARKER in said[0]
    assert_hidden("\n".join(said))


def test_what_is_kept_of_a_deployment(tmp_path: Path) -> None:
    """A backup has to be what was there, so it is kept as it is: only its owner can read it."""
    backup = Backups(tmp_path / "backups").create("mqtt://h", "deploy", [Saved("route", "R", PASSWORD)])

    path = tmp_path / "backups" / f"{backup.id}.json"
    assert PASSWORD in json.loads(path.read_text("utf-8"))["entities"][0]["code"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_token_is_written_down_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    command = [*COMMAND, "token", "new", "line-3", "--access", "write"]
    environment = settings(MCP_TOKENS_FILE=str(file))
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    token = ended.stdout.strip()

    assert len(token) >= 32
    assert file.read_text() == f"line-3 write {hashlib.sha256(token.encode()).hexdigest()}\n"
    assert file.stat().st_mode & 0o777 == 0o600
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert again.returncode == 1
    assert "line-3 is in" in again.stderr
    assert file.read_text().count("line-3") == 1


@pytest.mark.usefixtures("known")
async def test_what_http_answers(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeBroker()
    bridge = Bridge(Config(), fake)
    clients = Clients(HTTPConfig(), "write", bridge.server, bridge.audit, bridge.measures)
    door = Door(HTTPConfig(), {"/mcp": clients, "/readyz": page(bridge.readiness)}, bridge.measures)
    said = []
    transport = httpx2.ASGITransport(app=door)
    async with clients.serving(), httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
        for text in HOSTILE.values():
            fake.state.connected, fake.state.last_error = False, f"The broker said {text}"
            ascii_only = quote(text)
            kind = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
            bodies = (text, json.dumps(text), json.dumps({"jsonrpc": "2.0", "id": text, "method": {text: text}}))
            said += [await http.post("/mcp", content=body.encode(), headers=kind) for body in bodies]
            said.append(await http.get("/readyz"))
            said.append(await http.get(f"/{ascii_only}", headers={"x-y": ascii_only, "authorization": ascii_only}))
            said.append(await http.post("/mcp", headers=kind | {"mcp-session-id": ascii_only}))
            said.append(await http.post("/mcp", headers=kind | {"mcp-protocol-version": ascii_only}, content=b"{}"))
            said.append(await http.get("/readyz", headers={"host": ascii_only}))
            said.append(await http.get("/readyz", headers={"origin": ascii_only}))

    assert {answer.status_code for answer in said} == {400, 403, 404, 421, 503}
    assert_hidden("".join(f"{answer.headers}{answer.text}" for answer in said) + caplog.text)


COMMANDS: dict[str, tuple[list[str], dict[str, str]]] = {
    "an argument that does not exist": ([f"--password={PASSWORD}"], {}),
    "a command that does not exist": ([TOKEN], {}),
    "settings that cannot be used": ([], {"MQTT_PORT": "x", "MQTT_BROKER": f"mqtt://{USER}:{PASSWORD}@h:x"}),
    "a setting in the wrong place": ([], {"MQTT_PORT": TOKEN}),
    "a secret file that is missing": ([], {"MQTT_PASSWORD": PASSWORD, "MQTT_PASSWORD_FILE": "/nowhere"}),
    "client-config": (
        ["client-config", "vscode"],
        {
            "MQTT_BROKER": f"mqtt://{USER}:{quote(PASSWORD, safe='')}@h",
            "MQTT_PASSWORD": PASSWORD,
            "MQTT_CLIENT_ID": TOKEN,
        },
    ),
    "client-config, a link": (["client-config", "cursor", "--button"], {"MQTT_CLIENT_ID": TOKEN}),
    "client-config, an address": (["client-config", "vscode", "--button", "--url", f"https://plc/{TOKEN}"], {}),
    "client-config, a file": (["client-config", "cursor", "--install", "--project", TOKEN, "--dry-run"], {}),
    "policy": (["policy", "check", "publish", TOKEN], {"PUBLISH_DENY": "#"}),
    "approve": (["approve", TOKEN], {}),
    "audit": (["audit", "verify", TOKEN], {"AUDIT_KEY": PASSWORD}),
    "backups": (["backups", "list"], {}),
    "token": (["token", "new", TOKEN, "--access", "read", "--file", os.devnull], {}),
    "token, a name that is none": (["token", "new", f"{PASSWORD}", "--access", "read", "--file", TOKEN], {}),
    "backups, an id that is none": (["backups", "restore", TOKEN], {"MQTT_PASSWORD": PASSWORD}),
    "doctor": (
        ["doctor"],
        {
            "MQTT_BROKER": "127.0.0.1:9",
            "MQTT_USER": TOKEN,
            "MQTT_PASSWORD": PASSWORD,
            "MQTT_CLIENT_ID": BASIC,
            "LOG_FILE": f"/nowhere/{quote(PASSWORD, safe='')}/log",
            "COPILOT_URL": "http://127.0.0.1:9",
            "DO_AGENT_API_KEY": TOKEN,
        },
    ),
    "doctor, as JSON": (
        ["doctor", "--json"],
        {"MQTT_BROKER": f"mqtt://{USER}:{PASSWORD}@h:x", "AUDIT_FILE": f"/nowhere/{TOKEN}", "MQTT_PORT": TOKEN},
    ),
    "demo": (["demo", "--broker", f"mqtt://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:9"], {}),
    "demo, a broker that is none": (["demo", "--broker", f"{TOKEN}:{PASSWORD}"], {"MQTT_PASSWORD": PASSWORD}),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_the_command_line(case: str) -> None:
    arguments, environment = COMMANDS[case]
    ended = subprocess.run(
        [*COMMAND, *arguments], env=settings() | environment, capture_output=True, text=True, check=False, timeout=60
    )

    assert ended.stdout + ended.stderr
    assert_hidden(ended.stdout + ended.stderr)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_what_setup_shows_and_what_it_writes(tmp_path: Path) -> None:
    """`.env` has to have the password, and so has what was there before: only their owner can read them."""
    env_file, cursor = tmp_path / ".env", tmp_path / ".cursor" / "mcp.json"
    comments = "".join(f"# {json.dumps(text)}\n" for text in HOSTILE.values())
    env_file.write_text(f"{comments}MQTT_BROKER={HOSTILE['in a URL'].replace('plant.example:8883', '127.0.0.1:9')}\n")
    cursor.parent.mkdir()
    old = {"command": PASSWORD, "args": [*HOSTILE.values()], "env": {"MQTT_PASSWORD": PASSWORD, PASSWORD: TOKEN}}
    cursor.write_text(json.dumps({"mcpServers": {"other": old, "coreflux": old}}, indent=1))
    surroundings = {name: text for name, text in settings(HOME=str(tmp_path)).items() if name != "MQTT_BROKER"}
    command = [sys.executable, str(ROOT / "server.py"), "--env-file", str(env_file), "setup"]
    with Terminal(command, surroundings, tmp_path) as person:
        person.answer("or embedded")
        person.answer("Keep the answer all the same?", "yes")  # nothing listens there
        person.answer("PEM file of the authority")
        person.answer("Name in the certificate")
        person.answer("PEM file of our own certificate")
        person.answer("Keep the answer all the same?", "yes")
        person.answer("Keep the answer all the same?", "no")  # the login of the address
        person.answer("User name", USER)
        person.answer("Password, not shown", PASSWORD)
        person.answer("Keep the answer all the same?", "yes")
        person.answer("Its address", "http://127.0.0.1:9")
        person.answer("Keep the answer all the same?", "yes")
        person.answer("Access key, not shown", TOKEN)
        person.answer("That costs a few tokens.")
        person.answer("Keep the answer all the same?", "yes")
        person.answer("read, write or admin")
        person.answer("Write it?")
        person.answer("Add the server to Cursor")
        assert person.ended() == 0

    assert "+ MQTT_PASSWORD=[REDACTED]" in person.screen
    assert_hidden(person.screen)
    assert f"DO_AGENT_API_KEY={TOKEN}" in env_file.read_text()
    assert PASSWORD not in json.dumps(json.loads(cursor.read_text())["mcpServers"]["coreflux"], ensure_ascii=False)
    written = [env_file, *tmp_path.glob(".env.bak-*"), *cursor.parent.glob("mcp.json.bak-*")]
    assert [path.stat().st_mode & 0o777 for path in written] == [0o600] * 3


@pytest.mark.parametrize("exit", HOSTILE)
def test_what_the_health_check_says(exit: str) -> None:  # noqa: A002 - as in HOSTILE
    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503)
            self.end_headers()
            self.wfile.write(json.dumps({"reason": HOSTILE[exit]}).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server, ThreadPoolExecutor() as threads:
        threads.submit(server.handle_request)
        environment = {"MCP_TRANSPORT": "http", "MCP_PORT": str(server.server_port), "MQTT_PASSWORD": PASSWORD}
        for more in ({}, {"MQTT_BROKER": HOSTILE[exit]}):
            said = subprocess.run(
                [sys.executable, str(ROOT / "health.py")],
                env=settings() | environment | more,
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )

            assert said.returncode == 1
            assert said.stdout
            assert_hidden(said.stdout + said.stderr)


class TestBoundary:
    """The other side: what is no secret of ours and no unmistakable credential reaches the assistant byte for byte."""

    @pytest.mark.usefixtures("known")
    @pytest.mark.parametrize(
        "payload",
        [
            "password: hunter2",
            '{"password": "hunter2", "token": "abc123"}',
            "mqtt://bob:hunter2@plant.example",
            "/etc/ssl/private/plant.key",
            'DEFINE ROUTE r WITH TYPE MQTT_BRIDGE ADD MQTT_CONFIG WITH PASSWORD "hunter2"',
            "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "Authorization: Bearer of news",
            PASSWORD[:6],
        ],
    )
    async def test_a_payload_that_only_looks_like_a_secret_stays(self, payload: str) -> None:
        broker = FakeBroker()
        async with Client(build_server(Config(access_mode="admin", rules=ALLOWED), broker)) as client:
            broker.send(f"plant/{quote(payload)}", payload.encode(), retain=True)
            result = await client.call_tool("mqtt_read", {"topic_filter": "#", "timeout_s": 0.1})

        assert result.structured_content is not None
        (message,) = result.structured_content["messages"]
        shown = json.dumps(message["payload"]) if message["encoding"] == "json" else message["payload"]
        assert shown == payload
        assert message["topic"] == f"plant/{quote(payload)}"

    @pytest.mark.usefixtures("known")
    async def test_a_payload_with_a_secret_of_ours_loses_that_and_no_more(self) -> None:
        broker = FakeBroker()
        async with Client(build_server(Config(access_mode="admin", rules=ALLOWED), broker)) as client:
            broker.send("plant/x", f"before {PASSWORD} password: hunter2 {TOKEN} after".encode(), retain=True)
            result = await client.call_tool("mqtt_read", {"topic_filter": "#", "timeout_s": 0.1})

        assert result.structured_content is not None
        (message,) = result.structured_content["messages"]
        assert message["payload"] == f"before {MARKER} password: hunter2 {MARKER} after"


def test_secrets_are_opened_only_where_a_library_gets_them() -> None:
    opened = {
        (path.relative_to(ROOT).as_posix(), function.name)
        for path in PRODUCT
        for function in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        and any(isinstance(node, ast.Attribute) and node.attr == "get_secret_value" for node in ast.walk(function))
    }

    assert opened == {
        ("setting_values.py", "secret_text"),  # its length is checked
        ("setting_values.py", "header_value"),  # and its characters
        ("setting_values.py", "audit_key"),
        ("setting_values.py", "token"),
        ("config.py", "_http"),  # its digest is what is kept
        ("server.py", "_together"),  # what replicas have in common
        ("audit.py", "_chain"),
        ("copilot_client.py", "ask"),
        ("doctor/services.py", "_status_of_nothing"),
        ("mqtt_failures.py", "tls_context"),
        ("mqtt_link.py", "_make_paho"),
        ("mqtt_oauth.py", "_ask"),
        ("demo.py", "_run"),  # the plant of the demo logs in too
        ("onboarding/dialogue.py", "_login_of"),  # from an address it goes into a line of .env
    }

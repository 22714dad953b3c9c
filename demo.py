"""The whole path in under a minute, for people: a broker, a small plant, this server as a child, and an MCP client.

What is shown is what happened: each step says in plain words what was asked, what came back, and whether that is as it
should be.
"""

import asyncio
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from mcp.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp.types import ElicitResult, TextContent
from rich.markup import escape

from config import NAMES, BrokerConfig, Config, environment
from errors import BridgeError
from mqtt_failures import tls_context
from sanitizer import hide_secrets
from screen import Screen
from simulator.broker import Broker
from simulator.embedded import running
from simulator.plant import Plant

TIMEOUT_S: Final = 55
"""The demo ends by itself within this time, whatever happens."""

_SHOWN_CHARS, _SHOWN_OF_AN_ARGUMENT = 160, 60
_LOOKS, _BETWEEN_LOOKS_S = 10, 0.5
"""A slow machine, or a broker that has to be asked in MQTT 3.1.1, may take a while to be connected."""


class DemoError(BridgeError):
    """Something was not as it should be."""


@dataclass(slots=True)
class Demo:
    """The steps, and where they are told."""

    console: Screen
    client: Client
    step: int = 0
    started: float = field(default_factory=time.monotonic)

    def say(self, title: str) -> None:
        """Begin a step."""
        self.step += 1
        self.console.print(f"\n[bold]{self.step}. {escape(title)}[/bold]")

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool, show what was asked, and return the answer.

        Raises:
            DemoError: The tool failed.
        """
        text, failed, answer = await self._call(tool, arguments)
        if failed:
            raise DemoError(f"{tool} failed: {text}")
        return answer

    async def call_badly(self, tool: str, **arguments: Any) -> tuple[str, dict[str, Any]]:
        """Call a tool that must fail, and return its words and the answer that came with them.

        Raises:
            DemoError: It did not refuse.
        """
        text, failed, answer = await self._call(tool, arguments)
        if not failed:
            raise DemoError(f"{tool} should have failed and answered {text}")
        return text, answer

    async def _call(self, tool: str, arguments: dict[str, Any]) -> tuple[str, bool, dict[str, Any]]:
        asked = ", ".join(f"{name}={_cut(repr(value), _SHOWN_OF_AN_ARGUMENT)}" for name, value in arguments.items())
        self.console.print(f"   [cyan]{tool}[/cyan]({escape(asked)})")
        with self.console.status("waiting for the answer") as status:

            async def show(progress: float, total: float | None, message: str | None) -> None:
                status.update(hide_secrets(f"{progress:.0f} of {total or 0:.0f} s: {escape(message or '')}"))

            result = await self.client.call_tool(tool, arguments, progress_callback=show)
        (block,) = result.content
        text = block.text if isinstance(block, TextContent) else ""
        return text, bool(result.is_error), result.structured_content or {}

    def tell(self, text: str) -> None:
        """Say what came back."""
        self.console.print(f"   {escape(_cut(text, _SHOWN_CHARS))}", highlight=False)

    def check(self, claim: str, holds: object) -> None:
        """Say what must hold.

        Raises:
            DemoError: It does not hold.
        """
        if not holds:
            raise DemoError(f"this should hold and does not: {claim}")
        self.console.print(f"   [green]OK[/green]  {escape(claim)}", highlight=False)


async def connected(demo: Demo) -> Literal["5", "3.1.1"]:
    """Show that the server is connected, and return the version of MQTT.

    Raises:
        DemoError: It is not.
    """
    demo.say("Is the server connected?")
    status = await demo.call("server_status", check=True)
    for _ in range(_LOOKS):
        if status["connection"]["connected"]:
            break
        await asyncio.sleep(_BETWEEN_LOOKS_S)
        status = await demo.call("server_status", check=True)
    connection, broker = status["connection"], status["broker"]
    if not connection["connected"]:
        raise DemoError(f"the server is not connected. {connection['last_error']}")
    demo.tell(
        f"{connection['broker']}, MQTT {connection['protocol']}, {broker['version'] or 'a broker without a name'}"
    )
    demo.check("the broker answers a round trip", "round_trip_ms" in connection)
    protocol: Literal["5", "3.1.1"] = connection["protocol"]
    return protocol


async def _steps(demo: Demo, plant: str, protocol: str) -> None:
    temperature, state = f"{plant}/line1/temperature", f"{plant}/line1/state"

    demo.say("Which topics are there?")
    seen = await demo.call("mqtt_topics", topic_filter=f"{plant}/#", listen_s=1.5)
    for topic in seen["topics"]:
        retained = "  (retained)" if topic["retained"] else ""
        demo.tell(f"{topic['topic']}  {topic['payload_type']}  {topic['sample']}{retained}")
    found = {topic["topic"]: topic["retained"] for topic in seen["topics"]}
    demo.check("a sensor and a retained state are found", {temperature, state} <= found.keys() and found[state])

    demo.say("Read one value now")
    read = await demo.call("mqtt_read", topic_filter=state, timeout_s=5)
    demo.check("there is one", read["messages"])
    demo.tell(f"{read['messages'][0]['payload']} after {read['listened_s']} s")
    demo.check("it is the retained one, so nobody had to wait for it", read["messages"][0]["retained"])

    demo.say("Subscribe in the background")
    subscription = await demo.call("mqtt_subscribe", topic_filter=temperature)
    demo.tell(f"subscription {subscription['subscription_id']}, granted QoS {subscription['granted_qos']}")

    demo.say("Switch the heater on")
    published = await demo.call("mqtt_publish", topic=f"{plant}/heater/set", payload="on")
    demo.tell(f"{published['reason']}, after {published['elapsed_ms']} ms")
    demo.check("the broker acknowledged the message", published["acknowledged"])

    demo.say("Wait until it is warm")
    before = (await demo.call("mqtt_read", topic_filter=temperature, timeout_s=5))["messages"][0]
    goal = round(before["payload"]["value"] + 12, 1)
    waited = await demo.call(
        "mqtt_wait",
        topic_filter=temperature,
        condition={"path": "value", "op": ">", "value": goal},
        timeout_s=20,
    )
    demo.check(f"the temperature rose above {goal} within {waited['waited_s']} s", waited["matched"])

    demo.say("Read what was collected meanwhile")
    messages = await demo.call("mqtt_messages", subscription_id=subscription["subscription_id"], limit=5)
    demo.tell(", ".join(str(message["payload"]["value"]) for message in messages["messages"]))
    demo.tell(f"{messages['remaining']} more, {messages['dropped']} dropped, gaps: {messages['gaps'] or 'none'}")
    demo.check("the server listened all the time", messages["messages"] and messages["connected_throughout"])

    demo.say("Ask a device and get its answer")
    arguments = {"response_topic": f"{plant}/device/response"} if protocol == "3.1.1" else {}
    response = await demo.call("mqtt_request", topic=f"{plant}/device/request", payload='{"do": "report"}', **arguments)
    demo.tell(f"{response['response']['payload']} after {response['elapsed_ms']} ms")
    demo.check("the device answered this request", response["response"]["payload"]["ok"])

    demo.say("A mistake: publish to a wildcard")
    refusal, _ = await demo.call_badly("mqtt_publish", topic=f"{plant}/+/set", payload="on")
    demo.tell(refusal)
    demo.check("it was refused with a reason, and nothing was sent", "wildcard" in refusal)

    demo.say("Tidy up")
    await demo.call("mqtt_publish", topic=f"{plant}/heater/set", payload="off")
    ended = await demo.call("mqtt_unsubscribe", subscription_id=subscription["subscription_id"])
    demo.check(f"the subscription ended; it had received {ended['received']} messages", ended["received"])


async def _nothing_left(demo: Demo, plant: str) -> None:
    demo.say("Nothing is left behind")
    left = await demo.call("mqtt_topics", topic_filter=f"{plant}/#", listen_s=1)
    demo.check("no retained message of the plant is left at the broker", not any(t["retained"] for t in left["topics"]))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the demo happens."""

    broker: BrokerConfig
    prefix: str
    environment: dict[str, str]
    """Of the server, which is started with `arguments`."""
    arguments: tuple[str, ...]


def _embedded(broker: Broker) -> _Place:
    settings = {"MQTT_BROKER": broker.host, "MQTT_PORT": str(broker.port)}
    config = Config.from_env(settings, env_file=None)
    # Settings of the person's own are for a broker of the person's own.
    return _Place(config.broker, "plant", environment(without=NAMES, **settings), ("--env-file", os.devnull))


def _own(address: str, env_file: Path) -> _Place:
    host, colon, port = address.rpartition(":") if "://" not in address else ("", "", "")
    settings = {"MQTT_BROKER": host, "MQTT_PORT": port} if colon else {"MQTT_BROKER": address}
    child_environment = environment(without=["MQTT_BROKER", "MQTT_PORT"], **settings)
    config = Config.from_env(child_environment, env_file=env_file)
    if config.broker.transport == "websockets":
        raise DemoError("the demo's plant speaks MQTT over TCP or TLS only, not over WebSocket")
    prefix = f"coreflux-mcp-demo/{secrets.token_hex(4)}"
    return _Place(config.broker, prefix, child_environment, ("--env-file", str(env_file)))


@asynccontextmanager
async def served(console: Screen, environment: Mapping[str, str], *arguments: str) -> AsyncIterator[Demo]:
    """Start the server as a child and give the steps a client of it; say at the end that all was well."""
    console.print("Starting the MCP server as a child process, as an MCP client does ...")
    server = StdioServerParameters(
        command=sys.executable,
        args=[str(Path(__file__).with_name("server.py")), *arguments],
        env={**environment, "LOG_LEVEL": "WARNING"},
    )

    async def person(context: Any, params: Any) -> ElicitResult:  # noqa: ARG001 - as the SDK calls it
        console.print(f"   [bold]The server asks a person:[/bold] {escape(params.message)} Yes.")
        return ElicitResult(action="accept", content={"allow": True})

    async with Client(server, elicitation_callback=person) as client:
        demo = Demo(console, client)
        yield demo
    took_s = time.monotonic() - demo.started
    console.print(f"\n[bold green]Everything was as it should be[/bold green] ({took_s:.0f} s).")


async def _run(own: _Place | None, console: Screen) -> None:
    async with AsyncExitStack() as stack:
        place = own or _embedded(await stack.enter_async_context(Broker()))
        settings = {**place.environment, "ACCESS_MODE": "write"}
        demo = await stack.enter_async_context(served(console, settings, *place.arguments))
        protocol = await connected(demo)
        broker = place.broker
        plant = Plant(
            broker.host,
            broker.port,
            prefix=place.prefix,
            username=broker.user,
            password=broker.password.get_secret_value() if broker.password else None,
            tls=tls_context(broker.tls) if broker.tls else None,
            protocol=protocol,
        )
        async with running(plant):
            await _steps(demo, place.prefix, protocol)
        await _nothing_left(demo, place.prefix)


def run_demo(address: str | None, env_file: Path) -> int:
    """Run the demo on the embedded broker, or on the broker at `address`, and return the exit code."""
    if address is None:
        return present("Starting the embedded development broker, for a small plant ...", partial(_run, None))
    own = _own(address, env_file)
    return present(f"On {own.broker.url} a small plant will live below {own.prefix}, for a minute.", partial(_run, own))


def present(beginning: str, show: Callable[[Screen], Awaitable[None]]) -> int:
    """Show everything within the time there is, and return the exit code."""
    console = Screen(highlight=False, soft_wrap=True)
    console.print(escape(beginning))
    failure = None
    try:
        asyncio.run(_in_time(show(console)))
    except* TimeoutError:
        failure = f"it did not end within {TIMEOUT_S} s"
    except* (BridgeError, OSError) as group:
        failure = str(_first(group))
    if failure is not None:
        console.print(f"\n[bold red]Not as it should be:[/bold red] {escape(failure)}")
        return 1
    return 0


async def _in_time(showing: Awaitable[None]) -> None:
    await asyncio.wait_for(showing, TIMEOUT_S)


def _cut(text: str, chars: int) -> str:
    return text if len(text) <= chars else f"{text[:chars]} ..."


def _first(error: BaseException) -> BaseException:
    """Return what a task group wraps."""
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error

"""Clients of others: the TypeScript SDKs of both protocol eras and the MCP Inspector, over stdio and over HTTP."""

import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from simulator.broker import Broker
from tests.judges.court import OVER_HTTP, ROOT, SERVER, Court

JUDGES: Final = ROOT / ".judges"
INSPECTOR: Final = JUDGES / "node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js"
ERAS: Final = ("legacy", "auto")
PUBLISH: Final = (
    "--method",
    "tools/call",
    "--tool-name",
    "mqtt_publish",
    "--tool-args-json",
    '{"topic":"j","payload":"1"}',
)
WOULD_LOG_IN: Final = 3
"""How the Inspector ends at a 401."""


async def over_stdio(court: Court) -> None:
    """Let clients start the server themselves."""
    async with Broker() as broker:
        settings = {
            "MQTT_BROKER": broker.host,
            "MQTT_PORT": str(broker.port),
            "CONFIRM": "overwrite",
            "LOG_LEVEL": "ERROR",
        }
        passed_on = [word for name, value in settings.items() for word in ("-e", f"{name}={value}")]
        await _judge(court, "stdio", SERVER, [*SERVER, *passed_on], settings)


async def over_http(court: Court) -> None:
    """Let clients come that have the token, and the same with a wrong one."""
    token = secrets.token_urlsafe(32)
    async with court.served(SERVER, OVER_HTTP | {"MCP_TOKEN": token, "CONFIRM": "overwrite"}) as url:
        shown = [url, "--transport", "http", "--header", f"Authorization: Bearer {token}"]
        await _judge(court, "HTTP", [url], shown, {"TOKEN": token})
        for era in ERAS:
            command = [court.node, str(INSPECTOR), "--cli", *shown[:-1], f"Authorization: Bearer wrong-{token}"]
            await court.run(
                f"Inspector over HTTP, {era}, wrong token",
                [*command, "--protocol-era", era, "--method", "tools/list"],
                exit_code=WOULD_LOG_IN,
            )


async def _judge(court: Court, how: str, target: list[str], inspected: list[str], settings: Mapping[str, str]) -> None:
    # Node finds packages beside the script that imports them.
    script = str(shutil.copy(Path(__file__).with_name("client.mjs"), JUDGES))
    for generation in ("v1", "v2"):
        await court.run(f"TypeScript SDK {generation} over {how}", [court.node, script, generation, *target], settings)
    inspect = [court.node, str(INSPECTOR), "--cli", *inspected]
    await court.run(f"Inspector over {how}, schemas", [*inspect, "--method", "tools/list", "--strict"], settings)
    for era in ERAS:
        await court.run(f"Inspector over {how}, {era}", [*inspect, "--protocol-era", era, *PUBLISH], settings)

"""Starts the embedded broker and lets outside MCP clients judge the server on it: judge.py NODE."""

import asyncio
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from simulator.broker import Broker  # noqa: E402 - the line above makes it importable

JUDGES = ROOT / ".judges"
INSPECTOR = JUDGES / "node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js"
ERAS = ("legacy", "auto")


async def judge(node: str) -> bool:
    """Run every judge and say whether all of them were content."""
    # Node finds packages beside the script that imports them.
    script = str(shutil.copy(Path(__file__).with_name("client.mjs"), JUDGES))
    server = [sys.executable, str(ROOT / "server.py"), "--env-file", os.devnull]
    publish = [
        "--method",
        "tools/call",
        "--tool-name",
        "mqtt_publish",
        "--tool-args-json",
        '{"topic":"j","payload":"1"}',
    ]
    async with Broker() as broker:
        settings = {"MQTT_BROKER": broker.host, "MQTT_PORT": str(broker.port), "LOG_LEVEL": "ERROR"}
        passed_on = [word for name, value in settings.items() for word in ("-e", f"{name}={value}")]
        inspect = [node, str(INSPECTOR), "--cli", *server, *passed_on]
        verdicts = [
            await run("TypeScript SDK 1", [node, script, "v1", *server], settings),
            await run("TypeScript SDK 2", [node, script, "v2", *server], settings),
            await run("Inspector, schemas", [*inspect, "--method", "tools/list", "--strict"], settings),
            *[await run(f"Inspector, {era}", [*inspect, "--protocol-era", era, *publish], settings) for era in ERAS],
        ]
    return all(verdicts)


async def run(name: str, command: list[str], settings: dict[str, str]) -> bool:
    """Run one judge; what it says is shown when it is not content."""
    process = await asyncio.create_subprocess_exec(
        *command, env=os.environ | settings, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    sys.stdout.write(f"{name}: {'content' if process.returncode == 0 else f'NOT CONTENT ({process.returncode})'}\n")
    if process.returncode:
        sys.stdout.write(output.decode(errors="replace") + "\n")
    return process.returncode == 0


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(judge(sys.argv[1])) else 1)

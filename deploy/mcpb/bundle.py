"""Builds the bundle that MCP clients install with one click, and tries it; `scripts/bundle` runs it.

The manifest is `manifest.json` beside this file and, filled in here: the tools as the server lists them, its version,
and of each setting that a person is asked for what `.env.example` says about it.
"""

import argparse
import asyncio
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from zipfile import ZipFile

ROOT: Final = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from mcp.client import Client  # noqa: E402 - the line above makes the rest importable
from mcp.client.stdio import StdioServerParameters  # noqa: E402

from bridge import VERSION  # noqa: E402
from simulator.broker import Broker  # noqa: E402
from simulator.users import User  # noqa: E402

HERE: Final = Path(__file__).parent
TOOLS: Final = ROOT / ".bundle"
"""Where `scripts/bundle` has put mcpb, uv and skillsaw."""

PRODUCT: Final = (
    "*.py",
    "tools/*.py",
    "doctor/*.py",
    "onboarding/*.py",
    "lot/*.py",
    "lot/*.lark",
    "lot/reference/*.md",
    "simulator/*.py",
)
"""What a run needs, but for programs of their own."""

PROGRAMS: Final = {ROOT / "health.py"}
"""What only a container runs."""

ALL: Final = {"ACCESS_MODE": "admin", "COPILOT_URL": "https://copilot.example", "DO_AGENT_API_KEY": "key"}
"""With which all tools are there; nobody is asked."""

NOBODY_LISTENS: Final = "127.0.0.1:9"
START_TIMEOUT_S: Final = 300
"""The first start fetches what the server needs."""

CONNECT_TIMEOUT_S: Final = 10

REGISTRY: Final = ROOT / "server.json"
OWNER: Final = "OWNER"
"""Stands there for whose repository it is, which who publishes it knows."""


def lay_out(directory: Path) -> dict[str, Any]:
    """Put everything that belongs into the bundle below `directory`, and return the manifest."""
    for path in sorted({path for pattern in PRODUCT for path in ROOT.glob(pattern)} - PROGRAMS):
        _write(directory / "server" / path.relative_to(ROOT), path.read_bytes())
    manifest = _manifest(asyncio.run(_listed(directory / "server" / "server.py")))
    _write(directory / "manifest.json", _json(manifest).encode())
    _write(directory / "pyproject.toml", _pyproject().encode())
    return manifest


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o644)


async def _listed(server: Path) -> list[dict[str, str]]:
    """Start the server with all tools, and return what it lists."""
    entry = {"command": sys.executable, "args": ["-B", str(server)], "env": {"MQTT_BROKER": NOBODY_LISTENS, **ALL}}
    async with _started(entry, {}) as client:
        tools = (await client.list_tools()).tools
    return [{"name": tool.name, "description": tool.description or ""} for tool in tools]


def _manifest(tools: list[dict[str, str]]) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    manifest |= {"version": VERSION, "description": _project()["description"], "tools": tools}
    described = {
        name: (re.sub(r" Secret; better in \w+_FILE\.", "", comment), default)
        for comment, name, default in re.findall(
            r"^# (.+)\n([A-Z0-9_]+)=(.*)$", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    environment = manifest["server"]["mcp_config"]["env"] = {}
    for key, option in manifest["user_config"].items():
        environment[key.upper()] = f"${{user_config.{key}}}"
        option["description"], default = described[key.upper()]
        if not option.get("required"):
            # What has no value and no default would reach the server as the text ${user_config...}.
            option["default"] = default
    return manifest


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def _pyproject() -> str:
    """Write down for uv what the server needs."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    needed = [line for line in lines if line and not line.startswith("#")]
    return "\n".join(
        [
            "[project]",
            f"name = {json.dumps(_project()['name'])}",
            f"version = {json.dumps(VERSION)}",
            f"requires-python = {json.dumps(_project()['requires-python'])}",
            f"dependencies = {json.dumps(needed, indent=2)}",
            "",
            "[tool.uv]",
            "package = false",
            "",
        ]
    )


def registry_entry(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `server.json` has to say: as it is, with the version and the settings of the manifest."""
    entry: dict[str, Any] = json.loads(REGISTRY.read_text(encoding="utf-8"))
    (package,) = entry["packages"]
    version = entry["version"] = package["version"] = manifest["version"]
    file = f"{manifest['name']}-{version}.mcpb"
    package["identifier"] = f"{entry['repository']['url']}/releases/download/v{version}/{file}"
    package["environmentVariables"] = [
        {
            "name": key.upper(),
            "description": option["description"],
            "format": "filepath" if option["type"] == "file" else "string",
            "isRequired": option.get("required", False),
            "isSecret": option.get("sensitive", False),
        }
        | ({"default": option["default"]} if option.get("default") else {})
        for key, option in manifest["user_config"].items()
    ]
    return entry


def build(owner: str) -> tuple[Path, dict[str, Any]]:
    """Write the bundle and its entry for the MCP Registry into dist/; return the bundle and its manifest.

    `server.json` is brought up to date; the entry in dist/ is the same for one owner and with the bundle's hash.
    """
    with tempfile.TemporaryDirectory() as directory:
        manifest = lay_out(Path(directory))
        bundle = ROOT / "dist" / f"{manifest['name']}-{manifest['version']}.mcpb"
        _mcpb("validate", str(Path(directory) / "manifest.json"))
        _mcpb("pack", directory, str(bundle))
        laid_out = {path.relative_to(directory).as_posix() for path in Path(directory).rglob("*") if path.is_file()}
        if set(ZipFile(bundle).namelist()) != laid_out:
            raise SystemExit("mcpb has left files out of the bundle.")
    entry = registry_entry(manifest)
    REGISTRY.write_text(_json(entry), encoding="utf-8")
    entry["packages"][0]["fileSha256"] = hashlib.sha256(bundle.read_bytes()).hexdigest()
    (bundle.parent / "server.json").write_text(_json(entry).replace(OWNER, owner), encoding="utf-8")
    return bundle, manifest


def check(bundle: Path, manifest: Mapping[str, Any], owner: str) -> None:
    """Start the bundle as Claude Desktop does, and let outsiders judge what was built.

    Raises:
        SystemExit: Something is not as it should be.
    """
    content = bundle.read_bytes()
    build(owner)
    _hold("the same files make the same bundle", bundle.read_bytes() == content)
    with tempfile.TemporaryDirectory() as directory:
        unpacked = Path(directory) / "Claude Extensions" / manifest["name"]
        _mcpb("unpack", str(bundle), str(unpacked))
        first, every = asyncio.run(_tried(unpacked, Path(directory)))
        _hold("started from the bundle with uv, the server connects with the login that was filled in", first and every)
        names = {tool["name"] for tool in manifest["tools"]}
        _hold("what nobody has filled in is as if it were not there", first < names and "copilot_ask" not in first)
        _hold("with everything filled in, the tools are those of the manifest", every == names)
        entry = Path(directory) / "registry" / "server.json"
        _write(entry, (bundle.parent / "server.json").read_bytes())
        judge = [TOOLS / "python/bin/skillsaw", "lint", "--strict", "--no-custom-rules", str(entry.parent)]
        _hold("server.json is what the MCP Registry takes", _run(judge))


async def _tried(unpacked: Path, scratch: Path) -> tuple[set[str], set[str]]:
    """Return the tools that are there when only a login was filled in, and when everything was."""
    login = {"mqtt_user": "assistant", "mqtt_password": "p$1 ü\"'%\\x"}
    async with Broker(users={login["mqtt_user"]: User(login["mqtt_password"])}) as broker:
        answers = login | {"mqtt_broker": f"{broker.host}:{broker.port}"}
        first = await _tools_once_connected(unpacked, scratch, answers)
        everything = answers | {name.lower(): value for name, value in ALL.items()}
        return first, await _tools_once_connected(unpacked, scratch, everything)


async def _tools_once_connected(unpacked: Path, scratch: Path, answers: Mapping[str, str]) -> set[str]:
    async with _started(_entry(unpacked, answers), _environment(scratch)) as client, asyncio.timeout(CONNECT_TIMEOUT_S):
        while True:
            status = (await client.call_tool("server_status", {})).structured_content or {}
            if status["connection"]["connected"]:
                return {tool.name for tool in (await client.list_tools()).tools}


def _entry(unpacked: Path, answers: Mapping[str, str]) -> dict[str, Any]:
    # Node finds packages beside the script that imports them.
    script = shutil.copy(HERE / "host.mjs", TOOLS)
    entry: dict[str, Any] = json.loads(_run(["node", script, str(unpacked), json.dumps(answers)]))
    return entry


def _environment(scratch: Path) -> dict[str, str]:
    """Return what a desktop has: an empty home directory, uv, and how to get to the package registry."""
    home = scratch / "home"
    home.mkdir(exist_ok=True)
    way = {name: value for name, value in os.environ.items() if re.fullmatch(r"(?i)SSL_CERT_.*|UV_.*|.*_PROXY", name)}
    path = f"{TOOLS / 'python/bin'}{os.pathsep}{os.environ['PATH']}"
    return way | {"PATH": path, "HOME": str(home), "UV_CACHE_DIR": str(TOOLS / "cache")}


@asynccontextmanager
async def _started(entry: Mapping[str, Any], environment: Mapping[str, str]) -> AsyncIterator[Client]:
    server = StdioServerParameters(
        command=entry["command"], args=entry["args"], env={**environment, "LOG_LEVEL": "ERROR", **entry["env"]}
    )
    async with asyncio.timeout(START_TIMEOUT_S), Client(server, read_timeout_seconds=START_TIMEOUT_S) as client:
        yield client


def _mcpb(*arguments: str) -> None:
    cli = TOOLS / "node_modules/@anthropic-ai/mcpb/dist/cli/cli.js"
    _run(["node", "--import", (HERE / "one-date.mjs").as_uri(), cli, *arguments], TZ="UTC")


def _run(command: list[Any], **settings: str) -> str:
    done = subprocess.run(  # noqa: S603 - the commands are ours
        command, env=os.environ | settings, capture_output=True, text=True, check=False, timeout=START_TIMEOUT_S
    )
    if done.returncode:
        raise SystemExit(f"{Path(command[0]).name} is not content:\n{done.stdout}{done.stderr}")
    return done.stdout


def _hold(claim: str, holds: object) -> None:
    if not holds:
        raise SystemExit(f"This should hold and does not: {claim}")
    sys.stdout.write(f"OK  {claim}\n")


def main() -> int:
    """Build, and try what was built where that is asked for."""
    parser = argparse.ArgumentParser(prog="scripts/bundle", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="start what was built as an MCP client does")
    parser.add_argument("--owner", default=OWNER, help="whose repository on GitHub, for dist/server.json")
    parser.add_argument("--lay-out", metavar="DIRECTORY", type=Path, help="only put the files there; needs no npm")
    options = parser.parse_args()
    if options.lay_out:
        lay_out(options.lay_out)
        return 0
    bundle, manifest = build(options.owner)
    sys.stdout.write(f"{bundle.relative_to(ROOT)} and dist/server.json are built.\n")
    if options.check:
        check(bundle, manifest, options.owner)
    return 0


if __name__ == "__main__":
    sys.exit(main())

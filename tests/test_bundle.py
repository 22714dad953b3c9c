"""The bundle that MCP clients install with one click, and the entry for the MCP Registry.

What is packed is tried with uv, and with mcpb's own code for what people fill in, by `scripts/bundle --check`.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters

from config import SECRETS, SETTINGS, Config
from server import VERSION
from tests.documentation import ROOT, list_tools

pytestmark = pytest.mark.anyio

ENTRY = json.loads((ROOT / "server.json").read_text(encoding="utf-8"))
EVERYTHING = {
    "mqtt_broker": "embedded",
    "access_mode": "admin",
    "do_agent_api_key": "key",
    "copilot_url": "https://copilot.example",
}
"""Answers with which all tools are there."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What gets packed, in a folder with a blank in its name, as Claude Desktop's is."""
    directory = tmp_path_factory.mktemp("Claude Extensions")
    subprocess.run(
        [sys.executable, str(ROOT / "deploy/mcpb/bundle.py"), "--lay-out", str(directory)], check=True, timeout=60
    )
    return directory


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    return read


def filled_in(manifest: Mapping[str, Any], answers: Mapping[str, str]) -> dict[str, str]:
    """Put answers into the environment as mcpb does: what has neither an answer nor a default stays as it is."""
    defaults = {key: option["default"] for key, option in manifest["user_config"].items() if "default" in option}
    return {
        name: re.sub(r"\$\{user_config\.(\w+)\}", lambda found: ({**defaults, **answers}).get(found[1], found[0]), text)
        for name, text in manifest["server"]["mcp_config"]["env"].items()
    }


def importable(file: Path, found: set[Path]) -> set[Path]:
    """Add `file` and all of ours that it imports, anywhere in it."""
    if file in found:
        return found
    found.add(file)
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f"{node.module}.{each.name}" for each in node.names)}
    for name in names:
        path = ROOT / name.replace(".", "/")
        for candidate in (path.with_suffix(".py"), path / "__init__.py", path.parent / "__init__.py"):
            if candidate.is_file():
                importable(candidate, found)
    return found


def test_in_it_is_the_server_with_everything_it_can_import_and_read_and_nothing_else(bundle: Path) -> None:
    code = importable(ROOT / "server.py", set())
    read = {ROOT / "lot/grammar.lark", *(ROOT / "lot/reference").iterdir()}

    needed = {"manifest.json", "pyproject.toml", *(f"server/{path.relative_to(ROOT)}" for path in code | read)}
    packed = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
    assert {path for path in packed if "__pycache__" not in path} == needed


async def test_the_manifest_has_the_version_and_the_tools_of_the_code(manifest: dict[str, Any]) -> None:
    tools = [{"name": tool["name"], "description": tool["description"]} for tool in await list_tools()]

    assert (manifest["version"], manifest["tools"]) == (VERSION, tools)


def test_its_dependencies_are_those_of_every_other_run(bundle: Path) -> None:
    project = tomllib.loads((bundle / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert project == {
        "name": ours["name"],
        "version": VERSION,
        "requires-python": ours["requires-python"],
        "dependencies": [line for line in lines if not line.startswith("#")],
    }


def test_what_a_person_is_asked_for_are_settings_and_secrets_go_to_the_keychain(manifest: dict[str, Any]) -> None:
    asked = manifest["user_config"]

    assert list(manifest["server"]["mcp_config"]["env"]) == [key.upper() for key in asked]
    assert {key.upper() for key in asked} <= set(SETTINGS)
    assert {key.upper() for key, option in asked.items() if option.get("sensitive")} == {
        "MQTT_PASSWORD",
        "DO_AGENT_API_KEY",
    }
    assert {key.upper() for key, option in asked.items() if not option.get("sensitive")} & set(SECRETS) == set()


def test_what_nobody_fills_in_is_as_if_it_were_not_set(manifest: dict[str, Any]) -> None:
    fixed = {"MQTT_CLIENT_ID": "me"}
    untouched = filled_in(manifest, {"mqtt_broker": "plc.local"})
    cleared = filled_in(manifest, dict.fromkeys(manifest["user_config"], "") | {"mqtt_broker": "plc.local"})

    expected = Config.from_env({"MQTT_BROKER": "plc.local", **fixed}, env_file=None)
    assert Config.from_env(untouched | fixed, env_file=None) == expected
    assert Config.from_env(cleared | fixed, env_file=None) == expected


def test_what_a_person_fills_in_arrives(manifest: dict[str, Any], tmp_path: Path) -> None:
    authority = tmp_path / "our ca.pem"
    authority.write_text("-----BEGIN CERTIFICATE-----\n", encoding="ascii")
    answers = {
        **EVERYTHING,
        "mqtt_broker": "plc.local:9883",
        "mqtt_user": "me",
        "mqtt_password": 'p "1" $ü',
        "mqtt_use_tls": "true",
        "mqtt_ca_cert": str(authority),
    }

    config = Config.from_env(filled_in(manifest, answers), env_file=None)

    assert set(answers) == set(manifest["user_config"])
    assert config.broker.url == "mqtts://plc.local:9883"
    assert config.broker.tls is not None
    assert config.broker.tls.ca_cert == authority
    assert config.broker.password is not None
    assert (config.broker.user, config.broker.password.get_secret_value()) == ("me", 'p "1" $ü')
    assert (config.access_mode, config.copilot.missing) == ("admin", [])


@pytest.mark.parametrize(
    ("answers", "missing"),
    [
        pytest.param(EVERYTHING, set(), id="everything"),
        pytest.param(
            {"mqtt_broker": "embedded"},
            {"mqtt_clear_retained", "lot_remove", "coreflux_command", "copilot_ask", "copilot_generate_lot"},
            id="only what has to be filled in",
        ),
    ],
)
async def test_it_starts_in_an_empty_home_with_the_tools_of_its_manifest(
    bundle: Path, manifest: dict[str, Any], answers: dict[str, str], missing: set[str], tmp_path: Path
) -> None:
    command = manifest["server"]["mcp_config"]
    assert [command["command"], *command["args"]] == [
        "uv",
        "run",
        "--directory",
        "${__dirname}",
        manifest["server"]["entry_point"],
    ]
    settings = filled_in(manifest, answers) | {"HOME": str(tmp_path), "LOG_LEVEL": "ERROR"}
    server = StdioServerParameters(
        command=sys.executable, args=["-B", manifest["server"]["entry_point"]], cwd=bundle, env=settings
    )

    async with Client(server) as client:
        listed = {tool.name for tool in (await client.list_tools()).tools}
        reference = await client.read_resource("lot://reference/action")
        status = (await client.call_tool("server_status", {"check": True})).structured_content

    assert listed == {tool["name"] for tool in manifest["tools"]} - missing
    assert reference.contents
    assert status is not None
    assert status["policy"]["access"] == answers.get("access_mode", "write")


def test_the_registry_entry_is_of_this_version_and_of_this_bundle(manifest: dict[str, Any]) -> None:
    (package,) = ENTRY["packages"]

    assert (ENTRY["version"], package["version"]) == (VERSION, VERSION)
    assert package["identifier"].endswith(f"/v{VERSION}/{manifest['name']}-{VERSION}.mcpb")
    assert package["identifier"].startswith(ENTRY["repository"]["url"])
    assert ENTRY["name"] == f"io.github.OWNER/{manifest['name']}"
    assert len(ENTRY["description"]) <= 100


def test_the_registry_entry_has_the_settings_that_the_bundle_asks_for(manifest: dict[str, Any]) -> None:
    (package,) = ENTRY["packages"]

    assert package["environmentVariables"] == [
        {
            "name": key.upper(),
            "description": option["description"],
            "format": "filepath" if option["type"] == "file" else "string",
            "isRequired": option.get("required", False),
            "isSecret": option.get("sensitive", False),
        }
        | ({"default": option["default"]} if option.get("default") else {})
        for key, option in manifest["user_config"].items()
    ], "scripts/bundle writes them"

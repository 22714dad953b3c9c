"""The entry for an MCP client's configuration."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from client_config import entry
from config import settings_to_pass_on
from tests.documentation import ROOT

COMMAND = {"command": sys.executable, "args": [str(ROOT / "server.py")], "env": {"MQTT_BROKER": "plc.local"}}


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("claude-desktop", {"mcpServers": {"coreflux": COMMAND}}),
        ("cursor", {"mcpServers": {"coreflux": COMMAND}}),
        ("claude-code", {"mcpServers": {"coreflux": {"type": "stdio", **COMMAND}}}),
        ("vscode", {"servers": {"coreflux": {"type": "stdio", **COMMAND}}}),
    ],
)
def test_each_client_gets_its_own_form(client: Any, expected: dict[str, Any]) -> None:
    assert entry(client, "coreflux", {"MQTT_BROKER": "plc.local"}) == expected


def test_secrets_are_not_written_into_an_entry() -> None:
    environ = {
        "MQTT_BROKER": "mqtt://me:very-secret@plc",
        "MQTT_PASSWORD": "very-secret",
        "MQTT_PASSWORD_FILE": "/run/secrets/mqtt",
        "MQTT_USER": "me",
        "PATH": "/bin",
        "MQTT_CLIENT_ID": "",
    }

    settings, withheld = settings_to_pass_on(environ)

    assert settings == {"MQTT_PASSWORD_FILE": "/run/secrets/mqtt", "MQTT_USER": "me"}
    assert withheld == ["MQTT_BROKER", "MQTT_PASSWORD"]


def test_the_command_prints_json_and_nothing_else_to_stdout(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "server.py"), "client-config", "claude-desktop", "--name", "plant"],
        env=os.environ | {"MQTT_BROKER": "plc.local", "MQTT_PASSWORD": "very-secret"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )

    assert list(json.loads(done.stdout)["mcpServers"]) == ["plant"]
    assert "claude_desktop_config.json" in done.stderr
    assert "MQTT_PASSWORD" in done.stderr
    assert "very-secret" not in done.stdout + done.stderr

"""The entry that an MCP client needs in its configuration to start this server."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from sanitizer import hide_secrets

Client = Literal["claude-desktop", "claude-code", "cursor", "vscode"]

_PLACES: Final[dict[Client, str]] = {
    "claude-desktop": "Settings > Developer > Edit Config (claude_desktop_config.json); then restart Claude Desktop",
    "claude-code": ".mcp.json in the project folder",
    "cursor": "~/.cursor/mcp.json, or .cursor/mcp.json in the project folder",
    "vscode": ".vscode/mcp.json in the project folder",
}


def entry(client: Client, name: str, settings: Mapping[str, str]) -> dict[str, Any]:
    """Return the entry for `client`, which starts this checkout with this Python and the settings given."""
    start: dict[str, Any] = {
        "command": sys.executable,
        "args": [str(Path(__file__).with_name("server.py").resolve())],
        "env": dict(settings) or {"MQTT_BROKER": "localhost"},
    }
    if client == "vscode":
        return {"servers": {name: {"type": "stdio", **start}}}
    return {"mcpServers": {name: {"type": "stdio", **start} if client == "claude-code" else start}}


def write_entry(client: Client, name: str, settings: Mapping[str, str], withheld: list[str]) -> None:
    """Write the entry to stdout, so that it can be piped, and what to do with it to stderr."""
    sys.stdout.write(hide_secrets(json.dumps(entry(client, name, settings), indent=2)) + "\n")
    sys.stderr.write(f"\nWhere it goes: {_PLACES[client]}.\n")
    if withheld:
        sys.stderr.write(
            f"Left out because they are secret: {', '.join(withheld)}. Put them into .env beside server.py, "
            "or name a file that holds the value, as in MQTT_PASSWORD_FILE.\n"
        )

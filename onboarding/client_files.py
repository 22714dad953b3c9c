"""Where MCP clients keep their list of servers, and how one entry gets into it with every other byte left as it is."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from config import claude_code_settings, programs_settings
from errors import InputError

Client = Literal["claude-desktop", "claude-code", "cursor", "vscode"]

_JSON: Final = json.JSONDecoder()
_BLANK: Final = " \t\r\n"


class Entry(NamedTuple):
    """What a client has to know to use the server."""

    server: dict[str, Any]
    inputs: Sequence[dict[str, Any]] = ()
    """What VS Code asks its user for, and keeps in its own safe place."""


def list_of(client: Client) -> str:
    """Return what the list of servers is called in a client's file."""
    return "servers" if client == "vscode" else "mcpServers"


def settings_file(client: Client, project: Path | None = None) -> Path:
    """Return the file in which a client keeps the servers of its user, or of a project.

    Raises:
        InputError: The client has none for a project.
    """
    if project is None:
        return {
            "claude-desktop": programs_settings() / "Claude" / "claude_desktop_config.json",
            "claude-code": claude_code_settings() / ".claude.json",
            "cursor": Path.home() / ".cursor" / "mcp.json",
            "vscode": programs_settings() / "Code" / "User" / "mcp.json",
        }[client]
    if client == "claude-desktop":
        raise InputError("Claude Desktop has one file for its user and none for a project.")
    places = {"claude-code": ".mcp.json", "cursor": ".cursor/mcp.json", "vscode": ".vscode/mcp.json"}
    return project.absolute() / places[client]


def is_there(client: Client) -> bool:
    """Say whether the client seems to be used on this machine."""
    file = settings_file(client)
    return file.exists() or (client != "claude-code" and file.parent.is_dir())


def document(client: Client, name: str, entry: Entry) -> dict[str, Any]:
    """Return a whole file with nothing but the entry in it."""
    inputs = {"inputs": list(entry.inputs)} if entry.inputs else {}
    return {**inputs, list_of(client): {name: entry.server}}


def entry_in(text: str, client: Client, name: str) -> dict[str, Any] | None:
    """Return what a client's file has under a name; None when it has nothing there.

    Raises:
        InputError: It is not the JSON that is expected there.
    """
    found = _servers(_parsed(text), client).get(name)
    return None if found is None else found if isinstance(found, dict) else {"": found}


def with_entry(text: str, client: Client, name: str, entry: Entry) -> str:
    """Return the text of a client's file with the entry in it, and every other byte as it was.

    Raises:
        InputError: It is not the JSON that is expected there; VS Code, for one, writes files with comments.
    """
    if not text.strip(_BLANK):
        return json.dumps(document(client, name, entry), indent=2, ensure_ascii=False) + "\n"
    expected = _parsed(text)
    servers = _servers(expected, client)
    start = text.index("{")
    if list_of(client) not in expected:
        new = _with_member(text, start, list_of(client), {name: entry.server})
    else:
        new = _with_member(text, _value(text, start, list_of(client)), name, entry.server)
    expected = {**expected, list_of(client): {**servers, name: entry.server}}
    for each in entry.inputs:
        inputs = expected.get("inputs", [])
        if not isinstance(inputs, list):
            raise InputError('"inputs" is no list in it.')
        if each not in inputs:
            inputs = [
                *(other for other in inputs if not (isinstance(other, dict) and other.get("id") == each["id"])),
                each,
            ]
            new = _with_member(new, new.index("{"), "inputs", inputs)
            expected = {**expected, "inputs": inputs}
    if json.loads(new) != expected:
        raise InputError("It has the same name twice in one place.")
    return new


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text) if text.strip(_BLANK) else {}
    except (ValueError, RecursionError):
        raise InputError("It is not plain JSON: it has comments, a comma too many, or a mistake.") from None
    if not isinstance(found, dict):
        raise InputError("It is JSON, but not an object.")
    return found


def _servers(found: dict[str, Any], client: Client) -> dict[str, Any]:
    servers = found.get(list_of(client), {})
    if not isinstance(servers, dict):
        raise InputError(f'"{list_of(client)}" is no object in it.')
    return servers


class _Member(NamedTuple):
    """Where a member of an object stands in a text."""

    name: str
    start: int
    value: int
    end: int


def _members(text: str, start: int) -> list[_Member]:
    """List the members of the object that begins at `start`, in a text that is JSON."""
    members = []
    at = _next(text, start + 1)
    while text[at] != "}":
        name, after = _JSON.raw_decode(text, at)
        value = _next(text, _next(text, after) + 1)
        _, end = _JSON.raw_decode(text, value)
        members.append(_Member(name, at, value, end))
        at = _next(text, end)
        if text[at] == ",":
            at = _next(text, at + 1)
    return members


def _next(text: str, at: int) -> int:
    while text[at] in _BLANK:
        at += 1
    return at


def _value(text: str, start: int, name: str) -> int:
    return [each.value for each in _members(text, start) if each.name == name][-1]


def _with_member(text: str, start: int, name: str, value: object) -> str:
    """Give the object that begins at `start` a member, in place of the one of that name or after all others."""
    members = _members(text, start)
    newline = "\r\n" if "\r\n" in text else "\n"
    outer = _margin(text, start) or ""
    inner = _margin(text, members[-1].start) if members else outer + _step(text)
    if inner is None:  # the whole object is in one line
        written = json.dumps(value, ensure_ascii=False)
    else:
        step = inner.removeprefix(outer) or _step(text)
        written = json.dumps(value, indent=step, ensure_ascii=False).replace("\n", newline + inner)
    for each in reversed(members):
        if each.name == name:
            return text[: each.value] + written + text[each.end :]
    member = f"{json.dumps(name, ensure_ascii=False)}: {written}"
    if members:
        gap = " " if inner is None else newline + inner
        return f"{text[: members[-1].end]},{gap}{member}{text[members[-1].end :]}"
    return f"{text[: start + 1]}{newline}{inner}{member}{newline}{outer}{text[_next(text, start + 1) :]}"


def _margin(text: str, at: int) -> str | None:
    """Return what indents the line of something that stands first in it; None when it does not.

    For the beginning of an object that is what indents the line in which it begins.
    """
    line = text[max(text.rfind("\n", 0, at), text.rfind("\r", 0, at)) + 1 : at]
    if text[at] == "{":
        return line[: len(line) - len(line.lstrip(" \t"))]
    return None if line.strip(" \t") else line


def _step(text: str) -> str:
    """Return by how much the text indents."""
    members = _members(text, text.index("{"))
    return (_margin(text, members[0].start) or "  ") if members else "  "

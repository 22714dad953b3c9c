"""The entry that an MCP client needs to use this server: printed, as a link, or put into the client's file."""

import base64
import difflib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from config import ENV_FILE, Config, HTTPConfig, settings_to_pass_on
from errors import InputError
from onboarding.client_files import Client, Entry, document, entry_in, list_of, settings_file, with_entry
from onboarding.file_changes import read_file, replace_file
from sanitizer import MARKER, hide_secrets
from setting_values import web_url

TOKEN_VARIABLE: Final = "COREFLUX_MCP_TOKEN"  # noqa: S105 - where clients find the token  # nosec
"""The environment variable from which clients that have no safe place take the token."""

CLIENTS: Final[dict[Client, str]] = {
    "claude-desktop": "Claude Desktop",
    "claude-code": "Claude Code",
    "cursor": "Cursor",
    "vscode": "VS Code",
}
"""What people call them."""

_PLACES: Final[dict[Client, str]] = {
    "claude-desktop": "Settings > Developer > Edit Config (claude_desktop_config.json); then restart Claude Desktop",
    "claude-code": ".mcp.json in the project folder",
    "cursor": "~/.cursor/mcp.json, or .cursor/mcp.json in the project folder",
    "vscode": ".vscode/mcp.json in the project folder",
}
_BEARER: Final[dict[Client, str]] = {
    "claude-code": f"Bearer ${{{TOKEN_VARIABLE}}}",
    "cursor": f"Bearer ${{env:{TOKEN_VARIABLE}}}",
    "vscode": "Bearer ${input:coreflux-mcp-token}",
}
_ASK_FOR_TOKEN: Final = {
    "type": "promptString",
    "id": "coreflux-mcp-token",
    "description": "The token that python server.py token new printed",
    "password": True,
}


def started(client: Client, settings: Mapping[str, str], env_file: Path = ENV_FILE) -> Entry:
    """Return the entry for a client that starts this checkout, with this Python and the settings given."""
    server: dict[str, Any] = {"type": "stdio"} if client in {"claude-code", "vscode"} else {}
    server["command"] = sys.executable
    server["args"] = [str((Path(__file__).parents[1] / "server.py").resolve())]
    if env_file != ENV_FILE:
        server["args"] += ["--env-file", str(env_file.absolute())]
    if settings:
        server["env"] = dict(settings)
    return Entry(server)


def entry_as_set(client: Client, config: Config, settings: Mapping[str, str], env_file: Path) -> Entry:
    """Return the entry for a server with this configuration, however it serves.

    Raises:
        InputError: The client cannot have it so, or its address cannot be told.
    """
    if config.transport == "stdio":
        return started(client, settings, env_file)
    return over_http(client, address(config.http), token=bool(config.http.clients))


def over_http(client: Client, url: str, *, token: bool = True) -> Entry:
    """Return the entry for a client that finds the server at an address. The token itself is never in it.

    Raises:
        InputError: The client cannot.
    """
    if client == "claude-desktop":
        raise InputError(
            "Claude Desktop's file has only servers that it starts itself: leave MCP_TRANSPORT out, or put a bridge "
            "between them, like mcp-remote."
        )
    server: dict[str, Any] = {"url": url} if client == "cursor" else {"type": "http", "url": url}
    if token:
        server["headers"] = {"Authorization": _BEARER[client]}
    return Entry(server, (_ASK_FOR_TOKEN,) if token and client == "vscode" else ())


def address(http: HTTPConfig) -> str:
    """Return where clients on this machine find the server.

    Raises:
        InputError: It cannot be told from the settings.
    """
    if http.unix_socket:
        raise InputError("Clients do not find a Unix socket: name the address of the proxy in front of it with --url.")
    if not http.port:
        raise InputError("MCP_PORT=0 is another port at each start: set MCP_PORT, or name the address with --url.")
    return f"{http.url}/mcp"


def link(client: Client, name: str, entry: Entry) -> str:
    """Return the link that has a client ask its user to add the entry.

    Raises:
        InputError: The client has none.
    """
    if client == "cursor":
        packed = base64.b64encode(json.dumps(entry.server).encode()).decode()
        query = f"name={quote(name, safe='')}&config={quote(packed, safe='')}"
        return f"cursor://anysphere.cursor-deeplink/mcp/install?{query}"
    if client == "vscode":
        whole = {"name": name, **entry.server, **({"inputs": list(entry.inputs)} if entry.inputs else {})}
        return f"vscode:mcp/install?{quote(json.dumps(whole), safe='')}"
    raise InputError(f"{CLIENTS[client]} has no links that add a server: use --install.")


def web_link(name: str, entry: Entry) -> str:
    """Return VS Code's link for pages that may only link to the web, such as a README; its site sees the entry."""
    inputs = f"&inputs={quote(json.dumps(list(entry.inputs)), safe='')}" if entry.inputs else ""
    config = quote(json.dumps(entry.server), safe="")
    return f"https://insiders.vscode.dev/redirect/mcp/install?name={quote(name, safe='')}{inputs}&config={config}"


def install(client: Client, name: str, entry: Entry, file: Path, *, dry_run: bool) -> Iterator[str]:
    """Put an entry into a client's file, which is copied first, and tell what is done; nothing is in a dry run.

    Raises:
        InputError: The file is not the JSON that is expected there; it says what to paste.
        BridgeError: It cannot be read or written.
    """
    before = read_file(file)
    try:
        text = (before or b"").decode("utf-8-sig")
        old = entry_in(text, client, name)
        new = with_entry(text, client, name, entry)
    except (InputError, UnicodeDecodeError) as exc:
        why = "It is not UTF-8." if isinstance(exc, UnicodeDecodeError) else str(exc)
        paste = json.dumps(document(client, name, entry), indent=2, ensure_ascii=False)
        raise InputError(f"{file} is left alone. {why} Paste into it what is new of this:\n{paste}") from None
    if new == text:
        yield f"{file} has this entry already."
        return
    yield from _difference(client, name, old, entry, file)
    if dry_run:
        yield "Nothing was written."
        return
    mark = b"\xef\xbb\xbf" if (before or b"").startswith(b"\xef\xbb\xbf") else b""
    copy = replace_file(file, before, mark + new.encode())
    kept = f"; all else in it is as it was, and a copy of that is {copy}" if copy else ""
    yield f"{file} has the entry now{kept}. Restart {CLIENTS[client]}."


def _difference(client: Client, name: str, old: dict[str, Any] | None, entry: Entry, file: Path) -> Iterator[str]:
    """Show what goes and what comes; what others wrote into an entry may be a secret and is not shown."""
    list_name = list_of(client)
    there = {list_name: {name: _masked(old, entry.server)}} if old is not None else {list_name: {}}
    now, then = (
        json.dumps(each, indent=2, ensure_ascii=False).splitlines() for each in (there, document(client, name, entry))
    )
    yield from difflib.unified_diff(now, then, str(file), f"{file} (new)", n=1, lineterm="")


def _masked(old: Any, new: Any) -> Any:
    if isinstance(old, dict):
        return {key: _masked(each, new.get(key) if isinstance(new, dict) else None) for key, each in old.items()}
    if isinstance(old, list):
        return [each if isinstance(new, list) and each in new else MARKER for each in old]
    return old if old == new else MARKER


def run_client_config(
    client: Client,
    name: str,
    env_file: Path,
    *,
    url: str | None = None,
    button: bool = False,
    to_file: bool = False,
    project: Path | None = None,
    dry_run: bool = False,
) -> int:
    """Print the entry, or its link, to stdout so that it can be piped, or put it into the client's file.

    Args:
        client: For whom.
        name: How the client calls the server.
        env_file: The settings, besides the environment.
        url: Where the server is, for a client that does not start it; None to see what the settings say.
        button: Print the link that adds the entry.
        to_file: Put it into the client's file.
        project: The folder whose file it is; None for the user's.
        dry_run: Only show what would change in the file.

    Raises:
        ConfigError: The settings cannot be used.
        BridgeError: The client cannot have it so, or its file cannot be changed.
    """
    if (dry_run or project) and not to_file:
        raise InputError("--dry-run and --project are about a client's file: add --install.")
    _check(name, url)
    settings, withheld = settings_to_pass_on()
    if url is None:
        config = Config.from_env(env_file=env_file)
        withheld += [name for name, value in settings.items() if hide_secrets(value) != value]
        settings = {name: value for name, value in settings.items() if name not in withheld}
        entry = entry_as_set(client, config, settings, env_file)
        if "command" in entry.server and "MQTT_BROKER" not in settings:
            _tell(f"The broker is {config.broker.url}; MQTT_BROKER in {env_file} changes that.")
    else:
        entry = over_http(client, url)
    if to_file:
        for line in install(client, name, entry, settings_file(client, project), dry_run=dry_run):
            _tell(line)
    elif button:
        sys.stdout.write(hide_secrets(link(client, name, entry)) + "\n")
        _tell("Open it on the machine where the client is: it asks before it adds anything.")
        if client == "vscode":
            _tell(f"For a page that may only link to the web, whose site then sees the entry:\n{web_link(name, entry)}")
    else:
        sys.stdout.write(hide_secrets(json.dumps(document(client, name, entry), indent=2, ensure_ascii=False)) + "\n")
        _tell(f"\nWhere it goes: {_PLACES[client]}.")
    if where := where_the_token_is(client, entry):
        _tell(where)
    elif withheld and "command" in entry.server:
        _tell(
            f"Left out because they are secret: {', '.join(withheld)}. Put them into .env beside server.py, "
            "or name a file that holds the value, as in MQTT_PASSWORD_FILE."
        )
    return 0


def _check(name: str, url: str | None) -> None:
    if not name.strip():
        raise InputError("--name is empty: give the entry a name.")
    if url is not None:
        try:
            web_url(url)
        except ValueError:  # the address is not repeated, as it may hold a password
            raise InputError("--url has to be an http or https address with a host and without a login.") from None


def where_the_token_is(client: Client, entry: Entry) -> str | None:
    """Say where an entry takes the token from; None when it needs none."""
    if "headers" not in entry.server:
        return None
    where = "VS Code asks for it once" if client == "vscode" else f"set {TOKEN_VARIABLE} where {CLIENTS[client]} starts"
    return f"The token is not in the entry: {where}."


def _tell(text: str) -> None:
    sys.stderr.write(hide_secrets(text) + "\n")

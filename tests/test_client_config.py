"""The entry for an MCP client: what each client wants, how it gets into the client's file, and that it works."""

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.client.stdio import StdioServerParameters

import config
from config import HTTPConfig, claude_code_settings, programs_settings, settings_to_pass_on
from errors import BridgeError, InputError
from onboarding import client_config
from onboarding.client_config import CLIENTS, TOKEN_VARIABLE, address, install, link, over_http, started, web_link
from onboarding.client_files import Client, Entry, document, settings_file, with_entry
from tests.assistant import assistant
from tests.child import NOBODY_LISTENS, settings
from tests.documentation import ROOT
from tests.http_child import TOKEN, HTTPChild

pytestmark = pytest.mark.anyio

COMMAND = {"command": sys.executable, "args": [str(ROOT / "server.py")], "env": {"MQTT_BROKER": "plc.local"}}
URL = "http://127.0.0.1:8765/mcp"
ENTRY = Entry({"command": "python"})
TEAM: tuple[Client, ...] = ("claude-code", "cursor", "vscode")
"""The clients that find a server over HTTP."""


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("claude-desktop", {"mcpServers": {"coreflux": COMMAND}}),
        ("cursor", {"mcpServers": {"coreflux": COMMAND}}),
        ("claude-code", {"mcpServers": {"coreflux": {"type": "stdio", **COMMAND}}}),
        ("vscode", {"servers": {"coreflux": {"type": "stdio", **COMMAND}}}),
    ],
)
def test_each_client_gets_its_own_form(client: Client, expected: dict[str, Any]) -> None:
    assert document(client, "coreflux", started(client, {"MQTT_BROKER": "plc.local"})) == expected


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("claude-code", {"type": "http", "url": URL, "headers": {"Authorization": "Bearer ${COREFLUX_MCP_TOKEN}"}}),
        ("cursor", {"url": URL, "headers": {"Authorization": "Bearer ${env:COREFLUX_MCP_TOKEN}"}}),
        ("vscode", {"type": "http", "url": URL, "headers": {"Authorization": "Bearer ${input:coreflux-mcp-token}"}}),
    ],
)
def test_over_http_each_client_takes_the_token_from_where_it_is_safe(client: Client, expected: dict[str, Any]) -> None:
    entry = over_http(client, URL)

    assert entry.server == expected
    assert [each["password"] for each in entry.inputs] == ([True] if client == "vscode" else [])
    assert "headers" not in over_http(client, URL, token=False).server


def test_claude_desktop_cannot_be_told_of_an_address() -> None:
    with pytest.raises(InputError, match="only servers that it starts itself"):
        over_http("claude-desktop", URL)


@pytest.mark.parametrize(
    ("http", "expected"),
    [
        (HTTPConfig(), URL),
        (HTTPConfig(host="0.0.0.0", port=80), "http://127.0.0.1:80/mcp"),  # noqa: S104
        (HTTPConfig(host="::"), "http://[::1]:8765/mcp"),
        (HTTPConfig(host="plc.local", tls_cert=Path("x"), port=443), "https://plc.local:443/mcp"),
    ],
)
def test_the_address_is_one_that_clients_on_this_machine_can_use(http: HTTPConfig, expected: str) -> None:
    assert address(http) == expected


@pytest.mark.parametrize("http", [HTTPConfig(port=0), HTTPConfig(unix_socket=Path("/run/x"))])
def test_an_address_that_cannot_be_told_is_asked_for(http: HTTPConfig) -> None:
    with pytest.raises(InputError, match="--url"):
        address(http)


class TestSettings:
    def test_secrets_are_not_written_into_an_entry(self) -> None:
        environ = {
            "MQTT_BROKER": "mqtt://me:very-secret@plc",
            "MQTT_PASSWORD": "very-secret",
            "MQTT_PASSWORD_FILE": "/run/secrets/mqtt",
            "MQTT_USER": "me",
            "PATH": "/bin",
            "MQTT_CLIENT_ID": "",
        }

        passed_on, withheld = settings_to_pass_on(environ)

        assert passed_on == {"MQTT_PASSWORD_FILE": str(Path("/run/secrets/mqtt").absolute()), "MQTT_USER": "me"}
        assert withheld == ["MQTT_BROKER", "MQTT_PASSWORD"]

    @pytest.mark.parametrize(
        "name", ["MQTT_CA_CERT", "MQTT_PASSWORD_FILE", "MCP_TOKENS_FILE", "AUDIT_FILE", "LOG_FILE"]
    )
    def test_a_file_is_found_from_every_directory(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/me")

        assert settings_to_pass_on({name: "a/b.pem"})[0] == {name: str(Path.cwd() / "a" / "b.pem")}
        assert settings_to_pass_on({name: "~/b.pem"})[0] == {name: "/home/me/b.pem"}

    @pytest.mark.parametrize(
        ("platform", "environ", "expected"),
        [
            ("linux", {}, "/home/me/.config"),
            ("linux", {"XDG_CONFIG_HOME": "/x"}, "/x"),
            ("darwin", {"XDG_CONFIG_HOME": "/x"}, "/home/me/Library/Application Support"),
            ("win32", {"APPDATA": "/roaming"}, "/roaming"),
            ("win32", {}, "/home/me/AppData/Roaming"),
        ],
    )
    def test_programs_keep_their_settings_where_the_platform_has_them(
        self, platform: str, environ: Mapping[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", "/home/me")

        assert programs_settings(environ, platform) == Path(expected)

    @pytest.mark.parametrize(
        ("client", "project", "expected"),
        [
            ("claude-desktop", None, "/home/me/.config/Claude/claude_desktop_config.json"),
            ("claude-code", None, "/home/me/.claude.json"),
            ("cursor", None, "/home/me/.cursor/mcp.json"),
            ("vscode", None, "/home/me/.config/Code/User/mcp.json"),
            ("claude-code", "/p", "/p/.mcp.json"),
            ("cursor", "/p", "/p/.cursor/mcp.json"),
            ("vscode", "/p", "/p/.vscode/mcp.json"),
        ],
    )
    @pytest.mark.skipif(sys.platform != "linux", reason="the places are those of Linux")
    def test_each_client_has_its_file(
        self, client: Client, project: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", "/home/me")
        monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
        monkeypatch.delenv("CLAUDE_CONFIG_DIR", raising=False)

        assert settings_file(client, project and Path(project)) == Path(expected)  # type: ignore[arg-type]

    def test_claude_code_can_have_its_settings_elsewhere(self) -> None:
        assert claude_code_settings({"CLAUDE_CONFIG_DIR": "/x"}) == Path("/x")

    def test_claude_desktop_has_no_file_for_a_project(self) -> None:
        with pytest.raises(InputError, match="none for a project"):
            settings_file("claude-desktop", Path("/p"))


class TestFile:
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("", '{\n  "mcpServers": {\n    "n": {\n      "command": "python"\n    }\n  }\n}\n'),
            ("{}", '{\n  "mcpServers": {\n    "n": {\n      "command": "python"\n    }\n  }\n}'),
            ('{"a": 1}', '{"a": 1, "mcpServers": {"n": {"command": "python"}}}'),
            ('{"mcpServers": {"o": {}}}', '{"mcpServers": {"o": {}, "n": {"command": "python"}}}'),
            (
                '{\n\t"b": 1e5,\n\t"mcpServers": {}\n}\n',
                '{\n\t"b": 1e5,\n\t"mcpServers": {\n\t\t"n": {\n\t\t\t"command": "python"\n\t\t}\n\t}\n}\n',
            ),
            (
                '{\r\n    "mcpServers": {\r\n        "o": {"x":1}\r\n    },\r\n    "z": "\\u00fc"\r\n}',
                (
                    '{\r\n    "mcpServers": {\r\n        "o": {"x":1},\r\n        "n": {\r\n            '
                    '"command": "python"\r\n        }\r\n    },\r\n    "z": "\\u00fc"\r\n}'
                ),
            ),
            (
                '{\n  "mcpServers": {\n    "n": {"command": "old", "env": {"A": "1"}},\n    "o": {}\n  }\n}',
                '{\n  "mcpServers": {\n    "n": {\n      "command": "python"\n    },\n    "o": {}\n  }\n}',
            ),
        ],
    )
    def test_the_entry_comes_in_and_every_other_byte_stays(self, before: str, after: str) -> None:
        assert with_entry(before, "cursor", "n", ENTRY) == after

    @given(
        st.dictionaries(st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists), max_size=3),
        st.dictionaries(st.text(), st.dictionaries(st.text(), st.text(), max_size=2), max_size=3),
        st.text(),
        st.sampled_from([None, 0, 1, 4, "\t"]),
    )
    def test_whatever_else_is_in_it_stays(
        self, others: dict[str, Any], servers: dict[str, Any], name: str, indent: int | str | None
    ) -> None:
        before = {**others, "mcpServers": servers}

        after = with_entry(json.dumps(before, indent=indent), "cursor", name, ENTRY)

        assert json.loads(after) == {**before, "mcpServers": {**servers, name: ENTRY.server}}
        assert list(json.loads(after)) == list(before)
        assert with_entry(after, "cursor", name, ENTRY) == after

    @pytest.mark.parametrize(
        "inputs",
        ["[]", '[{"id": "other"}]', '[{"id": "coreflux-mcp-token", "password": false}, {"id": "other"}]', "[1]"],
    )
    def test_what_vs_code_asks_for_is_asked_for_once(self, inputs: str) -> None:
        entry = over_http("vscode", URL)
        before = f'{{"inputs": {inputs}, "servers": {{"o": {{}}}}}}'

        after = json.loads(with_entry(before, "vscode", "n", entry))

        others = [each for each in json.loads(inputs) if each == 1 or each["id"] == "other"]
        assert after == {"inputs": [*others, *entry.inputs], "servers": {"o": {}, "n": entry.server}}

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ('{\n  // mine\n  "servers": {}\n}', "not plain JSON"),
            ('{"servers": {},}', "not plain JSON"),
            ("[]", "not an object"),
            ('{"servers": []}', '"servers" is no object'),
            ('{"inputs": {}, "servers": {}}', '"inputs" is no list'),
            ('{"servers": {}, "servers": {"a": {}}, "inputs": [], "inputs": []}', ""),
        ],
    )
    def test_what_is_not_understood_is_left_alone_and_told_what_to_paste(
        self, tmp_path: Path, text: str, why: str
    ) -> None:
        file = tmp_path / "mcp.json"
        file.write_text(text)

        if why:
            with pytest.raises(InputError, match=f"{why}.*Paste into it(?s:.*)coreflux-mcp-token"):
                list(install("vscode", "n", over_http("vscode", URL), file, dry_run=False))
            assert file.read_text() == text
            assert list(tmp_path.iterdir()) == [file]
        else:
            list(install("vscode", "n", over_http("vscode", URL), file, dry_run=False))
            assert json.loads(file.read_text())["servers"].keys() == {"a", "n"}

    def test_a_copy_is_kept_and_the_file_keeps_its_mode_and_its_link(self, tmp_path: Path) -> None:
        real, file = tmp_path / "dotfiles.json", tmp_path / "mcp.json"
        real.write_bytes(b'\xef\xbb\xbf{"mcpServers": {}}')
        real.chmod(0o640)
        file.symlink_to(real)

        said = list(install("cursor", "n", ENTRY, file, dry_run=False))

        assert file.is_symlink()
        assert json.loads(real.read_text("utf-8-sig")) == {"mcpServers": {"n": ENTRY.server}}
        assert real.read_bytes().startswith(b"\xef\xbb\xbf{")
        assert real.stat().st_mode & 0o777 == 0o640
        (copy,) = tmp_path.glob("*.bak-*")
        assert copy.read_bytes() == b'\xef\xbb\xbf{"mcpServers": {}}'
        assert copy.stat().st_mode & 0o777 == 0o600
        assert str(copy) in said[-1]
        assert list(install("cursor", "n", ENTRY, file, dry_run=False)) == [f"{file} has this entry already."]
        assert len(list(tmp_path.iterdir())) == 3

    def test_a_file_that_changes_meanwhile_is_left_alone(self, tmp_path: Path) -> None:
        file = tmp_path / "mcp.json"
        file.write_text("{}")
        installing = install("cursor", "n", ENTRY, file, dry_run=False)
        next(installing)
        file.write_text('{"mine": 1}')

        with pytest.raises(BridgeError, match="changed by another program"):
            list(installing)
        assert file.read_text() == '{"mine": 1}'
        assert list(tmp_path.iterdir()) == [file]

    @pytest.mark.skipif(sys.platform != "linux", reason="nobody can make a file there")
    def test_what_cannot_be_written_is_told(self) -> None:
        with pytest.raises(BridgeError, match=r"^/proc/nowhere/mcp.json cannot be written \("):
            list(install("cursor", "n", ENTRY, Path("/proc/nowhere/mcp.json"), dry_run=False))

    def test_a_dry_run_shows_what_would_change_and_nothing_that_may_be_secret(self, tmp_path: Path) -> None:
        file = tmp_path / "mcp.json"
        old = {"command": "npx", "args": ["-y", "s3cret-1"], "env": {"KEY": "s3cret-2"}, "x": {"y": ["s3cret-3"]}}
        before = json.dumps({"mcpServers": {"o": {"env": {"KEY": "s3cret-4"}}, "n": old}, "z": "s3cret-5"}, indent=2)
        file.write_text(before)

        said = "\n".join(install("cursor", "n", ENTRY, file, dry_run=True))

        assert "s3cret" not in said
        assert f"--- {file}" in said
        assert '+      "command": "python"' in said
        assert file.read_text() == before
        assert list(tmp_path.iterdir()) == [file]


class TestLink:
    def test_cursor_gets_the_entry_in_base64(self) -> None:
        entry = started("cursor", {"MQTT_USER": "jürgen?>>"})
        url = urlsplit(link("cursor", "my plant", entry))

        assert (url.scheme, url.netloc, url.path) == ("cursor", "anysphere.cursor-deeplink", "/mcp/install")
        query = parse_qs(url.query, strict_parsing=True)
        assert query["name"] == ["my plant"]
        assert json.loads(base64.b64decode(query["config"][0], validate=True)) == entry.server

    @pytest.mark.parametrize("entry", [started("vscode", {"MQTT_USER": "a&b"}), over_http("vscode", URL)])
    def test_vs_code_gets_the_entry_in_the_form_of_add_mcp(self, entry: Entry) -> None:
        scheme, _, query = link("vscode", "my plant", entry).partition("?")
        inputs = {"inputs": list(entry.inputs)} if entry.inputs else {}

        assert scheme == "vscode:mcp/install"
        assert json.loads(unquote(query)) == {"name": "my plant", **entry.server, **inputs}

        url = urlsplit(web_link("my plant", entry))
        found = parse_qs(url.query, strict_parsing=True)
        assert (url.netloc, url.path) == ("insiders.vscode.dev", "/redirect/mcp/install")
        assert found["name"] == ["my plant"]
        assert json.loads(found["config"][0]) == entry.server
        assert json.loads(found.get("inputs", ["[]"])[0]) == list(entry.inputs)

    @pytest.mark.parametrize("client", ["claude-desktop", "claude-code"])
    def test_who_has_no_links_says_so(self, client: Client) -> None:
        with pytest.raises(InputError, match="use --install"):
            link(client, "n", ENTRY)


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `client-config` for somebody whose `.env` is empty unless there is one."""
    (cwd / ".env").touch()
    command = [sys.executable, str(ROOT / "server.py"), "--env-file", str(cwd / ".env"), "client-config", *arguments]
    surroundings = settings(None, HOME=str(cwd), **environment)
    if "MQTT_BROKER" not in environment:
        del surroundings["MQTT_BROKER"]
    return subprocess.run(command, env=surroundings, cwd=cwd, capture_output=True, text=True, check=False, timeout=60)


def expanded(value: Any, variables: Mapping[str, str]) -> Any:
    """Fill in what the client fills in."""
    if isinstance(value, dict):
        return {key: expanded(each, variables) for key, each in value.items()}
    if isinstance(value, str):
        for placeholder, text in variables.items():
            value = value.replace(placeholder, text)
    return value


class TestCommand:
    def test_it_prints_json_and_nothing_else_to_stdout(self, tmp_path: Path) -> None:
        done = run("claude-desktop", "--name", "plant", cwd=tmp_path, MQTT_BROKER="plc", MQTT_PASSWORD="very-secret")

        assert list(json.loads(done.stdout)["mcpServers"]) == ["plant"]
        assert "claude_desktop_config.json" in done.stderr
        assert "MQTT_PASSWORD" in done.stderr
        assert "very-secret" not in done.stdout + done.stderr

    def test_an_entry_does_not_win_over_the_file_of_settings(self, tmp_path: Path) -> None:
        without = run("cursor", cwd=tmp_path)
        (tmp_path / ".env").write_text("MQTT_BROKER=plc.local\n")
        with_file = run("cursor", cwd=tmp_path)
        by_environment = run("cursor", cwd=tmp_path, MQTT_BROKER="plc")

        for done, url in ((without, "mqtt://localhost:1883"), (with_file, "mqtt://plc.local:1883")):
            entry = json.loads(done.stdout)["mcpServers"]["coreflux"]
            assert "env" not in entry
            assert entry["args"][1:] == ["--env-file", str(tmp_path / ".env")]
            assert f"The broker is {url}; MQTT_BROKER in {tmp_path / '.env'} changes that." in done.stderr
        assert "changes that" not in by_environment.stderr

    def test_without_the_usual_file_nothing_is_written_that_would_win_over_a_later_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delenv("MQTT_BROKER", raising=False)
        for module in (config, client_config):
            monkeypatch.setattr(module, "ENV_FILE", tmp_path / ".env")

        assert client_config.run_client_config("cursor", "coreflux", tmp_path / ".env") == 0
        assert "env" not in json.loads(capsys.readouterr().out)["mcpServers"]["coreflux"]

    def test_a_file_of_settings_that_is_named_has_to_be_there(self, tmp_path: Path) -> None:
        command = [sys.executable, str(ROOT / "server.py"), "--env-file", "prod.evn", "client-config", "cursor"]
        done = subprocess.run(command, cwd=tmp_path, env=settings(), capture_output=True, text=True, check=False)

        assert (done.returncode, done.stdout) == (2, "")
        assert "prod.evn: No such file or directory" in done.stderr

    @pytest.mark.parametrize(
        "url",
        ["", "plc:8765", "ftp://plc/mcp", "https://", "http://me:very-secret@plc/mcp", "http://plc:very-secret/mcp"],
    )
    def test_an_address_that_clients_cannot_use_makes_no_entry(self, url: str, tmp_path: Path) -> None:
        done = run("cursor", "--url", url, cwd=tmp_path)

        assert (done.returncode, done.stdout) == (1, "")
        assert "--url has to be an http or https address with a host and without a login" in done.stderr
        assert "very-secret" not in done.stderr

    @pytest.mark.parametrize("name", ["", " "])
    def test_an_entry_has_a_name(self, name: str, tmp_path: Path) -> None:
        done = run("cursor", "--name", name, cwd=tmp_path)

        assert (done.returncode, done.stdout) == (1, "")
        assert "--name is empty" in done.stderr

    def test_settings_that_cannot_be_used_make_no_entry(self, tmp_path: Path) -> None:
        done = run("cursor", cwd=tmp_path, MQTT_PORT="x")

        assert (done.returncode, done.stdout) == (2, "")
        assert "MQTT_PORT" in done.stderr

    @pytest.mark.parametrize("client", TEAM)
    def test_a_server_over_http_has_another_entry(self, client: Client, tmp_path: Path) -> None:
        by_settings = run(client, cwd=tmp_path, MCP_TRANSPORT="http", MCP_TOKEN=TOKEN)
        by_address = run(client, "--url", URL, cwd=tmp_path)

        assert json.loads(by_settings.stdout) == document(client, "coreflux", over_http(client, URL))
        assert by_address.stdout == by_settings.stdout
        assert TOKEN not in by_settings.stdout + by_settings.stderr
        assert ("VS Code asks for it once" if client == "vscode" else TOKEN_VARIABLE) in by_settings.stderr

    def test_it_puts_the_entry_into_the_file(self, tmp_path: Path) -> None:
        shown = run("cursor", "--install", "--dry-run", cwd=tmp_path)
        there = (tmp_path / ".cursor").exists()
        done = run("cursor", "--install", cwd=tmp_path)
        project = run("vscode", "--install", "--project", ".", cwd=tmp_path)

        assert "Nothing was written" in shown.stderr
        assert not there
        assert done.returncode == project.returncode == 0
        assert json.loads((tmp_path / ".cursor" / "mcp.json").read_text())["mcpServers"]["coreflux"]["command"]
        assert json.loads((tmp_path / ".vscode" / "mcp.json").read_text())["servers"]["coreflux"]["command"]

    @pytest.mark.parametrize("arguments", [["--dry-run"], ["--project", "."], ["--button", "--project", "."]])
    def test_what_is_about_a_file_wants_one(self, arguments: list[str], tmp_path: Path) -> None:
        done = run("cursor", *arguments, cwd=tmp_path)

        assert done.returncode == 1
        assert "add --install" in done.stderr

    def test_a_link_stands_alone_on_stdout(self, tmp_path: Path) -> None:
        done = run("vscode", "--button", cwd=tmp_path)

        assert done.stdout.startswith("vscode:mcp/install?")
        assert done.stdout.count("\n") == 1
        assert "https://insiders.vscode.dev/redirect/mcp/install?name=coreflux&config=" in done.stderr


class TestItWorks:
    """A server is started exactly as an entry says, from elsewhere and in an empty home."""

    @pytest.mark.parametrize("with_file", [False, True], ids=["settings in the entry", "settings in a file"])
    @pytest.mark.parametrize("client", CLIENTS)
    async def test_the_server_starts_as_the_entry_says(self, client: Client, with_file: bool, tmp_path: Path) -> None:
        here, elsewhere, home = (tmp_path / name for name in ("here", "elsewhere", "home"))
        for each in (here, elsewhere, home):
            each.mkdir()
        password = here / "password"
        password.write_text("very-secret")
        given = {
            "MQTT_BROKER": NOBODY_LISTENS,
            "MQTT_PASSWORD_FILE": "password",
            "MQTT_USER": "me",
            "ACCESS_MODE": "read",
        }
        if with_file:
            (here / ".env").write_text(
                "".join(f"{name}={text}\n" for name, text in given.items()).replace("=password", f"={password}")
            )
        done = await asyncio.to_thread(lambda: run(client, cwd=here, **({} if with_file else given)))
        entry = next(iter(json.loads(done.stdout).values()))["coreflux"]

        parameters = StdioServerParameters(
            command=entry["command"],
            args=entry["args"],
            env={"HOME": str(home), **entry.get("env", {})},
            cwd=elsewhere,
        )
        async with assistant(parameters) as me:
            tools = await me.tools()
            status = await me.call("server_status")

        assert "mqtt_read" in tools
        assert "mqtt_publish" not in tools
        assert status["connection"]["broker"] == f"mqtt://{NOBODY_LISTENS}"
        assert list(home.iterdir()) == []

    @pytest.mark.parametrize("client", TEAM)
    async def test_a_server_over_http_is_found_as_the_entry_says(self, client: Client, tmp_path: Path) -> None:
        async with HTTPChild(settings(ACCESS_MODE="read")) as child:
            done = await asyncio.to_thread(lambda: run(client, "--url", child.url, cwd=tmp_path))
            entry = next(iter(each for key, each in json.loads(done.stdout).items() if key != "inputs"))["coreflux"]
            placeholders = [f"${{{TOKEN_VARIABLE}}}", f"${{env:{TOKEN_VARIABLE}}}", "${input:coreflux-mcp-token}"]
            entry = expanded(entry, dict.fromkeys(placeholders, TOKEN))
            async with child.assistant(token="", url=entry["url"], headers=entry["headers"]) as me:
                tools = await me.tools()

        assert "mqtt_read" in tools
        assert "mqtt_publish" not in tools

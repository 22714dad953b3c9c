"""The command `setup`: a person at a pseudo-terminal, real brokers, a Copilot of ours, and what comes of it."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from config import Config
from tests.brokers import Mosquitto
from tests.child import NOBODY_LISTENS, Child, settings
from tests.documentation import ROOT
from tests.doubles.copilot import CopilotDouble, completion
from tests.terminal import CTRL_D, Terminal

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal"),
]

Made = Callable[..., Mosquitto]
PASSWORD = f'it\'s "{os.urandom(6).hex()}" \\ $HOME #1'
WRONG = f"wrong-{os.urandom(6).hex()}"


class Person(Terminal):
    """Somebody who sets the server up, with a home of their own."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        started_by: Sequence[str] = (),
        env_file: Path | None = None,
        **environment: str,
    ) -> None:
        self.env_file = env_file or directory / ".env"
        self.home = directory / "home"
        self.home.mkdir(exist_ok=True)
        surroundings = settings(None, HOME=str(self.home), **environment)
        if "MQTT_BROKER" not in environment:
            del surroundings["MQTT_BROKER"]
        command = [sys.executable, str(ROOT / "server.py"), "--env-file", str(self.env_file), "setup", *options]
        super().__init__([*started_by, *command], surroundings, directory)

    def says_who(self, user: str = "", password: str = "") -> None:
        """Answer about the login."""
        self.answer("User name", user)
        if user:
            self.answer("Password, not shown", password)

    def takes_the_rest_as_it_is(self) -> None:
        """Answer about the Copilot and the access mode."""
        self.answer("Its address")
        self.answer("read, write or admin")

    @property
    def files(self) -> dict[str, str]:
        """What is there now."""
        found = [path for path in self._directory.rglob("*") if path.is_file() and "mosquitto" not in str(path)]
        return {path.relative_to(self._directory).as_posix(): path.read_text("utf-8") for path in found}


async def connects(env_file: Path, home: Path) -> bool:
    """Start the server with the settings of the file alone, and see whether it gets its broker."""
    environment = settings(HOME=str(home))
    del environment["MQTT_BROKER"]
    async with Child(environment, [sys.executable, str(ROOT / "server.py"), "--env-file", str(env_file)]) as child:
        await child.connected()
    return True


async def test_the_server_starts_with_what_was_answered(make_mosquitto: Made, tmp_path: Path) -> None:
    broker = make_mosquitto(users={"me": PASSWORD}, tls=True)
    with Person(tmp_path) as person:
        person.answer("or embedded", f"localhost:{broker.port}")
        person.answer("TLS? [yes]")
        person.wait_for("its certificate is not trusted")
        person.answer("PEM file of the authority", str(broker.ca_path.relative_to(tmp_path)))
        person.answer("Name in the certificate")
        person.answer("PEM file of our own certificate")
        person.wait_for("the broker's certificate is trusted")
        person.says_who("me", PASSWORD)
        person.wait_for("The broker lets me in, with MQTT 5.")
        person.takes_the_rest_as_it_is()
        person.answer("Write it? [yes]")
        person.wait_for("Written.")
        assert person.ended() == 0

    assert PASSWORD not in person.screen
    assert "+ MQTT_PASSWORD=[REDACTED]" in person.screen
    assert person.env_file.stat().st_mode & 0o777 == 0o600
    config = Config.from_env({}, env_file=person.env_file)
    assert config.broker.url == f"mqtts://localhost:{broker.port}"
    assert config.broker.password is not None
    assert config.broker.password.get_secret_value() == PASSWORD
    assert config.warnings == ()
    assert await connects(person.env_file, person.home)


def test_a_refused_login_is_told_and_asked_for_again(make_mosquitto: Made, tmp_path: Path) -> None:
    broker = make_mosquitto(users={"me": PASSWORD})
    with Person(tmp_path) as person:
        person.answer("or embedded", f"mqtt://127.0.0.1:{broker.port}")
        person.says_who("me", WRONG)
        person.wait_for("check MQTT_USER, MQTT_PASSWORD")
        person.answer("Keep the answer all the same? yes, no, or back to the broker [no]")
        person.says_who("me", PASSWORD)
        person.wait_for("lets me in")
        person.takes_the_rest_as_it_is()
        person.answer("Write it?")
        assert person.ended() == 0

    assert WRONG not in person.screen
    assert WRONG not in person.files[".env"]


def test_from_a_failure_the_way_leads_back_to_the_broker(make_mosquitto: Made, tmp_path: Path) -> None:
    broker, plain = make_mosquitto(tls=True), make_mosquitto()
    (tmp_path / ".env").write_text(f"MQTT_CA_CERT={broker.ca_path}\nMQTT_USE_TLS=false\n")
    with Person(tmp_path) as person:
        person.wait_for("MQTT_CA_CERT asks for TLS and MQTT_USE_TLS=false forbids it")
        person.answer("or embedded", f"localhost:{broker.port}")
        person.answer("TLS? [yes]", "no")
        person.says_who()
        person.wait_for("it may want TLS")
        person.answer("Keep the answer all the same?", "back")
        person.answer("or embedded", f"localhost:{plain.port}")
        person.answer("TLS? [no]", "yes")
        person.wait_for("check MQTT_PORT and MQTT_USE_TLS")
        person.answer("PEM file of the authority")
        person.answer("Name in the certificate")
        person.answer("PEM file of our own certificate")
        person.answer("Keep the answer all the same?", "back")
        person.answer("or embedded", f"localhost:{plain.port}")
        person.answer("TLS? [no]")
        person.says_who()
        person.wait_for("The broker lets everybody in")
        person.takes_the_rest_as_it_is()
        person.answer("Write it?")
        assert person.ended() == 0

    config = Config.from_env({}, env_file=person.env_file)
    assert (config.broker.url, config.warnings) == (f"mqtt://localhost:{plain.port}", ())


def test_what_is_neither_yes_nor_no_is_asked_again(tmp_path: Path) -> None:
    with Person(tmp_path) as person:
        person.answer("or embedded", "embedded")
        person.takes_the_rest_as_it_is()
        for text in ("yse", "ja", "-", "back"):
            person.answer("Write it? [yes]", text)
            person.wait_for("Answer yes or no.")
        person.answer("Write it? [yes]", "Y")
        assert person.ended() == 0

    assert ".env" in person.files


@pytest.mark.skipif(sys.platform != "linux", reason="root can write everywhere but there")
@pytest.mark.parametrize("target", ["/proc/.env", "/proc/nowhere/.env"])
def test_a_file_that_cannot_be_written_is_told_before_anything_is_asked(tmp_path: Path, target: str) -> None:
    with Person(tmp_path, env_file=Path(target)) as person:
        assert person.ended() == 1

    assert f"{target} cannot be written" in person.screen
    assert "or embedded" not in person.screen


def test_paths_in_the_file_start_at_its_folder(make_mosquitto: Made, tmp_path: Path) -> None:
    broker = make_mosquitto(tls=True, users={"me": PASSWORD})
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "ca.pem").write_bytes(broker.ca_path.read_bytes())
    (folder / "user").write_text("me")
    before = f"MQTT_BROKER=mqtts://localhost:{broker.port}\nMQTT_CA_CERT=ca.pem\nMQTT_USER_FILE=user\n"
    (folder / ".env").write_text(before)
    with Person(tmp_path, env_file=folder / ".env") as person:
        person.answer("or embedded")
        person.wait_for("the broker's certificate is trusted")
        person.wait_for(f"The user name is in {folder}/user.")
        person.answer("Password, not shown", PASSWORD)
        person.wait_for("The broker lets me in")
        person.takes_the_rest_as_it_is()
        person.answer("Write it?")
        assert person.ended() == 0

    assert "ca.pem" not in person.screen
    assert person.env_file.read_text().startswith(before)


def test_an_answer_that_does_not_hold_can_be_kept(tmp_path: Path) -> None:
    with Person(tmp_path) as person:
        person.answer("or embedded", f"mqtt://{NOBODY_LISTENS}")
        person.wait_for("nothing listens there")
        person.answer("Keep the answer all the same?", "yes")
        person.says_who()
        person.wait_for("nothing listens there")
        person.answer("Keep the answer all the same?", "y")
        person.takes_the_rest_as_it_is()
        person.answer("Write it?")
        assert person.ended() == 0

    assert f"MQTT_BROKER=mqtt://{NOBODY_LISTENS}" in person.files[".env"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("mqtt://plc:port", "cannot be read as an address"),
        ("http://plc", "the URL's scheme is not known"),
        ("pla nt", "neither a name nor an IP address"),
    ],
)
def test_what_is_no_broker_is_asked_for_again(tmp_path: Path, text: str, why: str) -> None:
    with Person(tmp_path) as person:
        person.answer("or embedded", text)
        person.wait_for(why)
        person.wait_for("or embedded")


def test_the_development_broker_needs_no_further_questions(tmp_path: Path) -> None:
    with Person(tmp_path) as person:
        person.answer("or embedded", "embedded")
        person.takes_the_rest_as_it_is()
        person.answer("Write it?")
        assert person.ended() == 0

    assert Config.from_env({}, env_file=person.env_file).broker.embedded


def test_a_broker_that_answers_on_this_machine_is_proposed(mosquitto: Mosquitto, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"MQTT_PORT={mosquitto.port}\n")
    with Person(tmp_path, "--dry-run") as person:
        person.wait_for(f"Something answers on localhost, port {mosquitto.port}.")
        person.answer(f"[mqtt://localhost:{mosquitto.port}]")
        person.wait_for(f"localhost answers on port {mosquitto.port}.")


def test_a_login_in_an_address_gets_lines_of_its_own(make_mosquitto: Made, tmp_path: Path) -> None:
    broker = make_mosquitto(users={"me": "p@ss/word"})
    (tmp_path / ".env").write_text(f"MQTT_BROKER=mqtt://me:p%40ss%2Fword@127.0.0.1:{broker.port}\n")
    with Person(tmp_path) as person:
        person.answer("or embedded")
        person.wait_for("lets me in")
        person.takes_the_rest_as_it_is()
        person.answer("Write it?")
        assert person.ended() == 0

    assert "p@ss" not in person.screen
    assert "p%40ss" not in person.screen
    broker_line, *login = person.files[".env"].splitlines()
    assert broker_line == f"MQTT_BROKER=mqtt://127.0.0.1:{broker.port}"
    assert login == ["MQTT_USER=me", "MQTT_PASSWORD=p@ss/word", "ACCESS_MODE=write"]


def test_a_certificate_of_our_own_is_tried(make_mosquitto: Made, tmp_path: Path) -> None:
    broker = make_mosquitto(mutual_tls=True)
    (tmp_path / ".env").write_text(f"MQTT_CA_CERT={broker.ca_path}\n")
    with Person(tmp_path) as person:
        person.answer("or embedded", f"mqtts://localhost:{broker.port}")
        person.wait_for("the broker does not accept the client certificate")
        for key, outcome in ((broker.ca_path, "there is no private key in it"), (broker.client_key_path, "is trusted")):
            person.answer(f"PEM file of the authority that signed the broker's certificate [{broker.ca_path}]")
            person.answer("Name in the certificate")
            person.answer("PEM file of our own certificate", str(broker.client_cert_path))
            person.answer("PEM file of its key", str(key))
            person.wait_for(outcome)
        person.says_who()
        person.wait_for("The broker lets everybody in")
        person.takes_the_rest_as_it_is()
        person.answer("Write it?")
        assert person.ended() == 0

    assert str(broker.client_key_path) in person.files[".env"]


def test_a_password_that_is_a_token_is_not_asked_for(mosquitto: Mosquitto, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        f"MQTT_BROKER=mqtt://127.0.0.1:{mosquitto.port}\nMQTT_OAUTH_TOKEN_URL=http://127.0.0.1:9/token\n"
        "MQTT_OAUTH_CLIENT_ID=us\nMQTT_OAUTH_CLIENT_SECRET=very-secret\n"
    )
    with Person(tmp_path) as person:
        person.answer("or embedded")
        person.answer("User name")
        person.wait_for("The password is a token by OAuth 2")
        person.answer("Keep the answer all the same?", "yes")
        person.wait_for("Its address")

    assert "very-secret" not in person.screen


def test_a_key_that_is_encrypted_wants_its_password(make_mosquitto: Made, tmp_path: Path) -> None:
    broker = make_mosquitto(mutual_tls=True)
    key = tmp_path / "encrypted.key"
    command = ["openssl", "pkey", "-aes256", "-in", str(broker.client_key_path), "-out", str(key), "-passout", "stdin"]
    subprocess.run(command, input=PASSWORD, text=True, check=True, capture_output=True)
    (tmp_path / ".env").write_text(f"MQTT_CA_CERT={broker.ca_path}\n")
    with Person(tmp_path) as person:
        person.answer("or embedded", f"mqtts://localhost:{broker.port}")
        for password, outcome in (("", "the private key is encrypted"), (WRONG, "is wrong"), (PASSWORD, "is trusted")):
            person.answer("PEM file of the authority")
            person.answer("Name in the certificate")
            person.answer("PEM file of our own certificate", str(broker.client_cert_path))
            person.answer("PEM file of its key", str(key))
            person.answer("Password of the key, not shown", password)
            person.wait_for(outcome)
            if password == WRONG:
                person.answer("Keep the answer all the same?")
        person.says_who()
        person.wait_for("The broker lets everybody in")

    assert PASSWORD not in person.screen
    assert WRONG not in person.screen


@pytest.mark.parametrize("what", ["missing", "a directory", "no certificate"])
def test_a_file_that_is_of_no_use_is_asked_for_again(make_mosquitto: Made, tmp_path: Path, what: str) -> None:
    broker = make_mosquitto(tls=True)
    file = tmp_path / "file.pem"
    if what == "a directory":
        file.mkdir()
    elif what == "no certificate":
        file.write_text("nothing")
    with Person(tmp_path) as person:
        person.answer("or embedded", f"mqtts://localhost:{broker.port}")
        person.answer("PEM file of the authority", str(file))
        person.answer("Name in the certificate")
        person.answer("PEM file of our own certificate")
        if what == "no certificate":
            person.wait_for("MQTT_CA_CERT cannot be used")
            person.answer("Keep the answer all the same?")
        else:
            person.wait_for(f"MQTT_CA_CERT='{file}': ")
        person.answer("PEM file of the authority", str(broker.ca_path))
        person.answer("Name in the certificate", "elsewhere.example")
        person.answer("PEM file of our own certificate")
        person.wait_for("issued for another name")
        person.answer("Keep the answer all the same?")
        person.answer("PEM file of the authority", str(broker.ca_path))
        person.answer("Name in the certificate")
        person.answer("PEM file of our own certificate", str(file))
        person.answer("PEM file of its key")
        person.wait_for("MQTT_CLIENT_CERT")
        person.answer("PEM file of the authority", str(broker.ca_path))
        person.answer("Name in the certificate")
        person.answer("PEM file of our own certificate")
        person.wait_for("is trusted")


def test_what_was_in_the_file_stays_and_a_copy_is_kept(mosquitto: Mosquitto, tmp_path: Path) -> None:
    before = (
        "# my plant\n\nMQTT_BROKER=old.example # the old one\nMQTT_PORT=1883\n"
        "LOG_LEVEL=DEBUG\nexport MQTT_USER='me'\n\n# theirs\nSOMETHING_ELSE='a b'\nnot a setting\n"
        "MQTT_PASSWORD_FILE=/nowhere\n"
    )
    (tmp_path / ".env").write_text(before)
    (tmp_path / ".env").chmod(0o644)
    with Person(tmp_path) as person:
        person.wait_for("MQTT_PASSWORD_FILE='/nowhere': No such file or directory")
        person.answer("[mqtt://old.example:1883]", f"mqtt://127.0.0.1:{mosquitto.port}")
        person.answer("User name [none]", "-")
        person.takes_the_rest_as_it_is()
        person.answer("Write it?")
        assert person.ended() == 0

    assert person.files[".env"] == (
        f"# my plant\n\nMQTT_BROKER=mqtt://127.0.0.1:{mosquitto.port} # the old one\nMQTT_PORT=\n"
        "LOG_LEVEL=DEBUG\nexport MQTT_USER=\n\n# theirs\nSOMETHING_ELSE='a b'\nnot a setting\nMQTT_PASSWORD_FILE=\n"
        "ACCESS_MODE=write\n"
    )
    assert person.env_file.stat().st_mode & 0o777 == 0o600
    (copy,) = tmp_path.glob(".env.bak-*")
    assert copy.read_text() == before
    assert copy.stat().st_mode & 0o777 == 0o600


def test_what_is_not_asked_for_and_cannot_be_used_has_to_be_mended_first(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LOG_LEVEL=LOUD\n")
    with Person(tmp_path) as person:
        assert person.ended() == 2

    assert "LOG_LEVEL='LOUD'" in person.screen
    assert person.files == {".env": "LOG_LEVEL=LOUD\n"}


def test_a_dry_run_writes_nothing(mosquitto: Mosquitto, tmp_path: Path) -> None:
    cursor = tmp_path / "home" / ".cursor"
    cursor.mkdir(parents=True)
    with Person(tmp_path, "--dry-run") as person:
        person.answer("or embedded", f"mqtt://127.0.0.1:{mosquitto.port}")
        person.says_who()
        person.takes_the_rest_as_it_is()
        person.wait_for(f"+ MQTT_BROKER=mqtt://127.0.0.1:{mosquitto.port}")
        person.wait_for("Nothing was written")
        person.answer("Add the server to Cursor")
        person.wait_for('+    "coreflux": {')
        assert person.ended() == 0

    assert person.files == {}


@pytest.mark.parametrize("how", ["Ctrl-C", "end of file"])
@pytest.mark.parametrize("at", ["or embedded", "User name", "Password, not shown", "Its address", "Write it?"])
def test_giving_up_leaves_everything_as_it_was(make_mosquitto: Made, tmp_path: Path, how: str, at: str) -> None:
    broker = make_mosquitto(users={"me": PASSWORD})
    (tmp_path / ".env").write_text("LOG_LEVEL=DEBUG\n")
    steps = [
        ("or embedded", f"mqtt://127.0.0.1:{broker.port}"),
        ("User name", "me"),
        ("Password, not shown", PASSWORD),
        ("Its address", ""),
        ("read, write or admin", ""),
    ]
    with Person(tmp_path) as person:
        for question, text in steps:
            if question == at:
                break
            person.answer(question, text)
        person.wait_for(at)
        if how == "Ctrl-C":
            person.interrupt()
        else:
            person.type(CTRL_D)
        assert person.ended() == 1

    assert "Stopped. Nothing was written." in person.screen
    assert "Traceback" not in person.screen
    assert person.files == {".env": "LOG_LEVEL=DEBUG\n"}


def test_ctrl_c_ends_it_also_where_it_was_started_by_what_ignores_that(tmp_path: Path) -> None:
    with Person(tmp_path, started_by=["sh", "-c", 'trap "" INT; exec "$@"', "sh"]) as person:
        person.wait_for("or embedded")
        person.interrupt()
        assert person.ended() == 1

    assert "Stopped. Nothing was written." in person.screen


def test_without_a_terminal_nothing_is_asked(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "server.py"), "--env-file", str(tmp_path / ".env"), "setup"]
    ended = subprocess.run(command, env=settings(), input="localhost\n", capture_output=True, text=True, check=False)

    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "setup asks a person at a terminal" in ended.stderr
    assert not (tmp_path / ".env").exists()


async def test_the_key_of_the_copilot_is_tried(tmp_path: Path) -> None:
    async with CopilotDouble() as copilot:
        copilot.answer(completion("ready"))
        await asyncio.to_thread(_with_copilot, tmp_path, copilot)

    config = Config.from_env({}, env_file=tmp_path / ".env").copilot
    assert config.url == f"{copilot.url}/api/v1/chat/completions?agent=true"
    assert config.key is not None
    assert config.key.get_secret_value() == copilot.key


def _with_copilot(directory: Path, copilot: CopilotDouble) -> None:
    with Person(directory) as person:
        person.answer("or embedded", "embedded")
        person.answer("Its address", "http://127.0.0.1:9")
        person.wait_for("does not say that it is up")
        person.answer("Keep the answer all the same?", "no")
        person.answer("Its address", copilot.url)
        person.wait_for("is up.")
        person.answer("Access key, not shown [none]", WRONG)
        person.answer("That costs a few tokens. [yes]")
        person.wait_for("does not accept the key")
        person.answer("Keep the answer all the same?")
        person.answer("Access key, not shown [none]", copilot.key)
        person.answer("That costs a few tokens. [yes]")
        person.wait_for("takes the key")
        person.answer("read, write or admin", "everything")
        person.wait_for("expected read, write or admin")
        person.answer("read, write or admin", "READ")
        person.wait_for("The assistant may read.")
        person.answer("Write it?")
        assert person.ended() == 0
    assert copilot.key not in person.screen
    assert WRONG not in person.screen


def test_a_copilot_without_a_key_is_left_out(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with Person(tmp_path) as person:
        person.answer("or embedded", "embedded")
        person.answer("Its address", "http://127.0.0.1:9")
        person.answer("Keep the answer all the same?", "yes")
        person.answer("Access key, not shown [none]")
        person.wait_for("Without its key there is no Copilot.")
        person.answer("read, write or admin")
        person.answer("Write it?")
        assert person.ended() == 0

    assert "COPILOT_URL" not in person.files[".env"]


def test_clients_that_are_there_get_the_entry_and_others_no_file(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".cursor").mkdir(parents=True)
    (home / ".cursor" / "mcp.json").write_text('{"mcpServers": {"other": {"command": "x"}}}')
    (home / ".config" / "Claude").mkdir(parents=True)
    with Person(tmp_path, MQTT_USER="somebody") as person:
        person.answer("or embedded", "embedded")
        person.takes_the_rest_as_it_is()
        person.answer("Write it?")
        person.answer(f"Add the server to Claude Desktop ({home}/.config/Claude/claude_desktop_config.json)?", "no")
        person.answer(f"Add the server to Cursor ({home}/.cursor/mcp.json)?")
        person.wait_for("Restart Cursor.")
        assert person.ended() == 0

    assert sorted(name.partition(".bak-")[0] for name in person.files) == [
        ".env",
        "home/.cursor/mcp.json",
        "home/.cursor/mcp.json",
    ]
    assert "somebody" not in "".join(person.files.values())


def test_clients_of_a_server_over_http_get_its_address(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"MCP_TRANSPORT=http\nMCP_TOKEN={'t' * 40}\n")
    (tmp_path / "home" / ".cursor").mkdir(parents=True)
    (tmp_path / "home" / ".config" / "Claude").mkdir(parents=True)
    with Person(tmp_path) as person:
        person.answer("or embedded", "embedded")
        person.takes_the_rest_as_it_is()
        person.answer("Write it?")
        person.answer("Add the server to Claude Desktop")
        person.wait_for("only servers that it starts itself")
        person.answer("Add the server to Cursor")
        person.wait_for("set COREFLUX_MCP_TOKEN where Cursor starts")
        assert person.ended() == 0

    entry = json.loads(person.files["home/.cursor/mcp.json"])["mcpServers"]["coreflux"]
    assert entry["url"] == "http://127.0.0.1:8765/mcp"
    assert "tttt" not in person.screen


def test_what_the_environment_says_all_the_same_is_told(tmp_path: Path) -> None:
    with Person(tmp_path, MQTT_BROKER="elsewhere") as person:
        person.answer("or embedded", "embedded")
        person.takes_the_rest_as_it_is()
        person.answer("Write it?")
        person.wait_for("MQTT_BROKER is in the environment too, which wins over the file.")
        assert person.ended() == 0

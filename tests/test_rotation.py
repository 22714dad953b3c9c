"""Secrets and certificates that are replaced while the server runs, against a mosquitto that takes the new ones."""

import asyncio
import hashlib
import itertools
import logging
import os
import signal
import ssl
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as form

from config import Config
from rotation import rotating
from tests.brokers import Mosquitto
from tests.child import COMMAND, NOBODY_LISTENS, Child, settings
from tests.wire import until

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform == "win32", reason="mosquitto is told by SIGHUP")]

Made = Callable[..., Mosquitto]

OLD, NEW = f"Old/{os.urandom(8).hex()} +ä", f"New/{os.urandom(8).hex()} %ö"


def write(path: Path, text: str) -> str:
    """Replace a file at once, as Docker and Kubernetes do."""
    fresh = path.with_suffix(".fresh")
    fresh.write_text(text, "utf-8")
    fresh.chmod(0o600)
    fresh.replace(path)
    return str(path)


async def status_of(child: Child) -> str:
    connection = (await child.call("server_status"))["connection"]
    return "connected" if connection["connected"] else str(connection["last_error"])


async def becomes(child: Child, expected: str) -> None:
    async with asyncio.timeout(15):
        while expected not in await status_of(child):
            await asyncio.sleep(0.05)


def assert_hidden(child: Child) -> None:
    for secret in (OLD, NEW):
        for text in (child.stderr, b"".join(child.lines).decode()):
            assert secret.split()[0] not in text


@pytest.mark.parametrize("source", ["file", "credential", "dotenv"])
@pytest.mark.parametrize("first", ["broker", "file"])
async def test_a_new_password_is_used_when_the_old_one_stops_working(
    make_mosquitto: Made, tmp_path: Path, source: str, first: str
) -> None:
    broker = make_mosquitto(users={"operator": OLD})
    secret = tmp_path / "MQTT_PASSWORD"
    spelled = "MQTT_PASSWORD='{}'\n" if source == "dotenv" else "{}\n"
    write(secret, spelled.format(OLD))
    more = {
        "file": {"MQTT_PASSWORD_FILE": str(secret)},
        "credential": {"CREDENTIALS_DIRECTORY": str(tmp_path)},
        "dotenv": {},
    }[source]
    command = [*COMMAND, "--env-file", str(secret)] if source == "dotenv" else COMMAND

    async with Child(settings(broker, MQTT_USER="operator", LOG_LEVEL="DEBUG", **more), command) as child:
        await child.connected()
        if first == "file":
            write(secret, spelled.format(NEW))
            await until(lambda: "used from the next connection on" in child.stderr)
            assert await status_of(child) == "connected"  # the old one still works: nothing is interrupted
            broker.change_password("operator", NEW)
        else:
            broker.change_password("operator", NEW)
            await becomes(child, "refused the connection")
            write(secret, spelled.format(NEW))
        await until(lambda: child.stderr.count("connected to mqtt://") == 2)  # long before a refused login's back-off
        await becomes(child, "connected")
        child.close_stdin()
        assert await child.ended() == 0

        assert_hidden(child)


async def test_sighup_has_the_files_read_at_once_and_is_no_end(make_mosquitto: Made, tmp_path: Path) -> None:
    broker = make_mosquitto(users={"operator": OLD})
    secret = tmp_path / "secret"
    environment = settings(broker, MQTT_USER="operator", MQTT_PASSWORD_FILE=write(secret, OLD))
    async with Child(environment) as child:
        await child.connected()
        status = secret.stat()
        secret.write_text(NEW, "utf-8")  # of the same length, in the same file, with the same time
        os.utime(secret, ns=(status.st_atime_ns, status.st_mtime_ns))
        child.signal(signal.SIGHUP)
        await until(lambda: "MQTT_PASSWORD changed: used from the next connection on" in child.stderr)
        broker.change_password("operator", NEW)
        await until(lambda: child.stderr.count("connected to mqtt://") == 2)

        assert_hidden(child)


async def test_a_rule_that_waits_for_a_restart_is_in_the_advice(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    write(env_file, f"MQTT_BROKER={NOBODY_LISTENS}\nACCESS_MODE=write\n")
    environment = settings()
    del environment["MQTT_BROKER"]
    async with Child(environment, [*COMMAND, "--env-file", str(env_file)]) as child:
        write(env_file, f"MQTT_BROKER={NOBODY_LISTENS}\nACCESS_MODE=read\n")
        waits = "ACCESS_MODE changed: it is used after a restart"
        await until(lambda: waits in child.stderr)
        assert waits in (await child.call("server_status"))["advice"]

        write(env_file, f"MQTT_BROKER={NOBODY_LISTENS}\nACCESS_MODE=write\n")
        async with asyncio.timeout(15):
            while waits in (await child.call("server_status"))["advice"]:
                await asyncio.sleep(0.05)


async def test_a_file_that_cannot_be_used_changes_nothing_and_is_told(make_mosquitto: Made, tmp_path: Path) -> None:
    broker = make_mosquitto(users={"operator": OLD})
    secret = tmp_path / "secret"
    environment = settings(broker, MQTT_USER="operator", MQTT_PASSWORD_FILE=write(secret, OLD))
    async with Child(environment) as child:
        await child.connected()
        for content, says in (("", "the file is empty"), (None, "No such file or directory")):
            secret.unlink() if content is None else write(secret, content)
            await until(lambda: says in child.stderr)  # noqa: B023 - awaited within the loop
        broker.restart()
        await until(lambda: child.stderr.count("connected to mqtt://") == 2)

        write(secret, NEW)
        await until(lambda: "used from the next connection on" in child.stderr)
        broker.change_password("operator", NEW)
        await until(lambda: child.stderr.count("connected to mqtt://") == 3)
        assert_hidden(child)


async def test_new_certificates_are_used_at_the_next_connection(make_mosquitto: Made, tmp_path: Path) -> None:
    broker, other = make_mosquitto(mutual_tls=True), make_mosquitto(mutual_tls=True)
    files = {"MQTT_CA_CERT": "ca_path", "MQTT_CLIENT_CERT": "client_cert_path", "MQTT_CLIENT_KEY": "client_key_path"}

    def install(source: Mosquitto) -> dict[str, str]:
        return {name: write(tmp_path / name, getattr(source, path).read_text()) for name, path in files.items()}

    async with Child(settings(broker, **install(broker))) as child:
        await child.connected()
        broker.take_certificates_of(other)
        broker.restart()
        await becomes(child, "its certificate is not trusted")
        install(other)
        await until(lambda: child.stderr.count("connected to mqtts://") == 2)
        await until(lambda: all(name in child.stderr for name in files), what="the log to tell of the files")


async def test_a_new_password_of_the_client_key_is_used(make_mosquitto: Made, tmp_path: Path) -> None:
    broker = make_mosquitto(mutual_tls=True)
    key, secret = tmp_path / "key", tmp_path / "secret"

    def encrypt(password: str) -> str:
        loaded = form.load_pem_private_key(broker.client_key_path.read_bytes(), None)
        protection = form.BestAvailableEncryption(password.encode())
        return loaded.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, protection).decode()

    environment = settings(
        broker,
        MQTT_CA_CERT=str(broker.ca_path),
        MQTT_CLIENT_CERT=str(broker.client_cert_path),
        MQTT_CLIENT_KEY=write(key, encrypt(OLD)),
        MQTT_CLIENT_KEY_PASSWORD_FILE=write(secret, OLD),
    )
    async with Child(environment) as child:
        await child.connected()
        write(key, encrypt(NEW))
        write(secret, NEW)
        await until(lambda: "MQTT_CLIENT_KEY_PASSWORD" in child.stderr)
        broker.restart()
        await until(lambda: child.stderr.count("connected to mqtts://") == 2)

        assert ssl.PEM_HEADER not in child.stderr
        assert_hidden(child)


OAUTH = "MQTT_OAUTH_TOKEN_URL=https://a\nMQTT_OAUTH_CLIENT_ID=b\nMQTT_OAUTH_CLIENT_SECRET=c\n"
TOKENS = [f"{name} read {hashlib.sha256(name.encode()).hexdigest()}\n" for name in ("one", "two")]
USED = "used from the next connection on"
FULL = f"MQTT_BROKER=mqtt://me:{os.urandom(8).hex()}@plc\nMQTT_CA_CERT=ca.pem\n"


@pytest.mark.parametrize(
    ("before", "after", "used", "waits"),
    [
        ("", "ACCESS_MODE=read\n", "", "ACCESS_MODE changed: it is used after a restart"),
        (
            "ACCESS_MODE=admin\n",
            "PUBLISH_DENY=#\nACCESS_MODE=read\n",
            "",
            "ACCESS_MODE, PUBLISH_DENY changed: they are used after a restart",
        ),
        ("", "# nothing\nACCESS_MODE=write\n", "", ""),
        ("MQTT_USER=a\nMQTT_PASSWORD=b\n", "MQTT_USER=c\nMQTT_PASSWORD=d\n", "MQTT_USER, MQTT_PASSWORD", ""),
        ("MQTT_PASSWORD=b\n", "MQTT_PASSWORD=d\nMQTT_BROKER=plc\n", "MQTT_PASSWORD", "MQTT_BROKER changed"),
        (FULL, FULL.replace("//me:", "//you:"), "the login in MQTT_BROKER", ""),
        (FULL, FULL.replace("@plc", "@plc2"), "", "MQTT_BROKER changed"),
        (FULL, FULL.replace("ca.pem", "ca2.pem"), "", "MQTT_CA_CERT changed"),
        ("", OAUTH, "", "MQTT_OAUTH_TOKEN_URL, MQTT_OAUTH_CLIENT_ID, MQTT_OAUTH_CLIENT_SECRET changed"),
        (OAUTH, OAUTH.replace("=c", "=d"), "MQTT_OAUTH_CLIENT_SECRET", ""),
        ("MCP_TOKENS_FILE=one\n", "MCP_TOKENS_FILE=two\n", "MCP_TOKENS_FILE", ""),
        ("", "MCP_TOKENS_FILE=two\n", "", "MCP_TOKENS_FILE changed"),
        (f"MCP_TOKEN={'a' * 32}\n", f"MCP_TOKEN={'b' * 32}\n", "MCP_TOKEN", ""),
        ("", f"MCP_TOKEN={'b' * 32}\n", "", "MCP_TOKEN changed"),
        (f"AUDIT_KEY={'a' * 32}\n", f"AUDIT_KEY={'b' * 32}\n", "", "AUDIT_KEY changed"),
    ],
    ids=itertools.count(),
)
async def test_only_what_is_used_is_called_so_and_the_rest_waits_for_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, before: str, after: str, used: str, waits: str
) -> None:
    caplog.set_level(logging.INFO, "rotation")
    for name, text in (("ca.pem", "x"), ("ca2.pem", "x"), ("one", TOKENS[0]), ("two", TOKENS[1])):
        write(tmp_path / name, text)
    env_file, reads = tmp_path / ".env", 0
    write(env_file, before)

    def read() -> Config:
        nonlocal reads
        reads += 1
        return Config.from_env({}, env_file=env_file)

    taken: list[Config] = []
    advice: list[str] = []
    async with rotating(read(), read, taken.append, advice.append) as look_now:

        async def rewritten(text: str) -> list[str]:
            """Say what the log tells of a new text, once it has been used."""
            caplog.clear()
            write(env_file, text)
            for _ in range(2):  # what was read before the second time has been used
                earlier = reads
                look_now()
                await until(lambda: reads > earlier)  # noqa: B023 - awaited within the loop
            return caplog.messages

        said = await rewritten(after)
        assert [each for each in said if "used from" in each] == ([f"{used} changed: {USED}"] if used else [])
        assert [each.startswith(waits) for each in said if "restart" in each] == ([True] if waits else [])
        assert len(taken) == bool(used)
        assert advice == [each for each in said if "restart" in each]
        assert await rewritten(f"{after}#\n") == []
        assert not any("restart" in each for each in await rewritten(before))
        assert advice[1:] == ([""] if waits else [])


async def test_a_certificate_that_waits_for_a_restart_is_not_called_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rotation")
    env_file = tmp_path / ".env"
    write(tmp_path / "ca.pem", "x")
    write(tmp_path / "ca2.pem", "y")
    write(env_file, "MQTT_CA_CERT=ca.pem\n")
    read = partial(Config.from_env, {}, env_file=env_file)

    async with rotating(read(), read, lambda _config: None) as look_now:
        write(env_file, "MQTT_CA_CERT=ca2.pem\n")
        look_now()
        await until(lambda: any("after a restart" in each for each in caplog.messages))
        write(tmp_path / "ca2.pem", "z")
        look_now()
        write(env_file, "MQTT_CA_CERT=ca2.pem\nACCESS_MODE=read\n")
        await until(lambda: any("ACCESS_MODE" in each for each in caplog.messages))

    assert not any(USED in each for each in caplog.messages)

"""The doctor: what it finds on real brokers, services and files, what it says to do, and what it leaves alone."""

import asyncio
import json
import secrets
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import pytest
import trustme

import mqtt_link
from config import BrokerConfig, Config, TLSConfig
from doctor import broker as doctor_broker
from doctor import rights as doctor_rights
from doctor.checkup import AGAIN, Check, Finding, Result, examine, fact_and_advice, failed, ok
from doctor.command import Wishes, diagnose
from doctor.settings import advice_on, unusable
from doctor.updates import requirements_in, updates
from inbox import Inbox
from mqtt_client import MqttClient
from mqtt_failures import KEEP_ALIVE_TIMEOUT, no_answer
from simulator.coreflux import ACCOUNTS
from simulator.coreflux import Coreflux as Personality
from simulator.faults import Fault, Wrong
from simulator.users import User
from tests.brokers import HOST, Embedded, Mosquitto, Watcher, publish
from tests.child import COMMAND, settings
from tests.doubles.copilot import CopilotDouble, failure
from tests.doubles.oauth import OAuthDouble
from tests.http_child import HTTPChild
from tests.raw_client import RawClient
from tests.wire import Wire, until

pytestmark = pytest.mark.anyio

Made = Callable[..., Mosquitto]
Results = dict[str, list[Result]]

WEB = b"HTTP/1.1 400 Bad Request\r\n\r\n"

WITHIN_S = 30
"""So long the whole may take in a test; the settings there are impatient."""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep away from the state of whoever runs the tests."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a shorter silence for an answer."""
    monkeypatch.setattr(doctor_broker, "HOLD_S", 2.0)
    monkeypatch.setattr(doctor_rights, "DELIVERY_S", 0.5)
    monkeypatch.setattr(doctor_rights, "REPLY_S", 0.5)


async def looked(wishes: Wishes | None = None, /, **environ: str) -> Results:
    """Make all checks with some settings, and return what each found."""
    problems: list[str] = []
    config = Config.from_env({"MQTT_CONNECT_TIMEOUT_S": "2"} | environ, env_file=None, problems=problems)
    found: Results = {}
    async with asyncio.timeout(WITHIN_S):
        async for result in diagnose(config, problems, wishes or Wishes()):
            found.setdefault(result.check, []).append(result)
    return found


def at(broker: Embedded | Mosquitto | Wire, scheme: str = "mqtt") -> str:
    return f"{scheme}://{broker.host}:{broker.port}"


def statuses(found: Results) -> dict[str, str]:
    """Say of each check how it ended, unless that is well; a broker that does not say what it is may have commands."""
    unknown = any("does not say what it is" in result.detail for result in found["Coreflux commands"])
    return {
        name: result.status
        for name, results in found.items()
        for result in results
        if result.status != "ok" and not (unknown and name == "Coreflux commands")
    }


def only(results: list[Result]) -> Result:
    (result,) = results
    return result


def trouble(found: Results, name: str) -> Result:
    """Return the failure of a check, which is the only one there is, and has one thing to do."""
    (result,) = (result for results in found.values() for result in results if result.status == "failed")
    assert result.check == name
    assert result.next_step.endswith((".", "?"))
    assert AGAIN not in result.next_step
    return result


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[int]:
    """Listen, and answer whatever comes with some bytes; None says nothing and never hangs up."""
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            while await reader.read(4096):
                if answer is not None:
                    writer.write(answer)
                    break
        except (OSError, asyncio.CancelledError):
            pass
        writer.close()
        tasks.discard(task)

    server = await asyncio.start_server(serve, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


class TestTheOrder:
    async def test_what_needs_a_failed_check_is_skipped_and_says_of_which(self) -> None:
        async def good() -> AsyncIterator[Finding]:
            yield ok("well")

        async def bad() -> AsyncIterator[Finding]:
            yield ok("at first")
            yield failed("broken", "Mend it.")

        checks = [
            Check("a", bad),
            Check("b", good, ("a",)),
            Check("c", good, ("b",)),
            Check("d", good),
            Check("e", good, settings=("MQTT_",)),
            Check("f", good, ("not made at all",)),
        ]
        results = [result async for result in examine(checks, {"MQTT_PORT", "LOG_LEVEL"})]

        assert [(result.check, result.status) for result in results] == [
            ("a", "ok"),
            ("a", "failed"),
            ("b", "skipped"),
            ("c", "skipped"),
            ("d", "ok"),
            ("e", "skipped"),
            ("f", "ok"),
        ]
        assert results[2].detail == results[3].detail == "not looked at, because the check of a failed"
        assert results[5].detail == "not looked at, because MQTT_PORT cannot be used"

    async def test_a_check_ends_in_its_time_and_what_it_found_by_then_counts(self) -> None:
        async def endless() -> AsyncIterator[Finding]:
            yield ok("so far")
            await asyncio.Event().wait()

        results = [result async for result in examine([Check("a", endless, limit_s=0.05)])]

        assert [result.status for result in results] == ["ok", "failed"]
        assert "within 0.05 s" in results[1].detail


class TestWords:
    @pytest.mark.parametrize(
        ("text", "fact", "advice"),
        [
            (
                "MQTT_PORT='x': expected a whole number from 1 to 65535.",
                "MQTT_PORT='x' cannot be used",
                "Correct MQTT_PORT: expected a whole number from 1 to 65535.",
            ),
            (
                "MQTT_PASSWORD_FILE='/x': No such file or directory; expected a file that holds MQTT_PASSWORD.",
                "MQTT_PASSWORD_FILE='/x': No such file or directory",
                "Correct MQTT_PASSWORD_FILE: expected a file that holds MQTT_PASSWORD.",
            ),
            (
                "MQTT_HOST is not a setting of this server and is not read: did you mean MQTT_BROKER?",
                "MQTT_HOST is not a setting of this server and is not read",
                "Rename it to MQTT_BROKER.",
            ),
            (
                "MQTT_PORT_FILE is not read: only MQTT_PASSWORD, MQTT_USER can come from a file. Set MQTT_PORT.",
                "MQTT_PORT_FILE is not read: only MQTT_PASSWORD, MQTT_USER can come from a file",
                "Set MQTT_PORT.",
            ),
            (
                "MCP_PORT has no effect without MCP_TRANSPORT=http.",
                "MCP_PORT has no effect without MCP_TRANSPORT=http",
                "Set MCP_TRANSPORT=http, or take MCP_PORT out.",
            ),
            (
                "MCP_HOST has no effect with MCP_UNIX_SOCKET.",
                "MCP_HOST has no effect with MCP_UNIX_SOCKET",
                "Take MCP_HOST out.",
            ),
            (
                "A broker login by OAuth 2 also needs MQTT_OAUTH_CLIENT_ID.",
                "A broker login by OAuth 2 also needs MQTT_OAUTH_CLIENT_ID",
                "Set MQTT_OAUTH_CLIENT_ID.",
            ),
            (
                "/x/.env, line 3: this is not NAME=value and was left out.",
                "/x/.env, line 3: this is not NAME=value and was left out",
                "Correct the line, or take it out.",
            ),
            (
                "/x/.env, line 3: MQTT_PORT was there before, and only its last line counts.",
                "/x/.env, line 3: MQTT_PORT was there before, and only its last line counts",
                "Correct the line, or take it out.",
            ),
            (
                "/x/.env: no settings of this server, and not read: 'NAME', 'RUN' and 2 more.",
                "/x/.env: no settings of this server, and not read: 'NAME', 'RUN' and 2 more",
                "Correct what was meant for it; what is for another program may stay.",
            ),
        ],
    )
    def test_what_the_settings_say_is_taken_apart(self, text: str, fact: str, advice: str) -> None:
        assert advice_on(text) == (fact, advice)

    @pytest.mark.parametrize(
        ("text", "fact", "advice"),
        [
            ("a: nothing listens; check b.", "a: nothing listens", "Check b."),
            ("a; b is so: connect by c.", "a; b is so", "Connect by c."),
            ("a closed it: it may want b.", "a closed it", "It may want b."),
            ("just so.", "just so", AGAIN),
        ],
    )
    def test_what_errors_say_is_taken_apart(self, text: str, fact: str, advice: str) -> None:
        assert fact_and_advice(text) == (fact, advice)


class TestSettings:
    @pytest.mark.parametrize(
        ("environ", "status", "says", "do"),
        [
            ({"MQTT_USERNAME": "x"}, "warning", "MQTT_USERNAME is not a setting", "Rename it to MQTT_USER."),
            ({"ACCES_MODE": "x"}, "warning", "ACCES_MODE is not a setting", "Rename it to ACCESS_MODE."),
            ({"ACCESS_TOKEN": "x"}, "ok", "read from", ""),
            ({"MQTT_PASSWROD": "x"}, "warning", "MQTT_PASSWROD", "Rename it to MQTT_PASSWORD."),
            ({"MQTT_PASSWORD": "abcd", "MQTT_PASSWORD_FILE": "/x"}, "failed", "are both set", "Keep one of them."),
            ({"MQTT_TLS_CIPHERS": "none at all"}, "failed", "OpenSSL knows no cipher", "Correct MQTT_TLS_CIPHERS: "),
            ({"AUDIT_REQUIRED": "true"}, "failed", "without AUDIT_FILE", "Name the file."),
        ],
    )
    async def test_each_problem_is_a_line_with_what_to_do(
        self, environ: dict[str, str], status: str, says: str, do: str
    ) -> None:
        found = await looked(**{"MQTT_BROKER": "127.0.0.1:9"} | environ)

        result = only(found["settings"])
        assert result.status == status
        assert says in result.detail
        assert result.next_step.startswith(do)

    async def test_what_can_be_checked_is_checked_in_spite_of_problems(self, mosquitto: Mosquitto) -> None:
        found = await looked(MQTT_BROKER=at(mosquitto), MCP_PORT="x", PUBLISH_DENY="a/#/b", MQTT_USERNAME="bob")

        assert [result.status for result in found["settings"]] == ["failed", "failed", "warning"]
        assert only(found["login"]).status == only(found["subscribe"]).status == "ok"
        assert only(found["publish"]) == Result(
            "publish", "skipped", "not looked at, because PUBLISH_DENY cannot be used"
        )

    async def test_nothing_is_asked_of_a_broker_that_the_settings_may_not_mean(self, mosquitto: Mosquitto) -> None:
        with Watcher(mosquitto, "$SYS/broker/clients/total"):
            before = mosquitto.log.count("New connection")
            found = await looked(MQTT_BROKER=at(mosquitto), MQTT_USE_TLS="perhaps")

        assert {result.status for name in ("DNS", "TCP", "login", "publish") for result in found[name]} == {"skipped"}
        assert mosquitto.log.count("New connection") == before

    def test_a_file_that_holds_all_settings_makes_all_unusable(self) -> None:
        assert {"MQTT_BROKER", "LOG_FILE"} <= unusable(["/x/.env: it is not UTF-8; expected a readable file of lines."])

    async def test_a_secret_that_others_can_read_is_told_and_fails_when_that_is_strict(
        self, tmp_path: Path, mosquitto: Mosquitto
    ) -> None:
        file = tmp_path / "password"
        file.write_text("abcdefgh")
        file.chmod(0o644)
        environ = {"MQTT_BROKER": at(mosquitto), "MQTT_USER": "bob", "MQTT_PASSWORD_FILE": str(file)}

        found = await looked(**environ)
        strict = await looked(**environ, STRICT_PERMISSIONS="true")
        file.chmod(0o600)
        private = await looked(**environ)

        assert only(found["permissions"]).status == "warning"
        assert only(found["permissions"]).next_step == "Run chmod 600 on it."
        assert trouble(strict, "permissions").next_step == "Run chmod 600 on it."
        assert only(strict["login"]).status == "ok"
        assert only(private["permissions"]).status == "ok"

    @pytest.mark.parametrize("name", ["AUDIT_FILE", "LOG_FILE"])
    async def test_a_file_that_cannot_be_written_is_told(self, name: str, tmp_path: Path) -> None:
        found = await looked(MQTT_BROKER="127.0.0.1:9", **{name: str(tmp_path / "missing" / "file")})

        result = only(found["files"])
        assert (result.status, result.next_step) == ("failed", f"Set {name} to a file in a writable directory.")

    async def test_looking_at_files_leaves_nothing_behind(self, tmp_path: Path, state: Path) -> None:
        log = tmp_path / "log"
        log.write_text("as it was")

        def there() -> tuple[int, list[Path]]:
            return log.stat().st_mtime_ns, sorted(tmp_path.iterdir())

        before = there()
        found = await looked(MQTT_BROKER="127.0.0.1:9", LOG_FILE=str(log), AUDIT_FILE=str(tmp_path / "audit"))

        assert only(found["files"]).status == "ok"
        assert there() == before
        assert state not in before[1]

    async def test_a_state_directory_that_cannot_be_made_is_told(self, state: Path) -> None:
        state.write_text("a file in its place")  # noqa: ASYNC240 - nothing else runs

        found = await looked(MQTT_BROKER="127.0.0.1:9")

        assert [result.status for result in found["files"]] == ["failed", "failed"]
        assert "backups" in found["files"][0].detail


def certificate(directory: Path, name: str = "client", **dates: Any) -> tuple[str, str]:
    """Make a certificate of our own, and return its file and that of its key."""
    made = trustme.CA().issue_cert("client@example.org", common_name=name, **dates)
    paths = directory / f"{name}.pem", directory / f"{name}.key"
    made.cert_chain_pems[0].write_to_path(paths[0])
    made.private_key_pem.write_to_path(paths[1])
    paths[1].chmod(0o600)
    return str(paths[0]), str(paths[1])


def in_days(days: float) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


class TestCertificates:
    @pytest.mark.parametrize(
        ("days", "status", "says"),
        [(-1, "failed", "expired on"), (12.5, "warning", "in 12 days"), (31, "ok", "valid until")],
    )
    async def test_the_dates_of_our_certificate_are_told(
        self, tmp_path: Path, days: float, status: str, says: str
    ) -> None:
        pem, key = certificate(tmp_path, not_before=in_days(-10), not_after=in_days(days))

        found = await looked(MQTT_BROKER="mqtts://127.0.0.1:9", MQTT_CLIENT_CERT=pem, MQTT_CLIENT_KEY=key)

        result = only(found["certificates"])
        assert result.status == status
        assert says in result.detail
        assert "client" in result.detail

    async def test_a_certificate_of_the_future_is_told(self, tmp_path: Path) -> None:
        pem, key = certificate(tmp_path, not_before=in_days(1), not_after=in_days(90))

        found = await looked(MQTT_BROKER="mqtts://127.0.0.1:9", MQTT_CLIENT_CERT=pem, MQTT_CLIENT_KEY=key)

        assert only(found["certificates"]).next_step == "Check the clock of this machine."

    async def test_a_key_that_does_not_fit_its_certificate_is_told(self, tmp_path: Path) -> None:
        pem, _ = certificate(tmp_path)
        _, other = certificate(tmp_path, "other")

        found = await looked(MQTT_BROKER="mqtts://127.0.0.1:9", MQTT_CLIENT_CERT=pem, MQTT_CLIENT_KEY=other)

        result = found["certificates"][0]
        assert result.status == "failed"
        assert "MQTT_CLIENT_KEY does not belong to MQTT_CLIENT_CERT" in result.detail
        assert result.next_step == "Set MQTT_CLIENT_KEY to the key that the certificate was made for."
        assert only(found["login"]).status == "skipped"

    @pytest.mark.parametrize("content", ["nothing of the kind", "", "a key"])
    async def test_a_file_that_holds_no_certificate_is_told(self, tmp_path: Path, content: str) -> None:
        _, key = certificate(tmp_path)
        file = tmp_path / "ca.pem"
        file.write_text(content)

        named = key if content == "a key" else str(file)
        found = await looked(MQTT_BROKER="mqtts://127.0.0.1:9", MQTT_CA_CERT=named)

        result = found["certificates"][0]
        assert result.status == "failed"
        assert "MQTT_CA_CERT cannot be used: there is no certificate in it" in result.detail
        assert result.next_step == "Set MQTT_CA_CERT to a PEM file with a certificate."

    @pytest.mark.parametrize(("days", "status", "says"), [(-1, "failed", "expired"), (9.5, "warning", "in 9 days")])
    async def test_the_dates_of_the_brokers_certificate_are_told(
        self, make_mosquitto: Made, days: float, status: str, says: str
    ) -> None:
        broker = make_mosquitto(tls=True, not_after=in_days(days))

        found = await looked(MQTT_BROKER=at(broker, "mqtts"), MQTT_CA_CERT=str(broker.ca_path))

        result = only(found["TLS"])
        assert result.status == status
        assert says in result.detail
        assert "renewed" in result.next_step

    async def test_a_certificate_for_another_name_is_told_with_its_names(self, make_mosquitto: Made) -> None:
        broker = make_mosquitto(tls=True, certificate_names=["plant.example", "other.example"])
        environ = {"MQTT_BROKER": at(broker, "mqtts"), "MQTT_CA_CERT": str(broker.ca_path)}

        result = trouble(await looked(**environ), "TLS")
        assert "plant.example, other.example" in result.detail
        assert result.next_step.endswith("or set MQTT_TLS_SERVER_NAME=plant.example.")

        result = trouble(await looked(**environ, MQTT_TLS_SERVER_NAME="wrong.example"), "TLS")
        assert result.next_step == "Set MQTT_TLS_SERVER_NAME to a name that it is for, like plant.example."

        assert statuses(await looked(**environ, MQTT_TLS_SERVER_NAME="plant.example")) == {}

    async def test_a_certificate_of_an_unknown_authority_is_told_with_its_issuer(self, make_mosquitto: Made) -> None:
        broker, stranger = make_mosquitto(tls=True), make_mosquitto(tls=True)

        found = await looked(MQTT_BROKER=at(broker, "mqtts"), MQTT_CA_CERT=str(stranger.ca_path))

        result = trouble(found, "TLS")
        assert "issued by" in result.detail
        assert "trustme" in result.detail
        assert result.next_step == "Set MQTT_CA_CERT to the CA that signed it."
        assert only(found["login"]).detail == "not looked at, because the check of TLS failed"

    async def test_a_broker_that_wants_a_client_certificate_is_told(self, make_mosquitto: Made, tmp_path: Path) -> None:
        broker = make_mosquitto(mutual_tls=True)
        environ = {"MQTT_BROKER": at(broker, "mqtts"), "MQTT_CA_CERT": str(broker.ca_path)}
        pem, key = certificate(tmp_path)
        broker.client_key_path.chmod(0o600)

        without = await looked(**environ)
        other = await looked(**environ, MQTT_CLIENT_CERT=pem, MQTT_CLIENT_KEY=key)
        ours = await looked(
            **environ, MQTT_CLIENT_CERT=str(broker.client_cert_path), MQTT_CLIENT_KEY=str(broker.client_key_path)
        )

        assert trouble(without, "login").detail.endswith("wants a client certificate")
        assert trouble(other, "login").detail.endswith("wants a client certificate other than ours")
        assert statuses(ours) == {}


class TestTheWay:
    async def test_a_name_that_cannot_be_resolved_is_told(self) -> None:
        result = trouble(await looked(MQTT_BROKER="nowhere.invalid"), "DNS")

        assert "'nowhere.invalid' cannot be resolved" in result.detail
        assert result.next_step == "Check MQTT_BROKER and DNS."

    async def test_a_port_where_nothing_listens_is_told(self) -> None:
        found = await looked(MQTT_BROKER="127.0.0.1:9")

        result = trouble(found, "TCP")
        assert "nothing listens there" in result.detail
        assert result.next_step == "Is the broker running, and is MQTT_PORT right?"
        assert only(found["login"]).status == "skipped"

    async def test_tls_spoken_to_a_plain_port_is_told(self, mosquitto: Mosquitto) -> None:
        result = trouble(await looked(MQTT_BROKER=at(mosquitto, "mqtts")), "TLS")

        assert result.detail == f"port {mosquitto.port} of {HOST} speaks MQTT without TLS"
        assert result.next_step == "Set the port in MQTT_BROKER to the one where the broker speaks TLS (usually 8883)."

    @pytest.mark.parametrize(
        ("address", "advised"),
        [
            ("mqtt://{there}", "Set MQTT_BROKER=ws://{there}/mqtt."),
            ("mqtt://me:hush-hush@{there}", "Set MQTT_BROKER=ws://{there}/mqtt, with the login that it has."),
            ("{there}", "Set MQTT_TRANSPORT=websockets."),
        ],
    )
    async def test_what_is_advised_does_not_contradict_the_address(self, address: str, advised: str) -> None:
        async with answering(WEB) as port:
            environ = {"MQTT_BROKER": address.format(there=f"{HOST}:{port}")}
            result = trouble(await looked(**environ), "login")

        assert result.next_step == advised.format(there=f"{HOST}:{port}")
        name, _, value = result.next_step.removeprefix("Set ").removesuffix(".").partition(",")[0].partition("=")
        assert Config.from_env(environ | {name: value}, env_file=None).broker.transport == "websockets"

    async def test_a_websocket_within_tls_spoken_to_a_plain_one_is_told(self) -> None:
        async with answering(WEB) as port:
            by_url = await looked(MQTT_BROKER=f"wss://{HOST}:{port}")
            by_port = await looked(
                MQTT_BROKER=HOST, MQTT_PORT=str(port), MQTT_TRANSPORT="websockets", MQTT_USE_TLS="true"
            )

        right = "to the one where the broker speaks TLS."
        assert trouble(by_url, "TLS").next_step == f"Set the port in MQTT_BROKER {right}"
        assert trouble(by_port, "TLS").next_step == f"Set MQTT_PORT {right}"

    async def test_plain_mqtt_spoken_to_a_tls_port_is_told(self, make_mosquitto: Made) -> None:
        broker = make_mosquitto(tls=True)

        result = trouble(await looked(MQTT_BROKER=at(broker)), "login")

        assert result.detail == f"port {broker.port} of {HOST} speaks TLS, and the settings do not"
        assert result.next_step == "Set MQTT_USE_TLS=true."

    async def test_plain_mqtt_spoken_to_a_port_for_clients_with_certificates_is_told(
        self, make_mosquitto: Made
    ) -> None:
        broker = make_mosquitto(mutual_tls=True)

        assert trouble(await looked(MQTT_BROKER=at(broker)), "login").next_step == "Set MQTT_USE_TLS=true."

    @pytest.mark.parametrize("answer", [WEB, b"HTTP/1.0 501 \r\n\r\n"])
    async def test_mqtt_spoken_to_a_port_for_websockets_is_told(self, answer: bytes) -> None:
        async with answering(answer) as port:
            result = trouble(await looked(MQTT_BROKER=f"{HOST}:{port}"), "login")

        assert "speaks HTTP, as a WebSocket does" in result.detail
        assert result.next_step == "Set MQTT_TRANSPORT=websockets."

    async def test_a_tls_alert_means_tls(self) -> None:
        async with answering(bytes.fromhex("15030100020246")) as port:
            result = trouble(await looked(MQTT_BROKER=f"{HOST}:{port}"), "login")

        assert result.next_step == "Set MQTT_USE_TLS=true."

    async def test_a_websocket_spoken_to_a_plain_port_is_told(self, mosquitto: Mosquitto) -> None:
        result = trouble(await looked(MQTT_BROKER=at(mosquitto, "ws")), "login")

        assert result.next_step == f"Set MQTT_BROKER={at(mosquitto)}."

    @pytest.mark.parametrize("tls", [False, True])
    async def test_a_websocket_is_as_good(self, make_mosquitto: Made, tls: bool) -> None:
        broker = make_mosquitto(websockets=True, tls=tls)
        trust = {"MQTT_CA_CERT": str(broker.ca_path)} if tls else {}

        assert statuses(await looked(MQTT_BROKER=at(broker, "wss" if tls else "ws"), **trust)) == {}

    @pytest.mark.parametrize("answer", [b"\x00" * 16, b"SSH-2.0-x\r\n", b""])
    @pytest.mark.parametrize("scheme", ["mqtt", "mqtts"])
    async def test_nonsense_is_no_broker(self, answer: bytes, scheme: str) -> None:
        async with answering(answer) as port:
            trouble(await looked(MQTT_BROKER=f"{scheme}://{HOST}:{port}"), "TLS" if scheme == "mqtts" else "login")

    @pytest.mark.parametrize("tls", [None, TLSConfig()])
    async def test_who_stays_silent_until_the_keep_alive_runs_out_is_not_said_to_have_closed(
        self, tls: TLSConfig | None
    ) -> None:
        text = str(no_answer(BrokerConfig(tls=tls), "5", KEEP_ALIVE_TIMEOUT))

        assert text.endswith("did not answer CONNECT while the keep-alive lasted: is it a healthy MQTT broker?")

    @pytest.mark.parametrize("scheme", ["mqtt", "mqtts", "ws"])
    async def test_a_broker_that_swallows_everything_does_not_hold_it_up(self, scheme: str) -> None:
        started = time.monotonic()
        async with answering(None) as port:
            found = await looked(MQTT_BROKER=f"{scheme}://{HOST}:{port}", MQTT_CONNECT_TIMEOUT_S="1")

        trouble(found, "TLS" if scheme == "mqtts" else "login")
        assert time.monotonic() - started < 15

    async def test_a_broker_that_falls_silent_does_not_hold_it_up(
        self, embedded: Embedded, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with Wire(embedded) as wire:
            real = MqttClient.probe

            async def probe(client: MqttClient) -> float:
                found = await real(client)
                wire.swallow()
                return found

            monkeypatch.setattr(MqttClient, "probe", probe)  # the moment between two checks cannot be met otherwise
            monkeypatch.setattr(mqtt_link, "ANSWER_TIMEOUT_S", 0.5)
            found = await looked(MQTT_BROKER=at(wire))

        assert only(found["login"]).status == "ok"
        assert only(found["publish"]).status == only(found["subscribe"]).status == "failed"


class TestTheLogin:
    @pytest.mark.parametrize("protocol", ["auto", "3.1.1"])
    async def test_a_refused_login_is_told(self, make_mosquitto: Made, protocol: str) -> None:
        broker = make_mosquitto(users={"bob": "right"})

        found = await looked(MQTT_BROKER=at(broker), MQTT_USER="bob", MQTT_PASSWORD="wrong", MQTT_PROTOCOL=protocol)

        assert trouble(found, "login").next_step.startswith("Check MQTT_USER, MQTT_PASSWORD")
        assert only(found["publish"]).detail == "not looked at, because the check of login failed"

    async def test_a_version_that_the_broker_does_not_speak_is_told(self, make_mosquitto: Made) -> None:
        broker = make_mosquitto(only_311=True)

        assert "MQTT_PROTOCOL" in trouble(await looked(MQTT_BROKER=at(broker), MQTT_PROTOCOL="5"), "login").next_step
        found = await looked(MQTT_BROKER=at(broker))
        assert "MQTT 3.1.1" in only(found["login"]).detail
        assert statuses(found) == {}

    async def test_a_token_service_that_refuses_us_is_told_as_such(self) -> None:
        async with OAuthDouble() as service:
            with Embedded(tokens=service.trusted) as broker:
                environ = {
                    "MQTT_BROKER": at(broker),
                    "MQTT_OAUTH_TOKEN_URL": service.url,
                    "MQTT_OAUTH_CLIENT_ID": service.client_id,
                    "MQTT_OAUTH_SCOPE": service.scope,
                }
                good = await looked(**environ, MQTT_OAUTH_CLIENT_SECRET=service.secret)
                bad = await looked(**environ, MQTT_OAUTH_CLIENT_SECRET=secrets.token_hex(8))

        assert statuses(good) == {}
        assert "for 3600 s" in only(good["OAuth token"]).detail
        assert "this is not the broker" in trouble(bad, "OAuth token").detail
        assert only(bad["login"]).status == "skipped"


@asynccontextmanager
async def twin(broker: Embedded | Mosquitto, client_id: str) -> AsyncIterator[MqttClient]:
    """Another program with a client id, which comes back whenever it is thrown out."""
    config = BrokerConfig(host=broker.host, port=broker.port, client_id=client_id, client_id_fixed=True)
    async with MqttClient(config, Inbox(100, 10_000)) as client:
        await until(lambda: client.state.connected)
        yield client


class TestTheClientId:
    async def test_a_server_that_runs_is_left_alone(self, broker: Embedded | Mosquitto) -> None:
        async with twin(broker, "plant-7") as server:
            found = await looked(MQTT_BROKER=at(broker), MQTT_CLIENT_ID="plant-7")
            await server.probe()

            assert (server.state.connections, server.state.errors) == (1, 0)
        result = only(found["client id"])
        assert result.status == "skipped"
        assert result.next_step == "To try it, stop the server and run doctor --take-client-id."

    async def test_another_session_with_the_client_id_is_found_when_that_is_allowed(
        self, broker: Embedded | Mosquitto
    ) -> None:
        async with twin(broker, "plant-7"):
            found = await looked(Wishes(take_client_id=True), MQTT_BROKER=at(broker), MQTT_CLIENT_ID="plant-7")
        alone = await looked(Wishes(take_client_id=True), MQTT_BROKER=at(broker), MQTT_CLIENT_ID="plant-7")

        result = only(found["client id"])
        assert result.status == "failed"
        assert "another session uses the client id 'plant-7'" in result.detail
        assert {found[name][0].status for name in ("publish", "subscribe", "Coreflux commands")} == {"skipped"}
        assert statuses(alone) == {}

    @pytest.mark.parametrize(("age", "status"), [(timedelta(hours=1), "warning"), (timedelta(days=3), "skipped")])
    @pytest.mark.parametrize("name", ["LOG_FILE", "AUDIT_FILE"])
    async def test_what_the_log_or_the_record_says_of_another_session_is_told(
        self, mosquitto: Mosquitto, tmp_path: Path, name: str, age: timedelta, status: str
    ) -> None:
        when = (datetime.now(UTC) - age).isoformat(timespec="milliseconds")
        file = tmp_path / "file"
        file.write_text(f"x\n{when} the broker closed it; another client uses the client id 'plant-7'\nx\n")

        found = await looked(MQTT_BROKER=at(mosquitto), MQTT_CLIENT_ID="plant-7", **{name: str(file)})

        assert only(found["client id"]).status == status


READ_ONLY = "user bob\ntopic read #\n"
WRITE_ONLY = "user bob\ntopic write #\n"
NOTHING = "user bob\ntopic readwrite elsewhere/#\n"


class TestTheRights:
    @pytest.mark.parametrize(
        ("acl", "protocol", "bad"),
        [
            (READ_ONLY, "5", {"publish": "failed"}),
            (WRITE_ONLY, "5", {"subscribe": "failed"}),
            (NOTHING, "5", {"publish": "failed"}),
            (READ_ONLY, "3.1.1", {"publish": "failed", "subscribe": "warning"}),
            (WRITE_ONLY, "3.1.1", {"publish": "failed", "subscribe": "warning"}),
        ],
    )
    async def test_a_right_that_is_missing_is_told(
        self, make_mosquitto: Made, acl: str, protocol: str, bad: dict[str, str]
    ) -> None:
        broker = make_mosquitto(users={"bob": "abcd"}, acl=acl)

        found = await looked(MQTT_BROKER=at(broker), MQTT_USER="bob", MQTT_PASSWORD="abcd", MQTT_PROTOCOL=protocol)

        assert statuses(found) == bad
        name = next(iter(bad))
        assert f"{doctor_rights.PREFIX}#" in only(found[name]).next_step
        assert ("MQTT 3.1.1" in only(found[name]).detail) == (protocol == "3.1.1")
        assert ("publish and read" in only(found[name]).next_step) == (protocol == "3.1.1")
        assert ("is not known" in only(found["subscribe"]).detail) == (protocol == "3.1.1")

    async def test_a_broker_that_refuses_subscriptions_is_told(self) -> None:
        users = {
            "deaf": User("abcd", subscribe=()),
            "narrow": User("abcd", subscribe=(f"{doctor_rights.PREFIX}#", "$SYS/#")),
        }
        with Embedded(users=users) as broker:
            login = {"MQTT_BROKER": at(broker), "MQTT_PASSWORD": "abcd"}
            deaf = await looked(**login, MQTT_USER="deaf")
            narrow = await looked(**login, MQTT_USER="narrow")
            named = await looked(**login, MQTT_USER="narrow", SUBSCRIBE_ALLOW=f"{doctor_rights.PREFIX}#,plant/#")

        assert "SUBSCRIBE_ALLOW" in trouble(deaf, "subscribe").next_step
        assert only(narrow["subscribe"]).status == "warning"
        assert (
            trouble(named, "subscribe").next_step
            == "Let the login read plant/# at the broker, or take it out of SUBSCRIBE_ALLOW."
        )

    @pytest.mark.parametrize(
        "environ",
        [
            {"ACCESS_MODE": "read"},
            {"PUBLISH_ALLOW": "plant/#"},
            {"PUBLISH_DENY": "#"},
            {"PUBLISH_DENY": "coreflux-mcp/#"},
        ],
    )
    async def test_nothing_is_published_where_the_assistant_may_not(
        self, mosquitto: Mosquitto, environ: dict[str, str]
    ) -> None:
        with Watcher(mosquitto) as watcher:
            found = await looked(MQTT_BROKER=at(mosquitto), **environ)
            assert watcher.seen == []

        assert only(found["publish"]).status == ("ok" if "ACCESS_MODE" in environ else "skipped")
        assert only(found["subscribe"]).status == "ok"
        assert "whether anything is delivered was not tried" in only(found["subscribe"]).detail

    async def test_rules_that_let_nothing_be_read_are_told(self, mosquitto: Mosquitto) -> None:
        found = await looked(MQTT_BROKER=at(mosquitto), SUBSCRIBE_DENY="#")

        assert statuses(found) == {"subscribe": "warning"}

    async def test_on_3_1_1_an_acknowledgement_alone_proves_nothing(self, mosquitto: Mosquitto) -> None:
        found = await looked(MQTT_BROKER=at(mosquitto), MQTT_PROTOCOL="3.1.1", SUBSCRIBE_DENY="coreflux-mcp/#")

        result = only(found["publish"])
        assert result.status == "warning"
        assert "acknowledges what it refuses" in result.detail

    @pytest.mark.parametrize("take", [False, True])
    async def test_nothing_is_left_on_the_broker(self, broker: Embedded | Mosquitto, take: bool) -> None:
        environ = {"MQTT_BROKER": at(broker), "MQTT_CLIENT_ID": "plant-7", "MQTT_SESSION_EXPIRY_S": "3600"}
        with Watcher(broker) as watcher:
            found = await looked(Wishes(take_client_id=take), **environ)
            (seen,) = watcher.seen
        with Watcher(broker, f"{doctor_rights.PREFIX}#") as watcher:
            publish(broker, f"{doctor_rights.PREFIX}end")
            (end,) = watcher.wait_count(1)  # a retained message would have come before it

        assert only(found["publish"]).status == "ok"
        assert seen.topic.startswith(doctor_rights.PREFIX)
        assert (seen.qos, seen.retain) == (1, False)
        assert end.topic.endswith("end")
        used = only(found["login"]).detail.partition("client id '")[2].partition("'")[0]
        assert (used == "plant-7") == take
        with RawClient(broker) as client:
            assert not client.connect(used, clean=False).session_present
            client.disconnect(session_expiry=0)


class TestTheCommands:
    async def test_a_closed_command_channel_is_told(self) -> None:
        coreflux = Personality()
        with Embedded(personality=coreflux) as broker:
            login = {"MQTT_BROKER": at(broker), "MQTT_USER": "engineer", "MQTT_PASSWORD": ACCOUNTS["engineer"].password}
            good = await looked(**login)
            coreflux.inject(Fault(Wrong.IGNORED, times=None))
            silent = await looked(**login)
            closed = await looked(**login | {"MQTT_USER": "operator", "MQTT_PASSWORD": ACCOUNTS["operator"].password})

        assert statuses(good) == {}
        assert "answers them" in only(good["Coreflux commands"]).detail
        assert "CommandCall" in trouble(silent, "Coreflux commands").next_step
        assert only(closed["Coreflux commands"]).status == "warning"
        assert only(closed["Coreflux commands"]).next_step.startswith("If it is a Coreflux broker, give")

    async def test_a_broker_of_another_make_has_none_and_that_is_no_failure(self, mosquitto: Mosquitto) -> None:
        found = await looked(MQTT_BROKER=at(mosquitto))

        assert only(found["Coreflux commands"]).status == "ok"
        assert "mosquitto" in only(found["Coreflux commands"]).detail


class TestTheCopilot:
    async def test_a_key_that_is_refused_is_told_and_no_question_is_asked(self, mosquitto: Mosquitto) -> None:
        async with CopilotDouble() as copilot:
            environ = {"MQTT_BROKER": at(mosquitto), "COPILOT_URL": copilot.url}
            good = await looked(**environ, DO_AGENT_API_KEY=copilot.key)
            bad = await looked(**environ, DO_AGENT_API_KEY=secrets.token_hex(16))
            wrong_path = await looked(**environ | {"COPILOT_URL": f"{copilot.url}/x"}, DO_AGENT_API_KEY=copilot.key)
            bodies = [request.json for request in copilot.requests if request.method == "POST"]

        assert statuses(good) == {}
        assert "accepts the key" in only(good["Copilot"]).detail
        assert "costs no tokens" in only(good["Copilot"]).detail
        assert trouble(bad, "Copilot").next_step == "Set DO_AGENT_API_KEY to a key of this agent."
        assert trouble(wrong_path, "Copilot").next_step == "Check COPILOT_URL."
        assert bodies == [{}] * 4

    async def test_where_the_key_cannot_be_checked_that_is_said(self, mosquitto: Mosquitto) -> None:
        async with CopilotDouble(public=True) as copilot:
            found = await looked(MQTT_BROKER=at(mosquitto), COPILOT_URL=copilot.url, DO_AGENT_API_KEY=copilot.key)

        assert "cannot be told without a question" in only(found["Copilot"]).detail

    async def test_an_answer_that_says_nothing_about_the_key_is_no_clean_result(self, mosquitto: Mosquitto) -> None:
        async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            status = b"200 OK" if (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /health") else b"503 Busy"
            writer.write(b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % status)
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(broken, HOST, 0) as server:
            url = f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
            found = await looked(MQTT_BROKER=at(mosquitto), COPILOT_URL=url, DO_AGENT_API_KEY="k" * 16)

        assert only(found["Copilot"]).status == "warning"
        assert "HTTP 503" in only(found["Copilot"]).detail

    async def test_a_copilot_that_is_down_is_told(self, mosquitto: Mosquitto) -> None:
        async with CopilotDouble() as copilot:
            environ = {"MQTT_BROKER": at(mosquitto), "COPILOT_URL": copilot.url, "DO_AGENT_API_KEY": copilot.key}
            copilot.health = failure(503)
            ill = await looked(**environ)
        down = await looked(**environ)

        assert "does not answer" in trouble(ill, "Copilot").detail
        assert trouble(down, "Copilot").next_step == "Check COPILOT_URL, the network and the proxy."

    async def test_a_verifier_is_asked_too(self, mosquitto: Mosquitto) -> None:
        async with CopilotDouble() as copilot:
            environ = {"MQTT_BROKER": at(mosquitto), "LOT_VERIFIER_API_URL": f"{copilot.url}/verify"}
            up = await looked(**environ)
        down = await looked(**environ)

        assert statuses(up) == {}
        assert "LOT_VERIFIER_API_URL" in trouble(down, "LoT verifier").next_step


class TestOverHTTP:
    TOKEN: Final = {"MCP_TRANSPORT": "http", "MCP_TOKEN": "t" * 40}

    async def test_a_port_that_is_taken_is_told_unless_it_is_ours(self, mosquitto: Mosquitto) -> None:
        async with HTTPChild(settings(mosquitto)) as child:
            port = child.url.rpartition(":")[2].partition("/")[0]
            ours = await looked(MQTT_BROKER=at(mosquitto), MCP_PORT=port, **self.TOKEN)
        free = await looked(MQTT_BROKER=at(mosquitto), MCP_PORT=port, **self.TOKEN)
        taken = await looked(MQTT_BROKER=at(mosquitto), MCP_PORT=str(mosquitto.port), **self.TOKEN)

        assert "a server of ours" in only(ours["MCP over HTTP"]).detail
        assert "can be listened on" in only(free["MCP over HTTP"]).detail
        assert trouble(taken, "MCP over HTTP").next_step == "Set MCP_PORT to a free port, or end what listens there."

    async def test_an_address_that_is_not_ours_is_told(self, mosquitto: Mosquitto) -> None:
        found = await looked(MQTT_BROKER=at(mosquitto), MCP_HOST="192.0.2.1", **self.TOKEN)  # RFC 5737

        assert "MCP_HOST" in trouble(found, "MCP over HTTP").next_step

    async def test_the_certificate_of_the_server_is_checked(self, mosquitto: Mosquitto, tmp_path: Path) -> None:
        pem, key = certificate(tmp_path, not_before=in_days(-9), not_after=in_days(5.5))
        _, other = certificate(tmp_path, "other")
        environ = {"MQTT_BROKER": at(mosquitto), "MCP_PORT": "0", "MCP_TLS_CERT": pem, **self.TOKEN}

        soon = await looked(**environ, MCP_TLS_KEY=key)
        unfit = await looked(**environ, MCP_TLS_KEY=other)

        assert "in 5 days" in soon["MCP over HTTP"][0].detail
        assert "MCP_TLS_KEY" in trouble(unfit, "MCP over HTTP").next_step

    async def test_a_unix_socket_is_checked(self, mosquitto: Mosquitto, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        look = partial(looked, MQTT_BROKER=at(mosquitto), MCP_UNIX_SOCKET=str(path), **self.TOKEN)
        free = await look()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            stale = await look()
        path.unlink()
        async with HTTPChild(settings(mosquitto, MCP_UNIX_SOCKET=str(path))):
            ours = await look()
        path.unlink(missing_ok=True)
        path.write_text("")
        no_socket = await look()

        assert "can be made" in only(free["MCP over HTTP"]).detail
        assert only(stale["MCP over HTTP"]).status == "warning"
        assert "a server of ours" in only(ours["MCP over HTTP"]).detail
        trouble(no_socket, "MCP over HTTP")

    async def test_the_port_of_the_figures_is_checked(self, mosquitto: Mosquitto) -> None:
        found = await looked(MQTT_BROKER=at(mosquitto), METRICS_PORT=str(mosquitto.port))

        assert trouble(found, "metrics").next_step.startswith("Set METRICS_PORT to a free port")


@asynccontextmanager
async def pypi(answers: Mapping[str, Any]) -> AsyncIterator[str]:
    """Serve some pages of JSON over HTTP; what is not there is 404, and bytes are sent as they are."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        content = answers.get(request.split()[1].decode())
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        status = b"404 Not Found" if content is None else b"200 OK"
        writer.write(b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    async with server:
        yield f"http://{HOST}:{server.sockets[0].getsockname()[1]}"


def page(*versions: str, yanked: Iterable[str] = (), flaws: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Make an answer as PyPI's JSON API gives it."""
    releases = {each: [{"filename": f"x-{each}.whl", "yanked": each in yanked}] for each in versions}
    return {"info": {"version": versions[-1] if versions else ""}, "releases": releases, "vulnerabilities": list(flaws)}


PAHO = metadata.version("paho-mqtt")


class TestUpdates:
    async def found(
        self, tmp_path: Path, whole: Any, ours: Any = None, line: str = "paho-mqtt>=1,<77  # the card's"
    ) -> list[Finding]:
        requirements = tmp_path / "requirements.txt"
        requirements.write_text(f"# what runs\n\n{line}\n")
        pages = {"/pypi/paho-mqtt/json": whole, f"/pypi/paho-mqtt/{PAHO}/json": page() if ours is None else ours}
        async with pypi(pages) as url:
            return [finding async for finding in updates(requirements, url)]

    async def test_a_newer_release_is_named(self, tmp_path: Path) -> None:
        (finding,) = await self.found(tmp_path, page("1.0", PAHO, "76.0", "76.10", "76.9", "77.0"))

        assert finding.status == "warning"
        assert finding.detail == f"paho-mqtt {PAHO} is installed, and there is 76.10"
        assert finding.next_step == "Run pip install --upgrade -r requirements.txt."

    async def test_what_is_no_choice_is_not_named(self, tmp_path: Path) -> None:
        (finding,) = await self.found(tmp_path, page(PAHO, "76.0", "76.1rc1", "76.2.dev0", "78.0", yanked=["76.0"]))

        assert finding.status == "ok"
        assert "there is paho-mqtt 78.0, which requirements.txt does not allow yet" in finding.detail

    async def test_a_known_vulnerability_of_what_is_installed_fails(self, tmp_path: Path) -> None:
        flaws: list[dict[str, Any]] = [
            {"id": "PYSEC-2026-1", "fixed_in": ["76.1"], "withdrawn": None},
            {"id": "PYSEC-2026-2", "fixed_in": [], "withdrawn": None},
            {"id": "PYSEC-2026-3", "fixed_in": [], "withdrawn": "2026-01-01T00:00:00Z"},
        ]
        found = await self.found(tmp_path, page(PAHO, flaws=[{"id": "of another version"}]), page(flaws=flaws))

        assert [finding.status for finding in found] == ["failed", "failed"]
        assert "PYSEC-2026-1, mended in 76.1" in found[0].detail
        assert found[0].next_step == "Run pip install --upgrade 'paho-mqtt>=76.1'."
        assert "PYSEC-2026-2, not mended" in found[1].detail

    @pytest.mark.parametrize("answer", [None, b"<html>", b"[]", b"[" * 100_000])
    async def test_what_is_no_answer_is_no_clean_result(self, tmp_path: Path, answer: Any) -> None:
        (finding,) = await self.found(tmp_path, answer)

        assert finding.status == "warning"
        assert finding.detail.startswith("could not be looked up: paho-mqtt (")

    async def test_offline_every_package_could_not_be_looked_up(self) -> None:
        (finding,) = [finding async for finding in updates(base_url="http://127.0.0.1:9")]

        assert finding.status == "warning"
        assert finding.detail.startswith("could not be looked up: mcp, paho-mqtt, ")
        assert "Try again where" in finding.next_step

    @pytest.mark.parametrize(
        "strange", [{"releases": None}, {"releases": {"9": None}}, {"vulnerabilities": {"a": 1}}, {}]
    )
    async def test_strange_answers_do_no_harm(self, tmp_path: Path, strange: dict[str, Any]) -> None:
        (finding,) = await self.found(tmp_path, strange, strange)

        assert finding.status == "ok"

    def test_the_file_of_requirements_can_be_read(self) -> None:
        found = {each.name: each for each in requirements_in(Path(__file__).parents[1] / "requirements.txt")}

        assert {"mcp", "paho-mqtt", "httpx2"} <= found.keys()
        assert found["mcp"].allows((2, 3))
        assert found["mcp"].allows((2, 99, 1))
        assert not found["mcp"].allows((3,))
        assert not found["mcp"].allows((2, 2, 9))


def run(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "doctor", *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


class TestTheCommand:
    def test_where_all_is_well_every_line_says_so(self, make_mosquitto: Made, state: Path) -> None:
        password = secrets.token_hex(8)
        broker = make_mosquitto(tls=True, users={"bob": password})
        environment = settings(
            MQTT_BROKER=at(broker, "mqtts"),
            MQTT_CA_CERT=str(broker.ca_path),
            MQTT_USER="bob",
            MQTT_PASSWORD=password,
            XDG_STATE_HOME=str(state),
        )
        ended = run(environment)

        *lines, blank, summary = ended.stdout.splitlines()
        assert (ended.returncode, ended.stderr, blank) == (0, "", "")
        assert {line.split()[0] for line in lines} == {"ok"}
        checks = "settings permissions files certificates DNS TCP TLS login client publish subscribe Coreflux Copilot"
        assert [line.split()[1] for line in lines] == checks.split()
        assert summary == f"{len(lines)} ok."
        assert password not in ended.stdout

    def test_a_failure_has_its_next_step_below_it_and_ends_with_1(self, state: Path) -> None:
        ended = run(settings(XDG_STATE_HOME=str(state)))

        lines = ended.stdout.splitlines()
        (at_line,) = (number for number, line in enumerate(lines) if line.startswith("failed"))
        assert ended.returncode == 1
        assert ended.stderr == ""
        assert lines[at_line].split()[1] == "TCP"
        assert lines[at_line + 1].strip() == "next: Is the broker running, and is MQTT_PORT right?"

    def test_settings_that_cannot_be_used_end_with_2(self, state: Path) -> None:
        ended = run(settings(MQTT_PORT="x", XDG_STATE_HOME=str(state)))

        assert ended.returncode == 2
        assert "failed   settings" in ended.stdout
        assert "skipped  login" in ended.stdout

    @pytest.mark.parametrize(
        ("names", "counted"), [(["MQTT_USERNAME"], "1 warning,"), (["MQTT_USERNAME", "MQTT_PASS"], "2 warnings,")]
    )
    def test_the_last_line_counts_in_words(self, state: Path, names: list[str], counted: str) -> None:
        ended = run(settings(XDG_STATE_HOME=str(state)) | dict.fromkeys(names, "x"))

        assert counted in ended.stdout.splitlines()[-1]

    def test_warnings_alone_end_with_0(self, mosquitto: Mosquitto, state: Path) -> None:
        ended = run(settings(mosquitto, MQTT_USERNAME="x", XDG_STATE_HOME=str(state)), "--json")

        said = json.loads(ended.stdout)
        assert (ended.returncode, said["ok"]) == (0, True)
        assert said["checks"][0] == {
            "check": "settings",
            "status": "warning",
            "detail": "MQTT_USERNAME is not a setting of this server and is not read",
            "next_step": "Rename it to MQTT_USER.",
        }

    @pytest.mark.parametrize(("broker", "code"), [("127.0.0.1:9", 1), ("not a host", 2)])
    def test_as_json_it_is_one_object(self, broker: str, code: int, state: Path) -> None:
        ended = run(settings(MQTT_BROKER=broker, XDG_STATE_HOME=str(state)), "--json")

        said = json.loads(ended.stdout)
        assert ended.returncode == code
        assert said.keys() == {"ok", "checks"}
        assert said["ok"] is False
        assert {each["status"] for each in said["checks"]} >= {"ok", "failed", "skipped"}
        for each in said["checks"]:
            assert each.keys() == {"check", "status", "detail", "next_step"}
            assert (each["next_step"] is not None) >= (each["status"] in ("failed", "warning"))

    def test_the_built_in_broker_is_started_for_it(self, state: Path) -> None:
        ended = run(settings(MQTT_BROKER="embedded", XDG_STATE_HOME=str(state)))

        assert ended.returncode == 0
        assert "ok       login" in ended.stdout

    def test_updates_that_cannot_be_looked_up_are_said_to_be_so(self, mosquitto: Mosquitto, state: Path) -> None:
        proxies = {"HTTPS_PROXY": "http://127.0.0.1:9", "XDG_STATE_HOME": str(state)}
        ended = run(settings(mosquitto) | proxies, "--updates")

        assert ended.returncode == 0
        assert "warning  updates           could not be looked up: mcp, " in ended.stdout

    def test_what_a_broker_says_cannot_forge_lines(self, state: Path) -> None:
        said = "1.0\n\x1b[2Jok       everything\u202e"
        with Embedded() as broker:
            broker.call(lambda each: each.publish("$SYS/broker/version", said.encode(), retain=True))
            ended = run(settings(MQTT_BROKER=f"{broker.host}:{broker.port}", XDG_STATE_HOME=str(state)))

        assert "\x1b" not in ended.stdout
        assert "\u202e" not in ended.stdout
        assert [
            line for line in ended.stdout.splitlines() if "everything" in line and line.startswith("ok       every")
        ] == []

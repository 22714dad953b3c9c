"""What `doctor` checks between here and the broker: each step on the way, the login, and whose the client id is.

One connection serves for the login and all that comes after it, under a client id of its own: to connect with the one
of a server that runs would throw that out, and MQTT has no way to ask whether an id is in use.
"""

import asyncio
import ipaddress
import re
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal, NamedTuple

from cryptography import x509

from config import BrokerConfig, Config
from doctor.checkup import Check, Finding, fact_and_advice, failed, ok, skipped, warning
from doctor.probe import Spoken, certificate_shown, speaks_tls, spoken_in_tls, spoken_plainly
from doctor.settings import date_of, decoded, names_in, subject_of
from errors import BrokerRefusedError
from inbox import Inbox
from mqtt_client import MqttClient
from mqtt_failures import failure, tls_context
from topics import shown

HOLD_S: Final = 5.0
"""How long the client id has to stay ours until it counts as nobody else's; who lost it usually comes back sooner."""
_MOST_NAMES: Final = 10
_ROOM: Final = (1000, 1 << 20)
_TAIL_BYTES: Final = 256 << 10
_TAKEN_OVER: Final = "another client uses the client id"
"""The words of the log and of the record for it."""
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
_RECENT: Final = timedelta(days=1)


class _Event(NamedTuple):
    """What happened to the connection."""

    name: str
    reason: str


class BrokerChecks:
    """The way to the broker, step by step.

    Args:
        config: The settings.
        around: Closes at the end what the checks open.
        take_client_id: Use MQTT_CLIENT_ID, which throws out whoever has it.
    """

    def __init__(self, config: Config, around: AsyncExitStack, *, take_client_id: bool = False) -> None:
        self._config = config
        self._around = around
        self._takes_id = take_client_id and config.broker.client_id_fixed
        self._address = config.settings["MQTT_BROKER"]
        self._broker = replace(config.broker, session_expiry_s=0)
        if not self._takes_id:
            self._broker = replace(
                self._broker, client_id=f"coreflux-doctor-{secrets.token_hex(3)}", client_id_fixed=False
            )
        self._events: list[_Event] = []
        self.client: MqttClient
        """Connected once the check of the login was passed."""
        self._connected_at = 0.0

    def checks(self) -> list[Check]:
        """List the checks."""
        broker = self._broker
        wait_s = broker.connect_timeout_s + 5.0
        attempts_s = 2 * wait_s + 25.0  # of two versions of MQTT, with a token before and a closer look afterwards
        found = []
        if not broker.embedded:
            found += [
                Check("DNS", self._dns, settings=("MQTT_",), limit_s=wait_s),
                Check("TCP", self._tcp, ("DNS",), limit_s=wait_s),
            ]
            if broker.tls:
                found.append(Check("TLS", self._tls, ("TCP", "certificates"), limit_s=wait_s + 10))
        if broker.oauth:
            found.append(Check("OAuth token", self._token, settings=("MQTT_",), limit_s=15))
        needs = ("TCP", "certificates", "TLS", "OAuth token")
        return [
            *found,
            Check("login", self._login, needs, ("MQTT_",), attempts_s),
            Check("client id", self._client_id, ("login",), limit_s=HOLD_S + 5),
        ]

    # The way.

    async def _dns(self) -> AsyncIterator[Finding]:
        host = self._broker.host
        with suppress(ValueError):
            yield ok(f"{ipaddress.ip_address(host)} is an address: there is no name to look up")
            return
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, self._broker.port, type=socket.SOCK_STREAM)
        except OSError as exc:
            yield failed(*fact_and_advice(str(failure(exc, self._broker))))
            return
        addresses = dict.fromkeys(str(address[0]) for *_, address in found)
        yield ok(f"{host} is {', '.join(addresses)}")

    async def _tcp(self) -> AsyncIterator[Finding]:
        broker, started = self._broker, time.perf_counter()
        try:
            address, port = await asyncio.to_thread(_reach, broker.host, broker.port, broker.connect_timeout_s)
        except OSError as exc:
            yield failed(*fact_and_advice(str(failure(exc, broker))))
            return
        yield ok(f"{address} answers on port {port}, after {(time.perf_counter() - started) * 1000:.1f} ms")

    async def _tls(self) -> AsyncIterator[Finding]:
        broker, tls = self._broker, self._broker.tls
        if tls is None:
            return
        context, name = tls_context(tls), tls.server_name or broker.host
        try:
            async with asyncio.timeout(broker.connect_timeout_s):
                _, writer = await asyncio.open_connection(broker.host, broker.port, ssl=context, server_hostname=name)
        except (OSError, TimeoutError) as exc:
            yield await self._tls_trouble(exc)
            return
        stream = writer.get_extra_info("ssl_object")
        certificate = decoded(stream.getpeercert(binary_form=True))
        version, cipher = stream.version(), stream.cipher()[0]
        writer.transport.abort()
        told = False
        if certificate is not None:
            renew = "Have the broker's certificate renewed."
            if finding := date_of(f"the broker's certificate {subject_of(certificate)}", certificate, renew):
                told = True
                yield finding
        if not told and certificate is not None:
            until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
            trusted = "not checked (MQTT_TLS_INSECURE)" if tls.insecure else "trusted"
            yield ok(
                f"{version}, {cipher}; the certificate {subject_of(certificate)} is {trusted} and valid until {until}"
            )

    async def _tls_trouble(self, exc: Exception) -> Finding:
        """Look closer at why TLS failed."""
        broker = self._broker
        if isinstance(exc, ssl.SSLCertVerificationError):
            return _untrusted(exc, broker, await certificate_shown(broker))
        spoken = await spoken_plainly(broker)
        if spoken not in ("MQTT", "HTTP"):
            return failed(*fact_and_advice(str(failure(exc, broker))))
        usual = "" if broker.transport == "websockets" else " (usually 8883)"
        port = "the port in MQTT_BROKER" if self._address.port else "MQTT_PORT"
        return failed(
            f"port {broker.port} of {broker.host} speaks {spoken} without TLS",
            f"Set {port} to the one where the broker speaks TLS{usual}.",
        )

    async def _token(self) -> AsyncIterator[Finding]:
        from mqtt_oauth import TokenSource  # noqa: PLC0415 - only these settings need it

        if self._broker.oauth is None:
            return
        source = TokenSource(self._broker.oauth)
        self._around.push_async_callback(source.aclose)
        token = await source.fetch()
        yield ok(f"{source.url} gave a token for {token.lifetime_s:.0f} s")

    # The login.

    async def _login(self) -> AsyncIterator[Finding]:
        broker = self._broker
        if broker.embedded:
            broker = self._broker = await self._start_embedded()
        inbox = Inbox(*_ROOM)
        self.client = await self._around.enter_async_context(MqttClient(broker, inbox, self._notice))
        await self.client.first_attempt(2 * broker.connect_timeout_s + 15)
        state = self.client.state
        if not state.connected:
            yield await self._no_login(state.last_error or f"{broker.url} did not answer in time; see its log")
            return
        self._connected_at = time.monotonic()
        round_trip_ms = await self.client.probe()
        who = f"as {shown(broker.user)}" if broker.user else "without a login"
        yield ok(
            f"connected to {broker.url} {who} with MQTT {state.protocol}, client id {shown(state.client_id)}; "
            f"a round trip takes {round_trip_ms:.1f} ms"
        )

    async def _start_embedded(self) -> BrokerConfig:
        from simulator.embedded import broker_with_plant  # noqa: PLC0415 - only this setting needs it

        try:
            embedded = await self._around.enter_async_context(broker_with_plant(self._broker.port))
        except OSError as exc:
            raise BrokerRefusedError(
                f"The built-in development broker cannot start on port {self._broker.port} ({exc.strerror}): "
                "set MQTT_PORT to a free port, or leave it out."
            ) from exc
        return replace(self._broker, host=embedded.host, port=embedded.port)

    async def _no_login(self, reason: str) -> Finding:
        """Look closer at why no connection came about."""
        broker = self._broker
        fact, advice = fact_and_advice(reason)
        if any(event.name == "login_failed" for event in self._events):
            if self._config.broker.client_id_fixed and not self._takes_id:
                fact += f" (tried with the client id {shown(broker.client_id)}, not with MQTT_CLIENT_ID)"
            return failed(fact, advice)
        if broker.tls:
            spoken = await spoken_in_tls(broker)
        else:
            spoken = "TLS" if await speaks_tls(broker) else await spoken_plainly(broker)
        return self._mismatch(spoken) or failed(fact, advice)

    def _mismatch(self, spoken: Spoken) -> Finding | None:
        """Say in what the other side's language is not ours; None when it is, or is not known."""
        broker = self._broker
        where = f"port {broker.port} of {broker.host}"
        if spoken == "TLS":
            return failed(f"{where} speaks TLS, and the settings do not", "Set MQTT_USE_TLS=true.")
        if spoken == "TLS with client certificates":
            other = " other than ours" if broker.tls and broker.tls.client_cert else ""
            return failed(
                f"{broker.url} wants a client certificate{other}",
                "Set MQTT_CLIENT_CERT and MQTT_CLIENT_KEY to a certificate that the broker accepts.",
            )
        if spoken == "HTTP" and broker.transport == "tcp":
            return failed(f"{where} speaks HTTP, as a WebSocket does, and not MQTT", self._set_transport("websockets"))
        if spoken == "MQTT" and broker.transport == "websockets":
            return failed(f"{where} speaks MQTT without a WebSocket", self._set_transport("tcp"))
        return None

    def _set_transport(self, transport: Literal["tcp", "websockets"]) -> str:
        """Say how to set it; a URL says it already, and nothing else may contradict that."""
        if self._address.transport is None:
            return f"Set MQTT_TRANSPORT={transport}."
        login = ", with the login that it has" if self._address.user or self._address.password else ""
        return f"Set MQTT_BROKER={replace(self._broker, transport=transport).url}{login}."

    def _notice(self, event: str, **facts: str) -> None:
        self._events.append(_Event(event, facts.get("reason", "")))

    async def _client_id(self) -> AsyncIterator[Finding]:
        """Say whether another session uses our client id, as far as that can be known without doing harm."""
        fixed = self._config.broker
        if not fixed.client_id_fixed:
            yield ok("MQTT_CLIENT_ID is not set: each server makes one of its own")
            return
        own = "Give each program a client id of its own: change MQTT_CLIENT_ID here or there."
        if self._takes_id:
            await asyncio.sleep(max(0.0, HOLD_S - (time.monotonic() - self._connected_at)))
            lost = [event.reason for event in self._events if event.name == "connection_lost"]
            if lost:
                yield failed(f"another session uses the client id {shown(fixed.client_id)}: {lost[0]}", own)
            else:
                yield ok(f"nobody else wanted the client id {shown(fixed.client_id)} for {HOLD_S:g} s")
            return
        files = (("LOG_FILE", self._config.logs.file), ("AUDIT_FILE", self._config.audit.file))
        for name, path in files:
            if path and (when := await asyncio.to_thread(_taken_over, path)):
                yield warning(f"{name} says that at {when} another client took over the client id", own)
                return
        yield skipped(
            f"whether another session uses {shown(fixed.client_id)} cannot be asked: to connect with it would end that",
            "To try it, stop the server and run doctor --take-client-id.",
        )


_HOST_MISMATCH: Final = 62
_ADDRESS_MISMATCH: Final = 64
"""OpenSSL's X509_V_ERR codes."""


def _reach(host: str, port: int, timeout_s: float) -> tuple[str, int]:
    """Connect as the MQTT client does, and return where that was possible."""
    with socket.create_connection((host, port), timeout_s) as stream:
        address, port, *_ = stream.getpeername()
        return str(address), int(port)


def _taken_over(path: Path) -> str:
    """Return when a log or record last said that the client id was taken over, if that is not long ago."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next(_recent_times(line for line in reversed(lines) if _TAKEN_OVER in line), "")


def _recent_times(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        with suppress(ValueError):
            found = _TIME.search(line)
            if found and datetime.fromisoformat(f"{found[0]}Z") > datetime.now(UTC) - _RECENT:
                yield f"{found[0]}Z"


def _untrusted(
    exc: ssl.SSLCertVerificationError, broker: BrokerConfig, certificate: x509.Certificate | None
) -> Finding:
    """Say why a certificate is not trusted, and what it is."""
    fact, advice = fact_and_advice(str(failure(exc, broker)))
    if certificate is None:
        return failed(fact, advice)
    names = names_in(certificate)
    fact += f"; it is for {', '.join(names[:_MOST_NAMES]) or subject_of(certificate)}"
    fact += f", issued by {shown(certificate.issuer.rfc4514_string())}"
    fact += f", valid until {certificate.not_valid_after_utc:%Y-%m-%d}"
    if exc.verify_code in (_HOST_MISMATCH, _ADDRESS_MISMATCH) and names:
        advice = f"Connect by a name that it is for, or set MQTT_TLS_SERVER_NAME={names[0]}."
        if broker.tls and broker.tls.server_name:
            advice = f"Set MQTT_TLS_SERVER_NAME to a name that it is for, like {names[0]}."
    return failed(fact, advice)

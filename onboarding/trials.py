"""Whether an answer holds in the real world: the broker's port, its TLS, the login, the Copilot."""

import asyncio
import secrets
import socket
import ssl
from contextlib import suppress
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

from config import BrokerConfig, CopilotConfig, TLSConfig
from copilot_client import CopilotClient, Turn
from errors import BrokerOfflineError, ServiceSilentError
from inbox import Inbox
from mqtt_client import MqttClient
from mqtt_failures import LinkFailedError, failure, tls_context

COMPLAINT_S: Final = 1.0
"""In TLS 1.3 a broker complains about a missing certificate only after the handshake; otherwise it says nothing."""


def reach(broker: BrokerConfig) -> str:
    """Open a connection to the broker's port, and close it.

    Raises:
        LinkFailedError: There is none.
    """
    try:
        _connect(broker).close()
    except OSError as exc:
        raise failure(exc, broker) from exc
    return f"{broker.host} answers on port {broker.port}."


def shake_hands(broker: BrokerConfig) -> str:
    """Do a TLS handshake as the settings have it, and hear whether the broker is content with it.

    Raises:
        LinkFailedError: It failed.
    """
    version = _shake_hands(broker, broker.tls or TLSConfig(), listen_s=COMPLAINT_S)
    return f"{version}: the broker's certificate is trusted, and the broker does not complain about ours."


def speaks_tls(broker: BrokerConfig) -> bool:
    """Say whether the port speaks TLS, with whatever certificate and whatever it wants of us."""
    try:
        _shake_hands(broker, TLSConfig(insecure=True), listen_s=0)
    except LinkFailedError as exc:
        return isinstance(exc.__cause__, ssl.SSLError) and "ALERT" in (exc.__cause__.reason or "")
    return True


def _shake_hands(broker: BrokerConfig, tls: TLSConfig, listen_s: float) -> str | None:
    context = tls_context(tls)
    try:
        with (
            _connect(broker) as plain,
            context.wrap_socket(plain, server_hostname=tls.server_name or broker.host) as link,
        ):
            if listen_s:
                link.settimeout(listen_s)
                with suppress(TimeoutError):
                    link.recv(1)
            return link.version()
    except OSError as exc:
        raise failure(exc, broker) from exc


def answers(broker: BrokerConfig) -> bool:
    """Say whether anything answers on the port."""
    try:
        reach(broker)
    except LinkFailedError:
        return False
    return True


def log_in(broker: BrokerConfig) -> str:
    """Log in as the server will, but under another client id, so that a server that runs is not thrown out.

    Raises:
        BrokerOfflineError: The broker did not let us in.
    """
    visitor = f"coreflux-mcp-setup-{secrets.token_hex(4)}"
    return asyncio.run(_log_in(replace(broker, client_id=visitor, client_id_fixed=False, session_expiry_s=0)))


async def _log_in(broker: BrokerConfig) -> str:
    async with MqttClient(broker, Inbox(1, 1024)) as client:
        await client.first_attempt(3 * broker.connect_timeout_s)
        state = client.state
        if not state.connected:
            raise BrokerOfflineError(state.last_error or f"{broker.url} did not answer.")
        return f"The broker lets {broker.user or 'everybody'} in, with MQTT {state.protocol}."


def look_for_copilot(copilot: CopilotConfig) -> str:
    """Ask the Copilot's host whether it is up; the key does not go there.

    Raises:
        ServiceSilentError: It does not say so.
    """
    return asyncio.run(_look_for_copilot(copilot))


async def _look_for_copilot(copilot: CopilotConfig) -> str:
    host = urlsplit(copilot.url or "").hostname
    async with CopilotClient(copilot) as client:
        if not await client.health():
            raise ServiceSilentError(
                f"{host} does not say that it is up: check the address, the network and the proxy."
            )
    return f"{host} is up."


def ask_copilot(copilot: CopilotConfig) -> str:
    """Ask the Copilot a question of one word, which shows that it takes the key.

    Raises:
        ServiceError: It does not, or its answer is of no use.
    """
    return asyncio.run(_ask_copilot(copilot))


async def _ask_copilot(copilot: CopilotConfig) -> str:
    async with CopilotClient(copilot) as client:
        await client.ask([Turn("user", "Answer with one word: ready.")])
    return "The Copilot takes the key, and answers."


def _connect(broker: BrokerConfig) -> socket.socket:
    return socket.create_connection((broker.host, broker.port), broker.connect_timeout_s)

"""The development broker: MQTT 3.1.1 and 5 on loopback, in process, for demos and tests.

It lets clients publish below `$SYS`, as the Coreflux broker does and no installable one. Everything is kept in memory.
"""

import asyncio
import ipaddress
import logging
import ssl
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol, Self

from simulator.connections import Connection
from simulator.exchange import Exchange
from simulator.limits import LIMITS, Limits
from simulator.messages import Message
from simulator.packets import NO_PROPERTIES, Properties, Publish
from simulator.routing import is_topic_name
from simulator.tokens import Tokens
from simulator.users import User

logger = logging.getLogger(__name__)


class Personality(Protocol):
    """What makes the broker behave as one vendor's."""

    @property
    def users(self) -> Mapping[str, User]:
        """Who may log in; the one without a name is who gives none."""

    @property
    def unflagged(self) -> str | None:
        """A filter; new subscriptions are told the retained messages below it without the retain flag."""

    def started(self, broker: "Broker") -> None:
        """Begin: the broker listens."""

    def stopped(self) -> None:
        """End: the broker is about to close."""


class Broker:
    """A small broker for development, no production broker.

    An async context manager; `port` is the true one once it is entered. Leaving it disconnects every client.

    Args:
        port: Where to listen; 0 takes a free port.
        host: A loopback address; anything else is refused.
        users: Who may log in, by name; None lets everyone in.
        tokens: What a password has to be signed with: it is a JWT then, and a connection ends when its token expires.
        tls: Makes it speak TLS.
        limits: What it holds at most.
        copy_per_subscription: Whether a client whose subscriptions overlap gets a message once for each of them, or
            once with all their identifiers. MQTT 5 leaves that open (section 3.3.4), and brokers do either.
        personality: Makes it behave as one vendor's; the users are its own then.
    """

    def __init__(
        self,
        port: int = 0,
        host: str = "127.0.0.1",
        *,
        users: Mapping[str, User] | None = None,
        tokens: Tokens | None = None,
        tls: ssl.SSLContext | None = None,
        limits: Limits = LIMITS,
        copy_per_subscription: bool = False,
        personality: Personality | None = None,
    ) -> None:
        if not _is_loopback(host):
            raise ValueError(f"the development broker listens on loopback only, not on {host}")
        self.host = host
        self.port = port
        self.on_publish: list[Callable[[Message], bool]] = []
        """Each sees every message that a client may publish; when it returns True the message goes no further."""
        self._users = users if personality is None else personality.users
        self._tokens = tokens
        self._personality = personality
        self._tls = tls
        self._limits = limits
        self._copy_per_subscription = copy_per_subscription
        self._exchange: Exchange
        self._server: asyncio.Server

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._exchange = Exchange(
            self._users,
            self._limits,
            self.on_publish,
            tokens=self._tokens,
            copy_per_subscription=self._copy_per_subscription,
            unflagged=None if self._personality is None else self._personality.unflagged,
        )
        self._server = await loop.create_server(
            lambda: Connection(self._exchange, self._limits),
            self.host,
            self.port,
            ssl=self._tls,
            ssl_handshake_timeout=self._limits.connect_timeout_s if self._tls else None,
        )
        self.port = self._server.sockets[0].getsockname()[1]
        logger.warning("development broker on %s:%d, not for production", self.host, self.port)
        if self._personality is not None:
            self._personality.started(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop listening, send every client away and forget everything."""
        if self._personality is not None:
            self._personality.stopped()
        self._server.close()
        await self._exchange.aclose()

    def cut_off(self, client_id: str) -> None:
        """Close the connection of a client without a word; nothing happens when it has none."""
        self._exchange.cut_off(client_id)

    def publish(
        self,
        topic: str,
        payload: bytes,
        qos: int = 0,
        *,
        retain: bool = False,
        properties: Properties = NO_PROPERTIES,
    ) -> None:
        """Publish from inside the process, past rights and hooks."""
        if not is_topic_name(topic):
            raise ValueError(f"not a topic name: {topic!r}")
        packet = Publish(topic, payload, qos, retain, properties=properties)
        self._exchange.route(Message.from_packet(None, topic, packet, asyncio.get_running_loop().time()))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""MCP and its figures over HTTP: ports and sockets, and uvicorn with the limits in time that it does not have."""

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from bridge import Bridge
from config import Config, HTTPConfig
from errors import ConfigError
from http_app import Door, page
from http_clients import Clients

HEADERS_TIMEOUT_S: Final = 10.0
"""From the opening of a connection, or the first byte of a further request, to the end of the request's headers."""
IDLE_TIMEOUT_S: Final = 60
"""A connection on which nothing is asked."""
SLOW_READER_S: Final = 30.0
"""How long a client may leave an answer unread once the buffers are full."""
MOST_CONNECTIONS: Final = 1000
HEADERS_BYTES: Final = 32 << 10

_CLOSE_S: Final = 1
_PATIENCE_S: Final = 1.0
"""How long calls under way may take to end when the server is told to stop."""

logger = logging.getLogger(__name__)


class _Connection(H11Protocol):
    """A connection that is given up when the other side takes too long to say what it wants, or to read."""

    _headers_due: asyncio.TimerHandle | None = None
    _reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in the base class
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        """Take what came; a request begins or has been heard, or is still only being begun."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before and self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None
        elif self.cycle is None or self.cycle.response_complete:
            self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        for due in (self._headers_due, self._reading_due):
            if due is not None:
                due.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begin to wait for the reader."""
        super().pause_writing()
        self._reading_due = self.loop.call_later(SLOW_READER_S, self._give_up, "does not read its answer")

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        if self._reading_due is not None:
            self._reading_due.cancel()
            self._reading_due = None

    def _wait_for_headers(self) -> None:
        if self._headers_due is None:
            self._headers_due = self.loop.call_later(HEADERS_TIMEOUT_S, self._give_up, "is too slow with its request")

    def _give_up(self, why: str) -> None:
        self._headers_due = None
        logger.info("a connection is closed: the client %s", why)
        self.transport.abort()


class _Uvicorn(uvicorn.Server):
    """A server whose signals are handled by somebody else."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


@asynccontextmanager
async def serving(door: Door, where: socket.socket, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
    """Serve what is behind a door on a bound socket, while in context; then end within a second."""
    logging.getLogger("uvicorn.error").setLevel("WARNING")
    config = uvicorn.Config(
        door,
        http=_Connection,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=IDLE_TIMEOUT_S,
        timeout_graceful_shutdown=_CLOSE_S,
        h11_max_incomplete_event_size=HEADERS_BYTES,
    )
    config.load()
    config.ssl = tls
    server = _Uvicorn(config)
    task = asyncio.create_task(server.serve(sockets=[where]), name=f"http {where.getsockname()}")
    try:
        while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.005)
        yield
    finally:
        server.should_exit = True
        await task


def bind(host: str, port: int) -> socket.socket:
    """Take a port; 0 for any free one.

    Raises:
        ConfigError: It cannot be had.
    """
    with contextlib.ExitStack() as undo:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            # Of a name that means both, such as localhost, clients expect the older one first.
            family, kind, protocol, _, address = min(found, key=lambda each: each[0] == socket.AF_INET6)
            sock = undo.enter_context(socket.socket(family, kind, protocol))
            if os.name == "posix":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
            sock.bind(address)
        except OSError as exc:
            raise ConfigError(f"{host}:{port} cannot be listened on ({exc.strerror}).") from exc
        undo.pop_all()
    return sock


def bind_unix(path: Path) -> socket.socket:
    """Make a Unix socket that only its owner can use, in place of one that nobody serves any more.

    Raises:
        ConfigError: It cannot be made.
    """
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            if path.exists():
                if not stat.S_ISSOCK(path.stat().st_mode):
                    raise ConfigError(f"MCP_UNIX_SOCKET: {path} is there and is no socket; name another path.")
                if _is_served(path):
                    raise ConfigError(f"MCP_UNIX_SOCKET: {path} is served by another process; name another path.")
                path.unlink()
            before = os.umask(0o177)
            try:
                sock.bind(str(path))
            finally:
                os.umask(before)
        except OSError as exc:
            raise ConfigError(f"MCP_UNIX_SOCKET: {path} cannot be made ({exc.strerror or exc}).") from exc
        undo.pop_all()
    return sock


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True


def tls_context(config: HTTPConfig) -> ssl.SSLContext | None:
    """Return how TLS is done, with TLS 1.2 at least; None where it is not.

    Raises:
        ConfigError: The certificate and the key cannot be used, or do not belong together.
    """
    if config.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_certificate(context, config)
    return context


def load_certificate(context: ssl.SSLContext, config: HTTPConfig) -> None:
    """Use the certificate as it is now, from the next connection on; raises what `tls_context` raises."""
    if config.tls_cert is None:
        return
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(
            f"MCP_TLS_CERT and MCP_TLS_KEY cannot be used together ({getattr(exc, 'reason', None) or exc})."
        ) from exc


class Served:
    """MCP as it is served over HTTP."""

    def __init__(self, clients: Clients, tls: ssl.SSLContext | None, config: HTTPConfig) -> None:
        self._clients = clients
        self._tls = tls
        self._config = config

    def renew(self, config: Config) -> None:
        """Let in who may come in from now on, and show the certificate as it is now."""
        self._clients.renew(config.http)
        if self._tls:
            try:
                load_certificate(self._tls, self._config)
            except ConfigError as exc:
                logger.error("the certificate of before stays: %s", exc)  # noqa: TRY400 - its text says it all

    async def stop(self) -> None:
        """Take no more requests, and end what does not end in time."""
        await self._clients.stop(_PATIENCE_S)


@asynccontextmanager
async def mcp_over_http(config: Config, bridge: Bridge) -> AsyncIterator[Served]:
    """Serve MCP, and how the server is, while in context.

    Raises:
        ConfigError: The port, the socket or the certificate cannot be had.
    """
    logging.getLogger("mcp.server.streamable_http_manager").setLevel("ERROR")  # it names sessions, which are secrets
    http = config.http
    tls = tls_context(http)
    clients = Clients(http, config.access_mode, bridge.server, bridge.audit, bridge.measures, bridge.seal)
    bridge.measures.http = clients
    alive = page(lambda: (200, {"alive": True}))
    door = Door(http, {"/mcp": clients, "/healthz": alive, "/readyz": page(bridge.readiness)}, bridge.measures)
    where = bind_unix(http.unix_socket) if http.unix_socket else bind(http.host, http.port)
    async with clients.serving(), serving(door, where, tls):
        url = http.unix_socket or _url("https" if tls else "http", where, "mcp")
        logger.info("MCP is served on %s", url)
        yield Served(clients, tls, http)


@asynccontextmanager
async def figures_over_http(config: Config, bridge: Bridge) -> AsyncIterator[None]:
    """Serve the figures for Prometheus, on a port of their own, while in context; raises what `mcp_over_http` does."""
    from metrics import exposition  # noqa: PLC0415 - only METRICS_PORT needs its library

    host, port = config.metrics or ("127.0.0.1", 0)
    door = Door(
        HTTPConfig(host=host, allowed_hosts=config.http.allowed_hosts),
        {"/metrics": page(lambda: (200, *exposition(bridge.measures)))},
        bridge.measures,
    )
    where = bind(host, port)
    async with serving(door, where):
        logger.info("figures are served on %s", _url("http", where, "metrics"))
        yield


def _url(scheme: str, where: socket.socket, path: str) -> str:
    host, port, *_ = where.getsockname()
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/{path}"

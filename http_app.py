"""The door of every HTTP port: what is no request of ours is turned away before anything else sees it.

Each request is held against the same checks, in this order, whatever it asks for: it is one request and not two, its
Host is a name of this server (a web page of somebody else's that had its name resolved to us is refused: DNS
rebinding), its Origin is one that may come, its path is exactly one of ours. Every answer carries the headers that keep
browsers from doing more with it than show it, and leaves a line in the access log.
"""

import ipaddress
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from http import HTTPStatus
from typing import Any, Final

from starlette.types import Message, Receive, Scope, Send

import logs
from callers import SCOPE_KEY, Caller
from config import HTTPConfig
from measures import Measures
from setting_values import Network, is_loopback

Headers = list[tuple[bytes, bytes]]
Endpoint = Callable[["Exchange"], Awaitable[None]]

UNIX: Final = "unix"
"""The address of who comes by the Unix socket."""
MOST_HOPS: Final = 10
"""Proxies one behind the other; what is further back in X-Forwarded-For was not written by one of them."""

_SECURITY: Final[Headers] = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
]
_HSTS: Final = (b"strict-transport-security", b"max-age=31536000")
_HOST: Final = re.compile(r"(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
_METHODS: Final = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
_EXPOSED: Final = b"Mcp-Session-Id, WWW-Authenticate, Retry-After, X-Request-Id"

logger = logging.getLogger("http.access")


class Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, config: HTTPConfig) -> None:
        self.scope = scope
        self.receive = receive
        self._send = send
        self._config = config
        self.id: Final = secrets.token_hex(4)
        self.method: str = scope["method"]
        self.address = _address(scope, config.trusted_proxies)
        self.client: str | None = None
        """The name of who asked, once that is known."""
        self.status = 0
        self.sent = 0
        self.complete = False

    def header(self, name: bytes) -> list[bytes]:
        """Return the values of a header, one for each time that it is there."""
        return [value for key, value in self.scope["headers"] if key == name]

    @cached_property
    def origin(self) -> str | None:
        """The page's origin that asks; None when no browser says one."""
        values = self.header(b"origin")
        return values[0].decode("latin-1").lower() if values else None

    async def send(self, message: Message) -> None:
        """Send a part of the answer, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [(key, value) for key, value in message.get("headers", []) if key.lower() != b"cache-control"]
            message = {**message, "headers": [*headers, *self._headers()]}
        elif message["type"] == "http.response.body":
            self.sent += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
        await self._send(message)

    async def answer(self, status: int, content: Any = None, headers: Headers | None = None) -> None:
        """Send a whole answer; one that refuses ends the connection, as its next bytes may be of the same request."""
        body = b"" if content is None else content if isinstance(content, bytes) else json.dumps(content).encode()
        given: Headers = [*(headers or [])]
        if status != HTTPStatus.NO_CONTENT:
            given.append((b"content-length", b"%d" % len(body)))
        if not any(key == b"content-type" for key, _ in given) and body:
            given.append((b"content-type", b"application/json"))
        if status >= HTTPStatus.BAD_REQUEST:
            given.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": status, "headers": given})
        await self.send({"type": "http.response.body", "body": body})

    async def refuse(self, status: int, why: str, headers: Headers | None = None) -> None:
        """Answer with an error, in the form that clients of MCP read."""
        error = {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": why}}
        await self.answer(status, error, headers)

    async def finish(self) -> None:
        """End an answer that was begun and is not going to be completed."""
        if self.status and not self.complete:
            await self.send({"type": "http.response.body", "body": b""})

    def _headers(self) -> Headers:
        headers = [*_SECURITY, (b"cache-control", b"no-store"), (b"x-request-id", self.id.encode())]
        if self.scope["scheme"] == "https":
            headers.append(_HSTS)
        if self._config.allowed_origins:
            headers.append((b"vary", b"Origin"))
            if self.origin in self._config.allowed_origins:
                headers.append((b"access-control-allow-origin", self.origin.encode()))
                headers.append((b"access-control-expose-headers", _EXPOSED))
        return headers


class Door:
    """An ASGI application that lets requests through to its endpoints."""

    def __init__(self, config: HTTPConfig, endpoints: Mapping[str, Endpoint], measures: Measures) -> None:
        self.config = config
        self._endpoints = {path.encode(): endpoint for path, endpoint in endpoints.items()}
        self._measures = measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        exchange = Exchange(scope, receive, send, self.config)
        started = time.perf_counter()
        correlated = logs.correlation.set(exchange.id)
        endpoint = self._endpoints.get(scope["raw_path"])
        try:
            if refusal := self._refusal(exchange):
                await exchange.refuse(*refusal)
            else:
                scope[SCOPE_KEY] = Caller("http", None, exchange.address, exchange.id)
                await (endpoint or _not_found)(exchange)
        finally:
            route = scope["raw_path"].decode() if endpoint else "other"
            self._measures.http_request(route, exchange.status)
            facts = {
                "method": exchange.method if exchange.method in _METHODS else "other",
                "route": route,
                "status": exchange.status or None,
                "bytes": exchange.sent,
                "duration_ms": round((time.perf_counter() - started) * 1000, 2),
                "address": exchange.address,
                "client": exchange.client or "-",
            }
            logger.info(
                "%(method)s %(route)s %(status)s, %(bytes)s bytes in %(duration_ms)s ms for %(address)s %(client)s",
                facts,
                extra={"facts": facts},
            )
            logs.correlation.reset(correlated)

    def _refusal(self, exchange: Exchange) -> tuple[int, str] | None:
        """Return with which status and words a request is turned away; None when it may come in."""
        if exchange.header(b"transfer-encoding") and exchange.header(b"content-length"):
            return 400, "A request has a Content-Length or a Transfer-Encoding, not both."
        hosts = exchange.header(b"host")
        if len(hosts) != 1 or not self._is_ours(hosts[0].decode("latin-1").lower(), exchange.scope):
            return 421, "The Host header is not a name of this server: see MCP_ALLOWED_HOSTS."
        if len(exchange.header(b"origin")) > 1 or not self._may_come(exchange, hosts[0].decode("latin-1").lower()):
            return 403, "Pages of this origin may not use the server: see MCP_ALLOWED_ORIGINS."
        return None

    def _is_ours(self, host: str, scope: Scope) -> bool:
        if not _HOST.fullmatch(host):
            return False
        name, port = split_host(host)
        if (is_loopback(name) and not name.endswith(".")) or name == self.config.host.lower():
            return True
        server = scope.get("server")
        if server and server[1] is not None and name == str(server[0]).lower():
            return True  # an address that the request really came to; only names can be rebound
        return any(
            name == allowed and expected in ("*", "", port)
            for allowed, expected in map(split_host, self.config.allowed_hosts)
        )

    def _may_come(self, exchange: Exchange, host: str) -> bool:
        origin = exchange.origin
        if origin is None or origin in self.config.allowed_origins:
            return True
        return origin == f"{exchange.scope['scheme']}://{host}"


def split_host(text: str) -> tuple[str, str]:
    """Split HOST:PORT; an IPv6 address stands in brackets, which are taken off."""
    if text.startswith("["):
        name, _, port = text[1:].partition("]")
        return name, port.removeprefix(":")
    name, _, port = text.partition(":")
    return name, port


def _address(scope: Scope, trusted: tuple[Network | None, ...]) -> str:
    """Return who asks: the last address that no trusted proxy has vouched for another with."""
    address = scope["client"][0] if scope.get("client") else UNIX
    forwarded = b",".join(value for key, value in scope["headers"] if key == b"x-forwarded-for").decode("latin-1")
    hops = [hop.strip() for hop in forwarded.split(",") if hop.strip()][-MOST_HOPS:]
    while hops and _is_trusted(address, trusted):
        name, _ = split_host(hops[-1]) if hops[-1].count(":") == 1 or hops[-1].startswith("[") else (hops[-1], "")
        try:
            address = str(ipaddress.ip_address(name))
        except ValueError:
            break
        hops.pop()
    return address


def _is_trusted(address: str, trusted: tuple[Network | None, ...]) -> bool:
    if address == UNIX:
        return None in trusted
    return any(network is not None and ipaddress.ip_address(address) in network for network in trusted)


async def _not_found(exchange: Exchange) -> None:
    await exchange.refuse(404, "There is nothing here.")


def page(content: Callable[[], tuple[int, Any] | tuple[int, bytes, str]]) -> Endpoint:
    """Make an endpoint that shows something: `content` returns a status and JSON, or a status, bytes and their type."""

    async def show(exchange: Exchange) -> None:
        if exchange.method not in ("GET", "HEAD"):
            await exchange.refuse(405, "Only GET is possible here.", [(b"allow", b"GET, HEAD")])
            return
        status, shown, *kind = content()
        await exchange.answer(status, shown, [(b"content-type", each.encode()) for each in kind])

    return show

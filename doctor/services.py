"""What `doctor` checks besides the broker: the Copilot and the verifier, and MCP over HTTP as it is to be served."""

import errno
import os
import ssl
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx2

from config import Config, CopilotConfig, HTTPConfig
from copilot_client import CopilotClient
from doctor.checkup import Check, Finding, failed, ok, warning
from doctor.settings import dates_of
from errors import ConfigError, ServiceError

TIMEOUT_S: Final = 5.0

_REFUSED: Final = {401, 403}
_NOT_THE_KEY: Final = {400, 422}
"""With which an agent answers a request without `messages`; 422 was seen by others, 400 is likely."""


class ServicesChecks:
    """The services, and our own."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def checks(self) -> list[Check]:
        """List the checks."""
        config = self._config
        found = [Check("Copilot", self._copilot, settings=("COPILOT_", "DO_AGENT_"), limit_s=4 * TIMEOUT_S)]
        if config.copilot.verifier_url:
            found.append(Check("LoT verifier", self._verifier, settings=("LOT_",), limit_s=20))
        if config.transport == "http":
            found.append(Check("MCP over HTTP", self._http, settings=("MCP_",), limit_s=4 * TIMEOUT_S))
        if config.metrics:
            found.append(Check("metrics", self._metrics, settings=("METRICS_",), limit_s=2 * TIMEOUT_S))
        return found

    async def _copilot(self) -> AsyncIterator[Finding]:
        config = self._config.copilot
        if config.url is None or config.key is None:
            yield ok(f"{' and '.join(config.missing)} not set: there are no copilot_ tools")
            return
        host = urlsplit(config.url).netloc
        async with CopilotClient(config) as copilot:
            if not await copilot.health():
                yield failed(
                    f"{host} does not answer GET /health with 200 within {TIMEOUT_S:g} s",
                    "Check COPILOT_URL, the network and the proxy.",
                )
                return
        with_key = await _status_of_nothing(config, with_key=True)
        if with_key in _REFUSED:
            yield failed(
                f"{host} is up and refuses the key (HTTP {with_key})", "Set DO_AGENT_API_KEY to a key of this agent."
            )
        elif with_key == httpx2.codes.NOT_FOUND:
            yield failed(
                f"{host} is up and has no agent at {urlsplit(config.url).path} (HTTP 404)", "Check COPILOT_URL."
            )
        elif with_key not in _NOT_THE_KEY:
            yield warning(
                f"{host} is up; whether it accepts the key is not known: to a request without a question it answers "
                f"{f'HTTP {with_key}' if with_key else 'nothing'}",
                "Ask it something with copilot_ask.",
            )
        elif await _status_of_nothing(config, with_key=False) in _REFUSED:
            yield ok(
                f"{host} is up and accepts the key: asked with a request without a question, which costs no tokens"
            )
        else:
            yield ok(
                f"{host} is up; whether it accepts the key cannot be told without a question, which costs tokens: "
                "a request without one is answered alike with the key and without"
            )

    async def _verifier(self) -> AsyncIterator[Finding]:
        async with CopilotClient(self._config.copilot) as copilot:
            try:
                await copilot.verify("")
            except ServiceError as exc:
                yield failed(
                    str(exc).removesuffix("."), "Check LOT_VERIFIER_API_URL, or take it out: it is not needed."
                )
                return
        yield ok(f"{urlsplit(self._config.copilot.verifier_url or '').netloc} answers")

    async def _http(self) -> AsyncIterator[Finding]:
        from http_server import tls_context  # noqa: PLC0415 - who has no HTTP need not wait for it to be loaded

        http = self._config.http
        if http.tls_cert:
            try:
                tls_context(http)
            except ConfigError as exc:
                yield failed(str(exc).removesuffix("."), "Set MCP_TLS_KEY to the key that MCP_TLS_CERT was made for.")
                return
            for finding in dates_of("MCP_TLS_CERT", http.tls_cert, "Have it renewed by whoever issued it."):
                yield finding
        if http.unix_socket:
            yield await _socket_finding(http.unix_socket)
        else:
            yield await _port_finding(http, "MCP_PORT", "/healthz")

    async def _metrics(self) -> AsyncIterator[Finding]:
        host, port = self._config.metrics or ("127.0.0.1", 0)
        yield await _port_finding(HTTPConfig(host=host, port=port), "METRICS_PORT", "/metrics")


async def _status_of_nothing(config: CopilotConfig, *, with_key: bool) -> int | None:
    """Return with which status an agent answers a request in which there is no question; None when it does not."""
    headers = {"Authorization": f"Bearer {config.key.get_secret_value()}"} if with_key and config.key else {}
    try:
        async with httpx2.AsyncClient(timeout=TIMEOUT_S) as http:
            return (await http.post(config.url or "", json={}, headers=headers)).status_code
    except (httpx2.HTTPError, OSError, ValueError, ImportError):
        return None


async def _port_finding(http: HTTPConfig, name: str, path: str) -> Finding:
    """Say whether a port is free, or ours already."""
    from http_server import bind  # noqa: PLC0415

    url = f"{http.url}{path}"
    try:
        bind(http.host, http.port).close()
    except ConfigError as exc:
        if await _is_ours(url):
            return ok(f"a server of ours answers at {url} already")
        if getattr(exc.__cause__, "errno", None) == errno.EADDRINUSE:
            return failed(str(exc).removesuffix("."), f"Set {name} to a free port, or end what listens there.")
        where = "METRICS_PORT" if name == "METRICS_PORT" else "MCP_HOST and MCP_PORT"
        return failed(str(exc).removesuffix("."), f"Set {where} to an address and a port that the server may use.")
    return ok(f"{http.host}:{http.port or 'any free port'} can be listened on")


async def _socket_finding(path: Path) -> Finding:
    """Say whether a Unix socket can be made, or is served by us already."""
    advice = "Set MCP_UNIX_SOCKET to a path in a directory that only the server's user can write to."
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return failed(f"{path.parent} is no directory in which {path.name} can be made", advice)
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - one look, as ASYNC240 has it
    except FileNotFoundError:
        return ok(f"{path} can be made")
    if not stat.S_ISSOCK(mode):
        return failed(f"{path} is there and is no socket", advice)
    if await _is_ours("http://localhost/healthz", path):
        return ok(f"a server of ours answers at {path} already")
    return warning(f"{path} is there, and no server of ours answers on it", "Delete it, if nothing else uses it.")


async def _is_ours(url: str, path: Path | None = None) -> bool:
    """Say whether what answers at an address of our own is a server like this."""
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname = False
    anybody.verify_mode = ssl.CERT_NONE  # nothing is told to it
    transport = httpx2.AsyncHTTPTransport(verify=anybody, uds=str(path) if path else None)
    try:
        async with httpx2.AsyncClient(transport=transport, timeout=TIMEOUT_S) as http:
            answer = await http.get(url)
    except (httpx2.HTTPError, OSError):
        return False
    return answer.status_code == httpx2.codes.OK and (b'"alive"' in answer.content or b"coreflux_mcp" in answer.content)

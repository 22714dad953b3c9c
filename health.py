"""Whether the server in this container is ready, for HEALTHCHECK: asks the running server, over HTTP, as it is set.

A program of its own, because it runs every half a minute and needs none of what the server needs. It exits with 0 when
the server has its broker, and else with 1 and a sentence that says what is wrong.
"""

import http.client
import json
import socket
import ssl
import sys
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from config import Config, HTTPConfig
from errors import BridgeError
from sanitizer import hide_secrets

TIMEOUT_S: Final = 5
_EVERYWHERE: Final = {str(IPv4Address(0)): "127.0.0.1", str(IPv6Address(0)): "::1"}
"""Where to ask a server that listens on every address."""
_READ_AT_MOST: Final = 64 << 10
_OK: Final = 200


class _OverUnixSocket(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Open the connection."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def check(config: Config) -> str | None:
    """Ask the server that runs with these settings; return what is wrong, or None when it is ready."""
    if config.transport == "stdio":
        return "The server is served over stdio, where nobody can ask it: run the container with --no-healthcheck."
    if config.http.port == 0:
        return "MCP_PORT=0 takes a port that only the server knows: set another."
    try:
        connection = _connection(config.http)
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            status, body = answer.status, answer.read(_READ_AT_MOST)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as exc:
        return f"The server does not answer ({getattr(exc, 'strerror', None) or exc})."
    return None if status == _OK else _reason(body) or f"The server answers with {status}."


def _connection(config: HTTPConfig) -> http.client.HTTPConnection:
    if config.unix_socket:
        return _OverUnixSocket(config.unix_socket)
    host = _EVERYWHERE.get(config.host, config.host)
    if config.tls_cert is None:
        return http.client.HTTPConnection(host, config.port, timeout=TIMEOUT_S)
    # Whatever its name and authority: what the server has to show is this certificate.
    context = ssl.create_default_context(cafile=config.tls_cert)
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    return http.client.HTTPSConnection(host, config.port, timeout=TIMEOUT_S, context=context)


def _reason(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["reason"])
    except (ValueError, KeyError, TypeError):
        return None


def main() -> int:
    """Say whether the server is ready and return the exit code."""
    try:
        wrong = check(Config.from_env())
    except BridgeError as exc:
        wrong = f"The settings cannot be used:\n{exc}"
    sys.stdout.write(f"{hide_secrets(wrong) if wrong else 'ready'}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

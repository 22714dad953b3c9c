"""What speaks at a port, where it is not what the settings say: asked on connections of our own, without a login."""

import asyncio
import secrets
import ssl
from contextlib import suppress
from typing import Final, Literal

from cryptography import x509

from config import BrokerConfig
from doctor.settings import decoded
from errors import BridgeError
from mqtt_failures import tls_context

PROBE_TIMEOUT_S: Final = 3.0
"""How long one look may take."""

Spoken = Literal["MQTT", "HTTP", "TLS", "TLS with client certificates", ""]
"""What answered; "" is nothing that we know."""

_ALERT_S: Final = 1.0
_ENOUGH: Final = 16
_ALERT: Final = 0x15
_CONNACK: Final = 0x20
_NO_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "EOF", "HTTP_REQUEST")
"""By part of OpenSSL's reason: what answered, if anything did, does not speak TLS."""
_NOT_WITH_US: Final = ("CERTIFICATE", "UNKNOWN_CA")
"""Likewise: it does not accept our certificate, or that we have none."""


async def spoken_plainly(config: BrokerConfig) -> Spoken:
    """Say what answers a CONNECT without TLS and without a login."""
    return await _answer(config, None)


async def spoken_in_tls(config: BrokerConfig) -> Spoken:
    """Say what answers a CONNECT within TLS, without a login; whoever it is."""
    try:
        return await _answer(config, _credulous(config))
    except BridgeError:  # our own files cannot be used
        return ""


async def speaks_tls(config: BrokerConfig) -> bool:
    """Say whether the other side answers a TLS handshake, whatever it thinks of ours."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            _, writer = await asyncio.open_connection(config.host, config.port, ssl=context)
    except ssl.SSLError as exc:
        return not any(part in (exc.reason or str(exc)) for part in _NO_TLS)
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True


async def certificate_shown(config: BrokerConfig) -> x509.Certificate | None:
    """Return the certificate that the broker shows, trusted or not."""
    with suppress(OSError, TimeoutError, BridgeError):
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            _, writer = await asyncio.open_connection(
                config.host, config.port, ssl=_credulous(config), server_hostname=_name(config)
            )
        stream = writer.get_extra_info("ssl_object")
        writer.transport.abort()
        return decoded(stream.getpeercert(binary_form=True))
    return None


def _credulous(config: BrokerConfig) -> ssl.SSLContext:
    """Make a context that shows who we are and trusts anybody, as nothing is told in it."""
    tls = config.tls
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if tls is None else tls_context(tls)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _name(config: BrokerConfig) -> str:
    return (config.tls and config.tls.server_name) or config.host


async def _answer(config: BrokerConfig, context: ssl.SSLContext | None) -> Spoken:
    writer = None
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            name = _name(config) if context else None
            reader, writer = await asyncio.open_connection(config.host, config.port, ssl=context, server_hostname=name)
            first = await _first_word(reader) if context else b""
            if not first:
                writer.write(_connect_packet())
                await writer.drain()
                first = await reader.read(_ENOUGH)
    except ssl.SSLError as exc:
        return "TLS with client certificates" if any(part in (exc.reason or "") for part in _NOT_WITH_US) else ""
    except (OSError, TimeoutError):
        return ""
    finally:
        if writer is not None:
            writer.transport.abort()
    if first.startswith(b"HTTP/"):
        return "HTTP"
    if first[:1] == bytes([_CONNACK]):
        return "MQTT"
    return "TLS" if first[:1] == bytes([_ALERT]) else ""


async def _first_word(reader: asyncio.StreamReader) -> bytes:
    """Hear the alert of a TLS 1.3 server that refuses us: it comes after the handshake, and is lost to who writes."""
    try:
        async with asyncio.timeout(_ALERT_S):
            return await reader.read(_ENOUGH)
    except TimeoutError:
        return b""


def _connect_packet() -> bytes:
    """Write a CONNECT of MQTT 3.1.1, which every broker answers, with a clean session and no login."""
    client_id = f"coreflux-doctor-{secrets.token_hex(3)}".encode()
    body = b"\0\4MQTT\4\2\0\x0a" + len(client_id).to_bytes(2, "big") + client_id
    return bytes([0x10, len(body)]) + body

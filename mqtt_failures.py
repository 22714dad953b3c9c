"""What a failure on the way to the broker, or its end, means to an operator; and TLS, where most of them arise."""

import socket
import ssl
from typing import Final, Literal

from config import BrokerConfig, TLSConfig
from errors import BridgeError
from topics import shown

KEEP_ALIVE_TIMEOUT: Final = 0x8D
PROTOCOL_ERROR: Final = 0x82
"""Reason codes of DISCONNECT (MQTT 5.0, 2.4)."""

FailureKind = Literal["network", "login", "protocol", "closed"]


class LinkFailedError(BridgeError):
    """No connection came about; the text says why, in words for the operator."""

    def __init__(self, text: str, kind: FailureKind = "network") -> None:
        super().__init__(text)
        self.kind = kind


def own_ending(code: int, reason: str) -> str:
    """Say how a connection ended that the broker did not close with DISCONNECT."""
    if code == KEEP_ALIVE_TIMEOUT:
        return "the broker stopped answering (keep-alive timeout)"
    if code == 0:
        return "it was closed"
    return "the broker closed it or the network broke" if code == _UNSPECIFIED else f"it broke: {reason}"


_UNSPECIFIED: Final = 0x80


_LOGIN_CODES: Final = {0x86, 0x87, 0x8A, 0x8C}
_ADVICE: Final = {
    0x84: "it does not speak MQTT {protocol}: set MQTT_PROTOCOL",
    0x85: "it does not accept the client id {client_id}: set MQTT_CLIENT_ID",
    0x86: "user name or password is wrong: check MQTT_USER and MQTT_PASSWORD",
    0x87: "the login is not allowed: check MQTT_USER, MQTT_PASSWORD and the broker's rules for this user and client id",
    0x88: "it is not available",
    0x89: "it is busy",
    0x8A: "this client is banned",
    0x9C: "set MQTT_BROKER",
    0x9D: "set MQTT_BROKER",
    0x9F: "connections come too fast",
}
"""What a CONNACK reason code means to an operator (MQTT 5.0, 3.2.2.2)."""


def refusal(code: int, reason: str, config: BrokerConfig, protocol: str) -> LinkFailedError:
    """Say what a CONNACK means that refuses; `reason` is its reason code in words."""
    advice = _ADVICE.get(code, "see the broker's log").format(protocol=protocol, client_id=shown(config.client_id))
    kind: FailureKind = "login" if code in _LOGIN_CODES else "protocol" if code == 0x84 else "network"  # noqa: PLR2004
    return LinkFailedError(f"{config.url} refused the connection: {reason}; {advice}.", kind)


def no_answer(config: BrokerConfig, protocol: str, code: int) -> LinkFailedError:
    """Say what the end of a connection before CONNACK means; `code` is how it ended."""
    if code == KEEP_ALIVE_TIMEOUT:
        said = "did not answer CONNECT while the keep-alive lasted"
        return LinkFailedError(f"{config.url} {said}: is it a healthy MQTT broker?")
    if code == PROTOCOL_ERROR:
        said = f"did not answer CONNECT in MQTT {protocol}"
        likely = "it may speak another version (MQTT_PROTOCOL)"
    else:
        said = "closed the connection without answering CONNECT"
        wanted = "a client certificate (MQTT_CLIENT_CERT)" if config.tls else "TLS (MQTT_USE_TLS)"
        likely = f"it may want {wanted} or another MQTT version (MQTT_PROTOCOL)"
    return LinkFailedError(f"{config.url} {said}: {likely}, or be no MQTT broker (MQTT_PORT).", "closed")


def failure(exc: Exception, config: BrokerConfig) -> LinkFailedError:
    """Say what an error on the way to the broker means to an operator."""
    if isinstance(exc, LinkFailedError):
        return exc
    if isinstance(exc, ssl.SSLCertVerificationError):
        advice = _CERTIFICATE_ADVICE.get(exc.verify_code, "set MQTT_CA_CERT to the CA that signed it")
        text = f"its certificate is not trusted ({exc.verify_message}); {advice}."
    elif isinstance(exc, ssl.SSLError):
        reason = exc.reason or str(exc)
        advice = next(
            (advice for part, advice in _TLS_ADVICE.items() if part in reason), "see the broker's TLS settings"
        )
        text = f"TLS failed ({reason}); {advice}."
    elif isinstance(exc, socket.gaierror):
        text = f"the name {shown(config.host)} cannot be resolved; check MQTT_BROKER and DNS."
    elif isinstance(exc, ConnectionRefusedError):
        text = "nothing listens there; is the broker running, and is MQTT_PORT right?"
    elif isinstance(exc, TimeoutError):
        text = f"no answer within {config.connect_timeout_s:g} s; check address, network and firewall."
    elif isinstance(exc, ConnectionError) and config.transport == "websockets":
        text = f"{exc}; check MQTT_PORT, MQTT_TRANSPORT and MQTT_WS_PATH."
    elif isinstance(exc, ConnectionResetError) and config.tls:
        text = "the port seems not to speak TLS; check MQTT_PORT and MQTT_USE_TLS."
    elif isinstance(exc, OSError):
        text = f"{exc.strerror or exc}."
    else:
        text = f"{exc}."
    return LinkFailedError(f"Cannot connect to {config.url}: {text}")


_CERTIFICATE_ADVICE: Final = {
    10: "have the broker's certificate renewed, or check this machine's clock",
    9: "check this machine's clock",
    62: "it was issued for another name: connect by that name or set MQTT_TLS_SERVER_NAME",
    64: "it was issued for another address: connect by name or set MQTT_TLS_SERVER_NAME",
}
"""By OpenSSL's X509_V_ERR code: expired, not yet valid, host name mismatch, address mismatch."""

_TLS_ADVICE: Final = {
    "WRONG_VERSION_NUMBER": "nothing speaks TLS on this port: check MQTT_PORT and MQTT_USE_TLS",
    "RECORD_LAYER_FAILURE": "nothing speaks TLS on this port: check MQTT_PORT and MQTT_USE_TLS",
    "PROTOCOL_VERSION": "the broker does not speak a TLS version that MQTT_TLS_MIN_VERSION allows",
    "UNSUPPORTED_PROTOCOL": "the broker does not speak a TLS version that MQTT_TLS_MIN_VERSION allows",
    "HANDSHAKE_FAILURE": "no cipher in common, or the broker wants a client certificate: check MQTT_TLS_CIPHERS and "
    "MQTT_CLIENT_CERT",
    "CERTIFICATE": "the broker does not accept the client certificate: check MQTT_CLIENT_CERT and MQTT_CLIENT_KEY",
    "EOF": "the broker broke off: check MQTT_PORT and MQTT_USE_TLS, MQTT_TLS_MIN_VERSION and MQTT_TLS_CIPHERS",
}
"""By part of OpenSSL's reason."""


def tls_context(tls: TLSConfig) -> ssl.SSLContext:
    """Make the TLS context; files are read now, so that each connection uses what they hold by then.

    Raises:
        LinkFailedError: A file cannot be read, or is no certificate or key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if tls.min_version == "1.3" else ssl.TLSVersion.TLSv1_2
    if tls.ciphers:
        context.set_ciphers(tls.ciphers)
    if tls.ca_cert:
        try:
            context.load_verify_locations(tls.ca_cert)
        except OSError as exc:
            raise LinkFailedError(f"MQTT_CA_CERT cannot be used: {_file_trouble(exc)}.") from exc
    else:
        context.load_default_certs()
    if tls.client_cert:
        password = tls.client_key_password.get_secret_value() if tls.client_key_password else ""
        try:  # a password of "" keeps OpenSSL from asking the terminal
            context.load_cert_chain(tls.client_cert, tls.client_key, password)
        except OSError as exc:
            raise LinkFailedError(f"The client certificate cannot be used: {_file_trouble(exc)}.") from exc
    if tls.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _file_trouble(exc: OSError) -> str:
    if not isinstance(exc, ssl.SSLError):
        return f"{exc.strerror}"
    reason = exc.reason or str(exc)
    return next((advice for part, advice in _FILE_ADVICE.items() if part in reason), reason)


_FILE_ADVICE: Final = {
    "NO_CERTIFICATE": "there is no certificate in it",
    "KEY_VALUES_MISMATCH": "MQTT_CLIENT_KEY does not belong to MQTT_CLIENT_CERT",
    "BAD_DECRYPT": "MQTT_CLIENT_KEY_PASSWORD is wrong",
    "PEM lib": "MQTT_CLIENT_KEY_PASSWORD is wrong, or the files are not a certificate and its key",
}
"""By part of OpenSSL's reason."""

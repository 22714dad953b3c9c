"""What the text of a setting means: each function here takes one and returns its value.

They raise ValueError, with a text that says what is wrong and repeats nothing of the value, which may be a secret.
"""

import ipaddress
import os
import re
import ssl
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

from pydantic import SecretStr

from errors import InputError
from sanitizer import add_known
from topics import TopicFilter

Transport = Literal["tcp", "websockets"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_SCHEMES: dict[str, tuple[Transport, bool]] = {
    "mqtt": ("tcp", False),
    "tcp": ("tcp", False),
    "mqtts": ("tcp", True),
    "ssl": ("tcp", True),
    "tls": ("tcp", True),
    "ws": ("websockets", False),
    "wss": ("websockets", True),
}

_BROKER = re.compile(
    r"(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://)?"
    r"(?:(?P<login>[^/?#]*)@)?"
    r"(?P<host>\[[^\[\]]*\]|[^\[\]:/?#@]*)"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[^?#]*)?"
)
_HOST_CHARACTERS = re.compile(r"[A-Za-z0-9:.%_-]+")
_HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_LONGEST_HOST_NAME = 253
_WS_PATH = re.compile(r'/[!"$->@-~]*')  # printable ASCII but # and ?
_ORIGIN = re.compile(r"https?://(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
_SIZE = re.compile(r"([0-9]{1,15}) ?(B|kB|MB|GB|KiB|MiB|GiB)?", re.IGNORECASE)
_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}

HIGHEST_PORT = 65_535
LONGEST_FIELD = 65_535  # bytes of a string or of binary data in MQTT
_SHORTEST_KEY = 16  # characters of AUDIT_KEY
SHORTEST_TOKEN = 32  # characters of MCP_TOKEN
_READ_AT_MOST = 2**20  # of a file that is named in a setting; a bundle of every public CA has 250 KB


class Address(NamedTuple):
    """What MQTT_BROKER says; None where it says nothing."""

    host: str = "localhost"
    port: int | None = None
    transport: Transport | None = None
    tls: bool = False
    path: str | None = None
    user: str | None = None
    password: SecretStr | None = None
    embedded: bool = False


def address(text: str) -> Address:
    """Read what people paste as a broker's address.

    Raises:
        ValueError: It is none. The text says why and repeats nothing of it, because it may hold a password.
    """
    if text.lower() == "embedded":
        return Address(host="127.0.0.1", transport="tcp", embedded=True)
    bare_ipv6 = text.count(":") > 1 and not set(text) & set("[/@")
    match = _BROKER.fullmatch(f"[{text}]" if bare_ipv6 else text)
    if not match:
        raise ValueError("this cannot be read as an address")
    scheme = (match["scheme"] or "").lower()
    if scheme and scheme not in _SCHEMES:
        raise ValueError("the URL's scheme is not known")
    transport, tls = _SCHEMES.get(scheme, (None, False))
    port = int(match["port"]) if match["port"] else None
    if port is not None and not 1 <= port <= HIGHEST_PORT:
        raise ValueError("the port is out of range")
    path = None if match["path"] in {None, "/"} else ws_path(match["path"])
    if path and transport != "websockets":
        raise ValueError("only ws:// and wss:// have a path")
    user, _, password = (match["login"] or "").partition(":")
    add_known(password)
    add_known(_percent_decoded(password))
    return Address(
        host=_ipv6(match["host"][1:-1]) if match["host"].startswith("[") else host(match["host"]),
        port=port,
        transport=transport,
        tls=tls,
        path=path,
        user=mqtt_string(_percent_decoded(user)) or None,
        password=secret_text(SecretStr(_percent_decoded(password))) if password else None,
    )


def _ipv6(text: str) -> str:
    if ":" not in text:
        raise ValueError("brackets are for IPv6 addresses")
    return host(text)


def host(text: str) -> str:
    """Check a host name or an IP address without brackets."""
    if not text.isascii():
        raise ValueError("an international host name has to be in its xn-- form")
    if not (_HOST_CHARACTERS.fullmatch(text) and (_is_ip_address(text) or _is_host_name(text))):
        raise ValueError("the host is neither a name nor an IP address")
    return text


def _is_ip_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_host_name(text: str) -> bool:
    name = text.removesuffix(".")
    labels = name.split(".")
    # What ends in a number is meant as an IPv4 address.
    return len(name) <= _LONGEST_HOST_NAME and all(map(_HOST_LABEL.fullmatch, labels)) and not labels[-1].isdigit()


def is_loopback(host: str) -> bool:
    """Say whether a name or address means this machine alone."""
    if _is_ip_address(host):
        return ipaddress.ip_address(host).is_loopback
    name = host.lower().removesuffix(".")
    return name == "localhost" or name.endswith(".localhost")


def _percent_decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("the login is not percent-encoded UTF-8") from None


def mqtt_string(text: str) -> str:
    """Check a text that goes into an MQTT packet."""
    if not text.isprintable() or len(text.encode()) > LONGEST_FIELD:
        raise ValueError("it is too long or has a character that cannot be seen")
    return text


def secret_text(secret: SecretStr) -> SecretStr:
    """Check a secret that goes into an MQTT packet."""
    try:
        size = len(secret.get_secret_value().encode())
    except UnicodeEncodeError as exc:
        raise ValueError(cause(exc)) from None
    if size > LONGEST_FIELD:
        raise ValueError("it is too long")
    return secret


def ws_path(text: str) -> str:
    """Check the path of a WebSocket."""
    if not _WS_PATH.fullmatch(text):
        raise ValueError("the path has to begin with / and can have no query and no fragment")
    return text


def header_value(secret: SecretStr) -> SecretStr:
    """Check a secret that goes into a header of HTTP."""
    if not re.fullmatch(r"[!-~]{1,4096}", secret.get_secret_value()):
        raise ValueError("it cannot be sent in a header")
    return secret


def web_url(text: str) -> str:
    """Check a URL of http or https."""
    try:
        url = urlsplit(text)
        good = url.scheme in ("http", "https") and "@" not in url.netloc and not url.fragment and url.port != 0
    except ValueError:  # its text has the port, which may be a part of a password
        good = False
    if not good or not (_is_ip_address(url.hostname or "") or _is_host_name(url.hostname or "")):
        raise ValueError("it is no URL of the web, or has a login or a fragment")
    return text


def secure_url(text: str) -> str:
    """Check a URL to which a key may be sent."""
    url = urlsplit(web_url(text))
    if url.scheme == "http" and not is_loopback(url.hostname or ""):
        raise ValueError("the key would travel unencrypted")
    return text


def copilot_url(text: str) -> str:
    """Complete the address of an agent: people paste it with or without the path of the API."""
    url = urlsplit(secure_url(text))
    path = url.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path = f"{path or '/api/v1'}/chat/completions"
        return urlunsplit((url.scheme, url.netloc, path, url.query or "agent=true", ""))
    return text


def size(text: str) -> int:
    """Read a number of bytes, with a unit or without."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError("this is no size")
    return int(match[1]) * _UNITS[(match[2] or "b").lower()]


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def filters(text: str) -> tuple[TopicFilter, ...]:
    """Read topic filters with commas between them."""
    try:
        found = tuple(map(TopicFilter, _parts(text)))
    except InputError as exc:
        raise ValueError(str(exc).removesuffix(".")) from None
    if any(each.share_name for each in found):
        raise ValueError("a rule is about topics, so $share/ has no place in it")
    return found


def token(secret: SecretStr) -> SecretStr:
    """Check a bearer token."""
    if len(header_value(secret).get_secret_value()) < SHORTEST_TOKEN:
        raise ValueError("it is too short")
    return secret


def bind_host(text: str) -> str:
    """Check where to listen; people write * for every address."""
    return "0.0.0.0" if text == "*" else host(text.removeprefix("[").removesuffix("]"))  # noqa: S104  # nosec


def host_and_port(text: str) -> tuple[str, int]:
    """Read a port of this machine, or where else to listen."""
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > HIGHEST_PORT:
        raise ValueError("there is no such port")
    return bind_host(host) if host else "127.0.0.1", int(port)


def origins(text: str) -> tuple[str, ...]:
    """Read the origins of web pages."""
    found = tuple(part.lower().removesuffix("/") for part in _parts(text))
    if "*" in found:
        raise ValueError("every page of the web could use the server; name the origins")
    if not all(map(_ORIGIN.fullmatch, found)):
        raise ValueError("an origin has a scheme, a host and no path")
    return tuple(_without_usual_port(each) for each in found)


def _without_usual_port(origin: str) -> str:
    """Write an origin as browsers do (RFC 6454, 6.1)."""
    return origin.removesuffix(":80" if origin.startswith("http:") else ":443")


def hosts(text: str) -> tuple[str, ...]:
    """Read what a Host header may say."""
    found = tuple(part.lower() for part in _parts(text))
    for each in found:
        name, _, port = each.rpartition(":") if not each.endswith("]") else (each, "", "")
        if not name:
            name, port = each, ""
        if port and not (port == "*" or (port.isdigit() and int(port) <= HIGHEST_PORT)):
            raise ValueError("there is no such port")
        host(name.removeprefix("[").removesuffix("]"))
    return found


def proxies(text: str) -> tuple[Network | None, ...]:
    """Read addresses and networks; None stands for the Unix socket."""
    try:
        return tuple(None if part == "unix" else ipaddress.ip_network(part) for part in _parts(text))
    except ValueError:
        raise ValueError("one of them is no IP address and no network") from None


def audit_key(secret: SecretStr) -> SecretStr:
    """Check the key of the record."""
    if len(secret_text(secret).get_secret_value()) < _SHORTEST_KEY:
        raise ValueError("it is too short")
    return secret


def ciphers(text: str) -> str:
    """Check a list of ciphers as OpenSSL writes it."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_ciphers(text)
    except ssl.SSLError:
        raise ValueError("OpenSSL knows no cipher of these") from None
    return text


def path(text: str) -> Path:
    """Read the path of a file that may be missing."""
    try:
        return Path(text).expanduser()
    except RuntimeError as exc:  # the home directory of ~ is not known
        raise ValueError(cause(exc)) from None


def readable_file(text: str) -> Path:
    """Read the path of a file that can be read."""
    file = path(text)
    try:
        read_file(file)
    except OSError as exc:
        raise ValueError(cause(exc)) from None
    return file


def read_file(path: Path) -> tuple[bytes, int]:
    """Return the first MiB of a file, and its mode."""
    with path.open("rb") as file:
        return file.read(_READ_AT_MOST), os.fstat(file.fileno()).st_mode


def cause(exc: Exception) -> str:
    """Say what is wrong with a file or a text, without its name or content."""
    if isinstance(exc, UnicodeError):
        return "it is not UTF-8"
    return str(exc.strerror) if isinstance(exc, OSError) else str(exc).removesuffix(".")

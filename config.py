"""The settings: read once from the environment, `.env` and secret files, checked as a whole, and frozen.

The only file that knows `os.environ`.
"""

import difflib
import hashlib
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from dotenv.parser import parse_stream
from platformdirs import user_state_path
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    SecretStr,
    ValidationError,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

import setting_values as checked
from errors import ConfigError
from sanitizer import add_known
from topics import TopicFilter

Confirm = Literal["destructive", "overwrite", "every"]
Fallback = Literal["refuse", "approve-file", "allow"]
AccessMode = Literal["read", "write", "admin"]
ProtocolVersion = Literal["auto", "5", "3.1.1"]
TLSVersion = Literal["1.2", "1.3"]
ServerTransport = Literal["stdio", "http"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "NONE"]
LogFormat = Literal["text", "json"]

KIB = 1024
MIB = 1024 * KIB

ENV_FILE = Path(__file__).with_name(".env")

# Never shown. Each may also come from NAME_FILE or from a file in $CREDENTIALS_DIRECTORY, and so may the user name,
# which people keep beside the password.
SECRETS = (
    "MQTT_PASSWORD",
    "MQTT_CLIENT_KEY_PASSWORD",
    "MQTT_OAUTH_CLIENT_SECRET",
    "DO_AGENT_API_KEY",
    "AUDIT_KEY",
    "MCP_TOKEN",
)
FROM_FILE = (*SECRETS, "MQTT_USER")
PUBLISHED_PASSWORD = "coreflux"  # noqa: S105 - of `root`, in the vendor's quick starts  # nosec
_ADDRESSES = ("MQTT_BROKER", "COPILOT_URL", "LOT_VERIFIER_API_URL", "MQTT_OAUTH_TOKEN_URL")

# What other programs call our settings, where spelling alone would not find the name meant.
_CALLED_ELSEWHERE = {
    "MQTT_HOST": "MQTT_BROKER",
    "MQTT_SERVER": "MQTT_BROKER",
    "MQTT_URL": "MQTT_BROKER",
    "MQTT_URI": "MQTT_BROKER",
    "MQTT_BROKER_URL": "MQTT_BROKER",
    "MQTT_BROKER_HOST": "MQTT_BROKER",
    "MQTT_BROKER_PORT": "MQTT_PORT",
    "MQTT_USERNAME": "MQTT_USER",
    "MQTT_PASS": "MQTT_PASSWORD",
    "MQTT_PWD": "MQTT_PASSWORD",
    "MQTT_VERSION": "MQTT_PROTOCOL",
    "MQTT_TLS": "MQTT_USE_TLS",
    "MQTT_SSL": "MQTT_USE_TLS",
    "MQTT_USE_SSL": "MQTT_USE_TLS",
    "MQTT_CA": "MQTT_CA_CERT",
    "MQTT_CA_FILE": "MQTT_CA_CERT",
    "MQTT_TLS_CA": "MQTT_CA_CERT",
    "MQTT_INSECURE": "MQTT_TLS_INSECURE",
    "MCP_AUTH_TOKEN": "MCP_TOKEN",
    "MCP_BIND": "MCP_HOST",
    "DO_AGENT_KEY": "DO_AGENT_API_KEY",
    "RATE_LIMIT": "RATE_LIMIT_PER_S",
    # The older Coreflux server, or its README: docs/moving.md.
    "MQTT_CERT_FILE": "MQTT_CLIENT_CERT",
    "MQTT_KEY_FILE": "MQTT_CLIENT_KEY",
    "CERT_PATH": "MQTT_CA_CERT",
}
ACCESS_MODES: tuple[AccessMode, ...] = ("read", "write", "admin")
_ALIKE = 0.87  # one or two letters wrong; LOG_DIR and LOG_FILE (0.67) or ACCESS_TOKEN and ACCESS_MODE (0.78) are not
_NAMED_AT_MOST = 20  # of the names in the env file that are no settings
# Where a line of a secret was taken for a name, it has digits or small letters in front of the first _.
_NAME_OF_A_VARIABLE = re.compile(r"[A-Z]{1,32}(_[A-Z0-9_]{1,64})?")

# A WebSocket has the ports of the web, however it is asked for: by URL or by MQTT_TRANSPORT.
_SCHEME_AND_PORT = {
    ("tcp", False): ("mqtt", 1883),
    ("tcp", True): ("mqtts", 8883),
    ("websockets", False): ("ws", 80),
    ("websockets", True): ("wss", 443),
}
_TLS_PORT = 8883
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound to, but looked up  # nosec
# In a broken URL a login, a port that is no number, a query and a fragment may be a password.
_BROKER_WITHOUT_A_PASSWORD = re.compile(r"(?:[A-Za-z0-9+.-]*://)?[^:/?#@]*(?::[0-9]*)?(?:/[^:?#@]*)?")
CLIENT_NAME = r"[A-Za-z0-9._-]{1,64}"
_CLIENT = re.compile(rf"({CLIENT_NAME})[ \t]+(read|write|admin)[ \t]+([0-9A-Fa-f]{{64}})")
_PLACEHOLDER = re.compile(r"\$\{[^}]*\}")
_SHOWN_AT_MOST = 100  # characters of a bad value

_DOCKER_SECRETS = Path("/run/secrets")  # where the user of a container may be "others", and nobody else is
_OTHERS_READ = 0o004
_GROUP_OR_OTHERS_READ = 0o044
_GROUP_OR_OTHERS_WRITE = 0o022


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSConfig:
    """How the broker is recognised, and how we show who we are.

    Attributes:
        ca_cert: PEM file of the authorities to trust, instead of the system's.
        client_cert: PEM file of our certificate.
        client_key: PEM file of its private key; None when `client_cert` holds the key too.
        client_key_password: What the private key is encrypted with.
        min_version: The oldest TLS version to accept.
        ciphers: OpenSSL cipher list for TLS 1.2, already accepted by OpenSSL.
        server_name: The name the broker's certificate must have, instead of the host's.
        insecure: Trust any certificate.
    """

    ca_cert: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    client_key_password: SecretStr | None = None
    min_version: TLSVersion = "1.2"
    ciphers: str | None = None
    server_name: str | None = None
    insecure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuthConfig:
    """Where the token comes from that is the broker's password (OAuth 2 client credentials, RFC 6749, 4.4).

    Attributes:
        token_url: The authorization server's token endpoint.
        client_id: Who we are there.
        client_secret: What proves it.
        scope: What the token is to be for; None to leave that to the server.
    """

    token_url: str
    client_id: str
    client_secret: SecretStr
    scope: str | None = None


def _random_client_id() -> str:
    return f"coreflux-mcp-{os.urandom(4).hex()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """Which broker, and how to talk to it.

    Attributes:
        host: Host name or IP address, IPv6 without brackets.
        port: 1 to 65 535; 0 with `embedded` lets the system choose a free one.
        user: Login name.
        password: Login password.
        client_id: A new random one for each process unless it was set.
        client_id_fixed: It was set, so that a session can be resumed.
        protocol: MQTT version; "auto" tries 5 and falls back to 3.1.1.
        transport: MQTT over TCP, or over WebSockets.
        ws_path: The path of the WebSocket.
        keepalive_s: Seconds without traffic before a ping, 5 to 65 535.
        session_expiry_s: Seconds the broker keeps our session after a disconnect, 0 to 4 294 967 295 (for ever).
        connect_timeout_s: Seconds until an attempt to connect is given up, 1 to 300.
        embedded: Start the built-in development broker and use that.
        tls: None for a plain connection.
        oauth: Where the password comes from; None when `password` is it.
    """

    host: str = "localhost"
    port: int = 1883
    user: str | None = None
    password: SecretStr | None = None
    client_id: str = field(default_factory=_random_client_id)
    client_id_fixed: bool = False
    protocol: ProtocolVersion = "auto"
    transport: checked.Transport = "tcp"
    ws_path: str = "/mqtt"
    keepalive_s: int = 30
    session_expiry_s: int = 0
    connect_timeout_s: int = 10
    embedded: bool = False
    tls: TLSConfig | None = None
    oauth: OAuthConfig | None = None

    def with_secrets_of(self, other: Self) -> Self:
        """Return this configuration with the login and the key's password that `other` has."""
        tls = self.tls and replace(self.tls, client_key_password=other.tls.client_key_password if other.tls else None)
        oauth = self.oauth and other.oauth and replace(self.oauth, client_secret=other.oauth.client_secret)
        return replace(self, user=other.user, password=other.password, tls=tls, oauth=oauth)

    @property
    def url(self) -> str:
        """The broker's address for people to read, without credentials."""
        scheme, _ = _SCHEME_AND_PORT[self.transport, self.tls is not None]
        host = f"[{self.host}]" if ":" in self.host else self.host
        path = self.ws_path if self.transport == "websockets" else ""
        return f"{scheme}://{host}:{self.port}{path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much is kept, answered and sent at most.

    Attributes:
        buffer_max_messages: Received messages kept, 1 to 10 000 000.
        buffer_max_bytes: Bytes of received messages kept, 1 KiB to 1 TiB.
        result_max_bytes: Bytes of one answer unless the call says otherwise, 1 KiB to 1 MiB.
        max_payload_bytes: Bytes of one published payload, 1 to 255 MiB.
    """

    buffer_max_messages: int = 100_000
    buffer_max_bytes: int = 64 * MIB
    result_max_bytes: int = 16 * KIB
    max_payload_bytes: int = MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Logs:
    """What is logged, how, and where besides stderr; NONE is silence."""

    level: LogLevel = "INFO"
    format: LogFormat = "text"
    file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CopilotConfig:
    """The Coreflux Copilot, and the LoT verifier beside it.

    Attributes:
        url: Where questions go; None when there is no Copilot.
        key: What it knows us by.
        timeout_s: How long one question may take, everything included.
        verifier_url: Where LoT is checked besides here; None when it is not.
    """

    url: str | None = None
    key: SecretStr | None = None
    timeout_s: int = 60
    verifier_url: str | None = None

    @property
    def missing(self) -> list[str]:
        """The settings without which there is no Copilot."""
        return [name for name, value in (("DO_AGENT_API_KEY", self.key), ("COPILOT_URL", self.url)) if not value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the assistant may do with topics, what a person has to confirm, and how much may happen.

    Attributes:
        publish_allow: Filters of the topics that may be published to; none means all.
        publish_deny: Filters of those that may not, whatever `publish_allow` says.
        subscribe_allow: Filters of the topics that may be read; none means all.
        subscribe_deny: Filters of those that may not.
        confirm: What asks: what destroys; also a retained message over another one; or everything that writes.
        fallback: What happens where the client cannot ask a person.
        calls_per_s: Tool calls a second, in the long run.
        burst: Calls at once before that counts.
        concurrent: Calls under way at one time.
    """

    publish_allow: tuple[TopicFilter, ...] = ()
    publish_deny: tuple[TopicFilter, ...] = ()
    subscribe_allow: tuple[TopicFilter, ...] = ()
    subscribe_deny: tuple[TopicFilter, ...] = ()
    confirm: Confirm = "destructive"
    fallback: Fallback = "refuse"
    calls_per_s: int = 2_000
    burst: int = 10_000
    concurrent: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """The record of what was done.

    Attributes:
        file: Where it is kept; None when it is not.
        key: What the chain of its lines is keyed with; None for a chain that anybody can compute.
        required: Nothing that writes is done while nothing can be recorded.
    """

    file: Path | None = None
    key: SecretStr | None = None
    required: bool = False


class HTTPClient(NamedTuple):
    """Who may come in over HTTP."""

    name: str
    access: AccessMode
    digest: bytes
    """SHA-256 of the token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPConfig:
    """MCP over HTTP: where, for whom, how much.

    Attributes:
        host: Host name or IP address to listen on.
        port: 1 to 65 535; 0 lets the system choose a free one.
        unix_socket: Listen there instead.
        tls_cert: PEM file of our certificate, with what leads to its authority; None for plain HTTP.
        tls_key: PEM file of its private key.
        clients: Who may come in; none when nobody has to show a token.
        several: They are from a file, and others may come to be.
        allowed_origins: Web origins whose pages may use the server.
        allowed_hosts: Names under which the server may be addressed, besides those of this machine.
        trusted_proxies: Who is believed what X-Forwarded-For says; None among them is who uses the Unix socket.
        rate_limit_per_minute: Requests without a valid token from one address.
        client_rate_limit_per_minute: Requests of one client.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    unix_socket: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    clients: tuple[HTTPClient, ...] = ()
    several: bool = False
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[checked.Network | None, ...] = ()
    rate_limit_per_minute: int = 30
    client_rate_limit_per_minute: int = 600

    @property
    def url(self) -> str:
        """Where this machine finds the server, without a path."""
        host = _EVERYWHERE.get(self.host, self.host)
        return f"http{'s' if self.tls_cert else ''}://{f'[{host}]' if ':' in host else host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings, checked against each other.

    Attributes:
        broker: The broker and, within, TLS.
        bounds: Limits on memory and sizes.
        logs: Logging.
        copilot: The Coreflux Copilot.
        rules: What the assistant may do, besides the access mode.
        audit: The record of what it did.
        http: MCP over HTTP, which is served instead of stdio where `transport` says so.
        transport: How MCP is served.
        metrics: Host and port on which figures are served; None when they are not.
        access_mode: What the assistant may do; over HTTP each client has its own.
        action_tools: Whether each action of a Coreflux broker that runs on request is a tool of its own.
        warnings: Sentences about settings that work but should not stay so, for the log and `server_status`.
        state_dir: Where the server keeps what outlives it: the platform's folder for the state of programs.
        files: What was read besides the environment, by the name of the setting it is for; a file may be missing.
        settings: Each setting by itself, as it was given or by default.
    """

    broker: BrokerConfig = field(default_factory=BrokerConfig)
    bounds: Bounds = field(default_factory=Bounds)
    logs: Logs = field(default_factory=Logs)
    copilot: CopilotConfig = field(default_factory=CopilotConfig)
    rules: Rules = field(default_factory=Rules)
    audit: AuditConfig = field(default_factory=AuditConfig)
    http: HTTPConfig = field(default_factory=HTTPConfig)
    transport: ServerTransport = "stdio"
    metrics: tuple[str, int] | None = None
    access_mode: AccessMode = "write"
    action_tools: bool = False
    warnings: tuple[str, ...] = ()
    state_dir: Path = field(default_factory=lambda: user_state_path("coreflux-mcp", appauthor=False))
    files: Mapping[str, Path] = field(default_factory=dict, compare=False)
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def tls(self) -> TLSConfig | None:
        """How TLS is done; None when it is off."""
        return self.broker.tls

    @property
    def backups_dir(self) -> Path:
        """Where is kept what was deployed before a change."""
        return self.state_dir / "backups"

    @property
    def approvals_dir(self) -> Path:
        """Where acts wait for a person's yes."""
        return self.state_dir / "approvals"

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        env_file: Path | None = ENV_FILE,
        problems: list[str] | None = None,
    ) -> Self:
        """Read and check every setting.

        A setting is taken from the first place that has it: `environ`, then `env_file`, then (secrets and MQTT_USER)
        a file of its name in the directory that `environ` calls CREDENTIALS_DIRECTORY. In the first two a secret may
        be given as NAME or as NAME_FILE, not as both in one place. An empty variable is not set. Around a value white
        space is ignored; a secret is taken as it is, from a file without its last line break.

        The sanitizer gets to know every secret that is read, also when the settings cannot be used.

        Args:
            environ: The environment; None for the process's own.
            env_file: A file of NAME=value lines, taken literally (`$` stands for itself); a relative path in it starts
                at its folder. Only the usual one may be missing.
            problems: Gets the problems, and nothing is raised: what cannot be used is then as if it were not set. That
                is for finding out what else is wrong, and not for serving.

        Raises:
            ConfigError: Something cannot be used. The text has a line for each problem and no secret value.
        """
        environ = os.environ if environ is None else environ
        report = _Report()

        dotenv = _read_dotenv(env_file, report) if env_file else {}
        values = _gather(environ, dotenv, report)
        settings = _check(values, report)
        tls = _tls(settings, report)
        broker = _broker(settings, tls, report)
        copilot = _copilot(settings, report)
        http = _http(settings, report)
        if settings.AUDIT_REQUIRED and "AUDIT_FILE" not in report.given:
            report.problems.append("AUDIT_REQUIRED=true without AUDIT_FILE: name the file.")
        report.warnings.extend(_misspellings(environ.keys() | dotenv.keys()))
        if others := sorted(name for name in dotenv.keys() - NAMES if not any(_misspellings([name]))):
            report.warnings.append(f"{env_file}: no settings of this server, and not read: {_listed(others)}.")
        (report.problems if settings.STRICT_PERMISSIONS else report.warnings).extend(report.exposed)

        if problems is not None:
            problems.extend(report.problems)
        elif report.problems:
            raise ConfigError("\n".join(report.problems))
        return cls(
            broker=broker,
            bounds=Bounds(
                buffer_max_messages=settings.BUFFER_MAX_MESSAGES,
                buffer_max_bytes=settings.BUFFER_MAX_BYTES,
                result_max_bytes=settings.RESULT_MAX_BYTES,
                max_payload_bytes=settings.MAX_PAYLOAD_BYTES,
            ),
            logs=Logs(level=settings.LOG_LEVEL, format=settings.LOG_FORMAT, file=settings.LOG_FILE),
            copilot=copilot,
            rules=Rules(
                publish_allow=settings.PUBLISH_ALLOW,
                publish_deny=settings.PUBLISH_DENY,
                subscribe_allow=settings.SUBSCRIBE_ALLOW,
                subscribe_deny=settings.SUBSCRIBE_DENY,
                confirm=settings.CONFIRM,
                fallback=settings.CONFIRM_FALLBACK,
                calls_per_s=settings.RATE_LIMIT_PER_S,
                burst=settings.RATE_LIMIT_BURST,
                concurrent=settings.MAX_CONCURRENT_CALLS,
            ),
            audit=AuditConfig(file=settings.AUDIT_FILE, key=settings.AUDIT_KEY, required=settings.AUDIT_REQUIRED),
            http=http,
            transport=settings.MCP_TRANSPORT,
            metrics=settings.METRICS_PORT,
            access_mode=settings.ACCESS_MODE,
            action_tools=settings.ACTION_TOOLS,
            warnings=tuple(report.warnings),
            files=report.files | {name: path for name in FOLLOWED if (path := getattr(settings, name))},
            settings=dict(settings),
        )


def tokens_file(environ: Mapping[str, str] | None = None, *, env_file: Path | None = ENV_FILE) -> Path | None:
    """Return what MCP_TOKENS_FILE says, also while the file is not there yet.

    Raises:
        ConfigError: `env_file` cannot be used.
    """
    environ, report = os.environ if environ is None else environ, _Report()
    text = _find("MCP_TOKENS_FILE", environ, _read_dotenv(env_file, report) if env_file else {}, report)
    if report.problems:
        raise ConfigError("\n".join(report.problems))
    return checked.path(text) if text else None


def settings_to_pass_on(environ: Mapping[str, str] | None = None) -> tuple[dict[str, str], list[str]]:
    """Return our settings in the environment that may be written down, and the names of those that may not."""
    environ = os.environ if environ is None else environ
    ours = {name: _wherever_it_starts(name, environ[name]) for name in sorted(NAMES) if environ.get(name)}
    withheld = [name for name, value in ours.items() if name in SECRETS or (name == "MQTT_BROKER" and "@" in value)]
    return {name: value for name, value in ours.items() if name not in withheld}, withheld


def _wherever_it_starts(name: str, value: str) -> str:
    """Return the value as it is to be written down: a file is found in whatever directory the server starts."""
    if name not in _PATHS:
        return value
    try:
        return str(checked.path(value.strip()).absolute())
    except ValueError:
        return value


def programs_settings(environ: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """Return the folder in which a platform's programs keep what their user has set."""
    environ = os.environ if environ is None else environ
    if platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    named, usual = ("APPDATA", "AppData/Roaming") if platform == "win32" else ("XDG_CONFIG_HOME", ".config")
    return Path(environ.get(named) or Path.home() / usual)


def claude_code_settings(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder in which Claude Code keeps what its user has set."""
    environ = os.environ if environ is None else environ
    return Path(environ.get("CLAUDE_CONFIG_DIR") or Path.home())


def environment(*, without: Iterable[str] = (), **settings: str) -> dict[str, str]:
    """Return the process's environment, for a child that is to have `settings` and not to have some others."""
    return {name: value for name, value in os.environ.items() if name not in set(without)} | settings


@dataclass(frozen=True, slots=True)
class _Report:
    """What was found while reading, told at the end and all at once."""

    given: set[str] = field(default_factory=set)  # settings that have a value, good or bad
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    exposed: list[str] = field(default_factory=list)  # problems or warnings: STRICT_PERMISSIONS decides
    files: dict[str, Path] = field(default_factory=dict)  # where secrets were looked for

    def refuse(self, name: str, text: str) -> None:
        """Note a problem with the value of a setting."""
        self.given.add(name)
        self.problems.append(text)

    def check_private(self, what: str, mode: int, others: int = _GROUP_OR_OTHERS_READ) -> None:
        """Note a file that more people can read than its owner. Windows has no such mode."""
        if os.name == "posix" and mode & others:
            self.exposed.append(f"{what} can be read by others (mode {mode & 0o777:03o}): run chmod 600 on it.")


def _clients(text: str) -> tuple[Path, tuple[HTTPClient, ...]]:
    """Read the file of tokens: on each line a name, an access mode and the SHA-256 of a token.

    Raises:
        ValueError: It cannot be used. The text has the number of the line and nothing of its content.
    """
    path = checked.readable_file(text)
    clients: list[HTTPClient] = []
    for number, line in enumerate(checked.read_file(path)[0].decode(errors="replace").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _CLIENT.fullmatch(line.strip())
        if not match:
            raise ValueError(f"line {number} is not a name, an access mode and the SHA-256 of a token")
        (access,) = (mode for mode in ACCESS_MODES if mode == match[2])
        client = HTTPClient(match[1], access, bytes.fromhex(match[3]))
        if any(client.name == each.name or client.digest == each.digest for each in clients):
            raise ValueError(f"line {number} has the name or the token of an earlier one")
        clients.append(client)
    if not clients:
        raise ValueError("there is no line with a client in it, so nobody could come in")
    return path, tuple(clients)


def _number(default: int | None, low: int, high: int) -> Any:
    return Field(default, ge=low, le=high, description=f"a whole number from {low} to {high}")


def _size_between(default: int, low: str, high: str) -> Any:
    return Field(
        default,
        ge=checked.size(low),
        le=checked.size(high),
        description=f"a size like 4096, 16 KiB or 64MiB, from {low} to {high}",
    )


_Lower = BeforeValidator(str.lower)
_Upper = BeforeValidator(str.upper)
_Size = Annotated[int, BeforeValidator(checked.size)]
_Filters = Annotated[tuple[TopicFilter, ...], PlainValidator(checked.filters)]
_FILTERS = "MQTT topic filters with commas between them"
_ReadableFile = Annotated[Path, BeforeValidator(checked.readable_file)]
_MQTTString = Annotated[str, AfterValidator(checked.mqtt_string)]
_MQTTSecret = Annotated[SecretStr, AfterValidator(checked.secret_text)]
_FLAG = "true or false, yes or no, on or off, 1 or 0"
_STRING = f"a text of at most {checked.LONGEST_FIELD} bytes in UTF-8"
_FILE = "the path of a readable PEM file"


class _Settings(BaseSettings):
    """Every variable we read: its type, its default (None where others decide), and what it accepts."""

    model_config = SettingsConfigDict(validate_default=False)

    MQTT_BROKER: Annotated[checked.Address, PlainValidator(checked.address)] = Field(
        checked.Address(),
        description="a host name in ASCII or an IP address, with :PORT or without, "
        "a URL (mqtt:// mqtts:// ws:// wss://), or embedded",
    )
    MQTT_PORT: int | None = _number(None, 1, checked.HIGHEST_PORT)
    MQTT_USER: _MQTTString | None = Field(None, description=_STRING)
    MQTT_PASSWORD: _MQTTSecret | None = Field(None, description=_STRING)
    MQTT_CLIENT_ID: _MQTTString | None = Field(None, description=_STRING)
    MQTT_PROTOCOL: Annotated[ProtocolVersion, _Lower] = Field("auto", description="auto, 5 or 3.1.1")
    MQTT_TRANSPORT: Annotated[checked.Transport, _Lower] | None = Field(None, description="tcp or websockets")
    MQTT_WS_PATH: Annotated[str, AfterValidator(checked.ws_path)] | None = Field(None, description="a path like /mqtt")
    MQTT_KEEPALIVE_S: int = _number(30, 5, 65_535)
    MQTT_SESSION_EXPIRY_S: int = _number(0, 0, 4_294_967_295)
    MQTT_CONNECT_TIMEOUT_S: int = _number(10, 1, 300)

    MQTT_USE_TLS: bool | None = Field(None, description=_FLAG)
    MQTT_CA_CERT: _ReadableFile | None = Field(None, description=_FILE)
    MQTT_CLIENT_CERT: _ReadableFile | None = Field(None, description=_FILE)
    MQTT_CLIENT_KEY: _ReadableFile | None = Field(None, description=_FILE)
    MQTT_CLIENT_KEY_PASSWORD: _MQTTSecret | None = Field(None, description=_STRING)
    MQTT_TLS_MIN_VERSION: TLSVersion = Field("1.2", description="1.2 or 1.3")
    MQTT_TLS_CIPHERS: Annotated[str, AfterValidator(checked.ciphers)] | None = Field(
        None, description="an OpenSSL cipher list"
    )
    MQTT_TLS_SERVER_NAME: Annotated[str, AfterValidator(checked.host)] | None = Field(
        None, description="a host name in ASCII"
    )
    MQTT_TLS_INSECURE: bool = Field(default=False, description=_FLAG)

    DO_AGENT_API_KEY: Annotated[SecretStr, AfterValidator(checked.header_value)] | None = Field(
        None, description="the access key of the agent's endpoint, in ASCII and without blanks"
    )
    COPILOT_URL: Annotated[str, AfterValidator(checked.copilot_url)] | None = Field(
        None, description="an https URL without a login, like https://NAME.agents.do-ai.run"
    )
    COPILOT_TIMEOUT_S: int = _number(60, 1, 600)
    LOT_VERIFIER_API_URL: Annotated[str, AfterValidator(checked.web_url)] | None = Field(
        None, description="an http or https URL without a login"
    )

    ACCESS_MODE: Annotated[AccessMode, _Lower] = Field("write", description="read, write or admin")
    ACTION_TOOLS: bool = Field(default=False, description=_FLAG)
    PUBLISH_ALLOW: _Filters = Field((), description=_FILTERS)
    PUBLISH_DENY: _Filters = Field((), description=_FILTERS)
    SUBSCRIBE_ALLOW: _Filters = Field((), description=_FILTERS)
    SUBSCRIBE_DENY: _Filters = Field((), description=_FILTERS)
    CONFIRM: Annotated[Confirm, _Lower] = Field("destructive", description="destructive, overwrite or every")
    CONFIRM_FALLBACK: Annotated[Fallback, _Lower] = Field("refuse", description="refuse, approve-file or allow")
    RATE_LIMIT_PER_S: int = _number(2_000, 1, 100_000)
    RATE_LIMIT_BURST: int = _number(10_000, 1, 1_000_000)
    MAX_CONCURRENT_CALLS: int = _number(100, 2, 10_000)
    # MQTT's largest packet has 268 435 455 bytes: 1 MiB is left for the topic and the properties.
    MAX_PAYLOAD_BYTES: _Size = _size_between(MIB, "1 B", "255 MiB")

    BUFFER_MAX_MESSAGES: int = _number(100_000, 1, 10_000_000)
    BUFFER_MAX_BYTES: _Size = _size_between(64 * MIB, "1 KiB", "1024 GiB")
    RESULT_MAX_BYTES: _Size = _size_between(16 * KIB, "1 KiB", "1 MiB")

    AUDIT_FILE: Annotated[Path, BeforeValidator(checked.path)] | None = Field(None, description="the path of a file")
    AUDIT_KEY: Annotated[SecretStr, AfterValidator(checked.audit_key)] | None = Field(
        None, description="a text of at least 16 characters"
    )
    AUDIT_REQUIRED: bool = Field(default=False, description=_FLAG)

    LOG_LEVEL: Annotated[LogLevel, _Upper] = Field("INFO", description="DEBUG, INFO, WARNING, ERROR, CRITICAL or NONE")
    LOG_FORMAT: Annotated[LogFormat, _Lower] = Field("text", description="text or json")
    LOG_FILE: Annotated[Path, BeforeValidator(checked.path)] | None = Field(None, description="the path of a file")
    STRICT_PERMISSIONS: bool = Field(default=False, description=_FLAG)

    MCP_TRANSPORT: Annotated[ServerTransport, _Lower] = Field("stdio", description="stdio or http")
    MCP_HOST: Annotated[str, AfterValidator(checked.bind_host)] = Field(
        "127.0.0.1", description="an IP address or a host name of this machine"
    )
    MCP_PORT: int = _number(8765, 0, checked.HIGHEST_PORT)
    MCP_UNIX_SOCKET: Annotated[Path, BeforeValidator(checked.path)] | None = Field(
        None, description="the path of a socket"
    )
    MCP_TLS_CERT: _ReadableFile | None = Field(None, description=_FILE)
    MCP_TLS_KEY: _ReadableFile | None = Field(None, description=_FILE)
    MCP_TOKEN: Annotated[SecretStr, AfterValidator(checked.token)] | None = Field(
        None, description=f"at least {checked.SHORTEST_TOKEN} characters, in ASCII and without blanks"
    )
    MCP_TOKENS_FILE: Annotated[tuple[Path, tuple[HTTPClient, ...]], PlainValidator(_clients)] | None = Field(
        None, description="a file with a line for each client: NAME read|write|admin SHA-256-OF-ITS-TOKEN"
    )
    MCP_ALLOWED_ORIGINS: Annotated[tuple[str, ...], PlainValidator(checked.origins)] = Field(
        (), description="origins like https://app.example.com with commas between them"
    )
    MCP_ALLOWED_HOSTS: Annotated[tuple[str, ...], PlainValidator(checked.hosts)] = Field(
        (), description="host names, with :PORT or without, with commas between them"
    )
    MCP_TRUSTED_PROXIES: Annotated[tuple[checked.Network | None, ...], PlainValidator(checked.proxies)] = Field(
        (), description="IP addresses or networks like 10.0.0.0/8 with commas between them, or unix"
    )
    MCP_RATE_LIMIT_PER_MINUTE: int = _number(30, 1, 1_000_000)
    MCP_CLIENT_RATE_LIMIT_PER_MINUTE: int = _number(600, 1, 10_000_000)
    METRICS_PORT: Annotated[tuple[str, int], PlainValidator(checked.host_and_port)] | None = Field(
        None, description="a port, or HOST:PORT to serve not only this machine"
    )

    MQTT_OAUTH_TOKEN_URL: Annotated[str, AfterValidator(checked.secure_url)] | None = Field(
        None, description="an https URL without a login"
    )
    MQTT_OAUTH_CLIENT_ID: Annotated[str, AfterValidator(checked.mqtt_string)] | None = Field(None, description=_STRING)
    MQTT_OAUTH_CLIENT_SECRET: _MQTTSecret | None = Field(None, description=_STRING)
    MQTT_OAUTH_SCOPE: Annotated[str, AfterValidator(checked.mqtt_string)] | None = Field(
        None, description="scopes with blanks between them"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what `_gather` found, and nothing from the process's environment behind its back."""
        return (init_settings,)


SETTINGS = tuple(_Settings.model_fields)
"""The names of all variables that are read, NAME_FILE aside."""

_CERTIFICATES = ("MQTT_CA_CERT", "MQTT_CLIENT_CERT", "MQTT_CLIENT_KEY")
FOLLOWED = (*_CERTIFICATES, "MCP_TLS_CERT", "MCP_TLS_KEY")
"""Files of which the content counts, whatever it is by then."""

_ONLY_WITH_TLS = (
    "MQTT_CLIENT_KEY_PASSWORD",
    "MQTT_TLS_MIN_VERSION",
    "MQTT_TLS_CIPHERS",
    "MQTT_TLS_SERVER_NAME",
    "MQTT_TLS_INSECURE",
)
NAMES = {*SETTINGS, *(f"{name}_FILE" for name in FROM_FILE)}
_UNSEEN = "it has a control character or one that cannot be seen"
_IN_A_PATH = r" (\n and \t are such within double quotes: use single quotes)"
_PATHS = {*FOLLOWED, "AUDIT_FILE", "LOG_FILE", "MCP_TOKENS_FILE", "MCP_UNIX_SOCKET", *NAMES.difference(SETTINGS)}


def _read_dotenv(path: Path, report: _Report) -> dict[str, str]:
    report.files[str(path)] = path
    try:
        content, mode = checked.read_file(path)
        lines = list(parse_stream(io.StringIO(content.decode("utf-8-sig"))))  # Notepad writes the mark
    except (OSError, UnicodeDecodeError) as exc:
        if path != ENV_FILE or not isinstance(exc, FileNotFoundError):  # another one was named, so it is meant
            report.problems.append(f"{path}: {checked.cause(exc)}; expected a readable file of NAME=value lines.")
        return {}
    variables: dict[str, str] = {}
    for line in lines:
        text = line.original.string
        number = line.original.line + text[: len(text) - len(text.lstrip())].count("\n")
        if line.key is not None and line.value is not None:
            if line.key in variables and line.key in NAMES:
                report.warnings.append(
                    f"{path}, line {number}: {line.key} was there before, and only its last line counts."
                )
            variables[line.key] = line.value
        elif line.error or line.key is not None:
            report.warnings.append(f"{path}, line {number}: this is not NAME=value and was left out.")
    if any(variables.get(name) for name in SECRETS) or "@" in variables.get("MQTT_BROKER", ""):
        report.check_private(str(path), mode)
    return with_paths_from(path, variables)


def with_paths_from(env_file: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """Return what a file says, with the relative paths in it as they are meant: they start at its folder."""
    folder = env_file.absolute().parent
    return {
        name: str(folder / text.strip()) if name in _PATHS and text.strip() and text.strip()[0] != "~" else text
        for name, text in variables.items()
    }


def _gather(environ: Mapping[str, str], dotenv: Mapping[str, str], report: _Report) -> dict[str, str]:
    """Find the text of each setting that has one."""
    found = {name: _find(name, environ, dotenv, report) for name in SETTINGS}
    values = {name: text for name, text in found.items() if text is not None}
    report.warnings.extend(
        f"{name} is a placeholder, ${{…}}, that the client has not filled in: give the value, or {name}_FILE."
        for name, text in values.items()
        if name in FROM_FILE and _PLACEHOLDER.fullmatch(text)
    )
    for name in values.keys() & set(SECRETS):
        if values[name] == PUBLISHED_PASSWORD:
            # Hiding it would hide the product's name in every answer, and everybody knows it.
            report.warnings.append(f"{name} is the password that Coreflux brokers come with: change it in the broker.")
        else:
            add_known(values[name])
    report.given.update(values)
    return values


def _find(name: str, environ: Mapping[str, str], dotenv: Mapping[str, str], report: _Report) -> str | None:
    for place in (environ, dotenv):
        text = _trimmed(name, place.get(name, ""))
        file = place.get(f"{name}_FILE", "").strip() if name in FROM_FILE else ""
        if text and file:
            report.refuse(name, f"{name} and {name}_FILE are both set: keep one of them.")
            return None
        if file:
            return _from_file(name, f"{name}_FILE={_shown(file)}", file, report)
        if text:
            return text
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if directory and name in FROM_FILE:
        return _from_file(name, f"{name} in $CREDENTIALS_DIRECTORY", f"{directory}/{name}", report, credential=True)
    return None


def _from_file(name: str, where: str, file: str, report: _Report, *, credential: bool = False) -> str | None:
    if not file.isprintable():
        report.refuse(name, f"{where}: {_UNSEEN}{_IN_A_PATH}; expected a file that holds {name}.")
        return None
    try:
        path = report.files[name] = checked.path(file)
        content, mode = checked.read_file(path)
        text = content.decode()
    except (OSError, ValueError) as exc:
        if not (credential and isinstance(exc, FileNotFoundError)):
            report.refuse(name, f"{where}: {checked.cause(exc)}; expected a file that holds {name}.")
        return None
    if name in SECRETS and _DOCKER_SECRETS not in path.parents:
        # systemd lets one user read a credential by an ACL, which shows as a right of the group.
        report.check_private(where, mode, _OTHERS_READ if credential else _GROUP_OR_OTHERS_READ)
    text = _trimmed(name, text[:-2] if text.endswith("\r\n") else text.removesuffix("\n"))
    if not text:
        report.refuse(name, f"{where}: the file is empty; expected a file that holds {name}.")
        return None
    return text


def _trimmed(name: str, text: str) -> str:
    return text if name in SECRETS else text.strip()


def _check(values: Mapping[str, str], report: _Report) -> _Settings:
    """Check each value by itself; a bad one is told and left out."""
    good = {name: text for name, text in values.items() if name in SECRETS or text.isprintable()}
    reasons = {name: f"{_UNSEEN}{_IN_A_PATH if name in _PATHS else ''}; " for name in values.keys() - good.keys()}
    try:
        settings = _Settings.model_validate(good)
    except ValidationError as exc:
        for error in exc.errors(include_url=False):
            reasons[str(error["loc"][0])] = f"{error['ctx']['error']}; " if error["type"] == "value_error" else ""
        settings = _Settings.model_validate({name: text for name, text in good.items() if name not in reasons})
    for name in sorted(reasons):
        accepted = _Settings.model_fields[name].description
        report.problems.append(f"{_told(name, values[name])}: {reasons[name]}expected {accepted}.")
    return settings


def _told(name: str, text: str) -> str:
    """Name a setting and, unless it is or may hold a secret, its value."""
    hidden = name in SECRETS or (name in _ADDRESSES and not _BROKER_WITHOUT_A_PASSWORD.fullmatch(text))
    return f"{name} (not shown)" if hidden else f"{name}={_shown(text)}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_AT_MOST else f"{text[:_SHOWN_AT_MOST]}…")


def _tls(settings: _Settings, report: _Report) -> TLSConfig | None:
    """Decide whether there is TLS: when MQTT_USE_TLS says so, or the URL, or a certificate that would be of no use."""
    asking: list[str] = [name for name in _CERTIFICATES if name in report.given]
    if settings.MQTT_BROKER.tls:
        asking.append("MQTT_BROKER")
    if settings.MQTT_USE_TLS is False:
        report.problems.extend(
            [f"{name} asks for TLS and MQTT_USE_TLS=false forbids it: change one." for name in asking]
        )
    elif settings.MQTT_USE_TLS:
        asking.append("MQTT_USE_TLS")
    if settings.MQTT_BROKER.embedded:
        report.problems.extend(
            [f"{name} asks for TLS and MQTT_BROKER=embedded has none: change one." for name in asking]
        )
    _check_client_certificate(settings, report)

    if not asking:
        for name in _ONLY_WITH_TLS:
            if getattr(settings, name) != _Settings.model_fields[name].default:
                report.warnings.append(f"{name} has no effect without TLS: set MQTT_USE_TLS=true.")
        return None
    if settings.MQTT_TLS_INSECURE:
        report.warnings.append(
            "MQTT_TLS_INSECURE=true: whoever is on the way to the broker can read and change everything."
        )
    return TLSConfig(
        ca_cert=settings.MQTT_CA_CERT,
        client_cert=settings.MQTT_CLIENT_CERT,
        client_key=settings.MQTT_CLIENT_KEY,
        client_key_password=settings.MQTT_CLIENT_KEY_PASSWORD,
        min_version=settings.MQTT_TLS_MIN_VERSION,
        ciphers=settings.MQTT_TLS_CIPHERS,
        server_name=settings.MQTT_TLS_SERVER_NAME,
        insecure=settings.MQTT_TLS_INSECURE,
    )


def _check_client_certificate(settings: _Settings, report: _Report) -> None:
    if "MQTT_CLIENT_KEY" in report.given:
        name, file = "MQTT_CLIENT_KEY", settings.MQTT_CLIENT_KEY
        if "MQTT_CLIENT_CERT" not in report.given:
            report.problems.append("MQTT_CLIENT_KEY is set without MQTT_CLIENT_CERT: set both.")
    else:
        name, file = "MQTT_CLIENT_CERT", settings.MQTT_CLIENT_CERT
    if not file:
        return
    content, mode = checked.read_file(file)
    where = f"{name}={_shown(str(file))}"
    if b"PRIVATE KEY" not in content:
        report.problems.append(f"{where}: there is no private key in it; expected one, or MQTT_CLIENT_KEY to name it.")
    elif b"ENCRYPTED" in content and "MQTT_CLIENT_KEY_PASSWORD" not in report.given:
        # OpenSSL would ask the terminal.
        report.problems.append(f"{where}: the private key is encrypted; expected MQTT_CLIENT_KEY_PASSWORD to be set.")
    report.check_private(where, mode)


def _broker(settings: _Settings, tls: TLSConfig | None, report: _Report) -> BrokerConfig:
    address = settings.MQTT_BROKER
    for name, said, said_by_url in (
        ("MQTT_PORT", settings.MQTT_PORT, address.port),
        ("MQTT_TRANSPORT", settings.MQTT_TRANSPORT, address.transport),
        ("MQTT_WS_PATH", settings.MQTT_WS_PATH, address.path),
        ("MQTT_USER", settings.MQTT_USER, address.user),
        ("MQTT_PASSWORD", settings.MQTT_PASSWORD, address.password),
    ):
        if said is not None and said_by_url is not None and said != said_by_url:
            report.problems.append(f"MQTT_BROKER says {said_by_url} and {name} says {said}: keep one of them.")
    transport = settings.MQTT_TRANSPORT or address.transport or "tcp"
    _, usual_port = _SCHEME_AND_PORT[transport, tls is not None]
    broker = BrokerConfig(
        host=address.host,
        port=settings.MQTT_PORT or address.port or (0 if address.embedded else usual_port),
        user=settings.MQTT_USER or address.user,
        password=settings.MQTT_PASSWORD or address.password,
        client_id=settings.MQTT_CLIENT_ID or _random_client_id(),
        client_id_fixed=settings.MQTT_CLIENT_ID is not None,
        protocol=settings.MQTT_PROTOCOL,
        transport=transport,
        ws_path=settings.MQTT_WS_PATH or address.path or "/mqtt",
        keepalive_s=settings.MQTT_KEEPALIVE_S,
        session_expiry_s=settings.MQTT_SESSION_EXPIRY_S,
        connect_timeout_s=settings.MQTT_CONNECT_TIMEOUT_S,
        embedded=address.embedded,
        tls=tls,
        oauth=_oauth(settings, report),
    )
    _judge(broker, report)
    return broker


def _oauth(settings: _Settings, report: _Report) -> OAuthConfig | None:
    names = ("MQTT_OAUTH_TOKEN_URL", "MQTT_OAUTH_CLIENT_ID", "MQTT_OAUTH_CLIENT_SECRET")
    missing = [name for name in names if name not in report.given]
    if len(missing) == len(names):
        if "MQTT_OAUTH_SCOPE" in report.given:
            report.warnings.append("MQTT_OAUTH_SCOPE has no effect without MQTT_OAUTH_TOKEN_URL.")
        return None
    if missing:
        report.problems.append(f"A broker login by OAuth 2 also needs {' and '.join(missing)}.")
    if "MQTT_PASSWORD" in report.given or settings.MQTT_BROKER.password:
        report.problems.append("MQTT_PASSWORD and MQTT_OAUTH_TOKEN_URL are both set: keep one of them.")
    url, client_id, secret = (
        settings.MQTT_OAUTH_TOKEN_URL,
        settings.MQTT_OAUTH_CLIENT_ID,
        settings.MQTT_OAUTH_CLIENT_SECRET,
    )
    if not (url and client_id and secret):
        return None
    return OAuthConfig(token_url=url, client_id=client_id, client_secret=secret, scope=settings.MQTT_OAUTH_SCOPE)


def _http(settings: _Settings, report: _Report) -> HTTPConfig:
    clients: tuple[HTTPClient, ...] = ()
    if "MCP_TOKENS_FILE" in report.given and "MCP_TOKEN" in report.given:
        report.problems.append("MCP_TOKEN and MCP_TOKENS_FILE are both set: keep one of them.")
    if settings.MCP_TOKEN:
        digest = hashlib.sha256(settings.MCP_TOKEN.get_secret_value().encode()).digest()
        clients = (HTTPClient("MCP_TOKEN", settings.ACCESS_MODE, digest),)
    elif settings.MCP_TOKENS_FILE:
        path, clients = settings.MCP_TOKENS_FILE
        report.files["MCP_TOKENS_FILE"] = path
        if os.name == "posix" and path.stat().st_mode & _GROUP_OR_OTHERS_WRITE:
            report.exposed.append(f"MCP_TOKENS_FILE={_shown(str(path))} can be written by others: run chmod 600 on it.")
        if "ACCESS_MODE" in report.given:
            report.problems.extend(
                f"ACCESS_MODE={settings.ACCESS_MODE} and the access mode {each.access} of {each.name} in "
                "MCP_TOKENS_FILE contradict each other: change one."
                for each in clients
                if ACCESS_MODES.index(each.access) > ACCESS_MODES.index(settings.ACCESS_MODE)
            )
    http = HTTPConfig(
        host=settings.MCP_HOST,
        port=settings.MCP_PORT,
        unix_socket=settings.MCP_UNIX_SOCKET,
        tls_cert=settings.MCP_TLS_CERT,
        tls_key=settings.MCP_TLS_KEY,
        clients=clients,
        several="MCP_TOKENS_FILE" in report.given,
        allowed_origins=settings.MCP_ALLOWED_ORIGINS,
        allowed_hosts=settings.MCP_ALLOWED_HOSTS,
        trusted_proxies=settings.MCP_TRUSTED_PROXIES,
        rate_limit_per_minute=settings.MCP_RATE_LIMIT_PER_MINUTE,
        client_rate_limit_per_minute=settings.MCP_CLIENT_RATE_LIMIT_PER_MINUTE,
    )
    if settings.MCP_TRANSPORT == "stdio":
        report.warnings.extend(
            f"{name} has no effect without MCP_TRANSPORT=http."
            for name in SETTINGS
            if name.startswith("MCP_") and getattr(settings, name) != _Settings.model_fields[name].default
        )
        return http
    _judge_http(http, report)
    return http


def _judge_http(http: HTTPConfig, report: _Report) -> None:
    """Note what is impossible or unwise of MCP over HTTP."""
    given = report.given
    for name, other in (("MCP_TLS_CERT", "MCP_TLS_KEY"), ("MCP_TLS_KEY", "MCP_TLS_CERT")):
        if name in given and other not in given:
            report.problems.append(f"{name} is set without {other}: set both.")
    if http.tls_key:
        where = f"MCP_TLS_KEY={_shown(str(http.tls_key))}"
        content, mode = checked.read_file(http.tls_key)
        if b"PRIVATE KEY" not in content or b"ENCRYPTED" in content:
            report.problems.append(f"{where}: expected a private key that is not encrypted.")
        report.check_private(where, mode)
    if http.unix_socket:
        report.warnings.extend(
            f"{name} has no effect with MCP_UNIX_SOCKET." for name in ("MCP_HOST", "MCP_PORT") if name in given
        )
        return
    if checked.is_loopback(http.host):
        if not http.clients and not given & {"MCP_TOKEN", "MCP_TOKENS_FILE"}:
            report.warnings.append("Every program on this machine may use the server: set MCP_TOKEN.")
        return
    if not http.clients and not given & {"MCP_TOKEN", "MCP_TOKENS_FILE"}:
        report.problems.append(
            f"MCP_HOST={_shown(http.host)} lets others in than this machine: set MCP_TOKEN or MCP_TOKENS_FILE."
        )
    if not http.tls_cert:
        report.warnings.append(
            "Tokens travel unencrypted: set MCP_TLS_CERT and MCP_TLS_KEY, unless a proxy in front does TLS."
        )


def _copilot(settings: _Settings, report: _Report) -> CopilotConfig:
    copilot = CopilotConfig(
        url=settings.COPILOT_URL,
        key=settings.DO_AGENT_API_KEY,
        timeout_s=settings.COPILOT_TIMEOUT_S,
        verifier_url=settings.LOT_VERIFIER_API_URL,
    )
    if len(copilot.missing) == 1 and not {"COPILOT_URL", "DO_AGENT_API_KEY"} <= report.given:
        report.warnings.append(f"There is no Copilot without {copilot.missing[0]}: set it too.")
    verifier = urlsplit(copilot.verifier_url or "")
    if verifier.scheme == "http" and not checked.is_loopback(verifier.hostname or ""):
        report.warnings.append(f"LoT travels unencrypted to {verifier.hostname}: LOT_VERIFIER_API_URL has no https.")
    return copilot


def _judge(broker: BrokerConfig, report: _Report) -> None:
    """Note what is allowed by each setting and unwise or impossible together."""
    if broker.password and not (broker.user or "MQTT_USER" in report.given):
        if broker.protocol == "3.1.1":
            report.problems.append(
                "MQTT_PASSWORD without MQTT_USER is not possible with MQTT_PROTOCOL=3.1.1: set both."
            )
        elif broker.protocol == "auto":
            report.warnings.append(
                "MQTT_PASSWORD without MQTT_USER needs MQTT 5, which not every broker speaks: set both."
            )
    if (broker.user or broker.password or broker.oauth) and not broker.tls and not checked.is_loopback(broker.host):
        report.warnings.append(f"The broker login travels unencrypted to {broker.host}: set MQTT_USE_TLS=true.")
    if broker.port == _TLS_PORT and not broker.tls:
        report.warnings.append(f"Port {_TLS_PORT} usually expects TLS, which is off: set MQTT_USE_TLS=true.")
    if broker.session_expiry_s and not broker.client_id_fixed:
        report.warnings.append(
            "MQTT_SESSION_EXPIRY_S has no effect without MQTT_CLIENT_ID: a random client id cannot resume a session."
        )
    if "MQTT_WS_PATH" in report.given and broker.transport == "tcp":
        report.warnings.append("MQTT_WS_PATH has no effect on TCP: set MQTT_TRANSPORT=websockets.")


def _misspellings(names: Iterable[str]) -> Iterator[str]:
    """Tell of variables that nobody reads although they look like ours; their values may be secrets."""
    for name in sorted(names):
        if name in NAMES:
            continue
        setting = name.removesuffix("_FILE")
        if setting in SETTINGS:
            yield f"{name} is not read: only {', '.join(FROM_FILE)} can come from a file. Set {setting}."
        elif meant := _meant(name):
            yield f"{name} is not a setting of this server and is not read: did you mean {meant}?"


def _meant(name: str) -> str | None:
    """Return the setting that a name was probably meant to be."""
    name = name.upper()
    if name in _CALLED_ELSEWHERE:
        return _CALLED_ELSEWHERE[name]
    # To compare every variable with every setting would take 10 ms of the start.
    near = [each for each in NAMES if each[:2] == name[:2] or each[-2:] == name[-2:]]
    cutoff = min(_ALIKE, (len(name) - 1) / max(len(name), 1))  # in a short name one letter is more
    return next(iter(difflib.get_close_matches(name, near, n=1, cutoff=cutoff)), None)


def _listed(names: list[str]) -> str:
    """List names of a file, but not what may be no name at all."""
    told = [name for name in names if _NAME_OF_A_VARIABLE.fullmatch(name)][:_NAMED_AT_MOST]
    rest = [f"{len(names) - len(told)} more"] if len(told) < len(names) else []
    return " and ".join([", ".join(map(repr, told)), *rest] if told else rest)

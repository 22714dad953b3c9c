"""The settings: what is accepted and what is refused, with the neighbour on the other side of each boundary."""

import dataclasses
import hashlib
import inspect
import ipaddress
import operator
import os
import re
import secrets
from pathlib import Path

import pytest
from dotenv import dotenv_values
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st
from pydantic import SecretStr

import config
import sanitizer
from config import (
    FROM_FILE,
    KIB,
    MIB,
    SECRETS,
    SETTINGS,
    Bounds,
    BrokerConfig,
    Config,
    HTTPClient,
    HTTPConfig,
    Logs,
    OAuthConfig,
    TLSConfig,
)
from errors import ConfigError
from topics import TopicFilter

SECRET = f"hush-{secrets.token_hex(16)}"
"""Good for any of them: the longest that one has to be is 32 characters."""
LOGIN = {"MQTT_OAUTH_TOKEN_URL": "https://login.example/token", "MQTT_OAUTH_CLIENT_ID": "plant"}
COMPANIONS = {"MQTT_OAUTH_CLIENT_SECRET": LOGIN}
"""What a secret is not set without."""
KEY_PEM = "-----BEGIN {} KEY-----\n".format("PRIVATE")
ENCRYPTED_KEY_PEM = "-----BEGIN {} KEY-----\n".format("ENCRYPTED PRIVATE")
CERT_PEM = "-----BEGIN CERTIFICATE-----\n"

posix = pytest.mark.skipif(os.name != "posix", reason="only POSIX has modes of files")


def read(**variables: str) -> Config:
    return Config.from_env(variables, env_file=None)


def known() -> set[str]:
    """What the sanitizer was told to hide."""
    return set(sanitizer._process._values)  # noqa: SLF001


def problems(variables: dict[str, str], env_file: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Config.from_env(variables, env_file=env_file)
    return str(caught.value).splitlines()


def private(path: Path, text: str | bytes) -> str:
    """Write a file that only its owner can read, and return its name."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(0o600)
    return str(path)


# Defaults


def test_nothing_set_is_a_plain_broker_on_this_machine_and_no_warning() -> None:
    settings = read()

    assert settings == Config(broker=BrokerConfig(client_id=settings.broker.client_id))


def test_the_sections_can_be_made_without_an_environment() -> None:
    assert BrokerConfig(host="127.0.0.1", port=1234).url == "mqtt://127.0.0.1:1234"
    assert Bounds() == read().bounds
    assert Logs() == read().logs


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        read().access_mode = "admin"  # type: ignore[misc] # what must not work


def test_the_process_environment_and_the_env_file_beside_the_server_are_read_unless_others_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MQTT_BROKER", "from-the-process")

    assert Config.from_env(env_file=None).broker.host == "from-the-process"
    assert (
        inspect.signature(Config.from_env).parameters["env_file"].default
        == Path(inspect.getfile(config)).parent / ".env"
    )


def test_a_client_id_is_random_unless_it_is_set() -> None:
    first, second, fixed = read().broker, read().broker, read(MQTT_CLIENT_ID="plant-7").broker

    assert re.fullmatch(r"coreflux-mcp-[0-9a-f]{8}", first.client_id)
    assert first.client_id != second.client_id
    assert not first.client_id_fixed
    assert (fixed.client_id, fixed.client_id_fixed) == ("plant-7", True)


# One value


@pytest.mark.parametrize(
    ("name", "text", "where", "value"),
    [
        ("MQTT_PORT", "1", "broker.port", 1),
        ("MQTT_PORT", "65535", "broker.port", 65_535),
        ("MQTT_PORT", " 1884\t", "broker.port", 1884),
        ("MQTT_USER", " plant ", "broker.user", "plant"),
        ("MQTT_USER", "u" * 65_535, "broker.user", "u" * 65_535),
        ("MQTT_USER", "Jürgen", "broker.user", "Jürgen"),
        ("MQTT_CLIENT_ID", "c" * 65_535, "broker.client_id", "c" * 65_535),
        ("MQTT_PROTOCOL", "AUTO", "broker.protocol", "auto"),
        ("MQTT_PROTOCOL", "5", "broker.protocol", "5"),
        ("MQTT_PROTOCOL", "3.1.1", "broker.protocol", "3.1.1"),
        ("MQTT_TRANSPORT", "WebSockets", "broker.transport", "websockets"),
        ("MQTT_TRANSPORT", "tcp", "broker.transport", "tcp"),
        ("MQTT_WS_PATH", "/", "broker.ws_path", "/"),
        ("MQTT_WS_PATH", "/a/%20b;c=1", "broker.ws_path", "/a/%20b;c=1"),
        ("MQTT_KEEPALIVE_S", "5", "broker.keepalive_s", 5),
        ("MQTT_KEEPALIVE_S", "65535", "broker.keepalive_s", 65_535),
        ("MQTT_SESSION_EXPIRY_S", "0", "broker.session_expiry_s", 0),
        ("MQTT_SESSION_EXPIRY_S", "4294967295", "broker.session_expiry_s", 4_294_967_295),
        ("MQTT_CONNECT_TIMEOUT_S", "1", "broker.connect_timeout_s", 1),
        ("MQTT_CONNECT_TIMEOUT_S", "300", "broker.connect_timeout_s", 300),
        ("COPILOT_TIMEOUT_S", "600", "copilot.timeout_s", 600),
        ("COPILOT_URL", "https://a.example", "copilot.url", "https://a.example/api/v1/chat/completions?agent=true"),
        (
            "COPILOT_URL",
            "https://a.example/api/v1/",
            "copilot.url",
            "https://a.example/api/v1/chat/completions?agent=true",
        ),
        ("COPILOT_URL", "https://a.example?x=1", "copilot.url", "https://a.example/api/v1/chat/completions?x=1"),
        (
            "COPILOT_URL",
            "https://a.example/v1/chat/completions",
            "copilot.url",
            "https://a.example/v1/chat/completions",
        ),
        ("COPILOT_URL", "http://[::1]:8080/", "copilot.url", "http://[::1]:8080/api/v1/chat/completions?agent=true"),
        ("LOT_VERIFIER_API_URL", "https://v.example/check", "copilot.verifier_url", "https://v.example/check"),
        ("ACTION_TOOLS", "yes", "action_tools", True),
        ("PUBLISH_ALLOW", " plant/# , a/+/b,", "rules.publish_allow", (TopicFilter("plant/#"), TopicFilter("a/+/b"))),
        ("SUBSCRIBE_DENY", "$SYS/#", "rules.subscribe_deny", (TopicFilter("$SYS/#"),)),
        ("CONFIRM", "Overwrite", "rules.confirm", "overwrite"),
        ("CONFIRM_FALLBACK", "approve-file", "rules.fallback", "approve-file"),
        ("RATE_LIMIT_PER_S", "5", "rules.calls_per_s", 5),
        ("RATE_LIMIT_BURST", "7", "rules.burst", 7),
        ("MAX_CONCURRENT_CALLS", "2", "rules.concurrent", 2),
        ("AUDIT_FILE", "audit.jsonl", "audit.file", Path("audit.jsonl")),
        ("ACCESS_MODE", "read", "access_mode", "read"),
        ("ACCESS_MODE", "Admin", "access_mode", "admin"),
        ("MAX_PAYLOAD_BYTES", "1", "bounds.max_payload_bytes", 1),
        ("MAX_PAYLOAD_BYTES", "255MiB", "bounds.max_payload_bytes", 255 * MIB),
        ("BUFFER_MAX_MESSAGES", "1", "bounds.buffer_max_messages", 1),
        ("BUFFER_MAX_MESSAGES", "10000000", "bounds.buffer_max_messages", 10_000_000),
        ("BUFFER_MAX_BYTES", "1024", "bounds.buffer_max_bytes", KIB),
        ("BUFFER_MAX_BYTES", "1024 GiB", "bounds.buffer_max_bytes", 2**40),
        ("BUFFER_MAX_BYTES", "64MiB", "bounds.buffer_max_bytes", 64 * MIB),
        ("BUFFER_MAX_BYTES", "16 kib", "bounds.buffer_max_bytes", 16 * KIB),
        ("BUFFER_MAX_BYTES", "1MB", "bounds.buffer_max_bytes", 1_000_000),
        ("BUFFER_MAX_BYTES", "2 kB", "bounds.buffer_max_bytes", 2_000),
        ("BUFFER_MAX_BYTES", "1 GB", "bounds.buffer_max_bytes", 10**9),
        ("BUFFER_MAX_BYTES", "2048 B", "bounds.buffer_max_bytes", 2_048),
        ("RESULT_MAX_BYTES", "1 KiB", "bounds.result_max_bytes", KIB),
        ("RESULT_MAX_BYTES", "1 MiB", "bounds.result_max_bytes", MIB),
        ("LOG_LEVEL", "debug", "logs.level", "DEBUG"),
        ("LOG_LEVEL", "NONE", "logs.level", "NONE"),
        ("LOG_FORMAT", "JSON", "logs.format", "json"),
        ("LOG_FILE", "bridge.log", "logs.file", Path("bridge.log")),
        ("LOG_FILE", "~/bridge.log", "logs.file", Path.home() / "bridge.log"),
        ("MCP_TRANSPORT", "HTTP", "transport", "http"),
        ("MCP_TRANSPORT", "stdio", "transport", "stdio"),
        ("MCP_HOST", "*", "http.host", "0.0.0.0"),  # noqa: S104
        ("MCP_HOST", "::", "http.host", "::"),
        ("MCP_HOST", "[::1]", "http.host", "::1"),
        ("MCP_HOST", "plant-7.example", "http.host", "plant-7.example"),
        ("MCP_PORT", "0", "http.port", 0),
        ("MCP_PORT", "65535", "http.port", 65_535),
        ("MCP_UNIX_SOCKET", "~/mcp.sock", "http.unix_socket", Path.home() / "mcp.sock"),
        ("MCP_ALLOWED_ORIGINS", "https://App.Example.com/", "http.allowed_origins", ("https://app.example.com",)),
        ("MCP_ALLOWED_ORIGINS", "https://a:443, http://a:80,", "http.allowed_origins", ("https://a", "http://a")),
        ("MCP_ALLOWED_ORIGINS", "https://a:80,http://a:443", "http.allowed_origins", ("https://a:80", "http://a:443")),
        ("MCP_ALLOWED_ORIGINS", "http://[::1]:8080", "http.allowed_origins", ("http://[::1]:8080",)),
        ("MCP_ALLOWED_HOSTS", "Plant.Example, a:*, a:65535", "http.allowed_hosts", ("plant.example", "a:*", "a:65535")),
        ("MCP_ALLOWED_HOSTS", "[::1]:8765,[::1]", "http.allowed_hosts", ("[::1]:8765", "[::1]")),
        ("MCP_TRUSTED_PROXIES", "unix", "http.trusted_proxies", (None,)),
        (
            "MCP_TRUSTED_PROXIES",
            "10.0.0.0/8, 192.0.2.7,2001:db8::/32",
            "http.trusted_proxies",
            tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"))),
        ),
        ("MCP_RATE_LIMIT_PER_MINUTE", "1", "http.rate_limit_per_minute", 1),
        ("MCP_RATE_LIMIT_PER_MINUTE", "1000000", "http.rate_limit_per_minute", 1_000_000),
        ("MCP_CLIENT_RATE_LIMIT_PER_MINUTE", "1", "http.client_rate_limit_per_minute", 1),
        ("MCP_CLIENT_RATE_LIMIT_PER_MINUTE", "10000000", "http.client_rate_limit_per_minute", 10_000_000),
        ("METRICS_PORT", "9100", "metrics", ("127.0.0.1", 9100)),
        ("METRICS_PORT", "0", "metrics", ("127.0.0.1", 0)),
        ("METRICS_PORT", "65535", "metrics", ("127.0.0.1", 65_535)),
        ("METRICS_PORT", "127.0.0.1:9100", "metrics", ("127.0.0.1", 9100)),
        ("METRICS_PORT", "0.0.0.0:9100", "metrics", ("0.0.0.0", 9100)),  # noqa: S104
        ("METRICS_PORT", "*:9100", "metrics", ("0.0.0.0", 9100)),  # noqa: S104
        ("METRICS_PORT", "[::1]:9100", "metrics", ("::1", 9100)),
        ("METRICS_PORT", "plant:9100", "metrics", ("plant", 9100)),
    ],
)
def test_an_accepted_value_arrives(name: str, text: str, where: str, value: object) -> None:
    assert operator.attrgetter(where)(read(**{name: text})) == value


COPILOT = "expected an https URL without a login, like https://NAME.agents.do-ai.run."
WHOLE_NUMBER = "expected a whole number from {} to {}."
SIZE = "expected a size like 4096, 16 KiB or 64MiB, from {} to {}."
FLAG = "expected true or false, yes or no, on or off, 1 or 0."
HOST = "expected an IP address or a host name of this machine."
ORIGINS = "expected origins like https://app.example.com with commas between them."
HOSTS = "expected host names, with :PORT or without, with commas between them."
PROXIES = "expected IP addresses or networks like 10.0.0.0/8 with commas between them, or unix."
METRICS = "expected a port, or HOST:PORT to serve not only this machine."


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("MQTT_PORT", "0", WHOLE_NUMBER.format(1, 65_535)),
        ("MQTT_PORT", "65536", WHOLE_NUMBER.format(1, 65_535)),
        ("MQTT_PORT", "tcp://10.0.0.1:1883", WHOLE_NUMBER.format(1, 65_535)),  # Kubernetes, for a service named mqtt
        ("MQTT_KEEPALIVE_S", "4", WHOLE_NUMBER.format(5, 65_535)),
        ("MQTT_KEEPALIVE_S", "65536", WHOLE_NUMBER.format(5, 65_535)),
        ("MQTT_KEEPALIVE_S", "nan", WHOLE_NUMBER.format(5, 65_535)),
        ("MQTT_SESSION_EXPIRY_S", "-1", WHOLE_NUMBER.format(0, 4_294_967_295)),
        ("MQTT_SESSION_EXPIRY_S", "4294967296", WHOLE_NUMBER.format(0, 4_294_967_295)),
        ("MQTT_CONNECT_TIMEOUT_S", "0", WHOLE_NUMBER.format(1, 300)),
        ("MQTT_CONNECT_TIMEOUT_S", "301", WHOLE_NUMBER.format(1, 300)),
        ("MQTT_CONNECT_TIMEOUT_S", "2.5", WHOLE_NUMBER.format(1, 300)),
        ("BUFFER_MAX_MESSAGES", "0", WHOLE_NUMBER.format(1, 10_000_000)),
        ("BUFFER_MAX_MESSAGES", "10000001", WHOLE_NUMBER.format(1, 10_000_000)),
        ("BUFFER_MAX_BYTES", "1023", SIZE.format("1 KiB", "1024 GiB")),
        ("BUFFER_MAX_BYTES", "1025 GiB", SIZE.format("1 KiB", "1024 GiB")),
        ("BUFFER_MAX_BYTES", "64 MiB or so", SIZE.format("1 KiB", "1024 GiB")),
        ("BUFFER_MAX_BYTES", "64 Mbit", SIZE.format("1 KiB", "1024 GiB")),
        ("BUFFER_MAX_BYTES", "1.5 GiB", SIZE.format("1 KiB", "1024 GiB")),
        ("BUFFER_MAX_BYTES", "-64MiB", SIZE.format("1 KiB", "1024 GiB")),
        ("RESULT_MAX_BYTES", "1023", SIZE.format("1 KiB", "1 MiB")),
        ("RESULT_MAX_BYTES", "1048577", SIZE.format("1 KiB", "1 MiB")),
        ("MAX_PAYLOAD_BYTES", "0", SIZE.format("1 B", "255 MiB")),
        ("MAX_PAYLOAD_BYTES", "256 MiB", SIZE.format("1 B", "255 MiB")),
        ("MQTT_PROTOCOL", "4", "expected auto, 5 or 3.1.1."),
        ("MQTT_TRANSPORT", "udp", "expected tcp or websockets."),
        ("MQTT_WS_PATH", "mqtt", "expected a path like /mqtt."),
        ("MQTT_WS_PATH", "/mqtt?token=1", "expected a path like /mqtt."),
        ("MQTT_WS_PATH", "/mqtt#part", "expected a path like /mqtt."),
        ("MQTT_WS_PATH", "/a b", "expected a path like /mqtt."),
        ("MQTT_USER", "a\0b", "expected a text of at most 65535 bytes in UTF-8."),
        ("MQTT_USER", "a\u200bb", "expected a text of at most 65535 bytes in UTF-8."),
        ("MQTT_USER", "a\udcffb", "expected a text of at most 65535 bytes in UTF-8."),
        ("MQTT_USE_TLS", "maybe", FLAG),
        ("MQTT_TLS_INSECURE", "2", FLAG),
        ("STRICT_PERMISSIONS", "-1", FLAG),
        ("MQTT_TLS_MIN_VERSION", "1.1", "expected 1.2 or 1.3."),
        ("MQTT_TLS_CIPHERS", "NO-SUCH-CIPHER", "expected an OpenSSL cipher list."),
        ("MQTT_TLS_SERVER_NAME", "broker:8883", "expected a host name in ASCII."),
        ("COPILOT_TIMEOUT_S", "0", WHOLE_NUMBER.format(1, 600)),
        ("COPILOT_URL", "a.example", COPILOT),
        ("COPILOT_URL", "ftp://a.example", COPILOT),
        ("COPILOT_URL", "http://a.example", COPILOT),  # the key would travel in clear
        ("COPILOT_URL", "https://a.example:99999", COPILOT),
        ("COPILOT_URL", "https://", COPILOT),
        ("LOT_VERIFIER_API_URL", "verifier", "expected an http or https URL without a login."),
        ("ACTION_TOOLS", "some", FLAG),
        ("PUBLISH_ALLOW", "a/#/b", "expected MQTT topic filters with commas between them."),
        ("SUBSCRIBE_ALLOW", "$share/g/a", "expected MQTT topic filters with commas between them."),
        ("CONFIRM", "never", "expected destructive, overwrite or every."),
        ("CONFIRM_FALLBACK", "yes", "expected refuse, approve-file or allow."),
        ("RATE_LIMIT_PER_S", "0", WHOLE_NUMBER.format(1, 100_000)),
        ("RATE_LIMIT_BURST", "0", WHOLE_NUMBER.format(1, 1_000_000)),
        ("MAX_CONCURRENT_CALLS", "1", WHOLE_NUMBER.format(2, 10_000)),
        ("AUDIT_REQUIRED", "x", FLAG),
        ("ACCESS_MODE", "root", "expected read, write or admin."),
        ("LOG_LEVEL", "TRACE", "expected DEBUG, INFO, WARNING, ERROR, CRITICAL or NONE."),
        ("LOG_FORMAT", "xml", "expected text or json."),
        ("LOG_FILE", "~no-such-user-here/log", "expected the path of a file."),
        ("MCP_TRANSPORT", "sse", "expected stdio or http."),
        ("MCP_HOST", "bücher.example", HOST),
        ("MCP_HOST", "plant:8765", HOST),
        ("MCP_HOST", "http://plant", HOST),
        ("MCP_HOST", "256.1.1.1", HOST),
        ("MCP_PORT", "-1", WHOLE_NUMBER.format(0, 65_535)),
        ("MCP_PORT", "65536", WHOLE_NUMBER.format(0, 65_535)),
        ("MCP_UNIX_SOCKET", "~no-such-user-here/sock", "expected the path of a socket."),
        ("MCP_ALLOWED_ORIGINS", "*", f"every page of the web could use the server; name the origins; {ORIGINS}"),
        (
            "MCP_ALLOWED_ORIGINS",
            "https://a,*",
            f"every page of the web could use the server; name the origins; {ORIGINS}",
        ),
        ("MCP_ALLOWED_ORIGINS", "https://a/b", f"an origin has a scheme, a host and no path; {ORIGINS}"),
        ("MCP_ALLOWED_ORIGINS", "app.example.com", ORIGINS),
        ("MCP_ALLOWED_ORIGINS", "ftp://a", ORIGINS),
        ("MCP_ALLOWED_ORIGINS", "null", ORIGINS),
        ("MCP_ALLOWED_ORIGINS", "https://*.example.com", ORIGINS),
        ("MCP_ALLOWED_ORIGINS", "https://me@a", ORIGINS),
        ("MCP_ALLOWED_HOSTS", "a:65536", f"there is no such port; {HOSTS}"),
        ("MCP_ALLOWED_HOSTS", "a:x", f"there is no such port; {HOSTS}"),
        ("MCP_ALLOWED_HOSTS", "*", HOSTS),
        ("MCP_ALLOWED_HOSTS", "a b", HOSTS),
        ("MCP_ALLOWED_HOSTS", "https://a", HOSTS),
        ("MCP_TRUSTED_PROXIES", "10.0.0.1/8", f"one of them is no IP address and no network; {PROXIES}"),  # host bits
        ("MCP_TRUSTED_PROXIES", "10.0.0.0/33", PROXIES),
        ("MCP_TRUSTED_PROXIES", "proxy.example", PROXIES),
        ("MCP_TRUSTED_PROXIES", "Unix", PROXIES),
        ("MCP_TRUSTED_PROXIES", "*", PROXIES),
        ("MCP_RATE_LIMIT_PER_MINUTE", "0", WHOLE_NUMBER.format(1, 1_000_000)),
        ("MCP_RATE_LIMIT_PER_MINUTE", "1000001", WHOLE_NUMBER.format(1, 1_000_000)),
        ("MCP_CLIENT_RATE_LIMIT_PER_MINUTE", "0", WHOLE_NUMBER.format(1, 10_000_000)),
        ("MCP_CLIENT_RATE_LIMIT_PER_MINUTE", "10000001", WHOLE_NUMBER.format(1, 10_000_000)),
        ("METRICS_PORT", "65536", f"there is no such port; {METRICS}"),
        ("METRICS_PORT", "-1", METRICS),
        ("METRICS_PORT", "yes", METRICS),
        ("METRICS_PORT", "127.0.0.1:", METRICS),
        ("METRICS_PORT", "127.0.0.1:²", METRICS),
        ("METRICS_PORT", "a b:9100", METRICS),
    ],
)
def test_a_refused_value_is_told_with_its_name_and_what_is_accepted(name: str, text: str, said: str) -> None:
    (line,) = problems({name: text})

    assert line.startswith(f"{name}={text!r}: ")
    assert line.endswith(said)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("COPILOT_URL", "https://me:hunter2@a.example"),
        ("COPILOT_URL", "https://a.example:hunter2"),
        ("LOT_VERIFIER_API_URL", "https://hunter2@a.example"),
        ("DO_AGENT_API_KEY", "Bearer hunter2"),
        ("DO_AGENT_API_KEY", "hünter2hunter2"),
        ("DO_AGENT_API_KEY", "hunter2\nX-More: 1"),
    ],
)
def test_a_key_or_an_address_with_a_login_is_refused_and_not_shown(name: str, text: str) -> None:
    (line,) = problems({name: text})

    assert line.startswith(f"{name} (not shown): ")
    assert "hunter2" not in line


def test_the_password_that_brokers_come_with_is_told_and_hides_no_name() -> None:
    (told,) = read(MQTT_USER="root", MQTT_PASSWORD="coreflux").warnings

    assert "change it" in told
    assert sanitizer.hide_secrets("coreflux-mcp") == "coreflux-mcp"


def test_a_record_that_is_required_needs_a_file_and_a_key_some_length() -> None:
    assert problems({"AUDIT_REQUIRED": "true"}) == ["AUDIT_REQUIRED=true without AUDIT_FILE: name the file."]
    (line,) = problems({"AUDIT_KEY": "short"})
    assert line.endswith("it is too short; expected a text of at least 16 characters.")


def test_half_a_copilot_and_a_verifier_without_tls_are_told() -> None:
    assert read(COPILOT_URL="https://a.example").warnings == (
        "There is no Copilot without DO_AGENT_API_KEY: set it too.",
    )
    assert read(DO_AGENT_API_KEY="abc").warnings == ("There is no Copilot without COPILOT_URL: set it too.",)
    assert read(COPILOT_URL="https://a.example", DO_AGENT_API_KEY="abc").copilot.missing == []
    (told,) = read(LOT_VERIFIER_API_URL="http://v.example/check").warnings
    assert "unencrypted to v.example" in told
    assert read(LOT_VERIFIER_API_URL="http://localhost:8080").warnings == ()


@pytest.mark.parametrize("name", ["MQTT_USER", "MQTT_CLIENT_ID", "MQTT_PASSWORD"])
def test_a_text_longer_than_mqtt_can_carry_is_refused_and_not_shown_at_length(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(config, "add_known", lambda _value: None)  # which takes seconds for a secret of this length
    (line,) = problems({name: "ü" * 32_768})

    assert line.endswith("expected a text of at most 65535 bytes in UTF-8.")
    assert len(line) < 300


@pytest.mark.parametrize("text", ["true", "TRUE", "1", "yes", "Yes", "on", "oN"])
def test_a_flag_is_on(text: str) -> None:
    assert read(MQTT_USE_TLS=text).tls == TLSConfig()


@pytest.mark.parametrize("text", ["false", "False", "0", "no", "NO", "off", "", "  "])
def test_a_flag_is_off(text: str) -> None:
    assert read(MQTT_USE_TLS=text).tls is None


def test_an_empty_variable_is_not_set() -> None:
    settings = read(**dict.fromkeys((*SETTINGS, *(f"{name}_FILE" for name in FROM_FILE)), ""))

    assert settings == Config(broker=BrokerConfig(client_id=settings.broker.client_id))


def test_all_problems_are_told_at_once_a_line_each(tmp_path: Path) -> None:
    lines = problems(
        {
            "MQTT_PORT": "0",
            "MQTT_BROKER": "not a host",
            "MQTT_CA_CERT": str(tmp_path / "missing.pem"),
            "MQTT_USE_TLS": "no",
            "MQTT_PASSWORD": SECRET,
            "MQTT_PASSWORD_FILE": str(tmp_path / "missing"),
            "LOG_LEVEL": "LOUD",
        }
    )

    assert [re.match(r"\w+", line)[0] for line in lines] == [  # type: ignore[index] # each begins with a name
        "MQTT_PASSWORD",
        "LOG_LEVEL",
        "MQTT_BROKER",
        "MQTT_CA_CERT",
        "MQTT_PORT",
        "MQTT_CA_CERT",
    ]


# The broker's address


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("broker", "mqtt://broker:1883"),
        ("Broker.Example.com.", "mqtt://Broker.Example.com.:1883"),
        ("my_service", "mqtt://my_service:1883"),
        ("broker:1884", "mqtt://broker:1884"),
        ("broker:1", "mqtt://broker:1"),
        ("broker:65535", "mqtt://broker:65535"),
        ("192.0.2.7", "mqtt://192.0.2.7:1883"),
        ("192.0.2.7:1884", "mqtt://192.0.2.7:1884"),
        ("::1", "mqtt://[::1]:1883"),
        ("[::1]", "mqtt://[::1]:1883"),
        ("[::1]:1884", "mqtt://[::1]:1884"),
        ("fe80::1%eth0", "mqtt://[fe80::1%eth0]:1883"),
        ("mqtt://broker", "mqtt://broker:1883"),
        ("mqtt://broker/", "mqtt://broker:1883"),
        ("MQTT://broker:1884", "mqtt://broker:1884"),
        ("tcp://broker", "mqtt://broker:1883"),
        ("mqtts://broker", "mqtts://broker:8883"),
        ("ssl://broker:8884", "mqtts://broker:8884"),
        ("tls://[2001:db8::1]", "mqtts://[2001:db8::1]:8883"),
        ("ws://broker", "ws://broker:80/mqtt"),
        ("ws://broker/", "ws://broker:80/mqtt"),
        ("ws://broker:9001/a/b", "ws://broker:9001/a/b"),
        ("wss://broker", "wss://broker:443/mqtt"),
        ("mqtt://user:pass@broker:1884", "mqtt://broker:1884"),
        ("user@broker", "mqtt://broker:1883"),
        ("embedded:1883", "mqtt://embedded:1883"),  # a host of that name
        (".".join(["a" * 63] * 3 + ["b" * 61]), f"mqtt://{'.'.join(['a' * 63] * 3 + ['b' * 61])}:1883"),  # 253 long
        ("xn--bcher-kva.example", "mqtt://xn--bcher-kva.example:1883"),
    ],
)
def test_a_broker_is_understood_as_people_write_it(text: str, url: str) -> None:
    assert read(MQTT_BROKER=text).broker.url == url


@pytest.mark.parametrize(
    "text",
    [
        "a host",
        "mqtt://",
        "mqtt:///topic",
        "mqtt://broker/topic",
        "broker/topic",
        "http://broker",
        "://broker",
        "broker:",
        "broker:0",
        "broker:65536",
        "broker:1883:1884",
        "[::1",
        "[broker]",
        "[::1]1883",
        "1.2.3",
        "256.1.1.1",
        ":::",
        "fe80::1%eth 0",
        "[fe80::1%eth/0]",
        "-broker",
        "broker-.example",
        "a..b",
        ".",
        "a" * 64,
        ".".join(["a" * 63] * 3 + ["b" * 62]),  # 254 long
        "bücher.example",
        "wss://broker/a?b=c",
        "wss://broker/a#b",
        "wss://broker/a b",
        "mqtt://us%FFer@broker",
        "mqtt://us%00er@broker",
        "bro\u200bker",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    (line,) = problems({"MQTT_BROKER": text})

    assert line.startswith("MQTT_BROKER")
    assert "expected a host name in ASCII or an IP address, with :PORT or without" in line


def test_an_international_host_name_is_refused_with_what_would_help() -> None:
    assert "xn--" in problems({"MQTT_BROKER": "bücher.example"})[0]


def test_a_refused_address_is_shown_when_it_cannot_hold_a_password() -> None:
    assert problems({"MQTT_BROKER": "mqtt://broker:70000"})[0].startswith("MQTT_BROKER='mqtt://broker:70000': ")


@pytest.mark.parametrize(
    "text",
    [
        "mqtt://user:{}@bad host",
        "mqtt://user:{}@broker:0",
        "mqtt://user:a@{}@bad host",
        "http://user:{}@broker",
        "user:{}@bad host",
        "mqtt://user:{}",  # the host forgotten
        "mqtt://user:a/{}@broker",  # not percent-encoded
        "mqtt://user:a#{}@broker",
        "mqtt://user:a?{}@broker",
        "ws://broker/mqtt?password={}",
        "ws://broker/mqtt#{}",
        "mqtt://user:{}%FF@broker",
    ],
)
def test_a_password_in_a_refused_address_is_not_shown(text: str) -> None:
    (line,) = problems({"MQTT_BROKER": text.format(SECRET)})

    assert line.startswith("MQTT_BROKER (not shown): ")
    assert SECRET not in line


@pytest.mark.parametrize(
    ("text", "user", "password", "hidden"),
    [
        ("mqtt://plant:secret@broker", "plant", "secret", ("secret",)),
        ("mqtt://pl%40nt:p%3A%2Fw@broker", "pl@nt", "p:/w", ("p:/w", "p%3A%2Fw")),
        ("mqtt://plant:pass:w@broker", "plant", "pass:w", ("pass:w",)),
        ("mqtt://plant:pass@w@broker", "plant", "pass@w", ("pass@w",)),
        ("mqtt://plant@broker", "plant", None, ()),
        ("mqtt://plant:@broker", "plant", None, ()),
        ("mqtt://:secret@broker", None, "secret", ("secret",)),
    ],
)
def test_a_login_in_the_url_is_decoded_and_known_in_both_spellings(
    text: str, user: str | None, password: str | None, hidden: tuple[str, ...]
) -> None:
    settings = read(MQTT_BROKER=text)

    assert settings.broker.user == user
    assert settings.broker.password == (SecretStr(password) if password else None)
    assert known() == set(hidden)


@pytest.mark.parametrize(
    ("transport", "tls", "port"),
    [("tcp", "false", 1883), ("tcp", "true", 8883), ("websockets", "false", 80), ("websockets", "true", 443)],
)
def test_the_port_follows_from_transport_and_tls_unless_it_is_set(transport: str, tls: str, port: int) -> None:
    chosen = {"MQTT_TRANSPORT": transport, "MQTT_USE_TLS": tls}

    assert read(**chosen).broker.port == port
    assert read(**chosen, MQTT_PORT="7777").broker.port == 7777


def test_the_path_of_a_url_that_has_none_can_be_set() -> None:
    assert read(MQTT_BROKER="ws://broker/", MQTT_WS_PATH="/a").broker.url == "ws://broker:80/a"


def test_a_plain_url_does_not_forbid_tls() -> None:
    assert read(MQTT_BROKER="mqtt://broker", MQTT_USE_TLS="true").broker.url == "mqtts://broker:8883"


@pytest.mark.parametrize("text", ["embedded", "Embedded"])
def test_the_embedded_broker_is_on_loopback_and_on_a_free_port_unless_one_is_set(text: str) -> None:
    free, fixed = read(MQTT_BROKER=text).broker, read(MQTT_BROKER=text, MQTT_PORT="1884").broker

    assert (free.embedded, free.host, free.port) == (True, "127.0.0.1", 0)
    assert (fixed.embedded, fixed.host, fixed.port) == (True, "127.0.0.1", 1884)


@pytest.mark.parametrize(
    ("broker", "name", "agrees", "contradicts"),
    [
        ("broker:1884", "MQTT_PORT", "1884", "1883"),
        ("mqtt://broker:1884", "MQTT_PORT", "1884", "1885"),
        ("mqtts://broker", "MQTT_USE_TLS", "true", "false"),
        ("wss://broker", "MQTT_USE_TLS", "true", "false"),
        ("ws://broker", "MQTT_TRANSPORT", "websockets", "tcp"),
        ("mqtt://broker", "MQTT_TRANSPORT", "tcp", "websockets"),
        ("ws://broker/a", "MQTT_WS_PATH", "/a", "/b"),
        ("mqtts://plant@broker", "MQTT_USER", "plant", "Plant"),
        pytest.param(f"mqtts://plant:{SECRET}@broker", "MQTT_PASSWORD", SECRET, f"other-{SECRET}", id="password"),
        ("embedded", "MQTT_TRANSPORT", "tcp", "websockets"),
        ("embedded", "MQTT_USE_TLS", "false", "true"),
    ],
)
def test_a_setting_may_repeat_the_address_but_not_contradict_it(
    broker: str, name: str, agrees: str, contradicts: str
) -> None:
    read(**{"MQTT_BROKER": broker, name: agrees})
    (line,) = problems({"MQTT_BROKER": broker, name: contradicts})

    assert name in line
    assert "MQTT_BROKER" in line
    assert SECRET not in line


# Secrets


@pytest.mark.parametrize("name", SECRETS)
def test_no_secret_is_shown_by_printing_the_settings(name: str) -> None:
    settings = read(**{name: SECRET, "MQTT_USE_TLS": "true"} | COMPANIONS.get(name, {}))

    assert known() == {SECRET}
    assert SECRET not in repr(settings)


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("text", ["\udcff{}", "{}" + "x" * 65_536])
def test_a_refused_secret_is_not_shown(name: str, text: str) -> None:
    (line,) = problems({name: text.format(SECRET)} | COMPANIONS.get(name, {}))

    assert line.startswith(f"{name} (not shown): ")
    assert SECRET not in line


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_beside_settings_that_cannot_be_used_is_known_too(name: str) -> None:
    problems({name: SECRET, "MQTT_PORT": "x"})

    assert known() == {SECRET}


def test_the_longest_secret_mqtt_can_carry_is_accepted() -> None:
    read(MQTT_USER="plant", MQTT_PASSWORD="p" * 65_535)
    assert known() == {"p" * 65_535}


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        ("secret", "secret"),
        ("secret\n", "secret"),
        ("secret\r\n", "secret"),
        ("secret\n\n", "secret\n"),
        ("secret\r", "secret\r"),
        (" secret \n", " secret "),
        ("one\ntwo\n", "one\ntwo"),
        ("Schlüssel\n", "Schlüssel"),
        ("\ufeffsecret", "\ufeffsecret"),
    ],
)
def test_a_secret_file_is_taken_as_it_is_but_for_its_last_line_break(tmp_path: Path, content: str, secret: str) -> None:
    file = private(tmp_path / "password", content)

    read(MQTT_USER="plant", MQTT_PASSWORD_FILE=file)
    assert known() == {secret}


@pytest.mark.parametrize("name", FROM_FILE)
def test_each_secret_and_the_user_can_come_from_a_file(tmp_path: Path, name: str) -> None:
    file = private(tmp_path / "value", SECRET)

    settings = read(**{f"{name}_FILE": file, "MQTT_USE_TLS": "true"} | COMPANIONS.get(name, {}))

    assert SECRET in {*known(), settings.broker.user}


def test_white_space_around_a_secret_is_kept_and_around_a_user_is_not(tmp_path: Path) -> None:
    file = private(tmp_path / "user", " plant \n")

    read(MQTT_PASSWORD=" secret ", MQTT_USER=" plant ")
    assert known() == {" secret "}
    assert read(MQTT_USER_FILE=file).broker.user == "plant"


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "the file is empty"),
        (b"\n", "the file is empty"),
        (b"\r\n", "the file is empty"),
        (b"p\xff\n", "it is not UTF-8"),
        (None, "No such file or directory"),
    ],
)
def test_a_secret_file_that_cannot_be_used_is_told_with_its_name_and_the_cause(
    tmp_path: Path, content: bytes | None, cause: str
) -> None:
    file = tmp_path / "password"
    if content is not None:
        private(file, content)

    assert problems({"MQTT_PASSWORD_FILE": str(file)}) == [
        f"MQTT_PASSWORD_FILE={str(file)!r}: {cause}; expected a file that holds MQTT_PASSWORD."
    ]


def test_a_directory_is_no_secret_file(tmp_path: Path) -> None:
    assert "Is a directory" in problems({"MQTT_PASSWORD_FILE": str(tmp_path)})[0]


@pytest.mark.parametrize("file", ["a\0b", "\ud800", "~no-such-user-here/password"])
def test_a_name_that_no_file_can_have_is_told(file: str) -> None:
    assert problems({"MQTT_PASSWORD_FILE": file})[0].startswith(f"MQTT_PASSWORD_FILE={file!r}: ")


@pytest.mark.parametrize("name", FROM_FILE)
def test_a_value_and_a_file_for_it_in_one_place_contradict_each_other(tmp_path: Path, name: str) -> None:
    file = private(tmp_path / "value", SECRET)
    env_file = private(tmp_path / ".env", f"{name}=here\n{name}_FILE={file}\n")
    said = [f"{name} and {name}_FILE are both set: keep one of them."]

    assert problems({name: "here", f"{name}_FILE": file} | COMPANIONS.get(name, {})) == said
    assert problems(COMPANIONS.get(name, {}), Path(env_file)) == said


@pytest.mark.parametrize(
    ("environment", "dotenv", "credential", "password"),
    [
        ("value", "value", "value", "environment"),
        ("file", "value", "value", "environment"),
        ("value", "file", "value", "environment"),
        ("value", "missing file", None, "environment"),
        ("empty", "value", "value", "dotenv"),
        (None, "file", "value", "dotenv"),
        (None, None, "value", "credential"),
        ("empty", "empty", "value", "credential"),
    ],
)
def test_the_environment_wins_over_the_env_file_and_that_over_credentials(
    tmp_path: Path, environment: str | None, dotenv: str | None, credential: str | None, password: str
) -> None:
    def say(place: str, how: str | None) -> dict[str, str]:
        match how:
            case "value":
                return {"MQTT_PASSWORD": place}
            case "empty":
                return {"MQTT_PASSWORD": "", "MQTT_PASSWORD_FILE": ""}
            case "file":
                return {"MQTT_PASSWORD_FILE": private(tmp_path / place, place)}
            case "missing file":
                return {"MQTT_PASSWORD_FILE": str(tmp_path / "missing")}
        return {}

    env_file = tmp_path / ".env"
    private(env_file, "".join(f"{name}={value}\n" for name, value in say("dotenv", dotenv).items()))
    if credential:
        private(tmp_path / "MQTT_PASSWORD", "credential")

    Config.from_env(say("environment", environment) | {"CREDENTIALS_DIRECTORY": str(tmp_path)}, env_file=env_file)

    assert known() == {password}


def test_credentials_are_only_looked_for_where_the_environment_says(tmp_path: Path) -> None:
    private(tmp_path / "MQTT_PASSWORD", SECRET)
    private(tmp_path / "MQTT_BROKER", "elsewhere")
    env_file = Path(private(tmp_path / ".env", f"CREDENTIALS_DIRECTORY={tmp_path}\n"))

    assert Config.from_env({}, env_file=env_file).broker.password is None
    assert read(CREDENTIALS_DIRECTORY=str(tmp_path / "missing")).broker.password is None
    assert known() == set()
    assert read(CREDENTIALS_DIRECTORY=str(tmp_path)).broker.host == "localhost"
    assert known() == {SECRET}


def test_a_credential_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    private(tmp_path / "MQTT_PASSWORD", "\n")
    (tmp_path / "MQTT_USER").mkdir()

    assert problems({"CREDENTIALS_DIRECTORY": str(tmp_path)}) == [
        "MQTT_USER in $CREDENTIALS_DIRECTORY: Is a directory; expected a file that holds MQTT_USER.",
        "MQTT_PASSWORD in $CREDENTIALS_DIRECTORY: the file is empty; expected a file that holds MQTT_PASSWORD.",
    ]


# Files that others can read


@posix
@pytest.mark.parametrize(
    ("mode", "exposed"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True), (0o622, False)]
)
@pytest.mark.parametrize("name", ["MQTT_PASSWORD_FILE", "MQTT_CLIENT_KEY", "MQTT_CLIENT_CERT"])
def test_a_secret_that_others_can_read_is_a_warning_and_a_problem_when_strict(
    tmp_path: Path, name: str, mode: int, *, exposed: bool
) -> None:
    file = tmp_path / "secret"
    file.write_text(KEY_PEM)
    file.chmod(mode)
    chosen = {"MQTT_USER": "plant", "MQTT_USE_TLS": "true", "MQTT_CLIENT_CERT": private(tmp_path / "cert", KEY_PEM)}
    chosen[name] = str(file)
    said = [f"{name}={str(file)!r} can be read by others (mode {mode:o}): run chmod 600 on it."] if exposed else []

    assert read(**chosen).warnings == tuple(said)
    if exposed:
        assert problems(chosen | {"STRICT_PERMISSIONS": "true"}) == said
    else:
        read(**chosen, STRICT_PERMISSIONS="true")


@posix
@pytest.mark.parametrize(("mode", "exposed"), [(0o440, False), (0o444, True)])
def test_a_credential_may_be_open_to_its_group_as_systemd_makes_it(tmp_path: Path, mode: int, *, exposed: bool) -> None:
    file = tmp_path / "MQTT_PASSWORD"
    file.write_text(SECRET)
    file.chmod(mode)

    warnings = read(MQTT_USER="plant", CREDENTIALS_DIRECTORY=str(tmp_path)).warnings

    assert warnings == (
        ("MQTT_PASSWORD in $CREDENTIALS_DIRECTORY can be read by others (mode 444): run chmod 600 on it.",)
        if exposed
        else ()
    )


@posix
@pytest.mark.parametrize(
    ("line", "exposed"),
    [
        ("MQTT_PASSWORD=x", True),
        ("MQTT_PASSWORD=", False),
        ("MQTT_BROKER=mqtt://plant:x@localhost", True),
        ("MQTT_BROKER=mqtt://localhost", False),
    ],
)
def test_an_env_file_that_others_can_read_is_told_when_it_holds_a_secret(
    tmp_path: Path, line: str, *, exposed: bool
) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text(f"{line}\nMQTT_USER=plant\n")
    env_file.chmod(0o644)
    said = [f"{env_file} can be read by others (mode 644): run chmod 600 on it."] if exposed else []

    assert Config.from_env({}, env_file=env_file).warnings == tuple(said)
    if exposed:
        assert problems({"STRICT_PERMISSIONS": "true"}, env_file) == said


@posix
def test_a_certificate_beside_its_key_is_no_secret(tmp_path: Path) -> None:
    cert = tmp_path / "cert.pem"
    cert.write_text(CERT_PEM)
    cert.chmod(0o644)
    key = private(tmp_path / "key.pem", KEY_PEM)

    assert read(MQTT_CLIENT_CERT=str(cert), MQTT_CLIENT_KEY=key, STRICT_PERMISSIONS="true").warnings == ()


@posix
def test_a_user_name_in_a_file_is_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "user"
    file.write_text("plant")
    file.chmod(0o644)

    assert read(MQTT_USER_FILE=str(file), STRICT_PERMISSIONS="true").warnings == ()


# TLS


def test_every_tls_setting_arrives(tmp_path: Path) -> None:
    ca, cert, key = (private(tmp_path / name, text) for name, text in (("ca", ""), ("cert", ""), ("key", KEY_PEM)))

    tls = read(
        MQTT_USE_TLS="true",
        MQTT_CA_CERT=ca,
        MQTT_CLIENT_CERT=cert,
        MQTT_CLIENT_KEY=key,
        MQTT_CLIENT_KEY_PASSWORD=SECRET,
        MQTT_TLS_MIN_VERSION="1.3",
        MQTT_TLS_CIPHERS="ECDHE+AESGCM",
        MQTT_TLS_SERVER_NAME="broker.example",
        MQTT_TLS_INSECURE="true",
    ).tls

    assert tls == TLSConfig(
        ca_cert=Path(ca),
        client_cert=Path(cert),
        client_key=Path(key),
        client_key_password=SecretStr(SECRET),
        min_version="1.3",
        ciphers="ECDHE+AESGCM",
        server_name="broker.example",
        insecure=True,
    )


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    ca = private(tmp_path / "ca.pem", CERT_PEM)

    assert read(MQTT_CA_CERT="~/ca.pem").tls == TLSConfig(ca_cert=Path(ca))


@pytest.mark.parametrize("name", ["MQTT_CA_CERT", "MQTT_CLIENT_CERT"])
def test_a_certificate_asks_for_tls_and_cannot_be_had_without(tmp_path: Path, name: str) -> None:
    file = private(tmp_path / "both.pem", CERT_PEM + KEY_PEM)

    assert read(**{name: file}).tls is not None
    assert problems({name: file, "MQTT_USE_TLS": "false"}) == [
        f"{name} asks for TLS and MQTT_USE_TLS=false forbids it: change one."
    ]


@pytest.mark.parametrize("name", ["MQTT_CA_CERT", "MQTT_CLIENT_CERT", "MQTT_CLIENT_KEY"])
def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path, name: str) -> None:
    missing = tmp_path / "missing.pem"
    others = {"MQTT_CLIENT_CERT": private(tmp_path / "both.pem", CERT_PEM + KEY_PEM)}

    assert problems(others | {name: str(missing)}) == [
        f"{name}={str(missing)!r}: No such file or directory; expected the path of a readable PEM file."
    ]
    assert "Is a directory" in problems(others | {name: str(tmp_path)})[0]


@pytest.mark.parametrize(
    ("cert", "key", "password", "said"),
    [
        (CERT_PEM + KEY_PEM, None, None, None),
        (CERT_PEM, KEY_PEM, None, None),
        (CERT_PEM, None, None, "MQTT_CLIENT_CERT={cert!r}: there is no private key in it"),
        (CERT_PEM, CERT_PEM, None, "MQTT_CLIENT_KEY={key!r}: there is no private key in it"),
        (None, KEY_PEM, None, "MQTT_CLIENT_KEY is set without MQTT_CLIENT_CERT"),
        (CERT_PEM, ENCRYPTED_KEY_PEM, None, "MQTT_CLIENT_KEY={key!r}: the private key is encrypted"),
        (CERT_PEM + ENCRYPTED_KEY_PEM, None, None, "MQTT_CLIENT_CERT={cert!r}: the private key is encrypted"),
        pytest.param(CERT_PEM, ENCRYPTED_KEY_PEM, SECRET, None, id="encrypted key and its password"),
    ],
)
def test_a_client_certificate_and_its_key_belong_together(
    tmp_path: Path, cert: str | None, key: str | None, password: str | None, said: str | None
) -> None:
    chosen = {"MQTT_CLIENT_KEY_PASSWORD": password or ""}
    if cert:
        chosen["MQTT_CLIENT_CERT"] = private(tmp_path / "cert.pem", cert)
    if key:
        chosen["MQTT_CLIENT_KEY"] = private(tmp_path / "key.pem", key)

    if said is None:
        assert read(**chosen).warnings == ()
    else:
        (line,) = problems(chosen)
        assert line.startswith(said.format(cert=chosen.get("MQTT_CLIENT_CERT"), key=chosen.get("MQTT_CLIENT_KEY")))


# MCP over HTTP

TOKEN = f"cfx_{secrets.token_hex(16)}"
SHA_256 = hashlib.sha256(TOKEN.encode()).hexdigest()
OTHER_SHA_256 = hashlib.sha256(b"other").hexdigest()

ALL_OF_THIS_MACHINE = "Every program on this machine may use the server: set MCP_TOKEN."
TRAVELS = "Tokens travel unencrypted: set MCP_TLS_CERT and MCP_TLS_KEY, unless a proxy in front does TLS."


def served(**variables: str) -> Config:
    return read(MCP_TRANSPORT="http", **variables)


def test_nothing_set_is_served_to_this_machine_only() -> None:
    assert served().http == HTTPConfig() == HTTPConfig(host="127.0.0.1", port=8765)
    assert served().warnings == (ALL_OF_THIS_MACHINE,)


def test_a_token_has_at_least_32_characters() -> None:
    assert read(MCP_TOKEN="t" * 32, MCP_TRANSPORT="http").warnings == ()
    assert problems({"MCP_TOKEN": "t" * 31}) == [
        "MCP_TOKEN (not shown): it is too short; expected at least 32 characters, in ASCII and without blanks."
    ]
    for bad in ("t" * 32 + " ", "ü" * 32, "t" * 4097):
        (line,) = problems({"MCP_TOKEN": bad})
        assert line.startswith("MCP_TOKEN (not shown): it cannot be sent in a header; ")


@pytest.mark.parametrize("mode", ["read", "write", "admin"])
def test_the_holder_of_the_only_token_has_the_access_mode(mode: str) -> None:
    http = served(MCP_TOKEN=TOKEN, ACCESS_MODE=mode).http

    assert http.clients == (HTTPClient("MCP_TOKEN", mode, bytes.fromhex(SHA_256)),)  # type: ignore[arg-type] # one of them
    assert not http.several
    assert known() == {TOKEN}


def test_the_file_of_tokens_names_its_clients(tmp_path: Path) -> None:
    file = private(
        tmp_path / "tokens",
        f"# who may come in\r\n\n  laptop\tread  {SHA_256}  \n\t# another\nci.Bot_7-x admin {OTHER_SHA_256.upper()}",
    )

    settings = served(MCP_TOKENS_FILE=file)

    assert settings.http.clients == (
        HTTPClient("laptop", "read", bytes.fromhex(SHA_256)),
        HTTPClient("ci.Bot_7-x", "admin", bytes.fromhex(OTHER_SHA_256)),
    )
    assert settings.http.several
    assert settings.files["MCP_TOKENS_FILE"] == Path(file)
    assert settings.warnings == ()


NO_CLIENT = "is not a name, an access mode and the SHA-256 of a token"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "there is no line with a client in it, so nobody could come in"),
        ("# laptop\n\n", "there is no line with a client in it, so nobody could come in"),
        ("hunter2 {sha}\n", f"line 1 {NO_CLIENT}"),
        ("\n# x\nlaptop write {sha}\nhunter2\n", f"line 4 {NO_CLIENT}"),
        ("laptop root {sha}", f"line 1 {NO_CLIENT}"),
        ("laptop Read {sha}", f"line 1 {NO_CLIENT}"),
        ("laptop read {cut}", f"line 1 {NO_CLIENT}"),
        ("laptop read {sha}0", f"line 1 {NO_CLIENT}"),
        ("laptop read {sha} hunter2", f"line 1 {NO_CLIENT}"),
        ("lap/top read {sha}", f"line 1 {NO_CLIENT}"),
        ("n" * 65 + " read {sha}", f"line 1 {NO_CLIENT}"),
        ("laptop read hunter2-in-the-place-of-its-digest", f"line 1 {NO_CLIENT}"),
        (
            "laptop read {sha}\nlaptop write {other}\n",
            "line 2 has the name or the token of an earlier one",
        ),
        (
            "laptop read {sha}\n\nphone read {upper}\n",
            "line 3 has the name or the token of an earlier one",
        ),
    ],
)
def test_a_line_that_is_no_client_is_told_by_its_number_and_not_shown(tmp_path: Path, content: str, said: str) -> None:
    file = private(
        tmp_path / "tokens",
        content.format(sha=SHA_256, cut=SHA_256[1:], upper=SHA_256.upper(), other=OTHER_SHA_256),
    )

    (line,) = problems({"MCP_TOKENS_FILE": file})
    assert line == (
        f"MCP_TOKENS_FILE={file!r}: {said}; "
        "expected a file with a line for each client: NAME read|write|admin SHA-256-OF-ITS-TOKEN."
    )


def test_the_longest_name_of_a_client_has_64_characters(tmp_path: Path) -> None:
    file = private(tmp_path / "tokens", f"{'n' * 64} read {SHA_256}")

    assert served(MCP_TOKENS_FILE=file).http.clients[0].name == "n" * 64


def test_a_file_of_tokens_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")

    (line,) = problems({"MCP_TRANSPORT": "http", "MCP_HOST": "*", "MCP_TOKENS_FILE": missing})
    assert line.startswith(f"MCP_TOKENS_FILE={missing!r}: No such file or directory; ")
    assert "Is a directory" in problems({"MCP_TOKENS_FILE": str(tmp_path)})[0]


@posix
@pytest.mark.parametrize(
    ("mode", "exposed"), [(0o600, False), (0o644, False), (0o620, True), (0o602, True), (0o666, True)]
)
def test_a_file_of_tokens_that_others_can_write_is_told(tmp_path: Path, mode: int, *, exposed: bool) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"laptop read {SHA_256}\n")
    file.chmod(mode)
    said = [f"MCP_TOKENS_FILE={str(file)!r} can be written by others: run chmod 600 on it."] if exposed else []
    chosen = {"MCP_TRANSPORT": "http", "MCP_TOKENS_FILE": str(file)}

    assert read(**chosen).warnings == tuple(said)
    if exposed:
        assert problems(chosen | {"STRICT_PERMISSIONS": "true"}) == said


def test_one_token_and_a_file_of_them_contradict_each_other(tmp_path: Path) -> None:
    file = private(tmp_path / "tokens", f"laptop read {SHA_256}")
    token_file = private(tmp_path / "token", TOKEN)
    said = ["MCP_TOKEN and MCP_TOKENS_FILE are both set: keep one of them."]

    assert problems({"MCP_TOKENS_FILE": file, "MCP_TOKEN": TOKEN}) == said
    assert problems({"MCP_TOKENS_FILE": file, "MCP_TOKEN_FILE": token_file}) == said


@pytest.mark.parametrize(
    ("mode", "above"), [("read", ["write", "admin"]), ("write", ["admin"]), ("admin", []), (None, [])]
)
def test_no_client_may_do_more_than_the_access_mode_where_that_is_set(
    tmp_path: Path, mode: str | None, above: list[str]
) -> None:
    lines = [f"{each}er {each} {hashlib.sha256(each.encode()).hexdigest()}\n" for each in ("read", "write", "admin")]
    chosen = {"MCP_TOKENS_FILE": private(tmp_path / "tokens", "".join(lines))} | ({"ACCESS_MODE": mode} if mode else {})

    said = [
        (
            f"ACCESS_MODE={mode} and the access mode {each} of {each}er in MCP_TOKENS_FILE contradict each other: "
            "change one."
        )
        for each in above
    ]
    if said:
        assert problems(chosen) == said
    else:
        assert [client.access for client in read(**chosen).http.clients] == ["read", "write", "admin"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LocalHost."])
def test_on_loopback_no_token_is_a_warning(host: str) -> None:
    assert served(MCP_HOST=host).warnings == (ALL_OF_THIS_MACHINE,)
    assert served(MCP_HOST=host, MCP_TOKEN=TOKEN).warnings == ()


@pytest.mark.parametrize(
    ("host", "shown"),
    [("0.0.0.0", "0.0.0.0"), ("*", "0.0.0.0"), ("::", "::"), ("192.0.2.7", "192.0.2.7"), ("plant", "plant")],  # noqa: S104
)
def test_beyond_loopback_a_token_is_needed_and_tls_advised(tmp_path: Path, host: str, shown: str) -> None:
    files = {
        "MCP_TLS_CERT": private(tmp_path / "cert.pem", CERT_PEM),
        "MCP_TLS_KEY": private(tmp_path / "key.pem", KEY_PEM),
    }

    assert problems({"MCP_TRANSPORT": "http", "MCP_HOST": host, **files}) == [
        f"MCP_HOST={shown!r} lets others in than this machine: set MCP_TOKEN or MCP_TOKENS_FILE."
    ]
    assert served(MCP_HOST=host, MCP_TOKEN=TOKEN).warnings == (TRAVELS,)
    assert served(MCP_HOST=host, MCP_TOKEN=TOKEN, **files).warnings == ()


def test_a_token_that_cannot_be_used_is_not_asked_for_once_more() -> None:
    (line,) = problems({"MCP_TRANSPORT": "http", "MCP_HOST": "*", "MCP_TOKEN": "short"})

    assert line.startswith("MCP_TOKEN (not shown): it is too short; ")


def test_a_unix_socket_needs_no_token_and_takes_the_place_of_host_and_port() -> None:
    assert served(MCP_UNIX_SOCKET="mcp.sock").warnings == ()
    assert served(MCP_UNIX_SOCKET="mcp.sock", MCP_HOST="*", MCP_PORT="1").warnings == (
        "MCP_HOST has no effect with MCP_UNIX_SOCKET.",
        "MCP_PORT has no effect with MCP_UNIX_SOCKET.",
    )


@pytest.mark.parametrize(
    ("cert", "key", "said"),
    [
        (CERT_PEM, KEY_PEM, None),
        (CERT_PEM, None, "MCP_TLS_CERT is set without MCP_TLS_KEY: set both."),
        (None, KEY_PEM, "MCP_TLS_KEY is set without MCP_TLS_CERT: set both."),
        (CERT_PEM, CERT_PEM, "MCP_TLS_KEY={key!r}: expected a private key that is not encrypted."),
        (CERT_PEM, ENCRYPTED_KEY_PEM, "MCP_TLS_KEY={key!r}: expected a private key that is not encrypted."),
    ],
)
def test_a_certificate_and_its_key_belong_together(
    tmp_path: Path, cert: str | None, key: str | None, said: str | None
) -> None:
    chosen = {"MCP_TRANSPORT": "http", "MCP_TOKEN": TOKEN}
    if cert:
        chosen["MCP_TLS_CERT"] = private(tmp_path / "cert.pem", cert)
    if key:
        chosen["MCP_TLS_KEY"] = private(tmp_path / "key.pem", key)

    if said is None:
        settings = read(**chosen)
        assert (settings.http.tls_cert, settings.http.tls_key) == (tmp_path / "cert.pem", tmp_path / "key.pem")
        assert settings.files["MCP_TLS_CERT"] == tmp_path / "cert.pem"
        assert settings.files["MCP_TLS_KEY"] == tmp_path / "key.pem"
        assert settings.warnings == ()
    else:
        assert problems(chosen) == [said.format(key=chosen.get("MCP_TLS_KEY"))]


@pytest.mark.parametrize("name", ["MCP_TLS_CERT", "MCP_TLS_KEY"])
def test_a_pem_file_of_http_that_cannot_be_read_stops_the_start(tmp_path: Path, name: str) -> None:
    missing = str(tmp_path / "missing.pem")
    both = {
        "MCP_TLS_CERT": private(tmp_path / "cert.pem", CERT_PEM),
        "MCP_TLS_KEY": private(tmp_path / "key.pem", KEY_PEM),
    }

    assert problems({"MCP_TRANSPORT": "http", "MCP_TOKEN": TOKEN, **both, name: missing}) == [
        f"{name}={missing!r}: No such file or directory; expected the path of a readable PEM file."
    ]


@posix
def test_a_key_of_http_that_others_can_read_is_told(tmp_path: Path) -> None:
    cert, key = private(tmp_path / "cert.pem", CERT_PEM), tmp_path / "key.pem"
    key.write_text(KEY_PEM)
    key.chmod(0o640)
    said = f"MCP_TLS_KEY={str(key)!r} can be read by others (mode 640): run chmod 600 on it."
    chosen = {"MCP_TRANSPORT": "http", "MCP_TOKEN": TOKEN, "MCP_TLS_CERT": cert, "MCP_TLS_KEY": str(key)}

    assert read(**chosen).warnings == (said,)
    assert problems(chosen | {"STRICT_PERMISSIONS": "true"}) == [said]


# What has no effect over stdio: a value of each that is not its default.
ONLY_OVER_HTTP = {
    "MCP_HOST": "localhost",
    "MCP_PORT": "8766",
    "MCP_UNIX_SOCKET": "mcp.sock",
    "MCP_TOKEN": TOKEN,
    "MCP_ALLOWED_ORIGINS": "https://a",
    "MCP_ALLOWED_HOSTS": "a",
    "MCP_TRUSTED_PROXIES": "unix",
    "MCP_RATE_LIMIT_PER_MINUTE": "31",
    "MCP_CLIENT_RATE_LIMIT_PER_MINUTE": "601",
}


@pytest.mark.parametrize("name", ONLY_OVER_HTTP)
def test_what_is_set_for_http_has_no_effect_over_stdio(name: str) -> None:
    said = f"{name} has no effect without MCP_TRANSPORT=http."

    assert read(**{name: ONLY_OVER_HTTP[name]}).warnings == (said,)
    assert said not in served(**{name: ONLY_OVER_HTTP[name]}).warnings


def test_files_that_are_set_for_http_have_no_effect_over_stdio(tmp_path: Path) -> None:
    files = {
        "MCP_TLS_CERT": private(tmp_path / "cert.pem", CERT_PEM),
        "MCP_TLS_KEY": private(tmp_path / "key.pem", KEY_PEM),
        "MCP_TOKENS_FILE": private(tmp_path / "tokens", f"laptop read {SHA_256}"),
    }

    assert read(**files).warnings == tuple(f"{name} has no effect without MCP_TRANSPORT=http." for name in files)
    assert {*ONLY_OVER_HTTP, *files, "MCP_TRANSPORT"} == {name for name in SETTINGS if name.startswith("MCP_")}


# A login by OAuth 2


def test_a_login_by_oauth_arrives() -> None:
    broker = read(**LOGIN, MQTT_OAUTH_CLIENT_SECRET=SECRET, MQTT_OAUTH_SCOPE=" read write ", MQTT_USER="op").broker

    assert broker.oauth == OAuthConfig(
        token_url="https://login.example/token",
        client_id="plant",
        client_secret=SecretStr(SECRET),
        scope="read write",
    )
    assert (broker.user, broker.password) == ("op", None)


def test_a_rotated_client_secret_is_all_that_changes() -> None:
    old, new = (
        read(**LOGIN, MQTT_OAUTH_CLIENT_SECRET=secret, MQTT_OAUTH_SCOPE=scope, MQTT_CLIENT_ID="c").broker
        for secret, scope in (("one", "a"), ("two", "b"))
    )

    assert old.oauth is not None
    assert old.with_secrets_of(new) == dataclasses.replace(
        old, oauth=dataclasses.replace(old.oauth, client_secret=SecretStr("two"))
    )


OAUTH = {**LOGIN, "MQTT_OAUTH_CLIENT_SECRET": SECRET}


@pytest.mark.parametrize(
    ("given_names", "missing"),
    [
        (("TOKEN_URL",), "MQTT_OAUTH_CLIENT_ID and MQTT_OAUTH_CLIENT_SECRET"),
        (("CLIENT_ID",), "MQTT_OAUTH_TOKEN_URL and MQTT_OAUTH_CLIENT_SECRET"),
        (("CLIENT_SECRET",), "MQTT_OAUTH_TOKEN_URL and MQTT_OAUTH_CLIENT_ID"),
        (("TOKEN_URL", "CLIENT_ID"), "MQTT_OAUTH_CLIENT_SECRET"),
        (("TOKEN_URL", "CLIENT_SECRET"), "MQTT_OAUTH_CLIENT_ID"),
        (("CLIENT_ID", "CLIENT_SECRET"), "MQTT_OAUTH_TOKEN_URL"),
    ],
)
def test_half_a_login_by_oauth_is_refused_with_what_is_missing(given_names: tuple[str, ...], missing: str) -> None:
    chosen = {f"MQTT_OAUTH_{name}": OAUTH[f"MQTT_OAUTH_{name}"] for name in given_names}

    assert problems(chosen) == [f"A broker login by OAuth 2 also needs {missing}."]


def test_a_scope_alone_has_no_effect() -> None:
    assert read(MQTT_OAUTH_SCOPE="a").warnings == ("MQTT_OAUTH_SCOPE has no effect without MQTT_OAUTH_TOKEN_URL.",)


@pytest.mark.parametrize(
    "password",
    [{"MQTT_PASSWORD": SECRET}, {"MQTT_BROKER": f"mqtts://me:{SECRET}@broker"}],
    ids=["set", "in the URL"],
)
def test_a_password_beside_a_login_by_oauth_is_refused(password: dict[str, str]) -> None:
    assert problems(OAUTH | {"MQTT_USER": "me"} | password) == [
        "MQTT_PASSWORD and MQTT_OAUTH_TOKEN_URL are both set: keep one of them."
    ]


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("https://login.example/token", True),
        ("https://login.example:8443/token?tenant=7", True),
        ("http://localhost:8080/token", True),
        ("http://127.0.0.1/token", True),
        ("http://[::1]/token", True),
        ("http://login.example/token", False),  # the secret would travel in clear
        ("http://128.0.0.1/token", False),
        ("https://me:hunter2@login.example/token", False),
        ("https://login.example/token#hunter2", False),
        ("login.example/token", False),
        ("ftp://login.example/token", False),
    ],
)
def test_a_token_url_is_secure_or_on_this_machine(url: str, *, good: bool) -> None:
    chosen = OAUTH | {"MQTT_OAUTH_TOKEN_URL": url}

    if good:
        assert read(**chosen).broker.oauth == OAuthConfig(
            token_url=url, client_id="plant", client_secret=SecretStr(SECRET)
        )
    else:
        (line,) = problems(chosen)
        assert line.startswith("MQTT_OAUTH_TOKEN_URL")
        assert line.endswith("expected an https URL without a login.")
        assert "hunter2" not in line


@pytest.mark.parametrize("name", ["MQTT_OAUTH_CLIENT_ID", "MQTT_OAUTH_SCOPE"])
def test_a_text_for_the_token_service_can_be_seen(name: str) -> None:
    (line,) = problems(OAUTH | {name: "a\0b"})

    assert line.startswith(f"{name}='a\\x00b': ")


# Warnings

UNENCRYPTED = "The broker login travels unencrypted to {}: set MQTT_USE_TLS=true."
NO_EFFECT = "{} has no effect without TLS: set MQTT_USE_TLS=true."


@pytest.mark.parametrize(
    ("variables", "warning"),
    [
        ({"MQTT_BROKER": "broker", "MQTT_USER": "u"}, UNENCRYPTED.format("broker")),
        ({"MQTT_BROKER": "ws://u@broker"}, UNENCRYPTED.format("broker")),
        ({"MQTT_BROKER": "128.0.0.1", "MQTT_USER": "u"}, UNENCRYPTED.format("128.0.0.1")),
        ({"MQTT_BROKER": "localhost.example", "MQTT_USER": "u"}, UNENCRYPTED.format("localhost.example")),
        ({"MQTT_BROKER": "broker", "MQTT_PASSWORD": "p", "MQTT_PROTOCOL": "5"}, UNENCRYPTED.format("broker")),
        ({"MQTT_BROKER": "broker", **OAUTH}, UNENCRYPTED.format("broker")),
        ({"MQTT_BROKER": "mqtts://broker", **OAUTH}, None),
        ({"MQTT_PROTOCOL": "3.1.1", **OAUTH}, None),
        ({"MQTT_BROKER": "broker"}, None),
        ({"MQTT_BROKER": "mqtts://u:p@broker"}, None),
        ({"MQTT_BROKER": "localhost", "MQTT_USER": "u"}, None),
        ({"MQTT_BROKER": "LocalHost.", "MQTT_USER": "u"}, None),
        ({"MQTT_BROKER": "broker.localhost", "MQTT_USER": "u"}, None),
        ({"MQTT_BROKER": "127.9.9.9", "MQTT_USER": "u"}, None),
        ({"MQTT_BROKER": "::1", "MQTT_USER": "u"}, None),
        ({"MQTT_BROKER": "embedded", "MQTT_USER": "u"}, None),
        (
            {"MQTT_PASSWORD": "p"},
            "MQTT_PASSWORD without MQTT_USER needs MQTT 5, which not every broker speaks: set both.",
        ),
        ({"MQTT_PASSWORD": "p", "MQTT_PROTOCOL": "5"}, None),
        ({"MQTT_PASSWORD": "p", "MQTT_USER": "u"}, None),
        (
            {"MQTT_SESSION_EXPIRY_S": "1"},
            "MQTT_SESSION_EXPIRY_S has no effect without MQTT_CLIENT_ID: a random client id cannot resume a session.",
        ),
        ({"MQTT_SESSION_EXPIRY_S": "1", "MQTT_CLIENT_ID": "c"}, None),
        ({"MQTT_SESSION_EXPIRY_S": "0"}, None),
        (
            {"MQTT_USE_TLS": "true", "MQTT_TLS_INSECURE": "true"},
            "MQTT_TLS_INSECURE=true: whoever is on the way to the broker can read and change everything.",
        ),
        ({"MQTT_USE_TLS": "true", "MQTT_TLS_INSECURE": "false"}, None),
        ({"MQTT_TLS_INSECURE": "true"}, NO_EFFECT.format("MQTT_TLS_INSECURE")),
        ({"MQTT_TLS_MIN_VERSION": "1.3"}, NO_EFFECT.format("MQTT_TLS_MIN_VERSION")),
        ({"MQTT_TLS_MIN_VERSION": "1.2"}, None),
        ({"MQTT_TLS_CIPHERS": "ECDHE+AESGCM"}, NO_EFFECT.format("MQTT_TLS_CIPHERS")),
        ({"MQTT_TLS_SERVER_NAME": "broker"}, NO_EFFECT.format("MQTT_TLS_SERVER_NAME")),
        ({"MQTT_CLIENT_KEY_PASSWORD": "p"}, NO_EFFECT.format("MQTT_CLIENT_KEY_PASSWORD")),
        ({"MQTT_WS_PATH": "/a"}, "MQTT_WS_PATH has no effect on TCP: set MQTT_TRANSPORT=websockets."),
        ({"MQTT_WS_PATH": "/a", "MQTT_TRANSPORT": "websockets"}, None),
        ({"MQTT_PORT": "8883"}, "Port 8883 usually expects TLS, which is off: set MQTT_USE_TLS=true."),
        ({"MQTT_PORT": "8883", "MQTT_USE_TLS": "true"}, None),
        ({"MQTT_PORT": "8884"}, None),
    ],
)
def test_what_works_but_should_not_stay_so_is_a_warning(variables: dict[str, str], warning: str | None) -> None:
    assert read(**variables).warnings == ((warning,) if warning else ())


def test_a_password_without_a_user_is_refused_where_mqtt_forbids_it(tmp_path: Path) -> None:
    alone = {"MQTT_PASSWORD": SECRET, "MQTT_PROTOCOL": "3.1.1"}
    missing = str(tmp_path / "missing")

    assert problems(alone) == ["MQTT_PASSWORD without MQTT_USER is not possible with MQTT_PROTOCOL=3.1.1: set both."]
    assert [line.split("=")[0] for line in problems(alone | {"MQTT_USER_FILE": missing})] == ["MQTT_USER_FILE"]
    assert read(**alone, MQTT_USER="plant").warnings == ()


# Names


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MQTT_BROKR", "MQTT_BROKER"),
        ("MQTT_HOST", "MQTT_BROKER"),
        ("MQTT_SERVER", "MQTT_BROKER"),
        ("MQTT_URL", "MQTT_BROKER"),
        ("MQTT_URI", "MQTT_BROKER"),
        ("MQTT_BROKER_URL", "MQTT_BROKER"),
        ("MQTT_BROKER_HOST", "MQTT_BROKER"),
        ("MQTT_BROKER_PORT", "MQTT_PORT"),
        ("MQTT_PROT", "MQTT_PORT"),
        ("MQTT_USERNAME", "MQTT_USER"),
        ("MQTT_PASWORD", "MQTT_PASSWORD"),
        ("MQTT_PASWORD_FILE", "MQTT_PASSWORD_FILE"),
        ("MQTT_PASS", "MQTT_PASSWORD"),
        ("MQTT_PWD", "MQTT_PASSWORD"),
        ("MQTT_VERSION", "MQTT_PROTOCOL"),
        ("MQTT_CLIENTID", "MQTT_CLIENT_ID"),
        ("MQTT_KEEPALIVE", "MQTT_KEEPALIVE_S"),
        ("MQTT_TLS", "MQTT_USE_TLS"),
        ("MQTT_SSL", "MQTT_USE_TLS"),
        ("MQTT_USE_SSL", "MQTT_USE_TLS"),
        ("MQTT_CA", "MQTT_CA_CERT"),
        ("MQTT_CA_FILE", "MQTT_CA_CERT"),
        ("MQTT_TLS_CA", "MQTT_CA_CERT"),
        ("MQTT_CA_CERTS", "MQTT_CA_CERT"),
        ("MQTT_INSECURE", "MQTT_TLS_INSECURE"),
        ("mqtt_broker", "MQTT_BROKER"),
        ("Mqtt_Host", "MQTT_BROKER"),
        ("ACCESS_MOD", "ACCESS_MODE"),
        ("BUFFER_MAX_MESSAGE", "BUFFER_MAX_MESSAGES"),
        ("LOG_LEVL", "LOG_LEVEL"),
        ("RESULT_MAX_BYTE", "RESULT_MAX_BYTES"),
        ("MCP_AUTH_TOKEN", "MCP_TOKEN"),
        ("MCP_BIND", "MCP_HOST"),
        ("MCP_TOKEN_FIL", "MCP_TOKEN_FILE"),
        ("MCP_ALLOWED_ORIGIN", "MCP_ALLOWED_ORIGINS"),
        ("METRICS_PRT", "METRICS_PORT"),
        ("MQTT_OAUTH_CLIENT_SECRT", "MQTT_OAUTH_CLIENT_SECRET"),
        ("MQTT_OAUTH_TOKEN_URI", "MQTT_OAUTH_TOKEN_URL"),
        ("ACCES_MODE", "ACCESS_MODE"),
        ("ACCESSMODE", "ACCESS_MODE"),
        ("PUBLSH_DENY", "PUBLISH_DENY"),
        ("SUBCRIBE_DENY", "SUBSCRIBE_DENY"),
        ("CONFRIM", "CONFIRM"),
        ("AUDT_FILE", "AUDIT_FILE"),
        ("MQT_PORT", "MQTT_PORT"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("DO_AGENT_KEY", "DO_AGENT_API_KEY"),
        ("RATE_LIMIT", "RATE_LIMIT_PER_S"),
    ],
)
def test_a_misspelling_is_told_with_the_name_meant_and_without_its_value(tmp_path: Path, name: str, meant: str) -> None:
    env_file = Path(private(tmp_path / ".env", f"{name}={SECRET}\n"))
    said = (f"{name} is not a setting of this server and is not read: did you mean {meant}?",)

    assert read(**{name: SECRET}).warnings == said
    assert Config.from_env({}, env_file=env_file).warnings == said
    assert Config.from_env({name: "1"}, env_file=env_file).warnings == said


@pytest.mark.parametrize(
    "name",
    [
        "LOG_DIR",
        "LOG_PATH",
        "LOG_COLOR",
        "ACCESS_TOKEN",
        "ACCESS_KEY",
        "BUFFER_SIZE",
        "MAX_WORKERS",
        "MQTT_TOPIC",
        "MQTT_QOS",
        "MQTT_TOPIC_PREFIX",
        "MQTT_SERVICE_HOST",
        "MCP_TIMEOUT",
        "MCP_DEBUG",
        "PATH",
        "MCP_SERVERS",
        "MCP_LOG_LEVEL",
        "METRICS_PATH",
        "OAUTH_TOKEN_URL",
    ],
)
def test_a_name_of_another_program_is_left_alone(name: str) -> None:
    assert read(**{name: "1"}).warnings == ()


ORDINARY = """
    ALL_PROXY ANDROID_HOME ANTHROPIC_API_KEY APPDATA AWS_ACCESS_KEY_ID AWS_PROFILE AWS_REGION
    AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AZURE_CLIENT_ID AZURE_CLIENT_SECRET AZURE_TENANT_ID BUILD_ID
    BUILD_NUMBER CARGO_HOME CI CI_COMMIT_SHA CI_JOB_ID CLAUDECODE CLAUDE_CONFIG_DIR CLIENT_ID CLIENT_SECRET
    COLORTERM COMPOSE_FILE COMPOSE_PROJECT_NAME COMPUTERNAME COMSPEC CONDA_DEFAULT_ENV CONDA_PREFIX
    CREDENTIALS_DIRECTORY CURL_CA_BUNDLE CURSOR_TRACE_ID DATABASE_URL DBUS_SESSION_BUS_ADDRESS DEBIAN_FRONTEND
    DEBUG DESKTOP_SESSION DISPLAY DOCKER_CERT_PATH DOCKER_CONFIG DOCKER_HOST DOCKER_TLS_VERIFY DOTNET_ROOT
    EDITOR ELECTRON_RUN_AS_NODE GITHUB_ACTIONS GITHUB_TOKEN GITHUB_WORKSPACE GITLAB_CI
    GOOGLE_APPLICATION_CREDENTIALS GOPATH GOROOT GPG_AGENT_INFO GPG_TTY GTK_MODULES HISTCONTROL HISTFILE
    HISTSIZE HOME HOST HOSTNAME HOSTTYPE HTTPS_PROXY HTTP_PROXY INIT_CWD INVOCATION_ID JAVA_HOME JENKINS_URL
    JOURNAL_STREAM KUBECONFIG KUBERNETES_PORT KUBERNETES_PORT_443_TCP KUBERNETES_PORT_443_TCP_ADDR
    KUBERNETES_PORT_443_TCP_PORT KUBERNETES_PORT_443_TCP_PROTO KUBERNETES_SERVICE_HOST KUBERNETES_SERVICE_PORT
    KUBERNETES_SERVICE_PORT_HTTPS LANG LANGUAGE LC_ALL LC_CTYPE LC_MESSAGES LC_NUMERIC LC_TIME LD_LIBRARY_PATH
    LESS LESSOPEN LISTEN_FDS LISTEN_PID LOCALAPPDATA LOGNAME LOGS_DIRECTORY LS_COLORS MAIL MANPATH
    MAX_MCP_OUTPUT_TOKENS MCP_TOOL_TIMEOUT MOSQUITTO_PORT MOSQUITTO_SERVICE_HOST MQTT_PORT_1883_TCP
    MQTT_PORT_1883_TCP_ADDR MQTT_PORT_1883_TCP_PORT MQTT_PORT_1883_TCP_PROTO NODE_ENV NODE_EXTRA_CA_CERTS
    NODE_NAME NODE_OPTIONS NODE_PATH NOTIFY_SOCKET NO_PROXY NUMBER_OF_PROCESSORS NVM_BIN NVM_DIR OLDPWD
    OPENAI_API_KEY OSTYPE PAGER PATH PATHEXT PIP_CACHE_DIR PIP_INDEX_URL POD_IP POD_NAME POD_NAMESPACE PORT
    PROCESSOR_ARCHITECTURE PROGRAMDATA PS1 PWD PYTHONHOME PYTHONIOENCODING PYTHONPATH PYTHONUNBUFFERED
    PYTHONUTF8 QT_ACCESSIBILITY REDIS_URL REQUESTS_CA_BUNDLE RUNNER_OS RUST_LOG SECRET_KEY SESSIONNAME
    SESSION_MANAGER SHELL SHLVL SSH_AGENT_PID SSH_AUTH_SOCK SSH_CLIENT SSH_CONNECTION SSH_TTY SSL_CERT_DIR
    SSL_CERT_FILE STATE_DIRECTORY SYSTEMROOT SYSTEMD_EXEC_PID TEMP TERM TERM_PROGRAM TERM_PROGRAM_VERSION TMP
    TMPDIR TZ USER USERDOMAIN USERNAME USERPROFILE UV_CACHE_DIR VIRTUAL_ENV VISUAL VSCODE_PID WAYLAND_DISPLAY
    WEB_CONCURRENCY WINDIR WINDOWID WSLENV WSL_DISTRO_NAME XAUTHORITY XDG_CACHE_HOME XDG_CONFIG_DIRS
    XDG_CONFIG_HOME XDG_CURRENT_DESKTOP XDG_DATA_DIRS XDG_RUNTIME_DIR XDG_SEAT XDG_SESSION_ID XDG_SESSION_TYPE
    XDG_STATE_HOME _ all_proxy container http_proxy https_proxy no_proxy npm_config_cache npm_config_loglevel
    npm_config_registry npm_execpath npm_lifecycle_event npm_node_execpath npm_package_name npm_package_version
"""


def test_an_ordinary_environment_gives_no_warning() -> None:
    names = ORDINARY.split()

    assert len(names) > 150
    assert read(**dict.fromkeys(names, "1")).warnings == ()


def test_what_is_unknown_in_the_env_file_is_listed_and_none_of_it_may_be_a_secret(tmp_path: Path) -> None:
    wrapped = f"{SECRET}=\nJBSWY3DPEHPK3PXP=\n"  # the last line of a secret in base64
    env_file = Path(private(tmp_path / ".env", f"COMPOSE_FILE=x\nPUBLSH_DENY=#\nMAX_RATE=1\n{wrapped}"))

    assert Config.from_env({}, env_file=env_file).warnings == (
        "PUBLSH_DENY is not a setting of this server and is not read: did you mean PUBLISH_DENY?",
        f"{env_file}: no settings of this server, and not read: 'COMPOSE_FILE', 'MAX_RATE' and 2 more.",
    )
    private(env_file, "".join(f"OTHER_{letter}=1\n" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    assert Config.from_env({}, env_file=env_file).warnings[0].endswith("'OTHER_T' and 6 more.")


def test_what_the_older_servers_page_calls_otherwise_is_known() -> None:
    page = (EXAMPLE.parent / "docs" / "moving.md").read_text(encoding="utf-8").partition("## Variable by variable")[2]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|", page, re.MULTILINE)
    older = {name: here for names, here in rows for name in re.findall(r"`([A-Z_]+)`", names)}
    others = {name: here for name, here in older.items() if here != "the same"}

    assert set(older) - set(others) <= set(SETTINGS)
    assert {"MQTT_CERT_FILE", "MQTT_KEY_FILE", "CERT_PATH"} <= set(others)
    for name, here in others.items():
        (warning,) = read(**{name: "x"}).warnings
        meant = warning.partition("did you mean ")[2].removesuffix("?")
        assert f"`{meant}`" in here


@pytest.mark.parametrize("name", sorted(set(SETTINGS) - set(FROM_FILE)))
def test_a_file_for_what_is_no_secret_is_told(name: str) -> None:
    assert read(**{f"{name}_FILE": "x"}).warnings == (
        f"{name}_FILE is not read: only {', '.join(FROM_FILE)} can come from a file. Set {name}.",
    )


@pytest.mark.parametrize("text", ["${PLANT_PASSWORD}", "${user_config.mqtt_password}"])
def test_a_placeholder_that_nobody_filled_in_is_told(text: str) -> None:
    assert any("MQTT_PASSWORD is a placeholder" in each for each in read(MQTT_USER="me", MQTT_PASSWORD=text).warnings)
    assert read(MQTT_USER="me", MQTT_PASSWORD="a${b}").warnings == ()


# The .env file


def test_the_env_file_is_read_literally_and_the_environment_wins(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    private(
        env_file,
        "\ufeff# as Notepad writes it\r\n"
        "export MQTT_BROKER=broker\r\n"
        "MQTT_USER='plant 7' # why\r\n"
        "MQTT_PASSWORD=pa$$${HOME}#word\r\n"
        "MQTT_PORT=1884\r\n"
        "MQTT_USE_TLS=true\r\n",
    )

    settings = Config.from_env({"HOME": "/home/x", "MQTT_PORT": "1885"}, env_file=env_file)

    assert settings.broker.url == "mqtts://broker:1885"
    assert settings.broker.user == "plant 7"
    assert known() == {"pa$$${HOME}#word"}
    assert settings.warnings == ()


def test_only_the_usual_env_file_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env_file = tmp_path / ".env"
    said = f"{env_file}: No such file or directory; expected a readable file of NAME=value lines."

    assert problems({}, env_file) == [said]
    with pytest.raises(ConfigError, match="No such file"):
        config.tokens_file({}, env_file=env_file)
    monkeypatch.setattr(config, "ENV_FILE", env_file)
    assert Config.from_env({}, env_file=env_file).broker.host == "localhost"
    assert config.tokens_file({}, env_file=env_file) is None


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("MQTT_USER plant\nMQTT_PORT=1884\n", [1]),
        ("\n\n# comment\n\nMQTT_PASSWORD: {secret}\nMQTT_PORT=1884\n", [5]),
        ("MQTT_USER\nMQTT_PORT=1884\n={secret}\n", [1, 3]),
        ("MQTT_PORT=1884\r\n\r\nMQTT_PASSWORD='{secret}\r\n", [3]),
        ("MQTT_PORT=1884\n# MQTT_USER\n\n", []),
    ],
)
def test_a_line_that_cannot_be_read_is_told_by_its_number_and_not_shown(
    tmp_path: Path, text: str, lines: list[int]
) -> None:
    env_file = Path(private(tmp_path / ".env", text.format(secret=SECRET)))

    settings = Config.from_env({}, env_file=env_file)

    assert settings.broker.port == 1884
    assert settings.warnings == tuple(
        f"{env_file}, line {line}: this is not NAME=value and was left out." for line in lines
    )


def test_a_setting_that_is_given_twice_is_told(tmp_path: Path) -> None:
    env_file = Path(private(tmp_path / ".env", "MQTT_PORT=1884\nOTHER=1\nOTHER=2\n\nMQTT_PORT=1885\n"))

    settings = Config.from_env({}, env_file=env_file)

    assert settings.broker.port == 1885
    assert settings.warnings[0] == f"{env_file}, line 5: MQTT_PORT was there before, and only its last line counts."
    assert "MQTT_PORT" not in "".join(settings.warnings[1:])


@pytest.mark.parametrize("name", ["MQTT_CA_CERT", "AUDIT_FILE", "MQTT_PASSWORD_FILE"])
def test_a_path_that_double_quotes_have_broken_is_told_with_the_way_out(tmp_path: Path, name: str) -> None:
    env_file = Path(private(tmp_path / ".env", f'{name}="C:\\new\\file"\n'))

    (problem,) = problems({}, env_file)

    assert name in problem
    assert "single quotes" in problem


def test_a_path_in_the_env_file_starts_at_the_folder_of_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here, elsewhere):
        folder.mkdir()
        private(folder / "password", f"{SECRET} {folder.name}")
        private(folder / "ca.pem", CERT_PEM)
    private(
        here / ".env", f"MQTT_PASSWORD_FILE=password\nMQTT_CA_CERT= ca.pem \nAUDIT_FILE={tmp_path}/a\nLOG_FILE=~/l\n"
    )
    monkeypatch.chdir(elsewhere)

    for env_file in (here / ".env", Path("../here/.env")):
        settings = Config.from_env({"HOME": "/home/x"}, env_file=env_file)
        assert settings.broker.password == SecretStr(f"{SECRET} here")
        assert settings.broker.tls is not None
        assert settings.broker.tls.ca_cert is not None
        assert settings.broker.tls.ca_cert.is_absolute()
        assert settings.broker.tls.ca_cert.samefile(here / "ca.pem")
        assert settings.audit.file == tmp_path / "a"
        assert settings.logs.file == Path("~/l").expanduser()
    by_environment = Config.from_env({"MQTT_PASSWORD_FILE": "password"}, env_file=None)
    assert by_environment.broker.password == SecretStr(f"{SECRET} elsewhere")


def test_an_env_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    env_file = Path(private(tmp_path / ".env", b"MQTT_USER=M\xfcller\n"))

    assert problems({}, env_file) == [f"{env_file}: it is not UTF-8; expected a readable file of NAME=value lines."]


def test_an_env_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert problems({}, tmp_path) == [f"{tmp_path}: Is a directory; expected a readable file of NAME=value lines."]


EXAMPLE = Path(inspect.getfile(config)).with_name(".env.example")


def test_the_example_lists_exactly_the_settings_each_below_a_line_of_comment() -> None:
    commented = re.findall(r"^# .+\n([A-Z_]+)=", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)

    assert commented == list(dotenv_values(EXAMPLE)) == list(SETTINGS)


def test_the_example_as_it_is_changes_nothing_and_warns_of_nothing() -> None:
    settings = Config.from_env({}, env_file=EXAMPLE)

    assert settings == Config(broker=BrokerConfig(client_id=settings.broker.client_id))


# Whatever the variables hold

PLAUSIBLE = [
    "0", "1", "true", "off", "5", "1.2", "tcp", "websockets", "/mqtt", "~", "/", ".", "embedded", "::1", "[::1]:1",
    "mqtts://h", "ws://u@h/p", "h:1883", "64 MiB", "ALL", "%00", "a\0b", "\ud800",
]  # fmt: skip
TEXT = st.one_of(st.sampled_from(PLAUSIBLE), st.text(max_size=20))
A_SECRET = st.text(max_size=20).map(lambda tail: SECRET + tail)
ADDRESSES_WITH_A_SECRET = st.tuples(
    st.sampled_from(["mqtt://u:{}@h", "mqtt://u:{}", "u:{}@", "x://:{}@h:0", "ws://h/?{}", "mqtt://u:{}@h:1/x"]),
    A_SECRET,
).map(lambda parts: parts[0].format(parts[1]))
ENVIRONMENTS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys((*SETTINGS, *(f"{name}_FILE" for name in FROM_FILE)), TEXT)
    | {name: st.one_of(A_SECRET, st.just("")) for name in SECRETS}
    | {"MQTT_BROKER": st.one_of(TEXT, ADDRESSES_WITH_A_SECRET)},
)


def outcome(environment: dict[str, str], env_file: Path | None) -> Config | ConfigError:
    try:
        return Config.from_env(environment, env_file=env_file)
    except ConfigError as exc:
        return exc


@how(deadline=None)  # a busy machine is no failure
@given(ENVIRONMENTS)
def test_any_environment_ends_in_settings_or_a_config_error_and_shows_no_secret(environment: dict[str, str]) -> None:
    ended = outcome(environment, None)

    assert SECRET not in repr(ended)
    assert SECRET not in str(ended)
    if isinstance(ended, ConfigError):
        assert ended.__context__ is None  # which a traceback would show
        assert all(line.isprintable() for line in str(ended).split("\n"))
    else:
        assert re.fullmatch(r"(mqtts?|wss?)://\S+:\d+\S*", ended.broker.url)


@how(deadline=None)  # a busy machine is no failure
@given(st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass")) | st.binary(max_size=200))
def test_any_env_file_ends_in_settings_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    env_file = tmp_path_factory.getbasetemp() / "any.env"
    env_file.write_bytes(content)

    assert outcome({}, env_file)

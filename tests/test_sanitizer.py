"""What the sanitizer hides and what it leaves, rule by rule of the policy; each row names the boundary it stands on.

In the tables `§` is where the secret goes, made up anew for every run, and where the marker must be afterwards.
"""

import base64
import html
import json
import re
import secrets
import shlex
import string
import time
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import sanitizer
from sanitizer import (
    CERTIFICATE_MARKER,
    CREDENTIALS,
    MARKER,
    PATH_MARKER,
    PLACES,
    Pattern,
    hide_secrets,
    make_sanitizer,
    sanitize,
)

SECRET = f"Xq7{secrets.token_hex(6)}"
"""Letters and digits, as most passwords are; what is special about a value is the business of its own tests."""

HIDDEN = {
    # Rule 2: forms.
    "k=v": "password=§",
    "k: v": "password: §",
    "k : v": "Password : §",
    "k:v": "password:§",
    "JSON": '{"user": "bob", "password": "§"}',
    "JSON without spaces": '{"user":"bob","password":"§"}',
    "JSON in a JSON string": '{"msg": "{\\"password\\": \\"§\\"}"}',
    "JSON in a JSON string in a JSON string": '{"a": "{\\"b\\": \\"{\\\\\\"token\\\\\\": \\\\\\"§\\\\\\"}\\"}"}',
    "JSON in a JSON string in prose": 'got "{\\"password\\": \\"§\\"}" from h',
    "JSON, name and value apart": '{"name": "DB_PASSWORD", "value": "§"}',
    "JSON, arguments": '["--mqtt-password", "§", "--mqtt-port", "1883"]',
    "JSON, header pair": '[["Authorization", "Bearer §"], ["Host", "h"]]',
    "JSON, list": '{"passwords": ["§"], "n": 1}',
    "repr of a dict": "{'password': '§', 'user': 'bob'}",
    "repr of a dict of bytes": "{b'password': b'§'}",
    "kwargs": "Client(host='h', password='§', port=1883)",
    "kwargs, bare": "Client(host=h, password=§, port=1883)",
    "annotated assignment": 'password: str = "§"',
    "subscript": 'config["password"] = "§"',
    "SecretStr": "password=SecretStr('§')",
    "YAML": "mqtt:\n  password: §\n  port: 1883",
    "YAML block": "token: |\n  §\nport: 1",
    "TOML": 'password = "§"',
    ".env": "MQTT_PASSWORD=§",
    ".env, exported and quoted": 'export MQTT_PASSWORD="§"',
    "Ruby and PHP": "'password' => '§'",
    "Go": 'token := "§"',
    "Go, typed": 'var token string = "§"',
    "make": 'TOKEN ?= "§"',
    "XML": "<password>§</password>",
    "HTML escaped": "password=&quot;§&quot;",
    "percent-encoded": "%22password%22%3A%22§%22",
    "markdown": "**Password:** §",
    "header": "X-Api-Key: §",
    "header, bearer": "Authorization: Bearer §",
    "header, basic": "Authorization: Basic §",
    "headers of httpx": "[(b'Host', b'h'), (b'Authorization', b'Bearer §')]",
    "cookie": "Cookie: session=§; theme=dark",
    "curl -H": 'curl -H "Authorization: Bearer §" https://h/x',
    "curl -H, single quotes": "curl -H 'X-Api-Key: §' https://h/x",
    "curl -u": "curl -u bob:§ https://h/x",
    "curl --user": "curl --user 'bob:§' https://h/x",
    "flag": "prog --password § --host h",
    "flag with =": "prog --mqtt-password=§ --host h",
    "flag, quoted": "prog --password '§' --host h",
    "mosquitto -P": "mosquitto_sub -h h -u bob -P § -t x",
    "query": "https://h/p?token=§&x=1",
    "form": "user=bob&password=§&x=1",
    "prose, is": "the password is §",
    "prose, was": "The password was '§'.",
    "prose, for": "password for bob is §",
    "prose, spaces in the key": "the api key: §",
    "prose, no verb": "login failed with password §",
    "LoT": 'WITH PASSWORD "§"',
    "LoT, other keys": 'WITH CLIENT_CERT_PASS "§"',
    "LoT, secret": 'KEEP SECRET "DB" WITH "§"',
    "Coreflux user": "-addUser bob §",
    "Coreflux secret": "-setSecret DB=§",
    "mosquitto.conf": "remote_username bob\nremote_password §",
    "CONNECT packet": "CONNECT(client_id='c', username='u', password=b'§')",
    "CONNECT packet, Wireshark": "User Name: bob\nPassword Length: 15\nPassword: §",
    "call in a traceback": '    client.connect("h", password="§")',
    "call with positions": '    client.username_pw_set("bob", "§")',
    "several on a line": "password=§ token=§, api_key=§; secret: §",
    "not closed": 'password: "§',
    "number": "password=73§",
    # Rule 2: names.
    "camel case": "mqttPassword: §",
    "upper case": "DO_AGENT_API_KEY=§",
    "client secret": "client_secret: §",
    "refresh token": "refresh_token: §",
    "access token": "access-token: §",
    "passphrase": "passphrase: §",
    "pwd": "pwd=§",
    "pass, apart": "db_pass=§",
    "glued": "PGPASSWORD=§ psql",
    "numbered": "password2=§",
    "private key": "private_key: §",
    # Rule 3.
    "URL": "mqtt://bob:§@broker:1883/x?y=1",
    "URL without a user": "redis://:§@h:6379/0",
    "URL, @ in the password": "mqtts://bob:a@§@broker:8883",
    "URL, / in the password": "mqtts://bob:a/§@broker:8883",
    "URL, mail address as user": "smtp://bob@example.com:§@h",
    "URL, several hosts": "postgres://u:§@h1,h2/db",
    "URL, + in the scheme": "mongodb+srv://u:§@c.example.net/db?w=majority",
    "URLs, comma between": "mqtt://u:§@h1,mqtt://u:§@h2",
    "URL, JSON with escaped slashes": '{"u": "mqtt:\\/\\/bob:§@h"}',
}

STAYS = {
    # Rule 7: nothing to hide.
    "None": "password=None",
    "null": '{"password": null, "token": ""}',
    "boolean": "secret: true",
    "empty": "password=",
    "empty in a form": "password=&user=bob",
    "stars": "password: ********",
    "stars of a SecretStr": "password=SecretStr('**********')",
    "variable": "password=${MQTT_PASSWORD}",
    "shell variable": "--password $MQTT_PASSWORD",
    "placeholder": "password: <not set>",
    "format": "password=%s",
    "f-string": 'f"bad password: {password}"',
    "concatenation": 'print("password=" + password)',
    "marker": 'password: [REDACTED], "token": "[REDACTED]"',
    "path marker": "password_file=[FILE PATH REDACTED]",
    "code: same name": "password=password",
    "code: attribute": "api_key=self._api_key",
    "code: setting": "password=config.mqtt_password",
    "code: call": "token=get_token()",
    "code: environment": 'api_key=os.environ["API_KEY"]',
    "code: annotation": "def f(password: str, token: str | None = None) -> None:",
    "LoT: name of a secret": 'WITH PASSWORD GET SECRET "PLANT_DB"',
    "LoT: placeholder": "{secret.NAME} and {env.X}",
    "prompt": "Enter password: ",
    # Rule 8: the last word decides.
    "token count": "token_count=5",
    "max tokens": "max_tokens=4096",
    "password policy": "password_policy: strict",
    "rotation days": "secret_rotation_days=30",
    "is secret": "is_secret: yes it is",
    "working directory": "PWD=/app",
    "GPIO pin": "pin: 13",
    "tokens used": "tokens used: 512",
    "password reset": "password reset requested",
    "bearer of": "the bearer of this letter",
    "bearer scheme": "Bearer authentication is required",
    "password length": "Password Length: 7",
    "camel case goes on": "passwordHash: x1y2z3",
    "dotted goes on": "password.length=12",
    "value of another key": "grant_type=password&x=1",
    "token type": "token_type: bearer",
    "remark": "password: must be at least 8 characters",
    "remark in prose": "the password is not set",
    "status": "token: expired",
    "parser": "Unexpected token '}' at 3",
    "lark": "Unexpected token Token('RPAR', ')') at line 1",
    "list of names": '["password", "token", "secret"]',
    "name of a Kubernetes secret": 'secret "regcred" not found',
    "other words": "compass: north, bypass=1, author: bob, monkey: banana, secretary: Ann, tokenizer=fast",
    "plain keys": "primary_key=id, routing_key=plant/line, key: value",
    "uid and gid": "docker run -u 1000:1000 image",
    "port": "scp -P 2222 a b",
    "paho's flags": "Sending CONNECT (u1, p1, wr0, wq0, wf0, c1, k60) client_id=b'x'",
    "basic English": "Basic Settings page",
    # Rule 3: no credentials.
    "URL": "mqtt://broker:1883/x",
    "URL with a user": "mqtt://bob@broker:1883/x",
    "URL, @ in the path": "https://h:8883/p@x",
    "URL and an address": "mqtt://h:1883,bob@example.com",
    "git": "git@github.com:bob/x.git",
    "mail": "bob@example.com wrote to ann@example.com",
    # Rule 9: random-looking, without context.
    "topic": "plant/line1/cell4/robot2/axis3/temperature/actual/value/filtered/celsius/v2/9f86d081",
    "UUID": "3f2a9c7b-1234-4abc-9def-0123456789ab",
    "git SHA": "commit da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "digest of a key": "cache_key: da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "base64": "payload SGVsbG8gV29ybGQhIFRoaXMgaXMgYSBwYXlsb2FkIG9mIGJhc2U2NA==",
    "base64 of JSON": "payload eyJ0ZW1wZXJhdHVyZSI6MjEuNSwidW5pdCI6IkMifQ==",
    "timestamp": "2024-11-21T11:42:13.512+01:00",
    "address": "fe80::1ff:fe23:4567:890a 192.168.0.17:1883",
    "version": "mosquitto 2.0.18, paho-mqtt==2.2.0",
    # Rule 6: no key material.
    "source": 'File "/app/secrets/loader.py", line 3, in load',
    "log": "/var/log/mosquitto/mosquitto.log",
    "configuration": "/etc/mosquitto/mosquitto.conf",
    "data": "/data/readings.csv",
    "relative source": "src/tokens.py:12",
    "topic with secrets": "plant/secrets/door",
    "attribute": "msg.key and {payload.json.key}",
    "URL of a certificate": "https://example.com:8443/certs/ca.pem",
    "extension alone": "a .pem file, *.key files",
    "system topic": "$SYS/broker/uptime",
}

PATHS = {
    "key": "/etc/mosquitto/certs/server.key",
    "certificate": "/etc/ssl/ca.crt",
    "key store": "/opt/keys/store.jks",
    "docker secret": "/run/secrets/mqtt_password",
    "mounted secret": "/var/run/secrets/kubernetes.io/serviceaccount/token",
    "secrets directory": "/home/bob/app/secrets/db.txt",
    "ssh": "~/.ssh/config",
    "ssh key": "/home/bob/keys/id_ed25519",
    "aws": "${HOME}/.aws/credentials",
    "kube": "~/.kube/config",
    "netrc": "~/.netrc",
    "pgpass": "/root/.pgpass",
    "docker": "/home/bob/.docker/config.json",
    "gcloud": "~/.config/gcloud/application_default_credentials.json",
    "mosquitto passwords": "/etc/mosquitto/passwd",
    "private": "/etc/ssl/private/snakeoil",
    "relative": "certs/client.key",
    "file name": "client.pem",
    "Windows": r"C:\Users\bob\.ssh\id_rsa",
    "Windows, spaces": r"C:\Program Files\mosquitto\certs\client.key",
    "Windows, slashes": "D:/certs/ca.pem",
    "UNC": r"\\fileserver\share\certs\client.pfx",
    "non-ASCII": "/etc/ssl/ünï/x.pem",
}

AROUND_A_PATH = ["§", "open §: denied", "'§'", "cafile=§, x", '{"p": "§"}', "PosixPath('§')", "see §.", "(§)"]

AWKWARD = [
    "with space",
    'dou"ble',
    "sin'gle",
    "com,ma;semi",
    "at@sign:colon/slash",
    "per%20cent&amp",
    "back\\slash",
    "br{ac}e[x]",
    "= equals",
    "ünïcödé €",
    "12345678",
]

WRITTEN: dict[str, tuple[str, Callable[[str], str]]] = {
    "JSON": ('{"password": "§", "x": 1}', lambda value: json.dumps(value)[1:-1]),
    "JSON, not ASCII": ('{"password":"§","x":1}', lambda value: json.dumps(value, ensure_ascii=False)[1:-1]),
    "JSON in prose": ('sent {"password": "§", "x": 1} to h', lambda value: json.dumps(value)[1:-1]),
    "JSON in a string": (
        '{"m": "{\\"password\\": \\"§\\"}"}',
        lambda value: json.dumps(json.dumps(value)[1:-1])[1:-1],
    ),
    "JSON in a string in prose": (
        'sent "{\\"password\\": \\"§\\", \\"x\\": 1}" to h',
        lambda value: json.dumps(json.dumps(value)[1:-1])[1:-1],
    ),
    "repr": ("{'password': §, 'x': 1}", repr),
    "kwargs": ("f(password=§, x=1)", repr),
    "bytes": ("f(password=§, x=1)", lambda value: repr(value.encode())),
    "shell": ("prog --password §; x", lambda value: f'"{value}"' if "'" in value else shlex.quote(f"{value} ")),
    "query": ("https://h/?password=§&x=1#y", lambda value: quote(value, safe="")),
    "URL": ("mqtt://bob:§@h:1883/p", lambda value: quote(value, safe="")),
}


def filled(template: str, value: str) -> str:
    return template.replace("§", value)


@pytest.mark.parametrize("template", HIDDEN.values(), ids=HIDDEN.keys())
def test_the_value_goes_and_everything_around_it_stays(template: str) -> None:
    expected = re.sub(r"(?:a[@/]|73)?§", lambda _: MARKER, template)

    assert sanitize(filled(template, SECRET)) == expected


@pytest.mark.parametrize("text", STAYS.values(), ids=STAYS.keys())
def test_what_is_no_secret_stays(text: str) -> None:
    assert sanitize(text) == text


@pytest.mark.parametrize("text", STAYS.values(), ids=STAYS.keys())
def test_what_is_no_secret_stays_in_a_log_line(text: str) -> None:
    line = f"2024-11-21 11:42:13,512 INFO plant.mqtt [worker-1] {text}"

    assert sanitize(line) == line


@pytest.mark.parametrize("around", AROUND_A_PATH)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_the_path_of_key_material_goes(path: str, around: str) -> None:
    written = json.dumps(path, ensure_ascii=False)[1:-1] if around.startswith("{") else path

    assert sanitize(filled(around, written)) == filled(around, PATH_MARKER)


@pytest.mark.parametrize(("template", "write"), WRITTEN.values(), ids=WRITTEN.keys())
@pytest.mark.parametrize("value", AWKWARD)
def test_an_awkward_value_goes_whole(value: str, template: str, write: Callable[[str], str]) -> None:
    written = write(value)
    marked = re.sub(r"""^(b?["'])?.*?(["'])?$""", rf"\1{MARKER}\2", written) if written[-1] in "\"'" else MARKER

    assert sanitize(filled(template, written)) == filled(template, marked)


def test_a_number_becomes_a_string() -> None:
    assert sanitize('{"password": 12345, "port": 1883}') == '{"password": "[REDACTED]", "port": 1883}'


@pytest.mark.parametrize("row", [*CREDENTIALS, *PLACES], ids=lambda row: row.name)
def test_every_row_has_a_hit_and_a_look_alike(row: Pattern) -> None:
    assert re.search(row.expression, row.hit)
    assert row.miss
    assert row.miss != row.hit
    assert not re.search(row.expression, row.miss)


@pytest.mark.parametrize("row", CREDENTIALS, ids=lambda row: row.name)
@pytest.mark.parametrize("around", ["§", "x §, y", '"§"', "k=§&x", "a\\n§\\n", "a%20§", "(§)", "é§", "<§>"])
def test_a_credential_goes_wherever_it_stands(row: Pattern, around: str) -> None:
    assert sanitize(filled(around, row.hit)) == filled(around, MARKER)
    assert hide_secrets(filled(around, row.hit)) == filled(around, MARKER)


@pytest.mark.parametrize("row", CREDENTIALS, ids=lambda row: row.name)
@pytest.mark.parametrize("around", ["§", "x §, y", "topic/§/state"])
def test_a_look_alike_of_a_credential_stays(row: Pattern, around: str) -> None:
    assert sanitize(filled(around, row.miss)) == filled(around, row.miss)


@pytest.mark.parametrize("row", CREDENTIALS, ids=lambda row: row.name)
def test_a_credential_inside_a_longer_word_stays(row: Pattern) -> None:
    assert hide_secrets(f"word{row.hit}") == f"word{row.hit}"


@pytest.mark.parametrize("row", PLACES, ids=lambda row: row.name)
def test_a_place_is_redacted_and_its_look_alike_is_not(row: Pattern) -> None:
    assert MARKER in sanitize(f"x {row.hit} y")
    assert sanitize(f"x {row.miss} y") == f"x {row.miss} y"


def pem(label: str = "RSA PRIVATE KEY") -> str:
    body = base64.encodebytes(secrets.token_bytes(300)).decode()
    return f"-----BEGIN {label}-----\n{body}-----END {label}-----"


def one_line(text: str) -> str:
    return text.replace("\n", "\\n")


@pytest.mark.parametrize("around", ["§", "x\n§\ny", '{"k": "§", "n": 1}', "private_key: |\n  §\nport: 1", "key='§', x"])
@pytest.mark.parametrize("write", [str, one_line, lambda text: one_line(text).replace("\\", "\\\\")])
def test_a_pem_block_goes_whole(write: Callable[[str], str], around: str) -> None:
    assert sanitize(filled(around, write(pem()))) == filled(around, MARKER)
    assert sanitize(filled(around, write(pem("CERTIFICATE")))) == filled(around, CERTIFICATE_MARKER)


@pytest.mark.parametrize("write", [str, one_line])
@pytest.mark.parametrize("lines", [1, 2, 4])
def test_a_pem_block_cut_off_goes_and_what_follows_stays(lines: int, write: Callable[[str], str]) -> None:
    cut = write("\n".join(pem().split("\n")[:lines]))

    assert sanitize(f"read {cut}") == f"read {MARKER}"
    assert sanitize(f"read {cut}\nINFO connected to broker") == f"read {MARKER}\nINFO connected to broker"
    assert sanitize(f'{{"k": "{cut}", "n": "x"}}') == f'{{"k": "{MARKER}", "n": "x"}}'


def test_two_pem_blocks_are_two() -> None:
    assert sanitize(f"{pem('CERTIFICATE')}\n{pem()}\nend") == f"{CERTIFICATE_MARKER}\n{MARKER}\nend"


KNOWN = st.one_of(
    st.text(st.characters(exclude_categories=["C", "Z"]), min_size=6, max_size=40),
    st.text(string.ascii_letters + string.digits + "+/=_-", min_size=6, max_size=80),
    st.text("\"'\\&%<>/ +aZ9", min_size=6, max_size=30).filter(lambda text: len(text.strip()) >= 6),
).filter(lambda text: text not in MARKER + PATH_MARKER)  # a piece of a marker is in every text that hides something

ENCODERS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "percent": quote,
    "percent, all": lambda value: quote(value, safe=""),
    "percent, +": quote_plus,
    "percent, lower case": lambda value: re.sub("%..", lambda found: found[0].lower(), quote(value, safe="")),
    "percent, twice": lambda value: quote(quote(value, safe=""), safe=""),
    "percent, every byte": lambda value: "".join(f"%{byte:02X}" for byte in value.encode()),
    "JSON": lambda value: json.dumps(value)[1:-1],
    "JSON, not ASCII": lambda value: json.dumps(value, ensure_ascii=False)[1:-1],
    "JSON in JSON": lambda value: json.dumps(json.dumps(value))[3:-3],
    "repr": lambda value: repr(value)[1:-1],
    "repr of bytes": lambda value: repr(value.encode())[2:-1],
    "ascii": lambda value: ascii(value)[1:-1],
    "HTML": html.escape,
    "HTML, twice": lambda value: html.escape(html.escape(value)),
    "HTML, numbers": lambda value: html.escape(value).encode("ascii", "xmlcharrefreplace").decode(),
    "hex": lambda value: value.encode().hex(),
    "hex, upper case": lambda value: value.encode().hex().upper(),
    "hex, spaces": lambda value: value.encode().hex(" "),
    "hex, colons": lambda value: value.encode().hex(":"),
    "hex, escaped": lambda value: "".join(f"\\x{byte:02x}" for byte in value.encode()),
}


@pytest.mark.parametrize("encode", ENCODERS.values(), ids=ENCODERS.keys())
@given(value=KNOWN)
@settings(deadline=None, max_examples=30)
def test_a_known_value_goes_in_every_encoding(value: str, encode: Callable[[str], str]) -> None:
    written = encode(value)

    assert written not in make_sanitizer([value])(f"x {written}, y")


@pytest.mark.parametrize("lead", [0, 1, 2, 3])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@given(value=KNOWN)
@settings(deadline=None, max_examples=30)
def test_a_known_value_goes_in_base64_at_every_alignment(
    value: str, encode: Callable[[bytes], bytes], lead: int
) -> None:
    written = encode(b"abc"[:lead] + value.encode() + b"tail").decode()

    left = make_sanitizer([value])(f"x {written} y").replace(MARKER, "\0")

    assert "\0" in left
    assert len(left) < 16 + lead


@given(value=KNOWN, number=st.integers(10**5, 10**12))
@settings(deadline=None)
def test_json_with_a_known_value_stays_json(value: str, number: int) -> None:
    document = {"a": value, value: [f"x{value}y", 1.5, None], "n": number, "in": json.dumps({"b": value})}

    for ensure_ascii in (True, False):
        text = make_sanitizer([value, str(number)])(json.dumps(document, ensure_ascii=ensure_ascii))
        assert value not in str(json.loads(text))
        assert json.loads(text)["n"] == MARKER


@pytest.mark.parametrize("value", ["abc", "True", "none", "null", "  a ", ""])
def test_a_known_value_that_is_too_common_is_not_hunted(value: str) -> None:
    text = f"abc is True, none of null   a  {value}"

    assert make_sanitizer([value])(text) == text


def test_a_known_value_never_breaks_a_marker() -> None:
    redact = make_sanitizer(["REDACTED", "FILE PATH"])

    assert redact(f"{MARKER} {PATH_MARKER} REDACTED") == f"{MARKER} {PATH_MARKER} {MARKER}"


@pytest.mark.parametrize("value", ['{"type": "account", "id": 7}', '"in quotes"', '"  \\" " '])
def test_a_known_value_that_is_json_goes_whole(value: str) -> None:
    redact = make_sanitizer([value])

    assert redact(value) == MARKER
    assert json.loads(redact(json.dumps({"a": value}))) == {"a": MARKER}


def test_of_two_known_values_the_longer_goes_first() -> None:
    assert make_sanitizer(["plain", "plainer-still"])("a plainer-still b plain c") == f"a {MARKER} b {MARKER} c"


def test_sanitize_knows_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitizer, "_process", sanitizer._KnownValues())  # noqa: SLF001
    sanitizer.add_known("plain-words")

    assert sanitize("some plain-words here") == "some plain-words here"


def test_a_value_learned_later_is_hidden_by_sanitizers_made_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitizer, "_process", sanitizer._KnownValues())  # noqa: SLF001
    redact = make_sanitizer(["first-words"])

    sanitizer.add_known("later-words")

    assert redact("first-words later-words") == f"{MARKER} {MARKER}"
    assert hide_secrets("first-words later-words") == f"first-words {MARKER}"


ANSWERS = {
    "keyed payload": '{"password": "hunter2", "token": 5}',
    "LoT": 'DEFINE ROUTE R WITH TYPE MQTT_BRIDGE\n    WITH PASSWORD "hunter2"',
    "path": "/etc/ssl/private/server.key",
    "URL": "mqtt://bob:hunter2@h",
    "topic": "plant/token/secret/password",
    "marker": MARKER,
    "binary": "\x00\ud800\uffff",
    "base64": base64.b64encode(bytes(range(256))).decode(),
    "hex": bytes(range(256)).hex(),
}


@pytest.mark.parametrize("text", ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_without_a_known_value_or_a_credential_stays(text: str) -> None:
    assert hide_secrets(text) == text


def test_an_answer_loses_private_keys_and_certificates() -> None:
    assert hide_secrets(f"a\n{pem()}\n{pem('CERTIFICATE')}") == f"a\n{MARKER}\n{CERTIFICATE_MARKER}"


FRAGMENTS = st.sampled_from(
    [
        *(
            "password",
            "api_key",
            "token",
            "secret",
            "key",
            "Authorization",
            "--password",
            "-P",
            "curl -u b:",
            "Bearer ",
        ),
        *(
            "is",
            "for",
            "=",
            ":",
            "=>",
            " ",
            "\t",
            "\n",
            '"',
            "'",
            '\\"',
            '\\\\\\"',
            "`",
            "\\",
            "\\n",
            "\\\\",
            ",",
            ";",
            "&",
        ),
        *(
            "|",
            "(",
            ")",
            "[",
            "]",
            "{",
            "}",
            "<",
            ">",
            "@",
            "/",
            "mqtt://",
            "b:",
            "h:1883",
            "hunter2",
            "None",
            "****",
            "${X}",
        ),
        *(MARKER, PATH_MARKER, CERTIFICATE_MARKER, "REDACTED]", "self.x", "get()", "12345", "/etc/ssl/private/x.key"),
        *(
            "C:\\Users\\b\\.ssh\\id_rsa",
            "client.pem",
            "-----BEGIN PRIVATE KEY-----",
            "-----END PRIVATE KEY-----",
            "&quot;",
        ),
        *(row.hit for row in (*CREDENTIALS, *PLACES)),
        *(
            "%22",
            "%3D",
            "value",
            "é",
            "\ud800",
            "İ",
            ".",
            "!",
            "-",
            "_",
            "*",
            "%s",
            "required",
            "<password>",
            "</password>",
        ),
    ]
)
HOSTILE = st.lists(st.one_of(FRAGMENTS, st.text(max_size=4)), max_size=14).map("".join)


@given(HOSTILE)
@settings(deadline=None, max_examples=500)
@example("\ud800password=\udfff")
def test_a_second_pass_changes_nothing(text: str) -> None:
    once = sanitize(text)

    assert sanitize(once) == once
    assert hide_secrets(hide_secrets(text)) == hide_secrets(text)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), HOSTILE),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(HOSTILE, inner, max_size=3),
        inner.map(json.dumps),
    ),
    max_leaves=8,
)


@given(JSON, st.booleans(), st.sampled_from([None, 2]))
@settings(deadline=None, max_examples=300)
def test_json_stays_json_of_the_same_shape(value: object, ensure_ascii: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    redacted = json.loads(sanitize(text))

    assert shape(redacted) == shape(value)


def shape(value: object) -> object:
    """What redaction must leave of a JSON value: its structure, with every scalar alike."""
    if isinstance(value, dict):
        return len(value) if len(set(map(sanitize, value))) < len(value) else [shape(inner) for inner in value.values()]
    return [shape(inner) for inner in value] if isinstance(value, list) else None


BENIGN = st.lists(
    st.one_of(
        st.from_regex(r"(?a)[a-z]{1,8}(/[a-z0-9]{1,8}){1,12}", fullmatch=True),
        st.uuids().map(str),
        st.binary(max_size=60).map(bytes.hex),
        st.binary(max_size=60).map(lambda data: base64.b64encode(data).decode()),
        st.datetimes().map(str),
        st.floats().map(str),
        st.sampled_from(
            ["connected", "to", "broker", "qos=1", "retain=False", "elapsed_ms:", "1.2", "(45 bytes)", "#", "+"]
        ),
    ),
    max_size=12,
).map(" ".join)


@given(BENIGN)
@settings(deadline=None, max_examples=300)
def test_ordinary_log_text_stays(text: str) -> None:
    assert sanitize(text) == text
    assert hide_secrets(text) == text


HOSTILE_SHAPES = [
    *("a", " ", "\\", '"', "\n", ".", "*", "-", "/", "%", "{", "[", "<", "@", "{}", "70", "7 "),
    *(
        "password=",
        'password="',
        "password: ",
        'password=\\"',
        "password is ",
        "password,",
        "password>",
        "key=",
        "api key ",
    ),
    *(
        "key=self.",
        "token=a_",
        "token=get_a(",
        "password=${",
        "password=,a",
        "<password>",
        "eyJ-",
        "eyJaaaaaaaa.e.",
        "sk-a",
    ),
    *(
        "://",
        "a://b:",
        "mqtt://u:p@",
        "-----BEGIN A-----",
        "-----BEGIN A-----\nAAAA\n",
        "curl -u a",
        "mosquitto_sub -P ",
    ),
    *(
        'KEEP SECRET "',
        "-addUser a ",
        "Bearer a-",
        "cookie: a=",
        "signature=",
        "/a.pem",
        "C:\\a ",
        "\\\\a",
        "'/a b ",
        "%70",
    ),
]


@pytest.mark.parametrize("unit", HOSTILE_SHAPES)
def test_work_grows_linearly_with_the_text(unit: str) -> None:
    """Sixteen times the text may take three times sixteen as long; a quadratic step would take 256 times."""
    redact = make_sanitizer(["Xk9$2lQz7!", "aaaaaaab"])
    trigger = 'x.pem curl mosquitto_ keep sig "password" '

    def seconds(size: int) -> float:
        text = trigger + unit * (size // len(unit))
        start = time.process_time()
        redact(text)
        return time.process_time() - start

    small = min(seconds(10_000) for _ in range(3))

    assert seconds(160_000) < 48 * max(small, 0.002)

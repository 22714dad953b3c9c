"""What the sanitizer hides and what it leaves, rule by rule of the policy; each row names the boundary it stands on.

In the tables `§` is where the secret goes, made up anew for every run, and where the marker must be afterwards; what is
between `«` and `»` is a secret as well.
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
    hide_secrets_in,
    hide_secrets_in_bytes,
    make_sanitizer,
    sanitize,
)

SECRET = "Xq7" + "".join(secrets.choice("bdfhkmprt") + secrets.choice("23456789") for _ in range(6))
"""Letters and digits, as most passwords are; what is special about a value is the business of its own tests."""

DIGEST = "da39a3ee5e6b4b0d3255bfef95601890afd80709"

_PAYLOAD = "7Kq2Zx9Lm4R/7Kq2Zx9L+0aB3dE5gH7jK9mN1pQ2rS4t"

WORDS = {
    name: text.split("|" if "|" in text else " ")
    for name, text in {
        "password": "password|passwords|passwd|passwort|passphrase|passcode|pass|pwd|pswd|pswrd|pw|p/w|contraseña|"
        "contrasena|senha|wachtwoord|lösenord|hasło|пароль|密码|密碼|パスワード|비밀번호|비번|secret|secrets|token|"
        "credential|credentials|creds|authorization|psk|mot de passe|mot_de_passe|kennwort|snmp_community|"
        "secret_key_base",
        "owner": "access account api app application auth client deploy encryption integration license master "
        "private secret service session shared sign signing ssh storage subscription webhook tls ssl",
        "plain owner": "for with the by of and has from to in at no as info debug error warn warning get set del put "
        "delete redis s3 record map dict hit miss entry a this that it its public primary foreign cache "
        "routing partition sort row object idempotency hash group index lookup message",
        "scheme": "Bearer Basic Token ApiKey Digest Negotiate NTLM Splunk Bot JWT OAuth Key SharedAccessSignature "
        "AWS4-HMAC-SHA256",
        "nothing": "none null nil undefined n/a true false yes no on off •••••• xxxxx ? ~ ${{secrets.X}} $(cat) "
        "%DB_PASSWORD% $DB_PASSWORD $given $1 {{vault}} {given} :{given} #{given} \\(given) %(given)s %+v "
        "%#v <password> [REDACTED] [PASSWORD] %s, %s.",
        "hidden": "hidden|masked|redacted|removed|filtered|omitted|not set|unset|empty|none|null",
        "remark": "not no never too the a an in on at for from to with by be been also only still must should may "
        "can cannot will has have if when because but or and is are was were missing invalid incorrect "
        "wrong empty unset valid ok optional unknown weak strong short long mandatory different same fine "
        "safe set reset sent lost kept hidden please found given taken known shown inherit as oauth via "
        "keep this that it you your option flag argument write read raise return throw continue break "
        "generated expiring printable visible",
        "type": "&str|str|string|bytes|int|bool|text|any|SecretStr|Option<String>|Optional[str]|varchar(40|char(40|"
        "(Optional secret)|(str, required)|(bytes)|(Union[str, bytes])|AuthType|AuthTypes|PublicKey|"
        "AccessToken|UserInfo|LoginOptions|AppConfig|TokenProvider|TokenFactory|LoginCallback",
        "algorithm": "sha512x0 md5hashes v2tokens utf8only utf-8only base64text",
        "complaint": "failed to get|cannot read|could not read|unable to read|error with|invalid is|denied by|"
        "expired is|rejected is",
        "root": "self cls this os sys config cfg settings options opts args kwargs env environ process request req "
        "ctx var local module data",
        "code": "await fetch_it(x)|new Thing(x)|not (thing(x)|try thing(x)|try? thing(x)|if thing(x)|Plant::token|"
        "plant->token|plant?.token|make<String>(x)|Thing{name: x}|items[0]|items?.[0]|items?[0]|thing(|"
        "thing( |thing(\n|thing(x, {|thing(x, {\n|!thing(x)|$thing(x)",
        "cmdlet": "Get New Read Import ConvertTo ConvertFrom",
        "asks": "get read load fetch find ask input check verify hash code field is has for valid",
        "look up": "get env fetch load read find look var conf setting header param opt arg prompt input ask field "
        "column label text trans request query select form cookie resolve split join replace strip format "
        "hash code err exception message buffer passwords.x pwd.x token.x key.x secret.x",
        "removes": "get delete remove has pop find check contains includes",
        "counted": "token secret secrets credential credentials creds authorization psk pass pw api_key api_keys",
        "command": "-addUser bob |-changeUserPassword bob |-setSecret DB=",
        "tool": "mosquitto_pub -P |mqttx pub -P |sqlcmd -P |bcp -P |zip -P |x -h plc -P |x -u bob -P |sshpass -p |"
        "docker login -p |podman login -p |helm registry login -p |az login -p |oc login -p |"
        "skopeo login -p |mongo -p |mongosh -p |mongodump -p |mongorestore -p |mongoexport -p |"
        "mongoimport -p |mysql -p|mysqldump -p|mariadb -p|redis-cli -a |ldapsearch -w |"
        "mosquitto_passwd -b /etc/x bob |mosquitto_passwd -c -b /etc/x bob |htpasswd -nb bob |requirepass |"
        "masterauth |login bob password |x IDENTIFIED BY ",
        "flag": "is has no use need needs require requires allow show",
        "source": "py pyi js ts go rs java c h cc cpp cs rb php lot md rst htm html css log",
        "key material": "pem key crt cer der p12 pfx jks keystore truststore ppk kdbx gpg",
    }.items()
}
"""The words of the rules that are lists of words: each is a row of its own in the tables."""

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
    "number": "password=«73§»",
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
    "URL, @ in the password": "mqtts://bob:«a@§»@broker:8883",
    "URL, / in the password": "mqtts://bob:«a/§»@broker:8883",
    "URL, mail address as user": "smtp://bob@example.com:§@h",
    "URL, several hosts": "postgres://u:§@h1,h2/db",
    "URL, + in the scheme": "mongodb+srv://u:§@c.example.net/db?w=majority",
    "URLs, comma between": "mqtt://u:§@h1,mqtt://u:§@h2",
    "URL, JSON with escaped slashes": '{"u": "mqtt:\\/\\/bob:§@h"}',
    # Rule 2: more forms.
    "JSON in prose, name and value apart": 'set {"name": "DB_PASSWORD", "value": "§"} now',
    "YAML, name and value apart": "- name: DB_PASSWORD\n  value: §\n",
    "name and value apart": "name=DB_PASSWORD, value=§",
    "YAML block, stripped": "token: |-\n  §\nport: 1",
    "YAML block, CRLF": "token: >+\r\n  §\r\nport: 1",
    "Rust": 'const TOKEN: &\'static str = "§";',
    "optional type": 'token: str | None = "§"',
    "type without a space": 'token:str = "§"',
    "TypeScript": 'let token:string="§"',
    "TypeScript, spaces": 'let token: string= "§"',
    "Go, type without a colon": 'var token string= "§"',
    "PHP, list": '$secrets[] = "§"',
    "comparison with a literal": 'if password == "§":',
    "comparison without spaces": 'if(password=="§")',
    "arrow": "password -> §",
    "XML, words": "<password>«§ and more»</password>",
    "XML, lines": "<password>\n  «§ and»\n</password>",
    "XML attribute": '<user name="bob" password="§"/>',
    "pair": 'x("token", "§")',
    "pair in a list": '[["token", "§"]]',
    "pair of bytes": '[(b"token", b"§")]',
    "with": 'fill "password" with "§"',
    "call": 'x.password("§")',
    "call with bytes": 'x.password(b"§")',
    "setter with more arguments": 'cache.put("token", "§", 60)',
    "dash": 'Password - "§"',
    "PowerShell": '$password = ConvertTo-SecureString "§" -AsPlainText',
    "PowerShell, named": '$password = ConvertTo-SecureString -String "§" -AsPlainText',
    "constructor": 'token = new Plain("§")',
    "constructor of bytes": 'token = Plain(b"§")',
    "constructor's literal is a name": 'password = Plain("§")',
    "triple quotes": 'password = """§"""',
    "triple single quotes": "password = '''§'''",
    "list in code": 'passwords = ["§"]',
    "raw": "password = r'§'",
    "C#, verbatim": 'password = @"§"',
    "HTML escaped, numbers": "password=&#34;§&#34;",
    "HTML escaped, single quotes": "password=&#039;§&#039;",
    "HTML escaped, hex": "password=&#x22;§&#x22;",
    "HTML escaped, name": "&quot;password&quot;: &quot;§&quot;",
    "HTML escaped, name in numbers": "&#34;password&#34;: &#039;§&#039;",
    "HTML escaped, name in hex": "&#x27;password&#x27;: &#x27;§&#x27;",
    "prose, is:": "the password is: §",
    "prose, is now": "the password is now §",
    "prose, is set to": "the password is set to §",
    "prose, equals": "the password equals §",
    "prose, set to": "password set to §",
    "prose, changed to": "password changed to §",
    "prose, was changed to": "changed password to §",
    "prose, reset": "resetting the password to §",
    "prose, updated": "updated the password to §",
    "prose, for and was": "password for bob was §",
    "prose, of": "the password of bob: §",
    "prose, of and is": "the password of bob and ann is §",
    "prose, said plainly": "the password is «Sommer»",
    "prose, token in quotes": 'the token is "«Sommer»"',
    "prose, token": "bad token «§x7» given",
    "prose, token with a symbol in quotes": 'bad token "«Some!thing»" given',
    "prose, token with spaces around": "token «9f86d081aa884c7d659a2feaa0c55ad0» given",
    "prose, symbol": "login failed with password «Sommer!x»",
    "prose, base64": "login failed with password «aGFsbGVzVG==»",
    "prose, quoted": 'bad password "«Sommer»"',
    "German": "Das Passwort ist §",
    "German, lautet": "Das Passwort lautet §",
    "French": "le mot de passe est §",
    "in brackets": "[password=§]",
    "in braces": "{password=§}",
    "in angle brackets": "<user password=§>",
    "in parentheses, full stop": "connected (password=§).",
    "list, bare": "secrets: [«§, §»], x",
    "comma and a quote": 'login password=§,"user": 1',
    "comma and a key": "password=§,user=bob",
    "comma and a YAML key": "{password: §,port: 1}",
    "comma at the end": "password=§,",
    "comma inside": "password=«§,§»",
    "ampersand, escaped": "password=§&amp;user=bob",
    "ampersand, escaped as a number": "password=§&#38;user=bob",
    "quote, escaped": "say &quot;password=§&quot; now",
    "ampersand and a digit": "password=§&2fa=1",
    "ampersand inside": "password=«§&§»",
    "closing tag": "<a>password=§</a>",
    "fragment": "https://h/p?token=§#top",
    "# in a password": "password=«§#§»",
    "bracket in a password": "password=«§)§»",
    "quote in a password": "password=«§'§»",
    "newline, escaped": "a\\npassword=§\\n",
    "newline, escaped, and a key": "password=§\\nuser = bob",
    "newline, escaped, and a bracket": "password=§\\n}",
    "backslash in a password": "password=«§\\§»",
    "backslash and n in a password": "password=«§\\never»",
    "quote, escaped, behind": 'x = "password=§\\" y',
    "Node's buffer": "password: «<Buffer 68 75 6e»>",
    "long": f"password is «{'ab' * 101}»",
    "blank before the key": "x  --password  =  §",
    # Rule 2: more names.
    **{f"key word {name}": f"{name}: §" for name in WORDS["password"]},
    **{f"key of the {owner}": f"{owner}_key=§" for owner in WORDS["owner"]},
    **{f"weak word {name}": f"{name}=«§§»" for name in ["key", "keys", "auth", "otp", "session", "sid"]},
    **{f"{owner}pass": f"{owner}pass=§" for owner in ["db", "user", "root", "key", "store", "admin", "mqtt"]},
    "user/pass": "user/pass: §",
    "id/pw": "id/pw: §",
    "glued pw": "mqttpw=§",
    "glued psk": "adminpsk=§",
    "this": "this_password=§",
    "camel case, short": "brokerPw=§",
    "key of nobody, no digest": "primary_key=«§§»",
    "digest of an owner's key": "press_key=«da39a3ee5e6b4b0d3255bfef95601890afd80709»",
    # Rule 2: what a name is declared with says that a value follows.
    **{
        f"declared with {word}": f"{word} DB_PASSWORD «letmein»"
        for word in ["#define", "define", "set", "setx", "setenv", "env", "ENV", "ARG", "export", "-x", "-gx", "-d"]
    },
    "declared, indented": "  ENV DB_PASSWORD «letmein»",
    "declared, quoted": 'setx "DB_PASSWORD" «letmein»',
    "configuration line": "  mqtt_password «letmein»",
    **{
        f"quoted with its name, {lead}": f'{lead}"DB_PASSWORD=«§ and more»" x'
        for lead in ["Environment=", "-e ", "--env ", "--env=", "export ", "set "]
    },
    **{
        f"{setter} with more arguments": f'{setter}("api_token", "§", 60)'
        for setter in ["set", "put", "add", "append", "define", "header", "set_default"]
    },
    **{f"scheme {scheme}": f"Authorization: {scheme} «letmein»" for scheme in WORDS["scheme"]},
    "scheme, percent-encoded": "authorization=Bearer%20§",
    "scheme, form": "authorization=Bearer+§",
    # Rule 7: what only looks like nothing.
    "behind none": "password=«none§»",
    "behind a dollar": "password=«$§»",
    "behind a remark": "password: «missing§»",
    "a word": "password=«missing»",
    "a name": "password=«hunter»",
    "a short number": "password=«1234»",
    "two x": "password=«xx»",
    "a name with a dot": "password=«plant.press»",
    "a call of random letters": "password=«a7Kq2Zx(9Lm4)»",
    "a scheme of a URL": "password=«abc://§»",
    "no type": "token: «SommerRegen»",
    "a reason without a complaint": "new token: «connection» x",
    "a password that is a reason": "login failed, password: «connection» refused",
    "JSON, slash in what stays": '{"u": "https://h/p?token=§"}',
    "JSON, short number": '{"password": "«1234»"}',
    "repr of arguments": "['prog', '--password', '§']",
    "HTML escaped, more zeros": "&#034;password&#034;: &#034;§&#034;",
    "quoted with a stray quote before": "bob's password: '« horse staple»'",
    "quoted, outside before": 'password: "«, horse»"',
    "quoted with its name in a stray quote": "it's {'password': '«, horse»'}",
    "quoted with a stray quote and a quoted name": "it's {'password': '« horse staple»'}",
    "quoted, a space first": 'password: "« horse staple»"',
    "quoted, not closed in its line": 'password: "§\nnext: 1',
    "quotes doubled": "password: '«it''s §»', x",
    "double quotes doubled": 'password: "«say ""§"" now»", x',
    "quoted in a string that ends first": 'got "password=\\"§" x',
    "list of two": 'passwords = ["«§", "§»"], x',
    "in a list": 'x([password="§", "y"])',
    "brackets in quotes": 'password="«[§]»"',
    "key in quotes": 'password= "«user=bob»"',
    "key as a password": "password=«user=bob»",
    "blank": "password= §",
    "percent-encoded quote in a password": "password=«%22§»",
    "long, and like code": f"password=«{'self.' + 'a' * 200}»",
    "backticks": "password=`«§»`",
    "backticks, words": "password: `«§ x»`",
    "bracket not opened": "password=«§)» x",
    "bracket in brackets": "f(password=«§)§»)",
    "brackets opened twice": "((password=§))",
    "bracket first": "password=«(§»",
    "less than in a password": "password=«a<§»",
    "backslash at the end": "password=§\\",
    "marker in a password": "password=«§[FILE PATH REDACTED]» x",
    "marker of a certificate in a password": "password=«§[CERTIFICATE REDACTED]» x",
    "hyphen first": "password=«-§»",
    "exclamation mark first": "password=«!sommer»",
    "none with a dot": "password=«none.x»",
    "a digit": "password=«7»",
    "a letter": "password = «x»",
    "a number": "password = «12345»",
    "code with a digit": "password=«self.x1y2»",
    "a bracket that calls nothing": "password=«sommer(%x)»",
    "a bracket that is not closed": "password=«sommer(x»",
    "a bracket that is no index": "password=«sommer[%x]»",
    "a brace that opens nothing": "password=«sommer{x}y»",
    "a call of letters and digits": "password=«ab1cd2ef(x)»",
    "a call of upper case and digits": "password=«AB1cd2EF(x)»",
    "a call of upper and lower case": "password=«Ab1Cd2Ef(x)»",
    "a name, then or": "login with password=«hunter» or go",
    "a name that ends in password": "password=«mypassword»",
    "a name with a digit": "password=«my2_password»",
    "a name that is a key": "token=«secret»",
    "a short name with a dollar": "password=«$x»",
    "names without blanks around =": "password=«press.door.gate»",
    "names, two": "password = «press.gate»",
    "names, underscore": "password = «press_gate»",
    "names with digits": "password = «press.door.gate1»",
    "no reason": "failed: token=«connection» x",
    "a reason with capitals": "failed to get token: «SommerRegen» x",
    "key of letters": "key=«abAcdBefCghDijEk»",
    "key of lower case and digits": "key=«ab1cd2ef3gh4ij5k»",
    "key, long": "key=«abcdefghijklmnopqrstuvwxyz123456789»",
    "key, quoted": 'key="«§§»"',
    "key, hex and more": "primary_key=«da39a3ee5e6b4b0dZq8W»",
    "pair that ends in password": 'x("password", "«mypassword»")',
    "flag, token": "prog --token «letmein» x",
    "flag first": "--password § x",
    "token, long": "bad token «abcdefghijklm1234567890» given",
    "token is": "the token is «letmein12»",
    "LoT, token": 'WITH MQTT_TOKEN "«letmein»"',
    "LoT, token alone": 'WITH TOKEN "«letmein»"',
    # Rule 3, more.
    "URL, @ in the path too": "mqtt://bob:§@h/p@x",
    "URL, digits and a comma": "mqtt://bob:«12,§»@h",
    "URL, backslash": "mqtt://bob:«a\\§»@h",
    "URL, slash and backslash": "mqtt://bob:«a/b\\§»@h",
    # Rule 2: the places of tools.
    **{f"tool: {tool}": f"{tool}§ x" for tool in WORDS["tool"]},
    **{f"tool: {tool}, quote inside": f"{tool}«§'x» y" for tool in WORDS["tool"]},
    **{f"tool: {tool}, quotes": f'{tool}"«§ x»" y' for tool in WORDS["tool"]},
    **{f"tool: {tool}, single quotes": f"{tool}'«§ x»' y" for tool in WORDS["tool"]},
    **{
        f"tool: {tool}, more lines": f"{tool} a \\\n  --b {option}§ x"
        for tool, option in [
            ("mqttx", "-P "),
            ("x -h h", "-P "),
            ("sshpass", "-p "),
            ("mysql", "-p"),
            ("redis-cli", "-a "),
            ("ldapsearch", "-w "),
            ("curl", "-u bob:"),
        ]
    },
    "tool: mqttx, arguments": "['mqttx','-P','§']",
    "tool: mqttx, arguments and spaces": "['mqttx', '-P', '§']",
    "tool: -h, arguments": "['x','-h','h','-P','§']",
    "tool: -h, arguments and spaces": "['x', '-h', 'h', '-P', '§']",
    **{f"tool: {tool}, in quotes": f"run '{tool}§' now" for tool in [*WORDS["tool"], *WORDS["command"]]},
    **{f"command: {command}": f"{command}§ x" for command in WORDS["command"]},
    **{f"command: {command}, quote inside": f"{command}«§'x» y" for command in WORDS["command"]},
    **{f"openssl, {option}": f"openssl x {option} pass:«1234» x" for option in ["-passin", "-passout"]},
    "tool: mysql, arguments": "['mysql', '-p§']",
    "curl --proxy-user": "curl --proxy-user bob:§ https://h",
    "curl -u, words": 'curl -u "bob:«§ x»" https://h',
    "curl -u, words in single quotes": "curl -u 'bob:«§ x»' https://h",
    "curl -u, quoted password": 'curl -u bob:"§" https://h',
    "curl -u, quoted user": 'curl -u "bob":§ https://h',
    "curl -u, token": "curl -u §: https://h",
    "curl -u, quoted token": "curl -u '§:' https://h",
    "curl -u, quote inside": "curl -u bob:«§'x» https://h",
    "Bearer alone": "sent Bearer «geheim-42» to h",
    "Bearer, percent-encoded": "sent Bearer%20«geheim-42» to h",
    "CONNECT in bytes": "MQTT\\x04\\xc2\\x00<\\x00\\x02gw\\x00\\x03bob\\x00\\x0f§",
    "CONNECT in bytes, no user": "MQTT\\x05B\\x00<\\x00\\x02gw\\x00\\x0f§",
    "CONNECT in bytes, long": "MQTT\\x04\\xc2\\x00<\\x00\\x02gw\\x00\\x1e§",
    "CONNECT in bytes, longer": "MQTT\\x04\\xc2\\x00<\\x00\\x02gw\\x00!«§§»",
    "CONNECT in bytes, ten": "MQTT\\x04\\xc2\\x00<\\x00\\x02gw\\x00\\n§",
    "paho, bytes": 'username_pw_set("bob", b"§")',
    "paho, keyword": 'username_pw_set("bob", password="§")',
    "Slack webhook": "https://hooks.slack.com/services/«T0/B0/§§»",
    "cookie, second": "Cookie: theme=dark; x=«§§»",
    "cookie, second, no space": "Cookie: theme=dark;x=«§§»",
    "cookie, set": "Set-Cookie: sid=§; Path=/",
    "cookie, JSON in prose": 'h {"Cookie": "sid=§"}',
    "cookie, bytes": "[(b'Cookie', b'x=§')]",
    "change": 'password = "§" -> "§"',
    "change, arrow of two lines": 'password = "§" => "§"',
    "change, escaped": 'password = \\"§\\" -> \\"§\\"',
    "signature": "X-Amz-Signature=«§§»&x=1",
    "signature, digest": 'Digest username="bob", response="«§§»"',
    "signature, escaped": 'Digest response=\\"«§§»\\"',
    "signature, sas": "https://h/x?sig=«§§»%3D&se=1".replace("»%3D", "%3D»"),
    "LoT, secret, escaped": 'KEEP SECRET \\"DB\\" WITH \\"§\\"',
    "a variable and more": "password=«${X}abc12»",
    "cookie, second of a marker": "Cookie: a=[REDACTED]; b=«§§»",
    "quoted in a string that ends with it": 'got "password=\\"§\\"" x',
    "URL, backslash and @ in the path": "mqtt://bob:«a\\§»@h/p@x",
    "a name, then ;": "password=«hunter»;",
    "JSON, escaped name": '{"secret": "§", "p\\u0061ssword": "«letmein»"}',
    "JSON, the rest stays": '{"secret": "§", "password": "none", "token": "", "key": "value", "PWD": "/app"}',
    "JSON, lists": '{"secret": "§", "a": ["Authorization", "letmein", "x"], "b": ["x", "Authorization", "y"]}',
    "JSON, options": '{"secret": "§", "a": ["--token", "«letmein»"], "b": ["token", "x", "letmein"]}',
    "SQL": "CREATE USER bob IDENTIFIED BY '§'",
    "SQL, plugin": "CREATE USER bob IDENTIFIED WITH sha2 BY '§'",
    "redis.conf": "requirepass «letmein»",
    "redis.conf, master": "masterauth «letmein»",
    ".netrc": "machine h login bob password «letmein»",
    "arrow to the left": "password <- §",
    "typed with As": 'Dim password As String = "§"',
    "YAML, !!str": 'password: !!str "§"',
    "SQL, N": "password = N'§'",
    "constructor with braces": 'password{"§"}',
    "Java, map": 'Map.of("x", 1, "token", "§", "y")',
    "Spanish": "la contraseña es §",
    "prose, is :": "the password is : §",
    "call of an object": 'vault.token("§")',
    "token with braces": 'token{"§"}',
    "key as a password, YAML": "password: «user=bob»",
    "key as credentials": "credentials=«user=bob»",
    "a word and a number in brackets": "password=«Sommer(5)»",
    "a password that is the word": "token: «secret»",
    # Rule 2: the value stands further in, or below.
    "JSON, nested value": '{"password": {"value": "§"}, "n": 1}',
    "JSON, nested twice": '{"secret": {"current": {"type": "plain", "value": "§"}}}',
    "JSON, nested list": '{"api_keys": {"values": ["§", "«letmein»"]}}',
    "JSON, nested in a list": '{"api_keys": [{"value": "§"}, {"value": "«letmein»"}], "n": [{"value": "x"}]}',
    "JSON, name for each": '{"passwords": {"bob": "§", "ann": ["«let!mein»", "x"]}}',
    "JSON in prose, nested value": 'got {"password": {"value": "§"}} x',
    "JSON in prose, nested behind others": 'got {"password": {"type": "plain", "value": "§"}} x',
    "JSON in a string in prose, nested": 'got "{\\"password\\": {\\"value\\": \\"§\\"}}" x',
    "repr, nested value": "{'password': {'value': '§', 'n': 1}} x",
    "nested, bare": "password: {value: §} x",
    "YAML below": "mqtt:\n  password:\n    «hunter»\n  port: 1883",
    "YAML below, quoted": "password:\n  '«hunter two»'\nport: 1883",
    "YAML below, CRLF": "password:\r\n  §\r\nport: 1883",
    "YAML below, token": "- token:\n    § # of the press\n",
    "YAML below, value": "password:\n  value: «hunter»\nport: 1883",
    "YAML list": "api_keys:\n  - §\n  - §\nport: 1883",
    "YAML list, not indented": 'passwords:\n- «hunter»\n- "«hunter two»"\n- none\nport: 1883',
    "XML attribute value": '<Password value="§"/>',
    "XML attribute value, second": "<Password type='plain' value='§'/>",
    "subscript of a user": 'passwords["bob"] = "§"',
    "subscript of a user, bare": "passwords['bob']=§",
    "subscript of a number": "password[0]: §",
    "subscripts": 'config["password"]["bob"] = "«hunter»"',
    "URL of a token": "clone https://«§§»@git.example/x.git",
    "URL of a token, hyphens": "-addProject https://«Vq7-tR2xW9mKp4Zs»@git/x Plant",
    "Coreflux user, dashes": "--add-user bob §",
    "Coreflux password, dashes": "-change-user-password bob §",
    "Coreflux secret, dashes": "-set-secret «DB=letmein»",
    "Coreflux install with a token": "-install-with-token «asset» § x",
    "Coreflux uninstall with a token": "--uninstall-with-token «asset» §",
    "Coreflux install with a token, one word": "-installWithToken «asset» «letmein»",
    **{
        f"hash {kind}": f"bob:${kind}$«{rest}»:1:"
        for kind, rest in {
            "1": "a1b2c3d4$7Kq2Zx9Lm4R/7Kq2Zx9L.0",
            "2y": "10$" + "a7Kq2Zx9./" * 5 + "abc",
            "2b": "12$" + "a7Kq2Zx9./" * 5 + "abc",
            "5": "rounds=5000$a1b2c3d4$" + "a7Kq2Zx9./4" * 4,
            "6": "a1b2c3d4$" + "a7Kq2Zx9./4" * 8,
            "7": "101$a7Kq2Zx9+/4R$" + "a7Kq2Zx9+/4" * 8 + "==",
            "y": "j9T$a1b2c3d4$" + "a7Kq2Zx9./4" * 4,
            "apr1": "a1b2c3d4$7Kq2Zx9Lm4R/7Kq2Zx9L.0",
            "argon2id": "v=19$m=65536,t=3,p=4$a7Kq2Zx9Lm4R$" + "a7Kq2Zx9+/4" * 4,
        }.items()
    },
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
    **{f"nothing: {value}": f"password={value}" for value in WORDS["nothing"]},
    **{f"nothing: {value} in brackets": f"password: *{value}*" for value in WORDS["hidden"]},
    **{f"remark: {word}": f"password: {word}" for word in WORDS["remark"]},
    "remark, sentence": "password: Choose one that you know, and go.",
    "remark, ending": "password: missing!",
    **{f"type {name}": f"password: {name}" for name in WORDS["type"]},
    "scheme alone": '{"token_type": "x", "authorization": "bearer", "x_authorization": "basic"}',
    "Terraform": "password = (sensitive value)",
    "YAML tag": "password: !secret mqtt",
    "JSON, brackets": '{"tokens": [], "secrets": {"a": 1}, x',
    "container, open": "secrets: {",
    "container, open, list": "passwords: [",
    "container, YAML": "secrets: {name: press}",
    "container, names": 'secrets: {"press", "gate"}',
    "option behind": "--token -v",
    "options, table": "  --password    letmein12 and more",
    "comparison": "if password == hunter22:",
    "comparison, not": "if password != hunter22:",
    "count of a token": "token: 512",
    "count of passes": "pass: 12",
    "boolean as a number": "password = 1",
    "reference": "secret: vault://plant/mqtt",
    **{f"reason behind {word}": f"{word} the token: connection refused" for word in WORDS["complaint"]},
    "own name": "token: $token",
    **{f"code: root {root}": f"password={root}.abc" for root in WORDS["root"]},
    **{f"code: {value}": f"token = {value}" for value in WORDS["code"]},
    **{f"code: assigned to {lead}": f"{lead}password = some_name" for lead in ["self.", "this.", "cls."]},
    **{
        f"code: declared {lead}": f"{lead} password = some_name"
        for lead in ["const", "let", "var", "val", "final", "auto"]
    },
    **{f"code: cmdlet {verb}": f"$password = {verb}-Content x" for verb in WORDS["cmdlet"]},
    **{f"code: operator {word}": f"password = args2.x1 {word} y" for word in ["if", "else", "or", "and", "?", "??"]},
    "code: alternative": "password = args2.x1 :z",
    "code: logical and": "password = given && x",
    "code: logical or": "password = given || x",
    "code: else": "token = given else { x }",
    "code: names in a row": "password = press.door.gate",
    "code: names with an underscore": "password = press.door_gate",
    "code: PHP": "$password = $given",
    "code: shell": "password=$given;",
    "code: longer name": "password=user_password",
    **{f"code: asks with {word}": f'{word}_password("bob-12345")' for word in WORDS["asks"]},
    **{f"code: looks up with {word}": f'password = {word}("bob-12345")' for word in WORDS["look up"]},
    "code: looks up in all": 'password = Plain("DB_PASSWORD")',
    **{f"code: {word}": f'{word}("token", "bob-12345")' for word in WORDS["removes"]},
    **{f"code: b and {word}": f'{word}(b"token", b"bob-12345")' for word in ["get", "pop"]},
    "code: triple": 'x("token", "bob-12345", 1)',
    "code: names in a call": 'x("token", "password")',
    "code: command": "PASSWORD=`cat /tmp/x`",
    "code: closed, plus": 'print("password="+password)',
    "code: closed, comma": 'print("password: ", 1)',
    "code: closed, dot": 'echo "password=" . x',
    "code: closed, name": 'echo "password: " $given;',
    "code: closed, name at the end": 'echo "password: " given',
    "code: closed, name at the end of a line": 'echo "password: " given\nx',
    # Rule 8, more.
    **{f"flag {word}": f"{word}_password=letmein22" for word in WORDS["flag"]},
    **{f"parser: {word}": f"{word} token: letmein22" for word in ["unexpected", "illegal", "expected", "it"]},
    "jsonwebtoken": "jsonwebtoken: 9.0.2-beta",
    "cancellation token": "cancellation_token=letmein22",
    "masked": "masked_password=a1b2c3d4",
    "default of a variable": "${db_password:-letmein22}",
    "pass of others": "trespass: letmein22",
    **{f"digest of the key of {word}": f"{word} key: {DIGEST}" for word in WORDS["plain owner"]},
    "digest of a key without an owner": f"key: {DIGEST}",
    "digest of a key behind punctuation": f"(key: {DIGEST}",
    "digest of a key in a table": f"x  key: {DIGEST}",
    "short value of a weak key": "session: abc123def456",
    "camel case of a weak key": "key=AaBbCcDdEeFfGgHhIi",
    "name of a weak key": "key=a1b2c3d4e5f6g7h8_token",
    "dotted value of a weak key": "key=a1b2c3d4e5f6g7h8i9.x",
    "prose of a weak key": "the key a1b2c3d4e5f6g7h8i9 is pressed",
    "working directory, Windows": "PWD=C:\\work\\x",
    "working directory, share": "PWD=\\\\plant\\x",
    "working directory, home": "PWD=~/x",
    "no closing tag": "password>hunter22 x",
    "empty and a key": "password= user=bob",
    "empty and a line": "password:\n",
    **{f"prose: {word}": f"the password {word} is old" for word in WORDS["algorithm"]},
    "prose: number": "the password 12345678 is old",
    "prose: word": "the password policies are old",
    "prose: to": "a token to somewhere",
    "prose: password to": "give the password to somebody12",
    "prose: foreign": "the token est abcdefgh",
    "prose: pair in a token": "the token a1b2c3=d4e5f6 is old",
    "prose: short token": "the token abc123 is old",
    "prose: token of words": "the token some-thing-of-words is old",
    "prose: quoted token": 'the token "something" is old',
    "OAuth": "authorization: OAuth 2.0 flow",
    # Rule 6, more.
    **{f"source .{kind}": f"/app/secrets/x.{kind}" for kind in WORDS["source"]},
    "Kubernetes, list": "tls.crt: [A",
    "Kubernetes, block": "tls.crt: |",
    "Kubernetes, encoded": "ca.crt: LS0tLS1",
    "URL of a secret": "see https://h/secrets/x",
    "program": "/usr/bin/passwd",
    "key of a door": "door.key was pressed",
    **{f"nothing: {value} in quotes": f'password="{value}"' for value in WORDS["nothing"][:-2]},
    "nothing: blanks": 'password="   "',
    "nothing: empty, and another": 'password="" "x"',
    "nothing: known": "password = (known after apply)",
    "nothing: write-only": "password = (write-only attribute)",
    "nothing: template": 'password="{{ vault.x }}"',
    "nothing: digits in a name": "password=$DB2_PASSWORD",
    "remark, sentence in a line": "password: Choose one that you know.\nx",
    "list of nothing": "passwords: [hidden]",
    "container, blank": "secrets: { press }",
    "JSON of nothing": '{"password": "none", "token": "", "PWD": "/app", "key": "value", "session": "abc"}',
    "JSON, count": '{"token": 512, "secrets": 3}',
    "JSON, list of names": '["Authorization", "letmein", "x"]',
    "JSON, after a name": '{"a": ["x", "Authorization", "y"]}',
    "JSON, not behind an option": '["--x", ["y", "-v"], "z"]',
    **{f"count: {name}": f"{name}: 512" for name in WORDS["counted"]},
    "reference of a psk": "psk: vault://plant/mqtt",
    **{f"weak word {name}, word": f"{name}: letmein22" for name in ["key", "keys", "auth", "otp", "session", "sid"]},
    "weak word with an owner": "client_session: letmein22",
    "weak word, long": "key=abcdefghijklmnopqrstu12345",
    "inside a word: pw": "xpw: letmein22",
    "inside a word: psk": "xpsk: letmein22",
    "inside a word: capitals": "XPW: letmein22",
    "inside base64": "abc+pw: letmein22",
    "user of -changeUserPassword": "-changeUserPassword press42!",
    "empty scheme": 'authorization: "Bearer "',
    "dash": "Password - forgotten12!",
    "with": '"password" with given12!x',
    "call of a name": "password(given12x)",
    "pair with a name": 'x("password", given12x)',
    "pair behind another": 'x(1, "token", "bob-12345", 2)',
    "prose: token is": "the token is gone away",
    "prose: German": "Das Passwort ist vergessen",
    "prose: key word inside": "the mqtt_password letmein is old",
    "prose: letters": "the token aBcDeFgHiJkLmN is old",
    "prose: digits": "the token 12345678901234567890 is old",
    "prose: letters and some digits": "the token abcdefghijkl123 is old",
    "prose: words and a number": "the token some-thing-of-words-12 is old",
    "prose: symbol without quotes": "bad token Some!thing given",
    "code: own name": "token=x1.token",
    "code: own long name": "db1_password=db1_password",
    "code: SQL": "password=@password",
    "code: PHP, short": "$password = $x",
    "code: shell, short": "password=$x;",
    "code: camel case": "password=newMapOf(x)",
    "code: closed, bare name": 'echo "password: " given;',
    # Rule 3, more.
    "URL, two ports and @ in the path": "mongodb://h:80,h2:81/p@x",
    "URL, variable": "mqtt://bob:${MQTT_PASSWORD}@h",
    "URL, empty": "mqtt://bob:@h",
    "URL, stars": "mqtt://bob:***@h",
    # Places.
    "Bearer, option": "Bearer -abcdef1",
    "Bearer, name": "Bearer Authentication is on",
    "cookie, variable": "Cookie: sid=${SESSION_ID}",
    "mosquitto_pub, variable": "mosquitto_pub -P $MQTT_PASSWORD",
    "change of a name": "password = [REDACTED] -> y",
    "words like a GitLab token": "glossary-of-everything-that-is-in-it",
    "words like an npm token": "npm_config_of_everything_in_the_world",
    "words like a Pulumi token": "pul-request-about-everything-else",
    "nothing: full stop": "password: none.",
    "nothing: path behind": "password=${X}/y1",
    "code: call over lines": "token = thing(\n  x)",
    "code: call over lines with a brace": "token = thing(x, {\n  y: 1",
    "weak word, letters": f"key={'abcdefghijklmnopqrs' * 2}",
    "URL, line break escaped": "mqtt://h:port\\nann@example.com/x",
    "port of a tool": "x -h plc -P 3306",
    "PEM of a marker": "-----BEGIN X-----\n[REDACTED]\n-----END X-----",
    "C++ scope": "password::letmein22",
    "PHP arrow": "password->letmein22",
    "SQL, no password": "IDENTIFIED VIA ldap",
    "call of a token": 'token("a1b2c3d4e5f6g7")',
    "call of an object that asks": 'x.get_password("a1b2c3d4e5")',
    "credentials of keys": "credentials: user=bob",
    "code: call with a number": "token = take_it(5)",
    **{f"remark: {word} and more": f"password: {word} x" for word in ["password", "passwd", "secret"]},
    "type Option<&str>": "password: Option<&str>",
    "nested, other names": '{"secret": {"name": "press-3x1", "type": "file"}, "token": {"expires": "3600s-12x"}}',
    "nested in a weak word": f'{{"key": {{"value": "{_PAYLOAD}"}}, "auth": {{"value": "letmein22"}}}}',
    "nested in a weak word, in prose": f'got {{"key": {{"value": "{_PAYLOAD}"}}}} x',
    "nested, beside": '{"password": {"value": ""}, "value": "letmein22"}',
    "nested, schema": '{"passwords": {"type": "string", "text": "All of them."}, "password": {"default": "x-12345"}}',
    "nested, nothing": 'got {"password": {"value": null}} x',
    "nested, names of secrets": '{"secrets": {"mqtt": "press-3x1"}}',
    "YAML below, not indented": "password:\nletmein22 x",
    "YAML below, remark": "password:\n  must have 8 characters, 2 of them digits",
    "YAML below, sentence": "  password:\n    Two2 words of the account",
    "YAML below, key": "password:\n  user: bob-12345",
    "YAML below, nothing": "password:\n  null\ntoken:\n  ${TOKEN_2}\nsecrets:\n  - ****",
    "YAML below, weak word": "key:\n  letmein22",
    "YAML below, prose": "asked for the password:\n  letmein22",
    "YAML list of names": "secrets:\n  - mqtt_password\n  - db-password",
    "YAML list of mappings": "imagePullSecrets:\n  - name: regcred-22x\nsecrets:\n  - source: press-3x1",
    "YAML list of a topic": "topics:\n  - plant/line1/a1b2c3d4",
    "subscript, name": "passwords[user] = given",
    "subscript, comparison": "if token[0] == letmein22:",
    "URL with a user, https": "https://bob@h/x and https://ann.miller.of.the.plant@h/x",
    "URL with a device": "mqtts://3f2a9c7b-1234-4abc-9def-0123456789ab@broker:8883",
    "URL with @ in its path": f"https://h/{_PAYLOAD}@x",
    "groups of an expression": "s/a/$1$2$5/ and $6$ and $SYS/broker/$7$x",
    "public key": f"public_key: {_PAYLOAD} pub-key={_PAYLOAD} publicKey={_PAYLOAD}",
    "public key, JSON": f'{{"public_key": "{_PAYLOAD}", "clientPublicKey": "{_PAYLOAD}"}}',
    "remark: do not": "a secret: do not tell, the password: do not use it",
    **{f"credentials: {word}": f"credentials: {word}" for word in ["file", "env", "environment", "vault", "keyring"]},
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
    "Windows, variable": r"%USERPROFILE%\certs\client.pem",
    "Windows, netrc": r"C:\Users\bob\_netrc",
    "Windows, secrets": r"C:\plant\secrets\db.txt",
    "aws configuration": "~/.aws/config",
    "ssh directory": "~/.ssh",
    "gnupg directory": "~/.gnupg/",
    "file name .netrc": ".netrc",
    "file name .htpasswd": ".htpasswd",
    "two slashes": "//etc/tls/client.pem",
    "file URL of a secret": "file:///srv/secrets/db.txt",
    "parent": "../certs/client.pem",
    "file URL": "file:///etc/tls/client.pem",
    "home, secrets": "~/secrets/db.txt",
    "variable, secrets": "$HOME/secrets/db.txt",
    "here, secrets": "./secrets/db.txt",
    "deployed secrets": "/srv/run/secrets",
    "tls private": "/etc/tls/private/x",
    "gnupg": "~/.gnupg/x",
    "azure": "~/.azure/x",
    "gcloud directory": "/home/bob/.config/gcloud/x",
    "service account": "/etc/plant/service_account-1.json",
    "credentials": "/etc/plant/credentials.json",
    "mosquitto password": "/etc/mosquitto/password",
    "mosquitto passwords, plural": "/etc/mosquitto/passwords",
    "passwords": "/srv/passwords.txt",
    **{f"password file {name}": f"/etc/plant/{name}" for name in ["passwd", "pwfile", "password_file", "passwordfile"]},
    **{f".{kind}": f"/etc/plant/x.{kind}" for kind in WORDS["key material"]},
    **{f"file name .{kind}": f"x.{kind}" for kind in ["pem", "crt", "p12", "pfx", "jks", "ppk"]},
    **{f"{owner}.key": f"{owner}.key" for owner in ["client", "server", "broker"]},
    **{name: f"/home/bob/{name}" for name in [".git-credentials", ".dockercfg", ".htpasswd", "htpasswd"]},
    **{name: f"/home/bob/{name}" for name in ["id_rsa", "id_dsa", "id_ecdsa", "id_ed25519"]},
}

AROUND_A_PATH = ["§", "open §: denied", "'§'", "cafile=§, x", '{"p": "§"}', "PosixPath('§')", "see §.", "(§)"]

PATHS_WITH_SPACES = ["/my keys/one.key", "~/my keys/one.key", r"C:\my keys\the one.key", r"\\plant\my keys\the one.key"]

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
    expected = re.sub("«[^»]*»|§", MARKER, template)

    assert sanitize(re.sub("[«»]", "", filled(template, SECRET))) == expected


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


@pytest.mark.parametrize("around", ["§", "'§'", "x `§`", 'open "§" x'])
@pytest.mark.parametrize("path", PATHS_WITH_SPACES)
def test_a_path_with_spaces_goes_when_it_is_alone_or_in_quotes(path: str, around: str) -> None:
    assert sanitize(filled(around, path)) == filled(around, PATH_MARKER)


def test_a_path_ends_where_its_surroundings_say() -> None:
    assert sanitize("at:\\n/etc/tls/x.pem\\nb") == f"at:\\n{PATH_MARKER}\\nb"
    assert sanitize("at:\\nclient.pem, b") == f"at:\\n{PATH_MARKER}, b"
    assert sanitize("/etc/tls/tls.crt: |") == f"{PATH_MARKER}: |"
    assert sanitize("/srv/a said 'x' to b.key") == "/srv/a said 'x' to b.key"


@pytest.mark.parametrize(("template", "write"), WRITTEN.values(), ids=WRITTEN.keys())
@pytest.mark.parametrize("value", AWKWARD)
def test_an_awkward_value_goes_whole(value: str, template: str, write: Callable[[str], str]) -> None:
    written = write(value)
    marked = re.sub(r"""^(b?["'])?.*?(["'])?$""", rf"\1{MARKER}\2", written) if written[-1] in "\"'" else MARKER

    assert sanitize(filled(template, written)) == filled(template, marked)


@pytest.mark.parametrize("number", ["12345", "-12345", "1.5", "2e7", "2E-7", "2e+7"])
@pytest.mark.parametrize("around", ['{"password": §, "port": 1883}', 'got {"password": §} x', '"password": §'])
def test_a_number_becomes_a_string(number: str, around: str) -> None:
    assert sanitize(filled(around, number)) == filled(around, f'"{MARKER}"')


def test_what_is_longer_than_a_number_is_no_number() -> None:
    assert sanitize("got {'password': 12ab} x") == "got {'password': [REDACTED]} x"


def test_of_very_many_keys_the_last_are_hidden_unread() -> None:
    assert sanitize("password=None " * 10_001) == "password=None " * 10_000 + f"password={MARKER} "
    assert sanitize("password=None " * 10_000 + 'password="a b"') == "password=None " * 10_000 + f'password="{MARKER}"'


@pytest.mark.parametrize("row", [*CREDENTIALS, *PLACES], ids=lambda row: row.name)
def test_every_row_has_a_hit_and_a_look_alike(row: Pattern) -> None:
    assert re.search(row.expression, row.hit)
    assert row.miss
    assert row.miss != row.hit
    assert not re.search(row.expression, row.miss)


_MIXED, _HEX, _UPPER = "a7Kq2Zx9Lm4R" * 12, "3fa92c7be105" * 12, "Q7Z2" * 20

# What an issuer puts first, what follows it, and what makes the whole something else.
ISSUED = [
    ("eyJ", f"{_MIXED[:20]}.{_MIXED[:30]}.{_MIXED[:43]}", ""),
    ("AKIA ASIA ABIA ACCA", _UPPER[:16], "x"),
    ("ghp_ gho_ ghu_ ghs_ ghr_", _MIXED[:36], ""),
    ("github_pat_ GR1348941", _MIXED[:82], ""),
    ("glpat- gldt- xoxb- xoxp- xapp-", _MIXED[:24], ""),
    ("AIza", _MIXED[:35], "x"),
    ("ya29. GOCSPX-", _MIXED[:60], ""),
    ("a7K8Q~", _MIXED[:34], "x"),
    ("dop_v1_ doo_v1_ dor_v1_", _HEX[:64], ""),
    ("sk- sk-ant- sk-proj- sk_live_ sk_test_ rk_live_", _MIXED[:93], ""),
    ("SG.", f"{_MIXED[:22]}.{_MIXED[:43]}", ""),
    ("key- SK shpat_ shpss_ dapi", _HEX[:32], "x"),
    ("dapi", f"{_HEX[:32]}-2", ""),
    (_HEX[:20], f"{_HEX[20:32]}-us12", "x"),
    ("5102938475:A hf_ api_org_", _MIXED[:34], "x"),
    ("AKCp AP5 EAAC", _MIXED[:99], "-"),
    (f"pat{_MIXED[:14]}.", _HEX[:64], "x"),
    ("sha256~", _MIXED[:43], "x"),
    ("hvs. hvb. hvr. ATATT3 ATCTT3", _MIXED[:90], ""),
    ("AGE-SECRET-KEY-1", "QZ" * 29, "X"),
    (
        "npm_ gsk_ glsa_ glc_ sbp_ sgp_ lin_api_ ntn_ phc_ figd_ sntrys_ sntryu_ whsec_ aio_ dckr_pat_ dckr_oat_",
        _MIXED[:40],
        "",
    ),
    ("rubygems_ pscale_tkn_ r8_ fo1_ fm1_ fm2r_ nfp_ tfp_ rdme_ shippo_live_ duffel_live_ pnu_ cfk_", _MIXED[:40], ""),
    ("pypi- nvapi- xai- pplx- tskey-auth- xkeysib- NRAK- PMAK- sq0csp- bedrock-api-key- pul- HRKU-", _MIXED[:40], ""),
    ("FLWSECK- FLWSECK_TEST- A3-", _MIXED[:40], ""),
]


@pytest.mark.parametrize(("start", "body", "more"), [(s, b, m) for starts, b, m in ISSUED for s in starts.split()])
def test_what_an_issuer_marked_goes_and_a_longer_word_stays(start: str, body: str, more: str) -> None:
    assert sanitize(f"x {start}{body} y") == f"x {MARKER} y"
    if more:
        assert sanitize(f"x {start}{body}{more} y") == f"x {start}{body}{more} y"


@pytest.mark.parametrize("row", CREDENTIALS, ids=lambda row: row.name)
@pytest.mark.parametrize("around", ["§", "x §, y", '"§"', "k=§&x", "a\\n§\\n", "a%20§", "(§)", "é§", "<§>", "-§", "+§"])
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


def in_url(text: str) -> str:
    return text.replace(" ", "%20").replace("\n", "%0A")


@pytest.mark.parametrize("around", ["§", "x\n§\ny", '{"k": "§", "n": 1}', "private_key: |\n  §\nport: 1", "key='§', x"])
@pytest.mark.parametrize("write", [str, one_line, in_url, lambda text: one_line(text).replace("\\", "\\\\")])
def test_a_pem_block_goes_whole(write: Callable[[str], str], around: str) -> None:
    assert sanitize(filled(around, write(pem()))) == filled(around, MARKER)
    assert sanitize(filled(around, write(pem("CERTIFICATE")))) == filled(around, CERTIFICATE_MARKER)


@pytest.mark.parametrize("write", [str, one_line, in_url])
@pytest.mark.parametrize("lines", [1, 2, 4])
def test_a_pem_block_cut_off_goes_and_what_follows_stays(lines: int, write: Callable[[str], str]) -> None:
    cut = write("\n".join(pem().split("\n")[:lines]))

    assert sanitize(f"read {cut}") == f"read {MARKER}"
    assert sanitize(f"read {cut}\nINFO connected to broker") == f"read {MARKER}\nINFO connected to broker"
    assert sanitize(f'{{"k": "{cut}", "n": "x"}}') == f'{{"k": "{MARKER}", "n": "x"}}'


@pytest.mark.parametrize("end", ["QUJD", "QUJD==", "Proc-Type: 4,ENCRYPTED", "DEK-Info: AES,00"])
@pytest.mark.parametrize("around", ["read §", "read '§' x"])
def test_of_a_pem_block_cut_off_the_last_line_goes_too(end: str, around: str) -> None:
    if around.endswith("x") and ":" in end:
        end += f"\n{_MIXED[:64]}"
    cut = "\n".join([*pem().split("\n")[:2], end])

    assert sanitize(filled(around, cut)) == filled(around, MARKER)


def test_a_pem_block_cut_off_ends_at_the_next() -> None:
    cut = "\n".join(pem().split("\n")[:2])

    assert sanitize(f"{cut}\n{pem('CERTIFICATE')}") == f"{MARKER}\n{CERTIFICATE_MARKER}"


def test_a_pem_block_may_have_hyphens() -> None:
    assert sanitize("-----BEGIN X-----\nComment: a-b--c\n-----END X-----") == MARKER


def test_two_pem_blocks_are_two() -> None:
    assert sanitize(f"{pem('CERTIFICATE')}\n{pem()}\nend") == f"{CERTIFICATE_MARKER}\n{MARKER}\nend"


def in_turns(value: str, escape: Callable[[str], str], of: str = string.ascii_letters + string.digits) -> str:
    """Escape every other letter and digit."""
    return "".join(escape(each) if each in of and place % 2 else each for place, each in enumerate(value))


def in_json(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)[1:-1]


def utf16(value: str) -> list[int]:
    data = value.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2)]


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
    "JSON, not ASCII": in_json,
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
    "percent, letters too": lambda value: in_turns(value, lambda letter: f"%{ord(letter):02X}"),
    "percent, letters too, twice": lambda value: in_turns(value, lambda letter: f"%25{ord(letter):02x}"),
    "JSON, letters too": lambda value: in_turns(in_json(value), lambda letter: f"\\u{ord(letter):04x}"),
    "JSON in JSON, letters too": lambda value: in_json(
        in_turns(in_json(value), lambda letter: f"\\u{ord(letter):04x}")
    ),
    "repr, letters too": lambda value: in_turns(in_json(value), lambda letter: f"\\x{ord(letter):02x}"),
    "JSON, every character": lambda value: "".join(f"\\u{unit:04x}" for unit in utf16(value)),
    "HTML, letters too": lambda value: in_turns(html.escape(value), lambda letter: f"&#{ord(letter)};", of="GxZ79"),
    "HTML, every character": lambda value: "".join(f"&#{ord(character)};" for character in value),
    "HTML, every character in hex": lambda value: "".join(f"&#x{ord(character):04X};" for character in value),
    "HTML, every character, twice": lambda value: "".join(f"&amp;#{ord(character)};" for character in value),
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


@pytest.mark.parametrize("columns", [64, 76])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\\n", "\\r\\n", "\n  ", "%0D%0A"])
@pytest.mark.parametrize("lead", range(38, 60))
def test_a_known_value_goes_in_base64_of_several_lines(lead: int, line_end: str, columns: int) -> None:
    value = "Pump-House/Nine+1"
    encoded = base64.b64encode(b"q" * lead + value.encode() + b"z" * 60).decode()
    lines = [encoded[at : at + columns] for at in range(0, len(encoded), columns)]

    left = make_sanitizer([value])(f"x {line_end.join(lines)}{line_end}y")

    before, after = (part.replace(line_end, "") for part in left.split(MARKER))
    assert encoded.startswith(before.removeprefix("x "))
    assert encoded.endswith(after.removesuffix("y"))
    assert len(encoded) - len(before + after) >= len(value) * 4 // 3 - 5


def test_short_lines_are_not_read_as_base64() -> None:
    assert make_sanitizer(["pressdoor"])("the press\ndoor") == "the press\ndoor"


def test_what_is_around_a_disguised_value_stays() -> None:
    redact = make_sanitizer(["Pump-House", "Second-One"])

    assert redact("a%41 %50ump-House &#66; S&#101;cond-One\\u0041") == f"a%41 {MARKER} &#66; {MARKER}\\u0041"
    assert redact("a%41 &#66; \\u0041 Pump%2DHause") == "a%41 &#66; \\u0041 Pump%2DHause"


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


def test_keys_that_become_the_same_stay_apart() -> None:
    first, second = CREDENTIALS[2].hit, CREDENTIALS[1].hit
    shown = {MARKER: 1, f"{MARKER} (2)": 2, f"{MARKER} (3)": {MARKER: 3, "a": 4}, "b": 5}
    value = {first: 1, second: 2, f"{MARKER}": {second: 3, "a": 4}, "b": 5}

    assert json.loads(sanitize(json.dumps(value))) == shown
    assert sanitize(sanitize(json.dumps(value))) == sanitize(json.dumps(value))
    assert hide_secrets_in(value) == shown
    assert hide_secrets_in(shown) == shown


def test_a_key_that_is_there_twice_stays_twice() -> None:
    text = '{"a": 1, "a": 2, "b": [{"a": 3}]}'

    assert sanitize(text) == text


def test_a_number_for_a_key_is_not_given_twice() -> None:
    first, second = CREDENTIALS[2].hit, CREDENTIALS[1].hit

    assert list(hide_secrets_in({f"{MARKER} (2)": 0, first: 1, second: 2})) == [
        f"{MARKER} (2)",
        MARKER,
        f"{MARKER} (3)",
    ]


def test_a_json_value_for_an_answer_loses_known_numbers_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitizer, "_process", sanitizer._KnownValues())  # noqa: SLF001
    sanitizer.add_known("31415926535")
    value = {"v": 31415926535, "n": [-31415926535, 31415926535.0, {"x": "pin 31415926535"}]}
    plain = {"v": 131415926535, "n": [0.31415926535, True, None, 21.5, "a", {"password": "x", "": []}]}

    assert hide_secrets_in(value) == {"v": MARKER, "n": [MARKER, MARKER, {"x": f"pin {MARKER}"}]}
    assert hide_secrets_in(plain) == plain


@pytest.mark.parametrize("lead", [b"", b"\xff", b"\xc3", b"\xff\xfe\x00" * 9, "é".encode()])
def test_bytes_lose_known_values_and_credentials_before_they_are_encoded(
    lead: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sanitizer, "_process", sanitizer._KnownValues())  # noqa: SLF001
    sanitizer.add_known("Pümp-House")

    for secret in ("Pümp-House", CREDENTIALS[2].hit, "\n" + pem()):
        data = lead + b"\x00" + secret.encode() + b"\xff"
        assert hide_secrets_in_bytes(data) == lead + b"\x00" + sanitizer.hide_secrets(secret).encode() + b"\xff"
        assert secret.encode() not in hide_secrets_in_bytes(data)


@given(st.binary())
def test_bytes_without_a_secret_stay(data: bytes) -> None:
    assert hide_secrets_in_bytes(data) == data


@pytest.mark.parametrize("slash", ["/", "\\/"])
def test_an_answer_loses_the_webhooks_of_slack(slash: str) -> None:
    written = f"https://hooks.slack.com/services/T0/B0/{_MIXED[:24]} x".replace("/", slash)

    assert hide_secrets(written) == f"https://hooks.slack.com/services/{MARKER} x".replace("/", slash)
    assert hide_secrets("https://hooks.slack.com/services/") == "https://hooks.slack.com/services/"


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
            "password:\n  ",
            "\n- ",
            "passwords[",
            '{"password": {"value": "',
            "https://",
            "$6$",
            "%41",
            "&#65;",
            "<password>",
            "</password>",
        ),
    ]
)
HOSTILE = st.lists(st.one_of(FRAGMENTS, st.text(max_size=4)), max_size=14).map("".join)


@given(HOSTILE)
@settings(deadline=None, max_examples=500)
@example("\ud800password=\udfff")
@example(f"shpat_{'3fa92c7be105' * 2}3fa92c7b-eyJa7Kq2Zx9Lm4Ra7Kq2Zx9.a7Kq2Zx9Lm4Ra7Kq2Z.a7Kq2Zx9Lm4Ra7Kq2Zx9Lm4R")
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
        "password[",
        'password["a"]["b"] ',
        "password: {",
        "password: {a ",
        "password a='b' ",
        "password:\n  a",
        "password:\n  - a\n",
        "password:\n",
        "  ",
        "https://a1",
        "$7$a",
        "$6$a$",
        "%41",
        "&#65;",
        "&amp;",
        "\\u0041",
        "A" * 64 + "\n",
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


@pytest.mark.parametrize("name", ["a", "password "])
@pytest.mark.parametrize("item", ["1", "{}", '{"value": 1}'])
def test_work_grows_linearly_with_a_name_and_what_stands_under_it(item: str, name: str) -> None:
    def seconds(size: int) -> float:
        text = f'{{"{name * (size // len(name))}": [{f"{item}, " * (size // len(item))}1]}}'
        start = time.process_time()
        sanitize(text)
        return time.process_time() - start

    small = min(seconds(2_000) for _ in range(3))

    assert seconds(32_000) < 48 * max(small, 0.002)

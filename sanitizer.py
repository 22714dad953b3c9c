"""What must not leave this process, and how it is hidden.

A text is read structure first: PEM blocks, passwords in URLs, credentials and paths that are known by their form, keyed
values (what is the key, what is its value, where does it end), and places with a grammar of their own. A JSON text is
read value by value. Known values, those of the settings, go before all that, in whatever encoding they appear.

Work grows linearly with the text: a repeat is possessive, bounded, or ends at a character it cannot contain; a value
that was read and left is at most `_LONGEST_HARMLESS` characters long; a longer one is hidden and not read again.
"""

import base64
import bisect
import contextlib
import copy
import functools
import json
import logging
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import quote

MARKER: Final = "[REDACTED]"
CERTIFICATE_MARKER: Final = "[CERTIFICATE REDACTED]"
PATH_MARKER: Final = "[FILE PATH REDACTED]"

_SHORTEST_KNOWN: Final = 4
_LONGEST_HARMLESS: Final = 200
# How far in front of a key one looks for: an open quote or bracket, the rest of its word, its owner.
_LINE, _NEAR, _OWNER = 512, 64, 16
# A text is read again until nothing changes, so that a second call changes nothing; a longer one is read once, as text.
_PASSES, _LONG_TEXT = 4, 262_144
# A text with more keys is no log line any more: whatever follows the rest of them is hidden.
_MOST_KEYS: Final = 10_000
_DEEPEST_EXTRA: Final = 8


class Pattern(NamedTuple):
    """One shape of a secret; of an expression with groups, only what its group matched is hidden."""

    name: str
    expression: str
    hit: str
    miss: str


# Filler for the examples, so that no scanner takes them for real.
_A: Final = "a7Kq2Zx9Lm4R" * 12
_H: Final = "3fa92c7be105" * 12

CREDENTIALS: Final = (
    Pattern("JWT", r"eyJ[\w-]{8,}+(?:\.[\w-]{4,}+){1,4}+", f"eyJ{_A[:20]}.{_A[:30]}.{_A[:43]}", f"eyJ{_A[:60]}"),
    Pattern("AWS key id", r"A(?:KIA|SIA|BIA|CCA)[A-Z0-9]{16}(?!\w)", f"AKIA{'Q7Z2' * 4}", f"AKIA{'Q7Z2' * 3}"),
    Pattern("GitHub", r"gh[opusr]_[A-Za-z0-9]{36,}+", f"ghp_{_A[:36]}", f"ghp_{_A[:35]}"),
    Pattern("GitHub, fine-grained", r"github_pat_\w{22,}+", f"github_pat_{_A[:82]}", "github_pat_rotation"),
    Pattern("GitLab", r"gl[a-z]{2,6}-(?=[a-z_-]{0,50}[A-Z0-9])[\w.-]{20,}+", f"glpat-{_A[:20]}", f"glpat-{_A[:19]}"),
    Pattern("GitLab runner", r"GR1348941[\w-]{20,}+", f"GR1348941{_A[:20]}", f"GR1348941{_A[:19]}"),
    Pattern("Slack", r"x(?:ox[a-z]|app)-[\w-]{16,}+", f"xoxb-{_A[:24]}", f"xoxb-{_A[:15]}"),
    Pattern("Google API key", r"AIza[\w-]{35}(?![\w-])", f"AIza{_A[:35]}", f"AIza{_A[:34]}"),
    Pattern("Google OAuth", r"(?:ya29\.|GOCSPX-)[\w-]{20,}+", f"ya29.{_A[:60]}", f"ya29.{_A[:19]}"),
    Pattern("Azure client secret", r"[\w~.]{3}\dQ~[\w~.-]{31,34}(?![\w~-])", f"a7K8Q~{_A[:34]}", f"a7K8Q~{_A[:30]}"),
    Pattern("DigitalOcean", r"do[opr]_v1_[A-Za-z0-9]{40,}+", f"dop_v1_{_H[:64]}", f"dop_v1_{_H[:39]}"),
    Pattern(
        "OpenAI, Anthropic", r"sk-(?=[A-Za-z_-]{0,99}\d)[\w-]{20,}+", f"sk-ant-{_A[:93]}", "sk-" + "by-example-" * 3
    ),
    Pattern("Stripe", r"[rs]k_(?:live|test)_\w{16,}+", f"sk_live_{_A[:24]}", f"sk_live_{_A[:15]}"),
    Pattern("SendGrid", r"SG\.[\w-]{16,32}\.[\w-]{16,}+", f"SG.{_A[:22]}.{_A[:43]}", f"SG.{_A[:22]}"),
    Pattern("Mailgun", r"key-[0-9a-f]{32}(?!\w)", f"key-{_H[:32]}", f"key-{_H[:31]}"),
    Pattern("Mailchimp", r"[0-9a-f]{32}-us\d{1,2}(?!\w)", f"{_H[:32]}-us12", f"{_H[:31]}-us12"),
    Pattern("Twilio", r"SK[0-9a-f]{32}(?!\w)", f"SK{_H[:32]}", f"SK{_H[:31]}"),
    Pattern("Telegram", r"(?<!%)\d{5,16}:A[\w-]{34}(?![\w-])", f"5102938475:A{_A[:34]}", f"5102938475:A{_A[:33]}"),
    Pattern("Hugging Face", r"(?:hf|api_org)_[A-Za-z0-9]{34}(?!\w)", f"hf_{_A[:34]}", f"hf_{_A[:33]}"),
    Pattern("JFrog", r"(?:AKC|AP\d)[A-Za-z0-9]{10,}+(?![\w+/=-])", f"AKCp{_A[:69]}", "AKCp5"),
    Pattern("Facebook", r"EAA[A-Za-z0-9]{80,}+(?![\w+/=-])", f"EAAC{_A[:99]}", f"EAAC{_A[:60]}"),
    Pattern(
        "Airtable", r"pat[A-Za-z0-9]{14}\.[0-9a-f]{64}(?!\w)", f"pat{_A[:14]}.{_H[:64]}", f"pat{_A[:14]}.{_H[:63]}"
    ),
    Pattern("OpenShift", r"sha256~[\w-]{43}(?![\w-])", f"sha256~{_A[:43]}", f"sha256:{_A[:43]}"),
    Pattern("Vault", r"hv[bsr]\.[\w-]{24,}+", f"hvs.{_A[:90]}", f"hvs.{_A[:23]}"),
    Pattern("Shopify", r"shp[a-z]{2}_[0-9a-fA-F]{32}(?!\w)", f"shpat_{_H[:32]}", f"shpat_{_H[:31]}"),
    Pattern("Databricks", r"dapi[0-9a-f]{32}(?:-\d)?(?!\w)", f"dapi{_H[:32]}", f"dapi{_H[:31]}"),
    Pattern("Atlassian", r"AT[AC]TT3[\w=-]{40,}+", f"ATATT3{_A[:120]}", f"ATATT3{_A[:39]}"),
    Pattern("age", r"AGE-SECRET-KEY-1[A-Z0-9]{58}(?!\w)", f"AGE-SECRET-KEY-1{'QZ' * 29}", "AGE-SECRET-KEY-1"),
    Pattern(
        "an issuer's name and _",
        r"(?:npm|gsk|glsa|glc|sbp|sgp|lin_api|ntn|phc|figd|sntry[su]|whsec|aio|dckr_[op]at|rubygems|pscale_\w{2,5}"
        r"|r8|fo1|fm[12]r?|nfp|tfp|rdme|shippo_live|duffel_live|pnu|cfk)_(?=[A-Za-z_-]{0,40}\d)[\w-]{27,}+",
        f"npm_{_A[:36]}",
        f"npm_{_A[:26]}",
    ),
    Pattern(
        "an issuer's name and -",
        r"(?:pypi|nvapi|xai|pplx|tskey-auth|xkeysib|NRAK|PMAK|sq0[a-z]{3}|bedrock-api-key|pul|HRKU|FLWSECK(?:_TEST)?|A3)-"
        r"(?=[a-z_-]{0,40}[A-Z0-9])[\w-]{22,}+",
        f"pypi-{_A[:85]}",
        f"pypi-{_A[:21]}",
    ),
)
"""Unmistakable wherever they stand: what their issuers gave a prefix and a length to be found by."""

_WORD: Final = r"((?:[^\s\"'`\\]|[\"'\\](?=\w))++)"
_ARGUMENT: Final = rf"(?:\"([^\"\n]+)|'([^'\n]+)|{_WORD})"


def _option(tool: str, option: str, hit: str, miss: str, *, value: str = _ARGUMENT) -> Pattern:
    """Make the pattern of a tool's option; before it there can be others, and lines can go on behind a backslash."""
    others = rf"(?:(?!{tool})(?:[^\n\\]|\\\n?)){{0,400}}?(?:\s|[\"'],\s?[\"'])"
    return Pattern(hit.partition(" x")[0], rf"{tool}{others}{option}{value}", hit, miss)


_NEXT = r"(?>[\"'],\s?(?=[\"'])|[ =]{0,4}(?![\"'][,\])]))"
_WEBHOOK: Final = Pattern(
    "Slack webhook",
    r"hooks\.slack(?:-gov)?\.com\\{0,3}/(?:services|workflows|triggers)\\{0,3}/((?:[\w/]|\\{1,3}+/){20,}+)",
    f"hooks.slack.com/services/T0/B0/{_A[:24]}",
    "hooks.slack.com/services/",
)
PLACES: Final = (
    Pattern(
        "Bearer",
        r"[Bb](?i:earer)(?:[ \t]|%20){1,4}+(?![A-Za-z]?[a-z]*+(?![\w.+/=~-])|\w{1,32}+=[\w\"']|-)([\w.~+/=-]{6,}+)",
        f"Bearer {_A[:20]}",
        "Bearer realm=plant",
    ),
    _option(
        r"\bcurl\b",
        rf"(?:-[a-zA-Z]{{0,4}}u|--(?:proxy-)?user){_NEXT}",
        "curl -su bob:x https://h",
        "curl -u bob https://h:8883",
        value=rf"(?:\"[^\":\n]{{0,99}}:([^\"\n]+)|'[^':\n]{{0,99}}:([^'\n]+)|[\"']?[\w.@%+{{}}-]{{0,99}}[\"']?:[\"']?{_WORD}"
        r"|[\"']?([^\s\"':]{6,99}):[\"'\s])",
    ),
    _option(
        r"\b(?:mosquitto_\w++|mqttx|sqlcmd|bcp|zip)\b", f"--?P{_NEXT}", "mosquitto_sub -P x", "mosquitto_sub -p 1883"
    ),
    _option(
        r"[\s\"']-[uh]\b",
        rf"-P{_NEXT}(?![\"']?\d{{1,5}}(?:[\s\"']|\Z))",
        "tool -h plc -P x",
        "mysql -h plc -P 3306",
    ),
    _option(
        r"\b(?:sshpass|(?:docker|podman|helm|az|oc|skopeo)\s[^\n]{0,40}?login|mongo(?:sh|dump|restore|export|import)?(?=\s))",
        f"-p{_NEXT}",
        "sshpass -p x ssh plc",
        "ssh -p 2222 plc",
    ),
    _option(r"\b(?:mysql|mariadb)\w{0,10}", "-p", "mysql -u bob -px", "mysql -p plant"),
    _option(r"\bredis-cli\b", f"-a{_NEXT}", "redis-cli -a x ping", "redis-cli -p 6379"),
    _option(r"\bldap\w{2,9}", f"-w{_NEXT}", "ldapsearch -w x", "ldapsearch -W"),
    Pattern("openssl pass:", rf"-pass(?:in|out)?[ =]pass:{_WORD}", "-passin pass:x", "-passin file:x"),
    Pattern(
        "password files",
        rf"(?:mosquitto_passwd|htpasswd)\s(?:-\w{{1,5}}\s){{0,4}}-\w{{0,4}}b\w{{0,4}}\s(?:[./~]\S{{0,99}}\s)?\S{{1,99}}\s{_ARGUMENT}",
        "mosquitto_passwd -b /etc/pw bob x",
        "mosquitto_passwd -c /etc/pw bob",
    ),
    Pattern(
        "SQL",
        rf"(?i:IDENTIFIED\s(?:WITH\s\S{{1,40}}\s)?BY)\s{_ARGUMENT}",
        "CREATE USER bob IDENTIFIED BY 'x'",
        "IDENTIFIED VIA ldap",
    ),
    Pattern("redis.conf", rf"(?:requirepass|masterauth)\s{_ARGUMENT}", "requirepass x", "requirepassword"),
    Pattern(".netrc", rf"login\s\S{{1,99}}\s{{1,8}}password\s{_ARGUMENT}", "login bob password x", "login bob account"),
    Pattern(
        "CONNECT in bytes",
        r"MQTT\\x0[345](?:\\x[4-7c-f][0-9a-f]|[@-\[\]-~])[^\"'\n]{0,400}\\x00(?:\\x[0-9a-f]{2}|\\[nrt]|[^\\])([^\"'\n\\]+)",
        r"MQTT\x04\xc2\x00<\x00\x02gw\x00\x03bob\x00\x08geheim42",
        r"MQTT\x04\x02\x00<\x00\x02gw",
    ),
    Pattern(
        "paho's username_pw_set",
        r"username_pw_set\([^,()\n]{1,99},\s?(?:password=)?b?[\"']([^\"'\n]+)",
        "username_pw_set('bob', 'x')",
        "username_pw_set(user, password)",
    ),
    Pattern(
        "Coreflux user commands",
        rf"-(?i:add-?user|change-?user-?password|(?:un)?install-?with-?token)\s{{1,4}}[^\s\"']{{1,99}}\s{{1,4}}{_WORD}",
        "-addUser bob x",
        "-addUserToGroup bob operators",
    ),
    Pattern(
        "Coreflux secrets", rf"-(?i:set-?secret)\s{{1,4}}\w{{1,99}}={_WORD}", "-setSecret DB=x", "-removeSecret DB"
    ),
    Pattern(
        "LoT secrets",
        r"KEEP\s{1,4}SECRET\s{1,4}\\?[\"'][^\"'\n\\]{1,99}\\?[\"']\s{1,4}WITH\s{1,4}\\?[\"']([^\"'\n\\]+)",
        'KEEP SECRET "DB" WITH "x"',
        'GET SECRET "DB"',
    ),
    Pattern(
        "password hashes",
        r"\$(?:1|2[abxy]?|[5-7]|y|apr1|argon2(?:id|i|d))\$((?:[\w./+=,-]{1,99}\$){1,4}+[\w./+=-]{20,}+)",
        f"bob:$7$101$b0b=${_A[:86]}==",
        "s/a/$1$2$/",
    ),
    _WEBHOOK,
    Pattern(
        "cookies",
        r"[Cc]ookie[\"']?[:,]\s?b?[\"']?(?:(?!\[)[\w.-]{1,99}=(?!\[R)([^\s;,\"'\\]{6,}+)|(?:[\w.-]{1,99}=[^;\n]{0,99};\s?){1,9}?"
        r"[\w.-]{1,99}=(?!\[R)([^\s;,\"'\\]{16,}+))",
        f"Cookie: theme=dark; sid={_A[:16]}",
        "Cookie: theme=dark; lang=de",
    ),
    Pattern(
        "a value that changed",
        r"\[REDACTED\]\\?[\"'] (?:->|=>) \\?[\"']([^\"'\n\\]+)",
        'password = "[REDACTED]" -> "y"',
        'password = "[REDACTED]" -> y',
    ),
    Pattern(
        "signatures",
        r"(?i:signature|[?&]sig|response)=\\?[\"']?([\w%+/-]{24,}+={0,2})",
        f"&sig={_A[:43]}%3D",
        "response=none",
    ),
)
"""Where a secret stands by the grammar of a tool, a header or a call, with no key that says so."""
_PLACE_HINT = re.compile(
    r"bearer|curl|username_pw_set|-add-?user|-change-?user|-set-?secret|install-?with|keep|slack"
    r"|cookie|sig|response=|-> |=> |pass:|passwd |identified|requirep|masterauth|login |mqtt\\| -[paw]|'-[paw]|\"-[paw]"
    r"|\$(?:[15-7y]|2[abxy]?|apr1|argon2(?:id|i|d))\$"
)
_SLACK_WEBHOOK = re.compile(_WEBHOOK.expression)
_PLACES = tuple(re.compile(row.expression) for row in PLACES)

# What can hold a credential, and where in it one starts: the n of an escaped newline and the digits of %20 are no word.
_LONG_WORD = re.compile(r"[A-Za-z0-9_.~:%\\=-]{20,}+")
_ONE_CREDENTIAL = "(?a:" + "|".join(row.expression for row in CREDENTIALS) + ")"
_BEGINS = r"(?a:(?<![\w-])|(?<=\A-)|(?<=\\[nrt])|(?<=%[0-9A-F][0-9A-F]))"
_CREDENTIAL = re.compile(_BEGINS + _ONE_CREDENTIAL)

_PEM_WORDS = r"(?:[ ]|%20) (?:[A-Z0-9 ]|%20){1,40}+ -----"
_PEM = re.compile(
    rf"""(?x) -----BEGIN (?P<kind> {_PEM_WORDS} )
    (?: [^-]*+ (?: -(?!----(?:BEGIN|END)(?:[ ]|%20)) [^-]*+ )*+ -----END {_PEM_WORDS}           # whole
      | (?: (?: \\{{1,16}}+[nrt] | %0[AD] | [\s|>\#] ){{1,40}}+                          # cut off: the lines it has
            (?: [A-Za-z0-9+/=]{{20,}}+ | [A-Za-z0-9+/]{{1,64}}+ (?: =++ | (?= ["'.…] | \s*\Z ) )
              | [PD][\w-]{{7,9}}:[^\\\n]{{0,99}}+ )
        )*+
    )"""
)
_URL = re.compile(
    r"""(?x) (?<=[A-Za-z0-9]) :(?:\\{0,3}+/){2} [^\s:/?\#"'<>\\\[]{0,256}+ :
    (?! \d{1,5} (?: [/?\#;:)\]}\\"'\s] | (?<=\d\d\d), | ,(?![^\s/@"']{0,256}+@) | \Z ) )    # a port
    (?P<authority> (?: (?!://) [^\s"'\\/?\#] | \\(?!\\{0,16}+["'nrt]) )*+ )
    (?P<more> (?: (?!://) [^\s"'\\] | \\(?!\\{0,16}+["'nrt]) )*+ )"""
)

# The user of a web address is a token when a machine made it; that of a broker's is often the name of a device.
_TOKEN_URL = re.compile(r"(?i:https?):(?:\\{0,3}+/){2}(?P<token>[\w.~%-]{16,256}+)@")

# A key is judged by its last word, so after the word it is over. Words are looked for in the text in lower case.
_KEY_WORD = re.compile(
    r"(?:pass(?:word|wd|wort|phrase|code)?s?|pwd|pswr?d|pw|p/w|contrase[nñ]a|mot de passe|senha|wachtwoord|lösenord"
    r"|kennwort|mot_de_passe|snmp[_-]?community|secret_key_base|hasło|пароль|密码|密碼|パスワード|비밀번호|비번|secrets?|token|credentials?|creds|authorization|auth|psk|keys?"
    r"|otp|sid|session)\d{0,2}(?!\w|[-.]\w)"
)
_ANY_VALUE = re.compile(
    rf"((?i:{_KEY_WORD.pattern})\\{{0,15}}[\"']?(?:\s{{0,9}}[:=]\s{{0,9}}|\s{{1,9}})\\{{0,15}}([\"'])?)"
    r"(?(2)[^\"'\n]++|[^\s\"',;&\\]++)"
)
# Before the word: whose key or pass it is, and what makes it a flag that is on or off, or a command about a secret.
_KEY_OWNER = re.compile(
    r"(?:access|account|api|app|application|auth|client|deploy|encryption|integration|license|master|private|secret|service"
    r"|session|shared|sign|signing|ssh|storage|subscription|webhook|tls|ssl)[ _.-]?\Z"
)
_SHORT: Final = {"pass", "pw", "psk"}
_WEAK: Final = {"auth", "key", "keys", "otp", "sid", "session"}
_NO_PASSWORD: Final = {
    "authorization",
    "credential",
    "credentials",
    "creds",
    "psk",
    "secret",
    "secrets",
    "token",
} | _WEAK
_PLAIN_OWNER = re.compile(
    r"(?:\A|[^a-z0-9_ -]|\s\s|\b(?:for|with|the|by|of|and|has|from|to|in|at|no|as|info|debug|error|warn|warning|get|set"
    r"|del|put|delete|redis|s3|record|map|dict|hit|miss|entry|a|this|that|its?)|public|primary|foreign|cache|routing"
    r"|partition|sort|row|object|idempotency|hash|group|index|lookup|message)[ _.-]?\Z"
)
_PUBLIC = re.compile(r"pub(?:lic)?[ _.-]?\Z")
_PASS_OWNER = re.compile(r"(?:db|user|root|key|store|admin|mqtt|require|\b(?:id|user)/)\Z")
_NO_KEY = re.compile(
    r"(?<![a-z])(?:(?:is|has|no|use|needs?|allow|show)[_-]?|requires?[_-]|(?:unexpected|illegal|expected|it) )\Z"
    r"|-(?:set|remove|change-?user-?)\Z|(?:jsonweb|cancellation_?|masked[_-]?)\Z|\$\{[a-z0-9_]*\Z"
)

# What is in front of a name says what follows it: a value, or none.
_FLAG = re.compile(r"(?:\A|[\[(,\"'=])-{1,2}[\w.-]*+\Z")
_PAIR = re.compile(r"[(\[]b?\\{0,15}[\"'][\w.-]{0,40}\Z")
_PAIR_END = re.compile(r"\\{0,15}[\"'][)\]]")
_SETTER = re.compile(
    r"(?:(?:set|put|add|append|define|header)\w{0,32}\(|map\.?of\((?:[^()]{0,64},\s?)?)\\{0,15}[\"'][\w.-]{0,64}\Z"
)
_REMOVES = re.compile(r"(?:get|delete|remove|has|pop|find|check|contains|includes)\(b?[\"'][\w.-]*\Z")
_ASKS = re.compile(r"(?:get|read|load|fetch|find|ask|input|check|verif\w{1,5}|hash|code|field|for|valid\w{0,4})_?\Z")
_CHANGES = re.compile(r"\b(?:re)?(?:set|chang|updat)\w{0,4} [\w ]{0,24}\Z")
_DECLARES = re.compile(r"(?:\A|[\s\"'])(?:#?define|setx?|setenv|env|arg|export|-g?x|-d)[ \t]+[\"']?[\w.]*\Z")
_IN_QUERY = re.compile(r"[?&][\w.%-]*\Z")
# Name and value that are in quotes together, as systemd and shells have them.
_ENVIRONMENT = re.compile(r"(?:environment=|(?:-e|--env|export|set)[ =])([\"'])\w*\Z")
# Code assigns to these; what it assigns is a name when it has the form of one.
_ASSIGNED = re.compile(r"\b(?:self|this|cls)\.[\w.]*\Z|\b(?:const|let|var|val|final|auto) [\w ]*\Z")
# After a complaint the text behind the colon is the reason.
_COMPLAINT = re.compile(r"(?:fail|cannot|could not|unable|error|invalid|denied|expired|rejected)[^\n]{0,48}\Z")

_QUOTE = r"\\{0,15}+[\"'`] | &(?:quot|\#0?3[49]|\#x2[27]); | %2[27]"
# What an object calls the secret that it is about.
_ITSELF: Final = r"(?:values?|current|new|old|plain(?:text)?|raw)"
_ATTRIBUTES: Final = r"""[ \t]++ (?: (?!value=)[\w:.-]{1,32}+=["'][^"'<>\n]{0,64}+["'][ \t]++ ){0,4}+ (?=value=["'])"""
_SEPARATOR = re.compile(
    rf"""(?xi)
    (?P<close> {_QUOTE} )?+
    (?: (?:\[\])?+ [\])]{{0,2}}+ (?P<index> \[ [^\[\]\n]{{1,64}}+ \] )?+ \*{{0,2}}+ [ \t]*+
          (?: :[ ]?&?(?:'static[ ])?[a-z][\w.<>\[\]|&?]{{0,30}}+(?:[ ]\|[ ]None)?[ ](?==[ ])   # its type
            | (?::[ \t]*+|As[ ])?+str(?:ing)?[ \t]*+(?==) )?+
          (?P<assign> [:?+.|!]{{1,3}}+= | =>?(?!=) | (?<=\s)={{2,3}}+ | ={{2,3}}+(?!\s) | :(?!:)
              | ->(?=[\s"']) | <- | %3[ad] )
          \*{{0,2}}+ [ \t]*+
          (?: [|>][+-]?[ \t]*+\r?\n[ \t]++ )?+
          (?P<nested> \{{ (?: [^{{}}]{{0,200}}? [\s,] )?? \\{{0,15}}+["']? {_ITSELF} \\{{0,15}}+["']? \s*+ [:=] \s*+ )?+
      | (?P<element> > ) \s*+ (?= [^<>]{{1,4096}}+</ )
      | [ \t]++ (?P<whose> (?:for|of)[ \t]++ (?: (?!(?:is|was|to|set|changed)[ ])[^\s:]{{1,64}}+[ \t]++ ){{0,4}}+ )?+
          (?P<prose> (?:is|was|equals|ist|lautet|est|es|to|(?:set|changed)[ ]to) [ ]?:?+ [ ]++
              (?: (?:now|set[ ]to)[ ]++ )?+
            | (?(whose) [^\s:]{{1,64}}+:[ ] | (?!) ) )
      | (?P<named> (?(close) \s*+,?\s*+ | (?: [ \t]*+[,\r\n]\s*+ | {_ATTRIBUTES} ) )
          \\{{0,15}}+["']? value \\{{0,15}}+["']? \s*+ [:=] \s*+ )
      | (?P<pair> \s*+,\s*+ ) (?= b?\\{{0,15}}+["'] )
      | (?P<with> (?(close) [ \t]++ with[ \t]++ | (?!) ) ) (?= \\{{0,15}}+["'] )
      | (?P<call> [({{] ) (?= b?["'] )
      | (?P<dash> [ \t]++-[ \t]++ ) (?= ["'] )
      | (?P<space> [ \t]++ )
    )"""
)
# A call that looks a secret up by a name, or asks for it, has none among its arguments.
_LOOK_UP: Final = (
    r"[\w.:]{0,40}(?:(?:(?<![a-z])|(?=[A-Z]))(?i:get|env|fetch|load|read|find|look|var|conf|setting|header|param|opt|arg"
    r"|prompt|input|ask|field|column|label|text|trans|request|query|select|form|cookie|resolve|split|join|replace|strip"
    r"|hash|err|exception|message|buffer)|(?i:code|(?:pass\w{0,6}|pwd|token|key|secret)\.))[\w.:]{0,40}\("
)
_OPENING = re.compile(
    rf"""(?x) (?: ConvertTo-SecureString[ ](?:-String[ ])? | !!str[ ]
        | (?:new[ ])?+ (?!{_LOOK_UP}) [A-Za-z_][\w.:]{{0,40}}+ \( (?= b?[\"'] (?![A-Z_]{{1,40}}[\"']) ) )?+
    (?: \[[ \t]*+ )?+ [bBrRuUfFN$@]{{0,2}}+ (?P<quote> \"{{3}} | '{{3}} | {_QUOTE} )"""
)
# A quote after a key that stands inside quotes itself closes them, when what follows it looks like the outside.
_OUTSIDE = re.compile(r"[ \t]*+[,)\]}:+;%]|[ \t]+(?:(?![\w\"'])|\$?[A-Za-z_]\w{0,64}+(?=\s*(?:;|\n|\Z)))")
_SCHEME = re.compile(
    r"(?i)(?:bearer|basic|token|apikey|digest|negotiate|ntlm|splunk|bot|jwt|oauth(?![ ]\d\.)|key|sharedaccesssignature"
    r"|aws4-[\w-]{11})"
    r"(?:[ \t]{1,4}+|%20|\+)(?=[^\s\"'])"
)
_ENTRY_ITSELF = re.compile(_ITSELF, re.IGNORECASE)
_PASSWORDS = re.compile(r"(?i)pass(?:word|wd|phrase|code)s\Z")
# What can end a bare value: a delimiter with no more of the same word behind it, or with the next key.
_STOP = re.compile(
    r"""(?x) (?P<escape> \\ (?! \\{0,16}+["'`] | [nrt](?!\w) | [nrt][\w.-]{1,64}+[ ]?[=:] | \Z ) .
          | \[(?:FILE|CERT)[A-Z ]{5,9}REDACTED\] )
      | [\s\\]
      | , (?= \\{0,15}["'] )
      | [,;&|] (?= \s | \Z | (?:amp|quot|\#\d\d); | [A-Za-z_][\w.%-]{0,64}+[=:] ) | & (?= [\w.%-]{1,64}+= )
      | (?P<closer> ["'`)\]}>] ) (?= \s | \Z | [,;:.&|<\\"'`)\]}>+%({\[] )
      | < (?=/) | (?P<fragment> \# )"""
)
# A value, or a list of them, on the lines below its name; no further names.
_BELOW = re.compile(
    r"""(?xm) ^ (?P<indent> [ \t]*+ ) (?: -[ ]++ )?+ ["']? (?P<name> [\w.-]{1,64}+ ) ["']? : [ \t]*+
    (?P<lines> (?: \r?\n [ \t]*+ -[ ]++ (?! [\w.-]++:\s ) [^\r\n]++ )++
      | \r?\n (?P=indent) [ \t]++ (?: value:[ ]++ )?+ (?! -[ ] | [\w.-]++:(?:\s|\Z) ) [^\r\n]++ )"""
)
_LINE_BELOW = re.compile(r"(\n[ \t]*+(?:-[ ]++|value:[ ]++)?+)([^\r\n]++)")
_OPENER: Final = {")": "(", "]": "[", "}": "{", ">": "<"}
_LISTED = re.compile(r"\[(?![A-Z ]{0,12}REDACTED\])(?=[^\s\[\]\"'][^\[\]\"'\n]{0,200}\])")
_NEXT_KEY = re.compile(r"[A-Za-z_][\w.-]{0,64}=[^=\s]")
_BUFFER = re.compile(r"<Buffer[0-9a-f ]++")
_ELEMENT = re.compile(r"(?:[^<>\s]++|\s++(?!<))++")
_NUMBER = re.compile(r"-?\d[\d.]*+(?:[eE][+-]?\d++)?+(?=\s*+(?:[,}\]]|\Z))")

_END = r"(?= \Z | [\s,;:&|\"'`)\]}>\\<@/] | [.!?](?!\w) )"
# Rule 7: what stands where a value would and is none.
_NOTHING = re.compile(
    rf"""(?xi)(?: none | null | nil | undefined | n/a | true | false | yes | no | on | off | bearer | basic | \s+
      | [*•.]{{2,}}+ | x{{3,}}+ | [?~] | \((?:sensitive|known|write-only)[ ][a-z -]{{3,30}}\)
      | \$\{{{{1,2}}[^}}\n]{{0,99}}\}}{{1,2}} | \$\([^)\n]{{0,99}}\) | %[A-Z_]++%
      | \$(?-i:[A-Z_][A-Z0-9_]*+|[A-Za-z_]{{3,64}}|\d)
      | \{{\{{[^{{}}\n]{{0,99}}\}}\}} | [:\#$]?\{{[\w.:!\[\]"']{{0,40}}\}} | \\\([\w.]{{1,64}}\)
      | %(?:\(\w{{1,64}}\))?[+\#]?[sdrvqx@] | <[a-z][a-z_ ()/|.,-]{{0,60}}> | ![a-z]{{2,20}}(?=[ ]\w)
      | \[(?:certificate[ ]|file[ ]path[ ])?redacted\] | \[(?-i:[A-Z][A-Z_ ]{{2,30}})\]
      | [\[(<*]{{1,3}}(?:hidden|masked|redacted|removed|filtered|omitted|not[ ]set|unset|empty|none|null)[\])>*]{{1,3}}
    ) {_END}"""
)
_CONTAINER = re.compile(r"[\[{(](?=[\s\[\]{}()]|\Z|[a-z]{1,20}:\s|\\{0,15}+[\"'][^\"'\n]{0,64}[\"']\s{0,4}[:,\])}])")
# What a bare value is when it is code: names that are followed, called or indexed.
_EXPRESSION = re.compile(
    r"""(?x) [!&*(]{0,2}+ (?: (?:new|await|not|try[?!]?|if)[ ]\(?+ )?+
    (?P<names> \$?[A-Za-z_]\w*+ (?: (?: \??\. | :: | -> ) [A-Za-z_]\w*+ )*+ )
    (?P<open> \( (?= [\w"')\]*&$(\[{:-] | \s*\Z | \s*\n ) | \??\.?\[ (?=[\w"':-]) | \{ (?=\w+:)
      | <[A-Za-z][\w ,|<>\[\]]{0,60}>\( )?+"""
)
_CLOSED = re.compile(r"\s*+\Z|\s*\n|[^\n]{0,200}?(?:[)\]}]|[,({\[]\s{0,4}(?:\n|\Z))")
_OPERATOR = re.compile(r" (?:if|else|or|and|\?{1,2}) | :\w")
_LOGICAL = re.compile(r" (?:&&|\|\|) | else \{")
_CMDLET = re.compile(r"(?:Get|New|Read|Import|ConvertTo|ConvertFrom)-[A-Z]\w+")
_TYPE_NAME = re.compile(r"(?:[A-Z][a-z]+){2,}(?<=Type|ypes|Info|ions|nfig|ider|tory|back)")
_LETTERS = re.compile(r"[A-Za-z_.:>?$-]+")
_NAME_PIECE = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
_ROOT = re.compile(
    r"(?:self|cls|this|os|sys|config|cfg|settings|options|opts|args|kwargs|env|environ|process|request|req|ctx|var|local"
    r"|module|data)\W"
)
_TYPE_OR_REMARK = re.compile(
    r"""(?xi)(?: &?str | string | bytes | int | bool | text | any | SecretStr | Option(?:al)?[\[<]&?\w+[\]>]
      | (?:var)?char\(\d+ | \((?:Optional|str|bytes)[^()\n]{0,40}\)
      | [A-Z][a-z]+(?=(?:[ ][A-Za-z][a-z'-]*,?){2,20}\.\s*(?:\Z|\n))                       # a sentence
      | not? | do(?=[ ]not) | never | too | the | an? | in | at | for | from | to | with | by | be | been | also | only
      | still | must | should | may | can | cannot | will | has | have | if | when | because | but | or | and | is | are
      | was | were | invalid | incorrect | wrong | empty | unset | valid | ok | optional | unknown | weak | strong
      | short | long | mandatory | different | same | fine | safe | set | reset | sent | lost | kept | hidden | please
      | found | given | taken | known | shown | inherit | as | oauth | via | keep | this | that | it | you | your
      | (?:pass(?:word|wd)|token|secret|key)(?=[ ][a-z]) | raise | return | throw | continue | break
      | option | flag | argument | write | read | [a-z]{2,16}(?:ed|ing|able|ible)
    ) (?= \Z | [\s.,;:!?)|=`"] )"""
)
_STORE = re.compile(r"file|env|environment|vault|keyring|keychain")
_COUNT = re.compile(r"\d{1,4}")
_REASON = re.compile(r"[a-z]+ ")
_REFERENCE = re.compile(r"\w{2,16}://")
_DIRECTORY = re.compile(r"(?:[/~]|\\\\|[A-Za-z]:[\\/])[\w./\\ :~@-]*")
_LIKE_A_PASSWORD = re.compile(
    r"(?=[^A-Za-z]{0,99}[A-Za-z])(?:(?=\D{0,99}\d)(?!(?i:sha|md|v|utf|base)-?\d)|(?=[^!@#$%^&*~+]{1,99}[!@#$%^&*~+]\w))"
    r"[^=:]{6,}={0,2}|[A-Za-z]{8,}={1,2}"
)
_RANDOM = re.compile(r"(?P<digest>[0-9a-fA-F-]{16,}+(?![\w+/=~.]))|[A-Za-z0-9+/_~-]{16,}+={0,2}(?![\w.])")
_MIXED = re.compile(r"(?=\D*\d)(?=[^A-Za-z]*[A-Za-z])(?!\w*=\w)[!-~]{12,}")
_KIND_OF_CHARACTER = re.compile(r"[a-z]+|[A-Z]+|\d+")
_CAMEL_CASE = re.compile(r"(?:[A-Z][a-z]+){2,}")
_SYMBOL_INSIDE = re.compile(r"[!#$%^&*~+{}]\w")
# So many letters and digits without anything between are no word; so many behind a word like key, with hyphens even.
_LONG, _VERY_LONG = 20, 32

_PATH_HINT = re.compile(
    r"[./\\_](?:pem|key|crt|cer|der|p12|pfx|jks|truststore|ppk|kdbx|gpg|netrc|pgpass|git-cred|docker|htpasswd|id_|ssh|aws"
    r"|kube|gnupg|azure|gcloud|secrets|private|[\w-]{0,16}passw|[\w-]{0,16}pw|[\w-]{0,20}(?:cred|service))"
)
_PATH = re.compile(
    r"""(?x)
      (?: \A(?=[^"'`\n]{0,999}\Z) | (?<=["'`]) )                                              # alone: with spaces
        (?: [A-Za-z]:[\\/]{1,8}+ | \\{2,8}(?=\w) | ~?/ ) [\w.@+~-]{1,99}+
        (?: [\\/ ]{1,8}+ [\w.()@+~$-]{1,99}+ ){0,30}+ (?= \Z | \\{0,15}+["'`] )
    | (?: (?<![\w.~/\\<-]) | (?<=\\[nrt]) ) (?! (?<=:)// ) (?: file:// )?+                            # POSIX
        (?: ~[\w-]{0,32}+ | \.{1,2} | \$\{?\w{1,64}+\}? )?+ (?: /{1,3}+ [^\s/\\"'`<>|,;:()\[\]{}=&*?]++ )++ /?
    | (?: (?<![A-Za-z0-9]) [A-Za-z]: | %\w{1,32}% | (?<![\\\w]) \\{2,8}+ [\w.$-]++ )                # Windows, UNC
        (?: [\\/]{1,8}+ (?: [\w.()~$@+-]++ (?:[ ][\w.()~$@+-]++){0,3} (?=[\\/]) | [\w.~$@+-]++ ) )++
    | (?: (?<![\w./\\:@~%-]) | (?<=\\[nrt]) ) [\w.@+-]++ (?: (?!\\[nrt]/) [\\/]{1,4}+ [\w.@+-]++ )*+     # relative
    """
)
# Asked of the path in lower case with plain slashes.
_KEY_MATERIAL = re.compile(
    r"""(?x)
      / .{0,256} \.(?:pem|key|crt|cer|der|p12|pfx|jks|keystore|truststore|ppk|kdbx|gpg)\Z
    | \A [\w.-]{0,64}\w (?: \.(?:pem|crt|p12|pfx|jks|ppk) | (?<=client|server|broker)\.key )\Z
    | (?:\A|/) (?: \.(?:netrc|pgpass|git-credentials|dockercfg) | \.?htpasswd | id_(?:[dr]sa|ecdsa|ed25519) )\Z
    | /_netrc\Z
    | / \.(?:ssh|aws|kube|gnupg|azure) (?: / | \Z )
    | \A (?:/|~|\.|\$|[a-z]:|file:) (?:.{0,256}/)?secrets/.
    | / (?: run/secrets | (?:ssl|tls)/private | \.docker/config\.json | gcloud/ )
    | / (?<!bin/) [^/]{0,64} (?: passwd | pwfile | password_?file )\Z
    | / (?: passwords?\.txt | mosquitto/passwords? )\Z
    | (?: credentials | service[-_]account[\w-]{0,64} )\.json\Z
    """
)
# A Kubernetes secret calls its entries tls.crt and tls.key.
_YAML_BLOCK = re.compile(r":[ ]{1,4}(?:\[[A-Z]|[|>\"-]|LS0t)")
# Behind an extension a space ends a path, also one that may have spaces.
_EXTENSION_AND_SPACE = re.compile(r"(?<=\.[a-z]{3})[ ]")
_SOURCE_FILE = re.compile(r"\.(?:py|pyi|js|ts|go|rs|java|c|h|cc|cpp|cs|rb|php|lot|md|rst|html?|css|log)\Z")


def sanitize(text: str) -> str:
    """Hide what looks like a secret. Idempotent, and never raises."""
    return _redact(text, hide_known=str)


def _redact(text: str, hide_known: Callable[[str], str]) -> str:
    """Redact a text until nothing changes any more, and a JSON text value by value, so that it stays one."""
    for _ in range(_PASSES):
        redacted = _sanitize_text(hide_known(text))
        if len(text) > _LONG_TEXT:
            return redacted
        if text[:1] in {"{", "[", '"'}:
            with contextlib.suppress(ValueError, RecursionError):
                json.loads(text)
                # Hidden once more at the end: a known value can be JSON itself.
                redacted = hide_known(_redact_json(text, lambda value: _redact(value, hide_known)))
        if redacted == text:
            break
        text = redacted
    return text


def _sanitize_text(text: str) -> str:
    hints = _lower(text)
    if "-----begin" in hints:
        text = _PEM.sub(_pem_marker, text)
    if "@" in hints and "/" in hints:
        text = _TOKEN_URL.sub(_without_token, _URL.sub(_without_password, text))
    text = _LONG_WORD.sub(_without_credentials, text)
    if _PATH_HINT.search(hints):
        text = _PATH.sub(_path_marker, text)
    if _KEY_WORD.search(hints):
        text = _without_keyed_values(_BELOW.sub(_without_values_below, text) if "\n" in text else text)
    if _PLACE_HINT.search(hints):
        for place in _PLACES:
            text = place.sub(_marked, text)
    return text


def hide_secrets(text: str) -> str:
    """Hide, in an answer, known values and what is unmistakably a credential; every other byte stays as it is."""
    text = _process.hide(text)
    if "-----BEGIN" in text:
        text = _PEM.sub(_pem_marker, text)
    if "hooks.slack" in text:
        text = _SLACK_WEBHOOK.sub(_marked, text)
    return _LONG_WORD.sub(_without_credentials, text)


def hide_secrets_in(value: Any) -> Any:
    """Hide secrets in a JSON value as in a text; keys stay apart, and a known number becomes a marker."""
    if isinstance(value, str):
        return hide_secrets(value)
    if isinstance(value, dict):
        keys = Keys()
        return {keys.written(key, hide_secrets(key)): hide_secrets_in(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [hide_secrets_in(inner) for inner in value]
    # A number that only has a known value among its digits is another number.
    is_known = isinstance(value, int | float) and _process.hide(repr(value)).lstrip("-").removesuffix(".0") == MARKER
    return MARKER if is_known else value


def hide_secrets_in_bytes(data: bytes) -> bytes:
    """Hide secrets in bytes before they are cut, or shown as hex or base64: half a secret is not recognised."""
    return hide_secrets(data.decode(errors="surrogateescape")).encode(errors="surrogateescape")


class Keys:
    """The keys of a JSON object as they are written: those that become the same are numbered."""

    def __init__(self) -> None:
        self._written: dict[Any, Any] = {}
        self._numbers: dict[Any, int] = {}

    def written(self, key: Any, redacted: Any) -> Any:
        """Return what to write for `key`, of which `redacted` is left."""
        if key not in self._written:
            written, number = redacted, self._numbers.get(redacted, 1)
            while written in self._numbers:
                number += 1
                written = f"{redacted} ({number})"
            self._numbers[written] = 1
            self._numbers[redacted] = number
            self._written[key] = written
        return self._written[key]


def shortened(text: str, characters: int) -> str:
    """Return the beginning of a text, its secrets hidden before it is cut: a halved secret is not recognised."""
    hidden = hide_secrets(text[: characters + _LONGEST_HALVED])
    return hidden if len(hidden) <= characters else f"{hidden[:characters]}…"


_LONGEST_HALVED: Final = 4096


def make_sanitizer(known: Iterable[str] = ()) -> Callable[[str], str]:
    """Make a `sanitize` that also hides `known`, and what `install` and `add_known` were given or will be."""
    own = _KnownValues(known)

    def hide_known(text: str) -> str:
        return own.hide(_process.hide(text))

    return lambda text: _redact(text, hide_known)


def add_known(value: str) -> None:
    """Hide `value` from now on: a secret that was learned later, such as a rotated password or an access token."""
    _process.add(value)


def _lower(text: str) -> str:
    """Lower the case and keep every position: of all characters only the dotted capital I grows."""
    return text.replace("İ", "I").lower()


def _pem_marker(block: re.Match[str]) -> str:
    if "REDACTED]" in block[0]:
        return block[0]
    return CERTIFICATE_MARKER if "CERTIFICATE" in block["kind"] else MARKER


def _without_password(url: re.Match[str]) -> str:
    """Hide what stands between the user and the last @ of the authority, or of the URL if the authority has none."""
    start = url.start("authority")
    at = url.string.rfind("@", start, url.end("authority"))
    if at < 0:
        at = url.string.rfind("@", start, url.end())
    if at <= start or _NOTHING.fullmatch(url.string, start, at):
        return url[0]
    return url.string[url.start() : start] + MARKER + url.string[at : url.end()]


def _without_token(url: re.Match[str]) -> str:
    return url[0].replace(url["token"], MARKER) if _is_mixed(url["token"]) else url[0]


def _marked(place: re.Match[str]) -> str:
    start, end = place.span(place.lastindex or 0)
    if _NOTHING.fullmatch(place.string, start, end):
        return place[0]
    return place.string[place.start() : start] + MARKER + place.string[end : place.end()]


def _without_credentials(word: re.Match[str]) -> str:
    hidden = _CREDENTIAL.sub(MARKER, word[0])
    return hidden if hidden == word[0] else _several_credentials().sub(MARKER, word[0])


@functools.cache
def _several_credentials() -> re.Pattern[str]:
    """Find credentials with more of them right behind; compiled when there is one, as it takes a while."""
    return re.compile(f"{_BEGINS}{_ONE_CREDENTIAL}(?:-?{_ONE_CREDENTIAL})*+")


def _path_marker(found: re.Match[str]) -> str:
    path = _EXTENSION_AND_SPACE.split(found[0])[0].rstrip(".")
    plain = re.sub(r"[\\/]++", "/", path.lower())
    if "/" not in plain and _YAML_BLOCK.match(found.string, found.end()):
        return found[0]
    if _SOURCE_FILE.search(plain) or not _KEY_MATERIAL.search(plain):
        return found[0]
    return PATH_MARKER + found[0][len(path) :]


class _Key(NamedTuple):
    """The word that makes a name the name of a secret."""

    word: str
    start: int
    end: int
    weak: bool
    """The word has other meanings as well: only a value that a machine made is a secret."""
    before: str
    """The text in front of the word, in lower case."""
    apart: bool
    """The word is one by itself, not the end of a longer one."""

    @property
    def password(self) -> bool:
        return self.word not in _NO_PASSWORD

    def means_directory(self, value: str) -> bool:
        """Whether it is the working directory of a process."""
        return self.word == "pwd" and _DIRECTORY.fullmatch(value) is not None

    @property
    def name(self) -> str:
        """The whole name, without underscores in front."""
        start = len(self.before)
        while start and (self.before[start - 1].isalnum() or self.before[start - 1] == "_"):
            start -= 1
        return self.before[start:].lstrip("_") + self.word

    @property
    def near(self) -> str:
        """The end of that."""
        return self.before[-_NEAR:]

    @property
    def lead(self) -> str:
        """What is in front of the word without a space between."""
        near = self.near
        return near[max(near.rfind(" "), near.rfind("\t"), near.rfind("\n")) + 1 :]

    @property
    def flag(self) -> bool:
        """Whether it is a flag on a command line, or in the list of its arguments."""
        return _FLAG.search(self.lead) is not None


def _keys(text: str) -> Iterator[_Key]:
    """Find the words that end the name of a secret."""
    lower = _lower(text)
    for found in _KEY_WORD.finditer(lower):
        start, word = found.start(), found[0].rstrip("0123456789")
        before = lower[max(0, start - _LINE) : start]
        nearest = before[-_OWNER:]
        weak = word in _WEAK and not (word in {"key", "keys"} and _KEY_OWNER.search(nearest))
        apart = not (before[-1:].isalnum() or before.endswith(("+", "/"))) or (
            text[start].isupper() and text[start - 1].islower()
        )
        named = apart or (_PASS_OWNER.search(nearest) is not None if word in _SHORT else not weak)
        if named and not _NO_KEY.search(nearest):
            yield _Key(word, start, found.end(), weak, before, apart)


def _key_of(name: str) -> _Key | None:
    """Find the key at the end of a name: a name is judged by its last word."""
    return next((key for key in _keys(name) if key.end == len(name)), None)


def _is_named_secret(name: str, value: str) -> bool:
    """Whether `value` is a secret because of the name it stands under."""
    return _is_secret_of(_key_of(name), value)


def _is_secret_of(key: _Key | None, value: str) -> bool:
    if key is None or not value or _NOTHING.fullmatch(value) or key.means_directory(value):
        return False
    if key.weak:
        return _is_random(_RANDOM.fullmatch(value), key)
    return key.password or not _COUNT.fullmatch(value)


def _is_random(value: re.Match[str] | None, key: _Key) -> bool:
    """Whether a machine made it: its characters change kind more often than in words. A digest needs an owner's key."""
    if (
        value is None
        or _CAMEL_CASE.fullmatch(value[0])
        or _PUBLIC.search(key.before[-_OWNER:])
        or (value["digest"] is not None and _PLAIN_OWNER.search(key.before[-_OWNER:]))
    ):
        return False
    return _changes_kind(value[0]) or (len(value[0]) >= _VERY_LONG and _is_mixed(value[0]))


def _is_mixed(text: str) -> bool:
    """Whether letters and digits take turns, or are many without anything between."""
    return _MIXED.fullmatch(text) is not None and (_changes_kind(text) or (len(text) >= _LONG and text.isalnum()))


def _changes_kind(text: str) -> bool:
    return len(_KIND_OF_CHARACTER.findall(text)) > len(text) * 0.4


def _redact_json(text: str, redact: Callable[[str], str]) -> str:
    """Redact each string and number of a JSON text on its own, and leave the rest as it is."""
    name = previous = ""
    items = -1
    key_of = functools.cache(_key_of)  # there can be very many values under one long name
    # Of the objects around: the name under which each stands, whether that of a secret, and its keys.
    objects: list[tuple[str, str, Keys]] = []

    def redact_token(token: re.Match[str]) -> str:
        nonlocal name, previous, items
        if token["bracket"]:
            previous, items = "", 0 if token[0] == "[" else -1
            if token[0] == "{":
                key = key_of(name)
                objects.append((name, name if key and not key.weak else "", Keys()))
                name = ""
            elif token[0] == "}":
                name = objects.pop()[0]
            elif token[0] == "]":
                name = ""
            return token[0]
        value = json.loads(token["string"] or f'"{token[0]}"')
        # The value of {"name": "PASSWORD", "value": …}, ["--password", …] and ["Authorization", …].
        last = token["last"] is not None
        by_previous = name == "value" or (items > 0 and previous.startswith("-")) or (items == 1 and last)
        names = (name, previous) if by_previous else (name,)
        above = objects[-1][1] if objects else ""
        one_of_several = _PASSWORDS.search(above) is not None and _LIKE_A_PASSWORD.fullmatch(value) is not None
        if token["colon"] is None and (one_of_several or any(_is_secret_of(key_of(each), value) for each in names)):
            scheme = _SCHEME.match(value)
            redacted = (scheme[0] if scheme else "") + MARKER
        else:
            redacted = redact(value)
        if token["colon"]:
            redacted = objects[-1][2].written(value, redacted)
            name = above if above and _ENTRY_ITSELF.fullmatch(value) else value
        else:
            previous, items = value, items + (items >= 0)
        if redacted == value:
            return token[0]
        written = json.dumps(redacted, ensure_ascii=token[0].isascii()) + (token["colon"] or "")
        return written.replace("/", r"\/") if r"\/" in token[0] else written

    return _JSON_TOKEN.sub(redact_token, text)


def _without_keyed_values(text: str) -> str:
    pieces: list[str] = []
    done = 0
    for count, key in enumerate(_keys(text)):
        if count == _MOST_KEYS:
            start = max(done, key.start)
            return "".join([*pieces, text[done:start], _ANY_VALUE.sub(rf"\g<1>{MARKER}", text[start:])])
        if key.start >= done and (separator := _SEPARATOR.match(text, key.end)):
            start, end, marker = (_random_value if key.weak else _value)(key, separator, text)
            if end > start:
                pieces += (text[done:start], marker)
                done = end
    return "".join([*pieces, text[done:]])


def _without_values_below(found: re.Match[str]) -> str:
    key = _key_of(found["name"])
    if key is None or key.weak:
        return found[0]

    def redact(line: re.Match[str]) -> str:
        written = line[2].split(" #")[0].rstrip()
        quote = written[0] if written.startswith(('"', "'")) and written[0] == written[-1] else ""
        value = written[1:-1] if quote else written
        prose = not quote and (" " in value or _TYPE_OR_REMARK.match(value))
        likely = key.password or _LIKE_A_PASSWORD.fullmatch(value)
        if prose or not likely or not _is_secret_of(key, value):
            return line[0]
        return line[1] + quote + MARKER + quote + line[2][len(written) :]

    return found[0][: found.start("lines") - found.start()] + _LINE_BELOW.sub(redact, found["lines"])


def _random_value(key: _Key, separator: re.Match[str], text: str) -> tuple[int, int, str]:
    """Find what follows a weak key, if a machine made it."""
    opening = _OPENING.match(text, separator.end())
    value = _RANDOM.match(text, opening.end() if opening else separator.end())
    if (
        value is None
        or separator["space"]
        or separator["index"]
        or separator["nested"]
        or not _is_random(value, key)
        or _key_of(value[0])
    ):
        return 0, 0, ""
    return *value.span(), MARKER


def _value(key: _Key, separator: re.Match[str], text: str) -> tuple[int, int, str]:
    """Find where the secret that `key` names starts and ends, and its marker; both are the same if it names none."""
    opening = _OPENING.match(text, separator.end())
    if opening and opening["quote"].startswith("%") and "%" not in separator[0]:
        opening = None
    start = opening.end() if opening else separator.end()
    sure, likely = _follows(key, separator, quoted=opening is not None)
    empty = separator[0][:2] == "= " or (separator[0] == ": " and key.word.startswith("cred"))
    if not likely or (opening is None and empty and _NEXT_KEY.match(text, start)):
        return start, start, ""
    listed = opening is None and _LISTED.match(text, start) is not None and not _NOTHING.match(text, start)
    start += listed
    if scheme := _SCHEME.match(text, start):
        start = scheme.end()
    end, marker = (text.index("]", start), MARKER) if listed else _extent(key, separator, opening, text, start)
    value = text[start:end]
    if len(value) > _LONGEST_HARMLESS:
        secret = True
    elif not value or _NOTHING.fullmatch(value.rstrip() or " ") or key.means_directory(value):
        secret = False
    elif not sure and not key.password and separator["space"]:
        secret = _is_mixed(value) or (opening is not None and _SYMBOL_INSIDE.search(value) is not None)
    elif not sure and not _LIKE_A_PASSWORD.fullmatch(value):
        secret = False
    elif opening is None:
        secret = not _is_code_or_remark(key, separator, text, start, end)
    elif separator["pair"] and not (key.flag or _SETTER.search(key.near)):
        another = _key_of(value)
        secret = _PAIR_END.match(text, end) is not None and not (another and another.apart)
    else:
        command = opening["quote"] == "`" and separator[0] == "=" and " " in value
        secret = not command
    return start, end if secret else start, marker


def _follows(key: _Key, separator: re.Match[str], *, quoted: bool) -> tuple[bool, bool]:
    """Say whether a value of the key follows for sure, and whether one is likely to."""
    match separator.lastgroup:
        case "pair":
            named = _PAIR.search(key.lead) is not None and not _REMOVES.search(key.near)
            sure = key.flag or named or _SETTER.search(key.near) is not None
            return sure, sure
        case "call":
            sets = key.password and not _ASKS.search(key.near)
            return sets, sets or (not key.password and ("." in key.lead or separator[0] == "{"))
        case "prose":
            said = separator["prose"][:3].lower()
            told = said not in {"ist", "est", "es ", "to "} or (said == "to " and _CHANGES.search(key.near) is not None)
            return (key.password and told) or quoted, said != "to " or told
        case "space" if key.flag and len(separator[0]) > 1:  # a list of options
            return False, False
        case "space":
            lead = key.lead
            sure = key.flag or (quoted and (key.password or key.before[: -len(lead) or None].endswith("with ")))
            if not sure:
                sure = _DECLARES.search(key.near) is not None or (
                    lead.endswith("_") and key.before.rpartition("\n")[2].lstrip() == lead
                )
            return sure, True
        case _:
            return quoted or not separator["index"], True


def _extent(
    key: _Key, separator: re.Match[str], opening: re.Match[str] | None, text: str, start: int
) -> tuple[int, str]:
    """Find where the value ends that starts at `start`, and what to write in its place."""
    close = separator["close"] or ""
    if opening is None:
        if close and (number := _NUMBER.match(text, start)):
            return number.end(), close + MARKER + close
        spaced = (_ELEMENT if separator["element"] else _BUFFER).match(text, start)
        within = key._replace(before=key.before + (separator["nested"] or ""))
        return spaced.end() if spaced else _bare_end(within, text, start), MARKER
    if not close and key.before.count(opening["quote"]) % 2 and _OUTSIDE.match(text, start):
        return start, ""
    return _closing(text, start, opening), MARKER


def _bare_end(key: _Key, text: str, start: int) -> int:
    """Find where a bare value ends; a quote or bracket ends it if one was opened before the key."""
    around = _ENVIRONMENT.search(key.near)
    closed = text.find(around[1], start, start + _LONGEST_HARMLESS) if around else -1
    if closed >= 0:
        return closed
    for stop in _STOP.finditer(text, start):
        if stop["fragment"] and not _IN_QUERY.search(key.lead):
            continue
        closer = stop["closer"]
        opened = key.before.count(_OPENER.get(closer, closer)) if closer else 1
        ended = opened > key.before.count(closer) if closer in _OPENER else opened % 2
        if ended and not stop["escape"]:
            return stop.start()
    return len(text)


def _closing(text: str, start: int, opening: re.Match[str]) -> int:
    """Find where a quoted value ends, or a list of them; one that is never closed ends with its line.

    A quote opened behind n backslashes (JSON inside a JSON string) is closed by one behind as many; one behind 2n+1
    more belongs to the value, and one behind fewer ends the string around it.
    """
    mark = opening["quote"].lstrip("\\")
    slashes = len(opening["quote"]) - len(mark)
    doubled = -1  # where the second of two quotes stands that are one of the value's (YAML, SQL, CSV)
    for found in re.compile(rf"(\\*+){mark}|\\++|\n").finditer(text, start):
        if found[0] == "\n":
            return found.start()
        if mark in {"'", '"'} and not found[1] and text.startswith(mark, found.end()) and found.start() > start:
            doubled = found.end()
        elif (
            found[1] is not None
            and found.start() != doubled
            and (len(found[1]) < slashes or (len(found[1]) - slashes) % (2 * slashes + 2) == 0)
        ):
            end = found.end() - len(mark) - min(slashes, len(found[1]))
            bracket = text.find("]", end, end + _LONGEST_HARMLESS) if "[" in opening[0] else -1
            return end if bracket < 0 else text.rfind(opening["quote"], end, bracket)
    return len(text)


def _is_code_or_remark(key: _Key, separator: re.Match[str], text: str, start: int, end: int) -> bool:
    """Whether a bare value is none: a name, call or type in a line of source, a remark, a count, a directory."""
    value = text[start:end]
    nothing = _NOTHING.match(text, start)
    assign = separator["assign"] or ""
    return (
        (nothing is not None and (not nothing[0][0].isalnum() or not text[nothing.end() : end].strip(".!?:")))
        or _CONTAINER.match(text, start) is not None
        or (separator["space"] is not None and value.startswith("-"))
        or assign.startswith(("==", "!="))
        or ((not key.password or key.word in _SHORT) and _COUNT.fullmatch(value) is not None)
        or (" = " in separator[0] and value.isdecimal() and len(value) == 1)
        or (not key.password and _REFERENCE.match(value) is not None)
        or (not assign.endswith("=") and _TYPE_OR_REMARK.match(text, start) is not None)
        or (
            not key.password
            and ":" in assign
            and _COMPLAINT.search(key.near) is not None
            and _REASON.match(text, start) is not None
        )
        or (key.word.startswith("cred") and _STORE.fullmatch(value) is not None)
        or value.strip("_$:@").lower() == key.word
        or _is_code(key, separator, text, start, end)
    )


def _is_code(key: _Key, separator: re.Match[str], text: str, start: int, end: int) -> bool:
    """Whether a bare value is an expression: a call, an index, or names that lead to something named like a secret."""
    found = _EXPRESSION.match(text, start)
    if found is None or (found["open"] is None and found.end() < end):
        return _CMDLET.match(text, start) is not None
    names = found["names"]
    if found["open"]:
        # Names are made of words; what a machine made is not.
        made_of_words = len(_NAME_PIECE.findall(names)) <= len(names) * 0.4
        counted = (
            found["open"] == "(" and text[found.end() : found.end() + 1].isdigit() and names.isalpha()
        )  # Wort(5) is no call
        long_enough = len(names) > 2  # noqa: PLR2004
        return long_enough and made_of_words and not counted and _CLOSED.match(text, found.end()) is not None
    last, letters = _key_of(names), _LETTERS.fullmatch(names) is not None
    return (
        names.lower().rpartition(".")[2].lstrip("_") == key.name
        or ("." in names and _OPERATOR.match(text, end) is not None)
        or _LOGICAL.match(text, end) is not None
        or _ASSIGNED.search(key.near) is not None
        or (letters and last is not None and last.apart and last.start > 0)
        or (letters and names[0] == "$" and (key.lead.startswith("$") or text.startswith(";", end)))
        or (letters and _ROOT.match(names) is not None)
        or (letters and " = " in separator[0] and (names.count(".") > 1 or ("." in names and "_" in names)))
        or _TYPE_NAME.fullmatch(names) is not None
    )


class _KnownValues:
    """Values that are hidden wherever they appear, in whatever encoding."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self._values: frozenset[str] = frozenset()
        self.hide: Callable[[str], str] = str
        """Hide the values in a text; replaced as a whole, so that no thread meets half a change."""
        for value in values:
            self.add(value)

    def add(self, value: str) -> None:
        if len(value.strip()) >= _SHORTEST_KNOWN and value.lower() not in {"true", "false", "none", "null"}:
            with self._lock:
                self._values |= {value}
                self.hide = _hunt(self._values)


_process = _KnownValues()
"""What `install` and `add_known` were given; nothing until then."""

_ANY_MARKER = r"\[(?:CERTIFICATE |FILE PATH )?REDACTED\]"
_JSON_TOKEN = re.compile(
    r"""(?xs) (?P<string> "(?:[^"\\]|\\.)*+" ) (?: (?P<colon> \s*+: ) | (?P<last> (?= \s*+\] ) ) )?+ | -?\d[\d.eE+-]*+
    | (?P<bracket> [\[\]{}] )"""
)
# How a letter or a digit can be escaped, which none has to be, or a backslash; and a line break in long base64.
_DISGUISE = re.compile(
    r"""(?x) [%&\\\r\n]
    (?<! \\\\ )
    (?: (?: (?<=%) (?:25){0,3}+ | (?<=\\) (?P<slashes> \\{0,15}+ ) (?: x | u00 | U000000 ) )
        (?P<hex> 3\d | [46][1-9A-Fa-f] | 5[\dAaCc] | 7[\dAa] )
      | (?<=&) (?:amp;){0,3}+ \# (?: 0{0,8}+ (?P<decimal> \d{2,3} ) | [xX] 0{0,8}+ (?P<html> [3-7][0-9A-Fa-f] ) ) ;
      | (?<= [\w+/\\-]{40} . ) (?: (?<=[\r\n]) | (?<=\\) \\{0,15}+ [rn] | (?<=%) 0[ADad] )
        (?: \n | \\{1,16}+ n | %0[Aa] )?+ [ \t]{0,64}+ (?= [\w+/-] ) )""",
    re.DOTALL,
)
_HEX_LEAD = r"(?:%|\\{1,16}+(?:x|u00)|&\#x)"
_HEX_GAP = rf"(?:[ :-]|;?{_HEX_LEAD}|,[ ]0x)?+"
_HEX_PAIR = rf"[0-9A-Fa-f]{{2}}{_HEX_GAP}"
_HEX_RUN = re.compile(rf"{_HEX_LEAD}?+{_HEX_PAIR}(?:{_HEX_PAIR}){{3,}}+[0-9A-Fa-f]?+")
_HEX_DIGIT = re.compile(r"(?:\\++(?:x|u00)|&#x|0x|[^0-9A-Fa-f])++|(.)", re.DOTALL)
_LEAD_BEFORE = re.compile(_HEX_LEAD + r"\Z")
_BACKSLASH: Final = r"(?:\\|%(?:25){0,3}5[Cc])"
_HTML_NAMES: Final = {'"': "quot", "&": "amp", "'": "apos", "<": "lt", ">": "gt"}
_BASE64: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def _hunt(values: frozenset[str]) -> Callable[[str], str]:
    """Make the function that hides `values`: escapes and base64 by expressions, hex by its digits."""
    forms = [_forms(value) for value in sorted(values, key=len, reverse=True)]
    expressions = [each.expression for each in forms]
    hint = re.compile("|".join(sorted({anchor for each in forms for anchor in each.anchors})))
    hex_hint = re.compile("|".join(sorted({start for each in forms for start in each.hex_starts})), re.IGNORECASE)

    def without_hex(run: re.Match[str]) -> str:
        text = run[0]
        found = [digit for digit in _HEX_DIGIT.finditer(text) if digit[1]]
        plain = "".join(digit[1] for digit in found).lower()
        pieces: list[str] = []
        done = 0
        for first, behind in sorted(each.span() for form in forms for each in form.hex.finditer(plain)):
            start, end = found[first].start(), found[behind - 1].end()
            if end <= done:
                continue
            if start < done:  # two values overlap
                done = end
                continue
            lead = _LEAD_BEFORE.search(text, max(0, start - 20), start)
            pieces += (text[done : lead.start() if lead else start], MARKER)
            done = end
        return "".join([*pieces, text[done:]])

    def hide(text: str) -> str:
        if hint.search(text):
            for expression in expressions:
                text = expression.sub(lambda found: found["marker"] or MARKER, text)
        if _DISGUISE.search(text):
            text = _without_disguised(text, hint, expressions)
        return _HEX_RUN.sub(without_hex, text) if hex_hint.search(text) else text

    return hide


_ANCHOR: Final = 24  # characters, which is rare enough


class _Forms(NamedTuple):
    """What a known value can look like."""

    expression: re.Pattern[str]
    """As it is, escaped, and in base64."""
    anchors: frozenset[str]
    """One of these is in every text that has it so."""
    hex: re.Pattern[str]
    """Its digits in hex."""
    hex_starts: frozenset[str]
    """How that can begin, with what can stand between the digits."""


@functools.lru_cache(maxsize=1000)
def _forms(value: str) -> _Forms:
    """Work out the forms of a value: 3 ms for a password, 90 ms for a token of 2,000 characters."""
    # What is put into base64 or hex may have been escaped, or put into base64, before.
    escaped = {
        value,
        json.dumps(value)[1:-1],
        quote(value, safe="", errors="surrogatepass"),
        base64.b64encode(_utf8(value)).decode(),
    }
    forms = [(_spelled(value), value), *(form for text in sorted(escaped) for form in _base64(text))]
    alternatives = "|".join(expression for expression, _ in forms)
    digits = sorted({_utf8(text).hex() for text in escaped}, key=len, reverse=True)
    return _Forms(
        re.compile(rf"(?P<marker>{_ANY_MARKER})|{_BACKSLASH}{{0,16}}+(?:{alternatives})"),
        # No encoding that the expressions know changes the longest run of letters and digits.
        frozenset(max(re.findall("[A-Za-z0-9]+", plain) or [""], key=len)[:_ANCHOR] for _, plain in forms),
        re.compile("|".join(digits)),
        frozenset(_HEX_GAP.join((each[0:2], each[2:4], each[4:6])) for each in digits),
    )


def _without_disguised(text: str, hint: re.Pattern[str], expressions: list[re.Pattern[str]]) -> str:
    """Hide what the expressions find when the text is written plainly; all the rest stays as it was."""
    plain, plain_at, text_at = _undisguised(text)
    if plain == text or not hint.search(plain):
        return text
    spans = [found.span() for each in expressions for found in each.finditer(plain) if not found["marker"]]
    pieces: list[str] = []
    done = 0
    for start, end in sorted(spans):
        first = bisect.bisect_right(plain_at, start) - 1
        last = bisect.bisect_left(plain_at, end)
        last -= last == len(plain_at) or plain_at[last] > end
        beginning = text_at[first] + start - plain_at[first]
        if beginning >= done:
            pieces += (text[done:beginning], MARKER)
        done = max(done, text_at[last] + end - plain_at[last])
    return "".join([*pieces, text[done:]])


def _undisguised(text: str) -> tuple[str, list[int], list[int]]:
    """Write letters, digits and long base64 of several lines plainly, and say which places belong to which."""
    pieces: list[str] = []
    plain_at, text_at = [0], [0]
    done = length = 0
    for found in _DISGUISE.finditer(text):
        plain = _plainly(found)
        if plain is not None:
            length += found.start() - done
            plain_at += (length, length + len(plain))
            text_at += found.span()
            pieces += (text[done : found.start()], plain)
            length += len(plain)
            done = found.end()
    return "".join([*pieces, text[done:]]), plain_at, text_at


def _plainly(found: re.Match[str]) -> str | None:
    """Return what an escape stands for, nothing for a line break, None for what is no letter, digit or backslash."""
    digits = found["hex"] or found["html"]
    if not digits and not found["decimal"]:
        return ""
    character = chr(int(digits, 16) if digits else int(found["decimal"]))
    if not (character.isascii() and (character.isalnum() or character == "\\")):
        return None
    # An escape in n strings has 2**(n-1) backslashes; with any other number there is a backslash of the value as well.
    count = len(found["slashes"] or "") + 1
    return character if count.bit_count() == 1 else f"\\{character}"


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _spelled(value: str) -> str:
    """Write the expression for `value` as it is, and as percent, JSON, repr and HTML escape it, mixed and nested."""
    return "".join(map(_spelled_piece, re.findall(r"(?s)[A-Za-z0-9]+|\\+|.", value)))


def _spelled_piece(piece: str) -> str:
    if re.fullmatch("[A-Za-z0-9]+", piece):
        return piece
    if piece[0] == "\\":
        # However many backslashes escapes made of them, there is one in front of what follows.
        return (
            rf"(?:{_BACKSLASH}{{0,{16 * len(piece)}}}+(?:(?<=\\)|(?<=5[Cc]))|(?:&(?:amp;){{0,3}}\#92;){{{len(piece)}}})"
        )
    utf8 = piece.encode("utf-8", "surrogatepass")
    utf16 = piece.encode("utf-16-be", "surrogatepass").hex()
    own = {" ": "[ +]", "&": "&(?:amp;){0,3}"}.get(piece, re.escape(piece))
    letter = json.dumps(piece)[2:-1] or own
    units = rf"{_BACKSLASH}{{1,16}}+".join("u" + utf16[at : at + 4] for at in range(0, len(utf16), 4))
    octets = rf"{_BACKSLASH}{{1,16}}+".join(f"x{byte:02x}" for byte in utf8)
    percent = "".join(rf"%(?:25){{0,3}}{byte:02x}" for byte in utf8)
    entity = f"&(?:amp;){{0,3}}(?:#0*{ord(piece)}|#x0*{ord(piece):x}|{_HTML_NAMES.get(piece, 'amp')});"
    escapes = f"{letter}|{units}|{octets}|x{ord(piece):02x}|U{ord(piece):08x}"
    return rf"(?:{_BACKSLASH}{{0,16}}+(?:(?i:{escapes}|{percent}|{entity})|{own}))"


def _base64(text: str) -> list[tuple[str, str]]:
    """Write what base64 makes of `text` at each of the three places it can start at, as expression and as text.

    The characters at the ends hold bits of the neighbours as well: of each only those that fit our bits match.
    """
    data = _utf8(text)
    forms = []
    for lead in range(3):
        encoded = base64.b64encode(bytes(lead) + data).decode().rstrip("=")
        first, last = -(-lead * 8 // 6), (lead + len(data)) * 8 // 6
        inner = "".join(map(_base64_character, encoded[first:last]))
        before = _fitting(encoded[first - 1], (0, 0b001111, 0b000011)[lead]) if lead else ""
        after = _fitting(encoded[last], (0b110000, 0b111100)[(lead + len(data)) % 3 - 1]) if last < len(encoded) else ""
        forms.append((rf"{before}{inner}{after}(?:=|%3[Dd]){{0,2}}+", encoded[first:last]))
    return forms


def _fitting(character: str, ours: int) -> str:
    """Write the expression for the characters that have the bits `ours` in common with `character`."""
    bits = _BASE64.index(character) & ours
    return f"(?:{'|'.join(_base64_character(_BASE64[n]) for n in range(64) if n & ours == bits)})"


def _base64_character(character: str) -> str:
    return {"+": r"(?:[+-]|%2[Bb])", "/": r"(?:\\{0,16}+/|_|%2[Ff])"}.get(character, character)


def install(known: Iterable[str] = ()) -> None:
    """Protect every handler of every logger, now and later added, and the texts of `warnings`; hide `known` in all.

    Every record reaches a handler through `logging.Handler.handle`, the handler of last resort included; the first one
    that does gets the handler protected. To undo it, give `logging.Handler.handle` and `warnings.formatwarning` their
    `__wrapped__` back, and take `emit`, `format` and `handleError` out of a handler's own attributes.
    """
    for value in known:
        add_known(value)
    if hasattr(logging.Handler.handle, "__wrapped__"):
        return
    handle, formatwarning = logging.Handler.handle, warnings.formatwarning

    @functools.wraps(handle)
    def protected_handle(handler: logging.Handler, record: logging.LogRecord) -> bool:
        if "emit" not in vars(handler):
            protect_handler(handler)
        return handle(handler, record)

    @functools.wraps(formatwarning)
    def protected_formatwarning(*args: Any, **kwargs: Any) -> str:
        return make_sanitizer()(formatwarning(*args, **kwargs))

    hooks = {(logging.Handler, "handle"): protected_handle, (warnings, "formatwarning"): protected_formatwarning}
    for (owner, name), hook in hooks.items():
        setattr(owner, name, hook)


def protect_handler(handler: logging.Handler, known: Iterable[str] = ()) -> None:
    """Redact everything `handler` writes, whatever a record holds; the record and other handlers see no change."""
    guard = _Guard(handler, make_sanitizer(known))
    vars(handler).update(emit=guard.emit, format=guard.format, handleError=guard.report)


def _fits(record: logging.LogRecord) -> bool:
    """Whether the arguments have no names and fit the message."""
    try:
        record.getMessage()
    except Exception:  # noqa: BLE001  # whatever it is, the record is not as it should be
        return False
    return not isinstance(record.args, dict)


# What every record has; the rest are extras.
_OWN_ATTRIBUTES: Final = frozenset(vars(logging.makeLogRecord({})))


class _Guard:
    """What a protected handler does in place of its own `emit`, `format` and `handleError`."""

    def __init__(self, handler: logging.Handler, redact: Callable[[str], str]) -> None:
        self._handler, self._redact = handler, redact
        self._emit, self._format = handler.emit, handler.format
        stock = {"logging", "logging.handlers"}
        self._writes_what_it_formats = (
            isinstance(handler, logging.StreamHandler) and type(handler).emit.__module__ in stock
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Emit a redacted copy of `record`."""
        try:
            self._emit(self._redacted(record))
        except Exception:  # noqa: BLE001  # whatever a handler does, it stops no caller and shows nothing
            self.report(record)

    def format(self, record: logging.LogRecord) -> str:
        """Format as before and redact the result: a formatter can join what was harmless apart."""
        return self._redact(self._format(record))

    def report(self, record: logging.LogRecord) -> None:
        """Tell stderr that logging failed; the stock report shows the record and exceptions around it as they are."""
        if logging.raiseExceptions:
            with contextlib.suppress(Exception):
                failure = self._redact(traceback.format_exc())
                sys.stderr.write(f"--- Logging error ---\n{failure}Logged at {record.pathname}:{record.lineno}\n")

    def _redacted(self, record: logging.LogRecord) -> logging.LogRecord:
        copied = copy.copy(record)
        for name in vars(record).keys() - _OWN_ATTRIBUTES:
            setattr(copied, name, self._walk(getattr(record, name), name))
        if self._writes_what_it_formats and _fits(record):
            return copied  # `format` sees all that is written, but for the names of things
        self._redact_message(copied)
        if record.exc_info or record.exc_text:
            formatter = self._handler.formatter or logging.Formatter()
            trace = record.exc_text or (record.exc_info and formatter.formatException(record.exc_info))
            copied.exc_info, copied.exc_text = None, self._redact(str(trace))
        if record.stack_info:
            copied.stack_info = self._redact(record.stack_info)
        return copied

    def _redact_message(self, record: logging.LogRecord) -> None:
        """Redact what message and arguments make together; keep them apart where they make the same apart."""
        try:
            original = record.getMessage()
            message = self._redact(original)
        except Exception:  # noqa: BLE001  # the arguments do not fit, or cannot be shown
            message = self._redact(f"{record.msg} [the arguments of this log call do not fit it]")
        else:
            record.args = self._walk(record.args, seen=message if message == original else "")
            with contextlib.suppress(Exception):
                if record.getMessage() == message:
                    return
        record.msg, record.args = message, ()

    def _walk(self, value: Any, name: str = "", depth: int = 0, seen: str = "") -> Any:
        """Redact a value and what it holds; an object that cannot be looked into stays if what it shows may be seen.

        What is a part of `seen` was judged there.
        """
        if name and isinstance(value, str | bytes | int | float) and _is_named_secret(name, str(value)):
            return MARKER
        if value is None or (isinstance(value, str | int | float) and str(value) in seen):
            return value
        if isinstance(value, dict | list | tuple) and depth < _DEEPEST_EXTRA:
            if isinstance(value, dict):
                written = Keys().written
                return {
                    written(key, self._walk(key, "", depth + 1, seen)): self._walk(inner, str(key), depth + 1, seen)
                    for key, inner in value.items()
                }
            items = [self._walk(inner, name, depth + 1, seen) for inner in value]
            return tuple(items) if isinstance(value, tuple) else items
        try:
            shown = (value,) if isinstance(value, str) else (str(value), repr(value))
        except Exception:  # noqa: BLE001  # what cannot be shown cannot be judged
            return MARKER
        return value if all(self._redact(text) == text for text in shown) else self._redact(shown[0])

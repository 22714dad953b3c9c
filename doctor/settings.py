"""What `doctor` checks on this machine: settings, who can read the secrets, files to be written, certificates."""

import os
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509

from config import NAMES, SETTINGS, Config
from doctor.checkup import Check, Finding, fact_and_advice, failed, has_advice, ok, skipped, warning
from errors import BridgeError
from mqtt_failures import tls_context
from private_files import why_unwritable
from topics import shown

SOON: Final = timedelta(days=30)
"""A certificate that expires within this time is told of."""

_NO_MODES: Final = "this system does not say by a file's mode who can read it"
_EXPOSED: Final = "run chmod 600 on it"
_LONGEST_PEM: Final = 1 << 20
_SETTING: Final = re.compile(r"[A-Z][A-Z0-9_]+")
_EXPECTED: Final = re.compile(r"(.*?)[:;] (?:(.+); )?expected (.+)", re.DOTALL)
_SUBJECT: Final = re.compile(r"[A-Z][A-Z0-9_]+|[^:]+")
_OTHER_WORDS: Final = (
    (r"(?P<fact>.*): did you mean (?P<other>\w+)\?", "Rename it to {other}."),
    (r"(?P<fact>(?P<name>\w+) has no effect without (?P<other>[\w=]+)).*", "Set {other}, or take {name} out."),
    (r"(?P<fact>(?P<name>\w+) has no effect with \w+)\.", "Take {name} out."),
    (r"(?P<fact>MQTT_TLS_INSECURE=true: .*)\.", "Take it out, and set MQTT_CA_CERT to the CA of the broker."),
    (r"(?P<fact>.*, line \d+: .*)\.", "Correct the line, or take it out."),
    (
        r"(?P<fact>.*: no settings of this server, .*)\.",
        "Correct what was meant for it; what is for another program may stay.",
    ),
    (r"(?P<fact>.*): LOT_VERIFIER_API_URL has no https\.", "Give LOT_VERIFIER_API_URL an https address."),
    (r"(?P<fact>.* also needs (?P<other>.+))\.", "Set {other}."),
)
"""Texts of the settings in which the advice is not said as it usually is."""


def unusable(problems: Sequence[str]) -> set[str]:
    """Return the names of the settings that cannot be used; what is only readable by others can."""
    found: set[str] = set()
    for problem in problems:
        if _EXPOSED not in problem:
            names = {name for name in _SETTING.findall(problem) if name in NAMES}
            found |= names or set(SETTINGS)  # the file of all of them
    return found


class SettingsChecks:
    """The settings, and the files that they name.

    Args:
        config: What could be used of them.
        problems: What could not.
    """

    def __init__(self, config: Config, problems: Sequence[str]) -> None:
        self._config = config
        self._problems = problems

    def checks(self) -> list[Check]:
        """List the checks."""
        found = [
            Check("settings", self._settings),
            Check("permissions", self._permissions),
            Check("files", self._files),
        ]
        if self._config.tls and (self._config.tls.ca_cert or self._config.tls.client_cert):
            found.append(Check("certificates", self._certificates, settings=("MQTT_",)))
        return found

    async def _settings(self) -> AsyncIterator[Finding]:
        told = False
        for texts, tell in ((self._problems, failed), (self._config.warnings, warning)):
            for text in texts:
                if _EXPOSED not in text:
                    told = True
                    yield tell(*advice_on(text))
        if not told:
            read = sorted({str(path) for path in self._config.files.values() if path.exists()})
            yield ok(f"read from the environment{''.join(f', {path}' for path in read)}")

    async def _permissions(self) -> AsyncIterator[Finding]:
        told = False
        for texts, tell in ((self._problems, failed), (self._config.warnings, warning)):
            for text in texts:
                if _EXPOSED in text:
                    told = True
                    yield tell(*advice_on(text))
        if not told:
            yield ok("no file with a secret in it can be read by others") if os.name == "posix" else skipped(_NO_MODES)

    async def _files(self) -> AsyncIterator[Finding]:
        config = self._config
        told = False
        for name, path in (("AUDIT_FILE", config.audit.file), ("LOG_FILE", config.logs.file)):
            if path and (trouble := _unwritable_file(path)):
                told = True
                yield failed(
                    f"{name}: {path} cannot be written ({trouble})", f"Set {name} to a file in a writable directory."
                )
        if config.audit.file and config.audit.file.is_symlink():
            told = True
            yield failed(f"AUDIT_FILE: {config.audit.file} is a symbolic link", "Set AUDIT_FILE to the file itself.")
        for directory in (config.backups_dir, config.approvals_dir):
            if trouble := why_unwritable(directory):
                told = True
                yield failed(
                    f"{directory} cannot be written ({trouble}): there would be no {directory.name}",
                    f"Give the user of the server the right to write to {config.state_dir}, or set XDG_STATE_HOME.",
                )
        if not told:
            what = [name for name, path in (("AUDIT_FILE", config.audit.file), ("LOG_FILE", config.logs.file)) if path]
            yield ok(f"{', '.join([*what, 'backups', 'approvals'])} can be written; state is in {config.state_dir}")

    async def _certificates(self) -> AsyncIterator[Finding]:
        tls = self._config.tls
        if tls is None:
            return
        if tls.ca_cert:
            try:
                tls_context(replace(tls, client_cert=None, client_key=None))
            except BridgeError as exc:
                yield failed(str(exc).removesuffix("."), "Set MQTT_CA_CERT to a PEM file with a certificate.")
                return
            for finding in dates_of("MQTT_CA_CERT", tls.ca_cert, "Set MQTT_CA_CERT to the CA's certificate of today."):
                yield finding
        if tls.client_cert:
            try:
                tls_context(tls)
            except BridgeError as exc:
                fact, advice = fact_and_advice(str(exc))
                yield failed(f"{fact}: {advice}", _mend(advice))
            for finding in dates_of("MQTT_CLIENT_CERT", tls.client_cert, "Have it renewed by whoever issued it."):
                yield finding


def advice_on(text: str) -> tuple[str, str]:
    """Take apart what the settings say of a problem: the fact, and the one thing to do."""
    if found := _EXPECTED.fullmatch(text.removesuffix(".")):
        subject = _SUBJECT.match(text)
        fact = f"{found[1]}: {found[2]}" if found[2] else f"{found[1]} cannot be used"
        return fact, f"Correct {subject[0] if subject else 'it'}: expected {found[3]}."
    if not has_advice(text):
        for pattern, template in _OTHER_WORDS:
            if found := re.fullmatch(pattern, text):
                return found["fact"], template.format(**found.groupdict())
    return fact_and_advice(text)


def _mend(trouble: str) -> str:
    if "does not belong" in trouble:
        return "Set MQTT_CLIENT_KEY to the key that the certificate was made for."
    if "PASSWORD is wrong" in trouble:
        return "Correct MQTT_CLIENT_KEY_PASSWORD."
    return "Set MQTT_CLIENT_CERT and MQTT_CLIENT_KEY to a certificate and its key, in PEM."


def dates_of(name: str, path: Path, renew: str) -> Iterator[Finding]:
    """Tell of each certificate in a file whether it is valid now, and for how long."""
    certificates = certificates_in(path)
    if not certificates:
        yield failed(f"{name}: there is no certificate in {path} that can be read", f"Set {name} to one in PEM.")
        return
    untold = True
    for certificate in certificates:
        if finding := date_of(f"{name}: {subject_of(certificate)}", certificate, renew):
            untold = False
            yield finding
    if untold:
        first = min(each.not_valid_after_utc for each in certificates)
        yield ok(f"{name}: {subject_of(certificates[0])} is valid until {first:%Y-%m-%d}")


def date_of(what: str, certificate: x509.Certificate, renew: str) -> Finding | None:
    """Tell what is to be said of a certificate's dates; None when nothing is."""
    now, start, end = datetime.now(UTC), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if end < now:
        return failed(f"{what} expired on {end:%Y-%m-%d}", renew)
    if start > now:
        return failed(f"{what} is not valid before {start:%Y-%m-%d %H:%M} UTC", "Check the clock of this machine.")
    if end - now < SOON:
        return warning(f"{what} expires on {end:%Y-%m-%d}, in {(end - now).days} days", renew)
    return None


def certificates_in(path: Path) -> list[x509.Certificate]:
    """Read the certificates of a PEM file; none when it cannot be read as one."""
    try:
        with path.open("rb") as file:
            return x509.load_pem_x509_certificates(file.read(_LONGEST_PEM))
    except (OSError, ValueError):
        return []


def subject_of(certificate: x509.Certificate) -> str:
    """Name whom a certificate is for."""
    return shown(certificate.subject.rfc4514_string() or ", ".join(names_in(certificate)) or "a nameless certificate")


def names_in(certificate: x509.Certificate) -> list[str]:
    """List the host names and addresses that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    found = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    return [shown(name)[1:-1] for name in found]


def decoded(certificate: bytes | None) -> x509.Certificate | None:
    """Read a certificate as TLS brings it."""
    try:
        return x509.load_der_x509_certificate(certificate) if certificate else None
    except ValueError:
        return None


def _unwritable_file(path: Path) -> str:
    """Say why a file cannot be added to; "" when it can. Nothing is changed."""
    try:
        if path.exists():
            with path.open("ab"):
                return ""
    except OSError as exc:
        return exc.strerror or type(exc).__name__
    return why_unwritable(path.parent) if path.parent.exists() else "there is no such directory"

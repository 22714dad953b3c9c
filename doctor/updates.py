"""What PyPI knows of the packages that this server runs with: newer releases and known vulnerabilities."""

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import httpx2

from doctor.checkup import Finding, failed, ok, warning
from sanitizer import shortened

PYPI: Final = "https://pypi.org"
REQUIREMENTS: Final = Path(__file__).parents[1] / "requirements.txt"
TIMEOUT_S: Final = 10.0
LIMIT_S: Final = 60.0
"""For all packages together."""

_AT_ONCE: Final = 4
_LARGEST_ANSWER: Final = 32 << 20
_WORDS: Final = 100
_LINE: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?\s*([^;#]*)")
_BOUND: Final = re.compile(r"(>=|<=|==|!=|<|>)\s*([0-9.]+)")
_FINAL: Final = re.compile(r"([0-9]+(?:\.[0-9]+)*)(?:\.post([0-9]+))?")
_START: Final = re.compile(r"[0-9]+(?:\.[0-9]+)*")

Version = tuple[int, ...]


class LookupFailedError(Exception):
    """PyPI did not tell."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """A line of `requirements.txt`: a package, and which of its versions are allowed."""

    name: str
    bounds: tuple[tuple[str, Version], ...]

    def allows(self, version: Version) -> bool:
        """Say whether a version is within the bounds."""
        return all(_HOLDS[sign](_compared(version, bound)) for sign, bound in self.bounds)


@dataclass(frozen=True, slots=True)
class Known:
    """What PyPI knows of an installed package.

    Attributes:
        name: The package.
        installed: Its version here.
        newest: The newest version that is allowed, where it is newer than that; else "".
        outside: The same for one that is not allowed.
        flaws: Known vulnerabilities of the installed version, each with the versions in which it is mended.
    """

    name: str
    installed: str
    newest: str
    outside: str
    flaws: tuple[tuple[str, tuple[str, ...]], ...]


async def updates(requirements: Path = REQUIREMENTS, base_url: str = PYPI) -> AsyncIterator[Finding]:
    """Look each package of a file of requirements up, and tell what is to be known."""
    try:
        wanted = requirements_in(requirements)
    except OSError as exc:
        yield warning(f"{requirements} cannot be read ({exc.strerror})", "Run doctor where the server's files are.")
        return
    turns = asyncio.Semaphore(_AT_ONCE)
    try:
        client = httpx2.AsyncClient(timeout=TIMEOUT_S, follow_redirects=True)
    except (ImportError, OSError, ValueError):  # a proxy has a password: its text is not quoted
        yield warning(
            "nothing could be looked up: the environment's proxy or authorities cannot be used",
            "Check HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR.",
        )
        return
    async with client:

        async def look_up(requirement: Requirement) -> Known | str:
            async with turns:
                try:
                    return await _known(client, base_url, requirement)
                except LookupFailedError as exc:
                    return str(exc)

        answers = await asyncio.gather(*map(look_up, wanted))
    for finding in _findings(wanted, answers, base_url):
        yield finding


def _findings(wanted: Sequence[Requirement], answers: Sequence[Known | str], base_url: str) -> list[Finding]:
    known = [answer for answer in answers if isinstance(answer, Known)]
    found = [finding for each in known for finding in _findings_of(each, base_url)]
    unknown: dict[str, list[str]] = defaultdict(list)
    for requirement, answer in zip(wanted, answers, strict=True):
        if isinstance(answer, str):
            unknown[answer].append(requirement.name)
    for reason, names in unknown.items():
        again = f"Try again where {base_url} can be reached, or set HTTPS_PROXY."
        found.append(warning(f"could not be looked up: {', '.join(names)} ({reason})", again))
    if not found:
        outside = ", ".join(f"{each.name} {each.outside}" for each in known if each.outside)
        more = f"; there is {outside}, which requirements.txt does not allow yet" if outside else ""
        found.append(
            ok(f"{len(known)} packages are the newest that requirements.txt allows, none known to be bad{more}")
        )
    return found


def _findings_of(package: Known, base_url: str) -> Iterator[Finding]:
    what = f"{package.name} {package.installed}"
    for flaw, mended in package.flaws:
        where = f"mended in {', '.join(mended)}" if mended else "not mended in any version"
        page = f"See {base_url}/project/{package.name}/ for what to do."
        advice = f"Run pip install --upgrade '{package.name}>={mended[0]}'." if mended else page
        yield failed(f"{what} has a known vulnerability, {flaw}, {where}", advice)
    if package.newest:
        advice = "Run pip install --upgrade -r requirements.txt."
        yield warning(f"{what} is installed, and there is {package.newest}", advice)


async def _known(client: httpx2.AsyncClient, base_url: str, requirement: Requirement) -> Known:
    try:
        installed = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        raise LookupFailedError("not installed") from None
    here = _version(installed)
    whole = await _get(client, f"{base_url}/pypi/{requirement.name}/json")
    # The vulnerabilities of the first answer are those of the newest release.
    ours = await _get(client, f"{base_url}/pypi/{requirement.name}/{installed}/json")
    newer = sorted((version, text) for text, version in _releases(whole).items() if _compared(version, here) > 0)
    within = [text for version, text in newer if requirement.allows(version)]
    flaws = ours.get("vulnerabilities")
    return Known(
        requirement.name,
        installed,
        within[-1] if within else "",
        newer[-1][1] if newer and not within else "",
        tuple(_flaws(flaws if isinstance(flaws, list) else [])),
    )


async def _get(client: httpx2.AsyncClient, url: str) -> dict[str, Any]:
    body = bytearray()
    try:
        async with client.stream("GET", url) as response:
            if response.status_code != httpx2.codes.OK:
                raise LookupFailedError(f"HTTP {response.status_code}")
            async for part in response.aiter_bytes():
                body += part
                if len(body) > _LARGEST_ANSWER:
                    raise LookupFailedError("the answer is too large")
    except httpx2.HTTPError as exc:
        raise LookupFailedError(shortened(str(exc), _WORDS) or type(exc).__name__) from exc
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise LookupFailedError("the answer is not that of PyPI")
    return value


def _releases(answer: Mapping[str, Any]) -> dict[str, Version]:
    """List the final releases that can still be had."""
    releases = answer.get("releases")
    return {
        text: _version(text)
        for text, files in (releases.items() if isinstance(releases, dict) else ())
        if _FINAL.fullmatch(text)
        and isinstance(files, list)
        and any(isinstance(file, dict) and not file.get("yanked") for file in files)
    }


def _flaws(listed: Sequence[object]) -> list[tuple[str, tuple[str, ...]]]:
    return [
        (str(each.get("id")), tuple(map(str, each.get("fixed_in") or ())))
        for each in listed
        if isinstance(each, dict) and not each.get("withdrawn")
    ]


def requirements_in(path: Path) -> list[Requirement]:
    """Read a file of requirements, as far as it has lines of a name with bounds."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := _LINE.match(line.strip()):
            bounds = tuple((sign, _version(text)) for sign, text in _BOUND.findall(match[2]))
            found.append(Requirement(match[1], bounds))
    return found


def _version(text: str) -> Version:
    """Read the numbers of a version; those of a pre-release are the ones of what it goes before."""
    match = _FINAL.fullmatch(text)
    if match and match[2]:
        return (*map(int, match[1].split(".")), -1, int(match[2]) + 1)
    start = _START.match(text)
    return tuple(map(int, start[0].split("."))) if start else ()


def _compared(one: Version, other: Version) -> int:
    length = max(len(one), len(other))
    left, right = (each + (0,) * (length - len(each)) for each in (one, other))
    return (left > right) - (left < right)


_HOLDS: Final = {
    ">=": lambda order: order >= 0,
    "<=": lambda order: order <= 0,
    "==": lambda order: order == 0,
    "!=": lambda order: order != 0,
    "<": lambda order: order < 0,
    ">": lambda order: order > 0,
}

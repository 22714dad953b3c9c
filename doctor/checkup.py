"""What a check is, what it finds, and how the checks of `doctor` are made one after the other."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from typing import Final, Literal, NamedTuple

from errors import BridgeError

Status = Literal["ok", "warning", "failed", "skipped"]
"""As it should be; works, but should not stay so; does not work; not looked at."""

AGAIN: Final = "Mend that, and run doctor again."
"""What to do where a text has no advice in it."""

_ADVICE: Final = re.compile(
    r"[:;,.] ((?:set|check|keep|change|name|run|connect|have|see|use|give|take|ask|try)\b.*)", re.IGNORECASE | re.DOTALL
)


class Finding(NamedTuple):
    """What a check has found, and the one thing to do about it."""

    status: Status
    detail: str
    next_step: str = ""


class Result(NamedTuple):
    """A finding, and the check that made it."""

    check: str
    status: Status
    detail: str
    next_step: str = ""


class Check(NamedTuple):
    """One thing to look at.

    Attributes:
        name: What a person calls it.
        look: Looks, and yields what it finds; a `BridgeError` that leaves it is a failure found.
        needs: The checks without which it makes no sense.
        settings: Beginnings of the names of the settings it goes by.
        limit_s: How long it may take.
    """

    name: str
    look: Callable[[], AsyncIterator[Finding]]
    needs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    limit_s: float = 10.0


def ok(detail: str) -> Finding:
    """Say that something is as it should be."""
    return Finding("ok", detail)


def warning(detail: str, next_step: str) -> Finding:
    """Say that something works but should not stay so."""
    return Finding("warning", detail, next_step)


def failed(detail: str, next_step: str) -> Finding:
    """Say that something does not work."""
    return Finding("failed", detail, next_step)


def skipped(detail: str, next_step: str = "") -> Finding:
    """Say that something was not looked at, and why."""
    return Finding("skipped", detail, next_step)


def has_advice(text: str) -> bool:
    """Say whether a text tells what to do."""
    return _ADVICE.search(text) is not None


def fact_and_advice(text: str) -> tuple[str, str]:
    """Take an error's text apart: what happened, and what would help."""
    if found := _ADVICE.search(text):
        return text[: found.start()], sentence(found[1])
    fact, separator, advice = text.rpartition("; ")
    if not separator:
        fact, separator, advice = text.rpartition(": ")
    return (fact, sentence(advice)) if separator else (text.removesuffix("."), AGAIN)


def sentence(text: str) -> str:
    """Write a clause as a sentence."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


async def examine(checks: Iterable[Check], unusable: Collection[str] = ()) -> AsyncIterator[Result]:
    """Make the checks in their order.

    A check is skipped where one that it needs has failed or was skipped for such a reason, or where one of its settings
    is among those that are `unusable`.
    """
    causes: dict[str, str] = {}
    for check in checks:
        cause = next((causes[name] for name in check.needs if name in causes), "")
        if not cause and (names := sorted(name for name in unusable if name.startswith(check.settings))):
            cause = f"{names[0]} cannot be used"
        if cause:
            causes[check.name] = cause
            yield Result(check.name, "skipped", f"not looked at, because {cause}")
            continue
        for finding in await _look(check):
            if finding.status == "failed":
                causes[check.name] = f"the check of {check.name} failed"
            yield Result(check.name, *finding)


async def _look(check: Check) -> list[Finding]:
    found: list[Finding] = []
    try:
        async with asyncio.timeout(check.limit_s):
            async for finding in check.look():
                found.append(finding)  # noqa: PERF401 - what was found before a failure counts
    except TimeoutError:
        found.append(
            failed(
                f"there was no result within {check.limit_s:g} s",
                "Try again; if it stays so, see the log of the other side.",
            )
        )
    except BridgeError as exc:
        found.append(failed(*fact_and_advice(str(exc))))
    return found

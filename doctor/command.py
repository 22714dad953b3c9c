"""The command `doctor`: looks at everything between the settings and the broker, and says what to do next."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import logs
from config import Config, Logs
from doctor.broker import BrokerChecks
from doctor.checkup import Check, Result, Status, examine
from doctor.rights import RightsChecks
from doctor.services import ServicesChecks
from doctor.settings import SettingsChecks, unusable
from sanitizer import hide_secrets
from screen import Screen
from tools.answers import visible

UNUSABLE_SETTINGS: Final = 2
"""The exit code that every command has for them."""

_STYLES: Final[dict[Status, str]] = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}
_NAME_WIDTH: Final = 17
_INDENT: Final = " " * 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What is asked of the doctor.

    Attributes:
        as_json: One JSON object in place of lines for people.
        updates: Look the packages up too.
        take_client_id: Connect with MQTT_CLIENT_ID, which throws out whoever uses it.
    """

    as_json: bool = False
    updates: bool = False
    take_client_id: bool = False


def run_doctor(env_file: Path, wishes: Wishes) -> int:
    """Make all checks and return the exit code: 0 nothing failed, 1 something did, 2 the settings cannot be used."""
    logs.set_up(Logs(level="CRITICAL"))  # what is to be said, the checks say; a fault of ours is not to be lost
    problems: list[str] = []
    config = Config.from_env(env_file=env_file, problems=problems)
    screen = Screen(highlight=False, soft_wrap=True, markup=False, emoji=False)
    results = asyncio.run(_run(config, problems, wishes, screen))
    failures = any(result.status == "failed" for result in results)
    if wishes.as_json:
        screen.print(json.dumps({"ok": not failures and not problems, "checks": [_entry(each) for each in results]}))
    else:
        _show_summary(screen, results)
    return UNUSABLE_SETTINGS if problems else 1 if failures else 0


async def _run(config: Config, problems: list[str], wishes: Wishes, screen: Screen) -> list[Result]:
    results = []
    async for result in diagnose(config, problems, wishes):
        results.append(result)
        if not wishes.as_json:
            _show(screen, result)
    return results


async def diagnose(config: Config, problems: list[str], wishes: Wishes) -> AsyncIterator[Result]:
    """Make the checks that make sense with some settings, and tell what each finds as soon as it has."""
    async with AsyncExitStack() as around:
        broker = BrokerChecks(config, around, take_client_id=wishes.take_client_id)
        checks = [
            *SettingsChecks(config, problems).checks(),
            *broker.checks(),
            *RightsChecks(config, lambda: broker.client).checks(),
            *ServicesChecks(config).checks(),
        ]
        if wishes.updates:
            from doctor.updates import LIMIT_S, updates  # noqa: PLC0415 - only who asks for it waits for it

            checks.append(Check("updates", updates, limit_s=LIMIT_S))
        async for result in examine(checks, unusable(problems)):
            yield result


def _entry(result: Result) -> dict[str, str | None]:
    return {**_clean(result), "next_step": _clean(result)["next_step"] or None}


def _clean(result: Result) -> dict[str, str]:
    """Take out of each text what is secret, and what would not be seen or be more than text."""
    return {name: visible(hide_secrets(text)).replace("\n", " ") for name, text in result._asdict().items()}


def _show(screen: Screen, result: Result) -> None:
    clean = _clean(result)
    screen.print(f"{result.status:<8}", style=_STYLES[result.status], end=" ")
    screen.print(f"{clean['check']:<{_NAME_WIDTH}} {clean['detail']}")
    if result.next_step:
        screen.print(f"{_INDENT}next: {clean['next_step']}")


def _show_summary(screen: Screen, results: list[Result]) -> None:
    counts = Counter(result.status for result in results)
    order: tuple[Status, ...] = ("ok", "warning", "failed", "skipped")
    told = ", ".join(f"{counts[status]} {status}" for status in order if counts[status])
    screen.print(f"\n{told.replace('warning', 'warnings') if counts['warning'] > 1 else told}.")

"""Secrets and certificates that change while the server runs: read again, hidden, and handed to the connections."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from config import FOLLOWED, SETTINGS, Config
from errors import ConfigError

LOOK_EVERY_S: Final = 2.0
"""Seconds between two looks at the files. Notifications of the system do not reach through container mounts."""

logger = logging.getLogger(__name__)

_THE_LOGIN: Final = "the login in MQTT_BROKER"

_Seen = dict[tuple[str, Path], tuple[int, int, int] | None]
"""By setting and file, what tells its content from an earlier one; None for a file that is not there."""


@asynccontextmanager
async def rotating(
    config: Config,
    read: Callable[[], Config],
    use: Callable[[Config], None],
    advise: Callable[[str], None] = lambda _text: None,
) -> AsyncIterator[Callable[[], None]]:
    """While in context, `use` what `read` returns whenever a login, token or certificate has changed.

    Values of before stay hidden from logs and answers. Settings that cannot be used leave everything as it was and are
    logged. What differs from `config` and is not used before a restart is told to `advise`, and "" when nothing does
    any more. Yields a function that has everything read again at once.
    """
    asked = asyncio.Event()
    task = asyncio.create_task(_follow(config, read, use, advise, asked), name="rotation")
    try:
        yield asked.set
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _follow(
    started: Config,
    read: Callable[[], Config],
    use: Callable[[Config], None],
    advise: Callable[[str], None],
    asked: asyncio.Event,
) -> None:
    config, waiting = started, set[str]()
    seen: _Seen = {}
    while True:
        found = await asyncio.to_thread(_look, config.files)
        # What differs at the first look may have changed since it was read at the start.
        if found != seen or asked.is_set():
            changed = {name for name, path in found if found[name, path] != seen.get((name, path), found[name, path])}
            asked.clear()
            try:
                fresh = await asyncio.to_thread(read)
            except ConfigError as exc:
                logger.error("the settings changed and cannot be used, so nothing changes here: %s", exc)  # noqa: TRY400
            else:
                for warning in fresh.warnings:
                    if warning not in config.warnings:
                        logger.warning("%s", warning)
                differing, usable = _differing(config, fresh), _used_at_once(started, fresh)
                waited, waiting = waiting, _differing(started, fresh) - usable
                if used := (changed & {*FOLLOWED} | differing & usable) - waited - waiting:
                    logger.info("%s changed: used from the next connection on", _listed(used))
                    use(fresh)
                if waiting != waited or differing & waiting:
                    _tell_what_waits(waiting, advise)
                config = fresh
            seen = found
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY_S):
                await asked.wait()


def _look(files: Mapping[str, Path]) -> _Seen:
    seen: _Seen = {}
    for name, path in files.items():
        try:
            status = path.stat()
        except OSError:
            seen[name, path] = None
        else:
            seen[name, path] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return seen


def _differing(one: Config, other: Config) -> set[str]:
    """Name the settings whose values differ; the login in the broker's address counts by itself."""
    values, others = _values(one), _values(other)
    return {name for name in values if values[name] != others[name]}


def _values(config: Config) -> dict[str, Any]:
    address = config.settings["MQTT_BROKER"]
    return {
        **config.settings,
        "MQTT_BROKER": address._replace(user=None, password=None),
        _THE_LOGIN: (address.user, address.password),
    }


def _used_at_once(started: Config, fresh: Config) -> set[str]:
    """Name the settings of which the connections take over what is new, the way being what it was at the start."""
    names = {"MQTT_USER", "MQTT_PASSWORD", _THE_LOGIN, "MQTT_CLIENT_KEY_PASSWORD"}
    if started.broker.oauth and fresh.broker.oauth:
        names.add("MQTT_OAUTH_CLIENT_SECRET")
    if not started.copilot.missing:
        names.add("DO_AGENT_API_KEY")
    if (started.http.several, bool(started.http.clients)) == (fresh.http.several, bool(fresh.http.clients)):
        names |= {"MCP_TOKEN", "MCP_TOKENS_FILE"}
    return names


def _tell_what_waits(names: set[str], advise: Callable[[str], None]) -> None:
    text = ""
    if names:
        text = f"{_listed(names)} changed: {'they are' if len(names) > 1 else 'it is'} used after a restart"
        logger.warning("%s", text)
    advise(text)


def _listed(names: set[str]) -> str:
    return ", ".join(name for name in (*SETTINGS, _THE_LOGIN) if name in names)

"""Secrets and certificates that change while the server runs: read again, hidden, and handed to the connections."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from config import Config
from errors import ConfigError

LOOK_EVERY_S: Final = 2.0
"""Seconds between two looks at the files. Notifications of the system do not reach through container mounts."""

logger = logging.getLogger(__name__)

_Seen = dict[str, tuple[int, int, int] | None]
"""By setting, what tells a file's content from an earlier one; None for a file that is not there."""


@asynccontextmanager
async def rotating(
    config: Config, read: Callable[[], Config], use: Callable[[Config], None]
) -> AsyncIterator[Callable[[], None]]:
    """While in context, `use` what `read` returns whenever one of the files of `config` has changed.

    Values of before stay hidden from logs and answers. Settings that cannot be used leave everything as it was and are
    logged. Yields a function that has everything read again at once.
    """
    asked = asyncio.Event()
    task = asyncio.create_task(_follow(config, read, use, asked), name="rotation")
    try:
        yield asked.set
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _follow(
    config: Config, read: Callable[[], Config], use: Callable[[Config], None], asked: asyncio.Event
) -> None:
    seen: _Seen = {}
    while True:
        found = await asyncio.to_thread(_look, config.files)
        # What differs at the first look may have changed since it was read at the start.
        if found != seen or asked.is_set():
            changed = [name for name in found if seen and found[name] != seen.get(name)]
            asked.clear()
            try:
                fresh = await asyncio.to_thread(read)
            except ConfigError as exc:
                logger.error("the settings changed and cannot be used, so nothing changes here: %s", exc)  # noqa: TRY400
            else:
                _take_over(config, fresh, changed, use)
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
            seen[name] = None
        else:
            seen[name] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return seen


def _take_over(old: Config, fresh: Config, changed: list[str], use: Callable[[Config], None]) -> None:
    for warning in fresh.warnings:
        if warning not in old.warnings:
            logger.warning("%s", warning)
    if fresh.broker.with_secrets_of(old.broker) != fresh.broker or fresh.copilot.key != old.copilot.key:
        changed = changed or ["a secret"]
    if changed:
        logger.info("%s changed: used from the next connection on", ", ".join(changed))
        use(fresh)

"""Change a file that belongs to a person: a copy of it first, then the whole of it at once or nothing."""

import contextlib
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from errors import BridgeError
from private_files import why_unwritable

PRIVATE: Final = 0o600

_PERMISSIONS: Final = 0o777
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


def read_file(path: Path) -> bytes | None:
    """Return what is in a file; None when there is none.

    Raises:
        BridgeError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise BridgeError(f"{path} cannot be read ({exc.strerror}).") from exc


def check_writable(path: Path) -> None:
    """Look whether a file can be written. Nothing is left of the try.

    Raises:
        BridgeError: It cannot.
    """
    if why := why_unwritable(path.resolve().parent):
        raise BridgeError(f"{path} cannot be written ({why}).")


def replace_file(path: Path, before: bytes | None, after: bytes, mode: int | None = None) -> Path | None:
    """Write a file that held `before`, and return where that is kept now; None when there was no file.

    A link stays one: what it leads to is written. What was there keeps its owner, and its mode unless `mode` is given;
    a new file and every copy can be read by the owner only.

    Raises:
        BridgeError: It cannot be written, or it holds something else by now; it is as it was.
    """
    try:
        target = path.resolve()
        if read_file(target) != before:
            raise BridgeError(f"{path} was changed by another program meanwhile, so nothing was written. Do it again.")
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = None
        if before is not None:
            copy = target.with_name(f"{target.name}.bak-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}")
            _create(copy, before, target)
        fresh = target.with_name(f"{target.name}.new-{secrets.token_hex(4)}")
        try:
            _create(fresh, after, target if before is not None else None)
            if mode is None and before is not None:
                fresh.chmod(target.stat().st_mode & _PERMISSIONS)
            elif mode is not None:
                fresh.chmod(mode)
            fresh.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise
    except OSError as exc:
        raise BridgeError(f"{path} cannot be written ({exc.strerror}).") from exc
    return copy


def _create(path: Path, content: bytes, like: Path | None) -> None:
    with os.fdopen(os.open(path, _NEW, PRIVATE), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        if like is not None and os.name == "posix":
            there = like.stat()
            with contextlib.suppress(OSError):  # only root can give a file away, and only root has to
                os.fchown(file.fileno(), there.st_uid, there.st_gid)

"""Where log records go: stderr and a file, never stdout, which belongs to the protocol. Set up once, by `main`."""

import json
import logging
import os
import sys
import threading
from contextvars import ContextVar
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import sanitizer
from config import Logs
from errors import ConfigError

FILE_BYTES: Final = 10_000_000
"""A log file that reaches this size is put aside; so many old ones are kept:"""
OLD_FILES: Final = 3

_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def set_up(config: Logs) -> None:
    """Send the records of every library to stderr and, if wanted, to a file, without secrets.

    Raises:
        ConfigError: The log file cannot be written.
    """
    root = logging.getLogger()
    handlers: list[logging.Handler] = []
    if config.level == "NONE":
        logging.disable()
        handlers.append(logging.NullHandler())
    else:
        handlers.append(logging.StreamHandler(sys.stderr))
        if config.file is not None:
            handlers.append(_open_file(config.file))
        root.setLevel(config.level)
    for handler in handlers:
        handler.setFormatter(JsonFormatter() if config.format == "json" else _TextFormatter(_TEXT))
        root.addHandler(handler)
    logging.captureWarnings(capture=True)
    sanitizer.install()
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable


correlation: ContextVar[str] = ContextVar("correlation", default="")
"""Names the tool call that is being served, in its log records and in the record of what was done."""


class _TextFormatter(logging.Formatter):
    """One line, with the time as RFC 3339 in UTC."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - as in the base class
        """Write a record, and which call it belongs to."""
        call = correlation.get()
        return super().formatMessage(record) + (f" [{call}]" if call else "")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802 - as in the base class
        """Write the time of `record`."""
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonFormatter(_TextFormatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Write `record` as JSON; non-ASCII characters as escapes, so that a line stays a line everywhere."""
        entry: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if call := correlation.get():
            entry["correlation"] = call
        entry |= getattr(record, "facts", {})
        if record.exc_text:  # what the sanitizer leaves of an exception
            entry["exception"] = record.exc_text
        elif record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            entry["stack"] = self.formatStack(record.stack_info)
        return json.dumps(entry)


class _PrivateFileHandler(RotatingFileHandler):
    """A rotating log file that only its owner can read."""

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if hasattr(os, "fchmod"):
            os.fchmod(descriptor, 0o600)
        return os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")


def _open_file(path: Path) -> logging.Handler:
    try:
        return _PrivateFileHandler(path, maxBytes=FILE_BYTES, backupCount=OLD_FILES)
    except OSError as exc:
        raise ConfigError(
            f"LOG_FILE: {path} cannot be written ({exc.strerror}); name a file in a writable directory."
        ) from exc


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger(__name__).critical("the server failed", exc_info=(kind, error, trace))


def _log_unraisable(args: "sys.UnraisableHookArgs") -> None:
    if args.exc_value is not None:
        _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)

"""Files of ours that only their owner can read, each written as a whole or not at all."""

import json
import os
import tempfile
from pathlib import Path


def why_unwritable(folder: Path) -> str:
    """Say why nothing can be written to a folder, or it cannot be made; "" when it can. Nothing is left in it."""
    try:
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as exc:
        return exc.strerror or type(exc).__name__


def write_json(path: Path, content: object) -> None:
    """Write a file, and make its directory where that is missing.

    Raises:
        OSError: It cannot be written; what was there is as it was.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)

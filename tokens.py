"""Let another client in over HTTP: a line for the file of tokens, and the token, which is shown once."""

import hashlib
import os
import re
import secrets
import sys
from pathlib import Path

from config import CLIENT_NAME, AccessMode
from errors import BridgeError, ConfigError
from sanitizer import hide_secrets


def run_token_new(name: str, access: AccessMode, path: Path | None) -> int:
    """Add a client to the file and print its token; nothing keeps the token itself.

    Raises:
        ConfigError: There is no file to write to.
        BridgeError: The name is none or taken, or the file cannot be written.
    """
    if path is None:
        raise ConfigError("MCP_TOKENS_FILE is not set: set it, or name the file with --file.")
    if not re.fullmatch(CLIENT_NAME, name):
        raise BridgeError("A name has up to 64 letters, digits, dots, dashes and underscores.")
    token = f"cfx_{secrets.token_urlsafe(32)}"
    line = f"{name} {access} {hashlib.sha256(token.encode()).hexdigest()}\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
            there = file.read()
            if any(each.split()[:1] == [name] for each in there.splitlines()):
                raise BridgeError(f"{name} is in {path} already: take its line out first, or choose another name.")
            file.write(line if there.endswith("\n") or not there else f"\n{line}")
    except OSError as exc:
        raise BridgeError(f"{path} cannot be written ({exc.strerror}).") from exc
    who = f"{name} may come in with access mode {access}; a running server knows within seconds."
    sys.stderr.write(f"{hide_secrets(who)}\nThis is its token. It is shown only now:\n")
    sys.stdout.write(f"{token}\n")
    return 0

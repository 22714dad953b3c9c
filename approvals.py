"""A person's yes for one act, given on this machine and out of the assistant's reach: one file each."""

import contextlib
import json
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from errors import BridgeError
from private_files import write_json

VALID_S: Final = 600.0
"""How long a question waits for its answer, and an answer for its act."""
MOST_WAITING: Final = 100

_ID: Final = re.compile(r"[0-9a-f]{8}")


@dataclass(slots=True)
class Approval:
    """One act that somebody is asked to allow.

    Attributes:
        id: How a person names it.
        act: What will happen, in words.
        content: What is sent, in lines that begin with "| "; "" for nothing.
        digest: What it is bound to: the tool, all of its arguments and the broker.
        until: Until when it is good, in epoch seconds.
        approved: Whether a person said yes.
    """

    id: str
    act: str
    content: str
    digest: str
    until: float
    approved: bool = False


class Approvals:
    """The questions in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def ask(self, act: str, content: str, digest: str) -> Approval:
        """Put a question there, or find the same one that still waits.

        Raises:
            BridgeError: It cannot be written.
        """
        waiting = list(self._all())
        for approval in waiting:
            if approval.digest == digest:
                return approval
        if len(waiting) >= MOST_WAITING:
            raise BridgeError(f"{len(waiting)} acts already wait for a person: python server.py approve lists them.")
        approval = Approval(secrets.token_hex(4), act, content, digest, time.time() + VALID_S)
        self._write(approval)
        return approval

    def take(self, digest: str) -> bool:
        """Use up a yes for an act, if there is one; of several that try, one succeeds."""
        for approval in self._all():
            if approval.digest == digest and approval.approved:
                with contextlib.suppress(OSError):
                    self._path(approval.id).unlink()  # missing when another was quicker
                    return True
        return False

    def waiting(self) -> list[Approval]:
        """List the questions without an answer, oldest first."""
        return sorted((each for each in self._all() if not each.approved), key=lambda each: each.until)

    def find(self, approval_id: str) -> Approval:
        """Find a question.

        Raises:
            BridgeError: There is none of that name, or it is too late for it.
        """
        for approval in self._all():
            if approval.id == approval_id:
                return approval
        raise BridgeError(f"Nothing waits under {approval_id!r}: it was answered, or is older than 10 minutes.")

    def approve(self, approval: Approval) -> None:
        """Say yes; from now on it is good for 10 minutes and one act.

        Raises:
            BridgeError: It cannot be written.
        """
        approval.approved, approval.until = True, time.time() + VALID_S
        self._write(approval)

    def _all(self) -> Iterator[Approval]:
        """Read what is valid, and throw away the rest."""
        for path in self.directory.glob("*.json"):
            try:
                approval = Approval(**json.loads(path.read_text(encoding="utf-8")))
                if not _ID.fullmatch(approval.id) or path.stem != approval.id or approval.until < time.time():
                    path.unlink()
                    continue
            except (OSError, ValueError, TypeError):
                continue
            yield approval

    def _write(self, approval: Approval) -> None:
        try:
            write_json(self._path(approval.id), asdict(approval))
        except OSError as exc:
            raise BridgeError(f"Nothing can be written to {self.directory} ({exc.strerror}).") from exc

    def _path(self, approval_id: str) -> Path:
        return self.directory / f"{approval_id}.json"

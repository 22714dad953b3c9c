"""What was deployed before we changed it: one file a change, that only its owner can read."""

import contextlib
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from errors import BridgeError
from lot import Kind
from private_files import write_json
from sanitizer import shortened

State = Literal["begun", "applied", "rolled back", "not rolled back", "restored", "partly restored"]

_UNFINISHED: Final[set[State]] = {"begun", "not rolled back"}

_ID = re.compile(r"\d{8}T\d{12}Z-[0-9a-f]{6}")
KEPT: Final = 200
"""So many backups are kept; of those that ended well the oldest go first."""


@dataclass(frozen=True, slots=True)
class Saved:
    """An entity as it was: its source, or None when there was none."""

    kind: Kind
    name: str
    code: str | None


@dataclass(slots=True)
class Backup:
    """What one change replaced or removed.

    Attributes:
        id: Its name, from the time it was made.
        broker: The address of the broker it belongs to, without a login.
        reason: deploy or remove.
        created: When, as RFC 3339 in UTC.
        state: How the change ended; begun when the server was killed in the middle of it, partly restored when a person
            was told what is left to do by hand.
        entities: What was there before, in the order in which it was changed.
    """

    id: str
    broker: str
    reason: str
    created: str
    state: State
    entities: list[Saved]


class Backups:
    """The backups in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def create(self, broker: str, reason: str, entities: Sequence[Saved]) -> Backup:
        """Write down what is about to change, before it does.

        Raises:
            BridgeError: It cannot be written, so nothing may be changed.
        """
        now = datetime.now(UTC)
        backup = Backup(
            id=f"{now:%Y%m%dT%H%M%S%fZ}-{secrets.token_hex(3)}",
            broker=broker,
            reason=reason,
            created=now.isoformat(timespec="seconds").replace("+00:00", "Z"),
            state="begun",
            entities=list(entities),
        )
        try:
            self._write(backup)
        except OSError as exc:
            raise BridgeError(
                f"No backup can be written to {self.directory} ({exc.strerror}); nothing was changed."
            ) from exc
        self._tidy()
        return backup

    def mark(self, backup: Backup, state: State) -> None:
        """Write down how the change ended. A failure to write leaves the backup as begun, which is the safe side."""
        backup.state = state
        with contextlib.suppress(OSError):
            self._write(backup)

    def load(self, backup_id: str) -> Backup:
        """Read a backup.

        Raises:
            BridgeError: There is none of that name, or it cannot be read.
        """
        if not _ID.fullmatch(backup_id):
            raise BridgeError(f"{shortened(backup_id, 60)!r} is no name of a backup.")
        try:
            found = json.loads(self._path(backup_id).read_text(encoding="utf-8"))
            entities = [Saved(**each) for each in found.pop("entities")]
            return Backup(**found, entities=entities)
        except FileNotFoundError:
            raise BridgeError(f"There is no backup {backup_id} in {self.directory}.") from None
        except (OSError, ValueError, TypeError, KeyError) as exc:
            raise BridgeError(f"The backup {backup_id} cannot be read ({type(exc).__name__}).") from exc

    def all(self) -> list[Backup]:
        """List the backups that can be read, oldest first."""
        found = []
        for path in sorted(self.directory.glob("*.json")):
            with contextlib.suppress(BridgeError):
                found.append(self.load(path.stem))
        return found

    def unfinished(self, broker: str) -> list[Backup]:
        """List the changes to a broker that did not end: the server was killed, or what was there was not put back."""
        return [each for each in self.all() if each.broker == broker and each.state in _UNFINISHED]

    def _write(self, backup: Backup) -> None:
        write_json(self._path(backup.id), asdict(backup))

    def _path(self, backup_id: str) -> Path:
        return self.directory / f"{backup_id}.json"

    def _tidy(self) -> None:
        done = [each for each in self.all() if each.state not in _UNFINISHED]
        for each in done[: max(0, len(done) - KEPT)]:
            with contextlib.suppress(OSError):
                self._path(each.id).unlink()

r"""What the assistant did, in a file that shows when somebody changed it.

A line is a JSON object that ends in `,"mac":"…"}`. The mac is the HMAC-SHA256, keyed with AUDIT_KEY (without a key: the
SHA-256), as 64 hex digits, of the previous line's mac and all bytes of this line in front of `,"mac":`. The first
line's previous mac is 64 zeros. So it can be checked without this program, the files in order, `.1` first:

    before = "0" * 64
    for line in open("audit.jsonl", "rb"):
        body, end = line[:-75], line[-75:]
        before = hmac.new(key, before.encode() + body, "sha256").hexdigest()
        assert end == b',"mac":"%s"}\n' % before.encode()

`<file>.head` holds, sealed likewise behind the word "head", the number and mac of the last line, so that an end cut off
is noticed. It is one short record, written over in place by one system call: that costs little, needs no space on a
full disk, and keeps the lock that is held on it. It is written after the lines; a crash between the two leaves valid
lines behind the head, which is fine. Whoever puts back an older copy of all files together is not noticed: keep the
last line's mac, or a copy of the files, elsewhere. Without a key, anybody who can write them can compute the chain.

A line was handed to the operating system when `record` returns, and outlives a crash of this process. It is not forced
to the disk: a power failure can take the last seconds, and `verify` then says that lines are missing.

A file that has reached `FILE_BYTES` is renamed to `<file>.1`, the next to `.2`: the highest number is the newest, none
is renamed twice or deleted. The first line of each new file names the last mac of the one before.
"""

import asyncio
import errno
import hashlib
import hmac
import io
import json
import logging
import math
import os
import queue
import re
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from pydantic import SecretStr

from config import AuditConfig
from errors import BridgeError
from sanitizer import make_sanitizer

FILE_BYTES: Final = 64 * 1024 * 1024
"""A file that has reached this size is put aside."""
LONGEST_FACT: Final = 2000
"""Characters of a fact; the rest is cut off, after its secrets were hidden."""
MOST_WAITING: Final = 10_000
"""So many lines wait for a slow disk; more are not recorded, but counted."""
PATIENCE_S: Final = 10.0
"""A disk that takes longer for a line counts as one that takes none."""

_LONGEST_HALVED: Final = 4096  # a secret that the cut goes through is recognised up to this length
_BATCH: Final = 256
_HEAD_BYTES: Final = 384  # more than its numbers can need, less than a sector
_LOCKED_BYTE: Final = 1 << 30  # where Windows locks: far behind what others may read
_LINE: Final = re.compile(rb'(\{"seq":(\d{1,18})(?:,.*)?),"mac":"([0-9a-f]{64})"\}\n?', re.DOTALL)
_OURS: Final = frozenset({"seq", "time", "mac"})
_NO_TEXT: Final = frozenset({"tool", "transport", "correlation", "digest"})
"""Facts that we compute: nobody can write a secret into them, so none is looked for."""

logger = logging.getLogger(__name__)

_dumps: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=str).encode
_Chain = Callable[[str, bytes], str]

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class _Head(NamedTuple):
    """Where the chain ends: the last line's number and mac, the bytes of its file up to there, and the files aside."""

    seq: int = 0
    last: str = "0" * 64
    size: int = 0
    files: int = 0


class _Entry(NamedTuple):
    """What waits to be written, and how many before it could not even wait."""

    time: float
    event: str
    facts: Mapping[str, Any]
    written: asyncio.Future[None] | None = None
    dropped: int = 0


class Audit:
    """The record: a context manager that writes while it is open. Its one thread owns the file and the chain."""

    def __init__(self, config: AuditConfig, file_bytes: int = FILE_BYTES) -> None:
        self._path = config.file and config.file.absolute()
        self._required, self._file_bytes = config.required, file_bytes
        self._chain = _chain(config.key)
        self._sanitize = make_sanitizer()
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failure = None if self._path is None else f"The audit file {self._path} is not open."
        self._hung = False  # somebody gave up waiting, and nothing was written since
        self._head = _Head()
        self._file = self._side = -1
        self._tell: dict[str, Any] = {}  # of what was found or went wrong, for the next line
        self._prefix = b""  # ends what somebody left without an end
        self._lost = self._dropped = 0
        self.lines = 0
        """How many lines the file has been given."""

    async def __aenter__(self) -> Self:
        if self._path is not None:
            loop = asyncio.get_running_loop()
            opened = loop.create_future()
            self._thread = threading.Thread(
                target=self._run, args=(self._path, loop, opened), name="audit", daemon=True
            )
            self._thread.start()
            try:
                self._hung = not await _patiently(opened)
            except asyncio.CancelledError:
                self._queue.put(None)
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(thread.join, PATIENCE_S)

    @property
    def failure(self) -> str | None:
        """Why nothing can be recorded now, for an operator; None when all is well or there is no file."""
        if self._hung:
            return f"The audit file {self._path} has not taken a line for more than {PATIENCE_S:.0f} s."
        return self._failure

    @property
    def refuses(self) -> bool:
        """Whether nothing may be changed, because it could not be recorded."""
        return self._required and self.failure is not None

    async def record(self, event: str, **facts: Any) -> None:
        """Write a line; return when the operating system has it, or when it is known that it cannot be written.

        The facts are JSON and stay as they are. Whoever gives up waiting does not take the line back.
        """
        if self._thread is not None:
            written = asyncio.get_running_loop().create_future()
            if self._put(event, facts, written) and not self._hung:
                self._hung = not await _patiently(written)

    def note(self, event: str, **facts: Any) -> None:
        """Write a line soon; for what happens outside of a call."""
        if self._thread is not None:
            self._put(event, facts)

    def _put(self, event: str, facts: Mapping[str, Any], written: asyncio.Future[None] | None = None) -> bool:
        if self._queue.qsize() >= MOST_WAITING:
            self._dropped += 1
            return False
        self._queue.put(_Entry(time.time(), event, facts, written, self._dropped))
        self._dropped = 0
        return True

    def _run(self, path: Path, loop: asyncio.AbstractEventLoop, opened: asyncio.Future[None]) -> None:
        self._attempt(path, [])
        waiting, running = [opened], True
        while True:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(_settle, waiting)
            if not running:
                break
            batch = [self._queue.get()]
            while len(batch) < _BATCH and not self._queue.empty():
                batch.append(self._queue.get())
            running = None not in batch
            entries = [entry for entry in batch if entry is not None]
            self._attempt(path, entries)
            waiting = [entry.written for entry in entries if entry.written is not None]
        self._close()
        self._failure = f"The audit file {path} is not open."

    def _attempt(self, path: Path, entries: list[_Entry]) -> None:
        """Write `entries`, or say why not. What fails is opened anew the next time."""
        failure = None
        try:
            self._write(path, entries)
        except OSError as exc:
            failure = f"The audit file {path} cannot be written ({exc.strerror or exc})."
        except BridgeError as exc:
            failure = str(exc)
        except Exception:
            logger.exception("the audit file was not written")
            failure = f"The audit file {path} is not written, for a fault in the server that its log tells."
        if failure is not None:
            self._close()
        if failure != self._failure:
            logger.log(logging.ERROR if failure else logging.INFO, "%s", failure or f"{path} is written")
        self._failure, self._hung = failure, False

    def _write(self, path: Path, entries: list[_Entry]) -> None:
        before = self._lost + sum(entry.dropped for entry in entries)
        self._lost = before + len(entries)
        if self._file < 0:
            self._open(path)
        elif not (_is(path, self._file, self._head.size) and _is(_side(path), self._side, _HEAD_BYTES)):
            raise BridgeError(f"The audit file {path}, or its .head, was changed or replaced by somebody else.")
        if entries and self._head.size >= self._file_bytes and not self._prefix:
            self._rotate(path)
        if before:
            self._tell |= {"lost_lines": before, "lost_because": self._failure or "too many lines were waiting"}
        if self._tell:
            entries = [_Entry(time.time(), "audit", self._tell), *entries]

        head, lines = self._head, [self._prefix]
        for entry in entries:
            body = self._body(head.seq + 1, entry)
            head = head._replace(seq=head.seq + 1, last=self._chain(head.last, body))
            lines.append(_sealed(body, head.last))
        if entries:
            data = b"".join(lines)
            self._append(data)
            self.lines += len(entries)
            self._head = head._replace(size=self._head.size + len(data))
            self._tell, self._prefix = {}, b""
            self._write_head()
        self._lost = 0

    def _body(self, seq: int, entry: _Entry) -> bytes:
        """Write a line up to its mac: what is ours first, and each fact without secrets."""
        at = datetime.fromtimestamp(entry.time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        facts = {
            name: value if name in _NO_TEXT else self._clean(value)
            for name, value in entry.facts.items()
            if name not in _OURS
        }
        return _dumps({"seq": seq, "time": at, "event": entry.event, **facts})[:-1].encode()

    def _clean(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
            return value
        try:
            text = value if isinstance(value, str) else _dumps(value)
        except (TypeError, ValueError, RecursionError):
            return f"[{type(value).__name__} that is not JSON]"
        clean = self._sanitize(text[: LONGEST_FACT + _LONGEST_HALVED])
        if len(clean) > LONGEST_FACT:
            return f"{clean[:LONGEST_FACT]}…"
        if not isinstance(value, str):
            with suppress(ValueError, RecursionError):
                return json.loads(clean)
        return clean

    def _append(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            with suppress(OSError):  # of half a batch nobody was told that it is recorded
                os.ftruncate(self._file, self._head.size)
            raise

    def _write_head(self) -> None:
        os.lseek(self._side, 0, os.SEEK_SET)
        if os.write(self._side, _sealed_head(self._head, self._chain)) < _HEAD_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _open(self, path: Path) -> None:
        """Find the end of the chain, and what somebody or a crash left there, to continue it."""
        self._side = _open_private(_side(path), 0)
        try:
            _lock(self._side)
        except OSError as exc:
            raise BridgeError(f"The audit file {path} is written by another process; give each its own.") from exc
        self._file = _open_private(path, os.O_APPEND)
        size = os.fstat(self._file).st_size
        head = self._read_head(path, size)
        if size == 0 and os.path.lexists(_aside(path, head.files + 1)):
            head = head._replace(size=0, files=head.files + 1)  # stopped while it was put aside
        start = min(head.size, size)
        os.lseek(self._file, max(start - 1, 0), os.SEEK_SET)
        tail = os.read(self._file, size + 1)
        self._prefix = b"" if tail[-1:] in {b"", b"\n"} else b"\n"
        missing, torn = head.size - start, 0
        for line in io.BytesIO(tail[min(start, 1) :]):
            found = _LINE.fullmatch(line)
            if found and self._chain(head.last, found[1]) == found[3].decode():
                head = head._replace(seq=int(found[2]), last=found[3].decode())
            else:
                torn += len(line)
        self._head = head._replace(size=size)
        self._tell |= {name: count for name, count in (("missing_bytes", missing), ("torn_bytes", torn)) if count}
        if size == 0 and head.seq:
            self._tell |= self._previous()
        os.ftruncate(self._side, _HEAD_BYTES)
        self._write_head()

    def _read_head(self, path: Path, size: int) -> _Head:
        os.lseek(self._side, 0, os.SEEK_SET)
        data = os.read(self._side, _HEAD_BYTES + 1)
        found = _unsealed_head(data, self._chain)
        if found is not None or self._head.seq:
            return max(self._head, found or _Head(), key=lambda head: head.seq)
        if len(data) >= _HEAD_BYTES:
            raise BridgeError(
                f"The audit file {path} was begun with another AUDIT_KEY, or its .head was changed: "
                "bring the key back, or check it with `audit verify` and move both files away."
            )
        if size or os.path.lexists(_aside(path, 1)):
            raise BridgeError(
                f"The audit file {path} has lost its .head, so its end cannot be checked: move it away, with its "
                "older files, or bring the .head back."
            )
        return _Head()

    def _rotate(self, path: Path) -> None:
        aside = _aside(path, self._head.files + 1)
        if os.path.lexists(aside):
            raise BridgeError(f"The audit file {path} is full and {aside} is in the way: move that away.")
        os.close(self._file)
        self._file = -1
        path.rename(aside)
        self._head = self._head._replace(size=0, files=self._head.files + 1)
        self._write_head()
        self._file = _open_private(path, os.O_APPEND)
        self._tell |= self._previous()

    def _previous(self) -> dict[str, Any]:
        return {"previous_files": self._head.files, "previous_mac": self._head.last}

    def _close(self) -> None:
        for descriptor in (self._file, self._side):
            if descriptor >= 0:
                with suppress(OSError):
                    os.close(descriptor)
        self._file = self._side = -1


def verify(path: Path, key: SecretStr | None) -> list[str]:
    """Check the whole record, older files first; say what is wrong, with file and line. Empty when nothing is.

    One change can show at the line it was made in, the one behind it, or both.
    """
    chain, side = _chain(key), _side(path)
    problems: list[str] = []
    head: _Head | None = None
    try:
        head = _unsealed_head(side.read_bytes(), chain)
        if head is None:
            problems.append(f"{side}, line 1: it was changed, or AUDIT_KEY is not the one it was written with")
    except OSError as exc:
        problems.append(f"{side}, line 1: it cannot be read ({exc.strerror}), so lines cut off the end would not show")
    count = head.files if head else 0
    while _aside(path, count + 1).exists():  # also one that was put aside when the server was stopped
        count += 1
    walk = _Walk(chain, head.seq if head else 0)
    for file in [*(_aside(path, number) for number in range(1, count + 1)), path]:
        try:
            with file.open("rb") as lines:
                problems += [f"{file}, line {number}: {text}" for number, text in walk.problems(lines)]
        except OSError as exc:
            # Nothing is recorded yet, or it was stopped between putting a file aside and beginning the next.
            if file != path or head is None or (head.size and head.files == count):
                problems.append(f"{file}, line 1: the file cannot be read ({exc.strerror})")
    if walk.unfit and not walk.fit and head is None:
        return [problems[0], f"{path}, line 1: the key does not fit: no line was written with this AUDIT_KEY"]
    where = f"{path}, line {max(walk.lines, 1)}"
    if head and walk.seq < head.seq:
        problems.append(f"{where}: the end is cut off: the last line here is {walk.seq}, but {head.seq} was written")
    elif head and walk.at_head != head.last:
        problems.append(f"{where}: the chain is another than the one {side} was written for")
    return problems


class _Walk:
    """How far the chain was followed; `at_head` is the mac of line `watched`."""

    def __init__(self, chain: _Chain, watched: int) -> None:
        self._chain, self._watched = chain, watched
        self.seq, self._last = _Head().seq, _Head().last
        self.at_head = self._last if watched == 0 else ""
        self.fit = self.unfit = self.lines = self._unread = 0

    def problems(self, lines: Iterable[bytes]) -> Iterator[tuple[int, str]]:
        """Follow the chain through a file; yield what does not fit, by line."""
        self.lines = 0
        for number, line in enumerate(lines, 1):
            self.lines = number
            found = _LINE.fullmatch(line)
            if found is None:
                self._unread += 1
                yield number, "torn or changed: no whole line (after a crash, the next line tells of a torn one)"
                continue
            seq, mac = int(found[2]), found[3].decode()
            if self._chain(self._last, found[1]) == mac:
                self.fit += 1
            else:
                self.unfit += 1
                if seq > self.seq + 1 + self._unread:
                    yield number, f"missing lines: {self.seq + 1 + self._unread} to {seq - 1} should stand before {seq}"
                elif seq <= self.seq:
                    yield number, f"repeated, or moved: line {seq} stands behind line {self.seq}"
                elif not self._unread:
                    yield number, "changed, or the line before it was"
            if not line.endswith(b"\n"):
                yield number, "torn: it has lost its end"
            self.seq, self._last, self._unread = seq, mac, 0
            if seq == self._watched:
                self.at_head = mac


def digest(arguments: Mapping[str, Any]) -> str:
    """Tell equal arguments apart from others; of arguments that can be guessed it keeps no secret."""
    text = json.dumps(arguments, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _chain(key: SecretStr | None) -> _Chain:
    """Make the function that computes a mac from what stands before and a body."""
    if key is None:
        return lambda before, body: hashlib.sha256(before.encode() + body).hexdigest()
    secret = key.get_secret_value().encode()
    return lambda before, body: hmac.digest(secret, before.encode() + body, "sha256").hex()


def _sealed(body: bytes, mac: str) -> bytes:
    return b'%s,"mac":"%s"}\n' % (body, mac.encode())


def _sealed_head(head: _Head, chain: _Chain) -> bytes:
    body = _dumps(head._asdict())[:-1].encode()
    return _sealed(body, chain("head", body)).rstrip().ljust(_HEAD_BYTES - 1) + b"\n"


def _unsealed_head(data: bytes, chain: _Chain) -> _Head | None:
    with suppress(ValueError, TypeError, AttributeError, KeyError, RecursionError):
        fields = json.loads(data)
        del fields["mac"]
        head = _Head(**fields)
        return head if _sealed_head(head, chain) == data else None
    return None


def _side(path: Path) -> Path:
    return path.with_name(f"{path.name}.head")


def _aside(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _open_private(path: Path, flags: int) -> int:
    """Open or create a plain file, no link, that only its owner can read."""
    if path.is_symlink():
        raise BridgeError(f"The audit does not follow the symbolic link {path}: name the file itself.")
    flags |= os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise BridgeError(f"The audit needs a plain file, and {path} is none.")  # noqa: TRY301 - closed below
        if sys.platform != "win32" and stat.S_IMODE(mode) != 0o600:  # noqa: PLR2004
            os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _is(path: Path, descriptor: int, size: int) -> bool:
    """Whether what was opened still stands there, with nothing added or taken away."""
    status = os.fstat(descriptor)
    return os.path.samestat(status, path.lstat()) and status.st_size == size


async def _patiently(written: asyncio.Future[None]) -> bool:
    """Wait, but not for ever; return whether it was worth it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            await written
            return True
    return False


def _settle(waiting: Iterable[asyncio.Future[None]]) -> None:
    for each in waiting:
        if not each.done():
            each.set_result(None)

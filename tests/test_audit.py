"""The record of what was done: who changes it is found out, and what cannot be written is told."""

# ruff: noqa: ASYNC240, ASYNC220 - a test has its loop for itself

import asyncio
import errno
import hashlib
import hmac
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

import audit as module
import sanitizer
from audit import Audit, digest, verify
from config import AuditConfig

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent
KEY = SecretStr(os.urandom(16).hex())
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def made(file: Path, key: SecretStr | None = KEY, *, required: bool = False, file_bytes: int = 10**6) -> Audit:
    return Audit(AuditConfig(file=file, key=key, required=required), file_bytes)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


async def write(file: Path, *summaries: str, key: SecretStr | None = KEY, file_bytes: int = 10**6) -> None:
    async with made(file, key, file_bytes=file_bytes) as audit:
        for summary in summaries:
            await audit.record("call", summary=summary)
            assert audit.failure is None


@pytest.mark.parametrize("key", [KEY, None])
async def test_the_chain_can_be_checked_with_the_lines_of_the_docstring(file: Path, key: SecretStr | None) -> None:
    await write(file, "one", "zwei ä", '","mac":"', "\ud800\n\r\u2028", key=key)

    before = "0" * 64
    for line in file.read_bytes().splitlines(keepends=True):
        body, end = line[:-75], line[-75:]
        text = before.encode() + body
        digested = hmac.new(key.get_secret_value().encode(), text, "sha256") if key else hashlib.sha256(text)
        before = digested.hexdigest()
        assert end == b',"mac":"%s"}\n' % before.encode()
    assert verify(file, key) == []


async def test_a_line_has_number_time_event_and_facts(file: Path) -> None:
    async with made(file) as audit:
        await audit.record("call", tool="mqtt_publish", duration_ms=1.5, principal=None, rules=["a/#"], seq=9, mac="x")
        audit.note("connect", broker="localhost")

    first, second = lines(file)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert re.fullmatch("[0-9a-f]{64}", first.pop("mac"))
    assert first == {
        "seq": 1,
        "event": "call",
        "tool": "mqtt_publish",
        "duration_ms": 1.5,
        "principal": None,
        "rules": ["a/#"],
    }
    assert (second["seq"], second["event"], second["broker"]) == (2, "connect", "localhost")


@pytest.mark.parametrize(
    ("fact", "kept"),
    [
        ("x" * 5000, "x" * 2000 + "…"),
        ("x" * 1990 + " known-secret", "x" * 1990 + " [REDACTED" + "…"),  # hidden before it is cut
        ("with known-secret in it", "with [REDACTED] in it"),
        ({"password": "p4ss-w0rd", "n": 1}, {"password": "[REDACTED]", "n": 1}),
        (["known-secret", {"a": "known-secret"}], ["[REDACTED]", {"a": "[REDACTED]"}]),
        (["x" * 5000], '["' + "x" * 1998 + "…"),
        ({1: {2}}, {"1": "{2}"}),
        (Path("relative"), "relative"),
        (float("nan"), "[float that is not JSON]"),
        ({(1, 2): 3}, "[dict that is not JSON]"),
        ([10**5000], "[list that is not JSON]"),
    ],
)
async def test_a_fact_has_no_secrets_is_bounded_and_is_json(file: Path, fact: Any, kept: Any) -> None:
    sanitizer.add_known("known-secret")
    async with made(file) as audit:
        await audit.record("call", fact=fact)

    assert lines(file)[0]["fact"] == kept
    assert verify(file, KEY) == []


async def test_without_a_file_nothing_is_done() -> None:
    async with Audit(AuditConfig(required=True)) as audit:
        await audit.record("call")
        audit.note("connect")

        assert (audit.failure, audit.refuses) == (None, False)


def test_a_digest_tells_arguments_apart_whatever_their_order() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest({}) == hashlib.sha256(b"{}").hexdigest()[:32]


async def test_a_thousand_records_of_fifty_tasks_are_all_there(file: Path) -> None:
    async def task(number: int) -> None:
        for each in range(20):
            await audit.record("call", task=number, each=each)
            if each % 5 == 0:
                assert f'"task":{number},"each":{each},' in everything()  # there when the call returns

    def everything() -> str:
        while True:
            with suppress(FileNotFoundError):  # put aside between the look and the reading
                return "".join(path.read_text() for path in file.parent.glob("audit.jsonl*") if path.suffix != ".head")

    async with made(file, file_bytes=30_000) as audit:
        await asyncio.gather(*map(task, range(50)))

    assert verify(file, KEY) == []
    assert file.with_name("audit.jsonl.1").exists()
    found = map(json.loads, everything().splitlines())
    calls = [(each["task"], each["each"]) for each in found if each["event"] == "call"]
    assert sorted(calls) == [(task, each) for task in range(50) for each in range(20)]


async def test_a_restart_continues_the_chain(file: Path) -> None:
    for number in range(3):
        await write(file, f"run {number}")

    assert [(each["seq"], each["summary"]) for each in lines(file)] == [(1, "run 0"), (2, "run 1"), (3, "run 2")]
    assert verify(file, KEY) == []


async def test_what_waits_is_written_when_the_record_is_closed_or_its_caller_is_cancelled(file: Path) -> None:
    async with made(file) as audit:
        call = asyncio.create_task(audit.record("call"))
        await asyncio.sleep(0)
        call.cancel()
        for number in range(500):
            audit.note("connect", number=number)

    assert [each["seq"] for each in lines(file)] == list(range(1, 502))
    assert audit.failure == f"The audit file {file} is not open."


async def rotated(file: Path) -> list[Path]:
    await write(file, *(f"{number}" * 100 for number in range(6)), file_bytes=500)
    return [file.with_name("audit.jsonl.1"), file.with_name("audit.jsonl.2"), file]


async def test_a_full_file_is_put_aside_and_the_next_names_its_last_mac(file: Path) -> None:
    first, second, _ = await rotated(file)

    begin = lines(second)[0]
    assert (begin["event"], begin["previous_files"], begin["previous_mac"]) == ("audit", 1, lines(first)[-1]["mac"])
    assert verify(file, KEY) == []
    await write(file, "after a restart", file_bytes=500)
    assert verify(file, KEY) == []


async def test_a_missing_older_file_is_named(file: Path) -> None:
    _, second, _ = await rotated(file)
    second.unlink()

    problems = verify(file, KEY)

    assert problems[0] == f"{second}, line 1: the file cannot be read (No such file or directory)"
    assert problems[1].startswith(f"{file}, line 1: missing lines: ")
    assert len(problems) == 2


async def test_a_change_of_an_older_file_is_named(file: Path) -> None:
    _, second, _ = await rotated(file)
    second.write_bytes(second.read_bytes().replace(b"audit", b"audIt"))

    assert verify(file, KEY) == [f"{second}, line 1: changed, or the line before it was"]


async def test_a_stop_while_a_file_is_put_aside_is_no_tampering(file: Path) -> None:
    await write(file, "one", "two")
    file.rename(f"{file}.1")  # and the head does not know it yet

    assert verify(file, KEY) == []
    await write(file, "three")
    assert verify(file, KEY) == []
    first, _ = lines(file)
    assert (first["event"], first["previous_files"]) == ("audit", 1)
    assert "missing_bytes" not in first


async def test_a_file_in_the_way_of_rotation_is_not_overwritten(file: Path) -> None:
    await write(file, "x" * 500)
    old = file.with_name("audit.jsonl.1")
    old.write_text("mine")

    async with made(file, file_bytes=500) as audit:
        for _ in range(2):
            await audit.record("call")

        assert audit.failure == f"The audit file {file} is full and {old} is in the way: move that away."
    assert old.read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda file: file.with_name("audit.jsonl.head").unlink(), "line 1: it cannot be read"),
        (lambda file: file.with_name("audit.jsonl.head").write_bytes(b""), "line 1: it was changed, or AUDIT_KEY"),
        (lambda file: file.unlink(), "line 1: the file cannot be read"),
    ],
)
async def test_a_missing_part_is_named(file: Path, change: Callable[[Path], None], says: str) -> None:
    await write(file, "one", "two")
    change(file)

    assert says in verify(file, KEY)[0]


async def test_every_byte_of_the_head_counts(file: Path) -> None:
    head = file.with_name("audit.jsonl.head")
    await write(file, "one")
    content = head.read_bytes()

    for position in range(len(content)):
        head.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        assert verify(file, KEY)[0].startswith(f"{head}, line 1: it was changed")


def test_where_there_is_no_record_that_is_said(file: Path) -> None:
    assert len(verify(file, KEY)) == 2


@pytest.mark.parametrize("key", [None, SecretStr("another-key-0123456789")])
async def test_another_key_does_not_fit_and_cannot_continue(file: Path, key: SecretStr | None) -> None:
    await write(file, "one", "two")
    content = file.read_bytes()

    assert verify(file, key)[1] == f"{file}, line 1: the key does not fit: no line was written with this AUDIT_KEY"
    async with made(file, key, required=True) as audit:
        await audit.record("call")
        assert audit.refuses
        assert "another AUDIT_KEY" in str(audit.failure)
    assert file.read_bytes() == content
    assert verify(file, KEY) == []


async def test_a_record_whose_head_is_gone_is_not_continued(file: Path) -> None:
    await write(file, "one")
    file.with_name("audit.jsonl.head").unlink()

    async with made(file) as audit:
        assert "has lost its .head" in str(audit.failure)


async def test_a_torn_line_stays_and_the_next_line_tells_of_it(file: Path) -> None:
    await write(file, "one", "two")
    with file.open("ab") as appended:
        appended.write(b'{"seq":3,"ti')

    (problem,) = verify(file, KEY)
    assert problem.startswith(f"{file}, line 3: torn")
    await write(file, "three")
    assert verify(file, KEY) == [problem]
    assert file.read_bytes().splitlines()[2] == b'{"seq":3,"ti'
    told = json.loads(file.read_bytes().splitlines()[3])
    assert (told["seq"], told["event"], told["torn_bytes"]) == (3, "audit", 12)


@pytest.mark.parametrize("lost", [0, 1])
async def test_a_crash_before_the_head_was_written_is_no_tampering(file: Path, lost: int) -> None:
    head = file.with_name("audit.jsonl.head")
    await write(file, "one")
    old = head.read_bytes()
    await write(file, "two", "three")
    head.write_bytes(old)
    os.truncate(file, file.stat().st_size - lost)  # the end of the last line, but nothing of what it says

    assert verify(file, KEY) == [f"{file}, line 3: torn: it has lost its end"] * lost
    await write(file, "four")
    assert verify(file, KEY) == []
    assert [each["seq"] for each in lines(file)] == [1, 2, 3, 4]


async def test_lines_cut_off_stay_missing_after_a_restart(file: Path) -> None:
    await write(file, "one", "two", "three")
    cut = b"".join(file.read_bytes().splitlines(keepends=True)[:1])
    file.write_bytes(cut)

    assert verify(file, KEY) == [f"{file}, line 1: the end is cut off: the last line here is 1, but 3 was written"]
    await write(file, "four")
    assert verify(file, KEY) == [f"{file}, line 2: missing lines: 2 to 3 should stand before 4"]
    assert lines(file)[1]["missing_bytes"] > 0


@pytest.mark.parametrize(
    ("order", "says"),
    [
        ([0, 2, 3], ["line 2: missing lines: 2 to 2 should stand before 3"]),
        ([0, 1, 1, 2, 3], ["line 3: repeated, or moved: line 2 stands behind line 2"]),
        (
            [0, 2, 1, 3],
            [
                "line 2: missing lines: 2 to 2 should stand before 3",
                "line 3: repeated, or moved: line 2 stands behind line 3",
                "line 4: missing lines: 3 to 3 should stand before 4",
            ],
        ),
        ([0, 1, 2], ["line 3: the end is cut off: the last line here is 3, but 4 was written"]),
        ([], ["line 1: the end is cut off: the last line here is 0, but 4 was written"]),
    ],
)
async def test_verify_says_what_became_of_the_lines(file: Path, order: list[int], says: list[str]) -> None:
    await write(file, "one", "two", "three", "four")
    parts = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(parts[each] for each in order))

    assert verify(file, KEY) == [f"{file}, {each}" for each in says]


async def test_another_record_written_with_the_same_key_is_no_substitute(file: Path, tmp_path: Path) -> None:
    await write(file, "one", "two")
    other = tmp_path / "other.jsonl"
    await write(other, "harmless", "harmless")
    shutil.copy(other, file)

    assert verify(file, KEY) == [
        f"{file}, line 2: the chain is another than the one {file}.head was written for",
    ]


TAMPERINGS = st.sampled_from(["byte", "delete", "swap", "duplicate", "truncate", "older"])
FACTS = st.dictionaries(
    st.text("abc_", min_size=2, max_size=5),
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.lists(st.text(max_size=5), max_size=3),
    max_size=3,
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(FACTS, min_size=1, max_size=8),
    TAMPERINGS,
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.integers(1, 255),
    st.sampled_from([KEY, None]),
    st.sampled_from([300, 10**6]),
)
def test_every_tampering_is_found_where_it_was_made(
    records: list[dict[str, Any]], kind: str, here: int, there: int, flip: int, key: SecretStr | None, file_bytes: int
) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "audit.jsonl"
        older: list[tuple[Path, bytes]] = []

        async def make() -> None:
            async with made(path, key, file_bytes=file_bytes) as audit:
                for record in records:
                    await audit.record("call", **record)
                    older.append((path, path.read_bytes()))

        asyncio.run(make())
        assert verify(path, key) == []
        files = [*sorted(Path(directory).glob("audit.jsonl.[0-9]")), path]
        chosen = path if kind == "older" else files[there % len(files)]
        content = chosen.read_bytes()
        parts = content.splitlines(keepends=True)
        at = here % len(parts)
        other = there % len(parts)
        changed = bytearray(content)
        if kind == "byte":
            position = here % len(content)
            at = content[:position].count(b"\n")
            changed[position] ^= flip
        elif kind == "truncate":
            del changed[here % len(content) :]
            at = changed.count(b"\n")
        elif kind == "older":
            changed = bytearray(older[here % len(older)][1])
            at = changed.count(b"\n")
        else:
            if kind == "delete":
                del parts[at]
            elif kind == "duplicate":
                parts.insert(at, parts[at])
            else:
                parts[at], parts[other] = parts[other], parts[at]
                at = min(at, other)
            changed = bytearray(b"".join(parts))
        chosen.write_bytes(changed)

        problems = verify(path, key)

        if bytes(changed) == content:
            assert problems == []
        else:
            first = re.match(r"(?P<file>.*), line (?P<line>\d+): ", problems[0])
            assert first
            index = files.index(Path(first["file"]))
            same = index == files.index(chosen) and abs(int(first["line"]) - (at + 1)) <= 1
            # What is gone from the end, or from all, of an older file shows at the first line behind.
            behind = index > files.index(chosen) and int(first["line"]) == 1
            assert same or behind or (kind == "older" and len(files) > 1)


@posix
@pytest.mark.parametrize("after", [1, 50, 400])
def test_what_was_recorded_outlives_a_kill(file: Path, after: int) -> None:
    command = [sys.executable, "-m", "tests.audit_writer", str(file), KEY.get_secret_value()]
    recorded = 0
    for _ in range(3):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
            assert child.stdout
            assert child.stdout.readline() == b"None\n"
            for _ in range(after):
                recorded = int(child.stdout.readline())
            child.kill()
            recorded = max([recorded, *map(int, child.stdout.read().split(b"\n")[:-1])])

        assert all(": torn" in problem for problem in verify(file, KEY))
        assert f'"event":"call","number":{recorded},' in "".join(
            path.read_text() for path in file.parent.iterdir() if path.suffix != ".head"
        )


@contextmanager
def full_disk(file: Path, left: int) -> Iterator[None]:
    """Let no file grow more than `left` bytes over the audit file's size."""
    if sys.platform == "win32":
        pytest.skip("needs RLIMIT_FSIZE")
    import resource  # noqa: PLC0415 - POSIX only

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_is_told_at_once_and_counted_afterwards(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with made(file, required=True) as audit:
        await audit.record("call", summary="x" * 1000)
        with full_disk(file, left=100):  # half a line still fits
            await audit.record("call", summary="lost")
            failure = audit.failure
            assert audit.refuses
            await audit.record("refused", summary="lost")
        assert failure == f"The audit file {file} cannot be written (File too large)."
        assert failure in caplog.text
        await audit.record("call", summary="again")

        assert (audit.failure, audit.refuses) == (None, False)
    told = lines(file)[1]
    assert (told["event"], told["lost_lines"]) == ("audit", 2)
    assert [each.get("summary", "")[:5] for each in lines(file)] == ["xxxxx", "", "again"]
    assert verify(file, KEY) == []


def remove(file: Path) -> None:
    file.unlink()


def remove_head(file: Path) -> None:
    file.with_name("audit.jsonl.head").unlink()


def add_to_head(file: Path) -> None:
    head = file.with_name("audit.jsonl.head")
    head.write_bytes(head.read_bytes() + b" ")


def remove_directory(file: Path) -> None:
    shutil.rmtree(file.parent)


def replace(file: Path) -> None:
    content = file.read_bytes()
    file.rename(f"{file}.old")
    file.write_bytes(content)


def cut(file: Path) -> None:
    os.truncate(file, 10)


def add(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"{}\n")


@posix
@pytest.mark.parametrize(
    ("change", "says", "remains"),
    [
        (remove, "No such file", "missing lines: 1 to 2 should stand before 3"),
        (remove_head, "No such file", ""),
        (add_to_head, "was changed or replaced", ""),
        (remove_directory, "No such file", "missing lines: 1 to 2 should stand before 3"),
        (replace, "was changed or replaced", ""),
        (cut, "was changed or replaced", "torn or changed"),
        (add, "was changed or replaced", "torn or changed"),
    ],
)
async def test_what_happens_to_the_file_while_it_is_written_is_told(
    file: Path, change: Callable[[Path], None], says: str, remains: str
) -> None:
    async with made(file, required=True) as audit:
        await audit.record("call")
        await audit.record("call")
        change(file)
        await audit.record("call")
        assert says in str(audit.failure)
        assert audit.refuses
        file.parent.mkdir(exist_ok=True)
        await audit.record("call", summary="again")
        assert audit.failure is None

    problems = verify(file, KEY)
    assert all(remains in problem for problem in problems[:1])
    assert bool(problems) == bool(remains)
    assert b'"lost_lines":1' in file.read_bytes()


def no_directory(file: Path) -> None:
    file.parent.rmdir()


def link(file: Path) -> None:
    target = file.with_name("target")
    target.touch()
    file.symlink_to(target)


def head_link(file: Path) -> None:
    file.with_name("audit.jsonl.head").symlink_to(file.with_name("target"))


def fifo(file: Path) -> None:
    if sys.platform != "win32":
        os.mkfifo(file)


@posix
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (no_directory, "No such file or directory"),
        (Path.mkdir, "Is a directory"),
        (link, "does not follow the symbolic link"),
        (head_link, "does not follow the symbolic link"),
        (fifo, "plain file"),
    ],
)
async def test_a_place_that_cannot_be_used_is_told_at_the_start(
    file: Path, make: Callable[[Path], None], says: str
) -> None:
    make(file)

    async with made(file, required=True) as audit:
        assert says in str(audit.failure)
        assert audit.refuses
        await asyncio.wait_for(audit.record("call"), 5)
        audit.note("connect")
    assert not file.with_name("target").exists() or file.with_name("target").stat().st_size == 0


@pytest.mark.skipif(os.name != "posix", reason="names a place of POSIX")
async def test_a_place_where_nothing_can_be_written_is_told() -> None:
    async with made(Path(os.devnull) / "audit.jsonl") as audit:
        await audit.record("call")

        assert audit.failure


@posix
async def test_only_the_owner_can_read_it_whatever_it_was_before(file: Path) -> None:
    file.touch()
    file.chmod(0o644)

    await write(file, "one")

    assert [each.stat().st_mode & 0o777 for each in sorted(file.parent.iterdir())] == [0o600, 0o600]


async def test_a_second_process_writes_nothing_and_says_so(file: Path) -> None:
    command = [sys.executable, "-m", "tests.audit_writer", str(file), KEY.get_secret_value()]
    async with made(file) as first:
        await first.record("call", summary="first")
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
            assert child.stdout
            told = child.stdout.readline().decode().strip()
            child.kill()
        await first.record("call", summary="first again")

    assert told == f"The audit file {file} is written by another process; give each its own."
    assert [each["summary"] for each in lines(file)] == ["first", "first again"]
    assert verify(file, KEY) == []


@pytest.fixture
async def slow(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[threading.Event]:
    """A disk that takes nothing until the event is set."""
    ready = threading.Event()
    real = os.write

    def delayed(descriptor: int, data: bytes) -> int:
        if threading.current_thread().name == "audit":
            ready.wait(10)
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", delayed)
    yield ready
    ready.set()


async def test_a_slow_disk_does_not_hold_up_the_loop_and_counts_as_none(
    file: Path, slow: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow.set()
    async with made(file, required=True) as audit:
        slow.clear()
        monkeypatch.setattr(module, "PATIENCE_S", 0.2)
        monkeypatch.setattr(module, "MOST_WAITING", 5)
        calls = [asyncio.create_task(audit.record("call", number=number)) for number in range(7)]
        longest, last = 0.0, time.monotonic()
        while not all(call.done() for call in calls):
            await asyncio.sleep(0.001)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()

        assert longest < 2  # of the ten that the disk takes
        assert audit.refuses
        assert "has not taken a line" in str(audit.failure)
        slow.set()
        monkeypatch.setattr(module, "PATIENCE_S", 10.0)
        async with asyncio.timeout(5):
            while audit.failure is not None:
                await asyncio.sleep(0.001)
        await audit.record("call", number=7)
        await audit.record("call", number=8)

    recorded = [each["number"] for each in lines(file) if each["event"] == "call"]
    lost = sum(each.get("lost_lines", 0) for each in lines(file))
    assert len(recorded) + lost == 9
    assert recorded[-2:] == [7, 8]
    assert lost > 0


async def test_a_fault_of_ours_is_told_and_does_not_end_the_writer(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with made(file) as audit:
        with monkeypatch.context() as faulty:
            faulty.setattr(audit, "_sanitize", lambda _: 1 // 0)
            await audit.record("call", summary="lost")
            assert "fault in the server" in str(audit.failure)
        await audit.record("call", summary="again")

        assert audit.failure is None
    assert "ZeroDivisionError" in caplog.text
    assert lines(file)[0]["lost_lines"] == 1


async def test_it_works_with_what_windows_has(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[tuple[int, int]] = []

    def locking(descriptor: int, mode: int, count: int) -> None:
        if locked:
            raise OSError(errno.EACCES, "Permission denied")
        locked.append((os.lseek(descriptor, 0, os.SEEK_CUR), count))

    msvcrt = ModuleType("msvcrt")
    vars(msvcrt).update(LK_NBLCK=2, locking=locking)
    with monkeypatch.context() as windows:
        windows.setitem(sys.modules, "msvcrt", msvcrt)
        windows.setitem(sys.modules, "fcntl", None)
        for name in ("O_NOFOLLOW", "fchmod", "geteuid", "pread", "pwrite"):
            windows.delattr(os, name, raising=False)
        windows.setattr(sys, "platform", "win32")
        spec = importlib.util.spec_from_file_location("audit_on_windows", module.__file__)
        assert spec
        assert spec.loader
        there = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(there)
        config = AuditConfig(file=file, key=KEY)
        async with there.Audit(config, 300) as audit, there.Audit(config) as second:
            for number in range(5):
                await audit.record("call", number=number)

            assert audit.failure is None
            assert "another process" in second.failure

    assert locked == [(1 << 30, 1)]
    assert file.with_name("audit.jsonl.1").exists()
    assert verify(file, KEY) == []

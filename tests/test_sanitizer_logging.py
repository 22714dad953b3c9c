"""Rule 11: whatever a record holds and whoever handles it, nothing secret is written, nothing raises or changes."""

import copy
import io
import json
import logging
import logging.config
import logging.handlers
import pickle
import queue
import secrets
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typing_extensions import Buffer
from uvicorn.logging import AccessFormatter

import sanitizer
from sanitizer import MARKER, add_known, install, protect_handler

SECRET = f"Xq7{secrets.token_hex(6)}"
KNOWN = f"known-{secrets.token_hex(6)}"
"""Nothing but being known tells that this one is a secret."""

KEYED = f"password={SECRET}"


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take back what `install` does to the process, and to the handlers of pytest that outlive a test."""
    monkeypatch.setattr(logging.Handler, "handle", logging.Handler.handle)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sanitizer, "_process", sanitizer._KnownValues())  # noqa: SLF001
    yield
    for handler in (*logging.getLogger().handlers, logging.lastResort):
        for name in ("emit", "format", "handleError"):
            vars(handler).pop(name, None)


@pytest.fixture
def logger() -> logging.Logger:
    """A logger outside the tree: nobody else has a handler on it."""
    return logging.Logger("plant.mqtt")  # noqa: LOG001  # pytest puts handlers on every logger of the tree


class Keeping(logging.Handler):
    """Keeps what it is given, as handlers do that write records in a format of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def protected(logger: logging.Logger, format_: str = "%(levelname)s %(message)s") -> io.StringIO:
    """Give the logger a protected handler and return what it writes to."""
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(logging.Formatter(format_))
    protect_handler(handler, [KNOWN])
    logger.addHandler(handler)
    return handler.stream


def clean(text: str) -> bool:
    return SECRET not in text and KNOWN not in text


class Shown:
    """An object of the caller's, with its own way to show itself."""

    def __init__(self, text: str, representation: str = "Shown()") -> None:
        self.text, self.representation = text, representation

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.representation


class Unshowable:
    """An object that cannot be shown, and says so with a secret in it."""

    def __str__(self) -> str:
        raise ValueError(KEYED)

    __repr__ = __str__


MESSAGES: dict[str, tuple[tuple[Any, ...], str]] = {
    "message": ((KEYED,), f"password={MARKER}"),
    "argument": (("password=%s", SECRET), f"password={MARKER}"),
    "joined from harmless parts": (("%s%s%s", "pass", "word=", SECRET), f"password={MARKER}"),
    "mapping": (("%(a)s password=%(b)s", {"a": 1, "b": SECRET}), f"1 password={MARKER}"),
    "known value": (("got %s", KNOWN), f"got {MARKER}"),
    "known value in an object": (("got %s", Shown(f"<{KNOWN}>")), f"got <{MARKER}>"),
    "object as message": ((Shown(KEYED),), f"password={MARKER}"),
    "dict as message": (({"password": SECRET, "port": 1883},), f"{{'password': '{MARKER}', 'port': 1883}}"),
    "exception as argument": (("failed: %s", ValueError(KEYED)), f"failed: password={MARKER}"),
    "bytes": (("sent %r", KEYED.encode()), f"sent b'password={MARKER}'"),
    "nothing secret": (("%s is %d of %5.1f", "a", 1, 2.5), "a is 1 of   2.5"),
}


@pytest.mark.parametrize(("call", "expected"), MESSAGES.values(), ids=MESSAGES.keys())
def test_a_message_is_redacted_as_it_is_formatted(logger: logging.Logger, call: tuple[Any, ...], expected: str) -> None:
    stream = protected(logger)

    logger.info(*call)

    assert stream.getvalue() == f"INFO {expected}\n"


@pytest.mark.parametrize("call", [call for call, _ in MESSAGES.values()], ids=MESSAGES.keys())
def test_other_handlers_and_the_caller_see_no_change(logger: logging.Logger, call: tuple[Any, ...]) -> None:
    protected(logger)
    other = Keeping()
    logger.addHandler(other)
    before = copy.copy(call)

    logger.info(*call)

    assert other.records[0].getMessage() == (
        str(call[0]) % (call[1:] if len(call) != 2 else call[1]) if call[1:] else str(call[0])
    )
    assert all(one is two for one, two in zip(call, before, strict=True))


MALFORMED: dict[str, tuple[Any, ...]] = {
    "wrong type": ("%d", SECRET),
    "too many": ("nothing to fill", SECRET),
    "too few": ("%s %s", SECRET),
    "not a mapping": ("%(a)s", SECRET),
    "missing key": ("%(a)s", {"b": SECRET}),
    "argument that cannot be shown": ("%s", Unshowable()),
    "bad format": ("100% of", SECRET),
}


@pytest.mark.parametrize("call", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_call_is_logged_without_its_arguments(
    logger: logging.Logger, call: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    stream = protected(logger)

    logger.info(*call)

    assert stream.getvalue() == f"INFO {call[0]} [the arguments of this log call do not fit it]\n"
    assert capsys.readouterr().err == ""


def fail() -> None:
    raise ValueError(KEYED)


def chained() -> None:
    try:
        fail()
    except ValueError as error:
        error.add_note(f"token: {SECRET}")
        raise RuntimeError(f"no {KNOWN}") from error


def grouped() -> None:
    raise ExceptionGroup("several", [ValueError(KEYED), ExceptionGroup("more", [KeyError(KNOWN)])])


@pytest.mark.parametrize("failing", [chained, grouped])
def test_exceptions_are_redacted_to_the_last(logger: logging.Logger, failing: Callable[[], None]) -> None:
    stream = protected(logger)

    try:
        failing()
    except Exception:
        logger.exception("failed", stack_info=True)

    assert clean(stream.getvalue())
    assert stream.getvalue().count(MARKER) >= 2
    assert failing.__name__ in stream.getvalue()
    assert "Stack (most recent call last)" in stream.getvalue()


def test_a_traceback_another_handler_has_cached_is_redacted(logger: logging.Logger) -> None:
    other = logging.StreamHandler(io.StringIO())
    logger.addHandler(other)
    stream = protected(logger)

    try:
        chained()
    except RuntimeError:
        logger.exception("failed")

    assert SECRET in other.stream.getvalue()
    assert clean(stream.getvalue())
    assert "RuntimeError" in stream.getvalue()


def test_the_stack_is_redacted(logger: logging.Logger) -> None:
    stream = protected(logger)
    record = logging.makeLogRecord({"msg": "x", "levelno": logging.INFO, "stack_info": f"File x\n  {KEYED}"})

    logger.handle(record)

    assert clean(stream.getvalue())
    assert record.stack_info is not None
    assert SECRET in record.stack_info


EXTRAS: dict[str, tuple[Any, Any]] = {
    "text": (KEYED, f"password={MARKER}"),
    "known value": (KNOWN, MARKER),
    "dict": ({"api_key": SECRET, "port": 1883}, {"api_key": MARKER, "port": 1883}),
    "list in a dict": ({"a": [1, KEYED, (KNOWN,)]}, {"a": [1, f"password={MARKER}", (MARKER,)]}),
    "keys": ({KNOWN: 1, KEYED: 2, MARKER: 3, 4: 5}, {MARKER: 1, f"password={MARKER}": 2, f"{MARKER} (2)": 3, 4: 5}),
    "object": (Shown("x", KEYED), "x"),
    "harmless": ({"n": 1.5, "ok": True, "none": None}, {"n": 1.5, "ok": True, "none": None}),
    "not showable": (Unshowable(), MARKER),
}


@pytest.mark.parametrize(("value", "expected"), EXTRAS.values(), ids=EXTRAS.keys())
def test_extras_are_redacted_value_by_value(logger: logging.Logger, value: Any, expected: Any) -> None:
    keeping = Keeping()
    protect_handler(keeping, [KNOWN])
    logger.addHandler(keeping)

    logger.info("x", extra={"context": value})

    assert vars(keeping.records[0])["context"] == expected


@pytest.mark.parametrize("value", [SECRET, SECRET.encode(), 12345678], ids=["text", "bytes", "number"])
def test_an_extra_that_is_named_after_a_secret_is_redacted(logger: logging.Logger, value: object) -> None:
    stream = protected(logger, "%(message)s %(mqtt_password)s")

    logger.info("x", extra={"mqtt_password": value})

    assert stream.getvalue() == f"x {MARKER}\n"


def test_an_extra_that_holds_itself_is_bounded(logger: logging.Logger) -> None:
    stream = protected(logger)
    endless: dict[str, Any] = {"password": SECRET}
    endless["self"] = endless

    logger.info("x", extra={"context": endless})

    assert stream.getvalue() == "INFO x\n"
    assert endless["password"] == SECRET


def test_what_a_formatter_joins_is_redacted(logger: logging.Logger) -> None:
    stream = protected(logger, "password=%(value)s in %(message)s")

    logger.info("x", extra={"value": SECRET})

    assert stream.getvalue() == f"password={MARKER} in x\n"


def test_what_a_filter_of_the_handler_adds_is_redacted(logger: logging.Logger) -> None:
    stream = protected(logger, "%(message)s %(added)s")

    def add(record: logging.LogRecord) -> bool:
        record.added = KEYED
        return True

    logger.handlers[0].addFilter(add)
    logger.info("x")

    assert stream.getvalue() == f"x password={MARKER}\n"


def test_a_json_formatter_writes_json(logger: logging.Logger) -> None:
    class Json(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return json.dumps({"message": record.getMessage(), "n": vars(record)["pin"]})

    stream = protected(logger)
    logger.handlers[0].setFormatter(Json())

    logger.info("a %s", f'"{KNOWN}"', extra={"pin": 5})

    assert json.loads(stream.getvalue()) == {"message": f'a "{MARKER}"', "n": 5}


def test_arguments_stay_apart_for_formatters_that_read_them(logger: logging.Logger) -> None:
    stream = protected(logger)
    logger.handlers[0].setFormatter(
        AccessFormatter("%(client_addr)s %(request_line)s %(status_code)s", use_colors=False)
    )

    logger.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:5", "GET", f"/x?token={SECRET}&y=1", "1.1", 200)

    assert stream.getvalue() == f"127.0.0.1:5 GET /x?token={MARKER}&y=1 HTTP/1.1 200 OK\n"


def record_with_everything() -> logging.LogRecord:
    record = logging.makeLogRecord({"msg": "password=%s", "args": (SECRET,)})
    try:
        chained()
    except RuntimeError:
        record.exc_info = sys.exc_info()
    record.context = {"password": SECRET, "x": KNOWN}
    record.message = KEYED
    record.stack_info = KEYED
    return record


def test_a_handler_that_keeps_records_gets_no_secret() -> None:
    keeping = Keeping()
    protect_handler(keeping, [KNOWN])

    keeping.handle(record_with_everything())
    keeping.emit(record_with_everything())

    for record in keeping.records:
        assert clean(repr(vars(record)))
        assert record.exc_info is None
        assert record.exc_text is not None
        assert "RuntimeError" in record.exc_text


def test_a_handler_that_pickles_gets_no_secret() -> None:
    class Pickling(logging.handlers.SocketHandler):
        sent = b""

        def send(self, s: Buffer) -> None:
            self.sent = bytes(s)

    handler = Pickling("127.0.0.1", 1)
    protect_handler(handler, [KNOWN])

    handler.handle(record_with_everything())

    assert clean(repr(pickle.loads(handler.sent[4:])))  # noqa: S301


def test_handlers_that_pass_records_on_pass_on_no_secret() -> None:
    passed: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    queueing = logging.handlers.QueueHandler(passed)
    keeping = Keeping()
    buffering = logging.handlers.MemoryHandler(1, target=keeping)
    protect_handler(queueing, [KNOWN])
    protect_handler(buffering, [KNOWN])

    queueing.handle(record_with_everything())
    buffering.handle(record_with_everything())
    buffering.close()

    assert clean(repr(vars(passed.get())))
    assert clean(repr(vars(keeping.records[0])))


class Failing(logging.Handler):
    """Fails, telling all it knows."""

    def emit(self, record: logging.LogRecord) -> None:
        raise OSError(f"cannot write {record.getMessage()}, {KEYED}")


def test_a_handler_that_fails_stops_nobody_and_tells_nothing(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = logging.StreamHandler(io.StringIO())
    broken.stream.close()
    for handler in (broken, Failing()):
        protect_handler(handler, [KNOWN])
        logger.addHandler(handler)

    try:
        chained()
    except RuntimeError:
        logger.info("got %s", KNOWN)

    report = capsys.readouterr().err
    assert clean(report)
    assert report.count("--- Logging error ---") == 2
    assert "test_sanitizer_logging.py" in report
    assert "cannot write" in report


def test_failures_are_silent_where_logging_is_told_so(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handler = Failing()
    protect_handler(handler)
    logger.addHandler(handler)

    logger.info("x")

    assert capsys.readouterr().err == ""


def test_a_failure_with_no_stderr_is_silent(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    handler = Failing()
    protect_handler(handler)
    logger.addHandler(handler)

    logger.info("x")


def test_protecting_twice_is_protecting_with_both(logger: logging.Logger) -> None:
    stream = protected(logger)
    protect_handler(logger.handlers[0], ["other-words"])

    logger.info("%s %s", KNOWN, "other-words")

    assert stream.getvalue() == f"INFO {MARKER} {MARKER}\n"


def add_in_the_ordinary_way(logger: logging.Logger, handler: logging.Handler) -> None:
    logger.addHandler(handler)


def add_behind_the_back(logger: logging.Logger, handler: logging.Handler) -> None:
    logger.handlers = [handler]


@pytest.mark.parametrize("add", [add_in_the_ordinary_way, add_behind_the_back])
@pytest.mark.parametrize("name", ["paho", "httpx", "httpcore.http11", "mcp.server", "uvicorn.error", "new.logger", ""])
def test_install_protects_the_handlers_of_every_logger(
    name: str, add: Callable[[logging.Logger, logging.Handler], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger(name)
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    before, after = logging.StreamHandler(io.StringIO()), logging.StreamHandler(io.StringIO())
    add(logger, before)

    install([KNOWN])
    logger.debug("first %s %s", KEYED, KNOWN)
    add(logger, after)
    logger.debug("then %s %s", KEYED, KNOWN)

    assert before.stream.getvalue().startswith(f"first password={MARKER} {MARKER}\n")
    assert after.stream.getvalue() == f"then password={MARKER} {MARKER}\n"


def test_install_protects_what_dict_config_makes(capsys: pytest.CaptureFixture[str]) -> None:
    install([KNOWN])

    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"h": {"class": "logging.StreamHandler"}},
            "loggers": {"configured": {"handlers": ["h"], "level": "INFO", "propagate": False}},
        }
    )
    logging.getLogger("configured").info(KEYED)

    assert capsys.readouterr().err == f"password={MARKER}\n"


def test_install_protects_the_handler_of_last_resort(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    install([KNOWN])

    logger.warning("%s %s", KEYED, KNOWN)

    assert capsys.readouterr().err == f"password={MARKER} {MARKER}\n"


def test_install_protects_a_handler_on_no_logger() -> None:
    install([KNOWN])
    keeping = Keeping()

    keeping.handle(record_with_everything())

    assert clean(repr(vars(keeping.records[0])))


def test_install_leaves_a_protected_handler_its_own_values(logger: logging.Logger) -> None:
    stream = protected(logger)

    install()
    logger.info(KNOWN)

    assert stream.getvalue() == f"INFO {MARKER}\n"


def test_install_protects_the_text_of_warnings() -> None:
    install([KNOWN])

    assert warnings.formatwarning(f"{KEYED} {KNOWN}", UserWarning, "x.py", 7, "x") == (
        f"x.py:7: UserWarning: password={MARKER} {MARKER}\n  x\n"
    )


def test_a_value_learned_later_is_hidden_from_then_on(logger: logging.Logger) -> None:
    install()
    stream = io.StringIO()
    logger.addHandler(logging.StreamHandler(stream))

    logger.info("before-it-was-known")
    add_known("before-it-was-known")
    logger.info("before-it-was-known")

    assert stream.getvalue() == f"before-it-was-known\n{MARKER}\n"


def test_installing_again_adds_values_and_no_second_hook(logger: logging.Logger) -> None:
    install(["first-words"])
    hook = logging.Handler.handle
    install(["other-words"])
    stream = io.StringIO()
    logger.addHandler(logging.StreamHandler(stream))

    logger.info("first-words other-words")

    assert logging.Handler.handle is hook
    assert stream.getvalue() == f"{MARKER} {MARKER}\n"


def test_install_can_be_undone(logger: logging.Logger) -> None:
    handle, formatwarning = logging.Handler.handle, warnings.formatwarning
    install()

    assert vars(logging.Handler.handle)["__wrapped__"] is handle
    assert vars(warnings.formatwarning)["__wrapped__"] is formatwarning


def test_many_threads_may_log_while_values_are_learned(logger: logging.Logger) -> None:
    install()
    stream = io.StringIO()
    logger.addHandler(logging.StreamHandler(stream))

    def learn(number: int) -> None:
        add_known(f"value-{number}-x")
        logger.info("value-%d-x", number)

    threads = [threading.Thread(target=learn, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert stream.getvalue() == f"{MARKER}\n" * 40

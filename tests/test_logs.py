"""What a log line looks like, after the sanitizer has had the record."""

import json
import logging
from pathlib import Path

import pytest

import logs
from config import Logs
from errors import ConfigError
from sanitizer import protect_handler


def test_a_json_line_keeps_the_traceback_that_the_sanitizer_wrote(tmp_path: Path) -> None:
    handler = logging.FileHandler(tmp_path / "log")
    handler.setFormatter(logs.JsonFormatter())
    protect_handler(handler, ["the-password"])
    logger = logging.Logger("test")  # noqa: LOG001 - one that no other test sees
    logger.addHandler(handler)

    try:
        int("the-password")
    except ValueError:
        logger.exception("it failed")
    handler.close()

    entry = json.loads((tmp_path / "log").read_text(encoding="utf-8"))
    assert entry["message"] == "it failed"
    assert "ValueError" in entry["exception"]
    assert "the-password" not in entry["exception"]


def test_an_unknown_place_for_the_log_is_a_setting_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="LOG_FILE"):
        logs.set_up(Logs(file=tmp_path / "no" / "directory" / "log"))


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_record_says_which_call_it_belongs_to(form: str) -> None:
    formatter = logs.JsonFormatter() if form == "json" else logs._TextFormatter("%(message)s")  # noqa: SLF001
    record = logging.LogRecord("test", logging.INFO, "", 0, "it happened", None, None)
    before = formatter.format(record)
    token = logs.correlation.set("0123abcd")
    during = formatter.format(record)
    logs.correlation.reset(token)

    assert "0123abcd" not in before
    assert during == ("it happened [0123abcd]" if form == "text" else before[:-1] + ', "correlation": "0123abcd"}')

"""The text of a `.env`: what it says, and the same text saying something else, line by line.

What is written is read again before it counts: a value comes back as it was, or is refused.
"""

import io
import re
from collections.abc import Iterator, Mapping
from typing import Final

from dotenv.parser import Binding, parse_stream

from config import SECRETS
from errors import InputError
from sanitizer import MARKER

HEADER: Final = "# Settings of coreflux-mcp; .env.example says what each is.\n"

_PLAIN: Final = re.compile(r"[A-Za-z0-9_./:@%+,=~^-]+")
"""What every reader of such files takes as it is: ours, shells, Docker and systemd."""
_BUT_BLANK_LINES: Final = re.compile(r"\A(\s*[\r\n])?.*\Z", re.DOTALL)
_LINE: Final = re.compile(
    r"""
    (?P<start> \s* (?:export[^\S\r\n]+)? (?:'[^']+' | [^=\#\s]+) [^\S\r\n]* = [^\S\r\n]* )
    (?P<value> '(?:\\.|[^'\\])*' | "(?:\\.|[^"\\])*" | [^\r\n]*? )
    (?P<rest> (?:[^\S\r\n]+\#[^\r\n]*)? [^\S\r\n]* (?:\r\n|\n|\r|\Z) )
    """,
    re.DOTALL | re.VERBOSE,
)


def dotenv_values(text: str) -> dict[str, str]:
    """Return what a `.env` says, as the server reads it; a name without a value is left out."""
    return {line.key: line.value for line in _lines(text) if line.key is not None and line.value is not None}


def changed(text: str, settings: Mapping[str, str]) -> str:
    """Return the text with other settings in it; one that is "" is emptied where it stands, and not added.

    Comments, order, and every line that is not about these settings stay. Of several lines about one setting the last
    is what counts, and the others go.

    Raises:
        InputError: A value cannot be written so that it is read back. The text names the setting only.
    """
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = _lines(text)
    last = {line.key: number for number, line in enumerate(lines)}
    there = dotenv_values(text)
    pieces = []
    for number, line in enumerate(lines):
        original = line.original.string
        if (
            line.key is None
            or line.key not in settings
            or settings[line.key] == (line.value or "") == there.get(line.key, "")
        ):
            pieces.append(original)
        elif last[line.key] == number:
            pieces.append(_replaced(original, line.key, settings[line.key], newline))
        else:
            pieces.append(_BUT_BLANK_LINES.sub(r"\1", original))
    before = "".join(pieces) if text else HEADER
    new = [f"{name}={_quoted(value)}{newline}" for name, value in settings.items() if value and name not in last]
    after = before + (newline if new and not before.endswith(("\n", "\r")) else "") + "".join(new)
    _check(after, lines, {**there, **{name: value for name, value in settings.items() if value or name in there}})
    return after


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    """Tell what has changed in a `.env`, a line for each value that goes or comes, without secrets."""
    for name in {**before, **after}:
        if before.get(name, "") != after.get(name, ""):
            if before.get(name):
                yield f"- {_told(name, before[name])}"
            yield f"+ {_told(name, after.get(name, ''))}"


def _lines(text: str) -> list[Binding]:
    return list(parse_stream(io.StringIO(text)))


def _quoted(value: str) -> str:
    if not value or _PLAIN.fullmatch(value):
        return value
    if set("'\\") & set(value) and dotenv_values(f"A={value}\nB=1") == {"A": value, "B": "1"}:
        return value  # without quotes nothing has to be escaped, which not every reader undoes
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _replaced(original: str, name: str, value: str, newline: str) -> str:
    line = _LINE.fullmatch(original)
    if line is None:  # a name without = after it
        blank = original[: len(original) - len(original.lstrip())]
        return f"{blank}{name}={_quoted(value)}{newline}"
    # What is empty in front of a comment was not always read as that.
    return line["start"] + (_quoted(value) or "''" * ("#" in line["rest"])) + line["rest"]


def _check(text: str, before: list[Binding], expected: Mapping[str, str]) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        wrong = [name for name, value in expected.items() if not value.isprintable()]
        raise InputError(f"{' or '.join(wrong)} has a character that no file in UTF-8 can hold.") from None
    found = dotenv_values(text)
    if found != expected:
        for line in before:
            if line.error:
                raise InputError(f"Line {line.original.line} of the file is not NAME=value: mend it, or take it out.")
        wrong = [name for name, value in expected.items() if found.get(name) != value]
        raise InputError(
            f"{' and '.join(wrong)} cannot be written so that it is read back as it is: use a file of its own, as in "
            "MQTT_PASSWORD_FILE."
        )


def _told(name: str, value: str) -> str:
    return f"{name}={MARKER if value and (name in SECRETS or '@' in value) else value}"

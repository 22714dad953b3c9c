"""A person at a terminal: reads what a command asks, types the answer, and sees all that stands on the screen."""

import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

TIMEOUT_S = 30
POLL_S = 0.01
CTRL_D = "\x04"


class Terminal:
    """A command on a pseudo-terminal; a context manager that ends it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], directory: Path) -> None:
        self._command = command
        self._environment = {**environment, "TERM": "dumb"}
        self._directory = directory
        self._process: subprocess.Popen[bytes]
        self._ours = -1
        self._read = 0
        self.screen = ""
        """Everything that stood there, what was typed and echoed included."""

    def __enter__(self) -> Self:
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            cwd=self._directory,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,  # with no terminal but this one
        )
        os.close(theirs)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def answer(self, question: str, text: str = "") -> None:
        """Wait for a question, and type the answer."""
        self.wait_for(question)
        self.type(f"{text}\n")

    def type(self, text: str) -> None:
        """Type."""
        os.write(self._ours, text.encode())

    def wait_for(self, text: str) -> None:
        """Wait until a text comes that was not waited for yet."""
        deadline = time.monotonic() + TIMEOUT_S
        while (found := self.screen.find(text, self._read)) < 0:
            assert self._more(deadline), f"{text!r} does not come: {self.screen}"
        self._read = found + len(text)

    def interrupt(self) -> None:
        """Press Ctrl-C, once the command waits for an answer.

        A signal that comes between the prompt and the read waits for the next key in CPython's `input`: that code is
        C, which looks for signals only when a read was interrupted. It happened here once in some thousand runs.
        """
        state = Path(f"/proc/{self._process.pid}/stat")
        deadline = time.monotonic() + TIMEOUT_S
        while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < deadline, f"never waits for an answer: {self.screen}"
            time.sleep(POLL_S)
        self._process.send_signal(signal.SIGINT)

    def ended(self) -> int:
        """Wait for the end, and return the exit code."""
        deadline = time.monotonic() + TIMEOUT_S
        while self._more(deadline):
            pass
        return self._process.wait(TIMEOUT_S)

    def _more(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing more comes: {self.screen}"
        try:
            data = os.read(self._ours, 1 << 16)
        except OSError:  # the other end is closed
            return False
        self.screen += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)

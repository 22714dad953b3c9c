"""Runs outside judges, and servers for them, and remembers whether every judge was content."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
SERVER: Final = [sys.executable, str(ROOT / "server.py"), "--env-file", os.devnull]
OVER_HTTP: Final = {"MCP_TRANSPORT": "http", "MCP_PORT": "0", "MQTT_BROKER": "embedded"}

_START_TIMEOUT_S: Final = 20
_JUDGE_TIMEOUT_S: Final = 60
_LIMITED: Final = ["timeout", "--kill-after=5", "300"]
"""With which a server ends whatever becomes of this process, and within five seconds of SIGTERM."""
_ADDRESS: Final = re.compile(r"MCP is served on (\S+)")


class Court:
    """What the judges have said."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.content = True

    async def run(
        self,
        name: str,
        command: list[str],
        settings: Mapping[str, str] | None = None,
        exit_code: int = 0,
        count: Callable[[str], int] | None = None,
    ) -> None:
        """Run one judge, who has to end with a certain code and, where checks are counted, to have passed any."""
        process = await asyncio.create_subprocess_exec(
            *command,
            env=os.environ | (settings or {}),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), _JUDGE_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            output = f"It did not end within {_JUDGE_TIMEOUT_S} s.".encode()
        said = output.decode(errors="replace")
        checks = count(said) if count else None
        content = process.returncode == exit_code and checks != 0
        self._tell(
            name if checks is None else f"{name}, {checks} checks passed", said, process.returncode, content=content
        )

    @asynccontextmanager
    async def served(self, command: list[str], settings: Mapping[str, str]) -> AsyncIterator[str]:
        """Have a server on a free port, give its address, and judge how it ends."""
        process = await asyncio.create_subprocess_exec(
            *_LIMITED, *command, env=os.environ | settings, stderr=asyncio.subprocess.PIPE
        )
        log: list[str] = []
        listening = asyncio.Event()
        reading = asyncio.create_task(_read(process, log, listening))
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(listening.wait(), _START_TIMEOUT_S)
            address = _ADDRESS.search("".join(log))
            assert address, "".join(log)
            yield address[1]
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
            await reading
        said = "".join(log)
        well = process.returncode == 0 and "Traceback" not in said
        self._tell(f"{Path(command[1]).name} ends at SIGTERM", said, process.returncode, content=well)

    def _tell(self, name: str, said: str, code: int | None, *, content: bool) -> None:
        self.content = self.content and content
        sys.stdout.write(f"{name}: {'content' if content else f'NOT CONTENT ({code})'}\n")
        if not content:
            sys.stdout.write(f"{said}\n")
        sys.stdout.flush()


async def _read(process: asyncio.subprocess.Process, log: list[str], listening: asyncio.Event) -> None:
    assert process.stderr is not None
    async for line in process.stderr:
        log.append(line.decode(errors="replace"))
        if _ADDRESS.search(log[-1]):
            listening.set()
    listening.set()  # or never

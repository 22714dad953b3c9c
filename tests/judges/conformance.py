"""The MCP conformance suite, which judges over HTTP alone and can show no token.

Its general scenarios judge the server. The others want tools, resources and prompts of names that the suite has thought
up: all that it requires judges `fixture_server.py`.
"""

import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.judges.court import OVER_HTTP, ROOT, SERVER, Court

SUITE: Final = ROOT / ".judges/node_modules/@modelcontextprotocol/conformance/dist/index.js"
HERE: Final = Path(__file__).parent
FIXTURES: Final = [sys.executable, str(HERE / "fixture_server.py")]

GENERAL: Final = {
    "2026-07-28": (
        "server-stateless",
        "tools-list",
        "server-sse-multiple-streams",
        "resources-list",
        "sep-2164-resource-not-found",
        "prompts-list",
        "dns-rebinding-protection",
        "caching",
        "input-required-result-unsupported-methods",
        "http-header-validation",
    ),
    "2025-11-25": (
        "server-initialize",
        "server-session-lifecycle",
        "ping",
        "tools-list",
        "server-sse-multiple-streams",
        "resources-list",
        "prompts-list",
        "dns-rebinding-protection",
    ),
}
"""The scenarios that ask for nothing of a certain name, by the revision of the protocol."""
BESIDES: Final = {
    "2026-07-28": ("json-schema-2020-12", "http-header-validation", "http-custom-header-server-validation"),
    "2025-11-25": ("json-schema-2020-12", "server-session-lifecycle"),
}
"""What the suite runs without requiring it, and we do require. Not the rest of that: the SDK (2.3.0) has no tasks, an
extension; and to pass `server-sse-polling` a server has to keep for a while what it has sent, which ours does not."""


async def conformance(court: Court) -> None:
    """Judge the server, then the fixtures."""
    async with court.served(SERVER, OVER_HTTP | {"MCP_CLIENT_RATE_LIMIT_PER_MINUTE": "1000000"}) as url:
        for revision, scenarios in GENERAL.items():
            for scenario in scenarios:
                which = ["--scenario", scenario, "--spec-version", revision]
                excused = ["--expected-failures", str(HERE / "without-fixtures.yml")]
                await _run(court, url, f"server, {revision}, {scenario}", [*which, *excused], _passed)
    async with court.served(FIXTURES, {}) as url:
        for revision, scenarios in BESIDES.items():
            await _run(court, url, f"fixtures, {revision}, all", ["--requirements", revision], _passed_of_all)
            for scenario in scenarios:
                which = ["--scenario", scenario, "--spec-version", revision]
                await _run(court, url, f"fixtures, {revision}, {scenario}", which, _passed)


async def _run(court: Court, url: str, name: str, which: list[str], count: Callable[[str], int]) -> None:
    with tempfile.TemporaryDirectory() as results:
        command = [court.node, str(SUITE), "server", "--url", url, *which, "-o", results]
        await court.run(f"Conformance of the {name}", command, count=count)


def _passed(said: str) -> int:
    """Count the checks that one scenario has passed."""
    passed = re.search(r"^Passed: (\d+)/", said, re.MULTILINE)
    return int(passed[1]) if passed else 0


def _passed_of_all(said: str) -> int:
    """Count the checks that were passed in the scenarios that are required."""
    besides = re.findall(r"^  [✓✗] (\S+) \(", said, re.MULTILINE)
    scenarios = re.findall(r"^[✓✗] (\S+): (\d+) passed", said, re.MULTILINE)
    return sum(int(passed) for scenario, passed in scenarios if scenario not in besides)

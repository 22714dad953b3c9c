"""Lets outsiders judge the server, over stdio and over HTTP: judge.py NODE."""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.judges.clients import over_http, over_stdio
from tests.judges.conformance import conformance
from tests.judges.court import Court


async def judge(node: str) -> bool:
    """Run every judge and say whether all of them were content."""
    court = Court(node)
    await over_stdio(court)
    await over_http(court)
    await conformance(court)
    return court.content


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(judge(sys.argv[1])) else 1)

"""A process that writes an audit file until it is killed: `python -m tests.audit_writer FILE KEY`."""

import asyncio
import sys
from itertools import count
from pathlib import Path

from pydantic import SecretStr

from audit import Audit
from config import AuditConfig


async def main(file: Path, key: SecretStr) -> None:
    """Tell on stdout the number of each call that was recorded, when it was."""
    async with Audit(AuditConfig(file=file, key=key), file_bytes=50_000) as audit:
        sys.stdout.write(f"{audit.failure}\n")
        for number in count(1):
            audit.note("connect", number=number)
            await audit.record("call", number=number, summary="x" * (number % 300))
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), SecretStr(sys.argv[2])))

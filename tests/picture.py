"""The picture of a session: a run of the demo as a terminal shows it. `scripts/picture` writes it."""

import os
import re
import subprocess
import sys
from io import StringIO
from typing import Final
from xml.etree import ElementTree as ET

from rich.console import Console
from rich.text import Text

from tests.documentation import ROOT

PICTURE: Final = ROOT / "docs" / "session.svg"
TITLE: Final = "scripts/demo"
COLUMNS: Final = 110
COLUMN_WIDTH: Final = 12.2
"""In the pictures that rich draws."""

BOUND_S: Final = 60


def demo() -> str:
    """Run the demo and return what it shows, with its colours."""
    return subprocess.run(
        [sys.executable, str(ROOT / "server.py"), "demo"],
        # Colours, and nothing that moves.
        env=os.environ | {"FORCE_COLOR": "1", "TTY_INTERACTIVE": "0", "TERM": "xterm-256color"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=BOUND_S,
    ).stdout


def picture(shown: str) -> str:
    """Draw what a terminal showed."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True, color_system="256")
    console.print(Text.from_ansi(re.sub(r"\x1b\[\?25[lh]", "", shown)))  # the cursor that hides and comes back
    svg = console.export_svg(title=TITLE, unique_id="session")
    svg = svg.replace("<svg ", '<svg xml:space="preserve" ', 1)  # some viewers drop the blanks that lines begin with
    # Whoever opens the picture fetches no fonts for it.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE).rstrip() + "\n"


def rows(svg: str) -> list[str]:
    """Read the lines of text in a picture, from top to bottom."""
    found: dict[float, str] = {}
    for each in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):  # noqa: S314 - it is ours
        y = float(each.get("y", "0"))
        found[y] = found.get(y, "").ljust(round(float(each.get("x", "0")) / COLUMN_WIDTH)) + (each.text or "")
    return [found[y].replace("\xa0", " ").rstrip() for y in sorted(found)]


if __name__ == "__main__":
    PICTURE.write_text(picture(demo()), encoding="utf-8")

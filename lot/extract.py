"""LoT out of what somebody wrote around it: the answer of a Copilot, a page of documentation."""

import re
from typing import Final, NamedTuple

_FENCE: Final = re.compile(r"(`{3,}|~{3,})[ \t]*([^\n`]*)$")
_SCRIPT: Final = re.compile(r"#\s*Script Name:")
_BEGINS: Final = re.compile(r"DEFINE\s|#\s*Script Name:")
_GOES_ON: Final = re.compile(r"\s|$|DEFINE\s|ON\s+[A-Z]|DO\s*$|INPUT\s|RETURN\s*$|DESCRIPTION\s|--|//|/\*")
"""How a line of a definition begins that is not indented."""


class Extract(NamedTuple):
    """The LoT in a text, and what is said around it."""

    code: str
    prose: str


def extract(text: str) -> Extract:
    """Take all the LoT out of a text, in order: what stands in fences, or where there is none, from each DEFINE on.

    Fences without a definition are prose; one that is never closed goes to the end.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    blocks = _fenced(lines)
    if not any(_FENCE.match(line.lstrip()) for line in lines):
        blocks = _bare(lines)
    taken = {number for block in blocks for number in block}
    prose = "\n".join(line for number, line in enumerate(lines) if number not in taken)
    code = "\n\n".join("\n".join(block[n] for n in block if not _is_fence(lines[n])).strip("\n") for block in blocks)
    return Extract(code, re.sub(r"\n{3,}", "\n\n", prose).strip())


Block = dict[int, str]
"""Lines by their numbers."""


def _is_fence(line: str) -> bool:
    return _FENCE.match(line.lstrip()) is not None


def _fenced(lines: list[str]) -> list[Block]:
    """Find what stands between fences and holds a definition, without the indentation that a list gives it."""
    blocks: list[Block] = []
    closing, indent = "", 0
    for number, line in enumerate(lines):
        match = _FENCE.match(line.lstrip())
        if not closing and match:
            closing, indent = match[1], len(line) - len(line.lstrip())
            blocks.append({number: ""})
        elif closing:
            blocks[-1][number] = line[indent:] if not line[:indent].strip() else line
            if match and match[1].startswith(closing) and not match[2].strip():
                closing = ""
    return [block for block in blocks if any(map(_BEGINS.match, block.values()))]


def _bare(lines: list[str]) -> list[Block]:
    """Find the definitions in a text without fences; the prose around them begins in the first column too."""
    blocks: list[Block] = []
    within = script = False
    for number, line in enumerate(lines):
        if _BEGINS.match(line):
            blocks.append({})
            within, script = True, bool(_SCRIPT.match(line))
        within = within and (script or bool(_GOES_ON.match(line)))
        if within:
            blocks[-1][number] = line
    return blocks

"""LoT, the language of Coreflux brokers: text in, structure and problems out.

What is found here is found without a broker, so "no problem" means only that none was seen.

`grammar.lark` is the language, as far as it is known. `lines` makes logical lines of a text, `syntax` parses them,
`structure` finds their blocks; what can be wrong is in `mistakes` (line by line), in `checks` (within a definition) and
in `program` (between definitions).
"""

from lot.report import Analysis, Definition, Kind, Problem

__all__ = ["Analysis", "Definition", "Kind", "Problem", "analyse"]


def analyse(code: str) -> Analysis:
    """Find the definitions in a text and the problems in them; see `lot.program`."""
    from lot.program import analyse as find  # noqa: PLC0415 - 10 ms that a start without LoT need not pay

    return find(code)

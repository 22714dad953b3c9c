"""What a person reads in a terminal, without secrets."""

from typing import Any

from rich.console import Console

from sanitizer import hide_secrets


class Screen(Console):
    """A console that hides secrets of ours and credentials; paths stay, because a person has to find the files."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; see `Console.print`."""
        super().print(*(hide_secrets(each) if isinstance(each, str) else each for each in objects), **options)

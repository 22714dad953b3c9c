"""Who makes the call that is being served: nobody in particular on stdio, a client with a name over HTTP."""

from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from config import ServerTransport

SCOPE_KEY: Final = "coreflux_mcp.caller"
"""Under which an ASGI scope has the caller."""


class Caller(NamedTuple):
    """Whoever is on the other end."""

    transport: ServerTransport = "stdio"
    principal: str | None = None
    """The name that belongs to the token; None where nobody has to show one."""
    address: str | None = None
    """The IP address, or "unix"."""
    correlation: str = ""
    """Names the HTTP request, in the access log as in the record and in the log of the call."""

    def facts(self) -> dict[str, str]:
        """Return what there is to say, for the record."""
        told = {"transport": self.transport, "principal": self.principal, "address": self.address}
        return {name: value for name, value in told.items() if value is not None}


def caller_of(request: Any) -> Caller:
    """Return who made an HTTP request as the SDK hands it on; None stands for stdio."""
    found = getattr(request, "scope", {}).get(SCOPE_KEY)
    return found if isinstance(found, Caller) else NOBODY


NOBODY: Final = Caller()
current: ContextVar[Caller] = ContextVar("caller", default=NOBODY)
"""Of the tool call that is being served."""

"""The floor: the bare SDK with one tool, as small as a server can be."""

from mcp.server import MCPServer
from pydantic import BaseModel


class Echo(BaseModel):
    """What came in."""

    topic: str
    n: int


server: MCPServer[None] = MCPServer("floor", version="1", log_level="WARNING")


@server.tool()
async def echo(topic: str, n: int) -> Echo:
    """Return what came in."""
    return Echo(topic=topic, n=n)


if __name__ == "__main__":
    server.run()

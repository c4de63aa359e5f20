"""A small MCP server on stdin and stdout."""

from mcp.server import MCPServer

server = MCPServer("stock")
STOCK = {"tea": 12, "mugs": 0}
asked: list[str] = []


@server.tool()
def in_stock(item: str) -> str:
    """How many of an item there are."""
    asked.append(item)
    return f"{STOCK.get(item, 0)} {item}, asked {len(asked)} times"


server.run()

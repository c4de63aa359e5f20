"""The tools of an MCP server, called in workers."""

import asyncio
from typing import Any

import dspy
from mcp import Client, MCPError, StdioServerParameters


class Session:
    """An MCP server for the tools of a program. Each worker that calls one starts a server of its own and keeps it."""

    def __init__(self, server: StdioServerParameters) -> None:
        self.server = server
        self.client: asyncio.Future[Client] | None = None  # a worker's; nothing open is sent there

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        """All that dspy.Tool asks for."""
        if self.client is None:
            self.client = asyncio.get_running_loop().create_future()
            self.keeper = asyncio.create_task(self.keep_open(self.client))
        client = self.client
        try:
            return await (await asyncio.shield(client)).call_tool(name, arguments)
        except MCPError:  # the server has died, and the next call starts another
            if self.client is client:
                self.client = None
                self.keeper.cancel()
            raise

    async def keep_open(self, client: asyncio.Future[Client]) -> None:
        """In a task of its own, which outlives the call that began it."""
        try:
            async with Client(self.server) as opened:
                client.set_result(opened)
                await asyncio.Event().wait()
        except Exception as error:
            self.client = None
            if not client.done():
                client.set_exception(error)


async def list_tools(server: StdioServerParameters) -> list[dspy.Tool]:
    """A server's tools, to be called by workers."""
    async with Client(server) as client:
        listed = (await client.list_tools()).tools
    session = Session(server)
    return [dspy.Tool.from_mcp_tool(session, tool) for tool in listed]

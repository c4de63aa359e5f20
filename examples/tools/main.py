"""Agents in workers: tools that are functions, tools by import path, and those of an MCP server beside each worker."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import dspy
import shop
from mcp import Client, MCPError, StdioServerParameters

import dspool
from dspool.testing.stub_lm import StubLM

SERVER = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("mcp_server.py"))])


def weight(item: str) -> str:
    """What an item weighs. Defined in this script, it travels by value."""
    return f"a pound of {item}"


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


def think(inputs: dict[str, str]) -> str:
    """What the stub of an LM does: it calls the tool that the question begins with, then it finishes."""
    return "finish" if "observation" in inputs["trajectory"] else inputs["question"].split()[0]


def recall(inputs: dict[str, str]) -> str:
    """And answers with what the tool said."""
    return inputs["trajectory"].split("observation_0 ## ]]\n")[-1].splitlines()[0]


ANSWERS = {"next_tool_name": think, "next_tool_args": {"item": "tea"}, "answer": recall}
with StubLM(answers=ANSWERS) as stub:
    with dspool.Pool(workers=1, lm=stub.settings()) as pool:
        agent = dspy.ReAct("question -> answer", tools=[shop.price, weight])
        print(pool.run(agent, {"question": "price of tea"}).answer)
        print(pool.run(agent, {"question": "weight of tea"}).answer)

        definition = {"program_type": "react", "signature": "question -> answer", "tools": ["shop:price"]}
        pool.create_program("agent", definition)
        print(pool.run("agent", {"question": "price of tea"}).answer)
        try:
            pool.create_program("lost", {**definition, "tools": ["shop:discount"]})
        except dspool.ProgramError as error:
            print(error)

    with dspool.Pool(workers=1, lm=stub.settings(), slots=8, execution="async") as pool:
        clerk = dspy.ReAct("question -> answer", tools=asyncio.run(list_tools(SERVER)))
        rows = [{"question": "in_stock tea"}] * 3
        print(sorted(found.answer for found in pool.map(clerk, rows)))

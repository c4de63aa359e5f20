"""Agents in workers: tools that are functions, tools by import path, and those of an MCP server beside each worker."""

import asyncio
import sys
from pathlib import Path

import dspy
import shop
from mcp import StdioServerParameters
from mcp_session import list_tools

import dspool
from dspool.testing.stub_lm import StubLM

SERVER = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("mcp_server.py"))])


def weight(item: str) -> str:
    """What an item weighs. Defined in this script, it travels by value."""
    return f"a pound of {item}"


def think(inputs: dict[str, str]) -> str:
    """What the stub of an LM does: it calls the tool that the question begins with, then it finishes."""
    return "finish" if "observation" in inputs["trajectory"] else inputs["question"].split()[0]


def recall(inputs: dict[str, str]) -> str:
    """And answers with what the tool said."""
    return inputs["trajectory"].split("observation_0 ## ]]\n")[-1].splitlines()[0]


ANSWERS = {"next_tool_name": think, "next_tool_args": {"item": "tea"}, "answer": recall}
with StubLM(answers=ANSWERS) as stub, dspool.Pool(workers=1, lm=stub.settings(), slots=8, execution="async") as pool:
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

    clerk = dspy.ReAct("question -> answer", tools=asyncio.run(list_tools(SERVER)))
    rows = [{"question": "in_stock tea"}] * 3
    print(sorted(found.answer for found in pool.map(clerk, rows)))

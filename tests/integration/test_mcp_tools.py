"""The recipe of tools: what becomes of an MCP server that the workers' tools belong to."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
from pathlib import Path
from typing import Any

import dspy
import psutil
import pytest
from mcp import StdioServerParameters

import dspool
from dspool.testing.pytest_plugin import MakePool
from dspool.testing.stub_lm import StubLM

pytestmark = [pytest.mark.integration, pytest.mark.slow]

FOLDER = Path(__file__).parents[2] / "examples" / "tools"
SERVER = FOLDER / "mcp_server.py"
ANSWERS = {
    "next_tool_name": lambda inputs: "finish" if "observation" in inputs["trajectory"] else "in_stock",
    "next_tool_args": {"item": "tea"},
    "answer": lambda inputs: inputs["trajectory"],
}


def servers() -> list[psutil.Process]:
    """The MCP servers that the pool's workers have started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # also where it has just ended
            if str(SERVER) in process.cmdline():
                found.append(process)
    return found


def test_an_mcp_server_is_kept_replaced_and_ended_with_its_worker(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    session: Any = importlib.import_module("mcp_session")
    parameters = StdioServerParameters(command=sys.executable, args=[str(SERVER)])
    clerk = dspy.ReAct("question -> answer", tools=asyncio.run(session.list_tools(parameters)))

    def asked(pool: dspool.Pool) -> str:
        return str(pool.run(clerk, {"question": "tea?"}).answer)

    with StubLM(answers=ANSWERS) as stub:
        pool = make_pool(workers=1, lm=stub.settings(), slots=4, execution="async")
        assert "12 tea, asked 1 times" in asked(pool)
        assert "12 tea, asked 2 times" in asked(pool)
        (server,) = servers()
        server.kill()
        assert "Execution error in in_stock" in asked(pool)
        assert "12 tea, asked 1 times" in asked(pool)
        (server,) = servers()
        pool.kill(pool.workers()[0].worker_id)
        assert psutil.wait_procs([server], timeout=20)[1] == []

"""The recipe of tools in workers: tools that can't be had, and what becomes of an MCP server that tools belong to."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
import threading
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


def test_a_tool_that_a_worker_cannot_have_is_told_before_anything_runs(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(workers=1)
    (tmp_path / "tools_found_later.py").write_text("def price(item: str) -> str:\n    return item\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)  # the workers have started
    later = importlib.import_module("tools_found_later")
    with pytest.raises(dspool.ProgramError, match=r"No module named 'tools_found_later'\. Workers import from the sys"):
        pool.run(dspy.ReAct("question -> answer", tools=[later.price]), {"question": "how much?"})

    lock = threading.Lock()

    def price(item: str) -> str:
        with lock:
            return item

    with pytest.raises(dspool.EncodeError, match=r"tools\['price'\]\.func, its variable 'lock'"):
        pool.run(dspy.ReAct("question -> answer", tools=[price]), {"question": "how much?"})
    definition = {"program_type": "react", "signature": "question -> answer", "tools": ["tools_found_later:cost"]}
    with pytest.raises(dspool.ProgramError, match="the tool 'tools_found_later:cost' can't be imported"):
        pool.create_program("agent", definition)
    assert pool.list_programs() == []

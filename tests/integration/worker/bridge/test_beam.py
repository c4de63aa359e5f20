"""Real Erlang and Elixir ports on the bridge: the examples, on the machine's own erl and elixir."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dspool.testing.stub_lm import StubLM
from tests.integration.worker.bridge.client import environment

pytestmark = [pytest.mark.integration, pytest.mark.slow]

EXAMPLES = Path(__file__).parents[4] / "examples" / "elixir"


def run(command: str, *arguments: str, folder: Path, **env: str) -> str:
    """What an example prints; skipped where the machine hasn't its command."""
    if shutil.which(command) is None:
        pytest.skip(f"there is no {command} here (Debian's packages erlang-base and elixir have it)")
    done = subprocess.run(
        [command, *arguments], env=environment(folder, env), capture_output=True, text=True, timeout=55
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_elixir_application_asks_and_survives_the_bridges_death(tmp_path: Path, stub: StubLM) -> None:
    settings = {"LM_BASE": stub.url, "LM_MODEL": "stub", "OPENAI_API_KEY": "stub-key-1234", "LC_ALL": "C.UTF-8"}
    told = run("elixir", str(EXAMPLES / "ask.exs"), folder=tmp_path, PYTHON=sys.executable, **settings)
    expected = [
        "the bridge is there",
        'answer: echo: Why is the sky "blue"? \N{SNOWMAN}',
        "20 callers, 20 different answers",
        "the third: echo: What is 3?",
        "Unknown command: dance",
        "Program not found: nobody",
        "programs that went with the session: 1",
        "it died: {:bridge_exited, 137}",
        "and after its restart: echo: Are you back?",
        "shutdown_complete: :normal",
    ]
    # Between them stand the lines that Erlang logs of the process that was killed.
    assert [line for line in told.splitlines() if line in expected] == expected


def test_plain_erlang_asks(tmp_path: Path) -> None:
    *answers, last = run("escript", str(EXAMPLES / "ping.escript"), sys.executable, folder=tmp_path).splitlines()
    ping, unknown, broken, shutdown = map(json.loads, answers)
    assert ping["result"]["status"] == "ok"
    assert unknown["error"] == "Unknown command: dance"
    assert (broken["id"], broken["error_info"]["code"]) == (None, "invalid_json")
    assert shutdown["result"] == {"status": "shutdown_complete"}
    assert last == "exit status 0"

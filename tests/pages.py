"""The pages of the documentation and their code blocks, and how the code of each how-to page is run.

tests/unit/test_docs.py holds the tables against the pages; tests/integration runs what they name.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOW_TO = ROOT / "docs" / "how-to"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])

QUOTES = {
    "choose-workers-and-slots": ["measure_slots.py"],
    "evaluate-and-optimize-over-a-pool": ["evaluate_and_optimize.py"],
    "move-from-dspy-parallel": ["from_parallel.py"],
    "move-from-process-pool-executor": ["executor.py"],
    "serve-over-http": ["web_service/app.py"],
    "sessions": ["sessions.py"],
    "ship-your-own-program": ["own_program/librarian.py", "own_program/run_librarian.py"],
    "stream-answers": ["stream_answers.py"],
    "use-caches": ["use_caches.py"],
    "use-in-a-notebook": ["notebook.ipynb"],
    "use-tools-and-mcp": ["tools/mcp_session.py", "tools/run_agents.py"],
    "watch-a-pool": ["watch_a_pool.py"],
}
"""How-to pages whose code is that of examples, word for word."""

PASTED = {"check-the-environment", "configure-lms", "define-programs-as-data", "preload-modules"}
"""Those whose blocks are pasted one after the other into a script of their reader's."""

TESTS = {"test-your-code"}
"""Those whose blocks are tests, and are run by pytest."""

_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page in these languages, in their order; those in lists without their indentation."""
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [textwrap.dedent(code) for _, language, code in found if language in languages]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without keys and addresses of servers, and with these variables."""
    left_out = ("_API_KEY", "_API_BASE", "_BASE_URL")
    return {name: value for name, value in os.environ.items() if not name.endswith(left_out)} | variables


def run_python(script: Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder of its own, with warnings as errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=55,
    )

"""The examples and the tutorial's code run, without a network and with warnings as errors."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import HOW_TO, ROOT, blocks, run_python

pytestmark = [pytest.mark.integration, pytest.mark.slow]

# In a folder the one that is run has a name that says so; the web service and the notebook have tests of their own.
EXAMPLES = sorted([*(ROOT / "examples").glob("*.py"), *(ROOT / "examples").glob("*/run_*.py")])
TUTORIALS = sorted((ROOT / "docs" / "tutorial").glob("*.md"))

SHOWN = {
    "first_pool.py": ["A lease is the right to use a slot. ['slot', 'lease'", "its neighbours go on."],
    "async_pool.py": ["squares: [0, 1, 4, 9]", "7 -> 49", "too slow: timeout"],
    "sessions.py": [
        "kept: ['likes tea', 'lives in London', 'has a cat']",
        "same process: True",
        "told once: SessionLost",
        "begins anew: ['likes cake']",
    ],
    "custom_module.py": ["Card ['slot'", "lease\n", "A lease ends when the slot is given back.", "usage: "],
    "executor.py": [
        "done: [0, 10, 20, 30, 40]",
        "mapped: [0, 10, 20, 30, 40]",
        "cancelled: True True",
        "next to it: [0, 1, 2]",
        "its own call alone: WorkerLost",
        "and on: 7",
    ],
    "programs_as_data.py": ["slot, lease", "told before any call: ", "ran once; kind chain_of_thought"],
    "stream_answers.py": [
        "echo:| why| is| the| sky| blue?||\nwhole: echo: why is the sky blue?",
        "items: [3, 2, 1]",
        "first: echo:",
        "requests closed early: 1 workers replaced: 0",
        "last: echo: and so?",
    ],
    "evaluate_and_optimize.py": [
        "score: 100.0",
        "ran elsewhere: True",
        "tokens are told: True",
        "demos: 2 before: 0",
        "still a Librarian: True and runs: Slots",
        "called three ways: ['Leases', 'Leases', 'Leases']",
        "lean: 100.0",
    ],
    "use_caches.py": [
        "two workers, one request",
        "a call without it: 2 requests",
        "another tenant: 3 requests",
        "off: 5 requests",
    ],
    "from_parallel.py": [
        "results: [0, None, 1, None, 2, 3]",
        "results: [0, None, 1, None, 2, None, 3]",
        "failed: [(1, 'ProgramError'), (3, 'ProgramError'), (5, 'CallTimeout')]",
        "batch: [0, 1, 2, 3]",
        "1: ProgramError\n3: ProgramError\n",
    ],
    "measure_slots.py": ["workers slots  LM, calls/s", "  queue, s a call: 0.", "\n      2     1 "],
    "run_agents.py": [
        "3.20 EUR\na pound of tea\n3.20 EUR",
        "the tool 'shop:discount' can't be imported",
        "['12 tea, asked 1 times', '12 tea, asked 2 times', '12 tea, asked 3 times']",
    ],
    "run_librarian.py": [
        "words: 15\nnames: ['card']\ntrained: ['slots', 'runs']\nfrom a file: Slots",
        "'librarian:Libarian' can't be imported",
    ],
    "watch_a_pool.py": [
        ": crash, killed by SIGSEGV\n",  # which of the two it is depends on which was ready first
        "2 of 2 workers are ready\navailable ",
        "calls: 2, 1 failed, mean ",
        "healthy -> degraded: worker ",
        "{'ada': '1 calls, ",
    ],
    "map_rows.py": ["3 -> ProgramError", "5 -> WorkerLost", "6 ok, 1 failed, 1 lost, 1 worker replaced"],
}


def test_every_example_is_expected_to_show_something() -> None:
    assert {example.name for example in EXAMPLES} == set(SHOWN)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs(example: Path, tmp_path: Path) -> None:
    done = run_python(example, tmp_path)
    assert done.returncode == 0, done.stderr
    for told in SHOWN[example.name]:
        assert told in done.stdout, done.stdout


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.name)
def test_a_tutorials_code_runs_from_top_to_bottom_and_prints_what_it_says(tutorial: Path, tmp_path: Path) -> None:
    text = tutorial.read_text(encoding="utf-8")
    found = re.findall(r"^```(python|text)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    script = tmp_path / "tutorial.py"
    script.write_text("\n".join(code for kind, code in found if kind == "python"), encoding="utf-8")
    done = run_python(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(block for kind, block in found if kind == "text")


def test_the_tests_of_the_how_to_page_run(tmp_path: Path) -> None:
    conftest, *tests = blocks(HOW_TO / "test-your-code.md", "python")
    (tmp_path / "conftest.py").write_text(conftest, encoding="utf-8")
    (tmp_path / "test_page.py").write_text("\n".join(tests), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert done.returncode == 0, done.stdout
    written = len(re.findall(r"^def test_", "\n".join(tests), re.MULTILINE))
    assert f"{written} passed" in done.stdout

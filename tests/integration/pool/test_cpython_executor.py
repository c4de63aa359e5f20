"""CPython's own executor tests against dspool.Executor: what is listed as passing passes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cpython.listed import DOES_NOT_APPLY, PASSES

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).parents[3]
LIMIT_S = 220.0


@pytest.mark.timeout(LIMIT_S + 10)
def test_every_test_that_is_listed_as_passing_passes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.cpython", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] | None = json.loads(done.stdout.splitlines()[-1])
    if found is None:
        pytest.skip(f"Python {sys.version.split()[0]} has no test.test_concurrent_futures; Debian has it in testsuites")
    failed = {name: outcome for name, outcome in found.items() if name in PASSES and outcome.startswith("failed")}
    assert not failed, done.stderr
    passed = {name for name, outcome in found.items() if outcome == "passed"}
    assert len(passed & PASSES) >= 35, f"only {len(passed & PASSES)} of the listed tests were found: {found}"


def test_the_lists_are_those_of_the_documentation() -> None:
    text = (ROOT / "docs" / "explanation" / "executor.md").read_text(encoding="utf-8")
    assert not PASSES & DOES_NOT_APPLY.keys()
    missing = [name for name in [*PASSES, *DOES_NOT_APPLY] if f"`{name.partition('.')[2]}`" not in text]
    assert missing == []

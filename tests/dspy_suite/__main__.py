"""DSPy's own tests of what uses a module, with every module under pool.wrap.

    python -m tests.dspy_suite SOURCE          a table; exit 1 where a test passes without the pool, fails with it, and
                                               isn't listed
    python -m tests.dspy_suite SOURCE -k best  further arguments are pytest's

SOURCE is a checkout of DSPy (https://github.com/stanfordnlp/dspy). Its tests are copied to a folder of their own, so
that DSPy itself is the one that is installed. Each test runs twice, without the pool and with it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.dspy_suite.listed import DOES_NOT_APPLY, FILES

Outcomes = dict[str, dict[str, str]]
HERE = Path(__file__).parent
DEADLINE_S = 1800.0


def outcomes(folder: Path, arguments: list[str], *, pooled: bool) -> Outcomes:
    """Each test's outcome, by its pytest id."""
    found = folder / f"outcomes-{pooled}.json"
    environment = os.environ | {
        "PYTHONPATH": str(HERE),
        "DSPOOL_SUITE_POOL": str(int(pooled)),
        "DSPOOL_SUITE_OUTCOMES": str(found),
    }
    files = [file for file in FILES if (folder / "tests" / file).exists()]
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "pooled_modules", "-p", "no:cacheprovider"]
    command += ["--timeout", "120", "--extra", "--no-header", "--tb=short" if arguments else "--tb=no", *arguments]
    done = subprocess.run(
        [*command, *(f"tests/{file}" for file in files)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE if not arguments else None,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_S,
    )
    if not found.exists():
        raise SystemExit(f"pytest ended with {done.returncode} before it had outcomes:\n{done.stdout or ''}")
    told: Outcomes = json.loads(found.read_text(encoding="utf-8"))
    return told


def reason(test: str) -> str | None:
    """Why a test that passes in one process doesn't apply over a pool."""
    name = test.partition("::")[2].partition("[")[0]
    return next((why for why, names in DOES_NOT_APPLY.items() if name in names), None)


def report(without: Outcomes, pooled: Outcomes) -> int:
    """Print the table; the exit code."""
    passing = [test for test, outcome in without.items() if outcome["outcome"] == "passed"]
    passed = [test for test in passing if pooled.get(test, {}).get("outcome") == "passed"]
    failed = [test for test in passing if test not in passed]
    unlisted = [test for test in failed if reason(test) is None]
    print(f"{len(without)} tests, {len(passing)} pass without the pool; of these {len(passed)} pass with it")
    for file in FILES:
        mine = [test for test in passing if test.startswith(f"tests/{file}::")]
        if mine:
            print(f"  {file:42} {sum(test in passed for test in mine):3} of {len(mine)}")
    for test in failed:
        what: Any = reason(test) or f"NOT LISTED: {pooled.get(test, {}).get('why', 'it did not run')}"
        print(f"  - {test.removeprefix('tests/')}: {what}")
    return 1 if unlisted or not passing else 0


def main() -> int:
    """Run both and compare."""
    if len(sys.argv) < 2 or not (source := Path(sys.argv[1]).expanduser() / "tests").is_dir():
        print(__doc__, file=sys.stderr)
        print("There is no folder of tests at SOURCE; run: make dspy-suite DSPY_SOURCE=path/to/dspy", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="dspool-dspy-suite-") as name:
        folder = Path(name)
        shutil.copytree(source, folder / "tests")
        (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    asyncio: run by anyio\n", encoding="utf-8")
        return report(*(outcomes(folder, sys.argv[2:], pooled=pooled) for pooled in (False, True)))


if __name__ == "__main__":
    sys.exit(main())

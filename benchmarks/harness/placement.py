"""The same measurements twice: with every process on one core, and wherever the system puts them.

Waking a process on another core costs 30 to 60 us on a virtual machine and hides everything else. On one core one
sees what the code costs; free, what a user sees.

Each placement has a process of its own, which is placed before it starts anything. So nothing that the first one left
running (a fork server, a resource tracker) is on the wrong core for the second.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from benchmarks.harness.processes import usable_cores

Placement = Literal["pinned", "unpinned"]


@contextmanager
def placed(placement: Placement) -> Iterator[None]:
    """What this thread starts meanwhile runs there."""
    if placement == "unpinned":
        yield
        return
    cores = usable_cores()
    os.sched_setaffinity(0, cores[-1:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def run_in_each(module: str, arguments: Sequence[str], placements: Iterable[Placement]) -> dict[str, list[Any]]:
    """Run a benchmark's measurements in a process for each placement.

    Args:
        module: the benchmark's dotted name.
        arguments: its own arguments.
        placements: where to.

    Returns:
        "rows" and "notes" of all placements, one after the other.

    Raises:
        SystemExit: a run failed; it has said why.
    """
    merged: dict[str, list[Any]] = {"rows": [], "notes": []}
    for placement in placements:
        if placement == "pinned" and not hasattr(os, "sched_setaffinity"):
            merged["notes"].append("pinned: left out, this system can't keep processes on one core")
            continue
        with tempfile.TemporaryDirectory() as folder, placed(placement):
            part = Path(folder) / "part.json"
            command = [sys.executable, "-m", module, *arguments, "--placement", placement, "--part", str(part)]
            if code := subprocess.call(command, cwd=Path(__file__).parents[2]):
                raise SystemExit(code)
            for key, values in json.loads(part.read_text()).items():
                merged[key] += [value for value in values if key != "notes" or value not in merged[key]]
    return merged

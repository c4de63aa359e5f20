"""Each benchmark runs from its command line to its files. What it measures is not judged here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.contestants.canned_lm import CannedLM
from benchmarks.harness.processes import cpu_s, usable_cores

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).parents[3]
SCRIPTS = ["calls", "throughput", "payload", "starts", "dspy_calls", "evaluate", "streams"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A benchmark, as a user starts it."""
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=55)


def numbers(value: Any) -> list[float]:
    """Every number in a JSON value."""
    if isinstance(value, dict):
        return [number for each in value.values() for number in numbers(each)]
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_prints_its_goals_and_writes_rows_with_machine_and_versions(script: str, tmp_path: Path) -> None:
    options = ["--scale", "smoke", "--no-peers", "--placement", "unpinned", "--start-method", "spawn"]
    done = run(f"benchmarks.{script}", *options, "--no-plot", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "\ngoals\n" in done.stdout
    result = json.loads((tmp_path / f"{script}.json").read_text())
    assert result["benchmark"] == script
    assert result["scale"] == "smoke"
    assert result["machine"]["cores"] == len(usable_cores())
    assert result["versions"]["dspool"]
    assert {row["kind"] for row in result["rows"]} >= {"dspool"}
    assert {row["placement"] for row in result["rows"]} == {"unpinned"}
    assert {goal["verdict"] for goal in result["goals"]} <= {"met", "missed", "not measured"}
    assert all(math.isfinite(number) for number in numbers(result["rows"]))
    assert str(ROOT) not in json.dumps(result)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_how_to_run_it_and_how_to_read_it(script: str) -> None:
    done = run(f"benchmarks.{script}", "--help")
    assert done.returncode == 0, done.stderr
    assert f"python -m benchmarks.{script}" in done.stdout
    assert "How to read it" in done.stdout


def test_the_canned_lm_answers_dspy_and_counts_its_requests() -> None:
    code = (
        "import sys, dspy\n"
        "lm = dspy.LM('openai/stub', api_base=sys.argv[1], api_key='k', cache=False)\n"
        "with dspy.context(lm=lm):\n"
        "    print(dspy.ChainOfThought('question -> answer')(question='two?').answer)\n"
    )
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "true"}
    with CannedLM() as lm:
        command = [sys.executable, "-c", code, lm.url]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=50)
        assert done.stdout.strip() == "It is four.", done.stderr
        assert lm.set_latency(0.0) == 1
        assert 0 < lm.cpu_s() < 10


def test_a_process_that_is_gone_has_used_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    assert cpu_s([child.pid]) == 0.0
    assert cpu_s([os.getpid()]) > 0.0

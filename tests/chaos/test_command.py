"""The command around the scenarios: what it prints, what it exits with, and that Ctrl-C leaves nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from tests.chaos import catalogue, command, report
from tests.chaos.finding import Finding, Plan, Size

ROOT = Path(__file__).parents[2]
DEADLINE_S = 30.0
GOOD = Finding(
    scenario="good",
    seed=3,
    done={"calls": 12_000, "kills": 7},
    lost={"wrong_answers": 0},
    left={"processes": 0},
    measured={"healed_ms": 12.345},
    missed=("something took longer than it should",),
)
BAD = Finding(scenario="bad", seed=3, done={}, lost={"wrong_answers": 0}, left={"processes": 2})


@pytest.fixture
def two_scenarios(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """`good` and `bad` in place of the real ones. Gives the plans they were run with."""
    plans: list[Plan] = []

    def found(finding: Finding) -> catalogue.Scenario:
        def scenario(plan: Plan) -> Finding:
            plans.append(plan)
            return finding

        return scenario

    monkeypatch.setattr(catalogue, "names", lambda: ["bad", "good"])
    monkeypatch.setattr(catalogue, "scenario", {"good": found(GOOD), "bad": found(BAD)}.__getitem__)
    return plans


@pytest.mark.unit
def test_the_table_has_every_number_and_each_missed_goal() -> None:
    text = report.table([GOOD, BAD])
    for words in ("12,000 calls", "7 kills", "0 wrong answers", "2 processes", "12.3 healed ms", "seed 3"):
        assert words in text
    assert "missed: something took longer than it should" in text
    assert text.splitlines()[-1] == "2 scenarios: FAILED: bad; goals missed: 1"


@pytest.mark.unit
def test_a_missed_goal_fails_nothing(two_scenarios: list[Plan], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = CliRunner().invoke(command.main, ["good", "--seed", "3", "--size", "chaos", "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert [(plan.seed, plan.size) for plan in two_scenarios] == [(3, Size.CHAOS)]
    (found,) = json.loads(out.read_text())
    assert found["done"] == GOOD.done
    assert found["failed"] is False


@pytest.mark.unit
def test_whatever_is_lost_or_left_ends_in_exit_code_1(two_scenarios: list[Plan]) -> None:
    result = CliRunner().invoke(command.main, [])
    assert result.exit_code == 1
    assert len(two_scenarios) == 2


@pytest.mark.unit
def test_an_unknown_scenario_is_a_wrong_use_that_names_the_known(two_scenarios: list[Plan]) -> None:
    result = CliRunner().invoke(command.main, ["storms"])
    assert result.exit_code == 2
    assert "there is no scenario 'storms'; there are bad, good" in result.output
    assert two_scenarios == []


@pytest.mark.unit
@pytest.mark.parametrize("name", catalogue.names())
def test_each_scenario_says_in_the_help_what_it_does(name: str) -> None:
    assert callable(catalogue.scenario(name))
    assert len(catalogue.gist(name)) > 20
    assert catalogue.gist(name) in re.sub(r"\s+", " ", CliRunner().invoke(command.main, ["--help"]).output)


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the scenarios look into /proc")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_a_run_and_leaves_nothing(tmp_path: Path, no_leaks: None, signum: int) -> None:
    run = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos", "kill_storm", "--size", "soak"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    with run:
        assert run.stderr is not None
        while "calls" not in run.stderr.readline():  # until it is in the middle of it
            assert run.poll() is None
        started = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(signum)
        _, errors = run.communicate(timeout=DEADLINE_S)
    assert run.returncode == command.INTERRUPTED, errors
    assert "interrupted" in errors
    assert started
    _, alive = psutil.wait_procs(started, timeout=DEADLINE_S)
    assert alive == []
    assert list(tmp_path.iterdir()) == []

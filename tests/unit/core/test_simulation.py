"""The simulator: a few dozen seeds, the seeds that found bugs, what is seen in them, and its command."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspool.testing import simulator
from dspool.testing.simulation import FAULT_MOVES, FAULTS, SimWorld
from dspool.testing.simulator import ALL_MOVES, Tally, simulate

pytestmark = pytest.mark.unit


def kept_seeds() -> list[tuple[int, int]]:
    """(seed, steps) of every line of seeds.txt."""
    lines = (Path(__file__).parent / "seeds.txt").read_text().splitlines()
    fields = [line.split() for line in lines if line and not line.startswith("#")]
    return [(int(seed), int(steps)) for seed, steps, *_ in fields]


@pytest.mark.parametrize("seed", range(10_000, 10_024))
def test_a_seed_holds_and_its_second_run_has_the_same_trace(seed: int) -> None:
    assert simulate(seed, 120).failures == []


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "steps"), kept_seeds())
def test_a_seed_that_once_found_a_bug_holds(seed: int, steps: int) -> None:
    assert simulate(seed, steps).failures == []


def test_different_seeds_have_different_traces() -> None:
    assert SimWorld(1, 50).run() != SimWorld(2, 50).run()


@pytest.mark.slow
def test_most_moves_of_the_state_tables_and_of_faults_are_seen_in_a_few_seeds() -> None:
    tally = simulator.simulate_all(range(20_000, 20_024), 200)
    assert tally.failures == []
    assert len(tally.moves & ALL_MOVES) > 0.8 * len(ALL_MOVES)
    assert len(tally.fault_moves) > 0.7 * len(FAULT_MOVES)
    assert tally.summary(1.0).startswith("24 seeds, each twice")


def test_a_move_is_a_fault_or_a_fault_and_the_state_it_struck_in_and_the_rest_is_named_as_not_seen() -> None:
    assert set(FAULTS) < FAULT_MOVES
    assert "death: checking" in FAULT_MOVES
    tally = simulate(3, 40)
    unseen = tally.unseen()
    assert len(unseen) == len(ALL_MOVES | FAULT_MOVES) - len(tally.moves & ALL_MOVES) - len(tally.fault_moves)
    assert "WorkerState draining -> gone" in unseen


def test_a_move_that_is_not_in_the_list_is_an_error() -> None:
    with pytest.raises(AssertionError, match="not in the list of moves"):
        SimWorld(1)._note("death", "of boredom")


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_says_in_one_line_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulator.main(["--seed", "3", "--steps", "40"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("1 seeds, each twice, in ")
    assert f"of {len(ALL_MOVES)} moves and" in line


def test_a_verbose_replay_prints_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulator.main(["--seed", "3", "--steps", "40", "--verbose"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 40


def test_a_failing_seed_makes_the_command_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(simulator, "simulate", lambda seed, steps: Tally(seeds=1, steps=1, failures=["seed 3: broken"]))
    assert simulator.main(["--seed", "3"]) == 1
    assert "seed 3: broken" in capsys.readouterr().err

"""The simulator: a few dozen seeds, the seeds that found bugs, and that it tells a broken core from a sound one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dspool.pool.core import commands as c
from dspool.pool.core.dispatch import Dispatch
from dspool.pool.core.endings import Endings
from dspool.pool.core.fleet import Fleet
from dspool.pool.core.records import Group, Lease, Worker
from dspool.pool.core.upkeep import Upkeep
from dspool.testing import simulator
from dspool.testing.simulation import SimulationFailure, SimWorld
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
def test_most_moves_of_the_state_tables_and_most_faults_are_seen_in_a_few_seeds() -> None:
    tally = simulator.simulate_all(range(20_000, 20_012), 200)
    assert tally.failures == []
    assert len(tally.moves & ALL_MOVES) > 0.8 * len(ALL_MOVES)
    assert len(tally.injected) > 20
    assert tally.summary(1.0).startswith("12 seeds, each twice")


# --- it can fail ------------------------------------------------------------------------------------------------------


def _lets_a_cancelled_slot_leak(self: Endings, worker: Worker | None, index: int) -> None:
    return


_refuse = Dispatch._refuse


def _refuses_silently(self: Dispatch, lease: Lease, refusal: c.Refusal) -> None:
    _refuse(self, lease, refusal)
    self._effects.remove(c.Reject(lease.lease_id))


def _starts_too_many(self: Fleet, group: Group) -> bool:
    return group.lendable < group.size + 3


def _retires_at_once(self: Upkeep, worker: Worker) -> None:
    assert worker.due is not None
    self._retire(worker, worker.due)


def _trusts_everybody(self: Endings, lease: Lease, worker: Worker, why: Any) -> None:
    self._end(lease)
    self._give_back(worker, lease.slot)


def _never_half_opens(self: Upkeep, number: int) -> None:
    return


MUTANTS: list[tuple[type, str, Callable[..., Any], str]] = [
    (Endings, "_give_back", _lets_a_cancelled_slot_leak, "law 1"),
    (Dispatch, "_refuse", _refuses_silently, "granted or refused"),
    (Fleet, "_wants_more", _starts_too_many, "law 4"),
    (Upkeep, "_await_replacement", _retires_at_once, "law 6"),
    (Endings, "_give_up", _trusts_everybody, "law 5"),
    (Upkeep, "_half_open", _never_half_opens, "open"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "name", "mutant", "said"), MUTANTS, ids=[mutant[1] for mutant in MUTANTS])
def test_a_broken_core_is_caught_and_the_failure_says_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, layer: type, name: str, mutant: Callable[..., Any], said: str
) -> None:
    monkeypatch.setattr(layer, name, mutant)
    seeds = iter(range(40))
    with pytest.raises(SimulationFailure) as caught:
        all(SimWorld(seed).run() for seed in seeds)
    seed = next(seeds) - 1
    message = str(caught.value)
    assert said in message.splitlines()[0]
    assert f"replay: python -m dspool.testing.simulator --seed {seed} --steps 300 --verbose" in message


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_says_in_one_line_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulator.main(["--seed", "3", "--steps", "40"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("1 seeds, each twice, in ")
    assert f"of {len(ALL_MOVES)} moves seen" in line


def test_a_verbose_replay_prints_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulator.main(["--seed", "3", "--steps", "40", "--verbose"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 40


def test_a_failing_seed_makes_the_command_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(simulator, "simulate", lambda seed, steps: Tally(seeds=1, steps=1, failures=["seed 3: broken"]))
    assert simulator.main(["--seed", "3"]) == 1
    assert "seed 3: broken" in capsys.readouterr().err

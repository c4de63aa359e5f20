"""From times to figures."""

from __future__ import annotations

import pytest

from benchmarks.harness.samples import Samples, ratio

pytestmark = pytest.mark.unit


def samples(*rounds: list[float], cpu_s: float = 0.0) -> Samples:
    """Samples with these rounds, each of which used `cpu_s`."""
    made = Samples()
    for times in rounds:
        made.add(times, cpu_s)
    return made


def test_percentiles_are_of_all_rounds_together() -> None:
    made = samples([float(number) for number in range(1, 51)], [float(number) for number in range(51, 102)])
    assert made.percentile(50) == 51.0
    assert made.percentile(99) == pytest.approx(100.0)


def test_one_sample_is_every_percentile() -> None:
    assert samples([0.25]).percentile(99) == 0.25


def test_no_samples_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no samples"):
        samples().percentile(50)


def test_a_round_without_calls_is_no_round() -> None:
    assert samples([], [1.0]).medians == [1.0]


def test_cpu_is_per_call_over_all_rounds() -> None:
    row = samples([1.0, 1.0], [1.0, 1.0], cpu_s=2.0).row(1e3, "ms")
    assert row["cpu_ms"] == 1000.0
    assert row["samples"] == 4


def test_equal_rounds_do_not_spread_and_others_do() -> None:
    assert samples([1.0], [1.0]).spread_percent == 0.0
    assert samples([1.0], [3.0]).spread_percent == 50.0
    assert samples([1.0, 3.0]).spread_percent == 0.0


def test_a_ratio_is_taken_round_by_round_so_a_slow_round_of_both_does_not_move_it() -> None:
    assert ratio([2.0, 200.0, 2.2], [1.0, 100.0, 1.0]) == 2.0


def test_a_ratio_needs_both() -> None:
    with pytest.raises(ValueError, match="samples of both"):
        ratio([], [1.0])

"""Bytes that lie, in both directions: to the manager, to workers and to templates, a million frames at full length.

Most frames go through the decoders alone; 400,000 of a million go through real pipes, 205,000 of them to or from real
workers. The manager must neither crash nor hang nor take memory for what is only claimed.
"""

from __future__ import annotations

import random

from tests.chaos.figures import median, quantile
from tests.chaos.finding import Finding, Plan
from tests.chaos.fuzzing.decoders import fuzz_decoders, fuzz_slot_pipe
from tests.chaos.fuzzing.liars import fuzz_callers
from tests.chaos.fuzzing.records import believe_templates, fuzz_records, fuzz_templates
from tests.chaos.fuzzing.workers import fuzz_workers
from tests.chaos.premises import Premises, resident_bytes
from tests.chaos.tally import Tally

GROWTH_GOAL_MIB = 32.0
REMOVED_P99_MS = 100.0
LOST = ("crashes", "hangs", "wrong_outcomes", "unanswered")


def fuzz(plan: Plan) -> Finding:
    """Lie, in every way that there is a part for."""
    rng, tally = random.Random(plan.seed), Tally(*LOST)
    with Premises() as premises:
        _warm()
        before, peak = resident_bytes(), 0

        def sample() -> None:
            nonlocal peak
            peak = max(peak, resident_bytes())

        for part, amount in (
            (fuzz_decoders, plan.pick(short=2_000, chaos=10_000, soak=600_000)),
            (fuzz_slot_pipe, plan.pick(short=1_000, chaos=4_000, soak=150_000)),
            (fuzz_records, plan.pick(short=500, chaos=2_000, soak=45_000)),
            (fuzz_templates, plan.pick(short=1, chaos=2, soak=50)),
            (believe_templates, plan.pick(short=1, chaos=2, soak=30)),
        ):
            part(amount, rng, tally)
            plan.say(part.__name__)
            sample()
        fuzz_workers(
            plan.pick(short=1_000, chaos=4_000, soak=200_000), plan.pick(short=6, chaos=15, soak=300), rng, tally
        )
        plan.say(fuzz_workers.__name__)
        sample()
        fuzz_callers(plan.pick(short=20, chaos=80, soak=5_000), rng, tally, sample)
        sample()
        left = premises.left()
    removed_ms = tally.times_ms["removed"]
    tally.measure("removed_median_ms", median(removed_ms))
    tally.measure("removed_p99_ms", quantile(removed_ms, 0.99), most=REMOVED_P99_MS)
    tally.measure("removed_max_ms", max(removed_ms, default=0.0))
    tally.measure("growth_mib", max(0, peak - before) / 2**20, most=GROWTH_GOAL_MIB)
    return tally.finding("fuzz", plan, left)


def _warm() -> None:
    """What is imported and kept for ever with the first use of each part is no growth."""
    aside = Tally()
    rng = random.Random(0)
    fuzz_decoders(200, rng, aside)
    fuzz_slot_pipe(200, rng, aside)
    fuzz_callers(4, rng, aside, lambda: None)

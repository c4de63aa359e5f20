"""What a storm comes to, for its scenario's tally."""

from __future__ import annotations

import statistics

from dspool.types import PoolHealth, PoolStats
from tests.chaos.storm.storm import HEAL_GOAL_MS, Storm
from tests.chaos.tally import Tally


def add_storm(
    tally: Tally,
    name: str,
    storm: Storm,
    *,
    stuck: int,
    stats: PoolStats,
    health: PoolHealth,
    excused: frozenset[str] = frozenset(),
) -> None:
    """A storm is over, its pool whole and idle.

    Args:
        tally: what it is added to.
        name: for what was measured.
        storm: which.
        stuck: callers that have not ended.
        stats: of its pool.
        health: of its pool.
        excused: errors that idempotent calls may end with here.
    """
    audit, killer = storm.books.audit(), storm.killer
    tally.done.update(audit.done())
    tally.done.update({"kills": killer.count, "stops": killer.stops, "retries": stats.retries})
    tally.done.update({f"killed_{state}": count for state, count in sorted(killer.kills.items())})
    tally.lost.update(audit.lost(excused=excused))
    tally.lost.update(
        {
            "callers_stuck": stuck,
            "never_whole_again": storm.weak + (health.status != "healthy"),
            "leases_left": stats.leased + stats.waiting,
        }
    )
    waits = {
        "healed": storm.healed_ms,
        "healed_idle": storm.healed_idle_ms,
        "healed_new_template": storm.healed_new_template_ms,
    }
    for text, healed_ms in waits.items():
        if healed_ms:
            tally.measure(f"{name}_{text}_ms_median", statistics.median(healed_ms))
            tally.measure(f"{name}_{text}_ms_max", max(healed_ms))
            late = sum(each > HEAL_GOAL_MS for each in healed_ms)
            if late and healed_ms is not storm.healed_new_template_ms:
                tally.missed.append(
                    f"{name}: {late} of {len(healed_ms)} times it took longer than {HEAL_GOAL_MS} ms from the last "
                    f"kill to full strength ({text}), at most {max(healed_ms):,.0f}"
                )

"""What the storms of a scenario come to, as one finding."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from dspool.types import PoolHealth, PoolStats
from tests.chaos.finding import Finding, Plan
from tests.chaos.storm.storm import HEAL_GOAL_MS, Storm


@dataclass
class Tally:
    """Storms added up.

    Attributes:
        measured: by the storm's name.
    """

    done: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    measured: dict[str, float] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)

    def add(
        self,
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
            name: for what was measured.
            storm: which.
            stuck: callers that have not ended.
            stats: of its pool.
            health: of its pool.
            excused: errors that idempotent calls may end with here.
        """
        audit, killer = storm.books.audit(), storm.killer
        self.done.update(audit.done())
        self.done.update({"kills": killer.count, "stops": killer.stops, "retries": stats.retries})
        self.done.update({f"killed_{state}": count for state, count in sorted(killer.kills.items())})
        self.lost.update(audit.lost(excused=excused))
        self.lost.update(
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
                self.measured[f"{name}_{text}_ms_median"] = statistics.median(healed_ms)
                self.measured[f"{name}_{text}_ms_max"] = max(healed_ms)
                late = sum(each > HEAL_GOAL_MS for each in healed_ms)
                if late and healed_ms is not storm.healed_new_template_ms:
                    self.missed.append(
                        f"{name}: {late} of {len(healed_ms)} times it took longer than {HEAL_GOAL_MS} ms from the last "
                        f"kill to full strength ({text}), at most {max(healed_ms):,.0f}"
                    )

    def finding(self, scenario: str, plan: Plan, left: Mapping[str, int]) -> Finding:
        """All of it."""
        return Finding(
            scenario=scenario,
            seed=plan.seed,
            done=dict(self.done),
            lost=dict(self.lost),
            left=left,
            measured=self.measured,
            missed=tuple(self.missed),
        )

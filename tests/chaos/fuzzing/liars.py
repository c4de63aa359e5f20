"""Workers of a real pool that lie to their callers: each is removed, and its caller gets a typed error."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspool
from tests.chaos.lies import LARGE, LIES, VALUE, become_liar, lie
from tests.chaos.tally import Tally

WORKERS = 4
TIMEOUT_S = 30.0
SAMPLED_EVERY = 50


def echo(value: Any) -> Any:
    """What honest workers are asked."""
    return value


def fuzz_callers(count: int, rng: random.Random, tally: Tally, sample: Any) -> None:
    """Have so many workers lie, in all ways, to as many callers at a time as there are workers.

    Args:
        count: how many.
        rng: where their seeds come from.
        tally: what is counted.
        sample: called now and then, with nothing else to do.
    """
    lies = [(list(LIES)[number % len(LIES)], rng.getrandbits(32)) for number in range(count)]
    lock, ends = threading.Lock(), Ends()
    with dspool.Pool(workers=WORKERS, timeout_s=TIMEOUT_S, on_event=ends) as pool:

        def tell(number: int) -> None:
            name, seed = lies[number]
            found, removed_ms = _tell(pool, name, seed)
            with lock:
                tally.done["lies_to_a_caller"] += 1
                if removed_ms is not None:
                    tally.time("removed", removed_ms)
                if found:
                    tally.complain("wrong_outcomes", f"{name}, seed {seed}: {found}")
                if number % SAMPLED_EVERY == 0:
                    sample()

        with ThreadPoolExecutor(WORKERS) as callers:
            for _ in callers.map(tell, range(count)):
                pass
        if pool.run(echo, {"value": 1}) != 1 or not _full(pool):
            tally.complain("wrong_outcomes", "the pool is not as before")
        if odd := {reason: number for reason, number in ends.reasons.items() if reason not in REASONS}:
            tally.complain("wrong_outcomes", f"workers ended otherwise: {odd}")


REASONS = ("protocol_error", "removed")
"""Of workers that lie: in answer to a call, or when nobody had asked."""


class Ends:
    """An on_event hook that counts why workers end."""

    def __init__(self) -> None:
        self.reasons: dict[str, int] = {}

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        if event in ("worker.ended", "worker.lost") and (reason := fields["report"].reason) != "stopped":
            self.reasons[reason] = self.reasons.get(reason, 0) + 1


def _tell(pool: dspool.Pool, name: str, seed: int) -> tuple[str, float | None]:
    """Make a worker a liar, and ask it something: what is wrong with what came of it, and how long the end took."""
    told = lie(name, seed, 1)
    try:
        with pool.checkout() as lease:
            lease.run(become_liar, {"name": name, "seed": seed})
            began = time.monotonic()
            try:
                value = lease.run(echo, {"value": LARGE if told.early else 1})
            except dspool.WorkerLost as error:
                took_ms = (time.monotonic() - began) * 1000
                if told.outcome == "value":
                    return f"{error}", took_ms
                if error.report is None or error.report.reason != "protocol_error":
                    return f"reported as {error.report}", took_ms
                return "", took_ms
            except dspool.ProgramError:
                value = VALUE
            lease.remove("it was asked to lie")
    except Exception as error:
        return repr(error), None
    if told.outcome == "error" or (told.outcome == "value" and value != VALUE):
        return f"gave {value!r:.200}", None
    return "", None


def _full(pool: dspool.Pool) -> bool:
    pool.wait_ready(WORKERS, timeout_s=TIMEOUT_S)
    return pool.health().status == "healthy"

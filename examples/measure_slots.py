"""How many calls a second: for calls that wait and calls that compute, on one worker, on many slots, on two workers.

Put your own program and rows in their place, and your own LM in that of the stub.
"""

import time
from typing import Any

import dspool
from dspool.testing.stub_lm import StubLM


def compute(n: int) -> int:
    """A few milliseconds of Python."""
    return sum(number * number for number in range(30_000 + n))


def calls_a_second(pool: dspool.Pool, program: Any, rows: list[dict[str, Any]]) -> float:
    """Through a pool that is warm."""
    list(pool.map(program, rows[:4]))
    began = time.monotonic()
    list(pool.map(program, rows))
    return len(rows) / (time.monotonic() - began)


def say_what_is_short(pool: dspool.Pool) -> None:
    """Of a pool that has worked for a while."""
    stats = pool.stats()
    print("  queue, s a call:", round(stats.queue_wait_s_sum / max(1, stats.granted), 4))
    print("  run, s a call:", round(stats.run_s_sum / max(1, stats.calls_ok + stats.calls_failed), 4))
    print("  waiting now:", stats.waiting, "of", pool.options.max_waiting)


def measure(lm: Any, calls: int) -> None:
    """One line for each choice."""
    questions = [{"question": f"why {n}?"} for n in range(calls)]
    numbers = [{"n": n} for n in range(10 * calls)]
    print(f"{'workers':>7} {'slots':>5} {'LM, calls/s':>12} {'CPU, calls/s':>13}")
    for workers, slots in [(1, 1), (1, 16), (2, 1)]:
        with dspool.Pool(workers=workers, slots=slots, lm=lm, cache=False) as pool:
            waiting = calls_a_second(pool, "question -> answer", questions)
            computing = calls_a_second(pool, compute, numbers)
            print(f"{workers:>7} {slots:>5} {waiting:>12.0f} {computing:>13.0f}")
            if workers * slots == 1:
                say_what_is_short(pool)


with StubLM(latency=0.05, process=True) as stub:  # 50 ms an answer
    measure(stub.settings(), calls=16)

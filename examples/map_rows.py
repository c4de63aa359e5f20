"""Many rows, some of them bad: one fails, one takes its worker down, and the others don't notice."""

import os

import dspool


def work(n: int) -> int:
    """Row 3 has a bug, row 5 ends its process as a crash in a C library would."""
    if n == 3:
        raise ValueError("three is a bad number")
    if n == 5:
        os._exit(1)
    return n * n


with dspool.Pool(workers=2) as pool:
    rows = [{"n": n} for n in range(8)]
    for row, result in zip(rows, pool.map(work, rows, return_exceptions=True), strict=True):
        print(row["n"], "->", f"{type(result).__name__}" if isinstance(result, Exception) else result)
    pool.wait_ready()
    stats = pool.stats()
print(f"{stats.calls_ok} ok, {stats.calls_failed} failed, {stats.calls_lost} lost, {stats.replaced} worker replaced")

"""Code written for dspy.Parallel, over a pool: rows that fail, a row that hangs, and the pool's own map."""

import logging
import time

import dspy

import dspool

logging.getLogger("dspy.utils.parallelizer").setLevel(logging.CRITICAL)  # one line for each failed row


class Halve(dspy.Module):
    """Stands for a program that works, fails, or never ends."""

    def forward(self, n: int) -> dspy.Prediction:
        """Half of a number."""
        if n == 5:
            time.sleep(600)
        if n % 2:
            raise ValueError(f"{n} is odd")
        return dspy.Prediction(half=n // 2)


def in_threads(program: dspy.Module, rows: list[dspy.Example]) -> None:
    """Before; and after, when the program is wrapped."""
    parallel = dspy.Parallel(num_threads=4, max_errors=10, return_failed_examples=True, disable_progress_bar=True)
    results, failed, errors = parallel([(program, row) for row in rows])
    print("results:", [result and result.half for result in results])
    print("failed:", sorted((row.n, type(error).__name__) for row, error in zip(failed, errors, strict=True)))


def in_a_map(pool: dspool.Pool, program: dspy.Module, rows: list[dspy.Example]) -> None:
    """The same without threads, and without a list of all results."""
    errors = 0
    for row, result in zip(rows, pool.map(program, rows, timeout_s=60, return_exceptions=True), strict=True):
        if isinstance(result, dspool.DspoolError):
            errors += 1
            print(f"{row.n}: {type(result).__name__}")
        if errors >= 10:  # max_errors
            break  # and what runs is cancelled


rows = [dspy.Example(n=n).with_inputs("n") for n in range(7)]
no_hang = [row for row in rows if row.n != 5]
with dspool.Pool(workers=2) as pool:
    in_threads(Halve(), no_hang)

    program = pool.wrap(Halve(), timeout_s=5)  # the one line that is new
    in_threads(program, rows)
    halves = program.batch(rows[::2], num_threads=4, disable_progress_bar=True)
    print("batch:", [prediction.half for prediction in halves])

    in_a_map(pool, Halve(), no_hang)

"""Code written for concurrent.futures, over a pool: an initializer, map, a call that is cancelled, one that crashes."""

import concurrent.futures
import os
import signal
import time

import dspool

scale = 1


def prepare(factor: int) -> None:
    """Once in each worker: open connections, load models."""
    global scale
    scale = factor


def work(number: int) -> int:
    return number * scale


def hang() -> None:
    time.sleep(1000)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


with dspool.Executor(max_workers=2, initializer=prepare, initargs=(10,)) as executor:
    print("mapped:", list(executor.map(work, range(5), chunksize=2)))

    hanging, crashing = executor.submit(hang), executor.submit(crash)
    fine = [executor.submit(work, number) for number in range(3)]
    print("cancelled:", hanging.cancel(), hanging.cancelled())  # it ends, whether it runs or not
    print("done:", sorted(future.result() for future in concurrent.futures.as_completed(fine)))
    print("its own call alone:", type(crashing.exception()).__name__)
    print("and on:", executor.submit(work, 7).result())

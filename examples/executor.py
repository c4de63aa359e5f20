"""Code written for concurrent.futures, over a pool: an initializer, map, a call that is cancelled, one that crashes."""

import concurrent.futures
import os
import signal
import time

import dspool

scale = 1


def prepare(factor: int) -> None:  # once in each worker, before its first call
    global scale
    scale = factor


def work(number: int) -> int:
    return number * scale


def main(numbers: list[int]) -> None:
    with dspool.Executor(max_workers=2, initializer=prepare, initargs=(10,)) as executor:
        futures = [executor.submit(work, number) for number in numbers]
        print("done:", sorted(future.result() for future in concurrent.futures.as_completed(futures)))
        print("mapped:", list(executor.map(work, numbers, chunksize=100, timeout=60)))


main([0, 1, 2, 3, 4])


def hang() -> None:
    time.sleep(1000)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


with dspool.Executor(max_workers=2) as executor:
    hanging, crashing = executor.submit(hang), executor.submit(crash)
    fine = [executor.submit(abs, -number) for number in range(3)]
    print("cancelled:", hanging.cancel(), hanging.cancelled())  # it ends, whether it runs or not
    print("next to it:", sorted(future.result() for future in concurrent.futures.as_completed(fine)))
    print("its own call alone:", type(crashing.exception()).__name__)
    print("and on:", executor.submit(abs, -7).result())

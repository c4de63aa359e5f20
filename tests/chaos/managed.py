"""A manager to be killed: a pool whose workers do all that workers do, said line by line on stdout.

    python -m tests.chaos.managed START_METHOD DOOR PROGRAM,... [churn]

Says "opening", then "open"; runs each program, by its name in `hanging`, in a worker of its own, with IDLE workers
beside them; says "busy" once all have begun. With "churn" idle workers are killed one after the other from then on, so
that at any moment some are being started. A line on stdin is answered with the workers' pids; at its end it closes.
"""

from __future__ import annotations

import sys
import threading
import warnings

import structlog

import dspool
from tests.chaos import hanging

IDLE = 2


def main() -> None:
    """See the module's docstring."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    warnings.simplefilter("ignore")
    start_method, door, names, *words = sys.argv[1:]
    programs = [getattr(hanging, name) for name in names.split(",") if name]
    say("opening")
    with dspool.Pool(workers=len(programs) + IDLE, start_method=start_method, timeout_s=None, grace_s=0.2) as pool:
        say("open")
        for program in programs:
            threading.Thread(target=pool.run, args=(program, {"door": door}), daemon=True).start()
        while pool.stats().busy < len(programs):
            threading.Event().wait(0.001)
        say("busy")
        if "churn" in words:
            threading.Thread(target=churn, args=(pool,), daemon=True).start()
        for _ in sys.stdin:
            say(" ".join(str(worker.pid) for worker in pool.workers()))


def churn(pool: dspool.Pool) -> None:
    """Kill idle workers for ever, each as soon as the last one is replaced."""
    while True:
        for worker in pool.workers():
            if worker.state == "idle":
                pool.kill(worker.worker_id)
                break
        pool.wait_ready(timeout_s=10)


def say(line: str) -> None:
    """Say a line."""
    print(line, flush=True)


if __name__ == "__main__":
    main()

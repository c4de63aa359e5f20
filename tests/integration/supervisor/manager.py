"""A manager to be killed: starts workers of every kind, prints "name pid" for each process, and waits.

Arguments: the backend, then what to do besides ("fork": fork a bystander once the workers are up).
"""

from __future__ import annotations

import os
import signal
import sys

import anyio

from dspool.supervisor.life import Phase
from tests.integration.supervisor.harness import BACKENDS, Lab, lab


def show(name: str, pid: int | None) -> None:
    print(name, pid, flush=True)


async def start_all(tests: Lab) -> None:
    idle, spinning, holding = [await tests.ready("ignore_sigterm ignore_eof") for _ in range(3)]
    show("grandchild", int(await tests.order(idle, "grandchild")))
    show("idle", idle.pid)
    assert await tests.order(spinning, "spin") == "spinning"
    show("spinning", spinning.pid)
    assert await tests.order(holding, "hold_gil") == "holding"
    show("holding", holding.pid)
    starting = tests.supervisor._workers
    for _ in range(2):
        worker_id = tests.start("boot_silent")
        while starting[worker_id].phase is not Phase.BOOTING:
            await anyio.lowlevel.checkpoint()
        show("starting", starting[worker_id].pid)


async def main(words: set[str]) -> None:
    async with lab() as tests:
        await start_all(tests)
        if "fork" in words:
            bystander = os.fork()
            if bystander == 0:
                signal.pause()
            show("bystander", bystander)
        show("manager", os.getpid())
        await anyio.sleep_forever()


if __name__ == "__main__":
    name, options = BACKENDS[sys.argv[1]]
    anyio.run(main, set(sys.argv[2:]), backend=name, backend_options=options)

"""The same pool for asyncio and trio: the names, arguments and errors are those of dspool.Pool."""

import asyncio
import os
import time

import dspool


def work(n: int) -> dict[str, int]:
    """A plain function is a program too. What a script defines goes to the workers by value."""
    return {"n": n, "square": n * n, "pid": os.getpid()}


def dawdle() -> None:
    """Takes longer than anybody wants to wait."""
    time.sleep(60)


async def main() -> None:
    """Calls at the same time, a map, and a call that takes too long."""
    async with dspool.AsyncPool(workers=2) as pool:
        answers = await asyncio.gather(*(pool.run(work, {"n": n}) for n in range(4)))
        print("squares:", [answer["square"] for answer in answers])
        async for answer in pool.map(work, ({"n": n} for n in range(4, 8))):
            print(answer["n"], "->", answer["square"])
        try:
            await pool.run(dawdle, {}, timeout_s=0.2)
        except dspool.CallTimeout as error:
            print("too slow:", error.report.reason if error.report else "no report")


asyncio.run(main())

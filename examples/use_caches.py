"""Caches: answers that workers share, a call and a pool without them, and tenants that must not see each other's."""

import tempfile
from pathlib import Path
from typing import Any

import dspool
from dspool.testing.stub_lm import StubLM

PROGRAM = "question -> answer"
ASK = {"question": "why is the sky blue?"}


def asked_once(folder: Path, lm: dict[str, Any]) -> None:
    with dspool.Pool(workers=2, lm=lm, cache=folder) as pool:
        with pool.checkout() as first, pool.checkout() as second:  # two workers
            first.run(PROGRAM, ASK)
            second.run(PROGRAM, ASK)  # from the folder: the first one has asked
        print("two workers, one request:", stub.stats().requests == 1)

        pool.run(PROGRAM, ASK, lm={**lm, "cache": False})
        print("a call without it:", stub.stats().requests, "requests")

    with dspool.Pool(workers=1, lm=lm, cache=folder, cache_namespace="blue") as pool:
        pool.run(PROGRAM, ASK)  # what others were answered is not for this tenant
        print("another tenant:", stub.stats().requests, "requests")

    with dspool.Pool(workers=1, lm=lm, cache=False) as pool:
        pool.run(PROGRAM, ASK)
        pool.run(PROGRAM, ASK)
        print("off:", stub.stats().requests, "requests")


with tempfile.TemporaryDirectory() as folder, StubLM() as stub:
    asked_once(Path(folder) / "answers", stub.settings(cache=True))

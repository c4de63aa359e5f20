"""Sessions: calls with the same key go to the same worker, which may keep something for them."""

import os

import dspool

index: dict[str, list[str]] = {}


def remember(user: str, note: str) -> list[str]:
    """`index` is the worker's own copy; it lives as long as the worker."""
    index.setdefault(user, []).append(note)
    return index[user]


def talk(pool: dspool.Pool, user: str, note: str) -> list[str]:
    notes: list[str] = pool.run(remember, {"user": user, "note": note}, session=user, on_session_lost="error")
    return notes


def in_one_go(pool: dspool.Pool, user: str, notes: list[str]) -> None:
    with pool.checkout(session=user, hold_s=30) as lease:
        for note in notes:
            lease.run(remember, {"user": user, "note": note})


with dspool.Pool(workers=2, affinity="strict") as pool:
    first = pool.run(os.getpid, {}, session="ada")
    in_one_go(pool, "ada", ["likes tea", "lives in London"])
    print("kept:", talk(pool, "ada", "has a cat"))
    print("same process:", pool.run(os.getpid, {}, session="ada") == first)

    (worker,) = [worker for worker in pool.workers() if worker.pid == first]
    pool.kill(worker.worker_id)
    try:
        talk(pool, "ada", "likes cake")
    except dspool.SessionLost as error:
        print("told once:", type(error).__name__)
    print("begins anew:", talk(pool, "ada", "likes cake"))

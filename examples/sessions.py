"""Sessions: calls with the same key go to the same worker, which may keep something for them."""

import os
from typing import Any

import dspool

notes: dict[str, list[str]] = {}
"""Each worker has its own, which starts as it is here."""


def remember(user: str, note: str) -> dict[str, Any]:
    """Keep a note in this process and say what is kept here for the user."""
    notes.setdefault(user, []).append(note)
    return {"notes": notes[user], "pid": os.getpid()}


with dspool.Pool(workers=2, affinity="strict") as pool:

    def say(user: str, note: str) -> dict[str, Any]:
        """One call of a user's session."""
        answer: dict[str, Any] = pool.run(remember, {"user": user, "note": note}, session=user, on_session_lost="error")
        return answer

    first, second = say("ada", "likes tea"), say("ada", "lives in London")
    print("same process:", first["pid"] == second["pid"], second["notes"])

    (worker,) = [worker for worker in pool.workers() if worker.pid == first["pid"]]
    pool.kill(worker.worker_id)
    try:
        say("ada", "likes cake")
    except dspool.SessionLost as error:
        print("told once:", type(error).__name__)
    print("begins anew:", say("ada", "likes cake")["notes"])

"""Writes docs/explanation/states.md from the transition tables of the pool's core.

    python docs/draw_states.py            write the page
    python docs/draw_states.py --print    only print it

The arrows are the tables' own. What stands beside an arrow is written here; an arrow without words, or words without
an arrow, is an error. A test fails where the page isn't what this gives.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from dspool.pool.core.states import (
    LEASE_MOVES,
    POOL_MOVES,
    SLOT_MOVES,
    WORKER_MOVES,
    LeaseState,
    PoolState,
    SlotState,
    WorkerState,
)

S = TypeVar("S", bound=enum.StrEnum)

PAGE = Path(__file__).parent / "explanation" / "states.md"

INTRO = """\
# The states of a pool, its workers, slots and leases

<!-- Made by docs/draw_states.py from dspool/pool/core/states.py: change those, not this page. -->

Everything the pool knows is in four kinds of rows, each in exactly one state. A move that has no arrow here raises
inside the core and changes nothing; the tests try each of them.
"""

WORKER = """\
## Worker

One process. It is marked *draining*, *stopping* or *gone* in the same step that decides so, which is why nothing can be
granted to it afterwards. Users see `WorkerInfo.state`, where *ready* is called *idle* while one of its slots is idle,
and *busy* while none is.
"""

SLOT = """\
## Slot

The right to run one call at a time in a worker; there is one pipe per slot. It is *leased* from the instant the grant
is decided, not from when the caller wakes. A slot whose pipe still owes an answer is never idle: it is *cancelling* or
*abandoned* until that answer was read and dropped.
"""

LEASE = """\
## Lease

A call's right to a slot, from checkout to checkin. It goes back to *queued* when its worker turns out to be dead, or is
removed or skipped before anything was sent; it keeps its place in the queue, and the caller sees nothing.
"""

POOL = """\
## Pool

A paused pool is *open*: pausing only holds grants back.
"""

GONE = "its process is gone"

WORKER_WORDS = {
    (WorkerState.STARTING, WorkerState.READY): "handshake answered, warm programs loaded",
    (WorkerState.STARTING, WorkerState.STOPPING): "too slow, unwell, or not wanted any more, killed",
    (WorkerState.STARTING, WorkerState.GONE): "could not start",
    (WorkerState.READY, WorkerState.DRAINING): "replaced, resized away, idle overflow, pool closing",
    (WorkerState.READY, WorkerState.STOPPING): "removed, timed out, cancelled, hung, killed",
    (WorkerState.READY, WorkerState.GONE): "died by itself",
    (WorkerState.DRAINING, WorkerState.STOPPING): "its last call is over, or it is killed",
    (WorkerState.DRAINING, WorkerState.GONE): "died by itself",
    (WorkerState.STOPPING, WorkerState.GONE): "its exit is known",
}

SLOT_WORDS = {
    (SlotState.IDLE, SlotState.LEASED): "granted",
    (SlotState.IDLE, SlotState.CLOSED): GONE,
    (SlotState.LEASED, SlotState.IDLE): "checked in, or given up before anything was sent",
    (SlotState.LEASED, SlotState.CANCELLING): "given up after a send, the call can be cancelled",
    (SlotState.LEASED, SlotState.ABANDONED): "given up after a send, the worker has other slots",
    (SlotState.LEASED, SlotState.CLOSED): "its worker is killed or gone",
    (SlotState.CANCELLING, SlotState.IDLE): "the final frame was read",
    (SlotState.CANCELLING, SlotState.CLOSED): GONE,
    (SlotState.ABANDONED, SlotState.IDLE): "the late answer was read and dropped",
    (SlotState.ABANDONED, SlotState.CLOSED): GONE,
}

LEASE_WORDS = {
    (LeaseState.QUEUED, LeaseState.CHECKING): "given a slot, a check hook is asked",
    (LeaseState.QUEUED, LeaseState.GRANTED): "given a slot, there is no hook",
    (LeaseState.QUEUED, LeaseState.CLOSED): "refused, cancelled, timed out",
    (LeaseState.CHECKING, LeaseState.QUEUED): "REMOVE or SKIP",
    (LeaseState.CHECKING, LeaseState.GRANTED): "KEEP",
    (LeaseState.CHECKING, LeaseState.CLOSED): "cancelled, timed out, held too long",
    (LeaseState.GRANTED, LeaseState.QUEUED): "its worker was dead before anything was sent",
    (LeaseState.GRANTED, LeaseState.CLOSED): "checked in, cancelled, timed out, held too long",
}

POOL_WORDS = {
    (PoolState.OPEN, PoolState.DRAINING): "drain()",
    (PoolState.DRAINING, PoolState.OPEN): "resume()",
    (PoolState.OPEN, PoolState.CLOSING): "close()",
    (PoolState.DRAINING, PoolState.CLOSING): "close()",
    (PoolState.CLOSING, PoolState.CLOSED): "the last worker is gone",
}


def diagram(moves: Mapping[S, frozenset[S]], words: Mapping[tuple[S, S], str]) -> str:
    """One table as a Mermaid state diagram; states in the order in which the enum has them.

    Raises:
        ValueError: an arrow has no words, or words have no arrow.
    """
    arrows = [(old, new) for old, news in moves.items() for new in moves if new in news]
    if set(arrows) != set(words):
        raise ValueError(f"arrows and words differ: {set(arrows) ^ set(words)}")
    states = list(moves)
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {states[0]}"]
    lines += [f"    {old} --> {new}: {words[old, new]}" for old, new in arrows]
    lines += [f"    {state} --> [*]" for state in states if not moves[state]]
    return "\n".join([*lines, "```", ""])


def page() -> str:
    """The whole page."""
    parts = [
        INTRO,
        WORKER,
        diagram(WORKER_MOVES, WORKER_WORDS),
        SLOT,
        diagram(SLOT_MOVES, SLOT_WORDS),
        LEASE,
        diagram(LEASE_MOVES, LEASE_WORDS),
        POOL,
        diagram(POOL_MOVES, POOL_WORDS),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    if "--print" in sys.argv[1:]:
        sys.stdout.write(page())
    else:
        PAGE.write_text(page(), encoding="utf-8")

"""What goes into the core (commands) and what comes out (effects).

A command is a fact or a wish; it is legal at any time, also about workers and leases that are gone. An effect is an
order to the driver. Times are absolute: monotonic seconds. `inf` is "no deadline".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from dspool.types import KEEP, Affinity, ExitReason, ExitReport, Verdict

INFINITY = float("inf")
AT_ONCE = -INFINITY
"""The deadline of a checkout that never waits. It gets a worker that is idle in its own step, or in the step of a
verdict on the one it got; or none. Any time computed before the step would be over by then."""

Outcome = Literal["ok", "failed", "lost", "none"]
"""How a run ended: its answer came; its program raised (the worker is healthy); its worker was lost; nothing ran."""

# --- commands -------------------------------------------------------------------------------------------------------


class Checkout(msgspec.Struct, gc=False):
    """A call wants a slot. `call_id` is its place in the queue: a retry keeps the call_id of the first try."""

    lease_id: int
    call_id: int
    program: str | None = None
    session: str | None = None
    affinity: Affinity = "hint"
    session_lost_is_error: bool = False
    require: frozenset[str] = frozenset()
    priority: int = 0
    deadline: float = INFINITY
    hold_s: float = INFINITY
    size_bytes: int = 0
    cancellable: bool = False
    retry: bool = False


class CheckoutVerdict(msgspec.Struct, gc=False):
    """The holder's word on the worker it was granted, before anything was sent.

    `died`: the pipe was found closed or full of something else; the worker's end is its own, not our removal.
    `deadline`: of the wait that begins now, where the worker had it for some time; None: the lease's own.
    """

    lease_id: int
    verdict: Verdict
    died: bool = False
    deadline: float | None = None


class RunStarted(msgspec.Struct, gc=False):
    """A lease taken without a program starts to run one. `cancellable`: this run; None: as the lease was taken."""

    lease_id: int
    program: str | None
    cancellable: bool | None = None


class RunEnded(msgspec.Struct, gc=False):
    """That run ended and the lease is kept. `error`: what a failed one raised, in a few words."""

    lease_id: int
    outcome: Outcome
    error: str = ""


class Checkin(msgspec.Struct, gc=False):
    """The lease is over. "lost": the worker's pipe ended. Remove: it is killed, for `exit_reason`.

    `error`: what the program raised, in a few words.
    """

    lease_id: int
    outcome: Outcome = "ok"
    verdict: Verdict = KEEP
    exit_reason: ExitReason = "removed"
    error: str = ""


class Cancel(msgspec.Struct, gc=False):
    """The caller gives up. `written`: a send was attempted."""

    lease_id: int
    written: bool
    why: Literal["cancelled", "timeout"] = "cancelled"


class SlotSettled(msgspec.Struct, gc=False):
    """The last frame of a cancelled or abandoned call was read and dropped."""

    worker_id: int
    slot: int
    lease_id: int


class WorkerReady(msgspec.Struct, gc=False):
    """A started worker answered its handshake and loaded what it had to: `programs`."""

    worker_id: int
    programs: tuple[str, ...] = ()


class WorkerExited(msgspec.Struct):
    """A worker is dead and reaped, or could not even be started."""

    worker_id: int
    report: ExitReport


class WorkerUnwell(msgspec.Struct, gc=False):
    """Something is wrong with a worker that lives: it is removed for this reason."""

    worker_id: int
    reason: ExitReason
    detail: str = ""


class ProbeAnswered(msgspec.Struct, gc=False):
    """A ping's answer, or that there was none in time."""

    worker_id: int
    ok: bool


class RssSampled(msgspec.Struct, gc=False):
    """A worker's resident memory."""

    worker_id: int
    rss_bytes: int


class Tick(msgspec.Struct, gc=False):
    """Time has passed; whatever is due is done."""


class Resize(msgspec.Struct, gc=False):
    """A group's new size."""

    group: str
    workers: int


class Reload(msgspec.Struct, gc=False):
    """Replace every worker, one at a time, keeping each until its replacement is ready. Closes open breakers."""


class Recycle(msgspec.Struct, gc=False):
    """Replace one worker in the same way. `detail`: why."""

    worker_id: int
    detail: str = ""


class Release(msgspec.Struct, gc=False):
    """Let a quarantined program run again."""

    program: str


class Pause(msgspec.Struct, gc=False):
    """Grant nothing until Resume; queued calls wait on."""


class Resume(msgspec.Struct, gc=False):
    """Undo Pause or Drain."""


class Drain(msgspec.Struct, gc=False):
    """Take nothing new; finish what was accepted."""


class Close(msgspec.Struct, gc=False):
    """End: refuse what is queued, give what runs until `deadline`, stop every worker."""

    deadline: float


Command = (
    Checkout
    | CheckoutVerdict
    | RunStarted
    | RunEnded
    | Checkin
    | Cancel
    | SlotSettled
    | WorkerReady
    | WorkerExited
    | WorkerUnwell
    | ProbeAnswered
    | RssSampled
    | Tick
    | Resize
    | Reload
    | Recycle
    | Release
    | Pause
    | Resume
    | Drain
    | Close
)

# --- effects --------------------------------------------------------------------------------------------------------


class Grant(msgspec.Struct, gc=False, frozen=True):
    """Wake the lease's caller; it reads worker and slot from the table, unless its hold_s is over by then."""

    lease_id: int


class Reject(msgspec.Struct, gc=False, frozen=True):
    """Wake the lease's caller; it reads the Refusal from the table."""

    lease_id: int


class Spawn(msgspec.Struct, gc=False, frozen=True):
    """Start a worker of this group."""

    worker_id: int
    group: str


class Stop(msgspec.Struct, gc=False, frozen=True):
    """Ask an idle worker to end, and make it by the deadline."""

    worker_id: int
    reason: ExitReason
    deadline: float


class Kill(msgspec.Struct, gc=False, frozen=True):
    """Kill a worker. `reason` None: it seems to be dead by itself; make sure."""

    worker_id: int
    reason: ExitReason | None
    detail: str = ""
    dump: bool = False


class Probe(msgspec.Struct, gc=False, frozen=True):
    """Ping a worker."""

    worker_id: int


class Renew(msgspec.Struct, gc=False, frozen=True):
    """Workers that are started from now on must rest on nothing that was imported before."""


class CancelCall(msgspec.Struct, gc=False, frozen=True):
    """Ask the worker to cancel this call, then read the slot's pipe until its final frame."""

    worker_id: int
    slot: int
    lease_id: int


class Abandon(msgspec.Struct, gc=False, frozen=True):
    """Read the slot's pipe until this call's late answer came, and drop it."""

    worker_id: int
    slot: int
    lease_id: int


class Report(msgspec.Struct, frozen=True):
    """Something worth a log line and an on_event call."""

    event: str
    fields: Mapping[str, Any]


Effect = Grant | Reject | Spawn | Stop | Kill | Probe | Renew | CancelCall | Abandon | Report

# --- what a refused lease holds ---------------------------------------------------------------------------------------

RefusalCode = Literal[
    "PoolClosed",
    "PoolSaturated",
    "PoolBroken",
    "QueueTimeout",
    "CheckoutSkipped",
    "SessionBusy",
    "SessionLost",
    "ProgramQuarantined",
]


class Refusal(msgspec.Struct, frozen=True):
    """Why a lease was refused: the error's name, what happened with its numbers, what to do."""

    code: RefusalCode
    message: str
    reasons: Mapping[int, str] = {}
    reports: tuple[ExitReport, ...] = ()
    retry_after_s: float = 0.0
    retryable: bool = False
    """CheckoutSkipped: nothing but dead workers stood against the call."""

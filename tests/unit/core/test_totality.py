"""No sequence of commands makes the core raise or breaks an invariant: arbitrary commands with arbitrary small ids."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from dspool.options import WorkerGroup
from dspool.pool.core import commands as c
from dspool.types import KEEP, ExitReason, Remove, Skip
from tests.unit.core.world import STEADY, World, exit_report

pytestmark = [pytest.mark.unit, pytest.mark.slow]

INFINITY = float("inf")
LEASES = st.integers(0, 8)
WORKERS = st.integers(0, 9)
PROGRAMS = st.sampled_from([None, "p", "q"])
SOON = st.sampled_from([0.0, 1.0, 5.0, INFINITY])
REASONS: list[ExitReason] = ["crash", "exited", "boot_error", "start_timeout", "killed", "stopped", "timeout", "hung"]
OUTCOMES: list[c.Outcome] = ["ok", "failed", "lost", "none"]
VERDICTS = st.sampled_from([KEEP, Remove("bad"), Skip("no")])
GROUPS = [
    WorkerGroup(name="a", workers=1, labels=frozenset({"x"})),
    WorkerGroup(name="b", workers=1, overflow=1, labels=frozenset({"y"})),
]

COMMANDS = st.one_of(
    st.builds(
        c.Checkout,
        LEASES,
        st.integers(0, 20),
        program=PROGRAMS,
        session=st.sampled_from([None, None, "s", "t"]),
        affinity=st.sampled_from(["hint", "strict", "strict_fail_fast"]),
        session_lost_is_error=st.booleans(),
        require=st.sampled_from([frozenset(), frozenset(), frozenset({"x"}), frozenset({"nothing"})]),
        priority=st.integers(-1, 1),
        deadline=st.sampled_from([0.0, 3.0, 20.0, INFINITY]),
        hold_s=SOON,
        size_bytes=st.integers(0, 60),
        cancellable=st.booleans(),
        retry=st.booleans(),
    ),
    st.builds(c.CheckoutVerdict, LEASES, VERDICTS, st.booleans()),
    st.builds(c.RunStarted, LEASES, PROGRAMS),
    st.builds(c.RunEnded, LEASES, st.sampled_from(OUTCOMES)),
    st.builds(c.Checkin, LEASES, st.sampled_from(OUTCOMES), VERDICTS, st.sampled_from(REASONS)),
    st.builds(c.Cancel, LEASES, st.booleans(), st.sampled_from(["cancelled", "timeout"])),
    st.builds(c.SlotSettled, WORKERS, st.integers(-1, 3), LEASES),
    st.builds(c.WorkerReady, WORKERS),
    st.builds(c.WorkerReady, WORKERS),
    st.builds(
        lambda worker_id, reason: c.WorkerExited(worker_id, exit_report(worker_id, reason)),
        WORKERS,
        st.sampled_from(REASONS),
    ),
    st.builds(c.WorkerUnwell, WORKERS, st.sampled_from(REASONS)),
    st.builds(c.ProbeAnswered, WORKERS, st.booleans()),
    st.builds(c.RssSampled, WORKERS, st.integers(0, 1000)),
    st.builds(c.Resize, st.sampled_from(["a", "default", "c"]), st.integers(-1, 4)),
    st.builds(c.Recycle, WORKERS),
    st.builds(c.Release, st.sampled_from(["p", "q"])),
    st.sampled_from([c.Tick(), c.Tick(), c.Tick(), c.Reload(), c.Pause(), c.Resume(), c.Resume(), c.Drain()]),
)
STEPS = st.lists(st.tuples(COMMANDS, st.sampled_from([0.0, 0.0, 0.1, 1.0, 7.0, 40.0])), max_size=60)

OPTIONS: dict[str, dict[str, Any]] = {
    "eager": {"workers": 2, "max_restarts": 1},
    "lazy": {"workers": 3, "lazy": True, "start_concurrency": 2, "max_waiting": 2, "check": lambda *_: KEEP},
    "slots": {"workers": 2, "slots": 3, "overflow": 1, "max_requests": 2, "quarantine_after": 1},
    "groups": {"workers": GROUPS, "ping_interval_s": 2.0, "ping_failures": 1, "max_rss_bytes": 500},
    "tight": {
        "workers": 1,
        "overflow": 2,
        "overflow_linger_s": 1.0,
        "max_sessions": 1,
        "session_ttl_s": 2.0,
        "max_programs": 1,
        "max_waiting_bytes": 100,
        "max_lifetime_s": 5.0,
        "quarantine_after": 1,
        "quarantine_s": 3.0,
        "grace_s": 0.0,
        "cancel_grace_s": 0.0,
        "affinity_wait_s": 0.0,
        "restart_window_s": 0.5,
        "max_restarts": 0,
    },
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_any_sequence_of_commands_is_survived(kind: str) -> None:
    @settings(STEADY, max_examples=120)
    @given(STEPS, st.booleans())
    def survive(steps: list[tuple[c.Command, float]], close: bool) -> None:
        world = World(**OPTIONS[kind])
        world.tick(0.0)
        for command, later in steps:
            if isinstance(command, c.Tick):
                world.tick(world.now + later)
            else:
                world.do(command, world.now + later)
        if close:
            everything_ends(world)

    survive()


def everything_ends(world: World) -> None:
    """Close, let every worker go, end every lease: nothing is left."""
    world.do(c.Close(deadline=world.now + 5.0))
    world.tick(world.now + 5.0)
    for worker in world.workers():
        world.exit(worker.worker_id, "stopped")
    assert world.core.state == "closed"
    for lease_id in list(world.core.leases):
        world.cancel(lease_id, written=True)
    assert world.core.leases == {}
    assert not any(session.in_use for session in world.core.sessions.table.values())
    world.run_until(world.now + 1e6)
    assert world.core.next_deadline() is None, "a closed pool asks for no more ticks"

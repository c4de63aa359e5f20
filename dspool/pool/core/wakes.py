"""An invariant over two steps: whoever is granted or refused is woken in that step, once, and nobody else is."""

from __future__ import annotations

from collections.abc import Iterable

from dspool.pool.core import commands as c
from dspool.pool.core.machine import PoolCore
from dspool.pool.core.records import Lease
from dspool.pool.core.states import LeaseState

_HELD = (LeaseState.CHECKING, LeaseState.GRANTED)


class Wakes:
    """Compares each step with the one before."""

    def __init__(self) -> None:
        self._before: dict[int, object] = {}

    def step(self, core: PoolCore, effects: Iterable[c.Effect]) -> None:
        """Raise AssertionError where a caller sleeps on though its lease changed, or is woken for nothing."""
        now = {lease_id: _fate(lease) for lease_id, lease in core.leases.items()}
        changed = {
            lease_id for lease_id, fate in now.items() if fate is not None and fate != self._before.get(lease_id)
        }
        woken = {effect.lease_id for effect in effects if isinstance(effect, (c.Grant, c.Reject))}
        assert woken == changed, f"woken were {sorted(woken)}, granted or refused {sorted(changed)}"
        for lease_id in woken & self._before.keys():
            lease = core.leases[lease_id]
            late = lease.state in _HELD and c.AT_ONCE < lease.deadline <= core.now
            assert not late, f"lease {lease_id} waited until its deadline and was granted then (law 3)"
        self._before = now


def _fate(lease: Lease) -> object:
    if lease.state is LeaseState.CLOSED:
        return "refused"
    if lease.state in _HELD:
        return lease.worker_id, lease.slot, len(lease.removed), len(lease.skipped)
    return None

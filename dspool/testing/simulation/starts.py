"""The judge of starts: a pool whose workers keep ending before they were of any use stops starting them.

It keeps its own list of such ends, and counts those alone that count for certain: of workers that never became ready,
each; of young workers that did, and were neither lent nor answered a ping, those that didn't end together with one that
was counted. The core may count more.
"""

from __future__ import annotations

from collections import deque

from dspool.pool.core import commands as c
from dspool.pool.core.machine import PoolCore

_UNASKED = frozenset({"crash", "exited", "oom_suspect", "boot_error", "start_timeout", "protocol_error", "hung"})
_TOGETHER_S = 0.1


class Starts:
    """Judges one core's breakers.

    Args:
        core: whose breakers are read.
    """

    def __init__(self, core: PoolCore) -> None:
        self._core = core
        self._unproved: dict[int, tuple[str, float | None]] = {}
        """worker_id -> its group, and when it became ready; until it was lent, or answered a ping."""
        self._failed: dict[str, deque[float]] = {name: deque() for name in core.groups}

    def step(self, command: c.Command, effects: list[c.Effect]) -> None:
        """Raise AssertionError where a group's starts should have been stopped by now."""
        now = self._core.now
        if isinstance(command, c.Reload):  # what failed before is forgiven
            for failed in self._failed.values():
                failed.clear()
        for effect in effects:
            if isinstance(effect, c.Spawn):
                self._unproved[effect.worker_id] = effect.group, None
            elif isinstance(effect, c.Grant):
                self._unproved.pop(self._core.leases[effect.lease_id].worker_id or 0, None)
            elif isinstance(effect, c.Report) and effect.event.startswith("pool.breaker_"):
                self._failed[effect.fields["group"]].clear()
        if isinstance(command, c.WorkerReady) and command.worker_id in self._unproved:
            group, since = self._unproved[command.worker_id]
            self._unproved[command.worker_id] = group, now if since is None else since
        elif isinstance(command, c.ProbeAnswered) and command.ok:
            self._unproved.pop(command.worker_id, None)
        elif isinstance(command, c.WorkerExited) and command.worker_id in self._unproved:
            self._ended(*self._unproved.pop(command.worker_id), command.report.reason, now)

    def _ended(self, name: str, ready_at: float | None, reason: str, now: float) -> None:
        failed, options = self._failed[name], self._core.options
        old = ready_at is not None and now - ready_at >= options.restart_window_s
        together = ready_at is not None and bool(failed) and now - failed[-1] < _TOGETHER_S
        breaker = self._core.groups[name].breaker
        if reason not in _UNASKED or old or together or breaker.state != "closed":
            return
        failed.append(now)
        while failed[0] <= now - options.restart_window_s:
            failed.popleft()
        assert len(failed) <= options.max_restarts, (
            f"group {name}: {len(failed)} workers ended before they were of use, the last one for {reason}, and its "
            "starts go on"
        )

"""Who is told what becomes of the workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from dspool.types import ExitReason, ExitReport

if TYPE_CHECKING:
    from dspool.supervisor.life import WorkerProcess


class Listener(Protocol):
    """Implemented by the pool's driver. All calls come on the control loop; they must not block or raise."""

    def worker_ready(self, worker_id: int, worker: WorkerProcess) -> None:
        """Its handshake is answered. Its slots are the listener's from now on, to close as well."""

    def worker_exited(self, worker_id: int, report: ExitReport) -> None:
        """It is dead and reaped, or was never started. Once for each start()."""

    def worker_unwell(self, worker_id: int, reason: ExitReason, detail: str) -> None:
        """It was ready, and its control pipe can't be trusted any further; the process lives. At most once each."""

    def probe_answered(self, worker_id: int, ok: bool) -> None:
        """Once for each probe() that was begun, unless the worker exits first."""

    def rss_sampled(self, worker_id: int, rss_bytes: int) -> None:
        """Its resident memory."""

    def worker_due(self, worker_id: int) -> None:
        """It lives and serves, but should be replaced when there is time: its template died, so nobody will say how it
        ends."""

    def start_method_changed(self, start_method: str, reason: str) -> None:
        """Workers are started in another way than the pool asked for, for this reason."""

    def start_method_event(self, event: str, fields: Mapping[str, Any]) -> None:
        """Something else happened to the start method that is worth a log line."""

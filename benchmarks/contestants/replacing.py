"""A worker is killed from outside: how long until the pool has a new one, and until the caller knows."""

from __future__ import annotations

import os
import queue
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dspool
from benchmarks.contestants import threads
from benchmarks.contestants.programs import attend

PATIENCE_S = 20.0
WORKERS = 4


class Ward:
    """A pool of DSPy workers and the instants at which workers of it became ready."""

    def __init__(self, start_method: str) -> None:
        self._ready: queue.SimpleQueue[float] = queue.SimpleQueue()
        options: dict[str, Any] = {"start_method": start_method, "preload": "dspy"}
        # What would stop a pool whose workers keep dying: here they are meant to. It changes no single replacement.
        options |= {"quarantine_after": None, "max_restarts": 1_000_000}
        self.pool = dspool.Pool(workers=WORKERS, on_event=self._on_event, **options)

    def _on_event(self, event: str, fields: Mapping[str, Any]) -> None:
        if event == "worker.ready":
            self._ready.put(time.perf_counter())

    @contextmanager
    def opened(self) -> Iterator[Ward]:
        """It is open, and has told of each worker's start."""
        with self.pool:
            for _ in range(WORKERS):
                self._ready.get(timeout=PATIENCE_S)
            yield self

    def replace_idle(self) -> float:
        """Kill an idle worker. Returns seconds until the new one is ready."""
        victim = next(worker.pid for worker in self.pool.workers() if worker.state == "idle" and worker.pid is not None)
        killed = time.perf_counter()
        os.kill(victim, signal.SIGKILL)
        return self._ready.get(timeout=PATIENCE_S) - killed

    def replace_busy(self) -> tuple[float, float]:
        """Kill a worker in the middle of a call. Returns seconds until the new one is ready, and until the caller knew.

        Raises:
            RuntimeError: the caller was not told that its worker was lost.
        """
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
            address = str(Path(folder) / "call")
            listener.bind(address)
            listener.listen(1)
            listener.settimeout(PATIENCE_S)
            caller = threads.start(lambda: self._lose(address), "caller")
            guest, _ = listener.accept()
            with guest:
                victim = int.from_bytes(guest.recv(4), "big")
                killed = time.perf_counter()
                os.kill(victim, signal.SIGKILL)
                ready = self._ready.get(timeout=PATIENCE_S)
                return ready - killed, caller.result(PATIENCE_S) - killed

    def _lose(self, address: str) -> float:
        try:
            self.pool.run(attend, {"value": address})
        except dspool.WorkerLost:
            return time.perf_counter()
        raise RuntimeError("a killed worker answered its call")

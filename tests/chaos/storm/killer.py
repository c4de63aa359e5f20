"""The killer: draws a worker and a moment, and sends the signal.

at random   whatever worker, whatever it does
busy        one with a call in it, a moment later: in the call, or in the middle of a frame
starting    one that was started and isn't ready yet
stopped     SIGSTOP first; some are killed then, some go on
template    the process that workers are forked from
"""

from __future__ import annotations

import math
import random
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

from dspool.types import WorkerInfo
from tests.chaos.premises import Premises, children

MOMENTS = {"at_random": 45, "busy": 25, "starting": 14, "stopped": 15, "template": 1}
_WATCH_S = 0.05
"""How long a starting worker is looked for, before whatever worker there is has to do."""


class Killer:
    """Strikes once at a time.

    Args:
        seed: what victims and moments are drawn from.
        premises: whose processes may be killed.
        workers: the pool's own.

    Attributes:
        kills: how many workers and templates got SIGKILL, by the state they were found in.
        stops: how many were stopped, and let go on or killed.
        last_kill: when somebody was killed last, monotonic seconds; last_template_kill: when a template was.
        recent: the last pids killed.
    """

    def __init__(self, seed: int, premises: Premises, workers: Callable[[], list[WorkerInfo]]) -> None:
        self.kills: Counter[str] = Counter()
        self.stops = 0
        self.last_kill = self.last_template_kill = -math.inf
        self.recent: deque[int] = deque(maxlen=100)
        self._random = random.Random(seed)
        self._premises = premises
        self._workers = workers

    @property
    def count(self) -> int:
        """Kills so far."""
        return self.kills.total()

    def strike(self, *moments: str) -> bool:
        """One strike, at one of these moments, or at any. Whether somebody was killed."""
        names = moments or tuple(MOMENTS)
        (moment,) = self._random.choices(names, [MOMENTS[name] for name in names])
        struck: bool = getattr(self, f"_{moment}")()
        return struck

    def _at_random(self) -> bool:
        return self._kill_one(self._ready())

    def _busy(self) -> bool:
        busy = [worker for worker in self._ready() if worker.state == "busy"]
        self._linger(0.006)
        return self._kill_one(busy)

    def _starting(self) -> bool:
        """Somebody has to die before somebody starts; then whoever the pool doesn't know as ready is struck at once."""
        known = {worker.pid for worker in self._ready()}
        struck = self._kill_one(self._ready())
        deadline = time.monotonic() + _WATCH_S
        while time.monotonic() < deadline:
            for template in self._premises.templates():
                for pid in children(template):
                    if pid not in known and pid not in self.recent:
                        self._linger(0.003)
                        return self._kill(pid, "starting") or struck
        return struck

    def _stopped(self) -> bool:
        ready = self._ready()
        victim = self._random.choice(ready) if ready else None
        if victim is None or victim.pid is None or not self._premises.send(victim.pid, signal.SIGSTOP):
            return False
        self.stops += 1
        self._linger(0.05)
        if self._random.random() < 0.3:
            self._premises.send(victim.pid, signal.SIGCONT)
            return False
        return self._kill(victim.pid, "stopped")

    def _template(self) -> bool:
        return any(self._kill(pid, "template") for pid in self._premises.templates())

    def _ready(self) -> list[WorkerInfo]:
        return [worker for worker in self._workers() if worker.state in ("idle", "busy") and worker.pid is not None]

    def _kill_one(self, workers: list[WorkerInfo]) -> bool:
        if not workers:
            return False
        victim = self._random.choice(workers)
        assert victim.pid is not None
        return self._kill(victim.pid, victim.state)

    def _kill(self, pid: int, state: str) -> bool:
        if pid in self.recent or not self._premises.send(pid, signal.SIGKILL):
            return False
        self.last_kill = time.monotonic()
        if state == "template":
            self.last_template_kill = self.last_kill
        self.kills[state] += 1
        self.recent.append(pid)
        return True

    def _linger(self, most_s: float) -> None:
        """A moment of random length."""
        threading.Event().wait(self._random.uniform(0, most_s))

"""Accidents: what befalls a pool from outside of its calls, at a seed's rates, and commands about what is gone.

Rules:
    1. Each repeats by itself until the world is calm.
    2. Each is a command that is legal at any time, or something done to a process. None reaches into the core.
    3. Faults within a call, a start or an exit are not here: they strike where they happen.
"""

from __future__ import annotations

from collections.abc import Callable

from dspool.pool.core import commands as c
from dspool.pool.core.commands import INFINITY
from dspool.testing.simulation.callers import Callers
from dspool.testing.simulation.parts import Process
from dspool.types import ExitReason, ExitReport, Remove

_OWN_ENDS: tuple[ExitReason, ...] = ("crash", "exited", "oom_suspect")


class Accidents(Callers):
    """The world in which things go wrong."""

    def _repeat(self, fault: str, happens: Callable[[], None]) -> None:
        """Let it happen again and again, at its rate, until the faults stop."""

        def strike() -> None:
            if not self.calm:
                self.injected[fault] += 1
                happens()
                self._repeat(fault, happens)

        self.at(self.now + self.rng.expovariate(2.0 * self.rates[fault]), strike)

    def _accidents(self) -> dict[str, Callable[[], None]]:
        rng, options = self.rng, self.options
        groups = [group.name for group in options.groups]

        def one_of_the_living() -> Process | None:
            alive = [process for process in self.processes.values() if not process.dead]
            return rng.choice(alive) if alive else None

        def crash() -> None:
            process = one_of_the_living()
            if process is not None:
                self._die(process, rng.choice(_OWN_ENDS) if process.ready else "boot_error")

        def unwell() -> None:
            self.step(c.WorkerUnwell(self._some_worker(), rng.choice(("protocol_error", "killed")), "simulated"))

        def pause() -> None:
            self.step(c.Pause())
            self.at(self._soon(3.0), lambda: self.step(c.Resume()))

        def drain() -> None:
            self.step(c.Drain())
            self.at(self._soon(3.0), lambda: self.step(c.Resume()))

        def jump() -> None:
            self.now += rng.choice((0.5, 5.0, 50.0))

        def early_close() -> None:
            if self.steps > self.safety_steps // 2:
                self.step(c.Close(self.now + rng.choice((0.0, 0.5, 3.0, INFINITY))))

        def fat() -> None:
            self.step(c.RssSampled(self._some_worker(), rng.choice((100, 950, 2000))))

        return {
            "crash": crash,
            "unwell": unwell,
            "pause": pause,
            "drain": drain,
            "clock_jump": jump,
            "early_close": early_close,
            "fat": fat,
            "ghost": self._ghost,
            "resize": lambda: self.step(c.Resize(rng.choice([*groups, "nobody"]), rng.randint(0, 5))),
            "reload": lambda: self.step(c.Reload()),
            "recycle": lambda: self.step(c.Recycle(self._some_worker())),
            "release": lambda: self.step(c.Release(rng.choice(("a", "b", "evil")))),
        }

    def _some_worker(self) -> int:
        """A worker, often one that is gone or never was."""
        known = sorted(self.core.workers)
        return self.rng.choice(known) if known and self.rng.random() < 0.8 else self.rng.randint(0, 50)

    def _ghost(self) -> None:
        """A late or doubled event about something that is gone, or that is not so."""
        rng = self.rng
        gone = [process.worker_id for process in self.processes.values() if process.reported] or [0]
        ghost, stranger = rng.choice(gone), rng.choice([*self.core.leases, 0, 10**9])
        ready = [worker_id for worker_id, worker in self.core.workers.items() if worker.ready_at is not None] or [ghost]
        over = next(self._lease_ids)
        self.step(
            rng.choice(
                (
                    c.WorkerReady(ghost),
                    c.WorkerReady(rng.choice(ready)),
                    c.WorkerExited(ghost, ExitReport(worker_id=ghost, pid=None, reason="crash")),
                    c.WorkerUnwell(ghost, "hung"),
                    c.ProbeAnswered(ghost, True),
                    c.RssSampled(ghost, 10**6),
                    c.Recycle(ghost),
                    c.SlotSettled(ghost, 0, 1),
                    c.SlotSettled(rng.choice(ready), rng.choice((-1, 0, 99)), 10**9),
                    c.Checkin(over),
                    c.Cancel(over, True),
                    c.CheckoutVerdict(over, Remove("ghost")),
                    c.RunStarted(over, "a"),
                    c.RunEnded(over, "ok"),
                    c.Checkout(stranger, stranger) if stranger in self.core.leases else c.Tick(),
                )
            )
        )

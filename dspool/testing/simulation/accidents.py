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
from dspool.testing.simulation import moments
from dspool.testing.simulation.callers import Callers
from dspool.testing.simulation.parts import Process
from dspool.types import ExitReport, Remove


class Accidents(Callers):
    """The world in which things go wrong."""

    def _repeat(self, fault: str, happens: Callable[[], None]) -> None:
        """Let it happen again and again, at its rate, until the faults stop."""

        def strike() -> None:
            if not self.calm:
                happens()
                self._repeat(fault, happens)

        self.at(self.now + self.rng.expovariate(2.0 * self.rates[fault]), strike)

    def _accidents(self) -> dict[str, Callable[[], None]]:
        rng = self.rng
        commands: dict[str, Callable[[], c.Command]] = {
            "unwell": lambda: c.WorkerUnwell(
                self._some_worker(), rng.choice(("protocol_error", "killed")), "simulated"
            ),
            "fat": lambda: c.RssSampled(self._some_worker(), rng.choice((100, 950, 2000))),
            "reload": c.Reload,
            "recycle": lambda: c.Recycle(self._some_worker()),
            "release": lambda: c.Release(rng.choice(("a", "b", "evil"))),
            "ghost": self._ghost,
        }
        return {
            "crash": self._crash,
            "hang": self._hang,
            "template_death": self._template_dies,
            "pause": self._pause,
            "drain": self._drain,
            "clock_jump": lambda: self._jump("clock_jump", (0.5, 5.0, 50.0)),
            "suspend": lambda: self._jump("suspend", (600.0, 28_800.0, 1e6)),
            "early_close": self._close_early,
            "resize": self._resize,
            **{fault: self._puts(fault, command) for fault, command in commands.items()},
        }

    def _puts(self, fault: str, command: Callable[[], c.Command]) -> Callable[[], None]:
        def put() -> None:
            self._strikes(fault)
            self.step(command())

        return put

    def _crash(self) -> None:
        """A worker in a state picked from those that there are: the rare ones are as likely as the others."""
        found: dict[str, list[Process]] = {}
        for process in self.processes.values():
            if not process.dead:
                for where in moments.of_worker(self.core, process):
                    found.setdefault(where, []).append(process)
        if found:
            self._strikes("crash")
            self._dies_by_itself(self.rng.choice(found[self.rng.choice(list(found))]))

    def _hang(self) -> None:
        """A worker is stopped, whatever it does. One that runs a call is found out by that call's deadline alone."""
        alive = [process for process in self.processes.values() if not process.dead and not process.hung]
        if alive:
            process = self.rng.choice(alive)
            self._strikes("hang")
            seen = set(moments.of_worker(self.core, process))
            self._note("hang", *(seen & {"starting", "idle", "running", "draining", "stopping"}))
            process.hung = True

    def _pause(self) -> None:
        self._strikes("pause")
        self.step(c.Pause())
        self.at(self._soon(3.0), lambda: self.step(c.Resume()))

    def _drain(self) -> None:
        self._strikes("drain")
        self._note("drain", *(set(moments.of_pool(self.core)) & {"idle", "waiting", "running", "paused"}))
        self.step(c.Drain())
        self.at(self._soon(3.0), lambda: self.step(c.Resume()))

    def _jump(self, fault: str, seconds: tuple[float, ...]) -> None:
        """The machine slept: its clock is far ahead, and all that was due meanwhile happens at once, in any order."""
        self._strikes(fault)
        self._note("jump", *(set(moments.of_pool(self.core)) - {"draining"}))
        self.now += self.rng.choice(seconds)
        self._shuffle_backlog()

    def _close_early(self) -> None:
        if self.steps > self.safety_steps // 2:
            self._strikes("early_close")
            self._note("close", *(set(moments.of_pool(self.core)) - {"starting"}))
            self.step(c.Close(self.now + self.rng.choice((0.0, 0.5, 3.0, INFINITY))))

    def _resize(self) -> None:
        rng, core = self.rng, self.core
        name, size = rng.choice([*core.groups, "nobody"]), rng.randint(0, 5)
        self._strikes("resize")
        if name not in core.groups:
            self._note("resize", "of no group")
        else:
            before = core.groups[name].size
            self._note("resize", "to nothing" if size == 0 else "up" if size > before else "down")
            busy = set(moments.of_pool(core)) & {"draining", "paused", "starting"}
            self._note("resize", *(f"while {where}" for where in busy))
        self.step(c.Resize(name, size))

    def _some_worker(self) -> int:
        """A worker, often one that is gone or never was."""
        known = sorted(self.core.workers)
        return self.rng.choice(known) if known and self.rng.random() < 0.8 else self.rng.randint(0, 50)

    def _ghost(self) -> c.Command:
        """A late or doubled event about something that is gone, or that is not so."""
        rng = self.rng
        gone = [process.worker_id for process in self.processes.values() if process.reported] or [0]
        ghost, stranger = rng.choice(gone), rng.choice([*self.core.leases, 0, 10**9])
        ready = [worker_id for worker_id, worker in self.core.workers.items() if worker.ready_at is not None] or [ghost]
        over = next(self._lease_ids)
        ghosts: tuple[c.Command, ...] = (
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
        return rng.choice(ghosts)

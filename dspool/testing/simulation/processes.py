"""Simulated worker processes: how they start, answer, hang, end and are reaped; and what the pool's driver does there.

Rules:
    1. A process knows its pipes and nothing of leases, groups' sizes or the queue: it does what it is ordered to, late
       or not at all where a fault strikes.
    2. It is dead before the core hears of it; in between, callers find its pipes closed.
    3. Who waits for an answer is woken by the layer of the callers.
"""

from __future__ import annotations

from abc import abstractmethod

from dspool.pool.core import commands as c
from dspool.pool.core.states import WorkerState
from dspool.testing.simulation import moments
from dspool.testing.simulation.parts import Caller, Pipe, Process
from dspool.testing.simulation.templates import Templates
from dspool.types import ExitReason, ExitReport

_OWN_ENDS: tuple[ExitReason, ...] = ("crash", "exited", "oom_suspect")


class Processes(Templates):
    """The world with its worker processes."""

    @abstractmethod
    def _wake(self, caller: Caller, kind: str) -> None:
        """Wake a caller that waits for this, after a moment in which anything may happen."""

    # --- a process's life ---------------------------------------------------------------------------------------------

    def _spawned(self, effect: c.Spawn) -> None:
        assert effect.worker_id not in self.processes, f"worker {effect.worker_id} was started twice"
        process = self.processes[effect.worker_id] = Process(effect.worker_id, effect.group, self.options.slots)
        if self._chance("fork_refused"):
            process.dead, process.reason = True, "boot_error"
            self.at(self.now, lambda: self._reap(process))
        else:
            self._launch(process)

    def _forked(self, process: Process) -> None:
        if self._chance("failed_boot"):
            self.at(self._soon(1.0), lambda: self._die(process, "boot_error"))
        elif self._chance("stuck_start"):
            process.hung = True
        else:
            slow = self._chance("slow_start")
            self.at(self._soon(8.0 if slow else 0.3), lambda: self._boot(process))

    def _boot(self, process: Process) -> None:
        if process.dead and not self._chance("late_ready"):
            return
        if process.hung and not process.dead:
            return
        worker = self.core.workers.get(process.worker_id)
        known = worker is not None and worker.state is WorkerState.STARTING
        self._note("ready", "in time" if known else "given up" if worker is not None else "gone")
        process.ready = True
        self.step(c.WorkerReady(process.worker_id))

    def _stopped(self, effect: c.Stop) -> None:
        process = self.processes[effect.worker_id]
        for index, pipe in enumerate(process.pipes):
            assert pipe.frame is None, f"{effect}: a call is still running in slot {index}"
        grace_s = max(0.0, effect.deadline - self.now)
        slow = process.hung or self._chance("slow_exit")
        when = effect.deadline + 0.01 if slow else self._soon(min(0.1, grace_s))
        self.at(when, lambda: self._die(process, effect.reason))

    def _killed(self, effect: c.Kill) -> None:
        process = self.processes.get(effect.worker_id)
        if process is not None:
            reason: ExitReason = effect.reason or "exited"
            when = self._soon(4 * self.options.grace_s + 1) if self._chance("slow_exit") else self._soon()
            self.at(when, lambda: self._die(process, reason))

    def _dies_by_itself(self, process: Process, reason: ExitReason | None = None) -> None:
        """Nobody asked for it."""
        if not process.dead:
            self._note("death", *moments.of_worker(self.core, process))
            ends = self.rng.choice(_OWN_ENDS)
            self._die(process, (reason or ends) if process.ready else "boot_error")

    def _die(self, process: Process, reason: ExitReason) -> None:
        """The process is dead from now on; the core hears of it a little later, once it is reaped."""
        if process.dead:
            return
        process.dead, process.reason = True, reason
        for pipe in process.pipes:
            if pipe.reader is not None:
                self._wake(pipe.reader, "read")
        self.at(self._soon(0.05), lambda: self._reap(process))

    def _reap(self, process: Process) -> None:
        process.reported = True
        reason, known = process.reason, process.template is None or process.template.alive
        if not known:
            self._note("template", "leaves an unknown exit")
            reason = "exited" if reason in _OWN_ENDS else reason
        report = ExitReport(worker_id=process.worker_id, pid=1, reason=reason, status_known=known)
        self.step(c.WorkerExited(process.worker_id, report))

    def _probed(self, effect: c.Probe) -> None:
        process = self.processes[effect.worker_id]
        lost = process.hung or process.dead or self._chance("lost_pong")
        when = self.now + self.options.ping_timeout_s if lost else self._soon()
        self.at(when, lambda: self._pong(effect.worker_id, ok=not lost))
        if lost and self._chance("late_pong"):
            self.at(when + self.rng.choice((0.1, 2.0)), lambda: self._pong(effect.worker_id, ok=True))
        if self._chance("doubled_pong"):  # it may overtake the first, or be taken for the next one's
            self.at(self._soon(2.0), lambda: self._pong(effect.worker_id, ok=not lost))

    def _pong(self, worker_id: int, *, ok: bool) -> None:
        self._note("pong", moments.of_pong(self.core, worker_id) if ok else "lost")
        self.step(c.ProbeAnswered(worker_id, ok))

    def _struck_at(self, effect: c.Spawn | c.Stop | c.Probe | c.CancelCall | c.Abandon) -> None:
        """The process may end in the moment in which it is ordered to do something."""
        process = self.processes[effect.worker_id]
        if not process.dead and self._chance("crash_at_order"):
            self._dies_by_itself(process)

    def _stands_still(self, process: Process) -> bool:
        """Whether it does nothing. Once the world is calm it answers calls and no pings: those must find it out."""
        return process.hung and not self.calm

    # --- its pipes ----------------------------------------------------------------------------------------------------

    def _answered(self, process: Process, pipe: Pipe, lease_id: int) -> None:
        """The worker has written its answer into the pipe."""
        if process.dead or pipe.frame != lease_id or self._stands_still(process):
            return
        pipe.frame, pipe.answer, pipe.lies = None, lease_id, self._chance("lie")
        if pipe.left_by is not None:
            self._settle_later(process, pipe)
        elif pipe.reader is not None:
            self._wake(pipe.reader, "read")

    def _left_behind(self, effect: c.Abandon | c.CancelCall) -> None:
        """The control plane reads this slot from now on."""
        process = self.processes[effect.worker_id]
        pipe = process.pipes[effect.slot]
        assert pipe.frame in (None, effect.lease_id), f"{effect}: lease {pipe.frame} is written there"
        pipe.left_by = effect.lease_id
        if pipe.answer is not None:
            self._settle_later(process, pipe)
        elif pipe.frame is None:
            # The hold of a lease ran out between two runs: there is no answer to come.
            return
        elif isinstance(effect, c.CancelCall) and not self._chance("no_settle"):
            when = self._soon(0.6 if self._chance("late_settle") else 0.05)
            self.at(when, lambda: self._answered(process, pipe, effect.lease_id))

    def _settle_later(self, process: Process, pipe: Pipe) -> None:
        lease_id = pipe.answer
        assert lease_id == pipe.left_by, f"the answer to lease {lease_id} is read for lease {pipe.left_by}"

        def settle() -> None:
            if process.dead:
                return
            pipe.answer = pipe.left_by = None
            assert lease_id is not None
            if pipe.lies:
                self.step(c.WorkerUnwell(process.worker_id, "protocol_error", "a foreign id"))
            else:
                self.step(c.SlotSettled(process.worker_id, process.pipes.index(pipe), lease_id))

        self.at(self._soon(), settle)

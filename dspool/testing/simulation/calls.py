"""The way of a call, as in the real data path: checkout, grant, verdict, write, read, checkin; again if it was lost.

Rules:
    1. Each is a generator that yields where the real one awaits. It may be cancelled there (`GaveUp` is thrown in), and
       gives its lease back on every way out.
    2. A caller reads its own lease and the pipe it was lent, as the real one does; it reads no other table.
    3. A slot that owes an answer is never written to; an answer reaches only the lease that asked; a call that isn't
       idempotent runs at most once.
    4. When a caller is resumed is not known here: the layer of the callers does that.
"""

from __future__ import annotations

from collections.abc import Generator

from dspool.pool.core import commands as c
from dspool.pool.core.records import Lease
from dspool.pool.core.states import LeaseState
from dspool.testing.simulation.parts import Caller, Pipe, Steps, Wait
from dspool.testing.simulation.processes import Processes
from dspool.types import KEEP, Remove, Skip, Verdict


class Calls(Processes):
    """The world in which a call can be made."""

    def _tries(self, caller: Caller, must: str | None) -> Steps:
        call_id, tries = 0, 0
        while True:
            lease_id = next(self._lease_ids)
            call_id = call_id or lease_id
            caller.lease_id, caller.written, caller.closed = lease_id, False, False
            self.by_lease[lease_id] = caller
            outcome = yield from self._attempt(caller, call_id, tries)
            if outcome != "lost" or not caller.idempotent or tries >= 3 or self.now >= caller.deadline:
                break
            tries += 1
            caller.executions = 0
        if must is not None and (outcome != "PoolSaturated" or self.options.max_waiting):
            assert outcome == must, f"{caller} should end {must}, and ended {outcome}"
        return outcome

    def _attempt(self, caller: Caller, call_id: int, tries: int) -> Steps:
        lease_id = caller.lease_id
        try:
            deadline = caller.deadline if caller.deadline > self.now else c.AT_ONCE
            self.step(c.Checkout(lease_id, call_id, deadline=deadline, retry=tries > 0, **caller.wants))
            lease = self.core.leases[lease_id]
            while True:
                refused = yield from self._acquire(caller, lease)
                if refused is not None:
                    return refused
                if not caller.runs:
                    outcome = yield from self._run(caller, lease)
                else:
                    outcome = yield from self._runs(caller, lease)
                if outcome != "moved":
                    return outcome
        finally:
            if not caller.closed:
                self.step(c.Cancel(lease_id, caller.written))
                if self.rng.random() < 0.05:
                    self.step(c.Cancel(lease_id, True))
            del self.by_lease[lease_id]

    # --- until a worker suits -----------------------------------------------------------------------------------------

    def _acquire(self, caller: Caller, lease: Lease) -> Generator[Wait, None, str | None]:
        """Until a worker suits. Returns how the caller was refused, or None."""
        while True:
            while lease.state is LeaseState.QUEUED:
                yield Wait("grant", caller.deadline)
                if lease.state is LeaseState.QUEUED and self.now >= caller.deadline:
                    caller.closed = True
                    self._note("deadline", "queued")
                    self.step(c.Cancel(lease.lease_id, False, "timeout"))
                    return "queue_timeout"
            if lease.state is LeaseState.CLOSED:
                return lease.refusal.code if lease.refusal is not None else self._expired()
            process = self.processes[lease.worker_id or 0]
            if process.dead or self._chance("unread"):
                self._verdict(lease, Remove("its pipe ended"), died=process.dead)
                continue
            if lease.state is LeaseState.CHECKING:
                yield Wait("sleep", self._soon(3.0 if self._chance("slow_hook") else 0.05))
                verdict: Verdict = KEEP
                if self._chance("skip"):
                    verdict = Skip("not for this call")
                elif self._chance("remove"):
                    verdict = Remove("the hook said so")
                self._verdict(lease, verdict)
                continue
            return None

    def _verdict(self, lease: Lease, verdict: Verdict, *, died: bool = False) -> None:
        """A verdict may come too late: the lease is over meanwhile."""
        if lease.state is LeaseState.CLOSED:
            self._note("verdict", "too late")
        elif verdict != KEEP:
            self._note("verdict", "died" if died else type(verdict).__name__.lower())
        self.step(c.CheckoutVerdict(lease.lease_id, verdict, died))

    def _expired(self) -> str:
        self._note("deadline", "hold")
        return "expired"

    # --- the exchange -------------------------------------------------------------------------------------------------

    def _send(self, caller: Caller, lease: Lease) -> Pipe | None:
        """Write the request. None: the pipe was closed before anything was read from it."""
        process = self.processes[lease.worker_id or 0]
        pipe = process.pipes[lease.slot]
        if process.dead:
            return None
        assert process.ready, f"{caller} writes to worker {process.worker_id}, which is not ready"
        assert pipe.frame is None, f"{caller} writes to a slot that still owes lease {pipe.frame} an answer (law 5)"
        assert pipe.answer is None, f"{caller} writes to a slot that holds the answer to lease {pipe.answer} (law 5)"
        holder = self.books.holders.get((process.worker_id, lease.slot))
        assert holder == lease.lease_id, f"{caller} writes to a slot of lease {holder}"
        caller.executions += 1
        assert caller.executions == 1 or caller.runs, f"{caller} runs {caller.executions} times"
        pipe.frame = lease.lease_id
        lease_id = lease.lease_id
        if self._stands_still(process):
            pass
        elif self._chance("hang"):
            process.hung = self.rng.random() < 0.3
        elif lease.program == "evil" and self._chance("crash_in_call"):
            self.at(self._soon(0.1), lambda: self._dies_by_itself(process, "crash"))
        else:
            took = self.rng.choice((0.001, 0.05, 0.3, 3.0))
            self.at(self._soon(took), lambda: self._answered(process, pipe, lease_id))
        return pipe

    def _exchange(self, caller: Caller, lease: Lease) -> Steps:
        """Write, and read the answer: "ok", "lie", "unwritten", "lost" or "timeout"."""
        process = self.processes[lease.worker_id or 0]
        pipe = self._send(caller, lease)
        if pipe is None:
            return "unwritten"
        pipe.reader = caller
        try:
            while pipe.answer is None and not process.dead:
                if self._chance("pipe_glitch"):
                    return "lost"
                if self.now >= caller.deadline:
                    self._note("deadline", "running")
                    return "timeout"
                yield Wait("read", caller.deadline)
        finally:
            pipe.reader = None
        if pipe.answer is None:
            return "lost"
        assert pipe.answer == lease.lease_id, f"{caller} reads the answer to lease {pipe.answer}"
        pipe.answer = None
        return "lie" if pipe.lies else "ok"

    # --- what is run --------------------------------------------------------------------------------------------------

    def _run(self, caller: Caller, lease: Lease) -> Steps:
        caller.written = True
        outcome = yield from self._exchange(caller, lease)
        if outcome == "unwritten":
            caller.written = False
            self._verdict(lease, Remove("it ended before it had read the call"), died=True)
            return "moved"
        caller.closed = True
        if outcome == "timeout":
            self.step(c.Cancel(lease.lease_id, True, "timeout"))
        elif outcome != "ok":
            return self._lost(lease, outcome)
        else:
            verdict: Verdict = Remove("leaky") if self._chance("remove_at_checkin") else KEEP
            failed = self.rng.random() < 0.1
            self.step(c.Checkin(lease.lease_id, "failed" if failed else "ok", verdict))
        return outcome

    def _lost(self, lease: Lease, outcome: str) -> str:
        """The pipe ended, or what came through it was no answer: then the worker goes, and the call is lost too."""
        if outcome == "lie":
            self.step(c.Checkin(lease.lease_id, "none", Remove("a foreign id"), "protocol_error"))
        else:
            self.step(c.Checkin(lease.lease_id, "lost"))
        return "lost"

    def _runs(self, caller: Caller, lease: Lease) -> Steps:
        """A lease without a program: some runs, and pauses between them."""
        for _ in range(caller.runs):
            program, cancellable = self.rng.choice(("a", "b", "evil")), self.rng.choice((None, True, False))
            self.step(c.RunStarted(lease.lease_id, program, cancellable))
            if lease.refusal is not None:
                break
            if lease.state is not LeaseState.GRANTED:
                return self._expired()
            caller.written = True
            outcome = yield from self._exchange(caller, lease)
            caller.written = False
            if outcome == "timeout":
                caller.closed = True
                self.step(c.Cancel(lease.lease_id, True, "timeout"))
                return outcome
            if outcome != "ok":
                caller.closed = True
                return self._lost(lease, outcome)
            self.step(c.RunEnded(lease.lease_id, self.rng.choice(("ok", "ok", "failed"))))
            yield Wait("sleep", self._soon(self.rng.choice((0.01, 0.5))))
        caller.closed = True
        removed = self._chance("remove_at_checkin")
        self.step(c.Checkin(lease.lease_id, "none", Remove("leaky") if removed else KEEP))
        return "ok"

"""FakeLauncher: workers in memory. No process is made; everything else of a pool is the real thing.

    def answer(call: FakeCall) -> object:
        return call.inputs["question"].upper()

    with dspool.Pool(workers=2, launcher=FakeLauncher(answer)) as pool:
        pool.run(program, {"question": "why?"})     # "WHY?"; `program` itself is not run

A fake worker is the other end of the same descriptors that a process has: socket pairs for control and slots, a
lifeline, and a pipe in the place of the pidfd. So what is tested is the pool's own reading, writing and watching.

Rules:
    1. What a call answers is scripted: a value, an exception (raised or returned), an ErrorInfo, or an action (Hang,
       Die, CloseSlot, Garbage, ForeignId, Late, Then). What isn't scripted is answered with an error that names it.
    2. A fake says what it is: its ping holds `"mock": true`, its start method is "fake", its pid is None.
    3. Closing the lifeline kills it as it would a process: its ends close, its exit can be seen, its status is SIGKILL.
    4. One thread serves all fakes of a launcher. `answer` runs there and must not block: that is what Hang and Late
       are for.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

from dspool.errors import WorkerStartError
from dspool.supervisor.launch import Launcher, LaunchRequest
from dspool.supervisor.process import ExitStatus
from dspool.testing.fake_loop import FakeLoop
from dspool.testing.fake_script import (
    Answer,
    Boot,
    CloseSlot,
    Control,
    Die,
    FakeCall,
    ForeignId,
    Garbage,
    Hang,
    Late,
    Then,
    Trigger,
    frame_of,
)
from dspool.testing.fake_worker import FakeWorker

__all__ = [
    "CloseSlot",
    "Die",
    "FakeCall",
    "FakeLauncher",
    "ForeignId",
    "Garbage",
    "Hang",
    "Late",
    "Then",
    "Trigger",
    "frame_of",
]


class FakeLauncher(Launcher):
    """Start method "fake".

    Args:
        answer: what calls are answered with; None: each with an error that names it.
        boot: what happens at a worker's handshake; None: all is well.
        control: answers a control command as `answer` does a call, given the worker_id and the Request; what it
            returns NotImplemented for goes on as if it weren't there.

    Attributes:
        workers: worker_id -> FakeWorker, each that was ever launched.
        calls: every call that came, in order.
    """

    start_method: str = "fake"

    def __init__(
        self,
        answer: Answer | None = None,
        *,
        boot: Boot | None = None,
        control: Control | None = None,
    ) -> None:
        self.answer = answer
        self.boot = boot
        self.control = control
        self.workers: dict[int, FakeWorker] = {}
        self.calls: list[FakeCall] = []
        self._loop: FakeLoop | None = None

    async def launch(self, request: LaunchRequest) -> FakeWorker:
        """Make one worker.

        Raises:
            WorkerStartError: out of file descriptors.
        """
        if self._loop is None:
            self._loop = FakeLoop()
        try:
            worker = FakeWorker(self, self._loop, request)
        except OSError as error:
            raise WorkerStartError(f"a fake worker can't be made: {error}") from error
        self.workers[request.worker_id] = worker
        return worker

    async def aclose(self, deadline: float = 0.0) -> None:
        """End the thread, and what is left of the workers with it."""
        loop, self._loop = self._loop, None
        if loop is not None:
            for worker in self.workers.values():
                loop.do(worker.die_now, ExitStatus(signal=signal.SIGKILL, known=True))
            loop.stop()

    def kill(self, worker_id: int, *, code: int | None = None, signum: int | None = signal.SIGKILL) -> None:
        """Let a worker die by itself: by a signal, or with an exit code. Its pipes are closed when this returns."""
        status = ExitStatus(code=code, signal=signum if code is None else None, known=True)
        self._on_loop(worker_id, lambda worker: worker.die_now(status))

    def freeze(self, worker_id: int) -> None:
        """Let a worker read nothing more, as SIGSTOP does. It can still be killed."""
        self._on_loop(worker_id, lambda worker: worker.set_frozen(True))

    def thaw(self, worker_id: int) -> None:
        """Undo freeze()."""
        self._on_loop(worker_id, lambda worker: worker.set_frozen(False))

    def close_control(self, worker_id: int) -> None:
        """Let a worker close its control pipe, and live on."""
        self._on_loop(worker_id, lambda worker: worker.close_control())

    def _on_loop(self, worker_id: int, work: Callable[[FakeWorker], None]) -> None:
        worker = self.workers[worker_id]
        if self._loop is not None:
            self._loop.do(work, worker, wait=True)

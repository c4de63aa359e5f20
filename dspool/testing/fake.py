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

import contextlib
import functools
import os
import queue
import selectors
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from dspool.errors import DspoolError, ProtocolError, WorkerStartError
from dspool.protocol import values
from dspool.protocol.codec import MSGPACK
from dspool.protocol.frames import HEADER_BYTES, FrameDecoder
from dspool.protocol.messages import PROTOCOL_VERSION, ErrorInfo, Request, Response, answered, refused
from dspool.supervisor import forked
from dspool.supervisor.launch import LaunchRequest
from dspool.supervisor.process import UNKNOWN_STATUS, ExitStatus

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
]


class FakeCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call as a script sees it.

    Attributes:
        worker_id: where it came.
        slot: on which of its slots.
        number: which call of this worker it is, from 1 on.
        program: the program's label or import path, as far as the worker was told.
        inputs: plain data, as a program in a process would get them.
        request: the whole request.
    """

    worker_id: int
    slot: int
    number: int
    program: str
    inputs: dict[str, Any]
    request: Request


class Trigger:
    """Something a test pulls once, and a `Late` waits for. Pulling is legal before, after, and from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pulled = False
        self._listeners: list[Callable[[], None]] = []

    def pull(self) -> None:
        """Let everything go that waits for it, now and later."""
        with self._lock:
            self._pulled = True
            listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener()

    def when_pulled(self, listener: Callable[[], None]) -> None:
        """Call `listener` once, on the thread that pulls; at once where that is over."""
        with self._lock:
            if not self._pulled:
                self._listeners.append(listener)
                return
        listener()


class Hang(msgspec.Struct, frozen=True):
    """Never answer."""


class Die(msgspec.Struct, frozen=True):
    """End without an answer: with an exit code, or by a signal."""

    code: int | None = None
    signal: int | None = None


class CloseSlot(msgspec.Struct, frozen=True):
    """Close this slot's pipe and live on."""


class Garbage(msgspec.Struct, frozen=True):
    """Write these bytes where an answer belongs; by default a whole frame that is no message."""

    data: bytes = b"\x00\x00\x00\x03\xc1\xc1\xc1"


class ForeignId(msgspec.Struct, frozen=True):
    """Answer well, but to a request that nobody made."""

    request_id: int = 2**40
    value: Any = None


class Late(msgspec.Struct, frozen=True):
    """Go on with `then` once `until` is pulled, or, where it is a socket, can be read (the fake closes it).

    Where the worker dies first, `then` never happens.
    """

    until: Trigger | socket.socket
    then: Any = None


class Then(msgspec.Struct, frozen=True):
    """Several of these, in order: the answer first, then what comes after it unasked."""

    outcomes: Sequence[Any]


Answer = Callable[[FakeCall], Any]
Boot = Callable[[int], Any]
"""worker_id -> None to boot well, an exception to answer the handshake with, or an action in place of the answer."""


class FakeLauncher:
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
        control: Callable[[int, Request], Any] | None = None,
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

    async def aclose(self) -> None:
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


class FakeLoop:
    """The thread behind the fakes: a selector, and work that is handed to it."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.setblocking(False)
        self._wake_in.setblocking(False)
        self.selector.register(self._wake_out, selectors.EVENT_READ, self._take_work)
        self._running = True
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="dspool-fakes", daemon=True)
        self._thread.start()

    def do(self, work: Callable[..., None], *args: Any, wait: bool = False) -> None:
        """Have work done on the thread; with `wait`, return when it is done."""
        if threading.current_thread() is self._thread:
            work(*args)
            return
        done = threading.Event()

        def work_and_tell() -> None:
            try:
                work(*args)
            finally:
                done.set()

        self._post(work_and_tell)
        while wait and not done.wait(0.1) and not self._over.is_set():
            pass

    def stop(self) -> None:
        """End the thread, after the work that was handed to it."""
        self._post(None)
        self._over.wait()
        self._thread.join()

    def _post(self, work: Callable[[], None] | None) -> None:
        self._work.put(work)
        try:
            self._wake_in.send(b"\0")
        except OSError:
            return  # it has a wake-up waiting, or is over

    def _take_work(self, events: int) -> None:
        try:
            while self._wake_out.recv(4096):
                pass
        except BlockingIOError:
            pass
        while not self._work.empty():
            work = self._work.get()
            if work is None:
                self._running = False
            else:
                work()

    def _serve(self) -> None:
        try:
            while self._running:
                for key, events in self.selector.select():
                    if self.selector.get_map().get(key.fd) is key:  # an earlier one of this round may have closed it
                        key.data(events)
        finally:
            self._over.set()
            self.selector.close()
            self._wake_out.close()
            self._wake_in.close()


class FakeWorker:
    """One fake; a Launched, and what is behind it. Everything but making it and `reap` happens on the loop's thread."""

    def __init__(self, launcher: FakeLauncher, loop: FakeLoop, request: LaunchRequest) -> None:
        self.worker_id = request.worker_id
        self.request = request
        self.pid: int | None = None
        self.start_method = launcher.start_method
        self.output_fds: dict[str, int] = {}
        self.dump_fd: int | None = None
        self.programs: dict[str, str] = {}
        self.calls = 0
        self.status: ExitStatus | None = None
        self.frozen = False
        self._launcher = launcher
        self._loop = loop
        self._stopping = False
        self.control, control = _socketpair()
        pairs = [_socketpair() for _ in range(request.slots)]
        self.slots = [ours for ours, _ in pairs]
        self._lifeline_end, self.lifeline_fd = os.pipe()
        self.exit_fd, self._exit_end = os.pipe()
        for fd in (self.lifeline_fd, self.exit_fd):
            forked.guard_fd(fd)
        self._control = Conn(self, control, self._serve_control)
        self._slots = [
            Conn(self, theirs, functools.partial(self._serve_slot, number)) for number, (_, theirs) in enumerate(pairs)
        ]
        self._awaited: set[socket.socket] = set()
        loop.do(self._begin)

    # --- Launched

    def send_signal(self, signum: int) -> None:
        """The default action of the signals that end a process; others do nothing."""
        if signum in (signal.SIGTERM, signal.SIGKILL, signal.SIGABRT):
            self._loop.do(self.die_now, ExitStatus(signal=signum, known=True))

    def reap(self) -> ExitStatus:
        """How it ended."""
        return self.status or UNKNOWN_STATUS

    # --- life

    def _begin(self) -> None:
        self._loop.selector.register(self._lifeline_end, selectors.EVENT_READ, self._cut)
        for conn in (self._control, *self._slots):
            conn.watch()

    def _cut(self, events: int) -> None:
        self.die_now(ExitStatus(signal=signal.SIGKILL, known=True))

    def die_now(self, status: ExitStatus) -> None:
        """End. What it never read is lost, as with a process."""
        if self.status is not None:
            return
        self.status = status
        self._loop.selector.unregister(self._lifeline_end)
        os.close(self._lifeline_end)
        for conn in (self._control, *self._slots):
            conn.close()
        for sock in list(self._awaited):
            self._stop_awaiting(sock)
        with contextlib.suppress(BrokenPipeError):
            os.write(self._exit_end, b"x")
        os.close(self._exit_end)

    def set_frozen(self, frozen: bool) -> None:
        """Read nothing; read again."""
        self.frozen = frozen
        for conn in (self._control, *self._slots):
            conn.watch()

    def close_control(self) -> None:
        """Close the control pipe."""
        self._control.close()

    def ended(self, conn: Conn) -> None:
        """The manager closed a pipe."""
        conn.close()
        if conn is self._control:
            self.die_now(ExitStatus(code=0, known=True))

    def broken(self, conn: Conn) -> None:
        """The manager wrote something that is no frame."""
        self.die_now(ExitStatus(code=76, known=True))

    # --- what it is asked

    def _serve_control(self, conn: Conn, request: Request) -> None:
        scripted = NotImplemented if self._launcher.control is None else self._scripted_control(request)
        if scripted is not NotImplemented:
            self._react(conn, request, scripted)
        elif request.command == "ping":
            outcome = None
            if request.args.get("initialization") and self._launcher.boot is not None:
                outcome = _outcome(self._launcher.boot, self.worker_id)
            if outcome is None:
                conn.send(answered(request.id, self._pong()))
            elif isinstance(outcome, BaseException):
                conn.send(refused(request.id, _info(outcome, "boot_error")))
                self.die_now(ExitStatus(code=77, known=True))
            elif isinstance(outcome, Late):
                self._when(outcome.until, lambda: conn.send(answered(request.id, self._pong())))
            else:
                self._react(conn, request, outcome)
        elif request.command == "shutdown":
            conn.send(answered(request.id, {"status": "shutdown_complete"}))
            self._stopping = True
            self._leave_if_idle()
        else:
            conn.send(refused(request.id, _unscripted(f"control command {request.command!r}")))

    def _scripted_control(self, request: Request) -> Any:
        assert self._launcher.control is not None
        return _outcome(self._launcher.control, self.worker_id, request)

    def _pong(self) -> dict[str, Any]:
        states = ["closed" if conn.closed else "busy" if conn.busy else "idle" for conn in self._slots]
        return {
            "status": "ok",
            "mock": True,
            "worker_id": self.worker_id,
            "pid": None,
            "protocol_version": PROTOCOL_VERSION,
            "dspy_version": None,
            "python_version": "",
            "slots": [{"state": state} for state in states],
        }

    def _serve_slot(self, slot: int, conn: Conn, request: Request) -> None:
        conn.busy = True
        if request.command == "create_program":
            spec = request.args.get("spec") or {}
            name = spec.get("label") or spec.get("path") or spec.get("signature") or ""
            self.programs[request.args["program_id"]] = str(name)
            result = {"program_id": request.args["program_id"], "status": "created"}
            self._answer(conn, answered(request.id, result))
        elif request.command != "execute_program":
            self._answer(conn, refused(request.id, _unscripted(f"command {request.command!r}")))
        elif request.args["program_id"] not in self.programs:
            self._answer(conn, refused(request.id, ErrorInfo("program_missing", "Program not found")))
        else:
            self._execute(slot, conn, request)

    def _execute(self, slot: int, conn: Conn, request: Request) -> None:
        self.calls += 1
        program = self.programs[request.args["program_id"]]
        call = FakeCall(
            worker_id=self.worker_id,
            slot=slot,
            number=self.calls,
            program=program,
            inputs=request.args["inputs"],
            request=request,
        )
        self._launcher.calls.append(call)
        if self._launcher.answer is None:
            self._answer(conn, refused(request.id, _unscripted(f"call of {program or 'a program'}")))
        else:
            self._react(conn, request, _outcome(self._launcher.answer, call))

    def _react(self, conn: Conn, request: Request, outcome: Any) -> None:
        """Do what the script says."""
        match outcome:
            case Hang():
                return
            case Die(code=code, signal=signum):
                self.die_now(ExitStatus(code=0 if code is None and signum is None else code, signal=signum, known=True))
            case CloseSlot():
                conn.close()
            case Garbage(data=data):
                conn.send_bytes(data)
            case ForeignId(request_id=request_id, value=value):
                self._answer(conn, answered(request_id, {"value": value}))
            case Late(until=until, then=then):
                self._when(until, lambda: self._react(conn, request, then))
            case Then(outcomes=outcomes):
                for each in outcomes:
                    self._react(conn, request, each)
            case ErrorInfo():
                self._answer(conn, refused(request.id, outcome))
            case BaseException():
                self._answer(conn, refused(request.id, _info(outcome, "program_error")))
            case _:
                try:
                    self._answer(conn, answered(request.id, {"value": values.to_plain(outcome)}))
                except DspoolError as error:
                    self._answer(conn, refused(request.id, ErrorInfo("encode_error", f"the result {error}")))

    def _answer(self, conn: Conn, response: Response) -> None:
        conn.busy = False
        conn.send(response)
        self._leave_if_idle()

    def _leave_if_idle(self) -> None:
        if self._stopping and not any(conn.busy and not conn.closed for conn in self._slots):
            self.die_now(ExitStatus(code=0, known=True))

    def _when(self, until: Trigger | socket.socket, go_on: Callable[[], None]) -> None:
        def go_on_alive() -> None:
            if self.status is None:
                go_on()

        if isinstance(until, Trigger):
            until.when_pulled(lambda: self._loop.do(go_on_alive))
            return
        sock = until

        def readable(events: int) -> None:
            self._loop.selector.unregister(sock)
            self._awaited.discard(sock)
            go_on_alive()
            sock.close()

        self._awaited.add(sock)
        self._loop.selector.register(sock, selectors.EVENT_READ, readable)

    def _stop_awaiting(self, sock: socket.socket) -> None:
        self._awaited.discard(sock)
        self._loop.selector.unregister(sock)
        sock.close()


class Conn:
    """The worker's end of one framed pipe. Reads whole requests, never blocks on writing."""

    def __init__(self, worker: FakeWorker, sock: socket.socket, serve: Callable[[Conn, Request], None]) -> None:
        self.closed = False
        self.busy = False
        self._worker = worker
        self._selector = worker._loop.selector
        self._sock = sock
        self._serve = serve
        self._decoder = FrameDecoder()
        self._unsent = bytearray()
        self._watched = 0

    def watch(self) -> None:
        """Say to the selector what is waited for."""
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        wanted = 0 if self.closed or self._worker.frozen else wanted
        if wanted == self._watched:
            return
        if not wanted:
            self._selector.unregister(self._sock)
        elif not self._watched:
            self._selector.register(self._sock, wanted, self._ready)
        else:
            self._selector.modify(self._sock, wanted, self._ready)
        self._watched = wanted

    def send(self, response: Response) -> None:
        """An answer."""
        self.send_bytes(MSGPACK.encode(response))

    def send_bytes(self, data: bytes | bytearray) -> None:
        """Any bytes, in order after what waits already."""
        if not self.closed:
            self._unsent += data
            self._flush()

    def close(self) -> None:
        """Close this end."""
        if not self.closed:
            self.closed = True
            self.watch()
            self._sock.close()

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()
        self.watch()

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush()
        if events & selectors.EVENT_READ and not self.closed:
            self._receive()

    def _receive(self) -> None:
        try:
            count = self._sock.recv_into(self._decoder.space())
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self._worker.ended(self)
            return
        self._decoder.received(count)
        try:
            while not self.closed and (body := self._decoder.next_frame()) is not None:
                self._serve(self, MSGPACK.decode_request(body))
        except ProtocolError:
            self._worker.broken(self)


def frame_of(response: Response) -> bytes:
    """A response as the bytes of a frame, for Garbage."""
    return bytes(MSGPACK.encode(response))


def oversized_header(length: int) -> bytes:
    """The four bytes that announce a body of so many bytes."""
    return length.to_bytes(HEADER_BYTES, "big")


def _socketpair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    forked.guard_socket(ours)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def _outcome(script: Callable[..., Any], *args: Any) -> Any:
    """What a script returns, or raises: both mean the same."""
    try:
        return script(*args)
    except Exception as error:
        return error


def _info(error: BaseException, code: str) -> ErrorInfo:
    kinds = [f"{base.__module__}.{base.__qualname__}" for base in type(error).__mro__ if base is not object]
    return ErrorInfo(code, str(error), kinds[0], kinds, f"(scripted) {kinds[0]}: {error}")


def _unscripted(what: str) -> ErrorInfo:
    return ErrorInfo("unscripted", f"this worker is a fake, and nobody scripted its answer to {what}")

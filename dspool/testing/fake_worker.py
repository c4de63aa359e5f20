"""One fake worker. See `fake`."""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import signal
import socket
from collections.abc import Callable
from typing import Any, Protocol

from dspool.errors import DspoolError
from dspool.protocol import values
from dspool.protocol.messages import PROTOCOL_VERSION, ErrorInfo, Request, Response, answered, refused
from dspool.supervisor import forked
from dspool.supervisor.launch import LaunchRequest
from dspool.supervisor.process import UNKNOWN_STATUS, ExitStatus
from dspool.testing.fake_loop import Conn, FakeLoop
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
)


class Scripts(Protocol):
    """What a launcher tells its fakes."""

    start_method: str
    answer: Answer | None
    boot: Boot | None
    control: Control | None
    calls: list[FakeCall]


class FakeWorker:
    """One fake; a Launched, and what is behind it. All but making it and `reap` happens on the loop's thread."""

    def __init__(self, scripts: Scripts, loop: FakeLoop, request: LaunchRequest) -> None:
        self.worker_id = request.worker_id
        self.request = request
        self.pid: int | None = None
        self.start_method = scripts.start_method
        self.output_fds: dict[str, int] = {}
        self.dump_fd: int | None = None
        self.programs: dict[str, str] = {}
        self.calls = 0
        self.status: ExitStatus | None = None
        self.frozen = False
        self._scripts = scripts
        self._loop = loop
        self._stopping = False
        self.control, control = _socketpair()
        pairs = [_socketpair() for _ in range(request.slots)]
        self.slots = [ours for ours, _ in pairs]
        self._lifeline_end, self.lifeline_fd = os.pipe()
        self.exit_fd, self._exit_end = os.pipe()
        for fd in (self.lifeline_fd, self.exit_fd):
            forked.guard_fd(fd)
        self._control = Conn(self, loop, control, self._serve_control)
        self._slots = [
            Conn(self, loop, theirs, functools.partial(self._serve_slot, number))
            for number, (_, theirs) in enumerate(pairs)
        ]
        self._awaited: set[socket.socket] = set()
        loop.do(self._begin)

    # --- Launched

    def send_signal(self, signum: int) -> None:
        """The default action of the signals that end a process; others do nothing."""
        if signum in (signal.SIGTERM, signal.SIGKILL, signal.SIGABRT):
            self._loop.do(self.die_now, ExitStatus(signal=signum, known=True))

    async def settle(self) -> None:
        """Its status is there with its death."""

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

    def broken(self) -> None:
        """The manager wrote something that is no frame."""
        self.die_now(ExitStatus(code=76, known=True))

    # --- what it is asked

    def _serve_control(self, conn: Conn, request: Request) -> None:
        scripted = NotImplemented if self._scripts.control is None else self._scripted_control(request)
        if scripted is not NotImplemented:
            self._react(conn, request, scripted)
        elif request.command == "ping":
            outcome = None
            if request.args.get("initialization") and self._scripts.boot is not None:
                outcome = _outcome(self._scripts.boot, self.worker_id)
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
        assert self._scripts.control is not None
        return _outcome(self._scripts.control, self.worker_id, request)

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
        self._scripts.calls.append(call)
        if self._scripts.answer is None:
            self._answer(conn, refused(request.id, _unscripted(f"call of {program or 'a program'}")))
        else:
            self._react(conn, request, _outcome(self._scripts.answer, call))

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

"""The process behind ScriptedLauncher, and `behave`, the callable whose inputs say what it does.

    python -P -m dspool.testing.scripted_worker [--fault NAME] --control FD --lifeline FD --dump FD --slots FD,...

It speaks the pipes as a worker does, in the plainest way: one thread for each pipe, no DSPy, no program table beyond
names, nothing imported but the standard library and `dspool.protocol`. Whatever program it is asked to run, it calls
`behave(**inputs)`.

`behave` is an ordinary callable too: run as a program in a real worker it does the same there, also what is done to the
worker's own pipes, whose numbers stand in the process's arguments.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import fcntl
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from dspool.errors import DspoolError, FrameTooLarge, InvalidMessage, ProtocolError
from dspool.protocol import values
from dspool.protocol.codec import MSGPACK
from dspool.protocol.frames import FrameDecoder
from dspool.protocol.limits import DUMP_SIGNAL, EXIT_BOOT_ERROR, EXIT_BROKEN_FRAME
from dspool.protocol.messages import PROTOCOL_VERSION, ErrorInfo, Request, Response, answered, refused

FAULTS = ("boot_error", "exit", "crash", "hang", "garbage", "eof", "old_protocol")
"""What can go wrong with a scripted worker's start."""

# --- what a program can do --------------------------------------------------------------------------------------------

_calls = 0


def behave(do: str = "echo", **inputs: Any) -> Any:
    """Do what `do` names; the rest of the inputs are its arguments. See the functions below."""
    return _BEHAVIOURS[do](**inputs)


def echo(value: Any = None) -> Any:
    """Give back the value."""
    return value


def pid() -> int:
    """This process."""
    return os.getpid()


def count() -> list[int]:
    """This process and how often it was asked this: state that a session may keep in a worker."""
    global _calls
    _calls += 1
    return [os.getpid(), _calls]


def environment(name: str) -> str | None:
    """A variable of this process's environment."""
    return os.environ.get(name)


def loaded(names: list[str]) -> list[str]:
    """Which of these modules are loaded."""
    return [name for name in names if name in sys.modules]


def meet(path: str, value: Any = None) -> Any:
    """Say at the socket `path` that the call has begun, and give back the value when it is let go there."""
    with _arrive(path) as sock:
        sock.recv(1)
    return value


def sleep(seconds: float) -> float:
    """Take a while."""
    time.sleep(seconds)
    return seconds


def fail(message: str = "no luck") -> NoReturn:
    """Raise a ValueError."""
    raise ValueError(message)


def leave(code: int = 1) -> NoReturn:
    """Exit without a word, as os._exit does."""
    os._exit(code)


def crash(signum: int = signal.SIGSEGV) -> None:
    """Die by a signal."""
    faulthandler.disable()
    os.kill(os.getpid(), signum)
    _wait_for_ever()


def hang_gil(path: str) -> None:
    """Say at `path` that it begins, then sit in C for ever, holding the interpreter's lock."""
    with _arrive(path):
        ctypes.PyDLL(None).pause()


def flood(size: int, fd: int = 1) -> int:
    """Write so many bytes of lines, straight to a file descriptor."""
    line = b"x" * 79 + b"\n"
    data = memoryview(line * (size // len(line) + 1))[:size]
    written = 0
    while written < size:
        written += os.write(fd, data[written:])
    return written


def say(text: str) -> str:
    """Print a line."""
    print(text, flush=True)
    return text


def big(size: int) -> bytes:
    """So many bytes."""
    return b"b" * size


def length(data: bytes | str) -> int:
    """How long the value is."""
    return len(data)


def unencodable() -> object:
    """Something that no message can hold."""
    return object()


def garbage(data: bytes = b"\x00\x00\x00\x03\xc1\xc1\xc1") -> None:
    """Write bytes into every slot's pipe, where an answer belongs."""
    for fd in slot_fds():
        os.write(fd, data)
    _wait_for_ever()


def foreign_id(value: Any = None) -> None:
    """Answer a request that nobody made."""
    garbage(bytes(MSGPACK.encode(answered(2**40, {"value": value}))))


def end_slot() -> None:
    """End this worker's slots' pipes and live on."""
    for fd in slot_fds():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
            sock.shutdown(socket.SHUT_RDWR)


def end_control() -> None:
    """End the control pipe and live on."""
    with socket.socket(fileno=os.dup(_fds("--control")[0])) as sock:
        sock.shutdown(socket.SHUT_RDWR)


def babble(path: str) -> None:
    """Give back nothing at once; write a frame that nobody asked for when it is let go at `path`."""
    sock = _arrive(path)

    def write() -> None:
        with sock:
            sock.recv(1)
            for fd in slot_fds():
                os.write(fd, bytes(MSGPACK.encode(answered(2**40, {"value": "nobody asked"}))))

    threading.Thread(target=write, daemon=True).start()


def deaf(path: str) -> None:
    """Ignore SIGTERM and be busy for ever; so do a child and a grandchild, whose numbers are told at `path`."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with _arrive(path) as sock:
        for _ in range(2):
            if child := os.fork():
                sock.sendall(f"{child}\n".encode())
                break
    _wait_for_ever()


_BEHAVIOURS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(echo, pid, count, environment, loaded, meet, sleep, fail, leave, crash, hang_gil, flood, say, big, length),
        *(unencodable, garbage, foreign_id, end_slot, end_control, babble, deaf),
    )
}


def _arrive(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(path)
    sock.sendall(f"{os.getpid()}\n".encode())
    return sock


def _wait_for_ever() -> None:
    while True:
        time.sleep(3600)


def _fds(option: str) -> list[int]:
    arguments = sys.argv
    return [int(number) for number in arguments[arguments.index(option) + 1].split(",")]


def slot_fds() -> list[int]:
    """The numbers of this worker's slot pipes."""
    return _fds("--slots")


# --- the worker -------------------------------------------------------------------------------------------------------


class ScriptedWorker:
    """Handshake, then one thread for each pipe."""

    def __init__(self, fault: str | None) -> None:
        self._fault = fault
        self._control = socket.socket(fileno=_fds("--control")[0])
        self._slots = [socket.socket(fileno=fd) for fd in slot_fds()]
        self._programs: set[str] = set()
        self._worker_id = 0
        self._max_frame_bytes = 64 * 2**20
        self._busy = 0
        self._idle = threading.Condition()
        self._stopping = False

    def run(self) -> NoReturn:
        """Serve until the control pipe ends."""
        _arm_lifeline(_fds("--lifeline")[0])
        dump = _fds("--dump")[0]
        faulthandler.enable(file=dump)
        faulthandler.register(DUMP_SIGNAL, file=dump)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._handshake()
        threading.Thread(target=self._serve_control, daemon=True).start()
        for sock in self._slots[1:]:
            threading.Thread(target=self._serve, args=(sock, self._answer_slot), daemon=True).start()
        self._serve(self._slots[0], self._answer_slot)  # the first slot's calls run on the main thread, as in a worker
        threading.Event().wait()
        raise AssertionError

    def _handshake(self) -> None:
        decoder = FrameDecoder()
        request = _receive(self._control, decoder)
        if request is None:
            os._exit(0)
        self._worker_id = request.args["worker_id"]
        self._max_frame_bytes = request.args["config"].get("max_frame_bytes", self._max_frame_bytes)
        match self._fault:
            case "boot_error":
                info = ErrorInfo("boot_error", "no luck", "builtins.ImportError", traceback="Traceback: no luck")
                self._send(self._control, refused(request.id, info))
                os._exit(EXIT_BOOT_ERROR)
            case "exit":
                print("scripted to exit", file=sys.stderr, flush=True)
                os._exit(3)
            case "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                threading.Event().wait()
            case "garbage":
                self._control.sendall(b"GET / HTTP/1.1\r\n\r\n")
                threading.Event().wait()
            case "eof":
                self._control.close()
                threading.Event().wait()
        description = self._pong() | {
            "protocol_version": PROTOCOL_VERSION - (self._fault == "old_protocol"),
            "dspy_version": None,
            "python_version": sys.version.split()[0],
        }
        self._send(self._control, answered(request.id, description))

    def _pong(self) -> dict[str, Any]:
        return {"status": "ok", "scripted": True, "worker_id": self._worker_id, "pid": os.getpid()}

    def _serve_control(self) -> None:
        self._serve(self._control, self._answer_control)
        os._exit(0)

    def _serve(self, sock: socket.socket, answer: Callable[[Request], Response]) -> None:
        decoder = FrameDecoder(self._max_frame_bytes)
        try:
            while (request := _receive(sock, decoder)) is not None:
                with self._idle:
                    self._busy += sock is not self._control
                response = answer(request)
                self._send(sock, response)
                with self._idle:
                    self._busy -= sock is not self._control
                    self._idle.notify_all()
        except (InvalidMessage, OSError):
            return
        except ProtocolError as error:
            print(f"scripted worker: {error}", file=sys.stderr, flush=True)
            os._exit(EXIT_BROKEN_FRAME)

    def _send(self, sock: socket.socket, response: Response) -> None:
        try:
            frame = MSGPACK.encode(response, self._max_frame_bytes)
        except FrameTooLarge as error:
            frame = MSGPACK.encode(refused(response.id, ErrorInfo("result_too_large", f"the result: {error}")))
        except DspoolError as error:
            frame = MSGPACK.encode(refused(response.id, ErrorInfo("encode_error", f"the result {error}")))
        sock.sendall(frame)

    def _answer_control(self, request: Request) -> Response:
        if request.command == "ping":
            return answered(request.id, self._pong())
        if request.command == "shutdown":
            threading.Thread(target=self._leave, daemon=True).start()
            return answered(request.id, {"status": "shutdown_complete"})
        return refused(request.id, ErrorInfo("unknown_command", f"Unknown command: {request.command}"))

    def _leave(self) -> None:
        with self._idle:
            self._idle.wait_for(lambda: self._busy == 0)
        os._exit(0)

    def _answer_slot(self, request: Request) -> Response:
        args = request.args
        if request.command == "create_program":
            self._programs.add(args["program_id"])
            return answered(request.id, {"program_id": args["program_id"], "status": "created"})
        if request.command != "execute_program":
            return refused(request.id, ErrorInfo("unknown_command", f"Unknown command: {request.command}"))
        if args["program_id"] not in self._programs:
            return refused(request.id, ErrorInfo("program_missing", f"Program not found: {args['program_id']}"))
        try:
            value = behave(**args["inputs"])
        except Exception as error:
            kind = f"{type(error).__module__}.{type(error).__qualname__}"
            return refused(request.id, ErrorInfo("program_error", str(error), kind, [kind], f"Traceback: {error}"))
        try:
            return answered(request.id, {"value": values.to_plain(value)})
        except DspoolError as error:
            return refused(request.id, ErrorInfo("encode_error", f"the result can't be sent: {error}"))


def _receive(sock: socket.socket, decoder: FrameDecoder) -> Request | None:
    while (body := decoder.next_frame()) is None:
        try:
            received = sock.recv_into(decoder.space())
        except ConnectionResetError:
            return None
        if not received:
            decoder.finish()
            return None
        decoder.received(received)
    return MSGPACK.decode_request(body)


def _arm_lifeline(fd: int) -> None:
    """As every worker: the kernel kills this process group when the manager's end closes."""
    fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(fd, 0)
    if poll.poll(0):
        os._exit(0)


def main() -> NoReturn:
    """Become a scripted worker."""
    arguments = sys.argv[1:]
    fault = arguments[arguments.index("--fault") + 1] if "--fault" in arguments else None
    ScriptedWorker(fault).run()


if __name__ == "__main__":
    main()

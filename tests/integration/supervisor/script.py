"""What a scripted worker does: speaks the pipe without dspy and does what a test tells it to.

How it boots and what it obeys is in the variable SCRIPT, as words. Once it is ready it takes orders, lines of text,
from its first slot's pipe, and answers each that leaves it alive with a line.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from dspool.protocol.codec import MSGPACK
from dspool.protocol.frames import FrameDecoder, encode_frame
from dspool.protocol.limits import EXIT_BOOT_ERROR
from dspool.protocol.messages import ErrorInfo, Request, Response, answered, refused

IGNORES_SIGTERM = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"


class Script:
    """One run."""

    def __init__(self, words: set[str], control: socket.socket, slot: socket.socket) -> None:
        self.words = words
        self.control = control
        self.slot = slot
        self.decoder = FrameDecoder()
        self.held: list[Request] = []

    def requests(self) -> list[Request]:
        """The next requests; ends the process at EOF, if it obeys that."""
        count = self.control.recv_into(self.decoder.space())
        if not count:
            if "ignore_eof" in self.words:
                signal.pause()
            os._exit(0)
        self.decoder.received(count)
        found = []
        while (frame := self.decoder.next_frame()) is not None:
            found.append(MSGPACK.decode_request(frame))
        return found

    def send(self, response: Response) -> None:
        self.control.sendall(MSGPACK.encode(response))

    def boot(self) -> None:
        """Answer the handshake, or fail in the way the script says."""
        if "boot_exit" in self.words:
            print("cannot go on", file=sys.stderr, flush=True)
            os._exit(3)
        if "boot_crash" in self.words:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "boot_silent" in self.words:
            self.slot.sendall(b"booting\n")
            time.sleep(600)
        handshake: list[Request] = []
        while not handshake:
            handshake = self.requests()
        if "boot_garbage" in self.words:
            self.control.sendall(encode_frame(b"\xc1 not a message"))
            signal.pause()
        if "boot_error" in self.words:
            info = ErrorInfo("boot_error", "no such module", "builtins.ImportError", traceback="Traceback: here it was")
            self.send(refused(0, info))
            if "lingers" in self.words:
                signal.pause()
            os._exit(EXIT_BOOT_ERROR)
        version = 99 if "boot_version" in self.words else 1
        args = handshake[0].args
        result = {"status": "ok", "worker_id": args["worker_id"], "pid": os.getpid(), "protocol_version": version}
        self.send(answered(0, {**result, "dspy_version": None, "python_version": "3.x"}))

    def serve_control(self) -> None:
        while True:
            for request in self.requests():
                if request.command == "ping" and "hold_pongs" in self.words:
                    self.held.append(request)
                    self.slot.sendall(b"held\n")
                elif request.command == "ping":
                    self.send(answered(request.id, {"status": "ok"}))
                elif request.command == "shutdown" and "ignore_shutdown" not in self.words:
                    self.send(answered(request.id, {"status": "shutdown_complete"}))
                    os._exit(0)

    def serve_orders(self) -> None:
        for line in self.slot.makefile():
            name, *args = line.split()
            order: Callable[..., str | None] = getattr(self, f"do_{name}")
            answer = order(*args)
            self.slot.sendall(f"{answer or 'ok'}\n".encode())

    def do_exit(self, code: str) -> None:
        os._exit(int(code))

    def do_signal(self, name: str) -> None:
        os.kill(os.getpid(), getattr(signal, name))

    def do_crash(self) -> None:
        ctypes.string_at(0)

    def do_spin(self) -> None:
        self.slot.sendall(b"spinning\n")
        while True:
            pass

    def do_hold_gil(self) -> None:
        self.slot.sendall(b"holding\n")
        ctypes.PyDLL(None).sleep(600)

    def do_grandchild(self) -> str:
        child = subprocess.Popen([sys.executable, "-c", IGNORES_SIGTERM], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        child.stdout.readline()
        return str(child.pid)

    def do_daemon(self) -> str:
        """A grandchild that escapes the group, and writes for ever."""
        begun, begin = os.pipe()
        child = os.fork()
        if child == 0:
            os.setsid()
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.write(1, b"flooding\n" * 100)
            os.write(begin, b"x")
            while True:
                os.write(1, b"flooding\n" * 100)
        os.read(begun, 1)
        return str(child)

    def do_say(self, stream: str, text: str) -> None:
        os.write(1 if stream == "stdout" else 2, text.encode() + b"\n")

    def do_flood(self, count: str) -> None:
        line = b"x" * 99 + b"\n"
        for _ in range(int(count) // len(line) // 10):
            os.write(1, line * 10)
            os.write(2, line * 10)

    def do_raw(self, text: str) -> None:
        self.control.sendall(bytes.fromhex(text))

    def do_foreign(self, request_id: str) -> None:
        self.send(answered(int(request_id), {}))

    def do_end_control(self) -> None:
        self.words |= {"ignore_eof"}
        self.control.shutdown(socket.SHUT_WR)

    def do_pong(self, number: str) -> None:
        self.send(answered(self.held[int(number) - 1].id, {"status": "ok"}))

    def do_env(self, name: str) -> str:
        return os.environ[name]

    def do_describe(self) -> str:
        fds = [name for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")]
        return f"{os.getsid(0)} {os.getpgrp()} {' '.join(fds)}"

    def do_eat(self, megabytes: str) -> None:
        self.eaten = bytearray(b"x") * (int(megabytes) * 2**20)


def run(words: set[str], control: int, slot: int) -> None:
    """Be that worker."""
    script = Script(words, socket.socket(fileno=control), socket.socket(fileno=slot))
    script.boot()
    threading.Thread(target=script.serve_control, daemon=True).start()
    script.serve_orders()
    signal.pause()

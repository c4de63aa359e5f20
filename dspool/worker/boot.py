"""From the handshake to the exit: the part of a worker's life that a spawned and a forked child have in common.

    1. The handshake is read on the control pipe: sys.path, preload modules, DSPy if it is asked for, warm programs.
    2. It is answered. A worker that can't boot says why and exits with EXIT_BOOT_ERROR.
    3. Slots and control pipe are served until shutdown or the control pipe's end.

Which thread does what: with one slot, the main thread serves it; with several, each has a daemon thread and the main
thread loads programs for them (main_thread.py says why). The control pipe has a daemon thread of its own.

Exits: 0 after shutdown and at the control pipe's end, EXIT_BROKEN_FRAME after a broken frame on any pipe, at once.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import msgspec

from dspool.errors import InvalidMessage, ProtocolError
from dspool.protocol.limits import EXIT_BOOT_ERROR, EXIT_BROKEN_FRAME
from dspool.protocol.messages import (
    HANDSHAKE_ID,
    PROTOCOL_VERSION,
    BootConfig,
    ErrorInfo,
    Request,
    Response,
    answered,
    refused,
)
from dspool.protocol.secrets import Secrets
from dspool.worker.calls import Calls, Slot
from dspool.worker.control import Control, dspy_version
from dspool.worker.ending import exit_after_fault, force_exit_later, leave
from dspool.worker.failures import describe
from dspool.worker.import_paths import import_preload
from dspool.worker.loop import Pipe, serve
from dspool.worker.main_thread import MainThread
from dspool.worker.programs import Loader, ProgramTable
from dspool.worker.stdio import flush_stdio


class BootError(Exception):
    """A handshake that can't be followed."""


class Worker:
    """One worker process. `run` serves it to its end.

    Args:
        control: the control pipe's end.
        slots: the slot pipes' ends.
        secrets: those of the environment, where they have been looked for already.
    """

    def __init__(self, control: socket.socket, slots: Sequence[socket.socket], secrets: Secrets | None = None) -> None:
        self._control_socket = control
        self._sockets = list(slots)
        self._control_pipe = Pipe.over_socket(control)
        self._main_thread = MainThread()
        self._secrets = secrets or Secrets.of_environment()
        self._worker_id: int | None = None
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._open_slots = len(self._sockets)
        self._stopping = False
        self._may_leave = False
        # A child that a program forks must neither answer for it nor keep the pipes open.
        os.register_at_fork(after_in_child=self._close_sockets)

    def run(self) -> NoReturn:
        """Boot, serve, exit. Called on the main thread."""
        try:
            request = self._read_handshake()
            config, calls = self._boot(request)
        except ProtocolError as error:
            self._exit_broken("control pipe", error)
        pipes = [Pipe.over_socket(sock) for sock in self._sockets]
        slots = [Slot(calls, pipe.send_event) for pipe in pipes]
        cancel = calls.cancellable.cancel
        control = Control(config.worker_id, slots, lambda: len(calls.programs), self._stop_reading, cancel)
        for pipe in (self._control_pipe, *pipes):
            pipe.max_frame_bytes = config.max_frame_bytes
        self._control_pipe.send(answered(request.id, self._description()))
        self._start_thread("control", lambda: self._serve_control(control))
        if len(slots) == 1:
            self._serve_slot(0, pipes[0], slots[0])
        else:
            for number, (pipe, slot) in enumerate(zip(pipes, slots, strict=True)):
                self._start_thread(f"slot-{number}", partial(self._serve_slot, number, pipe, slot))
        self._main_thread.serve()
        leave()

    # The handshake

    def _read_handshake(self) -> Request:
        while (body := self._control_pipe.receive()) is not None:
            try:
                request = self._control_pipe.codec.decode_request(body)
            except InvalidMessage as error:
                self._control_pipe.send(refused(error.request_id, ErrorInfo(error.code, str(error))))
                continue
            if request.id == HANDSHAKE_ID and request.command == "ping" and request.args.get("initialization"):
                return request
            message = f"the first request is the handshake, not {request.command!r:.80}"
            self._control_pipe.send(refused(request.id, ErrorInfo("invalid_command", message)))
        os._exit(0)

    def _boot(self, request: Request) -> tuple[BootConfig, Calls]:
        """Do what the handshake says; answer and exit if that fails, whatever it is that fails."""
        try:
            config = read_config(request.args)
            self._worker_id = config.worker_id
            return config, self._prepare(config)
        except BaseException as error:
            response = refused(request.id, describe(error, "boot_error", self._secrets))
            self._say_last(response)
            flush_stdio()
            os._exit(EXIT_BOOT_ERROR)

    def _prepare(self, config: BootConfig) -> Calls:
        if config.lm is not None:
            self._secrets.add_lm(config.lm)
        set_sys_path(config.sys_path)
        if config.required_packages:
            check_packages(config.required_packages)
        for module in config.preload:
            import_preload(module)
        loader = Loader(config, self._secrets, self._main_thread)
        # A plain function that imports DSPy by itself must find the cache that the options ask for, too.
        own_cache = config.cache is not None and config.cache.explicit
        if config.lm is not None or config.adapter is not None or own_cache or "dspy" in sys.modules:
            loader.runtime  # noqa: B018 - asking for it imports and configures DSPy
        programs = ProgramTable(loader.load, config.max_programs)
        for program in config.warm:
            programs.create(program.program_id, program.spec)
        return Calls(programs, self._main_thread, self._secrets, on_loop=config.on_loop)

    def _description(self) -> dict[str, Any]:
        return {
            "status": "ok",
            "worker_id": self._worker_id,
            "pid": self._pid,
            "protocol_version": PROTOCOL_VERSION,
            "dspy_version": dspy_version(),
            "python_version": platform.python_version(),
        }

    def _say_last(self, response: Response) -> None:
        with contextlib.suppress(OSError):  # nobody is there to be told
            self._control_pipe.send(response)

    # Serving

    def _serve_slot(self, number: int, pipe: Pipe, slot: Slot) -> None:
        try:
            serve(pipe, slot.answer, slot.answered)
        except ProtocolError as error:
            # The race: 1. a request is under way; 2. shutdown closes this end for reading; 3. its rest never comes.
            # That is no broken frame: the writer is told (EPIPE) that its request was not wholly read.
            if not self._stopping:
                self._exit_broken(f"pipe of slot {number}", error)
        if os.getpid() != self._pid:  # a program forked, and its child came back here
            os._exit(0)
        slot.closed()
        self._sockets[number].close()
        with self._lock:
            self._open_slots -= 1
            self._let_main_thread_go()

    def _serve_control(self, control: Control) -> None:
        try:
            serve(self._control_pipe, control.answer, self._leave_if_done)
        except ProtocolError as error:
            self._exit_broken("control pipe", error)
        # The end of the control pipe: what runs has EXIT_GRACE_S left.
        self._stop_reading()
        self._leave_if_done()
        force_exit_later()

    def _stop_reading(self) -> None:
        """Read no further requests.

        Shutting a socket down for reading wakes its thread, lets what was received be read and the answer be written,
        and tells a later writer at once (EPIPE). Done before shutdown is answered, so that nothing which is written
        after that answer can be half read.
        """
        with self._lock:
            self._stopping = True
            for sock in self._sockets:
                with contextlib.suppress(OSError):  # closed already, by us or by the other side
                    sock.shutdown(socket.SHUT_RD)

    def _leave_if_done(self) -> None:
        """Let the main thread go once nothing is read any more, shutdown is answered and so are the running calls."""
        with self._lock:
            self._may_leave = self._stopping
            self._let_main_thread_go()

    def _let_main_thread_go(self) -> None:
        if self._may_leave and self._open_slots == 0:
            self._main_thread.stop()

    # Ending

    def _exit_broken(self, where: str, error: ProtocolError) -> NoReturn:
        flush_stdio()
        line = f"dspool worker {self._worker_id}: broken frame on the {where}: {error}\n"
        with contextlib.suppress(OSError):
            os.write(2, line.encode())
        os._exit(EXIT_BROKEN_FRAME)

    def _start_thread(self, name: str, work: Callable[[], None]) -> None:
        def work_or_exit() -> None:
            try:
                work()
            except BaseException:
                # Without this thread the worker would look healthy and never answer.
                exit_after_fault()

        threading.Thread(target=work_or_exit, name=name, daemon=True).start()

    def _close_sockets(self) -> None:
        for sock in (self._control_socket, *self._sockets):
            sock.close()


def read_config(args: dict[str, Any]) -> BootConfig:
    """The configuration in a handshake's arguments.

    Raises:
        BootError: it isn't one, or of another version.
    """
    version = args.get("protocol_version")
    if version != PROTOCOL_VERSION:
        raise BootError(f"the manager speaks protocol version {version!r:.20}, this worker {PROTOCOL_VERSION}")
    try:
        config = msgspec.convert(args.get("config"), BootConfig)
    except msgspec.ValidationError as error:
        raise BootError(f"the handshake's config is not valid: {error}") from None
    if not isinstance(config.adapter, str | bytes | None):
        raise BootError(f"the handshake's adapter is a {type(config.adapter).__name__}")
    return config


def check_packages(required: Sequence[str]) -> None:
    """Raise where a required package is not installed here, or has another version.

    Raises:
        BootError: it names each.
    """
    from dspool import requirements

    if lacking := requirements.lacking(required, requirements.installed(required)):
        raise BootError(f"required packages: {'; '.join(lacking)} (in {sys.executable})")


def set_sys_path(wanted: Sequence[str]) -> None:
    """Make imports find what the manager finds, in its order; what only this interpreter has comes after."""
    if sys.path[: len(wanted)] != [*wanted]:
        sys.path[:] = [*wanted, *(folder for folder in sys.path if folder not in wanted)]
        importlib.invalidate_caches()

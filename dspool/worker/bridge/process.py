"""The bridge as a process: its descriptors, its loop, and its end.

    1. What stdin and stdout are is moved to numbers of its own; 0 is /dev/null then and 1 what 2 is, for the programs,
       for C code and for every process that they start.
    2. The main thread reads a request, carries it out, writes the answer. DSPy is imported with the first need of it.
    3. It exits as reference.EXITS says. What runs when its client goes away has EXIT_GRACE_S left: one thread waits for
       that and does nothing else.

SIGTERM ends it at once, as any process; SIGINT is ignored, since Ctrl-C goes to a terminal's whole foreground group and
when to end is the client's business: its own end is the end of stdin.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import select
import signal
import threading
from typing import NoReturn

from dspool.errors import ProtocolError
from dspool.protocol.codec import JSON
from dspool.protocol.limits import EXIT_BROKEN_FRAME
from dspool.protocol.messages import BootConfig
from dspool.protocol.secrets import Secrets
from dspool.worker.bridge.commands import Commands
from dspool.worker.bridge.frame_log import FrameLog, LoggedPipe
from dspool.worker.bridge.options import BridgeOptions
from dspool.worker.bridge.reference import EXIT_IO_ERROR, EXIT_USAGE
from dspool.worker.ending import exit_after_fault, force_exit_later, leave
from dspool.worker.lifeline import reset_signals
from dspool.worker.loop import Pipe, serve
from dspool.worker.programs import Loader
from dspool.worker.stdio import fill_stdio, flush_stdio, take_stdio

_ENVIRONMENT = {
    # litellm would fetch its price table from the network when it is imported, and DSPy with its first call.
    "LITELLM_LOCAL_MODEL_COST_MAP": "true",
    # N bridges with a BLAS thread per core each are N times too many threads.
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"),
}
_READER_GONE = (errno.EPIPE, errno.ECONNRESET)


class FramePipe:
    """The two descriptors that frames go through.

    A child that a program forks has them closed before it does anything: it must neither take its parent's requests nor
    answer for it, and it must not keep the pipes open after its parent's end.

    Args:
        source: where requests come from.
        target: where answers go.
    """

    def __init__(self, source: int, target: int) -> None:
        self._source = source
        self._target = target
        self.failure: OSError | None = None
        os.register_at_fork(after_in_child=self._close)

    def receive_into(self, room: memoryview) -> int:
        """Read what there is; 0 at the end."""
        return os.readv(self._source, [room])

    def send(self, frame: bytearray) -> None:
        """Write all of it; what goes wrong in another way than that nobody reads is kept in `failure`."""
        left = memoryview(frame)
        try:
            while left:
                left = left[os.write(self._target, left) :]
        except OSError as error:
            if error.errno not in _READER_GONE:
                self.failure = error
            raise

    def wait_until_nobody_reads(self) -> None:
        """Return when the other end of the answers' pipe is closed; never, where they go to a file."""
        poll = select.poll()
        poll.register(self._target, 0)
        poll.poll()

    def _close(self) -> None:
        for fd in (self._source, self._target):
            with contextlib.suppress(OSError):
                os.close(fd)
        # Not numbers that mean another file in the child by and by.
        self._source = self._target = -1


def run(options: BridgeOptions) -> NoReturn:
    """Serve this process's stdin and stdout to their end, and exit."""
    if problem := _problem_of_stdin():
        _exit_with(EXIT_USAGE, problem)
    fill_stdio()  # or the log could become stderr
    secrets = Secrets.of_environment()
    try:
        log = None if options.debug_log is None else FrameLog(options.debug_log, secrets)
    except OSError as error:
        _exit_with(EXIT_USAGE, f"--debug-log {options.debug_log} can't be written: {error.strerror}")
    pipe = FramePipe(*take_stdio())
    reset_signals({signal.SIGTERM, signal.SIGINT})
    faulthandler.enable(2)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    config = BootConfig(0, "bridge", max_frame_bytes=options.max_frame_bytes)
    commands = Commands(options, Loader(config, secrets), secrets)
    threading.Thread(target=_end_with_the_reader, args=(pipe,), name="reader-gone", daemon=True).start()
    _serve(_framed(pipe, options, log), commands, pipe)


def _framed(pipe: FramePipe, options: BridgeOptions, log: FrameLog | None) -> Pipe:
    if log is None:
        return Pipe(pipe.receive_into, pipe.send, JSON, options.max_frame_bytes)
    return LoggedPipe(pipe.receive_into, pipe.send, options.max_frame_bytes, log)


def _serve(framed: Pipe, commands: Commands, pipe: FramePipe) -> NoReturn:
    pid = os.getpid()

    def leave_if_shut_down() -> None:
        if commands.is_shut_down:
            leave()

    try:
        serve(framed, commands.answer, leave_if_shut_down)
    except ProtocolError as error:
        _exit_with(EXIT_BROKEN_FRAME, f"broken frame on stdin: {error}")
    except OSError as error:
        pipe.failure = error
    except BaseException:
        exit_after_fault()
    if os.getpid() != pid:  # a program forked, and its child came back here
        os._exit(0)
    if pipe.failure is not None:
        _exit_with(EXIT_IO_ERROR, f"stdin or stdout failed: {pipe.failure.strerror}")
    leave()


def _end_with_the_reader(pipe: FramePipe) -> None:
    """A call that hangs would otherwise outlive its client for ever: nothing reads the end of stdin meanwhile."""
    pipe.wait_until_nobody_reads()
    force_exit_later()


def _problem_of_stdin() -> str | None:
    """Why stdin and stdout can't carry frames, or None."""
    for fd, name in ((0, "stdin"), (1, "stdout")):
        try:
            os.fstat(fd)
        except OSError:
            return f"{name} is closed, and frames go through it"
    if os.isatty(0):
        return (
            "stdin is a terminal. This command reads frames, a 4-byte length and JSON each, from the program that has"
            " started it; see python -m dspool.worker.bridge --help"
        )
    return None


def _exit_with(code: int, line: str) -> NoReturn:
    """Exit at once, with one line on stderr."""
    flush_stdio()
    with contextlib.suppress(OSError):
        os.write(2, f"dspool bridge: {line}\n".encode("utf-8", "backslashreplace"))
    os._exit(code)

"""What the control pipe is asked: ping, cancel, dump, get_stats and shutdown. Answered while calls run, by a thread of
its own.

Everything here reads what other threads write and takes no lock that is ever held for long, so that a ping is answered
as long as Python runs.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from dspool.protocol.messages import PROTOCOL_VERSION, CancelArgs, ErrorInfo, Request, Response, answered, refused
from dspool.worker.calls import Slot

MAX_STACKS_BYTES = 256 * 1024
_DSPY_FOLDER = re.compile(r"dspy-(\d[^-]*)\.dist-info")


class Control:
    """The control pipe's commands.

    Args:
        worker_id: this worker's.
        slots: its slots.
        count_programs: how many programs are loaded.
        stop_reading: has the slots take no further requests; shutdown calls it before it is answered.
        cancel: cancels the call of a request.
    """

    def __init__(
        self,
        worker_id: int,
        slots: Sequence[Slot],
        count_programs: Callable[[], int],
        stop_reading: Callable[[], None],
        cancel: Callable[[int], None],
    ) -> None:
        self._worker_id = worker_id
        self._slots = slots
        self._count_programs = count_programs
        self._stop_reading = stop_reading
        self._cancel = cancel
        self._started = time.monotonic()
        self._commands: dict[str, Callable[[], dict[str, Any]]] = {
            "ping": self._ping,
            "dump": self._dump,
            "get_stats": self._get_stats,
            "shutdown": self._shutdown,
        }

    def answer(self, request: Request) -> Response:
        """The answer to a request."""
        if request.command == "cancel":
            return self._cancel_call(request)
        command = self._commands.get(request.command)
        if command is None:
            return refused(request.id, ErrorInfo("unknown_command", f"Unknown command: {request.command}"))
        return answered(request.id, command())

    def _cancel_call(self, request: Request) -> Response:
        try:
            args = msgspec.convert(request.args, CancelArgs)
        except msgspec.ValidationError as error:
            return refused(request.id, ErrorInfo("invalid_args", f"cancel: {error}"))
        self._cancel(args.id)
        return answered(request.id, {})

    def _ping(self) -> dict[str, Any]:
        now = time.monotonic()
        states = [slot.state for slot in self._slots]
        return {
            "status": "ok",
            "worker_id": self._worker_id,
            "pid": os.getpid(),
            "timestamp": time.time(),  # noqa: TID251 - a moment for people, as the original bridge sends it
            "uptime": now - self._started,
            "slots": [
                {"state": state, "since_s": now - since, "request_id": request_id}
                for state, since, request_id in states
            ],
            "programs": self._count_programs(),
        }

    def _dump(self) -> dict[str, Any]:
        return {"stacks": format_stacks()}

    def _get_stats(self) -> dict[str, Any]:
        return {
            "command_count": sum(slot.commands for slot in self._slots),
            "error_count": sum(slot.errors for slot in self._slots),
            "programs_count": self._count_programs(),
            "uptime": time.monotonic() - self._started,
            "memory_usage": memory_usage(),
            "dspy_version": dspy_version(),
            "protocol_version": PROTOCOL_VERSION,
        }

    def _shutdown(self) -> dict[str, Any]:
        self._stop_reading()
        return {"status": "shutdown_complete"}


def format_stacks() -> str:
    """All threads' Python stacks as text."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        stack = "".join(traceback.format_stack(frame))
        parts.append(f"Thread {names.get(ident, '?')} ({ident}), most recent call last:\n{stack}")
    return "\n".join(parts)[-MAX_STACKS_BYTES:]


def memory_usage() -> dict[str, float]:
    """This process's memory: rss and vms in bytes, and its part of the machine's in percent."""
    import psutil

    process = psutil.Process()
    memory = process.memory_info()
    return {"rss": memory.rss, "vms": memory.vms, "percent": process.memory_percent()}


def dspy_version() -> str | None:
    """The version of DSPy that is installed, found without importing it; None if there is none.

    importlib.metadata reads the same folder's name; importing it takes longer than all of this worker's other modules.
    """
    loaded = getattr(sys.modules.get("dspy"), "__version__", None)
    if isinstance(loaded, str):
        return loaded
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:  # sys.path may name zip files and what doesn't exist
            continue
        for name in names:
            if found := _DSPY_FOLDER.fullmatch(name):
                return found[1]
    return None

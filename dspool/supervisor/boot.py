"""The handshake: what a worker is told first, and what its answer, or the lack of one, means."""

from __future__ import annotations

from typing import Any

import msgspec

from dspool.errors import WorkerStartError
from dspool.protocol.messages import PROTOCOL_VERSION, BootConfig, ErrorInfo, Response
from dspool.types import ExitReason

COMMAND = "ping"


class BootFailure(msgspec.Struct, frozen=True):
    """Why a worker can't serve, before it ever could.

    Attributes:
        detail: in words.
        traceback: of its own code, where that raised.
        stack_dump: where the process was that took too long.
        reason: the exit reason that this makes.
    """

    detail: str
    traceback: str = ""
    stack_dump: str = ""
    reason: ExitReason = "boot_error"


class LaunchFailed(WorkerStartError):
    """Raised by a launcher that knows more of why a worker can't be started than a text.

    Attributes:
        failure: what it knows.
    """

    def __init__(self, failure: BootFailure) -> None:
        super().__init__(failure.detail, None, failure.traceback or None)
        self.failure = failure


def handshake_args(config: BootConfig) -> dict[str, Any]:
    """The arguments of the first ping."""
    return {
        "initialization": True,
        "worker_id": config.worker_id,
        "protocol_version": PROTOCOL_VERSION,
        "config": config,
    }


def failure_of(error: ErrorInfo, message: str = "") -> BootFailure:
    """What a process said before it gave up."""
    message = message or error.message or "it gave no reason"
    kind = error.type.rpartition(".")[2]
    return BootFailure(f"{kind}: {message}" if kind else message, error.traceback)


def judge(response: Response, python: str) -> BootFailure | None:
    """What is wrong with the handshake's answer; None where the worker is ready."""
    if not response.success:
        return failure_of(response.error_info or ErrorInfo("boot_error"), response.error or "")
    version = response.result.get("protocol_version") if isinstance(response.result, dict) else None
    if version != PROTOCOL_VERSION:
        return BootFailure(
            f"the worker speaks protocol version {version}, its manager {PROTOCOL_VERSION}: another version of dspool"
            f" is installed for {python}"
        )
    return None

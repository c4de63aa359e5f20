"""Everything dspool raises.

    DspoolError
    ├── OptionsError(ValueError)        an option is out of range; no process was started
    ├── EncodeError(TypeError)          inputs or a program that can't be sent; no worker was touched
    ├── PoolError                       the pool could not give the call a worker
    │   ├── PoolClosed                  the pool is closed, closing or draining, or belongs to another process
    │   ├── PoolSaturated               the queue is full, or only stands
    │   ├── PoolBroken                  no worker is left and none can be started
    │   ├── QueueTimeout(TimeoutError)  no worker came free in time; none was touched
    │   ├── CheckoutSkipped             every worker was skipped, or too many were removed
    │   ├── SessionBusy                 the session's worker is busy (affinity="strict_fail_fast")
    │   ├── SessionLost                 the session's worker is gone (on_session_lost="error")
    │   ├── ProgramNotFound
    │   ├── ProgramExists
    │   └── ProgramQuarantined          its calls keep killing workers
    ├── WorkerError                     a worker failed; `report` says how
    │   ├── WorkerStartError            a worker could not start
    │   ├── WorkerLost                  it died, or was killed, with the call in it
    │   └── CallTimeout(TimeoutError)   the call's deadline came; its worker was killed
    ├── ProgramError                    the user's code failed; the worker is healthy
    └── ProtocolError                   what came through a pipe is not our protocol
        ├── FrameTooLarge
        ├── MalformedFrame
        └── InvalidMessage

Rules: an instance is made for one caller and raised once, never shared. A message names the pool, the worker and the
numbers, and says what to do now. Nothing here imports the rest of dspool but `types`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspool.types import ExitReport


class DspoolError(Exception):
    """Base of everything dspool raises on purpose."""


class OptionsError(DspoolError, ValueError):
    """An option has a value that can't work. Raised before any process is started."""


class EncodeError(DspoolError, TypeError):
    """Inputs or a program can't be sent to a worker. Raised before a worker is touched."""


class PoolError(DspoolError):
    """The pool could not give the call a worker. Nothing was executed unless a subclass says otherwise.

    Where an idempotent call had been sent before, and may have run, `__cause__` is the WorkerLost of that time.
    """

    retryable = False


class PoolClosed(PoolError):
    """The pool is closed, closing or draining, was never opened, or belongs to another process."""


class PoolSaturated(PoolError):
    """The queue is full (`max_waiting`, `max_waiting_bytes`), or the pool is overloaded and the call waited too long
    (`shed_target_s`). Nothing was executed; try again later.
    """

    retryable = True


class PoolBroken(PoolError):
    """No fitting worker is left and starts are stopped, because workers kept failing to start.

    Attributes:
        reports: the last failed starts, newest last.
    """

    def __init__(self, message: str, reports: Sequence[ExitReport] = ()) -> None:
        super().__init__(message)
        self.reports: tuple[ExitReport, ...] = tuple(reports)


class QueueTimeout(PoolError, TimeoutError):
    """No worker came free before the deadline, or it was over before the call could be sent. Nothing was executed, and
    no worker was touched.
    """

    retryable = True


class CheckoutSkipped(PoolError):
    """Every worker that could have served was skipped, or `max_removals` of them were removed for this one call.

    Attributes:
        reasons: worker_id -> what the verdict said of it.
        retryable: whether it was removed workers alone, each of which had died by itself: those are replaced.
    """

    def __init__(self, message: str, reasons: Mapping[int, str] | None = None, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.reasons: dict[int, str] = dict(reasons or {})
        self.retryable = retryable


class SessionBusy(PoolError):
    """The session's worker is busy and the call asked not to wait (affinity="strict_fail_fast")."""

    retryable = True


class SessionLost(PoolError):
    """The session's worker is gone and with it what the session kept there (on_session_lost="error"). Raised once."""

    retryable = True


class ProgramNotFound(PoolError):
    """No program of that name is registered."""


class ProgramExists(PoolError):
    """A program of that name is registered already; pass replace=True to put another in its place."""


class ProgramQuarantined(PoolError):
    """Calls of this program made several workers exit in a row; it is not run until its time is up or `release()`.

    Attributes:
        retry_after_s: seconds until the next trial.
    """

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class WorkerError(DspoolError):
    """A worker failed.

    Attributes:
        report: what is known of its end, None where it is not over yet.
    """

    retryable = True

    def __init__(self, message: str, report: ExitReport | None = None) -> None:
        super().__init__(message)
        self.report = report


class WorkerStartError(WorkerError):
    """A worker could not start. Where its own code failed, `remote_traceback` is that code's traceback."""

    retryable = False

    def __init__(self, message: str, report: ExitReport | None = None, remote_traceback: str | None = None) -> None:
        super().__init__(message, report)
        self.remote_traceback = remote_traceback


class WorkerLost(WorkerError):
    """The worker died or was killed after the call was sent. It may have run; it was not sent anywhere else."""


class CallTimeout(WorkerError, TimeoutError):
    """The call's deadline came after it was sent. Its worker was killed, or its slot given up; it may have run."""


class ProgramError(DspoolError):
    """The program, or its LM, failed. The worker is healthy and lent to others again.

    The remote exception's class is not rebuilt here: its name is in `type`, its bases in `mro`. Its traceback is shown
    wherever this error's own is, as a note.

    Attributes:
        code: what went wrong, as a word: "program_error" (it raised), "invalid_args", "encode_error" (its result can't
            be sent), "load_error" (it can't be built in the worker), "lm_error", "program_not_found", ...
        type: qualified name of the remote exception, e.g. "builtins.ValueError".
        mro: the same for all its bases, most derived first.
        remote_traceback: the remote traceback as text.
        retryable: whether the same call may succeed later (an LM's 429 or 503; never a ValueError).
        status: the provider's HTTP status, or None.
        retry_after_s: what the provider asked for, in seconds, or when the request's turn would have come; or None.
        details: further plain data about the error (e.g. expected and missing inputs).
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "program_error",
        type: str = "",
        mro: Sequence[str] = (),
        remote_traceback: str = "",
        retryable: bool = False,
        status: int | None = None,
        retry_after_s: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.type = type
        self.mro = tuple(mro)
        self.remote_traceback = remote_traceback
        self.retryable = retryable
        self.status = status
        self.retry_after_s = retry_after_s
        self.details: dict[str, Any] = dict(details or {})
        if remote_traceback:
            self.add_note(f"In the worker:\n{remote_traceback.rstrip()}")


class ProtocolError(DspoolError):
    """What came through a pipe is not our protocol. The peer can't be trusted any further."""


class FrameTooLarge(ProtocolError):
    """A frame's length is over `max_frame_bytes`; nothing was allocated for it."""


class MalformedFrame(ProtocolError):
    """The pipe ended inside a frame."""


class InvalidMessage(ProtocolError):
    """A whole frame whose body is not a valid message.

    Attributes:
        code: invalid_json (not decodable), missing_id, invalid_id, missing_command, invalid_command, missing_args,
            invalid_args, or invalid_response.
        request_id: the message's id where it could be read, else None.
    """

    def __init__(self, message: str, code: str = "invalid_json", request_id: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.request_id = request_id

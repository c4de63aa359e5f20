"""Exit codes: which there are, which error has which, and how an error is told.

`EXIT_CODES` is the one table; --help and the reference page are made from it.
"""

from __future__ import annotations

import re
import traceback
from enum import IntEnum

import click

from dspool import errors


class ExitCode(IntEnum):
    """What a command ends with."""

    OK = 0
    PROGRAM_FAILED = 1
    USAGE = 2
    ENVIRONMENT = 3
    WORKER_LOST = 4
    INTERNAL = 70
    INTERRUPTED = 130


EXIT_CODES: dict[ExitCode, str] = {
    ExitCode.OK: "done",
    ExitCode.PROGRAM_FAILED: "the program or its LM failed, or could not be loaded; map: some rows failed so",
    ExitCode.USAGE: "wrong use: an option, an input or a file is not as it should be; nothing was run",
    ExitCode.ENVIRONMENT: "no worker could be started, or what is needed is not there; doctor: a check failed",
    ExitCode.WORKER_LOST: "a worker was lost with the call in it, or the call's time was up; map: some rows failed so",
    ExitCode.INTERNAL: "an error in dspool itself; please report it with --traceback",
    ExitCode.INTERRUPTED: "interrupted with Ctrl-C",
}

_BAD_INPUT = frozenset({"invalid_args"})
_PROGRAM_UNUSABLE = frozenset({"load_error", "program_not_found"})
_ACCESS_REFUSED = frozenset({401, 403})


class EnvironmentLacks(click.ClickException):
    """Something that the command needs is not on this machine."""

    exit_code = ExitCode.ENVIRONMENT


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code that an error ends a command with."""
    match error:
        case KeyboardInterrupt() | click.Abort():
            return ExitCode.INTERRUPTED
        case errors.OptionsError() | errors.EncodeError() | errors.ProgramNotFound():
            return ExitCode.USAGE
        case errors.ProgramError():
            return ExitCode.USAGE if error.code in _BAD_INPUT else ExitCode.PROGRAM_FAILED
        case errors.WorkerStartError() | errors.PoolBroken() | ImportError():
            return ExitCode.ENVIRONMENT
        case errors.DspoolError():
            return ExitCode.WORKER_LOST
        case click.ClickException():
            return ExitCode.ENVIRONMENT if isinstance(error, EnvironmentLacks) else ExitCode.USAGE
        case OSError():
            return ExitCode.USAGE
    return ExitCode.INTERNAL


def ends_everything(error: BaseException) -> bool:
    """Whether every further row would meet the same error, so that going on would only spend time or money."""
    if isinstance(error, errors.ProgramError):
        return error.code in _PROGRAM_UNUSABLE or error.status in _ACCESS_REFUSED
    return isinstance(
        error,
        errors.PoolBroken
        | errors.PoolClosed
        | errors.WorkerStartError
        | errors.OptionsError
        | errors.ProgramQuarantined
        | errors.ProgramNotFound,
    )


_OPTIONS = {
    "timeout_s or queue_timeout_s": "--timeout",
    "timeout_s": "--timeout",
    "idempotent=True": "--idempotent (map)",
}
"""What errors advise to pass -> the commands' word for it."""


def explain(error: BaseException, *, with_traceback: bool = False) -> str:
    """One paragraph for people; with a traceback before it, the remote one included, where one is asked for."""
    kind = type(error).__name__
    message = _without_stacks(str(error))
    told = _in_the_commands_words(" ".join(message.split()) or kind)
    if exit_code_of(error) is ExitCode.INTERNAL:
        told = f"internal error, {kind}: {told}"
        has_more = True
    else:
        told = f"{kind}: {told}" if isinstance(error, errors.DspoolError) else told
        has_more = message != str(error) or bool(getattr(error, "remote_traceback", None))
    if not with_traceback:
        return f"dspool: {told}" + (" (--traceback shows where)" if has_more else "")
    parts = ["".join(traceback.format_exception(error)).rstrip()]
    remote = getattr(error, "remote_traceback", None)
    if remote and remote.rstrip() not in parts[0]:
        parts.append(f"In the worker:\n{remote.rstrip()}")
    return "\n".join([*parts, f"dspool: {told}"])


def _without_stacks(message: str) -> str:
    """A message that brings the worker's traceback or stacks along, as a person at a terminal needs it."""
    told = re.split(r"\s*(?:In the worker:\s*)?Traceback \(most recent call last\)", message, maxsplit=1)[0]
    return re.split(r"\n(?:Current thread|Thread) 0x", told, maxsplit=1)[0]


def _in_the_commands_words(told: str) -> str:
    """What a message advises to pass, as the commands' options are named."""
    for argument, option in _OPTIONS.items():
        told = re.sub(rf"(?<!\w){re.escape(argument)}(?!\w)", option, told)
    return told

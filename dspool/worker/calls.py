"""What a slot pipe is asked: execute_program and create_program. Never raises: whatever a program does is an answer.

A slot is one pipe and the thread that serves it, one call at a time. What it is doing is one tuple, replaced as a
whole, so that the control thread reads it without a lock.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from dspool.errors import EncodeError
from dspool.protocol import values
from dspool.protocol.messages import (
    CreateArgs,
    ErrorInfo,
    Event,
    ModelUse,
    Request,
    Response,
    StreamArgs,
    answered,
    refused,
)
from dspool.protocol.secrets import Secrets
from dspool.worker.failures import describe
from dspool.worker.inputs import InvalidInputs
from dspool.worker.main_thread import MainThread
from dspool.worker.programs import SPENT, Outcome, Program, ProgramTable
from dspool.worker.running import CallCancelled, CallLoop, CallRefused, CancellableCalls, RunningCall

if TYPE_CHECKING:
    from dspool.worker.callers import CallerRun

SlotState = tuple[str, float, int | None]
"""What a slot does ("idle", "busy", "closed"), since when (monotonic seconds), and for which request."""


class Calls:
    """Runs programs for requests. One for all slots.

    Attributes:
        cancellable: the calls that can be cancelled.

    Args:
        programs: those that are loaded.
        main_thread: where programs are loaded.
        secrets: what error texts must not hold.
        to_plain: makes a result sendable, as values.to_plain does.
        on_loop: run async programs on the worker's event loop, where they can be cancelled.
    """

    def __init__(
        self,
        programs: ProgramTable,
        main_thread: MainThread,
        secrets: Secrets,
        to_plain: Callable[[Any, str], Any] = values.to_plain,
        *,
        on_loop: bool = False,
    ) -> None:
        self.programs = programs
        self._main_thread = main_thread
        self._secrets = secrets
        self._to_plain = to_plain
        self._on_loop = on_loop
        self._loop = CallLoop()
        self.cancellable = CancellableCalls()

    def execute_program(
        self, request: Request, received: float, emit: Callable[[Event], None] | None = None
    ) -> Response:
        """Run a program that is loaded.

        Args:
            request: the request.
            received: when it was received, monotonic.
            emit: writes the events of a streamed call; None: there is no streaming here.
        """
        args = request.args
        program_id, inputs, lm = args.get("program_id"), args.get("inputs"), args.get("lm")
        if not isinstance(program_id, str) or not program_id:
            return refused(request.id, ErrorInfo("invalid_args", "Program ID is required"))
        if not isinstance(inputs, dict):
            kind = "missing" if inputs is None else type(inputs).__name__
            return refused(request.id, ErrorInfo("invalid_args", f"inputs is an object by field name; it is {kind}"))
        if not (lm is None or (isinstance(lm, dict) and "digest" in lm)):
            return refused(request.id, ErrorInfo("invalid_args", "lm is an object with a digest"))
        program = self.programs.get(program_id)
        if program is None:
            return refused(request.id, ErrorInfo("program_missing", f"Program not found: {program_id}"))
        deadline = None if request.deadline_ms is None else received + request.deadline_ms / 1000
        if (caller := args.get("caller")) is not None:
            return self._execute_for(caller, program, request, deadline, emit)
        try:
            program.inputs.check(inputs)
        except InvalidInputs as error:
            return refused(request.id, ErrorInfo("invalid_args", str(error), details=error.details))
        return self._execute(program, request, deadline, emit, streamed=args.get("stream") is not None)

    def _execute_for(
        self,
        caller: Any,
        program: Program,
        request: Request,
        deadline: float | None,
        emit: Callable[[Event], None] | None,
    ) -> Response:
        """Run a module under its caller's settings. What is to be brought back is, also of a call that failed."""
        for_caller = getattr(program, "for_caller", None)
        if not isinstance(caller, dict) or for_caller is None:
            return refused(request.id, ErrorInfo("invalid_args", "only a DSPy module takes a caller's settings"))
        run: CallerRun = for_caller(caller)
        self._secrets.add_settings(caller.get("settings") or {}, passing=True)
        response = self._execute(run, request, deadline, emit, streamed=caller.get("relay") is not None)
        response.records = run.records()
        return response

    def _execute(
        self,
        program: Program | CallerRun,
        request: Request,
        deadline: float | None,
        emit: Callable[[Event], None] | None,
        *,
        streamed: bool,
    ) -> Response:
        try:
            if emit is None or not (self._on_loop or streamed):
                kind, value, usage, spent = program.call(request.args["inputs"], request.args.get("lm"), deadline)
            else:
                kind, value, usage, spent = self._run(request, program, deadline, emit)
        except CallCancelled as error:
            return refused(request.id, ErrorInfo("cancelled", "the call was cancelled"), _spent_before(error))
        except CallRefused as error:
            return refused(request.id, ErrorInfo(error.code, str(error)), _spent_before(error))
        except BaseException as error:  # SystemExit too: a worker outlives what it runs
            return refused(request.id, describe(error, "program_error", self._secrets), _spent_before(error))
        try:
            result = {kind: self._to_plain(value, kind)}
            return answered(request.id, result, None if usage is None else self._to_plain(usage, "usage"), spent)
        except EncodeError as error:
            streams = isinstance(value, Iterator | AsyncIterator)
            hint = ", or call it with stream(), which hands its items out" if streams else ""
            return refused(request.id, ErrorInfo("encode_error", f"the result can't be sent: {error}{hint}"), spent)

    def _run(
        self, request: Request, program: Program | CallerRun, deadline: float | None, emit: Callable[[Event], None]
    ) -> Outcome:
        """Run a call that is streamed or can be cancelled.

        Raises:
            CallCancelled: it was.
            CallRefused: it was not run; or a piece of it can't be sent.
            BaseException: what the program raised.
        """
        args = request.args
        try:
            stream = None if args.get("stream") is None else msgspec.convert(args["stream"], StreamArgs)
        except msgspec.ValidationError as error:
            raise CallRefused("invalid_args", f"stream: {error}") from error
        with self.cancellable.running(request.id) as cancellation:
            cancellation.check()
            running = RunningCall(request.id, self._loop, cancellation, emit, stream)
            return program.call(args["inputs"], args.get("lm"), deadline, running)

    def create_program(self, request: Request, received: float, emit: object = None) -> Response:
        """Load a program and keep it."""
        try:
            args = msgspec.convert(request.args, CreateArgs)
        except msgspec.ValidationError as error:
            return refused(request.id, ErrorInfo("invalid_args", f"create_program: {error}"))
        try:
            self._main_thread.run(lambda: self.programs.create(args.program_id, args.spec))
        except BaseException as error:
            return refused(request.id, describe(error, "load_error", self._secrets))
        return answered(request.id, {"program_id": args.program_id, "status": "created"})


def _spent_before(error: BaseException) -> list[ModelUse] | None:
    """What a call had spent when this left it, or what led to this. Said once: it may be raised again."""
    for each in (error, error.__cause__):
        with contextlib.suppress(Exception):  # whatever its class makes of attributes
            spent: list[ModelUse] | None = each.__dict__.pop(SPENT, None)
            if spent is not None:
                return spent
    return None


class Slot:
    """One slot: what it does, and how often it did it.

    Args:
        calls: runs the programs.
        emit: writes an event to its pipe; None: it can't stream.
    """

    def __init__(self, calls: Calls, emit: Callable[[Event], None] | None = None) -> None:
        self._emit = emit
        self.state: SlotState = ("idle", time.monotonic(), None)
        self.commands = 0
        self.errors = 0
        self._commands = {"execute_program": calls.execute_program, "create_program": calls.create_program}

    def answer(self, request: Request) -> Response:
        """The answer to a request; the slot is busy until answered() is called."""
        received = time.monotonic()
        self.state = ("busy", received, request.id)
        self.commands += 1
        command = self._commands.get(request.command)
        if command is None:
            response = refused(request.id, ErrorInfo("unknown_command", f"Unknown command: {request.command}"))
        else:
            response = command(request, received, self._emit)
        if not response.success:
            self.errors += 1
        return response

    def answered(self) -> None:
        """The answer is written."""
        self.state = ("idle", time.monotonic(), None)

    def closed(self) -> None:
        """The pipe has ended."""
        self.state = ("closed", time.monotonic(), None)

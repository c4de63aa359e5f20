"""What a bridge's client can ask, one method a command. Answers are made here, written by the loop.

Rules:
    1. answer() never raises, and each request has exactly one answer.
    2. Requests are carried out one after the other, so configure_lm can't change the LM of a call that runs.
    3. A refused request has changed nothing.

What each command takes and gives stands in reference.py, for --help and for the documentation.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from typing import Any

import msgspec

from dspool.protocol import values
from dspool.protocol.definitions import DefinitionError, parse, shown_signature
from dspool.protocol.messages import (
    PROTOCOL_VERSION,
    DefinedProgram,
    ErrorInfo,
    LMSpec,
    Request,
    Response,
    answered,
    refused,
)
from dspool.protocol.secrets import Secrets
from dspool.worker.bridge import lms
from dspool.worker.bridge.options import BridgeOptions
from dspool.worker.bridge.programs import Programs, Record, wall_clock
from dspool.worker.bridge.refusal import Refused
from dspool.worker.bridge.sessions import Sessions
from dspool.worker.bridge.storage import Storage, size_of
from dspool.worker.calls import Calls
from dspool.worker.control import dspy_version, memory_usage
from dspool.worker.failures import describe
from dspool.worker.main_thread import MainThread
from dspool.worker.programs import Loader, ProgramTable

MAX_ID_CHARS = 512
"""Of a program's or a session's id."""
_SHOWN_CHARS = 200
_NOT_OF_THE_DEFINITION = {"id", "program_id", "session_id", "replace", "lm"}
_NOT_OF_A_GEMINI_DEFINITION = {*_NOT_OF_THE_DEFINITION, *lms.LMArgs.__struct_fields__}
_NO_LM = "No LM is loaded"
"""How DSPy begins to say it."""

Result = dict[str, Any]


class Commands:
    """The commands and what they work on.

    Args:
        options: the bridge's.
        loader: makes programs, and has the runtime with the default LM.
        secrets: what no answer may hold.
    """

    def __init__(self, options: BridgeOptions, loader: Loader, secrets: Secrets) -> None:
        self._options = options
        self._loader = loader
        self._secrets = secrets
        table = ProgramTable(loader.load, options.max_programs + 1)
        storage = Storage(options.max_stored_bytes)
        self._programs = Programs(table, storage, options.max_programs)
        self._sessions = Sessions(storage, options.max_sessions)
        self._calls = Calls(table, MainThread(), secrets, values.to_json)
        self._default_lm: LMSpec | None = None
        self._started = time.monotonic()
        self._commands = 0
        self._errors = 0
        self.is_shut_down = False
        self._handlers: dict[str, Callable[[Request], Result | Response]] = {
            "ping": self._ping,
            "get_stats": self._get_stats,
            "configure_lm": self._configure_lm,
            "create_program": self._create_program,
            "create_gemini_program": self._create_gemini_program,
            "execute_program": self._execute_program,
            "execute_gemini_program": self._execute_gemini_program,
            "list_programs": self._list_programs,
            "get_program_info": self._get_program_info,
            "delete_program": self._delete_program,
            "get_session_data": self._get_session_data,
            "update_session_data": self._update_session_data,
            "cleanup_session": self._cleanup_session,
            "reset_state": self._reset_state,
            "cleanup": self._cleanup,
            "shutdown": self._shutdown,
        }

    def answer(self, request: Request) -> Response:
        """The answer to a request."""
        self._commands += 1
        try:
            handler = self._handlers.get(request.command)
            if handler is None:
                raise Refused("unknown_command", f"Unknown command: {request.command:.{_SHOWN_CHARS}}")
            result = handler(request)
            response = result if isinstance(result, Response) else answered(request.id, result)
        except Refused as refusal:
            response = refused(request.id, refusal.info)
        except BaseException as error:
            response = refused(request.id, describe(error, "internal_error", self._secrets))
        if not response.success:
            self._errors += 1
        return response

    # The bridge itself

    def _ping(self, request: Request) -> Result:
        return {
            "status": "ok",
            "timestamp": wall_clock(),
            "worker_id": self._options.worker_id,
            "pid": os.getpid(),
            "uptime": time.monotonic() - self._started,
            "mode": self._options.mode,
            "protocol_version": PROTOCOL_VERSION,
            "dspy_version": dspy_version(),
        }

    def _get_stats(self, request: Request) -> Result:
        version = dspy_version()
        return {
            "command_count": self._commands,
            "error_count": self._errors,
            "programs_count": len(self._programs),
            "sessions_count": len(self._sessions),
            "uptime": time.monotonic() - self._started,
            "memory_usage": memory_usage(),
            "dspy_available": version is not None,
            "gemini_available": version is not None,  # DSPy's own client speaks to it
            "dspy_version": version,
            "protocol_version": PROTOCOL_VERSION,
        }

    def _reset_state(self, request: Request) -> Result:
        commands, errors = self._commands, self._errors
        removed = self._programs.clear()
        self._sessions.clear()
        self._commands = self._errors = 0
        gc.collect()
        return {"status": "reset", "programs_cleared": removed, "commands_reset": commands, "errors_reset": errors}

    def _cleanup(self, request: Request) -> Result:
        removed = self._programs.clear()
        gc.collect()
        return {"status": "cleaned", "programs_removed": removed}

    def _shutdown(self, request: Request) -> Result:
        self.is_shut_down = True
        return {"status": "shutdown_complete"}

    # LMs

    def _configure_lm(self, request: Request) -> Result:
        spec = lms.read_lm(request.args)
        self._make_default(spec)
        return {"status": "configured", "model": request.args["model"], "lm": spec.model}

    def _make_default(self, spec: LMSpec) -> None:
        self._check_lm(spec)
        self._loader.runtime.configure_lm(spec)
        self._default_lm = spec

    def _check_lm(self, spec: LMSpec) -> None:
        """Make the LM, so that what DSPy has to say against it is said now. It is kept, and the same is used later."""
        self._secrets.add_lm(spec)
        try:
            self._loader.runtime.lm(spec)
        except Exception as error:
            raise _refused_with(describe(error, "lm_config_error", self._secrets)) from error

    def _ensure_default(self) -> None:
        """Where no LM is configured and there is a Gemini key, use that, as the original bridge did."""
        if self._default_lm is None and (spec := lms.default_gemini()) is not None:
            self._make_default(spec)

    # Programs

    def _create_program(self, request: Request) -> Result:
        lm = lms.read_own_lm(request.args.get("lm"))
        return self._create(request, lm, _NOT_OF_THE_DEFINITION, gemini=False)

    def _create_gemini_program(self, request: Request) -> Result:
        lm = lms.read_gemini(request.args, self._default_lm)
        return self._create(request, lm, _NOT_OF_A_GEMINI_DEFINITION, gemini=True)

    def _create(self, request: Request, lm: LMSpec | None, not_defining: set[str], *, gemini: bool) -> Result:
        args = request.args
        program_id = self._id_in(args, "id" if args.get("id") is not None else "program_id", "Program ID")
        session_id = self._session_of(request) if self._options.by_session else None
        if session_id is not None:
            self._sessions.check_room(session_id)
        replace = args.get("replace")
        if not isinstance(replace, bool | None):
            raise Refused("invalid_args", f"replace is true or false, not {type(replace).__name__}")
        definition = {name: value for name, value in args.items() if name not in not_defining}
        try:
            parse(definition, allow_imports=self._options.allow_imports)
        except DefinitionError as error:
            raise Refused("invalid_definition", str(error)) from None
        if lm is not None:
            self._check_lm(lm)
        record = Record(
            program_id=program_id,
            session_id=session_id,
            signature=shown_signature(definition.get("signature")),
            program_type=definition.get("program_type", "predict"),
            size=size_of(definition),
            lm=lm,
            gemini=gemini,
        )
        try:
            self._programs.create(record, DefinedProgram(definition), replace=bool(replace))
        except Refused:
            raise
        except BaseException as error:
            code = "invalid_definition" if isinstance(error, DefinitionError) else "load_error"
            raise _refused_with(describe(error, code, self._secrets)) from error
        if session_id is not None:
            self._sessions.begin(session_id)
        return {"program_id": program_id, "status": "created"}

    def _execute_program(self, request: Request) -> Response:
        return self._execute(request, self._find(request))

    def _execute_gemini_program(self, request: Request) -> Response:
        record = self._find(request)
        if not record.gemini:
            message = f"Program {record.program_id} is not a Gemini program; use execute_program"
            raise Refused("not_a_gemini_program", message)
        return self._execute(request, record)

    def _execute(self, request: Request, record: Record) -> Response:
        received = time.monotonic()
        own = lms.read_own_lm(request.args.get("lm")) or record.lm
        if own is None and record.gemini and not lms.is_gemini(self._default_lm):
            own = lms.default_gemini()
        if own is None:
            self._ensure_default()
        else:
            self._check_lm(own)
        args = {
            "program_id": record.key,
            "inputs": {} if request.args.get("inputs") is None else request.args["inputs"],
            "lm": None if own is None else msgspec.to_builtins(own),
        }
        response = self._calls.execute_program(msgspec.structs.replace(request, args=args), received)
        info = response.error_info
        if info is None or info.code != "invalid_args":
            record.executed()
        if info is None:
            value = response.result
            response.result = value["outputs"] if "outputs" in value else {"result": value["value"]}
        elif own is None and self._default_lm is None and info.message.startswith(_NO_LM):
            info.code = "lm_not_configured"
            info.message = response.error = f"{_NO_LM}: send configure_lm first, or give the program an LM of its own"
        return response

    def _list_programs(self, request: Request) -> Result:
        return {"programs": self._programs.ids(self._session_of(request))}

    def _get_program_info(self, request: Request) -> Result:
        return self._find(request).info()

    def _delete_program(self, request: Request) -> Result:
        record = self._find(request)
        self._programs.delete(record)
        return {"program_id": record.program_id, "status": "deleted"}

    def _find(self, request: Request) -> Record:
        args = request.args
        program_id = self._id_in(args, "program_id" if args.get("program_id") is not None else "id", "Program ID")
        return self._programs.find(program_id, self._session_of(request))

    # Sessions

    def _get_session_data(self, request: Request) -> Result:
        return self._sessions.data(self._needed_session(request))

    def _update_session_data(self, request: Request) -> Result:
        session_id = self._needed_session(request)
        data = request.args.get("data")
        if not isinstance(data, dict | None):
            raise Refused("invalid_args", f"data is an object, not {type(data).__name__}")
        self._sessions.update(session_id, data or {})
        return {"status": "updated"}

    def _cleanup_session(self, request: Request) -> Result:
        session_id = self._needed_session(request)
        removed = self._programs.delete_of(session_id)
        self._sessions.remove(session_id)
        return {"status": "cleaned", "programs_removed": removed}

    def _needed_session(self, request: Request) -> str:
        session_id = self._session_of(request)
        if session_id is None:
            raise Refused("invalid_args", "Session ID is required")
        return session_id

    def _session_of(self, request: Request) -> str | None:
        """The session in the args, or beside them."""
        if request.args.get("session_id") is not None:
            return self._id_in(request.args, "session_id", "Session ID")
        return request.session_id

    @staticmethod
    def _id_in(args: dict[str, Any], name: str, label: str) -> str:
        value = args.get(name)
        if value is None or value == "":
            raise Refused("invalid_args", f"{label} is required")
        if not isinstance(value, str):
            raise Refused("invalid_args", f"{label} is text, not {type(value).__name__}")
        if len(value) > MAX_ID_CHARS:
            raise Refused("invalid_args", f"{label} has {len(value):,} characters; at most {MAX_ID_CHARS} are allowed")
        return value


def _refused_with(info: ErrorInfo) -> Refused:
    refusal = Refused(info.code, info.message)
    refusal.info = info
    return refusal

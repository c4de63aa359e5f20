"""Messages: requests and responses in the schema of the original bridge, with fields of our own beside its.

    request   {"id": int >= 0, "command": str, "args": {...}}   + session_id, deadline_ms, traceparent, timestamp
    response  {"id", "success": true, "result", "timestamp"}    + usage
              {"id", "success": false, "error": str, "timestamp"}   + error_info
    event     {"id", "event": "chunk" | "status", "data": {...}}, any number of them before a streamed call's response

Unknown fields and unknown args are ignored. `id` is null in the answer to a body whose id can't be read. Errors name
fields and types, never values: a body that is wrong may still hold secrets.

Knows nothing of bytes and pipes.

What goes through which pipe:
    slot pipe      execute_program, create_program; one request, its events if it is streamed, one response, in turn
    control pipe   ping (id 0 with a BootConfig is the handshake), cancel, dump, get_stats, shutdown
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import msgspec

from dspool.errors import InvalidMessage

PROTOCOL_VERSION = 1
HANDSHAKE_ID = 0

MAX_ID = 2**63 - 1
"""JSON has no limit, but an id that MessagePack can't carry couldn't be answered."""

Id = Annotated[int, msgspec.Meta(ge=0, le=MAX_ID)]

MAX_MODEL_CHARS = 256
"""Of a model's name in what a call spent."""
MAX_TOKENS = 2**53
"""One call's; no count that is read as a float elsewhere loses anything below it."""

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]


class Request(msgspec.Struct, omit_defaults=True):
    """What a worker is asked. `deadline_ms` is what was left when it was written."""

    id: Id
    command: str
    args: dict[str, Any]
    session_id: str | None = None
    deadline_ms: int | None = None
    traceparent: str | None = None
    timestamp: str | float | None = None


class ErrorInfo(msgspec.Struct, omit_defaults=True):
    """What is known of an error beside its text."""

    code: str
    message: str = ""
    type: str = ""
    mro: list[str] = []
    traceback: str = ""
    retryable: bool = False
    status: int | None = None
    retry_after_s: float | None = None
    details: dict[str, Any] = {}


class Response(msgspec.Struct, omit_defaults=True):
    """What it answers. `timestamp` is the worker's wall clock, seconds since the epoch."""

    id: Id | None
    success: bool
    result: Any = msgspec.UNSET
    error: str | None = None
    error_info: ErrorInfo | None = None
    usage: dict[str, Any] | None = None
    timestamp: float = 0.0
    records: Records | None = None
    spent: list[ModelUse] | None = None
    """What was asked of LMs, for the pool's statistics; also of a call that failed."""


class ModelUse(msgspec.Struct, omit_defaults=True):
    """What one call asked of one model: the requests that used tokens, those tokens, and what is known of their price.

    `requests` were answered by the provider, not by a cache; of so many of them, `priced`, `cost_usd` is the sum.
    `throttled` were held back by a limit or a provider's 429, `throttled_s` in all, or failed for it.
    """

    model: Annotated[str, msgspec.Meta(max_length=MAX_MODEL_CHARS)]
    requests: Count = 0
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    total_tokens: Count = 0
    cached_tokens: Count = 0
    priced: Count = 0
    cost_usd: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    throttled: Count = 0
    throttled_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class FieldChunk(msgspec.Struct, tag_field="of", tag="field"):
    """A piece of an output field of a predictor, as DSPy's StreamResponse. `chunk` is text but for DSPy's own types."""

    predict_name: str
    signature_field_name: str
    chunk: Any
    is_last_chunk: bool


class ItemChunk(msgspec.Struct, tag_field="of", tag="item"):
    """What a generator gave."""

    value: Any


class LMChunk(msgspec.Struct, tag_field="of", tag="lm"):
    """A chunk of an LM's answer as DSPy's listeners take it; `predictor`: whose request it was, by its place."""

    data: dict[str, Any]
    predictor: int | None = None


class Status(msgspec.Struct, tag_field="of", tag="status"):
    """A status message."""

    message: str


Piece = FieldChunk | ItemChunk | LMChunk | Status


class Event(msgspec.Struct):
    """A piece of a streamed call, before its response."""

    id: Id
    event: Literal["chunk", "status"]
    data: Piece


def _wall_clock() -> float:
    return time.time()  # noqa: TID251  a date for the bridge's clients, which read seconds since the epoch; no duration


def answered(
    request_id: int | None, result: Any, usage: dict[str, Any] | None = None, spent: list[ModelUse] | None = None
) -> Response:
    """A successful response, stamped now."""
    return Response(request_id, True, result, usage=usage, timestamp=_wall_clock(), spent=spent)


def refused(request_id: int | None, info: ErrorInfo, spent: list[ModelUse] | None = None) -> Response:
    """A failed response, stamped now; the bare string `error` is the info's message."""
    return Response(request_id, False, error=info.message, error_info=info, timestamp=_wall_clock(), spent=spent)


def validate_request(body: Any) -> Request:
    """A decoded body as a Request.

    Raises:
        InvalidMessage: with the code that says what is wrong, and the id where it could be read.
    """
    if not isinstance(body, dict):
        raise InvalidMessage(f"a request is an object, not {type(body).__name__}", "missing_id")
    request_id = body.get("id")
    if request_id is None:
        raise InvalidMessage("a request needs an id", "missing_id")
    if isinstance(request_id, bool) or not isinstance(request_id, int):
        raise InvalidMessage(f"an id is a whole number, not {type(request_id).__name__}", "invalid_id")
    if not 0 <= request_id <= MAX_ID:
        raise InvalidMessage("an id is a whole number from 0 to 2**63 - 1", "invalid_id")
    if "command" not in body:
        raise InvalidMessage("a request needs a command", "missing_command", request_id)
    if not isinstance(body["command"], str) or not body["command"]:
        raise InvalidMessage("a command is a non-empty string", "invalid_command", request_id)
    if "args" not in body:
        raise InvalidMessage("a request needs args", "missing_args", request_id)
    if not isinstance(body["args"], dict) or not all(isinstance(name, str) for name in body["args"]):
        raise InvalidMessage("args is an object", "invalid_args", request_id)
    try:
        return msgspec.convert({name: body[name] for name in Request.__struct_fields__ if name in body}, Request)
    except msgspec.ValidationError as error:
        raise InvalidMessage(f"a field of the request is wrong: {error}", "invalid_args", request_id) from None


# What the commands of a pool's pipes carry. A worker is told of programs and LMs in these forms only.


class LMSpec(msgspec.Struct, omit_defaults=True, frozen=True):
    """An LM as plain data: what dspy.LM is built with, or, for an LM that is an object of its own, its pickle.

    `digest` identifies it: equal specs are one LM object in a worker. `ambient` is no part of that: it marks the LM of
    the caller's own DSPy settings, which gives way to a predictor's. `secrets` are the keys among a pickled object's
    attributes: nobody unpickles it to find out what must not be told.
    """

    digest: str
    model: str = ""
    kwargs: dict[str, Any] = {}
    pickled: bytes | None = None
    ambient: bool = False
    secrets: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Without the values of its arguments: some are keys."""
        what = f"{len(self.pickled):,} bytes pickled" if self.pickled is not None else ", ".join(self.kwargs)
        return f"<LMSpec {self.model!r} {self.digest} ({what})>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """As repr(), for rich, which msgspec's structs otherwise tell everything."""
        return [("digest", self.digest), ("model", self.model)]


class PickledProgram(msgspec.Struct, tag="pickled", omit_defaults=True):
    """A DSPy module or a plain callable, cloudpickled by the manager; LMs stripped, sent by predictor name in `lms`."""

    data: bytes
    label: str = ""
    lms: dict[str, LMSpec] = {}


class SignatureProgram(msgspec.Struct, tag="signature", omit_defaults=True):
    """dspy.Predict over a signature string."""

    signature: str


class ImportedProgram(msgspec.Struct, tag="imported", omit_defaults=True):
    """A DSPy module, module class or callable by its import path, "package.module:attribute"."""

    path: str


class DefinedProgram(msgspec.Struct, tag="defined", omit_defaults=True):
    """A definition as the original bridge's create_program takes it; its LM and a pickled state stand beside it."""

    definition: dict[str, Any]
    lm: LMSpec | None = None
    state: bytes | None = None


ProgramSpec = PickledProgram | SignatureProgram | ImportedProgram | DefinedProgram


class NamedProgram(msgspec.Struct):
    """A program and the id it is run by."""

    program_id: str
    spec: ProgramSpec


class CacheSpec(msgspec.Struct, omit_defaults=True, frozen=True):
    """DSPy's cache in a worker. Without a folder and entries it keeps nothing.

    `folder`: of its files, None for none. `entries`: how many answers are kept in memory. `explicit`: the pool's
    options say more than the defaults, so it also stands against what a preload module has configured.
    """

    folder: str | None = None
    entries: int = 0
    explicit: bool = False


class LimitSpec(msgspec.Struct, omit_defaults=True, frozen=True):
    """What may be asked of a model: LMLimit in what a worker is told."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    burst_s: float = 6.0


class LimitsSpec(msgspec.Struct, omit_defaults=True, frozen=True):
    """How a pool's workers share what LMs' providers allow.

    `path`: a file that all of them may write to, empty at first. `models`: limits by model, "*" for any other one.
    """

    path: str
    models: dict[str, LimitSpec] = {}


class BootConfig(msgspec.Struct, omit_defaults=True):
    """What the handshake tells a worker."""

    worker_id: int
    pool: str
    sys_path: list[str] = []
    preload: list[str] = []
    warm: list[NamedProgram] = []
    lm: LMSpec | None = None
    adapter: Any = None
    """Name of a DSPy adapter as str, or an Adapter cloudpickled as bytes. Any, since msgspec reads no `str | bytes`."""
    max_programs: int = 64
    max_frame_bytes: int = 64 * 2**20
    required_packages: list[str] = []
    """What has to be installed there; empty where the manager has looked already, as it runs the same interpreter."""
    on_loop: bool = False
    """Run async programs on the worker's event loop, where they can be cancelled."""
    cache: CacheSpec | None = None
    """None: DSPy's own, as it is."""
    limits: LimitsSpec | None = None
    """None: nothing is shared with other workers."""


class StreamArgs(msgspec.Struct, omit_defaults=True, frozen=True):
    """How a call is streamed."""

    fields: list[str] | None = None
    """Output fields, "answer" or "predictor.answer"; None: every text field of every predictor."""
    status: Any = True
    """DSPy's status messages: True, its default ones; False, none; else a provider's import path or, cloudpickled, the
    provider as bytes. Any, since msgspec reads no such union."""


class Relay(msgspec.Struct, omit_defaults=True):
    """What goes into the caller's DSPy stream while a wrapped module's call runs, as events before its response.

    `predictors`: the places of those whose LM is listened to; None: of all. `status`: DSPy's status callbacks, by
    cloudpickle.
    """

    predictors: list[int] | None = None
    status: list[bytes] = []


class Caller(msgspec.Struct, omit_defaults=True):
    """What of the caller's DSPy settings a wrapped module's call runs with, and what is to be brought back of it.

    `arguments`: (positional, keyword) by cloudpickle, in place of the inputs. `lm`: the call's own lm= argument.
    `objects`: settings that are objects, by cloudpickle; `settings`: those that are plain. `relay`: None where the
    caller has no stream.
    """

    arguments: bytes | None = None
    lm: LMSpec | None = None
    objects: dict[str, bytes] = {}
    settings: dict[str, Any] = {}
    trace: bool = False
    usage: bool = False
    history: bool = False
    relay: Relay | None = None


class SignatureNote(msgspec.Struct, omit_defaults=True):
    """A signature that the caller doesn't hold: its instructions, and its fields with their descriptions."""

    instructions: str = ""
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}


class TraceStep(msgspec.Struct, omit_defaults=True):
    """One entry of a call's trace.

    `predictor`: its place in the program (modules.py); None for one that is no part of it, and then `like` is the place
    of one with the same signature, or `signature` says what its own is. `outputs`: where they differ from the first
    completion.
    """

    inputs: dict[str, Any]
    completions: dict[str, list[Any]]
    predictor: int | None = None
    like: int | None = None
    signature: SignatureNote | None = None
    outputs: dict[str, Any] | None = None


class Records(msgspec.Struct, omit_defaults=True):
    """What a wrapped module's call brings back beside its result, each part only where the caller asks for it.

    `completions`: all of the returned Prediction's, where it has any; `returned`: which entry of the trace it is.
    """

    trace: list[TraceStep] = []
    usage: dict[str, list[dict[str, Any]]] = {}
    history: list[dict[str, Any]] = []
    completions: dict[str, list[Any]] | None = None
    returned: int | None = None


class ExecuteArgs(msgspec.Struct, omit_defaults=True):
    """execute_program: run it; result is {"value": ...} for a plain callable, {"outputs": {...}} for a DSPy program."""

    program_id: str
    inputs: dict[str, Any]
    lm: LMSpec | None = None
    caller: Caller | None = None
    stream: StreamArgs | None = None
    """Not None: the call's pieces are sent as events before its response."""


class CancelArgs(msgspec.Struct):
    """cancel: end the call of this id, which is answered on its slot's pipe as soon as it has ended; result is {}.

    An id that no slot has read yet is remembered: its request is answered without being run.
    """

    id: Id


class CreateArgs(msgspec.Struct):
    """create_program: keep the program under this id; result is {"program_id", "status": "created"}."""

    program_id: str
    spec: ProgramSpec

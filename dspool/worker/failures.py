"""An exception as plain data: bounded, without secrets, with what DSPy knows about an LM's error.

Rules:
    1. Nothing here raises, whatever the exception's own methods do.
    2. Secrets are masked whole, and before a text is cut: half a key is a leak too.
    3. A text that is cut loses its middle: a traceback's last lines say what happened, its first ones where.

DSPy is looked up in sys.modules: an error of its own can only exist where it is loaded.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from dspool.protocol.messages import ErrorInfo
from dspool.protocol.secrets import Secrets
from dspool.protocol.submitted import PICKLE
from dspool.worker.deadlines import pause_asked

MAX_TRACEBACK_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 16 * 1024
MAX_DETAIL_BYTES = 32 * 1024
_MAX_CAUSES, _MAX_FRAMES = 20, 200
_OWN_FOLDER = os.path.dirname(__file__) + os.sep


def _add_lms_of(error: BaseException, secrets: Secrets) -> None:
    """Mask the keys of the LMs that an exception came through.

    A program may have LMs that nobody told us of: in an attribute, a closure, an adapter. Their keys can be in what
    went wrong with them, and then their methods are among its frames.
    """
    kind = getattr(sys.modules.get("dspy"), "BaseLM", None)
    if isinstance(kind, type):
        with contextlib.suppress(Exception):  # an LM may have turned any attribute into anything
            for lm in _lms_among_frames(error, kind):
                secrets.add_settings(vars(lm), passing=True)


def _lms_among_frames(error: BaseException, kind: type) -> Iterator[Any]:
    """The LMs whose methods are on the way from where an exception, or one that led to it, was caught to its origin."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting and len(seen) < _MAX_CAUSES:
        cause = waiting.pop()
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        waiting += [cause.__cause__, cause.__context__]
        if isinstance(cause, BaseExceptionGroup):
            waiting += cause.exceptions
        trace, frames = cause.__traceback__, 0
        while trace is not None and frames < _MAX_FRAMES:
            yield from (value for value in trace.tb_frame.f_locals.values() if issubclass(type(value), kind))
            trace, frames = trace.tb_next, frames + 1


def describe(error: BaseException, code: str, secrets: Secrets) -> ErrorInfo:
    """What is known of an exception.

    Args:
        error: it.
        code: the code for an error of the program's own; an LM's error and an adapter's have codes of their own.
        secrets: what to mask.

    Returns:
        type, mro, message and traceback, and for an error of DSPy's what it carries beside.
    """
    kind = type(error)
    _add_lms_of(error, secrets)
    info = ErrorInfo(
        code,
        message=clean(_message_of(error), MAX_MESSAGE_BYTES, secrets),
        type=clean(_name_of(kind), MAX_MESSAGE_BYTES, secrets),
        mro=[clean(_name_of(base), MAX_MESSAGE_BYTES, secrets) for base in kind.__mro__ if base is not object],
        traceback=clean(_format(error), MAX_TRACEBACK_BYTES, secrets),
    )
    for name, describe_further in _DSPY_ERRORS.items():
        known = getattr(sys.modules.get("dspy"), name, None)
        if isinstance(known, type) and isinstance(error, known):
            with contextlib.suppress(Exception):  # a subclass may have turned any attribute into anything
                describe_further(error, info)
    info.details = {name: _clean_detail(value, secrets) for name, value in info.details.items()}
    if isinstance(data := error.__dict__.get(PICKLE), bytes):  # an Executor's, whose owner asked for it
        info.details["pickle"] = data
    return info


def _describe_lm_error(error: Any, info: ErrorInfo) -> None:
    if info.code == "program_error":
        info.code = "lm_error"
    info.retryable = bool(sys.modules["dspy"].is_retryable_lm_error(error))
    status = getattr(error, "status", None)
    info.status = status if isinstance(status, int) else None
    info.retry_after_s = pause_asked(error) if info.retryable else None
    names = {"lm_code": "code", "model": "model", "provider": "provider", "provider_code": "provider_code"}
    names["request_id"] = "request_id"
    found = {key: getattr(error, name, None) for key, name in names.items()}
    info.details |= {key: str(value) for key, value in found.items() if value is not None}


def _describe_parse_error(error: Any, info: ErrorInfo) -> None:
    if info.code == "program_error":
        info.code = "adapter_parse_error"
    info.details |= {
        "adapter": str(getattr(error, "adapter_name", "")),
        "lm_response": _text_of(getattr(error, "lm_response", "")),
        "expected": list(getattr(getattr(error, "signature", None), "output_fields", ())),
        "parsed": list(getattr(error, "parsed_result", None) or ()),
    }


_DSPY_ERRORS: dict[str, Callable[[Any, ErrorInfo], None]] = {
    "LMError": _describe_lm_error,
    "AdapterParseError": _describe_parse_error,
}


def clean(text: str, limit: int, secrets: Secrets) -> str:
    """A text that can be sent: secrets masked, encodable, at most about `limit` bytes long."""
    data = secrets.mask(text).encode("utf-8", "backslashreplace")
    if len(data) > limit:
        head, tail = data[: limit // 4], data[-(limit - limit // 4) :]
        left_out = f"\n[... {len(data) - limit:,} bytes left out ...]\n"
        return head.decode("utf-8", "ignore") + left_out + tail.decode("utf-8", "ignore")
    return data.decode("utf-8")


def _clean_detail(value: Any, secrets: Secrets) -> Any:
    if isinstance(value, list):
        return [clean(str(item), MAX_MESSAGE_BYTES, secrets) for item in value[:100]]
    return clean(value, MAX_DETAIL_BYTES, secrets)


def _message_of(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"the program called exit({error.code!r}); a worker outlives that"
    return _text_of(error) or _name_of(type(error))


def _text_of(value: object) -> str:
    try:
        return str(value)
    except Exception as error:
        return f"<a {type(value).__name__} whose str() raised {type(error).__name__}>"


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _format(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(type(error), error, _without_own_frames(error.__traceback__)))
    except Exception as failure:
        return f"<a traceback that can't be formatted: {_name_of(type(failure))}>"


def _without_own_frames(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the program's first frame on; all of it where it never came to the program."""
    own = trace
    while own is not None and own.tb_frame.f_code.co_filename.startswith(_OWN_FOLDER):
        own = own.tb_next
    return own or trace

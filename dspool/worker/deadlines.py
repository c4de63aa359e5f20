"""What a call's deadline leaves for one request to an LM. Pure; the LM that applies it is in lms.py."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from typing import Any

SHORTEST_S = 0.01
"""With less than this left a request is not begun."""
LONGEST_PAUSE_S = 60.0
LONGEST_ASKED_S = 3600.0
"""The longest pause of a provider's choice that a retry waits for."""
_MAX_CAUSES = 8
_RETRY_IN = re.compile(r"\bretry in (\d{1,6}(?:\.\d+)?) ?s", re.IGNORECASE)


def request_timeout(left_s: float) -> float:
    """A timeout for one request: at most `left_s` and at least four fifths of it.

    DSPy keeps a connection pool for each timeout that it meets, so timeouts are taken from a fixed grid of four to the
    octave: calls with equal deadlines share their connections, and there are at most some fifty pools to an LM.
    """
    mantissa, exponent = math.frexp(left_s)
    return math.ldexp(math.floor(mantissa * 8) / 8, exponent)


def retry_pause(attempt: int, retry_after: Any) -> float:
    """Seconds to wait after a failed attempt (0 is the first): what the provider asked for, else 1, 2, 4, ..."""
    asked = finite_seconds(retry_after)
    return asked if asked is not None else float(min(2 ** min(attempt, 6), LONGEST_PAUSE_S))


def pause_asked(error: BaseException) -> float | None:
    """Seconds that a provider asked to wait before the next try.

    DSPy knows them where its own client read the Retry-After header. LiteLLM leaves the header in the errors that led
    to this one. Gemini sends none: its 429 says "Please retry in 17.2s." in the text.
    """
    asked = finite_seconds(getattr(error, "retry_after", None))
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if asked is not None or cause is None:
            break
        asked = _in_headers(cause)
        cause = cause.__cause__ or cause.__context__
    if asked is None and (found := _RETRY_IN.search(str(getattr(error, "message", "")))):
        asked = float(found[1])
    return asked


def _in_headers(error: BaseException) -> float | None:
    """The Retry-After of the response that an SDK's exception holds, where it is a number of seconds."""
    for headers in (getattr(error, "litellm_response_headers", None), getattr(error, "response", None)):
        headers = getattr(headers, "headers", headers)
        if isinstance(headers, Mapping):
            with contextlib.suppress(TypeError, ValueError):
                return finite_seconds(float(headers.get("retry-after", "")))
    return None


def finite_seconds(value: Any) -> float | None:
    """A duration that may come from anywhere: None unless it is a finite number from 0 on."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value >= 0 else None

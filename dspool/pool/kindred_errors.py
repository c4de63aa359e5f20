"""A wrapped program's failure as an error that code around the program knows already.

    try:
        wrapped(question="...")
    except ValueError:  # as the program raised it, in its worker
        ...

Rules:
    1. It stays the ProgramError that it is, and gains bases: those of the remote exception that are Python's or DSPy's
       own. No class of the user's is looked for, and nothing is built from what a worker says but these.
    2. What DSPy's own code asks of such an error (an AdapterParseError's answer, an LMError's status) is set.

dspy is looked up in sys.modules.
"""

from __future__ import annotations

import builtins
import functools
import sys
from typing import Any

from dspool.errors import ProgramError

_DSPYS = "dspy.utils.exceptions."


def as_kindred(error: ProgramError, predictors: list[Any]) -> ProgramError:
    """The error, now also an instance of the most derived base of the remote exception that is known here.

    Args:
        error: it.
        predictors: the program's, among which the signature of an answer that can't be parsed is found.
    """
    for name in error.mro:
        if _known(name) is None:
            continue
        try:
            error.__class__ = _mixed(name)
        except TypeError:  # its instances are laid out in a way of their own
            continue
        if name.startswith(_DSPYS):
            _fill_in(error, predictors)
        break
    return error


def _known(name: str) -> type[Exception] | None:
    """Python's or DSPy's own exception of this name."""
    module, _, attribute = name.rpartition(".")
    holder: Any = builtins if module == "builtins" else sys.modules.get(module) if name.startswith(_DSPYS) else None
    found = getattr(holder, attribute, None)
    known = isinstance(found, type) and issubclass(found, Exception) and found is not Exception
    return found if known else None


@functools.lru_cache(128)
def _mixed(name: str) -> type[ProgramError]:
    base = _known(name)
    assert base is not None
    return type(
        "ProgramError",
        (ProgramError, base),
        {"__module__": ProgramError.__module__, "__doc__": ProgramError.__doc__, "__str__": Exception.__str__},
    )


def _fill_in(error: Any, predictors: list[Any]) -> None:
    details = error.details
    error.message = error.args[0]
    for name in ("model", "provider", "provider_code", "request_id"):
        setattr(error, name, details.get(name))
    error.retry_after = error.retry_after_s
    if "lm_response" in details:
        error.adapter_name = details.get("adapter", "")
        error.lm_response = details["lm_response"]
        error.parsed_result = dict.fromkeys(details.get("parsed", ()))
        expected = details.get("expected", [])
        signatures = (predictor.signature for predictor in predictors)
        error.signature = next((each for each in signatures if list(each.output_fields) == expected), None)

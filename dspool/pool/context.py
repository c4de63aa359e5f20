"""What a wrapped module's call takes along of its caller's DSPy settings, and where what it brings back goes.

    taken along     lm, adapter, rm, interpreter_factory, the plain settings, and settings of the user's own
    brought back    the trace, the usage and the histories that the caller's settings ask for
    goes along      what a stream of the caller's listens to (relay.py)
    stays           callbacks: they see the wrapper's call

Rules:
    1. A call runs by its caller's settings as it would in their process; the pool's own fill in what the caller has not
       set. A predictor's own LM goes before the caller's, and lm= of the call before both.
    2. A trace names the caller's predictors: the very objects, for optimizers know them by identity.
    3. Types are revived from the signatures of the caller's predictors alone.

dspy is looked up in sys.modules: a wrapper exists only where it is loaded. Knows no pool and no pipe.
"""

from __future__ import annotations

import sys
from typing import Any

from dspool.errors import EncodeError
from dspool.pool.lm_specs import lm_spec
from dspool.pool.pickling import is_lm, pickled
from dspool.pool.unsendable import pickled_or_named, unsendable
from dspool.protocol.messages import Caller, Records, Relay, Response, TraceStep
from dspool.protocol.modules import modules_in
from dspool.protocol.values import revive
from dspool.signals import let_through

_ATOMS = frozenset({str, int, float, bool, type(None)})
_OBJECTS = frozenset({"adapter", "rm", "interpreter_factory"})
_STAY = frozenset(
    {
        *("lm", "trace", "callbacks", "send_stream", "stream_listeners", "disable_history", "track_usage"),
        *("usage_tracker", "caller_predict", "caller_modules"),
    }
)
"""Settings that stay here, or have a way of their own."""


def split_arguments(
    positional: tuple[Any, ...], named: dict[str, Any], label: str
) -> tuple[dict[str, Any], bytes | None, Any]:
    """A call's arguments as they travel.

    Args:
        positional: without names.
        named: with names.
        label: the program, for errors.

    Returns:
        Inputs that are plain, or none and all arguments pickled in their place; and the LM that was passed as lm=.

    Raises:
        EncodeError: one can't be sent; the text names it.
    """
    lm = None
    if is_lm(named.get("lm")):
        named = dict(named)
        lm = named.pop("lm")
    if not positional and _ATOMS.issuperset(map(type, named.values())):
        return named, None, lm
    try:
        return {}, pickled((positional, named)), lm
    except Exception as error:
        let_through(error)
        where = unsendable((positional, named) if positional else named, "inputs")
        raise EncodeError(f"{label} was not sent: an input can't be pickled, because of {where}") from error


def caller_of(arguments: bytes | None, lm: Any, relay: Relay | None = None) -> Caller:
    """The caller's settings, now, and what they ask to be brought back.

    Args:
        arguments: the call's, where they are no plain inputs.
        lm: the LM that was passed as lm=, or None.
        relay: what of it goes into the caller's stream.

    Raises:
        EncodeError: a setting can't be sent; the text names it.
        OptionsError: the LM can't be sent.
    """
    settings = sys.modules["dspy"].settings
    caller = Caller(arguments, None if lm is None else lm_spec(lm), relay=relay)
    defaults = _defaults()
    for name, value in settings.copy().items():
        if name in _STAY or name.startswith(("_", "dspool_")) or value is None:  # dspool_: a worker's, in a worker
            continue
        if type(value) in _ATOMS:
            if name not in defaults or value != defaults[name]:
                caller.settings[name] = value
        elif name in _OBJECTS or name not in defaults:
            advice = f"Leave it out around this call with dspy.context({name}=None), or let the program make it"
            refusal = f"dspy.settings.{name} can't be sent to a worker"
            caller.objects[name] = pickled_or_named(value, name, refusal, advice)
    caller.trace = settings.trace is not None and settings.max_trace_size > 0
    caller.usage = settings.usage_tracker is not None
    caller.history = not settings.disable_history
    return caller


def _defaults() -> dict[str, Any]:
    found: dict[str, Any] = sys.modules["dspy.dsp.utils.settings"].DEFAULT_CONFIG
    return found


def bring_back(records: Records, wrapper: Any, lm: Any) -> list[Any]:
    """Put what a call brought back where DSPy expects it.

    Args:
        records: the worker's.
        wrapper: the module that was called.
        lm: the LM that was passed as lm=, or None.

    Returns:
        The Predictions of the trace, in its order.
    """
    settings = sys.modules["dspy"].settings
    for model, entries in records.usage.items():
        for entry in entries:
            settings.usage_tracker.add_usage(model, entry)
    modules = modules_in(wrapper) if records.trace or records.history else []
    for entry in records.history:
        _record(entry, [lm, *(getattr(part, "lm", None) for part in modules), settings.lm])
    steps = [_traced(step, modules) for step in records.trace]
    trace = settings.trace
    if trace is not None:
        for step in steps:
            if len(trace) >= settings.max_trace_size:
                trace.pop(0)
            trace.append(step)
    return [prediction for _, _, prediction in steps]


def _record(entry: dict[str, Any], lms: list[Any]) -> None:
    """Add a request to the histories of DSPy, of the LM that made it, and of the modules that called the wrapper."""
    known = (lm for lm in lms if is_lm(lm) and getattr(lm, "model", None) == entry.get("model"))
    sys.modules["dspy.clients.base_lm"].record_history(next(known, None) or _Nobody(), entry)


class _Nobody:
    """An LM that is the pool's, of which there is no object here."""

    def __init__(self) -> None:
        self.history: list[Any] = []


def _traced(step: TraceStep, modules: list[Any]) -> tuple[Any, dict[str, Any], Any]:
    predictor = _predictor_at(step.predictor, modules) or _stand_in(step, _predictor_at(step.like, modules))
    signature = predictor.signature
    inputs = _revived(step.inputs, signature.input_fields)
    return predictor, inputs, _prediction(step, signature)


def _predictor_at(place: int | None, modules: list[Any]) -> Any:
    """The predictor at that place; None where the caller's program has changed meanwhile and has none there."""
    found = modules[place] if place is not None and 0 <= place < len(modules) else None
    return found if isinstance(found, sys.modules["dspy"].Predict) else None


def _stand_in(step: TraceStep, like: Any) -> Any:
    """A predictor in the place of one that only the worker had: made during the call, or a copy of the program's."""
    dspy: Any = sys.modules["dspy"]
    if like is not None:
        return dspy.Predict(like.signature)
    note = step.signature
    names = (dict.fromkeys(step.inputs, ""), dict.fromkeys(step.completions, ""))
    sides = names if note is None else (note.inputs, note.outputs)
    fields = {
        name: (Any, make(desc=description) if description else make())
        for make, side in zip((dspy.InputField, dspy.OutputField), sides, strict=True)
        for name, description in side.items()
    }
    return dspy.Predict(dspy.Signature(fields, note.instructions if note is not None else ""))


def _prediction(step: TraceStep, signature: Any) -> Any:
    dspy: Any = sys.modules["dspy"]
    fields = signature.output_fields
    completions = {
        name: [revive(value, fields[name].annotation) for value in values] if name in fields else values
        for name, values in step.completions.items()
    }
    prediction = dspy.Prediction.from_completions(completions, signature=signature)
    if step.outputs is not None:
        prediction._store = _revived(step.outputs, fields)
    return prediction


def _revived(values: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    return {name: revive(value, fields[name].annotation) if name in fields else value for name, value in values.items()}


def finished(result: Any, response: Response, traced: list[Any]) -> Any:
    """A call's result as its caller's own DSPy would have given it.

    Args:
        result: what the response says, its outputs revived.
        response: the worker's.
        traced: the trace's Predictions.

    Returns:
        The result; a Prediction that the trace holds is that very object.
    """
    dspy: Any = sys.modules["dspy"]
    if not isinstance(result, dspy.Prediction):
        return result
    records = response.records
    if records is not None and records.returned is not None and records.returned < len(traced):
        return traced[records.returned]
    result.set_lm_usage(None)  # its caller's settings say whether it gets one, and Module.__call__ sets it
    if records is not None and records.completions is not None:
        completions = {name: list(values) for name, values in records.completions.items()}
        for name, values in completions.items():
            if values and name in result:
                values[0] = result[name]
        result._completions = type(dspy.Prediction.from_completions({}).completions)(completions)
    return result

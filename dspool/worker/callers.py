"""A module's call under its caller's DSPy settings, and what is brought back of it: trace, usage, history.

Rules:
    1. What the caller's settings don't ask for is neither collected nor sent.
    2. A record that can't be sent as it is goes as text: the call's result is worth more than a record of it.
    3. Predictions and Examples travel as such, wherever they are in a result: the caller has DSPy.
    4. A worker keeps nothing of it: what DSPy's histories took during the call is taken out again.

Imported with runtime.py, by which DSPy is loaded.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import cloudpickle
import dspy
from dspy.clients import base_lm

from dspool.errors import EncodeError
from dspool.protocol import extensions
from dspool.protocol.messages import Caller, Records, SignatureNote, TraceStep
from dspool.protocol.modules import modules_in
from dspool.protocol.values import to_plain
from dspool.worker.call_loop import Outlet
from dspool.worker.programs import Outcome
from dspool.worker.relays import relay_settings
from dspool.worker.running import CallRefused, Cancellation, RunningCall
from dspool.worker.spending import CallTracker

if TYPE_CHECKING:
    from dspool.worker.runtime import ModuleProgram

MAX_TEXT = 1000
"""Characters of what stands for a record that can't be sent."""
_MAX_DEPTH = 100
_NOT_SENT = frozenset({"response", "request", "adaptations"})
"""Of a history's entry: the provider's own objects."""


class _Collector:
    """Stands among DSPy's calling modules, to whose histories each request of the call is added."""

    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []


class CallerRun:
    """One call.

    Args:
        program: the module to run.
        caller: what the caller's settings are, and ask for.
    """

    def __init__(self, program: ModuleProgram, caller: Caller) -> None:
        self._program = program
        self._caller = caller
        self._trace: list[tuple[Any, dict[str, Any], Any]] = []
        self._usage: dict[str, list[dict[str, Any]]] = {}
        self._collector = _Collector()
        self._modules: list[Any] = []
        self._value: Any = None

    def call(
        self,
        inputs: dict[str, Any],
        lm: dict[str, Any] | None,
        deadline: float | None,
        running: RunningCall | None = None,
    ) -> Outcome:
        """As ModuleProgram.call(); what the program sends into DSPy's stream goes into the caller's."""
        module, positional, named = self._made_ready(inputs, lm)
        cancellation = None if running is None else running.cancellation
        context = functools.partial(self._context, lm, deadline, cancellation)
        if running is None or (self._caller.relay is None and not self._program.is_async):
            with context() as tracker:
                return self._outcome(self._program.run(module, positional, named), tracker)

        async def work(outlet: Outlet) -> Outcome:
            with context() as tracker, self._relayed(module, outlet):
                return self._outcome(await self._program.run_on_loop(module, positional, named), tracker)

        return running.run(work)

    def _relayed(self, module: Any, outlet: Outlet) -> contextlib.AbstractContextManager[None]:
        """The stream's settings, if there is one."""
        relay = self._caller.relay
        if relay is None:
            return contextlib.nullcontext()
        status = [self._program.runtime.setting(data) for data in relay.status]
        relayed: contextlib.AbstractContextManager[None] = dspy.context(**relay_settings(module, relay, status, outlet))
        return relayed

    def _made_ready(
        self, inputs: dict[str, Any], lm: dict[str, Any] | None
    ) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """The module, and its arguments."""
        caller = self._caller
        positional, named = ((), inputs) if caller.arguments is None else cloudpickle.loads(caller.arguments)
        if caller.lm is not None:
            named = {**named, "lm": self._program.runtime.lm(caller.lm)}
        module = self._program.module_for(lm)
        self._modules = modules_in(module) if caller.trace or caller.history else []
        return module, positional, named

    @contextlib.contextmanager
    def _context(
        self, lm: dict[str, Any] | None, deadline: float | None, cancellation: Cancellation | None
    ) -> Iterator[CallTracker]:
        """The call's context with the caller's settings in it."""
        caller, runtime = self._caller, self._program.runtime
        settings: dict[str, Any] = {name: runtime.setting(data) for name, data in caller.objects.items()}
        if caller.history:
            settings |= {"disable_history": False, "caller_modules": [self._collector]}
        settings |= caller.settings | {"trace": self._trace}
        with runtime.call_context(lm, deadline, cancellation, settings) as tracker:
            self._usage = tracker.usage_data
            try:
                yield tracker
            finally:
                if caller.history:
                    self._forget_history(dspy.settings.lm)

    def _outcome(self, value: Any, tracker: CallTracker) -> Outcome:
        self._value = value
        usage, spent = tracker.get_total_tokens(), tracker.spent()
        try:
            if isinstance(value, dspy.Prediction):
                return "outputs", {name: _faithful(item) for name, item in value.items()}, usage, spent
            return "value", _faithful(value), usage, spent
        except EncodeError as error:
            raise CallRefused("encode_error", f"the result can't be sent: {error}") from error

    def _forget_history(self, ambient: Any) -> None:
        base_lm.GLOBAL_HISTORY.clear()
        for part in self._modules:
            part.history = []
            if isinstance(lm := getattr(part, "lm", None), dspy.BaseLM):
                lm.history = []
        if isinstance(ambient, dspy.BaseLM):
            ambient.history = []

    def records(self) -> Records | None:
        """What the caller asked for of the call, as far as it went; None where there is nothing."""
        caller, records = self._caller, Records()
        if caller.trace and self._trace:
            records.trace = self._steps()
        if caller.usage:
            records.usage = {model: [_sendable(entry) for entry in entries] for model, entries in self._usage.items()}
        if caller.history:
            records.history = [
                {name: None if name in _NOT_SENT else _sendable(part) for name, part in entry.items()}
                for entry in self._collector.history
            ]
        if isinstance(self._value, dspy.Prediction):
            same = (index for index, step in enumerate(self._trace) if step[2] is self._value)
            records.returned = next(same, None) if caller.trace else None
            if self._value.completions is not None and records.returned is None:
                records.completions = _completions(self._value)
        return None if records == Records() else records

    def _steps(self) -> list[TraceStep]:
        predictors = {place: part for place, part in enumerate(self._modules) if isinstance(part, dspy.Predict)}
        places = {id(part): place for place, part in predictors.items()}
        steps = []
        for predictor, inputs, prediction in self._trace:
            step = TraceStep({name: _sendable(value) for name, value in inputs.items()}, {})
            step.predictor = places.get(id(predictor))
            if step.predictor is None:
                same = (place for place, part in predictors.items() if part.signature.equals(predictor.signature))
                step.like = next(same, None)
                step.signature = _note(predictor.signature) if step.like is None else None
            if prediction.completions is not None:
                step.completions = _completions(prediction)
            outputs = {name: _sendable(value) for name, value in prediction.items()}
            if outputs != {name: values[0] for name, values in step.completions.items() if values}:
                step.outputs = outputs
            steps.append(step)
        return steps


def _completions(prediction: Any) -> dict[str, list[Any]]:
    return {name: [_sendable(value) for value in values] for name, values in prediction.completions.items()}


def _note(signature: Any) -> SignatureNote:
    described = [
        {name: str((field.json_schema_extra or {}).get("desc", "")) for name, field in fields.items()}
        for fields in (signature.input_fields, signature.output_fields)
    ]
    return SignatureNote(str(signature.instructions), *described)


def _sendable(value: Any) -> Any:
    """The value as plain data, or as text where it has no plain form."""
    try:
        return to_plain(_faithful(value))
    except EncodeError:
        try:
            return repr(value)[:MAX_TEXT]
        except Exception:
            return f"<a {type(value).__name__}>"


def _faithful(value: Any, depth: int = 0) -> Any:
    """The value with the Predictions and Examples in it packed as such. What can't be sent others refuse.

    Raises:
        EncodeError: something in one of them has no plain form.
    """
    kind = type(value)
    if kind in (str, int, float, bool, type(None)) or depth > _MAX_DEPTH:
        return value
    if isinstance(value, dspy.Prediction):
        completions = None if value.completions is None else dict(value.completions.items())
        return _packed(extensions.PREDICTION, value, completions, depth)
    if isinstance(value, dspy.Example):
        inputs = value._input_keys
        return _packed(extensions.EXAMPLE, value, None if inputs is None else sorted(inputs), depth)
    if kind is list or kind is tuple:
        return kind(_faithful(item, depth + 1) for item in value)
    if kind is dict:
        return {name: _faithful(item, depth + 1) for name, item in value.items()}
    return value


def _packed(code: int, record: Any, beside: Any, depth: int) -> Any:
    fields = {name: _faithful(item, depth + 1) for name, item in record.items()}
    return extensions.pack_elements(code, [to_plain(fields), to_plain(_faithful(beside, depth + 1))])

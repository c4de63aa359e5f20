"""Program spec -> something to call, and the table of those that are kept loaded.

Rules:
    1. The table has one lock, held while a program is loaded: each is loaded once, however many slots ask for it.
       Looking one up takes no lock.
    2. At most `max_programs` are kept; the least recently used goes. A call of one that went is told so and executes
       nothing: the manager ships it again.
    3. dspy is imported here only when a program turns out to need it, and the table is only asked to load on the main
       thread.
"""

from __future__ import annotations

import sys
import threading
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from dspool.protocol.definitions import check_names, parse
from dspool.protocol.messages import (
    BootConfig,
    DefinedProgram,
    ImportedProgram,
    LMSpec,
    ModelUse,
    PickledProgram,
    ProgramSpec,
    SignatureProgram,
)
from dspool.protocol.secrets import Secrets
from dspool.worker.definitions import build
from dspool.worker.import_paths import import_attribute
from dspool.worker.inputs import Inputs, of_callable
from dspool.worker.main_thread import MainThread
from dspool.worker.running import RunningCall, item_of

if TYPE_CHECKING:
    from dspool.worker.call_loop import Outlet
    from dspool.worker.runtime import Runtime

Outcome = tuple[str, Any, dict[str, Any] | None, list[ModelUse] | None]
"""The result's key in the answer, the result, the tokens used by model as DSPy reports them, and what the pool's
statistics are told of them. The keys: "outputs" of a Prediction, "value" of anything else, "returned" where a streamed
generator ended."""
SPENT = "_dspool_spent"
"""The attribute of an exception that left a call's context: what had been spent by then, as an outcome's last part."""


class Program(Protocol):
    """Something loaded that can be called, on any slot and on several at once."""

    inputs: Inputs

    def call(
        self,
        inputs: dict[str, Any],
        lm: dict[str, Any] | None,
        deadline: float | None,
        running: RunningCall | None = None,
    ) -> Outcome:
        """Run it; what it raises comes out as it is.

        Args:
            inputs: checked.
            lm: the call's own, a spec as it came through the pipe; None: the default one.
            deadline: the call's, absolute; None: no limit.
            running: takes the call's pieces, and ends it where it is cancelled; None: it has none and can't be.
        """
        ...


class CallableProgram:
    """A plain callable: keyword inputs in, its return value out.

    It may use DSPy inside: where the worker has an LM, or the call, it runs in a call's context as a module does. That
    takes 30 microseconds, so one that has no LM to use does without.

    Args:
        target: the callable.
        loader: has DSPy's runtime, or makes it.
    """

    def __init__(self, target: Callable[..., Any], loader: Loader) -> None:
        self.inputs = of_callable(target)
        self._target = target
        self._loader = loader

    def call(
        self,
        inputs: dict[str, Any],
        lm: dict[str, Any] | None,
        deadline: float | None,
        running: RunningCall | None = None,
    ) -> Outcome:
        """Call it; a coroutine that it returns is run to its end, and a generator's items are pieces of a stream."""
        runtime = self._loader.runtime if lm is not None else self._loader.runtime_if_made
        if runtime is None or (lm is None and running is None and not runtime.has_lm):
            return (*self._run(inputs, running), None, None)
        with runtime.call_context(lm, deadline, None if running is None else running.cancellation) as tracker:
            kind, value = self._run(inputs, running)
        return kind, value, tracker.get_total_tokens() or None, tracker.spent()

    def _run(self, inputs: dict[str, Any], running: RunningCall | None) -> tuple[str, Any]:
        value = self._target(**inputs)
        if value.__class__ is types.CoroutineType:
            if running is not None:
                return "value", running.run(lambda outlet: value)
            import asyncio  # a fifth of a worker's start, for what few programs do

            return "value", asyncio.run(value)
        if running is not None and running.stream is not None:
            if value.__class__ is types.GeneratorType:
                return "returned", _give_items(running, value)
            if value.__class__ is types.AsyncGeneratorType:
                return "returned", running.run(lambda outlet: _put_items(outlet, value))
        return "value", value


def _give_items(running: RunningCall, items: types.GeneratorType[Any, None, Any]) -> Any:
    """Give a generator's items, on this thread; what it returns."""
    try:
        while True:
            running.cancellation.check()
            try:
                item = next(items)
            except StopIteration as stop:
                return stop.value
            running.give(item_of(item))
    finally:
        items.close()


async def _put_items(outlet: Outlet, items: types.AsyncGeneratorType[Any, None]) -> None:
    """Give an async generator's items, on the loop."""
    try:
        async for item in items:
            await outlet.put(item_of(item))
    finally:
        await items.aclose()


class Loader:
    """Makes programs from specs.

    Args:
        config: the worker's configuration, for the runtime of DSPy programs.
        secrets: learns what LMs' keys are.
        main_thread: where DSPy is imported and configured; None: whoever asks is on it.
    """

    def __init__(self, config: BootConfig, secrets: Secrets, main_thread: MainThread | None = None) -> None:
        self._config = config
        self._secrets = secrets
        self._main_thread = main_thread or MainThread()
        self.runtime_if_made: Runtime | None = None

    @property
    def runtime(self) -> Runtime:
        """DSPy, imported and configured when it is first asked for; from any thread."""
        return self.runtime_if_made or self._main_thread.run(self._make_runtime)

    def _make_runtime(self) -> Runtime:
        if self.runtime_if_made is None:  # nobody else has asked for it while this waited for the main thread
            from dspool.worker.runtime import Runtime

            self.runtime_if_made = Runtime(self._config, self._secrets)
        return self.runtime_if_made

    def load(self, spec: ProgramSpec) -> Program:
        """The program of a spec.

        Raises:
            Exception: whatever its code raises, or a TypeError or ValueError that says what is wrong with it.
        """
        match spec:
            case PickledProgram(data=data, lms=lms):
                import cloudpickle

                return self._wrap(cloudpickle.loads(data), lms)
            case ImportedProgram(path=path):
                return self._wrap(import_attribute(path), {})
            case SignatureProgram(signature=signature):
                runtime = self.runtime
                return runtime.program(_predict(signature), {})
            case DefinedProgram():
                return self._defined(spec)

    def _defined(self, spec: DefinedProgram) -> Program:
        """What the manager sends it has checked: by whom its definitions are written is the manager's to know."""
        definition = parse(spec.definition, allow_imports=True)
        runtime = self.runtime
        state = None
        if spec.state is not None:
            import cloudpickle

            state = cloudpickle.loads(spec.state)
        module = build(definition, state)
        names = [name for name, _ in module.named_predictors()]
        return runtime.program(module, {} if spec.lm is None else dict.fromkeys(names, spec.lm))

    def _wrap(self, target: Any, lms: dict[str, LMSpec]) -> Program:
        dspy = sys.modules.get("dspy")  # a module, class or signature of DSPy's can only exist where that is loaded
        if dspy is not None:
            if isinstance(target, type) and issubclass(target, dspy.Signature):
                target = dspy.Predict(target)
            elif isinstance(target, type) and issubclass(target, dspy.Module):
                target = target()
            if isinstance(target, dspy.Module):
                return self.runtime.program(target, lms)
        if not callable(target):
            raise TypeError(f"a program is callable or a DSPy module; this is a {type(target).__qualname__}")
        return CallableProgram(target, self)


def _predict(text: str) -> Any:
    """dspy.Predict over a signature string."""
    import dspy

    # Without custom_types DSPy would look for the types' names among our callers' variables.
    signature = dspy.Signature(text, custom_types={})
    check_names(list(signature.input_fields), list(signature.output_fields))
    return dspy.Predict(signature)


class ProgramTable:
    """The programs that are loaded, by id.

    Args:
        load: makes a program from its spec.
        max_programs: how many are kept.
    """

    def __init__(self, load: Callable[[ProgramSpec], Program], max_programs: int) -> None:
        self._load = load
        self._max_programs = max_programs
        self._loaded: OrderedDict[str, tuple[Program, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._loaded)

    def get(self, program_id: str) -> Program | None:
        """The program, now the most recently used one; None if it isn't here."""
        found = self._loaded.get(program_id)
        if found is None:
            return None
        try:
            self._loaded.move_to_end(program_id)
        except KeyError:  # another slot's create() has just put it out; it can still run
            return found[0]
        return found[0]

    def create(self, program_id: str, spec: ProgramSpec) -> None:
        """Load a program and keep it. One that is here already is kept if its spec is the same, else replaced.

        Raises:
            Exception: it can't be loaded; what was here under that id is still here.
        """
        fingerprint = hash(msgspec.msgpack.encode(spec))
        with self._lock:
            known = self._loaded.get(program_id)
            if known is None or known[1] != fingerprint:
                self._loaded[program_id] = (self._load(spec), fingerprint)
            self._loaded.move_to_end(program_id)
            while len(self._loaded) > self._max_programs:
                self._loaded.popitem(last=False)

    def remove(self, program_id: str) -> None:
        """Forget a program; a call of it that runs goes on."""
        with self._lock:
            self._loaded.pop(program_id, None)

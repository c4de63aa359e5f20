"""DSPy in a worker: configured once, LMs by their spec's digest, and a context of its own for every call.

Imports dspy at its top, as do the modules that it is made of. Nobody imports it before the first DSPy program, LM or
adapter turns up, and then always on the main thread, which dspy.configure belongs to.

Rules:
    1. What a call may change is set per call with dspy.context, so calls on other slots don't see it.
    2. Nothing grows: no histories, and a trace ends with its call; LM objects are kept by least recent use.
    3. What a request to an LM may take, and when it may be sent, is lms.py's; a call's context carries what says so.

Knows no pipes and no messages but the specs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import cloudpickle
import dspy
import msgspec

from dspool.protocol.messages import BootConfig, Caller, LMSpec, StreamArgs
from dspool.protocol.secrets import Secrets
from dspool.worker.caches import set_cache
from dspool.worker.call_loop import Outlet
from dspool.worker.callers import CallerRun
from dspool.worker.field_streams import FieldStream, listeners_of, on_thread, stream_settings
from dspool.worker.inputs import Inputs, of_module
from dspool.worker.limits import Limits
from dspool.worker.lms import CANCELLATION, DEADLINE, LIMITS, DeadlineLM
from dspool.worker.programs import Outcome
from dspool.worker.running import Cancellation, RunningCall
from dspool.worker.spending import COSTS, WAITS, CallTracker, attach

MAX_LMS = 64
"""LM objects kept; each holds connections and threads of its client."""
MAX_SETTINGS = 32
"""Adapters and other objects of callers' settings that are kept."""

_log = logging.getLogger(__name__)
_ADAPTERS = {"chat": "ChatAdapter", "json": "JSONAdapter", "xml": "XMLAdapter"}


class ModuleProgram:
    """A DSPy module, ready to be called from any slot.

    Args:
        module: the module.
        runtime: what it runs in.
    """

    def __init__(self, module: Any, runtime: Runtime) -> None:
        self.inputs: Inputs = of_module(module)
        self._module = module
        self.runtime = runtime
        self._pinned = any(predictor.lm is not None for predictor in module.predictors())
        self.is_async = is_async(module)
        self._only_async = not hasattr(type(module), "forward") and "forward" not in vars(module)

    def call(
        self,
        inputs: dict[str, Any],
        lm: dict[str, Any] | None,
        deadline: float | None,
        running: RunningCall | None = None,
    ) -> Outcome:
        """Run the module. One that is async of its own runs on the worker's event loop where it can be cancelled.

        Any other one runs on a thread, and can't be ended there but at its next piece or request.
        """
        given, module = self.inputs.revive(inputs), self.module_for(lm)
        cancellation, args = (None, None) if running is None else (running.cancellation, running.stream)
        context = functools.partial(self.runtime.call_context, lm, deadline, cancellation)
        if running is None or (args is None and not self.is_async):
            with context() as tracker:
                return _outcome(self.run(module, (), given), tracker)

        async def work(outlet: Outlet) -> Outcome:
            with context() as tracker:
                if args is None:
                    value = await self.run_on_loop(module, (), given)
                else:
                    value = await self._streamed(module, given, args, outlet)
                return _outcome(value, tracker)

        return running.run(work)

    async def _streamed(self, module: Any, given: dict[str, Any], args: StreamArgs, outlet: Outlet) -> Any:
        stream = FieldStream(listeners_of(module, args.fields), outlet)
        with dspy.context(**stream_settings(stream, args)):
            value = await self.run_on_loop(module, (), given)
            await stream.finish()
        return value

    def for_caller(self, caller: dict[str, Any]) -> CallerRun:
        """A call that is to run under its caller's settings, as they came through the pipe."""
        return CallerRun(self, msgspec.convert(caller, Caller))

    def module_for(self, lm: dict[str, Any] | None) -> Any:
        """The module, or a copy with this LM: a predictor with one of its own doesn't look at the context, and the
        module is shared between slots."""
        if lm is None or not self._pinned or lm.get("ambient"):
            return self._module
        module = self._module.deepcopy()
        module.set_lm(self.runtime.lm_of(lm))
        return module

    def run(self, module: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call it: not its forward, since what wraps a call in DSPy is in __call__."""
        if self._only_async:
            return asyncio.run(module.acall(*positional, **named))
        return module(*positional, **named)

    async def run_on_loop(self, module: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """The same on the worker's event loop; one that is not async of its own runs on a thread, and is waited for."""
        if self.is_async:
            return await module.acall(*positional, **named)
        return await on_thread(lambda: self.run(module, positional, named))


def _outcome(value: Any, tracker: CallTracker) -> Outcome:
    """Of a Prediction its outputs, without further completions."""
    if not isinstance(value, dspy.Prediction):
        return "value", value, tracker.get_total_tokens(), tracker.spent()
    return "outputs", dict(value.items()), value.get_lm_usage() or tracker.get_total_tokens(), tracker.spent()


def is_async(module: Any) -> bool:
    """Whether a module's `aforward` is its own: defined at least as deep in its classes as its `forward`.

    One that it inherits may do something else than its forward: CodeAct's is ReAct's.
    """
    if "forward" in vars(module):
        return False
    for kind in type(module).__mro__:
        if "aforward" in vars(kind):
            return True
        if "forward" in vars(kind):
            return False
    return False


class Runtime:
    """DSPy as the pool wants it. Made on the main thread.

    Args:
        config: the worker's configuration; its LM and adapter become DSPy's defaults.
        secrets: learns the LMs' keys.
    """

    def __init__(self, config: BootConfig, secrets: Secrets) -> None:
        self._secrets = secrets
        self._lms: OrderedDict[str, Any] = OrderedDict()
        self._settings: OrderedDict[bytes, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._limits = _limits(config)
        if config.cache is not None:
            set_cache(config.cache)
        defaults: dict[str, Any] = {"track_usage": True, "disable_history": True, "trace": None}
        if config.lm is not None:
            defaults["lm"] = self.lm(config.lm)
        if config.adapter is not None:
            defaults["adapter"] = _adapter(config.adapter)
        dspy.configure(**defaults)
        # Again in each call's context: a program may have configured something else meanwhile.
        self._per_call = defaults
        warm_price_table()

    @property
    def has_lm(self) -> bool:
        """Whether there is a default LM of the pool's, or one that configure_lm gave."""
        return "lm" in self._per_call

    def configure_lm(self, spec: LMSpec) -> None:
        """Make this LM the default one: calls that begin from now on use it, those under way keep the one they have.

        From any thread. On the main thread it also becomes what DSPy itself falls back to, in a thread of a program's
        own that took no context along.

        Raises:
            Exception: what dspy.LM says of its arguments. The default is what it was.
        """
        lm = self.lm(spec)
        with self._lock:
            self._per_call = {**self._per_call, "lm": lm}
        if threading.current_thread() is threading.main_thread():
            dspy.configure(lm=lm)

    @contextlib.contextmanager
    def call_context(
        self,
        lm: dict[str, Any] | None,
        deadline: float | None,
        cancellation: Cancellation | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Iterator[CallTracker]:
        """One call's settings, and what counts its tokens.

        With a tracker of ours, usage is counted whatever the program returns; DSPy by itself warns on each call whose
        result is no Prediction. A trace there must be: BestOfN and Refine add to it.

        Args:
            lm: the call's own LM, a spec as it came through the pipe; None: the default one.
            deadline: the call's, absolute; None: no limit.
            cancellation: the call's; None: it can't be cancelled.
            settings: the caller's, by name.
        """
        tracker = CallTracker()
        chosen = {} if lm is None else {"lm": self.lm_of(lm)}
        own = {"trace": [], "usage_tracker": tracker, COSTS: tracker.costs, WAITS: tracker.waits}
        own |= {DEADLINE: deadline, CANCELLATION: cancellation, LIMITS: self._limits}
        with dspy.context(**{**self._per_call, **chosen, **own, **(settings or {})}):
            try:
                yield tracker
            except BaseException as error:
                attach(error, tracker)
                raise

    def setting(self, data: bytes) -> Any:
        """A setting that came by cloudpickle; the same object for the same bytes, so that what it keeps stays."""
        with self._lock:
            found = self._settings.get(data, self)
            if found is self:
                found = self._settings[data] = cloudpickle.loads(data)
                if len(self._settings) > MAX_SETTINGS:
                    self._settings.popitem(last=False)
            self._settings.move_to_end(data)
            return found

    def lm_of(self, spec: dict[str, Any]) -> Any:
        """The LM of a spec as it came through the pipe."""
        with self._lock:
            found = self._lms.get(spec["digest"])
            if found is not None:
                self._lms.move_to_end(spec["digest"])
                return found
        return self.lm(msgspec.convert(spec, LMSpec))

    def lm(self, spec: LMSpec) -> Any:
        """The LM object of a spec, the same one for equal specs: a new one would cost a TLS handshake."""
        with self._lock:
            found = self._lms.get(spec.digest)
            if found is None:
                found = self._lms[spec.digest] = self._make_lm(spec)
                if len(self._lms) > MAX_LMS:
                    self._lms.popitem(last=False)
            self._lms.move_to_end(spec.digest)
            return found

    def _make_lm(self, spec: LMSpec) -> Any:
        self._secrets.add_lm(spec, passing=True)
        if spec.pickled is None:
            return DeadlineLM(spec.model, **spec.kwargs)
        lm = cloudpickle.loads(spec.pickled)
        if type(lm) is dspy.LM:
            lm.__class__ = DeadlineLM
        if hasattr(lm, "history"):
            lm.history = []  # it holds other callers' prompts
        self._secrets.add_settings(getattr(lm, "__dict__", {}), passing=True)
        return lm

    def program(self, module: Any, lms: dict[str, LMSpec]) -> ModuleProgram:
        """A module as a program, its predictors given their own LMs by name.

        Raises:
            ValueError: it has no predictor of that name.
        """
        predictors = dict(module.named_predictors())
        for name, spec in lms.items():
            if name not in predictors:
                raise ValueError(f"an LM is meant for the predictor {name!r}; the module has {', '.join(predictors)}")
            predictors[name].lm = self.lm(spec)
        return ModuleProgram(module, self)


def _limits(config: BootConfig) -> Limits | None:
    """What this worker shares with the pool's others.

    Raises:
        RuntimeError: it can't, and the pool has limits that would be broken.
    """
    if config.limits is None:
        return None
    try:
        return Limits(config.limits)
    except OSError as error:
        if config.limits.models:
            raise RuntimeError(
                f"lm_limits can't be kept: {config.limits.path}, which the workers share, can't be opened ({error}). "
                "Run the workers as the user that opens the pool, or open it without lm_limits"
            ) from error
        _log.warning("a provider's 429 won't hold back other workers: %s can't be opened", config.limits.path)
        return None


def _adapter(spec: str | bytes) -> Any:
    if isinstance(spec, bytes):
        return cloudpickle.loads(spec)
    if spec not in _ADAPTERS:
        raise ValueError(f"there is no adapter {spec!r}; there are {', '.join(_ADAPTERS)}")
    return getattr(dspy, _ADAPTERS[spec])()


def warm_price_table() -> None:
    """Read the price table now, not in the first call. DSPy has no public door to it; without it that call reads it."""
    with contextlib.suppress(ImportError, AttributeError):
        from dspy.clients import model_metadata

        model_metadata._load()

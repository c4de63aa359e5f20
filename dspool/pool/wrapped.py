"""pool.wrap(program): the program itself, but for its forward, which runs on the pool.

A wrapper is of a class made from the program's own, and shares the program's attributes: one dict, two objects. So
everything that DSPy does with a module, from named_predictors to dump_state and set_lm, acts on the program without a
line of ours, an optimizer that shows an LM the program's source finds it, and isinstance tells the truth.

Rules:
    1. A change of the program, through the wrapper or beside it, is a change of both.
    2. A copy of a wrapper wraps a copy of the program, on the same pool. Pickled, a wrapper is the program: in a saved
       file, and in a worker, there is no pool.
    3. What the caller's process does around `forward` (callbacks, usage, DSPy's checks) is DSPy's own and happens once:
       the program class's own __call__ runs in the worker.
    4. `forward` may be set, as optimizers do for a while; that is the wrapper's alone.

dspy is looked up in sys.modules, imported by wrap() alone.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
import weakref
from abc import ABCMeta
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from types import MemberDescriptorType, MethodType
from typing import Any

import anyio.from_thread
import msgspec

from dspool.errors import OptionsError, PoolError, ProgramError
from dspool.pool.context import bring_back, caller_of, finished, split_arguments
from dspool.pool.driver import Driver
from dspool.pool.front import PoolFront, Prepared, run_options
from dspool.pool.kindred_errors import as_kindred
from dspool.pool.relay import Listening, beside_stream, listening, relayed
from dspool.pool.steps import Steps
from dspool.pool.waits import drive_async, waits_beside
from dspool.protocol.messages import Response

_classes: weakref.WeakValueDictionary[type, type] = weakref.WeakValueDictionary()
"""A program's class -> that of its wrappers."""
_HEAP_TYPE = 1 << 9
"""The flag of classes that Python code has defined."""


class Way(msgspec.Struct, frozen=True):
    """How a pool's calls are driven; `blocking` None: only awaited."""

    blocking: Callable[[Driver, Steps[Any]], Any] | None
    awaited: Callable[[Driver, Steps[Any]], Awaitable[Any]]


class _Link(msgspec.Struct):
    """What a wrapper has beside the program's own attributes."""

    pool: PoolFront
    plain: Any
    as_run: Mapping[str, Any]
    way: Way
    forward: Any = None


def wrap(pool: PoolFront, program: Any, as_run: Mapping[str, Any], way: Way) -> Any:
    """A dspy.Module that runs a program on a pool.

    Raises:
        OptionsError: the program is no DSPy program, or one that is also a dict, say; or a default is no argument of
            run().
    """
    import dspy

    options = run_options("wrap", as_run)
    if isinstance(program, Pooled):
        program = program._dspool.plain
    elif isinstance(program, str) or (isinstance(program, type) and issubclass(program, dspy.Signature)):
        program = dspy.Predict(program)
    if not isinstance(program, dspy.Module):
        raise OptionsError(f"pool {pool.name!r}: wrap() takes a dspy.Module, or a signature; {_what_it_is(program)}")
    return _wrapper(_Link(pool, program, options, way))


def _what_it_is(program: Any) -> str:
    """Of what can't be wrapped: its kind, and what to do."""
    import dspy

    if isinstance(program, type):
        name = program.__qualname__
        return f"this is the class {name}" + (f": pass an instance, {name}(...)" * issubclass(program, dspy.Module))
    kind = f"this is a {type(program).__qualname__}"
    if isinstance(program, dspy.Evaluate | dspy.Parallel | dspy.teleprompt.Teleprompter):
        return f"{kind}, which stays in your process: wrap the program that you give it"
    return f"{kind}: run(), map() and stream() take functions as they are" if callable(program) else kind


def _wrapper(link: _Link) -> Any:
    kind = type(link.plain)
    of_wrappers = _class_for(kind)
    try:
        wrapper = object.__new__(of_wrappers)
    except TypeError:  # built in, or written in C: it keeps more than attributes
        builtin = next(base for base in kind.__mro__[:-1] if not base.__flags__ & _HEAP_TYPE).__qualname__
        raise OptionsError(
            f"pool {link.pool.name!r}: wrap() can't wrap {kind.__qualname__}: it is a {builtin} too, and what that "
            f"holds is no attribute, which a wrapper would share with it. Keep the {builtin} in an attribute; or give "
            "the program to run(), map() or stream(), which take it as it is"
        ) from None
    object.__setattr__(wrapper, "_dspool", link)  # whatever the program's own __setattr__ makes of it
    object.__setattr__(wrapper, "__dict__", link.plain.__dict__)
    return wrapper


def _class_for(base: Any) -> Any:
    """The class of a program class's wrappers. It goes by the same name, by which DSPy looks for its source."""
    made = _classes.get(base)
    if made is None:
        import dspy

        namespace = {name: base.__dict__[name] for name in ("__doc__", "__firstlineno__") if name in base.__dict__}
        namespace |= {"__module__": base.__module__, "__qualname__": base.__qualname__, "__slots__": ("_dspool",)}
        namespace |= {"__call__": dspy.Module.__call__, "acall": dspy.Module.acall}
        namespace |= {name: _shared(slot) for name, slot in _slots(base)}
        if hasattr(base, "__del__"):
            namespace["__del__"] = _outlived
        # Not by the metaclass's own steps: as __init_subclass__, they are for classes that somebody defines.
        maker = ABCMeta if issubclass(type(base), ABCMeta) else type
        made = _classes[base] = maker.__new__(type(base), base.__name__, (Pooled, base), namespace)
    return made


def _slots(base: type) -> Iterator[tuple[str, MemberDescriptorType]]:
    for kind in reversed(base.__mro__):
        yield from ((name, each) for name, each in vars(kind).items() if isinstance(each, MemberDescriptorType))


def _shared(slot: MemberDescriptorType) -> property:
    """An attribute of the program's that is in none of the dicts."""
    return property(
        lambda self: slot.__get__(self._dspool.plain),
        lambda self, value: slot.__set__(self._dspool.plain, value),
        lambda self: slot.__delete__(self._dspool.plain),
    )


def _outlived(self: Any) -> None:
    """In place of the program's own __del__, which would end what the program still uses."""


async def drive_beside(driver: Driver, steps: Steps[Any]) -> Any:
    """Drive a blocking pool's call from a task, in its own event loop."""
    return await drive_async(steps, waits_beside(driver))


class Pooled:
    """The part of a wrapper that isn't the program's own class."""

    __slots__ = ()

    _dspool: _Link

    def __init_subclass__(cls, **arguments: Any) -> None:
        """The program classes' own is not called: it is for classes that somebody defines, and may register them."""

    # --- calls ----------------------------------------------------------------------------------------------------

    @property
    def forward(self) -> Any:
        """Runs the program on the pool; or what was set in its place."""
        own = self._dspool.forward
        return MethodType(_forward, self) if own is None else own

    @forward.setter
    def forward(self, value: Any) -> None:
        self._dspool.forward = None if getattr(value, "__func__", None) is _forward else value

    @forward.deleter
    def forward(self) -> None:
        self._dspool.forward = None

    async def aforward(self, *args: Any, **kwargs: Any) -> Any:
        """As forward, awaited."""
        link = self._dspool
        if link.forward is not None:
            value = link.forward(*args, **kwargs)
            return await value if inspect.isawaitable(value) else value
        return await _awaited(self, args, kwargs, listening(self))

    # --- copies ---------------------------------------------------------------------------------------------------

    def deepcopy(self) -> Any:
        """A wrapper of a deep copy, as the program makes it."""
        return _copied(self, self._dspool.plain.deepcopy())

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _copied(self, copy.deepcopy(self._dspool.plain, memo))

    def __copy__(self) -> Any:
        return _copied(self, copy.copy(self._dspool.plain))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return operator.getitem, ((self._dspool.plain,), 0)

    # --- state ----------------------------------------------------------------------------------------------------

    def load_state(self, *args: Any, **kwargs: Any) -> Any:
        """As the program's, at once for calls that begin meanwhile; at the next one all of it is looked at."""
        plain = self._dspool.plain
        with _changing(self._dspool):
            result = plain.load_state(*args, **kwargs)
        return self if result is plain else result

    def set_lm(self, *args: Any, **kwargs: Any) -> Any:
        """As the program's, in the same way."""
        with _changing(self._dspool):
            return self._dspool.plain.set_lm(*args, **kwargs)


def _changing(link: _Link) -> contextlib.AbstractContextManager[None]:
    control = link.pool._control
    return contextlib.nullcontext() if control is None else control.programs.changing(link.plain)


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the program on the pool."""
    way = self._dspool.way
    if beside_stream():
        return anyio.from_thread.run(_awaited, self, args, kwargs, listening(self))
    if way.blocking is None:
        raise PoolError(
            f"async pool {self._dspool.pool.name!r} runs in tasks of its event loop: use `await module.acall(...)`, or "
            "wrap the program with a dspool.Pool, which any thread may call"
        )
    (driver, resolved, steps), lm = _prepared(self, args, kwargs)
    response, worker_id = way.blocking(driver, steps)
    return _finish(self, resolved, response, worker_id, lm)


async def _awaited(wrapper: Any, args: tuple[Any, ...], kwargs: dict[str, Any], to: Listening | None) -> Any:
    """The same in a task; its pieces go into the caller's stream, if there is one."""
    (driver, resolved, steps), lm = _prepared(wrapper, args, kwargs, to)
    awaited = partial(wrapper._dspool.way.awaited, driver)
    response, worker_id = await (awaited(steps) if to is None else relayed(steps, awaited, to))
    return _finish(wrapper, resolved, response, worker_id, lm)


def _prepared(
    wrapper: Any, args: tuple[Any, ...], kwargs: dict[str, Any], to: Listening | None = None
) -> tuple[Prepared, Any]:
    link = wrapper._dspool
    label = f"pool {link.pool.name!r}: {type(wrapper).__qualname__}"
    inputs, arguments, lm = split_arguments(args, kwargs, label)
    caller = caller_of(arguments, lm, None if to is None else to.relay)
    return link.pool._prepare_row(link.plain, inputs, link.as_run, caller), lm


def _finish(wrapper: Any, program: Any, response: Response, worker_id: int, lm: Any) -> Any:
    records = response.records
    traced = bring_back(records, wrapper, lm) if records is not None else []
    try:
        result = wrapper._dspool.pool._finish(program, response, worker_id)
    except ProgramError as error:
        raise as_kindred(error, wrapper.predictors()) from None
    return finished(result, response, traced)


def _copied(wrapper: Any, plain: Any) -> Any:
    link = wrapper._dspool
    fresh = _wrapper(_Link(link.pool, plain, link.as_run, link.way))
    if isinstance(link.forward, MethodType) and link.forward.__self__ is wrapper:
        fresh.forward = MethodType(link.forward.__func__, fresh)
    elif link.forward is not None:
        fresh.forward = link.forward
    return fresh

"""pickled(): an object as workers are sent it, by cloudpickle; what they can't import goes by value.

An LM is made again from its arguments where these are the whole of it; its history and callbacks stay here: they hold
other callers' prompts, and objects of this process.

dspy is looked up in sys.modules and never imported: its objects can only exist where it is loaded.
"""

from __future__ import annotations

import functools
import io
import sys
import threading
import types
from collections.abc import Collection, Mapping
from typing import Any

import cloudpickle

from dspool.pool.identity import LM_RECORDS, AttributesOf, changed, importable, loaded_dspy, parallel_reduced
from dspool.signals import let_through

_UNCOMPARED = LM_RECORDS | {"provider", "_engine_store", "_engine_lock"}
_PLAIN = (type(None), bool, int, float, str)
_pickling = threading.RLock()


def pickled(thing: Any, without_lm: Collection[int] = (), attributes_of: AttributesOf = lambda thing: {}) -> bytes:
    """An object by cloudpickle: without histories and callbacks of LMs, and with what a worker can't import by value.

    Args:
        thing: any object.
        without_lm: by the ids of their dicts, predictors whose LM is left out, because it is sent beside.
        attributes_of: what an object's attributes are taken to be.

    Raises:
        Exception: whatever a part of it raises that can't be pickled.
    """
    buffer = io.BytesIO()
    dump(Pickler(buffer, without_lm, attributes_of), thing)
    return buffer.getvalue()


def dump(pickler: Pickler, thing: Any) -> None:
    """Have a pickler write an object."""
    with _pickling:  # cloudpickle's register of modules that go by value is the process's, so one at a time
        try:
            pickler.dump(thing)
        finally:
            for module in pickler.registered:
                cloudpickle.unregister_pickle_by_value(module)


class Pickler(cloudpickle.Pickler):
    """What pickled() says of LMs and of modules that a worker can't import. To be used by dump().

    Args:
        file: where to.
        without_lm, attributes_of: as for pickled().
    """

    def __init__(
        self, file: Any, without_lm: Collection[int] = (), attributes_of: AttributesOf = lambda thing: {}
    ) -> None:
        super().__init__(file)
        self._without_lm = without_lm
        self._attributes_of = attributes_of
        self.registered: list[types.ModuleType] = []
        """Modules that go by value for the time of one pickle."""

    def reducer_override(self, thing: Any) -> Any:
        """How an object that isn't plain data is reduced."""
        if isinstance(thing, type | types.FunctionType | types.ModuleType):
            self._send_by_value(thing if isinstance(thing, types.ModuleType) else sys.modules.get(thing.__module__))
        elif (reduced := parallel_reduced(thing)) is not None:
            return reduced
        elif changes := self._changes(thing):
            return _with_state(thing.__reduce_ex__(4), changes)
        elif is_lm(thing):
            arguments = lm_arguments(thing)
            if arguments is not None:
                return functools.partial(loaded_dspy("LM")[0], **arguments), (thing.model,)
            return _with_state(thing.__reduce_ex__(4), {"history": [], "callbacks": []})
        reduced = super().reducer_override(thing)
        return _without_bystanders(reduced) if isinstance(thing, type) else reduced

    def _changes(self, thing: Any) -> Mapping[str, Any]:
        """Attributes of a DSPy module that are to be others than it holds."""
        if not isinstance(thing, loaded_dspy("Module")):
            return {}
        attributes = self._attributes_of(thing)
        return {**attributes, "lm": None} if id(vars(thing)) in self._without_lm else attributes

    def _send_by_value(self, module: types.ModuleType | None) -> None:
        if module is None or module.__name__ in ("__main__", "__mp_main__"):
            return  # by value as it is
        name = module.__name__
        if (
            sys.modules.get(name) is module
            and not importable(name)
            and name not in cloudpickle.list_registry_pickle_by_value()
        ):
            cloudpickle.register_pickle_by_value(module)
            self.registered.append(module)


def _without_bystanders(reduced: Any) -> Any:
    """A class's reduction without the local variables among which it was defined.

    pydantic keeps them, to look up names in annotations with. A complete class needs none, and they may be anything:
    open connections, keys, the pool itself.
    """
    if isinstance(reduced, tuple) and len(reduced) > 2 and isinstance(reduced[2], tuple):
        namespace = reduced[2][0]
        if isinstance(namespace, dict) and namespace.get("__pydantic_complete__"):
            namespace["__pydantic_parent_namespace__"] = None  # the dict is cloudpickle's copy
    return reduced


def _with_state(reduced: Any, changes: Mapping[str, Any]) -> Any:
    """An object's reduction with some attributes changed, where its state is a plain dict that has them."""
    if not isinstance(reduced, tuple) or len(reduced) < 3 or not isinstance(reduced[2], dict):
        return reduced
    return (*reduced[:2], changed(reduced[2], changes), *reduced[3:])


def is_lm(thing: Any) -> bool:
    """Whether it is an LM object: a dspy.BaseLM, or a client that answers DSPy's decision requests."""
    if isinstance(thing, type) or "dspy" not in sys.modules:
        return False
    return isinstance(thing, loaded_dspy("BaseLM")) or getattr(type(thing), "supports_decision_requests", False) is True


def lm_arguments(lm: Any) -> dict[str, Any] | None:
    """What to build an equal dspy.LM with; None where that is not the whole of it."""
    if type(lm) not in loaded_dspy("LM") or not isinstance(lm.engine, str):
        return None
    names = (
        "model_type",
        "cache",
        "num_retries",
        "use_developer_role",
        "finetuning_model",
        "launch_kwargs",
        "train_kwargs",
    )
    arguments = {**lm.kwargs, **{name: getattr(lm, name) for name in names}, "engine": lm.engine}
    if "max_tokens" not in arguments and "max_completion_tokens" in arguments:
        # What dspy.LM makes of max_tokens for a model that reasons, and does not take by that name.
        arguments["max_tokens"] = arguments.pop("max_completion_tokens")
    # For a rollout_id at temperature 0 dspy.LM warns; the user has been told when they made theirs.
    warns = arguments.get("rollout_id") is not None and arguments.get("temperature") == 0
    if warns or lm._providers or not is_plain(arguments):
        return None
    try:
        again = type(lm)(lm.model, **arguments)
    except Exception as error:
        let_through(error)
        return None
    same = _settings(again) == _settings(lm) and type(again.provider) is type(lm.provider)
    return arguments if same else None


def _settings(lm: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(lm).items() if name not in _UNCOMPARED}


def is_plain(value: Any) -> bool:
    """Whether it consists of nothing but plain data."""
    if type(value) is list:
        return all(map(is_plain, value))
    if type(value) is dict:
        return all(type(key) is str for key in value) and all(map(is_plain, value.values()))
    return type(value) in _PLAIN and not (type(value) is int and not -(2**63) <= value < 2**64)

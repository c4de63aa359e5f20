"""LMs and adapters as what a worker is sent, and the pickler that takes LMs out of what holds them.

    "provider/model"              as it stands
    {"model": ..., ...}           dspy.LM's arguments; plain data
    a dspy.LM                     the same, read back from the object; checked by building it again and comparing
    any other LM object           pickled: an engine of one's own, a subclass, DummyLM, an LM with further attributes

Rules:
    1. An LM's history and callbacks stay here: they hold other callers' prompts, and objects of this process.
    2. Equal specs have equal digests. The digest covers everything, keys included, and shows none of it.
    3. No error names the value of an argument: it may be a key.

dspy is looked up in sys.modules and never imported: an LM object can only exist where it is loaded.
"""

from __future__ import annotations

import difflib
import functools
import io
import sys
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Collection, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import cloudpickle
import msgspec

from dspool.errors import OptionsError
from dspool.pool.identity import (
    LM_RECORDS,
    importable,
    loaded_dspy,
    parallel_reduced,
)
from dspool.pool.watch import Watch
from dspool.protocol.lm_keys import provider_of
from dspool.protocol.messages import LMSpec
from dspool.protocol.secrets import secrets_in
from dspool.signals import let_through

MAX_REMEMBERED = 256
"""LM objects whose specs are kept."""
_ADAPTERS = ("chat", "json", "xml")
_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("temperature", "max_tokens", "finetuning_model")),
    "model_type": "chat",
    "cache": True,
    "num_retries": 3,
    "engine": "auto",
    "use_developer_role": False,
    "launch_kwargs": {},
    "train_kwargs": {},
}
"""dspy.LM's own: left out, so that an LM and the bare name of its model are one where they mean the same."""
_OFFLINE = ("offline", "offline/extractive")
_UNCOMPARED = LM_RECORDS | {"provider", "_engine_store", "_engine_lock"}
_ARGUMENTS = ("api_key", "api_base", "temperature", "max_tokens", "num_retries", "timeout", "cache")
"""The names that a slip in a dict would most likely have meant."""
_PLAIN = (type(None), bool, int, float, str)


class _Known(NamedTuple):
    ref: weakref.ref[Any]
    watch: Watch
    spec: LMSpec


_known: OrderedDict[int, _Known] = OrderedDict()
_pickling = threading.RLock()


def lm_spec(lm: Any) -> LMSpec:
    """An LM as a worker is sent it.

    Args:
        lm: "provider/model", a dict of dspy.LM's arguments with "model", or an LM object. An object's spec is
            remembered until its attributes or its `kwargs` change.

    Raises:
        OptionsError: it is none of these, or can't be sent; the text says which part.
    """
    known = _known.get(id(lm))
    if known is not None and known.ref() is lm and known.watch.unchanged():
        return known.spec
    if isinstance(lm, str):
        return _named(lm)
    if isinstance(lm, Mapping):
        _check_spelling(lm)
        return _from_arguments(lm)
    if not is_lm(lm):
        raise OptionsError(
            f'lm must be "provider/model", a dict of dspy.LM\'s arguments with "model", or a dspy.LM; '
            f"it is a {type(lm).__qualname__}"
        )
    watch = Watch([lm])
    spec = _from_object(lm)
    _known[id(lm)] = _Known(weakref.ref(lm, functools.partial(_forget, id(lm))), watch, spec)
    while len(_known) > MAX_REMEMBERED:
        _known.popitem(last=False)
    return spec


def ambient_spec() -> LMSpec | None:
    """The caller's ambient LM as a worker is sent it: marked, because a predictor's own LM goes before it."""
    lm = ambient_lm()
    return None if lm is None else msgspec.structs.replace(lm_spec(lm), ambient=True)


def ambient_lm() -> Any:
    """The LM that dspy.configure or dspy.context gave the caller; None where there is none or dspy isn't loaded."""
    settings = getattr(sys.modules.get("dspy"), "settings", None)
    return settings.lm if settings is not None else None


def adapter_spec(adapter: Any) -> str | bytes | None:
    """A DSPy adapter as a worker is sent it: its name, or the object pickled without the LMs' histories.

    Raises:
        OptionsError: it is neither a known name nor an adapter object, or can't be pickled.
    """
    if adapter is None:
        return None
    if isinstance(adapter, str):
        if adapter not in _ADAPTERS:
            raise OptionsError(
                f"adapter must be one of {', '.join(_ADAPTERS)}, or a dspy.Adapter; it is {adapter!r:.80}"
            )
        return adapter
    if not isinstance(adapter, loaded_dspy("Adapter")):
        what = f"the class {adapter.__qualname__}" if isinstance(adapter, type) else f"a {type(adapter).__qualname__}"
        raise OptionsError(f"adapter must be one of {', '.join(_ADAPTERS)}, or a dspy.Adapter; it is {what}")
    try:
        return pickled(adapter)
    except Exception as error:
        let_through(error)
        raise OptionsError(f"the adapter {type(adapter).__qualname__} can't be sent: {error}") from error


def is_lm(thing: Any) -> bool:
    """Whether it is an LM object: a dspy.BaseLM, or a client that answers DSPy's decision requests."""
    if isinstance(thing, type) or "dspy" not in sys.modules:
        return False
    return isinstance(thing, loaded_dspy("BaseLM")) or getattr(type(thing), "supports_decision_requests", False) is True


def stable_digest(thing: Any) -> str | None:
    """The digest of an LM that is told by its arguments alone; None for any other object."""
    spec = lm_spec(thing) if type(thing) in loaded_dspy("LM") else None
    return spec.digest if spec is not None and spec.pickled is None else None


def _forget(key: int, ref: weakref.ref[Any]) -> None:
    known = _known.get(key)
    if known is not None and known.ref is ref:
        _known.pop(key, None)


@functools.lru_cache(MAX_REMEMBERED)
def _named(model: str) -> LMSpec:
    if "://" in model:  # not shown: there may be a key in it
        raise OptionsError(
            "lm is an address, not a model. Write the model's name and the address apart: "
            'lm={"model": "openai/NAME", "api_base": "http://...", "api_key": ...}'
        )
    if model and "/" not in model and model not in _OFFLINE:
        # Only what begins like a model's name is shown: the rest may be a key in the wrong place.
        provider = provider_of(model)
        wanted = f'"{provider}/{model:.80}"' if provider else '"provider/model", as in "openai/gpt-4o-mini"'
        raise OptionsError(
            f"lm names no provider; write {wanted}. A model that DSPy finds without one goes as a dict of dspy.LM's "
            'arguments with "model", or as a dspy.LM'
        )
    return _from_arguments({"model": model})


def _from_arguments(arguments: Mapping[Any, Any]) -> LMSpec:
    model = arguments.get("model")
    if "model" not in arguments:
        raise OptionsError('lm has no "model"; a dict of dspy.LM\'s arguments needs one, e.g. "openai/gpt-4o-mini"')
    if not isinstance(model, str) or not model:
        raise OptionsError(f"lm's model must be a non-empty string; it is {model!r:.80}")
    if model.partition("/")[1:] == ("/", ""):
        raise OptionsError(f"lm's model {model!r:.80} has a provider but no model after it")
    if model in _OFFLINE:
        raise OptionsError(
            f"lm={model!r} names the offline LM in commands alone, so that no code uses it unawares; it quotes instead "
            "of thinking. In code pass the object: lm=dspool.testing.offline_lm.offline_lm()"
        )
    kwargs: dict[str, Any] = {}
    for name, value in arguments.items():
        if not isinstance(name, str):
            raise OptionsError(f"lm has an argument whose name is a {type(name).__qualname__}, not a string")
        if not _is_plain(value):
            raise OptionsError(
                f"lm[{name!r:.80}] is, or holds, something other than plain data ({type(value).__qualname__}); pass a "
                f"dspy.LM object to send that"
            )
        if name != "model" and (name not in _DEFAULTS or value != _DEFAULTS[name]):
            kwargs[name] = value
    return LMSpec(_digest(model, kwargs), model, kwargs)


def _check_spelling(arguments: Mapping[Any, Any]) -> None:
    """Refuse what is nearly the name of an argument: DSPy sends it on to the provider, and nobody ever notices."""
    for name in arguments:
        if isinstance(name, str) and name not in _ARGUMENTS:
            likely = difflib.get_close_matches(name.lower(), _ARGUMENTS, n=1, cutoff=0.85)
            if likely and likely[0] not in arguments:
                raise OptionsError(f"lm has no argument {name!r:.80}; did you mean {likely[0]!r}?")


def _digest(model: str, arguments: Any) -> str:
    body = msgspec.msgpack.encode((model, arguments), order="deterministic")
    return blake2b(body, digest_size=16).hexdigest()


def _is_plain(value: Any) -> bool:
    if type(value) is list:
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(type(key) is str for key in value) and all(map(_is_plain, value.values()))
    return type(value) in _PLAIN and not (type(value) is int and not -(2**63) <= value < 2**64)


def _from_object(lm: Any) -> LMSpec:
    arguments = _arguments(lm)
    if arguments is not None:
        return _from_arguments({"model": lm.model, **arguments})
    model = lm.model if isinstance(getattr(lm, "model", None), str) else ""
    try:
        data = pickled(lm)
    except Exception as error:
        let_through(error)
        raise OptionsError(f"the LM {type(lm).__qualname__} ({model}) can't be sent: {error}") from error
    secrets = tuple(sorted(secrets_in(getattr(lm, "__dict__", {}))))
    return LMSpec(_digest(model, data), model, pickled=data, secrets=secrets)


def _arguments(lm: Any) -> dict[str, Any] | None:
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
    if warns or lm._providers or not _is_plain(arguments):
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


def pickled(thing: Any, without_lm: Collection[int] = ()) -> bytes:
    """An object by cloudpickle: without histories and callbacks of LMs, and with what a worker can't import by value.

    Args:
        thing: any object.
        without_lm: ids of predictors whose LM is left out, because it is sent beside.

    Raises:
        Exception: whatever a part of it raises that can't be pickled.
    """
    buffer = io.BytesIO()
    dump(Pickler(buffer, without_lm), thing)
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
        without_lm: ids of predictors whose LM is left out.
    """

    def __init__(self, file: Any, without_lm: Collection[int] = ()) -> None:
        super().__init__(file)
        self._without_lm = without_lm
        self.registered: list[types.ModuleType] = []
        """Modules that go by value for the time of one pickle."""

    def reducer_override(self, thing: Any) -> Any:
        """How an object that isn't plain data is reduced."""
        if isinstance(thing, type | types.FunctionType | types.ModuleType):
            self._send_by_value(thing if isinstance(thing, types.ModuleType) else sys.modules.get(thing.__module__))
        elif (reduced := parallel_reduced(thing)) is not None:
            return reduced
        elif id(thing) in self._without_lm:
            return _with_state(thing.__reduce_ex__(4), lm=None)
        elif is_lm(thing):
            arguments = _arguments(thing)
            if arguments is not None:
                return functools.partial(loaded_dspy("LM")[0], **arguments), (thing.model,)
            return _with_state(thing.__reduce_ex__(4), history=[], callbacks=[])
        reduced = super().reducer_override(thing)
        return _without_bystanders(reduced) if isinstance(thing, type) else reduced

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


def _with_state(reduced: Any, **changes: Any) -> Any:
    """An object's reduction with some attributes changed, where its state is a plain dict that has them."""
    if not isinstance(reduced, tuple) or len(reduced) < 3 or not isinstance(reduced[2], dict):
        return reduced
    state = reduced[2] | {name: value for name, value in changes.items() if name in reduced[2]}
    return (*reduced[:2], state, *reduced[3:])

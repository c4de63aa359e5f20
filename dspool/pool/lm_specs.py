"""LMs and adapters as a worker is sent them.

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
import sys
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from dspool.errors import EncodeError, OptionsError
from dspool.pool.identity import loaded_dspy
from dspool.pool.pickling import is_lm, is_plain, lm_arguments
from dspool.pool.unsendable import pickled_or_named
from dspool.pool.watch import Watch
from dspool.protocol.lm_keys import provider_of
from dspool.protocol.messages import LMSpec
from dspool.protocol.secrets import secrets_in

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
_ARGUMENTS = ("api_key", "api_base", "temperature", "max_tokens", "num_retries", "timeout", "cache")
"""The names that a slip in a dict would most likely have meant."""


class _Known(NamedTuple):
    ref: weakref.ref[Any]
    watch: Watch
    spec: LMSpec


_known: OrderedDict[int, _Known] = OrderedDict()


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
    return _pickled(adapter, "adapter", f"the adapter {type(adapter).__qualname__} can't be sent")


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
        if not is_plain(value):
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


def _from_object(lm: Any) -> LMSpec:
    arguments = lm_arguments(lm)
    if arguments is not None:
        return _from_arguments({"model": lm.model, **arguments})
    model = lm.model if isinstance(getattr(lm, "model", None), str) else ""
    data = _pickled(lm, "lm", f"the LM {type(lm).__qualname__} ({model}) can't be sent")
    secrets = tuple(sorted(secrets_in(getattr(lm, "__dict__", {}))))
    return LMSpec(_digest(model, data), model, pickled=data, secrets=secrets)


def _pickled(thing: Any, label: str, refusal: str) -> bytes:
    try:
        return pickled_or_named(thing, label, refusal)
    except EncodeError as error:
        raise OptionsError(str(error)) from error.__cause__

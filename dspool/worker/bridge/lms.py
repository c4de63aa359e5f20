"""LMs as a bridge's client names them -> the spec that the runtime makes an LM from.

    configure_lm, create_gemini_program    provider, model, api_key, api_base, temperature, max_tokens
    "lm" of a program or of a call         "provider/model", or an object of dspy.LM's arguments with "model"

Rules:
    1. No provider is called to find out whether a key is good. That there is none is said at once, where a provider is
       known to want one.
    2. No error names the value of an argument: it may be a key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from dspool.protocol.lm_keys import NATIVE, missing_variables, provider_of
from dspool.protocol.messages import LMSpec
from dspool.worker.bridge.refusal import Refused

DEFAULT_GEMINI = "gemini/gemini-2.5-flash"

_ALIASES = {"google": "gemini"}
"""The original bridge called it so."""


class LMArgs(msgspec.Struct, omit_defaults=True):
    """configure_lm's args."""

    model: str = ""
    provider: str | None = None
    api_key: str | None = None
    api_base: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


def read_lm(args: dict[str, Any], prefix: str | None = None) -> LMSpec:
    """The LM that configure_lm's args describe.

    Args:
        args: them.
        prefix: the provider where the args name none.

    Raises:
        Refused: something is missing or of the wrong type, or there is no key.
    """
    read, settings = _read(args)
    if not read.model:
        raise Refused("invalid_args", "Model name is required")
    return _checked(_full_name(read.model, read.provider or prefix), settings)


def read_gemini(args: dict[str, Any], configured: LMSpec | None) -> LMSpec | None:
    """The LM that a Gemini program has of its own; None: what is configured when it runs, or default_gemini().

    Args:
        args: create_gemini_program's. What they set of an LM without naming its model counts on top of the
            configured one, or of DEFAULT_GEMINI.
        configured: the LM that is configured now.

    Raises:
        Refused: as read_lm(), and where it is no model of Gemini's.
    """
    read, settings = _read(args)
    if read.model:
        spec = read_lm(args, "gemini")
        if not is_gemini(spec):
            raise Refused("invalid_args", f"{spec.model:.200} is not a Gemini model; use create_program")
        return spec
    if settings:
        if configured is None or not is_gemini(configured):
            return _checked(DEFAULT_GEMINI, settings)
        return _checked(configured.model, {**configured.kwargs, **settings})
    if is_gemini(configured) or default_gemini() is not None:
        return None
    raise Refused(
        "missing_key",
        'API key is required: send configure_lm with "provider": "gemini", a model and an api_key, or an api_key here,'
        " or start the bridge with GEMINI_API_KEY in its environment",
        provider="gemini",
    )


def _read(args: dict[str, Any]) -> tuple[LMArgs, dict[str, Any]]:
    """What args say of an LM, and which of it are dspy.LM's arguments. Null and an empty text say nothing."""
    try:
        read = msgspec.convert({name: value for name, value in args.items() if value is not None}, LMArgs)
    except msgspec.ValidationError as error:
        raise Refused("invalid_args", f"the LM's arguments are wrong: {error}") from None
    given = {name: getattr(read, name) for name in ("api_key", "api_base", "temperature", "max_tokens")}
    return read, {name: value for name, value in given.items() if value not in (None, "")}


def read_own_lm(lm: Any) -> LMSpec | None:
    """The LM that a program or a call has of its own.

    Raises:
        Refused: it is no LM, or has no key.
    """
    if lm is None:
        return None
    arguments = {"model": lm} if isinstance(lm, str) else lm
    if not isinstance(arguments, dict) or not isinstance(arguments.get("model"), str) or not arguments["model"]:
        raise Refused("invalid_args", 'lm is "provider/model", or an object of dspy.LM\'s arguments with "model"')
    settings = {name: value for name, value in arguments.items() if name != "model"}
    return _checked(_full_name(arguments["model"], None), settings)


def default_gemini(environment: Mapping[str, str] = os.environ) -> LMSpec | None:
    """The LM of a client that configured none, where the environment has a key for it."""
    return _spec(DEFAULT_GEMINI, {}) if any(environment.get(name) for name in NATIVE["gemini"]) else None


def is_gemini(spec: LMSpec | None) -> bool:
    """Whether it is a model of Gemini's."""
    return spec is not None and spec.model.startswith("gemini/")


def _full_name(model: str, provider: str | None) -> str:
    """The model as DSPy names it."""
    if provider:
        provider = _ALIASES.get(provider, provider)
        return model if model.startswith(f"{provider}/") else f"{provider}/{model}"
    if "/" in model:
        return model
    known = provider_of(model)
    if not known:
        raise Refused(
            "invalid_args", 'the LM has no provider; send "provider", or the model as in "openai/gpt-4o-mini"'
        )
    return f"{known}/{model}"


def _checked(model: str, settings: dict[str, Any]) -> LMSpec:
    spec = _spec(model, settings)
    if missing := missing_variables(spec, os.environ):
        provider = model.partition("/")[0]
        raise Refused(
            "missing_key",
            f"API key is required: {provider} wants one, the arguments have no api_key, and the bridge was started"
            f" without {' or '.join(missing)} in its environment",
            provider=provider,
        )
    return spec


def _spec(model: str, settings: dict[str, Any]) -> LMSpec:
    try:
        body = msgspec.msgpack.encode((model, settings), order="deterministic")
    except (OverflowError, RecursionError, ValueError, msgspec.MsgspecError) as error:
        raise Refused("invalid_args", f"the LM's arguments can't be used: {error}") from None
    return LMSpec(blake2b(body, digest_size=16).hexdigest(), model, settings)

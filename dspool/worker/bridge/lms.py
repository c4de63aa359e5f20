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

from dspool.protocol.lm_keys import NATIVE, missing_variables
from dspool.protocol.messages import LMSpec
from dspool.worker.bridge.refusal import Refused

DEFAULT_GEMINI = "gemini/gemini-2.5-flash"

_BEGINNINGS = {"gemini": "gemini", "gpt-": "openai", "o1": "openai", "o3": "openai", "claude-": "anthropic"}
_ALIASES = {"google": "gemini"}
"""The original bridge called it so."""


class LMArgs(msgspec.Struct, omit_defaults=True):
    """configure_lm's args."""

    model: str
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
    model = args.get("model")
    if model is None or model == "":
        raise Refused("invalid_args", "Model name is required")
    try:
        read = msgspec.convert(args, LMArgs)
    except msgspec.ValidationError as error:
        raise Refused("invalid_args", f"the LM's arguments are wrong: {error}") from None
    name = _full_name(read.model, read.provider or prefix)
    given = {field: getattr(read, field) for field in ("api_key", "api_base", "temperature", "max_tokens")}
    return _checked(name, {field: value for field, value in given.items() if value not in (None, "")})


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
    known = next((name for beginning, name in _BEGINNINGS.items() if model.startswith(beginning)), None)
    if known is None:
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

"""The page of docs/reference/ about the public names."""

from __future__ import annotations

import inspect
import re
from typing import Any

from reference_text import MADE_BY, prose

import dspool
from dspool.types import (
    AnswerFigures,
    Check,
    CheckoutRequest,
    EnvironmentReport,
    ExitReport,
    HealthChange,
    LMUsage,
    PoolHealth,
    PoolStats,
    Remove,
    Skip,
    UsageStats,
    WorkerInfo,
)

_CODE_WIDTH = 100


def api() -> str:
    """Pool, AsyncPool, the leases and the structs."""
    parts = [
        "# Public names\n",
        MADE_BY,
        "All of them are in `dspool`. `dspool.Pool` is for threads, `dspool.AsyncPool` for asyncio and trio: the same",
        "names, arguments, values and errors, awaited. [Options](options.md) and [errors](errors.md) have pages of",
        "their own.\n",
    ]
    for cls in (dspool.Pool, dspool.AsyncPool, dspool.Lease, dspool.AsyncLease, dspool.Executor):
        parts += [f"## {cls.__name__}\n", prose(cls.__doc__)]
        for name, member in public_members(cls).items():
            parts += [_signature(cls, name, member), prose(_callable(member).__doc__)]
    parts += ["## check_environment\n", _function(dspool.check_environment), prose(dspool.check_environment.__doc__)]
    parts.append("## Structs\n\nFrozen; what a method returned doesn't change afterwards.\n")
    snapshots = (WorkerInfo, PoolStats, UsageStats, LMUsage, PoolHealth, HealthChange, AnswerFigures, ExitReport)
    for struct in (*snapshots, EnvironmentReport, Check, CheckoutRequest, Remove, Skip):
        fields = [f"{name}: {kind}" for name, kind in struct.__annotations__.items()]
        parts += [f"### {struct.__name__}\n", prose(struct.__doc__), "```python", *fields, "```\n"]
    parts.append("`dspool.KEEP` is the third verdict of a `check` hook, beside `Remove(reason)` and `Skip(reason)`.\n")
    return "\n".join(parts)


def public_members(cls: type) -> dict[str, Any]:
    """Methods and properties without an underscore, in the order of the source, inherited ones last."""
    found: dict[str, Any] = {}
    for owner in cls.__mro__[:-1]:
        for name, member in vars(owner).items():
            if not name.startswith("_") and (isinstance(member, property) or inspect.isfunction(member)):
                found.setdefault(name, member)
    return found


def _callable(member: Any) -> Any:
    return member.fget if isinstance(member, property) else member


def _signature(cls: type, name: str, member: Any) -> str:
    returns = inspect.signature(_callable(member)).return_annotation
    block = f"```python\n{name}: {returns}\n```\n" if isinstance(member, property) else _function(member)
    return f"### {cls.__name__}.{name}\n\n{block}"


def _function(function: Any) -> str:
    """A function's signature as a block of code."""
    signature = inspect.signature(function)
    parts, returns = _parameters(signature), signature.return_annotation
    head = ("async def " if inspect.iscoroutinefunction(function) else "def ") + function.__name__
    shown = f"{head}({', '.join(parts)}) -> {returns}"
    if len(shown) > _CODE_WIDTH:
        shown = "\n".join([f"{head}(", *(f"    {part}," for part in parts), f") -> {returns}"])
    return f"```python\n{shown}\n```\n"


def _parameters(signature: inspect.Signature) -> list[str]:
    """As they stand in the source, without self."""
    parts: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not any(re.match(r"\*(?!\*)", part) for part in parts):
            parts.append("*")
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        if parameter.kind is parameter.VAR_POSITIONAL:
            stars = "*"
        default = parameter.default
        ending = "" if default is parameter.empty else f" = {'...' if default is ... else repr(default)}"
        parts.append(f"{stars}{parameter.name}: {parameter.annotation}{ending}")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            parts.append("/")
    return parts

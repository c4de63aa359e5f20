"""What the stub server does with request number n: how long it takes, and what goes wrong with it.

Rules: everything random comes from the seed and the request's number alone, so that request n meets the same
latency and the same fault in every run, whatever arrives around it. Specifications are checked when they are
read, before any socket is opened. This module must not know about sockets, clocks or prompts.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence

from dspool.testing.stub_request import StubRequest

__all__ = ["FAULTS", "FaultSpec", "LatencySpec", "Plan", "read_latency"]

LatencySpec = float | int | str | Sequence[float | int | str]
"""Seconds, or a distribution: ``("uniform", 0.1, 0.3)``, or the same as text: ``"uniform:0.1,0.3"``."""

FaultSpec = Mapping[str, float | str] | Sequence[str | None] | Callable[[StubRequest], str | None]
"""Shares or texts by fault, a script by request number, or a function; see `StubLM`."""

FAULTS = ("hang", "garbage", "reset", "stall", "slow")
"""The faults that have a name; every HTTP status from 400 to 599 is one too, as text: ``"429"``."""

_PARAMETERS = {"constant": 1, "uniform": 2, "exponential": 1, "lognormal": 2}

Draw = Callable[[random.Random], float]


class Plan:
    """Answers, for each request in the order of arrival, how long it takes and what goes wrong.

    Args:
        latency: Seconds before the first byte of an answer, or a distribution of them.
        faults: What goes wrong, and when; None for nothing.
        seed: Two plans with equal arguments give equal answers.

    Raises:
        ValueError: A specification names something unknown or is out of range.
    """

    __slots__ = ("_draw", "_fault_random", "_latency_random", "_script", "_shares", "_texts", "_user")

    def __init__(self, latency: LatencySpec = 0.0, faults: FaultSpec | None = None, seed: int = 0) -> None:
        self._draw = read_latency(latency)
        self._latency_random = random.Random(f"{seed}/latency")
        self._fault_random = random.Random(f"{seed}/fault")
        self._user: Callable[[StubRequest], str | None] | None = None
        self._script: Sequence[str | None] = ()
        self._texts: list[tuple[str, str]] = []
        self._shares: list[tuple[float, str]] = []
        if callable(faults):
            self._user = faults
        elif isinstance(faults, Mapping):
            self._read_mapping(faults)
        elif faults is not None:
            if isinstance(faults, str):
                raise ValueError(f"faults={faults!r}: give a dict, a list of names, or a function")
            self._script = [None if fault in (None, "ok") else _fault_name(fault) for fault in faults]

    def latency_s(self) -> float:
        """Return the next request's latency. Call it once per request, whatever its fault."""
        return self._draw(self._latency_random)

    def fault(self, request: StubRequest) -> str | None:
        """Return what goes wrong with a request, or None. Call it once per request."""
        if self._user is not None:
            named = self._user(request)
            return None if named is None else _fault_name(named)
        if self._script:
            return self._script[request.number] if request.number < len(self._script) else None
        for text, fault in self._texts:
            if text in request.text:
                return fault
        if self._shares:
            drawn = self._fault_random.random()
            for share, fault in self._shares:
                if drawn < share:
                    return fault
                drawn -= share
        return None

    def _read_mapping(self, faults: Mapping[str, float | str]) -> None:
        for fault, when in faults.items():
            if isinstance(when, str):
                if not when:
                    raise ValueError(f"faults[{fault!r}]: an empty text is in every request; give a share of 1.0")
                self._texts.append((when, _fault_name(fault)))
            elif 0 <= when <= 1:
                self._shares.append((float(when), _fault_name(fault)))
            else:
                raise ValueError(f"faults[{fault!r}]={when!r}: a share is between 0 and 1")
        total = sum(share for share, _ in self._shares)
        if total > 1 + 1e-9:
            raise ValueError(f"the shares of faults add up to {total:g}; they can't exceed 1")


def read_latency(spec: LatencySpec) -> Draw:
    """Return the function that draws a latency in seconds.

    Args:
        spec: Seconds, or one of ``("constant", s)``, ``("uniform", low, high)``, ``("exponential", mean)``,
            ``("lognormal", median, sigma)``; as text ``"lognormal:0.2,0.5"``.

    Raises:
        ValueError: The kind is unknown, or a number is negative, missing, or not finite.
    """
    kind, numbers = _parse_latency(spec)
    if kind not in _PARAMETERS or len(numbers) != _PARAMETERS[kind]:
        known = ", ".join(f"{name} ({count})" for name, count in _PARAMETERS.items())
        raise ValueError(f"latency={spec!r}: expected seconds, or a kind with its numbers: {known}")
    if any(not math.isfinite(number) or number < 0 for number in numbers):
        raise ValueError(f"latency={spec!r}: seconds are finite and not negative")
    first, second = numbers[0], numbers[-1]
    if kind == "constant" or (first == 0 and kind != "uniform"):
        return lambda _: first
    if kind == "uniform":
        return lambda source: source.uniform(first, second)
    if kind == "exponential":
        return lambda source: source.expovariate(1 / first)
    return lambda source: source.lognormvariate(math.log(first), second)


def _parse_latency(spec: LatencySpec) -> tuple[str, list[float]]:
    parts: Sequence[float | int | str]
    if isinstance(spec, str):
        kind, _, numbers = spec.rpartition(":")
        parts = [kind or "constant", *numbers.split(",")]
    elif isinstance(spec, (int, float)):
        parts = ["constant", spec]
    else:
        parts = spec
    try:
        return str(parts[0]), [float(number) for number in parts[1:]]
    except (ValueError, TypeError, IndexError):
        return "", []


def _fault_name(fault: str) -> str:
    if fault in FAULTS or (fault.isascii() and fault.isdecimal() and 400 <= int(fault) <= 599):
        return fault
    raise ValueError(f"unknown fault {fault!r}: expected a status from '400' to '599' or one of {', '.join(FAULTS)}")

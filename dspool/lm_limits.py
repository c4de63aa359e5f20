"""LMLimit: what a pool's workers may ask of one model together, and the option that has one for each model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dspool.errors import OptionsError
from dspool.option_values import MAX_SECONDS, Range, check_range, did_you_mean

LIMIT_RANGES: dict[str, Range] = {
    "requests_per_minute": Range(0.001, MAX_SECONDS, none=True),
    "tokens_per_minute": Range(0.001, MAX_SECONDS, none=True),
    "burst_s": Range(0, 60),
}
MAX_LIMITED_MODELS = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class LMLimit:
    """What a pool may ask of one model with one key, all its workers together.

    Args:
        requests_per_minute: requests that are sent, retries too; answers from a cache are none. None: any number.
        tokens_per_minute: tokens of prompts and answers together. A request's are known when it is answered: until then
            the average of those before it counts, and what it used beyond that, later requests wait for. None: any
            number.
        burst_s: seconds' worth of both that may be used at once after a pause, at least one request. In any minute that
            is at most so much more than the limit: 10 % with 6 s.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    burst_s: float = 6.0

    def __post_init__(self) -> None:
        for name, legal in LIMIT_RANGES.items():
            check_range(f"LMLimit.{name}", getattr(self, name), legal)
        if self.requests_per_minute is None and self.tokens_per_minute is None:
            raise OptionsError("LMLimit must have requests_per_minute, tokens_per_minute or both; it limits nothing")


def limits_by_model(value: object) -> dict[str, LMLimit]:
    """`lm_limits` with an LMLimit for each model."""
    if not isinstance(value, Mapping):
        raise OptionsError(f"lm_limits must be a mapping of models to LMLimits; it is a {type(value).__name__}")
    if len(value) > MAX_LIMITED_MODELS:
        raise OptionsError(f"lm_limits may name {MAX_LIMITED_MODELS} models, not {len(value)}; '*' is any other one")
    found = {}
    for model, limit in value.items():
        if not isinstance(model, str) or not model:
            raise OptionsError(f"lm_limits must name models as their LMs do, or '*' for any; one name is {model!r:.80}")
        if "*" in model and model != "*":  # else nothing would be limited, and nobody notice
            raise OptionsError(f"lm_limits knows no patterns but '*', each model that isn't named; not {model!r:.80}")
        if isinstance(limit, Mapping):
            for name in limit:
                if name not in LIMIT_RANGES:
                    hint = did_you_mean(str(name), LIMIT_RANGES)
                    known = ", ".join(LIMIT_RANGES)
                    raise OptionsError(f"lm_limits[{model!r}] has no {name!r:.80}{hint} There are {known}")
            try:
                limit = LMLimit(**limit)
            except OptionsError as error:
                raise OptionsError(str(error).replace("LMLimit", f"lm_limits[{model!r}]", 1)) from None
        if not isinstance(limit, LMLimit):
            raise OptionsError(
                f"lm_limits[{model!r}] must be an LMLimit or a dict of its arguments; it is {limit!r:.80}"
            )
        found[model] = limit
    return found

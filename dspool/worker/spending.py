"""What a call asks of LMs: its tokens, as DSPy counts them, and their price where DSPy knows it.

Rules:
    1. What DSPy reports of a call stays what it would be without us: `usage_data` is DSPy's own. What is known beside,
       prices and the tokens of dspy.Parallel's threads, of which DSPy keeps nothing, is for the pool's statistics.
    2. A call that fails has spent what it spent: an exception carries it from the call's context to the response.
    3. Answers from a cache cost nothing, and are not counted.

Imported with runtime.py, by which DSPy is loaded.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import dspy
from dspy.utils.usage_tracker import UsageTracker

from dspool.protocol.messages import MAX_MODEL_CHARS, MAX_TOKENS, ModelUse
from dspool.worker.programs import SPENT

COSTS = "dspool_costs"
"""Where answers' prices are put, among DSPy's settings: a tracker that a program sets up itself knows none."""
WAITS = "dspool_waits"
"""Where it is put that a request was held back, in the same way."""
MAX_MODELS = 32
"""Of one call that are told apart; the other ones together are OTHERS. An error that is cut to fit must have room."""
OTHERS = "other models"
_CACHED = ("cached_tokens", "cache_read_input_tokens", "cache_read_tokens")


class CallTracker(UsageTracker):  # type: ignore[misc,unused-ignore]
    """DSPy's tracker of one call, that also knows what the copies of it counted and what it cost."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: list[tuple[str, float]] = []
        """Model and US dollars of each answer with a price. Any thread may append to it."""
        self.waits: list[tuple[str, float]] = []
        """Model and seconds of each request that was held back. Any thread may append to it."""
        self._copies: list[CallTracker] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> CallTracker:
        """For a thread of dspy.Parallel, each of whose items gets a copy: one that begins with nothing."""
        copied = CallTracker()
        copied.costs, copied.waits = self.costs, self.waits
        self._copies.append(copied)
        return copied

    def spent(self) -> list[ModelUse] | None:
        """What the call used so far, by model; None where it used nothing and waited for nothing."""
        uses: dict[str, ModelUse] = {}
        for model, entry in self._entries():
            _add(_use_of(uses, model), entry)
        for model, waited_s in list(self.waits):
            held_back = _use_of(uses, model)
            held_back.throttled += 1
            held_back.throttled_s += waited_s
        for model, cost in list(self.costs):
            use = uses.get(str(model)[:MAX_MODEL_CHARS]) or uses.get(OTHERS)
            if use is not None and use.priced < use.requests:
                use.priced += 1
                use.cost_usd += cost
        return list(uses.values()) or None

    def _entries(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for model, entries in list(self.usage_data.items()):
            for entry in list(entries):
                yield model, entry
        for copied in list(self._copies):
            yield from copied._entries()


def _use_of(uses: dict[str, ModelUse], model: object) -> ModelUse:
    name = str(model)[:MAX_MODEL_CHARS]
    if name not in uses and len(uses) >= MAX_MODELS:
        name = OTHERS
    return uses.setdefault(name, ModelUse(name))


def note_wait(model: str, waited_s: float) -> None:
    """A request to an LM was held back by a limit: remember how long.

    Args:
        model: the LM's.
        waited_s: in seconds; 0 where it was not sent.
    """
    waits = dspy.settings.get(WAITS)
    if waits is not None:
        waits.append((model, waited_s))


def note_cost(model: str, result: Any) -> None:
    """An LM answered: remember what that cost, where it is known.

    Args:
        model: the LM's.
        result: DSPy's record of the answer.
    """
    costs = dspy.settings.get(COSTS)
    cost = result.cost
    if costs is None or result.cache_hit or not isinstance(cost, int | float):
        return
    if math.isfinite(cost) and cost >= 0:
        costs.append((model, float(cost)))


def attach(error: BaseException, tracker: CallTracker) -> None:
    """Let an exception that leaves a call say what was spent. One that takes no attribute says nothing."""
    with contextlib.suppress(Exception):
        spent = tracker.spent()
        if spent is not None:
            setattr(error, SPENT, spent)


def tokens_in(usage: Mapping[str, Any]) -> int:
    """The tokens of one answer, by what the provider says of it; 0 where it says nothing."""
    use = ModelUse("")
    _add(use, usage)
    return use.total_tokens


def _add(use: ModelUse, entry: Mapping[str, Any]) -> None:
    """Add one answer's tokens. Providers leave out what they like, and name the same in several ways."""
    prompt = _count(entry, "prompt_tokens", "input_tokens")
    completion = _count(entry, "completion_tokens", "output_tokens")
    details = entry.get("prompt_tokens_details") or entry.get("input_tokens_details")
    cached = _count(details, *_CACHED) if isinstance(details, Mapping) else 0
    use.requests += 1
    use.prompt_tokens = min(MAX_TOKENS, use.prompt_tokens + prompt)
    use.completion_tokens = min(MAX_TOKENS, use.completion_tokens + completion)
    total = _count(entry, "total_tokens") or prompt + completion
    use.total_tokens = min(MAX_TOKENS, use.total_tokens + total)
    use.cached_tokens = min(MAX_TOKENS, use.cached_tokens + (cached or _count(entry, *_CACHED)))


def _count(entry: Mapping[str, Any], *names: str) -> int:
    """The first of these that is a count."""
    for name in names:
        value = entry.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_TOKENS:
            return int(value)
    return 0

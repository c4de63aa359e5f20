"""The LM of a worker: dspy.LM within its call's deadline and its pool's limits.

Rules:
    1. No request, retries and the pauses before them included, is begun that can't end before the call's deadline.
    2. Whatever is really sent passes the limits first, each retry too. What a cache answers passes nothing.
    3. Where a call can be cancelled, a pause ends with it.
    4. A request of which pieces were streamed is not begun again.

Imports dspy; the runtime makes these LMs, and puts what they need into each call's context.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, TypeVar

import dspy
from dspy.clients.base_lm import LM_CLASS_STATE_KEY
from dspy.clients.execution import IGNORED_CACHE_KEYS, aexecute, execute, finalize, prepare
from dspy.utils.callback import with_callbacks

from dspool.worker.deadlines import LONGEST_ASKED_S, SHORTEST_S, pause_asked, request_timeout, retry_pause
from dspool.worker.limits import Gate, Limits, TurnTooLate
from dspool.worker.running import Cancellation
from dspool.worker.spending import note_cost, note_wait, tokens_in

DEADLINE = "dspool_deadline"
"""The call's absolute deadline among DSPy's settings, so that it goes wherever dspy.context goes: asyncio tasks,
asyncify, dspy.Parallel's threads."""
CANCELLATION = "dspool_cancellation"
"""The call's Cancellation, in the same way: a program on a thread ends before its next request to an LM."""
LIMITS = "dspool_limits"
"""The worker's Limits, in the same way."""
THROTTLED = "throttled"
"""The code of a rate limit error that is the pool's own: no provider was asked."""

F = TypeVar("F", bound=Callable[..., Any])
_observed: Callable[[F], F] = with_callbacks

if TYPE_CHECKING:

    class _LM:
        """What is used here of dspy.LM, which is not typed."""

        model: str
        num_retries: int
        engine: Any
        kwargs: dict[str, Any]

        def __init__(self, model: str, **settings: Any) -> None: ...
        def copy(self, **settings: Any) -> Any: ...
        def dump_state(self) -> dict[str, Any]: ...

else:
    _LM = dspy.LM


class DeadlineLM(_LM):
    """A dspy.LM that gives up in time: its timeout and retries come from what is left of the call's deadline.

    DSPy's own defaults, 600 s a read and three retries, outlive any call, and then the worker is killed for it. The
    steps are those of dspy.BaseLM.__call__; only the middle one is done here, on a copy that shares the LM's
    connections. The request is prepared before, so DSPy's response cache never sees the timeout, which is in its key.
    """

    @_observed
    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """As dspy.LM, within the call's deadline."""
        cancellation: Cancellation | None = dspy.settings.get(CANCELLATION)
        wait = time.sleep if cancellation is None else cancellation.pause
        if cancellation is not None:
            cancellation.check()
        call, deadline = prepare(self, prompt, messages, kwargs), _deadline()
        attempt, pieces = 0, _Pieces()
        while True:
            gate = self._gate(call)
            if gate is not None and not _is_cached(self, call, False):
                with contextlib.closing(self._pauses(gate, deadline)) as pauses:
                    for pause in pauses:
                        wait(pause)
            try:
                with pieces.noted():
                    result = execute(self._within(call, deadline), call)
                return self._finished(call, result, gate)
            except dspy.LMError as error:
                pause_s = self._pause_after(error, call, gate, attempt, deadline)
                if pause_s is None or pieces.sent:
                    raise
            wait(pause_s)
            attempt += 1

    @_observed
    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """As dspy.LM, within the call's deadline."""
        call = await asyncio.to_thread(prepare, self, prompt, messages, kwargs, asynchronous=True)
        attempt, deadline, pieces = 0, _deadline(), _Pieces()
        while True:
            gate = self._gate(call)
            if gate is not None and not await asyncio.to_thread(_is_cached, self, call, True):
                with contextlib.closing(self._pauses(gate, deadline)) as pauses:
                    for pause in pauses:
                        await asyncio.sleep(pause)
            try:
                with pieces.noted():
                    result = await aexecute(self._within(call, deadline), call)
                return self._finished(call, result, gate)
            except dspy.LMError as error:
                pause_s = self._pause_after(error, call, gate, attempt, deadline)
                if pause_s is None or pieces.sent:
                    raise
            await asyncio.sleep(pause_s)
            attempt += 1

    def _finished(self, call: Any, result: Any, gate: Gate | None) -> Any:
        note_cost(self.model, result)
        if gate is not None:
            gate.used(0 if result.cache_hit else tokens_in(result.usage or {}))
        return finalize(self, call, result)

    def _gate(self, call: Any) -> Gate | None:
        """What this request has to pass, if anything."""
        limits: Limits | None = dspy.settings.get(LIMITS)
        return None if limits is None else limits.gate(self.model, {**self.kwargs, **call.legacy}, call.n)

    def _pauses(self, gate: Gate, deadline: float) -> Generator[float, None, None]:
        """The pauses until the request may be sent; what it waited is remembered, also where that was in vain."""
        began = time.monotonic()
        try:
            yield from gate.pauses(deadline)
        except TurnTooLate as late:
            text, wait_s = str(late), late.wait_s
            raise dspy.LMRateLimitError(text, code=THROTTLED, model=self.model, retry_after=wait_s) from None
        finally:
            if gate.held_back:
                note_wait(self.model, time.monotonic() - began)

    def _within(self, call: Any, deadline: float) -> DeadlineLM:
        """A copy for one attempt, with what is left as its timeout where it has none of its own that is shorter."""
        left = deadline - time.monotonic()
        if left < SHORTEST_S:
            raise dspy.LMTimeoutError("the call's deadline has come; the request was not sent", model=self.model)
        settings: dict[str, Any] = {"num_retries": 0}
        own = call.legacy.get("timeout")
        longer = own is None or (isinstance(own, int | float) and own > left)
        if isinstance(self.engine, str) and left < math.inf and longer:
            settings["timeout"] = request_timeout(left)
            if own is not None:
                call.legacy["timeout"] = settings["timeout"]
        copied: DeadlineLM = self.copy(**settings)
        return copied

    def _pause_after(
        self, error: dspy.LMError, call: Any, gate: Gate | None, attempt: int, deadline: float
    ) -> float | None:
        """How long to wait before the next attempt; None if there is none: not worth it, used up, or too late.

        Where the provider asks for a pause, the whole pool keeps it. One that asks for more than LONGEST_ASKED_S has
        refused, and a call without a deadline must not hold its slot for so long.
        """
        if gate is not None:
            gate.used(0)
        asked, limits = pause_asked(error), dspy.settings.get(LIMITS)
        if limits is not None and asked and isinstance(error, dspy.LMRateLimitError):
            limits.hold(self.model, {**self.kwargs, **call.legacy}, asked)
        if attempt >= self.num_retries or not dspy.is_retryable_lm_error(error):
            return None
        pause = retry_pause(attempt, asked)
        return pause if pause <= LONGEST_ASKED_S and time.monotonic() + pause + SHORTEST_S < deadline else None

    def dump_state(self) -> dict[str, Any]:
        """As dspy.LM, which can be loaded anywhere."""
        state = super().dump_state()
        state[LM_CLASS_STATE_KEY] = "dspy.clients.lm.LM"
        return state


class _Pieces:
    """Stands before the stream that a request's pieces go to, and knows whether there were any."""

    def __init__(self) -> None:
        self._stream = dspy.settings.send_stream
        self.sent = False

    def noted(self) -> contextlib.AbstractContextManager[None]:
        """In this context it is the stream, if there is one."""
        if self._stream is None:
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[None] = dspy.context(send_stream=self)
        return context

    async def send(self, piece: Any) -> None:
        """Send a piece on."""
        self.sent = True
        await self._stream.send(piece)


def _deadline() -> float:
    """The call's, absolute; infinity where it has none."""
    deadline = dspy.settings.get(DEADLINE)
    return math.inf if deadline is None else float(deadline)


def _is_cached(lm: DeadlineLM, call: Any, asynchronous: bool) -> bool:
    """Whether a cache has the answer. Looked up once more when it is asked for: others may have it by then."""
    return bool(call.cache) and dspy.cache.get(call.key(lm, asynchronous), IGNORED_CACHE_KEYS) is not None

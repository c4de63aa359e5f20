"""What the workers of a pool may ask of a model together: limits of the options, and pauses that providers ask for.

    gate = limits.gate("openai/gpt-4o-mini", settings)
    if gate is not None:
        for pause_s in gate.pauses(deadline): ...sleep
        ...send the request
        gate.used(tokens)

Rules:
    1. A model is limited for each key and address by itself: so providers count, and one tenant's 429 stops no other.
    2. Nothing is held while somebody waits. A turn is taken before; who gives up, closing pauses(), gives it back.
    3. Where there is neither limit nor pause, a request costs one look at the file.

Imports no dspy. Keys leave it as a digest alone.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from hashlib import blake2b
from typing import Any

from dspool.protocol.lm_keys import variables_of
from dspool.protocol.messages import LimitsSpec
from dspool.worker.deadlines import SHORTEST_S
from dspool.worker.limit_records import DIGEST_BYTES, Busy, LimitRecords
from dspool.worker.pacing import UNLIMITED, Limit, State, Turn, ahead, given_back, held, limit_of, turn, used

ANY = "*"
BUSY_S = 0.001
"""The pause before the file's lock is tried again."""
BUSY_TRIES = 50
"""How often it is tried for what is only noted; a note that can't be made is left out."""
SPREAD_S = 1.0
"""The requests that a provider's pause held back are sent within so long after it, where no limit spaces them."""
_chance = random.SystemRandom()
"""Not the one that programs may have seeded, nor one that forked workers have in common."""


class TurnTooLate(Exception):
    """The request's turn comes after the call's deadline; none was taken.

    Args:
        message: what holds it back, and what to do.
        wait_s: how long it would have had to wait.
    """

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Limits:
    """The limits of a pool, in one worker.

    Args:
        spec: what the handshake says of them.

    Raises:
        OSError: what the workers share can't be opened.
    """

    def __init__(self, spec: LimitsSpec) -> None:
        self._file = LimitRecords(spec.path)
        self._limits = {model: limit_of(each) for model, each in spec.models.items()}
        self._any = self._limits.get(ANY, UNLIMITED)

    def gate(self, model: str, settings: Mapping[str, Any], requests: int = 1) -> Gate | None:
        """What a request has to pass; None: nothing.

        Args:
            model: the LM's.
            settings: its arguments, of which key and address count.
            requests: how many it may be sent as.
        """
        limit, digest = self._limits.get(model, self._any), _digest(model, settings)
        if limit is UNLIMITED and self._file.peek(digest).not_before <= time.monotonic():
            return None
        return Gate(self._file, digest, limit, requests)

    def hold(self, model: str, settings: Mapping[str, Any], pause_s: float) -> None:
        """A provider refused a request and asked for a pause: nobody sends it another one before."""
        limit, digest = self._limits.get(model, self._any), _digest(model, settings)
        now = time.monotonic()
        _note(self._file, digest, lambda state: held(state, limit, now, pause_s))


class Gate:
    """What one request has to pass.

    Args:
        file: what the workers share.
        digest: whose record.
        limit: the model's.
        requests: how many it may be sent as.
    """

    def __init__(self, file: LimitRecords, digest: bytes, limit: Limit, requests: int) -> None:
        self._file, self._digest, self._limit, self._requests = file, digest, limit, requests
        self._expected: float | None = None
        self.held_back = False
        """Whether the request had to wait, or was refused."""

    def pauses(self, deadline: float) -> Iterator[float]:
        """Seconds to wait, again and again; at the end the request may be sent. Closed before, it gives its turn back.

        Args:
            deadline: the call's, absolute; infinity for none.

        Raises:
            TurnTooLate: its turn comes after the deadline.
        """
        if self._limit is UNLIMITED:
            yield from self._held_pauses(deadline)
            return
        while True:
            now = time.monotonic()
            try:
                taken = self._file.change(self._digest, partial(self._take, now, deadline))
            except Busy:
                if now + BUSY_S > deadline:
                    raise TurnTooLate("another worker keeps what the pool's workers share; try again", BUSY_S) from None
                yield BUSY_S
                continue
            if taken.at > now:
                self.held_back = True
                try:
                    yield taken.at - now
                except GeneratorExit:  # whoever waited has given up
                    self._give_back(taken)
                    raise
                if self._file.peek(self._digest).not_before > max(taken.at, time.monotonic()):
                    self._give_back(taken)
                    continue  # the provider has asked for a pause meanwhile, behind which there is another turn
            self._expected = taken.tokens
            return

    def _give_back(self, unused: Turn) -> None:
        now = time.monotonic()
        _note(self._file, self._digest, lambda state: given_back(state, self._limit, now, unused))

    def used(self, tokens: int) -> None:
        """The request was answered, and has used so many tokens; 0: it failed."""
        if self._expected is not None and self._limit.s_per_token:
            now, expected, of = time.monotonic(), self._expected, self._requests
            _note(self._file, self._digest, lambda state: used(state, self._limit, now, expected, tokens, of))

    def _held_pauses(self, deadline: float) -> Iterator[float]:
        """Only a pause of the provider's stands in the way."""
        while (until := self._file.peek(self._digest).not_before) > (now := time.monotonic()):
            self._check(Turn(until, "hold"), now, deadline)
            self.held_back = True
            left_s = until - now
            yield min(left_s + _chance.uniform(0, min(SPREAD_S, left_s)), deadline - SHORTEST_S - now)

    def _take(self, now: float, deadline: float, state: State) -> tuple[Turn, State]:
        taken, after = turn(state, self._limit, now, self._requests)
        self._check(taken, now, deadline)
        return taken, after

    def _check(self, taken: Turn, now: float, deadline: float) -> None:
        if not taken.reason or taken.at + SHORTEST_S <= deadline:
            return
        self.held_back = True
        wait_s = taken.at - now
        left = f"the call's deadline comes in {max(0.0, deadline - now):.1f} s. The request was not sent"
        if taken.reason == "hold":
            why = f"the provider asked this pool for a pause, which ends in {wait_s:.1f} s"
            raise TurnTooLate(f"{why}; {left}. Try again after it, or allow a longer timeout_s", wait_s)
        if taken.reason == "requests":
            per_minute, what = 60 / self._limit.s_per_request, "requests_per_minute"
            others = ahead(self._limit, taken, now)
            why = f"the next turn is in {wait_s:.1f} s{f', behind {others} that wait already' if others else ''}"
        else:
            per_minute, what = 60 / self._limit.s_per_token, "tokens_per_minute"
            why = f"what others used is paid off in {wait_s:.1f} s"
        advice = "Try again then, allow a longer timeout_s, send fewer calls at a time, or raise the limit"
        raise TurnTooLate(f"lm_limits allow {what}={per_minute:g}: {why}; {left}. {advice}", wait_s)


def _note(file: LimitRecords, digest: bytes, step: Callable[[State], State]) -> None:
    """Change a record; shortly tried, and left out where another process keeps the lock: it was stopped just there."""
    for _ in range(BUSY_TRIES):
        try:
            file.change(digest, lambda state: (None, step(state)))
            return
        except Busy:
            time.sleep(BUSY_S)


def _digest(model: str, settings: Mapping[str, Any]) -> bytes:
    """Whose record it is: a model's, with a key, at an address. A key that is no text is as none."""
    key = settings.get("api_key")
    keys = [key] if isinstance(key, str) else [os.environ.get(name, "") for name in variables_of(model)]
    address = settings.get("api_base") or settings.get("base_url") or ""
    text = "\0".join([model, str(address), *keys])
    return blake2b(text.encode(errors="backslashreplace"), digest_size=DIGEST_BYTES).digest()

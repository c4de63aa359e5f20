"""The callers' books: which calls were made, what each came to, and what that is worth beside the callee's ledger."""

from __future__ import annotations

import random
import threading
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspool
from tests.chaos.storm import ledger

_LARGE_SHARE = 0.15
_LARGEST = 1_500_000
"""Bytes: several times what a socket takes at once, so that kills come in the middle of a frame."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call.

    Attributes:
        inputs: of `ledger.perform`.
        idempotent: whether it may be sent again.
    """

    call_id: int
    inputs: dict[str, Any]
    idempotent: bool

    def answered_by(self, answer: Any) -> bool:
        """Whether this is its own answer."""
        return bool(
            answer
            == {
                "call_id": self.call_id,
                "checksum": zlib.crc32(self.inputs["sent"]),
                "filler": ledger.filler(self.call_id, self.inputs["wanted"]),
            }
        )


class Books:
    """Every call and its outcome.

    Args:
        seed: what the calls are drawn from.
        folder: where the callee's ledger is.

    Attributes:
        outcomes: call_id -> what it came to, once for each time that it came to anything.
    """

    def __init__(self, seed: int, folder: Path) -> None:
        self.made: dict[int, Call] = {}
        self.outcomes: dict[int, list[str]] = {}
        self.folder = folder
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)

    def next_call(self) -> Call:
        """Another call: half of them idempotent, some with large inputs, some with large answers."""
        with self._lock:
            draw = self._random
            call_id = len(self.made) + 1
            sent, wanted = (self._size(draw) for _ in range(2))
            inputs = {
                "folder": str(self.folder),
                "call_id": call_id,
                "sent": ledger.filler(call_id, sent),
                "wanted": wanted,
                "pause_s": draw.uniform(0, 0.004),
            }
            self.made[call_id] = Call(call_id, inputs, idempotent=draw.random() < 0.5)
            return self.made[call_id]

    def answered(self, call: Call, answer: Any) -> None:
        """The call gave back a value."""
        self._record(call, "answer" if call.answered_by(answer) else "wrong answer")

    def raised(self, call: Call, error: Exception) -> None:
        """The call raised."""
        name = type(error).__name__
        self._record(call, name if isinstance(error, dspool.DspoolError) else f"untyped {name}: {error}")

    def resolved(self) -> int:
        """How many calls have come to something."""
        return len(self.outcomes)

    def await_calls(self, count: int, within_s: float) -> None:
        """Wait until so many calls were resolved, or so long."""
        with self._news:
            self._news.wait_for(lambda: len(self.outcomes) >= count, within_s)

    def audit(self) -> Audit:
        """Hold the books against the ledger. When nothing runs any more."""
        begun, ended = ledger.read(self.folder)
        return Audit(self.made, self.outcomes, begun, ended)

    def _record(self, call: Call, outcome: str) -> None:
        with self._news:
            self.outcomes.setdefault(call.call_id, []).append(outcome)
            call.inputs["sent"] = b""  # large, and not needed any more
            self._news.notify_all()

    @staticmethod
    def _size(draw: random.Random) -> int:
        return draw.randrange(_LARGEST) if draw.random() < _LARGE_SHARE else draw.randrange(200)


class Audit:
    """What the calls came to.

    Args:
        made: the calls.
        outcomes: call_id -> what they came to.
        begun: call_id -> how often it was begun, by the ledger.
        ended: call_id -> how often it came to its end.
    """

    def __init__(
        self, made: dict[int, Call], outcomes: dict[int, list[str]], begun: Counter[int], ended: Counter[int]
    ) -> None:
        self.made, self.outcomes, self.begun, self.ended = made, outcomes, begun, ended
        self._ends = {call_id: what[0] for call_id, what in outcomes.items()}

    def done(self) -> dict[str, int]:
        """What was called, and what it came to."""
        ends = Counter(self._ends.values())
        lost = [call_id for call_id, end in self._ends.items() if end == "WorkerLost"]
        return {
            "calls": len(self.made),
            "answered": ends.pop("answer", 0),
            **{f"ended_with_{name}": count for name, count in sorted(ends.items())},
            # Where the kill found the calls that were lost, by the ledger.
            "lost_before_they_ran": sum(self.begun[call_id] == 0 for call_id in lost),
            "lost_while_they_ran": sum(self.begun[call_id] > self.ended[call_id] for call_id in lost),
            "lost_with_their_answer": sum(0 < self.begun[call_id] == self.ended[call_id] for call_id in lost),
            "executed_again": sum(count > 1 and self.made[call_id].idempotent for call_id, count in self.begun.items()),
        }

    def lost(self, *, excused: frozenset[str]) -> dict[str, int]:
        """What must not be.

        Args:
            excused: errors that an idempotent call may end with.
        """
        ends, once = self._ends, [call for call in self.made.values() if not call.idempotent]
        refusals = {error.__name__ for error in _all_of(dspool.PoolError)}
        fine = excused | {"answer"}
        return {
            "calls_never_resolved": len(self.made) - len(self.outcomes),
            "calls_resolved_twice": sum(len(what) > 1 for what in self.outcomes.values()),
            "wrong_answers": sum(end == "wrong answer" for end in ends.values()),
            "untyped_errors": sum(end.startswith("untyped") for end in ends.values()),
            "executed_twice": sum(self.begun[call.call_id] > 1 for call in once),
            "answered_yet_not_executed": sum(
                end == "answer" and not self.ended[call_id] for call_id, end in ends.items()
            ),
            "refused_yet_executed": sum(
                ends.get(call.call_id) in refusals and self.begun[call.call_id] > 0 for call in once
            ),
            "idempotent_calls_lost": sum(
                end not in fine and self.made[call_id].idempotent for call_id, end in ends.items()
            ),
        }


def _all_of(error: type[Exception]) -> set[type[Exception]]:
    return {error}.union(*(_all_of(each) for each in error.__subclasses__()))

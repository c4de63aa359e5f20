"""Restart policy: what to do about workers that can't start, and about programs that kill theirs.

Two different things, never mixed:
    Breaker      boot failures, per worker group: back-off, a budget in a sliding window, then no starts for a while.
    Quarantine   deaths in calls, per program: after some distinct calls in a row the program is refused for a while.

What counts as a boot failure is decided where exits are judged (`Fleet._judge_exit`): the end of a worker that was
never proved good by an answer, a pong, or a life as long as the window in which failures are counted. For what the
breaker has to stop is a loop of starts, and a worker that lived that long is part of none, whatever ended it. The first
ping of a worker that ran no call comes FIRST_PING_S after it became ready, so a second of life is enough.

Workers that were ready and end together count once: one blow from outside (an out-of-memory sweep, somebody's kill of
all of them) says no more of the next start than one death does. A loop of starts goes on and on, so it is stopped all
the same, TOGETHER_S later for each failure that it may have. Those that end before they are ready count each.

Source: gunicorn and uvicorn restart for ever; Erlang's supervisors have max_restarts; the half-open state is Nygard's
circuit breaker.
"""

from __future__ import annotations

from collections import deque
from typing import Literal

import msgspec

from dspool.types import ExitReport

FIRST_PING_S = 1.0
"""How long an idle worker is ready before its first pong proves it good."""
TOGETHER_S = 0.1
"""Workers that were ready and end within this time of a failure that was counted are part of it."""
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 30.0
REPORTS_KEPT = 5
ENDS_KEPT = 5
_END_CHARS = 200
MAX_TRACKED_PROGRAMS = 10_000

BreakerState = Literal["closed", "open", "half_open"]


class Breaker(msgspec.Struct):
    """Counts a group's boot failures and stops its starts when there are too many.

    Attributes:
        trial: in half_open, the one worker that is tried.
    """

    max_restarts: int
    window_s: float
    state: BreakerState = "closed"
    failures: deque[float] = msgspec.field(default_factory=deque)
    reports: deque[ExitReport] = msgspec.field(default_factory=lambda: deque(maxlen=REPORTS_KEPT))
    consecutive: int = 0
    not_before: float = 0.0
    """No start before this time."""
    trial: int | None = None

    @property
    def cooldown_s(self) -> float:
        """How long it stays open before one worker is tried."""
        return min(BACKOFF_MAX_S, self.window_s)

    def failed(self, worker_id: int, report: ExitReport, now: float, jitter: float, *, was_ready: bool = False) -> bool:
        """A start failed. Returns whether that opened the breaker.

        Args:
            worker_id: whose.
            report: what is known of it.
            now: monotonic seconds.
            jitter: 0 to 1; the pause is 50 to 100 % of the nominal one.
            was_ready: it died before its first good answer, but was ready: it is replaced at once, and counts unless
                it is part of a blow that was counted.
        """
        self.reports.append(report)
        if not (was_ready and self.failures and now - self.failures[-1] < TOGETHER_S):
            self.failures.append(now)
        while self.failures and self.failures[0] <= now - self.window_s:
            self.failures.popleft()
        while len(self.failures) > self.max_restarts + 1:
            self.failures.popleft()
        if not was_ready:
            self.consecutive += 1
            pause_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(self.consecutive - 1, 30))
            self.not_before = now + pause_s * (0.5 + jitter / 2)
        tried = self.state == "half_open" and self.trial == worker_id
        if tried or (self.state == "closed" and len(self.failures) > self.max_restarts):
            self.state = "open"
            self.trial = None
            return True
        return False

    def became_ready(self) -> None:
        """A worker became ready: the back-off starts over. An open breaker waits for its good answer."""
        self.consecutive = 0
        self.not_before = 0.0

    def half_open(self) -> None:
        """The cool-down is over: one worker may be tried, at once."""
        self.state = "half_open"
        self.trial = None
        self.not_before = 0.0

    def close(self) -> bool:
        """A worker proved good, or somebody asked. Returns whether it was not closed before."""
        was_closed = self.state == "closed"
        self.state = "closed"
        self.trial = None
        self.failures.clear()
        self.consecutive = 0
        self.not_before = 0.0
        return not was_closed


class _Record(msgspec.Struct):
    deaths: list[frozenset[int]] = []
    """Of each death in a row that counts, the call_ids that were in the worker. No call is in two of them."""
    ends: deque[str] = msgspec.field(default_factory=lambda: deque(maxlen=ENDS_KEPT))
    """How the last of those workers ended."""
    until: float = 0.0
    """When its one trial may begin."""
    held: bool = False
    """It is in quarantine."""
    trial: int | None = None
    """call_id of the trial that is under way."""

    def died(self, call_ids: frozenset[int], end: str) -> int:
        """A worker ended with these calls. Returns how many deaths count: one more only if all the calls are new."""
        self.ends.append(end)
        if all(call_ids.isdisjoint(earlier) for earlier in self.deaths):
            self.deaths.append(call_ids)
        return len(self.deaths)

    def has(self, call_id: int) -> bool:
        """Whether the call was in one of the workers that ended."""
        return any(call_id in call_ids for call_ids in self.deaths)


class Quarantine(msgspec.Struct):
    """Programs whose calls make workers exit by themselves.

    Attributes:
        after: distinct calls in a row; None: never.
        time_s: how long a program is refused before one trial.
    """

    after: int | None
    time_s: float
    records: dict[str, _Record] = {}
    suspects: dict[str, None] = {}
    """Programs that were in a worker with others when it died; each until its next good call."""

    def refused(self, program: str | None, now: float) -> float | None:
        """Seconds until the program may be tried, or None where it may run now."""
        record = self.records.get(program) if program is not None else None
        if record is None or not record.held:
            return None
        if now < record.until:
            return record.until - now
        return self.time_s if record.trial is not None else None

    def admit(self, program: str | None, call_id: int) -> bool:
        """The program is about to run. Returns whether this is the one trial of a quarantined program."""
        record = self.records.get(program) if program is not None else None
        if record is None or not record.held:
            return False
        record.trial = call_id
        return True

    def withdrawn(self, program: str | None, call_id: int) -> None:
        """A trial ended without saying anything about the program: another call may be the trial."""
        record = self.records.get(program) if program is not None else None
        if record is not None and record.trial == call_id:
            record.trial = None

    def survived(self, program: str, call_id: int) -> bool:
        """A call of it ended with its worker alive. Returns whether that ended a quarantine, as only its trial does."""
        self.suspects.pop(program, None)
        record = self.records.get(program)
        if record is None or (record.held and record.trial != call_id and not record.has(call_id)):
            return False  # a call among the deaths is one whose whole answer was still in the pipe
        del self.records[program]
        return record.held

    def died(self, in_flight: list[tuple[str | None, int]], report: ExitReport, now: float) -> str | None:
        """A worker exited by itself with these (program, call_id) in it. Returns a program newly quarantined.

        Only a program that was alone in it is blamed, with however many calls: whichever of them it was, the program
        did it. They count as one death, since one call is enough for that. Of several programs each becomes a suspect.
        """
        program = in_flight[0][0]
        if any(name != program for name, _ in in_flight):
            self.suspects.update((name, None) for name, _ in in_flight if name is not None)
            while len(self.suspects) > MAX_TRACKED_PROGRAMS:
                del self.suspects[next(iter(self.suspects))]
            return None
        if self.after is None or program is None:
            return None
        record = self.records.setdefault(program, _Record())
        while len(self.records) > MAX_TRACKED_PROGRAMS:
            del self.records[next(iter(self.records))]
        if record.died(frozenset(call_id for _, call_id in in_flight), how_it_ended(report)) < self.after:
            return None
        del record.deaths[: -self.after]
        record.until, record.held, record.trial = now + self.time_s, True, None
        return program

    def ends(self, program: str | None) -> tuple[str, ...]:
        """How the last workers that its calls ended came to their end, oldest first."""
        record = self.records.get(program) if program is not None else None
        return () if record is None else tuple(record.ends)

    def release(self, program: str) -> bool:
        """Let it run. Returns whether it was quarantined."""
        self.suspects.pop(program, None)
        record = self.records.pop(program, None)
        return record is not None and record.held

    def holds(self, program: str) -> bool:
        """Whether it is in quarantine."""
        record = self.records.get(program)
        return record is not None and record.held

    def held(self) -> tuple[str, ...]:
        """The programs in quarantine."""
        return tuple(program for program, record in self.records.items() if record.held)


def how_it_ended(report: ExitReport) -> str:
    """A worker's end in a few words."""
    text = f"worker {report.worker_id}: {report.reason}{', ' + report.detail if report.detail else ''}"
    return text if len(text) <= _END_CHARS else text[: _END_CHARS - 3] + "..."

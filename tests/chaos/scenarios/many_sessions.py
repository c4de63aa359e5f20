"""First calls of a thousand sessions by 64 threads at once: none is split, and workers that die lose what they must.

For each of the three affinities a pool of its own, in three acts:

1. Every thread calls every session once, in one order, so that the first calls of a session come together. All answers
   of a session must come from one worker, and its visits there be numbered without a gap.
2. Half of the idle workers are killed, and the threads call again: a third of the sessions as usual, a third with
   `on_session_lost="error"`, a third through a lease. A session whose worker was killed starts anew in one other
   worker, is told so exactly once, and has generation 1; one whose worker lives goes on there, in generation 0.
3. Workers are killed while the threads call. A session was in at most one worker more than its generation says, and
   its visits in each are numbered without a gap.

`affinity_wait_s` is a minute here, so that no session moves only because its worker is busy.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, get_args

import dspool
from dspool.pool.core.affinity import Session
from dspool.types import Affinity
from tests.chaos.crowd import Crowd
from tests.chaos.finding import Finding, Plan
from tests.chaos.premises import Premises
from tests.chaos.programs import visit
from tests.chaos.watch import Watch

WORKERS = 8
THREADS = 64
PATIENCE_S = 300.0
OPTIONS: dict[str, Any] = {
    "workers": WORKERS,
    "affinity_wait_s": 60,
    "max_restarts": 1_000_000,
    "quarantine_after": None,
}
_FORMS = ("run", "error", "lease")


class _Sessions:
    """The sessions of one pool, and what their callers saw.

    Attributes:
        visits: session -> worker's own name -> the numbers of the session's visits there.
        told: session -> how often it was told that its state was lost.
        ends: what calls came to, by the name of the error, "" for an answer.
    """

    def __init__(self, pool: dspool.Pool, affinity: Affinity, names: list[str]) -> None:
        self.pool, self.affinity, self.names = pool, affinity, names
        self.visits: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        self.told: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.stuck = 0
        self._lock = threading.Lock()

    def call_all(self, forms: tuple[str, ...]) -> None:
        """Every thread calls every session once, in one order."""

        def work(_number: int) -> None:
            for index, name in enumerate(self.names):
                self._call(name, forms[index % len(forms)])

        with Crowd(THREADS, work) as crowd:
            self.stuck += crowd.join(time.monotonic() + PATIENCE_S)

    def _call(self, name: str, form: str) -> None:
        told, seen, end = False, None, ""
        try:
            if form == "lease":
                with self.pool.checkout(session=name, affinity=self.affinity) as lease:
                    told = lease.session_restarted
                    seen = lease.run(visit, {"session": name})
            elif form == "error":
                seen = self.pool.run(
                    visit, {"session": name}, session=name, affinity=self.affinity, on_session_lost="error"
                )
            else:
                seen = self.pool.run(visit, {"session": name}, session=name, affinity=self.affinity)
        except Exception as error:
            end = type(error).__name__
        with self._lock:
            self.ends[end] += 1
            self.told[name] += told or end == "SessionLost"
            if seen is not None:
                self.visits[name][seen[0]].append(seen[1])

    def generations(self) -> dict[str, int]:
        """How often each session lost its state, by the pool."""
        return {name: session.generation for name, session in self._known().items()}

    def homes(self) -> dict[str, int | None]:
        """The worker that each session is pinned to."""
        return {name: session.worker_id for name, session in self._known().items()}

    def _known(self) -> dict[str, Session]:
        table = self.pool._driver.core.sessions.table
        return {name: table[name] for name in self.names}

    def gaps(self) -> int:
        """Sessions whose visits in some worker are not numbered 1, 2, 3, ..."""
        return sum(
            any(sorted(numbers) != list(range(1, len(numbers) + 1)) for numbers in places.values())
            for places in self.visits.values()
        )


def many_sessions(plan: Plan) -> Finding:
    """See the module's docstring."""
    count = plan.pick(short=20, chaos=150, soak=1_000)
    done: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    with Premises() as premises:
        for affinity in get_args(Affinity):
            plan.say(affinity)
            draw = random.Random(f"{plan.seed} {affinity}")
            watch = Watch()
            with dspool.Pool(name=affinity, on_event=watch, **OPTIONS) as pool:
                sessions = _Sessions(pool, affinity, [f"{affinity}-{number}" for number in range(count)])
                _first_calls(sessions, lost)
                _after_deaths(sessions, premises, draw, watch, done, lost)
                _amid_deaths(sessions, premises, draw, watch, done, lost)
                lost["callers_stuck"] += sessions.stuck
                done.update({f"ended_with_{end}": many for end, many in sessions.ends.items() if end})
                done.update({"sessions": count, "calls": sessions.ends.total(), "moved_pins": pool.stats().repins})
        left = premises.left()
    return Finding(
        scenario="many_sessions", seed=plan.seed, done=dict(sorted(done.items())), lost=dict(lost), left=left
    )


def _first_calls(sessions: _Sessions, lost: Counter[str]) -> None:
    """Act 1."""
    sessions.call_all(("run",))
    lost["sessions_split"] += sum(len(sessions.visits[name]) != 1 for name in sessions.names)
    lost["visits_lost_or_doubled"] += sessions.gaps()
    lost["unexpected_errors"] += _unexpected(sessions, allowed=())


def _after_deaths(
    sessions: _Sessions, premises: Premises, draw: random.Random, watch: Watch, done: Counter[str], lost: Counter[str]
) -> None:
    """Act 2."""
    homes, before = sessions.homes(), {name: set(sessions.visits[name]) for name in sessions.names}
    victims = draw.sample(sessions.pool.workers(), WORKERS // 2)
    done["workers_killed"] += sum(
        victim.pid is not None and premises.send(victim.pid, signal.SIGKILL) for victim in victims
    )
    dead = {victim.worker_id for victim in victims}
    _await_strength(sessions.pool, dead, watch)
    sessions.call_all(_FORMS)
    generations = sessions.generations()
    for index, name in enumerate(sessions.names):
        bereft = homes[name] in dead
        after = set(sessions.visits[name])
        told = sessions.told[name] if _FORMS[index % len(_FORMS)] != "run" else bereft
        lost["sessions_not_moved_as_they_should"] += len(after - before[name]) != bereft
        lost["not_told_once"] += told != bereft
        lost["generations_wrong"] += generations[name] != bereft
    lost["visits_lost_or_doubled"] += sessions.gaps()
    lost["unexpected_errors"] += _unexpected(sessions, allowed=("SessionLost",))
    done["sessions_bereft"] += sum(homes[name] in dead for name in sessions.names)


def _amid_deaths(
    sessions: _Sessions, premises: Premises, draw: random.Random, watch: Watch, done: Counter[str], lost: Counter[str]
) -> None:
    """Act 3."""
    killed = set()
    with ThreadPoolExecutor(1) as thread:
        callers = thread.submit(sessions.call_all, _FORMS)
        while wait([callers], draw.uniform(0, 0.2)).not_done:
            victim = draw.choice(sessions.pool.workers())
            if victim.pid is not None and premises.send(victim.pid, signal.SIGKILL):
                killed.add(victim.worker_id)
        callers.result()
    _await_strength(sessions.pool, killed, watch)
    done["workers_killed"] += len(killed)
    generations = sessions.generations()
    lost["more_workers_than_generations"] += sum(
        len(sessions.visits[name]) > generations[name] + 1 for name in sessions.names
    )
    lost["visits_lost_or_doubled"] += sessions.gaps()
    lost["unexpected_errors"] += _unexpected(sessions, allowed=("SessionLost", "WorkerLost"))


def _unexpected(sessions: _Sessions, *, allowed: tuple[str, ...]) -> int:
    """Calls that ended otherwise than they may."""
    fine = {"", *allowed, *(("SessionBusy",) if sessions.affinity == "strict_fail_fast" else ())}
    return sum(count for end, count in sessions.ends.items() if end not in fine)


def _await_strength(pool: dspool.Pool, dead: set[int], watch: Watch) -> None:
    """Wait until the dead are gone and all workers ready."""

    def strong() -> bool:
        ready = [worker.worker_id for worker in pool.workers() if worker.state in ("idle", "busy")]
        return len(ready) == WORKERS and not dead & set(ready)

    if not watch.until(strong, PATIENCE_S):
        raise TimeoutError(f"the pool does not come back to full strength: {pool.stats()}")

"""Managers killed by SIGKILL, whatever they and their workers do at that moment: nothing of them may live on.

Each manager is a process of its own. Some are killed while they open their pool, some while all workers are up (idle,
busy in Python, busy in C with the interpreter's lock held, with descendants that ignore every signal), some while
workers are being started, some after their template. Another manager lives beside them all the time, with a pool of its
own: nobody may touch it.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.chaos.figures import median, quantile
from tests.chaos.finding import Finding, Plan
from tests.chaos.premises import Premises, marked, templates_of
from tests.chaos.witness import PATIENCE_S, Door, door

SURVIVE_S = 10.0
"""What is alive after this counts as left. One whose interpreter has only begun ends as soon as it runs, and on a busy
machine that takes its time; that it took longer than it should is said as a missed goal."""
GONE_P99_MS, GONE_MAX_MS = 200.0, 1000.0
MARK = "DSPOOL_CHAOS_MANAGER"
ROOT = Path(__file__).parents[3]
BUSY = ("sleeps", "spins", "holds_gil_asleep", "holds_gil_busy", "has_descendants", "ignores_signals")
OPENING_S = 0.4
"""Managers that are killed while they open their pool get so much of it at most."""
CHURNING_S = 0.05


class Way(NamedTuple):
    """How a manager comes to its end."""

    start_method: str
    moment: str
    """opening, busy, churning (workers are being started), template_first"""


WAYS = [Way("template", moment) for moment in ("opening", "busy", "churning", "template_first")]
WAYS += [Way("spawn", moment) for moment in ("opening", "busy", "churning")]


class Manager:
    """One manager process, and whatever is started from it: all of that bears a mark in its environment."""

    def __init__(self, start_method: str, entry: Door, programs: list[str], *words: str) -> None:
        self._mark = uuid.uuid4().hex
        self._said = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.managed", start_method, entry.path, ",".join(programs), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, MARK: self._mark},
        )

    def line(self, wanted: str = "") -> str:
        """The next line that it says; the wanted one where one is."""
        assert self.process.stdout is not None
        while b"\n" not in self._said:
            if not select.select([self.process.stdout], [], [], PATIENCE_S)[0]:
                raise TimeoutError(f"the manager doesn't say {wanted!r}")
            if not (data := os.read(self.process.stdout.fileno(), 4096)):
                raise RuntimeError(f"the manager has ended with {self.process.wait()}")
            self._said += data
        line, _, self._said = self._said.partition(b"\n")
        found = line.decode()
        if wanted and found != wanted:
            raise RuntimeError(f"the manager says {found!r} and not {wanted!r}")
        return found

    def workers(self) -> str:
        """Its workers' pids, as it knows them."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        return self.line()

    def all(self) -> list[int]:
        """The pids of everything that was started from it and is no zombie, itself included."""
        return marked(MARK, self._mark)

    def template(self) -> int:
        """The pid of its template."""
        (template,) = templates_of(self.process.pid)
        return template

    def close(self) -> None:
        """Kill what is left."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        for pid in self.all():
            os.kill(pid, signal.SIGKILL)


def orphans(plan: Plan) -> Finding:
    """Start managers and kill them, one after the other, in one way after the other."""
    rng = random.Random(plan.seed)
    count = plan.pick(short=4, chaos=7, soak=200)
    order = rng.sample(WAYS, len(WAYS))
    ways = [order[number % len(WAYS)] for number in range(count)]
    with Premises() as premises:
        toll = _kill_all(ways, rng, plan.say)
        left = {"survivors": toll.survivors, **premises.left()}
    times = [ms for kind in toll.gone_ms.values() for ms in kind]
    measured = {"gone_median_ms": median(times), "gone_p99_ms": quantile(times, 0.99), "gone_max_ms": max(times)}
    measured |= {f"{method}_{moment}_max_ms": max(ms) for (method, moment), ms in toll.gone_ms.items() if ms}
    goals = {"p99": GONE_P99_MS, "max": GONE_MAX_MS}
    missed = tuple(
        f"the last process was gone {measured[f'gone_{name}_ms']:.0f} ms after the kill ({name}), not within {goal:g}"
        for name, goal in goals.items()
        if measured[f"gone_{name}_ms"] > goal
    )
    return Finding(
        scenario="orphans",
        seed=plan.seed,
        done={"managers_killed": count},
        lost={"workers_of_another_manager": toll.others},
        left=left,
        measured=measured,
        missed=missed,
    )


class Toll:
    """What became of the managers' processes.

    Attributes:
        gone_ms: how long the last one of each manager lived on.
        survivors: how many were still alive after SURVIVE_S.
        others: how many workers of the manager beside them were touched.
    """

    def __init__(self) -> None:
        self.gone_ms: dict[Way, list[float]] = {way: [] for way in WAYS}
        self.survivors = self.others = 0


def _kill_all(ways: list[Way], rng: random.Random, say: Callable[[str], None]) -> Toll:
    toll = Toll()
    with door() as entry, _manager("spawn", entry, []) as bystander:
        for line in ("opening", "open", "busy"):
            bystander.line(line)
        theirs = bystander.workers().split()
        for number, way in enumerate(ways):
            alive, seconds = _kill_one(way, entry, rng)
            toll.survivors += alive
            toll.gone_ms[way].append(seconds * 1000)
            entry.empty()
            say(f"{number + 1} of {len(ways)} managers")
        toll.others = len(set(theirs) - set(bystander.workers().split()))
    return toll


def _kill_one(way: Way, entry: Door, rng: random.Random) -> tuple[int, float]:
    """Start a manager and kill it: how many of its processes are left, and when the last one was gone."""
    programs = [] if way.moment == "opening" else rng.sample(BUSY, 3)
    if way == Way("template", "busy"):
        programs[0] = "has_daemon"
    words = ("churn",) if way.moment == "churning" else ()
    with _manager(way.start_method, entry, programs, *words) as manager:
        manager.line("opening")
        if way.moment == "opening":
            _pause(rng.uniform(0.0, OPENING_S))
        else:
            manager.line("open")
            manager.line("busy")
            if len(entry.arrivals(processes_of(programs))) < processes_of(programs):
                raise TimeoutError(f"programs didn't begin: {programs}")
        if way.moment == "churning":
            _pause(rng.uniform(0.0, CHURNING_S))
        if way.moment == "template_first":
            os.kill(manager.template(), signal.SIGKILL)
            _pause(rng.uniform(0.0, CHURNING_S))
        manager.process.kill()
        return _survivors(manager)


def processes_of(programs: list[str]) -> int:
    """How many processes come to the door."""
    return sum({"has_descendants": 3, "has_daemon": 2}.get(program, 1) for program in programs)


def _survivors(manager: Manager) -> tuple[int, float]:
    """Watch what is left of a manager that was just killed: how much of it is alive in the end, and for how long."""
    began = gone_at = time.monotonic()
    while (pids := manager.all()) and time.monotonic() < began + SURVIVE_S:
        for pid in pids:
            _wait_dead(pid, began + SURVIVE_S)
        gone_at = time.monotonic()
    return len(pids), gone_at - began


def _wait_dead(pid: int, until: float) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([fd], [], [], max(0.0, until - time.monotonic()))
    finally:
        os.close(fd)


@contextmanager
def _manager(start_method: str, entry: Door, programs: list[str], *words: str) -> Iterator[Manager]:
    manager = Manager(start_method, entry, programs, *words)
    try:
        yield manager
    finally:
        manager.close()


def _pause(seconds: float) -> None:
    """Let a moment of that length pass: there is nothing to wait for, any moment is as good."""
    select.select([], [], [], seconds)

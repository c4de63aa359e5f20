"""Workers that can't start: starts stop within seconds, calls are refused at once, and a reload heals the pool.

In three ways: a program of `warm=` whose file raises when a worker imports it, a module of `preload=` that raises in
the template, and a program that ends the worker as it boots. Each pool begins broken. The processor time is that of the
manager and of everything it started, while a caller tries again ten times a second. Then the file is put right.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspool
from benchmarks.harness.processes import cpu_s, own_cpu_s
from tests.chaos.finding import Finding, Plan
from tests.chaos.premises import Premises
from tests.chaos.programs import double
from tests.chaos.tally import Tally
from tests.chaos.watch import Watch

WORKERS = 4
PATIENCE_S = 60.0
REFUSALS = 100
OPEN_GOAL_S, REFUSAL_GOAL_MS, CPU_GOAL_PERCENT = 5.0, 10.0, 5.0
LOST = ("breaker_not_open", "calls_not_refused", "refused_without_a_report", "not_healed", "wrong_answers")
GOOD = "def ready():\n    return 'ready'\n"


@dataclass(frozen=True, slots=True)
class _Way:
    """One way not to start.

    Attributes:
        text: what the file says.
        option: the option that names the module, and how.
    """

    name: str
    text: str
    option: tuple[str, str]


WAYS = (
    _Way("warm_raises", "raise RuntimeError('this file is broken')\n", ("warm", "{}:ready")),
    _Way("preload_raises", "raise RuntimeError('this file is broken')\n", ("preload", "{}")),
    _Way("exits_at_boot", "import os\nos._exit(3)\n", ("warm", "{}:ready")),
)


def crash_loop(plan: Plan) -> Finding:
    """See the module's docstring."""
    window_s = plan.pick(short=1, chaos=2, soak=10)
    tally = Tally(*LOST)
    with Premises() as premises:
        for way in WAYS:
            plan.say(way.name)
            with _importable(premises.folder):
                _crash(way, premises, window_s, tally)
        left = premises.left()
    return tally.finding("crash_loop", plan, left)


def _crash(way: _Way, premises: Premises, window_s: float, tally: Tally) -> None:
    module = f"chaos_{way.name}"
    file = premises.folder / f"{module}.py"
    file.write_text(way.text, encoding="utf-8")
    option, form = way.option
    options: dict[str, Any] = {option: form.format(module)}
    watch = Watch()
    tally.done["crash_loops"] += 1
    began = time.monotonic()
    with dspool.Pool(workers=WORKERS, min_ready=0, on_event=watch, **options) as pool:
        opened = watch.until(lambda: pool.stats().breaker == "open", PATIENCE_S)
        tally.lost["breaker_not_open"] += not opened
        tally.measure(
            f"{way.name}_breaker_open_s", watch.last.get("pool.breaker_opened", began) - began, most=OPEN_GOAL_S
        )
        refused_ms = [_refused_ms(pool, tally) for _ in range(REFUSALS)]
        tally.measure(f"{way.name}_refused_ms_max", max(refused_ms), most=REFUSAL_GOAL_MS)
        tally.measure(f"{way.name}_cpu_percent", _cpu_percent(pool, premises, window_s, tally), most=CPU_GOAL_PERCENT)
        tally.done["failed_starts"] += pool.stats().start_failures
        file.write_text(GOOD, encoding="utf-8")
        _heal(way, pool, watch, tally)


def _refused_ms(pool: dspool.Pool, tally: Tally) -> float:
    """A call that can't be served: how long until that is said."""
    began = time.perf_counter()
    try:
        pool.run(double, {"number": 1})
    except dspool.PoolBroken as error:
        tally.lost["refused_without_a_report"] += not error.reports
    else:
        tally.lost["calls_not_refused"] += 1
    tally.done["refusals"] += 1
    return (time.perf_counter() - began) * 1e3


def _cpu_percent(pool: dspool.Pool, premises: Premises, window_s: float, tally: Tally) -> float:
    """Of one core, by the manager and all it started, over so many seconds."""
    before = own_cpu_s() + cpu_s(premises.processes())
    began = time.monotonic()
    while time.monotonic() - began < window_s:
        _refused_ms(pool, tally)
        time.sleep(0.1)  # ten callers a second is what is measured, nothing is waited for
    used = own_cpu_s() + cpu_s(premises.processes()) - before
    return 100 * used / (time.monotonic() - began)


def _heal(way: _Way, pool: dspool.Pool, watch: Watch, tally: Tally) -> None:
    """The file is right again: after a reload the pool is whole."""
    began = time.monotonic()
    pool.reload()
    healed = watch.until(lambda: pool.health().status == "healthy", PATIENCE_S)
    tally.lost["not_healed"] += not healed
    tally.measure(f"{way.name}_healed_s", watch.last.get("worker.ready", began) - began)
    for number in range(WORKERS):
        tally.lost["wrong_answers"] += pool.run(double, {"number": number}) != 2 * number
        tally.done["calls_after_the_reload"] += 1


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """The workers find modules in this folder, and what was written twice in a second is not taken for the same."""
    before = os.environ.get("PYTHONDONTWRITEBYTECODE")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if before is None:
            del os.environ["PYTHONDONTWRITEBYTECODE"]
        else:
            os.environ["PYTHONDONTWRITEBYTECODE"] = before

"""Ctrl-C at any point of run, checkout, map and stream: no slot is lost, the figures add up, the pool still works."""

from __future__ import annotations

import pytest

from tests.integration.pool.conftest import RunScript

pytestmark = [pytest.mark.integration, pytest.mark.slow]

STORM = """
import json, random, signal, sys, time, warnings
import dspool
from dspool.pool.core import invariants
from dspool.testing.fake import FakeLauncher

what, tries, longest_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
warnings.simplefilter("ignore", ResourceWarning)  # an interrupt between checkout() and `with` drops the lease
random.seed(what)

def echo(**inputs):
    return inputs

def one(pool):
    if what == "run":
        pool.run(echo, {"value": 1})
    elif what == "checkout":
        with pool.checkout() as lease:
            lease.run(echo, {"value": 1})
            lease.run(echo, {"value": 2})
    elif what == "map":
        for _ in pool.map(echo, ({"value": number} for number in range(6))):
            pass
    elif what == "stream":
        for _ in pool.stream(echo, {"value": 1}):
            pass
    else:
        pool.stats()
        pool.pause()
        pool.resume()
        pool.workers()

def quiet():
    while True:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
            return
        except KeyboardInterrupt:
            pass

def calm(pool):
    '''Wait until nothing is lent any more; a call that was cancelled in its worker costs a replacement.'''
    driver = pool._control.driver
    deadline = time.monotonic() + 10
    while True:
        driver._look(lambda: invariants.check(driver.core))
        stats = pool.stats()
        if not stats.leased and not stats.waiting and stats.idle == stats.target:
            return stats
        if time.monotonic() > deadline:
            raise AssertionError(f"a slot was lost: {stats} {driver.core.leases}")
        time.sleep(0.0005)

signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
hits = done = 0
with dspool.Pool(workers=2, launcher=FakeLauncher(lambda call: call.inputs), quarantine_after=None) as pool:
    one(pool)
    began = time.monotonic()
    for number in range(tries):
        begun = time.monotonic()
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, longest_s))
                one(pool)
            finally:
                quiet()
        except KeyboardInterrupt:
            quiet()
            hits += 1
        done += 1
        if number % 20 == 0:
            calm(pool)
        if time.monotonic() - began > 4:
            break
    pool.resume()
    stats = calm(pool)
    ended = stats.calls_ok + stats.calls_failed + stats.calls_lost + stats.calls_cancelled + stats.calls_timeout
    for _ in range(20):
        assert pool.run(echo, {"value": 3}) == {"value": 3}
print(json.dumps({
    "done": done, "hits": hits, "seconds": time.monotonic() - began,
    "unaccounted": stats.checkouts - ended if what in ("run", "map", "stream") else 0,
    "handler": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
}), flush=True)
"""


@pytest.mark.parametrize(
    ("what", "tries", "longest_s"),
    [
        ("run", 3000, 0.0012),
        ("checkout", 3000, 0.002),
        ("map", 1000, 0.012),
        ("stream", 3000, 0.0012),
        ("orders", 3000, 0.0004),
    ],
)
def test_ctrl_c_at_any_point_loses_nothing(script: RunScript, what: str, tries: int, longest_s: float) -> None:
    storm = script(STORM, what, str(tries), str(longest_s))
    found = storm.line()
    assert storm.end() == 0, storm.errors()
    assert found["hits"] > found["done"] / 20
    assert found["done"] >= 100
    assert found["unaccounted"] == 0
    assert found["handler"]


CLOSE_IN_HANDLER = """
import json, os, signal, threading
import dspool
from dspool.testing.scripted import ScriptedLauncher, behave

def terminate(signum, frame):
    pool.close(0.1)

signal.signal(signal.SIGTERM, terminate)
pool = dspool.Pool(workers=1, launcher=ScriptedLauncher()).open()

def shoot():
    while not pool.stats().leased:
        pass
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=shoot).start()
try:
    pool.run(behave, {"do": "sleep", "seconds": 60})
except dspool.PoolClosed as error:
    print(json.dumps(str(error)), flush=True)
stats = pool.stats()
print(json.dumps([stats.workers, stats.exits]), flush=True)
"""


def test_close_in_a_signal_handler_inside_a_call(script: RunScript) -> None:
    process = script(CLOSE_IN_HANDLER)
    assert "was closed while" in process.line()
    assert process.line() == [0, {"stopped": 1}]
    assert process.end() == 0, process.errors()


CLOSE_ANYWHERE = """
import json, random, signal, sys, time
import dspool
from dspool.testing.fake import FakeLauncher

def echo(**inputs):
    return inputs

def terminate(signum, frame):
    pool.close(0.0)

signal.signal(signal.SIGALRM, terminate)
random.seed(1)
closed = 0
for number in range(150):
    pool = dspool.Pool(workers=2, launcher=FakeLauncher(lambda call: call.inputs)).open()
    pool.run(echo, {})
    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 0.002))
    try:
        while True:
            pool.run(echo, {"value": 1})
            pool.stats()
    except dspool.PoolClosed:
        closed += 1
    pool.close()
    assert pool.stats().workers == 0
print(json.dumps(closed), flush=True)
"""


def test_close_in_a_signal_handler_at_any_point(script: RunScript) -> None:
    process = script(CLOSE_ANYWHERE)
    assert process.line() == 150
    assert process.end() == 0, process.errors()


CTRL_C_IN_MAP = """
import json, os, signal, threading
import dspool
from dspool.testing.scripted import ScriptedLauncher, behave

with dspool.Pool(workers=2, launcher=ScriptedLauncher()) as pool:
    rows = [{"value": 1}, *({"do": "sleep", "seconds": 60} for _ in range(10))]
    done = []
    try:
        for value in pool.map(behave, rows):
            done.append(value)
            threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    except KeyboardInterrupt:
        pass
    print(json.dumps([done, pool.run(behave, {"value": 2}), pool.stats().leased]), flush=True)
"""


def test_ctrl_c_stops_a_map_cleanly(script: RunScript) -> None:
    process = script(CTRL_C_IN_MAP)
    assert process.line() == [[1], 2, 0]
    assert process.end() == 0, process.errors()


CTRL_C_IN_STREAM = """
import asyncio, json, os, signal, threading
import dspool

async def give_and_wait():
    yield os.getpid()
    await asyncio.Event().wait()

with dspool.Pool(workers=1) as pool:
    pids = []
    for _ in range(2):
        try:
            for pid in pool.stream(give_and_wait, {}):
                pids.append(pid)
                threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        except KeyboardInterrupt:
            pass
    stats = pool.stats()
    print(json.dumps([len(set(pids)), len(pids), stats.calls_cancelled, stats.exits]), flush=True)
"""


def test_ctrl_c_ends_a_stream_and_keeps_its_worker(script: RunScript) -> None:
    process = script(CTRL_C_IN_STREAM)
    assert process.line() == [1, 2, 2, {}]
    assert process.end() == 0, process.errors()

"""Signal handlers of the application's own that raise in the middle of a call: no slot is lost, no call runs twice."""

from __future__ import annotations

import os
import socket

import pytest

from dspool.pool.slot_pipe import SlotPipe
from dspool.protocol.messages import CreateArgs, ImportedProgram
from dspool.protocol.requests import encode_request
from tests.integration.pool.conftest import RunScript

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.chaos]

ALARMS = """
import json, random, signal, time
import dspool
from dspool.pool.interrupts import guard
from dspool.testing.fake import FakeLauncher

class Late(Exception):
    pass

def late(*_):
    raise Late

def echo(**inputs):
    return inputs

def fresh():
    pool = dspool.Pool(workers=1, launcher=FakeLauncher(lambda call: call.inputs), quarantine_after=None).open()
    pool.run(echo, {})
    return pool

signal.signal(signal.SIGALRM, late)
random.seed(1)
lost = held = alarms = 0
pool = fresh()
began = time.monotonic()
while time.monotonic() - began < 4 and alarms < 600:
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 0.0004))
            pool.run(echo, {"value": 1})
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Late:
        alarms += 1
    except dspool.DspoolError:  # it was raised inside a step, which breaks the pool, or was taken for the program's
        pass
    held += guard.depth
    guard.depth = 0
    if pool._control.driver.broken is not None:
        pool.close()
        pool = fresh()
        continue
    try:
        pool.run(echo, {"value": 2}, timeout_s=2)
    except dspool.QueueTimeout:
        lost += 1
        pool.close(0)
        pool = fresh()
    except dspool.WorkerLost:
        pass
pool.close()
print(json.dumps([lost, held, alarms > 50]), flush=True)
"""


def test_an_alarm_that_raises_anywhere_in_a_call_costs_no_slot_and_no_later_ctrl_c(script: RunScript) -> None:
    running = script(ALARMS)
    assert running.line() == [0, 0, True]
    assert running.end() == 0, running.errors()


class _Alarmed(socket.socket):
    """A socket whose calls do their work, and are followed at once by a SIGALRM whose handler raises TimeoutError."""

    def send(self, data: object, flags: int = 0) -> int:
        super().send(data, flags)  # type: ignore[arg-type]
        raise TimeoutError("the application's own")

    def recv_into(self, buffer: object, nbytes: int = 0, flags: int = 0) -> int:
        super().recv_into(buffer, nbytes, flags)  # type: ignore[arg-type]
        raise TimeoutError("the application's own")


def test_an_alarms_timeout_error_is_not_taken_for_a_worker_that_never_read_the_call(no_leaks: None) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        pipe = SlotPipe(_Alarmed(fileno=ours.detach()), 1 << 20)
        pipe.sock.setblocking(False)
        try:
            with pytest.raises(TimeoutError, match="own"):
                pipe.ask(encode_request("create_program", CreateArgs("p", ImportedProgram("m:f")), 1 << 20), 1, None)
            assert theirs.recv(64), "it was sent: sent once more to another worker, it would run twice"
            os.write(theirs.fileno(), b"\0\0\0\1x")
            with pytest.raises(TimeoutError, match="own"):
                pipe.receive()
        finally:
            pipe.close()

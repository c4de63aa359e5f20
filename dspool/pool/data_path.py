"""The data path: a call from checkout to checkin, and a run in a lease that is kept (lease.py).

The way of a call is written once, as generators that yield what they have to wait for; Pool drives them by blocking,
AsyncPool by awaiting (steps.py).

Rules:
    1. The lease id is drawn and `try` entered before Checkout; `finally` cancels whatever is not closed. So an
       exception thrown into any wait (an interrupt, a cancellation) leaves neither a lost slot nor a late answer.
    2. `written` is set before a send is attempted. A request that was certainly never read counts as not written: the
       call goes on to another worker.
    3. What the pipe still holds is read before an exit is believed (law 8).
    4. A lease counts as closed after the step that closes it, never before: a signal handler of the application's own
       may raise as that step begins. A Cancel too many does nothing; one too few costs a slot for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from dspool.errors import CallTimeout, CheckoutSkipped, PoolError, ProtocolError, WorkerLost
from dspool.options import PoolOptions
from dspool.pool.call_errors import (
    IN_A_LEASE,
    NOT_SENT_AGAIN,
    gist,
    lease_over,
    lost,
    not_begun,
    pieces_given,
    queue_timeout,
    timed_out,
    tried,
)
from dspool.pool.check_hook import ask_hook
from dspool.pool.core import commands as c, refusals
from dspool.pool.core.records import Lease as LeaseRecord
from dspool.pool.core.states import LeaseState
from dspool.pool.driver import Driver
from dspool.pool.programs import Program
from dspool.pool.slot_pipe import PipeEnded, SlotPipe
from dspool.pool.steps import GRANT, PIECE, READ, WRITE, Steps
from dspool.protocol.messages import CreateArgs, Response
from dspool.protocol.requests import encode_request
from dspool.types import Keep, Remove, Verdict

Driven = tuple[Response, int]
"""What a call's steps give when they are driven to their end: the response, and the worker it came from."""


class DeadlinePassed(Exception):
    """The call's deadline came while it was in a worker."""


def take(driver: Driver, lease: LeaseRecord) -> SlotPipe | None:
    """acquire() where there is nothing to wait for: no queue, no hook, a sound pipe. None: go on with acquire()."""
    if lease.state is not LeaseState.GRANTED:
        return None
    pipe = driver.pipe(lease)
    if pipe is None or not pipe.hold():
        return None
    if pipe.look() is None:
        return pipe
    pipe.let_go()
    return None


def acquire(driver: Driver, lease: LeaseRecord) -> Steps[SlotPipe]:
    """Wait for a worker, look at it, put it to the hook; go on to the next one until one suits. Its pipe, held."""
    lease_id = lease.lease_id
    while True:
        while lease.state is LeaseState.QUEUED:
            if not (yield (GRANT, lease_id, lease.deadline)) and lease.state is LeaseState.QUEUED:
                raise queue_timeout(driver, lease)
            driver.check_sound()
        if lease.state is LeaseState.CLOSED:  # refused; or past hold_s before we looked, and out of the table
            raise driver.refused(lease) if lease.refusal is not None else lease_over(driver, lease)
        pipe = driver.pipe(lease)
        if pipe is None or not pipe.hold():
            driver.step(c.CheckoutVerdict(lease_id, Remove("its process is gone"), died=True))
            continue
        kept = False
        try:
            kept = yield from _suits(driver, lease, pipe)
        finally:
            if not kept:
                pipe.let_go()
        if kept:
            return pipe


def _suits(driver: Driver, lease: LeaseRecord, pipe: SlotPipe) -> Steps[bool]:
    """Look at the pipe, then ask the hook; tell the core. False: the lease is somewhere else now."""
    lease_id, worker_id = lease.lease_id, lease.worker_id
    trouble = pipe.look()
    if trouble is not None:
        driver.step(c.CheckoutVerdict(lease_id, Remove(trouble[0]), died=trouble[1]))
        return False
    if lease.state is LeaseState.CHECKING:
        now_or_never = lease.deadline <= lease.granted_at  # and it was now: there is nothing left to be late for
        limit = c.INFINITY if now_or_never else lease.deadline
        verdict = yield from ask_hook(driver, lease, limit)
        driver.step(c.CheckoutVerdict(lease_id, verdict))
        return isinstance(verdict, Keep) and lease.is_granted and lease.worker_id == worker_id
    return True


def checkout(driver: Driver, request: c.Checkout, warm: str | None) -> Steps[tuple[LeaseRecord, SlotPipe]]:
    """Check out a lease that is kept for several runs, its pipe held. `warm`: a program that its worker should hold."""
    request.program = warm
    kept = False
    try:
        lease = driver.check_out(request)
        pipe = yield from acquire(driver, lease)
        driver.step(c.RunEnded(lease.lease_id, "none"))
        kept = True
        return lease, pipe
    finally:
        if not kept:
            driver.step(c.Cancel(request.lease_id, written=False))


def end(driver: Driver, record: LeaseRecord, verdict: Verdict) -> None:
    """Check a kept lease in. Its pipe is for the holder to let go of."""
    driver.step(c.Checkin(record.lease_id, "none", verdict))


def interrupt(driver: Driver, record: LeaseRecord) -> None:
    """End a kept lease while it runs a call: its slot owes an answer, so the worker goes. The run frees the pipe."""
    verdict = Remove("its lease was closed in the middle of a call")
    driver.step(c.Checkin(record.lease_id, "none", verdict, "cancelled"))


def exchange(
    driver: Driver, pipe: SlotPipe, program: Program, frame: bytearray, request_id: int, deadline: float
) -> Steps[Response]:
    """Send the request and read its answer; where the worker hasn't the program, ship it and ask again."""
    left_s = None if deadline == c.INFINITY else deadline - time.monotonic()
    response = None
    if pipe.ask(frame, request_id, left_s) and (yield (READ, pipe, deadline)):
        response = pipe.answer()
    if response is None:
        response = yield from _rest(pipe, deadline)
    if response.error_info is not None and response.error_info.code == "program_missing":
        created = yield from _create(driver, pipe, program, deadline)
        if not created.success:
            return created
        pipe.ask(frame, request_id, None if deadline == c.INFINITY else deadline - time.monotonic())
        response = yield from _rest(pipe, deadline)
    return response


def exchange_pieces(
    driver: Driver, pipe: SlotPipe, program: Program, frame: bytearray, request_id: int, deadline: float
) -> Steps[Response]:
    """As exchange(), of a streamed call: its pieces are given on the way. What has come is given, deadline or not."""
    while True:
        pipe.ask(frame, request_id, None if deadline == c.INFINITY else deadline - time.monotonic())
        yield from _sent(pipe, deadline)
        while not isinstance(message := pipe.message(), Response):
            if message is not None:
                yield (PIECE, message, deadline)
            elif not (yield (READ, pipe, deadline)):
                raise DeadlinePassed
        if message.error_info is None or message.error_info.code != "program_missing":
            return message
        created = yield from _create(driver, pipe, program, deadline)
        if not created.success:
            return created


def _create(driver: Driver, pipe: SlotPipe, program: Program, deadline: float) -> Steps[Response]:
    """Ship the program."""
    args = CreateArgs(program.program_id, program.spec)
    pipe.ask(encode_request("create_program", args, driver.options.max_frame_bytes), next(driver.ids), None)
    return (yield from _rest(pipe, deadline))


def _sent(pipe: SlotPipe, deadline: float) -> Steps[None]:
    """The request's rest."""
    while pipe.unsent and not pipe.send_more():
        if not (yield (WRITE, pipe, deadline)):
            raise DeadlinePassed


def _rest(pipe: SlotPipe, deadline: float) -> Steps[Response]:
    """What is left of a round trip: the request's rest, and all of the answer."""
    yield from _sent(pipe, deadline)
    while True:
        if not (yield (READ, pipe, deadline)):
            raise DeadlinePassed
        response = pipe.answer()
        if response is not None:
            return response


Exchange = Callable[[Driver, SlotPipe, Program, bytearray, int, float], Steps[Response]]


def queue_deadline(options: PoolOptions, deadline: float, now: float) -> float:
    """When a call that begins to wait for a worker now has waited long enough."""
    wait_s = options.queue_timeout_s
    last = deadline if wait_s is None else min(deadline, now + wait_s)
    return last if last > now else c.AT_ONCE


def call(
    driver: Driver,
    checkout: c.Checkout,
    program: Program,
    frame: bytearray,
    deadline: float,
    *,
    idempotent: bool,
    exchange: Exchange = exchange,
) -> Steps[Driven]:
    """One call: a lease, one run, checkin.

    An idempotent call whose worker was lost is sent again, up to max_retries times within its deadline, but not once a
    piece of it was given. So is one that found nothing but dead workers until it was refused. Any other call stays
    refused: it may be why they died.
    """
    tries_left = driver.options.max_retries if idempotent else 0
    lost_before: WorkerLost | None = None
    while True:
        lease_id = checkout.lease_id
        written = closed = False
        pipe: SlotPipe | None = None
        response: Response | None = None
        try:
            lease = driver.check_out(checkout)
            try:
                while response is None:
                    pipe = take(driver, lease) or (yield from acquire(driver, lease))
                    if time.monotonic() >= deadline:  # sent now, it could only cost its worker
                        raise queue_timeout(driver, lease, refusals.granted_late)
                    written = True
                    pipe.spender = program.label, checkout.session
                    try:
                        response = yield from exchange(driver, pipe, program, frame, lease_id, deadline)
                    except PipeEnded as end:
                        if not end.never_ran:
                            raise
                        written = False
                        _move_on(driver, lease_id, deadline)
                        pipe.let_go()
                        pipe = None
            except (PipeEnded, ProtocolError, DeadlinePassed) as end:
                fate = tried(driver.options.max_retries, tries_left) if idempotent else NOT_SENT_AGAIN
                if pipe is not None and pipe.pieces:
                    fate, tries_left = pieces_given(pipe.pieces), 0
                error = yield from _ended(driver, lease, program, end, deadline, fate)
                closed = True
                now = time.monotonic()
                if not (tries_left and isinstance(error, WorkerLost)) or now >= deadline:
                    raise error from (end if isinstance(end, ProtocolError) else None)
                lost_before = error
                checkout.deadline = queue_deadline(driver.options, deadline, now)  # the time that it ran was no wait
            except CheckoutSkipped as skipped:
                if not (tries_left and skipped.retryable) or time.monotonic() >= deadline:
                    raise
            else:
                checkin = c.Checkin(lease_id)
                if not response.success:
                    checkin.outcome, checkin.error = "failed", gist(response)
                driver.step(checkin)
                closed = True
                if response.spent:
                    driver.usage.add(program.label, checkout.session, response.spent)
                assert lease.worker_id is not None
                return response, lease.worker_id
        except PoolError as refused:  # which says that nothing was run: this time
            raise refused from (refused.__cause__ or lost_before)
        finally:
            if not closed:
                driver.step(c.Cancel(lease_id, written))
            if pipe is not None:
                pipe.let_go()
        tries_left -= 1
        checkout.lease_id, checkout.retry = next(driver.ids), True


def _move_on(driver: Driver, lease_id: int, deadline: float) -> None:
    """The worker had not read the call: it goes on to another, and waits anew, but not beyond its own deadline."""
    now, verdict = time.monotonic(), Remove("it ended before it had read the call")
    again = queue_deadline(driver.options, deadline, now) if now < deadline else deadline
    driver.step(c.CheckoutVerdict(lease_id, verdict, died=True, deadline=again))


def _ended(
    driver: Driver,
    lease: LeaseRecord,
    program: Program,
    end: PipeEnded | ProtocolError | DeadlinePassed,
    deadline: float,
    fate: str,
) -> Steps[PoolError | WorkerLost | CallTimeout]:
    """A run that ended without a response: tell the core, and the caller what became of it.

    Args:
        deadline: the call's.
        fate: what becomes of a call whose worker was lost, for its error.
    """
    lease_id, worker_id = lease.lease_id, lease.worker_id
    assert worker_id is not None
    # A stream's caller that was away when its deadline came: its lease was taken back, and the pipe ends anywhere.
    taken_back = lease.cancellable and lease.state is LeaseState.CLOSED and time.monotonic() >= deadline
    if taken_back or isinstance(end, DeadlinePassed):
        driver.step(c.Cancel(lease_id, written=True, why="timeout"))
        return (yield from timed_out(driver, worker_id, program, lease))
    if isinstance(end, PipeEnded):
        driver.step(c.Checkin(lease_id, "lost"))
    else:
        driver.step(c.Checkin(lease_id, "none", Remove(str(end)), "protocol_error"))
    return (yield from lost(driver, worker_id, program, fate))


def run_in(
    driver: Driver,
    record: LeaseRecord,
    pipe: SlotPipe,
    program: Program,
    frame: bytearray,
    deadline: float,
    *,
    cancellable: bool,
    exchange: Exchange = exchange,
) -> Steps[Response]:
    """One run in a lease that is kept. After anything but a response the lease is over."""
    lease_id, worker_id = record.lease_id, record.worker_id
    assert worker_id is not None
    if time.monotonic() >= deadline:  # sent now, it could only cost its worker
        raise not_begun(driver, record, program)
    over = True
    written = False
    try:
        driver.step(c.RunStarted(lease_id, program.program_id, cancellable))
        if record.refusal is not None:
            over = False
            raise driver.refused(record)
        if record.state is not LeaseState.GRANTED:
            raise lease_over(driver, record)
        written = True
        pipe.spender = program.label, record.session
        try:
            response = yield from exchange(driver, pipe, program, frame, next(driver.ids), deadline)
        except (PipeEnded, ProtocolError, DeadlinePassed) as end:
            error = yield from _ended(driver, record, program, end, deadline, IN_A_LEASE)
            over = False
            raise error from (None if isinstance(end, DeadlinePassed) else end)
        over = False
        driver.step(c.RunEnded(lease_id, "ok") if response.success else c.RunEnded(lease_id, "failed", gist(response)))
        if response.spent:
            driver.usage.add(program.label, record.session, response.spent)
        return response
    finally:
        if over:
            driver.step(c.Cancel(lease_id, written))


def settle(driver: Driver, worker_id: int, slot: int, lease_id: int) -> Steps[None]:
    """Control plane: read a slot that was left until its call's answer came, and give the slot back.

    All of it is dropped, but what the call has spent.
    """
    pipes = driver.pipes.get(worker_id)
    if pipes is None:
        return
    pipe = pipes[slot]
    if not pipe.hold():
        return
    try:
        while pipe.unsent and not pipe.send_more():
            yield (WRITE, pipe, c.INFINITY)
        while pipe.asked is not None:
            message = pipe.message()
            if message is None:
                yield (READ, pipe, c.INFINITY)
            elif isinstance(message, Response) and message.spent:
                driver.usage.add(*pipe.spender, message.spent)
    except PipeEnded:
        return  # its exit is on its way
    except ProtocolError as error:
        driver.step(c.WorkerUnwell(worker_id, "protocol_error", str(error)))
        return
    finally:
        pipe.let_go()
    driver.step(c.SlotSettled(worker_id, slot, lease_id))

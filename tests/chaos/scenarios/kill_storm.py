"""Workers and templates killed at random moments under the calls of 16 threads: each call ends once, and right.

Half of the calls are idempotent, and all carry their own number in their input and their answer. Counted as lost: a
call that never ends or ends twice, an answer that isn't the call's own, an error that isn't dspool's, a call that was
executed twice though it wasn't idempotent, one that was refused and yet executed, and an idempotent call that ended
with anything but its answer. Idempotent calls are sent again up to 100 times here, within their minute. In the storm
with the default `quarantine_after` ProgramQuarantined counts as a refusal, not as a loss, and the program is released.
`max_restarts` is out of the way: workers killed while they start count as failed starts, by design.
"""

from __future__ import annotations

import time

import dspool
from tests.chaos.crowd import Crowd
from tests.chaos.finding import Finding, Plan
from tests.chaos.premises import Premises
from tests.chaos.storm.ledger import perform
from tests.chaos.storm.result import add_storm
from tests.chaos.storm.storm import CALLERS, OPTIONS, PATIENCE_S, TIMEOUT_S, Force, Storm
from tests.chaos.tally import Tally
from tests.chaos.watch import Watch


def kill_storm(plan: Plan) -> Finding:
    """See the module's docstring."""
    force = Force(
        kills=plan.pick(short=20, chaos=120, soak=1_000),
        calls=plan.pick(short=200, chaos=1_200, soak=10_000),
    )
    tally = Tally()
    with Premises() as premises:
        _storm("unlimited", plan, force, premises, tally, {"quarantine_after": None})
        _storm("default", plan, force, premises, tally, {}, frozenset({"ProgramQuarantined"}))
        left = premises.left()
    return tally.finding("kill_storm", plan, left)


def _storm(
    name: str,
    plan: Plan,
    force: Force,
    premises: Premises,
    tally: Tally,
    options: dict[str, None],
    excused: frozenset[str] = frozenset(),
) -> None:
    """One storm, over a pool of its own."""
    watch = Watch()
    with dspool.Pool(name=name, on_event=watch, **OPTIONS, **options) as pool:
        storm = Storm(plan, force, premises, pool.workers, watch)

        def work(number: int) -> None:
            while storm.gate(number).wait(PATIENCE_S) and not storm.over.is_set():
                call = storm.books.next_call()
                try:
                    answer = pool.run(perform, call.inputs, idempotent=call.idempotent, timeout_s=TIMEOUT_S)
                except Exception as error:
                    storm.books.raised(call, error)
                    if isinstance(error, dspool.ProgramQuarantined):
                        pool.release(perform)  # or there would be no calls to kill for half a minute
                else:
                    storm.books.answered(call, answer)

        with Crowd(CALLERS, work) as crowd:
            try:
                storm.rage()
            finally:
                storm.over.set()
            stuck = crowd.join(time.monotonic() + PATIENCE_S)
        add_storm(tally, name, storm, stuck=stuck, stats=pool.stats(), health=pool.health(), excused=excused)

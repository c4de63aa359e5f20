"""Programs that make workers exit: quarantined after some distinct calls in a row, then one trial."""

from __future__ import annotations

from typing import Any

import pytest

from dspool.pool.core.commands import (
    Checkout,
    Grant,
    Kill,
    Reject,
    Release,
    RunEnded,
    RunStarted,
    Spawn,
    WorkerUnwell,
)
from dspool.pool.core.restarts import MAX_TRACKED_PROGRAMS, Quarantine
from dspool.types import ExitReason
from tests.unit.core.world import World, exit_report, of

pytestmark = pytest.mark.unit


def crash(world: World, program: str = "p", reason: ExitReason = "crash", **fields: Any) -> None:
    """A call of the program ends its worker by itself, and a new worker becomes ready."""
    lease = world.checkout(program=program, **fields)
    world.exit(world.worker_of(lease), reason)
    world.checkin(lease, "lost")
    world.all_ready()


def quarantined(**options: Any) -> World:
    """A pool that holds "p" in quarantine from 0.0 on, for 30 s."""
    world = World.ready(2, quarantine_after=3, quarantine_s=30.0, **options)
    for _ in range(3):
        crash(world)
    assert world.core.quarantine.held() == ("p",)
    assert world.core.quarantine.holds("p")
    assert not world.core.quarantine.holds("q")
    return world


def test_a_program_whose_calls_end_3_workers_in_a_row_is_refused_at_once_and_others_go_on() -> None:
    world = quarantined()
    assert world.do(Checkout(90, 90, program="p")) == [Reject(90)]
    refusal = world.refusal(90)
    assert refusal.code == "ProgramQuarantined"
    assert refusal.retry_after_s == 30.0
    assert world.do(Checkout(91, 91, program="q")) == [Grant(91)]
    assert world.do(Checkout(92, 92)) == [Grant(92)]


def test_the_step_that_quarantines_a_program_refuses_its_queued_calls_and_no_others() -> None:
    world = World.ready(1, quarantine_after=1)
    world.checkout(program="p")
    queued, other = world.checkout(program="p"), world.checkout(program="q")
    assert world.exit(1) == [Reject(queued), Spawn(2, "default")]
    assert "program.quarantined" in world.events
    assert world.refused(queued) == "ProgramQuarantined"
    assert world.waiting(other)


def test_retries_of_one_call_count_once() -> None:
    world = World.ready(2, quarantine_after=2)
    for retry in (False, True, True, True):
        crash(world, call_id=1000, retry=retry)
    assert world.core.quarantine.held() == ()
    crash(world, call_id=2000)
    assert world.core.quarantine.held() == ("p",)


def test_a_call_that_ends_well_or_fails_in_between_starts_the_count_over() -> None:
    world = World.ready(2, quarantine_after=3)
    for outcome in ("ok", "failed"):
        crash(world)
        crash(world)
        world.run(program="p", outcome=outcome)
    crash(world)
    crash(world)
    assert world.core.quarantine.held() == ()


@pytest.mark.parametrize("reason", ["timeout", "cancelled", "killed", "removed", "hung", "stopped", "protocol_error"])
def test_our_own_kills_never_count(reason: ExitReason) -> None:
    world = World.ready(2, quarantine_after=1)
    lease = world.checkout(program="p")
    world.do(WorkerUnwell(world.worker_of(lease), reason))
    world.exit(world.worker_of(lease), reason)
    world.checkin(lease, "lost")
    assert world.core.quarantine.held() == ()


@pytest.mark.parametrize("why", ["timeout", "cancelled"])
def test_timeouts_and_cancels_never_count(why: ExitReason) -> None:
    world = World.ready(2, quarantine_after=1)
    lease = world.checkout(program="p")
    worker_id = world.worker_of(lease)
    world.cancel(lease, written=True, why=why)
    world.exit(worker_id, why)
    assert world.core.quarantine.held() == ()


@pytest.mark.parametrize("reason", ["crash", "exited", "oom_suspect"])
def test_every_end_of_its_own_counts(reason: ExitReason) -> None:
    world = World.ready(2, quarantine_after=1)
    crash(world, reason=reason)
    assert world.core.quarantine.held() == ("p",)


def test_a_worker_that_died_before_anything_was_sent_blames_nobody() -> None:
    world = World.ready(2, quarantine_after=1)
    lease = world.checkout()
    world.exit(world.worker_of(lease))
    assert world.core.quarantine.held() == ()


def test_without_a_limit_nothing_is_ever_quarantined() -> None:
    world = World.ready(2, quarantine_after=None)
    for _ in range(10):
        crash(world)
    assert world.core.quarantine.held() == ()


def test_of_several_programs_in_flight_none_is_blamed_and_each_is_a_suspect_until_its_next_good_call() -> None:
    world = World.ready(2, slots=2, quarantine_after=1)
    leases = [world.checkout(program=program) for program in "abcd"]
    worker_id = world.worker_of(leases[0])
    here = {world.lease(lease).program for lease in leases if world.worker_of(lease) == worker_id}
    assert len(here) == 2
    world.exit(worker_id)
    assert world.core.quarantine.held() == ()
    assert set(world.core.quarantine.suspects) == here
    for lease in leases:
        world.checkin(lease, "lost")
    for worker in world.workers():
        world.exit(worker.worker_id, "killed") if worker.state == "stopping" else None
    world.all_ready()
    for program in sorted(here, key=str):
        world.run(program=program)
    assert world.core.quarantine.suspects == {}


def die_with(world: World, *call_ids: int, program: str = "p") -> None:
    """A worker ends by itself with these calls of the program in it, and a new one becomes ready."""
    leases = [world.checkout(program=program, call_id=call_id) for call_id in call_ids]
    (worker_id,) = {world.worker_of(lease) for lease in leases}
    world.exit(worker_id)
    for lease in leases:
        world.checkin(lease, "lost")
    world.all_ready()


def test_a_program_that_was_alone_in_the_worker_is_blamed_whichever_of_its_calls_it_was() -> None:
    world = World.ready(1, slots=2, quarantine_after=2)
    die_with(world, 101, 102)
    assert world.core.quarantine.held() == (), "two calls, and one worker that ended"
    assert world.core.quarantine.suspects == {}
    die_with(world, 103, 104)
    assert world.core.quarantine.held() == ("p",)


@pytest.mark.parametrize("again", [(101,), (102,), (101, 102), (101, 103)])
def test_a_death_that_a_call_seen_dying_before_may_have_caused_is_no_further_one(again: tuple[int, ...]) -> None:
    world = World.ready(1, slots=2, quarantine_after=2)
    die_with(world, 101, 102)
    die_with(world, *again)
    assert world.core.quarantine.held() == ()
    die_with(world, 109)
    assert world.core.quarantine.held() == ("p",)


def test_a_program_beside_a_run_of_no_known_program_is_a_suspect() -> None:
    world = World.ready(1, slots=2, quarantine_after=1)
    world.checkout(program="p")
    world.do(RunStarted(world.checkout(), None))
    world.exit(1)
    assert world.core.quarantine.held() == ()
    assert list(world.core.quarantine.suspects) == ["p"]


def test_the_refusal_and_the_event_say_how_the_workers_ended() -> None:
    world = World.ready(2, quarantine_after=2, quarantine_s=30.0)
    leases = world.checkouts(2, program="p")
    first, second = (world.worker_of(lease) for lease in leases)
    world.exit(first, "crash", detail="killed by SIGSEGV")
    world.exit(second, "exited", detail="exit code 3" + "!" * 1000)
    (told,) = [report for report in world.reports if report.event == "program.quarantined"]
    one, two = told.fields["ends"]
    assert one == f"worker {first}: crash, killed by SIGSEGV"
    assert two.startswith(f"worker {second}: exited, exit code 3!!!")
    assert len(two) == 200
    message = world.refusal(world.checkout(program="p")).message
    assert f"2 calls of it in a row ended their worker (the last that ended: {one}; {two}); mend the program" in message
    assert message.endswith("then release('p'), or wait: it is tried again in 30.0 s")


def test_of_many_ends_the_last_five_are_told() -> None:
    world = World.ready(1, quarantine_after=7)
    for _ in range(7):
        crash(world)
    assert world.core.quarantine.ends("p") == tuple(f"worker {number}: crash" for number in (3, 4, 5, 6, 7))
    assert world.core.quarantine.ends("q") == world.core.quarantine.ends(None) == ()


def test_a_call_that_was_abandoned_and_still_runs_is_in_flight_too() -> None:
    world = World.ready(1, slots=2, quarantine_after=1)
    abandoned, other = world.checkout(program="bad"), world.checkout(program="good")
    world.cancel(abandoned, written=True, why="timeout")
    world.exit(1)
    world.checkin(other, "lost")
    assert world.core.quarantine.held() == (), "perhaps the abandoned one did it"


def test_after_quarantine_s_one_call_is_tried() -> None:
    world = quarantined()
    assert world.refused(world.checkout(program="p", now=29.9)) == "ProgramQuarantined"
    trial = world.checkout(program="p", now=30.0)
    assert world.granted(trial)
    assert world.refused(world.checkout(program="p")) == "ProgramQuarantined"


def test_a_trial_that_ends_well_ends_the_quarantine() -> None:
    world = quarantined()
    trial = world.checkout(program="p", now=30.0)
    world.checkin(trial)
    assert "program.released" in world.events
    assert world.core.quarantine.held() == ()
    assert world.granted(world.checkout(program="p"))


def test_a_trial_that_ends_its_worker_begins_another_quarantine() -> None:
    world = quarantined()
    crash(world, now=30.0)
    assert world.refused(world.checkout(program="p", now=59.0)) == "ProgramQuarantined"
    assert world.granted(world.checkout(program="p", now=60.0))


def test_a_trial_whose_answer_was_complete_before_the_exit_ends_the_quarantine() -> None:
    world = quarantined()
    trial = world.checkout(program="p", now=30.0)
    world.exit(world.worker_of(trial))
    world.checkin(trial, "ok")
    assert world.core.quarantine.held() == ()


@pytest.mark.parametrize("end", ["cancel", "cancel-written", "none", "removed", "queue-cancel"])
def test_a_trial_that_ended_without_a_verdict_makes_room_for_another(end: str) -> None:
    world = quarantined()
    if end == "queue-cancel":
        world.checkouts(2, now=30.0)
    trial = world.checkout(program="p", now=30.0)
    if end.startswith("cancel") or end == "queue-cancel":
        world.cancel(trial, written=end == "cancel-written")
    elif end == "none":
        world.checkin(trial, "none")
    else:
        worker_id = world.worker_of(trial)
        world.do(WorkerUnwell(worker_id, "killed"))
        world.exit(worker_id, "killed")
        world.checkin(trial, "lost")
    again = world.checkout(program="p")
    assert world.granted(again) or world.waiting(again)
    assert world.refused(world.checkout(program="p")) == "ProgramQuarantined"


def test_a_trial_that_is_moved_to_another_worker_is_still_the_trial() -> None:
    world = quarantined()
    trial = world.checkout(program="p", now=30.0)
    world.remove(trial)
    assert world.granted(trial)
    assert world.refused(world.checkout(program="p")) == "ProgramQuarantined"
    world.checkin(trial)
    assert world.core.quarantine.held() == ()


def test_a_call_that_began_before_the_quarantine_does_not_end_it() -> None:
    world = World.ready(4, quarantine_after=3)
    early = world.checkout(program="p")
    for _ in range(3):
        crash(world)
    world.checkin(early)
    assert world.core.quarantine.held() == ("p",)


def test_release_lets_a_program_run_again_at_once() -> None:
    world = quarantined()
    assert world.do(Release("p")) == []
    assert world.events == ["program.released"]
    assert world.granted(world.checkout(program="p"))
    assert world.do(Release("p")) == []
    assert world.events == []


def test_a_lease_without_a_program_is_told_of_the_quarantine_when_it_starts_a_run() -> None:
    world = quarantined()
    lease = world.checkout()
    world.do(RunStarted(lease, "p"))
    assert world.refused(lease) == "ProgramQuarantined"
    assert world.granted(lease), "it keeps its worker"
    world.do(RunStarted(lease, "q"))
    assert world.refused(lease) is None
    world.do(RunEnded(lease, "ok"))


def test_a_run_of_a_lease_can_be_the_trial_and_only_one_is() -> None:
    world = quarantined()
    lease = world.checkout(now=30.0)
    world.do(RunStarted(lease, "p"))
    world.do(RunEnded(lease, "none"))
    trial = world.checkout(program="p")
    assert world.granted(trial)
    world.cancel(lease)
    assert world.refused(world.checkout(program="p")) == "ProgramQuarantined", "the trial is still under way"


def test_a_lease_whose_run_was_good_does_not_answer_for_it_any_more() -> None:
    world = World.ready(1, quarantine_after=1)
    lease = world.checkout()
    world.do(RunStarted(lease, "p"))
    world.do(RunEnded(lease, "ok"))
    world.exit(1)
    assert world.core.quarantine.held() == ()


def test_the_programs_and_suspects_that_are_remembered_are_bounded() -> None:
    subject = Quarantine(after=2, time_s=30.0)
    for number in range(MAX_TRACKED_PROGRAMS + 10):
        subject.died([(f"p{number}", number)], exit_report(number), 0.0)
        subject.died([(f"a{number}", number), (f"b{number}", number)], exit_report(number), 0.0)
    assert len(subject.records) == MAX_TRACKED_PROGRAMS
    assert len(subject.suspects) == MAX_TRACKED_PROGRAMS


def test_a_quarantined_program_costs_no_worker() -> None:
    world = quarantined()
    started = world.core.counters.started
    for _ in range(10):
        world.checkout(program="p")
        assert of(world.said, Grant, Spawn, Kill) == []
    assert world.core.counters.started == started


def test_a_call_that_comes_back_from_a_verdict_after_its_program_was_quarantined_is_refused() -> None:
    world = World.ready(3, quarantine_after=1)
    lease = world.checkout(program="p")
    crash(world)
    assert of(world.skip(lease), Grant, Reject) == [Reject(lease)]
    assert world.refused(lease) == "ProgramQuarantined"

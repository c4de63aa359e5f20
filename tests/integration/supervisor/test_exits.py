"""Why a worker ended: every combination of order and end, without processes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from dspool.protocol.limits import DUMP_SIGNAL
from dspool.supervisor.boot import BootFailure
from dspool.supervisor.exits import TEMPLATE_DIED, Ending, Order, build_report, explain, signal_name
from dspool.supervisor.memory import OomCounter
from dspool.supervisor.process import UNKNOWN_STATUS, ExitStatus

pytestmark = pytest.mark.unit

STOP = Order(kind="stop", reason="removed", detail="by a stop", in_time=True)
KILL = Order(kind="kill", reason="timeout", detail="by a kill", in_time=True)
LATE_KILL = Order(kind="kill", reason="timeout", detail="by a late kill", in_time=False)
LATE_RESIZE = Order(kind="kill", reason="resized", detail="by a late resize", in_time=False)


def code(number: int) -> ExitStatus:
    return ExitStatus(code=number, known=True)


def ended_by(signum: int) -> ExitStatus:
    return ExitStatus(signal=signum, known=True)


ORPHANED = ExitStatus(orphaned=True)
KILLED, CRASHED, TERMINATED = ended_by(signal.SIGKILL), ended_by(signal.SIGSEGV), ended_by(signal.SIGTERM)


def ending(status: ExitStatus, *orders: Order, ready: bool = True, **more: Any) -> Ending:
    return Ending(
        worker_id=1,
        pid=2,
        start_method="spawn",
        was_ready=ready,
        age_s=3.0,
        orders=list(orders),
        status=status,
        **more,
    )


@pytest.mark.parametrize(
    ("given", "reason", "detail"),
    [
        (ending(KILLED, KILL), "timeout", "by a kill"),
        (ending(CRASHED, KILL), "crash", "killed by SIGSEGV"),
        (
            ending(CRASHED, KILL, signals={DUMP_SIGNAL}),
            "timeout",
            "by a kill; killed by SIGSEGV as its stacks were dumped",
        ),
        (ending(CRASHED, LATE_KILL, signals={DUMP_SIGNAL}), "crash", "killed by SIGSEGV"),
        (ending(code(0), KILL), "exited", "exit code 0"),
        (ending(code(3), KILL), "exited", "exit code 3"),
        (ending(UNKNOWN_STATUS, KILL), "timeout", "by a kill"),
        (ending(KILLED, LATE_KILL), "crash", "killed by SIGKILL"),
        (ending(UNKNOWN_STATUS, LATE_KILL), "exited", "its exit status is unknown"),
        (ending(code(0), LATE_KILL), "exited", "exit code 0"),
        (ending(code(0), LATE_RESIZE), "resized", "by a late resize"),
        (ending(code(1), LATE_RESIZE), "exited", "exit code 1"),
        (ending(KILLED, LATE_RESIZE), "crash", "killed by SIGKILL"),
        (ending(code(0), STOP), "removed", "by a stop"),
        (ending(code(0), STOP, KILL), "removed", "by a stop"),
        (ending(KILLED, STOP, KILL), "timeout", "by a kill"),
        (ending(KILLED, STOP), "removed", "by a stop"),
        (ending(TERMINATED, STOP), "crash", "killed by SIGTERM"),
        (ending(TERMINATED, STOP, signals={signal.SIGTERM}), "removed", "by a stop"),
        (ending(code(3), STOP), "exited", "exit code 3"),
        (ending(code(76)), "protocol_error", "exit code 76"),
        (ending(KILLED), "crash", "killed by SIGKILL"),
        (ending(KILLED, out_of_memory=True), "oom_suspect", "killed by SIGKILL, perhaps out of memory"),
        (ending(UNKNOWN_STATUS), "exited", "its exit status is unknown"),
        (ending(code(0), ready=False), "boot_error", "exit code 0 before it was ready"),
        (ending(code(1), KILL, ready=False), "timeout", "by a kill"),
        (ending(CRASHED, KILL, ready=False), "boot_error", "killed by SIGSEGV before it was ready"),
        (
            ending(KILLED, ready=False, output_tail="a\nb \n\n"),
            "boot_error",
            "killed by SIGKILL before it was ready: b",
        ),
        (ending(ORPHANED, ready=False), "boot_error", TEMPLATE_DIED),
        (ending(ORPHANED, KILL, ready=False), "timeout", "by a kill"),
        (ending(ORPHANED), "exited", "its exit status is unknown"),
        (ending(KILLED, KILL, ready=False, failure=BootFailure("no")), "boot_error", "no"),
        (
            ending(UNKNOWN_STATUS, ready=False, failure=BootFailure("slow", reason="start_timeout")),
            "start_timeout",
            "slow",
        ),
    ],
)
def test_the_reason_fits_the_end(given: Ending, reason: str, detail: str) -> None:
    assert explain(given) == (reason, detail)


def test_the_report_has_everything() -> None:
    failure = BootFailure("no room", "Traceback")
    status = ExitStatus(signal=signal.SIGKILL, known=True, peak_rss_bytes=7)
    given = ending(
        status, ready=False, failure=failure, missing="no dump", output_tail="t", stack_dump="s", oom_kills=3
    )
    report = build_report(given)
    assert (report.worker_id, report.pid, report.age_s, report.start_method) == (1, 2, 3.0, "spawn")
    assert (report.reason, report.detail, report.remote_traceback) == ("boot_error", "no room; no dump", "Traceback")
    assert (report.signal, report.exit_code, report.status_known, report.peak_rss_bytes) == ("SIGKILL", None, True, 7)
    assert (report.output_tail, report.stack_dump, report.oom_kills) == ("t", "s", 3)


def test_the_report_of_a_worker_whose_template_hung_has_the_templates_stacks() -> None:
    failure = BootFailure("slow", stack_dump="of the template", reason="start_timeout")
    assert build_report(ending(UNKNOWN_STATUS, ready=False, failure=failure)).stack_dump == "of the template"


def test_every_signal_has_a_name() -> None:
    assert signal_name(signal.SIGSEGV) == "SIGSEGV"
    assert signal_name(signal.SIGRTMIN + 7) == "SIGRTMIN+7"
    assert signal_name(33) == "signal 33"


def test_each_out_of_memory_kill_explains_one_death(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\noom 9\noom_kill 2\noom_group_kill 0\n")
    counter = OomCounter([tmp_path / "missing", events])
    assert not counter.explains_a_kill()
    events.write_text("oom_kill 4\n")
    assert [counter.explains_a_kill() for _ in range(3)] == [True, True, False]
    events.unlink()
    assert not counter.explains_a_kill()


def test_without_a_counter_nothing_is_explained() -> None:
    assert not OomCounter([]).explains_a_kill()
    assert OomCounter([]).count() is None
    OomCounter()


@pytest.mark.parametrize(("peak", "suspected"), [(None, False), (249, False), (250, True), (5000, True)])
def test_a_worker_that_had_a_quarter_of_the_memory_is_suspected_without_a_counter(
    peak: int | None, suspected: bool
) -> None:
    assert OomCounter([], limit_bytes=1000).suspected(peak) is suspected


def test_an_out_of_memory_kill_makes_a_small_worker_suspected(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("oom_kill 0\n")
    counter = OomCounter([events], limit_bytes=1000)
    assert not counter.suspected(1)
    events.write_text("oom_kill 1\n")
    assert counter.count() == 1
    assert [counter.suspected(1) for _ in range(2)] == [True, False]

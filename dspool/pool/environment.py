"""check_environment: whether a pool with these options could do its work here, found out before it has any."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from anyio.from_thread import start_blocking_portal

from dspool.errors import DspoolError, OptionsError
from dspool.options import PoolOptions
from dspool.pool.programs import ProgramStore
from dspool.pool.starts import asked_of
from dspool.protocol.messages import NamedProgram
from dspool.supervisor import environment
from dspool.supervisor.environment.asked import Asked, Kind, Program
from dspool.supervisor.environment.trial import Trial
from dspool.supervisor.launch import Launcher
from dspool.types import Check, EnvironmentReport, ExitReport


def check_environment(
    options: PoolOptions | None = None,
    *,
    programs: Iterable[Any] = (),
    start: bool = True,
    launcher: Launcher | None = None,
    **overrides: Any,
) -> EnvironmentReport:
    """Look whether a pool with these options could do its work here, before one is trusted.

        report = dspool.check_environment(workers=4, lm="openai/gpt-4o-mini", required_packages=["pandas>=2"])
        for check in report.failed:
            print(check.name, check.reason, check.advice)

    Interpreter, versions, required packages, keys, limits, DSPy's cache; and by starting two workers and ending them
    again: template, protocol, preload modules, programs. No program is run and no LM is called. It blocks, for a second
    or a few: in async code call it by `anyio.to_thread.run_sync` or `asyncio.to_thread`.

    Args:
        options: a PoolOptions; keywords override it.
        programs: what has to load beside the programs of `warm=`, in any form that `run` takes.
        start: whether processes are started for it. False: only what can be looked at without, some milliseconds; what
            was left out is in the report's `skipped`.
        launcher: starts workers in place of the start method; for tests with doubles.
        overrides: options by keyword; see PoolOptions.

    Returns:
        The report. `ok` is whether nothing failed; `failed` and `warnings` are the checks that say what and why.

    Raises:
        OptionsError: an option is unknown or out of range, or `programs` is no list.
        KeyboardInterrupt: as it is; nothing is left running then either.
    """
    if isinstance(programs, str | Mapping) or not isinstance(programs, Iterable):
        raise OptionsError(f"programs is a list, also of one: programs=[{programs!r:.80}]")
    if "program" in overrides:
        raise OptionsError("unknown option 'program'; programs= takes a list of them")
    return report_on(PoolOptions.build(options, overrides), programs, start=start, launcher=launcher)


def report_on(
    options: PoolOptions,
    programs: Iterable[Any],
    *,
    start: bool,
    launcher: Launcher | None = None,
    tell: Callable[[Check], object] = lambda check: None,
) -> EnvironmentReport:
    """The same for options that were read; `tell` is told each check as soon as it is made."""
    checks: list[Check] = []
    skipped: dict[str, None] = {}
    asked = asked_of(options, tuple(_programs(options, programs)), launcher)
    for found in environment.look(asked, _try_start if start else None):
        if isinstance(found, Check):
            checks.append(found)
            tell(found)
        else:
            skipped[found] = None
    return EnvironmentReport(pool=options.name, checks=tuple(checks), skipped=tuple(skipped))


def _programs(options: PoolOptions, programs: Iterable[Any]) -> Iterator[Program]:
    store = ProgramStore(options)
    for given in (*options.warm, *programs):
        label = given if isinstance(given, str) else type(given).__qualname__
        try:
            program = store.resolve(given)
        except DspoolError as error:
            yield Program(f"{label:.100}", None, str(error).removeprefix(f"pool {options.name!r}: "))
        else:
            yield Program(program.label, NamedProgram(program.program_id, program.spec))


def _try_start(asked: Asked, kind: Kind, programs: tuple[Program, ...]) -> Trial:
    """On a loop of its own, in a thread: the caller may be in a loop itself, and an interrupt ends it in any case."""
    with contextlib.ExitStack() as stack:
        try:
            portal = stack.enter_context(start_blocking_portal())
        except (OSError, RuntimeError) as error:  # no descriptor is left, or no thread
            detail = f"the system refuses what a start takes ({error}); see the limits above"
            report = ExitReport(worker_id=0, pid=None, reason="boot_error", detail=detail, status_known=False)
            return Trial(start_method=str(asked.options.start_method), failure=report)
        trial: Trial = portal.start_task_soon(environment.try_start, asked, kind, programs).result()
        return trial

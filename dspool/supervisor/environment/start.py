"""What a trial of a start showed: template, worker, preload modules, programs."""

from __future__ import annotations

from dspool.protocol.messages import PROTOCOL_VERSION
from dspool.supervisor.environment.asked import Asked, Finding, Kind, counted, failed, good, warning
from dspool.supervisor.environment.facts import failing_import
from dspool.supervisor.environment.trial import Trial, end_of


def template(asked: Asked, kind: Kind, trial: Trial) -> list[Finding]:
    """Whether workers can be forked from a template, or why they are spawned."""
    if asked.options.start_method != "template":
        return []
    if trial.fallback:
        told = f"workers are spawned, each with its own imports and memory: {trial.fallback}"
        advice = (
            "let the module do that at a program's first call, not when it is imported; or " if kind.preload else ""
        )
        return [warning(told, f"{advice}say start_method='spawn', if that is how it shall be", kind.subject)]
    if trial.failure is not None and not trial.took_s:
        return []
    modules = f"; {counted(len(kind.preload), 'preload module')} broke no rule" if kind.preload else ""
    return [good(f"workers are forked from it{modules}", kind.subject)]


def worker(asked: Asked, kind: Kind, trial: Trial) -> Finding:
    """Whether a worker starts, how long that takes, and which protocol it speaks."""
    report = trial.failure
    if report is None:
        first, *later = trial.took_s
        told = f"started ({trial.start_method}), ready after {first:.2f} s"
        if later and trial.start_method == "template":
            told += f" with its template, the next after {later[0] * 1000:.0f} ms"
        return good(f"{told}; protocol version {PROTOCOL_VERSION}, Python {trial.python}", kind.subject)
    told = f"a worker can't be started: {end_of(report)}"
    if "protocol version" in report.detail:
        advice = f"install the dspool that is used here for {asked.options.executable} too"
    elif report.reason == "start_timeout":
        advice = "see what its start waits for (--traceback shows its stacks); or raise start_timeout_s"
    else:
        advice = "see the preload check below" if kind.preload else "see the error; it ends each worker's start"
    tail = " ".join(report.output_tail.split())
    if tail and not report.remote_traceback:
        told += f"; its last output: {tail}"
    return failed(told, advice, kind.subject, report.remote_traceback or report.stack_dump)


def preload(asked: Asked, kind: Kind, trial: Trial) -> list[Finding]:
    """Each module of `preload=`. They were imported by the trial; where that failed, they are imported one by one."""
    if not kind.preload:
        return [good("none", kind.subject)]
    if trial.took_s:
        return [good("is imported", _in(module, kind)) for module in kind.preload]
    found = failing_import(
        asked.options.executable, asked.sys_path, kind.preload, kind.environment, asked.options.start_timeout_s
    )
    if found is None:
        return [good("is imported, alone in a process", _in(module, kind)) for module in kind.preload]
    culprit, problem = found
    good_ones = kind.preload[: kind.preload.index(culprit)]
    return [
        *(good("is imported", _in(module, kind)) for module in good_ones),
        failed(f"can't be imported: {problem}", _advice(asked, problem), _in(culprit, kind)),
    ]


def _advice(asked: Asked, problem: str) -> str:
    if problem.startswith("ModuleNotFoundError"):
        return (
            f"install it for {asked.options.executable}, or correct preload=; workers import from the sys.path of the "
            "process that opens the pool"
        )
    return "correct the module, or take it out of preload="


def program(asked: Asked, kind: Kind, trial: Trial) -> list[Finding]:
    """Each program of `warm=` and each that was named: loaded in a worker, not run."""
    return [
        failed(
            f"doesn't load: {loaded.problem}",
            "correct it; every call of it would fail the same way",
            _in(loaded.label, kind),
            loaded.traceback,
        )
        if loaded.problem
        else good("loads", _in(loaded.label, kind))
        for loaded in trial.programs
    ]


def _in(subject: str, kind: Kind) -> str:
    """A module's or program's name; with the workers that it is about, where there are several kinds."""
    return f"{subject} in {kind.subject}" if kind.subject else subject

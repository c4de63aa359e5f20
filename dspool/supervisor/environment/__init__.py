"""The checks behind `dspool doctor` and `dspool.check_environment`, and the quick ones of them that open() makes.

    asked.py        what is asked: a pool's options, read; and the form of an answer
    machine.py      the system, descriptors, memory, processes, cores
    caches.py       DSPy's cache folder
    models.py       keys, and what makes an LM's first call slow
    interpreter.py  the workers' interpreter and what is installed for it; asks by
    facts.py        ... running
    probe.py        ... in it
    start.py        what a trial start showed, by
    trial.py        ... starting workers as a pool does

Rules:
    1. A check is a function from what is asked (and what was found out for it) to findings. Only facts.py and trial.py
       start processes, and leave none behind.
    2. open() makes those checks of QUICK that are in AT_OPEN: no process, and under 5 ms. Of what fails it raises what
       makes a start impossible, and tells the rest once.
    3. No finding holds the value of a variable or of an LM's argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from dspool.errors import DspoolError, OptionsError, WorkerStartError
from dspool.supervisor.environment import caches, interpreter, machine, models, start
from dspool.supervisor.environment.asked import Asked, Finding, Kind, Program
from dspool.supervisor.environment.facts import Facts
from dspool.supervisor.environment.trial import Trial, try_start
from dspool.types import Check

__all__ = ["AT_OPEN", "CHECKS", "Asked", "Program", "at_open", "look", "try_start"]

MAX_REASON_CHARS = 800

Found = Finding | list[Finding]
TryStart = Callable[[Asked, Kind, tuple[Program, ...]], Trial]


class CheckKind(NamedTuple):
    """One check: what makes it, and what it looks at, for the reference page."""

    look: Callable[..., Found]
    text: str


QUICK: dict[str, CheckKind] = {
    "system": CheckKind(machine.system, "The operating system: Linux is tested; and whether it has pidfds."),
    "interpreter": CheckKind(interpreter.interpreter, "The workers' interpreter is there and can be run."),
    "lm": CheckKind(models.lm, "The pool's LM and adapter can be sent to a worker."),
    "lm_key": CheckKind(
        models.lm_key, "Each LM of the pool and of the programs has a key, as far as that can be known without a call."
    ),
    "lm_gateway": CheckKind(
        models.lm_gateway,
        "No variable, such as OPENAI_BASE_URL, sends an LM's calls by way of litellm, which takes 3 s to import.",
    ),
    "lm_limits": CheckKind(models.lm_limits, "Each model of `lm_limits=` is spelled as the LM that it is for."),
    "descriptors": CheckKind(machine.descriptors, "RLIMIT_NOFILE against workers x (slots + 6)."),
    "memory": CheckKind(
        machine.memory, "What the workers take at least, against the machine's memory and the cgroup's limit."
    ),
    "processes": CheckKind(machine.processes, "What they take of RLIMIT_NPROC and of the cgroup's pids.max."),
    "cores": CheckKind(machine.cores, "Workers against the cores that may be used."),
    "cache": CheckKind(
        caches.cache, "DSPy's cache folder: nobody else may write there, this user may, and its disk is good for it."
    ),
    "cache_privacy": CheckKind(caches.cache_privacy, "Nobody else can read it."),
}
"""Those that start no process: look(asked)."""

OF_INTERPRETER: dict[str, CheckKind] = {
    "python": CheckKind(interpreter.python, "Its version is supported."),
    "dspool": CheckKind(interpreter.dspool, "dspool is installed for it, in this version."),
    "dspy": CheckKind(interpreter.dspy, "The version of DSPy that is installed for it is supported."),
    "litellm": CheckKind(interpreter.litellm, "The version of litellm is one that this DSPy takes."),
    "packages": CheckKind(interpreter.packages, "`required_packages=` are installed for it."),
    "pth_files": CheckKind(
        interpreter.code_in_pth, "No unknown `.pth` file runs code whenever it starts; known ones are named."
    ),
}
"""Those that ask the interpreter: look(asked, kind, facts), for each kind of worker."""

OF_START: dict[str, CheckKind] = {
    "template": CheckKind(
        start.template, "Workers can be forked from a template; else which preload module breaks which rule."
    ),
    "worker": CheckKind(start.worker, "A worker starts, and speaks this protocol version; how long that takes."),
    "preload": CheckKind(start.preload, "Each module of `preload=` is imported."),
    "program": CheckKind(start.program, "Each program of `warm=`, and each that was named, loads. None is run."),
}
"""Those that start workers: look(asked, kind, trial), for each kind of worker."""

CHECKS: Mapping[str, CheckKind] = MappingProxyType({**QUICK, **OF_INTERPRETER, **OF_START})

AT_OPEN: dict[str, type[DspoolError] | None] = {
    "descriptors": OptionsError,
    "interpreter": WorkerStartError,
    "packages": WorkerStartError,
    "memory": None,
    "processes": None,
    "lm_gateway": None,
    "lm_limits": None,
    "cache": None,
}
"""Those that open() makes -> what it raises where one fails; None: it tells it.

Of the others: a missing key is told by the pool itself; cores and who may read the cache are for whoever asks.
"""
_OF_DSPY = frozenset({"lm_gateway", "lm_limits", "cache", "cache_privacy"})
"""Of no concern to a pool that runs no DSPy."""


def at_open(asked: Asked, *, real: bool) -> list[Check]:
    """Make the checks of open().

    Args:
        asked: the options, read. Programs are not looked at.
        real: whether its workers are processes of the options' interpreter, and not doubles.

    Returns:
        What is to be told.

    Raises:
        OptionsError, WorkerStartError: no worker could be started; nothing was.
    """
    told = []
    for name, error in AT_OPEN.items():
        if not real and name != "descriptors":
            continue
        look = interpreter.packages_here if name == "packages" else QUICK[name].look
        if name in _OF_DSPY and not asked.uses_dspy:
            continue
        for check in _named(name, look(asked)):
            if check.status == "failed" and error is not None:
                advice = check.advice[:1].upper() + check.advice[1:]
                raise error(f"pool {asked.options.name!r}: {check.reason}. {advice}")
            if check.status != "ok":
                told.append(check)
    return told


def look(asked: Asked, try_start: TryStart | None) -> Iterator[Check | str]:
    """Make all checks, one after the other.

    Args:
        asked: the options, read.
        try_start: starts workers for a trial; None: no process is started.

    Yields:
        Each check, and the names of those that can't be made or were not asked for. What interpreters and workers wrote
        is in it without the keys that they knew, and shortened.
    """
    mask = asked.secrets().mask
    for found in _look(asked, try_start):
        yield found if isinstance(found, str) else _fit_to_tell(found, mask)


def _look(asked: Asked, try_start: TryStart | None) -> Iterator[Check | str]:
    for name, kind_of_check in QUICK.items():
        yield from _named(name, kind_of_check.look(asked))
    if try_start is None:
        here = interpreter.packages_here(asked)
        yield from _named("packages", here)
        yield from (name for name in (*OF_INTERPRETER, *OF_START) if not (name == "packages" and here))
        return
    for number, kind in enumerate(asked.kinds()):
        programs = asked.programs if number == 0 else tuple(p for p in asked.programs if p.program is not None)
        yield from _look_at(asked, kind, programs, try_start)


def _fit_to_tell(check: Check, mask: Callable[[str], str]) -> Check:
    """Mask first, then cut: half a key is a leak too. A long reason loses its middle."""
    reason = mask(check.reason)
    if len(reason) > MAX_REASON_CHARS:
        reason = f"{reason[: MAX_REASON_CHARS // 2]} ... {reason[-MAX_REASON_CHARS // 2 :]}"
    return msgspec.structs.replace(check, reason=reason, details=mask(check.details))


def _look_at(asked: Asked, kind: Kind, programs: tuple[Program, ...], try_start: TryStart) -> Iterator[Check | str]:
    rest: Iterable[str] = (*OF_INTERPRETER, *OF_START)
    if isinstance(interpreter.find_interpreter(asked, kind), interpreter.Missing):
        yield from rest
        return
    facts = interpreter.ask(asked, kind)
    if isinstance(facts, Finding):
        yield facts.under("interpreter")
        yield from rest
        return
    yield from _all(OF_INTERPRETER, asked, kind, facts)
    trial = try_start(asked, kind, programs)
    yield from _all(OF_START, asked, kind, trial)
    if trial.failure is not None and len(trial.programs) < len(programs):
        yield "program"


def _all(checks: Mapping[str, CheckKind], asked: Asked, kind: Kind, found: Facts | Trial) -> Iterator[Check]:
    for name, kind_of_check in checks.items():
        yield from _named(name, kind_of_check.look(asked, kind, found))


def _named(name: str, found: Any) -> list[Check]:
    return [finding.under(name) for finding in (found if isinstance(found, list) else [found])]

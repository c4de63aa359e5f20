"""What is asked of an environment, and the form in which a check answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from dspool.options import PoolOptions, WorkerGroup
from dspool.protocol.messages import BootConfig, DefinedProgram, LMSpec, NamedProgram, PickledProgram
from dspool.protocol.secrets import Secrets
from dspool.supervisor.launch import Launcher, worker_environment
from dspool.types import Check, CheckStatus


class Finding(NamedTuple):
    """A check's answer, before it has the check's name."""

    status: CheckStatus
    reason: str
    advice: str = ""
    subject: str = ""
    details: str = ""

    def under(self, name: str) -> Check:
        """The same as a Check of that name."""
        return Check(name=name, **self._asdict())


def good(reason: str, subject: str = "") -> Finding:
    """All is well."""
    return Finding("ok", reason, subject=subject)


def warning(reason: str, advice: str, subject: str = "") -> Finding:
    """It works, and may hurt."""
    return Finding("warning", reason, advice, subject)


def failed(reason: str, advice: str, subject: str = "", details: str = "") -> Finding:
    """It has to be put right."""
    return Finding("failed", reason, advice, subject, details)


class Program(NamedTuple):
    """A program that has to load; `problem` says why it can't even be sent."""

    label: str
    program: NamedProgram | None
    problem: str = ""


class Kind(NamedTuple):
    """Workers that are started alike: the same environment and preload modules.

    Attributes:
        group: the first of their groups.
        subject: the groups' names, where the pool has several kinds.
        preload: the modules.
        environment: the variables, all of them. They may hold keys.
    """

    group: WorkerGroup
    subject: str
    preload: tuple[str, ...]
    environment: Mapping[str, str]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A pool's options, read as far as the checks need them.

    Attributes:
        options: the pool's.
        lm: its LM.
        problems: what is wrong with the LM or the adapter, by option.
        programs: those that have to load.
        uses_dspy: whether its workers will import DSPy for all that is known now.
        sys_path: where workers import from.
        make_launcher: makes the start method that the options ask for.
        boot_config: (worker_id, group name) -> what the handshake tells a worker; no program is in it.
    """

    options: PoolOptions
    lm: LMSpec | None = None
    problems: dict[str, str] = {}
    programs: tuple[Program, ...] = ()
    uses_dspy: bool = False
    sys_path: list[str] = []
    make_launcher: Callable[[], Launcher] | None = None
    boot_config: Callable[[int, str], BootConfig] | None = None

    def __repr__(self) -> str:
        return f"Asked(pool={self.options.name!r}, ...)"

    @property
    def workers(self) -> int:
        """How many there may be at once, overflow included."""
        return self.options.size + sum(group.overflow for group in self.options.groups)

    def kinds(self) -> list[Kind]:
        """The kinds of worker that the pool has."""
        alike: dict[object, list[WorkerGroup]] = {}
        for group in self.options.groups:
            alike.setdefault((tuple(sorted(self._env(group).items(), key=str)), group.preload), []).append(group)
        several = len(alike) > 1
        return [
            Kind(
                groups[0],
                ", ".join(group.name for group in groups) if several else "",
                (*self.options.preload, *groups[0].preload),
                worker_environment(self._env(groups[0])),
            )
            for groups in alike.values()
        ]

    def lms(self) -> dict[str, LMSpec]:
        """Digest -> each LM that is configured: the pool's and those that programs bring along."""
        found = [self.lm] if self.lm is not None else []
        for program in self.programs:
            match program.program and program.program.spec:
                case PickledProgram(lms=lms):
                    found += lms.values()
                case DefinedProgram(lm=LMSpec() as own):
                    found.append(own)
        return {spec.digest: spec for spec in found}

    def secrets(self) -> Secrets:
        """What no finding may hold: the keys in the workers' environments and of the LMs."""
        secrets = Secrets()
        for kind in self.kinds():
            secrets.add_environment(kind.environment)
        for spec in self.lms().values():
            secrets.add_lm(spec)
        return secrets

    def _env(self, group: WorkerGroup) -> dict[str, str | None]:
        return {**self.options.env, **group.env}


def counted(number: int, noun: str) -> str:
    """A number and its noun: "1 worker", "2 workers"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def megabytes(size: int) -> str:
    """A size in memory for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"

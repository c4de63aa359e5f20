"""What a scenario is asked for, and what it found: the row of the table that `python -m tests.chaos` prints.

A scenario is a function from a `Plan` to a `Finding`, in a module of `tests.chaos.scenarios` that carries its name. It
draws everything random from `Plan.seed`, opens its own pools and ends them, and judges nothing by the clock but what
`measured` says: what must never happen is counted in `lost` and `left`, and each of these has to be zero.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


class Size(enum.Enum):
    """How much of a scenario is done."""

    SHORT = "short"  # in CI: a few seconds
    CHAOS = "chaos"  # `make chaos`: all scenarios in a minute or two
    SOAK = "soak"  # `make soak`: the numbers of docs/explanation/reliability.md


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run of one scenario.

    Attributes:
        seed: What its random choices are drawn from.
        size: How much is done.
        say: Takes a line about how far it is; for a person to read, at most one a second.
    """

    seed: int
    size: Size = Size.SHORT
    say: Callable[[str], None] = lambda _line: None

    def pick(self, *, short: int, chaos: int, soak: int) -> int:
        """The one of three amounts that this size asks for."""
        return {Size.SHORT: short, Size.CHAOS: chaos, Size.SOAK: soak}[self.size]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one run of a scenario did and saw.

    Attributes:
        scenario: Its name.
        seed: The plan's seed, which repeats the choices (not the machine's timing).
        done: What was done, and how often.
        lost: What must not happen: answers lost, doubled or given to the wrong caller, ... All zero, or the run failed.
        left: What must not stay: processes, descriptors, threads, files, ... All zero, or the run failed.
        measured: Times and sizes, the unit last in the name. Nothing fails by them: the machine may be busy.
        missed: A sentence for each goal of time or size that was missed.
    """

    scenario: str
    seed: int
    done: Mapping[str, int]
    lost: Mapping[str, int]
    left: Mapping[str, int]
    measured: Mapping[str, float] = field(default_factory=dict)
    missed: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether anything was lost or left."""
        return any(self.lost.values()) or any(self.left.values())

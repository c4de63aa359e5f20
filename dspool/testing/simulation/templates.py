"""The templates that workers are forked from: one per group, which starts, is renewed, may fail, and may die.

Rules:
    1. A worker is forked at once where its group's template lives; else it waits for the one that is being started.
    2. Renew lets the next fork start a new one. Where that can't be started the old one is kept; where there is no old
       one, those that wait can't be started.
    3. A template's death ends none of its workers. They are due from then on, and nobody can say how they ended later.
"""

from __future__ import annotations

from abc import abstractmethod

from dspool.pool.core import commands as c
from dspool.testing.simulation.parts import Kind, Process, Template
from dspool.testing.simulation.world import World
from dspool.types import ExitReason


class Templates(World):
    """The world with its templates."""

    @abstractmethod
    def _forked(self, process: Process) -> None:
        """The process exists; it boots now."""

    @abstractmethod
    def _die(self, process: Process, reason: ExitReason) -> None:
        """The process is dead from now on."""

    def _renewed(self, effect: c.Renew) -> None:
        self.generation += 1

    def _launch(self, process: Process) -> None:
        """Fork it from its group's template, which may have to be started first."""
        kind = self.kinds.setdefault(process.group, Kind())
        process.wanted = self.generation
        kind.waiting.append(process)
        self._serve(kind)

    def _serve(self, kind: Kind) -> None:
        """Fork those whose template lives; start one for the others."""
        waiting, kind.waiting = kind.waiting, []
        for process in waiting:
            template = kind.template
            if process.dead:
                continue
            if template is not None and template.alive and kind.generation >= process.wanted:
                process.template = template
                self._forked(process)
            else:
                kind.waiting.append(process)
        if kind.waiting and not kind.starting:
            self._start_template(kind)

    def _start_template(self, kind: Kind) -> None:
        kind.starting, generation = Template(), self.generation
        most = 8.0 if self._chance("slow_template") else 0.1
        starting = kind.starting
        self.at(self._soon(most), lambda: self._template_started(kind, starting, generation))

    def _template_started(self, kind: Kind, new: Template, generation: int) -> None:
        if kind.starting is not new:
            return  # it died meanwhile
        kind.starting = None
        if not self._chance("template_fails"):
            if kind.template is not None and kind.template.alive:
                self._note("template", "is renewed")
            kind.template, kind.generation = new, generation
        elif kind.template is not None and kind.template.alive:
            self._note("template", "is kept")
            kind.generation = generation
        else:
            self._note("template", "fails")
            for process in kind.waiting:
                if not process.dead:
                    self._die(process, "boot_error")
        self._serve(kind)

    def _template_dies(self) -> None:
        """One of them, or one that is being started."""
        kinds = [kind for kind in self.kinds.values() if kind.starting or (kind.template and kind.template.alive)]
        if not kinds:
            return
        kind = self.rng.choice(kinds)
        self._strikes("template_death")
        if kind.starting is not None:
            self._note("template", "dies as it starts")
            self._start_template(kind)
            return
        assert kind.template is not None
        kind.template.alive = False
        orphans = [each for each in self.processes.values() if each.template is kind.template and not each.dead]
        self._note("template", "dies under workers" if orphans else "dies alone")
        for process in orphans:
            self.at(self._soon(), lambda due=process.worker_id: self.step(c.Recycle(due)))  # type: ignore[misc]

"""Start method "template": workers are forked from a warm process, of which there is one for each kind of worker.

A kind is what workers must have in common to be forked from the same process: environment and preload modules. What the
manager's environment, sys.path and working directory are is looked at when a template is started, not for each worker.

Rules:
    1. A kind's template is started with its first worker, whose launch waits for it, and again when it has died.
    2. A template that can't be started fails the launches that wait for it, with its traceback. One that was killed as
       it started says nothing of the next one: up to TRIES are started.
    3. A template that must not be forked is no failure: the kind's workers are spawned from then on, and the listener
       is told why. renew() gives the template another chance.
    4. After renew() the first launch of a kind starts a new template. The old one forks nothing more and ends with its
       last worker; where the new one can't be started, the old one is kept. A kind that was spawned has no old one: as
       long as its new template can't be started its launches fail, as by rule 2.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskGroup, TaskStatus

from dspool.errors import WorkerStartError
from dspool.protocol.records import Prepare
from dspool.supervisor.boot import LaunchFailed
from dspool.supervisor.launch import Launcher, LaunchRequest, SpawnLauncher, start_failure
from dspool.supervisor.listener import Listener
from dspool.supervisor.process import Launched
from dspool.supervisor.starting import start_soon
from dspool.supervisor.template import TEMPLATE_COMMAND, Template, TemplateGone, Unsafe

CLOSE_WAIT_S = 1.0
"""How long templates may take to end, and to be dead, if there is so much time; killing one takes milliseconds."""
CLOSE_WAIT_MIN_S = 0.1
"""What they get in any case: one that is well needs a few milliseconds to kill what escaped from dead workers."""
TRIES = 3
"""Templates that may fail in a row under one launch."""


class _Kind:
    """The templates of one kind of worker.

    Attributes:
        template: the one that workers are forked from.
        starting: the one that is to take its place.
        unsafe: why this kind is spawned instead; empty where it is forked.
        generation: the launcher's, when that was found out.
    """

    def __init__(self) -> None:
        self.template: Template | None = None
        self.starting: tuple[Template, int] | None = None
        self.unsafe = ""
        self.generation = 0


class TemplateLauncher(Launcher):
    """Start method "template".

    Args:
        start_timeout_s: how long a worker may take to be ready, its template included.
        needs_dspy: whether templates import DSPy; asked as each is started.
        command: the template's interpreter's arguments, before those that name the file descriptors.
        mask: takes keys out of what templates write.
    """

    start_method: str = "template"

    def __init__(
        self,
        *,
        start_timeout_s: float = 60.0,
        needs_dspy: Callable[[], bool] = lambda: "dspy" in sys.modules,
        command: tuple[str, ...] = TEMPLATE_COMMAND,
        mask: Callable[[str], str] = str,
    ) -> None:
        self._start_timeout_s = start_timeout_s
        self._needs_dspy = needs_dspy
        self._command = command
        self._mask = mask
        self._spawn = SpawnLauncher()
        self._kinds: dict[object, _Kind] = {}
        self._templates: set[Template] = set()
        self._generation = 0
        self._listener: Listener
        self._tasks: TaskGroup | None = None
        self._closing: anyio.Event

    async def serve(self, listener: Listener, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Look after the templates; see Launcher.serve."""
        self._listener, self._closing = listener, anyio.Event()
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                task_status.started()
                await self._closing.wait()
        finally:
            self._tasks = None

    async def launch(self, request: LaunchRequest) -> Launched:
        """Fork one worker, or spawn it where its kind must not be forked; see Launcher.launch."""
        key = (tuple(sorted(request.env.items())), request.preload)
        kind = self._kinds.setdefault(key, _Kind())
        # Not what it is later: renewed faster than a template starts, no worker would ever be launched.
        wanted = self._generation
        for _ in range(TRIES):
            template = await self._template(kind, request, wanted)
            if template is None:
                return await self._spawn.launch(request)
            try:
                return await template.fork(request)
            except TemplateGone:
                continue
            except Unsafe as error:
                if template is kind.template:
                    self._fall_back(kind, template, str(error), kind.generation)
            except OSError as error:
                raise WorkerStartError(start_failure(error, request)) from error
        if kind.unsafe:
            return await self._spawn.launch(request)
        raise WorkerStartError(
            f"{TRIES} templates in a row died, or must not be forked, as this worker was to be forked; see the log"
        )

    def renew(self) -> None:
        """Start new templates with the next launches; see Launcher.renew."""
        self._generation += 1

    async def aclose(self, deadline: float) -> None:
        """End the templates, more and more firmly; those that live at the deadline are killed then."""
        if self._tasks is None:
            return
        self._closing.set()
        deadline = max(deadline, time.monotonic() + CLOSE_WAIT_MIN_S)
        for end, share in ((Template.end, 0.5), (Template.kill, 1.0)):
            for template in list(self._templates):
                end(template)
            with anyio.move_on_after(min(CLOSE_WAIT_S, share * (deadline - time.monotonic()))):
                for template in list(self._templates):
                    await template.gone.wait()
        for template in list(self._templates):
            template.abandon()
        # Each is dead within milliseconds, or else given up; serve() ends with the last one.

    def end_without_loop(self) -> None:
        """In place of aclose(); see Launcher.end_without_loop."""
        for template in list(self._templates):
            template.end_without_loop()
        self._templates.clear()

    async def _template(self, kind: _Kind, request: LaunchRequest, wanted: int) -> Template | None:
        """The template to fork from, of this generation or later; waits for it. None where this kind is spawned."""
        killed = 0
        while kind.generation < wanted or not (kind.unsafe or (kind.template and kind.template.usable)):
            if kind.starting is None or kind.starting[0].gone.is_set():
                kind.starting = (self._start(request), self._generation)
            starting, generation = kind.starting
            await starting.settled.wait()
            if kind.starting is not None and kind.starting[0] is starting:
                kind.starting = None
                self._settle(kind, starting, generation)
            if starting.failure is not None and not (kind.template and kind.template.usable):
                killed += starting.was_killed
                if starting.was_killed and killed < TRIES:
                    continue
                raise LaunchFailed(starting.failure)
        return None if kind.unsafe else kind.template

    def _start(self, request: LaunchRequest) -> Template:
        if self._tasks is None or self._closing.is_set():
            raise WorkerStartError("the pool is closing")
        prepare = Prepare(managers_sys_path(), list(request.preload), self._needs_dspy())
        template = Template(
            request,
            prepare,
            command=self._command,
            start_timeout_s=self._start_timeout_s,
            listener=self._listener,
            mask=self._mask,
        )
        start_soon(self._tasks, self._live, template)
        return template

    async def _live(self, template: Template) -> None:
        self._templates.add(template)
        if self._closing.is_set():
            template.end()
        try:
            await template.live()
        finally:
            self._templates.discard(template)

    def _settle(self, kind: _Kind, new: Template, generation: int) -> None:
        """A template was started, or couldn't be."""
        old = kind.template
        if new.failure is not None:
            if old is not None and old.usable:
                kind.generation = generation
                trace = new.failure.traceback or new.failure.stack_dump
                fields = {"detail": new.failure.detail, "traceback": trace}
                self._listener.start_method_event("pool.template_kept", fields)
        elif new.unsafe:
            self._fall_back(kind, new, new.unsafe, generation)
        else:
            kind.template, kind.generation = new, generation
            if old is not None:
                old.retire()
            if kind.unsafe:
                kind.unsafe = ""
                self._tell_start_method()

    def _fall_back(self, kind: _Kind, template: Template, reason: str, generation: int) -> None:
        """Spawn this kind's workers from now on."""
        template.retire()
        if kind.template is not None:
            kind.template.retire()
        if kind.unsafe != reason:
            kind.unsafe = reason
            self._tell_start_method()
        kind.template, kind.generation = None, generation

    def _tell_start_method(self) -> None:
        reasons = sorted({kind.unsafe for kind in self._kinds.values() if kind.unsafe})
        method = self._spawn.start_method if reasons else self.start_method
        self._listener.start_method_changed(method, "; ".join(reasons))


def managers_sys_path() -> list[str]:
    """Where this process imports from, wherever another one's working directory is."""
    return [os.path.abspath(entry) for entry in sys.path]

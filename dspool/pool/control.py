"""The control plane: one task beside the supervisor that carries out the core's orders, in order, and keeps its clock.

It runs on a loop of its own in Pool (a background thread) and on the application's loop in AsyncPool. Whoever gives it
an order wakes it through a socket pair: from any thread, from a signal handler, without ever blocking; wake-ups
coalesce.
"""

from __future__ import annotations

import socket
import time
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread

from dspool.errors import FrameTooLarge, OptionsError, PoolError
from dspool.options import PoolOptions
from dspool.pool.core import commands as c
from dspool.pool.core.states import PoolState
from dspool.pool.data_path import settle
from dspool.pool.driver import Driver
from dspool.pool.events import Events
from dspool.pool.limit_file import LimitFile
from dspool.pool.lm_keys import LMKeys
from dspool.pool.lm_specs import adapter_spec, lm_spec
from dspool.pool.programs import ProgramStore
from dspool.pool.session_lms import SessionLMs
from dspool.pool.starts import asked_of, boot_config, limits_spec, make_cache_folders, make_launcher
from dspool.pool.steps import Steps
from dspool.protocol.codec import MSGPACK
from dspool.protocol.importing import module_being_imported
from dspool.protocol.messages import HANDSHAKE_ID, BootConfig, LMSpec, NamedProgram, Request
from dspool.protocol.secrets import Secrets
from dspool.supervisor import boot, environment, forked
from dspool.supervisor.frame_log import FrameLog
from dspool.supervisor.launch import Launcher
from dspool.supervisor.starting import start, start_soon
from dspool.supervisor.supervisor import Supervisor

Drive = Callable[[Steps[None]], Coroutine[Any, Any, None]]
_EVENTS_CLOSE_S = 1.0


class ControlPlane:
    """Driver, supervisor and everything else that a pool has behind its calls.

    Args:
        options: the pool's options.
        launcher: starts workers; None: as the options say.
    """

    def __init__(self, options: PoolOptions, launcher: Launcher | None = None) -> None:
        if (module := module_being_imported()) is not None:
            raise PoolError(
                f"pool {options.name!r}: the module {module!r} opens a pool where it is imported, and this is a "
                "worker: its pool's workers would import it again, without end. Open the pool in a function, or under "
                '`if __name__ == "__main__":`; or move what workers import to a module of its own'
            )
        if launcher is None:
            make_cache_folders(options)
        self._findings = environment.at_open(asked_of(options), real=launcher is None)
        self.options = options
        self.serving = False
        """run() has made its first round."""
        self.driver = Driver(options, self.wake)
        self.events = Events(options.name, options.on_event)
        secrets = Secrets.of_environment()
        for env in (options.env, *(group.env for group in options.groups)):
            secrets.add_environment(env)
        self.lm_keys = LMKeys(options, self.events.publish, secrets)
        self.programs = ProgramStore(options, self.lm_keys.look)
        self.lm: LMSpec | None = lm_spec(options.lm) if options.lm is not None else None
        sessions = self.driver.core.sessions
        self.session_lms = SessionLMs(options.session_ttl_s, options.max_sessions, sessions.table.__contains__)
        self._adapter = adapter_spec(options.adapter) if options.adapter is not None else None
        self._warm = [
            NamedProgram(program.program_id, program.spec) for program in map(self.programs.resolve, options.warm)
        ]
        self.driver.warm = tuple(program.program_id for program in self._warm)
        self._limit_file: LimitFile | None = None
        self._check_boot_configs()
        if self.lm is not None:
            self.lm_keys.look(self.lm, everywhere=True)
        self._woken = False
        self.frame_log = FrameLog(options.debug_log, options.name) if options.debug_log is not None else None
        self.driver.frame_log = self.frame_log
        # What is wrong with an option has been found by now: nothing has to be closed for it.
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.setblocking(False)
        self._wake_in.setblocking(False)
        for sock in (self._wake_out, self._wake_in):
            forked.guard_socket(sock)
        launcher = launcher or make_launcher(options, secrets.mask)
        self.driver.start_method = launcher.start_method
        self.supervisor = Supervisor(
            options, launcher, self.driver, self._boot_config, frame_log=self.frame_log, secrets=secrets
        )
        self._performers: dict[type, Callable[[Any], None]] = {
            c.Spawn: lambda order: self.supervisor.start(order.worker_id, self.driver.core.groups[order.group].options),
            c.Stop: lambda order: self.supervisor.stop(order.worker_id, order.reason, order.deadline),
            c.Kill: lambda order: self.supervisor.kill(order.worker_id, order.reason, order.detail, dump=order.dump),
            c.Probe: lambda order: self.supervisor.probe(order.worker_id),
            c.Renew: lambda order: self.supervisor.renew(),
            c.Report: lambda order: self.events.publish(order.event, order.fields),
        }
        self._limit_file = LimitFile()

    def wake(self) -> None:
        """Wake the control plane; from anywhere."""
        if self._woken:
            return
        self._woken = True
        try:
            self._wake_in.send(b"\0")
        except OSError as error:
            if error.errno is None:
                raise  # a signal handler's own TimeoutError
            return  # it is being closed, or has a wake-up waiting already

    async def run(self, drive: Drive) -> None:
        """Serve until the pool is closed and its last worker is reaped.

        Args:
            drive: runs steps of the data path on this loop; for abandoned slots.
        """
        driver = self.driver
        try:
            async with anyio.create_task_group() as tasks:
                await start(tasks, self.supervisor.run)
                driver.tick()
                for check in self._findings:
                    fields = {"check": check.name, "status": check.status, "detail": check.reason}
                    self.events.publish("pool.environment", fields | {"advice": check.advice})
                while not self._finished():
                    self._perform(tasks, drive)
                    self.serving = True
                    await self._sleep()
                self._perform(tasks, drive)
                await self.supervisor.aclose(time.monotonic() + self.options.grace_s)
                tasks.cancel_scope.cancel()
        except BaseException as error:
            self.failed(error)
            raise
        finally:
            try:
                if self.events.pending:  # on a thread: a hook that blocks must not hold the application's loop up
                    with anyio.CancelScope(shield=True):
                        await anyio.to_thread.run_sync(self.events.close, _EVENTS_CLOSE_S)
            except RuntimeError:  # the system refuses a thread: what the hook was not told yet it may still hear
                self.events.close(0.0)
            finally:
                self._release()

    def _finished(self) -> bool:
        driver = self.driver
        if driver.broken is not None:
            return not driver.orders
        return driver.core.state is PoolState.CLOSED

    def _perform(self, tasks: anyio.abc.TaskGroup, drive: Drive) -> None:
        orders = self.driver.orders
        while orders:
            order = orders.popleft()
            performer = self._performers.get(type(order))
            if performer is not None:
                performer(order)
            elif isinstance(order, c.Abandon | c.CancelCall):
                if isinstance(order, c.CancelCall):
                    self._cancel(order)
                start_soon(tasks, drive, settle(self.driver, order.worker_id, order.slot, order.lease_id))

    def _cancel(self, order: c.CancelCall) -> None:
        """Tell the worker which request to give up: what its slot was asked last."""
        pipes = self.driver.pipes.get(order.worker_id)
        request_id = None if pipes is None else pipes[order.slot].asked
        if request_id is not None:
            self.supervisor.cancel(order.worker_id, request_id)

    async def _sleep(self) -> None:
        """Until there is an order, or the core wants a Tick."""
        driver = self.driver
        # A step that moves the deadline after we said until when we sleep wakes us; one that moved it before that is
        # seen when we look again.
        while (until := driver.next_deadline()) < driver.sleeps_until or driver.sleeps_until == 0.0:
            driver.sleeps_until = until
        if not driver.orders and not self._finished():
            left_s = driver.sleeps_until - time.monotonic()
            with anyio.move_on_after(max(0.0, left_s)):
                await anyio.wait_readable(self._wake_out)
        try:
            while self._wake_out.recv(64):
                pass
        except BlockingIOError:
            pass
        # Only now: (1) the flag is taken down, (2) somebody puts it up and writes, (3) we read that byte away, and from
        # then on everybody would believe that a wake-up is on its way.
        self._woken = False
        driver.sleeps_until = 0.0  # until the next sleep nobody needs to wake us for a deadline
        if driver.next_deadline() <= time.monotonic():
            driver.tick()

    def end_without_loop(self) -> None:
        """In place of run(), or of its rest, where its event loop ended before it: the workers are killed."""
        if not self.driver.over.is_set():
            self.supervisor.end_without_loop()
            self.events.close(0.0)
            self._release()

    def _release(self) -> None:
        self.driver.ended()
        if self.frame_log is not None:
            self.frame_log.close()
        self._wake_in.close()
        self._wake_out.close()
        if self._limit_file is not None:
            self._limit_file.close()

    def failed(self, error: BaseException) -> None:
        """The control plane itself failed, or its loop ends: nothing starts or stops any more."""
        if self.driver.broken is None and self.driver.core.state is not PoolState.CLOSED:
            self.driver.broken = error
        if isinstance(error, Exception):
            trace = "".join(traceback.format_exception(error))
            self.events.publish("pool.broken", {"error": repr(error), "traceback": trace})

    def _check_boot_configs(self) -> None:
        """What no frame carries is refused here: found when workers are told, each would be started in vain."""
        options = self.options
        for group in self.driver.core.groups:
            ping = Request(HANDSHAKE_ID, boot.COMMAND, boot.handshake_args(self._boot_config(0, group)))
            try:
                MSGPACK.encode(ping, options.max_frame_bytes)
            except FrameTooLarge as error:
                raise OptionsError(
                    f"pool {options.name!r}: what a worker is told at its start (warm= programs, lm=, sys.path) takes "
                    f"{error}; raise that, or warm fewer programs"
                ) from None

    def _boot_config(self, worker_id: int, group: str) -> BootConfig:
        limits = None if self._limit_file is None else limits_spec(self.options, self._limit_file.path)
        return boot_config(
            self.options, worker_id, group, lm=self.lm, adapter=self._adapter, warm=self._warm, limits=limits
        )

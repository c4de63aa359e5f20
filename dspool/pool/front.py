"""What Pool and AsyncPool have in common: everything but the waiting.

A call is prepared here (program resolved, inputs encoded, deadlines made absolute) before a worker is touched, and its
response is turned into a value or an error here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from sys import modules
from types import EllipsisType
from typing import Any, Literal, get_args

import msgspec

from dspool.errors import EncodeError, OptionsError, PoolClosed, PoolError, QueueTimeout
from dspool.option_values import MAX_SECONDS, did_you_mean, seconds
from dspool.options import PoolOptions
from dspool.pool import data_path as path
from dspool.pool.control import ControlPlane
from dspool.pool.core import commands as c
from dspool.pool.data_path import Driven
from dspool.pool.driver import Driver
from dspool.pool.lm_specs import ambient_spec, lm_spec
from dspool.pool.names import Candidate
from dspool.pool.programs import Program
from dspool.pool.results import NOT_RUN, load_error, program_error, result_of
from dspool.pool.steps import Steps
from dspool.pool.streams import stream_args
from dspool.pool.unsendable import A_POOL_STAYS
from dspool.protocol.messages import Caller, CreateArgs, ErrorInfo, ExecuteArgs, Response, StreamArgs
from dspool.protocol.requests import encode_request
from dspool.protocol.values import to_plain
from dspool.supervisor.launch import Launcher
from dspool.types import Affinity, PoolHealth, PoolStats, WorkerInfo

OnSessionLost = Literal["rebind", "error"]
Timeout = float | EllipsisType | None
"""Seconds; None: no limit; ...: the pool's own default."""

_NO_LABELS: frozenset[str] = frozenset()
_RUN_DEFAULTS: dict[str, Any] = {
    "session": None,
    "affinity": None,
    "on_session_lost": "rebind",
    "timeout_s": ...,
    "priority": 0,
    "require": None,
    "lm": None,
    "idempotent": False,
}
RUN_ARGUMENTS = tuple(_RUN_DEFAULTS)
MAP_ARGUMENTS = ("concurrency", "ordered", "with_index", "return_exceptions", "progress")
"""map()'s own, beside those of run()."""
STREAM_ARGUMENTS = ("fields", "status")
"""stream()'s own, beside those of run()."""
LEASE_RUN_ARGUMENTS = ("timeout_s", "lm")
LEASE_STREAM_ARGUMENTS = (*STREAM_ARGUMENTS, *LEASE_RUN_ARGUMENTS)
CHECKOUT_ARGUMENTS = ("program", "session", "affinity", "timeout_s", "hold_s", "priority", "require")

Prepared = tuple[Driver, Program, Steps[Driven]]
"""A call that is ready: the pool's driver, the program, and the call's way, to be driven."""


class PoolFront:
    """Options, control plane, and what needs no waiting.

    Args:
        options: the pool's options; keywords override them.
        launcher: starts workers in place of the start method; for tests with fakes.
        overrides: options by keyword.
    """

    _how_to_open = "use `with`, or call open()"

    def __init__(
        self, options: PoolOptions | None = None, *, launcher: Launcher | None = None, **overrides: Any
    ) -> None:
        self.options = PoolOptions.build(options, overrides)
        self._timeout_s = c.INFINITY if self.options.timeout_s is None else self.options.timeout_s
        self._cancellable = self.options.execution == "async"
        self._launcher = launcher
        self._control: ControlPlane | None = None

    @property
    def name(self) -> str:
        """The pool's name."""
        return self.options.name

    def __repr__(self) -> str:
        control = self._control
        state = "not open" if control is None else control.driver.core.state.value
        return f"<{type(self).__name__} {self.name!r} {state}, {self.options.size} workers>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._control is not None:  # its locks and sockets, one by one, would tell a user nothing
            raise TypeError(A_POOL_STAYS)
        return super().__reduce_ex__(protocol)

    @property
    def _driver(self) -> Driver:
        return self._opened.driver

    @property
    def _opened(self) -> ControlPlane:
        control = self._control
        if control is None:
            raise PoolClosed(f"pool {self.name!r} is not open; {self._how_to_open}")
        if not control.driver.usable:
            control.driver.check_usable()
        return control

    # --- readiness ------------------------------------------------------------------------------------------------

    @property
    def _target(self) -> int:
        """How many workers the pool should have now."""
        return sum(group.size for group in self._driver.core.groups.values())

    @property
    def _min_ready(self) -> int:
        """How many open() waits for."""
        options = self.options
        return options.min_ready if options.min_ready is not None else 0 if options.lazy else options.size

    def _wanted(self, workers: int | None) -> int:
        target = self._target
        if workers is None:
            return target
        if isinstance(workers, bool) or not isinstance(workers, int) or not 0 <= workers <= target:
            raise OptionsError(
                f"workers must be a whole number, 0 to {target} (the pool's size now); it is {workers!r}"
            )
        return workers

    def _not_ready(self, wanted: int, timeout_s: float | None) -> QueueTimeout:
        ready, old = self._driver.ready_and_old()
        besides = f", and {old} that wait to be replaced" if old else ""
        return QueueTimeout(
            f"pool {self.name!r} has {ready} of {wanted} workers ready after {timeout_s:g} s{besides}; "
            "see stats() and the log for what the others do"
        )

    # --- calls ----------------------------------------------------------------------------------------------------

    def _prepare(
        self,
        program: Any,
        inputs: Mapping[str, Any],
        *,
        session: str | None,
        affinity: Affinity | None,
        on_session_lost: OnSessionLost,
        timeout_s: Timeout,
        priority: int,
        require: str | Iterable[str] | None,
        lm: Any,
        idempotent: bool,
        caller: Caller | None = None,
        stream: StreamArgs | None = None,
    ) -> Prepared:
        now = time.monotonic()
        control = self._opened
        driver = control.driver
        resolved = control.programs.resolve(program)
        deadline = now + self._timeout_s if timeout_s is ... else self._deadline(timeout_s, now)
        frame = self._encode(
            control, resolved, inputs, lm, session, timed=deadline != c.INFINITY, caller=caller, stream=stream
        )
        checkout = self._checkout(
            next(driver.ids), now, deadline, resolved.program_id, session, affinity, on_session_lost, priority, require
        )
        checkout.size_bytes = len(frame)
        if stream is None and (caller is None or caller.relay is None):
            return driver, resolved, path.call(driver, checkout, resolved, frame, deadline, idempotent=idempotent)
        checkout.cancellable = True
        checkout.hold_s = deadline - now + self.options.cancel_grace_s  # where the caller doesn't come for a piece
        exchange = path.exchange_pieces
        steps = path.call(driver, checkout, resolved, frame, deadline, idempotent=idempotent, exchange=exchange)
        return driver, resolved, steps

    def _prepare_stream(
        self, program: Any, inputs: Mapping[str, Any], fields: Any, status: Any, as_run: Mapping[str, Any]
    ) -> Prepared:
        """A stream."""
        options = run_options("stream", as_run, STREAM_ARGUMENTS)
        return self._prepare(program, inputs, stream=stream_args(fields, status), **options)

    def _prepare_row(
        self, program: Any, row: Mapping[str, Any], as_run: Mapping[str, Any], caller: Caller | None = None
    ) -> Prepared:
        """A row of map(), or a wrapped module's call."""
        return self._prepare(program, row, **run_options("map", as_run, MAP_ARGUMENTS), caller=caller)

    def _encode(
        self,
        control: ControlPlane,
        program: Program,
        inputs: Mapping[str, Any],
        lm: Any,
        session: str | None,
        *,
        timed: bool,
        caller: Caller | None = None,
        stream: StreamArgs | None = None,
    ) -> bytearray:
        spec = lm_spec(lm) if lm is not None else None
        if spec is None and session is not None:
            spec = control.session_lms.of(session)
        if spec is None and (control.lm is None or caller is not None) and "dspy" in modules:
            spec = ambient_spec()
        for each in (spec, None if caller is None else caller.lm):
            if each is not None and each.digest not in control.lm_keys.seen:
                control.lm_keys.look(each)
        try:
            if type(inputs) is not dict:
                inputs = _as_inputs(inputs)
            args = ExecuteArgs(program.program_id, to_plain(inputs, "inputs"), spec, caller, stream)
            limit = self.options.max_frame_bytes
            return encode_request("execute_program", args, limit, deadline=timed, session=session)
        except EncodeError as error:
            raise EncodeError(f"pool {self.name!r}: {program.label} was not sent: {error}") from error.__cause__

    def _checkout(
        self,
        lease_id: int,
        now: float,
        deadline: float,
        program: str | None,
        session: str | None,
        affinity: Affinity | None,
        on_session_lost: OnSessionLost,
        priority: int,
        require: str | Iterable[str] | None,
    ) -> c.Checkout:
        options = self.options
        if session is not None:
            if not isinstance(session, str):
                raise OptionsError(f"session must be a string or None; it is a {type(session).__name__}")
            session = str.__str__(session)
        if affinity is not None and affinity not in get_args(Affinity):
            raise OptionsError(f"affinity must be one of {', '.join(get_args(Affinity))}; it is {affinity!r}")
        if on_session_lost != "rebind" and on_session_lost != "error":
            raise OptionsError(f"on_session_lost must be 'rebind' or 'error'; it is {on_session_lost!r}")
        if priority.__class__ is not int:
            raise OptionsError(f"priority must be a whole number, the lowest goes first; it is {priority!r}")
        return c.Checkout(
            lease_id,
            lease_id,
            program,
            session,
            affinity or options.affinity,
            on_session_lost == "error",
            _NO_LABELS if require is None else _labels(require),
            priority,
            path.queue_deadline(options, deadline, now),
            cancellable=self._cancellable,
        )

    def _prepare_checkout(
        self,
        program: Any,
        session: str | None,
        affinity: Affinity | None,
        timeout_s: Timeout,
        hold_s: float | None,
        priority: int,
        require: str | Iterable[str] | None,
    ) -> tuple[Driver, c.Checkout, str | None]:
        now = time.monotonic()
        control = self._opened
        warm = control.programs.resolve(program).program_id if program is not None else None
        deadline = self._deadline(timeout_s, now)
        checkout = self._checkout(
            next(control.driver.ids), now, deadline, warm, session, affinity, "rebind", priority, require
        )
        checkout.hold_s = seconds("hold_s", hold_s, none=True)
        if not checkout.hold_s:
            raise OptionsError("hold_s must be a number of seconds over 0, or None; it is 0")
        return control.driver, checkout, warm

    def _release(self, program: Any) -> bool:
        control = self._opened
        quarantine = control.driver.core.quarantine
        if not (isinstance(program, str) and (program in quarantine.records or control.programs.knows(program))):
            program = control.programs.resolve(program).program_id
        held = quarantine.holds(program)
        control.driver.order(c.Release(program))
        return held

    def _deadline(self, timeout_s: Timeout, now: float) -> float:
        if timeout_s is ...:
            return now + self._timeout_s
        if timeout_s.__class__ is not float or not 0 <= timeout_s <= MAX_SECONDS:
            timeout_s = seconds("timeout_s", timeout_s, none=True)
        return now + timeout_s

    def _finish(self, program: Program, response: Response, worker_id: int) -> Any:
        """A response as the program's value.

        Raises:
            ProgramError: the program failed.
        """
        runs = program.runs
        if response.success:
            if runs is not None:
                runs.add()
            return result_of(program, response)
        info = response.error_info or ErrorInfo(code="program_error", message=response.error or "unknown error")
        if runs is not None and info.code not in NOT_RUN:
            runs.add()
        raise program_error(program, info, pool=self.name, worker_id=worker_id)

    def _set_session_lm(self, session: str, lm: Any) -> None:
        if not isinstance(session, str):
            raise OptionsError(f"session must be a string; it is a {type(session).__name__}")
        control = self._opened
        control.session_lms.set(str.__str__(session), None if lm is None else lm_spec(lm))

    # --- programs -------------------------------------------------------------------------------------------------

    def _prepare_create(
        self, program_id: str, definition: Any, *, replace: bool, check: bool | None, allow_pickle: bool
    ) -> tuple[Candidate, Steps[Driven] | None]:
        """A program that is ready to be registered, and the way to have a worker load it first, where one must."""
        control = self._opened
        if check is not None and not isinstance(check, bool):
            raise OptionsError(f"check must be True, False or None; it is {check!r:.80}")
        candidate = control.programs.prepare(program_id, definition, replace=replace, allow_pickle=allow_pickle)
        program = candidate.program
        if not (program.unproven if check is None else check):
            return candidate, None
        now = time.monotonic()
        deadline = now + self._timeout_s
        args = CreateArgs(program.program_id, program.spec)
        frame = encode_request("create_program", args, self.options.max_frame_bytes, deadline=deadline != c.INFINITY)
        lease_id = next(control.driver.ids)
        checkout = self._checkout(lease_id, now, deadline, program.program_id, None, None, "rebind", 0, None)
        checkout.size_bytes = len(frame)
        return candidate, path.call(control.driver, checkout, program, frame, deadline, idempotent=True)

    def _register(self, candidate: Candidate, replace: bool, loaded: Driven | None) -> None:
        if loaded is not None and not loaded[0].success:
            response, worker_id = loaded
            info = response.error_info or ErrorInfo(code="load_error", message=response.error or "unknown error")
            raise load_error(candidate.program, info, pool=self.name, worker_id=worker_id)
        self._opened.programs.register(candidate, replace=replace)

    def _discard(self, candidate: Candidate) -> None:
        if self._control is not None:  # the pool may have been closed meanwhile
            self._control.programs.discard(candidate)

    def _program_info(self, program_id: str) -> dict[str, Any]:
        control = self._opened
        info = control.programs.info(program_id)
        quarantined, workers = control.driver.program_state(info["id"])
        return info | {"quarantined": quarantined, "workers": workers}

    # --- orders that need no waiting --------------------------------------------------------------------------------

    def _resize(self, workers: int, group: str | None) -> None:
        groups = self.options.groups
        if isinstance(workers, bool) or not isinstance(workers, int) or not 0 <= workers <= 4096:
            raise OptionsError(f"workers must be a whole number, 0 to 4096; it is {workers!r}")
        if group is None and len(groups) > 1:
            raise OptionsError(f"resize() needs group=, one of {', '.join(each.name for each in groups)}")
        if group is not None and group not in {each.name for each in groups}:
            raise OptionsError(
                f"no worker group is named {group!r}; there are {', '.join(each.name for each in groups)}"
            )
        self._driver.order(c.Resize(group or groups[0].name, workers))

    def _kill(self, worker_id: int) -> None:
        self._known(worker_id).order(c.WorkerUnwell(worker_id, "killed", "by hand"))

    def _known(self, worker_id: int) -> Driver:
        driver = self._driver
        if not isinstance(worker_id, int) or worker_id not in driver.core.workers:
            have = ", ".join(map(str, driver.core.workers)) or "none"
            raise PoolError(f"pool {self.name!r} has no worker {worker_id!r}; its workers are {have}")
        return driver

    # --- looking --------------------------------------------------------------------------------------------------

    def _seen(self) -> Driver:
        """The driver, also of a pool that is closed: its figures stay readable."""
        if self._control is None:
            raise PoolClosed(f"pool {self.name!r} was never opened; {self._how_to_open}")
        self._control.driver.check_process()
        return self._control.driver

    def _stats(self) -> PoolStats:
        stats = self._seen().stats()
        assert self._control is not None
        return msgspec.structs.replace(
            stats, events_dropped=self._control.events.dropped, usage=self._control.driver.usage.stats()
        )

    def _health(self) -> PoolHealth:
        return self._seen().health()

    def _workers(self) -> list[WorkerInfo]:
        return self._seen().workers()


def run_options(method: str, as_run: Mapping[str, Any], own: tuple[str, ...] = ()) -> dict[str, Any]:
    """run()'s keywords: as they were given, else as they are by default.

    Args:
        method: what takes them as well.
        as_run: those that were given.
        own: its own keywords beside these.

    Raises:
        OptionsError: one is none of run()'s.
    """
    if unknown := [name for name in as_run if name not in _RUN_DEFAULTS]:
        raise unknown_argument(method, unknown, (*own, *RUN_ARGUMENTS))
    return {**_RUN_DEFAULTS, **as_run}


def unknown_argument(method: str, given: Iterable[str], known: Iterable[str]) -> OptionsError:
    """The error of a call with a keyword that its method doesn't have."""
    option = next(iter(given))
    if option in PoolOptions.__dataclass_fields__:
        hint = f": {option} is an option of the pool, as in Pool({option}=...)."
    else:
        hint = did_you_mean(option, known)
    return OptionsError(f"{method}() has no argument {option!r}{hint} It takes {', '.join(known)}")


def _labels(require: str | Iterable[str]) -> frozenset[str]:
    if not isinstance(require, Iterable):
        raise OptionsError(f"require must be a label or labels, as strings; it is {require!r}")
    labels = frozenset({require} if isinstance(require, str) else require)
    if not all(isinstance(label, str) for label in labels):
        raise OptionsError(f"require must be a label or labels, as strings; it is {require!r}")
    return labels


def _as_inputs(inputs: Any) -> dict[str, Any]:
    """Inputs as a dict: a mapping, or a dspy.Example, of which the inputs are taken."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    if hasattr(inputs, "inputs") and hasattr(inputs, "toDict"):
        marked = getattr(inputs, "_input_keys", None)
        return dict((inputs.inputs() if marked else inputs).items())
    raise EncodeError(
        f"inputs must be a mapping of field names to values, or a dspy.Example; got a {type(inputs).__name__}"
    )

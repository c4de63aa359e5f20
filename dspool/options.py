"""PoolOptions: every option with its default, its range and what it means.

The one place where options are validated, before any process is started. The reference page of the documentation is
checked against the table below. Nothing here looks at the machine but for the number of usable cores.
"""

from __future__ import annotations

import difflib
import itertools
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from dspool.errors import OptionsError
from dspool.types import Affinity, CheckoutRequest, Verdict, WorkerInfo

StartMethod = Literal["template", "spawn"]
Execution = Literal["threads", "async"]
CheckHook = Callable[[WorkerInfo, CheckoutRequest], Verdict]
EventHook = Callable[[str, Mapping[str, Any]], None]

MAX_SECONDS = 1e9
"""The longest time that can be asked for, about 31 years: any longer is None, "no limit"."""
MAX_WHOLE = 2**63 - 1
"""The largest whole number that can be asked for: it travels to workers, and is multiplied by fractions."""
MAX_WORKERS = 4096
MAX_SLOTS = 128
TEMPLATE_CONCURRENCY = 8
MAX_REMOVALS = 3
"""Workers removed for one checkout before it gives up with CheckoutSkipped."""

_pool_numbers = itertools.count(1)
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


def usable_cores() -> int:
    """The number of cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


class _Range:
    """A number's legal range, both ends included, and whether None ("no limit") is legal."""

    def __init__(self, low: float, high: float = math.inf, *, none: bool = False, whole: bool = False) -> None:
        self.low, self.high, self.none, self.whole = low, high, none, whole

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low, high = (f"{end:,}" if self.whole else f"{end:g}" for end in (self.low, self.high))
        upto = "or more" if self.high == math.inf else f"to {high}"
        return f"{kind}, {low} {upto}{', or None' if self.none else ''}"

    def admits(self, value: object) -> bool:
        """Whether `value` lies in the range. Booleans are not numbers, NaN lies nowhere."""
        if value is None:
            return self.none
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return self.low <= value <= min(self.high, MAX_WHOLE if self.whole else MAX_SECONDS)


_SECONDS = _Range(0)
_POSITIVE = _Range(0.001)
RANGES: dict[str, _Range] = {
    "min_ready": _Range(0, MAX_WORKERS, none=True, whole=True),
    "overflow": _Range(0, MAX_WORKERS, whole=True),
    "overflow_linger_s": _SECONDS,
    "slots": _Range(1, MAX_SLOTS, whole=True),
    "start_timeout_s": _POSITIVE,
    "start_concurrency": _Range(1, MAX_WORKERS, none=True, whole=True),
    "timeout_s": _Range(0, none=True),
    "queue_timeout_s": _Range(0, none=True),
    "max_waiting": _Range(0, 1_000_000, whole=True),
    "max_waiting_bytes": _Range(0, whole=True),
    "shed_target_s": _Range(0.001, none=True),
    "shed_interval_s": _POSITIVE,
    "max_frame_bytes": _Range(1024, 2**32 - 1, whole=True),
    "max_restarts": _Range(0, whole=True),
    "restart_window_s": _POSITIVE,
    "quarantine_after": _Range(1, none=True, whole=True),
    "quarantine_s": _SECONDS,
    "max_retries": _Range(0, 100, whole=True),
    "max_requests": _Range(1, none=True, whole=True),
    "max_lifetime_s": _Range(0.001, none=True),
    "max_rss_bytes": _Range(1, none=True, whole=True),
    "max_rss_growth_bytes": _Range(1, none=True, whole=True),
    "ping_interval_s": _Range(0.001, none=True),
    "ping_timeout_s": _POSITIVE,
    "ping_failures": _Range(1, whole=True),
    "grace_s": _SECONDS,
    "cancel_grace_s": _SECONDS,
    "affinity_wait_s": _SECONDS,
    "session_ttl_s": _POSITIVE,
    "max_sessions": _Range(1, whole=True),
    "max_programs": _Range(1, whole=True),
    "cache_memory_entries": _Range(0, 100_000_000, whole=True),
}
LIMIT_RANGES: dict[str, _Range] = {
    "requests_per_minute": _Range(0.001, MAX_SECONDS, none=True),
    "tokens_per_minute": _Range(0.001, MAX_SECONDS, none=True),
    "burst_s": _Range(0, 60),
}
MAX_LIMITED_MODELS = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerGroup:
    """Workers of one kind, when a pool has several kinds.

    Args:
        name: the group's name; resize() takes it.
        workers: how many, 0 or more.
        labels: what calls may ask for with `require=`.
        env: variables added to the pool's own `env`; None as a value removes one.
        preload: modules imported before the first call, beside the pool's own `preload`.
        overflow: workers beyond `workers` that may be started while calls wait.
        cache_namespace: in place of the pool's own `cache_namespace`.
    """

    name: str
    workers: int
    labels: frozenset[str] = frozenset()
    env: Mapping[str, str | None] = field(default_factory=dict, repr=False)  # may hold keys
    preload: tuple[str, ...] = ()
    overflow: int = 0
    cache_namespace: str | None = None

    def __post_init__(self) -> None:
        labels: Any = self.labels  # people pass a string, a list, a set
        listed = [labels] if isinstance(labels, str) else list(labels) if isinstance(labels, Iterable) else [None]
        if not all(isinstance(label, str) for label in listed):
            raise OptionsError(f"WorkerGroup.labels must be a label or labels, as strings; it is {labels!r}")
        object.__setattr__(self, "labels", frozenset(listed))
        object.__setattr__(self, "preload", _names("preload", self.preload))
        object.__setattr__(self, "env", _environment(self.env))
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise OptionsError(f"WorkerGroup.name must be 1 to 64 letters, digits or _ . : -, not {self.name!r}")
        for option in ("workers", "overflow"):
            _in_range(f"WorkerGroup({self.name!r}).{option}", getattr(self, option), _Range(0, MAX_WORKERS, whole=True))
        _namespace(f"WorkerGroup({self.name!r}).cache_namespace", self.cache_namespace)


@dataclass(frozen=True, kw_only=True, slots=True)
class LMLimit:
    """What a pool may ask of one model with one key, all its workers together.

    Args:
        requests_per_minute: requests that are sent, retries too; answers from a cache are none. None: any number.
        tokens_per_minute: tokens of prompts and answers together. A request's are known when it is answered: until then
            the average of those before it counts, and what it used beyond that, later requests wait for. None: any
            number.
        burst_s: seconds' worth of both that may be used at once after a pause, at least one request. In any minute that
            is at most so much more than the limit: 10 % with 6 s.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    burst_s: float = 6.0

    def __post_init__(self) -> None:
        for name, legal in LIMIT_RANGES.items():
            _in_range(f"LMLimit.{name}", getattr(self, name), legal)
        if self.requests_per_minute is None and self.tokens_per_minute is None:
            raise OptionsError("LMLimit must have requests_per_minute, tokens_per_minute or both; it limits nothing")


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolOptions:
    """Everything a pool can be told. Values are checked here; OptionsError names option, value and range.

    Attributes:
        name: for logs and errors; unique by default, equal names may coexist.
        workers: how many worker processes (default: usable cores), or a sequence of WorkerGroup.
        lazy: start a worker when a call needs one, instead of all at open().
        min_ready: how many must be ready before open() returns (default: all; none where lazy).
        overflow: workers beyond `workers` that may be started while calls wait.
        overflow_linger_s: seconds an idle overflow worker is kept.
        slots: calls one worker runs at a time, each on a thread and a pipe of its own.
        start_method: how workers are started. "template" (Linux; the default there): forked from a warm process, in
            milliseconds; "spawn": a fresh interpreter each (the default elsewhere, and where `python` is set).
        start_timeout_s: seconds from starting a worker until it must be ready.
        start_concurrency: how many may be starting at a time (default: 8; usable cores where they are spawned).
        timeout_s: default deadline of a call, queue and run together, in seconds; None: no limit.
        queue_timeout_s: deadline of the wait for a worker alone, in seconds; None: the call's own.
        max_waiting: calls that may wait for a worker; 0 never queues.
        max_waiting_bytes: bytes of encoded inputs that may wait.
        shed_target_s: the longest wait for a worker that is good, in seconds; None: calls wait until their deadlines.
            When every wait was longer for `shed_interval_s`, the pool is overloaded: calls that have waited more than
            twice as long get PoolSaturated, until somebody is served in time again.
        shed_interval_s: how long that must have lasted, in seconds; shorter bursts are left to wait.
        max_frame_bytes: the largest message either way.
        preload: modules a worker imports before it is ready. With "template" they are imported once, in the process
            that workers are forked from, so they must start no thread and open no connection; where one does, workers
            are spawned and `stats().start_method_reason` says what it did.
        warm: programs a worker loads before it is ready.
        lm: the pool's LM: "provider/model", a dict of dspy.LM's arguments with "model", or a dspy.LM. None: calls use
            the LM that dspy.configure or dspy.context gave their caller.
        lm_limits: how much the workers together may ask of a model: its name, as its LMs have it, or "*" for each one
            that isn't named, with an LMLimit or a dict of its arguments, as in {"openai/gpt-4o-mini":
            {"requests_per_minute": 500}}. It holds for each key by itself. A request waits for its turn, or fails at
            once where that comes after its call's deadline. With or without limits, a 429 that asks for a pause holds
            back all requests of the workers to that model with that key, for 5 minutes at most.
        adapter: the pool's DSPy adapter: "chat", "json" or "xml", or an Adapter instance.
        env: variables added to the workers' environment; None as a value removes one. Where neither the manager's
            environment nor this says otherwise, numerical libraries get one thread in each worker (OMP_NUM_THREADS=1
            and its like), LiteLLM takes the prices it came with (LITELLM_LOCAL_MODEL_COST_MAP=true), and glibc keeps
            the memory of large messages (MALLOC_ARENA_MAX=1 and two thresholds).
        check: hook(worker, request) -> KEEP | Remove(...) | Skip(...), called in the caller before each call is sent.
            Its time counts towards the call's deadline; what it raises counts as Remove, and is logged. AsyncPool calls
            it on threads of its own.
        on_event: hook(name, fields), called on a thread of its own for each thing that happens to a worker or the pool.
            What it raises is logged; what it is too slow for is counted in `stats().events_dropped`.
        debug_log: a file that gets one line of JSON for each frame of the pool's pipes: time, worker, slot, command,
            id, size and duration, nothing of what it carries. It is made with mode 0600 and appended to without limit;
            to make it shorter is up to you (logrotate with copytruncate).
        python: the workers' interpreter (default: this one); with "spawn" only.
        required_packages: what must be installed where the workers run, as requirements: "pandas>=2". What is missing
            or has another version is a WorkerStartError at open(). `dspool doctor` says it too.
        max_restarts: failed starts within `restart_window_s` that a group may have before its starts are stopped.
        restart_window_s: the window of `max_restarts`, seconds.
        quarantine_after: workers that calls of one program may make exit in a row; None: any number.
        quarantine_s: seconds a quarantined program is refused before it gets one trial.
        max_retries: how often an idempotent call is sent again after its worker was lost.
        max_requests: calls after which a worker is replaced (10 % jitter); None: never.
        max_lifetime_s: seconds after which a worker is replaced (10 % jitter); None: never.
        max_rss_bytes: resident memory over which a worker is replaced, seen twice in a row (10 % jitter); None: never.
            Memory is looked at every 5 seconds.
        max_rss_growth_bytes: the same for what it has beyond its first sample after its first answered call. Leave room
            for programs that it loads later; None: never.
        ping_interval_s: seconds a worker is idle before it is pinged, 1 at most if it ran no call yet; None: never.
        ping_timeout_s: seconds it has to answer.
        ping_failures: pings in a row it may miss before it is removed.
        grace_s: seconds a worker has to stop by itself, and running calls have at close().
        cancel_grace_s: seconds a call that can be cancelled (a stream; any call with execution="async") has to end
            before its worker is removed. Any other call that is cancelled costs its worker, or with slots > 1 its slot
            until its late answer comes.
        execution: "threads": each slot runs one call on a thread. "async": programs that are async of their own (a
            module whose `aforward` is defined as deep in its classes as its `forward`, an async function) run as tasks
            on one event loop of the worker, where cancelling a call, or its deadline, closes its requests and keeps the
            worker; others run on threads as ever. Such a program must not block its loop: the other slots wait then.
        affinity: how strongly a session holds on to its worker: "hint", "strict", "strict_fail_fast".
        affinity_wait_s: seconds a call waits for its session's worker before it takes another ("hint").
        session_ttl_s: seconds from its last use until a session is forgotten.
        max_sessions: sessions remembered; the least recently used are forgotten first.
        max_programs: programs a worker keeps loaded.
        cache: where workers keep LMs' answers, with DSPy's cache, which they share. True: in DSPy's folder, which is
            DSPY_CACHEDIR of their environment or ~/.dspy_cache, or as a preload module has configured it; a path: in
            that folder; False: nowhere. A folder that isn't there is made with mode 0700. Of what is in it only plain
            data and LM clients' answers are loaded, no other pickles.
        cache_memory_entries: how many answers each worker also keeps in memory; 0: none.
        cache_namespace: parts these answers from others' in the same folder. Requests are told apart by all but their
            API keys, so without it two tenants share the answer to an equal one.
    """

    name: str = ""
    workers: int | Sequence[WorkerGroup] | None = None
    lazy: bool = False
    min_ready: int | None = None
    overflow: int = 0
    overflow_linger_s: float = 60.0
    slots: int = 1
    start_method: StartMethod | None = None
    start_timeout_s: float = 60.0
    start_concurrency: int | None = None
    timeout_s: float | None = 120.0
    queue_timeout_s: float | None = None
    max_waiting: int = 1000
    max_waiting_bytes: int = 256 * 2**20
    shed_target_s: float | None = None
    shed_interval_s: float = 1.0
    max_frame_bytes: int = 64 * 2**20
    preload: tuple[str, ...] = ()
    warm: tuple[Any, ...] = ()
    lm: Any = field(default=None, repr=False)  # may hold a key
    lm_limits: Mapping[str, LMLimit | Mapping[str, float | None]] = field(default_factory=dict)
    adapter: Any = None
    env: Mapping[str, str | None] = field(default_factory=dict, repr=False)
    check: CheckHook | None = None
    on_event: EventHook | None = None
    debug_log: str | os.PathLike[str] | None = None
    python: str | os.PathLike[str] | None = None
    required_packages: tuple[str, ...] = ()
    max_restarts: int = 3
    restart_window_s: float = 60.0
    quarantine_after: int | None = 3
    quarantine_s: float = 30.0
    max_retries: int = 3
    max_requests: int | None = None
    max_lifetime_s: float | None = None
    max_rss_bytes: int | None = None
    max_rss_growth_bytes: int | None = None
    ping_interval_s: float | None = 30.0
    ping_timeout_s: float = 5.0
    ping_failures: int = 3
    grace_s: float = 5.0
    cancel_grace_s: float = 1.0
    execution: Execution = "threads"
    affinity: Affinity = "hint"
    affinity_wait_s: float = 0.25
    session_ttl_s: float = 3600.0
    max_sessions: int = 10_000
    max_programs: int = 64
    cache: bool | str | os.PathLike[str] = True
    cache_memory_entries: int = 1000
    cache_namespace: str | None = None

    def __post_init__(self) -> None:
        """Fill in what depends on the machine, then check every value."""
        put = object.__setattr__
        if self.name == "":
            put(self, "name", f"pool-{next(_pool_numbers)}")
        if self.workers is None:
            put(self, "workers", usable_cores())
        if self.start_method is None:
            put(self, "start_method", "template" if _has_templates() and self.python is None else "spawn")
        if self.start_concurrency is None:
            put(self, "start_concurrency", TEMPLATE_CONCURRENCY if self.start_method == "template" else usable_cores())
        put(self, "preload", _names("preload", self.preload))
        put(self, "warm", tuple(self.warm) if isinstance(self.warm, (list, tuple)) else (self.warm,))
        put(self, "env", _environment(self.env))
        put(self, "lm_limits", _limits(self.lm_limits))
        put(self, "required_packages", _requirements(self.required_packages))
        for option, legal in RANGES.items():
            _in_range(option, getattr(self, option), legal)
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise OptionsError(f"name must be 1 to 64 letters, digits or _ . : -, not {self.name!r}")
        _one_of("affinity", self.affinity, get_args(Affinity))
        _one_of("execution", self.execution, get_args(Execution))
        self._check_start_method()
        for hook in ("check", "on_event"):
            if getattr(self, hook) is not None and not callable(getattr(self, hook)):
                raise OptionsError(f"{hook} must be callable or None, not {getattr(self, hook)!r}")
        if self.debug_log is not None and not (isinstance(self.debug_log, (str, os.PathLike)) and str(self.debug_log)):
            raise OptionsError(f"debug_log must be a path or None; it is {self.debug_log!r}")
        if not isinstance(self.lazy, bool):
            raise OptionsError(f"lazy must be True or False, not {self.lazy!r}")
        self._check_workers()
        self._check_cache()

    def _check_cache(self) -> None:
        _namespace("cache_namespace", self.cache_namespace)
        if isinstance(self.cache, bool):
            return
        folder = os.fspath(self.cache) if isinstance(self.cache, (str, os.PathLike)) else None
        if not isinstance(folder, str) or not folder or "\0" in folder:
            raise OptionsError(f"cache must be True, False or a folder's path; it is {self.cache!r:.80}")
        object.__setattr__(self, "cache", os.path.abspath(os.path.expanduser(folder)))

    def _check_start_method(self) -> None:
        _one_of("start_method", self.start_method, get_args(StartMethod))
        if self.start_method == "template" and self.python is not None:
            raise OptionsError(
                f"python={os.fspath(self.python)!r} needs start_method='spawn': a template forks this interpreter"
            )
        if self.start_method == "template" and not _has_templates():
            raise OptionsError("start_method='template' needs Linux; use 'spawn' here")

    def _check_workers(self) -> None:
        if isinstance(self.workers, (list, tuple)):
            object.__setattr__(self, "workers", tuple(self.workers))
            if not self.workers or not all(isinstance(group, WorkerGroup) for group in self.workers):
                kinds = [type(group).__name__ for group in self.workers]
                raise OptionsError(f"workers must be a number or a sequence of WorkerGroup, not one of {kinds}")
            if len({group.name for group in self.groups}) < len(self.groups):
                raise OptionsError(f"workers: two groups have the same name: {[group.name for group in self.groups]}")
            if self.overflow:
                raise OptionsError("overflow: with groups, give each WorkerGroup its own overflow=")
        else:
            _in_range("workers", self.workers, _Range(0, MAX_WORKERS, whole=True))
        if not 1 <= self.size + sum(group.overflow for group in self.groups) <= MAX_WORKERS:
            raise OptionsError(f"workers and overflow together must be 1 to {MAX_WORKERS}, not {self.size}")
        if self.min_ready is not None and self.min_ready > self.size:
            raise OptionsError(f"min_ready must be at most the number of workers, {self.size}, not {self.min_ready}")

    @property
    def groups(self) -> tuple[WorkerGroup, ...]:
        """The worker groups; one, named "default", where `workers` is a number."""
        if isinstance(self.workers, tuple):
            return self.workers
        assert isinstance(self.workers, int)
        return (WorkerGroup(name="default", workers=self.workers, overflow=self.overflow),)

    @property
    def size(self) -> int:
        """Workers of all groups together, without overflow."""
        return sum(group.workers for group in self.groups)

    @property
    def executable(self) -> str:
        """The workers' interpreter."""
        return os.fspath(self.python) if self.python is not None else sys.executable

    @classmethod
    def build(cls, options: PoolOptions | None, overrides: Mapping[str, Any]) -> PoolOptions:
        """Options from an object, from keywords, or from both (keywords win).

        Raises:
            OptionsError: an unknown option, or a value out of range.
        """
        known = {entry.name for entry in fields(cls)}
        for option in overrides:
            if option not in known:
                hint = did_you_mean(option, known)
                raise OptionsError(f"unknown option {option!r}{hint} The options are {', '.join(sorted(known))}")
        if options is None:
            return cls(**overrides)
        if not isinstance(options, PoolOptions):
            raise OptionsError(f"options must be a PoolOptions, not {options!r}; pass options by keyword")
        if overrides.get("python") is not None and "start_method" not in overrides:
            overrides = {**overrides, "start_method": None}  # it was filled in for another interpreter
        return replace(options, **overrides) if overrides else options


def _has_templates() -> bool:
    """Whether this system has what templates need: fork, pidfd, abandoned children's adoption."""
    return sys.platform == "linux"


def seconds(option: str, value: object, *, none: bool = False) -> float:
    """A time that a call was given, as a float; infinity for None.

    Raises:
        OptionsError: it is no number of seconds, or negative.
    """
    _in_range(option, value, _Range(0, MAX_SECONDS, none=none))
    return math.inf if value is None else float(value)  # type: ignore[arg-type]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about `word`: "; did you mean 'workers'?" where a known word is like it, else "."."""
    likely = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {likely[0]!r}?" if likely else "."


def _in_range(option: str, value: object, legal: _Range) -> None:
    if not legal.admits(value):
        too_long = isinstance(value, int) and abs(value) > MAX_WHOLE
        raise OptionsError(f"{option} must be {legal}; it is {'beyond 64 bits' if too_long else repr(value)}")


def _one_of(option: str, value: object, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise OptionsError(f"{option} must be one of {', '.join(legal)}; it is {value!r}")


def _namespace(option: str, value: object) -> None:
    if value is not None and not (isinstance(value, str) and _NAME.fullmatch(value)):
        raise OptionsError(f"{option} must be 1 to 64 letters, digits or _ . : -, or None; it is {value!r:.80}")


def _names(option: str, value: object) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
        raise OptionsError(f"{option} must be module names; it is {value!r}")
    return tuple(names)


def _limits(value: object) -> dict[str, LMLimit]:
    if not isinstance(value, Mapping):
        raise OptionsError(f"lm_limits must be a mapping of models to LMLimits; it is a {type(value).__name__}")
    if len(value) > MAX_LIMITED_MODELS:
        raise OptionsError(f"lm_limits may name {MAX_LIMITED_MODELS} models, not {len(value)}; '*' is any other one")
    limits = {}
    for model, limit in value.items():
        if not isinstance(model, str) or not model:
            raise OptionsError(f"lm_limits must name models as their LMs do, or '*' for any; one name is {model!r:.80}")
        if "*" in model and model != "*":  # else nothing would be limited, and nobody notice
            raise OptionsError(f"lm_limits knows no patterns but '*', each model that isn't named; not {model!r:.80}")
        if isinstance(limit, Mapping):
            for name in limit:
                if name not in LIMIT_RANGES:
                    hint = did_you_mean(str(name), LIMIT_RANGES)
                    known = ", ".join(LIMIT_RANGES)
                    raise OptionsError(f"lm_limits[{model!r}] has no {name!r:.80}{hint} There are {known}")
            try:
                limit = LMLimit(**limit)
            except OptionsError as error:
                raise OptionsError(str(error).replace("LMLimit", f"lm_limits[{model!r}]", 1)) from None
        if not isinstance(limit, LMLimit):
            raise OptionsError(
                f"lm_limits[{model!r}] must be an LMLimit or a dict of its arguments; it is {limit!r:.80}"
            )
        limits[model] = limit
    return limits


def _requirements(value: object) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise OptionsError(f"required_packages must be requirements, as in 'pandas>=2'; it is {value!r}")
    if texts:  # else nobody pays for the import
        from dspool import requirements

        for text in texts:
            requirements.parse(text)
    return tuple(texts)


def _environment(value: object) -> dict[str, str | None]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise OptionsError(
            f"env must be a mapping of variable names to strings or None; it is a {type(value).__name__}"
        )
    for name, text in value.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise OptionsError(f"env has a bad variable name: {name!r}")
        if text is not None and (not isinstance(text, str) or "\0" in text):
            raise OptionsError(f"env[{name!r}] must be a string or None, not a {type(text).__name__}")
    return dict(value)

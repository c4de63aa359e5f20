"""The frozen structs that users see: verdicts, requests, reports, snapshots.

Plain data; what behaviour there is only reads it. Units are in the names: a time is seconds, a size bytes, unless the
name says otherwise.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Affinity = Literal["hint", "strict", "strict_fail_fast"]
CheckStatus = Literal["ok", "warning", "failed"]
HealthStatus = Literal["healthy", "degraded", "unhealthy"]
WorkerState = Literal["starting", "idle", "busy", "draining", "stopping", "gone"]

ExitReason = Literal[
    # we asked for it
    "stopped",
    "resized",
    "reloaded",
    "recycle_requests",
    "recycle_age",
    "recycle_memory",
    "removed",
    "timeout",
    "cancelled",
    "killed",
    # nobody asked for it
    "boot_error",
    "start_timeout",
    "crash",
    "exited",
    "oom_suspect",
    "protocol_error",
    "hung",
]


class Keep(msgspec.Struct, frozen=True, tag=True):
    """Verdict: the worker suits. Use the constant `KEEP`."""


class Remove(msgspec.Struct, frozen=True, tag=True):
    """Verdict: the worker is dead or suspect. It is killed and replaced; the same call goes on to another worker."""

    reason: str


class Skip(msgspec.Struct, frozen=True, tag=True):
    """Verdict: the worker is fine but not for this call. It stays; the next worker is asked."""

    reason: str


KEEP = Keep()
Verdict = Keep | Remove | Skip


class CheckoutRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a `check` hook is told about the call that wants a worker."""

    pool: str
    lease_id: int
    program: str | None
    session: str | None
    require: frozenset[str] = frozenset()
    priority: int = 0
    removals: int = 0
    """Workers removed for this call so far."""


class ExitReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a worker's end."""

    worker_id: int
    pid: int | None
    reason: ExitReason
    detail: str = ""
    """What the reason alone doesn't say: the verdict's text, the protocol error, the boot error's last line."""
    exit_code: int | None = None
    """None where it ended by a signal or where the status is unknown."""
    signal: str | None = None
    """Name of the signal that ended it, e.g. "SIGSEGV"."""
    status_known: bool = True
    age_s: float = 0.0
    calls: int = 0
    """Calls it had been given, the last one included."""
    peak_rss_bytes: int | None = None
    oom_kills: int | None = None
    """How often the kernel's OOM killer struck in the pool's cgroup while the worker lived, whomever; None: unknown."""
    output_tail: str = ""
    """The last 8 KiB of what it wrote to stdout and stderr."""
    stack_dump: str = ""
    """Its threads' stacks at the deadline or at a fatal signal, the interrupted thread first; empty: there was none."""
    remote_traceback: str = ""
    """For boot_error: the traceback that came through the pipe."""
    start_method: str = "spawn"


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as it was when asked."""

    worker_id: int
    pid: int | None
    group: str
    state: WorkerState
    labels: frozenset[str]
    slots: int
    busy: int
    programs: int
    sessions: int
    calls: int
    age_s: float
    rss_bytes: int | None
    start_method: str
    due: str | None = None
    """Why it should be retired once its replacement is ready, or None."""
    overflow: bool = False
    last_ping_age_s: float | None = None
    """Seconds since it last answered a ping; None: it never did. Only idle workers are pinged."""
    last_ping_s: float | None = None
    """How long that answer took."""


class LMUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What calls used of LMs."""

    calls: int = 0
    """Calls of the pool whose response said that they used tokens, or were throttled; failed ones too."""
    requests: int = 0
    """Answers of the provider to those calls. Answers from DSPy's cache use nothing."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt's tokens, those that the provider had in a cache of its own, where it says so."""
    cost_usd: float | None = None
    """What the requests whose price DSPy knows cost together, in US dollars; None: it knows none of them."""
    unpriced: int = 0
    """Requests whose price is not known: they are missing from `cost_usd`."""
    throttled: int = 0
    """Requests that had to wait for `lm_limits` or after a provider's 429, and those that were not sent as their turn
    would have come after the deadline."""
    throttled_s: float = 0.0
    """How long those waited together, in seconds."""


class UsageStats(msgspec.Struct, frozen=True, kw_only=True):
    """What calls used of LMs since open(). Each table adds up to the total, sessions to that of calls with one."""

    total: LMUsage = LMUsage()
    by_model: dict[str, LMUsage] = {}
    """A call that asked several models counts in the row of each."""
    by_program: dict[str, LMUsage] = {}
    """By registered name; of a program without one, by what error texts call it."""
    by_session: dict[str, LMUsage] = {}
    """At most `max_sessions` rows."""
    other_models: LMUsage = LMUsage()
    """Rows that made room for others, added up: 256 models and 1,024 programs are kept, those used last."""
    other_programs: LMUsage = LMUsage()
    other_sessions: LMUsage = LMUsage()


class PoolStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since open() and gauges of now. Counters never go down."""

    name: str
    # gauges
    workers: int
    target: int
    starting: int
    idle: int
    busy: int
    draining: int
    stopping: int
    waiting: int
    waiting_bytes: int
    leased: int
    sessions: int
    paused: bool
    shedding: bool
    """Whether calls that wait are refused because the pool is overloaded (`shed_target_s`)."""
    breaker: Literal["closed", "open", "half_open"]
    quarantined: tuple[str, ...]
    suspects: tuple[str, ...]
    # counters
    checkouts: int
    granted: int
    calls_ok: int
    calls_failed: int
    """Calls whose program raised; their workers are healthy."""
    calls_lost: int
    """Calls whose worker was lost."""
    calls_timeout: int
    calls_cancelled: int
    retries: int
    queue_timeouts: int
    rejected: dict[str, int]
    """Refused checkouts by error name: PoolSaturated, PoolBroken, ..."""
    shed: int
    """Those of them that had waited too long in an overloaded pool (`shed_target_s`)."""
    skips: int
    removals: int
    started: int
    replaced: int
    start_failures: int
    exits: dict[str, int]
    """Worker ends by exit reason."""
    spills: int
    """Hint sessions that moved because their worker stayed busy."""
    repins: int
    queue_wait_s_sum: float
    queue_wait_s_max: float
    run_s_sum: float
    run_s_max: float
    # how the last calls ended
    success_rate: float | None
    """Of the last 100 calls that ran and were not cancelled, the share that gave a result; None before the first."""
    consecutive_failures: int
    """Calls in a row whose program raised, whose worker was lost, or that were over their deadline."""
    last_error: str = ""
    """What went wrong last, with a call or a worker; empty: nothing."""
    last_error_age_s: float | None = None
    last_exit: ExitReport | None = None
    start_method: str = "spawn"
    start_method_reason: str = ""
    """Why another start method is used than the one asked for; empty where it is the same."""
    events_dropped: int = 0
    """Events that the on_event hook was not told of, because it was too slow."""
    usage: UsageStats = UsageStats()
    """Tokens and their price."""


class HealthChange(msgspec.Struct, frozen=True, kw_only=True):
    """The pool's status became another one."""

    age_s: float
    """How long ago."""
    status: HealthStatus
    before: HealthStatus
    ready: int
    target: int
    reason: str


class AnswerFigures(msgspec.Struct, frozen=True, kw_only=True):
    """How something that workers are asked, calls or pings, was answered."""

    done: int = 0
    """Since open(), failed ones included."""
    failed: int = 0
    consecutive_failures: int = 0
    success_rate: float | None = None
    """Of the last 100, the share that did not fail; None before the first."""
    mean_s: float | None = None
    """Of those that did not fail, the mean time from asking to the answer."""
    last_age_s: float | None = None
    """Seconds since the last one was over; None before the first."""


class PoolHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the pool can do its work: ready workers against the target, now and since open()."""

    status: HealthStatus
    ready: int
    target: int
    breaker: Literal["closed", "open", "half_open"]
    reason: str = ""
    """Why the status became what it is; empty before its first change."""
    since_s: float = 0.0
    """How long it has been that."""
    time_s: dict[HealthStatus, float] = {}
    """Seconds in each status since open(), until close()."""
    availability: float | None = None
    """The share of that time in which the pool was not unhealthy, 0 to 1; its first start counts against it."""
    availability_1h: float | None = None
    """The same for the last hour, this minute and the 59 before it."""
    changes: tuple[HealthChange, ...] = ()
    """The last 64 changes of the status, the newest last."""
    changes_unsaid: int = 0
    """Changes that no event told of, because others came within the same second."""
    pings: AnswerFigures = AnswerFigures()
    """Pings of idle workers (`ping_interval_s`); one that is missed by a worker that has got a call is not counted."""
    calls: AnswerFigures = AnswerFigures()
    """Calls that ran and were not cancelled; failed: their program raised, their worker was lost, or they took too
    long."""
    last_exit: ExitReport | None = None


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at in a pool's environment."""

    name: str
    """Which check; docs/reference/checks.md lists them."""
    status: CheckStatus
    reason: str
    """What was found."""
    advice: str = ""
    """What to do about it; empty where nothing is to be done."""
    subject: str = ""
    """What of several it is about: a program, a module, a worker group; empty where there is one only."""
    details: str = ""
    """A traceback, stacks or output, where there is one."""


class EnvironmentReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `check_environment` found."""

    pool: str
    checks: tuple[Check, ...]
    skipped: tuple[str, ...] = ()
    """Names of checks that could not be made, because one that they rest on failed, or that were not asked for."""

    @property
    def ok(self) -> bool:
        """Whether nothing failed. Warnings are no failures."""
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        """What has to be put right."""
        return tuple(check for check in self.checks if check.status == "failed")

    @property
    def warnings(self) -> tuple[Check, ...]:
        """What is worth a look."""
        return tuple(check for check in self.checks if check.status == "warning")

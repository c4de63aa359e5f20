"""dspool: a pool of warm DSPy worker processes, lent out one call at a time.

    with dspool.Pool(workers=4, lm="openai/gpt-4o-mini") as pool:
        pool.run("question -> answer", {"question": "..."}).answer

Names are imported when they are first used (PEP 562): a worker process starts without anyio, a manager without dspy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspool.errors import (
        CallTimeout as CallTimeout,
        CheckoutSkipped as CheckoutSkipped,
        DspoolError as DspoolError,
        EncodeError as EncodeError,
        FrameTooLarge as FrameTooLarge,
        InvalidMessage as InvalidMessage,
        MalformedFrame as MalformedFrame,
        OptionsError as OptionsError,
        PoolBroken as PoolBroken,
        PoolClosed as PoolClosed,
        PoolError as PoolError,
        PoolSaturated as PoolSaturated,
        ProgramError as ProgramError,
        ProgramExists as ProgramExists,
        ProgramNotFound as ProgramNotFound,
        ProgramQuarantined as ProgramQuarantined,
        ProtocolError as ProtocolError,
        QueueTimeout as QueueTimeout,
        SessionBusy as SessionBusy,
        SessionLost as SessionLost,
        WorkerError as WorkerError,
        WorkerLost as WorkerLost,
        WorkerStartError as WorkerStartError,
    )
    from dspool.lm_limits import LMLimit as LMLimit
    from dspool.options import PoolOptions as PoolOptions, WorkerGroup as WorkerGroup
    from dspool.pool.aio import AsyncPool as AsyncPool
    from dspool.pool.blocking import Pool as Pool
    from dspool.pool.environment import check_environment as check_environment
    from dspool.pool.executor import Executor as Executor
    from dspool.pool.executor_calls import ExecutorBroken as ExecutorBroken
    from dspool.pool.lease import AsyncLease as AsyncLease, Lease as Lease
    from dspool.types import (
        KEEP as KEEP,
        AnswerFigures as AnswerFigures,
        Check as Check,
        CheckoutRequest as CheckoutRequest,
        EnvironmentReport as EnvironmentReport,
        ExitReport as ExitReport,
        HealthChange as HealthChange,
        Keep as Keep,
        LMUsage as LMUsage,
        PoolHealth as PoolHealth,
        PoolStats as PoolStats,
        Remove as Remove,
        Skip as Skip,
        UsageStats as UsageStats,
        Verdict as Verdict,
        WorkerInfo as WorkerInfo,
    )

_NAMES = {
    "dspool.errors": """
        CallTimeout CheckoutSkipped DspoolError EncodeError FrameTooLarge InvalidMessage
        MalformedFrame OptionsError PoolBroken PoolClosed PoolError PoolSaturated ProgramError ProgramExists
        ProgramNotFound ProgramQuarantined ProtocolError QueueTimeout SessionBusy SessionLost WorkerError
        WorkerLost WorkerStartError
    """,
    "dspool.lm_limits": """
        LMLimit
    """,
    "dspool.options": """
        PoolOptions WorkerGroup
    """,
    "dspool.pool.aio": """
        AsyncPool
    """,
    "dspool.pool.blocking": """
        Pool
    """,
    "dspool.pool.environment": """
        check_environment
    """,
    "dspool.pool.executor": """
        Executor
    """,
    "dspool.pool.executor_calls": """
        ExecutorBroken
    """,
    "dspool.pool.lease": """
        AsyncLease Lease
    """,
    "dspool.types": """
        KEEP AnswerFigures Check CheckoutRequest EnvironmentReport ExitReport HealthChange Keep LMUsage PoolHealth
        PoolStats Remove Skip UsageStats Verdict WorkerInfo
    """,
}
_HOME_OF = {name: home for home, names in _NAMES.items() for name in names.split()}
__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = importlib.import_module("importlib.metadata").version("dspool")  # a third of a worker's start
    elif name in _HOME_OF:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module 'dspool' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

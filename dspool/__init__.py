"""dspool: a pool of warm DSPy worker processes, lent out one call at a time.

    with dspool.Pool(workers=4, lm="openai/gpt-4o-mini") as pool:
        pool.run("question -> answer", {"question": "..."}).answer

Names are imported when they are first used (PEP 562): a worker process starts without anyio, a manager without dspy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dspool.errors import (
        CallCancelled as CallCancelled,
    )
    from dspool.errors import (
        CallTimeout as CallTimeout,
    )

_HOMES = {
    "dspool.pool.blocking": ("Pool",),
    "dspool.pool.aio": ("AsyncPool",),
    "dspool.pool.lease": ("Lease", "AsyncLease"),
    "dspool.options": ("PoolOptions", "WorkerGroup"),
    "dspool.types": (
        "KEEP",
        "CheckoutRequest",
        "ExitReport",
        "PoolHealth",
        "PoolStats",
        "Remove",
        "Skip",
        "Verdict",
        "WorkerInfo",
    ),
    "dspool.errors": (
        "CallCancelled",
        "CallTimeout",
        "CheckoutSkipped",
        "DspoolError",
        "EncodeError",
        "FrameTooLarge",
        "InvalidMessage",
        "MalformedFrame",
        "OptionsError",
        "PoolBroken",
        "PoolClosed",
        "PoolError",
        "PoolSaturated",
        "ProgramError",
        "ProgramExists",
        "ProgramNotFound",
        "ProgramQuarantined",
        "ProtocolError",
        "QueueTimeout",
        "SessionBusy",
        "SessionLost",
        "WorkerError",
        "WorkerLost",
        "WorkerStartError",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'dspool' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})

"""ScriptedLauncher: real processes that speak the pipes without DSPy and do what their inputs say.

    with dspool.Pool(workers=2, launcher=ScriptedLauncher()) as pool:
        pool.run(behave, {"do": "echo", "value": 1})        # 1
        pool.run(behave, {"do": "crash"})                   # WorkerLost: killed by SIGSEGV

    ScriptedLauncher(faults=[None, "boot_error"])           # the second worker that is launched can't boot

They start in a tenth of a second, die as processes die, and can be made to misbehave on the pipes themselves. What they
can do is in `scripted_worker`; `behave` from there does the same as a program in a real worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dspool.supervisor.launch import LaunchRequest, SpawnLauncher
from dspool.supervisor.process import Launched
from dspool.testing.scripted_worker import FAULTS, behave

__all__ = ["FAULTS", "ScriptedLauncher", "behave"]

_COMMAND = ("-P", "-m", "dspool.testing.scripted_worker")


class ScriptedLauncher(SpawnLauncher):
    """Start method "scripted".

    Args:
        faults: what goes wrong with each start, in the order of launches: a name from FAULTS, or None where nothing
            does; nothing does after the last. Or a function of the worker_id that gives the same.

    Raises:
        ValueError: a fault is unknown.
    """

    start_method: str = "scripted"

    def __init__(self, faults: Sequence[str | None] | Callable[[int], str | None] = ()) -> None:
        super().__init__(_COMMAND)
        if not callable(faults):
            for fault in faults:
                _check(fault)
        self._faults = faults
        self.launched = 0

    async def launch(self, request: LaunchRequest) -> Launched:
        """Start one process; see Launcher.launch."""
        fault = self._next_fault(request.worker_id)
        command = _COMMAND if fault is None else (*_COMMAND, "--fault", fault)
        launcher = SpawnLauncher(command)
        launcher.start_method = self.start_method
        return await launcher.launch(request)

    def _next_fault(self, worker_id: int) -> str | None:
        number = self.launched
        self.launched += 1
        if callable(self._faults):
            return _check(self._faults(worker_id))
        return self._faults[number] if number < len(self._faults) else None


def _check(fault: str | None) -> str | None:
    if fault is not None and fault not in FAULTS:
        raise ValueError(f"there is no fault {fault!r}; there are {', '.join(FAULTS)}")
    return fault

"""start_soon and start for tasks that may be cancelled before their first step.

The end of asyncio.run cancels every task, also one that was started a moment ago. anyio holds a task's
coroutine in another from 4.14 on; so that of a task that never began is dropped unawaited, and Python warns, as if
the application had forgotten an await. Here it isn't made before the task begins. And anyio's own start() waits for
ever for the end of a task that never began.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Generator
from typing import Any, NoReturn

import anyio
import anyio.abc

Work = Callable[..., Coroutine[Any, Any, Any]]


def start_soon(tasks: anyio.abc.TaskGroup, work: Work, *args: Any) -> None:
    """As tasks.start_soon(work, *args)."""
    if hasattr(anyio, "TaskHandle"):
        tasks.start_soon(_Later, work, args, name=getattr(work, "__qualname__", repr(work)))
    else:
        tasks.start_soon(work, *args)


async def start(tasks: anyio.abc.TaskGroup, work: Work, *args: Any) -> None:
    """As tasks.start(work, *args), for work that gives no value. What it raises before it is started, `tasks` raises.

    Cancellation: of `tasks`, and so of the work; it is not waited for here.
    """
    status = _Status()
    start_soon(tasks, functools.partial(work, task_status=status), *args)
    await status.set.wait()


class _Status(anyio.abc.TaskStatus[None]):
    def __init__(self) -> None:
        self.set = anyio.Event()

    def started(self, value: None = None) -> None:
        self.set.set()


class _Later(Coroutine[Any, Any, Any]):
    """What `work` gives, made when it is awaited; nothing else is ever done with it."""

    def __init__(self, work: Work, args: tuple[Any, ...]) -> None:
        self._work = work
        self._args = args

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._work(*self._args).__await__()

    def send(self, value: Any) -> NoReturn:
        raise NotImplementedError

    def throw(self, *error: Any) -> NoReturn:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing was begun."""

"""A call that was submitted to an Executor: its future, and its way into a pickle and out of one.

Rules:
    1. A future stays pending until its call is over, so that the standard's own cancel() works at any time; running()
       says whether the call is under way.
    2. What was submitted is let go of when it is pickled.

Knows no pool.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import pickle
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from dspool.errors import EncodeError, ProgramError
from dspool.pool.forms import callable_name
from dspool.pool.identity import import_path
from dspool.pool.pickling import pickled
from dspool.pool.unsendable import MOST_NAMED, unsendable
from dspool.signals import let_through

T = TypeVar("T")
Outcome = tuple[Any, BaseException | None]
"""What a call returned, or what it failed with."""
_ATOMS = frozenset({type(None), bool, int, float, str, bytes})


class SettlingThread(threading.Thread):
    """The thread on which futures are settled, so that a callback can tell that it runs there."""


class SubmittedFuture(concurrent.futures.Future[T]):
    """The future of a call that was submitted to an Executor. Its cancel() ends a call that runs.

    Args:
        give_up: told when a call under way was cancelled.
    """

    def __init__(self, give_up: Callable[[SubmittedFuture[Any]], None]) -> None:
        super().__init__()
        self._give_up: Callable[[SubmittedFuture[Any]], None] | None = give_up
        self.under_way = False
        """The call was given to the pool."""

    def running(self) -> bool:
        """Whether the call was given to the pool and is not over."""
        return self.under_way and not self.done()

    def cancel(self) -> bool:
        """Cancel the call, whether it runs or not. Returns at once; one that runs is ended with its worker.

        Returns:
            Whether the future is cancelled now; False: the call was over.
        """
        try:
            return super().cancel()
        finally:  # also where a callback of the caller's ends this thread, or Ctrl-C comes here
            give_up = self._give_up
            if give_up is not None and self.under_way and self.cancelled():
                give_up(self)

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[T]], object]) -> None:
        """Call `fn` with the future when its call is over; at once where it is.

        What `fn` raises is logged, as the standard does it, and harms no other call: sys.exit() in it, too.
        """
        super().add_done_callback(partial(_call_back, fn))

    def __repr__(self) -> str:
        text = super().__repr__()
        return text.replace("state=pending", "state=running", 1) if self.running() else text

    def settle(self, value: Any, error: BaseException | None) -> None:
        """The call is over. The loop's thread calls this, once."""
        self._give_up = None
        if not self.set_running_or_notify_cancel():
            return
        if error is not None:
            self.set_exception(error)
        else:
            self.set_result(value)


def _call_back(fn: Callable[[concurrent.futures.Future[T]], object], future: concurrent.futures.Future[T]) -> None:
    """What a future's callback raises beyond Exception would end the thread that calls it, and every call with that."""
    try:
        fn(future)
    except Exception:
        raise
    except BaseException as error:
        if not isinstance(threading.current_thread(), SettlingThread):
            raise  # the caller's own thread, in cancel() or of a future that was done
        raise RuntimeError(f"a future's callback raised {type(error).__name__}: {error}") from error


class Call(Generic[T]):
    """A call that was submitted."""

    __slots__ = ("args", "fn", "future", "kwargs", "task")

    def __init__(self, future: SubmittedFuture[T], fn: Callable[..., T], args: tuple[Any, ...], kwargs: Any) -> None:
        self.future = future
        self.fn: Callable[..., T] | None = fn
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs
        self.task: asyncio.Task[Outcome] | None = None

    def pickle(self, pool: str) -> tuple[str, bytes]:
        """The function's name, and the call as it travels. What was submitted is let go of.

        Raises:
            EncodeError: it can't be pickled; the text says which part of it.
        """
        call = (self.fn, self.args, self.kwargs)
        name = callable_name(self.fn)
        self.fn, self.args, self.kwargs = None, (), {}
        try:
            return name, _pickled(call)
        except BaseException as error:  # SystemExit too, of an object's own __reduce__
            what = _faults(call) if isinstance(error, Exception) else repr(error)
            raise EncodeError(f"pool {pool!r}: a call of {name} can't be pickled, because of {what}") from error


def _faults(call: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> str:
    """Which parts of a call can't be pickled, and why, in the words of who submitted it."""
    function, args, kwargs = call
    parts = [("the function", function)]
    parts += [(f"its argument {number}", each) for number, each in enumerate(args, 1)]
    parts += [(f"its argument {name!r:.60}", each) for name, each in kwargs.items()]
    faults = []
    for label, part in parts:
        try:
            pickled(part)
        except Exception as error:
            let_through(error)
            faults.append(unsendable(part, label))
    return "; ".join(faults[:MOST_NAMED]) or unsendable(call, "all of it")


def _pickled(call: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> bytes:
    """A call's pickle; by the quick way where the worker imports the function and its arguments are plain."""
    function, args, kwargs = call
    if (
        _ATOMS.issuperset(map(type, args))
        and _ATOMS.issuperset(map(type, kwargs.values()))
        and import_path(function) is not None
    ):
        return pickle.dumps(call, pickle.HIGHEST_PROTOCOL)
    return pickled(call)


def rebuilt(data: bytes, failure: ProgramError) -> BaseException:
    """The function's own exception, from the ProgramError; that alone where the exception can't be rebuilt here."""
    try:
        error = pickle.loads(data)
        if not isinstance(error, BaseException):
            return failure
        error.__cause__ = failure
    except BaseException as reason:
        failure.add_note(f"Its class could not be rebuilt here: {type(reason).__name__}: {reason}")
        return failure
    return error

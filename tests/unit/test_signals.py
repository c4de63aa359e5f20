"""What a signal handler raised is told from what the interrupted code raised, and nothing of ours keeps it."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import pytest

import dspool
from dspool.options import PoolOptions
from dspool.pool.programs import ProgramStore
from dspool.pool.watch import Watch
from dspool.protocol.codec import MSGPACK
from dspool.protocol.messages import ExecuteArgs
from dspool.protocol.requests import encode_request
from dspool.protocol.values import revive, to_plain
from dspool.signals import let_through
from dspool.testing.fake import FakeLauncher
from dspool.testing.pytest_plugin import MakePool

pytestmark = pytest.mark.unit


class Late(Exception):
    """The application's own time limit; of no type that anything of ours looks for."""


def late(signum: int, frame: FrameType | None) -> None:
    """A handler."""
    raise Late


class Handler:
    """Handlers that aren't plain functions."""

    def method(self, signum: int, frame: FrameType | None) -> None:
        """A bound method."""
        raise Late

    def __call__(self, *arguments: Any) -> None:
        raise Late


def wrapped(*arguments: Any, **more: Any) -> None:
    """A handler behind a decorator."""
    late(*arguments)


def keep(raises: Callable[[], Any]) -> None:
    """Code of ours that goes on whatever somebody else's code raises."""
    try:
        raises()
    except Exception as error:
        let_through(error)


@pytest.fixture
def alarm() -> Iterator[Callable[..., Any]]:
    """A function that a handler interrupts as it is called: the alarm goes off inside."""
    before = signal.signal(signal.SIGALRM, late)

    def go_off(*_: Any, **__: Any) -> Any:
        signal.raise_signal(signal.SIGALRM)

    yield go_off
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "handler",
    [
        late,
        Handler().method,
        Handler(),
        wrapped,
        functools.partial(wrapped, more=1),
        lambda number, frame: late(1, None),
    ],
)
def test_a_handlers_exception_is_known_whatever_the_handler_is(alarm: Callable[..., Any], handler: Any) -> None:
    signal.signal(signal.SIGALRM, handler)
    with pytest.raises(Late):
        keep(alarm)


def test_what_others_raise_is_left_alone(alarm: Callable[..., Any]) -> None:
    def takes_a_number_and_a_frame(number: int, frame: object) -> None:
        raise Late

    for raises in (lambda: takes_a_number_and_a_frame(1, object()), lambda: late(14, None), lambda: 1 / 0):
        keep(raises)


def test_a_handlers_exception_is_known_where_it_is_another_ones_cause(alarm: Callable[..., Any]) -> None:
    def makes_another() -> None:
        try:
            alarm()
        except Late as error:
            raise ValueError("made of it") from error

    with pytest.raises(Late):
        keep(makes_another)


def test_an_error_that_is_its_own_cause_is_looked_at_once(alarm: Callable[..., Any]) -> None:
    def ring() -> None:
        first, second = ValueError("first"), ValueError("second")
        first.__cause__, second.__cause__ = second, first
        raise first

    def itself() -> None:
        try:
            raise ValueError
        except ValueError as error:
            raise error from error

    for raises in (ring, itself):
        keep(raises)


class Part:
    """A value that is interrupted whatever is done with it."""

    def __init__(self, alarm: Callable[..., Any]) -> None:
        self.alarm = alarm

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.alarm()


class Items(Mapping[str, Any]):
    """A mapping that is interrupted when it is read."""

    def __init__(self, alarm: Callable[..., Any]) -> None:
        self.alarm = alarm

    def __getitem__(self, key: str) -> Any:
        return self.alarm()

    def __iter__(self) -> Iterator[str]:
        self.alarm()
        return iter(())

    def __len__(self) -> int:
        return 1


def test_none_of_our_own_excepts_keeps_it(alarm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    store = ProgramStore(PoolOptions(workers=1))
    part = Part(alarm)
    with pytest.raises(Late):
        store.resolve(lambda: part)
    with pytest.raises(Late):
        to_plain({"value": Items(alarm)}, "inputs")
    watch = Watch([])
    watch._weak = [(alarm, {})]  # type: ignore[list-item]
    with pytest.raises(Late):
        watch.unchanged()
    with pytest.raises(Late):
        encode_request("execute_program", ExecuteArgs("p", {"value": Items(alarm)}), 10_000)
    monkeypatch.setattr(MSGPACK, "_responses", type("Decoder", (), {"decode": alarm}))
    with pytest.raises(Late):
        MSGPACK.decode_response(b"")


def test_a_validator_that_is_interrupted(alarm: Callable[..., Any]) -> None:
    pydantic = pytest.importorskip("pydantic")

    class Model(pydantic.BaseModel):  # type: ignore[name-defined]
        """A model whose validator is interrupted."""

        name: str

        @pydantic.field_validator("name")  # type: ignore[untyped-decorator]
        @classmethod
        def check(cls, value: str) -> str:
            """Interrupted."""
            alarm()
            return value

    with pytest.raises(Late):
        revive({"name": "x"}, Model)


def test_a_check_hook_that_is_interrupted_costs_no_worker(alarm: Callable[..., Any], make_pool: MakePool) -> None:
    interrupt = [True]

    def check(worker: dspool.WorkerInfo, request: dspool.CheckoutRequest) -> dspool.Verdict:
        if interrupt.pop():
            alarm()
        return dspool.KEEP

    pool = make_pool(workers=1, launcher=FakeLauncher(lambda call: call.inputs), check=check)
    with pytest.raises(Late):
        pool.run(late, {})
    interrupt.append(False)
    assert pool.run(late, {"value": 1}) == {"value": 1}
    stats = pool.stats()
    assert (stats.exits, stats.removals, stats.leased) == ({}, 0, 0)


def test_on_another_thread_nothing_is_looked_at(alarm: Callable[..., Any]) -> None:
    kept: list[BaseException] = []
    try:
        alarm()
    except Late as error:
        kept.append(error)
    thread = threading.Thread(target=let_through, args=kept)
    thread.start()
    thread.join()

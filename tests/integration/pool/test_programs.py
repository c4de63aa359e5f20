"""Programs in real workers: DSPy over real HTTP to a stub, typed results, LMs per call, and what they do wrong."""

from __future__ import annotations

import datetime as dt
import enum
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import pydantic
import pytest

import dspool
from dspool.testing.pytest_plugin import MakePool
from dspool.testing.scripted import behave
from dspool.testing.stub_lm import StubLM

pytestmark = [pytest.mark.integration, pytest.mark.slow]


class Mood(enum.Enum):
    """A choice."""

    GOOD = "good"
    BAD = "bad"


class Person(pydantic.BaseModel):
    """A model."""

    name: str
    born: dt.date


@pytest.fixture
def stub(dspy: Any) -> Iterator[StubLM]:
    """An LM on loopback that echoes."""
    with StubLM() as server:
        yield server


# --- plain callables --------------------------------------------------------------------------------------------------


def add(left: int, right: int = 1) -> int:
    """A callable with inputs."""
    return left + right


def raises(message: str) -> None:
    """A callable that raises, in a way that has a cause."""
    try:
        raise KeyError("cause")
    except KeyError as error:
        raise LookupError(message) from error


async def later(value: int) -> int:
    """A coroutine function."""
    return value


def test_callables_by_object_and_by_path(make_pool: MakePool) -> None:
    pool = make_pool(workers=1)
    assert pool.run(add, {"left": 1, "right": 2}) == 3
    assert pool.run(add, {"left": 1}) == 2
    assert pool.run(later, {"value": 4}) == 4
    assert pool.run("tests.integration.pool.test_programs:add", {"left": 1}) == 2


@pytest.mark.parametrize("start_method", ["template", "spawn"])
def test_a_pool_of_callables_never_imports_dspy_in_its_workers(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, start_method: Any
) -> None:
    monkeypatch.delitem(sys.modules, "dspy", raising=False)  # an application that has it imported means to use it
    pool = make_pool(workers=1, start_method=start_method)
    assert pool.run(behave, {"do": "loaded", "names": ["dspy", "anyio", "msgspec"]}) == ["msgspec"]


@pytest.mark.parametrize(
    ("inputs", "missing", "unknown"),
    [({}, ["left"], []), ({"left": 1, "up": 2}, [], ["up"]), ({"right": 1, "down": 2}, ["left"], ["down"])],
)
def test_missing_and_unknown_inputs_are_named(
    make_pool: MakePool, inputs: dict[str, int], missing: list[str], unknown: list[str]
) -> None:
    pool = make_pool(workers=1)
    with pytest.raises(dspool.ProgramError) as caught:
        pool.run(add, inputs)
    assert caught.value.code == "invalid_args"
    assert caught.value.details == {"expected": ["left", "right"], "missing": missing, "unknown": unknown}
    assert all(name in str(caught.value) for name in [*missing, *unknown])
    assert pool.stats().exits == {}


def test_a_program_that_raises_gives_the_remote_traceback(make_pool: MakePool) -> None:
    pool = make_pool(workers=1)
    with pytest.raises(dspool.ProgramError, match="not today") as caught:
        pool.run(raises, {"message": "not today"})
    error = caught.value
    assert (error.code, error.type, error.retryable) == ("program_error", "builtins.LookupError", False)
    assert error.mro[:2] == ("builtins.LookupError", "builtins.Exception")
    assert "KeyError: 'cause'" in error.remote_traceback
    assert "raise LookupError(message) from error" in error.remote_traceback
    assert pool.stats().exits == {}


def test_a_program_that_prints_a_megabyte_from_c_and_then_dies(make_pool: MakePool) -> None:
    pool = make_pool(workers=1)
    assert pool.run(behave, {"do": "flood", "size": 1_000_000}) == 1_000_000
    assert pool.run(behave, {"do": "say", "text": "my last words"}) == "my last words"
    with pytest.raises(dspool.WorkerLost, match=r"exited \(exit code 3\)") as caught:
        pool.run(behave, {"do": "leave", "code": 3})
    report = caught.value.report
    assert report is not None
    assert (report.reason, report.exit_code, report.calls) == ("exited", 3, 3)
    assert report.output_tail.endswith("my last words\n")
    assert 8000 < len(report.output_tail) <= 8192


def test_a_program_that_calls_exit_does_not_end_its_worker(make_pool: MakePool) -> None:
    pool = make_pool(workers=1)
    with pytest.raises(dspool.ProgramError, match="exit"):
        pool.run(sys.exit, {})
    assert pool.stats().exits == {}


def test_a_result_that_cannot_be_sent_names_its_place(make_pool: MakePool) -> None:
    pool = make_pool(workers=1)
    with pytest.raises(dspool.ProgramError, match=r"\['lock'\]") as caught:
        pool.run(unsendable, {})
    assert caught.value.code == "encode_error"
    assert pool.stats().exits == {}


def count_up(n: int) -> Iterator[int]:
    """A program for stream()."""
    yield from range(n)


async def count_later(n: int) -> AsyncIterator[int]:
    """Another one."""
    for number in range(n):
        yield number


@pytest.mark.parametrize("program", [count_up, count_later])
def test_a_generator_that_is_run_is_told_of_stream(make_pool: MakePool, program: Any) -> None:
    pool = make_pool(workers=1)
    with pytest.raises(dspool.ProgramError, match=r"call it with stream\(\), which hands its items out"):
        pool.run(program, {"n": 2})
    assert list(pool.stream(program, {"n": 2})) == [0, 1]


@pytest.mark.parametrize("status", [3, "yes", "", ["a"]])
def test_a_status_that_is_none_is_refused_before_the_call(make_pool: MakePool, status: Any) -> None:
    pool = make_pool(workers=1, lazy=True)
    with pytest.raises(dspool.OptionsError, match="status must be True, False, a StatusMessageProvider of DSPy's"):
        pool.stream(count_up, {"n": 2}, status=status)


def unsendable() -> dict[str, Any]:
    """A value with something in it that has no plain form."""
    return {"fine": 1, "lock": threading.Lock()}


def test_a_grandchild_dies_with_its_worker(make_pool: MakePool) -> None:
    pool = make_pool(workers=1)
    with tempfile.TemporaryDirectory(prefix="dsp") as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/s")
        listener.listen()
        listener.settimeout(20)
        errors: list[dspool.WorkerLost] = []

        def run() -> None:
            try:
                pool.run(behave, {"do": "deaf", "path": f"{folder}/s"})
            except dspool.WorkerLost as error:
                errors.append(error)

        call = threading.Thread(target=run)
        call.start()
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(20)
            told = b""
            while told.count(b"\n") < 3:
                told += sock.recv(100)
            (worker,) = pool.workers()
            pool.kill(worker.worker_id)
            while sock.recv(100):  # every process of the group holds it open
                pass
        call.join()
        assert len(errors) == 1


# --- DSPy -------------------------------------------------------------------------------------------------------------


def test_a_signature_string_runs_over_http_and_reports_its_tokens(make_pool: MakePool, stub: StubLM) -> None:
    pool = make_pool(workers=2, lm=stub.lm())
    prediction = pool.run("question -> answer", {"question": "why?"})
    assert prediction.answer == "echo: why?"
    (usage,) = prediction.get_lm_usage().values()
    assert usage["total_tokens"] > 0
    rows = [{"question": str(number)} for number in range(6)]
    answers = [each.answer for each in pool.map("question -> answer", rows)]
    assert answers == [f"echo: {number}" for number in range(6)]
    with pytest.raises(dspool.ProgramError) as caught:
        pool.run("question -> answer", {"quest": "why?"})
    assert caught.value.code == "invalid_args"
    assert caught.value.details["missing"] == ["question"]
    assert caught.value.details["unknown"] == ["quest"]


def test_typed_results_come_back_as_their_own_types(make_pool: MakePool, stub: StubLM, dspy: Any) -> None:
    inputs: dict[str, Any] = {
        "question": "who?",
        "since": dt.datetime(2025, 1, 1, tzinfo=dt.UTC),
        "picture": dspy.Image("data:image/png;base64,iVBORw0KGgo="),
        "mood_before": Mood.BAD,
    }
    outputs: dict[str, Any] = {
        "mood": Mood,
        "choice": Literal["a", "b"],
        "names": list[str],
        "person": Person,
        "when": dt.datetime,
        "count": int,
    }
    fields = {name: (type(value), dspy.InputField()) for name, value in inputs.items()}
    fields |= {name: (kind, dspy.OutputField()) for name, kind in outputs.items()}
    program = dspy.Predict(dspy.Signature(fields, "Describe."))
    person = '{"name": "Ada", "born": "1815-12-10"}'
    answers = {
        "mood": "good",
        "choice": "b",
        "names": '["x", "y"]',
        "person": person,
        "when": "2026-01-02T03:04:05",
        "count": "3",
    }
    with StubLM(answers=answers) as server:
        pool = make_pool(workers=1, lm=server.lm())
        found = pool.run(program, inputs)
        assert found.mood is Mood.GOOD
        assert (found.choice, found.names, found.count) == ("b", ["x", "y"], 3)
        assert found.person == Person(name="Ada", born=dt.date(1815, 12, 10))
        assert found.when == dt.datetime(2026, 1, 2, 3, 4, 5)
        request = str(server.requests[-1])
        assert "data:image/png;base64,iVBORw0KGgo=" in request
        assert "2025-01-01" in request
        assert "bad" in request


def test_a_calls_own_lm_wins_over_the_pools(make_pool: MakePool, stub: StubLM, dspy: Any) -> None:
    with StubLM(answers={"answer": "another"}) as other:
        pool = make_pool(workers=1, lm=stub.lm())
        program = dspy.ChainOfThought("question -> answer")
        assert pool.run(program, {"question": "q"}).answer == "echo: q"
        assert pool.run(program, {"question": "q"}, lm=other.lm()).answer == "another"
        with pool.checkout() as lease:
            assert lease.run(program, {"question": "q"}, lm=other.lm()).answer == "another"
            assert lease.run(program, {"question": "q"}).answer == "echo: q"


def test_an_lms_error_keeps_its_status(make_pool: MakePool, dspy: Any) -> None:
    with StubLM(faults={"429": "too many", "401": "who are you"}, retry_after_s=7) as server:
        pool = make_pool(workers=1, lm=server.lm(num_retries=0))
        with pytest.raises(dspool.ProgramError) as caught:
            pool.run("question -> answer", {"question": "too many"})
        error = caught.value
        assert (error.code, error.status, error.retryable) == ("lm_error", 429, True)
        with pytest.raises(dspool.ProgramError) as caught:
            pool.run("question -> answer", {"question": "who are you"})
        assert (caught.value.code, caught.value.status, caught.value.retryable) == ("lm_error", 401, False)
        assert "stub-key" not in str(caught.value) + caught.value.remote_traceback
        assert pool.run("question -> answer", {"question": "fine"}).answer == "echo: fine"
        assert pool.stats().exits == {}


def test_a_module_with_several_slots_and_a_registered_name(make_pool: MakePool, stub: StubLM, dspy: Any) -> None:
    class Twice(dspy.Module):
        """Two predictors."""

        def __init__(self) -> None:
            super().__init__()
            self.first = dspy.Predict("question -> answer")
            self.second = dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            return self.second(question=self.first(question=question).answer)

    pool = make_pool(workers=1, slots=4, lm=stub.lm())
    pool.create_program("twice", Twice())
    assert pool.list_programs() == ["twice"]
    rows = [{"question": str(number)} for number in range(8)]
    found = [each.answer for each in pool.map("twice", rows)]
    assert found == [f"echo: echo: {number}" for number in range(8)]
    with pytest.raises(dspool.ProgramExists):
        pool.create_program("twice", Twice())
    pool.delete_program("twice")
    with pytest.raises(dspool.ProgramNotFound):
        pool.run("twice", {"question": "q"})

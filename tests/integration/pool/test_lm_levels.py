"""Which LM a call runs with: its own, its program's, the pool's, the caller's; each in every form, over real HTTP.

The stub says which model was asked, and with which key. Each LM here has a model and a key named after its level.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import dspool
from dspool.testing.pytest_plugin import MakeAsyncPool, MakePool
from dspool.testing.stub_lm import StubLM
from dspool.testing.stub_request import Provider

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ASK = {"question": "q"}
Form = Callable[..., Any]
"""Makes an LM from a level's name."""


@pytest.fixture
def stub(dspy: Any) -> Iterator[StubLM]:
    """The server that all the LMs lead to."""
    with StubLM() as server:
        yield server


def arguments(stub: StubLM, level: str, provider: Provider = "openai") -> dict[str, Any]:
    """A level's LM as a dict."""
    return stub.settings(provider, model=f"{provider}/{level}", api_key=f"key-of-the-{level}")


@pytest.fixture(params=["dict", "object"])
def form(request: pytest.FixtureRequest, stub: StubLM, dspy: Any) -> Form:
    """Makes an LM for a level: a dict, or a dspy.LM."""
    if request.param == "dict":
        return lambda level: arguments(stub, level)
    return lambda level: dspy.LM(**arguments(stub, level))


def pinned(dspy: Any, stub: StubLM) -> Any:
    """A program whose predictor has an LM of its own."""
    program = dspy.ChainOfThought("question -> answer")
    program.set_lm(dspy.LM(**arguments(stub, "program")))
    return program


def asked(stub: StubLM) -> str:
    """The level whose LM was asked last, by model and by key."""
    last = stub.calls[-1]
    assert last.key == f"key-of-the-{last.model}"
    return last.model


def test_call_before_program_before_pool_before_the_callers_own(
    make_pool: MakePool, stub: StubLM, form: Form, dspy: Any
) -> None:
    plain, own = "question -> answer", pinned(dspy, stub)
    pool = make_pool(workers=1, lm=form("pool"))
    with dspy.context(lm=dspy.LM(**arguments(stub, "ambient"))):
        for program, lm, expected in (
            (plain, None, "pool"),
            (own, None, "program"),
            (plain, form("call"), "call"),
            (own, form("call"), "call"),
            (own, None, "program"),
            (plain, None, "pool"),
        ):
            assert pool.run(program, ASK, lm=lm).answer == "echo: q"
            assert asked(stub) == expected
    assert pool.run(plain, ASK).answer == "echo: q"
    assert asked(stub) == "pool"


def test_the_callers_own_lm_gives_way_to_a_programs(make_pool: MakePool, stub: StubLM, form: Form, dspy: Any) -> None:
    pool, own = make_pool(workers=1), pinned(dspy, stub)
    with dspy.context(lm=dspy.LM(**arguments(stub, "ambient"))):
        for program, lm, expected in (
            ("question -> answer", None, "ambient"),
            (own, None, "program"),
            (own, form("call"), "call"),
            ("question -> answer", form("call"), "call"),
        ):
            pool.run(program, ASK, lm=lm)
            assert asked(stub) == expected


def defined(lm: Any) -> dict[str, Any]:
    """A program as a definition, with an LM of its own."""
    return {"signature": {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}, "lm": lm}


def test_a_definitions_lm_is_its_programs(make_pool: MakePool, stub: StubLM, form: Form, dspy: Any) -> None:
    pool = make_pool(workers=1, lm=form("pool"))
    pool.create_program("named", defined(form("program")))
    with dspy.context(lm=dspy.LM(**arguments(stub, "ambient"))):
        for program in ("named", defined(form("program"))):
            for lm, expected in ((None, "program"), (form("call"), "call")):
                assert pool.run(program, ASK, lm=lm).answer == "echo: q"
                assert asked(stub) == expected
    without = make_pool(workers=1, name="without")
    with dspy.context(lm=dspy.LM(**arguments(stub, "ambient"))):
        without.run(defined(form("program")), ASK)
    assert asked(stub) == "program"


def test_map_and_a_lease_take_an_lm_too(make_pool: MakePool, stub: StubLM, form: Form, dspy: Any) -> None:
    pool, own = make_pool(workers=1, lm=form("pool")), pinned(dspy, stub)
    for program, lm, expected in (
        (own, form("call"), "call"),
        (own, None, "program"),
        ("question -> answer", None, "pool"),
    ):
        assert len(list(pool.map(program, [ASK, ASK], lm=lm))) == 2
        assert [call.model for call in stub.calls[-2:]] == [expected] * 2
        with pool.checkout() as lease:
            lease.run(program, ASK, lm=lm)
            assert asked(stub) == expected
            lease.run("question -> answer", ASK)
            assert asked(stub) == "pool"


@asynccontextmanager
async def opened(pool: dspool.AsyncPool) -> AsyncIterator[dspool.AsyncPool]:
    """An open pool, for a limited time."""
    with anyio.fail_after(60):
        async with pool:
            yield pool


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_async_pool_goes_by_the_same_order(
    make_async_pool: MakeAsyncPool, stub: StubLM, form: Form, dspy: Any, backend: str
) -> None:
    async def main() -> None:
        own = pinned(dspy, stub)
        async with opened(make_async_pool(workers=1, lm=form("pool"))) as pool:
            for program, lm, expected in (
                ("question -> answer", None, "pool"),
                (own, None, "program"),
                (own, form("call"), "call"),
            ):
                await pool.run(program, ASK, lm=lm)
                assert asked(stub) == expected
                assert [row.answer async for row in pool.map(program, [ASK], lm=lm)] == ["echo: q"]
                assert asked(stub) == expected
                async with await pool.checkout() as lease:
                    await lease.run(program, ASK, lm=lm)
                    assert asked(stub) == expected

    anyio.run(main, backend=backend)


def test_a_name_alone_takes_address_and_key_from_the_environment(
    make_pool: MakePool, stub: StubLM, tmp_path: Path
) -> None:
    env = {"OPENAI_API_BASE": stub.url, "OPENAI_API_KEY": "key-of-the-environment", "DSPY_CACHEDIR": str(tmp_path)}
    pool = make_pool(workers=1, lm="openai/pool", env=env, timeout_s=60)
    own = defined("openai/program")
    for program, lm, model in (
        ("question -> answer", None, "pool"),
        (own, None, "program"),
        (own, "openai/call", "call"),
        ("question -> answer", "openai/call-of-another", "call-of-another"),
    ):
        assert pool.run(program, {"question": f"with {model}"}, lm=lm).answer == f"echo: with {model}"
        assert (stub.calls[-1].model, stub.calls[-1].key) == (model, "key-of-the-environment")


@pytest.mark.parametrize("provider", ["openai", "anthropic", "gemini"])
def test_a_key_in_the_workers_environment_is_used(make_pool: MakePool, stub: StubLM, provider: Provider) -> None:
    settings = {name: value for name, value in arguments(stub, "pool", provider).items() if name != "api_key"}
    pool = make_pool(workers=1, lm=settings, env={f"{provider.upper()}_API_KEY": "key-of-the-pool"})
    pool.run("question -> answer", ASK)
    assert asked(stub) == "pool"


# Plain callables that use DSPy inside.


def asks(question: str) -> Any:
    """A callable that runs a predictor."""
    import dspy

    return dspy.Predict("question -> answer")(question=question).answer


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("start_method", ["template", "spawn"])
def test_a_callable_that_uses_dspy_goes_by_the_same_order(
    make_pool: MakePool, stub: StubLM, form: Form, dspy: Any, slots: int, start_method: Any
) -> None:
    pool = make_pool(workers=1, slots=slots, lm=form("pool"), start_method=start_method)
    for lm, expected in ((None, "pool"), (form("call"), "call"), (None, "pool")):
        assert pool.run(asks, ASK, lm=lm) == "echo: q"
        assert asked(stub) == expected
    bare = make_pool(workers=1, slots=slots, start_method=start_method, name="bare")
    assert bare.run(asks, ASK, lm=form("call")) == "echo: q"
    with dspy.context(lm=dspy.LM(**arguments(stub, "ambient"))):
        assert bare.run(asks, ASK) == "echo: q"
    assert asked(stub) == "ambient"
    with pytest.raises(dspool.ProgramError, match=r"found no LM\. Pass lm= to the pool or to the call"):
        bare.run(asks, ASK)


def test_a_callables_requests_end_with_its_deadline(make_pool: MakePool, stub: StubLM, form: Form) -> None:
    with StubLM(faults={"429": 1.0}, retry_after_s=500) as busy:
        pool = make_pool(workers=1, lm=busy.settings(num_retries=3))
        with pytest.raises(dspool.ProgramError) as caught:  # not CallTimeout: it knows that it can't wait for so long
            pool.run(asks, ASK, timeout_s=20)
        assert caught.value.code == "lm_error"
        assert pool.run(asks, ASK, lm=form("call")) == "echo: q"
        assert pool.stats().exits == {}

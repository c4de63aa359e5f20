"""A key that is known to be missing is told once for each LM, before a call fails for it; and nothing is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import dspool
from dspool.pool import lm_keys
from dspool.testing.fake import FakeLauncher
from dspool.testing.pytest_plugin import MakeAsyncPool, MakePool

pytestmark = pytest.mark.integration

NO_KEYS: dict[str, str | None] = {"OPENAI_API_KEY": None, "OPENAI_API_BASE": None, "OPENAI_BASE_URL": None}


def echo(**inputs: Any) -> Any:
    """A program; the fake answers in its place."""
    return inputs


@pytest.fixture
def open_pool(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dspool.Pool]:
    """A pool of workers in memory, in an environment without keys."""
    for name in list(os.environ):
        if name.endswith(("_API_KEY", "_API_BASE", "_BASE_URL")):
            monkeypatch.delenv(name)
    return lambda **options: make_pool(workers=1, launcher=FakeLauncher(lambda call: call.inputs), **options)


def warned(logged: list[Any]) -> list[str]:
    """What was said of missing keys."""
    found = [line for line in logged if line["event"] == "lm.key_missing"]
    assert all(line["log_level"] == "warning" and line["pool"] for line in found)
    return [line["detail"] for line in found]


def test_the_pools_lm_is_looked_at_when_it_is_opened(open_pool: Callable[..., dspool.Pool], logged: list[Any]) -> None:
    pool = open_pool(lm="openai/gpt-4o-mini")
    (text,) = warned(logged)
    assert "'openai/gpt-4o-mini' has no key: OPENAI_API_KEY is not set" in text
    assert "env= of the pool" in text
    for _ in range(3):
        assert pool.run(echo, {"value": 1}) == {"value": 1}
    assert warned(logged) == [text]


def test_a_calls_lm_is_looked_at_when_it_is_first_used(
    open_pool: Callable[..., dspool.Pool], logged: list[Any]
) -> None:
    told: list[tuple[str, Any]] = []
    pool = open_pool(on_event=lambda event, fields: told.append((event, dict(fields))))
    for lm in ("gemini/g", {"model": "anthropic/a"}, "gemini/g", {"model": "openai/m", "api_key": "k"}):
        pool.run(echo, {"value": 1}, lm=lm)
    with pool.checkout() as lease:
        lease.run(echo, {"value": 1}, lm={"model": "anthropic/a"})
    assert list(pool.map(echo, [{"value": 1}] * 3, lm="gemini/g")) == [{"value": 1}] * 3
    pool.close()
    texts = warned(logged)
    assert ["GEMINI_API_KEY or GOOGLE_API_KEY" in text for text in texts] == [True, False]
    assert ["ANTHROPIC_API_KEY" in text for text in texts] == [False, True]
    assert [fields["model"] for event, fields in told if event == "lm.key_missing"] == ["gemini/g", "anthropic/a"]


@pytest.mark.slow
def test_a_programs_and_the_callers_lm_are_looked_at_too(
    open_pool: Callable[..., dspool.Pool], logged: list[Any]
) -> None:
    dspy = pytest.importorskip("dspy")
    program = dspy.ChainOfThought("question -> answer")
    program.set_lm(dspy.LM("openai/of-the-program"))
    pool = open_pool()
    for _ in range(2):
        pool.run(program, {"question": "?"})
    with dspy.context(lm=dspy.LM("openai/of-the-caller")):
        pool.run(echo, {"value": 1})
    assert [text.split("'")[1] for text in warned(logged)] == ["openai/of-the-program", "openai/of-the-caller"]
    signature = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}
    pool.create_program("defined", {"signature": signature, "lm": "openai/of-the-definition"})
    assert [text.split("'")[1] for text in warned(logged)][2:] == ["openai/of-the-definition"]
    logged.clear()
    open_pool(warm=[program], name="warm")
    assert [text.split("'")[1] for text in warned(logged)] == ["openai/of-the-program"]


def test_the_workers_environment_counts_not_only_the_managers(
    open_pool: Callable[..., dspool.Pool], monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    open_pool(lm="openai/m", env={"OPENAI_API_KEY": "sk-0123456789"}, name="given")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    open_pool(lm="openai/m", name="inherited")
    assert warned(logged) == []
    open_pool(lm="openai/m", env=NO_KEYS, name="taken-away")
    assert len(warned(logged)) == 1


def test_groups_are_told_apart(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, logged: list[Any]) -> None:
    for name in NO_KEYS:
        monkeypatch.delenv(name, raising=False)
    groups = [
        dspool.WorkerGroup(name="with", workers=1, env={"OPENAI_API_KEY": "sk-0123456789"}),
        dspool.WorkerGroup(name="without", workers=1),
    ]
    fakes = FakeLauncher(lambda call: call.inputs)
    pool = make_pool(workers=groups, launcher=fakes, lm="openai/m")
    (text,) = warned(logged)
    assert text.endswith("That is so in the worker groups without")
    pool.run(echo, {"value": 1}, lm="openai/another")  # it may be meant for the group that has a key
    assert len(warned(logged)) == 1


def test_lms_without_end_are_not_remembered_without_end(
    open_pool: Callable[..., dspool.Pool], monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    monkeypatch.setattr(lm_keys, "MAX_SEEN", 3)
    pool = open_pool()
    for number in range(6):
        pool.run(echo, {"value": 1}, lm=f"openai/{number}")
    assert len(warned(logged)) == 3


def test_an_async_pool_warns_too(make_async_pool: MakeAsyncPool, logged: list[Any]) -> None:
    async def main() -> None:
        launcher = FakeLauncher(lambda call: call.inputs)
        async with make_async_pool(workers=1, launcher=launcher, lm="openai/m", env=NO_KEYS) as pool:
            assert await pool.run(echo, {"value": 1}) == {"value": 1}
            assert await pool.run(echo, {"value": 1}, lm="openai/n") == {"value": 1}

    anyio.run(main)
    assert len(warned(logged)) == 2

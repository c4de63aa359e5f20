"""stats().usage over real workers and a stub LM: each call's tokens and their price, whichever way it was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

import dspool
from dspool.testing.stub_lm import StubLM
from dspool.types import LMUsage
from tests.contract.subject import Subject, World

pytestmark = [pytest.mark.only("real"), pytest.mark.every_front]

QA = "question -> answer"
ASK = {"question": "why?"}
PRICED, FREE = "openai/gpt-4o-mini", "openai/stub"


def plain(text: str) -> str:
    return text.upper()


def ask_then_fail(question: str) -> str:
    import dspy

    dspy.Predict("question -> answer")(question=question)
    raise LookupError("no more")


def ask_and_give(question: str) -> Any:
    import dspy

    dspy.Predict("question -> answer")(question=question)
    return object()


def ask_in_parallel(question: str) -> int:
    import dspy

    predict = dspy.Predict("question -> answer")
    pairs = [(predict, {"question": f"{question} {number}"}) for number in range(4)]
    return len(dspy.Parallel(num_threads=2, disable_progress_bar=True)(pairs))


def ask_in_a_tracker_of_its_own(question: str) -> str:
    import dspy

    with dspy.track_usage():
        answer: str = dspy.Predict("question -> answer")(question=question).answer
    return answer


def rate(total: LMUsage) -> float:
    """What gpt-4o-mini costs, by what DSPy's price list says of it."""
    from dspy.clients.model_metadata import model_info

    prices = model_info("openai", "gpt-4o-mini")
    return float(
        total.prompt_tokens * prices["input_cost_per_token"] + total.completion_tokens * prices["output_cost_per_token"]
    )


async def use_of(pool: Subject) -> dspool.UsageStats:
    """stats().usage, which adds up."""
    usage = (await pool.stats()).usage
    for table in (usage.by_model, usage.by_program):
        assert sum(row.total_tokens for row in table.values()) == usage.total.total_tokens
        assert sum(row.requests for row in table.values()) == usage.total.requests
    return usage


def tokens_of(prediction: Any) -> int:
    """What the caller is told."""
    usage: Mapping[str, Mapping[str, int]] = prediction.get_lm_usage()
    return sum(row["total_tokens"] for row in usage.values())


async def test_each_way_to_call_counts_once(world: World) -> None:
    import dspy

    with StubLM() as stub:
        async with world.pool(lm=stub.settings(model=PRICED, cache=False)) as pool:
            await pool.call("create_program", "qa", QA, check=False)
            one = await pool.call("run", "qa", ASK, session="ann")
            each = tokens_of(one)
            *_, streamed = await pool.stream("qa", ASK, session="ann").all()
            assert tokens_of(streamed) == each > 0
            rows = [row async for row in pool.map([ASK, ASK], "qa", session="bob")]
            async with await pool.checkout(session="bob") as lease:
                await lease.call("qa", ASK)
            assert [tokens_of(row) for row in rows] == [each, each]
            wrapped = pool.pool.wrap(dspy.Predict(QA))
            await wrapped.acall(**ASK)
            assert await pool.call("run", plain, {"text": "a"}) == "A"
            usage = await use_of(pool)
            assert (usage.total.calls, usage.total.requests, usage.total.total_tokens) == (6, 6, 6 * each)
            assert usage.total.prompt_tokens + usage.total.completion_tokens == usage.total.total_tokens
            assert usage.by_model == {PRICED: usage.total}
            assert usage.by_program["qa"].calls == 5
            assert {name: row.calls for name, row in usage.by_session.items()} == {"ann": 2, "bob": 3}
            assert usage.total.unpriced == 0
            assert usage.total.cost_usd == pytest.approx(rate(usage.total))
            assert stub.stats().requests == 6
        assert (await use_of(pool)).total == usage.total  # the figures of a closed pool stay readable


async def test_calls_that_fail_count_with_what_they_used(world: World) -> None:
    import dspy

    class Fails(dspy.Module):
        def __init__(self) -> None:
            self.ask = dspy.Predict(QA)

        def forward(self, question: str) -> Any:
            self.ask(question=question)
            raise LookupError("no more")

    with StubLM() as stub:
        async with world.pool(lm=stub.settings(model=FREE, cache=False)) as pool:
            for program in (ask_then_fail, ask_and_give, Fails()):
                with pytest.raises(dspool.ProgramError):
                    await pool.call("run", program, ASK)
            with pytest.raises(LookupError):
                await pool.pool.wrap(Fails()).acall(**ASK)
            with pytest.raises(dspool.ProgramError):
                await pool.stream(Fails(), ASK).all()
            usage = await use_of(pool)
            assert (usage.total.calls, usage.total.requests, usage.total.unpriced) == (5, 5, 5)
            assert usage.total.total_tokens > 0
            assert usage.total.cost_usd is None
            assert usage.by_session == {}


async def test_what_dspy_forgets_is_counted_and_what_its_cache_gave_is_not(world: World) -> None:
    with StubLM() as stub:
        async with world.pool(lm=stub.settings(model=PRICED, cache=False)) as pool:
            assert await pool.call("run", ask_in_parallel, ASK) == 4
            await pool.call("run", ask_in_a_tracker_of_its_own, ASK)
            usage = await use_of(pool)
            assert (usage.total.calls, usage.total.requests, usage.total.unpriced) == (2, 5, 0)
            assert usage.total.cost_usd == pytest.approx(rate(usage.total))
            question = {"question": f"{world.front} {stub.url}: what is kept?"}
            for _ in range(2):
                await pool.call("run", QA, question, lm=stub.settings(model=FREE, cache=True))
            usage = await use_of(pool)
            assert usage.by_model[FREE].requests == usage.by_model[FREE].calls == 1
            assert stub.stats().requests == 6


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_a_stream_that_is_left_counts_with_what_it_had_used(world: World, asynchronous: bool) -> None:
    import dspy

    class Twice(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = dspy.Predict(QA), dspy.Predict("answer -> final")

        def forward(self, question: str) -> Any:
            return self.second(answer=self.first(question=question).answer)

    class TwiceAwaited(Twice):
        async def aforward(self, question: str) -> Any:
            return await self.second.acall(answer=(await self.first.acall(question=question)).answer)

    with StubLM(piece_interval_s=0.01, answers={"answer": "short", "final": "word " * 1000}) as stub:
        async with world.pool(lm=stub.settings(cache=False), cancel_grace_s=60) as pool:
            program = TwiceAwaited() if asynchronous else Twice()
            stream = pool.stream(program, ASK, fields=["final"], session="ann")
            await anext(stream)
            await stream.close()
            await pool.until(lambda stats: stats.idle == 1)
            usage = await use_of(pool)
            assert (usage.total.calls, usage.total.requests) == (1, 1)  # the second was not answered
            assert usage.total.total_tokens > 0
            assert usage.by_session == {"ann": usage.total}
            assert list(usage.by_program) == [type(program).__name__]

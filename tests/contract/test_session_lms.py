"""set_session_lm over real workers: whose LM a call goes to."""

from __future__ import annotations

from typing import Any

import pytest

import dspool
from dspool.testing.stub_lm import StubLM
from tests.contract.subject import World

pytestmark = [pytest.mark.only("real"), pytest.mark.every_front]

QA = "question -> answer"
ASK = {"question": "why?"}


def ask(question: str) -> Any:
    import dspy

    return dspy.Predict(QA)(question=question).answer


async def test_call_before_session_before_program_before_pool(world: World) -> None:
    import dspy

    with StubLM() as stub:

        def lm(name: str) -> dict[str, Any]:
            return stub.settings(model=f"openai/{name}", api_key=f"key-of-{name}", cache=False)

        pinned = dspy.Predict(QA)
        pinned.set_lm(dspy.LM(**lm("program")))
        async with world.pool(lm=lm("pool"), workers=2) as pool:

            async def asked(program: Any, **options: Any) -> str:
                await pool.call("run", program, ASK, **options)
                return stub.calls[-1].key.removeprefix("key-of-")

            await pool.call("set_session_lm", "ann", lm("ann"))
            await pool.call("set_session_lm", "bob", dspy.LM(**lm("bob")))
            for program in (QA, pinned, ask):
                assert await asked(program, session="ann") == "ann"
                assert await asked(program, session="bob") == "bob"
                assert await asked(program, session="ann", lm=lm("call")) == "call"
                assert (
                    await asked(program)
                    == await asked(program, session="eve")
                    == ("program" if program is pinned else "pool")
                )
            *_, last = await pool.stream(QA, ASK, session="ann").all()
            assert (last.answer, stub.calls[-1].key) == ("echo: why?", "key-of-ann")
            async with await pool.checkout(session="bob") as lease:
                await lease.call(QA, ASK)
            assert stub.calls[-1].key == "key-of-bob"
            with dspy.context(lm=dspy.LM(**lm("caller"))):
                await pool.pool.wrap(dspy.Predict(QA), session="ann").acall(**ASK)
                assert stub.calls[-1].key == "key-of-ann"
            with pytest.raises(dspool.OptionsError, match="session must be a string; it is a int"):
                await pool.call("set_session_lm", 3, None)
            with pytest.raises(dspool.OptionsError, match="lm must be"):
                await pool.call("set_session_lm", "ann", 3)
            assert await asked(QA, session="ann") == "ann"
            await pool.call("set_session_lm", "ann", None)
            assert await asked(pinned, session="ann") == "program"
            assert {"openai/ann", "openai/bob"} <= set((await pool.stats()).usage.by_model)

"""Nobody gets another caller's answer: many workers of one template, many calls at once in each, over real HTTP."""

from __future__ import annotations

import sys

import pytest

from dspool.testing.pytest_plugin import MakePool
from dspool.testing.stub_lm import StubLM

WORKERS, SLOTS = 16, 50


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sixteen interpreters would take a minute to start")
def test_eight_hundred_calls_at_once_get_their_own_answers(make_pool: MakePool) -> None:
    with StubLM(latency=0.2, process=True) as stub:
        pool = make_pool(workers=WORKERS, slots=SLOTS, lm=stub.lm(cache=False), timeout_s=120)
        questions = [f"What is {number} and nothing else?" for number in range(2 * WORKERS * SLOTS)]
        rows = ({"question": question} for question in questions)
        answers = pool.map("question -> answer", rows, concurrency=WORKERS * SLOTS)
        wrong = [
            (question, prediction.answer)
            for question, prediction in zip(questions, answers, strict=True)
            if prediction.answer != f"echo: {question}"
        ]
        assert wrong == []
        assert len({worker.pid for worker in pool.workers() if worker.calls}) == WORKERS
        assert pool.stats().calls_ok == len(questions)

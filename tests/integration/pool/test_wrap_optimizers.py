"""Optimizers over a pool come to the very program that they come to in one process, since all they look at is equal."""

from __future__ import annotations

import contextlib
import io
import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dspool.testing.pytest_plugin import MakePool

pytestmark = [pytest.mark.integration, pytest.mark.slow]

Compile = Callable[[Any], Any]


@pytest.fixture(scope="module")
def learner(dspy: Any) -> Any:
    """The LM, the program and the metrics."""
    from tests.integration.pool import learner_lm

    return learner_lm


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Optimizers say much."""
    caplog.set_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@pytest.fixture
def compiled(make_pool: MakePool, learner: Any, dspy: Any) -> Callable[[Compile], tuple[Any, Any]]:
    """Compiles the program twice, on a pool and in this process, and evaluates both here."""

    def both(compile_program: Compile) -> tuple[Any, Any]:
        pool, found = make_pool(workers=2), []
        for program in (pool.wrap(learner.Asks()), learner.Asks()):
            random.seed(0)
            with dspy.context(lm=learner.learner_lm()):
                found.append(compile_program(program))
        assert pool.stats().calls_ok >= 3
        with dspy.context(lm=learner.learner_lm()):
            evaluate = dspy.Evaluate(devset=learner.examples(), metric=learner.right, num_threads=2)
            assert evaluate(learner.Asks()).score == 20.0
            assert [evaluate(program).score for program in found] == [100.0, 100.0]
        return found[0], found[1]

    return both


def state(program: Any) -> Any:
    """What an optimizer changes; without the LMs, which SIMBA leaves in."""
    return {name: {**part, "lm": None} for name, part in program.dump_state().items()}


def test_bootstrap_few_shot(compiled: Any, learner: Any, dspy: Any) -> None:
    def compile_program(program: Any) -> Any:
        optimizer = dspy.BootstrapFewShot(metric=learner.right, max_bootstrapped_demos=3, max_labeled_demos=1)
        return optimizer.compile(program, trainset=learner.examples())

    pooled, own = compiled(compile_program)
    assert state(pooled) == state(own)
    assert sum(demo.get("augmented", False) for demo in pooled.ask.predict.demos) == 3


def test_bootstrap_few_shot_with_random_search(compiled: Any, learner: Any, dspy: Any) -> None:
    def compile_program(program: Any) -> Any:
        optimizer = dspy.BootstrapFewShotWithRandomSearch(
            metric=learner.right, max_bootstrapped_demos=2, max_labeled_demos=1, num_candidate_programs=2, num_threads=2
        )
        return optimizer.compile(program, trainset=learner.examples(), valset=learner.examples())

    pooled, own = compiled(compile_program)
    assert state(pooled) == state(own)
    assert [each["score"] for each in pooled.candidate_programs] == [each["score"] for each in own.candidate_programs]


def test_miprov2(compiled: Any, learner: Any, dspy: Any) -> None:
    def compile_program(program: Any) -> Any:
        optimizer = dspy.MIPROv2(
            metric=learner.right, auto=None, num_candidates=3, max_bootstrapped_demos=2, max_labeled_demos=1,
            num_threads=2, seed=7
        )  # fmt: skip
        rows = learner.examples()
        return optimizer.compile(program, trainset=rows, valset=rows, num_trials=4, minibatch=False, seed=7)

    pooled, own = compiled(compile_program)
    assert state(pooled) == state(own)


def test_gepa(compiled: Any, learner: Any, dspy: Any) -> None:
    def compile_program(program: Any) -> Any:
        optimizer = dspy.GEPA(
            metric=learner.right_with_words, max_metric_calls=60, reflection_lm=learner.learner_lm(), num_threads=2,
            reflection_minibatch_size=3, seed=3
        )  # fmt: skip
        return optimizer.compile(program, trainset=learner.examples(), valset=learner.examples())

    pooled, own = compiled(compile_program)
    assert state(pooled) == state(own)
    assert pooled.ask.predict.signature.instructions == learner.ADVICE


def test_simba(compiled: Any, learner: Any, dspy: Any) -> None:
    def compile_program(program: Any) -> Any:
        optimizer = dspy.SIMBA(metric=learner.right, bsize=5, num_candidates=2, max_steps=2, max_demos=2, num_threads=2)
        return optimizer.compile(program, trainset=learner.examples(), seed=1)

    pooled, own = compiled(compile_program)
    assert state(pooled) == state(own)

"""pool.wrap: a program that runs on a pool is a DSPy program like any other."""

from __future__ import annotations

import asyncio
import builtins
import copy
import inspect
import os
import queue
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import cloudpickle
import pytest

import dspool
from dspool.testing.pytest_plugin import MakeAsyncPool, MakePool
from dspool.testing.stub_lm import StubLM

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture
def lm(programs: Any) -> Any:
    """The LM of this process's settings."""
    return programs.answering()


QUESTIONS = ["capital", "river", "sum"]
GOLD = {"capital": "Paris", "river": "Seine", "sum": "4"}


def examples(dspy: Any, times: int = 4) -> list[Any]:
    """Questions with their answers, some of which are wrong."""
    rows = [(question, GOLD[question]) for question in QUESTIONS] * times
    rows[0] = ("capital", "Rome")
    return [dspy.Example(question=question, answer=answer).with_inputs("question") for question, answer in rows]


def right(example: Any, prediction: Any, trace: Any = None) -> bool:
    """The metric."""
    return bool(example.answer == prediction.answer)


def test_evaluate_gives_what_it_gives_in_process(make_pool: MakePool, programs: Any, lm: Any, dspy: Any) -> None:
    pool, program = make_pool(workers=2), programs.Measured()
    evaluate = dspy.Evaluate(devset=examples(dspy), metric=right, num_threads=4)
    with dspy.context(lm=lm):
        pooled, own = evaluate(pool.wrap(program)), evaluate(program)
    assert pooled.score == own.score == round(100 * 11 / 12, 2)
    pids = {prediction.pid for _, prediction, _ in pooled.results}
    assert pids <= {worker.pid for worker in pool.workers()}
    for (_, one, _), (_, other, _) in zip(pooled.results, own.results, strict=True):
        assert dict(one.items()) | {"pid": 0} == dict(other.items()) | {"pid": 0}


def test_parallel_and_batch(make_pool: MakePool, programs: Any, lm: Any, dspy: Any) -> None:
    wrapped = make_pool(workers=2).wrap(programs.Measured())
    with dspy.context(lm=lm):
        pairs = [(wrapped, example.inputs()) for example in examples(dspy)]
        pairs += [(wrapped, {"question": "river"}), (wrapped, ("sum",))]
        found = dspy.Parallel(num_threads=3, disable_progress_bar=True)(pairs)
        batch = wrapped.batch(examples(dspy), num_threads=3, disable_progress_bar=True)
    assert [each.answer for each in found] == [*GOLD.values()] * 4 + ["Seine", "4"]
    assert [each.answer for each in batch] == [*GOLD.values()] * 4
    assert os.getpid() not in {each.pid for each in [*found, *batch]}


def test_best_of_n_and_refine(make_pool: MakePool, programs: Any, lm: Any, dspy: Any) -> None:
    wrapped = make_pool(workers=2).wrap(programs.Measured())
    advice = {"discussion": "d", "advice": {"ask.predict": "try", "measure": "N/A"}}
    lm.answers = {**programs.ANSWERS, "program_code": advice}
    for kind in (dspy.BestOfN, dspy.Refine):
        rewards: list[Any] = []

        def reward(inputs: Any, prediction: Any, rewards: list[Any] = rewards) -> float:
            rewards.append((inputs, prediction.answer, prediction.pid))
            return float(len(rewards) == 2)

        with dspy.context(lm=lm, trace=[]):
            best = kind(module=wrapped, N=3, reward_fn=reward, threshold=1.0)(question="capital")
            steps = [type(predictor).__name__ for predictor, _, _ in dspy.settings.trace]
        assert best.answer == "Paris"
        assert [answer for _, answer, _ in rewards] == ["Paris", "Paris"]
        assert os.getpid() not in {pid for *_, pid in rewards}
        assert steps[:2] == ["Predict", "Predict"]


def test_asyncify_acall_and_streamify(make_pool: MakePool, programs: Any, lm: Any, dspy: Any) -> None:
    wrapped = make_pool(workers=2).wrap(programs.Measured())

    async def main() -> list[Any]:
        asked = [wrapped.acall(question=question) for question in QUESTIONS]
        found = [*await asyncio.gather(*asked), await dspy.asyncify(wrapped)(question="sum")]
        for is_async in (False, True):
            streamed = dspy.streamify(wrapped, is_async_program=is_async)(question="river")
            found += [piece async for piece in streamed if isinstance(piece, dspy.Prediction)]
        return found

    with dspy.context(lm=lm):
        found = asyncio.run(asyncio.wait_for(main(), 60))
    assert [each.answer for each in found] == ["Paris", "Seine", "4", "4", "Seine", "Seine"]
    assert os.getpid() not in {each.pid for each in found}


def test_an_async_pools_wrapper_is_awaited(make_async_pool: MakeAsyncPool, programs: Any, lm: Any, dspy: Any) -> None:
    async def main() -> None:
        async with make_async_pool(workers=2) as pool:
            wrapped = pool.wrap(programs.Measured(), timeout_s=30)
            wrapped.forward = wrapped.forward  # as optimizers put it back
            with dspy.context(lm=lm, trace=[], track_usage=True):
                found = await asyncio.gather(*(wrapped.acall(question=question) for question in QUESTIONS))
                assert len(dspy.settings.trace) == 6
            assert [each.answer for each in found] == [*GOLD.values()]
            assert all(each.get_lm_usage() for each in found)
            with pytest.raises(dspool.PoolError, match=r"await module\.acall"):
                wrapped(question="capital")

    asyncio.run(asyncio.wait_for(main(), 60))


def test_an_acall_that_is_cancelled_gives_its_worker_up(make_pool: MakePool, dspy: Any) -> None:
    class Waits(dspy.Module):
        def forward(self) -> None:
            threading.Event().wait(60)

    busy = threading.Event()

    def check(worker: Any, request: Any) -> Any:
        busy.set()
        return dspool.KEEP

    pool = make_pool(workers=1, check=check)
    (before,) = pool.workers()

    async def main() -> None:
        task = asyncio.ensure_future(pool.wrap(Waits()).acall())
        assert await asyncio.to_thread(busy.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(main(), 60))
    pool.wait_ready(timeout_s=30)
    assert pool.workers()[0].worker_id != before.worker_id


@pytest.mark.parametrize("kind", ["pool", "async pool"])
def test_a_cancelled_acall_closes_its_request_where_the_program_is_async(
    make_pool: MakePool, make_async_pool: MakeAsyncPool, dspy: Any, kind: str
) -> None:
    program, options = dspy.Predict("question -> answer"), {"workers": 1, "execution": "async", "slots": 4}

    async def cancel_one(wrapped: Any, stub: StubLM) -> None:
        """Four calls, of which one is cancelled, and the others go on."""
        with dspy.context(lm=stub.lm(cache=False)):
            calls = [asyncio.ensure_future(wrapped.acall(question=f"q{number}")) for number in range(4)]
            await asyncio.to_thread(stub.wait, lambda stats: stats.in_flight == 4, timeout_s=30)
            calls[2].cancel()
            with pytest.raises(asyncio.CancelledError):
                await calls[2]
            await asyncio.to_thread(stub.wait, lambda stats: stats.aborted == 1, timeout_s=30)
            answers = await asyncio.gather(*calls[:2], calls[3])
        assert [each.answer for each in answers] == ["echo: q0", "echo: q1", "echo: q3"]

    async def main(stub: StubLM) -> dspool.PoolStats:
        if kind == "pool":
            pool = make_pool(**options)
            await cancel_one(pool.wrap(program), stub)
            return pool.stats()
        async with make_async_pool(**options) as own:
            await cancel_one(own.wrap(program), stub)
            return await own.stats()

    with StubLM(latency=1.0) as stub:
        stats = asyncio.run(asyncio.wait_for(main(stub), 60))
    assert (stats.calls_ok, stats.calls_cancelled, stats.started, stats.exits) == (3, 1, 1, {})


def test_a_wrapped_call_past_its_deadline_is_cancelled_in_its_worker(make_pool: MakePool, dspy: Any) -> None:
    class Sleeps(dspy.Module):
        async def aforward(self, seconds: float) -> str:
            await asyncio.sleep(seconds)
            return "slept"

    pool = make_pool(workers=1, execution="async", slots=2)
    with pytest.raises(dspool.CallTimeout, match="was told to cancel it"):
        pool.wrap(Sleeps(), timeout_s=0.5)(seconds=600)
    assert pool.wrap(Sleeps())(seconds=0) == "slept"
    stats = pool.stats()
    assert (stats.started, stats.exits) == (1, {})


def test_an_acall_on_the_loop_that_can_not_be_cancelled_gives_its_worker_up(
    make_async_pool: MakeAsyncPool, dspy: Any
) -> None:
    class Waits(dspy.Module):
        async def aforward(self, port: int) -> None:
            with socket.create_connection(("127.0.0.1", port)) as arrived:
                arrived.recv(1)

    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def on_event(event: str, fields: Any) -> None:
        if event == "worker.ended":
            ended.put(fields["report"].reason)

    async def main(server: socket.socket) -> None:
        options: Any = {"on_event": on_event, "execution": "async", "cancel_grace_s": 0.1}
        async with make_async_pool(workers=1, **options) as pool:
            task = asyncio.ensure_future(pool.wrap(Waits()).acall(port=server.getsockname()[1]))
            connection, _ = await asyncio.to_thread(server.accept)
            with connection:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await asyncio.to_thread(ended.get, timeout=30) == "cancelled"

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        asyncio.run(asyncio.wait_for(main(server), 60))


def test_callbacks_of_the_caller_see_the_wrapper(make_pool: MakePool, programs: Any, lm: Any, dspy: Any) -> None:
    seen: list[Any] = []

    class Seeing(dspy.utils.BaseCallback):
        def on_module_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            seen.append(("start", instance, inputs["kwargs"]))

        def on_module_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
            seen.append(("end", outputs, exception))

    program = programs.Measured()
    program.callbacks = [Seeing()]
    wrapped = make_pool(workers=1).wrap(program)
    with dspy.context(lm=lm):
        found = wrapped(question="capital")
        with dspy.context(callbacks=[Seeing()]):
            wrapped(question="sum")
    assert seen[:2] == [("start", wrapped, {"question": "capital"}), ("end", found, None)]
    assert len(seen) == 6


# --- what is done to the program ------------------------------------------------------------------------------------


def test_a_wrapper_is_the_program_to_whoever_asks(
    make_pool: MakePool, programs: Any, dspy: Any, tmp_path: Path
) -> None:
    pool, program = make_pool(workers=1, lazy=True), programs.Measured()
    wrapped = pool.wrap(program)
    assert isinstance(wrapped, programs.Measured)
    assert repr(wrapped) == repr(program)
    assert wrapped.named_predictors() == program.named_predictors()
    assert [name for name, _ in wrapped.named_parameters()] == ["ask.predict", "measure"]
    assert wrapped.predictors() == program.predictors()
    assert wrapped.dump_state() == program.dump_state()
    assert inspect.getsource(type(wrapped)) == inspect.getsource(programs.Measured)
    wrapped.save(tmp_path / "state.json")
    again = programs.Measured()
    again.load(tmp_path / "state.json")
    wrapped.save(tmp_path / "whole", save_program=True)
    loaded = dspy.load(tmp_path / "whole", allow_pickle=True)
    assert type(loaded) is programs.Measured
    wrapped.set_lm(programs.answering())
    assert program.get_lm() is wrapped.get_lm() is not None


def test_a_predict_is_wrapped_as_a_predict(make_pool: MakePool, programs: Any, lm: Any, dspy: Any) -> None:
    pool = make_pool(workers=1)
    for program in (dspy.Predict("question -> answer"), "question -> answer", dspy.Signature("question -> answer")):
        wrapped = pool.wrap(program)
        assert wrapped.named_predictors() == [("self", wrapped)]
        with dspy.context(lm=lm, trace=[]):
            found = wrapped(question="river")
            ((predictor, inputs, prediction),) = dspy.settings.trace
        assert (predictor, inputs) == (wrapped, {"question": "river"})
        assert predictor is wrapped
        assert prediction is found
        with pytest.raises(ValueError, match="Positional arguments are not allowed"), dspy.context(lm=lm):
            wrapped("river")


@pytest.mark.parametrize("through", ["wrapper", "program"])
def test_a_changed_program_is_noticed(make_pool: MakePool, programs: Any, lm: Any, dspy: Any, through: str) -> None:
    pool, program = make_pool(workers=1), programs.Measured()
    wrapped = pool.wrap(program)
    changed = wrapped if through == "wrapper" else program

    def sent() -> str:
        with dspy.context(lm=lm):
            wrapped(question="capital")
        return str(lm.history[-2]["messages"])

    assert "pirate" not in sent()
    changed.ask.predict.signature = changed.ask.predict.signature.with_instructions("Speak like a pirate.")
    assert "pirate" in sent()
    changed.ask.predict.demos = [dspy.Example(question="sea", reasoning="r", answer="wet")]
    assert "wet" in sent()
    changed.ask.predict.demos.append(dspy.Example(question="land", reasoning="r", answer="dry"))
    assert "dry" in sent()
    state = programs.Measured().dump_state()
    state["ask.predict"]["demos"] = [{"question": "moon", "reasoning": "r", "answer": "grey"}]
    changed.load_state(state)
    assert "grey" in sent()
    assert "pirate" not in sent()
    changed.set_lm(programs.answering(max_tokens=7))
    with dspy.context(lm=None):
        assert wrapped(question="capital").answer == "Paris"


def test_load_state_sees_what_the_cheap_look_does_not(make_pool: MakePool, dspy: Any) -> None:
    class Remembers(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.notes = SimpleNamespace(text="first")

        def load_state(self, state: Any) -> None:
            self.notes.text = state["text"]

        def forward(self) -> str:
            text: str = self.notes.text
            return text

    wrapped = make_pool(workers=1).wrap(Remembers())
    assert wrapped() == "first"
    wrapped.notes.text = "second"  # inside of an object, where it isn't looked
    assert wrapped() == "first"
    wrapped.load_state({"text": "third"})
    assert wrapped() == "third"


def test_copies_share_the_pool_and_nothing_else(make_pool: MakePool, programs: Any, lm: Any, dspy: Any) -> None:
    pool, program = make_pool(workers=1), programs.Measured()
    program.ask.predict.demos = [dspy.Example(question="sea", reasoning="r", answer="wet")]
    wrapped = pool.wrap(program)
    for copied in (wrapped.deepcopy(), copy.deepcopy(wrapped), wrapped.reset_copy()):
        assert type(copied) is type(wrapped)
        assert copied.ask is not wrapped.ask
        copied.ask.predict.demos = []
        with dspy.context(lm=lm):
            assert copied(question="sum").pid == pool.workers()[0].pid
    assert len(wrapped.ask.predict.demos) == len(program.ask.predict.demos) == 1
    shallow = copy.copy(wrapped)
    assert type(shallow) is type(wrapped)
    assert shallow.ask is wrapped.ask


def test_in_a_worker_a_wrapper_is_its_program(make_pool: MakePool, programs: Any, lm: Any, dspy: Any) -> None:
    pool = make_pool(workers=1)
    for inner in (programs.Measured(), dspy.Predict("question -> answer")):
        outer = programs.Outer(pool.wrap(inner))
        with dspy.context(lm=lm):
            found = pool.run(outer, {"question": "capital"})
            again = pool.wrap(outer)(question="capital")
            here = outer(question="capital")
        assert found.answer == again.answer == here.answer == "Paris"
        assert found.pid == again.pid != here.pid
        assert "Pooled" not in found.kind + again.kind
        assert "Pooled" in here.kind
    assert type(cloudpickle.loads(cloudpickle.dumps(pool.wrap(programs.Measured())))) is programs.Measured
    assert pool.run(pool.wrap(programs.Measured()), {"question": "sum"}, lm=lm).answer == "4"


def test_a_class_may_be_peculiar(make_pool: MakePool, programs: Any, dspy: Any) -> None:
    pool, program = make_pool(workers=1), programs.Peculiar()
    wrapped, other = pool.wrap(program), pool.wrap(program)
    assert list(programs.DEFINED.values()) == [programs.Peculiar]
    assert wrapped(question="so").answer == "it is so"
    wrapped.prefix = "was it "
    assert (program.prefix, other.prefix) == ("was it ", "was it ")
    pool.refresh(program)
    assert other(question="so").answer == "was it so"
    del wrapped.prefix
    assert not hasattr(program, "prefix")
    del wrapped, other
    assert program.open == [True]


def test_a_metaclass_is_not_told_of_wrappers(make_pool: MakePool, programs: Any, dspy: Any) -> None:
    pool = make_pool(workers=1)
    tabled, abstract = pool.wrap(programs.Tabled()), pool.wrap(programs.Concrete())
    assert tabled().answer == "customers"
    assert programs.TABLES == ["Tabled"]
    assert type(tabled).table == "customers"
    assert abstract().answer == "made"
    assert isinstance(abstract, programs.Abstract)
    assert not isinstance(tabled, programs.Abstract)


@pytest.mark.parametrize("kind", ["dict", "list", "ValueError"])
def test_a_program_that_is_a_container_too_is_refused_with_what_to_do(
    make_pool: MakePool, dspy: Any, kind: str
) -> None:
    class Both(dspy.Module, getattr(builtins, kind)):  # type: ignore[misc,unused-ignore]
        def forward(self) -> str:
            return f"a {kind} too"

    pool = make_pool(workers=1)
    with pytest.raises(dspool.OptionsError, match=rf"it is a {kind} too.*Keep the {kind} in an attribute.*run\(\)"):
        pool.wrap(Both())
    assert pool.run(Both(), {}) == f"a {kind} too"


def test_a_program_that_is_a_part_of_itself_is_refused_with_what_to_do(make_pool: MakePool, dspy: Any) -> None:
    parent = dspy.ReAct("question -> answer", tools=[])
    parent.extract.parent = [parent]
    with pytest.raises(dspool.EncodeError, match=r"holds another that it is a part of.*only one of the two"):
        make_pool(workers=1).wrap(parent)(question="q")


def test_what_is_no_program_is_refused(make_pool: MakePool, programs: Any, dspy: Any) -> None:
    pool = make_pool(workers=1, lazy=True)
    for wrong in (programs.Measured, len, {"a": 1}, None):
        with pytest.raises(dspool.OptionsError, match=r"wrap\(\) takes a dspy.Module, or a signature"):
            pool.wrap(wrong)
    with pytest.raises(dspool.OptionsError, match=r"the class Measured: pass an instance, Measured\(...\)"):
        pool.wrap(programs.Measured)
    with pytest.raises(dspool.OptionsError, match=r"run\(\), map\(\) and stream\(\) take functions"):
        pool.wrap(len)
    for around in (dspy.Parallel(), dspy.BootstrapFewShot(metric=None), dspy.Evaluate(devset=[])):
        with pytest.raises(dspool.OptionsError, match="stays in your process: wrap the program that you give it"):
            pool.wrap(around)
    with pytest.raises(dspool.OptionsError, match="timeout_s"):
        pool.wrap(programs.Measured(), timeout=3)


# --- the caller's settings ------------------------------------------------------------------------------------------


def test_the_callers_settings_apply(make_pool: MakePool, programs: Any, dspy: Any) -> None:
    pool = make_pool(workers=1, lm="openai/pool", adapter="xml")
    told = pool.wrap(programs.Told())
    found = told()
    assert (found.lm[0], found.adapter, found.num_threads, found.mine) == ("openai/pool", "XMLAdapter", 8, None)
    with dspy.context(lm=dspy.LM("openai/mine", temperature=0.3), adapter=dspy.JSONAdapter(), num_threads=3, mine=[1]):
        found = told()
    assert (found.lm[0], found.lm[1]["temperature"]) == ("openai/mine", 0.3)
    assert (found.adapter, found.num_threads, found.mine) == ("JSONAdapter", 3, [1])
    assert told().adapter == "XMLAdapter"
    with dspy.context(mine=[2], deadline=3, settings=4, cancellation=5):  # named as what a worker's own code has
        assert told().mine == [2]
    given = pool.wrap(programs.Told(), lm="openai/given")
    with dspy.context(lm=dspy.LM("openai/mine")):
        assert given().lm[0] == "openai/given"


def test_a_secret_among_the_callers_settings_is_not_told(make_pool: MakePool, dspy: Any) -> None:
    class Tells(dspy.Module):
        def forward(self) -> None:
            raise ValueError(f"refused: {dspy.settings.my_token}")

    wrapped = make_pool(workers=1).wrap(Tells())
    with pytest.raises(dspool.ProgramError) as caught, dspy.context(my_token="tok-of-a-tenant"):
        wrapped()
    assert "refused: ***" in str(caught.value)
    assert "tok-of-a-tenant" not in f"{caught.value} {vars(caught.value)}"


def test_what_a_worker_has_put_among_the_settings_stays_there(make_pool: MakePool, programs: Any, dspy: Any) -> None:
    from dspool.worker.lms import CANCELLATION, DEADLINE, LIMITS

    told = make_pool(workers=1).wrap(programs.Told())  # as a pool that a program opens in its worker
    with dspy.context(**{DEADLINE: 0.0, CANCELLATION: threading.Lock(), LIMITS: threading.Lock()}, mine=[1]):
        assert told().mine == [1]


def test_arguments_that_can_not_be_sent_are_named_as_they_were_given(
    make_pool: MakePool, programs: Any, dspy: Any
) -> None:
    told, lock = make_pool(workers=1).wrap(programs.Told()), threading.Lock()
    with pytest.raises(
        dspool.EncodeError, match=r"inputs\['one'\]: a _thread.lock.*; inputs\['two'\]\[0\]: a _thread.lock"
    ):
        told(one=lock, two=[lock])
    with pytest.raises(dspool.EncodeError, match=r"because of inputs\[1\]: a _thread.lock"):
        told(1, lock, three=3)


def test_any_argument_goes_along(make_pool: MakePool, programs: Any, dspy: Any) -> None:
    told = make_pool(workers=1).wrap(programs.Told())
    found = told(3, "four", example=dspy.Example(a=1), function=len, lm=dspy.LM("openai/passed"))
    assert found.given == ["int: 3", "str: four"]
    assert found.named["example"] == "Example: {'a': 1}"
    assert found.named["function"] == "builtin_function_or_method: <built-in function len>"
    assert found.named["lm"].startswith("DeadlineLM")
    with pytest.raises(dspool.EncodeError, match=r"because of inputs\['a'\]: a _thread.lock.*; inputs\['b'\]\[1\]: a "):
        told(a=threading.Lock(), b=[1, threading.Lock()])
    with dspy.context(mine=threading.Lock()), pytest.raises(dspool.EncodeError, match=r"dspy.settings.mine can't be"):
        told()


def test_config_lm_and_demos_of_a_call_apply_as_in_process(make_pool: MakePool, programs: Any, dspy: Any) -> None:
    pool, program = make_pool(workers=1), dspy.ChainOfThought("question -> answer")
    asked = {"config": {"temperature": 0.9}, "demos": [dspy.Example(question="sea", reasoning="r", answer="wet")]}
    for module in (program, pool.wrap(program)):
        lm = programs.answering()
        assert module(question="capital", lm=lm, **asked).answer == "Paris"
        (entry,) = lm.history
        assert "wet" in str(entry["messages"])
        assert entry["kwargs"]["temperature"] == 0.9


# --- what is brought back -------------------------------------------------------------------------------------------


def traced(dspy: Any, module: Any, lm: Any, **inputs: Any) -> tuple[Any, list[Any], Any]:
    """A call's result, trace and usage."""
    with dspy.context(lm=lm, trace=[], track_usage=True, adapter=dspy.ChatAdapter()):
        found = module(**inputs)
        return found, dspy.settings.trace, found.get_lm_usage()


def test_traces_and_usage_are_those_of_the_process(make_pool: MakePool, programs: Any, lm: Any, dspy: Any) -> None:
    program = programs.Measured()
    wrapped = make_pool(workers=1).wrap(program)
    asked: list[dict[str, Any]] = [{"question": "capital"}, {"question": "river", "times": 3}]
    for inputs in asked:
        found, trace, usage = traced(dspy, wrapped, lm, **inputs)
        own, own_trace, own_usage = traced(dspy, program, lm, **inputs)
        assert dict(found.items()) | {"pid": 0} == dict(own.items()) | {"pid": 0}
        assert type(found.steps[0]) is dspy.Prediction
        assert usage == own_usage
        assert len(trace) == len(own_trace) == inputs.get("times", 1) + 1
        for (predictor, given, prediction), (other, own_given, own_prediction) in zip(trace, own_trace, strict=True):
            assert predictor is other
            assert given == own_given
            assert dict(prediction.items()) == dict(own_prediction.items())
            assert dict(prediction.completions.items()) == dict(own_prediction.completions.items())
            assert prediction.completions.signature is own_prediction.completions.signature


def test_a_tracker_around_many_calls_sees_each_request(make_pool: MakePool, programs: Any, lm: Any, dspy: Any) -> None:
    program = programs.Measured()
    counts = []
    for module in (program, make_pool(workers=1).wrap(program)):
        with dspy.context(lm=lm), dspy.track_usage() as tracker:
            for question in QUESTIONS:
                assert module(question=question).get_lm_usage() is None
        counts.append(dict(tracker.usage_data))
    assert counts[0] == counts[1]
    assert len(counts[0]["dummy"]) == 6


def test_nothing_comes_back_that_was_not_asked_for(make_pool: MakePool, programs: Any, lm: Any, dspy: Any) -> None:
    wrapped = make_pool(workers=1).wrap(programs.Measured())
    with dspy.context(lm=lm, trace=None, disable_history=True, track_usage=False):
        assert wrapped(question="capital").get_lm_usage() is None
        assert lm.history == []
    with dspy.context(lm=lm, trace=[], max_trace_size=3):
        for _ in range(3):
            wrapped(question="capital")
        assert len(dspy.settings.trace) == 3


def test_histories_are_where_inspect_history_looks(make_pool: MakePool, programs: Any, lm: Any, dspy: Any) -> None:
    from dspy.clients.base_lm import GLOBAL_HISTORY

    wrapped = make_pool(workers=1).wrap(programs.Measured())
    outer = programs.Outer(wrapped)
    before = len(GLOBAL_HISTORY)
    with dspy.context(lm=lm):
        outer(question="capital")
    assert len(GLOBAL_HISTORY) - before == len(lm.history) == len(wrapped.history) == len(outer.history) == 2
    assert "capital" in str(lm.history[0]["messages"])
    assert "Paris" in str(lm.history[0]["outputs"])
    for _ in range(3):
        with dspy.context(lm=lm):
            wrapped(question="sum")
    assert len(lm.history) == 8


def test_a_worker_keeps_no_history(make_pool: MakePool, programs: Any, lm: Any, dspy: Any) -> None:
    class Looks(dspy.Module):
        def __init__(self, own: Any) -> None:
            super().__init__()
            self.ask = dspy.Predict("question -> answer")
            self.ask.lm = own

        def forward(self, question: str) -> Any:
            from dspy.clients.base_lm import GLOBAL_HISTORY

            used = self.ask.lm or dspy.settings.lm
            kept = [GLOBAL_HISTORY, self.history, self.ask.history, used.history]
            lengths = list(map(len, kept))
            self.ask(question=question)
            return lengths

    pool = make_pool(workers=1)
    for own in (None, programs.answering(max_tokens=7)):
        wrapped = pool.wrap(Looks(own))
        with dspy.context(lm=lm):
            assert [wrapped(question="capital") for _ in range(3)] == [[0, 0, 0, 0]] * 3
        assert len(wrapped.history) == 3


def test_a_failed_calls_records_come_back_too(make_pool: MakePool, programs: Any, lm: Any, dspy: Any) -> None:
    wrapped = make_pool(workers=1).wrap(programs.Fails())
    with dspy.context(lm=lm, trace=[]), dspy.track_usage() as tracker:
        with pytest.raises(ValueError, match="no use for Paris") as raised:
            wrapped(question="capital")
        ((predictor, inputs, prediction),) = dspy.settings.trace
    assert isinstance(raised.value, dspool.ProgramError)
    assert (raised.value.type, raised.value.code) == ("builtins.ValueError", "program_error")
    assert predictor is wrapped.ask
    assert (inputs, prediction.answer) == ({"question": "capital"}, "Paris")
    assert len(tracker.usage_data["dummy"]) == 1


def test_records_inside_other_results_are_records(make_pool: MakePool, programs: Any, lm: Any, dspy: Any) -> None:
    wrapped = make_pool(workers=1).wrap(programs.Listed())
    with dspy.context(lm=lm):
        asked, named, pair = wrapped(question="capital")
    assert asked.completions.answer == ["Paris", "Paris"]
    assert asked.answer == "Paris"
    assert named["example"].inputs().toDict() == {"question": "capital"}
    assert named["example"].gold == "Paris"
    assert pair == (1, 2)


def test_completions_come_along(make_pool: MakePool, programs: Any, lm: Any, dspy: Any) -> None:
    wrapped = make_pool(workers=1).wrap(dspy.Predict("question -> answer", n=3))
    traces: list[list[Any] | None] = [[], None]
    for trace in traces:
        with dspy.context(lm=lm, trace=trace):
            found = wrapped(question="capital")
        assert found.completions.answer == ["Paris"] * 3
        assert dspy.majority(found).answer == "Paris"


def test_a_predictor_made_on_the_way_has_a_stand_in(make_pool: MakePool, programs: Any, lm: Any, dspy: Any) -> None:
    class Makes(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ask = dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            dspy.Predict(dspy.Signature("question -> answer", "Be brief."))(question=question)
            return self.ask.deepcopy()(question=question)

    wrapped = make_pool(workers=1).wrap(Makes())
    found, trace, _ = traced(dspy, wrapped, lm, question="capital")
    (brief, inputs, prediction), (copied, _, last) = trace
    assert brief.signature.instructions == "Be brief."
    assert list(brief.signature.input_fields) == list(inputs) == ["question"]
    assert list(brief.signature.output_fields) == ["answer"]
    assert prediction.answer == "Paris"
    assert copied is not wrapped.ask
    assert copied.signature is wrapped.ask.signature
    assert found is last


def test_a_forward_that_is_set_is_used_until_it_is_taken_back(
    make_pool: MakePool, programs: Any, lm: Any, dspy: Any
) -> None:
    program = programs.Measured()
    wrapped = make_pool(workers=1).wrap(program)
    own = object.__getattribute__(wrapped, "forward")

    def patched(self: Any, **inputs: Any) -> Any:
        return self, own(**inputs)

    wrapped.forward = MethodType(patched, wrapped)
    assert "forward" not in vars(program)
    with dspy.context(lm=lm):
        who, found = wrapped(question="capital")
        assert who is wrapped
        copied = wrapped.deepcopy()
        assert copied(question="capital")[0] is copied
        wrapped.forward = own
        assert wrapped(question="capital").answer == found.answer == "Paris"
        assert asyncio.run(wrapped.acall(question="capital")).answer == "Paris"


def test_a_program_with_parallel_in_it_is_sent(make_pool: MakePool, programs: Any, lm: Any, dspy: Any) -> None:
    class Asks(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ask = dspy.Predict("question -> answer")
            self.parallel = dspy.Parallel(num_threads=2, disable_progress_bar=True, timeout=7)

        def forward(self, questions: Any) -> Any:
            found = self.parallel([(self.ask, {"question": question}) for question in questions])
            return dspy.Prediction(answers=found, timeout=self.parallel.timeout)

    pool = make_pool(workers=1)
    with dspy.context(lm=lm):
        found = pool.wrap(Asks())(questions=QUESTIONS)
        again = pool.run(Asks(), {"questions": QUESTIONS})
    assert [each.answer for each in found.answers] == [each["answer"] for each in again.answers] == [*GOLD.values()]
    assert found.timeout == 7
    assert [worker.programs for worker in pool.workers()] == [1]  # equal, so one program


@pytest.mark.parametrize("asynchronous", [False, True])
def test_errors_of_an_lm_and_its_answers_are_dspys(make_pool: MakePool, dspy: Any, *, asynchronous: bool) -> None:
    wrapped = make_pool(workers=1, timeout_s=30).wrap(dspy.Predict("question -> number: int"))

    def call(lm: Any) -> Any:
        with dspy.context(lm=lm, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
            return asyncio.run(wrapped.acall(question="q")) if asynchronous else wrapped(question="q")

    with StubLM(faults=["429"], retry_after_s=3) as stub:
        lm = stub.lm(num_retries=0, cache=False)
        with pytest.raises(dspy.LMRateLimitError) as limited:
            call(lm)
    assert dspy.is_retryable_lm_error(limited.value)
    assert isinstance(limited.value, dspool.ProgramError)
    assert (limited.value.status, vars(limited.value)["retry_after"]) == (429, 3.0)
    with pytest.raises(dspy.AdapterParseError) as garbled:
        call(dspy.utils.DummyLM([{"number": "many"}] * 2))
    assert "many" in garbled.value.lm_response
    assert garbled.value.signature is wrapped.signature
    assert garbled.value.code == "adapter_parse_error"


def test_calls_at_the_same_time_bring_back_their_own(make_pool: MakePool, programs: Any, dspy: Any) -> None:
    answers = {f"n{number}x": {"answer": f"a{number}"} for number in range(40)}
    lm = dspy.utils.DummyLM(answers)
    wrapped = make_pool(workers=1, slots=8).wrap(dspy.Predict("question -> answer"))

    def ask(number: int) -> None:
        with dspy.context(lm=lm.copy(), trace=[], track_usage=True):
            found = wrapped(question=f"n{number}x")
            ((_, inputs, prediction),) = dspy.settings.trace
            (entry,) = dspy.settings.lm.history
        assert (inputs, prediction.answer, found.answer) == ({"question": f"n{number}x"}, *[f"a{number}"] * 2)
        assert f"n{number}x" in str(entry["messages"])

    with ThreadPoolExecutor(12) as threads:
        assert len(list(threads.map(ask, range(40)))) == 40


def test_react_and_its_tools_are_as_in_process(make_pool: MakePool, dspy: Any) -> None:
    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    program = dspy.ReAct("question -> answer", tools=[add])
    seen = []
    for module in (program, make_pool(workers=1).wrap(program)):
        steps = [("add", {"a": 1, "b": 2}), ("finish", {})]
        said: list[dict[str, Any]] = [
            {"next_thought": "t", "next_tool_name": name, "next_tool_args": arguments} for name, arguments in steps
        ]
        lm = dspy.utils.DummyLM([*said, {"reasoning": "r", "answer": "3"}])
        found, trace, usage = traced(dspy, module, lm, question="1 + 2?")
        seen.append((found.toDict(), [(step[0], step[1], step[2].toDict()) for step in trace], usage))
    assert seen[0] == seen[1]
    assert seen[0][0]["trajectory"]["observation_0"] == 3


def test_a_programs_own_call_is_made_once_and_in_the_worker(make_pool: MakePool, dspy: Any) -> None:
    class Louder(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mark = "!"

        def __call__(self, **inputs: Any) -> Any:
            return super().__call__(text=inputs["text"] + self.mark)

        def forward(self, text: str) -> Any:
            return dspy.Prediction(text=text, pid=os.getpid())

    pool = make_pool(workers=1)
    wrapped = pool.wrap(Louder())
    found = wrapped(text="hey")
    assert (found.text, found.pid) == ("hey!", pool.workers()[0].pid)
    copied = wrapped.deepcopy()
    copied.mark = "?"
    assert [copied(text="hey").text, wrapped(text="hey").text] == ["hey?", "hey!"]

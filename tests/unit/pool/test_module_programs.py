"""DSPy modules: what is sent of them, what errors call them, and when a changed one is seen."""

import enum
import functools
import gc
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dspool.errors import EncodeError
from dspool.pool.programs import ProgramStore
from tests.unit.pool.sent import loaded, module_class, pickled

pytestmark = pytest.mark.unit
# Whichever of these comes first pays half a second for importing dspy.
needs_dspy = pytest.mark.slow

KEY = "sk-0123456789abcdef"


def shout(text: str) -> str:
    return text.upper()


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


# What is sent.


@needs_dspy
def test_pinned_lms_are_left_out_and_sent_as_specs(store: ProgramStore, dspy: Any) -> None:
    module = dspy.ReAct("question -> answer", tools=[shout])
    module.extract.predict.lm = lm = dspy.LM("openai/m", api_key=KEY, temperature=0.5)
    lm.history.append({"prompt": "another caller's"})
    program = store.resolve(module)
    assert set(pickled(program).lms) == {"extract.predict"}
    spec = pickled(program).lms["extract.predict"]
    assert (spec.model, spec.kwargs) == ("openai/m", {"api_key": KEY, "temperature": 0.5})
    assert KEY.encode() not in pickled(program).data
    for text in (program.program_id, program.label, repr(program)):
        assert KEY not in text
    copy = loaded(program)
    assert dict(copy.named_predictors())["extract.predict"].lm is None
    assert module.extract.predict.lm is lm


@needs_dspy
def test_other_lms_are_sent_without_what_they_remember(store: ProgramStore, dspy: Any) -> None:
    from dspy.utils import DummyLM

    class Judge(dspy.Module):
        def __init__(self, judge: Any) -> None:
            self.frozen = dspy.Predict("question -> answer")
            self.frozen._compiled = True
            self.inner = Inner(judge)
            self.judge = judge

    class Inner(dspy.Module):
        def __init__(self, lm: Any) -> None:
            self.predict = dspy.Predict("question -> answer")
            self.predict.lm = lm
            self._compiled = True

    for lm in (dspy.LM("openai/m", temperature=0.5, model_type="responses"), DummyLM({"q": {"answer": "a"}})):
        lm.history.append({"prompt": "another caller's"})
        program = store.resolve(Judge(lm))
        assert b"another caller's" not in pickled(program).data
        copy = loaded(program)
        assert type(copy.judge) is type(lm)
        assert copy.judge.history == []
        assert copy.judge.kwargs == lm.kwargs
        assert copy.judge.model_type == lm.model_type
        assert copy.inner.predict.lm is copy.judge
        assert len(lm.history) == 1


@needs_dspy
def test_a_signature_class_is_a_predict_over_it(store: ProgramStore, dspy: Any) -> None:
    class QA(dspy.Signature):
        """Answer."""

        question: str = dspy.InputField()
        answer: Mood = dspy.OutputField()

    program = store.resolve(QA)
    assert program.label == "Predict(question -> answer)"
    assert program.fields == {"answer": Mood}
    assert store.resolve(QA) is program
    QA.instructions = "Answer briefly."
    assert store.resolve(QA).program_id != program.program_id
    with pytest.raises(EncodeError, match="no output fields"):
        store.resolve(dspy.Signature)


@needs_dspy
def test_a_class_of_modules_and_an_lm_are_refused(store: ProgramStore, dspy: Any) -> None:
    with pytest.raises(EncodeError, match=r"pass an instance: ChainOfThought\(\.\.\.\)"):
        store.resolve(dspy.ChainOfThought)
    with pytest.raises(EncodeError, match="pass an LM as lm="):
        store.resolve(dspy.LM("openai/m", api_key=KEY))


@needs_dspy
def test_a_module_with_a_part_that_cannot_be_pickled_names_it(store: ProgramStore, dspy: Any) -> None:
    module = dspy.ReAct("question -> answer", tools=[shout])
    module.tools["shout"].func = functools.partial(print, threading.Lock())
    with pytest.raises(
        EncodeError, match=r"\.tools\['shout'\]\.func\.args\[0\]: a _thread.lock \(cannot pickle '_thread.lock'"
    ):
        store.resolve(module)


@needs_dspy
def test_a_module_names_every_member_that_cannot_be_pickled(store: ProgramStore, dspy: Any) -> None:
    class Finder(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ask = dspy.Predict("question -> answer", lm=dspy.LM("openai/m", api_key=KEY))
            self.ask.callbacks = self.callbacks = [threading.Lock()]  # not sent
            self.history = [threading.Lock()]  # neither
            self.locks = {"db": threading.Lock()}
            self.inner = dspy.ChainOfThought("question -> answer")
            self.inner.predict.guard = threading.RLock()
            self.inner.plain = types.SimpleNamespace(outer=self)

    with pytest.raises(EncodeError) as caught:
        store.resolve(Finder())
    assert str(caught.value) == (
        "pool 'unit': the program Finder can't be pickled, because of "
        "self.locks['db']: a _thread.lock (cannot pickle '_thread.lock' object); "
        "self.inner.predict.guard: a _thread.RLock (cannot pickle '_thread.RLock' object). "
        "Make such things where they are used, at the first call, or leave them out in __getstate__; or pass the "
        'program by its import path, "package.module:attribute": each worker then makes its own'
    )


@needs_dspy
def test_an_lm_that_cannot_be_sent_is_an_encode_error(store: ProgramStore, dspy: Any) -> None:
    class Odd(dspy.BaseLM):
        def __init__(self) -> None:
            super().__init__("odd", api_key=KEY)
            self.lock = threading.Lock()

    module = dspy.Predict("question -> answer")
    module.lm = Odd()
    with pytest.raises(EncodeError, match=r"Odd.*lock") as caught:
        store.resolve(module)
    assert KEY not in str(caught.value)


@needs_dspy
def test_labels_say_what_dspy_s_own_modules_do(store: ProgramStore, dspy: Any) -> None:
    assert store.resolve(dspy.Predict("question -> answer")).label == "Predict(question -> answer)"
    assert store.resolve(dspy.ReAct("question -> answer", tools=[])).label == "ReAct(question -> answer)"
    assert store.resolve(module_class(dspy)()).label == "Pipeline"
    long = dspy.Predict(", ".join(f"input_{number}" for number in range(50)) + " -> answer")
    assert len(store.resolve(long).label) == 100


@needs_dspy
def test_output_types_are_those_of_the_predictors_where_they_agree(store: ProgramStore, dspy: Any) -> None:
    class Two(dspy.Module):
        def __init__(self) -> None:
            self.one = dspy.Predict("question -> answer: int, tags: list[str]")
            self.two = [{"two": dspy.ChainOfThought("question -> answer: float, score: float")}]

    assert store.resolve(Two()).fields == {"tags": list[str], "score": float, "reasoning": str}


# Seeing that one has changed.


def changes(dspy: Any) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    example = dspy.Example(question="a", answer="b")
    yield "an attribute", lambda module: setattr(module, "k", 6)
    yield "a new attribute", lambda module: setattr(module, "extra", 1)
    yield "a deleted attribute", lambda module: delattr(module, "words")
    yield "a predictor", lambda module: module.steps.__setitem__(0, dspy.Predict("question -> reply"))
    yield "another step", lambda module: module.steps.append(dspy.Predict("question -> reply"))
    yield "the demos", lambda module: setattr(module.steps[0], "demos", [example])
    yield "a demo more", lambda module: module.steps[0].demos.append(example)
    yield "a demo in the chain", lambda module: module.steps[1].predict.demos.append(example)
    yield "a demo's text", lambda module: module.steps[1].predict.demos[0].__setitem__("answer", "c")
    yield "a demo's list", lambda module: module.steps[1].predict.demos[0]["tags"].append("c")
    yield "a plain demo's list", lambda module: module.steps[0].demos[0]["calls"][0]["args"].update(n=2)
    yield "the config", lambda module: module.steps[0].config.update(temperature=0.5)
    yield "the config's object", lambda module: module.steps[0].update_config(temperature=0.6)
    yield "the signature", lambda module: setattr(module.steps[0], "signature", dspy.Signature("question -> reply"))
    yield "the instructions", lambda module: setattr(module.steps[0].signature, "instructions", "Be brief.")
    yield "the lm", lambda module: setattr(module.steps[0], "lm", dspy.LM("openai/m"))
    yield "a nested list", lambda module: module.nested["a"][0].append(3)


@needs_dspy
def test_every_usual_change_is_seen(store: ProgramStore, dspy: Any) -> None:
    for name, change in changes(dspy):
        module = module_class(dspy, words=["a"])()
        module.nested = {"a": [[1, 2]]}
        module.steps[0].demos = [{"question": "a", "calls": [{"name": "f", "args": {"n": 1}}]}]
        module.steps[1].predict.demos = [dspy.Example(question="a", answer="b", tags=["a"])]
        before = store.resolve(module)
        assert store.resolve(module) is before
        change(module)
        assert store.resolve(module).program_id != before.program_id, name


@needs_dspy
def test_a_change_of_a_pinned_lm_is_seen(store: ProgramStore, dspy: Any) -> None:
    module = dspy.ChainOfThought("question -> answer")
    module.predict.lm = dspy.LM("openai/m", temperature=0.1)
    before = store.resolve(module)
    module.predict.lm.kwargs["temperature"] = 0.9
    after = store.resolve(module)
    assert after.program_id != before.program_id
    assert pickled(after).lms["predict"].kwargs == {"temperature": 0.9}


@needs_dspy
def test_running_a_module_here_does_not_change_it(store: ProgramStore, dspy: Any) -> None:
    from dspy.utils import DummyLM

    module = module_class(dspy)()
    program = store.resolve(module)
    with dspy.context(lm=DummyLM([{"answer": "b"}] * 3)):
        module(question="why")
    remembered = store._objects[id(module)]
    assert remembered.watch.unchanged()
    assert store.resolve(module) is program


@needs_dspy
def test_a_change_of_several_steps_is_one_for_calls(store: ProgramStore, dspy: Any) -> None:
    module = module_class(dspy)()
    store.resolve(module)
    found: list[Any] = []
    calls = threading.Thread(target=lambda: found.append(store.resolve(module)))
    with store.changing(module):
        module.steps[0].demos = [{"answer": "new"}]
        calls.start()
        calls.join(0.1)  # it has every chance to look
        module.steps[1].predict.demos = [{"answer": "new"}]
    calls.join()
    assert [step.demos for step in (loaded(found[0]).steps[0], loaded(found[0]).steps[1].predict)] == [
        [{"answer": "new"}]
    ] * 2


@needs_dspy
def test_what_the_watch_cannot_see_needs_a_refresh(store: ProgramStore, dspy: Any) -> None:
    module = dspy.ReAct("question -> answer", tools=[shout])
    before = store.resolve(module)
    module.tools["shout"].desc = "Shout it."
    assert store.resolve(module) is before
    store.refresh(module)
    assert store.resolve(module).program_id != before.program_id


@needs_dspy
def test_a_module_is_collected_even_when_its_tools_are_its_methods(store: ProgramStore, dspy: Any) -> None:
    class Agent(dspy.Module):
        def __init__(self) -> None:
            self.agent = dspy.ReAct("question -> answer", tools=[self.tool])
            self.agent.parent = self
            self.parts = {"tools": [self.tool]}

        def tool(self, text: str) -> str:
            return text

    module = Agent()
    module.agent.parent = None
    program = store.resolve(module)
    assert store.resolve(module) is program
    ref = weakref.ref(module)
    del module
    gc.collect()
    assert ref() is None
    assert store._objects == {}


@needs_dspy
def test_attributes_that_compare_strangely_are_no_trouble(store: ProgramStore, dspy: Any) -> None:
    class Strange:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("don't compare me")

        __hash__ = None  # type: ignore[assignment]

    module = module_class(dspy)()
    module.strange, module.nan = Strange(), float("nan")
    program = store.resolve(module)
    assert store._objects[id(module)].watch.unchanged()
    module.strange = None
    assert store.resolve(module).program_id != program.program_id


@needs_dspy
def test_a_module_whose_parts_have_no_form_of_their_own_still_runs(store: ProgramStore, dspy: Any) -> None:
    class Opaque:
        """Pickles, but not twice the same way."""

        def __reduce__(self) -> Any:
            return (Opaque, (), {"at": object()})

        def __setstate__(self, state: Any) -> None:
            pass

    module = module_class(dspy)()
    module.opaque = Opaque()
    assert store.resolve(module) is store.resolve(module)


@needs_dspy
def test_a_module_changed_while_it_is_pickled_is_not_kept_under_its_old_id(store: ProgramStore, dspy: Any) -> None:
    class Restless:
        """Changes its owner whenever it is pickled, until it has had enough."""

        def __init__(self, owner: Any, times: int) -> None:
            self.owner: Any = weakref.proxy(owner)
            self.times = times

        def __reduce__(self) -> Any:
            if self.times:
                self.times -= 1
                self.owner.k += 1
            return (str, ("restless",))

    module, other = module_class(dspy)(), module_class(dspy)()
    module.part, other.part = Restless(module, 3), Restless(other, 1000)
    assert loaded(store.resolve(module)).k == module.k
    assert all(loaded(program).k == module.k for program in store._programs.values())
    with pytest.raises(EncodeError, match="kept changing while it was pickled"):
        store.resolve(other)


class Turns:
    """Does something each time that it is looked at: once for an id, and once to be pickled."""

    def __init__(self, *acts: Callable[[], object]) -> None:
        self.acts = [*acts]

    def __reduce__(self) -> Any:
        (self.acts.pop(0) if self.acts else int)()
        return (str, ("turns",))


@needs_dspy
@pytest.mark.parametrize("torn", [False, True])
def test_what_changes_and_changes_back_is_never_sent_under_the_id_of_what_it_was(
    store: ProgramStore, dspy: Any, *, torn: bool
) -> None:
    class Flips(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first: Any = None
            self.ask = dspy.Predict("question -> answer")
            self.last: Any = None

    flips, states = Flips(), [([{"answer": key}], dspy.LM("openai/m", api_key=key)) for key in ("one", "other")]

    def be(number: int) -> None:
        flips.ask.demos, flips.ask.lm = states[number]

    be(0)
    there, back = functools.partial(be, 1), functools.partial(be, 0)
    flips.first, flips.last = (Turns(there), Turns(back)) if torn else (Turns(int, there), Turns(int, back))
    for number, key in enumerate(("one", "other")):
        be(number)
        program = store.resolve(flips)
        assert loaded(program).ask.demos == [{"answer": key}]
        assert pickled(program).lms["ask"].kwargs["api_key"] == key

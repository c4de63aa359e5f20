"""Which DSPy programs are one: equal ones everywhere, and no others."""

import enum
import functools
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest

from dspool.pool.programs import ProgramStore
from tests.unit.pool.sent import module_class, run_python

pytestmark = pytest.mark.unit
# Whichever of these comes first pays half a second for importing dspy.
needs_dspy = pytest.mark.slow

KEY = "sk-0123456789abcdef"


def shout(text: str) -> str:
    return text.upper()


class Counter:
    """A callable object, and an owner of methods."""

    def __init__(self, start: int = 0) -> None:
        self.start = start

    def add(self, by: int) -> int:
        return self.start + by

    def __call__(self, by: int) -> int:
        return self.add(by)


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


@needs_dspy
def test_equal_modules_built_twice_are_one_program(store: ProgramStore, dspy: Any) -> None:
    builders: list[Callable[[], Any]] = [
        lambda: dspy.Predict("question -> answer: list[str]", temperature=0.5),
        lambda: dspy.ChainOfThought("question -> answer"),
        lambda: dspy.ReAct("question -> answer", tools=[shout, len]),
        lambda: dspy.Predict(dspy.Signature("question -> answer", "Be brief.")),
        lambda: module_class(dspy)(),
        lambda: module_class(dspy, words={"b", "a"})(k=6),
    ]
    seen = set()
    for build in builders:
        one, two = build(), build()
        program = store.resolve(one)
        assert store.resolve(two) is program
        assert program.is_dspy is True
        seen.add(program.program_id)
    assert len(seen) == len(builders)


@needs_dspy
def test_a_deep_copy_is_the_same_program(store: ProgramStore, dspy: Any) -> None:
    module = dspy.ReAct("question -> answer", tools=[shout])
    module.react.demos = [dspy.Example(question="a", answer="b").with_inputs("question")]
    assert store.resolve(module.deepcopy()) is store.resolve(module)


@needs_dspy
def test_modules_that_differ_in_anything_are_different_programs(store: ProgramStore, dspy: Any) -> None:
    def built(change: Callable[[Any], Any]) -> Any:
        module = module_class(dspy)()
        change(module)
        return module

    def pin(**settings: Any) -> Callable[[Any], Any]:
        return lambda module: setattr(module.steps[0], "lm", dspy.LM("openai/m", **settings))

    def use(signature: Any) -> Any:
        return module_class(dspy)(signature=signature)

    field, out = dspy.InputField, dspy.OutputField
    variants = [
        built(lambda module: None),
        built(lambda module: setattr(module, "k", 6)),
        built(lambda module: setattr(module, "k", 5.0)),
        built(lambda module: setattr(module, "k", "5")),
        built(lambda module: setattr(module, "k", True)),
        built(lambda module: setattr(module, "order", {"a": 1, "b": 2})),
        built(lambda module: setattr(module, "order", {"b": 2, "a": 1})),
        built(lambda module: setattr(module.steps[0], "demos", [dspy.Example(question="a", answer="b")])),
        built(lambda module: setattr(module.steps[0], "demos", [dspy.Example(question="a", answer="c")])),
        built(lambda module: setattr(module.steps[1].predict, "demos", [dspy.Example(question="a", answer="b")])),
        built(lambda module: module.steps[0].config.update(temperature=0.5)),
        built(lambda module: module.steps.pop()),
        built(lambda module: setattr(module, "steps", [module.steps[0], module.steps[0]])),
        built(lambda module: setattr(module, "tool", shout)),
        built(lambda module: setattr(module, "tool", lambda text: text)),
        built(lambda module: setattr(module, "tool", lambda text: text + "!")),
        built(lambda module: setattr(module, "tool", functools.partial(shout, text="a"))),
        built(lambda module: setattr(module, "tool", Counter(1).add)),
        built(lambda module: setattr(module, "tool", Counter(2).add)),
        built(pin()),
        built(pin(temperature=0.1)),
        built(pin(api_key=KEY)),
        built(pin(api_key=KEY + "x")),
        use("question -> answer: int"),
        use("question, hint -> answer"),
        use(dspy.Signature("question -> answer", "Be brief.")),
        use(dspy.Signature({"question": (str, field(desc="what")), "answer": (str, out())})),
        use(dspy.Signature({"question": (str, field()), "answer": (Literal["a", "b"], out())})),
        use(dspy.Signature({"question": (str, field()), "answer": (Literal["b", "a"], out())})),
        use(dspy.Signature({"question": (str, field()), "answer": (Mood, out())})),
    ]
    ids = [store.resolve(module).program_id for module in variants]
    assert len(set(ids)) == len(ids)


@needs_dspy
def test_code_that_goes_by_value_counts(store: ProgramStore, dspy: Any) -> None:
    def run(body: str, **namespace: Any) -> Any:
        source = f"class Program(dspy.Module):\n  def forward(self, question):\n    return {body}\n"
        scope = {"dspy": dspy, "__name__": "__main__", **namespace}
        exec(source, scope)
        return scope["Program"]()

    def helper(code: str) -> Any:
        scope: dict[str, Any] = {"__name__": "__main__"}
        exec(code, scope)
        return scope["helper"]

    def model(default: int) -> Any:
        class Answer(pydantic.BaseModel):
            text: str
            score: int = default

        return Answer

    class Model(pydantic.BaseModel):
        text: str

        @pydantic.field_validator("text")
        @classmethod
        def _check(cls, text: str) -> str:
            return text

    class Other(pydantic.BaseModel):
        text: str

        @pydantic.field_validator("text", mode="before")
        @classmethod
        def _check(cls, text: str) -> str:
            return text

    Other.__name__, Other.__qualname__ = Model.__name__, Model.__qualname__
    builders: list[Callable[[], Any]] = [
        lambda: run("question"),
        lambda: run("question + '!'"),
        lambda: run("question + SUFFIX", SUFFIX="!"),
        lambda: run("question + SUFFIX", SUFFIX="?"),
        lambda: run("[len(part) for part in (lambda: SUFFIX)()]", SUFFIX="?"),
        lambda: run("helper(question)", helper=helper("def helper(text, by=1): return text * by")),
        lambda: run("helper(question)", helper=helper("def helper(text, by=2): return text * by")),
        lambda: run("helper(question)", helper=helper("def helper(text, by=2): 'words'; return text * by")),
        lambda: run("kind", kind=model(1)),
        lambda: run("kind", kind=model(2)),
        lambda: run("kind", kind=enum.Enum("Kind", {"A": 1}, module="__main__")),
        lambda: run("kind", kind=enum.Enum("Kind", {"A": 2}, module="__main__")),
    ]
    ids = [store.resolve(build()).program_id for build in builders]
    assert len(set(ids)) == len(ids)
    assert [store.resolve(build()).program_id for build in builders] == ids
    assert store.resolve(run("kind", kind=Model)).program_id != store.resolve(run("kind", kind=Other)).program_id


SCRIPT = """
    import enum, sys, dspy, pydantic
    from dspy.utils import DummyLM
    from dspool.options import PoolOptions
    from dspool.pool.programs import ProgramStore

    class Mood(enum.Enum):
        GOOD = "good"
        BAD = "bad"

    class Answer(pydantic.BaseModel):
        "An answer."
        text: str = pydantic.Field(min_length=1)
        tags: set[str] = {"x", "y", "z"}
        nested: "list[Answer]" = []

        @pydantic.field_validator("text")
        @classmethod
        def strip(cls, text):
            return text.strip()

    class QA(dspy.Signature):
        "Answer the question."
        question: str = dspy.InputField()
        answer: Answer = dspy.OutputField()
        mood: Mood | None = dspy.OutputField(desc="how")

    NAMES = {"alpha", "beta", "gamma", "delta", "epsilon"}

    def look_up(name: str) -> bool:
        "Whether it is a name."
        return name in NAMES and name in {"alpha", "beta", "gamma"}

    class Program(dspy.Module):
        registry = {Mood: NAMES}

        def __init__(self):
            self.names = frozenset(NAMES)
            self.qa = dspy.ChainOfThought(QA)
            self.qa.predict.demos = [dspy.Example(question="q", answer=Answer(text="a")).with_inputs("question")]
            self.agent = dspy.ReAct("question -> answer", tools=[look_up, self.tool])
            self.retrieve = dspy.Retrieve(k=3)
            self.lm = DummyLM({"q": {"answer": "a"}})
            self.qa.predict.lm = dspy.LM("openai/m", api_key="-".join(["secret", "key", "1234"]))

        def tool(self, text: str) -> str:
            return look_up(text)

        def forward(self, question):
            return dspy.Prediction(value=self.tool(question), kind=type(self).__name__, base=super().__repr__()[:0])

    store = ProgramStore(PoolOptions(name="p"))
    program = store.resolve(Program())
    assert store.resolve(Program()) is program
    if len(sys.argv) > 1:
        with open(sys.argv[1], "wb") as file:
            file.write(program.spec.data)
    print(program.program_id)
"""


@pytest.mark.slow
def test_an_id_is_the_same_in_every_process_and_main_goes_by_value(tmp_path: Path) -> None:
    script, data = tmp_path / "script.py", tmp_path / "program.pickle"
    script.write_text(textwrap.dedent(SCRIPT))
    ids = {run_python(str(script), str(data), seed=seed) for seed in ("1", "2", "3")}
    assert len(ids) == 1
    assert b"secret-key-1234" not in data.read_bytes()
    load = f"import pickle; m = pickle.load(open({str(data)!r}, 'rb')); p = m(question='beta'); print(p.value, p.kind)"
    assert run_python("-P", "-W", "error", "-c", load) == "True Program"

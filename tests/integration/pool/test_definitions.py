"""Programs as data, in real workers: types both ways, kinds, demos, saved states, LMs, and all that is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dspool
from dspool.testing.pytest_plugin import MakeAsyncPool, MakePool
from dspool.testing.stub_lm import StubLM

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PARTS = "tests.integration.pool.defined_parts"
QA = {"signature": "question -> answer"}
REACT = {**QA, "program_type": "react"}
BEST = {**QA, "program_type": "best_of_n", "n": 3, "reward": f"{PARTS}:longest", "threshold": 1000}
PROGRAM = {"program_type": "program", "program": f"{PARTS}:Repeats"}


@pytest.fixture
def stub(dspy: Any) -> Iterator[StubLM]:
    """An LM on loopback that echoes."""
    with StubLM() as server:
        yield server


@pytest.fixture
def pool(make_pool: MakePool, stub: StubLM) -> dspool.Pool:
    """One worker with that LM."""
    return make_pool(workers=1, lm=stub.lm(cache=False))


# --- types ------------------------------------------------------------------------------------------------------------

PERSON: dict[str, Any] = {
    "type": "object",
    "title": "Person",
    "description": "Somebody who wrote.",
    "properties": {
        "name": {"type": "string", "description": "as it stands on the page"},
        "age": {"type": "integer", "minimum": 0},
        "mood": {"enum": ["good", "bad"]},
        "home": {"$ref": "#/$defs/Place"},
        "nick": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
    },
    "required": ["name", "age", "mood", "home"],
    "$defs": {"Place": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}},
}
TYPED = {
    "signature": {
        "name": "Describe",
        "description": "Describe the picture.",
        "inputs": [
            {"name": "photo", "type": "image"},
            {"name": "others", "type": "list[image]"},
            {"name": "author", "type": PERSON, "description": "who took it"},
            {"name": "limit", "type": "int"},
        ],
        "outputs": [
            {"name": "title"},
            {"name": "count", "type": {"type": "integer", "minimum": 1, "maximum": 9}},
            {"name": "share", "type": "float"},
            {"name": "sharp", "type": "bool"},
            {"name": "tags", "type": "list[str]"},
            {"name": "sizes", "type": "dict[str, int]"},
            {"name": "mood", "type": "Literal['good', 'bad']"},
            {"name": "scores", "type": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 2}},
            {
                "name": "either",
                "type": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "string"}}]},
            },
            {"name": "floor", "type": "Optional[int]"},
            {"name": "people", "type": {"type": "array", "items": PERSON["$defs"]["Place"] | {"title": "Spot"}}},
            {"name": "person", "type": PERSON},
        ],
    }
}
ADA = {"name": "Ada", "age": 36, "mood": "good", "home": {"city": "London"}}
ANSWERS = {
    "title": "A cat",
    "count": 3,
    "share": 0.5,
    "sharp": True,
    "tags": ["cat", "sofa"],
    "sizes": {"cat": 2},
    "mood": "bad",
    "scores": [1, 0],
    "either": ["a"],
    "floor": None,
    "people": [{"city": "Rome"}],
    "person": ADA,
}
PIXEL = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize("photo", [PIXEL, {"url": PIXEL}, "dspy.Image"], ids=["text", "object", "dspy.Image"])
def test_every_type_goes_both_ways(make_pool: MakePool, dspy: Any, photo: Any) -> None:
    with StubLM(answers=ANSWERS) as server:
        pool = make_pool(workers=1, lm=server.lm(cache=False))
        pool.create_program("describe", TYPED)
        other = "https://example.com/other.png"
        given = dspy.Image(PIXEL) if photo == "dspy.Image" else photo
        inputs = {"photo": given, "others": [other, {"url": other}], "author": ADA, "limit": 3}
        found = pool.run("describe", inputs)
        (request,) = server.requests
        again = pool.run("describe", {**inputs, "author": found.person})
    plain = {name: value for name, value in ANSWERS.items() if name not in ("people", "person")}
    assert {name: found[name] for name in plain} == plain
    assert [spot.city for spot in found.people] == ["Rome"]
    person = found.person
    assert (type(person).__name__, person.name, person.age, person.home.city, person.nick) == (
        "Person",
        "Ada",
        36,
        "London",
        None,
    )
    sent = json.dumps(request["messages"])
    assert sent.count('"type": "image_url"') == 3
    assert sent.count(other) == 2
    for words in ("Describe the picture.", "who took it", "as it stands on the page", "Somebody who wrote."):
        assert words in sent
    assert again.person == person  # what came back can be sent


@pytest.mark.parametrize(
    ("definition", "reason"),
    [
        ({"signature": {"inputs": [{"name": "q"}], "outputs": []}}, "has no outputs"),
        ({"signature": "question -> answer: os.PathLike"}, "the type 'os.PathLike' is not one of"),
        ({"signature": {"outputs": [{"name": "a", "type": {"oneOf": []}}]}}, "keyword 'oneOf' is not supported"),
        ({"signature": "lm -> answer"}, "the input name 'lm' is reserved"),
        ({"signature": "self -> answer"}, "the input name 'self' is reserved"),
        ({"signature": "_x -> answer"}, "the input name '_x' is reserved"),
        (
            {**QA, "program_type": "tree_of_thought"},
            "'tree_of_thought' is unknown; there are predict, chain_of_thought",
        ),
        ({**QA, "demos": [{"quest": "q", "answer": "a"}]}, r"demos\[0\] has 'quest', which is no field"),
        ({**QA, "instruction": "x"}, "did you mean 'instructions'"),
        ({**QA, "config": {"api_key": "sk-1"}}, "is an LM's own"),
        ({**REACT, "tools": ["search"]}, "is written package.module:attribute"),
        ({**REACT, "tools": ["search:it", len]}, "tools holds len itself; a definition names it by its import path"),
    ],
)
def test_what_the_manager_can_know_is_said_without_a_worker(make_pool: MakePool, definition: Any, reason: str) -> None:
    pool = make_pool(workers=1, lazy=True)
    with pytest.raises(dspool.EncodeError, match=reason):
        pool.create_program("bad", definition)
    with pytest.raises(dspool.EncodeError, match=reason):
        pool.run(definition, {})
    assert pool.list_programs() == []
    assert pool.stats().started == 0


# --- kinds ------------------------------------------------------------------------------------------------------------


def test_each_kind_answers(pool: dspool.Pool) -> None:
    for name, definition in {
        "predict": QA,
        "chain_of_thought": {**QA, "program_type": "chain_of_thought"},
        "react": {**REACT, "tools": [f"{PARTS}:search"], "max_iters": 2},
        "best_of_n": BEST,
        "program": {**PROGRAM, "arguments": {"times": 1}},
    }.items():
        pool.create_program(name, definition)
        assert pool.program_info(name)["kind"] == name
        assert pool.run(name, {"question": "why?"}).answer.startswith("echo:"), name
    assert pool.run("chain_of_thought", {"question": "why?"}).reasoning == "echo: why?"
    assert pool.run("react", {"question": "why?"}).trajectory["tool_name_0"] == "finish"


def test_a_react_calls_its_tools(make_pool: MakePool, dspy: Any) -> None:
    steps = iter(["search", "finish"])
    answers = {
        "next_thought": "hm",
        "next_tool_name": lambda inputs: next(steps),
        "next_tool_args": lambda inputs: '{"query": "cats"}' if "found cats" not in str(inputs) else "{}",
        "answer": "cats",
    }
    with StubLM(answers=answers) as server:
        pool = make_pool(workers=1, lm=server.lm(cache=False))
        pool.create_program("agent", {**REACT, "tools": [f"{PARTS}:search", f"{PARTS}:lookup"]})
        found = pool.run("agent", {"question": "what?"})
    assert found.trajectory["observation_0"] == "found cats"
    assert found.trajectory["tool_name_1"] == "finish"
    assert found.answer == "cats"


def test_a_best_of_n_takes_the_best_and_forgets_its_failures(make_pool: MakePool, dspy: Any) -> None:
    """DSPy's own counts failures down in the module: in a worker that lives long it would soon have none left."""
    numbers = iter(range(1000))
    with StubLM(answers={"answer": lambda inputs: str(next(numbers))}) as server:
        pool = make_pool(workers=1, lm=server.lm(cache=False))
        definition = {**BEST, "n": 4, "reward": f"{PARTS}:fails_at_first"}
        pool.create_program("best", definition)
        found = [pool.run("best", {"question": "q"}).answer for _ in range(6)]
        assert found == ["2", "6", "10", "14", "18", "22"]
        pool.create_program("best", {**definition, "threshold": 26}, replace=True)
        assert pool.run("best", {"question": "q"}).answer == "26"
        assert next(numbers) == 27


def test_a_program_by_path_may_be_a_class_an_object_a_factory_or_a_signature(pool: dspool.Pool) -> None:
    for path, arguments, times in (
        ("Repeats", None, 1),
        ("Repeats", {"times": 3}, 3),
        ("make_repeats", {"times": 2}, 2),
        ("ready", None, 2),
        ("Asks", None, 1),
    ):
        definition = {"program_type": "program", "program": f"{PARTS}:{path}", "arguments": arguments}
        pool.create_program("repeats", definition, replace=True)
        assert pool.run("repeats", {"question": "q"}).answer == " ".join(["echo: q"] * times)


@pytest.mark.parametrize(
    ("definition", "reason"),
    [
        ({**REACT, "tools": [f"{PARTS}:serch"]}, rf"ImportError: the tool '{PARTS}:serch' can't be imported: .*serch"),
        ({**REACT, "tools": ["no_such_package.tools:x"]}, "ModuleNotFoundError: No module named 'no_such_package'"),
        ({**REACT, "tools": [f"{PARTS}:NO_TOOL"]}, "the tool .*NO_TOOL' can't be called; it is a int"),
        ({**REACT, "tools": [f"{PARTS}:search", f"{PARTS}:other_tools.search"]}, "two tools are named 'search'"),
        ({**REACT, "tools": [f"{PARTS}:other_tools.finish"]}, "is named 'finish', as DSPy's own"),
        ({**BEST, "reward": f"{PARTS}:gone"}, "the reward .*gone' can't be imported"),
        ({**PROGRAM, "program": f"{PARTS}:search"}, "is no DSPy module; it is a function"),
        ({**PROGRAM, "program": f"{PARTS}:ready", "arguments": {"times": 1}}, "missing|unexpected|argument"),
        ({**PROGRAM, "program": f"{PARTS}:NO_TOOL", "arguments": {}}, "takes no arguments: it is a int"),
        ({**PROGRAM, "program": f"{PARTS}:refuses", "arguments": {}}, "LookupError: no index here"),
        ({**PROGRAM, "arguments": {"tims": 1}}, "unexpected keyword argument 'tims'"),
        (
            {"signature": "question, n: int -> answer", "demos": [{"question": "q", "n": "x", "answer": "a"}]},
            r"demos\[0\]\['n'\] doesn't fit the field's type",
        ),
        (
            {"signature": {"outputs": [{"name": "a", "type": {"type": "string", "pattern": "("}}]}},
            "the signature can't be made: .*regex",
        ),
        (
            {
                "signature": {
                    "outputs": [{"name": "a", "type": {"type": "array", "items": {"pattern": "(", "type": "string"}}}]
                }
            },
            "can't be made: .*regex",
        ),
    ],
)
def test_what_only_a_worker_can_know_is_said_when_the_program_is_created(
    make_pool: MakePool, definition: Any, reason: str
) -> None:
    pool = make_pool(workers=1)
    pool.create_program("program", QA)
    before = pool.program_info("program")
    for check in (None, True):
        with pytest.raises(
            dspool.ProgramError, match=f"(?s)was not registered, since worker 1 can't load it: .*{reason}"
        ) as caught:
            pool.create_program("program", definition, replace=True, check=check)
        assert caught.value.code == "load_error"
    assert pool.program_info("program")["id"] == before["id"]
    pool.create_program("unchecked", definition, check=False)
    with pytest.raises(dspool.ProgramError, match=f"(?s){reason}"):
        pool.run("unchecked", {"question": "q"})
    assert pool.program_info("unchecked")["execution_count"] == 0
    assert pool.stats().exits == {}


def test_check_loads_any_form_and_costs_nothing_where_nothing_is_to_be_learned(make_pool: MakePool) -> None:
    pool = make_pool(workers=1, lazy=True)
    pool.create_program("plain", QA)
    assert pool.stats().started == 0
    pool.create_program("plain", QA, replace=True, check=True)
    assert pool.program_info("plain")["workers"] == [1]
    with pytest.raises(dspool.ProgramError, match="no_such_module"):
        pool.create_program("path", "no_such_module:attribute")
    with pytest.raises(dspool.OptionsError, match="check must be True, False or None; it is 'yes'"):
        pool.create_program("plain", QA, replace=True, check="yes")  # type: ignore[arg-type]
    assert pool.list_programs() == ["plain"]


# --- demos, instructions, settings ------------------------------------------------------------------------------------


def test_demos_may_be_examples_and_hold_what_fields_hold(pool: dspool.Pool, stub: StubLM, dspy: Any) -> None:
    demo = dspy.Example(photo=dspy.Image(PIXEL), answer="a cat").with_inputs("photo")
    pool.create_program("see", {"signature": "photo: image -> answer", "demos": [demo]})
    pool.run("see", {"photo": {"url": PIXEL}})
    sent = json.dumps(stub.requests[-1]["messages"])
    assert "a cat" in sent
    assert sent.count('"type": "image_url"') == 2


def test_instructions_demos_and_settings_reach_the_lm(pool: dspool.Pool, stub: StubLM) -> None:
    definition = {
        "signature": {
            "inputs": [{"name": "question", "desc": "what is asked"}, {"name": "photo", "type": "image"}],
            "outputs": [
                {
                    "name": "answer",
                    "type": {"type": "object", "title": "Answer", "properties": {"text": {"type": "string"}}},
                }
            ],
        },
        "program_type": "chain_of_thought",
        "instructions": "Answer like a cat.",
        "demos": [{"question": "first?", "photo": PIXEL, "reasoning": "purr", "answer": {"text": "meow"}}],
        "config": {"temperature": 0.7, "max_tokens": 77},
    }
    pool.create_program("cat", definition)
    pool.run("cat", {"question": "second?", "photo": PIXEL})
    body = stub.requests[-1]
    sent = json.dumps(body["messages"])
    for words in ("Answer like a cat.", "what is asked", "first?", "purr", "meow", "second?"):
        assert words in sent
    assert sent.count('"type": "image_url"') == 2
    assert body["temperature"] == 0.7
    assert 77 in (body.get("max_tokens"), body.get("max_completion_tokens"))


# --- saved states -----------------------------------------------------------------------------------------------------


def saved(module: Any, path: Path) -> Path:
    """The module's state, as program.save() writes it."""
    module.save(str(path))
    return path


@pytest.mark.parametrize("suffix", [".json", ".pkl"])
def test_a_saved_state_is_loaded(pool: dspool.Pool, stub: StubLM, dspy: Any, tmp_path: Path, suffix: str) -> None:
    module = dspy.ChainOfThought(dspy.Signature("question -> answer", "Say it in verse."))
    module.predict.demos = [dspy.Example(question="old?", reasoning="so", answer="new", augmented=True)]
    path = saved(module, tmp_path / f"state{suffix}")
    definition = {**QA, "program_type": "chain_of_thought", "state": path}
    allowed = {"allow_pickle": True} if suffix == ".pkl" else {}
    pool.create_program("verse", definition, **allowed)
    path.unlink()  # it was read: workers may be elsewhere
    pool.run("verse", {"question": "now?"})
    sent = json.dumps(stub.requests[-1]["messages"])
    assert "Say it in verse." in sent
    assert "old?" in sent
    if suffix == ".pkl":
        with pytest.raises(dspool.EncodeError, match="allow_pickle=True"):
            pool.create_program("other", {**definition, "state": saved(module, path)})


def test_states_of_every_kind_come_back(pool: dspool.Pool, dspy: Any, tmp_path: Path) -> None:
    tool = {"tools": [f"{PARTS}:search"]}
    from tests.integration.pool.defined_parts import Repeats, longest, search

    modules: dict[str, tuple[Any, dict[str, Any]]] = {
        "predict": (dspy.Predict("question -> answer"), QA),
        "react": (dspy.ReAct("question -> answer", tools=[search]), {**REACT, **tool}),
        "best": (
            dspy.BestOfN(dspy.ChainOfThought("question -> answer"), 3, longest, 1.0),
            {**BEST, "inner": "chain_of_thought"},
        ),
        "best predict": (dspy.BestOfN(dspy.Predict("question -> answer"), 3, longest, 1.0), BEST),
        "program": (Repeats(), PROGRAM),
    }
    for name, (module, definition) in modules.items():
        for predictor in module.predictors():
            predictor.signature = predictor.signature.with_instructions(f"I am the {name}.")
        state = json.loads(saved(module, tmp_path / "state.json").read_text())
        pool.create_program(name, {**definition, "state": state})
        assert pool.run(name, {"question": "q"}).answer.startswith("echo:")


def test_a_state_of_another_program_is_refused_by_what_differs(pool: dspool.Pool, dspy: Any, tmp_path: Path) -> None:
    def state_of(module: Any, **changes: Any) -> Any:
        return json.loads(saved(module, tmp_path / "state.json").read_text()) | changes

    predict = dspy.Predict("question -> answer")
    for definition, state, reason in (
        (QA, state_of(dspy.ChainOfThought("question -> answer")), "the saved state of 'self' is none: it needs"),
        (
            {**QA, "program_type": "chain_of_thought"},
            state_of(predict),
            "it has the predictors .*, and this one has predict",
        ),
        (
            PROGRAM,
            state_of(dspy.ChainOfThought("question -> answer")),
            "it has the predictors predict, and this one has say",
        ),
        (
            QA,
            state_of(dspy.Predict("query -> answer")),
            "in 'self' it has the fields Query, Answer, and this one has Question, Answer",
        ),
        (
            QA,
            state_of(dspy.Predict("question -> title, answer")),
            "it has the fields Question, Title, Answer, and this",
        ),
        (QA, state_of(predict, forward="x"), "the saved state of 'self' has 'forward', which no state has"),
        (QA, state_of(predict, demos=["x"]), "has demos that are no objects"),
        (QA, state_of(predict, signature={"fields": "x"}), "has no readable signature"),
        (QA, state_of(predict, signature={"fields": [], "instructions": 3}), "has no readable signature"),
    ):
        with pytest.raises(dspool.ProgramError, match=f"was not registered.*{reason}"):
            pool.create_program("program", {**definition, "state": state})
    pool.create_program("program", {**QA, "state": state_of(predict)})


def test_an_optimizers_new_words_for_the_last_field_are_taken(pool: dspool.Pool, stub: StubLM, dspy: Any) -> None:
    predict = dspy.Predict("question -> answer")
    state = predict.dump_state()
    state["signature"]["fields"][-1]["prefix"] = "The whole truth:"
    pool.create_program("program", {**QA, "state": state})
    assert pool.run("program", {"question": "q"}).answer == "echo: q"


def test_a_states_own_lm_keeps_its_model_and_no_address(dspy: Any, tmp_path: Path, caplog: Any) -> None:
    from dspool.protocol.definitions import parse
    from dspool.testing.offline_lm import offline_lm
    from dspool.worker.definitions import build

    def lm_of(lm: Any) -> Any:
        predict = dspy.Predict("question -> answer")
        predict.lm = lm
        return build(parse({**QA, "state": json.loads(saved(predict, tmp_path / "state.json").read_text())})).lm

    address = {"api_base": "http://127.0.0.1:1/v1", "extra_headers": {"x": "y"}}
    found = lm_of(dspy.LM("openai/saved", api_key="sk-1", temperature=0.3, num_retries=1, **address))
    assert (found.model, found.num_retries, found.kwargs["temperature"]) == ("openai/saved", 1, 0.3)
    assert not found.kwargs.keys() & {"api_key", *address}
    assert (
        "the saved state's LM of self is taken without api_base, extra_headers; give the program an lm" in caplog.text
    )
    assert "127.0.0.1" not in caplog.text
    assert lm_of(offline_lm()) is None
    assert "(offline/extractive) is code of its own; it is left out" in caplog.text
    assert lm_of(None) is None


def test_a_definitions_lm_wins_over_its_states(pool: dspool.Pool, stub: StubLM, dspy: Any, tmp_path: Path) -> None:
    predict = dspy.Predict("question -> answer")
    predict.lm = dspy.LM("openai/saved", api_key="sk-1")
    state = json.loads(saved(predict, tmp_path / "state.json").read_text())
    pool.create_program("saved", {**QA, "state": state, "lm": stub.lm(cache=False)})
    assert pool.run("saved", {"question": "p"}).answer == "echo: p"


# --- LMs --------------------------------------------------------------------------------------------------------------


def test_a_programs_lm_wins_over_the_pools_and_a_calls_over_both(make_pool: MakePool, stub: StubLM, dspy: Any) -> None:
    with StubLM(answers={"answer": "program's"}) as of_program, StubLM(answers={"answer": "call's"}) as of_call:
        pool = make_pool(workers=1, lm=stub.lm())
        plain = {"model": "openai/stub-model", "api_base": of_program.url, "api_key": "sk-secret-of-the-program"}
        for lm in (of_program.lm(), plain):
            for definition in (QA, {**QA, "program_type": "chain_of_thought"}, BEST, {**REACT, "tools": []}, PROGRAM):
                pool.create_program("qa", {**definition, "lm": lm}, replace=True)
                assert pool.run("qa", {"question": "q"}).answer == "program's"
                assert pool.run("qa", {"question": "q"}, lm=of_call.lm()).answer == "call's"
                assert pool.run("qa", {"question": "q"}).answer == "program's"
        info = pool.program_info("qa")
        assert info["lm"] == "openai/stub-model"
        assert "sk-secret" not in json.dumps(info)
        assert pool.run(QA, {"question": "q"}).answer == "echo: q"


def test_a_programs_key_is_in_no_error(make_pool: MakePool, stub: StubLM, dspy: Any) -> None:
    with StubLM(faults={"401": 1.0}) as server:
        lm = {
            "model": "openai/stub-model",
            "api_base": server.url,
            "api_key": "sk-secret-of-the-program",
            "num_retries": 0,
            "cache": False,
        }
        pool = make_pool(workers=1, lm=stub.lm())
        pool.create_program("qa", {**QA, "lm": lm})
        with pytest.raises(dspool.ProgramError) as caught:
            pool.run("qa", {"question": "q"})
        assert caught.value.code == "lm_error"
        shown = str(caught.value) + caught.value.remote_traceback + repr(pool.stats()) + repr(caught.value.details)
        assert "sk-secret" not in shown


# --- the registry -----------------------------------------------------------------------------------------------------


def test_info_says_all_there_is_to_know(pool: dspool.Pool) -> None:
    pool.create_program("qa", QA)
    info = pool.program_info("qa")
    assert info["bytes"] > 0
    expected: dict[str, Any] = {
        "program_id": "qa",
        "kind": "predict",
        "signature": "question -> answer",
        "lm": None,
        "label": "qa",
    }
    expected |= {"execution_count": 0, "last_executed": None, "quarantined": False, "workers": []}
    assert info == info | expected
    pool.run("qa", {"question": "q"})
    with pool.checkout() as lease:
        lease.run("qa", {"question": "q"})
    list(pool.map("qa", [{"question": "q"}] * 3))
    with pytest.raises(dspool.ProgramError):
        pool.run("qa", {"wrong": "q"})
    later = pool.program_info("qa")
    assert (later["execution_count"], later["workers"]) == (5, [1])
    assert later["created_at"] < later["last_executed"]
    pool.create_program("qa", QA, replace=True)
    assert pool.program_info("qa")["execution_count"] == 0


def test_unknown_and_existing_programs(pool: dspool.Pool) -> None:
    pool.create_program("qa", QA)
    with pytest.raises(dspool.ProgramExists, match="'qa' already; pass replace=True"):
        pool.create_program("qa", QA)
    for method in (pool.program_info, pool.delete_program, lambda name: pool.run(name, {})):
        with pytest.raises(dspool.ProgramNotFound, match=r"no program 'gone' \(registered: 'qa'\)"):
            method("gone")


def test_a_program_that_ends_its_workers_is_shown_in_quarantine_and_released(
    make_pool: MakePool, stub: StubLM, dspy: Any
) -> None:
    pool = make_pool(workers=1, lm=stub.lm(), quarantine_after=2)
    pool.create_program("deadly", {**BEST, "reward": f"{PARTS}:deadly"})
    for _ in range(2):
        with pytest.raises(dspool.WorkerLost):
            pool.run("deadly", {"question": "q"})
    pool.wait_ready(1, 30)
    assert pool.program_info("deadly")["quarantined"]
    with pytest.raises(dspool.ProgramQuarantined):
        pool.run("deadly", {"question": "q"})
    pool.release("deadly")
    assert not pool.program_info("deadly")["quarantined"]


def test_programs_are_rebuilt_wherever_they_are_needed_and_a_sessions_with_it(
    make_pool: MakePool, stub: StubLM, dspy: Any
) -> None:
    pool = make_pool(workers=2, lm=stub.lm(cache=False), max_programs=2)
    for number in range(6):  # more than a worker keeps
        pool.create_program(f"qa {number}", {**QA, "instructions": f"I am {number}."})
    for _ in range(2):
        for number in range(6):
            assert pool.run(f"qa {number}", {"question": "q"}, session="mine").answer == "echo: q"
            assert f"I am {number}." in json.dumps(stub.requests[-1]["messages"])
    with pool.checkout(session="mine") as lease:
        assert not lease.session_restarted
        assert lease.worker is not None
        first = lease.worker.worker_id
    pool.kill(first)
    with pool.checkout(session="mine") as lease:
        assert lease.session_restarted
        assert lease.worker is not None
        assert lease.worker.worker_id != first
        assert lease.run("qa 3", {"question": "q"}).answer == "echo: q"
    assert "I am 3." in json.dumps(stub.requests[-1]["messages"])


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_same_on_an_async_pool(make_async_pool: MakeAsyncPool, stub: StubLM, dspy: Any, backend: str) -> None:
    import anyio

    async def main() -> None:
        async with make_async_pool(workers=1, lm=stub.lm()) as pool:
            await pool.create_program("agent", {**REACT, "tools": [f"{PARTS}:search"]})
            assert (await pool.run("agent", {"question": "q"})).answer == "echo: q"
            with pytest.raises(dspool.ProgramError, match=r"was not registered.*gone"):
                await pool.create_program("agent", {**REACT, "tools": [f"{PARTS}:gone"]}, replace=True)
            info = await pool.program_info("agent")
            assert (info["execution_count"], info["workers"], info["kind"]) == (1, [1], "react")
            await pool.delete_program("agent")
            assert await pool.list_programs() == []

    anyio.run(main, backend=backend)

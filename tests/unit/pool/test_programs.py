"""The program store: strings, callables, definitions and names."""

import functools
import gc
import importlib.util
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from dspool.errors import EncodeError, OptionsError, PoolError, ProgramExists, ProgramNotFound
from dspool.options import PoolOptions
from dspool.pool import names as names_module, programs as programs_module
from dspool.pool.identity import importable
from dspool.pool.programs import Program, ProgramStore
from dspool.protocol.messages import (
    CreateArgs,
    DefinedProgram,
    ImportedProgram,
    LMSpec,
    SignatureProgram,
)
from dspool.protocol.requests import encode_request
from tests.unit.pool.sent import loaded, pickled, run_python

pytestmark = pytest.mark.unit


def create(store: ProgramStore, name: str, definition: Any, *, replace: bool = False) -> Program:
    """Register a program as a pool does, which has a worker look at some in between."""
    return store.register(store.prepare(name, definition, replace=replace), replace=replace)


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


# Strings.


def test_a_signature_string_is_a_dspy_program_sent_as_text(store: ProgramStore) -> None:
    program = store.resolve(" question -> answer ")
    assert program.spec == SignatureProgram("question -> answer")
    assert program.is_dspy is True
    assert program.program_id.startswith("Predict-")
    assert program is store.resolve("question -> answer")


def test_an_import_path_is_left_to_the_worker(store: ProgramStore) -> None:
    program = store.resolve("app.main:build.qa")
    assert program.spec == ImportedProgram("app.main:build.qa")
    assert program.program_id == "import:app.main:build.qa"
    assert program.is_dspy is None


@pytest.mark.parametrize("text", ["nothing", "app.main", "app main:qa", "", ":qa", "app:", "1app:qa"])
def test_a_string_that_is_none_of_the_three_is_not_found(store: ProgramStore, text: str) -> None:
    create(store, "known", shout)
    with pytest.raises(ProgramNotFound, match=r"pool 'unit' has no program .*registered: 'known'.*import path"):
        store.resolve(text)


@pytest.mark.parametrize("text", ["question ->", "a -> b -> c", "a b -> c", "a: list[ -> b", "->"])
def test_a_signature_that_cannot_be_read_is_refused_here(store: ProgramStore, text: str) -> None:
    with pytest.raises(EncodeError, match=r"the signature .* can't be read"):
        store.resolve(text)


def test_a_path_into_the_script_itself_is_refused(store: ProgramStore) -> None:
    with pytest.raises(EncodeError, match="pass the object"):
        store.resolve("__main__:qa")


# Callables.


def test_a_callable_goes_by_identity(store: ProgramStore) -> None:
    first = store.resolve(shout)
    assert first.program_id == f"callable:{__name__}.shout#1"
    assert first.label == f"{__name__}.shout"
    assert first.is_dspy is False
    assert store.resolve(shout) is first
    one, two = (lambda text: text), (lambda text: text)
    assert store.resolve(one).program_id != store.resolve(two).program_id
    assert loaded(first)("a") == "A"


def test_a_bound_method_is_the_same_program_each_time_it_is_taken(store: ProgramStore) -> None:
    counter, other = Counter(1), Counter(1)
    assert store.resolve(counter.add) is store.resolve(counter.add)
    assert store.resolve(counter.add) is not store.resolve(other.add)
    assert loaded(store.resolve(counter.add))(by=2) == 3


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (Counter(), "Counter"),
        (functools.partial(shout, text="x"), "shout"),
        (functools.partial(functools.partial(Counter(3).add)), "Counter.add"),
        (len, "len"),
        (Counter, "Counter"),
    ],
)
def test_every_kind_of_callable_is_named_and_remembered(
    store: ProgramStore, function: Callable[..., Any], name: str
) -> None:
    program = store.resolve(function)
    assert program.label.endswith(name)
    assert store.resolve(function) is program


def test_a_callable_object_that_says_it_equals_another_is_still_itself(store: ProgramStore) -> None:
    class Equal(Counter):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    assert store.resolve(Equal(1)) is not store.resolve(Equal(2))


def test_a_callable_is_kept_so_that_its_id_stays_its_own(store: ProgramStore) -> None:
    counter = Counter()
    ref = weakref.ref(counter)
    store.resolve(counter)
    del counter
    gc.collect()
    assert ref() is not None


def test_what_is_no_program_is_refused(store: ProgramStore) -> None:
    for thing in (5, None, b"question -> answer", object()):
        with pytest.raises(EncodeError, match=f"pool 'unit': a program is .*; this is a {type(thing).__name__}"):
            store.resolve(thing)


def test_the_part_that_cannot_be_pickled_is_named(store: ProgramStore) -> None:
    lock = threading.Lock()

    def locked(text: str) -> str:
        with lock:
            return text

    with pytest.raises(
        EncodeError, match=r"locked, its variable 'lock': a _thread.lock \(cannot pickle '_thread.lock'"
    ):
        store.resolve(locked)
    counter = Counter()
    counter.steps = [1, {"client": lock}]  # type: ignore[attr-defined]
    with pytest.raises(EncodeError, match=r"Counter\.add\.__self__\.steps\[1\]\['client'\]: a _thread.lock"):
        store.resolve(counter.add)


LARGE = "x" * 10_000


@pytest.mark.parametrize(
    ("program", "label"),
    [
        (functools.partial(shout, text=LARGE), "shout"),
        (f"question -> answer{LARGE}", "question -> answerx"),
        ({"signature": {"inputs": [{"name": "a", "description": LARGE}], "outputs": [{"name": "b"}]}}, "predict"),
        (f"app.main:{LARGE}", "app.main:xxx"),
    ],
    ids=["pickled", "signature", "definition", "import path"],
)
def test_a_program_larger_than_a_frame_is_refused_and_not_remembered(program: Any, label: str) -> None:
    store = ProgramStore(PoolOptions(name="small", max_frame_bytes=8192))
    said = rf"pool 'small': .*{label}.* a message of [12]\d,\d\d\d bytes, more than max_frame_bytes=8,192; raise that"
    for _ in range(2):
        with pytest.raises(EncodeError, match=said):
            store.resolve(program)
    with pytest.raises(EncodeError, match=said):
        create(store, "large", program)
    assert store.names() == []


def test_the_largest_program_that_a_frame_carries_is_kept() -> None:
    text = f"question -> {'answer' * 200}"
    args = CreateArgs(ProgramStore(PoolOptions()).resolve(text).program_id, SignatureProgram(text))
    size = len(encode_request("create_program", args, 2**20)) - 4
    assert ProgramStore(PoolOptions(max_frame_bytes=size)).resolve(text).label.startswith("question -> answer")
    with pytest.raises(EncodeError, match=rf"{size:,} bytes"):
        ProgramStore(PoolOptions(max_frame_bytes=size - 1)).resolve(text)


def test_a_module_that_a_worker_cannot_import_goes_by_value(store: ProgramStore, tmp_path: Path) -> None:
    file = tmp_path / "beside.py"
    file.write_text("import re\nWORD = 'hello'\ndef greet(name):\n    return f'{WORD} {re.escape(name)}'\n")
    spec = importlib.util.spec_from_file_location("loaded_by_location", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["loaded_by_location"] = module
    try:
        spec.loader.exec_module(module)
        assert not importable("loaded_by_location")
        program = store.resolve(module.greet)
    finally:
        del sys.modules["loaded_by_location"]
    assert loaded(program)("you") == "hello you"
    assert cloudpickle.list_registry_pickle_by_value() == set()


def test_a_module_on_the_path_goes_by_reference(
    store: ProgramStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "on_the_path.py").write_text("def greet(name):\n    return name\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("on_the_path")
    try:
        assert importable("on_the_path")
        assert b"on_the_path" in pickled(store.resolve(module.greet)).data
        assert len(pickled(store.resolve(module.greet)).data) < 100
    finally:
        del sys.modules["on_the_path"]


def test_the_oldest_that_was_not_used_again_is_forgotten(store: ProgramStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs_module, "MAX_PROGRAMS", 4)
    counters = [Counter(number) for number in range(8)]
    ids = [store.resolve(counter.add).program_id for counter in counters[:4]]
    for number in range(4, 8):
        assert store.resolve(counters[0].add).program_id == ids[0]
        store.resolve(counters[number].add)
    assert store.resolve(counters[0].add).program_id == ids[0]
    assert store.resolve(counters[1].add).program_id != ids[1]
    assert len(store._programs) <= 4
    assert len(store._keyed) <= 4


def test_pickles_are_bounded_by_their_bytes(store: ProgramStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs_module, "MAX_BYTES", 50_000)
    for _ in range(10):
        store.resolve(functools.partial(shout, text="x" * 20_000))
    assert sum(program.size_bytes for program in store._programs.values()) <= 50_000
    assert len(store._objects) == len(store._programs)


def test_threads_that_ask_at_once_get_the_same_program(store: ProgramStore) -> None:
    gate = threading.Barrier(8)
    found: list[Program] = []

    def ask() -> None:
        gate.wait()
        found.append(store.resolve(shout))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(program) for program in found}) == 1


# Names and definitions.


def test_a_name_wins_over_a_signature_and_labels_the_program(store: ProgramStore) -> None:
    text = "question -> answer"
    before = store.resolve(text)
    create(store, text, shout)
    named = store.resolve(text)
    assert named.label == text
    assert named.program_id == store.resolve(shout).program_id
    store.delete(text)
    assert store.resolve(text) is before


def test_a_taken_name_is_refused_unless_it_shall_be_replaced(store: ProgramStore) -> None:
    create(store, "qa", shout)
    with pytest.raises(ProgramExists, match="pool 'unit' has a program named 'qa' already; pass replace=True"):
        create(store, "qa", "a -> b")
    assert store.resolve("qa").is_dspy is False
    create(store, "qa", "a -> b", replace=True)
    assert store.resolve("qa").spec == SignatureProgram("a -> b")


def test_a_definition_that_cannot_be_sent_registers_nothing(store: ProgramStore) -> None:
    with pytest.raises(EncodeError):
        create(store, "bad", threading.Lock().acquire)
    assert store.names() == []
    for name in ("", "x" * 300, 5):
        with pytest.raises(EncodeError, match="a program's name"):
            create(store, name, shout)  # type: ignore[arg-type]


def test_names_infos_and_deletion(store: ProgramStore) -> None:
    create(store, "second", "a -> b")
    create(store, "first", shout)
    assert store.names() == ["second", "first"]
    info = store.info("second")
    assert info["program_id"] == "second"
    assert info["kind"] == "signature"
    assert info["signature"] == "a -> b"
    assert store.info("first")["bytes"] > 0
    assert store.info("first")["id"] == store.resolve(shout).program_id
    assert store.delete("second").label == "second"
    for method in (store.info, store.delete):
        with pytest.raises(ProgramNotFound, match="second"):
            method("second")
    with pytest.raises(ProgramNotFound):
        store.resolve("second")


def test_refreshing_a_name_looks_at_its_definition_again(store: ProgramStore) -> None:
    counter = Counter(1)
    create(store, "count", counter)
    counter.start = 5
    assert loaded(store.resolve("count"))(by=1) == 2
    store.refresh("count")
    assert loaded(store.resolve("count"))(by=1) == 6
    assert store.names() == ["count"]


def test_refreshing_a_callable_makes_it_a_new_program(store: ProgramStore) -> None:
    before = store.resolve(shout)
    store.refresh(shout)
    assert store.resolve(shout).program_id != before.program_id
    store.refresh("never seen -> before")


DEFINITION = {
    "id": "one",
    "signature": {"name": "QA", "inputs": [{"name": "question"}], "outputs": [{"name": "answer", "type": "str"}]},
    "program_type": "chain_of_thought",
}


def test_a_definition_is_known_by_its_content(store: ProgramStore) -> None:
    program = store.resolve(DEFINITION)
    assert program.program_id.startswith("QA-")
    assert program.is_dspy is True
    assert isinstance(program.spec, DefinedProgram)
    assert "id" not in program.spec.definition
    reordered = dict(reversed(DEFINITION.items())) | {"id": "two", "session_id": "s"}
    assert store.resolve(reordered) is program
    assert store.resolve(DEFINITION | {"program_type": "predict"}) is not program


def test_a_definition_without_a_signature_or_with_objects_is_refused(store: ProgramStore) -> None:
    with pytest.raises(EncodeError, match=r"pool 'unit': the definition has no signature"):
        store.resolve({"program_type": "predict"})
    with pytest.raises(EncodeError, match=r"config\['hook'\]"):
        store.resolve(DEFINITION | {"program_type": "predict", "config": {"hook": object()}})
    assert store.resolve(DEFINITION | {"hook": object()}) is store.resolve(DEFINITION)  # nobody's key


def test_what_is_ignored_in_a_signature_is_not_told(store: ProgramStore) -> None:
    """It may be an LM with its key, in the wrong place."""
    field = {"name": "question", "description": "what to ask"}
    signature = {"inputs": [field | {"api_key": "sk-misplaced"}], "outputs": [{"name": "answer", "type": "int"}]}
    create(store, "qa", {"signature": signature | {"lm": {"model": "openai/x", "api_key": "sk-misplaced"}}})
    assert store.info("qa")["signature"] == {"inputs": [field], "outputs": [{"name": "answer", "type": "int"}]}


def test_text_in_a_definition_that_no_encoding_has_is_refused(store: ProgramStore) -> None:
    """As msgspec and json read it from "\\ud800"."""
    with pytest.raises(EncodeError, match="surrogates not allowed"):
        create(store, "qa", {"signature": "question -> answer", "instructions": "\ud800"})


def test_a_slip_in_a_definition_is_refused_by_name(store: ProgramStore) -> None:
    with pytest.raises(EncodeError, match="'instruction' is no key of a definition; did you mean 'instructions'"):
        store.resolve(DEFINITION | {"instruction": "Be short."})


def test_what_only_a_worker_can_know_is_told_from_the_rest(store: ProgramStore) -> None:
    assert not store.resolve(DEFINITION).unproven
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^a"}}}
    field = {"name": "answer", "type": schema}
    for unproven in (
        {"signature": "a -> b", "program_type": "react", "tools": ["app:search"]},
        {"signature": "a -> b", "demos": [{"a": "x", "b": "y"}]},
        {"signature": "a -> b", "state": {"signature": {}}},
        {"signature": {"inputs": [{"name": "question"}], "outputs": [field]}},
        "app.main:qa",
    ):
        assert store.resolve(unproven).unproven
        assert create(store, "name", unproven, replace=True).unproven
    assert not create(store, "name", shout, replace=True).unproven


# Definitions' LMs and states.


def test_a_definitions_lm_travels_beside_it_and_its_key_is_shown_nowhere(store: ProgramStore) -> None:
    lm = {"model": "openai/gpt-4o-mini", "api_key": "sk-very-secret"}
    program = create(store, "qa", DEFINITION | {"lm": lm})
    assert isinstance(program.spec, DefinedProgram)
    assert program.spec.lm is not None
    assert program.spec.lm.kwargs == {"api_key": "sk-very-secret"}
    assert "lm" not in program.spec.definition
    info = store.info("qa")
    assert info["lm"] == "openai/gpt-4o-mini"
    for shown in (info, program, program.program_id, program.spec, store.prepare("other", DEFINITION | {"lm": lm})):
        assert "sk-very-secret" not in repr(shown)
    ids = [store.resolve(DEFINITION | more).program_id for more in ({}, {"lm": lm}, {"lm": lm | {"api_key": "sk-2"}})]
    assert len(set(ids)) == 3
    with pytest.raises(OptionsError, match="lm names no provider"):
        create(store, "qa", DEFINITION | {"lm": "gpt-4o-mini"}, replace=True)
    assert store.resolve("qa") is program


def test_a_definitions_lm_is_told_of_so_that_its_key_is_masked() -> None:
    told: list[LMSpec] = []
    store = ProgramStore(PoolOptions(name="unit"), told.append)
    store.resolve(DEFINITION)
    assert told == []
    program = store.resolve(DEFINITION | {"lm": {"model": "openai/m", "api_key": "sk-very-secret"}})
    assert isinstance(program.spec, DefinedProgram)
    assert told == [program.spec.lm]


def test_a_saved_state_may_be_a_path_and_is_read_once(store: ProgramStore, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text('{"predict": {"demos": []}}')
    by_path = create(store, "qa", DEFINITION | {"state": path})
    assert isinstance(by_path.spec, DefinedProgram)
    assert by_path.spec.definition["state"] == {"predict": {"demos": []}}
    assert by_path.program_id == store.resolve(DEFINITION | {"state": {"predict": {"demos": []}}}).program_id
    path.write_text('{"predict": {"demos": [{}]}}')
    assert store.resolve("qa") is by_path
    store.refresh("qa")
    assert store.resolve("qa").program_id != by_path.program_id


def test_a_pickled_state_is_sent_unopened_and_only_where_that_is_allowed(store: ProgramStore, tmp_path: Path) -> None:
    path = tmp_path / "state.pkl"
    path.write_bytes(b"no pickle at all")
    for take in (store.resolve, functools.partial(store.prepare, "qa")):
        with pytest.raises(EncodeError, match=r"is a pickle, which can run any code .* allow_pickle=True"):
            take(DEFINITION | {"state": str(path)})
    program = store.prepare("qa", DEFINITION | {"state": str(path)}, allow_pickle=True).program
    assert isinstance(program.spec, DefinedProgram)
    assert program.spec.state == b"no pickle at all"
    assert "state" not in program.spec.definition
    assert program.unproven


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone.json", "can't be read: FileNotFoundError"),
        ("bad.json", "can't be read: DecodeError"),
        ("list.json", "state must be object"),
        ("state.txt", r"must be a \.json file"),
        ("folder", "is a whole program, saved with save_program=True"),
    ],
)
def test_a_path_that_is_no_saved_state(store: ProgramStore, tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "folder").mkdir()
    with pytest.raises(EncodeError, match=reason):
        store.resolve(DEFINITION | {"state": tmp_path / name})


# What is kept.


def test_a_name_that_is_gone_leaves_nothing_behind(store: ProgramStore) -> None:
    counter = Counter()
    ref = weakref.ref(counter)
    for number in range(200):
        create(store, "other", shout, replace=True)
        create(store, "name", DEFINITION | {"instructions": str(number)}, replace=True)
        create(store, f"name {number}", {"signature": f"a -> b{number}"})
        store.delete(f"name {number}")
    create(store, "name", counter, replace=True)
    del counter
    assert len(store._programs) == 2
    store.delete("name")
    store.delete("other")
    gc.collect()
    assert ref() is None
    assert (store._programs, store._keyed, store._objects, store.names()) == ({}, {}, {}, [])


def test_a_program_with_another_name_stays(store: ProgramStore) -> None:
    create(store, "one", DEFINITION)
    create(store, "two", DEFINITION)
    store.delete("one")
    assert len(store._programs) == 1
    create(store, "two", DEFINITION, replace=True)
    assert len(store._programs) == 1
    store.discard(store.prepare("three", DEFINITION))
    assert len(store._programs) == 1
    store.discard(store.prepare("three", "a -> b"))
    assert len(store._programs) == 1


def test_names_are_bounded(store: ProgramStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_module, "MAX_NAMES", 2)
    create(store, "one", shout)
    candidate = store.prepare("three", shout)
    create(store, "two", shout)
    refusals: list[Callable[[], Program]] = [lambda: create(store, "three", shout), lambda: store.register(candidate)]
    for refused in refusals:
        with pytest.raises(PoolError, match="pool 'unit' has 2 registered programs; delete some before 'three'"):
            refused()
    create(store, "two", "a -> b", replace=True)


def test_a_name_that_was_taken_meanwhile_is_not_given_twice(store: ProgramStore) -> None:
    candidate = store.prepare("one", shout)
    create(store, "one", "a -> b")
    with pytest.raises(ProgramExists):
        store.register(candidate)
    store.register(candidate, replace=True)
    assert store.resolve("one").is_dspy is False


def test_runs_are_counted_for_each_name_and_kept_by_a_refresh(store: ProgramStore) -> None:
    one, two = create(store, "one", shout), create(store, "two", shout)
    assert one.runs is not None
    assert two.runs is not None
    assert store.info("one")["last_executed"] is None
    one.runs.add()
    one.runs.add()
    two.runs.add()
    store.refresh("one")
    info = store.info("one")
    assert info["execution_count"] == 2
    assert info["created_at"] <= info["last_executed"]
    assert store.info("two")["execution_count"] == 1
    assert store.resolve(shout).runs is None
    create(store, "one", shout, replace=True)
    assert store.info("one")["execution_count"] == 0


@pytest.mark.slow
def test_no_form_but_dspy_s_own_imports_dspy() -> None:
    run_python(
        "-c",
        "import sys, functools; from dspool.options import PoolOptions; from dspool.pool.programs import ProgramStore\n"
        "store = ProgramStore(PoolOptions(name='p'))\n"
        "for each in ('a -> b', 'x.y:z', len, functools.partial(len), {'signature': 'a -> b'}): store.resolve(each)\n"
        "assert 'dspy' not in sys.modules",
    )

"""The programs that are kept loaded."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from dspool.protocol.messages import BootConfig, ImportedProgram, ProgramSpec
from dspool.protocol.secrets import Secrets
from dspool.worker.import_paths import import_attribute
from dspool.worker.programs import CallableProgram, Loader, Program, ProgramTable

pytestmark = pytest.mark.unit


class Loads:
    """Counts loads; `hold` keeps them from coming back."""

    def __init__(self) -> None:
        self.specs: list[ProgramSpec] = []
        self.hold = threading.Event()
        self.hold.set()
        self.begun = threading.Event()

    def __call__(self, spec: ProgramSpec) -> Program:
        self.specs.append(spec)
        self.begun.set()
        assert self.hold.wait(10)
        if spec == ImportedProgram("bad"):
            raise LookupError("bad")
        return CallableProgram(lambda: spec, Loader(BootConfig(1, "test"), Secrets()))


A, B = ImportedProgram("a"), ImportedProgram("b")


@pytest.fixture
def loads() -> Loads:
    return Loads()


def value_of(program: Program | None) -> Any:
    assert program is not None
    return program.call({}, None, None)[1]


def test_a_program_is_found_until_it_is_the_least_recently_used(loads: Loads) -> None:
    table = ProgramTable(loads, 2)
    table.create("a", A)
    table.create("b", B)
    assert value_of(table.get("a")) == A
    table.create("c", A)
    assert table.get("b") is None
    assert table.get("a") is not None
    assert table.get("c") is not None
    assert len(table) == 2


def test_the_same_spec_again_is_not_loaded_again_and_another_replaces_it(loads: Loads) -> None:
    table = ProgramTable(loads, 2)
    table.create("p", A)
    table.create("p", ImportedProgram("a"))
    assert loads.specs == [A]
    table.create("p", B)
    assert value_of(table.get("p")) == B
    assert len(table) == 1


def test_a_failed_load_leaves_what_was_there(loads: Loads) -> None:
    table = ProgramTable(loads, 2)
    table.create("p", A)
    with pytest.raises(LookupError):
        table.create("p", ImportedProgram("bad"))
    assert value_of(table.get("p")) == A


def test_two_slots_that_ask_at_once_get_one_load_and_lookups_do_not_wait_for_it(loads: Loads) -> None:
    table = ProgramTable(loads, 2)
    table.create("a", A)
    loads.hold.clear()
    loads.begun.clear()
    threads = [threading.Thread(target=table.create, args=("b", B)) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert loads.begun.wait(10)
    assert value_of(table.get("a")) == A
    assert table.get("b") is None
    loads.hold.set()
    for thread in threads:
        thread.join(10)
    assert loads.specs == [A, B]
    assert value_of(table.get("b")) == B


def test_lookups_survive_evictions_by_other_threads(loads: Loads) -> None:
    table = ProgramTable(loads, 1)
    stop = threading.Event()
    failures: list[BaseException] = []

    def look_up() -> None:
        try:
            while not stop.is_set():
                table.get("p0")
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=look_up)
    thread.start()
    for number in range(2000):
        table.create(f"p{number % 2}", A)
    stop.set()
    thread.join(10)
    assert not failures


@pytest.mark.parametrize("path", ["json", "json:", ":loads", ""])
def test_an_import_path_has_a_colon(path: str) -> None:
    with pytest.raises(ValueError, match="is written package"):
        import_attribute(path)


def test_an_attribute_may_have_dots() -> None:
    import json

    assert import_attribute("json:JSONDecoder.decode") is json.JSONDecoder.decode
    with pytest.raises(ImportError, match="nothing_there"):
        import_attribute("json:JSONDecoder.nothing_there")


def test_a_file_in_the_place_of_a_module_is_told() -> None:
    with pytest.raises(ImportError, match=r"A path has no \.py: 'json:loads'"):
        import_attribute("json.py:loads")
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_module'"):
        import_attribute("no_such_module:py")

"""What workers keep of LMs' answers, and who shares it: real workers, real files, and a server that counts requests."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import dspool
from dspool.testing.pytest_plugin import MakePool
from dspool.testing.stub_lm import StubLM

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PROGRAM = "question -> answer"
ASK = {"question": "q"}
Requests = Callable[[], int]


@pytest.fixture
def stub(dspy: Any) -> Iterator[StubLM]:
    """The server that all the LMs lead to. Templates have DSPy, as where a user has made a program."""
    with StubLM() as server:
        yield server


@pytest.fixture
def lm(stub: StubLM) -> dict[str, Any]:
    """An LM whose answers may be kept."""
    return stub.settings(cache=True, num_retries=0)


@pytest.fixture
def requests(stub: StubLM) -> Requests:
    """How many requests the server has had."""
    return lambda: stub.stats().requests


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DSPy's own folder, which isn't there yet."""
    folder = tmp_path / "above" / "own"
    monkeypatch.setenv("DSPY_CACHEDIR", str(folder))
    return folder


def cache_inside() -> tuple[str, int, int]:
    """DSPy's cache in this process: its class, how many answers it may keep in memory, how many there are."""
    import dspy

    return type(dspy.cache).__name__, dspy.cache.memory_cache.maxsize, len(dspy.cache.memory_cache)


def files_in(folder: Path, pid: int) -> list[str]:
    """The files of a folder that a process has open."""
    opened = (open_file.path for open_file in psutil.Process(pid).open_files())
    return [path for path in opened if path.startswith(str(folder))]


def in_each(pool: dspool.Pool, program: Any, inputs: dict[str, Any]) -> None:
    """Run it once in each of a pool's two workers."""
    with pool.checkout() as first, pool.checkout() as second:
        assert first.worker is not None
        assert second.worker is not None
        assert first.worker.worker_id != second.worker.worker_id
        first.run(program, inputs)
        second.run(program, inputs)


@pytest.mark.parametrize("named", [True, False], ids=["cache=folder", "cache=True"])
@pytest.mark.parametrize("start_method", ["template", "spawn"])
def test_workers_share_answers_with_each_other_and_with_later_ones(
    make_pool: MakePool, lm: dict[str, Any], requests: Requests, own: Path, named: bool, start_method: str
) -> None:
    if start_method == "template" and sys.platform != "linux":
        pytest.skip("templates are for Linux")
    folder = own.parent / "named" if named else own
    options = {"lm": lm, "start_method": start_method, **({"cache": folder} if named else {})}
    in_each(make_pool(workers=2, **options), PROGRAM, ASK)
    assert requests() == 1
    assert make_pool(workers=1, name="later", **options).run(PROGRAM, ASK).answer == "echo: q"
    assert requests() == 1
    assert [stat.S_IMODE(each.stat().st_mode) for each in (folder, folder.parent)] == [0o700, 0o700]
    assert own.exists() is not named


def test_a_call_and_a_pool_can_do_without(
    make_pool: MakePool, lm: dict[str, Any], requests: Requests, own: Path
) -> None:
    pool = make_pool(workers=1, lm=lm)
    for own_lm, expected in ((None, 1), (None, 1), ({**lm, "cache": False}, 2), (None, 2), ({**lm, "cache": False}, 3)):
        pool.run(PROGRAM, ASK, lm=own_lm)
        assert requests() == expected
    without = make_pool(workers=1, name="without", lm=lm, cache=False, env={"DSPY_CACHEDIR": str(own / "none")})
    for expected in (4, 5):
        without.run(PROGRAM, ASK)
        assert requests() == expected
    assert not (own / "none").exists()


@pytest.mark.parametrize("folder", [True, "named"])
def test_namespaces_share_nothing(
    make_pool: MakePool, lm: dict[str, Any], requests: Requests, own: Path, tmp_path: Path, folder: bool | str
) -> None:
    groups = [
        dspool.WorkerGroup(name=name, workers=1, labels=frozenset({name}), cache_namespace=name)
        for name in ("Red", "red")
    ]
    cache = folder if isinstance(folder, bool) else tmp_path / folder
    pool = make_pool(workers=[*groups, dspool.WorkerGroup(name="rest", workers=1)], lm=lm, cache=cache)
    for name, expected in (("Red", 1), ("red", 2), ("Red", 2), ("red", 2)):
        pool.run(PROGRAM, ASK, require=name)
        assert requests() == expected
    blue = make_pool(workers=1, name="blue", lm=lm, cache=cache, cache_namespace="blue")
    blue.run(PROGRAM, ASK)
    blue.run(PROGRAM, ASK)
    assert requests() == 3
    make_pool(workers=1, name="none", lm=lm, cache=cache).run(PROGRAM, ASK)
    assert requests() == 4
    make_pool(workers=1, name="again", lm=lm, cache=cache, cache_namespace="red").run(PROGRAM, ASK)
    assert requests() == 4
    where = own if folder is True else tmp_path / "named"
    found = {each.name for each in where.glob("namespace-*")}
    assert found == {"namespace-+red", "namespace-red", "namespace-blue"}


def test_a_plain_function_that_uses_dspy_keeps_to_its_pools_namespace(
    make_pool: MakePool, lm: dict[str, Any], requests: Requests, own: Path
) -> None:
    def asks(settings: dict[str, Any]) -> str:
        import dspy

        return str(dspy.LM(**settings)("hello")[0])

    for namespace, expected in (("red", 1), ("blue", 2), ("red", 2)):
        # Spawned, so that nothing but the function itself and its namespace brings DSPy in.
        pool = make_pool(workers=1, name=f"{namespace}-{expected}", cache_namespace=namespace, start_method="spawn")
        pool.run(asks, {"settings": lm})
        assert requests() == expected
    assert sorted(each.name for each in own.iterdir()) == ["namespace-blue", "namespace-red"]


def test_what_is_kept_in_memory_is_bounded_and_the_rest_is_on_disk(
    make_pool: MakePool, lm: dict[str, Any], requests: Requests, own: Path
) -> None:
    assert make_pool(workers=1, name="usual", lm=lm).run(cache_inside, {}) == ("PoolCache", 1000, 0)
    pool = make_pool(workers=1, lm=lm, cache_memory_entries=2)
    for _ in range(2):
        for number in range(5):
            pool.run(PROGRAM, {"question": f"q{number}"})
        assert pool.run(cache_inside, {}) == ("PoolCache", 2, 2)
        assert requests() == 5
    on_disk = make_pool(workers=1, name="disk", lm=lm, cache_memory_entries=0)
    on_disk.run(PROGRAM, {"question": "q0"})
    assert requests() == 5


def test_no_process_opens_the_files_before_its_first_request_and_a_template_never_does(
    make_pool: MakePool, lm: dict[str, Any], requests: Requests, tmp_path: Path
) -> None:
    folder = tmp_path / "answers"
    pool = make_pool(workers=1, lm=lm, cache=folder)
    [worker] = pool.workers()
    assert worker.pid is not None
    assert pool.run(cache_inside, {}) == ("PoolCache", 1000, 0)
    assert files_in(folder, worker.pid) == []
    pool.run(PROGRAM, ASK)
    assert files_in(folder, worker.pid) != []
    if sys.platform == "linux":
        assert pool.stats().start_method == "template"
        assert files_in(folder, psutil.Process(worker.pid).ppid()) == []


class Planted:
    """What runs code where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def look_up(request: dict[str, Any]) -> bool:
    """Whether DSPy's cache has an answer to a request."""
    import dspy

    return dspy.cache.get(request) is not None


def test_a_planted_pickle_is_not_loaded(make_pool: MakePool, stub: StubLM, tmp_path: Path) -> None:
    from dspy.clients.cache import Cache

    folder, mark = tmp_path / "answers", tmp_path / "mark"
    theirs = Cache(True, False, str(folder))
    theirs.put({"a": 1}, Planted(mark))
    theirs.put({"a": 2}, {"plain": "data"})
    theirs.disk_cache.close()
    pool = make_pool(workers=1, cache=folder)
    assert [pool.run(look_up, {"request": {"a": number}}) for number in (1, 2)] == [False, True]
    assert not mark.exists()


def test_where_dspys_own_folder_cant_be_used_answers_are_kept_in_memory(
    make_pool: MakePool, lm: dict[str, Any], requests: Requests, own: Path, logged: list[Any]
) -> None:
    own.parent.mkdir()
    own.write_text("no folder")
    pool = make_pool(workers=1, lm=lm)
    for _ in range(2):
        assert pool.run(PROGRAM, ASK).answer == "echo: q"
    assert requests() == 1
    pool.close()  # what the worker wrote has been logged by then
    [told] = [str(line) for line in logged if "kept in memory alone" in str(line)]
    assert str(own) in told


def test_files_that_are_damaged_while_they_are_open_cost_no_call(
    make_pool: MakePool, lm: dict[str, Any], requests: Requests, tmp_path: Path, logged: list[Any]
) -> None:
    pool = make_pool(workers=1, lm=lm, cache=tmp_path / "answers")
    pool.run(PROGRAM, ASK)
    for file in (tmp_path / "answers").rglob("cache.db*"):
        file.write_bytes(os.urandom(8192))
    for _ in range(2):
        assert pool.run(PROGRAM, {"question": "another"}).answer == "echo: another"
    assert pool.run(PROGRAM, ASK).answer == "echo: q"
    assert requests() == 2  # what is in memory is still known
    pool.close()
    [told] = [str(line) for line in logged if "kept in memory alone" in str(line)]
    assert str(tmp_path / "answers") in told


def test_a_folder_that_cant_be_used_is_refused_at_once(make_pool: MakePool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(dspool.OptionsError) as caught:
            make_pool(name="p", workers=1, cache=folder)
        assert f"pool 'p': cache='{folder}': {folder} can't be used: {tmp_path / 'file'} is no folder" in str(
            caught.value
        )


def test_a_preload_module_decides_where_the_options_leave_it_open(
    make_pool: MakePool,
    lm: dict[str, Any],
    requests: Requests,
    own: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "without_cache.py").write_text(
        "import dspy\ndspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)\n"
    )
    pool = make_pool(workers=1, lm=lm, preload=["without_cache"])
    pool.run(PROGRAM, ASK)
    pool.run(PROGRAM, ASK)
    assert requests() == 2
    named = make_pool(workers=1, name="named", lm=lm, preload=["without_cache"], cache=tmp_path / "answers")
    named.run(PROGRAM, ASK)
    named.run(PROGRAM, ASK)
    assert requests() == 3


def test_many_workers_open_a_new_folder_at_a_time(
    make_pool: MakePool, lm: dict[str, Any], requests: Requests, tmp_path: Path, logged: list[Any]
) -> None:
    pool = make_pool(workers=6, lm=lm, cache=tmp_path / "answers", cache_memory_entries=0)
    rows = [{"question": f"q{number}"} for number in range(24)]
    answers = [prediction.answer for prediction in pool.map(PROGRAM, rows)]
    assert answers == [f"echo: q{number}" for number in range(24)]
    assert requests() == 24
    assert [prediction.answer for prediction in pool.map(PROGRAM, rows)] == answers
    assert requests() == 24
    pool.close()
    assert [line for line in logged if "memory alone" in str(line)] == []

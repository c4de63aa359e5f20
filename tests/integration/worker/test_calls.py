"""Plain callables: what goes in, what comes out, and every way in which a call can fail without harm to the worker."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dspool.protocol.messages import ImportedProgram, LMSpec

if TYPE_CHECKING:
    from tests.integration.worker.conftest import Spawn

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def echo(**inputs: Any) -> Any:
    return inputs


class Counter:
    """A callable with state, of a class that the worker can't import."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, step: int) -> int:
        self.calls += step
        return self.calls


class AppError(LookupError):
    pass


def test_inputs_come_back_with_their_types(spawn: Spawn) -> None:
    inputs = {
        "text": "\N{SNOWMAN}",
        "bytes": b"\0\1",
        "tuple": (1, [2.5, None]),
        "set": {1, 2},
        "when": datetime(2024, 2, 29, tzinfo=UTC),
        "much": Decimal("1e3"),
        "big": 2**100,
    }
    from dspool.protocol.values import to_plain

    worker = spawn()
    assert worker.slot.run(echo, to_plain(inputs)).result == {"value": inputs}


def test_what_main_defines_travels_by_value_and_keeps_its_state(spawn: Spawn) -> None:
    worker = spawn()
    assert worker.slot.run(Counter(), {"step": 2}).result == {"value": 2}
    assert worker.slot.execute({"step": 3}).result == {"value": 5}


def test_an_imported_callable(spawn: Spawn) -> None:
    worker = spawn()
    assert worker.slot.run(ImportedProgram("os.path:basename"), {"p": "a/b"}).result == {"value": "b"}


def test_a_coroutine_function_is_run_to_its_end(spawn: Spawn) -> None:
    async def wait(x: int) -> int:
        await asyncio.sleep(0)
        return x + 1

    worker = spawn()
    assert worker.slot.run(wait, {"x": 1}).result == {"value": 2}
    assert worker.slot.execute({"x": 2}).result == {"value": 3}


def test_slot_0_alone_is_served_by_the_main_thread(spawn: Spawn) -> None:
    worker = spawn()
    assert worker.slot.run(lambda: threading.current_thread() is threading.main_thread()).result == {"value": True}


def test_a_program_that_is_not_loaded_is_missing(spawn: Spawn) -> None:
    worker = spawn()
    info = worker.slot.error_of(worker.slot.execute({}, "nobody"))
    assert (info.code, info.message) == ("program_missing", "Program not found: nobody")


def test_the_least_recently_used_program_goes(spawn: Spawn) -> None:
    worker = spawn(max_programs=2)
    for name in ("a", "b"):
        worker.slot.create(echo, name)
    worker.slot.execute({}, "a")
    worker.slot.create(echo, "c")
    assert worker.slot.execute({}, "a").success
    assert worker.slot.execute({}, "c").success
    assert worker.slot.error_of(worker.slot.execute({}, "b")).code == "program_missing"


def test_inputs_that_do_not_fit_are_listed_and_nothing_runs(spawn: Spawn) -> None:
    def program(question: str, context: str, limit: int = 3) -> None:
        os._exit(1)

    worker = spawn()
    info = worker.slot.run_badly(program, {"question": "?", "contxt": "!"})
    assert info.code == "invalid_args"
    assert info.details == {
        "expected": ["question", "context", "limit"],
        "missing": ["context"],
        "unknown": ["contxt"],
    }
    assert info.message == "the program takes question, context, limit; missing context; unknown contxt"


@pytest.mark.parametrize("args", [{}, {"program_id": ""}, {"program_id": "p"}, {"program_id": "p", "inputs": [1]}])
def test_bad_args_are_refused(spawn: Spawn, args: dict[str, Any]) -> None:
    worker = spawn()
    worker.slot.create(echo)
    assert worker.slot.error_of(worker.slot.ask("execute_program", args)).code == "invalid_args"
    assert worker.slot.error_of(worker.slot.ask("create_program", args)).code == "invalid_args"


def test_an_exception_is_told_with_type_bases_and_the_programs_own_traceback(spawn: Spawn) -> None:
    def program(key: str) -> None:
        try:
            os.environ[key]
        except KeyError as error:
            raise AppError(f"no {key}") from error

    worker = spawn()
    info = worker.slot.run_badly(program, {"key": "k"})
    assert (info.code, info.message, info.retryable) == ("program_error", "no k", False)
    assert info.type == f"{__name__}.AppError"
    assert info.mro == [info.type, *(f"builtins.{name}" for name in "LookupError Exception BaseException".split())]
    assert "KeyError: 'k'" in info.traceback
    assert "in program" in info.traceback
    assert "dspool/worker" not in info.traceback
    assert worker.slot.run(echo, {"a": 1}).result == {"value": {"a": 1}}


def test_exit_in_a_program_is_its_error(spawn: Spawn) -> None:
    worker = spawn()
    info = worker.slot.run_badly(lambda: sys.exit(3))
    assert (info.code, info.type) == ("program_error", "builtins.SystemExit")
    assert "exit(3)" in info.message
    assert worker.control.ask("ping").success


def test_long_error_texts_are_cut_in_the_middle(spawn: Spawn) -> None:
    def program() -> None:
        raise ValueError("<" + "x" * 2**20 + "\udcff>")

    worker = spawn()
    info = worker.slot.run_badly(program)
    assert info.message.startswith("<xxx")
    assert info.message.endswith("xxx\\udcff>")
    assert len(info.message) < 17_000
    assert len(info.traceback) < 67_000


def test_a_result_without_plain_form_is_told_by_its_place(spawn: Spawn) -> None:
    worker = spawn()
    info = worker.slot.run_badly(lambda: {"a": [1, object()]})
    assert info.code == "encode_error"
    assert "value['a'][1]" in info.message


def test_a_generator_is_no_result(spawn: Spawn) -> None:
    def program() -> Iterator[int]:
        yield 1

    worker = spawn()
    info = worker.slot.run_badly(program)
    assert info.code == "encode_error"
    assert "generator" in info.message


def test_a_result_over_the_cap_is_told(spawn: Spawn) -> None:
    worker = spawn(max_frame_bytes=2048)
    info = worker.slot.run_badly(lambda size: "x" * size, {"size": 4096})
    assert info.code == "result_too_large"
    assert "2,048" in info.message
    assert worker.slot.execute({"size": 10}).result == {"value": "x" * 10}


def test_an_error_over_the_cap_comes_without_its_traceback(spawn: Spawn) -> None:
    def program() -> None:
        raise ValueError("y" * 5000)

    worker = spawn(max_frame_bytes=2048)
    info = worker.slot.run_badly(program)
    assert (info.code, info.type, info.traceback) == ("program_error", "builtins.ValueError", "")
    assert info.message.startswith("yyy")


def test_a_program_that_cannot_be_loaded_is_a_load_error(spawn: Spawn, tmp_path: Path) -> None:
    (tmp_path / "half_way.py").write_text("raise OSError('disk on fire')")
    worker = spawn(sys_path=[str(tmp_path), *sys.path])
    info = worker.slot.error_of(worker.slot.create(ImportedProgram("half_way:program")))
    assert (info.code, info.type, info.message) == ("load_error", "builtins.OSError", "disk on fire")
    assert "half_way.py" in info.traceback
    assert worker.slot.error_of(worker.slot.create(ImportedProgram("math:sqrt"))).code == "load_error"
    assert worker.slot.error_of(worker.slot.create(ImportedProgram("math:pi"))).code == "load_error"
    assert worker.slot.run(echo).success


def test_large_requests_meet_large_answers(spawn: Spawn) -> None:
    worker = spawn()
    text = "z" * (8 * 2**20)
    assert worker.slot.run(echo, {"text": text}).result == {"value": {"text": text}}


def test_secrets_are_masked_in_every_error_text(spawn: Spawn) -> None:
    def program(text: str) -> None:
        raise ValueError(text)

    key, variable = "sk-canary-0123456789", "canary-from-the-environment"
    lm = LMSpec("d", "openai/stub", {"api_key": key, "extra_headers": {"X-Auth": f"Bearer {key}-2"}})
    worker = spawn(lm=lm, env={"STUB_API_KEY": variable})
    response = worker.slot.run(program, {"text": f"<{key}> <{key}-2> <{variable}>"})
    assert worker.slot.error_of(response).message == "<***> <***> <***>"
    assert "canary" not in repr(response)


def test_a_crash_ends_the_process_with_its_own_code(spawn: Spawn) -> None:
    worker = spawn()
    worker.slot.create(lambda: os._exit(3))
    worker.slot.start()
    with pytest.raises(EOFError):
        worker.slot.receive()
    assert worker.process.wait() == 3


def test_a_child_that_a_program_forks_answers_nothing(spawn: Spawn) -> None:
    worker = spawn()
    response = worker.slot.run(lambda: os.fork() != 0)
    assert response.result == {"value": True}
    assert worker.slot.execute().result == {"value": True}

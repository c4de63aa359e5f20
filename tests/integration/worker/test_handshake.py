"""A worker's start: what it says when it is ready, and what when it can't be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dspool.protocol.limits import EXIT_BOOT_ERROR
from dspool.protocol.messages import BootConfig, ImportedProgram, LimitSpec, LimitsSpec, NamedProgram

if TYPE_CHECKING:
    from tests.integration.worker.conftest import Driven, Launch, Spawn

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def config(*sys_path: Path, **settings: object) -> BootConfig:
    return BootConfig(worker_id=7, pool="test", sys_path=[*map(str, sys_path), *sys.path], **settings)  # type: ignore[arg-type]


def assert_boot_error(worker: Driven, type_: str, text: str) -> str:
    info = worker.ready.error_info
    assert info is not None
    assert (info.code, info.type) == ("boot_error", type_)
    assert text in info.message
    assert worker.exit_code() == EXIT_BOOT_ERROR
    return info.traceback


def test_a_ready_worker_says_who_it_is(spawn: Spawn) -> None:
    worker = spawn()
    assert worker.ready.id == 0
    assert worker.ready.result == {
        "status": "ok",
        "worker_id": 7,
        "pid": worker.process.pid,
        "protocol_version": 1,
        "dspy_version": worker.ready.result["dspy_version"],
        "python_version": sys.version.split()[0],
    }
    assert worker.ready.result["dspy_version"].startswith("3.4.")


def test_a_worker_of_callables_loads_neither_dspy_nor_anyio(spawn: Spawn) -> None:
    def loaded() -> list[str]:
        return sorted({"dspy", "anyio", "structlog", "asyncio", "psutil"} & set(sys.modules))

    worker = spawn()
    assert worker.slot.run(loaded).result == {"value": []}


def test_preload_modules_are_imported_from_the_managers_path(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "preloaded.py").write_text("import sys; sys.preloaded = True")
    worker = launch()
    assert worker.handshake(config(tmp_path, preload=["preloaded"])).success
    assert worker.slot.run(lambda: sys.preloaded).result == {"value": True}  # type: ignore[attr-defined]


def test_warm_programs_are_loaded_before_it_is_ready(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "warm_ones.py").write_text("def double(x):\n    return 2 * x\n")
    worker = launch()
    assert worker.handshake(
        config(tmp_path, warm=[NamedProgram("double", ImportedProgram("warm_ones:double"))])
    ).success
    assert worker.control.ask("ping").result["programs"] == 1
    assert worker.slot.execute({"x": 4}, "double").result == {"value": 8}


def test_a_preload_that_raises_is_a_boot_error_with_its_traceback(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def fail():\n    raise LookupError('no such thing')\nfail()")
    worker = launch()
    worker.handshake(config(tmp_path, preload=["broken"]))
    traceback = assert_boot_error(worker, "builtins.LookupError", "no such thing")
    assert "broken.py" in traceback
    assert "in fail" in traceback


@pytest.mark.parametrize(
    ("source", "type_", "text"),
    [
        ("import nothing_there", "builtins.ModuleNotFoundError", "nothing_there"),
        ("exit(5)", "builtins.SystemExit", "5"),
    ],
)
def test_a_dspy_that_cannot_be_imported_is_a_boot_error(
    launch: Launch, tmp_path: Path, source: str, type_: str, text: str
) -> None:
    (tmp_path / "dspy.py").write_text(source)
    worker = launch()
    worker.handshake(config(tmp_path, adapter="chat"))
    assert_boot_error(worker, type_, text)


def test_a_warm_program_that_cannot_be_loaded_is_a_boot_error(launch: Launch) -> None:
    worker = launch()
    worker.handshake(config(warm=[NamedProgram("w", ImportedProgram("json:nothing_there"))]))
    assert_boot_error(worker, "builtins.ImportError", "nothing_there")


def test_an_unknown_adapter_is_a_boot_error(launch: Launch) -> None:
    worker = launch()
    worker.handshake(config(adapter="braille"))
    assert_boot_error(worker, "builtins.ValueError", "there is no adapter 'braille'")


def test_limits_that_cannot_be_kept_are_a_boot_error(launch: Launch) -> None:
    worker = launch()
    worker.handshake(config(adapter="chat", limits=LimitsSpec("/nowhere/limits", {"*": LimitSpec(60.0)})))
    assert_boot_error(
        worker, "builtins.RuntimeError", "lm_limits can't be kept: /nowhere/limits, which the workers share"
    )


def test_where_there_are_no_limits_nothing_has_to_be_shared(launch: Launch) -> None:
    worker = launch()
    assert worker.handshake(config(adapter="chat", limits=LimitsSpec("/nowhere/limits"))).success
    assert "won't hold back other workers: /nowhere/limits can't be opened" in worker.errors()


def test_another_protocol_version_is_a_boot_error(launch: Launch) -> None:
    worker = launch()
    worker.handshake(config(), protocol_version=99)
    assert_boot_error(worker, "dspool.worker.boot.BootError", "version 99")


def test_a_config_of_the_wrong_shape_is_a_boot_error(launch: Launch) -> None:
    worker = launch()
    worker.handshake(config(), config={"worker_id": "seven"})
    assert_boot_error(worker, "dspool.worker.boot.BootError", "config is not valid")


def test_what_comes_before_the_handshake_is_refused_and_the_handshake_still_works(launch: Launch) -> None:
    worker = launch()
    refused = worker.control.ask("ping")
    assert not refused.success
    assert "handshake" in (refused.error or "")
    assert worker.handshake(config()).success


def test_the_control_pipes_end_before_the_handshake_is_an_exit(launch: Launch) -> None:
    worker = launch()
    worker.control.sock.close()
    assert worker.exit_code() == 0


@pytest.mark.parametrize("arguments", [[], ["--control", "1", "--lifeline", "0", "--slots", "2"], ["--control"]])
def test_wrong_arguments_are_told_and_exit_2(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-P", "-m", "dspool.worker", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage: python -P -m dspool.worker" in done.stderr

"""`dspool map`: a line for each row, through kills, interrupts and bad rows."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dspool.testing.stub_lm import StubLM

pytestmark = [pytest.mark.integration, pytest.mark.slow]

Cli = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]
WriteRows = Callable[..., str]
ReadLines = Callable[[], list[dict[str, Any]]]
Gate = Callable[[], int]
Written = Callable[[int], None]


def test_every_row_has_its_line_in_order(cli: Cli, write_rows: WriteRows, read_lines: ReadLines) -> None:
    done = cli("map", "tasks:who", write_rows(20), "-o", "out.jsonl", "--workers", "2")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    lines = read_lines()
    assert [line["index"] for line in lines] == list(range(20))
    assert [line["outputs"]["n"] for line in lines] == list(range(20))
    assert "20 of 20 rows are in out.jsonl" in done.stderr


def test_rows_come_from_stdin_and_go_to_stdout(cli: Cli) -> None:
    done = cli("map", "tasks:square", "-", "-o", "-", "-q", stdin='{"n": 2}\n{"n": 3}\n')
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line)["outputs"] for line in done.stdout.splitlines()] == [4, 9]


def test_a_file_without_rows_starts_nothing(cli: Cli, write_rows: WriteRows, read_lines: ReadLines) -> None:
    done = cli("map", "tasks:square", write_rows(0), "-o", "out.jsonl", "-O", "python=/nowhere/python")
    assert (done.returncode, read_lines()) == (0, [])


def test_a_bad_row_is_told_before_anything_runs(cli: Cli, folder: Path) -> None:
    (folder / "rows.jsonl").write_text('{"n": 1}\n[2]\n', encoding="utf-8")
    done = cli("map", "tasks:square", "rows.jsonl", "-o", "out.jsonl")
    assert done.returncode == 2
    assert "rows.jsonl, line 2" in done.stderr
    assert (folder / "out.jsonl").read_bytes() == b""


def test_failed_rows_are_kept_and_run_again_when_asked(
    cli: Cli, folder: Path, write_rows: WriteRows, read_lines: ReadLines
) -> None:
    done = cli("map", "tasks:picky", write_rows(4), "-o", "out.jsonl")
    assert done.returncode == 1
    assert "2 are errors" in done.stderr
    assert [line.get("error", {}).get("type") for line in read_lines()] == [None, "ProgramError", None, "ProgramError"]
    assert "1 is odd" in read_lines()[1]["error"]["message"]
    again = cli("map", "tasks:picky", "rows.jsonl", "-o", "out.jsonl", "--resume")
    assert again.returncode == 1
    assert len(read_lines()) == 4
    (folder / "tasks.py").write_text("def picky(n):\n    return -n\n", encoding="utf-8")
    mended = cli("map", "tasks:picky", "rows.jsonl", "-o", "out.jsonl", "--resume", "--retry-failed")
    assert mended.returncode == 0, mended.stderr
    assert {line["index"]: line["outputs"] for line in read_lines()} == {0: 0, 1: -1, 2: 2, 3: -3}
    assert len(read_lines()) == 4


def test_on_error_stop_ends_at_the_row_and_leaves_it_to_resume(
    cli: Cli, write_rows: WriteRows, read_lines: ReadLines
) -> None:
    done = cli("map", "tasks:picky", write_rows(4), "-o", "out.jsonl", "--on-error", "stop")
    assert done.returncode == 1
    assert "1 is odd" in done.stderr
    assert [line["index"] for line in read_lines()] == [0]


def test_an_error_of_every_row_ends_the_run(cli: Cli, folder: Path, write_rows: WriteRows) -> None:
    done = cli("map", "tasks:missing", write_rows(50), "-o", "out.jsonl")
    assert done.returncode == 1
    assert (folder / "out.jsonl").read_bytes() == b""
    rows = [json.dumps({"question": str(n)}) for n in range(200)]
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    with StubLM(faults=lambda request: "401") as stub:
        spec = {"model": "openai/stub", "api_base": stub.url, "api_key": "x", "cache": False}
        (folder / "lm.json").write_text(json.dumps(spec), encoding="utf-8")
        refused = cli(
            "map", "question -> answer", "rows.jsonl", "-o", "out.jsonl", "--lm", "@lm.json", "--workers", "1"
        )
        asked = stub.stats().requests
    assert refused.returncode == 1
    assert asked < 50


def test_a_lost_worker_costs_a_row_unless_rows_may_run_twice(
    cli: Cli, folder: Path, write_rows: WriteRows, read_lines: ReadLines
) -> None:
    rows = write_rows(4, folder=".")
    done = cli("map", "tasks:once", rows, "-o", "out.jsonl", "--workers", "1")
    assert done.returncode == 4
    assert [line.get("error", {}).get("type") for line in read_lines()] == [None, None, "WorkerLost", None]
    (folder / "seen").rmdir()
    again = cli("map", "tasks:once", rows, "-o", "out.jsonl", "--workers", "1", "--idempotent", "--overwrite")
    assert again.returncode == 0, again.stderr
    assert [line["outputs"] for line in read_lines()] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("wrong", "code", "told"),
    [("worker=3", 2, "unknown option 'worker'"), ("preload=no_such_module", 3, "out.jsonl is as it was")],
)
def test_answers_are_overwritten_only_when_the_pool_is_open(
    cli: Cli, folder: Path, write_rows: WriteRows, wrong: str, code: int, told: str
) -> None:
    rows = write_rows(1)
    assert cli("map", "tasks:square", rows, "-o", "out.jsonl", "--workers", "1").returncode == 0
    before = (folder / "out.jsonl").read_bytes()
    done = cli("map", "tasks:square", rows, "-o", "out.jsonl", "--overwrite", "-O", wrong)
    assert (done.returncode, (folder / "out.jsonl").read_bytes()) == (code, before), done.stderr
    assert told in done.stderr
    assert "--resume" not in done.stderr


def test_after_a_kill_the_same_command_goes_on(
    cli: Cli,
    start: Start,
    gate: Gate,
    written: Written,
    gone: Callable[[int], bool],
    folder: Path,
    write_rows: WriteRows,
    read_lines: ReadLines,
) -> None:
    rows = write_rows(6, at=3, folder=".")
    process = start("map", "tasks:gate", rows, "-o", "out.jsonl", "--workers", "1")
    worker = gate()
    written(3)
    process.kill()
    process.wait()
    assert gone(worker), "the worker outlived the command"
    before = (folder / "out.jsonl").read_bytes()
    assert before.count(b"\n") == 3
    with (folder / "out.jsonl").open("ab") as file:
        file.write(b'{"index": 3, "dig')  # as a kill in the middle of a write would leave it
    (folder / "tasks.py").write_text("def gate(n, at, folder):\n    return n\n", encoding="utf-8")
    done = cli("map", "tasks:gate", rows, "-o", "out.jsonl", "--resume")
    assert done.returncode == 0, done.stderr
    assert (folder / "out.jsonl").read_bytes().startswith(before)
    assert [(line["index"], line["outputs"]) for line in read_lines()] == [(n, n) for n in range(6)]
    assert "of them from before" in done.stderr


def test_an_interrupt_keeps_what_is_done_and_says_how_to_go_on(
    start: Start,
    gate: Gate,
    written: Written,
    gone: Callable[[int], bool],
    write_rows: WriteRows,
    read_lines: ReadLines,
) -> None:
    process = start("map", "tasks:gate", write_rows(6, at=3, folder="."), "-o", "out.jsonl", "--workers", "1")
    worker = gate()
    written(3)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130, told
    assert "--resume goes on" in told
    assert "Traceback" not in told
    assert gone(worker)
    assert [line["index"] for line in read_lines()] == [0, 1, 2]


def test_two_commands_do_not_write_one_file(cli: Cli, start: Start, gate: Gate, write_rows: WriteRows) -> None:
    rows = write_rows(6, at=3, folder=".")
    start("map", "tasks:gate", rows, "-o", "out.jsonl", "--workers", "1")
    gate()
    done = cli("map", "tasks:gate", rows, "-o", "out.jsonl", "--resume")
    assert done.returncode == 2
    assert "written by another process" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--resume", "--overwrite"], "exclude each other"),
        (["--retry-failed"], "goes with --resume"),
        (["--concurrency", "0"], "concurrency"),
        (["--on-error", "panic"], "panic"),
    ],
)
def test_bad_use_is_told(cli: Cli, write_rows: WriteRows, arguments: list[str], told: str) -> None:
    done = cli("map", "tasks:square", write_rows(1), "-o", "out.jsonl", *arguments)
    assert done.returncode == 2
    assert told in done.stderr


def test_a_file_that_exists_is_left_alone_unless_asked(cli: Cli, folder: Path, write_rows: WriteRows) -> None:
    (folder / "out.jsonl").write_text("precious\n", encoding="utf-8")
    for arguments in ([], ["--resume"]):
        done = cli("map", "tasks:square", write_rows(1), "-o", "out.jsonl", *arguments)
        assert done.returncode == 2
        assert (folder / "out.jsonl").read_text(encoding="utf-8") == "precious\n"

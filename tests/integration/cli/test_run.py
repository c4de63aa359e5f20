"""`dspool run`: the answer on stdout, errors on stderr with their exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dspool.testing.stub_lm import StubLM

pytestmark = [pytest.mark.integration, pytest.mark.slow]

Cli = Callable[..., subprocess.CompletedProcess[str]]


def lm_file(folder: Path, stub: StubLM) -> str:
    """--lm's argument for a stub server."""
    spec = {"model": "openai/stub", "api_base": stub.url, "api_key": "x", "cache": False, "num_retries": 0}
    (folder / "lm.json").write_text(json.dumps(spec), encoding="utf-8")
    return "@lm.json"


def test_a_function_of_the_current_folder_runs(cli: Cli) -> None:
    done = cli("run", "tasks:square", "n=12")
    assert (done.returncode, done.stdout, done.stderr) == (0, "144\n", "")


def test_inputs_come_from_stdin_too(cli: Cli) -> None:
    assert cli("run", "tasks:square", "--inputs", "-", stdin='{"n": 3}').stdout == "9\n"


def test_a_signature_runs_on_the_offline_lm_with_typed_outputs_and_usage(cli: Cli, folder: Path) -> None:
    text = "# Leases\n\nA slot is lent out. A lease is the right to a slot, and ends when the slot is given back.\n"
    (folder / "notes.md").write_text(text, encoding="utf-8")
    done = cli("run", "text -> title, keywords: list[str]", "text=@notes.md", "--lm", "offline", "--usage")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["outputs"]["title"] == "Leases"
    assert "slot" in shown["outputs"]["keywords"]
    assert shown["usage"]["offline/extractive"]["prompt_tokens"] > 0


def test_a_signature_runs_over_http(cli: Cli, folder: Path) -> None:
    with StubLM() as stub:
        done = cli("run", "question -> answer", "question=why?", "--lm", lm_file(folder, stub))
    assert json.loads(done.stdout) == {"answer": "echo: why?"}


def test_a_refused_key_is_told_in_one_paragraph(cli: Cli, folder: Path) -> None:
    with StubLM(faults=["401"]) as stub:
        done = cli("run", "question -> answer", "question=why?", "--lm", lm_file(folder, stub))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["tasks:picky", "n=3"], 1, "3 is odd"),
        (["tasks:strange", "n=3"], 1, "JSON"),
        (["tasks:nothing", "n=3"], 1, "nothing"),
        (["nowhere:nothing", "n=3"], 1, "nowhere"),
        (["tasks:square"], 2, "n"),
        (["tasks:square", "n=1", "m=2"], 2, "m"),
        (["tasks:leave", "n=1"], 4, "exit code 3"),
        (["tasks:gate", "n=1", "at=1", "folder=.", "--timeout", "1"], 4, "CallTimeout"),
    ],
)
def test_what_fails_in_the_worker_is_one_paragraph_and_a_code(
    cli: Cli, gate: object, arguments: list[str], code: int, told: str
) -> None:
    done = cli("run", *arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["tasks:square", "3"], 2, "key=value"),
        (["tasks", "n=3"], 2, "neither a signature"),
        (["question -> answer", "question=why?"], 2, "--lm offline"),
        (["question -> answer", "question=why?", "--lm", "openai/gpt-4o-mini"], 3, "OPENAI_API_KEY"),
        (["tasks:square", "n=3", "--workers", "0"], 2, "workers"),
        (["tasks:square", "n=3", "--timeout", "soon"], 2, "soon"),
        (["tasks:square", "n=3", "-O", "max_request=1"], 2, "unknown option 'max_request'"),
        (["tasks:square", "n=3", "-O", "max_requests=0"], 2, "max_requests must be"),
        (["tasks:square", "n=3", "-O", "max_requests"], 2, "NAME=VALUE"),
        (["tasks:square", "n=3", "-O", "preload=[json]"], 2, "Quote all of it for the shell"),
        (["tasks:square", "--inputs", "missing.json"], 2, "missing.json"),
        (["tasks:square", "--inputs", "-"], 2, "stdin"),
        (["tasks:square", "n=3", "--bogus"], 2, "--bogus"),
        (["tasks:square", "n=3", "-O", "python=/nowhere/python"], 3, "/nowhere/python"),
        (["tasks:square", "n=3", "-O", "preload=nosuchmodule"], 3, "nosuchmodule"),
    ],
)
def test_bad_use_is_told_and_has_its_code(cli: Cli, arguments: list[str], code: int, told: str) -> None:
    done = cli("run", *arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_traceback_comes_when_it_is_asked_for_with_the_workers_own(cli: Cli) -> None:
    done = cli("run", "tasks:picky", "n=3", "--traceback")
    assert done.returncode == 1
    assert "In the worker:" in done.stderr
    assert 'raise ValueError(f"{n} is odd")' in done.stderr


def test_what_a_worker_prints_is_shown_when_it_is_asked_for_and_never_on_stdout(cli: Cli) -> None:
    assert (cli("run", "tasks:noisy", "n=1").stdout, cli("run", "tasks:noisy", "n=1").stderr) == ("1\n", "")
    done = cli("run", "tasks:noisy", "n=1", "-v")
    assert done.stdout == "1\n"
    assert "noise from the worker" in done.stderr


def test_help_lists_the_commands_and_the_exit_codes(cli: Cli) -> None:
    shown = cli("--help").stdout
    for word in ("run", "map", "demo", "Exit codes:", "130"):
        assert word in shown
    assert cli("--version").stdout.startswith("dspool ")


def test_help_loads_neither_the_pool_nor_dspy() -> None:
    code = (
        "import sys; from dspool.cli import main; main(['--help']);"
        "bad = {'dspy', 'anyio', 'structlog', 'rich', 'dspool.pool'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=30)


def test_an_answer_nobody_reads_to_its_end_is_no_error(folder: Path, environment: dict[str, Any]) -> None:
    command = f"'{sys.executable}' -m dspool run tasks:square n=3 | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=folder, env=environment, capture_output=True, timeout=50
    )
    assert (done.returncode, done.stderr) == (0, b"")

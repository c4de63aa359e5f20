"""`dspool doctor` as a user runs it: lines, JSON, exit codes, colours, Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dspool.supervisor.environment import CHECKS, OF_INTERPRETER, OF_START
from tests.integration.cli.conftest import Cli, Start

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _private_cache(environment: dict[str, str], tmp_path: Path) -> None:
    """DSPy's cache as it should be, and no address of somebody else's server."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    environment["DSPY_CACHEDIR"] = str(folder)
    for name in list(environment):
        if name.endswith(("_API_BASE", "_BASE_URL")):
            del environment[name]


def test_a_good_environment_is_told_line_by_line(cli: Cli) -> None:
    done = cli("doctor", "tasks:square", "--workers", "2")
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines, last = done.stdout.splitlines()
    assert first == "A pool of 2 workers, slots=1, start method template:"
    assert {line[9:24].strip() for line in lines if line[:9].strip()} == set(CHECKS)
    assert "ok       program        tasks:square: loads" in lines
    assert last.endswith(", 0 failed")
    assert "\x1b" not in done.stdout


def test_what_failed_is_told_with_what_to_do_and_by_the_exit_code(cli: Cli) -> None:
    done = cli("doctor", "tasks:nothing", "tasks:square", "--lm", "openai/gpt-4o-mini", "--workers", "1")
    assert (done.returncode, done.stderr) == (3, "")
    told = " ".join(done.stdout.split())
    assert "failed lm_key openai/gpt-4o-mini: has no key: OPENAI_API_KEY is not set" in told
    assert "-> Set it in the workers' environment" in told
    assert "failed program tasks:nothing: doesn't load: " in told
    assert "ok program tasks:square: loads" in told
    assert done.stdout.splitlines()[-1].endswith(", 2 failed")


def test_json_is_all_there_is_on_stdout(cli: Cli) -> None:
    done = cli("doctor", "--json", "-O", "python=/nowhere/python", "--workers", "1")
    assert (done.returncode, done.stderr) == (3, "")
    report = json.loads(done.stdout)
    assert set(report) == {"dspool", "ok", "warnings", "failed", "checks", "skipped"}
    assert (report["ok"], report["failed"]) == (False, 1)
    assert set(report["skipped"]) == {*OF_INTERPRETER, *OF_START}
    for check in report["checks"]:
        assert list(check) == ["name", "status", "reason", "advice", "subject", "details"]
        assert all(isinstance(value, str) for value in check.values())
        assert check["name"] in CHECKS
        assert check["status"] in ("ok", "warning", "failed")
        assert bool(check["advice"]) == (check["status"] != "ok")
    assert {"name": "interpreter", "status": "failed"}.items() <= next(
        check.items() for check in report["checks"] if check["status"] == "failed"
    )


def test_without_starting_anything(cli: Cli) -> None:
    done = cli("doctor", "--json", "--no-start", "--workers", "1")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (0, True)
    assert set(report["skipped"]) == {*OF_INTERPRETER, *OF_START}


def test_a_key_is_never_shown(cli: Cli, folder: Path) -> None:
    lm = {"model": "openai/stub", "api_key": "sk-never-to-be-seen", "api_base": "http://user:word@127.0.0.1:1/v1"}
    (folder / "lm.json").write_text(json.dumps(lm), encoding="utf-8")
    done = cli("doctor", "--lm", "@lm.json", "--workers", "1", OPENAI_BASE_URL="http://user:word@127.0.0.1:1/v1")
    assert done.returncode == 0, done.stdout
    assert "OPENAI_BASE_URL is set" in done.stdout
    assert "sk-never" not in done.stdout + done.stderr
    assert "word" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-O", "wrokers=2"], "did you mean 'workers'?"),
        (["-O", "required_packages=pandas[excel]"], "has extras"),
        (["--lm", "gpt-4o-mini"], "a language model is written provider/model"),
    ],
)
def test_wrong_use_is_no_failed_check(cli: Cli, arguments: list[str], said: str) -> None:
    done = cli("doctor", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_help_teaches(cli: Cli) -> None:
    done = cli("doctor", "--help")
    assert done.returncode == 0
    for word in ("[PROGRAM]...", "required_packages", "--json", "The exit code is 0 unless something failed"):
        assert word in " ".join(done.stdout.split())


def on_terminal(folder: Path, environment: dict[str, str]) -> str:
    """What the doctor writes where stdout is a terminal."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb") as terminal:
        process = subprocess.Popen(
            [sys.executable, "-m", "dspool", "doctor", "--no-start", "--workers", "1"],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
        )
        os.close(theirs)
        written = b""
        try:
            while piece := os.read(terminal.fileno(), 4096):
                written += piece
        except OSError:  # how a terminal tells its end
            pass
        assert process.wait(50) == 0
    return written.decode()


def test_colours_are_for_terminals_that_want_them(folder: Path, environment: dict[str, str]) -> None:
    assert "\x1b[32mok" in on_terminal(folder, environment | {"TERM": "xterm"})
    assert "\x1b" not in on_terminal(folder, environment | {"TERM": "xterm", "NO_COLOR": "1"})


def test_ctrl_c_in_the_middle_leaves_nothing(
    start: Start, folder: Path, gate: Callable[[], int], gone: Callable[[int], bool]
) -> None:
    (folder / "waiting.py").write_text(
        "import os\nwith open('reached', 'w') as reached:\n    reached.write(str(os.getpid()))\nopen('never').read()\n",
        encoding="utf-8",
    )
    process: subprocess.Popen[Any] = start("doctor", "--workers", "1", "-O", 'preload=["waiting"]')
    pid = gate()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "dspool: interrupted\n")
    assert "pth_files" in out  # what was found until then is there
    assert gone(pid)

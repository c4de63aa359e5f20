"""`dspool demo`: no answer lost, several processes seen, in a terminal and without one."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from dspool.testing.stub_lm import StubLM

pytestmark = [pytest.mark.integration, pytest.mark.slow]

Cli = Callable[..., subprocess.CompletedProcess[str]]

WITHOUT_RICH = """
import sys
sys.modules["rich"] = None
from dspool.cli import main
sys.exit(main(["demo", "--rows", "8"]))
"""


def in_terminal(arguments: list[str], folder: Path, environment: dict[str, str], columns: int) -> tuple[int, str]:
    """Run Python in a pseudo-terminal; returns its exit code and what was shown."""
    main_end, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment | {"TERM": "xterm"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    try:
        while data := os.read(main_end, 65536):
            shown += data
    except OSError:  # EIO: the other end is closed
        pass
    finally:
        os.close(main_end)
    return process.wait(timeout=30), shown.decode()


def test_no_answer_is_lost_and_several_processes_are_seen(cli: Cli) -> None:
    done = cli("demo", "--rows", "8", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert len(shown["answers"]) == 8
    assert shown["lost"] == []
    assert len(shown["processes"]) > 1
    assert sum(shown["processes"].values()) == 8
    for answer in shown["answers"]:
        assert answer["title"]
        assert answer["summary"]
        assert all(isinstance(keyword, str) for keyword in answer["keywords"])
    stats = shown["stats"]
    assert (stats["calls_ok"], stats["retries"], stats["replaced"], stats["started"]) == (8, 1, 1, 5)
    assert stats["last_exit"]["signal"] == "SIGKILL"
    assert stats["last_exit"]["pid"] == shown["killed_pid"]


def test_without_a_terminal_it_is_plain_lines(cli: Cli) -> None:
    done = cli("demo", "--rows", "8")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    for told in ("offline LM", "idempotent=True", "SIGKILL", "8 of 8, none lost", "1 replaced", "Queue", "Run"):
        assert told in done.stdout, told
    assert "8 rows in" in done.stderr


def test_in_a_terminal_there_is_a_bar_and_a_table_within_its_width(folder: Path, environment: dict[str, str]) -> None:
    code, shown = in_terminal(["-m", "dspool", "demo", "--rows", "8"], folder, environment, 90)
    assert code == 0, shown
    assert "8/8" in shown
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.rpartition("8/8")[2]).splitlines()
    assert max(map(len, lines[1:])) <= 90
    assert "none lost" in shown


def test_without_rich_it_is_plain_in_a_narrow_terminal_too(folder: Path, environment: dict[str, str]) -> None:
    code, shown = in_terminal(["-c", WITHOUT_RICH], folder, environment, 50)
    assert code == 0, shown
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 50
    assert "none lost" in shown


def test_a_real_lm_is_asked_as_often_as_was_said_and_nobody_is_killed_where_that_is_asked(
    cli: Cli, folder: Path
) -> None:
    with StubLM() as stub:
        spec = {"model": "openai/stub", "api_base": stub.url, "api_key": "x", "cache": False}
        (folder / "lm.json").write_text(json.dumps(spec), encoding="utf-8")
        done = cli("demo", "--lm", "@lm.json", "--rows", "4", "--no-kill", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "This makes 4 calls to it." in " ".join(done.stdout.split())
    assert stub.stats().requests == 4
    for told in ("4 of 4, none lost", "2 started, 0 replaced"):
        assert told in done.stdout
    assert "SIGKILL" not in done.stdout


def test_a_missing_key_is_told_before_anything_is_spent(cli: Cli) -> None:
    done = cli("demo", "--lm", "gemini/gemini-2.5-flash")
    assert (done.returncode, done.stdout) == (3, "")
    assert "GEMINI_API_KEY" in done.stderr

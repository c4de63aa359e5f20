"""The bridge's frames, its end in every way, and what goes where that is no frame."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dspool.errors import FrameTooLarge
from dspool.protocol.frames import FrameDecoder
from tests.integration.worker.bridge.client import COMMAND, PATIENCE_S, QA, environment, refusal_in

if TYPE_CHECKING:
    from tests.integration.worker.bridge.conftest import Start

pytestmark = [pytest.mark.integration, pytest.mark.slow]

NOISY = """
import ctypes, os, subprocess, sys

def noise():
    print("from Python")
    print("no line yet", end="")
    os.write(1, b"from a write to fd 1\\n")
    subprocess.run([sys.executable, "-c", "print('from a subprocess')"], check=True)
    libc = ctypes.CDLL(None)
    libc.puts(b"from C, flushed at exit")
    libc.printf(b"half a line from C")
    sys.__stdout__.write("from __stdout__\\n")

class Process:
    def memory_info(self):
        {what}
        return type("Memory", (), {{"rss": 1, "vms": 2}})()

    def memory_percent(self):
        return 0.5
"""
"""A psutil for get_stats to import: any code of anybody's that runs in the bridge."""


def framed(message: dict[str, Any]) -> bytes:
    """A frame of JSON."""
    body = json.dumps(message).encode()
    return struct.pack(">I", len(body)) + body


PING = framed({"id": 1, "command": "ping", "args": {}})


def with_psutil(folder: Path, what: str) -> dict[str, str]:
    """An environment in which get_stats runs that code."""
    (folder / "psutil.py").write_text(NOISY.format(what=what))
    return {"PYTHONPATH": str(folder)}


class Begun:
    """Tells a test that code in the bridge has come to a place."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "begun"
        os.mkfifo(self._path)
        self.say = f"open({str(self._path)!r}, 'w').close()"

    def wait(self) -> None:
        """Wait for it."""
        self._path.read_text()


# Noise


def test_noise_from_python_c_and_a_subprocess_is_no_frame(start: Start, tmp_path: Path) -> None:
    client = start(env=with_psutil(tmp_path, "noise()"))
    for _ in range(3):
        assert client.result("get_stats")["memory_usage"] == {"rss": 1, "vms": 2, "percent": 0.5}
    assert client.result("shutdown") == {"status": "shutdown_complete"}
    assert client.rest() == b""
    assert client.exit_code() == 0
    told = client.errors()
    for words in ("from Python", "no line yet", "a write to fd 1", "a subprocess", "C, flushed at exit", "__stdout__"):
        assert told.count(words) == 3, told
    assert "half a line from C" in told


def test_a_megabyte_on_fd_1_and_2_is_no_frame(start: Start, tmp_path: Path) -> None:
    client = start(env=with_psutil(tmp_path, r"[os.write(fd, b'\xff' * 2**20) for fd in (1, 2)]"))
    assert client.result("get_stats")["memory_usage"]["rss"] == 1
    assert client.ask("ping")["success"]


def test_programs_have_nothing_to_read(start: Start, tmp_path: Path) -> None:
    client = start(env=with_psutil(tmp_path, "print(repr([sys.stdin.read(), os.read(0, 10)]))"))
    assert client.result("get_stats")["memory_usage"]["rss"] == 1
    assert "['', b'']" in client.errors()


@pytest.mark.parametrize("way", ["os.fork()", "multiprocessing.get_context('fork').Process(target=print).start()"])
def test_a_child_that_a_program_forks_writes_no_frame(start: Start, tmp_path: Path, way: str) -> None:
    client = start(
        env=with_psutil(tmp_path, f"import multiprocessing, warnings; warnings.simplefilter('ignore'); {way}")
    )
    requests = [client.send("get_stats"), *(client.send("ping") for _ in range(20)), client.send("shutdown")]
    answers = [client.receive()["id"] for _ in requests]
    assert answers == requests
    assert client.rest() == b""  # and no child keeps the pipe open
    assert client.exit_code() == 0


def test_a_child_that_outlives_the_bridge_keeps_no_pipe_open(start: Start, tmp_path: Path) -> None:
    client = start(env=with_psutil(tmp_path, "subprocess.Popen(['sleep', '30'], stderr=-3, stdout=-3)"))
    assert client.result("get_stats")["memory_usage"]["rss"] == 1
    client.close_requests()
    assert client.rest() == b""


# Order


def test_answers_come_in_the_order_of_the_requests(start: Start) -> None:
    client = start()
    frames = b""
    for number in range(200):
        request = {"id": number, "command": "ping" if number % 3 else "nonsense", "args": dict[str, int]()}
        frames += framed(request) if number % 10 else struct.pack(">I", 7) + b"no JSON"
    client.send_bytes(frames)
    answers = [client.receive() for _ in range(200)]
    assert [answer["id"] for answer in answers] == [number if number % 10 else None for number in range(200)]
    assert [answer["success"] for answer in answers] == [bool(number % 3 and number % 10) for number in range(200)]


def test_a_request_byte_by_byte_is_one(start: Start) -> None:
    client = start()
    body = json.dumps({"id": 5, "command": "ping", "args": {"ü": "\N{SNOWMAN}"}}, ensure_ascii=False).encode()
    for byte in struct.pack(">I", len(body)) + body:
        client.send_bytes(bytes([byte]))
    assert client.receive()["id"] == 5


def test_an_answer_larger_than_any_pipe_is_read_whole(start: Start) -> None:
    client = start()
    data = {"text": "x" * 5_000_000}
    client.result("update_session_data", session_id="s", data=data)
    assert client.result("get_session_data", session_id="s") == data


def test_pipes_that_do_not_block_are_made_to() -> None:
    ours, theirs = os.pipe()
    fcntl.fcntl(theirs, fcntl.F_SETFL, fcntl.fcntl(theirs, fcntl.F_GETFL) | os.O_NONBLOCK)
    bridge = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=theirs)
    os.close(theirs)
    assert bridge.stdin is not None
    args = {"session_id": "s", "data": {"a": "x" * 2**20}}
    for number, command in enumerate(("update_session_data", "get_session_data")):
        bridge.stdin.write(framed({"id": number, "command": command, "args": args}))
    bridge.stdin.close()
    with open(ours, "rb") as answers:
        assert len(answers.read()) > 2**20
    assert bridge.wait(PATIENCE_S) == 0


def test_one_socket_may_be_stdin_and_stdout() -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE_S)
    bridge = subprocess.Popen(COMMAND, stdin=theirs.fileno(), stdout=theirs.fileno())
    theirs.close()
    with ours, ours.makefile("rb") as answers:
        for number in range(3):
            ours.sendall(framed({"id": number, "command": "ping", "args": {}}))
            (length,) = struct.unpack(">I", answers.read(4))
            assert json.loads(answers.read(length))["id"] == number
    assert bridge.wait(PATIENCE_S) == 0


# The end


def test_the_end_of_stdin_is_the_end_after_what_was_asked(start: Start) -> None:
    client = start()
    client.send("ping")
    client.send("list_programs")
    client.close_requests()
    assert [client.receive()["id"] for _ in range(2)] == [1, 2]
    assert client.rest() == b""
    assert client.exit_code() == 0
    assert client.errors() == ""


@pytest.mark.parametrize("mode", [("--mode", "standalone"), ("--mode", "pool-worker", "--worker-id", "w")])
def test_the_end_of_stdin_before_anything_is_asked(start: Start, mode: tuple[str, ...]) -> None:
    client = start(*mode)
    client.close_requests()
    assert client.exit_code() == 0


def test_shutdown_has_one_answer_and_what_comes_after_it_none(start: Start) -> None:
    client = start()
    for command in ("ping", "shutdown", "ping", "shutdown"):
        client.send(command)
    assert client.receive()["id"] == 1
    answer = client.receive()
    assert (answer["id"], answer["result"]) == (2, {"status": "shutdown_complete"})
    assert client.rest() == b""
    assert client.exit_code() == 0


def test_a_client_that_reads_no_more_is_the_end(start: Start) -> None:
    client = start()
    client.ask("ping")
    client.close_answers()
    client.send("ping")
    assert client.exit_code() == 0
    assert client.errors() == ""


def test_a_client_that_goes_away_during_a_call_ends_it(start: Start, tmp_path: Path) -> None:
    begun = Begun(tmp_path)
    client = start(env=with_psutil(tmp_path, f"{begun.say}; import threading; threading.Event().wait()"))
    client.send("get_stats")
    begun.wait()
    client.close_requests()
    client.close_answers()
    assert client.exit_code() == 0


def test_exit_handlers_run_and_cannot_keep_it(start: Start, tmp_path: Path) -> None:
    what = "import atexit, threading; atexit.register(threading.Event().wait); atexit.register(print, 'at exit')"
    client = start(env=with_psutil(tmp_path, what))
    client.result("get_stats")
    client.result("shutdown")
    assert client.exit_code() == 0
    assert "at exit" in client.errors()


def test_a_disk_that_is_full_is_told(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            COMMAND,
            input=PING,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=PATIENCE_S,
        )
    assert (done.returncode, done.stderr) == (74, b"dspool bridge: stdin or stdout failed: No space left on device\n")


# Broken frames


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"hello there\n", "its first four bytes are the text 'hell': the length header seems to be missing"),
        (b'{"id": 1}', "its first four bytes are the text '{\"id'"),
        (b"\xff\xff\xff\xff", "a frame says it is 4,294,967,295 bytes long; max_frame_bytes=67,108,864"),
    ],
)
def test_a_header_that_lies_ends_it_with_one_line(start: Start, data: bytes, told: str) -> None:
    client = start()
    client.send("ping")
    client.send_bytes(data)
    assert client.receive()["success"]
    assert client.rest() == b""
    assert client.exit_code() == 76
    (line,) = client.errors().splitlines()
    assert line.startswith("dspool bridge: broken frame on stdin: ")
    assert told in line


def test_an_end_inside_a_frame(start: Start) -> None:
    client = start()
    client.send_bytes(struct.pack(">I", 100) + b"{")
    client.close_requests()
    assert client.exit_code() == 76
    assert "the pipe ended after 5 of 104 bytes of a frame" in client.errors()


def test_the_cap_is_the_one_that_was_asked_for(start: Start) -> None:
    client = start("--max-frame-bytes", "2000")
    client.result("update_session_data", session_id="s", data={"a": "x" * 1500})
    client.result("update_session_data", session_id="s", data={"b": "x" * 1500})
    code, text = client.refusal("get_session_data", session_id="s")
    assert code == "result_too_large"
    assert "max_frame_bytes=2,000" in text
    client.send("update_session_data", session_id="s", data={"c": "x" * 3000})
    assert client.exit_code() == 76


# Signals


def test_sigterm_ends_it_even_in_a_call_that_never_returns(start: Start, tmp_path: Path) -> None:
    begun = Begun(tmp_path)
    what = f"{begun.say}; ctypes.PyDLL(None).sleep(600)"  # in C, holding the interpreter's lock
    client = start(env=with_psutil(tmp_path, what))
    client.send("get_stats")
    begun.wait()
    client.process.send_signal(signal.SIGTERM)
    assert client.exit_code() == -signal.SIGTERM


def test_sigint_is_the_clients_business(start: Start) -> None:
    client = start()
    client.ask("ping")
    client.process.send_signal(signal.SIGINT)
    assert client.ask("ping")["success"]


# Stderr merged into stdout


def test_programs_may_print_though_stderr_was_merged_into_stdout(start: Start, tmp_path: Path) -> None:
    client = start(env=with_psutil(tmp_path, "noise(); os.write(2, b'to stderr')"), merged=True)
    for _ in range(3):
        assert client.result("get_stats")["memory_usage"]["rss"] == 1
    client.result("shutdown")
    assert client.rest() == b""


def test_what_stands_before_the_frames_of_a_merged_stdout_is_named_for_what_it_is(start: Start, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; print('hello from an import', file=sys.stderr)")
    client = start(env={"PYTHONPATH": str(tmp_path)}, merged=True)
    client.send("ping")
    decoder = FrameDecoder()
    hint = "its first four bytes are the text 'hell': the length header seems to be missing"
    with pytest.raises(FrameTooLarge, match=hint):
        decoder.feed(client.read(30))


def test_stderr_of_its_own_is_not_touched_by_a_merge_elsewhere(start: Start, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; print('hello from an import', file=sys.stderr)")
    client = start(env={"PYTHONPATH": str(tmp_path)})
    assert client.ask("ping")["success"]
    assert "hello from an import" in client.errors()


# The command line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--mode", "pool-worker"], "--mode pool-worker needs --worker-id ID"),
        (["--mode", "other"], "invalid choice: 'other'"),
        (["--max-frame-bytes", "10"], "10 is not from 1,024 to 4,294,967,295"),
        (["--max-programs", "many"], "'many' is not a whole number"),
        (["--debug-log", "/nowhere/at/all"], "--debug-log /nowhere/at/all can't be written: No such file or directory"),
        (["--debug-log", "/dev/null"], "--debug-log /dev/null can't be written: it is no regular file"),
        (["surplus"], "unrecognized arguments: surplus"),
    ],
)
def test_wrong_options_are_told(arguments: list[str], told: str) -> None:
    done = subprocess.run([*COMMAND, *arguments], input=b"", capture_output=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (2, b"")
    assert told in done.stderr.decode()


@pytest.mark.parametrize(("redirection", "told"), [("<&-", "stdin is closed"), (">&-", "stdout is closed")])
def test_a_closed_stdin_or_stdout_is_told(redirection: str, told: str) -> None:
    shell = f'exec "$0" -m dspool.worker.bridge {redirection}'
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    assert done.returncode == 2
    assert told in done.stderr.decode()


def test_a_closed_stderr_is_none_of_its_business(tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m dspool.worker.bridge --debug-log {log} 2>&-', sys.executable],
        input=PING,
        stdout=subprocess.PIPE,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0
    (length,) = struct.unpack(">I", done.stdout[:4])
    assert json.loads(done.stdout[4:])["success"] is True
    assert length == len(done.stdout) - 4
    assert len(log.read_text().splitlines()) == 2


def test_a_person_at_a_terminal_is_told_what_this_is() -> None:
    ours, theirs = os.openpty()
    done = subprocess.run(COMMAND, stdin=theirs, capture_output=True, timeout=PATIENCE_S)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 2
    assert "stdin is a terminal" in done.stderr.decode()
    assert "--help" in done.stderr.decode()


def test_the_client_in_the_help_works(tmp_path: Path) -> None:
    from dspool.testing.stub_lm import StubLM

    told = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, timeout=PATIENCE_S)
    assert told.returncode == 0
    code = told.stdout.partition("a client in Python, whole:\n")[2].partition("\nElixir:")[0]
    with StubLM() as stub:
        env = environment(tmp_path, {"OPENAI_API_KEY": "stub-key-1234", "OPENAI_API_BASE": stub.url})
        script = "\n".join(line.removeprefix("  ") for line in code.splitlines())
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=60)
    assert done.stdout == "echo: Why is the sky blue?\n", done.stderr


# The log of frames


def test_the_debug_log_is_its_owners_alone_and_shows_no_secret(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "frames.log"
    path.touch(mode=0o666)
    client = start("--debug-log", str(path), env={"MY_SECRET": "secret-of-the-environment"})
    client.send_body(b"no JSON with secret-in-the-body")
    assert refusal_in(client.receive())[0] == "invalid_json"
    client.refusal("configure_lm", provider="openai", model="m", api_key="key-of-the-lm", max_tokens="many")
    data = {"note": "secret-of-the-environment", "nested": [{"password": ["p-a-s-s-w-o-r-d"]}], "tokens": 3}
    client.result("update_session_data", session_id="s", data=data)
    client.result("create_program", id="p", signature=QA)
    client.result("update_session_data", session_id="s", data={"long": "y" * 100_000})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    for secret in ("secret-in-the-body", "key-of-the-lm", "secret-of-the-environment", "p-a-s-s-w-o-r-d"):
        assert secret not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["direction"] for line in lines] == ["in", "out"] * 5
    assert lines[0]["message"] == "<not JSON>"
    assert lines[2]["message"]["args"] == {"provider": "openai", "model": "m", "api_key": "***", "max_tokens": "many"}
    assert lines[4]["message"]["args"]["data"] == {"note": "***", "nested": [{"password": ["***"]}], "tokens": 3}
    assert lines[6]["message"]["args"]["signature"] == QA
    assert lines[8]["bytes"] > 100_000
    assert len(lines[8]["message"]) < 20_000
    assert all(line["took_ms"] >= 0 for line in lines if line["direction"] == "out")


def test_a_debug_log_that_cannot_be_written_any_more_costs_no_call(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "frames.log"
    command = ("sh", "-c", 'ulimit -f 1; exec "$0" -m dspool.worker.bridge "$@"', sys.executable)
    client = start("--debug-log", str(path), command=command)
    for _ in range(50):
        assert client.ask("ping")["success"]
    assert f"the debug log {path} has ended: " in client.errors()

"""The whole conversation with a bridge, printed: python -m tests.integration.worker.bridge.transcript

Every command and every error code, pipelined requests, noise, and each way in which it ends. The client uses struct and
json alone; the LM is the stub server on loopback. It fails where a command or a code of the reference was not met.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from dspool.testing.stub_lm import StubLM
from dspool.worker.bridge.reference import CODES, COMMANDS
from tests.integration.worker.bridge.client import QA, Client, signature
from tests.integration.worker.bridge.test_pipes import with_psutil

SHOWN_CHARS = 160
_VOLATILE = {"timestamp": 0.0, "uptime": 0.0, "created_at": 0.0, "last_executed": 0.0, "pid": 0, "rss": 0, "vms": 0}


class Told:
    """A client that prints what it sends and receives, and notes which commands and codes came."""

    def __init__(self, folder: Path, *arguments: str, **settings: Any) -> None:
        self.client = Client(*arguments, folder=folder, **settings)
        self.commands: set[str] = set()
        self.codes: set[str] = set()
        print(f"\n$ python -m dspool.worker.bridge {' '.join(arguments)}")

    def send(self, command: str, /, **args: Any) -> None:
        """Send a request."""
        self.client.send(command, **args)
        self.commands.add(command)
        print(f"> {self.client._last_id} {command} {_short(args)}")

    def send_body(self, body: bytes) -> None:
        """Send a frame with any body."""
        self.client.send_body(body)
        print(f"> {body.decode()}")

    def receive(self) -> dict[str, Any]:
        """Read an answer."""
        answer = self.client.receive()
        if answer["success"]:
            print(f"< {answer['id']} {_short(answer['result'])}" + ("  + usage" if "usage" in answer else ""))
        else:
            self.codes.add(answer["error_info"]["code"])
            print(f"< {answer['id']} {answer['error_info']['code']}: {answer['error']:.{SHOWN_CHARS}}")
        return answer

    def ask(self, command: str, /, **args: Any) -> dict[str, Any]:
        """Send a request and read its answer."""
        self.send(command, **args)
        return self.receive()

    def end(self) -> None:
        """Wait for its exit and show all that is left."""
        rest = self.client.rest() if not self.client.process.stdout.closed else b""  # type: ignore[union-attr]
        code = self.client.exit_code()
        for line in self.client.errors().splitlines():
            print(f"stderr: {line:.{SHOWN_CHARS}}")
        print(f"[exit {code}, {len(rest)} bytes left on stdout]")
        self.client.dispose()


def _short(value: Any) -> str:
    text = json.dumps(_steady(value), ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "..."


def _steady(value: Any) -> Any:
    """Without what differs from run to run."""
    if isinstance(value, dict):
        return {
            name: _VOLATILE[name] if name in _VOLATILE and item is not None else _steady(item)
            for name, item in value.items()
        }
    return value


def commands(folder: Path, stub: StubLM) -> Told:
    """Every command, with its good answers."""
    told = Told(folder, "--mode", "pool-worker", "--worker-id", "worker_1")
    told.ask("ping", initialization=True, worker_id="worker_1")
    access = {"api_base": stub.url, "api_key": "stub-key-1234"}
    told.ask("configure_lm", provider="openai", model="stub", temperature=0.5, max_tokens=200, **access)
    told.ask("create_program", id="qa", signature=QA)
    told.ask("execute_program", program_id="qa", inputs={"question": "Why is the sky blue?"})
    typed = {"signature": signature("text", "number:int words:list[str]"), "program_type": "chain_of_thought"}
    told.ask("create_program", id="typed", session_id="user-1", **typed)
    told.ask("execute_program", program_id="typed", inputs={"text": "three words"}, session_id="user-1")
    told.ask("list_programs")
    told.ask("get_program_info", program_id="qa")
    told.ask("update_session_data", session_id="user-1", data={"likes": ["tea"]})
    told.ask("get_session_data", session_id="user-1")
    told.ask("cleanup_session", session_id="user-1")
    told.ask("create_gemini_program", id="g", signature=QA, model="gemini-2.5-flash", api_key="gemini-key-1234")
    told.ask("delete_program", program_id="qa")
    told.ask("get_stats")
    told.ask("cleanup")
    told.ask("reset_state")
    told.ask("shutdown")
    told.end()
    return told


def refusals(folder: Path) -> Told:
    """The codes of requests that are wrong."""
    told = Told(folder, "--max-programs", "2", "--max-frame-bytes", "4000")
    for body in (
        "no JSON",
        "[]",
        '{"id": "x"}',
        '{"id": 5}',
        '{"id": 5, "command": ""}',
        '{"id": 5, "command": "ping"}',
    ):
        told.send_body(body.encode())
        told.receive()
    told.ask("execute_program")
    told.ask("dance")
    told.ask("create_program", id="bad", signature=signature("question", "answer:os.system"))
    told.ask("create_program", id="qa", signature=QA)
    told.ask("create_program", id="qa", signature=QA)
    told.ask("execute_program", program_id="nobody", inputs={})
    told.ask("execute_program", program_id="qa", inputs={"question": "Without an LM?"})
    told.ask("execute_gemini_program", program_id="qa", inputs={})
    told.ask("create_gemini_program", id="g", signature=QA)
    told.ask("configure_lm", model="openai/o1", api_key="k" * 20, max_tokens=5)
    told.ask("create_program", id="second", signature=QA)
    told.ask("create_program", id="third", signature=QA)
    for half in ("a", "b"):
        told.ask("update_session_data", session_id="s", data={half: "x" * 3000})
    told.ask("get_session_data", session_id="s")
    told.client.close_requests()
    told.end()
    return told


def failures(folder: Path) -> Told:
    """The codes of calls that fail, and requests that wait in the pipe behind others."""
    told = Told(folder, "--mode", "pool-worker", "--worker-id", "w")
    faults = {"400": "Break the LM"}
    with StubLM() as stub:
        told.ask("configure_lm", model="openai/stub", api_base=stub.url, api_key="k" * 20)
        for session in ("one", "two"):
            told.ask("create_program", id="qa", signature=QA, session_id=session)
        told.ask("delete_program", program_id="qa")
    with StubLM(faults=faults, answers={"number": "NaN"}) as stub:
        told.ask("configure_lm", model="openai/stub", api_base=stub.url, api_key="k" * 20)
        told.ask("create_program", id="n", signature=signature("text", "number:float"))
        told.ask("execute_program", program_id="n", inputs={"text": "Not a number"})
        told.ask("execute_program", program_id="n", inputs={"text": "Break the LM"})
        unchecked = {"model": "openai/stub", "api_base": stub.url, "api_key": "k" * 20, "timeout": "soon"}
        told.ask("execute_program", program_id="n", inputs={"text": "What DSPy itself raises"}, lm=unchecked)
    with StubLM(answers={"number": "no number at all"}) as stub:
        told.ask("configure_lm", model="openai/stub", api_base=stub.url, api_key="k" * 20)
        told.ask("execute_program", program_id="n", inputs={"text": "Nothing"})
    with StubLM() as stub:
        print("# five requests at once; their answers come in the same order")
        told.send("configure_lm", model="openai/stub", api_base=stub.url, api_key="k" * 20)
        for number in range(3):
            told.send("execute_program", program_id="qa", session_id="one", inputs={"question": f"Number {number}?"})
        told.send("shutdown")
        for _ in range(5):
            told.receive()
    told.end()
    return told


def surroundings(folder: Path) -> list[Told]:
    """What only a broken environment brings about; noise, and the ends."""
    faulty = folder / "faulty"
    faulty.mkdir()
    (faulty / "dspy.py").write_text("raise ImportError('there is no dspy here')")
    (faulty / "psutil.py").write_text("raise RuntimeError('psutil is broken')")
    broken = Told(folder, env={"PYTHONPATH": str(faulty)})
    broken.ask("create_program", id="qa", signature=QA)
    broken.ask("get_stats")
    broken.client.close_requests()
    broken.end()

    print("\n# noise from Python, a write to fd 1, a subprocess, and C that flushes at exit")
    noisy = Told(folder, env=with_psutil(folder, "noise()"))
    noisy.ask("get_stats")
    noisy.ask("shutdown")
    noisy.end()

    print("\n# a client that stops reading")
    gone = Told(folder)
    gone.ask("ping")
    gone.client.close_answers()
    gone.send("ping")
    gone.end()

    print("\n# a client without headers")
    text = Told(folder)
    text.client.send_bytes(b'{"id": 1, "command": "ping", "args": {}}\n')
    text.end()
    return [broken, noisy, gone, text]


def main() -> int:
    """Print it; 1 where a command or a code was not met."""
    with tempfile.TemporaryDirectory() as name, StubLM() as stub:
        folder = Path(name)
        every = [commands(folder, stub), refusals(folder), failures(folder), *surroundings(folder)]
    missed = {command.name for command in COMMANDS} - {command for told in every for command in told.commands}
    missed |= set(CODES) - {code for told in every for code in told.codes}
    print(f"\n{len(COMMANDS)} commands and {len(CODES)} error codes; not met: {', '.join(sorted(missed)) or 'none'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

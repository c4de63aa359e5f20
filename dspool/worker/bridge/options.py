"""The bridge's command line: its options, and a help that is enough to write a client."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

import msgspec

from dspool.protocol.frames import DEFAULT_MAX_FRAME_BYTES, MAX_LENGTH
from dspool.worker.bridge.reference import COMMANDS, EXIT_USAGE, EXITS

MIN_MAX_FRAME_BYTES = 1024
"""Any error fits into that."""
_WIDTH = 100
_MANY = 2**31


class BridgeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line said. A field's meaning is its option's help."""

    mode: Literal["standalone", "pool-worker"] = "standalone"
    worker_id: str | None = None
    allow_imports: bool = False
    debug_log: str | None = None
    max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES
    max_programs: int = 1_000
    max_sessions: int = 10_000
    max_stored_bytes: int = 256 * 2**20

    @property
    def by_session(self) -> bool:
        """Whether programs belong to sessions."""
        return self.mode == "pool-worker"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\nTry: {self.prog} --help\n")


def read_options(arguments: Sequence[str] | None = None) -> BridgeOptions:
    """The options.

    Args:
        arguments: those of the command line, without the program's name; None: this process's.

    Raises:
        SystemExit: with code 2 and a line on stderr where they are wrong, with 0 after --help.
    """
    parser = make_parser()
    read = vars(parser.parse_args(arguments))
    if read["mode"] == "pool-worker" and not read["worker_id"]:
        parser.error("--mode pool-worker needs --worker-id ID")
    return BridgeOptions(**read)


def make_parser() -> argparse.ArgumentParser:
    """The parser, with all that --help says."""
    parser = _Parser(
        prog="python -m dspool.worker.bridge",
        usage="%(prog)s [--mode standalone | --mode pool-worker --worker-id ID] [OPTIONS]",
        description=_DESCRIPTION,
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    default = BridgeOptions()
    add = parser.add_argument
    add(
        "--mode",
        choices=("standalone", "pool-worker"),
        default=default.mode,
        help="standalone (default): programs live until they are deleted. pool-worker: one created with a session_id"
        " belongs to that session and goes with cleanup_session",
    )
    add("--worker-id", metavar="ID", help="what ping calls this process; pool-worker needs it")
    add(
        "--allow-imports",
        action="store_true",
        help="take definitions that name code by its import path: tools, rewards, programs; and settings that say where"
        " an LM's requests go. For clients whose definitions are their own, and not somebody else's",
    )
    add(
        "--debug-log",
        metavar="FILE",
        help="append each frame, as a line of JSON with time and size, to this file. Only its owner may read it (mode"
        " 0600), keys and passwords in it are masked, and inputs and outputs are not",
    )
    for name, least, most, text in _BOUNDS:
        option = "--" + name.replace("_", "-")
        value = getattr(default, name)
        help_text = f"{text} (default {value:,})"
        add(option, metavar="N", type=_whole_number(least, most), default=value, help=help_text)
    return parser


def _whole_number(least: int, most: int) -> Any:
    def whole_number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r:.40} is not a whole number") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value:,} is not from {least:,} to {most:,}")
        return value

    return whole_number


def _epilog() -> str:
    lines = ["commands (all of docs/reference/bridge.md is about them):"]
    for command in COMMANDS:
        names = ", ".join(argument.name + ("?" if argument.optional else "") for argument in command.args)
        lines.append(f"  {command.name:<24}{names}")
    exits = ["", "exit codes:", *(f"  {code:<4}{text}" for code, text in EXITS.items())]
    wrapped = [textwrap.fill(line, _WIDTH, subsequent_indent=" " * 26) for line in lines]
    wrapped += [textwrap.fill(line, _WIDTH, subsequent_indent=" " * 6) for line in exits]
    return "\n".join(wrapped) + "\n" + _EXAMPLE


_BOUNDS = (
    ("max_frame_bytes", MIN_MAX_FRAME_BYTES, MAX_LENGTH, "the longest message either way, in bytes"),
    ("max_programs", 1, _MANY, "how many programs may be kept"),
    ("max_sessions", 1, _MANY, "how many sessions may be kept"),
    ("max_stored_bytes", 1, 2**62, "what programs' definitions and sessions' data may take together"),
)
_DESCRIPTION = """\
DSPy behind stdin and stdout, for clients in any language: an Erlang or Elixir port with {:packet, 4}, or
anything that can write four bytes.

A frame is a 4-byte big-endian length and then that many bytes: one JSON object. stdin takes requests, stdout
gives one answer to each, in their order. Everything that programs print goes to stderr.

  request   {"id": 1, "command": "ping", "args": {}}
  answer    {"id": 1, "success": true, "result": {"status": "ok", ...}, "timestamp": 1767225600.0}
  or        {"id": 1, "success": false, "error": "Program not found: qa",
             "error_info": {"code": "program_not_found", "type": "", "traceback": "", "retryable": false, ...}}

It ends when stdin ends, when nobody reads stdout any more, or after shutdown.
"""
_EXAMPLE = """
a client in Python, whole:
  import json, struct, subprocess, sys
  bridge = subprocess.Popen([sys.executable, "-m", "dspool.worker.bridge"],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
  def ask(command, **args):
      body = json.dumps({"id": 1, "command": command, "args": args}).encode()
      bridge.stdin.write(struct.pack(">I", len(body)) + body)
      bridge.stdin.flush()
      (length,) = struct.unpack(">I", bridge.stdout.read(4))
      return json.loads(bridge.stdout.read(length))
  ask("configure_lm", provider="openai", model="gpt-4o-mini")            # the key: OPENAI_API_KEY
  ask("create_program", id="qa", signature={"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]})
  print(ask("execute_program", program_id="qa", inputs={"question": "Why is the sky blue?"})["result"]["answer"])
  ask("shutdown")

Elixir: docs/how-to/use-from-elixir.md
"""

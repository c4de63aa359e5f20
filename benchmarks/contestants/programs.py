"""What the contestants run: plain functions of one value, which every worker imports by name.

This module must stay cheap to import: each peer's workers do it. Nothing here knows a contestant.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any


def echo(value: Any) -> Any:
    """Give back what came."""
    return value


def burn_1ms(value: Any) -> Any:
    """Use one millisecond of CPU, whatever else runs on the core, and give back what came."""
    until = time.thread_time() + 0.001
    while time.thread_time() < until:
        pass
    return value


def attend(value: str) -> int:
    """Come to a meeting (see contestants.meeting): say which process this is, and stay until all are there."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(value)
        sock.sendall(os.getpid().to_bytes(4, "big"))
        sock.recv(1)
    return os.getpid()


def preload_dspy() -> None:
    """An initializer: what a DSPy call needs to have imported."""
    import dspy  # noqa: F401


def preload_litellm() -> None:
    """An initializer: the same where the model needs litellm."""
    import dspy  # noqa: F401
    import litellm  # noqa: F401


_lm: Any = None


def configure_lm(api_base: str) -> None:
    """An initializer: DSPy with the stub's LM, as an application's own initializer would do it."""
    global _lm
    import dspy

    _lm = stub_lm(api_base)
    dspy.configure(lm=_lm, disable_history=True, trace=None)


def stub_lm(api_base: str) -> Any:
    """A dspy.LM for the stub at this address, without DSPy's cache."""
    import dspy

    return dspy.LM("openai/stub", api_base=api_base, api_key="stub-key", cache=False)


_program: Any = None


def think(value: str) -> str:
    """A real `dspy.ChainOfThought` in a worker that configure_lm has set up. The program is built once."""
    global _program
    import dspy

    if _program is None:
        _program = dspy.ChainOfThought("question -> answer")
    return str(_program(question=value).answer)

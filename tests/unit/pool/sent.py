"""What the tests of the program store send, what is sent of it, and another process that does the same."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import cloudpickle

from dspool.pool.programs import Program
from dspool.protocol.messages import PickledProgram


def module_class(dspy: Any, *, words: Any = None) -> Any:
    """A class of modules that only goes by value, made anew at each call."""

    class Pipeline(dspy.Module):
        allowed = frozenset({"alpha", "beta", "gamma", "delta"})

        def __init__(self, k: int = 5, signature: Any = "question -> answer") -> None:
            super().__init__()
            self.k = k
            self.words = words
            self.steps = [dspy.Predict(signature), dspy.ChainOfThought(signature)]

        def forward(self, question: str) -> Any:
            return self.steps[1](question=question) if question in {"a", "b", "c"} else self.steps[0](question=question)

    return Pipeline


def pickled(program: Program) -> PickledProgram:
    """What a worker is sent of it, of an object."""
    assert isinstance(program.spec, PickledProgram)
    return program.spec


def loaded(program: Program) -> Any:
    """The object as a worker has it."""
    return cloudpickle.loads(pickled(program).data)


def run_python(*arguments: str, seed: str = "0") -> str:
    """What another process prints, with that seed for its hashes."""
    environment = os.environ | {"PYTHONHASHSEED": seed}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=50, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

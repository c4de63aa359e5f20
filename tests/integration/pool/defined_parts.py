"""What definitions in tests name by import path."""

from __future__ import annotations

import gc
import os
import signal
from collections import Counter
from typing import Any

import dspy


def search(query: str) -> str:
    """Looks something up."""
    return f"found {query}"


def lookup(query: str) -> str:
    """Has the name of another tool in `other_tools`."""
    return query


class other_tools:
    """Tools whose names clash."""

    @staticmethod
    def search(query: str) -> str:
        """The same name as the other."""
        return query

    @staticmethod
    def finish() -> str:
        """The name of DSPy's own."""
        return ""


NO_TOOL = 5


def longest(inputs: dict[str, Any], prediction: Any) -> float:
    """A reward: the length of the answer."""
    return float(len(prediction.answer))


def fails_at_first(inputs: dict[str, Any], prediction: Any) -> float:
    """A reward that raises for one attempt in two."""
    number = int(prediction.answer)
    if number % 2:
        raise ValueError("odd")
    return float(number)


def deadly(inputs: dict[str, Any], prediction: Any) -> float:
    """Never comes to a reward."""
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


class Repeats(dspy.Module):  # type: ignore[misc,unused-ignore]
    """A module with an argument."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.times = times
        self.say = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        """Asks once, says it often."""
        said = self.say(question=question).answer
        return dspy.Prediction(answer=" ".join([said] * self.times))


def make_repeats(times: int) -> Any:
    """A factory."""
    return Repeats(times)


def refuses() -> Any:
    """A factory that raises."""
    raise LookupError("no index here")


class Asks(dspy.Signature):  # type: ignore[misc,unused-ignore]
    """Asks."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


ready = Repeats(2)


class Versioned(dspy.Module):  # type: ignore[misc,unused-ignore]
    """Answers with the version that it was made with; asks no LM."""

    def __init__(self, version: int) -> None:
        super().__init__()
        self.version = version
        self.ballast = dspy.Predict("question -> answer")

    def forward(self) -> Any:
        """Its version."""
        return dspy.Prediction(version=self.version)


def version_of(version: int) -> int:
    """A callable that answers as `Versioned` does."""
    return version


def census() -> dict[str, int]:
    """What a worker holds of programs, by counting."""
    gc.collect()
    kinds = Counter(type(thing).__name__ for thing in gc.get_objects())
    (table,) = (thing for thing in gc.get_objects() if type(thing).__name__ == "ProgramTable")
    names = ("Versioned", "Predict", "CallableProgram", "ModuleProgram", "Inputs", "TypeAdapter")
    counted = {name: kinds[name] for name in names}
    return {"loaded": len(table), "signatures": len(dspy.Signature.__subclasses__()), **counted}

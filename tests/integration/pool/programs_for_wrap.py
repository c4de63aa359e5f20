"""Programs and an LM for the tests of pool.wrap: an answer depends on its request alone, whichever process asks."""

from __future__ import annotations

import abc
import os
from typing import Any

import dspy
from dspy.utils import DummyLM

ANSWERS = {
    "[[ ## question ## ]]\ncapital": {"reasoning": "known", "answer": "Paris"},
    "[[ ## question ## ]]\nriver": {"reasoning": "guessed", "answer": "Seine"},
    "[[ ## question ## ]]\nsum": {"reasoning": "counted", "answer": "4"},
    "[[ ## answer ## ]]": {"length": "5"},
}


def answering(**settings: Any) -> Any:
    """An LM that knows three questions."""
    lm = DummyLM(ANSWERS)
    return lm.copy(**settings) if settings else lm


class Measured(dspy.Module):
    """Two predictors, one after the other, and what the process that ran them says."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.ChainOfThought("question -> answer")
        self.measure = dspy.Predict("answer -> length: int")

    def forward(self, question: str, times: int = 1) -> Any:
        """Ask and measure."""
        asked = self.ask(question=question)
        for _ in range(1, times):
            asked = self.ask(question=question)
        measured = self.measure(answer=asked.answer)
        return dspy.Prediction(answer=asked.answer, length=measured.length, pid=os.getpid(), steps=[asked])


class Told(dspy.Module):
    """Gives back what it was called with, and what DSPy's settings say in the worker."""

    def forward(self, *given: Any, **named: Any) -> Any:
        """What it sees."""
        settings = dspy.settings
        return dspy.Prediction(
            given=[_shown(each) for each in given],
            named={name: _shown(value) for name, value in named.items()},
            adapter=type(settings.adapter).__name__,
            lm=None if settings.lm is None else [settings.lm.model, settings.lm.kwargs],
            num_threads=settings.num_threads,
            mine=settings.get("mine"),
            pid=os.getpid(),
        )


def _shown(value: Any) -> str:
    return f"{type(value).__name__}: {value.toDict() if isinstance(value, dspy.Example) else value}"


class Outer(dspy.Module):
    """A program with another one in it."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, question: str) -> Any:
        """Ask the inner one."""
        found = self.inner(question=question)
        return dspy.Prediction(
            answer=found.answer, pid=os.getpid(), kind=[base.__name__ for base in type(self.inner).__mro__]
        )


class Fails(dspy.Module):
    """Asks, then raises."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        """Ask and raise."""
        raise ValueError(f"no use for {self.ask(question=question).answer}")


class Listed(dspy.Module):
    """Returns no Prediction, but things that hold some."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer", n=2)

    def forward(self, question: str) -> Any:
        """A list and a dict of records."""
        asked = self.ask(question=question)
        return [asked, {"example": dspy.Example(question=question, gold="Paris").with_inputs("question")}, (1, 2)]


def shout(text: str) -> str:
    """Loud."""
    return text.upper()


class Aloud(dspy.Module):
    """Two predictors and a tool, to be streamed."""

    def __init__(self) -> None:
        super().__init__()
        self.think = dspy.ChainOfThought("question -> answer")
        self.shout = dspy.Tool(shout)
        self.again = dspy.Predict("draft -> final")

    def forward(self, question: str) -> Any:
        """Think, shout, and say it again."""
        draft = self.think(question=question).answer
        final = self.again(draft=self.shout(text=draft)).final
        return dspy.Prediction(answer=final, draft=draft)

    async def aforward(self, question: str) -> Any:
        """The same."""
        draft = (await self.think.acall(question=question)).answer
        final = (await self.again.acall(draft=await self.shout.acall(text=draft))).final
        return dspy.Prediction(answer=final, draft=draft)


class AloudOnAThread(Aloud):
    """The same, without an `aforward` of its own."""

    def forward(self, question: str) -> Any:
        """Think, shout, and say it again."""
        return super().forward(question)


class Teller(dspy.streaming.StatusMessageProvider):
    """Tells of everything."""

    def module_start_status_message(self, instance: Any, inputs: Any) -> str:
        """A module begins."""
        return f"{type(instance).__name__} begins"

    def module_end_status_message(self, outputs: Any) -> str:
        """It has ended."""
        return f"one ended with {', '.join(outputs)}"

    def lm_start_status_message(self, instance: Any, inputs: Any) -> str:
        """An LM is asked."""
        return f"asking {instance.model}"


class Sends(dspy.Module):
    """Sends pieces of its own."""

    async def aforward(self) -> Any:
        """Send three."""
        stream = dspy.settings.send_stream
        await stream.send({"step": 1})
        await stream.send(dspy.streaming.StreamResponse("nobody", "field", "text", True))
        await stream.send(dspy.streaming.StatusMessage("nearly"))
        return dspy.Prediction(answer="done")


DEFINED: dict[str, type] = {}
"""Program classes by name, as an application may keep them."""


class Registered(dspy.Module):
    """Its classes say of what kind they are, and are looked up by name."""

    def __init_subclass__(cls, *, kind: str) -> None:
        super().__init_subclass__()
        DEFINED[cls.__name__] = cls


class Peculiar(Registered, kind="peculiar"):
    """Keeps a part of itself in a slot, is not to be changed, and ends its connection when it goes."""

    __slots__ = ("prefix",)

    def __init__(self) -> None:
        super().__init__()
        self.prefix = "it is "
        self.open = [True]

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_d"):
            raise AttributeError(f"{name} is not to be set")
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "prefix": self.prefix}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.prefix = state.pop("prefix")
        super().__setstate__(state)

    def __del__(self) -> None:
        vars(self).get("open", []).clear()

    def forward(self, question: str) -> Any:
        """Answers with its prefix."""
        return dspy.Prediction(answer=self.prefix + question, open=bool(self.open))


TABLES: list[str] = []


class Table(type(dspy.Module)):  # type: ignore[misc,unused-ignore]
    """Wants to be told of each class by whoever defines it."""

    def __new__(cls, name: str, bases: Any, namespace: Any, *, table: str) -> Any:
        TABLES.append(name)
        return super().__new__(cls, name, bases, {**namespace, "table": table})

    def __init__(cls, name: str, bases: Any, namespace: Any, *, table: str) -> None:
        super().__init__(name, bases, namespace)


class Tabled(dspy.Module, metaclass=Table, table="customers"):
    """Of that kind."""

    def forward(self) -> Any:
        """Says its table."""
        return dspy.Prediction(answer=type(self).table)


class AbstractMeta(type(dspy.Module), abc.ABCMeta):  # type: ignore[misc,unused-ignore]
    """For abstract programs."""


class Abstract(dspy.Module, metaclass=AbstractMeta):
    """One."""

    @abc.abstractmethod
    def make(self) -> str:
        """To be given."""

    def forward(self) -> Any:
        """Make it."""
        return dspy.Prediction(answer=self.make())


class Concrete(Abstract):
    """One that can be run."""

    def make(self) -> str:
        """Given."""
        return "made"


class Dies(dspy.Module):
    """Ends its process."""

    def forward(self) -> None:
        """End it."""
        os._exit(3)

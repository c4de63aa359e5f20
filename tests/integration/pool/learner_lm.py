"""An LM that learns: it answers most questions only when it is shown examples or told to be careful.

So an optimizer has something to find. It depends on nothing but the request, so an optimizer over a pool must come to
the very program that it comes to in one process. Asked for instructions, rules or feedback, it says "Be careful.".
"""

from __future__ import annotations

from typing import Any

import dspy

from dspool.testing.offline_lm import _read_request
from dspool.testing.prompts import read_inputs, read_layout, render

GOLD = {"capital": "Paris", "river": "Seine", "mountain": "Mont Blanc", "sea": "Mediterranean", "flag": "tricolore"}
"""The first is known without being told."""
ADVICE = "Be careful."


class Learner:
    """DSPy's engine."""

    def complete(self, request: Any) -> Any:
        """Answer a request."""
        from dspy.lm15 import Message, Response, Usage

        system, user = _read_request(request)
        shown = any(message.role == "assistant" for message in request.messages)
        usage = Usage(input_tokens=len(system + user), output_tokens=7, total_tokens=len(system + user) + 7)
        message = Message.assistant(answer(system, user, knows=shown or ADVICE in system))
        return Response(id=None, model="learner", message=message, finish_reason="stop", usage=usage, provider_data={})

    def close(self) -> None:
        """Nothing to close."""


class AsyncLearner:
    """The same for acall."""

    async def complete(self, request: Any) -> Any:
        """Answer a request."""
        return Learner().complete(request)

    async def aclose(self) -> None:
        """Nothing to close."""


def answer(system: str, user: str, *, knows: bool) -> str:
    """The assistant's message."""
    layout = read_layout(system)
    if layout.style == "plain":
        return f"```\n{ADVICE}\n```"
    question = read_inputs(layout, user).get("question", "").strip()
    right = knows or question == "capital"
    values: dict[str, Any] = {field.name: ADVICE for field in layout.outputs}
    values |= {name: {"ask.predict": ADVICE} for name in values if name in ("advice", "module_advice")}
    values |= {"reasoning": f"It is about the {question}."} if "reasoning" in values else {}
    values |= {"answer": GOLD.get(question, "?") if right else "unknown"} if "answer" in values else {}
    return render(layout, values)


def learner_lm() -> Any:
    """The LM, as dspy.LM."""
    return dspy.LM("learner/test", engine=Learner(), async_engine=AsyncLearner(), cache=False, num_retries=0)


def examples() -> list[Any]:
    """A question each, with its answer."""
    return [dspy.Example(question=question, answer=gold).with_inputs("question") for question, gold in GOLD.items()]


def right(example: Any, prediction: Any, trace: Any = None, *further: Any) -> float:
    """The metric."""
    return float(example.answer == prediction.answer)


def right_with_words(example: Any, prediction: Any, trace: Any = None, name: Any = None, named: Any = None) -> Any:
    """The metric for GEPA, which reads the feedback and looks at traces."""
    score = right(example, prediction)
    return dspy.Prediction(score=score, feedback=f"{name}: right is {example.answer}, {len(named or ())} steps")


class Asks(dspy.Module):
    """Something to optimize."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.ChainOfThought("question -> answer")

    def forward(self, question: str) -> Any:
        """Ask."""
        return self.ask(question=question)

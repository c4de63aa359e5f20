"""A DSPy module of your own, with typed outputs. It is defined in this script; no `if __name__` guard is needed."""

from typing import Literal

import dspy
import pydantic

import dspool
from dspool.testing.offline_lm import offline_lm


class Card(pydantic.BaseModel):
    """An index card."""

    title: str
    keywords: list[str]


class MakeCard(dspy.Signature):
    """Make an index card of a text."""

    text: str = dspy.InputField()
    card: Card = dspy.OutputField()
    kind: Literal["worker", "lease"] = dspy.OutputField(desc="what the text is mostly about")


class Librarian(dspy.Module):
    """Reads a text twice: once for a card, once for a question."""

    def __init__(self) -> None:
        super().__init__()
        self.make_card = dspy.Predict(MakeCard)
        self.answer = dspy.ChainOfThought("text, question -> answer")

    def forward(self, text: str, question: str) -> dspy.Prediction:
        """One prediction from two calls of the LM."""
        made = self.make_card(text=text)
        return dspy.Prediction(card=made.card, kind=made.kind, answer=self.answer(text=text, question=question).answer)


TEXT = "A lease is the right to use a slot. A lease ends when the slot is given back. A worker has one or more slots."

with dspool.Pool(workers=1, lm=offline_lm()) as pool:
    prediction = pool.run(Librarian(), {"text": TEXT, "question": "When does a lease end?"})
    print(type(prediction.card).__name__, prediction.card.keywords)
    print(prediction.kind)
    print(prediction.answer)
    print("usage:", prediction.get_lm_usage()["offline/extractive"]["total_tokens"], "tokens")

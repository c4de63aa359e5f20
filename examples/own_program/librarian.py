"""A program of one's own in a file of its own. Workers import it."""

import dspy


class MakeCard(dspy.Signature):
    """Make an index card of a text."""

    text: str = dspy.InputField()
    title: str = dspy.OutputField()
    keywords: list[str] = dspy.OutputField()


class Librarian(dspy.Module):
    """Reads a text; `most` bounds the keywords."""

    def __init__(self, most: int = 5) -> None:
        super().__init__()
        self.most = most
        self.make_card = dspy.Predict(MakeCard)

    def forward(self, text: str) -> dspy.Prediction:
        """A card."""
        card = self.make_card(text=text)
        return dspy.Prediction(title=card.title, keywords=card.keywords[: self.most])


def count(text: str) -> int:
    """A plain function is a program too; its result comes back as plain data."""
    return len(text.split())


librarian = Librarian(most=1)

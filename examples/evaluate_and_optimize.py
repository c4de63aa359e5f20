"""A DSPy program under dspy.Evaluate and an optimizer, running on a pool. One line differs: `pool.wrap(program)`."""

import asyncio
import os

import dspy

import dspool
from dspool.testing.offline_lm import offline_lm


class Librarian(dspy.Module):
    """Names what a text is about."""

    def __init__(self) -> None:
        super().__init__()
        self.read = dspy.ChainOfThought("text -> title, keywords: list[str]")

    def forward(self, text: str) -> dspy.Prediction:
        """Read a text."""
        card = self.read(text=text)
        return dspy.Prediction(title=card.title, keywords=card.keywords, pid=os.getpid())


def right(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    """The metric."""
    return example.keyword in " ".join(prediction.keywords)


async def call(wrapped: Librarian, text: str, lm: dspy.LM) -> list[dspy.Prediction]:
    """The ways to call it."""
    found = wrapped(text=text)  # blocks this thread
    again = await wrapped.acall(text=text)  # on any event loop
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        return [found, again, wrapped(text=text)]  # by these settings


def lean(evaluate: dspy.Evaluate, wrapped: Librarian) -> float:
    """Without what DSPy keeps of each call."""
    with dspy.context(disable_history=True, trace=None):
        return float(evaluate(wrapped).score)


ROWS = [
    ("# Slots\n\nA slot runs one call. A worker has a slot, or several slots.", "slot"),
    ("# Leases\n\nA lease is the right to a slot. A lease ends when it is given back.", "lease"),
    ("# Drains\n\nTo drain is to finish. A pool that drains takes nothing new, and a drained pool rests.", "drain"),
    ("# Verdicts\n\nA verdict keeps a worker, or removes it. Each verdict has a reason.", "reason"),
]
devset = [dspy.Example(text=text, keyword=keyword).with_inputs("text") for text, keyword in ROWS]
dspy.configure(lm=offline_lm(), track_usage=True)

with dspool.Pool(workers=2) as pool:
    program = pool.wrap(Librarian(), timeout_s=30)  # the one line that is new

    result = dspy.Evaluate(devset=devset, metric=right, num_threads=4)(program)
    print("score:", result.score)
    print("ran elsewhere:", os.getpid() not in {prediction.pid for _, prediction, _ in result.results})
    usage = result.results[0][1].get_lm_usage()
    print("tokens are told:", usage["offline/extractive"]["total_tokens"] > 0)

    optimizer = dspy.BootstrapFewShot(metric=right, max_bootstrapped_demos=2, max_labeled_demos=0)
    better = optimizer.compile(program, trainset=devset)
    print("demos:", len(better.read.predict.demos), "before:", len(program.read.predict.demos))
    print("still a Librarian:", isinstance(better, Librarian), "and runs:", better(text=ROWS[0][0]).title)

    titles = [found.title for found in asyncio.run(call(better, ROWS[1][0], offline_lm()))]
    print("called three ways:", titles)
    print("lean:", lean(dspy.Evaluate(devset=devset, metric=right, num_threads=4), better))

"""What the demo reads, and the DSPy program that reads it."""

from __future__ import annotations

from typing import Any

from dspool.cli.exits import EnvironmentLacks

MAX_CHARACTERS = 8_000
"""Of a topic, for an LM that is paid for."""


def topics(count: int | None, *, clip: bool) -> list[dict[str, str]]:
    """The topics of Python's own language reference, which every Python brings along, in alphabetical order.

    Args:
        count: how many; None: all, about 80.
        clip: cut each after MAX_CHARACTERS.

    Raises:
        EnvironmentLacks: this Python was packaged without them.
    """
    try:
        from pydoc_data.topics import topics as texts
    except ImportError:
        raise EnvironmentLacks(
            "this Python has no pydoc_data.topics, its language reference, which the demo reads; on Debian and Ubuntu "
            "it is in the package python3 (not python3-minimal)"
        ) from None
    names = sorted(texts)[:count]
    return [{"topic": name, "text": texts[name][: MAX_CHARACTERS if clip else None]} for name in names]


def topic_reader(pause_s: float) -> Any:
    """A DSPy program that reads a topic and says what an index would: typed, and with the process that read it.

    It is made here, in a function, as in a script or a notebook: such classes are sent to the workers by value.

    Args:
        pause_s: seconds each call waits, in place of the time that a hosted model takes.
    """
    import dspy

    class ReadTopic(dspy.Signature):
        """Read a topic of a language reference and describe it for an index."""

        text: str = dspy.InputField()
        title: str = dspy.OutputField()
        summary: str = dspy.OutputField(desc="one sentence")
        keywords: list[str] = dspy.OutputField(desc="three to six terms")

    class TopicReader(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read = dspy.Predict(ReadTopic)

        def forward(self, topic: str, text: str) -> Any:
            import os
            import time

            time.sleep(pause_s)
            found = self.read(text=text)
            return dspy.Prediction(
                topic=topic, title=found.title, summary=found.summary, keywords=found.keywords, worker_pid=os.getpid()
            )

    return TopicReader()

"""--lm: what was written -> what a pool takes, and whether the key that it needs is there.

The offline LM is used where it is named, and nowhere else but in the demo, which says so.
"""

from __future__ import annotations

import os
from typing import Any

import click

from dspool.cli.exits import EnvironmentLacks
from dspool.cli.inputs import parse_object, read_object

OFFLINE = ("offline", "offline/extractive")


def read_lm(text: str | None) -> Any:
    """What --lm said.

    Args:
        text: "provider/model", "@FILE" or JSON with dspy.LM's arguments, "offline", or None.

    Returns:
        "offline", a model's name, a dict of dspy.LM's arguments with "model", or None.

    Raises:
        UsageError: it is none of these.
    """
    if text is None:
        return None
    if text in OFFLINE:
        return "offline"
    lm: str | dict[str, Any] = text
    if text.startswith("@"):
        lm = read_object(text[1:])
    elif text.startswith("{"):
        lm = parse_object(text, "--lm")
    model = lm["model"] if isinstance(lm, dict) and "model" in lm else lm
    if not isinstance(model, str) or not all(model.partition("/")):
        raise click.UsageError(
            f"--lm {text}: a language model is written provider/model, as in openai/gpt-4o-mini, or @FILE with a JSON "
            'object of dspy.LM\'s arguments, "model" among them, or offline'
        )
    return lm


def check_key(lm: Any) -> None:
    """Say that a key is missing before a worker is started for it.

    Args:
        lm: what read_lm gave.

    Raises:
        EnvironmentLacks: it names the variable.
    """
    if lm is None or lm == "offline":
        return
    from dspool.protocol.lm_keys import missing_key
    from dspool.protocol.messages import LMSpec

    arguments = {"model": lm} if isinstance(lm, str) else dict(lm)
    lacks = missing_key(LMSpec("", arguments.pop("model"), arguments), os.environ)
    if lacks is not None:
        raise EnvironmentLacks(f"{lacks.partition('. ')[0]}; set it, or try --lm offline, which needs none")


def made(lm: Any) -> Any:
    """The LM as a pool takes it: the offline LM as an object."""
    if lm != "offline":
        return lm
    from dspool.testing.offline_lm import offline_lm

    return offline_lm()

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

# Providers that DSPy's own client serves and that take a key and nothing else. Of the others nothing is checked here.
KEY_VARIABLES: dict[str, tuple[str, ...]] = {
    "openai": ("OPENAI_API_KEY",),
    "anthropic": ("ANTHROPIC_API_KEY",),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "groq": ("GROQ_API_KEY",),
    "openrouter": ("OPENROUTER_API_KEY",),
    "deepseek": ("DEEPSEEK_API_KEY",),
}
_OWN_ACCESS = ("api_key", "api_base", "base_url")
_BASE_VARIABLES = ("OPENAI_BASE_URL", "OPENAI_API_BASE")


def read_lm(text: str | None) -> Any:
    """What --lm said.

    Args:
        text: "provider/model", "@FILE" or JSON with dspy.LM's arguments, "offline", or None.

    Returns:
        "offline", a model's name, a dict of dspy.LM's arguments with "model", or None.

    Raises:
        UsageError: it is none of these.
        EnvironmentLacks: the provider's key is not in the environment.
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
    check_key(model, lm if isinstance(lm, dict) else {})
    return lm


def check_key(model: str, arguments: dict[str, Any]) -> None:
    """Say that a key is missing before a worker is started for it.

    Raises:
        EnvironmentLacks: it names the variable.
    """
    provider = model.partition("/")[0]
    names = KEY_VARIABLES.get(provider, ())
    if not names or any(name in arguments for name in _OWN_ACCESS):
        return
    if provider == "openai" and any(os.environ.get(name) for name in _BASE_VARIABLES):
        return
    if not any(os.environ.get(name) for name in names):
        raise EnvironmentLacks(
            f"{model} needs an API key, and {' or '.join(names)} is not set; set it, or try --lm offline, which needs "
            "none"
        )


def made(lm: Any) -> Any:
    """The LM as a pool takes it: the offline LM as an object."""
    if lm != "offline":
        return lm
    from dspool.testing.offline_lm import offline_lm

    return offline_lm()

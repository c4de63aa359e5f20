"""PROGRAM on the command line: a signature or an import path."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

PROGRAM_HELP = """PROGRAM is a DSPy signature, such as "question -> answer" or "text -> summary, keywords: list[str]";
or a DSPy module, a signature class or a plain function by its import path, "package.module:attribute". The current
folder can be imported from."""


def check_program(program: str, lm: Any) -> None:
    """Refuse what can't be a program before workers are started for it; make the current folder importable.

    Raises:
        UsageError: it is neither a signature nor an import path, or a signature without an LM.
    """
    from dspool.protocol.definitions import IMPORT_PATH

    if "->" in program:
        if lm is None:
            raise click.UsageError(
                f"the signature {program!r} needs a language model: --lm provider/model, or --lm offline for the "
                "embedded stand-in, which needs no key"
            )
    elif not IMPORT_PATH.fullmatch(program):
        raise click.UsageError(
            f"{program!r} is neither a signature (question -> answer) nor an import path (package.module:attribute)"
        )
    import_from_current_folder()


def import_from_current_folder() -> None:
    """Make the current folder importable, as python -m does; workers get the same path."""
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)

"""Text as wide as the terminal."""

from __future__ import annotations

import shutil
import textwrap

_NARROWEST, _WIDEST = 40, 110


def width() -> int:
    """Columns to write in: the terminal's, within reason; 100 where there is none."""
    return max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size((100, 24)).columns))


def wrapped(text: str, *, indent: str = "", first: str = "") -> str:
    """A paragraph in lines; no word is broken, not at its hyphens either: paths are pasted."""
    return textwrap.fill(
        text,
        width(),
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )

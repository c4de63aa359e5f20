"""What the pages of docs/reference/ share: docstrings as Markdown."""

from __future__ import annotations

import inspect
import re
import textwrap

MADE_BY = "<!-- Made by docs/build_reference.py from the code: change that, not this page. -->\n"
_ENTRY = re.compile(r"^ {4}(\*{0,2}\w+): (.*(?:\n {8,}.*)*)", re.MULTILINE)


def entries(docstring: str | None, section: str) -> dict[str, str]:
    """Name -> text of a Google-style section."""
    text = inspect.cleandoc(docstring or "")
    body = text.partition(f"\n{section}:\n")[2]
    body = re.split(r"\n(?=\S)", body, maxsplit=1)[0]
    return {name.lstrip("*"): escaped(joined(found)) for name, found in _ENTRY.findall(body)}


def joined(text: str) -> str:
    """A wrapped text as one line."""
    return " ".join(text.split())


def escaped(text: str) -> str:
    """A text as it may stand in a table's cell."""
    return text.replace("|", "\\|")


def prose(docstring: str | None) -> str:
    """A Google-style docstring as Markdown: sections become bold words and lists, examples code."""
    lines: list[str] = []
    for block in inspect.cleandoc(docstring or "").split("\n\n"):
        head, _, body = block.partition("\n")
        if re.fullmatch(r"(Args|Attributes|Raises|Returns|Cancellation|Source):", head):
            found = [(name, joined(text)) for name, text in _ENTRY.findall(body)]
            items = [f"* `{name}`: {text}" for name, text in found] or [joined(body)]
            lines += [f"**{head[:-1]}**\n", *items, ""]
        elif block.startswith("    "):
            lines += ["```python", textwrap.dedent(block), "```", ""]
        else:
            lines += [block, ""]
    return "\n".join(lines)

"""A program's inputs from the command line: key=value words, key=@file, and a JSON object from a file or stdin."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click


def read_inputs(words: Sequence[str], source: str | None) -> dict[str, Any]:
    """The inputs of one call.

    Args:
        words: "key=value" each: JSON where the value parses, else text. "key=@file" is the file's text, and
            "key=@@..." text that begins with one "@".
        source: a file with a JSON object, "-" for stdin, or None. Words win over it.

    Raises:
        UsageError: it names the word or the file, and what is wrong.
    """
    inputs = read_object(source) if source is not None else {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.isidentifier():
            raise click.UsageError(f"an input is written key=value, with a name that Python can use; got {word!r:.80}")
        inputs[name] = _value(name, text)
    return inputs


def json_or_text(text: str) -> Any:
    """The text as JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError:
        return text


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UsageError: it is something else; the message begins with `where`.
    """
    try:
        value = json.loads(text, parse_constant=_refuse)
    except ValueError as error:  # UnicodeDecodeError is one
        raise click.UsageError(f"{where}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise click.UsageError(f"{where}: a JSON object is wanted, {{...}}, not {_kind(value)}")
    return value


def read_object(source: str) -> dict[str, Any]:
    """A JSON object from a file, or from stdin where the source is "-".

    Raises:
        UsageError: it can't be read, or is something else.
    """
    return parse_object(read_text(source), "stdin" if source == "-" else source)


def read_text(source: str) -> str:
    """The text of a file, or of stdin where the source is "-".

    Raises:
        UsageError: it can't be read, or is not UTF-8.
    """
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise click.UsageError(f"{source}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{source}: not UTF-8 text, at byte {error.start}") from None


def _value(name: str, text: str) -> Any:
    if text.startswith("@@"):
        return text[1:]
    if text.startswith("@"):
        try:
            return read_text(text[1:])
        except click.UsageError as error:
            hint = f"text that begins with @ is written {name}=@@..."
            raise click.UsageError(f"{name}={text}: {error.message} ({hint})") from None
    return json_or_text(text)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _kind(value: Any) -> str:
    return {list: "an array", str: "text", type(None): "null", bool: "true or false"}.get(type(value), "a number")

"""Inputs from the command line: key=value, key=@file, a JSON object."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from dspool.cli.inputs import json_or_text, parse_object, read_inputs

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("q=why?", "why?"),
        ("q=", ""),
        ("q=a=b", "a=b"),
        ("q=3", 3),
        ("q=3.5", 3.5),
        ("q=true", True),
        ("q=null", None),
        ('q="3"', "3"),
        ('q={"a": [1]}', {"a": [1]}),
        ("q=007", "007"),
        ("q=NaN", "NaN"),
        ("q=-Infinity", "-Infinity"),
        ("q={broken", "{broken"),
        ("q=@@handle", "@handle"),
        ("q=naïve ☃", "naïve ☃"),
    ],
)
def test_a_word_is_json_where_it_parses_and_text_elsewhere(word: str, expected: Any) -> None:
    assert read_inputs([word], None) == {"q": expected}


def test_a_file_is_read_as_text_even_where_it_is_json(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("[1, 2]\n", encoding="utf-8")
    assert read_inputs([f"text=@{file}"], None) == {"text": "[1, 2]\n"}


def test_words_win_over_the_object(tmp_path: Path) -> None:
    file = tmp_path / "inputs.json"
    file.write_text('{"a": 1, "b": 2}', encoding="utf-8")
    assert read_inputs(["b=3"], str(file)) == {"a": 1, "b": 3}


def test_the_object_may_come_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'\xef\xbb\xbf{"a": "b"}')))
    assert read_inputs([], "-") == {"a": "b"}


@pytest.mark.parametrize("word", ["why?", "=3", "two words=3", "1a=3"])
def test_a_word_that_is_no_input_is_refused_by_name(word: str) -> None:
    with pytest.raises(click.UsageError, match="key=value") as refused:
        read_inputs([word], None)
    assert word in refused.value.message


def test_a_file_that_is_not_there_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match=r"text=@.*missing\.txt: No such file.*text=@@"):
        read_inputs([f"text=@{tmp_path / 'missing.txt'}"], None)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(b"ok\xff")
    with pytest.raises(click.UsageError, match="not UTF-8 text, at byte 2"):
        read_inputs([f"text=@{file}"], None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1]", "an array"),
        ('"a"', "text"),
        ("3", "a number"),
        ("null", "null"),
        ("true", "true or false"),
        ("{", "not JSON"),
        ('{"a": NaN}', "NaN is not JSON"),
        (b"\xff", "not JSON"),
    ],
)
def test_what_is_no_object_is_refused_with_its_place(text: str | bytes, expected: str) -> None:
    with pytest.raises(click.UsageError, match=expected) as refused:
        parse_object(text, "rows.jsonl, line 7")
    assert refused.value.message.startswith("rows.jsonl, line 7: ")


def test_json_or_text_keeps_what_json_would_change() -> None:
    assert json_or_text(" plain ") == " plain "

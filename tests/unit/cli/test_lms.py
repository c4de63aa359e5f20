"""--lm: its forms, and the key that is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from dspool.cli.exits import EnvironmentLacks, ExitCode, exit_code_of
from dspool.cli.lms import check_key, read_lm
from dspool.cli.programs import check_program
from dspool.protocol.lm_keys import NATIVE

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*sum(NATIVE.values(), ()), "OPENAI_BASE_URL", "OPENAI_API_BASE"]:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("text", ["offline", "offline/extractive"])
def test_the_offline_lm_is_asked_for_by_name(text: str) -> None:
    assert read_lm(text) == "offline"


def test_nothing_is_chosen_where_nothing_was_said() -> None:
    assert read_lm(None) is None


def test_a_model_is_taken_where_its_key_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", "x")
    assert read_lm("gemini/gemini-2.5-flash") == "gemini/gemini-2.5-flash"
    check_key("gemini/gemini-2.5-flash")


@pytest.mark.parametrize("model", [f"{provider}/m" for provider in NATIVE])
def test_a_missing_key_is_named_before_anything_starts(model: str) -> None:
    with pytest.raises(EnvironmentLacks) as lacks:
        check_key(model)
    assert NATIVE[model.partition("/")[0]][0] in lacks.value.message
    assert exit_code_of(lacks.value) is ExitCode.ENVIRONMENT


@pytest.mark.parametrize(
    "arguments",
    [
        {"model": "openai/stub", "api_base": "http://127.0.0.1:1/v1", "api_key": "x"},
        {"model": "openai/stub", "api_key": "x"},
        {"model": "ollama_chat/llama3", "temperature": 0.5},
    ],
)
def test_arguments_come_from_a_file_or_as_json(tmp_path: Path, arguments: dict[str, Any]) -> None:
    file = tmp_path / "lm.json"
    file.write_text(json.dumps(arguments), encoding="utf-8")
    assert read_lm(f"@{file}") == arguments
    assert read_lm(json.dumps(arguments)) == arguments
    check_key(arguments)
    assert "model" in arguments


def test_a_server_of_ones_own_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    check_key(read_lm("openai/local"))


@pytest.mark.parametrize("lm", [None, "offline"])
def test_what_needs_no_key_is_let_through(lm: Any) -> None:
    check_key(lm)


@pytest.mark.parametrize("text", ["gpt-4o", "/m", "openai/", "{}", '{"model": 3}', "{broken"])
def test_what_is_no_lm_is_refused(text: str) -> None:
    with pytest.raises(click.UsageError, match="--lm"):
        read_lm(text)


@pytest.mark.parametrize("program", ["question", "a.b", ":f", "a:", "a b:c", "a/b.py:f", ""])
def test_what_is_no_program_is_refused(program: str) -> None:
    with pytest.raises(click.UsageError, match="neither a signature"):
        check_program(program, None)


def test_a_signature_needs_an_lm() -> None:
    with pytest.raises(click.UsageError, match="--lm offline"):
        check_program("question -> answer", None)


@pytest.mark.parametrize("program", ["a:b", "package.module:Class.method", "question -> answer"])
def test_programs_are_let_through(program: str) -> None:
    check_program(program, "offline")

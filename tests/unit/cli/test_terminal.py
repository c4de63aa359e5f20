"""Text as wide as the terminal: what is to be pasted stays whole."""

from __future__ import annotations

import pytest

from dspool.cli.terminal import wrapped

pytestmark = pytest.mark.unit


def test_no_path_or_option_is_broken_at_its_hyphens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    folder = "/home/anna-marie/my-own-app/a-cache-of-answers"
    text = f"-> chmod 700 {folder}, or say --no-start"
    assert wrapped(text).split() == text.split()

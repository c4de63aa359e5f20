"""docs/explanation/states.md is what docs/draw_states.py draws from the tables of today."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from dspool.pool.core.states import LEASE_MOVES, POOL_MOVES, SLOT_MOVES, WORKER_MOVES

pytestmark = pytest.mark.unit

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "draw_states.py"))


def test_the_page_is_up_to_date(generator: dict[str, Any]) -> None:
    page = (DOCS / "explanation" / "states.md").read_text(encoding="utf-8")
    assert page == generator["page"](), "run: python docs/draw_states.py"


@pytest.mark.parametrize("table", [WORKER_MOVES, SLOT_MOVES, LEASE_MOVES, POOL_MOVES])
def test_every_move_is_an_arrow(generator: dict[str, Any], table: dict[Any, frozenset[Any]]) -> None:
    page = generator["page"]()
    for old, news in table.items():
        for new in news:
            assert f"    {old} --> {new}: " in page


def test_an_arrow_without_words_and_words_without_an_arrow_are_errors(generator: dict[str, Any]) -> None:
    diagram, words = generator["diagram"], generator["POOL_WORDS"]
    (arrow, *_) = words
    with pytest.raises(ValueError, match="differ"):
        diagram(POOL_MOVES, {key: text for key, text in words.items() if key != arrow})
    with pytest.raises(ValueError, match="differ"):
        diagram(POOL_MOVES, {**words, tuple(reversed(list(POOL_MOVES)))[:2]: "backwards"})

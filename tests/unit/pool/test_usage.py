"""What calls used of LMs, summed."""

from __future__ import annotations

import threading

import pytest

import dspool
from dspool.pool import usage
from dspool.pool.usage import UsageBook
from dspool.protocol.messages import ModelUse
from dspool.types import LMUsage, UsageStats

pytestmark = pytest.mark.unit


def use(model: str = "m", tokens: int = 10, **more: float) -> ModelUse:
    """One request's, of which a fifth of the tokens were written."""
    return ModelUse(model, 1, tokens * 4 // 5, tokens // 5, tokens, **more)  # type: ignore[arg-type]


def added(*rows: LMUsage) -> LMUsage:
    """All of them together, by nothing but their fields."""
    sums = {name: sum(getattr(row, name) for row in rows) for name in LMUsage.__struct_fields__ if name != "cost_usd"}
    costs = [row.cost_usd for row in rows if row.cost_usd is not None]
    return LMUsage(**sums, cost_usd=sum(costs) if costs else None)


def test_a_pool_that_asked_nothing_has_used_nothing() -> None:
    assert UsageBook(10).stats() == UsageStats()


def test_a_call_counts_in_the_total_and_in_each_table() -> None:
    book = UsageBook(10)
    book.add("qa", "ann", [use(cached_tokens=3, priced=1, cost_usd=0.25)])
    row = LMUsage(
        calls=1,
        requests=1,
        prompt_tokens=8,
        completion_tokens=2,
        total_tokens=10,
        cached_tokens=3,
        cost_usd=0.25,
    )
    assert book.stats() == UsageStats(total=row, by_model={"m": row}, by_program={"qa": row}, by_session={"ann": row})


def test_a_call_of_two_models_is_one_call() -> None:
    book = UsageBook(10)
    book.add("qa", None, [use("a", 10), use("b", 20)])
    book.add("qa", None, [use("b", 30)])
    stats = book.stats()
    assert (stats.total.calls, stats.total.requests, stats.total.total_tokens) == (2, 3, 60)
    assert {model: (row.calls, row.total_tokens) for model, row in stats.by_model.items()} == {
        "a": (1, 10),
        "b": (2, 50),
    }
    assert stats.by_program == {"qa": stats.total}
    assert stats.by_session == {}


def test_what_was_held_back_is_summed() -> None:
    book = UsageBook(10)
    book.add("qa", None, [use(throttled=2, throttled_s=0.5)])
    book.add("qa", None, [ModelUse("m", throttled=1, throttled_s=1.25)])
    total = book.stats().total
    assert (total.calls, total.requests, total.throttled, total.throttled_s) == (2, 1, 3, 1.75)


def test_what_has_no_price_is_said_to_have_none() -> None:
    book = UsageBook(10)
    book.add("qa", None, [use()])
    assert (book.stats().total.cost_usd, book.stats().total.unpriced) == (None, 1)
    book.add("qa", None, [use(priced=1, cost_usd=0.5)])
    book.add("qa", None, [ModelUse("m", requests=3, priced=2, cost_usd=0.25)])
    assert (book.stats().total.cost_usd, book.stats().total.unpriced) == (0.75, 2)
    book.add("free", None, [use(priced=1)])
    assert book.stats().by_program["free"].cost_usd == 0


def test_a_worker_cant_price_more_than_it_asked() -> None:
    book = UsageBook(10)
    book.add("qa", None, [ModelUse("m", requests=1, priced=7, cost_usd=1.0)])
    assert book.stats().total.unpriced == 0


def test_rows_used_least_recently_make_room_and_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MAX_MODELS", 2)
    monkeypatch.setattr(usage, "MAX_PROGRAMS", 3)
    book = UsageBook(max_sessions=1)
    for number, name in enumerate(["a", "b", "a", "c", "d"]):
        book.add(f"program-{name}", f"session-{name}", [use(name, 10 + number, priced=number % 2, cost_usd=1.0)])
    stats = book.stats()
    assert list(stats.by_model) == ["c", "d"]
    assert list(stats.by_program) == ["program-a", "program-c", "program-d"]
    assert list(stats.by_session) == ["session-d"]
    assert (stats.other_models.calls, stats.other_programs.calls, stats.other_sessions.calls) == (3, 1, 4)
    for table, others in (
        (stats.by_model, stats.other_models),
        (stats.by_program, stats.other_programs),
        (stats.by_session, stats.other_sessions),
    ):
        assert added(*table.values(), others) == stats.total


def test_what_was_given_out_doesnt_change() -> None:
    book = UsageBook(10)
    book.add("qa", "ann", [use()])
    before = book.stats()
    book.add("qa", "ann", [use()])
    assert before.total == before.by_session["ann"] == added(before.by_model["m"])
    assert before.total.calls == 1


def test_threads_lose_no_call() -> None:
    book = UsageBook(4)

    def add_many(number: int) -> None:
        for turn in range(500):
            book.add("qa", f"{number}-{turn % 7}", [use()])

    threads = [threading.Thread(target=add_many, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    stats = book.stats()
    assert stats.total.calls == 3000
    assert len(stats.by_session) == 4
    assert added(*stats.by_session.values(), stats.other_sessions) == stats.total


def test_the_names_are_public() -> None:
    assert (dspool.LMUsage, dspool.UsageStats) == (LMUsage, UsageStats)

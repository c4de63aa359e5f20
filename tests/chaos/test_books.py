"""The books of a storm find what they are for: each kind of loss is made up here, and has to be counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dspool
from tests.chaos.storm.books import Books, Call
from tests.chaos.storm.ledger import filler, perform, read

pytestmark = pytest.mark.unit

NO_LOSS = {
    "calls_never_resolved": 0,
    "calls_resolved_twice": 0,
    "wrong_answers": 0,
    "untyped_errors": 0,
    "executed_twice": 0,
    "answered_yet_not_executed": 0,
    "refused_yet_executed": 0,
    "idempotent_calls_lost": 0,
}


@pytest.fixture
def books(tmp_path: Path) -> Books:
    """Empty books over an empty ledger."""
    return Books(seed=1, folder=tmp_path)


def made(books: Books, *, idempotent: bool) -> Call:
    """A call of this kind; calls of the other kind that are drawn first are executed and answered."""
    while (call := books.next_call()).idempotent is not idempotent:
        books.answered(call, executed(call))
    return call


def executed(call: Call) -> dict[str, Any]:
    """The answer of the program, run here."""
    return perform(**{**call.inputs, "pause_s": 0.0})


def losses(books: Books, excused: frozenset[str] = frozenset()) -> dict[str, int]:
    """What was found, without what was not."""
    found = books.audit().lost(excused=excused)
    assert found.keys() == NO_LOSS.keys()
    return {name: count for name, count in found.items() if count}


def test_answered_calls_and_lost_ones_that_may_be_lost_are_no_loss(books: Books) -> None:
    for idempotent in (True, False):
        call = made(books, idempotent=idempotent)
        books.answered(call, executed(call))
    books.raised(made(books, idempotent=False), dspool.WorkerLost("gone"))
    assert losses(books) == {}


def test_a_call_that_comes_to_nothing(books: Books) -> None:
    made(books, idempotent=True)
    assert losses(books) == {"calls_never_resolved": 1}


def test_a_call_that_ends_twice(books: Books) -> None:
    call = made(books, idempotent=False)
    answer = executed(call)
    sent = call.inputs["sent"]
    books.answered(call, answer)
    call.inputs["sent"] = sent
    books.answered(call, answer)
    assert losses(books) == {"calls_resolved_twice": 1}


def test_an_answer_of_another_call(books: Books) -> None:
    mine, other = made(books, idempotent=False), made(books, idempotent=False)
    answer = executed(other)
    executed(mine)
    books.answered(mine, answer)
    books.answered(other, answer)
    assert losses(books) == {"wrong_answers": 1}


def test_an_error_that_is_not_ours(books: Books) -> None:
    books.raised(made(books, idempotent=False), RuntimeError("what"))
    assert losses(books) == {"untyped_errors": 1}


def test_a_call_that_ran_twice_though_it_must_not(books: Books) -> None:
    call = made(books, idempotent=False)
    executed(call)
    books.answered(call, executed(call))
    assert losses(books) == {"executed_twice": 1}


def test_an_idempotent_call_may_run_twice(books: Books) -> None:
    call = made(books, idempotent=True)
    executed(call)
    books.answered(call, executed(call))
    assert losses(books) == {}


def test_an_answer_out_of_nothing(books: Books) -> None:
    call = made(books, idempotent=False)
    sent = perform(str(books.folder), -call.call_id, call.inputs["sent"], call.inputs["wanted"], 0.0)
    books.answered(call, {**sent, "call_id": call.call_id, "filler": filler(call.call_id, call.inputs["wanted"])})
    assert losses(books) == {"answered_yet_not_executed": 1}


def test_a_refused_call_that_ran(books: Books) -> None:
    call = made(books, idempotent=False)
    executed(call)
    books.raised(call, dspool.CheckoutSkipped("no"))
    assert losses(books) == {"refused_yet_executed": 1}


@pytest.mark.parametrize("error", [dspool.WorkerLost, dspool.CallTimeout, dspool.ProgramQuarantined])
def test_an_idempotent_call_without_its_answer(books: Books, error: type[Exception]) -> None:
    books.raised(made(books, idempotent=True), error("no"))
    assert losses(books) == {"idempotent_calls_lost": 1}
    assert losses(books, frozenset({error.__name__})) == {}


def test_the_ledger_tells_where_a_call_was_cut_off(books: Books) -> None:
    for begun, ended in ((False, False), (True, False), (True, True)):
        call = made(books, idempotent=False)
        if begun:
            executed(call)
        if begun and not ended:
            for path in books.folder.iterdir():
                path.write_text(path.read_text().replace(f"-{call.call_id}\n", ""))
        books.raised(call, dspool.WorkerLost("gone"))
    done = books.audit().done()
    where = ("lost_before_they_ran", "lost_while_they_ran", "lost_with_their_answer")
    assert [done[name] for name in where] == [1, 1, 1]
    assert read(books.folder)[0].total() >= 2

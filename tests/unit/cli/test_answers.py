"""Rows in and answers out: what is refused, and what --resume finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from dspool.cli.answers import Answers
from dspool.cli.rows import Rows, digest

pytestmark = pytest.mark.unit

PROGRAM = "m:f"


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """Three rows with a blank line between them."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"n": 0}\n\n{"n": 1}\r\n{"n": 2}', encoding="utf-8")
    return Rows(str(file), PROGRAM)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def write(out: Path, rows: Rows, *answers: dict[str, Any]) -> None:
    """The out file with these answers to the first rows."""
    file = Answers(str(out))
    file.open(resume=False, overwrite=False)
    for row, answer in zip(rows, answers, strict=False):
        file.write(row, **answer)
    file.close()


def resumed(out: Path, rows: Rows) -> Answers:
    """The out file, opened to go on with it and checked against the rows."""
    answers = Answers(str(out))
    answers.open(resume=True, overwrite=False)
    try:
        answers.check(rows)
    except BaseException:
        answers.close()
        raise
    return answers


def test_rows_are_numbered_without_the_blank_lines_and_can_be_read_twice(rows: Rows) -> None:
    for _ in range(2):
        assert [(row.index, row.inputs) for row in rows] == [(0, {"n": 0}), (1, {"n": 1}), (2, {"n": 2})]


@pytest.mark.parametrize("line", ["[1]", "{", "nonsense"])
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"n": 0}}\n\n{line}\n', encoding="utf-8")
    with pytest.raises(click.UsageError, match=r"rows\.jsonl, line 3: "):
        list(Rows(str(file), PROGRAM))


def test_rows_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match="No such file"):
        list(Rows(str(tmp_path / "rows.jsonl"), PROGRAM))


def test_a_digest_is_of_content_and_program() -> None:
    assert digest(PROGRAM, {"a": 1, "b": 2}) == digest(PROGRAM, {"b": 2, "a": 1})
    assert digest(PROGRAM, {"a": 1}) != digest(PROGRAM, {"a": 2})
    assert digest(PROGRAM, {"a": 1}) != digest("m:g", {"a": 1})


def test_a_line_has_index_digest_and_answer(out: Path, rows: Rows) -> None:
    write(out, rows, {"outputs": {"text": "☃"}}, {"error": {"type": "WorkerLost"}})
    first, second = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    assert first == {"index": 0, "digest": digest(PROGRAM, {"n": 0}), "outputs": {"text": "☃"}}
    assert second["error"] == {"type": "WorkerLost"}


def test_a_file_that_exists_is_neither_replaced_nor_added_to_unasked(out: Path, rows: Rows) -> None:
    write(out, rows, {"outputs": 1})
    before = out.read_bytes()
    with pytest.raises(click.UsageError, match="--resume goes on with it, --overwrite"):
        Answers(str(out)).open(resume=False, overwrite=False)
    assert out.read_bytes() == before


def test_overwrite_begins_anew(out: Path, rows: Rows) -> None:
    write(out, rows, {"outputs": 1})
    answers = Answers(str(out))
    answers.open(resume=False, overwrite=True)
    assert (answers.check(rows), answers.done) == (3, {})
    assert out.read_bytes()  # until all is known to be well
    assert answers.state() == f"{out} is as it was"
    answers.begin()
    assert answers.state().startswith("0 rows are in")
    answers.write(next(iter(rows)), outputs=2)
    answers.begin()
    assert b'"outputs": 2' in out.read_bytes()
    answers.close()


def test_overwriting_with_no_rows_leaves_none(out: Path, rows: Rows) -> None:
    write(out, rows, {"outputs": 1})
    answers = Answers(str(out))
    answers.open(resume=False, overwrite=True)
    answers.begin()
    answers.close()
    assert out.read_bytes() == b""


def test_resume_finds_what_is_done_and_what_failed(out: Path, rows: Rows) -> None:
    write(out, rows, {"outputs": 1}, {"error": {}})
    answers = resumed(out, rows)
    assert (sorted(answers.done), answers.failed) == ([0, 1], {1})
    answers.close()


@pytest.mark.parametrize("cut", [1, 10])
def test_resume_cuts_off_a_torn_last_line(out: Path, rows: Rows, cut: int) -> None:
    write(out, rows, {"outputs": 1}, {"outputs": 2})
    whole = out.read_bytes()
    out.write_bytes(whole[:-cut])
    answers = resumed(out, rows)
    assert list(answers.done) == [0]
    answers.write(list(rows)[1], outputs=2)
    answers.close()
    assert out.read_bytes() == whole


def test_resume_of_a_file_that_is_not_there_begins_it(out: Path, rows: Rows) -> None:
    answers = resumed(out, rows)
    assert answers.done == {}
    answers.close()


@pytest.mark.parametrize("line", ["{}", "nonsense", "[1]", '{"index": "a", "digest": "x"}'])
def test_a_file_of_another_kind_is_refused_and_left_as_it_is(out: Path, rows: Rows, line: str) -> None:
    out.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(click.UsageError, match="line 1, is not a line that `dspool map` has written"):
        resumed(out, rows)
    assert out.read_text(encoding="utf-8") == line + "\n"


def test_other_rows_are_noticed(tmp_path: Path, out: Path, rows: Rows) -> None:
    write(out, rows, {"outputs": 1}, {"outputs": 2})
    other = tmp_path / "other.jsonl"
    other.write_text('{"n": 0}\n{"n": 7}\n', encoding="utf-8")
    with pytest.raises(click.UsageError, match="its answer 1 was made from another row"):
        resumed(out, Rows(str(other), PROGRAM))
    other.write_text('{"n": 0}\n', encoding="utf-8")
    with pytest.raises(click.UsageError, match="it has an answer 1, and there are 1 rows only"):
        resumed(out, Rows(str(other), PROGRAM))
    with pytest.raises(click.UsageError, match="another program"):
        resumed(out, Rows(str(tmp_path / "rows.jsonl"), "m:g"))


def test_rows_added_at_the_end_are_no_other_rows(tmp_path: Path, out: Path, rows: Rows) -> None:
    write(out, rows, {"outputs": 1}, {"outputs": 2}, {"outputs": 3})
    with (tmp_path / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write('\n{"n": 3}\n')
    answers = resumed(out, rows)
    assert answers.check(rows) == 4
    answers.close()


def test_forgetting_the_failed_keeps_the_rest_and_the_lock(out: Path, rows: Rows) -> None:
    write(out, rows, {"outputs": 1}, {"error": {}}, {"outputs": 3})
    answers = resumed(out, rows)
    answers.forget_failed()
    assert [json.loads(line)["index"] for line in out.read_text(encoding="utf-8").splitlines()] == [0, 2]
    assert (sorted(answers.done), answers.failed) == ([0, 2], set())
    with pytest.raises(click.UsageError, match="written by another process"):
        Answers(str(out)).open(resume=True, overwrite=False)
    answers.write(list(rows)[1], outputs=2)
    answers.close()
    assert [json.loads(line)["index"] for line in out.read_text(encoding="utf-8").splitlines()] == [0, 2, 1]
    assert [path.name for path in out.parent.iterdir() if "out" in path.name] == ["out.jsonl"]


def test_stdout_can_not_be_resumed() -> None:
    with pytest.raises(click.UsageError, match="needs a file"):
        Answers("-").open(resume=True, overwrite=False)

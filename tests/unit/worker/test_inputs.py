"""What a callable takes, and which annotations need their values revived. DSPy modules: in the integration tests."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any, Literal, Optional

import pydantic  # revive() looks it up where it is loaded, as it is with every DSPy program
import pytest

from dspool.worker.inputs import Inputs, InvalidInputs, is_plain, of_callable

pytestmark = pytest.mark.unit


class Color(enum.Enum):
    RED = 1


def required(a: int, b: int) -> None: ...
def optional(a: int, *, b: int = 2, c: int) -> None: ...
def anything(a: int, **others: int) -> None: ...
def variable(*numbers: int) -> None: ...


class Caller:
    def __call__(self, a: int) -> None: ...


@pytest.mark.parametrize(
    ("program", "given", "missing", "unknown"),
    [
        (required, {"a", "b"}, [], []),
        (required, {"a"}, ["b"], []),
        (required, {"a", "c"}, ["b"], ["c"]),
        (required, {"a", "b", "c"}, [], ["c"]),
        (optional, {"a", "c"}, [], []),
        (optional, {"a", "b", "c"}, [], []),
        (optional, {"a", "b"}, ["c"], []),
        (optional, {"a", "b", "c", "d"}, [], ["d"]),
        (anything, {"a", "z"}, [], []),
        (anything, {"z"}, ["a"], []),
        (variable, set(), [], []),
        (variable, {"a"}, [], ["a"]),
        (Caller(), {"a"}, [], []),
        (Caller(), set(), ["a"], []),
    ],
)
def test_inputs_are_compared_with_the_signature(
    program: Callable[..., Any], given: set[str], missing: list[str], unknown: list[str]
) -> None:
    inputs = of_callable(program)
    if not missing and not unknown:
        inputs.check(dict.fromkeys(given))
        return
    with pytest.raises(InvalidInputs) as caught:
        inputs.check(dict.fromkeys(given))
    assert caught.value.details == {"expected": list(inputs.names), "missing": missing, "unknown": unknown}


def test_what_takes_arguments_by_position_only_is_no_program() -> None:
    with pytest.raises(TypeError, match="by position only"):
        of_callable(math.sqrt)


def test_a_builtin_that_does_not_say_takes_anything() -> None:
    assert of_callable(dict) == Inputs((), frozenset(), open=True)


@pytest.mark.parametrize(
    "annotation",
    [
        *(str, int, float, bool, bytes, type(None), Any, list, dict),
        *(list[str], dict[str, list[int]], Literal["a", 1], list[int | str], int | None, Optional[int]),  # noqa: UP045
    ],
)
def test_plain_annotations(annotation: Any) -> None:
    assert is_plain(annotation)


@pytest.mark.parametrize(
    "annotation",
    [date, Decimal, Color, set[int], tuple[int, ...], list[date], dict[str, Color], Optional[date]],  # noqa: UP045
)
def test_annotations_whose_values_must_be_revived(annotation: Any) -> None:
    assert not is_plain(annotation)


def test_typed_inputs_are_revived_and_others_left_alone() -> None:
    assert pydantic
    inputs = Inputs(("when", "n"), frozenset(), typed={"when": date})
    assert inputs.revive({"when": "2024-02-29", "n": "2024-02-29"}) == {"when": date(2024, 2, 29), "n": "2024-02-29"}

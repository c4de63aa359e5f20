"""What an unknown keyword is told with: the arguments that the methods have, both pools alike."""

from __future__ import annotations

import inspect

import pytest

import dspool
from dspool.pool.front import _RUN_DEFAULTS, CHECKOUT_ARGUMENTS, MAP_ARGUMENTS, unknown_argument

pytestmark = pytest.mark.unit

pools = pytest.mark.parametrize("pool", [dspool.Pool, dspool.AsyncPool])


def arguments(method: object) -> dict[str, object]:
    """A method's keywords and their defaults."""
    parameters = inspect.signature(method).parameters.values()  # type: ignore[arg-type]
    return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


@pools
def test_the_arguments_of_each_method_are_those_of_its_signature(pool: type) -> None:
    assert arguments(pool.run) == _RUN_DEFAULTS  # type: ignore[attr-defined]
    assert tuple(arguments(pool.checkout)) == CHECKOUT_ARGUMENTS  # type: ignore[attr-defined]
    assert tuple(arguments(pool.map)) == MAP_ARGUMENTS  # type: ignore[attr-defined]


def test_of_several_unknown_arguments_the_first_is_told() -> None:
    error = unknown_argument("run", ["sesion", "zzz"], ["session"])
    assert str(error) == "run() has no argument 'sesion'; did you mean 'session'? It takes session"

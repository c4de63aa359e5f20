"""The order of a program's modules, by which both ends of a pipe name a predictor."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from dspool.protocol.modules import modules_in

pytestmark = pytest.mark.unit


@pytest.fixture
def program() -> Any:
    """Modules in attributes, lists, tuples and dicts, one of them twice; and things that are no parts."""
    import dspy

    class Inner(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = dspy.Predict("a -> b")
            self.again = self.one
            self.listed = [dspy.Predict("c -> d"), "text", (dspy.Predict("e -> f"),)]

    class Outer(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.named = {"x": Inner(), "y": 3}
            self.deep: Any = [[[[[[[dspy.Predict("too -> deep")]]]]]]]
            self.history = [Inner()]
            self.last = dspy.ChainOfThought("g -> h")

    return Outer()


def outputs(program: Any) -> list[list[str]]:
    """Each predictor's outputs, in order."""
    return [list(part.signature.output_fields) for part in modules_in(program) if "signature" in vars(part)]


def test_each_module_once_in_the_order_of_attributes(program: Any) -> None:
    found = modules_in(program)
    assert found[0] is program
    assert len({id(part) for part in found}) == len(found) == 7
    assert outputs(program) == [["reasoning", "h"], ["b"], ["d"], ["f"]]


def test_a_copy_has_them_in_the_same_order(program: Any) -> None:
    copied = copy.deepcopy(program)
    assert outputs(copied) == outputs(program)
    assert not {id(part) for part in modules_in(copied)} & {id(part) for part in modules_in(program)}


def test_a_predictor_alone_is_its_only_module(program: Any) -> None:
    assert modules_in(program.named["x"].one) == [program.named["x"].one]

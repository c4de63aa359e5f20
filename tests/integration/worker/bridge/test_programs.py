"""Programs of all kinds through the bridge: code by its import path, tools, rewards, and what such code may do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.worker.bridge.client import QA, refusal_in
from tests.integration.worker.bridge.conftest import use

if TYPE_CHECKING:
    from dspool.testing.stub_lm import StubLM
    from tests.integration.worker.bridge.client import Client
    from tests.integration.worker.bridge.conftest import Start

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PROGRAMS = """
import ctypes, os, subprocess, sys
import dspy

class Plain(dspy.Module):
    def forward(self, value):
        return value

class Sum(dspy.Module):
    def __init__(self, start=0):
        super().__init__()
        self.start = start
    def forward(self, numbers: list[int]):
        return dspy.Prediction(total=self.start + sum(numbers), count=len(numbers))

class Fails(dspy.Module):
    def forward(self, message):
        raise ValueError(message)

class Noisy(dspy.Module):
    def forward(self):
        print("from Python")
        ctypes.CDLL(None).puts(b"from C")
        subprocess.run(["echo", "from a subprocess"], check=True)
        return dspy.Prediction(done=True)

class Forks(dspy.Module):
    def forward(self):
        child = os.fork()
        if child:
            os.waitpid(child, 0)
        return dspy.Prediction(child=child > 0)

def weather(city: str) -> str:
    "The weather in a city."
    return f"sunny in {city}"

def longest(args, prediction):
    return float(len(prediction.answer))
"""


@pytest.fixture
def coded(start: Start, tmp_path: Path) -> Client:
    """A bridge whose client may name code."""
    (tmp_path / "coded.py").write_text(PROGRAMS)
    return start("--allow-imports", env={"PYTHONPATH": str(tmp_path), "PYTHONWARNINGS": "default"})


def run(client: Client, name: str, inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The answer of a program of that module."""
    client.result("create_program", id=name, program_type="program", program=f"coded:{name}", **more)
    return client.ask("execute_program", program_id=name, inputs=inputs)


def test_a_program_by_its_import_path_gives_its_outputs_flat(coded: Client) -> None:
    answer = run(coded, "Sum", {"numbers": [1, 2, 3]}, arguments={"start": 10})
    assert answer["result"] == {"total": 16, "count": 3}
    info = coded.result("get_program_info", program_id="Sum")
    assert (info["signature"], info["program_type"], info["execution_count"]) == (None, "program", 1)


@pytest.mark.parametrize("value", ["text", None, 1.5, {"a": [1]}])
def test_a_plain_value_stands_under_result(coded: Client, value: Any) -> None:
    assert run(coded, "Plain", {"value": value})["result"] == {"result": value}


def test_what_a_program_raises_is_told_from_its_own_first_line_on(coded: Client) -> None:
    answer = run(coded, "Fails", {"message": "not like this"})
    assert refusal_in(answer) == ("program_error", "not like this")
    info = answer["error_info"]
    assert info["type"] == "builtins.ValueError"
    assert "raise ValueError(message)" in info["traceback"]


def test_what_a_program_prints_is_no_frame(coded: Client) -> None:
    assert run(coded, "Noisy", {})["result"] == {"done": True}
    assert coded.ask("ping")["success"]
    coded.result("shutdown")
    assert coded.rest() == b""
    coded.exit_code()
    assert all(words in coded.errors() for words in ("from Python", "from C", "from a subprocess"))


def test_a_forked_program_answers_once(coded: Client) -> None:
    assert run(coded, "Forks", {})["result"] == {"child": True}
    assert coded.ask("ping")["success"]


def test_tools_and_rewards_by_their_import_paths(coded: Client, stub: StubLM) -> None:
    use(coded, stub)
    coded.result("create_program", id="agent", signature=QA, program_type="react", tools=["coded:weather"], max_iters=2)
    assert "answer" in coded.result("execute_program", program_id="agent", inputs={"question": "Sun in Rome?"})
    best = {"program_type": "best_of_n", "n": 2, "reward": "coded:longest", "threshold": 1.0}
    coded.result("create_program", id="best", signature=QA, **best)
    assert coded.result("execute_program", program_id="best", inputs={"question": "Why?"}) == {"answer": "echo: Why?"}


def test_code_that_cannot_be_imported_in_the_bridge(coded: Client) -> None:
    answer = coded.ask("create_program", id="p", program_type="program", program="nowhere:Program")
    assert refusal_in(answer)[0] == "load_error"
    assert "nowhere" in answer["error"]
    assert answer["error_info"]["traceback"]


def test_a_client_that_may_not_name_code_is_told(start: Start) -> None:
    client = start()
    for more in (
        {"program_type": "program", "program": "os:system"},
        {"program_type": "react", "tools": ["os:system"]},
    ):
        code, text = client.refusal("create_program", id="p", signature=QA, **more)
        assert code == "invalid_definition"
        assert "'os:system' is an import path, and from here none is taken" in text


def test_a_saved_state_of_another_program(start: Start) -> None:
    client = start()
    state: dict[str, Any] = {"other": {"demos": []}}
    code, _ = client.refusal("create_program", id="p", signature=QA, state=state)
    assert code == "invalid_definition"
    assert client.refusal("get_program_info", program_id="p")[0] == "program_not_found"

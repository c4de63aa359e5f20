"""The bridge's commands in memory, with programs that need no DSPy."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest

from dspool.protocol.codec import JSON
from dspool.protocol.messages import BootConfig, LMSpec, ProgramSpec, Request, Response
from dspool.protocol.secrets import Secrets
from dspool.worker.bridge.commands import Commands
from dspool.worker.bridge.frame_log import masked
from dspool.worker.bridge.options import BridgeOptions, make_parser, read_options
from dspool.worker.bridge.reference import CODES, COMMANDS, Command
from dspool.worker.inputs import Inputs
from dspool.worker.programs import Loader, Outcome, Program

pytestmark = pytest.mark.unit

QA = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}


class Plain:
    """A program that gives what it was told to, or raises it."""

    inputs = Inputs((), frozenset(), open=True)

    def __init__(self, value: Any) -> None:
        self._value = value

    def call(
        self, inputs: dict[str, Any], lm: dict[str, Any] | None, deadline: float | None, running: object = None
    ) -> Outcome:
        if isinstance(self._value, BaseException):
            raise self._value
        return "value", self._value, None, None


class PlainLoader(Loader):
    """Makes every definition that program; the next one can be told to fail."""

    def __init__(self, value: Any) -> None:
        super().__init__(BootConfig(0, "test"), Secrets())
        self.value = value
        self.failure: BaseException | None = None

    @property
    def runtime(self) -> Any:
        """One that takes every LM."""
        return types.SimpleNamespace(lm=lambda spec: None, configure_lm=lambda spec: None)

    def load(self, spec: ProgramSpec) -> Program:
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        return Plain(self.value)


class Asked:
    """Commands, and a short way to ask them."""

    def __init__(self, value: Any = None, **options: Any) -> None:
        self.loader = PlainLoader(value)
        self.commands = Commands(BridgeOptions(**options), self.loader, Secrets())

    def ask(self, command: str, /, **args: Any) -> dict[str, Any]:
        response = self.commands.answer(Request(1, command, args))
        assert isinstance(response, Response)
        answer: dict[str, Any] = json.loads(bytes(JSON.encode(response)[4:]))
        return answer

    def code(self, command: str, /, **args: Any) -> str:
        code: str = self.ask(command, **args)["error_info"]["code"]
        return code


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE"):
        monkeypatch.delenv(name, raising=False)


def test_every_command_is_in_the_reference_and_the_other_way_round() -> None:
    assert list(Asked().commands._handlers) == [command.name for command in COMMANDS]
    assert {code for command in COMMANDS for code in command.codes} <= set(CODES)


ARGS: dict[str, dict[str, Any]] = {
    "configure_lm": {"model": "openai/m", "api_key": "k" * 10},
    "create_program": {"id": "p", "signature": QA},
    "create_gemini_program": {"id": "g", "signature": QA, "model": "gemini-x", "api_key": "k" * 10},
    "get_program_info": {"program_id": "p"},
    "delete_program": {"program_id": "p"},
    "update_session_data": {"session_id": "s", "data": {"a": 1}},
    "cleanup_session": {"session_id": "s"},
}


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.result], ids=lambda each: each.name)
def test_what_a_command_answers_is_what_the_reference_says(command: Command) -> None:
    asked = Asked()
    if command.name in ("get_program_info", "delete_program"):
        asked.ask("create_program", **ARGS["create_program"])
    assert tuple(asked.ask(command.name, **ARGS.get(command.name, {}))["result"]) == command.result


@pytest.mark.parametrize("value", [7, None, "text", [1, {"a": 2}], {"answer": 1}])
def test_a_program_that_gives_a_plain_value(value: Any) -> None:
    asked = Asked(value)
    asked.ask("create_program", id="p", signature=QA)
    assert asked.ask("execute_program", program_id="p", inputs={"question": "x"})["result"] == {"result": value}


@pytest.mark.parametrize("value", [float("nan"), object()])
def test_what_json_cannot_carry(value: Any) -> None:
    asked = Asked(value)
    asked.ask("create_program", id="p", signature=QA)
    assert asked.code("execute_program", program_id="p", inputs={}) == "encode_error"


def test_what_a_program_raises_is_told_with_its_traceback() -> None:
    asked = Asked(SystemExit("enough"))
    asked.ask("create_program", id="p", signature=QA)
    info = asked.ask("execute_program", program_id="p", inputs={})["error_info"]
    assert (info["code"], info["type"], info["retryable"]) == ("program_error", "builtins.SystemExit", False)
    assert "SystemExit: enough" in info["traceback"]
    assert asked.ask("get_program_info", program_id="p")["result"]["execution_count"] == 1


def test_a_program_that_cannot_be_loaded_leaves_the_one_before() -> None:
    asked = Asked(1, max_stored_bytes=200)
    asked.ask("create_program", id="p", signature=QA)
    asked.loader.failure = RuntimeError("not today")
    answer = asked.ask("create_program", id="p", signature=QA, replace=True)
    assert (answer["error_info"]["code"], answer["error"]) == ("load_error", "not today")
    assert asked.ask("execute_program", program_id="p", inputs={})["result"] == {"result": 1}
    for _ in range(5):  # what it counted for is not counted any more
        asked.loader.failure = RuntimeError("not today")
        assert asked.code("create_program", id="q", signature=QA) == "load_error"
    assert asked.ask("create_program", id="q", signature=QA)["success"]


def test_a_program_replaced_again_and_again_keeps_nothing() -> None:
    asked = Asked(1, max_programs=1, max_stored_bytes=200)
    for number in range(50):
        asked.loader.value = number
        assert asked.ask("create_program", id="p", signature=QA, replace=True)["success"]
        assert asked.ask("execute_program", program_id="p", inputs={})["result"] == {"result": number}


def test_programs_as_many_as_there_may_be_all_stay_loaded() -> None:
    asked = Asked(1, max_programs=100)
    for number in range(100):
        asked.ask("create_program", id=str(number), signature=QA)
    assert all(asked.ask("execute_program", program_id=str(number))["success"] for number in range(100))
    assert asked.code("create_program", id="more", signature=QA) == "limit_reached"


def test_a_refused_program_begins_no_session() -> None:
    asked = Asked(mode="pool-worker", worker_id="w")
    asked.code("create_program", id="p", signature={}, session_id="s")
    asked.loader.failure = RuntimeError("not today")
    asked.code("create_program", id="p", signature=QA, session_id="s")
    assert asked.ask("get_stats")["result"]["sessions_count"] == 0
    asked.ask("create_program", id="p", signature=QA, session_id="s")
    assert asked.ask("get_stats")["result"]["sessions_count"] == 1


def test_a_session_limit_holds_for_programs_too() -> None:
    asked = Asked(mode="pool-worker", worker_id="w", max_sessions=1)
    asked.ask("create_program", id="p", signature=QA, session_id="one")
    assert asked.code("create_program", id="p", signature=QA, session_id="two") == "limit_reached"
    assert asked.ask("create_program", id="q", signature=QA, session_id="one")["success"]


def test_whatever_a_command_raises_is_an_answer() -> None:
    def fail(request: Request) -> dict[str, Any]:
        raise BaseException("of no class we know")

    asked = Asked()
    asked.commands._handlers["ping"] = fail
    assert asked.code("ping") == "internal_error"


def test_secrets_are_masked_wherever_they_stand() -> None:
    secrets = Secrets()
    secrets.add("a-known-value")
    data = {
        "api_key": "k",
        "headers": {"x": ["Bearer abc", 5]},
        "a-known-value": "it is a-known-value",
        "max_tokens": 5,
        "tokens": "five",
        "token": None,
        "empty_password": "",
    }
    assert masked(data, secrets) == {
        "api_key": "***",
        "headers": {"x": ["***", 5]},
        "***": "it is ***",
        "max_tokens": 5,
        "tokens": "five",
        "token": None,
        "empty_password": "",
    }


def test_the_default_options() -> None:
    assert read_options([]) == BridgeOptions()
    assert read_options("--mode pool-worker --worker-id w --max-programs 5".split()) == BridgeOptions(
        mode="pool-worker", worker_id="w", max_programs=5
    )


def test_the_help_names_every_command() -> None:
    text = make_parser().format_help()
    assert all(f"  {command.name} " in text or f"  {command.name}\n" in text for command in COMMANDS)
    assert max(map(len, text.splitlines())) <= 120


def test_the_specs_of_equal_lms_are_equal() -> None:
    from dspool.worker.bridge.lms import read_lm, read_own_lm

    access = {"api_key": "k" * 10, "api_base": "http://127.0.0.1:1/v1"}
    named = read_lm({"provider": "openai", "model": "m", **access})
    assert named == read_lm({"model": "openai/m", **access}) == read_own_lm({"model": "openai/m", **access})
    assert isinstance(named, LMSpec)
    assert read_own_lm(None) is None
    assert read_lm({"model": "gemini-2.5-flash", "provider": "google", **access}).model == "gemini/gemini-2.5-flash"
    assert read_lm({"model": "gemini-2.5-flash", **access}).model == "gemini/gemini-2.5-flash"
    assert read_lm({"model": "o4-mini", **access}).model == "openai/o4-mini"


def test_a_gemini_key_in_the_environment_is_used_where_nothing_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    from dspool.worker.bridge.lms import default_gemini, is_gemini

    assert default_gemini({}) is None
    assert is_gemini(default_gemini({"GOOGLE_API_KEY": "k"}))
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    assert Asked(1).ask("create_gemini_program", id="g", signature=QA)["success"]


def test_what_a_gemini_program_sets_without_naming_a_model_counts_on_top_of_the_configured_one() -> None:
    from dspool.worker.bridge.lms import DEFAULT_GEMINI, read_gemini, read_lm

    configured = read_lm({"provider": "gemini", "model": "gemini-x", "api_key": "k" * 10, "temperature": 0.5})
    own = read_gemini({"temperature": 0.0}, configured)
    assert own is not None
    assert (own.model, own.kwargs) == ("gemini/gemini-x", {"api_key": "k" * 10, "temperature": 0.0})
    other = read_lm({"model": "gpt-4o", "api_key": "k" * 10})
    for before in (None, other):
        own = read_gemini({"api_key": "g" * 10}, before)
        assert own is not None
        assert (own.model, own.kwargs) == (DEFAULT_GEMINI, {"api_key": "g" * 10})
    assert Asked().code("create_gemini_program", id="g", signature=QA, temperature=0.5) == "missing_key"
    assert Asked(1).ask("create_gemini_program", id="g", signature=QA, api_key="g" * 10)["success"]
    assert Asked().code("create_gemini_program", id="g", signature=QA, temperature="hot") == "invalid_args"


def test_whether_to_replace_is_said_by_true_or_false_alone() -> None:
    asked = Asked()
    asked.ask("create_program", id="p", signature=QA)
    for wrong in ("false", 0, 1.0):
        assert asked.code("create_program", id="p", signature=QA, replace=wrong) == "invalid_args"
    for no in (False, None):
        assert asked.code("create_program", id="p", signature=QA, replace=no) == "program_exists"
    assert asked.ask("create_program", id="p", signature=QA, replace=True)["success"]


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    data: list[Any] = []
    for _ in range(depth):
        data = [data]
    return data


@pytest.mark.parametrize("data", [{"n": 10**30}, {"n": nested(100_000)}])
def test_what_can_be_read_and_not_be_written_again_is_not_kept(data: dict[str, Any]) -> None:
    asked = Asked()
    assert asked.code("update_session_data", session_id="s", data=data) == "invalid_args"
    assert asked.code("create_program", id="p", signature=QA, state=data) == "invalid_args"
    lm = {"model": "openai/m", "api_key": "k" * 10, "extra": data}
    assert asked.code("create_program", id="p", signature=QA, lm=lm) == "invalid_args"
    assert asked.ask("list_programs")["result"] == {"programs": []}


def test_a_folder_is_no_debug_log(tmp_path: Path) -> None:
    from dspool.worker.bridge.frame_log import FrameLog

    with pytest.raises(OSError, match="directory"):
        FrameLog(str(tmp_path), Secrets())

"""Every command of the bridge and every error code, over the pipes, with real DSPy programs on a stub LM server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dspool.testing.stub_lm import StubLM
from tests.integration.worker.bridge.client import QA, refusal_in, signature
from tests.integration.worker.bridge.conftest import use

if TYPE_CHECKING:
    from tests.integration.worker.bridge.client import Client
    from tests.integration.worker.bridge.conftest import Start

pytestmark = [pytest.mark.integration, pytest.mark.slow]


# ping, get_stats


def test_the_pings_that_clients_send(shared: Client) -> None:
    handshake = {"id": 0, "command": "ping", "args": {"initialization": True, "worker_id": "test123"}, "timestamp": "x"}
    shared.send_request(handshake)
    answer = shared.receive()
    assert answer["id"] == 0
    result = answer["result"]
    assert result["status"] == "ok"
    assert isinstance(result["timestamp"], float)
    assert result["pid"] == shared.process.pid
    assert result["uptime"] >= 0
    assert result["worker_id"] is None
    assert shared.ask("ping", request_id=3)["success"]


def test_a_pool_worker_says_who_it_is(start: Start) -> None:
    client = start("--mode", "pool-worker", "--worker-id", "worker_7")
    assert client.result("ping")["worker_id"] == "worker_7"
    assert client.result("ping")["mode"] == "pool-worker"


def test_stats_count_commands_errors_and_programs(start: Start) -> None:
    client = start()
    client.result("create_program", id="p", signature=QA)
    client.refusal("nonsense")
    stats = client.result("get_stats")
    counts = {name: stats[name] for name in ("command_count", "error_count", "programs_count", "sessions_count")}
    assert counts == {"command_count": 3, "error_count": 1, "programs_count": 1, "sessions_count": 0}
    assert stats["memory_usage"]["rss"] > 2**20
    assert stats["memory_usage"]["vms"] > stats["memory_usage"]["rss"]
    assert 0 < stats["memory_usage"]["percent"] < 100
    assert stats["dspy_available"] is stats["gemini_available"] is True
    assert stats["dspy_version"].startswith("3.")
    assert stats["protocol_version"] == 1
    assert stats["uptime"] > 0


# Bodies that are no requests


@pytest.mark.parametrize(
    ("body", "code", "request_id"),
    [
        (b"", "invalid_json", None),
        (b"nonsense", "invalid_json", None),
        (b'{"id": 1', "invalid_json", None),
        (b'{"id": 1, "command": "ping", "args": {"x": NaN}}', "invalid_json", None),
        (b"\xff\xfe", "invalid_json", None),
        (b"[1, 2]", "missing_id", None),
        (b'{"command": "ping", "args": {}}', "missing_id", None),
        (b'{"id": null, "command": "ping", "args": {}}', "missing_id", None),
        (b'{"id": "7", "command": "ping", "args": {}}', "invalid_id", None),
        (b'{"id": true, "command": "ping", "args": {}}', "invalid_id", None),
        (b'{"id": -1, "command": "ping", "args": {}}', "invalid_id", None),
        (b'{"id": 9223372036854775808, "command": "ping", "args": {}}', "invalid_id", None),
        (b'{"id": 7, "args": {}}', "missing_command", 7),
        (b'{"id": 7, "command": 3, "args": {}}', "invalid_command", 7),
        (b'{"id": 7, "command": "", "args": {}}', "invalid_command", 7),
        (b'{"id": 7, "command": "ping"}', "missing_args", 7),
        (b'{"id": 7, "command": "ping", "args": [1]}', "invalid_args", 7),
        (b'{"id": 7, "command": "ping", "args": null}', "invalid_args", 7),
    ],
)
def test_a_bad_body_is_answered(shared: Client, body: bytes, code: str, request_id: int | None) -> None:
    shared.send_body(body)
    answer = shared.receive()
    assert answer["id"] == request_id
    assert refusal_in(answer)[0] == code


def test_unknown_keys_and_args_are_ignored(shared: Client) -> None:
    request = {"id": 7, "command": "ping", "args": {"what": [1]}, "mood": "good", "timestamp": "2026-01-31T12:00:00Z"}
    shared.send_request(request)
    assert shared.receive()["success"]


def test_an_unknown_command_is_named(shared: Client) -> None:
    assert shared.refusal("dance") == ("unknown_command", "Unknown command: dance")
    assert shared.refusal("x" * 10_000) == ("unknown_command", "Unknown command: " + "x" * 200)


# Programs


def test_a_program_from_its_creation_to_its_end(start: Start, stub: StubLM) -> None:
    client = start()
    use(client, stub)
    assert client.result("create_program", id="qa", signature=QA) == {"program_id": "qa", "status": "created"}
    before = client.result("get_program_info", program_id="qa")
    assert before["last_executed"] is None
    assert client.result("execute_program", program_id="qa", inputs={"question": "Why?"}) == {"answer": "echo: Why?"}
    after = client.result("get_program_info", program_id="qa")
    assert {name: after[name] for name in ("id", "signature", "execution_count")} == {
        "id": "qa",
        "signature": QA,
        "execution_count": 1,
    }
    assert before["created_at"] == after["created_at"] <= after["last_executed"]
    assert client.result("list_programs") == {"programs": ["qa"]}
    assert client.result("delete_program", program_id="qa") == {"program_id": "qa", "status": "deleted"}
    assert client.result("list_programs") == {"programs": []}
    assert client.refusal("execute_program", program_id="qa", inputs={}) == (
        "program_not_found",
        "Program not found: qa",
    )


def test_outputs_keep_their_types_and_usage_stands_beside_them(start: Start) -> None:
    client = start()
    with StubLM(answers={"number": 7, "words": ["a", "b"], "reasoning": "so"}) as stub:
        use(client, stub)
        typed = signature("text", "number:int words:list[str]")
        client.result("create_program", program_id="p", signature=typed, program_type="chain_of_thought")
        answer = client.ask("execute_program", program_id="p", inputs={"text": "x"})
    assert answer["result"] == {"reasoning": "so", "number": 7, "words": ["a", "b"]}
    (tokens,) = answer["usage"].values()
    assert tokens["completion_tokens"] > 0


@pytest.mark.parametrize(
    "command",
    "create_program create_gemini_program execute_program execute_gemini_program get_program_info"
    " delete_program".split(),
)
@pytest.mark.parametrize(
    ("args", "text"),
    [
        ({}, "Program ID is required"),
        ({"program_id": ""}, "Program ID is required"),
        ({"program_id": None}, "Program ID is required"),
        ({"program_id": 5}, "Program ID is text, not int"),
        ({"program_id": "x" * 600}, "Program ID has 600 characters; at most 512 are allowed"),
    ],
)
def test_a_program_needs_an_id(shared: Client, command: str, args: dict[str, Any], text: str) -> None:
    own = {"signature": QA, "model": "m", "api_key": "k" * 10}
    assert shared.refusal(command, **args, **own) == ("invalid_args", text)


def test_what_is_ignored_in_a_signature_is_not_told(shared: Client) -> None:
    misplaced = QA | {"lm": {"model": "openai/x", "api_key": "sk-misplaced"}}
    shared.result("create_program", id="misplaced", signature=misplaced)
    assert shared.result("get_program_info", program_id="misplaced")["signature"] == QA
    shared.result("delete_program", program_id="misplaced")


@pytest.mark.parametrize("command", ["execute_program", "execute_gemini_program", "get_program_info", "delete_program"])
def test_a_program_that_is_not_there(shared: Client, command: str) -> None:
    assert shared.refusal(command, program_id="nobody", inputs={}) == (
        "program_not_found",
        "Program not found: nobody",
    )


def test_an_id_that_is_taken(shared: Client) -> None:
    shared.result("create_program", id="taken", signature=QA)
    code, text = shared.refusal("create_program", id="taken", signature=QA)
    assert code == "program_exists"
    assert text == 'Program already exists: taken; delete it first, or send "replace": true'
    other = signature("text", "title")
    shared.result("create_program", id="taken", signature=other, replace=True)
    assert shared.result("get_program_info", program_id="taken")["signature"] == other
    shared.refusal("create_program", id="taken", signature=signature("a", ""), replace=True)
    assert shared.result("get_program_info", program_id="taken")["signature"] == other


@pytest.mark.parametrize(
    ("definition", "told"),
    [
        ({}, "signature"),
        ({"signature": 5}, "signature"),
        ({"signature": signature("question", "")}, "no outputs"),
        ({"signature": signature("question", "answer:os.system")}, "os.system"),
        ({"signature": signature("lm", "answer")}, "'lm'"),
        ({"signature": QA, "program_type": "dance"}, "dance"),
        ({"signature": {"inputs": [{"type": "str"}], "outputs": []}}, "name"),
    ],
)
def test_a_definition_that_no_program_can_be_made_from(shared: Client, definition: dict[str, Any], told: str) -> None:
    code, text = shared.refusal("create_program", id="bad", **definition)
    assert code == "invalid_definition"
    assert told in text
    assert shared.refusal("get_program_info", program_id="bad")[0] == "program_not_found"


@pytest.mark.parametrize(
    ("inputs", "details"),
    [
        ({}, {"expected": ["question"], "missing": ["question"], "unknown": []}),
        (None, {"expected": ["question"], "missing": ["question"], "unknown": []}),
        ({"query": "x"}, {"expected": ["question"], "missing": ["question"], "unknown": ["query"]}),
    ],
)
def test_inputs_that_are_not_the_programs(shared: Client, inputs: Any, details: dict[str, Any]) -> None:
    shared.result("create_program", id="inputs", signature=QA, replace=True)
    answer = shared.ask("execute_program", program_id="inputs", inputs=inputs)
    assert refusal_in(answer)[0] == "invalid_args"
    assert answer["error_info"]["details"] == details
    assert shared.result("get_program_info", program_id="inputs")["execution_count"] == 0


def test_inputs_that_are_no_object(shared: Client) -> None:
    shared.result("create_program", id="inputs", signature=QA, replace=True)
    told = shared.refusal("execute_program", program_id="inputs", inputs=[1])
    assert told[0] == "invalid_args"
    assert "inputs is an object by field name; it is list" in told[1]


def test_a_program_without_an_lm(shared: Client) -> None:
    shared.result("create_program", id="mute", signature=QA)
    code, text = shared.refusal("execute_program", program_id="mute", inputs={"question": "x"})
    assert code == "lm_not_configured"
    assert text == "No LM is loaded: send configure_lm first, or give the program an LM of its own"


def test_what_an_lm_does_wrong_is_told(start: Start) -> None:
    client = start()
    faults = {"400": "bad request", "429": "too many"}
    with StubLM(faults=faults, retry_after_s=7.0, answers=lambda request: "no fields at all") as stub:
        lm = {"model": "openai/stub", "api_base": stub.url, "api_key": "k" * 20, "num_retries": 0}
        client.result("create_program", id="qa", signature=QA, lm=lm)
        refused = client.ask("execute_program", program_id="qa", inputs={"question": "bad request"})
        hurried = client.ask("execute_program", program_id="qa", inputs={"question": "too many"})
        confused = client.ask("execute_program", program_id="qa", inputs={"question": "else"})
    assert refusal_in(refused)[0] == refusal_in(hurried)[0] == "lm_error"
    assert (refused["error_info"]["status"], refused["error_info"]["retryable"]) == (400, False)
    assert (hurried["error_info"]["status"], hurried["error_info"]["retryable"]) == (429, True)
    assert hurried["error_info"]["retry_after_s"] == 7.0
    assert refusal_in(confused)[0] == "adapter_parse_error"
    assert confused["error_info"]["details"]["lm_response"] == "no fields at all"
    assert "AdapterParseError" in confused["error_info"]["traceback"]
    assert client.result("get_program_info", program_id="qa")["execution_count"] == 3


def test_what_a_program_raises_is_told_with_its_traceback(start: Start, stub: StubLM) -> None:
    client = start()
    client.result("create_program", id="qa", signature=QA)
    lm = {"model": "openai/stub", "api_base": stub.url, "api_key": "k" * 20, "timeout": "soon"}  # DSPy finds out late
    answer = client.ask("execute_program", program_id="qa", inputs={"question": "x"}, lm=lm)
    assert refusal_in(answer)[0] == "program_error"
    assert answer["error_info"]["type"] == "builtins.TypeError"
    assert "TypeError: timeout must be a number" in answer["error_info"]["traceback"]
    assert answer["error_info"]["retryable"] is False


def test_a_number_that_json_has_not_is_refused_and_not_made_null(start: Start) -> None:
    client = start()
    with StubLM(answers={"number": "NaN"}) as stub:
        use(client, stub)
        client.result("create_program", id="p", signature=signature("text", "number:float"))
        code, text = client.refusal("execute_program", program_id="p", inputs={"text": "x"})
    assert code == "encode_error"
    assert "nan, which JSON has no notation for" in text


def test_a_deadline_bounds_what_an_lm_may_take(start: Start) -> None:
    client = start()
    with StubLM(faults=["hang"] * 10) as stub:
        use(client, stub)
        client.result("create_program", id="qa", signature=QA)
        args = {"program_id": "qa", "inputs": {"question": "x"}}
        client.send_request({"id": 9, "command": "execute_program", "args": args, "deadline_ms": 300})
        answer = client.receive()
    assert refusal_in(answer)[0] == "lm_error"
    assert answer["id"] == 9


# LMs


def test_the_lm_of_a_call_is_the_one_configured_when_it_came(start: Start) -> None:
    client = start()
    with StubLM(answers={"answer": "first"}) as one, StubLM(answers={"answer": "second"}) as two:
        client.result("create_program", id="qa", signature=QA)
        for stub in (one, two):
            access = {"api_base": stub.url, "api_key": "k" * 20}
            client.send("configure_lm", provider="openai", model="stub", **access)
            client.send("execute_program", program_id="qa", inputs={"question": f"of {stub.url}"})
        answers = [client.receive() for _ in range(4)]
    assert [answer["result"].get("answer", answer["result"].get("lm")) for answer in answers] == [
        *("openai/stub", "first"),
        *("openai/stub", "second"),
    ]


def test_a_configuration_that_is_refused_leaves_the_one_before(start: Start, stub: StubLM) -> None:
    client = start()
    client.result("create_program", id="qa", signature=QA)
    use(client, stub)
    for args in ({"model": "gpt-4o-mini"}, {"model": "o1", "api_key": "k" * 20, "max_tokens": 5}, {}):
        client.refusal("configure_lm", provider="openai", **args)
    assert client.result("execute_program", program_id="qa", inputs={"question": "Still?"}) == {
        "answer": "echo: Still?"
    }


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        ({}, "invalid_args", "Model name is required"),
        ({"model": ""}, "invalid_args", "Model name is required"),
        ({"model": 5}, "invalid_args", "Expected `str`, got `int` - at `$.model`"),
        ({"model": "m", "provider": "openai", "temperature": "hot"}, "invalid_args", "$.temperature"),
        ({"model": "unheard-of"}, "invalid_args", "the LM has no provider"),
        ({"model": "gpt-4o-mini", "provider": "openai"}, "missing_key", "OPENAI_API_KEY"),
        ({"model": "gemini-2.5-flash", "provider": "google"}, "missing_key", "GEMINI_API_KEY or GOOGLE_API_KEY"),
        ({"model": "claude-3-5-haiku"}, "missing_key", "ANTHROPIC_API_KEY"),
        ({"model": "openai/o1", "api_key": "k" * 20, "max_tokens": 5}, "lm_config_error", "max_tokens"),
    ],
)
def test_an_lm_that_cannot_be(shared: Client, args: dict[str, Any], code: str, told: str) -> None:
    found, text = shared.refusal("configure_lm", **args)
    assert found == code
    assert told in text


def test_what_is_configured_reaches_the_provider_and_the_key_nobody_else(start: Start, tmp_path: Path) -> None:
    key = "sk-a-key-that-must-not-be-seen"
    client = start("--debug-log", str(tmp_path / "log"))
    with StubLM(faults={"401": "refuse me"}) as stub:
        use(client, stub, api_key=key, temperature=0.25, max_tokens=77, model="openai/stub")
        client.result("create_program", id="qa", signature=QA)
        said = [client.ask("execute_program", program_id="qa", inputs={"question": f"refuse me: {key}"})]
        sent = stub.requests[-1]
    said += [client.ask("get_program_info", program_id="qa"), client.ask("get_stats")]
    assert (sent["temperature"], sent["max_completion_tokens"]) == (0.25, 77)
    client.close_requests()
    client.exit_code()
    assert key not in json.dumps(said) + client.errors() + (tmp_path / "log").read_text()


def test_a_program_and_a_call_may_have_an_lm_of_their_own(start: Start, stub: StubLM) -> None:
    client = start()
    with StubLM(answers={"answer": "the program's"}) as own, StubLM(answers={"answer": "the call's"}) as once:
        use(client, stub)
        access = {"api_key": "k" * 20, "cache": False}
        client.result("create_program", id="qa", signature=QA, lm={"model": "openai/a", "api_base": own.url, **access})
        call = {"program_id": "qa", "inputs": {"question": "Whose?"}}
        assert client.result("execute_program", **call) == {"answer": "the program's"}
        lm = {"model": "openai/b", "api_base": once.url, **access}
        assert client.result("execute_program", **call, lm=lm) == {"answer": "the call's"}
        assert client.result("execute_program", **call) == {"answer": "the program's"}
        assert client.result("get_program_info", program_id="qa")["model"] == "openai/a"
    assert client.refusal("execute_program", **call, lm=5)[0] == "invalid_args"
    assert client.refusal("execute_program", **call, lm="gpt-4o-mini")[0] == "missing_key"


# Gemini


def test_gemini_programs_need_a_key_or_a_model(shared: Client) -> None:
    code, text = shared.refusal("create_gemini_program", id="g", signature=QA)
    assert code == "missing_key"
    assert "GEMINI_API_KEY" in text
    assert shared.refusal("create_gemini_program", id="g", signature=QA, model="gemini-2.5-flash")[0] == "missing_key"
    other = {"model": "openai/gpt-4o", "provider": "openai", "api_key": "k" * 20}
    code, text = shared.refusal("create_gemini_program", id="g", signature=QA, **other)
    assert (code, text) == ("invalid_args", "openai/gpt-4o is not a Gemini model; use create_program")


def test_execute_gemini_program_is_for_gemini_programs(shared: Client) -> None:
    shared.result("create_program", id="plain", signature=QA, replace=True)
    assert shared.refusal("execute_gemini_program", program_id="plain", inputs={}) == (
        "not_a_gemini_program",
        "Program plain is not a Gemini program; use execute_program",
    )


# Sessions


def test_what_a_session_keeps(shared: Client) -> None:
    assert shared.result("get_session_data", session_id="s") == {}
    assert shared.result("update_session_data", session_id="s", data={"a": 1, "b": [1]}) == {"status": "updated"}
    assert shared.result("update_session_data", session_id="s", data={"b": None}) == {"status": "updated"}
    assert shared.result("get_session_data", session_id="s") == {"a": 1, "b": None}
    assert shared.result("get_session_data", session_id="other") == {}
    assert shared.result("cleanup_session", session_id="s") == {"status": "cleaned", "programs_removed": 0}
    assert shared.result("get_session_data", session_id="s") == {}


@pytest.mark.parametrize("command", ["get_session_data", "update_session_data", "cleanup_session"])
def test_a_session_needs_an_id(shared: Client, command: str) -> None:
    assert shared.refusal(command) == ("invalid_args", "Session ID is required")
    assert shared.refusal(command, session_id=7) == ("invalid_args", "Session ID is text, not int")


def test_a_sessions_data_is_an_object(shared: Client) -> None:
    assert shared.refusal("update_session_data", session_id="s", data=[1]) == (
        "invalid_args",
        "data is an object, not list",
    )


def test_a_pool_workers_programs_belong_to_their_sessions(start: Start) -> None:
    client = start("--mode", "pool-worker", "--worker-id", "w")
    titles = signature("text", "title")
    client.result("create_program", id="qa", signature=QA, session_id="one")
    client.result("create_program", id="qa", signature=titles, session_id="two")
    client.result("create_program", id="all", signature=QA)
    client.result("create_program", id="mine", signature=QA, session_id="one")
    assert client.result("get_stats")["sessions_count"] == 2
    assert client.result("get_program_info", program_id="qa", session_id="two")["signature"] == titles
    assert client.result("list_programs") == {"programs": ["qa", "all", "mine"]}
    assert client.result("list_programs", session_id="two") == {"programs": ["qa", "all"]}
    assert client.result("get_program_info", program_id="mine")["session_id"] == "one"
    assert client.refusal("get_program_info", program_id="mine", session_id="two")[0] == "program_not_found"
    code, text = client.refusal("delete_program", program_id="qa")
    assert (code, text) == (
        "ambiguous_program",
        "Program ID is ambiguous: qa is a program of the sessions one, two; send session_id",
    )
    assert client.result("cleanup_session", session_id="one") == {"status": "cleaned", "programs_removed": 2}
    assert client.result("list_programs") == {"programs": ["qa", "all"]}
    assert client.result("delete_program", program_id="qa")["status"] == "deleted"


def test_a_session_may_stand_beside_the_args(start: Start) -> None:
    client = start("--mode", "pool-worker", "--worker-id", "w")
    args = {"id": "qa", "signature": QA}
    client.send_request({"id": 1, "command": "create_program", "args": args, "session_id": "s"})
    assert client.receive()["success"]
    assert client.result("get_program_info", program_id="qa")["session_id"] == "s"


def test_a_standalone_bridges_programs_live_until_they_are_deleted(start: Start) -> None:
    client = start()
    client.result("create_program", id="qa", signature=QA, session_id="s")
    assert client.result("cleanup_session", session_id="s") == {"status": "cleaned", "programs_removed": 0}
    assert client.result("list_programs", session_id="other") == {"programs": ["qa"]}


# Forgetting, and bounds


def test_reset_state_and_cleanup(start: Start) -> None:
    client = start()
    client.result("create_program", id="a", signature=QA)
    client.result("update_session_data", session_id="s", data={"a": 1})
    assert client.result("cleanup") == {"status": "cleaned", "programs_removed": 1}
    assert client.result("list_programs") == {"programs": []}
    assert client.result("get_session_data", session_id="s") == {"a": 1}
    client.result("create_program", id="a", signature=QA)
    client.refusal("nonsense")
    assert client.result("reset_state") == {
        "status": "reset",
        "programs_cleared": 1,
        "commands_reset": 8,
        "errors_reset": 1,
    }
    assert client.result("get_session_data", session_id="s") == {}
    stats = client.result("get_stats")
    assert (stats["command_count"], stats["error_count"], stats["programs_count"]) == (2, 0, 0)


def test_what_is_kept_has_bounds(start: Start) -> None:
    client = start("--max-programs", "2", "--max-sessions", "2", "--max-stored-bytes", "2000")
    for name in ("a", "b"):
        client.result("create_program", id=name, signature=QA)
        client.result("update_session_data", session_id=name, data={})
    answer = client.ask("create_program", id="c", signature=QA)
    assert refusal_in(answer) == (
        "limit_reached",
        "Program limit reached: there are 2 and --max-programs is 2; delete some first",
    )
    assert answer["error_info"]["details"] == {"limit": 2, "used": 2, "wanted": 3}
    assert client.refusal("update_session_data", session_id="c", data={}) == (
        "limit_reached",
        "Session limit reached: there are 2 and --max-sessions is 2; clean up some first",
    )
    client.result("create_program", id="a", signature=QA, replace=True)
    code, text = client.refusal("update_session_data", session_id="a", data={"a": "x" * 2000})
    assert code == "limit_reached"
    assert "--max-stored-bytes is 2,000; delete programs or clean up sessions first" in text
    long = {**QA, "description": "x" * 2000}
    assert client.refusal("create_program", id="a", signature=long, replace=True)[0] == "limit_reached"
    client.result("delete_program", program_id="a")
    client.result("cleanup_session", session_id="a")
    client.result("create_program", id="c", signature=QA)
    client.result("update_session_data", session_id="c", data={"a": "x" * 1000})


# What can't go right


def test_a_fault_in_the_bridge_itself_is_an_answer_too(start: Start, tmp_path: Path) -> None:
    (tmp_path / "psutil.py").write_text("raise SystemExit('a psutil that ends everything')")
    client = start(env={"PYTHONPATH": str(tmp_path)})
    answer = client.ask("get_stats")
    assert refusal_in(answer)[0] == "internal_error"
    assert "a psutil that ends everything" in answer["error_info"]["traceback"]
    assert client.ask("ping")["success"]


def test_without_dspy_everything_else_works(start: Start, tmp_path: Path) -> None:
    (tmp_path / "dspy.py").write_text("raise ImportError('there is no dspy here')")
    client = start(env={"PYTHONPATH": str(tmp_path)})
    answer = client.ask("create_program", id="p", signature=QA)
    assert refusal_in(answer) == ("load_error", "there is no dspy here")
    assert answer["error_info"]["type"] == "builtins.ImportError"
    assert client.refusal("configure_lm", model="openai/m", api_key="k" * 20)[0] == "lm_config_error"
    assert client.result("list_programs") == {"programs": []}

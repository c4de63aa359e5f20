"""Messages: what validate_request says of each body that isn't a request, and how answers are stamped."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from dspool.errors import InvalidMessage
from dspool.protocol.messages import (
    MAX_ID,
    BootConfig,
    CreateArgs,
    ErrorInfo,
    ImportedProgram,
    LMSpec,
    NamedProgram,
    PickledProgram,
    Request,
    answered,
    refused,
    validate_request,
)

pytestmark = pytest.mark.unit

GOOD: dict[str, Any] = {"id": 1, "command": "ping", "args": {}}


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != field}


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("body", "code", "request_id"),
    [
        pytest.param([], "missing_id", None, id="not an object"),
        pytest.param(None, "missing_id", None, id="null"),
        pytest.param(without("id"), "missing_id", None, id="no id"),
        pytest.param(GOOD | {"id": None}, "missing_id", None, id="id null"),
        pytest.param(GOOD | {"id": True}, "invalid_id", None, id="id a bool"),
        pytest.param(GOOD | {"id": "1"}, "invalid_id", None, id="id text"),
        pytest.param(GOOD | {"id": 1.0}, "invalid_id", None, id="id a float"),
        pytest.param(GOOD | {"id": -1}, "invalid_id", None, id="id negative"),
        pytest.param(GOOD | {"id": MAX_ID + 1}, "invalid_id", None, id="id too large"),
        pytest.param(GOOD | {"id": 10**5000}, "invalid_id", None, id="id too large to be printed"),
        pytest.param(GOOD | {"id": nested(5000)}, "invalid_id", None, id="id too deep to be printed"),
        pytest.param(without("command"), "missing_command", 1, id="no command"),
        pytest.param(GOOD | {"command": ""}, "invalid_command", 1, id="command empty"),
        pytest.param(GOOD | {"command": 3}, "invalid_command", 1, id="command a number"),
        pytest.param(without("args"), "missing_args", 1, id="no args"),
        pytest.param(GOOD | {"args": []}, "invalid_args", 1, id="args an array"),
        pytest.param(GOOD | {"args": None}, "invalid_args", 1, id="args null"),
        pytest.param(GOOD | {"args": {1: 2}}, "invalid_args", 1, id="args with keys that are no text"),
        pytest.param(GOOD | {"deadline_ms": "soon"}, "invalid_args", 1, id="deadline text"),
        pytest.param(GOOD | {"session_id": 7}, "invalid_args", 1, id="session a number"),
    ],
)
def test_a_bad_request_is_refused_with_the_code_that_says_why(body: Any, code: str, request_id: int | None) -> None:
    with pytest.raises(InvalidMessage) as caught:
        validate_request(body)
    assert (caught.value.code, caught.value.request_id) == (code, request_id)


def test_a_good_request_is_taken_and_unknown_fields_are_ignored() -> None:
    body = {"id": 0, "command": "ping", "args": {"any": [1]}, "timestamp": "2025-01-01T00:00:00Z", "from": "elsewhere"}
    assert validate_request(body) == Request(0, "ping", {"any": [1]}, timestamp="2025-01-01T00:00:00Z")


def test_a_clients_own_notion_of_a_timestamp_does_no_harm() -> None:
    assert validate_request(GOOD | {"timestamp": 1.7e9}).timestamp == 1.7e9


def test_every_optional_field_is_read() -> None:
    body = GOOD | {"session_id": "s", "deadline_ms": 5, "traceparent": "00-1"}
    assert validate_request(body) == Request(1, "ping", {}, session_id="s", deadline_ms=5, traceparent="00-1")


def test_a_refusal_does_not_repeat_what_the_body_held() -> None:
    with pytest.raises(InvalidMessage) as caught:
        validate_request(GOOD | {"id": "sk-secret", "deadline_ms": "sk-secret"})
    assert "sk-secret" not in str(caught.value)


def test_an_answer_is_stamped_with_the_wall_clock() -> None:
    before = time.time_ns() / 1e9
    response = answered(3, {"a": 1}, {"m": {"tokens": 2}})
    assert before - 1 <= response.timestamp <= before + 60
    assert (response.id, response.success, response.result, response.usage) == (3, True, {"a": 1}, {"m": {"tokens": 2}})
    assert response.error is None


def test_a_refusals_bare_error_text_is_the_infos_message() -> None:
    info = ErrorInfo("program_error", "it broke")
    response = refused(None, info)
    assert (response.id, response.success, response.error, response.error_info) == (None, False, "it broke", info)
    assert response.result is msgspec.UNSET


def test_what_boots_a_worker_survives_the_pipe() -> None:
    lm = LMSpec("d1", "openai/x", {"temperature": 0})
    warm = [
        NamedProgram("p", PickledProgram(b"\x80", "qa", {"predict": lm})),
        NamedProgram("q", ImportedProgram("m:f")),
    ]
    config = BootConfig(7, "pool", ["/a"], ["m"], warm, lm, b"adapter")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=BootConfig) == config
    assert msgspec.convert(msgspec.to_builtins(config, builtin_types=(bytes,)), BootConfig) == config


def test_which_kind_of_program_it_is_is_told_by_its_tag() -> None:
    plain = msgspec.to_builtins(CreateArgs("p", ImportedProgram("m:f")))
    assert plain == {"program_id": "p", "spec": {"type": "imported", "path": "m:f"}}
    assert msgspec.convert(plain, CreateArgs).spec == ImportedProgram("m:f")

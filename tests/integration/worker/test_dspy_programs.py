"""DSPy programs in a worker, with LMs that need no network."""

from __future__ import annotations

import http.server
import importlib
import json
import os
import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import dspy
import pydantic
import pytest
from dspy.utils import DummyLM

from dspool.protocol.messages import DefinedProgram, ErrorInfo, ImportedProgram, LMSpec, SignatureProgram

if TYPE_CHECKING:
    from tests.integration.worker.conftest import Channel, Spawn

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def dummy(**answers: str) -> LMSpec:
    """An LM that gives these fields, whatever it is asked."""
    return LMSpec(repr(answers), pickled=cloudpickle.dumps(DummyLM({"": {"reasoning": "because", **answers}})))


class Engine:
    """An engine for dspy.LM that fails in a way of its own."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def complete(self, request: Any) -> Any:
        raise self.error


class Person(pydantic.BaseModel):
    name: str
    born: date


class Describe(dspy.Signature):
    """Say something about a person."""

    person: Person = dspy.InputField()
    answer: str = dspy.OutputField()


class Find(dspy.Signature):
    question: str = dspy.InputField()
    person: Person = dspy.OutputField()


PROGRAMS = """
import dspy

class Ask(dspy.Signature):
    q: str = dspy.InputField()
    a: str = dspy.OutputField()

class Shout(dspy.Module):
    def forward(self, q):
        return dspy.Prediction(a=q.upper())

shout = Shout()

class Box:
    ask = dspy.Predict(Ask)
"""
LOOKS = """
import datetime, dspy

class Looks(dspy.Module):
    def __init__(self):
        super().__init__()
        self.describe = dspy.Predict("image: dspy.Image, when: datetime.datetime -> answer")

    def forward(self, image, when: datetime.date, text: "Unknown" = None):
        return f"{type(image).__name__} {type(when).__name__}"
"""


class Seen(dspy.Predict):
    def forward(self, **inputs: Any) -> dspy.Prediction:
        return dspy.Prediction(answer=type(inputs["person"]).__name__)


class OnlyAsync(dspy.Module):
    async def aforward(self, n: int) -> dspy.Prediction:
        return dspy.Prediction(n=n + 1)


class Settings(dspy.Module):
    """Gives back what it is run with; where it is to meet somebody, once that one is running too."""

    def forward(self, meet: str = "") -> dict[str, Any]:
        if meet:
            importlib.import_module(meet).barrier.wait(30)
        lm = dspy.settings.lm
        return {
            "answers": lm and lm.answers[""]["answer"],
            "adapter": type(dspy.settings.adapter).__name__,
            "history": not dspy.settings.disable_history,
            "trace": dspy.settings.trace,
            "thread": threading.current_thread().name,
        }


def test_chain_of_thought_gives_its_outputs_and_usage(dspy_slot: Channel) -> None:
    response = dspy_slot.run(dspy.ChainOfThought("question -> answer"), {"question": "sky?"}, lm=dummy(answer="blue"))
    assert response.result == {"outputs": {"reasoning": "because", "answer": "blue"}}
    assert response.usage is not None
    assert response.usage["dummy"]["total_tokens"] == 0


def test_a_signature_string(dspy_slot: Channel) -> None:
    response = dspy_slot.run(SignatureProgram("text: str -> count: int"), {"text": "x"}, lm=dummy(count="3"))
    assert response.result == {"outputs": {"count": 3}}


def test_a_signature_with_a_reserved_input_is_a_load_error(dspy_slot: Channel) -> None:
    info = dspy_slot.error_of(dspy_slot.create(SignatureProgram("config -> answer")))
    assert info.code == "load_error"
    assert "'config' is reserved" in info.message


def test_a_definition(dspy_slot: Channel) -> None:
    definition = {
        "signature": {
            "name": "Sort",
            "inputs": [{"name": "text", "description": "what to sort"}],
            "outputs": [{"name": "kind", "type": "Literal['a', 'b']"}, {"name": "items", "type": "list[int]"}],
        },
        "program_type": "chain_of_thought",
        "instructions": "Sort it.",
    }
    response = dspy_slot.run(DefinedProgram(definition), {"text": "x"}, lm=dummy(kind="b", items="[1, 2]"))
    assert response.result == {"outputs": {"reasoning": "because", "kind": "b", "items": [1, 2]}}


def test_imported_module_classes_instances_and_signatures(spawn: Spawn, tmp_path: Path) -> None:
    (tmp_path / "programs.py").write_text(PROGRAMS)
    worker = spawn(lm=dummy(a="HI"), sys_path=[str(tmp_path), *sys.path])
    for name in ("Shout", "shout", "Ask", "Box.ask"):
        response = worker.slot.run(ImportedProgram(f"programs:{name}"), {"q": "hi"})
        assert response.result == {"outputs": {"a": "HI"}}, name


def test_an_imported_class_that_needs_arguments_is_a_load_error(dspy_slot: Channel) -> None:
    info = dspy_slot.error_of(dspy_slot.create(ImportedProgram("dspy:ChainOfThought")))
    assert (info.code, info.type) == ("load_error", "builtins.TypeError")


def test_typed_inputs_are_revived_and_typed_outputs_are_plain(dspy_slot: Channel) -> None:
    ada = {"name": "Ada", "born": "1815-12-10"}
    lm = dummy(answer="old", person=json.dumps(ada))
    assert dspy_slot.run(dspy.Predict(Describe), {"person": ada}, lm=lm).result == {"outputs": {"answer": "old"}}
    assert dspy_slot.run(Seen(Describe), {"person": ada}).result == {"outputs": {"answer": "Person"}}
    found = dspy_slot.run(dspy.Predict(Find), {"question": "?"}, lm=lm)
    assert found.result == {"outputs": {"person": {"name": "Ada", "born": date(1815, 12, 10)}}}


def test_a_module_of_ones_own_gets_its_inputs_by_annotation_or_as_dspys_types(spawn: Spawn, tmp_path: Path) -> None:
    (tmp_path / "looking.py").write_text(LOOKS)
    worker = spawn(sys_path=[str(tmp_path), *sys.path])
    inputs = {"image": {"url": "https://example.org/a.png"}, "when": "2024-02-29"}
    assert worker.slot.run(ImportedProgram("looking:Looks"), inputs).result == {"value": "Image date"}


def test_a_module_with_only_aforward_is_run(dspy_slot: Channel) -> None:
    assert dspy_slot.run(OnlyAsync(), {"n": 1}).result == {"outputs": {"n": 2}}


@pytest.mark.parametrize("program", [dspy.ChainOfThought("question, context -> answer"), OnlyAsync()])
def test_inputs_are_checked_before_the_call(dspy_slot: Channel, program: Any) -> None:
    info = dspy_slot.run_badly(program, {"question": "?", "lm": 1}, lm=dummy(answer="x"))
    assert info.code == "invalid_args"
    assert info.details["missing"]
    assert "lm" in info.details["unknown"]


def test_a_pickled_modules_predictors_get_their_own_lms(spawn: Spawn) -> None:
    worker = spawn(lm=dummy(answer="the pool's"))
    program = dspy.ChainOfThought("question -> answer")
    own = dummy(answer="its own")
    assert worker.slot.create(program, predict=own).success
    assert worker.slot.execute({"question": "?"}).result["outputs"]["answer"] == "its own"
    chosen = worker.slot.execute({"question": "?"}, lm=dummy(answer="the call's"))
    assert chosen.result["outputs"]["answer"] == "the call's"
    assert worker.slot.execute({"question": "?"}).result["outputs"]["answer"] == "its own"
    assert "nobody" in worker.slot.error_of(worker.slot.create(program, nobody=own)).message


def test_without_an_lm_the_call_fails_and_says_so(dspy_slot: Channel) -> None:
    info = dspy_slot.run_badly(dspy.Predict("q -> a"), {"q": "?"})
    assert info.code == "program_error"
    assert "No LM is loaded" in info.message


def test_an_answer_that_cannot_be_parsed_comes_with_the_lms_text(dspy_slot: Channel) -> None:
    info = dspy_slot.run_badly(dspy.Predict("q -> number: int"), {"q": "?"}, lm=dummy(other="nonsense"))
    assert info.code == "adapter_parse_error"
    assert "nonsense" in info.details["lm_response"]
    assert info.details["expected"] == ["number"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            dspy.LMRateLimitError("slow down", status=429, retry_after=7.0, request_id="r1"),
            ErrorInfo("lm_error", retryable=True, status=429, retry_after_s=7.0),
        ),
        (dspy.LMAuthError("who are you", status=401), ErrorInfo("lm_error", status=401)),
    ],
)
def test_an_lms_error_says_whether_to_try_again(dspy_slot: Channel, error: Exception, expected: ErrorInfo) -> None:
    lm = LMSpec(repr(error), pickled=cloudpickle.dumps(dspy.LM("openai/stub", engine=Engine(error), num_retries=0)))
    info = dspy_slot.run_badly(dspy.Predict("q -> a"), {"q": "?"}, deadline_ms=30_000, lm=lm)
    assert (info.code, info.retryable, info.status, info.retry_after_s) == (
        expected.code,
        expected.retryable,
        expected.status,
        expected.retry_after_s,
    )
    assert info.message == str(error)


def test_a_retry_pause_past_the_deadline_is_not_waited_for(dspy_slot: Channel) -> None:
    error = dspy.LMRateLimitError("slow down", retry_after=50.0)
    lm = LMSpec(repr(error), pickled=cloudpickle.dumps(dspy.LM("openai/stub", engine=Engine(error))))
    began = time.monotonic()
    assert dspy_slot.run_badly(dspy.Predict("q -> a"), {"q": "?"}, deadline_ms=20_000, lm=lm).code == "lm_error"
    assert time.monotonic() - began < 15


class Provider(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """An OpenAI-compatible server that answers with these statuses in turn; with the last one from then on."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.statuses = [200]
        self.requests = 0
        self.silent = False
        self.over = threading.Event()

    def lm(self, **settings: Any) -> LMSpec:
        base = f"http://127.0.0.1:{self.server_port}/v1"
        settings = {"api_base": base, "api_key": "a-key-for-the-stub", "cache": False, **settings}
        return LMSpec(repr(settings), "openai/stub", settings)


class Answer(http.server.BaseHTTPRequestHandler):
    server: Provider

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        provider = self.server
        status = provider.statuses[min(provider.requests, len(provider.statuses) - 1)]
        provider.requests += 1
        if provider.silent:
            provider.over.wait(30)
        message = {"role": "assistant", "content": "[[ ## a ## ]]\nyes\n\n[[ ## completed ## ]]"}
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        good = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "stub",
            "choices": [choice],
            "usage": usage,
        }
        body = json.dumps(good if status == 200 else {"error": {"message": "not now"}}).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("config", [{}, {"timeout": 600}], ids=["without a timeout", "with a longer one"])
def test_an_lm_that_never_answers_is_given_up_before_the_deadline(
    dspy_slot: Channel, provider: Provider, config: dict[str, Any]
) -> None:
    provider.silent = True
    dspy_slot.create(dspy.Predict("q -> a", **config))
    began = time.monotonic()
    info = dspy_slot.error_of(dspy_slot.execute({"q": "?"}, deadline_ms=3000, lm=provider.lm()))
    assert time.monotonic() - began < 3
    assert (info.code, info.retryable) == ("lm_error", True)


def test_an_lm_that_is_overloaded_is_asked_again_within_the_deadline(dspy_slot: Channel, provider: Provider) -> None:
    provider.statuses = [503, 200]
    response = dspy_slot.run(dspy.Predict("q -> a"), {"q": "?"}, deadline_ms=30_000, lm=provider.lm())
    assert response.result == {"outputs": {"a": "yes"}}
    assert response.usage is not None
    assert response.usage["openai/stub"]["total_tokens"] == 7
    assert provider.requests == 2


def test_an_lms_own_number_of_retries_stands(dspy_slot: Channel, provider: Provider) -> None:
    provider.statuses = [503]
    lm = provider.lm(num_retries=1, timeout=20)
    info = dspy_slot.run_badly(dspy.Predict("q -> a"), {"q": "?"}, deadline_ms=30_000, lm=lm)
    assert (info.code, info.status, provider.requests) == ("lm_error", 503, 2)


def state_of_the_lm() -> Any:
    return dspy.settings.lm.dump_state()


def test_an_lms_saved_state_is_one_of_dspys_own_class(spawn: Spawn) -> None:
    worker = spawn(lm=LMSpec("d", "openai/stub", {"temperature": 0.5}))
    state = worker.slot.run(state_of_the_lm, {}).result["value"]
    lm = dspy.BaseLM.load_state(state)
    assert type(lm) is dspy.LM
    assert (lm.model, lm.kwargs["temperature"]) == ("openai/stub", 0.5)


def test_deadlines_do_not_part_what_dspy_caches(spawn: Spawn, provider: Provider, tmp_path: Path) -> None:
    worker = spawn(lm=provider.lm(cache=True), env={"DSPY_CACHEDIR": str(tmp_path)})
    worker.slot.create(dspy.Predict("q -> a"))
    for deadline_ms in (None, 5_000, 60_000):
        assert worker.slot.execute({"q": "?"}, deadline_ms=deadline_ms).result == {"outputs": {"a": "yes"}}
    assert provider.requests == 1


def test_calls_run_without_history_and_with_a_trace_of_their_own_under_the_pools_adapter(spawn: Spawn) -> None:
    worker = spawn(lm=dummy(answer="a"), adapter="json")
    worker.slot.run(dspy.Predict("question -> answer"), {"question": "q"})  # leaves nothing to the next call
    found = worker.slot.run(Settings()).result["value"]
    assert found == {
        "answers": "a",
        "adapter": "JSONAdapter",
        "history": False,
        "trace": [],
        "thread": "MainThread",
    }


@pytest.mark.parametrize("kind", [dspy.BestOfN, dspy.Refine])
def test_modules_that_add_to_the_trace_run(dspy_slot: Channel, kind: Any) -> None:
    asked = dspy.ChainOfThought("question -> answer")
    module = kind(module=asked, N=2, reward_fn=lambda inputs, prediction: 1.0, threshold=1.0)
    response = dspy_slot.run(module, {"question": "q"}, lm=dummy(answer="a"))
    assert response.result == {"outputs": {"reasoning": "because", "answer": "a"}}


def test_a_pickled_adapter(spawn: Spawn) -> None:
    worker = spawn(adapter=cloudpickle.dumps(dspy.XMLAdapter()))
    assert worker.slot.run(Settings()).result["value"]["adapter"] == "XMLAdapter"


def test_two_slots_at_once_have_settings_of_their_own(spawn: Spawn, tmp_path: Path) -> None:
    (tmp_path / "meeting.py").write_text("import threading\nbarrier = threading.Barrier(2)")
    worker = spawn(slots=2, lm=dummy(answer="the pool's"), sys_path=[str(tmp_path), *sys.path])
    assert worker.slots[1].create(Settings()).success
    worker.slots[0].start({"meet": "meeting"})
    second = worker.slots[1].execute({"meet": "meeting"}, lm=dummy(answer="the call's"))
    first = worker.slots[0].receive()
    assert (first.result["value"]["answers"], second.result["value"]["answers"]) == ("the pool's", "the call's")
    assert first.result["value"]["thread"] != second.result["value"]["thread"]


def test_the_first_dspy_program_may_come_on_slot_1_while_slot_0_is_busy(spawn: Spawn, tmp_path: Path) -> None:
    def owner_is_the_main_thread() -> bool:
        settings: Any = sys.modules["dspy.dsp.utils.settings"]
        return bool(settings.config_owner_thread_id == threading.main_thread().ident)

    gate = tmp_path / "gate"
    os.mkfifo(gate)

    def block(path: str) -> str:
        print("blocked", flush=True)
        return open(path).read()

    worker = spawn(slots=2)
    worker.slots[0].create(block, "block")
    worker.slots[0].start({"path": str(gate)}, "block")
    assert worker.read_output(8) == b"blocked\n"
    response = worker.slots[1].run(dspy.Predict("q -> a"), {"q": "?"}, lm=dummy(a="yes"))
    assert response.result == {"outputs": {"a": "yes"}}
    assert worker.slots[1].run(owner_is_the_main_thread).result == {"value": True}
    gate.write_text("go")
    assert worker.slots[0].receive().result == {"value": "go"}


def test_programs_of_both_kinds_print_no_warnings_of_ours(spawn: Spawn) -> None:
    worker = spawn(lm=dummy(answer="blue"))
    worker.slot.run(Settings())
    worker.slot.run(dspy.ChainOfThought("question -> answer"), {"question": "?"}, deadline_ms=5000)
    assert worker.errors() == ""

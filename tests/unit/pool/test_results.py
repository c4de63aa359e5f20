"""What a caller gets for a worker's response."""

import datetime
import enum
import subprocess
import sys
import traceback
import types
from typing import Any, Literal

import pydantic
import pytest

from dspool.errors import ProgramError
from dspool.options import PoolOptions
from dspool.pool.programs import Program, ProgramStore
from dspool.pool.results import program_error, result_of
from dspool.protocol.codec import MSGPACK
from dspool.protocol.messages import ErrorInfo, Response, answered
from dspool.protocol.values import to_plain

pytestmark = pytest.mark.unit
# Whichever of these comes first pays half a second for importing dspy.
needs_dspy = pytest.mark.slow

USAGE = {"openai/m": {"prompt_tokens": 3, "completion_tokens": 4}}


def shout(text: str) -> str:
    return text.upper()


class Mood(enum.Enum):
    GOOD = "good"


class City(pydantic.BaseModel):
    name: str
    founded: datetime.date


def came(kind: str, value: Any, usage: dict[str, Any] | None = None) -> Response:
    """A worker's response as it is after the pipe."""
    frame = MSGPACK.encode(answered(1, {kind: to_plain(value)}, usage))
    return MSGPACK.decode_response(frame[4:])


# Values.


@pytest.mark.parametrize("value", [None, 5, "x", [1, {"a": (1, 2)}], {"outputs": {"a": 1}}, {1, 2}])
def test_a_callable_s_value_is_given_as_it_came(store: ProgramStore, value: Any) -> None:
    assert result_of(store.resolve(shout), came("value", value)) == value


@pytest.mark.slow
def test_a_value_does_not_import_dspy() -> None:
    code = (
        "import sys\n"
        "from dspool.options import PoolOptions\n"
        "from dspool.pool.programs import ProgramStore\n"
        "from dspool.pool.results import result_of\n"
        "from dspool.protocol.messages import answered\n"
        "assert result_of(ProgramStore(PoolOptions()).resolve('a -> b'), answered(1, {'value': 5})) == 5\n"
        "assert 'dspy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr


# Predictions.


@needs_dspy
def test_outputs_are_a_prediction_with_its_usage(store: ProgramStore, dspy: Any) -> None:
    prediction = result_of(store.resolve("question -> answer"), came("outputs", {"answer": "b", "items": [1]}, USAGE))
    assert isinstance(prediction, dspy.Prediction)
    assert prediction.answer == "b"
    assert prediction["items"] == [1]
    assert prediction.get_lm_usage() == USAGE
    assert result_of(store.resolve("question -> answer"), came("outputs", {"base": 1})).base == 1
    assert result_of(store.resolve("question -> answer"), came("outputs", {})).get_lm_usage() is None


@needs_dspy
def test_typed_outputs_come_back_as_their_types(store: ProgramStore, dspy: Any) -> None:
    fields: dict[str, Any] = {
        "city": City,
        "cities": list[City],
        "mood": Mood,
        "maybe": Mood | None,
        "when": datetime.datetime,
        "picture": dspy.Image,
        "kind": Literal["a", "b"],
        "tags": list[str],
        "by_name": dict[str, City],
        "count": int,
    }
    city = City(name="Rome", founded=datetime.date(753, 4, 21))
    outputs = {
        "city": city,
        "cities": [city],
        "mood": Mood.GOOD,
        "maybe": Mood.GOOD,
        "when": datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC),
        "picture": dspy.Image("data:image/png;base64,AAAA"),
        "kind": "a",
        "tags": ["x"],
        "by_name": {"rome": city},
        "count": 3,
    }
    signature = dspy.Signature(
        {"question": (str, dspy.InputField())} | {name: (kind, dspy.OutputField()) for name, kind in fields.items()}
    )
    for program in (
        dspy.Predict(signature),
        dspy.ChainOfThought(signature),
        signature,
        dspy.ReAct(signature, tools=[]),
    ):
        prediction = result_of(store.resolve(program), came("outputs", outputs))
        for name, value in outputs.items():
            assert prediction[name] == value, name
            assert type(prediction[name]) is type(value), name


@needs_dspy
def test_a_signature_string_s_types_come_back_too(store: ProgramStore, dspy: Any) -> None:
    program = store.resolve("question -> when: datetime.date, mood: Literal['a', 'b'], picture: dspy.Image")
    assert program.fields is None
    day = datetime.date(2026, 1, 2)
    outputs = {"when": day.isoformat(), "mood": "a", "picture": dspy.Image("data:image/png;base64,AAAA")}
    prediction = result_of(program, came("outputs", outputs))
    assert prediction.when == day
    assert isinstance(prediction.picture, dspy.Image)
    assert program.fields is not None


@needs_dspy
def test_a_named_program_has_its_definition_s_types(store: ProgramStore, dspy: Any) -> None:
    mood = dspy.Predict(dspy.Signature({"a": (str, dspy.InputField()), "m": (Mood, dspy.OutputField())}))
    store.register(store.prepare("mood", mood))
    assert result_of(store.resolve("mood"), came("outputs", {"m": Mood.GOOD})).m is Mood.GOOD


@needs_dspy
def test_what_does_not_fit_or_is_not_known_stays_plain(store: ProgramStore, dspy: Any) -> None:
    signature = dspy.Signature({"a": (str, dspy.InputField()), "m": (Mood, dspy.OutputField())})
    prediction = result_of(store.resolve(signature), came("outputs", {"m": "angry", "other": {"name": "Rome"}}))
    assert prediction.toDict() == {"m": "angry", "other": {"name": "Rome"}}
    unknown = store.resolve("question -> answer: no_such_module.Type")
    assert result_of(unknown, came("outputs", {"answer": "x"})).answer == "x"
    definition = {"signature": {"inputs": [{"name": "a"}], "outputs": [{"name": "b"}]}}
    assert result_of(store.resolve(definition), came("outputs", {"b": "x"})).b == "x"


@needs_dspy
def test_an_import_path_s_types_are_known_once_its_module_is_here(
    store: ProgramStore, dspy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    signature = dspy.Signature({"a": (str, dspy.InputField()), "m": (Mood, dspy.OutputField())})
    paths = ("imported_late:programs.qa", "imported_late:signature", "imported_late:Program", "imported_late:gone")
    programs = {path: store.resolve(path) for path in paths}
    response = came("outputs", {"m": "good"})
    assert [result_of(program, response).m for program in programs.values()] == ["good"] * 4
    module: Any = types.ModuleType("imported_late")
    module.programs = types.SimpleNamespace(qa=dspy.Predict(signature))
    module.signature, module.Program = signature, dspy.Predict
    monkeypatch.setitem(sys.modules, "imported_late", module)
    assert [result_of(program, response).m for program in programs.values()] == [Mood.GOOD, Mood.GOOD, "good", "good"]


# Errors.


def error_of(info: ErrorInfo, program: Program | None = None) -> ProgramError:
    store = ProgramStore(PoolOptions(name="unit"))
    return program_error(program or store.resolve("question -> answer"), info, pool="unit", worker_id=7)


def test_an_error_carries_everything_that_came() -> None:
    info = ErrorInfo(
        "program_error",
        message="bad",
        type="app.Oops",
        mro=["app.Oops", "builtins.ValueError"],
        traceback="Traceback ...",
        retryable=True,
        status=503,
        retry_after_s=1.5,
        details={"a": 1},
    )
    error = error_of(info)
    assert str(error) == ("pool 'unit', worker 7: question -> answer raised app.Oops: bad")
    assert (error.code, error.type, error.mro) == ("program_error", "app.Oops", ("app.Oops", "builtins.ValueError"))
    assert (error.remote_traceback, error.retryable, error.status) == ("Traceback ...", True, 503)
    assert (error.retry_after_s, error.details) == (1.5, {"a": 1})
    assert "".join(traceback.format_exception(error)).endswith("In the worker:\nTraceback ...\n")
    assert error_of(info) is not error


INPUTS = {"expected": ["question", "context"], "missing": ["context"], "unknown": ["contxt"]}


@pytest.mark.parametrize(
    ("info", "text"),
    [
        (
            ErrorInfo("invalid_args", message="m", details=INPUTS),
            "was not run, its inputs don't fit: missing 'context'; unknown 'contxt'. It takes 'question', 'context'.",
        ),
        (
            ErrorInfo("invalid_args", message="m", details={"expected": [], "missing": [], "unknown": ["x"]}),
            "was not run, its inputs don't fit: unknown 'x'. It takes no inputs.",
        ),
        (
            ErrorInfo("invalid_args", message="inputs is an object"),
            "was not run, its inputs don't fit: inputs is an object.",
        ),
        (
            ErrorInfo("lm_error", message="slow down", type="dspy.X", retryable=True, status=429, retry_after_s=2.0),
            "got an error from its LM (status 429): dspy.X: slow down. The provider asks to try again after 2 s.",
        ),
        (
            ErrorInfo("lm_error", message="down", type="dspy.X", retryable=True),
            "got an error from its LM: dspy.X: down. The same call may succeed later.",
        ),
        (
            ErrorInfo("lm_error", message="bad key", type="dspy.X", status=401),
            "got an error from its LM (status 401): dspy.X: bad key. The same call would fail again: set the "
            "provider's key in the workers' environment (env= of the pool, or before it is opened), or give the LM an "
            "api_key.",
        ),
        (
            ErrorInfo("lm_error", message="no key", type="dspy.X", details={"lm_code": "not_configured"}),
            "got an error from its LM: dspy.X: no key. The same call would fail again: set the provider's "
            "key in the workers' environment (env= of the pool, or before it is opened), or give the LM an api_key.",
        ),
        (  # what Gemini says to a wrong key
            ErrorInfo("lm_error", message="API key not valid. Please pass a valid one.", type="dspy.X", status=400),
            "got an error from its LM (status 400): dspy.X: API key not valid. Please pass a valid one. The same call "
            "would fail again: set the provider's key in the workers' environment (env= of the pool, or before it is "
            "opened), or give the LM an api_key.",
        ),
        (
            ErrorInfo("lm_error", message="LLM Provider NOT provided", type="dspy.X", status=400),
            "got an error from its LM (status 400): dspy.X: LLM Provider NOT provided. The same call would fail again. "
            'An LM is written "provider/model", as in "openai/gpt-4o-mini", with a provider that DSPy or LiteLLM '
            'knows; a server of your own that speaks OpenAI\'s protocol is "openai/NAME" with api_base.',
        ),
        (
            ErrorInfo("lm_error", message="too long", type="dspy.X", status=400),
            "got an error from its LM (status 400): dspy.X: too long. The same call would fail again: see to the key, "
            "the model's name or the request.",
        ),
        (
            ErrorInfo("adapter_parse_error", message="no field", type="dspy.P"),
            "could not read its LM's answer: dspy.P: no field. The answer is in details['lm_response']; another try, "
            "model or adapter may give a readable one",
        ),
        (  # DSPy's own text has lines, and blank ones at its end
            ErrorInfo("adapter_parse_error", message="no field\n\nLM Response: ?\n\n", type="dspy.P"),
            "could not read its LM's answer: dspy.P: no field\n\nLM Response: ?\nThe answer is in "
            "details['lm_response']; another try, model or adapter may give a readable one",
        ),
        (
            ErrorInfo("load_error", message="no room", type="builtins.ValueError"),
            "can't be loaded in the worker, and was not run: ValueError: no room",
        ),
        (
            ErrorInfo(
                "load_error", message="no app", type="builtins.ModuleNotFoundError", mro=["builtins.ImportError"]
            ),
            "can't be loaded in the worker, and was not run: ModuleNotFoundError: no app. Workers import from the "
            "sys.path, the folder and the environment that this process had at open(); reload() replaces "
            "them, one by one, with workers that have those of now",
        ),
        (
            ErrorInfo("encode_error", message="the result can't be sent: value['a'] is a lock"),
            "ran, but the result can't be sent: value['a'] is a lock. Let it return plain data, models or a "
            "dspy.Prediction",
        ),
        (
            ErrorInfo("result_too_large", message="the result can't be sent: 9 bytes"),
            "ran, but the result can't be sent: 9 bytes. Let it return less, or raise max_frame_bytes",
        ),
        (
            ErrorInfo("program_error", message="No LM is loaded. Please ...", type="builtins.ValueError"),
            "found no LM. Pass lm= to the pool or to the call, or call it inside dspy.context(lm=...)",
        ),
        (ErrorInfo("something_new", message="odd"), "raised odd"),
        (ErrorInfo("something_new"), "raised something_new"),
    ],
)
def test_a_message_says_where_what_and_what_to_do(info: ErrorInfo, text: str) -> None:
    assert str(error_of(info)) == f"pool 'unit', worker 7: question -> answer {text}"
    assert error_of(info).code == info.code

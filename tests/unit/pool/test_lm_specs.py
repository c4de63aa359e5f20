"""LMs and adapters as what a worker is sent."""

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

from dspool.errors import OptionsError
from dspool.pool import lm_specs
from dspool.pool.lm_specs import adapter_spec, ambient_lm, ambient_spec, lm_spec
from dspool.protocol.messages import BootConfig, LMSpec

pytestmark = pytest.mark.unit
# Whichever of these comes first pays half a second for importing dspy.
needs_dspy = pytest.mark.slow

KEY = "sk-0123456789abcdef"


def loaded(spec: LMSpec) -> Any:
    assert spec.pickled is not None
    return cloudpickle.loads(spec.pickled)


# Names and arguments.


def test_a_name_is_a_model_without_arguments() -> None:
    spec = lm_spec("openai/gpt-4o-mini")
    assert (spec.model, spec.kwargs, spec.pickled) == ("openai/gpt-4o-mini", {}, None)
    assert lm_spec("openai/gpt-4o-mini") is spec
    assert lm_spec("openai/gpt-4o").digest != spec.digest


def test_arguments_are_a_model_with_arguments() -> None:
    spec = lm_spec({"model": "openai/m", "api_key": KEY, "temperature": 0.5, "extra_headers": {"a": ["b", None]}})
    assert spec.kwargs == {"api_key": KEY, "temperature": 0.5, "extra_headers": {"a": ["b", None]}}
    assert KEY not in spec.digest


def test_equal_arguments_have_equal_digests() -> None:
    spec = lm_spec({"model": "openai/m", "api_key": KEY, "temperature": 0.5})
    assert lm_spec({"temperature": 0.5, "api_key": KEY, "model": "openai/m"}) == spec
    others: list[dict[str, Any]] = [
        {"api_key": "other"},
        {"temperature": 0.6},
        {"temperature": "0.5"},
        {"cache": False},
    ]
    others += [{"model": "openai/n"}, {"num_retries": 0}]
    digests = {lm_spec({"model": "openai/m", "api_key": KEY, "temperature": 0.5} | other).digest for other in others}
    assert len(digests | {spec.digest}) == len(others) + 1


def test_a_spec_shows_no_argument() -> None:
    for spec in (lm_spec({"model": "openai/m", "api_key": KEY}), LMSpec("d", "own/m", pickled=KEY.encode())):
        shown = [repr(spec), str(spec), str(spec.__rich_repr__()), repr(BootConfig(1, "p", lm=spec))]
        assert not any(KEY in text for text in shown)
        assert all(spec.model in text for text in shown)


def test_what_dspy_would_take_anyway_makes_no_difference() -> None:
    defaults = {"model": "openai/m", "cache": True, "num_retries": 3, "temperature": None, "model_type": "chat"}
    assert lm_spec(defaults) == lm_spec("openai/m")


@pytest.mark.parametrize("name", ["top_k", "base_url", "api_version", "max_completion_tokens", "extra_body"])
def test_what_only_sounds_a_little_like_an_argument_is_sent_on(name: str) -> None:
    assert lm_spec({"model": "openai/m", name: 1}).kwargs == {name: 1}


@pytest.mark.parametrize(
    ("lm", "reason"),
    [
        ("", "must be a non-empty string"),
        ("openai/", "has a provider but no model after it"),
        ("gpt-4o-mini", 'lm names no provider; write "openai/gpt-4o-mini"'),
        ("claude-sonnet-4", 'write "anthropic/claude-sonnet-4"'),
        ("grok-4", 'write "xai/grok-4"'),
        (KEY, 'lm names no provider; write "provider/model", as in "openai/gpt-4o-mini"'),
        (f"https://me:{KEY}@example.org/v1", "lm is an address, not a model"),
        ({"api_key": KEY}, 'has no "model"'),
        ("offline", r"pass the object: lm=dspool\.testing\.offline_lm\.offline_lm\(\)"),
        ({"model": "offline/extractive"}, "names the offline LM in commands alone"),
        ({"model": 5}, "must be a non-empty string; it is 5"),
        ({"model": "openai/m", 5: KEY}, "an argument whose name is a int"),
        (
            {"model": "openai/m", "api_key": object()},
            r"lm\['api_key'\] is, or holds, something other than plain data \(object",
        ),
        ({"model": "openai/m", "extra": [KEY, {"a": b""}]}, r"lm\['extra'\] .* \(list\)"),
        ({"model": "openai/m", "seed": 2**70}, r"lm\['seed'\]"),
        ({"model": "openai/m", "apikey": KEY}, "lm has no argument 'apikey'; did you mean 'api_key'"),
        ({"model": "openai/m", "max_token": 5}, "did you mean 'max_tokens'"),
        ({"model": "openai/m", "temprature": 0.5}, "did you mean 'temperature'"),
        (5, 'must be "provider/model", a dict .* it is a int'),
        (None, "it is a NoneType"),
        (dict, "it is a type"),
    ],
)
def test_what_is_no_lm_is_refused_without_showing_a_value(lm: Any, reason: str) -> None:
    with pytest.raises(OptionsError, match=reason) as caught:
        lm_spec(lm)
    assert KEY not in str(caught.value)


@pytest.mark.slow
def test_without_dspy_there_is_no_ambient_lm_and_nothing_imports_it() -> None:
    code = (
        "import sys\n"
        "from dspool.pool.lm_specs import adapter_spec, ambient_lm, lm_spec\n"
        "lm_spec('openai/m'), lm_spec({'model': 'openai/m'}), adapter_spec('json')\n"
        "assert ambient_lm() is None and 'dspy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr


# LM objects.


@needs_dspy
def test_a_plain_lm_is_read_back_into_its_arguments(dspy: Any) -> None:
    arguments: list[dict[str, Any]] = [
        {},
        {"temperature": 0.2, "max_tokens": 100, "api_key": KEY, "api_base": "http://127.0.0.1:1/v1"},
        {"model_type": "responses", "cache": False, "num_retries": 0, "use_developer_role": True},
        {"finetuning_model": "f", "launch_kwargs": {"a": 1}, "train_kwargs": {"b": [2]}, "engine": "lm15"},
        {"rollout_id": 7, "temperature": 1.0},
    ]
    for given in arguments:
        spec = lm_spec(dspy.LM("openai/m", **given))
        assert spec == lm_spec({"model": "openai/m", **given})
        assert vars(dspy.LM(spec.model, **spec.kwargs))["kwargs"] == dspy.LM("openai/m", **given).kwargs


@needs_dspy
def test_a_model_that_reasons_is_read_back_too(dspy: Any) -> None:
    lm = dspy.LM("openai/gpt-5", max_tokens=20_000, temperature=1.0)
    spec = lm_spec(lm)
    assert spec.kwargs == {"max_tokens": 20_000, "temperature": 1.0}
    assert dspy.LM(spec.model, **spec.kwargs).kwargs == lm.kwargs


@needs_dspy
def test_an_lm_that_is_more_than_its_arguments_is_pickled(dspy: Any) -> None:
    class Own(dspy.LM):
        pass

    class Schema:
        pass

    marked = dspy.LM("openai/m")
    marked.mark = "x"
    for lm in (Own("openai/m"), marked, dspy.LM("openai/m", response_format=Schema)):
        lm.history.append({"prompt": "another caller's"})
        lm.callbacks.append(threading.Lock())
        spec = lm_spec(lm)
        copy = loaded(spec)
        assert spec.model == "openai/m"
        assert (copy.history, copy.callbacks) == ([], [])
        assert copy.model == "openai/m"
        assert getattr(copy, "mark", None) == getattr(lm, "mark", None)
        assert len(lm.history) == len(lm.callbacks) == 1


@needs_dspy
def test_an_lm_with_an_engine_of_ones_own_is_pickled(dspy: Any) -> None:
    class Engine:
        def complete(self, request: Any) -> Any:
            return request

    copy = loaded(lm_spec(dspy.LM("own/m", engine=Engine())))
    assert copy.engine.complete("x") == "x"


@needs_dspy
def test_a_dummy_lm_is_pickled_with_its_answers(dspy: Any) -> None:
    from dspy.utils import DummyLM

    lm = DummyLM({"why": {"answer": "because"}})
    assert loaded(lm_spec(lm)).answers == lm.answers
    assert lm_spec(DummyLM({"why": {"answer": "so"}})).digest != lm_spec(lm).digest
    scripted = loaded(lm_spec(DummyLM([{"answer": "a"}, {"answer": "b"}])))
    assert list(scripted.answers) == [{"answer": "a"}, {"answer": "b"}]


@needs_dspy
def test_an_lm_is_looked_at_again_when_it_changes(dspy: Any) -> None:
    from dspy.utils import DummyLM

    for lm in (dspy.LM("openai/m", api_key=KEY), DummyLM({})):
        spec = lm_spec(lm)
        assert lm_spec(lm) is spec
        lm.history.append({})
        assert lm_spec(lm) is spec
        lm.kwargs["temperature"] = 0.9
        changed = lm_spec(lm)
        assert changed.digest != spec.digest
        lm.model = "openai/other"
        assert lm_spec(lm).digest not in (spec.digest, changed.digest)


@needs_dspy
def test_an_lm_is_remembered_only_while_it_lives(dspy: Any) -> None:
    from dspy.utils import DummyLM

    builders: list[Callable[[], Any]] = [lambda: dspy.LM("openai/m"), lambda: DummyLM({})]
    for build in builders:
        lm = build()
        lm_spec(lm)
        key, ref = id(lm), weakref.ref(lm)
        assert key in lm_specs._known
        del lm
        gc.collect()
        assert ref() is None
        assert key not in lm_specs._known


@needs_dspy
def test_the_remembered_lms_are_bounded(dspy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_specs, "MAX_REMEMBERED", 3)
    lms = [dspy.LM(f"openai/{number}") for number in range(6)]
    for lm in lms:
        lm_spec(lm)
    assert len(lm_specs._known) <= 3
    assert lm_spec(lms[0]).model == "openai/0"


@needs_dspy
def test_an_lm_that_cannot_be_pickled_is_refused_without_its_key(dspy: Any) -> None:
    lm = dspy.LM("openai/m", api_key=KEY)
    lm.lock = threading.Lock()
    with pytest.raises(
        OptionsError, match=r"the LM LM \(openai/m\) can't be sent, because of lm.lock: a _thread.lock"
    ) as caught:
        lm_spec(lm)
    assert KEY not in str(caught.value)


@needs_dspy
def test_a_class_of_lms_is_refused(dspy: Any) -> None:
    with pytest.raises(OptionsError, match="it is a type"):
        lm_spec(dspy.LM)


@needs_dspy
def test_the_ambient_lm_is_the_one_of_the_calling_context(dspy: Any) -> None:
    outer, inner = dspy.LM("openai/outer"), dspy.LM("openai/inner")
    with dspy.context(lm=outer):
        assert ambient_lm() is outer
        with dspy.context(lm=inner):
            assert ambient_lm() is inner
        assert ambient_lm() is outer
    with dspy.context(lm=None):
        assert ambient_lm() is None


@needs_dspy
def test_the_ambient_lm_is_sent_as_what_it_is(dspy: Any) -> None:
    lm = dspy.LM("openai/outer", api_key=KEY)
    with dspy.context(lm=lm):
        spec = ambient_spec()
        assert spec is not None
        assert (spec.ambient, spec.digest, spec.kwargs) == (True, lm_spec(lm).digest, {"api_key": KEY})
        assert not lm_spec(lm).ambient
    with dspy.context(lm=None):
        assert ambient_spec() is None


# Adapters.


def test_adapters_go_by_name() -> None:
    assert [adapter_spec(name) for name in (None, "chat", "json", "xml")] == [None, "chat", "json", "xml"]
    for name in ("two_step", "", "Chat"):
        with pytest.raises(OptionsError, match=r"adapter must be one of chat, json, xml, or a dspy\.Adapter"):
            adapter_spec(name)
    for thing in (5, dict):
        with pytest.raises(OptionsError, match=r"or a dspy\.Adapter; it is (a int|the class dict)"):
            adapter_spec(thing)


@needs_dspy
def test_an_adapter_object_is_pickled(dspy: Any) -> None:
    class Own(dspy.ChatAdapter):
        def format_task_description(self, signature: Any) -> str:
            return "mine"

    extractor = dspy.LM("openai/m", api_key=KEY)
    extractor.history.append({"prompt": "another caller's"})
    for adapter in (Own(), dspy.JSONAdapter(), dspy.TwoStepAdapter(extractor)):
        data = adapter_spec(adapter)
        assert isinstance(data, bytes)
        assert b"another caller's" not in data
        assert type(cloudpickle.loads(data)).__name__ == type(adapter).__name__
    adapter = Own()
    adapter.lock = threading.Lock()
    with pytest.raises(OptionsError, match=r"the adapter .*Own can't be sent"):
        adapter_spec(adapter)
    with pytest.raises(OptionsError, match="it is the class ChatAdapter"):
        adapter_spec(dspy.ChatAdapter)

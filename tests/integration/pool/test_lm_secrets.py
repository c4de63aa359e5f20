"""An LM's key is nowhere but in the request to its provider, however it was given and whatever goes wrong.

Everything that a pool says is collected while calls succeed, fail, time out and crash, and then searched for the key.
"""

from __future__ import annotations

import base64
import contextlib
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import dspool
from dspool.pool.lm_specs import lm_spec
from dspool.protocol.messages import BootConfig, ExecuteArgs, PickledProgram
from dspool.testing.pytest_plugin import MakePool
from dspool.testing.stub_lm import StubLM

pytestmark = [pytest.mark.integration, pytest.mark.slow]

KEY = "canary-7f3a9c2e51b8"
OTHER = "the-other-stub-key"
ASK = {"question": "why?"}


def says_what_it_was_sent(request: Any) -> str:
    """An answer that fails: the server's error then holds the key and the whole request."""
    raise LookupError(f"no entry for {request.key} in {request.raw!r}")


@pytest.fixture
def stub() -> Iterator[StubLM]:
    """A server whose errors hold the key that it was sent."""
    with StubLM(answers=says_what_it_was_sent) as server:
        yield server


Given = Callable[[StubLM, Any], tuple[Any, dict[str, str | None]]]
"""The LM, and the workers' environment."""


def base(stub: StubLM, **settings: Any) -> dict[str, Any]:
    """An LM's arguments without a key."""
    return {"model": "openai/stub", "api_base": stub.url, "num_retries": 0, "cache": False, **settings}


def with_login(stub: StubLM, login: str) -> str:
    """The stub's address with a name and password in it."""
    return stub.url.replace("://", f"://{login}@")


def with_attribute(lm: Any) -> Any:
    """An LM that holds another key beside its arguments."""
    lm.gateway = {"users": [{"authorization": KEY}]}
    return lm


def of_a_subclass(**settings: Any) -> Any:
    """An LM that travels as a pickle, since its class may be more than its arguments."""
    import dspy

    class OwnLM(dspy.LM):  # type: ignore[misc, unused-ignore]
        """A subclass."""

    return OwnLM(**settings)


WAYS: dict[str, Given] = {
    "subclass": lambda stub, dspy: (of_a_subclass(**base(stub, api_key=KEY)), {}),
    "attribute": lambda stub, dspy: (with_attribute(dspy.LM(**base(stub, api_key=OTHER))), {}),
    "object": lambda stub, dspy: (dspy.LM(**base(stub, api_key=KEY)), {}),
    "dict": lambda stub, dspy: (base(stub, api_key=KEY), {}),
    "gemini": lambda stub, dspy: (stub.settings("gemini", api_key=KEY, num_retries=0), {}),
    "anthropic": lambda stub, dspy: (stub.settings("anthropic", api_key=KEY, num_retries=0), {}),
    "environment": lambda stub, dspy: (base(stub), {"OPENAI_API_KEY": KEY}),
    "headers": lambda stub, dspy: (
        base(stub, api_key=OTHER, extra_headers={"Authorization": f"Bearer {KEY}", "x-api-key": KEY}),
        {},
    ),
    "password": lambda stub, dspy: (base(stub, api_key=OTHER, api_base=with_login(stub, f"me:{KEY}")), {}),
    "query": lambda stub, dspy: (base(stub, api_key=OTHER, api_base=f"{stub.url}?api-key={KEY}"), {}),
    "address in the environment": lambda stub, dspy: (
        {"model": "openai/stub", "num_retries": 0, "cache": False},
        {"OPENAI_API_BASE": with_login(stub, f"me:{KEY}"), "OPENAI_API_KEY": OTHER},
    ),
}


def tells_its_lm() -> None:
    """A program that prints and raises all it knows of its LM."""
    import dspy

    lm = dspy.settings.lm
    known = f"{lm.kwargs if lm else None} {[value for name, value in os.environ.items() if 'API' in name]}"
    known += f" {getattr(lm, 'gateway', '')}"
    print(known, flush=True)
    raise ValueError(known)


def crashes() -> None:
    """A program that prints the same and ends its worker."""
    with contextlib.suppress(ValueError):
        tells_its_lm()
    os.abort()


def hangs() -> None:
    """A program that is killed at its deadline, with a dump of its stack."""
    import time

    time.sleep(600)


class Collected:
    """Everything that was said, as text."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def add(self, what: str, thing: object) -> None:
        """Keep it, its repr() and its str()."""
        self.texts[what] = f"{self.texts.get(what, '')}\n{thing}\n{thing!r}"

    def fails(self, what: str, call: Callable[[], Any]) -> dspool.DspoolError:
        """Make a call that fails, and keep all that its error tells."""
        with pytest.raises(dspool.DspoolError) as caught:
            call()
        error = caught.value
        self.add(what, error)
        self.add(what, "".join(traceback.format_exception(error)))
        self.add(what, vars(error))
        for name in ("remote_traceback", "details", "report", "reports"):
            self.add(what, getattr(error, name, None))
        return error

    def processes(self) -> None:
        """The command line of this process and of all that came from it."""
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            self.add("command lines", Path(f"/proc/{process.pid}/cmdline").read_bytes())

    def search(self) -> None:
        """Fail where a key is found, in the clear or as a login is written in a header."""
        forms = (KEY, base64.b64encode(f"me:{KEY}".encode()).decode().rstrip("="))
        found = {what: text for what, text in self.texts.items() if any(form in text for form in forms)}
        shown = {what: text[max(0, text.find(KEY) - 300) :][:700] for what, text in found.items()}
        assert not found, "\n\n".join(f"--- {what}: {text}" for what, text in shown.items())


@pytest.mark.parametrize(
    ("way", "level"),
    [*((way, "call") for way in WAYS), ("dict", "pool"), ("object", "program"), ("environment", "pool")],
)
def test_a_key_is_told_to_nobody(
    make_pool: MakePool, stub: StubLM, dspy: Any, tmp_path: Path, logged: list[Any], way: str, level: str
) -> None:
    lm, env = WAYS[way](stub, dspy)
    seen, events = Collected(), list[Any]()
    options: dict[str, Any] = {"lm": lm} if level == "pool" else {}
    as_run: dict[str, Any] = {"lm": lm} if level == "call" else {}
    program = dspy.Predict("question -> answer")
    if level == "program":
        program.set_lm(dspy.LM(**lm) if isinstance(lm, dict) else lm)
    pool = make_pool(
        workers=1,
        env=env,
        debug_log=tmp_path / "frames",
        on_event=lambda event, fields: events.append((event, dict(fields))),
        timeout_s=60,
        **options,
    )
    seen.processes()
    error = seen.fails("a failing LM", lambda: pool.run(program, ASK, **as_run))
    assert isinstance(error, dspool.ProgramError)
    assert error.code == "lm_error", error
    seen.fails("a telling program", lambda: pool.run(tells_its_lm, {}, **as_run))
    seen.fails("a telling program later", lambda: pool.run(tells_its_lm, {}))
    seen.fails("a deadline", lambda: pool.run(hangs, {}, timeout_s=0.5, **as_run))
    seen.fails("a crash", lambda: pool.run(crashes, {}, **as_run))
    seen.fails("another LM's failure", lambda: pool.run(program, ASK, **as_run))
    seen.add("stats", pool.stats())
    seen.add("workers", pool.workers())
    seen.add("health", pool.health())
    seen.processes()
    pool.close()
    printed = [line["event"] for line in logged if "temperature" in line["event"] or "None [" in line["event"]]
    assert len(printed) == 3
    spec = lm_spec(lm)
    args = ExecuteArgs("p", {}, spec)
    for name, thing in {
        "the pool": pool,
        "its options": pool.options,
        "what a worker is sent": [spec, BootConfig(1, "p", lm=spec), args, PickledProgram(b"", lms={"predict": spec})],
        "logs": logged,
        "events": events,
        "stats in the end": pool.stats(),
        "debug log": (tmp_path / "frames").read_text(encoding="utf-8"),
    }.items():
        seen.add(name, thing)
    seen.search()


def test_a_key_that_only_the_program_knows_is_masked_in_what_its_lm_says(
    make_pool: MakePool, stub: StubLM, dspy: Any
) -> None:
    class Judge(dspy.Module):
        """Has an LM in an attribute, which nobody strips and nobody looks for."""

        def __init__(self) -> None:
            super().__init__()
            self.judge = dspy.LM(**base(stub, api_key=KEY))

        def forward(self, question: str) -> Any:
            try:
                return self.judge(question)
            except Exception as error:
                raise RuntimeError(f"the judge said: {error}") from error

    def made_inside(question: str) -> Any:
        import dspy

        return dspy.LM(**settings)(question)

    settings = base(stub, api_key=KEY)
    pool, seen = make_pool(workers=1), Collected()
    seen.fails("an LM in an attribute", lambda: pool.run(Judge(), ASK))
    seen.fails("an LM made inside", lambda: pool.run(made_inside, ASK))
    adapter = dspy.TwoStepAdapter(dspy.LM(**base(stub, api_key=KEY)))
    with StubLM() as good:
        two_steps = make_pool(workers=1, lm=good.settings(), adapter=adapter, name="two-steps")
        seen.fails("an adapter's LM", lambda: two_steps.run("question -> answer", ASK))
    assert KEY in [call.key for call in stub.calls]
    seen.search()


@pytest.mark.parametrize("end", ["raise ValueError(os.environ['OPENAI_API_KEY'])", "os.abort()"])
def test_a_key_that_a_preload_prints_is_masked(
    make_pool: MakePool, tmp_path: Path, logged: list[Any], monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    lines = ("import os, sys", "print('the key is', os.environ['OPENAI_API_KEY'], file=sys.stderr, flush=True)", end)
    (tmp_path / "telling_preload.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    seen = Collected()
    env = {"OPENAI_API_KEY": KEY}
    seen.fails("the start", lambda: make_pool(workers=1, env=env, preload=["telling_preload"], start_method="template"))
    seen.add("logs", logged)
    assert "the key is" in seen.texts["logs"]
    seen.search()

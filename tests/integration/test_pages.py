"""The how-to pages whose code is no example's: their blocks run, in order, as their reader would paste them.

What a page takes for granted is here: the reader's modules, keys and folders, and what is done then with what the page
defines. The providers are a stub on loopback: whatever address a process connects to, the stub is there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dspool.testing.stub_lm import StubLM
from tests.pages import HOW_TO, PASTED, ROOT, blocks, environment, run_python

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MODULES = {
    "my_app/tools.py": """
def search(query: str) -> str:
    return "found"


def fetch(url: str) -> str:
    return "fetched"
""",
    "my_app/rewards.py": """
def short(inputs: dict, prediction: object) -> float:
    return 1.0 if len(prediction.answer) < 10 * len(inputs["question"]) else 0.0
""",
    "my_app/programs.py": """
import dspy


class Answerer(dspy.Module):
    def __init__(self, passages: int) -> None:
        self.passages = passages
        self.answer = dspy.Predict("question, passages: int -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.answer(question=question, passages=self.passages)
""",
    "app/programs.py": """
import dspy

qa = dspy.ChainOfThought("question -> answer")
""",
    "app/metrics.py": """
import threading

threading.Thread(target=threading.Event().wait, name="metrics-exporter", daemon=True).start()
""",
    "site/sitecustomize.py": """
import os
import socket
import ssl

connect = socket.create_connection


def to_the_stub(address, *args, **kwargs):
    return connect(("127.0.0.1", int(os.environ["STUB_PORT"])), *args, **kwargs)


socket.create_connection = to_the_stub
ssl.SSLContext.wrap_socket = lambda self, connection, **kwargs: connection  # the stub speaks no TLS
""",
}

KEYS = {
    "OPENAI_API_KEY": "key-for-openai",
    "ANTHROPIC_API_KEY": "key-for-anthropic",
    "GEMINI_API_KEY": "key-for-gemini",
    "RED_KEY": "key-of-red",
    "BLUE_KEY": "key-of-blue",
}

THEN = {
    "check-the-environment": """
try:
    pool.open()
except dspool.WorkerStartError as error:
    print(error)
""",
    "configure-lms": """
print("asked around:", ask_around("why?"))
with within_limits() as pool:
    print("tenant:", for_tenant(pool, "ada", "key-of-ada", "and I?"))
    for form in (name, arguments, lm, server):
        pool.run("question -> answer", {"question": "which?"}, lm=form)
    print("after a pause:", patiently(pool, "busy?"))
    print("models:", sorted(pool.stats().usage.by_model))
with two_tenants() as pool:
    for tenant in ("red", "blue"):
        pool.run("question -> answer", {"question": "who?"}, require=tenant)
""",
    "define-programs-as-data": """
for name in ("second_opinion", "local", "qa"):
    print(name, "says", pool.run(name, {"question": "why?"}).answer)
for name, definition in {"agent": AGENT, "best": BEST, "mine": MINE}.items():
    pool.create_program(name, definition)
    print(name, "says", pool.run(name, {"question": "why?"}).answer)
pool.run("triage", {"message": "Bo again."})
pool.close()
""",
    "preload-modules": """
print("lent from now on:", [worker.worker_id for worker in pool.workers() if worker.state == "idle"])
pool.close()
""",
}
"""What the reader does then."""

RunPage = Callable[[str, StubLM], str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The reader's folder."""
    for name, code in MODULES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code, encoding="utf-8")
    (tmp_path / "cache").mkdir(mode=0o700)
    return tmp_path


def leading_to(stub: StubLM, folder: Path) -> dict[str, str]:
    """The variables of processes whose providers are the stub."""
    port = stub.url.rpartition(":")[2].partition("/")[0]
    site, cache = str(folder / "site"), str(folder / "cache")
    return {**KEYS, "PYTHONPATH": site, "STUB_PORT": port, "DSPY_CACHEDIR": cache}


def run_command(command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run what a page says to a shell."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env=environment(**variables, PATH=path),
        capture_output=True,
        text=True,
        timeout=55,
    )


@pytest.fixture
def run_page(folder: Path) -> RunPage:
    """Run a page's blocks and what comes then, as one script. Returns what it printed."""

    def run(page: str, stub: StubLM) -> str:
        script = folder / "script.py"
        script.write_text("\n".join([*blocks(HOW_TO / f"{page}.md", "python"), THEN[page]]), encoding="utf-8")
        done = run_python(script, folder, **leading_to(stub, folder))
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_every_page_that_is_pasted_has_a_reader() -> None:
    assert THEN.keys() == PASTED


def test_the_page_on_lms(run_page: RunPage) -> None:
    busy = iter(["429"] * 4)  # an LM's num_retries is 3

    def fault(request: Any) -> str | None:
        return next(busy, None) if request.inputs["question"] == "busy?" else None

    with StubLM(faults=fault, retry_after_s=0.05) as stub:
        printed = run_page("configure-lms", stub)
    assert printed.splitlines() == [
        "asked around: ['echo: why?', 'echo: why?', 'echo: why?']",
        "tenant: echo: and I?",
        "after a pause: echo: busy?",
        "models: ['openai/gpt-4o-mini', 'openai/my-model']",
    ]
    assert [(call.model, call.key) for call in stub.calls] == [
        ("gpt-4o-mini", "key-for-openai"),
        ("claude-sonnet-4-5", "key-for-anthropic"),
        ("gemini-2.5-flash", "key-for-gemini"),
        ("gpt-4o-mini", "key-of-ada"),
        ("gpt-4o-mini", "key-for-openai"),  # by name
        ("gpt-4o-mini", "..."),
        ("gpt-4o-mini", "key-for-openai"),
        ("my-model", "none"),
        *[("gpt-4o-mini", "key-for-openai")] * 5,  # busy four times
        ("gpt-4o-mini", "key-of-red"),
        ("gpt-4o-mini", "key-of-blue"),
    ]


def test_the_page_on_definitions(run_page: RunPage, folder: Path, dspy: Any) -> None:
    optimized = dspy.ChainOfThought("question -> answer")
    optimized.predict.signature = optimized.predict.signature.with_instructions("Found by an optimizer.")
    optimized.save(folder / "qa.json")
    triaged = {"urgent": True, "team": "billing", "customer": {"name": "Bo", "orders": [17, 18]}}
    with StubLM(answers={**triaged, "next_tool_name": "finish", "next_tool_args": {}}) as stub:
        printed = run_page("define-programs-as-data", stub)
    text = (HOW_TO / "define-programs-as-data.md").read_text(encoding="utf-8")
    shown = re.findall(r"^print\(.*\)  # (.+)$", text, re.MULTILINE)
    said = [f"{name} says echo: why?" for name in ("second_opinion", "local", "qa", "agent", "best", "mine")]
    assert printed.splitlines() == shown + said
    asked = [(call.model, call.key) for call in stub.calls]
    assert asked[:4] == [
        ("gpt-4o-mini", "key-for-openai"),
        ("gemini-2.5-flash", "key-for-gemini"),
        ("llama", "none"),
        ("gpt-4o-mini", "key-for-openai"),
    ]
    sent = [str(request) for request in stub.requests]
    assert "order 17 never came!" in sent[0]
    assert "Found by an optimizer." in sent[3]
    assert "log in is urgent." in sent[-1]


def test_the_page_on_preloading(run_page: RunPage) -> None:
    with StubLM() as stub:
        printed = run_page("preload-modules", stub)
    assert printed.splitlines() == ["template", "", str(["template"] * 8), f"lent from now on: {[*range(9, 17)]}"]


def test_the_page_on_the_environment(run_page: RunPage) -> None:
    with StubLM() as stub:
        printed = run_page("check-the-environment", stub)
    *_, refused = printed.splitlines()
    assert "pandas>=2 is not installed" in refused
    assert "numpy" not in refused


WORDS_OF_THE_MACHINE = {"system", "descriptors", "memory", "processes", "pth_files"}


def findings(report: str) -> list[str]:
    """The lines of doctor's report, those of the checks without figures and without what is the machine's own."""
    lines = []
    for line in re.sub(r"\n +", " ", report).splitlines():
        status, name, words = " ".join(line.split()).split(" ", 2)
        if name in WORDS_OF_THE_MACHINE:
            line = f"{status} {name}"
        elif status in ("ok", "warning", "failed"):
            words = re.sub(r"on \w+ with [\d.]+ [MGT]iB free", "on a disk", re.sub(r"\b[\d.]+ m?s\b", "N s", words))
            line = f"{status} {name} " + re.sub(r"\d[\d.,]*", "N", words)
        lines.append(line)
    return lines


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user gets to, as no folder of pytest's is."""
    with tempfile.TemporaryDirectory() as made:
        os.chmod(made, 0o755)
        yield Path(made)


@pytest.fixture
def two_cores() -> Iterator[None]:
    """What this thread starts has two cores, as the machine of the page."""
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("the page's machine has two cores")
    os.sched_setaffinity(0, sorted(cores)[:2])
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.usefixtures("two_cores")
def test_doctor_says_what_its_page_shows(folder: Path, public: Path) -> None:
    page = HOW_TO / "check-the-environment.md"
    # The one with --json asks what the first one asks. What it prints is in tests/integration/cli/test_doctor.py.
    first, *others = [command for command in blocks(page, "sh") if "--json" not in command]
    cache = public / "cache"
    cache.mkdir()

    def doctor(command: str, mode: int, **variables: str) -> tuple[int, list[str]]:
        cache.chmod(mode)
        done = run_command(command, folder, DSPY_CACHEDIR=str(cache), **variables)
        assert done.stderr == ""
        printed = done.stdout.replace(str(public), "/app").replace(sys.executable, "/app/.venv/bin/python")
        return done.returncode, findings(printed)

    shown, *shown_in_part = map(findings, blocks(page, "text"))
    assert doctor(first, 0o700, OPENAI_API_KEY="key-for-openai") == (0, shown)
    for command, mode, bad in zip(others, (0o777, 0o700), shown_in_part, strict=True):
        code, found = doctor(command, mode)
        assert (code, [line for line in found[1:] if not line.startswith("ok ")]) == (3, bad)


def test_a_lost_worker_is_told_as_its_page_shows(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import os
import signal

import dspool


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


with dspool.Pool(workers=1, name="billing") as pool:
    try:
        pool.run(crash, {})
    except dspool.WorkerLost:
        pass
""",
        encoding="utf-8",
    )
    told = run_python(script, tmp_path).stderr.splitlines()
    (shown,) = blocks(HOW_TO / "watch-a-pool.md", "text")
    assert re.sub(r"\d[\d.]*", "N", shown.strip()) in [re.sub(r"\d[\d.]*", "N", line) for line in told]


def test_the_readmes_commands(folder: Path) -> None:
    (folder / "README.md").write_bytes((ROOT / "README.md").read_bytes())
    (folder / "rows.jsonl").write_text('{"question": "why?"}\n{"question": "who?"}\n', encoding="utf-8")
    (commands,) = [block.splitlines() for block in blocks(ROOT / "README.md", "sh") if "dspool" in block]
    run_one, run_many, _ = commands  # what doctor says is above
    with StubLM() as stub:
        done = run_command(run_one, folder, **leading_to(stub, folder))
        assert (done.returncode, json.loads(done.stdout)["title"]) == (0, "dspool"), done.stderr
        assert stub.calls == []  # the offline LM asks nobody
        done = run_command(run_many, folder, **leading_to(stub, folder))
        assert done.returncode == 0, done.stderr
    lines = (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["outputs"] for line in lines] == [{"answer": "echo: why?"}, {"answer": "echo: who?"}]

"""Another default LM in a worker that runs: later calls use it, calls under way keep theirs.

A script of its own, because DSPy is configured once in a process, by the thread that does it first.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]

HEAD = """
import threading, sys
import dspy
from dspool.pool.lm_specs import lm_spec
from dspool.protocol.messages import BootConfig
from dspool.testing.stub_lm import StubLM
from dspool.protocol.secrets import Secrets
from dspool.worker.programs import CallableProgram, Loader
from dspool.worker.runtime import Runtime

def lm(stub, name, **more):
    return lm_spec(stub.settings(model=f"openai/{name}", api_key=f"key-of-{name}", **more))

def answer(program, question="why?", lm=None):
    kind, value, usage, spent = program.call({"question": question}, lm, None)
    return value if kind == "value" else value["answer"]
"""


def run(script: str) -> None:
    """Run a script to its end."""
    done = subprocess.run([sys.executable, "-c", HEAD + script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_later_calls_use_it_and_a_call_under_way_keeps_its_own() -> None:
    run("""
begun, go = threading.Event(), threading.Event()

def slowly(request):
    begun.set()
    assert go.wait(30)
    return "[[ ## answer ## ]]\\nthe first\\n\\n[[ ## completed ## ]]"

class Twice(dspy.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = dspy.Predict("question -> answer"), dspy.Predict("question -> answer")
    def forward(self, question):
        return self.two(question=self.one(question=question).answer)

with StubLM(answers=slowly) as old, StubLM(answers={"answer": "the second"}) as new:
    runtime = Runtime(BootConfig(1, "p", lm=lm(old, "old")), Secrets())
    program = runtime.program(Twice(), {})
    found = []
    call = threading.Thread(target=lambda: found.append(answer(program)), daemon=True)
    call.start()
    assert begun.wait(30)
    runtime.configure_lm(lm(new, "new"))
    assert answer(program) == "the second"          # begun later, ended earlier
    go.set()
    call.join(30)
    assert found == ["the first"]                   # its second request too
    assert [each.model for each in old.calls] == ["old", "old"]
    assert [each.model for each in new.calls] == ["new", "new"]
    assert dspy.settings.lm.model == "openai/new"
""")


def test_it_may_come_from_any_thread_while_calls_run() -> None:
    run("""
class Thrice(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")
    def forward(self, question):
        return dspy.Prediction(answer=[self.ask(question=f"{question} {n}").answer for n in range(3)])

with StubLM(answers={"answer": "A"}) as a, StubLM(answers={"answer": "B"}) as b:
    specs = [lm(a, "a"), lm(b, "b")]
    runtime = Runtime(BootConfig(1, "p", lm=specs[0]), Secrets())
    program = runtime.program(Thrice(), {})
    found, errors, over = [], [], threading.Event()

    def calls():
        try:
            while not over.is_set():
                found.append(answer(program))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=calls, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()

    def change():
        try:
            for number in range(1, 61):
                runtime.configure_lm(specs[number % 2])
                assert set(answer(program)) == {"AB"[number % 2]}, number   # begun after it returned
        except BaseException as error:
            errors.append(error)
        over.set()

    changing = threading.Thread(target=change, daemon=True)
    changing.start()
    changing.join(50)
    for thread in threads:
        thread.join(30)
    assert not errors, errors
    assert len(found) > 8
    assert {tuple(each) for each in found} <= {("A",) * 3, ("B",) * 3}      # no call changed its LM on the way
""")


def test_a_refused_lm_changes_nothing_and_a_calls_own_still_wins() -> None:
    run("""
def asks(question):
    return dspy.Predict("question -> answer")(question=question).answer

with StubLM() as stub:
    secrets = Secrets()
    loader = Loader(BootConfig(1, "p"), secrets)
    runtime, program = loader.runtime, CallableProgram(asks, loader)
    for bad in (lm(stub, "gpt-5", temperature=0.5), lm(stub, "m", num_retries=-1)):
        try:
            runtime.configure_lm(bad)
        except Exception as error:
            assert "key-of" not in str(error)
        else:
            raise AssertionError("it was taken")
        assert dspy.settings.lm is None
    runtime.configure_lm(lm(stub, "default"))
    assert answer(program) == "echo: why?"
    import msgspec
    answer(program, lm=msgspec.to_builtins(lm(stub, "mine")))
    answer(program)
    pinned = dspy.Predict("question -> answer")
    bound = runtime.program(pinned, {"self": lm(stub, "pinned")})
    answer(bound)
    assert [each.model for each in stub.calls] == ["default", "mine", "default", "pinned"]
    assert secrets.mask("key-of-default key-of-mine key-of-pinned") == "*** *** ***"
""")

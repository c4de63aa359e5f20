"""What DSPy's own client and LiteLLM take as a key, against the tables of dspool.protocol.lm_keys.

They are asked in a process of its own: LiteLLM leaves an event loop, sockets and threads behind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from dspool.pool.lm_specs import lm_spec
from dspool.protocol.lm_keys import LITELLM, LITELLM_ALSO, meant_provider

pytestmark = [pytest.mark.integration, pytest.mark.slow]

KEY = "sk-0123456789abcdef"
CASES = [
    (provider, variable) for table in (LITELLM, LITELLM_ALSO) for provider in table for variable in table[provider]
]
PATIENCE_S = 55

CHILD = """
import contextlib, http.server, json, os, sys, threading

class Listener(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        heard.append(str(self.headers) + self.path)
        self.send_response(400)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_): ...

def ask(client, model):
    if client == "litellm":
        import litellm
        litellm.completion(model=model, messages=[{"role": "user", "content": "why?"}], api_base=address,
                           num_retries=0, max_retries=0, timeout=10)
    else:
        import dspy
        dspy.LM(model, engine=client.removeprefix("dspy-"), api_base=address, cache=False, num_retries=0)("why?")

heard, told = [], []
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener)
threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}/v1"
for client, model, variable in json.load(sys.stdin):
    heard.clear()
    os.environ.update({variable: sys.argv[1]} if variable else {})
    said = ""
    with contextlib.redirect_stdout(sys.stderr):
        try:
            ask(client, model)
        except Exception as error:
            said = str(error)
    os.environ.pop(variable or "", None)
    told.append([list(heard), said])
print(json.dumps(told))
sys.stdout.flush()
os._exit(0)
"""


def ask(*cases: tuple[str, str, str]) -> list[tuple[list[str], str]]:
    """Ask clients for models, each with one variable set; what the server heard, and what the client said."""
    environment = {
        name: value for name, value in os.environ.items() if not name.endswith(("_KEY", "_TOKEN", "_BASE", "_URL"))
    }
    environment["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"
    done = subprocess.run(
        [sys.executable, "-c", CHILD, KEY],
        input=json.dumps(cases),
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told: list[tuple[list[str], str]] = json.loads(done.stdout)
    return told


def test_neither_client_asks_a_server_that_speaks_openais_protocol_without_a_key() -> None:
    for heard, said in ask(("dspy-lm15", "openai/m", ""), ("dspy-litellm", "openai/m", "")):
        assert not heard
        assert "api_key" in said.lower()


def test_no_provider_of_litellms_is_taken_for_a_slip_of_the_pen() -> None:
    names = "import json, litellm; print(json.dumps([str(getattr(p, 'value', p)) for p in litellm.provider_list]))"
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "true"}
    done = subprocess.run(
        [sys.executable, "-c", names], env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )
    known = json.loads(done.stdout.splitlines()[-1])
    assert len(known) > 50
    assert [name for name in known if meant_provider(lm_spec(f"{name}/some-model"))] == []


def test_litellm_takes_its_key_from_each_variable() -> None:
    told = ask(*(("litellm", f"{provider}/some-model", variable) for provider, variable in CASES))
    wrong: dict[Any, str] = {
        case: said for case, (heard, said) in zip(CASES, told, strict=True) if not heard or KEY not in heard[0]
    }
    assert not wrong

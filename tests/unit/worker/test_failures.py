"""Exceptions as plain data."""

from __future__ import annotations

import base64
import sys
import types
from typing import Any

import pytest

from dspool.protocol.codec import MSGPACK
from dspool.protocol.messages import LMSpec, refused
from dspool.protocol.secrets import Secrets
from dspool.worker.failures import MAX_TRACEBACK_BYTES, clean, describe

pytestmark = pytest.mark.unit


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_type_bases_message_and_traceback() -> None:
    info = describe(raised(KeyError("k")), "program_error", Secrets())
    assert (info.code, info.type, info.message) == ("program_error", "builtins.KeyError", "'k'")
    assert info.mro == [f"builtins.{name}" for name in ("KeyError", "LookupError", "Exception", "BaseException")]
    assert info.traceback.startswith("Traceback (most recent call last):")
    assert info.traceback.endswith("KeyError: 'k'\n")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Hostile(), "<a Hostile whose str() raised RuntimeError>"),
        (ValueError(), "builtins.ValueError"),
        (SystemExit(3), "the program called exit(3); a worker outlives that"),
    ],
)
def test_an_exception_without_a_text_of_its_own(error: BaseException, message: str) -> None:
    assert describe(raised(error), "program_error", Secrets()).message == message


def test_texts_that_cannot_be_encoded_are_escaped() -> None:
    info = describe(raised(ValueError("\udcff\0")), "program_error", Secrets())
    assert info.message == "\\udcff\0"
    MSGPACK.encode(refused(1, info))


def test_a_deep_recursion_has_a_short_traceback() -> None:
    def deeper(number: int) -> Any:
        return deeper(number + 1)

    with pytest.raises(RecursionError) as caught:
        deeper(0)
    info = describe(caught.value, "program_error", Secrets())
    assert len(info.traceback) < 4000


def test_a_long_text_loses_its_middle() -> None:
    text = clean("<" + "x" * 2 * MAX_TRACEBACK_BYTES + ">", MAX_TRACEBACK_BYTES, Secrets())
    assert text.startswith("<x")
    assert text.endswith("x>")
    assert f"[... {MAX_TRACEBACK_BYTES + 2:,} bytes left out ...]" in text


def test_a_cut_between_the_bytes_of_a_character_drops_it() -> None:
    assert clean("\N{SNOWMAN}" * 100, 50, Secrets()).strip("\N{SNOWMAN}") == "\n[... 250 bytes left out ...]\n"


def test_secrets_are_masked_whole_and_before_anything_is_cut() -> None:
    secrets = Secrets()
    secrets.add_lm(
        LMSpec(
            "d",
            "openai/x",
            {
                "api_key": "sk-0123456789",
                "api_base": "https://example.org",
                "max_tokens": 1000,
                "extra_headers": {"Authorization": "Bearer sk-another-one", "X-Trace": "not-secret-at-all"},
                "aws_credentials": ["first-secret", {"of": "second-secret"}],
                "password": "short",
            },
        )
    )
    text = "sk-0123456789 sk-another-one first-secret second-secret https://example.org 1000 short not-secret-at-all"
    assert secrets.mask(text) == "*** *** *** *** https://example.org 1000 short not-secret-at-all"
    assert "sk-01234" not in clean("y" * 40 + "sk-0123456789" + "y" * 150, 160, secrets)


def test_a_secret_within_a_secret_leaves_nothing() -> None:
    secrets = Secrets()
    secrets.add("secret-one", "secret-one-and-more")
    assert secrets.mask("secret-one-and-more, secret-one") == "***, ***"


def test_the_environments_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "canary-canary")
    monkeypatch.setenv("SOME_KEYBOARD", "qwerty-qwerty")
    secrets = Secrets()
    secrets.add_environment()
    assert secrets.mask("canary-canary qwerty-qwerty") == "*** qwerty-qwerty"


def test_what_an_address_holds_is_masked_as_it_is_written_and_as_it_is_sent() -> None:
    secrets = Secrets()
    secrets.add_settings(
        {
            "api_base": "https://me:pass%20word-1@example.org:8443/v1?api-key=query%2Bkey-1&version=2024-01-01-preview",
            "other": "http://token-as-user@example.org/?sig=short",
            "broken": "http://[half",
            "plain": "https://example.org/v1",
        }
    )
    login = base64.b64encode(b"me:pass word-1").decode()
    for secret in ("me:pass%20word-1", "pass word-1", login, "query%2Bkey-1", "query+key-1", "token-as-user"):
        assert secrets.mask(f"<{secret}>") == "<***>", secret
    assert secrets.mask("https://example.org/v1?version=2024-01-01-preview") != "***"
    assert "2024-01-01-preview" in secrets.mask("version=2024-01-01-preview")


def test_an_address_with_a_login_in_the_environment_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:proxy-password@proxy:3128")
    assert Secrets.of_environment().mask("via me:proxy-password, or proxy-password") == "via ***, or ***"


def test_the_keys_of_lms_that_an_error_came_through_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    class LM:
        """Stands for DSPy's."""

        def __init__(self, key: str) -> None:
            self.kwargs = {"api_key": key}

        def __call__(self) -> None:
            raise ValueError(f"refused: {self.kwargs['api_key']}")

    monkeypatch.setitem(sys.modules, "dspy", types.SimpleNamespace(BaseLM=LM))

    def program() -> None:
        try:
            LM("the-first-key")()
        except ValueError as first:
            try:
                LM("the-second-key")()
            except ValueError as second:
                raise RuntimeError(f"{first}, {second}") from second

    with pytest.raises(RuntimeError) as caught:
        program()
    info = describe(caught.value, "program_error", Secrets())
    assert info.message == "refused: ***, refused: ***"
    assert "-key" not in info.traceback
    group = ExceptionGroup("several", [ValueError("one")])
    group.__context__ = group.exceptions[0]
    group.exceptions[0].__context__ = group  # in a circle
    assert describe(group, "program_error", Secrets()).message.startswith("several")
